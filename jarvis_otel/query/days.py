"""The day files of a log directory by name, and what their sidecars say."""

from __future__ import annotations

import os
from pathlib import Path

from jarvis_collector.layout import ARCHIVE, LOGS_STREAM, day_name
from jarvis_collector.sidecar import read_sidecar
from jarvis_otel.query.times import Interval

__all__ = ["archived_days", "may_hold", "plain_days"]


def plain_days(directory: Path, stream: str = LOGS_STREAM) -> list[Path]:
    """The day files that are not archived, oldest first.

    Raises:
        OSError: The directory cannot be read.
    """
    names = os.listdir(directory)  # noqa: PTH208 - who follows a log asks five times a second
    return [directory / name for name in sorted(names) if _is_day(name, stream, archived=False)]


def archived_days(directory: Path, stream: str = LOGS_STREAM) -> list[Path]:
    """The day files that are archived, oldest first."""
    paths = directory.glob(f"{ARCHIVE}/*/{stream}-*.gz")
    return sorted((path for path in paths if _is_day(path.name, stream, archived=True)), key=lambda path: path.name)


def may_hold(path: Path, interval: Interval) -> bool:
    """Whether a file's sidecar, if it is of the file's size, leaves room for records of the interval.

    Raises:
        FileNotFoundError: There is no such file.
    """
    size, known = path.stat().st_size, read_sidecar(path)
    if known is None or known[0] != size:
        return True
    since, until = (end.encode() for end in interval.line_times())
    return since <= known[1][1] and known[1][0] <= until


def _is_day(name: str, stream: str, *, archived: bool) -> bool:
    named = day_name(name)
    return named is not None and named.stream == stream and named.archived == archived
