"""Any Python value as JSON within bounds, and one log record as OTLP/JSON or as its line."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from enum import Enum
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson
from opentelemetry.trace import SpanContext, TraceFlags

from jarvis_collector.record import LogEntry, format_timestamp

__all__ = [
    "CONTEXT_PREFIX",
    "SEVERITIES",
    "ErrorInfo",
    "Record",
    "Severity",
    "Source",
    "clean",
    "clean_text",
    "log_entry",
    "otlp_attributes",
    "otlp_record",
    "otlp_scope",
    "sdk_attributes",
    "severity_of",
]

TEXT_MAX = 32 * 1024
"""Characters of one string; the rest is cut off visibly."""
DEPTH_MAX = 8
ITEMS_MAX = 1000
"""Items and keys of one value, nested ones counted."""
RECORD_MAX = 256 * 1024
"""Bytes of one encoded record; above it the whole record shares one budget of characters."""

CONTEXT_PREFIX = "jarvis.context."
"""On the wire, before a caller's keyword whose own name the table of design 5.1 gives to something else."""

_RESERVED = frozenset(
    {
        "code.file.path",
        "code.function.name",
        "code.line.number",
        "exception.message",
        "exception.stacktrace",
        "exception.type",
        "jarvis.active_flags",
        "jarvis.correlation_id",
        "jarvis.duration_ms",
        "jarvis.request_id",
        "jarvis.service",
        "log.record.uid",
        "session.id",
        "user.id",
    }
)
_RESERVED_PREFIXES = ("jarvis.flag.", CONTEXT_PREFIX)

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_NOT_FINITE = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}

# How deep the text of a value is being asked for in this thread: a __str__ that logs its own object must end.
_asking = threading.local()
_ASKING_MAX = 3


class Severity(NamedTuple):
    """A level as the line and as the wire say it."""

    level: str
    number: int
    text: str


SEVERITIES: Mapping[int, Severity] = MappingProxyType(
    {
        logging.DEBUG: Severity("DEBUG", 5, "DEBUG"),
        logging.INFO: Severity("INFO", 9, "INFO"),
        logging.WARNING: Severity("WARNING", 13, "WARNING"),
        logging.ERROR: Severity("ERROR", 17, "ERROR"),
        logging.CRITICAL: Severity("CRITICAL", 21, "CRITICAL"),
    }
)
"""By the level numbers of the logging module."""


def severity_of(levelno: int) -> Severity:
    """The severity of a level number; one between two levels counts as the lower."""
    known = SEVERITIES.get(levelno)
    if known is None:
        known = next(
            (s for floor, s in reversed(list(SEVERITIES.items())) if levelno >= floor), SEVERITIES[logging.DEBUG]
        )
    return known


class ErrorInfo(NamedTuple):
    """An exception as text; `type` is qualified, `name` is the bare class name."""

    type: str
    name: str
    message: str
    stack_trace: str


class Source(NamedTuple):
    """Where a record was made."""

    file: str
    line: int
    function: str


@dataclass(slots=True)
class Record:
    """One log record as it was composed: what the wire form and the line are made from.

    Attributes:
        time_ns: Unix time in nanoseconds, whole microseconds.
        severity: Level of the line and of the wire.
        message: The body; text for our own records, any value for those of other OpenTelemetry loggers.
        service: The component that logs.
        logger: Name of the scope.
        keywords: The caller's own keywords, as given; they become the line's `context`.
        span: Context of the current span, if it is valid.
        flags: Variant, and whether that counts as on, by flag id.
        event: The OpenTelemetry event name.
        attributes: OTLP attributes that are written as they are.
        uid: Unique id of the record; empty where nothing is shipped.
    """

    time_ns: int
    severity: Severity
    message: Any
    service: str
    logger: str
    keywords: Mapping[str, Any]
    span: SpanContext | None = None
    correlation_id: str | None = None
    request_id: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    duration_ms: float | None = None
    flags: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    error: ErrorInfo | None = None
    source: Source | None = None
    event: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    uid: str = ""


