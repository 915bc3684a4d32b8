"""The soak: everything together on one machine for as long as it is told, and an oracle of obligations.

Applications log at a steady rate with spans and evaluations, while flags change by the command line and by the service,
applications and the collector are killed with SIGKILL and started again, the disk of the log directory fills and is
freed, day files are archived and purged, indexes are built, and `jarvis logs query` is asked. A day of the collector is
some minutes long, so that all of this happens within an hour.

    python -m tests.soak --minutes 60 --rate 2000

It prints one table, and ends with 1 where an obligation was broken. The disk is a tmpfs, which takes root; without it,
the disk does not fill, and the table says so.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.harness import cpu_of_process
from jarvis_collector.otlp import Signal
from jarvis_flags.overrides import read_overrides
from jarvis_flags.settings import FlagSettings
from jarvis_otel.admin.audit import entries, verify
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.file_store import FileStore
from jarvis_otel.admin.opening import open_flags
from jarvis_otel.admin.outcome import Outcome
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.spool import usage
from tests import soak_application as app
from tests.oracle import Embedded, Process
from tests.soak_files import DayFiles

__all__ = ["Line", "Plan", "run", "table"]

ROOT = Path(__file__).resolve().parent.parent
MB = 1_000_000
DAY_NANO = 86_400 * 10**9
BYTES_OF_RECORD = 1_000
"""About what a record takes in the files with its share of events and spans; the sizes of disks follow from it."""


@dataclass(frozen=True)
class Plan:
    """What is done, and what must hold. Times are in seconds, sizes in bytes.

    Attributes:
        seconds: How long it goes on.
        rate: Records a second, of all applications together.
        applications: How many of them run.
        seed: Of who is killed when.
        switch_bound: From the moment at which a kill switch is asked for until every process evaluates it as off; who is
            not told of a change looks again after one second.
        application_rss, collector_rss: What one process may have resident.
        growth: What a process that is never killed, or not for long, may grow by from the second to the last quarter of
            its life.
        descriptors, threads: What one process may have.
        catch_up: After all faults, until every record is in the files.
    """

    seconds: float = 3600.0
    rate: float = 2000.0
    applications: int = 4
    seed: int = 0
    switch_bound: float = 2.0
    application_rss: int = 160 * MB
    collector_rss: int = 200 * MB
    growth: int = 16 * MB
    descriptors: int = 100
    threads: int = 24
    catch_up: float = 120.0

    def every(self, share: float, least: float, most: float) -> float:
        """So many seconds between two of a kind: a share of the run, within bounds."""
        return min(max(self.seconds * share, least), most)

    @property
    def day(self) -> float:
        """Seconds that a day of the collector takes."""
        return self.every(1 / 12, 3, 120)

    @property
    def written(self) -> float:
        """Bytes a second, about."""
        return self.rate * BYTES_OF_RECORD

    @property
    def max_total(self) -> int:
        """What the retention is told to keep the files to."""
        return max(int(self.written * self.day * 2), 2 * MB)

    @property
    def disk(self) -> int:
        """Size of the disk of the log directory."""
        return int(self.max_total + self.written * 3 * self.day) + 32 * MB

    @property
    def disk_bound(self) -> int:
        """What the files may take at any moment: between two passes they grow, and in one a day is there twice."""
        return int(self.max_total + self.written * (2 * self.rotate_every + self.day)) + 2 * MB

    @property
    def rotate_every(self) -> float:
        return max(self.day / 2, 2.5)


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        what: What is told.
        bound: What must hold; empty where it is only told.
        measured: What was found.
        good: Whether it holds; None where nothing must.
    """

    what: str
    bound: str
    measured: str
    good: bool | None = None


@dataclass
class Usage:
    """What the processes of a kind took, each sample of each of them.

    Attributes:
        samples: By process id: moment, resident bytes, descriptors, threads, seconds of CPU.
    """

    samples: dict[int, list[tuple[float, int, int, int, float]]] = field(default_factory=lambda: defaultdict(list))

    def take(self, pid: int) -> None:
        """Takes a sample, unless the process is gone."""
        with suppress(OSError):
            status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            if "VmRSS" not in status:
                return
            descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            resident, threads = int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"])
            self.samples[pid].append((time.monotonic(), resident, descriptors, threads, cpu_of_process(pid)))

    def most(self, place: int) -> int:
        return max((int(sample[place]) for samples in self.samples.values() for sample in samples), default=0)

    @property
    def cpu(self) -> float:
        """Seconds of CPU of all of them; what one used between its last sample and its end is not in it."""
        return sum(samples[-1][4] for samples in self.samples.values())

    def growth(self, pid: int) -> int:
        """What a process grew by from the second to the last quarter of its life."""
        resident = [sample[1] for sample in self.samples[pid]]
        quarter = len(resident) // 4
        if not quarter:
            return 0
        return int(statistics.median(resident[-quarter:]) - statistics.median(resident[quarter : 2 * quarter]))


