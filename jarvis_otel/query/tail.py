"""The end of the log: its last records, read backwards, and what is written after them."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from jarvis_collector.layout import LOGS_STREAM, STREAMS, day_name
from jarvis_otel.query.blocks import GZIP_MAGIC, LINE_MAX_BYTES, is_json
from jarvis_otel.query.days import archived_days, may_hold, plain_days
from jarvis_otel.query.files import LOGS, LogFiles, Seen, Tally
from jarvis_otel.query.filters import Filter
from jarvis_otel.query.log_query import Criteria
from jarvis_otel.query.otlp_lines import RequestLines
from jarvis_otel.query.scan import Found, scan

__all__ = ["POLL_S", "Changes", "Tail"]

POLL_S = 0.2
"""How often to look in any case: the kernel tells nothing of network and overlay file systems."""

_SETTLE_S = 0.02
"""A burst of writes is read at once, not line by line."""

_PIECE_BYTES = 1 << 20
_MARK_BYTES = 64
_FOLLOWED_MAX = 64
_GONE_S = 5.0
"""So long is a file read on that has lost its name: whoever writes it may not know yet."""


class Tail:
    """The last records of a log directory or of named files, in the order in which they arrived, each once.

    Files are known by their inodes, so one that is renamed, archived or replaced is read to its end, and only whole
    lines are taken.

    Args:
        place: The log directory; or files, which are taken in the order in which they are given.
        criteria: What a record must be.
        tally: Where what is met with is counted.
        on_note: Told in a line what happened to a file that is followed.
        follow: Whether `news` will be asked for; files that are not there yet are waited for.
    """

    def __init__(
        self,
        place: Path | Sequence[Path],
        criteria: Criteria,
        tally: Tally,
        on_note: Callable[[str], object],
        *,
        follow: bool = False,
    ) -> None:
        self._place = place
        self._criteria = criteria
        self._tally = tally
        self._on_note = on_note
        self._follow = follow
        self._followed: dict[tuple[int, int], _Followed] = {}
        self._seen = Seen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for followed in self._followed.values():
            followed.close()

    def last(self, number: int) -> list[Found]:
        """The last records that match, oldest first; `news` begins where they end.

        Args:
            number: How many at most.

        Raises:
            OSError: The directory or one of the files cannot be read.
        """
        paths = self._paths()
        # all of them before the first is read: what is written meanwhile is news
        opened = [followed for path in paths[-_FOLLOWED_MAX:] if (followed := self._open(path, at_end=True))]
        found: deque[Found] = deque()
        for followed in reversed(opened):
            if len(found) < number:
                found.extendleft(self._newest_of(followed, number - len(found)))
        if isinstance(self._place, Path) and len(found) < number:
            for path in self._older({followed.path.name for followed in opened}, paths[:-_FOLLOWED_MAX]):
                found.extendleft(self._newest_of_archive(path, number - len(found)))
                if len(found) >= number:
                    break
        return list(found)

    def news(self) -> Iterator[Found]:
        """What has been written since it was last asked, in the order in which it arrived.

        Raises:
            OSError: The directory or one of the files cannot be read.
        """
        self._look()
        # a file that was replaced comes before the one that has its name now
        order = {path: at for at, path in enumerate(self._paths())}
        for followed in sorted(self._followed.values(), key=lambda one: order.get(one.path, 0)):
            for block in followed.new_lines(self._on_note):
                yield from filter(self._is_first, self._scan(followed.path, block))

    def _paths(self) -> list[Path]:
        """The plain files, oldest first."""
        if not isinstance(self._place, Path):
            known = {path: day_name(path.name) for path in self._place}
            return [path for path, named in known.items() if not (named and named.stream in STREAMS[1:])]
        try:
            return plain_days(self._place)
        except FileNotFoundError:
            if not self._follow:
                raise
            return []

    def _older(self, read: set[str], plain: Sequence[Path]) -> list[Path]:
        """What is not read yet, newest first: plain files beyond the bound, and archives."""
        assert isinstance(self._place, Path)
        days = {path.name: path for path in plain}
        for path in archived_days(self._place):
            if (name := path.name.removesuffix(".gz")) not in read:
                days.setdefault(name, path)
        return [days[name] for name in sorted(days, reverse=True)]

    def _open(self, path: Path, *, at_end: bool) -> _Followed | None:
        """A file that is read from now on, unless it is so already or has gone."""
        try:
            followed = _Followed(path)
        except FileNotFoundError:
            if isinstance(self._place, Path) or self._follow:
                return None  # archived since the directory was listed; or not there yet
            raise
        if followed.key in self._followed:
            self._followed[followed.key].path = path
            followed.close()
            return None
        if at_end:
            followed.skip_to_end()
        self._followed[followed.key] = followed
        return followed

    def _look(self) -> None:
        """Takes in files that are new, and lets those go that lost their name some time ago."""
        there = set()
        for path in self._paths()[-_FOLLOWED_MAX:]:
            with suppress(FileNotFoundError):
                stat = path.stat()
                key = (stat.st_dev, stat.st_ino)
                there.add(key)
                if key not in self._followed and self._open(path, at_end=False) and self._is_replaced(path):
                    self._on_note(f"{path.name}: replaced, the new one is read from its start")
        for key, followed in list(self._followed.items()):
            if followed.is_gone(key not in there, time.monotonic()):
                followed.close()
                del self._followed[key]

    def _is_replaced(self, path: Path) -> bool:
        return sum(followed.path == path for followed in self._followed.values()) > 1

    def _newest_of(self, followed: _Followed, number: int) -> Iterator[Found]:
        """The newest records of an open file, newest first."""
        if followed.is_gzip:
            yield from self._newest_of_archive(followed.path, number)
            return
        with suppress(FileNotFoundError):  # archived since it was opened
            if not may_hold(followed.path, self._criteria.interval):
                self._tally.files_passed_over += 1
                return
        self._tally.files += 1
        for block in followed.backwards(whole_file=not self._follow):
            for one in reversed(list(self._scan(followed.path, block))):
                if number and self._is_first(one):
                    yield one
                    number -= 1
            if not number:
                return

    def _newest_of_archive(self, path: Path, number: int) -> Iterator[Found]:
        files = LogFiles([path], self._tally)
        with suppress(FileNotFoundError):  # purged since the directory was listed
            kept = deque(files.records(LOGS, self._criteria.filters, self._criteria.interval), maxlen=number)
            yield from (one for one in reversed(kept) if self._is_first(one))

    def _scan(self, path: Path, block: bytes) -> Iterator[Found]:
        named = day_name(path.name)

        def unreadable(count: int) -> None:
            self._tally.unreadable[path.name] = self._tally.unreadable.get(path.name, 0) + count

        filters = self._criteria.filters
        requests = RequestLines(
            LOGS.signal, [one.request for one in filters if one.request], named.day if named else None, unreadable
        )
        known = named is not None and named.stream == LOGS_STREAM
        return scan(requests.flat(block), filters if known else (*filters, Filter(LOGS.includes)), unreadable)

    def _is_first(self, found: Found) -> bool:
        """Whether a record was not here before, as far as that is remembered."""
        identity = LOGS.identity(found.record)
        if identity is None or not self._seen.before(hash(identity)):
            return True
        self._tally.repeats += 1
        return False


class _Followed:
    """An open file and how far it has been read: always to the end of a line.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            stat = os.fstat(self._fd)
            self.key = (stat.st_dev, stat.st_ino)
            self.is_gzip = os.pread(self._fd, len(GZIP_MAGIC), 0) == GZIP_MAGIC
        except BaseException:
            self.close()
            raise
        self.path = path
        self._offset = 0
        self._mark = b""
        self._gone_since: float | None = None

    def close(self) -> None:
        os.close(self._fd)

    def is_gone(self, nameless: bool, now: float) -> bool:
        """Whether it has had no name for so long that it is let go."""
        if not nameless:
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = now
        return self._gone_since is not None and now - self._gone_since > _GONE_S

    def skip_to_end(self) -> None:
        """Takes all whole lines for read."""
        end = os.fstat(self._fd).st_size
        while end > 0:
            start = max(0, end - _PIECE_BYTES)
            at = os.pread(self._fd, end - start, start).rfind(b"\n")
            if at >= 0:
                self._move_to(start + at + 1)
                return
            end = start

    def backwards(self, *, whole_file: bool) -> Iterator[bytes]:
        """What has been taken for read, in blocks of whole lines, the last block first.

        Args:
            whole_file: What follows the last newline too, where it is a whole JSON text.
        """
        if whole_file:
            rest = os.pread(self._fd, LINE_MAX_BYTES, self._offset)
            if rest and is_json(rest):
                yield rest + b"\n"
        held: list[bytes] = []
        end = self._offset
        while end > 0:
            start = max(0, end - _PIECE_BYTES)
            piece = os.pread(self._fd, end - start, start)
            end = start
            cut = piece.find(b"\n") + 1 if start else 0
            if start and not cut:
                # a line that is too long leaves its beginning, which is no record and counted as such
                held = [piece, *held] if sum(map(len, held)) < LINE_MAX_BYTES else [b"\n"]
                continue
            if block := b"".join((memoryview(piece)[cut:], *held)):
                yield block
            held = [piece[:cut]]

    def new_lines(self, on_note: Callable[[str], object]) -> Iterator[bytes]:
        """The whole lines that have been added, in blocks; all lines where the file was cut or written anew."""
        if self.is_gzip:
            return
        size = os.fstat(self._fd).st_size
        if size < self._offset or (size > self._offset and not self._is_continued()):
            on_note(f"{self.path.name}: truncated, read from its start")
            self._move_to(0)
        wanted = _PIECE_BYTES
        while self._offset < size:
            piece = os.pread(self._fd, min(wanted, size - self._offset), self._offset)
            end = piece.rfind(b"\n") + 1
            if end:
                self._move_to(self._offset + end)
                yield piece[:end]
            elif len(piece) < wanted:
                return  # the line is not there in full yet
            elif wanted > LINE_MAX_BYTES:
                on_note(f"{self.path.name}: a line of more than {LINE_MAX_BYTES >> 20} MiB, passed over in parts")
                self._move_to(self._offset + len(piece))
            else:
                wanted *= 4

    def _is_continued(self) -> bool:
        return os.pread(self._fd, len(self._mark), self._offset - len(self._mark)) == self._mark

    def _move_to(self, offset: int) -> None:
        self._offset = offset
        start = max(0, offset - _MARK_BYTES)
        self._mark = os.pread(self._fd, offset - start, start)


class Changes:
    """Waits until something may have been written: by the kernel's events where there are any.

    Args:
        directories: Where the files lie, as far as they exist.
    """

    def __init__(self, directories: Iterable[Path]) -> None:
        self._inotify: Any = None
        with suppress(ImportError, OSError, AttributeError):
            from inotify_simple import INotify, flags  # noqa: PLC0415 - Linux alone has it

            self._inotify = INotify()
            for directory in directories:
                self._inotify.add_watch(directory, flags.MODIFY | flags.CREATE | flags.MOVED_TO)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.close()

    def wait(self) -> None:
        """Returns when there was an event, and after `POLL_S` in any case."""
        if self._inotify is None:
            time.sleep(POLL_S)
            return
        if self._inotify.read(timeout=int(POLL_S * 1000)):
            time.sleep(_SETTLE_S)
            self._inotify.read(timeout=0)
