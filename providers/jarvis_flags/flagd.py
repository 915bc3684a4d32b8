"""flagd's flag definitions in and out (flagd.dev, schema v0). What cannot be carried over exactly is refused by name.

Targeting becomes rules: each `if` a rule behind its condition, each `fractional` a split with flagd's own hash. A
condition that one of our operators states exactly is written with it, any other stays JSONLogic: `{jsonlogic: …}`.
A variant that is computed makes a rule of type jsonlogic. Two limits: the targeting key is our user, so it may come
from elsewhere (an attribute `user_id`), and an empty one is none; flagSetId and version in metadata are our own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jarvis_flags.buckets import FLAGD_HASHES
from jarvis_flags.conditions import OWN_NAMES
from jarvis_flags.jsonlogic import WEIGHT_MAX, LogicError, compile_logic, operands, uses
from jarvis_flags.model import FlagDefinition, FlagStatus, RolloutRule
from jarvis_flags.parse import Segment, parse_flags
from jarvis_flags.tree import plain

__all__ = ["Exported", "Imported", "Refusal", "export_flagd", "import_flagd"]

SCHEMA = "https://flagd.dev/schema/v0/flags.json"
NODES_MAX = 20_000
GUARDS_MAX = 8
CONDITION_DEPTH_MAX = 8

_DOCUMENT = ("$schema", "$evaluators", "flags", "metadata")
_FLAG = ("state", "variants", "defaultVariant", "targeting", "metadata", "source", "selector")
_EVERYONE = {"jsonlogic": True}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A flag that was not carried over, or a part of the document.

    Attributes:
        flag_id: The flag; empty where it is no flag's.
        path: Where in the document, e.g. `flags.banner.targeting.if[0]`.
        reason: Why not.
    """

    flag_id: str
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


@dataclass(frozen=True, slots=True)
class Imported:
    """What came out of a flagd document.

    Attributes:
        document: A flag file of ours: version, segments, flags.
        refused: What was not carried over.
    """

    document: dict[str, Any]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class Exported:
    """What our flags are as a flagd document.

    Attributes:
        document: The document of flagd.
        refused: What was not carried over.
    """

    document: dict[str, Any]
    refused: tuple[Refusal, ...]


