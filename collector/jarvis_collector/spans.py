"""The span line: what one span looks like in logs/traces-YYYY-MM-DD.jsonl."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from jarvis_collector.record import FLAG_PREFIX, UNKNOWN_SERVICE, Scope, format_timestamp

__all__ = ["Event", "Link", "Span", "span_line"]

_KINDS = ("internal", "internal", "server", "client", "producer", "consumer")
_STATUS = ("unset", "ok", "error")
_NO_ID = frozenset({"", "0" * 16, "0" * 32})


class Event(NamedTuple):
    """Something that happened during a span; `time` in nanoseconds since 1970."""

    time: int
    name: str
    attributes: dict[str, Any]


class Link(NamedTuple):
    """Another span that a span points to, by its ids in lower-case hex."""

    trace_id: str
    span_id: str
    attributes: dict[str, Any]


class Span(NamedTuple):
    """One OTLP span in Python's terms, whatever it was encoded in.

    Attributes:
        start, end: Nanoseconds since 1970; 0 is unknown.
        kind, status: OTLP's numbers.
        attributes: Value by key, as a line shows it.
        trace_id, span_id, parent_span_id: Lower-case hex; empty where there is none.
    """

    start: int
    end: int
    name: str
    kind: int
    attributes: dict[str, Any]
    trace_id: str
    span_id: str
    parent_span_id: str
    status: int
    status_message: str
    events: list[Event]
    links: list[Link]


def span_line(scope: Scope, span: Span, arrival: int) -> bytes:
    """The line of a span, ending in a newline. It shows the span; unlike a record's line it does not say all of it.

    Args:
        scope: The span's scope, with its resource.
        span: The span.
        arrival: Nanoseconds since 1970; the timestamp of a span that has no start.
    """
    resource = scope.resource
    attributes = dict(span.attributes)
    service = _taken(attributes, "jarvis.service")
    correlation_id = _taken(attributes, "jarvis.correlation_id")
    flags = {
        key[len(FLAG_PREFIX) :]: attributes.pop(key)
        for key, value in span.attributes.items()
        if key.startswith(FLAG_PREFIX) and isinstance(value, str)
    }
    trace_id, span_id, parent = ("" if i in _NO_ID else i for i in (span.trace_id, span.span_id, span.parent_span_id))
    status = {"code": _STATUS[span.status] if 0 <= span.status < len(_STATUS) else "unset"}
    if span.status_message:
        status["message"] = span.status_message
    line = {
        "timestamp": format_timestamp(span.start or arrival),
        "end": format_timestamp(span.end) if span.end else None,
        "duration_ms": (span.end - span.start) / 1e6 if span.start and span.end else None,
        "name": span.name,
        "kind": _KINDS[span.kind] if 0 <= span.kind < len(_KINDS) else "internal",
        "service": service or resource.service or UNKNOWN_SERVICE,
        "correlation_id": correlation_id or trace_id,
        "trace_id": trace_id,
        "span_id": span_id,
        "parent_span_id": parent,
        "status": status,
        "flags": flags,
        "attributes": attributes,
        "events": [
            _present(
                {
                    "timestamp": format_timestamp(event.time) if event.time else None,
                    "name": event.name,
                    "attributes": event.attributes,
                }
            )
            for event in span.events
        ],
        "links": [_present(link._asdict()) for link in span.links],
        "scope": _present({"name": scope.name, "version": scope.own.get("version")}),
        "_meta": {**resource.meta, **(resource.service_name if service else {})},
    }
    return orjson.dumps(_present(line)) + b"\n"


def _taken(attributes: dict[str, Any], key: str) -> str:
    """Takes a text out of the attributes; one of another kind stays among them."""
    value = attributes.get(key)
    if isinstance(value, str) and value:
        del attributes[key]
        return value
    return ""


def _present(members: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in members.items() if value not in (None, "", [], {})}
