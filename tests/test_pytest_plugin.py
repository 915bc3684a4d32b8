"""What applications test with: flags, records and spans of a test, by pytest's fixtures and without them."""

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import unittest
from dataclasses import replace
from types import MemberDescriptorType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openfeature import api
from openfeature.hook import Hook
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider
from openfeature.provider.no_op_provider import NoOpProvider
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider

from jarvis_flags import YamlFlagProvider
from jarvis_flags.settings import FlagSettings
from jarvis_flags.source import FileSource
from jarvis_otel import FeatureFlagManager, FlagDefinition, LogEntry, StructuredLogger, get_flags, get_logger
from jarvis_otel.runtime import RUNTIME, Policy
from jarvis_otel.testing import FlagOverride, capture_logs, capture_spans, override_flags, tap
from tests.otlp_sink import otlp_sink, until

pytest_plugins = ["pytester"]

FLAGS = """
version: "1.0"
flags:
  NEW_UI: {rules: [{type: user_ids, value: [u1]}], services: [trading]}
  LEGACY: {enabled: true}
  NEEDY: {enabled: true, requires: [NEW_UI]}
  GONE: {enabled: true, status: disabled}
  OLD: {enabled: true, expires_at: 2020-01-01, on_expiry: disable}
  LIVE: {enabled: false, dangerous: true, requires_restart: true, environment_defaults: {prod: false}}
  NAMED: {variants: {"yes": true, "no": false}, default: "no"}
  LIMIT: {variants: {low: 100, high: 1000}, default: low}
  RATE: {variants: {normal: 0.5}, default: normal}
  THEME: {variants: {dark: black, light: white}, default: dark}
  SHAPE: {variants: {small: {w: 1}}, default: small}
"""


@pytest.fixture
def manager(own_project, monkeypatch):
    """The process's flags as a fresh process has them: not opened yet."""
    monkeypatch.setattr(RUNTIME, "manager", None)
    manager = get_flags()
    yield manager
    manager.close()


@pytest.fixture
def openfeature():
    """OpenFeature as a fresh process has it, before and after."""
    api.shutdown()
    yield
    api.shutdown()


def files_under(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


# --- flags ---


def test_without_a_file_a_flag_is_what_the_caller_says_or_what_the_test_set(manager, own_project):
    with override_flags(NEW_UI=True) as flags:
        assert manager.is_enabled("NEW_UI") is True
        assert (manager.is_enabled("OTHER", True), manager.is_enabled("OTHER", False)) == (True, False)
        flags.set("LIMIT", 7)
        flags({"with-a-dash": False}, SHAPE={"w": 2})
        assert (manager.value("LIMIT", 0), manager.variant("LIMIT"), manager.value("SHAPE", {})) == (7, "7", {"w": 2})
        assert manager.is_enabled("with-a-dash", True) is False
    assert manager.is_enabled("NEW_UI", False) is False
    assert files_under(own_project) == []


def test_a_flag_that_is_not_set_is_what_the_file_says_and_nothing_that_this_machine_adds(
    manager, flag_file, own_project, monkeypatch
):
    flag_file(FLAGS)
    flag_file("flags: {LEGACY: {enabled: false}}", "flags.local.yaml")
    other = FeatureFlagManager.of_process()
    assert other.set_enabled("NEW_UI", False)
    assert other.set_rollout("LEGACY", 0)
    other.close()
    monkeypatch.setenv("FF_GONE", "true")
    monkeypatch.setenv("FF_NAMED", "yes")
    before = files_under(own_project)
    with override_flags():
        assert (manager.is_enabled("NEW_UI", user_id="u1"), manager.is_enabled("NEW_UI", user_id="u2")) == (True, False)
        assert manager.is_enabled("LEGACY")
        assert manager.is_enabled("NAMED"), "a pin is of this run, as `jarvis logs reproduce` wants it"
        assert not manager.is_enabled("GONE", True)
        assert manager.get_flag("NEW_UI").services == ["trading"]
    assert files_under(own_project) == before
    assert not manager.is_enabled("NEW_UI", user_id="u1"), "the run-time override holds again"


@pytest.mark.parametrize(
    ("environment", "variable", "on"), [("dev", "", True), ("dev", "prod", False), ("prod", "dev", True)]
)
def test_the_environment_is_the_one_of_this_process(manager, flag_file, monkeypatch, environment, variable, on):  # noqa: PLR0917
    flag_file(f"environment: {environment}\nflags: {{A: {{environment_defaults: {{dev: true}}}}}}")
    monkeypatch.setenv("JARVIS_ENVIRONMENT", variable)
    with override_flags():
        assert manager.is_enabled("A") is on


def test_a_value_is_what_it_was_when_it_was_set(manager):
    shape = {"w": 1}
    with override_flags(SHAPE=shape) as flags:
        shape["w"] = 2
        assert manager.value("SHAPE", {}) == {"w": 1}
        flags.set("OTHER", True)
        assert manager.value("SHAPE", {}) == {"w": 1}


@pytest.mark.parametrize("flag", ["NEW_UI", "LEGACY", "NEEDY", "GONE", "OLD", "LIVE", "NAMED", "UNKNOWN"])
@pytest.mark.parametrize("value", [True, False])
def test_a_flag_that_is_set_is_that_whatever_decides_it_otherwise(manager, flag_file, monkeypatch, flag, value):
    flag_file(FLAGS)
    monkeypatch.setenv(f"FF_{flag}", "false" if value else "true")
    with override_flags({flag: value}):
        for user in (None, "u1", "u2"):
            assert manager.is_enabled(flag, not value, user_id=user) is value
        assert manager.evaluate(flag).on is value


@pytest.mark.parametrize(
    ("flag", "value", "gives", "variant"),
    [
        ("LIMIT", 1000, 1000, "high"),
        ("LIMIT", "high", 1000, "high"),
        ("LIMIT", 5, 5, "5"),
        ("LIMIT", True, 100, "low"),
        ("LIMIT", False, -1, None),
        ("LIMIT", None, 100, "low"),
        ("RATE", 2, 2, "2"),
        ("RATE", 0.25, 0.25, "0.25"),
        ("THEME", "white", "white", "light"),
        ("THEME", "light", "white", "light"),
        ("THEME", "blue", "blue", "blue"),
        ("THEME", "x" * 100, "x" * 100, "test"),
        ("SHAPE", {"w": 9}, {"w": 9}, "test"),
        ("SHAPE", {"w": 1}, {"w": 1}, "small"),
        ("NAMED", "yes", True, "yes"),
        ("LEGACY", "off", False, "off"),
        ("FRESH", "on", "on", "on"),
        ("FRESH", [1, 2], [1, 2], "test"),
    ],
)
def test_a_typed_flag_takes_a_value_or_the_name_of_a_variant(manager, flag_file, flag, value, gives, variant):  # noqa: PLR0917
    flag_file(FLAGS)
    default = {int: -1, float: -1.0, str: "", dict: {}, list: [], bool: not gives}[type(gives)]
    with override_flags({flag: value}):
        assert (manager.value(flag, default), manager.variant(flag)) == (gives, variant)
    assert manager.value("LIMIT", 0) == 100


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        (
            "LIMIT",
            "lots",
            "LIMIT: got 'lots', want a value of the type integer, or true or false, or one of the variants low, high",
        ),
        ("LEGACY", 1, "LEGACY: got 1, want true or false"),
        ("NAMED", "maybe", "NAMED: got 'maybe', want true or false, or one of the variants yes, no"),
        ("FRESH", object, "FRESH: got <class 'object'>, want"),
    ],
)
def test_a_value_that_a_flag_cannot_have_is_an_error_and_changes_nothing(manager, flag_file, flag, value, told):
    flag_file(FLAGS)
    with pytest.raises(ValueError, match=re.escape(told)), override_flags({"LEGACY": False, flag: value}):
        pass
    assert manager.is_enabled("LEGACY")
    assert isinstance(manager.source, FileSource), "the failed override is over"
    with override_flags(NEW_UI=True) as flags:
        with pytest.raises(ValueError, match=flag):
            flags({"LEGACY": False, flag: value})
        assert (manager.is_enabled("NEW_UI"), manager.is_enabled("LEGACY")) == (True, True)
    assert not manager.is_enabled("NEW_UI")


