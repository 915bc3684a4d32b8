"""The cure for a misspelling."""

from __future__ import annotations

from collections.abc import Iterable

from jarvis_flags.forks import importing

__all__ = ["did_you_mean"]

_COMPARED_MAX = 200
"""So many names are compared, which takes some 20 ms; of more only those that are alike at first sight."""


def did_you_mean(word: object, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: the nearest known one.

    Args:
        word: The name that is not known.
        known: Those that are.
        otherwise: What the message ends with where none is near.
    """
    with importing():
        import difflib  # noqa: PLC0415 - most settings and flags are spelt right

    text, names = str(word), list(known)
    if len(names) > _COMPARED_MAX:
        names = [name for name in names if _is_alike(name, text)][:_COMPARED_MAX]
    near = difflib.get_close_matches(text, names, n=1)
    return f"; did you mean {near[0]}?" if near else otherwise


def _is_alike(name: str, text: str) -> bool:
    return abs(len(name) - len(text)) <= 2 and (name[:2] == text[:2] or name[-2:] == text[-2:])
