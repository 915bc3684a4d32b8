"""Scans of the log files for a page: few at once, each with an end, and stopped when whoever asked has gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

__all__ = ["AT_ONCE", "Budget", "GoneError", "Scans", "SpentError"]

AT_ONCE = 2
"""So many scans run at once: each takes a processor for itself."""

_WAITING_MAX = 20
_LOOK_S = 0.2

_T = TypeVar("_T")


class GoneError(Exception):
    """Whoever asked has gone; nobody reads the answer."""


class SpentError(Exception):
    """A scan took longer than it may."""


class Budget:
    """How long one scan may go on.

    Args:
        seconds: From now on; `begin` counts anew.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._gone = threading.Event()

    def begin(self) -> None:
        """The seconds count from now on: it had to wait for others."""
        self._end = time.monotonic() + self.seconds

    def leave(self) -> None:
        """Ends the scan soon: whoever asked has gone."""
        self._gone.set()

    def check_reader(self) -> None:
        """Goes on if somebody still wants the answer.

        Raises:
            GoneError: Nobody does.
        """
        if self._gone.is_set():
            raise GoneError

    @property
    def is_spent(self) -> bool:
        """Whether the time is over, for a scan that can answer with what it has.

        Raises:
            GoneError: Nobody wants the answer any more.
        """
        self.check_reader()
        return time.monotonic() >= self._end

    def check(self) -> None:
        """Goes on, for a scan that answers with all or nothing.

        Raises:
            GoneError: Nobody wants the answer any more.
            SpentError: The time is over.
        """
        if self.is_spent:
            raise SpentError


class Scans:
    """Runs scans in threads, so many at once; the others wait, and beyond a number of those it says so.

    Args:
        at_once: So many run at once.
        waiting_max: So many wait.

    Attributes:
        is_closed: Whether the site ends, and with it all that goes on.
    """

    def __init__(self, at_once: int = AT_ONCE, waiting_max: int = _WAITING_MAX) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._large = asyncio.Lock()
        self._waiting_max = waiting_max
        self._waiting = 0
        self._budgets: set[Budget] = set()
        self.is_closed = False

    async def run(
        self, work: Callable[[Budget], _T], budget: Budget, request: Request | None = None, *, large: bool = False
    ) -> _T:
        """What `work` makes of its budget, in a thread.

        Args:
            work: The scan.
            budget: How long it may go on once it runs.
            request: Who asks; the scan ends where they go. None goes on whoever is there.
            large: Whether it holds up to 100 MB; of those one runs at a time.

        Raises:
            GoneError: They have gone, or the site ends.
            HTTPException: 503, too many wait already.
        """
        if self._waiting >= self._waiting_max:
            raise HTTPException(503, "the logs are being read for others; try again in a moment", {"retry-after": "2"})
        watch = None if request is None else asyncio.create_task(_watch(request, budget))
        self._budgets.add(budget)
        try:
            async with AsyncExitStack() as held:
                self._waiting += 1
                try:
                    if large:
                        await held.enter_async_context(self._large)
                    await held.enter_async_context(self._slots)
                finally:
                    self._waiting -= 1
                if self.is_closed:
                    raise GoneError
                budget.begin()
                return await run_in_threadpool(work, budget)
        finally:
            self._budgets.discard(budget)
            if watch is not None:
                watch.cancel()
                with suppress(asyncio.CancelledError):
                    await watch

    def start(self) -> None:
        """Lets scans begin."""
        self.is_closed = False

    def close(self) -> None:
        """Ends all scans soon, and lets no other begin."""
        self.is_closed = True
        for budget in self._budgets:
            budget.leave()


async def _watch(request: Request, budget: Budget) -> None:
    while not await request.is_disconnected():  # noqa: ASYNC110 - there is nothing else to wait for
        await asyncio.sleep(_LOOK_S)
    budget.leave()
