"""Log records in protobuf that are the same byte for byte but for their values: all are cut by one `struct`.

Records of one place in a program often have one length too: then their values stand at the same offsets. One record is
read to learn these, the others are cut there, and what stands between the values must be the same in all.
"""

from __future__ import annotations

import struct
from binascii import hexlify
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from jarvis_collector.columns import Batch, Column, UnlikeError, few, float_column, shown_column, text_column

__all__ = ["MANY", "cut", "decoded", "signed"]

MANY = 64
"""Of fewer records of one length it takes longer to learn where their values stand."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types."""
_FIXED = {1: ("time", "Q"), 8: ("flags", "I"), 11: ("observed", "Q")}
_TEXTS = {3: "severity_text", 9: "trace_id", 10: "span_id", 12: "event"}
_SEVERITY, _BODY, _ATTRIBUTE = 2, 5, 6
"""Field numbers of a LogRecord (opentelemetry-proto, logs.proto)."""
_STRING, _INT, _DOUBLE = 0x0A, 0x18, 0x21
"""Tags of an AnyValue."""

Shown = Callable[[bytes], tuple[type, bytes] | None]


class _Slot(NamedTuple):
    """Where a value stands.

    Attributes:
        name: What it is; `attribute` for one of these.
        form: How `struct` reads it.
        start, end: Its place in the record.
        key: Of an attribute.
        before: Of an attribute that is read by OTLP's own message: what stands before the value in its KeyValue.
    """

    name: str
    form: str
    start: int
    end: int
    key: str = ""
    before: bytes = b""


