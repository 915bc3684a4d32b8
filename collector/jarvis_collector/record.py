"""The log line: what one record looks like in logs/jarvis-YYYY-MM-DD.jsonl, and nothing else defines it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import mmh3
import orjson

from jarvis_collector.values import AnyValue, Attributes, KeyValue, any_value, merged, readable

__all__ = [
    "COMPUTED_UID",
    "CONTEXT_PREFIX",
    "ERROR_KEYS",
    "FLAGS_MAX",
    "FLAG_PREFIX",
    "LEVELS",
    "LINE_KEYS",
    "PLACES",
    "SEVERITY",
    "SOURCE_KEYS",
    "UNKNOWN_SERVICE",
    "LogEntry",
    "LogRecord",
    "Resource",
    "Scope",
    "format_second",
    "format_timestamp",
    "log_line",
    "logs_request",
    "parse_timestamp",
    "timestamp_of",
    "timestamp_range",
]

LINE_KEYS = (
    "timestamp",
    "level",
    "message",
    "service",
    "correlation_id",
    "trace_id",
    "span_id",
    "request_id",
    "user_id",
    "session_id",
    "active_flags",
    "flags",
    "duration_ms",
    "error",
    "event",
    "context",
    "logger",
    "source",
    "_meta",
)
"""The keys of a line in their order; absent when empty, except `active_flags` and `context`."""


FLAGS_MAX = 64
"""So many flags does a line list under `flags`; further ones stay in its `context`."""

UNKNOWN_SERVICE = "unknown_service"
FLAG_PREFIX = "jarvis.flag."
_FLAG_START = len(FLAG_PREFIX)
CONTEXT_PREFIX = "jarvis.context."
"""Before a caller's keyword whose own name is that of another part of the line; `context` shows it without."""
COMPUTED_UID = "#"
"""Begins a uid that was computed here because the record came without one."""

LEVELS = ("INFO", *["DEBUG"] * 8, *["INFO"] * 4, *["WARNING"] * 4, *["ERROR"] * 4, *["CRITICAL"] * 4)
SEVERITY = {"DEBUG": 5, "INFO": 9, "WARNING": 13, "ERROR": 17, "CRITICAL": 21}

_LINE_START = b'{"timestamp":"'
_TIMESTAMP_END = len(_LINE_START) + len("2026-01-02T03:04:05.678901Z")

_TEXT, _INTEGER, _NUMBER = (str,), (int,), (int, float)
# attribute → section of the line, key in it, types that it takes; a plain dict, for it is asked for each attribute
PLACES: Mapping[str, tuple[str, str, tuple[type, ...]]] = {
    "jarvis.service": ("", "service", _TEXT),
    "jarvis.correlation_id": ("", "correlation_id", _TEXT),
    "jarvis.request_id": ("", "request_id", _TEXT),
    "user.id": ("", "user_id", _TEXT),
    "session.id": ("", "session_id", _TEXT),
    "jarvis.active_flags": ("", "active_flags", (list,)),
    "jarvis.duration_ms": ("", "duration_ms", _NUMBER),
    "exception.type": ("error", "type", _TEXT),
    "exception.message": ("error", "message", _TEXT),
    "exception.stacktrace": ("error", "stack_trace", _TEXT),
    "code.file.path": ("source", "file", _TEXT),
    "code.line.number": ("source", "line", _INTEGER),
    "code.function.name": ("source", "function", _TEXT),
    "log.record.uid": ("_meta", "uid", _TEXT),
}
ERROR_KEYS = ("type", "message", "stack_trace")
SOURCE_KEYS = ("file", "line", "function")
_RESOURCE_NAMES = MappingProxyType(
    {"host.name": "hostname", "deployment.environment.name": "environment", "service.version": "version"}
)
_META_OWN = frozenset({*_RESOURCE_NAMES.values(), "uid", "otlp"})


