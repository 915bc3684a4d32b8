"""Feature flags out of YAML files for OpenFeature; usable alone.

Each name is imported from its own module when it is first used. PYTEST_DONT_REWRITE: there are no tests in here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jarvis_flags.model import EvaluationContext, FlagDefinition, FlagStatus, FlagType, RolloutRule
    from jarvis_flags.provider import YamlFlagProvider

__all__ = ["EvaluationContext", "FlagDefinition", "FlagStatus", "FlagType", "RolloutRule", "YamlFlagProvider"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "jarvis_flags.provider" if name == "YamlFlagProvider" else "jarvis_flags.model"
    value = globals()[name] = getattr(import_module(home), name)
    return value
