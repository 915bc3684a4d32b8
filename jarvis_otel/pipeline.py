"""From the logger to the collector: the spool, and the one thread that ships it over OTLP/HTTP."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

from jarvis_flags.forks import after_fork, importing
from jarvis_otel.encode import otlp_attributes
from jarvis_otel.segments import Item
from jarvis_otel.spool import Orphan, Spool, adopt, forget_parent
from jarvis_otel.terminal import tell

if TYPE_CHECKING:
    from jarvis_otel.otlp_client import Answer, OtlpClient
    from jarvis_otel.otlp_settings import OtlpTarget
    from jarvis_otel.settings import Settings

__all__ = ["EXIT_SECONDS", "SPOOL_BYTES", "Counters", "Pipeline"]

EXIT_SECONDS = 2.0
"""So long may a process take at its end to deliver what waits."""

SPOOL_BYTES = 256 * 1024 * 1024
BATCH_RECORDS = 1000
_TICK_SECONDS = 1.0
_ATTEMPT_SECONDS = 30.0
_GATHER_SECONDS = 0.05
_BACKOFF_FIRST, _BACKOFF_MAX = 0.1, 5.0

# The request itself is at fault, not the collector: its records are tried apart.
_AT_FAULT = frozenset({400, 413, 422, 500})


@dataclass(frozen=True, slots=True)
class Counters:
    """What became of the records so far.

    Attributes:
        accepted: Records that entered the spool.
        shipped: Records that a collector answered for.
        waiting: Records that are in the spool or on their way.
        adopted: Records of processes that are gone, which this one shipped; not among the others.
        dropped: Lost records by reason: `overflow` (the spool was full), `refused` (the collector will not have them),
            `damaged` (somebody changed the spool), `exit` (there was no disk, and the process ended), `failed` (could
            not be composed).
    """

    accepted: int
    shipped: int
    waiting: int
    adopted: int
    dropped: Mapping[str, int]


class Pipeline:
    """Ships log records to a collector, in order and at least once, and never troubles the application.

    A record is safe in the spool when `put` returns. The thread ships what is there, oldest first, and adopts the
    spools of processes that are gone. A forked child begins a spool and a thread of its own; the parent's records stay
    the parent's. At the end of the process what waits is delivered, for EXIT_SECONDS at most; the rest stays on disk.

    Args:
        target: Where the collector is, and how it is reached.
        resource: Attributes of the process's OpenTelemetry resource.
        quiet: Say nothing where there is no collector.
        spool_dir: Where the spools of all processes lie; None keeps records in memory.
        spool_bytes: Bytes that these may take together.

    Attributes:
        endpoint: What people call the collector: its URL without `/v1/logs`.
        on_tick: Called in the pipeline's thread about each second.
        numbers: The numbers of this process's records.
        uid_prefix: What their uids begin with.
    """

    def __init__(
        self,
        target: OtlpTarget,
        resource: Mapping[str, Any],
        *,
        quiet: bool = False,
        spool_dir: Path | None = None,
        spool_bytes: int = SPOOL_BYTES,
    ) -> None:
        self.endpoint = target.url.removesuffix("/v1/logs")
        self.resource = resource
        self.on_tick: Callable[[], object] = lambda: None
        # while it waits for an answer it does not look after the spool, which the kernel gives 45 s
        self._target = replace(target, timeout=min(target.timeout, _ATTEMPT_SECONDS))
        self._quiet = quiet
        self._spool_dir = spool_dir
        self._spool_bytes = spool_bytes
        self._begin()
        after_fork(self._after_fork)
        atexit.register(self.shutdown)

    @classmethod
    def of(cls, settings: Settings, resource: Mapping[str, Any], *, quiet: bool = False) -> Self | None:
        """The pipeline that the settings describe; None where they want no records exported.

        Args:
            settings: Where the collector is, and the spool.
            resource: Attributes of the process's OpenTelemetry resource.
            quiet: Say nothing where there is no collector.
        """
        if not settings.logs_exporter or settings.sdk_disabled:
            return None
        return cls(
            settings.otlp_logs,
            resource,
            quiet=quiet,
            spool_dir=settings.spool_dir,
            spool_bytes=settings.spool_max_bytes,
        )

    def _begin(self) -> None:
        resource = orjson.dumps({"attributes": otlp_attributes(self.resource)})
        self._spool = Spool(self._spool_dir, resource, bytes_max=self._spool_bytes)
        self._client: OtlpClient | None = None
        # SimpleQueue.put is re-entrant, which Event.set is not: a signal handler may log at any moment.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._asleep = False
        self._deadline: float | None = None
        self._next_tick = self._next_look = 0.0
        self._shipped = self._adopted = 0
        self._dropped: Counter[str] = Counter()
        self._answered = False
        self._absent = False
        self._unsafe = False
        self._reason = "not tried"
        self.uid_prefix = os.urandom(8).hex()
        self.numbers = itertools.count(1)

    def _after_fork(self) -> None:
        if self._client is not None:
            self._client.abandon()
        forget_parent()
        self._spool.abandon()
        if "service.instance.id" in self.resource:
            # each process is an instance of its own; the SDK renews that of the spans in the same way
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415

            renewed = Resource.create().attributes.get("service.instance.id", "")
            self.resource = {**self.resource, "service.instance.id": renewed}
        self._begin()
        if (util := sys.modules.get("multiprocessing.util")) is not None:
            # multiprocessing ends its children by os._exit, which runs its own finalisers but not atexit's; it
            # clears those just after the fork, so ours is registered from the hook that runs next
            util.register_after_fork(self, lambda this: util.Finalize(None, this.shutdown, exitpriority=0))

    def new_uid(self) -> str:
        """An id that no other record has."""
        return f"{self.uid_prefix}-{next(self.numbers)}"

    def emit(self, scope: bytes, record: bytes, *, urgent: bool, number: int | None = None) -> None:
        """Takes one record; returns at once.

        Args:
            scope: The scope as `encode.otlp_scope` writes it.
            record: The record as `encode.otlp_record` writes it.
            urgent: Whether it is a WARNING or above: where room is needed, the others are dropped first.
            number: Its number out of `numbers`; the next one if None.
        """
        number = next(self.numbers) if number is None else number
        self.put(b"%d\t%b\t%b\n" % (number, scope, record), urgent=urgent)

    def put(self, line: bytes, *, urgent: bool) -> None:
        """Takes one record that is a line of the spool already.

        Args:
            line: Its number out of `numbers`, its scope and the record, as `spool` says.
            urgent: As for `emit`.
        """
        self._spool.append(line, urgent=urgent)
        if self._asleep:
            self._asleep = False
            self._bell.put(None)
        elif self._thread is None:
            self.start()

    def count_failed(self) -> None:
        """Counts a record that could not be composed."""
        self._dropped["failed"] += 1

    def counters(self) -> Counters:
        """What became of the records so far."""
        spool = self._spool
        dropped = {"overflow": spool.overflowed, "damaged": spool.damaged, **self._dropped}
        dropped = {reason: count for reason, count in dropped.items() if count}
        return Counters(spool.appended, self._shipped, len(spool), self._adopted, dropped)

    def flush(self, timeout: float = EXIT_SECONDS, *, patient: bool = True) -> bool:
        """Waits until what was emitted before is delivered (or refused), and tells whether it is.

        Args:
            timeout: Seconds to wait at most.
            patient: Wait for a collector that is away, too; what is on the disk need not.
        """
        mark = self._spool.mark()
        self._bell.put(None)

        def over() -> bool:
            return self._spool.passed(mark) or (not patient and self._absent)

        with self._changed:
            self._changed.wait_for(over, timeout)
        return self._spool.passed(mark)

    def interrupted_in_append(self) -> bool:
        """Whether the caller, a signal handler, interrupted this thread within the spool: then a flush must wait."""
        return bool(self._spool.lock._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001

    def shutdown(self, timeout: float = EXIT_SECONDS) -> bool:
        """Delivers what waits and ends the thread; safe to call twice.

        Where no collector ever answered it tries once more and gives up. What is on the disk is shipped by whoever
        adopts it; what is only in memory is counted and told.

        Args:
            timeout: Seconds to take at most.
        """
        atexit.unregister(self.shutdown)
        if self._deadline is None:
            self._deadline = time.monotonic() + timeout
            if self._thread is not None:
                self._bell.put(None)
                with contextlib.suppress(RuntimeError):  # never begun
                    self._thread.join(timeout)
            left, lost, where = len(self._spool), self._spool.records_in_memory(), self._spool.home
            self._spool.close()
            why = f"no collector at {self.endpoint} ({self._reason})"
            if lost:
                self._dropped["exit"] += lost
                self._say(f"{why}; {_records(lost)} of this process are lost")
            if left > lost and not self._absent:  # else that was told
                self._say(
                    f"{why}; {_records(left - lost)} in {where} for the next process, or for: jarvis doctor --ship"
                )
            return not left
        return not len(self._spool)

    def start(self) -> None:
        """Starts the thread, which otherwise starts with the first record."""
        if self._thread is not None or self._deadline is not None:
            return
        thread = threading.Thread(target=self._run, name="jarvis-pipeline", daemon=True)
        try:
            # noted before it starts: of two that are started at the same moment, the one that is not noted ends itself
            self._thread = thread
            thread.start()
        except BaseException as error:
            # interrupted before it began, or too late in the life of the interpreter: then what waits stays on the
            # disk, or the next record starts another
            if thread.ident is None:
                self._thread = None
            if not isinstance(error, RuntimeError):
                raise

    def _run(self) -> None:
        while self._deadline is None:
            if threading.current_thread() is not self._thread:
                return  # whoever started it was interrupted, and another was started
            try:
                self._rest()
                self._ship(self._spool)
                self._adopt()
            except Exception as problem:  # nothing that happens here may be the last thing that it does
                self._reason = f"{type(problem).__name__}: {problem}"
                self._bell = queue.SimpleQueue()
                time.sleep(_TICK_SECONDS)
        if threading.current_thread() is not self._thread:
            return
        self._ship(self._spool)
        if self._client is not None:
            self._client.close()

    def _rest(self) -> None:
        """Waits for something to do, and a moment longer for more of it."""
        self._asleep = True
        if not len(self._spool) and self._deadline is None:
            self._wait(_TICK_SECONDS)
        self._asleep = False
        if len(self._spool) and self._deadline is None:
            self._wait(_GATHER_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Waits, or less where flush or shutdown ring; does meanwhile what is due each second."""
        until = time.monotonic() + seconds
        self._tick()
        while (rest := until - time.monotonic()) > 0:
            try:
                self._bell.get(timeout=min(rest, _TICK_SECONDS))
            except queue.Empty:
                self._tick()
            else:
                return

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next_tick and not self._spool.wants_spare:
            return
        self._next_tick = now + _TICK_SECONDS
        self._spool.tend()
        unsafe = bool(self._spool.problem)
        if unsafe and not self._unsafe:
            self._say(f"{self._spool_dir}: {self._spool.problem}; records wait in memory, and a crash would lose them")
        self._unsafe = unsafe
        with contextlib.suppress(Exception):  # what others do in this thread must not end it
            self.on_tick()

    def _adopt(self) -> None:
        """Ships what processes left behind that are gone."""
        if self._spool_dir is None or self._absent or self._deadline is not None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _TICK_SECONDS
        self._ship_orphans(self._spool_dir)

    def _ship_orphans(self, directory: Path) -> None:
        for orphan in adopt(directory):
            with orphan:
                if not self._ship(orphan):
                    return
                orphan.remove()

    def ship_orphans(self, timeout: float) -> int:
        """Ships in the calling thread what processes left behind that are gone, and ends the pipeline.

        Args:
            timeout: Seconds to take at most.

        Returns:
            The number of records that were delivered.
        """
        self._deadline = time.monotonic() + timeout
        if self._spool_dir is not None:
            self._ship_orphans(self._spool_dir)
        if self._client is not None:
            self._client.close()
        return self._adopted

    def probe(self) -> Answer:
        """What the collector answers to a request without records; for people who look what is wrong."""
        return self._connected().post(b'{"resourceLogs":[]}')

    def _ship(self, store: Spool | Orphan) -> bool:
        """Delivers all that waits in a spool; False where the process ends first."""
        # of our own only what is there now: who logs without a pause must not keep the rest from its turn
        mark = self._spool.mark()
        while batch := store.take(BATCH_RECORDS):
            if not self._deliver(store, batch):
                return False
            if store is not self._spool:
                if not self._ship(self._spool):
                    return False
            elif self._deadline is None:
                self._tick()
                if self._spool.passed(mark):
                    break
        return True

    def _deliver(self, store: Spool | Orphan, batch: list[Item]) -> bool:
        """Sends until each record is answered for; False where the process ends first."""
        parts = [batch]
        while parts:
            part = parts.pop()
            answer = self._send(_body(store.resource, part))
            if answer is None:
                return False
            if answer.status in _AT_FAULT and len(part) > 1:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
                continue
            refused = len(part) if answer.status in _AT_FAULT else min(answer.rejected, len(part))
            self._settle(store, part, refused, answer.reason)
        return True

    def _settle(self, store: Spool | Orphan, part: list[Item], refused: int, reason: str) -> None:
        if refused:
            if not self._dropped["refused"]:
                self._say(
                    f"the collector at {self.endpoint} refused a record ({reason}); it and further ones are counted"
                )
            self._dropped["refused"] += refused
        if store is self._spool:
            self._shipped += len(part) - refused
        else:
            self._adopted += len(part) - refused
        store.release(part)
        with self._changed:
            self._changed.notify_all()

    def _send(self, body: bytes) -> Answer | None:
        """Sends one request until it is answered for good; None where the process ends first."""
        for attempt in itertools.count():
            answer = self._connected().post(body)
            self._answered |= answer.status != 0
            if 200 <= answer.status < 300 or answer.status in _AT_FAULT:
                self._tell_back()
                return answer
            self._reason = answer.reason
            if self._deadline is not None and not self._answered:
                return None
            if attempt and self._deadline is None:
                self._tell_absent()
            if not self._back_off(attempt, answer.retry_after):
                return None
        return None

    def _connected(self) -> OtlpClient:
        """The client, made when there is something to send: an application need not wait for HTTP and TLS at import."""
        if self._client is None:
            with importing():
                from jarvis_otel.otlp_client import OtlpClient  # noqa: PLC0415

            self._client = OtlpClient(self._target)
        return self._client

    def _back_off(self, attempt: int, retry_after: float | None) -> bool:
        """Waits before the next attempt; False where the process ends before it would come."""
        delay = min(_BACKOFF_MAX, _BACKOFF_FIRST * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
        if retry_after is None:
            self._wait(delay)
        else:
            # flush may cut our own backoff short, but not the pause that the collector asks for
            until = time.monotonic() + max(delay, retry_after)
            while self._deadline is None and (rest := until - time.monotonic()) > 0:
                self._wait(rest)
        return self._deadline is None or time.monotonic() + delay < self._deadline

    def _say(self, line: str) -> None:
        if not self._quiet:
            tell(line)

    def _tell_absent(self) -> None:
        if not self._absent:
            self._absent = True
            where = "in memory" if self._spool.problem or self._spool_dir is None else f"in {self._spool_dir}"
            self._say(
                f"no collector at {self.endpoint} ({self._reason}); records wait {where}, nothing else is affected. "
                f"Start one: jarvis collector"
            )
            with self._changed:
                self._changed.notify_all()

    def _tell_back(self) -> None:
        if self._absent:
            self._absent = False
            lost = sum(self.counters().dropped.values())
            self._say(
                f"the collector at {self.endpoint} is back; {_records(len(self._spool))} waited and are on their way, "
                f"{lost:,} were dropped"
            )


def _body(resource: bytes, part: Sequence[Item]) -> bytes:
    """An ExportLogsServiceRequest in OTLP/JSON."""
    scopes = [
        scope + b",".join([item[2] for item in items]) + b"]}"
        for scope, items in itertools.groupby(part, key=lambda item: item[1])
    ]
    return b'{"resourceLogs":[{"resource":' + resource + b',"scopeLogs":[' + b",".join(scopes) + b"]}]}"


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count:,} records"
