"""Everything that jarvis_otel reads from the environment and from config/jarvis.yaml, in one place."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jarvis_flags.settings import FLAG_KEYS, FlagSettings, SettingsSource

__all__ = ["LEVELS", "Settings"]

LEVELS: Mapping[str, int] = MappingProxyType(
    {name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")}
)

_KEYS = FLAG_KEYS | {
    "log_dir",
    "service_name",
    "log_level",
    "levels",
    "console",
    "service_flags",
    "hmac_key",
    "baggage_hosts",
    "span_events",
    "collector_host",
    "collector_port",
    "loki_url",
    "telegram_token",
    "telegram_token_file",
    "telegram_admins",
    "telegram_api_url",
    "flags_store",
    "etcd_endpoints",
}


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
        otlp_endpoint: Base URL of the collector, without a trailing slash.
        otlp_headers: Headers of each export request.
        otlp_timeout: Seconds that one export request may take.
        logs_exporter: Whether records are shipped over OTLP (OTEL_LOGS_EXPORTER is not `none`).
        traces_exporter: Whether spans are shipped over OTLP (OTEL_TRACES_EXPORTER is not `none`).
        sdk_disabled: OTEL_SDK_DISABLED: nothing is exported at all.
        service_flags: Ids of flags that a service's records list even where they were not evaluated.
        hmac_key: Key by which user ids are pseudonymised; None sends them as they are.
        baggage_hosts: Hosts beside loopback that may receive our baggage.
        span_events: Whether an evaluation is a span event too, beside the log event.
        collector_host: Address that `jarvis collector` binds.
        collector_port: TCP port of OTLP/HTTP; 0 takes a free one.
        problems: One line for each setting that could not be used; its default stands in for it.
    """

    flags: FlagSettings
    log_dir: Path
    service_name: str | None = None
    level: int = logging.INFO
    levels: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    console: str = "auto"
    otlp_endpoint: str = "http://127.0.0.1:4318"
    otlp_headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    otlp_timeout: float = 3.0
    logs_exporter: bool = True
    traces_exporter: bool = True
    sdk_disabled: bool = False
    service_flags: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    hmac_key: str | None = None
    baggage_hosts: frozenset[str] = frozenset()
    span_events: bool = False
    collector_host: str = "127.0.0.1"
    collector_port: int = 4318
    problems: tuple[str, ...] = ()

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
        values: dict[str, Any] = {
            "flags": FlagSettings.from_source(source),
            "log_dir": source.path("log_dir", "logs"),
            "service_name": env.get("OTEL_SERVICE_NAME") or source.text("service_name"),
            "level": LEVELS[source.choice("log_level", map(str.lower, LEVELS), "info").upper()],
            "levels": _levels(source),
            "console": source.choice("console", ("auto", "human", "json", "off"), "auto"),
            "otlp_endpoint": (env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or cls.otlp_endpoint).rstrip("/"),
            "otlp_headers": _headers(env.get("OTEL_EXPORTER_OTLP_HEADERS", "")),
            "otlp_timeout": _seconds(source, "OTEL_EXPORTER_OTLP_TIMEOUT", cls.otlp_timeout),
            "logs_exporter": env.get("OTEL_LOGS_EXPORTER", "").strip().lower() != "none",
            "traces_exporter": env.get("OTEL_TRACES_EXPORTER", "").strip().lower() != "none",
            "sdk_disabled": env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true",
            "service_flags": _service_flags(source),
            "hmac_key": source.text("hmac_key"),
            "baggage_hosts": frozenset(source.names("baggage_hosts")),
            "span_events": source.flag("span_events"),
            "collector_host": source.text("collector_host") or cls.collector_host,
            "collector_port": int(source.number("collector_port", cls.collector_port, 0, 65535)),
        }
        return cls(**values, problems=tuple(source.problems))


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


def _headers(text: str) -> Mapping[str, str]:
    pairs = (part.partition("=") for part in text.split(","))
    return MappingProxyType({key.strip().lower(): value.strip() for key, sep, value in pairs if sep and key.strip()})


def _seconds(source: SettingsSource, variable: str, default: float) -> float:
    text = source.environ.get(variable, "").strip()
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if 0 < seconds <= 600:
        return seconds
    source.problems.append(f"{variable}: got {text!r}, want seconds from 0 to 600")
    return default