def test_what_is_set_within_an_inner_override_ends_with_it(manager, flag_file):
    flag_file(FLAGS)
    with override_flags(NEW_UI=True) as flags:
        with flags.override(NEW_UI=False, LEGACY=False):
            assert (manager.is_enabled("NEW_UI"), manager.is_enabled("LEGACY")) == (False, False)
            flags.set("NEW_UI", True)
            flags.set("LEGACY", None)
            assert (manager.is_enabled("NEW_UI"), manager.is_enabled("LEGACY")) == (True, True)
            flags.set("NEW_UI", False)
        assert (manager.is_enabled("NEW_UI"), manager.is_enabled("LEGACY")) == (True, True)
    with pytest.raises(RuntimeError, match="has ended"):
        flags.set("NEW_UI", True)
    assert not manager.is_enabled("NEW_UI")


Names = st.sampled_from(["A", "B", "C"])
Steps = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.dictionaries(Names, st.sampled_from([True, False, None, 5]))),
        st.tuples(st.just("end"), st.integers(0, 5)),
        st.tuples(st.just("set"), st.dictionaries(Names, st.sampled_from([True, False, None, 5]), min_size=1)),
    ),
    max_size=12,
)


@given(Steps)
def test_overrides_that_end_in_any_order_leave_those_that_stand(steps):
    """As tasks that run at once would begin and end them."""
    manager = FeatureFlagManager()
    manager.create_flag(FlagDefinition("A", enabled=True))
    before = manager.source
    standing = []

    def gives():
        values = {}
        for _, _, layer in standing:
            values.update(layer)
        return {name: value for name, value in values.items() if value is not None}

    for what, argument in steps:
        if what == "begin" and argument.get("A") != 5:
            override = FlagOverride(argument, manager=manager)
            standing.append((override, override.__enter__(), dict(argument)))
        elif what == "end" and standing:
            override, _, _ = standing.pop(argument % len(standing))
            override.__exit__(None, None, None)
        elif what == "set" and standing and argument.get("A") != 5:
            standing[0][1](argument)
            standing[-1][2].update(argument)
        for name in "ABC":
            wanted = gives().get(name, True if name == "A" else None)
            assert manager.evaluate(name).value == wanted if wanted is not None else manager.variant(name) is None
    for override, _, _ in standing:
        override.__exit__(None, None, None)
    assert manager.source is before
    assert vars(manager).keys() == vars(FeatureFlagManager()).keys()


def test_threads_and_tasks_see_the_flags_of_the_test(manager, flag_file):
    flag_file(FLAGS)
    seen = []

    @override_flags(NEW_UI=True)
    async def main():
        await asyncio.sleep(0)
        seen.append(manager.is_enabled("NEW_UI"))
        await asyncio.to_thread(lambda: seen.append(manager.is_enabled("NEW_UI")))
        thread = threading.Thread(target=lambda: seen.append(manager.is_enabled("NEW_UI")))
        thread.start()
        thread.join()

    coroutine = main()
    assert not manager.is_enabled("NEW_UI"), "it holds while the coroutine runs"
    asyncio.run(coroutine)
    assert seen == [True, True, True]
    assert not manager.is_enabled("NEW_UI")


def test_functions_and_classes_can_be_decorated_and_generators_are_refused(manager, flag_file):
    flag_file(FLAGS)

    @override_flags(NEW_UI=True)
    def function(argument):
        """Its own words."""
        return argument, manager.is_enabled("NEW_UI")

    assert (function(1), function(2), function.__doc__) == ((1, True), (2, True), "Its own words.")

    @override_flags(NEW_UI=True)
    class Case(unittest.TestCase):
        def setUp(self):
            self.early = manager.is_enabled("NEW_UI")

        def test_it(self):
            assert (self.early, manager.is_enabled("NEW_UI")) == (False, True)
            self.enterContext(override_flags(LEGACY=False))
            assert not manager.is_enabled("LEGACY")

    result = unittest.TestResult()
    Case("test_it").run(result)
    assert (result.testsRun, result.failures, result.errors) == (1, [], [])
    assert (manager.is_enabled("NEW_UI"), manager.is_enabled("LEGACY")) == (False, True)
    with pytest.raises(TypeError, match="is a generator: use `with override_flags"):

        @override_flags(NEW_UI=True)
        def generator():
            yield


