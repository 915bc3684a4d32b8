"""The JSON Schema of the flag file: editors and the parser say the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from jarvis_flags import conditions, model, parse, schedule, schema
from jarvis_flags.parse import parse_flags
from jarvis_flags.tree import load_tree, plain

ROOT = Path(__file__).parent.parent
VALIDATOR = Draft202012Validator(schema.flags_schema())


def refused_by_schema(document):
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(document)]


def refused_by_parser(document):
    return [str(problem) for problem in parse_flags(load_tree(json.dumps(document)), "flags.json").problems]


def test_the_committed_schema_is_the_generated_one():
    done = subprocess.run([sys.executable, "-m", "jarvis_flags.schema"], capture_output=True, text=True, check=True)
    committed = (ROOT / "config" / "flags.schema.json").read_text()
    assert committed == done.stdout, "run: python -m jarvis_flags.schema > config/flags.schema.json"
    Draft202012Validator.check_schema(json.loads(committed))


def test_the_schema_has_the_fields_rule_types_and_operators_of_the_parser_and_no_others():
    assert set(schema._DOCUMENT) == set(parse.TOP_KEYS)
    assert set(schema._FLAG) == set(parse._FLAG)
    assert set(schema._RULE) == set(parse._RULE)
    assert set(schema._VALUES) == set(model.RULE_TYPES)
    assert set(schema._SCHEDULE) == set(schedule._KEYS)
    assert set(schema._RAMP) == set(schedule._RAMP_KEYS)
    assert set(schema._LITERALS) == set(conditions.OPERATORS)


def test_each_field_says_in_one_sentence_what_it_is_for():
    for table in (schema._DOCUMENT, schema._FLAG, schema._RULE, schema._SCHEDULE, schema._RAMP, schema._VALUES):
        for name, field in table.items():
            said = field["description"]
            assert said[0].isupper(), name
            assert said.index(".") == len(said) - 1, name


@pytest.mark.parametrize(
    "path",
    [
        "config/flags.yaml",
        "examples/jarvis_bot/config/flags.yaml",
        "tests/data/design_flags.yaml",
        "tests/data/feature_flags.json",
        "tests/conformance/openfeature/flags.yaml",
    ],
)
def test_files_of_this_repository_are_valid(path):
    assert refused_by_schema(plain(load_tree((ROOT / path).read_bytes()))) == []


def flag(**fields):
    return {"flags": {"A": fields}}


def rule(kind, value, **fields):
    return flag(rules=[{"type": kind, "value": value, **fields}])


def condition(op, value):
    return rule("user_segment", {"attribute": "x", "op": op, "value": value})


@pytest.mark.parametrize(
    "document",
    [
        [],
        "text",
        {"flag": {}},
        {"flags": []},
        {"flags": {"A": 5}},
        {"flags": {"A": None}},
        {"flags": {"": {}}},
        {"segments": {"s": {}}},
        {"segments": {"s": None}},
        {"environment": True},
        flag(enabeld=True),
        flag(enabled="on"),
        flag(enabled=1),
        flag(status="retired"),
        flag(name=True),
        flag(services="telegram"),
        flag(services=[True]),
        flag(services=[1.5]),
        flag(requires="B"),
        flag(environment_defaults={"prod": 1}),
        flag(environment_defaults=["prod"]),
        flag(variants={}),
        flag(variants={"a": None}),
        flag(variants={"a": 1, "b": "x"}),
        flag(variants=["a"]),
        flag(default="a"),
        flag(variants={"a": 1}, default=1),
        flag(expires_at="soon"),
        flag(expires_at=2027),
        flag(on_expiry="delete"),
        flag(dangerous="maybe"),
        flag(status=[]),
        flag(status=False),
        flag(on_expiry=""),
        flag(variants={"a": 1}, default=[]),
        rule("percentage", {"on": 5, "off": None}, hash="flagd-v3"),
        flag(approvals=0),
        flag(approvals=1.5),
        flag(metadata={"a": []}),
        flag(rules=5),
        flag(rules=[5]),
        flag(rules=[{"type": "percentage"}]),
        flag(rules=[{"value": 5}]),
        rule("percentag", 5),
        rule("percentage", 110),
        rule("percentage", -1),
        rule("percentage", "5"),
        rule("percentage", True),
        rule("percentage", {}),
        rule("percentage", {"on": 101, "off": -1}),
        rule("percentage", 5, priority="high"),
        rule("percentage", 5, priority=2_000_000),
        rule("percentage", 5, variant=True),
        rule("percentage", 5, salt=True),
        rule("percentage", 5, vairant="on"),
        rule("percentage", 5, environments="prod"),
        rule("percentage", 5, segment=5),
        rule("percentage", 5, hash="flagd-v3"),
        rule("percentage", {"on": 1.5}, hash="flagd-v3"),
        rule("percentage", {"on": 1}, hash="md5"),
        rule("percentage", {"on": 1}, hash="flagd-v3", salt="x"),
        rule("percentage", {"on": 100}, by={"var": "email"}),
        rule("user_ids", ["ann"], hash="flagd-v3"),
        rule("jsonlogic", "on", variant="on"),
        rule("user_segment", {"jsonlogic": True, "hash": "md5"}),
        rule("user_ids", "ann"),
        rule("user_ids", None),
        rule("user_ids", ["ann"], salt="x"),
        rule("environments", ["prod"], by="x"),
        rule("environments", [None]),
        rule("user_segment", None),
        rule("user_segment", {"all": []}),
        rule("user_segment", {"any": {}}),
        rule("user_segment", {"not": None}),
        rule("user_segment", {"all": [{"attribute": "x", "op": "eq", "value": 1}], "any": []}),
        rule("user_segment", {"attribute": "", "op": "eq", "value": 1}),
        rule("user_segment", {"attribute": "x", "op": "equals", "value": 1}),
        rule("user_segment", {"attribute": "x", "op": "eq"}),
        rule("user_segment", {"attribute": "x", "op": "eq", "value": 1, "extra": 1}),
        condition("eq", [1]),
        condition("in", "x"),
        condition("in", [None]),
        condition("contains", None),
        condition("starts_with", 5),
        condition("matches", "x" * 501),
        condition("gt", True),
        condition("semver_ge", True),
        condition("semver_ge", "one"),
        condition("exists", "yes"),
        rule("schedule", None),
        rule("schedule", {}),
        rule("schedule", {"begin": "2027-03-01"}),
        rule("schedule", {"start": "tomorrow"}),
        rule("schedule", {"days": []}),
        rule("schedule", {"days": ["mo"]}),
        rule("schedule", {"hours": "all day"}),
        rule("schedule", {"hours": "9-17"}),
        rule("schedule", {"timezone": None}),
        rule("schedule", {"ramp": {"start": "2027-03-01", "end": "2027-03-02", "from": 0}}),
        rule("schedule", {"ramp": {"start": "2027-03-01", "end": "2027-03-02", "from": 0, "to": 101}}),
    ],
    ids=json.dumps,
)
def test_what_has_the_wrong_shape_is_refused_by_the_schema_and_by_the_parser(document):
    assert refused_by_parser(document)
    assert refused_by_schema(document)


@pytest.mark.parametrize(
    "document",
    [
        rule("percentage", {"on": 50, "off": 49}),
        rule("percentage", {"on": 50, "of": 50}),
        rule("percentage", 0.0001),
        rule("user_segment", "nowhere"),
        rule("user_ids", ["ann"], variant="blue"),
        condition("matches", "(a+)+"),
        rule("jsonlogic", {"no_such": []}),
        rule("schedule", {"timezone": "Mars"}),
        rule("schedule", {"start": "2027-03-02", "end": "2027-03-01"}),
        flag(variants={"a": 1}, default="b"),
        {"flags": {"A": {"requires": ["B"]}, "B": {"requires": ["A"]}}},
        {"flags": {"A-B": {}, "A_B": {}}},
    ],
    ids=json.dumps,
)
def test_names_totals_cycles_and_patterns_only_the_parser_sees(document):
    assert refused_by_parser(document)
    assert refused_by_schema(document) == []


# --- documents that are right ---

_text = st.text("abcxyz-_. äß", min_size=1, max_size=8)
_percent = st.integers(0, 100_000).map(lambda n: n / 1000) | st.integers(0, 100)
_scalar = _text | st.integers(-1000, 1000) | st.booleans() | st.floats(-1e6, 1e6)
_literals = {
    "in": st.lists(_scalar, max_size=3),
    "not_in": st.lists(_scalar, max_size=3),
    "eq": _scalar,
    "ne": _scalar,
    "contains": _scalar,
    "starts_with": _text,
    "ends_with": _text,
    "matches": st.sampled_from(["^a", "x{1,3}$", "[a-z]"]),
    "exists": st.booleans(),
    **dict.fromkeys(["gt", "ge", "lt", "le"], _text | st.integers() | st.floats(-9, 9)),
    **dict.fromkeys(
        ["semver_eq", "semver_gt", "semver_ge", "semver_lt", "semver_le"],
        st.sampled_from(["1.10.0", "v2", "1.0.0-rc.1+build", 2, 1.5]),
    ),
}
_comparison = st.sampled_from(sorted(_literals)).flatmap(
    lambda op: st.fixed_dictionaries({"attribute": _text, "op": st.just(op), "value": _literals[op]})
)
_condition = st.recursive(
    _comparison,
    lambda inner: (
        st.fixed_dictionaries({"not": inner})
        | st.just({"jsonlogic": {"==": [{"var": "x"}, 1]}, "hash": "flagd-v3"})
        | st.fixed_dictionaries({"all": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"any": st.lists(inner, min_size=1, max_size=3)})
    ),
    max_leaves=5,
)
_moment = st.dates().map(str) | st.datetimes().map(lambda moment: moment.isoformat())
_day = st.sampled_from(["mon", "Tue", "wednesday", "THURS", "fri", "sat", "Sunday"])
_ramp = st.fixed_dictionaries(
    {"start": st.just("2026-01-01"), "end": st.just("2026-02-01T09:00:00Z"), "from": _percent, "to": _percent}
)
_schedule = st.fixed_dictionaries(
    {"timezone": st.sampled_from(["UTC", "Europe/Vienna"])},
    optional={
        "start": st.none() | st.just("2026-05-01"),
        "end": st.none() | st.just("2027-05-01T10:00:00+02:00"),
        "days": _day | st.lists(_day, min_size=1, max_size=3),
        "hours": st.sampled_from(["09:00-17:30", "22:00 - 06:00", "00:00-24:00"]),
        "ramp": st.none() | _ramp,
    },
)
_priority = st.none() | st.integers(-1_000_000, 1_000_000)
_texts = st.lists(_text | st.integers(0, 2**40), max_size=3)


def _rules(variants):
    common = {"priority": _priority, "environments": st.none() | _texts, "segment": _condition | st.just("seg")}
    hashed = {"salt": _text | st.integers(), "by": _text}
    named = {} if variants is None else {"variant": st.sampled_from(variants)}
    optional_variant = {"variant": st.sampled_from(["on", "off"])} if variants is None else {}

    def of(kind, value, **extra):
        return st.fixed_dictionaries(
            {"type": st.just(kind), "value": value, **named}, optional={**common, **optional_variant, **extra}
        )

    names = variants or ["on", "off"]
    split = st.integers(0, 100_000).map(
        lambda n: {names[0]: n / 1000, names[-1]: (100_000 - n) / 1000} if len(names) > 1 else {names[0]: 100}
    )
    splits = st.fixed_dictionaries({"type": st.just("percentage"), "value": split}, optional={**common, **hashed})
    weights = st.dictionaries(st.sampled_from(names), st.integers(1, 1000), min_size=1)
    from_flagd = st.fixed_dictionaries(
        {"type": st.just("percentage"), "value": weights, "hash": st.sampled_from(["flagd-v2", "flagd-v3"])},
        optional={**common, "by": _text | st.just({"var": "email"})},
    )
    logic = st.fixed_dictionaries(
        {"type": st.just("jsonlogic"), "value": st.just({"if": [{"==": [{"var": "x"}, 1]}, names[0], None]})},
        optional={**common, "hash": st.none() | st.just("flagd-v3")},
    )
    return st.lists(
        from_flagd
        | logic
        | of("percentage", _percent, **hashed)
        | splits
        | of("user_ids", _texts)
        | of("environments", _texts)
        | of("user_segment", _condition | st.just("seg"))
        | of("schedule", _schedule, **hashed),
        max_size=3,
    )


_common_fields = {
    "name": st.none() | _text | st.floats(0, 9),
    "description": _text,
    "category": _text,
    "owner": _text,
    "services": st.none() | _texts,
    "enabled": st.none() | st.booleans(),
    "status": st.none() | st.sampled_from(["active", "deprecated", "disabled"]),
    "requires": st.just(["BASE"]),
    "created_at": _text,
    "updated_at": _text,
    "expires_at": st.none() | _moment,
    "on_expiry": st.sampled_from(["alert", "disable", None]),
    "requires_restart": st.booleans(),
    "dangerous": st.booleans(),
    "approvals": st.none() | st.integers(1, 10),
    "metadata": st.none() | st.dictionaries(_text, _scalar, max_size=2),
}
_boolean_flag = st.fixed_dictionaries(
    {},
    optional={
        **_common_fields,
        "rules": st.none() | _rules(None),
        "environment_defaults": st.dictionaries(_text, st.booleans(), max_size=2),
    },
)


def _typed_flag(variants):
    names = list(variants)
    return st.fixed_dictionaries(
        {"variants": st.just(variants)},
        optional={
            **_common_fields,
            "default": st.none() | st.sampled_from(names),
            "rules": st.none() | _rules(names),
            "environment_defaults": st.dictionaries(_text, st.booleans() | st.sampled_from(names), max_size=2),
        },
    )


_values = st.sampled_from(
    [
        st.booleans(),
        _text,
        st.integers(-(2**53) + 1, 2**53 - 1),
        st.integers(-9, 9) | st.floats(-9, 9),
        st.lists(_scalar, max_size=2) | st.dictionaries(_text, _scalar | st.none(), max_size=2),
    ]
)
_variants = _values.flatmap(lambda values: st.dictionaries(_text, values, min_size=1, max_size=3))
_documents = st.fixed_dictionaries(
    {
        "segments": st.fixed_dictionaries({"seg": _condition}),
        "flags": st.fixed_dictionaries(
            {"BASE": st.just({})}, optional={"A": _boolean_flag, "B": _variants.flatmap(_typed_flag)}
        ),
    },
    optional={"$schema": _text, "version": st.just("1.0"), "environment": st.none() | _text},
)


@settings(max_examples=300, deadline=None)
@given(_documents)
def test_what_is_right_is_taken_by_the_schema_and_by_the_parser(document):
    assert refused_by_parser(document) == []
    assert refused_by_schema(document) == []


_anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats(-3, 200) | st.sampled_from(["", "on", "x", "2027-01"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["on", "all", "x"]), inner, max_size=2),
    max_leaves=4,
)


def _places(tree):
    """Each (container, key) of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)


@settings(max_examples=600, deadline=None)
@given(_documents, st.data())
def test_the_schema_never_refuses_what_the_parser_takes(document, data):
    document = json.loads(json.dumps(document))
    container, key = data.draw(st.sampled_from(list(_places(document))))
    container[key] = data.draw(_anything)
    if not refused_by_parser(document):
        assert refused_by_schema(document) == []
