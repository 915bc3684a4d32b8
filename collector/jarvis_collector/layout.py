"""How the files of a log directory are called, and where each stands.

logs/jarvis-2026-03-01.jsonl                       a day of log records; traces- and metrics- beside it
logs/jarvis-2026-03-01.meta.json                   its sidecar, see `sidecar`
logs/components/trading-2026-03-01.jsonl           the records of one service once more, where that is wanted
logs/archive/2026-03/jarvis-2026-03-01.jsonl.gz    a day that was archived, with a sidecar too
logs/.index/jarvis-2026-03-01.jsonl.idx            the index of a day file, if there is one; in archive/2026-03/ too
"""

from __future__ import annotations

import re
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "ARCHIVE",
    "COMPONENTS",
    "LOGS_STREAM",
    "STREAMS",
    "DayName",
    "archive_path",
    "component_path",
    "day_name",
    "day_of",
    "day_path",
    "index_path",
    "sidecar_path",
]

LOGS_STREAM = "jarvis"
STREAMS = (LOGS_STREAM, "traces", "metrics")
COMPONENTS = "components"
ARCHIVE = "archive"

_NAME = re.compile(r"(?P<stream>.+)-(?P<day>\d{4}-\d\d-\d\d)\.jsonl(?P<archived>\.gz)?", re.ASCII | re.DOTALL)
_UNSAFE = re.compile(r"[^a-z0-9._-]")
_SERVICE_MAX = 64


class DayName(NamedTuple):
    """What the name of a day file says.

    Attributes:
        stream: `jarvis`, `traces` or `metrics`; of a component file its service.
        day: The day of arrival in UTC.
        archived: Whether it is compressed.
    """

    stream: str
    day: date
    archived: bool


def day_name(name: str) -> DayName | None:
    """What a file's name says; None where it is not the name of a day file."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        return DayName(match["stream"], date.fromisoformat(match["day"]), match["archived"] is not None)
    except ValueError:
        return None


def day_of(unix_nano: int) -> str:
    """The UTC day of a time, as file names have it."""
    return time.strftime("%Y-%m-%d", time.gmtime(unix_nano // 1_000_000_000))


def day_path(log_dir: Path, stream: str, day: str) -> Path:
    """Where a day of a stream is written."""
    return log_dir / f"{stream}-{day}.jsonl"


def component_path(log_dir: Path, service: str, day: str) -> Path:
    """Where the records of one service are written once more.

    The service is whatever a client sends: what is no harmless file name is replaced, and then a hash keeps two
    services apart (on file systems that ignore case too).
    """
    safe = _UNSAFE.sub("_", service.lower())[:_SERVICE_MAX].lstrip(".-") or "_"
    if safe != service:
        from hashlib import blake2s  # noqa: PLC0415 - it brings all of OpenSSL, and few names want it

        safe = f"{safe}-{blake2s(service.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"
    return day_path(log_dir / COMPONENTS, safe, day)


def archive_path(path: Path) -> Path:
    """Where a day file of a log directory stands once it is archived; component files have a folder of their own."""
    named = day_name(path.name)
    assert named is not None, path
    component = path.parent.name == COMPONENTS
    log_dir = path.parent.parent if component else path.parent
    month = log_dir / ARCHIVE / f"{named.day:%Y-%m}"
    return (month / COMPONENTS if component else month) / f"{path.name}.gz"


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of a day file, plain or archived, stands."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".jsonl") + ".meta.json")


def index_path(path: Path) -> Path:
    """Where the index of a day file, plain or archived, stands."""
    return path.parent / ".index" / f"{path.name}.idx"