class _RefusedError(Exception):
    """What is read cannot be carried over."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason


def import_flagd(document: Any, hash_name: str = "flagd-v3") -> Imported:
    """A flag file of ours that gives every context the variant that flagd gives it.

    Args:
        document: flagd's document, as `load_tree` or a JSON reader gives it.
        hash_name: The hash of the flagd that serves it now: flagd-v3 (deterministic CBOR) or flagd-v2 (plain text).

    Raises:
        ValueError: The document is none of flagd's, or the hash is unknown.
    """
    if hash_name not in FLAGD_HASHES:
        raise ValueError(f"got the hash {hash_name!r}, want one of {', '.join(FLAGD_HASHES)}")
    document = plain(document)
    if not isinstance(document, Mapping) or not isinstance(document.get("flags"), Mapping):
        raise ValueError(  # noqa: TRY004 - a bad document is a bad value, whatever is wrong with it
            "want a mapping with `flags`, each under its key, as flagd writes them"
        )
    evaluators, shared = document.get("$evaluators", {}), document.get("metadata", {})
    for key, value in (("$evaluators", evaluators), ("metadata", shared)):
        if not isinstance(value, Mapping):
            raise ValueError(f"{key}: want a mapping")  # noqa: TRY004 - the same
    refused = [Refusal("", key, "no field of flagd's; not carried over") for key in document if key not in _DOCUMENT]
    flags: dict[str, Any] = {}
    segments: dict[str, Any] = {}
    for flag_id, flag in document["flags"].items():
        reading = _Reading(f"flags.{flag_id}", evaluators, hash_name)
        try:
            written = _flag(flag, shared, reading)
            _check(flag_id, written, reading.segments)
        except _RefusedError as error:
            refused.append(Refusal(flag_id, error.path, error.reason))
        else:
            flags[flag_id] = written
            segments |= reading.segments
    parts = {"version": "1.0", "segments": segments, "flags": flags}
    return Imported({key: value for key, value in parts.items() if value or key != "segments"}, tuple(refused))


def _flag(flag: Any, shared: Mapping[str, Any], reading: _Reading) -> dict[str, Any]:
    path = reading.path
    if not isinstance(flag, Mapping):
        raise _RefusedError(path, "want a mapping")
    for key in flag:
        if key not in _FLAG:
            raise _RefusedError(f"{path}.{key}", "no field of flagd's")
    if flag.get("state") not in ("ENABLED", "DISABLED"):
        raise _RefusedError(f"{path}.state", f"got {flag.get('state')!r}, want 'ENABLED' or 'DISABLED'")
    variants, metadata = flag.get("variants"), flag.get("metadata") or {}
    if not isinstance(variants, Mapping) or not variants:
        raise _RefusedError(f"{path}.variants", "want a mapping with at least one variant")
    if "" in variants:
        raise _RefusedError(f"{path}.variants", "a variant without a name cannot be served")
    if not isinstance(metadata, Mapping):
        raise _RefusedError(f"{path}.metadata", "want a mapping")
    written: dict[str, Any] = {}
    if flag["state"] == "DISABLED":
        written["status"] = "disabled"
    written["variants"] = dict(variants)
    default = flag.get("defaultVariant")
    if default not in (None, ""):
        written["default"] = reading.variant(default, variants, f"{path}.defaultVariant")
    targeting = flag.get("targeting")
    if targeting is not None and not isinstance(targeting, Mapping):
        raise _RefusedError(f"{path}.targeting", "want a mapping")
    if targeting and (rules := reading.rules(targeting, variants)):
        written["rules"] = rules
    if shared or metadata:
        written["metadata"] = {**shared, **metadata}
    return written


def _check(flag_id: str, written: Mapping[str, Any], segments: Mapping[str, Any]) -> None:
    """The flag must be one that our own reader takes; what is refused is said as that one says it."""
    read = parse_flags({"segments": segments, "flags": {flag_id: written}}, "")
    for problem in read.problems:
        raise _RefusedError(problem.path, problem.message)


@dataclass(slots=True)
class _Gate:
    """A condition: its tree, and the name of the segment that says the same, if it has one."""

    tree: Any
    name: str | None = None

    @property
    def negated(self) -> _Gate:
        inner = self.tree.get("not")
        return _Gate(inner if inner is not None else {"not": self.tree})


@dataclass(slots=True)
class _Reading:
    """One flag's targeting on its way to rules.

    Attributes:
        path: The flag's place in the document.
        evaluators: What `$ref` may name.
        hash_name: The hash of each `fractional`.
        segments: The evaluators that its rules name.
    """

    path: str
    evaluators: Mapping[str, Any]
    hash_name: str
    segments: dict[str, Any] = field(default_factory=dict)
    _rules: list[dict[str, Any]] = field(default_factory=list)
    _variants: Mapping[str, Any] = field(default_factory=dict)
    _nodes: int = 0
    _guards: int = 0

    def rules(self, targeting: Mapping[str, Any], variants: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rules that serve what the targeting names."""
        path = f"{self.path}.targeting"
        if len(targeting) != 1:
            raise _RefusedError(path, f"got {len(targeting)} operators, want one")
        self._variants = variants
        self._branch(targeting, (), path)
        if self._guards > GUARDS_MAX:
            # every rule would repeat the conditions of all before it
            self.segments.clear()
            return [self._computed(self.expanded(targeting, path))]
        return self._rules

    def variant(self, given: Any, variants: Mapping[str, Any], path: str) -> str:
        """The name of the variant that a constant stands for."""
        name = str(given).lower() if isinstance(given, bool) else str(given)
        if isinstance(given, list | Mapping) or name not in variants:
            raise _RefusedError(path, f"got {given!r}, want one of the variants {', '.join(variants)}")
        return name

    def expanded(self, expression: Any, path: str, within: tuple[str, ...] = ()) -> Any:
        """The expression with the evaluator in the place of each `$ref`."""
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise _RefusedError(path, f"more than {NODES_MAX} values when $ref is resolved")
        if isinstance(expression, list):
            return [self.expanded(item, f"{path}[{index}]", within) for index, item in enumerate(expression)]
        if not isinstance(expression, Mapping):
            return expression
        name = self._referred(expression, path)
        if name is None:
            return {key: self.expanded(value, f"{path}.{key}", within) for key, value in expression.items()}
        if name in within:
            raise _RefusedError(path, f"$ref in a circle: {' → '.join((*within, name))}")
        return self.expanded(self.evaluators[name], f"$evaluators.{name}", (*within, name))

    def _referred(self, expression: Any, path: str) -> str | None:
        if not isinstance(expression, Mapping) or set(expression) != {"$ref"}:
            return None
        name = expression["$ref"]
        if not isinstance(name, str) or name not in self.evaluators:
            known = ", ".join(self.evaluators) or "none"
            raise _RefusedError(path, f"got $ref {name!r}, want one of $evaluators ({known})")
        return name

    def _branch(self, expression: Any, guards: tuple[_Gate, ...], path: str) -> bool:
        """Adds the rules for what an expression names behind its guards; whether it always names one."""
        if self._referred(expression, path) is not None:
            expression = self.expanded(expression, path)
        if expression is None:
            return False
        if isinstance(expression, Mapping) and len(expression) == 1:
            name, given, place = operands(expression)
            if name in ("if", "?:"):
                return self._choice(given, guards, lambda index: path + place(index))
            expression = self.expanded(expression, path)
            self._compiles(expression, path)
            split = self._split(operands(expression)[1]) if name == "fractional" else None
            self._add(split or self._computed(expression), guards)
            return False
        variant = self.variant(expression, self._variants, path)
        self._add({"type": "user_segment", "value": _EVERYONE, "variant": variant}, guards)
        return True

    def _choice(self, given: list[Any], guards: tuple[_Gate, ...], place: Callable[[int], str]) -> bool:
        total = True
        for index in range(0, len(given) - 1, 2):
            gate = self._gate(given[index], place(index))
            if not self._branch(given[index + 1], (*guards, gate), place(index + 1)):
                # what names no variant here ends the search in flagd, so the rules that follow must pass it by
                guards = (*guards, gate.negated)
                total = False
        if len(given) % 2 == 0:
            return False
        return self._branch(given[-1], guards, place(len(given) - 1)) and total

    def _add(self, rule: dict[str, Any], guards: tuple[_Gate, ...]) -> None:
        self._guards = max(self._guards, len(guards))
        if guards:
            gate: Any = {"all": [guard.tree for guard in guards]}
            if len(guards) == 1:
                gate = guards[0].name or guards[0].tree
                if guards[0].name is not None:
                    self.segments[guards[0].name] = guards[0].tree
            rule["value" if rule["type"] == "user_segment" else "segment"] = gate
        self._rules.append(rule)

    def _split(self, given: list[Any]) -> dict[str, Any] | None:
        """A `fractional` over constants as a split; None where it has to be computed."""
        key: dict[str, Any] = {}
        if given and not isinstance(given[0], list):
            if not isinstance(given[0], Mapping) or len(given[0]) != 1:
                return None
            name, names, _ = operands(given[0])
            by = names[0] if name == "var" and len(names) == 1 and isinstance(names[0], str) else None
            key = {"by": by or given[0]}
            given = given[1:]
        weights: dict[str, int] = {}
        for share in given:
            variant, weight = (*share, 1)[:2] if isinstance(share, list) and len(share) in (1, 2) else (None, None)
            constant = isinstance(variant, str | bool) and isinstance(weight, int) and not isinstance(weight, bool)
            name = str(variant).lower() if isinstance(variant, bool) else variant
            if not constant or name in weights or name not in self._variants:
                return None
            weights[name] = max(0, weight)
        if not 0 < sum(weights.values()) <= WEIGHT_MAX:
            return None
        return {"type": "percentage", "value": weights, **key, "hash": self.hash_name}

    def _computed(self, expression: Any) -> dict[str, Any]:
        return {"type": "jsonlogic", "value": expression, **self._hashed(expression)}

    def _hashed(self, expression: Any) -> dict[str, str]:
        return {"hash": self.hash_name} if uses(expression, "fractional") else {}

    def _compiles(self, expression: Any, path: str) -> None:
        try:
            compile_logic(expression, self.hash_name)
        except LogicError as error:
            raise _RefusedError(path + error.path, str(error)) from None

    def _gate(self, condition: Any, path: str) -> _Gate:
        name = self._referred(condition, path)
        expression = self.expanded(condition, path)
        self._compiles(expression, path)
        tree = self._condition(expression)
        return _Gate(tree, name if _of_no_flag(expression) else None)

    def _condition(self, expression: Any, depth: int = 0) -> dict[str, Any]:
        """The condition in our own words where they say exactly the same, else as it is."""
        if isinstance(expression, Mapping) and len(expression) == 1 and depth < CONDITION_DEPTH_MAX:
            name, given, _ = operands(expression)
            if name in ("and", "or") and given:
                parts = [self._condition(part, depth + 1) for part in given]
                return parts[0] if len(parts) == 1 else {"all" if name == "and" else "any": parts}
            if name in ("!", "!!") and len(given) == 1:
                inner = self._condition(given[0], depth + 1)
                return {"not": inner} if name == "!" else inner
            if len(given) == 2 and (own := _own_condition(name, *given)) is not None:
                return own
        return {"jsonlogic": expression, **self._hashed(expression)}


