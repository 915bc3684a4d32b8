"""Notices that files changed: by the kernel's events where it has them, and by looking again in any case."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jarvis_flags.forks import after_fork, importing

__all__ = ["Watcher"]

LOOK_AGAIN_S = 1.0
"""Events are missed on NFS and overlay file systems, and when a directory is created late: look at each second too."""

POLL_S = 0.02
"""How often to look where the kernel tells no events."""


class _Events(Protocol):
    moved: bool
    """Whether files may lie elsewhere by now."""

    def wait(self, seconds: float) -> bool: ...
    def watch(self, directories: set[Path]) -> None: ...
    def wake(self) -> None: ...
    def is_sound(self) -> bool: ...
    def close(self) -> None: ...


class Watcher:
    """Calls a function, in a thread of its own, when one of several files changed.

    A change is any other content, rename, rollback to an older time, symlink swap, deletion or return. The thread is
    a daemon; after a fork the child gets its own.

    Args:
        paths: The files, which need not exist.
        changed: Called without arguments after a change, and once for each `poke()`.
        due: Seconds until `changed` is wanted in any case (something lapses by itself), or None.
        forked: Called in a forked child before its thread starts, to renew locks.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        changed: Callable[[], None],
        *,
        due: Callable[[], float | None] = lambda: None,
        forked: Callable[[], None] = lambda: None,
    ) -> None:
        self._paths = tuple(paths)
        self._changed = changed
        self._due = due
        self._forked = forked
        self._stopping = False
        self._poked = False
        self._seen = self._signature()
        self._events: _Events | None = None
        self._thread: threading.Thread | None = None
        after_fork(self._after_fork)

    def start(self) -> None:
        """Starts the thread, once."""
        if self._thread is None and not self._stopping:
            self._thread = threading.Thread(target=self._run, name="jarvis-flags-watcher", daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Ends the thread and waits for it.

        Args:
            timeout: Seconds to wait at most.
        """
        self._stopping = True
        if self._events is not None:
            self._events.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def poke(self) -> None:
        """Has `changed` called soon, as if a file had changed."""
        self._poked = True
        if self._events is not None:
            self._events.wake()

    def _after_fork(self) -> None:
        if self._thread is not None and not self._stopping:
            events, self._thread, self._events = self._events, None, None
            if events is not None:
                with contextlib.suppress(OSError):
                    events.close()
            self._forked()
            self.start()

    def _run(self) -> None:
        events = self._events = self._new_events()
        try:
            told, unsettled, looked = True, None, 0.0
            while not self._stopping:
                if not events.is_sound():
                    # somebody closed all descriptors, as a daemon does; their numbers may be files of theirs by now
                    events.close()
                    events = self._events = self._new_events()
                if events.moved or time.monotonic() > looked + LOOK_AGAIN_S:
                    # to follow every symlink takes longer than all else here
                    looked = time.monotonic()
                    events.watch(self._directories())
                signature: Any = self._signature()
                if signature == self._seen:
                    unsettled = None
                elif told or signature == unsettled:
                    # without the kernel's word that a writer is done, a file counts when it looks the same twice
                    self._seen, unsettled, self._poked = signature, None, True
                else:
                    unsettled = signature
                if self._poked:
                    self._poked = False
                    self._changed()
                told = self._wait(events, LOOK_AGAIN_S if unsettled is None else POLL_S)
        finally:
            events.close()

    def _new_events(self) -> _Events:
        try:
            return _Inotify(frozenset(path.name for path in self._paths))
        except (ImportError, OSError, AttributeError):
            return _Poll()

    def _wait(self, events: _Events, limit: float) -> bool:
        due = self._due()
        told = events.wait(limit if due is None else min(limit, max(due, 0.0)))
        if due is not None and due <= limit and not told:
            self._poked = True
        return told

    def _signature(self) -> tuple[Any, ...]:
        """What tells one state of the files from another; of the file that a symlink leads to."""
        signature: list[Any] = []
        for path in self._paths:
            try:
                stat = path.stat()
            except OSError as error:
                signature.append(error.errno)
            else:
                signature.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        return tuple(signature)

    def _directories(self) -> set[Path]:
        """Where the files lie, as named and as their symlinks lead; the nearest that exists where one is missing."""
        directories = set()
        for path in self._paths:
            for place in (path, Path(os.path.realpath(path))):
                directory = place.parent
                # Path.is_dir raises where a directory above may not be entered
                while not os.path.isdir(directory) and directory != directory.parent:  # noqa: PTH112
                    directory = directory.parent
                directories.add(directory)
        return directories


class _Inotify:
    """Linux: the kernel tells when a file in a directory was closed after writing, renamed, removed or created."""

    def __init__(self, names: frozenset[str]) -> None:
        with importing():
            import inotify_simple  # noqa: PLC0415 - Linux only, and not before there is something to watch

        flags = inotify_simple.flags
        self._names = names
        self._written = flags.CLOSE_WRITE
        # not MODIFY: a file that is being written would be read half
        self._done = flags.CLOSE_WRITE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE
        self._mask = self._done | flags.CREATE | flags.ATTRIB
        self._inotify = inotify_simple.INotify(nonblocking=True)
        self._watched: dict[Path, int] = {}
        self.moved = True
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        own = (self._inotify.fileno(), self._wake_read, self._wake_write)
        self._descriptors = {descriptor: _identity(descriptor) for descriptor in own}

    def watch(self, directories: set[Path]) -> None:
        self.moved = False
        for gone in set(self._watched) - directories:
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(self._watched[gone])
            del self._watched[gone]
        for directory in directories:
            # adding a watch that is there already changes nothing, but finds a directory that was replaced
            with contextlib.suppress(OSError):
                self._watched[directory] = self._inotify.add_watch(directory, self._mask)

    def wait(self, seconds: float) -> bool:
        """Waits for something to happen; true where a writer of one of the files is done."""
        try:
            ready, _, _ = select.select([self._inotify, self._wake_read], [], [], seconds)
        except (OSError, ValueError):
            return False
        if not self.is_sound():
            return False
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        if self._inotify not in ready:
            return False
        events = self._inotify.read(timeout=0)
        self.moved = self.moved or any(event.mask & ~self._written for event in events)
        return any(event.mask & self._done and event.name in self._names for event in events)

    def wake(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_ours(self._wake_write):
                os.write(self._wake_write, b"\0")

    def is_sound(self) -> bool:
        """Whether all descriptors are still what they were."""
        return all(map(self._is_ours, self._descriptors))

    def _is_ours(self, descriptor: int) -> bool:
        return _identity(descriptor) == self._descriptors[descriptor]

    def close(self) -> None:
        for descriptor in (self._wake_read, self._wake_write):
            if self._is_ours(descriptor):
                os.close(descriptor)
        if self._is_ours(self._inotify.fileno()):
            self._inotify.close()
        else:
            _lost.append(self._inotify)  # it would close the number once it is collected


def _identity(descriptor: int) -> str:
    """What a descriptor is; empty where it is nothing."""
    try:
        stat = os.fstat(descriptor)
    except OSError:
        return ""
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_mode}"


class _Poll:
    """Elsewhere: look often."""

    moved = True

    def __init__(self) -> None:
        self._woken = threading.Event()

    def watch(self, directories: set[Path]) -> None:
        """There is nothing to tell a kernel."""

    def wait(self, seconds: float) -> bool:
        self._woken.wait(min(seconds, POLL_S))
        self._woken.clear()
        return False

    def wake(self) -> None:
        self._woken.set()

    def is_sound(self) -> bool:
        return True

    def close(self) -> None:
        """There is nothing to close."""


_lost: list[Any] = []
"""Objects whose descriptor somebody closed."""
