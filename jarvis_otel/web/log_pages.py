"""Log records newest first, page by page: the files are read from their end, block by block, and no more than is asked.

A page begins at a place: a day, a byte of its lines and a number within the line there. Files only grow, and an archive
holds the same bytes, so a place stays what it is while records come in and days are archived, and what stands before it
is the same whenever it is asked for.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import NamedTuple

from jarvis_collector import gzip_blocks
from jarvis_collector.layout import archive_path, day_name
from jarvis_otel.query.blocks import LogFile, Part
from jarvis_otel.query.days import archived_days, may_hold, plain_days
from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.files import LOGS, Seen
from jarvis_otel.query.log_query import Criteria
from jarvis_otel.query.otlp_lines import REQUEST_KEYS, RequestLines
from jarvis_otel.query.scan import Found, scan
from jarvis_otel.query.scanner import Scanner
from jarvis_otel.query.times import Interval
from jarvis_otel.web.scans import Budget

__all__ = ["Page", "Place", "Placed", "days_backwards", "newest_page", "open_day"]

_WINDOW_BYTES = 16 << 20
"""So much of an archive that cannot be skipped in is held at once."""

_HELD_BYTES = 16 << 20
"""A page ends where its lines take so much, however few they are."""

_REPEATS_BYTES = 2 << 20
"""A record that was delivered twice is shown once where its repeats lie no further apart, whatever the pages."""

_PLACE = re.compile(r"(\d{4}-\d\d-\d\d)\.(\d{1,15})\.(\d{1,9})", re.ASCII)
_TIME = re.compile(rb'"timestamp":"([0-9TZ:.+-]{10,40})"')
_NEWLINE = ord("\n")
_REQUEST_MARK = b'"%s"' % REQUEST_KEYS[LOGS.signal].encode()


class Place(NamedTuple):
    """Before it stand the earlier days, the earlier lines of its day and the first records of the line at it.

    Attributes:
        day: The day of the file, YYYY-MM-DD.
        offset: Where the line begins among the bytes of the day's lines.
        number: So many of the line's records that match stand before it; of ours each line is one.
    """

    day: str
    offset: int
    number: int

    @classmethod
    def parse(cls, text: str) -> Place:
        """A place as an address names it.

        Raises:
            QueryError: The text names none.
        """
        found = _PLACE.fullmatch(text)
        if found is None:
            raise QueryError("before", f"got {text!r}, want a place as `older` gives it, such as 2026-01-18.1024.0")
        return cls(found[1], int(found[2]), int(found[3]))

    def __str__(self) -> str:
        return f"{self.day}.{self.offset}.{self.number}"


class Placed(NamedTuple):
    """A record and its place: what is before the place is older than the record."""

    found: Found
    place: Place

    @property
    def until(self) -> Place:
        """Before this place the record is the newest one."""
        return self.place._replace(number=self.place.number + 1)


@dataclass(slots=True)
class Page:
    """Records that match, in the reverse order of their arrival.

    Attributes:
        rows: The records.
        older: Before this place are the older ones; None where there are none.
        is_whole: False where the time was over before the page was full: before `older` nobody has looked.
        reached: The time of the oldest record that was looked at, as its line has it; empty if there was none.
        bytes: So much was looked at.
        unreadable: Lines that had to be read and are no records.
        problems: What of archives cannot be read.
    """

    rows: list[Placed] = field(default_factory=list)
    older: Place | None = None
    is_whole: bool = True
    reached: str = ""
    bytes: int = 0
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)


def newest_page(log_dir: Path, criteria: Criteria, size: int, budget: Budget, before: Place | None = None) -> Page:
    """The newest records that match, in the reverse order of their arrival.

    Args:
        log_dir: The directory of the day files.
        criteria: What a record must be.
        size: So many at most; fewer where their lines are long.
        budget: When it is spent, the page is what there is by then.
        before: Only what stands before this place.

    Raises:
        FileNotFoundError: There is no such directory.
        OSError: The files cannot be read.
        GoneError: Nobody wants the answer any more.
    """
    reading = _Reading(criteria, size, budget)
    for day, path in days_backwards(log_dir):
        if before is not None and day > before.day:
            continue
        reading.read_day(day, path, before if before is not None and before.day == day else None)
        if reading.is_done:
            break
    return reading.page


def days_backwards(log_dir: Path) -> list[tuple[str, Path]]:
    """The days of a log directory and a file of each, the newest first.

    Raises:
        FileNotFoundError: There is no such directory.
    """
    # a day that is archived meanwhile has lost its plain name by the time that it is opened, and has the other one
    paths = {_day(path): path for path in plain_days(log_dir)}
    for path in archived_days(log_dir):
        paths.setdefault(_day(path), path)
    return sorted(paths.items(), reverse=True)


def open_day(path: Path, interval: Interval) -> tuple[Path, LogFile] | None:
    """A day's file, or its archive where that has taken its place; None where it is gone or holds nothing of a time."""
    for name in (path,) if path.suffix == ".gz" else (path, archive_path(path)):
        with suppress(FileNotFoundError):
            return (name, LogFile(name)) if may_hold(name, interval) else None
    return None


