"""What it takes to archive a day, and how large it is then, beside Python's gzip module."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Row, Side, compare, main
from jarvis_collector import gzip_blocks
from jarvis_collector.config import Retention
from jarvis_collector.layout import archive_path, day_of, day_path
from jarvis_collector.record import LogRecord, Resource, Scope, log_line
from jarvis_collector.retention import rotate
from jarvis_collector.values import Attributes

GB = 1_000_000_000
NOON = 1_785_000_000_000_000_000
DAY_NANO = 86_400_000_000_000
TARGET = 0.25


def measure(quick: bool) -> list[Row]:
    home = Path(os.environ["JARVIS_HOME"])
    rounds, size = (3, 30_000_000) if quick else (5, 100_000_000)
    kept, logs = home / "kept.jsonl", home / "logs"
    logs.mkdir()
    _write_day(kept, size)
    size = kept.stat().st_size
    today = NOON + 10 * DAY_NANO
    plain = day_path(logs, "jarvis", day_of(NOON))

    def ours() -> None:
        shutil.copyfile(kept, plain)
        archive_path(plain).unlink(missing_ok=True)

    def archived() -> None:
        report = rotate(logs, Retention(min_free=0.0), clock=lambda: today)
        assert report.archived == [plain.name], report

    def zipped(level: int) -> Callable[[], None]:
        def work() -> None:
            with kept.open("rb") as source, gzip.open(home / f"{level}.gz", "wb", level) as target:
                shutil.copyfileobj(source, target, 1 << 20)

        return work

    rows = []
    library = gzip_blocks.deflate.__name__
    # 4 is the level whose archives are about as large as ours, 6 the gzip command's own, 9 the module's
    for name, clock, levels in (("CPU", time.process_time, (4, 6, 9)), ("wall", time.perf_counter, (4,))):
        side = _per_gb(archived, size, clock, prepare=ours)
        for level in levels:
            row = compare(
                f"archiving a day, {name} time of 1 GB",
                side,
                _per_gb(zipped(level), size, clock),
                rounds=rounds,
                unit="s",
                peer_name=f"gzip.open, level {level}",
                target=TARGET,
                how="",
            )
            our_size = archive_path(plain).stat().st_size / size
            their_size = (home / f"{level}.gz").stat().st_size / size
            how = (
                f"one pass over a day of {size // 1_000_000} MB of log lines, {library}, blocks with their ranges, "
                f"synced and renamed; {our_size:.1%} of its size, the peer's {their_size:.1%}, not synced; {row.how}"
            )
            rows.append(Row(**{**vars(row), "how": how.replace("; ; ", "; ")}))
    return rows


def _per_gb(
    work: Callable[[], None], size: int, clock: Callable[[], float], prepare: Callable[[], None] = lambda: None
) -> Side:
    def side() -> float:
        prepare()
        began = clock()
        work()
        return (clock() - began) * GB / size

    return side


def _write_day(path: Path, size: int) -> None:
    """A day of a trading bot: few messages, services and symbols, ids and prices that are never the same twice."""
    dice = random.Random(1)
    named = {"deployment.environment.name": "prod", "host.name": "jarvis-1", "service.version": "2.3.1"}
    resource = Resource(Attributes({"service.name": "trading", **named}, []))
    scopes = [Scope(resource, name) for name in ("trading.orders", "trading.risk", "dexter", "telegram")]
    messages = ("Trade executed", "Order placed", "Quote received", "Balance checked", "GET /api/v1/portfolio → 200")
    stamp, trace_id, written = NOON, "", 0
    with path.open("wb") as file:
        while written < size:
            lines = []
            for number in range(2_000):
                stamp += dice.randrange(100_000, 9_000_000)
                if number % 6 == 0:
                    trace_id = f"{dice.getrandbits(128):032x}"
                attributes = {
                    "symbol": dice.choice(("SOL", "BTC", "ETH", "AVAX")),
                    "amount": dice.randrange(1, 500),
                    "user.id": f"user{dice.randrange(3_000)}",
                    "jarvis.flag.DEXTER_ENABLED": "on",
                    "jarvis.active_flags": ["DEXTER_ENABLED"],
                    "order_id": f"order-{written + number:09}",
                    "price": round(dice.uniform(90, 200), 2),
                    "log.record.uid": f"{dice.getrandbits(64):016x}-{number:x}",
                    "code.file.path": "trading/orders.py",
                    "code.line.number": dice.choice((12, 88, 140)),
                    "code.function.name": "execute",
                }
                severity, level, message = 9, "INFO", dice.choice(messages)
                if number % 40 == 0:
                    severity, level, message = 17, "ERROR", "Insufficient balance"
                    frames = "".join(
                        f'  File "/srv/jarvis/{name}.py", line {dice.randrange(400)}, in {name}\n    {name}(order)\n'
                        for name in ("orders", "engine", "risk", "wallet")
                    )
                    attributes |= {
                        "exception.type": "trading.errors.BalanceError",
                        "exception.message": f"need {dice.random():.6f} SOL",
                        "exception.stacktrace": f"Traceback (most recent call last):\n{frames}",
                    }
                span_id = f"{dice.getrandbits(64):016x}"
                values = Attributes(attributes, [])
                record = LogRecord(stamp, stamp, severity, level, message, values, 0, 1, trace_id, span_id, "")
                lines.append(log_line(dice.choice(scopes), record, stamp))
            written += file.write(b"".join(lines))


if __name__ == "__main__":
    main(measure)
