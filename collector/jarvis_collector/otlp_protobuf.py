"""Reads OTLP protobuf requests: parsed by the protobuf library, walked by hand."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue as AnyValueMessage
from opentelemetry.proto.common.v1.common_pb2 import KeyValue as KeyValueMessage
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as LogRecordMessage
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs, ScopeLogs
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from jarvis_collector.otlp import BadRequestError, Lines, Signal
from jarvis_collector.record import LogRecord, Resource, Scope, format_timestamp, log_line
from jarvis_collector.spans import Event, Link, Span, span_line
from jarvis_collector.values import ATTRIBUTES_MAX, DEPTH_MAX, AnyValue, Attributes, RecordError, double

__all__ = ["read"]


class _Kind(NamedTuple):
    """Where a signal keeps its records: the request's class and the names of the repeated fields on the way down."""

    request: type[ExportLogsServiceRequest | ExportTraceServiceRequest]
    groups: str
    scope_groups: str
    records: str


_LOGS = _Kind(ExportLogsServiceRequest, "resource_logs", "scope_logs", "log_records")
_SPANS = _Kind(ExportTraceServiceRequest, "resource_spans", "scope_spans", "spans")


def read(signal: Signal, body: bytes, arrival: int) -> Lines:
    """The lines of an OTLP protobuf request; see `otlp.read`."""
    if signal is Signal.METRICS:
        return _metrics(body, arrival)
    out = Lines()
    kind = _LOGS if signal is Signal.LOGS else _SPANS
    request: Any
    try:
        request = kind.request.FromString(body)
    except DecodeError as error:
        request = _salvaged(body, kind, out, error)
    for i, group in enumerate(getattr(request, kind.groups)):
        for j, scope_group in enumerate(getattr(group, kind.scope_groups)):
            where = f"{kind.groups}[{i}].{kind.scope_groups}[{j}]"
            records = getattr(scope_group, kind.records)
            try:
                scope = _scope(scope_group, _resource(group))
            except Exception as error:  # whatever is wrong with it, only its own records are refused
                out.refuse(f"{where}: resource or scope", error, len(records))
                continue
            for k, record in enumerate(records):
                try:
                    out.lines.append(
                        log_line(scope, _log_record(record), arrival)
                        if kind is _LOGS
                        else span_line(scope, _span(record), arrival)
                    )
                except Exception as error:  # whatever is wrong with a record, it is refused alone
                    out.refuse(f"{where}.{kind.records}[{k}]", error)
    return out


def _salvaged(body: bytes, kind: _Kind, out: Lines, error: Exception) -> Any:
    """The request without the records that the parser refuses (broken UTF-8, nested too deep).

    In all signals the groups are field 1 of a request, scope groups field 2 of these, records field 2 of those.
    """
    request: Any = kind.request()
    try:
        for i, (_, group_bytes) in enumerate(_fields(body, 1)):
            group = getattr(request, kind.groups).add()
            where = f"{kind.groups}[{i}]"
            scope_groups = [content for _, content in _fields(group_bytes, 2)]
            try:
                group.MergeFromString(_without(group_bytes, 2))
            except DecodeError as bad:
                out.refuse(f"{where}.resource", bad, sum(1 for part in scope_groups for _ in _fields(part, 2)))
                continue
            for j, scope_bytes in enumerate(scope_groups):
                scope_group = getattr(group, kind.scope_groups).add()
                records = getattr(scope_group, kind.records)
                where = f"{kind.groups}[{i}].{kind.scope_groups}[{j}]"
                try:
                    scope_group.MergeFromString(_without(scope_bytes, 2))
                except DecodeError as bad:
                    out.refuse(f"{where}.scope", bad, sum(1 for _ in _fields(scope_bytes, 2)))
                    continue
                for k, (_, record_bytes) in enumerate(_fields(scope_bytes, 2)):
                    try:
                        records.add().MergeFromString(record_bytes)
                    except DecodeError as bad:
                        del records[-1]
                        out.refuse(f"{where}.{kind.records}[{k}]", bad)
    except _WireError:
        raise BadRequestError(f"not an OTLP {kind.request.DESCRIPTOR.name}: {error}") from None
    return request


class _WireError(ValueError):
    """Bytes that do not follow the wire format of protobuf."""


def _fields(message: bytes, wanted: int) -> Iterator[tuple[slice, bytes]]:
    """The embedded messages of one field number: where each field stands, and its content."""
    at, size = 0, len(message)
    while at < size:
        start = at
        tag, at = _varint(message, at)
        wire_type = tag & 7
        content = at
        if wire_type == 0:
            _, at = _varint(message, at)
        elif wire_type == 1:
            at += 8
        elif wire_type == 2:
            length, content = _varint(message, at)
            at = content + length
        elif wire_type == 5:
            at += 4
        else:
            raise _WireError
        if at > size:
            raise _WireError
        if tag >> 3 == wanted and wire_type == 2:
            yield slice(start, at), message[content:at]


