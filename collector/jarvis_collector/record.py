"""The log line: what one record looks like in logs/jarvis-YYYY-MM-DD.jsonl, and nothing else defines it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

__all__ = ["LINE_KEYS", "LogEntry", "format_timestamp"]

LINE_KEYS = (
    "timestamp",
    "level",
    "message",
    "service",
    "correlation_id",
    "trace_id",
    "span_id",
    "request_id",
    "user_id",
    "session_id",
    "active_flags",
    "flags",
    "duration_ms",
    "error",
    "event",
    "context",
    "logger",
    "source",
    "_meta",
)
"""The keys of a line in their order; absent when empty, except `active_flags` and `context`."""


def format_timestamp(unix_nano: int) -> str:
    """A time as the line writes it: UTC with microseconds and `Z`; digits below a microsecond are cut off."""
    seconds, nanos = divmod(unix_nano, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanos // 1000:06d}Z"


@dataclass(slots=True)
class LogEntry:
    """One record as the application made it; `str()` of it is its JSON line.

    The values must be JSON-able already (the logger cleans them). Fields are those of the line, with the error's
    and the resource's parts flat.

    Attributes:
        timestamp: UTC with microseconds and `Z`.
        level: DEBUG, INFO, WARNING, ERROR or CRITICAL.
        message: What happened, for people.
        service: The component that says so.
        correlation_id: Links the records of one operation.
        active_flags: Ids of the flags that were on, sorted.
        flags: Variant by flag id of all that was evaluated or declared, off ones too.
        duration_ms: Milliseconds.
        error_type: Bare class name of the exception.
        event: The OpenTelemetry event name.
        context: The caller's own keywords.
        logger: The name of the OpenTelemetry scope.
        source: `file`, `line` and `function` of the call.
        meta: Further resource attributes.
    """

    timestamp: str
    level: str
    message: str
    service: str
    correlation_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    request_id: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    active_flags: list[str] = field(default_factory=list)
    flags: Mapping[str, str] = field(default_factory=dict)
    duration_ms: float | None = None
    error_type: str | None = None
    error_message: str | None = None
    stack_trace: str | None = None
    event: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    logger: str | None = None
    source: Mapping[str, Any] | None = None
    hostname: str = ""
    environment: str = ""
    version: str = ""
    uid: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The line as a dict, keys in their order."""
        error = {"type": self.error_type, "message": self.error_message, "stack_trace": self.stack_trace}
        meta = {"hostname": self.hostname, "environment": self.environment, "version": self.version, "uid": self.uid}
        values = {
            "timestamp": self.timestamp,
            "level": self.level,
            "message": self.message,
            "service": self.service,
            "correlation_id": self.correlation_id,
            "trace_id": self.trace_id,
            "span_id": self.span_id,
            "request_id": self.request_id,
            "user_id": self.user_id,
            "session_id": self.session_id,
            "active_flags": self.active_flags,
            "flags": self.flags or None,
            "duration_ms": self.duration_ms,
            "error": {key: value for key, value in error.items() if value is not None} or None,
            "event": self.event,
            "context": self.context,
            "logger": self.logger,
            "source": self.source,
            "_meta": {key: value for key, value in {**meta, **self.meta}.items() if value not in ("", None)} or None,
        }
        return {key: value for key, value in values.items() if value is not None}

    def to_json(self) -> str:
        """The line as JSON text, without a newline."""
        return orjson.dumps(self.to_dict(), default=str, option=orjson.OPT_NON_STR_KEYS).decode()

    __str__ = to_json
