"""Any Python value as JSON within bounds, and one log record as OTLP/JSON or as its line."""

from __future__ import annotations

import logging
import math
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from enum import Enum
from functools import lru_cache
from itertools import islice
from json.encoder import encode_basestring as _quote
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from opentelemetry.trace import SpanContext, TraceFlags

from jarvis_collector.record import (
    CONTEXT_PREFIX,
    FLAG_PREFIX,
    FLAGS_MAX,
    PLACES,
    SEVERITY,
    LogEntry,
    format_timestamp,
)

if TYPE_CHECKING:
    from jarvis_otel.redaction import Redactor

__all__ = [
    "OWN_KEYWORDS",
    "RECORD_MAX",
    "SEVERITIES",
    "TEXT_MAX",
    "ErrorInfo",
    "Record",
    "Severity",
    "Source",
    "clean",
    "clean_text",
    "is_plain_key",
    "log_entry",
    "merge_flags",
    "operation_attributes",
    "otlp_attributes",
    "otlp_record",
    "otlp_scope",
    "redact",
    "sdk_attributes",
    "severity_of",
    "source_attributes",
    "span_ids",
]

TEXT_MAX = 32 * 1024
"""Characters of one string; the rest is cut off visibly."""
DEPTH_MAX = 8
ITEMS_MAX = 1000
"""Items and keys of one value, nested ones counted."""
RECORD_MAX = 256 * 1024
"""Bytes of one encoded record; above it the whole record shares one budget of characters."""

_RESERVED = frozenset(PLACES)
_RESERVED_PREFIXES = (FLAG_PREFIX, CONTEXT_PREFIX)

OWN_KEYWORDS = frozenset({"correlation_id", "duration_ms", "request_id", "session_id", "user_id"})
"""Keywords of a call that have a key of their own on the line."""

_CUT = re.compile(r"…\[truncated [0-9]+\]\Z")
_CUT_MAX = 40
_AS_THEY_ARE = frozenset({bool, float, type(None)})
_SCALARS = _AS_THEY_ARE | {str, int}
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
    {getattr(logging, level): Severity(level, number, level) for level, number in SEVERITY.items()}
)
"""By the level numbers of the logging module."""
_HIGHEST_FIRST = sorted(SEVERITIES.items(), reverse=True)


def severity_of(levelno: int) -> Severity:
    """The severity of a level number; one between two levels counts as the lower."""
    for floor, severity in _HIGHEST_FIRST:
        if levelno >= floor:
            return severity
    return SEVERITIES[logging.DEBUG]


Source = tuple[str, int, str]
"""Where a record was made: file, line, function."""


class ErrorInfo(NamedTuple):
    """An exception as text; `type` is qualified, `name` is the bare class name."""

    type: str
    name: str
    message: str
    stack_trace: str


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
        if kind in _AS_THEY_ARE:
            return value
        if kind is int:
            return value if _INT_MIN <= value <= _INT_MAX else self.text(value)
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
        if len(text) > limit and not (limit == TEXT_MAX and _is_cut(text)):
            text = f"{text[:limit]}…[truncated {len(text) - limit}]"
        self.chars -= len(text)
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> Any:
        size = len(value)
        if depth >= DEPTH_MAX:
            return f"…[truncated {size}]"
        pairs = list(islice(value.items(), self.items))
        self.items -= len(pairs)
        cleaned: dict[str, Any] = {}
        left = size
        for key, item in pairs:
            if self.chars <= 0:  # nothing would be left of the keys to tell them apart
                break
            name = self.text(key)
            cleaned[name] = self.clean(item, depth + 1)
            left -= 1
        if left:
            cleaned["…"] = f"…[truncated {left}]"
        return cleaned

    def _sequence(self, value: Any, depth: int) -> Any:
        size = len(value)
        if depth >= DEPTH_MAX:
            return f"…[truncated {size}]"
        items = list(islice(value, self.items))
        self.items -= len(items)
        cleaned = [self.clean(item, depth + 1) for item in items]
        if isinstance(value, set | frozenset):
            cleaned.sort(key=str)
        if size > len(items):
            cleaned.append(f"…[truncated {size - len(items)}]")
        return cleaned


