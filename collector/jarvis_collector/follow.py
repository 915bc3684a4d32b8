"""Reads the day files of log records from a checkpoint on, oldest day first, and follows the last one as it grows.

Only whole lines are read. A file is opened for each read, so that none is held that somebody wants to remove; what
precedes the mark shows whether it is still the same file. A day that was archived meanwhile is read from its archive.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

from jarvis_collector import gzip_blocks
from jarvis_collector.checkpoint import TAIL, Checkpoint, Mark, day_after, digest
from jarvis_collector.layout import ARCHIVE, LOGS_STREAM, day_name
from jarvis_collector.long_lines import short_lines
from jarvis_collector.own_log import OwnLog

__all__ = ["Chunk", "Follower"]

_WINDOW = 64 * 1024
_SETTLED = 1.0
"""Seconds that a file was not changed in before a later day's file means that nothing more comes."""
_ANCHORS = 64


class Chunk:
    """Whole lines of a day file that lie one after the other.

    Args:
        day: The file's day.
        start: Where they begin.
        head: The bytes before that, of which the last `TAIL` matter.
        data: The lines, each with its newline.
    """

    def __init__(self, day: str, start: int, head: bytes, data: bytes) -> None:
        self.day = day
        self.start = start
        self.end = start + len(data)
        self._head = head
        self._data = data

    def lines(self) -> Iterator[tuple[bytes, int]]:
        """Each line without its newline, and up to where all is read once it is.

        Raises:
            LineError: The rest of the chunk cannot be read.
        """
        at = 0
        while at < len(self._data):
            end = self._data.index(b"\n", at)
            yield self._data[at:end], self.start + end + 1
            at = end + 1

    def finish(self) -> None:
        """Reads what is left to read; from then on `end` is known."""

    def mark(self, end: int) -> Mark:
        """The mark that stands for all before `end`, which is the end of one of the lines."""
        size = end - self.start
        tail = self._data[max(0, size - TAIL) : size]
        if size < TAIL:
            tail = (self._head + tail)[-TAIL:]
        return Mark(end, digest(tail))


