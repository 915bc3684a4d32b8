"""Overrides and audit in memory: for tests, and for flags that are in no file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from jarvis_flags.overrides import OverrideSet
from jarvis_flags.source import MemorySource
from jarvis_otel.admin.audit import GENESIS, AuditEntry
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.store import Edit, Note, SeenProcess, applied, noted

__all__ = ["MemoryStore"]


class MemoryStore:
    """Overrides and audit of a MemorySource, gone with the process.

    Args:
        source: The flags.
    """

    look_again_s = 0.005

    def __init__(self, source: MemorySource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._entries: list[AuditEntry] = []

    def read(self) -> OverrideSet:
        """The overrides that stand."""
        return self._source.snapshot.overrides.standing(time.time())

    def commit(
        self,
        action: str,
        author: Author,
        edit: Edit,
        *,
        off_only: bool = False,  # noqa: ARG002
        detail: str = "",
        request: str = "",
    ) -> list[AuditEntry]:
        """Makes a change, alone (see FlagStore)."""
        with self._lock:
            state, made = applied(self.read(), action, author, edit, self._prev(), detail=detail, request=request)
            self._entries += made
            self._source.set_overrides(state)
            return made

    def note(
        self, author: Author, make: Callable[[], Sequence[Note]], done: Callable[[], None] = lambda: None
    ) -> list[AuditEntry]:
        """Notes something in the audit that changes no override (see FlagStore)."""
        with self._lock:
            made = noted(author, make(), self.read().revision, self._prev())
            self._entries += made
            done()
            return made

    def _prev(self) -> str:
        return self._entries[-1].hash if self._entries else GENESIS

    def history(self) -> list[AuditEntry]:
        """The audit, oldest first."""
        return list(self._entries)

    def lines(self) -> list[bytes]:
        """The lines of the audit, oldest first."""
        return [entry.to_line().rstrip(b"\n") for entry in self._entries]

    def turn(self, name: str) -> None:
        """There is one machine, which settles it by itself."""

    def recover(self) -> None:
        """There is nothing that a process could leave behind."""

    def processes(self) -> list[SeenProcess]:
        """Nobody else sees memory."""
        return []
