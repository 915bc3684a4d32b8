"""From the logger to the collector: a bounded queue, and the one thread that ships it over OTLP/HTTP."""

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
import weakref
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from jarvis_otel.encode import otlp_attributes

if TYPE_CHECKING:
    from jarvis_otel.otlp_client import Answer, OtlpClient

__all__ = ["EXIT_SECONDS", "Counters", "Pipeline", "RecordQueue"]

EXIT_SECONDS = 2.0
"""So long may a process take at its end to deliver what waits."""

RECORDS_MAX = 10_000
BYTES_MAX = 32 * 1024 * 1024
BATCH_RECORDS = 1000
BATCH_BYTES = 2 * 1024 * 1024
_GATHER_SECONDS = 0.05
_BACKOFF_FIRST, _BACKOFF_MAX = 0.1, 5.0

# The request itself is at fault, not the collector: its records are tried apart.
_AT_FAULT = frozenset({400, 413, 422, 500})


@dataclass(frozen=True, slots=True)
class Counters:
    """What became of the records so far.

    Attributes:
        accepted: Records that entered the queue.
        shipped: Records that a collector answered for.
        waiting: Records that are in the queue or on their way.
        dropped: Lost records by reason: `overflow` (the queue was full), `refused` (the collector will not have
            them), `exit` (the process ended first), `failed` (could not be composed).
    """

    accepted: int
    shipped: int
    waiting: int
    dropped: Mapping[str, int]


_Item = tuple[int, bytes, bytes]
"""A record in the queue: its number, its scope, and the record itself."""


