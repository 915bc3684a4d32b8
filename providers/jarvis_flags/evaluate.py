"""What a flag gives: the evaluation order, each flag compiled once per snapshot into a chain of functions.

Start reading at `compile_flag`: its steps are those that `explain` prints. Evaluating does no I/O, takes no lock, and
makes no object that could have been made beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol, cast

from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from jarvis_flags.buckets import bucket, in_below, seed, threshold
from jarvis_flags.conditions import reader
from jarvis_flags.jsonlogic import Frame, compile_logic
from jarvis_flags.model import FlagDefinition, FlagStatus, RolloutRule
from jarvis_flags.overrides import Override
from jarvis_flags.parse import Segment, compile_segment, pin_name
from jarvis_flags.request import CALLERS_DEFAULT, Request, result_name, targeting_key
from jarvis_flags.schedule import Schedule, parse_moment, parse_schedule

__all__ = [
    "CompiledFlag",
    "Evaluation",
    "Flag",
    "HeldFlag",
    "Inputs",
    "LapsingFlag",
    "Step",
    "broken_flag",
    "compile_flag",
    "read_pin",
    "unknown_flag",
]

_ON_WORDS = frozenset({"true", "1", "on"})
_OFF_WORDS = frozenset({"false", "0", "off"})


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a flag gave.

    Attributes:
        flag_id: The flag.
        value: Its value, or CALLERS_DEFAULT.
        variant: The variant's name, or None.
        reason: OpenFeature's reason.
        metadata: Flat facts about how it was decided; immutable.
        error_code: OpenFeature's error code, or None.
        error_message: What is wrong, for people.
        on: Whether it counts as on in `active_flags`.
        series: What it is counted under: the flag, the result's name (see `result_name`), the reason in lower case.
    """

    flag_id: str
    value: Any
    variant: str | None
    reason: Reason
    metadata: Mapping[str, bool | int | float | str]
    error_code: ErrorCode | None = None
    error_message: str | None = None
    on: bool = False
    series: tuple[str, str | None, str] = field(init=False)

    def __post_init__(self) -> None:
        name = result_name(self.variant, self.value, self.reason)
        object.__setattr__(self, "series", (self.flag_id, name, self.reason.value.lower()))


Decide = Callable[[Request], Evaluation | None]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the order.

    Attributes:
        number: Its place in the order, from 1 to 9; rules are 7.1, 7.2, …
        title: What is asked.
        decide: Gives the result, or None to go on; None itself where it cannot decide in this snapshot.
        why: What holds (of a step that decides for all alike), or why it cannot decide.
        always: Whether it decides for every request, so that nothing after it is ever asked.
    """

    number: str
    title: str
    decide: Decide | None
    why: str = ""
    always: bool = False


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a flag is compiled with, beside its definition.

    Attributes:
        segments: The named segments.
        pin: The value of its FF_ variable, or None.
        override: Its run-time override, or None.
        overrides_broken: The overrides cannot be trusted: dangerous flags are off.
        flag: Finds another compiled flag of the same snapshot, for prerequisites.
        metadata: What every result carries: flagSetId and version.
        clock: Unix seconds, for schedules and expiry.
    """

    segments: Mapping[str, Segment]
    pin: str | None
    override: Override | None
    overrides_broken: bool
    flag: Callable[[str], Flag | None]
    metadata: Mapping[str, bool | int | float | str]
    clock: Callable[[], float]


class Flag(Protocol):
    """A flag ready to be evaluated, see CompiledFlag."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The whole order, with the steps that cannot decide."""
        ...

    @property
    def constant(self) -> Evaluation | None:
        """The result, where it is the same for everyone in this snapshot."""
        ...

    def evaluate(self, request: Request) -> Evaluation:
        """What the flag gives for a request."""
        ...


class CompiledFlag:
    """A flag compiled for one snapshot.

    Attributes:
        steps: The whole order, with the steps that cannot decide.
        constant: The result, where it is the same for everyone in this snapshot.
        evaluate: What the flag gives for a request.
    """

    __slots__ = ("constant", "evaluate", "steps")

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self.steps = steps
        deciders = [step.decide for step in steps if step.decide is not None]
        first = next(step for step in steps if step.decide is not None)
        self.constant: Evaluation | None = deciders[0](Request(None, "")) if first.always else None
        self.evaluate: Callable[[Request], Evaluation] = _chain(deciders)


