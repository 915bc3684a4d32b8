"""The log line: what each OTLP record looks like in it, and that nothing of the record is lost."""

import base64
import json
import math
import re
import subprocess
import sys

import orjson
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from jarvis_collector.otlp import BadRequestError, Encoding, Signal, read
from jarvis_collector.record import (
    LINE_KEYS,
    LogEntry,
    Resource,
    Scope,
    format_timestamp,
    logs_request,
    parse_timestamp,
    timestamp_of,
    timestamp_range,
)
from jarvis_collector.values import Attributes
from tests.wire import field

ARRIVAL = 1_767_225_600_000_000_000  # 2026-01-01
TIME = 1_767_323_045_678_901_234  # 2026-01-02T03:04:05.678901234Z
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def attribute(key, value):
    kinds = {str: "stringValue", bool: "boolValue", int: "intValue", float: "doubleValue"}
    if isinstance(value, list):
        return {"key": key, "value": {"arrayValue": {"values": [attribute("", item)["value"] for item in value]}}}
    if isinstance(value, dict):
        return {"key": key, "value": value}
    return {"key": key, "value": {kinds[type(value)]: str(value) if type(value) is int else value}}


def attributes(**named):
    return [attribute(key.replace("__", "."), value) for key, value in named.items()]


def request(record, resource=None, scope=None):
    return {
        "resourceLogs": [{"resource": resource or {}, "scopeLogs": [{"scope": scope or {}, "logRecords": [record]}]}]
    }


def lines_of(content, signal=Signal.LOGS):
    out = read(signal, Encoding.JSON, content if isinstance(content, bytes) else orjson.dumps(content), ARRIVAL)
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in out.lines)
    return [json.loads(line) for line in out.lines]


def line_of(record, **groups):
    (line,) = lines_of(request(record, **groups))
    return line


def to_protobuf(content, kind=ExportLogsServiceRequest):
    """OTLP/JSON through the protobuf library's own strict parser, which wants ids in base64."""

    def ids(node):
        if isinstance(node, list):
            return [ids(item) for item in node]
        if isinstance(node, dict):
            return {
                key: base64.b64encode(bytes.fromhex(value)).decode()
                if key in ("traceId", "spanId", "parentSpanId")
                else ids(value)
                for key, value in node.items()
            }
        return node

    return ParseDict(ids(content), kind())


def from_protobuf(message):
    def ids(node):
        if isinstance(node, list):
            return [ids(item) for item in node]
        if isinstance(node, dict):
            return {
                key: base64.b64decode(value).hex().upper() if key in ("traceId", "spanId") else ids(value)
                for key, value in node.items()
            }
        return node

    return ids(MessageToDict(message))


FULL = {
    "timeUnixNano": str(TIME),
    "observedTimeUnixNano": str(TIME + 1000),
    "severityNumber": 17,
    "severityText": "ERROR",
    "body": {"stringValue": "Trade failed ✗"},
    "attributes": attributes(
        jarvis__service="trading",
        jarvis__correlation_id="trade-abc123",
        jarvis__request_id="r1",
        user__id="u1",
        session__id="s1",
        jarvis__active_flags=["A", "B"],
        jarvis__flag__A="on",
        jarvis__flag__C="off",
        jarvis__duration_ms=12.5,
        exception__type="jarvis.errors.InsufficientBalanceError",
        exception__message="balance 5 < 10",
        exception__stacktrace="Traceback…",
        symbol="SOL",
        amount=100,
        code__file__path="/app/trade.py",
        code__line__number=42,
        code__function__name="execute",
        log__record__uid="0190-uid",
    ),
    "flags": 1,
    "traceId": TRACE.upper(),
    "spanId": SPAN,
    "eventName": "trade.failed",
}
RESOURCE = {
    "attributes": attributes(
        service__name="jarvis",
        host__name="box1",
        deployment__environment__name="prod",
        service__version="1.2.3",
        process__pid=7,
    )
}
SCOPE = {"name": "jarvis.trading", "version": "0.1"}
FULL_LINE = (
    '{"timestamp":"2026-01-02T03:04:05.678901Z","level":"ERROR","message":"Trade failed ✗","service":"trading",'
    f'"correlation_id":"trade-abc123","trace_id":"{TRACE}","span_id":"{SPAN}",'
    '"request_id":"r1","user_id":"u1","session_id":"s1","active_flags":["A","B"],"flags":{"A":"on","C":"off"},'
    '"duration_ms":12.5,"error":{"type":"InsufficientBalanceError","message":"balance 5 < 10",'
    '"stack_trace":"Traceback…"},"event":"trade.failed","context":{"symbol":"SOL","amount":100},'
    '"logger":"jarvis.trading","source":{"file":"/app/trade.py","line":42,"function":"execute"},'
    '"_meta":{"hostname":"box1","environment":"prod","version":"1.2.3","uid":"0190-uid",'
    '"otlp":{"nanos":234,"observedTimeUnixNano":"1767323045678902234",'
    '"attributes":[{"key":"exception.type","value":{"stringValue":"jarvis.errors.InsufficientBalanceError"}}],'
    '"scope":{"version":"0.1"}},"service.name":"jarvis","process.pid":7}}\n'
)


