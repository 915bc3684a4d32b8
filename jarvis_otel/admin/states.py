"""Where each flag stands, in the words that all front ends use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from jarvis_flags.hints import did_you_mean
from jarvis_flags.model import FlagDefinition, RolloutRule
from jarvis_flags.overrides import Override
from jarvis_flags.parse import pin_name
from jarvis_flags.request import CALLERS_DEFAULT
from jarvis_flags.snapshot import Snapshot
from jarvis_flags.tree import plain
from jarvis_otel.admin.audit import AuditEntry

__all__ = [
    "FlagState",
    "announcement",
    "change_words",
    "flag_ids",
    "flag_state",
    "flag_states",
    "limit",
    "moment",
    "override_words",
    "rule_words",
    "state_version",
    "unknown_flag_words",
]

_OPERATORS = {
    "eq": "is",
    "ne": "is not",
    "in": "is one of",
    "not_in": "is none of",
    "contains": "contains",
    "starts_with": "starts with",
    "ends_with": "ends with",
    "matches": "matches",
    "gt": "is above",
    "ge": "is at least",
    "lt": "is below",
    "le": "is at most",
    "semver_eq": "is version",
    "semver_gt": "is a version after",
    "semver_ge": "is version or after",
    "semver_lt": "is a version before",
    "semver_le": "is at most version",
}


@dataclass(frozen=True, slots=True)
class FlagState:
    """A flag and where it stands.

    Attributes:
        flag: Its id.
        state: In a word or two: `on`, `off`, `25 %`, or the variant of a flag that has some.
        on: Whether it is on for somebody.
        value: What somebody without a name gets; None is the caller's default.
        variant: Its variant.
        reason: OpenFeature's reason for it.
        percentage: The percentage of users that it is limited to, if it is.
        override: What was set at run time.
        pin: What the environment of this process pins it to.
        problem: What is wrong with its definition.
        definition: Its definition, if there is one that can be used.
        dangerous: Turning it on needs confirmation.
        version: Changes whenever its definition or its override does: what a person looked at.
    """

    flag: str
    state: str
    on: bool
    value: Any
    variant: str | None
    reason: str
    percentage: float | None
    override: Override | None
    pin: str | None
    problem: str | None
    definition: FlagDefinition | None
    dangerous: bool
    version: str

    @property
    def toggles_off(self) -> bool:
        """Whether to toggle it turns it off: it is on for somebody, or may be, within its percentage."""
        limited = self.percentage is not None and (self.override is None or self.override.state != "off")
        return self.on or limited

    @property
    def is_guarded(self) -> bool:
        """Whether turning it on takes more than one person's word: it is dangerous, or takes approvals."""
        return self.dangerous or (self.definition is not None and self.definition.approvals > 1)

    @property
    def notes(self) -> list[str]:
        """What is to be said beside its state, each in a few words."""
        notes = ["dangerous"] if self.dangerous else []
        if self.override is not None:
            until = f" until {moment(self.override.expires_at)}" if self.override.expires_at is not None else ""
            notes.append(f"set {self.override.state} at run time by {self.override.by or 'someone'}{until}")
        if self.pin is not None:
            notes.append(f"pinned {pin_name(self.flag)}={self.pin}")
        if self.problem:
            notes.append("broken: see jarvis flags lint")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON has it."""
        return {
            "flag": self.flag,
            "state": self.state,
            "value": self.value,
            "variant": self.variant,
            "reason": self.reason,
            "percentage": self.percentage,
            "override": self.override and self.override.to_dict(),
            "pin": self.pin,
            "problem": self.problem,
            "version": self.version,
            **({"definition": self.definition.to_dict()} if self.definition is not None else {}),
        }


def flag_state(snapshot: Snapshot, flag_id: str) -> FlagState | None:
    """Where a flag stands, or None where there is none of that id.

    Args:
        snapshot: All flags.
        flag_id: The flag.
    """
    definition, bad = snapshot.definitions.get(flag_id), snapshot.bad.get(flag_id)
    if definition is None and bad is None:
        return None
    override = snapshot.overrides.overrides.get(flag_id)
    result = snapshot.evaluate(flag_id, snapshot.request())
    percentage = limit(snapshot, flag_id)
    state = "on" if result.on else "off"
    decided_for_all = "override" in result.metadata and "rule" not in result.metadata
    limited = percentage is not None and not decided_for_all and (not result.on or "rule" in result.metadata)
    if limited:
        state = f"{percentage:g} %"
    if definition is not None and definition.variants is not None and result.variant is not None:
        state = result.variant
    return FlagState(
        flag=flag_id,
        state=state,
        on=result.on or (limited and bool(percentage)),
        value=None if result.value is CALLERS_DEFAULT else result.value,
        variant=result.variant,
        reason=result.reason.value,
        percentage=percentage,
        override=override,
        pin=snapshot.pins.get(pin_name(flag_id)),
        problem=None if bad is None else bad.message,
        definition=definition,
        dangerous=(definition is not None and definition.dangerous) or (bad is not None and bad.dangerous),
        version=state_version(definition, override),
    )


def flag_states(snapshot: Snapshot) -> list[FlagState]:
    """All flags, in the file's order; those that cannot be used come last."""
    return [state for flag_id in flag_ids(snapshot) if (state := flag_state(snapshot, flag_id)) is not None]


def flag_ids(snapshot: Snapshot) -> list[str]:
    """The ids of all flags, in the file's order; those that cannot be used come last."""
    return list(dict.fromkeys((*snapshot.definitions, *snapshot.bad)))


