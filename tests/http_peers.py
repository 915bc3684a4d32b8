"""What the peers of the tests stand on: an HTTP server on a loopback socket, in a thread, that a test tells how to answer."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class PeerHandler(BaseHTTPRequestHandler):
    """Answers on a connection that is kept, and says nothing of it."""

    protocol_version = "HTTP/1.1"

    def reply(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response(status)
        for key, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


class HttpPeer:
    """Serves from the moment that it is made until it is closed, whatever clients do to it.

    Args:
        handler: Answers requests.
        port: Where it listens; 0 takes a free one.
        tls: What it shows, where it speaks TLS.
    """

    def __init__(self, handler: type[PeerHandler], port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._server = _Server(("127.0.0.1", port), handler)
        if tls is not None:
            # each connection shakes hands in its own thread
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_address[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that goes away is what many tests are about