class _LongChunk(Chunk):
    """One line that is too long to be held.

    Args:
        day: The file's day.
        start: Where it begins.
        parts: Its bytes, with its newline.
    """

    def __init__(self, day: str, start: int, parts: Iterator[bytes]) -> None:
        super().__init__(day, start, b"", b"")
        self._parts = self._counted(parts)

    def lines(self) -> Iterator[tuple[bytes, int]]:
        for line in short_lines(self._parts):
            yield line, self.start

    def finish(self) -> None:
        for _ in self._parts:
            pass

    def mark(self, end: int) -> Mark:
        return Mark(end, digest(self._head))

    def _counted(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        for part in parts:
            self.end += len(part)
            self._head = (self._head + part)[-TAIL:]
            yield part.removesuffix(b"\n")


class Follower:
    """Finds what is to be read next.

    Args:
        log_dir: The directory of the day files.
        checkpoint: Where to begin.
        chunk: Bytes that are read at once.
        log: Is told of files that are not what they were.
        stopped: Whether reading is to end, with an InterruptedError, where it takes long.

    Attributes:
        marks: How far each file is settled, by day.
        torn: Half lines at the end of files that nobody will complete.
        behind: Bytes that were not settled yet when the last chunk was read; of archives as they are compressed.
        file: The name of the file that was read last.
    """

    def __init__(
        self,
        log_dir: Path,
        checkpoint: Checkpoint,
        chunk: int,
        log: OwnLog,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.since = checkpoint.since
        self.marks = dict(checkpoint.marks)
        self.torn = 0
        self.behind = 0
        self.file = ""
        self._log_dir = log_dir
        self._chunk = chunk
        self._log = log
        self._stopped = stopped
        self._plain: dict[str, Path] = {}
        self._archived: dict[str, Path] | None = None
        self._archive: _Archive | None = None
        self._anchors: deque[tuple[str, Mark]] = deque(maxlen=_ANCHORS)
        self._read_out: dict[str, tuple[int, int, int]] = {}  # inode, size and mtime of files with no whole line more
        self._searched: tuple[str, int] = ("", 0)  # a line that has no end before there

    def checkpoint(self) -> Checkpoint:
        """How far all is settled."""
        return Checkpoint(self.since, dict(self.marks))

    def advance(self, day: str, mark: Mark) -> None:
        """Notes that all before a mark is settled."""
        self.marks[day] = mark
        self._anchors.append((day, mark))

    def read(self) -> Chunk | None:
        """The next lines, or None where there are none yet.

        Raises:
            OSError: A file cannot be read.
        """
        files = self._files()
        days = sorted(files)
        self.behind = 0
        found: Chunk | None = None
        for day in days:
            path, mark = files[day], self.marks.get(day, Mark())
            archived = path.suffix == ".gz"
            if archived and mark.closed:
                continue
            try:
                there = path.stat()
                self.behind += there.st_size if archived else max(0, there.st_size - mark.offset)
                if found is None:
                    self.file = path.name
                    if archived:
                        found = self._read_archive(day, path, mark)
                    else:
                        found = self._read_plain(day, path, there, later=day != days[-1])
            except FileNotFoundError:
                self._archived = None  # it was archived or purged just now
                return None
        return found

    def _read_archive(self, day: str, path: Path, mark: Mark) -> Chunk | None:
        if self._archive is None or self._archive.path != path:
            self._archive = _Archive(day, path, self._chunk, self._log, self._stopped)
        chunk = self._archive.read(mark)
        if chunk is None:
            self.torn += self._archive.torn
            self.marks[day] = mark._replace(closed=True)
            self._archive = None
        return chunk

    def _read_plain(self, day: str, path: Path, there: os.stat_result, *, later: bool) -> Chunk | None:
        state = (there.st_ino, there.st_size, there.st_mtime_ns)
        if state != self._read_out.get(day):
            chunk = self._read_file(day, path)
            if chunk is not None:
                return chunk
            self._read_out[day] = state
        mark = self.marks.get(day, Mark())
        if later and not mark.closed and abs(time.time() - there.st_mtime) > _SETTLED:
            self.marks[day] = mark._replace(closed=True)
            self.torn += there.st_size > mark.offset
        return None

    def _read_file(self, day: str, path: Path) -> Chunk | None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mark = self._verified(day, path.name, fd)
            before = min(TAIL, mark.offset)
            content = os.pread(fd, before + self._chunk, mark.offset - before)
            head, data = content[:before], content[before:]
            end = data.rfind(b"\n") + 1
            if end:
                return Chunk(day, mark.offset, head, data[:end])
            if len(data) < self._chunk:
                return None
            line_end = self._line_end(day, fd, mark.offset)
        finally:
            os.close(fd)
        return None if line_end is None else _LongChunk(day, mark.offset, _parts(path, mark.offset, line_end))

    def _verified(self, day: str, name: str, fd: int) -> Mark:
        """The last mark that the file still bears out."""
        mark = self.marks.get(day, Mark())
        if _is_at(fd, mark):
            return mark
        anchors = [anchor for of, anchor in reversed(self._anchors) if of == day and anchor.offset < mark.offset]
        good = next((anchor for anchor in anchors if _is_at(fd, anchor)), Mark())
        self._log.warning(
            f"{name} became shorter or was replaced: it is forwarded again from byte {good.offset}", file=name
        )
        self.marks[day] = good
        return good

    def _line_end(self, day: str, fd: int, start: int) -> int | None:
        """The end of a long line; what was searched in vain is not searched again."""
        at = self._searched[1] if self._searched[0] == day and self._searched[1] > start else start
        while window := os.pread(fd, _WINDOW, at):
            found = window.find(b"\n")
            if found >= 0:
                return at + found + 1
            at += len(window)
            self._searched = (day, at)
        return None

    def _files(self) -> dict[str, Path]:
        """The file of each day from `since` on, the plain one where there are two."""
        plain = {}
        try:
            paths = list(self._log_dir.iterdir())
        except FileNotFoundError:
            paths = []
        for path in paths:
            named = day_name(path.name)
            if named and named.stream == LOGS_STREAM and not named.archived:
                plain[named.day.isoformat()] = path
        gone = self._plain.keys() - plain.keys()
        if self._archived is None or gone:
            self._archived = {day.isoformat(): path for day, path in _archived(self._log_dir)}
        for day in gone - self._archived.keys():
            mark = self.marks.pop(day, Mark())
            if not mark.closed:
                self._log.warning(f"{self._plain[day].name} is gone; it was forwarded up to byte {mark.offset}")
        self._plain = plain
        self._forget()
        return {day: path for day, path in {**self._archived, **plain}.items() if day >= self.since}

    def _forget(self) -> None:
        """The marks of the oldest days are of no more use once these are closed and no longer plain."""
        for day in sorted(self.marks):
            if day in self._plain or not self.marks[day].closed:
                break
            del self.marks[day]
            self._read_out.pop(day, None)
            self.since = max(self.since, day_after(day))


class _Archive:
    """Reads an archived day on; it has to inflate what was read before.

    Args:
        day: Its day.
        path: Its file.
        chunk: Bytes that are read at once, about.
        log: Is told of damaged parts.
        stopped: Whether reading is to end.

    Attributes:
        path: Its file.
        torn: How many half lines it ends in: 0 or 1.
    """

    def __init__(self, day: str, path: Path, chunk: int, log: OwnLog, stopped: Callable[[], bool]) -> None:
        self.path = path
        self.torn = 0
        self._day = day
        self._chunk = chunk
        self._log = log
        self._stopped = stopped
        self._restart()

    def _restart(self) -> None:
        self._pieces = gzip_blocks.read(self.path, on_problem=self._log.warning)
        self._rest = b""
        self._offset = 0
        self._head = b""
        self._pending: Chunk | None = None

    def read(self, mark: Mark) -> Chunk | None:
        """The lines that follow a mark, or None at the end.

        Raises:
            OSError: It cannot be read.
        """
        if self._pending is not None:
            self._pending.finish()
            self._offset, self._pending = self._pending.end, None
        if mark.offset < self._offset:
            self._restart()
        while self._offset < mark.offset and self._fill():
            if self._stopped():
                raise InterruptedError
            self._pass(min(len(self._rest), mark.offset - self._offset))
        if self._offset != mark.offset or (mark.digest and digest(self._head) != mark.digest):
            self._log.warning(f"{self.path.name} is not the file that was read before: it is forwarded from its start")
            self._restart()
        while b"\n" not in self._rest[: self._chunk] and len(self._rest) < self._chunk and self._fill(more=True):
            pass
        end = self._rest.rfind(b"\n", 0, self._chunk) + 1
        if end:
            chunk = Chunk(self._day, self._offset, self._head, self._rest[:end])
            self._pass(end)
            return chunk
        if len(self._rest) < self._chunk:
            self.torn = int(bool(self._rest))
            return None
        self._pending = _LongChunk(self._day, self._offset, self._line())
        return self._pending

    def _line(self) -> Iterator[bytes]:
        while True:
            end = self._rest.find(b"\n") + 1 or len(self._rest)
            part, self._rest = self._rest[:end], self._rest[end:]
            self._head = (self._head + part)[-TAIL:]
            yield part
            if part.endswith(b"\n") or not self._fill():
                return

    def _fill(self, *, more: bool = False) -> bool:
        if self._rest and not more:
            return True
        piece = next(self._pieces, b"")
        self._rest += piece
        return bool(piece)

    def _pass(self, size: int) -> None:
        self._head = (self._head + self._rest[:size])[-TAIL:]
        self._rest = self._rest[size:]
        self._offset += size


def _archived(log_dir: Path) -> Iterator[tuple[date, Path]]:
    for path in (log_dir / ARCHIVE).glob("????-??/*.jsonl.gz"):
        named = day_name(path.name)
        if named and named.stream == LOGS_STREAM:
            yield named.day, path


def _is_at(fd: int, mark: Mark) -> bool:
    before = min(TAIL, mark.offset)
    tail = os.pread(fd, before, mark.offset - before)
    return len(tail) == before and digest(tail) == mark.digest


def _parts(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while start < end and (part := os.pread(file.fileno(), min(_WINDOW, end - start), start)):
            start += len(part)
            yield part
