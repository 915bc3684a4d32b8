"""Changes that wait for further people, as the audit tells of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from jarvis_otel.admin.audit import AuditEntry, entries

__all__ = ["APPROVAL_LASTS_S", "ApprovalRequest", "open_requests"]

APPROVAL_LASTS_S = 24 * 3600.0
"""A request that nobody approved by then is void."""

_REQUESTED = b'"outcome":"requested"'
"""As AuditEntry.to_line writes it; in a text its quotes would be escaped."""


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """A change that waits for further people.

    Attributes:
        id: By which it is approved.
        entry: The entry of the audit that asked for it.
        people: Who is for it: who asked, and who approved so far.
        wanted: So many people it takes.
        lapses_at: Unix seconds after which it is void.
    """

    id: str
    entry: AuditEntry
    people: tuple[str, ...]
    wanted: int
    lapses_at: float

    def approved_by(self, who: str) -> ApprovalRequest:
        """The same with one more person; who approves twice, or approves what they asked for, counts once."""
        return replace(self, people=tuple(dict.fromkeys((*self.people, who))))


def open_requests(lines: Sequence[bytes], wanted: Callable[[str], int], now: float) -> list[ApprovalRequest]:
    """The requests that wait, oldest first.

    Args:
        lines: The lines of the audit.
        wanted: So many people it takes to turn a flag on.
        now: Unix seconds.
    """
    waiting: dict[str, ApprovalRequest] = {}
    for entry in entries(_from_first_request(lines, now)):
        if entry.outcome == "requested":
            waiting[entry.id] = ApprovalRequest(entry.id, entry, (entry.who,), wanted(entry.flag), _lapses_at(entry))
        elif entry.outcome == "approved" and entry.request in waiting:
            waiting[entry.request] = waiting[entry.request].approved_by(entry.who)
        elif entry.outcome == "refused" and entry.request:
            waiting.pop(entry.request, None)
        elif entry.outcome in ("applied", "written"):
            # a flag that changed since is not the flag that somebody asked about
            waiting = {key: request for key, request in waiting.items() if request.entry.flag != entry.flag}
    return [request for request in waiting.values() if request.lapses_at > now]


def _from_first_request(lines: Sequence[bytes], now: float) -> Sequence[bytes]:
    """The lines from the first request on that has not lapsed: what stands before it answers none.

    Pages ask often and an audit may be long, so of the others only those that may be requests are read.
    """
    for number, line in enumerate(lines):
        entry = next(entries([line]), None) if _REQUESTED in line else None
        if entry is not None and entry.outcome == "requested" and _lapses_at(entry) > now:
            return lines[number:]
    return ()


def _lapses_at(request: AuditEntry) -> float:
    return datetime.fromisoformat(request.at).timestamp() + APPROVAL_LASTS_S
