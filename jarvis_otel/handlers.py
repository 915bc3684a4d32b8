"""Where the logs of a process are tied together: standard logging, OpenTelemetry's Logs API, console and signal."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from opentelemetry.sdk._logs import LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, TraceFlags

from jarvis_collector.record import LogEntry
from jarvis_flags.forks import after_fork
from jarvis_otel.adoption import adopt_handler, handlers_of, is_otel_handler
from jarvis_otel.compose import process_service
from jarvis_otel.context import current_operation
from jarvis_otel.encode import Record, Severity, otlp_scope, redact, severity_of
from jarvis_otel.formatters import HumanFormatter, JSONFormatter
from jarvis_otel.lines import LineWriter
from jarvis_otel.logger import OwnLogRecord, emit_event, ship, ship_standard
from jarvis_otel.pipeline import EXIT_SECONDS, Pipeline
from jarvis_otel.runtime import RUNTIME, Policy
from jarvis_otel.settings import Settings
from jarvis_otel.terminal import wants_color

__all__ = ["LoggingSetup", "PipelineProcessor", "flush_at_sigterm", "install_logging"]

_LOSS_SECONDS = 10.0
_shipped = threading.local()
"""Name and time of the record of standard logging that this thread shipped last."""

_LEVELNO_BY_SEVERITY = ((21, logging.CRITICAL), (17, logging.ERROR), (13, logging.WARNING), (9, logging.INFO))


class _Lowered(int):
    """A logger's level that is ours, so that records are made which its own level would not have made.

    Attributes:
        former: The level that the application gave it; 0 where it gave none.
    """

    former: int


class LoggingSetup:
    """The logs of this process, tied to a pipeline; made by `install_logging`.

    The records of standard logging are seen by a filter on the logger that makes them, which the record factory puts
    there at a logger's first record. So loggers that do not propagate (uvicorn's, gunicorn's) are seen too, no
    configuration that the application makes later removes us, and as no handler of ours is in its way, the
    application's own handlers and `logging.lastResort` print what they always did.

    Args:
        pipeline: Where records go; None where nothing is exported.
        console: A console of ours, or None.
    """

    def __init__(self, pipeline: Pipeline | None, console: logging.Handler | None) -> None:
        self.pipeline = pipeline
        self._console = console
        self._filter = _StandardFilter(self)
        self._policies: dict[str, Policy] = {}
        self._renew_lock()
        after_fork(self._renew_lock)
        self._factory = logging.getLogRecordFactory()
        self._levels: Mapping[str, int] = {}
        self._told_dropped: Mapping[str, int] = {}
        self._next_loss = 0.0
        self._level = logging.INFO
        self._installed = False

    def _renew_lock(self) -> None:
        # a signal handler may log while this very thread has it, and a thread of the parent may have it at a fork
        self._lock = threading.RLock()

    def install(self) -> None:
        """Starts to see the records of standard logging."""
        self._installed = True
        logging.setLogRecordFactory(self._make_record)
        if self._console is not None:
            logging.getLogger().addHandler(self._console)
        if self.pipeline is not None:
            RUNTIME.pipeline, RUNTIME.lines = self.pipeline, LineWriter(self.pipeline)
            self.pipeline.on_tick = self._tell_counts
            # from now on this process adopts what others left behind, even if it never logs
            self.pipeline.start()

    def _tell_counts(self, *, at_end: bool = False) -> None:
        """Writes records of what was lost, and of what limits left out and no later record told."""
        assert self.pipeline is not None
        for service, left in RUNTIME.left_out(math.inf if at_end else None):
            which = f"like this were left out ({left.reason}): {left.message}" if left.message else "were left out"
            emit_event(
                service,
                "jarvis.logs.left_out",
                f"{left.count} records {which}",
                level=severity_of(left.level).level,
                attributes={"left_out": left.count, "left_out_reason": left.reason},
                service=service if service in RUNTIME.services else None,
            )
        dropped = self.pipeline.counters().dropped
        if dropped == self._told_dropped or (time.monotonic() < self._next_loss and not at_end):
            return
        self._next_loss = time.monotonic() + _LOSS_SECONDS
        news = {reason: count - self._told_dropped.get(reason, 0) for reason, count in dropped.items()}
        self._told_dropped = dropped
        text = "Records lost: " + ", ".join(f"{count} {reason}" for reason, count in news.items() if count)
        attributes = {f"jarvis.dropped.{reason}": count for reason, count in news.items()}
        emit_event("jarvis_otel", "jarvis.logs.dropped", text, level="WARNING", attributes=attributes)

    def uninstall(self, timeout: float = EXIT_SECONDS) -> bool:
        """Undoes `install`, delivers what waits, and tells whether all of it was delivered.

        Args:
            timeout: Seconds that this may take.
        """
        self._installed = False
        if logging.getLogRecordFactory() == self._make_record:
            logging.setLogRecordFactory(self._factory)
        if self._console is not None:
            logging.getLogger().removeHandler(self._console)
        for logger in _all_loggers():
            logger.removeFilter(self._filter)
        self._raise_levels()
        delivered = self.finish(timeout)
        if RUNTIME.pipeline is self.pipeline:
            RUNTIME.pipeline = RUNTIME.lines = None
        return delivered

    def finish(self, timeout: float) -> bool:
        """Delivers what waits, and tells whether all of it was; what is logged later goes to the spool all the same.

        Args:
            timeout: Seconds that this may take.
        """
        if self.pipeline is None:
            return True
        self._tell_counts(at_end=True)
        return self.pipeline.shutdown(timeout)

    def apply(self, settings: Settings) -> None:
        """Has the levels of the settings hold, for standard loggers too.

        A logger whose own level is higher makes more records from now on; the application's handlers do not see those.

        Args:
            settings: Those that hold from now on.
        """
        self._raise_levels()
        self._levels, self._level = settings.levels, settings.level
        self._policies = {}
        root = logging.getLogger()
        # a level of the root logger other than the default is the application's wish
        if root.level == logging.WARNING and settings.level < logging.WARNING:
            _lower(root, settings.level)
        for name, level in settings.levels.items():
            logger = logging.getLogger(name)
            if logger.getEffectiveLevel() > level:
                _lower(logger, level)
        if self._console is not None:
            self._console.setLevel(min((settings.level, *settings.levels.values())))

    def _raise_levels(self) -> None:
        for logger in _all_loggers():
            if isinstance(logger.level, _Lowered):
                logger.setLevel(logger.level.former)

    def _level_of(self, name: str) -> int:
        """The lowest level of a standard logger's records that are shipped: its own, or of the nearest above it."""
        levels = self._levels
        while levels and name:
            if name in levels:
                return levels[name]
            name = name.rpartition(".")[0]
        return self._level

    def _make_record(self, name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        logger = logging.root if name == logging.root.name else logging.root.manager.loggerDict.get(name)
        if self._installed and isinstance(logger, logging.Logger) and self._filter not in logger.filters:
            with self._lock:
                logger.addFilter(self._filter)
        return self._factory(name, *args, **kwargs)

    def see(self, record: logging.LogRecord) -> bool:
        """Ships a record of standard logging, and tells whether the application's handlers may have it.

        They may not where it exists only because we lowered the root logger's level.
        """
        name = record.name
        # OpenTelemetry's own LoggingHandlers, which bring records to the application's processors
        bringers = [handler for handler in handlers_of(name) if self._adopts(handler)]
        if isinstance(record.msg, LogEntry):
            return True
        shown = self._is_shown(record)
        if record.levelno >= self._level_of(name) and not _is_telemetry(name):
            # whatever the handlers' levels and filters are, this one need not come back to us by them
            _shipped.record = name, int(record.created * 1e9)
            wanted = not bringers or any(record.levelno >= handler.level for handler in bringers)
            self._ship(record, others=wanted and not (shown and bringers))
        return shown

    def _adopts(self, handler: logging.Handler) -> bool:
        if not is_otel_handler(handler):
            return False
        return adopt_handler(handler, None if self.pipeline is None else PipelineProcessor(self.pipeline))

    def _is_shown(self, record: logging.LogRecord) -> bool:
        if self._console is not None:
            return True
        for logger in _upward(record.name):
            level = logger.level.former if isinstance(logger.level, _Lowered) else logger.level
            if level:
                return record.levelno >= level
        return True

    def _ship(self, record: logging.LogRecord, *, others: bool) -> None:
        policy = self._policies.get(record.name)
        if policy is None:
            service = process_service() or record.name
            limits = RUNTIME.policy(record.name).limits
            policy = self._policies[record.name] = Policy(service, logging.INFO, limits, logger=record.name)
        ship_standard(record, policy, others=others)


class _StandardFilter(logging.Filter):
    """Lets the setup see the records of one logger."""

    def __init__(self, setup: LoggingSetup) -> None:
        super().__init__()
        self._setup = setup

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            return self._setup.see(record)
        except Exception:  # telemetry never raises into the application; the loss is counted
            if self._setup.pipeline is not None:
                self._setup.pipeline.count_failed()
            return True


def _lower(logger: logging.Logger, level: int) -> None:
    lowered = _Lowered(level)
    lowered.former = logger.level
    logger.setLevel(lowered)


def _all_loggers() -> list[logging.Logger]:
    root = logging.getLogger()
    known = [logger for logger in list(root.manager.loggerDict.values()) if isinstance(logger, logging.Logger)]
    return [root, *known]


def _upward(name: str) -> Iterator[logging.Logger]:
    """A logger and those above it, up to root."""
    logger = logging.root if name == logging.root.name else logging.root.manager.loggerDict.get(name)
    while isinstance(logger, logging.Logger):
        yield logger
        logger = logger.parent


def _is_telemetry(name: str) -> bool:
    """With the collector down, what the exporters log would feed the exporters."""
    return name == "opentelemetry" or name.startswith("opentelemetry.")


class PipelineProcessor(LogRecordProcessor):
    """Brings records of OpenTelemetry's Logs API to the pipeline; our own are there already.

    Args:
        pipeline: Where they go.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.jarvis_pipeline = pipeline

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Called by the SDK for each record."""
        record, scope = log_record.log_record, log_record.instrumentation_scope
        # what a LoggingHandler makes of a record of standard logging, which was shipped on its way to the handler
        seen = (scope.name if scope is not None else "", record.timestamp) == getattr(_shipped, "record", None)
        if seen or isinstance(record, OwnLogRecord):
            return
        try:
            self._emit(log_record)
        except Exception:  # telemetry never raises into the application; the loss is counted
            self.jarvis_pipeline.count_failed()

    def _emit(self, given: ReadWriteLogRecord) -> None:
        record, scope = given.log_record, given.instrumentation_scope
        operation = current_operation()
        attributes = dict(record.attributes or {})
        attributes.setdefault("log.record.uid", self.jarvis_pipeline.new_uid())
        if operation is not None:
            for name, value in (
                ("jarvis.correlation_id", operation.correlation_id),
                ("user.id", operation.user_id),
                ("jarvis.request_id", operation.request_id),
                ("session.id", operation.session_id),
            ):
                if value is not None:
                    attributes.setdefault(name, value)
        if isinstance(user := attributes.get("user.id"), str):
            attributes["user.id"] = RUNTIME.redactor.pseudonym(user)
        made = Record(
            time_ns=record.timestamp or record.observed_timestamp or time.time_ns(),
            severity=_severity(record.severity_number, record.severity_text),
            message=record.body,
            service=process_service() or "unknown_service",
            logger=scope.name if scope is not None else "",
            keywords={},
            span=_span_context(record),
            flags=dict(operation.evaluated) if operation is not None else {},
            event=record.event_name,
            attributes=attributes,
        )
        redact(made, RUNTIME.redactor)
        ship(
            made,
            otlp_scope(scope.name, scope.version, scope.schema_url, scope.attributes) if scope else otlp_scope(""),
        )

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Waits until what was emitted is delivered, and tells whether it is."""
        return self.jarvis_pipeline.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """The pipeline outlives the provider: standard logging feeds it too."""


def _severity(number: Any, text: str | None) -> Severity:
    value = int(getattr(number, "value", number) or 0)
    levelno = next((levelno for floor, levelno in _LEVELNO_BY_SEVERITY if value >= floor), logging.DEBUG)
    level = severity_of(levelno if value else logging.INFO).level
    return Severity(level, value, text or level)


def _span_context(record: Any) -> SpanContext | None:
    span = SpanContext(
        record.trace_id or INVALID_SPAN_CONTEXT.trace_id,
        record.span_id or INVALID_SPAN_CONTEXT.span_id,
        is_remote=False,
        trace_flags=TraceFlags(int(record.trace_flags or 0)),
    )
    return span if span.is_valid else None


class _Console(logging.StreamHandler[TextIO]):
    """Writes to whatever sys.stderr is at the moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Where it writes."""
        return sys.stderr


def install_logging(
    settings: Settings,
    resource_attributes: Mapping[str, Any],
    *,
    console: bool = True,
) -> LoggingSetup:
    """Ties the logs of this process to a pipeline that ships them, and gives it a console where it has none.

    Args:
        settings: Endpoint, levels, console.
        resource_attributes: Attributes of the process's OpenTelemetry resource.
        console: False keeps the console as it is where the settings leave that open (`auto`).
    """
    pipeline = Pipeline.of(settings, resource_attributes)
    setup = LoggingSetup(pipeline, _console_handler(settings, wanted=console))
    setup.install()
    setup.apply(settings)
    return setup


def _console_handler(settings: Settings, *, wanted: bool) -> logging.Handler | None:
    style = settings.console
    if style == "off" or (style == "auto" and (not wanted or logging.getLogger().handlers)):
        return None
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if style == "auto":
        style = "human" if terminal else "json"
    handler = _Console()
    handler.setFormatter(HumanFormatter(color=wants_color(sys.stderr)) if style == "human" else JSONFormatter())
    return handler


def flush_at_sigterm(
    pipeline: Pipeline | None, others: Sequence[Callable[[], object]] = (), timeout: float = EXIT_SECONDS
) -> None:
    """Delivers what waits before the process dies of SIGTERM, which runs no atexit.

    Only in the main thread, and only where nobody else handles the signal: who does ends the process in order.

    Args:
        pipeline: What is flushed; a collector that is away is not waited for, as the records are on the disk.
        others: Further flushes, of spans for example; they run at the same time.
        timeout: Seconds that all of them may take together.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return

    def die(signum: int, frame: object) -> None:  # noqa: ARG001
        if pipeline is not None and pipeline.interrupted_in_append():
            # the thread that waits here would hold what the flush needs: let it go on, and come again
            threading.Timer(0.001, os.kill, (os.getpid(), signum)).start()
            return
        flushes = [*others]
        if pipeline is not None:
            flushes.append(lambda: pipeline.flush(timeout, patient=False))
        threads = [threading.Thread(target=flush, daemon=True) for flush in flushes]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    signal.signal(signal.SIGTERM, die)
