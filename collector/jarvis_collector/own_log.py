"""What the collector says of itself, on stderr: lines like those that it writes, or readable ones for a terminal."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, TextIO

from jarvis_collector.record import LogEntry, format_timestamp

__all__ = ["OwnLog"]

SERVICE = "jarvis-collector"


class OwnLog:
    """Tells events of the collector, never single records; any thread may.

    Args:
        human: Whether lines are for people; else each is a JSON object.
        stream: Where to; stderr if None.
    """

    def __init__(self, *, human: bool = True, stream: TextIO | None = None) -> None:
        self._human = human
        self._stream = stream
        self._lock = threading.Lock()

    def info(self, message: str, **context: Any) -> None:
        """Something that is as it should be."""
        self._write("INFO", message, context)

    def warning(self, message: str, **context: Any) -> None:
        """Something that a person may want to change."""
        self._write("WARNING", message, context)

    def error(self, message: str, **context: Any) -> None:
        """Something that a person has to change."""
        self._write("ERROR", message, context)

    def _write(self, level: str, message: str, context: dict[str, Any]) -> None:
        if self._human:
            # what came from outside may hold control characters
            said = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
            line = f"jarvis collector: {'' if level == 'INFO' else level.lower() + ': '}{said}"
        else:
            line = LogEntry(format_timestamp(time.time_ns()), level, message, SERVICE, context=context).to_json()
        with self._lock:
            try:
                print(line, file=self._stream or sys.stderr, flush=True)
            except (OSError, ValueError):
                return  # nobody can be told that nobody listens
