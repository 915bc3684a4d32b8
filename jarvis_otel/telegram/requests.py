"""Notices in the audit file that somebody asked, from any front end, for a change which takes more people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jarvis_flags.watch import Watcher

__all__ = ["RequestWatch"]

_REQUESTED = b'"outcome":"requested"'


class RequestWatch:
    """Calls a function when the audit tells of a new request, or of anything while some are known to wait.

    Args:
        audit: The audit file, which need not exist.
        noticed: Called without arguments, in a thread of its own.
    """

    def __init__(self, audit: Path, noticed: Callable[[], None]) -> None:
        self._audit = audit
        self._noticed = noticed
        self._read_to = 0
        self.waiting = True  # what waits already is looked for once
        self._watcher = Watcher([audit], self._look)

    def start(self) -> None:
        """Begins, with a look at what is there."""
        self._watcher.start()
        self._watcher.poke()

    def stop(self) -> None:
        """Ends it."""
        self._watcher.stop()

    def _look(self) -> None:
        try:
            with self._audit.open("rb") as file:
                if file.seek(0, 2) < self._read_to:
                    self._read_to = 0
                file.seek(self._read_to)
                new = file.read()
                self._read_to += len(new)
        except OSError:
            return
        # reading the whole audit for each of many changes would cost more the longer it gets
        if self.waiting or _REQUESTED in new:
            self._noticed()
