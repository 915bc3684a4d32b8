"""What leaves the process: any value within its bounds, and a record byte by byte."""

import collections
import datetime as dt
import decimal
import enum
import json
import math
import types
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.trace import SpanContext, TraceFlags

from jarvis_collector.otlp import Encoding, Signal, read
from jarvis_collector.record import LogEntry
from jarvis_otel.encode import (
    ErrorInfo,
    Record,
    Severity,
    clean,
    clean_text,
    is_plain_key,
    log_entry,
    merge_flags,
    operation_attributes,
    otlp_attributes,
    otlp_record,
    otlp_scope,
    redact,
    sdk_attributes,
    severity_of,
    source_attributes,
    span_ids,
)
from jarvis_otel.redaction import Redactor

TIME = 1_767_323_045_678_901_000  # 2026-01-02T03:04:05.678901Z
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "00ad6b7169203331"
INFO = Severity("INFO", 9, "INFO")
TEXT, RECORD = 32_768, 262_144  # characters of a text, bytes of a record
WHOLE = "x" * TEXT
THREE = [WHOLE] * 3


def made(**parts):
    """A record that says nothing but what is given."""
    usual = {"time_ns": TIME, "severity": INFO, "message": "done", "service": "jarvis", "logger": "web", "keywords": {}}
    return Record(**{**usual, **parts})


def attribute(key, **value):
    return {"key": key, "value": value}


def named(record):
    """The attributes of a record, each with its value on the wire."""
    return [(attribute["key"], attribute["value"]) for attribute in orjson.loads(record)["attributes"]]


def lists(depth, value):
    for _ in range(depth):
        value = [value]
    return value


def mappings(depth, value):
    for _ in range(depth):
        value = {"in": value}
    return value


# Values


class Color(enum.Enum):
    RED = "red"
    MIXED = ["red", "blue"]  # noqa: RUF012 - the value of an enum may be anything


class Number(enum.IntEnum):
    ONE = 1


class Text(enum.StrEnum):
    A = "a"


class Price(float):
    def __repr__(self):
        return "a price"


class Amount(int):
    def __repr__(self):
        return "an amount"


class Shout(str):
    __slots__ = ()

    def __str__(self):
        return self.upper() + "!"


class Named:
    def __str__(self):
        return Shout("named")


class Hostile:
    def __str__(self):
        raise RuntimeError


class Liar:
    """An object that says to be a mapping."""

    @property
    def __class__(self):
        return dict


class Ends(BaseException):
    pass


VALUES = [
    (None, None),
    (True, True),
    (False, False),
    (1.5, 1.5),
    (0, 0),
    (2**63 - 1, 2**63 - 1),
    (-(2**63), -(2**63)),
    (2**63, "9223372036854775808"),
    (-(2**63) - 1, "-9223372036854775809"),
    (10**5000, "<unprintable int>"),
    (Amount(2**63 - 1), 2**63 - 1),
    (Amount(-(2**63)), -(2**63)),
    (Amount(2**63), "an amount"),
    (Amount(-(2**63) - 1), "an amount"),
    (Price(1.5), 1.5),
    ("text", "text"),
    ("é✗🚀", "é✗🚀"),
    ("\ud800 é", "\\ud800 é"),
    (Shout("text"), "text"),
    (Named(), "named"),
    (Color.RED, "red"),
    (Color.MIXED, ["red", "blue"]),
    (Number.ONE, 1),
    (Text.A, "a"),
    (b"a\xff\xc3\xa9", "a\\xffé"),
    (bytearray(b"ab"), "ab"),
    (memoryview(b"ab"), "ab"),
    (dt.datetime(2026, 1, 18, 14, 30, tzinfo=dt.UTC), "2026-01-18T14:30:00+00:00"),
    (dt.date(2026, 1, 18), "2026-01-18"),
    (dt.time(14, 30), "14:30:00"),
    (decimal.Decimal("1.10"), "1.10"),
    (ValueError("no"), "ValueError: no"),
    (Ends("now"), "Ends: now"),
    (ValueError(Hostile()), "<unprintable ValueError>"),
    (dict, "<class 'dict'>"),
    (Hostile(), "<unprintable Hostile>"),
    (Liar(), "<unprintable Liar>"),
    ([1, "a", None], [1, "a", None]),
    ((1, (2,)), [1, [2]]),
    (collections.deque([1, 2]), [1, 2]),
    ({9, 10, "a"}, [10, 9, "a"]),
    (frozenset({9, 10}), [10, 9]),
    ({"a": 1, 2: "b", None: Hostile()}, {"a": 1, "2": "b", "None": "<unprintable Hostile>"}),
    (types.MappingProxyType({"\udc80": [b"x"]}), {"\\udc80": ["x"]}),
    ([], []),
    ({}, {}),
]


