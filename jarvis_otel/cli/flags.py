"""`jarvis flags`: looks at flags and changes them."""

from __future__ import annotations

import argparse
import getpass
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any

import orjson

from jarvis_flags.evaluate import CALLERS_DEFAULT, Evaluation
from jarvis_flags.model import EvaluationContext, FlagDefinition
from jarvis_flags.parse import pin_name
from jarvis_flags.snapshot import Snapshot
from jarvis_flags.source import FileSource
from jarvis_flags.tree import load_tree, plain
from jarvis_otel.admin.audit import AuditEntry, verify
from jarvis_otel.admin.service import FlagAdmin, Outcome, OutcomeKind
from jarvis_otel.admin.store import Author, FileStore, StoreError
from jarvis_otel.settings import Settings
from jarvis_otel.terminal import printable, table

__all__ = ["add_parser"]

DONE, NO, WRONG = 0, 1, 2


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `flags` and its subcommands to the commands of `jarvis`."""
    flags = commands.add_parser("flags", help="look at flags and change them", epilog="example: jarvis flags list")
    parts = flags.add_subparsers(dest="flags_command", metavar="COMMAND", required=True)

    listed = _add(parts, "list", "all flags with their state", "jarvis flags list --category trading", _list)
    listed.add_argument("--category", metavar="C", help="only those of this category")
    listed.add_argument("--status", choices=("active", "deprecated", "disabled"), help="only those of this status")

    show = _add(
        parts, "show", "one flag: definition, state, what stands against it", "jarvis flags show DEXTER_ENABLED", _show
    )
    show.add_argument("flag", metavar="FLAG")

    evaluate = _add(
        parts, "eval", "what a flag gives", "jarvis flags eval NEW_UI --user 42 --attr plan=pro", _eval, default="json"
    )
    explain = _add(
        parts, "explain", "what a flag gives, step by step", "jarvis flags explain NEW_UI --user 42", _explain
    )
    for parser in (evaluate, explain):
        parser.add_argument("flag", metavar="FLAG")
        parser.add_argument("--user", metavar="ID", help="the user")
        parser.add_argument("--env", metavar="ENV", help="the environment (default: as an application here would)")
        parser.add_argument("--attr", metavar="K=V", action="append", default=[], type=_attribute, help="an attribute")
        parser.add_argument("--default", metavar="V", type=_value, help="the caller's default")

    enable = _add(
        parts, "enable", "turn a flag on", "jarvis flags enable DEXTER_ENABLED --reason 'go live' --yes", _enable
    )
    disable = _add(
        parts,
        "disable",
        "turn a flag off for everyone: the kill switch",
        "jarvis flags disable DEXTER_ENABLED --reason 'it sells low'",
        _disable,
    )
    toggle = _add(
        parts,
        "toggle",
        "turn a flag on or off, whichever it is not",
        "jarvis flags toggle NEW_UI --reason test",
        _toggle,
    )
    rollout = _add(
        parts,
        "rollout",
        "set the percentage of users",
        "jarvis flags rollout NEW_UI 25 --reason 'first quarter'",
        _rollout,
    )
    reset = _add(
        parts,
        "reset",
        "remove what was set at run time: the file decides",
        "jarvis flags reset NEW_UI --reason 'test is over'",
        _reset,
    )
    panic = _add(
        parts, "panic", "turn every dangerous flag off", "jarvis flags panic --reason 'market is closed'", _panic
    )
    for parser in (enable, disable, toggle, rollout, reset):
        parser.add_argument("flag", metavar="FLAG")
    rollout.add_argument("percent", metavar="PCT", type=_percent, help="0 to 100, at most three decimals")
    for parser in (enable, disable, toggle, rollout, reset, panic):
        parser.add_argument("--reason", metavar="TEXT", default="", help="why; goes to the audit")
        parser.add_argument("--by", metavar="WHO", help="who (default: the system's user and host)")
        parser.add_argument("--yes", action="store_true", help="confirms turning on a dangerous flag")

    history = _add(
        parts, "history", "the changes of a flag, or of all", "jarvis flags history DEXTER_ENABLED", _history
    )
    history.add_argument("flag", metavar="FLAG", nargs="?")

    audit = _add(parts, "audit", "the audit, and whether its chain is whole", "jarvis flags audit --verify", _audit)
    audit.add_argument("--verify", action="store_true", help="only check the chain: 1 where it is broken")

    _add(parts, "lint", "check the flag files", "jarvis flags lint", _lint)


def _add(
    parts: argparse._SubParsersAction[Any],
    name: str,
    summary: str,
    example: str,
    run: Callable[[_Flags, argparse.Namespace], int],
    *,
    default: str = "human",
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parts.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=f"example: {example}"
    )
    parser.add_argument("--format", choices=("human", "json"), default=default)
    parser.set_defaults(func=lambda args: _run(run, args))
    return parser


class _Flags:
    """What a command works on."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.source = FileSource(settings.flags)
        self.store = FileStore(settings.flags.flags_state_dir)
        self.told: list[AuditEntry] = []
        self.admin = FlagAdmin(self.source, self.store, tell=self.told.append)

    @property
    def snapshot(self) -> Snapshot:
        return self.source.snapshot

    def unusable(self) -> str | None:
        """Why there are no flags at all, if so."""
        snapshot = self.snapshot
        if snapshot.definitions or snapshot.bad:
            return None
        return next((str(problem) for problem in snapshot.problems if not problem.path), None)


