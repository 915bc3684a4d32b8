"""A small HTTP/1.1 server on asyncio: bounded in size, time and number, and nothing of OTLP."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol

import httptools

from jarvis_collector.config import CollectorConfig

__all__ = ["Application", "HttpServer", "Load", "Request", "Response"]

_HEADERS_MAX = 100
_TLS_END = _LINGER = 1.0
"""Seconds that a client has to say goodbye."""


@dataclass(slots=True)
class Response:
    """What a request is answered.

    Attributes:
        status: The HTTP status code.
        body: What is sent; its length is told.
        content_type: Of the body.
        headers: Further headers, by name.
        close: Whether the connection ends with it.
    """

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: dict[str, str] = field(default_factory=dict)
    close: bool = False

    def encode(self) -> bytes:
        """The response as it is sent."""
        headers = [f"{name}: {value}\r\n" for name, value in self.headers.items()]
        if self.close:
            headers.append("Connection: close\r\n")
        start = _response_start(self.status, self.content_type, len(self.body))
        return b"".join([start, "".join(headers).encode("latin-1"), b"\r\n", self.body])


@lru_cache(maxsize=64)
def _response_start(status: int, content_type: str, length: int) -> bytes:
    """The first lines of a response; most are answered alike."""
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, ""]).encode("latin-1")


class Request:
    """A request as it comes in.

    Attributes:
        path: The path of the URL, known with the headers.
        headers: Value by lower-case name; of a repeated one the last.
        body: As it was sent, not inflated.
    """

    __slots__ = ("body", "headers", "keep_alive", "method", "path", "refusal", "size", "url")

    def __init__(self) -> None:
        self.method = self.path = ""
        self.url = b""
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.size = 0
        self.keep_alive = True
        self.refusal: Response | None = None


class Application(Protocol):
    """What the server serves."""

    def admit(self, request: Request) -> Response | None:
        """Looks at a request's headers; an answer refuses it before its body is read."""
        ...

    def handle(self, request: Request, respond: Callable[[Response], None]) -> None:
        """Answers a whole request, now or later, once."""
        ...

    def refuse(self, request: Request, status: int, message: str) -> Response:
        """The answer to a request that the server itself refuses."""
        ...


class Load(Protocol):
    """What is held in memory, by this server and others.

    Attributes:
        held: Bytes; the server counts those of bodies being received or answered.
    """

    held: int

    @property
    def is_full(self) -> bool:
        """Whether no more may be held."""
        ...


class HttpServer:
    """Listens, keeps the bounds, and counts what is held in memory.

    Args:
        application: What it serves.
        config: Where it listens, and the bounds.
        load: Counts what is held.
        tls: The server side of TLS; None is without.

    Attributes:
        config: The bounds from now on.
        connections: Those that are open.
    """

    def __init__(
        self, application: Application, config: CollectorConfig, load: Load, tls: ssl.SSLContext | None = None
    ) -> None:
        self.application = application
        self.config = config
        self.load = load
        self._tls = tls
        self.connections: set[Connection] = set()
        self.draining = False
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()

    async def start(self) -> int:
        """Begins to listen.

        Returns:
            The port.

        Raises:
            OSError: The address cannot be had.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self, loop),
            self.config.host,
            self.config.port,
            backlog=1024,
            ssl=self._tls,
            ssl_handshake_timeout=self.config.head_timeout if self._tls else None,
            ssl_shutdown_timeout=_TLS_END if self._tls else None,
        )
        self._sweeper = asyncio.create_task(self._sweep(loop))
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def drain(self) -> None:
        """Stops listening, lets the requests in flight be answered, and closes every connection."""
        self.draining = True
        if self._server is None or self._sweeper is None:
            return
        # asyncio loses a connection that is accepted, but not made yet, when its server closes: these are made first.
        for listener in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listener.fileno())
        for _ in range(2):
            await asyncio.sleep(0)
        self._server.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        if self.connections:
            self._empty.clear()
            try:
                async with asyncio.timeout(self.config.drain_timeout):
                    await self._empty.wait()
            except TimeoutError:
                for connection in list(self.connections):
                    connection.abort()
        self._sweeper.cancel()

    def admit(self, connection: Connection) -> bool:
        """Takes a new connection in, at the cost of an idle one where there are too many."""
        if len(self.connections) >= self.config.max_connections:
            idle = next((other for other in self.connections if other.idle), None)
            if idle is None:
                return False
            # at once, not when asyncio tells of its end: else all of a burst would take the same one's place
            self.connections.discard(idle)
            idle.abort()
        self.connections.add(connection)
        return True

    def release(self, connection: Connection) -> None:
        """Lets a closed connection go."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        # one look a second at all connections costs less than a timer for each request
        while True:
            await asyncio.sleep(1)
            now = loop.time()
            for connection in [each for each in self.connections if each.deadline < now]:
                connection.expire()


