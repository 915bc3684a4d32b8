"""What a record costs on each hop, from the logger to an answer of Loki: CPU and bytes, the figures of docs/scale.md.

`python -m benchmarks.scale` is no part of `make bench`: it compares with nobody, and wants the real Loki. A record is a
line of the day file, the events of evaluations among them. One run logs the records, and each hop takes what the one
before it made.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import os
import random
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.applications import OPERATION, configured
from benchmarks.harness import MICRO, OwnProcess, cpu_of_process
from jarvis_collector.config import Retention
from jarvis_collector.layout import archive_path, day_of, day_path, index_path
from jarvis_collector.retention import rotate
from jarvis_otel import get_flags, get_logger
from jarvis_otel.query.index_build import index_file
from jarvis_otel.runtime import RUNTIME
from tests.oracle import Embedded as EmbeddedTarget
from tests.oracle import Process
from tests.ports import free_port
from tests.real_stack import Embedded, Loki, running

DAY_NANO = 86_400 * 10**9
SPOOLED = 20_000
ROUNDS = 3


@dataclass(frozen=True)
class Hop:
    """What a record costs on one hop.

    Attributes:
        name: The hop.
        bytes: A record has after it; None where nothing new is made.
        cpu: Microseconds of CPU for a record; None where it is part of another hop.
        note: What else was found.
    """

    name: str
    bytes: float | None
    cpu: float | None
    note: str = ""


def hops_of(records: int, home: Path) -> list[Hop]:
    hops = []
    with OwnProcess(spooling, f"http://127.0.0.1:{free_port()}") as spool:
        hops.append(Hop("spool", spool(min(records, SPOOLED)), None, "the collector is away; part of the application"))
    collector = Process(EmbeddedTarget(options=("--grpc-port", "off"), protocols=("json",)), home)
    for compression in ("gzip", "none"):
        shutil.rmtree(collector.log_dir, ignore_errors=True)
        collector.start()
        endpoint = f"http://127.0.0.1:{collector.http_port}"
        try:
            with OwnProcess(application, endpoint, compression) as log:
                log(OPERATION * 100)
                before, cpu_before = _metrics(collector.http_port), cpu_of_process(collector.pid)
                cpu, wall = log(records)
            cpu_after, after = cpu_of_process(collector.pid), _metrics(collector.http_port)
            peak = _peak(collector.pid)
        finally:
            collector.end()
        name, written = 'records_written_total{signal="logs"}', "written_bytes_total"
        lines = after[name] - before[name]
        commits = after["commits_total"] - before["commits_total"]
        sent = 'received_bytes_total{signal="logs"}'
        hops += [
            Hop(f"application, {compression}", None, cpu / lines * MICRO, f"{lines:,.0f} records in {wall:.0f} s"),
            Hop(f"OTLP/JSON on the wire, {compression}", (after[sent] - before[sent]) / lines, None),
            Hop(
                f"collector, {compression}, to the file, synced",
                (after[written] - before[written]) / lines,
                (cpu_after - cpu_before) / lines * MICRO,
                f"{peak / 1e6:.0f} MB at most; {lines / commits:,.0f} a commit",
            ),
        ]
    (day,) = collector.log_dir.glob("jarvis-*.jsonl")
    content = day.read_bytes()
    lines = content.count(b"\n")
    hops += [_archived(home, day, lines), _indexed(day, lines)]
    hops += _asked(day, content, lines)
    return [*hops, *_in_loki(home / "loki", day, content, lines)]


# --- files


def _archived(home: Path, day: Path, lines: int) -> Hop:
    costs = []
    logs = home / "archived"
    for _ in range(ROUNDS):
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir()
        plain = day_path(logs, "jarvis", day_of(time.time_ns() - 10 * DAY_NANO))
        shutil.copyfile(day, plain)
        began = time.process_time()
        report = rotate(logs, Retention(min_free=0.0))
        costs.append(time.process_time() - began)
        assert report.archived, report
    size = archive_path(plain).stat().st_size
    share = size / day.stat().st_size
    return Hop("archive", size / lines, statistics.median(costs) / lines * MICRO, f"{share:.1%} of the file")


def _indexed(day: Path, lines: int) -> Hop:
    costs = []
    for _ in range(ROUNDS):
        index_path(day).unlink(missing_ok=True)
        began = time.process_time()
        made = index_file(day)
        costs.append(time.process_time() - began)
        assert made is not None
    share = made.size / day.stat().st_size
    return Hop("index", made.size / lines, statistics.median(costs) / lines * MICRO, f"{share:.2%} of the file")


def _asked(day: Path, content: bytes, lines: int) -> list[Hop]:
    """Whole processes, with their start, which a small file costs more of."""
    by_id = ("query", "--correlation-id", _an_id(content), "--limit", "0", "--format", "jsonl")
    hops = [_asking(day, "query by correlation id, index", by_id, lines)]
    index_path(day).unlink()
    hops += [
        _asking(day, "query by correlation id, no index", by_id, lines),
        _asking(day, "errors", ("errors",), lines),
        _asking(day, "stats by service and level", ("stats", "--by", "service,level"), lines),
    ]
    return hops


def _asking(day: Path, name: str, question: tuple[str, ...], lines: int) -> Hop:
    command = (sys.executable, "-m", "jarvis_otel.cli.main", "logs", *question, "--dir", str(day.parent))
    walls, cpus = [], []
    for _ in range(ROUNDS):
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.perf_counter() - began)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return Hop(name, None, statistics.median(cpus) / lines * MICRO, f"{statistics.median(walls):.2f} s for {lines:,}")


def _an_id(content: bytes) -> str:
    found = re.search(rb'"correlation_id":"([^"]+)"', content[len(content) // 2 :])
    assert found is not None
    return found[1].decode()


# --- Loki


def _in_loki(home: Path, day: Path, content: bytes, lines: int) -> list[Hop]:
    loki = Loki(home)
    with running(loki), _counting(loki.port) as (port, sent):
        forward = Embedded(home / "forward", f"http://127.0.0.1:{port}", day.parent, forward_only=True)
        idle = _idle(loki.pid)
        began, cpu_before = time.perf_counter(), cpu_of_process(loki.pid)
        with running(forward):
            _until(lambda: _of_loki(loki.port, "loki_distributor_lines_received_total") >= lines, 600)
            wall = time.perf_counter() - began
            forwarding = cpu_of_process(forward.pid)
        pushed = cpu_of_process(loki.pid) - cpu_before
        found, asked, asking = _asked_of_loki(loki, _an_id(content))
        wal, peak = _size(home / "var" / "loki" / "wal"), _peak(loki.pid)
        _post(loki.port, "/flush")
        _until_still(home / "var" / "loki" / "chunks")
        cpu = cpu_of_process(loki.pid) - cpu_before - asking
        chunks = _size(home / "var" / "loki" / "chunks")
        raw = _of_loki(loki.port, "loki_distributor_bytes_received_total")
    return [
        Hop("forward to Loki, gzip on the wire", sent() / lines, forwarding / lines * MICRO, f"{wall:.0f} s for all"),
        Hop("Loki, what it counts as received", raw / lines, None, "lines and structured metadata"),
        Hop(
            "Loki, chunks and index when all is flushed",
            chunks / lines,
            cpu / lines * MICRO,
            f"of it {pushed / lines * MICRO:.1f} µs until all was taken; idle it takes {idle:.1%} of a core; "
            f"{peak / 1e6:,.0f} MB at most; its log of writes {wal / lines:,.0f} bytes a record",
        ),
        Hop(
            "Loki, query by correlation id", None, asking / lines * MICRO, f"{asked:.2f} s for {lines:,}; {found} found"
        ),
    ]


def _asked_of_loki(loki: Loki, correlation_id: str) -> tuple[int, float, float]:
    """How many records it finds, and seconds that a question takes, by the clock and of CPU."""
    query = f'{{service_name="trading"}} | jarvis_correlation_id="{correlation_id}"'
    walls, before, found = [], cpu_of_process(loki.pid), 0
    for _ in range(ROUNDS):
        began = time.perf_counter()
        found = len(loki.records(query))
        walls.append(time.perf_counter() - began)
    assert found, f"Loki has nothing for {query}"
    return found, statistics.median(walls), (cpu_of_process(loki.pid) - before) / ROUNDS


def _idle(pid: int, seconds: float = 3.0) -> float:
    """The share of a core that a process takes when nobody asks it for anything."""
    before = cpu_of_process(pid)
    time.sleep(seconds)
    return (cpu_of_process(pid) - before) / seconds


def _of_loki(port: int, name: str) -> float:
    """A counter of Loki's, over all labels."""
    return sum(value for key, value in _samples(port).items() if key.partition("{")[0] == name)


