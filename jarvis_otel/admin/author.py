"""Who changes flags, and what they may."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Author", "Role", "storable"]


class Role(StrEnum):
    """What a person may do."""

    VIEWER = "viewer"
    """Look at everything, change nothing."""
    EDITOR = "editor"
    """Turn any flag off, and flags that are not dangerous on."""
    ADMIN = "admin"
    """Everything."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who changes something, why, and from where.

    Attributes:
        who: A person, as the front end knows them: ann@host, tg:123456789, web:ann.
        via: The front end: cli, telegram, web, api (a Python program), file.
        reason: Why.
        role: What they may do; the front end knows.
        only_off: Why they may turn nothing on at the moment, such as an old command; empty where they may.
    """

    who: str
    via: str
    reason: str = ""
    role: Role = Role.ADMIN
    only_off: str = ""

    def __post_init__(self) -> None:
        # whatever it holds, it must never keep a flag from being turned off
        for name in ("who", "via", "reason", "only_off"):
            object.__setattr__(self, name, storable(getattr(self, name)))


def storable(text: Any) -> str:
    """Any text as it can stand in a file of UTF-8."""
    return str(text).encode("utf-8", "backslashreplace").decode()
