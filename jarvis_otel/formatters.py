"""Formatters for standard logging: each record as its JSON line, or for people at a console."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

import orjson

from jarvis_collector.record import LogEntry
from jarvis_otel.compose import entry_of
from jarvis_otel.terminal import printable

__all__ = ["HumanFormatter", "JSONFormatter"]

# A bare word needs no quotes between key=value pairs.
_BARE = re.compile(r"[^\s\"'=⚑]+")
_COLORS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_FLAGS_SHOWN = 8


class JSONFormatter(logging.Formatter):
    """Every record, of a StructuredLogger or not, as the line of the day file."""

    def format(self, record: logging.LogRecord) -> str:
        """The JSON line."""
        return entry_of(record).to_json()


class HumanFormatter(logging.Formatter):
    """Every record, of a StructuredLogger or not, as one readable line, with the stack trace indented below.

    Args:
        color: Whether the level is coloured and what is secondary is dimmed.
    """

    def __init__(self, *, color: bool = False) -> None:
        super().__init__()
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        """The readable form: time, level, logger, message, keywords, flags, and what correlates it."""
        entry = entry_of(record)
        clock = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}.{int(record.msecs):03d}"
        level = self._paint(f"{entry.level:<8}", _COLORS[entry.level])
        parts = [
            f"{self._paint(clock, '2')} {level} {printable(entry.logger or entry.service)}",
            printable(entry.message),
        ]
        if pairs := self._pairs(entry):
            parts.append(" ".join(pairs))
        if entry.flags:
            parts.append(self._flags(entry))
        if entry.correlation_id and entry.correlation_id != entry.trace_id:
            parts.append(self._paint(f"correlation {printable(entry.correlation_id)}", "2"))
        elif entry.trace_id:
            parts.append(self._paint(f"trace {entry.trace_id[:8]}…", "2"))
        line = "  ".join(parts)
        for below in (entry.stack_trace, record.stack_info):
            if below:
                line += "".join(f"\n    {printable(row)}" for row in below.split("\n"))
        return line

    def _pairs(self, entry: LogEntry) -> list[str]:
        shown: dict[str, Any] = {**entry.context}
        for name in ("user_id", "request_id", "session_id", "duration_ms"):
            if (value := getattr(entry, name)) is not None:
                shown[name] = value
        if entry.error_type and not entry.stack_trace:
            shown["error"] = f"{entry.error_type}: {entry.error_message}"
        return [f"{self._paint(printable(key) + '=', '2')}{_shown(value)}" for key, value in shown.items()]

    def _flags(self, entry: LogEntry) -> str:
        shown = [f"⚑{printable(flag)}={printable(variant)}" for flag, variant in sorted(entry.flags.items())]
        more = len(shown) - _FLAGS_SHOWN
        return self._paint(" ".join(shown[:_FLAGS_SHOWN]) + (f" ⚑+{more}" if more > 0 else ""), "36")

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color else text


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = printable(value)
        return text if text == value and _BARE.fullmatch(text) else '"' + text.replace('"', '\\"') + '"'
    return printable(orjson.dumps(value).decode())
