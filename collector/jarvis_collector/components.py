"""Each service's records once more, in a file of its own: logs/components/trading-2026-03-01.jsonl.

These files are a convenience for people: a record is safe when it is in the day file, and what fails here fails no
request. They are not synced, so that a power cut or a kill may cost them their last lines; a full disk leaves gaps,
which are counted.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import orjson

from jarvis_collector.layout import COMPONENTS, component_path
from jarvis_collector.torn import end_torn_line, is_in_place

__all__ = ["ComponentFiles"]

_OPEN_MAX = 32
_SERVICE = re.compile(rb',"service":("(?:[^"\\]|\\.)*")')
"""Inside a string, in a message say, the quotes would be escaped; so the first place is the key itself."""


class ComponentFiles:
    """The component files of a log directory, written by the writer's thread.

    Args:
        log_dir: The log directory.
        wanted: Whether they are written at all; it may change at any time.

    Attributes:
        problem: Why the last lines could not be written; None where all is well.
        missed: So many lines are not in their file.
    """

    def __init__(self, log_dir: Path, *, wanted: bool) -> None:
        self.wanted = wanted
        self.problem: OSError | None = None
        self.missed = 0
        self._log_dir = log_dir
        self._day = ""
        self._files: OrderedDict[Path, int] = OrderedDict()
        # what a client sends decides how many services there are
        self._path = lru_cache(maxsize=1024)(self._path_of)

    def append(self, day: str, lines: Sequence[bytes]) -> None:
        """Writes lines of the day file to the files of their services, where these are wanted."""
        if not self.wanted or day != self._day:
            self.close()
            self._day = day
        if not self.wanted:
            return
        services: dict[bytes, list[bytes]] = {}
        for line in lines:
            found = _SERVICE.search(line)
            if found is not None:
                services.setdefault(found[1], []).append(line)
        problem = None
        for service, own in services.items():
            try:
                self._write(self._path(service, day), b"".join(own))
            except OSError as error:
                problem = error
                self.missed += len(own)
        self.problem = problem

    def close(self) -> None:
        """Closes the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _path_of(self, service: bytes, day: str) -> Path:
        return component_path(self._log_dir, orjson.loads(service), day)

    def _write(self, path: Path, data: bytes) -> None:
        fd = self._files.get(path)
        if fd is None or not is_in_place(path, fd):
            self._drop(path)
            fd = self._files[path] = self._open(path)
        self._files.move_to_end(path)
        size = os.fstat(fd).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, size)
            # what cannot be cut off here is cut off when it is opened again
            self._drop(path)
            raise

    def _open(self, path: Path) -> int:
        if len(self._files) >= _OPEN_MAX:
            os.close(self._files.popitem(last=False)[1])
        (self._log_dir / COMPONENTS).mkdir(mode=0o750, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            end_torn_line(fd)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _drop(self, path: Path) -> None:
        fd = self._files.pop(path, None)
        if fd is not None:
            os.close(fd)
