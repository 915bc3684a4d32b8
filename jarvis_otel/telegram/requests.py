"""Notices in the audit file that somebody asked, from any front end, for a change which takes more people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jarvis_flags.watch import Watcher
from jarvis_otel.alerts.changes import AuditFeed, Mark

__all__ = ["RequestWatch"]

_STOP_S = 0.2


class RequestWatch:
    """Calls a function when the audit tells of a new request, or of anything while some are known to wait.

    Args:
        audit: The audit file, which need not exist.
        noticed: Called without arguments, in a thread of its own.
    """

    def __init__(self, audit: Path, noticed: Callable[[], None]) -> None:
        self._feed = AuditFeed(audit)
        self._noticed = noticed
        self._mark: Mark | None = None
        self.waiting = True  # what waits already is looked for once
        self._watcher = Watcher([audit], self._look)

    def start(self) -> None:
        """Begins, with a look at what is there."""
        self._watcher.start()
        self._watcher.poke()

    def stop(self) -> None:
        """Ends it."""
        self._watcher.stop(_STOP_S)

    def _look(self) -> None:
        try:
            asked = self._is_asked()
        except OSError:
            return
        # for the requests that wait the whole audit is read, which costs more the longer it gets
        if self.waiting or asked:
            self._noticed()

    def _is_asked(self) -> bool:
        """Whether somebody asked for something since the last look; the first one begins at the end."""
        if self._mark is None:
            self._mark = self._feed.end()
            return False
        asked, more = False, True
        while more:
            entries, self._mark, more, _ = self._feed.after(self._mark)
            asked = asked or any(entry.outcome == "requested" for entry in entries)
        return asked
