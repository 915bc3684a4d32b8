"""One stretch of records in the spool: a mapped file, a file that is written, or memory.

A segment is text: a header that says how far it is settled, then one line a record (`number TAB scope TAB record
NEWLINE`, scope and record in OTLP/JSON, in which neither tab nor newline occurs), then NULs. So a record is whole, or
seen not to be.

A copy into a mapped segment is in the page cache, and survives everything but the machine's own end. What could turn
such a copy into SIGBUS is excluded: a full disk, because the segment's blocks are reserved before it is mapped; a
truncation, by a lease, with which the kernel holds up whoever opens the file until `Spool.tend` has unmapped it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import signal
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG
from typing import Self

import orjson

__all__ = [
    "HEADER_BYTES",
    "File",
    "Identity",
    "Item",
    "Ring",
    "Segment",
    "identity_of",
    "is_object",
    "parsed",
    "recovered",
]

_MAGIC = b"jarvis-spool 1 settled "
_HIGHEST = 9_999_999_999
HEADER_BYTES = len(_MAGIC) + 22
# Above what applications that close or count descriptors reach for: a descriptor of ours that somebody else closed
# must not be a file of theirs by the time we write.
_DESCRIPTOR_MIN = 512
_MAP_FIXED = 0x10
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14
_NO_RESERVE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_DIGITS_MAX = 18

Identity = tuple[int, int]
"""Device and inode."""


class File:
    """An open file of ours; its descriptor is used only after a look whether it is still that of this file.

    An application that closes all descriptors (a daemon does) may have given the number to a file of its own.

    Args:
        path: Where it is.
        flags: Of open(2).

    Attributes:
        identity: Device and inode.

    Raises:
        OSError: It cannot be opened.
    """

    __slots__ = ("_descriptor", "identity", "path")

    def __init__(self, path: Path, flags: int) -> None:
        self.path = path
        self._descriptor: int | None = _open(path, flags)
        stat = os.fstat(self._descriptor)
        self.identity = identity_of(stat)
        if not S_ISREG(stat.st_mode):
            self.close()
            raise FileNotFoundError(errno.ENOENT, "not a file")

    def descriptor(self) -> int:
        """The descriptor; the file is opened once more where somebody, or `close`, closed it.

        Raises:
            OSError: It is not there any more.
        """
        if not self.is_open():
            descriptor = _open(self.path, os.O_RDWR)
            if identity_of(os.fstat(descriptor)) != self.identity:
                os.close(descriptor)
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._descriptor = descriptor
        assert self._descriptor is not None
        return self._descriptor

    def is_open(self) -> bool:
        """Whether the descriptor is that of this file."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                if identity_of(os.fstat(self._descriptor)) == self.identity:
                    return True
            self._descriptor = None
        return False

    def close(self) -> None:
        """Closes the descriptor, for a time or for good."""
        if self.is_open():
            assert self._descriptor is not None
            os.close(self._descriptor)
            self._descriptor = None


