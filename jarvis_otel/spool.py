"""Records on the disk until a collector has them: memory-mapped segments that outlive the process that wrote them.

Layout: `SPOOL/OWNER/` belongs to one process for as long as it holds a lock on `lock` there; `resource.json` is its
OTLP resource; `NNNNNNNN-routine.seg` and `NNNNNNNN-urgent.seg` are its segments, oldest first. A segment is text: a
header that says how far it is settled, then one line a record (`number TAB scope TAB record NEWLINE`, scope and record
in OTLP/JSON, in which neither tab nor newline occurs), then NULs. So a record is whole, or seen not to be.

A copy into a mapped segment is in the page cache, and survives everything but the machine's own end: SIGKILL, a
segfault, exec. What could turn such a copy into SIGBUS is excluded: a full disk, because the segment's blocks are
reserved before it is mapped; a truncation, by a lease, with which the kernel holds up whoever opens the file until
`Spool.tend` has unmapped it. Without map or lease a record is written by pwrite(2); without a disk it waits in memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, Self

import orjson

__all__ = ["Item", "Orphan", "Segment", "Spool", "Usage", "adopt", "forget_parent", "usage"]

SEGMENT_BYTES = 1024 * 1024
MEMORY_BYTES = 32 * 1024 * 1024
"""So much may wait in memory where there is no disk to be had."""

_MAGIC = b"jarvis-spool 1 settled "
HEADER_BYTES = len(_MAGIC) + 11
_MAPPED_MAX = 4
_ABANDONED_SECONDS = 60.0
# Above what applications that close or count descriptors reach for: a descriptor of ours that somebody else closed
# must not be a file of theirs by the time we write.
_DESCRIPTOR_MIN = 512
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_RESERVE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})

_number = itemgetter(0)
_segment = itemgetter(3)
_segment_and_end = itemgetter(3, 4)

_held: set[Path] = set()
"""The owner directories that this process has locked: to close a second descriptor of their lock would unlock them."""


class Segment:
    """One stretch of records: a mapped file, a file that is written, or memory.

    Args:
        path: The file; None for memory.
        size: Its bytes, header included.
        descriptor: The open file; None for memory.

    Attributes:
        buffer: What a record is copied into; None where it is written by pwrite(2).
        end: Offset behind the last record.
        count: Records that were put in.
        found: Records that were read.
        done: Records that are settled, or known to be lost.
        cursor: Offset up to which it was read.
        read_out: Nothing is left to read, and nothing will be added.
        gone: Dropped to make room.
    """

    __slots__ = (
        "buffer",
        "count",
        "cursor",
        "descriptor",
        "done",
        "end",
        "found",
        "gone",
        "path",
        "read_out",
        "ring",
        "settled",
        "size",
    )

    def __init__(self, path: Path | None, size: int, descriptor: int | None) -> None:
        self.path = path
        self.size = size
        self.descriptor = descriptor
        self.buffer: mmap.mmap | bytearray | None = None
        self.gone = False
        self.ring: _Ring | None = None
        self._start_anew()

    def _start_anew(self) -> None:
        self.end = self.settled = self.cursor = HEADER_BYTES
        self.count = self.found = self.done = 0
        self.read_out = False

    @classmethod
    def create(cls, path: Path, size: int) -> Self:
        """Makes a file, reserves its blocks, and maps it where that is safe.

        Raises:
            OSError: There is no room, or no way to write there.
        """
        descriptor = _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        segment = cls(path, size, descriptor)
        try:
            reserved = _reserve(descriptor, size)
            segment._write_header()
            if reserved:
                segment._map()
        except OSError:
            segment.remove()
            raise
        return segment

    @classmethod
    def in_memory(cls, size: int) -> Self:
        """A segment that ends with the process."""
        segment = cls(None, size, None)
        segment.buffer = bytearray(size)
        return segment

    @classmethod
    def left_behind(cls, path: Path) -> Self:
        """A segment that another process wrote.

        Raises:
            OSError: It cannot be read.
        """
        descriptor = _open(path, os.O_RDWR)
        segment = cls(path, os.fstat(descriptor).st_size, descriptor)
        segment.end = segment.size
        head = os.pread(descriptor, HEADER_BYTES, 0)
        with contextlib.suppress(ValueError):
            if head.startswith(_MAGIC):
                segment.settled = segment.cursor = min(max(HEADER_BYTES, int(head[len(_MAGIC) :])), segment.size)
        return segment

    def _map(self) -> None:
        assert self.descriptor is not None
        try:
            # what the kernel sends when somebody wants the file; by default it is ignored
            fcntl.fcntl(self.descriptor, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            self.buffer = mmap.mmap(self.descriptor, self.size)
            # the pages are made here and not, one by one, in the application's calls
            self.buffer.madvise(_POPULATE_WRITE)
        except (OSError, AttributeError, ValueError):
            if self.buffer is None:  # no lease to be had, or no map: then it is written
                self.unmap()

    def renew(self, path: Path) -> bool:
        """Makes the finished segment an empty one under another name; False where that is not safe.

        It has its blocks and its pages, which cost more than all the records that are copied into them.
        """
        buffer = self.buffer
        if not isinstance(buffer, mmap.mmap) or self.path is None or self.is_wanted():
            return False
        try:
            self.path.rename(path)
        except OSError:
            return False
        self.path = path
        buffer[HEADER_BYTES : self.end] = bytes(self.end - HEADER_BYTES)
        self._start_anew()
        with contextlib.suppress(OSError):
            self._write_header()
        return True

    def unmap(self) -> None:
        """Goes on with pwrite(2), and lets go of the lease."""
        if isinstance(self.buffer, mmap.mmap):
            self.buffer.close()
            self.buffer = None
        if self.descriptor is not None:
            with contextlib.suppress(OSError, AttributeError):
                fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def is_wanted(self) -> bool:
        """Whether somebody else waits to open or truncate the mapped file."""
        if self.descriptor is None or not isinstance(self.buffer, mmap.mmap):
            return False
        try:
            return fcntl.fcntl(self.descriptor, fcntl.F_GETLEASE) != fcntl.F_WRLCK
        except OSError:
            return True

    def write(self, line: bytes, start: int) -> None:
        """Writes a line at an offset that was reserved for it.

        Raises:
            OSError: The disk does not take it.
        """
        assert self.descriptor is not None
        if os.pwrite(self.descriptor, line, start) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read(self, start: int, stop: int) -> bytes:
        """What lies between two offsets; what cannot be read is left out."""
        if isinstance(self.buffer, bytearray):
            return bytes(self.buffer[start:stop])
        try:
            # never through the map, which somebody may have truncated since the lease was broken
            return os.pread(self.descriptor, stop - start, start) if self.descriptor is not None else b""
        except OSError:
            return b""

    def settle(self, end: int) -> None:
        """Notes on the disk that what lies before an offset is done with: whoever adopts it need not send it again."""
        if end > self.settled:
            self.settled = end
            with contextlib.suppress(OSError):
                self._write_header()

    def _write_header(self) -> None:
        if self.descriptor is not None:
            os.pwrite(self.descriptor, b"%b%010d\n" % (_MAGIC, self.settled), 0)

    def close(self, *, lease: bool = True) -> None:
        """Lets go of the file.

        Args:
            lease: Give the lease back too; not in a forked child, where it is the parent's.
        """
        if lease:
            self.unmap()
        elif isinstance(self.buffer, mmap.mmap):
            self.buffer.close()
        self.buffer = None
        if self.descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self.descriptor)
            self.descriptor = None

    def unlink(self) -> None:
        """Takes the name away; who has it open can still read it."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def remove(self) -> None:
        """Ends the segment for good."""
        self.unlink()
        self.close()


