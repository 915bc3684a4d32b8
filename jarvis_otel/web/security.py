"""Who may ask what: the guard before every page. Nothing behind it sees a request that it did not let through."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jarvis_collector.access import is_own_name, token_digest
from jarvis_collector.config import is_loopback
from jarvis_otel.admin.author import Author, Role
from jarvis_otel.front_settings import WebSettings
from jarvis_otel.web.errors import is_api, problem
from jarvis_otel.web.sessions import IDENTITY_KEY, Identity
from jarvis_otel.web.site import Site

__all__ = ["Guard", "author", "cookie_name", "identity", "is_ofrep_open", "own_path", "stays_logged_in"]

BODY_MAX = 1024 * 1024
QUERY_MAX = 8 * 1024

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_PUBLIC = ("/login", "/static/", "/ofrep/v1/events")
_OPEN_TO_VIEWERS = ("/login", "/logout", "/sessions/end", "/ofrep/")

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    # with none at all a form says over plain HTTP that it comes from nowhere, and would be refused
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_CORS = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "Authorization, Content-Type, If-None-Match, X-API-Key",
    "access-control-max-age": "600",
}

_logger = logging.getLogger("jarvis_otel.web")


def identity(request: HTTPConnection) -> Identity:
    """Who asks; every handler behind the guard has somebody, but for those of /login and OFREP."""
    who: Identity = request.scope[IDENTITY_KEY]
    return who


def author(request: HTTPConnection, reason: str = "") -> Author:
    """Who changes something, for FlagAdmin.

    Args:
        request: The request.
        reason: Why, in the person's words.
    """
    who = identity(request)
    return Author(who.who, "web", reason.strip(), who.role)


def cookie_name(site: Site) -> str:
    """What the cookie of a session is called: browsers keep one host's cookies of all ports together."""
    return f"{'__Host-' if site.is_https else ''}jarvis_session_{site.port}"


def stays_logged_in(request: Request, site: Site) -> Callable[[], bool]:
    """Whether who asked by a cookie is still logged in, for answers that go on; to ask it is no use of the session."""
    cookie = request.cookies.get(cookie_name(site))
    return (lambda: True) if cookie is None else (lambda: site.sessions.holds(cookie))


def is_ofrep_open(web: WebSettings) -> bool:
    """Whether programs ask OFREP without a token: those of this machine, until there are some, or as somebody said."""
    is_for_others = not is_loopback(web.host) or not all(map(is_loopback, _names(web)))
    return not web.tokens and (web.insecure_no_auth or not is_for_others)


def own_path(target: str) -> str:
    """A path of ours to go on to; whatever else it is, the first page."""
    is_own = target.startswith("/") and not target.startswith(("//", "/\\", "/login")) and target.isprintable()
    return target if is_own else "/flags"