@pytest.mark.parametrize("encoding", Encoding)
def test_a_record_with_everything_is_exactly_this_line_in_either_encoding(encoding):
    content = request(FULL, RESOURCE, SCOPE)
    body = orjson.dumps(content) if encoding is Encoding.JSON else to_protobuf(content).SerializeToString()
    assert [line.decode() for line in read(Signal.LOGS, encoding, body, ARRIVAL).lines] == [FULL_LINE]


def test_the_keys_of_a_line_stand_in_their_order():
    assert tuple(json.loads(FULL_LINE)) == LINE_KEYS


def test_the_smallest_record_has_only_what_is_always_there():
    assert line_of({"timeUnixNano": str(TIME), "severityNumber": 9, "severityText": "INFO"}) | {"_meta": None} == {
        "timestamp": "2026-01-02T03:04:05.678901Z",
        "level": "INFO",
        "service": "unknown_service",
        "active_flags": [],
        "context": {},
        "_meta": None,
    }


@pytest.mark.parametrize(
    ("number", "level"),
    [
        (0, "INFO"),
        (1, "DEBUG"),
        (5, "DEBUG"),
        (8, "DEBUG"),
        (9, "INFO"),
        (12, "INFO"),
        (13, "WARNING"),
        (16, "WARNING"),
        (17, "ERROR"),
        (20, "ERROR"),
        (21, "CRITICAL"),
        (24, "CRITICAL"),
        (99, "CRITICAL"),
        (-1, "INFO"),
        ("SEVERITY_NUMBER_TRACE", "DEBUG"),
        ("SEVERITY_NUMBER_WARN3", "WARNING"),
        ("SEVERITY_NUMBER_FATAL4", "CRITICAL"),
    ],
)
def test_the_level_follows_from_the_severity_number(number, level):
    assert line_of({"severityNumber": number})["level"] == level


def test_a_record_without_a_time_has_the_time_of_its_observation_or_else_of_its_arrival():
    assert line_of({"observedTimeUnixNano": str(TIME)})["timestamp"] == "2026-01-02T03:04:05.678901Z"
    assert line_of({})["timestamp"] == "2026-01-01T00:00:00.000000Z"


def test_the_correlation_id_of_other_clients_is_the_trace_id():
    assert line_of({"traceId": TRACE})["correlation_id"] == TRACE
    assert "correlation_id" not in line_of({"traceId": "0" * 32})


