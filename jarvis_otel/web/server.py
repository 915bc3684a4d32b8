"""The server: uvicorn with bounds on what a connection may hold, that ends when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["CONNECTIONS_MAX", "serve"]

CONNECTIONS_MAX = 1_000
HEAD_MAX = 32 * 1024
HEAD_WAIT_S = 10.0
BODY_WAIT_S = 30.0
GRACE_S = 1


def serve(app: Starlette, listener: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Serves until SIGTERM or SIGINT; whoever still listens to events is sent away then.

    Args:
        app: The application.
        listener: A socket that is bound.
        ready: Called when requests are taken.
    """
    config = uvicorn.Config(
        app,
        http=_BoundedHttp,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=GRACE_S,
    )
    asyncio.run(_run(_Server(config, ready), app, listener))


async def _run(server: _Server, app: Starlette, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        app.state.site.events.stop()
        app.state.site.scans.close()
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """Says when it takes requests, and leaves signals to us: uvicorn would raise them once more after it has ended."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _BoundedHttp(HttpToolsProtocol):
    """HTTP with bounds on how long a request may take to arrive, and on the bytes of its head; uvicorn has none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(HEAD_WAIT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            if self._timer is None:
                self._wait(HEAD_WAIT_S)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_MAX and not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._wait(BODY_WAIT_S)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._head_bytes = True, 0
        self._wait(None)

    def _wait(self, seconds: float | None) -> None:
        """Closes the connection after so long, in the place of what was to close it before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.close)