class Segment:
    """One stretch of records: a mapped file, a file that is written, or memory.

    Args:
        size: Its bytes, header included.
        file: The file; None for memory.

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
        "done",
        "end",
        "file",
        "found",
        "gone",
        "read_out",
        "ring",
        "settled",
        "size",
    )

    def __init__(self, size: int, file: File | None) -> None:
        self.size = size
        self.file = file
        self.buffer: mmap.mmap | bytearray | None = None
        self.gone = False
        self.ring: Ring | None = None
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
        file = File(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        segment = cls(size, file)
        try:
            reserved = _reserve(file.descriptor(), size)
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
        segment = cls(size, None)
        segment.buffer = bytearray(size)
        return segment

    @classmethod
    def left_behind(cls, path: Path) -> Self:
        """A segment that another process wrote.

        Raises:
            OSError: It cannot be read.
        """
        file = File(path, os.O_RDWR)
        segment = cls(os.fstat(file.descriptor()).st_size, file)
        segment.end = segment.size
        # a header that is not as it was written counts as none: what it hid is sent once more
        head = os.pread(file.descriptor(), HEADER_BYTES, 0)
        with contextlib.suppress(ValueError):
            settled, check = map(int, head[len(_MAGIC) :].split())
            if head.startswith(_MAGIC) and settled + check == _HIGHEST and settled <= segment.size:
                segment.settled = segment.cursor = max(HEADER_BYTES, settled)
        file.close()
        return segment

    @property
    def path(self) -> Path | None:
        """Where it is; None for memory."""
        return None if self.file is None else self.file.path

    def _map(self) -> None:
        assert self.file is not None
        descriptor = self.file.descriptor()
        try:
            # what the kernel sends when somebody wants the file; by default it is ignored
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            self.buffer = _mapped(descriptor, self.size)
            # the pages are made here and not, one by one, in the application's calls
            self.buffer.madvise(_POPULATE_WRITE)
        except (OSError, AttributeError, ValueError, ImportError):
            if self.buffer is None:  # no lease to be had, or no map: then it is written
                self.unmap()

    def renew(self, path: Path) -> bool:
        """Makes the finished segment an empty one under another name; False where that is not safe.

        It has its blocks and its pages, which cost more than all the records that are copied into them.
        """
        buffer, file = self.buffer, self.file
        if not isinstance(buffer, mmap.mmap) or file is None or self.is_wanted():
            return False
        try:
            file.path.rename(path)
        except OSError:
            return False
        file.path = path
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
        if self.file is not None and self.file.is_open():
            with contextlib.suppress(OSError, AttributeError):
                fcntl.fcntl(self.file.descriptor(), fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def is_wanted(self) -> bool:
        """Whether somebody else waits to open or truncate the mapped file, or the lease is lost."""
        if self.file is None or not isinstance(self.buffer, mmap.mmap):
            return False
        try:
            return not self.file.is_open() or fcntl.fcntl(self.file.descriptor(), fcntl.F_GETLEASE) != fcntl.F_WRLCK
        except OSError:
            return True

    def shelve(self) -> None:
        """Closes the file until it is read: a long queue must not take the application's descriptors."""
        if self.file is not None:
            self.file.close()

    def write(self, line: bytes, start: int) -> None:
        """Writes a line at an offset that was reserved for it.

        Raises:
            OSError: The disk does not take it.
        """
        assert self.file is not None
        if os.pwrite(self.file.descriptor(), line, start) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read(self, start: int, stop: int) -> bytes:
        """What lies between two offsets; what cannot be read is left out."""
        if isinstance(self.buffer, bytearray):
            return bytes(self.buffer[start:stop])
        try:
            # never through the map, which somebody may have truncated since the lease was broken
            return os.pread(self.file.descriptor(), stop - start, start) if self.file is not None else b""
        except OSError:
            # but where somebody closed the descriptor, the map still holds the lease, and nobody can open the file
            return bytes(self.buffer[start:stop]) if isinstance(self.buffer, mmap.mmap) else b""

    def settle(self, end: int) -> None:
        """Notes on the disk that what lies before an offset is done with: whoever adopts it need not send it again."""
        if end > self.settled:
            self.settled = end
            with contextlib.suppress(OSError):
                self._write_header()

    def _write_header(self) -> None:
        if self.file is not None:
            header = b"%b%010d %010d\n" % (_MAGIC, self.settled, _HIGHEST - self.settled)
            os.pwrite(self.file.descriptor(), header, 0)

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
        if self.file is not None:
            self.file.close()

    def unlink(self) -> bool:
        """Takes the name away, and tells whether that was possible; who has it open can still read it."""
        if self.file is not None:
            try:
                self.file.path.unlink(missing_ok=True)
            except OSError:
                return False
        return True

    def empty(self) -> None:
        """Gives its blocks back, though the shipper may still have it open."""
        self.unmap()
        if self.file is not None and self.file.is_open():
            with contextlib.suppress(OSError):
                os.ftruncate(self.file.descriptor(), 0)

    def remove(self) -> None:
        """Ends the segment for good."""
        self.unlink()
        self.close()


Item = tuple[int, bytes, bytes, Segment, int]
"""A record that was taken: its number, its scope as `encode.otlp_scope` writes it, the record in OTLP/JSON, the segment
that it lies in, and the offset behind it there."""


class Ring:
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


def _open(path: Path, flags: int) -> int:
    """A descriptor that nobody else's counting or closing hits, of a file that is no symlink.

    It never waits: where somebody has a lease, it fails with EAGAIN, and the lease ends within seconds.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        # where so high a number is not allowed, the one we have must do
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTOR_MIN)
    except OSError:
        return descriptor
    os.close(descriptor)
    return moved


def identity_of(stat: os.stat_result) -> Identity:
    """Which file it is, whatever its name."""
    return stat.st_dev, stat.st_ino


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    """A map of a file that keeps no descriptor of its own.

    Before Python 3.13 mmap keeps a duplicate with a low number, which an application may close and use again, and
    closes it at the end. So a map of nothing is made, and the file put into its place.

    Raises:
        OSError: There is no room for it.
    """
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, size, trackfd=False)
    import ctypes  # noqa: PLC0415

    area = mmap.mmap(-1, size)
    place = ctypes.addressof(ctypes.c_char.from_buffer(area))
    map_at = ctypes.CDLL(None, use_errno=True).mmap
    map_at.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    map_at.restype = ctypes.c_void_p
    flags = mmap.MAP_SHARED | _MAP_FIXED
    if map_at(place, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0) != place:
        area.close()
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return area


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


def parsed(segment: Segment, start: int, data: bytes) -> list[Item] | None:
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


def recovered(segment: Segment, start: int, data: bytes) -> Iterable[Item]:
    """Every record that is whole, among bytes that need not be as they were written."""
    end = start
    for line in data.split(b"\n")[:-1]:
        end += len(line) + 1
        # what was torn stands before what is whole, perhaps with nothing between them
        number, *parts = line.rsplit(b"\t", 2)
        digits = number[len(number.rstrip(b"0123456789")) :][-_DIGITS_MAX:]
        if digits and len(parts) == 2 and is_object(parts[1]) and is_object(parts[0] + b"]}"):
            yield int(digits), parts[0], parts[1], segment, end


def is_object(text: bytes) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(orjson.loads(text), dict)
    except ValueError:
        return False
