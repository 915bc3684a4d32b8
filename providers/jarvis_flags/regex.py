"""Regular expressions out of a file: those that could take long on some text are refused before they can run."""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as sre  # type: ignore[attr-defined]
from typing import Any

__all__ = ["TEXT_MAX", "RegexError", "compile_regex"]

PATTERN_MAX = 500
TEXT_MAX = 256
"""A pattern is tried on so many characters of a value at most."""

_WAYS_MAX = TEXT_MAX**2
"""So many ways to part a text among its repeats may a pattern have: about 50 ms at the very worst."""

_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT)
_ATOMIC = (getattr(codes, "ATOMIC_GROUP", None), getattr(codes, "POSSESSIVE_REPEAT", None))


class RegexError(ValueError):
    """A pattern that is malformed or may take long."""


def compile_regex(pattern: str) -> re.Pattern[str]:
    """Compiles a pattern that ends in reasonable time on any text of TEXT_MAX characters.

    Args:
        pattern: Python's syntax, without back references and without choices inside repeats.

    Raises:
        RegexError: It is malformed, too long, or may take long.
    """
    if len(pattern) > PATTERN_MAX:
        raise RegexError(f"got a pattern of {len(pattern)} characters, want at most {PATTERN_MAX}")
    try:
        tree = sre.parse(pattern)
        compiled = re.compile(pattern)
        ways = _ways(tree, inside=False)
    except RegexError as error:
        raise RegexError(f"got {pattern!r}, want {error}: it may take exponential time") from None
    except (re.error, OverflowError, RecursionError) as error:
        raise RegexError(f"got {pattern!r}, which is no regular expression: {error}") from None
    anchored = bool(tree) and tree[0][0] is codes.AT
    # without an anchor every position is a beginning
    if ways * (1 if anchored else TEXT_MAX) > _WAYS_MAX * TEXT_MAX:
        raise RegexError(f"got {pattern!r}, want at most two open repeats (three after ^): it may take long")
    return compiled


def _ways(tree: Any, *, inside: bool) -> int:
    """In how many ways a text can be parted among the repeats; a choice inside a repeat multiplies without end."""
    ways = 1
    for code, argument in tree:
        if code in _REPEATS:
            least, most, inner = argument
            if least != most:
                if inside:
                    raise RegexError("no repeat inside a repeat")
                ways *= min(most - least + 1, TEXT_MAX)
            ways *= _ways(inner, inside=inside or most > 1)
        elif code is codes.BRANCH:
            if inside:
                raise RegexError("no choice (a|b) inside a repeat")
            ways *= sum(_ways(branch, inside=inside) for branch in argument[1])
        elif code is codes.SUBPATTERN:
            ways *= _ways(argument[-1], inside=inside)
        elif code in (codes.ASSERT, codes.ASSERT_NOT):
            ways *= _ways(argument[1], inside=inside)
        elif code in (codes.GROUPREF, codes.GROUPREF_EXISTS):
            raise RegexError("no back reference")
        elif code in _ATOMIC:
            raise RegexError("no atomic group or possessive repeat")
    return min(ways, TEXT_MAX**4)
