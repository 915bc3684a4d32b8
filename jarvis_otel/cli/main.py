"""The entry point of `jarvis`: finds the command, and imports no more than that needs."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from typing import Any, NoReturn

from jarvis_otel.cli.command import EXIT_CODES
from jarvis_otel.version import __version__

__all__ = ["COMMANDS", "CommandParser", "main"]

COMMANDS = ("alerts", "collector", "demo", "doctor", "flags", "logs", "run", "telegram", "up", "web")
"""Each is a module of this package with `add_parser(commands)`."""


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the command with 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments; those of the process if None.

    Returns:
        0 done, 1 nothing found or the answer is no, 2 wrong usage or bad input.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] != ["run"]:
        # bytes that are no UTF-8 can stand in no file of ours; a command that is run gets them as they are
        arguments = [argument.encode("utf-8", "backslashreplace").decode() for argument in arguments]
    parser = CommandParser(
        prog="jarvis",
        description="Feature flags and structured logs in one.",
        epilog=f"example: jarvis demo\n\nEach command has a --help of its own, with an example.\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jarvis-otel {__version__}")
    commands: argparse._SubParsersAction[Any] = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS
    for name in wanted:
        importlib.import_module(f"jarvis_otel.cli.{name}").add_parser(commands)
    for stream in (sys.stdout, sys.stderr):
        # a terminal that knows no arrow gets an escape, not a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        args = parser.parse_args(arguments)
        status: int = args.func(args)
        sys.stdout.flush()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # whoever read our output has seen enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
