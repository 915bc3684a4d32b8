"""flagd's definitions in and out: what they become, what is refused and how it is said, and the two commands."""

import argparse
import json
import stat

import pytest

from jarvis_flags.flagd import export_flagd, import_flagd
from jarvis_flags.model import EvaluationContext
from jarvis_flags.parse import parse_flags
from jarvis_flags.request import CALLERS_DEFAULT
from jarvis_flags.snapshot import Snapshot
from jarvis_flags.tree import load_tree, plain
from jarvis_otel.cli.flag_exchange import add_flagd_parsers

EMAIL = {"==": [{"var": "email"}, "a@b.c"]}
PRO = {"===": [{"var": "plan"}, "pro"]}
PRO_OURS = {"attribute": "plan", "op": "eq", "value": "pro"}
EVERYONE = {"jsonlogic": True}


def flagd(targeting=None, *, variants=None, default="a", evaluators=None, **more):
    flag = {
        "state": "ENABLED",
        "variants": variants or {"a": "A", "b": "B", "c": "C"},
        "defaultVariant": default,
        **more,
    }
    if targeting is not None:
        flag["targeting"] = targeting
    return {"flags": {"X": flag}, **({"$evaluators": evaluators} if evaluators else {})}


def rules(targeting, **more):
    imported = import_flagd(flagd(targeting, **more))
    assert not imported.refused
    return imported.document["flags"]["X"].get("rules", [])


def refusals(document, **more):
    return [str(refusal) for refusal in import_flagd(document, **more).refused]


def snapshot(document):
    read = parse_flags(document, "flags.yaml")
    assert not read.problems
    return Snapshot(definitions=read.flags, segments=read.segments)


def variant(document, user=None, **attributes):
    flags = snapshot(document)
    return flags.evaluate("X", flags.request(EvaluationContext(user, attributes=attributes))).variant