def test_listeners_hear_of_what_a_test_sets_and_of_its_end(manager, flag_file):
    flag_file(FLAGS)
    heard = []
    cancel = manager.on_change("NEW_UI", lambda *change: heard.append(change))
    with override_flags(NEW_UI=True) as flags:
        flags.set("NEW_UI", False)
        flags.set("NEW_UI", True)
    cancel()
    assert heard == [
        ("NEW_UI", False, True),
        ("NEW_UI", True, False),
        ("NEW_UI", False, True),
        ("NEW_UI", True, False),
    ]


def test_listeners_hear_of_the_end_also_where_the_application_has_not_opened_its_flags(manager, flag_file):
    heard = []
    settings = replace(FlagSettings.load(), flags_file=flag_file("flags: {A: {enabled: true}}", "other.yaml"))
    with override_flags(A=False):
        manager.on_change("A", lambda *change: heard.append(change))
        manager.use(settings)
    assert heard == [("A", False, True)]


def test_an_application_that_shuts_down_within_a_test_stops_to_follow_its_files(manager, flag_file, own_project):
    flag_file(FLAGS)
    manager.use(FlagSettings.load(), service="shop")
    assert manager.get_flag("NEW_UI")
    seen = own_project / "var" / "flags" / "seen" / f"{os.getpid()}.json"
    until(seen.exists)
    with override_flags():
        manager.close()
    assert not seen.exists()


def test_an_application_that_changes_flags_changes_those_of_the_test_alone(manager, flag_file, own_project):
    flag_file(FLAGS)
    with override_flags(NEW_UI=True) as flags, capture_logs() as logs:
        assert manager.set_enabled("NEW_UI", False, reason="incident")
        assert not manager.is_enabled("NEW_UI"), "what comes later wins"
        assert [entry.reason for entry in manager.history("NEW_UI")] == ["incident"]
        with flags.override(NEW_UI=True):
            assert manager.is_enabled("NEW_UI")
        assert not manager.is_enabled("NEW_UI"), "the kill switch is there still"
        assert manager.create_flag(FlagDefinition("MADE", enabled=True))
        assert manager.create_flag(FlagDefinition("LEGACY", enabled=False))
        assert (manager.is_enabled("MADE"), manager.is_enabled("LEGACY", True)) == (True, False)
        with flags.override(NAMED=True, FRESH=True):
            assert manager.set_enabled("MADE", False)
        assert (manager.is_enabled("NAMED"), manager.get_flag("FRESH")) == (False, None)
        assert not manager.is_enabled("MADE")
    assert not logs.find(event="jarvis.flag.changed")
    assert (manager.get_flag("MADE"), manager.is_enabled("LEGACY"), manager.history()) == (None, True, [])
    assert "audit.jsonl" not in " ".join(files_under(own_project))


def test_flags_that_are_open_already_go_on_to_follow_their_file(manager, flag_file):
    flag_file(FLAGS)
    source = manager.source
    assert manager.is_enabled("LEGACY")
    with override_flags(LEGACY=False):
        assert not manager.is_enabled("LEGACY")
        flag_file(FLAGS.replace("LEGACY: {enabled: true}", "LEGACY: {enabled: false}"))
        assert not manager.is_enabled("LEGACY")
    assert manager.source is source
    until(lambda: not manager.is_enabled("LEGACY"))
    flag_file(FLAGS)
    until(lambda: manager.is_enabled("LEGACY"))


def test_records_show_the_flags_of_the_test_wherever_the_snapshot_is_looked_at(manager, flag_file, monkeypatch):
    flag_file(FLAGS)
    monkeypatch.setattr(RUNTIME, "declared_flags", manager.declared)
    monkeypatch.setattr(RUNTIME, "flag_source", manager.source)
    with override_flags(NEW_UI=True), capture_logs() as logs:
        get_logger("trading").info("declared")
        assert RUNTIME.flag_source.snapshot.evaluate("NEW_UI", None).on
    assert logs.one("declared").flags == {"NEW_UI": "on"}
    assert RUNTIME.flag_source is manager.source
    assert manager.declared("trading", None, ()) == {"NEW_UI": ("off", False)}


def test_a_manager_of_the_tests_own_keeps_its_flags_and_run_time_state(manager):
    own = FeatureFlagManager()
    own.create_flag(FlagDefinition("A", enabled=True))
    own.create_flag(FlagDefinition("B", enabled=True))
    own.set_enabled("B", False)
    with FlagOverride({"A": False}, manager=own) as flags:
        assert (own.is_enabled("A"), own.is_enabled("B")) == (False, False)
        assert manager.is_enabled("A", True), "the process's flags are others"
        with flags.override(B=True):
            assert own.is_enabled("B")
        assert not own.is_enabled("B")
    assert (own.is_enabled("A"), own.is_enabled("B")) == (True, False)


def test_a_flag_that_needs_a_restart_does_not_in_a_test():
    own = FeatureFlagManager()
    own.create_flag(FlagDefinition("LIVE", requires_restart=True))
    own.set_enabled("LIVE", True)
    assert not own.is_enabled("LIVE"), "it keeps what the process started with"
    with FlagOverride({"LIVE": True}, manager=own):
        assert own.is_enabled("LIVE")
    assert not own.is_enabled("LIVE")


def test_a_file_that_cannot_be_used_is_told_of_and_flags_can_be_set_all_the_same(manager, flag_file):
    path = flag_file("flags: {A: [}")
    with capture_logs() as logs, override_flags(A=True):
        assert manager.is_enabled("A")
    assert logs.has(re.compile(rf"{re.escape(str(path))}:1: "), level="WARNING")
    flag_file("flags: {BAD: {enabled: 3, dangerous: true}, A: {enabled: true}}")
    with override_flags():
        assert (manager.is_enabled("BAD", True), manager.is_enabled("A")) == (False, True)
        with override_flags(BAD=True):
            assert manager.is_enabled("BAD")
            assert "lastGood" not in manager.evaluate("BAD").metadata


def test_openfeatures_clients_see_the_flags_of_the_test_where_nobody_set_a_provider(manager, flag_file, openfeature):
    flag_file(FLAGS)
    client = api.get_client()
    with override_flags(NEW_UI=True, LIMIT=5):
        assert client.get_boolean_value("NEW_UI", False)
        assert api.get_client("any").get_integer_value("LIMIT", 0) == 5
        assert client.get_boolean_value("LEGACY", False)
    assert isinstance(client.provider, NoOpProvider)
    assert not client.get_boolean_value("NEW_UI", False)


