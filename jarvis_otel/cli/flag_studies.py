"""The `jarvis flags` commands that study flags: who would move under a change, and which flags have had their day."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jarvis_flags.buckets import threshold
from jarvis_flags.overrides import Override
from jarvis_flags.parse import parse_flags
from jarvis_flags.snapshot import Snapshot, build_snapshot
from jarvis_flags.tree import load_tree
from jarvis_otel.admin.preview import moves, with_override
from jarvis_otel.admin.stale import STALE_DAYS, last_changes, stale_reasons
from jarvis_otel.admin.states import unknown_flag_words
from jarvis_otel.cli.command import print_json
from jarvis_otel.cli.flag_session import FlagSession, add_command
from jarvis_otel.terminal import DONE, NO, WRONG, printable, table, tell

__all__ = ["add_study_parsers", "on_by_default"]

USERS_MAX = 1_000_000
SHOWN_MAX = 10
_CODE_BYTES_MAX = 4 * 1024 * 1024


def add_study_parsers(parts: argparse._SubParsersAction[Any]) -> None:
    """Adds simulate and stale to `jarvis flags`."""
    example = "jarvis flags simulate NEW_UI --users 10000 --rollout 50"
    summary = "who gets what, and who would move under a change"
    simulate = add_command(parts, "simulate", summary, example, _simulate, about="Nothing is changed by it.")
    simulate.add_argument("flag", metavar="FLAG", help="its id")
    simulate.add_argument(
        "--users", metavar="FILE|N", required=True, help="a file with one id a line, or N for user0 to userN-1"
    )
    simulate.add_argument("--env", metavar="ENV", help="the environment (default: as an application here would)")
    change = simulate.add_mutually_exclusive_group()
    change.add_argument("--rollout", metavar="PCT", type=float, help="as if this percentage were set")
    change.add_argument("--on", action="store_true", help="as if it were turned on")
    change.add_argument("--off", action="store_true", help="as if it were turned off")
    change.add_argument("--file", metavar="FILE", type=Path, help="as if this were the flag file")

    about = "Expired, the same for everyone for long, or not evaluated for long as far as the log files tell."
    example = "jarvis flags stale --code src"
    stale = add_command(parts, "stale", "flags that have had their day", example, _stale, about=about)
    stale.add_argument("--code", metavar="DIR", type=Path, help="also flags that no file in here names")
    stale.add_argument(
        "--days",
        metavar="N",
        type=int,
        default=STALE_DAYS,
        help="after so many days the same for everyone, or without an evaluation (default: %(default)s)",
    )


# --- simulate ---


def _simulate(flags: FlagSession, args: argparse.Namespace) -> int:
    snapshot = flags.snapshot
    if args.flag not in snapshot.definitions and args.flag not in snapshot.bad:
        tell(unknown_flag_words(snapshot, args.flag, "; jarvis flags list shows them"))
        return NO
    try:
        proposed = _proposed(flags, args)
        users = list(_users(args.users))
    except (OSError, ValueError) as error:
        words = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        print(f"jarvis flags simulate: {words}", file=sys.stderr)
        return WRONG
    seen = moves(snapshot, proposed or snapshot, args.flag, users, args.env)
    if args.format == "json":
        result: dict[str, Any] = {"flag": args.flag, "users": seen.users, "now": dict(seen.now)}
        moved = [{"user": user, "from": before, "to": after} for user, before, after in seen.moved]
        print_json({**result, "proposed": dict(seen.then), "moved": moved} if proposed else result)
        return DONE
    rows: list[tuple[str, ...]] = [("VARIANT", "NOW", "THEN") if proposed else ("VARIANT", "NOW")]
    columns = (seen.now, seen.then) if proposed else (seen.now,)
    rows += [(variant, *(seen.share(counts, variant) for counts in columns)) for variant in seen.names]
    print("\n".join(table(rows, texts=1)))
    if proposed:
        print(f"{len(seen.moved)} of {seen.users} users move")
        for user, before, after in seen.moved[:SHOWN_MAX]:
            print(f"  {printable(user)}: {before} → {after}")
        if len(seen.moved) > SHOWN_MAX:
            print(f"  … and {len(seen.moved) - SHOWN_MAX} more (--format json lists them)")
    return DONE


def _proposed(flags: FlagSession, args: argparse.Namespace) -> Snapshot | None:
    """The snapshot under the change that is asked about, or None where none is."""
    snapshot = flags.snapshot
    if args.file is not None:
        if not args.file.is_file():
            raise ValueError(f"--file: {args.file}: there is no such file")
        # parsed here and not by a FileSource, which would remember it as the last good state of the flags
        return build_snapshot(
            parse_flags(load_tree(args.file.read_bytes()), str(args.file)),
            overrides=snapshot.overrides,
            pins=snapshot.pins,
            environment=snapshot.environment,
            flag_set_id=args.file.name,
        )
    if args.rollout is not None:
        threshold(args.rollout)
        override = Override("on", percentage=args.rollout)
    elif args.on or args.off:
        standing = snapshot.overrides.overrides.get(args.flag)
        override = Override("on" if args.on else "off", percentage=standing.percentage if standing else None)
    else:
        return None
    return with_override(snapshot, args.flag, override)


def _users(given: str) -> Iterator[str]:
    if given.isdigit():
        if int(given) > USERS_MAX:
            raise ValueError(f"--users: got {given}, want at most {USERS_MAX}")
        yield from (f"user{number}" for number in range(int(given)))
        return
    with Path(given).open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file):
            if number >= USERS_MAX:
                raise ValueError(f"--users: {given} has more than {USERS_MAX} lines")
            if user := line.strip():
                yield user


# --- stale ---


def _stale(flags: FlagSession, args: argparse.Namespace) -> int:
    if args.code is not None and not args.code.is_dir():
        print(f"jarvis flags stale: --code: {args.code} is no directory", file=sys.stderr)
        return WRONG
    now = datetime.now(UTC)
    since = now - timedelta(days=args.days)
    changed = last_changes(flags.admin.history())
    reasons = {
        flag_id: stale_reasons(flags.snapshot, flag_id, changed, now, since) for flag_id in flags.snapshot.definitions
    }
    for flag_id, reason in _never_evaluated(flags, since):
        reasons[flag_id].append(reason)
    if args.code is not None:
        for flag_id in _not_named(reasons, args.code):
            reasons[flag_id].append(f"no file in {args.code} names it")
    found = {flag_id: why for flag_id, why in reasons.items() if why}
    if args.format == "json":
        print_json(found)
    elif found:
        rows = [(flag_id, flags.snapshot.definitions[flag_id].owner, "; ".join(why)) for flag_id, why in found.items()]
        print("\n".join(table([("FLAG", "OWNER", "WHY"), *rows])))
    return DONE if found else NO


def _never_evaluated(flags: FlagSession, since: datetime) -> Iterator[tuple[str, str]]:
    """Flags that no record since then lists as evaluated; nothing where there are no records to tell by."""
    from jarvis_otel.query.log_query import LogQuery  # noqa: PLC0415 - the query engine, where logs are asked

    pending, earliest = set(flags.snapshot.definitions), None
    try:
        for record in LogQuery(flags.settings.log_dir).iterate(since=since):
            earliest = min(earliest or record["timestamp"], record["timestamp"])
            pending.difference_update(record.get("flags") or ())
            if not pending:
                return
    except OSError:
        print(f"jarvis: no log files in {flags.settings.log_dir}: what is never evaluated is not told", file=sys.stderr)
        return
    if earliest is not None:
        for flag_id in sorted(pending):
            yield flag_id, f"not evaluated since {earliest[:10]}"


def _not_named(flag_ids: Mapping[str, Any], directory: Path) -> Iterable[str]:
    """Flags whose id stands in no file of a directory."""
    pending = {flag_id: flag_id.encode() for flag_id in flag_ids}
    for _, content in _code(directory):
        pending = {flag_id: name for flag_id, name in pending.items() if name not in content}
        if not pending:
            break
    return sorted(pending)


def on_by_default(directory: Path, flag_ids: Iterable[str]) -> list[str]:
    """Where code evaluates one of these flags with True as its default, a sentence for each place.

    Args:
        directory: The code.
        flag_ids: The flags.
    """
    names = "|".join(re.escape(flag_id) for flag_id in flag_ids)
    if not names:
        return []
    call = re.compile(
        rf"(?:is_enabled|get_boolean_value|get_boolean_details)\(\s*['\"]({names})['\"]\s*,\s*(?:default\w*\s*=\s*)?True".encode()
    )
    return [
        f"{path}:{_line(content, found.start())}: {found[1].decode()} is dangerous, and on by default here"
        for path, content in _code(directory)
        for found in call.finditer(content)
    ]


def _line(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1


def _code(directory: Path) -> Iterator[tuple[Path, bytes]]:
    """The files of a directory; hidden ones and huge ones are passed over."""
    for path in sorted(directory.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(directory).parts) or not path.is_file():
            continue
        try:
            if path.stat().st_size <= _CODE_BYTES_MAX:
                yield path, path.read_bytes()
        except OSError:
            continue
