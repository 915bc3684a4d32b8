"""`jarvis flags`: looks at flags; what changes them and what studies them is in the modules beside."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from jarvis_flags.evaluate import Evaluation
from jarvis_flags.hints import did_you_mean
from jarvis_flags.model import EvaluationContext
from jarvis_flags.request import CALLERS_DEFAULT
from jarvis_flags.tree import plain, value_of
from jarvis_otel.admin.audit import AuditEntry, verify
from jarvis_otel.admin.states import change_words, flag_states
from jarvis_otel.admin.store import StoreError
from jarvis_otel.cli.command import EXIT_CODES, print_json
from jarvis_otel.cli.flag_changes import add_change_parsers
from jarvis_otel.cli.flag_exchange import add_flagd_parsers
from jarvis_otel.cli.flag_impact import add_impact_parser
from jarvis_otel.cli.flag_migrate import add_migrate_parser
from jarvis_otel.cli.flag_session import FlagSession, add_command
from jarvis_otel.cli.flag_studies import add_study_parsers, on_by_default
from jarvis_otel.secrets import find_secrets
from jarvis_otel.terminal import DONE, NO, WRONG, printable, table

__all__ = ["add_parser"]

_ATTRIBUTE = "an attribute of the user, read as YAML reads it; may be given several times"


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `flags` and its subcommands to the commands of `jarvis`."""
    flags = commands.add_parser(
        "flags",
        help="look at flags and change them",
        description="Looks at flags, changes them, and studies what they do.",
        epilog=f"example: jarvis flags list\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = flags.add_subparsers(dest="flags_command", metavar="COMMAND", required=True)

    about = "The state is that of somebody without a name in this environment, or the percentage that has it on."
    example = "jarvis flags list --category trading"
    listed = add_command(parts, "list", "all flags with their state", example, _list, about=about)
    listed.add_argument("--category", metavar="C", help="only those of this category")
    listed.add_argument("--status", choices=("active", "deprecated", "disabled"), help="only those of this status")

    show = add_command(
        parts, "show", "one flag: definition, state, what stands against it", "jarvis flags show DEXTER_ENABLED", _show
    )
    show.add_argument("flag", metavar="FLAG", help="its id")

    example = "jarvis flags eval NEW_UI --user 42 --attr plan=pro"
    about = "As an application with these settings would evaluate it; nothing is recorded. Exit code 1: no such flag."
    evaluate = add_command(parts, "eval", "what a flag gives", example, _eval, about=about, default="json")
    example = "jarvis flags explain NEW_UI --user 42"
    about = "Each step of the evaluation order, what it asks, and why it decided or did not."
    explain = add_command(parts, "explain", "what a flag gives, step by step", example, _explain, about=about)
    for parser in (evaluate, explain):
        parser.add_argument("flag", metavar="FLAG", help="its id")
        parser.add_argument("--user", metavar="ID", help="the user")
        parser.add_argument("--env", metavar="ENV", help="the environment (default: as an application here would)")
        parser.add_argument("--attr", metavar="K=V", action="append", default=[], type=_attribute, help=_ATTRIBUTE)
        parser.add_argument("--default", metavar="V", type=value_of, help="the caller's default")

    add_change_parsers(parts)
    add_study_parsers(parts)
    add_impact_parser(parts)
    add_flagd_parsers(parts)
    add_migrate_parser(parts)

    example = "jarvis flags history DEXTER_ENABLED"
    about = "Who, when, why, from where, and from what to what; refused changes and edits of the file too."
    history = add_command(
        parts, "history", "the changes of a flag, or of all", example, _history, about=about, needs_flags=False
    )
    history.add_argument("flag", metavar="FLAG", nargs="?", help="its id; without one all of them")

    example = "jarvis flags audit --verify --logs"
    about = "Each entry carries the hash of the one before, so what was edited, cut or written anew is found."
    audit = add_command(
        parts, "audit", "the audit, and whether it is whole", example, _audit, about=about, needs_flags=False
    )
    audit.add_argument("--verify", action="store_true", help="only check its chain: 1 where it is broken")
    audit.add_argument("--logs", action="store_true", help="also hold it against what the log files say of changes")

    about = "Exit code 2: a flag is bad, a file cannot be read, or a secret stands in one; a line each says where."
    lint = add_command(
        parts, "lint", "check the flag files", "jarvis flags lint", _lint, about=about, needs_flags=False
    )
    lint.add_argument("--code", metavar="DIR", type=Path, help="also code in which a dangerous flag is on by default")


def _list(flags: FlagSession, args: argparse.Namespace) -> int:
    snapshot = flags.snapshot
    anything = args.category is None and args.status is None
    states = [
        state
        for state in flag_states(snapshot)
        if anything
        or (
            state.definition is not None
            and args.category in (None, state.definition.category)
            and args.status in (None, state.definition.status)
        )
    ]
    if snapshot.local_file is not None:
        print(f"jarvis: {snapshot.local_file} lies over the flag file", file=sys.stderr)
    if args.format == "json":
        print_json([state.to_dict() for state in states])
    elif states:
        rows = [
            (
                state.flag,
                state.state,
                "" if state.definition is None else state.definition.category,
                "" if state.definition is None else state.definition.name,
                ", ".join(state.notes),
            )
            for state in states
        ]
        print("\n".join(table([("FLAG", f"IN {snapshot.environment.upper()}", "CATEGORY", "NAME", "NOTES"), *rows])))
    return DONE if states else NO


def _missing(flags: FlagSession, flag_id: str) -> bool:
    snapshot = flags.snapshot
    if flag_id in snapshot.definitions or flag_id in snapshot.bad:
        return False
    hint = did_you_mean(flag_id, [*snapshot.definitions, *snapshot.bad])
    print(f"jarvis: no flag {flag_id!r} in {flags.settings.flags.flags_file}{hint}", file=sys.stderr)
    return True


def _show(flags: FlagSession, args: argparse.Namespace) -> int:
    state = flags.admin.state(args.flag)
    if state is None:
        _missing(flags, args.flag)
        return NO
    if args.format == "json":
        print_json(state.to_dict())
        return DONE
    notes = ", ".join(state.notes)
    print(printable(f"{args.flag}  {state.state} in {flags.snapshot.environment}  {notes}".rstrip()))
    for key, value in ({} if state.definition is None else state.definition.to_dict()).items():
        if key == "rules":
            for rule in value:
                print(f"  rule: {printable(', '.join(f'{name}: {plain(part)}' for name, part in rule.items()))}")
        else:
            print(f"  {key}: {printable(str(plain(value)))}")
    if state.problem:
        print(f"  problem: {printable(state.problem)}")
    return DONE


def _context(args: argparse.Namespace) -> EvaluationContext:
    return EvaluationContext(user_id=args.user, environment=args.env, attributes=dict(args.attr))


def _result(result: Evaluation, default: Any) -> dict[str, Any]:
    return {
        "flag": result.flag_id,
        "value": default if result.value is CALLERS_DEFAULT else result.value,
        "variant": result.variant,
        "reason": result.reason.value,
        "error_code": result.error_code and result.error_code.value,
        "metadata": dict(result.metadata),
    }


def _eval(flags: FlagSession, args: argparse.Namespace) -> int:
    snapshot = flags.snapshot
    request = snapshot.request(_context(args))
    result = snapshot.evaluate(args.flag, request)
    shown = _result(result, args.default)
    if request.user is not None:
        shown["metadata"]["contextId"] = request.user
    if args.format == "json":
        print_json(shown)
    else:
        print(f"{printable(args.flag)} = {printable(str(shown['value']))} ({shown['error_code'] or shown['reason']})")
    return NO if _missing(flags, args.flag) else DONE


def _explain(flags: FlagSession, args: argparse.Namespace) -> int:
    snapshot = flags.snapshot
    result, steps = snapshot.explain(args.flag, snapshot.request(_context(args)))
    shown = _result(result, args.default)
    if args.format == "json":
        listed = [{"step": s.number, "title": s.title, "outcome": s.outcome, "why": s.why} for s in steps]
        print_json({**shown, "steps": listed})
    else:
        print(
            "\n".join(
                table([("STEP", "ASKS", "OUTCOME", "WHY"), *[(s.number, s.title, s.outcome, s.why) for s in steps]])
            )
        )
        print(f"{printable(args.flag)} = {printable(str(shown['value']))} ({shown['error_code'] or shown['reason']})")
    return NO if _missing(flags, args.flag) else DONE


def _history(flags: FlagSession, args: argparse.Namespace) -> int:
    found = flags.admin.history(args.flag)
    _print_entries(found, args.format)
    if not found:
        print(f"jarvis: no change{f' of {args.flag}' if args.flag else ''} so far", file=sys.stderr)
    return DONE if found else NO


def _print_entries(found: list[AuditEntry], form: str) -> None:
    if form == "json":
        print_json([{**{name: getattr(e, name) for name in e.__slots__}, "hash": e.hash} for e in found])
    elif found:
        rows = [(e.at, str(e.revision), e.flag, e.action, change_words(e), e.who, e.via, e.reason) for e in found]
        print("\n".join(table([("WHEN", "REVISION", "FLAG", "ACTION", "CHANGE", "WHO", "VIA", "WHY"), *rows])))


def _audit(flags: FlagSession, args: argparse.Namespace) -> int:
    lines = flags.store.lines()
    faults = list(verify(lines))
    if flags.snapshot.overrides.revision > max((entry.revision for entry in flags.store.history()), default=0):
        faults.append(
            f"the overrides are at revision {flags.snapshot.overrides.revision}, which the audit does not reach"
        )
    if args.logs:
        faults += _missing_from(flags)
    if args.verify:
        if args.format == "json":
            print_json({"whole": not faults, "faults": faults})
        else:
            print("\n".join(faults) or f"the chain of {len(lines)} entries is whole")
        return NO if faults else DONE
    _print_entries(flags.store.history(), args.format)
    for fault in faults:
        print(f"jarvis: {fault}", file=sys.stderr)
    return DONE if lines else NO


def _missing_from(flags: FlagSession) -> list[str]:
    """Changes that the log files tell of and the audit does not: then it was cut or written anew."""
    from jarvis_otel.query.log_query import LogQuery  # noqa: PLC0415 - only where the logs are asked

    known = {entry.hash for entry in flags.store.history()}
    faults = []
    try:
        for record in LogQuery(flags.settings.log_dir).iterate(where="event=jarvis.flag.changed"):
            told = record.get("context", {})
            pending = "jarvis.change.audit_hash" not in told and told.get("jarvis.change.outcome") == "pending"
            if told.get("jarvis.change.audit_hash") not in known and not pending:
                what = printable(str(record.get("message", "")))
                faults.append(f"the log of {record['timestamp']} tells of a change that is not in the audit: {what}")
    except OSError as error:
        raise StoreError(f"{flags.settings.log_dir}: cannot be read: {error.strerror}") from None
    return faults


def _lint(flags: FlagSession, args: argparse.Namespace) -> int:
    snapshot = flags.snapshot
    if args.code is not None and not args.code.is_dir():
        print(f"jarvis flags lint: --code: {args.code} is no directory", file=sys.stderr)
        return WRONG
    secrets = [
        f"flags.{flag_id}.{place}: looks like {kind}; flags are read by everyone: name the secret, keep it elsewhere"
        for flag_id, definition in snapshot.definitions.items()
        for place, kind in find_secrets(plain(definition.to_dict()))
    ]
    warnings = [f"{name} is set, but pins no flag" for name in snapshot.unmatched_pins]
    if args.code is not None:
        warnings += on_by_default(args.code, [flag.id for flag in snapshot.definitions.values() if flag.dangerous])
    if args.format == "json":
        problems = [
            {"file": p.file, "line": p.line, "path": p.path, "message": p.message, "flag": p.flag}
            for p in snapshot.problems
        ]
        counted = {"flags": len(snapshot.definitions), "bad": sorted(snapshot.bad)}
        print_json({**counted, "problems": problems, "secrets": secrets, "warnings": warnings})
    else:
        lines = [str(problem) for problem in snapshot.problems] + secrets + warnings
        print("\n".join(map(printable, lines)) or f"{len(snapshot.definitions)} flags, nothing wrong")
    unreadable = any(not problem.path for problem in snapshot.problems)
    return WRONG if snapshot.bad or unreadable or secrets else DONE


def _attribute(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"got {text!r}, want NAME=VALUE")
    return name, value_of(value)
