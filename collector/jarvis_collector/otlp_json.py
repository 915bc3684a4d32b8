"""Reads OTLP/JSON requests: what is alike column by column, anything else by hand."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from math import isfinite
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson

from jarvis_collector.columns import (
    Batch,
    Column,
    UnlikeError,
    few,
    fill,
    float_column,
    shown_column,
    shown_json,
    text_column,
)
from jarvis_collector.otlp import REMEMBERED_MAX, BadRequestError, Lines, Signal
from jarvis_collector.record import LogRecord, Resource, Scope, format_timestamp, log_line
from jarvis_collector.spans import Event, Link, Span, span_line
from jarvis_collector.values import ATTRIBUTES_MAX, DEPTH_MAX, AnyValue, Attributes, RecordError, double

if TYPE_CHECKING:
    from msgspec import Raw

    from jarvis_collector.coarse_json import Record, ResourceLogs

__all__ = ["read"]

_INT64_MIN, _INT64_END, _UINT64_END = -(2**63), 2**63, 2**64
_NESTING_MAX = 400
"""A record whose JSON is nested deeper is cut out unread; DEPTH_MAX is reached long before."""
_SALVAGED_MAX = 4 << 20
"""Of a larger request with such a record nothing is taken: looking for its end would keep others waiting."""
_WAY = b"{[{[{["
"""The brackets that lead to the records."""
# possessive, and with or without its end: what is hostile is passed over once
_MARK = re.compile(r'"(?:[^"\\]|\\.)*+"?|[{}\[\]]', re.DOTALL)

_ATTRIBUTE = b'{"key":'
"""Begins an attribute in compact JSON. In a string its quotes would be escaped; it stands in nested values too, but
what is cut there is no whole attribute."""
_AFTER_KEY, _CONTENT = b',"value":{"', b'Value":'
_DECIMAL = re.compile("-?[0-9]{1,20}")
_HEX = re.compile("(?:[0-9a-fA-F]{2})*")
_SEVERITIES = MappingProxyType(
    {
        f"SEVERITY_NUMBER_{name}{step or ''}": 1 + 4 * place + (step and step - 1)
        for place, name in enumerate(("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"))
        for step in (0, 2, 3, 4)
    }
    | {"SEVERITY_NUMBER_UNSPECIFIED": 0}
)
_KINDS = MappingProxyType(
    {
        f"SPAN_KIND_{name}": number
        for number, name in enumerate(("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"))
    }
)
_STATUSES = MappingProxyType({"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2})


def read(signal: Signal, body: bytes, arrival: int) -> Lines:
    """The lines of an OTLP/JSON request; see `otlp.read`."""
    if signal is Signal.LOGS and (groups := _unread_groups(body)) is not None:
        return _read_alike(groups, arrival)
    request = _parse(body)
    if signal is Signal.METRICS:
        return _metrics(request, arrival)
    out = Lines()
    logs = signal is Signal.LOGS
    groups_key, scope_groups, records = (
        ("resourceLogs", "scopeLogs", "logRecords") if logs else ("resourceSpans", "scopeSpans", "spans")
    )
    for i, group in enumerate(_list(request, groups_key)):
        for j, scope_group in enumerate(_list(group, scope_groups)):
            where = f"{groups_key}[{i}].{scope_groups}[{j}]"
            listed = _list(scope_group, records)
            try:
                scope = _scope(scope_group, _resource(group))
            except Exception as error:  # whatever is wrong with it, only its own records are refused
                out.refuse(f"{where}: resource or scope", error, len(listed))
                continue
            out.expect(len(listed), len(scope.resource.head) + len(scope.resource.tail))
            for k, record in enumerate(listed):
                try:
                    out.lines.append(
                        log_line(scope, _log_record(record), arrival)
                        if logs
                        else span_line(scope, _span(record), arrival)
                    )
                except Exception as error:  # whatever is wrong with a record, it is refused alone
                    out.refuse(f"{where}.{records}[{k}]", error)
    return out


def _unread_groups(body: bytes) -> list[ResourceLogs] | None:
    """The groups of a request, their values unread, if it is as clients usually write it."""
    try:
        from jarvis_collector.coarse_json import resource_logs  # noqa: PLC0415 - whoever reads files may lack msgspec
    except ModuleNotFoundError as error:
        if error.name != "msgspec":
            raise
        return None
    return resource_logs(body)


def _read_alike(groups: list[ResourceLogs], arrival: int) -> Lines:
    """Reads log records, those that are alike together."""
    out = Lines()
    for i, group in enumerate(groups):
        for j, scope_group in enumerate(group.scope_logs):
            where = f"resourceLogs[{i}].scopeLogs[{j}]"
            records = scope_group.log_records
            parts = (bytes(group.resource), group.schema_url, bytes(scope_group.scope), scope_group.schema_url)
            shared = sum(map(len, parts))
            out.expect(len(records), shared)
            try:
                small = shared <= REMEMBERED_MAX
                scope = _known_scope(*parts) if small else _unread_scope(*parts)
            except Exception as error:  # whatever is wrong with it, only its own records are refused
                out.refuse(f"{where}: resource or scope", error, len(records))
                continue
            lines: list[bytes | None] = [None] * len(records)
            for k in fill(scope, records, _Rows(), lines):
                try:
                    lines[k] = log_line(scope, _log_record(_as_parsed(records[k])), arrival)
                except Exception as error:  # whatever is wrong with a record, it is refused alone
                    out.refuse(f"{where}.logRecords[{k}]", error)
            out.lines += filter(None, lines)
    return out


def _unread_scope(resource: bytes, resource_url: str, scope: bytes, scope_url: str) -> Scope:
    group = {"resource": _value(resource), "schemaUrl": resource_url}
    return _scope({"scope": _value(scope), "schemaUrl": scope_url}, _resource(group))


_known_scope = lru_cache(maxsize=256)(_unread_scope)


def _as_parsed(record: Record) -> dict[str, Any]:
    """A record as it is where the whole request was parsed."""
    return {
        "timeUnixNano": record.time_unix_nano,
        "observedTimeUnixNano": record.observed_time_unix_nano,
        "severityNumber": record.severity_number,
        "severityText": record.severity_text,
        "body": _value(bytes(record.body)),
        "attributes": _value(bytes(record.attributes)),
        "droppedAttributesCount": record.dropped_attributes_count,
        "flags": record.flags,
        "traceId": record.trace_id,
        "spanId": record.span_id,
        "eventName": record.event_name,
    }


def _value(text: bytes) -> Any:
    """The value of what was left unread; None of nothing."""
    if not text:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _encodable(json.loads(text))


class _Rows:
    """Log records whose values are not read yet, as `columns` takes them."""

    def batch(self, rows: Sequence[Record]) -> Batch:
        """The batch of rows that are alike; see `columns.Reader`."""
        time, observed, severity, text, body, attributes, dropped, flags, trace_id, span_id, event = zip(
            *map(attrgetter(*rows[0].__struct_fields__), rows), strict=True
        )
        return Batch(
            _times(time),
            _times(observed),
            severity,
            text,
            _bodies(_each(body)),
            dropped,
            flags,
            _ids(trace_id),
            _ids(span_id),
            event,
            _columns(attributes),
        )

    def shape(self, row: Record) -> Hashable:
        """The keys of the attributes and the kinds of their values; see `columns.Reader`."""
        return tuple(piece[: piece.find(_CONTENT)] for piece in bytes(row.attributes).split(_ATTRIBUTE))


def _times(times: Sequence[int | str]) -> list[int]:
    try:
        text = ",".join(times)  # type: ignore[arg-type]
    except TypeError:
        text = ",".join(map(str, times))
    numbers = _numbers(text.encode(), len(times), {int})
    if numbers is None or not 0 <= min(numbers) <= max(numbers) < _UINT64_END:
        raise UnlikeError
    return numbers


def _numbers(joined: bytes, count: int, kinds: set[type]) -> list[Any] | None:
    """So many numbers of these kinds out of their JSON with commas between; None where that is not what it is."""
    # one call for all takes half as long as one for each
    try:
        numbers: list[Any] = orjson.loads(b"[%b]" % joined)
    except orjson.JSONDecodeError:
        return None
    return numbers if len(numbers) == count and kinds.issuperset(map(type, numbers)) else None


def _each(raws: Sequence[Raw]) -> list[bytes]:
    """What was left unread, all at once: one by one takes longer than looking at it."""
    texts = b"\n".join(raws).split(b"\n")
    if len(texts) != len(raws):
        raise UnlikeError
    return texts


def _ids(ids: Sequence[str]) -> list[bytes]:
    joined = "\n".join(ids).encode()
    if joined.translate(None, b"0123456789abcdef\n"):
        raise UnlikeError
    return joined.split(b"\n")


def _bodies(raws: list[bytes]) -> Column:
    values = few(raws)
    if values is None:
        before = b'{"stringValue":"'
        texts = [raw[len(before) : -2] for raw in raws if raw.startswith(before) and raw.endswith(b'"}')]
        if len(texts) == len(raws):
            return _json_texts("body", texts)
    return shown_column("body", raws, values or set(raws), _shown_body)


def _columns(attributes: Sequence[Raw]) -> list[Column]:
    """The columns of attributes: their JSON cut where each attribute begins, `[` and then `"symbol","value":{…}},`."""
    count = bytes(attributes[0]).count(_ATTRIBUTE)
    if not count:
        if set(_each(attributes)) <= {b"", b"[]"}:
            return []
        raise UnlikeError
    pieces = b"".join((*attributes, b"[")).split(_ATTRIBUTE)
    if pieces[0] != b"[" or len(pieces) != 1 + count * len(attributes):
        raise UnlikeError
    # only the last attribute of a record stands before the next record's list: so no piece is another record's
    return [_column(pieces[k::count], b"}}][" if k == count else b"}},") for k in range(1, count + 1)]


def _column(raws: list[bytes], end: bytes) -> Column:
    """The column of an attribute, of which `{"key":` is cut off and which ends so."""
    first = raws[0]
    key_end = first.find(_AFTER_KEY)
    at = first.find(_CONTENT) + len(_CONTENT)
    if not 0 < key_end < at:
        raise UnlikeError
    key = _value(first[:key_end])
    if key.__class__ is not str:
        raise UnlikeError
    values = few(raws)
    if values is None and (column := _varied_column(key, raws, first[:at], end)) is not None:
        return column
    if values is None or len(values) > 1:
        values = values or set(raws)
        if not all(raw.startswith(first[:key_end]) and raw.endswith(end) for raw in values):
            raise UnlikeError
    elif not first.endswith(end):
        raise UnlikeError
    return shown_column(key, raws, values, _shown_attribute if len(end) == 3 else _shown_last)


def _varied_column(key: str, raws: list[bytes], before: bytes, end: bytes) -> Column | None:
    """The column of an attribute with many values, if they can be read as they stand.

    Args:
        key: The attribute's key.
        raws: The attributes.
        before: What each begins with.
        end: What each ends with.
    """
    kind = before[before.rfind(b'"', 0, -2) + 1 :]
    if raws[0].startswith(b'"', len(before)):
        before, end, kind = before + b'"', b'"' + end, kind + b'"'
    start, stop = len(before), -len(end)
    texts = [raw[start:stop] for raw in raws if raw.startswith(before) and raw.endswith(end)]
    if len(texts) < len(raws):
        return None
    if kind == b'stringValue":"':
        return _json_texts(key, texts)
    if kind in (b'intValue":"', b'intValue":'):
        numbers = _numbers(b",".join(texts), len(texts), {int})
        if numbers is not None and _INT64_MIN <= min(numbers) <= max(numbers) < _INT64_END:
            return Column(key, int, orjson.dumps(numbers)[1:-1].split(b","))
    elif kind == b'doubleValue":':
        numbers = _numbers(b",".join(texts), len(texts), {int, float})
        if numbers is not None:
            return float_column(key, [*map(float, numbers)])
    return None


def _json_texts(key: str, texts: list[bytes]) -> Column:
    """The column of texts that stood between the quotes of JSON strings.

    Raises:
        UnlikeError: One of them is more than one string.
    """
    if b"\\" in (joined := b"".join(texts)) or b'"' in joined:
        try:
            return Column(key, str, [orjson.dumps(orjson.loads(b'"%b"' % text)) for text in texts])
        except orjson.JSONDecodeError:
            raise UnlikeError from None
    return text_column(key, texts)


def _shown_body(raw: bytes) -> tuple[type, bytes] | None:
    try:
        text = _body(_value(raw))
    except (ValueError, AttributeError, TypeError):
        return None
    return (str, orjson.dumps(text)) if isinstance(text, str) and text else None


def _shown_attribute(raw: bytes) -> tuple[type, bytes] | None:
    raw = raw[:-1]
    return _known_attribute(raw) if len(raw) <= REMEMBERED_MAX else _known_attribute.__wrapped__(raw)


def _shown_last(raw: bytes) -> tuple[type, bytes] | None:
    return _shown_attribute(raw[:-1])


@lru_cache(maxsize=4096)
def _known_attribute(raw: bytes) -> tuple[type, bytes] | None:
    try:
        return shown_json(_attributes([_value(_ATTRIBUTE + raw)]))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def _parse(body: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        request = _parse_anyhow(body, error)
    if not isinstance(request, dict):
        raise BadRequestError(f"got a JSON {type(request).__name__}, want an object")
    return request


def _parse_anyhow(body: bytes, error: Exception) -> Any:
    """Parses what only a strict parser refuses: broken UTF-8, lone surrogates, NaN, one value nested too deep."""
    text = body.decode("utf-8", "replace")
    try:
        try:
            return _encodable(json.loads(text))
        except RecursionError:
            if len(text) > _SALVAGED_MAX:
                raise
            return _encodable(json.loads(_without_deep_records(text)))
    except (ValueError, RecursionError):
        raise BadRequestError(f"not JSON: {error}") from None


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value


def _without_deep_records(text: str) -> str:
    """The request with `null` in place of each record that is nested too deep."""
    kept, end, start = [], 0, 0
    open_, deepest = bytearray(), 0
    for match in _MARK.finditer(text):
        mark = match.group()
        if mark in "{[":
            if open_ == _WAY:
                start, deepest = match.start(), 0
            # past the limit only the depth counts
            deepest = max(deepest, len(open_))
            open_ += mark.encode()
        elif mark in "}]":
            del open_[-1:]
            if open_ == _WAY and deepest > _NESTING_MAX:
                kept += [text[end:start], "null"]
                end = match.end()
    return "".join([*kept, text[end:]])


def _list(owner: Any, key: str) -> list[Any]:
    value = owner.get(key) if isinstance(owner, dict) else owner
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRequestError(f"{key}: got {type(value).__name__}, want a list")
    return value


def _resource(group: dict[str, Any]) -> Resource:
    resource = group.get("resource") or {}
    refs = [
        {key: ref[key] for key in ("schemaUrl", "type", "idKeys", "descriptionKeys") if ref.get(key)}
        for ref in _list(resource, "entityRefs")
    ]
    return Resource(
        _attributes(resource.get("attributes")),
        dropped=_number(resource.get("droppedAttributesCount")),
        entity_refs=refs,
        url=_text(group.get("schemaUrl")),
    )


def _scope(group: dict[str, Any], resource: Resource) -> Scope:
    scope = group.get("scope") or {}
    return Scope(
        resource,
        _text(scope.get("name")),
        _text(scope.get("version")),
        _attributes(scope.get("attributes")),
        dropped=_number(scope.get("droppedAttributesCount")),
        url=_text(group.get("schemaUrl")),
    )


def _log_record(record: dict[str, Any]) -> LogRecord:
    get = record.get
    body = get("body")
    severity = get("severityNumber", 0)
    return LogRecord(
        _number(get("timeUnixNano")),
        _number(get("observedTimeUnixNano")),
        severity if severity.__class__ is int else _enum(severity, _SEVERITIES),
        _text(get("severityText")),
        _body(body) if body else None,
        _attributes(get("attributes")),
        _number(get("droppedAttributesCount")),
        _number(get("flags")),
        _hex(get("traceId")),
        _hex(get("spanId")),
        _text(get("eventName")),
    )


def _span(span: dict[str, Any]) -> Span:
    status = span.get("status") or {}
    return Span(
        _number(span.get("startTimeUnixNano")),
        _number(span.get("endTimeUnixNano")),
        _text(span.get("name")),
        _enum(span.get("kind"), _KINDS),
        _attributes(span.get("attributes")).values,
        _hex(span.get("traceId")),
        _hex(span.get("spanId")),
        _hex(span.get("parentSpanId")),
        _enum(status.get("code"), _STATUSES),
        _text(status.get("message")),
        [
            Event(
                _number(event.get("timeUnixNano")),
                _text(event.get("name")),
                _attributes(event.get("attributes")).values,
            )
            for event in _list(span, "events")
        ],
        [
            Link(_hex(link.get("traceId")), _hex(link.get("spanId")), _attributes(link.get("attributes")).values)
            for link in _list(span, "links")
        ],
    )


def _body(body: Any) -> str | AnyValue | None:
    text = body.get("stringValue")
    return text if text.__class__ is str else _any_value(body) or None


def _attributes(pairs: list[dict[str, Any]] | None) -> Attributes:
    """Attributes, the common kinds straight to what a line shows, anything else by way of its AnyValue."""
    if not pairs:
        return Attributes({}, [])
    if len(pairs) > ATTRIBUTES_MAX:
        raise RecordError(f"{len(pairs)} attributes, at most {ATTRIBUTES_MAX} are kept")
    values: dict[str, Any] = {}
    try:
        for pair in pairs:
            value = pair["value"]
            if (text := value.get("stringValue")).__class__ is str:
                values[pair["key"]] = text
            elif (number := value.get("intValue")) is not None:
                values[pair["key"]] = _int64(number)
            elif (number := value.get("doubleValue")).__class__ is float and isfinite(number):
                values[pair["key"]] = number
            elif (truth := value.get("boolValue")).__class__ is bool:
                values[pair["key"]] = truth
            elif (array := value.get("arrayValue")).__class__ is dict and (texts := _texts(array)):
                values[pair["key"]] = texts
            else:
                break
    except (KeyError, AttributeError):
        values.clear()
    if len(values) == len(pairs) and all(key.__class__ is str for key in values):
        return Attributes(values, [])
    return Attributes.of([(_text(pair.get("key")), _any_value(pair.get("value"))) for pair in pairs])


def _texts(array: dict[str, Any]) -> list[str]:
    """The items of an array of texts; empty where it is another array."""
    try:
        texts = [item["stringValue"] for item in array["values"]]
    except (KeyError, TypeError):
        return []
    return texts if all(text.__class__ is str for text in texts) else []


def _any_value(value: Any, depth: int = 0) -> AnyValue:
    """An AnyValue in its one spelling; fields that are not known are ignored."""
    if value is None:
        return {}
    if depth > DEPTH_MAX:
        raise RecordError(f"nested deeper than {DEPTH_MAX}")
    for kind, content in value.items():
        if content is None:
            continue
        if kind == "stringValue":
            return {kind: _text(content)}
        if kind == "boolValue":
            if content.__class__ is not bool:
                raise RecordError(f"boolValue: got {content!r}, want true or false")
            return {kind: content}
        if kind == "intValue":
            return {kind: str(_int64(content))}
        if kind == "doubleValue":
            return {kind: double(float(content))}
        if kind == "bytesValue":
            return {kind: base64.b64encode(base64.b64decode(content, validate=True)).decode()}
        if kind == "arrayValue":
            return {kind: {"values": [_any_value(item, depth + 1) for item in content.get("values") or ()]}}
        if kind == "kvlistValue":
            pairs = content.get("values") or ()
            return {
                kind: {
                    "values": [
                        {"key": _text(pair.get("key")), "value": _any_value(pair.get("value"), depth + 1)}
                        for pair in pairs
                    ]
                }
            }
    return {}


def _text(value: Any) -> str:
    if value.__class__ is str:
        return value
    if value is None:
        return ""
    raise RecordError(f"got {type(value).__name__}, want a string")


def _number(value: Any) -> int:
    """An unsigned integer, which OTLP/JSON writes as a decimal string or a number."""
    if value is None:
        return 0
    number = _integer(value)
    if not 0 <= number < _UINT64_END:
        raise RecordError(f"got {number}, want an unsigned 64-bit integer")
    return number


def _int64(value: Any) -> int:
    number = _integer(value)
    if not _INT64_MIN <= number < _INT64_END:
        raise RecordError(f"intValue: got {value}, want a 64-bit integer")
    return number


def _integer(value: Any) -> int:
    # int() would take blanks, underscores and half numbers too
    if value.__class__ is int:
        return int(value)
    if value.__class__ is str and _DECIMAL.fullmatch(value):
        return int(value)
    if value.__class__ is float and value.is_integer():
        return int(value)
    raise RecordError(f"got {str(value)[:40]!r}, want an integer")


def _enum(value: Any, names: Mapping[str, int]) -> int:
    if value is None:
        return 0
    return names[value] if value in names else int(value)


def _hex(value: Any) -> str:
    if not value:
        return ""
    if value.__class__ is not str or not _HEX.fullmatch(value):
        raise RecordError(f"got {str(value)[:40]!r}, want hex digits in pairs")
    return str(value).lower()


def _metrics(request: dict[str, Any], arrival: int) -> Lines:
    out = Lines()
    if groups := _list(request, "resourceMetrics"):
        try:
            out.lines.append(orjson.dumps({"timestamp": format_timestamp(arrival), "resourceMetrics": groups}) + b"\n")
        except orjson.JSONEncodeError as error:
            raise BadRequestError(f"resourceMetrics: {error}") from None
    return out
