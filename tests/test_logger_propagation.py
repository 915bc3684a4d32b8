"""How an operation crosses processes: by the headers of a request, and by the environment of a child."""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind
from opentelemetry.util._once import Once

from jarvis_otel.carry import carry_operations
from jarvis_otel.context import OperationSpanProcessor, Scope, current_operation, received_correlation
from jarvis_otel.logger import get_logger
from jarvis_otel.propagation import (
    child_environ,
    continue_operation,
    guard_baggage,
    inject_headers,
    received_context,
    server_operation,
)
from jarvis_otel.runtime import RUNTIME
from jarvis_otel.settings import Settings

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
HERE, ELSEWHERE = "http://127.0.0.1/", "https://api.example.com/"


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    assert not Scope.exists()


def correlation():
    operation = current_operation()
    return operation.correlation_id if operation is not None else None


def trace_id():
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"


def members(headers):
    """The members of a baggage header by key."""
    text = next((value for name, value in headers.items() if name.lower() == "baggage"), "")
    return dict(member.partition("=")[::2] for member in text.split(",") if member)


@pytest.fixture
def spans(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    return exporter


def test_the_trace_context_goes_anywhere_and_the_correlation_id_only_where_it_may(spans, monkeypatch):
    monkeypatch.setattr(RUNTIME, "settings", Settings.load({"JARVIS_BAGGAGE_HOSTS": "trading.internal"}))
    with get_logger("api").context(correlation_id="trade 1/ä"):
        span = trace.get_current_span().get_span_context()
        for url in ("http://127.0.0.1:5/x", "http://localhost/", "http://[::1]:80/", "https://trading.internal/"):
            headers = inject_headers({}, url)
            assert headers == {
                "traceparent": f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}",
                "baggage": "jarvis.correlation_id=trade%201%2F%C3%A4",
            }
        for url in (
            "https://api.example.com/",
            "http://127.0.0.1.example.com/",
            "http://10.0.0.1/",
            "nonsense",
            "http://[",
        ):
            assert list(inject_headers({}, url)) == ["traceparent"]


def test_baggage_that_is_there_stays_under_the_name_that_it_has(spans):
    with get_logger("api").context(correlation_id="c"):
        headers = inject_headers({"Baggage": "a=b;p=1, c = d"}, HERE)
        assert headers["Baggage"] == "jarvis.correlation_id=c,a=b;p=1,c = d"
        assert "baggage" not in headers
        assert inject_headers({"Baggage": "a=b"}, ELSEWHERE)["Baggage"] == "a=b"


def test_without_an_operation_nothing_is_added():
    assert inject_headers({"a": "b"}, "http://127.0.0.1/") == {"a": "b"}


def test_a_served_request_continues_the_trace_and_the_correlation(spans, caplog):
    with server_operation(
        {"Traceparent": PARENT, "Baggage": "x=y, jarvis.correlation_id=trade-1;p=1"}, "POST /trade", "api"
    ):
        get_logger("api").info("x")
    entry = json.loads(caplog.records[-1].getMessage())
    (span,) = spans.get_finished_spans()
    assert (entry["correlation_id"], entry["trace_id"]) == ("trade-1", "0af7651916cd43dd8448eb211c80319c")
    assert (span.name, span.kind, span.attributes["jarvis.service"]) == ("POST /trade", SpanKind.SERVER, "api")
    assert span.attributes["jarvis.correlation_id"] == "trade-1"
    assert span.parent.span_id == 0xB7AD6B7169203331


@pytest.mark.parametrize(
    "baggage",
    [
        "",
        "jarvis.correlation_id=",
        f"jarvis.correlation_id={'x' * 129}",
        "jarvis.correlation_id=a%0Ab",
        "=,;",
        "x" * 100_000,
    ],
)
def test_a_correlation_id_that_is_not_fit_is_ignored_and_the_trace_id_stands_in(spans, caplog, baggage):
    with server_operation({"baggage": baggage}, "GET /", "api"):
        get_logger("api").info("x")
    entry = json.loads(caplog.records[-1].getMessage())
    assert entry["correlation_id"] == entry["trace_id"]