@pytest.mark.parametrize("record", [{"traceId": "0" * 32, "spanId": "0" * 16}, {"traceId": "abcd", "spanId": "ab"}])
def test_an_invalid_id_is_kept_but_not_shown_as_one(record):
    line = line_of(record)
    assert not {"trace_id", "span_id", "correlation_id"} & set(line)
    assert logs_request([line])["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["traceId"] == record["traceId"]


def test_a_record_sent_again_without_a_uid_gets_the_same_uid():
    body = orjson.dumps(request({"body": {"stringValue": "x"}}, RESOURCE))
    first, later = (json.loads(read(Signal.LOGS, Encoding.JSON, body, at).lines[0]) for at in (ARRIVAL, TIME))
    assert first["timestamp"] != later["timestamp"]
    assert first["_meta"]["uid"] == later["_meta"]["uid"]
    assert re.fullmatch("#[0-9a-f]{32}", first["_meta"]["uid"])


def test_the_uid_depends_on_resource_scope_and_record():
    variants = [
        request({"body": {"stringValue": "x"}}),
        request({"body": {"stringValue": "y"}}),
        request({"body": {"stringValue": "x"}}, RESOURCE),
        request({"body": {"stringValue": "x"}}, None, SCOPE),
        request({"body": {"stringValue": "x"}, "timeUnixNano": str(TIME)}),
        request({"body": {"stringValue": "x"}, "timeUnixNano": str(TIME + 1)}),
        request({"body": {"stringValue": "x"}, "timeUnixNano": str(TIME + 1000)}),
        request({"body": {"stringValue": "x"}, "observedTimeUnixNano": str(TIME)}),
        request({"body": {"stringValue": "x"}, "observedTimeUnixNano": str(TIME + 1000)}),
    ]
    assert len({lines_of(variant)[0]["_meta"]["uid"] for variant in variants}) == len(variants)


def test_the_service_is_the_loggers_where_it_differs_from_the_process():
    assert line_of({}, resource=RESOURCE)["service"] == "jarvis"
    line = line_of({"attributes": attributes(jarvis__service="dexter")}, resource=RESOURCE)
    assert (line["service"], line["_meta"]["service.name"]) == ("dexter", "jarvis")


def test_values_that_json_cannot_carry_are_shown_by_name_and_kept_exactly():
    line = line_of(
        {
            "body": {"kvlistValue": {"values": [attribute("n", 1)]}},
            "attributes": [
                attribute("nan", {"doubleValue": "NaN"}),
                attribute("inf", {"doubleValue": "-Infinity"}),
                attribute("raw", {"bytesValue": "AP8="}),
                attribute("nested", {"kvlistValue": {"values": [attribute("b", {"bytesValue": "AA=="})]}}),
                attribute("twice", 1),
                attribute("twice", 2),
                attribute("empty", {}),
            ],
        }
    )
    assert line["message"] == '{"n":1}'
    assert line["context"] == {
        "nan": "NaN",
        "inf": "-Infinity",
        "raw": "AP8=",
        "nested": {"b": "AA=="},
        "twice": 2,
        "empty": None,
    }
    assert [pair["key"] for pair in line["_meta"]["otlp"]["attributes"]] == [
        "nan",
        "inf",
        "raw",
        "nested",
        "twice",
        "twice",
    ]


def test_a_known_attribute_of_another_type_stays_in_the_context():
    named = attributes(user__id=5, jarvis__duration_ms="fast", jarvis__active_flags="A", exception__type=1)
    line = line_of({"attributes": named})
    assert line["context"] == {
        "user.id": 5,
        "jarvis.duration_ms": "fast",
        "jarvis.active_flags": "A",
        "exception.type": 1,
    }
    assert line["active_flags"] == []


def test_a_keyword_named_like_another_part_of_the_line_stands_in_the_context_under_its_own_name():
    named = {"user.id": "u1", "jarvis.context.user.id": "mine", "jarvis.context.log.record.uid": 5}
    line = line_of({"attributes": [attribute(key, value) for key, value in named.items()]})
    assert (line["user_id"], line["context"]) == ("u1", {"user.id": "mine", "log.record.uid": 5})


def test_at_most_64_flags_are_listed_and_the_others_stay_in_the_context():
    line = line_of({"attributes": [attribute(f"jarvis.flag.F{i}", "on") for i in range(70)]})
    assert len(line["flags"]) == 64
    assert sorted(line["context"]) == [f"jarvis.flag.F{i}" for i in range(64, 70)]


def test_without_msgspec_the_lines_are_the_same():
    content = orjson.dumps(request(FULL, RESOURCE, SCOPE)).decode()
    code = f"""
import sys
sys.modules["msgspec"] = None
from jarvis_collector.otlp import Encoding, Signal, read
sys.stdout.buffer.write(read(Signal.LOGS, Encoding.JSON, {content!r}.encode(), {ARRIVAL}).lines[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == FULL_LINE


HOSTILE_RECORDS = [
    {"attributes": attributes(ok=1), "body": {"stringValue": 5}},
    {"timeUnixNano": "yesterday"},
    {"timeUnixNano": -1},
    {"timeUnixNano": "1_000"},
    {"timeUnixNano": "\u0661"},
    {"timeUnixNano": 1.5},
    {"traceId": "xyz"},
    {"traceId": f" {TRACE} "},
    {"attributes": [{"key": "k", "value": {"intValue": str(2**63)}}]},
    {"attributes": [{"key": "k", "value": {"bytesValue": "!"}}]},
    {"attributes": "none"},
    {"attributes": [None]},
    {"severityNumber": "LOUD"},
    {"attributes": [attribute(f"k{i}", i) for i in range(5000)]},
    None,
    7,
]


@pytest.mark.parametrize("bad", HOSTILE_RECORDS, ids=lambda bad: str(bad)[:40])
def test_one_bad_record_is_refused_alone_and_named(bad):
    content = request({"body": {"stringValue": "before"}})
    content["resourceLogs"][0]["scopeLogs"][0]["logRecords"] += [bad, {"body": {"stringValue": "after"}}]
    out = read(Signal.LOGS, Encoding.JSON, orjson.dumps(content), ARRIVAL)
    assert [json.loads(line)["message"] for line in out.lines] == ["before", "after"]
    assert out.refused == 1
    assert out.problem.startswith("resourceLogs[0].scopeLogs[0].logRecords[1]: ")


def nested(depth):
    value = {"stringValue": "deep"}
    for _ in range(depth):
        value = {"arrayValue": {"values": [value]}}
    return value


def with_neighbours(bad_json):
    body = orjson.dumps(request({"body": {"stringValue": "before"}}))
    return body.replace(b"]}]}]}", b"," + bad_json + b',{"body":{"stringValue":"after"}}]}]}]}')


@pytest.mark.parametrize("depth", [65, 200, 100_000])
def test_a_value_nested_too_deep_costs_only_its_own_record(depth):
    deep = b'{"arrayValue":{"values":[' * depth + b"{}" + b"]}}" * depth
    out = read(Signal.LOGS, Encoding.JSON, with_neighbours(b'{"body":' + deep + b"}"), ARRIVAL)
    assert ([json.loads(line)["message"] for line in out.lines], out.refused) == (["before", "after"], 1)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [(b"lone \\ud83d surrogate", "lone \\ud83d surrogate"), (b"broken \xff utf-8", "broken \ufffd utf-8")],
)
def test_text_that_is_not_unicode_is_replaced_visibly(raw, shown):
    lines = lines_of(with_neighbours(b'{"body":{"stringValue":"' + raw + b'"}}'))
    assert [line["message"] for line in lines] == ["before", shown, "after"]


def deep_message(depth):
    value = b""
    for _ in range(depth):
        value = field(5, field(1, value))
    return value


@pytest.mark.parametrize(
    "bad",
    [field(3, b"\xff\xfe broken"), field(5, deep_message(60)), field(5, deep_message(100_000)), field(6, b"\x0f")],
    ids=["utf-8", "deep", "deeper", "wire"],
)
def test_a_protobuf_record_that_the_parser_refuses_is_refused_alone(bad):
    before, after = (field(2, field(5, field(1, text))) for text in (b"before", b"after"))
    resource = field(1, field(1, field(1, b"service.name") + field(2, field(1, b"trading"))))
    body = field(1, resource + field(2, before + field(2, bad) + after))
    out = read(Signal.LOGS, Encoding.PROTOBUF, body, ARRIVAL)
    shown = [(json.loads(line)["message"], json.loads(line)["service"]) for line in out.lines]
    assert (shown, out.refused) == ([("before", "trading"), ("after", "trading")], 1)


def test_a_resource_that_the_parser_refuses_costs_its_own_records_only():
    bad = field(1, field(1, field(1, field(1, b"\xff"))) + field(2, field(2, b"") + field(2, b"")))
    good = field(1, field(2, field(2, b"")))
    out = read(Signal.LOGS, Encoding.PROTOBUF, bad + good, ARRIVAL)
    assert (len(out.lines), out.refused) == (1, 2)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (Encoding.JSON, b""),
        (Encoding.JSON, b"{"),
        (Encoding.JSON, b"[]"),
        (Encoding.JSON, b'{"resourceLogs":5}'),
        (Encoding.PROTOBUF, b"\xff"),
        (Encoding.PROTOBUF, b"\n\x05ab"),
        (Encoding.JSON, b"[" * 200000),
    ],
)
@pytest.mark.parametrize("signal", [Signal.LOGS])
def test_a_body_that_is_no_request_is_a_bad_request(encoding, body, signal):
    with pytest.raises(BadRequestError):
        read(signal, encoding, body, ARRIVAL)


@pytest.mark.parametrize("signal", Signal)
def test_an_empty_request_has_no_lines(signal):
    assert read(signal, Encoding.JSON, b"{}", ARRIVAL).lines == []
    assert read(signal, Encoding.PROTOBUF, b"", ARRIVAL).lines == []


# --- OTLP to lines and back

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.sampled_from(
    [
        "a",
        "b",
        "user.id",
        "session.id",
        "jarvis.service",
        "jarvis.correlation_id",
        "jarvis.request_id",
        "uid",
        "jarvis.active_flags",
        "jarvis.flag.X",
        "jarvis.flag.",
        "jarvis.duration_ms",
        "exception.type",
        "otlp",
        "exception.message",
        "exception.stacktrace",
        "code.file.path",
        "code.line.number",
        "code.function.name",
        "log.record.uid",
        "jarvis.context.user.id",
        "jarvis.context.a",
        "jarvis.context.",
        "jarvis.context.jarvis.context.a",
        "service.name",
        "host.name",
        "deployment.environment.name",
        "service.version",
        "hostname",
    ]
)
keys = names | texts
scalars = st.one_of(
    st.builds(AnyValue),
    st.builds(AnyValue, string_value=texts | st.sampled_from(["#1", "a.B", TRACE, "unknown_service", "NaN"])),
    st.builds(AnyValue, bool_value=st.booleans()),
    st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)),
    st.builds(AnyValue, double_value=st.floats()),
    st.builds(AnyValue, bytes_value=st.binary(max_size=6)),
)


def pairs(values):
    return st.lists(st.builds(KeyValue, key=keys, value=values), max_size=6)


values = st.recursive(
    scalars,
    lambda inner: (
        st.builds(AnyValue, array_value=st.builds(ArrayValue, values=st.lists(inner, max_size=3)))
        | st.builds(AnyValue, kvlist_value=st.builds(KeyValueList, values=pairs(inner)))
    ),
    max_leaves=6,
)
times = st.just(0) | st.integers(0, 2**64 - 1) | st.just(TIME)
counts = st.just(0) | st.integers(0, 2**32 - 1)


def ids(size):
    return st.sampled_from([b"", bytes(size), b"\xab"]) | st.binary(min_size=size, max_size=size)


@st.composite
def requests(draw):
    message = ExportLogsServiceRequest()
    for _ in range(draw(st.integers(0, 2))):
        group = message.resource_logs.add(schema_url=draw(texts))
        group.resource.attributes.extend(draw(pairs(values)))
        group.resource.dropped_attributes_count = draw(counts)
        if draw(st.booleans()):
            group.resource.entity_refs.add(type=draw(texts), id_keys=draw(st.lists(texts, max_size=2)))
        for _ in range(draw(st.integers(0, 2))):
            scope_group = group.scope_logs.add(schema_url=draw(texts))
            scope_group.scope.name = draw(texts)
            scope_group.scope.version = draw(texts)
            scope_group.scope.attributes.extend(draw(pairs(values)))
            scope_group.scope.dropped_attributes_count = draw(counts)
            for _ in range(draw(st.integers(0, 3))):
                scope_group.log_records.add(
                    time_unix_nano=draw(times),
                    observed_time_unix_nano=draw(times),
                    severity_number=draw(st.integers(-2, 26)),
                    severity_text=draw(st.sampled_from(["", "INFO", "WARN", "ERROR"])),
                    body=draw(values),
                    attributes=draw(pairs(values)),
                    dropped_attributes_count=draw(counts),
                    flags=draw(st.sampled_from([0, 1, 257])),
                    trace_id=draw(ids(16)),
                    span_id=draw(ids(8)),
                    event_name=draw(texts),
                )
    return message


def settle(value):
    """Makes equal what OTLP means as equal: one NaN, no difference between an absent and an empty value."""
    kind = value.WhichOneof("value")
    if kind == "double_value" and math.isnan(value.double_value):
        value.double_value = math.nan
    for item in value.array_value.values if kind == "array_value" else ():
        settle(item)
    for pair in value.kvlist_value.values if kind == "kvlist_value" else ():
        settle(pair.value)
        pair.value.SetInParent()


def settled(attributes_):
    ordered = sorted(attributes_, key=lambda pair: pair.key)
    for pair in ordered:
        settle(pair.value)
        pair.value.SetInParent()
    return [pair.SerializeToString(deterministic=True) for pair in ordered]


def said(message):
    """All that a request says, whatever its grouping and order."""
    out = []
    for group in message.resource_logs:
        for scope_group in group.scope_logs:
            for record in scope_group.log_records:
                settle(record.body)
                parts = [
                    settled(record.attributes),
                    settled(group.resource.attributes),
                    settled(scope_group.scope.attributes),
                ]
                copies = [type(each)() for each in (record, group.resource, scope_group.scope)]
                for copy, each in zip(copies, (record, group.resource, scope_group.scope), strict=True):
                    copy.CopyFrom(each)
                    copy.ClearField("attributes")
                copies[0].body.SetInParent()
                rest = [copy.SerializeToString(deterministic=True) for copy in copies]
                out.append((parts, rest, group.schema_url, scope_group.schema_url))
    return sorted(out)


def back(out):
    assert (out.refused, out.problem) == (0, "")
    return to_protobuf(logs_request(map(orjson.loads, out.lines)))


@settings(deadline=None)
@given(requests())
def test_protobuf_to_lines_and_back_is_equal(message):
    out = read(Signal.LOGS, Encoding.PROTOBUF, message.SerializeToString(), ARRIVAL)
    assert said(back(out)) == said(message)
    for line in out.lines:
        assert line.count(b"\n") == 1
        assert [key for key in LINE_KEYS if key in json.loads(line)] == list(json.loads(line))
        assert timestamp_of(line) == json.loads(line)["timestamp"].encode()


@settings(deadline=None)
@given(requests())
def test_json_to_lines_and_back_is_equal(message):
    out = read(Signal.LOGS, Encoding.JSON, orjson.dumps(from_protobuf(message)), ARRIVAL)
    assert said(back(out)) == said(message)


@pytest.mark.parametrize(
    ("number", "text"), [(5, "DEBUG"), (9, "INFO"), (13, "WARNING"), (17, "ERROR"), (21, "CRITICAL")]
)
def test_what_the_rest_of_the_line_implies_is_not_said_again(number, text):
    """Nor what is at OTLP's default."""
    record = {"timeUnixNano": str(TIME // 1000 * 1000), "severityNumber": number, "severityText": text}
    resource = {"attributes": attributes(service__name="s")}
    for more in ({}, {"traceId": TRACE, "spanId": SPAN, "flags": 1}):
        assert line_of({**record, **more}, resource=resource)["_meta"].keys() == {"uid"}


UNIMPLIED = [
    # a record's attributes, what the line shows of them, what its _meta.otlp adds
    ({"jarvis.correlation_id": "c"}, {"correlation_id": "c"}, {}),
    ({"jarvis.correlation_id": TRACE}, {"correlation_id": TRACE}, {"attributes": ["jarvis.correlation_id"]}),
    ({"jarvis.correlation_id": ""}, {"correlation_id": TRACE}, {"attributes": ["jarvis.correlation_id"]}),
    ({"jarvis.active_flags": ["A", "B"]}, {"active_flags": ["A", "B"]}, {}),
    ({"jarvis.active_flags": ["B", "A"]}, {"active_flags": ["A", "B"]}, {"attributes": ["jarvis.active_flags"]}),
    ({"jarvis.active_flags": ["A", 1]}, {"context": {"jarvis.active_flags": ["A", 1]}}, {}),
    ({"jarvis.flag.A": "on", "jarvis.flag.B": 5}, {"flags": {"A": "on"}, "context": {"jarvis.flag.B": 5}}, {}),
    ({"jarvis.other": 5}, {"context": {"jarvis.other": 5}}, {}),
    ({"jarvis.context.user.id": 5}, {"context": {"user.id": 5}}, {"context": ["user.id"]}),
    ({"a": 1, "jarvis.context.a": 2}, {"context": {"a": 1}}, {"attributes": ["jarvis.context.a"]}),
    ({"jarvis.duration_ms": 0}, {"duration_ms": 0}, {}),
    ({"jarvis.duration_ms": 0.5}, {"duration_ms": 0.5}, {}),
    ({"code.line.number": 0}, {"source": {"line": 0}}, {}),
    ({"code.function.name": "f", "code.line.number": 5}, {"source": {"line": 5, "function": "f"}}, {}),
    ({"code.file.path": ""}, {}, {"attributes": ["code.file.path"]}),
    ({"exception.type": "KeyError"}, {"error": {"type": "KeyError"}}, {}),
    ({"exception.type": "a.B"}, {"error": {"type": "B"}}, {"attributes": ["exception.type"]}),
    ({"exception.type": "a."}, {"error": {"type": "a."}}, {}),
    ({"exception.message": "m"}, {"error": {"message": "m"}}, {}),
    ({"log.record.uid": "#1"}, {}, {"attributes": ["log.record.uid"]}),
    ({"jarvis.service": "dexter"}, {"service": "dexter"}, {"service": "attribute"}),
]


@pytest.mark.parametrize(("named", "shown", "added"), UNIMPLIED, ids=lambda part: str(part)[:40])
def test_an_attribute_is_shown_in_its_place_and_what_that_does_not_say_is_added(named, shown, added):
    record = {
        "timeUnixNano": str(TIME // 1000 * 1000),
        "severityNumber": 9,
        "severityText": "INFO",
        "attributes": [attribute(key, value) for key, value in named.items()],
        "traceId": TRACE,
        "flags": 1,
    }
    line = line_of(record)
    own = ("timestamp", "level", "trace_id", "_meta")
    usual = {"service": "unknown_service", "correlation_id": TRACE, "active_flags": [], "context": {}}
    assert {key: value for key, value in line.items() if key not in own} == {**usual, **shown}
    given = {pair["key"]: pair for pair in record["attributes"]}
    if "attributes" in added:
        added = {**added, "attributes": [given[key] for key in added["attributes"]]}
    assert line["_meta"]["otlp"] == {"service": "default", **added}


GROUPS = [
    # attributes of a resource and of a record; the line's service and _meta; what its _meta.otlp adds
    ({"service.name": "s"}, {}, "s", {}, {}),
    ({"service.name": "s"}, {"jarvis.service": "l"}, "l", {"service.name": "s"}, {}),
    ({"service.name": "s"}, {"jarvis.service": "s"}, "s", {"service.name": "s"}, {}),
    ({}, {}, "unknown_service", {}, {"service": "default"}),
    ({}, {"jarvis.service": "l"}, "l", {}, {"service": "attribute"}),
    ({"service.name": 5}, {}, "unknown_service", {"service.name": 5}, {"service": "default"}),
    ({"service.name": ""}, {}, "unknown_service", {"service.name": ""}, {"service": "default"}),
    ({"service.name": 5}, {"jarvis.service": "l"}, "l", {"service.name": 5}, {"service": "attribute"}),
    ({"host.name": "h"}, {}, "unknown_service", {"hostname": "h"}, {"service": "default"}),
    ({"host.name": 5}, {}, "unknown_service", {"host.name": 5}, {"service": "default"}),
    ({"host.name": ""}, {}, "unknown_service", {"host.name": ""}, {"service": "default"}),
    ({"hostname": "h"}, {}, "unknown_service", {}, {"service": "default", "resource": ["hostname"]}),
    ({"uid": "u", "otlp": 1}, {}, "unknown_service", {}, {"service": "default", "resource": ["uid", "otlp"]}),
]


@pytest.mark.parametrize(("of_resource", "of_record", "service", "meta", "added"), GROUPS)
def test_the_resource_is_shown_in_meta_and_the_service_says_where_it_comes_from(
    of_resource, of_record, service, meta, added
):
    pairs_ = [attribute(key, value) for key, value in of_resource.items()]
    record = {"attributes": [attribute(key, value) for key, value in of_record.items()]}
    whole = {"timeUnixNano": "1000", "severityNumber": 9, "severityText": "INFO", **record}
    line = line_of(whole, resource={"attributes": pairs_})
    assert line["service"] == service
    given = {pair["key"]: pair for pair in pairs_}
    if "resource" in added:
        added = {**added, "resource": {"attributes": [given[key] for key in added["resource"]]}}
    assert {**line["_meta"], "uid": None} == {**meta, **({"otlp": added} if added else {}), "uid": None}


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"stringValue": "said"}, "said"),
        ({"stringValue": ""}, None),
        ({"intValue": "5"}, "5"),
        ({"boolValue": False}, "false"),
        ({"doubleValue": "NaN"}, "NaN"),
        ({"bytesValue": "AP8="}, "AP8="),
        ({"arrayValue": {"values": [{"intValue": "1"}]}}, "[1]"),
        ({}, None),
        (None, None),
    ],
)
def test_any_body_is_shown_as_text_and_kept_as_it_was(body, shown):
    line = line_of({"body": body, "timeUnixNano": str(TIME)})
    assert line.get("message") == shown
    if body == {"stringValue": "said"}:
        assert "body" not in line["_meta"]["otlp"]
    (group,) = logs_request([line])["resourceLogs"]
    assert group["scopeLogs"][0]["logRecords"][0].get("body", {}) == (body or {})