def exactly(value):
    """A value in a form in which True is not 1."""
    return json.dumps(value), type(value)


@pytest.mark.parametrize(("value", "wanted"), VALUES, ids=lambda value: type(value).__name__)
def test_any_value_becomes_plain_json(value, wanted):
    assert exactly(clean(value)) == exactly(wanted)


@pytest.mark.parametrize("name", ["nan", "inf", "-inf"])
def test_a_number_that_json_does_not_know_stays_a_number(name):
    assert str(clean([float(name)])) == f"[{name}]"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("a", "a"), (None, "None"), (5, "5"), (1.5, "1.5"), (Shout("a"), "a"), (Text.A, "a"), ([1], "[1]"), (b"a", "a")],
)
def test_whatever_it_is_its_text_is_a_text(value, wanted):
    assert exactly(clean_text(value)) == exactly(wanted)


def test_a_text_that_needs_nothing_is_not_copied():
    text = "a text " * 100
    assert clean_text(text) is text
    assert clean([text])[0] is text


LEFT = "…[truncated {}]".format
CUT = WHOLE + LEFT(7)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (WHOLE, WHOLE),
        (WHOLE + "x", WHOLE + LEFT(1)),
        ("é" * TEXT, "é" * TEXT),
        ("é" * 40_000, "é" * TEXT + LEFT(7232)),
        ("\ud800" * (TEXT + 2), "\\ud800" * TEXT + LEFT(2)),
        (b"x" * TEXT, WHOLE),
        (b"x" * (TEXT + 1), WHOLE + LEFT(1)),
        (b"x" * 100_000, WHOLE + LEFT(67_232)),
        ("é".encode() * 20_000, "é" * (TEXT // 2) + LEFT(7232)),
        (bytearray(b"\xff" * 10_000), ("\\xff" * 10_000)[:TEXT] + LEFT(7232)),
        (memoryview(b"x" * 40_000), WHOLE + LEFT(7232)),
        (Shout("x" * 40_000), WHOLE + LEFT(7232)),
    ],
    ids=lambda text: f"{type(text).__name__} of {len(text)}",
)
def test_a_long_text_is_cut_off_and_says_how_much_is_missing(text, wanted):
    assert clean_text(text) == clean(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (CUT, CUT),
        # the longest that counts
        (WHOLE + "y" * (40 - len(LEFT(7))) + LEFT(7), WHOLE + "y" * (40 - len(LEFT(7))) + LEFT(7)),
        (WHOLE + "y" * (41 - len(LEFT(7))) + LEFT(7), WHOLE + LEFT(41)),
        # a secret that stood before the cut became shorter
        (CUT[10:], CUT[10:]),
        (WHOLE + LEFT(7) + "y", WHOLE + LEFT(15)),
        (WHOLE + LEFT(""), WHOLE + LEFT(13)),
        ("y" + LEFT(7) + WHOLE, ("y" + LEFT(7) + WHOLE)[:TEXT] + LEFT(15)),
    ],
    ids=lambda text: f"{len(text)} {text[-20:]}",
)
def test_what_was_cut_off_once_still_says_how_much_was_missing_then(text, wanted):
    assert clean(text) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ([WHOLE] * 6, [WHOLE] * 4 + [LEFT(TEXT)] * 2),
        (["x" * 30_000] * 5 + ["", "y"], ["x" * 30_000] * 4 + ["x" * 11_072 + LEFT(18_928), "", LEFT(1)]),
        # what was cut already has to fit into what is left, too
        ([CUT] * 4, [CUT] * 3 + ["x" * (TEXT - 42) + LEFT(56)]),
        ({WHOLE: WHOLE, WHOLE + "x": [WHOLE]}, {WHOLE: WHOLE, WHOLE + LEFT(1): ["x" * (TEXT - 14) + LEFT(14)]}),
        ({"a": [*THREE, WHOLE[1:]], "b": 1, "c": 2}, {"a": [*THREE, WHOLE[1:]], "…": LEFT(2)}),
        ({"a": [*THREE, WHOLE[2:]], "b": 1, "c": 2}, {"a": [*THREE, WHOLE[2:]], "b": 1, "…": LEFT(1)}),
    ],
    ids=["six of the longest", "some room", "cut already", "keys", "no room for a key", "room for one"],
)
def test_all_texts_of_a_value_share_room_for_four_of_the_longest(value, wanted):
    assert clean(value) == wanted


