"""Where overrides and their audit are kept: under var/flags, or in memory for tests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import orjson

from jarvis_flags.overrides import (
    AUDIT_FILE,
    OVERRIDES_FILE,
    Override,
    OverrideError,
    OverrideSet,
    make_directory,
    read_overrides,
    write_file,
)
from jarvis_flags.source import MemorySource, process_start
from jarvis_otel.admin.audit import GENESIS, AuditEntry, entries, line_hash
from jarvis_otel.admin.author import Author

__all__ = ["Edit", "FileStore", "FlagStore", "MemoryStore", "Note", "SeenProcess", "StoreError"]

LOCK_WAIT_S = 10.0
RESERVE_BYTES = 256 * 1024

Edit = Callable[[OverrideSet], Mapping[str, Override | None]]
"""From the overrides as they stand to those that change: the new override by flag id, None to remove it."""


class StoreError(Exception):
    """The change could not be kept; nothing changed. The message names the file and the cure."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the audit keeps beside changes of overrides.

    Attributes:
        action: What was tried or done.
        flag: The flag's id.
        outcome: `refused`, `requested`, `approved`, or `written` into the flag file.
        detail: Why, or what it says further.
        old, new: What changed; None is none.
        request: The request that it belongs to.
    """

    action: str
    flag: str
    outcome: str = "refused"
    detail: str = ""
    old: Mapping[str, Any] | None = None
    new: Mapping[str, Any] | None = None
    request: str = ""


@dataclass(frozen=True, slots=True)
class SeenProcess:
    """A live process that evaluates the flags.

    Attributes:
        pid: Its process id.
        service: What it is called.
        revision: The revision that it has applied.
        pins: The values of its FF_ pins, by flag id.
    """

    pid: int
    service: str
    revision: int
    pins: Mapping[str, str]


class FlagStore(Protocol):
    """Keeps overrides and audit: a change is in both or in neither."""

    def read(self) -> OverrideSet:
        """The overrides as they stand."""
        ...

    def commit(
        self,
        action: str,
        author: Author,
        edit: Edit,
        *,
        off_only: bool = False,
        detail: str = "",
        request: str = "",
    ) -> list[AuditEntry]:
        """Makes a change, alone: audit first, then state.

        Args:
            action: What it is called in the audit.
            author: Who, why and from where.
            edit: Computes the change from the state as it stands under the lock; what it raises ends the change.
            off_only: The change only turns off: it may use the space that is kept for that.
            detail: What the audit says further.
            request: The request that it fulfils.

        Raises:
            StoreError: It could not be kept.
        """
        ...

    def note(
        self, author: Author, make: Callable[[], Sequence[Note]], done: Callable[[], None] = lambda: None
    ) -> list[AuditEntry]:
        """Notes something in the audit that changes no override.

        Args:
            author: Who, why and from where.
            make: Says what; called under the lock.
            done: Called under the lock when it is kept.

        Raises:
            StoreError: It could not be kept.
        """
        ...

    def history(self) -> list[AuditEntry]:
        """The audit, oldest first."""
        ...

    def processes(self) -> list[SeenProcess]:
        """The live processes that evaluate these flags."""
        ...


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _next(
    state: OverrideSet, action: str, author: Author, edit: Edit, prev: str, **more: str
) -> tuple[OverrideSet, list[AuditEntry]]:
    """The state after a change, and its entries."""
    overrides, revision, made = dict(state.overrides), state.revision, []
    at = _now()
    for flag_id, override in edit(state).items():
        before = overrides.pop(flag_id, None)
        revision += 1
        if override is not None:
            override = replace(override, by=author.who, reason=author.reason, at=at)  # noqa: PLW2901
            overrides[flag_id] = override
        entry = AuditEntry(
            at=at,
            who=author.who,
            via=author.via,
            action=action,
            flag=flag_id,
            old=None if before is None else before.to_dict(),
            new=None if override is None else override.to_dict(),
            reason=author.reason,
            outcome="applied",
            revision=revision,
            prev=prev,
            **more,
        )
        prev = entry.hash
        made.append(entry)
    return OverrideSet(revision, MappingProxyType(overrides)), made


class MemoryStore:
    """Overrides and audit of a MemorySource, gone with the process."""

    def __init__(self, source: MemorySource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._entries: list[AuditEntry] = []

    def read(self) -> OverrideSet:
        """The overrides as they stand."""
        return self._source.snapshot.overrides

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
            state, made = _next(self.read(), action, author, edit, self._prev(), detail=detail, request=request)
            self._entries += made
            self._source.set_overrides(state)
            return made

    def note(
        self, author: Author, make: Callable[[], Sequence[Note]], done: Callable[[], None] = lambda: None
    ) -> list[AuditEntry]:
        """Notes something in the audit that changes no override (see FlagStore)."""
        with self._lock:
            made = _noted(author, make(), self.read().revision, self._prev())
            self._entries += made
            done()
            return made

    def _prev(self) -> str:
        return self._entries[-1].hash if self._entries else GENESIS

    def history(self) -> list[AuditEntry]:
        """The audit, oldest first."""
        return list(self._entries)

    def processes(self) -> list[SeenProcess]:
        """Nobody else sees memory."""
        return []


def _noted(author: Author, notes: Sequence[Note], revision: int, prev: str) -> list[AuditEntry]:
    """The entries of notes."""
    at, made = _now(), []
    for note in notes:
        entry = AuditEntry(
            at=at,
            who=author.who,
            via=author.via,
            action=note.action,
            flag=note.flag,
            old=note.old,
            new=note.new,
            reason=author.reason,
            outcome=note.outcome,
            revision=revision,
            detail=note.detail,
            prev=prev,
            request=note.request,
        )
        prev = entry.hash
        made.append(entry)
    return made


class FileStore:
    """Overrides and audit as two files that any process of the machine may change.

    A change is appended to the audit and synced, then the override file is replaced. Whoever opens next rolls forward
    an entry whose state is missing, so a kill at any moment leaves either the old or the new state.

    Args:
        state_dir: The directory, usually var/flags; made when something is written.
    """

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir
        self._audit = state_dir / AUDIT_FILE
        self._overrides = state_dir / OVERRIDES_FILE
        self._reserve = state_dir / "reserve"

    def read(self) -> OverrideSet:
        """The overrides as they stand; those that the audit tells of where the file cannot be read."""
        try:
            return read_overrides(self._dir)
        except OverrideError:
            return _folded(OverrideSet(), self.history())

    def commit(
        self,
        action: str,
        author: Author,
        edit: Edit,
        *,
        off_only: bool = False,
        detail: str = "",
        request: str = "",
    ) -> list[AuditEntry]:
        """Makes a change, alone: audit first, then state (see FlagStore)."""
        with self._locked():
            last = self._mend_audit()
            state = self._rolled_forward(last)
            new, made = _next(state, action, author, edit, _hash_of(last), detail=detail, request=request)
            if made:
                self._keep(b"".join(entry.to_line() for entry in made), new, off_only=off_only)
            self._keep_reserve()
            return made

    def note(
        self, author: Author, make: Callable[[], Sequence[Note]], done: Callable[[], None] = lambda: None
    ) -> list[AuditEntry]:
        """Notes something in the audit that changes no override (see FlagStore)."""
        with self._locked():
            notes = make()
            if notes:
                last = self._mend_audit()
                state = self._rolled_forward(last)
                if not self._overrides.exists():
                    # an audit without state is taken for a state that was lost
                    self._write(lambda: write_file(self._overrides, state.to_bytes()), off_only=False)
                made = _noted(author, notes, state.revision, _hash_of(last))
                self._write(lambda: self._append(b"".join(entry.to_line() for entry in made)), off_only=False)
            else:
                made = []
            done()
            return made

    def recover(self) -> None:
        """Brings a state that a killed process left behind its audit, or that was lost, up to the audit.

        Quietly, as far as that is possible: whoever opens the flags calls it.
        """
        with contextlib.suppress(StoreError, OSError):
            if not self._audit.exists() or not self._is_behind():
                return
            with self._locked():
                write_file(self._overrides, self._rolled_forward(self._mend_audit()).to_bytes())

    def _is_behind(self) -> bool:
        try:
            state = read_overrides(self._dir)
        except OverrideError:
            return True
        with self._audit.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 64 * 1024))
            newest = max((entry.revision for entry in entries(file)), default=0)
        return newest > state.revision

    def history(self) -> list[AuditEntry]:
        """The audit, oldest first."""
        return list(entries(self.lines()))

    def lines(self) -> list[bytes]:
        """The lines of the audit, oldest first.

        Raises:
            StoreError: The file cannot be read.
        """
        try:
            return self._audit.read_bytes().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(f"{self._audit}: cannot be read: {error.strerror}") from None

    def processes(self) -> list[SeenProcess]:
        """The live processes that evaluate these flags."""
        found = []
        for path in sorted((self._dir / "seen").glob("*.json")):
            try:
                document = orjson.loads(path.read_bytes())
                pid = int(document["pid"])
                seen = SeenProcess(pid, str(document["service"]), int(document["revision"]), dict(document["pins"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if _is_alive(pid, document.get("started", "")):
                found.append(seen)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the directory's lock; another holder is waited for, but not for ever."""
        try:
            make_directory(self._dir)
            descriptor = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise StoreError(
                f"{self._dir}: flag changes cannot be kept here: {error.strerror}; make it writable for this user"
            ) from None
        try:
            deadline = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise StoreError(
                            f"{self._dir / 'lock'}: another process has held it for {LOCK_WAIT_S:g} s"
                        ) from None
                    time.sleep(0.002)
            yield
        finally:
            os.close(descriptor)

    def _keep(self, lines: bytes, state: OverrideSet, *, off_only: bool) -> None:
        size = self._audit.stat().st_size if self._audit.exists() else 0
        self._write(lambda: self._append(lines), off_only=off_only)
        try:
            self._write(lambda: write_file(self._overrides, state.to_bytes()), off_only=off_only)
        except StoreError:
            # the caller is told that nothing changed, so the entry must not be rolled forward
            with contextlib.suppress(OSError):
                os.truncate(self._audit, size)
            raise

    def _write(self, write: Callable[[], None], *, off_only: bool) -> None:
        try:
            write()
        except OSError as error:
            if off_only and error.errno in (errno.ENOSPC, errno.EDQUOT) and self._reserve.exists():
                # turning off works on a full disk: this space was kept for it
                self._reserve.unlink(missing_ok=True)
                self._write(write, off_only=False)
                return
            raise StoreError(
                f"{error.filename or self._dir}: cannot be written: {error.strerror}; nothing was changed"
            ) from None

    def _append(self, lines: bytes) -> None:
        descriptor = os.open(self._audit, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            size = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, lines)
                if written != len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._audit))
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def _mend_audit(self) -> bytes:
        """Cuts off a line that a killed process left half written; the last whole line, or nothing."""
        try:
            with self._audit.open("r+b") as file:
                size = file.seek(0, os.SEEK_END)
                step = 64 * 1024
                while True:
                    start = max(0, size - step)
                    file.seek(start)
                    tail = file.read(size - start)
                    whole = tail[: tail.rfind(b"\n") + 1]
                    if start == 0 or whole.count(b"\n") > 1:
                        break
                    step *= 4
                if len(whole) < len(tail):
                    file.truncate(start + len(whole))
                lines = whole.splitlines()
                return lines[-1] if lines else b""
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StoreError(f"{self._audit}: cannot be written: {error.strerror}; nothing was changed") from None

    def _rolled_forward(self, last: bytes) -> OverrideSet:
        """The state, with the entries applied that a killed process could not bring into it."""
        try:
            state = read_overrides(self._dir)
        except OverrideError:
            return _folded(OverrideSet(), self.history())
        newest = next(entries([last]), None)
        return state if newest is not None and newest.revision <= state.revision else _folded(state, self.history())

    def _keep_reserve(self) -> None:
        if not self._reserve.exists():
            with contextlib.suppress(OSError):
                descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
                try:
                    os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
                finally:
                    os.close(descriptor)


def _hash_of(last: bytes) -> str:
    return line_hash(last) if last else GENESIS


def _folded(state: OverrideSet, history: list[AuditEntry]) -> OverrideSet:
    overrides, revision = dict(state.overrides), state.revision
    for entry in history:
        if entry.outcome == "applied" and entry.revision > revision:
            revision = entry.revision
            overrides.pop(entry.flag, None)
            if entry.new is not None:
                overrides[entry.flag] = Override.from_dict(entry.new)
    return OverrideSet(revision, MappingProxyType(overrides))


def _is_alive(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it lives, but belongs to someone else
    now = process_start(pid)
    return not started or not now or now == started