def _of_no_flag(expression: Any) -> bool:
    """Whether a condition says the same in every flag: it hashes nothing, and cannot look into `$flagd`."""
    if isinstance(expression, list):
        return all(map(_of_no_flag, expression))
    if not isinstance(expression, Mapping):
        return True
    if "var" in expression:
        named = operands({"var": expression["var"]})[1][:1]
        if not named or not isinstance(named[0], str) or not named[0] or named[0].startswith("$flagd"):
            return False
    return "fractional" not in expression and all(map(_of_no_flag, expression.values()))


def _own_condition(name: str, first: Any, second: Any) -> dict[str, Any] | None:
    """A comparison in our own words, or None where none says the same for every value of the attribute."""
    attribute, literal = _attribute(first), second
    if attribute is None and name in ("===", "!==", "in"):
        attribute, literal = _attribute(second), first
        if name == "in":
            name = "contains"
    if attribute is None:
        return None
    if name == "in":
        texts = isinstance(literal, list) and literal and all(isinstance(item, str) for item in literal)
        return {"attribute": attribute, "op": "in", "value": literal} if texts else None
    op = {"===": "eq", "!==": "eq", "contains": "contains", "starts_with": "starts_with", "ends_with": "ends_with"}
    if name not in op or not isinstance(literal, str):
        return None
    condition = {"attribute": attribute, "op": op[name], "value": literal}
    return {"not": condition} if name == "!==" else condition


