"""Who may ask a collector: tokens, names, TLS, and the doors that it does not open."""

import json
import signal
import socket
import subprocess
import sys
import time

import pytest
from google.rpc.status_pb2 import Status

from jarvis_collector.access import Access, token_digest
from jarvis_collector.config import CollectorConfig
from tests.collectors import (
    PROTOBUF,
    certificate,
    command,
    commanded,
    logs,
    one_line,
    read_all,
    starting,
)
from tests.ports import free_port

start = pytest.fixture(starting)
TOKEN = "0123456789abcdef"
BEARER = f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    "shown", [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", "Bearer wrong", f"{BEARER}x", TOKEN, "Bearer \xe9"]
)
def test_where_tokens_are_set_only_one_of_them_opens(shown):
    config = CollectorConfig(".", tokens=frozenset({token_digest(TOKEN), token_digest("other")}))
    assert not Access(config).is_allowed(shown)
    assert Access(config).is_allowed(BEARER)
    assert Access(config).is_allowed("bearer  other")


def test_a_stranger_is_told_to_show_a_token_and_only_whether_all_is_well(start):
    collector = start(tokens=[token_digest(TOKEN)])
    for method, path in (("POST", "/v1/logs"), ("POST", "/v1/traces"), ("GET", "/metrics"), ("GET", "/elsewhere")):
        answer = collector.request(method, path, logs("x") if method == "POST" else b"")
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert json.loads(answer.content)["code"] == 16
    answer = collector.request(body=b"", content_type=PROTOBUF, Authorization="Bearer wrong")
    assert (answer.status, Status.FromString(answer.content).code) == (401, 16)
    assert json.loads(collector.request("GET", "/healthz").content) == {"status": "ok"}
    assert "version" in json.loads(collector.request("GET", "/healthz", Authorization=BEARER).content)
    assert collector.request("GET", "/metrics", Authorization=BEARER).status == 200
    assert collector.request(body=logs("mine"), Authorization=BEARER).status == 200
    assert [line["message"] for line in collector.lines()] == ["mine"]
    assert TOKEN not in "".join(map(str, collector.said()))


def test_a_strangers_body_is_not_waited_for(start):
    head = b"POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9000000\r\n\r\n"
    with start(tokens=[token_digest(TOKEN)]).socket(head) as connection:
        assert connection.recv(12) == b"HTTP/1.1 401"


def test_a_new_token_and_its_line_open_the_door(start, own_project, tmp_path):
    made = command("--new-token")
    token, line = made.stdout.splitlines()
    assert made.returncode == 0
    assert len(token) > 40
    assert token not in made.stderr
    (own_project / "config" / "jarvis.yaml").write_text(line)
    collector = start(tmp_path / "logs", "--host", "0.0.0.0", "--grpc-port", "off", by=commanded)
    assert collector.request(body=logs("x")).status == 401
    assert collector.request(body=logs("x"), Authorization=f"Bearer {token}").status == 200
    assert "unencrypted" in collector.wait_for("unencrypted")["message"]
    assert command("--new-token").stdout != made.stdout


def test_a_plain_token_in_the_settings_is_refused_and_not_repeated(own_project):
    (own_project / "config" / "jarvis.yaml").write_text('collector_tokens: ["hunter2"]')
    said = one_line(command("--port", 0))
    assert "collector_tokens: item 1 is no digest, want sha256:" in said
    assert "--new-token" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("environ", [{}, {"JARVIS_COLLECTOR_INSECURE_NO_AUTH": "1"}])
def test_a_door_open_to_all_must_be_asked_for_and_is_told(start, tmp_path, environ):
    options = (
        ("--host", "0.0.0.0", "--grpc-port", "off")
        if environ
        else ("--host", "0.0.0.0", "--insecure-no-auth", "--grpc-port", "off")
    )
    collector = start(tmp_path / "logs", *options, by=commanded, **environ)
    assert collector.request(body=logs("x")).status == 200
    assert collector.wait_for("may send")["level"] == "WARNING"


