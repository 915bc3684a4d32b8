"""Flags in the JSON API: to read, and to change for programs with a bearer token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from jarvis_flags.tree import plain
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.outcome import Outcome
from jarvis_otel.admin.states import change_words, rule_words, unknown_flag_words
from jarvis_otel.web.api import Operation, Parameter, answer_json
from jarvis_otel.web.errors import problem
from jarvis_otel.web.flags_changes import STATUS, Asked, make, reason_of
from jarvis_otel.web.flags_rows import MARKS, PAGE_SIZE, SORTS, SWITCHES, FlagRow, Wanted
from jarvis_otel.web.security import author
from jarvis_otel.web.site import Site

__all__ = ["API_ACTIONS", "change_routes", "operations"]

API_ACTIONS = ("enable", "disable", "toggle", "rollout", "reset")

_ENTRIES_MAX = 1_000
_ID_SHOWN = 200
_NUMBER = re.compile(r"[1-9][0-9]{0,6}")
_PATH = "/api/flags/{flag_id:path}"


def operations(site: Site) -> list[Operation]:
    """What programs may ask about flags."""
    asked = _Questions(site)
    text = {"type": "string"}
    flag = {
        "type": "object",
        "required": ["flag", "state", "switch", "version"],
        "properties": {"flag": text, "state": text, "switch": {"enum": list(SWITCHES)}, "version": text},
    }
    listed = {
        "type": "object",
        "required": ["flags", "total", "page", "pages"],
        "properties": {
            "flags": {"type": "array", "items": flag},
            **{name: {"type": "integer"} for name in ("total", "page", "pages")},
        },
    }
    entries = {
        "type": "object",
        "required": ["entries", "total"],
        "properties": {"entries": {"type": "array", "items": {"type": "object"}}, "total": {"type": "integer"}},
    }
    return [
        Operation(
            "/api/flags",
            asked.all,
            "the flags with their state",
            (
                Parameter("q", "words that must all stand in id, name, description, category, owner or services"),
                Parameter("state", "on, partly or off", {"enum": list(SWITCHES)}),
                Parameter("category", "only those of this category"),
                Parameter("owner", "only those of this owner"),
                Parameter("only", "a mark they must have; may be repeated", {"enum": list(MARKS)}),
                Parameter("sort", "the order", {"enum": list(SORTS)}),
                Parameter("page", f"from 1, of {PAGE_SIZE} flags each", {"type": "integer", "minimum": 1}),
            ),
            listed,
            {400: "a word or a number that cannot be read"},
        ),
        Operation(
            f"{_PATH}/history",
            asked.history,
            "what the audit says of a flag, newest first",
            (
                Parameter(
                    "limit",
                    f"so many entries at most; {_ENTRIES_MAX} unless said",
                    {"type": "integer", "minimum": 1, "maximum": _ENTRIES_MAX},
                ),
            ),
            entries,
            {400: "the limit cannot be read"},
        ),
        Operation(_PATH, asked.one, "a flag: definition, state, rules in words, what waits for approval", (), flag),
    ]


def change_routes(site: Site) -> list[BaseRoute]:
    """POST /api/flags/{id}/{enable|disable|toggle|rollout|reset}, with what is asked for as a JSON object.

    The object may hold reason, confirmed (true where the flag is dangerous), percent, variant, lasts and expected.
    """

    async def change(request: Request) -> Response:
        flag_id, _, action = request.path_params["change"].rpartition("/")
        if not flag_id or action not in API_ACTIONS:
            return problem(request, 404, f"there is no such change; want one of {', '.join(API_ACTIONS)}")
        fields, wrong = _object(await request.body())
        if action == "toggle":
            state = site.admin.state(flag_id)
            action = "disable" if state is not None and state.toggles_off else "enable"
        # whatever else was sent, it does not hold up off
        if wrong and action != "disable":
            return problem(request, 400, wrong)
        by = author(request, reason_of(fields))
        try:
            asked = Asked.of(action, fields, confirmed=fields.get("confirmed") is True)
        except ValueError as error:
            return problem(request, 400, str(error))
        outcome = await run_in_threadpool(make, site.admin, flag_id, asked, by)
        return answer_json(outcome_json(outcome), STATUS[outcome.kind])

    return [Route("/api/flags/{change:path}", change, methods=["POST"])]


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """How a change ended, as JSON has it; the keys are those of `jarvis flags … --format json`."""
    revision = outcome.entries[-1].revision if outcome.entries else None
    said: dict[str, Any] = {"outcome": outcome.kind.value, "message": outcome.message, "revision": revision}
    said |= {"seen": outcome.seen, "running": outcome.running}
    if outcome.request:
        said["request"] = outcome.request
    return said


def _object(body: bytes) -> tuple[Mapping[str, Any], str]:
    """A body as an object, and what is wrong with it; none at all is an empty one."""
    if not body.strip():
        return {}, ""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return {}, f"the body is no JSON: {error}"
    return (fields, "") if isinstance(fields, dict) else ({}, "the body is no JSON object")


class _Questions:
    def __init__(self, site: Site) -> None:
        self._admin = site.admin
        self._rows = site.flag_rows
        self._evaluations = site.evaluations

    async def all(self, request: Request) -> Response:
        query = request.query_params
        for name, known in (("state", SWITCHES), ("sort", SORTS), ("only", MARKS)):
            for value in query.getlist(name):
                if value not in known:
                    return problem(request, 400, f"{name}: got {value[:40]!r}, want one of {', '.join(known)}")
        if _NUMBER.fullmatch(query.get("page", "1")) is None:
            return problem(request, 400, f"page: got {query['page'][:40]!r}, want a number from 1")
        wanted = Wanted.of(query, query.getlist("only"))
        picked = wanted.pick(await run_in_threadpool(self._rows.all), self._evaluations.total)
        shown, page, pages = wanted.page_of(picked)
        return _json({"flags": [_row(row) for row in shown], "total": len(picked), "page": page, "pages": pages})

    async def one(self, request: Request) -> Response:
        flag_id = request.path_params["flag_id"]
        row = await run_in_threadpool(self._rows.one, flag_id)
        if row is None:
            return self._no_flag(request, flag_id)
        definition = row.state.definition
        rules = [] if definition is None else sorted(definition.rules, key=lambda rule: -rule.priority)
        waiting = await run_in_threadpool(self._admin.requests)
        requests = [
            {"request": one.id, "people": one.people, "wanted": one.wanted, "change": change_words(one.entry)}
            for one in waiting
            if one.entry.flag == flag_id
        ]
        return _json({**_row(row), "rules": [rule_words(rule) for rule in rules], "requests": requests})

    async def history(self, request: Request) -> Response:
        flag_id, limit = request.path_params["flag_id"], request.query_params.get("limit", str(_ENTRIES_MAX))
        if _NUMBER.fullmatch(limit) is None or int(limit) > _ENTRIES_MAX:
            return problem(request, 400, f"limit: got {limit[:40]!r}, want a number from 1 to {_ENTRIES_MAX}")
        found = await run_in_threadpool(self._admin.history, flag_id)
        if not found and self._admin.state(flag_id) is None:
            return self._no_flag(request, flag_id)
        newest = found[: -int(limit) - 1 : -1]
        return _json({"entries": [_entry(entry) for entry in newest], "total": len(found)})

    def _no_flag(self, request: Request, flag_id: str) -> Response:
        words = unknown_flag_words(self._admin.source.snapshot, flag_id[:_ID_SHOWN], "; GET /api/flags lists them")
        return problem(request, 404, words)


def _row(row: FlagRow) -> dict[str, Any]:
    return {
        **row.state.to_dict(),
        "switch": row.switch,
        "environments": dict(row.environments),
        "pins": row.pins,
        "stale": row.stale,
        "marks": sorted(row.marks),
    }


def _entry(entry: AuditEntry) -> dict[str, Any]:
    values = {name: getattr(entry, name) for name in entry.__slots__}
    return {**values, "hash": entry.hash, "id": entry.id, "change": change_words(entry)}


def _json(value: Any) -> Response:
    return answer_json(plain(value))
