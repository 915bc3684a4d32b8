"""The `jarvis flags` commands that change something; each only translates for FlagAdmin."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from jarvis_flags.model import FlagDefinition, RolloutRule
from jarvis_otel.admin.service import Outcome, OutcomeKind
from jarvis_otel.admin.store import Author
from jarvis_otel.cli.flag_session import DONE, NO, WRONG, FlagSession, add_command, author_of, print_json
from jarvis_otel.terminal import printable

__all__ = ["add_change_parsers"]


def add_change_parsers(parts: argparse._SubParsersAction[Any]) -> None:
    """Adds enable, disable, toggle, rollout, reset, panic and create to `jarvis flags`."""
    commands = (
        ("enable", "turn a flag on", "DEXTER_ENABLED --reason 'go live' --yes", _enable),
        (
            "disable",
            "turn a flag off for everyone: the kill switch",
            "DEXTER_ENABLED --reason 'it sells low'",
            _disable,
        ),
        ("toggle", "turn a flag on or off, whichever it is not", "NEW_UI --reason test", _toggle),
        ("rollout", "set the percentage of users", "NEW_UI 25 --reason 'first quarter'", _rollout),
        ("reset", "remove what was set at run time: the file decides", "NEW_UI --reason 'test is over'", _reset),
        ("panic", "turn every dangerous flag off", "--reason 'market is closed'", _panic),
    )
    for name, summary, example, run in commands:
        # off works where no flag file can be read, and what is refused then is refused by FlagAdmin
        parser = add_command(parts, name, summary, f"jarvis flags {name} {example}", run, needs_flags=False)
        if name != "panic":
            parser.add_argument("flag", metavar="FLAG")
        if name in ("enable", "disable"):
            parser.add_argument(
                "--for", dest="lasts", metavar="TIME", type=_duration, help="lapses by itself: 30m, 2h, 1d"
            )
        if name == "enable":
            parser.add_argument("--variant", metavar="V", help="the variant that everyone gets")
        if name == "rollout":
            parser.add_argument("percent", metavar="PCT", type=_percent, help="0 to 100, at most three decimals")
        parser.add_argument("--reason", metavar="TEXT", default="", help="why; goes to the audit")
        parser.add_argument("--by", metavar="WHO", help="who (default: the system's user and host)")
        parser.add_argument("--yes", action="store_true", help="confirms turning on a dangerous flag")

    example = "jarvis flags create NEW_UI --name 'New UI' --owner ui-team --rollout 10"
    create = add_command(parts, "create", "write a new flag into the flag file", example, _create, needs_flags=False)
    create.add_argument("flag", metavar="FLAG")
    for field in ("name", "description", "category", "owner", "expires-at"):
        create.add_argument(f"--{field}", metavar="TEXT", help=f"its {field.replace('-', ' ')}")
    create.add_argument("--services", metavar="A,B", help="services whose records list it")
    create.add_argument("--rollout", metavar="PCT", type=_percent, help="on for this percentage of users")
    create.add_argument("--enabled", action="store_true", help="on for everyone")
    create.add_argument("--dangerous", action="store_true", help="turning it on needs confirmation")


def _finish(args: argparse.Namespace, outcome: Outcome) -> int:
    if args.format == "json":
        revision = outcome.entries[-1].revision if outcome.entries else None
        print_json({"outcome": outcome.kind.value, "message": outcome.message, "revision": revision})
    elif outcome.applied:
        print(printable(outcome.message))
    if outcome.applied:
        return DONE
    print(f"jarvis: {printable(outcome.message)}", file=sys.stderr)
    return NO if outcome.kind in (OutcomeKind.NOT_FOUND, OutcomeKind.REFUSED) else WRONG


def _confirmed(
    flags: FlagSession, args: argparse.Namespace, action: str, change: Callable[[Author, bool], Outcome]
) -> int:
    """A change that may need to be confirmed: by --yes, or at the prompt by typing the flag's name."""
    author = author_of(args)
    outcome = change(author, args.yes)
    if outcome.kind is not OutcomeKind.NEEDS_CONFIRMATION:
        return _finish(args, outcome)
    if not sys.stdin.isatty():
        flags.admin.decline(action, args.flag, author)
        print(f"jarvis: {outcome.message}: add --yes", file=sys.stderr)
        return WRONG
    print(f"{args.flag} is dangerous. Type its name to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != args.flag:
        flags.admin.decline(action, args.flag, author)
        print("jarvis: nothing was changed", file=sys.stderr)
        return NO
    return _finish(args, change(author, True))


def _enable(flags: FlagSession, args: argparse.Namespace) -> int:
    def change(author: Author, yes: bool) -> Outcome:
        variant = getattr(args, "variant", None)  # toggle has none
        return flags.admin.enable(args.flag, author, confirmed=yes, lasts=_lasts(args), variant=variant)

    return _confirmed(flags, args, "enable", change)


def _disable(flags: FlagSession, args: argparse.Namespace) -> int:
    return _finish(args, flags.admin.disable(args.flag, author_of(args), lasts=_lasts(args)))


def _toggle(flags: FlagSession, args: argparse.Namespace) -> int:
    snapshot = flags.snapshot
    on = snapshot.evaluate(args.flag, snapshot.request()).on
    override = snapshot.overrides.overrides.get(args.flag)
    limited = flags.limit(args.flag) is not None
    # a flag that is on for some is on: toggling it turns it off
    if on or (limited and (override is None or override.state == "on")):
        return _disable(flags, args)
    return _enable(flags, args)


def _rollout(flags: FlagSession, args: argparse.Namespace) -> int:
    def change(author: Author, yes: bool) -> Outcome:
        return flags.admin.rollout(args.flag, args.percent, author, confirmed=yes)

    return _confirmed(flags, args, "rollout", change)


def _reset(flags: FlagSession, args: argparse.Namespace) -> int:
    return _confirmed(flags, args, "reset", lambda author, yes: flags.admin.reset(args.flag, author, confirmed=yes))


def _panic(flags: FlagSession, args: argparse.Namespace) -> int:
    return _finish(args, flags.admin.panic(author_of(args)))


def _create(flags: FlagSession, args: argparse.Namespace) -> int:
    from jarvis_flags.edit import add_flag  # noqa: PLC0415 - only where a file is written

    path = flags.settings.flags.flags_file
    definition = FlagDefinition(
        id=args.flag,
        name=args.name or "",
        description=args.description or "",
        owner=args.owner or "",
        enabled=args.enabled,
        category=args.category or "general",
        services=[name.strip() for name in (args.services or "").split(",") if name.strip()],
        rules=[] if args.rollout is None else [RolloutRule("percentage", args.rollout)],
        expires_at=args.expires_at,
        dangerous=args.dangerous,
        created_at=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    try:
        add_flag(path, definition)
    except (ValueError, OSError) as error:
        print(f"jarvis flags create: {error}", file=sys.stderr)
        return WRONG
    if args.format == "json":
        print_json({"flag": args.flag, "file": str(path)})
    else:
        print(f"{printable(args.flag)} was written into {path}")
    return DONE


def _lasts(args: argparse.Namespace) -> float | None:
    lasts: float | None = getattr(args, "lasts", None)  # toggle has none
    return lasts


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a time such as 30m, 2h or 1d")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a number from 0 to 100") from None
