"""How soon the pages of the logs answer on a day of a million records, beside `jarvis logs` asked the same."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from html import unescape
from pathlib import Path

from benchmarks.harness import Row, Side, compare, main, started
from benchmarks.query import DAY, write_day
from jarvis_collector.layout import day_path
from jarvis_otel.query.index_build import index_file

MEMORY_MAX = 200
PAGE_MAX = 500


def measure(quick: bool) -> list[Row]:
    """The rows of this subject."""
    os.environ["OTEL_LOGS_EXPORTER"] = "none"
    home = Path(os.environ["JARVIS_HOME"])
    (home / "config" / "flags.yaml").write_text("flags:\n  DEXTER_ENABLED: {enabled: false}\n")
    logs = home / "logs"
    logs.mkdir()
    day = day_path(logs, "jarvis", DAY)
    records, rounds = (100_000, 3) if quick else (1_000_000, 5)
    wanted = write_day(day, records)
    what = f"a day of {records:,} records, {day.stat().st_size // 1_000_000} MB"
    with started("-m", "jarvis_otel.cli.main", "web", "--port", "0") as web:
        assert web.stdout
        address = web.stdout.readline()
        visitor = _Visitor(int(re.search(r":(\d+)/", address)[1]), address.strip())  # type: ignore[index]
        rows = _pages(visitor, logs, wanted, rounds, f"{what}, no index")
        assert index_file(day) is not None
        rows += _by_id(visitor, logs, wanted, rounds, f"{what}, index")
        peak = _peak(web.pid)
    how = f"greatest resident size of the server's process after all of that; {what}"
    rows.append(
        Row("jarvis web, memory", peak, MEMORY_MAX, "MB", "the bound", *[peak / MEMORY_MAX] * 3, 1.0, how, MEMORY_MAX)
    )
    return rows


def _pages(visitor: _Visitor, logs: Path, wanted: str, rounds: int, what: str) -> list[Row]:
    older = unescape(re.search(r'href="([^"]*)">Older', visitor.get("/logs"))[1])  # type: ignore[index]
    return [
        _row("/logs, first page", visitor.side("/logs"), logs, ("query",), rounds, what, limit=PAGE_MAX),
        _row("/logs, second page", visitor.side(older), logs, ("query", "--page", "2"), rounds, what, limit=PAGE_MAX),
        _row(
            "/logs?level=ERROR, first page",
            visitor.side("/logs?level=ERROR"),
            logs,
            ("query", "--level", "ERROR"),
            rounds,
            what,
            limit=PAGE_MAX,
        ),
        _row(
            "/logs?search= of what is nowhere, all of the day read",
            visitor.side("/logs?search=nowhere"),
            logs,
            ("query", "--search", "nowhere"),
            rounds,
            what,
        ),
        _row(
            "the histogram of the day, in its own request",
            visitor.side("/api/logs/histogram"),
            logs,
            ("stats",),
            rounds,
            what,
        ),
        *_by_id(visitor, logs, wanted, rounds, what),
    ]


def _by_id(visitor: _Visitor, logs: Path, wanted: str, rounds: int, what: str) -> list[Row]:
    kind = what.rpartition(", ")[2]
    return [
        _row(
            f"/logs?correlation_id=, {kind}",
            visitor.side(f"/logs?correlation_id={wanted}"),
            logs,
            ("query", "--correlation-id", wanted),
            rounds,
            what,
        ),
        _row(f"/trace/ID, {kind}", visitor.side(f"/trace/{wanted}"), logs, ("trace", wanted), rounds, what),
    ]


class _Visitor:
    """A browser without scripts that is logged in."""

    def __init__(self, port: int, login: str) -> None:
        self._port = port
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("GET", login[login.index("/login") :])
            self._cookie = str(connection.getresponse().headers["set-cookie"]).partition(";")[0]

    def get(self, path: str) -> str:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request("GET", path, headers={"Cookie": self._cookie})
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status == 200, (path, answer.status, text)
            return text

    def side(self, path: str) -> Side:
        def once() -> float:
            began = time.perf_counter()
            self.get(path)
            return (time.perf_counter() - began) * 1000

        return once


def _row(  # noqa: PLR0917 - a line of the table
    name: str, ours: Side, logs: Path, command: Sequence[str], rounds: int, what: str, *, limit: float | None = None
) -> Row:
    jarvis = (str(Path(sys.executable).with_name("jarvis")), "logs", command[0], "--dir", str(logs), *command[1:])

    def peer() -> float:
        began = time.perf_counter()
        done = subprocess.run(jarvis, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        assert done.returncode in (0, 1), done.stderr
        return (time.perf_counter() - began) * 1000

    row = compare(
        name,
        ours,
        peer,
        rounds=rounds,
        peer_name=f"jarvis logs {command[0]}, a whole process",
        how=f"from the request to the last byte, warm page cache; {what}",
        unit="ms",
    )
    return replace(row, limit=limit)


def _peak(pid: int) -> float:
    """MB of a process at most."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1000  # type: ignore[index]


if __name__ == "__main__":
    main(measure)
