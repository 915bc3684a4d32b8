"""How soon `jarvis logs` answers, beside DuckDB, ripgrep and itself; whole processes, started anew for each answer.

`python -m benchmarks.query --month` asks thirty days of full size instead, which take minutes to make and 6 GB of disk.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.harness import Row, compare, main
from jarvis_collector import gzip_blocks
from jarvis_collector.layout import archive_path, day_path, index_path
from jarvis_collector.record import LogRecord, Resource, Scope, log_line
from jarvis_collector.values import Attributes
from jarvis_otel.query.index_build import index_file

DAY = "2026-07-26"
DAY_START = 1_785_024_000_000_000_000
DAY_MICROS = 86_400_000_000
SERVICES = ("trading", "dexter", "telegram", "api", "supervisor")
LEVELS = (("INFO", 9),) * 88 + (("DEBUG", 5),) * 7 + (("WARNING", 13),) * 3 + (("ERROR", 17),) * 2
DAYS, PLAIN_DAYS = 30, 7
MONTH_BYTES = 8_000_000_000
MB = 1_000_000


def measure(quick: bool) -> list[Row]:
    home, day = _prepared()
    logs = day.parent
    rounds, records, month_records = (3, 100_000, 20_000) if quick else (7, 1_000_000, 100_000)
    wanted = write_day(day, records)
    what = f"a day of {records:,} records, {day.stat().st_size // MB} MB; whole processes, warm page cache"
    rows = _one_day(logs, day, wanted, rounds, what)
    rows.append(_ten_times(home, day, rounds))
    rows += _archived(home, day, wanted, rounds, what)
    wanted = write_day(day, month_records)
    rows += _month(home, day, wanted, month_records)
    rows.append(_help(rounds))
    return rows


def measure_month(quick: bool) -> list[Row]:
    home, day = _prepared()
    if (free := shutil.disk_usage(home).free) < MONTH_BYTES:
        raise SystemExit(f"{home}: {free // MB:,} MB are free, want {MONTH_BYTES // MB:,} MB for a month")
    records = 100_000 if quick else 1_000_000
    return _month(home, day, write_day(day, records), records)


def _prepared() -> tuple[Path, Path]:
    """The project, and where its day is written."""
    home = Path(os.environ["JARVIS_HOME"])
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(home / "pycache")  # a process that has run before, as it is with users
    logs = home / "logs"
    logs.mkdir()
    return home, day_path(logs, "jarvis", DAY)


def _one_day(logs: Path, day: Path, wanted: str, rounds: int, what: str) -> list[Row]:
    by_id = ("query", "--dir", str(logs), "--correlation-id", wanted, "--format", "jsonl")
    window = ("query", "--dir", str(logs), "--level", "ERROR", "--since", f"{DAY}T23:00:00Z", "--limit", "0")
    duck_id = _duckdb(f"select * from {_table(day)} where correlation_id = '{wanted}'")
    duck_window = _duckdb(
        f"select * from {_table(day)} where level in ('ERROR', 'CRITICAL') and timestamp >= '{DAY} 23:00:00'"
    )
    stats, duck_stats = ("stats", "--dir", str(logs), "--by", "service,level"), _duckdb(_stats(day))
    questions: list[tuple[str, Sequence[str], Sequence[str], float | None]] = [
        ("query --correlation-id", by_id, duck_id, 0.3),
        ("errors", ("errors", "--dir", str(logs)), _duckdb(_errors(day)), 1.0),
        ("stats --by service,level", stats, duck_stats, 1.0),
    ]
    rows = [
        _row(f"{name}, no index", _jarvis(*ours), peer, rounds, target, what) for name, ours, peer, target in questions
    ]
    rows += _memory(logs, by_id)
    began = time.perf_counter()
    made = index_file(day)
    assert made is not None
    took = time.perf_counter() - began
    what = f"{what}; the index has {made.size / day.stat().st_size:.2%} of its size and took {took:.1f} s"
    rows.append(_row("query --correlation-id, index", _jarvis(*by_id), duck_id, rounds, 0.15, what))
    rows.append(
        _row("query --level ERROR in the day's last hour, index", _jarvis(*window), duck_window, rounds, 0.2, what)
    )
    rows.append(_row("stats --by service,level, index", _jarvis(*stats), duck_stats, rounds, 1.0, what))
    return rows


def _ten_times(home: Path, day: Path, rounds: int) -> Row:
    """A window at the end of a file ten times as long, beside the same window of the day alone."""
    long = home / "long"
    long.mkdir()
    target = day_path(long, "jarvis", DAY)
    with target.open("wb") as file:
        for ago in range(9, -1, -1):
            _copy(day, file.write, f"2026-07-{26 - ago}")
    index_file(target)
    window = ("query", "--level", "ERROR", "--since", f"{DAY}T23:00:00Z", "--limit", "0", "--dir")
    row = compare(
        "jarvis logs, the last hour of a file ten times as long, index",
        _timed(_jarvis(*window, str(long))),
        _timed(_jarvis(*window, str(day.parent))),
        rounds=rounds,
        peer_name="of the day alone",
        how=f"{target.stat().st_size // MB} MB",
        target=1.15,
        unit="s",
    )
    shutil.rmtree(long)
    return row


def _archived(home: Path, day: Path, wanted: str, rounds: int, what: str) -> list[Row]:
    logs = home / "archived"
    target = archive_path(day_path(logs, "jarvis", DAY))
    target.parent.mkdir(parents=True)
    with target.open("wb") as file:
        gzip_blocks.write([day.read_bytes()], file)
    ours = _jarvis("query", "--dir", str(logs), "--correlation-id", wanted, "--format", "jsonl")
    grep = "rg" if shutil.which("rg") else "grep"
    peer = ("sh", "-c", f"zcat {target} | {grep} -F {wanted}")
    what = f"{what}; {target.stat().st_size // MB} MB compressed"
    rows = [_row("query --correlation-id, archived, no index", ours, peer, rounds, 1.5, what, who=f"zcat | {grep}")]
    index_file(target)
    rows.append(_row("query --correlation-id, archived, index", ours, peer, rounds, None, what, who=f"zcat | {grep}"))
    return rows


def _month(home: Path, day: Path, wanted: str, records: int) -> list[Row]:
    """Thirty days, of which seven are plain; the id is that of one day in the middle."""
    logs = home / "month"
    logs.mkdir()
    with ProcessPoolExecutor(2) as pool:
        raw = sum(pool.map(partial(_day_of_month, logs, day), range(DAYS)))
    middle = wanted.replace("trade-0", f"trade-{_digit(DAYS // 2)}", 1)
    ours = _jarvis("query", "--dir", str(logs), "--correlation-id", middle, "--format", "jsonl")
    peer = ("rg", "-zNI", "-F", middle, str(logs)) if shutil.which("rg") else ("zgrep", "-rF", middle, str(logs))
    what = f"{DAYS} days of {records:,} records, {raw // MB:,} MB, {DAYS - PLAIN_DAYS} of them archived"
    name = "query --correlation-id in a month, index"
    row = _row(name, ours, peer, 3, None, what, who=" ".join(peer[:2]))
    rows = [replace(row, limit=1.0), _memory_row(name, _peak(ours), what)]
    shutil.rmtree(logs)
    return rows


def _day_of_month(logs: Path, day: Path, at: int) -> int:
    """Makes one day of the month; how many bytes it has before it is archived."""
    name = f"2026-07-{at + 1:02}"
    path = day_path(logs, "jarvis", name)
    with path.open("wb") as file:
        _copy(day, file.write, name, at)
    size = path.stat().st_size
    if at < DAYS - PLAIN_DAYS:
        target = archive_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, target.open("wb") as file:
            gzip_blocks.write(iter(lambda: source.read(gzip_blocks.BLOCK), b""), file)
        path.unlink()
        path = target
    index_file(path)
    return size


def _help(rounds: int) -> Row:
    bare = (sys.executable, "-c", "pass")
    row = _row("--help", _jarvis("--help"), bare, max(rounds, 5), None, "whole processes", who="the bare interpreter")
    return replace(row, limit=0.12)


def _memory(logs: Path, by_id: Sequence[str]) -> list[Row]:
    rows = []
    for name, question in (
        ("query --correlation-id, no index", by_id),
        ("query --limit 0", ("query", "--dir", str(logs), "--limit", "0", "--format", "jsonl")),
        ("stats --by service,level", ("stats", "--dir", str(logs), "--by", "service,level")),
    ):
        rows.append(_memory_row(name, _peak(_jarvis(*question)), "the day, no index"))
    return rows


def _memory_row(name: str, peak: float, what: str) -> Row:
    how = f"greatest sum of the proportional set sizes of all its processes, looked at every 10 ms; {what}"
    ratio = peak / 200
    return Row(f"jarvis logs {name}, memory", peak, 200, "MB", "the bound", ratio, ratio, ratio, 1.0, how)


def _row(  # noqa: PLR0917 - a line of the table
    name: str,
    ours: Sequence[str],
    peer: Sequence[str],
    rounds: int,
    target: float | None,
    how: str,
    *,
    who: str = "DuckDB",
) -> Row:
    return compare(
        f"jarvis logs {name}",
        _timed(ours),
        _timed(peer),
        rounds=rounds,
        peer_name=who,
        how=how,
        target=target,
        unit="s",
    )


def _timed(command: Sequence[str]) -> Callable[[], float]:
    def side() -> float:
        began = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        took = time.perf_counter() - began
        assert done.returncode == 0, (command, done.stderr)
        return took

    return side


def _jarvis(*arguments: str) -> tuple[str, ...]:
    return (str(Path(sys.executable).with_name("jarvis")), "logs", *arguments)


def _duckdb(sql: str) -> tuple[str, ...]:
    return (sys.executable, "-c", "import duckdb, sys; print(duckdb.sql(sys.argv[1]).fetchall())", sql)


def _table(day: Path) -> str:
    return f"read_json('{day}')"


def _errors(day: Path) -> str:
    return f"select error.type, count(*) from {_table(day)} where level in ('ERROR', 'CRITICAL') group by all"


def _stats(day: Path) -> str:
    return f"select service, level, count(*) from {_table(day)} group by all"


def _peak(command: Sequence[str]) -> float:
    """MB that all processes of a command take at most."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_proportional, _family(process.pid))))
        time.sleep(0.01)
    return peak / 1000


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(member for child in children for member in _family(int(child)))]


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _copy(source: Path, write: Callable[[bytes], object], day: str, number: int = 0) -> None:
    """A day as if it had been another one, with other ids."""
    with source.open("rb") as file:
        while piece := file.readlines(8 * MB):
            block = b"".join(piece).replace(f'"timestamp":"{DAY}'.encode(), f'"timestamp":"{day}'.encode())
            block = block.replace(b'"trade-0', f'"trade-{_digit(number)}'.encode())
            write(block.replace(b'"uid":"0', f'"uid":"{_digit(number)}'.encode()))


