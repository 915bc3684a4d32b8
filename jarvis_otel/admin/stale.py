"""Which flags have had their day, as far as definitions and the audit tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from jarvis_flags.schedule import parse_moment
from jarvis_flags.snapshot import Snapshot
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.states import limit

__all__ = ["STALE_DAYS", "last_changes", "stale_reasons"]

STALE_DAYS = 30
"""So many days the same for everyone, or without an evaluation, is long."""


def last_changes(entries: Iterable[AuditEntry]) -> dict[str, datetime]:
    """When each flag was last changed at run time.

    Args:
        entries: The audit, oldest first.
    """
    return {entry.flag: datetime.fromisoformat(entry.at) for entry in entries if entry.outcome == "applied"}


def stale_reasons(
    snapshot: Snapshot, flag_id: str, changed: Mapping[str, datetime], now: datetime, since: datetime
) -> list[str]:
    """Why a flag has had its day, a phrase for each reason; nothing where it has not.

    Args:
        snapshot: All flags.
        flag_id: A flag that has a definition.
        changed: What `last_changes` says.
        now: The clock.
        since: What has been so since then has been so for long.
    """
    definition = snapshot.definitions[flag_id]
    reasons = []
    if definition.expires_at is not None and parse_moment(definition.expires_at) <= now.timestamp():
        reasons.append(f"expired on {definition.expires_at}")
    settled = _settled_since(snapshot, flag_id, changed)
    if settled is not None and settled <= since:
        reasons.append(f"the same for everyone since {settled:%Y-%m-%d}")
    return reasons


def _settled_since(snapshot: Snapshot, flag_id: str, changed: Mapping[str, datetime]) -> datetime | None:
    """Since when a flag has given everyone the same on, as far as file and audit tell; None where it does not."""
    definition, flag = snapshot.definitions[flag_id], snapshot.flag(flag_id)
    if flag is None or not (limit(snapshot, flag_id) == 100 or (flag.constant is not None and flag.constant.on)):
        return None
    if flag_id in changed:
        return changed[flag_id]
    for text in (definition.updated_at, definition.created_at):
        if text:
            try:
                return datetime.fromtimestamp(parse_moment(text), UTC)
            except ValueError:
                continue
    return None
