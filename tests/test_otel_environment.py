"""The OTEL_* variables mean here what OpenTelemetry's SDK means by them, and nothing that a user has set up is lost."""

import gzip
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor

from jarvis_otel.otlp_client import OtlpClient
from jarvis_otel.settings import Settings
from tests.http_peers import HttpPeer, PeerHandler
from tests.otlp_sink import logs_at

MIB = 1024 * 1024


class Peer(HttpPeer):
    """What a collector, or a proxy before it, sees of each request; it answers 200 unless it is told otherwise."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self.answer = (200, {}, b"{}")
        peer = self

        class Handler(PeerHandler):
            timeout = 20

            def setup(self):
                super().setup()
                peer.connections += 1

            def do_POST(self):  # noqa: N802 - as http.server calls it
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {key.lower(): value for key, value in self.headers.items()}
                encoding = headers.get("content-encoding")
                body = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(encoding, bytes)(body)
                peer.requests.append((self.path, headers, body))
                status, extra, content = peer.answer
                self.reply(status, extra, content)

            def do_CONNECT(self):  # noqa: N802 - as http.server calls it
                port = self.path.rpartition(":")[2]
                peer.requests.append((f"CONNECT {self.path}", {k.lower(): v for k, v in self.headers.items()}, b""))
                with socket.create_connection(("127.0.0.1", int(port)), 10) as beyond:
                    self.send_response(200)
                    self.end_headers()
                    back = threading.Thread(target=pour, args=(beyond, self.connection), daemon=True)
                    back.start()
                    pour(self.connection, beyond)
                    back.join(10)
                self.close_connection = True

        super().__init__(Handler, tls=tls)

    def bodies(self, path):
        return [body for at, _, body in self.requests if at == path]

    def records(self):
        """The log records that arrived, as JSON of ours or protobuf of the stock exporter: their bodies."""
        found = []
        for body in self.bodies("/v1/logs"):
            if body.startswith(b"{"):
                for resource in json.loads(body)["resourceLogs"]:
                    for scope in resource["scopeLogs"]:
                        found += [record["body"].get("stringValue") for record in scope["logRecords"]]
            else:
                for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
                    for scope in resource.scope_logs:
                        found += [record.body.string_value for record in scope.log_records]
        return found

    def spans(self):
        return [
            span.name
            for body in self.bodies("/v1/traces")
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def metrics(self):
        return {
            metric.name
            for body in self.bodies("/v1/metrics")
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def pour(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture
def peers():
    """Makes peers, and ends them."""
    made = []

    def make(tls=None):
        made.append(Peer(tls))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


@pytest.fixture
def peer(peers):
    return peers()


@pytest.fixture(autouse=True)
def flags(flag_file):
    flag_file("flags: {}")


def load(**environ):
    return Settings.load(environ)


def post(target, body=b'{"resourceLogs":[]}'):
    """What comes of one request on a connection of its own."""
    client = OtlpClient(target)
    try:
        return client.post(body)
    finally:
        client.close()


def app(code, *, path=(), **environ):
    """What becomes of an application that runs this code."""
    places = [str(place) for place in path] + [os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), **environ},
        check=False,
    )


# --- where OTLP goes ---


@pytest.mark.parametrize(
    ("environ", "logs", "traces"),
    [
        ({}, "http://127.0.0.1:4318/v1/logs", "http://127.0.0.1:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1"}, "http://c:1/v1/logs", "http://c:1/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c/otel/"}, "https://c/otel/v1/logs", "https://c/otel/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c:1"}, "http://c:1", "http://127.0.0.1:4318/v1/traces"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://d:2/in?k=v"},
            "http://d:2/in?k=v",
            "http://c:1/v1/traces",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, "http://127.0.0.1:4318/v1/logs", "http://127.0.0.1:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:1"}, "http://[::1]:1/v1/logs", "http://[::1]:1/v1/traces"),
    ],
)
def test_the_general_endpoint_gets_the_signals_path_and_the_signals_own_is_used_as_it_is(environ, logs, traces):
    settings = load(**environ)
    assert (settings.otlp_logs.url, settings.otlp_traces.url) == (logs, traces)
    assert settings.problems == settings.notes == ()


ENVIRONMENTS = [
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "{url}"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "{url}/"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "{url}/a/b"},
    {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "{url}"},
    {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "{url}/x?y=z", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "{url}", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "{url}", "OTEL_EXPORTER_OTLP_COMPRESSION": "deflate"},
    {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "{url}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "none",
    },
    {"OTEL_EXPORTER_OTLP_ENDPOINT": "{url}", "OTEL_EXPORTER_OTLP_HEADERS": "Api-Key=a%20b%3D, x-2 = 1=2 ,,"},
    {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "{url}",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=general,more=1",
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "api-key=own",
    },
]


@pytest.mark.parametrize("environ", ENVIRONMENTS)
def test_a_request_looks_as_the_stock_exporter_makes_it_but_for_its_encoding(environ, peer, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value.format(url=peer.url))
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter()))
    provider.get_logger("a").emit(body="theirs")
    provider.shutdown()
    assert post(Settings.load().otlp_logs).status == 200
    (their_path, theirs, _), (path, ours, body) = peer.requests
    for headers in (theirs, ours):
        for name in ("content-type", "content-length", "user-agent", "accept", "accept-encoding", "connection"):
            headers.pop(name, None)
    assert (path, {**ours, "accept-encoding": None}) == (their_path, {**theirs, "accept-encoding": None})
    assert body == b'{"resourceLogs":[]}'


NAMES = st.sampled_from(["api-key", "X-Token", "a", "b"])
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters=',";\\'), max_size=8)


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(NAMES, VALUES), max_size=4, unique_by=lambda pair: pair[0]), st.sampled_from([",", " , ", ",,"])
)
@example([("a", "%E2%82%AC")], ",")
@example([("a", "%0d%0aevil: 1")], ",")
def test_headers_are_read_as_the_sdk_reads_them(pairs, comma):
    from opentelemetry.util.re import parse_env_headers

    text = comma.join(f"{name}={value}" for name, value in pairs)
    read = load(OTEL_EXPORTER_OTLP_HEADERS=text)
    theirs = dict(parse_env_headers(text, liberal=True))
    # what no HTTP request can carry is refused here, not at each request
    fit = {
        name: value for name, value in theirs.items() if value.isprintable() and max(map(ord, value), default=0) < 256
    }
    assert dict(read.otlp_logs.headers) == fit
    assert len(read.problems) == len(theirs) - len(fit)


def test_a_name_and_password_in_an_endpoint_become_a_header_and_are_never_shown(peer):
    read = load(OTEL_EXPORTER_OTLP_ENDPOINT=peer.url.replace("://", "://jarvis:s3cr%40t@"))
    assert post(read.otlp_logs).status == 200
    ((_, headers, _),) = peer.requests
    assert headers["authorization"] == "Basic amFydmlzOnMzY3JAdA=="
    assert "s3cr" not in repr(read)
    assert "amFydmlz" not in repr(read)
    assert read.otlp_endpoint == peer.url


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "c:4318",
            "got 'c:4318', want a URL with http or https; did you mean http://c:4318?",
        ),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "ftp://c", "got 'ftp://c', want a URL with http or https"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:pw@h:99999", "got 'h:99999', want a URL with http or https"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://", "got 'http://', want a URL with http or https"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "got 'soon', want seconds from 0 to 600"),
        ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "10000", "got '10000', want seconds from 0 to 600"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "br", "got 'br', want one of none, gzip, deflate"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "udp", "got 'udp', want one of grpc, http/protobuf, http/json"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,s3cret", "pair 2 is no name=value that can be a header"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "ca.pem", "got 'ca.pem', but there is no such file"),
        ("OTEL_LOGS_EXPORTER", "none,otlp", "got 'none,otlp', want none alone, or names of exporters"),
        ("OTEL_SDK_DISABLED", "yes", "got 'yes', want true or false"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "-1", "got '-1', want a number from 0 up"),
        ("JARVIS_SPOOL_MAX_BYTES", "3MiB", "got '3MiB', want bytes from 4MiB to 64GiB"),
        ("JARVIS_SPOOL_MAX_BYTES", "much", "got 'much', want bytes from 4MiB to 64GiB"),
        ("JARVIS_REDACT", "perhaps", "got 'perhaps', want true or false"),
        (
            "JARVIS_REDACT_KEYS",
            "a(",
            "got 'a(', which is no regular expression: missing ), unterminated subpattern at position 1",
        ),
    ],
)
def test_a_bad_value_is_one_line_that_names_it_and_the_default_stands_in(variable, value, line):
    read = load(**{variable: value})
    assert read.problems == (f"{variable}: {line}",)
    default = load()
    for name in (
        "otlp_logs",
        "logs_exporters",
        "sdk_disabled",
        "spool_max_bytes",
        "redact",
        "redact_keys",
    ):
        if "HEADERS" not in variable:
            assert getattr(read, name) == getattr(default, name)


@pytest.mark.parametrize(
    "name", ["ENDPOINT", "HEADERS", "TIMEOUT", "COMPRESSION", "PROTOCOL", "CERTIFICATE", "CLIENT_KEY"]
)
def test_an_empty_variable_is_an_unset_one_and_leaves_the_general_one(name):
    empty = load(**{f"OTEL_EXPORTER_OTLP_LOGS_{name}": "", f"OTEL_EXPORTER_OTLP_{name}": " "})
    assert (empty, empty.problems) == (load(), ())
    behind = load(
        OTEL_EXPORTER_OTLP_LOGS_TIMEOUT="", OTEL_EXPORTER_OTLP_TIMEOUT="7.5", OTEL_EXPORTER_OTLP_TRACES_TIMEOUT="8"
    )
    assert (behind.otlp_logs.timeout, behind.otlp_traces.timeout) == (7.5, 8.0)


GRPC = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}


@pytest.mark.parametrize(
    ("environ", "logs", "grpc"),
    [
        (GRPC, "http://127.0.0.1:4318/v1/logs", "http://localhost:4317"),
        ({**GRPC, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "http://c:4318/v1/logs", "http://c:4317"),
        ({**GRPC, "OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317"}, "https://c:4318/v1/logs", "https://c:4317"),
        (
            {**GRPC, "OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"},
            "http://c:4318/v1/logs",
            "http://c:4317",
        ),
        ({**GRPC, "OTEL_EXPORTER_OTLP_ENDPOINT": "https://[::1]:9"}, "https://[::1]:4318/v1/logs", "https://[::1]:9"),
        # without a protocol the SDK's own `otlp` is gRPC, and 4317 its port
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "http://c:4318/v1/logs", "http://c:4317"),
        (
            {"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c:9"},
            "http://c:4318/v1/logs",
            "http://c:9",
        ),
    ],
)
def test_records_are_never_posted_to_a_grpc_port_and_one_line_says_where_they_go(environ, logs, grpc):
    read = load(**environ)
    assert (read.otlp_logs.url, read.otlp_logs.grpc, read.problems) == (logs, grpc, ())
    (note,) = read.notes
    assert "is gRPC, but log records travel over HTTP" in note
    assert f"they go to {logs};" in note
    assert "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT" in note
    assert load(**environ, OTEL_LOGS_EXPORTER="none").notes == ()


def test_the_cure_that_the_line_names_is_one():
    cured = load(**GRPC, OTEL_EXPORTER_OTLP_LOGS_ENDPOINT="http://c:4318/v1/logs")
    assert (cured.otlp_logs.url, cured.otlp_logs.grpc, cured.notes) == ("http://c:4318/v1/logs", None, ())
    assert cured.otlp_traces.grpc == "http://localhost:4317"


def test_http_on_the_port_of_grpc_is_done_where_it_is_asked_for_and_told():
    read = load(OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", OTEL_EXPORTER_OTLP_ENDPOINT="http://c:4317")
    assert read.otlp_logs.url == "http://c:4317/v1/logs"
    (note,) = read.notes
    assert note.startswith("OTEL_EXPORTER_OTLP_ENDPOINT: port 4317 is usually gRPC's")


# --- the rest of the settings ---


def test_any_variable_names_the_service_before_the_file_does(own_project):
    (own_project / "config" / "jarvis.yaml").write_text("service_name: file\n")
    attributes = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=attri%20bute,a=b"}
    assert load(**os.environ).service_name == "file"
    assert load(**os.environ, **attributes).service_name == "attri bute"
    assert load(**os.environ, **attributes, JARVIS_SERVICE_NAME="ours").service_name == "ours"
    assert load(**os.environ, **attributes, JARVIS_SERVICE_NAME="ours", OTEL_SERVICE_NAME="otel").service_name == "otel"


def test_each_limit_of_attributes_that_the_sdk_could_not_use_is_told():
    assert load(OTEL_ATTRIBUTE_COUNT_LIMIT="50", OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT="").problems == ()
    read = load(OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT="seven", OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT="-90")
    assert read.problems == (
        "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT: got 'seven', want a number from 0 up",
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT: got '-90', want a number from 0 up",
    )


def test_the_trace_that_a_process_was_started_in_is_read():
    read = load(TRACEPARENT="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", TRACESTATE="a=b", BAGGAGE="")
    assert read.traceparent == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert (read.tracestate, read.baggage) == ("a=b", None)


def test_the_file_has_the_keys_of_redaction_limits_and_spool(own_project):
    (own_project / "config" / "jarvis.yaml").write_text(
        textwrap.dedent("""
        redact: false
        redact_keys: [x_code, "pin\\\\d+"]
        redact_patterns: {ours: 'JRV-[0-9]+', bad: '(', worse: 5}
        redact_allow: [cookie_policy]
        limits: {trading: {sample: 0.5}, other: {smaple: 1}}
        state_dir: state
        spool_max_bytes: 64 MB
        capture_warnings: no
        capture_exceptions: false
        """)
    )
    read = load(**os.environ)
    assert (read.redact, read.redact_keys, read.redact_allow) == (False, ("x_code", "pin\\d+"), {"cookie_policy"})
    assert read.redact_patterns == {"ours": "JRV-[0-9]+"}
    assert set(read.limits) == {"trading"}
    assert read.limits["trading"].sample == 0.5
    assert (read.spool_dir, read.spool_max_bytes) == (own_project / "state" / "spool", 64_000_000)
    assert (read.capture_warnings, read.capture_exceptions) == (False, False)
    bad, worse, limit = (line.removeprefix(f"{own_project}/config/jarvis.yaml: ") for line in read.problems)
    assert bad.startswith("redact_patterns.bad: got '(', which is no regular expression")
    assert worse == "redact_patterns.worse: got 5, want a regular expression as text"
    assert limit.startswith("limits.other.smaple: unknown setting; did you mean sample?")


def test_the_spool_lies_where_the_state_is_unless_it_is_named(own_project, tmp_path):
    assert load(**os.environ).spool_dir == own_project / "var" / "spool"
    assert load(**os.environ, JARVIS_STATE_DIR="/s").spool_dir == Path("/s/spool")
    read = load(**os.environ, JARVIS_SPOOL_DIR=str(tmp_path), JARVIS_SPOOL_MAX_BYTES="1GiB")
    assert (read.spool_dir, read.spool_max_bytes) == (tmp_path, 1024 * MIB)


def test_the_settings_file_of_the_project_shows_every_key_that_is_read():
    from jarvis_otel.settings import _KEYS

    shown = (Path(__file__).parent.parent / "config" / "jarvis.yaml").read_text()
    # secrets are to stand in a file of their own, or in a variable
    assert {key for key in _KEYS if f"\n# {key}:" not in shown} == {"telegram_token", "etcd_password"}


# --- the connection ---


def test_requests_share_a_connection_and_one_that_was_closed_meanwhile_is_opened_again(peer):
    client = OtlpClient(logs_at(peer.url, timeout=3.0))
    assert [client.post(b"{}").status for _ in range(3)] == [200, 200, 200]
    assert peer.connections == 1
    peer.answer = (200, {"connection": "close"}, b"{}")
    assert [client.post(b"{}").status for _ in range(2)] == [200, 200]
    assert peer.connections == 2
    client.close()


def test_what_a_peer_says_is_bounded_and_harmless(peer):
    client = OtlpClient(logs_at(peer.url, timeout=3.0))
    peer.answer = (503, {"retry-after": "9" * 400}, b"x" * MIB)
    answer = client.post(b"{}")
    assert (answer.status, answer.reason, answer.retry_after) == (503, "HTTP 503 Service Unavailable", 300.0)
    message = json.dumps({"partialSuccess": {"rejectedLogRecords": "2", "errorMessage": "\x1b[31m" + "x" * 999}})
    peer.answer = (200, {}, message.encode())
    answer = client.post(b"{}")
    assert (answer.rejected, answer.reason[:10], len(answer.reason)) == (2, "\\x1b[31mxx", 200)
    peer.answer = (200, {}, b'{"partialSuccess":{"rejectedLogRecords":1e999}}')
    assert client.post(b"{}").rejected == 0
    client.close()


def raw_peer(answer):
    """A peer that takes one connection and does with it as it is told."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listener.accept()
        with connection, listener:
            connection.recv(65536)
            answer(connection)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_an_answer_that_trickles_is_given_up_after_the_timeout():
    def trickle(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n")
        try:
            while True:
                connection.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    began = time.monotonic()
    answer = OtlpClient(logs_at(raw_peer(trickle), timeout=0.5)).post(b"{}")
    assert (answer.status, answer.reason) == (0, "the answer takes too long")
    assert time.monotonic() - began < 20


def test_garbage_instead_of_an_answer_is_told_harmlessly():
    garbage = raw_peer(lambda c: c.sendall(b"\x1b]0;evil\x07" * 40 + b"\r\n\r\n"))
    answer = OtlpClient(logs_at(garbage, timeout=2.0)).post(b"{}")
    assert answer.status == 0
    assert answer.reason.isprintable()
    assert len(answer.reason) <= 200


# --- proxies ---


def test_a_proxy_takes_requests_to_other_machines(peer):
    read = load(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://collector.test:4318",
        HTTP_PROXY=peer.url.replace("://", "://user:pw%21@"),
    )
    assert post(read.otlp_logs).status == 200
    ((path, headers, body),) = peer.requests
    assert path == "http://collector.test:4318/v1/logs"
    assert (headers["host"], headers["proxy-authorization"]) == ("collector.test:4318", "Basic dXNlcjpwdyE=")
    # beyond this machine bodies are compressed unless somebody said otherwise
    assert (headers["content-encoding"], body) == ("gzip", b'{"resourceLogs":[]}')
    assert "pw" not in repr(read)


@pytest.mark.parametrize(
    "environ",
    [
        {"NO_PROXY": "*"},
        {"NO_PROXY": "other, collector.test"},
        {"no_proxy": ".test"},
        {"NO_PROXY": "collector.test:4318"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://10.1.2.3:4318", "NO_PROXY": "10.0.0.0/8"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.8.8.8:4318"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:4318"},
        {"REQUEST_METHOD": "GET"},
    ],
)
def test_no_proxy_stands_before_hosts_that_need_none_nor_before_this_machine(environ):
    general = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.test:4318", "HTTP_PROXY": "http://proxy:3128"}
    assert load(**general).otlp_logs.proxy == "http://proxy:3128"
    assert load(**{**general, **environ}).otlp_logs.proxy is None


def test_a_proxy_that_cannot_be_used_is_told_and_passed_by():
    read = load(OTEL_EXPORTER_OTLP_ENDPOINT="https://collector.test", ALL_PROXY="socks5://u:pw@proxy:1080")
    assert (read.otlp_logs.proxy, read.problems) == (None, ())
    (note,) = read.notes
    assert note.startswith("ALL_PROXY: got 'proxy:1080', which log records cannot pass")


def test_neither_records_nor_spans_go_through_a_proxy_to_this_machine(peer, peers):
    proxy = peers()
    code = """
        from jarvis_otel import configure, get_logger
        configure("trading", console=False)
        with get_logger("trading").context(correlation_id="1"):
            get_logger("trading").info("direct")
    """
    done = app(code, OTEL_EXPORTER_OTLP_ENDPOINT=peer.url, HTTP_PROXY=proxy.url, ALL_PROXY=proxy.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert (peer.records(), peer.spans()) == (["direct"], ["trading operation"])
    assert proxy.requests == []


# --- TLS ---


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A certificate for 127.0.0.1 that signed itself, and one of a client."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make certificates with")
    place = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        names = f"-subj /CN={name} -addext subjectAltName=IP:127.0.0.1,DNS:collector.test"
        files = f"-keyout {name}.key -out {name}.pem"
        subprocess.run(f"{make} {names} {files}".split(), cwd=place, check=True, capture_output=True)
    return place


@pytest.fixture
def tls_peer(certificates, peers):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "client.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return peers(context)


@pytest.fixture
def tls_environ(certificates, tls_peer):
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": tls_peer.url,
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificates / "server.pem"),
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(certificates / "client.pem"),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(certificates / "client.key"),
    }


