"""The connection to a collector: OTLP/JSON over HTTP with the standard library, one kept-alive connection."""

from __future__ import annotations

import gzip
import http.client
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson

from jarvis_collector.config import is_loopback

__all__ = ["Answer", "OtlpClient"]

_RETRY_AFTER_MAX = 300.0
_RESPONSE_MAX = 64 * 1024


class Answer(NamedTuple):
    """What came of one request; status 0 where nothing answered."""

    status: int
    reason: str
    retry_after: float | None = None
    rejected: int = 0


class OtlpClient:
    """One kept-alive connection to the logs endpoint of a collector.

    Args:
        endpoint: Base URL of the collector, without `/v1/logs`.
        headers: Headers of each request.
        timeout: Seconds that one request may wait for its answer.
    """

    def __init__(self, endpoint: str, headers: Mapping[str, str], timeout: float) -> None:
        parts = urlsplit(endpoint)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port
        self._path = f"{parts.path.rstrip('/')}/v1/logs"
        self._timeout = timeout
        self._headers = {"user-agent": "jarvis-otel", **headers, "content-type": "application/json"}
        # On this machine compressing costs more than it saves.
        self._compress = not is_loopback(self._host)
        if self._compress:
            self._headers["content-encoding"] = "gzip"
        self._connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes) -> Answer:
        """Sends one request; a connection that the other side closed meanwhile is opened once more."""
        if self._compress:
            body = gzip.compress(body, 1)
        fresh = self._connection is None
        try:
            try:
                return self._post(body)
            except (ConnectionError, http.client.RemoteDisconnected):
                self.close()
                if fresh:
                    raise
                return self._post(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return Answer(0, reason)

    def _post(self, body: bytes) -> Answer:
        if self._connection is None:
            if self._secure:
                context = ssl.create_default_context()
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self._timeout, context=context
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        self._connection.request("POST", self._path, body, self._headers)
        response = self._connection.getresponse()
        content = response.read(_RESPONSE_MAX)
        if not response.isclosed():
            self.close()
        reason = f"HTTP {response.status} {response.reason}".rstrip()
        if 200 <= response.status < 300:
            rejected, why = _rejected(content)
            return Answer(response.status, why or reason, rejected=rejected)
        return Answer(response.status, reason, _retry_after(response.getheader("retry-after")))

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _rejected(content: bytes) -> tuple[int, str]:
    """How many records an ExportLogsServiceResponse rejects, and why; an answer that is none counts as all well."""
    try:
        partial = orjson.loads(content)["partialSuccess"]
        return max(0, int(partial["rejectedLogRecords"])), str(partial.get("errorMessage", ""))[:200]
    except (ValueError, TypeError, KeyError):
        return 0, ""


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which may be a date."""
    if not value:
        return None
    try:
        seconds = float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
    return min(max(0.0, seconds), _RETRY_AFTER_MAX)
