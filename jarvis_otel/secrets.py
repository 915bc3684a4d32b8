"""What looks like a secret: names that hold one, and the shapes of those that are known. All patterns are linear."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["find_secrets", "kind_of_secret", "names_a_secret"]

_VALUE_MAX = 8_192

_NAME = re.compile(
    r"passw(or)?d|passwd|mysql_pwd|secret|authorization|credential|private[_-]?key|api[_-]?key|access[_-]?key"
    r"|(^|[_-])token$|bot[_-]?token|session[_-]?key|cookie|mnemonic|seed[_-]?phrase|keypair|wallet[_-]?key",
    re.IGNORECASE,
)

_SHAPES = (
    ("a Telegram bot token", re.compile(r"\b\d{6,12}:[A-Za-z0-9_-]{30,64}\b")),
    ("a JSON web token", re.compile(r"\beyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,4096}\.")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----")),
    ("an AWS access key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("a bearer token", re.compile(r"\b[Bb]earer [A-Za-z0-9._~+/=-]{16,4096}")),
    ("a password in a URL", re.compile(r"://[^\s/:@]{1,256}:[^\s/@]{1,256}@")),
    ("a Solana secret key", re.compile(r"\b[1-9A-HJ-NP-Za-km-z]{87,88}\b")),
)


def names_a_secret(name: str) -> bool:
    """Whether a key is one under which secrets are kept."""
    return _NAME.search(name) is not None


def kind_of_secret(text: str) -> str | None:
    """What kind of secret stands in a text, or None; only its first 8 KiB are looked at."""
    head = text[:_VALUE_MAX]
    return next((kind for kind, shape in _SHAPES if shape.search(head)), None)


def find_secrets(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The secrets in nested values: where each stands, and what kind it is.

    Args:
        value: Mappings, lists and scalars.
        path: Where the value stands.
    """
    if isinstance(value, str):
        if (kind := kind_of_secret(value)) is not None:
            yield path, kind
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"{path}.{key}" if path else str(key)
            if isinstance(inner, str) and inner and names_a_secret(str(key)):
                yield place, "something under a name that secrets have"
            else:
                yield from find_secrets(inner, place)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from find_secrets(inner, f"{path}[{index}]")