def test_an_exception_passes_through_and_marks_the_span(spans):
    with pytest.raises(ZeroDivisionError), server_operation({}, "GET /", "api"):
        1 / 0  # noqa: B018
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]


def test_two_services_on_real_sockets_share_trace_and_correlation(spans, caplog):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            with server_operation(self.headers, "GET /", "engine"):
                get_logger("engine").info("served")
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/"
    with get_logger("api").context(correlation_id="trade-7"):
        get_logger("api").info("calling")
        with urllib.request.urlopen(urllib.request.Request(url, headers=inject_headers({}, url))) as response:
            assert response.status == 204
    thread.join()
    server.server_close()
    calling, served = (json.loads(record.getMessage()) for record in caplog.records)
    assert calling["correlation_id"] == served["correlation_id"] == "trade-7"
    assert calling["trace_id"] == served["trace_id"]


# Requests that go out


def test_headers_of_a_request_that_is_passed_on_are_replaced(spans):
    received = {"Traceparent": PARENT, "TRACESTATE": "old=1", "baggage": "a=b,jarvis.correlation_id=theirs,Jarvis.x=y"}
    with get_logger("api").context(correlation_id="mine"):
        inner = inject_headers(dict(received), HERE)
        outer = inject_headers(dict(received), ELSEWHERE)
        here = trace_id()
    assert members(inner) == {"jarvis.correlation_id": "mine", "a": "b"}
    assert members(outer) == {"a": "b"}
    for headers in (inner, outer):
        # the tracestate was that of another traceparent
        assert {name.lower() for name in headers} == {"traceparent", "baggage"}
        assert [name for name in headers if name.lower() == "traceparent"] == ["traceparent"]
        assert headers["traceparent"].split("-")[1] == here


def test_headers_that_are_passed_on_outside_of_any_operation_stay_but_for_our_members():
    received = {"Traceparent": PARENT, "Tracestate": "a=1", "baggage": "a=b,jarvis.correlation_id=theirs"}
    assert inject_headers(dict(received), HERE) == {**received, "baggage": "a=b"}


def test_our_members_alone_leave_no_empty_header_behind(spans):
    with get_logger("api").context(correlation_id="mine"):
        assert list(inject_headers({"baggage": "jarvis.correlation_id=theirs"}, ELSEWHERE)) == ["traceparent"]


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example\\@127.0.0.1/",
        "http://127.0.0.1@evil.example/",
        "http://localhost.example/",
        "http://127.0.0.1.nip.io/",
        "//",
        "",
        None,
        5,
    ],
)
def test_an_address_that_is_not_plainly_allowed_gets_no_correlation_id(spans, url):
    with get_logger("api").context(correlation_id="c"):
        assert list(inject_headers({}, url)) == ["traceparent"]


def test_allowed_hosts_are_meant_in_any_case(spans, monkeypatch):
    monkeypatch.setattr(RUNTIME, "settings", Settings.load({"JARVIS_BAGGAGE_HOSTS": "Trading.Internal"}))
    with get_logger("api").context(correlation_id="c"):
        assert members(inject_headers({}, "https://TRADING.internal:8443/x")) == {"jarvis.correlation_id": "c"}


def test_nothing_of_a_user_goes_out(spans):
    with get_logger("api").context("c", "user-1", ["FLAG"], session_id="session-1", tenant="tenant-1"):
        text = json.dumps(inject_headers({}, HERE)) + json.dumps(child_environ({}))
    assert not any(word in text for word in ("user-1", "session-1", "tenant-1", "FLAG"))


def test_opentelemetrys_baggage_goes_along_as_its_own_propagator_would_send_it(spans):
    token = otel_context.attach(baggage.set_baggage("tenant", "a b"))
    with get_logger("api").context(correlation_id="c"):
        assert members(inject_headers({}, ELSEWHERE)) == {"tenant": "a+b"}
        assert members(inject_headers({"baggage": "tenant=mine,x=y"}, HERE)) == {
            "jarvis.correlation_id": "c", "tenant": "mine", "x": "y",
        }  # fmt: skip
    otel_context.detach(token)


