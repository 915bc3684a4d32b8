"""OTLP/gRPC, in the same event loop as OTLP/HTTP. grpcio is loaded with this module.

Messages come compressed as they were sent, for gRPC would inflate them without asking how many others it inflates just
then; a message is read only when its call is let in.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from functools import partial
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from google.protobuf.any_pb2 import Any as AnyMessage  # type: ignore[import-untyped]
from google.protobuf.duration_pb2 import Duration  # type: ignore[import-untyped]
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from jarvis_collector.access import Access, read_tls
from jarvis_collector.config import CollectorConfig, CollectorError
from jarvis_collector.inflate import sniff
from jarvis_collector.otlp import Encoding, Signal
from jarvis_collector.otlp_http import partial_success
from jarvis_collector.receiver import RETRY_AFTER, Outcome, Receiver, why_no_address

__all__ = ["GrpcServer"]

_SERVICES = {Signal.LOGS: "logs.v1.Logs", Signal.TRACES: "trace.v1.Trace", Signal.METRICS: "metrics.v1.Metrics"}
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
_FULL = Outcome(503, "too much is waiting to be written")
_READING_MAX = 32
"""So many messages are read at a time: each may be as large as a body may be, and gRPC does not say how far it is."""
_CALLS_MAX = 1024
_STREAMS_MAX = 100
_CONNECTIONS_PER_HTTP = 4
"""So many times as many connections as HTTP takes: an idle one cannot make room here, it must run into its timeout."""


class GrpcServer:
    """Serves the three collector services.

    Args:
        receiver: Takes the requests.
        access: Who may call.
        config: Where it listens, and the bounds.

    Attributes:
        access: Who may call from now on.
        answers: How many calls were answered, by the name of their status.
    """

    def __init__(self, receiver: Receiver, access: Access, config: CollectorConfig) -> None:
        self.access = access
        self.answers: Counter[str] = Counter()
        self._receiver = receiver
        self._config = config
        self._calls = 0
        self._reading = asyncio.Semaphore(_READING_MAX)
        # what a client does wrong is told to the client; grpc would tell stderr as well
        logger = logging.getLogger("grpc")
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
        self._server = grpc.aio.server(options=_options(config))
        handlers = {
            f"/opentelemetry.proto.collector.{service}Service/Export": grpc.stream_unary_rpc_method_handler(
                partial(self._export, signal)
            )
            for signal, service in _SERVICES.items()
        }
        self._server.add_generic_rpc_handlers((_Handlers(handlers),))

    async def start(self) -> int:
        """Begins to listen.

        Returns:
            The port.

        Raises:
            CollectorError: The address cannot be had, or the files of TLS not be used.
        """
        host, port = self._config.host, self._config.grpc_port
        assert port is not None
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._config.tls_cert is None and self._config.tls_key is None:
                bound = self._server.add_insecure_port(address)
            else:
                certificates = _Certificates(self._config, self._receiver)
                bound = self._server.add_secure_port(address, certificates.credentials)
        except RuntimeError:
            raise CollectorError(f"cannot listen on {address} for gRPC: {_why_not(host, port)}") from None
        await self._server.start()
        return int(bound)

    async def stop(self) -> None:
        """Takes no more calls, and lets those in flight be answered."""
        await self._server.stop(self._receiver.config.drain_timeout)

    async def _export(self, signal: Signal, _: object, context: Any) -> bytes:
        self._calls += 1
        try:
            outcome = await self._outcome(signal, context)
            if outcome.status != 200:
                await self._refuse(context, outcome)
            self.answers["OK"] += 1
            return partial_success(signal, Encoding.PROTOBUF, outcome) if outcome.refused else b""
        finally:
            self._calls -= 1

    async def _outcome(self, signal: Signal, context: Any) -> Outcome:
        if self.access.needs_token and not self.access.is_allowed(_metadata(context, "authorization")):
            return Outcome(401, "authorization: want Bearer and one of the collector's tokens")
        if self._receiver.is_full or self._calls > _CALLS_MAX:
            return _FULL
        try:
            async with self._reading, asyncio.timeout(self._receiver.config.body_timeout):
                body = await context.read()
        except TimeoutError:
            return Outcome(408, "the request did not come to its end in time")
        if body is grpc.aio.EOF:
            return Outcome(400, "a call without a message")
        settled: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            if not settled.done():  # the client may have gone
                settled.set_result(outcome)

        size = len(body)
        self._receiver.held += size
        try:
            if self._receiver.is_full:
                return _FULL
            self._receiver.receive(signal, Encoding.PROTOBUF, body, sniff(body), done)
            return await settled
        finally:
            self._receiver.held -= size

    async def _refuse(self, context: Any, outcome: Outcome) -> None:
        code = _CODES[outcome.status]
        self.answers[code.name] += 1
        trailers: tuple[tuple[str, str | bytes], ...] = ()
        if code is grpc.StatusCode.UNAVAILABLE:
            detail = AnyMessage()
            detail.Pack(RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER)))
            status = Status(code=code.value[0], message=outcome.message, details=[detail])
            trailers = (
                ("grpc-status-details-bin", status.SerializeToString()),
                ("grpc-retry-pushback-ms", str(RETRY_AFTER * 1000)),
            )
        await context.abort(code, outcome.message, trailers)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Methods by their full name."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: Any) -> Any:
        """What handles a call; None for a method that is not served."""
        return self._handlers.get(handler_call_details.method)


class _Certificates:
    """Has new connections use the certificate that is in the files when the configuration was last read."""

    def __init__(self, config: CollectorConfig, receiver: Receiver) -> None:
        self._receiver = receiver
        self._used = config
        self.credentials = grpc.dynamic_ssl_server_credentials(self._read(config), self._fetch)

    def _fetch(self) -> Any:
        """Called by grpc, in a thread of its own, before each handshake; None keeps what it has."""
        config = self._receiver.config
        if config is self._used:
            return None
        self._used = config
        try:
            return self._read(config)
        except CollectorError:
            return None

    def _read(self, config: CollectorConfig) -> Any:
        return grpc.ssl_server_certificate_configuration([read_tls(config)])


def _options(config: CollectorConfig) -> list[tuple[str, int]]:
    milliseconds = {
        "grpc.server_handshake_timeout_ms": config.head_timeout,
        "grpc.max_connection_idle_ms": config.idle_timeout,
        # a peer that is gone without a word is found out, and clients may ask whether we are still here
        "grpc.keepalive_time_ms": 60,
        "grpc.keepalive_timeout_ms": 20,
        "grpc.http2.min_ping_interval_without_data_ms": 10,
    }
    return [
        *((name, int(seconds * 1000)) for name, seconds in milliseconds.items()),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),
        ("grpc.per_message_decompression", 0),
        ("grpc.max_receive_message_length", config.max_body),
        ("grpc.max_metadata_size", config.max_head),
        ("grpc.absolute_max_metadata_size", config.max_head),
        ("grpc.max_concurrent_streams", _STREAMS_MAX),
        ("grpc.max_allowed_incoming_connections", config.max_connections * _CONNECTIONS_PER_HTTP),
    ]


def _metadata(context: Any, name: str) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else value.decode("latin-1")
    return None


def _why_not(host: str, port: int) -> str:
    """grpc does not say why it cannot have an address; the socket does."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as probe:
            probe.bind(address)
            probe.listen()
    except OSError as error:
        return why_no_address(error, "--grpc-port")
    return "grpc refuses it"
