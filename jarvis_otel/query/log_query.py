"""LogQuery: questions to the log files, from Python."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.files import LOGS, SPANS, Kind, LogFiles, Tally
from jarvis_otel.query.filters import (
    Filter,
    correlation_filter,
    field_filter,
    flag_filter,
    flag_or_error_filter,
    flag_states,
    interval_filter,
    is_evaluation,
    level_filter,
    text_filter,
    trace_filter,
    user_filter,
)
from jarvis_otel.query.scan import Found
from jarvis_otel.query.times import Interval, resolve_interval

if TYPE_CHECKING:
    from jarvis_collector.config import LokiTarget
    from jarvis_otel.query.counts import Counts
    from jarvis_otel.query.impact import Change, Impact
    from jarvis_otel.query.loki_source import LokiSource

__all__ = ["GROUPS", "TRACE_MAX", "Criteria", "FlagRate", "LogQuery", "Matches", "Trace"]

GROUPS = ("error.type", "service", "message", "flag")
"""By what errors can be grouped; `error_type` is the first one's other name."""

TRACE_MAX = 20_000
"""So many records and so many spans does a trace have, the newest."""

_TRACE_IDS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Criteria:
    """What is asked for.

    Attributes:
        interval: From when to when.
        filters: What a record must be besides, the most selective first.
    """

    interval: Interval
    filters: tuple[Filter, ...]

    @classmethod
    def of(
        cls,
        *,
        level: str | None = None,
        service: str | None = None,
        correlation_id: str | None = None,
        trace_id: str | None = None,
        user_id: str | tuple[str, ...] | None = None,
        flag: str | None = None,
        since: str | datetime | None = None,
        until: str | datetime | None = None,
        text: str | None = None,
        regex: str | None = None,
        where: str | None = None,
        now: datetime | None = None,
    ) -> Criteria:
        """The criteria that a person's words mean; those given must all hold.

        Args:
            level: `ERROR` for ERROR and above, `=ERROR` for exactly that.
            service: The component.
            correlation_id: A correlation id or a trace id.
            trace_id: A trace id, 32 hex digits.
            user_id: The user, by one name or by any of several.
            flag: `FLAG` was on, `FLAG=off` or `FLAG=variant` gave that.
            since: The earliest time, see `parse_time`; a naive datetime is local time.
            until: The latest time.
            text: Stands in the message, the error or the context, in any case.
            regex: A regular expression of RE2 that matches a part of those.
            where: An expression, see `where_filter`.
            now: The clock; the current time if None.

        Raises:
            QueryError: One of them cannot be read.
        """
        interval = resolve_interval(since, until, now or datetime.now(UTC))
        asked: tuple[tuple[str, Callable[[Any], Filter], Any], ...] = (
            ("correlation_id", correlation_filter, correlation_id),
            ("trace_id", trace_filter, trace_id),
            ("user_id", user_filter, (user_id,) if isinstance(user_id, str) else user_id),
            ("text", text_filter, text),
            ("flag", flag_filter, flag),
            ("where", _where_filter, where),
            ("regex", _regex_filter, regex),
            ("service", lambda value: field_filter("service", value), service),
            ("level", level_filter, level),
        )
        filters = []
        for name, make, value in asked:
            if value is not None:
                try:
                    filters.append(make(value))
                except ValueError as error:
                    raise QueryError(name, str(error)) from None
        if within := interval_filter(interval):
            filters.append(within)
        return cls(interval, tuple(filters))


@dataclass(frozen=True, slots=True)
class Matches:
    """The newest records that match, oldest first.

    Attributes:
        found: The records.
        total: How many match, with those that a limit left out.
        counted: Whether that is so; Loki is not asked for those, so there may be more.
    """

    found: list[Found]
    total: int
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Trace:
    """What one correlation id ties together, across processes.

    Attributes:
        correlation_id: The id that was asked for; may be a trace id.
        trace_ids: The traces that its records and spans belong to, sorted.
        records: Their log records, ordered by timestamp.
        spans: Their spans, ordered by start.
        left_out: Records and spans beyond the newest of each that it may have.
    """

    correlation_id: str
    trace_ids: tuple[str, ...]
    records: list[dict[str, Any]]
    spans: list[dict[str, Any]]
    left_out: int = 0

    def flags(self) -> dict[str, str]:
        """The last variant of each flag that a record or span tells, sorted by id; a span tells at its end."""
        told = [(record["timestamp"], record) for record in self.records]
        told += [(str(span.get("end") or span["timestamp"]), span) for span in self.spans]
        last: dict[str, str] = {}
        for _, item in sorted(told, key=lambda pair: pair[0]):
            last.update(flag_states(item))
        return dict(sorted(last.items()))


