"""The structured logger: what a record carries, and that nothing it is given ever reaches back into the application."""

import asyncio
import datetime as dt
import decimal
import enum
import io
import json
import logging
import math
import pathlib
import threading
import types
import uuid
import warnings

import pytest
from opentelemetry import _logs, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.util._once import Once

from jarvis_otel.context import note_evaluation
from jarvis_otel.encode import clean
from jarvis_otel.formatters import HumanFormatter, JSONFormatter
from jarvis_otel.handlers import PipelineProcessor, install_logging
from jarvis_otel.logger import StructuredLogger, emit_event, get_logger
from jarvis_otel.pipeline import Pipeline
from jarvis_otel.runtime import RUNTIME
from jarvis_otel.settings import Settings
from jarvis_otel.terminal import printable
from tests.otlp_sink import attributes_of, logs_at, otlp_sink

HERE = __file__


class InsufficientBalanceError(Exception):
    pass


class Hostile:
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Liar:
    @property
    def __class__(self):
        raise RuntimeError("no class")

    def __str__(self):
        return 5  # noqa: PLE0307


@pytest.fixture
def tracer():
    return TracerProvider().get_tracer("test")


@pytest.fixture
def sink():
    with otlp_sink() as sink:
        yield sink


@pytest.fixture
def setup(sink):
    settings = Settings.load({"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "JARVIS_CONSOLE": "off"})
    resource = {
        "service.name": "jarvis",
        "host.name": "h1",
        "deployment.environment.name": "dev",
        "service.version": "1.2",
    }
    RUNTIME.settings = settings
    setup = install_logging(settings, resource)
    yield setup
    setup.uninstall(5.0)
    RUNTIME.settings = None


def shipped(setup, sink, count=1):
    assert setup.pipeline.flush(20)
    assert len(sink.received) == count
    return sink.received


def last(caplog):
    return json.loads(caplog.records[-1].getMessage())


# What a record carries


def test_a_record_is_the_line_of_the_design(caplog, tracer):
    log = get_logger("trading")
    with tracer.start_as_current_span("trade") as span, log.context(correlation_id="trade-1", user_id="tg_1"):
        note_evaluation("LIVE", "on", on=True)
        note_evaluation("NEW_UI", "off", on=False)
        log.info("Trade executed", symbol="SOL", amount=100, duration_ms=12.5, request_id="r1", session_id="s1")
    entry = last(caplog)
    line = entry.pop("source")
    assert list(entry) == [
        "timestamp", "level", "message", "service", "correlation_id", "trace_id", "span_id", "request_id", "user_id",
        "session_id", "active_flags", "flags", "duration_ms", "context", "logger",
    ]  # fmt: skip
    assert entry.pop("timestamp")[-8:].endswith("Z")
    context = span.get_span_context()
    assert entry == {
        "level": "INFO",
        "message": "Trade executed",
        "service": "trading",
        "correlation_id": "trade-1",
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "request_id": "r1",
        "user_id": "tg_1",
        "session_id": "s1",
        "active_flags": ["LIVE"],
        "flags": {"LIVE": "on", "NEW_UI": "off"},
        "duration_ms": 12.5,
        "context": {"symbol": "SOL", "amount": 100},
        "logger": "trading",
    }
    assert (line["file"], line["function"]) == (HERE, "test_a_record_is_the_line_of_the_design")


def test_the_wire_has_the_attributes_of_the_design(setup, sink, tracer):
    log = get_logger("trading")
    with tracer.start_as_current_span("trade") as span, log.context(correlation_id="trade-1", user_id="tg_1"):
        note_evaluation("LIVE", "on", on=True)
        note_evaluation("NEW_UI", "off", on=False)
        try:
            raise InsufficientBalanceError("Wallet has 0.5 SOL")
        except InsufficientBalanceError:
            log.exception("Trade failed", symbol="SOL", duration_ms=3, request_id="r1", session_id="s1")
    (record,) = shipped(setup, sink)
    attributes = attributes_of(record)
    assert attributes.pop("exception.stacktrace").startswith("Traceback (most recent call last):\n  File")
    assert attributes.pop("code.line.number") > 0
    assert len(attributes.pop("log.record.uid")) > 16
    assert attributes == {
        "symbol": "SOL",
        "jarvis.service": "trading",
        "jarvis.correlation_id": "trade-1",
        "jarvis.request_id": "r1",
        "jarvis.duration_ms": 3,
        "user.id": "tg_1",
        "session.id": "s1",
        "jarvis.active_flags": ["LIVE"],
        "jarvis.flag.LIVE": "on",
        "jarvis.flag.NEW_UI": "off",
        "exception.type": f"{__name__}.InsufficientBalanceError",
        "exception.message": "Wallet has 0.5 SOL",
        "code.file.path": HERE,
        "code.function.name": "test_the_wire_has_the_attributes_of_the_design",
    }
    context = span.get_span_context()
    assert record["traceId"] == f"{context.trace_id:032x}"
    assert record["spanId"] == f"{context.span_id:016x}"
    assert (record["severityNumber"], record["severityText"], record["flags"]) == (17, "ERROR", 1)
    assert record["scope"] == {"name": "trading"}
    assert int(record["timeUnixNano"]) % 1000 == 0


def test_a_record_of_the_process_itself_does_not_name_its_service_twice(setup, sink):
    get_logger("jarvis").info("x")
    assert "jarvis.service" not in attributes_of(shipped(setup, sink)[0])


def test_a_keyword_with_a_name_of_ours_travels_under_a_prefix(setup, sink):
    get_logger("api").info(
        "x", **{"user.id": 5, "jarvis.flag.X": "y", "jarvis.context.a": 1, "http.route": "/"}, user_id="u"
    )
    attributes = attributes_of(shipped(setup, sink)[0])
    assert attributes["user.id"] == "u"
    assert attributes["jarvis.context.user.id"] == 5
    assert attributes["jarvis.context.jarvis.flag.X"] == "y"
    assert attributes["jarvis.context.jarvis.context.a"] == 1
    assert attributes["http.route"] == "/"


def test_the_caller_is_named_through_every_method(caplog):
    log = get_logger("api").bind(a=1)
    calls = [
        lambda: log.info("x"),
        lambda: log.trade_event("executed", "SOL"),
        lambda: log.api_call("GET", "/x", 200, 1.0),
        lambda: log.feature_flag_evaluated("F", True, {}),
        lambda: log.bind(b=2).critical("x"),
    ]
    for call in calls:
        call()
        assert last(caplog)["source"]["file"] == HERE
        assert last(caplog)["source"]["function"].endswith("<lambda>")


def test_trade_events_and_api_calls_and_evaluations_have_their_own_form(caplog):
    log = get_logger("api")
    log.trade_event(event_type="executed", symbol="SOL", amount=5)
    entry = last(caplog)
    assert (entry["event"], entry["context"]) == ("trade.executed", {"symbol": "SOL", "amount": 5})
    log.api_call(method="GET", endpoint="/trades", status_code=200, duration_ms=12, cached=True)
    entry = last(caplog)
    assert (entry["message"], entry["duration_ms"], entry["level"]) == ("GET /trades → 200", 12, "INFO")
    assert entry["context"] == {"method": "GET", "endpoint": "/trades", "status_code": 200, "cached": True}
    log.api_call("GET", "/trades", 503, 1.0)
    assert last(caplog)["level"] == "ERROR"
    with log.context(correlation_id="c"):
        log.feature_flag_evaluated("NEW_UI", True, {"user": "u"})
    entry = last(caplog)
    assert (entry["event"], entry["flags"], entry["active_flags"]) == (
        "feature_flag.evaluation",
        {"NEW_UI": "on"},
        ["NEW_UI"],
    )


def test_an_event_has_its_name_and_its_attributes_as_they_are(setup, sink):
    emit_event("jarvis", "feature_flag.evaluation", "Flag X: on", attributes={"feature_flag.key": "X", "user.id": "u"})
    (record,) = shipped(setup, sink)
    attributes = attributes_of(record)
    assert record["eventName"] == "feature_flag.evaluation"
    assert (attributes["feature_flag.key"], attributes["user.id"]) == ("X", "u")
    assert "code.file.path" not in attributes


def test_bound_keywords_join_every_record_and_the_call_wins(caplog):
    log = get_logger("api").bind(symbol="SOL", user_id="u1").bind(side="buy")
    log.info("x", symbol="WIF")
    entry = last(caplog)
    assert (entry["context"], entry["user_id"]) == ({"symbol": "WIF", "side": "buy"}, "u1")
    get_logger("api").info("y")
    assert last(caplog)["context"] == {}


def test_declared_flags_are_listed_and_an_evaluated_one_beats_them(caplog):
    former = RUNTIME.declared_flags
    RUNTIME.declared_flags = lambda service, user, ids: dict.fromkeys(("A", "B", *ids), (f"{service}/{user}", True))
    try:
        with get_logger("api").context(user_id="u", flags=["C"]):
            note_evaluation("B", "off", on=False)
            get_logger("api").info("x")
    finally:
        RUNTIME.declared_flags = former
    entry = last(caplog)
    assert entry["flags"] == {"B": "off", "A": "api/u", "C": "api/u"}
    assert entry["active_flags"] == ["A", "C"]


def test_at_most_64_flags_are_listed(caplog):
    with get_logger("api").context(correlation_id="c"):
        for number in range(100):
            note_evaluation(f"F{number}", "on", on=True)
        get_logger("api").info("x")
    assert len(last(caplog)["flags"]) == 64


def test_without_a_correlation_id_the_trace_id_stands_in_on_the_line_but_not_on_the_wire(setup, sink, tracer, caplog):
    with tracer.start_as_current_span("x"):
        get_logger("api").info("x")
    assert last(caplog)["correlation_id"] == last(caplog)["trace_id"]
    assert "jarvis.correlation_id" not in attributes_of(shipped(setup, sink)[0])


def test_when_something_of_ours_breaks_the_message_still_arrives(setup, sink, caplog):
    def broken(service, user, ids):
        raise RuntimeError("no flags today")

    former, RUNTIME.declared_flags = RUNTIME.declared_flags, broken
    try:
        get_logger("api").error("important", symbol="SOL")
    finally:
        RUNTIME.declared_flags = former
    (record,) = shipped(setup, sink)
    assert (record["body"], record["severityText"]) == ({"stringValue": "important"}, "ERROR")
    assert attributes_of(record)["logging_problem"] == "RuntimeError: no flags today"
    assert last(caplog)["message"] == "important"


def test_a_duration_that_is_no_number_stays_in_the_context(caplog):
    get_logger("api").info("x", duration_ms="12 ms")
    assert last(caplog)["context"] == {"duration_ms": "12 ms"}
    get_logger("api").info("x", duration_ms=True)
    assert last(caplog)["context"] == {"duration_ms": True}


@pytest.mark.parametrize("given", [True, "exception", "triple"])
def test_an_exception_may_be_given_in_three_ways(caplog, given):
    try:
        raise InsufficientBalanceError("too little")
    except InsufficientBalanceError as error:
        triple = (type(error), error, error.__traceback__)
        get_logger("api").error("x", exc_info={"exception": error, "triple": triple}.get(given, given))
    error = last(caplog)["error"]
    assert (error["type"], error["message"]) == ("InsufficientBalanceError", "too little")
    assert "raise InsufficientBalanceError" in error["stack_trace"]
    assert caplog.records[-1].exc_info[0] is InsufficientBalanceError


def test_without_an_exception_there_is_no_error(caplog):
    get_logger("api").error("x", exc_info=True)
    assert "error" not in last(caplog)


# Levels


def test_levels_come_from_the_logger_then_its_service_then_the_settings(tmp_path, caplog):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "jarvis.yaml").write_text("log_level: warning\nlevels: {noisy: error}\n")
    quiet, noisy = StructuredLogger("quiet"), StructuredLogger("noisy")
    explicit = StructuredLogger("noisy", level=logging.DEBUG)
    assert (quiet.level, noisy.level, explicit.level) == (logging.INFO, logging.INFO, logging.DEBUG)
    RUNTIME.settings = Settings.load({"JARVIS_HOME": str(tmp_path)})
    try:
        assert (quiet.level, noisy.level, explicit.level) == (logging.WARNING, logging.ERROR, logging.DEBUG)
        for log in (quiet, noisy, explicit):
            log.debug("debug")
            log.warning("warning")
    finally:
        RUNTIME.settings = None
    assert [(r.name, r.levelname) for r in caplog.records] == [
        ("quiet", "WARNING"),
        ("noisy", "DEBUG"),
        ("noisy", "WARNING"),
    ]


def test_the_level_of_the_root_logger_is_not_ours(caplog):
    assert logging.getLogger().getEffectiveLevel() == logging.WARNING
    get_logger("api").info("x")
    assert last(caplog)["message"] == "x"


def test_the_same_name_gives_the_same_logger():
    assert get_logger("same") is get_logger("same")


# Context


def test_threads_and_tasks_keep_their_contexts_apart(caplog):
    log = get_logger("api")

    async def task(number):
        async with log.context(correlation_id=f"task-{number}"):
            for _ in range(5):
                await asyncio.sleep(0)
                log.info(f"task-{number}")  # noqa: G004

    def thread(number):
        with log.context(correlation_id=f"thread-{number}"):
            for _ in range(20):
                log.info(f"thread-{number}")  # noqa: G004

    async def tasks():
        await asyncio.gather(*(task(number) for number in range(10)))

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(5)]
    for one in threads:
        one.start()
    asyncio.run(tasks())
    for one in threads:
        one.join()
    entries = [json.loads(record.getMessage()) for record in caplog.records if record.name == "api"]
    assert len(entries) == 150
    assert all(entry["correlation_id"] == entry["message"] for entry in entries)


