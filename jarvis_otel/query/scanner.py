"""What is found in the parts of one file, here or in another process."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from jarvis_collector.layout import day_name
from jarvis_otel.query.blocks import LogFile, Part
from jarvis_otel.query.filters import Filter
from jarvis_otel.query.index import BlockIndex, Counted
from jarvis_otel.query.kinds import Kind, kind_of
from jarvis_otel.query.otlp_lines import RequestLines
from jarvis_otel.query.scan import Found, scan
from jarvis_otel.query.times import Interval

if TYPE_CHECKING:
    from jarvis_otel.query.counts import Counting, Question
    from jarvis_otel.query.fields import Columns

__all__ = ["Notes", "Scanner"]

_BATCH = 1000


class Notes:
    """What one reading of a file meets with.

    Args:
        on_unreadable: Told how many lines are no records, so far.
        on_damage: Told of each damage.

    Attributes:
        unreadable: Lines that are no records, so far.
        damage: What of an archive cannot be inflated.
    """

    def __init__(
        self,
        on_unreadable: Callable[[int], object] = lambda _: None,
        on_damage: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.unreadable = 0
        self.damage: list[str] = []
        self._on_unreadable = on_unreadable
        self._on_damage = on_damage

    def add_unreadable(self, count: int) -> None:
        """Counts lines that are no records."""
        self.unreadable += count
        self._on_unreadable(self.unreadable)

    def add_damage(self, problem: str) -> None:
        """Notes a part of an archive that cannot be inflated."""
        self.damage.append(problem)
        self._on_damage(problem)

    def add(self, unreadable: int, damage: Sequence[str]) -> None:
        """Takes over what another reading met with."""
        if unreadable:
            self.add_unreadable(unreadable)
        for problem in damage:
            self.add_damage(problem)


class Scanner:
    """Reads the parts of one file.

    Args:
        file: The file, open.
        path: Its name.
        kind: What its records are.
        filters: What a record must be.
        interval: Lets parts be passed over.
    """

    def __init__(self, file: LogFile, path: Path, kind: Kind, filters: Sequence[Filter], interval: Interval) -> None:
        self._file = file
        self._path = path
        self._filters = filters
        self._interval = interval
        named = day_name(path.name)
        needles = [one.request for one in filters if one.request]
        self._requests = partial(RequestLines, kind.signal, needles, named.day if named else None)

    def parts(self) -> list[Part]:
        """Those in which something may be found, by the index of the file and the blocks of an archive."""
        facts = [one.facts for one in self._filters if one.facts]
        found, start = [], 0
        if (facts or self._interval != Interval()) and (index := self._index()):
            found, start = index.parts(*self._ends, facts), index.origin.covered
        return found + self._rest(start)

    def counted(self, question: Question, *, first: bool) -> list[Part | Counted]:
        """`parts`, of which some are counted already, in their order.

        Args:
            question: What is counted.
            first: Whether no other file was counted before.
        """
        if not (question.is_indexed and self._is_plain and (index := self._index(counts=True))):
            return [*self.parts()]
        return [*index.counted(*self._ends, first=first), *self._rest(index.origin.covered)]

    @property
    def _ends(self) -> tuple[bytes, bytes]:
        since, until = self._interval.line_times()
        return since.encode(), until.encode()

    @property
    def _is_plain(self) -> bool:
        """Whether all is wanted that is of the interval."""
        return all(one.is_interval for one in self._filters)

    def _index(self, *, counts: bool = False) -> BlockIndex | None:
        if kind_of(self._path) is None:
            return None
        return BlockIndex.load(self._path, self._file.fd, counts=counts)

    def _rest(self, start: int) -> list[Part]:
        since, until = self._ends
        return self._file.parts(start, lambda earliest, latest: since <= latest and earliest <= until)

    def found(self, part: Part, notes: Notes) -> Iterator[Found]:
        """The records of a part that pass all filters."""
        requests = self._requests(notes.add_unreadable)
        blocks = self._file.blocks(part, notes.add_unreadable, notes.add_damage)
        return scan((lines for block in blocks for lines in requests.flat(block)), self._filters, notes.add_unreadable)

    def columns(self, part: Part, keys: Sequence[str], notes: Notes) -> Iterator[Columns]:
        """Some fields of the records of a part that pass all filters."""
        from jarvis_otel.query.fields import FieldReader  # noqa: PLC0415 - most questions count nothing

        fields = FieldReader(keys, notes.add_unreadable)
        if not self._is_plain:
            found = self.found(part, notes)
            while (batch := fields.pick(islice(found, _BATCH))).times:
                yield batch
            return
        requests = self._requests(notes.add_unreadable)
        since, until = self._interval.line_times()
        for block in self._file.blocks(part, notes.add_unreadable, notes.add_damage):
            all_ = fields.quick(block) or fields.each(requests.flat(block))
            if since <= all_.earliest and all_.latest <= until:
                yield all_
            else:
                yield all_.where([since <= time <= until for time in all_.times])

    def pack_found(self, part: Part) -> bytes:
        """`found` in bytes, with what was met with."""
        notes = Notes()
        found = [(one.time, one.line) for one in self.found(part, notes)]
        return marshal.dumps((notes.unreadable, notes.damage, found))

    def pack_counts(self, counting: Counting, part: Part) -> bytes:
        """`columns` counted, in bytes, with what was met with and the hashes of the uids."""
        from jarvis_otel.query.repeats import hashes_of  # noqa: PLC0415 - most questions count nothing

        notes, uids = Notes(), array("q")

        def noted(columns: Iterable[Columns]) -> Iterator[Columns]:
            for each in columns:
                uids.extend(hashes_of(each.uids))
                yield each

        counts = counting.count(noted(self.columns(part, counting.keys, notes)))
        return marshal.dumps((notes.unreadable, notes.damage, tuple(counts), uids.tobytes()))