@lru_cache(maxsize=1024)
def format_second(seconds: int) -> str:
    """The part of a timestamp before the point."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def format_timestamp(unix_nano: int) -> str:
    """A time as the line writes it: UTC with microseconds and `Z`; digits below a microsecond are cut off."""
    seconds, nanos = divmod(unix_nano, 1_000_000_000)
    return f"{format_second(seconds)}.{nanos // 1000:06d}Z"


def parse_timestamp(text: str) -> int:
    """The time of a line's `timestamp`, in nanoseconds since 1970.

    Raises:
        ValueError: It is not a time.
    """
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def timestamp_of(line: bytes) -> bytes | None:
    """The timestamp of a line without parsing it (it always comes first), or None where the line is not ours."""
    if line.startswith(_LINE_START) and line[_TIMESTAMP_END - 1 : _TIMESTAMP_END] == b"Z":
        return line[len(_LINE_START) : _TIMESTAMP_END]
    return None


def timestamp_range(block: bytes) -> tuple[bytes, bytes] | None:
    """The earliest and the latest timestamp of whole lines, at least one, or None where one of them is not ours.

    It is `timestamp_of` for many lines at once.
    """
    heads: list[bytes] = []
    take, find = heads.append, block.find
    # the lines themselves need not be cut out
    start, end = 0, len(block)
    while start < end:
        take(block[start : start + _TIMESTAMP_END])
        start = find(b"\n", start) + 1 or end
    joined = b"".join(heads)
    if len(joined) != len(heads) * _TIMESTAMP_END or joined[_TIMESTAMP_END - 1 :: _TIMESTAMP_END].strip(b"Z"):
        return None
    # what begins otherwise comes before all of ours or after them
    first, last = min(heads), max(heads)
    if not first.startswith(_LINE_START) or not last.startswith(_LINE_START):
        return None
    return first[len(_LINE_START) :], last[len(_LINE_START) :]


@dataclass(slots=True)
class LogEntry:
    """One record as the application made it; `str()` of it is its JSON line.

    The values must be JSON-able already (the logger cleans them). Fields are those of the line, with the error's
    and the resource's parts flat.

    Attributes:
        timestamp: UTC with microseconds and `Z`.
        level: DEBUG, INFO, WARNING, ERROR or CRITICAL.
        message: What happened, for people.
        service: The component that says so.
        correlation_id: Links the records of one operation.
        active_flags: Ids of the flags that were on, sorted.
        flags: Variant by flag id of all that was evaluated or declared, off ones too.
        duration_ms: Milliseconds.
        error_type: Bare class name of the exception.
        event: The OpenTelemetry event name.
        context: The caller's own keywords.
        logger: The name of the OpenTelemetry scope.
        source: `file`, `line` and `function` of the call.
        meta: Further resource attributes.
    """

    timestamp: str
    level: str
    message: str
    service: str
    correlation_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    request_id: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    active_flags: list[str] = field(default_factory=list)
    flags: Mapping[str, str] = field(default_factory=dict)
    duration_ms: float | None = None
    error_type: str | None = None
    error_message: str | None = None
    stack_trace: str | None = None
    event: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    logger: str | None = None
    source: Mapping[str, Any] | None = None
    hostname: str = ""
    environment: str = ""
    version: str = ""
    uid: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The line as a dict, keys in their order."""
        error = {"type": self.error_type, "message": self.error_message, "stack_trace": self.stack_trace}
        meta = {"hostname": self.hostname, "environment": self.environment, "version": self.version, "uid": self.uid}
        values = {
            "timestamp": self.timestamp,
            "level": self.level,
            "message": self.message,
            "service": self.service,
            "correlation_id": self.correlation_id,
            "trace_id": self.trace_id,
            "span_id": self.span_id,
            "request_id": self.request_id,
            "user_id": self.user_id,
            "session_id": self.session_id,
            "active_flags": self.active_flags,
            "flags": self.flags or None,
            "duration_ms": self.duration_ms,
            "error": {key: value for key, value in error.items() if value is not None} or None,
            "event": self.event,
            "context": self.context,
            "logger": self.logger,
            "source": self.source,
            "_meta": {key: value for key, value in {**meta, **self.meta}.items() if value not in ("", None)} or None,
        }
        return {key: value for key, value in values.items() if value is not None and value != ""}

    def to_json(self) -> str:
        """The line as JSON text, without a newline."""
        return orjson.dumps(self.to_dict(), default=str, option=orjson.OPT_NON_STR_KEYS).decode()

    __str__ = to_json


