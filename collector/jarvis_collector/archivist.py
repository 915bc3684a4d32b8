"""The thread that keeps the files of a collector within the retention, and their indexes up to date."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

from jarvis_collector.config import Indexer, Retention
from jarvis_collector.own_log import OwnLog
from jarvis_collector.retention import BusyError, Forwarded, Report, day_at, exceeds, rotate

__all__ = ["Archivist"]

_FULL_PASS_EVERY = 3600.0
_REST = 0.002
"""Seconds between two blocks, each of which takes about one millisecond."""


class Archivist:
    """Keeps one directory within the retention.

    It makes a pass when it starts, after each UTC midnight, once an hour, and whenever there is too much or a problem
    to try again; that it looks at every two minutes. After a pass the indexes are brought up to date. It rests between
    blocks, so that the threads that receive and write get on.

    Args:
        log_dir: The directory of the day files.
        retention: See `retention`.
        log: Where it tells what it did.
        is_forwarded: Whether all of a plain day file has been forwarded.
        index: See `index`.
        clock: Nanoseconds since 1970.
        interval: Seconds between two looks.

    Attributes:
        index: What makes the indexes of the day files, from the next pass on; None where nothing does.
        index_problem: What it could not do the last time, in a line; None where all is well.
        archived_files, purged_files, purged_unforwarded: Counts since the start.
        total_bytes: The size of all files at the last look.
        last_pass: When the last whole pass ended, in seconds since 1970; 0 before the first one.
        problem: What the last pass could not do, in a line; None where all is well.
    """

    def __init__(
        self,
        log_dir: Path,
        retention: Retention,
        log: OwnLog,
        *,
        is_forwarded: Forwarded = lambda _: True,
        index: Indexer | None = None,
        clock: Callable[[], int] = time.time_ns,
        interval: float = 120.0,
    ) -> None:
        self.index = index
        self.index_problem: str | None = None
        self.archived_files = 0
        self.purged_files = 0
        self.purged_unforwarded = 0
        self.total_bytes = 0
        self.last_pass = 0.0
        self.problem: str | None = None
        self._log_dir = log_dir
        self._retention = retention
        self._log = log
        self._is_forwarded = is_forwarded
        self._clock = clock
        self._interval = interval
        self._due = 0.0
        self._day: date | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jarvis-collector-archivist")

    @property
    def retention(self) -> Retention:
        """How long files are kept; another one counts from the pass on that setting it begins."""
        return self._retention

    @retention.setter
    def retention(self, retention: Retention) -> None:
        self._retention = retention
        self._due = 0.0
        self._wake.set()

    def start(self) -> None:
        """Begins with a pass."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, in the middle of a file too; the next pass begins that file anew."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self._look()
            except BusyError:
                pass  # what is done by hand is done
            except OSError as error:
                self._tell_problem(f"{error.filename or self._log_dir}: {error.strerror or error}")
            except Exception as error:  # the thread must live: without it the disk fills up
                self._tell_problem(f"{type(error).__name__}: {error}")
            self._wake.wait(self._interval)

    def _look(self) -> None:
        day = day_at(self._clock() // 1_000_000_000)
        excess, self.total_bytes = exceeds(self._log_dir, self._retention)
        if excess > 0 or self.problem is not None or day != self._day or time.monotonic() >= self._due:
            # before the pass, so that a retention set meanwhile brings on another one
            self._due = time.monotonic() + _FULL_PASS_EVERY
            report = rotate(
                self._log_dir,
                self._retention,
                clock=self._clock,
                is_forwarded=self._is_forwarded,
                stop=partial(self._stopping.wait, _REST),
            )
            self._count(report)
            if report.finished:
                self._day = day
                self._bring_indexes_up_to_date()

    def _bring_indexes_up_to_date(self) -> None:
        """Only a help for who asks: what goes wrong here is told, and holds up nothing."""
        if self.index is None:
            return
        problem = None
        try:
            files, problems = self.index(self._log_dir, partial(self._stopping.wait, _REST))
            if files:
                self._log.info(f"indexes: {len(files)} brought up to date", indexed=files)
            if problems:
                problem = f"{problems[0]}{f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''}"
        except OSError as error:
            problem = f"{error.filename or self._log_dir}: {error.strerror or error}"
        except Exception as error:  # the thread must live
            problem = f"{type(error).__name__}: {error}"
        if problem is not None and problem != self.index_problem:
            self._log.warning(f"indexes: {problem}")
        self.index_problem = problem

    def _count(self, report: Report) -> None:
        self.archived_files += len(report.archived)
        self.purged_files += len(report.purged)
        self.purged_unforwarded += len(report.purged_unforwarded)
        self.total_bytes = report.bytes_after
        if report.archived or report.purged:
            self._log.info(
                f"retention: {len(report.archived)} files archived, {len(report.purged)} purged, "
                f"{report.bytes_after} bytes are left of {report.bytes_before}",
                archived=report.archived,
                purged=report.purged,
            )
        if lost := report.purged_unforwarded:
            self._log.error(
                f"retention: purged before they were forwarded, for want of room: {', '.join(lost)}", purged=lost
            )
        if report.finished:
            self.last_pass = self._clock() / 1e9
            problems = report.problems
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            self._tell_problem(f"{problems[0]}{more}" if problems else None)

    def _tell_problem(self, problem: str | None) -> None:
        if problem is not None and problem != self.problem:
            self._log.warning(f"retention: {problem}")
        self.problem = problem
