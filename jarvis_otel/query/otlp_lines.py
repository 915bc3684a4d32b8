"""The real OpenTelemetry Collector's lines, each a whole OTLP/JSON request, as the lines that our collector writes.

What a request says is one record a line from here on, so nothing that follows knows where it came from. Two things make
the difference: the resource attribute that the shipped configuration adds to name the file does not show; and a record
without any time of its own gets the start of the day on which it arrived, which that attribute tells, else the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime

import orjson

from jarvis_collector.otlp import BadRequestError, Encoding, Signal, read
from jarvis_otel.query.filters import Needle
from jarvis_otel.query.scan import holds

__all__ = ["LOG_DAY", "REQUEST_KEYS", "RequestLines"]

REQUEST_KEYS = {Signal.LOGS: "resourceLogs", Signal.TRACES: "resourceSpans", Signal.METRICS: "resourceMetrics"}
"""The key of a request in OTLP/JSON by its signal."""

LOG_DAY = "jarvis.log_day"
"""The resource attribute by which collector/otelcol.yaml has the Collector name its files."""

_LOG_DAY = LOG_DAY.encode()
_DAY_START = b'{"key":"%s","value":{"stringValue":"' % _LOG_DAY
_DAY_ATTRIBUTE = re.compile(re.escape(_DAY_START) + rb'([0-9]{4}-[0-9]{2}-[0-9]{2})"\}\}')

# Where a whole line begins that another one was glued to; both have a quote unescaped, so neither stands in a text.
_START = rb'\{"%s"|\{"timestamp":"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{15}Z","'


class RequestLines:
    """Puts the lines of records in the place of the requests in a file; lines that are no requests stay as they are.

    A process that is killed may leave a torn line, and the next one glues its first line to it: what is whole after the
    place where they meet is read.

    Args:
        signal: Which requests; those of other signals stay as they are.
        needles: Of each, something stands in every request, and every line of ours, that is wanted at all.
        day: The day of the file; the arrival of records without any time. None where its name tells none.
        on_unreadable: Told how many lines or records cannot be read.
    """

    def __init__(
        self, signal: Signal, needles: Sequence[Needle], day: date | None, on_unreadable: Callable[[int], object]
    ) -> None:
        self._signal = signal
        self._needles = needles
        # looking in lower case costs more than looking for requests
        self._first = [needle for needle in needles if not needle.lowered]
        self._arrival = _start_of(day) if day else 0
        self._on_unreadable = on_unreadable
        self._key = REQUEST_KEYS[signal]
        key = self._key.encode()
        self._mark = b'"%s"' % key
        self._opening = b'{"%s"' % key
        self._starts = re.compile(_START % key)

    def may_hold(self, block: bytes) -> bool:
        """Whether something wanted can stand in a block of lines, as far as a quick look tells."""
        return all(holds(needle, block) for needle in self._first)

    def flat(self, block: bytes) -> Iterator[bytes]:
        """A block of whole lines, in blocks of whole lines without requests; nothing of one that holds nothing wanted.

        Args:
            block: Ends in a newline.
        """
        if not self.may_hold(block):
            return
        at = block.find(self._mark)
        if at < 0:
            yield block
            return
        wanted = all(holds(needle, block) for needle in self._needles)
        done = 0
        while at >= 0:
            start = block.rfind(b"\n", done, at) + 1 or done
            end = block.index(b"\n", at) + 1
            if start > done:
                yield block[done:start]
            if wanted:
                yield from self._line(block[start:end])
            done = end
            at = block.find(self._mark, done)
        if done < len(block):
            yield block[done:]

    def _line(self, line: bytes) -> Iterator[bytes]:
        """A line in which the key of a request stands: mostly a request, perhaps one of ours, or what a crash left."""
        if not all(holds(needle, line) for needle in self._needles):
            return
        if not line.startswith(self._opening):
            try:
                content = orjson.loads(line)
            except ValueError:
                yield from self._glued(line)
                return
            if not isinstance(content, dict) or "timestamp" in content or self._key not in content:
                yield line
                return
        try:
            yield self._read(line)
        except BadRequestError:
            yield from self._glued(line)

    def _glued(self, line: bytes) -> Iterator[bytes]:
        starts = sorted({0, *(found.start() for found in self._starts.finditer(line))})
        for start, end in zip(starts, [*starts[1:], len(line)], strict=True):
            part = line[start:end]
            if not part.startswith(self._opening):
                yield part if part.endswith(b"\n") else part + b"\n"  # ours, or counted where it is parsed
                continue
            try:
                yield self._read(part)
            except BadRequestError:
                self._on_unreadable(1)

    def _read(self, request: bytes) -> bytes:
        """The lines of a request.

        Raises:
            BadRequestError: It is none.
        """
        day, request = self._without_day(request)
        lines = read(self._signal, Encoding.JSON, request, _start_of(day) if day else self._arrival)
        if lines.refused:
            self._on_unreadable(lines.refused)
        return b"".join(lines.lines)

    def _without_day(self, request: bytes) -> tuple[date | None, bytes]:
        """The day that the resources name, and the request of which none has the attribute any more."""
        if _LOG_DAY not in request:
            return None, request
        day = None
        if found := _DAY_ATTRIBUTE.match(request, request.find(_DAY_START)):
            # as the Collector writes it: the last attribute, or the only one, of a resource
            day, end = _date(found[1].decode()), b']},"scope'
            request = request.replace(b"," + found[0] + end, end).replace(b"[" + found[0] + end, b"[" + end)
            if _LOG_DAY not in request:
                return day, request
        try:
            content = orjson.loads(request)
            for group in content[self._key]:
                resource = group.get("resource") or {}
                pairs = resource.get("attributes") or ()
                named = [pair for pair in pairs if pair["key"] == LOG_DAY]
                if named:
                    resource["attributes"] = [pair for pair in pairs if pair["key"] != LOG_DAY]
                    day = day or _date(named[0]["value"]["stringValue"])
            return day, orjson.dumps(content)
        except (ValueError, LookupError, TypeError, AttributeError):
            return day, request  # the reader says what is wrong with it


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _start_of(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000_000
