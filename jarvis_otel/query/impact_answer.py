"""What every front end puts beside a flag's impact: its changes out of the audit, what is compared with, its JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from jarvis_flags.model import FlagDefinition
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.query.impact import Change, Estimate, Impact, number_text
from jarvis_otel.query.times import Interval

__all__ = ["audit_changes", "baseline_of", "estimate_text", "impact_json"]


def audit_changes(entries: Iterable[AuditEntry], interval: Interval) -> list[Change]:
    """What entries of the audit tell of changes in an interval.

    Args:
        entries: Those of one flag, oldest first.
        interval: The interval.
    """
    changes = []
    for entry in entries:
        at = datetime.fromisoformat(entry.at)
        inside = (interval.since is None or interval.since <= at) and (interval.until is None or at <= interval.until)
        if inside and entry.outcome == "applied":
            old, new = (str(values["state"]) if values else "file" for values in (entry.old, entry.new))
            changes.append(Change(entry.at, old, new + _percentage(entry), entry.who, entry.reason, entry.hash))
    return changes


def baseline_of(definition: FlagDefinition | None) -> str | None:
    """The default variant of a typed flag; None for a boolean one, whose is off."""
    return definition.default if definition is not None and definition.variants is not None else None


def impact_json(impact: Impact, interval: Interval) -> dict[str, Any]:
    """The impact as other programs read it, with the interval that was looked at."""
    ends = {"from": interval.since, "to": interval.until}
    content = asdict(impact)
    return {
        "flag": content.pop("flag"),
        **{name: end and end.astimezone(UTC).isoformat() for name, end in ends.items()},
        **content,
    }


def estimate_text(estimate: Estimate | None, scale: float, unit: str) -> str:
    """`4.1 % (3.2 to 5.3)`; an end that cannot be told is a question mark."""
    if estimate is None:
        return "-"
    low, high = ("?" if end is None else number_text(scale * end) for end in (estimate.low, estimate.high))
    return f"{number_text(scale * estimate.value)}{unit} ({low} to {high})"


def _percentage(entry: AuditEntry) -> str:
    return f" at {entry.new['percentage']:g} %" if entry.new and "percentage" in entry.new else ""
