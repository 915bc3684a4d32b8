"""Spans without their secrets, for the exporters that `configure()` makes."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Status

from jarvis_otel.redaction import Redactor

__all__ = ["RedactingSpanExporter"]

_USER_IDS = frozenset({"user.id", "enduser.id"})

# Below `opentelemetry`, whose records never feed our own handlers: with a broken exporter they would loop.
_logger = logging.getLogger("opentelemetry.exporter.jarvis")


class RedactingSpanExporter(SpanExporter):
    """Hands spans on to an exporter without their secrets, and users by their pseudonyms; it never raises.

    A span without either is handed on as it is. One that cannot be looked into loses its attributes, events and links.

    Args:
        exporter: What exports them.
        redactor: Takes the secrets out.
    """

    def __init__(self, exporter: SpanExporter, redactor: Redactor) -> None:
        self._exporter = exporter
        self._redactor = redactor
        # a process has one resource: what it looks like without secrets is remembered
        self._resources: tuple[Resource, Resource] | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Exports the spans without their secrets."""
        try:
            return self._exporter.export([self._clean(span) for span in spans])
        except Exception:  # telemetry never raises into the application
            _logger.exception("Spans could not be exported")
            return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Shuts the exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Has the exporter export what it still holds."""
        return self._exporter.force_flush(timeout_millis)

    def _clean(self, span: ReadableSpan) -> ReadableSpan:
        try:
            return self._redacted(span)
        except Exception:  # whatever is wrong with the span, what cannot be looked into must not leave
            return _CleanSpan(span, "[unreadable]", Status(span.status.status_code), Resource({}), {}, (), ())

    def _redacted(self, span: ReadableSpan) -> ReadableSpan:
        text = self._redactor.text
        name, status, resource = text(span.name), span.status, self._resource(span.resource)
        if status.description and (told := text(status.description)) is not status.description:
            status = Status(status.status_code, told)
        before = (span.attributes or {}, span.events, span.links)
        attributes = self._attributes(before[0])
        events = _each(before[1], self._event)
        links = _each(before[2], self._link)
        kept = (name is span.name, status is span.status, resource is span.resource)
        if all(kept) and attributes is before[0] and events is before[1] and links is before[2]:
            return span
        return _CleanSpan(span, name, status, resource, attributes, events, links)

    def _attributes(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        changed = {}
        for key, value in attributes.items():
            clean = self._redactor.scrub(value, key)
            if key in _USER_IDS and isinstance(value, str):
                clean = self._redactor.pseudonym(clean)
            if clean is not value:
                changed[key] = clean
        return {**attributes, **changed} if changed else attributes

    def _event(self, event: Event) -> Event:
        name, before = self._redactor.text(event.name), event.attributes or {}
        attributes = self._attributes(before)
        if name is event.name and attributes is before:
            return event
        return _CleanEvent(event, name, attributes)

    def _link(self, link: Link) -> Link:
        before = link.attributes or {}
        attributes = self._attributes(before)
        return link if attributes is before else _CleanLink(link, attributes)

    def _resource(self, resource: Resource) -> Resource:
        known = self._resources
        if known is None or known[0] is not resource:
            attributes = self._attributes(resource.attributes)
            clean = resource if attributes is resource.attributes else Resource(attributes, resource.schema_url)
            known = self._resources = (resource, clean)
        return known[1]


_T = TypeVar("_T")


def _each(items: Sequence[_T], clean: Callable[[_T], _T]) -> Sequence[_T]:
    """The cleaned items; the same sequence where none changed."""
    cleaned = tuple(clean(item) for item in items)
    return items if all(map(operator.is_, cleaned, items)) else cleaned


class _CleanSpan(ReadableSpan):
    """A copy of a span that still tells how much the original dropped."""

    def __init__(  # noqa: PLR0917 - one call, in the order of the span's own parts
        self,
        span: ReadableSpan,
        name: str,
        status: Status,
        resource: Resource,
        attributes: Mapping[str, Any],
        events: Sequence[Event] = (),
        links: Sequence[Link] = (),
    ) -> None:
        super().__init__(
            name,
            context=span.get_span_context(),
            parent=span.parent,
            resource=resource,
            attributes=attributes,
            events=events,
            links=links,
            kind=span.kind,
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )
        self._dropped = (span.dropped_attributes, span.dropped_events, span.dropped_links)

    @property
    def dropped_attributes(self) -> int:
        return self._dropped[0]

    @property
    def dropped_events(self) -> int:
        return self._dropped[1]

    @property
    def dropped_links(self) -> int:
        return self._dropped[2]


class _CleanEvent(Event):
    def __init__(self, event: Event, name: str, attributes: Mapping[str, Any]) -> None:
        super().__init__(name, attributes, event.timestamp)
        self._dropped = event.dropped_attributes

    @property
    def dropped_attributes(self) -> int:
        return self._dropped


class _CleanLink(Link):
    def __init__(self, link: Link, attributes: Mapping[str, Any]) -> None:
        super().__init__(link.context, attributes)
        self._dropped = link.dropped_attributes

    @property
    def dropped_attributes(self) -> int:
        return self._dropped
