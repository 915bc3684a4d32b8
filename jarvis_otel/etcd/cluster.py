"""How an etcd is: its members one by one, for `jarvis doctor`."""

from __future__ import annotations

import time
from collections.abc import Iterator

from jarvis_flags.settings import EtcdSettings
from jarvis_otel.etcd.client import EtcdClient, EtcdError
from jarvis_otel.etcd.keys import Keys, read_flags

__all__ = ["cluster_findings"]

_SLOW_S = 0.5
_OLDEST = (3, 4)


def cluster_findings(settings: EtcdSettings) -> Iterator[tuple[str, str, str]]:
    """What is to be said of it: state (ok, warning or problem), how it is, and the cure.

    Args:
        settings: How it is reached.
    """
    client = EtcdClient(settings)
    try:
        yield from _findings(client, settings)
    finally:
        client.close()


def _findings(client: EtcdClient, settings: EtcdSettings) -> Iterator[tuple[str, str, str]]:
    leaders, answering = set(), 0
    for endpoint in settings.endpoints:
        began = time.monotonic()
        try:
            status = client.ask_member(endpoint, "maintenance/status", {})
        except EtcdError as error:
            yield "problem", str(error), "start it, or correct etcd_endpoints"
            continue
        took = time.monotonic() - began
        answering += 1
        leaders.add(str(status.get("leader", "0")))
        version = str(status.get("version", ""))
        size = int(status.get("dbSize", 0)) / 2**20
        text = f"{endpoint}: {version}, {size:.1f} MiB, answers in {took * 1e3:.0f} ms"
        if status.get("leader", "0") == "0":
            yield "problem", f"{endpoint}: sees no leader", "more than half of the members must reach each other"
        elif _number(version) < _OLDEST:
            yield "problem", text, "etcd 3.4 or newer is needed"
        elif took > _SLOW_S:
            yield "warning", text, "that is slow: is its disk?"
        else:
            yield "ok", text, ""
    if not answering:
        return
    if len(leaders) > 1:
        yield "problem", "its members follow different leaders", "are etcd_endpoints those of one cluster?"
    try:
        members = client.call("cluster/member/list", {}).get("members", [])
        alarms = client.call("maintenance/alarm", {"action": "GET"}).get("alarms", [])
        shared = read_flags(client, Keys(settings.prefix))
    except EtcdError as error:
        yield "problem", f"flags cannot be read: {error}", "see docs/etcd.md"
        return
    except ValueError as error:
        yield "problem", f"the flags under {settings.prefix} cannot be used: {error}", "restore a backup"
        return
    for alarm in alarms:
        cure = "compact and defragment it, then: etcdctl alarm disarm" if alarm.get("alarm") == "NOSPACE" else ""
        yield "problem", f"alarm {alarm.get('alarm', 'unknown')}", cure or "see etcd's documentation"
    count = f"{len(members)} member{'s' if len(members) != 1 else ''}"
    what = f"{count}, {len(shared.standing.overrides)} overrides at revision {shared.overrides.revision}"
    if len(members) == 1:
        yield "warning", what, "where it must not be away, run three members"
    elif len(members) % 2 == 0:
        yield "warning", what, "an even number stands no more losses than one less"
    elif answering < min(len(members), len(settings.endpoints)):
        yield "warning", what, ""
    else:
        yield "ok", what, ""


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
