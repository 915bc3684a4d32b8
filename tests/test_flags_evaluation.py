"""The evaluation order, step by step, and the buckets."""

import itertools
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openfeature.exception import ErrorCode

from jarvis_flags.buckets import (
    BUCKETS,
    FLAGD_HASHES,
    bucket,
    flagd_bucket,
    flagd_key,
    in_below,
    seed,
    threshold,
)
from jarvis_flags.evaluate import read_pin, unknown_flag
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
        ("F", "é", 64208),
        ("F", "\ud800", 64900),
        ("F\ud800", "u", 56457),
    ],
)
def test_the_bucket_of_a_released_hash_never_changes(flag_id, key, wanted):
    assert bucket(seed(flag_id), key) == wanted
    assert [in_below(seed(flag_id), limit)(key) for limit in (wanted, wanted + 1)] == [False, True]


# unlike st.text() by itself, with lone surrogates
any_text = st.text(st.characters(), max_size=20)


@given(any_text.filter(lambda t: "\0" not in t), any_text)
def test_any_key_has_a_bucket_even_a_lone_surrogate(flag_id, key):
    assert 0 <= bucket(seed(flag_id), key) < BUCKETS


@given(any_text.filter(lambda t: "\0" not in t), any_text, st.integers(0, BUCKETS))
def test_being_in_is_having_a_bucket_below_the_limit(flag_id, key, limit):
    assert in_below(seed(flag_id), limit)(key) is (bucket(seed(flag_id), key) < limit)


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


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (255, "18ff"),
        (256, "190100"),
        (65_536, "1a00010000"),
        (2**32, "1b0000000100000000"),
        (2**64 - 1, "1bffffffffffffffff"),
        (2**64, "c249010000000000000000"),
        (2**72 - 1, "c249ffffffffffffffffff"),
        (-1, "20"),
        (-(2**64), "3bffffffffffffffff"),
        (-(2**64) - 1, "c349010000000000000000"),
        (True, "f5"),
        (False, "f4"),
        ([None, 1.5], "82f6f93e00"),
        (2.0, "02"),
        (2.0**63, "1b8000000000000000"),
        (2.0**64, "fa5f800000"),
        (-(2.0**63), "3b7fffffffffffffff"),
        (-(2.0**64), "fadf800000"),
        (0.1, "fb3fb999999999999a"),
        (float("nan"), "f97e00"),
        (float("inf"), "f97c00"),
        ("é", "62c3a9"),
        ("x" * 24, "7818" + "78" * 24),
        ({"b": 1, "aa": 2, "a": 3}, "a3616103616201626161" + "02"),
        ({24: 1, -1: 2}, "a22002181801"),
    ],
)
def test_flagds_hash_reads_a_value_in_its_one_form_by_rfc_8949(value, wanted):
    assert flagd_key("flagd-v3", "F", "u", value).hex() == wanted


def test_flagds_hashes_read_flag_and_user_where_no_value_is_named():
    assert flagd_key("flagd-v2", "F", "u") == b"Fu"
    assert flagd_key("flagd-v2", "F", "u", "x") == b"x"
    assert flagd_key("flagd-v3", "F", "u") == bytes.fromhex("8261466175")
    assert flagd_key("flagd-v3", "F", "u", "x") == bytes.fromhex("6178")


@pytest.mark.parametrize("name", FLAGD_HASHES)
def test_flagds_hashes_have_no_key_without_a_user_or_with_what_json_has_not(name):
    keys = [flagd_key(name, "F", user) for user in (None, "", 5, "\ud800")]
    keys += [flagd_key(name, "F", "u", value) for value in (object(), "\ud800", {"a": {1}})]
    assert keys == [None] * 7


@pytest.mark.parametrize(("total", "wanted"), [(1, 0), (2, 1), (100, 72), (2**31 - 1, 1_563_814_152)])
def test_flagds_bucket_is_its_share_of_the_32_bit_hash(total, wanted):
    # the published hash of `test` is 0xba6bd213
    assert flagd_bucket(b"test", total) == wanted


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
    assert (give(snapshot).value, give(snapshot).metadata["override"]) == (1000, "env")
    on = give(flag_of("{variants: {low: 100, high: 1000}, default: low}", pins={"FF_F": "on"}))
    assert (told(on), on.metadata["override"]) == ((100, "STATIC"), "env")


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


