"""JSON over HTTP on loopback: how the processes of Jarvis call each other without losing the operation."""

import argparse
import http.client
import json
import os
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jarvis_otel import get_logger
from jarvis_otel.propagation import inject_headers, server_operation

__all__ = ["Answer", "call", "serve", "server_parser"]

BODY_MAX = 65_536
TIMEOUT_SECONDS = 10.0

Answer = tuple[int, dict[str, Any]]
"""Status and JSON object."""


def server_parser(description: str) -> argparse.ArgumentParser:
    """The options that all servers know.

    Args:
        description: What the server is.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, default=0, help="TCP port on loopback; 0 takes a free one")
    parser.add_argument("--port-file", type=Path, metavar="FILE", help="write the port there once it listens")
    return parser


def call(url: str, body: Mapping[str, Any]) -> Answer:
    """Posts a JSON object as part of the current operation.

    Args:
        url: An http URL.
        body: What is sent.

    Raises:
        OSError: The server cannot be reached.
    """
    parts = urlsplit(url)
    headers = inject_headers({"Content-Type": "application/json"}, url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", parts.path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.load(response)
    finally:
        connection.close()


def serve(
    service: str, routes: Mapping[str, Callable[[dict[str, Any]], Answer]], *, port: int, port_file: Path | None
) -> None:
    """Serves until the process is told to stop; each request is an operation within its caller's trace.

    Args:
        service: The service, as its log records name it.
        routes: What answers a POST, by path.
        port: TCP port on loopback; 0 takes a free one.
        port_file: Where the port is written once the server listens.
    """
    logger = get_logger(service)

    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_SECONDS

        def do_POST(self) -> None:
            route = routes.get(self.path)
            if route is None:
                self.answer(404, {"error": f"no {self.path} here"})
                return
            with server_operation(dict(self.headers.items()), f"POST {self.path}", service):
                try:
                    status, answer = route(self.body())
                except ValueError as error:
                    status, answer = 400, {"error": str(error)}
                except Exception:
                    logger.exception("Request failed", path=self.path)
                    status, answer = 500, {"error": "internal error"}
            self.answer(status, answer)

        def body(self) -> dict[str, Any]:
            length = int(self.headers.get("Content-Length", ""))
            if not 0 <= length <= BODY_MAX:
                raise ValueError(f"got a body of {length} bytes, want at most {BODY_MAX}")
            body = json.loads(self.rfile.read(length))
            if not isinstance(body, dict):
                raise ValueError("want a JSON object")  # noqa: TRY004 - what is wrong is the value that was sent
            return body

        def answer(self, status: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """The services log for themselves."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        if port_file is not None:
            # whole or not at all: whoever waits for the file reads it as soon as it is there
            temporary = port_file.with_name(f".{port_file.name}.{os.getpid()}")
            temporary.write_text(f"{server.server_port}\n")
            temporary.replace(port_file)
        logger.info("Listening", port=server.server_port)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            logger.info("Stopped")
