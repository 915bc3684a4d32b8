"""Whose turn it is to alert: of all processes that could, one does."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol

from jarvis_flags.files import make_directory

__all__ = ["FileTurn", "Turn"]


class Turn(Protocol):
    """Says who may alert."""

    def take(self) -> bool:
        """Whether it is this process's turn, from now on until it gives up or ends."""
        ...

    def give_up(self) -> None:
        """Lets another have it."""
        ...


class FileTurn:
    """The turn of those that share a directory: who holds the lock on a file there. A process that ends lets go of it.

    The lock is a process's, so a process has one of these at most.

    Args:
        path: The file; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Whether it is this process's turn.

        Raises:
            OSError: The file cannot be made.
        """
        if self._descriptor is not None:
            return True
        make_directory(self._path.parent)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def give_up(self) -> None:
        """Lets another have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
