"""Making the indexes of a log directory: `jarvis logs index`."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from jarvis_collector import config, gzip_blocks
from jarvis_collector.layout import ARCHIVE, day_name, index_path
from jarvis_collector.sidecar import EVER
from jarvis_otel.query.blocks import LINE_MAX_BYTES, LogFile
from jarvis_otel.query.fields import Columns, FieldReader
from jarvis_otel.query.filters import ID_KEYS
from jarvis_otel.query.index import (
    HASHES,
    LEVEL_BITS,
    OTHERS,
    SERVICES_MAX,
    UNCOUNTED,
    UNKNOWN,
    BlockIndex,
    Entry,
    Origin,
    Row,
    hashes,
    pack_entries,
    pack_rows,
)
from jarvis_otel.query.kinds import LOGS, Kind, kind_of
from jarvis_otel.query.otlp_lines import RequestLines
from jarvis_otel.query.repeats import Seen, hashes_of

__all__ = ["Indexed", "bring_up_to_date", "index_each", "index_file", "indexable", "remove_orphans"]

_BLOCK = 1 << 19
_BITS_PER_ID = 16
_NAME_MAX = 256
_SMALL = _BLOCK // 2
"""A last block below this is indexed anew when the file has grown: a day that is indexed often has no more blocks."""

_EVERYTHING = (1 << 64) - 1
_MINUTE = len("2026-01-18T13:30")
_OWN_FOLDER = index_path(Path("x")).parent.name


class Indexed(NamedTuple):
    """What became of the index of a file.

    Attributes:
        blocks: How many it has.
        covered: The bytes of the file that it covers.
        new: The bytes of the file that were read for it; 0 where it was right already.
        size: Of the index itself, in bytes.
    """

    blocks: int
    covered: int
    new: int
    size: int


def indexable(log_dir: Path) -> list[Path]:
    """The day files of a log directory that an index is made of, oldest first.

    Raises:
        OSError: The directory cannot be read.
    """
    found = [path for path in chain(log_dir.iterdir(), log_dir.glob(f"{ARCHIVE}/*/*.gz")) if kind_of(path)]
    return sorted(found, key=lambda path: (path.name.removesuffix(".gz"), path))


def remove_orphans(log_dir: Path) -> int:
    """Removes the indexes of files that are gone, and what a build that was killed left; how many.

    Raises:
        OSError: The directory cannot be read, or one of them not be removed.
    """
    removed = 0
    for folder in (log_dir / _OWN_FOLDER, *log_dir.glob(f"{ARCHIVE}/*/{_OWN_FOLDER}")):
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in folder.iterdir():
            if path.suffix not in (".idx", ".tmp") or (folder.parent / path.stem).exists():
                continue
            path.unlink(missing_ok=True)
            removed += 1
        with suppress(OSError):
            folder.rmdir()  # only an empty one goes
    return removed


def index_each(
    log_dir: Path, *, anew: bool = False, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[str, Indexed | None, str]]:
    """Makes the index of each day file of a log directory, or brings it up to date, oldest first.

    Args:
        log_dir: The directory.
        anew: Whether to read all of the files whatever the indexes say.
        stop: Asked between blocks; True ends it, and the file that it is at keeps the index that it had.

    Returns:
        For each file its path in the directory, what became of its index, and what went wrong, if anything.

    Raises:
        OSError: The directory cannot be read.
    """
    for path in indexable(log_dir):
        if stop():
            return
        name = str(path.relative_to(log_dir))
        try:
            yield name, index_file(path, anew=anew, stop=stop), ""
        except FileNotFoundError:
            continue  # archived or purged meanwhile
        except OSError as error:
            yield name, None, f"{name}: {error.strerror or error}"


def bring_up_to_date(log_dir: Path, stop: Callable[[], bool]) -> config.IndexReport:
    """Brings the indexes of a log directory up to date, and removes those of files that are gone.

    Args:
        log_dir: The directory.
        stop: Asked between blocks; True ends it, and the file that it is at keeps the index that it had.

    Raises:
        OSError: The directory cannot be read.
    """
    files, problems = [], []
    for name, made, problem in index_each(log_dir, stop=stop):
        if problem:
            problems.append(problem)
        elif made is not None and made.new:
            files.append(name)
    remove_orphans(log_dir)
    return config.IndexReport(files, problems)


def index_file(
    path: Path, *, anew: bool = False, block_bytes: int = _BLOCK, stop: Callable[[], bool] = lambda: False
) -> Indexed | None:
    """Makes the index of a day file, or brings it up to date, in bounded memory.

    Args:
        path: The file; it may be written meanwhile.
        anew: Whether to read all of the file whatever the index says.
        block_bytes: How large a block of a plain file is; of an archive each of its own is one.
        stop: Asked after each block; True ends it, and the index stays as it was.

    Returns:
        What the index covers; None where it was stopped, or there is nothing to index: an archive of another's making,
        or no whole line.

    Raises:
        ValueError: By its name it is no day file.
        OSError: The file cannot be read, or the index not be written.
    """
    kind = kind_of(path)
    if kind is None:
        raise ValueError(f"{path.name}: is no day file of log records or spans")
    with LogFile(path) as file:
        fd = file.fd
        status = os.fstat(fd)
        before = None if anew else BlockIndex.load(path, fd)
        if before is not None and before.origin.size == status.st_size:
            return Indexed(len(before.entries), before.origin.covered, 0, index_path(path).stat().st_size)
        builder = _Builder(path, kind, before and BlockIndex.load(path, fd, counts=True))
        blocks = (
            _gzip_blocks(fd, builder.covered, status.st_size)
            if file.is_gzip
            else _plain_blocks(fd, builder.covered, status.st_size, block_bytes)
        )
        for block in blocks:
            builder.add(block)
            if stop():
                return None
        if not builder.entries:
            return None
        content = builder.index(Origin.of(fd, builder.covered, status)).pack()
    _write(index_path(path), content)
    return Indexed(len(builder.entries), builder.covered, builder.covered - builder.began, len(content))


class _Block(NamedTuple):
    """A block of whole lines; they are None where they cannot be had.

    Attributes:
        offset, size: Where it stands in the file.
        raw_size: The bytes of its lines.
        lines: The lines, each with its newline; the last one may have got its own here.
    """

    offset: int
    size: int
    raw_size: int
    lines: bytes | None


class _Builder:
    """Puts entries together, after those of an index that is kept.

    Attributes:
        covered: So many bytes of the file are indexed.
        began: So many were indexed before.
    """

    def __init__(self, path: Path, kind: Kind, before: BlockIndex | None) -> None:
        self.entries: list[Entry] = []
        self._services: list[str] = []
        self._filters, self._rows, self._uids = bytearray(), bytearray(), bytearray()
        self._apart = 0
        self._seen = Seen()
        if before is not None:
            self._take_over(before)
        last = self.entries[-1] if self.entries else None
        self.covered = self.began = last.offset + last.size if last else 0
        named = day_name(path.name)
        self._is_counted = kind is LOGS
        self._requests = RequestLines(kind.signal, (), named.day if named else None, self._note)
        self._fields = FieldReader(("level", "service", *ID_KEYS), self._note)
        self._unreadable = 0
        self._is_torn = False
        self._bits = {name: 1 << at for at, name in enumerate(self._services)}

    def _take_over(self, before: BlockIndex) -> None:
        entries = before.entries
        if entries[-1].raw_size < _SMALL:
            entries.pop()
        counts = before.counts_of(len(entries))
        if counts is None:
            return  # they are damaged: all of it is made anew
        self.entries = entries
        self._services = list(before.services)
        self._filters += before.filters[: entries[-1].filter_at + entries[-1].filter_size if entries else 0]
        self._rows += counts[0]
        self._uids += counts[1]
        self._apart = min(before.apart, len(entries))
        if self._apart == len(entries):
            uids = array("q")
            uids.frombytes(counts[1])
            self._seen.are_new(uids, apart=True)

    def index(self, origin: Origin) -> BlockIndex:
        """The index of all blocks."""
        table, counts = pack_entries(self.entries), b"".join((self._rows, self._uids))
        return BlockIndex(origin, table, self._services, bytes(self._filters), apart=self._apart, counts=counts)

    def add(self, block: _Block) -> None:
        """Adds the entry of the block that follows."""
        self.covered = block.offset + block.size
        if block.lines is None:
            self._add(block, EVER, UNKNOWN, _EVERYTHING, b"", None)
            self._is_torn = True
            return
        before = self._unreadable
        columns = self._fields.quick(block.lines) or self._fields.each(self._requests.flat(block.lines))
        range_ = (columns.earliest.encode(), columns.latest.encode()) if columns.times else (EVER[1], EVER[0])
        named, by, correlation_ids, trace_ids = map(_texts, columns.values)
        levels = sum(LEVEL_BITS.get(level, 0) for level in named)
        services = 0
        for service in by:
            services |= self._service_bit(service)
        # a line that goes on in the next block is one only where both are read together
        is_torn, self._is_torn = self._is_torn, len(block.lines) != block.raw_size
        is_counted = self._is_counted and not (is_torn or self._is_torn or self._unreadable > before)
        ids = _id_filter(correlation_ids | trace_ids)
        self._add(block, range_, levels, services, ids, columns if is_counted else None)

    def _add(  # noqa: PLR0917 - what an entry says
        self,
        block: _Block,
        range_: tuple[bytes, bytes],
        levels: int,
        services: int,
        ids: bytes,
        columns: Columns | None,
    ) -> None:
        place = len(self._filters)
        rows, uids = self._count(columns)
        self.entries.append(
            Entry(block.offset, block.size, block.raw_size, *range_, levels, services, place, len(ids), rows, uids)
        )
        self._filters += ids

    def _count(self, columns: Columns | None) -> tuple[int, int]:
        """Notes the counts of a block, if it has any; how many rows and uids these are."""
        rows = _rows(columns) if columns is not None else None
        packed = pack_rows(rows, self._services) if rows is not None else None
        if columns is None or rows is None or packed is None:
            return UNCOUNTED, 0
        uids = hashes_of(columns.uids)
        if self._apart == len(self.entries) and self._seen.are_new(uids):
            self._apart += 1
        self._rows += packed
        self._uids += uids.tobytes()
        return len(rows), len(uids)

    def _note(self, unreadable: int) -> None:
        self._unreadable += unreadable

    def _service_bit(self, name: str) -> int:
        bit = self._bits.get(name)
        if bit is None:
            if len(self._services) == SERVICES_MAX or not name or len(name) > _NAME_MAX or "\n" in name:
                return OTHERS
            bit = self._bits[name] = 1 << len(self._services)
            self._services.append(name)
        return bit


def _texts(values: Sequence[Any]) -> set[str]:
    """The texts among values, and in those that are lists: --where finds a list by each of its elements."""
    if set(map(type, values)) <= {str, type(None)}:
        return {*values} - {None}
    items = chain.from_iterable(value if isinstance(value, list) else (value,) for value in values)
    return {item for item in items if isinstance(item, str)}


def _rows(columns: Columns) -> list[Row] | None:
    """How many records there are by minute, level and service, the first ones first; None where those are no texts."""
    levels, services, *_ = columns.values
    if not {*map(type, levels), *map(type, services)} <= {str, type(None)}:
        return None
    counted = Counter(zip([time[:_MINUTE] for time in columns.times], levels, services, strict=True))
    return [(*key, number) for key, number in counted.items()]


def _id_filter(ids: set[str]) -> bytes:
    if not ids:
        return b""
    size = len(ids) * _BITS_PER_ID
    bits = bytearray(b"0") * size
    for text in ids:
        first, second = hashes(text)
        for _ in range(HASHES):
            bits[first % size] = 0x31
            first += second
    return int(bits, 2).to_bytes(size // 8, "big")


def _plain_blocks(fd: int, start: int, end: int, block_bytes: int) -> Iterator[_Block]:
    while start < end:
        pieces = [os.pread(fd, min(block_bytes, end - start), start)]
        size, cut = len(pieces[0]), pieces[0].rfind(b"\n") + 1
        while not cut:  # a long line
            piece = os.pread(fd, min(_BLOCK, end - start - size), start + size)
            if not piece:
                return
            cut = size + found if (found := piece.find(b"\n") + 1) else 0
            size += len(piece)
            pieces.append(piece)
            if size > LINE_MAX_BYTES:
                pieces.clear()
        yield _Block(start, cut, cut, b"".join(pieces)[:cut] if cut <= LINE_MAX_BYTES else None)
        start += cut


def _gzip_blocks(fd: int, start: int, end: int) -> Iterator[_Block]:
    for offset, size, raw_size, _, _ in gzip_blocks.blocks_of(fd, start):
        if offset + size > end:
            return
        damage: list[str] = []
        lines = None
        if raw_size <= LINE_MAX_BYTES:
            lines = b"".join(gzip_blocks.read_part(fd, offset, offset + size, on_problem=damage.append))
            if not lines.endswith(b"\n"):
                lines += b"\n"
        yield _Block(offset, size, raw_size, None if damage else lines)


def _write(target: Path, content: bytes) -> None:
    """Writes an index, whole or not at all."""
    target.parent.mkdir(mode=0o750, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)  # what a crash of the machine tore would be kept as long as the file does not grow
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
