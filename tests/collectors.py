"""A collector in a process of its own, as clients and operators meet it."""

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

SERVE = """
import json, sys
from pathlib import Path
from jarvis_collector.config import CollectorConfig
from jarvis_collector.own_log import OwnLog
from jarvis_collector.server import run
given = json.loads(sys.argv[2])
given |= {name: frozenset(given[name]) for name in ("tokens", "allowed_hosts") if name in given}
given |= {name: Path(given[name]) for name in ("tls_cert", "tls_key") if name in given}
run(CollectorConfig(Path(sys.argv[1]), **{"port": 0, **given}), ready=lambda port: print(port, flush=True), log=OwnLog(human=False))
"""
COMMAND = """
import argparse, sys
from jarvis_otel.cli.collector import add_parser
parser = argparse.ArgumentParser("jarvis")
add_parser(parser.add_subparsers())
args = parser.parse_args(sys.argv[1:])
sys.exit(args.func(args))
"""
PYTHON = (sys.executable, "-W", "error", "-c")
JSON, PROTOBUF = "application/json", "application/x-protobuf"


class Collector:
    """A running collector and its own log, which goes to a file beside its directory."""

    scheme = "http"

    def __init__(self, log_dir, command, environ=None):
        self.log_dir = log_dir
        self.tls = None
        self._said = Path(os.environ["JARVIS_HOME"]) / f"said-{time.monotonic_ns()}"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [*PYTHON, *map(str, command)],
                stdout=subprocess.DEVNULL,
                stderr=said,
                env={**os.environ, **(environ or {})},
                umask=0,
            )
        listening = self.wait_for("listening on")
        self.port, self.grpc_port = listening["context"]["port"], listening["context"].get("grpc_port")

    def said(self):
        """What its own log says so far."""
        return [json.loads(line) for line in self._said.read_bytes().split(b"\n")[:-1]]

    def wait_for(self, text):
        """Waits until the own log says something, and gives that line."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            lines = self._said.read_text().split("\n")[:-1]
            if found := [line for line in lines if text in line]:
                return json.loads(found[-1])
            assert not ended, self._said.read_text()
            time.sleep(0.01)
        raise AssertionError(f"{text!r} was never said, but: {self._said.read_text()}")

    def request(self, method="POST", path="/v1/logs", body=b"", content_type=JSON, **headers):
        return request(self.port, method, path, body, content_type, tls=self.tls, **headers)

    def socket(self, sent=b""):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(sent)
        return connection

    def metrics(self):
        """Samples by their text without the value."""
        lines = self.request("GET", "/metrics").content.decode().splitlines()
        return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def lines(self, stream="jarvis"):
        # two files where midnight comes while the test runs
        paths = sorted(self.log_dir.glob(f"{stream}-*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_bytes().split(b"\n")[:-1]]


def request(port, method="POST", path="/v1/logs", body=b"", content_type=JSON, *, tls=None, timeout=60, **headers):
    """The answer to one request, with its `content`; underscores in the names of headers are hyphens."""
    if tls is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    else:
        connection = http.client.HTTPSConnection("localhost", port, timeout=timeout, context=tls)
    with closing(connection):
        named = {"Content-Type": content_type, **{key.replace("_", "-"): value for key, value in headers.items()}}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        response.content = response.read()
        return response


def served(log_dir, **config):
    """Starts one with fields of CollectorConfig."""
    return Collector(log_dir, [SERVE, log_dir, json.dumps(config, default=str)])


def commanded(log_dir, *options, **environ):
    """Starts one by its command."""
    options = ("--dir", log_dir, "--port", "0", *options)
    return Collector(log_dir, [COMMAND, "collector", *options], environ)


def starting(tmp_path):
    """For a fixture: starts collectors (`served` or, with `by=commanded`, the command) and ends them with the test."""
    started = []

    def start(log_dir=tmp_path / "logs", *args, by=served, **config):
        started.append(by(log_dir, *args, **config))
        return started[-1]

    yield start
    for collector in started:
        collector.stop(signal.SIGKILL)


def command(*args, **environ):
    """Runs the command to its end."""
    return subprocess.run(
        [*PYTHON, COMMAND, "collector", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **environ},
    )


def one_line(done):
    """The one line of an error, wrong use or bad input."""
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def logs(*messages):
    """A request in OTLP/JSON, without blanks between its parts."""
    records = [{"body": {"stringValue": message}} for message in messages]
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}, separators=(",", ":")).encode()


def read_all(connection):
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def peak_memory(collector):
    """The most memory that it had so far, in bytes."""
    status = Path(f"/proc/{collector.process.pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def certificate(directory, name="localhost"):
    """A self-signed certificate and its key, as files; and what trusts it."""
    cert, key = directory / f"{name}.crt", directory / f"{name}.key"
    names = f"subjectAltName=DNS:{name},IP:127.0.0.1"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    made += ["-subj", f"/CN={name}", "-addext", names, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made, check=True, capture_output=True)
    return cert, key, ssl.create_default_context(cafile=str(cert))