def test_records_and_spans_go_over_tls_with_certificates_on_both_sides(tls_environ, tls_peer, certificates):
    code = """
        from jarvis_otel import configure, get_logger
        configure("trading", console=False)
        with get_logger("trading").context(correlation_id="1"):
            get_logger("trading").info("sealed")
    """
    # a bundle that others are told to trust is not what this collector is checked against
    done = app(code, **tls_environ, REQUESTS_CA_BUNDLE=str(certificates / "client.pem"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tls_peer.records(), tls_peer.spans()) == (["sealed"], ["trading operation"])


def test_a_certificate_that_nobody_vouches_for_is_refused_and_the_reason_is_told(tls_environ, tls_peer):
    del tls_environ["OTEL_EXPORTER_OTLP_CERTIFICATE"]
    answer = post(load(**tls_environ).otlp_logs)
    assert answer.status == 0
    assert "certificate verify failed" in answer.reason
    assert tls_peer.requests == []


def test_who_shows_no_certificate_is_refused_by_a_collector_that_wants_one(tls_environ, tls_peer):
    read = load(**{**tls_environ, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "", "OTEL_EXPORTER_OTLP_CLIENT_KEY": ""})
    answer = post(read.otlp_logs)
    assert (answer.status, tls_peer.requests) == (0, [])


def test_a_file_that_is_no_certificate_is_named(tls_environ, certificates):
    (certificates / "bad.pem").write_text("none")
    for variable in ("CERTIFICATE", "CLIENT_CERTIFICATE"):
        read = load(**{**tls_environ, f"OTEL_EXPORTER_OTLP_{variable}": str(certificates / "bad.pem")})
        answer = post(read.otlp_logs)
        assert answer.status == 0
        assert answer.reason.startswith(f"{certificates}/bad.pem: ")


def test_a_key_alone_is_told(certificates):
    read = load(OTEL_EXPORTER_OTLP_CLIENT_KEY=str(certificates / "client.key"))
    assert read.problems == (
        "OTEL_EXPORTER_OTLP_CLIENT_KEY: got a key, want OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE beside it",
    )


def test_tls_passes_a_proxy_as_a_tunnel(tls_environ, tls_peer, peer):
    environ = {**tls_environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://collector.test:{tls_peer.port}"}
    assert post(load(**environ, HTTPS_PROXY=peer.url.replace("://", "://me:pw@")).otlp_logs).status == 200
    ((path, headers, _),) = peer.requests
    assert (path, headers["proxy-authorization"]) == (f"CONNECT collector.test:{tls_peer.port}", "Basic bWU6cHc=")
    ((path, headers, body),) = tls_peer.requests
    assert (path, body) == ("/v1/logs", b'{"resourceLogs":[]}')
    assert "proxy-authorization" not in headers


# --- exporters ---

TALK = """
    import logging
    from opentelemetry import metrics, trace
    from opentelemetry._logs import SeverityNumber, get_logger_provider
    from jarvis_otel import configure, get_logger
    handle = configure("trading", console=False)
    with trace.get_tracer("a").start_as_current_span("buy"):
        get_logger("trading").info("structured", symbol="SOL")
        logging.getLogger("lib").info("standard")
        get_logger_provider().get_logger("api").emit(body="emitted", severity_number=SeverityNumber.INFO)
    metrics.get_meter("a").create_counter("trades").add(1)
    handle.shutdown()
    handle.shutdown()
"""
SAID = ["emitted", "standard", "structured"]

THIRD_PARTY = """
import sys
from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

class Spans(ConsoleSpanExporter):
    def __init__(self, **options):
        super().__init__(formatter=lambda span: f"span {span.name}\\n")
        if options:
            print("grpc", options["endpoint"], options["headers"], options["timeout"])

class Logs(ConsoleLogRecordExporter):
    def __init__(self):
        super().__init__(formatter=lambda record: f"log {record.log_record.body}\\n")

class Reader(InMemoryMetricReader):
    def shutdown(self, *args, **options):
        data = self.get_metrics_data()
        names = sorted(m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics)
        # one write: the console exporters end at the same time
        sys.stdout.write(f"metrics {names}\\n")

class Broken:
    def __init__(self):
        raise RuntimeError("no licence")

class Ids(RandomIdGenerator):
    def generate_trace_id(self):
        return 0xabc

def sampler(argument):
    print("sampler", argument)
    return ALWAYS_OFF
"""
ENTRY_POINTS = """
[opentelemetry_traces_exporter]
theirs = theirs:Spans
broken = theirs:Broken
otlp_proto_grpc = theirs:Spans
[opentelemetry_logs_exporter]
theirs = theirs:Logs
[opentelemetry_metrics_exporter]
theirs = theirs:Reader
[opentelemetry_traces_sampler]
theirs = theirs:sampler
[opentelemetry_id_generator]
theirs = theirs:Ids
"""


@pytest.fixture
def third_party(tmp_path):
    """Where an installed package lies that offers exporters by entry points."""
    place = tmp_path / "site"
    (place / "theirs-1.0.dist-info").mkdir(parents=True)
    (place / "theirs.py").write_text(THIRD_PARTY)
    (place / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (place / "theirs-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    return place


def test_by_default_records_and_spans_go_over_otlp_and_metrics_nowhere(peer):
    done = app(TALK, OTEL_EXPORTER_OTLP_ENDPOINT=peer.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (sorted(peer.records()), peer.spans(), peer.metrics()) == (SAID, ["buy"], set())


def test_exporters_are_a_list_and_each_gets_everything(peer, third_party):
    done = app(
        TALK,
        path=[third_party],
        OTEL_EXPORTER_OTLP_ENDPOINT=peer.url,
        OTEL_TRACES_EXPORTER="otlp, console ,theirs",
        OTEL_LOGS_EXPORTER="otlp,theirs,console",
        OTEL_METRICS_EXPORTER="otlp,theirs",
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = done.stdout.splitlines()
    assert printed.count("span buy") == 1
    assert sorted(line for line in printed if line.startswith("log ")) == [f"log {said}" for said in SAID]
    assert sum('"name": "buy"' in line for line in printed) == 1
    assert sum('"body": "structured"' in line for line in printed) == 1
    assert next(line for line in printed if line.startswith("metrics")).endswith("'trades']")
    assert (sorted(peer.records()), peer.spans()) == (SAID, ["buy"])
    assert {"trades", "jarvis.flags.age"} <= peer.metrics()


def test_records_can_go_to_others_alone(peer, third_party):
    done = app(TALK, path=[third_party], OTEL_EXPORTER_OTLP_ENDPOINT=peer.url, OTEL_LOGS_EXPORTER="theirs")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [f"log {said}" for said in SAID]
    assert (peer.records(), peer.spans()) == ([], ["buy"])


def test_none_is_nothing(peer):
    nothing = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("LOGS", "TRACES", "METRICS")}
    done = app(TALK, OTEL_EXPORTER_OTLP_ENDPOINT=peer.url, **nothing)
    assert (done.returncode, done.stdout, done.stderr, peer.requests) == (0, "", "", [])


def test_a_disabled_sdk_exports_nothing_and_flags_go_on(peer, third_party):
    code = TALK + "    from jarvis_otel import flags; print(flags.is_enabled('UNKNOWN', True))"
    everywhere = {f"OTEL_{signal}_EXPORTER": "otlp,theirs" for signal in ("LOGS", "TRACES", "METRICS")}
    done = app(code, path=[third_party], OTEL_EXPORTER_OTLP_ENDPOINT=peer.url, OTEL_SDK_DISABLED="true", **everywhere)
    assert (done.returncode, done.stdout, done.stderr, peer.requests) == (0, "True\n", "", [])


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "otlp,consle"},
            "OTEL_TRACES_EXPORTER: consle: no installed package offers it; did you mean console?; it gets no traces",
        ),
        (
            {"OTEL_METRICS_EXPORTER": "prometheus"},
            (
                "OTEL_METRICS_EXPORTER: prometheus: no installed package offers it; "
                "pip install opentelemetry-exporter-prometheus; it gets no metrics"
            ),
        ),
        (
            {"OTEL_LOGS_EXPORTER": "otlp,xyzzy"},
            "OTEL_LOGS_EXPORTER: xyzzy: no installed package offers it; there is console, *theirs; it gets no logs",
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp,broken"}, "OTEL_TRACES_EXPORTER: broken: no licence; it gets no traces"),
        (
            {"OTEL_TRACES_SAMPLER": "sometimes"},
            (
                "OTEL_TRACES_SAMPLER: sometimes: no installed package offers it; "
                "there is always_off, *, traceidratio; every trace is sampled"
            ),
        ),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "half"},
            "OTEL_TRACES_SAMPLER: traceidratio: could not convert string to float: 'half'; every trace is sampled",
        ),
        (
            {"OTEL_BSP_MAX_QUEUE_SIZE": "0"},
            "OTEL_BSP_*: max_queue_size must be a positive integer. The SDK's defaults are used",
        ),
        (
            {"OTEL_ATTRIBUTE_COUNT_LIMIT": "many"},
            "OTEL_ATTRIBUTE_COUNT_LIMIT: got 'many', want a number from 0 up; its default is used",
        ),
    ],
)
def test_what_cannot_be_had_is_a_line_and_the_rest_goes_on(environ, line, peer, third_party):
    done = app(TALK, path=[third_party], OTEL_EXPORTER_OTLP_ENDPOINT=peer.url, **environ)
    assert done.returncode == 0
    assert fnmatchcase(done.stderr.splitlines()[0], f"jarvis: {line}")
    assert "Traceback" not in done.stderr
    assert (sorted(peer.records()), peer.spans()) == (SAID, ["buy"])


