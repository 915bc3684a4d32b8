"""From the tree of a flag file to definitions: what is wrong is said with file, line, path, got, wanted and cure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from jarvis_flags.buckets import FLAGD_HASHES, threshold
from jarvis_flags.conditions import OPERATORS, ConditionError, Predicate, all_of, any_of, compile_condition
from jarvis_flags.hints import did_you_mean
from jarvis_flags.jsonlogic import WEIGHT_MAX, Frame, Logic, LogicError, compile_logic, truthy
from jarvis_flags.model import RULE_TYPES, FlagDefinition, FlagStatus, RolloutRule
from jarvis_flags.place import Place, Problem, shown
from jarvis_flags.prerequisites import tangled
from jarvis_flags.schedule import ScheduleError, parse_moment, parse_schedule
from jarvis_flags.tree import NumberText, plain

__all__ = [
    "TOP_KEYS",
    "FlagSet",
    "Segment",
    "compile_segment",
    "parse_flag",
    "parse_flags",
    "parse_more",
    "pin_name",
]

FLAGS_MAX = 100_000
DEPTH_MAX = 20
_HINTS_MAX = 20
"""So many misspelt names of a file get their cure; to look for one among thousands takes a while."""

TOP_KEYS = ("$schema", "version", "environment", "segments", "flags")
"""What a flag file may hold."""

_FLAG = tuple(item.name for item in fields(FlagDefinition) if item.name != "id")
_RULE = tuple(item.name for item in fields(RolloutRule))
_INT_MAX = 2**53 - 1
_NO_FRAME = Frame()
_NOT_IN_NAMES = re.compile("[^A-Z0-9]")


@dataclass(frozen=True, slots=True)
class Segment:
    """A named segment: how it is written, and its function. Two that are written alike are equal."""

    source: Any
    holds: Predicate = field(compare=False)


@dataclass(frozen=True, slots=True)
class FlagSet:
    """What a flag file says.

    Attributes:
        flags: The definitions that can be used, by id, in the file's order.
        bad: Whether it must be taken for dangerous, by the id of each flag that cannot be used.
        segments: The named segments.
        environment: The file's own `environment`, if it has one.
        problems: All that is wrong, in the file's order.
    """

    flags: Mapping[str, FlagDefinition]
    bad: Mapping[str, bool]
    segments: Mapping[str, Segment]
    environment: str | None = None
    problems: tuple[Problem, ...] = ()


def pin_name(flag_id: str) -> str:
    """The environment variable that pins a flag: the id in upper case, other characters as `_`."""
    return "FF_" + _NOT_IN_NAMES.sub("_", flag_id.upper())


def parse_flags(tree: Any, file: str) -> FlagSet:
    """Reads a whole flag file; a flag with something wrong in it is left out, the others are not.

    Args:
        tree: What `load_tree` gave.
        file: The file's name in messages.
    """
    problems: list[Problem] = []
    root = Place(tree, "", getattr(tree, "line", 0), file, problems)
    if tree is None:
        return FlagSet({}, {}, {})
    if not root.mapping():
        return FlagSet({}, {}, {}, None, tuple(problems))
    root.known(TOP_KEYS)
    environment = root.at("environment").text() or None
    segments, bad_segments = _segments(root.at("segments"))
    flags: dict[str, FlagDefinition] = {}
    bad: dict[str, bool] = {}
    places: dict[str, Place] = {}
    listed = root.at("flags")
    if listed.value is not None and listed.mapping():
        if len(listed.value) > FLAGS_MAX:
            listed.wrong(f"got {len(listed.value)} flags, want at most {FLAGS_MAX}")
        for place in list(listed.each())[:FLAGS_MAX]:
            flag_id = place.key
            places[flag_id] = place
            definition = parse_flag(flag_id, place, segments, bad_segments)
            if definition is None:
                bad[flag_id] = _looks_dangerous(place.value)
            else:
                flags[flag_id] = definition
    for flag_id, why in tangled(flags).items():
        places[flag_id].at("requires").wrong(why)
        bad[flag_id] = flags.pop(flag_id).dangerous
        problems[-1] = replace(problems[-1], flag=flag_id)
    hints: dict[str, str] = {}
    for flag_id, flag in flags.items():
        for other in flag.requires:
            if other not in flags and other not in bad:
                if other not in hints and len(hints) < _HINTS_MAX:
                    hints[other] = did_you_mean(other, [*flags, *bad])
                hint = hints.get(other, "")
                # no reason to refuse the flag: a prerequisite that is not there is off, and so is what requires it
                places[flag_id].at("requires").wrong(f"unknown flag {other!r}, so {flag_id} is off{hint}")
    for first, second in _collisions([*flags, *bad]):
        places[second].wrong(f"its pin {pin_name(second)} is also that of {first}; rename one of them")
    return FlagSet(
        MappingProxyType(flags), MappingProxyType(bad), MappingProxyType(segments), environment, tuple(problems)
    )


def parse_more(
    base: FlagSet, before: Sequence[str], listed: Mapping[str, Any], after: Sequence[str], file: str
) -> FlagSet | None:
    """A flag set in which some flags are read anew and the others stay; None where anything is wrong.

    Args:
        base: The flag set, in which nothing is wrong.
        before, after: Ids of the flags that stay, before and after those that are read.
        listed: The flags to read, by id.
        file: The file's name in messages.
    """
    problems: list[Problem] = []
    flags = {flag_id: base.flags[flag_id] for flag_id in before}
    for place in Place(listed, "flags", 0, file, problems).each():
        definition = parse_flag(place.key, place, base.segments)
        if definition is not None:
            flags[place.key] = definition
    flags.update((flag_id, base.flags[flag_id]) for flag_id in after)
    unmet = any(other not in flags for flag in flags.values() for other in flag.requires)
    if problems or unmet or len(flags) > FLAGS_MAX or tangled(flags) or _collisions(list(flags)):
        return None
    return replace(base, flags=MappingProxyType(flags))


def parse_flag(
    flag_id: str,
    place: Place | Mapping[str, Any],
    segments: Mapping[str, Segment],
    bad_segments: frozenset[str] = frozenset(),
) -> FlagDefinition | None:
    """Reads one flag; None, and its problems in the place's list, where something is wrong in it.

    Args:
        flag_id: Its id.
        place: Its mapping in the document, or a plain mapping as `FlagDefinition.to_dict` writes it.
        segments: The named segments that its rules may use.
        bad_segments: Names of segments that exist but cannot be used.

    Raises:
        ValueError: A plain mapping was given and something is wrong in it.
    """
    if not isinstance(place, Place):
        found: list[Problem] = []
        definition = parse_flag(flag_id, Place(place, flag_id, 0, "", found), segments, bad_segments)
        if definition is None:
            raise ValueError("; ".join(f"{problem.path}: {problem.message}" for problem in found))
        return definition
    before = len(place.problems)
    definition = _flag(flag_id, place, segments, bad_segments)
    for index in range(before, len(place.problems)):
        place.problems[index] = replace(place.problems[index], flag=flag_id)
    return definition if len(place.problems) == before else None


def _flag(
    flag_id: str, place: Place, segments: Mapping[str, Segment], bad_segments: frozenset[str]
) -> FlagDefinition | None:
    if not flag_id or len(flag_id) > 200 or not flag_id.isprintable():
        place.wrong(f"got the id {shown(flag_id)}, want 1 to 200 printable characters")
    if not place.mapping():
        return None
    place.known(_FLAG)
    variants = _variants(place.at("variants"))
    default = place.at("default")
    if default.value is not None and variants is not None and default.value not in tuple(variants):
        default.choice(tuple(variants))
    elif default.value is not None and variants is None:
        default.wrong("needs `variants`; a flag that is just on or off has `enabled`")
    names = tuple(variants) if variants is not None else ("on", "off")
    expires = place.at("expires_at")
    if expires.value is not None:
        try:
            parse_moment(expires.value)
        except (ValueError, OverflowError) as error:
            expires.wrong(str(error))
    status, on_expiry = place.at("status"), place.at("on_expiry")
    return FlagDefinition(
        id=flag_id,
        name=place.at("name").text(),
        description=place.at("description").text(),
        enabled=place.at("enabled").boolean(default=variants is not None),
        status=FlagStatus((status.value is not None and status.choice(tuple(FlagStatus))) or "active"),
        category=place.at("category").text("general"),
        owner=place.at("owner").text(),
        services=place.at("services").texts(),
        rules=_rules(place.at("rules"), names, segments, bad_segments),
        environment_defaults=_environment_defaults(place.at("environment_defaults"), names, typed=variants is not None),
        requires=place.at("requires").texts(),
        variants=variants,
        default=default.value if variants is not None else None,
        created_at=place.at("created_at").text(),
        updated_at=place.at("updated_at").text(),
        expires_at=expires.value,
        on_expiry=(on_expiry.value is not None and on_expiry.choice(("alert", "disable"))) or "alert",
        requires_restart=place.at("requires_restart").boolean(),
        dangerous=place.at("dangerous").boolean(),
        approvals=place.at("approvals").whole(1, 1, 10),
        metadata=_metadata(place.at("metadata")),
    )


def _variants(place: Place) -> Mapping[str, Any] | None:
    if place.value is None:
        return None
    if not place.mapping():
        return {}
    if not place.value:
        place.wrong("got no variant, want at least one")
    kinds = set()
    for variant in place.each():
        value = variant.value
        if value is None:
            variant.wrong("got nothing, want a value")
        elif isinstance(value, float) and not abs(value) <= float("1e308"):
            variant.wrong(f"got {shown(value)}, want a finite number")
        elif isinstance(value, int) and abs(value) > _INT_MAX:
            variant.wrong(f"got {value}, want a whole number within ±(2^53-1); write it as text")
        kinds.add(_kind(value))
    if len(kinds) > 1 and kinds != {"integer", "float"}:
        place.wrong(f"got values of types {', '.join(sorted(kinds))}, want one type")
    values = {name: plain(value) for name, value in place.value.items()}
    if kinds == {"integer", "float"}:
        values = {name: float(value) for name, value in values.items()}
    return MappingProxyType(values)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int):
        return "integer"
    return "float" if isinstance(value, float) else "object"


def _metadata(place: Place) -> Mapping[str, bool | int | float | str]:
    if place.value is None or not place.mapping():
        return {}
    for entry in place.each():
        if not isinstance(entry.value, bool | int | float | str):
            entry.wrong(f"got {shown(entry.value)}, want text, a number, true or false")
    return MappingProxyType(plain(place.value))


def _environment_defaults(place: Place, names: tuple[str, ...], *, typed: bool) -> Mapping[str, bool | str]:
    if place.value is None or not place.mapping():
        return {}
    for entry in place.each():
        if not isinstance(entry.value, bool) and not (typed and entry.value in names):
            wanted = f"true, false or one of {', '.join(names)}" if typed else "true or false"
            entry.wrong(f"got {shown(entry.value)}, want {wanted}")
    return MappingProxyType(dict(place.value))


def _rules(
    place: Place,
    variants: tuple[str, ...],
    segments: Mapping[str, Segment],
    bad_segments: frozenset[str],
) -> list[RolloutRule]:
    if place.value is None:
        return []
    if not isinstance(place.value, list):
        place.wrong(f"got {shown(place.value)}, want a list of rules")
        return []
    rules = []
    for rule in place.each():
        if rule.mapping():
            rule.known(_RULE)
            rules.append(_rule(rule, variants, segments, bad_segments))
    return rules


def _rule(
    place: Place,
    variants: tuple[str, ...],
    segments: Mapping[str, Segment],
    bad_segments: frozenset[str],
) -> RolloutRule:
    kind = place.at("type").choice(tuple(RULE_TYPES))
    value = place.at("value")
    taken: Any = value.value
    hash_name = place.at("hash")
    split = kind == "percentage" and isinstance(taken, Mapping)
    names_itself = split or kind == "jsonlogic"
    if hash_name.value is not None:
        hash_name.choice(FLAGD_HASHES)
        if not names_itself:
            hash_name.wrong("only a split over variants and jsonlogic have it")
    if kind == "percentage":
        taken = _split(value, variants, flagd=hash_name.value is not None) if split else _percentage(value)
    elif kind in ("user_ids", "environments"):
        if value.value is None:
            value.wrong("got nothing, want a list")
        taken = value.texts()
    elif kind == "user_segment":
        taken = _condition_tree(value.value)
        _segment(value, segments, bad_segments)
    elif kind == "schedule":
        taken = plain(value.value)
        try:
            parse_schedule(taken)
        except ScheduleError as error:
            value.problems.append(Problem(value.file, value.line, f"{value.path}.{error.key}".rstrip("."), str(error)))
    elif kind == "jsonlogic":
        taken = plain(value.value)
        _logic(value, hash_name.value)
    variant = place.at("variant")
    if variant.value is not None:
        if names_itself:
            variant.wrong(f"a {'split' if split else 'jsonlogic rule'} names its variants itself")
        elif variant.value not in variants:
            variant.choice(variants)
    elif kind is not None and not names_itself and "on" not in variants:
        place.at("variant").wrong(f"got nothing, want one of {', '.join(variants)}")
    salt, by = place.at("salt"), place.at("by")
    for key in (salt, by):
        if key.value is not None and kind not in ("percentage", "schedule"):
            key.wrong("only a percentage has it")
    if "\0" in salt.text():
        salt.wrong("must not hold a NUL")
    if salt.value is not None and hash_name.value is not None:
        salt.wrong("flagd's hashes have none; write it into `by`")
    expression = hash_name.value is not None and isinstance(by.value, Mapping)
    if expression:
        _logic(by, hash_name.value)
    gate = place.at("segment")
    if gate.value is not None:
        _segment(gate, segments, bad_segments)
    environments = place.at("environments")
    return RolloutRule(
        type=kind or "",
        value=taken,
        priority=place.at("priority").whole(0, -1_000_000, 1_000_000),
        variant=variant.value,
        salt=salt.text() or None,
        by=plain(by.value) if expression else by.text() or None,
        hash=hash_name.value,
        segment=_condition_tree(gate.value),
        environments=None if environments.value is None else environments.texts(),
    )


def _percentage(place: Place) -> float:
    value = place.value
    if isinstance(value, bool) or not isinstance(value, int | float):
        place.wrong(f"got {shown(value)}, want a number from 0 to 100, or weights by variant")
        return 0
    try:
        threshold(value)
    except ValueError as error:
        place.wrong(str(error))
        return 0
    return float(value) if isinstance(value, float) else value


def _logic(place: Place, hash_name: str | None) -> Logic | None:
    try:
        return compile_logic(plain(place.value), hash_name if hash_name in FLAGD_HASHES else None)
    except LogicError as error:
        place.problems.append(Problem(place.file, place.line, place.path + error.path, str(error)))
        return None


def _split(place: Place, variants: tuple[str, ...], *, flagd: bool) -> Mapping[str, float]:
    weights = {}
    for weight in place.each():
        name = weight.key
        if name not in variants:
            weight.wrong(f"unknown variant {name!r}, want one of {', '.join(variants)}")
        if flagd and weight.value is None:
            weight.wrong("got nothing, want a whole number")
        weights[name] = weight.whole(0, 0, WEIGHT_MAX) if flagd else _percentage(weight)
    if flagd:
        if not 0 < sum(weights.values()) <= WEIGHT_MAX:
            place.wrong(f"got weights that total {sum(weights.values())}, want 1 to {WEIGHT_MAX}")
        return MappingProxyType(weights)
    total = sum(round(weight * 1000) for weight in weights.values())
    if total != 100_000:
        place.wrong(f"got weights that total {total / 1000:g}, want exactly 100")
    return MappingProxyType(weights)


def _segments(place: Place) -> tuple[dict[str, Segment], frozenset[str]]:
    segments: dict[str, Segment] = {}
    bad = set()
    if place.value is not None and place.mapping():
        for segment in place.each():
            name = segment.key
            before = len(segment.problems)
            predicate = _condition(segment, 0)
            if predicate is None or len(segment.problems) > before:
                bad.add(name)
            else:
                segments[name] = Segment(_condition_tree(segment.value), predicate)
    return segments, frozenset(bad)


def _condition_tree(tree: Any) -> Any:
    """A condition tree as plain values; a version that YAML took for a number stays as it was written."""
    if isinstance(tree, Mapping):
        plain_tree = {key: _condition_tree(value) for key, value in tree.items()}
        if str(tree.get("op")).startswith("semver_") and isinstance(tree.get("value"), NumberText):
            plain_tree["value"] = tree["value"].text
        return plain_tree
    return [_condition_tree(item) for item in tree] if isinstance(tree, list) else plain(tree)


def _segment(
    place: Place, segments: Mapping[str, Segment], bad: frozenset[str], frame: Frame = _NO_FRAME
) -> Predicate | None:
    """A segment by its name, or a condition tree in place."""
    if not isinstance(place.value, str):
        return _condition(place, 0, frame)
    if place.value in segments:
        return segments[place.value].holds
    if place.value in bad:
        place.wrong(f"the segment {place.value!r} cannot be used: see its own errors")
        return None
    hint = "; define it under `segments:`"
    if len(place.problems) < _HINTS_MAX:
        hint = did_you_mean(place.value, [*segments, *bad], hint)
    place.wrong(f"unknown segment {shown(place.value)}{hint}")
    return None


def compile_segment(value: Any, segments: Mapping[str, Segment], frame: Frame = _NO_FRAME) -> Predicate:
    """A segment of a definition that was checked: the named one, or the condition tree as a function.

    Args:
        value: The segment's name, or a condition tree.
        segments: The named segments.
        frame: What JSONLogic in the tree finds as `$flagd`.
    """
    predicate = _segment(Place(value, "", 0, "", []), segments, frozenset(), frame)
    assert predicate is not None, "the definition was checked when it was loaded"
    return predicate


def _condition(place: Place, depth: int, frame: Frame = _NO_FRAME) -> Predicate | None:
    if depth > DEPTH_MAX:
        place.wrong(f"nested deeper than {DEPTH_MAX}")
        return None
    if not place.mapping():
        return None
    value = place.value
    for word, combine in (("all", all_of), ("any", any_of)):
        if word in value:
            place.known((word,))
            return _combined(place.at(word), combine, depth, frame)
    if "not" in value:
        place.known(("not",))
        inner = _condition(place.at("not"), depth + 1, frame)
        return None if inner is None else lambda asked: not inner(asked)
    if "jsonlogic" in value:
        return _logic_condition(place, frame)
    place.known(("attribute", "op", "value"))
    attribute, operator = place.at("attribute"), place.at("op")
    if not isinstance(attribute.value, str) or not attribute.value:
        attribute.wrong(f"got {shown(attribute.value)}, want an attribute's name (or all, any, not, jsonlogic)")
        return None
    if operator.choice(tuple(OPERATORS)) is None:
        return None
    literal = place.at("value")
    try:
        return compile_condition(attribute.value, operator.value, literal.value)
    except ConditionError as error:
        literal.wrong(str(error))
        return None


def _logic_condition(place: Place, frame: Frame) -> Predicate | None:
    place.known(("jsonlogic", "hash"))
    hash_name = place.at("hash")
    if hash_name.value is not None:
        hash_name.choice(FLAGD_HASHES)
    logic = _logic(place.at("jsonlogic"), hash_name.value)
    if logic is None:
        return None
    if not isinstance(place.value["jsonlogic"], Mapping | list):
        constant = truthy(place.value["jsonlogic"])
        return lambda _: constant

    def holds(asked: Any) -> bool:
        try:
            return truthy(logic(frame.data(asked)))
        except (ArithmeticError, RecursionError, TypeError, ValueError):  # as of any condition: it does not hold
            return False

    return holds


def _combined(
    place: Place, combine: Callable[[Sequence[Predicate]], Predicate], depth: int, frame: Frame
) -> Predicate | None:
    if not isinstance(place.value, list) or not place.value:
        place.wrong(f"got {shown(place.value)}, want a list of conditions")
        return None
    parts = [_condition(part, depth + 1, frame) for part in place.each()]
    if any(part is None for part in parts):
        return None
    return combine([part for part in parts if part is not None])


def _looks_dangerous(value: Any) -> bool:
    """Whether a flag that cannot be read must be taken for dangerous: unless it plainly says that it is not."""
    if not isinstance(value, Mapping):
        return False
    return value.get("dangerous", False) is not False


def _collisions(flag_ids: list[str]) -> list[tuple[str, str]]:
    first: dict[str, str] = {}
    return [
        (first[pin], flag_id) for flag_id in flag_ids if first.setdefault(pin := pin_name(flag_id), flag_id) != flag_id
    ]
