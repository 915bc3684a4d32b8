"""A trace as rows over time: spans with their bars, log records in their places, and what is alike folded into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from jarvis_otel.query.filters import Record, flag_states, is_evaluation
from jarvis_otel.query.log_query import Trace
from jarvis_otel.query.render import cut, error_text, evaluation_text
from jarvis_otel.query.stats import collapse
from jarvis_otel.query.timeline import depths_of, steps_of
from jarvis_otel.query.times import canonical_time
from jarvis_otel.settings import LEVELS
from jarvis_otel.terminal import Paint
from jarvis_otel.web.log_rows import uid_of

__all__ = ["ROWS_MAX", "Waterfall", "WaterfallRow", "waterfall"]

ROWS_MAX = 500
"""So many rows are on a page."""

WIDTH = 1000
"""The bars' units: the whole trace is so wide."""

_FOLD_FROM = 100
_ALIKE_MAX = 10
_ALIKE_KEPT = 5
_FAILED_KEPT = 20
_DEPTH_MAX = 8
_TEXT_MAX = 500
_MIN_WIDTH = 3
_FAILED_LEVELS = ("ERROR", "CRITICAL")
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class WaterfallRow:
    """A step of a trace.

    Attributes:
        kind: `span`, `log`, or `fold` for steps that are not shown one by one.
        offset: Seconds after the start of the trace.
        service: Whose it is.
        text: Its name or message.
        depth: How far it is set in, 0 to 8.
        x, width: Where its bar is, of 1000 in all.
        duration: What a span took, as text; empty where that is not known.
        level: Of a log record, if it is one of ours, in lower case.
        failed: Whether it is an error.
        error: What went wrong, in a line.
        flags: Flags that its service had not shown before, or that have changed since.
        uid: Of a log record.
    """

    kind: str
    offset: float
    service: str
    text: str
    depth: int
    x: float
    width: float
    duration: str = ""
    level: str = ""
    failed: bool = False
    error: str = ""
    flags: tuple[tuple[str, str], ...] = ()
    uid: str | None = None


@dataclass(frozen=True, slots=True)
class Waterfall:
    """A trace over time.

    Attributes:
        rows: One page of its rows.
        start: The time of its first step, as a line has it.
        seconds: How long it took.
        services: Whose steps there are, the most frequent first.
        failed: How many steps are errors.
        first_error: What went wrong first, in a line, and in which service; None where nothing did.
        folded: How many steps are not shown one by one.
        page: Which page of the rows it is, from 1.
        pages: How many there are.
        variants: What each flag gave in the order of time, each variant once, sorted by flag.
    """

    rows: tuple[WaterfallRow, ...]
    start: str
    seconds: float
    services: tuple[str, ...]
    failed: int
    first_error: tuple[str, str] | None
    folded: int
    page: int
    pages: int
    variants: Mapping[str, tuple[str, ...]]


@dataclass(slots=True)
class _Step:
    time: str
    rank: int
    item: Record
    depth: int
    failed: bool


