"""How long day files stay: plain, then compressed under archive/, then gone, and never more of them than agreed.

A day counts by the date in its name, in UTC. It is touched only when it is over and no process has it open for writing:
what is written to a file after it was removed would be lost without an error. Whatever ends a pass, SIGKILL too, the
next one takes up where it stopped: an archive gets its name when it is whole and synced, and only then the plain file
goes. Two archivers exclude each other by a lock; who reads a file is never disturbed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from jarvis_collector import gzip_blocks
from jarvis_collector.config import Retention
from jarvis_collector.files import sync_directory
from jarvis_collector.layout import (
    ARCHIVE,
    COMPONENTS,
    STREAMS,
    DayName,
    archive_path,
    day_name,
    index_path,
    sidecar_path,
)
from jarvis_collector.locking import HeldError, take_lock
from jarvis_collector.sidecar import EVER, Range, read_sidecar, write_sidecar

__all__ = ["BusyError", "Forwarded", "Report", "day_at", "exceeds", "rotate"]

_LOCK = ".rotate.lock"
_SIDECAR = ".meta.json"
_TEMPORARY = ".tmp"
_SYNC_EVERY = 64
"""So many blocks of an archive are written before they are synced: one great sync would hold up the writer's."""
_USUAL_RATIO = 8
"""So much smaller does a dry run take an archive to be."""
_OTLP_START = b'{"resource'
"""Begins each line of the real Collector's file exporter."""

Forwarded = Callable[[Path], bool]
"""Whether all of a plain day file has been forwarded."""


@dataclass(slots=True)
class Report:
    """What a pass did. Files are named by their path in the log directory.

    Attributes:
        archived: Plain files that were compressed.
        purged: Files that were deleted.
        purged_unforwarded: Those of them that had not been forwarded yet.
        in_use: Files whose time has come, but which a process may still write.
        waiting: Files whose time has come, but which have not been forwarded yet.
        problems: What could not be done and why, a line each.
        bytes_before, bytes_after: The size of all day files.
        finished: False where the pass was told to stop.
    """

    archived: list[str] = field(default_factory=list)
    purged: list[str] = field(default_factory=list)
    purged_unforwarded: list[str] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    finished: bool = True


class BusyError(Exception):
    """Another process archives in the same directory."""


