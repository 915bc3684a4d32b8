"""Files as a source of records: which of them, in which order, and each record once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from jarvis_collector import gzip_blocks
from jarvis_collector.layout import ARCHIVE, COMPONENTS, LOGS_STREAM, STREAMS, archive_path, day_name
from jarvis_collector.otlp import Signal
from jarvis_collector.sidecar import read_sidecar
from jarvis_otel.query.blocks import read_blocks
from jarvis_otel.query.filters import Filter, Record
from jarvis_otel.query.otlp_lines import RequestLines
from jarvis_otel.query.scan import Found, scan
from jarvis_otel.query.times import Interval

__all__ = ["LOGS", "SPANS", "Kind", "LogFiles", "Seen", "Tally"]

_SEEN_MAX = 1 << 18


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the collector's signals: how its files are called, what its records are, and what makes one unique.

    Attributes:
        stream: How the names of its day files begin.
        signal: What the requests of the real Collector carry it as.
        includes: Whether a record is one of its own, where the file's name does not tell.
        identity: Equal for repeats of one record; None where a record cannot be told from others.
    """

    stream: str
    signal: Signal
    includes: Callable[[Record], bool]
    identity: Callable[[Record], object]


def _is_span(record: Record) -> bool:
    return "level" not in record and "kind" in record and "status" in record


def _is_log(record: Record) -> bool:
    return not _is_span(record) and "resourceMetrics" not in record


def _record_identity(record: Record) -> object:
    meta = record.get("_meta")
    uid = meta.get("uid") if isinstance(meta, dict) else None
    return uid if isinstance(uid, str) else None


def _span_identity(record: Record) -> object:
    ids = (record.get("trace_id"), record.get("span_id"))
    return ids if all(isinstance(part, str) for part in ids) else None


LOGS = Kind(LOGS_STREAM, Signal.LOGS, _is_log, _record_identity)
SPANS = Kind("traces", Signal.TRACES, _is_span, _span_identity)


@dataclass(slots=True)
class Tally:
    """What reading met with, counted.

    Attributes:
        files: Files read.
        files_passed_over: Files whose sidecar says that nothing in them can match.
        unreadable: Lines and records by file that had to be read and cannot be: torn, foreign, too long or too deep.
            Of a file that was read several times, the most that were met with at once.
        damaged: What of archives cannot be inflated, a line for each place.
        repeats: Records found again with the same uid.
    """

    files: int = 0
    files_passed_over: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    repeats: int = 0


class _Source(NamedTuple):
    """A day, or a named file.

    Attributes:
        paths: The names that it may have, the one that it has first in its life first.
        both: Whether both its plain file and its archive were there.
        named: Whether it was asked for by name, so that it must be there.
        mixed: Whether records of other kinds may stand in it.
    """

    paths: tuple[Path, ...]
    both: bool = False
    named: bool = False
    mixed: bool = False