@pytest.mark.parametrize(
    ("definition", "wanted"),
    [
        ("{}", (True, "on")),
        ("{variants: {nay: false, yea: true}, default: nay}", (True, "yea")),
        ("{variants: {low: 1, high: 2}, default: high}", (2, "high")),
        ("{variants: {on: 1, most: 2}, default: most}", (2, "most")),
    ],
)
def test_step_7_a_flag_without_a_percentage_can_be_given_one_at_run_time(definition, wanted):
    snapshot = flag_of(definition, overrides={"F": Override("on", percentage=50)})
    results = [give(snapshot, user) for user in USERS]
    inside = [result for result in results if result.on]
    assert {(result.value, result.variant) for result in inside} == {wanted}
    assert 400 < len(inside) < 600
    assert {(result.metadata["rule"], result.metadata["override"]) for result in results} == {("rollout", "runtime")}
    assert [step.number for step in snapshot.flag("F").steps][-3:] == ["7.1", "8", "9"]
    keyless = give(snapshot)
    assert (keyless.on, keyless.metadata["key_missing"], keyless.metadata["rule"]) == (False, True, "rollout")


def test_step_7_a_percentage_set_at_run_time_takes_the_place_of_the_flags_own():
    definition = "{rules: [{type: user_ids, value: [vip]}, {type: percentage, value: 1}]}"
    snapshot = flag_of(definition, overrides={"F": Override("on", percentage=50)})
    assert [step.number for step in snapshot.flag("F").steps][-4:] == ["7.1", "7.2", "8", "9"]
    results = [give(snapshot, user) for user in USERS]
    assert 400 < sum(result.on for result in results) < 600
    assert {(result.metadata["rule"], result.metadata["override"]) for result in results} == {("rules[1]", "runtime")}
    assert give(snapshot).metadata["override"] == "runtime"
    off = give(flag_of("{}", overrides={"F": Override("off", percentage=50)}), "u")
    assert (off.on, "rule" in off.metadata) == (False, False)


def test_step_7_a_percentage_set_at_run_time_leaves_a_split_as_it_is():
    definition = "{variants: {low: 1, high: 2}, default: low, rules: [{type: percentage, value: {low: 50, high: 50}}]}"
    plain, limited = (
        flag_of(definition, overrides={"F": Override("on", percentage=percent)} if percent else {})
        for percent in (None, 10)
    )
    assert [give(plain, user).variant for user in USERS] == [give(limited, user).variant for user in USERS]
    # whom the split cannot place is not let in by the limit
    keyless = give(limited)
    assert (told(keyless), keyless.metadata["rule"]) == ((CALLERS_DEFAULT, "DISABLED"), "rollout")
    assert "override" not in give(plain, "u").metadata


def test_step_7_a_rule_holds_only_in_its_environments_and_segment():
    definition = """{rules: [{type: user_ids, value: [u], environments: [dev, qa],
        segment: {attribute: plan, op: eq, value: pro}}]}"""
    snapshot = flag_of(definition)
    assert give(snapshot, "u", "dev", plan="pro").on
    assert give(snapshot, "u", "qa", plan="pro").on
    assert not give(snapshot, "u", "prod", plan="pro").on
    assert not give(snapshot, "u", "dev", plan="free").on
    assert not give(snapshot, "v", "dev", plan="pro").on
    only = flag_of("{rules: [{type: environments, value: [dev], environments: [dev]}]}")
    assert [give(only, "u", environment).on for environment in ("dev", "prod")] == [True, False]


def test_step_7_a_rule_without_a_variant_gives_the_one_named_on():
    definition = "{variants: {no: 1, on: 5}, default: no, rules: [{type: user_ids, value: [u]}]}"
    assert [give(flag_of(definition), user).value for user in ("u", "v")] == [5, 1]


