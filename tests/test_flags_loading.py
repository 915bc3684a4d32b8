"""Loading flag files: what is wrong is said with its place, one bad flag blocks no other, and YAML's traps do not bite."""

import contextlib
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_flags.model import EvaluationContext
from jarvis_flags.parse import parse_flags, pin_name
from jarvis_flags.settings import FlagSettings
from jarvis_flags.snapshot import build_snapshot
from jarvis_flags.source import FileSource
from jarvis_flags.tree import TreeError, load_tree


def problems(text):
    return [str(problem) for problem in parse_flags(load_tree(text), "flags.yaml").problems]


def load(**environ):
    return FileSource(FlagSettings.load({**os.environ, **environ}))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "flags:\n  DEXTER:\n    rules:\n      - {type: user_ids, value: [a]}\n      - {type: percentage, value: 110}\n",
            "flags.yaml:5: flags.DEXTER.rules[1].value: got 110, want 0 to 100",
        ),
        ("flags:\n  A:\n    enabeld: true\n", "flags.yaml:3: flags.A.enabeld: unknown field; did you mean enabled?"),
        ("flags:\n  A: {enabled: on}\n", "flags.yaml:2: flags.A.enabled: got 'on', want true or false"),
        ("flags:\n  A: 5\n", "flags.yaml:2: flags.A: got 5, want a mapping"),
        (
            "flags:\n  A:\n    rules:\n    - {type: percentag, value: 5}\n",
            (
                "flags.yaml:4: flags.A.rules[0].type: got 'percentag', want one of percentage, user_ids, user_segment, "
                "environments, schedule, jsonlogic; did you mean percentage?"
            ),
        ),
        (
            (
                "segments:\n  early: {attribute: plan, op: eq, value: pro}\n"
                "flags:\n  A: {rules: [{type: user_segment, value: erly}]}\n"
            ),
            "flags.yaml:4: flags.A.rules[0].value: unknown segment 'erly'; did you mean early?",
        ),
        (
            "flags:\n  A: {rules: [{type: percentage, value: {on: 50, off: 49}}]}\n",
            "flags.yaml:2: flags.A.rules[0].value: got weights that total 99, want exactly 100",
        ),
        (
            "flags:\n  A: {variants: {a: 1, b: x}}\n",
            "flags.yaml:2: flags.A.variants: got values of types integer, string, want one type",
        ),
        ("flags:\n  A: {variants: {a: 1}, default: b}\n", "flags.yaml:2: flags.A.default: got 'b', want one of a"),
        ("flags:\n  A: {requires: [B]}\n  B: {requires: [A]}\n", "flags.yaml:2: flags.A.requires: a cycle: A → B → A"),
        ("flag: {}\n", "flags.yaml:1: flag: unknown field; did you mean flags?"),
        (
            "flags:\n  A-B: {}\n  A_B: {}\n",
            "flags.yaml:3: flags.A_B: its pin FF_A_B is also that of A-B; rename one of them",
        ),
        (
            "flags:\n  A: {rules: [{type: user_segment, value: {attribute: e, op: matches, value: '(a+)+'}}]}\n",
            "flags.yaml:2: flags.A.rules[0].value.value: got '(a+)+', want no repeat inside a repeat: it may take exponential time",
        ),
        (
            "flags:\n  A: {rules: [{type: schedule, value: {timezone: Mars}}]}\n",
            "flags.yaml:2: flags.A.rules[0].value.timezone: got 'Mars', want a time zone such as Europe/Vienna",
        ),
    ],
)
def test_an_error_says_file_line_path_got_wanted_and_the_nearest_name(text, wanted):
    assert wanted in problems(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("flags: {A: {}, A: {}}", "1: 'A' stands twice, first in line 1"),
        ("a: [1, 2\nb: 3\n", "2: not YAML: while parsing a flow sequence did not find expected ',' or ']'"),
        ("a: 1\n---\nb: 2\n", "2: got a second document, want one"),
        ("a: !!python/object:os.system {}\n", None),
        ("\tflags: {}\n", "1: not YAML"),
        ("a: *nowhere\n", "1: "),
        ("[" * 100, "nested deeper than 64"),
    ],
)
def test_text_that_is_no_usable_yaml_is_refused_with_its_line(text, wanted):
    if wanted is None:
        assert load_tree(text) == {"a": {}}, "a tag makes no object"
        return
    with pytest.raises(TreeError) as caught:
        load_tree(text)
    assert wanted in f"{caught.value.line}: {caught.value}"


