"""Files that are replaced whole, and names of files that survive a loss of power."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync_directory", "write_file"]


def write_file(path: Path, content: bytes) -> None:
    """Replaces a file whole and synced: a crash leaves the old content or the new.

    Args:
        path: The file; whoever cares for its name after a loss of power calls `sync_directory` too.
        content: All of it.

    Raises:
        OSError: It cannot be written; the old file stands.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Makes sure that the names in a directory are on the disk.

    Raises:
        OSError: They may not be.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
