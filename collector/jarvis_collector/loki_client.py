"""The connection to Loki: what a push sends, and what the answer to it says."""

from __future__ import annotations

import zlib
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson

from jarvis_collector.config import LokiTarget
from jarvis_collector.http_client import HttpClient

__all__ = ["Answer", "LokiClient"]

_PATH = "/otlp/v1/logs"
_LEVEL = 1


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
        self._client = HttpClient(target.url, target.timeout)
        self.where = self._client.where
        self._path = urlsplit(target.url).path.rstrip("/") + _PATH
        # Loki compares the type letter by letter
        self._headers = {
            "User-Agent": "jarvis-collector",
            **target.headers,
            "Content-Type": "application/json",
            "Content-Encoding": "gzip",
        }

    def push(self, body: bytes) -> Answer:
        """Sends one request; a connection that the other side closed meanwhile is opened once more."""
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
        compressed = compressor.compress(body) + compressor.flush()
        response = self._client.request("POST", self._path, compressed, self._headers)
        if 200 <= response.status < 300:
            return Answer(response.status, "", rejected=_rejected(response.content))
        return Answer(response.status, _text(response.content) or response.reason, response.retry_after)

    def stop(self) -> None:
        """Breaks off the push that is under way, from any thread; no other begins."""
        self._client.stop()

    def close(self) -> None:
        """Closes the connection; the next push opens another."""
        self._client.close()


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