class Resource:
    """What the records of one OTLP resource share, made ready once for all their lines.

    Attributes:
        service: Its service.name, None where it has none that can be shown.
        meta: The `_meta` of its lines, without `uid` and `otlp`.
        otlp: What `meta` cannot say of it.
    """

    __slots__ = ("head", "meta", "otlp", "service", "service_name", "tail", "tail_with_service")

    def __init__(
        self,
        attributes: Attributes,
        *,
        dropped: int = 0,
        entity_refs: list[dict[str, Any]] | None = None,
        url: str = "",
    ) -> None:
        named: dict[str, Any] = {}
        others: dict[str, Any] = {}
        exact = list(attributes.exact)
        self.service: str | None = None
        for key, value in attributes.values.items():
            text = value if isinstance(value, str) else ""
            if key == "service.name" and text:
                self.service = text
            elif key in _RESOURCE_NAMES and text:
                named[_RESOURCE_NAMES[key]] = text
            elif key in _META_OWN:
                exact = merged(exact, [{"key": key, "value": any_value(value)}])
            else:
                others[key] = value
        self.meta = {**{name: named[name] for name in _RESOURCE_NAMES.values() if name in named}, **others}
        self.service_name = {} if self.service is None else {"service.name": self.service}
        own = {"attributes": exact, "droppedAttributesCount": dropped, "entityRefs": entity_refs, "schemaUrl": url}
        self.otlp = {key: value for key, value in own.items() if value}
        self.head = b',"_meta":' + _open({key: self.meta[key] for key in self.meta if key not in others}) + b'"uid":'
        self.tail = _close(others)
        self.tail_with_service = _close({**self.service_name, **others})


class Scope:
    """What the records of one OTLP scope share.

    Attributes:
        resource: The resource that it belongs to.
        name: Becomes `logger`.
        otlp: What the lines must carry of it and of its resource in `_meta.otlp`.
        own: What `name` cannot say of the scope alone.
    """

    __slots__ = ("name", "otlp", "own", "resource")

    def __init__(
        self,
        resource: Resource,
        name: str = "",
        version: str = "",
        attributes: Attributes | None = None,
        *,
        dropped: int = 0,
        url: str = "",
    ) -> None:
        listed = attributes.as_otlp() if attributes else []
        own = {"version": version, "attributes": listed, "droppedAttributesCount": dropped, "schemaUrl": url}
        self.resource = resource
        self.name = name
        self.own = {key: value for key, value in own.items() if value}
        self.otlp: dict[str, Any] = {} if resource.service else {"service": "default"}
        if resource.otlp:
            self.otlp["resource"] = resource.otlp
        if self.own:
            self.otlp["scope"] = self.own


class LogRecord(NamedTuple):
    """One OTLP log record in Python's terms, whatever it was encoded in.

    Attributes:
        time, observed: Nanoseconds since 1970; 0 is unknown.
        body: A text as it is, any other AnyValue in its JSON form; None where there is none.
        trace_id, span_id: Lower-case hex; empty where there is none.
    """

    time: int
    observed: int
    severity: int
    severity_text: str
    body: str | AnyValue | None
    attributes: Attributes
    dropped: int
    flags: int
    trace_id: str
    span_id: str
    event: str


