"""The flags of a trace as `export FF_…` lines, so that the same code runs under the same flags."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jarvis_flags.snapshot import Snapshot

__all__ = ["Reproduction", "dangerous_in", "reproduce"]

_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PIN_VALUES = {"on": "true", "off": "false"}


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What a shell is to be told.

    Attributes:
        pins: Value by variable, of all the flags for which there is a line.
        lines: `export` lines, and as comments those of dangerous flags that were on.
        held_back: Ids of the dangerous flags that were on and only stand there as comments.
        refused: Flags for which there is no line, with the reason.
    """

    pins: Mapping[str, str]
    lines: tuple[str, ...]
    held_back: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


def dangerous_in(snapshot: Snapshot) -> Callable[[str], bool]:
    """Whether a flag is dangerous as the flags stand; one that is unknown or bad there counts as dangerous."""

    def dangerous(flag_id: str) -> bool:
        definition = snapshot.definitions.get(flag_id)
        return definition is None or flag_id in snapshot.bad or definition.dangerous

    return dangerous


def reproduce(flags: Mapping[str, str], dangerous: Callable[[str], bool], *, include_dangerous: bool) -> Reproduction:
    """The lines that pin each flag to what it gave.

    Flag ids and variants come from log files, which others can write to: what a shell could take for anything but
    one assignment is refused.

    Args:
        flags: Variant by flag id.
        dangerous: Whether a flag is one that must not be turned on in passing.
        include_dangerous: Whether dangerous flags that were on are exported too.
    """
    lines, held_back, refused = [], [], []
    pins: dict[str, str] = {}
    owners: dict[str, str] = {}
    for flag_id, variant in flags.items():
        pin = f"FF_{flag_id.upper()}"
        if not _ID.fullmatch(flag_id):
            refused.append((flag_id, "the id is not of letters, digits and _"))
        elif not variant.isprintable():
            refused.append((flag_id, "the variant has control characters"))
        elif pin in pins:
            refused.append((flag_id, f"{pin} already stands for {owners[pin]}"))
        else:
            owners[pin] = flag_id
            pins[pin] = _PIN_VALUES.get(variant, variant)
            line = f"export {pin}={shlex.quote(pins[pin])}"
            if variant != "off" and not include_dangerous and dangerous(flag_id):
                held_back.append(flag_id)
                line = f"# {line}  # dangerous: it was on"
            lines.append(line)
    return Reproduction(pins, tuple(lines), tuple(held_back), tuple(refused))