def _attribute(expression: Any) -> str | None:
    """The attribute that a `var` reads, where our conditions read the same under its name."""
    if not isinstance(expression, Mapping) or set(expression) != {"var"}:
        return None
    _, given, _ = operands(expression)
    name = given[0] if len(given) == 1 else None
    if not isinstance(name, str) or not name or "." in name or name in OWN_NAMES or name == "$flagd":
        return None
    return name


def export_flagd(
    definitions: Mapping[str, FlagDefinition], segments: Mapping[str, Segment], hash_name: str = "flagd-v3"
) -> Exported:
    """What our flags are as a flagd document: those that flagd gives every context the same variant of.

    Pins and run-time overrides are no part of it, and neither is what only people and the admin use (name, owner,
    dangerous, …).

    Args:
        definitions: The flags by id, e.g. those of a snapshot.
        segments: The named segments that their rules use.
        hash_name: The hash of the flagd that will serve it; flags hashed otherwise are refused.
    """
    flags: dict[str, Any] = {}
    refused = []
    for flag_id, definition in definitions.items():
        try:
            flags[flag_id] = _flagd_flag(definition, segments, hash_name)
        except _RefusedError as error:
            refused.append(Refusal(flag_id, f"flags.{flag_id}.{error.path}", error.reason))
    return Exported({"$schema": SCHEMA, "flags": flags}, tuple(refused))


def _flagd_flag(flag: FlagDefinition, segments: Mapping[str, Segment], hash_name: str) -> dict[str, Any]:
    for name, given in (
        ("requires", flag.requires),
        ("environment_defaults", flag.environment_defaults),
        ("on_expiry", flag.on_expiry == "disable" and flag.expires_at),
    ):
        if given:
            raise _RefusedError(name, "flagd has nothing like it")
    variants = plain(flag.variants) if flag.variants is not None else {"on": True, "off": False}
    default = flag.default if flag.variants is not None else "on"
    if not flag.enabled:
        # off: false where the flag is boolean, else the caller's default
        default = next((name for name, value in variants.items() if value is False), None)
        if default is None and flag.value_type == "boolean":
            raise _RefusedError("enabled", "got false, but no variant is false")
    disabled = flag.status is FlagStatus.DISABLED
    written: dict[str, Any] = {
        "state": "DISABLED" if disabled else "ENABLED",
        "variants": variants,
        "defaultVariant": default,
    }
    rules = sorted(enumerate(flag.rules), key=lambda pair: -pair[1].priority)
    if rules and not disabled:
        written["targeting"] = _targeting(rules, flag, segments, hash_name)
    if flag.metadata:
        written["metadata"] = dict(flag.metadata)
    return written


def _targeting(
    rules: list[tuple[int, RolloutRule]], flag: FlagDefinition, segments: Mapping[str, Segment], hash_name: str
) -> Any:
    branches: list[Any] = []
    for place, (index, rule) in enumerate(rules, 1):
        writing = _Writing(f"rules[{index}]", segments, hash_name)
        condition, value = writing.rule(rule, flag)
        if not isinstance(value, str) and place < len(rules):
            # a rule that names no variant goes on to the next one
            named = {"!==": [value, None]}
            condition = named if condition is None else {"and": [condition, named]}
        if condition is None:
            branches.append(value)
            break
        branches += [condition, value]
    if len(branches) > 1 or isinstance(branches[0], str):
        return {"if": branches}
    return branches[0]


