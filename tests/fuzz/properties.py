"""What fuzzing is made of: properties of parsers that hold for any bytes, by family, with the inputs to begin with.

A property is a function of bytes that raises where a promise is broken. Hypothesis (tests/test_fuzz.py) and atheris
(`make fuzz`) call the same functions; bytes that broke one are kept in tests/data/fuzz/FAMILY.PROPERTY/ and replayed.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DATA", "Family", "Property", "as_json", "as_text", "one_line", "scratch"]

DATA = Path(__file__).parent.parent / "data"
FOUND = DATA / "fuzz"


@dataclass(frozen=True)
class Property:
    """A promise about what comes of any bytes.

    Attributes:
        name: `FAMILY.PROPERTY`.
        check: Raises where the promise is broken.
        seeds: Inputs to begin with.
        words: What the language is made of.
    """

    name: str
    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]

    @property
    def found(self) -> Path:
        """The directory of the inputs that once broke it."""
        return FOUND / self.name

    def inputs(self) -> list[bytes]:
        """The seeds, and what broke it once."""
        found = sorted(self.found.iterdir()) if self.found.is_dir() else []
        return [*self.seeds, *(path.read_bytes() for path in found)]

    def __str__(self) -> str:
        return self.name


class Family:
    """The properties that one harness fuzzes together.

    Args:
        name: What it is called.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.properties: list[Property] = []

    def add(
        self, *, seeds: Iterable[bytes | str | Path], words: str | Iterable[bytes | str] = ()
    ) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
        """Makes a function a property; a path among its seeds is a file with one."""

        def added(check: Callable[[bytes], None]) -> Callable[[bytes], None]:
            begin = tuple(seed.read_bytes() if isinstance(seed, Path) else _bytes(seed) for seed in seeds)
            language = tuple(map(_bytes, words.split() if isinstance(words, str) else words))
            self.properties.append(Property(f"{self.name}.{check.__name__}", check, begin, language))
            return check

        return added


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text


def as_text(data: bytes) -> str:
    """Any bytes as a text: what is no UTF-8 becomes lone surrogates, which texts of applications may hold too."""
    return data.decode("utf-8", "surrogateescape")


def as_json(data: bytes) -> object:
    """The JSON value that bytes are, as Python reads it; None where they are none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def one_line(error: Exception, data: bytes) -> None:
    """Asserts that an error for people is one line, unless what it quotes has several."""
    assert "\n" not in str(error) or b"\n" in data, error


@functools.cache
def scratch() -> Path:
    """A directory of this process that is removed at its end."""
    made = Path(tempfile.mkdtemp(prefix="jarvis-fuzz-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
