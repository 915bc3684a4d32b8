"""JSONLogic, as flagd evaluates it: what a condition `{jsonlogic: …}` and a rule of type jsonlogic are compiled from.

It is here for flags that come from flagd, whose comparisons convert types the JavaScript way (jsonlogic.com): no
operator of our own says the same for every context. It gives what openfeature-flagd-core 2.0.0 gives for JSON values,
that one's differences from JavaScript included. Left out, so refused: map, filter, reduce, merge, substr, missing,
missing_some and log.
"""

from __future__ import annotations

import math
import operator
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jarvis_flags.buckets import FLAGD_HASHES, flagd_bucket, flagd_key
from jarvis_flags.conditions import Asked, semver_key

__all__ = ["Frame", "Logic", "LogicError", "compile_logic", "operands", "truthy", "uses"]

DEPTH_MAX = 48
WEIGHT_MAX = 2**31 - 1

Logic = Callable[[Any], Any]
"""An expression as a function of the data that its `var` looks into."""


class LogicError(ValueError):
    """An expression that cannot be evaluated.

    Attributes:
        path: Where in the expression, e.g. `.if[0].==[1]`; empty for the whole of it.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, slots=True)
class Frame:
    """What `$flagd` is for an expression.

    Attributes:
        flag_id: Its flagKey; empty in a named segment, which belongs to no flag.
        clock: Its timestamp, in Unix seconds.
    """

    flag_id: str = ""
    clock: Callable[[], float] = time.time

    def data(self, asked: Asked) -> dict[str, Any]:
        """The data of an expression: the attributes, the user as `targetingKey`, and `$flagd`."""
        return {
            **asked.attributes,
            "$flagd": {"flagKey": self.flag_id, "timestamp": int(self.clock())},
            "targetingKey": asked.own("targetingKey"),
        }


def compile_logic(expression: Any, hash_name: str | None = None) -> Logic:
    """An expression as a function.

    Args:
        expression: JSON values; a mapping with one key is an operator and its operands, any other stands for itself.
        hash_name: The hash of its `fractional`: one of FLAGD_HASHES.

    Raises:
        LogicError: An unknown operator, operands that cannot work, or nested too deep.
    """
    if hash_name is not None and hash_name not in FLAGD_HASHES:
        raise LogicError(f"got the hash {hash_name!r}, want one of {', '.join(FLAGD_HASHES)}")
    return _compile(expression, hash_name, "", 0)


def operands(expression: Mapping[str, Any]) -> tuple[str, list[Any], Callable[[int], str]]:
    """An operator's name, its operands, and the path of each: one alone needs no list around it."""
    ((name, given),) = expression.items()
    if isinstance(given, list):
        return name, given, lambda index: f".{name}[{index}]"
    return name, [given], lambda _: f".{name}"


def uses(expression: Any, name: str) -> bool:
    """Whether an operator stands anywhere in an expression."""
    if isinstance(expression, Mapping):
        return name in expression or any(uses(value, name) for value in expression.values())
    return isinstance(expression, list) and any(uses(item, name) for item in expression)


def _compile(expression: Any, hash_name: str | None, path: str, depth: int) -> Logic:
    if depth > DEPTH_MAX:
        raise LogicError(f"nested deeper than {DEPTH_MAX}", path)
    if isinstance(expression, list):
        items = [_compile(item, hash_name, f"{path}[{index}]", depth + 1) for index, item in enumerate(expression)]
        return lambda data: [item(data) for item in items]
    if not isinstance(expression, Mapping) or len(expression) != 1:
        return lambda _: expression
    name, given, place = operands(expression)
    _check(name, given, hash_name, path)
    parts = [_compile(part, hash_name, path + place(index), depth + 1) for index, part in enumerate(given)]
    if name in _FORMS:
        return _FORMS[name](parts)
    if name == "fractional":
        assert hash_name is not None, "it was checked"
        return _fractional(hash_name, given, parts)
    function = _FUNCTIONS[name]
    return lambda data: function(*[part(data) for part in parts])


def _check(name: str, given: list[Any], hash_name: str | None, path: str) -> None:
    if name not in _FORMS and name not in _FUNCTIONS and name != "fractional":
        raise LogicError(f"got the operator {name!r}, want one of {', '.join(sorted(OPERATORS))}", path)
    if name == "fractional" and hash_name is None:
        raise LogicError(f"fractional needs `hash:`, one of {', '.join(FLAGD_HASHES)}", path)
    if name in ("/", "%") and (len(given) < 2 or not isinstance(given[1], int | float) or not given[1]):
        # a division by zero is an error of the whole evaluation, which a condition cannot give
        raise LogicError("want a number other than 0 to divide by", path)
    if name in ("some", "all", "none") and uses(given[1:], "fractional"):
        raise LogicError(f"fractional cannot stand within {name}: an item has no targeting key", path)
    if name in _OPERANDS_MAX and len(given) > _OPERANDS_MAX[name]:
        raise LogicError(f"got {len(given)} operands, want at most {_OPERANDS_MAX[name]}", path)


