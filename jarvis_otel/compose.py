"""How a record is composed: what was said, in which operation and span, under which flags, and without secrets."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from opentelemetry import trace

from jarvis_collector.record import LogEntry
from jarvis_otel.context import Operation, current_operation
from jarvis_otel.encode import (
    OWN_KEYWORDS,
    SEVERITIES,
    ErrorInfo,
    Record,
    Source,
    clean_text,
    log_entry,
    merge_flags,
    redact,
    severity_of,
)
from jarvis_otel.runtime import RUNTIME

__all__ = [
    "bare_record",
    "compose",
    "compose_standard",
    "entry_of",
    "error_of",
    "extra_of",
    "message_of",
    "next_number",
    "process_service",
    "resource_attributes",
]

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

_RECORD_SIZE = len(_RECORD_FIELDS)


def compose(
    *,
    number: int,
    time_ns: int,
    level: int,
    message: str,
    service: str,
    logger: str,
    keywords: dict[str, Any],
    operation: Operation | None,
    error: ErrorInfo | None,
    source: Source | None,
    event: str | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Record:
    """The record with all that the operation and the span around the caller know, and without secrets.

    Args:
        number: Its number in the pipeline.
        time_ns: Unix time in nanoseconds, whole microseconds.
        level: A number of the logging module.
        message: What happened.
        service: The component that logs.
        logger: The name of the scope.
        keywords: Of the call, and those of the operation; ids among them win over the operation's.
        operation: The operation that it belongs to, if there is one.
        error: The exception that it tells of.
        source: Where the call stands.
        event: The OpenTelemetry event name.
        attributes: OTLP attributes that are written as they are.
    """
    span = trace.get_current_span().get_span_context()
    correlation_id = user_id = request_id = session_id = None
    evaluated: Mapping[str, tuple[str, bool]] = {}
    declared: tuple[str, ...] = ()
    if operation is not None:
        correlation_id, user_id = operation.correlation_id, operation.user_id
        request_id, session_id = operation.request_id, operation.session_id
        evaluated, declared = operation.evaluated, operation.declared
    duration_ms = None
    if not OWN_KEYWORDS.isdisjoint(keywords):
        keywords = dict(keywords)
        correlation_id = _taken(keywords, "correlation_id", correlation_id)
        user_id = _taken(keywords, "user_id", user_id)
        request_id = _taken(keywords, "request_id", request_id)
        session_id = _taken(keywords, "session_id", session_id)
        if type(keywords.get("duration_ms")) in (int, float):
            duration_ms = keywords.pop("duration_ms")
    pipeline = RUNTIME.pipeline
    record = Record(
        time_ns=time_ns,
        severity=SEVERITIES.get(level) or severity_of(level),
        message=message,
        service=service,
        logger=logger,
        keywords=keywords,
        span=span if span.is_valid else None,
        correlation_id=correlation_id,
        request_id=request_id,
        user_id=user_id and RUNTIME.redactor.pseudonym(user_id),
        session_id=session_id,
        duration_ms=duration_ms,
        flags=merge_flags(evaluated, RUNTIME.declared_flags(service, user_id, declared)),
        error=error,
        source=source,
        event=event,
        attributes=attributes or {},
        uid=f"{pipeline.uid_prefix}-{number}" if pipeline is not None else "",
    )
    redact(record, RUNTIME.redactor)
    return record


def next_number() -> int:
    """The number of the next record in the pipeline; 0 where there is none."""
    return next(RUNTIME.pipeline.numbers) if RUNTIME.pipeline is not None else 0


def bare_record(level: int, message: object, service: str, problem: Exception) -> Record:
    """What is left of a record that could not be composed: its message, and what was in the way.

    Args:
        level: A number of the logging module.
        message: What happened.
        service: The component that logs.
        problem: What composing it raised.
    """
    now = time.time_ns()
    record = Record(
        now - now % 1000, severity_of(level), clean_text(message), service, service, {"logging_problem": problem}
    )
    try:
        redact(record, RUNTIME.redactor)
    except Exception:  # what cannot be looked into does not leave
        record.message, record.keywords = "a record that could not be written", {}
    return record


def _taken(keywords: dict[str, Any], name: str, otherwise: str | None) -> str | None:
    """An id out of the keywords; None there leaves the operation's."""
    if name not in keywords:
        return otherwise
    value = keywords.pop(name)
    return otherwise if value is None else clean_text(value)


def error_of(exc_info: object) -> tuple[ErrorInfo | None, Any]:
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
    return _described(kind if isinstance(kind, type) else type(error), error, frames), triple


def _described(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> ErrorInfo:
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


def compose_standard(log_record: logging.LogRecord, number: int | None = None) -> Record:
    """A record of standard logging with the same context as our own; `extra=` fields become keywords.

    Args:
        log_record: A record that is not ours.
        number: Its number in the pipeline; the next one if None.
    """
    message, keywords = message_of(log_record), extra_of(log_record)
    operation = current_operation()
    if operation is not None and operation.fields:
        keywords = {**operation.fields, **keywords}
    return compose(
        number=next_number() if number is None else number,
        time_ns=int(log_record.created * 1e6) * 1000,
        level=log_record.levelno,
        message=message,
        service=process_service() or log_record.name,
        logger=log_record.name,
        keywords=keywords,
        operation=operation,
        error=error_of(log_record.exc_info)[0] if log_record.exc_info else None,
        source=(log_record.pathname, log_record.lineno, log_record.funcName or "") if log_record.pathname else None,
    )


def message_of(log_record: logging.LogRecord) -> str:
    """The message of a record of standard logging, its arguments filled in; it never raises."""
    try:
        return log_record.getMessage()
    except Exception:  # the arguments do not fit the message, or their text raises
        return f"{clean_text(log_record.msg)} {clean_text(log_record.args)}"


def extra_of(log_record: logging.LogRecord) -> dict[str, Any]:
    """What was added to a record of standard logging by `extra=`."""
    fields = vars(log_record)
    # most records have nothing that the factory did not give them
    if len(fields) <= _RECORD_SIZE and fields.keys() <= _RECORD_FIELDS:
        return {}
    return {key: value for key, value in fields.items() if key not in _RECORD_FIELDS}


def entry_of(log_record: logging.LogRecord) -> LogEntry:
    """What a LogRecord, ours or not, looks like as a line."""
    if isinstance(log_record.msg, LogEntry):
        return log_record.msg
    record = compose_standard(log_record, number=0)
    record.uid = ""
    return log_entry(record, resource_attributes())


def process_service() -> str | None:
    """The `service.name` of this process, where one is known."""
    if RUNTIME.pipeline is not None and (name := RUNTIME.pipeline.resource.get("service.name")):
        return str(name)
    return RUNTIME.settings.service_name if RUNTIME.settings is not None else None


def resource_attributes() -> Mapping[str, Any]:
    """The attributes of this process's OpenTelemetry resource, where they are known."""
    return RUNTIME.pipeline.resource if RUNTIME.pipeline is not None else {}