COMING_BACK = [
    *({"attributes": [attribute(key, value) for key, value in named.items()]} for named, _, _ in UNIMPLIED),
    *({"severityNumber": number, "severityText": text} for number in (-1, 0, 9, 24, 25) for text in ("", "INFO")),
    *({"body": body} for body in ({"stringValue": ""}, {"stringValue": "s"}, {"bytesValue": ""}, {"intValue": "0"})),
    {"timeUnixNano": "1"},
    {"timeUnixNano": "1000", "observedTimeUnixNano": "1"},
    {"observedTimeUnixNano": "1"},
    {"traceId": "ab", "spanId": "ab", "flags": 257, "droppedAttributesCount": 3, "eventName": "e"},
    {"traceId": "0" * 32, "spanId": "0" * 16},
    {"traceId": TRACE, "spanId": SPAN},
    {"attributes": [attribute("twice", 1), attribute("twice", 2)]},
]


@pytest.mark.parametrize("resource", [{}, RESOURCE, {"attributes": [attribute("service.name", 5)]}], ids=str)
@pytest.mark.parametrize("record", COMING_BACK, ids=lambda record: str(record)[:60])
def test_each_record_comes_back_from_its_line_as_it_was(record, resource):
    for more in ({}, {"traceId": TRACE}):
        content = request({**record, **more}, resource, SCOPE)
        message = to_protobuf(content)
        for encoding, body in (
            (Encoding.JSON, orjson.dumps(content)),
            (Encoding.PROTOBUF, message.SerializeToString()),
        ):
            assert said(back(read(Signal.LOGS, encoding, body, ARRIVAL))) == said(message)