class TestRules:
    def test_nested_ifs_become_rules_in_order(self):
        targeting = {"if": [PRO, "b", {"if": [{"starts_with": [{"var": "email"}, "x"]}, "c", "a"]}]}
        assert rules(targeting) == [
            {"type": "user_segment", "value": PRO_OURS, "variant": "b"},
            {
                "type": "user_segment",
                "value": {"attribute": "email", "op": "starts_with", "value": "x"},
                "variant": "c",
            },
            {"type": "user_segment", "value": EVERYONE, "variant": "a"},
        ]

    def test_a_fractional_becomes_a_split_with_flagds_hash(self):
        assert rules({"fractional": [["a", 10], ["b", 5]]}) == [
            {"type": "percentage", "value": {"a": 10, "b": 5}, "hash": "flagd-v3"}
        ]
        assert rules({"fractional": [{"var": "email"}, ["a"], ["b", -3]]}) == [
            {"type": "percentage", "value": {"a": 1, "b": 0}, "by": "email", "hash": "flagd-v3"}
        ]

    def test_a_bucketing_value_that_is_computed_stays_an_expression(self):
        key = {"cat": [{"var": "$flagd.flagKey"}, {"var": "email"}]}
        assert rules({"fractional": [key, ["a", 1]]})[0]["by"] == key

    def test_a_split_that_may_find_no_key_is_not_followed_by_the_rules_after_it(self):
        targeting = {"if": [PRO, {"fractional": [["b", 1]]}, "c"]}
        assert [rule.get("segment", rule["value"]) for rule in rules(targeting)] == [PRO_OURS, {"not": PRO_OURS}]
        document = import_flagd(flagd(targeting)).document
        assert [variant(document, user, plan=plan) for user in ("u", None) for plan in ("pro", "free")] == list("bcac")

    def test_a_computed_variant_makes_a_rule_of_type_jsonlogic(self):
        assert rules({"var": "color"}) == [{"type": "jsonlogic", "value": {"var": "color"}}]
        assert rules({"fractional": [[{"var": "color"}, 1]]})[0]["hash"] == "flagd-v3"

    def test_a_condition_of_loose_equality_stays_jsonlogic_because_none_of_ours_is_like_it(self):
        assert rules({"if": [EMAIL, "b"]}) == [{"type": "user_segment", "value": {"jsonlogic": EMAIL}, "variant": "b"}]
        document = import_flagd(flagd({"if": [EMAIL, "b"]})).document
        assert variant(document, email=["a@b.c"]) == "b"

    def test_an_evaluator_becomes_a_segment_by_its_name(self):
        imported = import_flagd(flagd({"if": [{"$ref": "paying"}, "b"]}, evaluators={"paying": PRO}))
        assert imported.document["segments"] == {"paying": PRO_OURS}
        assert imported.document["flags"]["X"]["rules"] == [{"type": "user_segment", "value": "paying", "variant": "b"}]

    def test_an_evaluator_that_asks_for_its_flag_is_written_out_in_each(self):
        own = {"==": [{"var": "$flagd.flagKey"}, "X"]}
        imported = import_flagd(flagd({"if": [{"$ref": "own"}, "b"]}, evaluators={"own": own}))
        assert "segments" not in imported.document
        assert variant(imported.document) == "b"

    def test_a_long_chain_of_splits_stays_one_expression_rather_than_repeat_its_conditions(self):
        chain = [part for n in range(20) for part in (EMAIL, {"fractional": [["b", n + 1]]})]
        assert rules({"if": chain}) == [{"type": "jsonlogic", "value": {"if": chain}, "hash": "flagd-v3"}]

    def test_a_deep_condition_stays_jsonlogic(self):
        deep = PRO
        for _ in range(30):
            deep = {"!": [deep]}
        assert "jsonlogic" in json.dumps(rules({"if": [deep, "b"]}))

    def test_time_is_that_of_the_snapshot(self):
        read = parse_flags(import_flagd(flagd({"if": [{">": [{"var": "$flagd.timestamp"}, 100]}, "b"]})).document, "")
        for now, wanted in ((100.9, "a"), (101.0, "b")):
            flags = Snapshot(definitions=read.flags, clock=lambda now=now: now)
            assert flags.evaluate("X", flags.request()).variant == wanted


class TestFlags:
    def test_disabled_is_disabled(self):
        imported = import_flagd(flagd() | {"flags": {"X": {"state": "DISABLED", "variants": {"a": 1}}}})
        assert imported.document["flags"]["X"]["status"] == "disabled"

    @pytest.mark.parametrize("default", [None, ""])
    @pytest.mark.parametrize("variants", [{"on": True, "off": False}, {"a": 1}])
    def test_without_a_default_variant_the_caller_decides(self, default, variants):
        flags = snapshot(import_flagd(flagd(variants=variants, default=default)).document)
        result = flags.evaluate("X", flags.request())
        assert (result.value, result.variant, result.reason, result.error_code) == (
            CALLERS_DEFAULT,
            None,
            "DEFAULT",
            None,
        )

    def test_metadata_of_the_set_is_that_of_each_flag_unless_it_has_its_own(self):
        document = flagd(metadata={"team": "x"}) | {"metadata": {"team": "all", "since": 2}}
        assert import_flagd(document).document["flags"]["X"]["metadata"] == {"team": "x", "since": 2}

    def test_a_name_that_is_no_variant_is_an_error_and_off_for_a_dangerous_flag(self):
        document = import_flagd(flagd({"var": "color"}, variants={"on": True, "off": False}, default="on")).document
        flags = snapshot(document)
        asked = flags.request(EvaluationContext(attributes={"color": "red"}))
        result = flags.evaluate("X", asked)
        assert (result.value, result.reason, result.error_code) == (CALLERS_DEFAULT, "ERROR", "GENERAL")
        document["flags"]["X"]["dangerous"] = True
        assert snapshot(document).evaluate("X", asked).value is False

    def test_an_overflow_is_an_error_of_the_evaluation_and_no_exception(self):
        flags = snapshot(import_flagd(flagd({"*": [{"var": "n"}, 1.5]})).document)
        result = flags.evaluate("X", flags.request(EvaluationContext(attributes={"n": 10**400})))
        assert result.error_code == "GENERAL"
        flags = snapshot(import_flagd(flagd({"if": [{"*": [{"var": "n"}, 1.5]}, "b"]})).document)
        assert flags.evaluate("X", flags.request(EvaluationContext(attributes={"n": 10**400}))).variant == "a"


