"""The structured logger, and how a record is composed: what was said, in which operation, under which flags."""

from __future__ import annotations

import functools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from types import CodeType, FrameType, TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry._logs import LoggerProvider, LogRecord, SeverityNumber, get_logger_provider

from jarvis_collector.record import LogEntry
from jarvis_otel.context import FLAGS_MAX, LogContext, Operation, current_operation, note_evaluation
from jarvis_otel.encode import (
    SEVERITIES,
    ErrorInfo,
    Record,
    Source,
    clean,
    clean_text,
    log_entry,
    otlp_record,
    otlp_scope,
    sdk_attributes,
    severity_of,
)
from jarvis_otel.runtime import RUNTIME
from jarvis_otel.settings import LEVELS

__all__ = ["OwnLogRecord", "StructuredLogger", "compose_standard", "emit_event", "entry_of", "get_logger", "ship"]

_UNSET: Any = object()
_URGENT = SeverityNumber.WARN.value
_STACK_FRAMES_MAX = 100

# What a LogRecord has of itself; anything more came by `extra=`. uvicorn's color_message repeats the message, and
# the otel* fields of opentelemetry-instrumentation-logging repeat the span.
_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    "asctime",
    "color_message",
    "message",
    "otelServiceName",
    "otelSpanID",
    "otelTraceID",
    "otelTraceSampled",
    "taskName",
}

_OWN_KEYWORDS = frozenset({"correlation_id", "duration_ms", "request_id", "session_id", "user_id"})
"""Keywords of a call that have a key of their own on the line."""

_state = threading.local()

# Where calls stand, by code object and instruction; it holds the code objects, so that an id means one of them.
_SOURCES_MAX = 4_096
_sources: dict[tuple[int, int], tuple[CodeType, Source]] = {}


class OwnLogRecord(LogRecord):
    """A record that goes to the application's own OpenTelemetry processors, and is in our pipeline already."""


