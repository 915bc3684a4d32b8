"""The bytes of a file, plain or gzip, in blocks of whole lines and in bounded memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import orjson

__all__ = ["GZIP_MAGIC", "LINE_MAX_BYTES", "LogFile", "Part", "is_json"]

LINE_MAX_BYTES = 128 << 20
"""The real Collector writes a whole request in a line; a longer one is passed over."""

_PIECE_BYTES = 1 << 17
"""Larger ones are mapped and unmapped each time, which costs more than reading them."""

_PART_BYTES = 4 << 20
_TAIL_BYTES = 4096
GZIP_MAGIC = b"\x1f\x8b"
"""How gzip data begins."""


class Part(NamedTuple):
    """A part of a file: it begins where a line does, or a block of an archive, and ends where another one does.

    Attributes:
        start, end: Where in the file.
        raw_size: The bytes of its lines; None where that is not known.
    """

    start: int
    end: int
    raw_size: int | None


class LogFile:
    """A file that is open for reading, part by part, in any order and by several processes.

    It is read as far as it went when it was opened. What follows its last newline is taken only where it is a whole
    JSON text: it may be written to meanwhile, and then that is not torn but not there yet.

    Args:
        path: The file; what begins like gzip is inflated, whatever its name.

    Attributes:
        fd: The file.
        size: How far it is read; 0 for what has no size, such as a pipe.
        is_gzip: Whether it is compressed.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.fd = self._file.fileno()
        status = os.fstat(self.fd)
        self._is_pipe = not stat.S_ISREG(status.st_mode)
        self.size = 0 if self._is_pipe else status.st_size
        self.is_gzip = not self._is_pipe and (
            path.suffix == ".gz" or os.pread(self.fd, len(GZIP_MAGIC), 0) == GZIP_MAGIC
        )
        self._name = path.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def parts(self, start: int = 0, wanted: Callable[[bytes, bytes], bool] | None = None) -> list[Part]:
        """The file, or what follows a part of it, in parts of about 4 MiB of lines.

        Args:
            start: Where the first part begins; 0, or where a part ends.
            wanted: Told the earliest and the latest timestamp of a block of an archive, whether it is to be read.
        """
        if self._is_pipe:
            return [Part(0, 0, None)]
        return list(self._gzip_parts(start, wanted) if self.is_gzip else self._plain_parts(start))

    def _plain_parts(self, start: int) -> Iterator[Part]:
        while start < self.size:
            end = self._line_start(start + _PART_BYTES)
            yield Part(start, end, end - start)
            start = end

    def _line_start(self, offset: int) -> int:
        """Where the first line after an offset begins, or the end."""
        while offset < self.size:
            data = os.pread(self.fd, min(1 << 16, self.size - offset), offset)
            if not data:  # it was cut meanwhile
                break
            found = data.find(b"\n") + 1
            if found:
                return offset + found
            offset += len(data)
        return self.size

    def _gzip_parts(self, start: int, wanted: Callable[[bytes, bytes], bool] | None) -> Iterator[Part]:
        from jarvis_collector import gzip_blocks  # noqa: PLC0415 - most files are plain

        end = begin = start
        raw_size = 0
        for block in gzip_blocks.blocks_of(self.fd, start):
            is_wanted = wanted is None or wanted(block.earliest, block.latest)
            if begin < end and (not is_wanted or raw_size >= _PART_BYTES):
                yield Part(begin, end, raw_size)
                begin, raw_size = end, 0
            end = block.offset + block.size
            if is_wanted:
                raw_size += block.raw_size
            else:
                begin = end
        if begin < end:
            yield Part(begin, end, raw_size)
        if end < self.size:  # what is not ours, or damaged
            yield Part(end, self.size, None)

    def blocks(
        self, part: Part, on_too_long: Callable[[int], object], on_damage: Callable[[str], object]
    ) -> Iterator[bytes]:
        """The lines of a part, in blocks of whole lines.

        Args:
            part: One of `parts`.
            on_too_long: Told of each line over 128 MiB, which is passed over.
            on_damage: Told what is wrong with gzip data; what is whole is read all the same.

        Raises:
            OSError: It cannot be read.
        """
        held: list[bytes] = []
        passing_over = False
        for piece in self._pieces(part, on_damage):
            end = piece.rfind(b"\n") + 1
            if end == 0:
                if not passing_over:
                    held.append(piece)
                    if sum(map(len, held)) > LINE_MAX_BYTES:
                        on_too_long(1)
                        held, passing_over = [], True
                continue
            start = piece.find(b"\n") + 1 if passing_over else 0
            yield b"".join((*held, memoryview(piece)[start:end])) if held or start or end < len(piece) else piece
            held, passing_over = [piece[end:]] if end < len(piece) else [], False
        if held and is_json(rest := b"".join(held)):
            yield rest + b"\n"

    def _pieces(self, part: Part, on_damage: Callable[[str], object]) -> Iterator[bytes]:
        if self._is_pipe:
            while piece := os.read(self.fd, _PIECE_BYTES):
                yield piece
        elif self.is_gzip:
            from jarvis_collector import gzip_blocks  # noqa: PLC0415 - most files are plain

            def damaged(problem: str) -> None:
                on_damage(f"{self._name}: {problem}")

            yield from gzip_blocks.read_part(self.fd, part.start, part.end, on_problem=damaged)
        else:
            offset = part.start
            while offset < part.end and (piece := os.pread(self.fd, self._length(offset, part.end), offset)):
                yield piece
                offset += len(piece)

    def _length(self, offset: int, end: int) -> int:
        """How many bytes to read so that the last line is whole where it is short, and nothing has to be joined."""
        length = min(_PIECE_BYTES, end - offset)
        if offset + length == end:
            return length
        tail = min(_TAIL_BYTES, length)
        return length - tail + (os.pread(self.fd, tail, offset + length - tail).rfind(b"\n") + 1 or tail)


def is_json(text: bytes) -> bool:
    """Whether a text is whole, and not a part of one that is being written."""
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True
