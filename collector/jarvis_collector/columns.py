"""The lines of many records that are alike, made column by column: what they share is said once.

Under load records are alike: one place in one program that fires again and again. The same attributes then stand in the
same order, and the lines differ in a few values only. `fill` makes exactly the lines that `record.log_line` makes of
such records one by one, at a fraction of the cost; whatever is not common it leaves to that.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import repeat
from operator import eq
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import mmh3
import orjson

from jarvis_collector.record import (
    COMPUTED_UID,
    CONTEXT_PREFIX,
    ERROR_KEYS,
    FLAG_PREFIX,
    FLAGS_MAX,
    LEVELS,
    PLACES,
    SEVERITY,
    SOURCE_KEYS,
    UNKNOWN_SERVICE,
    Scope,
    format_second,
)
from jarvis_collector.values import ATTRIBUTES_MAX, Attributes

__all__ = [
    "Batch",
    "Column",
    "Reader",
    "UnlikeError",
    "batch_lines",
    "few",
    "fill",
    "float_column",
    "shown_column",
    "shown_json",
    "text_column",
]

_FEW = 3
"""So few records are made one by one: a batch costs as much as some of them."""

_SMALL, _PARTS = 32, 8
"""A batch of so many with a record that is not common is made one by one; a larger one is cut into so many parts."""

_TIME_END = 253_402_300_800 * 1_000_000_000
"""The end of the year 9999: there is no timestamp for later times."""

_NANOS = [b"", *(b'"nanos":%d,' % nanos for nanos in range(1, 1000))]
_PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')
"""The bytes that are their own JSON."""

_Row = TypeVar("_Row")
_Read_contra = TypeVar("_Read_contra", contravariant=True)


class UnlikeError(Exception):
    """These records are not alike, or one of them is not common: each has to be looked at for itself."""


class Column(NamedTuple):
    """One attribute of all records of a batch.

    Attributes:
        key: Its key.
        kind: The type of its values as a line shows them; one for all.
        values: The JSON of each record's value; a single one stands for all.
        bare: Whether the values are texts whose quotes are still to be set.
    """

    key: str
    kind: type
    values: bytes | Sequence[bytes]
    bare: bool = False

    def holds(self, json: bytes) -> bool:
        """Whether one of its values is this JSON string."""
        wanted = json[1:-1] if self.bare else json
        return self.values == wanted if isinstance(self.values, bytes) else wanted in self.values

    def jsons(self) -> Iterable[bytes]:
        """The JSON of each record's value, for ever where it is one for all."""
        if isinstance(self.values, bytes):
            return repeat(self.values)
        return (b'"%b"' % value for value in self.values) if self.bare else self.values


class Batch(NamedTuple):
    """Records with the same attributes in the same order, column by column; see `record.LogRecord`.

    Attributes:
        body: The texts of their bodies.
        trace_id, span_id: Lower-case hex.
        columns: The attributes.
    """

    time: Sequence[int]
    observed: Sequence[int]
    severity: Sequence[int]
    severity_text: Sequence[str]
    body: Column
    dropped: Sequence[int]
    flags: Sequence[int]
    trace_id: Sequence[bytes]
    span_id: Sequence[bytes]
    event: Sequence[str]
    columns: Sequence[Column]


class Reader(Protocol[_Read_contra]):
    """What knows an encoding; a row is one record in it."""

    def batch(self, rows: Sequence[_Read_contra]) -> Batch:
        """The batch of rows that are alike.

        Raises:
            UnlikeError: They are not.
        """
        ...

    def shape(self, row: _Read_contra) -> Hashable:
        """What rows have in common that can be in one batch; None of a row that fits no batch."""
        ...


def fill(scope: Scope, rows: Sequence[_Row], reader: Reader[_Row], lines: list[bytes | None]) -> list[int]:
    """Makes the lines of the records of a scope that are alike.

    Args:
        scope: The scope.
        rows: Its records.
        reader: What knows their encoding.
        lines: Gets the line of each record at the record's place; it is as long as `rows`.

    Returns:
        The places of the other records, whose lines are to be made one by one.
    """
    if len(rows) < _FEW:
        return list(range(len(rows)))
    try:
        lines[:] = batch_lines(scope, reader.batch(rows))
    except UnlikeError:
        shapes: dict[Hashable, list[int]] = {}
        for place, row in enumerate(rows):
            shapes.setdefault(reader.shape(row), []).append(place)
    else:
        return []
    others: list[int] = shapes.pop(None, [])
    for places in shapes.values():
        # one record that is not common must not cost all those beside it: they are tried in ever smaller parts
        parts = [places] if len(places) < len(rows) else _parts(places)
        while parts:
            part = parts.pop()
            if len(part) < _FEW:
                others += part
                continue
            try:
                made = batch_lines(scope, reader.batch([rows[place] for place in part]))
            except UnlikeError:
                if len(part) < _SMALL:
                    others += part
                else:
                    parts += _parts(part)
            else:
                for place, line in zip(part, made, strict=True):
                    lines[place] = line
    return sorted(others)


