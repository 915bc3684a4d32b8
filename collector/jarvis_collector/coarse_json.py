"""OTLP's log requests in JSON, read only as far as every record is read alike: values stay the text that was sent."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

__all__ = ["Record", "ResourceLogs", "ScopeLogs", "resource_logs"]

_NOTHING = Raw()


class Record(Struct, gc=False, rename="camel"):
    """A log record, its body and attributes unread."""

    time_unix_nano: int | str = 0
    observed_time_unix_nano: int | str = 0
    severity_number: int = 0
    severity_text: str = ""
    body: Raw = _NOTHING
    attributes: Raw = _NOTHING
    dropped_attributes_count: int = 0
    flags: int = 0
    trace_id: str = ""
    span_id: str = ""
    event_name: str = ""


class ScopeLogs(Struct, rename="camel"):
    """The records of a scope."""

    scope: Raw = _NOTHING
    log_records: list[Record] = []
    schema_url: str = ""


class ResourceLogs(Struct, rename="camel"):
    """The scopes of a resource."""

    resource: Raw = _NOTHING
    scope_logs: list[ScopeLogs] = []
    schema_url: str = ""


class _Request(Struct, rename="camel"):
    resource_logs: list[ResourceLogs] = []


_decode: Any = msgspec.json.Decoder(_Request).decode


def resource_logs(body: bytes) -> list[ResourceLogs] | None:
    """The groups of a request; None where it is not as clients usually write it, but perhaps OTLP all the same."""
    try:
        if not body.isascii():
            # what stays unread is not looked at for this
            body.decode()
        request: _Request = _decode(body)
    except (ValueError, RecursionError):
        return None
    return request.resource_logs
