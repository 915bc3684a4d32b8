"""The evaluation order, step by step, and the buckets."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openfeature.exception import ErrorCode

from jarvis_flags.buckets import BUCKETS, bucket, in_below, seed, threshold
from jarvis_flags.model import EvaluationContext
from jarvis_flags.overrides import Override, OverrideSet
from jarvis_flags.parse import parse_flags
from jarvis_flags.request import CALLERS_DEFAULT, Request
from jarvis_flags.snapshot import build_snapshot
from jarvis_flags.tree import load_tree

USERS = [f"user{number}" for number in range(1000)]


def snapshot_of(text, *, overrides=None, pins=None, environment="prod", broken=None, clock=lambda: 0.0, previous=None):
    flags = parse_flags(load_tree(text), "flags.yaml")
    return build_snapshot(
        flags,
        previous=previous,
        overrides=OverrideSet(1, overrides or {}),
        overrides_broken=broken,
        pins=pins or {},
        environment=environment,
        clock=clock,
    )


def flag_of(definition, **parts):
    """A snapshot with the one flag F."""
    return snapshot_of(f"flags:\n  F: {definition}", **parts)


def give(snapshot, user=None, environment=None, flag="F", **attributes):
    return snapshot.evaluate(flag, snapshot.request(EvaluationContext(user, environment, None, attributes)))


def told(result):
    return result.value, str(result.reason)


@pytest.mark.parametrize(
    ("flag_id", "key", "wanted"),
    [
        ("TEST_PCT", "user123", 19385),
        ("NEW_TELEGRAM_UI_ENABLED", "123456789", 48386),
        ("ADVANCED_TRADING_ENABLED", "123456789", 47790),
    ],
)
def test_the_bucket_of_a_released_hash_never_changes(flag_id, key, wanted):
    assert bucket(seed(flag_id), key) == wanted


@given(st.text(max_size=20).filter(lambda t: "\0" not in t), st.text(max_size=20))
def test_any_key_has_a_bucket_even_a_lone_surrogate(flag_id, key):
    assert 0 <= bucket(seed(flag_id), key) < BUCKETS


@given(st.text(max_size=20), st.integers(0, BUCKETS))
def test_being_in_is_having_a_bucket_below_the_limit(key, limit):
    assert in_below(seed("F"), limit)(key) is (bucket(seed("F"), key) < limit)


def test_a_seed_keeps_its_parts_apart():
    assert seed("ab", "c") != seed("a", "bc")
    with pytest.raises(ValueError, match="NUL"):
        seed("a\0b")


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_raising_a_percentage_keeps_who_is_in(low, high):
    low, high = sorted((low, high))
    assert threshold(low / 1000) <= threshold(high / 1000)


@pytest.mark.parametrize("percent", [-1, 100.1, float("nan"), 0.0001, 33.33333])
def test_a_percentage_outside_or_too_fine_is_refused(percent):
    with pytest.raises(ValueError):
        threshold(percent)


def test_cohorts_of_two_flags_are_independent():
    text = "flags:\n" + "".join(
        f"  {name}: {{rules: [{{type: percentage, value: 10}}]}}\n" for name in ("FIRST", "SECOND")
    )
    snapshot = snapshot_of(text)
    first, second = (
        {user for user in map(str, range(20_000)) if give(snapshot, user, flag=name).on} for name in ("FIRST", "SECOND")
    )
    assert 0.06 < len(first & second) / len(first) < 0.14


def test_step_1_a_disabled_flag_is_off_without_an_error_whatever_is_set():
    snapshot = flag_of("{enabled: true, status: disabled}", pins={"FF_F": "true"}, overrides={"F": Override("on")})
    result = give(snapshot)
    assert (result.value, result.variant, str(result.reason), result.error_code) == (False, None, "DISABLED", None)


@pytest.mark.parametrize("pin", ["false", "0", "off", "OFF", "nonsense", ""])
def test_step_2_a_pin_to_off_or_an_unreadable_one_beats_an_override_on(pin):
    result = give(flag_of("{enabled: true}", pins={"FF_F": pin}, overrides={"F": Override("on")}))
    assert (result.value, result.metadata["override"]) == (False, "env")


def test_step_3_an_override_off_beats_a_pin_to_on_and_every_rule():
    snapshot = flag_of(
        "{enabled: true, rules: [{type: user_ids, value: [u1]}]}", pins={"FF_F": "1"}, overrides={"F": Override("off")}
    )
    result = give(snapshot, "u1")
    assert (result.value, result.metadata["override"]) == (False, "runtime")


def test_step_4_a_flag_is_off_while_a_prerequisite_is_off_and_names_it():
    text = "flags:\n  F: {enabled: true, requires: [P, Q]}\n  P: {enabled: true}\n  Q: {enabled: false}\n"
    result = give(snapshot_of(text, pins={"FF_F": "true"}))
    assert (result.value, result.metadata["prerequisite"], result.error_code) == (False, "Q", None)
    assert give(snapshot_of(text, overrides={"Q": Override("on")})).on


def test_step_4_a_prerequisite_that_no_file_defines_is_off():
    snapshot = flag_of("{enabled: true, requires: [NOWHERE]}")
    assert give(snapshot).metadata["prerequisite"] == "NOWHERE"
    assert "NOWHERE" in str(snapshot.problems[0])


def test_step_5_a_pin_to_on_is_static_and_beats_rules_and_environment_defaults():
    result = give(flag_of("{environment_defaults: {prod: false}}", pins={"FF_F": "true"}))
    assert (told(result), result.metadata["override"]) == ((True, "STATIC"), "env")


def test_step_5_a_pin_names_a_variant_of_a_typed_flag():
    snapshot = flag_of("{variants: {low: 100, high: 1000}, default: low}", pins={"FF_F": "high"})
    assert give(snapshot).value == 1000
    assert give(flag_of("{variants: {low: 100, high: 1000}, default: low}", pins={"FF_F": "on"})).value == 100


def test_step_6_an_override_on_is_on_for_everyone_whatever_the_environment_defaults():
    result = give(flag_of("{environment_defaults: {prod: false}}", overrides={"F": Override("on")}))
    assert (told(result), result.metadata["override"]) == ((True, "STATIC"), "runtime")


def test_step_6_off_and_on_again_never_turns_a_quarter_into_everyone():
    definition = "{rules: [{type: percentage, value: 25}], environment_defaults: {prod: false}}"
    before = [give(flag_of(definition), user).on for user in USERS]
    after = [give(flag_of(definition, overrides={"F": Override("on")}), user).on for user in USERS]
    assert before == after
    assert 200 < sum(before) < 300


def test_step_6_a_percentage_inside_a_segment_stays_there_when_the_flag_is_turned_on():
    definition = "{rules: [{type: percentage, value: 25, segment: {attribute: plan, op: eq, value: pro}}]}"
    snapshot = flag_of(definition, overrides={"F": Override("on")})
    assert not any(give(snapshot, user, plan="free").on for user in USERS)
    assert 200 < sum(give(snapshot, user, plan="pro").on for user in USERS) < 300


def test_step_6_an_override_serves_a_variant_to_everyone():
    snapshot = flag_of("{variants: {a: x, b: y}, default: a}", overrides={"F": Override("on", variant="b")})
    assert give(snapshot).value == "y"


def test_step_7_rules_are_asked_by_priority_then_in_order():
    definition = """{variants: {a: 1, b: 2, c: 3}, default: a, rules: [
        {type: user_ids, value: [u], variant: b},
        {type: user_ids, value: [u], variant: c, priority: 5},
        {type: user_ids, value: [u], variant: a, priority: 5}]}"""
    result = give(flag_of(definition), "u")
    assert (result.variant, str(result.reason), result.metadata["rule"]) == ("c", "TARGETING_MATCH", "rules[1]")


def test_step_7_who_is_out_of_a_percentage_goes_on_and_enabled_counts_as_off():
    snapshot = flag_of("{enabled: true, rules: [{type: percentage, value: 50}]}")
    assert sum(give(snapshot, user).on for user in USERS) in range(400, 600)
    staging = flag_of("{enabled: true, rules: [{type: percentage, value: 50}], environment_defaults: {staging: true}}")
    assert all(give(staging, user, "staging").on for user in USERS)


def test_step_7_without_a_key_a_percentage_is_passed_over_and_says_so():
    result = give(flag_of("{enabled: true, rules: [{type: percentage, value: 99}]}"))
    assert (result.value, result.metadata["key_missing"]) == (False, True)


def test_step_7_the_request_id_is_the_key_where_there_is_no_user():
    snapshot = flag_of("{rules: [{type: percentage, value: 50}]}")
    results = {
        snapshot.evaluate("F", snapshot.request(EvaluationContext(request_id=f"r{number}"))).on for number in range(50)
    }
    assert results == {True, False}


@pytest.mark.parametrize(("percent", "wanted"), [(100, True), (0, False)])
def test_step_7_100_matches_everyone_and_0_no_one_key_or_not(percent, wanted):
    snapshot = flag_of(f"{{rules: [{{type: percentage, value: {percent}}}]}}")
    assert give(snapshot).on is wanted
    assert give(snapshot, "u").on is wanted
    assert "key_missing" not in give(snapshot).metadata


def test_step_7_a_percentage_set_at_run_time_is_final():
    definition = "{enabled: true, rules: [{type: percentage, value: 25}], environment_defaults: {prod: true}}"
    snapshot = flag_of(definition, overrides={"F": Override("on", percentage=50)})
    assert 400 < sum(give(snapshot, user).on for user in USERS) < 600
    assert all(str(give(snapshot, user).reason) == "SPLIT" for user in USERS)
    assert not give(flag_of(definition, overrides={"F": Override("on", percentage=0)}), "u").on


def test_step_7_a_percentage_set_at_run_time_leaves_listed_users_in():
    definition = "{rules: [{type: user_ids, value: [vip]}]}"
    snapshot = flag_of(definition, overrides={"F": Override("on", percentage=0)})
    assert give(snapshot, "vip").on
    assert not give(snapshot, "other").on


def test_step_7_a_split_gives_consecutive_ranges_in_file_order():
    definition = (
        "{variants: {low: 100, high: 1000}, default: low, rules: [{type: percentage, value: {low: 90, high: 10}}]}"
    )
    snapshot = flag_of(definition)
    for user in USERS:
        assert give(snapshot, user).variant == ("low" if bucket(seed("F"), user) < 90_000 else "high")
    assert give(snapshot).variant == "low"
    assert str(give(snapshot).reason) == "DEFAULT"


def test_step_7_a_salt_and_another_attribute_make_other_cohorts():
    plain, salted, by = (
        flag_of(f"{{rules: [{{type: percentage, value: 50{more}}}]}}") for more in ("", ", salt: x", ", by: team")
    )
    assert [give(plain, user).on for user in USERS] != [give(salted, user).on for user in USERS]
    assert len({give(by, user, team="blue").on for user in USERS}) == 1
    assert give(by, "u").metadata["key_missing"] is True


@pytest.mark.parametrize("key", [True, False, 1.5, "", None])
def test_a_key_that_is_no_string_or_int_is_none(key):
    assert give(flag_of("{rules: [{type: percentage, value: 99}]}"), key).metadata.get("key_missing") is True


def test_an_int_and_its_text_are_the_same_key():
    snapshot = flag_of("{rules: [{type: user_ids, value: [123, '456']}]}")
    assert [give(snapshot, user).on for user in (123, "123", 456, "456", 789)] == [True, True, True, True, False]


def test_step_8_and_9_the_environment_default_decides_then_enabled():
    snapshot = flag_of("{enabled: true, environment_defaults: {prod: false}}")
    assert [give(snapshot, environment=name).on for name in (None, "prod", "dev")] == [False, False, True]


def test_static_is_the_reason_where_nothing_depends_on_the_context_and_default_elsewhere():
    assert told(give(flag_of("{enabled: true}"))) == (True, "STATIC")
    assert told(give(flag_of("{enabled: true, environment_defaults: {dev: true}}"))) == (True, "DEFAULT")


def test_the_users_own_file_gives_what_design_3_6_works_out(request):
    content = (request.path.parent / "data" / "feature_flags.json").read_bytes()
    snapshot = snapshot_of(content)
    assert snapshot.problems == ()

    def on(flag, user=None, environment=None):
        return give(snapshot, user, environment, flag).on

    assert all(on("DEXTER_ENABLED", user, env) for user in ("1", None) for env in ("dev", "staging"))
    assert [on("DEXTER_ENABLED", user) for user in ("123456789", "1", None)] == [True, False, False]
    for flag, low, high in (("ADVANCED_TRADING_ENABLED", 70, 130), ("NEW_TELEGRAM_UI_ENABLED", 200, 300)):
        assert all(on(flag, user, env) for user in USERS[:50] for env in ("dev", "staging"))
        assert low < sum(on(flag, user) for user in USERS) < high
    assert not any(on("LIVE_TRADING_ENABLED", "u", env) for env in ("dev", "staging", "prod"))


def test_the_file_of_design_3_1_loads_unchanged(request):
    content = (request.path.parent / "data" / "design_flags.yaml").read_bytes()
    snapshot = snapshot_of(content.replace(b"requires: [OTHER_FLAG]", b"requires: []"))
    assert snapshot.problems == ()
    assert give(snapshot, "u", plan="pro", flag="NEW_TELEGRAM_UI_ENABLED").metadata["rule"] == "rules[0]"
    assert give(snapshot, "u", email="a@jarvis.dev", flag="NEW_TELEGRAM_UI_ENABLED").on
    assert give(snapshot, "u", flag="TRADE_LIMIT_USD").value in (100, 1000)
    unchanged = snapshot_of(content)
    assert not unchanged.bad
    assert give(unchanged, flag="NEW_TELEGRAM_UI_ENABLED").metadata["prerequisite"] == "OTHER_FLAG"


def test_an_unknown_flag_gives_the_callers_default_and_says_so():
    result = give(flag_of("{}"), flag="NOWHERE")
    assert (result.value, result.error_code) == (CALLERS_DEFAULT, ErrorCode.FLAG_NOT_FOUND)


def test_off_of_a_typed_flag_is_the_callers_default_disabled():
    definition = "{variants: {low: 100, high: 1000}, default: low}"
    for snapshot in (
        flag_of(definition, overrides={"F": Override("off")}),
        flag_of(definition, pins={"FF_F": "off"}),
        flag_of(definition.replace("}, def", "}, enabled: false, def")),
    ):
        assert told(give(snapshot)) == (CALLERS_DEFAULT, "DISABLED")


def test_unreadable_overrides_turn_every_dangerous_flag_off_and_no_other():
    text = "flags:\n  F: {enabled: true, dangerous: true}\n  G: {enabled: true}\n"
    snapshot = snapshot_of(text, broken="cannot be read", pins={"FF_F": "true"})
    assert [give(snapshot, flag=name).on for name in "FG"] == [False, True]


def test_an_override_lapses_by_itself():
    now = [100.0]
    snapshot = flag_of("{enabled: false}", overrides={"F": Override("on", expires_at=200)}, clock=lambda: now[0])
    assert give(snapshot).on
    now[0] = 200.0
    assert not give(snapshot).on


def test_a_flag_that_requires_a_restart_keeps_its_value_but_off_takes_effect_at_once():
    definition = "{enabled: %s, requires_restart: true}"
    off, on = (flag_of(definition % word) for word in ("false", "true"))
    later = flag_of(definition % "true", previous=off)
    assert not give(later).on
    assert not give(flag_of(definition % "true", previous=later)).on
    assert not give(flag_of(definition % "true", previous=on, overrides={"F": Override("off")})).on
    assert give(flag_of(definition % "true", previous=on)).on


def test_an_expired_flag_goes_on_unless_it_says_otherwise():
    day = 86400 * 365 * 60
    alert, disable = (
        flag_of(f"{{enabled: true, expires_at: 2027-03-01, on_expiry: {word}}}", clock=lambda: day)
        for word in ("alert", "disable")
    )
    assert [told(give(snapshot)) for snapshot in (alert, disable)] == [(True, "STATIC"), (False, "DISABLED")]


def test_a_schedule_holds_in_its_hours_days_and_zone():
    definition = """{rules: [{type: schedule, value: {start: 2026-11-02, end: 2026-12-01, days: [mon, fri],
        hours: "22:00-02:00", timezone: Europe/Vienna}}]}"""
    from datetime import datetime

    def on(moment):
        stamp = datetime.fromisoformat(moment).timestamp()
        return give(flag_of(definition, clock=lambda: stamp)).on

    assert on("2026-11-06T22:30:00+01:00")
    assert on("2026-11-07T01:30:00+01:00"), "the hours of Friday reach into Saturday"
    assert not on("2026-11-07T22:30:00+01:00")
    assert not on("2026-11-06T21:59:59+01:00")
    assert not on("2026-12-04T22:30:00+01:00")


def test_a_ramp_climbs_and_keeps_who_is_in():
    definition = (
        """{rules: [{type: schedule, value: {ramp: {start: 2026-01-01, end: 2026-01-11, from: 0, to: 100}}}]}"""
    )
    from datetime import UTC, datetime

    def who(day):
        stamp = datetime(2026, 1, day, tzinfo=UTC).timestamp()
        snapshot = flag_of(definition, clock=lambda: stamp)
        return {user for user in USERS if give(snapshot, user).on}

    days = [who(day) for day in (1, 3, 6, 11)]
    assert [low <= high for low, high in itertools.pairwise(days)] == [True] * 3
    assert (len(days[0]), len(days[3])) == (0, 1000)
    assert 400 < len(days[2]) < 600


@pytest.mark.parametrize(
    ("condition", "attributes", "wanted"),
    [
        ("{attribute: n, op: eq, value: 1}", {"n": 1.0}, True),
        ("{attribute: n, op: eq, value: 1}", {"n": True}, False),
        ("{attribute: n, op: eq, value: 1}", {"n": "1"}, False),
        ("{attribute: n, op: ne, value: 1}", {"n": 2}, True),
        ("{attribute: n, op: ne, value: 1}", {}, False),
        ("{attribute: n, op: not_in, value: [1, 2]}", {"n": 3}, True),
        ("{attribute: n, op: in, value: [1, 2]}", {"n": {}}, False),
        ("{attribute: n, op: contains, value: ab}", {"n": "xaby"}, True),
        ("{attribute: n, op: contains, value: ab}", {"n": ["ab"]}, True),
        ("{attribute: n, op: starts_with, value: ab}", {"n": 5}, False),
        ("{attribute: n, op: matches, value: '^a+$'}", {"n": "aaa"}, True),
        ("{attribute: n, op: gt, value: 10}", {"n": 11}, True),
        ("{attribute: n, op: gt, value: 10}", {"n": "11"}, False),
        ("{attribute: v, op: semver_ge, value: 1.10}", {"v": "1.9.0"}, False),
        ("{attribute: v, op: semver_ge, value: 1.10}", {"v": "v1.10.0+build"}, True),
        ("{attribute: v, op: semver_lt, value: 2.0.0}", {"v": "2.0.0-rc.1"}, True),
        ("{attribute: v, op: semver_eq, value: 1.0.0}", {"v": "1.0.0.0"}, False),
        ("{attribute: n, op: exists, value: false}", {}, True),
        ("{attribute: a.b, op: eq, value: 1}", {"a": {"b": 1}}, True),
        ("{not: {attribute: n, op: eq, value: 1}}", {}, True),
        ("{all: [{attribute: n, op: gt, value: 1}, {attribute: n, op: lt, value: 3}]}", {"n": 2}, True),
        ("{attribute: user_id, op: eq, value: u}", {}, True),
        ("{attribute: environment, op: eq, value: prod}", {}, True),
    ],
)
def test_a_condition_holds_or_not(condition, attributes, wanted):
    snapshot = flag_of(f"{{rules: [{{type: user_segment, value: {condition}}}]}}")
    assert snapshot.problems == ()
    assert give(snapshot, "u", **attributes).on is wanted


@given(
    st.dictionaries(
        st.sampled_from(["plan", "email", "n"]),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    )
)
def test_no_attribute_makes_an_evaluation_raise(attributes):
    operators = ["eq", "ne", "contains", "starts_with", "matches", "gt", "semver_gt"]
    literals = {"gt": "3", "semver_gt": "1.0.0"}
    parts = ", ".join(
        f"{{attribute: {name}, op: {op}, value: {literals.get(op, 'x')}}}" for name in ("plan", "n") for op in operators
    )
    snapshot = flag_of(f"{{rules: [{{type: user_segment, value: {{any: [{parts}]}}}}]}}")
    assert snapshot.evaluate("F", Request("u", "prod", None, attributes)).value in (True, False)


def test_explain_takes_the_same_steps_as_the_evaluation():
    snapshot = flag_of("{rules: [{type: percentage, value: 10}], environment_defaults: {prod: false}}")
    result, steps = snapshot.explain("F", snapshot.request(None, "u"))
    assert [step.number for step in steps] == ["1", "2", "3", "4", "5", "6", "7.1", "8", "9"]
    deciding = [step for step in steps if step.outcome == "decides"]
    assert len(deciding) == 1
    assert result == snapshot.evaluate("F", snapshot.request(None, "u"))


def test_a_result_is_never_cached_and_its_metadata_cannot_be_changed():
    result = give(flag_of("{enabled: true}"))
    with pytest.raises(TypeError):
        result.metadata["version"] = "x"
    assert replace(result) == result
