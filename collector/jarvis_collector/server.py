"""The embedded collector: OTLP/HTTP in, day files out, and an answer only when the records are on the disk."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from jarvis_collector.config import CollectorConfig, CollectorError, is_loopback
from jarvis_collector.http import HttpServer, Request, Response
from jarvis_collector.otlp import BadRequestError, Encoding, Lines, Signal, read
from jarvis_collector.writer import Write, Writer, locked

__all__ = ["run"]

_SIGNALS = {f"/v1/{signal}": signal for signal in Signal}
_ENCODINGS = {encoding.value: encoding for encoding in Encoding}
_PAGES = ("/healthz", "/metrics")
_STREAMS = {Signal.LOGS: "jarvis", Signal.TRACES: "traces", Signal.METRICS: "metrics"}
_REJECTED: dict[Signal, tuple[Any, str, str]] = {
    Signal.LOGS: (ExportLogsServiceResponse, "rejected_log_records", "rejectedLogRecords"),
    Signal.TRACES: (ExportTraceServiceResponse, "rejected_spans", "rejectedSpans"),
    Signal.METRICS: (ExportMetricsServiceResponse, "rejected_data_points", "rejectedDataPoints"),
}
_RPC_CODES = {400: 3, 403: 7, 404: 5, 405: 12, 408: 4, 413: 8, 415: 3, 431: 8, 500: 13, 503: 14}
"""google.rpc.Code by HTTP status."""
_RETRY_AFTER = 2
_INFLATE_STEP = 1 << 16


def run(config: CollectorConfig, *, ready: Callable[[int], None] | None = None) -> None:
    """Runs a collector until SIGTERM or SIGINT, then answers what it has accepted and returns.

    Args:
        config: Where it listens and writes.
        ready: Called with the true port once it listens.

    Raises:
        CollectorError: It cannot start.
    """
    if not is_loopback(config.host):
        raise CollectorError(
            f"host: got {config.host!r}, want a loopback address such as 127.0.0.1: "
            "a collector that others can reach would need to know them, which it does not yet"
        )
    # a request's records are many objects that die together: looking for cycles among them finds nothing
    gc.set_threshold(100_000, 20, 20)
    with locked(config.log_dir):
        asyncio.run(_serve(config, ready))


async def _serve(config: CollectorConfig, ready: Callable[[int], None] | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    collector = Collector(config, loop)
    collector.writer.start()
    try:
        try:
            port = await collector.http.start()
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            reason = "it is in use; stop what runs there or choose another --port" if in_use else error.strerror
            raise CollectorError(f"cannot listen on {config.host}:{config.port}: {reason}") from None
        host = f"[{config.host}]" if ":" in config.host else config.host
        print(
            f"jarvis collector: listening on http://{host}:{port}, writing to {config.log_dir}/",
            file=sys.stderr,
            flush=True,
        )
        if ready is not None:
            ready(port)
        await stop.wait()
        await collector.http.drain()
    finally:
        await loop.run_in_executor(None, collector.writer.stop)


class Collector:
    """Answers OTLP requests: reads them, hands their lines to the writer, and answers when these are synced.

    Args:
        config: Its bounds.
        loop: The event loop that it runs in.
    """

    def __init__(self, config: CollectorConfig, loop: asyncio.AbstractEventLoop) -> None:
        self.http = HttpServer(self, config)
        self.writer = Writer(config.log_dir, lambda writes: loop.call_soon_threadsafe(self._settle, writes))
        self._config = config
        self._requests: Counter[int] = Counter()
        self._written: Counter[Signal] = Counter()
        self._refused: Counter[Signal] = Counter()

    def admit(self, request: Request) -> Response | None:
        """Looks at a request's headers; an answer refuses it before its body is read."""
        path, method = request.path, request.method
        if not _is_local_name(request.headers.get("host", "")):
            # a page in a browser can make its own name lead here; then that name is what the browser sends
            return self.refuse(request, 403, "Host: want localhost or a loopback address")
        if path in _PAGES:
            return None if method in ("GET", "HEAD") else self._not_allowed(request, "GET")
        if path not in _SIGNALS:
            return self.refuse(request, 404, f"{path}: want one of {', '.join((*_SIGNALS, *_PAGES))}")
        if method != "POST":
            return self._not_allowed(request, "POST")
        if _encoding(request) is None:
            return self.refuse(request, 415, f"Content-Type: want {' or '.join(_ENCODINGS)}")
        if request.headers.get("content-encoding", "identity").lower() not in ("gzip", "identity", ""):
            return self.refuse(request, 415, "Content-Encoding: want gzip or none")
        if self.http.held > self._config.max_pending:
            return self.refuse(request, 503, "too much is waiting to be written")
        return None

    def handle(self, request: Request, respond: Callable[[Response], None]) -> None:
        """Answers a whole request; one with records when they are synced."""
        path = request.path
        if path in _PAGES:
            response = self._health() if path == "/healthz" else self._metrics()
            if request.method == "HEAD":
                response.body = b""
            self._answer(respond, response)
            return
        signal_ = _SIGNALS[path]
        try:
            body = self._inflated(request)
            encoding = _encoding(request)
            assert encoding
            lines = read(signal_, encoding, body, time.time_ns())
        except _TooLargeError as error:
            respond(self.refuse(request, 413, str(error)))
        except BadRequestError as error:
            respond(self.refuse(request, 400, str(error)))
        except Exception as error:  # a fault of ours in one request must not end the collector
            respond(self.refuse(request, 500, f"{type(error).__name__}: {error}"))
        else:
            self._keep(signal_, request, lines, respond)

    def refuse(self, request: Request, status: int, message: str) -> Response:
        """An error as OTLP wants it: a Status in the request's own encoding."""
        self._requests[status] += 1
        code = _RPC_CODES[status]
        headers = {"Retry-After": str(_RETRY_AFTER)} if status == 503 else {}
        if _encoding(request) is Encoding.PROTOBUF:
            body = Status(code=code, message=message).SerializeToString()
            return Response(status, body, Encoding.PROTOBUF, headers)
        # a message may quote what was sent
        body = orjson.dumps({"code": code, "message": message.encode("utf-8", "replace").decode()})
        return Response(status, body, Encoding.JSON, headers)

    def _keep(self, signal_: Signal, request: Request, lines: Lines, respond: Callable[[Response], None]) -> None:
        if not lines.lines:
            self._refused[signal_] += lines.refused
            self._answer(respond, _accepted(signal_, request, lines))
            return
        size = sum(map(len, lines.lines))
        self.http.held += size

        def settled(write: Write) -> None:
            self.http.held -= size
            if write.error is None:
                self._written[signal_] += len(lines.lines)
                self._refused[signal_] += lines.refused
                self._answer(respond, _accepted(signal_, request, lines))
            else:
                respond(self.refuse(request, 503, f"cannot write: {_reason(write.error)}"))

        self.writer.submit(Write(_STREAMS[signal_], lines.lines, settled))

    def _settle(self, writes: Sequence[Write]) -> None:
        for write in writes:
            write.settled(write)

    def _answer(self, respond: Callable[[Response], None], response: Response) -> None:
        self._requests[response.status] += 1
        respond(response)

    def _not_allowed(self, request: Request, allowed: str) -> Response:
        response = self.refuse(request, 405, f"{request.method} {request.path}: want {allowed}")
        response.headers["Allow"] = allowed
        return response

    def _inflated(self, request: Request) -> bytes:
        if request.headers.get("content-encoding", "").lower() != "gzip":
            return bytes(request.body)
        return _inflate(bytes(request.body), self._config.max_inflated)

    def _health(self) -> Response:
        problem = self.writer.problem
        status = {"status": "ok"} if problem is None else {"status": "degraded", "reason": _reason(problem)}
        return Response(200 if problem is None else 503, orjson.dumps(status), Encoding.JSON)

    def _metrics(self) -> Response:
        writer, http = self.writer, self.http
        samples: list[tuple[str, str, dict[str, float]]] = [
            ("records_written_total", "counter", {f'{{signal="{key}"}}': self._written[key] for key in Signal}),
            ("records_refused_total", "counter", {f'{{signal="{key}"}}': self._refused[key] for key in Signal}),
            ("requests_total", "counter", {f'{{code="{key}"}}': self._requests[key] for key in sorted(self._requests)}),
            ("written_bytes_total", "counter", {"": writer.bytes_written}),
            ("commits_total", "counter", {"": writer.commits}),
            ("commit_failures_total", "counter", {"": writer.failures}),
            ("sync_seconds_total", "counter", {"": writer.sync_seconds}),
            ("held_bytes", "gauge", {"": http.held}),
            ("connections", "gauge", {"": len(http.connections)}),
        ]
        lines: list[str] = []
        for name, kind, values in samples:
            lines.append(f"# TYPE jarvis_collector_{name} {kind}")
            lines += [f"jarvis_collector_{name}{labels} {value}" for labels, value in values.items()]
        return Response(200, "\n".join([*lines, ""]).encode(), "text/plain; version=0.0.4; charset=utf-8")


