"""What an evaluation is called in telemetry is what the registry of OpenTelemetry's semantic conventions calls it."""

import re
from pathlib import Path

import pytest
import yaml
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from jarvis_otel import YamlFlagProvider
from jarvis_otel.runtime import RUNTIME
from jarvis_otel.settings import Settings

MODEL = Path(__file__).parent / "conformance" / "otel-semconv" / "feature-flags"

FLAGS = """
segments: {ann: {attribute: email, op: eq, value: ann@jarvis.dev}}
flags:
  STATIC: {enabled: true}
  DEFAULT: {rules: [{type: user_segment, value: ann}]}
  MATCH: {rules: [{type: user_ids, value: [ann]}]}
  SPLIT: {variants: {a: 1, b: 2}, default: a, rules: [{type: percentage, value: {a: 50, b: 50}}]}
  DISABLED: {status: disabled}
  BROKEN: {enabled: true, dangerous: true, rules: 5}
"""


def model(name):
    [group] = yaml.safe_load((MODEL / name).read_text())["groups"]
    return group


@pytest.fixture
def events(flag_file, monkeypatch):
    """The evaluation events of one flag for each reason, as span events."""
    flag_file(FLAGS)
    monkeypatch.setenv("JARVIS_SPAN_EVENTS", "1")
    monkeypatch.setenv("JARVIS_ENVIRONMENT", "dev")
    monkeypatch.setattr(RUNTIME, "settings", Settings.load())
    exporter = InMemorySpanExporter()
    tracing = TracerProvider(shutdown_on_exit=False)
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    api.set_provider_and_wait(YamlFlagProvider("config/flags.yaml"))
    client = api.get_client()
    with tracing.get_tracer("test").start_as_current_span("work"):
        for flag in ("STATIC", "DEFAULT", "MATCH", "DISABLED", "BROKEN", "NOWHERE"):
            client.get_boolean_value(flag, False, EvaluationContext("ann"))
        for _ in range(2):
            client.get_integer_value("SPLIT", 0, EvaluationContext("ann"))
        client.get_string_value("SPLIT", "", EvaluationContext("ann"))
    api.shutdown()
    [span] = exporter.get_finished_spans()
    yield span.events
    tracing.shutdown()


def test_events_have_the_name_and_the_attributes_of_the_conventions_and_all_that_are_required(events):
    conventions = model("events.yaml")
    allowed = {entry["ref"]: entry["requirement_level"] for entry in conventions["attributes"]}
    required = {name for name, level in allowed.items() if level in ("required", "recommended")}
    assert {event.name for event in events} == {conventions["name"]}
    for event in events:
        assert event.attributes.keys() <= allowed.keys()
        assert event.attributes.keys() >= required
        assert ("error.type" in event.attributes) == (event.attributes["feature_flag.result.reason"] == "error")


def test_no_attribute_is_deprecated(events):
    deprecated = {entry["id"] for entry in model("deprecated/registry-deprecated.yaml")["attributes"]}
    assert deprecated.isdisjoint(key for event in events for key in event.attributes)


def test_reasons_and_error_types_are_the_members_of_their_enumerations(events):
    [reason] = [entry for entry in model("registry.yaml")["attributes"] if entry["id"] == "feature_flag.result.reason"]
    reasons = {member["value"] for member in reason["type"]["members"]}
    got = {event.attributes["feature_flag.result.reason"] for event in events}
    assert got == {"static", "default", "targeting_match", "split", "disabled", "error"} & reasons
    [error] = [entry for entry in model("events.yaml")["attributes"] if entry["ref"] == "error.type"]
    types = set(re.findall(r"^\| `(\w+)`", error["note"], re.MULTILINE))
    got = {event.attributes["error.type"] for event in events if "error.type" in event.attributes}
    assert got == {"parse_error", "flag_not_found", "type_mismatch"} & types