def numbered(count):
    return {str(number): number for number in range(count)}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ([0] * 1000, [0] * 1000),
        ([0] * 1001, [0] * 1000 + [LEFT(1)]),
        ({5} | set(range(2000)), [*sorted(range(1000), key=str), LEFT(1000)]),
        (numbered(1000), numbered(1000)),
        (numbered(1003), numbered(1000) | {"…": LEFT(3)}),
        ([[0] * 600, [0] * 600, [0], []], [[0] * 600, [0] * 396 + [LEFT(204)], [LEFT(1)], []]),
        (
            {"a": numbered(600), "b": numbered(600), "c": {"d": 1}, "e": {}},
            {"a": numbered(600), "b": numbered(396) | {"…": LEFT(204)}, "c": {"…": LEFT(1)}, "e": {}},
        ),
    ],
    ids=["1000", "1001", "set", "keys", "1003 keys", "nested", "nested keys"],
)
def test_a_value_has_at_most_1000_items_with_those_within_it(value, wanted):
    assert clean(value) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (lists(8, 5), lists(8, 5)),
        (lists(8, [5, 6]), lists(8, LEFT(2))),
        (mappings(8, 5), mappings(8, 5)),
        (mappings(8, {"a": 5, "b": 6, "c": 7}), mappings(8, LEFT(3))),
        (lists(4, mappings(4, {1, 2})), lists(4, mappings(4, LEFT(2)))),
        (lists(6, Color.MIXED), lists(6, ["red", "blue"])),
        (lists(7, Color.MIXED), lists(7, LEFT(2))),
        (lists(7, Color.RED), lists(7, "red")),
        (lists(8, Color.RED), lists(8, "RED")),
    ],
    ids=str,
)
def test_a_value_is_at_most_eight_levels_deep(value, wanted):
    assert clean(value) == wanted


def test_an_object_whose_text_asks_for_its_own_text_ends():
    class Mirror:
        def __str__(self):
            return f"<{clean_text(self)} {clean_text('text')}>"

    seen = "<<<<unprintable Mirror> text> text> text>"
    with ThreadPoolExecutor(1) as thread:
        for _ in range(2):
            assert clean([Mirror(), Mirror()]) == thread.submit(clean, [Mirror(), Mirror()]).result() == [seen, seen]


# Values on the wire

WIRE = [
    ("text", {"stringValue": "text"}),
    ('"\\\n\x01\x7f é✗🚀', {"stringValue": '"\\\n\x01\x7f é✗🚀'}),
    ("\ud800", {"stringValue": "\\ud800"}),
    (True, {"boolValue": True}),
    (False, {"boolValue": False}),
    (5, {"intValue": "5"}),
    (2**63 - 1, {"intValue": "9223372036854775807"}),
    (-(2**63), {"intValue": "-9223372036854775808"}),
    (2**63, {"stringValue": "9223372036854775808"}),
    (-(2**63) - 1, {"stringValue": "-9223372036854775809"}),
    (10**5000, {"stringValue": "<unprintable int>"}),
    (1.5, {"doubleValue": 1.5}),
    (math.inf, {"doubleValue": "Infinity"}),
    (-math.inf, {"doubleValue": "-Infinity"}),
    (math.nan, {"doubleValue": "NaN"}),
    (None, {}),
    (b"ab", {"stringValue": "ab"}),
    ([], {"arrayValue": {"values": []}}),
    (
        (1, True, "a", None, [0.5]),
        {
            "arrayValue": {
                "values": [
                    {"intValue": "1"},
                    {"boolValue": True},
                    {"stringValue": "a"},
                    {},
                    {"arrayValue": {"values": [{"doubleValue": 0.5}]}},
                ]
            }
        },
    ),
    (
        {"a": {"b": False}, "c": -1},
        {
            "kvlistValue": {
                "values": [
                    attribute("a", kvlistValue={"values": [attribute("b", boolValue=False)]}),
                    attribute("c", intValue="-1"),
                ]
            }
        },
    ),
    (WHOLE, {"stringValue": WHOLE}),
    (WHOLE + "x", {"stringValue": WHOLE + LEFT(1)}),
    (CUT, {"stringValue": CUT}),
]


@pytest.mark.parametrize(("value", "wanted"), WIRE, ids=lambda value: type(value).__name__)
def test_any_value_of_a_record_is_an_any_value_of_otlp(value, wanted):
    record = made(message=value, keywords={"k": value}, attributes={"a": value})
    sent = orjson.loads(otlp_record(record, "jarvis"))
    assert exactly(sent["body"]) == exactly(wanted)
    assert sent["attributes"] == [attribute("k", **wanted), attribute("a", **wanted)]
    ParseDict(sent["body"], AnyValue())


