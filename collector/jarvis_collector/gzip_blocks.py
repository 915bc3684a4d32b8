"""Archived day files: gzip that `zcat` reads, in blocks that a reader can skip.

Each member of the file is a block of whole lines, about 512 KiB of them, or one line that is longer. The header of a
member has an extra field (RFC 1952, 2.3.1.1) with the id `JL`: the size of the whole member in bytes and of its content
(unsigned, 64 bits, little-endian), and the earliest and the latest timestamp of its lines as these write them. A block
with a line that is not ours has the widest range. A file without the field is read all the same, but nothing of it can
be skipped.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jarvis_collector.sidecar import EVER, Range, range_of

try:
    from isal import isal_zlib as deflate
except ModuleNotFoundError:  # slower, but the same format
    import zlib as deflate  # type: ignore[no-redef]

__all__ = ["BLOCK", "Block", "Contents", "blocks", "blocks_of", "read", "read_part", "write"]

BLOCK = 1 << 19
"""About so many bytes of lines make a block."""

# of isal as good as its best but for speed; zlib's is what the gzip command takes
_LEVEL = 6 if deflate is zlib else 2
_ERRORS: tuple[Any, ...] = (zlib.error, deflate.error)

_NEVER = (EVER[1], EVER[0])
_EXTRA = struct.Struct("<QQ27s27s")
# magic, deflate, FEXTRA; no time; no hint; system unknown; the length of all extra fields, our id, the length of ours
_MARK = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H2sH", _EXTRA.size + 4, b"JL", _EXTRA.size)
_TRAILER = struct.Struct("<II")
_HEADER_SIZE = len(_MARK) + _EXTRA.size
_PIECE = 2 * BLOCK
"""No block but that of a single line is larger, so that each comes out in one piece."""


class Block(NamedTuple):
    """One member of an archive as its header tells it.

    Attributes:
        offset: Where it begins in the file.
        size: The bytes that it takes there.
        raw_size: The bytes of its content.
        earliest, latest: The range of its lines' timestamps; the earliest is the later one where it has no lines.
    """

    offset: int
    size: int
    raw_size: int
    earliest: bytes
    latest: bytes


class Contents(NamedTuple):
    """What a whole archive holds.

    Attributes:
        raw_size: The bytes of its content.
        range: The range of its lines' timestamps.
    """

    raw_size: int
    range: Range


def write(pieces: Iterable[bytes], target: BinaryIO) -> Contents:
    """Compresses lines into an empty file, block by block, in bounded memory.

    Args:
        pieces: The bytes of a day file in their order; where a piece ends says nothing.
        target: A file that can be sought.

    Raises:
        OSError: It cannot be written.
    """
    writer = _BlockWriter(target)
    rest, in_long_line = b"", False
    for chunk in _chunks(pieces):
        start = 0
        if in_long_line:
            start = chunk.find(b"\n") + 1
            writer.feed(chunk[:start] if start else chunk)
            if not start:
                continue
            writer.end()
            in_long_line = False
        end = chunk.rfind(b"\n") + 1
        if end > start:
            writer.block(b"".join((rest, memoryview(chunk)[start:end])))
            rest = chunk[end:]
        elif len(rest) + len(chunk) - start < BLOCK:
            rest += chunk[start:]
        else:
            writer.begin(range_of(rest + chunk[start:]))
            writer.feed(rest)
            writer.feed(chunk[start:])
            rest, in_long_line = b"", True
    if in_long_line:
        writer.end()
    if rest or not writer.count:  # without a member it would be no gzip file
        writer.block(rest)
    return Contents(writer.raw_size, writer.range)


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of exactly `BLOCK`, but for the last one."""
    held = bytearray()
    for piece in pieces:
        if not held and len(piece) == BLOCK:
            yield piece
            continue
        held += piece
        while len(held) >= BLOCK:
            yield bytes(held[:BLOCK])
            del held[:BLOCK]
    if held:
        yield bytes(held)


class _BlockWriter:
    """Writes members one after the other, and sums them up."""

    def __init__(self, target: BinaryIO) -> None:
        self.count = 0
        self.raw_size = 0
        self.range: Range = None
        self._target = target

    def block(self, lines: bytes) -> None:
        self.begin(range_of(lines))
        self.feed(lines)
        self.end()

    def begin(self, range_: Range) -> None:
        self._offset = self._target.tell()
        self._range = range_
        self._size = self._crc = 0
        self._deflater = deflate.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._target.write(bytes(_HEADER_SIZE))

    def feed(self, data: bytes) -> None:
        self._crc = deflate.crc32(data, self._crc)
        self._size += len(data)
        self._target.write(self._deflater.compress(data))

    def end(self) -> None:
        self._target.write(self._deflater.flush())
        self._target.write(_TRAILER.pack(self._crc, self._size & 0xFFFFFFFF))
        end = self._target.tell()
        self._target.seek(self._offset)
        self._target.write(_MARK + _EXTRA.pack(end - self._offset, self._size, *(self._range or _NEVER)))
        self._target.seek(end)
        self.count += 1
        self.raw_size += self._size
        if self._range is not None:
            earliest, latest = self.range or self._range
            self.range = (min(earliest, self._range[0]), max(latest, self._range[1]))