# --- forms: what evaluates its operands itself, or looks into the data ---


def _if(parts: list[Logic]) -> Logic:
    pairs = list(zip(parts[0:-1:2], parts[1::2], strict=False))
    otherwise = parts[-1] if len(parts) % 2 else None

    def choose(data: Any) -> Any:
        for condition, value in pairs:
            if truthy(condition(data)):
                return value(data)
        return None if otherwise is None else otherwise(data)

    return choose


def _until(stop: bool) -> Callable[[list[Logic]], Logic]:
    """The value of the first operand that is as true as `stop`, else of the last."""

    def form(parts: list[Logic]) -> Logic:
        def walk(data: Any) -> Any:
            value = None
            for part in parts:
                value = part(data)
                if truthy(value) is stop:
                    break
            return value

        return walk

    return form


def _quantifier(decide: Callable[[list[Any], Logic], bool]) -> Callable[[list[Logic]], Logic]:
    def form(parts: list[Logic]) -> Logic:
        if len(parts) < 2:
            return lambda _: decide([], lambda _: None)
        items, condition = parts[:2]

        def test(data: Any) -> bool:
            found = items(data)
            return decide(found if isinstance(found, list) else [], condition)

        return test

    return form


def _var(parts: list[Logic]) -> Logic:
    nothing: Logic = lambda _: None  # noqa: E731
    name, default = (*parts, nothing, nothing)[:2]

    def find(data: Any) -> Any:
        value = _looked_up(data, name(data))
        return default(data) if value is None else value

    return find


def _looked_up(data: Any, name: Any) -> Any:
    """Where the dots of a name lead; a number leads into a list or text, and `length` is theirs."""
    if name is None or name == "":
        return data
    if isinstance(name, int | float) and isinstance(data, Mapping):
        return None
    for part in _text(name).split("."):
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list | str):
            if part == "length":
                return len(data)
            if not part.isdecimal() or part != str(int(part)) or int(part) >= len(data):
                return None
            data = data[int(part)]
        else:
            return None
    return data


_FORMS: Mapping[str, Callable[[list[Logic]], Logic]] = {
    "if": _if,
    "?:": _if,
    "and": _until(stop=False),
    "or": _until(stop=True),
    "some": _quantifier(lambda items, holds: any(truthy(holds(item)) for item in items)),
    "all": _quantifier(lambda items, holds: bool(items) and all(truthy(holds(item)) for item in items)),
    "none": _quantifier(lambda items, holds: not any(truthy(holds(item)) for item in items)),
    "var": _var,
}


def _fractional(hash_name: str, given: list[Any], parts: list[Logic]) -> Logic:
    """The name in whose share the key's bucket falls; None without a key, or with shares that cannot be used."""

    def compute(data: Any) -> Any:
        values = [part(data) for part in parts]
        # flagd tells a bucketing value from a share by its type
        key = values[:1] if values and not isinstance(values[0], list | tuple) else []
        return _placed(hash_name, data, key, _edges(values[len(key) :]))

    names_key = bool(given) and not isinstance(given[0], list)
    if not _is_constant(given[names_key:]):
        return compute
    edges = _edges(given[names_key:])
    key_of = parts[0] if names_key else None

    def place(data: Any) -> Any:
        if key_of is None:
            return _placed(hash_name, data, [], edges)
        key = key_of(data)
        return compute(data) if isinstance(key, list | tuple) else _placed(hash_name, data, [key], edges)

    return place


def _is_constant(value: Any) -> bool:
    return not isinstance(value, Mapping) and (not isinstance(value, list) or all(map(_is_constant, value)))


def _placed(hash_name: str, data: Any, explicit: list[Any], edges: list[tuple[int, Any]] | None) -> Any:
    root = data if isinstance(data, Mapping) else {}
    key = flagd_key(hash_name, root.get("$flagd", {}).get("flagKey", ""), root.get("targetingKey"), *explicit)
    if key is None or edges is None:
        return None
    bucket = flagd_bucket(key, edges[-1][0])
    return next(name for edge, name in edges if bucket < edge)


def _edges(shares: list[Any]) -> list[tuple[int, Any]] | None:
    """Where the range of each share ends, the last at the total; None for shares that cannot be used."""
    edges: list[tuple[int, Any]] = []
    total = 0
    for share in shares:
        if not isinstance(share, list | tuple) or len(share) not in (1, 2):
            return None
        weight = share[1] if len(share) == 2 else 1
        if isinstance(weight, bool) or not isinstance(weight, int):
            return None
        total += max(0, weight)
        edges.append((total, share[0]))
    return edges if 0 < total <= WEIGHT_MAX else None


