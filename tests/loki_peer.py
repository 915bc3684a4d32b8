"""What Loki's query API does with time, order and limits, on a loopback socket, so that a test can say how it answers."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.http_peers import HttpPeer, PeerHandler

Answer = tuple[int, bytes]


class LokiPeer(HttpPeer):
    """Answers range queries out of entries of (nanoseconds, line, labels); what the query says it does not look at."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, str, dict[str, str]]] = []
        self.asked: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.limit_max = 5000
        self.length_max = 721 * 3600 * 10**9
        self.answer: Callable[[dict[str, str]], Answer | None] = lambda _: None
        peer = self

        class Handler(PeerHandler):
            def do_GET(self):  # noqa: N802 - as http.server calls it
                self._answer(urlsplit(self.path).query)

            def do_POST(self):  # noqa: N802 - as http.server calls it
                self._answer(self.rfile.read(int(self.headers["content-length"])).decode())

            def _answer(self, text):
                asked = {key: values[0] for key, values in parse_qs(text, strict_parsing=True).items()}
                peer.asked.append(asked)
                peer.headers.append({key.lower(): value for key, value in self.headers.items()})
                status, content = peer.answer(asked) or peer.reply(asked)
                self.reply(status, {}, content)

        super().__init__(Handler)

    def reply(self, asked: dict[str, str]) -> Answer:
        start, end, limit = (int(asked[key]) for key in ("start", "end", "limit"))
        if limit > self.limit_max:
            said = f"max entries limit per query exceeded, limit > max_entries_limit_per_query ({limit} > {self.limit_max})"
            return 400, said.encode()
        if end - start > self.length_max:
            return 400, b"the query time range exceeds the limit (query length: 720h0m0s, limit: 1h0m0s)"
        backward = asked["direction"] == "backward"
        found = sorted((one for one in self.entries if start <= one[0] < end), key=lambda one: one[0], reverse=backward)
        streams: dict[str, dict[str, Any]] = {}
        for time, text, labels in found[:limit]:
            key = json.dumps(labels, sort_keys=True)
            streams.setdefault(key, {"stream": labels, "values": []})["values"].append([str(time), text])
        data = {"resultType": "streams", "result": list(streams.values())}
        return 200, json.dumps({"status": "success", "data": data}).encode()


@contextmanager
def loki_peer() -> Iterator[LokiPeer]:
    with LokiPeer() as peer:
        yield peer
