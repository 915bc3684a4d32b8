"""Segments: condition trees over the attributes of a context, compiled to functions.

A condition on an attribute that the context lacks, or of a type that the operator does not take, does not hold;
only `exists: false` (and `not`) hold without the attribute. Comparing never raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jarvis_flags.regex import TEXT_MAX, RegexError, compile_regex

__all__ = ["OPERATORS", "ConditionError", "Predicate", "compile_condition", "lookup", "parse_semver"]

Predicate = Callable[[Mapping[str, Any]], bool]
"""Whether a segment holds for the attributes of a context."""


_MISSING = object()
_Test = Callable[[Any], bool]


class ConditionError(ValueError):
    """An operator's literal that it cannot work with."""


def lookup(attributes: Mapping[str, Any], name: str) -> Any:
    """The attribute of that name, else the one that its dots lead to, else a marker that equals nothing."""
    value = attributes.get(name, _MISSING)
    if value is _MISSING and "." in name:
        value = attributes
        for part in name.split("."):
            value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
    return value


def compile_condition(attribute: str, operator: str, literal: Any) -> Predicate:
    """One comparison as a function.

    Args:
        attribute: The attribute's name; dots lead into nested ones.
        operator: One of OPERATORS.
        literal: What it is compared with.

    Raises:
        ConditionError: The operator cannot work with this literal.
    """
    if operator == "exists":
        if not isinstance(literal, bool):
            raise ConditionError(f"got {literal!r}, want true or false")
        return lambda attributes: (lookup(attributes, attribute) not in (_MISSING, None)) is literal
    test = OPERATORS[operator](literal)

    def holds(attributes: Mapping[str, Any]) -> bool:
        value = attributes.get(attribute, _MISSING)
        if value is _MISSING:
            value = lookup(attributes, attribute)
            if value is _MISSING:
                return False
        try:
            return test(value)
        except (TypeError, ValueError):  # an unhashable value, a comparison of unlike types: it does not hold
            return False

    return holds


def _kind(value: Any) -> type:
    """True is not 1, but 1 is 1.0."""
    return bool if isinstance(value, bool) else float if isinstance(value, int | float) else type(value)


def _scalar(literal: Any) -> Any:
    if literal is None or isinstance(literal, list | Mapping):
        raise ConditionError(f"got {literal!r}, want text, a number, true or false")
    return literal


def _equals(literal: Any) -> _Test:
    wanted, kind = _scalar(literal), _kind(literal)
    return lambda value: bool(value == wanted) and _kind(value) is kind


def _differs(literal: Any) -> _Test:
    equal = _equals(literal)
    return lambda value: not equal(value)


def _one_of(literal: Any) -> _Test:
    if not isinstance(literal, list):
        raise ConditionError(f"got {literal!r}, want a list")
    wanted = frozenset((_kind(_scalar(item)), item) for item in literal)
    return lambda value: (_kind(value), value) in wanted


def _none_of(literal: Any) -> _Test:
    inside = _one_of(literal)
    return lambda value: not inside(value)


def _text(literal: Any) -> str:
    if not isinstance(literal, str):
        raise ConditionError(f"got {literal!r}, want text")
    return literal


def _contains(literal: Any) -> _Test:
    wanted = _scalar(literal)
    kind = _kind(wanted)

    def test(value: Any) -> bool:
        if isinstance(value, str):
            return kind is str and wanted in value
        return isinstance(value, list | tuple) and any(item == wanted and _kind(item) is kind for item in value)

    return test


def _starts_with(literal: Any) -> _Test:
    prefix = _text(literal)
    return lambda value: isinstance(value, str) and value.startswith(prefix)


def _ends_with(literal: Any) -> _Test:
    suffix = _text(literal)
    return lambda value: isinstance(value, str) and value.endswith(suffix)


def _matches(literal: Any) -> _Test:
    try:
        search = compile_regex(_text(literal)).search
    except RegexError as error:
        raise ConditionError(str(error)) from None
    return lambda value: isinstance(value, str) and search(value[:TEXT_MAX]) is not None


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any], _Test]:
    def build(literal: Any) -> _Test:
        kind = _kind(literal)
        if kind not in (str, float):
            raise ConditionError(f"got {literal!r}, want a number or text")
        return lambda value: _kind(value) is kind and compare(value, literal)

    return build


_SEMVER = re.compile(
    r"[vV]?(\d{1,18})(?:\.(\d{1,18}))?(?:\.(\d{1,18}))?(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]*)?\Z"
)


def parse_semver(text: str) -> tuple[Any, ...] | None:
    """A semantic version as a key to compare by, or None where it is none.

    A leading v and build metadata are passed over, missing parts are 0, a prerelease comes before its release
    (semver.org, 11).
    """
    match = _SEMVER.match(text)
    if match is None:
        return None
    major, minor, patch, prerelease = match.groups()
    numbers = (int(major), int(minor or 0), int(patch or 0))
    if prerelease is None:
        return (*numbers, (1,))
    parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in prerelease.split("."))
    return (*numbers, (0, *parts))


def _semver(compare: Callable[[Any, Any], bool]) -> Callable[[Any], _Test]:
    def build(literal: Any) -> _Test:
        # a version that YAML took for a number still has its text
        wanted = parse_semver(str(getattr(literal, "text", literal)))
        if wanted is None or isinstance(literal, bool):
            raise ConditionError(f"got {literal!r}, want a semantic version such as 1.10.0")

        def test(value: Any) -> bool:
            version = parse_semver(value) if isinstance(value, str) else None
            return version is not None and compare(version, wanted)

        return test

    return build


OPERATORS: Mapping[str, Callable[[Any], _Test]] = {
    "eq": _equals,
    "ne": _differs,
    "in": _one_of,
    "not_in": _none_of,
    "contains": _contains,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "matches": _matches,
    "gt": _ordered(lambda value, literal: value > literal),
    "ge": _ordered(lambda value, literal: value >= literal),
    "lt": _ordered(lambda value, literal: value < literal),
    "le": _ordered(lambda value, literal: value <= literal),
    "semver_eq": _semver(lambda value, literal: value == literal),
    "semver_gt": _semver(lambda value, literal: value > literal),
    "semver_ge": _semver(lambda value, literal: value >= literal),
    "semver_lt": _semver(lambda value, literal: value < literal),
    "semver_le": _semver(lambda value, literal: value <= literal),
    "exists": lambda literal: lambda value: (value is not None) is literal,
}
"""Builds the test of each operator from its literal."""
