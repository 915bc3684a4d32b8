"""The audit: an append-only file of JSON lines in which each entry carries the hash of the line before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from jarvis_flags.overrides import OverrideError, override_of

__all__ = ["GENESIS", "AuditEntry", "Chain", "entries", "line_hash", "verify"]

GENESIS = "0" * 64
"""What the first entry carries in the place of a hash."""


_TEXTS = ("at", "who", "via", "action", "flag", "reason", "outcome", "detail", "prev", "request")


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who changed what, when, why and from where.

    Attributes:
        at: UTC, ISO 8601.
        who: A person, as the front end knows them.
        via: The front end: cli, telegram, web, api, file.
        action: enable, disable, rollout, reset, panic, promote, revert, create or edit.
        flag: The flag's id.
        old, new: The flag's override before and after, as the override file writes it, or where the outcome is
            `written` its fields in the flag file; None is none.
        reason: Why, in the words of who did it.
        outcome: `applied`; `pending` where it is off on one machine only, which the audit gets when the store that all
            share answers; `refused`, with why in `detail`; `requested` and `approved` where it takes more than one
            person; `written` where the flag file changed.
        revision: The revision that the change made, or at which nothing changed.
        detail: Why it was refused, or what is to be said further.
        prev: The hash of the line before.
        request: Of an approval, a refusal or a change: the id of the request that it answers.
    """

    at: str
    who: str
    via: str
    action: str
    flag: str
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None
    reason: str
    outcome: str
    revision: int
    detail: str = ""
    prev: str = GENESIS
    request: str = ""

    def to_line(self) -> bytes:
        """The entry as its line, with the newline."""
        values = asdict(self)
        if not self.request:
            del values["request"]  # as entries were written before there were requests: their hashes stand
        return orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE)

    @property
    def id(self) -> str:
        """What people call it by, for instance to approve a request."""
        return self.hash[:10]

    @property
    def hash(self) -> str:
        """The hash of its line, which the next entry carries."""
        return line_hash(self.to_line())


def line_hash(line: bytes) -> str:
    """The hash of a line of the audit, without its newline."""
    return hashlib.sha256(line.rstrip(b"\n")).hexdigest()


def entries(lines: Iterable[bytes]) -> Iterator[AuditEntry]:
    """The entries of the audit; lines that are none are passed over (`verify` names them)."""
    for line in lines:
        try:
            entry = AuditEntry(**orjson.loads(line))
            _check(entry)
        except (orjson.JSONDecodeError, TypeError, OverrideError):
            continue
        yield entry


def _check(entry: AuditEntry) -> None:
    """Raises where a line that somebody edited has other values than readers of the audit count on."""
    if type(entry.revision) is not int or not all(isinstance(getattr(entry, name), str) for name in _TEXTS):
        raise TypeError
    for values in (entry.old, entry.new):
        if values is not None and not isinstance(values, Mapping):
            raise TypeError
        if values is not None and entry.outcome != "written":
            override_of(entry.flag, values)


class Chain:
    """Follows the hashes and revisions of an audit, line by line.

    Attributes:
        lines: So many lines were followed.
        entries: So many of them are entries.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.entries = 0
        self._expected, self._revision = GENESIS, 0

    def follow(self, lines: Iterable[bytes]) -> Iterator[str]:
        """What is wrong with the lines that come next, a sentence for each place; nothing where the chain is whole.

        Args:
            lines: The lines, oldest first.
        """
        for line in lines:
            self.lines += 1
            entry = next(entries([line]), None)
            if entry is None:
                yield f"line {self.lines} is no entry"
            else:
                self.entries += 1
                yield from self._faults(entry)
            self._expected = line_hash(line)

    def _faults(self, entry: AuditEntry) -> Iterator[str]:
        if entry.prev != self._expected:
            yield f"line {self.lines} does not follow the line before it: something was edited, cut or rewritten there"
        if entry.outcome == "applied":
            if entry.revision != self._revision + 1:
                yield f"line {self.lines} has revision {entry.revision}, want {self._revision + 1}"
            self._revision = entry.revision


def verify(lines: Iterable[bytes]) -> Iterator[str]:
    """What is wrong with the chain, a sentence for each place; nothing where it is whole.

    Args:
        lines: The lines of the audit, oldest first.
    """
    return Chain().follow(lines)
