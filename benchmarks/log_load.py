"""Many threads and many processes that log at once: the CPU that a delivered record costs, and that none is lost."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

from benchmarks.applications import OPERATION, Application, opentelemetry, ours, received, sink
from benchmarks.harness import MICRO, OwnProcess, Row, main

THREADS = 10
PROCESSES = (1, 4, 8)


@dataclass(frozen=True)
class Load:
    """What became of one go.

    Attributes:
        logged: Records that were logged.
        delivered: Records that the sink got.
        cpu: Seconds of CPU of the process, or of all of them, until all was delivered; not that of the operations.
        wall: Seconds that it took, operations included.
    """

    logged: int
    delivered: int
    cpu: float
    wall: float

    @property
    def lost(self) -> int:
        return self.logged - self.delivered

    @property
    def rate(self) -> float:
        """Records per second of CPU."""
        return self.delivered / self.cpu


def measure(quick: bool) -> list[Row]:
    return [*_threads(20_000 if quick else 200_000, 2 if quick else 3), *_processes(5_000 if quick else 20_000, 3)]


def _threads(records: int, rounds: int) -> list[Row]:
    with sink() as endpoint, ExitStack() as stack:
        our_side, roomy_side, stock_side = (
            stack.enter_context(OwnProcess(make, endpoint, *more))
            for make, more in ((our_threads, ()), (opentelemetry_threads, (records,)), (opentelemetry_threads, (None,)))
        )
        for side in (our_side, roomy_side, stock_side):
            side(THREADS * 100)
        goes = [(our_side(records), roomy_side(records), stock_side(records)) for _ in range(rounds)]
    ours_lost, roomy_lost, stock_lost = (sum(load.lost for load in loads) for loads in zip(*goes, strict=True))
    assert not ours_lost, f"{ours_lost} records of ours did not arrive"
    assert not roomy_lost, f"{roomy_lost} of the peer's did not arrive: its figures are not comparable"
    total = records * rounds
    what = f"{THREADS} threads, {records:,} records, delivered"
    how = (
        f"CPU of the whole process per record that a loopback OTLP sink got; {rounds} rounds; ours ships two events of "
        f"evaluations for each {OPERATION} records, too, and lost 0 of {total:,}"
    )
    return [
        _row(
            what,
            [(1 / ours.rate, 1 / roomy.rate) for ours, roomy, _ in goes],
            "OTel LoggingHandler, batch processor, OTLP/HTTP exporter, with a queue for all of them",
            f"{how}; the peer lost 0",
            target=0.20,
        ),
        _row(
            what,
            [(1 / ours.rate, 1 / stock.rate) for ours, _, stock in goes],
            "the same with the SDK's default queue",
            f"{how}; the peer lost {stock_lost:,}, {stock_lost / total:.0%}",
        ),
    ]


def _row(what: str, pairs: list[tuple[float, float]], peer_name: str, how: str, target: float | None = None) -> Row:
    ratios = [cost / peer_cost for cost, peer_cost in pairs]
    return Row(
        what,
        statistics.median(cost for cost, _ in pairs) * MICRO,
        statistics.median(peer_cost for _, peer_cost in pairs) * MICRO,
        "µs",
        peer_name,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        target,
        how,
    )


def _processes(records: int, rounds: int) -> list[Row]:
    """Processes that share a spool directory and a sink; each logs in one thread."""
    goes: list[dict[int, Load]] = []
    with sink() as endpoint, ExitStack() as stack, ThreadPoolExecutor(max(PROCESSES)) as pool:
        sides = [stack.enter_context(OwnProcess(our_process, endpoint, records)) for _ in range(max(PROCESSES))]
        list(pool.map(lambda side: side(), sides))
        for _ in range(rounds):
            loads = {}
            for count in PROCESSES:
                before, began = received(endpoint), time.perf_counter()
                cpu = sum(pool.map(lambda side: side(), sides[:count]))
                wall = time.perf_counter() - began
                loads[count] = Load(count * records, received(endpoint) - before, cpu, wall)
            goes.append(loads)
    rows = []
    for count in PROCESSES[1:]:
        lost = sum(loads[count].lost for loads in goes)
        assert not lost, f"{lost} records of {count} processes did not arrive"
        ratios = [loads[count].rate / loads[1].rate for loads in goes]
        wall, alone = (statistics.median(loads[n].delivered / loads[n].wall for loads in goes) for n in (count, 1))
        rows.append(
            Row(
                f"{count} processes logging at once",
                statistics.median(loads[count].rate for loads in goes),
                statistics.median(loads[1].rate for loads in goes),
                "records/CPU s",
                "one process",
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                None,
                f"more is better; {records:,} records each, one spool directory and one sink, 0 lost; by wall time "
                f"{wall:,.0f} records/s, one process {alone:,.0f}, on {os.cpu_count()} cores that the sink shares; "
                f"{rounds} rounds",
            )
        )
    return rows


# --- the sides ---


def our_threads(endpoint: str) -> Callable[[int], Load]:
    return _in_threads(ours(endpoint), endpoint)


def opentelemetry_threads(endpoint: str, queue: int | None) -> Callable[[int], Load]:
    return _in_threads(opentelemetry(OTLPLogExporter(f"{endpoint}/v1/logs"), queue=queue), endpoint)


def our_process(endpoint: str, records: int) -> Callable[[], float]:
    application = ours(endpoint)

    def side() -> float:
        before = time.process_time()
        _, around = application.run(records)
        application.flush()
        return time.process_time() - before - around

    return side


def _in_threads(application: Application, endpoint: str) -> Callable[[int], Load]:
    def side(records: int) -> Load:
        before = received(endpoint)
        began, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(THREADS) as pool:
            around = sum(around for _, around in pool.map(application.run, [records // THREADS] * THREADS))
        application.flush()
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu - around
        return Load(records, received(endpoint) - before, cpu, wall)

    return side


if __name__ == "__main__":
    main(measure)