def _is_cut(text: str) -> bool:
    """Whether a text was cut off before: to cut it once more would only hide how much was.

    Redaction may have moved the place of the cut since.
    """
    return len(text) <= TEXT_MAX + _CUT_MAX and _CUT.search(text, len(text) - _CUT_MAX) is not None


def _text_of(value: Any) -> str:
    depth = getattr(_asking, "depth", 0)
    if depth >= _ASKING_MAX:
        return _unprintable(value)
    _asking.depth = depth + 1
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            text, rest = bytes(value[:TEXT_MAX]).decode("utf-8", "backslashreplace"), len(value) - TEXT_MAX
            return f"{text}…[truncated {rest}]" if rest > 0 else text
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


def _value(value: Any) -> str:
    """The JSON text of an OTLP AnyValue; what is no plain scalar is cleaned first."""
    kind = type(value)
    if kind is str and len(value) <= TEXT_MAX:
        return f'{{"stringValue":{_quote(value)}}}'
    if kind is bool:
        return '{"boolValue":true}' if value else '{"boolValue":false}'
    if kind is int and _INT_MIN <= value <= _INT_MAX:
        return f'{{"intValue":"{value}"}}'
    return orjson.dumps(_any_value(clean(value))).decode()


def _any_value(value: Any) -> dict[str, Any]:
    """A cleaned value as an OTLP/JSON AnyValue."""
    kind = type(value)
    if kind is str:
        return {"stringValue": value}
    if kind is bool:
        return {"boolValue": value}
    if kind is int:
        return {"intValue": str(value)}
    if kind is float:
        return {"doubleValue": value if math.isfinite(value) else _NOT_FINITE[str(value)]}
    if kind is dict:
        return {"kvlistValue": {"values": [{"key": key, "value": _any_value(item)} for key, item in value.items()]}}
    return {"arrayValue": {"values": list(map(_any_value, value))}} if kind is list else {}


def redact(record: Record, redactor: Redactor) -> None:
    """Takes the secrets out of a record, and notes in the attribute `jarvis.redacted` where they were.

    Args:
        record: What was composed; values that are no plain scalars are cleaned on the way.
        redactor: Knows what a secret looks like.
    """
    places: list[str] = []
    record.message = redactor.scrub(_tame(record.message), "", "message", places)
    if record.keywords:
        record.keywords = redactor.scrub(_tame_each(record.keywords), "", "context", places)
    if record.error is not None:
        record.error = record.error._replace(
            message=redactor.scrub(record.error.message, "", "error.message", places),
            stack_trace=redactor.scrub(record.error.stack_trace, "", "error.stack_trace", places),
        )
    if record.attributes:
        record.attributes = redactor.scrub(_tame_each(record.attributes), "", "attributes", places)
    if places:
        record.attributes = {**record.attributes, "jarvis.redacted": places}


def _tame(value: Any) -> Any:
    # a text is cut before anybody searches it: the search costs more than all the rest
    if type(value) not in _SCALARS or (type(value) is str and len(value) > TEXT_MAX):
        return clean(value)
    return value


def _tame_each(values: Mapping[str, Any]) -> Any:
    # each has bounds of its own: one that is too large takes nothing from its neighbours
    return {key: _tame(value) for key, value in values.items()} if len(values) <= ITEMS_MAX else clean(values)


