"""Forwards the day files of log records to Loki: the files are the queue, and a checkpoint says how far it has come.

Oldest first, one push after the other: what is more than an hour behind the newest line of its stream Loki refuses. A
push is settled when Loki has taken each of its records or has refused it for good; then the checkpoint is saved. So a
crash repeats at most one push, and of the same record Loki keeps one.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jarvis_collector.checkpoint import Checkpoint, load, save
from jarvis_collector.config import CollectorConfig, CollectorError, LokiTarget
from jarvis_collector.follow import Chunk, Follower
from jarvis_collector.layout import day_of
from jarvis_collector.locking import HeldError, take_lock
from jarvis_collector.loki import (
    OTHER,
    REASONS,
    TOO_FAR_BEHIND,
    TOO_LARGE,
    TOO_OLD,
    Encoder,
    Entry,
    Refusal,
    TornError,
    cost,
    push_body,
    refusal,
)
from jarvis_collector.loki_client import Answer, LokiClient
from jarvis_collector.long_lines import LineError
from jarvis_collector.own_log import OwnLog

__all__ = ["ForwardStatus", "Forwarder", "run_forward_only"]

_LOCK = ".forward.lock"
_POLL = 0.2
_GATHER = 0.05
"""Seconds that a wake-up waits for further lines: a push for each commit of the writer would be many."""
_WAIT_FIRST, _WAIT_MAX = 0.2, 10.0
_PATIENCE = 30.0
"""Seconds of failing after which it is a problem that people should see."""
_SPLIT_AFTER = 5
"""So many 429 in a row: the push may be over Loki's burst, and then it never gets through."""
_ACCEPTANCE = 7 * 86_400_000_000_000
_OLDEST_HOLDS = 60.0
_STREAMS_MAX = 8
_YIELD_EVERY = 32
_YIELD = 0.0002
_TEXT_MAX = 300
_READING, _PUSHING, _SAVING = "reading the log files", "forwarding", "saving the checkpoint"
_MISCONFIGURED = (401, 403, 404)
_DISABLED = re.compile(r"feature is disallowed|ingestion blocked")
"""A 400 that says nothing about the records."""


@dataclass(frozen=True)
class ForwardStatus:
    """How the forwarding is doing; counts are since its start.

    Attributes:
        pushed: Records that Loki has taken, repeats too.
        refused: Records that it has not, by reason: those of `loki.REASONS`.
        passed_over: Lines without a whole record.
        cut: Records of which something was cut off, or moved into the line.
        pushes: Requests that were answered.
        retries: Requests that had to be repeated.
        lag_bytes: Of the files that are not forwarded yet.
        lag_seconds: The age of the oldest line that is not forwarded yet.
        file: The name of the file that was read last.
        problem: Why nothing gets through, for some time already.
    """

    pushed: int = 0
    refused: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    passed_over: int = 0
    cut: int = 0
    pushes: int = 0
    retries: int = 0
    lag_bytes: int = 0
    lag_seconds: float = 0.0
    file: str = ""
    problem: str | None = None