def _digit(number: int) -> str:
    return "0123456789abcdefghijklmnopqrstuvwxyz"[number]


def write_day(path: Path, records: int) -> str:
    """A day of a trading bot, its records evenly spread: five services, ids of eight records each.

    Returns:
        A correlation id from its middle.
    """
    dice = random.Random(1)
    named = {"deployment.environment.name": "prod", "host.name": "jarvis-1", "service.version": "2.3.1"}
    scopes = [Scope(Resource(Attributes({"service.name": name, **named}, [])), name) for name in SERVICES]
    messages = ("Trade executed", "Order placed", "Quote received", "Balance checked", "GET /api/v1/portfolio")
    step = DAY_MICROS // records
    trace_id = correlation_id = wanted = ""
    with path.open("wb") as file:
        lines = []
        for number in range(records):
            stamp = DAY_START + (number * step + dice.randrange(step)) * 1000
            if number % 8 == 0:
                trace_id = f"{dice.getrandbits(128):032x}"
                correlation_id = f"trade-0{dice.getrandbits(48):012x}"
            if number == records // 2:
                wanted = correlation_id
            level, severity = LEVELS[dice.randrange(100)]
            message = messages[dice.randrange(5)]
            attributes = {
                "jarvis.correlation_id": correlation_id,
                "user.id": f"user{dice.randrange(3_000)}",
                "jarvis.active_flags": ["DEXTER_ENABLED"],
                "jarvis.flag.DEXTER_ENABLED": "on",
                "symbol": dice.choice(("SOL", "BTC", "ETH", "AVAX")),
                "amount": dice.randrange(1, 500),
                "log.record.uid": f"0{dice.getrandbits(60):015x}",
            }
            if level == "ERROR":
                message = "Insufficient balance"
                attributes["exception.type"] = dice.choice(("BalanceError", "TimeoutError", "QuoteError"))
                attributes["exception.message"] = f"need {dice.random():.6f} SOL"
            span_id = f"{dice.getrandbits(64):016x}"
            values = Attributes(attributes, [])
            record = LogRecord(stamp, 0, severity, level, message, values, 0, 1, trace_id, span_id, "")
            lines.append(log_line(scopes[dice.randrange(5)], record, stamp))
            if len(lines) == 10_000:
                file.write(b"".join(lines))
                lines.clear()
        file.write(b"".join(lines))
    index_path(path).unlink(missing_ok=True)
    return wanted


if __name__ == "__main__":
    if "--month" in sys.argv:
        sys.argv.remove("--month")
        main(measure_month)
    else:
        main(measure)
