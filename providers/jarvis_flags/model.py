"""What a flag is: definitions as users write them, in a file or in code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import Any, cast

__all__ = ["RULE_TYPES", "EvaluationContext", "FlagDefinition", "FlagStatus", "FlagType", "RolloutRule"]


class FlagType(StrEnum):
    """What decides a flag: its switch alone, or the kind of its first rule."""

    BOOLEAN = "boolean"
    PERCENTAGE = "percentage"
    USER_SEGMENT = "user_segment"
    ENVIRONMENT = "environment"
    SCHEDULE = "schedule"


class FlagStatus(StrEnum):
    """Where a flag is in its life."""

    ACTIVE = "active"
    DEPRECATED = "deprecated"
    DISABLED = "disabled"


RULE_TYPES: Mapping[str, FlagType] = MappingProxyType(
    {
        "percentage": FlagType.PERCENTAGE,
        "user_ids": FlagType.USER_SEGMENT,
        "user_segment": FlagType.USER_SEGMENT,
        "environments": FlagType.ENVIRONMENT,
        "schedule": FlagType.SCHEDULE,
        "jsonlogic": FlagType.USER_SEGMENT,
    }
)
"""The types of rules, and what each makes of a flag."""


@dataclass
class RolloutRule:
    """One rule of a flag.

    Attributes:
        type: percentage, user_ids, user_segment, environments, schedule or jsonlogic.
        value: A percentage (0 to 100) or weights by variant that total 100 (with `hash`: whole numbers of any total);
            a list of ids; a segment's name or a condition tree; a list of environments; a schedule; a JSONLogic
            expression that names the variant, or gives null to go on.
        priority: Higher is evaluated first; equal ones in the order of the file.
        variant: What a match gives; `on` if None.
        salt: Makes the cohort of a percentage independent of the flag's other ones.
        by: The attribute that a percentage hashes; the user if None. With `hash` also a JSONLogic expression.
        hash: flagd's hash for a split that comes from there (flagd-v3 or flagd-v2), `jv1` if None.
        segment: A segment that must hold as well.
        environments: Environments of which one must hold as well.
    """

    type: str
    value: Any
    priority: int = 0
    variant: str | None = None
    salt: str | None = None
    by: Any = None
    hash: str | None = None
    segment: Any = None
    environments: Sequence[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The rule as the file writes it, without what is at its default."""
        return _written(self)


@dataclass
class FlagDefinition:
    """A flag; only `id` is needed.

    Attributes:
        id: How code names it.
        name: How people call it.
        description: What it does.
        enabled: The global default; without `variants` it is off unless set.
        status: `disabled` is off whatever else is said; `deprecated` warns once a process.
        category: What it is listed under.
        owner: The team or person that answers for it.
        services: Services whose records list this flag even where it was not evaluated.
        rules: Evaluated by priority, then in their order.
        environment_defaults: True or False (or a variant's name) by environment.
        requires: Ids of flags that must be on for this one to be on.
        variants: Values by name, of one type; None makes it a boolean flag with `on` and `off`.
        default: The variant that is served where nothing else decides.
        created_at, updated_at: Text that is kept for people.
        expires_at: ISO date or time after which it should be gone.
        on_expiry: `alert` only tells; `disable` turns it off then.
        dangerous: Turning it on needs confirmation; broken means off.
        approvals: How many different people it takes to turn it on.
        metadata: Flat facts that every result of the flag carries.
        requires_restart: A process keeps the value that it started with, but off takes effect at once.
    """

    id: str
    name: str = ""
    description: str = ""
    enabled: bool = cast("bool", None)  # None only until __post_init__: off, but on for a flag with variants
    status: FlagStatus = FlagStatus.ACTIVE
    category: str = "general"
    owner: str = ""
    services: list[str] = field(default_factory=list)
    rules: list[RolloutRule] = field(default_factory=list)
    environment_defaults: Mapping[str, bool | str] = field(default_factory=dict)
    requires: list[str] = field(default_factory=list)
    variants: Mapping[str, Any] | None = None
    default: str | None = None
    created_at: str = ""
    updated_at: str = ""
    expires_at: str | None = None
    on_expiry: str = "alert"
    requires_restart: bool = False
    dangerous: bool = False
    approvals: int = 1
    metadata: Mapping[str, bool | int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.enabled is None:
            self.enabled = self.variants is not None
        self.status = FlagStatus(self.status)

    @property
    def type(self) -> FlagType:
        """What decides it: the kind of its first rule, or its switch alone."""
        if not self.rules:
            return FlagType.BOOLEAN
        return RULE_TYPES[max(self.rules, key=lambda rule: rule.priority).type]

    @property
    def value_type(self) -> str:
        """The OpenFeature type of its values: boolean, string, integer, float or object."""
        values = list(self.variants.values()) if self.variants else [True]
        for kind, name in ((bool, "boolean"), (str, "string"), (int, "integer"), (int | float, "float")):
            if all(isinstance(value, kind) and isinstance(value, bool) == (kind is bool) for value in values):
                return name
        return "object"

    @property
    def percentage(self) -> float | None:
        """The percentage of its first rule that has one, or None."""
        for rule in sorted(self.rules, key=lambda rule: -rule.priority):
            if rule.type == "percentage" and not isinstance(rule.value, Mapping):
                return float(rule.value)
        return None

    def to_dict(self) -> dict[str, Any]:
        """The definition as the file writes it under its id, without what is at its default."""
        written = _written(self, always=("enabled",))
        written.pop("id", None)
        written["status"] = self.status.value
        if self.status is FlagStatus.ACTIVE:
            del written["status"]
        if self.rules:
            written["rules"] = [rule.to_dict() for rule in self.rules]
        return written


@dataclass(frozen=True, slots=True)
class EvaluationContext:
    """For whom and where a flag is evaluated.

    Attributes:
        user_id: The user; also OpenFeature's targeting key.
        environment: dev, staging, prod, …; None takes the process's.
        request_id: What a percentage hashes where there is no user.
        attributes: Anything that segments ask about.
    """

    user_id: str | int | None = None
    environment: str | None = None
    request_id: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


def _written(thing: RolloutRule | FlagDefinition, always: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields that differ from their defaults, in their order; required ones and `always` too."""
    fresh = RolloutRule(type="", value=None) if isinstance(thing, RolloutRule) else FlagDefinition(id="")
    return {
        item.name: getattr(thing, item.name)
        for item in fields(thing)
        if item.name in always or getattr(thing, item.name) != getattr(fresh, item.name)
    }
