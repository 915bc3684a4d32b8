"""Records on the disk until a collector has them: segments that outlive the process that wrote them.

Layout: `SPOOL/OWNER/` belongs to one process for as long as it holds a lock on `lock` there; `resource.json` is its
OTLP resource; `NNNNNNNN-routine.seg` and `NNNNNNNN-urgent.seg` are its segments, oldest first (see `segments`). A
process that ends in whatever way lets go of its lock; then anybody may adopt what it left, by taking the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit
from typing import NamedTuple, Self

from jarvis_otel.segments import (
    HEADER_BYTES,
    File,
    Identity,
    Item,
    Ring,
    Segment,
    identity_of,
    is_object,
    parsed,
    recovered,
)

__all__ = ["Orphan", "Spool", "Usage", "adopt", "forget_parent", "usage"]

SEGMENT_BYTES = 1024 * 1024
MEMORY_BYTES = 32 * 1024 * 1024
"""So much may wait in memory where there is no disk to be had."""

_MAPPED_MAX = 4
_SPARES_MAX = 2
_OPEN_MAX = 32
_ABANDONED_SECONDS = 60.0
_RESOURCE_MAX = 1024 * 1024
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_segment = itemgetter(3)
_segment_and_end = itemgetter(3, 4)

_held: set[Identity] = set()
"""The locks that this process has: to close a second descriptor of one would unlock it."""

_adopting = threading.RLock()


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
        self._routine = Ring("routine")
        self._urgent = Ring("urgent")
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
        # Each ring in its own order, which threads may have made another than that of the numbers: only so is what
        # lies before a settled record settled too. Where one ring has no more, the next that it reads may come first.
        taken = []
        i = j = 0
        while i < len(routine) and j < len(urgent) and len(taken) < records_max:
            if routine[i][0] <= urgent[j][0]:
                taken.append(routine[i])
                i += 1
            else:
                taken.append(urgent[j])
                j += 1
        self._routine.read, self._urgent.read = routine[i:], urgent[j:]
        return taken

    def _read_on(self, ring: Ring) -> None:
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

    def _read(self, ring: Ring, segment: Segment, stop: int) -> None:
        start = segment.cursor
        data = segment.read(start, stop)
        segment.cursor = stop
        items = parsed(segment, start, data) if self._own else None
        if items is None:
            items = list(recovered(segment, start, data))
        segment.found += len(items)
        ring.read = items

    def _account(self, ring: Ring, segment: Segment, count: int) -> None:
        """Counts what was put into a segment, and is not found in it."""
        if not self._own:
            segment.count = segment.found
            return
        with self.lock:
            if segment.gone:  # dropped meanwhile, and counted then
                return
            lost = count - segment.found
            segment.found = count
            if lost > 0:
                segment.done += lost
                ring.finished += lost
                self.damaged += lost
            elif lost < 0:  # somebody put in more, or broke one in two
                segment.count -= lost
                segment.found -= lost
                ring.appended -= lost

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
            # not under the lock: who writes lets go of the GIL, and whoever logs then would wait for both
            segment.settle(ends[segment])
        for ring in self._rings:
            self._tidy(ring)

    def _revive(self, count: int) -> None:
        """Records were dropped while they were on their way, and arrived."""

    def _tidy(self, ring: Ring) -> None:
        ended = []
        with self.lock:
            while ring.segments and ring.segments[0].read_out and ring.segments[0].done >= ring.segments[0].count:
                ended.append(ring.segments.popleft())
        for segment in ended:
            self._finish(segment)
        self._let_go()

    def _let_go(self) -> None:
        """Closes what was dropped; only the shipper may, as it reads without the lock."""
        with self.lock:
            retired, self._retired = self._retired, []
        for segment in retired:
            segment.close()

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
        self._lock_file: File | None = None
        self._spares: list[Segment] = []
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

    def _write(self, ring: Ring, segment: Segment, line: bytes, start: int) -> None:
        try:
            segment.write(line, start)
        except OSError as error:
            # truncated on a full disk, over a quota, a descriptor that somebody closed: memory takes it
            self.problem = error.strerror or str(error)
            segment.count -= 1
            memory = self._begin(ring, self._in_memory(ring, HEADER_BYTES + len(line)))
            memory.end, memory.count = HEADER_BYTES + len(line), 1
            assert isinstance(memory.buffer, bytearray)
            memory.buffer[HEADER_BYTES : memory.end] = line

    def _roll(self, ring: Ring, size: int) -> Segment:
        """The next segment of a ring, with room for a line of so many bytes."""
        wanted = max(SEGMENT_BYTES, HEADER_BYTES + size)
        spare = None
        if ring is self._routine:
            # who needs a second segment will need a third: that one is made beforehand
            self._wants_spare = ring.active is not None
            if wanted == SEGMENT_BYTES:
                spare = self._spares.pop() if self._spares else None
        return self._begin(ring, spare or self._on_disk(ring, wanted) or self._in_memory(ring, wanted))

    def _begin(self, ring: Ring, segment: Segment) -> Segment:
        previous, ring.active = ring.active, segment
        segment.ring = ring
        ring.segments.append(segment)
        # one that will soon be shipped keeps its pages, to be used again; of a long queue nobody needs them
        if previous is not None and len(ring.segments) > _MAPPED_MAX:
            previous.unmap()
            if len(ring.segments) > min(_OPEN_MAX, getrlimit(RLIMIT_NOFILE)[0] // 16):
                previous.shelve()
        return segment

    def _finish(self, segment: Segment) -> None:
        file, home = segment.file, self.home
        is_ours = file is not None and file.path.parent == home and segment.size == SEGMENT_BYTES
        if is_ours and len(self._spares) < _SPARES_MAX:
            with self.lock:
                path = self._next_path(self._routine) if self.home is home else None
            if path is not None and segment.renew(path):
                self._spares.append(segment)
                return
        segment.remove()

    def _next_path(self, ring: Ring) -> Path:
        assert self.home is not None
        self._serial += 1
        return self.home / f"{self._serial:08d}-{ring.kind}.seg"

    def _on_disk(self, ring: Ring, size: int, *, may_drop: bool = True) -> Segment | None:
        """A segment on the disk, or None where there is no room for one or no way to write it."""
        if self._directory is None:
            return None
        try:
            self._settled_in()
            tries = 2 + self._bytes_max // SEGMENT_BYTES if may_drop else 0
            while usage(self._directory).bytes + size > self._bytes_max and tries and self._drop(ring):
                tries -= 1  # who believes to have made room, and has not, must end as well
            while True:
                try:
                    segment = Segment.create(self._next_path(ring), size)
                except OSError as error:
                    tries -= 1
                    if error.errno not in _FULL or tries < 0 or self._goes_on_in_memory(ring, size):
                        raise
                    if not self._drop(ring):
                        raise
                else:
                    self.problem = ""
                    return segment
        except OSError as error:
            if error.errno == errno.ENOENT:
                self._move_out()
            self.problem = error.strerror or str(error)
            return None

    def _in_memory(self, ring: Ring, size: int) -> Segment:
        size = max(SEGMENT_BYTES, size)
        while not self._has_memory(size) and (kept := self._kept_in_memory(*self._no_dearer_than(ring))):
            self._forget(kept[0])
        return Segment.in_memory(size)

    def _goes_on_in_memory(self, ring: Ring, size: int) -> bool:
        """Whether a full disk keeps what it has: memory is not full, or what is the oldest is in memory."""
        oldest = next((segment for it in self._no_dearer_than(ring) for segment in it.segments), None)
        return self._has_memory(size) or (oldest is not None and oldest.file is None)

    def _has_memory(self, size: int) -> bool:
        return sum(segment.size for segment in self._kept_in_memory(*self._rings)) + size <= self._memory_bytes

    def _kept_in_memory(self, *rings: Ring) -> list[Segment]:
        return [segment for ring in rings for segment in ring.segments if segment.file is None]

    def _no_dearer_than(self, ring: Ring) -> tuple[Ring, ...]:
        """The rings that may lose something so that this one grows."""
        return self._rings[: 1 + self._rings.index(ring)]

    def _drop(self, ring: Ring) -> bool:
        """Drops the segment on the disk that is first to go so that a ring may grow; whether there was one."""
        assert self._directory is not None
        if self._spares:
            self._spares.pop().remove()
            return True
        for kind in self._no_dearer_than(ring):
            for orphan in adopt(self._directory):
                with orphan:
                    dropped = orphan.drop_oldest(kind.kind)
                if dropped is not None:
                    self.overflowed += dropped
                    return True
            oldest = next((segment for segment in kind.segments if segment.file is not None), None)
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
        segment.empty()
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
            lock = File(made / "lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.lockf(lock.descriptor(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                resource = File(made / "resource.json", os.O_RDWR | os.O_CREAT)
                os.write(resource.descriptor(), self.resource)
                resource.close()
                _held.add(lock.identity)
                home = made.rename(self._directory / name)
            except OSError:
                _held.discard(lock.identity)
                lock.close()
                _rmtree(made)
                raise
            lock.path = home / "lock"
            self.home, self._lock_file = home, lock

    def _move_out(self) -> None:
        """Lets go of a directory that is not ours any more; the next segment makes another."""
        self.home = None
        if self._lock_file is not None:
            _held.discard(self._lock_file.identity)
            self._lock_file.close()
            self._lock_file = None
        for ring in self._rings:
            ring.active = None

    def _is_at_home(self) -> bool:
        """Whether directory and lock are as they were made."""
        if self.home is None or self._lock_file is None:
            return True
        try:
            there = identity_of((self.home / "lock").stat())
        except OSError:
            return False
        return there == self._lock_file.identity and self._lock_file.is_open()

    def tend(self) -> None:
        """To be called about each second: gives way to who wants a file, returns to the disk, prepares a segment."""
        with self.lock:
            if not self._is_at_home():
                self._move_out()
            mapped = [*self._spares, *self._routine.segments, *self._urgent.segments]
        self._let_go()
        for segment in mapped:
            if segment.is_wanted():
                with self.lock:
                    segment.unmap()
        with self.lock:
            for ring in self._rings:
                if ring.active is not None and ring.active.file is None:
                    made = self._on_disk(ring, SEGMENT_BYTES, may_drop=False)
                    if made is not None:
                        self._begin(ring, made)
        if self.wants_spare:
            self._prepare()

    def _prepare(self) -> None:
        """Makes the next segment in the shipper's thread, not in the application's."""
        self._wants_spare = False
        home = self.home
        assert self._directory is not None
        if home is None or usage(self._directory).bytes + SEGMENT_BYTES > self._bytes_max:
            return
        with self.lock:
            if self.home is not home:
                return
            path = self._next_path(self._routine)
        with contextlib.suppress(OSError):
            segment = Segment.create(path, SEGMENT_BYTES)
            with self.lock:
                if self.home is home:
                    self._spares.append(segment)
                else:
                    segment.remove()

    @property
    def wants_spare(self) -> bool:
        """Whether `tend` has a segment to prepare."""
        return self._wants_spare and not self._spares

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
                segment.count - segment.done
                for ring in self._rings
                for segment in ring.segments
                if segment.file is None
            )

    def close(self) -> None:
        """Ends the spool in this process; what is not settled stays on the disk for whoever adopts it."""
        with self.lock:
            waits = False
            for ring in self._rings:
                for segment in ring.segments:
                    if segment.count > segment.done:
                        waits = waits or segment.file is not None
                        segment.close()
                    else:
                        segment.remove()
                ring.segments.clear()
                ring.read = []
                ring.active = None
            while self._spares:
                self._spares.pop().remove()
            if self.home is not None and not waits:
                _rmtree(self.home)
            self._move_out()

    def abandon(self) -> None:
        """In a forked child: closes what belongs to the parent, which keeps its lease and its lock."""
        for segment in (*self._spares, *self._routine.segments, *self._urgent.segments, *self._retired):
            segment.close(lease=False)
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None


class Orphan(_Store):
    """The spool of a process that is gone; this one holds its lock until `close`.

    Args:
        home: Its directory.
        lock: The file that holds its lock.
    """

    def __init__(self, home: Path, lock: File) -> None:
        resource = b""
        with contextlib.suppress(OSError):
            file = File(home / "resource.json", os.O_RDWR)
            resource = os.read(file.descriptor(), _RESOURCE_MAX)
            file.close()
        super().__init__(resource if is_object(resource) else b"{}", own=False)
        self.home = home
        self._lock_file: File | None = lock
        self._is_complete = True
        for path in sorted(home.glob("*.seg")):
            ring = self._urgent if path.stem.endswith("urgent") else self._routine
            try:
                segment = Segment.left_behind(path)
            except OSError as error:
                # a child that the process forked may hold its lease, but not for long
                self._is_complete = self._is_complete and error.errno != errno.EAGAIN
            else:
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
        count = segment.read(segment.settled, segment.end).count(b"\n")
        if not segment.unlink():
            segment.close()
            return None
        segment.empty()
        segment.close()
        return count

    def remove(self) -> None:
        """Deletes it: everything in it is settled."""
        if self._is_complete:
            _rmtree(self.home)
        self.close()

    def close(self) -> None:
        """Gives it back to whoever comes next."""
        for ring in self._rings:
            for segment in ring.segments:
                segment.close()
            ring.segments.clear()
        if self._lock_file is not None:
            self._lock_file.close()
            _held.discard(self._lock_file.identity)
            self._lock_file = None

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
        lock = _locked(home / "lock")
        if lock is not None:
            yield Orphan(home, lock)


def _locked(path: Path) -> File | None:
    """The lock of a process that is gone, taken; None where somebody has it, this process included."""
    with _adopting, contextlib.suppress(OSError):
        with contextlib.suppress(FileNotFoundError):
            # not by opening it: closing it again would give our own lock away
            if identity_of(path.stat()) in _held:
                return None
        # a directory that is half removed has none: whoever removed it was killed
        lock = File(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(lock.descriptor(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        _held.add(lock.identity)
        return lock
    return None


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
    """Removes a directory; not by shutil, which a process that gave up its rights may not be able to import."""
    with contextlib.suppress(OSError):
        for inner in list(directory.iterdir()):
            if inner.is_dir() and not inner.is_symlink():
                _rmtree(inner)
            else:
                with contextlib.suppress(OSError):
                    inner.unlink()
        directory.rmdir()


def forget_parent() -> None:
    """In a forked child: the parent's locks are not the child's."""
    global _adopting  # noqa: PLW0603 - a thread of the parent may have had it
    _adopting = threading.RLock()
    _held.clear()
