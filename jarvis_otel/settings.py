"""Everything that jarvis_otel reads from the environment and from config/jarvis.yaml, in one place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from jarvis_collector.config import LokiTarget, Retention
from jarvis_flags.settings import FLAG_KEYS, FlagSettings, SettingsSource
from jarvis_otel.admin.author import Role
from jarvis_otel.collector_settings import COLLECTOR_KEYS, CollectorSettings, read_collector, size
from jarvis_otel.front_settings import FRONT_KEYS, AlertSettings, TelegramSettings, WebSettings, read_fronts
from jarvis_otel.otlp_settings import DEFAULT_ENDPOINT, OtlpTarget, read_target

if TYPE_CHECKING:
    from jarvis_otel.limits import Limit

__all__ = ["LEVELS", "Settings"]

LEVELS: Mapping[str, int] = MappingProxyType(
    {name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")}
)

_KEYS = (
    FLAG_KEYS
    | COLLECTOR_KEYS
    | FRONT_KEYS
    | {
        "log_dir",
        "service_name",
        "log_level",
        "levels",
        "console",
        "service_flags",
        "hmac_key",
        "baggage_hosts",
        "span_events",
        "redact",
        "redact_keys",
        "redact_patterns",
        "redact_allow",
        "limits",
        "spool_dir",
        "spool_max_bytes",
        "capture_warnings",
        "capture_exceptions",
    }
)

_MIB = 1024 * 1024
_SPOOL_MIN, _SPOOL_MAX = 4 * _MIB, 64 * 1024 * _MIB

_TO_LOGS, _TO_TRACES, _TO_METRICS = (
    OtlpTarget(f"{DEFAULT_ENDPOINT}/v1/{signal}") for signal in ("logs", "traces", "metrics")
)


@dataclass(frozen=True)
class Settings:
    """What an application and the command line run with: the settings file, overridden by JARVIS_* and OTEL_*.

    Attributes:
        flags: Where the flags come from.
        log_dir: The directory of the collector's day files.
        service_name: The service as OTEL_SERVICE_NAME or the settings name it, else None.
        level: The lowest level that a logger writes (a number of the logging module).
        levels: Levels of single loggers by their service name.
        console: `auto` (human on a terminal, else JSON), `human`, `json` or `off`.
        logs_exporters: What takes the log records (OTEL_LOGS_EXPORTER): `otlp` is our own pipeline, the others are
            exporters of OpenTelemetry by their entry point.
        traces_exporters: What takes the spans (OTEL_TRACES_EXPORTER).
        metrics_exporters: What takes the metrics (OTEL_METRICS_EXPORTER); nothing unless it is set.
        otlp_logs: Where `otlp` sends the log records.
        otlp_traces: Where it sends the spans.
        otlp_metrics: Where it sends the metrics.
        sdk_disabled: OTEL_SDK_DISABLED: nothing is exported at all.
        traces_sampler: OTEL_TRACES_SAMPLER, a sampler by its entry point; None for the SDK's default.
        traces_sampler_arg: OTEL_TRACES_SAMPLER_ARG, what the sampler is given.
        id_generator: OTEL_PYTHON_ID_GENERATOR, a maker of trace ids by its entry point.
        span_delay_ms: Milliseconds that a span may wait for others; None where OTEL_BSP_SCHEDULE_DELAY says.
        traceparent: TRACEPARENT: the trace that this process was started in.
        tracestate: TRACESTATE, which belongs to it.
        baggage: BAGGAGE that came along.
        service_flags: Ids of flags that a service's records list even where they were not evaluated.
        hmac_key: Key by which user ids are pseudonymised; None sends them as they are.
        baggage_hosts: Hosts beside loopback that may receive our baggage.
        span_events: Whether an evaluation is a span event too, beside the log event.
        redact: Whether secrets are taken out of records before they leave the process.
        redact_keys: Further patterns of keys whose values are secrets.
        redact_patterns: Further patterns of secrets in text, by the name that the note of it gives.
        redact_allow: Keys that are never secrets.
        limits: How many records of a logger are written, by its name; `*` for all others.
        spool_dir: Where records wait for the collector.
        spool_max_bytes: So many bytes may wait there, of all processes together.
        capture_warnings: Whether what the warnings module would print is logged.
        capture_exceptions: Whether uncaught exceptions are logged.
        collector: The collector.
        retention: How long day files are kept.
        loki: Where records are forwarded to, if anywhere.
        loki_headers: Headers of each request to a Loki; `loki` has them too.
        loki_timeout: Seconds that one may take.
        roles: What people may do, by who they are (`tg:123456789`, `ann@host`); others may what their front end says.
        reason_always: Whether turning on any flag needs a reason, not only dangerous ones.
        telegram: The Telegram bot.
        web: The web page.
        alerts: What is told by itself.
        notes: One line for each setting that works otherwise than it says; nothing is wrong with it.
        problems: One line for each setting that could not be used; its default stands in for it.
        file: The settings file, which need not be there; None where nothing was read.
        reload: Reads the settings again, from where these were read.
    """

    flags: FlagSettings
    log_dir: Path
    service_name: str | None = None
    level: int = logging.INFO
    levels: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    console: str = "auto"
    logs_exporters: tuple[str, ...] = ("otlp",)
    traces_exporters: tuple[str, ...] = ("otlp",)
    metrics_exporters: tuple[str, ...] = ()
    otlp_logs: OtlpTarget = _TO_LOGS
    otlp_traces: OtlpTarget = _TO_TRACES
    otlp_metrics: OtlpTarget = _TO_METRICS
    sdk_disabled: bool = False
    traces_sampler: str | None = None
    traces_sampler_arg: str | None = None
    id_generator: str | None = None
    span_delay_ms: int | None = 500
    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None
    service_flags: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    hmac_key: str | None = field(default=None, repr=False)
    baggage_hosts: frozenset[str] = frozenset()
    span_events: bool = False
    redact: bool = True
    redact_keys: tuple[str, ...] = ()
    redact_patterns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    redact_allow: frozenset[str] = frozenset()
    limits: Mapping[str, Limit] = field(default_factory=lambda: MappingProxyType({}))
    spool_dir: Path = Path("var/spool")
    spool_max_bytes: int = 256 * _MIB
    capture_warnings: bool = True
    capture_exceptions: bool = True
    collector: CollectorSettings = field(default_factory=CollectorSettings)
    retention: Retention = field(default_factory=Retention)
    loki: LokiTarget | None = None
    loki_headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    loki_timeout: float = LokiTarget.timeout
    roles: Mapping[str, Role] = field(default_factory=lambda: MappingProxyType({}))
    reason_always: bool = False
    telegram: TelegramSettings = field(default_factory=TelegramSettings)
    web: WebSettings = field(default_factory=WebSettings)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    file: Path | None = None
    reload: Callable[[], Settings] | None = field(default=None, compare=False, repr=False)

    @property
    def logs_exporter(self) -> bool:
        """Whether our own pipeline ships records over OTLP."""
        return "otlp" in self.logs_exporters

    @property
    def otlp_endpoint(self) -> str:
        """Where log records go, for messages: the URL of the collector without `/v1/logs`."""
        return self.otlp_logs.url.removesuffix("/v1/logs")

    @property
    def otlp_headers(self) -> Mapping[str, str]:
        """Headers of each request with log records."""
        return self.otlp_logs.headers

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, start: Path | None = None) -> Settings:
        """Reads the settings from the environment and config/jarvis.yaml.

        Args:
            environ: The environment; `os.environ` if None.
            start: Where the search for the project root begins; the working directory if None.
        """
        source = SettingsSource(environ, start)
        env = source.environ
        source.check_keys(_KEYS)
        flags = FlagSettings.from_source(source)
        logs_exporters = _exporters(source, "OTEL_LOGS_EXPORTER", ("otlp",))
        shipped = "otlp" in logs_exporters or "otlp_proto_http" in logs_exporters
        _check_attribute_limits(source)
        notes: list[str] = []
        values: dict[str, Any] = {
            "flags": flags,
            "log_dir": source.path("log_dir", "logs"),
            "service_name": _service_name(source),
            "level": LEVELS[source.choice("log_level", map(str.lower, LEVELS), "info").upper()],
            "levels": _levels(source),
            "console": source.choice("console", ("auto", "human", "json", "off"), "auto"),
            # over HTTP is what our own pipeline does anyway
            "logs_exporters": tuple("otlp" if name == "otlp_proto_http" else name for name in logs_exporters),
            "traces_exporters": _exporters(source, "OTEL_TRACES_EXPORTER", ("otlp",)),
            "metrics_exporters": _exporters(source, "OTEL_METRICS_EXPORTER", ()),
            "otlp_logs": read_target(source, "logs", notes if shipped else []),
            "otlp_traces": read_target(source, "traces", notes),
            "otlp_metrics": read_target(source, "metrics", notes),
            "sdk_disabled": _is_true(source, "OTEL_SDK_DISABLED"),
            "traces_sampler": _text(env, "OTEL_TRACES_SAMPLER"),
            "traces_sampler_arg": _text(env, "OTEL_TRACES_SAMPLER_ARG"),
            "id_generator": _text(env, "OTEL_PYTHON_ID_GENERATOR"),
            "span_delay_ms": None if _text(env, "OTEL_BSP_SCHEDULE_DELAY") else cls.span_delay_ms,
            "traceparent": _text(env, "TRACEPARENT"),
            "tracestate": _text(env, "TRACESTATE"),
            "baggage": _text(env, "BAGGAGE"),
            "service_flags": _service_flags(source),
            "hmac_key": source.text("hmac_key"),
            "baggage_hosts": frozenset(source.names("baggage_hosts")),
            "span_events": source.flag("span_events"),
            "redact": source.flag("redact", default=True),
            "redact_keys": _redact_keys(source),
            "redact_patterns": _redact_patterns(source),
            "redact_allow": frozenset(source.names("redact_allow")),
            "limits": _limits(source),
            "spool_dir": source.path("spool_dir", str(flags.state_dir / "spool")),
            "spool_max_bytes": size(source, "spool_max_bytes", cls.spool_max_bytes, _SPOOL_MIN, _SPOOL_MAX),
            "capture_warnings": source.flag("capture_warnings", default=True),
            "capture_exceptions": source.flag("capture_exceptions", default=True),
            **read_collector(source, flags.state_dir),
            **read_fronts(source),
        }
        if flags.environment and flags.resource_environment not in (None, flags.environment):
            notes.append(
                f"flags are evaluated in {flags.environment}, as JARVIS_ENVIRONMENT or the settings file says; records "
                f"say {flags.resource_environment}, as OTEL_RESOURCE_ATTRIBUTES does"
            )
        return cls(
            **values,
            file=source.file,
            reload=lambda: cls.load(environ, source.home),
            notes=tuple(dict.fromkeys(notes)),
            problems=tuple(dict.fromkeys(source.problems)),
        )


def _levels(source: SettingsSource) -> Mapping[str, int]:
    levels = {}
    for service, name in source.mapping("levels").items():
        if str(name).upper() in LEVELS:
            levels[str(service)] = LEVELS[str(name).upper()]
        else:
            source.problems.append(f"{source.file}: levels.{service}: got {name!r}, want one of {', '.join(LEVELS)}")
    return MappingProxyType(levels)


def _service_flags(source: SettingsSource) -> Mapping[str, tuple[str, ...]]:
    declared = {}
    for service, ids in source.mapping("service_flags").items():
        if isinstance(ids, list) and all(isinstance(item, str) for item in ids):
            declared[str(service)] = tuple(ids)
        else:
            source.problems.append(f"{source.file}: service_flags.{service}: got {ids!r}, want a list of flag ids")
    return MappingProxyType(declared)


def _service_name(source: SettingsSource) -> str | None:
    """Any variable beats the file; of OTEL_RESOURCE_ATTRIBUTES the last pair counts, as for the SDK."""
    env = source.environ
    named = _text(env, "OTEL_SERVICE_NAME") or _text(env, "JARVIS_SERVICE_NAME")
    pairs = [pair.partition("=") for pair in env.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")]
    detected = [unquote(value.strip()) for key, _, value in pairs if key.strip() == "service.name"]
    return named or (detected[-1] if detected else None) or source.text("service_name")


def _redact_keys(source: SettingsSource) -> tuple[str, ...]:
    names = source.names("redact_keys")
    if not names:
        return ()
    from jarvis_otel.redaction import compile_keys  # noqa: PLC0415 - few processes have patterns of their own

    _, place = source.raw("redact_keys") or (None, "")
    return tuple(name for name in names if _is_usable(source, place, compile_keys([name])[1]))


def _redact_patterns(source: SettingsSource) -> Mapping[str, str]:
    given = source.mapping("redact_patterns").items()
    if not given:
        return MappingProxyType({})
    from jarvis_otel.redaction import compile_patterns  # noqa: PLC0415 - few processes have patterns of their own

    place = f"{source.file}: redact_patterns"
    usable = {
        str(name): text
        for name, text in given
        if _is_usable(source, f"{place}.{name}", compile_patterns({str(name): text})[1])
    }
    return MappingProxyType(usable)


def _is_usable(source: SettingsSource, place: str, problems: list[str]) -> bool:
    """Tells what is wrong with a pattern, where somebody wrote it."""
    source.problems += [f"{place}: {problem.partition(': ')[2]}" for problem in problems]
    return not problems


def _limits(source: SettingsSource) -> Mapping[str, Limit]:
    given = source.mapping("limits")
    if not given:
        return MappingProxyType({})
    from jarvis_otel.limits import Limit  # noqa: PLC0415 - few processes have limits

    limits = {}
    for logger, value in given.items():
        try:
            limits[str(logger)] = Limit.parse(value, f"{source.file}: limits.{logger}")
        except ValueError as error:
            source.problems.append(str(error))
    return MappingProxyType(limits)


def _exporters(source: SettingsSource, variable: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """Names of exporters, the SDK's own in any case."""
    text = source.environ.get(variable, "")
    names = dict.fromkeys(part.strip() for part in text.split(",") if part.strip())
    names = dict.fromkeys(name.lower() if name.lower() in ("none", "otlp", "console") else name for name in names)
    if not names:
        return default
    if "none" in names and len(names) > 1:
        source.problems.append(f"{variable}: got {text!r}, want none alone, or names of exporters")
        return default
    return tuple(name for name in names if name != "none")


def _check_attribute_limits(source: SettingsSource) -> None:
    """Tells of limits that cannot be used; it is OpenTelemetry's SDK that keeps them, and it would only raise."""
    for signal in ("LOGRECORD_", ""):
        for what in ("COUNT", "VALUE_LENGTH"):
            text = source.environ.get(variable := f"OTEL_{signal}ATTRIBUTE_{what}_LIMIT", "").strip()
            if text and not text.isdecimal():
                source.problems.append(f"{variable}: got {text!r}, want a number from 0 up")


def _is_true(source: SettingsSource, variable: str) -> bool:
    text = source.environ.get(variable, "").strip()
    if text.lower() not in ("", "true", "false"):
        source.problems.append(f"{variable}: got {text!r}, want true or false")
    return text.lower() == "true"


def _text(env: Mapping[str, str], variable: str) -> str | None:
    return env.get(variable, "").strip() or None
