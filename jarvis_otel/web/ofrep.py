"""OFREP 0.3.0, OpenFeature's protocol by which other languages evaluate these flags.

https://github.com/open-feature/protocol, service/openapi.yaml and service/event-streams.yaml. Where that is at odds
with the clients there are, we keep to these: reason DEFAULT is given though the enum lacks it, and `variant` is null,
not absent, where there is none.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from jarvis_flags.evaluate import Evaluation, Flag
from jarvis_flags.provider import request_of
from jarvis_flags.request import CALLERS_DEFAULT
from jarvis_flags.request import Request as FlagRequest
from jarvis_flags.snapshot import Snapshot
from jarvis_flags.tree import plain
from jarvis_otel.web.errors import problem
from jarvis_otel.web.events import FlagEvent, event_stream
from jarvis_otel.web.security import identity, is_ofrep_open
from jarvis_otel.web.site import Site

__all__ = ["routes"]

ANSWERS_MAX = 50_000
"""So many answers are kept encoded; most flags have two or three."""
INACTIVITY_S = 120

_JSON = "application/json"


def routes(site: Site) -> list[BaseRoute]:
    """The protocol's addresses."""
    source, events = site.admin.source, site.events
    # who may evaluate may listen: an EventSource can send no header, so the address itself lets it in
    key, is_open = secrets.token_urlsafe(16), is_ofrep_open(site.settings.web)
    address = "/ofrep/v1/events" if is_open else f"/ofrep/v1/events?key={key}"
    answers = _Answers(source.snapshot, address)

    def current() -> _Answers:
        nonlocal answers
        if answers.snapshot is not source.snapshot:
            answers = _Answers(source.snapshot, address)
        return answers

    async def single(request: Request) -> Response:
        flag_id: str = request.path_params["key"]
        try:
            context = _context(await request.body())
        except _BadContextError as error:
            return error.answer(flag_id)
        status, body = current().single(flag_id, context)
        return Response(body, status, media_type=_JSON)

    async def bulk(request: Request) -> Response:
        try:
            context = _context(await request.body())
        except _BadContextError as error:
            return error.answer()
        asked = current()
        if not asked.is_ready:
            # a thousand flags take a tenth of a second to be compiled, for which nobody else is to wait
            await run_in_threadpool(asked.prepare)
        body = asked.bulk(context)
        etag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
        if _matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers={"etag": etag})
        # `no-cache` lets whoever asked keep it, to ask again by its ETag
        return Response(body, media_type=_JSON, headers={"etag": etag, "cache-control": "private, no-cache"})

    async def stream(request: Request) -> Response:
        shown = request.query_params.get("key", "").encode()
        if not (is_open or identity(request) or hmac.compare_digest(shown, key.encode())):
            return problem(request, 401, "want the address that an answer of /ofrep/v1/evaluate/flags names")
        return event_stream(events, request, _refetch, "message")

    return [
        Route("/ofrep/v1/evaluate/flags", bulk, methods=["POST"]),
        Route("/ofrep/v1/evaluate/flags/{key:path}", single, methods=["POST"]),
        Route("/ofrep/v1/events", stream, methods=["GET"]),
    ]


