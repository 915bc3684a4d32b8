"""Reads OTLP protobuf requests: what is alike column by column, anything else by OTLP's own messages."""

from __future__ import annotations

import base64
import math
import struct
from binascii import hexlify
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import orjson
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue as AnyValueMessage
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.common.v1.common_pb2 import KeyValue as KeyValueMessage
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as LogRecordMessage
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from jarvis_collector.coarse_protobuf import LogRecord as CoarseRecord
from jarvis_collector.coarse_protobuf import Request
from jarvis_collector.columns import (
    Batch,
    Column,
    UnlikeError,
    batch_lines,
    few,
    fill,
    float_column,
    shown_column,
    shown_json,
    text_column,
)
from jarvis_collector.cut import MANY, cut, decoded, signed
from jarvis_collector.otlp import REMEMBERED_MAX, BadRequestError, Lines, Signal
from jarvis_collector.record import LogRecord, Resource, Scope, format_timestamp, log_line
from jarvis_collector.spans import Event, Link, Span, span_line
from jarvis_collector.values import ATTRIBUTES_MAX, DEPTH_MAX, AnyValue, Attributes, RecordError, double

__all__ = ["read"]

_KEY, _VALUE = 0x0A, 0x12
"""Tags of the wire format in a KeyValue."""
_TEXT, _INTEGER, _DOUBLE = 0x0A, 0x18, 0x21
"""Tags of the wire format in an AnyValue."""
_unpack_double = struct.Struct("<d").unpack_from


class _Kind(NamedTuple):
    """What OTLP calls the parts of a request."""

    groups: str
    scope_groups: str
    records: str


_LOGS = _Kind("resource_logs", "scope_logs", "log_records")
_SPANS = _Kind("resource_spans", "scope_spans", "spans")


def read(signal: Signal, body: bytes, arrival: int) -> Lines:
    """The lines of an OTLP protobuf request; see `otlp.read`."""
    if signal is Signal.METRICS:
        return _metrics(body, arrival)
    try:
        request = Request.FromString(body)
    except DecodeError as error:
        raise BadRequestError(f"not an OTLP request with {signal}: {error}") from None
    out = Lines()
    if signal is Signal.LOGS:
        for where, scope, records in _scopes(request, _LOGS, out):
            _read_logs(where, scope, records, out, arrival)
    else:
        for where, scope, records in _scopes(request, _SPANS, out):
            for k, raw in enumerate(records):
                try:
                    out.lines.append(span_line(scope, _span(raw), arrival))
                except Exception as error:  # whatever is wrong with a span, it is refused alone
                    out.refuse(f"{where}.{_SPANS.records}[{k}]", error)
    return out


def _read_logs(where: str, scope: Scope, records: list[bytes], out: Lines, arrival: int) -> None:
    """Reads log records, those that are alike together."""
    lines: list[bytes | None] = [None] * len(records)
    others = _cut_alike(scope, records, lines)
    rows, places = [], []
    for k in others:
        try:
            rows.append(_row(CoarseRecord.FromString(records[k])))
            places.append(k)
        except DecodeError as error:
            out.refuse(f"{where}.{_LOGS.records}[{k}]", error)
    made: list[bytes | None] = [None] * len(rows)
    alone = fill(scope, rows, _Rows(), made)
    for k, line in zip(places, made, strict=True):
        lines[k] = line
    for k in (places[place] for place in alone):
        try:
            lines[k] = log_line(scope, _log_record(records[k]), arrival)
        except Exception as error:  # whatever is wrong with a record, it is refused alone
            out.refuse(f"{where}.{_LOGS.records}[{k}]", error)
    out.lines += filter(None, lines)


def _cut_alike(scope: Scope, records: list[bytes], lines: list[bytes | None]) -> Sequence[int]:
    """Makes the lines of records that can be cut, and tells the places of the others."""
    if len(records) < MANY:
        return range(len(records))
    by_length: dict[int, list[int]] = defaultdict(list)
    for k, size in enumerate(map(len, records)):
        by_length[size].append(k)
    others: list[int] = []
    for places in by_length.values():
        try:
            if len(places) < MANY:
                raise UnlikeError
            made = batch_lines(scope, cut([records[k] for k in places], _shown_attribute))
        except UnlikeError:
            others += places
        else:
            for k, line in zip(places, made, strict=True):
                lines[k] = line
    others.sort()
    return others


def _scopes(request: Any, kind: _Kind, out: Lines) -> Iterator[tuple[str, Scope, list[bytes]]]:
    """The scopes of a request: where each stands, what it is, and its records."""
    for i, group in enumerate(request.groups):
        for j, scope_group in enumerate(group.scope_groups):
            where = f"{kind.groups}[{i}].{kind.scope_groups}[{j}]"
            records = list(scope_group.records)
            parts = (group.resource, group.schema_url, scope_group.scope, scope_group.schema_url)
            shared = sum(map(len, parts))
            out.expect(len(records), shared)
            try:
                small = shared <= REMEMBERED_MAX
                scope = _known_scope(*parts) if small else _scope(*parts)
            except Exception as error:  # whatever is wrong with it, only its own records are refused
                out.refuse(f"{where}: resource or scope", error, len(records))
            else:
                yield where, scope, records


def _scope(resource_bytes: bytes, resource_url: bytes, scope_bytes: bytes, scope_url: bytes) -> Scope:
    resource = ResourceMessage.FromString(resource_bytes)
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
    scope = InstrumentationScope.FromString(scope_bytes)
    return Scope(
        Resource(
            _attributes(resource.attributes),
            dropped=resource.dropped_attributes_count,
            entity_refs=refs,
            url=resource_url.decode(),
        ),
        scope.name,
        scope.version,
        _attributes(scope.attributes),
        dropped=scope.dropped_attributes_count,
        url=scope_url.decode(),
    )