def test_what_is_too_much_for_the_specification_is_left_out_and_our_member_is_not(spans):
    many = ",".join(f"key{number}=value" for number in range(300))
    large = ",".join(f"key{number}={'x' * 1_000}" for number in range(20))
    for text in (many, large, "x=" + "y" * 10_000):
        with get_logger("api").context(correlation_id="c" * 128):
            sent = inject_headers({"baggage": text}, HERE)["baggage"]
        assert len(sent) <= 8_192
        assert len(sent.split(",")) <= 180
        assert received_correlation(received_context({"baggage": sent})) == "c" * 128
    assert len(members({"baggage": sent})) == 1


def test_a_propagator_that_raises_costs_the_headers_and_not_the_request(spans, monkeypatch):
    class Broken(W3CBaggagePropagator):
        def inject(self, *args, **kwargs):
            raise RuntimeError("never")

        def extract(self, *args, **kwargs):
            raise RuntimeError("never")

    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", Broken())
    with get_logger("api").context(correlation_id="c"):
        assert inject_headers({"a": "b"}, HERE) == {"a": "b"}
        assert child_environ({"a": "b"}) == {"a": "b"}
    with server_operation({"traceparent": PARENT}, "GET /", "api"):
        assert trace_id() != TRACE


def test_otel_propagators_keeps_its_meaning():
    code = """
import sys
from jarvis_otel import get_logger
from jarvis_otel.propagation import inject_headers, received_context
with get_logger("api").context(correlation_id="c"):
    print(sorted(inject_headers({}, "http://127.0.0.1/")))
    print(len(received_context({"traceparent": sys.argv[1]})))
"""
    for value, expected in (("none", "['baggage']\n0\n"), ("tracecontext", "['baggage', 'traceparent']\n1\n")):
        done = subprocess.run(
            [sys.executable, "-c", code, PARENT],
            env={**os.environ, "OTEL_PROPAGATORS": value},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout == expected


class Echo:
    """A server that remembers the headers of what it was asked, and may send the client elsewhere."""

    def __init__(self):
        self.requests = []
        echo = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                echo.requests.append(dict(self.headers.items()))
                self.send_response(302 if self.path.startswith("http") or self.path.startswith("/to/") else 204)
                if self.path.startswith("/to/"):
                    self.send_header("Location", f"http://{self.path[4:]}/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.mark.parametrize("name", ["httpx", "requests"])
def test_the_examples_for_http_clients_work_and_a_redirect_does_not_take_the_correlation_id_along(
    spans, name, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "*")
    client = pytest.importorskip(name)

    def get(url):
        if name == "httpx":

            def hook(request):
                inject_headers(request.headers, str(request.url))

            with client.Client(event_hooks={"request": [hook]}, follow_redirects=True) as session:
                return session.get(url)

        class Adapter(client.adapters.HTTPAdapter):
            def add_headers(self, request, **options):
                inject_headers(request.headers, request.url)

        with client.Session() as session:
            session.mount("http://", Adapter())
            return session.get(url)

    with Echo() as echo, get_logger("api").context(correlation_id="c"):
        here = trace_id()
        # 127.1 is this machine as well, but not plainly so
        assert get(f"http://127.0.0.1:{echo.port}/to/127.1:{echo.port}").status_code == 204
    first, second = ({name.lower(): value for name, value in headers.items()} for headers in echo.requests)
    assert members(first) == {"jarvis.correlation_id": "c"}
    assert members(second) == {}
    assert first["traceparent"].split("-")[1] == second["traceparent"].split("-")[1] == here


# Requests that come in


@settings(deadline=None)
@given(st.text())
def test_a_correlation_id_that_was_sent_arrives_as_it_was_or_not_at_all(correlation_id):
    with get_logger("api").context(correlation_id=correlation_id):
        here = current_operation().correlation_id
        headers = inject_headers({}, HERE)
    arrived = received_correlation(received_context(headers))
    fit = 0 < len(here) <= 128 and here.isprintable()
    assert arrived == (here if fit else None)
    assert ("baggage" in headers) == fit


HEADER = st.one_of(
    st.text(),
    st.binary().map(lambda data: data.decode("latin-1")),
    st.lists(
        st.sampled_from(["jarvis.correlation_id=", "x=1", "%", "%ff", "%zz", ";", ",", "=", " ", "\x00", "\n", "a"])
    ).map("".join),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["baggage", "BAGGAGE", "traceparent", "tracestate"]), HEADER), max_size=5))
