"""Feature flags and structured logs in one, on OpenFeature and OpenTelemetry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from openfeature.hook import Hook

import jarvis_flags
from jarvis_collector.record import LogEntry
from jarvis_flags import EvaluationContext, FlagDefinition, FlagStatus, FlagType, RolloutRule
from jarvis_otel.bootstrap import configure, configure_logging, get_flags
from jarvis_otel.context import LogContext
from jarvis_otel.flag_hook import EvaluationHook
from jarvis_otel.formatters import HumanFormatter, JSONFormatter
from jarvis_otel.logger import StructuredLogger, get_logger
from jarvis_otel.manager import FeatureFlagManager
from jarvis_otel.version import __version__

if TYPE_CHECKING:
    from jarvis_otel.query.log_query import LogQuery

__all__ = [
    "EvaluationContext",
    "FeatureFlagManager",
    "FlagDefinition",
    "FlagStatus",
    "FlagType",
    "HumanFormatter",
    "JSONFormatter",
    "LogContext",
    "LogEntry",
    "LogQuery",
    "RolloutRule",
    "StructuredLogger",
    "YamlFlagProvider",
    "__version__",
    "configure",
    "configure_logging",
    "flags",
    "get_flags",
    "get_logger",
    "is_enabled",
]

flags: FeatureFlagManager = get_flags()
"""The flags of this process; they are opened when they are first asked something."""

is_enabled = flags.is_enabled


class YamlFlagProvider(jarvis_flags.YamlFlagProvider):
    """The YAML provider with our evaluation hook: setting it is enough to mark the spans.

    Args:
        path: The flag file; None takes JARVIS_FLAGS_FILE or the project's config/flags.yaml.
        hooks: Further hooks that belong to the provider.
        options: As for `jarvis_flags.YamlFlagProvider`.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, hooks: Sequence[Hook] = (), **options: Any
    ) -> None:
        super().__init__(path, hooks=[*hooks, EvaluationHook()], **options)


def __getattr__(name: str) -> Any:
    if name == "LogQuery":  # the query engine is no part of what an application needs to start
        from jarvis_otel.query.log_query import LogQuery  # noqa: PLC0415

        return LogQuery
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