class Application:
    """An application as long as it lives; another one takes its place, with a name of its own."""

    def __init__(self, home: Path, name: str, rate: float, environ: dict[str, str]) -> None:
        self.name = name
        path = home / f"{name}.board"
        path.write_bytes(bytes(app.BOARD_BYTES))
        self.board = app.board(path)
        with (home / "applications.stderr").open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.soak_application", str(path), name, str(rate)],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        self.killed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return not self.killed and self._process.poll() is None

    def kill(self) -> None:
        self.killed = True
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Ends it orderly."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Soak:
    """One run.

    Args:
        plan: What is done.
        home: A directory of its own.
        log_dir: Where the collector writes.
        disk: The directory of the disk that is to be filled; None where none may be.
    """

    def __init__(self, plan: Plan, home: Path, log_dir: Path, disk: Path | None) -> None:
        self._plan = plan
        self._home = home
        self._disk = disk
        self._log_dir = log_dir
        self._dice = random.Random(plan.seed)
        self._began = time.monotonic()
        (home / "config").mkdir()
        (home / "config" / "flags.yaml").write_text(app.FLAGS)
        self._clock = _clock(plan.day)
        retention = {"PLAIN_DAYS": 1, "KEEP_DAYS": 3, "MAX_TOTAL_BYTES": plan.max_total, "MIN_FREE": 0}
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)} | {
            "JARVIS_HOME": str(home),
            "JARVIS_LOG_DIR": str(log_dir),
            "JARVIS_CONSOLE": "off",
            **{f"JARVIS_RETENTION_{name}": str(value) for name, value in retention.items()},
        }
        # it takes over what the killed leave behind, as `jarvis collector` does by itself
        environ = {**self._environ, "OTEL_LOGS_EXPORTER": "otlp", "JARVIS_CONSOLE": "json"}
        self._collector = Process(Embedded(environ=environ, prelude=self._clock), home, log_dir)
        self._environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{self._collector.http_port}"
        self._files = DayFiles(log_dir)
        self._all: list[Application] = []
        self._live: list[Application] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._times: defaultdict[str, list[float]] = defaultdict(list)
        self._wrong: defaultdict[str, list[str]] = defaultdict(list)
        self._acknowledged: dict[str, str] = {}
        self._applications, self._collectors = Usage(), Usage()
        self._most_on_disk = self._most_in_spool = 0

    # --- the run

    def run(self) -> list[Line]:
        """Does all of it, ends what it started, and judges."""
        plan = self._plan
        try:
            self._collector.start()
            for number in range(plan.applications):
                self._start_application(f"app{number}.0")
            settings = FlagSettings.load(self._environ)
            actors = [
                ("reader", 0.25, self._files.look),
                ("sampler", plan.every(1 / 600, 0.5, 2), self._sample),
                ("kill an application", plan.every(1 / 60, 4, 20), self._kill_application),
                ("kill the collector", plan.every(1 / 40, 6, 60), self._kill_collector),
                ("kill switch", plan.every(1 / 200, 0.5, 5), self._kill_switch(self._admin(settings))),
                ("flags by the service", plan.every(1 / 1000, 0.3, 1), self._change_by_service(self._admin(settings))),
                ("flags by the command", plan.every(1 / 300, 1, 5), self._change_by_command),
                ("archivist", plan.rotate_every, self._rotate),
                ("index", plan.every(1 / 60, 4, 30), self._index),
                ("query", plan.every(1 / 300, 2, 10), self._query),
            ]
            if self._disk is not None:
                actors.append(("fill the disk", plan.every(1 / 12, 8, 300), self._fill_disk))
            threads = [threading.Thread(target=self._act, args=actor, name=actor[0]) for actor in actors]
            for thread in threads:
                thread.start()
            time.sleep(plan.seconds)
            self._over.set()
            for thread in threads:
                thread.join()
            return self._judged()
        finally:
            self._over.set()
            for application in self._live:
                application.kill()
            self._collector.end(signal.SIGKILL)
            self._files.close()

    def _act(self, name: str, every: float, act: Callable[[], None]) -> None:
        """Does something again and again; what goes wrong in it is told at the end, and breaks an obligation."""
        while not self._over.wait(every):
            try:
                act()
            except Exception as error:
                self._wrong[name].append(f"{type(error).__name__}: {error}")

    def _start_application(self, name: str) -> Application:
        plan = self._plan
        application = Application(self._home, name, plan.rate / plan.applications, self._environ)
        with self._lock:
            self._all.append(application)
            self._live.append(application)
        return application

    def _admin(self, settings: FlagSettings) -> FlagAdmin:
        return FlagAdmin(*open_flags(settings), seen_wait=0.0)

    # --- what is done to them

    def _kill_application(self) -> None:
        """Any but the first one, which shows what grows."""
        with self._lock:
            application = self._dice.choice(self._live[1:])
            self._live.remove(application)
        application.kill()
        self._counts["applications killed"] += 1
        stem, _, life = application.name.partition(".")
        self._start_application(f"{stem}.{int(life) + 1}")

    def _kill_collector(self) -> None:
        """But for the middle third of the run, which shows what grows."""
        if 1 / 3 < (time.monotonic() - self._began) / self._plan.seconds < 2 / 3:
            return
        self._over.wait(self._dice.uniform(0, 2))
        self._collector.end(signal.SIGKILL)
        self._over.wait(self._dice.choice((0, 0.2, 1, 3)))
        self._collector.start()
        self._counts["collectors killed"] += 1

    def _fill_disk(self) -> None:
        assert self._disk is not None
        filler, until = self._disk / "filler", math.inf
        try:
            with filler.open("wb") as file:
                # it stays full for a while from the first refusal on: the collector may be away when it becomes so
                while time.monotonic() < until and not self._over.is_set():
                    # what the archivist or a deleted file frees meanwhile is taken too
                    if (free := shutil.disk_usage(self._disk).free) > 4096:
                        with suppress(OSError):
                            os.posix_fallocate(file.fileno(), file.tell(), free)
                            file.seek(0, os.SEEK_END)
                    if until == math.inf and self._health() == 503:
                        until = time.monotonic() + min(15, self._plan.seconds / 12)
                    self._over.wait(0.1)
        finally:
            filler.unlink()
        freed = time.monotonic()
        if until == math.inf:
            return
        self._counts["disks filled"] += 1
        while self._health() != 200:
            if time.monotonic() - freed > 30:
                raise TimeoutError("30 s after the disk was freed /healthz is not 200 again")
            time.sleep(0.1)
        self._times["disk freed until healthy"].append(time.monotonic() - freed)

    def _health(self) -> int:
        """The status of /healthz; 0 where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self._collector.http_port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    # --- flags

    def _kill_switch(self, admin: FlagAdmin) -> Callable[[], None]:
        def act() -> None:
            author = self._author("switch")
            self._note(author, admin.enable(app.FLAG_SWITCH, author, confirmed=True))
            with self._lock:
                watched = list(self._live)
            deadline = time.monotonic() + 30
            while not all(each.board[app.SWITCH] == app.ON for each in watched if each.runs):
                if time.monotonic() > deadline:
                    raise TimeoutError("30 s after the flag was turned on not every process sees it")
                time.sleep(0.01)
            author = self._author("switch")
            began = time.monotonic_ns()
            turned = self._counts["kill switches"] % 2
            outcome = admin.panic(author) if turned else admin.disable(app.FLAG_SWITCH, author)
            self._note(author, outcome)
            deadline = time.monotonic() + max(10, self._plan.switch_bound)
            for each in watched:
                while each.runs and each.board[app.SWITCH] != app.OFF and time.monotonic() < deadline:
                    time.sleep(0.001)
                if each.board[app.SWITCH] == app.OFF:
                    self._times["kill switch"].append((each.board[app.OFF_AT] - began) / 1e9)
                elif each.runs:
                    self._times["kill switch"].append(math.inf)
            self._counts["kill switches"] += 1
            time.sleep(0.1)
            if back := [each.name for each in watched if each.runs and each.board[app.SWITCH] != app.OFF]:
                raise RuntimeError(f"off, and then on again in {', '.join(back)}")

        return act

    def _change_by_service(self, admin: FlagAdmin) -> Callable[[], None]:
        def act() -> None:
            author, number = self._author("service"), len(self._acknowledged)
            flag = f"SOAK_{'AB'[number % 2]}"
            match number % 3:
                case 0:
                    outcome = admin.rollout(flag, number % 100, author, confirmed=True)
                case 1:
                    outcome = admin.disable(flag, author)
                case _:
                    outcome = admin.enable(flag, author, confirmed=True)
            self._note(author, outcome)

        return act

    def _change_by_command(self) -> None:
        author, number = self._author("command"), len(self._acknowledged)
        what = (("rollout", "SOAK_A", f"{number % 100}", "--yes"), ("enable", "SOAK_B", "--yes"), ("disable", "SOAK_A"))
        change = ("flags", *what[number % 3], "--reason", author.reason, "--format", "json")
        if self._dice.random() < 0.2:
            self._kill_command(change)
            return
        done, took = self._jarvis(*change)
        if done.returncode == 0 and json.loads(done.stdout)["outcome"] == "applied":
            self._acknowledged[author.reason] = what[number % 3][1]
            self._times["flags command"].append(took)
        else:
            self._wrong["flags by the command"].append(done.stderr.strip())

    def _kill_command(self, change: Sequence[str]) -> None:
        """Whether it changed something nobody knows: then audit and state must say the same."""
        command = [sys.executable, "-c", _JARVIS, *change]
        nothing = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, env=self._environ, cwd=ROOT)
        self._over.wait(self._dice.uniform(0.2, 0.6))
        process.kill()
        process.wait()
        self._counts["commands killed"] += 1

    def _author(self, who: str) -> Author:
        with self._lock:
            self._counts["changes asked for"] += 1
            return Author(who, "api", f"{who} {self._counts['changes asked for']}")

    def _note(self, author: Author, outcome: Outcome) -> None:
        if not outcome.applied:
            raise RuntimeError(f"{author.reason}: {outcome.message}")
        self._acknowledged[author.reason] = outcome.entries[0].flag if outcome.entries else ""

    # --- files

    def _rotate(self) -> None:
        """By hand, beside the collector's own archivist; whoever comes second gives way."""
        done, _ = self._python(f"{self._clock}{_JARVIS}", "logs", "rotate", "--format", "json")
        if done.returncode == 0:
            report = json.loads(done.stdout)
            self._counts["files archived by hand"] += len(report["archived"])
            self._counts["files purged by hand"] += len(report["purged"])
        elif done.returncode == 2 and not any(why in done.stderr for why in _GOOD_REASONS):
            self._wrong["archivist"].append(done.stderr.strip())

    def _index(self) -> None:
        done, took = self._jarvis("logs", "index")
        self._times["index"].append(took)
        if done.returncode == 2 and _DISK_FULL not in done.stderr:
            self._wrong["index"].append(done.stderr.strip())

    def _query(self) -> None:
        """Asks for all of an operation that is known to be in the files."""
        asked = self._files.operation()
        if asked is None:
            return
        correlation_id, numbers, files = asked
        options = ("--correlation-id", correlation_id, "--limit", "0", "--format", "jsonl")
        done, took = self._jarvis("logs", "query", *options)
        records = [json.loads(line)["context"] for line in done.stdout.splitlines()]
        found = sorted(record["number"] for record in records if "soak" in record)
        if not all(map(self._files.is_kept, files)):
            return  # purged meanwhile
        if found != sorted(numbers):
            self._wrong["query"].append(f"{correlation_id}: got {found}, want {sorted(numbers)}: {done.stderr.strip()}")
        self._times["query"].append(took)

    def _sample(self) -> None:
        with self._lock:
            live = list(self._live)
        for application in live:
            self._applications.take(application.pid)
        self._collectors.take(self._collector.pid)
        self._most_on_disk = max(self._most_on_disk, _size(self._log_dir))
        self._most_in_spool = max(self._most_in_spool, usage(self._home / "var" / "spool").bytes)

    def _jarvis(self, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
        return self._python(_JARVIS, *arguments)

    def _python(self, code: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
        """What became of a Python process, and the seconds that it took."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=self._environ,
            cwd=ROOT,
        )
        return done, time.monotonic() - began

    # --- the oracle

    def _judged(self) -> list[Line]:
        first = self._all[0]
        self._applications.take(first.pid)
        ran = time.monotonic() - self._began
        for application in self._live:
            application.end()
        waited = self._wait_for_all()
        metrics = self._collector_metrics()
        code = self._collector.end()
        self._files.look(all_of_it=True)
        return [
            *self._of_records(ran, waited),
            *self._of_flags(),
            *self._of_processes(first, code),
            *self._of_files(metrics),
        ]

    def _wait_for_all(self) -> float:
        """Waits until every record came, as long as it may take; the seconds that it took."""
        began = time.monotonic()
        while self._missing() and time.monotonic() - began < self._plan.catch_up:
            time.sleep(0.2)
            self._files.look()
        return time.monotonic() - began

    def _missing(self) -> int:
        return sum(self._files.missing(each.name, each.board[app.RETURNED]) for each in self._all)

    def _collector_metrics(self) -> dict[str, float]:
        connection = http.client.HTTPConnection("127.0.0.1", self._collector.http_port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def _of_records(self, ran: float, waited: float) -> list[Line]:
        files, returned = self._files, sum(each.board[app.RETURNED] for each in self._all)
        missing, dropped = self._missing(), files.dropped.total()
        beyond = {each.name: files.beyond(each.name, each.board[app.RETURNED]) for each in self._all}
        skipped = sum(each.board[app.SKIPPED] for each in self._all)
        cut = [tail.name for tail in files.tails if tail.cut]
        strangers = files.strangers({each.name for each in self._all})
        return [
            Line("time, without the end", "", f"{ran:,.0f} s"),
            Line(
                "records whose call returned",
                "some of each application",
                f"{returned:,}; {returned / ran:,.0f} a second; {skipped:,} not logged for want of CPU",
                all(each.board[app.RETURNED] for each in self._all if not each.killed),
            ),
            Line("  in no file", f"≤ {dropped} (counted as dropped)", f"{missing}", missing <= dropped),
            Line("  in the files under two uids", "0", f"{files.doubles}", not files.doubles),
            Line("  once more under its uid (a reader shows it once)", "", f"{files.repeats:,}"),
            Line(
                "records in the files whose call did not return",
                "≤ 1 of each that was killed",
                f"{sum(beyond.values())}, of {sum(each.killed for each in self._all)} that were killed",
                all(count <= 1 for count in beyond.values()) and not strangers,
            ),
            Line(
                "lines that cannot be read, files that shrank",
                "0",
                f"{files.unreadable}, {len(cut)}",
                not files.unreadable and not cut,
            ),
            Line(
                "until all records were in the files, at the end",
                f"≤ {self._plan.catch_up:g} s",
                f"{waited:.1f} s",
                not missing,
            ),
            Line("events of evaluations and changes, spans in the files", "", f"{files.events:,}, {files.spans:,}"),
            Line(
                "bytes of a line, events included",
                "",
                f"{files.size / max(1, files.records + files.events):,.0f} with spans",
            ),
        ]

    def _of_flags(self) -> list[Line]:
        state_dir = self._home / "var" / "flags"
        FileStore(state_dir).recover()  # as whoever opens it does: the last one to change it may have been killed
        lines = (state_dir / "audit.jsonl").read_bytes().splitlines()
        broken = list(verify(lines))
        applied = [entry for entry in entries(lines) if entry.outcome == "applied"]
        by_reason = defaultdict(list)
        latest = {}
        for entry in applied:
            by_reason[entry.reason].append(entry)
            latest[entry.flag] = entry.new
        lost = [
            reason
            for reason, flag in self._acknowledged.items()
            if [entry.flag for entry in by_reason[reason]] != ([flag] if flag else [])
        ]
        overrides = read_overrides(state_dir)
        state = {flag: override.to_dict() for flag, override in overrides.overrides.items()}
        wanted = {flag: new for flag, new in latest.items() if new is not None}
        delays = sorted(self._times["kill switch"])
        bound = self._plan.switch_bound
        shown = f"{_quantiles(delays, 1000, 'ms')}; {len(delays)} looks of processes, {self._counts['kill switches']} switches"
        return [
            Line(
                "flag changes acknowledged",
                "all in the audit, once",
                f"{len(self._acknowledged):,}; {len(lost)} are not{f': {lost[:3]}' if lost else ''}",
                not lost and bool(self._acknowledged),
            ),
            Line("the audit's chain", "whole", broken[0] if broken else f"{len(lines):,} entries", not broken),
            Line(
                "state of the flags",
                "as the audit says",
                f"revision {overrides.revision}",
                state == wanted and overrides.revision == len(applied),
            ),
            Line(
                "kill switch seen by every process",
                f"≤ {bound * 1000:g} ms",
                shown,
                bool(delays) and delays[-1] <= bound,
            ),
            Line("one `jarvis flags` change", "", _quantiles(self._times["flags command"], 1, "s")),
        ]

    def _of_processes(self, first: Application, code: int | None) -> list[Line]:
        plan, applications, collectors = self._plan, self._applications, self._collectors
        counts = self._counts
        lines = [
            Line(
                "killed with SIGKILL and started again",
                "both, at least once",
                f"{counts['applications killed']} applications, {counts['collectors killed']} collectors, "
                f"{counts['commands killed']} commands that change flags",
                bool(counts["applications killed"] and counts["collectors killed"]),
            ),
            Line("exit code of the collector at SIGTERM", "0", f"{code}", code == 0),
        ]
        for kind, used, most in (
            ("application", applications, plan.application_rss),
            ("collector", collectors, plan.collector_rss),
        ):
            rss, descriptors, threads = (used.most(place) for place in (1, 2, 3))
            lines += [
                Line(f"memory of one {kind}", f"≤ {most / MB:g} MB", f"{rss / MB:.1f} MB at most", 0 < rss <= most),
                Line(
                    f"descriptors, threads of one {kind}",
                    f"≤ {plan.descriptors}, {plan.threads}",
                    f"{descriptors}, {threads} at most",
                    descriptors <= plan.descriptors and threads <= plan.threads,
                ),
                Line(f"CPU of all {kind}s", "", f"{used.cpu / max(1, self._files.records) * 1e6:,.1f} µs a record"),
            ]
        growth = applications.growth(first.pid)
        longest = max(collectors.samples, key=lambda pid: len(collectors.samples[pid]))
        lived = collectors.samples[longest][-1][0] - collectors.samples[longest][0][0]
        long = lived > 600
        return [
            *lines,
            Line(
                "growth of the application that was never killed",
                f"≤ {plan.growth / MB:g} MB",
                f"{growth / MB:+.1f} MB from the second to the last quarter",
                growth <= plan.growth,
            ),
            # in a short run it only starts
            Line(
                "growth of the collector that lived longest",
                f"≤ {plan.growth / MB:g} MB" if long else "",
                f"{collectors.growth(longest) / MB:+.1f} MB in {lived:,.0f} s",
                collectors.growth(longest) <= plan.growth if long else None,
            ),
        ]

    def _of_files(self, metrics: dict[str, float]) -> list[Line]:
        plan, counts = self._plan, self._counts
        names, archives = {tail.name for tail in self._files.tails}, self._files.archives
        if self._disk is None:
            filled = Line("the disk was filled", "", "not done: it takes root to mount a tmpfs")
        else:
            shown = f"{counts['disks filled']} times; healthy {_quantiles(self._times['disk freed until healthy'], 1, 's')} after"
            filled = Line("the disk was filled, and freed", "at least once", shown, counts["disks filled"] > 0)
        purged = sum(not self._files.is_kept(name) for name in names)
        for name, said in self._wrong.items():
            for each in said:
                print(f"soak: {name}: {each}", file=sys.stderr)
        wrong = [f"{name}: {len(said)}" for name, said in self._wrong.items() if said]
        return [
            filled,
            Line(
                "day files",
                "some archived, byte for byte, and purged",
                f"{len(names)} of {plan.day:g} s: {len(archives)} archived, {list(archives.values()).count(False)} of them "
                f"differ, {purged} purged; "
                f"{counts['files archived by hand']} and {counts['files purged by hand']} by `jarvis logs rotate`",
                bool(archives) and all(archives.values()) and purged > 0,
            ),
            Line(
                "disk of the log directory",
                f"≤ {plan.disk_bound / MB:,.0f} MB",
                f"{self._most_on_disk / MB:,.1f} MB at most; retention is told {plan.max_total / MB:,.0f} MB",
                0 < self._most_on_disk <= plan.disk_bound,
            ),
            Line("disk of the spool", "", f"{self._most_in_spool / MB:,.1f} MB at most"),
            Line("records that the last collector wrote", "> 0", f"{metrics[_WRITTEN]:,.0f}", metrics[_WRITTEN] > 0),
            Line(
                "jarvis logs query, one operation",
                "all of it, each record once",
                f"{len(self._times['query'])} asked, {len(self._wrong['query'])} wrong; {_quantiles(self._times['query'], 1, 's')}",
                bool(self._times["query"]) and not self._wrong["query"],
            ),
            Line(
                "jarvis logs index",
                "",
                f"{len(self._times['index'])} times; {_quantiles(self._times['index'], 1, 's')}",
            ),
            Line(
                "what else went wrong",
                "nothing",
                f"{'; '.join(wrong)} (stderr says what)" if wrong else "nothing",
                not wrong,
            ),
        ]


_OURS = ("JARVIS_", "OTEL_", "FF_")
_WRITTEN = f'jarvis_collector_records_written_total{{signal="{Signal.LOGS}"}}'
_DISK_FULL = "No space left"
_GOOD_REASONS = ("another process archives", "nothing is left that may be purged", _DISK_FULL)
"""Why a pass of the retention may fail; what the files take is looked at anyway."""
_JARVIS = "import sys\nfrom jarvis_otel.cli.main import main\nsys.exit(main())\n"


def _clock(day: float) -> str:
    """Code that lets a process's days pass more quickly: a day in so many seconds, today in twenty days of that kind."""
    began = time.time_ns()
    start = (began // DAY_NANO - 60) * DAY_NANO
    speed = round(DAY_NANO / (day * 1e9))
    return f"import time\n_now = time.time_ns\ntime.time_ns = lambda: {start} + (_now() - {began}) * {speed}\n"


def _size(directory: Path) -> int:
    """What the files below a directory take."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _quantiles(values: Sequence[float], scale: float, unit: str) -> str:
    if not values:
        return "never"
    ordered = sorted(values)
    p50, p99, most = (ordered[min(int(len(ordered) * at), len(ordered) - 1)] * scale for at in (0.5, 0.99, 1))
    return f"p50 {p50:.3g}, p99 {p99:.3g}, most {most:.3g} {unit}"


@contextmanager
def _small_disk(place: Path, size: int) -> Iterator[bool]:
    """A disk of its own at a directory; False where none can be had."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def run(plan: Plan, home: Path) -> list[Line]:
    """Runs a soak.

    Args:
        plan: What is done.
        home: A directory of its own.

    Returns:
        What was found; `good` is False where an obligation was broken.
    """
    with ExitStack() as stack:
        place = home / "disk"
        mounted = stack.enter_context(_small_disk(place, plan.disk))
        return Soak(plan, home, place / "logs", place if mounted else None).run()


def table(lines: Sequence[Line]) -> str:
    """The lines as one table."""
    said = {None: "", True: "holds", False: "BROKEN"}
    rows = [
        ["what", "must be", "was", ""],
        *([line.what, line.bound, line.measured, said[line.good]] for line in lines),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every obligation held, 1 if not."""
    plan = Plan()
    parser = argparse.ArgumentParser("python -m tests.soak", description="Everything together, and whether it holds.")
    parser.add_argument("--minutes", type=float, default=plan.seconds / 60, help="how long (default: 60)")
    parser.add_argument("--rate", type=float, default=plan.rate, help="records a second in all (default: 2000)")
    parser.add_argument("--applications", type=int, default=plan.applications, help="how many log (default: 4)")
    parser.add_argument("--seed", type=int, default=plan.seed, help="of who is killed when (default: 0)")
    parser.add_argument("--format", choices=("human", "json"), default="human")
    args = parser.parse_args(arguments)
    if args.minutes <= 0 or args.rate <= 0 or args.applications < 2:
        parser.error("want more than no minutes, a rate above 0, and at least 2 applications")
    plan = Plan(seconds=args.minutes * 60, rate=args.rate, applications=args.applications, seed=args.seed)
    with tempfile.TemporaryDirectory(prefix="jarvis-soak-") as home:
        lines = run(plan, Path(home))
    print(json.dumps([asdict(line) for line in lines], indent=2) if args.format == "json" else table(lines))
    return 1 if any(line.good is False for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