def test_no_headers_whatever_make_a_request_fail_or_put_our_members_into_opentelemetrys_baggage(headers):
    with server_operation(headers, "GET /", "api"):
        assert (correlation() or "x").isprintable()
        assert not any(key.startswith("jarvis.") for key in baggage.get_all())


def test_baggage_of_others_is_kept_and_ours_is_not_put_beside_it(spans):
    sent = "tenant=t%20x;p=1,jarvis.correlation_id=c,jarvis.other=1,empty="
    with server_operation({"baggage": sent}, "GET /", "api"):
        assert dict(baggage.get_all()) == {"tenant": "t x;p=1", "empty": ""}
        assert correlation() == "c"
        assert members(inject_headers({}, ELSEWHERE)) == {"tenant": "t+x%3Bp%3D1", "empty": ""}
        injected = {}
        propagate.inject(injected)
        assert "jarvis" not in json.dumps(injected)


def test_headers_may_be_pairs_and_bytes_and_come_twice(spans):
    headers = [(b"Baggage", b"tenant=t"), (b"baggage", b"jarvis.correlation_id=c"), (b"traceparent", PARENT.encode())]
    with server_operation(headers, "GET /", "api"):
        assert (correlation(), trace_id(), dict(baggage.get_all())) == ("c", TRACE, {"tenant": "t"})
    with server_operation([("traceparent", PARENT), ("traceparent", PARENT)], "GET /", "api"):
        assert trace_id() != TRACE


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("jarvis.correlation_id=first,jarvis.correlation_id=second", "first"),
        ("jarvis.correlation_id=%ff,jarvis.correlation_id=second", "second"),
        (" jarvis.correlation_id = spaced ;p=1", "spaced"),
        ("jarvis.correlation_id=a%zz", "a%zz"),
        ("jarvis.correlation_id=a\x00b", None),
        ("jarvis.correlation_id=a%00b", None),
        ("jarvis.correlation_id=%1b[31m", None),
        ("jarvis.correlation_id=%E2%80%AE", None),
        ("jarvis.correlation_id=%ed%b2%80", None),
        ("jarvis.correlation_id=a b", None),
        ("JARVIS.correlation_id=c", None),
        ("x=1," * 180 + "jarvis.correlation_id=late", None),
        ("x=1," * 179 + "jarvis.correlation_id=in-time", "in-time"),
        ("x=" + "y" * 8_185 + ",jarvis.correlation_id=late", None),
        # cut in the middle of our own member, half of it is not taken for the whole
        ("x=" + "y" * 8_163 + ",jarvis.correlation_id=cut-off", None),
    ],
)  # fmt: skip
def test_of_a_hostile_header_only_what_is_valid_counts(spans, sent, expected):
    assert received_correlation(received_context({"baggage": sent})) == expected


def test_a_hostile_header_is_not_repeated_in_the_log(spans, caplog):
    for sent in ("x=" + "y" * 10_000, "a\x1b[31m=b", "ä=ö", ",,,;;;", "x=1," * 500, "k=" + "v" * 5_000):
        received_context({"baggage": sent})
    assert caplog.records == []


def test_baggage_that_is_too_large_is_cut_after_a_whole_member():
    sent = ",".join(f"key{number}={'x' * 100}" for number in range(200))
    kept = baggage.get_all(received_context({"baggage": sent}))
    assert 70 < len(kept) < 80
    assert set(map(len, map(str, kept.values()))) == {100}


