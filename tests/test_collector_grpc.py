"""The collector's gRPC receiver as clients meet it: the SDK's exporters, and raw calls."""

import json
import signal
import socket
import threading
import time
from pathlib import Path

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from jarvis_collector.access import token_digest
from tests.collectors import certificate, command, commanded, logs, one_line, peak_memory, served, starting
from tests.ports import free_port

start = pytest.fixture(starting)
EXPORT = "/opentelemetry.proto.collector.{}Service/Export"
LOGS = EXPORT.format("logs.v1.Logs")


def request(*messages):
    sent = ExportLogsServiceRequest()
    records = sent.resource_logs.add().scope_logs.add().log_records
    for message in messages:
        records.add().body.string_value = message
    return sent.SerializeToString()


@pytest.fixture
def call():
    """Calls a method with raw bytes; gives the answer, or the error."""
    channels = []

    def one_call(collector, body, method=LOGS, credentials=None, **more):
        # each channel a connection of its own
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        options.append(("grpc.enable_retries", 0))
        address = f"localhost:{collector.grpc_port}"
        channel = grpc.secure_channel(address, credentials, options) if credentials else None
        channels.append(channel or grpc.insecure_channel(address, options))
        try:
            return channels[-1].unary_unary(method)(body, timeout=30, **more)
        except grpc.RpcError as error:
            return error

    yield one_call
    for channel in channels:
        channel.close()