class TestRefusals:
    @pytest.mark.parametrize(
        ("targeting", "wanted"),
        [
            ({"if": [{"missing": ["a"]}, "b"]}, "flags.X.targeting.if[0]: got the operator 'missing', want one of"),
            ({"if": [{"!": {"map": []}}, "b"]}, "flags.X.targeting.if[0].!: got the operator 'map', want one of"),
            ({"if": [EMAIL, "z"]}, "flags.X.targeting.if[1]: got 'z', want one of the variants a, b, c"),
            (
                {"if": [{"/": [1, {"var": "n"}]}, "b"]},
                "flags.X.targeting.if[0]: want a number other than 0 to divide by",
            ),
            ({"if": [{"$ref": "x"}, "b"]}, "flags.X.targeting.if[0]: got $ref 'x', want one of $evaluators (none)"),
            (
                {"fractional": [{"map": []}, ["a", 1]]},
                "flags.X.targeting.fractional[0]: got the operator 'map', want one of",
            ),
            ({"if": [], "and": []}, "flags.X.targeting: got 2 operators, want one"),
            (
                {"some": [{"var": "x"}, {"fractional": [["a", 1]]}]},
                "flags.X.targeting: fractional cannot stand within some",
            ),
            ([1], "flags.X.targeting: want a mapping"),
        ],
    )
    def test_targeting_that_cannot_be_carried_over_is_refused_with_its_path(self, targeting, wanted):
        (refusal,) = refusals(flagd(targeting))
        assert refusal.startswith(wanted)

    @pytest.mark.parametrize(
        ("flag", "wanted"),
        [
            ({"state": "ON"}, "flags.X.state: got 'ON', want 'ENABLED' or 'DISABLED'"),
            ({"variants": {}}, "flags.X.variants: want a mapping with at least one variant"),
            ({"variants": {"a": 1, "b": "x"}}, "flags.X.variants: got values of types integer, string, want one type"),
            ({"variants": {"": 1}}, "flags.X.variants: a variant without a name cannot be served"),
            ({"defaultVariant": "z"}, "flags.X.defaultVariant: got 'z', want one of the variants a, b, c"),
            ({"rules": []}, "flags.X.rules: no field of flagd's"),
            ({"metadata": {"a": []}}, "flags.X.metadata.a: got a list, want text, a number, true or false"),
        ],
    )
    def test_a_flag_that_cannot_be_ours_is_refused_with_its_path(self, flag, wanted):
        document = flagd()
        document["flags"]["X"] |= flag
        assert refusals(document) == [wanted]

    def test_one_refused_flag_leaves_the_others(self):
        document = flagd({"missing": []})
        document["flags"]["Y"] = {"state": "ENABLED", "variants": {"on": True}, "defaultVariant": "on"}
        imported = import_flagd(document)
        assert (list(imported.document["flags"]), [r.flag_id for r in imported.refused]) == (["Y"], ["X"])

    def test_evaluators_that_lead_back_to_themselves_or_grow_without_end_are_refused(self):
        circle = {"one": {"!": [{"$ref": "two"}]}, "two": {"!": [{"$ref": "one"}]}}
        (refusal,) = refusals(flagd({"if": [{"$ref": "one"}, "b"]}, evaluators=circle))
        assert "in a circle: one → two → one" in refusal
        bomb = {f"e{n}": {"and": [{"$ref": f"e{n + 1}"}] * 10} for n in range(9)} | {"e9": True}
        (refusal,) = refusals(flagd({"if": [{"$ref": "e0"}, "b"]}, evaluators=bomb))
        assert "more than 20000 values" in refusal

    def test_nesting_without_end_is_refused(self):
        deep = {"var": "n"}
        for _ in range(60):
            deep = {"+": [deep]}
        (refusal,) = refusals(flagd(deep))
        assert refusal.endswith("nested deeper than 48")

    @pytest.mark.parametrize("document", [None, [], {}, {"flags": []}, {"flags": {}, "$evaluators": []}])
    def test_what_is_no_document_of_flagds_is_an_error(self, document):
        with pytest.raises(ValueError, match="want a mapping"):
            import_flagd(document)