class _TooLargeError(ValueError):
    """A body that grows beyond its bound when it is inflated."""


def _inflate(body: bytes, limit: int) -> bytes:
    """The content of a gzip body, which may have several members.

    Args:
        body: The body.
        limit: Bytes that the content may have; inflating stops there.

    Raises:
        BadRequestError: It is not gzip, or cut off.
        _TooLargeError: Its content is larger.
    """
    parts: list[bytes] = []
    size = 0
    while body:
        inflater = zlib.decompressobj(wbits=31)
        while not inflater.eof:
            try:
                part = inflater.decompress(body, _INFLATE_STEP)
            except zlib.error as error:
                raise BadRequestError(f"not gzip: {error}") from None
            size += len(part)
            if size > limit:
                raise _TooLargeError(f"a body of over {limit} bytes when inflated")
            parts.append(part)
            body = inflater.unconsumed_tail
            if not part and not body and not inflater.eof:
                raise BadRequestError("not gzip: it ends too early")
        body = inflater.unused_data
    return b"".join(parts)


def _accepted(signal_: Signal, request: Request, lines: Lines) -> Response:
    kind, rejected, json_rejected = _REJECTED[signal_]
    message = f"{lines.refused} of {lines.refused + len(lines.lines)} refused; the first: {lines.problem}"
    if _encoding(request) is Encoding.PROTOBUF:
        body = b""
        if lines.refused:
            partial_success = {rejected: lines.refused, "error_message": message}
            body = kind(partial_success=partial_success).SerializeToString()
        return Response(200, body, Encoding.PROTOBUF)
    answer = {"partialSuccess": {json_rejected: str(lines.refused), "errorMessage": message}} if lines.refused else {}
    return Response(200, orjson.dumps(answer), Encoding.JSON)


def _encoding(request: Request) -> Encoding | None:
    return _ENCODINGS.get(request.headers.get("content-type", "").partition(";")[0].strip().lower())


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return f"{type(error).__name__}: {error}"


def _is_local_name(host: str) -> bool:
    """Whether a Host header names this machine from within: any loopback address or localhost, with any port."""
    name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return is_loopback(name.strip())
