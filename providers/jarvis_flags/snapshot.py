"""All flags at one moment: immutable, replaced whole, each flag compiled when it is first asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from jarvis_flags.evaluate import (
    Evaluation,
    Flag,
    HeldFlag,
    Inputs,
    broken_flag,
    compile_flag,
    unknown_flag,
)
from jarvis_flags.model import EvaluationContext, FlagDefinition, FlagStatus
from jarvis_flags.overrides import OverrideSet
from jarvis_flags.parse import FlagSet, Segment, pin_name
from jarvis_flags.place import Problem
from jarvis_flags.prerequisites import tangled
from jarvis_flags.request import Request, targeting_key
from jarvis_flags.schedule import parse_moment

__all__ = ["BadFlag", "ExplainedStep", "Snapshot", "build_snapshot", "changed_flags"]

_logger = logging.getLogger("jarvis_flags")


@dataclass(frozen=True, slots=True)
class BadFlag:
    """A flag whose definition in the file cannot be used.

    Attributes:
        dangerous: It must be taken for dangerous, so it is off.
        message: What is wrong.
        last_good: The last definition that could be used, if one is known.
    """

    dangerous: bool
    message: str
    last_good: FlagDefinition | None = None


@dataclass(frozen=True, slots=True)
class ExplainedStep:
    """One step of an evaluation, for people.

    Attributes:
        number: Its place in the order, see `evaluate.Step`.
        title: What was asked.
        outcome: `decides`, `goes on`, `does not apply` or `not reached`.
        why: The reason in words.
    """

    number: str
    title: str
    outcome: str
    why: str


@dataclass(frozen=True)
class Snapshot:
    """All flags at one moment.

    Attributes:
        definitions: The definitions in force, by id: those of the file, and last good ones of bad flags.
        bad: The flags whose definition in the file cannot be used.
        segments: The named segments.
        overrides: The run-time overrides.
        overrides_broken: Why the overrides cannot be trusted, or None.
        pins: FF_ variables by their name.
        environment: The environment of a context that names none.
        flag_set_id: What the flags are called in telemetry.
        version: A hash of everything that results follow from.
        problems: What is wrong with the files.
        local_file: The local file that lies over the flag file, if there is one.
        source_lost: The flag file is gone or cannot be opened; the flags are as they were.
        store: Whether the store of the overrides answers: `ready`, `stale` or `error` (see feeds.StoreState).
        loaded_at: Unix seconds.
        clock: Unix seconds, for schedules and lapsing overrides.
        held: What flags with `requires_restart` gave when the process started.
        warned: What the process was warned of, by flag; handed from snapshot to snapshot.
    """

    definitions: Mapping[str, FlagDefinition]
    bad: Mapping[str, BadFlag] = field(default_factory=lambda: MappingProxyType({}))
    segments: Mapping[str, Segment] = field(default_factory=lambda: MappingProxyType({}))
    overrides: OverrideSet = field(default_factory=OverrideSet)
    overrides_broken: str | None = None
    pins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    environment: str = "prod"
    flag_set_id: str = ""
    version: str = ""
    problems: tuple[Problem, ...] = ()
    local_file: str | None = None
    source_lost: bool = False
    store: str = "ready"
    loaded_at: float = 0.0
    clock: Callable[[], float] = time.time
    held: Mapping[str, Flag] = field(default_factory=dict)
    warned: set[tuple[str, str]] = field(default_factory=set)
    _compiled: dict[str, Flag] = field(default_factory=dict)

    def flag(self, flag_id: str) -> Flag | None:
        """The compiled flag of that id, or None where there is none."""
        flag = self._compiled.get(flag_id)
        if flag is None:
            flag = self._compile(flag_id)
            if flag is not None:
                # two threads may compile the same flag at once: either result serves
                self._compiled[flag_id] = flag
        return flag

    def evaluate(self, flag_id: str, request: Request) -> Evaluation:
        """What a flag gives for a request; FLAG_NOT_FOUND and the caller's default where there is none."""
        flag = self._compiled.get(flag_id) or self.flag(flag_id) or unknown_flag(flag_id, self.metadata)
        return flag.constant or flag.evaluate(request)

    def request(self, context: EvaluationContext | None = None, user_id: str | int | None = None) -> Request:
        """The question for an evaluation: the argument wins over the context.

        Args:
            context: For whom and where; None is nobody in the process's environment.
            user_id: The user.
        """
        # a user is text nearly always, and this runs for each evaluation
        if context is None:
            return Request(
                user_id if user_id.__class__ is str and user_id else targeting_key(user_id), self.environment
            )
        user = context.user_id if user_id is None else user_id
        if user.__class__ is not str or not user:
            user = targeting_key(user) or targeting_key(context.user_id)
        request_id = context.request_id
        return Request(
            user,
            context.environment or self.environment,
            request_id if request_id is None else targeting_key(request_id),
            context.attributes,
        )

    @property
    def metadata(self) -> Mapping[str, bool | int | float | str]:
        """What every result of this snapshot carries."""
        return {"flagSetId": self.flag_set_id, "version": self.version}

    @property
    def unmatched_pins(self) -> tuple[str, ...]:
        """FF_ variables that pin no flag."""
        names = {pin_name(flag_id) for flag_id in (*self.definitions, *self.bad)}
        return tuple(sorted(name for name in self.pins if name not in names))

    def explain(self, flag_id: str, request: Request) -> tuple[Evaluation, tuple[ExplainedStep, ...]]:
        """What a flag gives for a request, and every step on the way."""
        flag = self.flag(flag_id) or unknown_flag(flag_id, self.metadata)
        explained: list[ExplainedStep] = []
        result: Evaluation | None = None
        for step in flag.steps:
            if result is not None:
                outcome = "not reached"
            elif step.decide is None:
                outcome = "does not apply"
            else:
                result = step.decide(request)
                outcome = "goes on" if result is None else "decides"
            explained.append(ExplainedStep(step.number, step.title, outcome, step.why))
        final = self.evaluate(flag_id, request.afresh())
        if result is not None and final.value != result.value:
            why = "off since then, or held at what it was when the process started (requires_restart)"
            explained.append(ExplainedStep("10", "restart", "decides", why))
        return final, tuple(explained)

    def _is_expired(self, definition: FlagDefinition) -> bool:
        return definition.expires_at is not None and parse_moment(definition.expires_at) <= self.clock()

    def _warn(self, definition: FlagDefinition, what: str) -> None:
        """Warns of a flag that is in use, once a process."""
        if (definition.id, what) not in self.warned:
            self.warned.add((definition.id, what))
            _logger.warning(
                "flag %s %s%s", definition.id, what, f" (owner: {definition.owner})" if definition.owner else ""
            )

    def _compile(self, flag_id: str) -> Flag | None:
        definition, bad = self.definitions.get(flag_id), self.bad.get(flag_id)
        if definition is None and bad is None:
            return None
        metadata = dict(self.metadata)
        if bad is not None and definition is not None:
            metadata["lastGood"] = True
        if definition is not None and self._is_expired(definition):
            metadata["expired"] = True
            self._warn(definition, f"expired on {definition.expires_at}: remove it, or move the date")
        if definition is not None and definition.status is FlagStatus.DEPRECATED:
            self._warn(definition, "is deprecated: remove it from the code")
        inputs = Inputs(
            segments=self.segments,
            pin=self.pins.get(pin_name(flag_id)),
            override=self.overrides.overrides.get(flag_id),
            overrides_broken=self.overrides_broken is not None,
            flag=self.flag,
            metadata=metadata,
            clock=self.clock,
        )
        if definition is None:
            assert bad is not None
            return broken_flag(flag_id, bad.message, inputs, dangerous=bad.dangerous)
        flag = compile_flag(definition, inputs)
        held = self.held.get(flag_id)
        if held is not None and definition.requires_restart and definition.status is not FlagStatus.DISABLED:
            return HeldFlag(held, flag)
        return flag


