"""The cure for a misspelling."""

from __future__ import annotations

from collections.abc import Iterable

from jarvis_flags.forks import importing

__all__ = ["did_you_mean"]


def did_you_mean(word: object, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: the nearest known one.

    Args:
        word: The name that is not known.
        known: Those that are.
        otherwise: What the message ends with where none is near.
    """
    with importing():
        import difflib  # noqa: PLC0415 - most settings and flags are spelt right

    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else otherwise
