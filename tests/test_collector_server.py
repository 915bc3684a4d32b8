"""The collector as clients meet it: a real process, real sockets, and what is in its files afterwards."""

import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

SERVE = """
import json, sys
from pathlib import Path
from jarvis_collector.config import CollectorConfig
from jarvis_collector.server import run
run(CollectorConfig(Path(sys.argv[1]), port=0, **json.loads(sys.argv[2])), ready=lambda port: print(port, flush=True))
"""
JSON, PROTOBUF = "application/json", "application/x-protobuf"


class Process:
    """A collector in a process of its own."""

    def __init__(self, log_dir, **limits):
        self.log_dir = log_dir
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SERVE, str(log_dir), json.dumps(limits)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.port = int(self.process.stdout.readline() or 0)

    def request(self, method="POST", path="/v1/logs", body=b"", content_type=JSON, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            named = {"Content-Type": content_type, **{key.replace("_", "-"): value for key, value in headers.items()}}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            response.content = response.read()
            return response
        finally:
            connection.close()

    def socket(self, sent=b""):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(sent)
        return connection

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors

    def lines(self, stream="jarvis"):
        # two files where midnight comes while the test runs
        paths = sorted(self.log_dir.glob(f"{stream}-*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.fixture
def start(tmp_path):
    started = []

    def start_one(log_dir=tmp_path / "logs", **limits):
        process = Process(log_dir, **limits)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.stop(signal.SIGKILL)


def logs(*messages):
    records = [{"body": {"stringValue": message}} for message in messages]
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}).encode()


def read_all(connection):
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def test_the_sdks_exporters_deliver_logs_spans_and_metrics(start):
    collector = start()
    base = f"http://127.0.0.1:{collector.port}/v1"
    resource = Resource({"service.name": "shop"})
    tracers, loggers = TracerProvider(resource=resource), LoggerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/traces", compression=Compression.Gzip)))
    loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{base}/logs")))
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(f"{base}/metrics"))], resource=resource)
    with tracers.get_tracer("t").start_as_current_span("checkout") as span:
        loggers.get_logger("shop.cart").emit(body="added", attributes={"symbol": "SOL"}, event_name="cart.added")
    meters.get_meter("m").create_counter("orders").add(1)
    for provider in (tracers, loggers, meters):
        provider.shutdown()
    (record,), (line,), (metrics,) = (collector.lines(stream) for stream in ("jarvis", "traces", "metrics"))
    trace_id = format(span.get_span_context().trace_id, "032x")
    assert (record["message"], record["service"], record["logger"]) == ("added", "shop", "shop.cart")
    assert (record["event"], record["context"]) == ("cart.added", {"symbol": "SOL"})
    assert record["correlation_id"] == record["trace_id"] == line["trace_id"] == trace_id
    assert (line["name"], line["service"], line["kind"]) == ("checkout", "shop", "internal")
    assert metrics["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["name"] == "orders"


@pytest.mark.parametrize("content_type", [JSON, PROTOBUF, "Application/JSON; charset=utf-8"])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_accepted_request_is_answered_in_its_own_encoding_and_is_in_the_file(start, content_type, encoding):
    collector = start()
    body = logs("hello")
    if content_type == PROTOBUF:
        request = ExportLogsServiceRequest()
        request.resource_logs.add().scope_logs.add().log_records.add().body.string_value = "hello"
        body = request.SerializeToString()
    if encoding == "gzip":
        body = gzip.compress(body[:10]) + gzip.compress(body[10:])
    response = collector.request(body=body, content_type=content_type, Content_Encoding=encoding)
    expected = (200, b"", PROTOBUF) if content_type == PROTOBUF else (200, b"{}", JSON)
    assert (response.status, response.content, response.headers["Content-Type"]) == expected
    assert [line["message"] for line in collector.lines()] == ["hello"]


def test_a_refused_record_is_told_in_partial_success_and_its_neighbours_are_written(start):
    collector = start()
    body = json.loads(logs("before", "bad", "after"))
    body["resourceLogs"][0]["scopeLogs"][0]["logRecords"][1]["traceId"] = "xyz"
    response = collector.request(body=json.dumps(body))
    partial = json.loads(response.content)["partialSuccess"]
    assert (response.status, partial["rejectedLogRecords"]) == (200, "1")
    assert partial["errorMessage"].startswith("1 of 3 refused; the first: resourceLogs[0].scopeLogs[0].logRecords[1]: ")
    assert [line["message"] for line in collector.lines()] == ["before", "after"]


def test_a_refused_protobuf_record_is_told_in_partial_success(start):
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add().body.string_value = "xx"
    body = request.SerializeToString().replace(b"xx", b"\xff\xff")
    response = start().request(body=body, content_type=PROTOBUF)
    answer = ExportLogsServiceResponse.FromString(response.content)
    assert (response.status, answer.partial_success.rejected_log_records) == (200, 1)


BOMB = zlib.compressobj(9, zlib.DEFLATED, 31)
BOMB = BOMB.compress(bytes(80 << 20)) + BOMB.flush()


@pytest.mark.parametrize(
    ("status", "code", "request_"),
    [
        (400, 3, {"body": b"{"}),
        (400, 3, {"body": b"\xff", "content_type": PROTOBUF}),
        (400, 3, {"body": b"no gzip", "Content_Encoding": "gzip"}),
        (400, 3, {"body": gzip.compress(logs("x"))[:-12], "Content_Encoding": "gzip"}),
        (403, 7, {"body": logs("x"), "Host": "evil.example:4318"}),
        (404, 5, {"path": "/v1/profiles"}),
        (405, 12, {"method": "GET"}),
        (405, 12, {"method": "POST", "path": "/healthz"}),
        (413, 8, {"body": b"x" * ((16 << 20) + 1)}),
        (413, 8, {"body": iter([b"x" * (1 << 20)] * 17)}),
        (413, 8, {"body": BOMB, "Content_Encoding": "gzip"}),
        (415, 3, {"body": logs("x"), "content_type": "text/plain"}),
        (415, 3, {"body": logs("x"), "Content_Encoding": "br"}),
    ],
)
def test_an_error_is_a_status_in_the_requests_own_encoding_and_the_next_request_is_served(
    start, status, code, request_
):
    collector = start()
    response = collector.request(**request_)
    if request_.get("content_type") == PROTOBUF:
        answered = Status.FromString(response.content)
        got, message = answered.code, answered.message
    else:
        answered = json.loads(response.content)
        got, message = answered["code"], answered["message"]
    assert (response.status, got) == (status, code)
    assert message
    assert "\n" not in message
    assert collector.request(body=logs("fresh")).status == 200
    assert [line["message"] for line in collector.lines()] == ["fresh"]


def test_a_bomb_is_refused_without_being_inflated_whole(start):
    collector = start()
    collector.request(body=logs("x"))
    before = peak_memory(collector)
    assert collector.request(body=BOMB, Content_Encoding="gzip").status == 413
    assert peak_memory(collector) - before < 100 << 20


def peak_memory(collector):
    status = Path(f"/proc/{collector.process.pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1", "127.8.8.8:1", "[::1]:4318"])