def test_inner_contexts_add_to_outer_ones_and_end(caplog):
    log = get_logger("api")
    with log.context(correlation_id="outer", tenant="t"):
        with log.context(user_id="u"):
            log.info("x")
            assert (last(caplog)["correlation_id"], last(caplog)["user_id"], last(caplog)["context"]) == (
                "outer", "u", {"tenant": "t"},
            )  # fmt: skip
        log.info("y")
        assert "user_id" not in last(caplog)
    log.info("z")
    assert "correlation_id" not in last(caplog)


# Whatever it is given


class Color(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


def cyclic():
    value = {}
    value["self"] = value
    return value


def deep():
    value = []
    for _ in range(10_000):
        value = [value]
    return value


HOSTILE = {
    "lone surrogate": ("\udc80", "\\udc80"),
    "astral": ("🚀", "🚀"),
    "nul": ("a\0b", "a\0b"),
    "line separator": ("a\u2028b", "a\u2028b"),
    "int beyond 64 bit": (2**63, str(2**63)),
    "huge int": (10**5000, "<unprintable int>"),
    "smallest int": (-(2**63), -(2**63)),
    "bytes": (b"a\xff", "a\\xff"),
    "bytearray": (bytearray(b"ab"), "ab"),
    "datetime": (dt.datetime(2026, 1, 18, 14, 30, tzinfo=dt.UTC), "2026-01-18T14:30:00+00:00"),
    "date": (dt.date(2026, 1, 18), "2026-01-18"),
    "decimal": (decimal.Decimal("1.10"), "1.10"),
    "uuid": (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    "path": (pathlib.PurePosixPath("/a/b"), "/a/b"),
    "path that is no Unicode": (pathlib.PurePosixPath("/a/\udcff"), "/a/\\udcff"),
    "enum": (Color.RED, "red"),
    "int enum": (Number.ONE, 1),
    "tuple": ((1, "a"), [1, "a"]),
    "set": ({"b", "a"}, ["a", "b"]),
    "mapping": (types.MappingProxyType({"a": 1}), {"a": 1}),
    "keys that are no text": ({1: 2, None: 3, ("a",): 4}, {"1": 2, "None": 3, "('a',)": 4}),
    "exception": (ValueError("no"), "ValueError: no"),
    "none": (None, None),
    "raising str": (Hostile(), "<unprintable Hostile>"),
    "lying class": (Liar(), "<unprintable Liar>"),
    "nested": (
        {"a": [{"b": Hostile()}, 2**70, "\udc80"]},
        {"a": [{"b": "<unprintable Hostile>"}, str(2**70), "\\udc80"]},
    ),
    "class": (dict, "<class 'dict'>"),
}


@pytest.mark.parametrize(("value", "wanted"), HOSTILE.values(), ids=HOSTILE.keys())
def test_any_value_arrives_and_harms_neither_record_nor_neighbour(setup, sink, caplog, value, wanted):
    log = get_logger("api")
    log.info("before")
    log.info("x", value=value)
    log.info("after")
    before, record, after = shipped(setup, sink, 3)
    assert attributes_of(record)["value"] == wanted
    assert [r["body"]["stringValue"] for r in (before, record, after)] == ["before", "x", "after"]
    assert json.loads(caplog.records[-2].getMessage())["context"] == {"value": wanted}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_travel_by_name(setup, sink, caplog, value):
    get_logger("api").info("x", value=value)
    (attribute,) = [a for a in shipped(setup, sink)[0]["attributes"] if a["key"] == "value"]
    assert attribute["value"] == {"doubleValue": {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]}
    assert last(caplog)["context"] == {"value": None}


@pytest.mark.parametrize("message", ["\udc80", None, 5, b"a\xff", {"a": 1}, "a\nb\x1b[31m\0\u2028", ["x"]])
def test_any_message_arrives_as_text(setup, sink, message):
    get_logger("api").info(message)
    get_logger("api").info(Hostile())
    get_logger("api").info(Liar())
    bodies = [record["body"]["stringValue"] for record in shipped(setup, sink, 3)]
    assert bodies[1:] == ["<unprintable Hostile>", "<unprintable Liar>"]


@pytest.mark.parametrize("make", [cyclic, deep, lambda: dict.fromkeys(range(1_000_000)), lambda: ["x" * 100_000] * 100])
def test_what_is_too_much_is_cut_off_visibly(setup, sink, make):
    get_logger("api").info("x", value=make(), other="kept")
    (record,) = shipped(setup, sink)
    assert "…[truncated " in json.dumps(record, ensure_ascii=False)
    assert attributes_of(record)["other"] == "kept"
    assert len(json.dumps(record)) < 300_000


@pytest.mark.parametrize("size", [10**6, 64 * 10**6])
def test_a_giant_message_is_cut_off_visibly(setup, sink, size):
    get_logger("api").info("x" * size, big="y" * size)
    (record,) = shipped(setup, sink)
    assert record["body"]["stringValue"].endswith(f"…[truncated {size - 32768}]")
    assert attributes_of(record)["big"].endswith("]")


def test_many_long_keywords_share_one_bound(setup, sink):
    get_logger("api").info("x", **{f"k{n}": "v" * 30_000 for n in range(100)})
    get_logger("api").info("after")
    record, after = shipped(setup, sink, 2)
    assert len(json.dumps(record)) < 300_000
    assert after["body"]["stringValue"] == "after"


def test_names_of_parameters_may_be_keywords(caplog):
    log = get_logger("api")
    log.info("x", message="m", self="s", level="l", event="e", service="v", logger="g")
    assert last(caplog)["context"] == {
        "message": "m",
        "self": "s",
        "level": "l",
        "event": "e",
        "service": "v",
        "logger": "g",
    }
    log.info(message="by name")
    assert last(caplog)["message"] == "by name"
    with log.context(service="x", correlation_id=5, flags="NEW_UI"):
        log.info("y")
    assert (last(caplog)["context"], last(caplog)["correlation_id"]) == ({"service": "x"}, "5")


def test_values_changed_by_another_thread_meanwhile_do_no_harm(setup):
    shared, stop = {}, threading.Event()

    def change():
        number = 0
        while not stop.is_set():
            shared[number % 50] = number
            shared.pop((number + 25) % 50, None)
            number += 1

    thread = threading.Thread(target=change)
    thread.start()
    for _ in range(300):
        get_logger("api").info("x", shared=shared)
    stop.set()
    thread.join()
    assert setup.pipeline.flush(20)
    assert setup.pipeline.counters().shipped == 300


def test_an_object_changed_after_the_call_is_logged_as_it_was(setup, sink):
    value = {"a": 1}
    get_logger("api").info("x", value=value)
    value["a"] = 2
    assert attributes_of(shipped(setup, sink)[0])["value"] == {"a": 1}


def test_an_exception_whose_text_raises_is_still_an_error(caplog):
    class BrokenError(Exception):
        def __str__(self):
            raise RuntimeError

    try:
        raise BrokenError
    except BrokenError:
        get_logger("api").exception("x")
    assert last(caplog)["error"]["type"] == "BrokenError"
    assert last(caplog)["error"]["message"] == "<unprintable BrokenError>"


def test_a_text_that_logs_its_own_object_ends(setup, sink):
    class Chatty:
        def __str__(self):
            get_logger("api").info("asked", me=self)
            return "chatty"

    get_logger("api").info("x", me=Chatty())
    assert setup.pipeline.flush(20)
    assert attributes_of(sink.received[-1])["me"] == "chatty"
    assert len(sink.received) < 200


def test_a_handler_that_logs_does_not_loop(setup, sink):
    class Logging(logging.Handler):
        def emit(self, record):
            get_logger("api").info("from the handler")

    handler = Logging()
    logging.getLogger("api").addHandler(handler)
    try:
        get_logger("api").info("x")
    finally:
        logging.getLogger("api").removeHandler(handler)
    assert [record["body"]["stringValue"] for record in shipped(setup, sink, 2)] == ["x", "from the handler"]


def test_a_handler_that_raises_costs_nobody_a_record(setup, sink):
    class Raising(logging.Handler):
        def emit(self, record):
            raise RuntimeError

    handler = Raising()
    logging.getLogger("api").addHandler(handler)
    try:
        get_logger("api").info("x")
    finally:
        logging.getLogger("api").removeHandler(handler)
    shipped(setup, sink)


def test_clean_never_raises_on_a_wild_mixture():
    assert clean({"a": {1, (2, 3)}, "b": frozenset({Hostile()})})["b"] == ["<unprintable Hostile>"]


# Standard logging


def test_standard_records_are_shipped_from_info_up_with_the_same_context(setup, sink, tracer):
    standard = logging.getLogger("app.db")
    with tracer.start_as_current_span("x") as span, get_logger("api").context(correlation_id="c1", user_id="u1"):
        note_evaluation("NEW_UI", "on", on=True)
        standard.debug("too low")
        standard.info("slow query %d", 5, extra={"table": "trades", "request_id": "r1", "color_message": "x"})
        try:
            raise ValueError("no")
        except ValueError:
            standard.exception("failed")
    info, error = shipped(setup, sink, 2)
    attributes = attributes_of(info)
    assert info["body"] == {"stringValue": "slow query 5"}
    assert info["traceId"] == f"{span.get_span_context().trace_id:032x}"
    assert info["scope"] == {"name": "app.db"}
    assert attributes.pop("log.record.uid")
    assert attributes.pop("code.line.number")
    assert attributes == {
        "table": "trades",
        "jarvis.correlation_id": "c1",
        "user.id": "u1",
        "jarvis.request_id": "r1",
        "jarvis.flag.NEW_UI": "on",
        "jarvis.active_flags": ["NEW_UI"],
        "code.file.path": HERE,
        "code.function.name": "test_standard_records_are_shipped_from_info_up_with_the_same_context",
    }
    assert attributes_of(error)["exception.type"] == "ValueError"


def test_a_bad_format_string_is_shipped_as_well_as_it_goes(setup, sink):
    logging.raiseExceptions, former = False, logging.raiseExceptions
    try:
        logging.getLogger("app.bad").warning("%d items", "x")
    finally:
        logging.raiseExceptions = former
    assert shipped(setup, sink)[0]["body"] == {"stringValue": "%d items x"} or shipped(setup, sink)[0]["body"][
        "stringValue"
    ].startswith("%d items")


def test_a_structured_record_is_shipped_once_though_it_passes_standard_logging(setup, sink, caplog):
    get_logger("once").info("x")
    assert last(caplog)["message"] == "x"
    shipped(setup, sink)


def test_records_of_opentelemetry_itself_are_not_shipped(setup, sink):
    logging.getLogger("opentelemetry.exporter").warning("down")
    get_logger("api").info("x")
    assert [r["body"]["stringValue"] for r in shipped(setup, sink)] == ["x"]


def test_loggers_that_do_not_propagate_are_seen_and_later_configuration_changes_nothing(setup, sink):
    import logging.config

    quiet = logging.getLogger("uvicorn.access")
    quiet.info("before")
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"null": {"class": "logging.NullHandler"}},
            "loggers": {"uvicorn.access": {"handlers": ["null"], "level": "INFO", "propagate": False}},
        }
    )
    try:
        quiet.info("after")
    finally:
        quiet.handlers, quiet.propagate, quiet.level = [], True, logging.NOTSET
    assert [r["body"]["stringValue"] for r in shipped(setup, sink, 2)] == ["before", "after"]