def log_line(scope: Scope, record: LogRecord, arrival: int) -> bytes:
    """The line of a record, ending in a newline; together with its `_meta.otlp` it says all that the record says.

    `_meta.otlp` holds only what the rest of the line does not imply: `nanos` (digits below a microsecond), `attributes`
    (those that the line shows otherwise than they are), `context` (keys whose attribute has CONTEXT_PREFIX), `service`
    (`default` or `attribute`: where the service of the line comes from if the resource names none), `resource` and
    `scope`, and fields under their OTLP/JSON names.

    Args:
        scope: The record's scope, with its resource.
        record: The record.
        arrival: Nanoseconds since 1970; the timestamp of a record that has none.
    """
    time_, observed, severity, text, body, (attributes, exact), dropped, flags, trace_id, span_id, event = record
    resource = scope.resource
    otlp: dict[str, Any] = {}
    if time_:
        if nanos := time_ % 1000:
            otlp["nanos"] = nanos
    else:
        otlp["timeUnixNano"] = "0"
    if observed:
        otlp["observedTimeUnixNano"] = str(observed)
    level = LEVELS[severity] if 0 <= severity <= 24 else "INFO" if severity < 0 else "CRITICAL"
    if severity != SEVERITY[level]:
        otlp["severityNumber"] = severity
    if text != level:
        otlp["severityText"] = text
    if body == "" or (body is not None and body.__class__ is not str):
        otlp["body"] = body or {"stringValue": ""}
        shown = readable(otlp["body"])
        body = shown if isinstance(shown, str) else orjson.dumps(shown).decode()
    if trace_id and (len(trace_id) != 32 or trace_id == "0" * 32):
        otlp["traceId"], trace_id = trace_id, ""
    if span_id and (len(span_id) != 16 or span_id == "0" * 16):
        otlp["spanId"], span_id = span_id, ""
    if flags != (1 if trace_id else 0):
        otlp["flags"] = flags
    if dropped:
        otlp["droppedAttributesCount"] = dropped

    found: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    variants: dict[str, str] = {}
    context: dict[str, Any] = {}
    prefixed: list[str] = []
    inexact: list[KeyValue] = []
    for key, value in attributes.items():
        place = PLACES.get(key)
        if place is None:
            if not key.startswith("jarvis."):
                context[key] = value
            elif key.startswith(FLAG_PREFIX) and value.__class__ is str and len(variants) < FLAGS_MAX:
                variants[key[_FLAG_START:]] = value
            elif key.startswith(CONTEXT_PREFIX):
                prefixed.append(key)
            else:
                context[key] = value
            continue
        section, name, types = place
        if value.__class__ not in types:
            context[key] = value
        elif not value and types is not _NUMBER and types is not _INTEGER:
            inexact.append({"key": key, "value": any_value(value)})
        elif section:
            sections.setdefault(section, {})[name] = value
        else:
            found[name] = value

    own_service, correlation_id = found.get("service"), found.get("correlation_id")
    if correlation_id == trace_id:
        inexact.append({"key": "jarvis.correlation_id", "value": {"stringValue": trace_id}})
    active_flags: list[str] = []
    if given := found.get("active_flags"):
        if all(flag.__class__ is str for flag in given):
            active_flags = sorted(given)
            if active_flags != given:
                inexact.append({"key": "jarvis.active_flags", "value": any_value(given)})
        else:
            context["jarvis.active_flags"] = given
    for key in prefixed:
        name = key.removeprefix(CONTEXT_PREFIX)
        if name in context:
            inexact.append({"key": key, "value": any_value(attributes[key])})
        else:
            context[name] = attributes[key]
            otlp.setdefault("context", []).append(name)

    line: dict[str, Any] = {"timestamp": format_timestamp(time_ or observed or arrival), "level": level}
    if body:
        line["message"] = body
    line["service"] = own_service or resource.service or UNKNOWN_SERVICE
    if correlation_id or trace_id:
        line["correlation_id"] = correlation_id or trace_id
    if trace_id:
        line["trace_id"] = trace_id
    if span_id:
        line["span_id"] = span_id
    for name in ("request_id", "user_id", "session_id"):
        if name in found:
            line[name] = found[name]
    line["active_flags"] = active_flags
    if variants:
        line["flags"] = variants
    if "duration_ms" in found:
        line["duration_ms"] = found["duration_ms"]
    uid = None
    if sections:
        if error := sections.get("error"):
            qualified = error.get("type", "")
            bare = qualified.rpartition(".")[2]
            if bare and bare != qualified:
                error["type"] = bare
                inexact.append({"key": "exception.type", "value": {"stringValue": qualified}})
            line["error"] = {key: error[key] for key in ERROR_KEYS if key in error}
        uid = sections.get("_meta", {}).get("uid")
        if uid and uid.startswith(COMPUTED_UID):
            inexact.append({"key": "log.record.uid", "value": {"stringValue": uid}})
    if event:
        line["event"] = event
    line["context"] = context
    if scope.name:
        line["logger"] = scope.name
    if source := sections.get("source"):
        line["source"] = {key: source[key] for key in SOURCE_KEYS if key in source}

    if exact or inexact:
        otlp["attributes"] = merged(exact, inexact)
    if scope.otlp:
        otlp.update(scope.otlp)
        if own_service and "service" in otlp:
            otlp["service"] = "attribute"
    said = orjson.dumps(line)
    extra = b',"otlp":' + orjson.dumps(otlp) if otlp else b""
    tail = resource.tail_with_service if own_service else resource.tail
    if uid is None:
        # a resent record must get the same uid, so the time of its arrival has no part in it
        content = said if time_ else said[_TIMESTAMP_END:]
        # no cryptographic hash: who wants two records to share a uid can simply send it
        uid = COMPUTED_UID + mmh3.hash_bytes(b"".join((resource.head, tail, extra, content))).hex()
    return b"".join((said[:-1], resource.head, orjson.dumps(uid), extra, tail))


def _open(members: dict[str, Any]) -> bytes:
    return orjson.dumps(members)[:-1] + (b"," if members else b"")


def _close(members: dict[str, Any]) -> bytes:
    return (b"," if members else b"") + orjson.dumps(members)[1:-1] + b"}}\n"


