"""The connection to a collector: OTLP/JSON over HTTP with the standard library, one kept-alive connection."""

from __future__ import annotations

import functools
import gzip
import http.client
import io
import os
import socket
import ssl
import time
import zlib
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import orjson

from jarvis_collector.config import is_loopback
from jarvis_collector.http_client import CLOSED_MEANWHILE, basic_credentials, retry_after
from jarvis_otel.otlp_settings import OtlpTarget
from jarvis_otel.terminal import printable

__all__ = ["Answer", "OtlpClient"]

_RESPONSE_MAX = 64 * 1024
_REASON_MAX = 200


class Answer(NamedTuple):
    """What came of one request.

    Attributes:
        status: Of HTTP; 0 where nothing answered.
        reason: What the other side says of it, or why nothing came, in one line.
        retry_after: Seconds to wait, where the answer tells them.
        rejected: Records that a 2xx says it did not take.
    """

    status: int
    reason: str
    retry_after: float | None = None
    rejected: int = 0


class OtlpClient:
    """One kept-alive connection to the logs endpoint of a collector; redirects are not followed.

    Args:
        target: Where requests go, and how.
    """

    def __init__(self, target: OtlpTarget) -> None:
        self._target = target
        self._url = urlsplit(target.url)
        self._host = self._url.hostname or "127.0.0.1"
        # On this machine compressing costs more than it saves.
        self._compression = target.compression or ("none" if is_loopback(self._host) else "gzip")
        self._headers = {"user-agent": "jarvis-otel", **target.headers, "content-type": "application/json"}
        if self._compression != "none":
            self._headers["content-encoding"] = self._compression
        self._proxy = urlsplit(target.proxy) if target.proxy else None
        self._path = f"{self._url.path or '/'}{'?' if self._url.query else ''}{self._url.query}"
        if self._proxy is not None and self._url.scheme == "http":
            self._path = f"http://{self._url.netloc}{self._path}"
            self._headers.update(_proxy_authorization(self._proxy))
        self._context: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._socket: object = None
        self._abandoned: list[http.client.HTTPConnection] = []

    def post(self, body: bytes) -> Answer:
        """Sends one request; a connection that the other side closed meanwhile is opened once more."""
        if self._compression != "none":
            body = gzip.compress(body, 1) if self._compression == "gzip" else zlib.compress(body, 1)
        fresh = self._connection is None
        try:
            try:
                return self._post(body)
            except CLOSED_MEANWHILE:
                self.close()
                if fresh:
                    raise
                return self._post(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return Answer(0, _line(reason))

    def _post(self, body: bytes) -> Answer:
        deadline = time.monotonic() + self._target.timeout
        if self._connection is not None and not self._is_ours():
            self.abandon()
        if self._connection is None:
            self._connection = self._connect()
        # the socket's own timeout begins anew with each byte that trickles in
        self._connection.response_class = functools.partial(_bounded_response, deadline)  # type: ignore[assignment]
        if self._connection.sock is None:
            self._connection.connect()
            self._socket = _identity(self._connection.sock)
        self._connection.sock.settimeout(self._target.timeout)
        self._connection.request("POST", self._path, body, self._headers)
        response = self._connection.getresponse()
        content = b""
        while len(content) < _RESPONSE_MAX and (part := response.read1(_RESPONSE_MAX - len(content))):
            content += part
        if response.isclosed() or response.length == 0:
            response.close()
        else:  # more than we care to read: the connection cannot be used again
            self.close()
        reason = _line(f"HTTP {response.status} {response.reason}".rstrip())
        if 200 <= response.status < 300:
            rejected, why = _rejected(content)
            return Answer(response.status, why or reason, rejected=rejected)
        return Answer(response.status, reason, retry_after(response.getheader("retry-after")))

    def _connect(self) -> http.client.HTTPConnection:
        timeout = self._target.timeout
        at = self._proxy or self._url
        host, port = at.hostname or self._host, at.port
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout)
        self._context = self._context or _tls(self._target)
        if self._proxy is None:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._context)
        connection = http.client.HTTPSConnection(host, port or 80, timeout=timeout, context=self._context)
        connection.set_tunnel(self._host, self._url.port, _proxy_authorization(self._proxy))
        return connection

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._connection is not None and not self._is_ours():
            self.abandon()
        elif self._connection is not None:
            self._connection.close()
            self._connection = None

    def abandon(self) -> None:
        """Lets go of a connection that is not ours: the parent's after a fork, or one that somebody closed.

        A stream of it may be locked, by a thread that is not in this process, and so it is kept and never closed.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._abandoned.append(connection)
        if connection.sock is not None:
            ours = _identity(connection.sock) == self._socket
            descriptor = connection.sock.detach()
            if ours and descriptor >= 0:
                os.close(descriptor)

    def _is_ours(self) -> bool:
        """Whether the socket's descriptor is still that socket's: an application may have closed all descriptors."""
        assert self._connection is not None
        return self._connection.sock is None or _identity(self._connection.sock) == self._socket


def _identity(connected: socket.socket | None) -> object:
    if connected is None:
        return None
    try:
        stat = os.fstat(connected.fileno())
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


class _Bounded(io.RawIOBase):
    """Reads from a socket until a moment, however slowly it comes.

    Args:
        connected: The socket.
        deadline: When reading ends, by the monotonic clock.
    """

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._connected = connected
        # it keeps the socket open where the connection closes it before the answer is read
        self._stream = connected.makefile("rb", buffering=0)
        self._deadline = deadline
        self._began = False

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        rest = self._deadline - time.monotonic()
        if rest > 0:
            self._connected.settimeout(rest)
            try:
                size = self._stream.readinto(buffer) or 0
            except TimeoutError:
                if not self._began:
                    raise
            else:
                self._began = True
                return size
        raise TimeoutError("the answer takes too long")


class _Files:
    """A socket as HTTPResponse wants it: something that makes a file."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._raw = _Bounded(connected, deadline)

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002
        return io.BufferedReader(self._raw)


def _bounded_response(deadline: float, connected: socket.socket, **options: Any) -> http.client.HTTPResponse:
    return http.client.HTTPResponse(_Files(connected, deadline), **options)  # type: ignore[arg-type]


def _tls(target: OtlpTarget) -> ssl.SSLContext:
    """What the collector's certificate is checked against, and what this process shows of its own.

    Raises:
        OSError: A file cannot be used; its name is in the message.
    """
    file = target.certificate
    try:
        context = ssl.create_default_context(cafile=file)
        if target.client_certificate is not None:
            file = target.client_certificate
            # a key with a passphrase is an error: nobody is asked for it
            context.load_cert_chain(file, target.client_key, password="")
    except OSError as error:
        raise OSError(f"{file}: {error.strerror or error}") from None
    return context


def _proxy_authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    return {"proxy-authorization": basic_credentials(proxy.username, proxy.password or "")}


def _line(text: str) -> str:
    """What the other side said, fit to be printed in a line of ours."""
    return printable(text)[:_REASON_MAX]


def _rejected(content: bytes) -> tuple[int, str]:
    """How many records an ExportLogsServiceResponse rejects, and why; an answer that is none counts as all well."""
    try:
        partial = orjson.loads(content)["partialSuccess"]
        return max(0, int(partial["rejectedLogRecords"])), _line(str(partial.get("errorMessage", "")))
    except (ValueError, TypeError, KeyError, OverflowError):
        return 0, ""