class RecordQueue:
    """Encoded records in memory, bounded by count and by bytes.

    Two rings: where room is needed, the oldest routine record goes first, and only then urgent ones. What `take`
    hands out still counts until `release`.

    Args:
        records_max: Records that may wait.
        bytes_max: Bytes that they may hold together.
    """

    def __init__(self, records_max: int = RECORDS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._routine: deque[_Item] = deque()
        self._urgent: deque[_Item] = deque()
        self._taken: deque[_Item] = deque()
        self._count = 0
        self._bytes = 0
        # An RLock: a signal handler or a finaliser may log while this very thread is in append.
        self.lock = threading.RLock()
        self.appended = 0
        self.overflowed = 0

    def __len__(self) -> int:
        return self._count

    @property
    def oldest(self) -> int | None:
        """The number, counted from 0, of the oldest record that is not settled."""
        with self.lock:
            return min((ring[0][0] for ring in (self._taken, self._routine, self._urgent) if ring), default=None)

    def append(self, scope: bytes, record: bytes, *, urgent: bool) -> None:
        """Adds a record, and makes room for it.

        Args:
            scope: The scope as `encode.otlp_scope` writes it.
            record: The record as `encode.otlp_record` writes it.
            urgent: Whether it is a WARNING or above, which outlives routine records.
        """
        with self.lock:
            (self._urgent if urgent else self._routine).append((self.appended, scope, record))
            self.appended += 1
            self._count += 1
            self._bytes += len(record)
            if self._count > self._records_max or self._bytes > self._bytes_max:
                self._make_room()

    def _make_room(self) -> None:
        while self._count > self._records_max or self._bytes > self._bytes_max:
            ring = self._routine or self._urgent
            if not ring:
                return
            self._forget(ring.popleft())
            self.overflowed += 1

    def _forget(self, item: _Item) -> None:
        self._count -= 1
        self._bytes -= len(item[2])

    def take(self, records_max: int, bytes_max: int) -> list[_Item]:
        """The oldest records in their order, at least one if any waits."""
        taken: list[_Item] = []
        size = 0
        with self.lock:
            while len(taken) < records_max and (self._routine or self._urgent):
                routine_first = not self._urgent or (self._routine and self._routine[0] < self._urgent[0])
                ring = self._routine if routine_first else self._urgent
                size += len(ring[0][2])
                if taken and size > bytes_max:
                    break
                taken.append(ring.popleft())
            self._taken.extend(taken)
        return taken

    def release(self, count: int) -> None:
        """Lets go of the oldest `count` records that were taken."""
        with self.lock:
            for _ in range(count):
                self._forget(self._taken.popleft())


class Pipeline:
    """Ships log records to a collector, in order and at least once, and never troubles the application.

    Its thread starts with the first record. A forked child begins with an empty queue and a thread of its own; the
    parent's records stay the parent's. At the end of the process what waits is delivered, for EXIT_SECONDS at most.

    Args:
        endpoint: Base URL of the collector, without `/v1/logs`.
        resource: Attributes of the process's OpenTelemetry resource.
        headers: Headers of each request.
        timeout: Seconds that one request may wait for its answer.
        quiet: Say nothing where there is no collector.
        records_max: Records that may wait.
        bytes_max: Bytes that they may hold together.
    """

    def __init__(
        self,
        endpoint: str,
        resource: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 3.0,
        quiet: bool = False,
        records_max: int = RECORDS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self.endpoint = endpoint
        self.resource = resource
        self._head = b'{"resourceLogs":[{"resource":' + orjson.dumps({"attributes": otlp_attributes(resource)})
        self._head += b',"scopeLogs":['
        self._headers = headers or {}
        self._timeout = timeout
        self._quiet = quiet
        self._bounds = (records_max, bytes_max)
        self._begin()
        after_fork = weakref.WeakMethod(self._after_fork)
        os.register_at_fork(after_in_child=lambda: (method := after_fork()) and method())
        atexit.register(self.shutdown)

    def _begin(self) -> None:
        self._queue = RecordQueue(*self._bounds)
        self._client: OtlpClient | None = None
        # SimpleQueue.put is re-entrant, which Event.set is not: a signal handler may log at any moment.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._settled = threading.Condition()
        self._thread: threading.Thread | None = None
        self._asleep = False
        self._deadline: float | None = None
        self._shipped = 0
        self._dropped: Counter[str] = Counter()
        self._answered = False
        self._absent = False
        self._reason = "not tried"
        self._uid_prefix = os.urandom(8).hex()
        self._uid_numbers = itertools.count(1)

    def _after_fork(self) -> None:
        if self._client is not None:
            self._client.close()
        self._begin()
        if (util := sys.modules.get("multiprocessing.util")) is not None:
            # multiprocessing ends its children by os._exit, which runs its own finalisers but not atexit's; it
            # clears those just after the fork, so ours is registered from the hook that runs next
            util.register_after_fork(self, lambda this: util.Finalize(None, this.shutdown, exitpriority=0))

    def new_uid(self) -> str:
        """An id that no other record has."""
        return f"{self._uid_prefix}-{next(self._uid_numbers):x}"

    def emit(self, scope: bytes, record: bytes, *, urgent: bool) -> None:
        """Takes one record; returns at once.

        Args:
            scope: The scope as `encode.otlp_scope` writes it.
            record: The record as `encode.otlp_record` writes it.
            urgent: Whether it is a WARNING or above: where room is needed, the others are dropped first.
        """
        self._queue.append(scope, record, urgent=urgent)
        if self._asleep:
            self._asleep = False
            self._bell.put(None)
        elif self._thread is None:
            self._start()

    def count_failed(self) -> None:
        """Counts a record that could not be composed."""
        self._dropped["failed"] += 1

    def counters(self) -> Counters:
        """What became of the records so far."""
        dropped = dict(self._dropped)
        if self._queue.overflowed:
            dropped["overflow"] = self._queue.overflowed
        return Counters(self._queue.appended, self._shipped, len(self._queue), dropped)

    def flush(self, timeout: float = EXIT_SECONDS) -> bool:
        """Waits until what was emitted before is delivered (or refused), and tells whether it is.

        Args:
            timeout: Seconds to wait at most.
        """
        target = self._queue.appended
        self._bell.put(None)
        with self._settled:
            return self._settled.wait_for(lambda: self._is_settled(target), timeout)

    def _is_settled(self, target: int) -> bool:
        oldest = self._queue.oldest
        return oldest is None or oldest >= target

    def interrupted_in_append(self) -> bool:
        """Whether the caller, a signal handler, interrupted this thread within the queue: then a flush must wait."""
        return bool(self._queue.lock._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001

    def shutdown(self, timeout: float = EXIT_SECONDS) -> bool:
        """Delivers what waits and ends the thread; safe to call twice.

        Where no collector ever answered it tries once more and gives up. What is left is counted and told.

        Args:
            timeout: Seconds to take at most.
        """
        atexit.unregister(self.shutdown)
        if self._deadline is None:
            self._deadline = time.monotonic() + timeout
            if self._thread is not None:
                self._bell.put(None)
                self._thread.join(timeout)
            if left := len(self._queue):
                self._dropped["exit"] += left
                self._say(
                    f"no collector at {self.endpoint} ({self._reason}); {_records(left)} of this process are lost"
                )
        return not len(self._queue)

    def _start(self) -> None:
        with self._queue.lock:
            if self._thread is not None or self._deadline is not None:
                return
            # named before it starts: a signal handler that logs meanwhile must not start another
            self._thread = threading.Thread(target=self._run, name="jarvis-pipeline", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # too late in the life of the interpreter: shutdown() counts what waits
                self._thread = None

    def _run(self) -> None:
        while True:
            self._asleep = True
            if not len(self._queue) and self._deadline is None:
                self._bell.get()
            self._asleep = False
            if self._deadline is None:
                self._wait(_GATHER_SECONDS)
            while batch := self._queue.take(BATCH_RECORDS, BATCH_BYTES):
                if not self._deliver(batch):
                    break
            if self._deadline is not None:
                if self._client is not None:
                    self._client.close()
                return

    def _wait(self, seconds: float) -> None:
        """Waits, or less where flush or shutdown ring."""
        with contextlib.suppress(queue.Empty):
            self._bell.get(timeout=seconds)

    def _deliver(self, batch: list[_Item]) -> bool:
        """Sends until each record is answered for; False where the process ends first."""
        parts = [batch]
        while parts:
            part = parts.pop()
            answer = self._send(part)
            if answer is None:
                return False
            if answer.status in _AT_FAULT and len(part) > 1:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
                continue
            refused = len(part) if answer.status in _AT_FAULT else min(answer.rejected, len(part))
            self._settle(len(part), refused, answer.reason)
        return True

    def _settle(self, count: int, refused: int, reason: str) -> None:
        if refused:
            if not self._dropped["refused"]:
                self._say(
                    f"the collector at {self.endpoint} refused a record ({reason}); it and further ones are counted"
                )
            self._dropped["refused"] += refused
        self._shipped += count - refused
        self._queue.release(count)
        with self._settled:
            self._settled.notify_all()

    def _send(self, part: list[_Item]) -> Answer | None:
        """Sends one request until it is answered for good; None where the process ends first."""
        body = self._body(part)
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
            from jarvis_otel.otlp_client import OtlpClient  # noqa: PLC0415

            self._client = OtlpClient(self.endpoint, self._headers, self._timeout)
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
            _tell(line)

    def _body(self, part: list[_Item]) -> bytes:
        scopes = (
            scope + b",".join([record for _, _, record in items]) + b"]}"
            for scope, items in itertools.groupby(part, key=lambda item: item[1])
        )
        return self._head + b",".join(scopes) + b"]}]}"

    def _tell_absent(self) -> None:
        if not self._absent:
            self._absent = True
            self._say(
                f"no collector at {self.endpoint} ({self._reason}); records wait in memory "
                f"(up to {self._bounds[0]:,}), nothing else is affected. Start one: jarvis collector"
            )

    def _tell_back(self) -> None:
        if self._absent:
            self._absent = False
            self._say(
                f"the collector at {self.endpoint} is back; {_records(len(self._queue))} waited and are on their way, "
                f"{self._queue.overflowed:,} were dropped"
            )


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count:,} records"


def _tell(line: str) -> None:
    """One line on stderr, never through logging, which would feed itself."""
    # stderr may be closed, or None: then there is nobody to tell
    with contextlib.suppress(OSError, ValueError):
        print(f"jarvis: {line}", file=sys.stderr, flush=True)