def build_snapshot(
    flags: FlagSet,
    *,
    last_good: Mapping[str, FlagDefinition] | None = None,
    previous: Snapshot | None = None,
    **parts: Any,
) -> Snapshot:
    """Puts a snapshot together: bad flags keep their last good definition, unless they are dangerous.

    Args:
        flags: What the file says.
        last_good: Definitions that were good before, by id.
        previous: The snapshot that this one follows, for flags that keep the value they started with.
        parts: Further attributes of Snapshot.
    """
    definitions, bad = dict(flags.flags), {}
    messages: dict[str, str] = {}
    for problem in flags.problems:
        if problem.flag is not None:
            messages.setdefault(problem.flag, str(problem))
    for flag_id, looks_dangerous in flags.bad.items():
        good = (last_good or {}).get(flag_id)
        dangerous = looks_dangerous or (good is not None and good.dangerous)
        bad[flag_id] = BadFlag(dangerous, messages.get(flag_id, "cannot be used"), good)
        if good is not None and not dangerous:
            definitions[flag_id] = good
    if bad and tangled(definitions):
        # what was good last and what is good now, each right in itself, lead back to each other
        definitions = {
            flag_id: flag for flag_id, flag in definitions.items() if flag_id not in bad or not flag.requires
        }
    held: dict[str, Flag] = {}
    if previous is not None:
        for flag_id, definition in definitions.items():
            if definition.requires_restart:
                before = previous.flag(flag_id)
                if before is not None:
                    held[flag_id] = before.started if isinstance(before, HeldFlag) else before
    return Snapshot(
        definitions=MappingProxyType(definitions),
        bad=MappingProxyType(bad),
        segments=flags.segments,
        problems=flags.problems,
        held=MappingProxyType(held),
        warned=previous.warned if previous is not None else set(),
        **parts,
    )


def changed_flags(old: Snapshot, new: Snapshot) -> list[str]:
    """Ids of the flags that may give something else in the new snapshot, sorted."""
    everything = old.environment != new.environment or old.segments != new.segments
    changed = set()
    for flag_id in {*old.definitions, *new.definitions, *old.bad, *new.bad}:
        before, after = old.definitions.get(flag_id), new.definitions.get(flag_id)
        if (
            (before is not after and before != after)
            or old.bad.get(flag_id) != new.bad.get(flag_id)
            or old.overrides.overrides.get(flag_id) != new.overrides.overrides.get(flag_id)
        ) or (
            everything
            and flag_id in new.definitions
            and (new.definitions[flag_id].rules or new.definitions[flag_id].environment_defaults)
        ):
            changed.add(flag_id)
    if (old.overrides_broken is None) != (new.overrides_broken is None):
        changed.update(flag_id for flag_id, definition in new.definitions.items() if definition.dangerous)
    dependants = {flag_id: flag.requires for flag_id, flag in new.definitions.items() if flag.requires}
    while more := {flag_id for flag_id, requires in dependants.items() if not changed.isdisjoint(requires)} - changed:
        changed |= more
    return sorted(changed)
