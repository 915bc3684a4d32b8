"""Alerts: the thread that a front end or a process of its own runs, of which one in all processes is on duty."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from jarvis_flags.source import FlagSource
from jarvis_otel.alerts.changes import AuditFeed, ChangeFeed
from jarvis_otel.alerts.duty import Duty
from jarvis_otel.alerts.sinks import sinks_of
from jarvis_otel.alerts.state import DIRECTORY, LOCK_FILE
from jarvis_otel.alerts.turn import FileTurn, Turn
from jarvis_otel.settings import Settings

__all__ = ["STOP_S", "Alerts", "is_on_duty", "why_silent"]

STOP_S = 1.0
"""So long may it take to stop; a front end that is told to end has two seconds for all that it does."""

_STANDBY_S = 1.0

_logger = logging.getLogger("jarvis_otel.alerts")


def why_silent(settings: Settings) -> str:
    """Why nothing is told, with the cure; empty where something is.

    Args:
        settings: What is told, and whom.
    """
    if not settings.alerts.kinds:
        return "nothing is to be told: set alerts, such as [flag_changed, collector]"
    sinks, problems = sinks_of(settings.alerts, settings.telegram)
    if not sinks:
        return "; ".join(problems) or "nobody is to be told: set alert_webhooks or alert_telegram_chats"
    return ""


def is_on_duty(settings: Settings) -> bool:
    """Whether some other process alerts now.

    Args:
        settings: Of its project.
    """
    lock = settings.flags.state_dir / DIRECTORY / LOCK_FILE
    if not lock.exists():
        return False
    turn = FileTurn(lock)
    try:
        return not turn.take()
    except OSError:
        return False
    finally:
        turn.give_up()


class Alerts:
    """Tells people what happens, from a thread that blocks nobody; does nothing where the settings want nothing told.

    Any number of processes may run it: one is on duty, the others stand by until its turn is over. A process runs one.

    Args:
        settings: What is told, and whom.
        source: The flags; the process that runs this notes edits of their file in the audit (FlagAdmin.follow_file).
        clock: Unix seconds.
        turn: Who may alert; a lock file under var/alerts if None.
        changes: Where changes come from; the audit file if None.
    """

    def __init__(
        self,
        settings: Settings,
        source: FlagSource,
        *,
        clock: Callable[[], float] = time.time,
        turn: Turn | None = None,
        changes: ChangeFeed | None = None,
    ) -> None:
        self._settings = settings
        self._source = source
        self._clock = clock
        self._directory = settings.flags.state_dir / DIRECTORY
        self._turn: Turn = turn or FileTurn(self._directory / LOCK_FILE)
        self._changes: ChangeFeed = changes or AuditFeed(settings.flags.audit_file)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._duty: Duty | None = None
        self._said = ""

    @property
    def on_duty(self) -> bool:
        """Whether it is this process that alerts."""
        return self._duty is not None

    def start(self) -> None:
        """Begins, once."""
        if self._thread is None and not why_silent(self._settings):
            self._thread = threading.Thread(target=self._run, name="jarvis-alerts", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends within STOP_S, whatever is under way; what was not delivered is by whoever is on duty next."""
        self._stopping.set()
        with self._lock:
            if self._duty is not None:
                self._duty.end()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._turn.take():
                    self._serve()
            except Exception as error:  # whatever is wrong here must not end the front end, nor alerts for good
                said = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error)
                if said != self._said:
                    _logger.warning("alerts cannot be sent now: %s", said)
                self._said = said
            finally:
                self._turn.give_up()
            self._stopping.wait(_STANDBY_S)

    def _serve(self) -> None:
        duty = Duty(self._settings, self._source, self._changes, self._directory, self._clock)
        with self._lock:
            if self._stopping.is_set():
                return
            self._duty = duty
        try:
            duty.run(self._turn.take)
        finally:
            with self._lock:
                self._duty = None