@pytest.mark.parametrize("when", ["before", "within"])
def test_openfeatures_clients_see_them_through_a_provider_of_the_applications_own(
    manager, flag_file, own_project, openfeature, when
):
    path = flag_file(FLAGS)
    flag_file("flags: {LEGACY: {enabled: false}}", "flags.local.yaml")
    other = flag_file("flags: {NEW_UI: {enabled: false}, ELSEWHERE: {enabled: true}}", "other.yaml")
    client, elsewhere = api.get_client(), api.get_client("elsewhere")

    def set_providers():
        api.set_provider_and_wait(YamlFlagProvider(path))
        api.set_provider_and_wait(YamlFlagProvider(other), "elsewhere")

    if when == "before":
        set_providers()
    with override_flags(NEW_UI=True):
        if when == "within":
            set_providers()
        provider = client.provider
        assert client.get_boolean_value("NEW_UI", False)
        assert elsewhere.get_boolean_value("NEW_UI", False)
        assert client.get_boolean_value("LEGACY", False)
        assert elsewhere.get_boolean_value("ELSEWHERE", False)
        assert not elsewhere.get_boolean_value("LEGACY", False), "it is not in that provider's file"
    assert client.provider is provider
    assert not client.get_boolean_value("NEW_UI", False)
    assert not elsewhere.get_boolean_value("NEW_UI", False)


def test_the_managers_own_provider_follows_it_to_another_file_within_a_test(manager, flag_file, openfeature):
    flag_file(FLAGS)
    api.set_provider_and_wait(manager.provider)
    other = flag_file("flags: {OTHER: {enabled: true}}", "other.yaml")
    settings = replace(manager.source.settings, flags_file=other)
    client = api.get_client()
    with override_flags(NEW_UI=True):
        manager.use(settings)
        for ask in (manager.is_enabled, client.get_boolean_value):
            assert (ask("NEW_UI", False), ask("OTHER", False), ask("LEGACY", False)) == (True, True, False)
        flag_file("flags: {OTHER: {enabled: false}}", "other.local.yaml")
        api.set_provider_and_wait(YamlFlagProvider(other), "bare")
        assert api.get_client("bare").get_boolean_value("OTHER", False), "the local file is no matter of tests"
    (other.parent / "other.local.yaml").unlink()
    manager.reload()
    for ask in (manager.is_enabled, client.get_boolean_value):
        assert (ask("NEW_UI", False), ask("OTHER", False), ask("LEGACY", False)) == (False, True, False)
    assert manager.source.settings is settings


def test_a_provider_of_another_kind_is_left_alone(manager, openfeature):
    api.set_provider_and_wait(InMemoryProvider({"THEIRS": InMemoryFlag("yes", {"yes": True})}))
    with override_flags(NEW_UI=True):
        assert api.get_client().get_boolean_value("THEIRS", False)
        assert manager.is_enabled("NEW_UI")
    assert api.get_client().get_boolean_value("THEIRS", False)


def test_hooks_of_the_application_run_on_what_the_test_set(manager, flag_file, openfeature):
    flag_file(FLAGS)
    seen = []

    class Seeing(Hook):
        def after(self, hook_context, details, hints):
            seen.append((details.flag_key, details.value))

    api.add_hooks([Seeing()])
    with override_flags(NEW_UI=True):
        assert manager.is_enabled("NEW_UI")
    assert not manager.is_enabled("NEW_UI", True)
    assert seen == [("NEW_UI", True), ("NEW_UI", False)]


# --- records ---


