"""Counts that an index has: the same as those of the lines, whatever stands in the files and whatever became of it."""

import gzip
import random
import re
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_collector import gzip_blocks
from jarvis_collector.layout import archive_path, index_path
from jarvis_otel.query.blocks import LogFile
from jarvis_otel.query.index import SERVICES_MAX, UNCOUNTED, BlockIndex
from jarvis_otel.query.index_build import index_file
from jarvis_otel.query.log_query import Criteria, LogQuery
from jarvis_otel.query.repeats import Seen
from tests.day_files import day_file, log_record, log_request, our_lines, real_line
from tests.naive_query import each_once
from tests.test_query_fields import hostile
from tests.test_query_index import small_members

START = datetime(2026, 1, 18, tzinfo=UTC)
MINUTE, HOUR = 16, 13
QUESTIONS = [
    ([("service",)], MINUTE),
    ([("service", "level"), ("level",)], MINUTE),
    ([], HOUR),
    ([("service",), ("service", "service")], HOUR),
    ([("message",)], MINUTE),
    ([("service",)], 19),
]

quick = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def line(second=0, uid=None, **more):
    stamp = (START + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    record = {"timestamp": stamp, "level": "INFO", "message": "m", "service": "s", "active_flags": [], "context": {}}
    return orjson.dumps(record | ({} if uid is None else {"_meta": {"uid": uid}}) | more) + b"\n"


def counted(logs, groups, precision, **asked):
    """All that a question counts, and what it met with."""
    totals, times, records, ends = [Counter() for _ in groups], Counter(), 0, set()
    for part in logs.counts(Criteria.of(**asked), groups, precision):
        records += part.records
        ends |= {part.earliest, part.latest} if part.records else set()
        times.update(part.times)
        for total, group in zip(totals, part.groups, strict=True):
            total.update(group)
    tally = logs.tally
    met = (tally.repeats, tally.unreadable, tally.damaged, tally.files)
    return records, times, totals, min(ends, default=""), max(ends, default=""), met


def answers(directory, **asked):
    return [counted(LogQuery(directory), *question, **asked) for question in QUESTIONS]


def without_indexes(directory, **asked):
    aside = [(path, path.with_suffix(".away")) for path in Path(directory).rglob("*.idx")]
    for path, away in aside:
        path.rename(away)
    try:
        return answers(directory, **asked)
    finally:
        for path, away in aside:
            away.rename(path)


def looked_at(directory, groups=(("service",),), precision=MINUTE, **asked):
    """So many bytes of lines a question looks at."""
    logs = LogQuery(directory)
    counted(logs, list(groups), precision, **asked)
    return logs.tally.bytes


def index_of(path):
    with LogFile(path) as file:
        return BlockIndex.load(path, file.fd, counts=True)


# --- the same answers ----------------------------------------------------------------------------------------------

_PLAIN = st.builds(
    line,
    st.integers(0, 400) | st.integers(86_000, 87_000) | st.integers(-(10**9), 2 * 10**11),
    st.sampled_from([None, *"abcdefgh"]) | st.integers(0, 10**6).map(str),
    level=st.sampled_from(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]),
    service=st.sampled_from(["api", "bot", "é", None]),
)
_ODD = st.builds(
    line,
    st.integers(0, 400),
    st.sampled_from([None, *"abcd"]),
    level=st.sampled_from(["odd", None, 1, ["ERROR"], {}]),
    service=st.sampled_from(["", "x" * 300, "a\nb", 7, True, ["api"], "\U0001f600"]),
)
_REQUEST = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3).map(
    lambda texts: log_request(*(log_record(text, 30 * at) for at, text in enumerate(texts)))
)
_LINE = st.one_of(
    _PLAIN,
    _PLAIN,
    _PLAIN,
    _ODD,
    hostile(),
    _REQUEST.map(real_line),
    _REQUEST.map(lambda request: b"".join(our_lines(request))),
    _PLAIN.map(lambda raw: raw[: len(raw) // 2]),
    st.sampled_from([b"\n", b"[]\n", b'{"resourceMetrics":[]}\n', b"\x00\n"]),
)
_DAY = st.lists(st.one_of(_PLAIN, _LINE), max_size=12) | st.lists(_PLAIN, max_size=12)
_ASKED = st.sampled_from(
    [
        {},
        {"since": START + timedelta(seconds=50)},
        {"until": START + timedelta(seconds=200)},
        {"since": START + timedelta(seconds=60), "until": START + timedelta(seconds=299)},
        {"service": "api"},
        {"level": "ERROR"},
        {"text": "m"},
        {"where": 'service="bot"'},
    ]
)


@quick
@given(st.lists(_DAY, min_size=1, max_size=3), _ASKED, st.data())
def test_counts_are_the_same_with_and_without_an_index_for_every_input(days, asked, data):
    with tempfile.TemporaryDirectory() as directory:
        for day, lines in enumerate(days, 18):
            path = day_file(directory, day, lines)
            place = data.draw(st.sampled_from(["plain", "plain", "archive", "both"]))
            if place != "plain":
                target = archive_path(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                whole_lines = re.findall(rb"[^\n]*\n|[^\n]+", b"".join(lines))
                target.write_bytes(small_members(whole_lines) or gzip.compress(b""))
                index_file(target)
                if place == "both":
                    path.write_bytes(b"".join([*lines, *lines[:1], line(5, "new")]))
                else:
                    path.unlink()
                    continue
            whole = path.read_bytes()
            path.write_bytes(whole[: data.draw(st.sampled_from([len(whole), len(whole) * 2 // 3]))])
            block_bytes = data.draw(st.sampled_from([1, 300, 2000, 1 << 19]))
            index_file(path, block_bytes=block_bytes)
            with path.open("ab") as file:
                file.write(whole[path.stat().st_size :])
            if data.draw(st.booleans()):
                index_file(path, block_bytes=block_bytes)
        with_index, plain = answers(directory, **asked), without_indexes(directory, **asked)
        if asked:  # a question with a filter need not look at lines that cannot match, so it may meet with fewer
            with_index, plain = ([(*one[:-1], one[-1][0]) for one in each] for each in (with_index, plain))
        assert with_index == plain


@quick
@given(st.lists(st.lists(_PLAIN, max_size=20), min_size=1, max_size=3), st.sampled_from([1, 300, 1 << 19]))
def test_counts_of_an_index_are_those_of_a_naive_count(days, block_bytes):
    with tempfile.TemporaryDirectory() as directory:
        for day, lines in enumerate(days, 18):
            index_file(day_file(directory, day, lines), block_bytes=block_bytes)
        records = each_once(orjson.loads(each) for lines in days for each in lines)
        number, times, (by,), earliest, latest, _ = counted(LogQuery(directory), [("service",)], MINUTE)
        assert number == len(records)
        assert times == Counter((record["timestamp"][:MINUTE], record["level"]) for record in records)
        assert by == Counter((record["level"], record["service"]) for record in records)
        stamps = [record["timestamp"] for record in records]
        assert (earliest, latest) == (min(stamps, default=""), max(stamps, default=""))


@quick
@given(st.lists(_PLAIN, max_size=20), st.lists(_LINE, max_size=6), st.data())
def test_an_index_that_was_brought_up_to_date_counts_as_one_made_anew(lines, more, data):
    with tempfile.TemporaryDirectory() as directory:
        path = day_file(directory, 18, [])
        for each in [*lines, *more]:
            with path.open("ab") as file:
                file.write(each)
            if data.draw(st.booleans()):
                index_file(path, block_bytes=data.draw(st.sampled_from([1, 1 << 19])))
        assert answers(directory) == without_indexes(directory)


def test_records_of_files_that_are_named_count_once_whatever_else_holds_them(tmp_path):
    lines = [line(second, f"u{second}") for second in range(300)]
    day, component = day_file(tmp_path, 18, lines), tmp_path / "components" / "s-2026-01-18.jsonl"
    copy, packed = tmp_path / "copy.jsonl", tmp_path / "jarvis-2026-01-19.jsonl.gz"
    component.parent.mkdir()
    component.write_bytes(b"".join(lines[:100]))
    copy.write_bytes(b"".join([*lines[200:], line(1000, "other")]))
    packed.write_bytes(small_members(lines[::3]))
    index_file(day, block_bytes=2000)
    index_file(packed)
    dice = random.Random(1)
    for _ in range(10):
        files = [dice.choice([day, component, copy, packed]) for _ in range(dice.randrange(1, 6))] + [day]
        records = each_once(
            orjson.loads(each)
            for path in files
            for each in (gzip.decompress(path.read_bytes()) if path is packed else path.read_bytes()).splitlines()
        )
        assert counted(LogQuery(files=files), [("service",)], MINUTE)[0] == len(records)


def test_repeats_are_found_within_a_block_over_blocks_and_files(tmp_path):
    first = [line(second, f"u{second}") for second in range(2000)]
    for day, lines in ((18, [*first, *first[::-7], first[0]]), (19, [*first[:50], line(86_400, "v")]), (20, first)):
        index_file(day_file(tmp_path, day, lines), block_bytes=5000)
    (records, *_, (repeats, *_)) = counted(LogQuery(tmp_path), [("service",)], MINUTE)
    assert (records, repeats) == (2001, len(first[::-7]) + 1 + 50 + 2000)


# --- what it spares, and what it does not --------------------------------------------------------------------------


def test_nothing_is_read_of_what_is_counted_and_the_rest_is(tmp_path):
    path = day_file(tmp_path, 18, [line(second, f"u{second}") for second in range(3000)])
    index_file(path, block_bytes=5000)
    size = path.stat().st_size
    assert looked_at(tmp_path) == looked_at(tmp_path, [("level", "service")], HOUR) == looked_at(tmp_path, []) == 0
    assert looked_at(tmp_path, [("message",)]) == looked_at(tmp_path, precision=19) == size
    assert looked_at(tmp_path, text="m") == looked_at(tmp_path, service="s") == size
    since, until = START + timedelta(seconds=605), START + timedelta(seconds=1811)
    assert 0 < looked_at(tmp_path, since=since, until=until) <= 4 * 5000
    with path.open("ab") as file:
        file.write(line(3000, "new"))
    assert looked_at(tmp_path) == path.stat().st_size - size


def test_an_archive_and_a_day_of_the_real_collector_are_counted_too(tmp_path):
    path = archive_path(day_file(tmp_path, 18, b""))
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        gzip_blocks.write([line(second, f"u{second}") for second in range(300)], file)
    (tmp_path / "jarvis-2026-01-18.jsonl").unlink()
    theirs = day_file(tmp_path, 19, [real_line(log_request(log_record("a", 5), log_record("b", 7)))])
    for each in (path, theirs):
        index_file(each)
    assert looked_at(tmp_path) == 0
    assert counted(LogQuery(tmp_path), [("service",)], MINUTE)[0] == 302


@pytest.mark.parametrize(
    "odd",
    [
        line(level="odd"),
        line(level=None, service=["s"]),
        line(service="x" * 300),
        line(service=""),
        b'{"torn\n',
        real_line(log_request(log_record("a", 5)))[:-20] + b"\n",
    ],
)
def test_one_odd_line_leaves_its_block_alone_without_counts(tmp_path, odd):
    lines = [line(second, f"u{second}") for second in range(100)]
    path = day_file(tmp_path, 18, [*lines[:50], odd, *lines[50:]])
    index_file(path, block_bytes=1)
    assert [entry.rows for entry in index_of(path).entries].count(UNCOUNTED) == 1
    assert looked_at(tmp_path) == len(odd)
    assert answers(tmp_path) == without_indexes(tmp_path)


def test_services_beyond_those_that_an_index_names_are_counted_by_their_lines(tmp_path):
    lines = [line(at, f"u{at}", service=f"s{at}") for at in range(SERVICES_MAX + 20)]
    path = day_file(tmp_path, 18, lines)
    index_file(path, block_bytes=1)
    assert [entry.rows for entry in index_of(path).entries].count(UNCOUNTED) == 20
    assert answers(tmp_path) == without_indexes(tmp_path)


def test_a_line_that_goes_on_in_the_next_block_of_an_archive_is_counted_as_it_is_read(tmp_path):
    pieces = [line(1, "a"), line(2, "b")[:-1], b"\n" + line(3, "c"), line(4, "d")]
    path = archive_path(day_file(tmp_path, 18, b""))
    (tmp_path / "jarvis-2026-01-18.jsonl").unlink()
    path.parent.mkdir(parents=True)
    path.write_bytes(small_members(pieces))
    index_file(path)
    assert [entry.rows == UNCOUNTED for entry in index_of(path).entries] == [False, True, True, False]
    assert answers(tmp_path) == without_indexes(tmp_path)


@pytest.mark.parametrize("indexed", [False, True])
def test_a_request_behind_a_torn_line_of_another_time_is_found_in_an_archive(tmp_path, indexed):
    glued = line(5000, "torn")[:100] + real_line(log_request(log_record("a", 5)))
    path = archive_path(day_file(tmp_path, 18, b""))
    (tmp_path / "jarvis-2026-01-18.jsonl").unlink()
    path.parent.mkdir(parents=True)
    path.write_bytes(small_members([glued, line(6, "b")]))
    if indexed:
        index_file(path)
    until = START + timedelta(seconds=200)
    assert [record["message"] for record in LogQuery(tmp_path).iterate(until=until)] == ["a", "m"]
    assert counted(LogQuery(tmp_path), [("service",)], MINUTE, until=until)[0] == 2


def test_counts_that_are_damaged_are_not_used_and_the_blocks_are_passed_over_as_before(tmp_path):
    path = day_file(tmp_path, 18, [line(second, f"u{second}") for second in range(1000)])
    index_file(path, block_bytes=5000)
    index = index_path(path)
    whole = index.read_bytes()
    for damaged in (whole[:-1], whole[:-9] + b"x" + whole[-8:], whole + b"more"):
        index.write_bytes(damaged)
        assert index_of(path) is not None
        assert looked_at(tmp_path) == path.stat().st_size
        assert answers(tmp_path) == without_indexes(tmp_path)
    assert looked_at(tmp_path, since=START + timedelta(seconds=990), text="m") < 3 * 5000
    with path.open("ab") as file:
        file.write(line(1001, "new"))
    assert index_file(path, block_bytes=5000).new == path.stat().st_size
    assert looked_at(tmp_path) == 0


def test_an_index_of_an_older_format_is_made_anew(tmp_path):
    path = day_file(tmp_path, 18, [line(1, "a")])
    index_file(path)
    index = index_path(path)
    index.write_bytes(index.read_bytes().replace(b"jarvis index 3", b"jarvis index 2"))
    assert looked_at(tmp_path) == path.stat().st_size
    assert index_file(path).new == path.stat().st_size
    assert looked_at(tmp_path) == 0


def test_spans_have_no_counts(tmp_path):
    path = day_file(tmp_path, 18, [line(1, "a")], stream="traces")
    index_file(path)
    assert [entry.rows for entry in index_of(path).entries] == [UNCOUNTED]


# --- what was there before -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=120), st.integers(1, 8), st.data())
def test_in_what_portions_values_come_is_all_one(values, most, data):
    one_by_one, portions = Seen(most), Seen(most)
    expected = [one_by_one.before(value) for value in values]
    got, at = [], 0
    while at < len(values):
        portion = values[at : at + data.draw(st.integers(1, 30))]
        apart = data.draw(st.booleans()) and Seen(most).are_new(portion)
        if portions.are_new(portion, apart=apart):
            got += [False] * len(portion)
        else:
            got += map(portions.before, portion)
        at += len(portion)
    assert got == expected