def waterfall(trace: Trace, *, fold: bool = True, page: int = 1) -> Waterfall:
    """A trace over time.

    Args:
        trace: At least one record or span.
        fold: Whether of many steps that are alike only some are shown; errors are shown all the same.
        page: Which page of the rows.
    """
    depths = depths_of(trace.spans)
    steps = []
    for (time, rank, *_), item in sorted(steps_of(trace, depths), key=lambda step: step[0]):
        depth = depths.get(str(item.get("span_id")), -1) + rank
        steps.append(_Step(time, rank, item, min(_DEPTH_MAX, max(0, depth)), _has_failed(item)))
    start = steps[0].time
    seconds = max(_after(_end_of(step.item, step.time), start) for step in steps)
    hidden = _alike(steps) if fold and len(steps) > _FOLD_FROM else {}
    rows, shown, variants = _rows(steps, hidden, start, seconds or 1e-6)
    pages = max(1, -(-len(rows) // ROWS_MAX))
    page = min(max(1, page), pages)
    first = next((step for step in steps if step.failed), None)
    services = Counter(str(step.item.get("service", "")) for step in steps)
    return Waterfall(
        tuple(rows[(page - 1) * ROWS_MAX : page * ROWS_MAX]),
        start,
        seconds,
        tuple(name for name, _ in services.most_common()),
        sum(step.failed for step in steps),
        None if first is None else (_error_of(first.item) or _text(first), str(first.item.get("service", ""))),
        len(steps) - shown,
        page,
        pages,
        dict(sorted(variants.items())),
    )


def _rows(
    steps: Sequence[_Step], hidden: Mapping[int, int], start: str, seconds: float
) -> tuple[list[WaterfallRow], int, dict[str, tuple[str, ...]]]:
    """The rows, how many steps they show, and the variants of each flag."""
    rows: list[WaterfallRow] = []
    groups: dict[int, list[_Step]] = {}
    for number, group in hidden.items():
        groups.setdefault(group, []).append(steps[number])
    told: dict[str, dict[str, str]] = {}
    variants: dict[str, tuple[str, ...]] = {}
    shown = 0
    for number, step in enumerate(steps):
        service = str(step.item.get("service", ""))
        states = flag_states(step.item)
        known = told.setdefault(service, {})
        news = {flag: variant for flag, variant in states.items() if known.get(flag) != variant}
        for flag, variant in news.items():
            if variant not in variants.get(flag, ()):
                variants[flag] = (*variants.get(flag, ()), variant)
        if number in hidden:
            if (alike := groups.pop(hidden[number], None)) is not None:
                rows.append(_fold_row(alike, start, seconds))
            continue
        known.update(news)
        shown += 1
        rows.append(_row(step, service, tuple(sorted(news.items())), start, seconds))
    return rows, shown, variants


def _row(step: _Step, service: str, news: tuple[tuple[str, str], ...], start: str, seconds: float) -> WaterfallRow:
    item, offset = step.item, _after(step.time, start)
    x = WIDTH * offset / seconds
    if step.rank == 0:
        width = WIDTH * _after(_end_of(item, step.time), step.time) / seconds
        kind, level = "span", ""
    else:
        width, kind = _MIN_WIDTH, "log"
        said = item.get("level")
        level = said.lower() if isinstance(said, str) and said in LEVELS else ""
    return WaterfallRow(
        kind,
        offset,
        service,
        cut(_text(step), _TEXT_MAX),
        step.depth,
        min(x, WIDTH - _MIN_WIDTH),
        min(max(width, _MIN_WIDTH), WIDTH),
        _milliseconds(item.get("duration_ms")),
        level,
        step.failed,
        cut(_error_of(item), _TEXT_MAX),
        news,
        uid_of(item) if step.rank else None,
    )


def _fold_row(alike: Sequence[_Step], start: str, seconds: float) -> WaterfallRow:
    first, last = alike[0], max(_end_of(step.item, step.time) for step in alike)
    offset = _after(first.time, start)
    what = "spans" if first.rank == 0 else "records"
    failed = sum(step.failed for step in alike)
    words = f"{len(alike)} more {what} like {cut(_text(first), _TEXT_MAX)}" + (f", {failed} failed" if failed else "")
    total = sum(step.item["duration_ms"] for step in alike if isinstance(step.item.get("duration_ms"), int | float))
    return WaterfallRow(
        "fold",
        offset,
        str(first.item.get("service", "")),
        words,
        first.depth,
        min(WIDTH * offset / seconds, WIDTH - _MIN_WIDTH),
        max(_MIN_WIDTH, WIDTH * _after(last, first.time) / seconds),
        _milliseconds(total) if first.rank == 0 else "",
        failed=failed > 0,
    )


def _alike(steps: Sequence[_Step]) -> dict[int, int]:
    """The steps that are not shown one by one, each with the first of those that it is like."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, step in enumerate(steps):
        item = step.item
        if step.rank == 0:
            key: tuple[Any, ...] = ("span", str(item.get("service")), str(item.get("name")), step.depth)
        else:
            message = collapse(str(item.get("message", ""))[:_TEXT_MAX])
            key = ("log", str(item.get("service")), str(item.get("level")), message)
        groups.setdefault(key, []).append(number)
    hidden = {}
    for numbers in groups.values():
        if len(numbers) <= _ALIKE_MAX:
            continue
        failed = [number for number in numbers if steps[number].failed][:_FAILED_KEPT]
        kept = {*numbers[:_ALIKE_KEPT], *failed}
        hidden.update({number: numbers[0] for number in numbers if number not in kept})
    return hidden


def _text(step: _Step) -> str:
    item = step.item
    if step.rank == 0:
        return str(item.get("name", ""))
    if is_evaluation(item):
        return evaluation_text(item, Paint(color=False))
    return str(item.get("message", ""))


def _has_failed(item: Record) -> bool:
    status = item.get("status")
    if isinstance(status, dict):
        return status.get("code") == "error"
    return item.get("level") in _FAILED_LEVELS


def _error_of(item: Record) -> str:
    status = item.get("status")
    if isinstance(status, dict):
        return str(status.get("message") or "") if status.get("code") == "error" else ""
    return error_text(item)


def _end_of(item: Record, time: str) -> str:
    """The end of a span; of a record its time."""
    end = item.get("end")
    try:
        return max(canonical_time(end), time) if isinstance(end, str) else time
    except (ValueError, OverflowError):
        return time


def _after(time: str, start: str) -> float:
    return (datetime.fromisoformat(time) - datetime.fromisoformat(start)) / _SECOND


def _milliseconds(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"
