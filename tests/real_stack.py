"""Real peers for tests: the OpenTelemetry Collector and Loki, and our collector in their place; each a process.

A test that wants one carries `@pytest.mark.real`. Where it is not built the test is skipped, on CI it fails.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import pytest

from tests.otlp_sink import until
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
TO_FILES = ROOT / "collector" / "otelcol.yaml"
TO_LOKI = ROOT / "collector" / "otelcol-loki.yaml"

_TARGETS = {"otelcol": "real-collector", "loki": "real-loki", "telemetrygen": "real-telemetrygen"}


@cache
def _cached(name: str) -> str:
    command = [ROOT / "scripts" / "build-real", name, "--cached"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()


def real_binary(name: str) -> str:
    """Where a real peer is; ends the test where it was not built.

    Args:
        name: `otelcol`, `loki` or `telemetrygen`.
    """
    path = _cached(name)
    if not path:
        missing = f"the real {name} is not built here: make {_TARGETS[name]}"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


class Peer:
    """A real peer as a process.

    Args:
        command: Its command line.
        home: The directory that it runs in; its output goes there too.
        environ: Its environment besides PATH.
    """

    def __init__(self, command: list[str], home: Path, environ: Mapping[str, str]) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._command = command
        self._home = home
        self._environ = {"PATH": os.environ["PATH"], **environ}
        self._process: subprocess.Popen[bytes] | None = None
        self._output = home / f"{Path(command[0]).name}.out"

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        return self._output.read_text()

    def is_ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> Self:
        assert self._process is None
        with self._output.open("wb") as stream:
            self._process = process = subprocess.Popen(
                self._command, cwd=self._home, env=self._environ, stdout=stream, stderr=stream, start_new_session=True
            )
        until(lambda: process.poll() is not None or self.is_ready(), 120)
        assert process.poll() is None, self.output
        return self

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ends it: orderly, or however the signal does."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()

    def kill(self) -> None:
        self.stop(signal.SIGKILL)


class Collector(Peer):
    """A real Collector with one of our configurations.

    Args:
        config: The configuration.
        home: The directory that it runs in.
        environ: What the configuration reads.
    """

    def __init__(self, config: Path, home: Path, **environ: str) -> None:
        super().__init__([real_binary("otelcol"), "--config", str(config)], home, {"TZ": "UTC", **environ})

    def is_ready(self) -> bool:
        return "Everything is ready" in self.output


class FileCollector(Collector):
    """The first of the two processes: OTLP to day files."""

    def __init__(self, home: Path) -> None:
        self.logs = home / "logs"
        self.port = free_port()
        self.grpc_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(
            TO_FILES,
            home,
            JARVIS_LOG_DIR=str(self.logs),
            JARVIS_OTLP_HTTP=f"127.0.0.1:{self.port}",
            JARVIS_OTLP_GRPC=f"127.0.0.1:{self.grpc_port}",
        )


class LokiCollector(Collector):
    """The second one: day files to Loki."""

    def __init__(self, home: Path, logs: Path, loki_url: str) -> None:
        super().__init__(
            TO_LOKI,
            home,
            JARVIS_LOG_DIR=str(logs),
            JARVIS_STATE_DIR=str(home / "var"),
            JARVIS_LOKI_OTLP=f"{loki_url}/otlp",
        )

    def stop(self, number: int = signal.SIGKILL) -> None:
        """Ends it, as docker-compose.yml does."""
        super().stop(number)


class Embedded(Peer):
    """Our own collector as a user starts it; with `forward_only` it forwards what another one writes to `logs`."""

    def __init__(self, home: Path, loki_url: str, logs: Path | None = None, *, forward_only: bool = False) -> None:
        self.logs = logs or home / "logs"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (home / "config").mkdir(parents=True)
        self._forward_only = forward_only
        options = ["--forward-only"] if forward_only else ["--port", str(self.port), "--grpc-port", "off"]
        command = [sys.executable, "-m", "jarvis_otel.cli.main", "collector", *options]
        environ = {"JARVIS_HOME": str(home), "JARVIS_LOG_DIR": str(self.logs), "JARVIS_LOKI_URL": loki_url}
        super().__init__(command, home, environ)

    def is_ready(self) -> bool:
        return self._forward_only or "listening on" in self.output


class Loki(Peer):
    """A real Loki with our configuration."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            real_binary("loki"),
            f"-config.file={ROOT / 'config' / 'loki.yaml'}",
            f"-server.http-listen-port={self.port}",
            f"-server.grpc-listen-port={free_port()}",
        ]
        super().__init__(command, home, {})

    def is_ready(self) -> bool:
        try:
            return self._get("/ready", {})[0] == 200
        except OSError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """What the API answers, its `data`; a refusal fails the test."""
        status, body = self._get(path, parameters)
        assert status == 200, f"{parameters}: {status} {body.decode(errors='replace')}"
        return json.loads(body)["data"]

    def instant(self, query: str) -> list[Any]:
        """What a metric query gives now."""
        return self.get("/loki/api/v1/query", query=query)["result"]

    def range(self, query: str, limit: int = 5000) -> list[Any]:
        """What a query gives of the last two hours, in steps of a minute: series, or streams."""
        since = time.time_ns() - 2 * 3600 * 10**9
        parameters = {"query": query, "start": str(since), "step": "60", "limit": str(limit), "direction": "forward"}
        return self.get("/loki/api/v1/query_range", **parameters)["result"]

    def records(self, query: str) -> list[tuple[str, dict[str, str]]]:
        """The lines that a query gives, at most 5,000, each with its attributes."""
        return [(line, stream["stream"]) for stream in self.range(query) for _, line in stream["values"]]

    def _get(self, path: str, parameters: Mapping[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", f"{path}?{urlencode(parameters)}")
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from None
        finally:
            connection.close()


@contextmanager
def running(*processes: Peer) -> Iterator[None]:
    """Starts them in order, and leaves none of them behind."""
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in reversed(processes):
            process.kill()


def post(url: str, request: Mapping[str, Any], signal_name: str = "logs", timeout: float = 10.0) -> int:
    """Posts an OTLP/JSON request; the status, or 0 where there was no answer."""
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
    try:
        connection.request("POST", f"/v1/{signal_name}", json.dumps(request), {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def otlp_records(directory: Path) -> list[dict[str, Any]]:
    """All log records in a real Collector's day files, as OTLP has them; lines that are no JSON are left out."""
    records = []
    for path in sorted(directory.glob("jarvis-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                request = json.loads(line)
            except ValueError:
                continue
            records += [
                record
                for resource in request["resourceLogs"]
                for scope in resource["scopeLogs"]
                for record in scope["logRecords"]
            ]
    return records
