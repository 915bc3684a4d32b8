"""The connection to Loki: one kept-alive connection of the standard library that another thread can break off."""

from __future__ import annotations

import errno
import http.client
import os
import select
import socket
import ssl
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import orjson

from jarvis_collector.config import LokiTarget

__all__ = ["Answer", "LokiClient"]

_PATH = "/otlp/v1/logs"
_RETRY_AFTER_MAX = 300.0
_RESPONSE_MAX = 64 * 1024
_LEVEL = 1
_POLL = 0.1
_CLOSED_MEANWHILE = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class Answer(NamedTuple):
    """What came of one push.

    Attributes:
        status: Of HTTP; 0 where nothing answered.
        text: What it says, or why nothing came.
        retry_after: Seconds to wait, where the answer tells them.
        rejected: Records that a 2xx says it did not take.
    """

    status: int
    text: str
    retry_after: float | None = None
    rejected: int = 0


class LokiClient:
    """Pushes to one Loki; redirects are not followed.

    Args:
        target: The Loki.
    """

    def __init__(self, target: LokiTarget) -> None:
        url = urlsplit(target.url)
        self.where = f"{url.hostname}:{url.port}" if url.port else f"{url.hostname}"
        self._tls = url.scheme == "https"
        self._host = url.hostname or ""
        self._port = url.port or (443 if self._tls else 80)
        self._path = url.path.rstrip("/") + _PATH
        self._timeout = target.timeout
        # Loki compares the type letter by letter
        self._headers = {
            "User-Agent": "jarvis-collector",
            **({"Authorization": _basic(url.username, url.password or "")} if url.username else {}),
            **target.headers,
            "Content-Type": "application/json",
            "Content-Encoding": "gzip",
        }
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._stopped = False

    def push(self, body: bytes) -> Answer:
        """Sends one request; a connection that the other side closed meanwhile is opened once more."""
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
        compressed = compressor.compress(body) + compressor.flush()
        fresh = self._connection is None
        try:
            try:
                return self._push(compressed)
            except _CLOSED_MEANWHILE:
                self.close()
                if fresh or self._stopped:
                    raise
                return self._push(compressed)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            return Answer(0, getattr(error, "strerror", None) or str(error) or type(error).__name__)

    def stop(self) -> None:
        """Breaks off the push that is under way, from any thread; no other begins."""
        self._stopped = True
        self._break_off()

    def close(self) -> None:
        """Closes the connection; the next push opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._socket = None

    def _push(self, body: bytes) -> Answer:
        overdue = threading.Event()

        def give_up() -> None:
            overdue.set()
            self._break_off()

        # the socket's own timeout begins anew with each byte that trickles in
        timer = threading.Timer(self._timeout, give_up)
        timer.daemon = True
        timer.start()
        try:
            if self._connection is None:
                self._connect(time.monotonic() + self._timeout)
            assert self._connection is not None
            if self._stopped:
                raise InterruptedError
            self._connection.request("POST", self._path, body, self._headers)
            response = self._connection.getresponse()
            content = b""
            while len(content) < _RESPONSE_MAX and (part := response.read1(_RESPONSE_MAX - len(content))):
                content += part
            if overdue.is_set():
                raise TimeoutError
        except (OSError, http.client.HTTPException, ValueError):
            if overdue.is_set():
                raise TimeoutError(f"no answer within {self._timeout:g} s") from None
            raise
        finally:
            timer.cancel()
        if response.isclosed() or response.length == 0:
            response.close()
        else:  # more than is read: the connection cannot be used again
            self.close()
        if response.will_close:
            self.close()
        status = response.status
        if 200 <= status < 300:
            return Answer(status, "", rejected=_rejected(content))
        return Answer(status, _text(content) or response.reason, _retry_after(response.getheader("Retry-After")))

    def _connect(self, deadline: float) -> None:
        connected = _connected(self._host, self._port, deadline, lambda: self._stopped)
        try:
            connected.settimeout(self._timeout)
            self._socket = connected
            if self._tls:
                context = ssl.create_default_context()
                connected = context.wrap_socket(connected, server_hostname=self._host, do_handshake_on_connect=False)
                self._socket = connected
                if not self._stopped:
                    connected.do_handshake()
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            connected.close()
            self._socket = None
            raise
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        self._connection = kind(self._host, self._port)
        self._connection.sock = connected

    def _break_off(self) -> None:
        connected = self._socket
        if connected is not None:
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)


def _connected(host: str, port: int, deadline: float, stopped: Callable[[], bool]) -> socket.socket:
    """A connection that is waited for in small steps, so that a stop is noticed.

    Raises:
        OSError: There is none.
    """
    error: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connecting = socket.socket(family, kind, protocol)
        try:
            connecting.setblocking(False)
            code = connecting.connect_ex(address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            while not select.select([], [connecting], [], _POLL)[1]:
                if stopped():
                    raise InterruptedError
                if time.monotonic() > deadline:
                    raise TimeoutError("no connection in time")
            code = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            return connecting
        except OSError as problem:
            connecting.close()
            error = problem
            if isinstance(problem, (InterruptedError, TimeoutError)):
                break
    raise error


def _basic(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{unquote(user)}:{unquote(password)}'.encode()).decode()}"


def _text(content: bytes) -> str:
    """What an error says: Loki answers with a Status in protobuf, whose text follows a tag and its length."""
    start = 0
    if content.startswith(b"\x12"):
        start = 2
        while start < len(content) and content[start - 1] & 0x80:
            start += 1
    return content[start:].decode("utf-8", "replace").strip()


def _rejected(content: bytes) -> int:
    """How many records an answer rejects; one that is no OTLP/JSON rejects none."""
    try:
        return max(0, int(orjson.loads(content)["partialSuccess"]["rejectedLogRecords"]))
    except (ValueError, TypeError, KeyError, OverflowError):
        return 0


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which may be a date."""
    if not value:
        return None
    try:
        seconds = float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, seconds), _RETRY_AFTER_MAX)