@pytest.mark.parametrize(
    "value",
    ["a", True, 5, 1.5, math.inf, None, [1, [None, "a"]], {"a": {"b": [True]}, "c": None}, []],
    ids=str,
)
def test_the_processors_of_the_sdk_get_the_attributes_of_the_wire_as_python_has_them(value):
    record = made(
        keywords={"user.id": value}, user_id="u", attributes={"a": value}, duration_ms=5, source=("f", 3, "g")
    )
    wanted = {
        "jarvis.context.user.id": value,
        "a": value,
        "user.id": "u",
        "jarvis.duration_ms": 5,
        "jarvis.service": "jarvis",
        "code.file.path": "f",
        "code.line.number": 3,
        "code.function.name": "g",
    }
    assert exactly(sdk_attributes(record)) == exactly(wanted)


def test_the_processors_of_the_sdk_get_what_is_no_number_as_one():
    assert str(sdk_attributes(made(keywords={"k": math.nan}))["k"]) == "nan"


# Records


HEAD = '{"timeUnixNano":"1767323045678901000","severityNumber":9,"severityText":"INFO","body":{"stringValue":"done"}'
SPAN_CONTEXT = SpanContext(int(TRACE, 16), int(SPAN, 16), is_remote=False, trace_flags=TraceFlags(3))
ERROR = ErrorInfo("app.NoFundsError", "NoFundsError", "5 < 10", 'Traceback "…"')
SOURCE = ("/app/trade.py", 42, "execute")
PARTS = [
    # parts of a record, its attributes, what comes after those
    ({}, "", ""),
    ({"keywords": {"symbol": "SOL ✗"}}, '{"key":"symbol","value":{"stringValue":"SOL ✗"}}', ""),
    ({"keywords": {"service": 1}}, '{"key":"service","value":{"intValue":"1"}}', ""),
    ({"keywords": {"user.id": True}}, '{"key":"jarvis.context.user.id","value":{"boolValue":true}}', ""),
    ({"keywords": {"jarvis.flag.A": False}}, '{"key":"jarvis.context.jarvis.flag.A","value":{"boolValue":false}}', ""),
    ({"keywords": {"jarvis.context.a": 1}}, '{"key":"jarvis.context.jarvis.context.a","value":{"intValue":"1"}}', ""),
    ({"keywords": {"jarvis.x": None}}, '{"key":"jarvis.x","value":{}}', ""),
    ({"keywords": {'"': 1}}, '{"key":"\\"","value":{"intValue":"1"}}', ""),
    (
        {"keywords": {"a": 1, "b": 2}, "attributes": {"user.id": "u", "a": 3}},
        (
            '{"key":"a","value":{"intValue":"1"}},{"key":"b","value":{"intValue":"2"}}'
            ',{"key":"user.id","value":{"stringValue":"u"}},{"key":"a","value":{"intValue":"3"}}'
        ),
        "",
    ),
    ({"correlation_id": 'c"'}, '{"key":"jarvis.correlation_id","value":{"stringValue":"c\\""}}', ""),
    ({"user_id": "u\\"}, '{"key":"user.id","value":{"stringValue":"u\\\\"}}', ""),
    ({"request_id": "r"}, '{"key":"jarvis.request_id","value":{"stringValue":"r"}}', ""),
    ({"session_id": ""}, '{"key":"session.id","value":{"stringValue":""}}', ""),
    ({"duration_ms": 0}, '{"key":"jarvis.duration_ms","value":{"intValue":"0"}}', ""),
    ({"duration_ms": 1.5}, '{"key":"jarvis.duration_ms","value":{"doubleValue":1.5}}', ""),
    ({"service": "dexter"}, '{"key":"jarvis.service","value":{"stringValue":"dexter"}}', ""),
    (
        {"error": ERROR},
        (
            '{"key":"exception.type","value":{"stringValue":"app.NoFundsError"}}'
            ',{"key":"exception.message","value":{"stringValue":"5 < 10"}}'
            ',{"key":"exception.stacktrace","value":{"stringValue":"Traceback \\"…\\""}}'
        ),
        "",
    ),
    (
        {"source": SOURCE},
        (
            '{"key":"code.file.path","value":{"stringValue":"/app/trade.py"}}'
            ',{"key":"code.line.number","value":{"intValue":"42"}}'
            ',{"key":"code.function.name","value":{"stringValue":"execute"}}'
        ),
        "",
    ),
    ({"uid": "u-1"}, '{"key":"log.record.uid","value":{"stringValue":"u-1"}}', ""),
    ({"span": SPAN_CONTEXT}, "", f',"traceId":"{TRACE}","spanId":"{SPAN}","flags":1'),
    ({"event": 'an."event"'}, "", ',"eventName":"an.\\"event\\""'),
    (
        {"flags": {"B": ("on", True), "A": ("slow", True), "C": ("off", False)}},
        (
            '{"key":"jarvis.flag.B","value":{"stringValue":"on"}}'
            ',{"key":"jarvis.flag.A","value":{"stringValue":"slow"}}'
            ',{"key":"jarvis.flag.C","value":{"stringValue":"off"}}'
            ',{"key":"jarvis.active_flags","value":{"arrayValue":{"values":[{"stringValue":"A"},{"stringValue":"B"}]}}}'
        ),
        "",
    ),
    ({"flags": {"C": ("off", False)}}, '{"key":"jarvis.flag.C","value":{"stringValue":"off"}}', ""),
]


