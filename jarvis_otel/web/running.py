"""What `jarvis web` puts together, and takes apart in the end."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack

from jarvis_collector.access import token_digest
from jarvis_collector.config import reachable_url
from jarvis_otel.fronts import open_front
from jarvis_otel.settings import Settings
from jarvis_otel.web.app import create_app
from jarvis_otel.web.events import Events
from jarvis_otel.web.server import serve
from jarvis_otel.web.sessions import Sessions
from jarvis_otel.web.site import Site

__all__ = ["run_web"]

FLUSH_S = 0.5


def run_web(settings: Settings, listener: socket.socket, ends: ExitStack) -> None:
    """Serves the web page until the process is told to stop; prints its login URL.

    Args:
        settings: The settings.
        listener: A bound socket.
        ends: Takes what is to be ended after it.
    """
    front = open_front(settings, "jarvis-web", ends, flush=FLUSH_S)
    token, port = secrets.token_urlsafe(32), listener.getsockname()[1]
    site = Site(settings, front.admin, front.store, Sessions(), Events(front.source), port, token_digest(token))
    url = settings.web.url or reachable_url(settings.web.host, port)
    serve(create_app(site), listener, ready=lambda: print(f"{url}/login?t={token}", flush=True))
