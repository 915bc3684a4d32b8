"""Server spans of ASGI applications."""

import asyncio
import contextlib
import http.client
import logging
import socket
import threading

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util._once import Once
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from jarvis_otel.asgi import OperationMiddleware
from jarvis_otel.context import OperationSpanProcessor, current_operation
from jarvis_otel.logger import get_logger
from jarvis_otel.propagation import continue_operation
from tests.otlp_sink import until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(OperationSpanProcessor())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    return exporter


def scope(path="/", method="GET", headers=(), **more):
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"token=secret",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers],
        "client": ("192.0.2.7", 5000),
        "server": ("127.0.0.1", 8000),
        **more,
    }


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


class Sent(list):
    async def __call__(self, message):
        self.append(message)

    @property
    def status(self):
        return next(message["status"] for message in self if message["type"] == "http.response.start")


async def connect():
    return {"type": "websocket.connect"}


def serve(app, request, **options):
    sent = Sent()
    first = connect if request["type"] == "websocket" else receive

    async def main():
        assert not trace.get_current_span().get_span_context().is_valid
        try:
            return await OperationMiddleware(app, **options)(request, first, sent)
        finally:
            if not options.get("outermost"):
                assert not trace.get_current_span().get_span_context().is_valid
                assert current_operation() is None

    sent.result = asyncio.run(main())
    return sent


def current_trace():
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def test_a_request_is_a_server_span_by_the_conventions_and_its_query_is_not_on_it(spans):
    headers = [("host", "api.example:8443"), ("user-agent", "curl/8"), ("traceparent", PARENT)]
    serve(hello, scope("/trades", headers=headers))
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind, span.parent.span_id) == ("GET", SpanKind.SERVER, 0xB7AD6B7169203331)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert dict(span.attributes) == {
        "http.request.method": "GET",
        "url.path": "/trades",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "client.address": "192.0.2.7",
        "server.address": "api.example",
        "server.port": 8443,
        "user_agent.original": "curl/8",
        "http.response.status_code": 200,
    }
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("host", [None, "[", "a:b", "a:99999999", ""])
def test_without_a_host_that_can_be_read_the_server_is_the_socket(spans, host):
    serve(hello, scope(headers=[("host", host)] if host is not None else []))
    (span,) = spans.get_finished_spans()
    assert (span.attributes["server.address"], span.attributes["server.port"]) == ("127.0.0.1", 8000)


def test_a_method_that_nobody_knows_does_not_name_the_span(spans):
    serve(hello, scope(method="BREW"))
    (span,) = spans.get_finished_spans()
    assert span.name == "HTTP"
    assert (span.attributes["http.request.method"], span.attributes["http.request.method_original"]) == (
        "_OTHER",
        "BREW",
    )


async def endpoint(request):
    return PlainTextResponse("x", status_code=int(request.path_params.get("status", 200)))


ROUTED = Starlette(
    routes=[
        Route("/status/{status:int}", endpoint, methods=["GET"]),
        Mount("/v1", routes=[Route("/users/{user}", endpoint)]),
        Mount("/files", app=hello),
    ]
)


@pytest.mark.parametrize(
    ("path", "root", "name", "status"),
    [
        ("/status/200", "", "GET /status/{status:int}", 200),
        ("/v1/users/7", "", "GET /v1/users/{user}", 200),
        ("/api/v1/users/7", "/api", "GET /v1/users/{user}", 200),
        ("/files/a/b.png", "", "GET /files", 200),
        ("/v1/nothing", "", "GET /v1", 404),
        ("/nowhere", "", "GET", 404),
    ],
)
def test_the_span_is_named_after_the_route_that_the_framework_found(spans, path, root, name, status):
    sent = serve(ROUTED, scope(path, root_path=root))
    (span,) = spans.get_finished_spans()
    assert (span.name, sent.status, span.attributes["http.response.status_code"]) == (name, status, status)
    assert span.attributes.get("http.route", "") == name.removeprefix("GET").strip()


@pytest.mark.parametrize(("status", "error"), [(404, None), (500, "500"), (503, "503")])
def test_only_the_servers_errors_make_the_span_one(spans, status, error):
    serve(ROUTED, scope(f"/status/{status}"))
    (span,) = spans.get_finished_spans()
    assert span.attributes.get("error.type") == error
    assert span.status.status_code is (StatusCode.ERROR if error else StatusCode.UNSET)