def test_a_served_request_takes_nothing_over_from_an_operation_around_it(monkeypatch):
    for processors in ([], [OperationSpanProcessor()]):
        provider = TracerProvider()
        for processor in processors:
            provider.add_span_processor(processor)
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
        token = otel_context.attach(baggage.set_baggage("boot", "1"))
        with get_logger("main").context("boot", "root", ["F"], tenant="t"):
            boot, here = current_operation(), trace_id()
            with server_operation({}, "GET /", "api"):
                operation = current_operation()
                assert (operation.correlation_id, operation.user_id, operation.declared) == (None, None, ())
                assert (operation.service, operation.fields, dict(baggage.get_all())) == ("api", {}, {})
                assert trace_id() != here
            assert (current_operation(), trace_id()) == (boot, here)
        otel_context.detach(token)


def test_a_server_that_was_started_within_an_operation_serves_requests_apart_from_it(spans):
    undo = carry_operations()
    results = []

    def serve():
        results.append(correlation())
        with server_operation({}, "GET /", "api"):
            results.append(correlation())

    with get_logger("main").context(correlation_id="boot"):
        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
    undo()
    assert results == ["boot", None]


def test_an_exception_without_a_text_passes_through_a_served_request(spans):
    class MuteError(Exception):
        def __str__(self):
            raise RuntimeError("never")

    with pytest.raises(MuteError), server_operation({}, "GET /", "api"):
        raise MuteError
    assert len(spans.get_finished_spans()) == 1


def test_a_request_that_is_not_sampled_is_in_its_callers_trace_all_the_same(monkeypatch):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider(sampler=ALWAYS_OFF))
    with server_operation({"traceparent": PARENT}, "GET /", "api"):
        assert trace_id() == TRACE


def test_where_nothing_traces_a_request_is_in_its_callers_trace_or_one_of_its_own():
    with server_operation({"traceparent": PARENT}, "GET /", "api"):
        assert trace_id() == TRACE
        assert inject_headers({}, ELSEWHERE)["traceparent"].startswith(f"00-{TRACE}-")
    with server_operation({}, "GET /", "api"):
        assert trace_id() not in (TRACE, "0" * 32)


# OpenTelemetry's own instrumentations


@pytest.fixture
def guarded():
    before = propagate.get_global_textmap()
    undo = guard_baggage()
    yield
    undo()
    assert propagate.get_global_textmap() is before


def test_our_member_that_an_instrumented_server_received_does_not_leave_by_an_instrumented_client(guarded, monkeypatch):
    provider = TracerProvider()
    provider.add_span_processor(OperationSpanProcessor())
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    received = propagate.extract({"traceparent": PARENT, "baggage": "tenant=t,jarvis.correlation_id=c"})
    assert dict(baggage.get_all(received)) == {"tenant": "t"}
    tracer = trace.get_tracer("instrumentation")
    token = otel_context.attach(received)
    with tracer.start_as_current_span("GET /", kind=SpanKind.SERVER) as span:
        assert (correlation(), trace_id()) == ("c", TRACE)
        assert span.attributes["jarvis.correlation_id"] == "c"
        with tracer.start_as_current_span("GET https://api.example.com", kind=SpanKind.CLIENT):
            sent = {}
            propagate.inject(sent)
        assert members(inject_headers({}, HERE)) == {"jarvis.correlation_id": "c", "tenant": "t"}
    otel_context.detach(token)
    assert sent["baggage"] == "tenant=t"


def test_our_member_does_not_leave_even_where_someone_put_it_into_the_baggage(guarded):
    sent = {}
    propagate.inject(sent, baggage.set_baggage("jarvis.correlation_id", "c", baggage.set_baggage("tenant", "t")))
    assert sent == {"baggage": "tenant=t"}


def test_the_guard_changes_nothing_else(guarded):
    carrier = {"traceparent": PARENT, "tracestate": "a=1", "baggage": "tenant=t"}
    plain = propagate.get_global_textmap()._guarded
    assert (
        propagate.extract(carrier) == plain.extract(carrier)
        or dict(propagate.extract(carrier)).keys() == dict(plain.extract(carrier)).keys()
    )
    sent = {}
    propagate.inject(sent, propagate.extract(carrier))
    assert sent == carrier
    assert propagate.get_global_textmap().fields == plain.fields
    assert propagate.extract({}) == {}