def test_yaml_traps_do_not_bite():
    tree = load_tree("{on: off, yes: no, v: 1.10, t: 12:30, d: 2027-03-01, o: 010, n: ~, b: true, e: 1e3}")
    assert tree == {
        "on": "off",
        "yes": "no",
        "v": 1.1,
        "t": "12:30",
        "d": "2027-03-01",
        "o": 10,
        "n": None,
        "b": True,
        "e": 1000.0,
    }
    assert tree["v"].text == "1.10"


def test_a_bomb_of_aliases_is_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(TreeError, match="aliases are unfolded"):
        load_tree("\n".join(lines))


def test_json_with_what_yaml_does_not_know_is_read_as_json():
    assert load_tree('{"flags":\t{"A": {"name": "\\ud83d\\ude00"}}}')["flags"]["A"]["name"] == "😀"


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=200)
    | st.text(alphabet="flags:ABrulesenabled{}[]- \n\t\"'&*!|>#%@0123456789.,?on", max_size=300)
    | st.binary(max_size=200)
)
def test_no_text_makes_the_loader_raise_anything_but_its_own_error(text):
    with contextlib.suppress(TreeError):
        parse_flags(load_tree(text), "flags.yaml")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "value", "variants", "rules", "requires", "enabled", "any", "attribute", "op", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=5), _json, max_size=3), st.dictionaries(st.text(max_size=5), _json, max_size=2))
def test_no_document_makes_the_parser_raise_and_each_flag_is_good_or_bad(flags, segments):
    parsed = parse_flags({"flags": flags, "segments": segments}, "flags.yaml")
    assert parsed.flags.keys() | parsed.bad.keys() == flags.keys()
    blocked = {problem.flag for problem in parsed.problems}
    assert set(parsed.bad) <= blocked


def test_one_bad_flag_blocks_no_other_and_keeps_its_last_good_definition(flag_file):
    flag_file("flags:\n  A: {enabled: true}\n  B: {enabled: true}\n")
    source = load()
    flag_file("flags:\n  A: {enabled: maybe}\n  B: {enabled: false}\n")
    snapshot = source.reload()
    results = {flag: snapshot.evaluate(flag, snapshot.request()) for flag in "AB"}
    assert (results["A"].value, results["A"].metadata["lastGood"]) == (True, True)
    assert results["B"].value is False
    again = load().snapshot
    assert again.evaluate("A", again.request()).value is True, "a process that starts later agrees"


def test_a_last_good_definition_that_leads_in_a_circle_with_new_ones_is_not_used(flag_file):
    flag_file("flags:\n  A: {enabled: true, requires: [B]}\n  B: {enabled: true}\n")
    source = load()
    flag_file("flags:\n  A: {enabled: maybe}\n  B: {enabled: true, requires: [A]}\n")
    snapshot = source.reload()
    results = {flag: snapshot.evaluate(flag, snapshot.request()) for flag in "AB"}
    assert results["A"].error_code.value == "PARSE_ERROR"
    assert (results["B"].on, results["B"].metadata["prerequisite"]) == (False, "A")


@pytest.mark.parametrize("width", [1, 2])
def test_prerequisites_that_would_take_long_to_evaluate_are_refused(width):
    layers, sides = 500 // width, "ab"[:width]
    flags = {
        f"F{layer}{side}": {"enabled": True, "requires": [f"F{layer + 1}{one}" for one in sides if layer < layers - 1]}
        for layer in range(layers)
        for side in sides
    }
    parsed = parse_flags({"flags": flags}, "flags.yaml")
    top = next(iter(parsed.flags))
    assert 5 * width < len(parsed.flags) <= 20
    snapshot = build_snapshot(parsed)
    assert snapshot.evaluate(top, snapshot.request()).on
    assert "nested too deep" in str(parsed.problems[0])


def test_of_many_misspelt_names_the_first_get_their_cure():
    flags = {f"FLAG_{number:04}": {"requires": [f"FLGA_{number:04}"]} for number in range(3000)}
    hinted = [problem for problem in parse_flags({"flags": flags}, "").problems if "did you mean" in str(problem)]
    assert len(hinted) == 20


