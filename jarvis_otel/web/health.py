"""How everything is: collector, files, spool, Loki, who logs, who evaluates flags, alerts."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from jarvis_collector.layout import STREAMS, day_name
from jarvis_otel.alerts.state import read_status
from jarvis_otel.query.days import archived_days, plain_days
from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.files import Tally
from jarvis_otel.query.log_query import Criteria
from jarvis_otel.query.tail import Tail
from jarvis_otel.settings import Settings
from jarvis_otel.spool import usage
from jarvis_otel.web import api
from jarvis_otel.web.errors import unreadable_logs
from jarvis_otel.web.pages import render
from jarvis_otel.web.scans import Budget, GoneError
from jarvis_otel.web.site import Site

__all__ = ["operations", "routes"]

COLLECTOR_WAIT_S = 1.0
SERVICES_WAIT_S = 2.0
ANSWER_MAX = 256 * 1024
NEWEST = 2_000
"""So many records back it is known when a service wrote last."""
DAYS_SHOWN = 14
_PREFIX = "jarvis_collector_"


def routes(site: Site) -> list[BaseRoute]:
    """The page."""

    async def show(request: Request) -> Response:
        return render(request, "health.html", section="/health", health=await _look(site, request))

    return [Route("/health", show, methods=["GET"])]


def operations(site: Site) -> list[api.Operation]:
    """The same for programs."""

    async def health(request: Request) -> Response:
        return api.answer_json(await _look(site, request))

    properties = {name: {"type": "object"} for name in ("collector", "logs", "spool", "loki", "flags", "services")}
    answer = {"type": "object", "required": [*properties, "problems"], "properties": properties}
    return [api.Operation("/api/health", health, "How everything is", answer=answer)]


async def _look(site: Site, request: Request) -> dict[str, Any]:
    """How everything is; takes some seconds at most."""
    services: dict[str, Any] = {}
    # how the rest is matters also where there are too many records to count, or too many who count
    with contextlib.suppress(HTTPException, GoneError):
        budget = Budget(SERVICES_WAIT_S)
        services = await site.scans.run(lambda budget: _services(site, budget), budget, request)
    return {**await run_in_threadpool(_rest, site), "services": services}


def _rest(site: Site) -> dict[str, Any]:
    settings = site.settings
    collector = _collector(settings)
    logs = _logs(settings)
    snapshot = site.admin.source.snapshot
    flags = {
        "file": str(settings.flags.flags_file),
        "version": snapshot.version,
        "environment": snapshot.environment,
        "flags": len(snapshot.definitions),
        "problems": [str(one) for one in snapshot.problems],
        "revision": snapshot.overrides.revision,
        "processes": [
            {"service": one.service, "place": one.place, "revision": one.revision, "pins": dict(one.pins)}
            for one in site.admin.processes()
        ],
    }
    spool = usage(settings.spool_dir)
    loki = _loki(settings, collector["metrics"])
    problems = [one for one in (collector["problem"], logs["problem"], loki["problem"]) if one]
    problems += map(str, snapshot.problems)
    return {
        "problems": problems,
        "collector": collector,
        "logs": logs,
        "spool": {
            "directory": str(settings.spool_dir),
            "bytes": spool.bytes,
            "max_bytes": settings.spool_max_bytes,
            "owners": spool.owners,
        },
        "loki": loki,
        "flags": flags,
        "alerts": _alerts(settings),
        "listening": site.events.listening,
        "people": [
            {"who": who.who, "role": who.role.value, "sessions": count, "idle_seconds": round(idle)}
            for who, count, idle in site.sessions.people()
        ],
    }


def _collector(settings: Settings) -> dict[str, Any]:
    said: dict[str, Any] = {"endpoint": settings.otlp_endpoint, "status": "unknown", "problem": None, "metrics": {}}
    url = urlsplit(settings.otlp_endpoint)
    try:
        status, body = _get(settings, "/healthz")
        healthz = orjson.loads(body) if body.startswith(b"{") else {}
        said["status"] = healthz.get("status") or ("ok" if status == 200 else f"answers {status}")
        said["healthz"] = healthz
        if said["status"] != "ok":
            said["problem"] = f"the collector is {said['status']}: {healthz.get('reason', f'it answers {status}')}"
        status, body = _get(settings, "/metrics")
        if status == 200:
            said["metrics"] = _metrics(body.decode("utf-8", "replace"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        said["status"] = "no answer"
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        said["problem"] = f"the collector at {url.netloc} does not answer ({why}); start one: jarvis collector"
    return said


def _get(settings: Settings, path: str) -> tuple[int, bytes]:
    url = urlsplit(settings.otlp_endpoint)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    with contextlib.closing(kind(url.hostname or "", url.port, timeout=COLLECTOR_WAIT_S)) as connection:
        connection.request("GET", path, headers=dict(settings.otlp_headers))
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_MAX)


def _metrics(text: str) -> dict[str, float]:
    """What Prometheus's text format says, labels as part of the name."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name and not name.startswith("#"):
            try:
                found[name.removeprefix(_PREFIX)] = float(value)
            except ValueError:
                continue
    return found


