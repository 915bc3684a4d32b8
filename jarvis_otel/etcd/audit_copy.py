"""The audit in etcd, and its copy on this machine: questions about the past ask no network, and work without etcd."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from jarvis_flags.files import write_file
from jarvis_otel.admin.audit import GENESIS, entries, line_hash
from jarvis_otel.etcd.client import EtcdClient, b64, unb64
from jarvis_otel.etcd.keys import Keys, SharedFlags

__all__ = ["AuditCopy"]

_PAGE = 200


class AuditCopy:
    """A file with the lines of the audit, which grows as that in etcd does. Any number of processes may use it.

    Args:
        path: The file.
        lock: Gives the lock of a name that the processes of this machine share.
        client: Asks etcd.
        keys: The names of keys.
    """

    def __init__(
        self, path: Path, lock: Callable[[str], AbstractContextManager[None]], client: EtcdClient, keys: Keys
    ) -> None:
        self._path = path
        self._lock = lock
        self._client = client
        self._keys = keys
        self._counted = _End()

    def lines(self) -> list[bytes]:
        """The lines as they are here.

        Raises:
            OSError: They cannot be read.
        """
        try:
            return self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []

    def update(self, shared: SharedFlags) -> None:
        """Fetches what is missing.

        Args:
            shared: The overrides, which know where the audit ends.

        Raises:
            OSError: It cannot be written.
            EtcdError: It cannot be had.
        """
        wanted = (shared.lines, shared.head)
        if self._end()[2:] == wanted:
            return
        with self._lock("audit"):
            _, _, count, head = self._end()
            if (count, head) == wanted:
                return
            missing = b"".join(self.fetched(count + 1))
            if missing and _prev(missing) == head and count + missing.count(b"\n") >= shared.lines:
                self._append(missing)
            else:
                # a backup of etcd was restored, or it is another one: what is here does not belong to it
                write_file(self._path, b"".join(self.fetched(1)), durable=False)

    def add(self, before: SharedFlags, lines: bytes) -> None:
        """Takes over lines that this process wrote itself, where nothing before them is missing.

        Args:
            before: Where the audit ended before them.
            lines: The lines, each with its newline.

        Raises:
            OSError: It cannot be written.
        """
        with self._lock("audit"):
            if self._end()[2:] == (before.lines, before.head):
                self._append(lines)

    def _append(self, lines: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        with os.fdopen(descriptor, "wb") as file:
            # after a process that was killed while it wrote there may be half a line
            file.truncate(self._counted.size)
            file.seek(self._counted.size)
            file.write(lines)

    def fetched(self, number: int = 1) -> Iterator[bytes]:
        """The lines in etcd, those of one change after the other, each with its newline.

        Args:
            number: That of the first line.

        Raises:
            EtcdError: They cannot be had.
        """
        start = self._keys.audit(number)
        while True:
            question = {"key": b64(start), "range_end": b64(self._keys.audit_end), "limit": str(_PAGE)}
            answer = self._client.call("kv/range", question)
            pairs = answer.get("kvs", [])
            for pair in pairs:
                yield unb64(pair["value"])
            if not answer.get("more"):
                return
            start = unb64(pairs[-1]["key"]) + b"\0"

    def _end(self) -> _End:
        """Where the copy ends; only what came since the last look is read."""
        known = self._counted
        try:
            with self._path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != known.file or stat.st_size < known.size:
                    known = _End(stat.st_ino)
                file.seek(known.size)
                tail = file.read(stat.st_size - known.size)
        except FileNotFoundError:
            self._counted = _End()
            return self._counted
        whole = tail[: tail.rfind(b"\n") + 1]
        head = line_hash(whole.splitlines()[-1]) if whole else known.head
        self._counted = _End(known.file, known.size + len(whole), known.lines + whole.count(b"\n"), head)
        return self._counted


class _End(NamedTuple):
    """Where a copy ends: which file, its size in bytes, its lines, and the hash of the last."""

    file: int = 0
    size: int = 0
    lines: int = 0
    head: str = GENESIS


def _prev(lines: bytes) -> str:
    first = next(entries(lines.splitlines()[:1]), None)
    return "" if first is None else first.prev
