"""A small OTLP/JSON receiver for tests: a peer on a loopback socket that answers as it is told."""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jarvis_otel.otlp_settings import OtlpTarget
from tests.http_peers import HttpPeer, PeerHandler

Answer = tuple[int, dict[str, str], bytes]


class Sink(HttpPeer):
    """Takes requests, and keeps the records of those that it answered with 2xx."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        self.received: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[dict[str, Any]], Answer] = lambda _: (200, {}, b"{}")
        sink = self

        class Handler(PeerHandler):
            def do_POST(self):  # noqa: N802 - as http.server calls it
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                request = json.loads(body)
                status, headers, content = sink.answer(request)
                if 200 <= status < 300:
                    sink.requests.append(request)
                    sink.received += records_of(request)
                    sink.headers.append({k.lower(): v for k, v in self.headers.items()})
                self.reply(status, headers, content)

        super().__init__(Handler, port)

    @property
    def bodies(self) -> list[Any]:
        return [record["body"].get("stringValue") for record in self.received]

    def wait_for(self, count: int, seconds: float = 20.0) -> list[dict[str, Any]]:
        until(lambda: len(self.received) >= count, seconds)
        return self.received


def records_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {**record, "scope": scope["scope"], "resource": resource["resource"]}
        for resource in request["resourceLogs"]
        for scope in resource["scopeLogs"]
        for record in scope["logRecords"]
    ]


def plain(value: dict[str, Any]) -> Any:
    """An AnyValue as Python has it."""
    if not value:
        return None
    kind, content = next(iter(value.items()))
    if kind == "intValue":
        return int(content)
    if kind == "arrayValue":
        return [plain(item) for item in content["values"]]
    if kind == "kvlistValue":
        return {item["key"]: plain(item["value"]) for item in content["values"]}
    return content


def attributes_of(record: dict[str, Any]) -> dict[str, Any]:
    return {item["key"]: plain(item["value"]) for item in record["attributes"]}


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def logs_at(url: str, **options: Any) -> OtlpTarget:
    """Where a pipeline ships its records to: a collector by its base URL."""
    return OtlpTarget(f"{url}/v1/logs", **options)


@contextmanager
def otlp_sink(port: int = 0) -> Iterator[Sink]:
    with Sink(port) as sink:
        yield sink