def _chain(deciders: Sequence[Decide]) -> Callable[[Request], Evaluation]:
    """What the first of some functions that decides gives; the last one always does. Most flags have two or three."""
    if len(deciders) == 1:
        return cast("Callable[[Request], Evaluation]", deciders[0])
    if len(deciders) == 2:
        a, b = deciders
        return lambda request: a(request) or b(request)  # type: ignore[return-value]
    a, b, *more = deciders
    rest = _chain(more)
    return lambda request: a(request) or b(request) or rest(request)


class LapsingFlag:
    """A flag under an override that lapses by itself: two compiled flags, and the time when the second takes over."""

    __slots__ = ("_after", "_clock", "_during", "_ends", "constant")

    def __init__(self, during: CompiledFlag, after: CompiledFlag, ends: float, clock: Callable[[], float]) -> None:
        self._during, self._after, self._ends, self._clock = during, after, ends, clock
        self.constant: Evaluation | None = None

    @property
    def _now(self) -> CompiledFlag:
        return self._during if self._clock() < self._ends else self._after

    @property
    def steps(self) -> tuple[Step, ...]:
        """The order as it stands now."""
        return self._now.steps

    def evaluate(self, request: Request) -> Evaluation:
        """What the flag gives for a request now."""
        return self._now.evaluate(request)


class HeldFlag:
    """A flag with `requires_restart`: what it gave when the process started holds, but off takes effect at once."""

    __slots__ = ("_now", "_started", "constant")

    def __init__(self, started: Flag, now: Flag) -> None:
        self._started, self._now = started, now
        self.constant: Evaluation | None = None

    @property
    def started(self) -> Flag:
        """The flag as the process found it."""
        return self._started

    @property
    def steps(self) -> tuple[Step, ...]:
        """The order as the process found it."""
        return self._started.steps

    def evaluate(self, request: Request) -> Evaluation:
        """What the flag gave at the start, unless it is off by now."""
        now = self._now.evaluate(request.afresh())
        return self._started.evaluate(request) if now.on else now


def read_pin(text: str, variants: Mapping[str, Any] | None) -> str | None:
    """What a pin's text means: `on`, `off`, a variant's name, or None where it cannot be read.

    Args:
        text: The value of the variable.
        variants: Those of the flag; None for a flag that is just on or off.
    """
    if variants is not None and text in variants:
        return text
    word = text.strip().lower()
    return "on" if word in _ON_WORDS else "off" if word in _OFF_WORDS else None


def unknown_flag(flag_id: str, metadata: Mapping[str, bool | int | float | str]) -> CompiledFlag:
    """A flag that no file defines: the caller's default."""
    result = Evaluation(
        flag_id,
        CALLERS_DEFAULT,
        None,
        Reason.ERROR,
        _frozen(metadata),
        ErrorCode.FLAG_NOT_FOUND,
        f"no flag {flag_id!r}",
    )
    return CompiledFlag((Step("9", "defined", lambda _: result, "no file defines it", always=True),))


def broken_flag(flag_id: str, problem: str, inputs: Inputs, *, dangerous: bool) -> CompiledFlag:
    """A flag that cannot be used and has no last good definition: off where dangerous, else the caller's default.

    A pin to off and a run-time override off hold for it as for any other.

    Args:
        flag_id: Its id.
        problem: What is wrong with it.
        inputs: The snapshot's part in it.
        dangerous: Whether it must be taken for dangerous.
    """
    pinned_off = inputs.pin is not None and read_pin(inputs.pin, None) != "on"
    killed = inputs.override is not None and inputs.override.state == "off"
    off = dangerous or pinned_off or killed
    result = Evaluation(
        flag_id,
        False if off else CALLERS_DEFAULT,
        "off" if off else None,
        Reason.ERROR,
        _frozen(inputs.metadata),
        ErrorCode.PARSE_ERROR,
        problem,
    )
    why = f"its definition cannot be used ({problem})"
    return CompiledFlag((Step("1", "definition", lambda _: result, why, always=True),))


def compile_flag(definition: FlagDefinition, inputs: Inputs) -> Flag:
    """Compiles a flag: the evaluation order of docs/reference/flag-file.md, step by step; as it is released it stays.

    Args:
        definition: A definition that was checked by `parse`.
        inputs: The snapshot's part in it.
    """
    override = inputs.override
    if override is not None and (ends := override.lapses) is not None:
        after = _compile(definition, replace(inputs, override=None))
        return LapsingFlag(_compile(definition, inputs), after, ends, inputs.clock)
    return _compile(definition, inputs)


