"""The JSON API: an operation says its path, what it takes and gives; routes and the OpenAPI document follow from it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from jarvis_otel.version import __version__

__all__ = ["ANY", "Operation", "Parameter", "answer_json", "document", "routes"]

ANY: Mapping[str, Any] = MappingProxyType({"type": "object"})
"""The schema of an answer that is some object."""

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["status", "message"],
            "properties": {"status": {"type": "integer"}, "message": {"type": "string"}},
        }
    },
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """What an operation takes in the query.

    Attributes:
        name: Its name.
        description: What it means.
        schema: Its JSON schema.
    """

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({"type": "string"}))


@dataclass(frozen=True, slots=True)
class Operation:
    """One question that a program may ask by GET.

    Attributes:
        path: Its path, with the parts that vary in braces: /api/flags/{flag_id}.
        endpoint: Answers it.
        summary: What it gives, in a phrase.
        parameters: What the query may hold.
        answer: The JSON schema of the answer.
        errors: Why it may not be answered, by HTTP's status, beside 401 and 421.
        media: The type of the answer.
    """

    path: str
    endpoint: Callable[[Request], Awaitable[Response]]
    summary: str
    parameters: Sequence[Parameter] = ()
    answer: Mapping[str, Any] = field(default_factory=lambda: ANY)
    errors: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    media: str = "application/json"


def answer_json(value: Any, status: int = 200) -> Response:
    """A value as JSON; what JSON does not know is its text."""
    return Response(orjson.dumps(value, default=str), status, media_type="application/json")


def routes(operations: Sequence[Operation]) -> list[BaseRoute]:
    """The routes of operations, and that of the document."""
    described = orjson.dumps(document(operations))

    async def show(_: Request) -> Response:
        return Response(described, media_type="application/json")

    made: list[BaseRoute] = [Route(operation.path, operation.endpoint, methods=["GET"]) for operation in operations]
    return [*made, Route("/api/openapi.json", show, methods=["GET"])]


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI document of operations: version 3.1, https://spec.openapis.org/oas/v3.1.0."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "jarvis-otel",
            "version": __version__,
            "description": "Flags, logs and traces, to read. Flags are evaluated over OFREP, at /ofrep/v1.",
        },
        "security": [{"bearer": []}],
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR},
        },
        "paths": {re.sub(r":\w+(?=})", "", one.path): {"get": _described(one)} for one in operations},
    }


def _described(operation: Operation) -> dict[str, Any]:
    parts = re.findall(r"{(\w+)", operation.path)
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parts
    ]
    parameters += [
        {"name": one.name, "in": "query", "description": one.description, "schema": dict(one.schema)}
        for one in operation.parameters
    ]
    errors = {
        401: "no bearer token",
        404: "there is nothing of that name",
        414: "the query is too long",
        421: "the Host is not this one",
        **operation.errors,
    }
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    said: dict[str, Any] = {"200": {"description": operation.summary, "content": {operation.media: {}}}}
    if operation.media == "application/json":
        said["200"]["content"][operation.media] = {"schema": dict(operation.answer)}
    for status, words in sorted(errors.items()):
        said[str(status)] = {"description": words, "content": error}
    return {
        "operationId": re.sub(r"\W+", "_", operation.path).strip("_"),
        "summary": operation.summary,
        "parameters": parameters,
        "responses": said,
    }
