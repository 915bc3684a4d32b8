"""Segments: condition trees over the attributes of a context, compiled to functions.

A condition on an attribute that the context lacks, or of a type that the operator does not take, does not hold;
only `exists: false` (and `not`) hold without the attribute. Comparing never raises.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from jarvis_flags.regex import TEXT_MAX, RegexError, compile_regex

__all__ = [
    "OPERATORS",
    "OWN_NAMES",
    "Asked",
    "ConditionError",
    "Predicate",
    "all_of",
    "any_of",
    "compile_condition",
    "parse_semver",
    "reader",
    "semver_key",
]


class Asked(Protocol):
    """What conditions look at: the attributes of a context, and what it says of itself."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What the application told."""
        ...

    def own(self, name: str) -> Any:
        """The user, environment or request id by the name of an attribute; None where it is not known."""
        ...


Predicate = Callable[[Any], bool]
"""Whether a segment holds for what is asked (an `Asked`)."""

OWN_NAMES = frozenset({"user_id", "targetingKey", "environment", "request_id"})
"""Attributes that a context has of itself; an attribute of the application's by the same name wins."""

_Test = Callable[[Any], Any]
"""Whether a value compares as wanted: something true or false, that may raise when it is asked for its truth."""

# made once: to make a union takes longer than most tests
_LIST = (list, tuple)
_TEXT_OR_LIST = (str, list, tuple)

_INCOMPARABLE = (ArithmeticError, TypeError, ValueError)
"""What comparing raises for a value that does not match: one of another type, a NaN of decimal, an array of numpy."""


class ConditionError(ValueError):
    """An operator's literal that it cannot work with."""


def reader(name: str) -> Callable[[Any], Any]:
    """A function that finds an attribute of what is asked (an `Asked`), or None.

    Args:
        name: The attribute's name, else where its dots lead.
    """
    if name in OWN_NAMES:

        def read_own(asked: Any) -> Any:
            value = asked.attributes.get(name)
            return asked.own(name) if value is None else value

        return read_own
    if "." not in name:
        return lambda asked: asked.attributes.get(name)
    path = name.split(".")

    def read_nested(asked: Any) -> Any:
        value = asked.attributes.get(name)
        if value is None:
            value = asked.attributes
            for part in path:
                value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return read_nested


def compile_condition(attribute: str, op: str, literal: Any) -> Predicate:
    """One comparison as a function.

    Args:
        attribute: The attribute's name; dots lead into nested ones.
        op: One of OPERATORS.
        literal: What it is compared with.

    Raises:
        ConditionError: The operator cannot work with this literal.
    """
    read = reader(attribute)
    test = OPERATORS[op](literal)
    if op == "exists":
        return lambda asked: test(read(asked))
    if attribute in OWN_NAMES or "." in attribute:

        def holds(asked: Any) -> bool:
            value = read(asked)
            try:
                if value is not None and test(value):
                    return True
            except _INCOMPARABLE:
                pass
            return False

        return holds

    if op in ("eq", "in") and _are_texts(literal):
        wanted = frozenset([literal] if op == "eq" else literal)

        def is_one_of(asked: Any) -> bool:
            try:
                return asked.attributes.get(attribute) in wanted
            except _INCOMPARABLE:
                return False

        return is_one_of

    def holds_plainly(asked: Any) -> bool:
        value = asked.attributes.get(attribute)
        try:
            if value is not None and test(value):
                return True
        except _INCOMPARABLE:
            pass
        return False

    return holds_plainly


def _are_texts(literal: Any) -> bool:
    return all(isinstance(item, str) for item in (literal if isinstance(literal, list) else [literal]))


def all_of(parts: Sequence[Predicate]) -> Predicate:
    """Whether every part holds. Written out, as in `any_of`: a loop would cost more than most parts do."""
    if len(parts) > 3:
        return all_of([all_of(parts[:3]), *parts[3:]])
    if len(parts) == 3:
        a, b, c = parts
        return lambda asked: a(asked) and b(asked) and c(asked)
    if len(parts) == 2:
        a, b = parts
        return lambda asked: a(asked) and b(asked)
    return parts[0]


def any_of(parts: Sequence[Predicate]) -> Predicate:
    """Whether one part holds."""
    if len(parts) > 3:
        return any_of([any_of(parts[:3]), *parts[3:]])
    if len(parts) == 3:
        a, b, c = parts
        return lambda asked: a(asked) or b(asked) or c(asked)
    if len(parts) == 2:
        a, b = parts
        return lambda asked: a(asked) or b(asked)
    return parts[0]