class BrokenError(Exception):
    pass


def test_an_exception_is_recorded_and_goes_on_to_the_server(spans):
    async def endpoint(request):
        raise BrokenError("no balance")

    # Starlette answers with 500 first, and raises then
    app = Starlette(routes=[Route("/", endpoint)])
    with pytest.raises(BrokenError, match="no balance"):
        serve(app, scope())
    (span,) = spans.get_finished_spans()
    assert span.attributes["error.type"] == f"{__name__}.BrokenError"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "BrokenError: no balance")
    assert [event.attributes["exception.message"] for event in span.events] == ["no balance"]
    assert span.attributes["http.response.status_code"] == 500


def test_a_cancelled_request_ends_its_span_and_is_no_error(spans):
    async def app(scope, receive, send):
        await asyncio.sleep(60)

    async def main():
        task = asyncio.create_task(OperationMiddleware(app)(scope(), receive, Sent()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    (span,) = spans.get_finished_spans()
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())


def test_a_streamed_answer_is_one_span_to_its_last_chunk_and_what_runs_afterwards_has_its_trace(spans):
    seen = {}

    async def chunks():
        for _ in range(3):
            await asyncio.sleep(0.01)
            seen["chunk"] = current_trace()
            yield b"x"

    async def afterwards():
        await asyncio.sleep(0.2)
        seen["background"] = current_trace()

    async def endpoint(request):
        return StreamingResponse(chunks(), background=BackgroundTask(afterwards))

    sent = serve(Starlette(routes=[Route("/", endpoint)]), scope())
    (span,) = spans.get_finished_spans()
    trace_id = f"{span.context.trace_id:032x}"
    assert seen == {"chunk": trace_id, "background": trace_id}
    assert sum(message["type"] == "http.response.body" for message in sent) == 4
    assert 30e6 <= span.end_time - span.start_time < 200e6


def test_the_lifespan_is_none_of_our_business(spans):
    async def app(scope, given_receive, given_send):
        assert (given_receive, given_send) == (receive, sent)
        return "done"

    sent = Sent()
    assert asyncio.run(OperationMiddleware(app)({"type": "lifespan"}, receive, sent)) == "done"
    assert spans.get_finished_spans() == ()


def test_what_the_application_returns_comes_back_for_the_server_complains_about_it(spans):
    async def app(scope, receive, send):
        return 5

    assert serve(app, scope()).result == 5


def test_the_correlation_id_of_the_caller_is_the_operations_and_does_not_go_on_by_itself(spans):
    seen = {}

    async def app(scope, receive, send):
        seen["correlation"] = current_operation().correlation_id
        seen["baggage"] = dict(baggage.get_all())
        await hello(scope, receive, send)

    headers = [("baggage", "tenant=a"), ("baggage", "jarvis.correlation_id=trade%201")]
    serve(app, scope(headers=headers))
    (span,) = spans.get_finished_spans()
    assert seen == {"correlation": "trade 1", "baggage": {"tenant": "a"}}
    assert span.attributes["jarvis.correlation_id"] == "trade 1"


def test_an_instrumentation_around_us_is_enough(spans):
    asyncio.run(OpenTelemetryMiddleware(OperationMiddleware(hello))(scope(), receive, Sent()))
    assert [span.instrumentation_scope.name for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER] == [
        "opentelemetry.instrumentation.asgi"
    ]


def test_an_instrumentation_within_us_is_enough(spans):
    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(OpenTelemetryMiddleware)
    app.middleware_stack = app.build_middleware_stack()
    serve(app, scope())
    names = {span.instrumentation_scope.name for span in spans.get_finished_spans()}
    assert names == {"opentelemetry.instrumentation.asgi"}


def test_two_of_us_open_one_span(spans):
    serve(OperationMiddleware(Starlette(routes=[Route("/", endpoint)])), scope())
    assert len(spans.get_finished_spans()) == 1


def test_a_span_around_the_whole_server_is_not_that_of_its_requests(spans):
    async def main():
        for _ in range(2):
            await OperationMiddleware(hello)(scope(), receive, Sent())

    with get_logger("app").context(correlation_id="start", user_id="admin"):
        asyncio.run(main())
    servers = [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert [span.parent for span in servers] == [None, None]
    assert len({span.context.trace_id for span in servers}) == 2


def test_an_operation_around_the_whole_server_is_not_that_of_its_requests(monkeypatch):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider())
    seen = []

    async def app(scope, receive, send):
        seen.append(current_operation())

    with get_logger("app").context(user_id="admin"):
        asyncio.run(OperationMiddleware(app)(scope(), receive, Sent()))
    assert seen == [None]


def test_the_trace_that_the_process_was_started_in_is_not_that_of_its_requests(spans):
    undo = continue_operation(PARENT, None, "jarvis.correlation_id=start")
    try:
        asyncio.run(OperationMiddleware(hello)(scope(), receive, Sent()))
    finally:
        undo()
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE
    assert "jarvis.correlation_id" not in span.attributes


def test_a_span_around_us_that_is_not_sampled_is_enough(spans):
    async def app(scope, receive, send):
        assert current_trace() == TRACE
        await hello(scope, receive, send)

    async def main():
        context = trace.SpanContext(int(TRACE, 16), 1, is_remote=False, trace_flags=trace.TraceFlags(0))
        with trace.use_span(trace.NonRecordingSpan(context)):
            await OperationMiddleware(app)(scope(), receive, Sent())

    asyncio.run(main())
    assert spans.get_finished_spans() == ()


def test_requests_at_once_keep_their_traces_apart(spans):
    seen = {}

    async def app(scope, receive, send):
        for _ in range(5):
            await asyncio.sleep(0)
            seen.setdefault(scope["path"], set()).add((current_trace(), current_operation().correlation_id))
        # a thread of the pool, and a task, are within the request
        seen[scope["path"]].add((await asyncio.to_thread(current_trace), scope["path"]))
        await asyncio.create_task(hello(scope, receive, send))

    async def main():
        middleware = OperationMiddleware(app)
        requests = (
            scope(f"/{number}", headers=[("baggage", f"jarvis.correlation_id=/{number}")]) for number in range(100)
        )
        await asyncio.gather(*(middleware(request, receive, Sent()) for request in requests))

    asyncio.run(main())
    assert seen == {
        span.attributes["url.path"]: {(f"{span.context.trace_id:032x}", span.attributes["url.path"])}
        for span in spans.get_finished_spans()
    }
    assert len({entry for entries in seen.values() for entry in entries}) == 100


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([{"type": "websocket.accept"}, {"type": "websocket.close"}], 101),
        ([{"type": "websocket.close"}], 403),
        ([{"type": "websocket.http.response.start", "status": 401}, {"type": "websocket.http.response.body"}], 401),
    ],
)
def test_a_websocket_is_one_span_with_the_answer_to_its_handshake(spans, messages, status):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    request = scope("/ws", scheme="ws")
    del request["method"]
    request["type"] = "websocket"
    sent = serve(app, request)
    (span,) = spans.get_finished_spans()
    assert sent == messages
    assert (span.name, span.attributes["url.scheme"], span.attributes["http.response.status_code"]) == (
        "GET",
        "ws",
        status,
    )


