"""Where changes of flags come from: the audit, followed from the place that was told last."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from jarvis_otel.admin.audit import GENESIS, AuditEntry, entries, line_hash
from jarvis_otel.admin.states import change_words, moment, override_words
from jarvis_otel.alerts.alert import Alert

__all__ = ["AuditFeed", "ChangeFeed", "Changes", "Mark", "alert_of"]

Mark = Mapping[str, Any]
"""A place in the history of changes as JSON has it; only the feed that made it knows what it says."""

_READ_BYTES = 4 << 20
_DETAILS_BYTES = 2_000


class Changes(NamedTuple):
    """What came after a mark.

    Attributes:
        entries: Entries of the audit, oldest first.
        mark: Where they end.
        more: Whether there are more already.
        note: What happened to the history, where it is no longer the one that the mark was made in.
    """

    entries: list[AuditEntry]
    mark: Mark
    more: bool = False
    note: str = ""


class ChangeFeed(Protocol):
    """Gives changes in the order in which they were made."""

    def end(self) -> Mark:
        """Where the history ends now."""
        ...

    def after(self, mark: Mark) -> Changes:
        """What came after a mark, a bounded part of it.

        Raises:
            OSError: The history cannot be read.
        """
        ...


class AuditFeed:
    """Reads the audit file. A mark knows the last line by its hash, so a file that was cut or replaced is noticed.

    Args:
        path: The file; it may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_to_its_end: tuple[object, ...] | None = None

    def end(self) -> Mark:
        """Where the file ends now: after its last whole line."""
        mark: Mark = _mark(0, b"")
        while True:
            changes = self.after(mark)
            mark = changes.mark
            if not changes.more:
                return mark

    def after(self, mark: Mark) -> Changes:
        """What came after a mark, at most about 4 MiB of it.

        Raises:
            OSError: The file cannot be read.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return Changes([], mark)
        try:
            status = os.fstat(descriptor)
            as_it_is = (status.st_ino, status.st_size, status.st_mtime_ns, mark["hash"])
            if as_it_is == self._read_to_its_end:
                return Changes([], mark)
            followed = status.st_size >= int(mark["offset"]) and _is_after(descriptor, mark)
            changes = (_read if followed else _found_again)(descriptor, status.st_size, mark)
            # what is asked several times a second must not read the same line again and again
            self._read_to_its_end = None if changes.more else (*as_it_is[:3], changes.mark["hash"])
            return changes
        finally:
            os.close(descriptor)


def alert_of(entry: AuditEntry, *, dangerous: bool = False) -> Alert | None:
    """What is told of an entry of the audit; None where it changed nothing.

    Args:
        entry: The entry.
        dangerous: Whether its flag is.
    """
    severity = "warning" if dangerous else "info"
    details = {
        "who": entry.who,
        "via": entry.via,
        "action": entry.action,
        "reason": entry.reason,
        "revision": entry.revision,
        "old": _bounded(entry.old),
        "new": _bounded(entry.new),
        "audit": entry.hash,
    }
    because = f": {entry.reason}" if entry.reason else ""
    lapses = (entry.new or {}).get("expires_at") if entry.outcome != "written" else None
    until = f" until {moment(lapses)}" if lapses else ""
    if entry.outcome in ("applied", "written"):
        title = f"{entry.flag}: {change_words(entry)}{until}"
        text = f"by {entry.who} ({entry.action}, {entry.via}){because}"
        return Alert("flag_changed", title, text, entry.flag, severity, entry.at, details)
    if entry.outcome == "requested":
        title = f"{entry.flag}: approval wanted for {override_words(entry.new)}{until}"
        text = f"asked by {entry.who} ({entry.via}){because}; another person says: jarvis flags approve {entry.id}"
        return Alert("approval", title, text, entry.flag, "warning", entry.at, {**details, "request": entry.id})
    return None


def _bounded(values: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Old or new fields, unless a flag's whole definition makes them too long to send around."""
    if values is None or len(orjson.dumps(values, default=str)) <= _DETAILS_BYTES:
        return values
    return {"left_out": f"more than {_DETAILS_BYTES} bytes; jarvis flags history shows them"}


def _mark(offset: int, last: bytes) -> dict[str, Any]:
    newest = next(entries([last]), None)
    return {
        "offset": offset,
        "size": len(last),
        "hash": line_hash(last) if last else GENESIS,
        "at": "" if newest is None else str(newest.at),
    }


def _is_after(descriptor: int, mark: Mark) -> bool:
    """Whether the mark's line stands before its offset."""
    size = int(mark["size"])
    line = os.pread(descriptor, size, int(mark["offset"]) - size) if size else b""
    return (line_hash(line) if line else GENESIS) == str(mark["hash"])


def _read(descriptor: int, size: int, mark: Mark) -> Changes:
    offset, wanted = int(mark["offset"]), _READ_BYTES
    while True:
        block = os.pread(descriptor, min(wanted, size - offset), offset)
        whole = block[: block.rfind(b"\n") + 1]
        if whole or len(block) < wanted:
            break
        wanted *= 4  # a line of many megabytes
    if not whole:
        return Changes([], mark)  # its writer is not done yet, or was killed
    lines = whole.splitlines(keepends=True)
    new = _mark(offset + len(whole), lines[-1])
    return Changes(list(entries(lines)), {**new, "at": new["at"] or mark["at"]}, offset + len(block) < size)


def _found_again(descriptor: int, size: int, mark: Mark) -> Changes:
    """Goes on after the mark's line wherever it stands now, else after what is older than it."""
    content = os.pread(descriptor, size, 0)
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    new = _mark(sum(map(len, lines)), lines[-1] if lines else b"")
    new["at"] = max(new["at"], mark["at"])
    note = "the audit was cut or replaced; alerts go on after the last change that was told"
    hashes = [line_hash(line) for line in lines]
    if mark["hash"] in hashes:
        return Changes(list(entries(lines[hashes.index(mark["hash"]) + 1 :])), new, note=note)
    return Changes([entry for entry in entries(lines) if str(entry.at) > mark["at"]], new, note=note)
