"""Lock files: what only one process may do in a directory, and which process does it."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["HeldError", "take_lock"]


class HeldError(Exception):
    """Another process has the lock.

    Args:
        pid: Its number as it wrote it down; `unknown` where it could not.
    """

    def __init__(self, pid: str) -> None:
        super().__init__(f"pid {pid} has it")
        self.pid = pid


def take_lock(path: Path) -> int:
    """Takes a lock; the descriptor that it gives holds it until it is closed or the process ends.

    Args:
        path: The file; made where it is missing, its directory must be there.

    Raises:
        HeldError: Another process has it.
        OSError: The file cannot be made, or not be locked.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise HeldError(pid or "unknown") from None
    except OSError:
        os.close(fd)
        raise
    with suppress(OSError):
        # only who is asked about it needs the number: a full disk keeps nobody from going on
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
