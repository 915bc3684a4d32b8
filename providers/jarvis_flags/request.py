"""What an evaluation is asked, and the words of its answer: all of it that callers need before there is a flag file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from openfeature.flag_evaluation import Reason

__all__ = ["CALLERS_DEFAULT", "PROVIDER_NAME", "Request", "result_name", "targeting_key"]

PROVIDER_NAME = "jarvis-flags"

_NO_ATTRIBUTES: Mapping[str, Any] = MappingProxyType({})


class _CallersDefault:
    def __repr__(self) -> str:
        return "CALLERS_DEFAULT"


CALLERS_DEFAULT: Final = _CallersDefault()
"""Stands as a value for: whatever the caller gave as default."""


class Request:
    """One evaluation's question, and what its rules found out on the way.

    Attributes:
        user: The user as text, or None.
        environment: The environment, always known.
        request_id: What a percentage hashes where there is no user.
        attributes: What segments ask about.
        missed: Whether a percentage rule applied and the key was out, or missing.
        key_missing: Whether a percentage rule found no key.
    """

    # no slots: what most requests leave as it is costs nothing to set
    missed = False
    key_missing = False

    def __init__(
        self,
        user: str | None,
        environment: str,
        request_id: str | None = None,
        attributes: Mapping[str, Any] = _NO_ATTRIBUTES,
    ) -> None:
        self.user = user
        self.environment = environment
        self.request_id = request_id
        self.attributes = attributes

    def afresh(self) -> Request:
        """The same question, of which nothing has been found out yet."""
        return Request(self.user, self.environment, self.request_id, self.attributes)

    def own(self, name: str) -> str | None:
        """What a condition finds under an attribute that the request has of itself."""
        if name == "environment":
            return self.environment
        return self.request_id if name == "request_id" else self.user


def targeting_key(value: Any) -> str | None:
    """A user id or attribute as the text that is hashed and compared: of a string or an int (not bool), else None."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None


def result_name(variant: str | None, value: Any, reason: str | None) -> str | None:
    """The name of a result: its variant, else `on` or `off` for a boolean, and `off` for a disabled flag."""
    if variant is not None:
        return variant
    if isinstance(value, bool):
        return "on" if value else "off"
    return "off" if reason == Reason.DISABLED else None
