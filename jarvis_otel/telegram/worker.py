"""A thread for what blocks, one thing after the other, so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Worker"]

_T = TypeVar("_T")


class Worker:
    """Runs functions in a thread of its own, in the order in which they were asked for.

    The thread is a daemon: what hangs in it does not keep the process from ending.

    Args:
        name: What it does, for the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[..., _T], *args: Any) -> _T:
        """What a function returns, or raises.

        Args:
            function: What blocks.
            args: What it is given.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        def work() -> None:
            result, error = None, None
            try:
                result = function(*args)
            except BaseException as caught:
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, result, error)

        self._start()
        self._waiting.put(work)
        return await done

    def stop(self, timeout: float) -> None:
        """Ends the thread after what it has begun and what waits.

        Args:
            timeout: Seconds to wait at most.
        """
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(timeout)
            self._thread = None

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"jarvis-telegram-{self._name}", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            work()