def test_what_the_application_would_not_have_printed_is_shipped_but_not_printed(setup, sink):
    root, stream = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(stream)
    root.addHandler(handler)
    try:
        logging.getLogger("app.quiet").info("shipped only")
        logging.getLogger("app.quiet").warning("printed too")
        level = root.level
        root.setLevel(logging.INFO)
        logging.getLogger("app.quiet").info("now printed")
        root.setLevel(level)
    finally:
        root.removeHandler(handler)
    assert stream.getvalue() == "printed too\nnow printed\n"
    shipped(setup, sink, 3)


def test_uninstalling_leaves_standard_logging_as_it_was(sink):
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogRecordFactory())
    settings = Settings.load({"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "JARVIS_CONSOLE": "json"})
    setup = install_logging(settings, {})
    logging.getLogger("left").info("x")
    assert setup.uninstall(20)
    assert (root.level, list(root.handlers), logging.getLogRecordFactory()) == before
    assert logging.getLogger("left").filters == []
    assert RUNTIME.pipeline is None


# The OpenTelemetry Logs API


@pytest.fixture
def provider(setup, monkeypatch):
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(PipelineProcessor(setup.pipeline))
    monkeypatch.setattr(_logs._internal, "_LOGGER_PROVIDER", provider)
    monkeypatch.setattr(_logs._internal, "_LOGGER_PROVIDER_SET_ONCE", Once())
    return provider


def test_records_of_the_logs_api_reach_the_same_pipeline(setup, sink, provider, tracer):
    logger = provider.get_logger("lib", "1.0", attributes={"a": "b"})
    with tracer.start_as_current_span("x") as span, get_logger("api").context(correlation_id="c1"):
        note_evaluation("NEW_UI", "on", on=True)
        logger.emit(
            body={"a": [1, None]},
            timestamp=1234567,
            severity_number=_logs.SeverityNumber.WARN,
            severity_text="WARN",
            event_name="happened",
            attributes={"k": "v", "user.id": "theirs"},
        )
    (record,) = shipped(setup, sink)
    attributes = attributes_of(record)
    assert attributes.pop("log.record.uid")
    assert attributes == {
        "k": "v",
        "user.id": "theirs",
        "jarvis.correlation_id": "c1",
        "jarvis.flag.NEW_UI": "on",
        "jarvis.active_flags": ["NEW_UI"],
    }
    assert record["scope"]["version"] == "1.0"
    assert (record["timeUnixNano"], record["severityNumber"], record["severityText"]) == ("1234567", 13, "WARN")
    assert record["eventName"] == "happened"
    assert record["traceId"] == f"{span.get_span_context().trace_id:032x}"


def test_the_users_own_exporters_get_every_record_and_ours_none_twice(setup, sink, provider):
    memory = InMemoryLogRecordExporter()
    get_logger("api").info("before anyone else listens")
    provider.add_log_record_processor(SimpleLogRecordProcessor(memory))
    with get_logger("api").context(correlation_id="c1"):
        get_logger("api").warning("x", symbol="SOL", big=2**64, bad="\udc80")
    shipped(setup, sink, 2)
    (exported,) = memory.get_finished_logs()
    record = exported.log_record
    assert (record.body, record.severity_number, record.severity_text) == ("x", _logs.SeverityNumber.WARN, "WARNING")
    assert record.attributes["symbol"] == "SOL"
    assert record.attributes["big"] == str(2**64)
    assert record.attributes["jarvis.correlation_id"] == "c1"
    assert exported.instrumentation_scope.name == "api"


def test_a_logging_handler_of_opentelemetry_that_leads_to_us_is_adopted(setup, sink, provider):
    from opentelemetry.instrumentation.logging.handler import LoggingHandler

    handler = LoggingHandler(logger_provider=provider)
    logging.getLogger("adopted").addHandler(handler)
    try:
        logging.getLogger("adopted").warning("once")
        logging.getLogger("adopted").info("not for its eyes, but ours")
    finally:
        logging.getLogger("adopted").removeHandler(handler)
    assert [r["body"]["stringValue"] for r in shipped(setup, sink, 2)] == ["once", "not for its eyes, but ours"]


# Formatters


def standard_record(**fields):
    return logging.makeLogRecord(
        {"name": "app", "levelname": "INFO", "levelno": logging.INFO, "msg": "hello", **fields}
    )


def test_the_json_formatter_writes_the_line_for_any_record():
    line = json.loads(JSONFormatter().format(standard_record(table="trades", msg="hello %s", args=("you",))))
    assert (line["message"], line["service"], line["context"]) == ("hello you", "app", {"table": "trades"})


def test_the_human_formatter_is_readable(caplog):
    with get_logger("trading").context(correlation_id="trade-1"):
        note_evaluation("NEW_UI", "on", on=True)
        get_logger("trading").info("Trade executed", symbol="SOL", amount=100, note="two words")
    text = HumanFormatter().format(caplog.records[-1])
    assert text[12:] == (
        ' INFO     trading  Trade executed  symbol=SOL amount=100 note="two words"  ⚑NEW_UI=on  correlation trade-1'
    )


def test_the_human_formatter_shows_the_trace_and_the_stack_below(caplog, tracer):
    with tracer.start_as_current_span("x") as span:
        try:
            raise ValueError("no\x1b[31m")
        except ValueError:
            get_logger("api").exception("failed")
    rows = HumanFormatter().format(caplog.records[-1]).split("\n")
    assert rows[0].endswith(f"ERROR    api  failed  trace {span.get_span_context().trace_id:032x}"[:-24] + "…")
    assert rows[1] == "    Traceback (most recent call last):"
    assert rows[-1] == "    ValueError: no\\x1b[31m"


def test_the_human_formatter_lets_nothing_steer_the_terminal():
    record = standard_record(msg="a\nb\x1b]8;;x\x07\u202eevil\u2028\x9b", **{"k\n": "v\r"})
    text = HumanFormatter().format(record)
    assert text[12:] == ' INFO     app  a\\nb\\x1b]8;;x\\x07\\u202eevil\\u2028\\x9b  k\\n="v\\r"'
    assert printable("tab\t\ud800") == "tab\\t\\ud800"


def test_colour_only_where_wanted():
    assert "\x1b[" not in HumanFormatter().format(standard_record())
    assert "\x1b[32mINFO" in HumanFormatter(color=True).format(standard_record())


def test_nothing_warns_when_the_module_is_used_without_any_set_up():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_logger("plain").info("x")
        assert trace.get_current_span().get_span_context().is_valid is False


def test_without_handlers_a_warning_reaches_stderr_and_info_does_not(capfd):
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        get_logger("bare").info("quiet")
        get_logger("bare").warning("loud")
    finally:
        root.handlers = handlers
    (text,) = capfd.readouterr().err.splitlines()
    assert json.loads(text)["message"] == "loud"


def test_a_pipeline_that_is_gone_does_not_matter():
    pipeline = Pipeline(logs_at("http://127.0.0.1:9"), {})
    pipeline.shutdown(0.0)
    RUNTIME.pipeline = pipeline
    try:
        get_logger("late").info("x")
    finally:
        RUNTIME.pipeline = None


def test_a_record_with_more_keywords_than_a_collector_takes_is_cut_and_not_lost(setup, sink):
    get_logger("many").info("m", **{f"k{number}": number for number in range(5_000)})
    (record,) = shipped(setup, sink)
    assert record["body"]["stringValue"] == "m"
    assert 900 < len(record["attributes"]) < 1_100
