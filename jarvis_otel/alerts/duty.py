"""What the one process does whose turn it is to alert: follows, looks, and sends, each in threads of its own."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from jarvis_collector.http_client import HttpClient
from jarvis_flags.source import FlagSource
from jarvis_flags.tree import plain
from jarvis_otel.alerts.alert import Alert, Message, moment_of
from jarvis_otel.alerts.changes import ChangeFeed, Mark, alert_of
from jarvis_otel.alerts.looks import HOLD_MAX_S, News, Standing, collector_alert, collector_problem, expiring
from jarvis_otel.alerts.outbox import Outbox
from jarvis_otel.alerts.sinks import Fate, Result, Sink, sinks_of
from jarvis_otel.alerts.state import read_state, write_state, write_status
from jarvis_otel.redaction import redactor_of
from jarvis_otel.settings import Settings

__all__ = ["POLL_S", "Duty"]

POLL_S = 0.2
"""So often is it asked whether the audit has grown, and whether something is due."""

_CONFIRM_S = 5.0
"""So soon is a collector looked at again that is not as it was."""

_RATES_SHARE = 0.05
"""So much of a core may go into reading records."""

_COLLECTOR_LOOKS = 2
_COLLECTOR_TIMEOUT_S = 3.0
_STATUS_S = 30.0
_TEXT_MAX = 1_000

_logger = logging.getLogger("jarvis_otel.alerts")


class _Place(NamedTuple):
    """A receiver and what waits for it."""

    sink: Sink
    outbox: Outbox


class Duty:
    """Alerts from the moment that it begins until it is ended.

    What is remembered is written before something is sent, so that a kill repeats at most the message under way.

    Args:
        settings: What is told, and whom.
        source: The flags.
        feed: Where changes come from.
        directory: Where it remembers.
        clock: Unix seconds.
    """

    def __init__(
        self, settings: Settings, source: FlagSource, feed: ChangeFeed, directory: Path, clock: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._alerts = settings.alerts
        self._source = source
        self._feed = feed
        self._directory = directory
        self._clock = clock
        self._redactor = redactor_of(settings)
        target = settings.otlp_logs
        self._collector = HttpClient(target.url, min(target.timeout, _COLLECTOR_TIMEOUT_S), target.certificate)
        self._ended = threading.Event()
        self._problems: dict[str, str] = {}
        # guards all that follows, and wakes who sends
        self._news = threading.Condition()
        said = self._remembered()
        sinks, problems = sinks_of(settings.alerts, settings.telegram)
        for problem in problems:
            self._note(problem, problem)
        boxes = dict(said.get("sinks", {}))
        self._places = [_Place(sink, Outbox(self._alerts.interval, boxes.pop(sink.id, None))) for sink in sinks]
        if gone := sum(Outbox(self._alerts.interval, box).waiting for box in boxes.values()):
            _logger.warning("%d alerts waited for receivers that the settings no longer name; they are gone", gone)
        self._mark: Mark = said.get("mark") or feed.end()
        self._told: dict[str, str] = dict(said.get("told", {}))
        self._standings = {key: Standing(**one) for key, one in said.get("standings", {}).items()}
        self._rates_due = 0.0
        self._status: bytes = b""
        self._status_at = 0.0

    def run(self, may: Callable[[], bool] = lambda: True) -> None:
        """Alerts until `end`.

        Args:
            may: Whether it is still this process that alerts, asked again and again.
        """
        threads = [
            threading.Thread(target=self._send_to, args=(place,), name=f"jarvis-alerts-{place.sink.id}", daemon=True)
            for place in self._places
        ]
        threads.append(threading.Thread(target=self._look, name="jarvis-alerts-look", daemon=True))
        with self._news:
            self._remember()
        for thread in threads:
            thread.start()
        try:
            while not self._ended.wait(POLL_S) and may():
                self._take_changes()
                self._say_status(running=True)
        finally:
            self.end()
            for thread in threads:
                thread.join()
            with self._news:
                self._remember()
            self._say_status(running=False)

    def end(self) -> None:
        """Ends it, from any thread, also a request that is under way."""
        self._ended.set()
        self._collector.stop()
        for place in self._places:
            place.sink.stop()
        with self._news:
            self._news.notify_all()

    # --- what is told ---

    def _take_changes(self) -> None:
        """Takes in what the audit has got meanwhile."""
        while not self._ended.is_set():
            try:
                changes = self._feed.after(self._mark)
            except OSError as error:
                self._note("audit", f"the audit cannot be read: {error.strerror}")
                return
            self._note("audit", "")
            if changes.note:
                _logger.warning("%s", changes.note)
            if changes.mark == self._mark:
                return
            dangerous = {flag.id for flag in self._source.snapshot.definitions.values() if flag.dangerous}
            alerts = []
            for entry in changes.entries:
                try:
                    alert = alert_of(entry, dangerous=entry.flag in dangerous)
                except (AttributeError, KeyError, TypeError, ValueError):
                    _logger.warning("an entry of the audit is none that this version writes; see flags audit --verify")
                    continue
                if alert is not None:
                    alerts.append(alert)
            with self._news:
                self._mark = changes.mark
                self._tell(alerts)
            if not changes.more:
                return

    def _look(self) -> None:
        """Looks at what can go wrong, each `interval`."""
        due = 0.0
        while not self._ended.wait(POLL_S):
            now = self._clock()
            # a clock that was set back makes a new beginning
            if now < due <= now + self._alerts.interval:
                continue
            for kind, look in (
                ("flag_expiring", self._look_at_dates),
                ("error_rate", self._look_at_rates),
                ("collector", self._look_at_collector),
            ):
                if kind in self._alerts.kinds and not self._ended.is_set():
                    try:
                        look(now)
                        self._note(kind, "")
                    except Exception as error:  # whatever a file may hold, the other looks go on
                        self._note(kind, f"{kind} cannot be looked at: {getattr(error, 'strerror', '') or error!r}")
            collector = self._standings.get("collector")
            soon = collector is not None and collector.streak > 0
            due = self._clock() + (min(_CONFIRM_S, self._alerts.interval) if soon else self._alerts.interval)

    def _look_at_dates(self, now: float) -> None:
        snapshot = self._source.snapshot
        alerts = list(expiring(snapshot, self._alerts.expiring_days, self._told, now))
        with self._news:
            for alert in alerts:
                self._told[alert.flag] = alert.details["expires_at"]
            if snapshot.definitions:
                known = snapshot.definitions.keys() | snapshot.bad.keys()
                self._told = {flag: date for flag, date in self._told.items() if flag in known}
            if alerts:
                self._tell(alerts)

    def _look_at_rates(self, now: float) -> None:
        from jarvis_otel.alerts import rates  # noqa: PLC0415 - takes the whole of queries along

        if time.monotonic() < self._rates_due:
            return
        began = time.thread_time()
        until = datetime.fromtimestamp(now, UTC)
        since = until - timedelta(seconds=rates.WINDOW_S)
        limit = self._alerts.error_rate
        impacts = rates.recent_impacts(self._settings.log_dir, since, until, self._ended.is_set)
        # other threads of the process have work to do
        self._rates_due = time.monotonic() + (time.thread_time() - began) / _RATES_SHARE
        if self._ended.is_set():
            return
        alerts, there = [], {"collector"}
        with self._news:
            for impact, one in ((each, one) for each in impacts.values() for one in each.variants):
                key = f"{impact.flag}={one.variant}"
                there.add(key)
                standing = self._standings.get(key) or Standing()
                news = standing.look(rates.is_over(one, limit), now, hold=self._alerts.interval, again=HOLD_MAX_S)
                if standing != Standing():
                    self._standings[key] = standing
                if news is not None:
                    again, at = news is News.LASTS, moment_of(now)
                    alerts.append(rates.rate_alert(impact, one, limit, over=standing.bad, again=again, at=at))
            for key in self._standings.keys() - there:
                # nobody has the variant any more, so that nobody has to be told that it is better
                self._standings[key].bad = False
                if not 0 <= now - self._standings[key].told_at < HOLD_MAX_S:
                    del self._standings[key]
            if alerts:
                self._tell(alerts)

    def _look_at_collector(self, now: float) -> None:
        target = self._settings.otlp_logs
        path = urlsplit(target.url).path.removesuffix("/v1/logs")
        response = self._collector.request("GET", f"{path}/healthz", headers=target.headers)
        if self._ended.is_set():
            return
        problem = collector_problem(response)
        with self._news:
            standing = self._standings.setdefault("collector", Standing())
            news = standing.look(problem is not None, now, hold=self._alerts.interval, looks=_COLLECTOR_LOOKS)
            if news is not None:
                self._tell([collector_alert(self._collector.where, problem, now)])

    def _tell(self, alerts: Iterable[Alert]) -> None:
        """Gives alerts to all receivers, and remembers that together with where they came from."""
        now = self._clock()
        for alert in alerts:
            if alert.kind in self._alerts.kinds:
                clean = self._clean(alert)
                for place in self._places:
                    place.outbox.add(clean, now)
        self._remember()
        self._news.notify_all()

    def _clean(self, alert: Alert) -> Alert:
        """An alert without secrets that people wrote into reasons, and of bounded size."""
        details = orjson.loads(orjson.dumps(plain(dict(alert.details)), default=str))
        scrubbed = self._redactor.scrub(details)
        for name, value in scrubbed.items():
            if isinstance(value, str):
                scrubbed = {**scrubbed, name: value[:_TEXT_MAX]}
        return replace(
            alert,
            title=self._redactor.text(alert.title)[:_TEXT_MAX],
            text=self._redactor.text(alert.text)[:_TEXT_MAX],
            details=scrubbed,
            environment=self._source.snapshot.environment or "",
        )

    # --- sending ---

    def _send_to(self, place: _Place) -> None:
        while (message := self._next(place)) is not None:
            try:
                result = place.sink.send(message)
            except Exception as error:  # a thread that ends would leave a receiver without alerts, unseen
                result = Result(Fate.FAILED, type(error).__name__)
            # a receiver may repeat what is none of its own secrets
            result = result._replace(problem=self._redactor.text(result.problem))
            with self._news:
                self._settle(place, message, result)
                self._remember()
        place.sink.close()

    def _next(self, place: _Place) -> Message | None:
        """The next message to a receiver, once it is due; None at the end."""
        with self._news:
            while not self._ended.is_set():
                message = place.outbox.take(self._clock())
                if message is not None:
                    return message
                self._news.wait(None if place.outbox.wait(self._clock()) is None else POLL_S)
            return None

    def _settle(self, place: _Place, message: Message, result: Result) -> None:
        name, outbox, now = place.sink.name, place.outbox, self._clock()
        if result.fate is Fate.DELIVERED:
            if outbox.failing:
                _logger.info("alerts to %s get through again", name)
            if message.left_out:
                _logger.warning("alerts to %s: %d were told only as a number", name, message.left_out)
            outbox.delivered(now)
            self._note(place.sink.id, "")
        elif result.fate is Fate.REFUSED:
            _logger.warning("alerts to %s: %d were refused and are gone: %s", name, message.count, result.problem)
            outbox.refused()
            self._note(place.sink.id, f"refused: {result.problem}", log=False)
        else:
            outbox.failed(now, result.retry_after)
            if not self._ended.is_set():
                self._note(place.sink.id, result.problem, log=False)
                if outbox.failing == 1:
                    _logger.warning("alerts to %s: %s; they wait, and are tried again", name, result.problem)

    # --- what is remembered and said ---

    def _remembered(self) -> Mapping[str, Any]:
        said = read_state(self._directory) or {}
        try:
            for box in said.get("sinks", {}).values():
                Outbox(self._alerts.interval, box)
            for one in said.get("standings", {}).values():
                Standing(**one)
            if said.get("mark"):
                self._feed.after(said["mark"])
            dict(said.get("told", {}))
        except (ValueError, TypeError, KeyError, AttributeError):
            _logger.warning("%s: cannot be used; alerts begin anew", self._directory)
            return {}
        except OSError:
            pass  # the audit cannot be read now; that is told where it is followed
        return said

    def _remember(self) -> None:
        state = {
            "mark": self._mark,
            "told": self._told,
            "standings": {key: one.to_dict() for key, one in self._standings.items()},
            "sinks": {place.sink.id: place.outbox.to_dict() for place in self._places},
        }
        try:
            write_state(self._directory, state)
        except OSError as error:
            self._note("state", f"{self._directory}: cannot be written, a restart may repeat alerts: {error.strerror}")
        else:
            self._note("state", "")

    def _note(self, what: str, problem: str, *, log: bool = True) -> None:
        """Keeps what is wrong with something, and says so once; an empty text is that nothing is."""
        with self._news:
            if not problem:
                self._problems.pop(what, None)
            elif self._problems.get(what) != problem:
                self._problems[what] = problem
                if log:
                    _logger.warning("%s", problem)

    def _say_status(self, *, running: bool) -> None:
        now = self._clock()
        with self._news:
            ids = {place.sink.id for place in self._places}
            status = {
                "running": running,
                "pid": os.getpid(),
                "kinds": sorted(self._alerts.kinds),
                "problems": [problem for what, problem in self._problems.items() if what not in ids],
                "sinks": [
                    {
                        "sink": place.sink.name,
                        "problem": self._problems.get(place.sink.id, ""),
                        "waiting": place.outbox.waiting,
                        "retry_at": moment_of(place.outbox.retry_at) if place.outbox.failing else None,
                        **vars(place.outbox.counters),
                    }
                    for place in self._places
                ],
            }
        content = orjson.dumps(status)
        if content == self._status and 0 <= now - self._status_at < _STATUS_S:
            return
        try:
            write_status(self._directory, {"at": moment_of(now), **status})
        except OSError as error:
            self._note("status", f"{self._directory}: cannot be written: {error.strerror}")
        else:
            self._status, self._status_at = content, now
            self._note("status", "")