Item = tuple[int, bytes, bytes, Segment, int]
"""A record that was taken: its number, its scope as `encode.otlp_scope` writes it, the record in OTLP/JSON, the segment
that it lies in, and the offset behind it there."""


class _Ring:
    """Segments of one kind, oldest first.

    Attributes:
        kind: `routine` or `urgent`.
        active: The segment that records are added to.
        read: Items that were read and not taken yet.
        appended: Records that were added so far.
        finished: Those of them that are settled or lost.
    """

    __slots__ = ("active", "appended", "finished", "kind", "read", "segments")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.segments: deque[Segment] = deque()
        self.active: Segment | None = None
        self.read: list[Item] = []
        self.appended = 0
        self.finished = 0


class _Store:
    """Two rings, read in the order of the records' numbers by one thread.

    Args:
        resource: OTLP/JSON of the resource whose records these are.
        own: Whether this process wrote them: then it knows how many there are, and where.

    Attributes:
        damaged: Records that were put in and could not be read again.
    """

    def __init__(self, resource: bytes, *, own: bool) -> None:
        self.resource = resource
        self._own = own
        # An RLock: a signal handler or a finaliser may log while this very thread is in append.
        self.lock = threading.RLock()
        self.damaged = 0
        self._routine = _Ring("routine")
        self._urgent = _Ring("urgent")
        self._rings = (self._routine, self._urgent)
        self._retired: list[Segment] = []

    def take(self, records_max: int) -> list[Item]:
        """The oldest records in the order of their numbers, at least one if any waits.

        Args:
            records_max: So many at most.
        """
        for ring in self._rings:
            if not ring.read:
                self._read_on(ring)
        routine, urgent = self._routine.read, self._urgent.read
        if not urgent or not routine:
            ring = self._urgent if urgent else self._routine
            taken, ring.read = ring.read[:records_max], ring.read[records_max:]
            return taken
        # what was not read yet comes after what was: so far is the order known
        known = min(routine[-1][0], urgent[-1][0])
        taken = sorted(routine + urgent, key=_number)[:records_max]
        while taken[-1][0] > known:
            taken.pop()
        last = taken[-1][0]
        for ring in self._rings:
            ring.read = [item for item in ring.read if item[0] > last]
        return taken

    def _read_on(self, ring: _Ring) -> None:
        """Reads on in a ring until a record was found or there is nothing more."""
        while not ring.read:
            with self.lock:
                segment = next((segment for segment in ring.segments if not segment.read_out), None)
                if segment is None:
                    return
                stop, count, is_active = segment.end, segment.count, segment is ring.active
            if segment.cursor < stop:
                self._read(ring, segment, stop)
                self._account(ring, segment, count)
            elif is_active:
                return
            else:
                segment.read_out = True
                self._tidy(ring)

    def _read(self, ring: _Ring, segment: Segment, stop: int) -> None:
        start = segment.cursor
        data = segment.read(start, stop)
        segment.cursor = stop
        items = _parsed(segment, start, data) if self._own else None
        if items is None:
            items = list(_recovered(segment, start, data))
        segment.found += len(items)
        ring.read = items

    def _account(self, ring: _Ring, segment: Segment, count: int) -> None:
        """Counts what was put into a segment, and is not found in it."""
        if not self._own:
            segment.count = segment.found
        elif segment.found < count:
            with self.lock:
                lost = count - segment.found
                segment.found = count
                segment.done += lost
                ring.finished += lost
                self.damaged += lost

    def release(self, items: Sequence[Item]) -> None:
        """Lets go of records that were taken, oldest first, and are settled now."""
        counts, ends = Counter(map(_segment, items)), dict(map(_segment_and_end, items))
        for segment, count in counts.items():
            ring = segment.ring
            assert ring is not None
            with self.lock:
                if segment.gone:
                    self._revive(count)
                    continue
                segment.done += count
                ring.finished += count
                segment.settle(ends[segment])
            self._tidy(ring)

    def _revive(self, count: int) -> None:
        """Records were dropped while they were on their way, and arrived."""

    def _tidy(self, ring: _Ring) -> None:
        with self.lock:
            while ring.segments and ring.segments[0].read_out and ring.segments[0].done >= ring.segments[0].count:
                self._finish(ring.segments.popleft())
            while self._retired:
                self._retired.pop().close()

    def _finish(self, segment: Segment) -> None:
        """Ends a segment of which nothing is left to ship."""
        segment.remove()