def test_any_name_of_this_machine_from_within_may_stand_in_host(start, host):
    assert start().request("GET", "/healthz", Host=host).status == 200


def test_health_and_metrics_tell_how_it_is(start):
    collector = start()
    collector.request(body=logs("a", "b"))
    collector.request(body=b"{")
    assert json.loads(collector.request("GET", "/healthz").content) == {"status": "ok"}
    metrics = collector.request("GET", "/metrics").content.decode().splitlines()
    assert 'jarvis_collector_records_written_total{signal="logs"} 2' in metrics
    assert 'jarvis_collector_requests_total{code="400"} 1' in metrics
    assert "jarvis_collector_held_bytes 0" in metrics


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/logs HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_not_http_is_answered_400_or_404_and_closed(start, sent):
    with start().socket(sent) as connection:
        assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404")


def test_headers_without_end_are_refused(start):
    collector = start()
    with collector.socket(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 40_000) as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 431")
    with collector.socket(b"GET /healthz HTTP/1.1\r\n" + b"X: x\r\n" * 200 + b"\r\n") as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 431")


def test_many_requests_sent_at_once_are_answered_in_order(start):
    collector = start()
    one = (
        b"POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"
    )
    bodies = [logs(f"m{number}") for number in range(300)]
    sent = b"".join(one % (len(body), b"", body) for body in bodies[:-1])
    sent += one % (len(bodies[-1]), b"Connection: close\r\n", bodies[-1])
    with collector.socket() as connection:
        sender = threading.Thread(target=connection.sendall, args=(sent,))
        sender.start()
        received = read_all(connection)
        sender.join()
    assert received.count(b"HTTP/1.1 200 OK") == 300
    assert [line["message"] for line in collector.lines()] == [f"m{number}" for number in range(300)]