@pytest.mark.parametrize(("parts", "attributes", "rest"), PARTS, ids=lambda part: str(part)[:40])
def test_each_part_of_a_record_is_written_like_this_and_what_is_not_there_is_not(parts, attributes, rest):
    assert otlp_record(made(**parts), "jarvis").decode() == f'{HEAD},"attributes":[{attributes}]{rest}}}'


FULL = made(
    severity=Severity("ERROR", 18, 'BAD"'),
    message="Trade failed ✗",
    service="trading",
    logger="jarvis.trading",
    keywords={"symbol": "SOL", "amount": 100},
    span=SPAN_CONTEXT,
    correlation_id="c1",
    request_id="r1",
    user_id="u1",
    session_id="s1",
    duration_ms=12.5,
    flags={"A": ("on", True), "B": ("off", False)},
    error=ERROR,
    source=SOURCE,
    event="trade.failed",
    attributes={"k": 1},
    uid="0190-7",
)
RESOURCE = {
    "service.name": "jarvis",
    "host.name": "box1",
    "deployment.environment.name": "prod",
    "service.version": "1.2.3",
}


def collected(scope, record):
    """The line that the collector makes of a record."""
    resource = orjson.dumps({"attributes": otlp_attributes(RESOURCE)})
    body = b'{"resourceLogs":[{"resource":%b,"scopeLogs":[%b%b]}]}]}' % (resource, scope, record)
    out = read(Signal.LOGS, Encoding.JSON, body, 0)
    assert (out.refused, out.problem) == (0, "")
    (line,) = out.lines
    return json.loads(line)


def test_the_collector_reads_a_whole_record_as_it_was_made():
    assert collected(otlp_scope("jarvis.trading"), otlp_record(FULL, "jarvis")) == {
        "timestamp": "2026-01-02T03:04:05.678901Z",
        "level": "ERROR",
        "message": "Trade failed ✗",
        "service": "trading",
        "correlation_id": "c1",
        "trace_id": TRACE,
        "span_id": SPAN,
        "request_id": "r1",
        "user_id": "u1",
        "session_id": "s1",
        "active_flags": ["A"],
        "flags": {"A": "on", "B": "off"},
        "duration_ms": 12.5,
        "error": {"type": "NoFundsError", "message": "5 < 10", "stack_trace": 'Traceback "…"'},
        "event": "trade.failed",
        "context": {"symbol": "SOL", "amount": 100, "k": 1},
        "logger": "jarvis.trading",
        "source": {"file": "/app/trade.py", "line": 42, "function": "execute"},
        "_meta": {
            "hostname": "box1",
            "environment": "prod",
            "version": "1.2.3",
            "uid": "0190-7",
            "otlp": {
                "severityNumber": 18,
                "severityText": 'BAD"',
                "attributes": [attribute("exception.type", stringValue="app.NoFundsError")],
            },
            "service.name": "jarvis",
        },
    }


def test_the_line_that_standard_logging_shows_says_what_the_collectors_does():
    line = collected(otlp_scope("jarvis.trading"), otlp_record(FULL, "jarvis"))
    for key in ("otlp", "service.name"):
        del line["_meta"][key]
    shown = log_entry(FULL, RESOURCE)
    assert json.loads(str(shown)) == line
    assert list(shown.context) == ["k", "symbol", "amount"]


ENTRIES = [
    # parts of a record, what its entry has of them
    ({}, {}),
    ({"message": {"a": [1]}}, {"message": '{"a":[1]}'}),
    ({"message": None}, {"message": "null"}),
    ({"message": "\ud800"}, {"message": "\\ud800"}),
    ({"span": SPAN_CONTEXT}, {"correlation_id": TRACE, "trace_id": TRACE, "span_id": SPAN}),
    ({"span": SPAN_CONTEXT, "correlation_id": "c"}, {"correlation_id": "c", "trace_id": TRACE, "span_id": SPAN}),
    ({"attributes": {"a": 1, "b": 1}, "keywords": {"b": 2}}, {"context": {"a": 1, "b": 2}}),
    (
        {"flags": {"B": ("b", True), "A": ("a", True), "C": ("c", False)}},
        {"flags": {"B": "b", "A": "a", "C": "c"}, "active_flags": ["A", "B"]},
    ),
    (
        {"source": ("/\udcff", 3, "f\udcff")},
        {"source": {"file": "/\\udcff", "line": 3, "function": "f\\udcff"}},
    ),
    ({"severity": Severity("INFO", 10, "notice")}, {}),
]