def test_step_7_who_is_out_of_a_percentage_of_other_values_gets_the_default():
    definition = "{variants: {a: x, b: y}, default: a, rules: [{type: percentage, value: 50, variant: b}]}"
    results = [give(flag_of(definition), user) for user in USERS]
    assert {(result.variant, str(result.reason)) for result in results} == {("b", "SPLIT"), ("a", "DEFAULT")}
    assert (give(flag_of(definition)).variant, give(flag_of(definition)).metadata["key_missing"]) == ("a", True)


def test_step_7_nobody_is_in_0_percent_and_enabled_counts_as_off_then():
    assert told(give(flag_of("{enabled: true, rules: [{type: percentage, value: 0}]}"), "u")) == (False, "DEFAULT")


def test_step_7_a_split_may_leave_a_variant_out_and_takes_the_request_for_a_user():
    definition = "{variants: {a: 1, b: 2, c: 3}, rules: [{type: percentage, value: {a: 0, b: 100, c: 0}}]}"
    snapshot = flag_of(definition)
    assert {give(snapshot, user).variant for user in USERS} == {"b"}
    result = snapshot.evaluate("F", snapshot.request(EvaluationContext(request_id="r1")))
    assert (result.variant, str(result.reason), result.metadata["rule"]) == ("b", "SPLIT", "rules[0]")


RAMP = """{enabled: true, rules: [{type: schedule%s, value: {
    ramp: {start: '1970-01-01T00:01:40Z', end: '1970-01-01T00:03:20Z', from: 0, to: 100}}}]}"""


def test_step_7_before_a_ramp_its_rule_is_passed_over():
    before = give(flag_of(RAMP % "", clock=lambda: 99.0))
    assert (before.on, "key_missing" in before.metadata) == (True, False)


def test_step_7_while_a_ramp_climbs_who_is_out_counts_as_off():
    start, middle, end = (flag_of(RAMP % "", clock=lambda now=now: now) for now in (100.0, 150.0, 200.0))
    assert not any(give(start, user).on for user in USERS)
    assert "key_missing" not in give(start).metadata
    results = [give(middle, user) for user in USERS]
    assert [result.on for result in results] == [bucket(seed("F"), user) < 50_000 for user in USERS]
    assert {(str(result.reason), result.metadata["rule"]) for result in results if result.on} == {("SPLIT", "rules[0]")}
    assert (give(middle).on, give(middle).metadata["key_missing"]) == (False, True)
    assert (give(end).on, str(give(end).reason)) == (True, "SPLIT")


def test_step_7_a_ramp_has_a_salt_and_an_attribute_of_its_own():
    salted = flag_of(RAMP % ", salt: x", clock=lambda: 150.0)
    assert [give(salted, user).on for user in USERS] == [bucket(seed("F", "x"), user) < 50_000 for user in USERS]
    by = flag_of(RAMP % ", by: team", clock=lambda: 150.0)
    for user in USERS[:20]:
        assert give(by, "u", team=user).on == (bucket(seed("F"), user) < 50_000)


def test_step_7_a_schedule_matches_while_it_holds():
    definition = "{rules: [{type: schedule, value: {start: '1970-01-01T00:01:40Z', end: '1970-01-01T00:03:20Z'}}]}"
    results = [give(flag_of(definition, clock=lambda now=now: now)) for now in (99.9, 100.0, 199.9, 200.0)]
    assert [told(result) for result in results] == [
        (False, "DEFAULT"),
        (True, "TARGETING_MATCH"),
        (True, "TARGETING_MATCH"),
        (False, "DEFAULT"),
    ]
    assert results[1].metadata["rule"] == "rules[0]"


def test_step_7_a_percentage_set_at_run_time_leaves_listed_users_in():
    definition = "{rules: [{type: user_ids, value: [vip]}]}"
    snapshot = flag_of(definition, overrides={"F": Override("on", percentage=0)})
    assert give(snapshot, "vip").on
    assert not give(snapshot, "other").on
    assert give(flag_of(definition, overrides={"F": Override("on", percentage=100)}), "other").on


def test_step_7_a_split_gives_consecutive_ranges_in_file_order():
    definition = (
        "{variants: {low: 100, high: 1000}, default: low, rules: [{type: percentage, value: {low: 90, high: 10}}]}"
    )
    snapshot = flag_of(definition)
    for user in USERS:
        assert give(snapshot, user).variant == ("low" if bucket(seed("F"), user) < 90_000 else "high")
    assert give(snapshot).variant == "low"
    assert str(give(snapshot).reason) == "DEFAULT"


