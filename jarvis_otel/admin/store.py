"""The contract of what keeps overrides and their audit: memory, files of one machine, or etcd for many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Protocol

from jarvis_flags.overrides import Override, OverrideSet
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.author import Author
from jarvis_otel.alerts.turn import Turn

__all__ = ["Edit", "FlagStore", "Note", "SeenProcess", "StoreError", "applied", "noted", "now"]

Edit = Callable[[OverrideSet], Mapping[str, Override | None]]
"""From the overrides as they stand to those that change: the new override by flag id, None to remove it."""


class StoreError(Exception):
    """The change could not be kept. The message says what stands in the way, and the cure."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the audit keeps beside changes of overrides.

    Attributes:
        action: What was tried or done.
        flag: The flag's id.
        outcome: `refused`, `requested`, `approved`, or `written` into the flag file.
        detail: Why, or what it says further.
        old, new: What changed; None is none.
        request: The request that it belongs to.
    """

    action: str
    flag: str
    outcome: str = "refused"
    detail: str = ""
    old: Mapping[str, Any] | None = None
    new: Mapping[str, Any] | None = None
    request: str = ""


@dataclass(frozen=True, slots=True)
class SeenProcess:
    """A live process that evaluates the flags.

    Attributes:
        pid: Its process id.
        service: What it is called.
        revision: The revision that it has applied.
        pins: The values of its FF_ pins, by flag id.
        host: The machine that it runs on; empty where it is this one.
    """

    pid: int
    service: str
    revision: int
    pins: Mapping[str, str]
    host: str = ""

    @property
    def place(self) -> str:
        """Its process id and machine, for people."""
        return f"pid {self.pid}{f' on {self.host}' if self.host else ''}"


class FlagStore(Protocol):
    """Keeps overrides and audit: a change is in both or in neither.

    Attributes:
        look_again_s: Seconds after which it is worth asking for the processes once more.
    """

    look_again_s: float

    def read(self) -> OverrideSet:
        """The overrides that stand, as far as this machine knows; a commit looks anew."""
        ...

    def commit(
        self,
        action: str,
        author: Author,
        edit: Edit,
        *,
        off_only: bool = False,
        detail: str = "",
        request: str = "",
    ) -> list[AuditEntry]:
        """Makes a change, alone: audit first, then state.

        Args:
            action: What it is called in the audit.
            author: Who, why and from where.
            edit: Computes the change from the state as it stands; what it raises ends the change. It may be called
                again, where somebody else made a change meanwhile.
            off_only: The change only turns off: it may use the space that is kept for that.
            detail: What the audit says further.
            request: The request that it fulfils.

        Returns:
            The entries of the audit. Their outcome is `pending` where the flags are off on this machine only, until
            the store that all share answers and takes it over.

        Raises:
            StoreError: It could not be kept.
        """
        ...

    def note(
        self, author: Author, make: Callable[[], Sequence[Note]], done: Callable[[], None] = lambda: None
    ) -> list[AuditEntry]:
        """Notes something in the audit that changes no override.

        Args:
            author: Who, why and from where.
            make: Says what; no other process of this machine is in here meanwhile.
            done: Called when it is kept.

        Raises:
            StoreError: It could not be kept.
        """
        ...

    def history(self) -> list[AuditEntry]:
        """The audit, oldest first.

        Raises:
            StoreError: It cannot be read.
        """
        ...

    def lines(self) -> list[bytes]:
        """The lines of the audit as they are kept, oldest first.

        Raises:
            StoreError: It cannot be read.
        """
        ...

    def turn(self, name: str) -> Turn | None:
        """The turn of one process of all that share the store.

        Args:
            name: What only one does.

        Returns:
            None where they are all on one machine, which settles it by itself.
        """
        ...

    def recover(self) -> None:
        """Finishes what a process that ended could not; quietly, as far as that is possible."""
        ...

    def processes(self) -> list[SeenProcess]:
        """The live processes that evaluate these flags."""
        ...


def now() -> str:
    """The moment, as entries of the audit write it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def applied(
    state: OverrideSet, action: str, author: Author, edit: Edit, prev: str, *, at: str = "", **more: str
) -> tuple[OverrideSet, list[AuditEntry]]:
    """The state after a change, and its entries.

    Args:
        state: The overrides that stand.
        action: What it is called in the audit.
        author: Who, why and from where.
        edit: Computes the change.
        prev: The hash of the last line of the audit.
        at: When; now if empty.
        more: `detail` and `request` of the entries.
    """
    overrides, revision, made = dict(state.overrides), state.revision, []
    at = at or now()
    for flag_id, override in edit(state).items():
        before = overrides.pop(flag_id, None)
        revision += 1
        if override is not None:
            override = replace(override, by=author.who, reason=author.reason, at=at)  # noqa: PLW2901
            overrides[flag_id] = override
        entry = AuditEntry(
            at=at,
            who=author.who,
            via=author.via,
            action=action,
            flag=flag_id,
            old=None if before is None else before.to_dict(),
            new=None if override is None else override.to_dict(),
            reason=author.reason,
            outcome="applied",
            revision=revision,
            prev=prev,
            **more,
        )
        prev = entry.hash
        made.append(entry)
    return OverrideSet(revision, MappingProxyType(overrides)), made


def noted(author: Author, notes: Sequence[Note], revision: int, prev: str) -> list[AuditEntry]:
    """The entries of notes.

    Args:
        author: Who, why and from where.
        notes: What is noted.
        revision: The revision of the overrides.
        prev: The hash of the last line of the audit.
    """
    at, made = now(), []
    for note in notes:
        entry = AuditEntry(
            at=at,
            who=author.who,
            via=author.via,
            action=note.action,
            flag=note.flag,
            old=note.old,
            new=note.new,
            reason=author.reason,
            outcome=note.outcome,
            revision=revision,
            detail=note.detail,
            prev=prev,
            request=note.request,
        )
        prev = entry.hash
        made.append(entry)
    return made