class LogFiles:
    """The day files of a log directory, or files that are named one by one.

    Args:
        place: The log directory; or files, plain or gzip, which are read in the order in which they are given.
        tally: Where what is met with is counted.
    """

    def __init__(self, place: Path | Sequence[Path], tally: Tally) -> None:
        self._place = place
        self._tally = tally

    def records(self, kind: Kind, filters: Sequence[Filter], interval: Interval) -> Iterator[Found]:
        """The records that pass all filters, in the order in which they arrived, each once.

        Repeats are known for the last quarter of a million found records at least (by a 64-bit hash of the uid),
        which bounds the memory; redelivery follows within seconds to hours of the first delivery.

        Args:
            kind: Log records or spans.
            filters: What a record must be; the filter that excludes most comes first.
            interval: Lets whole files, and parts of archives, be passed over; it does not replace the interval's
                filter.

        Raises:
            OSError: The directory or one of the files cannot be read.
        """
        seen = Seen()
        for source in _days(self._place, kind) if isinstance(self._place, Path) else _named(self._place, kind):
            for found in self._read(source, kind, filters, interval):
                identity = kind.identity(found.record)
                if identity is not None and seen.before(hash(identity)):
                    self._tally.repeats += 1
                else:
                    yield found

    def _read(self, source: _Source, kind: Kind, filters: Sequence[Filter], interval: Interval) -> Iterator[Found]:
        """The records of a source: of its first name that is there, for that is complete until it goes.

        Only where a clock that went back made a day grow that was archived before, each holds what the other does not.
        """
        if source.mixed:
            filters = [*filters, Filter(kind.includes)]
        all_of_them = source.both and not _is_archived_as(*source.paths)
        for path in source.paths:
            try:
                if _may_hold(path, interval):
                    yield from self._scan(path, kind, filters, interval)
                else:
                    self._tally.files_passed_over += 1
            except FileNotFoundError:
                if source.named:
                    raise
                continue  # archived or purged since the directory was listed
            if not all_of_them:
                return

    def _scan(self, path: Path, kind: Kind, filters: Sequence[Filter], interval: Interval) -> Iterator[Found]:
        named = day_name(path.name)
        counted = 0

        def unreadable(count: int) -> None:
            nonlocal counted
            counted += count
            self._tally.unreadable[path.name] = max(counted, self._tally.unreadable.get(path.name, 0))

        requests = RequestLines(
            kind.signal, [one.request for one in filters if one.request], named.day if named else None, unreadable
        )
        since, until = (end.encode() for end in interval.line_times())
        blocks = read_blocks(
            path,
            lambda: unreadable(1),
            lambda earliest, latest: since <= latest and earliest <= until,
            self._note_damage,
        )
        first = next(blocks, b"")  # opens it
        self._tally.files += 1
        flat = (lines for block in chain((first,), blocks) for lines in requests.flat(block))
        return scan(flat, filters, unreadable)

    def _note_damage(self, problem: str) -> None:
        if problem not in self._tally.damaged:  # a file may be read several times
            self._tally.damaged.append(problem)


def _days(directory: Path, kind: Kind) -> list[_Source]:
    """The days of a log directory, oldest first.

    A file that is being archived has first only its plain name, then both, then that of the archive. So plain
    names are listed first: a day that loses its own meanwhile is found under the other one when it is opened.
    """
    days: dict[str, _Source] = {}
    for path in directory.iterdir():
        if _is_day(path, kind, archived=False):
            days[path.name] = _Source((path, archive_path(path)))
    for path in directory.glob(f"{ARCHIVE}/*/{kind.stream}-*.gz"):
        if _is_day(path, kind, archived=True):
            plain = directory / path.name.removesuffix(".gz")
            days[plain.name] = _Source((plain, path), both=plain.name in days)
    return [days[name] for name in sorted(days)]


def _named(files: Sequence[Path], kind: Kind) -> Iterator[_Source]:
    for path in files:
        named = day_name(path.name)
        known = named is not None and named.stream in STREAMS and path.parent.name != COMPONENTS
        if not known or (named and named.stream == kind.stream):
            yield _Source((path,), named=True, mixed=not known)


def _is_day(path: Path, kind: Kind, *, archived: bool) -> bool:
    named = day_name(path.name)
    return named is not None and named.stream == kind.stream and named.archived == archived


def _is_archived_as(plain: Path, archive: Path) -> bool:
    """Whether an archive holds what a plain file does, and no more."""
    try:
        return sum(block.raw_size for block in gzip_blocks.blocks(archive)) == plain.stat().st_size
    except FileNotFoundError:
        return True  # only one of them is there any more


def _may_hold(path: Path, interval: Interval) -> bool:
    """Whether a file's sidecar leaves it open that there are records of the interval; it counts only at its size.

    Raises:
        FileNotFoundError: There is no such file.
    """
    size = path.stat().st_size
    known = read_sidecar(path)
    if known is None or known[0] != size:
        return True
    since, until = (end.encode() for end in interval.line_times())
    earliest, latest = known[1]
    return since <= latest and earliest <= until


class Seen:
    """Remembers hashes: the last `_SEEN_MAX` for sure, at most twice as many."""

    def __init__(self) -> None:
        self._young: set[int] = set()
        self._old: set[int] = set()

    def before(self, value: int) -> bool:
        """Whether the value was here before; from now on it was."""
        if value in self._young or value in self._old:
            return True
        if len(self._young) >= _SEEN_MAX:
            self._old, self._young = self._young, set()
        self._young.add(value)
        return False
