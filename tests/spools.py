"""Spools for tests, in this process and in others: what is put in, what is got out, and scripts that do it."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from jarvis_otel.segments import Segment
from jarvis_otel.spool import SEGMENT_BYTES, Spool, adopt, forget_parent, usage

__all__ = [
    "RESOURCE",
    "ROOM",
    "ROOT",
    "SCOPE",
    "SEGMENT_BYTES",
    "Path",
    "Segment",
    "Spool",
    "adopt",
    "forget_parent",
    "inherit",
    "line",
    "os",
    "python",
    "record",
    "segments",
    "subprocess",
    "sys",
    "taken",
    "text_of",
    "usage",
]

ROOT = Path(__file__).parents[1]
SCOPE = b'{"scope":{"name":"trading"},"logRecords":['
RESOURCE = b'{"attributes":[]}'
ROOM = 64 * SEGMENT_BYTES


def record(text, size=0):
    return json.dumps({"body": {"stringValue": str(text)}, "pad": "x" * size}).encode()


def line(number, text=None, *, size=0):
    return b"%d\t%b\t%b\n" % (number, SCOPE, record(number if text is None else text, size))


def text_of(item):
    return json.loads(item[2])["body"]["stringValue"]


def taken(store, at_once=1000):
    """All that waits, as texts; each batch is settled before the next is taken."""
    texts = []
    while batch := store.take(at_once):
        texts += map(text_of, batch)
        store.release(batch)
    return texts


def inherit(directory, at_once=1000):
    """What the next process gets of those that are gone, which are gone for good then."""
    texts = []
    for orphan in adopt(directory):
        with orphan:
            texts += taken(orphan, at_once)
            orphan.remove()
    return texts


def python(script, *arguments, timeout=60, prefix=(), **options):
    """Runs a script that knows the names of this module, and gives what became of it."""
    source = f"from tests.spools import *\n{textwrap.dedent(script)}"
    command = [*prefix, sys.executable, "-c", source, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False, **options)


def segments(room):
    return sorted(room.glob("*/*.seg"))
