"""Pages out of templates: escaped, harmless whatever the text came from, and never kept by a cache."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from jarvis_otel.terminal import printable
from jarvis_otel.web.sessions import IDENTITY_KEY, Identity

__all__ = ["STATIC_DIR", "flag_path", "is_htmx", "render", "templates"]

_HOME = Path(__file__).parent
STATIC_DIR = _HOME / "static"


def render(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    """A page.

    Args:
        request: The request; templates see it as `request`, and who asks as `person`.
        template: The file under templates/; names of parts of a page begin with an underscore.
        status: HTTP's.
        context: What the template shows. Every text is escaped, and control and bidi characters are shown as escapes.
    """
    pages: Environment = request.app.state.templates
    person: Identity | None = request.scope.get(IDENTITY_KEY)
    text = pages.get_template(template).render(request=request, person=person, **context)
    return HTMLResponse(text.encode("utf-8", "backslashreplace"), status)


def is_htmx(request: Request) -> bool:
    """Whether htmx asks, for a part of a page (`_….html`); one that it restores from history is a whole page."""
    headers = request.headers
    return headers.get("hx-request") == "true" and headers.get("hx-history-restore-request") != "true"


def flag_path(flag_id: str) -> str:
    """The address of a flag's page."""
    return f"/flags/{quote(flag_id.encode('utf-8', 'surrogatepass'), safe='')}"


def templates() -> Environment:
    """The templates, ready to be rendered."""
    environment = Environment(
        loader=FileSystemLoader(_HOME / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    environment.globals.update(static=_static, flag_path=flag_path)
    environment.filters["moment"] = _moment
    return environment


def _harmless(value: Any) -> Any:
    """What a template prints; markup that templates made stays as it is."""
    if value is None:
        return ""
    return printable(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


@lru_cache(maxsize=256)
def _static(name: str) -> str:
    """The path of a static file, with a hash by which a browser may keep it for ever."""
    digest = hashlib.sha256((STATIC_DIR / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:12]}"


def _moment(value: float | str | datetime) -> str:
    """A time for people, in local time to the second: Unix seconds, ISO 8601, or a datetime."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, int | float):
        value = datetime.fromtimestamp(value, UTC)
    return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
