"""Records as people and other programs read them. Their text may be an attacker's: no control character gets out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, tzinfo
from itertools import chain
from typing import Any

from jarvis_otel.query.filters import Record, flag_states, is_evaluation
from jarvis_otel.query.scan import json_of
from jarvis_otel.query.times import canonical_time
from jarvis_otel.terminal import Paint, printable

__all__ = [
    "csv_rows",
    "csv_table",
    "cut",
    "error_text",
    "evaluation_text",
    "flags_suffix",
    "human_record",
    "json_text",
    "local_time",
]

_MESSAGE_MAX = 2000
_VALUE_MAX = 200
_FLAGS_MAX = 8

_LEVEL_COLOR = {"DEBUG": "dim", "INFO": "green", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}

_CSV_KEYS = (
    "timestamp",
    "level",
    "service",
    "message",
    "correlation_id",
    "trace_id",
    "span_id",
    "request_id",
    "user_id",
    "session_id",
    "active_flags",
    "flags",
    "duration_ms",
    "error.type",
    "error.message",
    "error.stack_trace",
    "event",
    "context",
    "logger",
)
# as OWASP lists them for CSV injection, the wide forms too
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def json_text(value: Any, *, pretty: bool = False) -> str:
    """JSON in which what a terminal would act on is escaped; as data it is the same.

    Args:
        value: What JSON knows.
        pretty: Indented, in many lines, not in one.
    """
    text = json_of(value, pretty=pretty).decode()
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _json_escape(char) for char in text)


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def local_time(time: str, zone: tzinfo | None = None) -> str:
    """A record's timestamp as people of a time zone read it, with milliseconds.

    Args:
        time: ISO 8601.
        zone: The machine's own if None.
    """
    try:
        moment = datetime.fromisoformat(canonical_time(time)).astimezone(zone)
    except OverflowError:
        return time  # the first or last day of the calendar
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"


def human_record(record: Record, paint: Paint, flags: Mapping[str, str] | None = None) -> str:
    """A record without its time and service: level, message, context, error, duration and flags, in one line.

    Args:
        record: The parsed line.
        paint: Colours.
        flags: The flags to show; those of the record if None.
    """
    level = _shown(record.get("level"))
    start = paint(f"{level:<8}", _LEVEL_COLOR.get(level, "bold"))
    if is_evaluation(record):
        return f"{start} {evaluation_text(record, paint)}"
    parts = [f"{start} {_shown(record.get('message'), _MESSAGE_MAX)}"]
    context = record.get("context")
    if isinstance(context, dict) and context:
        parts.append(" ".join(f"{paint(_shown(key) + '=', 'dim')}{_value(value)}" for key, value in context.items()))
    if error := error_text(record):
        parts.append(paint(error, "red"))
    if (duration := record.get("duration_ms")) is not None:
        parts.append(f"{_value(duration)} ms")
    parts.append(flags_suffix(flag_states(record) if flags is None else flags, paint))
    return "  ".join(part for part in parts if part)


def evaluation_text(record: Record, paint: Paint) -> str:
    """The event of an evaluation, which has its message and a reason to tell."""
    context = record.get("context")
    reason = context.get("feature_flag.result.reason") if isinstance(context, dict) else None
    return paint(f"⚑ {_shown(record.get('message'), _MESSAGE_MAX)} ({_shown(reason) or 'evaluated'})", "magenta")


def error_text(record: Record) -> str:
    """Type and message of a record's error in one line; empty where it has none."""
    error = record.get("error")
    if not isinstance(error, dict):
        return ""
    return ": ".join(_shown(error[key], _MESSAGE_MAX) for key in ("type", "message") if error.get(key))


def flags_suffix(flags: Mapping[str, str], paint: Paint) -> str:
    """`⚑ A=on B=off`, at most eight and a count of the rest."""
    if not flags:
        return ""
    shown = [f"{_shown(key)}={_shown(flags[key])}" for key in sorted(flags)[:_FLAGS_MAX]]
    rest = [f"+{len(flags) - _FLAGS_MAX}"] if len(flags) > _FLAGS_MAX else []
    return paint("⚑ " + " ".join(shown + rest), "magenta")


def csv_rows(records: Iterable[Record]) -> Iterator[str]:
    """A header row and a row a record, see `csv_table`."""
    yield from csv_table(_CSV_KEYS, ([_part(record, key) for key in _CSV_KEYS] for record in records))


def csv_table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """A header row and further rows, safe to open in a spreadsheet.

    Nested values are JSON. Text that a spreadsheet would take for a formula gets a leading apostrophe; control
    characters other than tab and newline are shown as escapes.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in chain((header,), rows):
        buffer.seek(0)
        buffer.truncate()
        writer.writerow(map(_cell, row))
        yield buffer.getvalue()


def _part(record: Record, key: str) -> Any:
    outer, dot, inner = key.partition(".")
    value = record.get(outer)
    if not dot:
        return value
    return value.get(inner) if isinstance(value, dict) else None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return json_text(value)  # begins with a digit, a minus and a digit, a letter or a bracket: no formula
    text = f"'{value}" if value.startswith(_FORMULA_STARTS) else value
    return printable(text, keep="\n\t")


def _value(value: Any) -> str:
    if isinstance(value, str) and value and not any(char.isspace() or char in "\"'" for char in value):
        return _shown(value)
    return cut(json_text(value), _VALUE_MAX)


def _shown(value: Any, limit: int = _VALUE_MAX) -> str:
    text = value if isinstance(value, str) else "" if value is None else json_text(value)
    return printable(cut(text, limit))


def cut(text: str, limit: int) -> str:
    """The beginning of a text, and how much more there is."""
    return text if len(text) <= limit else f"{text[:limit]}…[{len(text) - limit} more]"
