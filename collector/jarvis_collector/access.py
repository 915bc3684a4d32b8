"""Who may ask a collector: bearer tokens, names in a Host header, TLS."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
import ssl
from collections.abc import Set as AbstractSet
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from jarvis_collector.config import CollectorConfig, CollectorError, is_loopback

__all__ = ["Access", "is_own_name", "load_tls", "new_token", "read_tls", "tls_context", "token_digest"]

_TOKEN_BYTES = 32


def new_token() -> str:
    """A bearer token that nobody can guess."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def token_digest(token: str) -> str:
    """What the settings keep of a token: SHA-256 in hex. A token is random, so no slower hash is needed."""
    return sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class Access:
    """Decides for one configuration.

    Args:
        config: Where the collector listens, and the tokens.

    Raises:
        CollectorError: Others could reach it and nothing says that they may.
    """

    def __init__(self, config: CollectorConfig) -> None:
        self._digests = tuple(sorted(config.tokens))
        self._loopback = is_loopback(config.host)
        if not (self._loopback or self._digests or config.insecure_no_auth):
            raise CollectorError(
                f"host: got {config.host!r}, want a loopback address such as 127.0.0.1: for one that others can reach, "
                "make a token with `jarvis collector --new-token`, or say --insecure-no-auth"
            )
        own = socket.gethostname().lower()
        self._names = frozenset({*map(str.lower, config.allowed_hosts)} | (set() if self._loopback else {own}))
        # few names ask, again and again; what a stranger makes up does not stay
        self.is_known_host = lru_cache(maxsize=64)(self._is_known_host)

    @property
    def needs_token(self) -> bool:
        """Whether a request must show a token."""
        return bool(self._digests)

    def is_allowed(self, authorization: str | None) -> bool:
        """Whether an Authorization header has one of the tokens; true for any where none is needed."""
        if not self._digests:
            return True
        scheme, _, token = (authorization or "").strip().partition(" ")
        shown = token_digest(token.strip())
        # each is compared, and each whole: the time says nothing of how near a guess came
        matches = [hmac.compare_digest(shown, digest) for digest in self._digests]
        return any(matches) and scheme.lower() == "bearer"

    def _is_known_host(self, host: str) -> bool:
        return is_own_name(host, self._names, loopback=self._loopback)


def is_own_name(host: str, names: AbstractSet[str], *, loopback: bool) -> bool:
    """Whether a Host header may stand in a request, with any port.

    A page in a browser can make its own name lead to this machine; then that name is what the browser sends.

    Args:
        host: The header.
        names: Names of the machine, in lower case, beside those of loopback.
        loopback: Whether only this machine itself can ask; else any address will do.
    """
    name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    name = name.strip().lower().removesuffix(".")
    return is_loopback(name) or name in names or (not loopback and _is_address(name))


def tls_context(config: CollectorConfig) -> ssl.SSLContext | None:
    """The server side of TLS; None where the configuration has none.

    Raises:
        CollectorError: The files cannot be used.
    """
    if config.tls_cert is None and config.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    load_tls(context, config)
    return context


def load_tls(context: ssl.SSLContext, config: CollectorConfig) -> None:
    """Has new connections use the certificate as it now stands in its files.

    Raises:
        CollectorError: The files cannot be used.
    """
    read_tls(config)
    assert config.tls_cert
    assert config.tls_key
    try:
        # a key with a passphrase would ask for it on the terminal
        context.load_cert_chain(config.tls_cert, config.tls_key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise CollectorError(
            f"collector_tls_cert {config.tls_cert} with collector_tls_key {config.tls_key}: cannot be used: {reason}; "
            "want a certificate chain and its key, without a passphrase, both as PEM"
        ) from None


def read_tls(config: CollectorConfig) -> tuple[bytes, bytes]:
    """What the files of the key and of the certificate chain hold.

    Raises:
        CollectorError: One is not named, or cannot be read.
    """
    contents = []
    for name, path in (("collector_tls_key", config.tls_key), ("collector_tls_cert", config.tls_cert)):
        if path is None:
            raise CollectorError(f"{name}: not set, want a file: TLS takes collector_tls_cert and collector_tls_key")
        contents.append(_read(name, path))
    return contents[0], contents[1]


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CollectorError(f"{name} {path}: {error.strerror or error}") from None


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
