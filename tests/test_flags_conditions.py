"""Conditions over the attributes of a context, operator by operator, by themselves."""

import itertools
import sys
from collections import UserString
from decimal import Decimal

import pytest

from jarvis_flags.conditions import (
    OPERATORS,
    OWN_NAMES,
    ConditionError,
    all_of,
    any_of,
    compile_condition,
    parse_semver,
    reader,
)
from jarvis_flags.request import Request
from jarvis_flags.tree import NumberText

NOTHING = object()


def holds(op, literal, value=NOTHING, attribute="n"):
    attributes = {} if value is NOTHING else {attribute: value}
    given = compile_condition(attribute, op, literal)(Request("u", "prod", "r", attributes))
    assert given in (True, False)
    return given


@pytest.mark.parametrize(
    ("op", "literal", "inside", "outside"),
    [
        ("eq", "a", ["a"], ["A", "ab", 1, ["a"], {}]),
        ("eq", 1, [1, 1.0], [2, True, "1", [1]]),
        ("eq", 0, [0, 0.0, -0.0], [False, "", "0"]),
        ("eq", True, [True], [1, "true", False]),
        ("eq", False, [False], [0, "", True]),
        ("ne", "a", ["b", 1, True, Decimal(2)], ["a", ["b"], ("b",), {}, {"b"}]),
        ("ne", 1, [2, True, "1", Decimal(2)], [1, 1.0, Decimal(1), [2], (2,), {}, {2}]),
        ("in", ["a", "b"], ["a", "b"], ["c", 1, ["a"], {}, "ab"]),
        ("in", ["a", 1, True], ["a", 1, 1.0, True], [False, "1", 2, ["a"]]),
        ("in", [0], [0, 0.0], [False, ""]),
        ("in", ["a", True], ["a", True], [1, 1.0, False, "True"]),
        ("in", [], [], ["a", 0]),
        ("not_in", ["a", 1], ["b", 2, True, "1"], ["a", 1, ["b"], ("b",)]),
        ("not_in", ["a"], ["b", 1], ["a", ["b"], ("b",), {}]),
        ("contains", "ab", ["ab", "xaby", ["ab"], ("x", "ab")], ["a", "AB", ["xaby"], [], 5, {"ab": 1}]),
        ("contains", "ab", [[{"id": 1}, "ab"], (["x"], "ab")], [[["ab"]], [{"ab": 1}]]),
        ("contains", 1, [[1], [2, 1.0]], ["1", [True], ["1"], 1, [], {1: 2}, {1}, b"\1"]),
        ("starts_with", "ab", ["ab", "abc"], ["cab", "a", 5, ["ab"]]),
        ("ends_with", "ab", ["ab", "cab"], ["abc", "b", 5, ["ab"]]),
        ("matches", "^a+$", ["a", "aaa"], ["ab", "", 5, ["a"]]),
        ("matches", "b", ["abc"], ["ac"]),
        ("gt", 10, [11, 10.5], [10, 9, "11", True, None, [11]]),
        ("ge", 10, [10, 10.0, 11], [9.9, "10", True]),
        ("lt", 10, [9, -1.5], [10, 11, "9", False, {}]),
        ("le", 10, [10, 9], [10.1, "9", False]),
        ("lt", 0.5, [0, 0.4], [0.5, True]),
        ("ge", 2**53 + 1, [2**53 + 1], [2**53, float(2**53)]),
        ("gt", "b", ["c", "bb"], ["b", "a", 5]),
        ("le", "b", ["b", "a"], ["c", 1]),
        ("semver_eq", "1.10.0", ["1.10.0", "v1.10", "1.10.0+x"], ["1.1.0", "1.10.0-rc", "1.10.0.0", "x", 1.1]),
        ("semver_gt", "1.9.0", ["1.10.0", "2"], ["1.9.0", "1.8.9", "1.9.0-rc", "", None]),
        ("semver_ge", "1.9.0", ["1.9.0", "1.10.0"], ["1.9.0-rc", "1.8"]),
        ("semver_lt", "1.9.0", ["1.9.0-rc", "1.8.99"], ["1.9.0", "1.10"]),
        ("semver_le", "1.9.0", ["1.9", "1.8"], ["1.9.1"]),
        ("semver_ge", NumberText("1.10"), ["1.10.0", "1.11"], ["1.9.0", 1.1, True]),
        ("exists", True, ["", 0, False, []], [None, NOTHING]),
        ("exists", False, [None, NOTHING], ["", 0, False]),
    ],
)
def test_an_operator_holds_for_some_values_and_not_for_others(op, literal, inside, outside):
    assert [value for value in inside if not holds(op, literal, value)] == []
    assert [value for value in outside if holds(op, literal, value)] == []
    # a nested attribute and one that a context has of itself are asked in the same way
    values = [value for value in inside if value is not NOTHING]
    assert [value for value in values if not holds(op, literal, value, "a.b")] == []
    assert [value for value in outside if holds(op, literal, value, "a.b")] == []
    values = [value for value in inside if value is not NOTHING and value is not None]
    assert [value for value in values if not holds(op, literal, value, "user_id")] == []


class Grid:
    """As arrays of numpy are: comparing one gives another, and that is neither true nor false."""

    __hash__ = None

    def compared(self, _):
        return self

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = compared

    def __bool__(self):
        raise ValueError("which of its items is meant?")


