"""Files as a source of records: which of them, in which order, and each record once."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from jarvis_collector.layout import COMPONENTS, STREAMS, archive_path, day_name
from jarvis_otel.query.blocks import LogFile, Part
from jarvis_otel.query.days import archived_days, may_hold, plain_days
from jarvis_otel.query.filters import Filter
from jarvis_otel.query.index import Counted
from jarvis_otel.query.kinds import LOGS, SPANS, Kind
from jarvis_otel.query.repeats import Seen, first_of
from jarvis_otel.query.scan import Found, content_of
from jarvis_otel.query.scanner import Notes, Scanner
from jarvis_otel.query.times import Interval
from jarvis_otel.query.workers import in_order

if TYPE_CHECKING:
    from jarvis_otel.query.counts import Counts, Question
    from jarvis_otel.query.fields import Columns

__all__ = ["LOGS", "SPANS", "Kind", "LogFiles", "Seen", "Tally"]

_ALONE_BYTES = 48 << 20
"""Less is scanned sooner by one process than others are started."""

_T = TypeVar("_T")


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
        bytes: Of the parts of files that were looked at, as far as they tell their size.
    """

    files: int = 0
    files_passed_over: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    repeats: int = 0
    bytes: int = 0


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
        workers: How many processes scan a large file.
        on_part: Called before each part of a file is read; what it raises ends the reading.
    """

    def __init__(
        self,
        place: Path | Sequence[Path],
        tally: Tally,
        workers: int = 1,
        on_part: Callable[[], object] = lambda: None,
    ) -> None:
        self._place = place
        self._tally = tally
        self._workers = workers
        self._on_part = on_part

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
            scan = partial(self._scan, kind=kind, filters=_filters(source, kind, filters), interval=interval)
            for found in self._read(source, interval, scan):
                identity = kind.identity(found.record)
                if identity is not None and seen.before(hash(identity)):
                    self._tally.repeats += 1
                else:
                    yield found

    def counts(self, filters: Sequence[Filter], interval: Interval, question: Question) -> Iterator[Counts]:
        """The log records that pass all filters, each counted once, as `records` would give them; part by part.

        Args:
            filters: What a record must be.
            interval: As for `records`.
            question: What is counted.

        Raises:
            OSError: The directory or one of the files cannot be read.
        """
        seen = Seen()
        for source in _days(self._place, LOGS) if isinstance(self._place, Path) else _named(self._place, LOGS):
            own = _filters(source, LOGS, filters)
            scan = partial(self._count, filters=own, interval=interval, question=question, seen=seen)
            yield from self._read(source, interval, scan)

    def _read(self, source: _Source, interval: Interval, scan: Callable[[Path], Iterator[_T]]) -> Iterator[_T]:
        """What a scan finds in a source: in its first name that is there, for that is complete until it goes.

        Only where a clock that went back made a day grow that was archived before, each holds what the other does not.
        """
        all_of_them = source.both and not _is_archived_as(*source.paths)
        for path in source.paths:
            try:
                if may_hold(path, interval):
                    yield from scan(path)
                else:
                    self._tally.files_passed_over += 1
            except FileNotFoundError:
                if source.named:
                    raise
                continue  # archived or purged since the directory was listed
            if not all_of_them:
                return

    def _scan(self, path: Path, kind: Kind, filters: Sequence[Filter], interval: Interval) -> Iterator[Found]:
        with LogFile(path) as file:
            notes = self._opened(path)
            scanner = Scanner(file, path, kind, filters, interval)
            for part, packed in self._packed(scanner.parts(), scanner.pack_found):
                if packed is None:
                    yield from scanner.found(part, notes)
                else:
                    unreadable, damage, found = marshal.loads(packed)  # noqa: S302 - of our own fork
                    notes.add(unreadable, damage)
                    for time, line in found:
                        yield Found(time, content_of(line), line)

    def _count(
        self, path: Path, filters: Sequence[Filter], interval: Interval, question: Question, seen: Seen
    ) -> Iterator[Counts]:
        from jarvis_otel.query.counts import Counting, Counts  # noqa: PLC0415 - most questions count nothing

        with LogFile(path) as file:
            notes = self._opened(path)
            scanner = Scanner(file, path, LOGS, filters, interval)
            counting = Counting(question)

            def once(columns: Iterable[Columns]) -> Iterator[Columns]:
                for each in columns:
                    first = first_of(each, seen)
                    self._tally.repeats += len(each.times) - len(first.times)
                    yield first

            pieces = scanner.counted(question, first=seen.is_empty)
            parts = [piece for piece in pieces if isinstance(piece, Part)]
            packed_parts = self._packed(parts, partial(scanner.pack_counts, counting))
            for piece in pieces:
                if isinstance(piece, Counted):
                    self._on_part()
                    if seen.are_new(piece.uids, apart=piece.apart):
                        yield counting.sum(piece)
                    else:
                        yield counting.count(once(scanner.columns(piece.part, counting.keys, notes)))
                    continue
                part, packed = next(packed_parts)
                if packed is None:
                    yield counting.count(once(scanner.columns(part, counting.keys, notes)))
                    continue
                unreadable, damage, counts, uids = marshal.loads(packed)  # noqa: S302 - of our own fork
                notes.add(unreadable, damage)
                hashes = array("q")
                hashes.frombytes(uids)
                if seen.are_new(hashes):
                    yield Counts(*counts)
                else:
                    yield counting.count(once(scanner.columns(part, counting.keys, Notes())))

    def _packed(self, parts: Sequence[Part], pack: Callable[[Part], bytes]) -> Iterator[tuple[Part, bytes | None]]:
        """Each part with what other processes made of it; without that where it is better done here."""
        bounded = [part for part in parts if part.raw_size is not None]
        others = parts[len(bounded) :]  # what follows the blocks of an archive may be of any size
        if self._workers < 2 or sum(part.raw_size or 0 for part in bounded) < _ALONE_BYTES:
            bounded, others = [], parts
        done = chain(
            zip(bounded, in_order(pack, bounded, self._workers), strict=True), ((part, None) for part in others)
        )
        for part, packed in done:
            self._on_part()
            self._tally.bytes += part.raw_size or 0
            yield part, packed

    def _opened(self, path: Path) -> Notes:
        self._tally.files += 1

        def unreadable(count: int) -> None:
            self._tally.unreadable[path.name] = max(count, self._tally.unreadable.get(path.name, 0))

        return Notes(unreadable, self._note_damage)

    def _note_damage(self, problem: str) -> None:
        if problem not in self._tally.damaged:  # a file may be read several times
            self._tally.damaged.append(problem)


def _filters(source: _Source, kind: Kind, filters: Sequence[Filter]) -> Sequence[Filter]:
    return [*filters, Filter(kind.includes)] if source.mixed else filters


def _days(directory: Path, kind: Kind) -> list[_Source]:
    """The days of a log directory, oldest first.

    A file that is being archived has first only its plain name, then both, then that of the archive. So plain
    names are listed first: a day that loses its own meanwhile is found under the other one when it is opened.
    """
    days = {path.name: _Source((path, archive_path(path))) for path in plain_days(directory, kind.stream)}
    for path in archived_days(directory, kind.stream):
        plain = directory / path.name.removesuffix(".gz")
        days[plain.name] = _Source((plain, path), both=plain.name in days)
    return [days[name] for name in sorted(days)]


def _named(files: Sequence[Path], kind: Kind) -> Iterator[_Source]:
    for path in files:
        named = day_name(path.name)
        known = named is not None and named.stream in STREAMS and path.parent.name != COMPONENTS
        if not known or (named and named.stream == kind.stream):
            yield _Source((path,), named=True, mixed=not known)


def _is_archived_as(plain: Path, archive: Path) -> bool:
    """Whether an archive holds what a plain file does, and no more."""
    from jarvis_collector import gzip_blocks  # noqa: PLC0415 - few days have both

    try:
        return sum(block.raw_size for block in gzip_blocks.blocks(archive)) == plain.stat().st_size
    except FileNotFoundError:
        return True  # only one of them is there any more
