"""What a flag's override would be as text in the flag file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from jarvis_flags.model import FlagDefinition, FlagStatus, RolloutRule
from jarvis_flags.overrides import Override, OverrideSet
from jarvis_flags.request import Request
from jarvis_flags.snapshot import Snapshot

__all__ = ["promoted_fields"]

_SAMPLE_USERS = 2_000


def promoted_fields(snapshot: Snapshot, flag_id: str, override: Override) -> Mapping[str, Any]:
    """The fields of a flag that give without its override what they give with it now.

    Args:
        snapshot: All flags.
        flag_id: The flag, which has a definition.
        override: What was set at run time.

    Returns:
        New values as the flag file writes them; None takes a field away.

    Raises:
        ValueError: The file cannot say it: somebody would get something else.
    """
    old = snapshot.definitions[flag_id]
    new = _promoted(old, override, snapshot.environment)
    _same_for_all(snapshot, new, replace(override, expires_at=None))
    before, after = old.to_dict(), new.to_dict()
    return {name: after.get(name) for name in before | after if before.get(name) != after.get(name)}


def _promoted(old: FlagDefinition, override: Override, environment: str) -> FlagDefinition:
    new = replace(old, rules=[replace(rule) for rule in old.rules])
    if override.state == "off":
        new.status = FlagStatus.DISABLED
        return new
    new.status = FlagStatus.ACTIVE if old.status is FlagStatus.DISABLED else old.status
    if override.variant is not None:
        # one rule above all others says the same to everyone, and leaves them to be read
        top = max((rule.priority for rule in old.rules), default=0) + 1
        rule = RolloutRule("percentage", 100, priority=top, variant=override.variant)
        new.rules = [rule, *new.rules]
        return new
    if override.percentage is not None:
        limits = [rule for rule in new.rules if rule.type == "percentage" and not isinstance(rule.value, Mapping)]
        number = override.percentage
        value = int(number) if float(number).is_integer() else number
        if limits:
            max(limits, key=lambda rule: rule.priority).value = value
        else:
            new.rules = [*new.rules, RolloutRule("percentage", value)]
        if new.environment_defaults.get(environment) is True:
            new.environment_defaults = {**new.environment_defaults, environment: False}
        return new
    if environment in new.environment_defaults:
        new.environment_defaults = {**new.environment_defaults, environment: True}
    new.enabled = True
    return new


def _same_for_all(snapshot: Snapshot, new: FlagDefinition, override: Override) -> None:
    """Checks that a definition alone gives what the old one gives with the override.

    Raises:
        ValueError: It does not, and for whom.
    """
    flag_id = new.id
    others = {name: value for name, value in snapshot.overrides.overrides.items() if name != flag_id}
    revision = snapshot.overrides.revision
    now = replace(
        snapshot,
        overrides=OverrideSet(revision, MappingProxyType({**others, flag_id: override})),
        pins=MappingProxyType({}),
        held=MappingProxyType({}),
        _compiled={},
    )
    then = replace(
        now,
        definitions=MappingProxyType({**snapshot.definitions, flag_id: new}),
        overrides=OverrideSet(revision, MappingProxyType(others)),
        _compiled={},
    )
    users = [None, *_named_users(new), *(f"user{number}" for number in range(_SAMPLE_USERS))]
    for user in users:
        was, will = (one.evaluate(flag_id, Request(user, snapshot.environment)) for one in (now, then))
        if (was.on, was.value) != (will.on, will.value):
            who = "somebody without a name" if user is None else f"user {user!r}"
            raise ValueError(
                f"{flag_id} cannot be written into the file so that it stays as it is: {who} would turn "
                f"from {_shown(was.on, was.variant)} to {_shown(will.on, will.variant)}; edit its rules by hand"
            )


def _named_users(definition: FlagDefinition) -> list[str]:
    named: list[str] = []
    for rule in definition.rules:
        if rule.type == "user_ids":
            named += map(str, rule.value if isinstance(rule.value, list | tuple) else [rule.value])
    return named


def _shown(on: bool, variant: str | None) -> str:
    return variant if variant is not None else "on" if on else "off"
