"""The OpenFeature provider: what an application sees through OpenFeature's own client."""

import logging
import subprocess
import sys
import threading

import pytest
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEvent
from openfeature.exception import ErrorCode

from jarvis_flags import YamlFlagProvider

FLAGS = """
flags:
  ON: {enabled: true}
  OFF: {enabled: false}
  INT: {variants: {low: 1, high: 10}, default: low}
  FLOAT: {variants: {a: 1.5, b: 2.0}, default: b}
  TEXT: {variants: {a: x, b: y}, default: a}
  OBJECT: {variants: {a: {deep: [1, {x: true}]}}, default: a}
  NO_DEFAULT: {variants: {a: x}}
  DISABLED: {enabled: true, status: disabled}
  BROKEN: {enabled: true, dangerous: true, rules: 5}
  QUARTER: {rules: [{type: percentage, value: 25}]}
"""


@pytest.fixture
def client(flag_file):
    flag_file(FLAGS)
    provider = YamlFlagProvider("config/flags.yaml")
    api.set_provider_and_wait(provider)
    yield api.get_client()
    api.shutdown()


def test_each_type_is_resolved(client):
    assert client.get_boolean_value("ON", False) is True
    assert client.get_integer_value("INT", 0) == 1
    assert client.get_float_value("FLOAT", 0.0) == 2.0
    assert client.get_string_value("TEXT", "") == "x"
    assert client.get_object_value("OBJECT", {}) == {"deep": [1, {"x": True}]}


def test_an_integer_widens_to_a_float_a_whole_float_is_an_integer_and_a_bool_is_neither(client):
    assert client.get_float_value("INT", 0.0) == 1.0
    assert client.get_integer_value("FLOAT", 0) == 2
    for details in (
        client.get_integer_details("ON", 7),
        client.get_float_details("ON", 7.0),
        client.get_boolean_details("INT", True),
    ):
        assert details.error_code is ErrorCode.TYPE_MISMATCH
        assert details.value == details.value.__class__(7) or details.value is True


def test_a_disabled_flag_is_no_error(client):
    details = client.get_boolean_details("DISABLED", True)
    assert (details.value, str(details.reason), details.error_code) == (False, "DISABLED", None)


def test_an_unknown_flag_is_flag_not_found_and_logs_no_traceback(client, caplog):
    with caplog.at_level(logging.DEBUG):
        details = client.get_boolean_details("NOWHERE", True)
    assert (details.value, details.error_code) == (True, ErrorCode.FLAG_NOT_FOUND)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_broken_dangerous_flag_is_off_even_for_a_caller_whose_default_is_on(client):
    details = client.get_boolean_details("BROKEN", True)
    assert (details.value, details.error_code) == (False, ErrorCode.PARSE_ERROR)


def test_a_broken_dangerous_flag_gives_other_types_their_default(client):
    details = client.get_string_details("BROKEN", "mine")
    assert (details.value, details.error_code) == ("mine", ErrorCode.PARSE_ERROR)


def test_the_metadata_names_flag_set_version_rule_and_context_and_cannot_be_changed(client):
    details = next(
        details
        for user in range(100)
        if (details := client.get_boolean_details("QUARTER", False, EvaluationContext(f"u{user}"))).value
    )
    metadata = details.flag_metadata
    assert (metadata["flagSetId"], metadata["rule"]) == ("flags.yaml", "rules[0]")
    assert metadata["contextId"].startswith("u")
    with pytest.raises(TypeError):
        metadata["version"] = "x"
    with pytest.raises(AttributeError):
        api.get_provider_metadata().name = "x"


def test_the_context_names_user_environment_and_request(flag_file):
    flag_file("flags:\n  F: {rules: [{type: environments, value: [qa]}, {type: user_ids, value: [u1]}]}\n")
    api.set_provider_and_wait(YamlFlagProvider("config/flags.yaml"))
    client = api.get_client()
    asked = [
        EvaluationContext("u1"),
        EvaluationContext(None, {"user_id": "u1"}),
        EvaluationContext("x", {"environment": "qa"}),
        EvaluationContext("x", {"environment": "prod"}),
    ]
    assert [client.get_boolean_value("F", False, context) for context in asked] == [True, True, True, False]
    api.shutdown()


def test_a_change_is_told_with_the_keys_that_changed(client, flag_file):
    seen = threading.Event()
    told = []

    def handler(details):
        told.append(details)
        seen.set()

    client.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, handler)
    flag_file(FLAGS.replace("OFF: {enabled: false}", "OFF: {enabled: true}").replace("low: 1,", "low: 2,"))
    assert seen.wait(10)
    assert told[0].flags_changed == ["INT", "OFF"]
    assert client.get_boolean_value("OFF", False) is True


def test_a_file_that_breaks_is_an_error_event_and_goes_on_answering_until_it_is_whole_again(client, flag_file):
    broken, whole = threading.Event(), threading.Event()
    client.add_handler(ProviderEvent.PROVIDER_ERROR, lambda details: broken.set())
    flag_file("flags: [")
    assert broken.wait(10)
    assert client.get_boolean_value("ON", False) is True
    client.add_handler(ProviderEvent.PROVIDER_READY, lambda details: whole.set())
    flag_file(FLAGS.replace("BROKEN: {enabled: true, dangerous: true, rules: 5}", ""))
    assert whole.wait(10)


def test_a_file_that_is_gone_makes_the_provider_stale(client, own_project):
    stale = threading.Event()
    client.add_handler(ProviderEvent.PROVIDER_STALE, lambda details: stale.set())
    (own_project / "config" / "flags.yaml").unlink()
    assert stale.wait(10)
    assert client.get_provider_status().name == "STALE"
    assert client.get_boolean_value("ON", False) is True


def test_shutdown_may_be_called_twice_and_the_provider_may_be_used_again(flag_file):
    flag_file("flags:\n  ON: {enabled: true}\n")
    provider = YamlFlagProvider("config/flags.yaml")
    for _ in range(2):
        api.set_provider_and_wait(provider)
        assert api.get_client().get_boolean_value("ON", False)
        api.shutdown()
        provider.shutdown()


def test_a_bare_provider_obeys_pins_and_the_kill_switch(flag_file, own_project, monkeypatch):
    flag_file("flags:\n  A: {enabled: true}\n  B: {enabled: true}\n")
    monkeypatch.setenv("FF_A", "false")
    state = own_project / "var" / "flags"
    state.mkdir(parents=True)
    (state / "overrides.json").write_text('{"format": 1, "revision": 1, "overrides": {"B": {"state": "off"}}}')
    provider = YamlFlagProvider("config/flags.yaml")
    assert [provider.resolve_boolean_details(flag_key=flag, default_value=True).value for flag in "AB"] == [
        False,
        False,
    ]
    provider.shutdown()


def test_a_provider_that_was_never_shut_down_does_not_keep_the_process(flag_file):
    flag_file("flags: {}")
    code = "from jarvis_flags import YamlFlagProvider; YamlFlagProvider('config/flags.yaml'); print('end')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert (done.stdout, done.stderr) == ("end\n", "")
