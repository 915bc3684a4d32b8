"""`jarvis logs rotate`: one pass of the retention by hand, and what it did."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from jarvis_collector.checkpoint import Checkpoint, load
from jarvis_collector.config import LokiTarget, Retention
from jarvis_collector.layout import archive_path
from jarvis_collector.retention import BusyError, Report, rotate
from jarvis_otel.collector_settings import parse_size
from jarvis_otel.query.errors import NO_LOG_DIR
from jarvis_otel.query.render import json_text
from jarvis_otel.terminal import DONE, NO, WRONG, printable

__all__ = ["rotate_command"]

_WAIT = 2.0


def rotate_command(args: Namespace, log_dir: Path, retention: Retention, loki: LokiTarget | None) -> int:
    """Archives and purges what is due; a file a line on stdout, the sum of it and problems on stderr.

    Args:
        args: The parsed options.
        log_dir: The log directory.
        retention: What the settings say, for what the options leave open.
        loki: Where records are forwarded to; a day that has not been is left alone.

    Returns:
        The exit code: something was done, nothing was to be done, or there were problems.
    """
    try:
        retention = _retention(args, retention)
        report = rotate(log_dir, retention, is_forwarded=_forwarded(loki), wait=_WAIT, dry_run=args.dry_run)
    except (ValueError, BusyError) as error:
        _talk(str(error))
        return WRONG
    except FileNotFoundError:
        _talk(f"{log_dir}: {NO_LOG_DIR}")
        return WRONG
    except OSError as error:
        _talk(f"{error.filename or log_dir}: {error.strerror}")
        return WRONG
    if args.format == "json":
        print(json_text({"dir": str(log_dir), "dry_run": args.dry_run, **asdict(report)}))
    else:
        for line in _told(report, log_dir):
            print(printable(line))
    _talk_about(report, args.dry_run)
    if report.problems:
        return WRONG
    return DONE if report.archived or report.purged else NO


def _retention(args: Namespace, default: Retention) -> Retention:
    given = {"plain_days": _days(args.plain_days, "--plain-days"), "keep_days": _days(args.keep_days, "--keep-days")}
    given["max_total_bytes"] = _size(args.max_total_bytes, "--max-total-bytes")
    return replace(default, **{name: value for name, value in given.items() if value is not None})


def _days(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 6):
        raise ValueError(f"{option}: got {text!r}, want a whole number of days")
    return int(text)


def _size(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    size = parse_size(text)
    if size is None:
        raise ValueError(f"{option}: got {text!r}, want a size such as 20GB or 500MiB")
    return size


def _forwarded(loki: LokiTarget | None) -> Callable[[Path], bool]:
    """Whether a day file has been forwarded, by the collector's checkpoint; where nothing is forwarded, all have."""
    if loki is None:
        return lambda _: True
    try:
        checkpoint = load(loki.checkpoint)
    except ValueError as error:
        raise ValueError(f"{loki.checkpoint}: no checkpoint ({error}); the collector makes a new one") from None
    return (checkpoint or Checkpoint(since="")).covers


def _told(report: Report, log_dir: Path) -> Iterator[str]:
    for name in report.archived:
        yield f"archived  {name} -> {archive_path(log_dir / name).relative_to(log_dir)}"
    for name in report.purged:
        yield f"purged    {name}"
    for name in report.in_use:
        yield f"in use    {name}"
    for name in report.waiting:
        yield f"waiting   {name}"


def _talk_about(report: Report, dry_run: bool) -> None:
    for problem in report.problems:
        _talk(problem)
    if lost := len(report.purged_unforwarded):
        _talk(f"{lost} of the purged files had not been forwarded")
    if report.in_use:
        _talk(f"{len(report.in_use)} left alone: a process may still write to them")
    if report.waiting:
        _talk(f"{len(report.waiting)} left alone: they have not been forwarded to Loki yet")
    if report.archived or report.purged:
        would = "would be " if dry_run else ""
        about = "about " if dry_run else ""
        _talk(
            f"{len(report.archived)} {would}archived, {len(report.purged)} {would}purged: "
            f"{report.bytes_before:,} bytes, then {about}{report.bytes_after:,}"
        )
    elif not report.problems:
        _talk("nothing to do")


def _talk(text: str) -> None:
    print(f"jarvis logs rotate: {printable(text)}", file=sys.stderr)
