"""What the settings say of the collector and of its files, in one place; see `settings` for how they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from jarvis_collector.config import LokiTarget, Retention
from jarvis_flags.settings import SettingsSource

__all__ = ["COLLECTOR_KEYS", "CollectorSettings", "loki_target", "parse_size", "read_collector", "size"]

COLLECTOR_KEYS = frozenset(
    {
        "collector_host",
        "collector_port",
        "collector_grpc_port",
        "collector_tokens",
        "collector_insecure_no_auth",
        "collector_hosts",
        "collector_tls_cert",
        "collector_tls_key",
        "collector_components",
        "collector_index",
        "retention_plain_days",
        "retention_keep_days",
        "retention_max_total_bytes",
        "retention_min_free",
        "loki_url",
        "loki_headers",
        "loki_timeout",
    }
)

_UNITS = MappingProxyType(
    {
        "": 1,
        **{unit: 10 ** (3 * power) for power, unit in enumerate("kmgt", 1)},
        **{f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("kmgt", 1)},
    }
)
_MIB, _GIB = 2**20, 2**30
_TOTAL_MIN, _TOTAL_MAX = _MIB, 2**20 * _GIB
_DAYS_MAX = 36_500
_TIMEOUT_MAX = 300.0
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class CollectorSettings:
    """What `jarvis collector` runs with; options of the command win over it.

    Attributes:
        host: Address that it binds.
        port: TCP port of OTLP/HTTP; 0 takes a free one.
        grpc_port: TCP port of OTLP/gRPC; None is without.
        grpc_named: Whether somebody named that port, and so counts on it.
        tokens: SHA-256 digests of the bearer tokens of which a request must show one.
        insecure_no_auth: Whether others may send to it without a token.
        hosts: Names by which it may be asked beside those of this machine.
        tls_cert: File of its certificate chain (PEM); None is without TLS.
        tls_key: File of the key to it.
        components: Whether it writes each service's records once more to a file of its own.
        index: Whether it keeps the indexes of the day files, by which `jarvis logs` is quicker.
    """

    host: str = "127.0.0.1"
    port: int = 4318
    grpc_port: int | None = 4317
    grpc_named: bool = field(default=False, compare=False)
    tokens: frozenset[str] = field(default=frozenset(), repr=False)
    insecure_no_auth: bool = False
    hosts: frozenset[str] = frozenset()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    components: bool = False
    index: bool = True


def read_collector(source: SettingsSource, state_dir: Path) -> dict[str, Any]:
    """The settings of the collector and of its files, by the names that they have in `Settings`.

    Args:
        source: Where they are read; what cannot be used is told in its `problems`, and the default stands in.
        state_dir: The directory of run-time state.
    """
    return {
        "collector": CollectorSettings(
            host=source.text("collector_host") or CollectorSettings.host,
            port=_number(source, "collector_port", CollectorSettings.port, 0, 65535),
            grpc_port=_grpc_port(source),
            grpc_named=source.raw("collector_grpc_port") is not None,
            tokens=_tokens(source),
            insecure_no_auth=source.flag("collector_insecure_no_auth"),
            hosts=frozenset(source.names("collector_hosts")),
            tls_cert=_file(source, "collector_tls_cert"),
            tls_key=_file(source, "collector_tls_key"),
            components=source.flag("collector_components"),
            index=source.flag("collector_index", default=True),
        ),
        "retention": _retention(source),
        **_loki(source, state_dir),
    }


def size(source: SettingsSource, key: str, default: int, low: int, high: int) -> int:
    """A number of bytes, or text such as 256MB or 20GiB.

    Args:
        source: Where it is read.
        key: Its name.
        default: What stands in for it.
        low: The least that it may be.
        high: The most.
    """
    found = source.raw(key)
    if found is None:
        return default
    value, place = found
    number = parse_size(str(value))
    if number is not None and low <= number <= high:
        return number
    source.problems.append(f"{place}: got {value!r}, want bytes from {low // _MIB}MiB to {high // _GIB}GiB")
    return default


def parse_size(text: str) -> int | None:
    """The number of bytes that a text such as 1000, 256MB or 20GiB means; None where it means none."""
    match = re.fullmatch(r"([0-9]{1,15}) ?([a-z]*)", text.strip().lower())
    unit = _UNITS.get(match[2].removesuffix("b")) if match is not None else None
    return None if match is None or unit is None else int(match[1]) * unit


def _number(source: SettingsSource, key: str, default: int, low: int, high: int) -> int:
    number = source.number(key, default, low, high)
    if number == int(number):
        return int(number)
    source.problems.append(f"{_place(source, key)}: got {number:g}, want a whole number from {low} to {high}")
    return default


def _place(source: SettingsSource, key: str) -> str:
    return (source.raw(key) or ("", key))[1]


def _grpc_port(source: SettingsSource) -> int | None:
    found = source.raw("collector_grpc_port")
    if found is not None and (found[0] is False or str(found[0]).strip().lower() == "off"):
        return None
    return _number(source, "collector_grpc_port", 4317, 0, 65535)


def _tokens(source: SettingsSource) -> frozenset[str]:
    """The digests. What was given is never told: it may be a token."""
    digests = set()
    for number, text in enumerate(source.names("collector_tokens"), 1):
        if match := _DIGEST.fullmatch(text.strip()):
            digests.add(match[1].lower())
        else:
            source.problems.append(
                f"{_place(source, 'collector_tokens')}: item {number} is no digest, want sha256: and 64 hex digits; a "
                "token itself does not belong there: `jarvis collector --new-token` makes one with its line, and "
                "`printf %s TOKEN | sha256sum` gives the digits for a token that you have"
            )
    return frozenset(digests)


def _file(source: SettingsSource, key: str) -> Path | None:
    # whether it can be read is for the collector to say: only it needs the file
    return source.path(key, "") if source.text(key) else None


def _retention(source: SettingsSource) -> Retention:
    default = Retention()
    plain = _number(source, "retention_plain_days", default.plain_days, 0, _DAYS_MAX)
    keep = _number(source, "retention_keep_days", max(default.keep_days, plain), 0, _DAYS_MAX)
    if keep < plain:
        place = _place(source, "retention_keep_days")
        source.problems.append(f"{place}: got {keep}, want at least the {plain} of retention_plain_days")
        plain, keep = default.plain_days, default.keep_days
    return Retention(
        plain_days=plain,
        keep_days=keep,
        max_total_bytes=size(source, "retention_max_total_bytes", default.max_total_bytes, _TOTAL_MIN, _TOTAL_MAX),
        min_free=source.number("retention_min_free", default.min_free, 0, 0.9),
    )


def loki_target(url: str, checkpoint: Path, headers: Mapping[str, str], timeout: float) -> LokiTarget:
    """A Loki by its base URL.

    Args:
        url: Of http or https, without user and query.
        checkpoint: See `LokiTarget`.
        headers: Of each request.
        timeout: Seconds of each request.

    Raises:
        ValueError: It is no such URL; the message says what was got and wanted.
    """
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and url.isprintable() and " " not in url and not (parts.query or parts.fragment)
    except ValueError:
        parts, usable = urlsplit(""), False
    if "@" in (parts.netloc or url):
        raise ValueError("got a URL with a user or password, want it without: loki_headers may have one")
    if not usable:
        raise ValueError(f"got {url!r}, want Loki's base URL, such as http://127.0.0.1:3100")
    return LokiTarget(url=url, checkpoint=checkpoint, headers=headers, timeout=timeout)


def _loki(source: SettingsSource, state_dir: Path) -> dict[str, Any]:
    headers = _loki_headers(source)
    timeout = source.number("loki_timeout", LokiTarget.timeout, 1, _TIMEOUT_MAX)
    target = None
    if url := (source.text("loki_url") or "").strip():
        try:
            target = loki_target(url, state_dir / "collector" / "loki.json", headers, timeout)
        except ValueError as error:
            source.problems.append(f"{_place(source, 'loki_url')}: {error}")
    return {"loki": target, "loki_headers": headers, "loki_timeout": timeout}


def _loki_headers(source: SettingsSource) -> Mapping[str, str]:
    """A mapping in the file, name=value,… in the environment. A value is never told: it may be a secret."""
    found = source.raw("loki_headers")
    if found is None:
        return MappingProxyType({})
    given, place = found
    if isinstance(given, str):
        given = {name: value for name, _, value in (pair.partition("=") for pair in given.split(",") if pair.strip())}
    if not isinstance(given, dict):
        source.problems.append(f"{place}: want a mapping of header names to values")
        return MappingProxyType({})
    headers = {}
    for name, value in given.items():
        text = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
        if _HEADER_NAME.fullmatch(str(name).strip()) and text and text.isprintable() and text.isascii():
            headers[str(name).strip()] = text
        else:
            source.problems.append(f"{place}: {str(name).strip()[:60]!r} is no name and value that can be a header")
    return MappingProxyType(headers)
