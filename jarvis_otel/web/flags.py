"""The pages of flags: the list, each flag's own, and every change of one as a page that is also a dialog."""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from jarvis_flags.tree import plain
from jarvis_otel.admin.approvals import ApprovalRequest
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.author import Author, Role
from jarvis_otel.admin.outcome import Outcome, OutcomeKind
from jarvis_otel.admin.states import FlagState, change_words, rule_words, unknown_flag_words
from jarvis_otel.admin.store import StoreError
from jarvis_otel.web import flags_api
from jarvis_otel.web.api import Operation
from jarvis_otel.web.errors import problem
from jarvis_otel.web.flags_changes import (
    ACTIONS,
    STATUS,
    Asked,
    duration,
    json_text,
    make,
    preview,
    reason_of,
    side_by_side,
)
from jarvis_otel.web.flags_counts import sparkline
from jarvis_otel.web.flags_rows import MARKS, SORTS, SWITCHES, FlagRow, Wanted
from jarvis_otel.web.flags_who import Asking, who_gets_what
from jarvis_otel.web.pages import flag_path, is_htmx, render
from jarvis_otel.web.security import author, identity
from jarvis_otel.web.site import Site

__all__ = ["operations", "routes"]

HISTORY_SHOWN = 50
_TOLD_MAX = 256
_DRAWN_MAX = 10_000
_PROBLEMS_SHOWN = 5
_ID_SHOWN = 200
_DEFINITION_ELSEWHERE = frozenset({"name", "description", "rules", "requires", "services", "environment_defaults"})


def routes(site: Site) -> list[BaseRoute]:
    """The pages under /flags, the panic button and the answers to requests for approval."""
    pages = _Pages(site)
    flag = "/flags/{flag_id:path}"
    return [
        Route("/flags", pages.show_list),
        Route("/panic", pages.panic, methods=["GET", "POST"]),
        Route("/approvals/{request_id}", pages.answer, methods=["POST"]),
        *flags_api.change_routes(site),
        Route(f"{flag}/row", pages.show_row),
        Route(f"{flag}/change", pages.change, methods=["GET", "POST"]),
        Route(f"{flag}/preview", pages.show_preview),
        Route(f"{flag}/who", pages.show_who),
        Route(f"{flag}/evaluations", pages.show_evaluations),
        Route(flag, pages.show_flag),
    ]


def operations(site: Site) -> list[Operation]:
    """What programs may ask about flags."""
    return flags_api.operations(site)


class _Told:
    """Outcomes that the next page shows, by what stands in its address; the newest 256 of them.

    The address holds no text that others could make up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[str, Outcome]] = OrderedDict()

    def keep(self, who: str, outcome: Outcome) -> str:
        key = secrets.token_urlsafe(9)
        with self._lock:
            self._kept[key] = who, outcome
            while len(self._kept) > _TOLD_MAX:
                self._kept.popitem(last=False)
        return key

    def find(self, who: str, key: str) -> Outcome | None:
        with self._lock:
            owner, outcome = self._kept.get(key, ("", None))
        return outcome if owner == who else None


class _Drawn:
    """Rows of the list as HTML, each drawn once for as long as it says the same: a thousand take their time."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, bool], tuple[FlagRow, tuple[int, ...], Markup]] = {}

    def row(self, row: FlagRow, by_hour: tuple[int, ...], draw: Callable[..., Markup], may_change: bool) -> Markup:
        drawn = self._rows.get((row.id, may_change))
        if drawn is not None and drawn[0] is row and drawn[1] == by_hour:
            return drawn[2]
        markup = draw(row, sparkline(by_hour), may_change)
        if len(self._rows) >= _DRAWN_MAX:
            self._rows.clear()
        self._rows[row.id, may_change] = row, by_hour, markup
        return markup


@dataclass(frozen=True, slots=True)
class _Version:
    """An entry of the history as the flag's page shows it."""

    entry: AuditEntry
    words: str
    may_revert: bool