def logs_request(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The OTLP/JSON request that says what these lines say: for those made by `log_line`, what was received.

    Args:
        lines: Parsed lines.
    """
    resources: dict[bytes, tuple[dict[str, Any], dict[bytes, dict[str, Any]]]] = {}
    for line in lines:
        resource, scope, record = _otlp_parts(line)
        _, scopes = resources.setdefault(orjson.dumps(resource), (resource, {}))
        scopes.setdefault(orjson.dumps(scope), {**scope, "logRecords": []})["logRecords"].append(record)
    return {
        "resourceLogs": [{**resource, "scopeLogs": list(scopes.values())} for resource, scopes in resources.values()]
    }


def _otlp_parts(line: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A line as OTLP/JSON: its resource and its scope, each with the schema URL beside it, and its record."""
    meta = line.get("_meta", {})
    otlp = meta.get("otlp", {})
    attributes = _record_attributes(line, meta, otlp)
    trace_id = otlp.get("traceId") or line.get("trace_id", "")
    time_ = int(otlp.get("timeUnixNano", parse_timestamp(line["timestamp"]) + otlp.get("nanos", 0)))
    record = {
        "timeUnixNano": str(time_) if time_ else None,
        "observedTimeUnixNano": otlp.get("observedTimeUnixNano"),
        "severityNumber": otlp.get("severityNumber", SEVERITY[line["level"]]),
        "severityText": otlp.get("severityText", line["level"]),
        "body": otlp.get("body") or ({"stringValue": line["message"]} if "message" in line else None),
        "attributes": attributes,
        "droppedAttributesCount": otlp.get("droppedAttributesCount"),
        "flags": otlp.get("flags", 1 if "trace_id" in line else 0),
        "traceId": trace_id,
        "spanId": otlp.get("spanId") or line.get("span_id"),
        "eventName": line.get("event"),
    }
    own_resource, own_scope = otlp.get("resource", {}), otlp.get("scope", {})
    resource = {
        "attributes": _resource_attributes(line, meta, otlp),
        "droppedAttributesCount": own_resource.get("droppedAttributesCount"),
        "entityRefs": own_resource.get("entityRefs"),
    }
    scope = {
        "name": line.get("logger"),
        **{key: own_scope.get(key) for key in ("version", "attributes", "droppedAttributesCount")},
    }
    return (
        _present({"resource": _present(resource), "schemaUrl": own_resource.get("schemaUrl")}),
        _present({"scope": _present(scope), "schemaUrl": own_scope.get("schemaUrl")}),
        _present(record),
    )


def _record_attributes(line: Mapping[str, Any], meta: Mapping[str, Any], otlp: Mapping[str, Any]) -> list[KeyValue]:
    attributes: dict[str, Any] = {}
    for attribute, (section, name, _) in PLACES.items():
        value = (line.get(section, {}) if section else line).get(name)
        if value not in (None, []):
            attributes[attribute] = value
    if not _service_is_attribute(meta, otlp):
        attributes.pop("jarvis.service", None)
    if line.get("correlation_id") == line.get("trace_id"):
        attributes.pop("jarvis.correlation_id", None)
    if meta.get("uid", "").startswith(COMPUTED_UID):
        del attributes["log.record.uid"]
    attributes.update({FLAG_PREFIX + key: value for key, value in line.get("flags", {}).items()})
    prefixed = otlp.get("context", ())
    attributes.update(
        {CONTEXT_PREFIX + key if key in prefixed else key: line["context"][key] for key in line["context"]}
    )
    return _with_exact(attributes, otlp.get("attributes", []))


def _service_is_attribute(meta: Mapping[str, Any], otlp: Mapping[str, Any]) -> bool:
    return otlp.get("service") == "attribute" or ("service.name" in meta and otlp.get("service") != "default")


def _resource_attributes(line: Mapping[str, Any], meta: Mapping[str, Any], otlp: Mapping[str, Any]) -> list[KeyValue]:
    attributes = {key: meta[name] for key, name in _RESOURCE_NAMES.items() if name in meta}
    if "service" not in otlp:
        # where `service` is a component's, the resource's own name stands in _meta
        attributes["service.name"] = line["service"]
    attributes.update({key: value for key, value in meta.items() if key not in _META_OWN})
    return _with_exact(attributes, otlp.get("resource", {}).get("attributes", []))


def _with_exact(attributes: Mapping[str, Any], exact: list[KeyValue]) -> list[KeyValue]:
    """The attributes as OTLP lists them, those given exactly in place of the shown ones."""
    keys = {pair["key"] for pair in exact}
    return [{"key": key, "value": any_value(value)} for key, value in attributes.items() if key not in keys] + exact


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in (None, "", 0, [], {})}