class _Reading:
    def __init__(self, criteria: Criteria, size: int, budget: Budget) -> None:
        self.page = Page()
        self.is_done = False
        self._criteria = criteria
        self._size = size
        self._budget = budget
        self._held = 0
        self._seen = Seen()

    def read_day(self, day: str, path: Path, before: Place | None) -> None:
        """Takes the records of a day, the last ones first, until the page is full or the time over."""
        opened = open_day(path, self._criteria.interval)
        if opened is None:
            return
        name, file = opened
        with file:
            scanner = Scanner(file, name, LOGS, self._criteria.filters, self._criteria.interval)
            needles = [one.request for one in self._criteria.filters if one.request]
            requests = RequestLines(LOGS.signal, needles, date.fromisoformat(day), self._add_unreadable)
            lines = _Lines(file, scanner.parts(), self.page, self._budget)
            if before is not None:
                self._note_later(lines, requests, before)
            for base, block in lines.backwards(None if before is None else before.offset + (before.number > 0)):
                self._take(block, Place(day, base, 0), requests, before)
                if not self.is_done and self._budget.is_spent:
                    self.page.older, self.page.is_whole = Place(day, base, 0), False
                    self.is_done = True
                if self.is_done:
                    return

    def _take(self, block: bytes, start: Place, requests: RequestLines, before: Place | None) -> None:
        self.page.bytes += len(block)
        for one in reversed(self._placed(block, start, requests)):
            if (before is None or one.place < before) and self._is_first(one.found):
                self.page.rows.append(one)
                self._held += len(one.found.line)
                if len(self.page.rows) >= self._size or self._held > _HELD_BYTES:
                    self.page.older, self.is_done = one.place, True
                    break
        if time := _TIME.search(block):
            self.page.reached = time[1].decode()

    def _placed(self, block: bytes, start: Place, requests: RequestLines) -> list[Placed]:
        """The records of a block that match, each with its place."""
        filters = self._criteria.filters
        placed, at = list[Placed](), 0
        if not requests.may_hold(block):
            return placed
        if _REQUEST_MARK not in block:
            for found in scan((block,), filters, self._add_unreadable):
                at = _line_at(block, found.line, at)
                placed.append(Placed(found, start._replace(offset=start.offset + at)))
                at += len(found.line)
            return placed
        for line in block.split(b"\n")[:-1]:
            for number, found in enumerate(scan(requests.flat(line + b"\n"), filters, self._add_unreadable)):
                placed.append(Placed(found, start._replace(offset=start.offset + at, number=number)))
            at += len(line) + 1
        return placed

    def _note_later(self, lines: _Lines, requests: RequestLines, before: Place) -> None:
        """What follows the place was shown before, on another page; its repeats are not shown again."""
        for base, block in lines.forwards(before.offset, _REPEATS_BYTES):
            for one in self._placed(block, before._replace(offset=base, number=0), requests):
                if one.place >= before:
                    self._is_first(one.found)

    def _is_first(self, found: Found) -> bool:
        identity = LOGS.identity(found.record)
        return identity is None or not self._seen.before(hash(identity))

    def _add_unreadable(self, count: int) -> None:
        self.page.unreadable += count