# bucket(seed("F"), "user0") is 35126: the first that is in, in thousandths of a percent, is 35127
@pytest.mark.parametrize(("percent", "wanted"), [("35.126", False), ("35.127", True)])
def test_step_7_who_is_in_is_known_to_the_bucket(percent, wanted):
    plain = flag_of(f"{{rules: [{{type: percentage, value: {percent}}}]}}")
    assert give(plain, "user0").on is wanted
    assert "override" not in give(plain, "user0").metadata
    rest = f"{100_000 - int(percent.replace('.', ''))}e-3"
    split = flag_of(f"{{variants: {{a: 1, b: 2}}, rules: [{{type: percentage, value: {{a: {percent}, b: {rest}}}}}]}}")
    assert give(split, "user0").variant == ("a" if wanted else "b")
    level = RAMP.replace("from: 0, to: 100", f"from: {percent}, to: {percent}")
    ramp = give(flag_of(level % "", clock=lambda: 150.0), "user0")
    assert (ramp.on, "key_missing" in ramp.metadata) == (wanted, False)


@pytest.mark.parametrize(("percent", "wanted"), [(0, False), (0.001, True)])
def test_step_7_a_key_is_missing_where_a_ramp_lets_anybody_in(percent, wanted):
    level = RAMP.replace("from: 0, to: 100", f"from: {percent}, to: {percent}")
    keyless = give(flag_of(level % "", clock=lambda: 150.0))
    assert (keyless.on, "key_missing" in keyless.metadata) == (False, wanted)


def calls(function, *arguments):
    """The functions in Python that a call leads to, by name."""
    names = []
    sys.setprofile(lambda frame, event, _: names.append(frame.f_code.co_name) if event == "call" else None)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return names


def test_step_7_a_percentage_of_users_takes_a_call_for_the_hash_and_none_for_the_key():
    snapshot = flag_of("{rules: [{type: percentage, value: 99}]}")
    assert calls(snapshot.flag("F").evaluate, snapshot.request(None, "u")) == ["<lambda>", "decide", "is_in"]


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
    assert give(flag_of("{enabled: true, on_expiry: disable}")).on


def test_a_flag_with_an_end_is_on_until_the_very_second():
    now = [0.0]
    definition = "{enabled: true, expires_at: '1970-01-01T00:01:40Z', on_expiry: disable}"
    snapshot = flag_of(definition, clock=lambda: now[0])
    found = []
    for now[0] in (99.9, 100.0, 100.1):
        found.append(give(snapshot).on)
    assert found == [True, False, False]


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


BROKEN = "{enabled: perhaps%s}"


@pytest.mark.parametrize(
    ("more", "parts", "wanted"),
    [
        ("", {}, (CALLERS_DEFAULT, None)),
        ("", {"pins": {"FF_F": "true"}}, (CALLERS_DEFAULT, None)),
        ("", {"overrides": {"F": Override("on")}}, (CALLERS_DEFAULT, None)),
        ("", {"pins": {"FF_F": "off"}}, (False, "off")),
        ("", {"pins": {"FF_F": "nonsense"}}, (False, "off")),
        ("", {"overrides": {"F": Override("off")}}, (False, "off")),
        (", dangerous: true", {}, (False, "off")),
        (", dangerous: true", {"pins": {"FF_F": "true"}, "overrides": {"F": Override("on")}}, (False, "off")),
    ],
)
def test_a_broken_flag_is_the_callers_default_but_off_where_it_is_dangerous_or_turned_off(more, parts, wanted):
    snapshot = flag_of(BROKEN % more, **parts)
    result, steps = snapshot.explain("F", snapshot.request())
    assert ((result.value, result.variant), result.error_code, str(result.reason)) == (
        wanted,
        ErrorCode.PARSE_ERROR,
        "ERROR",
    )
    assert [(step.number, step.title, step.outcome) for step in steps] == [("1", "definition", "decides")]


