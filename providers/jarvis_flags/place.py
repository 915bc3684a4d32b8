"""A value of a flag file and where it stands, so that whatever is wrong with it can be said with its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jarvis_flags.hints import did_you_mean
from jarvis_flags.tree import NumberText

__all__ = ["LocalLine", "Place", "Problem", "shown"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a flag file, and where.

    Attributes:
        file: The file's path as it was named.
        line: From 1; 0 where none is known.
        path: Where in the document, e.g. `flags.DEXTER.rules[1].value`; empty for the whole of it.
        message: What was got and what was wanted.
        flag: The flag that cannot be used because of it, if any.
    """

    file: str
    line: int
    path: str
    message: str
    flag: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class LocalLine(int):
    """A line of another file than the one around it."""

    file: str


class Place:
    """A value in the document: where it is, and the reporting of what is wrong with it.

    What takes a value of a kind (`text`, `boolean`, …) tells what is wrong, and then gives the default.

    Args:
        value: The value.
        path: Where it stands, e.g. `flags.DEXTER.rules[1]`.
        line: Its line, from 1; 0 where none is known.
        file: The file's name in messages.
        problems: Takes what is wrong.
        key: Its own key.
    """

    __slots__ = ("file", "key", "line", "path", "problems", "value")

    def __init__(  # noqa: PLR0917 - made in one place, and for each value of a file
        self, value: Any, path: str, line: int, file: str, problems: list[Problem], key: str = ""
    ) -> None:
        self.value = value
        self.key = key
        self.path = path
        self.line = line
        self.file = file
        self.problems = problems

    def wrong(self, message: str) -> None:
        """Tells what is wrong with the value."""
        self.problems.append(Problem(self.file, self.line, self.path, message))

    def at(self, key: str | int) -> Place:
        """The value under a key or an index; None where it is absent."""
        lines: Any = getattr(self.value, "lines", None)
        if isinstance(key, int):
            value, path = self.value[key], f"{self.path}[{key}]"
            line = lines[key] if lines else self.line
        else:
            value, path = self.value.get(key), f"{self.path}.{key}" if self.path else key
            line = lines.get(key, self.line) if lines else self.line
        return Place(value, path, line, getattr(line, "file", self.file), self.problems, str(key))

    def each(self) -> Iterable[Place]:
        """The values in it, each at its place."""
        return (self.at(key) for key in (range(len(self.value)) if isinstance(self.value, list) else self.value))

    def mapping(self) -> bool:
        """Whether it is a mapping; anything else is told."""
        if not isinstance(self.value, Mapping):
            self.wrong(f"got {shown(self.value)}, want a mapping")
            return False
        return True

    def known(self, keys: tuple[str, ...]) -> None:
        """Tells of each key that is none of these."""
        for key in self.value:
            if key not in keys:
                self.at(key).wrong("unknown field" + did_you_mean(key, keys, "; want one of " + ", ".join(keys)))

    def text(self, default: str = "") -> str:
        """The value as text; a number as it was written."""
        value = self.value
        if value is None:
            return default
        if isinstance(value, str):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(getattr(value, "text", value))
        self.wrong(f"got {shown(value)}, want text")
        return default

    def boolean(self, *, default: bool = False) -> bool:
        """The value as true or false."""
        if self.value is None:
            return default
        if isinstance(self.value, bool):
            return self.value
        self.wrong(f"got {shown(self.value)}, want true or false")
        return default

    def choice(self, allowed: tuple[str, ...]) -> str | None:
        """The value as one of these; None where it is none of them."""
        if self.value in allowed:
            return str(self.value)
        hint = did_you_mean(self.value, allowed)
        self.wrong(f"got {shown(self.value)}, want one of {', '.join(allowed)}{hint}")
        return None

    def whole(self, default: int, low: int, high: int) -> int:
        """The value as a whole number from low to high."""
        if self.value is None:
            return default
        if isinstance(self.value, int) and not isinstance(self.value, bool) and low <= self.value <= high:
            return self.value
        self.wrong(f"got {shown(self.value)}, want a whole number from {low} to {high}")
        return default

    def texts(self) -> list[str]:
        """The value as a list of texts; whole numbers are taken as theirs."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            self.wrong(f"got {shown(self.value)}, want a list")
            return []
        texts = []
        for index, item in enumerate(self.value):
            if isinstance(item, str) or (isinstance(item, int) and not isinstance(item, bool)):
                texts.append(str(item))
            else:
                self.at(index).wrong(f"got {shown(item)}, want text or a whole number")
        return texts


def shown(value: Any) -> str:
    """A value as messages name what was got."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, NumberText):
        return value.text
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
