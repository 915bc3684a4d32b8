"""Counts of records: over time by level, and by any field."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import product
from typing import Any

import orjson

from jarvis_otel.query.counts import Counts
from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.scan import json_of
from jarvis_otel.query.times import Interval, line_time, parse_length
from jarvis_otel.settings import LEVELS

__all__ = [
    "BARS",
    "OTHER",
    "Bar",
    "Group",
    "Stats",
    "as_json",
    "bar_rows",
    "bars",
    "collapse",
    "count",
    "group_rows",
    "parse_fields",
    "parse_width",
    "precision_for",
]

OTHER = "OTHER"
"""What a level is counted under that is none of ours."""

BARS = 40
"""So many bars are drawn at most where nobody says how wide one is."""

_BARS_MAX = 100_000
_FIELDS_MAX = 8
_ERRORS = frozenset({"ERROR", "CRITICAL"})
_DISTINCT_MAX = 50_000
_TEXT_MAX = 500

_SECOND, _MINUTE, _HOUR = (len(text) for text in ("2026-01-18T13:30:01", "2026-01-18T13:30", "2026-01-18T13"))
# so many times by level are kept apart before they are counted by the next coarser one
_TIMES_MAX = {_SECOND: 20_000, _MINUTE: 200_000, _HOUR: 500_000}
_COARSER = {_SECOND: _MINUTE, _MINUTE: _HOUR}
_STEPS = {_SECOND: timedelta(seconds=1), _MINUTE: timedelta(minutes=1), _HOUR: timedelta(hours=1)}
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the clock on the wall has no zone

# each is a multiple of the one before
_WIDTHS = tuple(
    timedelta(seconds=seconds)
    for seconds in (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400)
)

_CHANGING = re.compile(
    r"""
      [0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}
    | \b0x[0-9a-fA-F]+
    | \b(?=[0-9a-fA-F]*[0-9])(?=[0-9a-fA-F]*[a-fA-F])[0-9a-fA-F]{7,}\b
    | [0-9]+(?:[.,:][0-9]+)*
    """,
    re.VERBOSE,
)


@dataclass(slots=True)
class Group:
    """Counts by one field, or by the combination of several.

    Attributes:
        fields: The fields.
        counts: Records by the values of the fields; None where a record has none.
        errors: Those of ERROR and above.
        beyond: Records whose values were no longer told apart: the first 50,000 are.
        beyond_errors: Those of ERROR and above.
    """

    fields: tuple[str, ...]
    counts: Counter[tuple[str | None, ...]] = field(default_factory=Counter)
    errors: Counter[tuple[str | None, ...]] = field(default_factory=Counter)
    beyond: int = 0
    beyond_errors: int = 0

    def add(self, level: object, values: Sequence[object], number: int) -> None:
        """Counts records of a level with these values, once for each element where a value is a list."""
        errors = number if level in _ERRORS else 0
        for key in product(*map(_texts, values)):
            if key in self.counts or len(self.counts) < _DISTINCT_MAX:
                self.counts[key] += number
                self.errors[key] += errors
            else:
                self.beyond += number
                self.beyond_errors += errors

    def top(self, number: int) -> tuple[list[tuple[tuple[str | None, ...], int, int]], tuple[int, int, int]]:
        """The most frequent values, and what is left.

        Args:
            number: How many values; 0 is all.

        Returns:
            Values, records and errors, most frequent first; and of all others how many values there are at least,
            records and errors.
        """
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], [part or "" for part in item[0]]))
        shown, rest = (ordered[:number], ordered[number:]) if number else (ordered, [])
        return (
            [(key, records, self.errors[key]) for key, records in shown],
            (
                len(rest) + (self.beyond > 0),
                sum(records for _, records in rest) + self.beyond,
                sum(self.errors[key] for key, _ in rest) + self.beyond_errors,
            ),
        )


@dataclass(slots=True)
class Stats:
    """Records counted.

    Attributes:
        records: How many there are.
        earliest, latest: Their first and last timestamp, empty where there are none.
        times: Records by the beginning of their timestamp, which has `precision` characters, and level.
        precision: To the second, the minute or the hour, as far as that is bounded.
        groups: Counts by fields.
    """

    groups: list[Group]
    records: int = 0
    earliest: str = ""
    latest: str = ""
    precision: int = _SECOND
    times: Counter[tuple[str, str]] = field(default_factory=Counter)

    def levels(self) -> dict[str, int]:
        """Records by level, the lowest first, without those that there are none of."""
        counts: Counter[str] = Counter()
        for (_, level), number in self.times.items():
            counts[level] += number
        return {level: counts[level] for level in (*LEVELS, OTHER) if counts[level]}


@dataclass(frozen=True, slots=True)
class Bar:
    """One step of time.

    Attributes:
        start: Its beginning, aware.
        counts: Records by level.
    """

    start: datetime
    counts: Counter[str]


def parse_width(text: str) -> timedelta:
    """How long a bar is: `30s`, `5m`, `1h`, `1d`.

    Raises:
        QueryError: The text is none of these.
    """
    try:
        return parse_length(text)
    except ValueError as error:
        raise QueryError("bucket", str(error)) from None


def parse_fields(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """The fields to count by; with commas between them, combinations.

    Raises:
        QueryError: A field has no name, or there are more than 8.
    """
    parsed = [tuple(part.strip() for part in text.split(",")) for text in texts]
    if any(not name for fields in parsed for name in fields):
        raise QueryError("by", "got a field without a name, want one such as service, error.type or flags.NEW_UI")
    if sum(map(len, parsed)) > _FIELDS_MAX:
        raise QueryError("by", f"got more than {_FIELDS_MAX} fields")
    return parsed


def precision_for(width: timedelta | None, *, many: bool = False) -> int:
    """How much of a timestamp has to be kept.

    Args:
        width: How long a bar will be, if that is known.
        many: Whether there are so many records that minutes will do, unless the width says otherwise.
    """
    minutes = many if width is None else not width % _STEPS[_MINUTE]
    return _MINUTE if minutes else _SECOND


def count(parts: Iterable[Counts], fields: Sequence[tuple[str, ...]], width: timedelta | None, precision: int) -> Stats:
    """What parts of the records amount to together, in bounded memory.

    Args:
        parts: Counts by these fields.
        fields: The fields; each may be a combination.
        width: How long a bar will be, if that is known.
        precision: That of the times of the parts.

    Raises:
        QueryError: There are too many bars.
    """
    stats = Stats([Group(names) for names in fields], precision=precision)
    for part in parts:
        if not part.records:
            continue
        stats.records += part.records
        stats.earliest = min(stats.earliest or part.earliest, part.earliest)
        stats.latest = max(stats.latest, part.latest)
        for (time, level), number in part.times.items():
            stats.times[time[: stats.precision], level if level in LEVELS else OTHER] += number
        if len(stats.times) > _TIMES_MAX[stats.precision]:
            _coarsen(stats, fixed=width is not None)
        for group, counts in zip(stats.groups, part.groups, strict=True):
            for (level, *values), number in counts.items():
                group.add(level, values, number)
    return stats


def _coarsen(stats: Stats, *, fixed: bool) -> None:
    """Counts by the next coarser precision, unless that is given; then there is only a bound."""
    if fixed or stats.precision == _HOUR:
        if len(stats.times) > _TIMES_MAX[_HOUR]:
            raise _too_many()
        return
    stats.precision = _COARSER[stats.precision]
    fine = list(stats.times.items())
    stats.times.clear()
    for (time, level), number in fine:
        stats.times[time[: stats.precision], level] += number


def _too_many() -> QueryError:
    return QueryError("bucket", f"got one for more than {_BARS_MAX} bars, want a longer one, or a shorter interval")


def bars(
    stats: Stats, interval: Interval, width: timedelta | None = None, zone: tzinfo | None = None
) -> tuple[timedelta, list[Bar]]:
    """The records over time; the bars lie on round times of the zone, and none is left out between two others.

    Args:
        stats: The counts.
        interval: What was asked for; where one of its ends is open the records say it.
        width: How long a bar is; a round length that makes at most 40 of them if None.
        zone: The machine's own if None.

    Returns:
        How long a bar is, and the bars in their order.

    Raises:
        QueryError: There would be more than 100,000 bars.
    """
    if not stats.records:
        return width or _WIDTHS[0], []
    first, last = datetime.fromisoformat(stats.earliest), datetime.fromisoformat(stats.latest)
    since, until = min(interval.since or first, first), max(interval.until or last, last)
    width = width or _round_width(until - since, _STEPS[stats.precision])
    counts: dict[datetime, Counter[str]] = {}
    starts: dict[str, datetime] = {}
    for (text, level), number in stats.times.items():
        if text not in starts:
            starts[text] = _start(_moment(text), width, zone)
        counts.setdefault(starts[text], Counter())[level] += number
    start, end = _start(since, width, zone), _start(until, width, zone)
    if (end - start) / width > _BARS_MAX:
        start, end = min(counts), max(counts)
        if (end - start) / width > _BARS_MAX:
            raise _too_many()
    while start < end:
        counts.setdefault(start, Counter())
        following = _start(start + width, width, zone)
        start = following if following > start else start + width  # a clock that was put back
    return width, [Bar(start, counts[start]) for start in sorted(counts)]


def _round_width(span: timedelta, least: timedelta) -> timedelta:
    for width in _WIDTHS:
        if width >= least and span / width <= BARS - 1:
            return width
    return timedelta(days=span // (timedelta(days=1) * (BARS - 1)) + 1)


def _moment(text: str) -> datetime:
    rest = {_SECOND: "", _MINUTE: ":00", _HOUR: ":00:00"}[len(text)]
    return datetime.fromisoformat(f"{text}{rest}+00:00")


def _start(moment: datetime, width: timedelta, zone: tzinfo | None) -> datetime:
    """The start of the bar that a moment is in: a multiple of the width by the clock on the wall."""
    try:
        local = moment.astimezone(zone)
        wall = local.replace(tzinfo=None)
        start = (_EPOCH + (wall - _EPOCH) // width * width).replace(fold=local.fold)
        return (start.replace(tzinfo=zone) if zone else start).astimezone(UTC)
    except OverflowError:
        return moment  # the first or last days of the calendar


def as_json(stats: Stats, interval: Interval, width: timedelta, drawn: Sequence[Bar], top: int) -> dict[str, Any]:
    """The counts as other programs read them.

    Args:
        stats: The counts.
        interval: What was asked for.
        width: How long a bar is.
        drawn: The bars.
        top: So many values of each group; 0 is all.
    """
    by, others = {}, {}
    for group in stats.groups:
        name = ",".join(group.fields)
        values, (number, records, errors) = group.top(top)
        by[name] = [
            {"value": key if len(key) > 1 else key[0], "records": count, "errors": bad} for key, count, bad in values
        ]
        others[name] = {"values": number, "records": records, "errors": errors}
    return {
        "records": stats.records,
        "since": line_time(interval.since) if interval.since else None,
        "until": line_time(interval.until) if interval.until else None,
        "earliest": stats.earliest or None,
        "latest": stats.latest or None,
        "levels": stats.levels(),
        "bucket_s": int(width.total_seconds()),
        "histogram": [
            {"start": line_time(bar.start), "records": bar.counts.total(), "levels": dict(sorted(bar.counts.items()))}
            for bar in drawn
        ],
        "by": by,
        "others": others,
    }


def bar_rows(drawn: Iterable[Bar]) -> tuple[list[str], Iterator[list[Any]]]:
    """The header and the rows of a table of bars."""
    levels = [*LEVELS, OTHER]
    rows = ([line_time(bar.start), bar.counts.total(), *(bar.counts[level] for level in levels)] for bar in drawn)
    return ["start", "records", *levels], rows


def group_rows(group: Group, top: int) -> tuple[list[str], Iterator[list[Any]]]:
    """The header and the rows of a table of values; what the values leave out is the last row."""
    values, (number, records, errors) = group.top(top)
    rows = [[*key, count, bad] for key, count, bad in values]
    if records:
        rows.append([f"({number} others)", *[""] * (len(group.fields) - 1), records, errors])
    return [*group.fields, "records", "errors"], iter(rows)


def collapse(text: str) -> str:
    """The text with what changes from one record to the next, numbers and ids, as `#`."""
    return _CHANGING.sub("#", text)


def _texts(value: object) -> list[str | None]:
    """A value as texts; one that is neither text nor null comes as its JSON."""
    if isinstance(value, bytes):
        if value.startswith(b"["):
            return [_cut(item if isinstance(item, str) else _json(item)) for item in orjson.loads(value)] or [None]
        return [_cut(value.decode())]
    return [_cut(value) if isinstance(value, str) else None]


def _json(value: object) -> str | None:
    return None if value is None else json_of(value).decode()


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "…"
