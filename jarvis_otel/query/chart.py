"""Counts of records for people: bars over time, coloured by level, and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from jarvis_otel.query.stats import OTHER, Bar, Group
from jarvis_otel.settings import LEVELS
from jarvis_otel.terminal import Paint, table

__all__ = ["chart", "group_table", "length_text"]

_LEVELS = (*reversed(tuple(LEVELS)), OTHER)
_COLORS = {"CRITICAL": "red", "ERROR": "red", "WARNING": "yellow", "INFO": "green", "DEBUG": "dim", OTHER: "dim"}
_FULL = "█"
_SHADES = {"CRITICAL": "█", "ERROR": "█", "WARNING": "▓", "INFO": "▒", "DEBUG": "░", OTHER: "·"}
_LETTERS = {"CRITICAL": "C", "ERROR": "E", "WARNING": "W", "INFO": "i", "DEBUG": "d", OTHER: "?"}
_EMPTY_SHOWN = 3
_BAR_MIN, _BAR_MAX = 10, 60
_CELL_MAX = 100


def chart(bars: Sequence[Bar], width: timedelta, paint: Paint, *, columns: int, unicode: bool) -> Iterator[str]:
    """A line a bar: when, how many by level, and how many of those that want a look.

    Args:
        bars: In their order.
        width: How long each is.
        paint: Colours; without them, levels are told apart by their shades.
        columns: How wide a line may be, in characters.
        unicode: Whether the terminal knows blocks; letters stand for the levels if not.
    """
    most = max((bar.counts.total() for bar in bars), default=0)
    times = _times(bars, width)
    digits = len(str(most))
    room = min(_BAR_MAX, max(_BAR_MIN, columns - len(times[0]) - digits - 30)) if times else _BAR_MIN
    glyphs = _LETTERS if not unicode else dict.fromkeys(_SHADES, _FULL) if paint("x", "red") != "x" else _SHADES
    empty: list[str] = []
    for time, bar in zip(times, bars, strict=True):
        if not bar.counts.total():
            empty.append(f"{paint(time, 'dim')}  {' ' * room}  {0:>{digits}}")
            continue
        yield from _gap(empty, paint, unicode=unicode)
        empty = []
        lengths = _lengths(bar, most, room)
        pieces = "".join(paint(glyphs[level] * length, _COLORS[level]) for level, length in lengths.items())
        told = [level for level in ("CRITICAL", "ERROR", "WARNING") if bar.counts[level]]
        tail = ", ".join(paint(f"{bar.counts[level]} {level}", _COLORS[level]) for level in told)
        line = f"{paint(time, 'dim')}  {pieces}{' ' * (room - sum(lengths.values()))}  {bar.counts.total():>{digits}}"
        yield f"{line}  {tail}".rstrip()
    yield from _gap(empty, paint, unicode=unicode)


def _gap(empty: Sequence[str], paint: Paint, *, unicode: bool) -> Iterator[str]:
    if len(empty) <= _EMPTY_SHOWN:
        yield from empty
    else:
        yield paint(f"{'…' if unicode else '...'} {len(empty)} times nothing", "dim")


def _lengths(bar: Bar, most: int, room: int) -> dict[str, int]:
    """Characters by level, errors first; what there is at all has one, and all together are as many as the bar has."""
    total = max(1, round(bar.counts.total() * room / most))
    lengths: dict[str, int] = {}
    left, of = total, bar.counts.total()
    for level in _LEVELS:
        if number := bar.counts[level]:
            lengths[level] = min(left, max(1, round(left * number / of)))
            left, of = left - lengths[level], of - number
    return {level: length for level, length in lengths.items() if length}


def _times(bars: Sequence[Bar], width: timedelta) -> list[str]:
    """The starts in local time, no longer than needed to tell them apart."""
    form = "%H:%M:%S" if width % timedelta(minutes=1) else "%H:%M"
    local = [bar.start.astimezone() if 1 < bar.start.year < 9999 else bar.start for bar in bars]
    if not width % timedelta(days=1):
        form = "%Y-%m-%d"
    elif len({moment.date() for moment in local}) > 1:
        form = f"%Y-%m-%d {form}"
    return [f"{moment:{form}}" for moment in local]


def group_table(group: Group, number: int, records: int) -> list[str]:
    """The counts of a group as lines: values, records, their share of all, errors, and their share of the records.

    Args:
        group: The counts.
        number: So many values at most; 0 is all.
        records: How many records there are.
    """
    top, (others, other_records, other_errors) = group.top(number)
    rows = [(*group.fields, "records", "share", "errors", "error rate")]
    rows += [(*map(_cell, key), *_numbers(count, errors, records)) for key, count, errors in top]
    if other_records:
        more = "+" if group.beyond else ""
        name = f"({others}{more} other{'s' if others > 1 or more else ''})"
        rows.append((name, *[""] * (len(group.fields) - 1), *_numbers(other_records, other_errors, records)))
    return table(rows, texts=len(group.fields))


def _numbers(count: int, errors: int, records: int) -> tuple[str, str, str, str]:
    return (
        str(count),
        f"{100 * count / records:.1f} %",
        str(errors) if errors else "",
        f"{100 * errors / count:.2f} %" if errors else "",
    )


def _cell(value: str | None) -> str:
    if value is None:
        return "(none)"
    return (value if len(value) <= _CELL_MAX else f"{value[:_CELL_MAX]}…") or '""'


def length_text(width: timedelta) -> str:
    """A length as `--bucket` takes it."""
    seconds = int(width.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if not seconds % size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