class StructuredLogger:
    """Logs messages with keywords, correlated by operation, span and flags; never raises into the application.

    Args:
        service: The component that logs; also the name of the standard logger that its records pass through.
        level: The lowest level written; INFO where neither this nor the settings say otherwise.
    """

    def __init__(self, service: str, level: int | None = None) -> None:
        self.service = clean_text(service)
        self._explicit_level = level
        self._bound: Mapping[str, Any] = {}
        self._scope = otlp_scope(self.service)
        self._standard = logging.getLogger(self.service)
        self._settings: object = _UNSET
        self._level = logging.INFO

    @property
    def level(self) -> int:
        """The lowest level that is written now, as a number of the logging module."""
        settings = RUNTIME.settings
        if settings is not self._settings:
            if self._explicit_level is not None:
                self._level = self._explicit_level
            elif settings is not None:
                self._level = settings.levels.get(self.service, settings.level)
            else:
                self._level = logging.INFO
            self._settings = settings
        return self._level

    def debug(self, message: object = _UNSET, /, exc_info: object = False, **context: Any) -> None:
        """Writes a DEBUG record.

        Args:
            message: What happened, for people.
            exc_info: True for the exception being handled, or an exception, or the triple of sys.exc_info().
            context: Keywords that join the record; correlation_id, user_id, request_id, session_id and duration_ms
                go to the keys of these names.
        """
        if self.level <= logging.DEBUG:
            self._log(logging.DEBUG, message, exc_info, context)

    def info(self, message: object = _UNSET, /, exc_info: object = False, **context: Any) -> None:
        """Writes an INFO record; the arguments are those of `debug`."""
        if self.level <= logging.INFO:
            self._log(logging.INFO, message, exc_info, context)

    def warning(self, message: object = _UNSET, /, exc_info: object = False, **context: Any) -> None:
        """Writes a WARNING record; the arguments are those of `debug`."""
        if self.level <= logging.WARNING:
            self._log(logging.WARNING, message, exc_info, context)

    def error(self, message: object = _UNSET, /, exc_info: object = False, **context: Any) -> None:
        """Writes an ERROR record; the arguments are those of `debug`."""
        if self.level <= logging.ERROR:
            self._log(logging.ERROR, message, exc_info, context)

    def critical(self, message: object = _UNSET, /, exc_info: object = False, **context: Any) -> None:
        """Writes a CRITICAL record; the arguments are those of `debug`."""
        if self.level <= logging.CRITICAL:
            self._log(logging.CRITICAL, message, exc_info, context)

    def exception(self, message: object = _UNSET, /, exc_info: object = True, **context: Any) -> None:
        """Writes an ERROR record with the exception being handled; the arguments are those of `debug`."""
        if self.level <= logging.ERROR:
            self._log(logging.ERROR, message, exc_info, context)

    def context(
        self,
        correlation_id: str | None = None,
        user_id: str | None = None,
        flags: list[str] | tuple[str, ...] | None = None,
        **more: Any,
    ) -> LogContext:
        """Opens an operation, for `with` and `async with`; records within carry what it is given.

        Args:
            correlation_id: Links the records of the operation, in other processes too.
            user_id: The user on whose behalf it runs; flags are evaluated for that user.
            flags: Ids of flags that its records list even where they are not evaluated.
            more: `request_id` and `session_id`; anything else joins the `context` of its records.
        """
        return LogContext(self.service, correlation_id, user_id, flags, **more)

    def bind(self, **context: Any) -> StructuredLogger:
        """A logger of the same service whose records all carry these keywords."""
        bound = StructuredLogger(self.service, self._explicit_level)
        bound._bound = {**self._bound, **context}
        return bound

    def trade_event(self, event_type: str, symbol: str, **details: Any) -> None:
        """Writes an INFO record with the event `trade.<event_type>`.

        Args:
            event_type: What became of the trade: executed, rejected, …
            symbol: What is traded.
            details: Further keywords.
        """
        if self.level <= logging.INFO:
            kind = clean_text(event_type)
            message = f"Trade {kind}: {clean_text(symbol)}"
            self._log(logging.INFO, message, False, {"symbol": symbol, **details}, event=f"trade.{kind}")

    def api_call(self, method: str, endpoint: str, status_code: int, duration_ms: float, **details: Any) -> None:
        """Writes a record of an HTTP call that was made or served: ERROR from status 500 up, else INFO.

        Args:
            method: The HTTP method.
            endpoint: Path or URL.
            status_code: The status that was answered.
            duration_ms: Milliseconds that it took.
            details: Further keywords.
        """
        level = logging.ERROR if isinstance(status_code, int) and status_code >= 500 else logging.INFO
        if self.level <= level:
            message = f"{clean_text(method)} {clean_text(endpoint)} → {clean_text(status_code)}"
            context = {"method": method, "endpoint": endpoint, "status_code": status_code, **details}
            self._log(level, message, False, {**context, "duration_ms": duration_ms})

    def feature_flag_evaluated(self, flag_id: str, result: Any, context: Mapping[str, Any] | None = None) -> None:
        """Writes an INFO record of an evaluation that happened elsewhere, and notes it for the current operation.

        Args:
            flag_id: The flag.
            result: What it gave: a boolean, or the name of a variant.
            context: What it was evaluated with.
        """
        flag = clean_text(flag_id)
        variant = ("on" if result else "off") if isinstance(result, bool) else clean_text(result)
        note_evaluation(flag, variant, on=variant != "off")
        if self.level <= logging.INFO:
            keywords = {"feature_flag.key": flag, "feature_flag.result.variant": variant}
            if context:
                keywords["evaluation_context"] = clean(context)
            self._log(logging.INFO, f"Flag {flag}: {variant}", False, keywords, event="feature_flag.evaluation")

    def _log(
        self,
        level: int,
        message: object,
        exc_info: object,
        context: dict[str, Any],
        *,
        event: str | None = None,
    ) -> None:
        """Composes and hands out one record; every public method calls it directly, so the caller is two frames up."""
        try:
            if message is _UNSET:
                message = context.pop("message", "")
            frame = sys._getframe(2)  # noqa: SLF001
            error, exception = _error_of(exc_info) if exc_info else (None, None)
            operation = current_operation()
            keywords = context
            if self._bound or (operation is not None and operation.fields):
                keywords = {**(operation.fields if operation else {}), **self._bound, **context}
            record = _compose(
                time_ns=time.time_ns(),
                level=level,
                message=message if type(message) is str else clean_text(message),
                service=self.service,
                logger=self.service,
                keywords=keywords,
                operation=operation,
                error=error,
                source=_source_of(frame),
            )
            record.event = event
            ship(record, self._scope)
        except Exception as problem:  # telemetry never raises into the application, and loses no message either
            exception = None
            record = _bare(level, message, self.service, problem)
            self._ship_bare(record)
        _hand_to_standard(self._standard, record, level, exception)
        _hand_to_processors(record)

    def _ship_bare(self, record: Record) -> None:
        try:
            ship(record, self._scope)
        except Exception:  # the pipeline itself fails: all that is left is to count
            if RUNTIME.pipeline is not None:
                RUNTIME.pipeline.count_failed()


@functools.cache
def get_logger(service: str) -> StructuredLogger:
    """The logger of a service; the same one for the same name.

    Args:
        service: The component that logs: "trading", "telegram", "api", …
    """
    return StructuredLogger(service)


