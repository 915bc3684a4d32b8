"""The pages of the logs: records newest first, how many there are over time, one in full; and the same as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.filters import Filter, equalling, names_of
from jarvis_otel.query.log_query import Criteria
from jarvis_otel.query.render import csv_rows, json_text, local_time
from jarvis_otel.query.scan import json_of
from jarvis_otel.query.times import Interval, line_time
from jarvis_otel.settings import LEVELS
from jarvis_otel.web.api import Operation, Parameter, answer_json
from jarvis_otel.web.errors import problem, unreadable_logs
from jarvis_otel.web.histogram import Histogram, count_levels, svg
from jarvis_otel.web.log_filters import COLUMNS, LogFilters
from jarvis_otel.web.log_pages import Page, Place, Placed, newest_page
from jarvis_otel.web.log_rows import record_fields, row_of, uid_of
from jarvis_otel.web.log_tail import LogTails
from jarvis_otel.web.pages import is_htmx, render
from jarvis_otel.web.scans import Budget, GoneError
from jarvis_otel.web.site import Site

__all__ = ["CSV_MAX", "PAGE_SIZE", "operations", "routes"]

PAGE_SIZE = 100
CSV_MAX = 10_000
API_MAX = 1_000

_PAGE_S, _COUNT_S, _CSV_S, _RECORD_S = 5.0, 5.0, 15.0, 3.0
_GONE = 499
_LINE_END = 999_999_999
_PRETTY_MAX = 500_000
_COUNTED_MAX = 32
_KEPT_TIMES = 5
"""So many times as long as it took is a histogram kept."""
_JSON_LINES = ("application/x-ndjson", "application/jsonl", "application/json-lines")

_T = TypeVar("_T")

_HELP: Mapping[str, str] = {
    "since": "the earliest time: ISO 8601, 14:25, -3h, 1 hour ago, yesterday",
    "until": "the latest time; 14:35 is the first one after since",
    "level": "ERROR is ERROR and above, =ERROR exactly that",
    "service": "the component",
    "correlation_id": "a correlation id or a trace id",
    "trace_id": "32 hex digits",
    "user": "the user's id",
    "flag": "FLAG was on; FLAG=off and FLAG=variant gave that",
    "search": "stands in message, error or context, in any case",
    "where": "comparisons of any field: duration_ms>500 and not error.type~=Balance",
}


def routes(site: Site) -> list[BaseRoute]:
    """The pages under /logs."""
    pages = _Pages(site)
    return [
        Route("/logs", pages.show_page),
        Route("/logs/record", pages.show_record),
        Route("/logs/histogram.svg", pages.show_histogram),
        Route("/logs/tail", LogTails(site, pages.criteria).follow),
        Route("/logs.csv", pages.download),
    ]


def operations(site: Site) -> list[Operation]:
    """What programs may ask about log records."""
    pages = _Pages(site)
    filters = [Parameter(name, help_) for name, help_ in _HELP.items()]
    errors = {400: "a filter cannot be read", 503: "too many ask at once, or there are no logs"}
    number = {"type": "integer", "minimum": 1, "maximum": API_MAX}
    return [
        Operation(
            "/api/logs",
            pages.give_page,
            "Log records that match, newest first; with Accept: application/x-ndjson a line each, as in the files",
            [
                *filters,
                Parameter("limit", f"so many records, {PAGE_SIZE} if not given", number),
                Parameter("before", "only what is older: `older` of an answer"),
            ],
            _PAGE_SCHEMA,
            errors,
        ),
        Operation(
            "/api/logs/histogram",
            pages.give_histogram,
            "How many records match, over time by level",
            filters,
            errors=errors,
        ),
    ]


_PAGE_SCHEMA = {
    "type": "object",
    "required": ["records", "older", "complete"],
    "properties": {
        "records": {"type": "array", "items": {"type": "object"}},
        "older": {"type": ["string", "null"], "description": "`before` of the next page; null where there is none"},
        "complete": {"type": "boolean", "description": "false where time was over before the page was full"},
        "since": {"type": ["string", "null"]},
        "until": {"type": ["string", "null"]},
        "reached": {"type": ["string", "null"], "description": "the time of the oldest record that was looked at"},
        "unreadable": {"type": "integer"},
        "problems": {"type": "array", "items": {"type": "string"}},
    },
}


class _Pages:
    """Answers requests.

    Args:
        site: The site.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._log_dir = site.settings.log_dir
        self._counted: dict[tuple[tuple[str, str], ...], tuple[float, Histogram]] = {}

    def criteria(self, filters: LogFilters) -> Criteria:
        """What a page asks for.

        Raises:
            QueryError: One of the filters cannot be read.
        """
        return filters.criteria(partial(names_of, hmac_key=self._site.settings.hmac_key))

    async def show_page(self, request: Request) -> Response:
        """A page of records, with what narrows them."""
        filters = LogFilters.of(request.query_params)
        context: dict[str, Any] = {
            "section": "/logs",
            "filters": filters,
            "help": _HELP,
            "levels": tuple(LEVELS),
            "columns": COLUMNS,
            "columns_text": ", ".join(filters.columns),
            "removals": [(name, text, filters.with_value(name, "").address()) for name, text in filters.values.items()],
            "errors": {},
            "page": None,
            "rows": [],
        }
        try:
            criteria = self.criteria(filters)
            before = _before(request)
        except QueryError as error:
            errors = {**self._problems(filters), error.argument: error.problem}
            return render(request, "logs.html", 400, **{**context, "errors": errors})
        try:
            page = await self._read_page(request, criteria, PAGE_SIZE, before)
        except _FailedError as failed:
            return failed.answer(request)
        fixed = filters.fixed(criteria.interval)
        context |= {
            "page": page,
            "before": before,
            "rows": [row_of(one.found, one.place, filters) for one in page.rows],
            "older": page.older and fixed.address(before=page.older),
            "newest": filters.address(),
            "reached": page.reached and local_time(page.reached),
            "counted": fixed.address("/api/logs/histogram"),
            "picture": fixed.address("/logs/histogram.svg"),
            "csv": fixed.address("/logs.csv", before=before),
            "csv_max": CSV_MAX,
            "tail": filters.address("/logs/tail"),
            "plain": filters.with_value("since", "").with_value("until", "").address(),
            "interval": [(word, line_time(end)) for word, end in criteria.interval.ends()],
        }
        return render(request, "logs.html", **context)

    async def show_record(self, request: Request) -> Response:
        """One record with all its fields; a part of a page where a script asks."""
        filters = LogFilters.of(request.query_params)
        uid = request.query_params.get("uid") or None
        try:
            at = Place.parse(request.query_params["at"]) if request.query_params.get("at") else None
            if at is None and uid is None:
                raise QueryError("at", "got neither at nor uid, want one of them")
        except QueryError as error:
            return problem(request, 400, str(error))
        try:
            placed = await self._read(request, partial(self._find, at, uid), _RECORD_S)
        except _FailedError as failed:
            return failed.answer(request)
        if placed is None:
            return problem(request, 404, "there is no such record any more where it stood; it may have been purged")
        record = placed.found.record
        own = f'_meta.uid="{uid}"' if uid and uid.isprintable() and not set(uid) & {'"', "\\"} else None
        return render(
            request,
            "_log_record.html" if is_htmx(request) else "log_record.html",
            section="/logs",
            time=local_time(placed.found.time),
            record=record,
            fields=record_fields(record, filters),
            pretty=json_text(record, pretty=True) if len(placed.found.line) <= _PRETTY_MAX else None,
            link=filters.address(before=placed.until) + f"#{row_of(placed.found, placed.place, filters).anchor}",
            command=own and LogFilters({"where": own}).command,
            back=filters.address(),
        )

    async def show_histogram(self, request: Request) -> Response:
        """The histogram as a picture."""
        counted = await self._count(request)
        if isinstance(counted, Response):
            return counted
        return Response(svg(counted), media_type="image/svg+xml")

    async def download(self, request: Request) -> Response:
        """What the page shows and what follows it, as CSV that is safe to open in a spreadsheet."""
        try:
            criteria = self.criteria(LogFilters.of(request.query_params))
            before = _before(request)
        except QueryError as error:
            return problem(request, 400, f"{error.argument}: {error.problem}")

        def work(budget: Budget) -> bytes:
            page = newest_page(self._log_dir, criteria, CSV_MAX, budget, before)
            rows = "".join(csv_rows(one.found.record for one in page.rows))
            return rows.encode("utf-8", "backslashreplace")

        try:
            content = await self._read(request, work, _CSV_S)
        except _FailedError as failed:
            return failed.answer(request)
        disposition = 'attachment; filename="jarvis-logs.csv"'
        return Response(content, media_type="text/csv; charset=utf-8", headers={"content-disposition": disposition})

    async def give_page(self, request: Request) -> Response:
        """A page of records as JSON, or as the lines of the files."""
        filters = LogFilters.of(request.query_params)
        try:
            criteria = self.criteria(filters)
            before = _before(request)
            limit = _limit(request)
        except QueryError as error:
            return problem(request, 400, f"{error.argument}: {error.problem}")
        try:
            page = await self._read_page(request, criteria, limit, before)
        except _FailedError as failed:
            return failed.answer(request)
        if any(kind in request.headers.get("accept", "") for kind in _JSON_LINES):
            lines = b"".join(one.found.line + b"\n" for one in page.rows)
            headers = {"x-complete": "true" if page.is_whole else "false"}
            if page.older is not None:
                fixed = filters.fixed(criteria.interval)
                address = fixed.address("/api/logs", before=page.older, limit=limit)
                headers["link"] = f'<{address}>; rel="next"'
            return Response(lines, media_type="application/x-ndjson", headers=headers)
        return Response(json_of(_page_json(page, criteria)), media_type="application/json")

    async def give_histogram(self, request: Request) -> Response:
        """The histogram as JSON."""
        counted = await self._count(request)
        return counted if isinstance(counted, Response) else answer_json(counted.as_json())

    def _problems(self, filters: LogFilters) -> dict[str, str]:
        """What is wrong with each of the filters by itself."""
        problems = {}
        for name, text in filters.values.items():
            try:
                self.criteria(LogFilters({name: text}))
            except QueryError as error:
                problems[error.argument] = error.problem
        return problems

    async def _count(self, request: Request) -> Histogram | Response:
        """The histogram; one that took long is kept for a while, for each page of a question asks for it."""
        filters = LogFilters.of(request.query_params)
        asked, now = tuple(filters.values.items()), time.monotonic()
        self._counted = {key: kept for key, kept in self._counted.items() if now < kept[0]}
        if asked in self._counted:
            return self._counted[asked][1]
        try:
            criteria = self.criteria(filters)
        except QueryError as error:
            return problem(request, 400, f"{error.argument}: {error.problem}")

        def work(budget: Budget) -> tuple[float, Histogram]:
            began = time.monotonic()
            return began, count_levels(self._log_dir, criteria, budget)

        try:
            began, counted = await self._read(request, work, _COUNT_S)
        except _FailedError as failed:
            return failed.answer(request)
        ended = time.monotonic()
        if len(self._counted) < _COUNTED_MAX:
            self._counted[asked] = (ended + _KEPT_TIMES * (ended - began), counted)
        return counted

    async def _read_page(self, request: Request, criteria: Criteria, size: int, before: Place | None) -> Page:
        return await self._read(request, partial(newest_page, self._log_dir, criteria, size, before=before), _PAGE_S)

    async def _read(self, request: Request, work: Callable[[Budget], _T], seconds: float) -> _T:
        """What a scan of the files gives.

        Raises:
            _FailedError: It gives nothing.
        """
        try:
            return await self._site.scans.run(work, Budget(seconds), request)
        except GoneError:
            raise _FailedError(_GONE, "nobody reads the answer") from None
        except OSError as error:
            raise _FailedError(503, unreadable_logs(self._log_dir, error)) from None

    def _find(self, at: Place | None, uid: str | None, budget: Budget) -> Placed | None:
        """A record by its uid, looked for from its place backwards; or whatever stands at the place."""
        criteria = Criteria(Interval(), () if uid is None else (_uid_filter(uid),))
        before = at and at._replace(number=_LINE_END if uid is not None else at.number + 1)
        page = newest_page(self._log_dir, criteria, 1, budget, before)
        if not page.rows or (uid is None and page.rows[0].place != at):
            return None
        return page.rows[0]


class _FailedError(Exception):
    """A scan gave nothing.

    Args:
        status: HTTP's.
        message: Why, for people.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self._status = status
        self._message = message

    def answer(self, request: Request) -> Response:
        """What it is answered with."""
        if self._status == _GONE:
            return Response(status_code=_GONE)
        return problem(request, self._status, self._message)


def _uid_filter(uid: str) -> Filter:
    return Filter(lambda record: uid_of(record) == uid, equalling(uid))


def _before(request: Request) -> Place | None:
    text = request.query_params.get("before", "")
    return Place.parse(text) if text else None


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", "") or str(PAGE_SIZE)
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= API_MAX):
        raise QueryError("limit", f"got {text!r}, want a whole number from 1 to {API_MAX}")
    return int(text)


def _page_json(page: Page, criteria: Criteria) -> dict[str, Any]:
    interval = criteria.interval
    return {
        "records": [one.found.record for one in page.rows],
        "older": page.older and str(page.older),
        "complete": page.is_whole,
        "since": interval.since and line_time(interval.since),
        "until": interval.until and line_time(interval.until),
        "reached": page.reached or None,
        "unreadable": page.unreadable,
        "problems": page.problems,
    }