class _Pages:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._admin = site.admin
        self._counts = site.evaluations
        self._rows = site.flag_rows
        self._told = _Told()
        self._drawn = _Drawn()

    # --- the list ---

    async def show_list(self, request: Request) -> Response:
        return await run_in_threadpool(self._list, request)

    def _list(self, request: Request) -> Response:
        query = request.query_params
        wanted = Wanted.of(query, query.getlist("only"))
        rows = self._rows.all()
        picked = wanted.pick(rows, self._counts.total)
        shown, page, pages = wanted.page_of(picked)
        context = {
            **self._common(request),
            "wanted": wanted,
            "q": query.get("q", ""),
            "rows": self._draw(request, shown),
            "found": len(picked),
            "total": len(rows),
            "page": page,
            "pages": pages,
            "page_path": lambda number: f"/flags?{urlencode([*_without_page(query.multi_items()), ('page', number)])}",
        }
        if is_htmx(request):
            return render(request, "_flags_list.html", **context)
        snapshot = self._admin.source.snapshot
        requests, unreadable = self._requests()
        return render(
            request,
            "flags.html",
            **context,
            switches=SWITCHES,
            marks=MARKS,
            sorts=SORTS,
            categories=sorted({row.category for row in rows if row.category}),
            owners=sorted({row.owner for row in rows if row.owner}),
            requests=requests,
            problems=[*unreadable, *map(str, snapshot.problems[:_PROBLEMS_SHOWN])],
            local_file=snapshot.local_file,
            outcome=self._outcome(request),
        )

    def _draw(self, request: Request, rows: Sequence[FlagRow]) -> list[Markup]:
        templates: Environment = request.app.state.templates
        draw = templates.get_template("_flag_macros.html").module.table_row  # type: ignore[attr-defined]
        may_change = identity(request).role is not Role.VIEWER
        return [self._drawn.row(row, self._counts.by_hour(row.id), draw, may_change) for row in rows]

    async def show_row(self, request: Request) -> Response:
        row = await run_in_threadpool(self._rows.one, request.path_params["flag_id"])
        if row is None:
            return Response(status_code=404)
        return render(request, "_flag_row.html", row=self._draw(request, [row])[0])

    # --- one flag ---

    async def show_flag(self, request: Request) -> Response:
        return await run_in_threadpool(self._flag, request)

    def _flag(self, request: Request) -> Response:
        flag_id = request.path_params["flag_id"]
        row = self._rows.one(flag_id)
        if row is None:
            return self._no_flag(request, flag_id)
        state, snapshot = row.state, self._admin.source.snapshot
        query = request.query_params
        requests, unreadable = self._requests()
        entries = [] if unreadable else self._admin.history(flag_id)
        return render(
            request,
            "flag.html",
            **self._common(request),
            row=row,
            state=state,
            rules=_rules(state),
            facts=_facts(state),
            required_by=[other.id for other in snapshot.definitions.values() if flag_id in other.requires],
            requires=[] if state.definition is None else state.definition.requires,
            services=[] if state.definition is None else state.definition.services,
            seen_in=self._counts.services(flag_id),
            processes=self._admin.processes(),
            revision=snapshot.overrides.revision,
            percent=_slider(state),
            environment=snapshot.environment,
            asking=Asking.of(query),
            answers=who_gets_what(snapshot, flag_id, Asking.of(query)),
            problems=unreadable,
            requests=[one for one in requests if one.entry.flag == flag_id],
            history=_history(entries),
            more_history=max(0, len(entries) - HISTORY_SHOWN),
            compared=_compared(entries, query.get("left", ""), query.get("right", "")),
            line=sparkline(self._counts.by_hour(flag_id)),
            results=self._counts.by_result(flag_id),
            counts_note=self._counts.note,
            has_logs=self._site.settings.log_dir.is_dir(),
            outcome=self._outcome(request),
        )

    async def show_preview(self, request: Request) -> Response:
        """Who moves under a rollout, for the slider."""
        return await run_in_threadpool(self._preview, request)

    def _preview(self, request: Request) -> Response:
        state = self._admin.state(request.path_params["flag_id"])
        if state is None:
            return Response(status_code=404)
        try:
            asked = Asked.of("rollout", request.query_params)
        except ValueError as error:
            return render(request, "_flag_preview.html", 400, seen=None, error=str(error))
        seen = preview(self._admin, state, asked, reason_always=self._site.settings.reason_always)
        return render(request, "_flag_preview.html", seen=seen, error="")

    async def show_who(self, request: Request) -> Response:
        flag_id, asking = request.path_params["flag_id"], Asking.of(request.query_params)
        answers = await run_in_threadpool(who_gets_what, self._admin.source.snapshot, flag_id, asking)
        return render(request, "_flag_who.html", asking=asking, answers=answers)

    async def show_evaluations(self, request: Request) -> Response:
        flag_id = request.path_params["flag_id"]
        return render(
            request,
            "_flag_evaluations.html",
            line=sparkline(self._counts.by_hour(flag_id)),
            results=self._counts.by_result(flag_id),
            counts_note=self._counts.note,
        )

    # --- changes ---

    async def change(self, request: Request) -> Response:
        fields: Mapping[str, Any] = await request.form() if request.method == "POST" else request.query_params
        return await run_in_threadpool(self._change, request, fields)

    def _change(self, request: Request, fields: Mapping[str, Any]) -> Response:
        flag_id = request.path_params["flag_id"]
        state = self._admin.state(flag_id)
        action = str(fields.get("action", ""))
        typed = str(fields.get("typed", "")).strip()
        if action not in ACTIONS:
            return problem(request, 400, f"got the change {action[:40]!r}, want one of {', '.join(ACTIONS)}")
        by = author(request, reason_of(fields))
        if by.role is Role.VIEWER:
            return problem(request, 403, f"{by.who} is viewer: viewers look at everything and change nothing")
        if state is None and (request.method != "POST" or action != "disable"):
            return self._no_flag(request, flag_id)
        try:
            asked = Asked.of(action, fields, confirmed=typed == flag_id.strip())
        except ValueError as error:
            return problem(request, 400, str(error))
        if request.method != "POST":
            return self._change_page(request, state, asked)
        outcome = make(self._admin, flag_id, asked, by)
        if outcome.applied and action == "disable" and not by.reason and is_htmx(request):
            guarded = state is None or state.is_guarded
            context = {"flag_id": flag_id, "outcome": outcome, "lasts": _LASTS, "is_guarded": guarded}
            return render(request, "_flag_turned_off.html", **context)
        if outcome.applied or outcome.kind is OutcomeKind.NEEDS_APPROVAL:
            return self._done(request, by, outcome, flag_path(flag_id), flag_id)
        state = self._admin.state(flag_id)
        if state is None:
            return problem(request, STATUS[outcome.kind], outcome.message)
        return self._change_page(request, state, asked, outcome, typed)

    def _change_page(
        self, request: Request, state: FlagState | None, asked: Asked, outcome: Outcome | None = None, typed: str = ""
    ) -> Response:
        """The dialog of a change, or a page with the same content."""
        assert state is not None
        context = {
            **self._common(request),
            "state": state,
            "asked": asked,
            "typed": typed,
            "seen": preview(self._admin, state, asked, reason_always=self._site.settings.reason_always),
            "outcome": outcome,
            "name_pattern": state.flag if _NEEDS_NO_ESCAPE.fullmatch(state.flag) else "",
            "lasts": [(text, words, asked.lasts == (duration(text) if text else None)) for text, words in _LASTS],
        }
        part = is_htmx(request)
        template = "_flag_change.html" if part else "flag_change.html"
        return render(request, template, _status(outcome), is_page=not part, **context)

    async def panic(self, request: Request) -> Response:
        fields: Mapping[str, Any] = await request.form() if request.method == "POST" else {}
        return await run_in_threadpool(self._panic, request, fields)

    def _panic(self, request: Request, fields: Mapping[str, Any]) -> Response:
        by = author(request, reason_of(fields))
        if by.role is Role.VIEWER:
            return problem(request, 403, f"{by.who} is viewer: viewers look at everything and change nothing")
        outcome = None
        if request.method == "POST":
            outcome = self._admin.panic(by)
            if outcome.applied:
                return self._done(request, by, outcome, "/flags")
        dangerous = [row for row in self._rows.all() if row.state.dangerous]
        part = is_htmx(request)
        context = {**self._common(request), "dangerous": dangerous, "outcome": outcome, "is_page": not part}
        return render(request, "_flag_panic.html" if part else "flag_panic.html", _status(outcome), **context)

    async def answer(self, request: Request) -> Response:
        """Approves or denies a change that waits."""
        fields = await request.form()
        return await run_in_threadpool(self._answer, request, fields)

    def _answer(self, request: Request, fields: Mapping[str, Any]) -> Response:
        request_id, decision = request.path_params["request_id"], fields.get("decision")
        by = author(request, reason_of(fields))
        if decision not in ("approve", "deny"):
            return problem(request, 400, f"decision: got {str(decision)[:40]!r}, want approve or deny")
        asked_for = next((one for one in self._admin.requests() if one.id == request_id), None)
        decide = self._admin.approve if decision == "approve" else self._admin.deny
        outcome = decide(request_id, by)
        if asked_for is None:
            return problem(request, STATUS[outcome.kind], outcome.message)
        flag_id = asked_for.entry.flag
        if is_htmx(request) and not outcome.applied and outcome.kind is not OutcomeKind.NEEDS_APPROVAL:
            return render(request, "_flag_outcome.html", STATUS[outcome.kind], outcome=outcome, flag_id=flag_id)
        return self._done(request, by, outcome, flag_path(flag_id), flag_id)

    def _done(self, request: Request, by: Author, outcome: Outcome, path: str, flag_id: str = "") -> Response:
        """Says how it ended, on the page that is open or on the next one."""
        if is_htmx(request):
            return render(request, "_flag_outcome.html", STATUS[outcome.kind], outcome=outcome, flag_id=flag_id)
        return RedirectResponse(f"{path}?outcome={self._told.keep(by.who, outcome)}", 303)

    def _requests(self) -> tuple[list[ApprovalRequest], list[str]]:
        """What waits; where the audit cannot be read the page stands, and says so: off works all the same."""
        try:
            return self._admin.requests(), []
        except StoreError as error:
            return [], [str(error)]

    def _outcome(self, request: Request) -> Outcome | None:
        return self._told.find(identity(request).who, request.query_params.get("outcome", ""))

    def _no_flag(self, request: Request, flag_id: str) -> Response:
        return problem(
            request, 404, unknown_flag_words(self._admin.source.snapshot, flag_id[:_ID_SHOWN], "; the list shows them")
        )

    def _common(self, request: Request) -> dict[str, Any]:
        return {
            "may_change": identity(request).role is not Role.VIEWER,
            "is_admin": identity(request).role is Role.ADMIN,
            "who": identity(request).who,
        }


