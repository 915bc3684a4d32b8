"""Server spans for ASGI: each request is an operation of its own, so that all its records have a trace."""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.util
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextvars import ContextVar, Token
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from jarvis_otel.context import Scope
from jarvis_otel.propagation import received_context
from jarvis_otel.version import __version__

__all__ = ["OperationMiddleware", "serve_spans"]

AsgiScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[AsgiScope, Receive, Send], Awaitable[Any]]

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_TEXT_MAX = 2_048
_MARK = "jarvis_otel.span"
"""Under this key a scope holds the span that was opened for it."""

# asyncio lets context variables of one request leak into the next on its connection (cpython#140947). Where this one
# is set, the current span may be such a leftover: it says nothing of an instrumentation around us.
_served: ContextVar[bool] = ContextVar("jarvis_served", default=False)


class OperationMiddleware:
    """Opens a server span and an operation around each request of an ASGI application.

    It passes on what an instrumentation around it, or one of OpenTelemetry's own within it, takes care of.

    Args:
        app: The application (ASGI 3).
        outermost: Whether a server calls it, in a task of the request's or the connection's own. Then span and
            operation stay current afterwards, for what the server itself logs of a request that failed.
    """

    def __init__(self, app: App, *, outermost: bool = False) -> None:
        self.app = app
        self._outermost = outermost
        self._tracer: trace.Tracer | None = None
        self._instrumented: bool | None = None

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> Any:
        """Called by the server for each request, each WebSocket, and once for its lifespan."""
        request = self._begin(scope, send) if scope["type"] in ("http", "websocket") else None
        if request is None:
            return await self.app(scope, receive, send)
        try:
            result = await self.app(scope, receive, request.send)
        except BaseException as error:
            request.end(error, leave=not self._outermost)
            raise
        request.end(None, leave=not self._outermost)
        return result

    def _begin(self, scope: AsgiScope, send: Send) -> _Request | None:
        try:
            if _MARK in scope or _is_in_server_span():
                return None
            if self._instrumented is None:
                self._instrumented = _is_instrumented(self.app)
                self._tracer = trace.get_tracer("jarvis_otel.asgi", __version__)
            if self._instrumented or self._tracer is None:
                return None
            return _Request(self._tracer, scope, send)
        except Exception:  # telemetry never breaks a request: this one goes without
            return None


def _is_in_server_span() -> bool:
    """Whether an instrumentation around us has opened a span for this request."""
    if _served.get():
        return False
    span = trace.get_current_span()
    context = span.get_span_context()
    # a span of another kind stands around the whole server, and a remote one around the whole process (TRACEPARENT)
    return context.is_valid and not context.is_remote and getattr(span, "kind", SpanKind.SERVER) is SpanKind.SERVER


def _is_instrumented(app: object) -> bool:
    """Whether one of the layers of an application is OpenTelemetry's own instrumentation, or is patched by it."""
    django = "opentelemetry.instrumentation.django" in sys.modules
    layers = [app]
    for _ in range(100):
        if not layers:
            break
        layer = layers.pop()
        module = type(layer).__module__
        known = getattr(layer, "__dict__", {})
        if (
            module.startswith("opentelemetry.instrumentation.")
            or known.get("_is_instrumented_by_opentelemetry")
            or (django and module.startswith("django."))
        ):
            return True
        layers += [known[name] for name in ("app", "_app", "application", "middleware_stack") if known.get(name)]
    return False