def test_a_broken_dangerous_flag_is_off_and_never_last_good(flag_file):
    flag_file("flags:\n  A: {enabled: true, dangerous: true}\n")
    source = load()
    flag_file("flags:\n  A: {enabled: true, dangerous: true, rules: 5}\n")
    snapshot = source.reload()
    result = snapshot.evaluate("A", snapshot.request())
    assert (result.value, result.error_code.value) == (False, "PARSE_ERROR")


def test_a_flag_whose_danger_cannot_be_read_is_taken_for_dangerous(flag_file):
    flag_file("flags:\n  A: {enabled: true, dangerous: maybe}\n")
    snapshot = load().snapshot
    assert snapshot.evaluate("A", snapshot.request()).value is False


@pytest.mark.parametrize("content", ["", "   \n", "not: [yaml", "- a list\n", "just text"])
def test_a_file_that_is_no_flag_file_at_all_changes_nothing(flag_file, content):
    flag_file("flags:\n  A: {enabled: true}\n  D: {enabled: true, dangerous: true}\n")
    source = load()
    flag_file(content)
    snapshot = source.reload()
    assert [snapshot.evaluate(flag, snapshot.request()).value for flag in "AD"] == [True, True]
    assert snapshot.problems


def test_a_process_that_starts_on_a_broken_file_takes_what_was_good_but_nothing_dangerous(flag_file):
    flag_file("flags:\n  A: {enabled: true}\n  D: {enabled: true, dangerous: true}\n")
    load()
    flag_file("not: [yaml")
    snapshot = load().snapshot
    assert [snapshot.evaluate(flag, snapshot.request()).value for flag in "AD"] == [True, False]


def test_a_process_that_starts_on_a_broken_file_keeps_environment_and_segments(flag_file):
    flag_file(
        """
        environment: dev
        segments: {beta: {attribute: plan, op: eq, value: pro}}
        flags:
          E: {environment_defaults: {dev: true}}
          S: {rules: [{type: user_segment, value: beta}]}
        """
    )
    load()
    flag_file("flags: [")
    snapshot = load().snapshot
    assert snapshot.environment == "dev"
    assert snapshot.evaluate("E", snapshot.request()).on
    assert snapshot.evaluate("S", snapshot.request(EvaluationContext(attributes={"plan": "pro"}))).on


def test_a_deleted_file_changes_nothing_and_its_return_is_seen(flag_file):
    path = flag_file("flags:\n  A: {enabled: true}\n")
    source = load()
    path.unlink()
    snapshot = source.reload()
    assert snapshot.evaluate("A", snapshot.request()).on
    flag_file("flags:\n  A: {enabled: false}\n")
    snapshot = source.reload()
    assert not snapshot.evaluate("A", snapshot.request()).on


def test_the_json_file_is_taken_where_there_is_no_yaml(flag_file):
    flag_file('{"flags": {"A": {"enabled": true}}}', "feature_flags.json")
    assert list(load().snapshot.definitions) == ["A"]
    flag_file("flags: {B: {}}")
    assert list(load().snapshot.definitions) == ["B"]


def test_a_local_file_is_laid_over_field_by_field(flag_file):
    flag_file(
        "flags:\n  A: {enabled: false, owner: me, environment_defaults: {dev: true, prod: false}, services: [x, y]}\n"
    )
    flag_file(
        "flags:\n  A: {enabled: true, environment_defaults: {prod: true}, services: [z]}\n  B: {}\n", "flags.local.yaml"
    )
    definition = load(JARVIS_ENVIRONMENT="dev").snapshot.definitions["A"]
    assert (definition.enabled, definition.owner, list(definition.services)) == (True, "me", ["z"])
    assert dict(definition.environment_defaults) == {"dev": True, "prod": True}


def test_in_prod_a_local_file_may_only_turn_flags_off(flag_file):
    flag_file("flags:\n  A: {enabled: false}\n  B: {enabled: true}\n")
    flag_file("flags:\n  A: {enabled: true}\n  B: {enabled: false}\n", "flags.local.yaml")
    snapshot = load().snapshot
    assert [snapshot.definitions[flag].enabled for flag in "AB"] == [False, False]
    assert "flags.local.yaml:2: flags.A.enabled: not taken" in str(snapshot.problems[0])
    assert load(JARVIS_ALLOW_LOCAL="1").snapshot.definitions["A"].enabled