@dataclass(slots=True)
class FlagRate:
    """How records with one variant of a flag fared.

    Attributes:
        records: How many there are.
        errors: How many of them are ERROR or above.
    """

    records: int = 0
    errors: int = 0

    @property
    def rate(self) -> float:
        """Errors per record, 0 to 1."""
        return self.errors / self.records if self.records else 0.0


class LogQuery:
    """Questions to the day files of a log directory, archived ones too; each question reads them afresh.

    The files may be our collector's or the real OpenTelemetry Collector's: the answers are the same.

    Args:
        log_dir: The directory; that of the settings if None.
        files: Read these instead, plain or gzip, in this order. Which are spans' is told by a day file's name, else by
            what stands in them.
        loki: Ask this Loki instead, which has log records only, no spans, and less of each than a file; see
            `loki_lines`.
        workers: How many processes scan a large file; below 2 it is this one. More are for programs like a command:
            they are forks, and there are none in a process with several threads.
        on_part: Called before each part of a file is read; what it raises ends the question.

    Attributes:
        tally: What reading met with so far: files, lines that are no records, repeats, damage.

    Raises:
        ValueError: More than one of them is given.
    """

    def __init__(
        self,
        log_dir: str | Path | None = None,
        *,
        files: Iterable[str | Path] | None = None,
        loki: LokiTarget | None = None,
        workers: int = 1,
        on_part: Callable[[], object] = lambda: None,
    ) -> None:
        sources = {"log_dir": log_dir, "files": files, "loki": loki}
        given = [name for name, source in sources.items() if source is not None]
        if len(given) > 1:
            raise ValueError(f"got {' and '.join(given)}, want one of them")
        if not given:
            from jarvis_otel.settings import Settings  # noqa: PLC0415 - reads files; not needed where a directory is given

            log_dir = Settings.load().log_dir
        self.tally = Tally()
        self._loki: LokiSource | None = None
        if loki is not None:
            from jarvis_otel.query.loki_source import LokiSource  # noqa: PLC0415 - most questions go to files

            self._loki = LokiSource(loki, self.tally)
        self._files = LogFiles(
            Path(log_dir) if log_dir is not None else [Path(file) for file in files or ()], self.tally, workers, on_part
        )

    def search(  # noqa: PLR0917 - the order of the arguments is the contract
        self,
        level: str | None = None,
        service: str | None = None,
        correlation_id: str | None = None,
        user_id: str | None = None,
        flag: str | None = None,
        since: str | datetime | None = None,
        until: str | datetime | None = None,
        text: str | None = None,
        limit: int | None = 100,
        *,
        trace_id: str | None = None,
        regex: str | None = None,
        where: str | None = None,
    ) -> list[dict[str, Any]]:
        """The newest records that match, ordered by timestamp; for the other arguments see `Criteria.of`.

        Args:
            limit: How many at most; None for all.

        Raises:
            QueryError: An argument cannot be read.
            OSError: The log files cannot be read.
        """
        criteria = Criteria.of(
            level=level,
            service=service,
            correlation_id=correlation_id,
            trace_id=trace_id,
            user_id=user_id,
            flag=flag,
            since=since,
            until=until,
            text=text,
            regex=regex,
            where=where,
        )
        return [found.record for found in self.newest(criteria, limit).found]

    def iterate(self, **criteria: Any) -> Iterator[dict[str, Any]]:
        """All records that match, in the order in which they arrived, in bounded memory.

        Args:
            **criteria: As `Criteria.of` takes them.

        Raises:
            QueryError: An argument cannot be read.
            OSError: The log files cannot be read.
        """
        return (found.record for found in self.scan(Criteria.of(**criteria)))

    def pages(self, size: int = 100, **criteria: Any) -> Iterator[list[dict[str, Any]]]:
        """All records that match, in lists of the same length but for the last, in the order in which they arrived.

        Args:
            size: How many records a page has.
            **criteria: As `Criteria.of` takes them.

        Raises:
            QueryError: An argument cannot be read.
            OSError: The log files cannot be read.
        """
        if size < 1:
            raise QueryError("size", f"got {size}, want 1 or more")
        records = self.iterate(**criteria)
        return iter(lambda: list(islice(records, size)), [])

    def scan(self, criteria: Criteria, kind: Kind = LOGS) -> Iterator[Found]:
        """All that matches, in the order in which it arrived.

        Args:
            criteria: What is asked for.
            kind: Log records or spans.

        Raises:
            OSError: The files cannot be read.
        """
        source = self._loki or self._files
        return source.records(kind, criteria.filters, criteria.interval)

    def counts(
        self, criteria: Criteria, groups: Iterable[tuple[str, ...]] = (), precision: int = 19
    ) -> Iterator[Counts]:
        """The log records that match, counted part by part: much sooner than one by one; those of a Loki are read.

        Args:
            criteria: Which records.
            groups: Fields to count by, each group a combination.
            precision: So many characters of a timestamp tell times apart: 19 are seconds, 16 minutes.

        Raises:
            OSError: The files cannot be read.
        """
        from jarvis_otel.query.counts import Question, counts_of  # noqa: PLC0415 - most questions count nothing

        question = Question(tuple(groups), precision)
        if self._loki is not None:
            return counts_of(self.scan(criteria), question)
        return self._files.counts(criteria.filters, criteria.interval, question)

    def newest(self, criteria: Criteria, limit: int | None, kind: Kind = LOGS) -> Matches:
        """The newest that match, oldest first, and how many match in all.

        Args:
            criteria: What is asked for.
            limit: How many at most; None for all.
            kind: Log records or spans.

        Raises:
            QueryError: The limit is below 1.
            OSError: The files cannot be read.
        """
        if limit is not None and limit < 1:
            raise QueryError("limit", f"got {limit}, want 1 or more, or None for all")
        if self._loki and limit is not None:
            with closing(self._loki.records(kind, criteria.filters, criteria.interval, newest_first=True)) as newest:
                some = list(islice(newest, limit + 1))
            return Matches(some[:limit][::-1], len(some), counted=len(some) <= limit)
        # Files are in order of arrival, so all have to be read; the heap keeps what is kept small.
        heap: list[tuple[str, int, Found]] = []
        arrival = count()
        total = 0
        for found in self.scan(criteria, kind):
            total += 1
            item = (found.time, next(arrival), found)
            if limit is None or len(heap) < limit:
                heapq.heappush(heap, item)
            else:
                heapq.heappushpop(heap, item)
        return Matches([found for _, _, found in sorted(heap)], total)

    def get_error_summary(
        self, since: str | datetime | None = None, group_by: str = "error_type", until: str | datetime | None = None
    ) -> dict[str, int]:
        """Counts of records of ERROR and above, most frequent first.

        Args:
            since: The earliest time.
            group_by: `error_type` (or `error.type`), `service`, `message` or `flag` (then the keys are FLAG=variant,
                and a record counts once for each of its flags). What a record lacks is counted under "none".
            until: The latest time.

        Raises:
            QueryError: An argument cannot be read.
            OSError: The log files cannot be read.
        """
        group_by = "error.type" if group_by == "error_type" else group_by
        if group_by not in GROUPS:
            raise QueryError("group_by", f"got {group_by!r}, want one of error_type, {', '.join(GROUPS)}")
        counts: Counter[str] = Counter()
        for record in self.iterate(level="ERROR", since=since, until=until):
            counts.update(_groups(record, group_by))
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def flag_rates(
        self, since: str | datetime | None = None, until: str | datetime | None = None
    ) -> dict[str, dict[str, FlagRate]]:
        """Records and errors by flag and variant, sorted.

        Args:
            since: The earliest time.
            until: The latest time.

        Raises:
            QueryError: An argument cannot be read.
            OSError: The log files cannot be read.
        """
        is_error = level_filter("ERROR").matches
        rates: dict[str, dict[str, FlagRate]] = {}
        for record in self.iterate(since=since, until=until):
            if is_evaluation(record):
                continue
            errors = is_error(record)
            for flag_id, variant in flag_states(record).items():
                rate = rates.setdefault(flag_id, {}).setdefault(variant, FlagRate())
                rate.records += 1
                rate.errors += errors
        return {flag_id: dict(sorted(variants.items())) for flag_id, variants in sorted(rates.items())}

    def flag_impact(
        self,
        flag: str,
        since: str | datetime | None = None,
        until: str | datetime | None = None,
        service: str | None = None,
        *,
        baseline: str | None = None,
        changes: Iterable[Change] = (),
    ) -> Impact:
        """Error rate, latency and volume by variant of a flag, with their intervals, and what that says.

        Args:
            flag: The flag's id.
            since: The earliest time.
            until: The latest time.
            service: Only what this service tells.
            baseline: The variant to compare with; else `off`, else the most frequent one.
            changes: Changes of the flag beside those that the records tell of.

        Raises:
            QueryError: An argument cannot be read.
            OSError: The log files cannot be read.
        """
        from jarvis_otel.query.impact import Gathered  # noqa: PLC0415 - other questions need none of it

        within = Criteria.of(since=since, until=until)
        criteria = Criteria(within.interval, (flag_or_error_filter(flag), *within.filters))
        gathered = Gathered(flag, service)
        for found in self.scan(criteria):
            gathered.add_record(found.record)
        for found in self.scan(criteria, SPANS):
            gathered.add_span(found.record)
        return gathered.impact(baseline, changes)

    def trace_correlation(self, correlation_id: str) -> list[dict[str, Any]]:
        """All records of a correlation id and of the traces that it is part of, ordered by timestamp.

        Raises:
            OSError: The log files cannot be read.
        """
        return self.trace(correlation_id).records

    def spans(self, correlation_id: str) -> list[dict[str, Any]]:
        """All spans of a correlation id and of the traces that it is part of, ordered by start.

        Raises:
            OSError: The files cannot be read.
        """
        return self.trace(correlation_id).spans

    def trace(self, correlation_id: str, limit: int = TRACE_MAX) -> Trace:
        """All that a correlation id ties together, in every process that wrote here.

        A process that the correlation id did not reach shares at least the trace: so what shares a trace id with a
        record or span of the correlation id belongs to it.

        Args:
            correlation_id: A correlation id or a trace id.
            limit: So many records and so many spans at most, the newest.

        Raises:
            OSError: The files cannot be read.
        """
        records, spans = self._of_traces(correlation_id, (), limit)
        trace_ids = _trace_ids(records) | _trace_ids(spans)
        if trace_ids - {correlation_id.lower()}:
            del records, spans  # they would be held twice
            records, spans = self._of_traces(correlation_id, sorted(trace_ids)[:_TRACE_IDS_MAX], limit)
        return Trace(
            correlation_id,
            tuple(sorted(trace_ids)),
            [found.record for found in records.found],
            [found.record for found in spans.found],
            records.total + spans.total - len(records.found) - len(spans.found),
        )

    def _of_traces(
        self, correlation_id: str, trace_ids: tuple[str, ...] | list[str], limit: int
    ) -> tuple[Matches, Matches]:
        criteria = Criteria(Interval(), (correlation_filter(correlation_id, trace_ids),))
        return self.newest(criteria, limit, LOGS), self.newest(criteria, limit, SPANS)


def _where_filter(expression: str) -> Filter:
    from jarvis_otel.query.where import where_filter  # noqa: PLC0415 - most questions have none

    return where_filter(expression)


def _regex_filter(pattern: str) -> Filter:
    from jarvis_otel.query.regex import regex_filter  # noqa: PLC0415 - an extra

    return regex_filter(pattern)


def _trace_ids(matches: Matches) -> set[str]:
    ids = (found.record.get("trace_id") for found in matches.found)
    return {value for value in ids if isinstance(value, str)}


def _groups(record: dict[str, Any], group_by: str) -> list[str]:
    if group_by == "flag":
        return [f"{flag_id}={variant}" for flag_id, variant in flag_states(record).items()] or ["none"]
    error = record.get("error")
    if group_by == "error.type":
        value = error.get("type") if isinstance(error, dict) else None
    else:
        value = record.get(group_by)
    return [value if isinstance(value, str) and value else "none"]