class TestExport:
    def test_our_flags_become_flagds(self):
        read = parse_flags(
            {
                "segments": {"paying": {"any": [PRO_OURS, {"attribute": "plan", "op": "exists", "value": False}]}},
                "flags": {
                    "PLAIN": {"enabled": True, "rules": [{"type": "user_ids", "value": ["1"]}]},
                    "OFF": {"metadata": {"team": "x"}},
                    "GONE": {"status": "disabled"},
                    "TYPED": {
                        "variants": {"low": 1, "high": 2},
                        "default": "low",
                        "rules": [
                            {"type": "percentage", "value": {"low": 1, "high": 2}, "hash": "flagd-v3", "by": "team"},
                            {"type": "user_segment", "value": "paying", "variant": "high", "priority": 5},
                        ],
                    },
                },
            },
            "",
        )
        assert not read.problems
        exported = export_flagd(read.flags, read.segments)
        switch = {"on": True, "off": False}
        plan = {"var": "plan"}
        assert exported.refused == ()
        assert exported.document["flags"] == {
            "PLAIN": {
                "state": "ENABLED",
                "variants": switch,
                "defaultVariant": "on",
                "targeting": {"if": [{"in": [{"var": "targetingKey"}, ["1"]]}, "on"]},
            },
            "OFF": {"state": "ENABLED", "variants": switch, "defaultVariant": "off", "metadata": {"team": "x"}},
            "GONE": {"state": "DISABLED", "variants": switch, "defaultVariant": "off"},
            "TYPED": {
                "state": "ENABLED",
                "variants": {"low": 1, "high": 2},
                "defaultVariant": "low",
                "targeting": {
                    "if": [
                        {"or": [{"===": [plan, "pro"]}, {"!": [{"!==": [plan, None]}]}]},
                        "high",
                        {"fractional": [{"var": "team"}, ["low", 1], ["high", 2]]},
                    ]
                },
            },
        }

    @pytest.mark.parametrize(
        ("flag", "wanted"),
        [
            ({"rules": [{"type": "percentage", "value": 25}]}, "rules[0].value: our own buckets (jv1) are not flagd's"),
            ({"rules": [{"type": "environments", "value": ["dev"]}]}, "rules[0]: flagd knows no environments"),
            ({"environment_defaults": {"dev": True}}, "environment_defaults: flagd has nothing like it"),
            (
                {"rules": [{"type": "user_segment", "value": {"not": {"attribute": "a", "op": "gt", "value": 5}}}]},
                "rules[0].value.not: flagd would convert types to compare with 5",
            ),
            (
                {"rules": [{"type": "user_segment", "value": {"attribute": "a.b", "op": "eq", "value": "x"}}]},
                "rules[0].value: flagd would read the attribute 'a.b' otherwise",
            ),
            (
                {"rules": [{"type": "user_segment", "value": {"attribute": "a", "op": "semver_gt", "value": "1.0"}}]},
                "rules[0].value: flagd has no operator that says exactly semver_gt",
            ),
            (
                {"rules": [{"type": "percentage", "value": {"on": 1, "off": 1}, "hash": "flagd-v2"}]},
                "rules[0].hash: got flagd-v2, but the export is for flagd-v3",
            ),
        ],
    )
    def test_what_flagd_cannot_say_exactly_is_refused_with_its_path(self, flag, wanted):
        read = parse_flags({"flags": {"X": flag}}, "")
        assert not read.problems
        (refusal,) = export_flagd(read.flags, read.segments).refused
        assert str(refusal).startswith(f"flags.X.{wanted}")