@pytest.mark.parametrize(
    ("definition", "parts"),
    [
        ("{enabled: true}", {}),
        ("{enabled: false}", {}),
        ("{status: disabled, rules: [{type: user_ids, value: [u]}]}", {}),
        ("{rules: [{type: user_ids, value: [u]}]}", {"pins": {"FF_F": "on"}}),
        ("{rules: [{type: user_ids, value: [u]}]}", {"pins": {"FF_F": "off"}}),
        ("{rules: [{type: user_ids, value: [u]}]}", {"overrides": {"F": Override("on")}}),
        ("{rules: [{type: user_ids, value: [u]}]}", {"overrides": {"F": Override("off")}}),
        ("{dangerous: true, rules: [{type: user_ids, value: [u]}]}", {"broken": "cannot be read"}),
        (BROKEN % "", {}),
    ],
)
def test_what_a_flag_gives_to_everyone_is_known_beforehand(definition, parts):
    snapshot = flag_of(definition, **parts)
    assert snapshot.flag("F").constant == snapshot.flag("F").evaluate(snapshot.request(None, "u"))
    assert unknown_flag("F", {}).constant is not None


@pytest.mark.parametrize(
    ("definition", "parts"),
    [
        ("{enabled: true, requires: [G]}", {}),
        ("{enabled: true, expires_at: 2027-03-01, on_expiry: disable}", {}),
        ("{rules: [{type: user_ids, value: [u]}]}", {}),
        ("{environment_defaults: {dev: true}}", {}),
        ("{enabled: true}", {"overrides": {"F": Override("off", expires_at=200)}}),
    ],
)
def test_what_a_flag_gives_by_who_asks_or_by_the_clock_is_not_known_beforehand(definition, parts):
    assert flag_of(definition, **parts).flag("F").constant is None


@pytest.mark.parametrize(
    ("definition", "parts", "wanted"),
    [
        ("{}", {}, "9"),
        ("{status: disabled}", {}, "1"),
        ("{expires_at: 1970-01-01, on_expiry: disable}", {}, "1"),
        ("{}", {"pins": {"FF_F": "off"}}, "2"),
        ("{}", {"pins": {"FF_F": "nonsense"}}, "2"),
        ("{variants: {yea: true, nay: false}}", {"pins": {"FF_F": "nay"}}, "2"),
        ("{variants: {yea: true, nay: false}}", {"pins": {"FF_F": "on"}}, "5"),
        ("{variants: {low: 1, high: 2}}", {"pins": {"FF_F": "low"}}, "5"),
        ("{}", {"overrides": {"F": Override("off")}}, "3"),
        ("{dangerous: true}", {"broken": "cannot be read"}, "3"),
        ("{requires: [G]}", {}, "4"),
        ("{}", {"pins": {"FF_F": "on"}}, "5"),
        ("{}", {"overrides": {"F": Override("on")}}, "6"),
        ("{rules: [{type: percentage, value: 10}]}", {"overrides": {"F": Override("on")}}, "9"),
        ("{rules: [{type: percentage, value: 10}]}", {"overrides": {"F": Override("on", percentage=100)}}, "7.1"),
        ("{rules: [{type: environments, value: [prod]}]}", {}, "7.1"),
        ("{environment_defaults: {prod: true}}", {}, "8"),
    ],
)
def test_an_explanation_has_every_step_and_one_that_decides(definition, parts, wanted):
    snapshot = flag_of(definition, **parts)
    steps = snapshot.explain("F", snapshot.request())[1]
    rules = (
        ("7.1", f"rule {definition.partition('type: ')[2].partition(',')[0]}")
        if "rules" in definition
        else ("7", "rules")
    )
    assert [(step.number, step.title) for step in steps] == [
        ("1", "status"),
        ("2", "pin to off"),
        ("3", "run-time override off"),
        ("4", "prerequisites"),
        ("5", "pin to on or a variant"),
        ("6", "run-time override on"),
        rules,
        ("8", "environment default"),
        ("9", "default"),
    ]
    assert [step.number for step in steps if step.outcome == "decides"] == [wanted]


