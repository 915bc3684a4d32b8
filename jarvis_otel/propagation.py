"""How an operation crosses processes: by W3C trace context always, and its correlation id by baggage where it may go.

Of an operation only the correlation id goes along: who its user is, and what else it knows, is no business of others.
Headers are written and read by OpenTelemetry's global propagator, so that OTEL_PROPAGATORS keeps its meaning and the
baggage of others is passed on as it would be without us. Our own members (`jarvis.*`) are never in OpenTelemetry's
baggage, which instrumented HTTP clients send to anyone.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import TypeVar
from urllib.parse import quote, unquote_to_bytes, urlsplit

from opentelemetry import baggage as otel_baggage
from opentelemetry import propagate, trace
from opentelemetry.context import Context, get_current
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.trace import SpanKind

from jarvis_collector.config import is_loopback
from jarvis_otel.context import (
    LogContext,
    Operation,
    Scope,
    current_operation,
    end_span,
    received_correlation,
    start_span,
    with_received_correlation,
)
from jarvis_otel.runtime import RUNTIME

__all__ = [
    "child_environ",
    "continue_operation",
    "guard_baggage",
    "inject_headers",
    "received_context",
    "server_operation",
]

_OURS = "jarvis."
_CORRELATION_KEY = "jarvis.correlation_id"
_CORRELATION_MAX = 128
_HEADER = "baggage"

# What is read of W3C Baggage: bytes of the header and of a member, and members; OpenTelemetry warns of more.
_BAGGAGE_MAX = 8_192
_MEMBER_MAX = 4_096
_MEMBERS_MAX = 180
_KEY = r"[!#-'*+\-.0-9A-Z^-z|~]+"
_VALUE = r"[!#-+\--:<-\[\]-~]*"
_MEMBER = re.compile(rf"({_KEY})[ \t]*=[ \t]*({_VALUE})(?:[ \t]*;[ \t]*{_KEY}(?:[ \t]*=[ \t]*{_VALUE})?)*")

_Headers = TypeVar("_Headers", bound=MutableMapping[str, str])


def inject_headers(headers: _Headers, url: str) -> _Headers:
    """Adds to the headers of a request what lets the callee continue the operation; returns the same object.

    The trace context always goes along; the correlation id only to loopback and to the hosts of the setting
    `baggage_hosts`, for it may say more than strangers should know. A member of ours that is in the headers already,
    as in those of a request that is passed on, is taken out. With httpx, and with requests::

        def propagate(request):
            inject_headers(request.headers, str(request.url))

        client = httpx.Client(event_hooks={"request": [propagate]})

        class Adapter(requests.adapters.HTTPAdapter):
            def add_headers(self, request, **options):
                inject_headers(request.headers, request.url)

        session.mount("http://", Adapter())

    Both are asked again for each redirect, so that what may go to one host does not follow to the next.

    Args:
        headers: Headers of the request so far: a dict, or what an HTTP client has.
        url: Where the request goes.
    """
    # telemetry never raises into the application: at worst the callee begins a trace of its own
    with contextlib.suppress(Exception):
        names = [name for name in headers if name.lower() == _HEADER]
        given = ",".join(headers[name] for name in names)
        outgoing = _outgoing(given, with_ours=_may_have_ours(url))
        replaced = {_HEADER}
        if outgoing.keys() - replaced:
            # a tracestate, say, belongs to the traceparent that it came with
            replaced |= {name.lower() for name in (*outgoing, *propagate.get_global_textmap().fields)}
        for name in [name for name in headers if name.lower() in replaced]:
            del headers[name]
        for name, value in outgoing.items():
            headers[names[0] if names and name == _HEADER else name] = value
    return headers


def _outgoing(given: str = "", *, with_ours: bool) -> dict[str, str]:
    """The headers that continue the current operation: among them baggage that is given, or OpenTelemetry's.

    Our members are first, as a receiver that keeps only so much keeps the first ones.
    """
    outgoing: dict[str, str] = {}
    propagate.inject(outgoing)
    members: dict[str, str] = {}
    operation = current_operation()
    if with_ours and operation is not None and operation.correlation_id and _is_fit(operation.correlation_id):
        members[_CORRELATION_KEY] = f"{_CORRELATION_KEY}={quote(operation.correlation_id, safe='')}"
    for member in f"{given},{outgoing.pop(_HEADER, '')}".split(","):
        key = member.partition("=")[0].strip()
        if key and not key.lower().startswith(_OURS):
            members.setdefault(key, member.strip())
    room = _BAGGAGE_MAX + 1
    kept: list[str] = []
    for member in members.values():
        if len(member) < room and len(kept) < _MEMBERS_MAX:
            room -= len(member) + 1
            kept.append(member)
    if kept:
        outgoing[_HEADER] = ",".join(kept)
    return outgoing


def _may_have_ours(url: str) -> bool:
    try:
        # clients differ in what they take for the host where there is a backslash
        host = None if "\\" in url else urlsplit(url).hostname
    except Exception:  # whatever was given is no URL
        return False
    if not host:
        return False
    settings = RUNTIME.settings
    return is_loopback(host) or (settings is not None and host in map(str.lower, settings.baggage_hosts))


def received_context(headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]) -> Context:
    """An OpenTelemetry context of what a caller sent: its span, its baggage but ours, and its correlation id.

    A server span that is started with it as its parent begins an operation of that correlation id.

    Args:
        headers: Headers of the request, names in any case; a mapping, or pairs where there may be two of a name.
    """
    received: dict[str, str] = {}
    # telemetry never raises into the application: what cannot be read was not sent
    with contextlib.suppress(Exception):
        pairs = headers.items() if hasattr(headers, "items") else headers
        for name, value in pairs:
            key = _decoded(name).lower()
            received[key] = f"{received[key]},{_decoded(value)}" if key in received else _decoded(value)
        sent = received.pop(_HEADER, "")
        others = [member for key, member, _ in _members(sent) if not key.startswith(_OURS)]
        if others:
            received[_HEADER] = ",".join(others)
        return _with_correlation(propagate.extract(received, Context()), sent)
    return Context()


def _decoded(text: str | bytes) -> str:
    return text.decode("latin-1") if isinstance(text, bytes) else text


def _members(sent: str) -> Iterator[tuple[str, str, str]]:
    """Key, text and encoded value of each valid member, within the bounds of the specification."""
    if len(sent) > _BAGGAGE_MAX:
        # no half of a member
        sent = sent[: _BAGGAGE_MAX + 1].rpartition(",")[0]
    for member in sent.split(",", _MEMBERS_MAX)[:_MEMBERS_MAX]:
        text = member.strip(" \t")
        if len(text) <= _MEMBER_MAX and (found := _MEMBER.fullmatch(text)) is not None:
            yield found[1], text, found[2]


def _with_correlation(context: Context, sent: str) -> Context:
    """A context in which what a caller sent as our baggage is where it stays with us."""
    context = _without_ours(context)
    correlation_id = _received_correlation(sent)
    return context if correlation_id is None else with_received_correlation(context, correlation_id)


def _without_ours(context: Context) -> Context:
    for key in otel_baggage.get_all(context):
        if key.startswith(_OURS):
            context = otel_baggage.remove_baggage(key, context)
    return context


def _received_correlation(sent: str) -> str | None:
    """The correlation id in a baggage header, if it is fit to be one."""
    for key, _, value in _members(sent):
        if key == _CORRELATION_KEY:
            with contextlib.suppress(UnicodeDecodeError):
                correlation_id = unquote_to_bytes(value).decode()
                if _is_fit(correlation_id):
                    return correlation_id
    return None


def _is_fit(correlation_id: str) -> bool:
    return 0 < len(correlation_id) <= _CORRELATION_MAX and correlation_id.isprintable()


@contextlib.contextmanager
def server_operation(
    headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]], name: str, service: str
) -> Iterator[None]:
    """Serves a request as an operation of its own: a server span within the caller's trace, and its correlation id.

    Nothing of an operation that happens to be around it is taken over. Where the caller sent no correlation id,
    records fall back to the trace id.

    Args:
        headers: Headers of the request, names in any case; a mapping, or pairs where there may be two of a name.
        name: Name of the span, such as `POST /trade`.
        service: The service that serves it.
    """
    context = received_context(headers)
    correlation_id = received_correlation(context)
    span = start_span(name, service, correlation_id, SpanKind.SERVER, context)
    with Scope(None, trace.set_span_in_context(span, context)), LogContext(service, correlation_id=correlation_id):
        try:
            yield
        except BaseException as error:
            end_span(span, error)
            raise
        end_span(span, None)


def child_environ(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child process that goes on with the current operation, as for `subprocess.run(env=…)`.

    TRACEPARENT, TRACESTATE and BAGGAGE say which it is; `configure()` in the child reads them. Without an operation
    and a span it is what it was.

    Args:
        environ: The environment otherwise; this process's own if None.
    """
    made = dict(os.environ if environ is None else environ)
    # telemetry never raises into the application: at worst the child begins a trace of its own
    with contextlib.suppress(Exception):
        if Scope.exists():
            outgoing = _outgoing(with_ours=True)
            # what this process was started with is another operation's
            for name in {"traceparent", "tracestate", _HEADER, *propagate.get_global_textmap().fields}:
                made.pop(_variable(name), None)
            made.update({_variable(name): value for name, value in outgoing.items()})
    return made


