"""How far the forwarding has come: a mark in each day file, in one small file that is replaced whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from hashlib import blake2s
from pathlib import Path
from typing import NamedTuple

import orjson

from jarvis_collector.files import sync_directory, write_file
from jarvis_collector.layout import LOGS_STREAM, day_name

__all__ = ["TAIL", "Checkpoint", "Mark", "day_after", "digest", "load", "save"]

TAIL = 1024
"""So many bytes before a mark tell whether the file is still the one that it was made in."""


class Mark(NamedTuple):
    """How far a day file has been forwarded.

    Attributes:
        offset: All lines before it are settled; it is where a line begins.
        digest: Of the up to `TAIL` bytes before it.
        closed: Whether the file was at its end when a later day had begun.
    """

    offset: int = 0
    digest: str = ""
    closed: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """How far all day files have been forwarded.

    Attributes:
        since: Earlier days are no concern of the forwarding.
        marks: Mark by day, both as file names have it.
    """

    since: str
    marks: Mapping[str, Mark] = field(default_factory=dict)

    def covers(self, path: Path) -> bool:
        """Whether all of a plain day file has been forwarded, or will never be: only log records are."""
        named = day_name(path.name)
        if named is None or named.stream != LOGS_STREAM:
            return True
        day = named.day.isoformat()
        if day < self.since:
            return True
        mark = self.marks.get(day, Mark())
        try:
            return mark.closed or path.stat().st_size <= mark.offset
        except FileNotFoundError:
            return False


def digest(tail: bytes) -> str:
    """What a mark keeps of the bytes before it."""
    return blake2s(tail, digest_size=8).hexdigest() if tail else ""


def day_after(day: str) -> str:
    """The next day, as file names have it."""
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def load(path: Path) -> Checkpoint | None:
    """The checkpoint of a file; None where there is none.

    Raises:
        ValueError: The file holds no checkpoint.
        OSError: It cannot be read.
    """
    try:
        content = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    try:
        since = date.fromisoformat(content["since"]).isoformat()
        marks = {
            date.fromisoformat(day).isoformat(): Mark(int(offset), str(tail), bool(closed))
            for day, (offset, tail, closed) in content["files"].items()
        }
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if any(mark.offset < 0 for mark in marks.values()):
        raise ValueError("an offset below 0")
    return Checkpoint(since, marks)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Replaces the file of a checkpoint; a crash leaves the old one or the new one.

    Raises:
        OSError: It cannot be written.
    """
    files = {day: tuple(mark) for day, mark in checkpoint.marks.items()}
    write_file(path, orjson.dumps({"since": checkpoint.since, "files": files}) + b"\n")
    sync_directory(path.parent)