class Spool(_Store):
    """The spool of this process: takes records from any thread, and gives them back in order to one.

    Its directory, lock and segments are made when they are needed. Where the disk is full or cannot be written, records
    wait in memory, up to `memory_bytes`. Where room is needed, whole segments are dropped: routine ones first, those of
    dead processes before our own, the oldest first; urgent ones only for urgent records. A process that finds the
    directory filled by others that live may still have one segment of each kind.

    Args:
        directory: Where the spools of all processes lie; None keeps everything in memory.
        resource: OTLP/JSON of the process's resource.
        bytes_max: Bytes that all segments in the directory may take together.
        memory_bytes: Bytes that may wait in memory.

    Attributes:
        home: The process's own directory, once there is one.
        overflowed: Records that were dropped to make room.
        problem: Why records wait in memory; empty where they do not.
    """

    def __init__(
        self, directory: Path | None, resource: bytes, *, bytes_max: int, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        super().__init__(resource, own=True)
        self._directory = directory
        self._bytes_max = bytes_max
        self._memory_bytes = memory_bytes
        self._lock_descriptor: int | None = None
        self._spare: Segment | None = None
        self._wants_spare = False
        self._serial = 0
        self.home: Path | None = None
        self.overflowed = 0
        self.problem = ""

    def append(self, line: bytes, *, urgent: bool) -> None:
        """Adds a record; unless there is a `problem`, it survives the process when this returns.

        Args:
            line: `number TAB scope TAB record NEWLINE`.
            urgent: Whether it is a WARNING or above, which outlives routine records.
        """
        with self.lock:
            ring = self._urgent if urgent else self._routine
            segment, size = ring.active, len(line)
            if segment is None or segment.end + size > segment.size:
                segment = self._roll(ring, size)
            # Reserved before it is written: a signal handler that interrupts this thread gets the bytes behind.
            start = segment.end
            segment.end = start + size
            segment.count += 1
            ring.appended += 1
            buffer = segment.buffer
            if buffer is not None:
                buffer[start : start + size] = line
            else:
                self._write(ring, segment, line, start)

    def _write(self, ring: _Ring, segment: Segment, line: bytes, start: int) -> None:
        try:
            segment.write(line, start)
        except OSError as error:
            # truncated on a full disk, over a quota, a descriptor that somebody closed: memory takes it
            self.problem = error.strerror or str(error)
            segment.count -= 1
            memory = self._begin(ring, self._in_memory(HEADER_BYTES + len(line)))
            memory.end, memory.count = HEADER_BYTES + len(line), 1
            assert isinstance(memory.buffer, bytearray)
            memory.buffer[HEADER_BYTES : memory.end] = line

    def _roll(self, ring: _Ring, size: int) -> Segment:
        """The next segment of a ring, with room for a line of so many bytes."""
        wanted = max(SEGMENT_BYTES, HEADER_BYTES + size)
        spare = None
        if ring is self._routine:
            # who needs a second segment will need a third: that one is made beforehand
            self._wants_spare = ring.active is not None
            if wanted == SEGMENT_BYTES:
                spare, self._spare = self._spare, None
        return self._begin(ring, spare or self._on_disk(ring, wanted) or self._in_memory(wanted))

    def _begin(self, ring: _Ring, segment: Segment) -> Segment:
        previous, ring.active = ring.active, segment
        segment.ring = ring
        ring.segments.append(segment)
        # one that will soon be shipped keeps its pages, to be used again; of a long queue nobody needs them
        if previous is not None and previous.path is not None and len(ring.segments) > _MAPPED_MAX:
            previous.unmap()
        return segment

    def _finish(self, segment: Segment) -> None:
        path, home = segment.path, self.home
        is_ours = path is not None and path.parent == home and segment.size == SEGMENT_BYTES
        if self._spare is None and is_ours and segment.renew(self._next_path(self._routine)):
            self._spare = segment
        else:
            segment.remove()

    def _next_path(self, ring: _Ring) -> Path:
        assert self.home is not None
        self._serial += 1
        return self.home / f"{self._serial:08d}-{ring.kind}.seg"

    def _on_disk(self, ring: _Ring, size: int) -> Segment | None:
        """A segment on the disk, or None where there is no room for one or no way to write it."""
        if self._directory is None:
            return None
        try:
            self._settled_in()
            while usage(self._directory).bytes + size > self._bytes_max and self._drop(ring):
                pass
            while True:
                try:
                    segment = Segment.create(self._next_path(ring), size)
                except OSError as error:
                    # what is on a full disk goes only once memory is full too
                    if error.errno not in _FULL or self._has_memory(size) or not self._drop(ring):
                        raise
                else:
                    self.problem = ""
                    return segment
        except OSError as error:
            if error.errno == errno.ENOENT:
                self._move_out()
            self.problem = error.strerror or str(error)
            return None

    def _in_memory(self, size: int) -> Segment:
        size = max(SEGMENT_BYTES, size)
        while not self._has_memory(size) and (kept := self._kept_in_memory()):
            self._forget(kept[0])
        return Segment.in_memory(size)

    def _has_memory(self, size: int) -> bool:
        return sum(segment.size for segment in self._kept_in_memory()) + size <= self._memory_bytes

    def _kept_in_memory(self) -> list[Segment]:
        return [segment for ring in self._rings for segment in ring.segments if segment.path is None]

    def _drop(self, ring: _Ring) -> bool:
        """Drops the segment on the disk that is first to go so that a ring may grow; whether there was one."""
        assert self._directory is not None
        for kind in self._rings[: 1 + self._rings.index(ring)]:
            for orphan in adopt(self._directory):
                with orphan:
                    dropped = orphan.drop_oldest(kind.kind)
                if dropped is not None:
                    self.overflowed += dropped
                    return True
            oldest = next((segment for segment in kind.segments if segment.path is not None), None)
            if oldest is not None:
                self._forget(oldest)
                return True
        return False

    def _forget(self, segment: Segment) -> None:
        ring = segment.ring
        assert ring is not None
        lost = segment.count - segment.done
        segment.gone = True
        self.overflowed += lost
        ring.finished += lost
        ring.segments.remove(segment)
        ring.read = [item for item in ring.read if item[3] is not segment]
        if segment is ring.active:
            ring.active = None
        segment.unlink()
        # the shipper may be reading it: it closes it
        self._retired.append(segment)

    def _revive(self, count: int) -> None:
        self.overflowed -= count

    def _settled_in(self) -> None:
        """Makes and locks the process's own directory, once.

        Raises:
            OSError: It cannot be made.
        """
        if self.home is None:
            assert self._directory is not None
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = f"{os.getpid()}-{os.urandom(6).hex()}"
            # whole or not at all: a directory whose lock is free is an orphan
            made = self._directory / f".{name}"
            made.mkdir(mode=0o700)
            lock = _open(made / "lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (made / "resource.json").write_bytes(self.resource)
                home = self._directory / name
                _held.add(home)
                made.rename(home)
            except OSError:
                os.close(lock)
                _rmtree(made)
                raise
            self.home, self._lock_descriptor = home, lock

    def _move_out(self) -> None:
        """Lets go of a directory that somebody removed; the next segment makes another."""
        if self.home is not None:
            _held.discard(self.home)
            self.home = None
        if self._lock_descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._lock_descriptor)
            self._lock_descriptor = None

    def tend(self) -> None:
        """To be called about each second: gives way to who wants a file, returns to the disk, prepares a segment."""
        with self.lock:
            for segment in (self._spare, *self._routine.segments, *self._urgent.segments):
                if segment is not None and segment.is_wanted():
                    segment.unmap()
            for ring in self._rings:
                if ring.active is not None and ring.active.path is None:
                    segment = self._on_disk(ring, SEGMENT_BYTES)
                    if segment is not None:
                        self._begin(ring, segment)
        if self._wants_spare and self._spare is None:
            self._prepare()

    def _prepare(self) -> None:
        """Makes the next segment in the shipper's thread, not in the application's."""
        self._wants_spare = False
        home = self.home
        assert self._directory is not None
        if home is None or usage(self._directory).bytes + SEGMENT_BYTES > self._bytes_max:
            return
        with self.lock:
            path = self._next_path(self._routine)
        with contextlib.suppress(OSError):
            segment = Segment.create(path, SEGMENT_BYTES)
            with self.lock:
                if self._spare is None and self.home is home:
                    self._spare = segment
                else:
                    segment.remove()

    @property
    def wants_spare(self) -> bool:
        """Whether `tend` has a segment to prepare."""
        return self._wants_spare and self._spare is None

    @property
    def appended(self) -> int:
        """Records that were added so far."""
        return self._routine.appended + self._urgent.appended

    def __len__(self) -> int:
        """Records that are neither settled nor lost."""
        with self.lock:
            return sum(ring.appended - ring.finished for ring in self._rings)

    def mark(self) -> tuple[int, int]:
        """A point to wait for with `passed`: everything that was added before."""
        return self._routine.appended, self._urgent.appended

    def passed(self, mark: tuple[int, int]) -> bool:
        """Whether everything that was added before a mark is settled or lost."""
        return self._routine.finished >= mark[0] and self._urgent.finished >= mark[1]

    def records_in_memory(self) -> int:
        """Records that only this process has, and that end with it."""
        with self.lock:
            return sum(
                segment.count - segment.done for ring in self._rings for segment in ring.segments if not segment.path
            )

    def close(self) -> None:
        """Ends the spool in this process; what is not settled stays on the disk for whoever adopts it."""
        with self.lock:
            waits = False
            for ring in self._rings:
                for segment in ring.segments:
                    if segment.count > segment.done:
                        waits = waits or segment.path is not None
                        segment.close()
                    else:
                        segment.remove()
                ring.segments.clear()
                ring.read = []
                ring.active = None
            if self._spare is not None:
                self._spare.remove()
                self._spare = None
            if self.home is not None and not waits:
                _rmtree(self.home)
            self._move_out()

    def abandon(self) -> None:
        """In a forked child: closes what belongs to the parent, which keeps its lease and its lock."""
        for segment in (self._spare, *self._routine.segments, *self._urgent.segments, *self._retired):
            if segment is not None:
                segment.close(lease=False)
        if self._lock_descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._lock_descriptor)
            self._lock_descriptor = None


