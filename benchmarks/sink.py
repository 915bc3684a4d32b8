"""An OTLP endpoint that counts the records of each request, keeps nothing, and answers 200 at once; it prints its port.

It counts the records that the benchmarks log, by their message, whatever the encoding; those of evaluations that come
along do not count. `GET /` answers how many came so far.
"""

from __future__ import annotations

import socketserver
import threading

MESSAGE = b"Trade executed"


class Handler(socketserver.StreamRequestHandler):
    """One kept-alive connection."""

    server: Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while self.rfile.readline():
            length = 0
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            body = self.rfile.read(length)
            answer = b"{}" if body else b"%d" % self.server.received
            self.server.count(body.count(MESSAGE))
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
            self.wfile.write(head + answer)


class Server(socketserver.ThreadingTCPServer):
    """Its threads end with the process."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received = 0
        self._counting = threading.Lock()

    def count(self, records: int) -> None:
        with self._counting:
            self.received += records


if __name__ == "__main__":
    with Server() as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