def blocks(path: Path) -> Iterator[Block]:
    """The blocks of an archive by their headers alone, up to the first member that is not one of ours.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        yield from blocks_of(file.fileno())


def blocks_of(fd: int, start: int = 0) -> Iterator[Block]:
    """`blocks` of a file that is open, from the one on that begins at `start`."""
    offset, end = start, os.fstat(fd).st_size
    while (block := _block_at(fd, offset, end)) is not None:
        yield block
        offset += block.size


def read(
    path: Path,
    wanted: Callable[[bytes, bytes], bool] | None = None,
    on_problem: Callable[[str], object] | None = None,
) -> Iterator[bytes]:
    """The content of an archive, or of any gzip file, in pieces of at most 1 MiB.

    A block comes in one piece, so of whole lines, unless it is a single longer line. What is damaged is passed over up
    to the next block that is whole; a newline then ends the line that was begun.

    Args:
        path: The file.
        wanted: Told the earliest and the latest timestamp of a block, whether it is to be read; all if None.
        on_problem: Told, in a line, of each part that cannot be read.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        fd = file.fileno()
        yield from read_part(
            fd, 0, os.fstat(fd).st_size, wanted, on_problem and (lambda text: on_problem(f"{path.name}: {text}"))
        )


def read_part(
    fd: int,
    start: int,
    end: int,
    wanted: Callable[[bytes, bytes], bool] | None = None,
    on_problem: Callable[[str], object] | None = None,
) -> Iterator[bytes]:
    """`read` of a part of a file that is open.

    Args:
        fd: The file; its position is left alone.
        start: Where a member begins.
        end: Where one ends.
        wanted: See `read`.
        on_problem: Told of each part that cannot be read, without the name of the file.

    Raises:
        OSError: The file cannot be read.
    """
    offset = start
    torn = damaged = False
    while offset < end:
        block = _block_at(fd, offset, end)
        if block is not None and wanted is not None and not wanted(block.earliest, block.latest):
            offset += block.size
            continue
        member = _Member(fd, offset, end if block is None else offset + block.size)
        try:
            for piece in member:
                if torn and damaged:
                    yield b"\n"
                torn, damaged = not piece.endswith(b"\n"), False
                yield piece
            offset = member.end
        except _DamagedError as error:
            damaged = True
            found = _next_mark(fd, offset + 1)
            if found is not None and found >= end:
                found = None
            if on_problem is not None:
                until = "to the end" if found is None else f"to byte {found}"
                on_problem(f"{error}: passed over from byte {offset} {until}")
            if found is None:
                return
            offset = found


class _DamagedError(Exception):
    """What is wrong with a member."""


class _Member:
    """The content of one gzip member, inflated in pieces.

    Attributes:
        end: Where it ends in the file, once all of it was read.
    """

    def __init__(self, fd: int, offset: int, limit: int) -> None:
        self.end = offset
        self._fd = fd
        self._limit = limit

    def __iter__(self) -> Iterator[bytes]:
        inflater = deflate.decompressobj(16 + zlib.MAX_WBITS)
        data = b""
        while not inflater.eof:
            at_limit = False
            if not data:
                data = os.pread(self._fd, min(BLOCK, self._limit - self.end), self.end)
                at_limit = not data
                self.end += len(data)
            try:
                piece = inflater.decompress(data, _PIECE)
            except _ERRORS as error:
                raise _DamagedError(f"damaged ({error})") from None
            data = inflater.unconsumed_tail
            if piece:
                yield piece
            elif at_limit and not inflater.eof:
                raise _DamagedError("it ends too early")
        self.end -= len(inflater.unused_data)


def _block_at(fd: int, offset: int, end: int) -> Block | None:
    """The block that begins there, or None where there is none of ours that ends within the file."""
    if end - offset < _HEADER_SIZE:
        return None
    header = os.pread(fd, _HEADER_SIZE, offset)
    if len(header) < _HEADER_SIZE or not header.startswith(_MARK):
        return None
    size, raw_size, earliest, latest = _EXTRA.unpack_from(header, len(_MARK))
    # a damaged header leads neither nowhere nor beyond the end
    return Block(offset, size, raw_size, earliest, latest) if _HEADER_SIZE < size <= end - offset else None


def _next_mark(fd: int, offset: int) -> int | None:
    while len(data := os.pread(fd, BLOCK, offset)) >= len(_MARK):
        found = data.find(_MARK)
        if found >= 0:
            return offset + found
        offset += len(data) - len(_MARK) + 1
    return None
