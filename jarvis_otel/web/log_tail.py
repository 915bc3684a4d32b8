"""Records as they come, as server-sent events: batches a few times a second, and how many were passed over."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.files import Tally
from jarvis_otel.query.log_query import Criteria
from jarvis_otel.query.scan import Found
from jarvis_otel.query.tail import Tail
from jarvis_otel.web.errors import problem
from jarvis_otel.web.log_filters import LogFilters
from jarvis_otel.web.log_rows import row_of
from jarvis_otel.web.security import stays_logged_in
from jarvis_otel.web.site import Site

__all__ = ["BATCH_MAX", "TAILS_MAX", "LogTails"]

TAILS_MAX = 8
"""So many people follow the logs at once: each reads the files for itself."""

BATCH_MAX = 60
"""So many records are in a batch, the newest ones; nobody reads more of them at once."""

_EVERY_S = 0.4
_HEARTBEAT_S = 10.0


class LogTails:
    """All that follow the logs.

    Args:
        site: The site.
        criteria: What the filters of a page mean.
    """

    def __init__(self, site: Site, criteria: Callable[[LogFilters], Criteria]) -> None:
        self._site = site
        self._criteria = criteria
        self._following = 0

    async def follow(self, request: Request) -> Response:
        """The stream: `rows` (rows of the table, oldest first), `passed` (a number) and `note` (a line)."""
        filters = LogFilters.of(request.query_params)
        try:
            criteria = self._criteria(filters)
        except QueryError as error:
            return problem(request, 400, f"{error.argument}: {error.problem}")
        if self._following >= TAILS_MAX:
            response = problem(request, 503, f"{TAILS_MAX} people follow the logs already; try again later")
            response.headers["retry-after"] = "10"
            return response
        events = self._events(request, filters, criteria)
        # whoever has the answer's head misses nothing that is written from then on
        first = await anext(events)
        return StreamingResponse(
            _after(first, events),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _events(self, request: Request, filters: LogFilters, criteria: Criteria) -> AsyncGenerator[bytes]:
        templates: Environment = request.app.state.templates
        notes: deque[str] = deque(maxlen=10)
        may_listen = stays_logged_in(request, self._site)
        self._following += 1
        try:
            with Tail(self._site.settings.log_dir, criteria, Tally(), notes.append, follow=True) as tail:
                await run_in_threadpool(tail.last, 0)
                yield b": \n\n"
                told = time.monotonic()
                while may_listen() and not (self._site.scans.is_closed or await request.is_disconnected()):
                    found, passed = await run_in_threadpool(self._batch, tail)
                    if found:
                        rows = [row_of(one, None, filters) for one in found]
                        page = templates.get_template("_log_rows.html")
                        yield _event("rows", await run_in_threadpool(page.render, rows=rows, filters=filters))
                    if passed:
                        yield _event("passed", str(passed))
                    while notes:
                        yield _event("note", notes.popleft())
                    if found:
                        told = time.monotonic()
                    elif time.monotonic() - told > _HEARTBEAT_S:
                        told = time.monotonic()
                        yield b": \n\n"
                    await asyncio.sleep(_EVERY_S)
        finally:
            self._following -= 1

    def _batch(self, tail: Tail) -> tuple[list[Found], int]:
        """The newest of what has come, oldest first, and how many more that were."""
        newest: deque[Found] = deque(maxlen=BATCH_MAX)
        count = 0
        # a directory that cannot be read now may be readable later
        with suppress(OSError):
            for found in tail.news():
                newest.append(found)
                count += 1
                if self._site.scans.is_closed:
                    break
        return list(newest), count - len(newest)


async def _after(first: bytes, others: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(others):
        yield first
        async for event in others:
            yield event


def _event(name: str, text: str) -> bytes:
    """A server-sent event; a line break in the text begins a further line of its data."""
    lines = text.encode("utf-8", "backslashreplace").replace(b"\r", b"").split(b"\n")
    return b"event: %s\n%s\n\n" % (name.encode(), b"\n".join(b"data: " + line for line in lines))
