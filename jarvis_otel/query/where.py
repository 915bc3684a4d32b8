"""The --where language: comparisons on any field of a record, combined with and, or, not and parentheses."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jarvis_collector.record import FLAG_PREFIX, UNKNOWN_SERVICE
from jarvis_otel.query import logql
from jarvis_otel.query.filters import (
    ID_KEYS,
    LOKI_LABELS,
    Facts,
    Filter,
    Needle,
    contained_in_request,
    containing,
    equalling,
)
from jarvis_otel.settings import LEVELS

__all__ = ["look_up", "where_filter"]

_LENGTH_MAX = 4096
_DEPTH_MAX = 50
_PATH_MAX = 32
_EXAMPLE = "duration_ms>500 and (service=trading or not error.type~=Balance)"

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<paren>[()])
      | (?P<operator>!=|<=|>=|~=|=|<|>)
      | (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<word>[^\s()=!<>~"']+)
      | (?P<bad>\S)
    )""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONSTANTS = {"true": True, "false": False, "null": None}
# Keys of a line whose texts stand in an OTLP/JSON request too; those of other keys are made of numbers, or computed.
_IN_REQUEST = frozenset(
    {"message", "service", "correlation_id", "trace_id", "span_id", "request_id", "user_id", "session_id"}
    | {"active_flags", "flags", "error", "event", "context", "logger"}
)


class _Token(NamedTuple):
    kind: str
    text: str
    column: int


def where_filter(expression: str) -> Filter:
    """Records for which an expression holds.

    Operators: `=`, `!=`, `<`, `<=`, `>`, `>=`, and `~=` (holds this text, whatever its case). A field is a path of
    keys with dots between them. Numbers compare as numbers, also with a text that is one; `level` compares by
    severity; a list is equal to each of its elements; a field that is not there is null, and neither less nor more
    than anything. `a!=b` is `not a=b`. A value in quotes is text.

    Raises:
        ValueError: The expression cannot be read; the message names the column and what was wanted there.
    """
    if len(expression) > _LENGTH_MAX:
        raise ValueError(f"got {len(expression)} characters, want at most {_LENGTH_MAX}")
    return _Parser(expression).parse()


class _Parser:
    """Recursive descent: or over and over not over comparison."""

    def __init__(self, expression: str) -> None:
        self._tokens = list(_tokens(expression))
        self._at = 0
        self._depth = 0

    def parse(self) -> Filter:
        result = self._either()
        self._expect("end", "and, or, or the end")
        return result

    def _either(self) -> Filter:
        parts = [self._both()]
        while self._take_keyword("or"):
            parts.append(self._both())
        if len(parts) == 1:
            return parts[0]
        tests = [part.matches for part in parts]
        return Filter(lambda record: any(test(record) for test in tests), loki=_names_of(parts))

    def _both(self) -> Filter:
        parts = [self._negation()]
        while self._take_keyword("and"):
            parts.append(self._negation())
        if len(parts) == 1:
            return parts[0]
        tests = [part.matches for part in parts]
        needle = next((part.needle for part in parts if part.needle), None)
        request = next((part.request for part in parts if part.request), None)
        loki = logql.all_of([part.loki for part in parts])
        facts = _first_of_each([part.facts for part in parts if part.facts])
        return Filter(
            lambda record: all(test(record) for test in tests), needle, request=request, loki=loki, facts=facts
        )

    def _negation(self) -> Filter:
        negated = False
        while self._take_keyword("not"):
            negated = not negated
        inner = self._operand()
        if not negated:
            return inner
        return Filter(lambda record: not inner.matches(record), loki=_names_of([inner]))

    def _operand(self) -> Filter:
        if self._peek()[:2] == ("paren", "("):
            self._at += 1
            self._depth += 1
            if self._depth > _DEPTH_MAX:
                raise ValueError(f"got more than {_DEPTH_MAX} parentheses in each other")
            inner = self._either()
            closing = self._expect("paren", "and, or, or )")
            if closing.text != ")":
                raise _unexpected(closing, "and, or, or )")
            self._depth -= 1
            return inner
        field = self._expect("word", "a field such as duration_ms or error.type")
        compare = self._expect("operator", "one of = != < <= > >= ~=")
        value = self._peek()
        if value.kind not in ("word", "quoted"):
            raise _unexpected(value, "a value; put text with blanks or signs in quotes")
        self._at += 1
        return _comparison(field.text, compare.text, value)

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _expect(self, kind: str, wanted: str) -> _Token:
        token = self._peek()
        if token.kind != kind:
            raise _unexpected(token, wanted)
        self._at += 1
        return token

    def _take_keyword(self, keyword: str) -> bool:
        # a field may be called `not`: it is one where an operator follows
        taken = self._peek().text.lower() == keyword and self._tokens[self._at + 1].kind != "operator"
        self._at += taken
        return taken


def _tokens(expression: str) -> Iterator[_Token]:
    for found in _TOKEN.finditer(expression):
        kind = found.lastgroup
        assert kind is not None  # each alternative has a name
        yield _Token(kind, found[kind], found.start(kind) + 1)
    yield _Token("end", "the end", len(expression) + 1)


def _unexpected(token: _Token, wanted: str) -> ValueError:
    got = token.text if token.kind == "end" else repr(token.text)
    return ValueError(f"column {token.column}: got {got}, want {wanted}; example: {_EXAMPLE}")


def _comparison(field: str, compare: str, value: _Token) -> Filter:
    path = field.split(".")
    if len(path) > _PATH_MAX:
        raise ValueError(f"got a field of {len(path)} keys, want at most {_PATH_MAX}")
    bare = value.kind == "word"
    text = value.text if bare else re.sub(r"\\(.)", r"\1", value.text[1:-1], flags=re.DOTALL)
    if compare == "~=":
        request = _request_needle(path, text, any_case=True)
        return _test(path, _contains(text), containing(text), request, _says_in_loki(path, text))
    if compare in ("=", "!="):
        sought = not (bare and _is_literal(text))
        needle, request = (equalling(text), _request_needle(path, text)) if sought else (None, None)
        loki = _is_in_loki(path, text) if sought else _named_in_loki(path)
        facts = _facts(field, text) if sought else None
        equal = _test(path, _equals(text, bare=bare), needle, request, loki, facts=facts)
        return equal if compare == "=" else Filter(lambda record: not equal.matches(record), loki=_names_of([equal]))
    if field == "level" and text.upper() in LEVELS:
        limit, order = LEVELS[text.upper()], _ORDER[compare]
        wanted = frozenset(level for level, number in LEVELS.items() if order(number, limit))
        return _test(
            path,
            lambda found: isinstance(found, str) and found in wanted,
            loki=logql.levels(wanted),
            facts=Facts(levels=wanted),
        )
    number = _number(text) if bare and field == "duration_ms" else None
    loki = _named_in_loki(path) if number is None else logql.number_compares("jarvis.duration_ms", compare, number)
    return _test(path, _is_ordered(_ORDER[compare], text, bare=bare), loki=loki)


def _test(
    path: list[str],
    test: Callable[[Any], bool],
    needle: Needle | None = None,
    request: Needle | None = None,
    loki: logql.Asked = logql.ANYTHING,
    *,
    facts: Facts | None = None,
) -> Filter:
    return Filter(lambda record: test(look_up(record, path)), needle, request=request, loki=loki, facts=facts)


def _facts(field: str, text: str) -> Facts | None:
    """What is known of records of which a field is this text."""
    if field == "level":
        return Facts(levels=frozenset({text})) if text in LEVELS else None
    if field == "service":
        return Facts(service=text)
    return Facts(ids=frozenset({text})) if field in ID_KEYS else None


def _first_of_each(facts: list[Facts]) -> Facts | None:
    """What is known where all of them hold. A list may have several of the texts, so they do not exclude each other."""
    if not facts:
        return None
    return Facts(
        levels=min((one.levels for one in facts if one.levels is not None), key=len, default=None),
        service=next((one.service for one in facts if one.service is not None), None),
        ids=next((one.ids for one in facts if one.ids is not None), None),
    )


def _names_of(parts: list[Filter]) -> logql.Asked:
    return logql.some_of([part.loki for part in parts])


def _named_in_loki(path: list[str]) -> logql.Asked:
    """Only how the question spells the attribute that a field is."""
    before = {"context": "", "flags": FLAG_PREFIX}.get(path[0])
    return logql.ANYTHING if before is None or len(path) < 2 else logql.Asked((), (before + ".".join(path[1:]),))


def _is_in_loki(path: list[str], text: str) -> logql.Asked:
    """What Loki is asked of a field that is this text."""
    match path:
        case ["message"]:
            return logql.line_holds(text)
        case ["level"]:
            return logql.levels({text} & LEVELS.keys())
        case ["error", "type"]:
            return logql.type_is(text)
        case ["error", "message"]:
            return logql.equals_any(("exception.message",), (text,))
        case ["flags", _, *_]:
            return logql.flag_is(".".join(path[1:]), text)
        case ["context", _, *_]:
            return logql.attribute_is(".".join(path[1:]), text)
        case [key] if key in LOKI_LABELS:
            return logql.equals_any(LOKI_LABELS[key], (text,))
    return logql.ANYTHING


def _says_in_loki(path: list[str], text: str) -> logql.Asked:
    """What Loki is asked of a field that holds this text."""
    match path:
        case ["error", "type" | "message" as key]:
            return logql.says((f"exception.{key}",), text)
        case ["context", _, *_]:
            return logql.attribute_says(".".join(path[1:]), text)
        case [key] if key in LOKI_LABELS:
            return logql.says(LOKI_LABELS[key], text)
    return _named_in_loki(path)


def _request_needle(path: list[str], text: str, *, any_case: bool = False) -> Needle | None:
    if path[0] not in _IN_REQUEST or (path[0] == "service" and text.lower() in UNKNOWN_SERVICE):
        return None
    return contained_in_request(text, any_case=any_case)


def look_up(value: Any, path: list[str]) -> Any:
    """The value at a path, None where there is none; a key may hold dots, and the longest one that leads on wins."""
    if not path:
        return value
    if isinstance(value, dict):
        for count in range(len(path), 0, -1):
            key = ".".join(path[:count])
            if key in value and (found := look_up(value[key], path[count:])) is not None:
                return found
    return None


def _is_literal(text: str) -> bool:
    return text in _CONSTANTS or _NUMBER.fullmatch(text) is not None


def _contains(text: str) -> Callable[[Any], bool]:
    wanted = text.lower()

    def test(found: Any) -> bool:
        return any(isinstance(item, str) and wanted in item.lower() for item in _elements(found))

    return test


def _equals(text: str, *, bare: bool) -> Callable[[Any], bool]:
    constant = _CONSTANTS.get(text, text) if bare else text
    number = _number(text) if bare else None

    def test(found: Any) -> bool:
        for item in _elements(found):
            if item == text if isinstance(item, str) else item is constant:
                return True
            if number is not None and _number(item) == number:
                return True
        return False

    return test


def _is_ordered(order: Callable[[Any, Any], bool], text: str, *, bare: bool) -> Callable[[Any], bool]:
    number = _number(text) if bare else None
    if number is None:
        return lambda found: isinstance(found, str) and order(found, text)

    def test(found: Any) -> bool:
        value = _number(found)
        return value is not None and order(value, number)

    return test


def _elements(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def _number(value: Any) -> float | int | None:
    """The number that a JSON value is; amounts logged as Decimal are text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    if isinstance(value, str) and len(value) <= 40 and _NUMBER.fullmatch(value):
        # whole numbers stay whole: ids of 18 digits would share a float
        return int(value) if value.lstrip("+-").isdecimal() else float(value)
    return None
