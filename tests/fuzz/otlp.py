"""What clients send to the collector: requests in both encodings, compressed bodies, HTTP itself."""

from __future__ import annotations

import asyncio
import base64
import functools
import gzip
import json
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

import orjson
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from jarvis_collector.access import Access
from jarvis_collector.config import CollectorConfig
from jarvis_collector.http import Connection, HttpServer
from jarvis_collector.inflate import inflate, sniff
from jarvis_collector.otlp import BadRequestError, Encoding, Lines, Signal, TooLargeError, read
from jarvis_collector.otlp_http import OtlpHttp
from jarvis_collector.receiver import Receiver
from jarvis_collector.record import LINE_KEYS, logs_request, timestamp_of
from jarvis_collector.writer import Write
from tests.fuzz.properties import DATA, Family, one_line, scratch

FAMILY = Family("otlp")

ARRIVAL = 1_767_225_600_000_000_000
SAMPLE = [
    line
    for name in ("jarvis", "traces")
    for line in (DATA / "otelcol" / f"{name}-2026-11-26.jsonl").read_bytes().splitlines()[:2]
]
RECORD = {
    "timeUnixNano": "1767323045678901234",
    "observedTimeUnixNano": 1767323045678901999,
    "severityNumber": "SEVERITY_NUMBER_WARN",
    "severityText": "WARN",
    "body": {
        "kvlistValue": {
            "values": [{"key": "a", "value": {"arrayValue": {"values": [{"intValue": "1"}, {"bytesValue": "AAE="}]}}}]
        }
    },
    "attributes": [
        {"key": "jarvis.active_flags", "value": {"arrayValue": {"values": [{"stringValue": "A"}]}}},
        {"key": "exception.type", "value": {"stringValue": "a.B"}},
        {"key": "jarvis.duration_ms", "value": {"doubleValue": "NaN"}},
        {"key": "jarvis.flag.A", "value": {"stringValue": "on"}},
        {"key": "context", "value": {"boolValue": True}},
    ],
    "flags": 257,
    "traceId": "0AF7651916CD43DD8448EB211C80319C",
    "spanId": "b7ad6b7169203331",
    "eventName": "e",
}
SPAN = {
    "traceId": "0af7651916cd43dd8448eb211c80319c",
    "spanId": "b7ad6b7169203331",
    "parentSpanId": "b7ad6b7169203332",
    "name": "GET /",
    "kind": "SPAN_KIND_SERVER",
    "startTimeUnixNano": "1767323045678901234",
    "endTimeUnixNano": "1767323045778901234",
    "attributes": [{"key": "http.route", "value": {"stringValue": "/"}}],
    "events": [{"timeUnixNano": "1", "name": "exception", "attributes": []}],
    "links": [{"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "b7ad6b7169203331"}],
    "status": {"code": 2, "message": "m"},
}
METRIC = {
    "name": "m",
    "sum": {
        "dataPoints": [{"asInt": "5", "timeUnixNano": "1767323045678901234", "attributes": []}],
        "isMonotonic": True,
    },
}
RESOURCE = {
    "attributes": [
        {"key": "service.name", "value": {"stringValue": "jarvis"}},
        {"key": "host.name", "value": {"stringValue": "h%"}},
    ]
}


def request(signal: Signal, *records: Any) -> dict[str, Any]:
    groups, scopes, listed = {
        Signal.LOGS: ("resourceLogs", "scopeLogs", "logRecords"),
        Signal.TRACES: ("resourceSpans", "scopeSpans", "spans"),
        Signal.METRICS: ("resourceMetrics", "scopeMetrics", "metrics"),
    }[signal]
    return {
        groups: [
            {
                "resource": RESOURCE,
                "scopeLogs": [],
                scopes: [{"scope": {"name": "s", "version": "1"}, listed: list(records)}],
            }
        ]
    }


ALIKE = [RECORD | {"timeUnixNano": str(number), "body": {"stringValue": f"m{number}"}} for number in range(40)]
BODIES = [
    *SAMPLE,
    *(json.dumps(request(signal, record)) for signal, record in zip(Signal, (RECORD, SPAN, METRIC), strict=True)),
    orjson.dumps(request(Signal.LOGS, *ALIKE)),
    '{"resourceLogs":[{"scopeLogs":[{"logRecords":[%s]}]}]}'
    % ('{"body":' + '{"arrayValue":{"values":[' * 450 + "]}}" * 450 + "}"),
    '{"a":' + "[" * 1100 + '"' + '\\"' * 300,
    "[" * 1100 + "]" * 1100,
]
KEYS = b'"resourceLogs":[ "resourceSpans":[ "resourceMetrics":[ "resource":{ "scopeLogs":[ "scopeSpans":[ "scope":{ "logRecords":[ "spans":[ "attributes":[ {"key":" "value":{ "stringValue":" "intValue":" "doubleValue": "boolValue":true "bytesValue":" "arrayValue":{"values":[ "kvlistValue":{"values":[ "body":{ "timeUnixNano":" "severityNumber": "traceId":" "spanId":" "eventName":" "flags": "NaN" "Infinity" 1e400 9223372036854775808 null \\ud800 \xff { } [ ] , "'.split()  # fmt: skip


def taken(signal: Signal, encoding: Encoding, body: bytes) -> Lines | None:
    """The lines of a request, each a whole JSON object; None where the request was refused as it should be."""
    try:
        out = read(signal, encoding, body, ARRIVAL)
    except (BadRequestError, TooLargeError) as error:
        one_line(error, body)
        return None
    for line in out.lines:
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        content = orjson.loads(line)
        if signal is not Signal.METRICS:
            assert timestamp_of(line) == content["timestamp"].encode()
        if signal is Signal.LOGS:
            assert [key for key in LINE_KEYS if key in content] == list(content)
    assert bool(out.refused) == bool(out.problem)
    return out


@FAMILY.add(seeds=BODIES, words=KEYS)
def json_request(data: bytes) -> None:
    """Any body is refused, or becomes whole lines, with the records counted that cannot be kept."""
    for signal in Signal:
        out = taken(signal, Encoding.JSON, data)
        if out is not None and signal is Signal.LOGS:
            as_requests(out.lines)


def as_requests(lines: list[bytes]) -> None:
    """Lines of logs become a request again, and that the same lines."""
    again = taken(Signal.LOGS, Encoding.JSON, orjson.dumps(logs_request(map(orjson.loads, lines))))
    assert again is not None
    assert again.refused == 0
    assert sorted(map(said, again.lines)) == sorted(map(said, lines))


def said(line: bytes) -> str:
    """What a line says, whatever the order; of a record without a uid that is a hash, order and all."""
    content = orjson.loads(line)
    meta = content["_meta"]
    if meta["uid"].startswith("#"):
        del meta["uid"]
    for owner in (meta.get("otlp", {}), *meta.get("otlp", {}).values()):
        if isinstance(owner, dict) and isinstance(owner.get("attributes"), list):
            owner["attributes"].sort(key=json.dumps)
    return json.dumps(content, sort_keys=True)


@FAMILY.add(seeds=BODIES, words=KEYS)
def json_records_alike(data: bytes) -> None:
    """Records that come together get the lines that each gets alone."""
    try:
        groups = orjson.loads(data)["resourceLogs"]
        records = [
            (group, scope, record) for group in groups for scope in group["scopeLogs"] for record in scope["logRecords"]
        ]
    except (ValueError, TypeError, KeyError):
        return
    together = taken(Signal.LOGS, Encoding.JSON, data)
    if together is None:
        return
    alone: list[bytes] = []
    for group, scope, record in records[:64]:
        one = group | {"scopeLogs": [scope | {"logRecords": [record]}]}
        lines = taken(Signal.LOGS, Encoding.JSON, orjson.dumps({"resourceLogs": [one]}))
        alone += lines.lines if lines is not None else []
    assert len(records) > 64 or together.lines == alone


def protobuf_of(signal: Signal, content: dict[str, Any]) -> bytes:
    """A request in OTLP/JSON as protobuf, by the library's own parser."""
    from google.protobuf.json_format import ParseDict

    def ids(node: Any) -> Any:
        if isinstance(node, list):
            return [ids(item) for item in node]
        if isinstance(node, dict):
            return {
                key: base64.b64encode(bytes.fromhex(value)).decode()
                if key.endswith(("raceId", "panId"))
                else ids(value)
                for key, value in node.items()
            }
        return node

    kind = ExportLogsServiceRequest if signal is Signal.LOGS else ExportTraceServiceRequest
    return ParseDict(ids(content), kind(), ignore_unknown_fields=True).SerializeToString()


MESSAGES = [
    protobuf_of(Signal.LOGS, request(Signal.LOGS, RECORD)),
    protobuf_of(Signal.LOGS, request(Signal.LOGS, *ALIKE[:12])),
    protobuf_of(Signal.TRACES, request(Signal.TRACES, SPAN)),
]


@FAMILY.add(
    seeds=MESSAGES,
    words=[
        b"\n",
        b"\x12",
        b"\x1a",
        b"\x2a",
        b"\x32",
        b"\x09",
        b"\x59",
        b"\xff" * 9 + b"\x01",
        b"\x0a\x00",
        b"\x1f\x8b",
    ],
)
def protobuf_request(data: bytes) -> None:
    """A protobuf request gives the lines of the same request in JSON, as the protobuf library reads it."""
    for signal, kind in ((Signal.LOGS, ExportLogsServiceRequest), (Signal.TRACES, ExportTraceServiceRequest)):
        out = taken(signal, Encoding.PROTOBUF, data)
        try:
            message = kind.FromString(data)
        except DecodeError:
            continue
        same = taken(signal, Encoding.JSON, orjson.dumps(_with_hex_ids(MessageToDict(message))))
        assert out is not None
        assert same is not None
        if not (out.refused or same.refused):
            assert out.lines == same.lines
    taken(Signal.METRICS, Encoding.PROTOBUF, data)


def _with_hex_ids(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_hex_ids(item) for item in node]
    if isinstance(node, dict):
        return {
            key: base64.b64decode(value).hex() if key in ("traceId", "spanId", "parentSpanId") else _with_hex_ids(value)
            for key, value in node.items()
        }
    return node


@FAMILY.add(
    seeds=[gzip.compress(b"a" * 3000), gzip.compress(b"a") + gzip.compress(b"b"), zlib.compress(b"abc" * 99), b"(\xb5/\xfd\x04X\x19\x00\x00abc\xff"],
    words=[b"\x1f\x8b\x08\x00", b"\x78\x9c", b"\x28\xb5\x2f\xfd"],
)  # fmt: skip
def inflated(data: bytes) -> None:
    """Inflating ends with the content or says what is wrong, never gives more than its limit, and agrees with zlib."""
    sniff(data)
    for encoding, wbits in (("gzip", 31), ("deflate", 15), ("zstd", 0)):
        try:
            content = inflate(data, encoding, 2000)
        except TooLargeError:
            continue
        except BadRequestError:
            content = None
        if content is not None:
            assert len(content) <= 2000
        if wbits:
            expected, rest = b"", data
            try:
                while rest:
                    inflater = zlib.decompressobj(wbits)
                    expected += inflater.decompress(rest)
                    rest = inflater.unused_data
                    if not inflater.eof:
                        raise zlib.error
            except zlib.error:
                assert content is None
            else:
                assert content == expected


# --- HTTP ---


class Loop:
    """As much of an event loop as a connection asks of it."""

    def __init__(self) -> None:
        self._soon: deque[Callable[[], None]] = deque()

    def time(self) -> float:
        return 0.0

    def call_soon(self, call: Callable[[], None]) -> None:
        self._soon.append(call)

    def turn(self) -> None:
        while self._soon:
            self._soon.popleft()()


class Sent(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_over = self.is_half_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_over, "written after the end"
        assert not self.is_half_closed, "written after its own end"
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_half_closed = True

    def close(self) -> None:
        self.is_over = True

    def abort(self) -> None:
        self.is_over = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Kept:
    """Takes lines as written."""

    def submit(self, write: Write) -> None:
        write.settled(write)


@functools.cache
def config(**bounds: int) -> CollectorConfig:
    return CollectorConfig(
        log_dir=scratch(), max_head=1024, max_body=2048, max_inflated=4096, max_pending=8192, **bounds
    )


def post(body: bytes, *headers: str, path: str = "/v1/logs", kind: str = "application/json") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost:4318",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


LOGS = orjson.dumps(request(Signal.LOGS, {"body": {"stringValue": "x"}}))
CHUNKED = (
    b"POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)
REQUESTS = [
    post(LOGS),
    post(LOGS) * 3,
    post(gzip.compress(LOGS), "Content-Encoding: gzip"),
    post(gzip.compress(b" " * 9000), "Content-Encoding: gzip"),
    post(MESSAGES[0], kind="application/x-protobuf; charset=x"),
    post(b"", "Expect: 100-continue", path="/v1/traces"),
    post(LOGS, "Content-Encoding: identity", "Connection: close"),
    b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nHEAD /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n",
    CHUNKED + b"2\r\n{}\r\n0\r\n\r\n",
    CHUNKED + b"2\r\n{}\r\n0\r\nContent-Type: text/plain\r\nContent-Encoding: br\r\n\r\n",
    CHUNKED + b"2\r\n{}\r\n0\r\n" + b"".join(b"T%d: %s\r\n" % (number, b"x" * 40) for number in range(80)) + b"\r\n",
    b"POST /v1/logs HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 18446744073709551615\r\n\r\n",
    b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


@FAMILY.add(
    seeds=[bytes([size]) + each for each in REQUESTS for size in (0, 7)],
    words=[*b"POST GET HEAD PUT HTTP/1.1 HTTP/1.0 /v1/logs /v1/metrics /healthz Host: localhost Content-Length: Content-Type: Content-Encoding: Transfer-Encoding: chunked gzip deflate zstd application/json application/x-protobuf Connection: close keep-alive Expect: 100-continue Authorization: Bearer".split(), b"\r\n", b"\r\n\r\n", b"0\r\n"],
)  # fmt: skip
def http(data: bytes) -> None:
    """Whatever comes on a connection, in whatever pieces, is answered or ended; nothing stays held, and headers are few."""
    size, content = data[:1], data[1:]
    loop, sent = Loop(), Sent()
    receiver = Receiver(config(), Kept())  # type: ignore[arg-type] - all that it asks of a writer
    served: Callable[[bool], Any] = lambda _: _page()  # noqa: E731
    application = OtlpHttp(
        receiver, Access(config()), {"/healthz": served, "/metrics": served}, frozenset({"/healthz"})
    )
    server = HttpServer(application, config(), receiver)
    connection = Connection(server, loop)  # type: ignore[arg-type] - as much of a loop as it asks for
    connection.connection_made(sent)
    step = int.from_bytes(size, "big") or len(content) or 1
    for at in range(0, len(content), step):
        if sent.is_over:
            break
        connection.data_received(content[at : at + step])
        loop.turn()
        if (pending := connection._request) is not None:
            held = sum(len(name) + len(value) for name, value in pending.headers.items())
            assert held <= config().max_head + step, "more headers than it may have are held"
            assert len(pending.body) <= config().max_body + step
    connection.eof_received()
    loop.turn()
    connection.connection_lost(None)
    assert receiver.held == 0
    assert not server.connections
    rest = bytes(sent.written)
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        status, *headers = head.split(b"\r\n")
        assert status[:9] == b"HTTP/1.1 "
        lengths = [int(header[16:]) for header in headers if header.startswith(b"Content-Length: ")]
        rest = rest[sum(lengths) :]
    assert application.answers[500] == 0, bytes(sent.written)


def _page() -> Any:
    from jarvis_collector.http import Response

    return Response(200, b"ok\n")