class _Request:
    """One request from its beginning to its end.

    It begins in a context of its own: what is current here may be left over from another request.
    """

    __slots__ = ("_current", "_ended", "_method", "_root", "_scope", "_send", "_served", "_span", "_status")

    def __init__(self, tracer: trace.Tracer, scope: AsgiScope, send: Send) -> None:
        if not isinstance(scope["headers"], list | tuple):
            scope["headers"] = list(scope["headers"])
        received = received_context(scope["headers"])
        method = str(scope.get("method", "GET"))
        self._method = method if method in _METHODS else "HTTP"
        self._scope = scope
        self._send = send
        self._root = str(scope.get("root_path", ""))
        self._status: int | None = None
        self._ended: int | None = None
        self._span = tracer.start_span(self._method, received, SpanKind.SERVER, _attributes(scope, method))
        scope[_MARK] = self._span
        self._served: Token[bool] = _served.set(True)
        self._current = Scope(None, trace.set_span_in_context(self._span, received))
        self._current.__enter__()

    async def send(self, message: Message) -> None:
        """What the application sends by."""
        kind = message.get("type")
        if kind in ("http.response.start", "websocket.http.response.start"):
            self._status = message.get("status")
        elif kind == "websocket.accept":
            self._status = 101
        elif kind == "websocket.close" and self._status is None:
            self._status = 403
        await self._send(message)
        if kind == "http.response.body" and not message.get("more_body"):
            # the answer's end; what the application does in the background afterwards is not the client's time
            self._ended = time.time_ns()

    def end(self, error: BaseException | None, *, leave: bool) -> None:
        """Ends the span.

        Args:
            error: What the application raised.
            leave: Make current again what was current before.
        """
        # telemetry never breaks a request: at worst its span is not told of
        with contextlib.suppress(Exception):
            if self._span.is_recording():
                self._describe(error)
            self._span.end(self._ended)
        if leave:
            self._current.__exit__()
            _served.reset(self._served)

    def _describe(self, error: BaseException | None) -> None:
        span, scope = self._span, self._scope
        if (route := _route(scope, self._root)) is not None:
            span.update_name(f"{self._method} {route}")
            span.set_attribute("http.route", route)
        if isinstance(self._status, int):
            span.set_attribute("http.response.status_code", self._status)
        # a proxy's headers are read by layers within us: only now the scope says who the client was
        if (client := _address(scope.get("client"))) is not None:
            span.set_attribute("client.address", client)
        if "scheme" in scope:
            span.set_attribute("url.scheme", str(scope["scheme"]))
        if isinstance(error, Exception):
            kind = type(error)
            name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
            span.set_attribute("error.type", name)
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, f"{kind.__name__}: {error}"))
        elif isinstance(self._status, int) and self._status >= 500:
            span.set_attribute("error.type", str(self._status))
            span.set_status(Status(StatusCode.ERROR))


def _attributes(scope: AsgiScope, method: str) -> dict[str, str | int]:
    """What is known of a request at its beginning, for samplers too; the query is left out, it may hold secrets."""
    attributes: dict[str, str | int] = {
        "http.request.method": method if method in _METHODS else "_OTHER",
        "url.path": str(scope.get("path", ""))[:_TEXT_MAX],
        "url.scheme": str(scope.get("scheme", "http")),
    }
    if method not in _METHODS:
        attributes["http.request.method_original"] = method[:_TEXT_MAX]
    if version := scope.get("http_version"):
        attributes["network.protocol.version"] = str(version)
    if (client := _address(scope.get("client"))) is not None:
        attributes["client.address"] = client
    server, host = scope.get("server"), None
    for name, value in scope["headers"]:
        if name == b"host":
            host = value.decode("latin-1")[:_TEXT_MAX]
        elif name == b"user-agent":
            attributes["user_agent.original"] = value.decode("latin-1")[:_TEXT_MAX]
    address, port = _host(host) if host else (None, None)
    if address is None and (address := _address(server)) is not None:
        port = server[1] if len(server) > 1 else None  # type: ignore[index, arg-type]
    if address is not None:
        attributes["server.address"] = address
    if isinstance(port, int):
        attributes["server.port"] = port
    return attributes


def _address(peer: Any) -> str | None:
    return str(peer[0])[:_TEXT_MAX] if isinstance(peer, list | tuple) and peer and peer[0] else None