class Connection(asyncio.Protocol):
    """One connection. Requests on it are answered one after the other."""

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None
        self._waiting: deque[Request] = deque()
        self._current: Request | None = None
        self._in_head = False
        self._head_size = 0
        self._is_bodiless = False
        self._headers = 0
        self._closing = False
        self._paused = False
        self.deadline = math.inf

    @property
    def idle(self) -> bool:
        """Whether no request of it has come as far as its body."""
        return self._current is None and not self._waiting and (self._request is None or self._in_head)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio when it is open."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._expect_within(self._server.config.head_timeout)
        if not self._server.admit(self):
            self._reject(
                Request(), 503, f"{self._server.config.max_connections} connections are open, no more are taken"
            )
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Called by asyncio when it is closed."""
        self._transport = None
        for request in (self._request, *self._waiting):
            if request is not None:
                self._release(request)
        self._waiting.clear()
        self._server.release(self)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with what has come."""
        if self._transport is None or (self._closing and self._request is None):
            return
        self._is_bodiless = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._reject(self._request or Request(), 400, f"not an HTTP/1.1 request: {error}")
            return
        if self._request is not None and self._is_bodiless:
            # of a head, of trailers, or of what frames chunks
            self._head_size += len(data)
            if self._head_size > self._server.config.max_head:
                self._reject(self._request or Request(), 431, f"over {self._server.config.max_head} bytes of headers")
        if self._current is not None and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Called by asyncio when the client sends no more; what is in flight is still answered."""
        if self._current is None:
            return False
        self._closing = True
        return True

    # what the parser calls

    def on_message_begin(self) -> None:
        """A request begins."""
        self._request = Request()
        self._in_head = True
        self._head_size = self._headers = 0
        self._expect_within(self._server.config.head_timeout)

    def on_url(self, url: bytes) -> None:
        """A piece of its URL."""
        assert self._request
        self._request.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; a trailer, which could only change what was looked at already, is passed over."""
        assert self._request
        if self._in_head:
            self._headers += 1
            self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Its headers have all come."""
        request = self._request
        assert request
        assert self._transport
        self._in_head = False
        self._expect_within(self._server.config.body_timeout)
        request.path = request.url.partition(b"?")[0].decode("latin-1")
        request.method = self._parser.get_method().decode("latin-1")
        request.keep_alive = self._parser.should_keep_alive()
        if self._headers > _HEADERS_MAX:
            self._refuse(request, 431, f"{self._headers} headers, at most {_HEADERS_MAX} are read")
            return
        coding = request.headers.get("transfer-encoding", "chunked")
        if coding.lower() != "chunked":
            self._refuse(request, 501, f"Transfer-Encoding: got {coding!r}, want chunked or none")
            return
        announced = request.headers.get("content-length", "0")
        refusal = self._server.application.admit(request)
        if refusal is not None:
            self._refuse_with(request, refusal)
        elif int(announced) > self._server.config.max_body:
            self._refuse(request, 413, f"a body of {announced} bytes, at most {self._server.config.max_body} are read")
        elif request.headers.get("expect", "").lower() == "100-continue" and self._current is None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        request = self._request
        assert request
        self._is_bodiless = False
        self._head_size = 0
        if request.refusal is not None:
            return
        request.body += body
        request.size += len(body)
        self._server.load.held += len(body)
        if request.size > self._server.config.max_body:
            self._refuse(request, 413, f"a body of over {self._server.config.max_body} bytes")
        elif self._server.load.is_full:
            self._refuse(request, 503, "too much is waiting to be written")

    def on_message_complete(self) -> None:
        """It has come whole."""
        request, self._request = self._request, None
        assert request
        if request.refusal is not None and self._closing:
            # it was answered as soon as it was refused, and the rest of it read only so that the answer arrives
            self._close()
            return
        self.deadline = math.inf
        self._waiting.append(request)
        self._next()

    # answering

    def _next(self) -> None:
        if self._current is not None or self._transport is None:
            return
        if self._waiting:
            request = self._current = self._waiting.popleft()
            if request.refusal is not None:
                self._respond(request, request.refusal)
            else:
                self._server.application.handle(request, lambda response: self._respond(request, response))
            return
        if self._request is not None:
            self._expect_within(self._server.config.body_timeout)
        elif self._closing or self._server.draining:
            self._close()
            return
        else:
            self._expect_within(self._server.config.idle_timeout)
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _respond(self, request: Request, response: Response) -> None:
        self._current = None
        self._release(request)
        if self._transport is None:
            return
        if not request.keep_alive or self._server.draining:
            response.close = True
        self._transport.write(response.encode())
        if response.close:
            self._closing = True
            self._waiting.clear()
            if request.refusal is None:
                self._close()
            else:
                self._linger()
        elif self._waiting:
            # not from here: many small requests in one piece of data would nest as deep
            self._loop.call_soon(self._next)
        else:
            self._next()

    def _refuse(self, request: Request, status: int, message: str) -> None:
        self._refuse_with(request, self._server.application.refuse(request, status, message))

    def _refuse_with(self, request: Request, response: Response) -> None:
        """Refuses a request whose body is not read: its answer ends the connection, the body's rest is passed over."""
        assert self._transport
        response.close = True
        request.refusal = response
        self._release(request)
        request.body = bytearray()
        if self._current is None:
            self._transport.write(response.encode())
            self._closing = True

    def _reject(self, request: Request, status: int, message: str) -> None:
        """Answers what cannot be read as a request, and ends the connection."""
        if self._transport is None:
            return
        if self._current is not None and not self._closing:
            # the answers to those before it come first
            self._release(request)
            request.refusal = self._server.application.refuse(request, status, message)
            request.refusal.close = True
            self._waiting.append(request)
            self._request = None
            self._closing = True
            return
        if self._current is None and not self._closing:
            self._refuse(request, status, message)
        self._linger()

    def _release(self, request: Request) -> None:
        self._server.load.held -= request.size
        request.size = 0

    # ending

    def _expect_within(self, seconds: float) -> None:
        self.deadline = self._loop.time() + seconds

    def expire(self) -> None:
        """Closes it because its time is over; a request in flight has all the time that its answer takes."""
        if self._current is not None:
            return
        if self._request is not None:
            self._reject(self._request, 408, "the request did not come to its end in time")
        self._close()

    def close_if_idle(self) -> None:
        """Closes it unless a request is in flight."""
        if self.idle:
            self._close()

    def abort(self) -> None:
        """Closes it whatever is in flight."""
        if self._transport is not None:
            self._transport.abort()

    def _linger(self) -> None:
        """Closes it when the client does, or soon; what still comes is passed over.

        If it were closed with something unread, the client would be told that it is reset, and might miss the answer.
        """
        if self._transport is None:
            return
        if self._request is not None:
            self._release(self._request)
            self._request = None
        self._expect_within(_LINGER)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
