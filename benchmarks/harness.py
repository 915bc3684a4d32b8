"""What the benchmarks share: two sides do the same work in turns, and a row says how they compare.

A side is a function that does its share of the work once (a slice) and returns what one unit of it cost. `compare`
runs the slices of both in turns, so that whatever else the machine does falls on both, and takes the median of the
ratios of the rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

__all__ = ["OwnProcess", "Row", "Side", "compare", "cpu_of_process", "main", "markdown", "per_call", "started"]

Side = Callable[[], float]

_T = TypeVar("_T")

MICRO = 1e6


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: The work.
        ours: What a unit of it costs us: the median of the rounds.
        peer: What it costs the peer.
        unit: Of both figures.
        peer_name: With whom we compare.
        ratio: The median over the rounds of ours / peer.
        lowest, highest: The spread of that ratio.
        target: What the ratio must not exceed; None where there is no target.
        how: What was measured, and what each side leaves behind.
        limit: What our own figure must not exceed; None where there is no such bound.
    """

    what: str
    ours: float
    peer: float
    unit: str
    peer_name: str
    ratio: float
    lowest: float
    highest: float
    target: float | None
    how: str
    limit: float | None = None


def compare(
    what: str,
    ours: Side,
    peer: Side,
    *,
    rounds: int,
    peer_name: str,
    how: str,
    target: float | None = None,
    unit: str = "µs",
) -> Row:
    """Runs both sides in turns, after one slice each that does not count.

    Args:
        what: The work.
        ours: Our slice.
        peer: The peer's.
        rounds: Slices of each.
        peer_name: With whom we compare.
        how: What was measured.
        target: What the ratio must not exceed.
        unit: Of what the slices return.
    """
    ours()
    peer()
    pairs = [(ours(), peer()) for _ in range(rounds)]
    ratios = [our_cost / peer_cost for our_cost, peer_cost in pairs]
    return Row(
        what,
        statistics.median(our_cost for our_cost, _ in pairs),
        statistics.median(peer_cost for _, peer_cost in pairs),
        unit,
        peer_name,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        target,
        f"{how}; {rounds} rounds",
    )


def per_call(
    statement: str, names: Mapping[str, Any], calls: int, clock: Callable[[], float] = time.thread_time
) -> Side:
    """A side that runs a statement again and again, and returns the microseconds that one took.

    The garbage collector stays on, which timeit would turn off: what is allocated is part of the cost.

    Args:
        statement: The work.
        names: What it refers to.
        calls: How often a slice runs it.
        clock: CPU time of the calling thread, if nothing else is named.
    """
    timer = timeit.Timer(statement, "import gc; gc.enable()", clock, dict(names))
    return lambda: timer.timeit(calls) / calls * MICRO


class OwnProcess(Generic[_T]):
    """A side in a fresh interpreter of its own, for work that changes the process it runs in.

    Args:
        make: A function at the top of a module that sets up and returns the side; it runs in the new process. A side
            for `compare` returns a float, others take and return whatever can be pickled.
        args: What it is given.
    """

    def __init__(self, make: Callable[..., Callable[..., _T]], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args))
        self._process.start()
        theirs.close()

    def __call__(self, *args: Any) -> _T:
        self._connection.send(args)
        measured: _T = self._connection.recv()
        return measured

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, make: Callable[..., Callable[..., Any]], args: tuple[Any, ...]) -> None:
    side = make(*args)
    while True:
        try:
            given = connection.recv()
        except EOFError:
            return
        connection.send(side(*given))


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process, for as long as it is needed; SIGTERM ends it.

    Args:
        arguments: Those of the interpreter.
    """
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def cpu_of_process(pid: int) -> float:
    """Seconds of CPU that all threads of another process have used; Linux only.

    The clock's number is what clock_getcpuclockid(3) makes of the process id.
    """
    return time.clock_gettime((~pid << 3) | 2)


def main(measure: Callable[[bool], list[Row]]) -> None:
    """Runs one benchmark in a project of its own, and prints its rows as JSON.

    Args:
        measure: The benchmark; it is told whether to be quick.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    args = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("JARVIS_", "OTEL_", "FF_"))]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as home:
        os.environ["JARVIS_HOME"] = home
        (Path(home) / "config").mkdir()
        rows = measure(args.quick)
    print(json.dumps([asdict(row) for row in rows]))


def markdown(rows: Mapping[str, list[Row]]) -> str:
    """The rows of each benchmark as one table, and below it how each was measured.

    Args:
        rows: By the name of their benchmark.
    """
    cells = [["benchmark", "what", "ours", "peer", "ratio (lowest to highest)", "target"], ["---"] * 6]
    notes = []
    for name, of_one in rows.items():
        cells += [
            [
                f"`{name}`",
                row.what,
                f"{row.ours:,.2f} {row.unit}",
                f"{row.peer:,.2f} {row.unit}: {row.peer_name}",
                f"{row.ratio:.2f}x ({row.lowest:.2f} to {row.highest:.2f})",
                _target(row),
            ]
            for row in of_one
        ]
        hows: dict[str, list[str]] = {}
        for row in of_one:
            hows.setdefault(row.how, []).append(f"{row.what}, against {row.peer_name}")
        notes += [f"- `{name}`: {'; '.join(whats)}: {how}." for how, whats in hows.items()]
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in cells)
    return f"{table}\n\nHow each was measured:\n\n" + "\n".join(notes)


def _target(row: Row) -> str:
    wanted = []
    if row.target is not None:
        wanted.append(f"≤ {row.target:.2f}x {'met' if row.ratio <= row.target else 'missed'}")
    if row.limit is not None:
        wanted.append(f"≤ {row.limit:,g} {row.unit} {'met' if row.ours <= row.limit else 'missed'}")
    return ", ".join(wanted) or "none"