class Keeping(logging.Handler):
    """A handler of the application's own."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.msg.message if not isinstance(record.msg, str) else record.getMessage())


@pytest.fixture
def own_handler():
    handler = Keeping()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def logger_named():
    """Standard loggers that are as new, and are left as new."""
    made = []

    def make(name):
        made.append(logging.getLogger(name))
        return made[-1]

    yield make
    for logger in made:
        logger.setLevel(logging.NOTSET)
        logger.propagate, logger.disabled = True, False
        logger.filters.clear()
        logger.handlers.clear()


def test_records_from_debug_up_are_captured_and_the_handlers_get_what_they_would_get_anyway(own_handler, logger_named):
    quiet = logger_named("plugin.quiet")
    quiet.setLevel(logging.ERROR)
    strict, usual = StructuredLogger("plugin.strict", logging.ERROR), get_logger("plugin.usual")

    def say():
        for log in (quiet, strict, usual, logger_named("plugin.plain")):
            log.debug("debug")
            log.info("info")
            log.error("error")

    say()
    without = own_handler.messages[:]
    own_handler.messages.clear()
    with capture_logs() as logs:
        say()
    assert own_handler.messages == without == ["error", "error", "info", "error", "error"]
    assert logs.messages == ["debug", "info", "error"] * 4
    assert [entry.logger for entry in logs[::3]] == ["plugin.quiet", "plugin.strict", "plugin.usual", "plugin.plain"]
    assert (quiet.level, strict.level, usual.level) == (logging.ERROR, logging.ERROR, logging.INFO)
    say()
    assert own_handler.messages == without * 2
    assert len(logs) == 12


def test_logging_that_is_disabled_altogether_is_captured_and_a_disabled_logger_is_not(own_handler, logger_named):
    logger_named("plugin.off").disabled = True
    logging.disable(logging.CRITICAL)
    try:
        with capture_logs() as logs:
            logging.getLogger("plugin.off").error("no")
            logging.getLogger("plugin.on").error("yes")
    finally:
        logging.disable(logging.NOTSET)
    assert (logs.messages, own_handler.messages) == (["yes"], [])


def test_loggers_that_do_not_propagate_are_captured_too(logger_named, monkeypatch):
    logger_named("plugin.alone").propagate = False
    monkeypatch.setattr(logging, "lastResort", None)
    with capture_logs() as logs:
        logging.getLogger("plugin.alone").warning("standard")
        get_logger("plugin.alone").info("structured")
    assert logs.messages == ["standard", "structured"]


def test_filters_of_the_application_drop_records_and_add_to_them(logger_named):
    def only_orders(record):
        record.shop = "north"
        return "order" in record.getMessage()

    logger_named("plugin.shop").addFilter(only_orders)
    with capture_logs() as logs:
        logging.getLogger("plugin.shop").warning("order 1")
        logging.getLogger("plugin.shop").warning("health")
    assert [(entry.message, entry.context) for entry in logs] == [("order 1", {"shop": "north"})]


def test_a_record_that_is_handed_to_a_logger_directly_passes_whatever_its_level(own_handler, logger_named):
    logger = logger_named("plugin.received")
    logger.setLevel(logging.ERROR)
    with capture_logs() as logs:
        logger.debug("unseen")
        logger.handle(logging.makeLogRecord({"name": "plugin.received", "levelno": 10, "msg": "from elsewhere"}))
        get_logger("plugin.usual").info("usual")
        entry = LogEntry("2026-01-01T00:00:00.000000Z", "DEBUG", "ours from elsewhere", "shop")
        logger.handle(logging.makeLogRecord({"name": "plugin.received", "levelno": 10, "msg": entry}))
    assert own_handler.messages == ["from elsewhere", "usual", "ours from elsewhere"]
    assert logs.messages == ["unseen", *own_handler.messages]


def test_a_record_shows_its_operation_its_error_and_its_flags(manager, flag_file):
    flag_file(FLAGS)
    logger = get_logger("plugin.trading")

    def work():
        with logger.context(correlation_id="c-1", user_id="u1", shop="north"):
            manager.is_enabled("NEW_UI")
            try:
                raise LookupError("no balance")
            except LookupError:
                logger.exception("Order failed", symbol="SOL", duration_ms=1.5)
            logging.getLogger("plugin.lib").warning("odd %s", "thing", extra={"port": 5})

    with override_flags(NEW_UI=True), capture_logs() as logs:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    failed, odd = logs
    assert (failed.level, failed.correlation_id, failed.user_id, failed.duration_ms) == ("ERROR", "c-1", "u1", 1.5)
    assert (failed.error_type, failed.error_message) == ("LookupError", "no balance")
    assert (failed.flags, failed.active_flags) == ({"NEW_UI": "on"}, ["NEW_UI"])
    assert failed.context == {"shop": "north", "symbol": "SOL"}
    assert (odd.message, odd.context, odd.correlation_id) == ("odd thing", {"shop": "north", "port": 5}, "c-1")
    assert logs.one("Order failed", level="error", symbol="SOL", error_type="LookupError") is failed
    assert logs.find(flags={"NEW_UI": "on"}, correlation_id="c-1") == [failed, odd]
    assert logs.find(re.compile(r"^odd \w+$"), level=logging.WARNING, port=5) == [odd]
    assert logs.find(level="INFO") == logs.find(port=6) == logs.find("odd") == logs.find(unknown=1) == []


def test_what_is_not_found_is_told_with_what_comes_nearest():
    with capture_logs() as logs:
        assert not logs.has("x")
        assert repr(logs.has("x", level="warn", a=1)) == "no record WARNING 'x' with a=1, there are none"
        get_logger("plugin.say").info("Trade executed", symbol="ETH", amount=3)
        get_logger("plugin.say").error("Other\n\x1b[31m")
    missing = logs.has("Trade executed", symbol="SOL")
    assert missing == False  # noqa: E712 - it counts as the boolean that it stands for
    assert repr(missing) == (
        "no record 'Trade executed' with symbol='SOL' among 2 records, the nearest is: "
        "INFO plugin.say: Trade executed symbol='ETH' amount=3"
    )
    assert repr(logs.has(level="ERROR")) == r"1 of 2 records: ERROR plugin.say: Other\n\x1b[31m"
    with pytest.raises(AssertionError, match=r"no record /Trade .+/ with symbol='SOL' among 2 records"):
        logs.one(re.compile("Trade .+"), symbol="SOL")
    with pytest.raises(AssertionError, match=r"(?s)2 records at all, want one:\n  INFO plugin.say: Trade.+\n  ERROR"):
        logs.one()
    assert repr(logs) == "<2 records>"
    logs.clear()
    assert logs.messages == []


def test_captures_may_be_nested_and_leave_the_logging_module_as_it_was():
    with capture_logs() as outer:
        get_logger("plugin.nest").info("one")
        with capture_logs() as inner:
            get_logger("plugin.nest").info("two")
        get_logger("plugin.nest").debug("three")
    assert (outer.messages, inner.messages) == (["one", "two", "three"], ["two"])
    methods = [logging.Logger.isEnabledFor, logging.Logger.handle, logging.Logger.callHandlers]
    assert {method.__code__.co_filename for method in methods} == {logging.Logger.debug.__code__.co_filename}
    assert type(vars(Policy)["level"]) is MemberDescriptorType


def test_another_library_that_wraps_the_same_function_meanwhile_is_not_undone_and_nothing_is_captured_twice(
    monkeypatch,
):
    seen = []
    monkeypatch.setattr(logging.Logger, "handle", logging.Logger.handle)
    with capture_logs() as first:
        ours = logging.Logger.handle

        def theirs(logger, record):
            seen.append(record.getMessage())
            ours(logger, record)

        logging.Logger.handle = theirs
        logging.getLogger("plugin.both").warning("one")
    logging.getLogger("plugin.both").warning("two")
    with capture_logs() as second:
        logging.getLogger("plugin.both").warning("three")
    assert seen == ["one", "two", "three"]
    assert (first.messages, second.messages) == (["one"], ["three"])
    logging.Logger.handle = ours
    with capture_logs():
        pass


def test_a_capture_is_bounded_and_keeps_the_first_records(monkeypatch):
    monkeypatch.setattr(tap, "ITEMS_MAX", 3)
    with capture_logs() as logs:
        for number in range(5):
            get_logger("plugin.many").info(f"record {number}")
    assert logs.messages == ["record 0", "record 1", "record 2"]


def test_a_record_that_cannot_be_read_disturbs_nobody(own_handler, monkeypatch):
    class Hostile:
        def __repr__(self):
            raise OSError("hostile")

    monkeypatch.setattr(own_handler, "emit", lambda record: None)
    logging.getLogger().setLevel(logging.ERROR)  # pytest's own handler would raise what formatting raises
    try:
        with capture_logs() as logs:
            logging.getLogger("plugin.hostile").info("%s", Hostile(), extra={"more": Hostile()})
            get_logger("plugin.hostile").debug("structured", more=Hostile())
            odd = logging.makeLogRecord({"name": "plugin.hostile", "levelno": 20, "msg": "odd", "created": "today"})
            logging.getLogger("plugin.hostile").handle(odd)
    finally:
        logging.getLogger().setLevel(logging.WARNING)
    assert len(logs) == 3
    assert logs[1].message == "structured"
    assert (logs[2].level, logs[2].service) == ("INFO", "plugin.hostile")
    assert logs[2].message.startswith("'odd' could not be captured: TypeError: ")


# --- spans ---


def test_the_spans_of_any_provider_of_the_process_are_captured_once_they_end():
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("plugin")
    with tracer.start_as_current_span("before"):
        pass
    with capture_spans() as spans:
        with tracer.start_as_current_span("place order", attributes={"symbol": "SOL"}) as span:
            with tracer.start_as_current_span("inner"):
                pass
            assert spans.names == ["inner"]
        span.end()
        with pytest.raises(LookupError), tracer.start_as_current_span("fails"):
            raise LookupError("no")
    with tracer.start_as_current_span("after"):
        pass
    assert spans.names == ["inner", "place order", "fails"]
    assert all(isinstance(span, ReadableSpan) for span in spans)
    assert spans.one("place order").attributes == {"symbol": "SOL"}
    assert spans.find("place order", {"symbol": "SOL"}) == spans.find(attributes={"symbol": "SOL"}) == [spans[1]]
    assert spans.find("place order", {"symbol": "ETH"}) == spans.find("x") == []
    assert "(ERROR: LookupError: no)" in spans.text
    assert repr(spans.has("x")) == "no span 'x' among 3 spans: inner, place order, fails"
    missing = "no span 'place order' with symbol='ETH' among 3 spans, 'place order' has {'symbol': 'SOL'}"
    assert repr(spans.has("place order", {"symbol": "ETH"})) == missing
    with pytest.raises(AssertionError, match="no span 'x'"):
        spans.one("x")
    with pytest.raises(AssertionError, match="3 spans at all, want one"):
        spans.one()


def test_a_span_is_captured_once_where_another_library_wraps_spans_too(monkeypatch):
    monkeypatch.setattr(Span, "end", Span.end)
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("plugin")
    with capture_spans():
        ours = Span.end

        def theirs(span, end_time=None):
            ours(span, end_time)

        Span.end = theirs
    with capture_spans() as spans:
        tracer.start_span("one").end()
    assert spans.names == ["one"]
    assert Span.end is theirs
    Span.end = ours
    with capture_spans():
        pass


def python(code, **environ):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environ},
    )


def test_without_a_provider_there_is_one_for_the_time_and_the_application_may_set_its_own_after_it():
    code = """
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from jarvis_otel.testing import capture_spans
        early = trace.get_tracer("early")
        proxy = trace.get_tracer_provider()

        def spans():
            with capture_spans() as captured:
                @late.start_as_current_span("decorated")
                def function(): ...
                function()
                for tracer in (early, late):
                    tracer.start_span("plain").end()
                    with tracer.start_as_current_span("current") as span:
                        assert trace.get_current_span() is span
            return captured.names

        with capture_spans() as outer:
            with capture_spans() as inner:
                early.start_span("in both").end()
            early.start_span("in one").end()
            assert (outer.names, inner.names) == (["in both", "in one"], ["in both"])
            late = trace.get_tracer("late", "1.0", attributes={"a": 1})
        assert trace.get_tracer_provider() is proxy
        assert not late.start_span("outside").is_recording() and not early.start_span("outside").is_recording()
        print(spans(), spans() == spans())
        assert trace.get_tracer_provider() is proxy

        exporter = InMemorySpanExporter()
        with capture_spans() as captured:
            early.start_span("ours").end()
            own = TracerProvider(shutdown_on_exit=False)
            own.add_span_processor(SimpleSpanProcessor(exporter))
            trace.set_tracer_provider(own)
            early.start_span("theirs").end()
            late.start_span("theirs").end()
        assert trace.get_tracer_provider() is own
        early.start_span("after").end()
        late.start_span("after").end()
        print(captured.names, [span.name for span in exporter.get_finished_spans()])
    """
    for environ in ({}, {"OTEL_SDK_DISABLED": "false", "OTEL_TRACES_SAMPLER": "always_off"}):
        done = python(code, **environ)
        assert done.stderr == ""
        first, second = done.stdout.splitlines()
        assert first == "['decorated', 'plain', 'current', 'plain', 'current'] True"
        kept = ["theirs", "theirs", "after", "after"] if not environ else []
        assert second == f"{['ours', *kept[:2]]} {kept}"


def test_without_a_provider_an_operation_is_what_it_is_in_a_configured_application():
    """A server span is one: its records list what was evaluated in it."""
    code = """
        from opentelemetry import trace
        from jarvis_otel import get_logger, is_enabled
        from jarvis_otel.testing import capture_logs, capture_spans, override_flags
        tracer = trace.get_tracer("server")
        with capture_logs() as logs, capture_spans() as spans, override_flags(NEW_UI=True):
            with tracer.start_as_current_span("GET /", kind=trace.SpanKind.SERVER):
                is_enabled("NEW_UI")
                get_logger("shop").info("served")
        print(logs.one("served").flags, dict(spans.one("GET /").attributes))
    """
    done = python(code)
    assert done.stdout == "{'NEW_UI': 'on'} {'jarvis.flag.NEW_UI': 'on'}\n", done.stderr


def test_spans_are_captured_where_the_sdk_is_disabled_for_the_tests_and_an_empty_capture_says_why():
    code = """
        from jarvis_otel import configure, get_logger
        from jarvis_otel.testing import capture_spans
        with capture_spans() as spans, get_logger("shop").context():
            pass
        print(spans.names)
        configure("shop", console=False)
        with capture_spans() as spans, get_logger("shop").context():
            pass
        print(spans.has("x"))
    """
    done = python(code, OTEL_SDK_DISABLED="true")
    assert done.stdout.splitlines() == [
        "['shop operation']",
        "no span 'x', there are none: the application's tracer provider is disabled (OTEL_SDK_DISABLED)",
    ], done.stderr


# --- the plugin, in pytest runs of its own ---


@pytest.fixture
def inner(pytester, monkeypatch, own_project, request):
    """Runs pytest over test files of a user's, in a process of its own, with the plugin and those that are named."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("JARVIS_HOME", str(pytester.path))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    (pytester.path / "config").mkdir()
    (pytester.path / "config" / "flags.yaml").write_text(FLAGS)

    def run(*arguments, plugins=(), **files):
        pytester.makepyfile(**files)
        named = [argument for plugin in ("jarvis_otel.pytest_plugin", *plugins) for argument in ("-p", plugin)]
        return pytester.runpytest_subprocess(*named, *arguments, timeout=120)

    run.path = pytester.path
    return run