def _run(run: Callable[[_Flags, argparse.Namespace], int], args: argparse.Namespace) -> int:
    settings = Settings.load()
    for problem in settings.problems:
        print(f"jarvis: {problem}", file=sys.stderr)
    if settings.problems:
        return WRONG
    # the commands say themselves what is wrong with the files, where it matters to them
    logging.getLogger("jarvis_flags").addHandler(logging.NullHandler())
    logging.getLogger("jarvis_flags").propagate = False
    flags = _Flags(settings)
    changes = run in (_enable, _disable, _toggle, _rollout, _reset, _panic)
    if not changes and run not in (_lint, _history, _audit):
        if (why := flags.unusable()) is not None:
            print(f"jarvis: {why}", file=sys.stderr)
            return WRONG
        for found in flags.snapshot.problems:
            print(f"jarvis: {found}", file=sys.stderr)
    try:
        status = run(flags, args)
    except StoreError as error:
        print(f"jarvis: {error}", file=sys.stderr)
        return WRONG
    if flags.told:
        sys.stdout.flush()
        _announce(settings, flags.told)
    return status


def _print_json(value: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(value, default=plain, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


# --- looking ---


def _state(flags: _Flags, flag_id: str) -> dict[str, Any]:
    """A flag's definition and where it stands."""
    snapshot = flags.snapshot
    definition, bad = snapshot.definitions.get(flag_id), snapshot.bad.get(flag_id)
    override = snapshot.overrides.overrides.get(flag_id)
    result, _ = snapshot.explain(flag_id, snapshot.request())
    percentage = _limit(snapshot, flag_id, definition)
    state = "on" if result.on else "off"
    decided_for_all = "override" in result.metadata and "rule" not in result.metadata
    if percentage is not None and not decided_for_all and (not result.on or "rule" in result.metadata):
        state = f"{percentage:g} %"
    if definition is not None and definition.variants is not None and result.variant is not None:
        state = result.variant
    return {
        "flag": flag_id,
        "state": state,
        "value": None if result.value is CALLERS_DEFAULT else result.value,
        "variant": result.variant,
        "reason": result.reason.value,
        "percentage": percentage,
        "override": override and override.to_dict(),
        "pin": snapshot.pins.get(pin_name(flag_id)),
        "problem": bad and bad.message,
        **({"definition": definition.to_dict()} if definition is not None else {}),
    }


def _limit(snapshot: Snapshot, flag_id: str, definition: FlagDefinition | None) -> float | None:
    """The percentage of users that a flag is limited to, or None."""
    override = snapshot.overrides.overrides.get(flag_id)
    if override is not None and override.percentage is not None:
        return override.percentage
    return None if definition is None else definition.percentage


def _notes(state: dict[str, Any]) -> str:
    definition = state.get("definition", {})
    notes = ["dangerous"] if definition.get("dangerous") else []
    if state["override"]:
        notes.append(f"set {state['override']['state']} at run time by {state['override'].get('by', 'someone')}")
    if state["pin"] is not None:
        notes.append(f"pinned {pin_name(state['flag'])}={state['pin']}")
    if state["problem"]:
        notes.append("broken: see jarvis flags lint")
    return ", ".join(notes)


def _list(flags: _Flags, args: argparse.Namespace) -> int:
    snapshot = flags.snapshot
    ids = [
        flag_id
        for flag_id, definition in snapshot.definitions.items()
        if args.category in (None, definition.category) and args.status in (None, definition.status)
    ]
    if args.category is None and args.status is None:
        ids += [flag_id for flag_id in snapshot.bad if flag_id not in ids]
    states = [_state(flags, flag_id) for flag_id in ids]
    if args.format == "json":
        _print_json(states)
    elif states:
        rows = [
            (
                s["flag"],
                s["state"],
                s.get("definition", {}).get("category", ""),
                s.get("definition", {}).get("name", ""),
                _notes(s),
            )
            for s in states
        ]
        print("\n".join(table([("FLAG", f"IN {snapshot.environment.upper()}", "CATEGORY", "NAME", "NOTES"), *rows])))
    return DONE if states else NO


def _missing(flags: _Flags, flag_id: str) -> bool:
    snapshot = flags.snapshot
    if flag_id in snapshot.definitions or flag_id in snapshot.bad:
        return False
    import difflib  # noqa: PLC0415

    near = difflib.get_close_matches(flag_id, [*snapshot.definitions, *snapshot.bad], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    print(f"jarvis: no flag {flag_id!r} in {flags.settings.flags.flags_file}{hint}", file=sys.stderr)
    return True


def _show(flags: _Flags, args: argparse.Namespace) -> int:
    if _missing(flags, args.flag):
        return NO
    state = _state(flags, args.flag)
    if args.format == "json":
        _print_json(state)
        return DONE
    definition = state.get("definition", {})
    print(f"{printable(args.flag)}  {state['state']} in {flags.snapshot.environment}  {_notes(state)}".rstrip())
    for key, value in definition.items():
        if key == "rules":
            for rule in value:
                print(f"  rule: {printable(', '.join(f'{name}: {plain(part)}' for name, part in rule.items()))}")
        else:
            print(f"  {key}: {printable(str(plain(value)))}")
    if state["problem"]:
        print(f"  problem: {printable(state['problem'])}")
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


def _eval(flags: _Flags, args: argparse.Namespace) -> int:
    snapshot = flags.snapshot
    request = snapshot.request(_context(args))
    result = snapshot.evaluate(args.flag, request)
    shown = _result(result, args.default)
    if request.user is not None:
        shown["metadata"]["contextId"] = request.user
    if args.format == "json":
        _print_json(shown)
    else:
        print(f"{printable(args.flag)} = {printable(str(shown['value']))} ({shown['error_code'] or shown['reason']})")
    return NO if _missing(flags, args.flag) else DONE


def _explain(flags: _Flags, args: argparse.Namespace) -> int:
    snapshot = flags.snapshot
    result, steps = snapshot.explain(args.flag, snapshot.request(_context(args)))
    shown = _result(result, args.default)
    if args.format == "json":
        listed = [{"step": s.number, "title": s.title, "outcome": s.outcome, "why": s.why} for s in steps]
        _print_json({**shown, "steps": listed})
    else:
        print(
            "\n".join(
                table([("STEP", "ASKS", "OUTCOME", "WHY"), *[(s.number, s.title, s.outcome, s.why) for s in steps]])
            )
        )
        print(f"{printable(args.flag)} = {printable(str(shown['value']))} ({shown['error_code'] or shown['reason']})")
    return NO if _missing(flags, args.flag) else DONE


def _history(flags: _Flags, args: argparse.Namespace) -> int:
    found = flags.admin.history(args.flag)
    _print_entries(found, args.format)
    if not found:
        print(f"jarvis: no change{f' of {args.flag}' if args.flag else ''} so far", file=sys.stderr)
    return DONE if found else NO


def _print_entries(found: list[AuditEntry], form: str) -> None:
    if form == "json":
        _print_json([{**{name: getattr(e, name) for name in e.__slots__}, "hash": e.hash} for e in found])
    elif found:
        rows = [(e.at, e.flag, e.action, _change(e), e.who, e.via, e.reason) for e in found]
        print("\n".join(table([("WHEN", "FLAG", "ACTION", "CHANGE", "WHO", "VIA", "WHY"), *rows])))


def _change(entry: AuditEntry) -> str:
    if entry.outcome != "applied":
        return f"refused: {entry.detail}"
    old, new = (_override_words(values) for values in (entry.old, entry.new))
    return f"{old} → {new}"


def _override_words(values: Any) -> str:
    if not values:
        return "file"
    return f"{values['state']} {values['percentage']:g} %" if "percentage" in values else str(values["state"])


def _audit(flags: _Flags, args: argparse.Namespace) -> int:
    faults = list(verify(flags.store.lines()))
    if args.verify:
        if args.format == "json":
            _print_json({"whole": not faults, "faults": faults})
        else:
            print("\n".join(faults) or f"the chain of {len(flags.store.lines())} entries is whole")
        return NO if faults else DONE
    _print_entries(flags.store.history(), args.format)
    for fault in faults:
        print(f"jarvis: {fault}", file=sys.stderr)
    return DONE if flags.store.lines() else NO


def _lint(flags: _Flags, args: argparse.Namespace) -> int:
    snapshot = flags.snapshot
    if args.format == "json":
        problems = [
            {"file": p.file, "line": p.line, "path": p.path, "message": p.message, "flag": p.flag}
            for p in snapshot.problems
        ]
        _print_json({"flags": len(snapshot.definitions), "bad": sorted(snapshot.bad), "problems": problems})
    else:
        for problem in snapshot.problems:
            print(printable(str(problem)))
        for name in snapshot.unmatched_pins:
            print(f"{name} is set, but pins no flag")
        if not snapshot.problems:
            print(f"{len(snapshot.definitions)} flags, nothing wrong")
    unreadable = any(not problem.path for problem in snapshot.problems)
    return WRONG if snapshot.bad or unreadable else DONE


# --- changing ---


def _author(args: argparse.Namespace) -> Author:
    if args.by:
        return Author(args.by, "cli", args.reason)
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run as a user without a name
        user = "unknown"
    return Author(f"{user}@{socket.gethostname()}", "cli", args.reason)


def _finish(args: argparse.Namespace, outcome: Outcome) -> int:
    if args.format == "json":
        revision = outcome.entries[-1].revision if outcome.entries else None
        _print_json({"outcome": outcome.kind.value, "message": outcome.message, "revision": revision})
    elif outcome.applied:
        print(printable(outcome.message))
    if outcome.applied:
        return DONE
    print(f"jarvis: {printable(outcome.message)}", file=sys.stderr)
    return NO if outcome.kind in (OutcomeKind.NOT_FOUND, OutcomeKind.REFUSED) else WRONG


def _confirmed(flags: _Flags, args: argparse.Namespace, action: str, change: Callable[[Author, bool], Outcome]) -> int:
    """A change that may need to be confirmed: by --yes, or at the prompt by typing the flag's name."""
    author = _author(args)
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


def _enable(flags: _Flags, args: argparse.Namespace) -> int:
    return _confirmed(flags, args, "enable", lambda author, yes: flags.admin.enable(args.flag, author, confirmed=yes))


def _disable(flags: _Flags, args: argparse.Namespace) -> int:
    return _finish(args, flags.admin.disable(args.flag, _author(args)))


def _toggle(flags: _Flags, args: argparse.Namespace) -> int:
    snapshot = flags.snapshot
    on = snapshot.evaluate(args.flag, snapshot.request()).on
    override = snapshot.overrides.overrides.get(args.flag)
    limited = _limit(snapshot, args.flag, snapshot.definitions.get(args.flag)) is not None
    # a flag that is on for some is on: toggling it turns it off
    if on or (limited and (override is None or override.state == "on")):
        return _disable(flags, args)
    return _enable(flags, args)


def _rollout(flags: _Flags, args: argparse.Namespace) -> int:
    def change(author: Author, yes: bool) -> Outcome:
        return flags.admin.rollout(args.flag, args.percent, author, confirmed=yes)

    return _confirmed(flags, args, "rollout", change)


def _reset(flags: _Flags, args: argparse.Namespace) -> int:
    return _confirmed(flags, args, "reset", lambda author, yes: flags.admin.reset(args.flag, author, confirmed=yes))


def _panic(flags: _Flags, args: argparse.Namespace) -> int:
    return _finish(args, flags.admin.panic(_author(args)))


def _announce(settings: Settings, told: list[AuditEntry]) -> None:
    """Sends the log records of changes to the collector, if there is one; the audit has them in any case."""
    if not settings.logs_exporter or settings.sdk_disabled:
        return
    from jarvis_otel.manager import announce  # noqa: PLC0415 - only where something changed
    from jarvis_otel.pipeline import Pipeline  # noqa: PLC0415
    from jarvis_otel.runtime import RUNTIME  # noqa: PLC0415

    resource = {"service.name": "jarvis-cli", "host.name": socket.gethostname()}
    pipeline = Pipeline(
        settings.otlp_endpoint, resource, headers=settings.otlp_headers, timeout=settings.otlp_timeout, quiet=True
    )
    RUNTIME.pipeline = pipeline
    for entry in told:
        announce(entry)
    pipeline.shutdown(1.0)


# --- arguments ---


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a number from 0 to 100") from None


def _value(text: str) -> Any:
    """A value as YAML reads it: true, 5, text."""
    try:
        return plain(load_tree(text))
    except ValueError:
        return text


def _attribute(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"got {text!r}, want NAME=VALUE")
    return name, _value(value)
