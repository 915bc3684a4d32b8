"""What a process begins with in which people change flags while it runs: flags, their admin, its records, alerts."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import NamedTuple

from jarvis_flags.source import FileSource
from jarvis_otel.admin.opening import open_flags
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.admin.store import FlagStore
from jarvis_otel.alerts.service import Alerts
from jarvis_otel.manager import announce
from jarvis_otel.pipeline import Pipeline
from jarvis_otel.runtime import RUNTIME
from jarvis_otel.settings import Settings

__all__ = ["Front", "open_front"]


class Front(NamedTuple):
    """What a front end works on.

    Attributes:
        source: The flags, watched.
        store: Their run-time state and audit.
        admin: The service that changes them; edits of the flag file are noted, changes are announced.
        alerts: What tells people of it all, running where the settings want it.
    """

    source: FileSource
    store: FlagStore
    admin: FlagAdmin
    alerts: Alerts


def open_front(settings: Settings, service: str, ends: ExitStack, *, flush: float = 1.0) -> Front:
    """Puts it together.

    Args:
        settings: The settings.
        service: What the process is called in its records.
        ends: Takes what is to be ended after it.
        flush: Seconds that the last records may take to leave.
    """
    source, store = open_flags(settings.flags, watch=True, tell=announce)
    ends.callback(source.close)
    resource = {
        "service.name": service,
        "host.name": socket.gethostname(),
        "deployment.environment.name": source.snapshot.environment,
    }
    pipeline = Pipeline.of(settings, resource, quiet=True)
    if pipeline is not None:
        RUNTIME.pipeline = pipeline
        ends.callback(pipeline.shutdown, flush)
    admin = FlagAdmin(source, store, tell=announce, reason_always=settings.reason_always)
    ends.callback(admin.follow_file())
    alerts = Alerts(settings, source, turn=store.turn("alerts"))
    alerts.start()
    ends.callback(alerts.stop)
    return Front(source, store, admin, alerts)