def clean(value: Any) -> Any:
    """The value as JSON can carry it within OTLP's limits; never raises.

    Text that is no Unicode is escaped, integers beyond 64 bit and objects become text, and what is too deep, too
    long or too much is cut off with `…[truncated n]`.
    """
    return _Cleaner().clean(value)


def clean_text(value: Any) -> str:
    """The text of a value as JSON can carry it; never raises."""
    return _Cleaner().text(value)


class _Cleaner:
    """Cleans values that share one budget of items and characters."""

    __slots__ = ("chars", "items")

    def __init__(self, chars: int = 4 * TEXT_MAX) -> None:
        self.items = ITEMS_MAX
        self.chars = chars

    def clean(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is float:
            return value
        if kind is int and _INT_MIN <= value <= _INT_MAX:
            return value
        try:
            if isinstance(value, Mapping):
                return self._mapping(value, depth)
            if isinstance(value, list | tuple | set | frozenset | deque):
                return self._sequence(value, depth)
            if isinstance(value, Enum):
                return self.clean(value.value, depth + 1) if depth < DEPTH_MAX else self.text(value.name)
            if isinstance(value, float):
                return float.__float__(value)
            if isinstance(value, int) and _INT_MIN <= int.__int__(value) <= _INT_MAX:
                return int.__int__(value)
        except Exception:  # an object may lie about its class, or change while it is walked
            return _unprintable(value)
        return self.text(value)

    def text(self, value: Any) -> str:
        text = value if type(value) is str else _text_of(value)
        limit = max(0, min(TEXT_MAX, self.chars))
        if len(text) > limit:
            text = f"{text[:limit]}…[truncated {len(text) - limit}]"
        self.chars -= len(text)
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> Any:
        size = len(value)
        if depth >= DEPTH_MAX:
            return f"…[truncated {size}]"
        pairs = list(islice(value.items(), max(0, self.items)))
        self.items -= len(pairs)
        cleaned = {self.text(key): self.clean(item, depth + 1) for key, item in pairs}
        if size > len(pairs):
            cleaned["…"] = f"…[truncated {size - len(pairs)}]"
        return cleaned

    def _sequence(self, value: Any, depth: int) -> Any:
        size = len(value)
        if depth >= DEPTH_MAX:
            return f"…[truncated {size}]"
        items = list(islice(value, max(0, self.items)))
        self.items -= len(items)
        cleaned = [self.clean(item, depth + 1) for item in items]
        if isinstance(value, set | frozenset):
            cleaned.sort(key=str)
        if size > len(items):
            cleaned.append(f"…[truncated {size - len(items)}]")
        return cleaned


def _text_of(value: Any) -> str:
    depth = getattr(_asking, "depth", 0)
    if depth >= _ASKING_MAX:
        return _unprintable(value)
    _asking.depth = depth + 1
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value[: TEXT_MAX + 1]).decode("utf-8", "backslashreplace")
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, datetime | date | time):
            return value.isoformat()
        if isinstance(value, BaseException):
            return f"{type(value).__name__}: {value}"
        return str.__str__(str(value))
    except Exception:  # whatever a caller's __str__ raises, the record must go on
        return _unprintable(value)
    finally:
        _asking.depth = depth


def _unprintable(value: Any) -> str:
    return f"<unprintable {type(value).__name__}>"


def any_value(value: Any) -> dict[str, Any]:
    """An OTLP/JSON AnyValue; what is no plain scalar is cleaned first."""
    kind = type(value)
    if kind is str and len(value) <= TEXT_MAX:
        return {"stringValue": value}
    if kind is bool:
        return {"boolValue": value}
    if kind is int and _INT_MIN <= value <= _INT_MAX:
        return {"intValue": str(value)}
    if kind is float:
        return {"doubleValue": value if math.isfinite(value) else _NOT_FINITE[str(value)]}
    if value is None:
        return {}
    return _clean_any_value(clean(value))