def test_a_websocket_route_names_the_span(spans):
    async def talk(websocket):
        await websocket.accept()
        await websocket.close()

    request = {**scope("/ws/7", scheme="ws"), "type": "websocket", "subprotocols": []}
    del request["method"]
    serve(Starlette(routes=[WebSocketRoute("/ws/{room}", talk)]), request)
    assert [span.name for span in spans.get_finished_spans()] == ["GET /ws/{room}"]


def test_the_client_is_whom_the_proxys_headers_name_where_the_server_believes_them(spans):
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    app = ProxyHeadersMiddleware(hello, trusted_hosts="192.0.2.7")
    serve(app, scope(headers=[("x-forwarded-for", "198.51.100.1"), ("x-forwarded-proto", "https")]))
    (span,) = spans.get_finished_spans()
    assert (span.attributes["client.address"], span.attributes["url.scheme"]) == ("198.51.100.1", "https")


odd = st.none() | st.integers() | st.text() | st.binary() | st.lists(st.text(), max_size=2)


@given(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["http", "websocket"])},
        optional={
            "method": odd,
            "path": odd,
            "scheme": odd,
            "root_path": odd,
            "client": odd,
            "server": odd,
            "http_version": odd,
            "route": odd,
            "headers": odd | st.lists(st.tuples(st.binary(), st.binary())),
        },
    ),
    st.one_of(odd, st.sampled_from(["http.response.start", "http.response.body"])),
    odd,
)
def test_no_scope_and_no_message_makes_us_break_a_request(request, kind, status):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope)
        await send({"type": kind, "status": status})
        return "done"

    sent = Sent()
    assert asyncio.run(OperationMiddleware(app)(request, receive, sent)) == "done"
    assert seen == [request]
    assert sent == [{"type": kind, "status": status}]