def test_samplers_and_makers_of_ids_come_by_their_entry_points(peer, third_party):
    theirs = {"OTEL_TRACES_SAMPLER": "theirs", "OTEL_TRACES_SAMPLER_ARG": "x=1", "OTEL_PYTHON_ID_GENERATOR": "theirs"}
    code = TALK + "    print(trace.get_tracer_provider().id_generator.generate_trace_id())"
    done = app(code, path=[third_party], OTEL_EXPORTER_OTLP_ENDPOINT=peer.url, **theirs)
    assert (done.stdout, done.stderr, peer.spans()) == ("sampler x=1\n2748\n", "", [])
    assert sorted(peer.records()) == SAID


@pytest.mark.parametrize("sampler", ["always_off", "parentbased_traceidratio"])
def test_the_samplers_of_the_sdk_keep_their_meaning(sampler, peer):
    done = app(TALK, OTEL_EXPORTER_OTLP_ENDPOINT=peer.url, OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG="0.0")
    assert (done.stderr, peer.spans(), sorted(peer.records())) == ("", [], SAID)


def test_spans_go_over_grpc_where_its_exporter_is_installed(peer, third_party):
    done = app(
        TALK,
        path=[third_party],
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4317",
        OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=f"{peer.url}/v1/logs",
        OTEL_EXPORTER_OTLP_HEADERS="k=v",
        OTEL_EXPORTER_OTLP_TIMEOUT="2",
    )
    assert done.stderr == ""
    assert done.stdout == "grpc http://127.0.0.1:4317 {'k': 'v'} 2.0\nspan buy\n"
    assert sorted(peer.records()) == SAID