def test_a_client_that_asks_first_is_told_to_go_on(start):
    collector = start()
    head = "POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nConnection: close\r\n"
    with collector.socket(f"{head}Content-Length: {len(logs('x'))}\r\n\r\n".encode()) as connection:
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(logs("x"))
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_slow_headers_and_slow_bodies_are_closed_and_others_are_served_meanwhile(start):
    collector = start(head_timeout=0.5, body_timeout=0.5, idle_timeout=0.5)
    slow = [
        collector.socket(sent)
        for sent in (
            b"",
            b"POST /v1/lo",
            b"POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
        )
    ]
    assert collector.request(body=logs("x")).status == 200
    answers = [read_all(connection)[:12] for connection in slow]
    for connection in slow:
        connection.close()
    assert answers == [b"", b"HTTP/1.1 408", b"HTTP/1.1 408"]


def test_idle_connections_make_room_for_new_ones(start):
    collector = start(max_connections=5)
    idle = [collector.socket() for _ in range(20)]
    assert collector.request(body=logs("x")).status == 200
    for connection in idle:
        connection.close()


def test_more_than_may_wait_is_answered_503_with_retry_after(start):
    collector = start(max_pending=1000)
    response = collector.request(body=logs("x" * 5000))
    assert (response.status, response.headers["Retry-After"]) == (503, "2")
    assert collector.request(body=logs("small")).status == 200