def _compile(definition: FlagDefinition, inputs: Inputs) -> CompiledFlag:
    results = _Results(definition, inputs)
    steps = (
        _status(definition, inputs, results),
        _pin(definition, inputs, results, off=True),
        _kill_switch(definition, inputs, results),
        _prerequisites(definition, inputs, results),
        _pin(definition, inputs, results, off=False),
        _override(definition, inputs, results),
        *_rules(results),
        _environment_default(definition, results),
        _default(definition, results),
    )
    return CompiledFlag(steps)


class _Results:
    """Makes the results of one flag, each once."""

    def __init__(self, definition: FlagDefinition, inputs: Inputs) -> None:
        self.definition = definition
        self.inputs = inputs
        self.frame = Frame(definition.id, inputs.clock)
        self.typed = definition.variants is not None
        self.boolean = definition.value_type == "boolean"
        self.variants: Mapping[str, Any] = definition.variants or {"on": True, "off": False}
        self._metadata = {**definition.metadata, **inputs.metadata}
        self.dynamic = bool(definition.rules or definition.environment_defaults)

    def variant(self, name: str, reason: Reason, **metadata: bool | float | str) -> Evaluation:
        value = self.variants[name]
        on = value is True if self.boolean else True
        return Evaluation(
            self.definition.id, value, name, reason, metadata=_frozen({**self._metadata, **metadata}), on=on
        )

    def off(self, reason: Reason, **metadata: bool | float | str) -> Evaluation:
        """Off: False for a boolean flag; the caller's default, DISABLED, for a typed one."""
        frozen = _frozen({**self._metadata, **metadata})
        if not self.boolean:
            return Evaluation(self.definition.id, CALLERS_DEFAULT, None, Reason.DISABLED, metadata=frozen)
        name = next((name for name, value in self.variants.items() if value is False), None)
        return Evaluation(self.definition.id, False, name, reason, metadata=frozen)

    def on(self, reason: Reason, **metadata: bool | float | str) -> Evaluation:
        """On: True for a boolean flag, the default variant for a typed one."""
        name = self.definition.default
        if self.boolean:
            name = next((name for name, value in self.variants.items() if value is True), name)
        if name is None:
            return self.callers_default(**metadata)
        return self.variant(name, reason, **metadata)

    def default(self, reason: Reason, **metadata: bool | float | str) -> Evaluation:
        """Enabled and nothing else decided: the default variant, the caller's default without one, or on."""
        if not self.typed:
            return self.on(reason, **metadata)
        if self.definition.default is not None:
            return self.variant(self.definition.default, reason, **metadata)
        return self.callers_default(**metadata)

    def callers_default(self, **metadata: bool | float | str) -> Evaluation:
        """A flag with variants but without a default leaves the value to the caller."""
        frozen = _frozen({**self._metadata, **metadata})
        return Evaluation(self.definition.id, CALLERS_DEFAULT, None, Reason.DEFAULT, metadata=frozen)

    def failed(self, message: str) -> Evaluation:
        """An error of the evaluation itself: the caller's default, off for a dangerous flag."""
        result = self.off(Reason.ERROR) if self.definition.dangerous else self.callers_default()
        return replace(result, reason=Reason.ERROR, error_code=ErrorCode.GENERAL, error_message=message)


def _frozen(metadata: Mapping[str, bool | int | float | str]) -> Mapping[str, bool | int | float | str]:
    return MappingProxyType(dict(metadata))


def _status(definition: FlagDefinition, inputs: Inputs, results: _Results) -> Step:
    disabled = replace(results.off(Reason.DISABLED), variant=None)
    if definition.status is FlagStatus.DISABLED:
        return Step("1", "status", lambda _: disabled, "status is disabled", always=True)
    if definition.on_expiry == "disable" and definition.expires_at is not None:
        ends, clock = parse_moment(definition.expires_at), inputs.clock
        why = f"it expires at {definition.expires_at} (on_expiry: disable)"
        return Step("1", "status", lambda _: disabled if clock() >= ends else None, why)
    return Step("1", "status", None, f"status is {definition.status.value}")


