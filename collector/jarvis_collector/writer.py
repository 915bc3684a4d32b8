"""Appends lines to the day files: one write and one fsync for all that waits, and only then it counts as written.

The day is the collector's UTC clock at arrival, and it never goes back: a closed day is not written again. Beside a
closed file stands its `sidecar`.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from jarvis_collector.components import ComponentFiles
from jarvis_collector.config import CollectorError
from jarvis_collector.files import sync_directory
from jarvis_collector.layout import LOGS_STREAM, STREAMS, day_name, day_of, day_path, sidecar_path
from jarvis_collector.locking import HeldError, take_lock
from jarvis_collector.sidecar import Range, read_sidecar, widened, write_sidecar
from jarvis_collector.torn import end_torn_line, is_in_place

__all__ = ["DayFile", "Write", "Writer", "locked"]

_BLOCK = 1 << 20
_SIDECAR_EVERY = 64 << 20
_sync = getattr(os, "fdatasync", os.fsync)


@dataclass(slots=True)
class Write:
    """Lines that are to be written, and then what became of them.

    Attributes:
        stream: The file's prefix: `jarvis`, `traces` or `metrics`.
        lines: Each with its newline.
        settled: Called by whoever settles it, once `error` is known.
        error: Why they are not in the file; None says that they are, and synced.
    """

    stream: str
    lines: list[bytes]
    settled: Callable[[Write], None]
    error: Exception | None = None


class Writer:
    """The one thread that writes the day files of a directory.

    Args:
        log_dir: The directory; see `locked`.
        settle: Called in the writer's thread with all the writes of one commit, once their fate is known.
        clock: Nanoseconds since 1970.
        components: Whether each service's records are written once more, see `components`.

    Attributes:
        components: The files of the services.
        problem: Why the last commit could not be written; None where all is well.
        commits, failures: Groups of lines that were written and synced, and that could not be.
        bytes_written: Bytes of the former.
        sync_seconds, sync_seconds_max: How long fsync took, in all and at most.
    """

    def __init__(
        self,
        log_dir: Path,
        settle: Callable[[Sequence[Write]], object],
        clock: Callable[[], int] = time.time_ns,
        *,
        components: bool = False,
    ) -> None:
        self.components = ComponentFiles(log_dir, wanted=components)
        self.problem: OSError | None = None
        self.commits = 0
        self.failures = 0
        self.bytes_written = 0
        self.sync_seconds = 0.0
        self.sync_seconds_max = 0.0
        self._log_dir = log_dir
        self._settle = settle
        self._clock = clock
        self._day = ""
        self._files: dict[str, DayFile] = {}
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="jarvis-collector-writer")

    def start(self) -> None:
        """Repairs what a crash left behind, then begins to write.

        Raises:
            CollectorError: A file of the directory cannot be repaired.
        """
        for path in sorted(self._log_dir.iterdir()):
            named = day_name(path.name)
            if named and named.stream in STREAMS and not named.archived:
                try:
                    _repair(path)
                except OSError as error:
                    raise CollectorError(f"{path}: {error.strerror or error}") from None
        self._thread.start()

    def submit(self, write: Write) -> None:
        """Hands over lines; their fate comes through `settle`."""
        self._queue.put(write)

    def stop(self) -> None:
        """Writes what was handed over, closes the files, and ends the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        for file in self._files.values():
            file.close()
        self._files.clear()
        self.components.close()

    def _run(self) -> None:
        while (write := self._queue.get()) is not None:
            writes: list[Write] = [write]
            with suppress(queue.Empty):
                while (more := self._queue.get_nowait()) is not None:
                    writes.append(more)
                self._queue.put(None)
            try:
                self._commit(writes)
            except Exception as error:  # the thread must live: without it nothing is ever answered again
                for write in writes:
                    write.error = error
            self._settle(writes)

    def _commit(self, writes: list[Write]) -> None:
        self._turn_to(day_of(self._clock()))
        streams: dict[str, list[Write]] = {}
        for write in writes:
            streams.setdefault(write.stream, []).append(write)
        problem = None
        for stream, group in streams.items():
            try:
                self._append(stream, [line for write in group for line in write.lines])
            except OSError as error:
                problem = error
                self.failures += 1
                for write in group:
                    write.error = error
        self.problem = problem

    def _turn_to(self, day: str) -> None:
        if day > self._day:
            self._day = day
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _append(self, stream: str, lines: list[bytes]) -> None:
        path = day_path(self._log_dir, stream, self._day)
        file = self._files.get(stream)
        if file is not None and not file.in_place():
            self._files.pop(stream).abandon()
            file = None
        if file is None:
            file = self._files[stream] = DayFile(path)
        seconds, size = file.append(lines)
        self.commits += 1
        self.bytes_written += size
        self.sync_seconds += seconds
        self.sync_seconds_max = max(self.sync_seconds_max, seconds)
        if stream == LOGS_STREAM:
            self.components.append(self._day, lines)


