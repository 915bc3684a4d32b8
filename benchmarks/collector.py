"""What `jarvis collector` spends on a record beside the real Collector, and how fast it answers small requests."""

from __future__ import annotations

import asyncio
import http.client
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import orjson
from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from benchmarks.harness import MICRO, OwnProcess, Row, Side, compare, cpu_of_process, main, started
from tests.ports import free_port

RECORDS = 1_000
BODIES = 40
CONNECTIONS = 64
RECORDS_SMALL = 10
JSON, PROTOBUF = "application/json", "application/x-protobuf"
_REAL_ANSWER = b'{"partialSuccess":{}}'
_REAL = """
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters: {{file: {{path: "{path}", append: true, flush_interval: 100ms}}}}
service:
  pipelines: {{logs: {{receivers: [otlp], exporters: [file]}}}}
  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}
"""


def measure(quick: bool) -> list[Row]:
    rounds, requests, seconds, growth = (5, 10, 1.0, 200) if quick else (20, 40, 3.0, 5_000)
    home = Path(os.environ["JARVIS_HOME"])
    jsons = [_body(RECORDS, number) for number in range(BODIES)]
    rows = []
    with _collector(home) as (ours, port), _real_collector(home) as (real, real_port):
        for encoding, content_type, bodies in (("JSON", JSON, jsons), ("protobuf", PROTOBUF, [*map(_protobuf, jsons)])):
            rows.append(
                compare(
                    f"jarvis collector, a record of 1,000 in {encoding}",
                    _requests(ours, port, bodies, content_type, requests),
                    _requests(real, real_port, bodies, content_type, requests),
                    rounds=rounds,
                    peer_name="the real Collector, otlp to file",
                    how=f"CPU of the process per record; ours is in the day file and synced when it is answered, the "
                    f"peer's is not; {len(bodies[0]) // RECORDS} bytes a record, 7 attributes, of which 3 and the ids "
                    f"and times differ in each; {BODIES} bodies in turns",
                    target=0.9,
                )
            )
        for each in (port, real_port):
            with OwnProcess(_load, each, jsons, seconds) as load:
                load()
        peaks = [_peak(process) for process in (ours, real)]
        rows.append(
            Row(
                "jarvis collector, memory at full load",
                *peaks,
                "MB",
                "the real Collector",
                peaks[0] / peaks[1],
                *[peaks[0] / peaks[1]] * 2,
                None,
                f"greatest resident set (VmHWM); {CONNECTIONS} connections with requests of 1,000 records at the end",
                limit=150,
            )
        )
    rows += _small(home / "small", rounds, seconds)
    rows.append(_growth(home / "growth", growth, jsons))
    return rows