@pytest.mark.parametrize(
    ("host", "asked", "known"),
    [
        ("127.0.0.1", "localhost:4318", True),
        ("127.0.0.1", "LOCALHOST.", True),
        ("127.0.0.1", "[::1]:1", True),
        ("127.0.0.1", "192.0.2.1", False),
        ("127.0.0.1", socket.gethostname(), False),
        ("127.0.0.1", "collector.internal:4318", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "", False),
        ("0.0.0.0", "192.0.2.1:4318", True),
        ("0.0.0.0", "[2001:db8::1]:4318", True),
        ("0.0.0.0", socket.gethostname(), True),
        ("0.0.0.0", "localhost", True),
        ("0.0.0.0", "Collector.Internal", True),
        ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", "192.0.2.1.evil.example", False),
    ],
)
def test_a_name_that_is_not_this_machines_is_turned_away(host, asked, known):
    config = CollectorConfig(".", host=host, insecure_no_auth=True, allowed_hosts=frozenset({"collector.internal"}))
    assert Access(config).is_known_host(asked) is known


def test_tls_serves_who_trusts_it_and_a_new_certificate_after_a_hang_up(start, own_project, tmp_path):
    cert, key, trust = certificate(tmp_path)
    environ = {"JARVIS_COLLECTOR_TLS_CERT": str(cert), "JARVIS_COLLECTOR_TLS_KEY": str(key)}
    collector = start(tmp_path / "logs", "--grpc-port", "off", by=commanded, **environ)
    collector.tls = trust
    assert "https://127.0.0.1:" in collector.said()[0]["message"]
    assert collector.request(body=logs("x")).status == 200
    with collector.socket(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") as plain:
        assert b"HTTP/1.1 200" not in read_quietly(plain)
    _, _, collector.tls = certificate(tmp_path)
    collector.process.send_signal(signal.SIGHUP)
    collector.wait_for("settings reloaded")
    assert collector.request(body=logs("y")).status == 200
    cert.write_text("no certificate")
    collector.process.send_signal(signal.SIGHUP)
    collector.wait_for("settings not reloaded")
    assert collector.request(body=logs("z")).status == 200
    assert collector.stop() == 0


def read_quietly(connection):
    try:
        return read_all(connection)
    except ConnectionError:
        return b""


def test_files_of_tls_that_cannot_be_used_end_the_start_in_one_line(tmp_path):
    cert, key, _ = certificate(tmp_path)
    other, _, _ = certificate(tmp_path, "other.example")
    bad = {
        "cannot be used": (other, key),
        "No such file": (tmp_path / "missing", key),
        "collector_tls_key: not set": (cert, ""),
    }
    for reason, (cert_file, key_file) in bad.items():
        for grpc_port in ("off", "0"):
            environ = {"JARVIS_COLLECTOR_TLS_CERT": str(cert_file), "JARVIS_COLLECTOR_TLS_KEY": str(key_file)}
            done = command("--dir", tmp_path / "logs", "--port", 0, "--grpc-port", grpc_port, **environ)
            assert reason in one_line(done)


LEAVES = """
import os, sys
import jarvis_otel
jarvis_otel.configure(service_name="left")
jarvis_otel.get_logger("left").info("left behind")
os._exit(0)
"""


def leave_a_record():
    subprocess.run([sys.executable, "-c", LEAVES], check=True, timeout=30, capture_output=True)


def test_what_processes_left_behind_is_taken_in_over_tls_with_a_token(start, tmp_path, monkeypatch):
    cert, key, _ = certificate(tmp_path)
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"https://localhost:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"Authorization=Bearer%20{TOKEN}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(cert))
    leave_a_record()
    environ = {
        "JARVIS_COLLECTOR_TLS_CERT": str(cert),
        "JARVIS_COLLECTOR_TLS_KEY": str(key),
        "JARVIS_COLLECTOR_TOKENS": f"sha256:{token_digest(TOKEN)}",
    }
    collector = start(tmp_path / "logs", "--port", port, "--grpc-port", "off", by=commanded, **environ)
    deadline = time.monotonic() + 30
    while not collector.lines() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [line["message"] for line in collector.lines()] == ["left behind"]


def test_where_it_cannot_be_taken_in_that_is_said(start, tmp_path):
    environ = {"JARVIS_COLLECTOR_TOKENS": f"sha256:{token_digest(TOKEN)}"}
    collector = start(tmp_path / "logs", "--grpc-port", "off", by=commanded, **environ)
    assert "OTEL_EXPORTER_OTLP_HEADERS has none of" in collector.wait_for("is not taken in")["message"]