def _variable(name: str) -> str:
    return re.sub(r"[^A-Z0-9_]", "_", name.upper())


def continue_operation(
    traceparent: str | None = None, tracestate: str | None = None, baggage: str | None = None
) -> Callable[[], None]:
    """Has what follows, here and in what is started from here, go on with the operation that started this process.

    What is not valid is ignored, and nothing happens within an operation or span. Returns what undoes it.

    Args:
        traceparent: The value of TRACEPARENT, or None.
        tracestate: The value of TRACESTATE, or None.
        baggage: The value of BAGGAGE, or None.
    """
    given = {"traceparent": traceparent, "tracestate": tracestate, _HEADER: baggage}
    context = received_context({name: value for name, value in given.items() if value})
    if not context or Scope.exists():
        return lambda: None
    operation = None
    if (correlation_id := received_correlation(context)) is not None:
        operation = Operation()
        operation.correlation_id = correlation_id
    scope = Scope(operation, context)
    scope.__enter__()
    return scope.__exit__


def guard_baggage() -> Callable[[], None]:
    """Has OpenTelemetry's global propagator keep `jarvis.*` members out of what instrumented clients send.

    A correlation id that instrumented servers receive becomes that of the operation of their server span instead.
    Returns what undoes it.
    """
    former = propagate.get_global_textmap()
    guard = _Guard(former)
    propagate.set_global_textmap(guard)

    def undo() -> None:
        # another one may have been set since: then that is the application's wish
        if propagate.get_global_textmap() is guard:
            propagate.set_global_textmap(former)

    return undo


class _Guard(TextMapPropagator):
    """The propagator that was there, but for our baggage."""

    def __init__(self, guarded: TextMapPropagator) -> None:
        self._guarded = guarded

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """Called by instrumented servers."""
        found = self._guarded.extract(carrier, context, getter)
        if _HEADER in self._guarded.fields:
            # a getter of another kind may raise, and then there is no correlation id
            with contextlib.suppress(Exception):
                return _with_correlation(found, ",".join(getter.get(carrier, _HEADER) or ()))
        return found

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Called by instrumented clients."""
        self._guarded.inject(carrier, _without_ours(get_current() if context is None else context), setter)

    @property
    def fields(self) -> set[str]:
        """Called by whoever clears headers before they are written anew."""
        return self._guarded.fields
