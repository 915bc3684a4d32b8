"""Who changed what, when and why: the audit with its chain checked, and the changes that wait for approval."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from jarvis_otel.admin.approvals import ApprovalRequest
from jarvis_otel.admin.audit import AuditEntry, Chain, entries
from jarvis_otel.admin.states import change_words
from jarvis_otel.web import api
from jarvis_otel.web.errors import problem
from jarvis_otel.web.pages import render
from jarvis_otel.web.site import Site

__all__ = ["operations", "routes"]

PAGE_SIZE = 50
LIMIT_MAX = 1_000
FAULTS_MAX = 20

_FILTERS = {
    "flag": "only of this flag",
    "who": "only by whom this is a part of the name of",
    "via": "only from this front end: cli, telegram, web, api, file",
    "action": "only this: enable, disable, rollout, reset, panic, promote, revert, create, edit, login",
    "outcome": "only what ended so: applied, refused, requested, approved, written",
}
_ENTRY = {
    "type": "object",
    "required": ["at", "who", "via", "action", "flag", "outcome", "revision", "hash"],
    "properties": {
        "at": {"type": "string"},
        "who": {"type": "string"},
        "via": {"type": "string"},
        "action": {"type": "string"},
        "flag": {"type": "string"},
        "old": {"type": ["object", "null"]},
        "new": {"type": ["object", "null"]},
        "reason": {"type": "string"},
        "outcome": {"type": "string"},
        "revision": {"type": "integer"},
        "detail": {"type": "string"},
        "hash": {"type": "string"},
    },
}


@dataclass(frozen=True, slots=True)
class _Audit:
    """What the audit holds of what was asked for, newest first.

    Attributes:
        found: The entries of a page.
        total: How many there are in all.
        lines: How many lines the audit has.
        faults: What is wrong with its chain.
    """

    found: list[AuditEntry]
    total: int
    lines: int
    faults: list[str]


class _Checked:
    """The chain of the audit as it was checked last, so that a view checks only what has come since.

    What was checked is known again by a hash of all its bytes: a line that was edited since is found as ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._chain = Chain()
        self._bytes = _digest(())
        self._faults: list[str] = []

    def look(self, lines: Sequence[bytes]) -> tuple[int, list[str]]:
        """How many of the lines are entries, and what is wrong with them, the first faults.

        Args:
            lines: All lines of the audit.
        """
        with self._lock:
            if _digest(lines[: self._chain.lines]) != self._bytes:
                self._begin_anew()
            for fault in self._chain.follow(lines[self._chain.lines :]):
                if len(self._faults) < FAULTS_MAX:
                    self._faults.append(fault)
            self._bytes = _digest(lines)
            return self._chain.entries, list(self._faults)


def _digest(lines: Sequence[bytes]) -> bytes:
    return blake2b(b"\n".join(lines)).digest()


def routes(site: Site) -> list[BaseRoute]:
    """The page; what waits for approval is answered at /approvals."""
    checked = _Checked()

    async def show(request: Request) -> Response:
        return await _page(site, checked, request)

    return [Route("/activity", show, methods=["GET"])]


def operations(site: Site) -> list[api.Operation]:
    """The audit for programs."""
    checked = _Checked()

    async def audit(request: Request) -> Response:
        query = request.query_params
        try:
            limit, page = _number(query, "limit", 100, LIMIT_MAX), _number(query, "page", 1, 10**9)
            said = await run_in_threadpool(_read, site, checked, query, limit, page)
        except ValueError as error:
            return problem(request, 400, str(error))
        return api.answer_json(
            {
                "entries": [{**asdict(entry), "hash": entry.hash} for entry in said.found],
                "total": said.total,
                "whole": not said.faults,
                "faults": said.faults,
            }
        )

    parameters = [api.Parameter(name, words) for name, words in _FILTERS.items()]
    parameters += [
        api.Parameter("limit", "so many of them, the newest", {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX}),
        api.Parameter("page", "2 is those before, and so on", {"type": "integer", "minimum": 1, "maximum": 10**9}),
    ]
    answer = {
        "type": "object",
        "required": ["entries", "total", "whole", "faults"],
        "properties": {
            "entries": {"type": "array", "items": _ENTRY},
            "total": {"type": "integer"},
            "whole": {"type": "boolean"},
            "faults": {"type": "array", "items": {"type": "string"}},
        },
    }
    errors = {400: "a parameter cannot be read", 503: "the audit cannot be read"}
    return [api.Operation("/api/audit", audit, "The audit, newest first", parameters, answer, errors)]


async def _page(site: Site, checked: _Checked, request: Request) -> Response:
    query = request.query_params
    wanted = {name: query.get(name, "") for name in _FILTERS}
    try:
        number = _number(query, "page", 1, 10**9)
        audit, waiting = await run_in_threadpool(
            lambda: (_read(site, checked, query, PAGE_SIZE, number), site.admin.requests())
        )
    except ValueError as error:
        return problem(request, 400, str(error))
    last = max(1, -(-audit.total // PAGE_SIZE))

    def link(page: int) -> str:
        return f"/activity?{urlencode({**{name: value for name, value in wanted.items() if value}, 'page': page})}"

    return render(
        request,
        "activity.html",
        section="/activity",
        audit=audit,
        words=change_words,
        wanted=wanted,
        narrowed=any(wanted.values()),
        waiting=[_asked(site, one) for one in waiting],
        page=number,
        last=last,
        newer=link(number - 1) if number > 1 else None,
        older=link(number + 1) if number < last else None,
    )


def _asked(site: Site, request: ApprovalRequest) -> dict[str, Any]:
    state = site.admin.state(request.entry.flag)
    return {"request": request, "words": change_words(request.entry), "now": state.state if state else "unknown"}


def _read(site: Site, checked: _Checked, query: Mapping[str, str], limit: int, page: int) -> _Audit:
    lines = site.store.lines()
    total, faults = checked.look(lines)
    newest_first = entries(reversed(lines))
    if tests := _tests(query):
        found = [entry for entry in newest_first if all(test(entry) for test in tests)]
        newest_first, total = iter(found), len(found)
    shown = list(islice(newest_first, (page - 1) * limit, page * limit))
    return _Audit(shown, total, len(lines), faults)


def _tests(query: Mapping[str, str]) -> list[Callable[[AuditEntry], bool]]:
    """What an entry must be."""
    tests: list[Callable[[AuditEntry], bool]] = []
    for name in _FILTERS:
        if want := query.get(name):
            if name == "who":
                tests.append(lambda entry, want=want: want.lower() in entry.who.lower())  # type: ignore[misc]
            else:
                tests.append(lambda entry, want=want, name=name: getattr(entry, name) == want)  # type: ignore[misc]
    return tests


def _number(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name) or str(default)
    if not (text.isascii() and text.isdecimal()) or len(text) > 10 or not 1 <= int(text) <= most:
        raise ValueError(f"{name}: got {text[:40]!r}, want a number from 1 to {most}")
    return int(text)