def _pin(definition: FlagDefinition, inputs: Inputs, results: _Results, *, off: bool) -> Step:
    name = pin_name(definition.id)
    number, title = ("2", "pin to off") if off else ("5", "pin to on or a variant")
    if inputs.pin is None:
        return Step(number, title, None, f"{name} is not set")
    meaning = read_pin(inputs.pin, definition.variants)
    why = f"{name}={inputs.pin}" if meaning else f"{name}={inputs.pin!r} cannot be read, which counts as off"
    # a variant's name may be on or off too; a boolean False is off, whatever its variant is called
    if meaning is None or meaning == "off" or results.variants.get(meaning) is False:
        is_off, result = True, results.off(Reason.STATIC, override="env")
    elif meaning in results.variants:
        is_off, result = False, results.variant(meaning, Reason.STATIC, override="env")
    else:
        is_off, result = False, results.on(Reason.STATIC, override="env")
    if is_off != off:
        return Step(number, title, None, why)
    return Step(number, title, lambda _: result, why, always=True)


def _kill_switch(definition: FlagDefinition, inputs: Inputs, results: _Results) -> Step:
    title = "run-time override off"
    result = results.off(Reason.STATIC, override="runtime")
    if inputs.overrides_broken and definition.dangerous:
        why = "the run-time overrides cannot be read, so a dangerous flag is off"
        return Step("3", title, lambda _: result, why, always=True)
    override = inputs.override
    if override is None or override.state != "off":
        return Step("3", title, None, "there is no override off")
    why = f"turned off by {_author(override)}"
    return Step("3", title, lambda _: result, why, always=True)


def _prerequisites(definition: FlagDefinition, inputs: Inputs, results: _Results) -> Step:
    if not definition.requires:
        return Step("4", "prerequisites", None, "it requires no other flag")
    failed = [(other, results.off(Reason.DISABLED, prerequisite=other)) for other in definition.requires]
    find = inputs.flag

    def decide(request: Request) -> Evaluation | None:
        for other, result in failed:
            flag = find(other)
            if flag is None or not flag.evaluate(request.afresh()).on:
                return result
        return None

    return Step("4", "prerequisites", decide, f"it requires {', '.join(definition.requires)}")


def _override(definition: FlagDefinition, inputs: Inputs, results: _Results) -> Step:
    title = "run-time override on"
    override = inputs.override
    if override is None or override.state != "on":
        return Step("6", title, None, "there is no override on")
    if override.variant is not None and override.variant in results.variants:
        result = results.variant(override.variant, Reason.STATIC, override="runtime")
    elif override.percentage is not None:
        return Step("6", title, None, f"it is limited to {override.percentage:g} % at run time: see the rules")
    elif any(rule.type == "percentage" for rule in definition.rules):
        return Step("6", title, None, "turned on at run time, still limited by its percentage: see the rules")
    else:
        result = results.on(Reason.STATIC, override="runtime")
    return Step("6", title, lambda _: result, f"turned on by {_author(override)}", always=True)


def _author(override: Override) -> str:
    return f"{override.by or 'someone'} at {override.at or 'an unknown time'}: {override.reason or 'no reason'}"


def _rules(results: _Results) -> list[Step]:
    definition, inputs = results.definition, results.inputs
    rules = [(f"rules[{index}]", rule) for index, rule in enumerate(definition.rules)]
    rules.sort(key=lambda pair: -pair[1].priority)
    override = inputs.override
    runtime = override.percentage if override is not None and override.state == "on" else None
    if runtime is not None and not any(_is_plain_percentage(rule) for _, rule in rules):
        variant = None if results.boolean else definition.default
        rules.append(("rollout", RolloutRule(type="percentage", value=runtime, variant=variant)))
    steps = []
    for place, (name, rule) in enumerate(rules, 1):
        decide, why = _rule(name, rule, results, runtime)
        steps.append(Step(f"7.{place}", f"rule {rule.type}", _gated(rule, inputs, results.frame, decide), why))
    return steps or [Step("7", "rules", None, "it has no rules")]


def _is_plain_percentage(rule: RolloutRule) -> bool:
    return rule.type == "percentage" and not isinstance(rule.value, Mapping)


def _gated(rule: RolloutRule, inputs: Inputs, frame: Frame, decide: Decide) -> Decide:
    """The rule behind its `environments` and `segment`, which must hold as well."""
    if rule.environments is not None:
        allowed, inner = frozenset(rule.environments), decide
        decide = lambda request: inner(request) if request.environment in allowed else None  # noqa: E731
    if rule.segment is not None:
        holds, behind = compile_segment(rule.segment, inputs.segments, frame), decide
        decide = lambda request: behind(request) if holds(request) else None  # noqa: E731
    return decide


