"""OpenTelemetry's providers where the application set none of its own, with the exporters that OTEL_* name.

What is set stays: a provider that the application made before `configure()` keeps its processors and exporters, and
only gets ours beside them. What cannot be had is told in one line, and nothing else is affected.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace
from opentelemetry._logs import get_logger_provider, set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider

from jarvis_flags.hints import did_you_mean
from jarvis_otel.adoption import adopt_provider
from jarvis_otel.otlp_settings import OtlpTarget
from jarvis_otel.settings import Settings
from jarvis_otel.terminal import tell

if TYPE_CHECKING:
    from jarvis_otel.handlers import PipelineProcessor
    from jarvis_otel.redaction import Redactor

__all__ = ["EXPORTER_LOGS", "Providers"]

EXPORTER_LOGS = tuple(
    f"opentelemetry.exporter.otlp.proto.http.{part}" for part in ("trace_exporter", "metric_exporter", "_log_exporter")
)
"""The loggers of the stock exporters, which report each batch that a missing collector does not take."""

_PACKAGES = {
    "otlp_proto_grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "prometheus": "opentelemetry-exporter-prometheus",
    "zipkin": "opentelemetry-exporter-zipkin",
}
_ATTRIBUTES_MAX = 128


class Providers:
    """The providers of this process.

    Args:
        settings: Which exporters there are, and where OTLP goes.
        resource: What this process is.
        redactor: Takes secrets out of the spans that the exporters made here get; None leaves them in.
    """

    def __init__(self, settings: Settings, resource: Resource, redactor: Redactor | None = None) -> None:
        self._settings = settings
        self._resource = resource
        self._redactor = redactor
        self._flushes: list[Callable[[int], object]] = []
        self._shutdowns: list[Callable[[int], object]] = []

    def set_up_traces(self, processor: SpanProcessor) -> None:
        """Has a processor see every span; where nobody set a provider, there is one with the exporters named.

        Args:
            processor: What sees the spans first.
        """
        provider: Any = trace.get_tracer_provider()
        if not _is_unset(provider):
            if hasattr(provider, "add_span_processor"):
                provider.add_span_processor(processor)
                self._flush(provider)
            return
        provider = self._tracer_provider()
        provider.add_span_processor(processor)
        batches = [self._batched(exporter) for exporter in self._made("traces", self._settings.traces_exporters)]
        for batch in batches:
            provider.add_span_processor(batch)
        trace.set_tracer_provider(provider)
        self._flush(provider)
        self._shutdowns.append(functools.partial(_shut_down, provider, batches))

    def set_up_logs(self, processor: PipelineProcessor | None) -> None:
        """Has a processor see the records of OpenTelemetry's Logs API; our own pipeline is no exporter here.

        Args:
            processor: What sees the records first; None where only other exporters take them.
        """
        provider: Any = get_logger_provider()
        if not _is_unset(provider):
            if processor is not None:
                adopt_provider(provider, processor)
            self._flush(provider)
            return
        others = tuple(name for name in self._settings.logs_exporters if name != "otlp")
        provider = self._logger_provider()
        if processor is not None:
            provider.add_log_record_processor(processor)
        batches = []
        for exporter in self._made("logs", others):
            from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: PLC0415

            defaults = (1_000, 512, 30_000, 2_048)
            batches.append(_with_defaults("OTEL_BLRP_*", BatchLogRecordProcessor, exporter, defaults))
            provider.add_log_record_processor(batches[-1])
        set_logger_provider(provider)
        self._flush(provider)
        self._shutdowns.append(functools.partial(_shut_down, provider, batches))

    def set_up_metrics(self) -> None:
        """Makes a provider of metrics where OTEL_METRICS_EXPORTER names exporters and nobody set one."""
        names = self._settings.metrics_exporters
        if not names or self._settings.sdk_disabled or not _is_unset(metrics.get_meter_provider()):
            return
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - only where metrics are wanted
        from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader  # noqa: PLC0415

        readers = [
            # Prometheus is a reader: it is asked, and sends nothing
            made
            if isinstance(made, MetricReader)
            else _with_defaults("OTEL_METRIC_EXPORT_*", PeriodicExportingMetricReader, made, (60_000.0, 30_000.0))
            for made in self._made("metrics", names)
        ]
        if readers:
            provider = MeterProvider(readers, self._resource, shutdown_on_exit=False)
            metrics.set_meter_provider(provider)
            self._flush(provider)
            self._shutdowns.append(provider.shutdown)

    def flush(self, timeout: float = 2.0) -> None:
        """Has all exporters send what waits, those of the application too.

        Args:
            timeout: Seconds that this may take; the SDK bounds it not at all.
        """
        _at_once(self._flushes, timeout)

    def shutdown(self, timeout: float = 2.0) -> None:
        """Has what was made here send what waits and end.

        Args:
            timeout: Seconds that this may take; with the collector down the SDK would retry for long.
        """
        _at_once(self._shutdowns, timeout)

    def _flush(self, provider: Any) -> None:
        if hasattr(provider, "force_flush"):
            self._flushes.append(provider.force_flush)

    def _tracer_provider(self) -> TracerProvider:
        options: dict[str, Any] = {
            "sampler": self._sampler(),
            "id_generator": self._id_generator(),
            "resource": self._resource,
            "shutdown_on_exit": False,
        }
        try:
            return TracerProvider(**options)
        except ValueError as error:  # of the limits of spans in the environment
            tell(f"{error}; the SDK's defaults are used")
            unset, most = SpanLimits.UNSET, _ATTRIBUTES_MAX
            return TracerProvider(span_limits=SpanLimits(most, most, most, most, most, most, unset, unset), **options)

    def _logger_provider(self) -> LoggerProvider:
        options: dict[str, Any] = {"resource": self._resource, "shutdown_on_exit": False}
        try:
            return LoggerProvider(**options)
        except ValueError:  # of the limits in the environment, which our own settings have told already
            from opentelemetry.sdk._logs import LogRecordLimits  # noqa: PLC0415 - not in each version of the SDK

            limits = LogRecordLimits(_ATTRIBUTES_MAX, LogRecordLimits.UNSET, _ATTRIBUTES_MAX, LogRecordLimits.UNSET)
            return LoggerProvider(log_record_limits=limits, **options)

    def _sampler(self) -> Any:
        from opentelemetry.sdk.trace import sampling  # noqa: PLC0415

        name, argument = self._settings.traces_sampler, self._settings.traces_sampler_arg
        if name is None:
            return sampling.DEFAULT_ON
        try:
            factory = _component("opentelemetry_traces_sampler", name)
            return factory(float(argument or 1.0) if name.endswith("traceidratio") else argument)
        except Exception as error:  # it is another's code
            tell(f"OTEL_TRACES_SAMPLER: {name}: {error}; every trace is sampled")
            return sampling.DEFAULT_ON

    def _id_generator(self) -> Any:
        name = self._settings.id_generator
        if name is None:
            return None
        try:
            return _component("opentelemetry_id_generator", name)()
        except Exception as error:  # it is another's code
            tell(f"OTEL_PYTHON_ID_GENERATOR: {name}: {error}; ids are random")
            return None

    def _batched(self, exporter: Any) -> Any:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        if self._redactor is not None:
            from jarvis_otel.span_redaction import RedactingSpanExporter  # noqa: PLC0415

            exporter = RedactingSpanExporter(exporter, self._redactor)
        delay = self._settings.span_delay_ms
        return _with_defaults(
            "OTEL_BSP_*", BatchSpanProcessor, exporter, (2_048, 500, 512, 30_000), schedule_delay_millis=delay
        )

    def _made(self, signal: str, names: tuple[str, ...]) -> Iterator[Any]:
        """The exporters of a signal that can be had."""
        if self._settings.sdk_disabled:
            return
        for name in names:
            try:
                if name in ("otlp", "otlp_proto_http"):
                    yield self._otlp(signal, may_be_grpc=name == "otlp")
                else:
                    yield _component(f"opentelemetry_{signal}_exporter", name)()
            except Exception as error:  # it is another's code
                tell(f"OTEL_{signal.upper()}_EXPORTER: {name}: {error}; it gets no {signal}")

    def _otlp(self, signal: str, *, may_be_grpc: bool) -> Any:
        target: OtlpTarget = getattr(self._settings, f"otlp_{signal}")
        options: dict[str, Any] = {"headers": dict(target.headers), "timeout": target.timeout}
        if may_be_grpc and target.grpc is not None:
            try:
                exporter = _component(f"opentelemetry_{signal}_exporter", "otlp_proto_grpc")
            except LookupError as error:
                tell(f"OTLP over gRPC: {error}; {signal} go over HTTP to {target.url}")
            else:
                return exporter(endpoint=target.grpc, **options)
        from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415 - protobuf and requests

        # not by its entry point: to find one, the metadata of all that is installed is read
        kind: Any
        if signal == "traces":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

            kind = OTLPSpanExporter
        else:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415

            kind = OTLPMetricExporter
        return kind(
            endpoint=target.url,
            certificate_file=target.certificate,
            client_key_file=target.client_key,
            client_certificate_file=target.client_certificate,
            compression=Compression(target.compression) if target.compression else None,
            session=_session(target),
            **options,
        )


def _is_unset(provider: object) -> bool:
    """Whether it is the API's stand-in for a provider that nobody has set."""
    return type(provider).__name__.lstrip("_").startswith("Proxy")


