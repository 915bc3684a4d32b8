"""An OTLP endpoint that takes every request, keeps nothing, and answers 200 at once; it prints its port."""

from __future__ import annotations

import socketserver


class Handler(socketserver.StreamRequestHandler):
    """One kept-alive connection."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        while True:
            length = 0
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if not line:
                return
            self.rfile.read(length)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")


class Server(socketserver.ThreadingTCPServer):
    """Its threads end with the process."""

    daemon_threads = True


if __name__ == "__main__":
    with Server(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