class Guard:
    """Middleware: bounds, Host, who asks and whether they may, other sites' pages, headers of every answer, and errors.

    Args:
        app: What it guards.
        site: The site.
    """

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app = app
        self._site = site
        web = site.settings.web
        self._loopback = is_loopback(web.host)
        self._names = _names(web)
        self._cookie = cookie_name(site)
        self._ofrep_open = is_ofrep_open(web)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path: str = scope["path"]
        origin = headers.get("origin")
        allowed_origin = origin if origin in self._site.settings.web.cors_origins and is_api(path) else None
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                added = MutableHeaders(raw=message["headers"])
                for name, value in _HEADERS.items():
                    added[name] = value
                added.setdefault("cache-control", "no-store")
                if allowed_origin is not None:
                    added["access-control-allow-origin"] = allowed_origin
                    added["access-control-expose-headers"] = "ETag, Retry-After"
                if is_api(path):
                    added.add_vary_header("Origin")
            await send(message)

        request = Request(scope, receive)
        stop = self._stop(request, headers, allowed_origin)
        if stop is not None:
            await stop(scope, receive, answer)
            return
        try:
            await self._app(scope, _bounded(receive), answer)
        except _TooLargeError:
            if not started:
                await problem(request, 413, _TOO_LARGE)(scope, receive, answer)
        except ClientDisconnect:
            pass  # nobody waits for an answer any more
        except Exception:
            # whoever asks learns no more than that; the log has the rest
            _logger.exception("%s %s failed", scope["method"], path)
            if started:
                raise
            await problem(request, 500, "something went wrong here; the log of jarvis web says what")(
                scope, receive, answer
            )

    def _stop(self, request: Request, headers: Headers, allowed_origin: str | None) -> Response | None:
        """The answer to a request that goes no further, or None."""
        path, method = request.scope["path"], request.method
        if len(request.scope["query_string"]) > QUERY_MAX:
            return problem(request, 414, f"the address is too long; want at most {QUERY_MAX} bytes after the ?")
        host = headers.get("host", "")
        if not is_own_name(host, self._names, loopback=self._loopback):
            return problem(request, 421, f"got the host name {host[:80]!r}, want one that web_hosts names")
        if allowed_origin is not None and method == "OPTIONS":
            return Response(status_code=204, headers=_CORS)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > BODY_MAX:
            return problem(request, 413, _TOO_LARGE)
        shown = _bearer(headers, path)
        # another origin's page, though allowed, is not the person who is logged in here
        by_cookie = None if allowed_origin is not None else self._by_cookie(request)
        who = by_cookie if shown is None else self._by_token(shown)
        request.scope[IDENTITY_KEY] = who
        if shown is None and allowed_origin is None and not _is_same_site(method, headers, host, path):
            return problem(request, 403, "this request comes from another site's page")
        if path.startswith(_PUBLIC) or (path.startswith("/ofrep/") and self._ofrep_open and shown is None):
            return None
        if who is None:
            return self._log_in(request, headers)
        if method not in _SAFE and who.role is Role.VIEWER and not path.startswith(_OPEN_TO_VIEWERS):
            return problem(request, 403, f"{who.who} is viewer: viewers look at everything and change nothing")
        return None

    def _log_in(self, request: Request, headers: Headers) -> Response:
        path = request.scope["path"]
        if is_api(path):
            response = problem(request, 401, "want a bearer token, which `jarvis web --new-token NAME ROLE` makes")
            response.headers["www-authenticate"] = "Bearer"
            return response
        if headers.get("sec-fetch-site") == "cross-site" and request.method == "GET":
            # a browser holds the cookie back where another site's page leads here; asked from here it shows it
            return problem(request, 401, "one moment", again=own_path(_address(request)))
        target = f"/login?next={quote(_address(request), safe='')}"
        if headers.get("hx-request") == "true":
            return Response(status_code=401, headers={"hx-redirect": "/login"})
        return RedirectResponse(target if request.method == "GET" else "/login", 303)

    def _by_token(self, token: str) -> Identity | None:
        shown, found = token_digest(token), None
        # each is compared, and each whole: the time says nothing of how near a guess came
        for digest, (name, role) in self._site.settings.web.tokens.items():
            if hmac.compare_digest(shown, digest):
                found = Identity(name if ":" in name else f"web:{name}", role)
        return found

    def _by_cookie(self, request: Request) -> Identity | None:
        cookie = request.cookies.get(self._cookie)
        return self._site.sessions.find(cookie) if cookie else None


_TOO_LARGE = f"the body is too large; want at most {BODY_MAX} bytes"


class _TooLargeError(Exception):
    pass


def _bounded(receive: Receive) -> Receive:
    """Receives a body up to its bound, whatever its length was said to be."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > BODY_MAX:
            raise _TooLargeError
        return message

    return bounded


def _bearer(headers: Mapping[str, str], path: str) -> str | None:
    """The token that a request shows, if any; OFREP knows an API key too."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return headers.get("x-api-key") if path.startswith("/ofrep/") else None


def _names(web: WebSettings) -> frozenset[str]:
    """The names by which it may be asked, in lower case, beside those of loopback."""
    named = {urlsplit(web.url).hostname or ""} if web.url else set()
    return frozenset({name.lower() for name in web.hosts} | named)


def _is_same_site(method: str, headers: Mapping[str, str], host: str, path: str) -> bool:
    """Whether a request was sent by one of our own pages, or by hand; a link of another site may lead here."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if method in _SAFE:
        # nor do others have the logs read: a page at another port is the same site, and the browser shows our cookie
        how, what = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest", "document")
        return site in {None, "same-origin", "none"} or (how, what) == ("navigate", "document")
    if site is not None:
        return site in {"same-origin", "none"}
    if origin is not None:
        return origin.partition("://")[2] == host
    # no browser; OFREP changes nothing, and its clients are programs
    return path.startswith("/ofrep/")


def _address(request: Request) -> str:
    query = request.scope["query_string"].decode("ascii", "replace")
    return quote(request.scope["path"]) + (f"?{query}" if query else "")
