"""`jarvis run`: an unmodified Python application with flags, logs and spans."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jarvis_otel.cli.command import load_settings
from jarvis_otel.terminal import WRONG

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["add_parser", "run"]


def add_parser(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `run` to the command line."""
    parser = commands.add_parser(
        "run",
        help="run a Python application with flags, logs and spans, unchanged",
        description="Runs a command whose Python processes evaluate flags and ship their logs and spans;"
        " OpenTelemetry's instrumentations that are installed are active in them.",
        usage="jarvis run [--service NAME] [--] COMMAND [ARG ...]",
        epilog="example: jarvis run --service api -- python app.py",
    )
    parser.add_argument(
        "--service", metavar="NAME", help="the service's name (default: the settings', or the program's)"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Becomes the command; comes back only where it cannot be run."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        print("jarvis run: no command; usage: jarvis run [--service NAME] [--] COMMAND [ARG ...]", file=sys.stderr)
        return WRONG
    if load_settings() is None:
        return WRONG
    environ = _environ(os.environ, args.service, Path(command[0]).name)
    # what a sitecustomize of the user's own has printed would be lost
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, environ)  # noqa: S606
    except OSError as error:
        print(f"jarvis run: {command[0]}: {error.strerror}", file=sys.stderr)
    return WRONG


def _environ(environ: Mapping[str, str], service: str | None, command: str) -> dict[str, str]:
    """The command's environment: our sitecustomize is found before any other."""
    site = str(Path(__file__).parent.parent / "auto" / "site")
    others = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != site]
    named = {"OTEL_SERVICE_NAME": service} if service else {}
    # this command takes any distro that is installed unless one is named
    ours = dict.fromkeys(("OTEL_PYTHON_DISTRO", "OTEL_PYTHON_CONFIGURATOR"), "jarvis")
    defaults = ours if command == "opentelemetry-instrument" else {}
    return {**defaults, **environ, **named, "PYTHONPATH": os.pathsep.join([site, *others])}
