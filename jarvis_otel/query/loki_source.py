"""Loki as a source of records: the same questions as to the files, asked in LogQL, page by page.

https://grafana.com/docs/loki/latest/reference/loki-http-api/#query-logs-within-a-range-of-time
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import orjson

from jarvis_collector.config import LokiTarget
from jarvis_collector.http_client import HttpClient
from jarvis_otel.collector_settings import loki_target
from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.files import LOGS, Kind, Seen, Tally
from jarvis_otel.query.filters import Filter
from jarvis_otel.query.logql import query
from jarvis_otel.query.loki_lines import LokiLines
from jarvis_otel.query.scan import Found
from jarvis_otel.query.times import Interval, canonical_time
from jarvis_otel.settings import Settings
from jarvis_otel.terminal import printable

__all__ = ["REACH", "LokiError", "LokiSource", "asked_loki"]

PAGE = 5000
"""Records of a page: Loki gives no more by default."""

REACH = timedelta(days=30)
"""So far back does a question reach that names no beginning; config/loki.yaml keeps records as long."""

_END_OF_TIME = 1 << 64
"""Nanoseconds since 1970 that OTLP knows no more."""

WINDOW = timedelta(days=7)
"""So long a time is asked for at once; Loki's own limit is 30 days and an hour."""

_AHEAD = timedelta(minutes=10)
_WINDOW_MIN = timedelta(seconds=1)
_PATH = "/loki/api/v1/query_range"
_ANSWER_MAX = 32 << 20
_GET_MAX = 4096
_ERROR_MAX = 300
_MARGIN = 0.9
_BATCH = 128
_SHRINK = 8
_FIRST = 500
_GROWTH = 4
_TOO_MUCH = re.compile(r"larger than max \((\d+) vs\. (\d+)\)|larger than max|max_entries_limit|ResourceExhausted")
_TOO_LONG = "query time range exceeds the limit"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def asked_loki(option: str, settings: Settings) -> tuple[LokiTarget, str | None]:
    """The Loki that `--loki` names, and what is to be said about it, if anything.

    The headers of the settings go to the Loki of the settings, and where these name none, to whichever is asked: they
    may be secrets.

    Args:
        option: Its base URL; empty for that of the settings.
        settings: The settings.

    Raises:
        QueryError: It is no such URL, or there is none.
    """
    own = settings.loki
    if not option:
        if own is None:
            raise QueryError("loki", "got no URL, and no loki_url in the settings; want --loki=http://127.0.0.1:3100")
        return own, None
    try:
        target = loki_target(option, own.checkpoint if own else Path(), settings.loki_headers, settings.loki_timeout)
    except ValueError as error:
        raise QueryError("loki", str(error)) from None
    if own and target.headers and urlsplit(own.url)[:2] != urlsplit(target.url)[:2]:
        return replace(target, headers={}), f"the headers of loki_headers belong to {own.url} and are not sent"
    return target, None