WITHOUT_GRPC = """
    import importlib.metadata as metadata
    installed = metadata.entry_points
    metadata.entry_points = lambda **which: metadata.EntryPoints(e for e in installed(**which) if "grpc" not in e.name)
"""


def test_without_grpcs_exporter_one_line_says_what_is_missing_and_spans_go_over_http():
    done = app(
        WITHOUT_GRPC + TALK,
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_LOGS_EXPORTER="none",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_TIMEOUT="0.2",
    )
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == (
        "jarvis: OTLP over gRPC: no installed package offers it; pip install opentelemetry-exporter-otlp-proto-grpc; "
        "traces go over HTTP to http://127.0.0.1:4318/v1/traces"
    )


def test_the_batch_processors_own_variables_are_its_own():
    code = """
        from jarvis_otel import configure
        from opentelemetry import trace
        configure("a", console=False)
        for processor in trace.get_tracer_provider()._active_span_processor._span_processors:
            if hasattr(processor, "_batch_processor"):
                print(processor._batch_processor._schedule_delay_millis)
    """
    quiet = {"OTEL_LOGS_EXPORTER": "none"}
    assert app(code, **quiet).stdout == "500\n"
    assert app(code, **quiet, OTEL_BSP_SCHEDULE_DELAY="1234").stdout == "1234\n"