_ASKS_AGAIN = (OutcomeKind.NEEDS_CONFIRMATION, OutcomeKind.NEEDS_REASON, OutcomeKind.CONFLICT)
_NEEDS_NO_ESCAPE = re.compile(r"[A-Za-z0-9_-]+")
_LASTS = (
    ("", "until somebody changes it"),
    ("15m", "15 minutes"),
    ("1h", "1 hour"),
    ("4h", "4 hours"),
    ("1d", "1 day"),
    ("7d", "7 days"),
)


def _status(outcome: Outcome | None) -> int:
    # the form once more, with what it lacks, is no failure that a browser should report
    return 200 if outcome is None or outcome.kind in _ASKS_AGAIN else STATUS[outcome.kind]


def _without_page(fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in fields if name != "page"]


def _slider(state: FlagState) -> float | None:
    """Where the slider of a rollout stands; None for a flag that splits its users over variants."""
    definition = state.definition
    if definition is None or any(
        rule.type == "percentage" and isinstance(rule.value, Mapping) for rule in definition.rules
    ):
        return None
    if state.percentage is not None:
        return state.percentage
    return 100.0 if state.on else 0.0


def _rules(state: FlagState) -> list[tuple[int, str]]:
    """The rules in the order in which they are asked: priority and sentence."""
    rules = [] if state.definition is None else sorted(state.definition.rules, key=lambda rule: -rule.priority)
    return [(rule.priority, rule_words(rule)) for rule in rules]


