"""`jarvis logs`: questions to the log files."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jarvis_otel.cli.command import EXIT_CODES, add_interval, allow_negative_times, load_settings
from jarvis_otel.terminal import WRONG

__all__ = ["add_parser"]

_FORMAT = "how to print (default: %(default)s)"


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `logs` and its subcommands to the commands of `jarvis`."""
    logs = commands.add_parser(
        "logs",
        help="query, tail, trace and reproduce from the log files",
        description="Asks the log files, and keeps them in order.",
        epilog=f"example: jarvis logs query --level ERROR\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = logs.add_subparsers(dest="logs_command", metavar="COMMAND", required=True)

    query = _add(
        parts,
        "query",
        "records that match all of the options, oldest first",
        "jarvis logs query --since 14:25 --until 14:35 --level ERROR",
    )
    _add_filters(query)
    query.add_argument(
        "--limit", metavar="N", default="100", help="the newest N (100); 0 is all, in the order of arrival"
    )
    query.add_argument("--page", metavar="P", default="1", help="2 is the --limit records before the newest, and so on")
    query.add_argument("--format", choices=("human", "json", "jsonl", "csv"), default="human", help=_FORMAT)
    _add_pager(query)

    tail = _add(
        parts,
        "tail",
        "the last records that match all of the options, and with -f those that come",
        "jarvis logs tail -f --level WARNING --service trading",
    )
    tail.add_argument("-f", "--follow", action="store_true", help="go on, across midnight and rotation, until Ctrl-C")
    tail.add_argument(
        "-n", "--lines", metavar="N", default="10", help="the last N records (10), 0 with -f for new ones"
    )
    _add_filters(tail)
    tail.add_argument(
        "--format",
        choices=("human", "json", "jsonl", "csv"),
        default="human",
        help="with -f, json has a record a line, as jsonl",
    )

    trace = _add(
        parts,
        "trace",
        "all that one correlation id ties together, across processes, with the flags at each step",
        "jarvis logs trace trade-xyz789",
    )
    trace.add_argument("correlation_id", metavar="CORRELATION_ID", help="a correlation id or a trace id")
    trace.add_argument("--format", choices=("human", "json"), default="human", help=_FORMAT)
    _add_pager(trace)

    errors = _add(
        parts,
        "errors",
        "counts of records of ERROR and above; by flag, their share of each variant's records",
        "jarvis logs errors --since '1 hour ago' --by flag",
    )
    add_interval(errors)
    errors.add_argument(
        "--by",
        choices=("error.type", "service", "message", "flag"),
        default="error.type",
        help="what they are counted by (default: %(default)s)",
    )
    errors.add_argument(
        "--collapse", action="store_true", help="with --by message: count those together that differ in numbers and ids"
    )
    errors.add_argument("--format", choices=("human", "json"), default="human", help=_FORMAT)
    _add_pager(errors)

    stats = _add(
        parts,
        "stats",
        "how many records there are, over time by level and by any field",
        "jarvis logs stats --since -1h --bucket 5m --by service --by error.type",
    )
    _add_filters(stats)
    stats.add_argument(
        "--by",
        metavar="FIELD",
        action="append",
        help="count by service (the default), level, error.type, flags.NEW_UI, context.symbol or any other field; "
        "service,level by both at once; may be given several times",
    )
    stats.add_argument("--bucket", metavar="LENGTH", help="how long a bar is: 30s, 5m, 1h, 1d; round if not given")
    stats.add_argument(
        "--top", metavar="N", default="20", help="the N most frequent values (20), the rest counted; 0 is all"
    )
    stats.add_argument(
        "--format",
        choices=("human", "json", "csv"),
        default="human",
        help="csv has the bars, or the counts --by one field",
    )
    _add_pager(stats)

    export = _add(
        parts,
        "export",
        "all records that match, in a file that is replaced whole",
        "jarvis logs export --since yesterday --level ERROR -o errors.csv",
    )
    export.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the file to write")
    _add_filters(export)
    export.add_argument(
        "--format",
        choices=("jsonl", "csv", "parquet"),
        help="what the name of the file ends in if not given, else jsonl; parquet needs the extra [query]",
    )

    sql = _add(
        parts,
        "sql",
        "ask the tables logs and spans in SQL, by DuckDB (extra [query]); times are UTC",
        "jarvis logs sql \"SELECT service, count(*) FROM logs WHERE level = 'ERROR' GROUP BY ALL\" --since -1d",
    )
    sql.add_argument("sql", metavar="SELECT", help="one statement that only reads; context, flags and _meta are JSON")
    add_interval(sql)
    sql.add_argument("--format", choices=("human", "json", "jsonl", "csv"), default="human", help=_FORMAT)
    _add_pager(sql)

    reproduce = _add(
        parts,
        "reproduce",
        "the lines for a shell that give the same flags again",
        'eval "$(jarvis logs reproduce trade-xyz789)"',
    )
    reproduce.add_argument("correlation_id", metavar="CORRELATION_ID", help="a correlation id or a trace id")
    reproduce.add_argument("--include-dangerous", action="store_true", help="export dangerous flags that were on, too")
    reproduce.add_argument("--format", choices=("human", "json"), default="human", help=_FORMAT)

    rotate = parts.add_parser(
        "rotate",
        help="archive and purge what is due",
        description="Compresses day files that are old enough under archive/, and purges older ones. A running "
        "collector does the same by itself.",
        epilog="example: jarvis logs rotate --plain-days 7 --keep-days 30 --dry-run",
    )
    _add_dir(rotate)
    rotate.add_argument(
        "--plain-days", metavar="N", help="leave files as they are for so many days (default: retention_plain_days, 7)"
    )
    rotate.add_argument(
        "--keep-days", metavar="N", help="purge them after so many days (default: retention_keep_days, 30)"
    )
    rotate.add_argument(
        "--max-total-bytes",
        metavar="SIZE",
        help="archive and purge the oldest beyond it, such as 20GB (default: retention_max_total_bytes)",
    )
    rotate.add_argument("--dry-run", action="store_true", help="only say what would be done")
    rotate.add_argument("--format", choices=("human", "json"), default="human", help=_FORMAT)
    rotate.set_defaults(func=_rotate, logs_command="rotate")

    index = parts.add_parser(
        "index",
        help="make the indexes by which queries pass over what cannot match",
        description="Makes the index of each day file and archive, or brings it up to date. The answers are the same "
        "without; today's file is indexed as far as it goes.",
        epilog="example: jarvis logs index",
    )
    _add_dir(index)
    index.add_argument("--all", action="store_true", help="make them anew, also those that are up to date")
    index.add_argument("--format", choices=("human", "json"), default="human", help=_FORMAT)
    index.set_defaults(func=_index, logs_command="index")


def _add(parts: argparse._SubParsersAction[Any], name: str, summary: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parts.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=f"example: {example}"
    )
    allow_negative_times(parser)
    source = parser.add_mutually_exclusive_group()
    _add_dir(source)
    source.add_argument(
        "--file",
        metavar="PATH",
        type=Path,
        action="append",
        help="read this file instead, plain or gzip; may be given several times; - is standard input",
    )
    source.add_argument(
        "--loki",
        metavar="URL",
        nargs="?",
        const="",
        # of these a Loki is not asked: whoever tries is told what to use
        help=argparse.SUPPRESS
        if name in ("tail", "sql")
        else "ask Loki instead, by its base URL; without one that of the settings",
    )
    parser.set_defaults(func=_run, logs_command=name)
    return parser


def _add_dir(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--dir", metavar="DIR", type=Path, help="the log directory; that of the settings if not given")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    add_interval(parser)
    parser.add_argument("--level", metavar="L", help="ERROR is ERROR and above, =ERROR exactly that")
    parser.add_argument("--service", metavar="S", help="the component")
    parser.add_argument("--correlation-id", metavar="C", help="a correlation id or a trace id")
    parser.add_argument("--trace-id", metavar="T", help="32 hex digits")
    parser.add_argument("--user", metavar="U", help="the user's id")
    parser.add_argument("--flag", metavar="F", help="F was on; F=off and F=variant gave that")
    parser.add_argument("--search", metavar="TEXT", help="stands in message, error or context, in any case")
    parser.add_argument(
        "--regex", metavar="PATTERN", help="matches a part of those (RE2, extra [query]); (?i) for any case"
    )
    parser.add_argument(
        "--where",
        metavar="EXPR",
        help="comparisons (= != < <= > >=, and ~= holds the text) on any field, with and, or, not and parentheses: "
        "'duration_ms>500 and not error.type~=Balance'",
    )


def _add_pager(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-pager", action="store_true", help="never show the answer in PAGER (less)")


def _run(args: argparse.Namespace) -> int:
    from jarvis_otel.query.commands import LogCommands  # noqa: PLC0415 - `jarvis --help` needs none of it

    settings = load_settings()
    if settings is None:
        return WRONG
    with ExitStack() as stack:
        try:
            files = None if args.file is None else [_file(path, stack) for path in args.file]
        except OSError as error:
            print(f"jarvis logs {args.logs_command}: standard input cannot be kept: {error.strerror}", file=sys.stderr)
            return WRONG
        return LogCommands(args.logs_command, args.dir or settings.log_dir, settings, files, args.loki).run(args)


def _index(args: argparse.Namespace) -> int:
    from jarvis_otel.query.index_command import index_command  # noqa: PLC0415 - `jarvis --help` needs none of it

    settings = load_settings()
    return WRONG if settings is None else index_command(args, args.dir or settings.log_dir)


def _rotate(args: argparse.Namespace) -> int:
    from jarvis_otel.query.rotate import rotate_command  # noqa: PLC0415 - `jarvis --help` needs none of it

    settings = load_settings()
    if settings is None:
        return WRONG
    return rotate_command(args, args.dir or settings.log_dir, settings.retention, settings.loki)


def _file(path: Path, stack: ExitStack) -> Path:
    """The file of a --file: standard input is kept in one for as long as the stack, for a trace is read twice."""
    if path != Path("-"):
        return path
    from shutil import copyfileobj  # noqa: PLC0415 - standard input is seldom asked
    from tempfile import TemporaryDirectory  # noqa: PLC0415

    kept = Path(stack.enter_context(TemporaryDirectory(prefix="jarvis-logs-"))) / "stdin"
    with kept.open("wb") as file:
        copyfileobj(sys.stdin.buffer, file)
    return kept