def test_the_resource_says_what_otel_variables_say(peer):
    code = """
        from jarvis_otel import configure
        from jarvis_otel.runtime import RUNTIME
        from opentelemetry import trace
        configure(console=False)
        for attributes in (RUNTIME.pipeline.resource, trace.get_tracer_provider().resource.attributes):
            print([attributes.get(name) for name in ("service.name", "deployment.environment.name", "host.name", "a.b", "service.version")])
    """
    done = app(
        code,
        OTEL_EXPORTER_OTLP_ENDPOINT=peer.url,
        OTEL_RESOURCE_ATTRIBUTES="service.name=api,deployment.environment.name=staging,host.name=h%209,a.b=c,service.version=7",
    )
    assert done.stdout == "['api', 'staging', 'h 9', 'c', '7']\n" * 2
    assert done.stderr == ""
    done = app(
        code,
        OTEL_EXPORTER_OTLP_ENDPOINT=peer.url,
        JARVIS_ENVIRONMENT="dev",
        OTEL_SERVICE_NAME="bot",
        OTEL_RESOURCE_ATTRIBUTES="service.name=api,deployment.environment.name=staging,host.name=h9",
    )
    assert done.stdout == "['bot', 'staging', 'h9', None, None]\n" * 2
    assert done.stderr.startswith("jarvis: flags are evaluated in dev, ")