@dataclass(frozen=True, slots=True)
class _Writing:
    """One rule of ours on its way to JSONLogic."""

    path: str
    segments: Mapping[str, Segment]
    hash_name: str

    def rule(self, rule: RolloutRule, flag: FlagDefinition) -> tuple[Any, Any]:
        """The condition (None: always) and what gives the variant."""
        if rule.environments is not None or rule.type in ("environments", "schedule"):
            raise _RefusedError(self.path, "flagd knows no environments and no schedules")
        gate = None if rule.segment is None else self._gate(rule.segment, "segment")
        if rule.type == "percentage":
            return gate, self._fractional(rule)
        if rule.type == "jsonlogic":
            self._same_hash(rule.hash, "hash")
            if not isinstance(rule.value, Mapping) or len(rule.value) != 1:
                raise _RefusedError(f"{self.path}.value", "flagd takes only an operator there")
            return gate, rule.value
        if rule.type == "user_ids":
            own: Any = {"in": [{"var": "targetingKey"}, list(rule.value)]}
        else:
            own = self._gate(rule.value, "value")
        parts = [part for part in (gate, own) if part is not None]
        both = {"and": parts} if len(parts) > 1 else parts[0] if parts else None
        return both, self._variant(rule, flag)

    def _variant(self, rule: RolloutRule, flag: FlagDefinition) -> str:
        named = rule.variant or ("on" if flag.variants is None or "on" in flag.variants else None)
        if named is None:
            raise _RefusedError(f"{self.path}.variant", "the rule names none")
        return named

    def _fractional(self, rule: RolloutRule) -> Any:
        if rule.hash is None:
            raise _RefusedError(f"{self.path}.value", "our own buckets (jv1) are not flagd's: users would be moved")
        self._same_hash(rule.hash, "hash")
        key = [] if rule.by is None else [rule.by if isinstance(rule.by, Mapping) else {"var": rule.by}]
        return {"fractional": [*key, *([variant, weight] for variant, weight in rule.value.items())]}

    def _same_hash(self, hash_name: str | None, place: str) -> None:
        if hash_name not in (None, self.hash_name):
            raise _RefusedError(f"{self.path}.{place}", f"got {hash_name}, but the export is for {self.hash_name}")

    def _gate(self, segment: Any, place: str) -> Any:
        tree = self.segments[segment].source if isinstance(segment, str) else segment
        return None if tree == _EVERYONE else self._condition(tree, f"{self.path}.{place}")

    def _condition(self, tree: Mapping[str, Any], path: str) -> Any:
        for word, operator in (("all", "and"), ("any", "or")):
            if word in tree:
                parts = [self._condition(part, f"{path}.{word}[{i}]") for i, part in enumerate(tree[word])]
                return {operator: parts}
        if "not" in tree:
            return {"!": [self._condition(tree["not"], f"{path}.not")]}
        if "jsonlogic" in tree:
            self._same_hash(tree.get("hash"), "segment")
            # null holds for nobody, but here None is said of a condition that everybody meets
            return False if tree["jsonlogic"] is None else tree["jsonlogic"]
        name, op, literal = tree["attribute"], tree["op"], tree.get("value")
        if name in OWN_NAMES or "." in name or name == "$flagd":
            raise _RefusedError(path, f"flagd would read the attribute {name!r} otherwise")
        var, present = {"var": name}, {"!==": [{"var": name}, None]}
        if op == "exists":
            return present if literal else {"!": [present]}
        texts = isinstance(literal, list) and all(isinstance(item, str) for item in literal)
        if (op in ("in", "not_in") and not texts) or (op not in ("in", "not_in") and not isinstance(literal, str)):
            raise _RefusedError(path, f"flagd would convert types to compare with {literal!r}")
        exact = {
            "eq": {"===": [var, literal]},
            "ne": {"and": [present, {"!==": [var, literal]}]},
            "in": {"in": [var, literal]},
            "not_in": {"and": [present, {"!": [{"in": [var, literal]}]}]},
            "contains": {"in": [literal, var]},
            "starts_with": {"starts_with": [var, literal]},
            "ends_with": {"ends_with": [var, literal]},
        }
        if op not in exact:
            raise _RefusedError(path, f"flagd has no operator that says exactly {op}")
        return exact[op]