APP = """
    import asyncio, logging
    from jarvis_otel import configure, flags, get_logger, is_enabled

    logger = get_logger("trading")
    uvicorn = logging.getLogger("uvicorn.access")
    uvicorn.propagate = False

    def place_order(symbol, usd):
        with logger.context(correlation_id=f"order-{symbol}", user_id="u2"):
            logger.debug("asked", symbol=symbol)
            if usd > flags.value("LIMIT", 0):
                logger.warning("Order refused", symbol=symbol)
                return False
            if is_enabled("NEW_UI"):
                logger.info("Order placed", symbol=symbol, ui="new")
            logging.getLogger("exchange").info("filled %s", symbol)
            uvicorn.info("POST /order")
            return True

    async def place_many(*symbols):
        return await asyncio.gather(*(asyncio.to_thread(place_order, symbol, 50) for symbol in symbols))
"""

USER_TESTS = """
    import asyncio, json, logging, threading
    import pytest
    from openfeature import api
    from jarvis_otel import FlagDefinition, flags, get_flags, is_enabled
    from jarvis_otel.testing import override_flags
    from app import place_many, place_order

    def test_the_file_decides_where_the_test_sets_nothing(jarvis_flags):
        assert not is_enabled("NEW_UI") and flags.value("LIMIT", 0) == 100 and is_enabled("OTHER", True)

    def test_a_big_order_is_refused(jarvis_flags, jarvis_logs, jarvis_spans):
        jarvis_flags(NEW_UI=True, LIMIT=1000)
        assert not place_order("SOL", 5000)
        assert jarvis_logs.has("Order refused", level="WARNING", symbol="SOL")
        assert jarvis_logs.one("Order refused").flags["LIMIT"] == "high"
        assert jarvis_logs.messages == ["asked", "Order refused"]
        assert jarvis_spans.has("trading operation", {"jarvis.flag.LIMIT": "high"})
        assert jarvis_spans.one().attributes["jarvis.correlation_id"] == "order-SOL"

    @pytest.mark.parametrize("new", [True, False])
    def test_both_ways(jarvis_flags, jarvis_logs, new):
        jarvis_flags.set("NEW_UI", new)
        assert place_order("SOL", 50)
        assert bool(jarvis_logs.find("Order placed", ui="new")) is new
        assert jarvis_logs.has("filled SOL", logger="exchange", correlation_id="order-SOL")
        assert jarvis_logs.has("POST /order")
        with jarvis_flags.override(NEW_UI=not new):
            assert is_enabled("NEW_UI") is not new
        assert is_enabled("NEW_UI") is new and get_flags().is_enabled("NEW_UI") is new
        assert api.get_client().get_boolean_value("NEW_UI", not new) is new

    def test_async(jarvis_flags, jarvis_logs, jarvis_spans):
        jarvis_flags(NEW_UI=True)
        assert asyncio.run(place_many("A", "B", "C")) == [True] * 3
        assert {entry.correlation_id for entry in jarvis_logs.find("Order placed")} == {"order-A", "order-B", "order-C"}
        assert len(jarvis_spans.find("trading operation", {"jarvis.flag.NEW_UI": "on"})) == 3

    @override_flags(LIMIT=1)
    def test_decorated(jarvis_logs):
        assert not place_order("SOL", 2)

    @override_flags(LIMIT=1)
    class TestDecorated:
        def test_it(self, jarvis_flags):
            jarvis_flags(NEW_UI=True)
            assert (flags.value("LIMIT", 0), is_enabled("NEW_UI")) == (1, True)

    def test_beside_caplog_and_capsys(jarvis_logs, caplog, capsys):
        logging.getLogger("exchange").debug("quiet")
        logging.getLogger("exchange").warning("loud")
        print("printed")
        assert [record.getMessage() for record in caplog.records] == ["loud"]
        assert jarvis_logs.messages == ["quiet", "loud"]
        assert capsys.readouterr().out == "printed\\n"
        with caplog.at_level(logging.DEBUG):
            logging.getLogger("exchange").debug("asked for")
        assert caplog.messages == ["loud", "asked for"]

    def test_flags_made_and_changed(jarvis_flags):
        assert flags.create_flag(FlagDefinition("MADE")) and flags.set_enabled("MADE", True, reason="r")
        assert is_enabled("MADE") and len(flags.history()) == 1

    def test_nothing_is_left_over(jarvis_flags, jarvis_logs, jarvis_spans):
        assert flags.get_flag("MADE") is None and flags.history() == []
        assert not jarvis_logs and not jarvis_spans
"""


