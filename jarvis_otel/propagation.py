"""How an operation crosses processes: W3C trace context always, our correlation id by baggage where it may go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote, urlsplit

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from jarvis_collector.config import is_loopback
from jarvis_otel.context import LogContext, current_operation
from jarvis_otel.runtime import RUNTIME

__all__ = ["inject_headers", "server_operation"]

_CORRELATION_KEY = "jarvis.correlation_id"
_CORRELATION_MAX = 128
_BAGGAGE_MAX = 8192

_trace_context = TraceContextTextMapPropagator()


def inject_headers(headers: dict[str, str], url: str) -> dict[str, str]:
    """Adds to the headers of a request what lets the callee continue the operation; returns the same dict.

    The trace context always goes along; the correlation id only to loopback and to the hosts of the setting
    `baggage_hosts`, for it may say more than strangers should know.

    Args:
        headers: Headers of the request so far.
        url: Where the request goes.
    """
    _trace_context.inject(headers)
    operation = current_operation()
    if operation is not None and operation.correlation_id and _may_have_baggage(url):
        name = next((name for name in headers if name.lower() == "baggage"), "baggage")
        member = f"{_CORRELATION_KEY}={quote(operation.correlation_id, safe='')}"
        headers[name] = f"{headers[name]},{member}" if headers.get(name) else member
    return headers


def _may_have_baggage(url: str) -> bool:
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    if not host:
        return False
    return is_loopback(host) or (RUNTIME.settings is not None and host in RUNTIME.settings.baggage_hosts)


@contextlib.contextmanager
def server_operation(headers: Mapping[str, str], name: str, service: str) -> Iterator[None]:
    """Serves a request as an operation of its own: a server span within the caller's trace, and its correlation id.

    Where the caller sent no correlation id, records fall back to the trace id.

    Args:
        headers: Headers of the request, names in any case.
        name: Name of the span, such as `POST /trade`.
        service: The service that serves it.
    """
    received = {key.lower(): value for key, value in headers.items()}
    tracer = trace.get_tracer("jarvis_otel")
    with (
        tracer.start_as_current_span(
            name,
            context=_trace_context.extract(received),
            kind=SpanKind.SERVER,
            attributes={"jarvis.service": service},
        ),
        LogContext(service, correlation_id=_received_correlation(received.get("baggage", ""))),
    ):
        yield


def _received_correlation(baggage: str) -> str | None:
    """The correlation id that a caller sent, if it is fit to be one."""
    for member in baggage[:_BAGGAGE_MAX].split(","):
        key, _, value = member.partition("=")
        if key.strip() == _CORRELATION_KEY:
            correlation = unquote(value.partition(";")[0].strip())
            if 0 < len(correlation) <= _CORRELATION_MAX and correlation.isprintable():
                return correlation
    return None