def _small(home: Path, rounds: int, seconds: float) -> list[Row]:
    """Many clients with few records each: how long one waits, and how many are served."""
    small = [_body(RECORDS_SMALL, number) for number in range(1_000)]
    home.mkdir()
    with (
        _collector(home) as (_, port),
        _bare_server() as bare_port,
        OwnProcess(_load, port, small, seconds) as ours,
        OwnProcess(_load, bare_port, small, seconds) as bare,
    ):
        pairs = [(ours(), bare()) for _ in range(max(5, rounds // 4) + 1)][1:]
    how = (
        f"{CONNECTIONS} connections, each sends its next request of {RECORDS_SMALL} records in JSON when the last one "
        f"is answered; ours are synced; server and load share the machine; {len(pairs)} rounds of {seconds:g} s"
    )
    peer = "a bare server of asyncio streams, which reads a request and answers"
    rows = []
    # 3,000 requests a second
    for what, unit, limit, figures in (
        ("time of one", "µs", MICRO / 3_000, [(MICRO / one[0], MICRO / other[0]) for one, other in pairs]),
        ("p99 of the wait", "ms", 30, [(one[1], other[1]) for one, other in pairs]),
    ):
        ratios = [one / other for one, other in figures]
        mine, theirs = (statistics.median(each) for each in zip(*figures, strict=True))
        said = f"{MICRO / mine:,.0f} against {MICRO / theirs:,.0f} requests a second; {how}" if unit == "µs" else how
        rows.append(
            Row(
                f"jarvis collector, small requests, {what}",
                mine,
                theirs,
                unit,
                peer,
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                None,
                said,
                limit,
            )
        )
    return rows


def _growth(home: Path, requests: int, bodies: list[bytes]) -> Row:
    """Whether a record costs the same at the end of a day with many as at its beginning."""
    home.mkdir()
    tenth = requests // 10
    with _collector(home) as (ours, port):
        side = _requests(ours, port, bodies, JSON, tenth)
        side()
        costs = [side() for _ in range(9)]
    return Row(
        f"jarvis collector, the end of a day of {requests * RECORDS:,} records",
        statistics.median(costs[-3:]),
        statistics.median(costs[:3]),
        "µs",
        "its beginning",
        statistics.median(costs[-3:]) / statistics.median(costs[:3]),
        min(costs) / statistics.median(costs[:3]),
        max(costs) / statistics.median(costs[:3]),
        1.1,
        "CPU of the process per record, in JSON; medians of the last and the first three tenths",
    )


@contextmanager
def _collector(home: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port_file = home / "port"
    arguments = ("--dir", str(home / "logs"), "--port", "0", "--port-file", str(port_file), "--grpc-port", "off")
    with started("-m", "jarvis_otel.cli.main", "collector", *arguments) as process:
        while not port_file.exists():
            assert process.poll() is None, "the collector did not start"
            time.sleep(0.01)
        yield process, int(port_file.read_text())


@contextmanager
def _real_collector(home: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    tool = subprocess.run(
        [Path(__file__).parent.parent / "scripts" / "build-real", "otelcol"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    port = free_port()
    config = home / "real.yaml"
    config.write_text(_REAL.format(port=port, path=home / "real.jsonl"))
    process = subprocess.Popen([tool, "--config", config], text=True)
    try:
        while not _listens(port):
            assert process.poll() is None, "the real Collector did not start"
            time.sleep(0.05)
        yield process, port
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _bare_server() -> Iterator[int]:
    port = free_port()
    with started("-c", _BARE, str(port)):
        while not _listens(port):
            time.sleep(0.05)
        yield port


_BARE = """
import asyncio, sys

async def answer(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            headers = dict(line.split(b": ", 1) for line in head.split(b"\\r\\n")[1:-2])
            await reader.readexactly(int(headers[b"Content-Length"]))
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        writer.close()

async def serve():
    async with await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]), backlog=1024) as server:
        await server.serve_forever()

asyncio.run(serve())
"""


def _listens(port: int) -> bool:
    try:
        http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()
    except OSError:
        return False
    return True


def _requests(process: subprocess.Popen[str], port: int, bodies: list[bytes], content_type: str, requests: int) -> Side:
    """Microseconds of the server's CPU per record, for requests one after the other."""
    turns = cycle(bodies)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def side() -> float:
        before = cpu_of_process(process.pid)
        for _ in range(requests):
            connection.request("POST", "/v1/logs", next(turns), {"Content-Type": content_type})
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 200, answer
        return (cpu_of_process(process.pid) - before) / (requests * RECORDS) * MICRO

    return side


def _peak(process: subprocess.Popen[str]) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in status if line.startswith("VmHWM"))


def _load(port: int, bodies: list[bytes], seconds: float) -> Any:
    """Requests answered in a second over all connections, and milliseconds that a hundredth of them waited longer."""
    requests = [_HEAD % len(body) + body for body in bodies]
    return lambda: asyncio.run(_loaded(port, requests, seconds))


_HEAD = b"POST /v1/logs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


async def _loaded(port: int, requests: Sequence[bytes], seconds: float) -> tuple[float, float]:
    loop = asyncio.get_running_loop()
    turns = cycle(requests)
    opening = [loop.create_connection(lambda: _Client(turns), "127.0.0.1", port) for _ in range(CONNECTIONS)]
    began = time.perf_counter()
    clients = [client for _, client in await asyncio.gather(*opening)]
    await asyncio.sleep(seconds)
    rate = sum(len(client.waits) for client in clients) / (time.perf_counter() - began)
    for client in clients:
        assert client.waits, "a connection was never answered"
        client.close()
    waits = sorted(wait for client in clients for wait in client.waits)
    return rate, waits[int(len(waits) * 0.99)] * 1000


class _Client(asyncio.Protocol):
    """One connection that sends its next request as soon as the last one is answered."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self.waits: list[float] = []
        self._requests = requests
        self._received = b""
        self._sent = 0.0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith((b"\r\n\r\n{}", b"\r\n\r\n" + _REAL_ANSWER)):
            assert self._received.startswith(b"HTTP/1.1 200 "), self._received
            self._received = b""
            self.waits.append(time.perf_counter() - self._sent)
            self._send()

    def close(self) -> None:
        self._transport.abort()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(next(self._requests))


def _body(count: int, number: int) -> bytes:
    """A request as an SDK sends it; another number, other records."""
    resource = {"service.name": "trading", "deployment.environment.name": "prod", "host.name": "jarvis-1"}
    records = [_record(number * count + place) for place in range(count)]
    scope_logs = [{"scope": {"name": "trading"}, "logRecords": records}]
    request = {"resourceLogs": [{"resource": {"attributes": _attributes(resource)}, "scopeLogs": scope_logs}]}
    return orjson.dumps(request)


def _record(number: int) -> dict[str, Any]:
    time_ns = 1_785_000_000_000_000_000 + number * 1_000_003
    attributes = {
        "symbol": "SOL",
        "amount": 100,
        "user.id": "user42",
        "jarvis.flag.DEXTER_ENABLED": "on",
        "order_id": f"order-{number:06}",
        "price": 142.5 + number / 100,
        "log.record.uid": f"9f86d081-{number:x}",
    }
    return {
        "timeUnixNano": str(time_ns),
        "observedTimeUnixNano": str(time_ns + 20_000),
        "severityNumber": 9,
        "severityText": "INFO",
        "body": {"stringValue": "Trade executed"},
        "attributes": _attributes(attributes),
        "flags": 1,
        # an operation has several records
        "traceId": f"5b8efff798038103{number // 4 + 1:016x}",
        "spanId": f"{number // 2 + 1:016x}",
    }


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = {str: "stringValue", int: "intValue", float: "doubleValue"}
    return [
        {"key": key, "value": {kinds[type(value)]: str(value) if isinstance(value, int) else value}}
        for key, value in values.items()
    ]


def _protobuf(body: bytes) -> bytes:
    """The same request in OTLP's other encoding, whose JSON has ids in hex and not in base64."""
    document = orjson.loads(body)
    records = document["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    ids = [(bytes.fromhex(record.pop("traceId")), bytes.fromhex(record.pop("spanId"))) for record in records]
    request = ParseDict(document, ExportLogsServiceRequest())
    for record, (trace_id, span_id) in zip(request.resource_logs[0].scope_logs[0].log_records, ids, strict=True):
        record.trace_id, record.span_id = trace_id, span_id
    return bytes(request.SerializeToString())


if __name__ == "__main__":
    main(measure)