@contextmanager
def _counting(port: int) -> Iterator[tuple[int, Callable[[], int]]]:
    """A port that leads to another one, and how many bytes went there."""
    sent = [0]
    listener = socket.create_server(("127.0.0.1", 0))

    def pipe(source: socket.socket, target: socket.socket, *, counted: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                sent[0] += len(piece) if counted else 0
                target.sendall(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for source, target, counted in ((client, server, True), (server, client, False)):
                    threading.Thread(
                        target=pipe, args=(source, target), kwargs={"counted": counted}, daemon=True
                    ).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], lambda: sent[0]
    finally:
        listener.close()


# --- applications


def spooling(endpoint: str) -> Callable[[int], float]:
    """Bytes that a record takes in the spool while there is no collector."""
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - that there is no collector, it says for good reason
    side = application(endpoint, "none", flushed=False)

    def spooled(records: int) -> float:
        side(records)
        assert RUNTIME.settings is not None
        assert RUNTIME.pipeline is not None
        segments = RUNTIME.settings.spool_dir.glob(f"{os.getpid()}-*/*.seg")
        # what is reserved and not written yet are zeros
        return sum(len(path.read_bytes().rstrip(b"\0")) for path in segments) / RUNTIME.pipeline.counters().waiting

    return spooled


def application(endpoint: str, compression: str, *, flushed: bool = True) -> Callable[[int], tuple[float, float]]:
    """Logs like a trading bot, no two records alike; seconds of CPU, and by the clock, until all has been delivered."""
    os.environ["OTEL_EXPORTER_OTLP_COMPRESSION"] = compression
    # what another one left behind is not to be delivered here
    os.environ["JARVIS_SPOOL_DIR"] = os.path.join(os.environ["JARVIS_HOME"], f"spool-{os.getpid()}")  # noqa: PTH118
    logging.getLogger().addHandler(logging.NullHandler())  # errors go to stderr where nobody has a handler
    pipeline = configured(endpoint)
    logger, flags = get_logger("trading"), get_flags()
    dice = random.Random(1)
    messages = ("Trade executed", "Order placed", "Quote received", "Balance checked")

    def log(records: int) -> tuple[float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(records // OPERATION):
            with logger.context(
                correlation_id=f"trade-{dice.getrandbits(48):012x}", user_id=f"user{dice.randrange(3000)}"
            ):
                flags.is_enabled("DEXTER_ENABLED")
                flags.is_enabled("LIVE_TRADING_ENABLED")
                for _ in range(OPERATION):
                    _log(logger, dice, dice.choice(messages))
        if flushed:
            assert pipeline.flush(300)
            assert not pipeline.counters().dropped, pipeline.counters()
        return time.process_time() - cpu, time.perf_counter() - wall

    return log


def _log(logger: object, dice: random.Random, message: str) -> None:
    if dice.random() < 0.025:
        try:
            raise LookupError(f"need {dice.random():.6f} SOL")
        except LookupError:
            logger.exception("Insufficient balance", symbol="SOL")  # type: ignore[attr-defined]
        return
    symbol, amount, price = dice.choice(("SOL", "BTC", "ETH", "AVAX")), dice.randrange(1, 500), dice.uniform(90, 200)
    logger.info(
        message, symbol=symbol, amount=amount, price=round(price, 2), order_id=f"order-{dice.getrandbits(32):010}"
    )  # type: ignore[attr-defined]


# --- what is asked of processes


def _metrics(port: int) -> dict[str, float]:
    return {key.removeprefix("jarvis_collector_"): value for key, value in _samples(port).items()}


def _samples(port: int) -> dict[str, float]:
    lines = _asked_of(port, "GET", "/metrics").decode().splitlines()
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line and line[0] != "#")}


def _post(port: int, path: str) -> None:
    _asked_of(port, "POST", path)


def _asked_of(port: int, method: str, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path)
        return connection.getresponse().read()
    finally:
        connection.close()


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.1)


def _until_still(directory: Path) -> None:
    """Waits until nothing has been written for five seconds."""
    before, since = -1, time.monotonic()
    while time.monotonic() - since < 5:
        if (now := _size(directory)) != before:
            before, since = now, time.monotonic()
        time.sleep(0.2)


def table(hops: list[Hop]) -> str:
    """The hops as one table."""
    rows = [["hop", "bytes a record", "µs of CPU a record", "records a second and core", ""], ["---"] * 5]
    rows += [
        [hop.name, _number(hop.bytes), _number(hop.cpu), _number(MICRO / hop.cpu) if hop.cpu else "", hop.note]
        for hop in hops
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--records", type=int, default=200_000, help="log so many (default: 200,000)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    args = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("JARVIS_", "OTEL_", "FF_"))]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="jarvis-scale-") as home:
        os.environ["JARVIS_HOME"] = home
        (Path(home) / "config").mkdir()
        hops = hops_of(args.records, Path(home))
    print(json.dumps([asdict(hop) for hop in hops], indent=2) if args.format == "json" else table(hops))
    print(
        f"load of the machine in the last minute: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr
    )


if __name__ == "__main__":
    main()