def _without(message: bytes, number: int) -> bytes:
    """The message without the embedded messages of one field number."""
    kept, end = [], 0
    for place, _ in _fields(message, number):
        kept.append(message[end : place.start])
        end = place.stop
    return b"".join([*kept, message[end:]])


def _varint(message: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise _WireError


def _resource(group: ResourceLogs | ResourceSpans) -> Resource:
    resource = group.resource
    refs = [
        {
            key: value
            for key, value in (
                ("schemaUrl", ref.schema_url),
                ("type", ref.type),
                ("idKeys", list(ref.id_keys)),
                ("descriptionKeys", list(ref.description_keys)),
            )
            if value
        }
        for ref in resource.entity_refs
    ]
    return Resource(
        _attributes(resource.attributes),
        dropped=resource.dropped_attributes_count,
        entity_refs=refs,
        url=group.schema_url,
    )


def _scope(group: ScopeLogs | ScopeSpans, resource: Resource) -> Scope:
    scope = group.scope
    return Scope(
        resource,
        scope.name,
        scope.version,
        _attributes(scope.attributes),
        dropped=scope.dropped_attributes_count,
        url=group.schema_url,
    )


def _log_record(record: LogRecordMessage) -> LogRecord:
    body = record.body
    return LogRecord(
        record.time_unix_nano,
        record.observed_time_unix_nano,
        record.severity_number,
        record.severity_text,
        body.string_value or _any_value(body) or None,
        _attributes(record.attributes),
        record.dropped_attributes_count,
        record.flags,
        record.trace_id.hex(),
        record.span_id.hex(),
        record.event_name,
    )


def _span(span: SpanMessage) -> Span:
    return Span(
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.name,
        span.kind,
        _attributes(span.attributes).values,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.status.code,
        span.status.message,
        [Event(event.time_unix_nano, event.name, _attributes(event.attributes).values) for event in span.events],
        [Link(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes).values) for link in span.links],
    )


def _attributes(pairs: Sequence[KeyValueMessage]) -> Attributes:
    """Attributes, the common kinds straight to what a line shows, anything else by way of its AnyValue."""
    count = len(pairs)
    if count > ATTRIBUTES_MAX:
        raise RecordError(f"{count} attributes, at most {ATTRIBUTES_MAX} are kept")
    values: dict[str, Any] = {}
    for pair in pairs:
        value = pair.value
        # asking for the kind costs more than looking for the most likely content first
        if text := value.string_value:
            values[pair.key] = text
        elif number := value.int_value:
            values[pair.key] = number
        else:
            kind = value.WhichOneof("value")
            if kind == "double_value" and math.isfinite(value.double_value):
                values[pair.key] = value.double_value
            elif kind in ("string_value", "int_value", "bool_value"):
                values[pair.key] = getattr(value, kind)
            elif kind == "array_value" and (texts := [item.string_value for item in value.array_value.values]):
                if not all(texts):
                    break
                values[pair.key] = texts
            else:
                break
    if len(values) == count:
        return Attributes(values, [])
    return Attributes.of([(pair.key, _any_value(pair.value)) for pair in pairs])


def _any_value(value: AnyValueMessage, depth: int = 0) -> AnyValue:
    """An AnyValue in its JSON form. What belongs to profiles only (string_value_strindex) counts as absent."""
    if depth > DEPTH_MAX:
        raise RecordError(f"nested deeper than {DEPTH_MAX}")
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return {"stringValue": value.string_value}
    if kind == "bool_value":
        return {"boolValue": value.bool_value}
    if kind == "int_value":
        return {"intValue": str(value.int_value)}
    if kind == "double_value":
        return {"doubleValue": double(value.double_value)}
    if kind == "bytes_value":
        return {"bytesValue": base64.b64encode(value.bytes_value).decode()}
    if kind == "array_value":
        return {"arrayValue": {"values": [_any_value(item, depth + 1) for item in value.array_value.values]}}
    if kind == "kvlist_value":
        pairs = value.kvlist_value.values
        return {
            "kvlistValue": {"values": [{"key": pair.key, "value": _any_value(pair.value, depth + 1)} for pair in pairs]}
        }
    return {}


def _metrics(body: bytes, arrival: int) -> Lines:
    try:
        request = ExportMetricsServiceRequest.FromString(body)
    except DecodeError as error:
        raise BadRequestError(f"not an OTLP ExportMetricsServiceRequest: {error}") from None
    out = Lines()
    if request.resource_metrics:
        content = MessageToDict(request, use_integers_for_enums=True)
        _hex_ids(content)
        out.lines.append(orjson.dumps({"timestamp": format_timestamp(arrival), **content}) + b"\n")
    return out


def _hex_ids(content: Any) -> None:
    """The ids of exemplars as OTLP/JSON writes them; the protobuf library writes all bytes in base64."""
    if isinstance(content, list):
        for item in content:
            _hex_ids(item)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key in ("traceId", "spanId") and isinstance(value, str):
                content[key] = base64.b64decode(value).hex()
            else:
                _hex_ids(value)