class TestCommands:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch, capsysbinary):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("JARVIS_HOME", str(tmp_path))
        parser = argparse.ArgumentParser()
        add_flagd_parsers(parser.add_subparsers())

        def run(*arguments):
            args = parser.parse_args([str(argument) for argument in arguments])
            status = args.func(args)
            out, err = capsysbinary.readouterr()
            return status, out.decode(), err.decode()

        return run

    def test_import_writes_the_rest_names_what_is_refused_and_exits_2(self, run, tmp_path):
        document = flagd({"missing": []})
        document["flags"]["Y"] = flagd({"if": [PRO, "b", "c"]})["flags"]["X"]
        (tmp_path / "in.json").write_text(json.dumps(document))
        status, out, err = run("import", "flagd", "in.json", "-o", "out.yaml")
        assert (status, out) == (2, "")
        assert err.startswith("in.json: flags.X.targeting: got the operator 'missing', want one of")
        assert err.count("\n") == 1
        text = (tmp_path / "out.yaml").read_text()
        assert text.startswith("# 1 flag, imported from flagd's 'in.json'\n# Not carried over: X\n")
        assert plain(load_tree(text)) == import_flagd(document).document
        assert stat.S_IMODE((tmp_path / "out.yaml").stat().st_mode) & 0o027 == 0

    def test_import_to_stdout_as_yaml_or_json(self, run, tmp_path):
        (tmp_path / "in.yaml").write_text("flags: {X: {state: ENABLED, variants: {on: true}, defaultVariant: on}}")
        status, out, err = run("import", "flagd", "in.yaml")
        assert (status, err) == (0, "")
        wanted = {"version": "1.0", "flags": {"X": {"variants": {"on": True}, "default": "on"}}}
        assert plain(load_tree(out)) == wanted
        status, out, _ = run("import", "flagd", "in.yaml", "--format", "json")
        assert json.loads(out) == wanted

    @pytest.mark.parametrize(
        "text", ["on", "1e5", "0o17", "1.10", "2027-03-01", "12:30", "~", "null", "=", "<<", "- a", "a: b", "\x85", " a ", "é\u2028", "#", "0x1F", ".5", "+1"]
    )  # fmt: skip
    def test_text_that_yaml_takes_for_something_else_stays_text(self, run, tmp_path, text):
        document = flagd({"if": [{"===": [{"var": text}, text]}, text]}, variants={text: text, "a": "A"}, default=text)
        (tmp_path / "in.json").write_text(json.dumps(document))
        status, out, err = run("import", "flagd", "in.json")
        assert (status, err) == (0, "")
        assert plain(load_tree(out)) == import_flagd(document).document

    def test_a_lone_surrogate_is_refused_where_yaml_cannot_hold_it(self, run, tmp_path):
        (tmp_path / "in.json").write_text(json.dumps(flagd(variants={"a": "\ud800"})))
        status, out, err = run("import", "flagd", "in.json")
        assert status == 2
        assert err.startswith("in.json: flags.X: cannot be written as YAML: ")
        assert plain(load_tree(out))["flags"] == {}

    @pytest.mark.parametrize(
        ("content", "wanted"),
        [
            (None, "jarvis: in.json: No such file or directory"),
            ("{", "jarvis: in.json:2: not YAML"),
            ("[]", "jarvis: in.json: want a mapping with `flags`"),
        ],
    )
    def test_a_file_that_cannot_be_read_is_one_line_and_2(self, run, tmp_path, content, wanted):
        if content is not None:
            (tmp_path / "in.json").write_text(content)
        status, out, err = run("import", "flagd", "in.json")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(wanted)

    def test_export_writes_the_flags_in_force_and_names_what_is_refused(self, run, tmp_path):
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "flags.yaml").write_text(
            "flags:\n  A: {enabled: true}\n  B: {rules: [{type: percentage, value: 5}]}\n"
        )
        status, out, err = run("export", "flagd", "-o", "out.json")
        assert (status, out) == (2, "")
        assert "flags.yaml: flags.B.rules[0].value: our own buckets (jv1)" in err
        assert list(json.loads((tmp_path / "out.json").read_text())["flags"]) == ["A"]

    def test_what_was_imported_is_exported_again(self, run, tmp_path):
        (tmp_path / "config").mkdir()
        document = flagd({"if": [PRO, {"fractional": [["a", 1], ["b", 2]]}]})
        (tmp_path / "in.json").write_text(json.dumps(document))
        assert run("import", "flagd", "in.json", "-o", "config/flags.yaml")[0] == 0
        status, out, err = run("export", "flagd")
        assert (status, err) == (0, "")
        assert json.loads(out)["flags"]["X"] == document["flags"]["X"]


