"""How an operation crosses processes by the headers of a request."""

import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from opentelemetry.util._once import Once

from jarvis_otel.logger import get_logger
from jarvis_otel.propagation import inject_headers, server_operation
from jarvis_otel.runtime import RUNTIME
from jarvis_otel.settings import Settings

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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


def test_baggage_that_is_there_stays(spans):
    with get_logger("api").context(correlation_id="c"):
        headers = inject_headers({"Baggage": "a=b"}, "http://127.0.0.1/")
    assert headers["Baggage"] == "a=b,jarvis.correlation_id=c"


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
