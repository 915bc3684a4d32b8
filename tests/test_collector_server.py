"""The collector as clients meet it: a real process, real sockets, and what is in its files afterwards."""

import contextlib
import gzip
import http.client
import json
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib

import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
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

from jarvis_collector.inflate import inflate
from jarvis_collector.otlp import BadRequestError, TooLargeError
from tests.collectors import (
    COMMAND,
    JSON,
    PROTOBUF,
    command,
    commanded,
    logs,
    one_line,
    peak_memory,
    read_all,
    starting,
)

try:
    from compression import zstd
except ModuleNotFoundError:  # before Python 3.14
    from backports import zstd

start = pytest.fixture(starting)
FILES = resource.getrlimit(resource.RLIMIT_NOFILE)


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


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("ZSTD", zstd.compress)],
)
@pytest.mark.parametrize("content_type", [JSON, PROTOBUF])
def test_each_content_encoding_is_read_in_both_encodings_of_otlp(start, encoding, compress, content_type):
    body = logs("hello")
    if content_type == PROTOBUF:
        request = ExportLogsServiceRequest()
        request.resource_logs.add().scope_logs.add().log_records.add().body.string_value = "hello"
        body = request.SerializeToString()
    collector = start()
    # several members, one after the other
    sent = compress(body[:9]) + compress(body[9:])
    assert collector.request(body=sent, content_type=content_type, Content_Encoding=encoding).status == 200
    assert [line["message"] for line in collector.lines()] == ["hello"]


def test_what_content_encodings_are_taken_is_said(start):
    answer = start().request(body=logs("x"), Content_Encoding="br").content
    assert json.loads(answer)["message"] == "Content-Encoding: want one of gzip, deflate, zstd, or none"


