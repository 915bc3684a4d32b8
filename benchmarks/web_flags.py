"""The flag list in the web page, with a thousand flags: what the server takes for it, and until Chromium shows it."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.harness import Row, Side, compare, main, started

FLAGS = 1_000
LIMIT_MS = 200.0
INTERACTIVE_MS = 1_000.0
PEER = "datasette, a page of 1,000 rows of the same columns"
FIRST_FRAME = "() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"
BROWSER = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}


def measure(quick: bool) -> list[Row]:
    home = Path(os.environ["JARVIS_HOME"])
    os.environ["OTEL_LOGS_EXPORTER"] = "none"
    rounds = 15 if quick else 60
    (home / "config" / "flags.yaml").write_text("\n".join(["flags:", *map(_flag, range(FLAGS))]) + "\n")
    _write_evaluations(home / "logs")
    with started("-m", "jarvis_otel.cli.main", "web", "--port", "0") as web, _datasette(home) as peer:
        assert web.stdout is not None
        url = urlsplit(web.stdout.readline().strip())
        ours = http.client.HTTPConnection(url.hostname or "", url.port or 0, timeout=60)
        cookie = {"Cookie": _logged_in(ours, f"{url.path}?{url.query}")}
        first = _get(ours, "/flags", cookie)
        while b" evaluations in 24 hours" not in _page(ours, "/flags", cookie):
            time.sleep(0.1)
        turns = itertools.cycle(range(FLAGS))

        def after_a_change() -> float:
            form = "action=disable&reason=benchmark"
            ours.request("POST", f"/flags/FLAG_{next(turns):04}/change", form, {**cookie, **BROWSER})
            ours.getresponse().read()
            return _get(ours, "/flags", cookie)

        def row(what: str, side: Side, how: str) -> Row:
            asked = compare(
                what,
                side,
                lambda: _get(peer, "/flags/flags?_size=1000", {}),
                rounds=rounds,
                peer_name=PEER,
                how=how,
                unit="ms",
            )
            return replace(asked, limit=LIMIT_MS)

        size = len(_page(ours, "/flags", cookie)) / 1000
        seen = f"by a client on one connection, from request to the last byte ({size:,.0f} kB), all flags on one page"
        rows = [
            row(
                "flag list, 1,000 flags",
                lambda: _get(ours, "/flags", cookie),
                f"{seen}; the first of all took {first:.0f} ms",
            ),
            row(
                "flag list, 1,000 flags, one just changed", after_a_change, f"{seen}; the change itself is not counted"
            ),
        ]
        address = f"http://{url.netloc}/flags", f"http://{peer.host}:{peer.port}/flags/flags?_size=1000"
        return [*rows, *_in_chromium(*address, cookie["Cookie"].partition("=")[::2], max(5, rounds // 4))]


def _in_chromium(ours: str, peer: str, cookie: tuple[str, ...], rounds: int) -> list[Row]:
    """From the navigation to the first frame after the scripts ran, in a browser that has nothing in its cache."""
    if (path := shutil.which("chromium")) is None:
        print("web_flags: no Chromium, so not until the list is interactive", file=sys.stderr)
        return []
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])

        def shown(url: str) -> float:
            with browser.new_context() as context:
                context.add_cookies([{"name": cookie[0], "value": cookie[1], "url": url}])
                page = context.new_page()
                page.goto(url)
                milliseconds: float = page.evaluate(FIRST_FRAME)
            return milliseconds

        row = compare(
            "flag list, 1,000 flags, interactive in Chromium",
            lambda: shown(ours),
            lambda: shown(peer),
            rounds=rounds,
            peer_name=PEER,
            how="from the navigation to the first frame after DOMContentLoaded, a new browser context each time",
            unit="ms",
        )
        browser.close()
    return [replace(row, limit=INTERACTIVE_MS)]


def _flag(number: int) -> str:
    return (
        f"  FLAG_{number:04}: {{name: Flag number {number}, description: what it does in a few words, "
        f"category: category{number % 7}, owner: team{number % 5}, enabled: {str(number % 2 == 0).lower()}, "
        f"dangerous: {str(number % 10 == 0).lower()}, environment_defaults: {{dev: true, staging: true, prod: false}}, "
        f"rules: [{{type: percentage, value: {number % 100}}}]}}"
    )


def _write_evaluations(logs: Path) -> None:
    """Ten evaluations of each flag, for the sparklines."""
    logs.mkdir()
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    lines = [
        json.dumps(
            {
                "timestamp": f"{at}.{number:06}Z",
                "level": "INFO",
                "service": "trading",
                "message": "evaluated",
                "event": "feature_flag.evaluation",
                "_meta": {"uid": f"u{number}"},
                "context": {
                    "feature_flag.key": f"FLAG_{number % FLAGS:04}",
                    "feature_flag.result.variant": "on",
                    "feature_flag.result.reason": "split",
                },
            }
        )
        for number in range(10 * FLAGS)
    ]
    (logs / f"jarvis-{at[:10]}.jsonl").write_text("\n".join(lines) + "\n")


@contextmanager
def _datasette(home: Path) -> Iterator[http.client.HTTPConnection]:
    """The peer, over a table with what our list shows of each flag."""
    file = home / "flags.db"
    with sqlite3.connect(file) as table:
        columns = "id text primary key, name, state, dev, staging, prod, category, owner, evaluations, notes"
        table.execute(f"create table flags ({columns})")
        table.executemany(
            "insert into flags values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    f"FLAG_{n:04}",
                    f"Flag number {n}",
                    f"{n % 100} %",
                    "on",
                    "on",
                    "off",
                    f"category{n % 7}",
                    f"team{n % 5}",
                    10,
                    "",
                )
                for n in range(FLAGS)
            ],
        )
    table.close()
    command = ["-m", "datasette", "serve", str(file), "--port", "0", "--setting", "max_returned_rows", "1000"]
    peer = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert peer.stderr is not None
        port = next(found[1] for line in peer.stderr if (found := re.search(r"running on http://\S+:(\d+)", line)))
        yield http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    finally:
        peer.terminate()
        peer.wait()


def _logged_in(connection: http.client.HTTPConnection, path: str) -> str:
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return (answer.getheader("set-cookie") or "").partition(";")[0]


def _page(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> bytes:
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, (path, answer.status)
    return body


def _get(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> float:
    """Milliseconds that a page took."""
    began = time.perf_counter()
    _page(connection, path, headers)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main(measure)
