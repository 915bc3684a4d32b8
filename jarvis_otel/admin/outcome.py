"""How an attempt to change a flag ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from jarvis_otel.admin.audit import AuditEntry

__all__ = ["Outcome", "OutcomeKind"]


class OutcomeKind(StrEnum):
    """How an attempt to change a flag ended."""

    APPLIED = "applied"
    PINNED = "pinned"
    """It is kept, but pins in the environment stand against it wherever the flag is evaluated now."""
    NEEDS_CONFIRMATION = "needs_confirmation"
    NEEDS_REASON = "needs_reason"
    NEEDS_APPROVAL = "needs_approval"
    """It is kept as a request, which another person approves."""
    CONFLICT = "conflict"
    """Somebody changed the flag since the author looked at it."""
    REFUSED = "refused"
    NOT_FOUND = "not_found"
    INVALID = "invalid"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a change.

    Attributes:
        kind: How it ended.
        message: A sentence for a person.
        entries: What the audit says of it.
        seen: So many of the running processes have applied it.
        running: So many processes evaluate the flags.
        request: The id by which another person approves it, where one must.
    """

    kind: OutcomeKind
    message: str
    entries: tuple[AuditEntry, ...] = ()
    seen: int = 0
    running: int = 0
    request: str = ""

    @property
    def applied(self) -> bool:
        """Whether the change was made."""
        return self.kind in (OutcomeKind.APPLIED, OutcomeKind.PINNED)