class _Lines:
    """The lines of a file's parts in blocks, each with its offset among all bytes of the day's lines."""

    def __init__(self, file: LogFile, parts: Sequence[Part], page: Page, budget: Budget) -> None:
        self._file = file
        self._parts = list(_with_starts(file, parts))
        self._page = page
        self._budget = budget

    def backwards(self, end: int | None) -> Iterator[tuple[int, bytes]]:
        """The blocks that begin before an offset, the last one first; no bytes where a part cannot be had in time."""
        for start, part in reversed(self._parts):
            until = end
            while until is None or start < until:
                window = self._window(start, part, until)
                yield from reversed(window)
                if not window or part.raw_size is not None:
                    break
                until = window[0][0]

    def forwards(self, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
        """The blocks in which something from an offset on stands, so many bytes further at least."""
        for start, part in self._parts:
            if part.raw_size is not None and offset < start + part.raw_size and start < offset + size:
                blocks = self._blocks(start, part)
                yield from ((at, block) for at, block in blocks if at + len(block) > offset and at < offset + size)

    def _window(self, start: int, part: Part, until: int | None) -> list[tuple[int, bytes]]:
        """All blocks of a part that begin before an offset; of one that may be of any size the last of them."""
        window: deque[tuple[int, bytes]] = deque()
        held = 0
        for at, block in self._blocks(start, part):
            if until is not None and at >= until:
                break
            window.append((at, block))
            held += len(block)
            while part.raw_size is None and held > _WINDOW_BYTES and len(window) > 1:
                held -= len(window.popleft()[1])
            if part.raw_size is None and self._budget.is_spent:
                self._add_problem("a part of an archive takes too long to read and was passed over")
                return [(start, b"")]
        return list(window)

    def _blocks(self, start: int, part: Part) -> Iterator[tuple[int, bytes]]:
        if part.raw_size is None:
            for block in self._file.blocks(part, self._too_long, self._add_problem):
                yield start, block
                start += len(block)
            return
        long_at: list[int] = []
        blocks: list[bytes] = []
        for block in self._file.blocks(part, lambda _: long_at.append(len(blocks)), self._add_problem):
            blocks.append(block)  # noqa: PERF402 - one by one: what is too long is told in between
        # the length of a line that was passed over is not known: what follows it is placed from the part's end
        end = start + part.raw_size
        self._page.unreadable += len(long_at)
        for number, block in enumerate(blocks):
            if long_at and number == long_at[0]:
                start = end - sum(map(len, blocks[number:]))
            yield start, block
            start += len(block)

    def _too_long(self, count: int) -> None:
        self._page.unreadable += count

    def _add_problem(self, problem: str) -> None:
        if problem not in self._page.problems:
            self._page.problems.append(problem)


def _with_starts(file: LogFile, parts: Sequence[Part]) -> Iterator[tuple[int, Part]]:
    """The parts of a file, each with its offset among all bytes of the lines."""
    if not file.is_gzip:
        yield from ((part.start, part) for part in parts)
        return
    starts, raw = {0: 0}, 0
    for block in gzip_blocks.blocks_of(file.fd):
        raw += block.raw_size
        starts[block.offset + block.size] = raw
    end = 0
    for part in parts:
        start = starts.get(part.start, end)  # what comes after a damage is placed as if nothing were lost
        end = start + (part.raw_size or 0)
        yield start, part


def _line_at(block: bytes, line: bytes, at: int) -> int:
    """Where a line stands in a block that has it from a place on; as a whole line, not within a torn one."""
    at = block.index(line, at)
    while (at and block[at - 1] != _NEWLINE) or block[at + len(line)] != _NEWLINE:
        at = block.index(line, at + 1)
    return at


def _day(path: Path) -> str:
    named = day_name(path.name)
    assert named is not None, path
    return named.day.isoformat()