def test_the_request_of_a_record_that_says_nothing_says_nothing():
    assert logs_request([line_of({})]) == {"resourceLogs": [{"scopeLogs": [{"logRecords": [{}]}]}]}


def test_a_resource_and_a_scope_say_no_more_than_they_are_given():
    scope = Scope(Resource(Attributes({"service.name": "s"}, [])), "n")
    assert (scope.resource.otlp, scope.own, scope.otlp) == ({}, {}, {})


def test_all_that_a_resource_and_a_scope_say_comes_back():
    message = ExportLogsServiceRequest()
    group = message.resource_logs.add(schema_url="https://r")
    group.resource.dropped_attributes_count = 1
    group.resource.entity_refs.add(type="service", id_keys=["service.name"])
    scope_group = group.scope_logs.add(schema_url="https://s")
    scope_group.scope.name, scope_group.scope.version = "n", "1"
    scope_group.scope.attributes.add(key="k").value.int_value = 0
    scope_group.scope.dropped_attributes_count = 2
    scope_group.log_records.add()
    out = read(Signal.LOGS, Encoding.PROTOBUF, message.SerializeToString(), ARRIVAL)
    assert said(back(out)) == said(message)


@given(st.integers(0, 2**64 - 1))
def test_a_timestamp_reads_back_to_the_microsecond(time):
    assert parse_timestamp(format_timestamp(time)) == time // 1000 * 1000