@functools.lru_cache(maxsize=64)
def _host(header: str) -> tuple[str | None, int | None]:
    """Host and port of a Host header; it is the client's, and may be anything."""
    try:
        parts = urlsplit(f"//{header}")
        return parts.hostname, parts.port
    except ValueError:
        return None, None


def _route(scope: AsgiScope, root: str) -> str | None:
    """The path template that the framework found, below where it is mounted."""
    route = scope.get("route")
    path = getattr(route, "path", None)
    if not isinstance(path, str):
        return None
    below = str(scope.get("root_path", ""))
    mount = below[len(root) :] if below.startswith(root) else ""
    # a mount itself, with no route of its own: an application of another kind, such as static files
    return mount or path if hasattr(route, "routes") else mount + path


def serve_spans() -> None:
    """Has uvicorn, hypercorn and gunicorn's ASGI worker call applications through our middleware; safe to call again.

    Nothing is imported: a server that is imported later is met when that happens.
    """
    for name in _SERVERS:
        if (module := sys.modules.get(name)) is not None:
            _meet(module)
    if not any(isinstance(finder, _ServerFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ServerFinder())


class _ServerFinder(importlib.abc.MetaPathFinder):
    """Finds nothing itself, but lets us meet the servers' modules as soon as they are imported."""

    def __init__(self) -> None:
        self._finding: set[str] = set()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Called by the interpreter for each import."""
        if fullname not in _SERVERS or fullname in self._finding:
            return None
        self._finding.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module

                def execute_and_meet(module: ModuleType) -> None:
                    execute(module)
                    _meet(module)

                spec.loader.exec_module = execute_and_meet  # type: ignore[method-assign]
            return spec
        except Exception:  # whatever is unusual about this import, it goes on without us
            return None
        finally:
            self._finding.discard(fullname)


def _meet(module: ModuleType) -> None:
    # another version of the server may look different: then its requests have no span of ours
    with contextlib.suppress(Exception):
        _SERVERS[module.__name__](module)


def _meet_uvicorn(module: ModuleType) -> None:
    if not isinstance(vars(module.Config).get("loaded_app"), _LoadedApp):
        module.Config.loaded_app = _LoadedApp()


class _LoadedApp:
    """uvicorn's `Config.loaded_app`: the application itself while it is loaded, and in our middleware from then on.

    An attribute, for `Config.load` itself is what imports the application, and with it, perhaps, us.
    """

    def __get__(self, config: Any, owner: type | None = None) -> Any:
        if config is None:
            return self
        try:
            app = config.__dict__["loaded_app"]
        except KeyError:
            raise AttributeError("loaded_app") from None
        if not config.loaded or isinstance(app, OperationMiddleware):
            return app
        served = config.__dict__.get("_jarvis_app")
        if served is None or served.app is not app:
            served = config.__dict__["_jarvis_app"] = OperationMiddleware(app, outermost=True)
        return served

    def __set__(self, config: Any, app: Any) -> None:
        config.__dict__["loaded_app"] = app


def _meet_hypercorn(module: ModuleType) -> None:
    _after(module.ASGIWrapper, "__init__", "app")


def _meet_gunicorn(module: ModuleType) -> None:
    _after(module.ASGIWorker, "load_wsgi", "asgi")


def _after(owner: type, method: str, attribute: str) -> None:
    """Has a method, when it is done, leave our middleware in an attribute that it sets to the application."""
    original = getattr(owner, method)
    if hasattr(original, "jarvis_original"):
        return

    def replacement(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        app = getattr(self, attribute, None)
        if callable(app) and not isinstance(app, OperationMiddleware):
            setattr(self, attribute, OperationMiddleware(app, outermost=True))
        return result

    replacement.jarvis_original = original  # type: ignore[attr-defined]
    setattr(owner, method, replacement)


_SERVERS = MappingProxyType(
    {
        "uvicorn.config": _meet_uvicorn,
        "hypercorn.app_wrappers": _meet_hypercorn,
        "gunicorn.workers.gasgi": _meet_gunicorn,
    }
)