class Orphan(_Store):
    """The spool of a process that is gone; this one holds its lock until `close`.

    Args:
        home: Its directory.
        lock: The descriptor that holds its lock.
    """

    def __init__(self, home: Path, lock: int) -> None:
        try:
            resource = (home / "resource.json").read_bytes()
        except OSError:
            resource = b""
        super().__init__(resource if _is_object(resource) else b"{}", own=False)
        self.home = home
        self._lock_descriptor: int | None = lock
        for path in sorted(home.glob("*.seg")):
            ring = self._urgent if path.stem.endswith("urgent") else self._routine
            with contextlib.suppress(OSError):
                segment = Segment.left_behind(path)
                segment.ring = ring
                ring.segments.append(segment)

    def __len__(self) -> int:
        """Records that wait in it, as far as they can be told without reading each."""
        return sum(
            segment.read(segment.settled, segment.end).count(b"\n") for ring in self._rings for segment in ring.segments
        )

    def drop_oldest(self, kind: str) -> int | None:
        """Deletes its oldest segment of a kind, and tells how many records were in it; None where it has none.

        Args:
            kind: `routine` or `urgent`.
        """
        ring = self._urgent if kind == "urgent" else self._routine
        if not ring.segments:
            return None
        segment = ring.segments.popleft()
        data = segment.read(segment.settled, segment.end)
        segment.remove()
        return data.count(b"\n")

    def remove(self) -> None:
        """Deletes it: everything in it is settled."""
        _rmtree(self.home)
        self.close()

    def close(self) -> None:
        """Gives it back to whoever comes next."""
        for ring in self._rings:
            for segment in ring.segments:
                segment.close()
            ring.segments.clear()
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None
        _held.discard(self.home)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def adopt(directory: Path) -> Iterator[Orphan]:
    """The spools of processes that are gone, each locked by this process; whoever takes one closes or removes it.

    Args:
        directory: Where the spools of all processes lie.
    """
    for home in _owners(directory):
        if home.name.startswith("."):
            _remove_abandoned(home)
            continue
        if home in _held:
            continue
        try:
            lock = _open(home / "lock", os.O_RDWR)
        except FileNotFoundError:
            # half removed by somebody who was killed meanwhile; a live owner's directory has its lock from the start
            with contextlib.suppress(OSError):
                home.rmdir()
            continue
        except OSError:
            continue
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            continue
        _held.add(home)
        yield Orphan(home, lock)


