"""A site over flags and logs of a test, and clients that are logged in to it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from jarvis_collector.access import token_digest
from jarvis_flags.source import FileSource
from jarvis_otel.admin.author import Role
from jarvis_otel.admin.file_store import FileStore
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.settings import Settings
from jarvis_otel.web.app import create_app
from jarvis_otel.web.events import Events
from jarvis_otel.web.security import cookie_name
from jarvis_otel.web.sessions import Identity, Sessions
from jarvis_otel.web.site import Site

LOGIN_TOKEN = "printed-token"
FLAGS = """\
environment: prod
flags:
  PLAIN: {description: A plain flag, owner: team, enabled: false}
  RISKY: {description: A dangerous flag, owner: team, enabled: false, dangerous: true}
  PART: {description: A rollout, owner: team, enabled: true, rules: [{type: percentage, value: 25}]}
"""


def make_site(home: Path, flags: str | None = FLAGS, env: dict[str, str] | None = None, **web: Any) -> Site:
    """A site in a directory of a test; `web` are fields of WebSettings."""
    (home / "config").mkdir(exist_ok=True, parents=True)
    if flags is not None:
        (home / "config" / "flags.yaml").write_text(flags)
    settings = Settings.load({"PATH": os.environ["PATH"], **(env or {})}, start=home)
    assert not settings.problems
    settings = replace(settings, web=replace(settings.web, **web))
    store = FileStore(settings.flags.flags_state_dir)
    source = FileSource(settings.flags)
    admin = FlagAdmin(source, store, seen_wait=0.0, reason_always=settings.reason_always)
    return Site(settings, admin, store, Sessions(), Events(source), settings.web.port, token_digest(LOGIN_TOKEN))


@contextmanager
def visitor(site: Site, who: str = "web:ann", role: Role | None = Role.ADMIN, address: str = "testclient"):
    """A browser that is logged in as somebody; as nobody where the role is None."""
    base = f"http://127.0.0.1:{site.port}"
    headers = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate", "Origin": base}
    with TestClient(
        create_app(site), base, headers=headers, follow_redirects=False, client=(address, 50_000)
    ) as client:
        if role is not None:
            client.cookies.set(cookie_name(site), site.sessions.begin(Identity(who, role)))
        yield client
