"""A lock that processes of one machine share: a file that one of them holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LOCK_WAIT_S", "held"]

LOCK_WAIT_S = 10.0


@contextlib.contextmanager
def held(path: Path, wait: float = LOCK_WAIT_S) -> Iterator[None]:
    """Holds a lock; another holder is waited for, but not for ever. Whoever ends lets go of it.

    Args:
        path: The file; made where it is missing, its directory must be there.
        wait: Seconds to wait at most.

    Raises:
        TimeoutError: Somebody else held it for all that time.
        OSError: The file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"{path}: another process has held it for {wait:g} s") from None
                time.sleep(0.002)
        yield
    finally:
        os.close(descriptor)