OWN_PROVIDERS = """
    from opentelemetry import metrics, trace
    from opentelemetry._logs import get_logger_provider, set_logger_provider
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    spans, records, reader = InMemorySpanExporter(), InMemoryLogRecordExporter(), InMemoryMetricReader()
    theirs = TracerProvider(), LoggerProvider(), MeterProvider([reader])
    theirs[0].add_span_processor(SimpleSpanProcessor(spans))
    theirs[1].add_log_record_processor(SimpleLogRecordProcessor(records))
    trace.set_tracer_provider(theirs[0])
    set_logger_provider(theirs[1])
    metrics.set_meter_provider(theirs[2])
"""


def test_providers_that_the_application_has_set_stay_and_outlive_our_shutdown(peer):
    after = """
    assert (trace.get_tracer_provider(), get_logger_provider(), metrics.get_meter_provider()) == theirs
    with trace.get_tracer("a").start_as_current_span("after"):
        get_logger_provider().get_logger("api").emit(body="after")
    print([span.name for span in spans.get_finished_spans()])
    print(sorted(record.log_record.body for record in records.get_finished_logs()))
    print(sorted(m.name for r in reader.get_metrics_data().resource_metrics for s in r.scope_metrics for m in s.metrics))
    """
    everywhere = {f"OTEL_{signal}_EXPORTER": "otlp,console" for signal in ("LOGS", "TRACES", "METRICS")}
    done = app(OWN_PROVIDERS + TALK + after, OTEL_EXPORTER_OTLP_ENDPOINT=peer.url, **everywhere)
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.splitlines()
    assert told[:2] == ["['buy', 'after']", str(sorted([*SAID, "after"]))]
    assert "trades" in told[2]
    assert "jarvis.flags.age" in told[2]
    assert (sorted(peer.records()), peer.spans(), peer.metrics()) == (SAID, [], set())