def _rule(name: str, rule: RolloutRule, results: _Results, runtime: float | None) -> tuple[Decide, str]:
    """The rule itself, and its words."""
    if rule.type == "jsonlogic":
        return _by_logic(name, rule, rule.value, results, Reason.TARGETING_MATCH), "JSONLogic names the variant"
    if rule.type == "percentage":
        return _percentage(name, rule, results, runtime)
    match = _served(rule, results, Reason.TARGETING_MATCH, rule=name)
    if rule.type == "user_ids":
        users = frozenset(rule.value)
        return lambda request: match if request.user in users else None, f"{len(users)} user ids"
    if rule.type == "environments":
        environments = frozenset(rule.value)
        words = f"environment is one of {', '.join(rule.value)}"
        return lambda request: match if request.environment in environments else None, words
    if rule.type == "user_segment":
        holds = compile_segment(rule.value, results.inputs.segments, results.frame)
        named = f"segment {rule.value}" if isinstance(rule.value, str) else "a segment of its own"
        return lambda request: match if holds(request) else None, named
    schedule, clock = parse_schedule(rule.value), results.inputs.clock
    if schedule.ramp is None:
        return lambda _: match if schedule.holds(clock()) else None, "a schedule"
    return _ramp(name, rule, schedule, results), "a schedule with a ramp"


def _served(rule: RolloutRule, results: _Results, reason: Reason, /, **metadata: bool | float | str) -> Evaluation:
    """What a match of the rule gives: its variant, `on` where none is named."""
    if rule.variant is not None:
        return results.variant(rule.variant, reason, **metadata)
    return results.variant("on", reason, **metadata) if "on" in results.variants else results.on(reason, **metadata)


def _keyed(rule: RolloutRule) -> Callable[[Request], str | None]:
    if rule.by is not None:
        read = reader(rule.by)
        return lambda request: targeting_key(read(request))
    return lambda request: request.user or request.request_id


def _by_logic(name: str, rule: RolloutRule, expression: Any, results: _Results, reason: Reason) -> Decide:
    """What the variant gives that an expression names; null goes on to the next rule."""
    logic, frame = compile_logic(expression, rule.hash), results.frame
    served = {variant: results.variant(variant, reason, rule=name) for variant in results.variants}

    def decide(request: Request) -> Evaluation | None:
        try:
            given = logic(frame.data(request))
            if given is None:
                return None
            variant = str(given).lower() if isinstance(given, bool) else str(given)
        except (ArithmeticError, RecursionError, TypeError, ValueError) as error:
            return results.failed(f"{name}: {type(error).__name__}: {error}")
        return served.get(variant) or results.failed(f"{name}: gave {variant[:80]!r}, which is no variant")

    return decide


def _flagd_split(name: str, rule: RolloutRule, results: _Results) -> Decide:
    """A split as flagd makes it: without a key nothing has been decided, so the default of the flag stays."""
    shares: list[Any] = [[variant, weight] for variant, weight in rule.value.items()]
    if rule.by is not None:
        shares.insert(0, rule.by if isinstance(rule.by, Mapping) else {"var": rule.by})
    split = _by_logic(name, rule, {"fractional": shares}, results, Reason.SPLIT)

    def decide(request: Request) -> Evaluation | None:
        result = split(request)
        if result is None:
            request.key_missing = True
        return result

    return decide


