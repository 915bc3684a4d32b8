"""Work on many items in several processes, with the results in the order of the items."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

__all__ = ["WORKERS_MAX", "in_order", "processors"]

WORKERS_MAX = 8
"""A scan is bound by memory long before it has more to do."""

_LENGTH = struct.Struct("<Q")
_PIECE = 1 << 20
_Item = TypeVar("_Item")


def processors() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[_Item], bytes], items: Sequence[_Item], workers: int) -> Iterator[bytes]:
    """What `work` makes of each item, in their order.

    The workers are forks of this process, so `work` may be anything, and end when the iterator does. Each holds one
    result, and what a pipe takes, until it is asked for, which bounds the memory. What a worker cannot do, because it
    was killed or `work` raised, is done here. There are no workers in a process with several threads, which is not to
    be forked.

    Args:
        work: Has no effect but its result.
        items: What to work on.
        workers: How many processes work besides this one, at most `WORKERS_MAX`; below 2 it is done here.
    """
    workers = min(workers, len(items), WORKERS_MAX)
    if workers < 2 or not hasattr(os, "fork") or threading.active_count() > 1:
        yield from map(work, items)
        return
    pool: list[_Worker] = []
    try:
        for number in range(workers):
            try:
                pool.append(_Worker(work, items[number::workers], [one.source for one in pool]))
            except OSError:
                break  # no more processes or files: what is there must do, and this one does the rest
        for number, item in enumerate(items):
            worker = number % workers
            result = pool[worker].result() if worker < len(pool) else None
            yield work(item) if result is None else result
    finally:
        for one in pool:
            one.end()


class _Worker:
    """A forked process that writes its results to a pipe, each after its length.

    Attributes:
        source: Where they are read.
    """

    def __init__(self, work: Callable[[_Item], bytes], items: Sequence[_Item], inherited: Sequence[int]) -> None:
        self.source, target = os.pipe()
        _widen(target)
        try:
            self._pid = os.fork()
        except OSError:
            os.close(self.source)
            os.close(target)
            raise
        if self._pid == 0:
            _serve(work, items, target, [*inherited, self.source])
        os.close(target)

    def result(self) -> bytes | None:
        """The next result; None where there will be none any more."""
        head = self._read(_LENGTH.size)
        return None if head is None else self._read(*_LENGTH.unpack(head))

    def _read(self, size: int) -> bytes | None:
        pieces = []
        while size:
            piece = os.read(self.source, min(size, _PIECE))
            if not piece:
                return None
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def end(self) -> None:
        """Ends the process, whatever it does."""
        os.close(self.source)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _widen(pipe: int) -> None:
    """Lets a worker go on to its next item while results wait to be read, as far as the system allows it."""
    with suppress(AttributeError, OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIECE)


def _serve(work: Callable[[_Item], bytes], items: Sequence[_Item], target: int, inherited: Sequence[int]) -> None:
    """The life of a worker; nothing of what its parent would do at its end is done."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        gc.disable()  # it would look again and again at what lives for one item
        for fd in inherited:  # whoever is left writing must notice that nobody reads
            os.close(fd)
        for item in items:
            result = work(item)
            for data in (_LENGTH.pack(len(result)), result):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(target, rest) :]
    finally:
        os._exit(0)