def cut(records: Sequence[bytes], shown: Shown) -> Batch:
    """The batch of records that have the same length.

    Args:
        records: The LogRecord messages.
        shown: The type and the JSON of a KeyValue message; None where a line cannot show it exactly.

    Raises:
        UnlikeError: They differ in more than their values, or have what is not common.
    """
    first, count = records[0], len(records)
    slots = list(_slots(first))
    # what is the same in some of them is taken for the same in all, and then must be
    samples = (records[-1], records[count // 2])
    varied = [
        slot for slot in slots if any(first[slot.start : slot.end] != one[slot.start : slot.end] for one in samples)
    ]
    form, at = ["<"], 0
    for slot in varied:
        form.append(f"{slot.start - at}s{slot.form}")
        at = slot.end
    form.append(f"{len(first) - at}s")
    pieces = list(zip(*map(struct.Struct("".join(form)).unpack, records), strict=True))
    if any(between.count(between[0]) != count for between in pieces[::2]):
        raise UnlikeError
    values: dict[_Slot, Sequence[Any]] = dict(zip(varied, pieces[1::2], strict=True))
    fields: dict[str, Sequence[Any]] = {}
    columns: list[Column] = []
    for slot in slots:
        column: Sequence[Any] = values.get(slot) or struct.unpack_from(f"<{slot.form}", first, slot.start)
        if slot.name == "attribute":
            columns.append(_column(slot, column, shown))
        elif slot.name in fields:
            raise UnlikeError
        else:
            fields[slot.name] = column if len(column) == count else [column[0]] * count
    nothing, none = (0,) * count, (b"",) * count
    return Batch(
        fields.get("time", nothing),
        fields.get("observed", nothing),
        fields.get("severity", nothing),
        decoded(fields.get("severity_text", none)),
        _texts("body", fields.get("body", none)),
        nothing,
        fields.get("flags", nothing),
        [*map(hexlify, fields.get("trace_id", none))],
        [*map(hexlify, fields.get("span_id", none))],
        decoded(fields.get("event", none)),
        columns,
    )


def _slots(record: bytes) -> Iterator[_Slot]:
    """Where the values of a record stand.

    Raises:
        UnlikeError: It has a field that is not common.
    """
    at = 0
    try:
        while at < len(record):
            tag, at = _varint(record, at)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == _BYTES:
                size, at = _varint(record, at)
                if number == _ATTRIBUTE:
                    yield _attribute_slot(record, at, at + size)
                elif number == _BODY:
                    yield _text_slot("body", record, at, at + size)
                else:
                    yield _Slot(_TEXTS[number], f"{size}s", at, at + size)
                at += size
            elif wire_type in (_FIXED64, _FIXED32):
                name, form = _FIXED[number]
                size = 8 if wire_type == _FIXED64 else 4
                if struct.calcsize(f"<{form}") != size:
                    raise UnlikeError
                yield _Slot(name, form, at, at + size)
                at += size
            elif wire_type == _VARINT and number == _SEVERITY and record[at] < 0x80:
                yield _Slot("severity", "B", at, at + 1)
                at += 1
            else:
                raise UnlikeError
    except (IndexError, KeyError):
        raise UnlikeError from None
    if at != len(record):
        raise UnlikeError


def _text_slot(name: str, record: bytes, start: int, end: int) -> _Slot:
    """Where the text in an AnyValue stands."""
    size, at = _varint(record, start + 1)
    if record[start] != _STRING or at + size != end:
        raise UnlikeError
    return _Slot(name, f"{size}s", at, end)


def _attribute_slot(record: bytes, start: int, end: int) -> _Slot:
    """Where the value of an attribute stands."""
    size, at = _varint(record, start + 1)
    key_end = at + size
    inner, value = _varint(record, key_end + 1)
    if record[start] != 0x0A or record[key_end] != 0x12 or value + inner != end or value == end:
        raise UnlikeError
    try:
        key = record[at:key_end].decode()
    except UnicodeDecodeError:
        raise UnlikeError from None
    if record[value] == _STRING:
        return _text_slot("attribute", record, value, end)._replace(key=key)
    if record[value] == _DOUBLE and end - value == 9:
        return _Slot("attribute", "d", value + 1, end, key)
    return _Slot("attribute", f"{end - value}s", value, end, key, record[start:value])


def _column(slot: _Slot, values: Sequence[Any], shown: Shown) -> Column:
    """The column of an attribute; a single value is that of all records."""
    if slot.before:
        if len(values) > 1 and values[0][0] == _INT and few(values) is None:
            return Column(slot.key, int, [b"%d" % signed(value) for value in values])
        raws = [slot.before + value for value in values]
        return shown_column(slot.key, raws, set(raws), shown)
    column = float_column(slot.key, list(values)) if slot.form == "d" else _texts(slot.key, values)
    return column if len(values) > 1 or isinstance(column.values, bytes) else column._replace(values=column.values[0])


def _texts(key: str, values: Sequence[bytes]) -> Column:
    if values.count(values[0]) < len(values):
        return text_column(key, list(values))
    try:
        return Column(key, str, orjson.dumps(values[0].decode()))
    except UnicodeDecodeError:
        raise UnlikeError from None


def decoded(texts: Sequence[bytes]) -> list[str]:
    """Texts that are mostly the same, each of them decoded once.

    Raises:
        UnlikeError: One of them is no UTF-8.
    """
    try:
        if texts.count(texts[0]) == len(texts):
            return [texts[0].decode()] * len(texts)
        known = {text: text.decode() for text in set(texts)}
    except UnicodeDecodeError:
        raise UnlikeError from None
    return [known[text] for text in texts]


def signed(value: bytes) -> int:
    """The integer in an AnyValue.

    Raises:
        UnlikeError: It is not encoded as it should be.
    """
    try:
        number, end = _varint(value, 1)
    except IndexError:
        raise UnlikeError from None
    if value[0] != _INT or end != len(value):
        raise UnlikeError
    number &= 0xFFFFFFFFFFFFFFFF
    return number - (number >> 63 << 64)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of protobuf's wire format, and where it ends.

    Raises:
        IndexError: It does not end, or is too long.
    """
    number = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise IndexError(at)
