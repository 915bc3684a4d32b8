"""Counting by a few fields of many lines: what the quick way takes for a line of ours says what reading all of it says."""

import json
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_otel.query.counts import Counting, Question
from jarvis_otel.query.fields import FieldReader
from jarvis_otel.query.index_build import index_file
from jarvis_otel.query.log_query import Criteria, LogQuery
from jarvis_otel.query.scan import content_of
from tests.day_files import day_file
from tests.naive_query import each_once

KEYS = ["level", "service", "error", "duration_ms"]
START = datetime(2026, 1, 18, tzinfo=UTC)
LARGEST = 1.7976931348623157e308

quick = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def line(second=0, **more):
    stamp = (START + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    record = {
        "timestamp": stamp,
        "level": "INFO",
        "message": 'said \\ "level":"ERROR"',
        "service": "api",
        "active_flags": [],
        "context": {"n": 1.5, "deep": [{"x": None}]},
        "_meta": {"uid": f"u{second}"},
    }
    return orjson.dumps(record | more) + b"\n"


def as_read(columns):
    """Columns, with numbers beyond 64 bits as who reads the whole line has them."""
    values = [[content_of(json.dumps(value).encode()) for value in column] for column in columns.values]
    return list(columns.times), list(columns.uids), values, columns.earliest, columns.latest


def plainly(value):
    """A value as counts have it."""
    if value is None or isinstance(value, str):
        return value
    try:
        return orjson.dumps(value)
    except TypeError:  # too deep for it
        return json.dumps(value, separators=(",", ":")).encode()


VALUES = st.sampled_from(
    [
        *(
            b'"\\q"',
            b'"\\u12"',
            b'"\\ud800"',
            b'"\\udc00x"',
            b'"\\ud83d\\ude00"',
            b'"a\tb"',
            b'"\x00"',
            b'"\xff"',
            b'"\\"',
        ),
        *(b'"\xed\xa0\x80"', b'"\xc3\xa9"', b'"\\\\"', b'"\\/"', b'""', b'"ERROR"', b'"' + b"x" * 600 + b'"'),
        *(b"01", b"1.", b"-", b"1e", b"1e400", b"-1e400", b"1e5.5", b".5", b"+1", b"1_0", b"NaN", b"Infinity", b"-0"),
        *(
            b"18446744073709551616",
            b"-9223372036854775809",
            b"1" * 400,
            b"1" * 250 + b"e60",
            b"1e-400",
            b"1E+5",
            b"2.50",
        ),
        *(
            b"tru",
            b"nul",
            b"true",
            b"null",
            b"[1,]",
            b"[,1]",
            b"[1 2]",
            b"[]",
            b'{"a":1,}',
            b"{a:1}",
            b"{'a':1}",
            b"{}",
        ),
        *(b"/**/1", b" 1 ", b"\r1", b"\x0b1", b"\xc2\xa01", b"\xef\xbb\xbf1", b"[" * 990 + b"]" * 990, b"[" * 1100),
        *(b'"2026-01-18T00:00:00.000000Z"', b'"2026-01-18T00:00:00Z"', b'"2026-02-30T00:00:00.000000Z"'),
        *(b'{"uid":"u1"}', b'{"uid":5}', b'{"uid":"a","uid":"b"}', b'{"uid":null}'),
    ]
)
NAMES = st.sampled_from(
    [
        *(b"x", b"level", b"service", b"timestamp", b"_meta", b"error", b"duration_ms", b"resourceLogs"),
        *(b"resourceSpans", b"le\\u0076el", b"\\u005fmeta", b"resource\\u004cogs", b"\\ud800", b""),
    ]
)
BITS = st.sampled_from([*b'"\\,{}[] \r\t\x0b\xff0:\n', b"\\u0061", b"\\ud800", b"\n\n", b"}\n{"]).map(
    lambda bit: bytes([bit]) if isinstance(bit, int) else bit
)


@st.composite
def hostile(draw):
    """A line, and mostly something done to it."""
    raw = line(draw(st.integers(0, 200)), level=draw(st.sampled_from(["INFO", "ERROR", "odd", None, 1])))
    done = draw(st.sampled_from(["nothing", "first", "last", "put", "cut", "change"]))
    at = draw(st.integers(0, len(raw) - 2))
    if done in ("first", "last"):
        pair = b'"%s":%s' % (draw(NAMES), draw(VALUES))
        return b"{" + pair + b"," + raw[1:] if done == "first" else raw[:-2] + b"," + pair + b"}\n"
    if done == "put":
        return raw[:at] + draw(BITS) + raw[at:]
    if done == "cut":
        return raw[:at] + raw[at + draw(st.integers(1, 3)) :] if at < len(raw) - 4 else raw
    return raw[:at] + bytes([draw(st.integers(0, 255))]) + raw[at + 1 :] if done == "change" else raw


@quick
@given(st.lists(hostile(), min_size=1, max_size=6))
def test_what_is_read_quickly_is_what_reading_every_line_gives(lines):
    fields = FieldReader(KEYS, lambda _: None)
    for block in (*lines, b"".join(lines)):
        read = fields.quick(block)
        if read is not None:
            assert as_read(read) == as_read(fields.each([block]))


def test_lines_of_ours_are_read_quickly():
    read = FieldReader(KEYS, lambda _: None).quick(b"".join(line(second) for second in range(0, 400, 7)))
    assert len(read.times) == 58
    assert (read.earliest, read.latest) == ("2026-01-18T00:00:00.000000Z", "2026-01-18T00:06:39.000000Z")


@pytest.mark.parametrize(
    ("block", "uids"),
    [
        (line(5), ["u5"]),
        (line(5, message="é"), ["u5"]),
        (line(5).replace(b',"_meta":{"uid":"u5"}', b""), [None]),
        (line(5, _meta={}) + line(5, _meta={"uid": None}), [None, None]),
    ],
    ids=["one alone", "beyond ASCII", "of whom nothing is said", "without an id of its own"],
)
def test_so_are_those_of_every_kind(block, uids):
    stamp = "2026-01-18T00:00:05.000000Z"
    count = len(uids)
    values = [["INFO"] * count, ["api"] * count, [None] * count, [None] * count]
    assert FieldReader(KEYS, lambda _: None).quick(block) == ([stamp] * count, uids, values, stamp, stamp)


@pytest.mark.parametrize(
    "block",
    [
        line(message="MARK").replace(b"MARK", b"\xff"),
        line(level="odd"),
        line(level=1),
        pytest.param(
            line(context=5).replace(b"5", b"[" * 100_000 + b"]" * 100_000),
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 14), reason="only the stack bounds depth there, and it is deep"
            ),
        ),
        line(_meta=[]),
        line(_meta={"uid": 5}),
        *(line(**{key: value}) for key in ("resourceLogs", "resourceSpans", "resourceMetrics") for value in ([], "\0")),
    ],
)
def test_what_may_be_no_line_of_ours_is_not_read_quickly(block):
    fields = FieldReader(KEYS, lambda _: None)
    assert fields.quick(block) is None
    assert fields.quick(line() + block + line()) is None