def unknown_flag_words(snapshot: Snapshot, flag_id: str, otherwise: str = "") -> str:
    """What is said of an id that no flag has.

    Args:
        snapshot: All flags.
        flag_id: The id.
        otherwise: What follows where no flag's id is near it; else that one does.
    """
    return f"no flag {flag_id!r}{did_you_mean(flag_id, flag_ids(snapshot), otherwise)}"


def limit(snapshot: Snapshot, flag_id: str) -> float | None:
    """The percentage of users that a flag is limited to, or None."""
    override, definition = snapshot.overrides.overrides.get(flag_id), snapshot.definitions.get(flag_id)
    if override is not None and override.percentage is not None:
        return override.percentage
    return None if definition is None else definition.percentage


def state_version(definition: FlagDefinition | None, override: Override | None) -> str:
    """A short hash of all that people can change of a flag."""
    said = [definition and plain(definition.to_dict()), override and override.to_dict()]
    return hashlib.blake2b(orjson.dumps(said, option=orjson.OPT_SORT_KEYS, default=str), digest_size=6).hexdigest()


def rule_words(rule: RolloutRule) -> str:
    """A rule as a sentence."""
    value = plain(rule.value)
    match rule.type:
        case "percentage" if isinstance(value, Mapping):
            parts = ", ".join(f"{share:g} % get {name}" for name, share in value.items())
            words = f"{parts}{_by(rule)}"
        case "percentage":
            words = f"on for {value:g} % of users{_by(rule)}"
        case "user_ids":
            words = f"on for {_listed(value, 'user', 'users')}"
        case "environments":
            words = f"on in {_joined(value)}"
        case "schedule":
            words = f"on by the clock: {', '.join(f'{name} {part}' for name, part in value.items())}"
        case _:
            words = f"on for users {_condition_words(value)}"
    if rule.variant is not None:
        words = words.replace("on ", f"{rule.variant} ", 1) if words.startswith("on ") else f"{words} → {rule.variant}"
    if rule.segment is not None:
        words += f", only users {_condition_words(plain(rule.segment))}"
    if rule.environments is not None:
        words += f", only in {_joined(rule.environments)}"
    return words


def change_words(entry: AuditEntry) -> str:
    """What an entry of the audit says of the flag, in a few words."""
    if entry.action == "login":
        return f"{entry.outcome}; {entry.detail}" if entry.detail else entry.outcome
    if entry.outcome == "refused":
        return f"refused: {entry.detail}"
    if entry.outcome == "written":
        return _written_words(entry)
    words = f"{override_words(entry.old)} → {override_words(entry.new)}"
    if entry.outcome == "requested":
        return f"asked for: {words}"
    if entry.outcome == "approved":
        return f"approved: {words}"
    return f"{words} ({entry.detail})" if entry.detail else words


def override_words(values: Mapping[str, Any] | None) -> str:
    """An override in a word or two, as the audit has it; none means that the file decides."""
    if not values:
        return "file"
    if "variant" in values:
        return str(values["variant"])
    return f"{values['state']} {values['percentage']:g} %" if "percentage" in values else str(values["state"])


def announcement(entry: AuditEntry) -> tuple[str, str, str]:
    """How a change is told: in words, and what was before and after."""
    if entry.outcome == "written":
        old, new = ("" if values is None else _short(values) for values in (entry.old, entry.new))
        return change_words(entry), old, new
    old, new = (str(values["state"]) if values else "file" for values in (entry.old, entry.new))
    percentage = f" at {entry.new['percentage']:g} %" if entry.new and "percentage" in entry.new else ""
    return f"{old} → {new}{percentage}", old, new


def moment(unix: float) -> str:
    """A time for people, in UTC to the second."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _written_words(entry: AuditEntry) -> str:
    if entry.old is None:
        return "new in the flag file"
    if entry.new is None:
        return "gone from the flag file"
    names = dict.fromkeys((*entry.old, *entry.new))
    return ", ".join(f"{name}: {_short(entry.old.get(name))} → {_short(entry.new.get(name))}" for name in names)


def _short(value: Any) -> str:
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _by(rule: RolloutRule) -> str:
    return "" if rule.by is None else f" by {rule.by}"


def _joined(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, Sequence) and not isinstance(values, str) else str(values)


def _listed(values: Any, one: str, many: str) -> str:
    if isinstance(values, Sequence) and not isinstance(values, str):
        shown = ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
        return f"{one if len(values) == 1 else many} {shown}"
    return f"{one} {values}"


def _condition_words(condition: Any) -> str:
    """A condition tree, or a segment by its name, as the end of a sentence about users."""
    if isinstance(condition, str):
        return f"in segment {condition}"
    if not isinstance(condition, Mapping):
        return f"with {condition}"
    for key, word in (("all", " and "), ("any", " or ")):
        if key in condition:
            parts = [_condition_words(part) for part in condition[key]]
            return parts[0] if len(parts) == 1 else f"({word.join(parts)})"
    if "not" in condition:
        return f"not ({_condition_words(condition['not'])})"
    if "segment" in condition:
        return f"in segment {condition['segment']}"
    operator, value = condition.get("op"), condition.get("value")
    if operator == "exists":
        return f"whose {condition.get('attribute')} is {'not ' if value is False else ''}given"
    return f"whose {condition.get('attribute')} {_OPERATORS.get(str(operator), operator)} {_joined(value)}"
