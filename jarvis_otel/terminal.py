"""Text for a terminal: coloured where that is wanted, aligned, and harmless whatever it came from."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

__all__ = ["DONE", "NO", "WRONG", "Paint", "pager", "printable", "table", "tell", "wants_color"]

DONE, NO, WRONG = 0, 1, 2
"""Exit codes of all commands: done; nothing found, or the answer is no; wrong usage or bad input."""

_CODES = {"dim": "2", "bold": "1", "red": "31", "green": "32", "yellow": "33", "magenta": "35", "cyan": "36"}


class Paint:
    """Colours text, or leaves it as it is.

    Args:
        color: Whether to colour.
    """

    def __init__(self, *, color: bool) -> None:
        self._color = color

    def __call__(self, text: str, color: str) -> str:
        """The text in dim, bold, red, green, yellow, magenta or cyan."""
        return f"\x1b[{_CODES[color]}m{text}\x1b[0m" if self._color and text else text


def wants_color(stream: TextIO | None, environ: Mapping[str, str] | None = None) -> bool:
    """Whether what goes to a stream is coloured: a terminal's is, unless NO_COLOR is set; FORCE_COLOR colours any.

    Args:
        stream: Where the text goes.
        environ: The environment; that of the process if None. The two variables belong to the terminal
            (no-color.org), so they are no settings of ours.
    """
    environ = os.environ if environ is None else environ
    if environ.get("NO_COLOR"):
        return False
    return bool(environ.get("FORCE_COLOR")) or (stream is not None and stream.isatty())


def pager(environ: Mapping[str, str] | None = None) -> tuple[list[str], dict[str, str]]:
    """The command that shows long text, and its environment; no command where people want none.

    Args:
        environ: The environment; that of the process if None. PAGER names it (`cat` is none), else it is less, which
            lets colours through. Like NO_COLOR these variables are the terminal's, no settings of ours.
    """
    environ = os.environ if environ is None else environ
    try:
        command = shlex.split(environ.get("PAGER", "less"))
    except ValueError:
        command = []  # an open quote
    return ([] if command[:1] == ["cat"] else command), {"LESS": "R", **environ}


def tell(line: str) -> None:
    """Writes one line about ourselves on stderr, never through logging, which would feed itself; it never raises.

    Args:
        line: What there is to say.
    """
    stream = sys.stderr
    # it may be None, as in a windowless process, closed, or anything that the application has put there
    if stream is not None:
        with contextlib.suppress(Exception):
            print(f"jarvis: {printable(line)}", file=stream, flush=True)


def printable(text: str, keep: str = "") -> str:
    """The text with everything that a terminal would act on or hide shown as an escape.

    Args:
        text: Any text.
        keep: Characters that stay although they are not printable.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def table(rows: Sequence[Sequence[str]], *, texts: int | None = None) -> list[str]:
    """Rows as lines with aligned columns.

    Args:
        rows: The cells; the first row is the header.
        texts: So many first columns stand to the left, the others to the right; all to the left if None.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    texts = len(widths) if texts is None else texts
    return [
        "  ".join(
            cell.ljust(width) if at < texts else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
