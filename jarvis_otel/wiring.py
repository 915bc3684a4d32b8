"""What `configure()` does: the parts are put together in a process that has none of them, or only some."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from openfeature import api
from openfeature.provider.no_op_provider import NoOpProvider
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.resources import Resource

from jarvis_otel.carry import carry_operations
from jarvis_otel.context import OperationSpanProcessor
from jarvis_otel.exporters import EXPORTER_LOGS, Providers
from jarvis_otel.handlers import LoggingSetup, PipelineProcessor, flush_at_sigterm, install_logging
from jarvis_otel.live import follow_settings
from jarvis_otel.logger import report_uncaught, report_warning
from jarvis_otel.manager import FeatureFlagManager
from jarvis_otel.pipeline import EXIT_SECONDS
from jarvis_otel.propagation import continue_operation, guard_baggage
from jarvis_otel.redaction import redactor_of
from jarvis_otel.runtime import RUNTIME
from jarvis_otel.settings import Settings
from jarvis_otel.uncaught import capture_warnings, install_uncaught

__all__ = ["Wiring"]


class Wiring:
    """What was put together, and how it is taken apart.

    Args:
        settings: What the process runs with.
        manager: Its flags.
        service_name: What it is called, if anybody says so.
        console: Whether to print records on a process that has no log handler.
    """

    def __init__(
        self, settings: Settings, manager: FeatureFlagManager, service_name: str | None, *, console: bool
    ) -> None:
        self._undo: list[Callable[[], object]] = []
        self._manager = manager
        RUNTIME.settings = settings
        found = Resource.create()
        service = _service(found, service_name or settings.service_name)
        manager.use(settings.flags, service=service, service_flags=settings.service_flags)
        RUNTIME.declared_flags, RUNTIME.flag_source = manager.declared, manager.source
        self._undo.append(manager.close)
        RUNTIME.redactor = redactor_of(settings)
        resource = _resource(found, service, environment=manager.source.snapshot.environment)

        self._undo += [
            carry_operations(),
            guard_baggage(),
            continue_operation(settings.traceparent, settings.tracestate, settings.baggage),
        ]
        self._providers = Providers(settings, resource, RUNTIME.redactor)
        self._providers.set_up_metrics()
        self._providers.set_up_traces(OperationSpanProcessor())
        self._setup = install_logging(settings, resource.attributes, console=console)
        self._set_up_logs(settings, self._setup)
        if isinstance(api.get_client().provider, NoOpProvider):
            api.set_provider_and_wait(manager.provider)
        _observe_flags(manager)
        if settings.flags.pins:
            manager.admin.note_unreadable_pins(service)
        self._undo.append(follow_settings(settings, self._setup.apply))

    def _set_up_logs(self, settings: Settings, setup: LoggingSetup) -> None:
        pipeline = setup.pipeline
        self._providers.set_up_logs(PipelineProcessor(pipeline) if pipeline is not None else None)
        if settings.capture_exceptions:
            self._undo.append(install_uncaught(report_uncaught))
        if settings.capture_warnings:
            self._undo.append(capture_warnings(report_warning))
        flush_at_sigterm(pipeline, [self._providers.flush])
        if pipeline is None:
            return
        # the pipeline says in one line that there is no collector; the stock exporters would say it for each batch
        for exporter_log in map(logging.getLogger, EXPORTER_LOGS):
            exporter_log.addFilter(_is_no_retry)
            self._undo.append(lambda log=exporter_log: log.removeFilter(_is_no_retry))  # type: ignore[misc]

    def finish(self, timeout: float = EXIT_SECONDS) -> None:
        """Delivers what waits: logs and spans at the same time.

        Args:
            timeout: Seconds that this may take.
        """
        self._deliver(timeout, self._setup.finish)
        with contextlib.suppress(Exception):  # the process ends in any case
            self._manager.close()

    def undo(self, timeout: float = EXIT_SECONDS) -> None:
        """Takes it apart, and delivers what waits.

        Args:
            timeout: Seconds that this may take.
        """
        self._deliver(timeout, self._setup.uninstall)
        for end in reversed(self._undo):
            with contextlib.suppress(Exception):  # what cannot be undone must not keep the rest from it
                end()

    def _deliver(self, timeout: float, logs: Callable[[float], object]) -> None:
        spans = threading.Thread(target=self._providers.shutdown, args=(timeout,), name="jarvis-shutdown", daemon=True)
        try:
            spans.start()
        except RuntimeError:  # from Python 3.12 on, at exit there are no new threads
            spans.run()
        deadline = time.monotonic() + timeout
        with contextlib.suppress(Exception):  # the process ends in any case
            logs(timeout)
        if spans.is_alive():
            spans.join(max(0.0, deadline - time.monotonic()))


def _service(found: Resource, named: str | None) -> str:
    """What the process is called: as it was told, else as OTEL_RESOURCE_ATTRIBUTES says, else after its program."""
    detected = str(found.attributes.get("service.name", ""))
    if named or detected.startswith("unknown_service"):
        return named or _program()
    return detected or _program()


def _resource(found: Resource, service: str, *, environment: str) -> Resource:
    """The SDK's resource with the service, and where it does not say, the flags' environment and the host."""
    ours = {"deployment.environment.name": environment, "host.name": socket.gethostname()}
    missing = {name: value for name, value in ours.items() if name not in found.attributes}
    return found.merge(Resource({"service.name": service, **missing}))


def _program() -> str:
    path = Path(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c", "-m") else Path()
    # a package that `python -m` runs begins in its __main__
    return (path.parent.name if path.stem == "__main__" else path.stem) or "unknown_service"


def _is_no_retry(record: logging.LogRecord) -> bool:
    return record.levelno > logging.ERROR


def _observe_flags(manager: FeatureFlagManager) -> None:
    """Metrics of the flags themselves: how old the snapshot is, its revision, and what is wrong with it."""

    def age(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(time.time() - manager.source.snapshot.loaded_at)

    def revision(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(manager.source.snapshot.overrides.revision)

    def problems(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(len(manager.source.snapshot.problems))

    meter = metrics.get_meter("jarvis_otel")
    meter.create_observable_gauge("jarvis.flags.age", [age], unit="s", description="Time since the flags last changed")
    meter.create_observable_gauge(
        "jarvis.flags.revision", [revision], description="Revision of the flags, which counts the run-time changes"
    )
    meter.create_observable_gauge("jarvis.flags.problems", [problems], description="Problems of the flag files")
