"""What each `jarvis flags` command begins with: settings, flags, store, and how it ends."""

from __future__ import annotations

import argparse
import getpass
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any

from jarvis_flags.snapshot import Snapshot
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.author import Author, Role
from jarvis_otel.admin.opening import open_flags
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.admin.store import StoreError
from jarvis_otel.settings import Settings
from jarvis_otel.terminal import DONE, WRONG, tell

__all__ = ["FlagSession", "Run", "add_command", "author_of"]


class FlagSession:
    """What a command works on.

    Attributes:
        settings: The settings.
        source: The flags, read once.
        store: Their run-time state and audit.
        told: The entries of the changes that the command made.
        admin: The service that changes them.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.told: list[AuditEntry] = []
        self.source, self.store = open_flags(settings.flags, tell=self.told.append)
        self.admin = FlagAdmin(self.source, self.store, tell=self.told.append, reason_always=settings.reason_always)
        self.admin.note_file()

    @property
    def snapshot(self) -> Snapshot:
        """All flags."""
        return self.source.snapshot

    def unusable(self) -> str | None:
        """Why there are no flags at all, if so."""
        snapshot = self.snapshot
        if snapshot.definitions or snapshot.bad:
            return None
        return next((str(problem) for problem in snapshot.problems if not problem.path), None)


Run = Callable[[FlagSession, argparse.Namespace], int]


def add_command(
    parts: argparse._SubParsersAction[Any],
    name: str,
    summary: str,
    example: str,
    run: Run,
    *,
    about: str = "",
    default: str = "human",
    needs_flags: bool = True,
    turns_off: bool = False,
) -> argparse.ArgumentParser:
    """Adds one command to `jarvis flags`.

    Args:
        parts: The commands.
        name: What it is called.
        summary: What it does, in a phrase.
        example: A command line.
        run: Does it.
        about: What else is to be known before it is used, in sentences.
        default: The format where none is asked for.
        needs_flags: Whether it can do nothing without a flag file that can be read.
        turns_off: Whether it can turn flags off, which it does also where the settings have faults, and then nothing
            else: applications run with the same ones, and with the same defaults in their place.
    """
    description = f"{summary[0].upper()}{summary[1:]}. {about}".rstrip()
    parser: argparse.ArgumentParser = parts.add_parser(
        name, help=summary, description=description, epilog=f"example: {example}"
    )
    parser.add_argument(
        "--format", choices=("human", "json"), default=default, help="how to print (default: %(default)s)"
    )
    parser.set_defaults(func=lambda args: _run(run, args, needs_flags=needs_flags, turns_off=turns_off))
    return parser


def _run(run: Run, args: argparse.Namespace, *, needs_flags: bool, turns_off: bool) -> int:
    settings = Settings.load()
    for problem in settings.problems:
        tell(problem)
    if settings.problems and not turns_off:
        return WRONG
    # the commands say themselves what is wrong with the files, where it matters to them
    logging.getLogger("jarvis_flags").addHandler(logging.NullHandler())
    logging.getLogger("jarvis_flags").propagate = False
    flags = FlagSession(settings)
    try:
        status = _run_in(flags, run, args, needs_flags=needs_flags)
    finally:
        flags.source.close()
    return WRONG if settings.problems and status != DONE else status


def _run_in(flags: FlagSession, run: Run, args: argparse.Namespace, *, needs_flags: bool) -> int:
    if needs_flags:
        if (why := flags.unusable()) is not None:
            tell(why)
            return WRONG
        for found in flags.snapshot.problems:
            tell(str(found))
    try:
        status = run(flags, args)
    except StoreError as error:
        tell(str(error))
        return WRONG
    if flags.told:
        sys.stdout.flush()
        _announce(flags)
    return status


def _announce(flags: FlagSession) -> None:
    """Sends the log records of changes to the collector; the audit has them in any case."""
    from jarvis_otel.manager import announce  # noqa: PLC0415 - only where something changed
    from jarvis_otel.pipeline import Pipeline  # noqa: PLC0415
    from jarvis_otel.runtime import RUNTIME  # noqa: PLC0415

    resource = {"service.name": "jarvis-cli", "host.name": socket.gethostname()}
    resource["deployment.environment.name"] = flags.snapshot.environment
    # where there is no collector now, the records wait in the spool
    pipeline = Pipeline.of(flags.settings, resource, quiet=True)
    if pipeline is None:
        return
    RUNTIME.pipeline = pipeline
    for entry in flags.told:
        announce(entry)
    pipeline.shutdown(1.0)


def author_of(flags: FlagSession, args: argparse.Namespace) -> Author:
    """Who changes something: as --by says, else the user and host of the system.

    Whoever can run this can write the files too, so they are an admin unless the settings give them another role.
    """
    who = args.by
    if not who:
        try:
            user = getpass.getuser()
        except (OSError, KeyError):  # a container may run as a user without a name
            user = "unknown"
        who = f"{user}@{socket.gethostname()}"
    only_off = "mend the settings first" if flags.settings.problems else ""
    return Author(who, "cli", args.reason, flags.settings.roles.get(who, Role.ADMIN), only_off)
