"""The `jarvis flags` commands that change something; each only translates for FlagAdmin."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from jarvis_flags.model import FlagDefinition, RolloutRule
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.outcome import Outcome, OutcomeKind
from jarvis_otel.admin.states import change_words, moment
from jarvis_otel.cli.command import print_json
from jarvis_otel.cli.flag_session import FlagSession, add_command, author_of
from jarvis_otel.query.times import parse_length
from jarvis_otel.terminal import DONE, NO, WRONG, printable, table

__all__ = ["add_change_parsers"]

_FLAG, _LASTS = "flag", "lasts"
_TURN_ON = ("enable", "toggle", "rollout", "reset", "revert")
_YES = "confirms turning on a dangerous flag"
_YES_UNUSED = "taken as elsewhere; this asks for no confirmation"
_TURN_OFF = ("disable", "toggle", "rollout", "reset", "revert", "panic")
_ABOUT = {
    "enable": "A flag with a percentage stays limited to it. A dangerous one wants a reason and to be confirmed: by "
    "--reason and --yes, or at the prompt. One that takes approvals becomes a request, which another person approves.",
    "disable": "It takes effect at once, asks for nothing, and wins over rules, percentages and pins to on.",
    "toggle": "Off where it is on for anybody, else on as by `enable`.",
    "rollout": "Users are in or out by a hash of their id, so who is in stays in when the percentage grows.",
    "reset": "That is what enable, disable, toggle, rollout and revert have set.",
    "revert": "As `jarvis flags history` shows it.",
    "promote": "The file keeps its comments, and everybody gets what they get now; where the file cannot say that, "
    "nothing is written. Only admins may.",
    "panic": "It takes effect at once and asks for nothing.",
    "approve": "With the last approval that it takes, the change is made. Who asked cannot approve.",
    "deny": "Who asked takes it back by this.",
    "create": "It is off unless --enabled or --rollout says otherwise. The file keeps its comments, and is made where "
    "there is none. Only admins may.",
}
_NO_KINDS = (OutcomeKind.NOT_FOUND, OutcomeKind.REFUSED, OutcomeKind.CONFLICT, OutcomeKind.NEEDS_APPROVAL)


def add_change_parsers(parts: argparse._SubParsersAction[Any]) -> None:
    """Adds the commands that change flags to `jarvis flags`."""
    commands = (
        ("enable", "turn a flag on", "DEXTER_ENABLED --reason 'go live' --yes", _enable, (_FLAG, _LASTS)),
        (
            "disable",
            "turn a flag off for everyone: the kill switch",
            "DEXTER_ENABLED --reason 'it sells low'",
            _disable,
            (_FLAG, _LASTS),
        ),
        ("toggle", "turn a flag on or off, whichever it is not", "NEW_UI --reason test", _toggle, (_FLAG, _LASTS)),
        ("rollout", "set the percentage of users", "NEW_UI 25 --reason 'first quarter'", _rollout, (_FLAG, _LASTS)),
        ("reset", "remove what was set at run time: the file decides", "NEW_UI --reason done", _reset, (_FLAG,)),
        ("revert", "set what was set at an earlier revision", "NEW_UI 12 --reason 'as on Monday'", _revert, (_FLAG,)),
        ("promote", "write what was set at run time into the flag file", "NEW_UI --reason settled", _promote, (_FLAG,)),
        ("panic", "turn every dangerous flag off", "--reason 'market is closed'", _panic, ()),
        ("approve", "approve a change that somebody else asked for", "4f1c09a2be", _approve, ("request",)),
        ("deny", "refuse a change that waits for approval", "4f1c09a2be --reason 'not today'", _deny, ("request",)),
    )
    for name, summary, example, run, wants in commands:
        # off works where no flag file can be read, and what is refused then is refused by FlagAdmin
        parser = add_command(
            parts,
            name,
            summary,
            f"jarvis flags {name} {example}",
            run,
            about=_ABOUT[name],
            needs_flags=False,
            turns_off=name in _TURN_OFF,
        )
        if _FLAG in wants:
            parser.add_argument("flag", metavar="FLAG", help="its id")
        if "request" in wants:
            parser.add_argument("request", metavar="ID", help="as `jarvis flags approvals` lists it")
        if name == "rollout":
            parser.add_argument("percent", metavar="PCT", type=_percent, help="0 to 100, at most three decimals")
        if name == "revert":
            parser.add_argument(
                "revision",
                metavar="REVISION",
                type=_revision,
                help="as `jarvis flags history` shows it; 0: before all",
            )
        if _LASTS in wants:
            parser.add_argument(
                "--for", dest="lasts", metavar="TIME", type=_duration, help="lapses by itself: 30m, 2h, 1d"
            )
        if name == "enable":
            parser.add_argument("--variant", metavar="V", help="the variant that everyone gets")
        _add_author(parser)
        parser.add_argument("--yes", action="store_true", help=_YES if name in _TURN_ON else _YES_UNUSED)

    summary = "the changes that wait for another person"
    add_command(parts, "approvals", summary, "jarvis flags approvals", _approvals, needs_flags=False)

    example = "jarvis flags create NEW_UI --name 'New UI' --owner ui-team --rollout 10"
    summary = "write a new flag into the flag file"
    create = add_command(parts, "create", summary, example, _create, about=_ABOUT["create"], needs_flags=False)
    create.add_argument("flag", metavar="FLAG", help="its id")
    for field, meaning in (
        ("name", "what people call it"),
        ("description", "what it does"),
        ("category", "what it is listed under (default: general)"),
        ("owner", "the team or person that answers for it"),
        ("expires-at", "the date or time after which it should be gone"),
    ):
        create.add_argument(f"--{field}", metavar="TEXT", help=meaning)
    create.add_argument("--services", metavar="A,B", help="services whose records list it")
    create.add_argument("--rollout", metavar="PCT", type=_percent, help="on for this percentage of users")
    create.add_argument("--enabled", action="store_true", help="on for everyone")
    create.add_argument("--dangerous", action="store_true", help="turning it on needs confirmation")
    _add_author(create)


def _add_author(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", metavar="TEXT", default="", help="why; goes to the audit")
    parser.add_argument("--by", metavar="WHO", help="who (default: the system's user and host)")


def _finish(args: argparse.Namespace, outcome: Outcome) -> int:
    if args.format == "json":
        revision = outcome.entries[-1].revision if outcome.entries else None
        answer = {"outcome": outcome.kind.value, "message": outcome.message, "revision": revision}
        if outcome.applied:
            answer |= {"seen": outcome.seen, "running": outcome.running}
        if outcome.request:
            answer["request"] = outcome.request
        print_json(answer)
    elif outcome.applied:
        print(printable(outcome.message))
    if outcome.applied:
        return DONE
    print(f"jarvis: {printable(outcome.message)}", file=sys.stderr)
    return NO if outcome.kind in _NO_KINDS else WRONG


def _confirmed(
    flags: FlagSession, args: argparse.Namespace, action: str, change: Callable[[Author, bool], Outcome]
) -> int:
    """A change that may need a reason and to be confirmed: by --reason and --yes, or at the prompt."""
    author = author_of(flags, args)
    outcome = change(author, args.yes)
    if outcome.kind is OutcomeKind.NEEDS_REASON:
        if not sys.stdin.isatty():
            flags.admin.decline(action, args.flag, author, "no reason was given")
            print(f"jarvis: {outcome.message}: add --reason TEXT", file=sys.stderr)
            return WRONG
        print(f"{outcome.message}: ", end="", file=sys.stderr, flush=True)
        author = replace(author, reason=sys.stdin.readline().strip())
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
        return flags.admin.enable(args.flag, author, confirmed=yes, lasts=args.lasts, variant=args.variant)

    return _confirmed(flags, args, "enable", change)


def _disable(flags: FlagSession, args: argparse.Namespace) -> int:
    return _finish(args, flags.admin.disable(args.flag, author_of(flags, args), lasts=args.lasts))


def _toggle(flags: FlagSession, args: argparse.Namespace) -> int:
    def change(author: Author, yes: bool) -> Outcome:
        return flags.admin.toggle(args.flag, author, confirmed=yes, lasts=args.lasts)

    return _confirmed(flags, args, "toggle", change)


def _rollout(flags: FlagSession, args: argparse.Namespace) -> int:
    def change(author: Author, yes: bool) -> Outcome:
        return flags.admin.rollout(args.flag, args.percent, author, confirmed=yes, lasts=args.lasts)

    return _confirmed(flags, args, "rollout", change)


def _reset(flags: FlagSession, args: argparse.Namespace) -> int:
    return _confirmed(flags, args, "reset", lambda author, yes: flags.admin.reset(args.flag, author, confirmed=yes))


def _revert(flags: FlagSession, args: argparse.Namespace) -> int:
    def change(author: Author, yes: bool) -> Outcome:
        return flags.admin.revert(args.flag, args.revision, author, confirmed=yes)

    return _confirmed(flags, args, "revert", change)


def _promote(flags: FlagSession, args: argparse.Namespace) -> int:
    return _finish(args, flags.admin.promote(args.flag, author_of(flags, args)))


def _approve(flags: FlagSession, args: argparse.Namespace) -> int:
    return _finish(args, flags.admin.approve(args.request, author_of(flags, args)))


def _deny(flags: FlagSession, args: argparse.Namespace) -> int:
    return _finish(args, flags.admin.deny(args.request, author_of(flags, args)))


def _approvals(flags: FlagSession, args: argparse.Namespace) -> int:
    waiting = flags.admin.requests()
    if args.format == "json":
        print_json(
            [
                {
                    "request": request.id,
                    "flag": request.entry.flag,
                    "action": request.entry.action,
                    "old": request.entry.old,
                    "new": request.entry.new,
                    "reason": request.entry.reason,
                    "people": request.people,
                    "wanted": request.wanted,
                    "lapses_at": moment(request.lapses_at),
                }
                for request in waiting
            ]
        )
    elif waiting:
        rows = [
            (
                request.id,
                request.entry.flag,
                change_words(request.entry),
                ", ".join(request.people),
                f"{len(request.people)} of {request.wanted}",
                moment(request.lapses_at),
                request.entry.reason,
            )
            for request in waiting
        ]
        print("\n".join(table([("ID", "FLAG", "CHANGE", "FOR IT", "PEOPLE", "VOID AFTER", "WHY"), *rows])))
    else:
        print("jarvis: no change waits for approval", file=sys.stderr)
    return DONE if waiting else NO


def _panic(flags: FlagSession, args: argparse.Namespace) -> int:
    return _finish(args, flags.admin.panic(author_of(flags, args)))


def _create(flags: FlagSession, args: argparse.Namespace) -> int:
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
    outcome = flags.admin.create(definition, author_of(flags, args))
    if args.format == "json" and outcome.applied:
        print_json({"flag": args.flag, "file": str(flags.settings.flags.flags_file)})
        return DONE
    return _finish(args, outcome)


def _duration(text: str) -> float:
    try:
        return parse_length(text).total_seconds()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _revision(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, want the number of a revision")
    return int(text)


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a number from 0 to 100") from None
