"""Opening the flags of a project: the one place that knows where their run-time state is kept."""

from __future__ import annotations

from collections.abc import Callable

from jarvis_flags.settings import FlagSettings
from jarvis_flags.source import FileSource
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.store import FlagStore

__all__ = ["open_flags"]


def open_flags(
    settings: FlagSettings,
    *,
    watch: bool = False,
    service: str | None = None,
    tell: Callable[[AuditEntry], None] = lambda _: None,
) -> tuple[FileSource, FlagStore]:
    """Opens flags and store; what a process that ended could not finish is finished first.

    Args:
        settings: Where they are.
        watch: Follow changes; to close the source ends that.
        service: What this process is called among those that evaluate the flags; None is not counted.
        tell: Called with each entry of the audit that the store makes by itself; it must not raise.
    """
    if settings.store == "etcd":
        from jarvis_otel.etcd.etcd_store import open_etcd  # noqa: PLC0415 - brings an HTTP client

        feed, etcd_store = open_etcd(settings, tell)
        return FileSource(settings, watch=watch, service=service, feed=feed), etcd_store
    from jarvis_otel.admin.file_store import FileStore  # noqa: PLC0415

    store = FileStore(settings.flags_state_dir)
    store.recover()
    return FileSource(settings, watch=watch, service=service), store
