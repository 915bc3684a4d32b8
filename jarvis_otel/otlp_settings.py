"""Where each signal goes: the OTEL_EXPORTER_OTLP_* variables with the meaning that OpenTelemetry's SDK gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from jarvis_flags.settings import SettingsSource

__all__ = ["DEFAULT_ENDPOINT", "OtlpTarget", "read_target"]

DEFAULT_ENDPOINT = "http://127.0.0.1:4318"
DEFAULT_TIMEOUT = 3.0
_TIMEOUT_MAX = 600.0

_GRPC_PORT, _HTTP_PORT = 4317, 4318
_GRPC_DEFAULT = "http://localhost:4317"
_PROTOCOLS = ("grpc", "http/protobuf", "http/json")
_COMPRESSIONS = ("none", "gzip", "deflate")
_HEADER_NAME = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True)
class OtlpTarget:
    """Where one signal goes over OTLP, and how.

    Attributes:
        url: The whole URL that requests are posted to, without a password.
        headers: Headers of each request, names in lower case.
        timeout: Seconds that one request may take.
        compression: `none`, `gzip` or `deflate`; None where nobody said.
        certificate: File of the certificates (PEM) that the collector's is checked against; None for the system's.
        client_key: File of the key that belongs to `client_certificate`.
        client_certificate: File of the certificate that this process shows.
        proxy: URL of the HTTP proxy on the way; never for loopback.
        grpc: The endpoint as it was named where gRPC is wanted; `url` is then where the same collector usually takes
            HTTP.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    timeout: float = DEFAULT_TIMEOUT
    compression: str | None = None
    certificate: str | None = None
    client_key: str | None = None
    client_certificate: str | None = None
    proxy: str | None = field(default=None, repr=False)
    grpc: str | None = None


def read_target(source: SettingsSource, signal: str, notes: list[str]) -> OtlpTarget:
    """Reads where a signal goes; a variable of the signal's own beats the general one.

    Args:
        source: The environment; what cannot be used is told in its `problems`, and the default stands in.
        signal: `logs`, `traces` or `metrics`.
        notes: Takes a line for what works otherwise than the variables say.
    """
    env = source.environ
    protocol, protocol_variable = _named(env, signal, "PROTOCOL")
    if protocol and protocol.lower() not in _PROTOCOLS:
        source.problems.append(f"{protocol_variable}: got {protocol!r}, want one of {', '.join(_PROTOCOLS)}")
        protocol = ""
    protocol = protocol.lower()
    endpoint, variable = _named(env, signal, "ENDPOINT")
    parts = _split(endpoint, protocol, insecure=_named(env, signal, "INSECURE")[0].lower() == "true")
    if endpoint and parts is None:
        likely = "://" not in endpoint and _split(f"http://{endpoint}", "") is not None
        cure = f"; did you mean http://{endpoint}?" if likely else ""
        source.problems.append(f"{variable}: got {_without_password(endpoint)!r}, want a URL with http or https{cure}")
        endpoint = ""
    headers = _headers(source, signal)
    if parts is not None and "@" in parts.netloc:
        from jarvis_collector.http_client import basic_credentials  # noqa: PLC0415 - few endpoints have any

        headers.setdefault("authorization", basic_credentials(parts.username or "", parts.password or ""))
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    default = parts is None
    parts = parts or urlsplit(DEFAULT_ENDPOINT)
    own = not default and variable == f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"

    grpc = protocol == "grpc" if protocol else parts.port == _GRPC_PORT
    if grpc and signal == "logs" and own and parts.port != _GRPC_PORT:
        # who names an endpoint for the logs alone beside a general protocol of gRPC has followed our note
        grpc = protocol_variable == "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL"
    if grpc:
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        url = f"{parts.scheme}://{host}:{_HTTP_PORT}/v1/{signal}"
        if signal == "logs":
            what = f"{protocol_variable}: {protocol}" if protocol else f"{variable}: port {_GRPC_PORT}"
            notes.append(
                f"{what} is gRPC, but log records travel over HTTP: they go to {url}; "
                "another place is named by OTEL_EXPORTER_OTLP_LOGS_ENDPOINT (http://HOST:4318/v1/logs)"
            )
    else:
        url = urlunsplit(parts) if own else f"{urlunsplit(parts).removesuffix('/')}/v1/{signal}"
        if parts.port == _GRPC_PORT:
            notes.append(
                f"{variable}: port {_GRPC_PORT} is usually gRPC's, but {protocol_variable} says {protocol}; "
                f"if nothing arrives, try port {_HTTP_PORT}"
            )
    key, certificate = (_file(source, signal, name) for name in ("CLIENT_KEY", "CLIENT_CERTIFICATE"))
    if key and not certificate:
        variable = _named(env, signal, "CLIENT_KEY")[1]
        source.problems.append(f"{variable}: got a key, want {variable.replace('KEY', 'CERTIFICATE')} beside it")
        key = None
    return OtlpTarget(
        url=url,
        headers=MappingProxyType(headers),
        timeout=_seconds(source, signal),
        compression=_compression(source, signal),
        certificate=_file(source, signal, "CERTIFICATE"),
        client_key=key,
        client_certificate=certificate,
        proxy=_proxy(source, urlsplit(url), notes if signal == "logs" else []),
        grpc=(_GRPC_DEFAULT if default else urlunsplit(parts)) if grpc else None,
    )