@pytest.mark.parametrize(
    ("environ", "file", "wanted"),
    [
        (
            {"JARVIS_ENVIRONMENT": "staging", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=dev"},
            "qa",
            "staging",
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,deployment.environment.name=dev"}, "qa", "dev"),
        ({}, "qa", "qa"),
        ({}, None, "prod"),
    ],
)
def test_the_environment_is_that_of_the_process_then_the_resource_then_the_file_then_prod(
    flag_file, environ, file, wanted
):
    flag_file(f"flags: {{}}\n{f'environment: {file}' if file else ''}\n")
    assert load(**environ).snapshot.environment == wanted


@pytest.mark.parametrize(
    "content",
    [b"{", b'{"format": 2}', b"", b'{"format": 1, "revision": 1, "overrides": {"A": {"state": "maybe"}}}', b"\xff\xfe"],
)
def test_a_corrupt_override_file_turns_every_dangerous_flag_off(flag_file, own_project, content):
    flag_file("flags:\n  A: {enabled: true}\n  D: {enabled: true, dangerous: true}\n")
    state = own_project / "var" / "flags"
    state.mkdir(parents=True)
    (state / "overrides.json").write_bytes(content)
    snapshot = load().snapshot
    assert [snapshot.evaluate(flag, snapshot.request()).value for flag in "AD"] == [True, False]


def test_pins_that_match_no_flag_and_those_that_cannot_be_read_are_told(flag_file, caplog):
    flag_file("flags:\n  my-flag: {}\n")
    snapshot = load(FF_NOWHERE="1", FF_MY_FLAG="maybe").snapshot
    assert snapshot.unmatched_pins == ("FF_NOWHERE",)
    assert "FF_MY_FLAG='maybe' cannot be read (want true, false or a variant): my-flag is off" in caplog.messages
    assert pin_name("my-flag") == "FF_MY_FLAG"


def test_an_unreadable_file_is_told_in_one_line(flag_file):
    path = flag_file("flags: {}")
    path.unlink()
    path.mkdir()
    assert str(load().snapshot.problems[0]) == "config/flags.yaml: cannot be read: Is a directory"


def test_jarvis_flags_alone_imports_neither_telemetry_nor_the_other_packages():
    code = "import jarvis_flags, sys; print([m for m in sys.modules if m.split('.')[0] in ('opentelemetry', 'jarvis_otel', 'jarvis_collector')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout.replace("'", '"')) == []


GOOD = b"flags:\n  A: {enabled: true}\n  D: {enabled: true, dangerous: true}\n"


@pytest.mark.parametrize(
    "content",
    [
        GOOD[:-2],
        b"\xef\xbb\xbf\xff" + GOOD,
        b"flags:\n\tA: {}\n",
        b"flags:\n  A: {name: \x00}\n",
        b"flags:\n  A: {name: \xff\xfe}\n",
        b"flags:\n" + b"  " * 40_000 + b"A: {}\n",
        b"flags: " + b"[" * 50_000,
        b"a: &a [x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1) if n else b"*a"] * 9)) for n in range(9)),
        b"flags:\n  A: !!python/object/apply:os.system ['true']\n",
        b"%YAML 9.9\n---\nflags: {}\n",
        b"flags: {A: {enabled: true}}\nflags: {A: {enabled: false}}\n",
        b"x" * 17_000_000,
        b"flags:\n" + b"".join(b"  F%d: {}\n" % number for number in range(101_000)),
    ],
    ids=[
        "truncated",
        "bad BOM",
        "tab",
        "NUL",
        "UTF-8",
        "deep",
        "brackets",
        "bomb",
        "tag",
        "version",
        "twice",
        "huge",
        "many",
    ],
)
def test_a_malformed_file_changes_nothing_and_is_told_with_its_place(flag_file, own_project, content):
    path = own_project / "config" / "flags.yaml"
    path.write_bytes(GOOD)
    source = load()
    path.write_bytes(content)
    snapshot = source.reload()
    places = [str(problem) for problem in snapshot.problems]
    if not places:
        # well-formed after all: a version directive and a deep indentation are YAML
        assert content.startswith((b"%YAML", b"flags:\n    "))
        return
    assert all(place.startswith("config/flags.yaml") for place in places)
    assert all("\n" not in place and len(place) < 500 for place in places)


def test_a_byte_order_mark_and_other_encodings_are_read(own_project):
    path = own_project / "config" / "flags.yaml"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(GOOD.decode().encode(encoding))
        assert list(load().snapshot.definitions) == ["A", "D"]
