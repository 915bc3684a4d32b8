"""A log call beside a Python thread that computes without a pause: who lets go of the GIL may wait to get it back."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.applications import OPERATION, Application, ours, sink, structlog_to_file
from benchmarks.harness import OwnProcess, Row, main

LIMIT = 50.0
PAUSE = 0.001
"""Seconds between two operations, as an application has them that waits for something."""


def measure(quick: bool) -> list[Row]:
    rounds, calls = (3, 1_000) if quick else (15, 1_000)
    with (
        sink() as endpoint,
        OwnProcess(our_latencies, calls, endpoint) as our_side,
        OwnProcess(structlog_latencies, calls) as peer_side,
    ):
        our_side(), peer_side()
        pairs = [(our_side(), peer_side()) for _ in range(rounds)]
    ratios = [_quantile(our_times, 0.99) / _quantile(peer_times, 0.99) for our_times, peer_times in pairs]
    our_times = [taken for times, _ in pairs for taken in times]
    peer_times = [taken for _, times in pairs for taken in times]
    cost, peer_cost = _quantile(our_times, 0.99), _quantile(peer_times, 0.99)
    return [
        Row(
            "logger.info beside a busy thread, p99",
            cost,
            peer_cost,
            "µs",
            "structlog 26.1 + orjson, contextvars, level and time",
            cost / peer_cost,
            min(ratios),
            max(ratios),
            None,
            f"wall time of the call, shipping meanwhile; operations of {OPERATION} records, {PAUSE * 1000:g} ms apart; "
            f"ours {_spread(our_times)}; the peer writes to its file: {_spread(peer_times)}",
            LIMIT,
        )
    ]


def our_latencies(calls: int, endpoint: str) -> Callable[[], list[float]]:
    return _latencies(ours(endpoint), calls)


def structlog_latencies(calls: int) -> Callable[[], list[float]]:
    return _latencies(structlog_to_file(whole=False), calls)


def _latencies(application: Application, calls: int) -> Callable[[], list[float]]:
    """Microseconds of each call, the busy thread's turns included."""
    log = application.log

    def side() -> list[float]:
        times = []
        with _busy_thread():
            for number in range(calls // OPERATION):
                with application.operation(f"trade-{number}"):
                    for _ in range(OPERATION):
                        began = time.perf_counter_ns()
                        log.info("Trade executed", symbol="SOL", amount=100)
                        times.append((time.perf_counter_ns() - began) / 1000)
                time.sleep(PAUSE)
        application.flush()
        return times

    return side


@contextmanager
def _busy_thread() -> Iterator[None]:
    stopping = False

    def compute() -> None:
        number = 0
        while not stopping:
            number += 1

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stopping = True
        thread.join()


def _quantile(times: list[float], share: float) -> float:
    return sorted(times)[max(0, int(len(times) * share) - 1)]


def _spread(times: list[float]) -> str:
    return (
        f"p50 {statistics.median(times):,.1f}, p99.9 {_quantile(times, 0.999):,.0f}, worst {max(times):,.0f} µs "
        f"of {len(times):,} calls"
    )


if __name__ == "__main__":
    main(measure)