@pytest.mark.parametrize(
    "compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate]
)
def test_the_sdks_exporters_deliver_logs_spans_and_metrics(start, compression):
    collector = start(grpc_port=0)
    to = {"endpoint": f"http://localhost:{collector.grpc_port}", "insecure": True, "compression": compression}
    tracers, loggers = TracerProvider(), LoggerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(**to)))
    loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(**to)))
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(**to))])
    with tracers.get_tracer("t").start_as_current_span("checkout"):
        loggers.get_logger("cart").emit(body="added " * 100)
    meters.get_meter("m").create_counter("orders").add(1)
    for provider in (tracers, loggers, meters):
        provider.shutdown()
    (record,), (span,), (metrics,) = (collector.lines(stream) for stream in ("jarvis", "traces", "metrics"))
    assert (record["message"], span["name"]) == ("added " * 100, "checkout")
    assert record["trace_id"] == span["trace_id"]
    assert metrics["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["name"] == "orders"
    assert collector.metrics()['jarvis_collector_grpc_requests_total{code="OK"}'] == 3


def test_an_answer_comes_when_the_records_are_written_and_both_receivers_write_one_file(start, call):
    collector = start(grpc_port=0)
    assert call(collector, request("grpc")) == b""
    assert collector.request(body=logs("http")).status == 200
    assert [line["message"] for line in collector.lines()] == ["grpc", "http"]
    assert json.loads(collector.request("GET", "/healthz").content)["grpc"] == "on"


def test_a_refused_record_is_told_in_partial_success(start, call):
    answer = call(start(grpc_port=0), request("good", "xx").replace(b"xx", b"\xff\xff"))
    assert ExportLogsServiceResponse.FromString(answer).partial_success.rejected_log_records == 1


@pytest.mark.parametrize(
    ("code", "body", "method"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, b"\xff", LOGS),
        (grpc.StatusCode.INVALID_ARGUMENT, b"\x1f\x8b not gzip", LOGS),
        (grpc.StatusCode.UNIMPLEMENTED, b"", "/opentelemetry.proto.collector.profiles.v1.ProfilesService/Export"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, b"x" * ((16 << 20) + 1), LOGS),
    ],
)
def test_what_cannot_be_taken_has_its_code_and_the_next_call_is_served(start, call, code, body, method):
    collector = start(grpc_port=0)
    error = call(collector, body, method)
    assert (error.code(), bool(error.details())) == (code, True)
    assert call(collector, request("fresh")) == b""
    assert [line["message"] for line in collector.lines()] == ["fresh"]


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_bombs_are_refused_and_memory_stays_bounded_however_many_come_at_a_time(start, call, compression):
    collector = start(grpc_port=0)
    call(collector, request("x"))
    before = peak_memory(collector)
    codes = []
    bomb = bytes(300 << 20)
    senders = [
        threading.Thread(target=lambda: codes.append(call(collector, bomb, compression=compression).code()))
        for _ in range(3)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
    assert peak_memory(collector) - before < 120 << 20
    assert call(collector, request("fresh")) == b""


def test_what_cannot_be_kept_is_unavailable_and_says_when_to_come_back(start, call, tmp_path):
    collector = start(grpc_port=0)
    call(collector, request("before"))
    collector.log_dir.rename(tmp_path / "away")
    error = call(collector, request("later"))
    trailers = dict(error.trailing_metadata())
    status, retry = Status.FromString(trailers["grpc-status-details-bin"]), RetryInfo()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert (status.code, status.message) == (14, error.details())
    assert status.details[0].Unpack(retry)
    assert (retry.retry_delay.seconds, trailers["grpc-retry-pushback-ms"]) == (2, "2000")
    (tmp_path / "away").rename(collector.log_dir)
    assert call(collector, request("after")) == b""


def test_both_receivers_share_one_bound(start, call):
    collector = start(grpc_port=0, max_pending=1000)
    head = (
        b"POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    )
    with collector.socket(head + b"x" * 900):
        while not collector.metrics()["jarvis_collector_held_bytes"]:
            time.sleep(0.01)
        assert call(collector, request("x" * 200)).code() is grpc.StatusCode.UNAVAILABLE
    while collector.metrics()["jarvis_collector_held_bytes"]:
        time.sleep(0.01)
    assert call(collector, request("x")) == b""


def test_a_call_without_a_token_is_refused_before_its_message_is_read(start, call):
    collector = start(grpc_port=0, tokens=[token_digest("right")])
    for metadata in (None, [("authorization", "Bearer wrong")], [("authorization", "Basic right")]):
        error = call(collector, b"x" * (30 << 20), metadata=metadata)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert call(collector, request("x"), metadata=[("authorization", "Bearer right")]) == b""


def test_a_message_that_does_not_come_to_its_end_is_given_up(start, call):
    collector = start(grpc_port=0, body_timeout=0.3)
    channel = grpc.insecure_channel(f"localhost:{collector.grpc_port}")
    never = threading.Event()
    error = channel.stream_unary(LOGS).future(iter(lambda: never.wait(20) or b"", None), timeout=20)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "in time" in error.details()
    never.set()
    channel.close()
    assert call(collector, request("fresh")) == b""


def test_tls_with_a_certificate_of_ones_own(start, call, tmp_path):
    cert, key, _ = certificate(tmp_path)
    collector = start(grpc_port=0, tls_cert=cert, tls_key=key)
    assert call(collector, request("x"), credentials=grpc.ssl_channel_credentials(cert.read_bytes())) == b""
    assert call(collector, request("x")).code() is grpc.StatusCode.UNAVAILABLE


def test_a_signal_ends_it_after_the_calls_in_flight_and_without_a_word_on_stderr_but_its_own(start, call):
    collector = start(grpc_port=0)
    bodies = [request(*(f"{number}-{n}" for n in range(2000))) for number in range(8)]
    answers = []
    senders = [threading.Thread(target=lambda body=body: answers.append(call(collector, body))) for body in bodies]
    for sender in senders:
        sender.start()
    while not collector.lines():
        pass
    assert collector.stop() == 0
    for sender in senders:
        sender.join()
    written = {line["message"] for line in collector.lines()}
    for answer in answers:
        # one of those that OTLP has clients send again
        assert answer == b"" or answer.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert len(written) >= 2000 * answers.count(b"")
    assert [line["message"].split()[0] for line in collector.said()] == ["listening", "stopped:"]


# --- its port


def test_a_port_that_nobody_named_and_that_is_taken_is_told_and_the_collector_goes_on(start, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        collector = start(grpc_port=port, grpc_required=False)
    warning = collector.said()[0]
    assert warning["level"] == "WARNING"
    assert warning["message"] == (
        f"gRPC is off: cannot listen on 127.0.0.1:{port} for gRPC: it is in use; stop what runs there or choose another "
        "--grpc-port; --grpc-port off says that none is wanted"
    )
    health = collector.request("GET", "/healthz")
    assert (health.status, json.loads(health.content)["grpc"][:4]) == (200, "off:")
    assert collector.grpc_port is None


@pytest.mark.parametrize("by", ["option", "setting"])
def test_a_port_that_was_named_and_is_taken_ends_the_start_in_one_line(tmp_path, by):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        named = ("--grpc-port", port) if by == "option" else ()
        environ = {} if by == "option" else {"JARVIS_COLLECTOR_GRPC_PORT": str(port)}
        said = one_line(command("--dir", tmp_path / "logs", "--port", 0, *named, **environ))
    assert said.startswith(f"jarvis collector: cannot listen on 127.0.0.1:{port} for gRPC: it is in use")


@pytest.mark.parametrize("how", ["option", "setting"])
def test_off_is_without(start, tmp_path, how):
    options, environ = (("--grpc-port", "off"), {}) if how == "option" else ((), {"JARVIS_COLLECTOR_GRPC_PORT": "off"})
    collector = start(tmp_path / "logs", *options, by=commanded, **environ)
    assert (collector.grpc_port, json.loads(collector.request("GET", "/healthz").content)["grpc"]) == (None, "off")


def test_without_grpcio_it_goes_on_unless_a_port_was_named(start, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "grpc.py").write_text("raise ModuleNotFoundError(name='grpc')")
    environ = {"PYTHONPATH": str(tmp_path / "lib")}
    collector = start(tmp_path / "logs", by=commanded, **environ)
    assert "grpcio is missing: pip install 'jarvis-otel[collector]'" in collector.said()[0]["message"]
    assert collector.request(body=logs("x")).status == 200
    said = one_line(command("--dir", tmp_path / "more", "--port", 0, "--grpc-port", free_port(), **environ))
    assert said == "jarvis collector: grpcio is missing: pip install 'jarvis-otel[collector]'\n"


def test_grpc_is_not_loaded_where_it_is_not_wanted(start):
    collector = start()
    maps = Path(f"/proc/{collector.process.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    loaded = maps.read_text()
    assert "httptools" in loaded
    assert "cygrpc" not in loaded


def test_sigkill_under_load_loses_no_acknowledged_call(start, call, tmp_path):
    acknowledged, collector = [], served(tmp_path / "logs", grpc_port=0)

    def send(name):
        for number in range(10_000):
            if call(collector, request(f"{name}-{number}")) != b"":
                return
            acknowledged.append(f"{name}-{number}")

    senders = [threading.Thread(target=send, args=(name,)) for name in range(4)]
    for sender in senders:
        sender.start()
    while len(acknowledged) < 200:
        pass
    collector.stop(signal.SIGKILL)
    for sender in senders:
        sender.join()
    again = start(tmp_path / "logs", grpc_port=0)
    assert set(acknowledged) <= {line["message"] for line in again.lines()}
