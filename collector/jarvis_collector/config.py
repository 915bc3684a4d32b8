"""What a collector is given: it reads no environment and no settings file."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

__all__ = [
    "CollectorConfig",
    "CollectorError",
    "IndexReport",
    "Indexer",
    "LokiTarget",
    "Retention",
    "is_loopback",
    "reachable_url",
]

_MIB = 1024 * 1024
_GB = 1_000_000_000
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - nothing listens there by this


@dataclass(frozen=True)
class Retention:
    """How long day files are kept. Days count from the day in a file's name, in UTC.

    Attributes:
        plain_days: So many days a file stays as it was written; then it is compressed under archive/.
        keep_days: So many days it is kept at all; then it is purged.
        max_total_bytes: So much may all files take together; beyond it the oldest are archived, then purged.
        min_free: This share of the disk stays free, by the same means; 0.1 is a tenth.
    """

    plain_days: int = 7
    keep_days: int = 30
    max_total_bytes: int = 20 * _GB
    min_free: float = 0.1


@dataclass(frozen=True)
class LokiTarget:
    """The Loki that records are forwarded to.

    Attributes:
        url: Its base URL, such as http://127.0.0.1:3100; records go to /otlp/v1/logs below it.
        headers: Headers of each request, such as X-Scope-OrgID or Authorization.
        timeout: Seconds that one push may take.
        max_push: Bytes of one push before compression: Loki refuses for ever what is over its burst (6 MB).
        checkpoint: The file that says how far the forwarding has come.
    """

    url: str
    checkpoint: Path
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    timeout: float = 30.0
    max_push: int = 1_500_000


class IndexReport(NamedTuple):
    """What bringing the indexes of a log directory up to date came to.

    Attributes:
        files: The day files of which something was newly indexed, by their path in the directory.
        problems: What could not be done and why, a line each.
    """

    files: Sequence[str]
    problems: Sequence[str]


Indexer = Callable[[Path, Callable[[], bool]], IndexReport]
"""Brings the indexes of a log directory up to date; told the directory and what to ask between blocks: True ends it."""


@dataclass(frozen=True)
class CollectorConfig:
    """Where a collector listens and writes, and its bounds. Times are in seconds, sizes in bytes.

    Attributes:
        log_dir: The directory of the day files; made where it is missing.
        host: The address to listen on; one that is not loopback needs `tokens` or `insecure_no_auth`.
        port: TCP port of OTLP/HTTP; 0 takes a free one.
        grpc_port: TCP port of OTLP/gRPC; 0 takes a free one, None is without gRPC.
        grpc_required: Whether the start fails where `grpc_port` cannot be had; else it goes on without gRPC.
        tokens: SHA-256 digests in hex of the bearer tokens of which a request must show one; empty asks for none.
        insecure_no_auth: Whether others may send without a token.
        allowed_hosts: Names that a Host header may have beside loopback ones.
        tls_cert: File of the certificate chain (PEM); None is without TLS.
        tls_key: File of its key (PEM).
        components: Whether each service's records are written once more to a file of its own.
        retention: How long files are kept; None leaves them alone.
        index: What makes the indexes of the day files, after each pass of the retention; None leaves that to others.
        loki: Where records are forwarded to, if anywhere.
        version: Of the build, for /healthz and /metrics.
        max_body: A request's body as it is sent.
        max_inflated: The same when it is inflated.
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
    grpc_port: int | None = None
    grpc_required: bool = True
    tokens: frozenset[str] = frozenset()
    insecure_no_auth: bool = False
    allowed_hosts: frozenset[str] = frozenset()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    components: bool = False
    retention: Retention | None = None
    index: Indexer | None = None
    loki: LokiTarget | None = None
    version: str = "unknown"
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


def reachable_url(host: str, port: int, *, tls: bool = False) -> str:
    """Where this machine reaches what listens at a host, as a name or an address without brackets.

    Args:
        host: Where it listens; a wildcard is reached by loopback.
        port: Its TCP port.
        tls: Whether it speaks TLS.
    """
    host = _WILDCARDS.get(host, host)
    return f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"