@pytest.mark.parametrize("key", ["timestamp", "_meta", "resourceLogs", 'quo"te'])
def test_keys_that_are_not_read_quickly_are_read_all_the_same(key):
    fields = FieldReader(["level", key], lambda _: None)
    assert fields.quick(line()) is None
    assert fields.each([line()]).values == [["INFO"], [orjson.loads(line()).get(key)]]


def test_reading_every_line_tells_of_those_that_are_no_records_and_of_no_others():
    told = []
    blocks = [line(1) + b"\n" + line(2, _meta={"uid": 5}), b"no record\n" + line(3, _meta=7)]
    read = FieldReader(["service"], told.append).each(blocks)
    assert told == [1]
    assert (read.uids, read.values) == (["u1", None, None], [["api"] * 3])
    assert (read.earliest, read.latest) == ("2026-01-18T00:00:01.000000Z", "2026-01-18T00:00:03.000000Z")


@pytest.mark.parametrize(
    "stamps",
    [
        ("2026-01-18T00:00:00.000000Z2", "026-01-18T00:00:01.000000Z"),  # one after the other they look right
        ("2026-01-18T00:00:00.00000\u0660Z", "2026-01-18T00:00:01.000000Z"),
        ("2026-01-18T00:00:61.000000Z", "2026-01-18T00:00:01.000000Z"),
        ("2026-01-18T24:00:00.000000Z", "2026-01-18T00:00:01.000000Z"),
        ("2026-02-29T00:00:00.000000Z", "2026-02-28T00:00:01.000000Z"),
        ("2026-01-18T00:00:00,000000Z", "2026-01-18T00:00:01.000000Z"),
        ("2026-01-18T00:00:00.000000Z" * 2,),
        ("2026-01-18T00:00:00",),
        *(("2026-01-18T00:00:00.000000Z"[:at] + "X" + "2026-01-18T00:00:00.000000Z"[at + 1 :],) for at in range(27)),
    ],
)
def test_timestamps_that_only_look_like_ours_are_not_read_quickly(stamps):
    fields = FieldReader(KEYS, lambda _: None)
    assert fields.quick(b"".join(line(timestamp=stamp) for stamp in stamps)) is None