@pytest.mark.parametrize("attribute", ["n", "a.b", "user_id"])
@pytest.mark.parametrize("value", [Grid(), Decimal("sNaN")])
def test_what_cannot_be_compared_holds_for_no_operator_and_stops_none(value, attribute):
    literals = {"in": ["a"], "not_in": [1], "exists": False}
    assert [op for op in OPERATORS if holds(op, literals.get(op, "1"), value, attribute)] == []
    assert [op for op in ("eq", "ne", "gt", "ge", "lt", "le") if holds(op, 1, value, attribute)] == []
    assert not holds("contains", 1, [value], attribute)


class Lookalike(UserString):
    """Does all that text does, and is none."""

    def __getitem__(self, index):
        return self.data[index]


@pytest.mark.parametrize("op", ["contains", "starts_with", "ends_with", "matches", "ge", "le", "semver_eq"])
def test_only_text_is_taken_for_text(op):
    assert holds(op, "1.0.0", "1.0.0")
    assert not holds(op, "1.0.0", Lookalike("1.0.0"))


@pytest.mark.parametrize(("op", "literal"), [("eq", "a"), ("in", ["a", "b"]), ("in", ["x"])])
def test_to_compare_with_texts_takes_a_look_at_the_attribute_and_no_further_call(op, literal):
    condition, request, events = compile_condition("n", op, literal), Request("u", "prod", "r", {"n": "a"}), []
    sys.setprofile(lambda frame, event, called: events.append((event, called)))
    try:
        condition(request)
    finally:
        sys.setprofile(None)
    calls = [(event, called) for event, called in events if "call" in event and called is not sys.setprofile]
    assert calls == [("call", None), ("c_call", request.attributes.get)]


@pytest.mark.parametrize("op", [op for op in OPERATORS if op != "exists"])
def test_without_the_attribute_no_operator_holds(op):
    literal = {"in": ["a"], "not_in": ["a"]}.get(op, "1.0.0")
    for attribute in ("n", "a.b"):
        assert not holds(op, literal, attribute=attribute)
        assert not holds(op, literal, None, attribute)


@pytest.mark.parametrize(
    ("op", "literals"),
    [
        ("eq", [None, [1], {}]),
        ("ne", [None, []]),
        ("in", ["a", None, [None], [[1]]]),
        ("not_in", ["a", [{}]]),
        ("contains", [None, []]),
        ("starts_with", [1, None]),
        ("ends_with", [1, True]),
        ("matches", [1, "(", None]),
        ("gt", [True, None, []]),
        ("le", [False, {}]),
        ("semver_eq", ["x", True, None, "", "1.2.3.4", "1.0.0-" + "1" * 5000]),
        ("exists", ["true", 1, None]),
    ],
)
def test_a_literal_that_an_operator_cannot_work_with_is_refused(op, literals):
    for literal in literals:
        with pytest.raises(ConditionError):
            compile_condition("n", op, literal)


@pytest.mark.parametrize("name", sorted(OWN_NAMES))
def test_what_a_context_has_of_itself_is_found_by_name_but_an_attribute_wins(name):
    own = {"user_id": "u", "targetingKey": "u", "environment": "prod", "request_id": "r"}[name]
    assert reader(name)(Request("u", "prod", "r", {})) == own
    assert reader(name)(Request("u", "prod", "r", {name: "told"})) == "told"
    assert reader(name)(Request("u", "prod", "r", {name: None})) == own
    assert compile_condition(name, "eq", own)(Request("u", "prod", "r", {}))


def test_dots_lead_into_nested_attributes_unless_a_name_has_them():
    read = reader("a.b.c")
    assert read(Request("u", "prod", None, {"a": {"b": {"c": 5}}})) == 5
    assert read(Request("u", "prod", None, {"a.b.c": 6, "a": {"b": {"c": 5}}})) == 6
    for attributes in ({}, {"a": None}, {"a": {"b": 1}}, {"a": [1]}, {"a": {}}):
        assert read(Request("u", "prod", None, attributes)) is None


@pytest.mark.parametrize("count", range(1, 8))
def test_all_and_any_ask_as_many_parts_as_there_are(count):
    for given in itertools.product((True, False), repeat=count):
        parts = [lambda _, given=one: given for one in given]
        assert all_of(parts)(None) is all(given)
        assert any_of(parts)(None) is any(given)


def test_semantic_versions_have_the_order_of_their_standard():
    ordered = [
        *("0.9.9", "1.0.0-1", "1.0.0-2", "1.0.0-10", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta"),
        *("1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0"),
    ]
    keys = [parse_semver(text) for text in ordered]
    assert all(low < high for low, high in itertools.pairwise(keys))


@pytest.mark.parametrize("text", ["1", "1.0", "v1.0.0", "V1", "1.0.0+build.5", "1.0.0+"])
def test_a_leading_v_missing_parts_and_build_metadata_make_no_difference(text):
    assert parse_semver(text) == parse_semver("1.0.0")


@pytest.mark.parametrize(
    "text", [*("", "x", "1.", "1.0.0.0", "1.0.0-", "-1", "1.0.0-a..b", " 1", "1\n", "9" * 19), "1.0.0-" + "1" * 5000]
)
def test_what_is_no_semantic_version_has_no_key(text):
    assert parse_semver(text) is None


def test_a_pattern_looks_at_the_beginning_of_a_long_text_alone():
    assert holds("matches", "^a", "a" * 100_000)
    assert not holds("matches", "b", "a" * 1_000_000 + "b")