OURS = [b'{"timestamp":"2026-01-02T03:04:0%d.000000Z","level":"INFO"}\n' % second for second in range(4)]


def test_the_timestamp_of_a_line_is_read_without_parsing_it():
    assert timestamp_of(OURS[1]) == b"2026-01-02T03:04:01.000000Z"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b'{"timestamp":"2026-01-02T03:04:05.678901+",',
        b'{"timestamp":"2026-01-02T03:04:05.678901X",',
        b'{"timestamq":"2026-01-02T03:04:01.000000Z"}',
        b'{"timestamo":"2026-01-02T03:04:01.000000Z"}',
        OURS[0][:30],
        b" " + OURS[0],
    ],
)
def test_a_line_that_begins_otherwise_has_no_timestamp_to_tell(line):
    assert timestamp_of(line) is None
    for block in (line + b"\n", OURS[0] + line + b"\n" + OURS[1], line + b"\n" + OURS[1], OURS[0] + (line or b"\n")):
        assert timestamp_range(block) is None, block


def test_the_range_of_lines_is_from_the_earliest_to_the_latest_wherever_they_stand():
    for order in ([0], [0, 1], [1, 0], [2, 3, 0, 1], [1, 1, 1]):
        block = b"".join(OURS[place] for place in order)
        for whole in (block, block.removesuffix(b"\n")):
            assert timestamp_range(whole) == (timestamp_of(OURS[min(order)]), timestamp_of(OURS[max(order)]))