class _Answers:
    """The answers of one snapshot; each result is encoded once.

    Args:
        snapshot: The flags.
        address: Where their changes are told.
    """

    def __init__(self, snapshot: Snapshot, address: str) -> None:
        self.snapshot = snapshot
        # by identity, and with the result, so that the identity stays its own
        self._encoded: dict[int, tuple[Evaluation, int, bytes]] = {}
        self._parts: list[bytes | Flag] | None = None
        self._preparing = threading.Lock()
        stream = {"type": "sse", "endpoint": {"requestUri": address}, "inactivityDelaySec": INACTIVITY_S}
        rest = orjson.dumps({"metadata": dict(snapshot.metadata), "eventStreams": [stream]})
        self._end = b"]," + rest[1:]

    def single(self, flag_id: str, context: Mapping[str, Any]) -> tuple[int, bytes]:
        """The status and the body that one flag gives."""
        return self._encode(self.snapshot.evaluate(flag_id, self._request(context)))

    @property
    def is_ready(self) -> bool:
        """Whether `bulk` has all that it needs."""
        return self._parts is not None

    def prepare(self) -> None:
        """Makes ready what `bulk` needs."""
        with self._preparing:
            if self._parts is None:
                self._parts = self._split()

    def bulk(self, context: Mapping[str, Any]) -> bytes:
        """The body that all flags give, once that is prepared."""
        assert self._parts is not None
        asked = self._request(context)
        user, environment, request_id, attributes = asked.user, asked.environment, asked.request_id, asked.attributes
        encode = self._encode
        flags = [
            part
            if isinstance(part, bytes)
            else encode(part.evaluate(FlagRequest(user, environment, request_id, attributes)))[1]
            for part in self._parts
        ]
        return b'{"flags":[' + b",".join(flags) + self._end

    def _split(self) -> list[bytes | Flag]:
        """The flags, those in a row that give everyone the same as the bytes that they give."""
        parts: list[bytes | Flag] = []
        constant: list[bytes] = []
        ids = dict.fromkeys((*self.snapshot.definitions, *self.snapshot.bad))
        for flag in filter(None, map(self.snapshot.flag, ids)):
            if flag.constant is not None:
                constant.append(self._encode(flag.constant)[1])
                continue
            if constant:
                parts.append(b",".join(constant))
                constant.clear()
            parts.append(flag)
        return [*parts, b",".join(constant)] if constant else parts

    def _request(self, context: Mapping[str, Any]) -> FlagRequest:
        attributes = {name: value for name, value in context.items() if name != "targetingKey"}
        return request_of(self.snapshot, EvaluationContext(context.get("targetingKey"), attributes))

    def _encode(self, result: Evaluation) -> tuple[int, bytes]:
        known = self._encoded.get(id(result))
        if known is None:
            definition = self.snapshot.definitions.get(result.flag_id)
            known = (result, *_encoded(result, is_float=definition is not None and definition.value_type == "float"))
            if len(self._encoded) < ANSWERS_MAX:
                self._encoded[id(result)] = known
        return known[1], known[2]


def _encoded(result: Evaluation, *, is_float: bool) -> tuple[int, bytes]:
    """The status and the body of a result."""
    said: dict[str, Any] = {"key": result.flag_id}
    metadata = dict(result.metadata)
    status = 200
    # off because it cannot be used is an answer, not an error, for which the caller's default might turn it on
    is_off = result.value is False
    if result.error_code is not None and not is_off:
        status = 404 if result.error_code is ErrorCode.FLAG_NOT_FOUND else 400
        said["errorCode"] = result.error_code.value
        said["errorDetails"] = result.error_message or ""
    else:
        if result.value is not CALLERS_DEFAULT:
            # clients take 1 for an integer, and a float flag may say so of one of its variants
            said["value"] = float(result.value) if is_float else plain(result.value)
        said["reason"] = (Reason.DISABLED if result.error_code is not None else result.reason).value
        said["variant"] = result.variant
        if result.error_code is not None:
            metadata |= {"errorCode": result.error_code.value, "errorDetails": result.error_message or ""}
    said["metadata"] = metadata
    return status, orjson.dumps(said)


class _BadContextError(Exception):
    """A request gives no context that can be used.

    Args:
        code: OFREP's code of the error.
        details: What was got and wanted.
    """

    def __init__(self, code: ErrorCode, details: str) -> None:
        super().__init__(details)
        self._said = {"errorCode": code.value, "errorDetails": details}

    def answer(self, flag_id: str | None = None) -> Response:
        """What it is answered with; of a question for one flag with its key."""
        said = self._said if flag_id is None else {"key": flag_id, **self._said}
        return Response(orjson.dumps(said), 400, media_type=_JSON)


def _context(body: bytes) -> Mapping[str, Any]:
    """The context that a request gives.

    Raises:
        _BadContextError: It gives none.
    """
    try:
        asked = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise _BadContextError(ErrorCode.PARSE_ERROR, f"the body is no JSON: {error}") from None
    if not isinstance(asked, dict):
        raise _BadContextError(ErrorCode.PARSE_ERROR, f"got {type(asked).__name__}, want an object with `context`")
    # clients leave out a context that is empty
    context = {} if asked.get("context") is None else asked["context"]
    if not isinstance(context, dict):
        raise _BadContextError(ErrorCode.INVALID_CONTEXT, f"context: got {type(context).__name__}, want an object")
    if not isinstance(context.get("targetingKey"), str | None):
        raise _BadContextError(ErrorCode.INVALID_CONTEXT, "context.targetingKey: want text")
    return context


def _matches(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names an ETag; some clients leave its quotes away."""
    if header is None:
        return False
    named = {one.strip().removeprefix("W/").strip('"') for one in header.split(",")}
    return "*" in named or etag.strip('"') in named


def _refetch(event: FlagEvent) -> dict[str, object]:
    return {"type": "refetchEvaluation", "etag": event.version, "lastModified": int(event.at)}
