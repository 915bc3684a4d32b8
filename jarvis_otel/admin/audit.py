"""The audit: an append-only file of JSON lines in which each entry carries the hash of the line before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

__all__ = ["GENESIS", "AuditEntry", "entries", "line_hash", "verify"]

GENESIS = "0" * 64
"""What the first entry carries in the place of a hash."""


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
            yield AuditEntry(**orjson.loads(line))
        except (orjson.JSONDecodeError, TypeError):
            continue


def verify(lines: Iterable[bytes]) -> Iterator[str]:
    """What is wrong with the chain, a sentence for each place; nothing where it is whole.

    Args:
        lines: The lines of the audit, oldest first.
    """
    expected, revision = GENESIS, 0
    for number, line in enumerate(lines, 1):
        try:
            entry = AuditEntry(**orjson.loads(line))
        except (orjson.JSONDecodeError, TypeError):
            yield f"line {number} is no entry"
            expected = line_hash(line)
            continue
        if entry.prev != expected:
            yield f"line {number} does not follow the line before it: something was edited, cut or rewritten there"
        if entry.outcome == "applied":
            if entry.revision != revision + 1:
                yield f"line {number} has revision {entry.revision}, want {revision + 1}"
            revision = entry.revision
        expected = line_hash(line)