@pytest.mark.parametrize(("parts", "wanted"), ENTRIES, ids=lambda part: str(part)[:40])
def test_a_record_is_shown_as_this_entry(parts, wanted):
    usual = {"timestamp": "2026-01-02T03:04:05.678901Z", "level": "INFO", "message": "done", "service": "jarvis"}
    assert log_entry(made(**parts), {}) == LogEntry(**{**usual, "logger": "web", **wanted})


def test_an_entry_names_the_process_in_any_text():
    entry = log_entry(made(), {"host.name": "b\udcff", "deployment.environment.name": "p\udcff", "service.version": 5})
    assert (entry.hostname, entry.environment, entry.version) == ("b\\udcff", "p\\udcff", "5")


def test_a_record_with_text_that_is_no_unicode_arrives_with_it_escaped():
    bad = "\ud800"
    record = made(
        severity=Severity("INFO", 9, bad),
        message=bad,
        service=bad,
        logger=bad,
        keywords={bad: [bad], 5: 1},
        correlation_id=bad,
        request_id=bad,
        user_id=bad,
        session_id=bad,
        flags={bad: (bad, True)},
        error=ErrorInfo(bad, bad, bad, bad),
        source=(bad, 3, bad),
        event=bad,
        attributes={bad: bad},
    )
    shown = "\\ud800"
    sent = otlp_record(record, "jarvis")
    assert {**orjson.loads(sent), "attributes": None} == {
        "timeUnixNano": str(TIME),
        "severityNumber": 9,
        "severityText": shown,
        "body": {"stringValue": shown},
        "attributes": None,
        "eventName": shown,
    }
    assert named(sent) == [
        (shown, {"arrayValue": {"values": [{"stringValue": shown}]}}),
        ("5", {"intValue": "1"}),
        (shown, {"stringValue": shown}),
        ("jarvis.correlation_id", {"stringValue": shown}),
        ("user.id", {"stringValue": shown}),
        ("jarvis.request_id", {"stringValue": shown}),
        ("session.id", {"stringValue": shown}),
        (f"jarvis.flag.{shown}", {"stringValue": shown}),
        ("jarvis.active_flags", {"arrayValue": {"values": [{"stringValue": shown}]}}),
        ("jarvis.service", {"stringValue": shown}),
        ("exception.type", {"stringValue": shown}),
        ("exception.message", {"stringValue": shown}),
        ("exception.stacktrace", {"stringValue": shown}),
        ("code.file.path", {"stringValue": shown}),
        ("code.line.number", {"intValue": "3"}),
        ("code.function.name", {"stringValue": shown}),
    ]
    entry = log_entry(record, {})
    assert (entry.service, entry.logger, entry.correlation_id) == (shown, shown, shown)
    assert (entry.error_type, entry.error_message, entry.stack_trace) == (shown, shown, shown)
    assert (entry.event, entry.active_flags, entry.flags) == (shown, [shown], {shown: shown})


def filled(size):
    """A record of exactly so many bytes, in texts that are all within their bounds, and how long the last is."""
    texts = dict.fromkeys("abcdefgh", "x" * 30_000)
    last = size - len(otlp_record(made(keywords={**texts, "z": ""}), "jarvis"))
    return made(keywords={**texts, "z": "x" * last}), last


def test_a_record_of_256_kib_leaves_whole():
    record, last = filled(RECORD)
    sent = otlp_record(record, "jarvis")
    assert len(sent) == RECORD
    assert named(sent) == [(key, {"stringValue": "x" * 30_000}) for key in "abcdefgh"] + [
        ("z", {"stringValue": "x" * last})
    ]


def test_of_a_record_of_one_byte_more_all_texts_share_65536_characters_and_what_identifies_it_goes_first():
    record, _ = filled(RECORD + 1)
    record.correlation_id = "c" * 6_000
    record.attributes = {"k": "y" * 100}
    room = 65_536 - len("INFO" + "jarvis" + "web" + "done" + "k" + "ab") - 6_000 - 100 - 30_000
    sent = otlp_record(record, "jarvis")
    assert named(sent) == [
        ("a", {"stringValue": "x" * 30_000}),
        ("b", {"stringValue": "x" * room + LEFT(30_000 - room)}),
        # no key has room any more: c to h, and z
        ("…", {"stringValue": LEFT(7)}),
        ("k", {"stringValue": "y" * 100}),
        ("jarvis.correlation_id", {"stringValue": "c" * 6_000}),
    ]


