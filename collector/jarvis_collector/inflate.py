"""Bodies as they are sent to bodies as they are read, in bounded steps: a bomb costs no more than its bound."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from jarvis_collector.otlp import BadRequestError, TooLargeError

__all__ = ["encodings", "inflate", "is_known", "sniff"]

_STEP = 1 << 16
_MEMBERS_MAX = 1000
_ZSTD_WINDOW_LOG = 25
"""32 MiB: RFC 9659 asks for 8 MiB, the best levels of common encoders use more; it is memory beside the body's."""


class _Inflater(Protocol):
    """What zlib's and zstd's decompressors share; a step gives at most _STEP bytes."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def step(self, data: memoryview) -> bytes: ...


class _Zlib:
    """gzip or zlib."""

    def __init__(self, wbits: int) -> None:
        self._inflater = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflater.unused_data

    def step(self, data: memoryview) -> bytes:
        part = self._inflater.decompress(data or self._inflater.unconsumed_tail, _STEP)
        self.needs_input = not self._inflater.unconsumed_tail and len(part) < _STEP
        return part


class _Zstd:
    """Zstandard."""

    def __init__(self, zstd: Any) -> None:
        options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        self._inflater = zstd.ZstdDecompressor(options=options)

    @property
    def eof(self) -> bool:
        return bool(self._inflater.eof)

    @property
    def needs_input(self) -> bool:
        return bool(self._inflater.needs_input)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inflater.unused_data)

    def step(self, data: memoryview) -> bytes:
        return bytes(self._inflater.decompress(data, _STEP))


def _zstd() -> Any | None:
    """The module that reads Zstandard: Python's own from 3.14 on, else the backport; None where there is neither."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    return None


_ZLIB: Mapping[str, int] = MappingProxyType({"gzip": 31, "x-gzip": 31, "deflate": 15, "zlib": 15})
"""wbits by content encoding; what HTTP calls deflate has zlib's frame."""


def encodings() -> tuple[str, ...]:
    """The content encodings that are taken, for messages."""
    return ("gzip", "deflate", "zstd") if _zstd() is not None else ("gzip", "deflate")


def is_known(encoding: str) -> bool:
    """Whether bodies of a content encoding (in lower case) can be read; empty and `identity` are none."""
    return encoding in ("", "identity") or encoding in _ZLIB or (encoding == "zstd" and _zstd() is not None)


def sniff(body: bytes) -> str:
    """The content encoding of an OTLP/protobuf message whose header does not say it; empty for none.

    No protobuf message begins with gzip's magic number, whose first byte would be a field of wire type 7. zlib's would
    be a field 15, which no request of OTLP has.
    """
    if body[:2] == b"\x1f\x8b":
        return "gzip"
    return "deflate" if body[:1] == b"\x78" and int.from_bytes(body[:2], "big") % 31 == 0 else ""


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """The content of a body, which may have several members or frames, one after the other.

    Args:
        body: The body as it was sent.
        encoding: Its content encoding, one that `is_known`.
        limit: Bytes that the content may have; inflating stops there.

    Raises:
        BadRequestError: It is not what it says, or cut off.
        TooLargeError: Its content is larger.
    """
    if encoding in ("", "identity"):
        return body
    begin: Callable[[], _Inflater] = partial(_Zlib, _ZLIB[encoding]) if encoding in _ZLIB else partial(_Zstd, _zstd())
    view = memoryview(body)
    parts: list[bytes] = []
    at = size = members = 0
    while at < len(view):
        inflater = begin()
        members += 1
        if members > _MEMBERS_MAX:
            raise BadRequestError(f"not {encoding}: over {_MEMBERS_MAX} members")
        while not inflater.eof:
            # a piece at a time: what a decompressor hands back it copies
            piece = view[at : at + _STEP] if inflater.needs_input else view[:0]
            if inflater.needs_input and not piece:
                raise BadRequestError(f"not {encoding}: it ends too early")
            at += len(piece)
            try:
                part = inflater.step(piece)
            except Exception as error:  # of zlib.error or ZstdError; a fault of the body in any case
                raise BadRequestError(f"not {encoding}: {error}") from None
            size += len(part)
            if size > limit:
                raise TooLargeError(f"a body of over {limit} bytes when inflated")
            parts.append(part)
        at -= len(inflater.unused_data)
    return b"".join(parts)
