"""`jarvis flags impact`: what a flag does to those who have it, out of the logs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jarvis_flags.hints import did_you_mean
from jarvis_otel.cli.command import add_interval, print_json
from jarvis_otel.cli.flag_session import FlagSession, add_command
from jarvis_otel.terminal import DONE, NO, WRONG, printable, table

if TYPE_CHECKING:
    from jarvis_otel.query.impact import Impact, VariantImpact
    from jarvis_otel.query.log_query import LogQuery

__all__ = ["add_impact_parser"]

_CHANGES_SHOWN = 20


def add_impact_parser(parts: argparse._SubParsersAction[Any]) -> None:
    """Adds impact to `jarvis flags`."""
    example = "jarvis flags impact NEW_UI --since '1 hour ago'"
    impact = add_command(
        parts, "impact", "errors, latency and volume by variant, out of the logs", example, _impact, needs_flags=False
    )
    impact.add_argument("flag", metavar="FLAG", help="may be one that only the logs know")
    add_interval(impact)
    impact.add_argument("--service", metavar="S", help="only what this component tells")
    source = impact.add_mutually_exclusive_group()
    source.add_argument("--dir", metavar="DIR", type=Path, help="the log directory; that of the settings if not given")
    source.add_argument(
        "--loki",
        metavar="URL",
        nargs="?",
        const="",
        help="ask Loki instead, by its base URL; without one that of the settings",
    )


def _impact(flags: FlagSession, args: argparse.Namespace) -> int:
    from jarvis_otel.query.errors import NO_LOG_DIR, QueryError  # noqa: PLC0415 - only where the logs are asked
    from jarvis_otel.query.impact_answer import audit_changes, baseline_of, impact_json  # noqa: PLC0415
    from jarvis_otel.query.output import Progress  # noqa: PLC0415
    from jarvis_otel.query.times import resolve_interval  # noqa: PLC0415

    try:
        interval = resolve_interval(args.since, args.until, datetime.now(UTC))
        logs, where = _source(flags, args)
        if words := interval.in_words():
            _talk(words)
        with Progress(lambda: f"jarvis flags impact: reading {where}"):
            impact = logs.flag_impact(
                args.flag,
                interval.since,
                interval.until,
                args.service,
                baseline=baseline_of(flags.snapshot.definitions.get(args.flag)),
                changes=audit_changes(flags.admin.history(args.flag), interval),
            )
    except QueryError as error:
        _talk(f"--{error.argument}: {error.problem}")
        return WRONG
    except OSError as error:
        why = NO_LOG_DIR if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        _talk(f"{printable(str(error.filename))}: {why}")
        return WRONG
    unreadable = sum(logs.tally.unreadable.values())
    if unreadable:
        _talk(f"{unreadable} {'line is no record' if unreadable == 1 else 'lines are no records'}, passed over")
    if args.format == "json":
        print_json(impact_json(impact, interval))
    elif impact.variants:
        print("\n".join(_report(impact)))
    if impact.variants:
        return DONE
    known = [*flags.snapshot.definitions, *flags.snapshot.bad]
    hint = "" if args.flag in known else did_you_mean(args.flag, known)
    _talk(f"nothing tells of {printable(args.flag)} in {where}{printable(hint)}")
    return NO


def _source(flags: FlagSession, args: argparse.Namespace) -> tuple[LogQuery, str]:
    """What is asked, and what it is called.

    Raises:
        QueryError: There is no such Loki.
    """
    from jarvis_otel.query.log_query import LogQuery  # noqa: PLC0415 - only where the logs are asked
    from jarvis_otel.query.workers import processors  # noqa: PLC0415

    if args.loki is None:
        log_dir = args.dir or flags.settings.log_dir
        return LogQuery(log_dir, workers=processors()), printable(str(log_dir))
    from jarvis_otel.query.loki_source import asked_loki  # noqa: PLC0415 - most questions go to files

    target, note = asked_loki(args.loki, flags.settings)
    if note:
        _talk(note)
    _talk("Loki has no spans: latency is that of records alone")
    return LogQuery(loki=target), f"Loki at {target.url}"


def _report(impact: Impact) -> Iterator[str]:
    header = ("VARIANT", "OPERATIONS", "SHARE", "ERRORS", "ERROR RATE", "MEDIAN MS", "P95 MS", "RECORDS", "SPANS")
    yield from table([header, *map(_row, impact.variants)], texts=1)
    yield ""
    yield from map(printable, impact.sentences)
    if impact.changes:
        yield ""
    for change in impact.changes[-_CHANGES_SHOWN:]:
        because = f": {change.reason}" if change.reason else ""
        yield printable(f"changed {change.at}: {change.old} → {change.new} by {change.who or 'someone'}{because}")
    if (more := len(impact.changes) - _CHANGES_SHOWN) > 0:
        yield f"{more} earlier changes (--format json lists them)"
    yield ""
    yield f"method: {impact.method}"


def _row(one: VariantImpact) -> tuple[str, ...]:
    from jarvis_otel.query.impact_answer import estimate_text  # noqa: PLC0415 - only where the logs are asked

    return (
        one.variant,
        str(one.operations),
        estimate_text(one.share, 100, " %"),
        str(one.errors),
        estimate_text(one.error_rate, 100, " %"),
        estimate_text(one.p50, 1, ""),
        estimate_text(one.p95, 1, ""),
        str(one.records),
        str(one.spans),
    )


def _talk(text: str) -> None:
    print(f"jarvis flags impact: {text}", file=sys.stderr)