# --- conversions, the JavaScript way ---


def truthy(value: Any = None, *_: Any) -> bool:
    """Whether JSONLogic takes a value for true: an empty mapping is, an empty list and NaN are not."""
    if isinstance(value, Mapping):
        return True
    return bool(value) and value == value  # noqa: PLR0124 - NaN is not


def _number(value: Any) -> Any:
    if isinstance(value, int | float):
        return value
    if value is None:
        return 0
    if isinstance(value, list):
        return 0 if not value else _number(value[0]) if len(value) == 1 else math.nan
    if not isinstance(value, str) or value.strip().lower() in ("inf", "+inf", "-inf"):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.15g}"
    if value is None:
        return "null"
    if isinstance(value, list):
        return ",".join(_text(item) for item in value)
    return "[object Object]" if isinstance(value, Mapping) else str(value)


def _loosely_equal(first: Any = None, second: Any = None, *_: Any) -> bool:
    if isinstance(first, int | float) or isinstance(second, int | float):
        return bool(_number(first) == _number(second))
    if first is None or second is None:
        return first is second
    if isinstance(first, str) or isinstance(second, str):
        return _text(first) == _text(second)
    return first is second


def _strictly_equal(first: Any = None, second: Any = None, *_: Any) -> bool:
    return bool(first == second)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    def holds(first: Any, second: Any) -> bool:
        given = (first, second)
        if any(isinstance(item, int | float) for item in given) or not any(isinstance(item, str) for item in given):
            return compare(_number(first), _number(second))
        return compare(_text(first), _text(second))

    def between(low: Any = None, middle: Any = None, high: Any = None, *_: Any) -> bool:
        return holds(low, middle) and (high is None or holds(middle, high))

    return between


def _in(needle: Any = None, haystack: Any = None, *_: Any) -> bool:
    if isinstance(haystack, list):
        return needle in haystack
    return isinstance(haystack, str) and _text(needle) in haystack


def _minus(first: Any = None, second: Any = None) -> Any:
    return -_number(first) if second is None else _number(first) - _number(second)


def _times(*values: Any) -> Any:
    return math.prod(_number(value) for value in values)


def _affix(test: Callable[[str, str], bool]) -> Callable[..., bool | None]:
    def holds(*given: Any) -> bool | None:
        return test(*given) if len(given) == 2 and all(isinstance(item, str) for item in given) else None

    return holds


# strict where our own operators are not: no leading zeros; two parts, or one, are filled up (semver.org, 2.0.0)
_NUMERAL = r"(0|[1-9]\d*)"
_IDENTIFIER = r"(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
_SEMVER = re.compile(
    rf"[vV]?{_NUMERAL}(?:\.{_NUMERAL})?(?:\.{_NUMERAL})?(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?$"
)
_SEMVER_TESTS: Mapping[Any, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "^": lambda first, second: first[0] == second[0],
    "~": lambda first, second: first[:2] == second[:2],
}


def _sem_ver(*given: Any) -> bool | None:
    if len(given) != 3 or not isinstance(given[1], str) or given[1] not in _SEMVER_TESTS:
        return None
    first, second = (_SEMVER.match(str(version)) for version in (given[0], given[2]))
    if first is None or second is None:
        return None
    return _SEMVER_TESTS[given[1]](semver_key(*first.groups()), semver_key(*second.groups()))


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "==": _loosely_equal,
    "!=": lambda *given: not _loosely_equal(*given),
    "===": _strictly_equal,
    "!==": lambda *given: not _strictly_equal(*given),
    "<": _ordered(operator.lt),
    "<=": _ordered(operator.le),
    ">": _ordered(operator.gt),
    ">=": _ordered(operator.ge),
    "!": lambda *given: not truthy(*given),
    "!!": truthy,
    "in": _in,
    "cat": lambda *given: "".join(map(_text, given)),
    "+": lambda *given: sum(map(_number, given)),
    "-": _minus,
    "*": _times,
    "/": lambda first, second: _number(first) / second,
    "%": lambda first, second: _number(first) % second,
    "min": lambda *given: min(map(_number, given), default=math.nan),
    "max": lambda *given: max(map(_number, given), default=math.nan),
    "starts_with": _affix(str.startswith),
    "ends_with": _affix(str.endswith),
    "sem_ver": _sem_ver,
}
_OPERANDS_MAX: Mapping[str, int] = {"-": 2, "/": 2, "%": 2}

OPERATORS = frozenset({*_FORMS, *_FUNCTIONS, "fractional"})
"""The operators that can be evaluated."""