_known_scope = lru_cache(maxsize=256)(_scope)

_row = attrgetter(
    "time_unix_nano",
    "observed_time_unix_nano",
    "severity_number",
    "severity_text",
    "body",
    "dropped_attributes_count",
    "flags",
    "trace_id",
    "span_id",
    "event_name",
    "attributes",
)
_Row = tuple[int, int, int, bytes, bytes, int, int, bytes, bytes, bytes, Sequence[bytes]]


class _Rows:
    """Log records whose values are not read yet, as `columns` takes them."""

    def batch(self, rows: Sequence[_Row]) -> Batch:
        """The batch of rows that are alike; see `columns.Reader`."""
        time, observed, severity, text, body, dropped, flags, trace_id, span_id, event, attributes = zip(
            *rows, strict=True
        )
        listed = [each[:] for each in attributes]
        if len(set(map(len, listed))) > 1:
            raise UnlikeError
        return Batch(
            time,
            observed,
            severity,
            decoded(text),
            _bodies(body),
            dropped,
            flags,
            [*map(hexlify, trace_id)],
            [*map(hexlify, span_id)],
            decoded(event),
            [_column(raws) for raws in zip(*listed, strict=True)],
        )

    def shape(self, row: _Row) -> Hashable:
        """The keys of the attributes and the kinds of their values; see `columns.Reader`."""
        shape = tuple(raw[: raw[1] + 2] + raw[raw[1] + 4 : raw[1] + 5] if len(raw) > 1 else b"" for raw in row[10])
        return None if b"" in shape else shape


def _bodies(raws: Sequence[bytes]) -> Column:
    values = few(raws)
    if values is None and (texts := _texts(raws)):
        return text_column("body", texts)
    return shown_column("body", raws, values or set(raws), _shown_text)


def _column(raws: Sequence[bytes]) -> Column:
    """The column of an attribute: what is sent is mostly so short that a length is one byte."""
    first = raws[0]
    at = first[1] + 4 if len(first) > 1 and first[0] == _KEY and first[1] < 0x80 else len(first)
    if at >= len(first):
        raise UnlikeError
    head = first[: at - 2]
    try:
        key = head[2:].decode()
        values = few(raws)
        if values is None and (column := _varied_column(key, raws, head, at)) is not None:
            return column
    except (UnicodeDecodeError, IndexError):
        raise UnlikeError from None
    values = values or set(raws)
    if len(values) > 1 and not all(raw.startswith(head) for raw in values):
        raise UnlikeError
    return shown_column(key, raws, values, _shown_attribute)


def _varied_column(key: str, raws: Sequence[bytes], head: bytes, at: int) -> Column | None:
    """The column of an attribute with many values, if they can be read without OTLP's own messages.

    Args:
        key: The attribute's key.
        raws: The attributes.
        head: What each begins with.
        at: Where the AnyValue stands in each.
    """
    first = raws[0]
    kind = first[at]
    count, size = len(raws), len(first)
    if first[at - 2] != _VALUE or first[at - 1] != size - at:
        return None
    if len(set(map(len, raws))) == 1:
        # then all that stands before the content is the same too
        start = at + 2 if kind == _TEXT else at + 1
        before = first[:start]
        if kind == _TEXT and first[at + 1] == size - start:
            texts = [raw[start:] for raw in raws if raw.startswith(before)]
            return text_column(key, texts) if len(texts) == count else None
        if kind == _DOUBLE and size == start + 8:
            numbers = [_unpack_double(raw, start)[0] for raw in raws if raw.startswith(before)]
            return float_column(key, numbers) if len(numbers) == count else None
    values = [
        raw[at:] for raw in raws if raw.startswith(head) and raw[at - 2] == _VALUE and raw[at - 1] == len(raw) - at
    ]
    if len(values) < count:
        return None
    if kind == _TEXT and (texts := _texts(values)):
        return text_column(key, texts)
    if kind == _INTEGER and all(value[0] == _INTEGER for value in values):
        return Column(key, int, [b"%d" % signed(value) for value in values])
    return None


def _texts(values: Sequence[bytes]) -> list[bytes]:
    """The texts in AnyValues; none at all where one of these is another kind, or long."""
    texts = [value[2:] for value in values if len(value) > 2 and value[0] == _TEXT and value[1] == len(value) - 2]
    return texts if len(texts) == len(values) else []


def _shown_text(raw: bytes) -> tuple[type, bytes] | None:
    try:
        text = AnyValueMessage.FromString(raw).string_value
    except DecodeError:
        return None
    return (str, orjson.dumps(text)) if text else None


def _shown_attribute(raw: bytes) -> tuple[type, bytes] | None:
    return _known_attribute(raw) if len(raw) <= REMEMBERED_MAX else _known_attribute.__wrapped__(raw)


@lru_cache(maxsize=4096)
def _known_attribute(raw: bytes) -> tuple[type, bytes] | None:
    try:
        pair = KeyValueMessage.FromString(raw)
        # a key may be sent twice, and then the last one counts
        return shown_json(_attributes([pair])) if pair.key.encode() == raw[2 : raw[1] + 2] else None
    except (DecodeError, RecordError):
        return None


def _log_record(raw: bytes) -> LogRecord:
    record = LogRecordMessage.FromString(raw)
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


def _span(raw: bytes) -> Span:
    span = SpanMessage.FromString(raw)
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
