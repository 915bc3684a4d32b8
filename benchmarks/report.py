"""docs/performance.md: the one table of what the benchmarks found, with the machine and the day."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from benchmarks.harness import Row, markdown

__all__ = ["PAGE", "RESULTS", "Result", "load", "page", "save"]

RESULTS = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

_BEGIN, _END = "<!-- table: python -m benchmarks --write -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Result:
    """What one benchmark found.

    Attributes:
        date: The day, in UTC.
        machine: Processor, cores, memory, kernel and Python.
        load: How many processes wanted a core when it began, of others too.
        quick: Whether its rounds were fewer and shorter.
        rows: What it found.
    """

    date: str
    machine: str
    load: float
    quick: bool
    rows: list[Row]

    @classmethod
    def of(cls, rows: list[Row], load: float, *, quick: bool) -> Self:
        """That of a run which ends now, on this machine."""
        return cls(datetime.now(UTC).date().isoformat(), _machine(), round(load, 1), quick, rows)


def load() -> dict[str, Result]:
    """The results that are kept, by the benchmark's name."""
    if not RESULTS.exists():
        return {}
    return {name: _result(**fields) for name, fields in json.loads(RESULTS.read_text()).items()}


def save(results: Mapping[str, Result]) -> None:
    """Keeps results in the place of older ones of the same benchmarks, and writes the page anew."""
    together = dict(sorted({**load(), **results}.items()))
    RESULTS.write_text(json.dumps({name: asdict(result) for name, result in together.items()}, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), together))


def page(text: str, results: Mapping[str, Result]) -> str:
    """The page with the results in the place of its table.

    Args:
        text: The page as it is, with the two comments between which the table stands.
        results: By the benchmark's name.
    """
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    blocks = []
    for machine in sorted({result.machine for result in results.values()}):
        names = [name for name, result in results.items() if result.machine == machine]
        table = markdown({name: results[name].rows for name in names})
        runs = ", ".join(f"`{name}` {_run(results[name])}" for name in names)
        blocks.append(f"{machine}. Each benchmark with its day and the load when it began: {runs}.\n\n{table}")
    return "\n\n".join([before + _BEGIN, *blocks, _END + after])


def _run(result: Result) -> str:
    return f"{result.date} ({result.load:g}{', quick' if result.quick else ''})"


def _result(rows: list[dict[str, Any]], **fields: Any) -> Result:
    return Result(rows=[Row(**row) for row in rows], **fields)


def _machine() -> str:
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return (
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, {memory / 2**20:.0f} GB, "
        f"Linux {'.'.join(platform.release().split('.')[:2])}, Python {platform.python_version()}"
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
