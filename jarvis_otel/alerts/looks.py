"""What is looked at now and then: the collector, flags that expire; and when what was seen is worth telling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import orjson

from jarvis_collector.http_client import Response
from jarvis_flags.model import FlagDefinition
from jarvis_flags.schedule import parse_moment
from jarvis_flags.snapshot import Snapshot
from jarvis_otel.alerts.alert import Alert, moment_of
from jarvis_otel.terminal import printable

__all__ = ["HOLD_MAX_S", "News", "Standing", "collector_alert", "collector_problem", "expiring"]

HOLD_MAX_S = 3600.0
"""What comes and goes is told once in this time at least."""

_DAY_S = 86_400.0
_REASON_MAX = 300


class News(StrEnum):
    """What is new about something that can go wrong."""

    BEGAN = "began"
    LASTS = "lasts"
    ENDED = "ended"


@dataclass
class Standing:
    """How something stands that can go wrong, as it was told last.

    What comes and goes is told less and less often: each time that follows another within an hour doubles the time
    before the next, until that is an hour.

    Attributes:
        bad: Whether it was told that something is wrong.
        told_at: When, in Unix seconds.
        hold: So many seconds from then on nothing else is told.
        streak: So many looks in a row saw the contrary.
    """

    bad: bool = False
    told_at: float = 0.0
    hold: float = 0.0
    streak: int = 0

    def look(
        self, bad: bool | None, now: float, *, hold: float, looks: int = 1, again: float | None = None
    ) -> News | None:
        """Takes in what was seen, and says whether that is to be told.

        Args:
            bad: Whether something is wrong; None where that cannot be said now.
            now: Unix seconds.
            hold: Seconds from one alert to the next, where they are rare.
            looks: So many looks in a row must see a change.
            again: Seconds after which it is told again that something is still wrong; None never does.
        """
        if bad is None:
            return None
        since = now - self.told_at if now >= self.told_at else HOLD_MAX_S  # the clock may have been set back
        if bad is self.bad:
            self.streak = 0
            if not bad or again is None or since < again:
                return None
            self.told_at = now
            return News.LASTS
        self.streak += 1
        if self.streak < looks or since < self.hold:
            return None
        self.hold = min(HOLD_MAX_S, max(hold, 2 * self.hold)) if since < HOLD_MAX_S else hold
        self.bad, self.told_at, self.streak = bad, now, 0
        return News.BEGAN if bad else News.ENDED

    def to_dict(self) -> dict[str, Any]:
        """It as JSON has it."""
        return asdict(self)


def collector_problem(response: Response) -> str | None:
    """What is wrong with a collector that answers so to a GET of /healthz; None where nothing is.

    Args:
        response: Its answer.
    """
    if response.status == 0:
        return f"does not answer: {printable(response.reason)[:_REASON_MAX]}"
    try:
        said = orjson.loads(response.content)
        said = said if isinstance(said, dict) else {}
    except orjson.JSONDecodeError:
        said = {}  # another collector
    reason = f": {printable(str(said['reason']))[:_REASON_MAX]}" if said.get("reason") else ""
    if response.status >= 500:
        return f"answers {response.status}{reason}"
    return f"is degraded{reason}" if said.get("status") == "degraded" else None


def collector_alert(where: str, problem: str | None, now: float) -> Alert:
    """What is told of a collector.

    Args:
        where: Its host and port.
        problem: What is wrong; None where it is well again.
        now: Unix seconds.
    """
    if problem is None:
        title, severity = "the collector is well again", "info"
        text = f"{where} takes records again"
    else:
        title, severity = "the collector is not well", "critical"
        text = (
            f"the collector at {where} {problem}; applications keep their records meanwhile, as long as they have "
            "room; jarvis doctor says more"
        )
    details = {"collector": where, "problem": problem or "", "state": "ok" if problem is None else "degraded"}
    return Alert("collector", title, text, "", severity, moment_of(now), details)


def expiring(snapshot: Snapshot, days: float, told: Mapping[str, str], now: float) -> Iterator[Alert]:
    """Flags that expire within some days, or have done so, and were not told with this date.

    Args:
        snapshot: All flags.
        days: So many days ahead.
        told: The date that was told, by flag.
        now: Unix seconds.
    """
    for flag in snapshot.definitions.values():
        if flag.expires_at is not None and told.get(flag.id) != flag.expires_at:
            left = parse_moment(flag.expires_at) - now
            if left <= days * _DAY_S:
                yield _expires(flag, left, now)


def _expires(flag: FlagDefinition, left: float, now: float) -> Alert:
    off = flag.on_expiry == "disable"
    if left > 0:
        title = f"{flag.id} expires on {flag.expires_at}"
        does = "it is turned off then" if off else "it stays as it is then"
    else:
        title = f"{flag.id} expired on {flag.expires_at}"
        does = "it is off since then" if off else "it stays as it is"
    owner = f"owner {flag.owner}: " if flag.owner else ""
    details = {
        "expires_at": flag.expires_at,
        "days_left": round(left / _DAY_S, 1),
        "on_expiry": flag.on_expiry,
        "owner": flag.owner,
    }
    severity = "warning" if off or flag.dangerous else "info"
    text = f"{owner}{does}; remove it from the code and the flag file, or move the date"
    return Alert("flag_expiring", title, text, flag.id, severity, moment_of(now), details)
