"""Feature flags out of YAML files for OpenFeature; usable alone."""

from jarvis_flags.model import EvaluationContext, FlagDefinition, FlagStatus, FlagType, RolloutRule
from jarvis_flags.provider import YamlFlagProvider

__all__ = ["EvaluationContext", "FlagDefinition", "FlagStatus", "FlagType", "RolloutRule", "YamlFlagProvider"]