def state_files(path):
    return [name for name in files_under(path) if name.startswith(("var", "logs"))]


def test_realistic_tests_pass_in_any_order_side_by_side_and_nothing_is_written(inner):
    result = inner("-n2", "-q", plugins=["xdist", "randomly"], app=APP, test_app=USER_TESTS, test_more=USER_TESTS)
    result.assert_outcomes(passed=20)
    assert state_files(inner.path) == []


CONFTEST = {
    "once for all": "import jarvis_otel\njarvis_otel.configure('shop', console=False)",
    "for each test, after our fixtures": """
        import jarvis_otel, pytest
        @pytest.fixture(autouse=True)
        def app(request):
            for name in ("jarvis_flags", "jarvis_logs", "jarvis_spans"):
                if name in request.fixturenames:
                    request.getfixturevalue(name)
            handle = jarvis_otel.configure("shop", console=False)
            yield
            handle.shutdown()
    """,
}


@pytest.mark.parametrize("when", CONFTEST)
def test_they_pass_where_a_conftest_configures_us(inner, when):
    with otlp_sink() as sink:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = sink.url
        os.environ["OTEL_TRACES_EXPORTER"] = "none"
        result = inner("-q", plugins=["randomly"], conftest=CONFTEST[when], app=APP, test_app=USER_TESTS)
        result.assert_outcomes(passed=10)
        sink.wait_for(1)
    assert "jarvis.flag.changed" not in json.dumps(sink.received)
    assert not [name for name in state_files(inner.path) if "audit" in name or "overrides" in name]