def _named(env: Mapping[str, str], signal: str, name: str) -> tuple[str, str]:
    """A variable's text and name, the signal's own first; no text where neither is set, empty counting as unset."""
    variable = ""
    for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        if text := env.get(variable, "").strip():
            return text, variable
    return "", variable


def _split(endpoint: str, protocol: str, *, insecure: bool = False) -> SplitResult | None:
    """The parts of an endpoint, or None where it is no URL; gRPC's need not have a scheme."""
    if "://" not in endpoint and (protocol == "grpc" or endpoint.endswith(f":{_GRPC_PORT}")):
        endpoint = f"{'http' if insecure else 'https'}://{endpoint}"
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if usable and endpoint.isprintable() and " " not in endpoint else None


def _without_password(endpoint: str) -> str:
    return endpoint.rpartition("@")[2]


def _headers(source: SettingsSource, signal: str) -> dict[str, str]:
    """name=value,… in percent-encoding; a value with a space in it is taken as it stands, as the SDK does.

    A value is never told: it may be a secret.
    """
    text, variable = _named(source.environ, signal, "HEADERS")
    headers = {}
    for number, pair in enumerate(filter(None, map(str.strip, text.split(","))), 1):
        name, _, value = (part.strip() for part in pair.partition("="))
        if " " not in value:
            name, value = unquote(name).strip(), unquote(value).strip()
        name = name.lower()
        if name and _HEADER_NAME.issuperset(name) and "=" in pair and value.isprintable() and _is_latin(value):
            headers[name] = value
        else:
            source.problems.append(f"{variable}: pair {number} is no name=value that can be a header")
    return headers


def _is_latin(text: str) -> bool:
    return all(ord(char) < 256 for char in text)


def _seconds(source: SettingsSource, signal: str) -> float:
    text, variable = _named(source.environ, signal, "TIMEOUT")
    try:
        seconds = float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        seconds = -1.0
    if 0 < seconds <= _TIMEOUT_MAX:
        return seconds
    source.problems.append(f"{variable}: got {text!r}, want seconds from 0 to {_TIMEOUT_MAX:g}")
    return DEFAULT_TIMEOUT


def _compression(source: SettingsSource, signal: str) -> str | None:
    text, variable = _named(source.environ, signal, "COMPRESSION")
    if not text or text.lower() in _COMPRESSIONS:
        return text.lower() or None
    source.problems.append(f"{variable}: got {text!r}, want one of {', '.join(_COMPRESSIONS)}")
    return None


def _file(source: SettingsSource, signal: str, name: str) -> str | None:
    text, variable = _named(source.environ, signal, name)
    if not text:
        return None
    # absolute: the application may change its directory before the first request
    path = Path(text).absolute()
    if path.is_file():
        return str(path)
    source.problems.append(f"{variable}: got {text!r}, but there is no such file")
    return None


def _proxy(source: SettingsSource, url: SplitResult, notes: list[str]) -> str | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name, as the SDK's exporters take it."""
    env = source.environ
    names = [f"{url.scheme}_proxy", f"{url.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"]
    if "REQUEST_METHOD" in env:
        # under CGI HTTP_PROXY is a header of the request: whoever sends one would name the proxy
        names = [name for name in names if name != "HTTP_PROXY"]
    variable = next((name for name in names if env.get(name, "").strip()), None)
    if variable is None or _is_direct(url, env.get("no_proxy") or env.get("NO_PROXY") or ""):
        return None
    text = env[variable].strip()
    parts = _split(text if "://" in text else f"http://{text}", "")
    if parts is not None and parts.scheme == "http":
        return urlunsplit(parts)
    notes.append(
        f"{variable}: got {_without_password(text)!r}, which log records cannot pass; they go to {url.hostname} "
        "directly. An HTTP proxy, such as http://proxy:3128, would be used"
    )
    return None


def _is_direct(url: SplitResult, no_proxy: str) -> bool:
    """Whether a host is reached without a proxy: this machine always, others where NO_PROXY has them."""
    from jarvis_collector.config import is_loopback  # noqa: PLC0415 - few processes have a proxy

    host = (url.hostname or "").lower()
    if is_loopback(host):
        return True
    for entry in filter(None, map(str.strip, no_proxy.lower().split(","))):
        name = entry.removesuffix(f":{url.port}").lstrip(".")
        if entry == "*" or host == name or host.endswith(f".{name}") or _is_in_network(host, entry):
            return True
    return False


def _is_in_network(host: str, network: str) -> bool:
    from ipaddress import ip_address, ip_network  # noqa: PLC0415

    try:
        return "/" in network and ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False
