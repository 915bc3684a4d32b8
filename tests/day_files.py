"""Day files for tests: requests and what each collector writes of them, files and archives; and any of these, for hypothesis."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
from hypothesis import strategies as st

from jarvis_collector import gzip_blocks
from jarvis_collector.layout import archive_path
from jarvis_collector.otlp import Encoding, Signal, read
from jarvis_collector.sidecar import write_sidecar
from tests.naive_query import LEVELS, texts_in

DATA = Path(__file__).parent / "data" / "otelcol"

REAL_DAY = "2026-11-26"
"""The day on which the sample of the real Collector was recorded, under SIGKILL."""

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"

START = datetime(2026, 1, 18, tzinfo=UTC)


def log_day(day):
    return {"key": "jarvis.log_day", "value": {"stringValue": day}}


def attribute(key, value):
    kind = {str: "stringValue", bool: "boolValue", float: "doubleValue", int: "intValue", list: "arrayValue"}[
        type(value)
    ]
    if isinstance(value, list):
        value = {"values": [{"stringValue": item} for item in value]}
    return {"key": key, "value": {kind: str(value) if kind == "intValue" else value}}


def log_request(*records, service="trading", resource=(), scope="jarvis"):
    attributes = [*([attribute("service.name", service)] if service else []), *resource]
    return {
        "resourceLogs": [
            {
                "resource": {"attributes": attributes},
                "scopeLogs": [{"scope": {"name": scope}, "logRecords": list(records)}],
            }
        ]
    }


def log_record(message, second=0, severity=9, **more):
    nanos = (int(START.timestamp()) + second) * 10**9 + 1
    return {"timeUnixNano": str(nanos), "severityNumber": severity, "body": {"stringValue": message}, **more}


def our_lines(request, signal=Signal.LOGS, arrival=START):
    """What our collector writes for a request."""
    body = request if isinstance(request, bytes) else orjson.dumps(request)
    lines = read(signal, Encoding.JSON, body, int(arrival.timestamp()) * 10**9)
    assert lines.refused == 0
    return lines.lines


def real_line(request, day="2026-01-18"):
    """What the real Collector writes for a request: the attribute of the day ends each resource."""
    content = json.loads(json.dumps(request))
    for key in ("resourceLogs", "resourceSpans"):
        for group in content.get(key, ()):
            group["resource"]["attributes"].append(log_day(day))
    return orjson.dumps(content) + b"\n"


def day_file(directory, day, content, stream="jarvis"):
    path = Path(directory, f"{stream}-2026-01-{day}.jsonl")
    path.write_bytes(content if isinstance(content, bytes) else b"".join(content))
    return path


def archive(path, compress=None):
    """Does what the archiver does, and leaves the plain file."""
    target = archive_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if compress is None:
        with target.open("wb") as file:
            contents = gzip_blocks.write([path.read_bytes()], file)
        write_sidecar(target, target.stat().st_size, contents.range)
    else:
        target.write_bytes(compress(path.read_bytes()))
    return target


def many(count, start=0, padding=0):
    """Lines of ours a second apart, without a uid: a record that is read twice would show."""
    return [
        b'{"timestamp":"%s","level":"INFO","message":"%d %s","service":"s","active_flags":[],"context":{}}\n'
        % (
            (START + timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode(),
            number,
            os.urandom(padding // 2).hex().encode(),
        )
        for number in range(start, start + count)
    ]


def numbers(found):
    return [int(record["message"].split()[0]) for record in found]


# --- any of these, for hypothesis ---

TEXTS = [
    "plain", 'say "hi"', "back\\slash", "a/b", "new\nline", "ünïcode", "\u0130stanbul", "\u212aelvin", "kelvin",
    "<script>", "\x1b[31mred", "\u2028", "😀 smile", "", "on", "off", "ERROR", '"level":"ERROR"', '{"resourceLogs":[',
    "\\u0041", "123", "12345", "1.5", "null", "true", "NaN", "trade-1", TRACE_ID, TRACE_ID.upper(), "null\x00byte",
    "bro\ufffdken", "unknown_service", "jarvis.log_day", "exception.type",
]  # fmt: skip

text = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)

scalar = (
    st.builds(lambda value: {"stringValue": value}, text)
    | st.builds(lambda value: {"intValue": str(value)}, st.integers(-(2**63), 2**63 - 1) | st.integers(100, 99999))
    | st.builds(lambda value: {"doubleValue": value}, st.floats(allow_nan=False, allow_infinity=False))
    | st.sampled_from(
        [{"doubleValue": "NaN"}, {"boolValue": True}, {"boolValue": False}, {}, {"bytesValue": "AAEC/w=="}]
    )
)

any_value = st.recursive(
    scalar,
    lambda inner: (
        st.builds(lambda values: {"arrayValue": {"values": values}}, st.lists(inner, max_size=3))
        | st.builds(
            lambda pairs: {"kvlistValue": {"values": [{"key": key, "value": value} for key, value in pairs.items()]}},
            st.dictionaries(text, inner, max_size=3),
        )
    ),
    max_leaves=4,
)

flag_ids = st.sampled_from(["A_FLAG", "B", "é", "12345"])

string_value = st.builds(lambda value: {"stringValue": value}, text)

attributes_ = st.fixed_dictionaries(
    {},
    optional={
        "jarvis.correlation_id": string_value,
        "jarvis.service": string_value,
        "user.id": string_value,
        "exception.type": st.builds(lambda value: {"stringValue": f"mod.{value}"}, text),
        "exception.message": string_value,
        "exception.stacktrace": string_value,
        "jarvis.active_flags": st.builds(
            lambda ids: {"arrayValue": {"values": [{"stringValue": flag} for flag in sorted(ids)]}},
            st.sets(flag_ids, max_size=3),
        ),
        "jarvis.flag.A_FLAG": st.sampled_from([{"stringValue": "on"}, {"stringValue": "blue"}]),
        "jarvis.flag.12345": st.sampled_from([{"stringValue": "off"}, {"stringValue": "blue"}]),
        "a": any_value,
        "b c": any_value,
        "log.record.uid": st.builds(lambda value: {"stringValue": value}, st.sampled_from(["u1", "u2", "#x"])),
    },
)

pairs = attributes_.map(lambda found: [{"key": key, "value": value} for key, value in found.items()])

nanos = st.integers(0, 10**10).map(lambda offset: str(int(START.timestamp()) * 10**9 + offset))

log_records = st.fixed_dictionaries(
    {},
    optional={
        "timeUnixNano": nanos,
        "observedTimeUnixNano": nanos,
        "severityNumber": st.sampled_from([0, 1, 5, 9, 13, 17, 18, 21, 24]),
        "body": string_value | any_value,
        "attributes": pairs,
        "traceId": st.sampled_from([TRACE_ID, TRACE_ID.upper(), TRACE_ID[:7].upper() + TRACE_ID[7:], "a" * 32]),
        "spanId": st.sampled_from(["00f067aa0ba902b7", "B7AD6B7169203331"]),
        "eventName": text,
    },
)

requests = st.builds(
    lambda records, service, scope: log_request(*records, service=service, scope=scope),
    st.lists(log_records, max_size=4),
    st.none() | text,
    text,
)


@st.composite
def written(draw):
    """A stretch of a day file, and the lines that it says: ours, or the real Collector's, or one glued to a torn one."""
    request = draw(requests)
    style = draw(st.sampled_from(["ours", "real", "spaced", "escaped", "glued", "torn", "foreign"]))
    if style == "foreign":
        return draw(st.sampled_from([b"\xff\xfe\n", b"plain\n", b"[]\n", b'{"resourceLogs":[{"res\n', b"\n"])), []
    content = our_lines(request)
    if style == "ours":
        return b"".join(content), content
    line = real_line(request)
    if style == "spaced":
        line = json.dumps(json.loads(line), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    elif style == "escaped":
        line = json.dumps(json.loads(line)).encode() + b"\n"
    elif style == "glued":
        other = draw(st.sampled_from([real_line(draw(requests)), *our_lines(draw(requests))]))
        line = other[: draw(st.integers(1, len(other) - 3))] + line
    elif style == "torn":
        return line[: draw(st.integers(1, len(line) - 3))] + b"\n", []
    return line, content


@st.composite
def cases(draw):
    """The files of two days, what they say, and a question that is mostly about something that stands in them."""
    days = [draw(st.lists(written(), max_size=5)) for _ in range(2)]
    contents = [b"".join(raw for raw, _ in day) for day in days]
    known = [orjson.loads(line) for day in days for _, lines in day for line in lines]

    def of(key):
        return st.sampled_from([record[key] for record in known if record.get(key)] or ["x"]) | text

    searched = [found for record in known for found in [record.get("message", ""), *texts_in(record["context"])]]
    moment = st.integers(0, 10**4).map(lambda millis: START + timedelta(milliseconds=millis))
    possible = {
        "level": st.sampled_from(LEVELS + [f"={level}" for level in LEVELS]),
        "service": of("service"),
        "correlation_id": of("correlation_id") | of("trace_id").map(str.upper),
        "trace_id": of("trace_id"),
        "user_id": of("user_id"),
        "flag": st.builds(str.__add__, flag_ids, st.sampled_from(["", "=on", "=off", "=blue"])),
        "text": st.sampled_from(searched or ["x"]).flatmap(_part),
        "since": moment.map(lambda at: min(at, START + timedelta(seconds=5))),
        "until": moment.map(lambda at: max(at, START + timedelta(seconds=5))),
        "where": st.builds(
            lambda key, value: f'{key}="{value}"',
            st.sampled_from(["message", "error.type", "context.a", "flags.A_FLAG", "service", "logger", "event"]),
            (of("message") | of("logger") | of("service") | st.just("blue")).filter(_is_plain),
        ),
    }
    names = draw(st.lists(st.sampled_from(list(possible)), max_size=3, unique=True))
    return contents, known, {name: draw(possible[name]) for name in names}


def _part(wanted):
    ends = st.tuples(*[st.integers(0, len(wanted))] * 2)
    return st.just(wanted) | st.builds(lambda ends: wanted[min(ends) : max(ends)].swapcase(), ends)


def _is_plain(value):
    return not set(value) & set('"\\')
