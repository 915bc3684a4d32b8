"""What `jarvis collector` spends on a record, and how many requests a second it makes durable."""

from __future__ import annotations

import asyncio
import http.client
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from benchmarks.harness import MICRO, Row, Side, compare, cpu_of_process, main, per_call, started

RECORDS = 1_000
CONNECTIONS = 64
RECORDS_SMALL = 10
JSON, PROTOBUF = "application/json", "application/x-protobuf"
TRACE_ID, SPAN_ID = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174"


def measure(quick: bool) -> list[Row]:
    rounds, requests, seconds = (5, 5, 0.5) if quick else (20, 10, 1.0)
    home = Path(os.environ["JARVIS_HOME"])
    with _collector(home) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body, small = _body(RECORDS), _body(RECORDS_SMALL)
        parsed = per_call("loads(body)", {"loads": orjson.loads, "body": body}, requests)
        rows = []
        for encoding, content_type, sent in (("JSON", JSON, body), ("protobuf", PROTOBUF, _protobuf(body))):
            rows.append(
                compare(
                    f"jarvis collector, a record of 1,000 in {encoding}",
                    _requests(process.pid, connection, sent, content_type, requests),
                    lambda: parsed() / RECORDS,
                    rounds=rounds,
                    peer_name="orjson.loads of the same as JSON (a yardstick)",
                    how=f"CPU of the process per record, in the day file and synced; {len(body) // RECORDS} bytes a "
                    "record as JSON, 7 attributes, 3 of them unique",
                )
            )
        connection.close()
        rows.append(
            compare(
                "jarvis collector, durable requests of 10 records",
                lambda: asyncio.run(_load(port, small, seconds)),
                _synced_writes(home / "yardstick", small, seconds),
                rounds=max(3, rounds // 4),
                unit="requests/s",
                peer_name="write + fdatasync of the same body, one after the other (a yardstick)",
                how=f"more is better; wall time, {CONNECTIONS} connections, each waits for its answer; collector and "
                "load share the machine",
            )
        )
    return rows


@contextmanager
def _collector(home: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port_file = home / "port"
    arguments = ("--dir", str(home / "logs"), "--port", "0", "--port-file", str(port_file))
    with started("-m", "jarvis_otel.cli.main", "collector", *arguments) as process:
        while not port_file.exists():
            assert process.poll() is None, "the collector did not start"
            time.sleep(0.01)
        yield process, int(port_file.read_text())


def _requests(pid: int, connection: http.client.HTTPConnection, body: bytes, content_type: str, requests: int) -> Side:
    """Microseconds of the collector's CPU per record, for requests one after the other."""

    def side() -> float:
        before = cpu_of_process(pid)
        for _ in range(requests):
            connection.request("POST", "/v1/logs", body, {"Content-Type": content_type})
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 200, answer
        return (cpu_of_process(pid) - before) / (requests * RECORDS) * MICRO

    return side


def _synced_writes(path: Path, body: bytes, seconds: float) -> Side:
    def side() -> float:
        count, began = 0, time.perf_counter()
        with path.open("wb", buffering=0) as file:
            while time.perf_counter() - began < seconds:
                file.write(body)
                os.fdatasync(file.fileno())
                count += 1
        return count / (time.perf_counter() - began)

    return side


class _Client(asyncio.Protocol):
    """One connection that sends the same request again as soon as the last one is answered."""

    def __init__(self, request: bytes) -> None:
        self.answered = 0
        self._request = request
        self._received = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"\r\n\r\n{}"):
            assert self._received.startswith(b"HTTP/1.1 200 "), self._received
            self._received = b""
            self.answered += 1
            self._transport.write(self._request)

    def close(self) -> None:
        self._transport.abort()


async def _load(port: int, body: bytes, seconds: float) -> float:
    """Requests answered in a second, over all connections."""
    head = f"POST /v1/logs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    opening = [
        loop.create_connection(lambda: _Client(head.encode() + body), "127.0.0.1", port) for _ in range(CONNECTIONS)
    ]
    clients = [client for _, client in await asyncio.gather(*opening)]
    await asyncio.sleep(seconds)
    rate = sum(client.answered for client in clients) / (time.perf_counter() - began)
    for client in clients:
        assert client.answered, "a connection was never answered"
        client.close()
    return rate


def _body(count: int) -> bytes:
    """A request as an SDK sends it."""
    resource = {"service.name": "trading", "deployment.environment.name": "prod", "host.name": "jarvis-1"}
    records = [_record(number) for number in range(count)]
    scope_logs = [{"scope": {"name": "trading"}, "logRecords": records}]
    request = {"resourceLogs": [{"resource": {"attributes": _attributes(resource)}, "scopeLogs": scope_logs}]}
    return orjson.dumps(request)


def _record(number: int) -> dict[str, Any]:
    time_ns = str(1_785_000_000_000_000_000 + number * 1_000_000)
    attributes = {
        "symbol": "SOL",
        "amount": 100,
        "user.id": "user42",
        "jarvis.flag.DEXTER_ENABLED": "on",
        "order_id": f"order-{number:06}",
        "price": 142.5 + number / 100,
        "log.record.uid": f"9f86d081884c7d65-{number:x}",
    }
    return {
        "timeUnixNano": time_ns,
        "observedTimeUnixNano": time_ns,
        "severityNumber": 9,
        "severityText": "INFO",
        "body": {"stringValue": "Trade executed"},
        "attributes": _attributes(attributes),
        "flags": 1,
        "traceId": TRACE_ID,
        "spanId": SPAN_ID,
    }


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = {str: "stringValue", int: "intValue", float: "doubleValue"}
    return [
        {"key": key, "value": {kinds[type(value)]: str(value) if isinstance(value, int) else value}}
        for key, value in values.items()
    ]


def _protobuf(body: bytes) -> bytes:
    """The same request in OTLP's other encoding, whose JSON has ids in hex and not in base64."""
    request = ExportLogsServiceRequest()
    document = orjson.loads(body)
    for resource_logs in document["resourceLogs"]:
        for scope_logs in resource_logs["scopeLogs"]:
            for record in scope_logs["logRecords"]:
                del record["traceId"], record["spanId"]
    ParseDict(document, request)
    for record in request.resource_logs[0].scope_logs[0].log_records:
        record.trace_id, record.span_id = bytes.fromhex(TRACE_ID), bytes.fromhex(SPAN_ID)
    return bytes(request.SerializeToString())


if __name__ == "__main__":
    main(measure)