def emit_event(
    logger: str, name: str, message: str, *, level: str = "INFO", attributes: Mapping[str, Any], shown: bool = True
) -> None:
    """Writes an OpenTelemetry event whose attributes already have their OTLP names; never raises.

    Its service is that of the operation around it, else that of the process.

    Args:
        logger: The name of the logger, which is the scope.
        name: The event name.
        message: What happened, for people.
        level: DEBUG, INFO, WARNING, ERROR or CRITICAL.
        attributes: Written as they are.
        shown: Whether the standard handlers, such as a console, get it too.
    """
    number = LEVELS[level]
    if get_logger(logger).level > number:
        return
    try:
        operation = current_operation()
        record = _compose(
            time_ns=time.time_ns(),
            level=number,
            message=clean_text(message),
            service=(operation.service if operation is not None else None) or process_service() or logger,
            logger=logger,
            keywords={},
            operation=operation,
            error=None,
            source=None,
        )
        record.event = name
        record.attributes = attributes
        ship(record, otlp_scope(logger))
        if shown:
            _hand_to_standard(logging.getLogger(logger), record, number, None)
        _hand_to_processors(record)
    except Exception:  # telemetry never raises into the application; the loss is counted
        if RUNTIME.pipeline is not None:
            RUNTIME.pipeline.count_failed()


def _compose(
    *,
    time_ns: int,
    level: int,
    message: str,
    service: str,
    logger: str,
    keywords: dict[str, Any],
    operation: Operation | None,
    error: ErrorInfo | None,
    source: Source | None,
) -> Record:
    """The record with all that the operation and the span around the caller know."""
    span = trace.get_current_span().get_span_context()
    correlation_id = user_id = request_id = session_id = None
    evaluated: Mapping[str, tuple[str, bool]] = {}
    declared: tuple[str, ...] = ()
    if operation is not None:
        correlation_id, user_id = operation.correlation_id, operation.user_id
        request_id, session_id = operation.request_id, operation.session_id
        evaluated, declared = operation.evaluated, operation.declared
    duration_ms = None
    if not _OWN_KEYWORDS.isdisjoint(keywords):
        correlation_id = _taken(keywords, "correlation_id", correlation_id)
        user_id = _taken(keywords, "user_id", user_id)
        request_id = _taken(keywords, "request_id", request_id)
        session_id = _taken(keywords, "session_id", session_id)
        if type(keywords.get("duration_ms")) in (int, float):
            duration_ms = keywords.pop("duration_ms")
    pipeline = RUNTIME.pipeline
    return Record(
        # whole microseconds, as the line writes them
        time_ns=time_ns - time_ns % 1000,
        severity=SEVERITIES.get(level) or severity_of(level),
        message=message,
        service=service,
        logger=logger,
        keywords=keywords,
        span=span if span.is_valid else None,
        correlation_id=correlation_id,
        request_id=request_id,
        user_id=user_id,
        session_id=session_id,
        duration_ms=duration_ms,
        flags=_flags(evaluated, RUNTIME.declared_flags(service, user_id, declared)),
        error=error,
        source=source,
        uid=pipeline.new_uid() if pipeline is not None else "",
    )


def _bare(level: int, message: object, service: str, problem: Exception) -> Record:
    """What is left of a record that could not be composed: its message, and what was in the way."""
    now = time.time_ns()
    return Record(
        now - now % 1000, severity_of(level), clean_text(message), service, service, {"logging_problem": problem}
    )


def _taken(keywords: dict[str, Any], name: str, otherwise: str | None) -> str | None:
    """An id out of the keywords; None there leaves the operation's."""
    if name not in keywords:
        return otherwise
    value = keywords.pop(name)
    return otherwise if value is None else clean_text(value)


def _flags(
    evaluated: Mapping[str, tuple[str, bool]], declared: Mapping[str, tuple[str, bool]]
) -> Mapping[str, tuple[str, bool]]:
    """Both together, at most FLAGS_MAX; what was evaluated beats what is declared."""
    if not declared:
        return dict(evaluated) if evaluated else evaluated
    flags = dict(evaluated)
    for flag, result in declared.items():
        if len(flags) >= FLAGS_MAX:
            break
        flags.setdefault(flag, result)
    return flags


def _error_of(exc_info: object) -> tuple[ErrorInfo | None, Any]:
    """The exception as text, and as the triple that standard logging wants."""
    if isinstance(exc_info, BaseException):
        triple: Any = (type(exc_info), exc_info, exc_info.__traceback__)
    elif isinstance(exc_info, tuple) and len(exc_info) == 3:
        triple = exc_info
    else:
        triple = sys.exc_info()
    kind, error, frames = triple
    if not isinstance(error, BaseException):
        return None, None
    return describe_error(kind if isinstance(kind, type) else type(error), error, frames), triple


