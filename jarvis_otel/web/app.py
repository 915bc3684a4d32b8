"""The application: pages, JSON API and OFREP behind one guard."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from jarvis_otel.admin.store import StoreError
from jarvis_otel.web import api
from jarvis_otel.web.errors import on_http_error, on_store_error
from jarvis_otel.web.events import FlagEvent, event_stream
from jarvis_otel.web.pages import STATIC_DIR, templates
from jarvis_otel.web.security import Guard, stays_logged_in
from jarvis_otel.web.site import Site

__all__ = ["PAGES", "create_app"]

PAGES = ("ofrep", "login", "logs", "trace", "impact", "activity", "health", "flags")
"""Each is a module of this package with `routes(site)`, and `operations(site)` where it adds to the JSON API.

The flags come last: an id may hold slashes, so their page takes every path below /flags that nobody took before.
"""


def create_app(site: Site) -> Starlette:
    """The application.

    Args:
        site: What the pages share.
    """

    async def home(_: Request) -> Response:
        return RedirectResponse("/flags", 303)

    async def events(request: Request) -> Response:
        return event_stream(site.events, request, _told, "flags", stays_logged_in(request, site))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        site.events.start()
        site.scans.start()
        site.evaluations.start()
        # the first page need not wait for a thousand flags to be compiled
        await run_in_threadpool(site.flag_rows.all)
        try:
            yield
        finally:
            site.events.stop()
            site.scans.close()
            await run_in_threadpool(site.evaluations.stop)

    modules = [importlib.import_module(f"jarvis_otel.web.{name}") for name in PAGES]
    pages: list[BaseRoute] = []
    operations: list[api.Operation] = []
    for module in modules:
        pages += module.routes(site)
        if hasattr(module, "operations"):
            operations += module.operations(site)
    app = Starlette(
        routes=[
            *pages,
            *api.routes(operations),
            Route("/", home),
            Route("/events", events),
            Mount("/static", _Static(directory=STATIC_DIR)),
        ],
        middleware=[Middleware(Guard, site=site)],
        exception_handlers={HTTPException: on_http_error, StoreError: on_store_error},
        lifespan=lifespan,
    )
    app.state.templates = templates()
    app.state.site = site
    return app


class _Static(StaticFiles):
    """The static files; what is asked for by its hash may be kept for ever."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        scope = args[2] if len(args) > 2 else kwargs["scope"]
        assert isinstance(scope, dict)
        kept = scope["query_string"].startswith(b"v=")
        response.headers["cache-control"] = "public, max-age=31536000, immutable" if kept else "no-cache"
        return response


def _told(event: FlagEvent) -> dict[str, object]:
    return {"flags": event.flags, "all": not event.flags, "version": event.version, "revision": event.revision}
