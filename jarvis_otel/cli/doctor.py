"""`jarvis doctor`: whether everything here works, and what to do where it does not."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from jarvis_otel.cli.command import print_json
from jarvis_otel.settings import Settings
from jarvis_otel.terminal import DONE, NO, Paint, printable, wants_color

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  jarvis doctor
  jarvis doctor --ship     # delivers what processes left in the spool that are gone

Exit code 0: all is well. 1: something is not, and its line says what to do.
"""
_RECENT_DAYS = 7
_COLLECTOR_START = b'{"resource'
_FORM_BYTES = 64
_TAIL_BYTES = 1 << 16
_TAIL_MAX_BYTES = 64 << 20
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


class Finding(NamedTuple):
    """What was looked at, and how it is.

    Attributes:
        what: settings, flags, etcd, collector, spool, logs, alerts.
        state: ok, warning or problem.
        text: How it is.
        cure: What to do; empty where all is well.
    """

    what: str
    state: str
    text: str
    cure: str = ""


def add_parser(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `doctor` to the command line."""
    parser = commands.add_parser(
        "doctor",
        help="check that everything works; deliver what was left behind",
        description="Checks settings, flags, collector, spool and log directory of this project.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--ship", action="store_true", help="deliver the records of processes that are gone, then check"
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="for --ship, at most (default: 60)"
    )
    parser.add_argument("--format", choices=("human", "json"), default="human", help="how to print (default: human)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Prints what was found; 0 where nothing is wrong, 1 otherwise."""
    settings = Settings.load()
    findings = [*_settings(settings), *_flags(settings), *_etcd(settings), *_collector(settings)]
    if args.ship:
        findings.append(_ship(settings, args.timeout))
    findings += [*_spool(settings), *_logs(settings), *_alerts(settings)]
    if args.format == "json":
        print_json([finding._asdict() for finding in findings])
    else:
        paint = Paint(color=wants_color(sys.stdout))
        for finding in findings:
            mark, color = _MARKS[finding.state]
            cure = f"; {finding.cure}" if finding.cure else ""
            print(f"{paint(mark, color)} {finding.what:<9}  {printable(finding.text + cure)}")
    return DONE if all(finding.state != "problem" for finding in findings) else NO


def _settings(settings: Settings) -> Iterator[Finding]:
    for problem in settings.problems:
        yield Finding("settings", "problem", problem, "its default is used")
    if not settings.problems:
        yield Finding("settings", "ok", f"project {settings.flags.home}")


def _flags(settings: Settings) -> Iterator[Finding]:
    from jarvis_otel.manager import FeatureFlagManager  # noqa: PLC0415

    file = settings.flags.flags_file
    if not file.exists():
        yield Finding("flags", "warning", f"there is no {file}", "every flag is its caller's default")
        return
    # what is wrong with the files is a finding, and needs no second line
    logging.getLogger("jarvis_flags").addHandler(logging.NullHandler())
    logging.getLogger("jarvis_flags").propagate = False
    manager = FeatureFlagManager.of_process()
    try:
        manager.use(settings.flags)
        snapshot = manager.source.snapshot
        for problem in snapshot.problems:
            yield Finding("flags", "problem", str(problem), "see: jarvis flags lint")
        if not snapshot.problems:
            yield Finding("flags", "ok", f"{len(snapshot.definitions)} in {file}, environment {snapshot.environment}")
    finally:
        manager.close()


def _etcd(settings: Settings) -> Iterator[Finding]:
    if settings.flags.store == "etcd":
        from jarvis_otel.etcd.cluster import cluster_findings  # noqa: PLC0415 - brings an HTTP client

        for finding in cluster_findings(settings.flags.etcd):
            yield Finding("etcd", *finding)


def _collector(settings: Settings) -> Iterator[Finding]:
    if settings.sdk_disabled:
        yield Finding("collector", "warning", "OTEL_SDK_DISABLED: nothing is exported")
        return
    from jarvis_otel.pipeline import Pipeline  # noqa: PLC0415

    pipeline = Pipeline.of(settings, {}, quiet=True)
    if pipeline is None:
        yield Finding("collector", "warning", "OTEL_LOGS_EXPORTER: records are not exported")
        return
    answer = pipeline.probe()
    pipeline.shutdown(0.0)
    if 200 <= answer.status < 300:
        yield Finding("collector", "ok", f"{pipeline.endpoint} answers")
    elif answer.status:
        yield Finding(
            "collector", "problem", f"{pipeline.endpoint} answers {answer.reason}", "is that an OTLP/HTTP port?"
        )
    else:
        yield Finding("collector", "problem", f"{pipeline.endpoint}: {answer.reason}", "start one: jarvis collector")


def _ship(settings: Settings, timeout: float) -> Finding:
    from jarvis_otel.pipeline import Pipeline  # noqa: PLC0415

    pipeline = Pipeline.of(settings, {}, quiet=True)
    if pipeline is None:
        return Finding("shipped", "problem", "nothing: records are not exported", "see OTEL_LOGS_EXPORTER")
    shipped = pipeline.ship_orphans(timeout)
    dropped = sum(pipeline.counters().dropped.values())
    pipeline.shutdown(0.0)
    refused = f", {dropped:,} refused" if dropped else ""
    return Finding("shipped", "warning" if dropped else "ok", f"{shipped:,} records{refused}")


def _spool(settings: Settings) -> Iterator[Finding]:
    from jarvis_otel.spool import adopt, usage  # noqa: PLC0415

    directory = settings.spool_dir
    waiting = owners = 0
    for orphan in adopt(directory):
        with orphan:
            waiting += len(orphan)
            owners += 1
    used = usage(directory)
    size = f"{used.bytes / 2**20:.0f} of {settings.spool_max_bytes / 2**20:.0f} MiB"
    text = f"{directory}: {size}, {used.owners - owners} processes live"
    if waiting:
        cure = "the next process delivers them, or: jarvis doctor --ship"
        yield Finding("spool", "warning", f"{text}; {waiting:,} records of {owners} that are gone", cure)
    else:
        yield Finding("spool", *_writable(directory, text))


def _logs(settings: Settings) -> Iterator[Finding]:
    directory = settings.log_dir
    days = sorted(directory.glob("jarvis-*.jsonl"))
    text = f"{directory}: {days[-1].name} is the latest" if days else f"{directory}: no records yet"
    yield Finding("logs", *_writable(directory, text))
    mixed = [path.name for stream in ("jarvis", "traces") for path in _recent(directory, stream) if _is_mixed(path)]
    if mixed:
        text = f"{directory}: lines of ours and of the real Collector in one file: {', '.join(mixed)}"
        yield Finding("logs", "warning", text, "they are read all the same, but two collectors write there: stop one")


def _alerts(settings: Settings) -> Iterator[Finding]:
    if not settings.alerts.kinds:
        return
    from jarvis_otel.alerts.service import is_on_duty, why_silent  # noqa: PLC0415
    from jarvis_otel.alerts.state import read_status  # noqa: PLC0415

    if why := why_silent(settings):
        yield Finding("alerts", "problem", why)
        return
    if not is_on_duty(settings):
        cure = "start jarvis alerts, or jarvis web or telegram, which do it too"
        yield Finding("alerts", "warning", "no process tells of anything now", cure)
    status = read_status(settings.flags.state_dir) or {}
    for problem in status.get("problems", ()):
        yield Finding("alerts", "warning", str(problem))
    for sink in status.get("sinks", ()):
        text = f"{sink['sink']}: {sink['alerts']:,} told, {sink['left_out']:,} of them only as a number"
        text += f"; {sink['refused']:,} refused" if sink["refused"] else ""
        if sink["problem"]:
            cure = "set it right, then: jarvis alerts --test"
            yield Finding("alerts", "problem", f"{text}; {sink['waiting']:,} wait: {sink['problem']}", cure)
        else:
            yield Finding("alerts", "ok", text)


def _recent(directory: Path, stream: str) -> list[Path]:
    return sorted(directory.glob(f"{stream}-*.jsonl"))[-_RECENT_DAYS:]


def _is_mixed(path: Path) -> bool:
    """Whether the first and the last line of a day file are of two collectors; all lines would take too long."""
    try:
        with path.open("rb") as file:
            first = file.read(_FORM_BYTES)
            last = _last_line_start(file)
    except OSError:
        return False  # archived meanwhile, or not ours to read
    return {first.startswith(_COLLECTOR_START), last.startswith(_COLLECTOR_START)} == {True, False} and bool(last)


def _last_line_start(file: BinaryIO) -> bytes:
    """The first bytes of the last line that ends; empty where it is too long to look for."""
    size = file.seek(0, os.SEEK_END)
    tail = b""
    while len(tail) < min(size, _TAIL_MAX_BYTES):
        at = max(0, size - max(2 * len(tail), _TAIL_BYTES))
        file.seek(at)
        tail = file.read(size - at)
        end = tail.rfind(b"\n")
        start = tail.rfind(b"\n", 0, max(end, 0)) + 1
        if end >= 0 and (start or at == 0):
            return tail[start : min(end, start + _FORM_BYTES)]
    return b""


def _writable(directory: Path, text: str) -> tuple[str, str, str]:
    """State, text and cure of a directory that is made where it is missing."""
    there = directory
    while not there.exists() and there != there.parent:
        there = there.parent
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return "ok", text, ""
    return "problem", text, f"{there} cannot be written"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"got {text!r}, want seconds from 0 to 86400")
    return seconds
