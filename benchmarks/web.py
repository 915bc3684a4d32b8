"""OFREP and the change stream of `jarvis web`: what an evaluation costs its process, and how soon listeners hear."""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.harness import MICRO, Row, Side, compare, cpu_of_process, main, started
from benchmarks.reload import flag_file
from jarvis_flags.files import write_file

FLAGS = 1_000
LISTENERS = 200
CONTEXT = {"context": {"targetingKey": "user-1", "email": "ann@ours.example", "plan": "pro"}}
ONE, ALL = "/ofrep/v1/evaluate/flags/FLAG_00005", "/ofrep/v1/evaluate/flags"


def measure(quick: bool) -> list[Row]:
    """The rows of this subject."""
    os.environ["OTEL_LOGS_EXPORTER"] = "none"
    flags = Path(os.environ["JARVIS_HOME"]) / "config" / "flags.yaml"
    flags.write_text(flag_file(FLAGS, on=False))
    rounds = 5 if quick else 15
    with started("-m", "jarvis_otel.cli.main", "web", "--port", "0") as web:
        port = int(re.search(r":(\d+)/", _line(web)).group(1))  # type: ignore[union-attr]
        one, every = len(_ask(port, ONE)), len(_ask(port, ALL))
        rows = [
            _row("OFREP, one flag", (web, port, ONE), ("starlette", one), 200, rounds, limit=500),
            _row("OFREP, one flag", (web, port, ONE), ("uvicorn", one), 200, rounds, limit=500),
            _row(f"OFREP, {FLAGS:,} flags", (web, port, ALL), ("starlette", every), 20, rounds, limit=10_000),
            _row(f"OFREP, {FLAGS:,} flags", (web, port, ALL), ("uvicorn", every), 20, rounds, limit=10_000),
        ]
        changes = 4 if quick else 10
        alone, crowd = _heard(port, flags, 1, changes), _heard(port, flags, LISTENERS, changes)
    rows.append(
        Row(
            f"{LISTENERS} listeners hear of an edit of the flag file",
            max(crowd),
            max(alone),
            "ms",
            "one listener alone",
            max(crowd) / max(alone),
            min(crowd) / max(alone),
            max(crowd) / min(alone),
            None,
            f"until the last has it, the worst of {changes} edits (median {statistics.median(crowd):.0f} ms)",
            limit=1_000,
        )
    )
    return rows


def _row(
    what: str,
    ours: tuple[subprocess.Popen[str], int, str],
    peer: tuple[str, int],
    requests: int,
    rounds: int,
    *,
    limit: float,
) -> Row:
    (web, port, path), (kind, size) = ours, peer
    names = {"starlette": "a Starlette route", "uvicorn": "a bare ASGI application on uvicorn"}
    with started("-m", "benchmarks.bare_web", kind, str(size)) as bare:
        bare_port = int(_line(bare))
        row = compare(
            what,
            _side(web.pid, port, path, requests),
            _side(bare.pid, bare_port, path, requests),
            rounds=rounds,
            peer_name=f"{names[kind]} that answers the same {size:,} bytes and evaluates nothing",
            how=f"CPU of the server's process for a request, {requests} a round; every flag has two rules to evaluate",
        )
    return Row(**{**vars(row), "limit": limit})


def _side(pid: int, port: int, path: str, requests: int) -> Side:
    def run() -> float:
        began = cpu_of_process(pid)
        with _connected(port) as connection:
            for _ in range(requests):
                _exchange(connection, port, path)
        return (cpu_of_process(pid) - began) / requests * MICRO

    return run


@contextmanager
def _connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def _exchange(connection: socket.socket, port: int, path: str) -> bytes:
    body = json.dumps(CONTEXT)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    got = connection.recv(1 << 20)
    while b"\r\n\r\n" not in got:
        got += connection.recv(1 << 20)
    head_bytes, _, answer = got.partition(b"\r\n\r\n")
    assert head_bytes.startswith(b"HTTP/1.1 200"), head_bytes
    length = int(head_bytes.lower().partition(b"content-length: ")[2].split()[0])
    pieces, have = [answer], len(answer)
    while have < length:
        pieces.append(connection.recv(1 << 20))
        have += len(pieces[-1])
    return b"".join(pieces)


def _ask(port: int, path: str) -> bytes:
    with _connected(port) as connection:
        return _exchange(connection, port, path)


def _heard(port: int, flags: Path, listeners: int, changes: int) -> list[float]:
    """Milliseconds from an edit until the last of the listeners has heard of it, for each edit."""
    took = []
    with ExitStack() as stack:
        connections = [stack.enter_context(_connected(port)) for _ in range(listeners)]
        for connection in connections:
            connection.sendall(f"GET /ofrep/v1/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            _until(connection, b": \n\n")
        on = "enabled: true" in flags.read_text().partition("FLAG_00001")[0]
        for _ in range(changes):
            on = not on
            began = time.perf_counter()
            write_file(flags, flag_file(FLAGS, on=on).encode(), durable=False)
            for connection in connections:
                _until(connection, b"refetchEvaluation")
            took.append((time.perf_counter() - began) * 1e3)
    return took


def _until(connection: socket.socket, wanted: bytes) -> None:
    got = b""
    while wanted not in got:
        piece = connection.recv(65_536)
        assert piece, "the stream ended"
        got += piece


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


if __name__ == "__main__":
    main(measure)
