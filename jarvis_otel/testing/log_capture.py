"""The records of a test: those of StructuredLoggers and of standard logging, whatever their levels are."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jarvis_collector.record import LogEntry, format_timestamp
from jarvis_otel import logger as structured
from jarvis_otel.compose import entry_of
from jarvis_otel.runtime import Policy
from jarvis_otel.terminal import printable
from jarvis_otel.testing.tap import Answer, Tap, Wrap, counted

__all__ = ["CapturedLogs", "capture_logs"]

_LINE_MAX = 150
_ABSENT = object()


class CapturedLogs(list[LogEntry]):
    """The records of a test, oldest first, at most 100,000."""

    @property
    def messages(self) -> list[str]:
        """The messages."""
        return [entry.message for entry in self]

    def find(
        self, message: str | re.Pattern[str] | None = None, *, level: str | int | None = None, **fields: Any
    ) -> list[LogEntry]:
        """The records of which all of this is true.

        Args:
            message: The whole message, or a compiled pattern that is found in it.
            level: The exact level: a name, or a number of the logging module.
            fields: Keywords of the call, or attributes of LogEntry (`service`, `logger`, `correlation_id`,
                `error_type`, `event`, …); of `flags` only those that are named are compared.
        """
        wanted = _criteria(message, level, fields)
        return [entry for entry in self if all(holds(entry) for holds in wanted)]

    def has(
        self, message: str | re.Pattern[str] | None = None, *, level: str | int | None = None, **fields: Any
    ) -> Answer:
        """Whether there is such a record; where an assertion of it fails, pytest shows the nearest one.

        The arguments are those of `find`.
        """
        found = self.find(message, level=level, **fields)
        if found:
            return Answer(True, f"{len(found)} of {counted(len(self), 'record')}: {_line(found[0], _LINE_MAX)}")
        return Answer(False, self._missing(message, level, fields))

    def one(
        self, message: str | re.Pattern[str] | None = None, *, level: str | int | None = None, **fields: Any
    ) -> LogEntry:
        """The only such record; the arguments are those of `find`.

        Raises:
            AssertionError: There is none, or more than one.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        found = self.find(message, level=level, **fields)
        if not found:
            raise AssertionError(self._missing(message, level, fields))
        if len(found) > 1:
            lines = "".join(f"\n  {_line(entry)}" for entry in found[:10])
            raise AssertionError(f"{len(found)} records {_words(message, level, fields)}, want one:{lines}")
        return found[0]

    @property
    def text(self) -> str:
        """A line for each record, for people."""
        return "\n".join(map(_line, self))

    def _missing(
        self, message: str | re.Pattern[str] | None, level: str | int | None, fields: Mapping[str, Any]
    ) -> str:
        text = f"no record {_words(message, level, fields)}"
        if not self:
            return f"{text}, there are none"
        wanted = _criteria(message, level, fields)
        nearest = max(self, key=lambda entry: sum(holds(entry) for holds in wanted))
        return f"{text} among {counted(len(self), 'record')}, the nearest is: {_line(nearest, _LINE_MAX)}"

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'record')}>"


def _criteria(
    message: str | re.Pattern[str] | None, level: str | int | None, fields: Mapping[str, Any]
) -> list[Callable[[LogEntry], bool]]:
    """A test for each thing that is asked."""
    wanted: list[Callable[[LogEntry], bool]] = []
    if isinstance(message, re.Pattern):
        pattern = message
        wanted.append(lambda entry: pattern.search(entry.message) is not None)
    elif message is not None:
        wanted.append(lambda entry: entry.message == message)
    if level is not None:
        name = _level_name(level)
        wanted.append(lambda entry: entry.level == name)
    wanted += [lambda entry, name=name, value=value: _has(entry, name, value) for name, value in fields.items()]  # type: ignore[misc]
    return wanted


def _has(entry: LogEntry, name: str, value: Any) -> bool:
    if name in entry.context:
        return bool(entry.context[name] == value)
    if name == "flags" and isinstance(value, Mapping):
        # a record lists the flags that its service declares, too, and a test names those that matter to it
        return all(entry.flags.get(flag_id) == variant for flag_id, variant in value.items())
    return bool(getattr(entry, name, _ABSENT) == value)