def describe_error(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> ErrorInfo:
    """An exception as text; its own `__str__` may raise."""
    qualified = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        stack_trace = "".join(traceback.format_exception(kind, error, frames, limit=_STACK_FRAMES_MAX)).rstrip("\n")
    except Exception:  # an exception may be as hostile as any other object
        stack_trace = ""
    try:
        message = str(error)
    except Exception:
        message = f"<unprintable {kind.__name__}>"
    return ErrorInfo(qualified, kind.__name__, clean_text(message), clean_text(stack_trace))


def _source_of(frame: FrameType) -> Source:
    """Where a call stands; remembered by instruction, as working out a line number costs more than all the rest."""
    code, instruction = frame.f_code, frame.f_lasti
    known = _sources.get((id(code), instruction))
    if known is not None and known[0] is code:
        return known[1]
    source = (code.co_filename, frame.f_lineno or 0, code.co_qualname)
    if len(_sources) >= _SOURCES_MAX:
        _sources.clear()
    _sources[id(code), instruction] = (code, source)
    return source


def compose_standard(log_record: logging.LogRecord) -> Record:
    """A record of standard logging with the same context as our own; `extra=` fields become keywords."""
    try:
        message = log_record.getMessage()
    except Exception:  # the arguments do not fit the message, or their text raises
        message = f"{clean_text(log_record.msg)} {clean_text(log_record.args)}"
    operation = current_operation()
    keywords = {key: value for key, value in vars(log_record).items() if key not in _RECORD_FIELDS}
    if operation is not None and operation.fields:
        keywords = {**operation.fields, **keywords}
    return _compose(
        time_ns=int(log_record.created * 1e6) * 1000,
        level=log_record.levelno,
        message=message,
        service=process_service() or log_record.name,
        logger=log_record.name,
        keywords=keywords,
        operation=operation,
        error=_error_of(log_record.exc_info)[0] if log_record.exc_info else None,
        source=(log_record.pathname, log_record.lineno, log_record.funcName or "") if log_record.pathname else None,
    )


def entry_of(log_record: logging.LogRecord) -> LogEntry:
    """What a LogRecord, ours or not, looks like as a line."""
    if isinstance(log_record.msg, LogEntry):
        return log_record.msg
    record = compose_standard(log_record)
    record.uid = ""
    return log_entry(record, _resource())


def process_service() -> str | None:
    """The `service.name` of this process, where one is known."""
    if RUNTIME.pipeline is not None and (name := RUNTIME.pipeline.resource.get("service.name")):
        return str(name)
    return RUNTIME.settings.service_name if RUNTIME.settings is not None else None


def _resource() -> Mapping[str, Any]:
    return RUNTIME.pipeline.resource if RUNTIME.pipeline is not None else {}


def ship(record: Record, scope: bytes) -> None:
    """Gives a record to the pipeline, if there is one.

    Args:
        record: What was composed.
        scope: The scope as `encode.otlp_scope` writes it.
    """
    pipeline = RUNTIME.pipeline
    if pipeline is not None:
        data = otlp_record(record, pipeline.resource.get("service.name"))
        pipeline.emit(scope, data, urgent=record.severity.number >= _URGENT)


def _hand_to_standard(standard: logging.Logger, record: Record, level: int, exception: Any) -> None:
    """Gives our record to the standard handlers that would take it, whatever level the loggers above have."""
    if not standard.hasHandlers() and (logging.lastResort is None or level < logging.lastResort.level):
        return
    if getattr(_state, "handing_over", False):  # a handler that logs: the pipeline has it, and that is enough
        return
    _state.handing_over = True
    try:
        file, line, function = record.source or ("", 0, "")
        entry: Any = log_entry(record, _resource())
        standard.handle(standard.makeRecord(record.logger, level, file, line, entry, (), exception, function))
    except Exception:  # a handler that raises instead of calling handleError
        pass
    finally:
        _state.handing_over = False


def _hand_to_processors(record: Record) -> None:
    """Gives our record to the application's own OpenTelemetry processors, if it has any."""
    try:
        provider = get_logger_provider()
        if _has_others(provider):
            _emit(provider, record)
    except Exception:  # a processor that raises is not the application's fault
        pass


def _has_others(provider: Any) -> bool:
    """Whether a provider has processors that are not ours."""
    multi = getattr(provider, "_multi_log_record_processor", None)
    if multi is None:
        # not the SDK's as we know it: if it takes processors at all it may have some
        return hasattr(provider, "add_log_record_processor")
    processors = getattr(multi, "_log_record_processors", ())
    return any(not hasattr(processor, "jarvis_pipeline") for processor in processors)


def _emit(provider: LoggerProvider, record: Record) -> None:
    provider.get_logger(record.logger).emit(
        OwnLogRecord(
            timestamp=record.time_ns,
            severity_number=SeverityNumber(record.severity.number),
            severity_text=record.severity.text,
            body=clean_text(record.message),
            attributes=sdk_attributes(record),
            event_name=record.event,
        )
    )
