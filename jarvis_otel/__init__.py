"""Feature flags and structured logs in one, on OpenFeature and OpenTelemetry.

Each name is imported from its own module when it is first used: the command line needs few of them.
PYTEST_DONT_REWRITE: there are no tests in here, and an application may have imported us before pytest starts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jarvis_otel.version import __version__

if TYPE_CHECKING:
    from jarvis_collector.record import LogEntry
    from jarvis_flags.model import EvaluationContext, FlagDefinition, FlagStatus, FlagType, RolloutRule
    from jarvis_otel.bootstrap import configure, configure_logging, get_flags
    from jarvis_otel.context import LogContext
    from jarvis_otel.formatters import HumanFormatter, JSONFormatter
    from jarvis_otel.logger import StructuredLogger, get_logger
    from jarvis_otel.manager import FeatureFlagManager
    from jarvis_otel.provider import YamlFlagProvider
    from jarvis_otel.query.log_query import LogQuery

    flags: FeatureFlagManager
    is_enabled = FeatureFlagManager().is_enabled

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

_HOMES = {
    "jarvis_collector.record": ("LogEntry",),
    "jarvis_flags.model": ("EvaluationContext", "FlagDefinition", "FlagStatus", "FlagType", "RolloutRule"),
    "jarvis_otel.bootstrap": ("configure", "configure_logging", "get_flags"),
    "jarvis_otel.context": ("LogContext",),
    "jarvis_otel.formatters": ("HumanFormatter", "JSONFormatter"),
    "jarvis_otel.logger": ("StructuredLogger", "get_logger"),
    "jarvis_otel.manager": ("FeatureFlagManager",),
    "jarvis_otel.provider": ("YamlFlagProvider",),
    "jarvis_otel.query.log_query": ("LogQuery",),
}


def __getattr__(name: str) -> Any:
    if name in ("flags", "is_enabled"):
        manager = import_module("jarvis_otel.bootstrap").get_flags()
        value = manager if name == "flags" else manager.is_enabled
    else:
        home = next((home for home, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(home), name)
    globals()[name] = value
    return value
