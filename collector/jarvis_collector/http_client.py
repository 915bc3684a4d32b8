"""One connection to one server, by the standard library, that another thread can break off; no redirect is followed."""

from __future__ import annotations

import errno
import http.client
import os
import select
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

__all__ = ["CLOSED_MEANWHILE", "HttpClient", "Response", "basic_credentials", "retry_after"]

_RETRY_AFTER_MAX = 300.0
_CONTENT_MAX = 64 * 1024
_PIECE = 1 << 20
_POLL = 0.1

CLOSED_MEANWHILE = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""What is raised where the other side closed the connection between two requests."""


class Response(NamedTuple):
    """What came of one request.

    Attributes:
        status: Of HTTP; 0 where nothing answered.
        reason: The words beside it, or why nothing came; nothing of what was asked stands in it.
        content: The body, as far as it is read.
        retry_after: Seconds to wait, where the answer tells them.
    """

    status: int
    reason: str
    content: bytes = b""
    retry_after: float | None = None


class HttpClient:
    """Asks one server, one request after the other.

    Args:
        url: The server; a user and a password in it become a header, its path is left aside.
        timeout: Seconds that a request may take in all, however slowly the answer comes.
        certificate: File of the certificates (PEM) that the server's is checked against; None for the system's.
        content_max: So many bytes are read of a body.

    Attributes:
        where: The server's host, and its port where the URL names one.
    """

    def __init__(
        self, url: str, timeout: float, certificate: str | None = None, *, content_max: int = _CONTENT_MAX
    ) -> None:
        parts = urlsplit(url)
        self.where = f"{parts.hostname}:{parts.port}" if parts.port else f"{parts.hostname}"
        self._tls = parts.scheme == "https"
        self._certificate = certificate
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._timeout = timeout
        self._content_max = content_max
        self._headers = (
            {"Authorization": basic_credentials(parts.username, parts.password or "")} if parts.username else {}
        )
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._stopped = False

    def request(
        self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Sends one request; a connection that the other side closed meanwhile is opened once more.

        Args:
            method: GET or POST.
            target: Path and query.
            body: What is sent.
            headers: Beside Host and Content-Length; they win over what the URL says.
        """
        headers = {**self._headers, **(headers or {})}
        fresh = self._connection is None
        try:
            try:
                return self._request(method, target, body, headers)
            except CLOSED_MEANWHILE:
                self.close()
                if fresh or self._stopped:
                    raise
                return self._request(method, target, body, headers)
        except OSError as error:
            self.close()
            return Response(0, error.strerror or str(error) or type(error).__name__)
        except (http.client.HTTPException, ValueError) as error:
            self.close()
            # what they say may quote the path, which can be a secret
            return Response(0, f"the answer is no HTTP ({type(error).__name__})")

    def stop(self) -> None:
        """Breaks off the request that is under way, from any thread; no other begins."""
        self._stopped = True
        self._break_off()

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._socket = None

    def _request(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> Response:
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
            self._connection.request(method, target, body, headers)
            response = self._connection.getresponse()
            content = bytearray()
            while (rest := self._content_max - len(content)) and (part := response.read1(min(rest, _PIECE))):
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
        return Response(
            response.status, response.reason, bytes(content), retry_after(response.getheader("Retry-After"))
        )

    def _connect(self, deadline: float) -> None:
        connected = _connected(self._host, self._port, deadline, lambda: self._stopped)
        try:
            connected.settimeout(self._timeout)
            self._socket = connected
            if self._tls:
                context = ssl.create_default_context(cafile=self._certificate)
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
                # not that of ssl, after which another thread would go on writing in clear until the socket is shut
                socket.socket.shutdown(connected, socket.SHUT_RDWR)


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


def basic_credentials(user: str, password: str) -> str:
    """What a header says of a user and a password that stand in a URL, where some characters are escaped."""
    return f"Basic {b64encode(f'{unquote(user)}:{unquote(password)}'.encode()).decode()}"


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which may be a date; five minutes at most."""
    if not value:
        return None
    try:
        seconds = float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, seconds), _RETRY_AFTER_MAX)