def _component(group: str, name: str) -> Any:
    """What an installed package offers under a name.

    Raises:
        LookupError: None offers it.
    """
    from importlib.metadata import entry_points  # noqa: PLC0415 - it reads the metadata of all that is installed

    offered = entry_points(group=group)
    found = next(iter(offered.select(name=name)), None)
    if found is not None:
        return found.load()
    known = sorted(offered.names)
    cure = did_you_mean(name, known, f"; there is {', '.join(known)}")
    if name in _PACKAGES:
        cure = f"; pip install {_PACKAGES[name]}"
    raise LookupError(f"no installed package offers it{cure}")


def _with_defaults(variables: str, kind: Any, exporter: Any, defaults: tuple[Any, ...], **options: Any) -> Any:
    """A processor or reader as the environment has it, else by the SDK's defaults."""
    try:
        return kind(exporter, **options)
    except ValueError as error:
        tell(f"{variables}: {error} The SDK's defaults are used")
        return kind(exporter, *defaults)


def _session(target: OtlpTarget) -> Any:
    """A session for what `requests` would do otherwise than the settings say; None where it does as they say.

    It takes a proxy even to this very machine, and lets REQUESTS_CA_BUNDLE beat the certificate that was named.
    """
    import netrc  # noqa: F401, PLC0415 - which requests would import in the thread that exports: see forks.importing
    from urllib.parse import urlsplit  # noqa: PLC0415

    from requests import Session  # noqa: PLC0415 - the exporter's own

    from jarvis_collector.config import is_loopback  # noqa: PLC0415

    session = Session()
    found = session.merge_environment_settings(target.url, {}, None, None, None)
    proxies = {} if is_loopback(urlsplit(target.url).hostname or "") else found["proxies"]
    if proxies == found["proxies"] and (target.certificate is None or found["verify"] is True):
        return None
    session.trust_env = False
    session.proxies.update(proxies)
    return session


def _shut_down(provider: Any, batches: list[Any], millis: int) -> None:
    """Shuts a provider down in so many milliseconds; it would give its processors half a minute each."""
    deadline = time.monotonic() + millis / 1000
    for batch in batches:
        # the processor's own shutdown takes no bound, but what it is made of does
        if (inner := getattr(batch, "_batch_processor", None)) is not None:
            inner.shutdown(max(0, int((deadline - time.monotonic()) * 1000)))
    provider.shutdown()


def _at_once(calls: list[Callable[[int], object]], timeout: float) -> None:
    """Makes the calls at the same time, with the milliseconds they have; leaves those behind that take longer."""
    deadline = time.monotonic() + timeout

    def make(call: Callable[[int], object]) -> None:
        with contextlib.suppress(Exception):  # at the end of a process nobody can do anything about it
            call(max(0, int((deadline - time.monotonic()) * 1000)))

    threads = []
    for call in calls:
        thread = threading.Thread(target=make, args=(call,), name="jarvis-export", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # from Python 3.12 on there are no new threads at exit: one after the other, then
            make(call)
        else:
            threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