def rotate(
    log_dir: Path,
    retention: Retention,
    *,
    clock: Callable[[], int] = time.time_ns,
    is_forwarded: Forwarded = lambda _: True,
    stop: Callable[[], bool] = lambda: False,
    wait: float = 0.0,
    dry_run: bool = False,
) -> Report:
    """Makes one pass over a log directory: what is due is archived or purged, and then what is too much.

    By age nothing is archived or purged that has not been forwarded. Where the files are too large in total, or the
    disk too full, the oldest day is archived first; when none is left the oldest archives are purged, and at last the
    oldest plain days, forwarded or not.

    Args:
        log_dir: The directory.
        retention: What is due and what is too much.
        clock: Nanoseconds since 1970.
        is_forwarded: Whether all of a plain day file has been forwarded.
        stop: Asked between blocks; True ends the pass.
        wait: Seconds to wait for another archiver.
        dry_run: Only tells what would be done.

    Raises:
        BusyError: Another process archives there.
        OSError: The directory cannot be read, or its lock not be made.
    """
    today = day_at(clock() // 1_000_000_000)
    pass_ = _Pass(log_dir, retention, today, is_forwarded=is_forwarded, stop=stop, dry_run=dry_run)
    if dry_run:
        return pass_.run()
    with _alone(log_dir, wait):
        return pass_.run()


def exceeds(log_dir: Path, retention: Retention) -> tuple[int, int]:
    """By how many bytes the files are too large or the disk too full, zero or less if neither, and their total size.

    Raises:
        OSError: The directory cannot be read.
    """
    total = sum(file.size for file in _day_files(log_dir))
    return max(total - retention.max_total_bytes, _short_of(log_dir, retention)), total


@contextmanager
def _alone(log_dir: Path, wait: float) -> Iterator[None]:
    deadline = time.monotonic() + wait
    while True:
        try:
            fd = take_lock(log_dir / _LOCK)
            break
        except HeldError:
            if time.monotonic() >= deadline:
                raise BusyError(f"another process archives in {log_dir}; try again when it is done") from None
            time.sleep(0.05)
    try:
        yield
    finally:
        os.close(fd)


def day_at(seconds: int) -> date:
    """The UTC day of a time, in seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).date()


def _short_of(log_dir: Path, retention: Retention) -> int:
    disk = os.statvfs(log_dir)
    return int(disk.f_blocks * disk.f_frsize * retention.min_free) - disk.f_bavail * disk.f_frsize


def _folders(log_dir: Path) -> Iterator[Path]:
    """The folders that day files stand in, outermost first; symbolic links lead out and are not followed."""
    yield log_dir
    if _is_folder(log_dir / COMPONENTS):
        yield log_dir / COMPONENTS
    archive = log_dir / ARCHIVE
    if _is_folder(archive):
        with os.scandir(archive) as entries:
            months = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        for month in months:
            yield archive / month
            if _is_folder(archive / month / COMPONENTS):
                yield archive / month / COMPONENTS


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class _File:
    """A day file, plain or archived."""

    path: Path
    named: DayName
    size: int


def _day_files(log_dir: Path) -> Iterator[_File]:
    """The day files that stand where such ones belong."""
    for folder in _folders(log_dir):
        archived = log_dir / ARCHIVE in folder.parents
        with os.scandir(folder) as entries:
            for entry in entries:
                named = day_name(entry.name)
                if named is None or named.archived != archived:
                    continue
                if folder.name != COMPONENTS and named.stream not in STREAMS:
                    continue
                with suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        yield _File(folder / entry.name, named, entry.stat(follow_symlinks=False).st_size)


class _StoppedError(Exception):
    """The pass was told to stop."""


class _NotYetError(Exception):
    """A file has to wait.

    Attributes:
        listed: Where in the report it is named.
    """

    def __init__(self, listed: list[str]) -> None:
        super().__init__()
        self.listed = listed


class _Pass:
    def __init__(
        self,
        log_dir: Path,
        retention: Retention,
        today: date,
        *,
        is_forwarded: Forwarded,
        stop: Callable[[], bool],
        dry_run: bool,
    ) -> None:
        self._log_dir = log_dir
        self._retention = retention
        self._today = today
        self._is_forwarded = is_forwarded
        self._stop = stop
        self._dry_run = dry_run
        self._report = Report()
        self._files: dict[Path, _File] = {}
        self._freed = 0

    def run(self) -> Report:
        report = self._report
        if not self._dry_run:
            self._clear()
        self._files = {file.path: file for file in _day_files(self._log_dir)}
        report.bytes_before = sum(file.size for file in self._files.values())
        short = _short_of(self._log_dir, self._retention)
        try:
            self._purge_what_is_old()
            self._archive_what_is_due()
            self._relieve(short)
        except _StoppedError:
            report.finished = False
        report.bytes_after = report.bytes_before - self._freed
        if not self._dry_run:
            self._remove_empty_folders()
        return report

    def _clear(self) -> None:
        """Removes what a pass that was killed left behind, and sidecars of files that are no more."""
        for folder in _folders(self._log_dir):
            archived = self._log_dir / ARCHIVE in folder.parents
            with os.scandir(folder) as entries:
                names = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
            for name in sorted(names):
                if name.endswith(_SIDECAR):
                    owner = name.removesuffix(_SIDECAR) + (".jsonl.gz" if archived else ".jsonl")
                    named = day_name(owner)
                    left_over = owner not in names and named is not None and named.day < self._today
                else:
                    left_over = archived and name.endswith(_TEMPORARY)
                if left_over:
                    with self._told(folder / name):
                        (folder / name).unlink(missing_ok=True)

    def _remove_empty_folders(self) -> None:
        for folder in reversed(list(_folders(self._log_dir))):
            if self._log_dir / ARCHIVE in folder.parents:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()

    def _purge_what_is_old(self) -> None:
        for file in self._oldest_first():
            if self._age(file.named.day) > self._retention.keep_days:
                with self._told(file.path):
                    if not file.named.archived:
                        self._check_forwarded(file)
                    self._purge(file)

    def _archive_what_is_due(self) -> None:
        for file in self._oldest_first(archived=False):
            due = self._age(file.named.day) > self._retention.plain_days
            # both are there after a pass was killed, or a clock that went back made an old day grow again
            if due or archive_path(file.path) in self._files:
                with self._told(file.path):
                    self._check_forwarded(file)
                    self._archive(file)

    def _relieve(self, short: int) -> None:
        """Makes room, step by step, until there is enough.

        Args:
            short: Bytes that were missing on the disk when the pass began.
        """

        def excess() -> int:
            total = self._report.bytes_before - self._freed
            # by what the files held, not by what the disk says now: a deleted file that is still read frees it later
            return max(total - self._retention.max_total_bytes, short - self._freed)

        for file in self._oldest_first(archived=False):
            if excess() <= 0:
                break
            with self._told(file.path):
                self._check_forwarded(file)
                self._archive(file)
        missing = short - self._freed
        in_vain = missing > sum(file.size for file in self._oldest_first())
        if in_vain:
            # others fill the disk: to lose all that is here would not make the room either
            short = 0
        for file in self._oldest_first(archived=True):
            if excess() <= 0:
                break
            with self._told(file.path):
                self._purge(file)
        for file in self._oldest_first(archived=False):
            if excess() <= 0:
                break
            with self._told(file.path):
                name, waiting = self._name(file.path), self._report.waiting
                self._purge(file)
                if name in waiting:
                    waiting.remove(name)
                    self._report.purged_unforwarded.append(name)
        if excess() > 0:
            self._report.problems.append(
                f"{self._log_dir}: {excess()} bytes too much for max_total_bytes and min_free, "
                "and nothing is left that may be purged; raise them or make room"
            )
        elif in_vain:
            self._report.problems.append(
                f"{self._log_dir}: {missing} bytes are missing for min_free, which is more than all that may be purged "
                "here, so nothing was purged for it: others fill the disk; make room or lower it"
            )

    def _oldest_first(self, *, archived: bool | None = None) -> list[_File]:
        files = sorted(self._files.values(), key=lambda file: (file.named.day, file.path))
        # days that have not begun by our clock are left alone like today's
        return [
            file
            for file in files
            if archived in (None, file.named.archived) and (file.named.archived or self._age(file.named.day) >= 1)
        ]

    def _age(self, day: date) -> int:
        return (self._today - day).days

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._log_dir))

    @contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        """What goes wrong with one file is told, and leaves the others alone."""
        if self._stop():
            raise _StoppedError
        try:
            yield
        except _NotYetError as error:
            if self._name(path) not in error.listed:
                error.listed.append(self._name(path))
        except OSError as error:
            self._report.problems.append(f"{self._name(path)}: {error.strerror or error}")

    def _purge(self, file: _File) -> None:
        if not file.named.archived:
            with _opened(file.path) as source:
                self._check_closed(file, source)
        if not self._dry_run:
            file.path.unlink(missing_ok=True)
            sidecar_path(file.path).unlink(missing_ok=True)
            _remove_index(file.path)
        self._gone(file)
        self._report.purged.append(self._name(file.path))

    def _archive(self, file: _File) -> None:
        target = archive_path(file.path)
        with _opened(file.path) as source:
            self._check_closed(file, source)
            if self._dry_run:
                size = file.size // _USUAL_RATIO
            else:
                self._make_folder(target.parent)
                size = self._archived(file, source, target)
                self._check_closed(file, source)
                file.path.unlink()
                sidecar_path(file.path).unlink(missing_ok=True)
                _remove_index(file.path)
        if (before := self._files.get(target)) is not None:
            self._gone(before)
        self._gone(file)
        named = day_name(target.name)
        assert named is not None
        self._files[target] = _File(target, named, size)
        self._freed -= size
        self._report.archived.append(self._name(file.path))

    def _gone(self, file: _File) -> None:
        self._freed += self._files.pop(file.path).size

    def _check_forwarded(self, file: _File) -> None:
        if not self._is_forwarded(file.path):
            raise _NotYetError(self._report.waiting)

    def _check_closed(self, file: _File, source: BinaryIO) -> None:
        """Raises _NotYetError unless a file stays as it was when the pass saw it."""
        fd = source.fileno()
        status = os.fstat(fd)
        # the real Collector takes the day from its clock too, but may have a file open long after
        days = 2 if os.pread(fd, len(_OTLP_START), 0) == _OTLP_START else 1
        written = _has_writer(fd)
        if written is None:
            written = self._age(day_at(int(status.st_mtime))) < days
        if written or status.st_size != file.size or self._age(file.named.day) < days:
            raise _NotYetError(self._report.in_use)

    def _archived(self, file: _File, source: BinaryIO, target: Path) -> int:
        """Makes sure that an archive ends with all that is in a plain file; the size of the archive."""
        earlier: Iterable[bytes] = ()
        if _is_there(target):
            if self._ends_with(target, source, file.size):
                size = target.lstat().st_size
                if (read_sidecar(target) or (-1,))[0] != size:
                    _write_sidecar(target, size, _range_of_archive(target, size))
                return size
            earlier = _ended(gzip_blocks.read(target, on_problem=self._report.problems.append))
        temporary = target.with_name(f".{target.name}{_TEMPORARY}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            with os.fdopen(fd, "wb", buffering=gzip_blocks.BLOCK) as archive:
                contents = gzip_blocks.write(self._paced(chain(earlier, _pieces(source)), fd), archive)
                archive.flush()
                os.fsync(fd)
                size = os.fstat(fd).st_size
            self._check_closed(file, source)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(target.parent)
        _write_sidecar(target, size, contents.range)
        return size

    def _ends_with(self, archive: Path, source: BinaryIO, size: int) -> bool:
        """Whether the last that an archive holds is all of a plain file, byte for byte."""
        damage: list[str] = []
        held = sum(map(len, self._paced(gzip_blocks.read(archive, on_problem=damage.append))))
        before = held - size
        if damage or before < 0:
            return False
        os.lseek(source.fileno(), 0, os.SEEK_SET)
        for piece in self._paced(gzip_blocks.read(archive)):
            compared = piece[before:] if before < len(piece) else b""
            before = max(0, before - len(piece))
            if compared and source.read(len(compared)) != compared:
                return False
        return True

    def _paced(self, pieces: Iterable[bytes], fd: int | None = None) -> Iterator[bytes]:
        """The same pieces, asking before each whether to stop, and syncing now and then what is written meanwhile."""
        for count, piece in enumerate(pieces, 1):
            if self._stop():
                raise _StoppedError
            yield piece
            if fd is not None and count % _SYNC_EVERY == 0:
                os.fsync(fd)

    def _make_folder(self, folder: Path) -> None:
        for path in (*reversed(folder.relative_to(self._log_dir).parents[:-1]), folder.relative_to(self._log_dir)):
            made = self._log_dir / path
            try:
                made.mkdir(mode=0o750)
            except FileExistsError:
                if not _is_folder(made):
                    raise NotADirectoryError(errno.ENOTDIR, f"{path} is no directory, want one for archives") from None
            else:
                sync_directory(made.parent)


def _remove_index(path: Path) -> None:
    """The index goes with its file; one that stays is found out by who makes indexes."""
    with suppress(OSError):
        index_path(path).unlink(missing_ok=True)
        index_path(path).parent.rmdir()  # only an empty folder goes


def _is_there(path: Path) -> bool:
    try:
        return bool(path.lstat())
    except FileNotFoundError:
        return False


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        yield file


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    """A plain file from its beginning; it is not kept in the page cache, where it would push out what is in use."""
    fd, offset = source.fileno(), 0
    while piece := os.pread(fd, gzip_blocks.BLOCK, offset):
        yield piece
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, offset, len(piece), os.POSIX_FADV_DONTNEED)
        offset += len(piece)


def _ended(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same pieces, and a newline where the last line lacks one."""
    piece = b"\n"
    for piece in pieces:
        yield piece
    if not piece.endswith(b"\n"):
        yield b"\n"


def _has_writer(fd: int) -> bool | None:
    """Whether any process has a file open for writing; None where the system cannot tell.

    The kernel grants a read lease (fcntl(2)) only on a file that nobody has open for writing.
    """
    try:
        # who opens the file while the lease lasts breaks it, and is told of by a signal: by one that does no harm
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except (OSError, AttributeError):  # another's file, a network file system, another system
        return None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _range_of_archive(path: Path, size: int) -> Range:
    """The range of an archive by the headers of its blocks."""
    range_: Range = None
    for block in gzip_blocks.blocks(path):
        size -= block.size
        if block.earliest <= block.latest:
            earliest, latest = range_ or (block.earliest, block.latest)
            range_ = (min(earliest, block.earliest), max(latest, block.latest))
    return range_ if size == 0 else EVER


def _write_sidecar(path: Path, size: int, range_: Range) -> None:
    with suppress(OSError):  # without a sidecar the file is only read more often
        write_sidecar(path, size, range_)
