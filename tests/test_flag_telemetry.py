"""What an evaluation leaves behind: span attributes, events, metrics, and the operation's own memory."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from openfeature import api
from openfeature.hook import Hook
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from jarvis_otel import EvaluationContext, FeatureFlagManager, FlagDefinition, RolloutRule, YamlFlagProvider, get_logger
from jarvis_otel.context import current_operation
from jarvis_otel.flag_hook import EvaluationHook


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    exporter.tracer = provider.get_tracer("test")
    yield exporter
    provider.shutdown()


@pytest.fixture
def manager():
    manager = FeatureFlagManager()
    manager.create_flag(FlagDefinition(id="ON", enabled=True))
    manager.create_flag(FlagDefinition(id="OFF"))
    manager.create_flag(FlagDefinition(id="LIMIT", variants={"low": 100, "high": 1000}, default="low"))
    yield manager
    api.shutdown()


def flags_of(span):
    return {key: value for key, value in span.attributes.items() if key.startswith("jarvis.flag")}


def test_each_evaluated_flag_is_an_attribute_of_the_current_span(spans, manager):
    with spans.tracer.start_as_current_span("work"):
        manager.is_enabled("ON")
        manager.is_enabled("OFF")
        manager.value("LIMIT", 0)
        manager.is_enabled("NOWHERE")
    (span,) = spans.get_finished_spans()
    assert flags_of(span) == {"jarvis.flag.ON": "on", "jarvis.flag.OFF": "off", "jarvis.flag.LIMIT": "low"}


def test_the_last_value_of_a_flag_wins(spans, manager):
    with spans.tracer.start_as_current_span("work"):
        manager.is_enabled("ON")
        manager.set_enabled("ON", False)
        manager.is_enabled("ON")
    assert flags_of(spans.get_finished_spans()[0]) == {"jarvis.flag.ON": "off"}


def test_a_span_carries_32_flags_and_counts_the_rest(spans, manager):
    for number in range(40):
        manager.create_flag(FlagDefinition(id=f"F{number}"))
    with spans.tracer.start_as_current_span("work") as span:
        span.add_event("mine")
        for _ in range(500):
            for number in range(40):
                manager.is_enabled(f"F{number}")
    (span,) = spans.get_finished_spans()
    assert len(flags_of(span)) == 33
    assert span.attributes["jarvis.flags_omitted"] == 8
    assert [event.name for event in span.events] == ["mine"]


def test_the_hook_serves_any_provider(spans):
    variants = {"a": "x", "b": "y"}
    api.set_provider_and_wait(InMemoryProvider({"COLOR": InMemoryFlag("a", variants)}))
    api.add_hooks([EvaluationHook()])
    with spans.tracer.start_as_current_span("work"):
        api.get_client().get_string_value("COLOR", "")
    api.shutdown()
    assert flags_of(spans.get_finished_spans()[0]) == {"jarvis.flag.COLOR": "a"}


def test_setting_our_provider_alone_marks_the_spans(spans, flag_file):
    flag_file("flags:\n  F: {enabled: true}\n")
    api.set_provider_and_wait(YamlFlagProvider("config/flags.yaml"))
    with spans.tracer.start_as_current_span("work"):
        assert api.get_client().get_boolean_value("F", False)
    api.shutdown()
    assert flags_of(spans.get_finished_spans()[0]) == {"jarvis.flag.F": "on"}


class Recording(Hook):
    def __init__(self):
        self.seen = []

    def before(self, hook_context, hints):
        context = hook_context.evaluation_context
        self.seen.append((hook_context.flag_key, context.targeting_key, context.attributes.get("environment")))


def test_the_facade_goes_through_the_client_as_soon_as_another_hook_is_registered(spans, manager):
    manager.create_flag(FlagDefinition(id="MINE", rules=[RolloutRule(type="user_ids", value=["ann"])]))
    context = EvaluationContext(user_id="ann", environment="dev")
    plain = [manager.is_enabled("MINE", context=context), manager.value("LIMIT", 5)]
    hook = Recording()
    api.add_hooks([hook])
    with spans.tracer.start_as_current_span("work"):
        assert [manager.is_enabled("MINE", context=context), manager.value("LIMIT", 5)] == plain == [True, 100]
    assert hook.seen == [("MINE", "ann", "dev"), ("LIMIT", None, "prod")]
    assert flags_of(spans.get_finished_spans()[0]) == {"jarvis.flag.MINE": "on", "jarvis.flag.LIMIT": "low"}


def test_the_user_is_the_argument_then_the_context_then_the_operations(manager):
    manager.create_flag(FlagDefinition(id="MINE", rules=[RolloutRule(type="user_ids", value=["ann"])]))
    logger = get_logger("test")
    assert not manager.is_enabled("MINE")
    with logger.context(user_id="ann"):
        assert manager.is_enabled("MINE")
        assert not manager.is_enabled("MINE", user_id="bob")
        assert not manager.is_enabled("MINE", context=EvaluationContext(user_id="bob"))


def test_an_operation_remembers_what_was_evaluated_in_it_and_passes_it_inward_only(manager):
    logger = get_logger("test")
    with logger.context(correlation_id="outer"):
        manager.is_enabled("ON")
        with logger.context(correlation_id="inner"):
            manager.is_enabled("OFF")
            assert current_operation().evaluated == {"ON": ("on", True), "OFF": ("off", False)}
        assert current_operation().evaluated == {"ON": ("on", True)}
    assert current_operation() is None


def test_declared_flags_are_evaluated_silently_and_follow_a_change(spans, manager):
    manager.create_flag(FlagDefinition(id="DECLARED", services=["trading"]))
    with spans.tracer.start_as_current_span("work"):
        assert manager.declared("trading", None, ("ON",)) == {"DECLARED": ("off", False), "ON": ("on", True)}
        assert manager.declared("other", None, ()) == {}
    assert flags_of(spans.get_finished_spans()[0]) == {}
    manager.set_enabled("DECLARED", True)
    assert manager.declared("trading", None, ()) == {"DECLARED": ("on", True)}


def test_on_change_tells_old_and_new_until_it_is_cancelled(manager):
    told = []
    cancel = manager.on_change("OFF", lambda *change: told.append(change))
    manager.set_enabled("OFF", True)
    manager.set_enabled("ON", False)
    manager.set_enabled("OFF", True)
    cancel()
    manager.set_enabled("OFF", False)
    assert told == [("OFF", False, True)]


def test_on_change_hears_of_a_prerequisite(manager):
    manager.create_flag(FlagDefinition(id="NEEDS", enabled=True, requires=["ON"]))
    told = []
    manager.on_change("NEEDS", lambda *change: told.append(change))
    manager.set_enabled("ON", False)
    assert told == [("NEEDS", True, False)]


def test_listeners_and_clients_follow_a_manager_to_another_file(flag_file):
    flag_file("flags:\n  B: {enabled: true}\n")
    other = flag_file("flags:\n  B: {enabled: false}\n  N: {enabled: true}\n", "other.yaml")
    manager = FeatureFlagManager("config/flags.yaml")
    told = []
    manager.on_change("B", lambda *change: told.append(change))
    api.set_provider_and_wait(manager.provider)
    client = api.get_client()
    assert client.get_boolean_value("B", False)
    manager.load_from_file(other)
    assert [client.get_boolean_value(flag, False) for flag in "BN"] == [False, True]
    assert told == [("B", True, False)]
    manager.close()
    api.shutdown()


def test_a_variant_goes_through_the_hooks_too(manager):
    hook = Recording()
    api.add_hooks([hook])
    assert manager.variant("LIMIT") == "low"
    assert manager.value("LIMIT", None) == 100
    assert [seen[0] for seen in hook.seen] == ["LIMIT", "LIMIT"]


@pytest.mark.parametrize("arguments", [("", 5), ("ON", "x"), ("ON", None), (None, 5)])
def test_a_change_that_makes_no_sense_is_refused_and_not_raised(manager, arguments):
    assert manager.set_rollout(*arguments) is False
    assert manager.create_flag(FlagDefinition(id="")) is False
    assert manager.set_enabled("\ud800", False, reason="\ud800") is False


def test_on_change_sees_edits_of_the_file(flag_file):
    import threading

    flag_file("flags:\n  F: {enabled: false}\n")
    manager = FeatureFlagManager("config/flags.yaml")
    changed = threading.Event()
    told = []
    manager.on_change("F", lambda *change: (told.append(change), changed.set()))
    flag_file("flags:\n  F: {enabled: true}\n")
    assert changed.wait(10)
    manager.close()
    assert told == [("F", False, True)]


@pytest.mark.parametrize("flag_id", ["ON", "NOWHERE", "", "\ud800", 5, None, ["x"], {}])
@pytest.mark.parametrize("user", [None, "u", "\ud800", 2**70, 1.5, object(), ["u"]])
def test_is_enabled_never_raises_whatever_it_is_given(manager, flag_id, user):
    assert manager.is_enabled(flag_id, user_id=user) in (True, False)
    assert manager.is_enabled(flag_id, True, user, EvaluationContext(user, user, user, {"a": user})) in (True, False)


def test_evaluations_are_counted_by_flag_variant_and_reason():
    code = """
        import json
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        from jarvis_otel import FeatureFlagManager, FlagDefinition
        manager = FeatureFlagManager()
        manager.create_flag(FlagDefinition(id="ON", enabled=True))
        for _ in range(3):
            manager.is_enabled("ON")
        manager.is_enabled("NOWHERE")
        points = {}
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
            for point in metric.data.data_points:
                points[f"{metric.name} {sorted(point.attributes.values())}"] = point.value
        print(json.dumps(points))
    """
    assert run(code) == {
        "feature_flag.evaluations ['ON', 'on', 'static']": 3,
        "feature_flag.evaluations ['', 'NOWHERE', 'error']": 1,
        "feature_flag.evaluation_errors ['NOWHERE', 'flag_not_found']": 1,
    }


EVENTS = """
    import json
    from opentelemetry import trace
    from opentelemetry._logs import set_logger_provider
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
    from opentelemetry.sdk.trace import TracerProvider
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    set_logger_provider(provider)
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    tracer = trace.get_tracer("test")
    from jarvis_otel import configure, flags
    configure("test", console=False)
    for _ in range(2):
        with tracer.start_as_current_span("work"):
            for _ in range(1000):
                flags.is_enabled("F", user_id="ann")
    flags.is_enabled("F", user_id="ann")
    with tracer.start_as_current_span("work"):
        flags.is_enabled("NOWHERE")
    records = [r.log_record for r in exporter.get_finished_logs()]
    print(json.dumps([[r.event_name, r.trace_id != 0, dict(r.attributes)] for r in records]))
