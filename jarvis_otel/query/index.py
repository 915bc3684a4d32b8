"""The index of a day file: of each block of its lines, which questions cannot find anything there.

`.index/NAME.idx` beside the file is a header, a table with an entry for each block, the names of services and the id
filters of the blocks. A block is about 512 KiB of whole lines, or a block of an archive. Its entry tells the range of
its timestamps, its levels, its services and, by a Bloom filter, the correlation and trace ids that may be in it. What
follows the last block, where the file has grown since, is not known and has to be read.

Behind them stands what spares a question that counts log records the lines: of each block how many there are by minute,
level and service, and hashes of their uids, by which it is known that none was there before. A block has no counts
where a line of it is no record, or of a level or service that the index has no number for.

An index counts only where it is whole and of this very file: a checksum is over each of its two halves, and the header
has the file's inode, its size and the time of its last change; and where it has grown, a hash of the indexed bytes'
ends. So one that is stale or corrupt is like none. Without it the answers are the same.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, starmap
from pathlib import Path
from typing import NamedTuple

import mmh3

from jarvis_collector.layout import index_path
from jarvis_otel.query.blocks import Part
from jarvis_otel.query.filters import Facts

__all__ = [
    "HASHES",
    "LEVEL_BITS",
    "OTHERS",
    "SERVICES_MAX",
    "UNCOUNTED",
    "UNKNOWN",
    "BlockIndex",
    "Counted",
    "Entry",
    "Origin",
    "Row",
    "hashes",
    "pack_entries",
    "pack_rows",
]

_MAGIC = b"jarvis index 3\n\0"
_CHECKSUM = 16
# inode, size, time of the last change, indexed bytes, hash of their ends, blocks, bytes of the names and of the
# filters, blocks that are apart, checksum of the counts
_HEADER = struct.Struct("<QQqQ16sIIQI16s")
_ENTRY = struct.Struct("<QQQ27s27sBQQIII")
# minute, level, service, records
_ROW = struct.Struct("<16sBBI")
_UID_BYTES = 8
_ENDS = 4096
_BYTES_MAX = 256 << 20
_PART_BYTES = 4 << 20

HASHES = 5
"""So many bits of a filter does an id set: of 16 bits for each id, one block in 700 is read in vain."""
SERVICES_MAX = 63
OTHERS = 1 << SERVICES_MAX
"""The bit of all services beyond the first 63 of a file."""
UNKNOWN = 0x80
"""The bit among the levels of a block of which nothing is known."""
LEVEL_BITS: Mapping[str, int] = {"DEBUG": 1, "INFO": 2, "WARNING": 4, "ERROR": 8, "CRITICAL": 16}
UNCOUNTED = 0xFFFFFFFF
"""So many rows has a block that was not counted."""

_LEVELS = dict(zip([*LEVEL_BITS, None], range(len(LEVEL_BITS) + 1), strict=True))
_NO_SERVICE = 0xFF

Row = tuple[str, str | None, str | None, int]
"""A minute, `2026-01-18T13:30`, a level, a service, and how many records there are of these."""


class Entry(NamedTuple):
    """What is known of a block.

    Attributes:
        offset, size: Where it stands in the file.
        raw_size: The bytes of its lines.
        earliest, latest: The range of its timestamps; the earliest is the later one where it has no records.
        levels: Bits of `LEVEL_BITS`, or `UNKNOWN`.
        services: A bit for each of the file's services, or `OTHERS`.
        filter_at, filter_size: Where its id filter stands among the filters.
        rows: So many are its counts, or `UNCOUNTED`.
        uids: So many of its records have a uid.
    """

    offset: int
    size: int
    raw_size: int
    earliest: bytes
    latest: bytes
    levels: int
    services: int
    filter_at: int
    filter_size: int
    rows: int
    uids: int


class Counted(NamedTuple):
    """A part of a file whose records were counted when it was indexed.

    Attributes:
        part: Where they stand.
        earliest, latest: The range of their timestamps.
        rows: The counts, in the order in which the first record of each stands there.
        uids: Hashes of their uids.
        apart: Whether no uid is known to be there twice, see `Seen.are_new`.
    """

    part: Part
    earliest: str
    latest: str
    rows: Iterator[Row]
    uids: array[int]
    apart: bool


class Origin(NamedTuple):
    """Of which file an index is.

    Attributes:
        inode, size, changed: Of the file when it was indexed; `changed` in nanoseconds.
        covered: So many bytes are indexed.
        ends: A hash of the first and the last of them.
    """

    inode: int
    size: int
    changed: int
    covered: int
    ends: bytes

    @classmethod
    def of(cls, fd: int, covered: int, status: os.stat_result) -> Origin:
        """That of an open file.

        Args:
            fd: The file.
            covered: So many bytes are indexed.
            status: What was known of it before it was read.
        """
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, covered, _ends(fd, covered))

    def is_of(self, fd: int) -> bool:
        """Whether an open file is still this one, or has only grown."""
        status = os.fstat(fd)
        if status.st_ino != self.inode or status.st_size < self.size:
            return False
        if status.st_size == self.size and status.st_mtime_ns != self.changed:
            return False
        return _ends(fd, self.covered) == self.ends


class BlockIndex:
    """The index of one file.

    Args:
        origin: Of which file.
        table: The entries of its blocks in their order, packed, without a gap from the first byte on.
        services: Up to 63 names.
        filters: The id filters of all blocks.
        apart: So many blocks from the first on are counted, and no uid of them is known to be there twice.
        counts: The rows of all blocks, and the hashes of the uids of all; None where they are not known.
    """

    def __init__(
        self,
        origin: Origin,
        table: bytes | memoryview,
        services: Sequence[str],
        filters: bytes | memoryview,
        *,
        apart: int,
        counts: bytes | memoryview | None,
    ) -> None:
        self.origin = origin
        self._table = table
        self.services = services
        self.filters = filters
        self.apart = apart
        self._counts = counts

    @classmethod
    def load(cls, path: Path, fd: int, *, counts: bool = False) -> BlockIndex | None:
        """The index of an open file; None where there is none that counts.

        Args:
            path: The file's name.
            fd: The file.
            counts: Whether to read the counts too; an index whose counts are damaged does without.
        """
        try:
            with index_path(path).open("rb", buffering=0) as file:
                return cls._read(file.fileno(), fd, counts=counts)
        except (OSError, struct.error, ValueError):
            return None

    @classmethod
    def _read(cls, own: int, fd: int, *, counts: bool) -> BlockIndex | None:
        at = len(_MAGIC) + _CHECKSUM
        head = os.pread(own, at + _HEADER.size, 0)
        if head[: len(_MAGIC)] != _MAGIC:
            return None
        *fields, count, names_size, filters_size, apart, checksum = _HEADER.unpack_from(head, at)
        table_size = count * _ENTRY.size
        size = table_size + names_size + filters_size
        if size > _BYTES_MAX:
            return None
        content = memoryview(os.pread(own, size, at + _HEADER.size))
        if head[len(_MAGIC) : at] != mmh3.mmh3_x64_128_digest(b"".join((head[at:], content))):
            return None
        origin = Origin(*fields)
        if not origin.is_of(fd):
            return None
        filters = table_size + names_size
        services = bytes(content[table_size:filters]).decode().split("\n") if names_size else []
        rest = cls._read_counts(own, at + _HEADER.size + size, checksum) if counts else None
        return cls(origin, content[:table_size], services, content[filters:], apart=apart, counts=rest)

    @staticmethod
    def _read_counts(own: int, start: int, checksum: bytes) -> memoryview | None:
        size = os.fstat(own).st_size - start
        counts = memoryview(os.pread(own, size, start)) if 0 <= size <= _BYTES_MAX else memoryview(b"")
        return counts if mmh3.mmh3_x64_128_digest(counts) == checksum else None

    @property
    def entries(self) -> list[Entry]:
        """What is known of each block."""
        return list(map(Entry._make, _ENTRY.iter_unpack(self._table)))

    def pack(self) -> bytes:
        """The content of the index's file."""
        names = "\n".join(self.services).encode()
        counts = self._counts or b""
        sizes = (len(self._table) // _ENTRY.size, len(names), len(self.filters))
        head = _HEADER.pack(*self.origin, *sizes, self.apart, mmh3.mmh3_x64_128_digest(counts))
        content = b"".join((head, self._table, names, self.filters))
        return b"".join((_MAGIC, mmh3.mmh3_x64_128_digest(content), content, counts))

    def counts_of(self, blocks: int) -> tuple[bytes, bytes] | None:
        """The rows and the hashes of the uids, packed, of the first blocks; None where they are not known."""
        if self._counts is None:
            return None
        content, entries = memoryview(self._counts), self.entries
        uids_at = sum(map(_rows_size, entries))
        rows_end = sum(map(_rows_size, entries[:blocks]))
        uids_end = uids_at + sum(entry.uids for entry in entries[:blocks]) * _UID_BYTES
        return bytes(content[:rows_end]), bytes(content[uids_at:uids_end])

    def parts(self, since: bytes, until: bytes, facts: Iterable[Facts]) -> list[Part]:
        """The parts of the file's indexed bytes in which something may be found.

        Args:
            since: The earliest timestamp that is wanted, as a line has it; or what comes before.
            until: The latest one, or what comes after.
            facts: What is known of each wanted record.
        """
        levels = services = None
        wanted: list[list[tuple[int, int]]] = []
        for one in facts:
            if one.levels is not None:
                levels = sum(map(LEVEL_BITS.__getitem__, one.levels)) & (0xFF if levels is None else levels)
            if one.service is not None:
                services = self._service_bit(one.service) & (-1 if services is None else services)
            if one.ids is not None:
                wanted.append([hashes(text) for text in one.ids])
        found: list[tuple[int, int, int]] = []
        for entry in _ENTRY.iter_unpack(self._table):
            offset, size, raw_size, earliest, latest, own_levels, own_services, filter_at, filter_size, _, _ = entry
            if not own_levels & UNKNOWN and (
                latest < since
                or until < earliest
                or latest < earliest
                or (levels is not None and not own_levels & levels)
                or (services is not None and not own_services & services)
                or not all(self._may_hold(filter_at, filter_size, alternatives) for alternatives in wanted)
            ):
                continue
            if found and found[-1][1] == offset and found[-1][2] < _PART_BYTES:
                found[-1] = (found[-1][0], offset + size, found[-1][2] + raw_size)
            else:
                found.append((offset, offset + size, raw_size))
        return list(starmap(Part, found))

    def counted(self, since: bytes, until: bytes, *, first: bool) -> list[Part | Counted]:
        """The parts of the file's indexed bytes in which records of an interval may be; counted where it holds all.

        Args:
            since: The earliest timestamp that is wanted, as a line has it; or what comes before.
            until: The latest one, or what comes after.
            first: Whether no other file was counted before this one, so that what is apart can be had at once.
        """
        entries, groups = self.entries, list[_Group]()
        apart = self.apart if first else 0
        for at, entry in enumerate(entries):
            if not entry.levels & UNKNOWN and (entry.latest < since or until < entry.earliest):
                continue
            counts = self._counts is not None and entry.rows != UNCOUNTED
            counts = counts and since <= entry.earliest and entry.latest <= until
            if groups and groups[-1].takes(at, counts=counts, apart=apart):
                groups[-1].end = at + 1
                groups[-1].raw_size += entry.raw_size
            else:
                groups.append(_Group(at, at + 1, counts, entry.raw_size))
        rows_at = list(accumulate(map(_rows_size, entries), initial=0))
        uids_at = list(accumulate((entry.uids * _UID_BYTES for entry in entries), initial=rows_at[-1]))
        found: list[Part | Counted] = []
        for group in groups:
            some = entries[group.begin : group.end]
            part = Part(some[0].offset, some[-1].offset + some[-1].size, group.raw_size)
            if not group.counts:
                found.append(part)
                continue
            content = memoryview(self._counts or b"")
            uids = array("q")
            uids.frombytes(content[uids_at[group.begin] : uids_at[group.end]])
            earliest, latest = min(entry.earliest for entry in some), max(entry.latest for entry in some)
            rows = self._rows(content[rows_at[group.begin] : rows_at[group.end]])
            whole = group.begin == 0 and group.end <= apart
            found.append(Counted(part, earliest.decode(), latest.decode(), rows, uids, whole))
        return found

    def _rows(self, packed: memoryview) -> Iterator[Row]:
        levels, services = list(_LEVELS), {_NO_SERVICE: None, **dict(enumerate(self.services))}
        for minute, level, service, records in _ROW.iter_unpack(packed):
            yield minute.decode(), levels[level], services[service], records

    def _service_bit(self, name: str) -> int:
        return 1 << self.services.index(name) if name in self.services else OTHERS

    def _may_hold(self, base: int, size: int, alternatives: Sequence[tuple[int, int]]) -> bool:
        if not size:
            return False
        bits, filters = size * 8, self.filters
        for first, second in alternatives:
            for _ in range(HASHES):
                place = first % bits
                if not filters[base + (place >> 3)] & (0x80 >> (place & 7)):
                    break
                first += second  # noqa: PLW2901
            else:
                return True
        return False


@dataclass(slots=True)
class _Group:
    """Neighbouring blocks, by their numbers, that are all counted or none of them."""

    begin: int
    end: int
    counts: bool
    raw_size: int

    def takes(self, at: int, *, counts: bool, apart: int) -> bool:
        """Whether it goes on with a block; as long as the blocks are apart it may have any length."""
        if self.end != at or self.counts != counts:
            return False
        return self.raw_size < _PART_BYTES or (self.begin == 0 and at < apart)


def pack_entries(entries: Iterable[Entry]) -> bytes:
    """The table of an index."""
    return b"".join(_ENTRY.pack(*entry) for entry in entries)


def pack_rows(rows: Iterable[Row], services: Sequence[str]) -> bytes | None:
    """The counts of a block; None where there is no number for a level or a service of theirs."""
    numbers: dict[str | None, int] = {None: _NO_SERVICE, **{name: at for at, name in enumerate(services)}}
    try:
        return b"".join(
            _ROW.pack(minute.encode(), _LEVELS[level], numbers[service], records)
            for minute, level, service, records in rows
        )
    except KeyError:
        return None


def _rows_size(entry: Entry) -> int:
    return 0 if entry.rows == UNCOUNTED else entry.rows * _ROW.size


def hashes(text: str) -> tuple[int, int]:
    """The two hashes of an id from which its bits in a filter follow."""
    first, second = mmh3.hash64(text.encode("utf-8", "surrogatepass"), 0, x64arch=True, signed=False)
    return first, second | 1


def _ends(fd: int, covered: int) -> bytes:
    first = os.pread(fd, min(_ENDS, covered), 0)
    return mmh3.mmh3_x64_128_digest(first + os.pread(fd, min(_ENDS, covered), max(0, covered - _ENDS)))
