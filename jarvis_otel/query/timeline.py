"""A trace as a timeline: what happened when, in which process, and which flags were on at each step."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from jarvis_otel.query.filters import Record, flag_states, is_evaluation, level_filter
from jarvis_otel.query.log_query import Trace
from jarvis_otel.query.render import error_text, evaluation_text, flags_suffix, human_record, local_time
from jarvis_otel.query.times import canonical_time
from jarvis_otel.terminal import Paint, printable

__all__ = ["depths_of", "steps_of", "timeline"]

_DEPTH_MAX = 20


def timeline(trace: Trace, paint: Paint) -> Iterator[str]:
    """The lines of a trace for people, and at the end which flags were on and off, and how to reproduce it.

    A step shows the flags that its service had not shown before or that have changed since.

    Args:
        trace: At least one record or span.
        paint: Colours.
    """
    depths = depths_of(trace.spans)
    steps = sorted(steps_of(trace, depths), key=lambda step: step[0])
    start = steps[0][0][0]
    services = {_service(item) for _, item in steps}
    width = min(20, max(map(len, services)))
    yield _headline(trace, start, steps[-1][0][0], len(services), paint)
    shown: dict[str, dict[str, str]] = {}
    for (time, rank, *_), item in steps:
        service = _service(item)
        news = {key: value for key, value in _states(item).items() if shown.get(service, {}).get(key) != value}
        shown.setdefault(service, {}).update(news)
        depth = depths.get(str(item.get("span_id")), -1) + rank
        prefix = f"{_seconds(time, start):>10}  {paint(service.ljust(width), 'cyan')}  {'  ' * depth}"
        if rank == 0:
            yield prefix + _span_text(item, news, paint)
        else:
            yield prefix + (evaluation_text(item, paint) if is_evaluation(item) else human_record(item, paint, news))
            yield from _stack(item, 10 + 2 + width + 2 + 2 * depth + 9, paint)
    yield ""
    yield from _summary(trace, start, paint)


def steps_of(trace: Trace, depths: Mapping[str, int]) -> Iterator[tuple[tuple[str, int, int, int], Record]]:
    """Spans (at their start) and records, each with its place: its time; at one time spans first, parents first."""
    for rank, items in enumerate((trace.spans, trace.records)):
        for arrival, item in enumerate(items):
            depth = depths.get(str(item.get("span_id")), 0) if rank == 0 else 0
            yield (canonical_time(item["timestamp"]), rank, depth, arrival), item


def depths_of(spans: list[dict[str, Any]]) -> dict[str, int]:
    """How many of the known spans stand above each span, by span id; parents are given by whoever sent them."""
    parents = {str(span.get("span_id")): str(span.get("parent_span_id")) for span in spans}
    depths: dict[str, int] = {}
    for span_id, parent in parents.items():
        depth, above, visited = 0, parent, {span_id}
        while above in parents and above not in visited and depth < _DEPTH_MAX:
            visited.add(above)
            depth, above = depth + 1, parents[above]
        depths[span_id] = depth
    return depths


def _headline(trace: Trace, start: str, end: str, services: int, paint: Paint) -> str:
    counts = ", ".join(
        f"{count} {noun}{'' if count == 1 else 's'}"
        for count, noun in ((len(trace.records), "record"), (len(trace.spans), "span"), (services, "service"))
    )
    left_out = f", {trace.left_out} more left out" if trace.left_out else ""
    times = f"from {local_time(start)} for {_seconds(end, start).strip()}"
    return f"{paint(printable(trace.correlation_id), 'bold')}  {counts}{left_out}, {times}"


def _span_text(span: Record, news: Mapping[str, str], paint: Paint) -> str:
    parts = [f"▸ {printable(str(span.get('name', '')))}"]
    duration = span.get("duration_ms")
    if isinstance(duration, int | float):
        parts.append(paint(f"{duration:.1f} ms", "dim"))
    status = span.get("status")
    if isinstance(status, dict) and status.get("code") == "error":
        parts.append(paint(printable(f"error {status.get('message') or ''}".strip()), "red"))
    return "  ".join(part for part in (*parts, flags_suffix(news, paint)) if part)


def _states(item: Record) -> Mapping[str, str]:
    """The flags that a step shows: an evaluation shows its own, and leaves the others to the next record."""
    states = flag_states(item)
    if not is_evaluation(item):
        return states
    context = item.get("context")
    key = context.get("feature_flag.key") if isinstance(context, dict) else None
    return {key: states[key]} if key in states else {}


def _stack(record: Record, indent: int, paint: Paint) -> Iterator[str]:
    error = record.get("error")
    stack = error.get("stack_trace") if isinstance(error, dict) else None
    if isinstance(stack, str):
        for line in stack.rstrip("\n").split("\n"):
            yield " " * indent + paint(printable(line), "dim")


def _summary(trace: Trace, start: str, paint: Paint) -> Iterator[str]:
    flags = trace.flags()
    groups = (
        ("flags on", [key for key, value in flags.items() if value == "on"]),
        ("flags off", [key for key, value in flags.items() if value == "off"]),
        ("variants", [f"{key}={value}" for key, value in flags.items() if value not in ("on", "off")]),
    )
    for title, names in groups:
        if names or title != "variants":
            yield f"{title + ':':<12} {paint(printable(', '.join(names)) or 'none', 'magenta')}"
    is_error = level_filter("ERROR").matches
    first = next((record for record in trace.records if is_error(record)), None)
    if first is not None:
        text = error_text(first) or printable(str(first.get("message", "")))
        after = _seconds(canonical_time(first["timestamp"]), start).strip()
        yield f"{'first error:':<12} {paint(text, 'red')}  ({_service(first)}, after {after})"
    if flags:
        yield f"{'reproduce:':<12} jarvis logs reproduce {printable(shlex.quote(trace.correlation_id))}"


def _service(item: Record) -> str:
    return printable(str(item.get("service", "")))


def _seconds(time: str, start: str) -> str:
    return f"{(datetime.fromisoformat(time) - datetime.fromisoformat(start)).total_seconds():.3f} s"