def test_a_provider_of_another_make_is_left_alone(peer):
    code = """
        from opentelemetry import trace
        from opentelemetry._logs import NoOpLoggerProvider, set_logger_provider
        trace.set_tracer_provider(trace.NoOpTracerProvider())
        set_logger_provider(NoOpLoggerProvider())
        from jarvis_otel import configure, get_logger
        configure("a", console=False)
        get_logger("a").info("said")
        assert isinstance(trace.get_tracer_provider(), trace.NoOpTracerProvider)
    """
    done = app(code, OTEL_EXPORTER_OTLP_ENDPOINT=peer.url)
    assert (done.returncode, done.stderr, peer.records()) == (0, "", ["said"])


# --- every record to everybody ---


@pytest.mark.parametrize("kind", ["Simple", "Batch"])
@pytest.mark.parametrize("first", [True, False])
def test_the_users_own_exporter_and_ours_get_every_record_once(kind, first, peer):
    """Of the structured logger, of standard logging and of OpenTelemetry's Logs API, added before or after us."""
    add = f"""
    from opentelemetry._logs import get_logger_provider, set_logger_provider
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor, BatchLogRecordProcessor
    exporter = InMemoryLogRecordExporter()
    if {first}:
        set_logger_provider(LoggerProvider())
        get_logger_provider().add_log_record_processor({kind}LogRecordProcessor(exporter))
    """
    talk = f"""
    import logging
    from opentelemetry._logs import SeverityNumber
    from jarvis_otel import configure, get_logger
    handle = configure("trading", console=False)
    if not {first}:
        get_logger_provider().add_log_record_processor({kind}LogRecordProcessor(exporter))
    logger, standard, api = get_logger("trading"), logging.getLogger("lib.part"), get_logger_provider().get_logger("api")
    for number in range(300):
        with logger.context(correlation_id=f"c{{number}}"):
            logger.info(f"structured {{number}}", number=number)
            standard.warning("standard %d", number, extra={{"number": number}})
            api.emit(body=f"emitted {{number}}", severity_number=SeverityNumber.ERROR)
    standard.debug("too low for both")
    get_logger_provider().force_flush()
    handle.shutdown()
    records = [item.log_record for item in exporter.get_finished_logs()]
    print(sorted(record.body for record in records))
    standard = next(record for record in records if record.body == "standard 7")
    print(standard.severity_text, standard.attributes["number"], bool(standard.trace_id))
    print(sorted({{item.instrumentation_scope.name for item in exporter.get_finished_logs()}}))
    """
    done = app(add + talk, OTEL_EXPORTER_OTLP_ENDPOINT=peer.url, OTEL_TRACES_EXPORTER="none")
    assert done.returncode == 0, done.stderr
    expected = sorted(f"{kind} {number}" for kind in ("structured", "standard", "emitted") for number in range(300))
    told, standard, scopes = done.stdout.splitlines()
    assert told == str(expected)
    assert standard == "WARNING 7 True"
    assert scopes == "['api', 'lib.part', 'trading']"
    assert sorted(peer.records()) == expected