@pytest.mark.parametrize(("count", "nested"), [(1000, [1]), (1001, [LEFT(1)])])
def test_up_to_1000_keywords_have_bounds_of_their_own_and_more_share_one(count, nested):
    keywords = {"first": [1], **{f"k{number}": number for number in range(count - 1)}}
    sent = named(otlp_record(made(keywords=keywords), "jarvis"))
    values = [{"intValue": "1"} if item == 1 else {"stringValue": item} for item in nested]
    assert sent[0] == ("first", {"arrayValue": {"values": values}})
    assert sent[1:1000] == [(f"k{number}", {"intValue": str(number)}) for number in range(999)]
    assert sent[1000:] == ([] if count == 1000 else [("…", {"stringValue": LEFT(1)})])


# Redaction


def test_secrets_are_taken_out_of_every_part_and_their_places_are_told():
    record = made(
        message="pwd=hunter22",
        keywords={"password": "hunter22", "many": ["pwd=hunter22", 5]},
        error=ErrorInfo("E", "E", "a pwd=hunter22", "b pwd=hunter22"),
        attributes={"k": "pwd=hunter22", "n": 1},
        source=SOURCE,
    )
    redact(record, Redactor())
    assert record == made(
        message="pwd=[redacted pwd]",
        keywords={"password": "[redacted password]", "many": ["pwd=[redacted pwd]", 5]},
        error=ErrorInfo("E", "E", "a pwd=[redacted pwd]", "b pwd=[redacted pwd]"),
        attributes={
            "k": "pwd=[redacted pwd]",
            "n": 1,
            "jarvis.redacted": [
                "message",
                "context.password",
                "context.many[0]",
                "error.message",
                "error.stack_trace",
                "attributes.k",
            ],
        },
        source=SOURCE,
    )


@pytest.mark.parametrize(
    ("parts", "place"),
    [
        ({"message": "pwd=hunter22"}, "message"),
        ({"keywords": {"a": "pwd=hunter22"}}, "context.a"),
        ({"error": ErrorInfo("E", "E", "pwd=hunter22", "")}, "error.message"),
        ({"error": ErrorInfo("E", "E", "", "pwd=hunter22")}, "error.stack_trace"),
        ({"attributes": {"a": "pwd=hunter22"}}, "attributes.a"),
    ],
    ids=["message", "keywords", "error", "stack trace", "attributes"],
)
def test_a_secret_in_any_one_part_is_taken_out(parts, place):
    record = made(**parts)
    redact(record, Redactor())
    assert record.attributes["jarvis.redacted"] == [place]
    assert "hunter22" not in repr(record)


def test_a_record_without_a_secret_keeps_its_values_and_gets_no_attribute():
    text = "é" * TEXT  # the longest that is whole
    given = {"text": text, "number": 2**70, "price": 1.5, "ok": True, "none": None}
    record = made(message=text, keywords=given, attributes=given, error=ERROR)
    redact(record, Redactor())
    assert record == made(message=text, keywords=given, attributes=given, error=ERROR)
    assert record.message is record.keywords["text"] is record.attributes["text"] is text


def test_what_is_no_plain_value_is_cleaned_before_it_is_searched():
    secret = collections.deque([b"pwd=hunter22"])
    record = made(message=secret, keywords={"k": secret, "t": WHOLE + "xx"}, attributes={"k": secret})
    redact(record, Redactor())
    cleaned = ["pwd=[redacted pwd]"]
    assert (record.message, record.keywords) == (cleaned, {"k": cleaned, "t": WHOLE + LEFT(2)})
    assert record.attributes == {"k": cleaned, "jarvis.redacted": ["message[0]", "context.k[0]", "attributes.k[0]"]}


@pytest.mark.parametrize(("count", "nested"), [(1000, [1]), (1001, [LEFT(1)])])
def test_up_to_1000_values_are_cleaned_each_by_itself_and_more_together(count, nested):
    given = {"first": (1,), **{f"k{number}": number for number in range(count - 1)}}
    record = made(keywords=given, attributes=given)
    redact(record, Redactor())
    wanted = {"first": nested, **{f"k{number}": number for number in range(999)}}
    assert record.keywords == record.attributes == (wanted if count == 1000 else {**wanted, "…": LEFT(1)})


def test_a_secret_taken_out_of_a_text_that_was_cut_hides_not_how_much_was():
    record = made(message=f"pwd={'h' * 21} {'x' * 40_000}")
    redact(record, Redactor())
    body = f"pwd=[redacted pwd] {'x' * (TEXT - 26)}{LEFT(7258)}"
    assert TEXT < len(body) < TEXT + len(LEFT(7258))
    assert orjson.loads(otlp_record(record, "jarvis"))["body"] == {"stringValue": body}


# The smaller pieces