def test_a_propagator_that_was_set_later_stays(monkeypatch):
    before = propagate.get_global_textmap()
    undo = guard_baggage()
    theirs = W3CBaggagePropagator()
    propagate.set_global_textmap(theirs)
    undo()
    assert propagate.get_global_textmap() is theirs
    propagate.set_global_textmap(before)


# The environment of a child


def test_a_child_environment_names_the_operation_and_nothing_stale(spans):
    stale = {"PATH": "/bin", "TRACEPARENT": PARENT, "TRACESTATE": "old=1", "BAGGAGE": "jarvis.correlation_id=old"}
    assert child_environ(stale) == stale
    with get_logger("api").context(user_id="u"):
        made = child_environ(stale)
        here = trace_id()
    assert made == {"PATH": "/bin", "TRACEPARENT": made["TRACEPARENT"]}
    assert made["TRACEPARENT"].split("-")[1] == here
    with get_logger("api").context(correlation_id="a b"):
        assert child_environ(stale)["BAGGAGE"] == "jarvis.correlation_id=a%20b"
    assert stale["BAGGAGE"] == "jarvis.correlation_id=old"


def test_without_an_argument_it_is_this_processs_own_environment(spans, monkeypatch):
    monkeypatch.setenv("MINE", "1")
    assert child_environ() == dict(os.environ)
    with get_logger("api").context(correlation_id="c"):
        assert (child_environ()["MINE"], "TRACEPARENT" in child_environ(), "TRACEPARENT" in os.environ) == (
            "1",
            True,
            False,
        )


def test_a_process_goes_on_with_the_operation_in_its_environment_until_that_is_undone(spans):
    undo = continue_operation(PARENT, "vendor=x", "tenant=t,jarvis.correlation_id=c")
    assert (correlation(), trace_id(), dict(baggage.get_all())) == ("c", TRACE, {"tenant": "t"})
    with get_logger("child").context(user_id="u"):
        assert (correlation(), trace_id()) == ("c", TRACE)
    undo()
    assert not Scope.exists()
    (span,) = spans.get_finished_spans()
    assert f"{span.parent.span_id:016x}" == SPAN


@pytest.mark.parametrize(
    "given",
    [(None, None, None), ("", "", ""), ("garbage", "x", "y"), (PARENT.replace("a", "0") + "x", None, "jarvis.correlation_id=%00"), (None, "vendor=x", None), ("\x00", "\x00", "\x00")],
)  # fmt: skip
def test_what_is_not_valid_in_the_environment_is_ignored(given):
    undo = continue_operation(*given)
    assert not Scope.exists()
    undo()


def test_a_correlation_id_alone_is_enough_and_an_operation_there_is_goes_on(spans):
    undo = continue_operation(baggage="jarvis.correlation_id=c")
    assert (correlation(), trace_id()) == ("c", "0" * 32)
    # a second time, as within any operation, nothing happens
    again = continue_operation(PARENT, None, "jarvis.correlation_id=other")
    assert correlation() == "c"
    again()
    with get_logger("child").context():
        assert (correlation(), trace_id() != "0" * 32) == ("c", True)
    undo()


def test_a_child_process_is_in_the_operation_that_started_it(spans):
    code = """
import os
from opentelemetry import trace
from jarvis_otel.context import current_operation
from jarvis_otel.propagation import child_environ, continue_operation
continue_operation(os.environ.get("TRACEPARENT"), os.environ.get("TRACESTATE"), os.environ.get("BAGGAGE"))
span = trace.get_current_span().get_span_context()
print(current_operation().correlation_id, f"{span.trace_id:032x}", child_environ() == dict(os.environ))
"""
    with get_logger("api").context(correlation_id="trade-7"):
        here = trace_id()
        done = subprocess.run(
            [sys.executable, "-c", code], env=child_environ(), capture_output=True, text=True, timeout=60, check=True
        )
    assert done.stdout.split() == ["trade-7", here, "True"]