def test_a_log_entry_with_everything_is_exactly_this_line():
    record = json.loads(FULL_LINE)
    meta, error = record.pop("_meta"), record.pop("error")
    del meta["otlp"]
    entry = LogEntry(
        **record,
        error_type=error["type"],
        error_message=error["message"],
        stack_trace=error["stack_trace"],
        hostname="box1",
        environment="prod",
        version="1.2.3",
        uid="0190-uid",
        meta={"service.name": "jarvis", "process.pid": 7},
    )
    assert json.loads(str(entry)) == entry.to_dict() == {**record, "error": error, "_meta": meta}
    assert tuple(entry.to_dict()) == LINE_KEYS


def test_the_smallest_log_entry_has_only_what_is_always_there():
    entry = LogEntry("2026-01-02T03:04:05.678901Z", "INFO", "", "trading", correlation_id="")
    assert entry.to_dict() == {
        "timestamp": "2026-01-02T03:04:05.678901Z",
        "level": "INFO",
        "service": "trading",
        "active_flags": [],
        "context": {},
    }


def test_a_log_entry_is_json_whatever_its_context_holds():
    entry = LogEntry("2026-01-02T03:04:05.678901Z", "INFO", "m", "s", context={5: object})
    assert json.loads(str(entry))["context"] == {"5": str(object)}