@pytest.mark.parametrize("state", ["on", "off"])
def test_an_explanation_says_who_changed_it_when_and_why(state):
    def said(**by):
        snapshot = flag_of("{}", overrides={"F": Override(state, **by)})
        why = {step.number: step.why for step in snapshot.explain("F", snapshot.request())[1]}
        other = "6" if state == "off" else "3"
        assert why.pop(other) == f"there is no override {'on' if other == '6' else 'off'}"
        return why["3" if state == "off" else "6"]

    assert said(by="ada", at="2026-11-01T10:00:00Z", reason="launch") == (
        f"turned {state} by ada at 2026-11-01T10:00:00Z: launch"
    )
    assert said() == f"turned {state} by someone at an unknown time: no reason"


@pytest.mark.parametrize(
    ("definition", "parts", "number", "wanted"),
    [
        ("{}", {"pins": {"FF_F": "on"}}, "5", "FF_F=on"),
        ("{}", {"pins": {"FF_F": "yes"}}, "2", "FF_F='yes' cannot be read, which counts as off"),
        ("{enabled: true}", {}, "9", "enabled is true"),
        ("{variants: {low: 1}, default: low}", {}, "9", "enabled is true, default is low"),
        (
            "{rules: [{type: user_ids, value: [u, v]}]}",
            {},
            "9",
            "enabled is false; outside a percentage it counts as off",
        ),
        (
            "{variants: {low: 1}, default: low, rules: [{type: user_ids, value: [u], variant: low}]}",
            {},
            "9",
            "enabled is true, default is low",
        ),
        ("{environment_defaults: {prod: true, dev: false}}", {}, "8", "prod: on, dev: off"),
        ("{variants: {low: 1}, default: low, environment_defaults: {prod: low}}", {}, "8", "prod: low"),
        ("{rules: [{type: percentage, value: 12.5}]}", {}, "7.1", "12.5 % by user"),
        ("{rules: [{type: percentage, value: 10, by: team}]}", {}, "7.1", "10 % by team"),
        (
            "{rules: [{type: percentage, value: 10}]}",
            {"overrides": {"F": Override("on", percentage=20)}},
            "7.1",
            "20 % by user (set at run time)",
        ),
        ("{}", {"overrides": {"F": Override("on", percentage=20)}}, "7.1", "20 % by user (set at run time)"),
        (
            "{rules: [{type: percentage, value: 10}]}",
            {"overrides": {"F": Override("off", percentage=20)}},
            "7.1",
            "10 % by user",
        ),
        (
            "{variants: {a: 1, b: 2}, rules: [{type: percentage, value: {a: 12.5, b: 87.5}}]}",
            {},
            "7.1",
            "split a 12.5 %, b 87.5 %",
        ),
        ("{rules: [{type: environments, value: [dev, qa]}]}", {}, "7.1", "environment is one of dev, qa"),
        ("{rules: [{type: user_ids, value: [u, v]}]}", {}, "7.1", "2 user ids"),
        (
            "{rules: [{type: user_segment, value: {attribute: plan, op: eq, value: pro}}]}",
            {},
            "7.1",
            "a segment of its own",
        ),
        (
            "{rules: [{type: user_segment, value: pros}]}\nsegments: {pros: {attribute: plan, op: eq, value: pro}}",
            {},
            "7.1",
            "segment pros",
        ),
    ],
)
def test_an_explanation_says_what_holds(definition, parts, number, wanted):
    snapshot = flag_of(definition, **parts)
    assert {step.number: step.why for step in snapshot.explain("F", snapshot.request())[1]}[number] == wanted


def test_an_override_with_a_variant_that_is_gone_turns_the_flag_on():
    definition = "{variants: {a: x, b: y}, default: a, enabled: false}"
    gone, there = (give(flag_of(definition, overrides={"F": Override("on", variant=name)})) for name in ("old", "b"))
    assert [(gone.value, gone.metadata["override"]), (there.value, there.metadata["override"])] == [
        ("x", "runtime"),
        ("y", "runtime"),
    ]


def test_an_explanation_of_a_flag_that_is_nowhere_has_one_step():
    snapshot = flag_of("{}")
    steps = snapshot.explain("NOWHERE", snapshot.request())[1]
    assert [(step.number, step.title, step.outcome) for step in steps] == [("9", "defined", "decides")]


