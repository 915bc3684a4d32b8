"""What the commands share: how each begins, how it answers, and the types of their options."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jarvis_otel.terminal import tell

if TYPE_CHECKING:
    from jarvis_otel.settings import Settings

__all__ = [
    "EXIT_CODES",
    "add_interval",
    "allow_negative_times",
    "load_settings",
    "missing_package",
    "print_json",
    "tcp_port",
]

EXIT_CODES = """\
Exit code 0: done. 1: nothing found, or the answer is no. 2: wrong usage or bad input, and one line says what and where.
Data goes to standard output, what is said about it to standard error."""


def load_settings() -> Settings | None:
    """The settings; None where there is something wrong with them, which is told then."""
    from jarvis_otel.settings import Settings  # noqa: PLC0415 - `jarvis logs --help` needs none of it

    settings = Settings.load()
    for problem in settings.problems:
        tell(problem)
    return None if settings.problems else settings


def missing_package(error: ModuleNotFoundError, packages: Mapping[str, str], extra: str) -> str:
    """What is missing where the packages of an extra are not installed, and the cure.

    Args:
        error: What an import raised.
        packages: By the first part of a module's name, what is to be installed.
        extra: The extra that brings them.

    Raises:
        ModuleNotFoundError: It is no package of theirs that is missing.
    """
    package = packages.get((error.name or "").partition(".")[0])
    if package is None:
        raise error
    return f"{package} is missing: pip install 'jarvis-otel[{extra}]'"


def tcp_port(text: str) -> int:
    """A TCP port, as the type of an option.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"got {text!r}, want a number from 0 to 65535")
    return int(text)


def add_interval(parser: argparse.ArgumentParser) -> None:
    """Adds --since and --until."""
    allow_negative_times(parser)
    parser.add_argument("--since", metavar="T", help="the earliest time: ISO 8601, 14:25, -3h, '1 hour ago', yesterday")
    parser.add_argument("--until", metavar="T", help="the latest time; 14:35 is the first one after --since")


def allow_negative_times(parser: argparse.ArgumentParser) -> None:
    """Lets `-3h` be a value, which argparse takes for an option unless it looks like a negative number."""
    parser._negative_number_matcher = re.compile(r"-\d")  # noqa: SLF001 - there is no other way


def print_json(value: Any) -> None:
    """Writes a value as JSON to standard output."""
    import orjson  # noqa: PLC0415 - `jarvis --help` needs none of it

    from jarvis_flags.tree import plain  # noqa: PLC0415

    sys.stdout.buffer.write(orjson.dumps(value, default=plain, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()
