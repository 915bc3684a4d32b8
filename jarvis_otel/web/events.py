"""Changes of flags as server-sent events: one watcher and one line of events for all who listen.

https://html.spec.whatwg.org/multipage/server-sent-events.html; a client that comes back says where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from jarvis_flags.snapshot import Snapshot
from jarvis_flags.source import Change, FlagSource
from jarvis_otel.web.by_clock import by_clock, differing

__all__ = ["Events", "FlagEvent", "event_stream"]

HEARTBEAT_S = 15.0
CLOCK_WAIT_S = 10.0
CLIENTS_MAX = 500
RECENT_S = 60.0
"""Who begins to listen so soon after a change is told of it once more."""
KEPT_MAX = 200
IDS_MAX = 100
"""A change of more flags than that is told as one of all."""


@dataclass(frozen=True, slots=True)
class FlagEvent:
    """Flags changed.

    Attributes:
        number: Counts up from 1.
        flags: Which, sorted; empty is any of them.
        version: The version of the flag set then.
        revision: The revision of the run-time state then.
        at: Unix seconds.
    """

    number: int
    flags: tuple[str, ...]
    version: str
    revision: int
    at: float


class Events:
    """The changes of flags since the process began, the newest 200 of them, for any number of listeners.

    A listener that falls behind, or comes back after a while, misses nothing: where its place is gone it is told that
    any flag may have changed.

    Args:
        source: The flags.
        clock_wait: Seconds between two looks for flags that changed by the clock alone.
    """

    def __init__(self, source: FlagSource, clock_wait: float = CLOCK_WAIT_S) -> None:
        self._source = source
        self._clock_wait = clock_wait
        self._ticking: asyncio.Task[None] | None = None
        self._epoch = secrets.token_hex(4)
        self._kept: deque[FlagEvent] = deque(maxlen=KEPT_MAX)
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._cancel: Callable[[], None] | None = None
        self._ended = False
        self.listening = 0

    def start(self) -> None:
        """Begins to watch, within a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._ended = False
        self._cancel = self._source.subscribe(self._changed)
        self._ticking = self._loop.create_task(self._tick())

    def stop(self) -> None:
        """Ends watching and every stream."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        self._ended = True
        self._wake()

    @property
    def is_full(self) -> bool:
        """Whether no further listener is taken."""
        return self.listening >= CLIENTS_MAX

    async def follow(self, last_id: str | None = None) -> AsyncIterator[tuple[str, FlagEvent | None]]:
        """The events from now on, or from after one, each with its id; None now and then where nothing happens.

        Args:
            last_id: The id of the last event that the listener knows.
        """
        seen, missed = self._place(last_id)
        self.listening += 1
        try:
            if missed:
                yield self._id(self._number), self._anything()
            # so that whoever listens learns at once that it does
            yield self._id(seen), None
            while not self._ended:
                woken = self._woken
                for event in [event for event in self._kept if event.number > seen]:
                    if event.number > seen + 1:
                        yield self._id(self._number), self._anything()
                        seen = self._number
                        break
                    seen = event.number
                    yield self._id(seen), event
                if seen == self._number and woken is self._woken:
                    try:
                        await asyncio.wait_for(woken.wait(), HEARTBEAT_S)
                    except TimeoutError:
                        yield self._id(seen), None
        finally:
            self.listening -= 1

    def _place(self, last_id: str | None) -> tuple[int, bool]:
        """Where a listener goes on, and whether it missed what is not kept any more."""
        epoch, _, number = (last_id or "").partition("-")
        if not last_id:
            # they looked at the flags before they began to listen
            return self._number, bool(self._kept) and time.time() - self._kept[-1].at < RECENT_S
        oldest = self._number - len(self._kept)
        if epoch == self._epoch and number.isdecimal() and oldest <= (place := int(number[:20])) <= self._number:
            return place, False
        return self._number, True

    def _id(self, number: int) -> str:
        return f"{self._epoch}-{number}"

    def _anything(self) -> FlagEvent:
        snapshot = self._source.snapshot
        return FlagEvent(self._number, (), snapshot.version, snapshot.overrides.revision, time.time())

    def _changed(self, change: Change) -> None:
        """Called in the thread that noticed it."""
        loop = self._loop
        if loop is not None and change.flags:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._keep, change.flags, change.new)

    async def _tick(self) -> None:
        before = by_clock(self._source.snapshot, time.time())
        while True:
            await asyncio.sleep(self._clock_wait)
            snapshot = self._source.snapshot
            after = by_clock(snapshot, time.time())
            if flags := differing(before, after):
                self._keep(flags, snapshot)
            before = after

    def _keep(self, flags: tuple[str, ...], snapshot: Snapshot) -> None:
        self._number += 1
        told = flags if len(flags) <= IDS_MAX else ()
        event = FlagEvent(self._number, told, snapshot.version, snapshot.overrides.revision, time.time())
        self._kept.append(event)
        self._wake()

    def _wake(self) -> None:
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()


def event_stream(
    events: Events,
    request: Request,
    encode: Callable[[FlagEvent], Mapping[str, object]],
    name: str,
    may_listen: Callable[[], bool] = lambda: True,
) -> Response:
    """An answer that goes on as long as somebody listens.

    Args:
        events: The events.
        request: The request; Last-Event-ID says from where on.
        encode: What an event says.
        name: What the event is called (`event:`).
        may_listen: Whether they still may; asked before each event and heartbeat.
    """
    if events.is_full:
        return Response(status_code=503, headers={"retry-after": "5"})

    async def body() -> AsyncIterator[bytes]:
        async for place, event in events.follow(request.headers.get("last-event-id")):
            if not may_listen():
                return
            if event is None:
                yield b": \n\n"
            else:
                yield b"id: %s\nevent: %s\ndata: %s\n\n" % (place.encode(), name.encode(), orjson.dumps(encode(event)))

    return StreamingResponse(
        body(), media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
    )
