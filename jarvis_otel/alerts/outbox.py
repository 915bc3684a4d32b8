"""What waits for one receiver: alerts of a kind become one message, messages have a limit, and all of it is bounded.

Pure: it is told the time, and what became of a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jarvis_otel.alerts.alert import Alert, Message, highest

__all__ = ["BURST", "GATHER_S", "KEPT", "Counters", "Outbox"]

GATHER_S = 1.0
"""So long an alert waits for others of its kind."""

BURST = 5
"""So many messages of a kind may follow each other; then it is one each `interval`."""

KEPT = 20
"""So many alerts of a kind wait as they are; of those before them only the number is kept."""

_BACKOFF_S = 1.0
_BACKOFF_MAX_S = 300.0


@dataclass
class _Waiting:
    """Alerts of one kind that were not delivered yet.

    Attributes:
        since: When the first of them came, in Unix seconds.
    """

    since: float
    alerts: list[Alert] = field(default_factory=list)
    count: int = 0
    severity: str = "info"
    flag: str | None = None
    held: int = 0

    def add(self, alert: Alert, *, held: bool) -> None:
        self.alerts = [*self.alerts[1 - KEPT :], alert]
        self.flag = alert.flag if self.count == 0 or self.flag == alert.flag else ""
        self.severity = highest((self.severity, alert.severity))
        self.count += 1
        self.held += held

    def followed_by(self, later: _Waiting) -> _Waiting:
        return _Waiting(
            min(self.since, later.since),
            [*self.alerts, *later.alerts][-KEPT:],
            self.count + later.count,
            highest((self.severity, later.severity)),
            self.flag if self.flag == later.flag else "",
            self.held + later.held,
        )

    def message(self, kind: str) -> Message:
        return Message(kind, tuple(self.alerts), self.count, self.severity, self.flag or "", self.held)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "alerts": [alert.to_dict() for alert in self.alerts]}


@dataclass
class Counters:
    """What became of the alerts of one receiver.

    Attributes:
        messages: Messages that arrived.
        alerts: Alerts in them, with those that were told only as a number.
        left_out: Those.
        failures: Attempts that came to nothing; the message was kept.
        refused: Alerts that the receiver would not take; they are gone.
    """

    messages: int = 0
    alerts: int = 0
    left_out: int = 0
    failures: int = 0
    refused: int = 0


class Outbox:
    """What waits for one receiver.

    Args:
        interval: Seconds in which one more message of a kind may be sent.
        said: What `to_dict` of an earlier one gave.

    Attributes:
        counters: What became of the alerts so far.
        failing: Attempts in a row that came to nothing.
        retry_at: Unix seconds before which there is no other attempt.
    """

    def __init__(self, interval: float, said: Mapping[str, Any] | None = None) -> None:
        self._interval = interval
        self._waiting: dict[str, _Waiting] = {}
        self._sending: tuple[str, _Waiting] | None = None
        self._tokens: dict[str, tuple[float, float]] = {}
        self.counters = Counters()
        self.failing = 0
        self.retry_at = self._failed_at = 0.0
        if said is not None:
            self.counters = Counters(**said["counters"])
            self._tokens = {kind: (float(left), float(at)) for kind, (left, at) in said["tokens"].items()}
            for kind, one in said["waiting"].items():
                self._waiting[kind] = _Waiting(**{**one, "alerts": [Alert(**alert) for alert in one["alerts"]]})

    @property
    def waiting(self) -> int:
        """So many alerts were not delivered yet."""
        return sum(one.count for one in self._all().values())

    def add(self, alert: Alert, now: float) -> None:
        """Takes one more alert."""
        one = self._waiting.setdefault(alert.kind, _Waiting(now))
        one.add(alert, held=self._next_token(alert.kind, now) > now)

    def wait(self, now: float) -> float | None:
        """Seconds until `take` gives a message; None where nothing waits."""
        moments = [self._due(kind, now) for kind in self._waiting]
        return max(0.0, min(moments) - now) if moments and self._sending is None else None

    def take(self, now: float) -> Message | None:
        """The next message, if one is due; then one of `delivered`, `failed` and `refused` follows."""
        if self._sending is not None:
            return None
        kind = min(self._waiting, key=lambda kind: self._due(kind, now), default=None)
        if kind is None or self._due(kind, now) > now:
            return None
        self._sending = kind, self._waiting.pop(kind)
        return self._sending[1].message(kind)

    def delivered(self, now: float) -> None:
        """The message arrived."""
        kind, one = self._done()
        self._tokens[kind] = (self._tokens_left(kind, now) - 1, now)
        self.counters.messages += 1
        self.counters.alerts += one.count
        self.counters.left_out += one.count - len(one.alerts)
        self.failing, self.retry_at = 0, 0.0

    def failed(self, now: float, retry_after: float | None = None) -> None:
        """Nobody took the message: it waits again, with what came meanwhile.

        Args:
            now: Unix seconds.
            retry_after: Seconds that the receiver asks to wait; else longer and longer.
        """
        kind, one = self._done()
        later = self._waiting.get(kind)
        self._waiting[kind] = one if later is None else one.followed_by(later)
        self.counters.failures += 1
        backoff = min(_BACKOFF_MAX_S, _BACKOFF_S * 2 ** min(self.failing, 16))
        self.failing += 1
        self._failed_at = now
        self.retry_at = now + (backoff if retry_after is None else retry_after)

    def refused(self) -> None:
        """The receiver will never take this message: it goes, and is counted."""
        _, one = self._done()
        self.counters.refused += one.count
        self.failing, self.retry_at = 0, 0.0

    def to_dict(self) -> dict[str, Any]:
        """All that is to outlive the process; a message that is under way waits still."""
        return {
            "waiting": {kind: one.to_dict() for kind, one in self._all().items()},
            "tokens": {kind: list(pair) for kind, pair in self._tokens.items()},
            "counters": vars(self.counters).copy(),
        }

    def _all(self) -> dict[str, _Waiting]:
        waiting = dict(self._waiting)
        if self._sending is not None:
            kind, one = self._sending
            waiting[kind] = one.followed_by(waiting[kind]) if kind in waiting else one
        return waiting

    def _done(self) -> tuple[str, _Waiting]:
        assert self._sending is not None
        done, self._sending = self._sending, None
        return done

    def _due(self, kind: str, now: float) -> float:
        # after a clock was set back nothing waits for the moments that it had named before
        since = self._waiting[kind].since
        gathered = since + GATHER_S if since <= now else now
        retry = self.retry_at if self.failing and self._failed_at <= now else now
        return max(gathered, retry, self._next_token(kind, now))

    def _next_token(self, kind: str, now: float) -> float:
        missing = 1 - self._tokens_left(kind, now)
        return now + missing * self._interval if missing > 0 else now

    def _tokens_left(self, kind: str, now: float) -> float:
        left, at = self._tokens.get(kind, (float(BURST), now))
        return min(float(BURST), left + (now - at) / self._interval) if at <= now else float(BURST)
