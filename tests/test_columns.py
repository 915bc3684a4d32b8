"""Records that are alike get, all at once, exactly the lines that each gets alone."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from jarvis_collector import columns
from jarvis_collector.cut import MANY
from jarvis_collector.otlp import Encoding, Signal, read
from tests.wire import field

TIME = 1_767_323_045_678_901_234
ARRIVAL = 1_767_225_600_000_000_000


def request(records, resource=(("service.name", "jarvis"), ("host.name", "100%"))):
    """The same request in both encodings."""
    message = ExportLogsServiceRequest()
    group = message.resource_logs.add()
    for key, value in resource:
        pair = group.resource.attributes.add()
        pair.key, pair.value.string_value = key, value
    scope_group = group.scope_logs.add()
    scope_group.scope.name = "a %b scope"
    document = []
    for record in records:
        target = scope_group.log_records.add()
        target.time_unix_nano = record["time"]
        target.observed_time_unix_nano = record["observed"]
        target.severity_number, target.severity_text = record["severity"]
        target.flags = record["flags"]
        target.dropped_attributes_count = record["dropped"]
        target.trace_id, target.span_id = bytes.fromhex(record["trace"]), bytes.fromhex(record["span"])
        target.event_name = record["event"]
        said = {
            "timeUnixNano": str(record["time"]),
            "observedTimeUnixNano": str(record["observed"]),
            "severityNumber": record["severity"][0],
            "severityText": record["severity"][1],
            "attributes": [],
            "flags": record["flags"],
            "droppedAttributesCount": record["dropped"],
            "traceId": record["trace"],
            "spanId": record["span"],
            "eventName": record["event"],
        }
        if record["body"] is not None:
            said["body"] = put(target.body, record["body"])
        for key, value in record["attributes"]:
            pair = target.attributes.add()
            pair.key = key
            said["attributes"].append({"key": key, "value": put(pair.value, value)})
        document.append(said)
    scope = {"name": "a %b scope"}
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in resource]
    content = {"resource": {"attributes": attributes}, "scopeLogs": [{"scope": scope, "logRecords": document}]}
    return {"resourceLogs": [content]}, message.SerializeToString()


def put(target, value):
    """Sets an AnyValue and gives its JSON form."""
    if isinstance(value, bool):
        target.bool_value = value
        return {"boolValue": value}
    if isinstance(value, str):
        target.string_value = value
        return {"stringValue": value}
    if isinstance(value, int):
        target.int_value = value
        return {"intValue": str(value)}
    if isinstance(value, float):
        target.double_value = value
        return {"doubleValue": value}
    if isinstance(value, list):
        target.array_value.SetInParent()
        return {"arrayValue": {"values": [put(target.array_value.values.add(), item) for item in value]}}
    if isinstance(value, dict):
        target.kvlist_value.SetInParent()
        pairs = []
        for key, item in value.items():
            pair = target.kvlist_value.values.add()
            pair.key = key
            pairs.append({"key": key, "value": put(pair.value, item)})
        return {"kvlistValue": {"values": pairs}}
    target.SetInParent()
    return {}


HOSTILE = [
    '"',
    "\\",
    "\\u0041",
    '{"key":',
    'Value":"',
    '"}},',
    "}}][",
    '","value":{"',
    "\n",
    "\0",
    "é",
    "\u2028",
    "%b",
    "#x",
]
texts = st.one_of(st.text(max_size=12), st.sampled_from(HOSTILE), st.text("ab", min_size=120, max_size=200))
integers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 300))
floats = st.floats(allow_nan=False, allow_infinity=False)
KINDS = {
    "text": texts,
    "integer": integers,
    "float": floats,
    "truth": st.booleans(),
    "texts": st.lists(texts, max_size=3),
    "map": st.dictionaries(texts, integers, max_size=2),
    "nothing": st.none(),
}
KEYS = st.one_of(
    st.sampled_from(
        [
            "jarvis.service",
            "jarvis.correlation_id",
            "jarvis.request_id",
            "user.id",
            "session.id",
            "jarvis.active_flags",
            "jarvis.duration_ms",
            "exception.type",
            "exception.message",
            "exception.stacktrace",
            "code.file.path",
            "code.line.number",
            "code.function.name",
            "log.record.uid",
            "jarvis.flag.A",
            "jarvis.flag.%b",
            "jarvis.context.user.id",
            "jarvis.other",
            "symbol",
        ]
    ),
    texts,
)
some_texts = texts.filter(lambda text: text and text[0] != "#")
TAME = ["text", "text", "integer", "float", "truth"]
TAME_KINDS = KINDS | {"text": some_texts, "texts": st.lists(some_texts, min_size=1, max_size=3).map(sorted)}
FITTING = {"jarvis.active_flags": "texts", "jarvis.duration_ms": "float", "code.line.number": "integer"}


@st.composite
def alike(draw):
    """Records of one or two places in a program; of some places each is a common one, of others anything goes."""
    records = []
    for _ in range(draw(st.integers(1, 2))):
        wild = draw(st.booleans())
        keys = draw(st.lists(KEYS, max_size=6, unique=True if not wild else draw(st.booleans())))
        kinds = [FITTING.get(key, draw(st.sampled_from(["text", "text", *KINDS] if wild else TAME))) for key in keys]
        values = KINDS if wild else TAME_KINDS
        pools = [draw(st.lists(values[kind], min_size=1, max_size=2)) for kind in kinds]
        varied = [draw(st.booleans()) for _ in keys]
        message = draw(st.one_of(st.none(), texts if wild else some_texts))
        rare = st.integers(0, 12).map(lambda number: number == 0) if wild else st.just(value=False)
        flags, event, observed = (
            draw(st.sampled_from([1, 1, 0])),
            draw(st.sampled_from(["", "trade.done"])),
            draw(st.booleans()),
        )
        levels = st.sampled_from(
            draw(st.sampled_from([[(9, "INFO")], [(9, "INFO"), (13, "WARN"), (0, ""), (10, "INFO")]]))
        )
        for _ in range(draw(st.integers(1, 14))):
            in_trace = not draw(rare)
            records.append(
                {
                    "time": 0 if draw(rare) else TIME + draw(st.sampled_from([0, 766, 10**9, -(10**12), 5 * 10**17])),
                    "observed": TIME + draw(st.integers(0, 2000)) if observed and not draw(rare) else 0,
                    "severity": draw(levels),
                    "flags": 3 if draw(rare) else flags,
                    "dropped": int(draw(rare)),
                    "trace": f"{draw(st.integers(not wild, 3)):032x}" if in_trace else "",
                    "span": f"{draw(st.integers(1, 3)):016x}" if in_trace or draw(rare) else "",
                    "event": "other" if draw(rare) else event,
                    "body": draw(texts if wild else some_texts) if message is None else message,
                    "attributes": [
                        (key, draw(values[kind] if vary and not draw(rare) else st.sampled_from(pool)))
                        for key, kind, pool, vary in zip(keys, kinds, pools, varied, strict=True)
                    ],
                }
            )
    return draw(st.permutations(records)) if draw(st.booleans()) else records


def lines(encoding, body):
    out = read(Signal.LOGS, encoding, body, ARRIVAL)
    return out.lines, out.refused


def compact(document):
    return orjson.dumps(document)


def spaced(document):
    return json.dumps(document).encode()


@settings(max_examples=200, deadline=None)
@given(alike(), st.sampled_from([compact, spaced]))
def test_records_get_the_same_lines_together_as_alone_in_either_encoding(records, to_json):
    document, message = request(records)
    alone = [request([record]) for record in records]
    one_by_one = [line for each, _ in alone for line in lines(Encoding.JSON, orjson.dumps(each))[0]]
    assert lines(Encoding.JSON, to_json(document)) == (one_by_one, 0)
    assert lines(Encoding.PROTOBUF, message) == (one_by_one, 0)


def repeated(record, number):
    """The record again, with other values of the same length, as one place in a program writes them."""
    attributes = [
        (key, f"{number:03}{value[3:]}" if isinstance(value, str) and value[:3].isascii() and len(value) > 3 else value)
        for key, value in record["attributes"]
    ]
    attributes = [(key, value + number if isinstance(value, float) else value) for key, value in attributes]
    return record | {"time": record["time"] and record["time"] + number * 1_000_003, "attributes": attributes}


@settings(max_examples=60, deadline=None)
@given(alike(), st.integers(0, 3))
def test_records_of_one_length_get_the_same_lines_together_as_alone(records, swapped):
    records = [repeated(record, number) for number in range(MANY + 2) for record in records[:2]]
    if swapped and len(records[0]["attributes"]) > 1:
        # one that is as long as the others, but not cut like them
        records[-swapped] = records[-swapped] | {"attributes": records[-swapped]["attributes"][::-1]}
    alone = [lines(Encoding.PROTOBUF, request([record])[1])[0][0] for record in records]
    document, message = request(records)
    assert lines(Encoding.PROTOBUF, message) == (alone, 0)
    assert lines(Encoding.JSON, orjson.dumps(document)) == (alone, 0)


def common(number, **attributes):
    attributes = {
        "symbol": "SOL",
        "order": f"order-{number}",
        "price": number / 8,
        "log.record.uid": f"u{number:x}",
    } | attributes
    return {
        "time": TIME + number * 1_000_003,
        "observed": TIME + number * 1_000_009,
        "severity": (9, "INFO"),
        "flags": 1,
        "dropped": 0,
        "trace": f"{number // 4 + 1:032x}",
        "span": f"{number // 2 + 1:016x}",
        "event": "",
        "body": "Trade executed",
        "attributes": list(attributes.items()),
    }


PLACES = {
    "session.id": "s",
    "user.id": "u",
    "jarvis.flag.B": "off",
    "jarvis.flag.A": "on",
    "code.function.name": "f",
    "code.line.number": 7,
    "code.file.path": "a.py",
    "exception.stacktrace": "t",
    "exception.message": "m",
    "exception.type": "E",
    "jarvis.duration_ms": 1.5,
    "jarvis.request_id": "r",
    "jarvis.correlation_id": "c",
    "jarvis.service": "dexter",
    "jarvis.active_flags": ["A", "C"],
}


@pytest.mark.parametrize("resource", [(("service.name", "jarvis"),), (("host.name", "h"),)])
@pytest.mark.parametrize(
    "changed",
    [{}, {"jarvis.active_flags": ["C", "A"]}, {"jarvis.correlation_id": f"{1:032x}"}, {"log.record.uid": "#x"}]
    + [{key: ""} for key, value in PLACES.items() if isinstance(value, str)],
)
def test_every_part_of_the_line_has_its_place_in_either_way(resource, changed):
    records = [common(number, **(PLACES | changed)) for number in range(8)]
    document, message = request(records, resource)
    alone = [lines(Encoding.PROTOBUF, request([record], resource)[1])[0][0] for record in records]
    assert lines(Encoding.JSON, orjson.dumps(document)) == lines(Encoding.PROTOBUF, message) == (alone, 0)


def request_of(*records):
    """A protobuf request whose records are these bytes, whatever they are."""
    return field(1, field(2, b"".join(field(2, record) for record in records)))


def record_bytes(record):
    message = ExportLogsServiceRequest.FromString(request([record])[1])
    return message.resource_logs[0].scope_logs[0].log_records[0].SerializeToString()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 400), st.integers(0, 255)), max_size=2),
    st.sampled_from([b"", b"\x09" + bytes(range(8)), b"\x38\x05", b"\x18\xff\x01", b"\x7a\x01x"]),
    st.booleans(),
)
def test_whatever_bytes_come_records_fare_together_as_alone(everywhere, somewhere, appended, negative):
    records = []
    for number in range(MANY + 6):
        places = {"count": -number if negative else number + 1000, **({"big": 2**63 - 1 - number} if negative else {})}
        records.append(
            bytearray(
                record_bytes(common(number, **{"log.record.uid": f"{number:04}", "order": f"{number:04}", **places}))
            )
        )
    for at, value in everywhere:
        for record in records:
            record[at % len(record)] = value
    for number, at, value in somewhere:
        record = records[number % len(records)]
        record[at % len(record)] = value
    records = [bytes(record) + appended for record in records]
    alone = [lines(Encoding.PROTOBUF, request_of(record)) for record in records]
    expected = [line for each, _ in alone for line in each], sum(refused for _, refused in alone)
    assert lines(Encoding.PROTOBUF, request_of(*records)) == expected


ODD = {
    "none": {},
    "an empty user": {"user.id": ""},
    "a qualified exception": {"exception.type": "a.B"},
    "a map": {"extra": {"b": None}},
    "another kind": {"order": 5},
}


@pytest.mark.parametrize("odd", ODD)
def test_under_load_hardly_any_record_is_looked_at_alone(odd, monkeypatch):
    """One record in a thousand that is not common costs a few beside it, not all."""
    records = [common(number, **({"user.id": "u"} if "user.id" in ODD[odd] else {})) for number in range(1000)]
    records[500] = common(500, **ODD[odd])
    document, message = request(records)
    alone = []
    for module in ("otlp_json", "otlp_protobuf"):
        reader = __import__(f"jarvis_collector.{module}", fromlist=["fill"])

        def counted(*args):
            places = columns.fill(*args)
            alone.append(len(places))
            return places

        monkeypatch.setattr(reader, "fill", counted)
    assert lines(Encoding.JSON, orjson.dumps(document)) == lines(Encoding.PROTOBUF, message)
    assert max(alone) <= columns._SMALL
    assert bool(max(alone)) == (odd != "none")


def test_a_text_that_is_no_utf8_costs_only_its_own_record():
    records = [common(number, note=f"note{number:04}") for number in range(100)]
    _, message = request(records)
    broken, refused = lines(Encoding.PROTOBUF, message.replace(b"note0050", b"note\xff050"))
    whole, _ = lines(Encoding.PROTOBUF, message)
    assert refused == 1
    assert broken == whole[:50] + whole[51:]