@pytest.mark.parametrize(
    ("levelno", "severity"),
    [
        (-5, ("DEBUG", 5)),
        (9, ("DEBUG", 5)),
        (10, ("DEBUG", 5)),
        (19, ("DEBUG", 5)),
        (20, ("INFO", 9)),
        (21, ("INFO", 9)),
        (30, ("WARNING", 13)),
        (39, ("WARNING", 13)),
        (40, ("ERROR", 17)),
        (49, ("ERROR", 17)),
        (50, ("CRITICAL", 21)),
        (1000, ("CRITICAL", 21)),
    ],
)
def test_a_level_between_two_counts_as_the_lower(levelno, severity):
    level, number = severity
    assert severity_of(levelno) == (level, number, level)


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        ("symbol", True),
        ("service", True),
        ("jarvis.x", True),
        ("user.id", False),
        ("jarvis.flag.A", False),
        ("jarvis.context.a", False),
        ("correlation_id", False),
        ("duration_ms", False),
        ("request_id", False),
        ("session_id", False),
        ("user_id", False),
    ],
)
def test_a_keyword_is_plain_unless_its_name_is_that_of_another_part(key, plain):
    assert is_plain_key(key) is plain


ON, OFF = ("on", True), ("off", False)


@pytest.mark.parametrize(
    ("evaluated", "declared", "merged"),
    [
        ({}, {}, {}),
        ({"A": ON}, {}, {"A": ON}),
        ({}, {"A": ON}, {"A": ON}),
        ({"A": ON, "B": OFF}, {"C": OFF, "A": OFF}, {"A": ON, "B": OFF, "C": OFF}),
        (dict.fromkeys(range(63), ON), {0: OFF, 64: OFF, 65: OFF}, {**dict.fromkeys(range(63), ON), 64: OFF}),
        (dict.fromkeys(range(64), ON), {0: OFF, 64: OFF}, dict.fromkeys(range(64), ON)),
    ],
    ids=["none", "evaluated", "declared", "both", "room for one", "no room"],
)
def test_evaluated_flags_come_before_declared_ones_and_64_are_all(evaluated, declared, merged):
    found = merge_flags(evaluated, declared)
    assert list(found.items()) == list(merged.items())
    evaluated["later"] = ON
    assert found == merged


def test_the_ids_of_a_span_have_all_their_digits():
    assert span_ids(1, 2, 0) == f',"traceId":"{1:032x}","spanId":"{2:016x}","flags":0'
    assert span_ids(1, 2, 2) == f',"traceId":"{1:032x}","spanId":"{2:016x}","flags":0'


def test_an_operation_of_which_nothing_is_known_has_no_attributes():
    assert operation_attributes(None, None, None, None, {}) == ""
    assert operation_attributes("c", None, None, None, {}).startswith('{"key":"jarvis.correlation_id"')


def test_a_place_in_the_code_that_is_no_unicode_is_escaped():
    assert source_attributes(("/\udcff", 3, "f")).encode().startswith(b'{"key":"code.file.path"')


SCOPES = [
    (("web",), {"scope": {"name": "web"}}),
    (("\ud800", None, None, {}), {"scope": {"name": "\\ud800"}}),
    (("web", "1\ud800"), {"scope": {"name": "web", "version": "1\\ud800"}}),
    (("web", "", "https://s/\ud800"), {"scope": {"name": "web"}, "schemaUrl": "https://s/\\ud800"}),
    (
        ("web", None, "", {"\ud800": (1, b"x")}),
        {
            "scope": {
                "name": "web",
                "attributes": [attribute("\\ud800", arrayValue={"values": [{"intValue": "1"}, {"stringValue": "x"}]})],
            }
        },
    ),
]


@pytest.mark.parametrize(("given", "wanted"), SCOPES, ids=range(len(SCOPES)))
def test_a_scope_is_written_with_what_it_has_and_left_open_for_records(given, wanted):
    scope = otlp_scope(*given)
    assert scope.endswith(b',"logRecords":[')
    tree = orjson.loads(scope + b"]}")
    assert tree == {**wanted, "logRecords": []}
    ParseDict(tree["scope"], InstrumentationScope())


def test_the_attributes_of_a_resource_are_those_of_otlp():
    given = types.MappingProxyType({"a": "x", "n": 5, "d": math.nan, "l": ["y"], "b": True, "m": {"k": None}})
    found = otlp_attributes(given)
    assert found == [
        attribute("a", stringValue="x"),
        attribute("n", intValue="5"),
        attribute("d", doubleValue="NaN"),
        attribute("l", arrayValue={"values": [{"stringValue": "y"}]}),
        attribute("b", boolValue=True),
        attribute("m", kvlistValue={"values": [attribute("k")]}),
    ]
    ParseDict({"attributes": found}, Resource())
