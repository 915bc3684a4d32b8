"""A peer that takes pushes as Loki 3.7.8 does where it matters to a forwarder, and answers as it is told."""

import gzip
import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.http_peers import HttpPeer, PeerHandler

HOUR = 3_600_000_000_000
LIMITS = {"line": 256 * 1024, "metadata": 64 * 1024, "entries": 128}


class LokiSink(HttpPeer):
    """Keeps the records that it takes, in their order, repeats too.

    Attributes:
        script: What becomes of the next pushes, one by one: a status, `hang`, or `reset`; then all is well.
        status: What becomes of all others, if not 204.
        refuses: Told each record; a text refuses it, as Loki's distributor would say it.
        window: Nanoseconds that a record may be behind the newest of its service.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.taken: list[dict[str, Any]] = []
        self.pushes: list[tuple[int, list[dict[str, Any]]]] = []
        self.headers: list[dict[str, str]] = []
        self.script: list[int | str] = []
        self.retry_after = "0"
        self.status = 204
        self.refuses: Callable[[dict[str, Any]], str | None] = lambda _: None
        self.window: int | None = None
        self.newest: dict[str, int] = {}
        self.hanging = threading.Event()
        self._released = threading.Event()
        sink = self

        class Handler(PeerHandler):
            def do_POST(self):  # noqa: N802 - as http.server calls it
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = sink.script.pop(0) if sink.script else sink.status
                if status == "hang":
                    sink.hanging.set()
                    sink._released.wait(30)
                    self.close_connection = True
                    return
                if status == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return
                message = b""
                if status == 204:
                    status, message = sink._take(self.path, self.headers, body)
                headers = {"Retry-After": sink.retry_after} if status in (429, 503) else {}
                self.reply(status, {**headers, "Content-Type": "application/octet-stream"}, message)

        self._lock = threading.Lock()
        super().__init__(Handler, port, tls)

    def close(self) -> None:
        self._released.set()
        super().close()

    def _take(self, path: str, headers: Any, body: bytes) -> tuple[int, bytes]:
        if path != "/otlp/v1/logs":
            return 404, b"404 page not found\n"
        if headers["Content-Type"] != "application/json":
            return 400, _status(f"content type: {headers['Content-Type']} is not supported")
        if headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        try:
            records = records_of(json.loads(body))
        except ValueError as error:
            return 400, _status(f"readObject: {error}")
        for record in records:
            for attribute in record.get("attributes", ()):
                if not any(char.isascii() and char.isalnum() for char in attribute["key"]):
                    return 400, _status(f'symbolizer lookup: normalization for label name "{attribute["key"]}"')
        with self._lock:
            self.pushes.append((len(body), records))
            self.headers.append({key.lower(): value for key, value in headers.items()})
            good, errors = [], Counter()
            for record in records:
                error = self.refuses(record) or _over_limits(record)
                if error:
                    errors[error] += 1
                else:
                    good.append(record)
            behind = self._far_behind(good)
            said = behind or "; ".join(f"{count} errors like: {error}" for error, count in errors.items())
            if not behind and errors.total() == 1:
                said = next(iter(errors))
        return (400, _status(said)) if said else (204, b"")

    def _far_behind(self, records: list[dict[str, Any]]) -> str:
        """Stores records stream by stream; what was not stored of the last stream is told."""
        streams: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            streams.setdefault(service_of(record), []).append(record)
        taken = []
        said = ""
        for service, entries in streams.items():
            ignored = []
            for record in entries:
                time_ = int(record.get("timeUnixNano", 0))
                limit = self.newest.get(service, 0) - self.window if self.window is not None else 0
                if time_ < limit:
                    ignored.append(
                        f"entry with timestamp {time_} ignored, reason: 'entry too far behind, entry timestamp is: "
                        f"{_rfc3339(time_)}, oldest acceptable timestamp is: {_rfc3339(limit)}',\n"
                    )
                    continue
                self.newest[service] = max(self.newest.get(service, 0), time_)
                taken.append(record)
            if ignored:
                counts = f"total ignored: {len(ignored)} out of {len(entries)}"
                said = "".join(ignored[:10]) + f"user 'fake', {counts} for stream: {{service_name=\"{service}\"}}"
        order = {id(record): number for number, record in enumerate(records)}
        self.taken += sorted(taken, key=lambda record: order[id(record)])
        return said

    @property
    def bodies(self) -> list[Any]:
        return [record.get("body", {}).get("stringValue") for record in self.taken]

    def too_old(self, record: dict[str, Any], days: int = 7) -> str | None:
        """Loki's reject_old_samples."""
        limit = time.time_ns() - days * 24 * HOUR
        time_ = int(record["timeUnixNano"])
        if time_ >= limit:
            return None
        return f"entry for stream '{{service_name=\"{service_of(record)}\"}}' has timestamp too old: {_rfc3339(time_)}, oldest acceptable timestamp is: {_rfc3339(limit)}"


def records_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {**record, "scope": scope.get("scope", {}), "resource": resource.get("resource", {})}
        for resource in request["resourceLogs"]
        for scope in resource["scopeLogs"]
        for record in scope["logRecords"]
    ]


def service_of(record: dict[str, Any]) -> str:
    attributes = record["resource"].get("attributes", ())
    return next((each["value"]["stringValue"] for each in attributes if each["key"] == "service.name"), "unknown")


def _over_limits(record: dict[str, Any]) -> str | None:
    stream = f"stream '{{service_name=\"{service_of(record)}\"}}'"
    line = record.get("body", {}).get("stringValue", "").encode()
    if len(line) > LIMITS["line"]:
        return f"max entry size '{LIMITS['line']}' bytes exceeded for {stream} while adding an entry with length '{len(line)}' bytes"
    metadata = [(each["key"], str(each["value"])) for each in record.get("attributes", ())]
    metadata += [(key, str(value)) for key, value in record.items() if key in ("severityNumber", "traceId", "spanId")]
    if len(metadata) > LIMITS["entries"]:
        return f"{stream} has too many structured metadata labels: '{len(metadata)}', limit: '128'"
    size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata)
    if size > LIMITS["metadata"]:
        return f"{stream} has structured metadata too large: '{size}' bytes, limit: '65536' bytes"
    return None


def _rfc3339(nanos: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanos // 1_000_000_000))


def _status(message: str) -> bytes:
    """A google.rpc.Status in protobuf with the message alone."""
    text = message.encode()
    size, length = len(text), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return b"\x12" + length + bytes([size]) + text


@contextmanager
def loki_sink(port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[LokiSink]:
    with LokiSink(port, tls) as sink:
        yield sink