"""


def run(code, **environ):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "OTEL_LOGS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none", **environ},
    )
    return json.loads(done.stdout)


def test_an_evaluation_is_an_event_once_per_trace_flag_and_variant(flag_file):
    flag_file("flags:\n  F: {rules: [{type: user_ids, value: [ann]}]}\n")
    first, second, unknown = run(EVENTS, JARVIS_ENVIRONMENT="dev")
    assert first == second
    name, correlated, attributes = first
    version = attributes.pop("feature_flag.version")
    assert (name, correlated, len(version)) == ("feature_flag.evaluation", True, 12)
    told = {key: value for key, value in attributes.items() if key.startswith("feature_flag")}
    assert told == {
        "feature_flag.key": "F",
        "feature_flag.result.variant": "on",
        "feature_flag.result.reason": "targeting_match",
        "feature_flag.provider.name": "jarvis-flags",
        "feature_flag.context.id": "ann",
        "feature_flag.set.id": "flags.yaml",
    }
    assert unknown[2]["error.type"] == "flag_not_found"


def test_in_prod_the_context_id_is_a_pseudonym_or_left_out(flag_file):
    flag_file("flags:\n  F: {rules: [{type: user_ids, value: [ann]}]}\n")
    plain = run(EVENTS)[0][2]
    keyed = run(EVENTS, JARVIS_HMAC_KEY="secret")[0][2]
    assert "feature_flag.context.id" not in plain
    assert len(keyed["feature_flag.context.id"]) == 16
    assert "ann" not in json.dumps(keyed)


def test_the_attribute_names_are_those_of_the_semantic_conventions():
    from opentelemetry.semconv._incubating.attributes import feature_flag_attributes as names

    from jarvis_otel import flag_hook

    assert flag_hook.KEY == names.FEATURE_FLAG_KEY
    assert flag_hook.VARIANT == names.FEATURE_FLAG_RESULT_VARIANT
    assert flag_hook.REASON == names.FEATURE_FLAG_RESULT_REASON
    assert flag_hook.PROVIDER == names.FEATURE_FLAG_PROVIDER_NAME
    assert flag_hook.CONTEXT_ID == names.FEATURE_FLAG_CONTEXT_ID
    assert flag_hook.SET_ID == names.FEATURE_FLAG_SET_ID
    assert flag_hook.VERSION == names.FEATURE_FLAG_VERSION
    assert flag_hook.ERROR_MESSAGE == names.FEATURE_FLAG_ERROR_MESSAGE


def test_the_hook_leaves_out_what_it_is_told_to_and_writes_the_value_on_request(flag_file):
    flag_file("flags:\n  F: {variants: {a: secret, b: x}, default: a}\n")
    code = EVENTS.replace(
        'configure("test", console=False)',
        """configure("test", console=False)
    from openfeature import api
    from jarvis_otel.flag_hook import EvaluationHook
    from jarvis_flags import YamlFlagProvider
    options = dict(exclude_attributes=["feature_flag.set.id"], include_value=True, exclude_exceptions=True,
                   attribute_mapper=lambda attributes: {**attributes, "team": "x"})
    api.set_provider_and_wait(YamlFlagProvider(hooks=[EvaluationHook(**options)]))""",
    ).replace('flags.is_enabled("F", user_id="ann")', 'api.get_client().get_string_value("F", "")')
    first, _, unknown = run(
        code.replace('flags.is_enabled("NOWHERE")', 'api.get_client().get_string_value("NOWHERE", "")')
    )
    assert first[2]["feature_flag.result.value"] == '"secret"'
    assert first[2]["team"] == "x"
    assert "feature_flag.set.id" not in first[2]
    assert "feature_flag.error.message" not in unknown[2]


def test_a_deprecated_or_expired_flag_warns_once_a_process_when_it_is_used(flag_file, caplog):
    flag_file(
        "flags:\n  OLD: {status: deprecated, owner: ann}\n  PAST: {expires_at: 2020-01-01}\n  UNUSED: {status: deprecated}\n"
    )
    manager = FeatureFlagManager("config/flags.yaml")
    for _ in range(3):
        manager.is_enabled("OLD")
        assert manager.evaluate("PAST").metadata["expired"] is True
        manager.set_enabled("OLD", True)
    manager.close()
    assert [message for message in caplog.messages if message.startswith("flag ")] == [
        "flag OLD is deprecated: remove it from the code (owner: ann)",
        "flag PAST expired on 2020-01-01: remove it, or move the date",
    ]
