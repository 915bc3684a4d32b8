"""What a flag does to those who have it, out of the logs: counted once for all who look, with how far it has come."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.impact import Impact
from jarvis_otel.query.impact_answer import audit_changes, baseline_of, estimate_text, impact_json
from jarvis_otel.query.log_query import LogQuery
from jarvis_otel.query.times import Interval, line_time, resolve_interval
from jarvis_otel.web.api import Operation, Parameter, answer_json
from jarvis_otel.web.errors import problem, unreadable_logs
from jarvis_otel.web.log_filters import LogFilters
from jarvis_otel.web.log_rows import flag_address
from jarvis_otel.web.pages import is_htmx, render
from jarvis_otel.web.scans import Budget, GoneError, SpentError
from jarvis_otel.web.site import Site

__all__ = ["CHOICES", "operations", "routes"]

CHOICES = (("-15m", "15 minutes"), ("-1h", "1 hour"), ("-6h", "6 hours"), ("-1d", "1 day"), ("-7d", "7 days"))
"""The times that a page offers."""

_IMPACT_S = 60.0
_KEPT_S = 15.0
_LEFT_S = 10.0
_JOBS_MAX = 32
_FIRST_WAIT_S = 1.0
_CHANGES_SHOWN = 20
_TEXT_MAX = 200


def routes(site: Site) -> list[BaseRoute]:
    """The page of a flag's impact, which is a part of the flag's page too."""
    pages = _Pages(site)
    return [Route("/flags/{flag_id:path}/impact", pages.show)]


def operations(site: Site) -> list[Operation]:
    """What programs may ask about the impact of flags."""
    return [
        Operation(
            "/api/impact/{flag_id:path}",
            _Pages(site).give,
            "Error rate, latency and volume by variant of a flag, with intervals and verdicts",
            [
                Parameter("since", f"the earliest time, {CHOICES[1][0]} if not given"),
                Parameter("until", "the latest time"),
                Parameter("service", "only what this component tells"),
            ],
            errors={400: "a time cannot be read", 503: "it takes too long, too many ask at once, or there are no logs"},
        )
    ]


class _Job:
    """One count.

    Args:
        interval: What is looked at.
        now: Monotonic seconds.

    Attributes:
        asked: When somebody asked last.
        done: When it ended; None while it goes on.
        budget: How long it may go on.
        logs: What reads; its tally tells how far it has come.
        task: It.
    """

    logs: LogQuery
    task: asyncio.Task[Impact]

    def __init__(self, interval: Interval, now: float) -> None:
        self.interval = interval
        self.asked = now
        self.done: float | None = None
        self.budget = Budget(_IMPACT_S)
        self._begun = now

    @property
    def progress(self) -> str:
        """How far it has come, for people."""
        tally = self.logs.tally
        return f"{tally.bytes / 1e6:,.0f} MB of {tally.files} files read, {time.monotonic() - self._begun:.0f} s"

    @property
    def was_left(self) -> bool:
        """Whether it ended because nobody asked any more."""
        return self.task.done() and not self.task.cancelled() and isinstance(self.task.exception(), GoneError)

    def go_on(self) -> None:
        """Ends it where it takes too long, or where nobody has asked any more for a while."""
        if time.monotonic() - self.asked > _LEFT_S:
            self.budget.leave()
        self.budget.check()


class _Counts:
    """The counts of a site, each for all who ask the same.

    Args:
        site: The site.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._jobs: dict[tuple[str, str, str, str], _Job] = {}

    @classmethod
    def of(cls, request: Request, site: Site) -> _Counts:
        """Those of the application that a request asks."""
        state = request.app.state
        if not hasattr(state, "impact_counts"):
            state.impact_counts = cls(site)
        counts: _Counts = state.impact_counts
        return counts

    def job(self, flag: str, since: str, until: str, service: str) -> _Job:
        """The count that answers a question: one that goes on or ended some seconds ago, else a new one.

        Raises:
            QueryError: A time cannot be read.
            HTTPException: 503, too many are counted already.
        """
        now = time.monotonic()
        for key, job in list(self._jobs.items()):
            if job.done is not None and (now - job.done > _KEPT_S or job.was_left):
                del self._jobs[key]
        key = (flag, since, until, service)
        found = self._jobs.get(key)
        if found is None:
            interval = resolve_interval(since or None, until or None, datetime.now(UTC))
            if len(self._jobs) >= _JOBS_MAX:
                raise HTTPException(503, "too many flags are being counted; try again in a moment")
            found = _Job(interval, now)
            found.logs = LogQuery(self._site.settings.log_dir, on_part=found.go_on)
            found.task = asyncio.create_task(self._count(found, flag, service))
            found.task.add_done_callback(_looked_at)
            self._jobs[key] = found
        found.asked = now
        return found

    async def _count(self, job: _Job, flag: str, service: str) -> Impact:
        admin = self._site.admin

        def work(_: Budget) -> Impact:
            return job.logs.flag_impact(
                flag,
                job.interval.since,
                job.interval.until,
                service or None,
                baseline=baseline_of(admin.source.snapshot.definitions.get(flag)),
                changes=audit_changes(admin.history(flag), job.interval),
            )

        try:
            return await self._site.scans.run(work, job.budget, large=True)
        finally:
            job.done = time.monotonic()

    def result(self, job: _Job) -> Impact:
        """What was counted.

        Raises:
            HTTPException: Nothing was.
        """
        try:
            return job.task.result()
        except (SpentError, GoneError, asyncio.CancelledError):
            why = f"it takes more than {_IMPACT_S:.0f} s to count so many records; choose a shorter time"
        except OSError as error:
            why = unreadable_logs(self._site.settings.log_dir, error)
        raise HTTPException(503, why)


