"""Overrides and audit as files of one machine, usually under var/flags."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType

import orjson

from jarvis_flags.files import make_directory, write_file
from jarvis_flags.locking import held
from jarvis_flags.overrides import (
    AUDIT_FILE,
    OVERRIDES_FILE,
    Override,
    OverrideError,
    OverrideSet,
    read_overrides,
)
from jarvis_flags.source import process_start
from jarvis_otel.admin.audit import GENESIS, AuditEntry, entries, line_hash
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.store import Edit, Note, SeenProcess, StoreError, applied, noted

__all__ = ["FileStore", "folded", "local_processes"]

RESERVE_BYTES = 256 * 1024
_RESERVE_STEP = 32 * 1024


class FileStore:
    """Overrides and audit as two files that any process of the machine may change.

    A change is appended to the audit and synced, then the override file is replaced. Whoever opens next rolls forward
    an entry whose state is missing, so a kill at any moment leaves either the old or the new state.

    Args:
        state_dir: The directory, usually var/flags; made when something is written.
    """

    look_again_s = 0.005

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir
        self._audit = state_dir / AUDIT_FILE
        self._overrides = state_dir / OVERRIDES_FILE
        self._reserve = state_dir / "reserve"

    def read(self) -> OverrideSet:
        """The overrides that stand; those that the audit tells of where the file cannot be read."""
        try:
            state = read_overrides(self._dir)
        except OverrideError:
            state = folded(OverrideSet(), self.history())
        return state.standing(time.time())

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
            state = self._rolled_forward(last).standing(time.time())
            new, made = applied(state, action, author, edit, _hash_of(last), detail=detail, request=request)
            if made:
                self._ensure_state(state, off_only=off_only)
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
                self._ensure_state(state, off_only=False)
                made = noted(author, notes, state.revision, _hash_of(last))
                self._write(lambda: self._append(b"".join(entry.to_line() for entry in made)), off_only=False)
            else:
                made = []
            done()
            self._keep_reserve()
            return made

    def adopt(self, lines: Sequence[bytes], overrides: OverrideSet) -> int:
        """Takes over the audit and the overrides of another store; what is here must be the beginning of it.

        Args:
            lines: All lines of the audit.
            overrides: The overrides.

        Returns:
            How many of the lines are new here.

        Raises:
            StoreError: There is something else here, or it could not be kept.
        """
        with self._locked():
            self._mend_audit()
            here = self.lines()
            if list(lines[: len(here)]) != here:
                raise StoreError(f"{self._audit}: tells of other changes; move it and {OVERRIDES_FILE} away first")
            new = lines[len(here) :]
            if new or not self._overrides.exists():
                self._keep(b"".join(line + b"\n" for line in new), overrides, off_only=False)
            return len(new)

    def turn(self, name: str) -> None:
        """There is one machine, which settles it by itself."""

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
        return local_processes(self._dir)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the directory's lock; another holder is waited for, but not for ever."""
        with contextlib.ExitStack() as stack:
            try:
                make_directory(self._dir)
                stack.enter_context(held(self._dir / "lock"))
            except TimeoutError as error:
                raise StoreError(str(error)) from None
            except OSError as error:
                raise StoreError(
                    f"{self._dir}: flag changes cannot be kept here: {error.strerror}; make it writable for this user"
                ) from None
            yield

    def _ensure_state(self, state: OverrideSet, *, off_only: bool) -> None:
        """Before the first entry: whoever sees an audit without state takes the state for lost."""
        if not self._overrides.exists():
            self._write(lambda: write_file(self._overrides, state.to_bytes()), off_only=off_only)

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
        while True:
            try:
                return write()
            except OSError as error:
                # turning off works on a full disk: space was kept for it
                if off_only and error.errno in (errno.ENOSPC, errno.EDQUOT) and self._give_of_reserve():
                    continue
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
            return folded(OverrideSet(), self.history())
        newest = next(entries([last]), None)
        return state if newest is not None and newest.revision <= state.revision else folded(state, self.history())

    def _keep_reserve(self) -> None:
        """Holds what space there is, up to RESERVE_BYTES, for turning flags off."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                size = os.fstat(descriptor).st_size
                while size < RESERVE_BYTES:
                    size += _RESERVE_STEP
                    os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)

    def _give_of_reserve(self) -> bool:
        """Frees a part of the reserve, the rest is for those who turn off next; False where nothing is left of it."""
        with contextlib.suppress(OSError):
            size = self._reserve.stat().st_size
            if size > 0:
                os.truncate(self._reserve, max(0, size - _RESERVE_STEP))
                return True
        return False


def _hash_of(last: bytes) -> str:
    return line_hash(last) if last else GENESIS


def folded(state: OverrideSet, history: list[AuditEntry]) -> OverrideSet:
    """The overrides after the changes that the audit tells of.

    Args:
        state: The overrides as they were.
        history: The audit; what the state knows of is passed over.
    """
    overrides, revision = dict(state.overrides), state.revision
    for entry in history:
        if entry.outcome == "applied" and entry.revision > revision:
            revision = entry.revision
            overrides.pop(entry.flag, None)
            if entry.new is not None:
                overrides[entry.flag] = Override.from_dict(entry.new)
    return OverrideSet(revision, MappingProxyType(overrides))


def local_processes(state_dir: Path) -> list[SeenProcess]:
    """The live processes of this machine that evaluate the flags of a directory.

    Args:
        state_dir: The directory, usually var/flags.
    """
    found = []
    for path in sorted((state_dir / "seen").glob("*.json")):
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


def _is_alive(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it lives, but belongs to someone else
    now = process_start(pid)
    return not started or not now or now == started
