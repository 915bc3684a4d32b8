"""Our collector beside the real one with a real Loki behind both: what kills lose, and how long a record takes."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import OwnProcess, Row, main
from tests.oracle import Embedded as EmbeddedTarget
from tests.oracle import RealCollector, run
from tests.real_stack import Embedded, FileCollector, Loki, LokiCollector, running

_POLL_SECONDS = 0.01


def measure(quick: bool) -> list[Row]:
    for name in ("otelcol", "loki"):
        subprocess.run(
            [Path(__file__).parent.parent / "scripts" / "build-real", name], stdout=subprocess.DEVNULL, check=True
        )
    home = Path(os.environ["JARVIS_HOME"])
    return [_losses(home / "kills", 10 if quick else 100), *_lags(home / "lag", 10 if quick else 60)]


def _losses(home: Path, rounds: int) -> Row:
    results = []
    for target in (EmbeddedTarget(), RealCollector.found()):
        (place := home / target.name).mkdir(parents=True)
        results.append(run(target, place, fault="kill", rounds=rounds, seconds=0.4))
    ours, real = results
    shares = [each.lost / each.acknowledged * 100_000 for each in results]
    ratio = shares[0] / shares[1] if shares[1] else float(shares[0] > 0)
    return Row(
        "records lost of 100,000 that were acknowledged, under SIGKILL",
        *shares,
        "records",
        "the real Collector with collector/otelcol.yaml",
        ratio,
        ratio,
        ratio,
        0.0,
        f"tests/oracle.py, {rounds} kills each: {ours.acknowledged:,} and {real.acknowledged:,} acknowledged, "
        f"{ours.lost} and {real.lost} lost, {ours.unreadable} and {real.unreadable} unreadable lines, "
        f"{ours.repeats} and {real.repeats} repeats",
    )


def _lags(home: Path, records: int) -> list[Row]:
    loki = Loki(home / "loki")
    files = FileCollector(home / "real")
    forward = LokiCollector(home / "real-forward", files.logs, loki.url)
    embedded = Embedded(home / "embedded", loki.url)
    with running(loki, files, forward, embedded):
        ours, real = ([*_seen_in_loki(each.url, loki, records)] for each in (embedded, files))
    rows = []
    for name, pick in (("p50", statistics.median), ("p99", _p99)):
        mine, theirs = pick(ours), pick(real)
        rows.append(
            Row(
                f"from logger.info to visible in Loki, {name}",
                mine * 1000,
                theirs * 1000,
                "ms",
                "the real Collector, its two processes",
                mine / theirs,
                mine / theirs,
                mine / theirs,
                None,
                f"{records} records, one after the other, looked for every {_POLL_SECONDS * 1000:g} ms",
            )
        )
    return rows


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def _seen_in_loki(endpoint: str, loki: Loki, records: int) -> list[float]:
    """Seconds from the call of the logger until Loki shows the record."""
    service = f"lag{endpoint.rpartition(':')[2]}"
    lags = []
    with OwnProcess(_logging, service, endpoint) as log:
        for number in range(records + 1):
            logged = log(number)
            query = f'{{service_name="{service}"}} |= "record {number}."'
            while not loki.records(query):
                assert time.time() - logged < 60, f"record {number} never came to Loki"
                time.sleep(_POLL_SECONDS)
            lags.append(time.time() - logged)
    # the first one opens connections and streams
    return lags[1:]


def _logging(service: str, endpoint: str) -> Callable[[int], float]:
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    os.environ["JARVIS_CONSOLE"] = "off"
    from jarvis_otel import configure, get_logger

    configure(service)
    logger = get_logger(service)

    def log(number: int) -> float:
        logged = time.time()
        logger.info(f"This is record {number}.")  # noqa: G004 - not the logger of logging
        return logged

    return log


if __name__ == "__main__":
    main(measure)
