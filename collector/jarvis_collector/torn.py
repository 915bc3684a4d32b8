"""What may have become of a file of lines: torn by a crash, deleted or replaced while it is open."""

from __future__ import annotations

import os
from pathlib import Path

import orjson

__all__ = ["end_torn_line", "is_in_place"]

_BLOCK = 1 << 20


def end_torn_line(fd: int) -> None:
    """Cuts off what a crash left of a line; it was never acknowledged. A whole one only gets its newline.

    Raises:
        OSError: The file cannot be read or repaired.
    """
    end = size = os.fstat(fd).st_size
    tail = b""
    while end and b"\n" not in tail:
        start = max(0, end - _BLOCK)
        tail = os.pread(fd, end - start, start) + tail
        end = start
    last = tail.rpartition(b"\n")[2]
    if not last:
        return
    try:
        orjson.loads(last)
    except orjson.JSONDecodeError:
        os.ftruncate(fd, size - len(last))
    else:
        os.pwrite(fd, b"\n", size)
    os.fsync(fd)


def is_in_place(path: Path, fd: int) -> bool:
    """Whether the file that is open is still the one of this name.

    Raises:
        OSError: That cannot be found out.
    """
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
