"""Reads a flag file again after an edit: only the flags whose lines changed, where that surely gives the same.

Most edits touch one flag of many. Reading the others again would cost most of a reload, and would stall the
application beside it. Whatever is not plainly such an edit is left to a whole reading: the caller is given None.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jarvis_flags.parse import FlagSet, parse_more
from jarvis_flags.tree import TreeError, TreeMap, load_tree

__all__ = ["Reading", "read_again", "reading_of"]

# Anchors, aliases and merges tie flags together; directives and document marks change what all lines mean.
_TIES = re.compile(rb"(?:^|[\s\[{,])[*&]\S|<<|^%|^---|^\.\.\.|\r|\xef\xbb\xbf|\x00", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Reading:
    """A flag file as it was read.

    Attributes:
        lines: Its lines, with their ends.
        starts: The line that each flag begins at, from 1, in the file's order.
        end: The line after the last flag's.
        flags: What it says; nothing is wrong with it.
    """

    lines: Sequence[bytes]
    starts: Mapping[str, int]
    end: int
    flags: FlagSet


def reading_of(content: bytes, tree: Any, flags: FlagSet) -> Reading | None:
    """What `read_again` can go on from after a whole reading; None where it cannot.

    Args:
        content: The file.
        tree: What `load_tree` gave.
        flags: What `parse_flags` gave.
    """
    listed = tree.get("flags") if isinstance(tree, TreeMap) else None
    if flags.problems or not isinstance(listed, TreeMap) or not listed or _TIES.search(content):
        return None
    starts = list(listed.lines.values())
    if tree.lines["flags"] >= starts[0] or any(line >= following for line, following in itertools.pairwise(starts)):
        return None  # flags that share a line
    lines = content.splitlines(keepends=True)
    end = min((line for line in tree.lines.values() if line > starts[-1]), default=len(lines) + 1)
    return Reading(lines, dict(listed.lines), end, flags)


def read_again(before: Reading, content: bytes, file: str) -> Reading | None:
    """The file after an edit; None where it must be read as a whole.

    Args:
        before: The file before the edit.
        content: The file now.
        file: Its name in messages.
    """
    old, new = before.lines, content.splitlines(keepends=True)
    ahead = _common(old, new)
    behind = _common(old[ahead:][::-1], new[ahead:][::-1])
    ids, starts = list(before.starts), list(before.starts.values())
    # From the flag that the last common line belongs to, to the flag that begins among the common lines behind.
    first = next((at for at in range(len(starts) - 1, -1, -1) if starts[at] <= ahead), None)
    same_from = len(old) - behind + 1
    after = next((at for at, start in enumerate(starts) if start >= same_from), len(starts))
    stop = starts[after] if after < len(starts) else before.end
    if first is None or stop < same_from:
        return None
    shift = len(new) - len(old)
    region = b"".join(new[starts[first] - 1 : stop - 1 + shift])
    if _TIES.search(region):
        return None
    try:
        tree = load_tree(b"flags:\n" + region)
    except TreeError:
        return None
    listed = tree.get("flags")
    if len(tree) != 1 or not isinstance(listed, TreeMap):
        return None
    kept = {*ids[:first], *ids[after:]}
    if kept & listed.keys():
        return None
    flags = parse_more(before.flags, ids[:first], listed, ids[after:], file)
    if flags is None:
        return None
    moved = {flag_id: line + starts[first] - 2 for flag_id, line in listed.lines.items()}
    found = {flag_id: before.starts[flag_id] for flag_id in ids[:first]} | moved
    found |= {flag_id: before.starts[flag_id] + shift for flag_id in ids[after:]}
    return Reading(new, found, before.end + shift, flags)


def _common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """How many lines two files begin with in common."""
    for at, (line, counterpart) in enumerate(zip(one, other, strict=False)):
        if line != counterpart:
            return at
    return min(len(one), len(other))
