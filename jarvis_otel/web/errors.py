"""Answers that say what went wrong: a page for people, JSON for programs, never a traceback."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jarvis_otel.terminal import printable
from jarvis_otel.web.pages import render

__all__ = ["is_api", "on_http_error", "on_store_error", "problem", "unreadable_logs"]


def is_api(path: str) -> bool:
    """Whether programs ask there."""
    return path.startswith(("/api/", "/ofrep/"))


def problem(request: Request, status: int, message: str, again: str = "") -> Response:
    """The answer to a request that was not served.

    Args:
        request: The request.
        status: HTTP's.
        message: A sentence for people: what, got and wanted, the cure.
        again: An address to which the page goes on by itself.
    """
    path = request.scope["path"]
    if path.startswith("/ofrep/"):
        return JSONResponse({"errorCode": "GENERAL", "errorDetails": message}, status)
    if is_api(path):
        return JSONResponse({"error": {"status": status, "message": message}}, status)
    title = HTTPStatus(status).phrase
    return render(request, "error.html", status, title=title, message=message, again=again)


def unreadable_logs(log_dir: Path, error: OSError) -> str:
    """Why the log files cannot be read, and the cure.

    Args:
        log_dir: Where they are.
        error: What reading them raised.
    """
    if isinstance(error, FileNotFoundError):
        return f"{printable(str(log_dir))}: no such directory; run the collector, or name it by log_dir"
    return f"{printable(str(error.filename or log_dir))}: cannot be read: {error.strerror}"


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of HTTPException: no such page, no such method."""
    assert isinstance(error, HTTPException)
    words = {404: "there is no such page", 405: "this page knows no such method"}
    response = problem(request, error.status_code, words.get(error.status_code, str(error.detail)))
    response.headers.update(error.headers or {})
    return response


async def on_store_error(request: Request, error: Exception) -> Response:
    """Starlette's handler where the audit or the overrides cannot be read."""
    return problem(request, 503, str(error))