def _level_name(level: str | int) -> str:
    name = level.upper() if isinstance(level, str) else logging.getLevelName(level)
    return {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(name, name)


def _words(message: str | re.Pattern[str] | None, level: str | int | None, fields: Mapping[str, Any]) -> str:
    parts = [] if level is None else [_level_name(level)]
    if message is not None:
        parts.append(f"/{message.pattern}/" if isinstance(message, re.Pattern) else repr(message))
    if fields:
        parts.append("with " + ", ".join(f"{name}={value!r}" for name, value in fields.items()))
    return " ".join(parts) or "at all"


def _line(entry: LogEntry, most: int | None = None) -> str:
    """A record for people, on one line.

    Args:
        entry: The record.
        most: So many characters at most.
    """
    parts = [f"{entry.level} {entry.logger or entry.service}: {entry.message}"]
    parts += [f"{key}={value!r}" for key, value in entry.context.items()]
    for name in ("correlation_id", "user_id", "request_id", "session_id", "duration_ms"):
        value = getattr(entry, name)
        if value is not None and value != entry.trace_id:
            parts.append(f"{name}={value!r}")
    parts += [f"⚑{flag_id}={variant}" for flag_id, variant in entry.flags.items()]
    if entry.error_type is not None:
        parts.append(f"({entry.error_type}: {entry.error_message})")
    text = printable(" ".join(parts))
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


class _Here(threading.local):
    """What this thread knows of the record that it is about to make.

    Attributes:
        unwanted: Logger and level of a record that exists only for the capture.
        lowest: The level that the StructuredLogger which logs just now has of itself.
        reached: Whether the record that is being handled got to the handlers.
    """

    unwanted: tuple[logging.Logger, int] | None = None
    lowest = logging.DEBUG
    reached = False


_here = _Here()


def _enabled(original: Callable[[logging.Logger, int], bool]) -> Callable[[logging.Logger, int], bool]:
    """Has records made from DEBUG up."""

    def is_enabled_for(logger: logging.Logger, level: int) -> bool:
        enabled = original(logger, level)
        _here.unwanted = None
        if enabled or not _tap.is_open or level < logging.DEBUG or logger.disabled:
            return enabled
        _here.unwanted = (logger, level)
        return True

    return is_enabled_for


def _heard(original: Callable[[logging.Logger, int], bool]) -> Callable[[logging.Logger, int], bool]:
    """A StructuredLogger hands no record to standard logging where no handler would get it; the capture does."""
    return lambda logger, level: _tap.is_open or original(logger, level)


def _level(original: Any) -> property:
    """Has StructuredLoggers make records from DEBUG up."""

    def level(policy: Policy) -> int:
        _here.lowest = original.__get__(policy)
        return min(_here.lowest, logging.DEBUG) if _tap.is_open else _here.lowest

    return property(level, original.__set__)


def _handle(
    original: Callable[[logging.Logger, logging.LogRecord], None],
) -> Callable[[logging.Logger, logging.LogRecord], None]:
    """Captures each record, and hands on those that would have been made anyway."""

    def handle(logger: logging.Logger, record: logging.LogRecord) -> None:
        if not _tap.is_open:
            original(logger, record)
            return
        if isinstance(record.msg, LogEntry):
            unwanted = record.levelno < _here.lowest
            _here.lowest = logging.DEBUG
        else:
            unwanted = _here.unwanted == (logger, record.levelno)
        _here.unwanted = None
        if unwanted:
            _capture(record)
            return
        outer, _here.reached = _here.reached, False
        try:
            original(logger, record)
        finally:
            reached, _here.reached = _here.reached, outer
            # a filter of the application may drop records; ours hides those that the root logger's level, lowered by
            # configure(), let pass
            if reached or any(type(each).__module__.startswith("jarvis_otel.") for each in logger.filters):
                _capture(record)

    return handle


def _call_handlers(
    original: Callable[[logging.Logger, logging.LogRecord], None],
) -> Callable[[logging.Logger, logging.LogRecord], None]:
    """Notes that a record passed the filters of its logger."""

    def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
        _here.reached = True
        original(logger, record)

    return call_handlers


def _capture(record: logging.LogRecord) -> None:
    try:
        entry = entry_of(record)
    except Exception as problem:  # what is wrong with a record must not reach the application, and shows in the test
        entry = LogEntry(
            timestamp=format_timestamp(time.time_ns()),
            level=_level_name(record.levelno),
            message=f"{record.msg!r} could not be captured: {type(problem).__name__}: {problem}",
            service=record.name,
        )
    _tap.put(entry)


# What is wrapped belongs to the whole process, and so does this.
_tap: Tap[LogEntry] = Tap(
    Wrap(logging.Logger, "isEnabledFor", _enabled),
    Wrap(logging.Logger, "handle", _handle),
    Wrap(logging.Logger, "callHandlers", _call_handlers),
    Wrap(structured, "_handlers_of", _heard),
    Wrap(Policy, "level", _level),
)


@contextmanager
def capture_logs() -> Iterator[CapturedLogs]:
    """Captures the records of the process, of all threads, for as long as the context lasts."""
    logs = CapturedLogs()
    with _tap.into(logs):
        yield logs