def otlp_record(record: Record, process_service: str | None = None) -> bytes:
    """One OTLP/JSON LogRecord object; never raises, whatever the caller's keywords are.

    Its attributes are those that `jarvis_collector.record` makes the line's own keys of, and the caller's keywords.

    Args:
        record: What was composed.
        process_service: `service.name` of the resource; a record of another service names its own.
    """
    try:
        if len(record.keywords) <= ITEMS_MAX:
            data = _otlp_text(record, process_service).encode()
            if len(data) <= RECORD_MAX:
                return data
    except Exception:  # text that is no Unicode, keys that are no text: cleaned below, off the fast path
        pass
    return _otlp_text(_cleaned(record), process_service).encode()


def _otlp_text(record: Record, process_service: str | None) -> str:
    # Written as text, and what repeats is remembered: a third of the time of building a tree and encoding that.
    attributes = [_keyword(key) + _value(value) + "}" for key, value in record.keywords.items()]
    if record.attributes:
        attributes += [_attribute(key, value) for key, value in record.attributes.items()]
    shared = operation_attributes(
        record.correlation_id, record.user_id, record.request_id, record.session_id, record.flags
    )
    if shared:
        attributes.append(shared)
    if record.duration_ms is not None:
        attributes.append(_attribute("jarvis.duration_ms", record.duration_ms))
    if record.service != process_service:
        attributes.append(_attribute("jarvis.service", record.service))
    if record.error is not None:
        attributes.append(_attribute("exception.type", record.error.type))
        attributes.append(_attribute("exception.message", record.error.message))
        attributes.append(_attribute("exception.stacktrace", record.error.stack_trace))
    if record.source is not None:
        attributes.append(source_attributes(record.source))
    if record.uid:
        attributes.append(f'{{"key":"log.record.uid","value":{{"stringValue":"{record.uid}"}}}}')
    severity, span = record.severity, record.span
    ids = span_ids(span.trace_id, span.span_id, span.trace_flags) if span is not None else ""
    event = f',"eventName":{_quote(record.event)}' if record.event is not None else ""
    return (
        f'{{"timeUnixNano":"{record.time_ns}"'
        f',"severityNumber":{severity.number},"severityText":{_quote(severity.text)}'
        f',"body":{_value(record.message)},"attributes":[{",".join(attributes)}]{ids}{event}}}'
    )


def _attribute(key: str, value: Any) -> str:
    return f'{{"key":{_quote(key)},"value":{_value(value)}}}'


def is_plain_key(key: str) -> bool:
    """Whether a caller's keyword is an attribute under its own name, and joins the line's `context`."""
    return key not in _RESERVED and key not in OWN_KEYWORDS and not key.startswith(_RESERVED_PREFIXES)


def merge_flags(
    evaluated: Mapping[str, tuple[str, bool]], declared: Mapping[str, tuple[str, bool]]
) -> Mapping[str, tuple[str, bool]]:
    """Both together, at most FLAGS_MAX; what was evaluated beats what is declared."""
    flags = dict(evaluated)
    for flag, result in declared.items():
        if len(flags) < FLAGS_MAX:
            flags.setdefault(flag, result)
    return flags


@lru_cache(maxsize=4096)
def _keyword(key: str) -> str:
    """The beginning of an attribute that is a caller's keyword; see CONTEXT_PREFIX."""
    name = f"{CONTEXT_PREFIX}{key}" if key in _RESERVED or key.startswith(_RESERVED_PREFIXES) else key
    return f'{{"key":{_quote(name)},"value":'


def operation_attributes(
    correlation_id: str | None,
    user_id: str | None,
    request_id: str | None,
    session_id: str | None,
    flags: Mapping[str, tuple[str, bool]],
) -> str:
    """What the records of an operation have in common; empty where that is nothing.

    Args:
        correlation_id, user_id, request_id, session_id: As they leave the process.
        flags: Variant, and whether that counts as on, by flag id.
    """
    attributes = ""
    if correlation_id is not None:
        attributes = f',{{"key":"jarvis.correlation_id","value":{{"stringValue":{_quote(correlation_id)}}}}}'
    if user_id is not None:
        attributes += f',{{"key":"user.id","value":{{"stringValue":{_quote(user_id)}}}}}'
    if request_id is not None:
        attributes += f',{{"key":"jarvis.request_id","value":{{"stringValue":{_quote(request_id)}}}}}'
    if session_id is not None:
        attributes += f',{{"key":"session.id","value":{{"stringValue":{_quote(session_id)}}}}}'
    if flags:
        attributes += "," + _flag_attributes(tuple(flags.items()))
    return attributes[1:]


