"""OTLP/HTTP and the pages beside it, over the small HTTP server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import orjson
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from jarvis_collector.access import Access
from jarvis_collector.http import Request, Response
from jarvis_collector.inflate import encodings, is_known
from jarvis_collector.otlp import Encoding, Signal
from jarvis_collector.receiver import RETRY_AFTER, Outcome, Receiver

__all__ = ["OtlpHttp", "partial_success"]

_SIGNALS = {f"/v1/{signal}": signal for signal in Signal}
_ENCODINGS = {encoding.value: encoding for encoding in Encoding}
_REJECTED: dict[Signal, tuple[Any, str, str]] = {
    Signal.LOGS: (ExportLogsServiceResponse, "rejected_log_records", "rejectedLogRecords"),
    Signal.TRACES: (ExportTraceServiceResponse, "rejected_spans", "rejectedSpans"),
    Signal.METRICS: (ExportMetricsServiceResponse, "rejected_data_points", "rejectedDataPoints"),
}
_RPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 408: 4, 413: 8, 415: 3, 431: 8, 500: 13, 501: 12, 503: 14}
"""google.rpc.Code by HTTP status."""

Page = Callable[[bool], Response]
"""Makes a page; it is told whether who asks may know all."""


class OtlpHttp:
    """Serves `/v1/logs`, `/v1/traces`, `/v1/metrics` and the pages.

    Args:
        receiver: Takes the requests.
        access: Who may ask.
        pages: By path; those of `open_pages` are for strangers too.
        open_pages: Pages that need no token.

    Attributes:
        access: Who may ask from now on.
        answers: How many requests were answered, by HTTP status.
    """

    def __init__(
        self, receiver: Receiver, access: Access, pages: dict[str, Page], open_pages: frozenset[str] = frozenset()
    ) -> None:
        self.access = access
        self.answers: Counter[int] = Counter()
        self._receiver = receiver
        self._pages = pages
        self._open_pages = open_pages

    def admit(self, request: Request) -> Response | None:
        """Looks at a request's headers; an answer refuses it before its body is read."""
        path, method, headers = request.path, request.method, request.headers
        if not self.access.is_known_host(headers.get("host", "")):
            return self.refuse(request, 403, "Host: want localhost or a loopback address, or a name in collector_hosts")
        if self.access.needs_token and path not in self._open_pages and not self._is_allowed(request):
            response = self.refuse(request, 401, "Authorization: want Bearer and one of the collector's tokens")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if path in self._pages:
            return None if method in ("GET", "HEAD") else self._not_allowed(request, "GET")
        if path not in _SIGNALS:
            return self.refuse(request, 404, f"{path}: want one of {', '.join((*_SIGNALS, *self._pages))}")
        if method != "POST":
            return self._not_allowed(request, "POST")
        if _encoding(headers) is None:
            return self.refuse(request, 415, f"Content-Type: want {' or '.join(_ENCODINGS)}")
        if not is_known(_compression(headers)):
            return self.refuse(request, 415, f"Content-Encoding: want one of {', '.join(encodings())}, or none")
        if self._receiver.is_full:
            return self.refuse(request, 503, "too much is waiting to be written")
        return None

    def handle(self, request: Request, respond: Callable[[Response], None]) -> None:
        """Answers a whole request; one with records when they are synced."""
        signal = _SIGNALS.get(request.path)
        if signal is None:
            response = self._pages[request.path](self._is_allowed(request))
            self.answers[response.status] += 1
            if request.method == "HEAD":
                response.body = b""
            respond(response)
            return
        encoding = _encoding(request.headers)
        assert encoding

        def done(outcome: Outcome) -> None:
            if outcome.status == 200:
                self.answers[200] += 1
                body = partial_success(signal, encoding, outcome) if outcome.refused else _ACCEPTED[encoding]
                respond(Response(200, body, encoding))
            else:
                respond(self.refuse(request, outcome.status, outcome.message))

        # the request lives until it is answered, its body need not
        body, request.body = bytes(request.body), bytearray()
        self._receiver.receive(signal, encoding, body, _compression(request.headers), done)

    def refuse(self, request: Request, status: int, message: str) -> Response:
        """An error as OTLP wants it: a Status in the request's own encoding."""
        self.answers[status] += 1
        code = _RPC_CODES[status]
        headers = {"Retry-After": str(RETRY_AFTER)} if status == 503 else {}
        if _encoding(request.headers) is Encoding.PROTOBUF:
            body = Status(code=code, message=message).SerializeToString()
            return Response(status, body, Encoding.PROTOBUF, headers)
        # a message may quote what was sent
        body = orjson.dumps({"code": code, "message": message.encode("utf-8", "replace").decode()})
        return Response(status, body, Encoding.JSON, headers)

    def _is_allowed(self, request: Request) -> bool:
        return self.access.is_allowed(request.headers.get("authorization"))

    def _not_allowed(self, request: Request, allowed: str) -> Response:
        response = self.refuse(request, 405, f"{request.method} {request.path}: want {allowed}")
        response.headers["Allow"] = allowed
        return response


_ACCEPTED = {Encoding.PROTOBUF: b"", Encoding.JSON: b"{}"}


def partial_success(signal: Signal, encoding: Encoding, outcome: Outcome) -> bytes:
    """The body of an answer that tells of refused records."""
    kind, rejected, json_rejected = _REJECTED[signal]
    if encoding is Encoding.PROTOBUF:
        partial = {rejected: outcome.refused, "error_message": outcome.message}
        return bytes(kind(partial_success=partial).SerializeToString())
    partial_json = {json_rejected: str(outcome.refused), "errorMessage": outcome.message}
    return orjson.dumps({"partialSuccess": partial_json})


def _encoding(headers: dict[str, str]) -> Encoding | None:
    return _media_type(headers.get("content-type", ""))


@lru_cache(maxsize=64)
def _media_type(text: str) -> Encoding | None:
    return _ENCODINGS.get(text.partition(";")[0].strip().lower())


def _compression(headers: dict[str, str]) -> str:
    """The content encoding; empty for none."""
    named = headers.get("content-encoding")
    if named is None:
        return ""
    named = named.strip().lower()
    return "" if named == "identity" else named
