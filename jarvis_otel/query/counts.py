"""Records of a part of a file counted by some of their fields, without making a dict of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import orjson

from jarvis_otel.query.fields import Columns
from jarvis_otel.query.where import look_up

__all__ = ["Counting", "Counts", "Question"]

_Key = tuple[Any, ...]


class Question(NamedTuple):
    """What is counted.

    Attributes:
        groups: Fields, paths with dots between their keys; each group is a combination.
        precision: So many characters of a timestamp tell times apart: 19 are seconds, 16 minutes.
    """

    groups: tuple[tuple[str, ...], ...]
    precision: int

    def keys(self) -> list[str]:
        """The keys of a line that have to be read, `level` first: a key may itself hold dots."""
        parts = [field.split(".") for fields in self.groups for field in fields]
        return list(
            dict.fromkeys(["level", *(".".join(path[:end]) for path in parts for end in range(1, len(path) + 1))])
        )


class Counts(NamedTuple):
    """What was counted.

    Attributes:
        records: How many.
        earliest, latest: Their range, canonical; empty where there are none.
        times: Records by the beginning of their timestamp and level.
        groups: For each group records by level and values. One that is neither text nor null is its JSON in bytes.
    """

    records: int
    earliest: str
    latest: str
    times: dict[_Key, int]
    groups: list[dict[_Key, int]]


class Counting:
    """Counts columns; the fields of `keys`, in that order.

    Args:
        question: What is counted.
    """

    def __init__(self, question: Question) -> None:
        self.keys = question.keys()
        self._precision = question.precision
        self._groups = [_key_of(fields, self.keys) for fields in question.groups]

    def count(self, columns: Iterable[Columns]) -> Counts:
        """All of the columns together."""
        records, earliest, latest = 0, "~", ""
        times: Counter[_Key] = Counter()
        groups: list[Counter[_Key]] = [Counter() for _ in self._groups]
        for each in columns:
            if not each.times:
                continue
            records += len(each.times)
            first, last = min(each.times), max(each.times)
            earliest, latest = min(earliest, first), max(latest, last)
            start = first[: self._precision]
            starts = (
                repeat(start, len(each.times))
                if last.startswith(start)
                else [time[: self._precision] for time in each.times]
            )
            times.update(_counted(zip(starts, each.values[0], strict=True)))
            for group, key in zip(groups, self._groups, strict=True):
                group.update(_counted(key(each.values)))
        return Counts(records, earliest if records else "", latest, dict(times), [dict(group) for group in groups])


def _key_of(fields: tuple[str, ...], keys: Sequence[str]) -> Callable[[Sequence[Sequence[Any]]], Iterable[_Key]]:
    """What makes of columns the keys of their lines: the level, and the values of the fields."""
    if not any("." in field for field in fields):
        places = (0, *(keys.index(field) for field in fields))
        return lambda columns: zip(*(columns[place] for place in places), strict=True)
    paths = [field.split(".") for field in fields]

    def look_up_all(columns: Sequence[Sequence[Any]]) -> Iterator[_Key]:
        for row in zip(*columns, strict=True):
            record = dict(zip(keys, row, strict=True))
            yield (row[0], *(look_up(record, path) for path in paths))

    return look_up_all


def _counted(keys: Iterable[_Key]) -> dict[_Key, int]:
    """How often each key is there, with values that compare as what they are: 1, 1.0 and true would be one."""
    keys = list(keys)
    try:
        counted = Counter(keys)
        if all(value is None or isinstance(value, str) for key in counted for value in key):
            return counted
    except TypeError:  # a list or an object
        pass
    return Counter(tuple(map(_plain, key)) for key in keys)


def _plain(value: Any) -> str | bytes | None:
    return value if value is None or isinstance(value, str) else orjson.dumps(value)