def test_an_explanation_of_an_override_that_lapses_says_what_holds_now():
    now = [100.0]
    snapshot = flag_of("{enabled: false}", overrides={"F": Override("on", expires_at=200)}, clock=lambda: now[0])

    def deciding():
        return next(step.number for step in snapshot.explain("F", snapshot.request())[1] if step.outcome == "decides")

    assert deciding() == "6"
    now[0] = 200.0
    assert deciding() == "9"


def test_an_explanation_of_a_held_flag_says_how_it_was_at_the_start():
    definition = "{enabled: %s, requires_restart: true%s}"
    started = flag_of(definition % ("true", ", rules: [{type: user_ids, value: [u]}]"))
    held = flag_of(definition % ("true", ""), previous=started)
    numbers = [step.number for step in held.explain("F", held.request(None, "u"))[1]]
    assert "7.1" in numbers
    assert held.flag("F").constant is None


@pytest.mark.parametrize(
    ("text", "variants", "wanted"),
    [
        *((word, None, "on") for word in ("true", "1", "on", " TRUE ", "On")),
        *((word, None, "off") for word in ("false", "0", "off", " False", "OFF")),
        *((word, None, None) for word in ("", "yes", "high", "truely")),
        ("high", {"high": 2, "low": 1}, "high"),
        ("1", {"1": 5, "2": 6}, "1"),
        ("on", {"high": 2, "low": 1}, "on"),
        ("0", {"high": 2, "low": 1}, "off"),
    ],
)
def test_a_pin_is_on_off_or_the_name_of_a_variant(text, variants, wanted):
    assert read_pin(text, variants) == wanted


def test_a_result_is_counted_under_its_flag_variant_and_reason():
    assert give(flag_of("{enabled: true}")).series == ("F", "on", "static")
    assert give(flag_of("{enabled: false}")).series == ("F", "off", "static")
    typed = "{variants: {low: 100, high: 1000}, default: low%s}"
    assert give(flag_of(typed % "")).series == ("F", "low", "static")
    assert give(flag_of(typed % ", status: disabled")).series == ("F", "off", "disabled")


def test_a_flag_with_other_values_than_switches_counts_as_on_where_it_serves_one():
    typed = flag_of("{variants: {low: 0, high: 1000}, default: low}")
    assert (give(typed).on, give(typed).value) == (True, 0)
    assert not give(flag_of("{variants: {low: 0}, default: low, enabled: false}")).on
    switch = flag_of("{variants: {yes_please: true, no_thanks: false}, default: no_thanks}")
    assert (give(switch).on, give(switch).variant) == (False, "no_thanks")


@pytest.mark.parametrize("variants", ["{yea: true, nay: false}", "{nay: false, yea: true}"])
def test_on_and_off_of_a_switch_with_names_of_its_own_are_those_names(variants):
    definition = f"{{variants: {variants}, default: nay}}"
    on, off = (give(flag_of(definition, overrides={"F": Override(state)})) for state in ("on", "off"))
    assert [(on.value, on.variant), (off.value, off.variant)] == [(True, "yea"), (False, "nay")]
    assert give(flag_of(definition, pins={"FF_F": "yea"})).on
    assert told(give(flag_of(definition, pins={"FF_F": "nay"}, overrides={"F": Override("on")}))) == (False, "STATIC")


def test_a_missing_key_is_told_whatever_rules_come_after_it():
    first = "{type: percentage, value: 50, by: team}"
    ramp = "{type: schedule, value: {ramp: {start: 1970-01-01, end: 1970-01-11, from: 0, to: 100}}}"
    for second in (ramp, "{type: percentage, value: 0}", "{type: user_ids, value: [v]}"):
        result = give(flag_of(f"{{rules: [{first}, {second}]}}"), "u")
        assert (result.on, result.metadata["key_missing"]) == (False, True)


def test_an_environment_default_that_names_a_variant_says_that_the_key_was_missing():
    definition = """{variants: {a: 1, b: 2}, default: a, environment_defaults: {prod: b},
        rules: [{type: percentage, value: {a: 50, b: 50}}]}"""
    result = give(flag_of(definition))
    assert (result.variant, result.metadata["key_missing"]) == ("b", True)


