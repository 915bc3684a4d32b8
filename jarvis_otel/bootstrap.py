"""`configure()`: puts the parts together in a process that has none of them, or only some."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from openfeature import api
from openfeature.provider.no_op_provider import NoOpProvider
from opentelemetry import metrics, trace
from opentelemetry._logs import get_logger_provider, set_logger_provider
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from jarvis_otel.context import OperationSpanProcessor, carry_into_threads
from jarvis_otel.handlers import PipelineProcessor, flush_at_sigterm, install_logging
from jarvis_otel.manager import FeatureFlagManager
from jarvis_otel.runtime import RUNTIME
from jarvis_otel.settings import Settings

__all__ = ["Handle", "configure", "configure_logging", "get_flags"]

EXIT_SECONDS = 2.0

_configuring = threading.Lock()


class Handle:
    """What `configure()` set up.

    Attributes:
        settings: The settings it used.
    """

    def __init__(self, settings: Settings, endings: list[Callable[[], Any]]) -> None:
        self.settings = settings
        self._endings = endings
        self._done = False

    def shutdown(self) -> None:
        """Delivers what waits, for at most two seconds, and takes down what was set up; may be called twice."""
        if self._done:
            return
        self._done = True
        RUNTIME.handle = None
        for end in reversed(self._endings):
            with contextlib.suppress(Exception):
                end()


def get_flags() -> FeatureFlagManager:
    """The flags of this process."""
    with _configuring:
        if RUNTIME.manager is None:
            RUNTIME.manager = FeatureFlagManager.of_process()
        return RUNTIME.manager


def configure(
    service_name: str | None = None,
    *,
    flags: str | os.PathLike[str] | None = None,
    console: bool = True,
    settings: Settings | None = None,
) -> Handle:
    """Sets up flags, logs and traces for this process; a second call returns what the first one made.

    It never raises for a bad setting: one line on stderr names it, and its default stands in.

    Args:
        service_name: What this process is called; else OTEL_SERVICE_NAME, the settings, or the program's name.
        flags: The flag file; else JARVIS_FLAGS_FILE or the project's config/flags.yaml.
        console: Whether to print records on a process that has no log handler.
        settings: Settings made beforehand; read from config/jarvis.yaml and the environment if None.
    """
    if RUNTIME.handle is not None:
        return RUNTIME.handle
    settings = settings or Settings.load()
    for problem in settings.problems:
        print(f"jarvis: {problem}; its default is used", file=sys.stderr)
    if flags is not None:
        settings = replace(
            settings, flags=replace(settings.flags, flags_file=Path(flags).absolute(), flags_file_named=True)
        )
    endings: list[Callable[[], Any]] = []
    RUNTIME.settings = settings
    manager = get_flags()
    found = Resource.create()
    service = _service(found, service_name or settings.service_name)
    manager.use(settings.flags, service=service, service_flags=settings.service_flags)
    RUNTIME.declared_flags = manager.declared
    endings.append(manager.close)
    resource = _resource(found, service, environment=manager.source.snapshot.environment)

    endings.append(carry_into_threads())
    flush_spans = _set_up_traces(settings, resource, endings)
    setup = install_logging(settings, resource.attributes, console=console)
    endings.append(setup.uninstall)
    if setup.pipeline is not None:
        # the pipeline says in one line that there is no collector; the span exporter would say it for each batch
        exporter_log = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        exporter_log.addFilter(_is_no_retry)
        endings.insert(0, lambda: exporter_log.removeFilter(_is_no_retry))
        _receive_api_logs(setup.pipeline, resource)
        flush_at_sigterm(setup.pipeline, [flush_spans])
    if isinstance(api.get_client().provider, NoOpProvider):
        api.set_provider_and_wait(manager.provider)

    _observe_flags(manager)
    if settings.flags.pins:
        manager.admin.note_unreadable_pins(service)

    handle = Handle(settings, endings)
    RUNTIME.handle = handle
    atexit.register(handle.shutdown)
    return handle


def configure_logging(service_name: str | None = None, **options: Any) -> Handle:
    """The original design's name for `configure()`; the arguments are the same."""
    return configure(service_name, **options)


def _service(found: Resource, named: str | None) -> str:
    """What the process is called: as it was told, else as OTEL_RESOURCE_ATTRIBUTES says, else after its program."""
    detected = str(found.attributes.get("service.name", ""))
    if named or detected.startswith("unknown_service"):
        return named or _program()
    return detected or _program()


def _resource(found: Resource, service: str, *, environment: str) -> Resource:
    """The SDK's resource with the service, the environment that flags are evaluated in, and the host."""
    attributes = {
        "service.name": service,
        "deployment.environment.name": environment,
    }
    if "host.name" not in found.attributes:
        attributes["host.name"] = socket.gethostname()
    return found.merge(Resource(attributes))


def _program() -> str:
    name = Path(sys.argv[0]).stem if sys.argv and sys.argv[0] not in ("", "-c", "-m") else ""
    return name or "unknown_service"


def _set_up_traces(settings: Settings, resource: Resource, endings: list[Callable[[], Any]]) -> Callable[[], Any]:
    """Adds our processors to the application's tracer provider, or makes one; returns what flushes it."""
    provider = trace.get_tracer_provider()
    made = not isinstance(provider, TracerProvider)
    if made:
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(OperationSpanProcessor())
    if made:
        if settings.traces_exporter and not settings.sdk_disabled:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

            exporter = OTLPSpanExporter(
                endpoint=f"{settings.otlp_endpoint}/v1/traces",
                headers=dict(settings.otlp_headers),
                timeout=settings.otlp_timeout,
            )
            provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
        trace.set_tracer_provider(provider)
        endings.append(lambda: _bounded(provider.shutdown))
    return lambda: provider.force_flush(int(EXIT_SECONDS * 1000))


def _receive_api_logs(pipeline: Any, resource: Resource) -> None:
    """Has records that other libraries emit through OpenTelemetry's own API reach the same pipeline."""
    provider = get_logger_provider()
    if not isinstance(provider, LoggerProvider):
        provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        set_logger_provider(provider)
    provider.add_log_record_processor(PipelineProcessor(pipeline))


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
    meter.create_observable_gauge("jarvis.flags.age", [age], unit="s", description="Since the flags last changed")
    meter.create_observable_gauge("jarvis.flags.revision", [revision], description="Run-time changes so far")
    meter.create_observable_gauge("jarvis.flags.problems", [problems], description="What is wrong with the flag files")


def _bounded(shutdown: Callable[[], Any]) -> None:
    """A shutdown that the SDK does not bound itself: with the collector down it would retry for long."""
    thread = threading.Thread(target=shutdown, name="jarvis-shutdown", daemon=True)
    thread.start()
    thread.join(EXIT_SECONDS)