def _logs(settings: Settings) -> dict[str, Any]:
    directory = settings.log_dir
    said: dict[str, Any] = {"directory": str(directory), "problem": None, "days": [], "bytes": 0, "archived": 0}
    try:
        disk = shutil.disk_usage(directory)
        plain = [path for stream in STREAMS for path in plain_days(directory, stream)]
        archived = [path for stream in STREAMS for path in archived_days(directory, stream)]
        sizes = {path: _size(path) for path in (*plain, *archived)}
    except OSError as error:
        return {**said, "problem": unreadable_logs(directory, error)}
    newest = sorted(plain, key=lambda path: (day_name(path.name).day, path.name), reverse=True)  # type: ignore[union-attr]
    said["days"] = [
        {"name": path.name, "bytes": sizes[path], "changed": _changed(path)} for path in newest[:DAYS_SHOWN]
    ]
    said |= {
        "bytes": sum(sizes.values()),
        "plain": len(plain),
        "archived": len(archived),
        "disk_free": disk.free,
        "disk_total": disk.total,
    }
    return said


def _alerts(settings: Settings) -> dict[str, Any] | None:
    """How alerts are, as whoever is on duty wrote it; None where nobody ever was."""
    status = read_status(settings.flags.state_dir)
    if status is None:
        return None
    said = {"running": False, "pid": None, "at": None, "kinds": [], "problems": [], "sinks": [], **status}
    # a file of another version must not take the page down
    said["sinks"] = [{"sink": "", "waiting": 0, "problem": "", **one} for one in said["sinks"] if isinstance(one, dict)]
    return said


def _size(path: os.PathLike[str]) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0  # archived or purged meanwhile


def _changed(path: os.PathLike[str]) -> float | None:
    try:
        return os.stat(path).st_mtime  # noqa: PTH116
    except OSError:
        return None


def _loki(settings: Settings, metrics: Mapping[str, float]) -> dict[str, Any]:
    if settings.loki is None:
        return {"url": None, "problem": None}
    lag = metrics.get("forward_lag_seconds")
    said = {
        "url": settings.loki.url,
        "lag_seconds": lag,
        "lag_bytes": metrics.get("forward_lag_bytes"),
        "forwarded": metrics.get("forwarded_records_total"),
        "problem": None,
    }
    if lag is not None and lag > 60:
        said["problem"] = f"Loki is {lag:,.0f} s behind"
    return said


def _services(site: Site, budget: Budget) -> dict[str, dict[str, Any]]:
    """Records and errors of the last hour by service, and when each wrote last, as far as the newest records tell."""
    found: dict[str, dict[str, Any]] = {}
    try:
        for part in site.logs.counts(Criteria.of(since="-1h"), (("service",),), precision=16):
            for (level, service), number in part.groups[0].items():
                one = found.setdefault(str(service), {"records": 0, "errors": 0, "last": None})
                one["records"] += number
                one["errors"] += number if level in ("ERROR", "CRITICAL") else 0
            if budget.is_spent:
                break
        with Tail(site.settings.log_dir, Criteria.of(), Tally(), lambda _: None) as tail:
            for record in (line.record for line in tail.last(NEWEST)):
                one = found.setdefault(str(record.get("service")), {"records": 0, "errors": 0, "last": None})
                one["last"] = max(one["last"] or "", str(record.get("timestamp", "")))
    except (OSError, QueryError):
        pass  # the log directory says that for itself
    return dict(sorted(found.items()))