@pytest.mark.parametrize("by", ["email", "{var: email}"])
def test_a_split_of_flagds_is_by_the_attribute_that_it_names(by):
    definition = f"""{{variants: {{a: 1, b: 2}}, default: a, rules: [
        {{type: percentage, value: {{a: 1, b: 1}}, hash: flagd-v3, by: {by}}}]}}"""
    snapshot = flag_of(definition)
    assert {give(snapshot, "u", email=user).variant for user in USERS[:50]} == {"a", "b"}
    assert len({give(snapshot, user, email="e").variant for user in USERS[:50]}) == 1
    assert give(snapshot, "u").metadata["key_missing"] is True


def test_a_result_that_leaves_the_value_to_the_caller_says_what_led_to_it():
    typed = "{variants: {low: 100, high: 1000}, metadata: {team: a}%s}"
    on = give(flag_of(typed % "", overrides={"F": Override("on")}))
    assert (told(on), on.metadata["override"], on.metadata["team"]) == ((CALLERS_DEFAULT, "DEFAULT"), "runtime", "a")
    off = give(flag_of(typed % "", overrides={"F": Override("off")}))
    assert (told(off), off.metadata["override"], off.metadata["team"]) == (
        (CALLERS_DEFAULT, "DISABLED"),
        "runtime",
        "a",
    )
    split = ", rules: [{type: percentage, value: {low: 50, high: 50}}]"
    for more in ("", ", environment_defaults: {prod: true}"):
        assert give(flag_of(typed % (split + more))).metadata["key_missing"] is True
    assert give(flag_of(typed % (", enabled: false" + split))).metadata["key_missing"] is True
    environments = [f"{{environment_defaults: {{prod: {word}}}%s}}" for word in ("true", "false")]
    for more in ("{enabled: true%s}", "{enabled: false%s}", *environments):
        keyless = give(flag_of(more % ", rules: [{type: percentage, value: 50}]"))
        assert keyless.metadata["key_missing"] is True


@pytest.mark.parametrize(("more", "wanted"), [("", (CALLERS_DEFAULT, None)), (", dangerous: true", (False, "off"))])
def test_an_expression_that_names_no_variant_is_an_error_that_says_which_rule(more, wanted):
    definition = f"{{rules: [{{type: jsonlogic, value: {{var: plan}}}}]{more}}}"
    result = give(flag_of(definition), "u", plan="gold")
    assert (result.value, result.variant) == wanted
    assert (str(result.reason), result.error_code) == ("ERROR", ErrorCode.GENERAL)
    assert result.error_message == "rules[0]: gave 'gold', which is no variant"
    on = give(flag_of(definition), "u", plan="on")
    assert (on.on, str(on.reason), on.metadata["rule"]) == (True, "TARGETING_MATCH", "rules[0]")
    assert give(flag_of(definition), "u", plan="ON").error_code is ErrorCode.GENERAL
    assert give(flag_of(definition), "u", plan="x" * 200).error_message.count("x") == 80
    assert give(flag_of(definition), "u").error_code is None


@pytest.mark.parametrize(("plan", "wanted"), [(True, "true"), (False, "false"), (1, "1"), ("true", "true")])
def test_an_expression_may_name_a_variant_by_a_value_that_is_no_text(plan, wanted):
    definition = """{variants: {"true": T, "false": F, "1": one}, rules: [{type: jsonlogic, value: {var: plan}}]}"""
    assert give(flag_of(definition), "u", plan=plan).variant == wanted


class Fails:
    """Raises what it is given when it is asked for its truth or its text."""

    def __init__(self, error):
        self.error = error

    def __bool__(self):
        raise self.error

    __str__ = __bool__


@pytest.mark.parametrize("error", [OverflowError, RecursionError, TypeError, ValueError])
@pytest.mark.parametrize("expression", ["{'!': {var: plan}}", "{var: plan}"])
def test_an_expression_that_fails_is_an_error_that_says_how(expression, error):
    result = give(flag_of(f"{{rules: [{{type: jsonlogic, value: {expression}}}]}}"), "u", plan=Fails(error("so")))
    assert (result.value, result.error_code) == (CALLERS_DEFAULT, ErrorCode.GENERAL)
    assert result.error_message == f"rules[0]: {error.__name__}: so"
