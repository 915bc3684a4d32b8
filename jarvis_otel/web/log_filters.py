"""What a page of the logs asks for: its address, its form and the command that asks the same are one thing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import orjson

from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.filters import Record
from jarvis_otel.query.log_query import Criteria
from jarvis_otel.query.times import Interval, canonical_time, line_time
from jarvis_otel.query.where import where_filter
from jarvis_otel.settings import LEVELS

__all__ = ["COLUMNS", "FIELDS", "LogFilters"]

FIELDS: Mapping[str, str] = {
    "since": "since",
    "until": "until",
    "level": "level",
    "service": "service",
    "correlation_id": "correlation_id",
    "trace_id": "trace_id",
    "user": "user_id",
    "flag": "flag",
    "search": "text",
    "where": "where",
}
"""The parameters of an address that filter, named like options of `jarvis logs`, and the arguments of `Criteria`."""

COLUMNS = ("timestamp", "level", "service", "message", "correlation_id")
"""What is shown where nobody chose."""

_OWN_FILTERS = {"service": "service", "correlation_id": "correlation_id", "trace_id": "trace_id", "user_id": "user"}
_COLUMNS_MAX = 12
_COLUMN_MAX = 100
_VALUE_MAX = 4096
_WORD = re.compile(r"[^\s()=!<>~\"']+")
_OR = re.compile(r"\bor\b", re.IGNORECASE)
_AROUND = timedelta(minutes=1)


@dataclass(frozen=True)
class LogFilters:
    """Filters and columns.

    Attributes:
        values: What was given, by the names of `FIELDS`; none of it is empty.
        columns: Paths of the fields that are shown.
    """

    values: Mapping[str, str]
    columns: tuple[str, ...] = COLUMNS

    @classmethod
    def of(cls, params: Mapping[str, str]) -> LogFilters:
        """The filters of an address; further parameters are none of them."""
        values = {name: text for name in FIELDS if (text := params.get(name, "").strip())}
        chosen = [name for part in params.get("columns", "").split(",") if (name := part.strip()[:_COLUMN_MAX])]
        return cls(values, tuple(dict.fromkeys(chosen))[:_COLUMNS_MAX] or COLUMNS)

    def criteria(self, names_of: Callable[[str], tuple[str, ...]], now: datetime | None = None) -> Criteria:
        """What records must be.

        Args:
            names_of: The names by which records know a user.
            now: The clock.

        Raises:
            QueryError: One of the values cannot be read; `argument` is its name in `FIELDS`.
            AnswerError: What it takes is not installed.
        """
        for name, text in self.values.items():
            if len(text) > _VALUE_MAX:
                raise QueryError(name, f"got {len(text)} characters, want at most {_VALUE_MAX}")
        given: dict[str, Any] = {FIELDS[name]: text for name, text in self.values.items()}
        if "user_id" in given:
            given["user_id"] = names_of(given["user_id"])
        try:
            return Criteria.of(**given, now=now)
        except QueryError as error:
            names = {argument: name for name, argument in FIELDS.items()}
            raise QueryError(names.get(error.argument, error.argument), error.problem) from None

    def fixed(self, interval: Interval) -> LogFilters:
        """The same with the interval as moments: what an hour ago was stays what it was."""
        ends = {"since": interval.since, "until": interval.until}
        moments = {name: line_time(end) for name, end in ends.items() if end is not None}
        return replace(self, values={**self.values, **moments})

    def with_value(self, name: str, text: str) -> LogFilters:
        """The same with another value of one filter; an empty one is none."""
        values = {key: value for key, value in {**self.values, name: text}.items() if value}
        return replace(self, values={key: values[key] for key in FIELDS if key in values})

    def with_columns(self, columns: Sequence[str]) -> LogFilters:
        """The same with other columns."""
        return replace(self, columns=tuple(columns))

    def address(self, path: str = "/logs", **more: object) -> str:
        """The address of a page with these filters.

        Args:
            path: The page.
            **more: Further parameters; None is none.
        """
        pairs = list(self.values.items())
        if self.columns != COLUMNS:
            pairs.append(("columns", ",".join(self.columns)))
        pairs += [(name, str(value)) for name, value in more.items() if value is not None]
        query = urlencode(pairs, errors="backslashreplace")
        return f"{path}?{query}" if query else path

    @property
    def command(self) -> str | None:
        """The command that asks the same; None where a value has what must not be pasted into a terminal."""
        if not all(text.isprintable() for text in self.values.values()):
            return None
        options = [f" --{name.replace('_', '-')}={shlex.quote(text)}" for name, text in self.values.items()]
        return "jarvis logs query" + "".join(options)

    def narrowed(self, record: Record, path: str, value: Any) -> LogFilters | None:
        """The same, and a record's field is what it is in this record; None where that cannot be asked.

        Args:
            record: The record.
            path: The field's keys with dots between them.
            value: What stands there, or one element of the list that does.
        """
        if value is None or isinstance(value, dict | list) or value == "":
            return None
        keys = path.split(".")
        if path == "timestamp":
            return self._around(str(value))
        if isinstance(value, str) and value == value.strip():
            if path == "level" and value in LEVELS:
                return self.with_value("level", f"={value}")
            if path in _OWN_FILTERS:
                return self.with_value(_OWN_FILTERS[path], value)
            if path == "active_flags" and "=" not in value:
                return self.with_value("flag", value)
            if keys[0] == "flags" and path != "flags" and "=" not in path:
                return self.with_value("flag", f"{path.removeprefix('flags.')}={value}")
        return self._where(record, path, value)

    def _where(self, record: Record, path: str, value: Any) -> LogFilters | None:
        if not _WORD.fullmatch(path):
            return None
        if isinstance(value, str):
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            asked = f'{path}="{escaped}"'
        else:
            asked = f"{path}={orjson.dumps(value).decode()}"
        before = self.values.get("where")
        try:
            if not where_filter(asked).matches(record):
                return None  # a key with dots that hides another one, or a number that is no number
            if before is not None and asked != before:
                asked = f"({before}) and {asked}" if _OR.search(before) else f"{before} and {asked}"
            where_filter(asked)
        except ValueError:
            return None
        return self.with_value("where", asked)

    def _around(self, time: str) -> LogFilters | None:
        try:
            moment = datetime.fromisoformat(canonical_time(time)).astimezone(UTC)
            return self.fixed(Interval(moment - _AROUND, moment + _AROUND))
        except (ValueError, OverflowError):
            return None