@quick
@given(st.lists(st.lists(hostile(), max_size=12), min_size=2, max_size=2), st.booleans(), st.sampled_from([16, 19]))
def test_counts_of_hostile_lines_are_those_of_the_records_one_by_one(days, indexed, precision):
    with tempfile.TemporaryDirectory() as directory:
        for number, lines in enumerate(days, 18):
            path = day_file(directory, number, lines)
            if indexed:
                index_file(path, block_bytes=300)
        for asked in ({}, {"since": START + timedelta(seconds=50), "until": START + timedelta(seconds=150)}):
            one_by_one, counting = LogQuery(directory), LogQuery(directory)
            found = list(one_by_one.scan(Criteria.of(**asked)))
            groups, times = Counter(), Counter()
            for part in counting.counts(Criteria.of(**asked), [("service",)], precision):
                groups.update(part.groups[0])
                times.update(part.times)
            rows = [(plainly(one.record.get("level")), plainly(one.record.get("service")), one.time) for one in found]
            assert groups == Counter((level, service) for level, service, _ in rows)
            assert times == Counter((time[:precision], level) for level, _, time in rows)
            assert counting.tally.repeats == one_by_one.tally.repeats


def test_repeats_are_counted_once_over_blocks_and_files(tmp_path):
    first = [line(second) for second in range(3000)]
    day_file(tmp_path, 18, [*first, *first[::-7], line(1, _meta={}), line(1, _meta={})])
    day_file(tmp_path, 19, [*first[:50], line(86400)])
    logs = LogQuery(tmp_path)
    records = sum(part.records for part in logs.counts(Criteria.of(), [("service", "level")], 16))
    naive = [json.loads(one) for path in sorted(tmp_path.glob("*.jsonl")) for one in path.read_bytes().splitlines()]
    assert records == len(each_once(naive)) == 3003
    assert logs.tally.repeats == len(naive) - 3003


def test_a_number_beyond_the_range_of_a_float_is_the_largest_one(tmp_path):
    odd = [b"1e400", b"-1e400", b"1" * 400, b"12.5e0000309", b"[1e999]"]
    day_file(tmp_path, 18, [line(at).replace(b'"n":1.5', b'"n":' + number) for at, number in enumerate(odd)])
    logs = LogQuery(tmp_path)
    found = [record["context"]["n"] for record in logs.iterate()]
    assert found == [LARGEST, -LARGEST, LARGEST, LARGEST, [LARGEST]]
    assert sum(part.records for part in logs.counts(Criteria.of())) == len(odd)
    assert logs.tally.unreadable == {}
    assert [one["context"]["n"] for one in logs.iterate(where="context.n>1")] == [LARGEST] * 3


def test_a_text_that_looks_like_such_a_number_stays_as_it_is(tmp_path):
    day_file(tmp_path, 18, [line(message="x 1e400", service='"1e500').replace(b"1.5", b"1e600")])
    (record,) = LogQuery(tmp_path).iterate()
    assert (record["message"], record["service"]) == ("x 1e400", '"1e500')


def test_values_of_every_kind_are_told_apart_however_long_or_deep(tmp_path):
    values = [b"18446744073709551616", b"18446744073709551615", b"1", b"1.0", b"true", b'"1"', b"null"]
    values += [b"[" * 300 + b"]" * 300, b"[18446744073709551616]"]
    day_file(tmp_path, 18, [line(at).replace(b'"api"', value) for at, value in enumerate(values)])
    (part,) = LogQuery(tmp_path).counts(Criteria.of(), [("service",)])
    assert len(part.groups[0]) == len(values)
    assert part.groups[0]["INFO", orjson.dumps(2.0**64)] == 1


def test_times_are_counted_alike_in_any_order_and_over_many_steps():
    seconds = [*range(0, 3000, 11), *range(0, 600, 7)]
    columns = FieldReader(["level", "service"], lambda _: None)
    for order in (sorted(seconds), seconds, seconds[::-1]):
        read = columns.quick(b"".join(line(second) for second in order))
        for precision in (13, 16, 19):
            expected = Counter((time[:precision], "INFO") for time in read.times)
            for groups in ((), (("service",),), (("service",), ("level",))):
                counted = Counting(Question(groups, precision)).count([read])
                assert counted.times == expected
                assert len(counted.groups) == len(groups)
