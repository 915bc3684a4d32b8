"""Forks: what a child has to put right, as its parent's threads and locks are not its own; what a fork waits for."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["after_fork", "importing"]

_WAIT_SECONDS = 5.0
"""A fork is held up no longer than this, whatever an import waits for."""
_LOOK_AGAIN_SECONDS = 0.2


def after_fork(method: Callable[[], object]) -> None:
    """Has a method called in each forked child, for as long as its object lives.

    Args:
        method: A bound method; its object is not kept alive by this.
    """
    reference = weakref.WeakMethod(method)
    os.register_at_fork(after_in_child=lambda: (call := reference()) and call())


@contextmanager
def importing() -> Iterator[None]:
    """Holds up forks: for what is imported late, by a thread that the application knows nothing of.

    The interpreter's lock of a module that is half imported stays locked in a child, where the thread that would
    unlock it does not exist: whoever imports that module there, be it the application, waits for ever.
    """
    _barrier.register()
    lock = _barrier.taken()
    try:
        yield
    finally:
        lock.release()


class _Barrier:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._forking: set[int] = set()
        self._registered = False

    def register(self) -> None:
        if not self._registered:
            self._registered = True
            os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def taken(self) -> threading.RLock:
        """The lock, which whoever asks holds now."""
        while not (lock := self.lock).acquire(timeout=_LOOK_AGAIN_SECONDS):
            pass  # in a child that was forked without it, it was replaced meanwhile
        return lock

    def _before(self) -> None:
        if self.lock.acquire(timeout=_WAIT_SECONDS):
            self._forking.add(threading.get_ident())

    def _in_parent(self) -> None:
        if threading.get_ident() in self._forking:
            self._forking.remove(threading.get_ident())
            self.lock.release()

    def _in_child(self) -> None:
        if threading.get_ident() in self._forking:
            # hooks that came before this one may have started threads, which wait for this very lock
            self._forking = set()
            self.lock.release()
        else:
            self._forking = set()
            self.lock = threading.RLock()


_barrier = _Barrier()