def _percentage(name: str, rule: RolloutRule, results: _Results, runtime: float | None) -> tuple[Decide, str]:
    if rule.hash is not None:
        words = ", ".join(f"{variant} {weight}" for variant, weight in rule.value.items())
        return _flagd_split(name, rule, results), f"split {words} ({rule.hash})"
    key_of, seed_bytes = _keyed(rule), seed(results.definition.id, rule.salt)
    if isinstance(rule.value, Mapping):
        return _split(name, rule, key_of, seed_bytes, results)
    percent = rule.value if runtime is None else runtime
    limit = threshold(percent)
    extra = {} if runtime is None else {"override": "runtime"}
    match = _served(rule, results, Reason.SPLIT, rule=name, **extra)
    # a percentage set at run time is final, one of the file leaves the rest to the next steps
    out = None if runtime is None else results.off(Reason.SPLIT, rule=name, override="runtime")
    keyless = None if runtime is None else results.off(Reason.SPLIT, rule=name, override="runtime", key_missing=True)
    words = f"{percent:g} % by {rule.by or 'user'}{' (set at run time)' if runtime is not None else ''}"

    if limit == 0 or limit == threshold(100):
        everyone = match if limit else None

        def decide_for_all(request: Request) -> Evaluation | None:
            if everyone is None:
                request.missed = True
                return out
            return everyone

        return decide_for_all, words

    is_in = in_below(seed_bytes, limit)
    by_user = rule.by is None

    def decide(request: Request) -> Evaluation | None:
        key = (request.user or request.request_id) if by_user else key_of(request)
        if key is None:
            request.missed = request.key_missing = True
            return keyless
        if is_in(key):
            return match
        request.missed = True
        return out

    return decide, words


def _split(
    name: str, rule: RolloutRule, key_of: Callable[[Request], str | None], seed_bytes: bytes, results: _Results
) -> tuple[Decide, str]:
    edges: list[tuple[int, Evaluation]] = []
    edge = 0
    for variant, weight in rule.value.items():
        edge += threshold(weight)
        edges.append((edge, results.variant(variant, Reason.SPLIT, rule=name)))

    def decide(request: Request) -> Evaluation | None:
        key = key_of(request)
        if key is None:
            request.missed = request.key_missing = True
            return None
        place = bucket(seed_bytes, key)
        return next(result for edge, result in edges if place < edge)

    return decide, "split " + ", ".join(f"{variant} {weight:g} %" for variant, weight in rule.value.items())


def _ramp(name: str, rule: RolloutRule, schedule: Schedule, results: _Results) -> Decide:
    key_of, seed_bytes, clock = _keyed(rule), seed(results.definition.id, rule.salt), results.inputs.clock
    match = _served(rule, results, Reason.SPLIT, rule=name)

    def decide(request: Request) -> Evaluation | None:
        now = clock()
        if not schedule.holds(now):
            return None
        limit = schedule.buckets(now)
        if limit == threshold(100):
            return match
        key = key_of(request)
        if key is not None and bucket(seed_bytes, key) < limit:
            return match
        request.missed = True
        request.key_missing = request.key_missing or (key is None and limit > 0)
        return None

    return decide


def _environment_default(definition: FlagDefinition, results: _Results) -> Step:
    title = "environment default"
    if not definition.environment_defaults:
        return Step("8", title, None, "it has no environment defaults")
    served: dict[str, tuple[Evaluation, Evaluation]] = {}
    for environment, value in definition.environment_defaults.items():
        with_key, without_key = (_environment_value(value, results, **extra) for extra in ({}, {"key_missing": True}))
        served[environment] = (with_key, without_key)

    def decide(request: Request) -> Evaluation | None:
        found = served.get(request.environment)
        return None if found is None else found[request.key_missing]

    listed = ", ".join(f"{name}: {_word(value)}" for name, value in definition.environment_defaults.items())
    return Step("8", title, decide, listed)


def _environment_value(value: bool | str, results: _Results, **metadata: bool) -> Evaluation:
    if isinstance(value, str):
        return results.variant(value, Reason.DEFAULT, **metadata)
    return results.default(Reason.DEFAULT, **metadata) if value else results.off(Reason.DEFAULT, **metadata)


def _word(value: bool | str) -> str:
    return value if isinstance(value, str) else "on" if value else "off"


def _default(definition: FlagDefinition, results: _Results) -> Step:
    reason = Reason.DEFAULT if results.dynamic else Reason.STATIC
    plain, keyless = (
        (results.default(reason, **extra) if definition.enabled else results.off(reason, **extra))
        for extra in ({}, {"key_missing": True})
    )
    missed, missed_keyless = plain, keyless
    if results.boolean:
        missed, missed_keyless = results.off(reason), results.off(reason, key_missing=True)

    def decide(request: Request) -> Evaluation:
        if request.missed:
            return missed_keyless if request.key_missing else missed
        return keyless if request.key_missing else plain

    why = f"enabled is {str(definition.enabled).lower()}"
    if definition.default is not None:
        why += f", default is {definition.default}"
    if definition.rules:
        why += "; outside a percentage it counts as off" if results.boolean else ""
    return Step("9", "default", decide, why, always=not results.dynamic)
