"""Logging in and out: by the URL that `jarvis web` prints, or by a one-time link."""

from __future__ import annotations

import getpass
import hmac
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from jarvis_collector.access import token_digest
from jarvis_collector.config import is_loopback
from jarvis_otel.admin.author import Author, Role
from jarvis_otel.admin.quota import Quota
from jarvis_otel.admin.store import Note, StoreError
from jarvis_otel.web.errors import problem
from jarvis_otel.web.links import Links
from jarvis_otel.web.pages import render
from jarvis_otel.web.security import cookie_name, identity, own_path
from jarvis_otel.web.sessions import LIFE_S, Identity
from jarvis_otel.web.site import Site

__all__ = ["Attempts", "local_identity", "routes"]

_logger = logging.getLogger("jarvis_otel.web")

FAILURES_MAX = 10
FAILURES_WINDOW_S = 60.0
ADDRESSES_MAX = 1_000
NOTED_A_MINUTE = 30
"""So many failed logins a minute get into the audit, of all addresses together: who has many of them must not fill the
disk. Nobody is locked out by that."""


class Attempts:
    """Counts failed logins, so that nobody tries many: ten in a minute from an address.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def is_allowed(self, address: str) -> bool:
        """Whether somebody may try once more."""
        times = self._failed.get(address)
        return times is None or len(times) < FAILURES_MAX or times[0] <= self._clock() - FAILURES_WINDOW_S

    def failed(self, address: str) -> None:
        """Notes that a login failed."""
        self._failed.setdefault(address, deque(maxlen=FAILURES_MAX)).append(self._clock())
        self._failed.move_to_end(address)
        if len(self._failed) > ADDRESSES_MAX:
            self._failed.popitem(last=False)


def local_identity(site: Site) -> Identity:
    """Whom the printed URL logs in: who runs `jarvis web`, an admin unless `roles` says otherwise."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run as a user without a name
        user = "local"
    who = f"web:{user}"
    return Identity(who, site.settings.roles.get(who, Role.ADMIN))


def routes(site: Site) -> list[BaseRoute]:
    """The pages of logging in and out."""
    attempts, noted, links = Attempts(), Quota(NOTED_A_MINUTE), Links(site.settings.flags.state_dir)

    async def log_in(request: Request) -> Response:
        target = own_path(request.query_params.get("next", ""))
        shown, link = request.query_params.get("t"), request.query_params.get("l")
        if shown is None and link is None:
            known: Identity | None = identity(request)
            return render(request, "login.html", target=target) if known is None else RedirectResponse(target, 303)
        if _is_prefetch(request):
            # a browser or a messenger that looks ahead must use up no link
            return Response(status_code=204)
        address = _address(request, site)
        if not attempts.is_allowed(address):
            response = problem(request, 429, "too many logins failed; try again in a minute")
            response.headers["retry-after"] = "60"
            return response
        who = None
        if shown is not None and hmac.compare_digest(token_digest(shown), site.login_digest):
            who = local_identity(site)
        elif link is not None:
            who = await run_in_threadpool(links.redeem, link)
        if who is None:
            attempts.failed(address)
            if (missed := noted.take("failed")) is not None:
                nobody = Identity(f"web:{address or 'unknown'}", Role.VIEWER)
                detail = f"{missed} more failed logins were not noted" if missed else ""
                await run_in_threadpool(_note, site, nobody, "refused", detail)
            return problem(request, 401, "this link is not valid: it was used, is too old, or jarvis web was restarted")
        await run_in_threadpool(_note, site, who, "logged in")
        if before := request.cookies.get(cookie_name(site)):
            site.sessions.end(before)
        response = RedirectResponse(target, 303)
        response.set_cookie(
            cookie_name(site),
            site.sessions.begin(who),
            max_age=int(LIFE_S),
            secure=site.is_https,
            httponly=True,
            samesite="strict",
        )
        return response

    async def log_out(request: Request) -> Response:
        cookie = request.cookies.get(cookie_name(site))
        if cookie:
            site.sessions.end(cookie)
        await run_in_threadpool(_note, site, identity(request), "logged out")
        response = RedirectResponse("/login", 303)
        response.delete_cookie(cookie_name(site), secure=site.is_https, httponly=True, samesite="strict")
        return response

    async def end_sessions(request: Request) -> Response:
        by, whose = identity(request), str((await request.form()).get("who", ""))
        if by.role is not Role.ADMIN and by.who != whose:
            return problem(request, 403, f"{by.who} is {by.role.value}: admins end the sessions of others")
        if site.sessions.end_all(whose):
            await run_in_threadpool(_note, site, by, f"ended the sessions of {whose}")
        return RedirectResponse("/health", 303)

    return [
        Route("/login", log_in, methods=["GET"]),
        Route("/logout", log_out, methods=["POST"]),
        Route("/sessions/end", end_sessions, methods=["POST"]),
    ]


def _address(request: Request, site: Site) -> str:
    """Where somebody asks from: of a proxy before us, whom that saw last."""
    peer = request.client.host if request.client is not None else ""
    seen = request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    return seen[:64] if seen and site.settings.web.url and is_loopback(peer) else peer


def _is_prefetch(request: Request) -> bool:
    headers = request.headers
    purpose = headers.get("sec-purpose", "") + headers.get("purpose", "")
    return request.method != "GET" or "prefetch" in purpose or headers.get("sec-fetch-mode", "navigate") != "navigate"


def _note(site: Site, who: Identity, outcome: str, detail: str = "") -> None:
    """A login in the audit; where that cannot be written it is in the log."""
    try:
        site.store.note(Author(who.who, "web", role=who.role), lambda: [Note("login", "", outcome, detail)])
    except StoreError as error:
        _logger.warning("%s %s, which the audit does not have: %s", who.who, outcome, error)
