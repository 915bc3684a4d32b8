"""YAML text to a tree of dicts, lists and scalars that remember their lines, without YAML 1.1's traps.

Only true and false are booleans; `on`, `off`, dates and times stay text, as keys too; a number keeps its text, so that
version 1.10 stays 1.10; a duplicate key is an error. Scalars follow the core schema of YAML 1.2 (section 10.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from jarvis_flags.forks import importing

__all__ = ["BYTES_MAX", "DEPTH_MAX", "NumberText", "TreeError", "TreeList", "TreeMap", "load_tree", "plain", "value_of"]

BYTES_MAX = 16 * 1024 * 1024
DEPTH_MAX = 64


class TreeError(ValueError):
    """Text that is no usable YAML.

    Attributes:
        line: The line it was found at, from 1; 0 where none is known.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


class TreeMap(dict[str, Any]):
    """A mapping that knows its own line and that of each key (from 1)."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int = 0) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}


class TreeList(list[Any]):
    """A sequence that knows its own line and that of each item (from 1)."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int = 0) -> None:
        super().__init__()
        self.line = line
        self.lines: list[int] = []


class NumberText(float):
    """A floating-point number that remembers how it was written: 1.10 is not 1.1 where it is a version."""

    __slots__ = ("text",)

    text: str

    def __new__(cls, text: str) -> Self:
        """Reads a number as the core schema writes it."""
        number = super().__new__(cls, text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        number.text = text
        return number


def load_tree(text: bytes | str) -> Any:
    """Parses one YAML (or JSON) document.

    Args:
        text: The document; bytes are UTF-8 or have a byte order mark.

    Returns:
        TreeMap, TreeList, str, int, NumberText, bool or None.

    Raises:
        TreeError: It is not one well-formed document within the limits of size, depth and number of nodes.
    """
    if len(text) > BYTES_MAX:
        raise TreeError(f"got {len(text)} bytes, want at most {BYTES_MAX}")
    with importing():
        from jarvis_flags.yaml_reader import read_document  # noqa: PLC0415 - the YAML library, when it is wanted

    return read_document(text)


def value_of(text: str) -> Any:
    """A value that somebody types in a line, as a flag file would have it: true, 5, text."""
    try:
        return plain(load_tree(text))
    except TreeError:
        return text


def plain(tree: Any) -> Any:
    """The tree as ordinary dicts, lists, floats and so on, to be written as JSON or compared."""
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(item) for item in tree]
    if isinstance(tree, NumberText):
        return float(tree)
    return tree