class _Pages:
    """Answers requests.

    Args:
        site: The site.
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    async def show(self, request: Request) -> Response:
        """A flag's impact; while it is counted, how far that has come."""
        flag = request.path_params["flag_id"]
        since, until, service = _asked(request)
        path = flag_address(flag) or "/flags"
        asked = {"since": since, "until": until, "service": service}
        context: dict[str, Any] = {
            "section": "/flags",
            "flag": flag,
            "flag_page": path,
            "action": f"{path}/impact",
            "again": f"{path}/impact?" + urlencode({k: v for k, v in asked.items() if v}, errors="backslashreplace"),
            "asked": asked,
            "choices": CHOICES,
            "errors": [],
            "progress": None,
            "impact": None,
        }
        part = is_htmx(request)  # which shows no answer that is none of 200
        template = "_impact.html" if part else "impact.html"
        try:
            job = _Counts.of(request, self._site).job(flag, since, until, service)
        except QueryError as error:
            said = {"errors": [f"{error.argument}: {error.problem}"]}
            return render(request, template, 200 if part else 400, **{**context, **said})
        await asyncio.wait({job.task}, timeout=_FIRST_WAIT_S)
        if not job.task.done():
            return render(request, template, **{**context, "progress": job.progress})
        try:
            impact = _Counts.of(request, self._site).result(job)
        except HTTPException as failed:
            said = {"errors": [str(failed.detail)]}
            return render(request, template, 200 if part else failed.status_code, **{**context, **said})
        context |= {
            "impact": impact,
            "interval": [(word, line_time(end)) for word, end in job.interval.ends()],
            "rows": [list(_cells(one)) for one in impact.variants],
            "links": [_records_of(flag, one.variant, job.interval, service) for one in impact.variants],
            "changes": impact.changes[-_CHANGES_SHOWN:],
            "changes_more": len(impact.changes[:-_CHANGES_SHOWN]),
            "unreadable": sum(job.logs.tally.unreadable.values()),
        }
        return render(request, template, **context)

    async def give(self, request: Request) -> Response:
        """A flag's impact as JSON."""
        since, until, service = _asked(request)
        try:
            job = _Counts.of(request, self._site).job(request.path_params["flag_id"], since, until, service)
        except QueryError as error:
            return problem(request, 400, f"{error.argument}: {error.problem}")
        while not job.task.done():
            if await request.is_disconnected():
                return Response(status_code=499)
            job.asked = time.monotonic()
            await asyncio.wait({job.task}, timeout=_FIRST_WAIT_S)
        try:
            return answer_json(impact_json(_Counts.of(request, self._site).result(job), job.interval))
        except HTTPException as failed:
            return problem(request, failed.status_code, str(failed.detail))


def _looked_at(task: asyncio.Task[Impact]) -> None:
    """Nobody may be left to see what went wrong; asyncio would tell it then."""
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()


def _asked(request: Request) -> tuple[str, str, str]:
    params: Mapping[str, str] = request.query_params
    since, until, service = (params.get(name, "").strip()[:_TEXT_MAX] for name in ("since", "until", "service"))
    return since or ("" if until else CHOICES[1][0]), until, service


def _cells(one: Any) -> Iterator[str]:
    yield one.variant
    yield f"{one.operations:,}"
    yield estimate_text(one.share, 100, " %")
    yield f"{one.errors:,}"
    yield estimate_text(one.error_rate, 100, " %")
    yield estimate_text(one.p50, 1, " ms")
    yield estimate_text(one.p95, 1, " ms")


def _records_of(flag: str, variant: str, interval: Interval, service: str) -> str:
    """The address of the records with a variant."""
    values = {"flag": f"{flag}={variant}"} | ({"service": service} if service else {})
    return LogFilters(values).fixed(interval).address()