def _parts(places: list[int]) -> list[list[int]]:
    size = -(-len(places) // _PARTS)
    return [places[start : start + size] for start in range(0, len(places), size)]


def few(raws: Sequence[bytes]) -> set[bytes] | None:
    """The values of a column that has so few that each is better looked at once; None of any other column."""
    values = set(raws)
    return values if len(values) * 4 <= len(raws) else None


def shown_column(
    key: str, raws: Sequence[bytes], values: Iterable[bytes], shown: Callable[[bytes], tuple[type, bytes] | None]
) -> Column:
    """The column of an attribute each of whose values is looked at once.

    Args:
        key: Its key.
        raws: Its values as they were sent.
        values: All that are among them.
        shown: The type and the JSON of a value; None where a line cannot show it exactly.

    Raises:
        UnlikeError: The values are of several types, or cannot be shown.
    """
    jsons: dict[bytes, bytes] = {}
    kinds: set[type] = set()
    for raw in values:
        each = shown(raw)
        if each is None:
            raise UnlikeError
        kinds.add(each[0])
        jsons[raw] = each[1]
    if len(kinds) > 1:
        raise UnlikeError
    return Column(key, kinds.pop(), jsons[raws[0]] if len(jsons) == 1 else [jsons[raw] for raw in raws])


def text_column(key: str, texts: list[bytes]) -> Column:
    """The column of an attribute whose values are these texts, in UTF-8.

    Raises:
        UnlikeError: One of them is no UTF-8.
    """
    if not b"".join(texts).translate(None, _PLAIN):
        return Column(key, str, texts, bare=True)
    try:
        return Column(key, str, [orjson.dumps(text.decode()) for text in texts])
    except UnicodeDecodeError:
        raise UnlikeError from None


def float_column(key: str, numbers: list[float]) -> Column:
    """The column of an attribute whose values are these numbers.

    Raises:
        UnlikeError: One of them is no finite number.
    """
    # one call for all: orjson writes null for what JSON cannot say
    values = orjson.dumps(numbers)
    if b"null" in values:
        raise UnlikeError
    return Column(key, float, values[1:-1].split(b","))


def shown_json(attributes: Attributes) -> tuple[type, bytes] | None:
    """The type and the JSON of a single attribute's value; None where a line cannot show it exactly."""
    if attributes.exact:
        return None
    (value,) = attributes.values.values()
    return value.__class__, orjson.dumps(value)


class _Template:
    """A text with columns in it."""

    def __init__(self) -> None:
        self._text: list[bytes] = []
        self._columns: list[Sequence[Any]] = []

    def add(self, text: bytes) -> Self:
        """Text that all lines have."""
        self._text.append(text.replace(b"%", b"%%") if b"%" in text else text)
        return self

    def put(self, values: bytes | Sequence[Any], form: bytes = b"%b") -> Self:
        """The values of a column; a single one is for all lines."""
        if isinstance(values, bytes):
            return self.add(values)
        self._text.append(form)
        self._columns.append(values)
        return self

    def json(self, column: Column) -> Self:
        """The JSON of an attribute."""
        return self.put(column.values, b'"%b"' if column.bare else b"%b")

    def object(self, before: bytes, members: Sequence[tuple[str, Column]], after: bytes) -> Self:
        """A JSON object of attributes under their names; nothing at all where there are none."""
        for number, (name, column) in enumerate(members):
            self.add(b"," if number else before).add(orjson.dumps(name)).add(b":").json(column)
        return self.add(after) if members else self

    def lines(self, count: int) -> list[bytes]:
        """The text of each line."""
        text = b"".join(self._text)
        if not self._columns:
            return [text % ()] * count
        return [text % row for row in zip(*self._columns, strict=True)]


def batch_lines(scope: Scope, batch: Batch) -> list[bytes]:
    """The lines of a batch.

    Raises:
        UnlikeError: One of its records is not common.
    """
    count = len(batch.time)
    if not 0 < min(batch.time) <= max(batch.time) < _TIME_END or any(batch.dropped) or batch.body.holds(b'""'):
        raise UnlikeError
    places, flags, context = _placed(batch)
    resource = scope.resource
    uid, correlation_id, service = (places.pop(name, None) for name in ("uid", "correlation_id", "service"))

    out = _Template()
    out.add(b'{"timestamp":"').put(_mapped(_second, [time // 1_000_000_000 for time in batch.time]))
    out.add(b".").put([time // 1000 % 1_000_000 for time in batch.time], b"%06d")
    out.add(b'Z","level":"').put(_mapped(_level, batch.severity)).add(b'","message":').json(batch.body)
    out.add(b',"service":')
    if service is None:
        out.add(orjson.dumps(resource.service or UNKNOWN_SERVICE))
    else:
        out.json(service)
    if correlation_id is not None:
        out.add(b',"correlation_id":').json(correlation_id)
    _put_trace(out, batch, also_correlates=correlation_id is None)
    for name in ("request_id", "user_id", "session_id"):
        if name in places:
            out.add(b',"%b":' % name.encode()).json(places[name])
    out.add(b',"active_flags":')
    if "active_flags" in places:
        out.json(places["active_flags"])
    else:
        out.add(b"[]")
    out.object(b',"flags":{', [(flag.key[len(FLAG_PREFIX) :], flag) for flag in flags], b"}")
    if "duration_ms" in places:
        out.add(b',"duration_ms":').json(places["duration_ms"])
    out.object(b',"error":{', [(key, places[f"error.{key}"]) for key in ERROR_KEYS if f"error.{key}" in places], b"}")
    out.put(_mapped(_event, batch.event))
    out.add(b',"context":{').object(b"", [(each.key, each) for each in context], b"").add(b"}")
    if scope.name:
        out.add(b',"logger":' + orjson.dumps(scope.name))
    out.object(
        b',"source":{', [(key, places[f"source.{key}"]) for key in SOURCE_KEYS if f"source.{key}" in places], b"}"
    )

    otlp = dict(scope.otlp)
    if service is not None and "service" in otlp:
        otlp["service"] = "attribute"
    tail = resource.tail if service is None else resource.tail_with_service
    if uid is not None:
        out.add(resource.head).json(uid)
        _put_otlp(out, batch, otlp)
        return out.add(tail).lines(count)
    extra = _Template()
    _put_otlp(extra, batch, otlp)
    return list(_hashed(out.add(b"}").lines(count), extra.lines(count), resource.head, tail))


def _hashed(saids: list[bytes], extras: list[bytes], head: bytes, tail: bytes) -> Iterator[bytes]:
    """The lines of records that came without a uid, as `log_line` computes it."""
    for said, extra in zip(saids, extras, strict=True):
        uid = mmh3.hash_bytes(b"".join((head, tail, extra, said))).hex().encode()
        yield b"".join((said[:-1], head, b'"', COMPUTED_UID.encode(), uid, b'"', extra, tail))


def _placed(batch: Batch) -> tuple[dict[str, Column], list[Column], list[Column]]:
    """The attributes that have a place of their own, flags, and the rest."""
    places: dict[str, Column] = {}
    flags: list[Column] = []
    context: list[Column] = []
    if len({column.key for column in batch.columns}) < len(batch.columns) or len(batch.columns) > ATTRIBUTES_MAX:
        raise UnlikeError
    for column in batch.columns:
        key, kind, _, _ = column
        place = PLACES.get(key)
        if place is not None and kind in place[2]:
            section, name, _ = place
            if kind in (str, list) and (column.holds(b'""') or column.values == b"[]"):
                raise UnlikeError
            places[f"{section}.{name}" if section in ("error", "source") else name] = column
        elif key.startswith(FLAG_PREFIX) and kind is str and len(flags) < FLAGS_MAX:
            flags.append(column)
        elif key.startswith(CONTEXT_PREFIX):
            raise UnlikeError
        else:
            context.append(column)
    if (uid := places.get("uid")) is not None:
        start = (b'"' + COMPUTED_UID.encode())[uid.bare :]
        values = [uid.values] if isinstance(uid.values, bytes) else uid.values
        if COMPUTED_UID.encode() in b"".join(values) and any(value.startswith(start) for value in values):
            raise UnlikeError
    if (error := places.get("error.type")) is not None and b"." in b"".join(
        [error.values] if isinstance(error.values, bytes) else error.values
    ):
        raise UnlikeError
    if (active := places.get("active_flags")) is not None:
        for value in {active.values} if isinstance(active.values, bytes) else set(active.values):
            given = orjson.loads(value)
            if not given or not all(isinstance(flag, str) for flag in given) or sorted(given) != given:
                raise UnlikeError
    if (correlation := places.get("correlation_id")) is not None and any(
        map(eq, correlation.jsons(), (b'"%b"' % trace_id for trace_id in batch.trace_id))
    ):
        raise UnlikeError
    return places, flags, context


def _put_trace(out: _Template, batch: Batch, *, also_correlates: bool) -> None:
    traces, spans = batch.trace_id, batch.span_id
    lengths = (set(map(len, traces)), set(map(len, spans)))
    if not (lengths[0] <= {0, 32} and lengths[1] <= {0, 16}) or b"0" * 32 in traces or b"0" * 16 in spans:
        raise UnlikeError
    before = b',"correlation_id":"%b","trace_id":"%b"' if also_correlates else b',"trace_id":"%b"'
    repeats = 2 if also_correlates else 1
    if lengths == ({32}, {16}):
        for name in (b"correlation_id", b"trace_id")[2 - repeats :]:
            out.add(b',"%b":"' % name).put(_folded(traces)).add(b'"')
        out.add(b',"span_id":"').put(_folded(spans)).add(b'"')
    elif lengths != ({0}, {0}):
        out.put([before % ((trace,) * repeats) if trace else b"" for trace in traces])
        out.put([b',"span_id":"%b"' % span if span else b"" for span in spans])


def _put_otlp(out: _Template, batch: Batch, rest: dict[str, Any]) -> None:
    """What the line does not say: the members in the order in which `log_line` has them."""
    nanos = [_NANOS[time % 1000] for time in batch.time]
    after = _mapped(_unsaid, batch.severity, batch.severity_text, batch.flags, [*map(bool, batch.trace_id)])
    ever = orjson.dumps(rest)[1:-1]
    if all(batch.observed):
        out.add(b',"otlp":{').put(nanos).add(b'"observedTimeUnixNano":"').put(batch.observed, b"%d").add(b'"')
        out.put(after).add(b"," + ever if ever else b"").add(b"}")
        return
    members = _Template().put(nanos).put([_observed(time) for time in batch.observed]).put(after)
    texts = members.add(b"," + ever if ever else b"").lines(len(batch.time))
    out.put([b',"otlp":{%b}' % text.strip(b",").replace(b",,", b",") if text else b"" for text in texts])


def _observed(time: int) -> bytes:
    return b'"observedTimeUnixNano":"%d"' % time if time else b""


def _unsaid(severity: int, text: str, flags: int, in_trace: bool) -> bytes:
    level = _level(severity).decode()
    members: dict[str, Any] = {}
    if severity != SEVERITY[level]:
        members["severityNumber"] = severity
    if text != level:
        members["severityText"] = text
    if flags != in_trace:
        members["flags"] = flags
    return b"," + orjson.dumps(members)[1:-1] if members else b""


def _second(seconds: int) -> bytes:
    return format_second(seconds).encode()


def _level(severity: int) -> bytes:
    return (LEVELS[severity] if 0 <= severity <= 24 else "INFO" if severity < 0 else "CRITICAL").encode()


def _event(name: str) -> bytes:
    return b',"event":' + orjson.dumps(name) if name else b""


def _mapped(function: Callable[..., bytes], *columns: Sequence[Any]) -> bytes | list[bytes]:
    """What a function makes of the values of columns; each combination is asked for once."""
    if all(column.count(column[0]) == len(column) for column in columns):
        return function(*(column[0] for column in columns))
    if len(columns) == 1:
        made = {value: function(value) for value in set(columns[0])}
        return [made[value] for value in columns[0]]
    rows = list(zip(*columns, strict=True))
    table = {row: function(*row) for row in set(rows)}
    return [table[row] for row in rows]


def _folded(values: Sequence[bytes]) -> bytes | Sequence[bytes]:
    """A single value where all are the same."""
    return values[0] if values.count(values[0]) == len(values) else values