def _clean_any_value(value: Any) -> dict[str, Any]:
    kind = type(value)
    if kind is dict:
        return {"kvlistValue": {"values": [{"key": key, "value": _clean_any_value(v)} for key, v in value.items()]}}
    if kind is list:
        return {"arrayValue": {"values": [_clean_any_value(item) for item in value]}}
    # text that was cut is a little longer than the limit, and must not be cut again
    return {"stringValue": value} if kind is str else any_value(value)


def otlp_record(record: Record, process_service: str | None = None) -> bytes:
    """One OTLP/JSON LogRecord object; never raises, whatever the caller's keywords are.

    The attributes are those of the table in design 5.1.

    Args:
        record: What was composed.
        process_service: `service.name` of the resource; a record of another service names its own.
    """
    try:
        data = orjson.dumps(_otlp_tree(record, process_service))
        if len(data) <= RECORD_MAX:
            return data
    except Exception:  # text that is no Unicode, keys that are no text: cleaned below, off the fast path
        pass
    return orjson.dumps(_otlp_tree(_cleaned(record), process_service))


def _otlp_tree(record: Record, process_service: str | None) -> dict[str, Any]:
    attributes: list[Any] = [{"key": key, "value": any_value(value)} for key, value in _attributes(record).items()]
    if record.service != process_service:
        attributes.append({"key": "jarvis.service", "value": {"stringValue": record.service}})
    if active := _active(record.flags):
        values = [{"stringValue": flag} for flag in active]
        attributes.append({"key": "jarvis.active_flags", "value": {"arrayValue": {"values": values}}})
    if record.source is not None:
        attributes.append(_source_attributes(record.source))
    tree = {
        "timeUnixNano": str(record.time_ns),
        "severityNumber": record.severity.number,
        "severityText": record.severity.text,
        "body": any_value(record.message),
        "attributes": attributes,
    }
    if record.span is not None:
        tree["traceId"] = f"{record.span.trace_id:032x}"
        tree["spanId"] = f"{record.span.span_id:016x}"
        # sampled or not; that the id is random, the other bit, would only make each line longer
        tree["flags"] = record.span.trace_flags & TraceFlags.SAMPLED
    if record.event is not None:
        tree["eventName"] = record.event
    return tree


def _attributes(record: Record) -> dict[str, Any]:
    """The attributes of the wire whose value is a scalar or the caller's own."""
    attributes = {
        f"{CONTEXT_PREFIX}{key}" if "." in key and _is_reserved(key) else key: value
        for key, value in record.keywords.items()
    }
    if record.attributes:
        attributes.update(record.attributes)
    if record.correlation_id is not None:
        attributes["jarvis.correlation_id"] = record.correlation_id
    if record.user_id is not None:
        attributes["user.id"] = record.user_id
    if record.request_id is not None:
        attributes["jarvis.request_id"] = record.request_id
    if record.session_id is not None:
        attributes["session.id"] = record.session_id
    if record.duration_ms is not None:
        attributes["jarvis.duration_ms"] = record.duration_ms
    for flag, (variant, _) in record.flags.items():
        attributes[f"jarvis.flag.{flag}"] = variant
    if record.error is not None:
        attributes["exception.type"] = record.error.type
        attributes["exception.message"] = record.error.message
        attributes["exception.stacktrace"] = record.error.stack_trace
    if record.uid:
        attributes["log.record.uid"] = record.uid
    return attributes


def sdk_attributes(record: Record) -> dict[str, Any]:
    """The same attributes as `otlp_record` writes, for the processors of the OpenTelemetry SDK; cleaned."""
    cleaned = _cleaned(record)
    attributes = _attributes(cleaned)
    if active := _active(cleaned.flags):
        attributes["jarvis.active_flags"] = active
    if cleaned.source is not None:
        attributes["code.file.path"] = clean_text(cleaned.source.file)
        attributes["code.line.number"] = cleaned.source.line
        attributes["code.function.name"] = clean_text(cleaned.source.function)
    return attributes


def _is_reserved(key: str) -> bool:
    return key in _RESERVED or key.startswith(_RESERVED_PREFIXES)