def _owners(directory: Path) -> list[Path]:
    """The directories of all processes, the oldest first."""
    try:
        with os.scandir(directory) as entries:
            return [Path(entry.path) for entry in sorted(entries, key=_age) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _age(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def _remove_abandoned(made: Path) -> None:
    """Removes a directory whose process ended while it was making it."""
    with contextlib.suppress(OSError):
        if time.time() - made.stat().st_mtime > _ABANDONED_SECONDS:
            _rmtree(made)


class Usage(NamedTuple):
    """What the spools in a directory take.

    Attributes:
        bytes: Bytes of their segments.
        owners: Processes that have one, dead ones too.
    """

    bytes: int
    owners: int


def usage(directory: Path) -> Usage:
    """What the spools in a directory take together.

    Args:
        directory: Where the spools of all processes lie.
    """
    total = owners = 0
    with contextlib.suppress(OSError), os.scandir(directory) as homes:
        for home in homes:
            owners += 1
            with contextlib.suppress(OSError), os.scandir(home.path) as files:
                total += sum(file.stat(follow_symlinks=False).st_size for file in files if file.name.endswith(".seg"))
    return Usage(total, owners)


def _rmtree(directory: Path) -> None:
    from shutil import rmtree  # noqa: PLC0415 - it brings compressors along

    rmtree(directory, ignore_errors=True)


def forget_parent() -> None:
    """In a forked child: the parent's locks are not the child's."""
    _held.clear()


def _open(path: Path, flags: int) -> int:
    """A descriptor that nobody else's counting or closing hits, of a file that is no symlink."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # where so high a number is not allowed, the one we have must do
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTOR_MIN)
    except OSError:
        return descriptor
    os.close(descriptor)
    return moved


def _reserve(descriptor: int, size: int) -> bool:
    """Whether the file has its blocks now.

    Raises:
        OSError: There is no room for them.
    """
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:
        return False
    except OSError as error:
        if error.errno not in _NO_RESERVE:
            raise
        return False
    return True


def _parsed(segment: Segment, start: int, data: bytes) -> list[Item] | None:
    """The records of lines that are as they were written; None where something else stands there."""
    lines = data.split(b"\n")
    if b"\0" in data or lines.pop():
        return None
    items: list[Item] = []
    end = start
    try:
        for line in lines:
            end += len(line) + 1
            number, scope, record = line.split(b"\t")
            items.append((int(number), scope, record, segment, end))
    except ValueError:
        return None
    return items


def _recovered(segment: Segment, start: int, data: bytes) -> Iterable[Item]:
    """Every record that is whole, among bytes that need not be as they were written."""
    end = start
    for line in data.split(b"\n")[:-1]:
        end += len(line) + 1
        # what was torn stands before NULs, or without any right before what is whole
        number, _, rest = line.rpartition(b"\0")[2].partition(b"\t")
        scope, _, record = rest.partition(b"\t")
        digits = number[len(number.rstrip(b"0123456789")) :]
        if digits and _is_object(record) and _is_object(scope + b"]}"):
            yield int(digits), scope, record, segment, end


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except ValueError:
        return False