class TestRulesOfTheFile:
    @pytest.mark.parametrize(
        ("rule", "wanted"),
        [
            ({"type": "jsonlogic", "value": {"nope": 1}}, "value: got the operator 'nope', want one of"),
            ({"type": "jsonlogic", "value": {"fractional": []}}, "value: fractional needs `hash:`"),
            (
                {"type": "jsonlogic", "value": {"var": "a"}, "variant": "on"},
                "variant: a jsonlogic rule names its variants",
            ),
            ({"type": "percentage", "value": 5, "hash": "flagd-v3"}, "hash: only a split over variants and jsonlogic"),
            ({"type": "percentage", "value": {"on": 1}, "hash": "flagd"}, "hash: got 'flagd', want one of flagd-v2"),
            (
                {"type": "percentage", "value": {"on": 0.5}, "hash": "flagd-v3"},
                "value.on: got 0.5, want a whole number",
            ),
            ({"type": "percentage", "value": {"on": 0}, "hash": "flagd-v3"}, "value: got weights that total 0"),
            (
                {"type": "percentage", "value": {"on": 1}, "hash": "flagd-v3", "by": {"x": 1}},
                "by: got the operator 'x', want one of",
            ),
            (
                {"type": "percentage", "value": {"on": 1}, "hash": "flagd-v3", "salt": "s"},
                "salt: flagd's hashes have none",
            ),
            (
                {"type": "user_segment", "value": {"jsonlogic": {"!": [{"x": 1}]}}},
                "value.jsonlogic.![0]: got the operator",
            ),
            ({"type": "user_segment", "value": {"jsonlogic": True, "op": "eq"}}, "value.op: unknown field"),
        ],
    )
    def test_what_is_wrong_in_a_rule_with_flagds_words_is_said_with_its_path(self, rule, wanted):
        read = parse_flags({"flags": {"X": {"rules": [rule]}}}, "f")
        assert any(str(problem).startswith(f"f: flags.X.rules[0].{wanted}") for problem in read.problems)

    def test_a_definition_is_written_as_it_was_read(self):
        rule = {"type": "percentage", "value": {"on": 1, "off": 2}, "by": {"var": "team"}, "hash": "flagd-v2"}
        definition = parse_flags({"flags": {"X": {"rules": [rule]}}}, "").flags["X"]
        assert definition.to_dict()["rules"] == [rule]

    def test_without_a_key_flagds_split_leaves_the_default_and_says_so(self):
        flags = snapshot(import_flagd(flagd({"fractional": [["b", 1]]}, variants={"a": True, "b": False})).document)
        result = flags.evaluate("X", flags.request())
        assert (result.variant, result.reason, result.metadata["key_missing"]) == ("a", "DEFAULT", True)
        assert flags.evaluate("X", flags.request(user_id="u")).reason == "SPLIT"