def _active(flags: Mapping[str, tuple[str, bool]]) -> list[str]:
    return sorted([flag for flag, (_, on) in flags.items() if on])


@lru_cache(maxsize=4096)
def _source_attributes(source: Source) -> orjson.Fragment:
    """The three code.* attributes; a place in the code is encoded once, and logs many times."""
    items = (
        {"key": "code.file.path", "value": {"stringValue": clean_text(source.file)}},
        {"key": "code.line.number", "value": {"intValue": str(source.line)}},
        {"key": "code.function.name", "value": {"stringValue": clean_text(source.function)}},
    )
    return orjson.Fragment(b",".join(map(orjson.dumps, items)))


def _cleaned(record: Record) -> Record:
    """The record with every text made Unicode and the whole within one budget; what identifies it goes first."""
    cleaner = _Cleaner(chars=RECORD_MAX // 4)
    ids: dict[str, Any] = {
        name: cleaner.text(value)
        for name in ("service", "logger", "correlation_id", "request_id", "user_id", "session_id", "event")
        if (value := getattr(record, name)) is not None
    }
    return replace(
        record,
        **ids,
        severity=Severity(record.severity.level, record.severity.number, cleaner.text(record.severity.text)),
        flags={cleaner.text(flag): (cleaner.text(variant), on) for flag, (variant, on) in record.flags.items()},
        message=cleaner.clean(record.message),
        error=record.error and ErrorInfo(*map(cleaner.text, record.error)),
        attributes=cleaner.clean(record.attributes),
        keywords=cleaner.clean(record.keywords),
    )


def otlp_scope(
    name: str, version: str | None = None, schema_url: str | None = None, attributes: Mapping[str, Any] | None = None
) -> bytes:
    """An OTLP/JSON ScopeLogs object without its records, open at the end: `{"scope":{…},"logRecords":[`."""
    scope: dict[str, Any] = {"name": clean_text(name)}
    if version:
        scope["version"] = clean_text(version)
    if attributes:
        scope["attributes"] = otlp_attributes(attributes)
    tree: dict[str, Any] = {"scope": scope}
    if schema_url:
        tree["schemaUrl"] = clean_text(schema_url)
    return orjson.dumps(tree)[:-1] + b',"logRecords":['


def otlp_attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """OTLP/JSON attributes of a resource or scope."""
    return [{"key": key, "value": _clean_any_value(value)} for key, value in clean(dict(attributes)).items()]


def log_entry(record: Record, resource: Mapping[str, Any]) -> LogEntry:
    """The record as the line shows it, for standard logging and the console.

    Args:
        record: What was composed.
        resource: The process's resource attributes, by their OpenTelemetry names.
    """
    cleaned = _cleaned(record)
    error, span, source = cleaned.error, cleaned.span, cleaned.source
    trace_id = f"{span.trace_id:032x}" if span is not None else None
    message = cleaned.message
    return LogEntry(
        timestamp=format_timestamp(cleaned.time_ns),
        level=cleaned.severity.level,
        message=message if isinstance(message, str) else orjson.dumps(message).decode(),
        service=cleaned.service,
        correlation_id=cleaned.correlation_id or trace_id,
        trace_id=trace_id,
        span_id=f"{span.span_id:016x}" if span is not None else None,
        request_id=cleaned.request_id,
        user_id=cleaned.user_id,
        session_id=cleaned.session_id,
        active_flags=_active(cleaned.flags),
        flags={flag: variant for flag, (variant, _) in cleaned.flags.items()},
        duration_ms=cleaned.duration_ms,
        error_type=error.name if error else None,
        error_message=error.message if error else None,
        stack_trace=error.stack_trace if error else None,
        event=cleaned.event,
        context={**cleaned.attributes, **cleaned.keywords},
        logger=cleaned.logger,
        source={"file": clean_text(source.file), "line": source.line, "function": source.function} if source else None,
        hostname=clean_text(resource.get("host.name", "")),
        environment=clean_text(resource.get("deployment.environment.name", "")),
        version=clean_text(resource.get("service.version", "")),
        uid=cleaned.uid,
    )