def test_a_tracer_that_fails_breaks_no_request(monkeypatch):
    class Failing:
        def __getattr__(self, name):
            raise BrokenError(name)

    monkeypatch.setattr(trace, "get_tracer", lambda *_: Failing())
    assert serve(hello, scope()).status == 200


def test_headers_that_can_be_read_only_once_are_left_to_the_application(spans):
    async def app(scope, receive, send):
        assert list(scope["headers"]) == [(b"a", b"b")]
        await hello(scope, receive, send)

    serve(app, scope() | {"headers": iter([(b"a", b"b")])})
    assert len(spans.get_finished_spans()) == 1


@contextlib.contextmanager
def uvicorn_serving(app):
    """An application behind uvicorn on a real socket, in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


class Records(logging.Handler):
    """Keeps what is logged, and in which trace."""

    def __init__(self):
        super().__init__()
        self.traces = []

    def emit(self, record):
        self.traces.append((record.getMessage().split(" - ")[-1].split("\n")[0], current_trace()))


@pytest.fixture
def records():
    handler = Records()
    loggers = [logging.getLogger(name) for name in ("uvicorn.access", "uvicorn.error")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    yield handler.traces
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
        logger.removeHandler(handler)


async def echo(scope, receive, send):
    """Reads a body of any size, answers with its length."""
    size, more = 0, True
    with get_logger("api").context(user_id=scope["path"]):
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        if scope["path"] == "/broken":
            raise BrokenError("here")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
        await send({"type": "http.response.body", "body": b"%08d" % size})


def test_requests_on_one_connection_have_traces_of_their_own_though_asyncio_lets_context_leak(spans, records):
    users = []

    async def app(scope, receive, send):
        users.append(operation.user_id if (operation := current_operation()) is not None else None)
        await echo(scope, receive, send)

    with uvicorn_serving(OperationMiddleware(app, outermost=True)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for number in range(4):
            # uvicorn stops reading at 64 KiB, and reads on in the context of the request that asks for more
            connection.request("POST", f"/{number}", body=b"x" * 1_000_000)
            assert connection.getresponse().read() == b"01000000"
        connection.close()
    finished = spans.get_finished_spans()
    assert [span.attributes["url.path"] for span in finished] == [f"/{number}" for number in range(4)]
    assert [span.parent for span in finished] == [None] * 4
    assert len({span.context.trace_id for span in finished}) == 4
    assert users == [None] * 4
    accesses = [entry for entry in records if "POST" in entry[0]]
    assert accesses == [
        (f'"POST /{number} HTTP/1.1" 200', f"{span.context.trace_id:032x}") for number, span in enumerate(finished)
    ]


def test_pipelined_requests_have_traces_of_their_own(spans, records):
    with (
        uvicorn_serving(OperationMiddleware(echo, outermost=True)) as port,
        socket.create_connection(("127.0.0.1", port), 20) as client,
    ):
        client.sendall(b"".join(b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % number for number in range(5)))
        until(lambda: len(spans.get_finished_spans()) == 5)
    finished = spans.get_finished_spans()
    assert [span.attributes["url.path"] for span in finished] == [f"/{number}" for number in range(5)]
    assert len({span.context.trace_id for span in finished}) == 5
    assert [entry[1] for entry in records if "GET" in entry[0]] == [
        f"{span.context.trace_id:032x}" for span in finished
    ]


def test_what_the_server_logs_of_a_failed_request_is_in_its_trace(spans, records):
    with uvicorn_serving(OperationMiddleware(echo, outermost=True)) as port:
        for _ in range(2):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/broken")
            assert connection.getresponse().status == 500
            connection.close()
    finished = [f"{span.context.trace_id:032x}" for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert len(set(finished)) == 2
    told = [entry for entry in records if entry[0].startswith(("Exception in ASGI", '"GET /broken'))]
    assert told == [
        (message, trace_id)
        for trace_id in finished
        for message in ("Exception in ASGI application", '"GET /broken HTTP/1.1" 500')
    ]
