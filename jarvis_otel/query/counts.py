"""Records of a part of a file counted by some of their fields, without making a dict of each."""

from __future__ import annotations

import json
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from jarvis_otel.query.fields import Columns
from jarvis_otel.query.scan import Found, content_of, json_of
from jarvis_otel.query.where import look_up

if TYPE_CHECKING:
    from jarvis_otel.query.index import Counted

__all__ = ["Counting", "Counts", "Question", "counts_of"]

_Key = tuple[Any, ...]
_RUNS_MAX = 8
_BATCH = 1000
_PLAIN = frozenset((str, type(None)))
_MINUTE = len("2026-01-18T13:30")
_INDEXED = frozenset(("level", "service"))


class Question(NamedTuple):
    """What is counted.

    Attributes:
        groups: Fields, paths with dots between their keys; each group is a combination.
        precision: So many characters of a timestamp tell times apart: 19 are seconds, 16 minutes.
    """

    groups: tuple[tuple[str, ...], ...]
    precision: int

    @property
    def is_indexed(self) -> bool:
        """Whether it follows from the counts by minute, level and service that an index has."""
        return self.precision <= _MINUTE and _INDEXED.issuperset(chain.from_iterable(self.groups))

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
        self._asked = len(question.groups)
        # by level alone where nothing is asked: the times follow from the first group
        self._keys = [_key_of(fields, self.keys) for fields in question.groups or ((),)]

    def count(self, columns: Iterable[Columns]) -> Counts:
        """All of the columns together."""
        records, earliest, latest = 0, "~", ""
        times: Counter[_Key] = Counter()
        groups: list[Counter[_Key]] = [Counter() for _ in self._keys]
        for each in columns:
            if not each.times:
                continue
            records += len(each.times)
            earliest, latest = min(earliest, each.earliest), max(latest, each.latest)
            for start, values in self._by_time(each):
                counted = [_counted(partial(key, values)) for key in self._keys]
                for group, some in zip(groups, counted, strict=True):
                    group.update(some)
                if start is None:
                    starts = [time[: self._precision] for time in each.times]
                    times.update(_counted(partial(zip, starts, values[0], strict=True)))
                else:
                    for (level, *_), number in counted[0].items():
                        times[start, level] += number
        return Counts(
            records, earliest if records else "", latest, dict(times), [dict(group) for group in groups[: self._asked]]
        )

    def sum(self, counted: Counted) -> Counts:
        """What an index has counted, where the question `is_indexed`."""
        pairs: dict[_Key, int] = {}
        times: dict[_Key, int] = {}
        for minute, level, service, number in counted.rows:
            pair, time = (level, service), (minute[: self._precision], level)
            pairs[pair] = pairs.get(pair, 0) + number
            times[time] = times.get(time, 0) + number
        columns = [[pair[key != "level"] for pair in pairs] for key in self.keys]
        groups: list[dict[_Key, int]] = []
        for key in self._keys[: self._asked]:
            group: dict[_Key, int] = {}
            for values, number in zip(key(columns), pairs.values(), strict=True):
                group[values] = group.get(values, 0) + number
            groups.append(group)
        records = sum(pairs.values())
        ends = (counted.earliest, counted.latest) if records else ("", "")
        return Counts(records, *ends, times, groups)

    def _by_time(self, columns: Columns) -> Sequence[tuple[str | None, Sequence[Sequence[Any]]]]:
        """The values of lines whose timestamps begin alike, with that beginning; None where there are too many."""
        times, values = columns.times, columns.values
        start = columns.earliest[: self._precision]
        if columns.latest.startswith(start):  # mostly a block is all of one minute
            return [(start, values)]
        runs: list[tuple[str | None, Sequence[Sequence[Any]]]] = []
        if times == sorted(times):
            at = 0
            while at < len(times) and len(runs) < _RUNS_MAX:
                start = times[at][: self._precision]
                end = bisect(times, f"{start}~", at)
                runs.append((start, [column[at:end] for column in values]))
                at = end
            if at == len(times):
                return runs
        return [(None, values)]


def counts_of(records: Iterable[Found], question: Question) -> Iterator[Counts]:
    """Counts of records that come one by one, as Loki gives them; files are counted much sooner by themselves."""
    counting = Counting(question)
    iterator = iter(records)
    while batch := list(islice(iterator, _BATCH)):
        values = [[one.record.get(key) for one in batch] for key in counting.keys]
        yield counting.count([Columns.of([one.time for one in batch], (), values)])


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


def _counted(keys: Callable[[], Iterable[_Key]]) -> Mapping[_Key, int]:
    """How often each key is there, with values that compare as what they are: 1, 1.0 and true would be one."""
    try:
        counted = Counter(keys())
        if _PLAIN.issuperset(map(type, chain.from_iterable(counted))):
            return counted
    except TypeError:  # a list or an object
        pass
    return Counter(tuple(map(_plain, key)) for key in keys())


def _plain(value: Any) -> str | bytes | None:
    if value is None or isinstance(value, str):
        return value
    try:
        return orjson.dumps(value)
    except TypeError:  # a whole number beyond 64 bits, which who reads all of the line takes for a float; or too deep
        return _plain_slowly(value)


def _plain_slowly(value: Any) -> bytes:
    try:
        return json_of(content_of(json.dumps(value).encode()))
    except RecursionError:
        return json_of(value)
