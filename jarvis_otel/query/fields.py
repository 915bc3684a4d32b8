"""A few fields of many lines: what the index and the counts need, at a third of the cost of whole records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from itertools import compress
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from jarvis_otel.query.otlp_lines import REQUEST_KEYS
from jarvis_otel.query.scan import Found, parsed

__all__ = ["Columns", "FieldReader"]

_PUNCTUATION = b"--T::.Z"
_SIZE = len("2026-01-18T13:30:01.000000Z")
_DIGITS = b"0123456789"
_TIME, _UID = attrgetter("timestamp"), attrgetter("meta.uid")
_HOURS = frozenset((tens, units) for tens in b"01" for units in _DIGITS) | {(0x32, units) for units in b"0123"}
_OWN_KEYS = frozenset(("timestamp", "_meta", *REQUEST_KEYS.values()))
_TO_FIVE = b"012345"  # minutes and seconds end at 59


class Columns(NamedTuple):
    """Some fields of lines, each an item of every list.

    Attributes:
        times: Canonical timestamps.
        uids: `_meta.uid` as it is; None where there is none.
        values: For each of the fields its values as they are in JSON; None where there is none.
    """

    times: Sequence[str]
    uids: Sequence[Any]
    values: Sequence[Sequence[Any]]

    def where(self, chosen: Sequence[bool]) -> Columns:
        """Those lines that are chosen."""
        times, uids, *values = (list(compress(column, chosen)) for column in (self.times, self.uids, *self.values))
        return Columns(times, uids, values)


class FieldReader:
    """Reads the same keys of many lines.

    Args:
        keys: Keys of a line, at least one; not of what stands in it.
        on_unreadable: Told of each line that is no record.
    """

    def __init__(self, keys: Sequence[str], on_unreadable: Callable[[int], object]) -> None:
        self._keys = keys
        self._on_unreadable = on_unreadable
        self._decode = _decoder(keys) if _OWN_KEYS.isdisjoint(keys) else None
        self._getters = [attrgetter(f"key{at}") for at in range(len(keys))]

    def quick(self, block: bytes) -> Columns | None:
        """The fields of a block of whole lines as a file holds them, if each is one of ours; None if in any doubt."""
        if self._decode is None or not (block.isascii() or _is_utf8(block)):
            return None
        try:
            lines = list(map(self._decode, block[:-1].split(b"\n")))
        except (ValueError, TypeError, RecursionError):
            return None
        times = list(map(_TIME, lines))
        if not _are_canonical(times):
            return None
        return Columns(times, list(map(_UID, lines)), [list(map(getter, lines)) for getter in self._getters])

    def each(self, blocks: Iterable[bytes]) -> Columns:
        """The fields of lines of any kind, without those that are no records."""
        return self.pick(
            found
            for block in blocks
            for line in block.split(b"\n")
            if line and (found := parsed(line, self._on_unreadable)) is not None
        )

    def pick(self, records: Iterable[Found]) -> Columns:
        """The fields of records."""
        times, uids = [], []
        values: list[list[Any]] = [[] for _ in self._keys]
        for time, record, _ in records:
            meta = record.get("_meta")
            times.append(time)
            uids.append(meta.get("uid") if isinstance(meta, dict) else None)
            for key, column in zip(self._keys, values, strict=True):
                column.append(record.get(key))
        return Columns(times, uids, values)


def _decoder(keys: Sequence[str]) -> Callable[[bytes], Any] | None:
    """Makes an object of a line of ours, and raises for any other."""
    try:
        import msgspec  # noqa: PLC0415 - few questions want it
    except ModuleNotFoundError:
        return None  # slower, but the same answers
    meta = msgspec.defstruct("Meta", [("uid", Any, None)], gc=False)
    fields: list[Any] = [("timestamp", str), ("meta", meta, msgspec.field(name="_meta", default_factory=meta))]
    fields += [(f"key{at}", Any, msgspec.field(name=key, default=None)) for at, key in enumerate(keys)]
    # a request of the real Collector is no line, whatever else stands in it
    for at, key in enumerate(REQUEST_KEYS.values()):
        fields.append((f"request{at}", Literal["\0"], msgspec.field(name=key, default="\0")))
    try:
        decode: Callable[[bytes], Any] = msgspec.json.Decoder(msgspec.defstruct("Line", fields, gc=False)).decode
    except ValueError:
        return None  # keys with quotes, backslashes or control characters
    return decode


def _is_utf8(block: bytes) -> bool:
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def _are_canonical(times: Sequence[str]) -> bool:
    """Whether all timestamps are in the canonical form, as far as that can be said of all at once."""
    text = "".join(times).encode()
    count = len(times)
    if len(text) != _SIZE * count or text.translate(None, _DIGITS) != _PUNCTUATION * count:
        return False
    for place, sign in zip((4, 7, 10, 13, 16, 19, 26), _PUNCTUATION, strict=True):
        if text[place::_SIZE].strip(bytes((sign,))):
            return False
    first = text[:10]
    days = {first} if text.count(first) == count else {text[at : at + 10] for at in range(0, len(text), _SIZE)}
    tens, units = text[11::_SIZE], text[12::_SIZE]
    return (
        (not tens.strip(b"01") or set(zip(tens, units, strict=True)) <= _HOURS)
        and not text[14::_SIZE].strip(_TO_FIVE)
        and not text[17::_SIZE].strip(_TO_FIVE)
        and all(_is_day(day.decode()) for day in days)
    )


def _is_day(text: str) -> bool:
    try:
        return bool(date.fromisoformat(text))
    except ValueError:
        return False
