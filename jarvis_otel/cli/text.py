"""Text for a terminal: aligned, and harmless whatever it came from."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["printable", "table"]


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would obey, or that would turn the reading direction."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under their heads, each column as wide as it needs to be.

    Args:
        heads: What stands above the columns.
        rows: The cells, as many as heads.
    """
    cells = [tuple(heads), *(tuple(printable(str(cell)) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