def _scalar(literal: Any) -> Any:
    if literal is None or isinstance(literal, list | Mapping):
        raise ConditionError(f"got {literal!r}, want text, a number, true or false")
    return literal


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str) or not isinstance(value, Collection)


def _equals(literal: Any) -> _Test:
    wanted = _scalar(literal)
    if isinstance(wanted, str):
        return frozenset((wanted,)).__contains__
    if isinstance(wanted, bool):
        return lambda value: value is wanted
    # True is not 1, but 1 is 1.0
    return lambda value: value.__class__ is not bool and value == wanted


def _differs(literal: Any) -> _Test:
    equal = _equals(literal)
    return lambda value: _is_scalar(value) and not equal(value)


def _one_of(literal: Any) -> _Test:
    if not isinstance(literal, list):
        raise ConditionError(f"got {literal!r}, want a list")
    wanted = frozenset(_scalar(item) for item in literal)
    if all(isinstance(item, str) for item in literal):
        return wanted.__contains__
    switches = frozenset(item for item in literal if isinstance(item, bool))
    rest = frozenset(item for item in literal if not isinstance(item, bool))
    return lambda value: value in (switches if value.__class__ is bool else rest)


def _none_of(literal: Any) -> _Test:
    inside = _one_of(literal)
    return lambda value: _is_scalar(value) and not inside(value)


def _text(literal: Any) -> str:
    if not isinstance(literal, str):
        raise ConditionError(f"got {literal!r}, want text")
    return literal


def _contains(literal: Any) -> _Test:
    equal = _equals(literal)
    if isinstance(literal, str):
        return lambda value: isinstance(value, _TEXT_OR_LIST) and literal in value
    return lambda value: isinstance(value, _LIST) and any(equal(item) for item in value)


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
        if isinstance(literal, str):
            return lambda value: isinstance(value, str) and compare(value, literal)
        if isinstance(literal, bool) or not isinstance(literal, int | float):
            raise ConditionError(f"got {literal!r}, want a number or text")
        return lambda value: value.__class__ is not bool and compare(value, literal)

    return build


_SEMVER = re.compile(
    r"[vV]?(\d{1,18})(?:\.(\d{1,18}))?(?:\.(\d{1,18}))?"
    r"(?:-([0-9A-Za-z-]{1,255}(?:\.[0-9A-Za-z-]{1,255})*))?(?:\+[0-9A-Za-z.-]*)?\Z"
)


def parse_semver(text: str) -> tuple[Any, ...] | None:
    """A semantic version as a key to compare by, or None where it is none.

    A leading v and build metadata are passed over, missing parts are 0, a prerelease comes before its release
    (semver.org, 11).
    """
    match = _SEMVER.match(text)
    if match is None:
        return None
    return semver_key(*match.groups())


def semver_key(major: str, minor: str | None, patch: str | None, prerelease: str | None) -> tuple[Any, ...]:
    """The parts of a semantic version as a key to compare by; the first three of it are its numbers."""
    numbers = (int(major), int(minor or 0), int(patch or 0))
    if prerelease is None:
        return (*numbers, (True,))
    # in either place False comes first: before the release, and numbers before words
    parts = ((False, int(part)) if part.isdigit() else (True, part) for part in prerelease.split("."))
    return (*numbers, (False, *parts))


def _semver(compare: Callable[[Any, Any], bool]) -> Callable[[Any], _Test]:
    def build(literal: Any) -> _Test:
        # a version that YAML took for a number still has its text
        wanted = parse_semver(str(getattr(literal, "text", literal)))
        if wanted is None:
            raise ConditionError(f"got {literal!r}, want a semantic version such as 1.10.0")

        def test(value: Any) -> bool:
            version = parse_semver(value)
            return version is not None and compare(version, wanted)

        return test

    return build


def _exists(literal: Any) -> _Test:
    if not isinstance(literal, bool):
        raise ConditionError(f"got {literal!r}, want true or false")
    return lambda value: (value is not None) is literal


OPERATORS: Mapping[str, Callable[[Any], _Test]] = {
    "eq": _equals,
    "ne": _differs,
    "in": _one_of,
    "not_in": _none_of,
    "contains": _contains,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "matches": _matches,
    "gt": _ordered(operator.gt),
    "ge": _ordered(operator.ge),
    "lt": _ordered(operator.lt),
    "le": _ordered(operator.le),
    "semver_eq": _semver(operator.eq),
    "semver_gt": _semver(operator.gt),
    "semver_ge": _semver(operator.ge),
    "semver_lt": _semver(operator.lt),
    "semver_le": _semver(operator.le),
    "exists": _exists,
}
"""Builds the test of each operator from its literal."""
