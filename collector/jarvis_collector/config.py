"""What a collector is given: it reads no environment and no settings file."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CollectorConfig", "CollectorError", "is_loopback"]

_MIB = 1024 * 1024


@dataclass(frozen=True)
class CollectorConfig:
    """Where a collector listens and writes, and its bounds. Times are in seconds, sizes in bytes.

    Attributes:
        log_dir: The directory of the day files; made where it is missing.
        host: The loopback address to listen on.
        port: TCP port of OTLP/HTTP; 0 takes a free one.
        max_body: A request's body as it is sent.
        max_inflated: The same after gzip.
        max_pending: Bodies being received and lines waiting for the disk, all together; beyond it 503.
        max_head: A request's line and headers.
        max_connections: Beyond it a connection that is doing nothing makes room, else the new one is refused.
        head_timeout: From a request's first byte, or the connection's opening, to the end of its headers.
        body_timeout: From there to the end of the body.
        idle_timeout: Between two requests on one connection.
        drain_timeout: For requests in flight when the collector is told to stop.
    """

    log_dir: Path
    host: str = "127.0.0.1"
    port: int = 4318
    max_body: int = 16 * _MIB
    max_inflated: int = 64 * _MIB
    max_pending: int = 128 * _MIB
    max_head: int = 32 * 1024
    max_connections: int = 512
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    idle_timeout: float = 120.0
    drain_timeout: float = 5.0


class CollectorError(Exception):
    """Why a collector cannot start, in one line for the person who started it."""


def is_loopback(host: str) -> bool:
    """Whether a host, as a name or an address without brackets, can only be this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
