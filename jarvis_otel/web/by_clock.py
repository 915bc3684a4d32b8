"""Flags that change by the clock alone, of which no file tells: by schedules, ramps, and at their expiry."""

from __future__ import annotations

from collections.abc import Mapping

from jarvis_flags.buckets import threshold
from jarvis_flags.model import FlagDefinition
from jarvis_flags.schedule import parse_moment, parse_schedule
from jarvis_flags.snapshot import Snapshot

__all__ = ["by_clock", "differing"]


def by_clock(snapshot: Snapshot, now: float) -> Mapping[str, tuple[int, ...]]:
    """What the clock says of each flag that asks it: equal as long as the flag gives the same to everyone.

    A ramp is told apart by whole percents.

    Args:
        snapshot: The flags.
        now: Unix seconds.
    """
    said = {flag_id: _said(definition, now) for flag_id, definition in snapshot.definitions.items()}
    return {flag_id: parts for flag_id, parts in said.items() if parts}


def differing(before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The flags of which the clock says something else than before, sorted; those that are new or gone are none."""
    return tuple(sorted(flag_id for flag_id in before.keys() & after.keys() if before[flag_id] != after[flag_id]))


def _said(definition: FlagDefinition, now: float) -> tuple[int, ...]:
    parts = []
    for rule in definition.rules:
        if rule.type == "schedule":
            schedule = parse_schedule(rule.value)
            holds = schedule.holds(now)
            climbed = schedule.buckets(now) * 100 // threshold(100) if holds and schedule.ramp is not None else 100
            parts.append(climbed if holds else -1)
    if definition.on_expiry == "disable" and definition.expires_at is not None:
        parts.append(int(now >= parse_moment(definition.expires_at)))
    return tuple(parts)