@lru_cache(maxsize=256)
def _flag_attributes(flags: tuple[tuple[str, tuple[str, bool]], ...]) -> str:
    """Most operations of a service evaluate the same flags with the same results."""
    attributes = [_attribute(f"{FLAG_PREFIX}{flag}", variant) for flag, (variant, _) in flags]
    if active := _active(dict(flags)):
        values = ",".join(map(_value, active))
        attributes.append(f'{{"key":"jarvis.active_flags","value":{{"arrayValue":{{"values":[{values}]}}}}}}')
    return ",".join(attributes)


def span_ids(trace_id: int, span_id: int, flags: int) -> str:
    """The ids of a span on the wire, which end a record."""
    # sampled or not; that the id is random, the other bit, would only make each line longer
    trace, span = trace_id.to_bytes(16, "big").hex(), span_id.to_bytes(8, "big").hex()
    return f',"traceId":"{trace}","spanId":"{span}","flags":{flags & TraceFlags.SAMPLED}'


def sdk_attributes(record: Record) -> dict[str, Any]:
    """The attributes that `otlp_record` writes, as the processors of the OpenTelemetry SDK take them."""
    written = orjson.loads(otlp_record(record))["attributes"]
    return {attribute["key"]: _python_value(attribute["value"]) for attribute in written}


def _python_value(value: dict[str, Any]) -> Any:
    kind: str
    content: Any
    kind, content = next(iter(value.items()), ("", None))
    if kind == "intValue":
        return int(content)
    if kind == "doubleValue":
        return float(content)
    if kind == "arrayValue":
        return [_python_value(item) for item in content["values"]]
    if kind == "kvlistValue":
        return {item["key"]: _python_value(item["value"]) for item in content["values"]}
    return content


def _active(flags: Mapping[str, tuple[str, bool]]) -> list[str]:
    return sorted([flag for flag, (_, on) in flags.items() if on])


@lru_cache(maxsize=4096)
def source_attributes(source: Source) -> str:
    """The three code.* attributes; a place in the code is encoded once, and logs many times."""
    file, line, function = source
    named = {"code.file.path": clean_text(file), "code.line.number": line, "code.function.name": clean_text(function)}
    return ",".join(_attribute(key, value) for key, value in named.items())


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
    """An OTLP/JSON ScopeLogs object without its records, open at the end: `{"scope":{…},"logRecords":[`.

    Args:
        name: The scope's name: that of the logger.
        version: Its version.
        schema_url: The schema that its attributes follow.
        attributes: Attributes of the scope.
    """
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
    return [{"key": key, "value": _any_value(value)} for key, value in clean(dict(attributes)).items()]


def log_entry(record: Record, resource: Mapping[str, Any]) -> LogEntry:
    """The record as the line shows it, for standard logging and the console.

    Args:
        record: What was composed.
        resource: The process's resource attributes, by their OpenTelemetry names.
    """
    cleaned = _cleaned(record)
    error, span, source = cleaned.error, cleaned.span, None
    if cleaned.source is not None:
        file, line, function = cleaned.source
        source = {"file": clean_text(file), "line": line, "function": clean_text(function)}
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
        source=source,
        hostname=clean_text(resource.get("host.name", "")),
        environment=clean_text(resource.get("deployment.environment.name", "")),
        version=clean_text(resource.get("service.version", "")),
        uid=cleaned.uid,
    )