def test_an_application_that_configures_itself_in_a_test_stays_configured_after_it(inner):
    result = inner(
        "-q",
        test_app="""
            import pytest
            from openfeature import api
            from jarvis_otel import configure, flags, get_logger
            from jarvis_otel.runtime import RUNTIME

            def create_app(tmp_path):
                path = tmp_path / "own.yaml"
                path.write_text("flags: {OWN: {enabled: true}, NEW_UI: {enabled: false}}")
                configure("shop", flags=path, console=False)

            def test_first(jarvis_flags, jarvis_logs, jarvis_spans, tmp_path_factory):
                jarvis_flags(NEW_UI=True)
                assert not flags.is_enabled("OWN")
                create_app(tmp_path_factory.getbasetemp())
                client = api.get_client()
                assert flags.is_enabled("OWN") and client.get_boolean_value("OWN", False)
                assert flags.is_enabled("NEW_UI") and client.get_boolean_value("NEW_UI", False)
                with get_logger("shop").context():
                    flags.is_enabled("NEW_UI")
                    get_logger("shop").debug("hello")
                assert jarvis_logs.has("hello", service="shop", flags={"NEW_UI": "on"})
                assert jarvis_spans.has("shop operation", {"jarvis.flag.NEW_UI": "on"})

            def test_second():
                assert RUNTIME.handle is not None
                client = api.get_client()
                assert flags.is_enabled("OWN") and client.get_boolean_value("OWN", False)
                assert not flags.is_enabled("NEW_UI") and not client.get_boolean_value("NEW_UI", True)
                assert client.provider is flags.provider

            def test_third(jarvis_flags):
                jarvis_flags(NEW_UI=True)
                assert flags.is_enabled("OWN") and api.get_client().get_boolean_value("NEW_UI", False)

            def test_a_value_that_its_file_does_not_allow(jarvis_flags, tmp_path):
                jarvis_flags(FRESH="text")
                (tmp_path / "f.yaml").write_text("flags: {FRESH: {variants: {a: 1}, default: a}}")
                with pytest.raises(ValueError, match="FRESH: got 'text', want a value of the type integer"):
                    RUNTIME.handle.shutdown()
                    configure("shop", flags=tmp_path / "f.yaml", console=False)
        """,
    )
    result.assert_outcomes(passed=4)


def test_a_test_that_fails_shows_what_came_nearest_and_all_that_was_captured(inner):
    result = inner(
        app=APP,
        test_app="""
            from app import place_order

            def test_logs(jarvis_flags, jarvis_logs):
                jarvis_flags(NEW_UI=True)
                place_order("ETH", 50)
                assert jarvis_logs.has("Order placed", symbol="SOL")

            def test_not(jarvis_logs):
                place_order("ETH", 5000)
                assert not jarvis_logs.has(level="WARNING")

            def test_spans(jarvis_spans):
                place_order("ETH", 50)
                span = jarvis_spans.one("place order")

            def test_value(jarvis_flags):
                jarvis_flags(LIMIT="lots")

            def test_passes(jarvis_logs):
                place_order("XRP", 50)
        """,
    )
    result.assert_outcomes(passed=1, failed=4)
    nearest = (
        "no record 'Order placed' with symbol='SOL' among 4 records, the nearest is: INFO trading: Order placed *ETH*"
    )
    result.stdout.fnmatch_lines([f"E *assert {nearest}"])
    result.stdout.fnmatch_lines(["jarvis_flags = <flags set: NEW_UI=True>, jarvis_logs = <4 records>"])
    result.stdout.fnmatch_lines(
        [
            "*Captured jarvis_logs teardown*",
            "DEBUG trading: asked symbol='ETH' correlation_id='order-ETH' user_id='u2'*",
            "INFO trading: Order placed symbol='ETH' ui='new' *NEW_UI=on*",
        ]
    )
    result.stdout.fnmatch_lines(["E *assert not 1 of 2 records: WARNING trading: Order refused symbol='ETH' *"])
    result.stdout.fnmatch_lines(
        [
            '>       span = jarvis_spans.one("place order")',
            "E       AssertionError: no span 'place order' among 1 span: trading operation",
            "*Captured jarvis_spans teardown*",
            "trading operation jarvis.service='trading' *",
        ]
    )
    result.stdout.fnmatch_lines(
        [
            '>       jarvis_flags(LIMIT="lots")',
            "E       ValueError: LIMIT: got 'lots', want a value of the type integer, or true or false, or one of *",
        ]
    )
    result.stdout.no_fnmatch_line("*XRP*")
    result.stdout.no_fnmatch_line("*flag_override.py*")


def test_a_run_that_uses_no_fixture_of_ours_imports_nothing_for_us(inner):
    result = inner(
        "-q",
        test_it="""
            import logging, sys
            handle = logging.Logger.handle

            def test_it():
                ours = {name for name in sys.modules if name.startswith(("jarvis", "opentelemetry", "openfeature"))}
                assert ours == {"jarvis_otel", "jarvis_otel.version", "jarvis_otel.pytest_plugin"}
                assert logging.Logger.handle is handle and not logging.getLogger().filters
        """,
    )
    result.assert_outcomes(passed=1)


def test_the_entry_point_brings_the_fixtures_without_a_word(inner, monkeypatch, pytester):
    """As the installed distribution has it."""
    site = pytester.mkdir("site")
    info = site / "a_distribution-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-distribution\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pytest11]\njarvis_plugin = jarvis_otel.pytest_plugin\n")
    (info / "RECORD").write_text("jarvis_otel/__init__.py,,\njarvis_otel/pytest_plugin.py,,\n")
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    pytester.makepyfile("def test_it(jarvis_flags, jarvis_logs, jarvis_spans): jarvis_flags(A=True)")
    result = pytester.runpytest_subprocess("-p", "jarvis_plugin", timeout=120)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*warning*")
