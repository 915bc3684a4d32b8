"""The index of a day file: of each block of its lines, which questions cannot find anything there.

`.index/NAME.idx` beside the file is a header, a table with an entry for each block, the names of services and the id
filters of the blocks. A block is about 512 KiB of whole lines, or a block of an archive. Its entry tells the range of
its timestamps, its levels, its services and, by a Bloom filter, the correlation and trace ids that may be in it. What
follows the last block, where the file has grown since, is not known and has to be read.

An index counts only where it is whole and of this very file: a checksum is over all of it, and the header has the
file's inode, its size and the time of its last change; and where it has grown, a hash of the indexed bytes' ends. So
one that is stale or corrupt is like none. Without it the answers are the same.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap
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
    "UNKNOWN",
    "BlockIndex",
    "Entry",
    "Origin",
    "hashes",
    "pack_entries",
]

_MAGIC = b"jarvis index 2\n\0"
_CHECKSUM = 16
# inode, size, time of the last change, indexed bytes, hash of their ends, blocks, bytes of the names
_HEADER = struct.Struct("<QQqQ16sII")
_ENTRY = struct.Struct("<QQQ27s27sBQQI")
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


class Entry(NamedTuple):
    """What is known of a block.

    Attributes:
        offset, size: Where it stands in the file.
        raw_size: The bytes of its lines.
        earliest, latest: The range of its timestamps; the earliest is the later one where it has no records.
        levels: Bits of `LEVEL_BITS`, or `UNKNOWN`.
        services: A bit for each of the file's services, or `OTHERS`.
        filter_at, filter_size: Where its id filter stands among the filters.
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
    """

    def __init__(
        self, origin: Origin, table: bytes | memoryview, services: Sequence[str], filters: bytes | memoryview
    ) -> None:
        self.origin = origin
        self._table = table
        self.services = services
        self.filters = filters

    @classmethod
    def load(cls, path: Path, fd: int) -> BlockIndex | None:
        """The index of an open file; None where there is none that counts.

        Args:
            path: The file's name.
            fd: The file.
        """
        try:
            with index_path(path).open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                content = memoryview(file.read() if size <= _BYTES_MAX else b"")
            return cls._of(content, fd)
        except (OSError, struct.error, ValueError):
            return None

    @classmethod
    def _of(cls, content: memoryview, fd: int) -> BlockIndex | None:
        at = len(_MAGIC) + _CHECKSUM
        if content[: len(_MAGIC)] != _MAGIC or content[len(_MAGIC) : at] != mmh3.mmh3_x64_128_digest(content[at:]):
            return None
        *fields, count, names_size = _HEADER.unpack_from(content, at)
        origin = Origin(*fields)
        if not origin.is_of(fd):
            return None
        table = at + _HEADER.size
        names = table + count * _ENTRY.size
        filters = names + names_size
        services = bytes(content[names:filters]).decode().split("\n") if names_size else []
        return cls(origin, content[table:names], services, content[filters:])

    @property
    def entries(self) -> list[Entry]:
        """What is known of each block."""
        return list(map(Entry._make, _ENTRY.iter_unpack(self._table)))

    def pack(self) -> bytes:
        """The content of the index's file."""
        names = "\n".join(self.services).encode()
        head = _HEADER.pack(*self.origin, len(self._table) // _ENTRY.size, len(names))
        content = b"".join((head, self._table, names, self.filters))
        return b"".join((_MAGIC, mmh3.mmh3_x64_128_digest(content), content))

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
            offset, size, raw_size, earliest, latest, own_levels, own_services, filter_at, filter_size = entry
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


def pack_entries(entries: Iterable[Entry]) -> bytes:
    """The table of an index."""
    return b"".join(_ENTRY.pack(*entry) for entry in entries)


def hashes(text: str) -> tuple[int, int]:
    """The two hashes of an id from which its bits in a filter follow."""
    first, second = mmh3.hash64(text.encode("utf-8", "surrogatepass"), 0, x64arch=True, signed=False)
    return first, second | 1


def _ends(fd: int, covered: int) -> bytes:
    first = os.pread(fd, min(_ENDS, covered), 0)
    return mmh3.mmh3_x64_128_digest(first + os.pread(fd, min(_ENDS, covered), max(0, covered - _ENDS)))