class LokiError(OSError):
    """Loki gives no answer, or none that can be used; `strerror` says why in one line, `filename` where it is."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(errno.EIO, problem, where)


class _TooMuch(Exception):  # noqa: N818 - no fault: it is asked for less
    """A page holds more than Loki, or we, can take at once.

    Attributes:
        share: So much of it could be taken, where that is known.
    """

    def __init__(self, problem: str, share: float | None = None) -> None:
        super().__init__(problem)
        self.share = share


class _TooLong(Exception):  # noqa: N818
    """A window is longer than Loki lets it be."""


class _Entry(NamedTuple):
    time: int
    text: str
    labels: Mapping[str, str]


class LokiSource:
    """Answers from a Loki that our forwarder, or the real Collector, writes to. It has log records, no spans.

    Args:
        target: The Loki.
        tally: Where what is met with is counted.
        now: The clock, aware.
        page: Records of a page, at most.
    """

    def __init__(
        self,
        target: LokiTarget,
        tally: Tally,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        page: int = PAGE,
    ) -> None:
        self._client = _Client(target)
        self._tally = tally
        self._now = now
        self._page = page
        self._window = WINDOW

    @property
    def where(self) -> str:
        """Host and port, for messages."""
        return self._client.where

    def records(
        self, kind: Kind, filters: Sequence[Filter], interval: Interval, *, newest_first: bool = False
    ) -> Generator[Found, None, None]:
        """The records that pass all filters, ordered by time, each once.

        Loki is asked for those that may pass, and each that comes back is looked at again here.

        Args:
            kind: Log records; of spans Loki has none.
            filters: What a record must be.
            interval: From when to when; without a beginning the last 30 days.
            newest_first: Whether the latest record is the first one.

        Raises:
            LokiError: Loki cannot be asked.
        """
        if kind is not LOGS:
            return
        asked = [one.loki for one in filters]
        lines = LokiLines(name for one in asked for name in one.names)
        seen = Seen()
        try:
            for entry in self._entries(query(asked), interval, newest_first=newest_first):
                line = lines.line(*entry).removesuffix(b"\n")
                record = orjson.loads(line)
                if not all(one.matches(record) for one in filters):
                    continue
                if seen.before(hash(kind.identity(record))):
                    self._tally.repeats += 1
                else:
                    yield Found(canonical_time(record["timestamp"]), record, line)
        finally:
            self._client.close()

    def _entries(self, text: str, interval: Interval, *, newest_first: bool) -> Iterator[_Entry]:
        """All entries, window by window and page by page."""
        until = interval.until or self._now() + _AHEAD
        start = _nanos(interval.since or min(self._now(), until) - REACH)
        end = _nanos(until) + 1000  # the microsecond of until is still in it
        while start < end:
            length = min(end - start, self._window // timedelta(microseconds=1) * 1000)
            first, last = (end - length, end) if newest_first else (start, start + length)
            try:
                yield from self._window_of(text, first, last, newest_first=newest_first)
            except _TooLong:
                self._window = min(self._window, timedelta(microseconds=length // 1000)) / 2
                if self._window < _WINDOW_MIN:
                    raise LokiError(self.where, "lets nobody ask for even a second at once") from None
                continue
            if newest_first:
                end = first
            else:
                start = last

    def _window_of(self, text: str, start: int, end: int, *, newest_first: bool) -> Iterator[_Entry]:
        """The entries of one window. The next page begins with the moment at which one ends, for more may be of it."""
        before: set[bytes] = set()
        size = _FIRST if newest_first else self._page
        while start < end:
            size = min(size, self._page)
            try:
                page = self._client.entries(text, start, end, size, newest_first=newest_first)
            except _TooMuch as problem:
                if size == 1:
                    raise LokiError(self.where, f"cannot give even one record: {problem}") from None
                # its ingesters hand on so many records at once
                fits = size // _SHRINK if problem.share is None else int(min(size, _BATCH) * problem.share)
                self._page = max(1, min(fits, size // 2))
                continue
            for entry in page:
                if not before or _identity(entry) not in before:
                    yield entry
            if len(page) < size:
                return
            edge = page[-1].time
            at_edge = {_identity(entry) for entry in page if entry.time == edge}
            if at_edge <= before:
                # a whole page of one moment, so what else is of it cannot be reached
                told = f"more than {size} records of one moment in Loki; some of them are left out"
                if told not in self._tally.damaged:
                    self._tally.damaged.append(told)
                start, end = (start, edge) if newest_first else (edge + 1, end)
                before = set()
                continue
            before = at_edge | before if page[0].time == edge else at_edge
            start, end = (start, edge + 1) if newest_first else (edge, end)
            size *= _GROWTH


def _nanos(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _identity(entry: _Entry) -> bytes:
    return orjson.dumps([entry.text, entry.labels], option=orjson.OPT_SORT_KEYS)


class _Client:
    """Asks one Loki over one kept-alive connection; redirects are not followed."""

    def __init__(self, target: LokiTarget) -> None:
        self._client = HttpClient(target.url, target.timeout, content_max=_ANSWER_MAX + 1)
        self._path = urlsplit(target.url).path.rstrip("/") + _PATH
        # Not `categorize-labels`: with it Loki 3.7.8 answers 200 and nothing where it cannot hand on a page, 4 MB of
        # large records; without it, with an error.
        self._headers = {"User-Agent": "jarvis-logs", **target.headers}
        self.where = f"Loki at {self._client.where}"

    def entries(self, text: str, start: int, end: int, limit: int, *, newest_first: bool) -> list[_Entry]:
        """One page, in the order of its direction.

        Raises:
            LokiError: There is no answer, or it is a refusal or none of Loki's.
        """
        parameters = {
            "query": text,
            "start": str(start),
            "end": str(end),
            "limit": str(limit),
            "direction": "backward" if newest_first else "forward",
        }
        status, content = self._ask(urlencode(parameters))
        if status != 200:
            said = printable(content[: 4 * _ERROR_MAX].decode("utf-8", "replace").strip())[:_ERROR_MAX]
            if too_much := _TOO_MUCH.search(said):
                size, bound = too_much.groups(default="")
                raise _TooMuch(said, int(bound) / int(size) * _MARGIN if size else None)
            if _TOO_LONG in said:
                raise _TooLong(said)
            raise LokiError(self.where, f"answers with {status}: {said or 'nothing'}")
        try:
            entries = list(_entries(orjson.loads(content)))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise LokiError(self.where, "answers with something that is no answer of Loki") from None
        # streams come one after the other, and of the same moment in any order
        entries.sort(key=lambda entry: entry.time, reverse=newest_first)
        return entries

    def close(self) -> None:
        self._client.close()

    def _ask(self, parameters: str) -> tuple[int, bytes]:
        """Status and body."""
        if len(parameters) <= _GET_MAX:
            answer = self._client.request("GET", f"{self._path}?{parameters}", headers=self._headers)
        else:
            headers = {**self._headers, "Content-Type": "application/x-www-form-urlencoded"}
            answer = self._client.request("POST", self._path, parameters.encode(), headers)
        if not answer.status:
            raise LokiError(self.where, answer.reason)
        if len(answer.content) > _ANSWER_MAX:
            raise _TooMuch(f"a page of more than {_ANSWER_MAX >> 20} MiB")
        return answer.status, answer.content


def _entries(answer: Mapping[str, Any]) -> Iterator[_Entry]:
    if answer["data"]["resultType"] != "streams":
        raise ValueError("no streams")
    for stream in answer["data"]["result"]:
        labels = stream["stream"]
        if not all(isinstance(label, str) for label in labels.values()):
            raise TypeError("a label that is no text")
        for time, text in stream["values"]:
            entry = _Entry(int(time), text, labels)
            if not 0 <= entry.time < _END_OF_TIME or not isinstance(text, str):
                raise ValueError("no entry")
            yield entry
