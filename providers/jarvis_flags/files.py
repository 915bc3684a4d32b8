"""Files that are replaced whole, and the directories of run-time state that they lie in."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["make_directory", "write_file"]


def make_directory(directory: Path) -> None:
    """Makes a directory of run-time state, and those above it that are missing, closed to strangers.

    Raises:
        OSError: It cannot be made.
    """
    if directory.is_dir():
        return
    for place in (*reversed(directory.parents), directory):
        if not place.exists():
            place.mkdir(mode=0o750, exist_ok=True)


def write_file(path: Path, content: bytes, *, durable: bool = True, mode: int = 0o640) -> None:
    """Replaces a file whole: readers see the old or the new content, never a part.

    Args:
        path: The file; its directory must exist.
        content: All of it.
        durable: Also wait until it is safe from a loss of power.
        mode: Who may read and write it.

    Raises:
        OSError: It cannot be written; the old file stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
