"""A few fields of many lines: what the index and the counts need, at a third of the cost of whole records."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from io import BytesIO
from itertools import compress
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple

from jarvis_otel.query.otlp_lines import REQUEST_KEYS
from jarvis_otel.query.scan import Found, parsed
from jarvis_otel.settings import LEVELS

__all__ = ["Columns", "FieldReader"]

_SIZE = len("2026-01-18T13:30:01.000000Z")
_MINUTE = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})T(?:[01][0-9]|2[0-3]):[0-5][0-9]:")
_MINUTE_SIZE = len("2026-01-18T13:30:")
_SECONDS = (b"012345", b"0123456789", b".", *[b"0123456789"] * 6, b"Z")


class Columns(NamedTuple):
    """Some fields of lines, each an item of every list.

    Attributes:
        times: Canonical timestamps.
        uids: `_meta.uid` where it is a text, else None.
        values: For each of the fields its values as they are in JSON; None where there is none.
        earliest, latest: The range of the timestamps; empty where there are no lines.
    """

    times: Sequence[str]
    uids: Sequence[str | None]
    values: Sequence[Sequence[Any]]
    earliest: str
    latest: str

    @classmethod
    def of(cls, times: Sequence[str], uids: Sequence[str | None], values: Sequence[Sequence[Any]]) -> Columns:
        """Those of lines of which the range of the timestamps is not known."""
        return cls(times, uids, values, min(times, default=""), max(times, default=""))

    def where(self, chosen: Sequence[bool]) -> Columns:
        """Those lines that are chosen."""
        times, uids, *values = (list(compress(column, chosen)) for column in (self.times, self.uids, *self.values))
        return self.of(times, uids, values)


class FieldReader:
    """Reads the same keys of many lines.

    Args:
        keys: Keys of a line, at least one; not of what stands in it.
        on_unreadable: Told of each line that is no record.
    """

    def __init__(self, keys: Sequence[str], on_unreadable: Callable[[int], object]) -> None:
        self._keys = keys
        self._on_unreadable = on_unreadable
        self._decode = _decoder(keys)
        self._getters = [attrgetter(f"key{at}") for at in range(len(keys))]

    def quick(self, block: bytes) -> Columns | None:
        """The fields of a block of whole lines as a file holds them, if each is one of ours; None if in any doubt."""
        if self._decode is None:
            return None
        try:
            if not block.isascii():
                block.decode()  # the decoder passes over what it is not asked for, whatever its bytes
            lines = list(map(self._decode, BytesIO(block).readlines()))
            times = [line.timestamp for line in lines]
            earliest, latest = min(times), max(times)
            _check_canonical(times, earliest, latest)
        except (ValueError, RecursionError):
            return None
        values = [list(map(getter, lines)) for getter in self._getters]
        return Columns(times, [line.meta.uid for line in lines], values, earliest, latest)

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
        times: list[str] = []
        uids: list[str | None] = []
        values: list[list[Any]] = [[] for _ in self._keys]
        for time, record, _ in records:
            meta = record.get("_meta")
            times.append(time)
            uid = meta.get("uid") if isinstance(meta, dict) else None
            uids.append(uid if isinstance(uid, str) else None)
            for at, key in enumerate(self._keys):
                values[at].append(record.get(key))
        return Columns.of(times, uids, values)


def _decoder(keys: Sequence[str]) -> Callable[[bytes], Any] | None:
    """Makes an object of a line of ours, and raises for any other."""
    try:
        import msgspec  # noqa: PLC0415 - few questions want it
    except ModuleNotFoundError:
        return None  # slower, but the same answers
    meta = msgspec.defstruct("Meta", [("uid", str | None, None)], gc=False)
    canonical = Annotated[str, msgspec.Meta(min_length=_SIZE, max_length=_SIZE)]
    fields: list[Any] = [("timestamp", canonical), ("meta", meta, msgspec.field(name="_meta", default_factory=meta))]
    level: Any = Literal[tuple(LEVELS)]  # any other is for the slow way
    types = {"level": level | None}
    fields += [(f"key{at}", types.get(key, Any), msgspec.field(name=key, default=None)) for at, key in enumerate(keys)]
    # a request of the real Collector is no line, whatever else stands in it: no value in JSON is UNSET
    fields += [(key, msgspec.UnsetType, msgspec.UNSET) for key in REQUEST_KEYS.values()]
    try:
        decode: Callable[[bytes], Any] = msgspec.json.Decoder(msgspec.defstruct("Line", fields, gc=False)).decode
    except ValueError:
        return None  # keys with quotes, backslashes or control characters, or one of those above
    return decode


def _check_canonical(times: Sequence[str], earliest: str, latest: str) -> None:
    """Looks whether all timestamps, texts of the right length, are in the canonical form.

    Raises:
        ValueError: One of them is not.
    """
    text = "".join(times).encode("ascii")
    if any(text[place::_SIZE].strip(allowed) for place, allowed in enumerate(_SECONDS, _MINUTE_SIZE)):
        raise ValueError("want seconds and microseconds")
    minute = earliest[:_MINUTE_SIZE]  # and of all, if the latest begins so too
    for each in (minute,) if latest.startswith(minute) else {time[:_MINUTE_SIZE] for time in times}:
        found = _MINUTE.fullmatch(each)
        if found is None:
            raise ValueError("want a date, hours and minutes")
        date.fromisoformat(found[1])
