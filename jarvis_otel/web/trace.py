"""The page of a trace: what happened when and where, which flags were on, what changed since, how to reproduce it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from jarvis_flags.model import EvaluationContext
from jarvis_flags.request import result_name
from jarvis_flags.snapshot import Snapshot
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.states import change_words
from jarvis_otel.query.log_query import LogQuery, Trace
from jarvis_otel.query.render import local_time
from jarvis_otel.query.reproduce import Reproduction, dangerous_in, reproduce
from jarvis_otel.query.scan import json_of
from jarvis_otel.web.api import Operation
from jarvis_otel.web.errors import problem, unreadable_logs
from jarvis_otel.web.log_filters import LogFilters
from jarvis_otel.web.log_rows import flag_address, trace_address
from jarvis_otel.web.pages import render
from jarvis_otel.web.scans import Budget, GoneError, SpentError
from jarvis_otel.web.site import Site
from jarvis_otel.web.waterfall import Waterfall, waterfall

__all__ = ["FlagThen", "operations", "routes"]

STEPS_MAX = 10_000
"""So many records and so many spans of a trace does a page look at, the newest."""

API_MAX = 5_000
"""So many of each does the JSON have; `/api/logs` gives all records in pages."""

_TRACE_S = 20.0
_CHANGES_SHOWN = 5
_SLOW = "it takes too long to look through all files for this trace; `jarvis logs index` makes it quick"


def routes(site: Site) -> list[BaseRoute]:
    """The pages under /trace."""
    pages = _Pages(site)
    return [Route("/trace", pages.find), Route("/trace/{trace:path}", pages.show)]


def operations(site: Site) -> list[Operation]:
    """What programs may ask about traces."""
    errors = {503: "it takes too long, too many ask at once, or there are no logs"}
    return [
        Operation(
            "/api/traces/{trace:path}",
            _Pages(site).give,
            "Records and spans of a correlation or trace id, the flags that it saw, and the lines that give them again",
            errors=errors,
        )
    ]


@dataclass(frozen=True, slots=True)
class FlagThen:
    """A flag as a trace saw it, and as it is now.

    Attributes:
        flag: Its id.
        then: What it gave, in the order of time.
        now: What it gives now, to the same user where that is known; None where there is no such flag any more.
        state: Where it stands now, in a word or two.
        changes: What was changed since the trace began, oldest first: when, what, who and why.
        earlier: So many further changes are not shown.
        href: Its page.
    """

    flag: str
    then: tuple[str, ...]
    now: str | None
    state: str
    changes: tuple[tuple[str, str, str, str], ...]
    earlier: int
    href: str | None

    @property
    def is_different(self) -> bool:
        """Whether it gives something else now: somebody changed it, or it was given to somebody else."""
        return self.now != self.then[-1]


@dataclass(frozen=True, slots=True)
class _Answer:
    trace: Trace
    drawn: Waterfall
    rail: tuple[FlagThen, ...]
    reproduction: Reproduction


class _Pages:
    """Answers requests.

    Args:
        site: The site.
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    async def find(self, request: Request) -> Response:
        """A field for an id; with one, its trace."""
        wanted = request.query_params.get("id", "").strip(" ")
        if not wanted:
            return render(request, "trace_find.html", section="/logs")
        address = trace_address(wanted)
        if address is not None and not address.startswith("/trace?"):
            return RedirectResponse(address, 303)
        return await self._page(request, wanted)

    async def show(self, request: Request) -> Response:
        """The trace of the id in the address."""
        return await self._page(request, request.path_params["trace"])

    async def _page(self, request: Request, wanted: str) -> Response:
        params = request.query_params
        fold = params.get("fold") != "0"
        number = params.get("page", "")
        page = int(number) if number.isascii() and number.isdecimal() and len(number) < 6 else 1

        def work(budget: Budget) -> _Answer | None:
            trace = self._query(budget).trace(wanted, STEPS_MAX)
            if not (trace.records or trace.spans):
                return None
            drawn = waterfall(trace, fold=fold, page=page)
            return _Answer(trace, drawn, self._rail(trace, drawn), self._reproduction(trace))

        answer = await self._read(request, work)
        if isinstance(answer, Response):
            return answer
        if answer is None:
            return render(request, "trace_find.html", 404, section="/logs", missing=wanted)
        trace, drawn = answer.trace, answer.drawn
        base = trace_address(wanted) or "/trace"
        joint = "&" if "?" in base else "?"
        unfolded = "" if fold else "&fold=0"
        return render(
            request,
            "trace.html",
            section="/logs",
            trace=trace,
            most=STEPS_MAX,
            drawn=drawn,
            rail=answer.rail,
            reproduction=answer.reproduction,
            start=local_time(drawn.start),
            records=[(row, _record_address(row.uid)) for row in drawn.rows],
            logs=LogFilters({"correlation_id": wanted}).address(),
            command=f"jarvis logs trace {shlex.quote(wanted)}" if wanted.isprintable() else None,
            unfold=f"{base}{joint}fold=0" if drawn.folded else None,
            refold=None if fold else base,
            pages=[(at, f"{base}{joint}page={at}{unfolded}") for at in range(1, drawn.pages + 1)],
        )

    async def give(self, request: Request) -> Response:
        """The trace as JSON."""
        wanted = request.path_params["trace"]

        def work(budget: Budget) -> dict[str, Any] | None:
            trace = self._query(budget).trace(wanted, API_MAX)
            if not (trace.records or trace.spans):
                return None
            return self._as_json(trace)

        answer = await self._read(request, work)
        if isinstance(answer, Response):
            return answer
        if answer is None:
            return problem(request, 404, "nothing is known of this id")
        return Response(json_of(answer), media_type="application/json")

    async def _read(self, request: Request, work: Callable[[Budget], Any]) -> Any:
        """What a scan gives; an answer that says why where it gives nothing."""
        try:
            return await self._site.scans.run(work, Budget(_TRACE_S), request, large=True)
        except GoneError:
            return Response(status_code=499)
        except SpentError:
            return problem(request, 503, _SLOW)
        except OSError as error:
            return problem(request, 503, unreadable_logs(self._site.settings.log_dir, error))

    def _query(self, budget: Budget) -> LogQuery:
        return LogQuery(self._site.settings.log_dir, on_part=budget.check)

    def _reproduction(self, trace: Trace) -> Reproduction:
        return reproduce(trace.flags(), dangerous_in(self._site.admin.source.snapshot), include_dangerous=False)

    def _rail(self, trace: Trace, drawn: Waterfall) -> tuple[FlagThen, ...]:
        """The flags that a trace saw, those first that give something else now."""
        admin = self._site.admin
        snapshot = admin.source.snapshot
        began = datetime.fromisoformat(drawn.start)
        changes: dict[str, list[AuditEntry]] = {}
        for entry in admin.history():
            if entry.outcome in ("applied", "written") and datetime.fromisoformat(entry.at) >= began:
                changes.setdefault(entry.flag, []).append(entry)
        context = self._context(trace)
        last = trace.flags()
        rail = []
        for flag in sorted(last):
            state = admin.state(flag)
            since = changes.get(flag, [])
            seen = tuple(variant for variant in drawn.variants.get(flag, ()) if variant != last[flag])
            rail.append(
                FlagThen(
                    flag,
                    (*seen, last[flag]),
                    _variant_now(snapshot, flag, context),
                    "" if state is None else state.state,
                    tuple(
                        (entry.at, change_words(entry), entry.who, entry.reason) for entry in since[-_CHANGES_SHOWN:]
                    ),
                    len(since[:-_CHANGES_SHOWN]),
                    flag_address(flag),
                )
            )
        return tuple(sorted(rail, key=lambda one: (not one.is_different, one.flag)))

    def _context(self, trace: Trace) -> EvaluationContext:
        """For whom and where the trace ran, as far as its records agree; a pseudonym is no user."""
        users = {user for record in trace.records if isinstance(user := record.get("user_id"), str)}
        metas = (record.get("_meta") for record in trace.records)
        places = {str(meta["environment"]) for meta in metas if isinstance(meta, dict) and meta.get("environment")}
        user = next(iter(users)) if len(users) == 1 and not self._site.settings.hmac_key else None
        return EvaluationContext(user_id=user, environment=next(iter(places)) if len(places) == 1 else None)

    def _as_json(self, trace: Trace) -> dict[str, Any]:
        reproduction = self._reproduction(trace)
        return {
            "correlation_id": trace.correlation_id,
            "trace_ids": trace.trace_ids,
            "records": trace.records,
            "spans": trace.spans,
            "flags": trace.flags(),
            "left_out": trace.left_out,
            "reproduce": {
                "lines": reproduction.lines,
                "pins": reproduction.pins,
                "held_back": reproduction.held_back,
                "refused": dict(reproduction.refused),
            },
        }


def _record_address(uid: str | None) -> str | None:
    return None if uid is None else LogFilters({}).address("/logs/record", uid=uid)


def _variant_now(snapshot: Snapshot, flag: str, context: EvaluationContext) -> str | None:
    if flag not in snapshot.definitions and flag not in snapshot.bad:
        return None
    result = snapshot.evaluate(flag, snapshot.request(context))
    return result_name(result.variant, result.value, result.reason) or "the caller's default"