@given(st.binary(max_size=300_000), st.sampled_from(["gzip", "deflate", "zstd"]), st.integers(1, 3), st.data())
def test_inflating_gives_what_was_compressed_and_never_more_than_its_limit(content, encoding, members, data):
    compress = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress}[encoding]
    sent, whole = compress(content) * members, content * members
    assert inflate(sent, encoding, len(whole)) == whole
    if whole:
        with pytest.raises(TooLargeError):
            inflate(sent, encoding, data.draw(st.integers(0, len(whole) - 1)))
    with pytest.raises(BadRequestError):
        inflate(sent[: data.draw(st.integers(len(sent) - len(sent) // members + 1, len(sent) - 1))], encoding, 1 << 20)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "zstd"]))
def test_what_is_not_compressed_at_all_is_a_bad_request(content, encoding):
    with contextlib.suppress(BadRequestError, TooLargeError):
        assert len(inflate(content, encoding, 1 << 16)) <= 1 << 16


def test_a_body_of_a_million_empty_members_costs_no_more_than_a_thousand(start):
    collector = start()
    response = collector.request(body=gzip.compress(b"") * 700_000, Content_Encoding="gzip")
    assert (response.status, json.loads(response.content)["message"]) == (400, "not gzip: over 1000 members")


BOMBS = {"gzip": gzip.compress(bytes(80 << 20)), "deflate": zlib.compress(bytes(80 << 20), 9)}
BOMBS["zstd"] = zstd.compress(bytes(80 << 20))
BOMB = BOMBS["gzip"]


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


@pytest.mark.parametrize("encoding", BOMBS)
def test_a_bomb_is_refused_without_being_inflated_whole(start, encoding):
    collector = start()
    collector.request(body=logs("x"))
    before = peak_memory(collector)
    for _ in range(3):
        assert collector.request(body=BOMBS[encoding], Content_Encoding=encoding).status == 413
    assert peak_memory(collector) - before < 100 << 20


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1", "127.8.8.8:1", "[::1]:4318"])
def test_any_name_of_this_machine_from_within_may_stand_in_host(start, host):
    assert start().request("GET", "/healthz", Host=host).status == 200


def test_health_and_metrics_tell_how_it_is(start):
    collector = start()
    collector.request(body=logs("a", "b"))
    collector.request(body=b"{")
    health = json.loads(collector.request("GET", "/healthz").content)
    assert (health["status"], health["records_written"]) == ("ok", 2)
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


HEAD = b"POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKS = b"2\r\n{}\r\n0\r\n\r\n"


AMBIGUOUS = [
    b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n" + CHUNKS,
    b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"Content-Length: 2, 2\r\n\r\n{}",
    b"Content-Length: +2\r\n\r\n{}",
    b"Content-Length: 0x2\r\n\r\n{}",
    b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKS,
    b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + CHUNKS,
    b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS,
    b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx0\r\n\r\n",
    b"X: a\r\n folded: b\r\nContent-Length: 2\r\n\r\n{}",
    b"X: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
]


def test_a_request_whose_length_could_be_read_in_two_ways_is_refused_and_its_connection_closed(start):
    collector = start()
    answers = {}
    for sent in AMBIGUOUS:
        with collector.socket(HEAD + sent + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
            answers[sent] = re.findall(rb"HTTP/1.1 (\d+)", read_all(connection))
    assert {sent: codes for sent, codes in answers.items() if codes not in ([b"400"], [b"501"], [b"413"])} == {}


def test_a_request_without_a_length_has_no_body(start):
    with start().socket(HEAD + b"Connection: close\r\n\r\n") as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 400")


def test_a_body_that_ends_before_its_length_is_not_taken(start):
    collector = start()
    with collector.socket(HEAD + b"Content-Length: 1000\r\n\r\n" + logs("half")) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
    assert collector.request(body=logs("whole")).status == 200
    assert [line["message"] for line in collector.lines()] == ["whole"]


def test_what_is_sent_beyond_its_length_is_another_request(start):
    collector = start()
    body = logs("one")
    with collector.socket(HEAD + b"Content-Length: %d\r\n\r\n%sxyz" % (len(body), body)) as connection:
        assert re.findall(rb"HTTP/1.1 (\d+)", read_all(connection)) == [b"200", b"400"]
    assert [line["message"] for line in collector.lines()] == ["one"]


def test_headers_without_end_are_refused(start):
    collector = start()
    with collector.socket(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 40_000) as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 431")
    with collector.socket(b"GET /healthz HTTP/1.1\r\n" + b"X: x\r\n" * 200 + b"\r\n") as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("before", [b"", HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(logs("one")), logs("one"))])
def test_who_still_sends_when_he_is_refused_gets_the_answer(start, before):
    """A connection that is closed with something unread is reset, and then the answer may be lost."""
    collector = start()
    for _ in range(20):
        with collector.socket(before) as connection:
            connection.sendall(b"xyz " * 100_000)
            assert re.findall(rb"HTTP/1.1 (\d+)", read_all(connection)) == [b"200"] * bool(before) + [b"400"]


def test_who_sends_on_without_end_after_a_refusal_is_cut_off(start):
    with start().socket(b"xyz") as connection:
        connection.settimeout(60)
        assert read_all(connection).startswith(b"HTTP/1.1 400")
        is_cut_off = False
        while not is_cut_off:
            try:
                connection.sendall(b"x" * 1000)
            except (ConnectionResetError, BrokenPipeError):
                is_cut_off = True


CHUNKED = (
    b"POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def test_trailers_change_nothing_and_those_without_end_are_refused(start):
    collector = start()
    body = b"%x\r\n%s\r\n0\r\n" % (len(logs("one")), logs("one"))
    with collector.socket(CHUNKED + body + b"Content-Type: text/plain\r\nContent-Encoding: br\r\n\r\n") as connection:
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).startswith(b"HTTP/1.1 200")
    assert [line["message"] for line in collector.lines()] == ["one"]
    for endless in (b"X: " + b"x" * 200_000, b"X: x\r\n" * 40_000):
        with collector.socket(CHUNKED + body) as connection:
            connection.sendall(endless)
            assert read_all(connection).startswith(b"HTTP/1.1 431")
    assert collector.metrics()["jarvis_collector_held_bytes"] == 0


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


def test_a_thousand_idle_connections_keep_nobody_from_being_served(start):
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, FILES[1]), FILES[1]))
    collector = start(grpc_port=0)
    idle = [collector.socket(b"POST /v1/logs" * (number % 2)) for number in range(1000)]
    try:
        assert [collector.request(body=logs("x")).status for _ in range(5)] == [200] * 5
        assert collector.metrics()["jarvis_collector_connections"] <= 512
    finally:
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
    assert collector.stop() == 0
    assert [line["message"] for line in collector.said()] == [
        f"listening on http://127.0.0.1:{collector.port}, writing to {collector.log_dir}/",
        "stopped: 1 records written, 0 refused, 0 could not be written",
    ]
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
            "--grpc-port",
            "off",
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
        assert json.loads(said)["context"]["port"] == int(port_file.read_text())
        assert (tmp_path / "logs").stat().st_mode & 0o027 == 0
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_files_and_directories_are_closed_to_others_whatever_the_umask_permits(start, own_project):
    config = {"JARVIS_COLLECTOR_COMPONENTS": "true"}
    collector = start(own_project / "deep" / "logs", by=commanded, **config)
    collector.request(body=logs("x"))
    collector.request("POST", "/v1/traces", json.dumps({"resourceSpans": []}).encode())
    collector.stop()
    made = [own_project / "deep", *(own_project / "deep").rglob("*"), *(own_project / "var").rglob("*")]
    modes = {path: path.stat().st_mode & 0o777 for path in made}
    assert any(path.name.startswith("jarvis-") for path in modes)
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o027} == {}


def test_help_has_an_example():
    done = command("--help")
    assert (done.returncode, "example:\n  jarvis collector --dir logs" in done.stdout) == (0, True)
