"""Records as the pages of the logs show them: cells, and for each value the filter that it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from jarvis_otel.query.filters import Record, flag_states
from jarvis_otel.query.render import cut, error_text, json_text, local_time
from jarvis_otel.query.scan import Found
from jarvis_otel.query.where import look_up
from jarvis_otel.settings import LEVELS
from jarvis_otel.web.log_filters import COLUMNS, LogFilters
from jarvis_otel.web.log_pages import Place
from jarvis_otel.web.pages import flag_path

__all__ = ["Cell", "LogField", "LogRow", "flag_address", "record_fields", "row_of", "trace_address", "uid_of"]

_TEXT_MAX = 1000
_FIELD_MAX = 20_000
_FLAGS_SHOWN = 6
_FIELDS_MAX = 300
_DEPTH_MAX = 6
_ANCHOR = re.compile(r"[A-Za-z0-9_#:.-]{1,80}")
_IDS = ("correlation_id", "trace_id")


@dataclass(frozen=True, slots=True)
class Cell:
    """A value in a row.

    Attributes:
        column: The field.
        text: The value as text.
        narrow: The address at which only records with this value are; None where that cannot be asked.
        trace: The address of the trace that it is the id of.
    """

    column: str
    text: str
    narrow: str | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class LogRow:
    """A record as a row.

    Attributes:
        anchor: By what a link finds it on its page.
        time: Its time as people read it.
        level: Its level, if it is one of ours, in lower case; else empty.
        cells: One a column.
        error: Type and message of its error in a line.
        flags: Flag, variant, and the address at which only records with both are.
        flags_more: So many flags are not among them.
        href: Where all of it is shown.
    """

    anchor: str
    time: str
    level: str
    cells: tuple[Cell, ...]
    error: str
    flags: tuple[tuple[str, str, str | None], ...]
    flags_more: int
    href: str


@dataclass(frozen=True, slots=True)
class LogField:
    """A field of a record that is shown in full.

    Attributes:
        path: Its keys with dots between them.
        text: The value as text; many lines where it is a stack trace.
        narrow: The address at which only records with this value are.
        column: The address at which it is a column, or none any more; None where it is too deep to be one.
        is_column: Whether it is one.
        trace: The address of the trace that it is the id of.
        flag: The address of the flag that it is the variant of.
    """

    path: str
    text: str
    narrow: str | None
    column: str | None
    is_column: bool
    trace: str | None
    flag: str | None


def row_of(found: Found, place: Place | None, filters: LogFilters) -> LogRow:
    """A record as a row.

    Args:
        found: The record.
        place: Where it stands, if that is known.
        filters: What the page asks for.
    """
    record = found.record
    level = record.get("level")
    states = flag_states(record)
    shown = sorted(states)[:_FLAGS_SHOWN]
    uid = uid_of(record)
    return LogRow(
        anchor=f"r-{uid}" if uid and _ANCHOR.fullmatch(uid) else f"r-{place}",
        time=local_time(found.time),
        level=level.lower() if isinstance(level, str) and level in LEVELS else "",
        cells=tuple(_cell(found, column, filters) for column in filters.columns),
        error=cut(error_text(record), _TEXT_MAX),
        flags=tuple((flag, states[flag], _narrow(filters, record, f"flags.{flag}", states[flag])) for flag in shown),
        flags_more=len(states) - len(shown),
        href=filters.address("/logs/record", at=place, uid=uid),
    )


def _cell(found: Found, column: str, filters: LogFilters) -> Cell:
    value = look_up(found.record, column.split("."))
    if column == "timestamp":
        return Cell(column, local_time(found.time))
    text = "" if value is None else value if isinstance(value, str) else json_text(value)
    # whoever reads a message wants the next one, not the same again
    narrow = None if column == "message" else _narrow(filters, found.record, column, value)
    return Cell(column, cut(text, _TEXT_MAX), narrow, trace_address(value) if column in _IDS else None)


def record_fields(record: Record, filters: LogFilters) -> list[LogField]:
    """All fields of a record, at most 300."""
    return [_field(record, path, value, filters) for path, value in _leaves(record)][:_FIELDS_MAX]


def _field(record: Record, path: str, value: Any, filters: LogFilters) -> LogField:
    columns = filters.columns
    column = None
    if "," not in path and path == path.strip():
        chosen = [name for name in columns if name != path] if path in columns else [*columns, path]
        column = filters.with_columns(chosen or COLUMNS).address()
    flag = path.removeprefix("flags.") if path.startswith("flags.") else value if path == "active_flags" else None
    return LogField(
        path=path,
        text=cut(value if isinstance(value, str) else json_text(value), _FIELD_MAX),
        narrow=_narrow(filters, record, path, value),
        column=column,
        is_column=path in columns,
        trace=trace_address(value) if path in _IDS else None,
        flag=flag_address(flag) if isinstance(flag, str) else None,
    )


def _leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The values that are no objects, each element of a list by itself, with their paths."""
    if isinstance(value, Mapping) and value and depth < _DEPTH_MAX:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        yield from ((path, item) for item in value)
    elif value != {}:
        yield path, value


def _narrow(filters: LogFilters, record: Record, path: str, value: Any) -> str | None:
    narrowed = filters.narrowed(record, path, value)
    return None if narrowed is None else narrowed.address()


def trace_address(value: Any) -> str | None:
    """The page of the trace of a correlation or trace id; None where it is none that an address can have."""
    if not isinstance(value, str) or not value:
        return None
    # a dot alone is what browsers take away from an address, and a slash what some servers do
    if value in (".", "..") or "/" in value or "\\" in value or not value.isprintable():
        return "/trace?" + urlencode({"id": value}, errors="backslashreplace")
    return f"/trace/{quote(value, safe='')}"


def flag_address(flag_id: str) -> str | None:
    """The page of a flag that a record names; None where it is none that an address can have."""
    return None if flag_id in ("", ".", "..") else flag_path(flag_id)


def uid_of(record: Record) -> str | None:
    """The uid of a record."""
    meta = record.get("_meta")
    uid = meta.get("uid") if isinstance(meta, dict) else None
    return uid if isinstance(uid, str) and uid else None