def test_a_directory_that_cannot_be_written_is_503_and_degraded_until_it_can(start, tmp_path):
    collector = start()
    collector.request(body=logs("before"))
    collector.log_dir.rename(tmp_path / "away")
    response = collector.request(body=logs("lost?"))
    assert (response.status, response.headers["Retry-After"]) == (503, "2")
    health = collector.request("GET", "/healthz")
    assert (health.status, json.loads(health.content)["status"]) == (503, "degraded")
    assert "No such file or directory" in json.loads(health.content)["reason"]
    (tmp_path / "away").rename(collector.log_dir)
    assert collector.request(body=logs("after")).status == 200
    assert collector.request("GET", "/healthz").status == 200
    assert [line["message"] for line in collector.lines()] == ["before", "after"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_request_in_flight(start, number):
    collector = start()
    body = logs("in flight")
    head = f"POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with collector.socket(head.encode() + body[:10]) as connection, collector.socket():
        assert collector.request("GET", "/healthz").status == 200
        collector.process.send_signal(number)
        while listening(collector.port):
            time.sleep(0.01)
        connection.sendall(body[10:])
        assert read_all(connection).startswith(b"HTTP/1.1 200")
    code, errors = collector.stop()
    assert code == 0
    assert (
        errors == f"jarvis collector: listening on http://127.0.0.1:{collector.port}, writing to {collector.log_dir}/\n"
    )
    assert [line["message"] for line in collector.lines()] == ["in flight"]


def listening(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_sigkill_under_load_loses_no_acknowledged_record(start, tmp_path):
    log_dir = tmp_path / "logs"
    sent, acknowledged = set(), set()
    for round_ in range(5):
        collector = start(log_dir)
        senders = [
            threading.Thread(target=send_until_it_dies, args=(collector, f"{round_}-{n}", sent, acknowledged))
            for n in range(4)
        ]
        for sender in senders:
            sender.start()
        while len(acknowledged) < (round_ + 1) * 300:
            time.sleep(0.01)
        collector.stop(signal.SIGKILL)
        for sender in senders:
            sender.join()
    last = start(log_dir)
    assert last.request(body=logs("fresh")).status == 200
    written = [line["message"] for line in last.lines()]
    assert acknowledged <= set(written)
    assert set(written) <= sent | {"fresh"}


def send_until_it_dies(collector, name, sent, acknowledged):
    connection = http.client.HTTPConnection("127.0.0.1", collector.port, timeout=20)
    try:
        for number in range(100_000):
            messages = [f"{name}-{number}-{n}-" + "x" * 200 for n in range(20)]
            sent.update(messages)
            connection.request("POST", "/v1/logs", logs(*messages), {"Content-Type": JSON})
            if connection.getresponse().read() == b"{}":
                acknowledged.update(messages)
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()


# --- the command

COMMAND = """
import argparse, sys
from jarvis_otel.cli.collector import add_parser
parser = argparse.ArgumentParser("jarvis")
add_parser(parser.add_subparsers())
args = parser.parse_args(sys.argv[1:])
sys.exit(args.func(args))
"""


def command(*args, **environ):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", COMMAND, "collector", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **environ},
    )


def one_line(done):
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_second_collector_in_a_directory_is_refused_in_one_line(start):
    collector = start()
    said = one_line(command("--dir", collector.log_dir, "--port", 0))
    assert said == (
        f"jarvis collector: another collector (pid {collector.process.pid}) writes in {collector.log_dir}; "
        "stop it or choose another --dir\n"
    )


def test_a_port_in_use_is_told_in_one_line(start, tmp_path):
    collector = start()
    said = one_line(command("--dir", tmp_path / "other", "--port", collector.port))
    assert said.startswith(f"jarvis collector: cannot listen on 127.0.0.1:{collector.port}: it is in use")


def test_a_directory_that_is_a_file_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    said = one_line(command("--dir", tmp_path / "file" / "logs", "--port", 0))
    assert said == f"jarvis collector: cannot write in {tmp_path}/file/logs: Not a directory\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org"])
def test_an_address_that_others_can_reach_is_refused_in_one_line(tmp_path, host):
    assert one_line(command("--dir", tmp_path, "--host", host)).startswith(
        f"jarvis collector: host: got '{host}', want"
    )


def test_a_bad_setting_is_told_in_one_line(tmp_path):
    said = one_line(command("--dir", tmp_path, JARVIS_HOME=str(tmp_path), JARVIS_COLLECTOR_PORT="high"))
    assert said.startswith("jarvis: ")
    assert "high" in said


def test_a_missing_library_is_told_in_one_line(tmp_path):
    (tmp_path / "httptools.py").write_text("raise ModuleNotFoundError(name='httptools')")
    said = one_line(command("--dir", tmp_path / "logs", PYTHONPATH=str(tmp_path)))
    assert said == "jarvis collector: httptools is missing: pip install 'jarvis-otel[collector]'\n"


def test_the_port_file_has_the_true_port_and_modes_keep_others_out(tmp_path):
    port_file = tmp_path / "port"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            COMMAND,
            "collector",
            "--dir",
            tmp_path / "logs",
            "--port",
            "0",
            "--port-file",
            port_file,
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = process.stderr.readline()
        while not port_file.exists():
            time.sleep(0.01)
        assert (
            said
            == f"jarvis collector: listening on http://127.0.0.1:{int(port_file.read_text())}, writing to {tmp_path}/logs/\n"
        )
        assert (tmp_path / "logs").stat().st_mode & 0o027 == 0
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_help_has_an_example():
    done = command("--help")
    assert (done.returncode, "example:\n  jarvis collector --dir logs" in done.stdout) == (0, True)