class DayFile:
    """One day file, open for appending.

    Args:
        path: The file; made where it is missing, repaired where its last line is torn.

    Raises:
        OSError: It cannot be opened or repaired.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._range = _repair(path)
        self._torn = False
        self._unsaid = 0
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        sync_directory(path.parent)

    def in_place(self) -> bool:
        """Whether lines may be appended: not after it was deleted or replaced, or a half line could not be undone."""
        return not self._torn and is_in_place(self.path, self._fd)

    def append(self, lines: list[bytes]) -> tuple[float, int]:
        """Appends lines and syncs; a failure leaves the file as it was.

        Returns:
            How long the sync took, in seconds, and how many bytes were written.

        Raises:
            OSError: They are not in the file.
        """
        data = b"".join(lines)
        before = os.fstat(self._fd).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            started = time.monotonic()
            _sync(self._fd)
        except OSError:
            self._torn = True
            os.ftruncate(self._fd, before)
            self._torn = False
            raise
        # all of them begin with their timestamp, so the order of the bytes is the order of time
        self._range = widened(self._range, (min(lines), max(lines)))
        self._unsaid += len(data)
        if self._unsaid >= _SIDECAR_EVERY:
            self._say()
        return time.monotonic() - started, len(data)

    def close(self) -> None:
        """Closes the file for good and writes its sidecar."""
        self._say()
        os.close(self._fd)

    def _say(self) -> None:
        """Writes the sidecar; while the file grows it saves a start after a crash from reading the whole day."""
        self._unsaid = 0
        with suppress(OSError):
            # without a sidecar the file is only read more often
            write_sidecar(self.path, os.fstat(self._fd).st_size, self._range)

    def abandon(self) -> None:
        """Closes the file; what it holds is to be found out again."""
        os.close(self._fd)


@contextmanager
def locked(log_dir: Path) -> Iterator[None]:
    """Holds a directory, which is made where it is missing, for one collector.

    Raises:
        CollectorError: Another one has it, or it cannot be made or written.
    """
    try:
        log_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        fd = take_lock(log_dir / ".collector.lock")
    except HeldError as error:
        raise CollectorError(
            f"another collector (pid {error.pid}) writes in {log_dir}; stop it or choose another --dir"
        ) from None
    except OSError as error:
        raise CollectorError(f"cannot write in {log_dir}: {error.strerror or error}") from None
    try:
        yield
    finally:
        os.close(fd)


def _repair(path: Path) -> Range:
    """Ends a torn last line, brings the sidecar up to date, and tells the file's range."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        sidecar_path(path).unlink(missing_ok=True)
        return None
    with os.fdopen(fd, "r+b", buffering=_BLOCK) as file:
        end_torn_line(fd)
        size = os.fstat(fd).st_size
        known = read_sidecar(path)
        covered, range_ = known if known and known[0] <= size else (0, None)
        if covered < size:
            file.seek(covered)
            range_ = widened(range_, file)
            with suppress(OSError):
                # without a sidecar the file is only read more often
                write_sidecar(path, size, range_)
    return range_