@pytest.mark.parametrize("early", [False, True])
def test_an_otel_logging_handler_of_the_user_brings_no_record_twice_nor_loses_one(early, peer):
    """The handler's own level and filters say what the user's processors get, and nothing about ours."""
    code = """
    import logging, os
    from opentelemetry._logs import get_logger_provider, set_logger_provider
    from opentelemetry.instrumentation.logging.handler import LoggingHandler
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
    exporter = InMemoryLogRecordExporter()
    handler = LoggingHandler(logging.ERROR) if "EARLY" in os.environ else None
    set_logger_provider(LoggerProvider())
    get_logger_provider().add_log_record_processor(SimpleLogRecordProcessor(exporter))
    handler = handler or LoggingHandler(logging.ERROR, logger_provider=get_logger_provider())
    handler.addFilter(lambda record: record.name != "private")
    logging.getLogger().addHandler(handler)
    from jarvis_otel import configure, get_logger
    handle = configure("trading", console=False)
    for number in range(50):
        logging.getLogger("lib").error("high %d", number)
        logging.getLogger("lib").info("low %d", number)
        logging.getLogger("private").error("kept %d", number)
        get_logger("trading").error(f"own {number}")
    handle.shutdown()
    print(sorted(str(item.log_record.body) for item in exporter.get_finished_logs()))
    """
    environ = {"EARLY": "1"} if early else {}
    done = app(code, OTEL_EXPORTER_OTLP_ENDPOINT=peer.url, OTEL_TRACES_EXPORTER="none", **environ)
    assert done.returncode == 0, done.stderr
    theirs = [f"{kind} {number}" for kind in ("high", "own") for number in range(50)]
    assert done.stdout == f"{sorted(theirs)}\n"
    assert sorted(peer.records()) == sorted(
        theirs + [f"{kind} {number}" for kind in ("low", "kept") for number in range(50)]
    )


def test_a_processor_that_logs_and_one_that_raises_do_no_harm(peer):
    code = """
    import logging
    from opentelemetry._logs import get_logger_provider
    from opentelemetry.sdk._logs import LogRecordProcessor
    from jarvis_otel import configure, get_logger
    handle = configure("trading", console=False)
    class Talker(LogRecordProcessor):
        def on_emit(self, log_record):
            logging.getLogger("talker").warning("heard %s", log_record.log_record.body)
            get_logger("talker").warning("noted")
            raise RuntimeError("and fails")
        def shutdown(self): pass
        def force_flush(self, timeout_millis=0): return True
    get_logger_provider().add_log_record_processor(Talker())
    logging.getLogger("lib").info("standard")
    get_logger("trading").info("structured")
    handle.shutdown()
    """
    done = app(code, OTEL_EXPORTER_OTLP_ENDPOINT=peer.url, OTEL_TRACES_EXPORTER="none")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    said = peer.records()
    assert (said.count("standard"), said.count("structured")) == (1, 1)
    assert said.count("noted") == 2


# --- secrets ---


def test_spans_lose_their_secrets_on_the_way_to_any_exporter(peer):
    code = """
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from jarvis_otel.exporters import Providers
    from jarvis_otel.redaction import Redactor
    from jarvis_otel.settings import Settings
    from opentelemetry.sdk.trace import SpanProcessor
    providers = Providers(Settings.load(), Resource({"service.name": "a"}), Redactor())
    providers.set_up_traces(SpanProcessor())
    with trace.get_tracer("a").start_as_current_span("login", attributes={"password": "correct-horse-battery"}):
        pass
    providers.shutdown()
    """
    done = app(code, OTEL_EXPORTER_OTLP_ENDPOINT=peer.url, OTEL_TRACES_EXPORTER="otlp,console")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"name": "login"' in done.stdout
    assert peer.spans() == ["login"]
    assert "correct-horse" not in done.stdout
    assert b"correct-horse" not in peer.bodies("/v1/traces")[0]


# --- the end ---


def test_a_process_ends_soon_though_nobody_takes_its_telemetry():
    """The collector accepts connections and never answers: three signals, and one bound for them together."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        done = app(
            TALK.replace("handle.shutdown()", "pass"),
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}",
            OTEL_METRICS_EXPORTER="otlp",
            OTEL_EXPORTER_OTLP_TIMEOUT="30",
        )
        took = time.monotonic() - began
    assert done.returncode == 0
    # the records by our own pipeline, then spans and metrics at once: 2 s each at most
    assert took < 15
