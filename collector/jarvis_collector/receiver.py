"""What both receivers do with a request: inflate, read, hand to the writer, and tell what became of it."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jarvis_collector.config import CollectorConfig
from jarvis_collector.inflate import inflate
from jarvis_collector.otlp import BadRequestError, Encoding, Lines, Signal, TooLargeError, read
from jarvis_collector.writer import Write, Writer

__all__ = ["RETRY_AFTER", "Outcome", "Receiver", "reason", "why_no_address"]

RETRY_AFTER = 2
"""Seconds after which a client that was told to come back may do so."""

_STREAMS = {Signal.LOGS: "jarvis", Signal.TRACES: "traces", Signal.METRICS: "metrics"}


class Outcome(NamedTuple):
    """What became of a request.

    Attributes:
        status: As HTTP numbers it: 200, 400, 413, 500, or 503 where it may be sent again.
        message: Why it was refused; of a 200 why some of its records were.
        refused: How many records of a 200 were refused.
    """

    status: int
    message: str = ""
    refused: int = 0


_ALL_KEPT = Outcome(200)


class Receiver:
    """Takes requests in and counts; all of it in the thread of the event loop.

    Args:
        config: The bounds.
        writer: What writes their lines; its writes are settled by `settle`.

    Attributes:
        held: Bytes in memory: bodies being received or read, and lines waiting for the disk.
        bytes_in: Bytes of bodies as they were sent, by signal; of those only that came whole.
        accepted, written, failed, refused: Records by signal: handed to the writer, then synced or not; and those that
            cannot be kept.
    """

    def __init__(self, config: CollectorConfig, writer: Writer) -> None:
        self.config = config
        self.held = 0
        self.bytes_in: Counter[Signal] = Counter()
        self.accepted: Counter[Signal] = Counter()
        self.written: Counter[Signal] = Counter()
        self.failed: Counter[Signal] = Counter()
        self.refused: Counter[Signal] = Counter()
        self._writer = writer

    @property
    def is_full(self) -> bool:
        """Whether so much is held that nothing more is taken."""
        return self.held > self.config.max_pending

    def receive(
        self, signal: Signal, encoding: Encoding, body: bytes, compression: str, done: Callable[[Outcome], None]
    ) -> None:
        """Takes a whole request.

        Args:
            signal: What it carries.
            encoding: How.
            body: As it was sent.
            compression: Its content encoding, a known one; empty for none.
            done: Called once, now or when its records are synced.
        """
        self.bytes_in[signal] += len(body)
        try:
            if compression:
                body = inflate(body, compression, self.config.max_inflated)
            lines = read(signal, encoding, body, time.time_ns())
        except TooLargeError as error:
            done(Outcome(413, str(error)))
        except BadRequestError as error:
            done(Outcome(400, str(error)))
        except Exception as error:  # a fault of ours in one request must not end the collector
            done(Outcome(500, f"{type(error).__name__}: {error}"))
        else:
            self._keep(signal, lines, done)

    def settle(self, writes: Sequence[Write]) -> None:
        """Answers the requests of one commit."""
        for write in writes:
            write.settled(write)

    def _keep(self, signal: Signal, lines: Lines, done: Callable[[Outcome], None]) -> None:
        count = len(lines.lines)
        outcome = _ALL_KEPT
        if lines.refused:
            message = f"{lines.refused} of {lines.refused + count} refused; the first: {lines.problem}"
            outcome = Outcome(200, message, lines.refused)
        if not count:
            self.refused[signal] += lines.refused
            done(outcome)
            return
        size = sum(map(len, lines.lines))
        self.held += size
        self.accepted[signal] += count

        def settled(write: Write) -> None:
            self.held -= size
            if write.error is None:
                self.written[signal] += count
                self.refused[signal] += outcome.refused
                done(outcome)
            else:
                self.failed[signal] += count
                done(Outcome(503, f"cannot write: {reason(write.error)}"))

        self._writer.submit(Write(_STREAMS[signal], lines.lines, settled))


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return f"{type(error).__name__}: {error}"


def why_no_address(error: OSError, option: str) -> str:
    """Why an address cannot be listened on, and what to do.

    Args:
        error: What the system says.
        option: The option that names another port.
    """
    if error.errno == errno.EADDRINUSE:
        return f"it is in use; stop what runs there or choose another {option}"
    return error.strerror or str(error)
