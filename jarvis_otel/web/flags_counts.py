"""How often each flag was evaluated, as the log files tell: read once by a thread, which then follows them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["HOURS", "EvaluationCounts", "ResultCount", "Sparkline", "sparkline"]

HOURS = 24
"""So many hours are counted, the current one among them."""

_READ_S = 60.0
_LATE_S = 60
_KNOWN_MAX = 100_000
_SERIES_MAX = 20_000
_SERVICES_MAX = 20
_LOOK_S = 1.0
_STOP_S = 5.0

_Series = tuple[str, str]


class ResultCount(NamedTuple):
    """What a flag gave, and how often.

    Attributes:
        variant: The name of the result; empty where it was the caller's default.
        reason: OpenFeature's reason in lower case.
        evaluations: How many the logs tell of.
    """

    variant: str
    reason: str
    evaluations: int


class EvaluationCounts:
    """Counts the `feature_flag.evaluation` events of the last hours, of which there is one per trace, flag and variant.

    Nothing is counted, and nobody waits, before `start`. The files are read once, for a minute at most, then
    followed.

    Args:
        log_dir: The directory of the day files.
        clock: Unix seconds.
    """

    def __init__(self, log_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._log_dir = log_dir
        self._clock = clock
        self._lock = threading.Lock()
        self._counted: dict[str, dict[str, Counter[_Series]]] = {}
        self._services: dict[str, set[str]] = {}
        self._left_out = 0
        self._cut_short = False
        self._series = 0
        self._stopped = threading.Event()
        self._looked = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to count in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="jarvis-web-evaluations", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends counting; what was counted stays."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)
            self._thread = None

    def wait(self, timeout: float) -> bool:
        """Waits until what the files hold has been counted once; whether it has.

        Args:
            timeout: Seconds.
        """
        return self._looked.wait(timeout)

    @property
    def note(self) -> str:
        """What is to be known of the counts, in a sentence; empty where they are whole."""
        if self._left_out:
            return f"{self._left_out} evaluations are not counted: there are too many flags and results to keep apart"
        if self._cut_short:
            return f"there are more: the log files could not be read to their end within {_READ_S:g} s"
        return "" if self._looked.is_set() or self._thread is None else "the log files are being read"

    def by_hour(self, flag_id: str) -> tuple[int, ...]:
        """The evaluations of a flag in each of the last hours, the current one last; empty where there are none."""
        with self._lock:
            hours = self._counted.get(flag_id)
            if not hours:
                return ()
            totals = tuple(hours[hour].total() if hour in hours else 0 for hour in self._hours())
        return totals if any(totals) else ()

    def total(self, flag_id: str) -> int:
        """The evaluations of a flag in the last hours."""
        return sum(self.by_hour(flag_id))

    def services(self, flag_id: str) -> tuple[str, ...]:
        """The services that evaluated a flag, sorted, as far as they are remembered."""
        with self._lock:
            return tuple(sorted(self._services.get(flag_id, ())))

    def by_result(self, flag_id: str) -> list[ResultCount]:
        """The evaluations of a flag in the last hours by what it gave, most frequent first."""
        shown = set(self._hours())
        total = Counter[_Series]()
        with self._lock:
            for hour, counts in self._counted.get(flag_id, {}).items():
                if hour in shown:
                    total.update(counts)
        return [ResultCount(*series, count) for series, count in total.most_common()]

    def _hours(self) -> tuple[str, ...]:
        """The hours that count, as timestamps begin with them."""
        return _hours_until(int(self._clock() // 3600))

    def _run(self) -> None:
        while not self._stopped.is_set():
            # a directory that cannot be read now may be readable later
            with suppress(OSError):
                self._follow()
            self._stopped.wait(_LOOK_S)

    def _follow(self) -> None:
        from jarvis_otel.query.files import LOGS, Tally  # noqa: PLC0415 - a page that asks no logs needs none of it
        from jarvis_otel.query.log_query import Criteria, LogQuery  # noqa: PLC0415
        from jarvis_otel.query.tail import Tail  # noqa: PLC0415

        began = datetime.fromtimestamp(self._clock(), UTC)
        criteria = Criteria.of(where="event=feature_flag.evaluation", since=began - timedelta(hours=HOURS))
        with self._lock:
            self._counted, self._services, self._series = {}, {}, 0
        with Tail(self._log_dir, criteria, Tally(), lambda _: None, follow=True) as tail:
            tail.last(0)
            # what is written while the files are read is met there and in the news
            recent = f"{began - timedelta(seconds=_LATE_S):%Y-%m-%dT%H:%M:%S}"
            known: set[object] = set()
            deadline = time.monotonic() + _READ_S
            with suppress(FileNotFoundError):
                for found in LogQuery(self._log_dir).scan(criteria):
                    self._add(found.time, found.record)
                    if found.time >= recent and len(known) < _KNOWN_MAX:
                        known.add(LOGS.identity(found.record))
                    self._cut_short = time.monotonic() > deadline
                    if self._stopped.is_set() or self._cut_short:
                        break
            self._looked.set()
            while not self._stopped.wait(_LOOK_S):
                for found in tail.news():
                    identity = LOGS.identity(found.record)
                    if identity is None or identity not in known:
                        self._add(found.time, found.record)
                    if self._stopped.is_set():
                        return
                known.clear()
                self._forget()

    def _add(self, timestamp: str, record: dict[str, Any]) -> None:
        context = record.get("context")
        if not isinstance(context, dict) or not isinstance(flag_id := context.get("feature_flag.key"), str):
            return
        given, why = (context.get(f"feature_flag.result.{name}") for name in ("variant", "reason"))
        series = (given if isinstance(given, str) else "", why if isinstance(why, str) else "")
        hour = timestamp[:13]
        if hour > _hours_until(int(self._clock() // 3600) + 1)[-1]:
            return  # a clock that is wrong; nobody would ever let go of it
        with self._lock:
            if series not in self._counted.get(flag_id, {}).get(hour, ()):
                if self._series >= _SERIES_MAX:
                    self._left_out += 1
                    return
                self._series += 1
            self._counted.setdefault(flag_id, {}).setdefault(hour, Counter())[series] += 1
            services = self._services.setdefault(flag_id, set())
            if isinstance(service := record.get("service"), str) and len(services) < _SERVICES_MAX:
                services.add(service)

    def _forget(self) -> None:
        """Lets go of hours that count no longer."""
        oldest = self._hours()[0]
        with self._lock:
            for flag_id, hours in list(self._counted.items()):
                for hour in [hour for hour in hours if hour < oldest]:
                    self._series -= len(hours.pop(hour))
                if not hours:
                    del self._counted[flag_id]
                    self._services.pop(flag_id, None)


@lru_cache(maxsize=4)
def _hours_until(hour: int) -> tuple[str, ...]:
    """An hour since 1970 and those before it, oldest first; a list of a thousand flags asks for them as often."""
    return tuple(f"{datetime.fromtimestamp(at * 3600, UTC):%Y-%m-%dT%H}" for at in range(hour - HOURS + 1, hour + 1))


class Sparkline(NamedTuple):
    """The evaluations of the last hours as a line to draw.

    Attributes:
        points: Of an SVG polyline in a box of 72 by 16; empty where there is nothing to draw.
        total: How many there were.
    """

    points: str
    total: int


def sparkline(by_hour: Sequence[int]) -> Sparkline:
    """What `by_hour` says, as a line.

    Args:
        by_hour: Evaluations in each hour, oldest first.
    """
    if not by_hour:
        return Sparkline("", 0)
    most, step = max(by_hour) or 1, 72 / max(1, len(by_hour) - 1)
    points = " ".join(f"{at * step:.1f},{15 - 14 * count / most:.1f}" for at, count in enumerate(by_hour))
    return Sparkline(points, sum(by_hour))
