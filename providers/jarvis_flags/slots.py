"""A small content that is replaced often: two files in turns, so that one of them is whole at any moment.

To replace a file by renaming takes milliseconds where the file system then writes it to disk, as ext4 does.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

__all__ = ["Slots"]

_HEADER_BYTES = 64


class Slots:
    """Two files, of which the newer one that is whole counts. Whoever writes holds a lock; readers need none.

    Args:
        path: What they are called, each with its number before the suffix.
    """

    def __init__(self, path: Path) -> None:
        self.paths = tuple(path.with_name(f"{path.stem}.{number}{path.suffix}") for number in range(2))
        self._unsynced: Path | None = None

    def read(self) -> bytes | None:
        """The content; None where there is none that is whole."""
        return self._newest()[1]

    def write(self, content: bytes) -> None:
        """Replaces it; a process that is killed at any moment leaves the old or the new content.

        Raises:
            OSError: It cannot be written; the old content stands.
        """
        turn = self._newest()[0] + 1
        path = self.paths[turn % 2]
        block = b"%d %d %08x\n" % (turn, len(content), zlib.crc32(content, turn)) + content
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            if os.write(descriptor, block) == len(block):
                os.ftruncate(descriptor, len(block))
        finally:
            os.close(descriptor)
        self._unsynced = path

    def sync(self) -> None:
        """Waits until what this process wrote is safe from a loss of power.

        Raises:
            OSError: It cannot be made safe.
        """
        path, self._unsynced = self._unsynced, None
        if path is not None:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _newest(self) -> tuple[int, bytes | None]:
        newest: tuple[int, bytes | None] = (0, None)
        for path in self.paths:
            try:
                block = path.read_bytes()
                header, _, rest = block.partition(b"\n")
                turn, length, check = header[:_HEADER_BYTES].split()
                number, content = int(turn), rest[: int(length)]
                whole = len(content) == int(length) and int(check, 16) == zlib.crc32(content, number)
            except (OSError, ValueError):
                continue
            if whole and number > newest[0]:
                newest = (number, content)
        return newest