class Forwarder:
    """The one thread that forwards the log records of a directory.

    Args:
        target: Where to.
        log_dir: The directory of the day files.
        log: Is told of outages, refusals and lines that are passed over.
    """

    def __init__(self, target: LokiTarget, log_dir: Path, log: OwnLog) -> None:
        self._target = target
        self._log_dir = log_dir
        self._log = log
        self._client = LokiClient(target)
        self._encoder = Encoder(target.max_push)
        self._follower: Follower | None = None
        self._saved: Checkpoint | None = None
        self._lock: int | None = None
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jarvis-collector-forward", daemon=True)
        self._pushed = self._pushes = self._retries = self._passed_over = 0
        self._refused = Counter(dict.fromkeys(REASONS, 0))
        self._problems: dict[str, tuple[float, str]] = {}  # what fails: since when, and why
        self._told: set[str] = set()  # reasons of refusals that were logged
        self._bad_lines: dict[str, tuple[int, int]] = {}  # of the file that is read: how many were told, and found
        self._oldest = (0, 0.0)  # what Loki takes at least, and when it said so
        self._waiting_since: int | None = None

    def start(self) -> None:
        """Reads the checkpoint and begins.

        Raises:
            CollectorError: Another forwarder uses the checkpoint, or its directory cannot be used.
        """
        self._lock = _locked(self._target.checkpoint)
        try:
            checkpoint = load(self._target.checkpoint)
        except (OSError, ValueError) as error:
            self._log.warning(f"{self._target.checkpoint} cannot be read ({error}): a week is forwarded again")
            checkpoint = None
        self._saved = checkpoint or Checkpoint(day_of(time.time_ns() - _ACCEPTANCE))
        chunk = max(1, self._target.max_push // 2)
        self._follower = Follower(self._log_dir, self._saved, chunk, self._log, self._stop.is_set)
        self._thread.start()
        self._log.info(f"forwarding {self._log_dir}/ to Loki at {self._client.where}")

    def stop(self) -> None:
        """Ends the thread, whatever it waits for; what was not settled is forwarded after the next start."""
        self._stop.set()
        self._wake.set()
        self._client.stop()
        if self._thread.is_alive():
            self._thread.join(0.9)  # only a look-up of a name can take longer
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def wake(self) -> None:
        """Says that lines were written; any thread may."""
        self._wake.set()

    def is_forwarded(self, path: Path) -> bool:
        """Whether all of a plain day file is settled, or never will be forwarded."""
        return self._saved is not None and self._saved.covers(path)

    def status(self) -> ForwardStatus:
        """How it is doing now; any thread may ask."""
        waiting_since = self._waiting_since
        impatient = time.monotonic() - _PATIENCE
        problems = [why for since, why in list(self._problems.values()) if since <= impatient]
        follower = self._follower
        return ForwardStatus(
            pushed=self._pushed,
            refused=dict(self._refused),
            passed_over=self._passed_over + (follower.torn if follower else 0),
            cut=self._encoder.cut,
            pushes=self._pushes,
            retries=self._retries,
            lag_bytes=follower.behind if follower else 0,
            lag_seconds=0.0 if waiting_since is None else max(0.0, (time.time_ns() - waiting_since) / 1e9),
            file=follower.file if follower else "",
            problem="; ".join(problems) or None,
        )

    def _run(self) -> None:
        assert self._follower is not None
        while not self._stop.is_set():
            wait = 0.0
            try:
                chunk = self._follower.read()
                self._well(_READING)
                if chunk is None:
                    self._caught_up(self._follower)
                    wait = _POLL
                else:
                    self._forward(self._follower, chunk)
            except (_StoppedError, InterruptedError):
                break
            except OSError as error:
                self._failed(_READING, f"{error.filename or self._log_dir}: {error.strerror or error}")
                self._stop.wait(_WAIT_MAX)
            except Exception as error:  # the thread must live: without it nothing is ever forwarded again
                self._failed(_READING, f"{type(error).__name__}: {error}")
                self._stop.wait(_WAIT_MAX)
            if wait and self._wake.wait(wait):
                self._wake.clear()
                self._stop.wait(_GATHER)
        self._tell_bad_lines(last=True)
        self._client.close()
        refused = sum(self._refused.values())
        self._log.info(f"forwarding ends; Loki took {self._pushed} records and refused {refused}")

    def _forward(self, follower: Follower, chunk: Chunk) -> None:
        batch: list[Entry] = []
        size = 0
        done = chunk.start
        try:
            for number, (line, end) in enumerate(chunk.lines()):
                if number % _YIELD_EVERY == 0:
                    self._wait(_YIELD)  # the receiver shares this process, and goes first
                for entry in self._entries(line, follower.file):
                    size += cost(entry, batch[-1] if batch else None)
                    if batch and size > self._target.max_push:
                        self._settle(batch)
                        self._advance(follower, chunk, done)
                        batch, size = [], cost(entry, None)
                    batch.append(entry)
                done = end
        except LineError:
            self._pass_over(follower.file)
        self._settle(batch)
        chunk.finish()
        self._advance(follower, chunk, chunk.end)

    def _entries(self, line: bytes, file: str) -> list[Entry]:
        before = self._encoder.too_large
        try:
            entries = self._encoder.entries(line)
        except TornError as error:
            self._pass_over(file)
            entries = error.entries
        if self._encoder.too_large > before:
            self._refuse(TOO_LARGE, self._encoder.too_large - before, f"over {self._target.max_push} bytes")
        return entries

    def _advance(self, follower: Follower, chunk: Chunk, end: int) -> None:
        if end > chunk.start:
            follower.advance(chunk.day, chunk.mark(end))
            self._save(follower.checkpoint())

    def _save(self, checkpoint: Checkpoint) -> None:
        try:
            save(self._target.checkpoint, checkpoint)
        except OSError as error:  # a full disk: the records go on, and some may be repeated
            self._failed(_SAVING, f"{self._target.checkpoint}: {error.strerror or error}")
        else:
            self._saved = checkpoint
            self._well(_SAVING)

    def _caught_up(self, follower: Follower) -> None:
        self._waiting_since = None
        checkpoint = follower.checkpoint()
        if checkpoint != self._saved:
            self._save(checkpoint)
        self._tell_bad_lines()

    def _settle(self, entries: list[Entry], *, stored: bool = False) -> None:
        """Pushes until each of the entries is taken or refused.

        Args:
            entries: In their order.
            stored: Whether the good ones of them are in Loki already: one that is too far behind now was not then.
        """
        entries = self._without_too_old(entries)
        if not entries:
            return
        self._waiting_since = entries[0].time or time.time_ns()
        answer = self._answer(entries)
        if 200 <= answer.status < 300:
            self._pushed += len(entries) - answer.rejected
            if answer.rejected:
                self._refuse(OTHER, answer.rejected, answer.text)
            return
        found = Refusal({}, whole=False)
        if answer.status == 400:
            found = refusal(answer.text, entries)
        elif answer.status == 413 and len(entries) == 1:
            found = Refusal({0: TOO_LARGE}, whole=True)
        if found.oldest is not None:
            self._oldest = (found.oldest, time.monotonic())
        for reason, count in Counter(found.refused.values()).items():
            if stored and reason == TOO_FAR_BEHIND:
                self._pushed += count
            else:
                self._refuse(reason, count, answer.text)
        rest = [entry for index, entry in enumerate(entries) if index not in found.refused]
        stored = stored or found.validated
        if found.whole:
            self._pushed += len(rest)
        elif found.refused:
            self._settle(rest, stored=stored)
        else:
            for part in _parts(entries):
                self._settle(part, stored=stored)

    def _answer(self, entries: list[Entry]) -> Answer:
        """Loki's word on a push; it is asked until there is one."""
        body = push_body(entries)
        wait, throttled = _WAIT_FIRST, 0
        while True:
            answer = self._client.push(body)
            if self._stop.is_set() and not 200 <= answer.status < 300:
                raise _StoppedError
            self._pushes += answer.status > 0
            misconfigured = answer.status in _MISCONFIGURED or (
                answer.status == 400 and _DISABLED.search(answer.text) is not None
            )
            if 200 <= answer.status < 300 or (answer.status in (400, 413) and not misconfigured):
                self._well(_PUSHING)
                return answer
            throttled = throttled + 1 if answer.status == 429 else 0
            if throttled == _SPLIT_AFTER and len(entries) > 1:
                return answer
            said = f"HTTP {answer.status}: {answer.text}" if answer.status else answer.text
            self._failed(_PUSHING, f"Loki at {self._client.where}: {said[:_TEXT_MAX]}")
            self._retries += 1
            # all at once would be too much for a Loki that has just come back
            pause = wait * random.uniform(0.5, 1)  # noqa: S311
            self._wait(_WAIT_MAX if misconfigured else max(pause, answer.retry_after or 0.0))
            wait = min(_WAIT_MAX, wait * 2)

    def _without_too_old(self, entries: list[Entry]) -> list[Entry]:
        """What Loki has said that it would not take is counted without asking again, for some time."""
        limit, said = self._oldest
        if not limit or time.monotonic() - said > _OLDEST_HOLDS:
            return entries
        young = [entry for entry in entries if not 0 < entry.time < limit]
        if len(young) < len(entries):
            self._refuse(TOO_OLD, len(entries) - len(young), "")
        return young

    def _refuse(self, reason: str, count: int, text: str) -> None:
        self._refused[reason] += count
        if reason not in self._told:
            self._told.add(reason)
            self._log.warning(
                f"Loki refuses records ({reason}); they are counted, and stay in the files: {text[:_TEXT_MAX]}",
                reason=reason,
            )

    def _pass_over(self, file: str) -> None:
        self._passed_over += 1
        if file not in self._bad_lines:
            self._tell_bad_lines(last=True)
            self._bad_lines.clear()
        told, count = self._bad_lines.get(file, (0, 0))
        self._bad_lines[file] = (told, count + 1)

    def _tell_bad_lines(self, *, last: bool = False) -> None:
        """Once when a file's first bad lines are behind, and once more at the end of it if there were others."""
        for file, (told, count) in self._bad_lines.items():
            if not told or (last and told < count):
                self._log.warning(f"{file}: {count} lines hold no whole record and are passed over", file=file)
                self._bad_lines[file] = (count, count)

    def _failed(self, what: str, why: str) -> None:
        if what not in self._problems:
            self._log.warning(f"{what} fails and is tried again: {why}")
        self._problems[what] = (self._problems.get(what, (time.monotonic(),))[0], why)

    def _well(self, what: str) -> None:
        if what in self._problems:
            since, _ = self._problems.pop(what)
            self._log.info(f"{what} goes on after {time.monotonic() - since:.1f} s")

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _StoppedError


def _parts(entries: list[Entry]) -> list[list[Entry]]:
    """A push in parts of which more is to be learned: resource by resource, for Loki tells of one stream only."""
    streams: dict[bytes, list[Entry]] = {}
    for entry in entries:
        streams.setdefault(entry.group.resource, []).append(entry)
    if 1 < len(streams) <= _STREAMS_MAX:
        return list(streams.values())
    half = len(entries) // 2
    return [entries[:half], entries[half:]]


class _StoppedError(Exception):
    """The forwarder was told to stop."""


def run_forward_only(
    config: CollectorConfig,
    own_log: OwnLog,
    *,
    reload: Callable[[], CollectorConfig | None] | None = None,
    ready: Callable[[Forwarder], object] | None = None,
) -> None:
    """Forwards a directory that another process writes, ours or the real Collector, until SIGTERM or SIGINT.

    Args:
        config: Its `log_dir` and `loki` count.
        own_log: Is told what it does.
        reload: Called at SIGHUP; a new config takes the place of the old one, None leaves it.
        ready: Called with each forwarder that has started.

    Raises:
        CollectorError: It cannot start.
    """
    asked: list[int] = []
    noticed = threading.Event()

    def note(number: int, _: object) -> None:
        asked.append(number)
        noticed.set()

    numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if reload else [])]
    before = {number: signal.signal(number, note) for number in numbers}
    forwarder = _forwarder(config, own_log)
    try:
        forwarder.start()
        while True:
            if ready is not None:
                ready(forwarder)
            noticed.wait()
            noticed.clear()
            if signal.SIGTERM in asked or signal.SIGINT in asked:
                return
            asked.clear()
            changed = reload() if reload else None
            if changed is not None and (changed.loki, changed.log_dir) != (config.loki, config.log_dir):
                forwarder.stop()
                config, forwarder = changed, _forwarder(changed, own_log)
                forwarder.start()
    finally:
        forwarder.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _forwarder(config: CollectorConfig, own_log: OwnLog) -> Forwarder:
    if config.loki is None:
        raise CollectorError("nothing to forward to: set JARVIS_LOKI_URL, or loki_url in jarvis.yaml")
    return Forwarder(config.loki, config.log_dir, own_log)


def _locked(checkpoint: Path) -> int:
    """Holds a checkpoint for one forwarder, and gives the descriptor that holds it."""
    directory = checkpoint.parent
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        return take_lock(directory / _LOCK)
    except HeldError as error:
        raise CollectorError(f"another process (pid {error.pid}) forwards with {checkpoint}; stop it first") from None
    except OSError as error:
        raise CollectorError(f"cannot write in {directory}: {error.strerror or error}") from None