def _facts(state: FlagState) -> list[tuple[str, str]]:
    """What the flag file says of a flag beside its rules."""
    if state.definition is None:
        return []
    said = plain(state.definition.to_dict())
    return [
        (name.replace("_", " "), json_text(value)) for name, value in said.items() if name not in _DEFINITION_ELSEWHERE
    ]


def _history(entries: list[AuditEntry]) -> list[_Version]:
    """The newest entries, newest first."""
    return [
        _Version(entry, change_words(entry), entry.outcome == "applied") for entry in reversed(entries[-HISTORY_SHOWN:])
    ]


@dataclass(frozen=True, slots=True)
class _Compared:
    left: AuditEntry
    right: AuditEntry
    rows: list[tuple[str, str, str]]


def _compared(entries: list[AuditEntry], left: str, right: str) -> _Compared | None:
    """What two entries set, beside each other, the older one on the left."""
    chosen = [entry for entry in entries if entry.id in (left, right)]
    if len(chosen) != 2:
        return None
    return _Compared(chosen[0], chosen[1], side_by_side(_set_by(chosen[0]), _set_by(chosen[1])))


def _set_by(entry: AuditEntry) -> dict[str, Any]:
    if entry.outcome == "refused":
        return {"refused": entry.detail}
    where = "file: " if entry.outcome == "written" else ""
    values = {"state": "file"} if not entry.new and not where else dict(entry.new or {})
    return {f"{where}{name}": value for name, value in values.items()}
