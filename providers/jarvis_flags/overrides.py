"""Run-time overrides: what admins changed while processes run, as one file that is replaced whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from jarvis_flags.buckets import threshold

__all__ = [
    "AUDIT_FILE",
    "OVERRIDES_FILE",
    "Override",
    "OverrideError",
    "OverrideSet",
    "override_of",
    "read_overrides",
]

OVERRIDES_FILE = "overrides.json"
AUDIT_FILE = "audit.jsonl"
FORMAT = 1
_LATEST = 253_402_300_799
"""The last second that has a date, in Unix seconds."""


class OverrideError(ValueError):
    """Overrides that cannot be trusted.

    Args:
        message: Why.
        known: Those that hold all the same.
    """

    def __init__(self, message: str, known: OverrideSet | None = None) -> None:
        super().__init__(message)
        self.known = known


@dataclass(frozen=True, slots=True)
class Override:
    """What was set for one flag at run time.

    Attributes:
        state: `off` is the kill switch; `on` lifts the flag's own switch.
        percentage: Replaces the flag's percentage; survives `off`, so that `on` brings it back.
        variant: The variant that everyone gets.
        expires_at: Unix seconds after which it counts as never set; None never lapses.
        by: Who set it.
        reason: Why.
        at: When, in ISO 8601.
        lapses_at: `expires_at` by the clock of this machine, where another one's set it; no part of what was set.
    """

    state: str
    percentage: float | None = None
    variant: str | None = None
    expires_at: float | None = None
    by: str = ""
    reason: str = ""
    at: str = ""
    lapses_at: float | None = field(default=None, compare=False)

    @property
    def lapses(self) -> float | None:
        """Unix seconds of this machine's clock after which it counts as never set, or None."""
        return self.expires_at if self.expires_at is None or self.lapses_at is None else self.lapses_at

    def to_dict(self) -> dict[str, Any]:
        """The override as the file writes it."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "lapses_at"}
        return {name: value for name, value in values.items() if value not in (None, "")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Override:
        """The override that `to_dict` wrote; what it does not know is passed over."""
        return cls(**{name: values[name] for name in cls.__slots__ if name in values})


@dataclass(frozen=True, slots=True)
class OverrideSet:
    """All overrides at one revision.

    Attributes:
        revision: Counts the changes; each has its entry in the audit.
        overrides: By flag id.
    """

    revision: int = 0
    overrides: Mapping[str, Override] = field(default_factory=lambda: MappingProxyType({}))

    def to_bytes(self) -> bytes:
        """The file's content."""
        document = {
            "format": FORMAT,
            "revision": self.revision,
            "overrides": {flag_id: override.to_dict() for flag_id, override in sorted(self.overrides.items())},
        }
        return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def from_bytes(cls, content: bytes) -> OverrideSet:
        """Reads the file's content.

        Raises:
            OverrideError: It is not what `to_bytes` writes.
        """
        try:
            document = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise OverrideError(f"not JSON: {error}") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise OverrideError(f"want an object with format {FORMAT}")
        revision, listed = document.get("revision"), document.get("overrides")
        if not isinstance(revision, int) or isinstance(revision, bool) or not isinstance(listed, dict):
            raise OverrideError("want a whole `revision` and a mapping `overrides`")
        return cls(
            revision, MappingProxyType({flag_id: override_of(flag_id, value) for flag_id, value in listed.items()})
        )

    def standing(self, now: float) -> OverrideSet:
        """The overrides without those that have lapsed.

        Args:
            now: Unix seconds.
        """
        kept = {flag_id: one for flag_id, one in self.overrides.items() if one.lapses is None or one.lapses > now}
        return self if len(kept) == len(self.overrides) else OverrideSet(self.revision, MappingProxyType(kept))


def override_of(flag_id: str, value: Any) -> Override:
    """The override that a value of the file, or of the audit, says.

    Args:
        flag_id: The flag, for messages.
        value: What `Override.to_dict` wrote.

    Raises:
        OverrideError: It is something else.
    """
    if not isinstance(value, dict) or value.get("state") not in ("on", "off"):
        raise OverrideError(f"{flag_id}: want a mapping with the state on or off")
    percentage, variant, expires_at = (value.get(key) for key in ("percentage", "variant", "expires_at"))
    for key, number, most in (("percentage", percentage, 100), ("expires_at", expires_at, _LATEST)):
        if number is not None and (
            isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= most
        ):
            raise OverrideError(f"{flag_id}.{key}: got {number!r}, want a number from 0 to {most}")
    if percentage is not None:
        try:
            threshold(percentage)
        except ValueError as error:
            raise OverrideError(f"{flag_id}.percentage: {error}") from None
    if variant is not None and not isinstance(variant, str):
        raise OverrideError(f"{flag_id}.variant: got {variant!r}, want text")
    texts = {key: str(value.get(key, "")) for key in ("by", "reason", "at")}
    return Override(value["state"], percentage, variant, expires_at, texts["by"], texts["reason"], texts["at"])


def read_overrides(state_dir: Path) -> OverrideSet:
    """Reads the overrides under a flag state directory; none where there is no file.

    Raises:
        OverrideError: The file is there but cannot be read or trusted.
    """
    path = state_dir / OVERRIDES_FILE
    try:
        return OverrideSet.from_bytes(path.read_bytes())
    except FileNotFoundError:
        if (state_dir / AUDIT_FILE).exists():
            # somebody removed it: a kill switch must not be lifted by that
            raise OverrideError(f"{path}: is gone, but {AUDIT_FILE} beside it tells of changes") from None
        return OverrideSet()
    except NotADirectoryError:
        return OverrideSet()
    except OSError as error:
        raise OverrideError(f"{path}: cannot be read: {error.strerror}") from None
    except OverrideError as error:
        raise OverrideError(f"{path}: {error}") from None