def test_the_line_of_a_log_entry_reads_as_a_request_too():
    entry = LogEntry(
        "2026-01-02T03:04:05.678901Z",
        "ERROR",
        "Trade failed",
        "trading",
        error_type="ValueError",
        context={"n": 1},
        uid="u",
    )
    (group,) = logs_request([json.loads(entry.to_json())])["resourceLogs"]
    (record,) = group["scopeLogs"][0]["logRecords"]
    assert group["resource"] == {"attributes": attributes(service__name="trading")}
    assert record["attributes"] == attributes(exception__type="ValueError", log__record__uid="u", n=1)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 4_000_000 + b"]" * 4_000_000,
        b"[" * 2_000 + b'"' + b'\\"' * 1_000_000,
        b'{"a":' * 2_000 + b'"' + b"\\" * 2_000_001,
    ],
    ids=["brackets", "quotes in a text without an end", "backslashes"],
)
def test_a_hostile_request_costs_no_more_than_its_size(body):
    """Each took the square of its size, and so the collector for hours: the timeout is no measure, only an end."""
    with pytest.raises(BadRequestError):
        read(Signal.LOGS, Encoding.JSON, body, ARRIVAL)


# --- spans

SPAN_REQUEST = {
    "resourceSpans": [
        {
            "resource": RESOURCE,
            "scopeSpans": [
                {
                    "scope": SCOPE,
                    "spans": [
                        {
                            "traceId": TRACE,
                            "spanId": SPAN,
                            "parentSpanId": SPAN[::-1],
                            "name": "POST /trade",
                            "kind": 2,
                            "startTimeUnixNano": str(TIME),
                            "endTimeUnixNano": str(TIME + 12_500_000),
                            "attributes": attributes(
                                jarvis__service="trading", jarvis__flag__A="on", http__method="POST"
                            ),
                            "status": {"code": 2, "message": "no balance"},
                            "events": [{"timeUnixNano": str(TIME), "name": "exception", "attributes": attributes(n=1)}],
                            "links": [{"traceId": TRACE, "spanId": SPAN}],
                        }
                    ],
                }
            ],
        }
    ]
}
SPAN_LINE = (
    '{"timestamp":"2026-01-02T03:04:05.678901Z","end":"2026-01-02T03:04:05.691401Z","duration_ms":12.5,'
    '"name":"POST /trade","kind":"server","service":"trading",'
    f'"correlation_id":"{TRACE}","trace_id":"{TRACE}","span_id":"{SPAN}","parent_span_id":"{SPAN[::-1]}",'
    '"status":{"code":"error","message":"no balance"},"flags":{"A":"on"},"attributes":{"http.method":"POST"},'
    '"events":[{"timestamp":"2026-01-02T03:04:05.678901Z","name":"exception","attributes":{"n":1}}],'
    f'"links":[{{"trace_id":"{TRACE}","span_id":"{SPAN}"}}],"scope":{{"name":"jarvis.trading","version":"0.1"}},'
    '"_meta":{"hostname":"box1","environment":"prod","version":"1.2.3","process.pid":7,"service.name":"jarvis"}}\n'
)


@pytest.mark.parametrize("encoding", Encoding)
def test_a_span_with_everything_is_exactly_this_line_in_either_encoding(encoding):
    body = orjson.dumps(SPAN_REQUEST)
    if encoding is Encoding.PROTOBUF:
        body = to_protobuf(SPAN_REQUEST, ExportTraceServiceRequest).SerializeToString()
    assert [line.decode() for line in read(Signal.TRACES, encoding, body, ARRIVAL).lines] == [SPAN_LINE]


def test_the_smallest_span_has_only_what_is_always_there():
    (line,) = lines_of({"resourceSpans": [{"scopeSpans": [{"spans": [{}]}]}]}, Signal.TRACES)
    assert line == {
        "timestamp": "2026-01-01T00:00:00.000000Z",
        "kind": "internal",
        "service": "unknown_service",
        "status": {"code": "unset"},
    }
