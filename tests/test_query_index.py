"""The index and the workers: the same answers as without them, whatever became of the files and of the index."""

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_collector import gzip_blocks
from jarvis_collector.config import Retention
from jarvis_collector.layout import archive_path, index_path
from jarvis_collector.retention import rotate
from jarvis_otel.query.blocks import LogFile
from jarvis_otel.query.filters import Facts
from jarvis_otel.query.index import SERVICES_MAX, BlockIndex, hashes
from jarvis_otel.query.index_build import index_file, indexable, remove_orphans
from jarvis_otel.query.log_query import Criteria, LogQuery
from tests.day_files import (
    DATA,
    REAL_DAY,
    cases,
    day_file,
    log_record,
    log_request,
    many,
    numbers,
    our_lines,
    real_line,
    requests,
    written,
)
from tests.naive_query import each_once, is_wanted

START = datetime(2026, 1, 18, tzinfo=UTC)
SMALL = 300
"""Blocks of a line or two."""

quick = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def line(message, second=0, **more):
    stamp = (START + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    record = {
        "timestamp": stamp,
        "level": "INFO",
        "message": message,
        "service": "s",
        "active_flags": [],
        "context": {},
    }
    return orjson.dumps(record | more) + b"\n"


def found(directory, **asked):
    return list(LogQuery(directory).iterate(**asked))


def messages(directory, **asked):
    return [record["message"] for record in found(directory, **asked)]


def index_of(path):
    with LogFile(path) as file:
        return BlockIndex.load(path, file.fd)


def bytes_read(path, **asked):
    """How much of a file a question has to read."""
    criteria = Criteria.of(**asked)
    since, until = (end.encode() for end in criteria.interval.line_times())
    parts = index_of(path).parts(since, until, [one.facts for one in criteria.filters if one.facts])
    return sum(part.end - part.start for part in parts)


def small_members(lines):
    """An archive with a block for each line."""
    archive = io.BytesIO()
    for each in lines:
        member = io.BytesIO()
        gzip_blocks.write([each], member)
        archive.write(member.getvalue())
    return archive.getvalue()


# --- the same answers ----------------------------------------------------------------------------------------------


@quick
@given(cases(), st.lists(st.sampled_from(["plain", "archive", "gzip"]), min_size=2, max_size=2), st.data())
def test_every_source_with_an_index_gives_what_a_naive_reference_finds(case, places, data):
    contents, known, asked = case
    expected = each_once(record for record in known if is_wanted(record, asked))
    with tempfile.TemporaryDirectory() as directory:
        for day, (content, place) in enumerate(zip(contents, places, strict=True), 18):
            path = day_file(directory, day, content)
            if place != "plain":
                target = archive_path(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                pack = gzip.compress if place == "gzip" else lambda raw: small_members(raw.splitlines(keepends=True))
                target.write_bytes(pack(content) or gzip.compress(b""))
                path.unlink()
                path = target
            index_file(path, block_bytes=data.draw(st.sampled_from([1, SMALL, 1 << 19])))
        assert found(directory, **asked) == expected
        assert LogQuery(directory).search(**asked, limit=2) == sorted(expected, key=lambda r: r["timestamp"])[-2:]


@quick
@given(st.lists(written(), max_size=8), st.integers(0, 8), cases(), st.data())
def test_a_day_that_grew_since_it_was_indexed_gives_the_same_answers(parts, before, case, data):
    asked = case[2]
    with tempfile.TemporaryDirectory() as directory:
        path = day_file(directory, 18, [raw for raw, _ in parts[:before]])
        for start in range(before, len(parts) + 1):
            if data.draw(st.booleans()):
                index_file(path, block_bytes=SMALL)
            answers = found(directory, **asked)
            index = index_path(path)
            if index.exists():
                index.rename(index.with_suffix(".away"))
                assert answers == found(directory, **asked)
                index.with_suffix(".away").rename(index)
            if start < len(parts):
                with path.open("ab") as file:
                    file.write(parts[start][0])


@quick
@given(st.lists(requests, min_size=1, max_size=3), st.lists(requests, max_size=3), cases(), st.booleans())
def test_the_index_of_a_file_that_was_replaced_or_cut_is_not_used(old, new, case, in_place):
    asked = case[2]
    with tempfile.TemporaryDirectory() as directory:
        path = day_file(directory, 18, [each for request in old for each in our_lines(request)])
        index_file(path, block_bytes=SMALL)
        content = b"".join(each for request in new for each in our_lines(request))
        if in_place:
            path.write_bytes(content)
            os.utime(path, (1, 1))
        else:
            path.with_suffix(".new").write_bytes(content)
            path.with_suffix(".new").replace(path)
        records = map(orjson.loads, content.splitlines())
        assert found(directory, **asked) == each_once(record for record in records if is_wanted(record, asked))


@quick
@given(cases(), st.data())
def test_a_corrupt_index_is_like_none(case, data):
    contents, known, asked = case
    expected = each_once(record for record in known if is_wanted(record, asked))
    with tempfile.TemporaryDirectory() as directory:
        for day, content in enumerate(contents, 18):
            path = day_file(directory, day, content)
            if index_file(path, block_bytes=SMALL):
                index = bytearray(index_path(path).read_bytes())
                at = data.draw(st.integers(0, len(index) - 1))
                if data.draw(st.booleans()):
                    index[at] ^= 1 << data.draw(st.integers(0, 7))
                else:
                    del index[at:]
                index_path(path).write_bytes(index)
        assert found(directory, **asked) == expected


def test_an_edit_in_place_that_leaves_the_size_is_noticed(tmp_path):
    path = day_file(tmp_path, 18, [line("a", correlation_id="one")])
    index_file(path)
    path.write_bytes(path.read_bytes().replace(b'"one"', b'"two"'))
    assert messages(tmp_path, correlation_id="two") == ["a"]


def test_records_out_of_order_are_found_by_their_time(tmp_path):
    seconds = random.Random(3).sample(range(1000), 300)
    path = day_file(tmp_path, 18, [line(str(second), second) for second in seconds])
    index_file(path, block_bytes=SMALL)
    since, until = START + timedelta(seconds=200), START + timedelta(seconds=210)
    assert messages(tmp_path, since=since, until=until) == [str(second) for second in seconds if 200 <= second <= 210]


def test_times_in_other_forms_and_zones_are_found(tmp_path):
    stamps = ["2026-01-18T02:00:00+02:00", "2026-01-18T00:00:00Z", "2026-01-18 00:00:00", "2026-01-18T00:00:00.000000Z"]
    path = day_file(tmp_path, 18, [line(stamp, timestamp=stamp) for stamp in stamps])
    index_file(path, block_bytes=1)
    assert len(index_of(path).entries) == len(stamps)
    assert messages(tmp_path, since=START, until=START) == stamps
    assert bytes_read(path, since=START + timedelta(seconds=1)) == 0


def test_more_services_than_an_index_names_and_names_that_it_cannot_hold_are_found(tmp_path):
    names = [f"service-{at}" for at in range(SERVICES_MAX + 10)] + ["a\nb", "x" * 300, "é"]
    path = day_file(tmp_path, 18, [line(name, service=name) for name in names])
    index_file(path, block_bytes=1)
    for name in names:
        assert messages(tmp_path, service=name) == [name]
    assert bytes_read(path, service="service-1") < path.stat().st_size / 50


def test_values_that_are_no_text_are_passed_over_by_the_index_alone(tmp_path):
    odd = [1, 1.5, True, None, ["ERROR"], {"ERROR": "s"}]
    lines = [line("odd", level=value, service=value, correlation_id=value, trace_id=value) for value in odd]
    path = day_file(tmp_path, 18, [*lines, line("one", level="ERROR", correlation_id="c")])
    index_file(path, block_bytes=1)
    assert messages(tmp_path, level="ERROR") == messages(tmp_path, correlation_id="c") == ["one"]
    assert len(messages(tmp_path, until=START)) == len(odd) + 1


_PARTS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["level", "service", "correlation_id", "trace_id", "context.a"]),
    st.sampled_from(["=", "=", "=", "!=", ">=", "<", "~="]),
    st.sampled_from(["ERROR", "INFO", "a", "b", "odd", '"1"', "1", "null"]),
)
_WHERE = st.recursive(
    _PARTS,
    lambda inner: st.one_of(
        st.builds("{} and {}".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=4,
)
_VALUES = st.sampled_from(["ERROR", "INFO", "a", "b", "odd", 1, None, True, ["a", "b"], ["ERROR", "INFO"], [["a"]], {}])
_FIELDS = st.fixed_dictionaries(dict.fromkeys(["level", "service", "correlation_id", "trace_id"], _VALUES))


@quick
@given(st.lists(_FIELDS, max_size=12), _WHERE, st.sampled_from([{}, {"level": "ERROR"}, {"service": "a"}]))
def test_an_expression_finds_the_same_with_and_without_an_index(records, where, more):
    with tempfile.TemporaryDirectory() as directory:
        path = day_file(directory, 18, [line("m", at, **fields) for at, fields in enumerate(records)])
        before = found(directory, where=where, **more)
        index_file(path, block_bytes=1)
        assert found(directory, where=where, **more) == before


def test_equality_in_an_expression_passes_blocks_over(tmp_path):
    lines = [line("m", at, service=f"s{at}", correlation_id=f"c{at}") for at in range(50)]
    path = day_file(tmp_path, 18, [*lines, line("e", 60, level="ERROR", service=["s1", "s2"])])
    index_file(path, block_bytes=1)
    size = path.stat().st_size
    asked = [
        "service=s7",
        "correlation_id=c7 and context.a!=1",
        "level=ERROR",
        "level>INFO",
        'trace_id="c7" and level=INFO',
    ]
    for where in asked:
        assert bytes_read(path, where=where) < size / 10, where
    assert bytes_read(path, where="not service=s7") == bytes_read(path, where="service=s7 or level=INFO") == size
    assert messages(tmp_path, where="service=s1 and service=s2") == ["e"]


def test_a_line_with_a_key_twice_is_found_by_what_it_finally_says(tmp_path):
    twice = line("m").replace(b'"level":"INFO"', b'"level":"INFO","level":"ERROR"')
    path = day_file(tmp_path, 18, [twice, line("n")])
    index_file(path, block_bytes=1)
    assert messages(tmp_path, level="ERROR") == ["m"]


def test_a_damaged_block_of_an_archive_is_never_passed_over(tmp_path):
    path = day_file(tmp_path, 18, many(3))
    target = archive_path(path)
    target.parent.mkdir(parents=True)
    content = bytearray(small_members(many(3)))
    target.write_bytes(content)
    second = list(gzip_blocks.blocks(target))[1]
    content[second.offset + second.size - 12] ^= 0xFF
    target.write_bytes(content)
    path.unlink()
    index_file(target)
    logs = LogQuery(tmp_path)
    assert numbers(logs.search(since=START + timedelta(seconds=2))) == [2]
    assert len(logs.tally.damaged) == 1


def test_a_line_beyond_the_limit_does_not_shift_the_blocks_behind_it(tmp_path):
    path = tmp_path / "jarvis-2026-01-18.jsonl"
    with path.open("wb") as file:
        file.write(line("a", correlation_id="one"))
        file.seek((128 << 20) + 100, os.SEEK_CUR)
        file.write(b"\n" + line("b", correlation_id="two") + b'{"torn')
    index_file(path)
    assert messages(tmp_path, correlation_id="two") == ["b"]
    assert messages(tmp_path, correlation_id="one") == ["a"]


def test_spans_are_indexed_too_and_a_trace_is_the_same(tmp_path):
    for name in (f"jarvis-{REAL_DAY}.jsonl", f"traces-{REAL_DAY}.jsonl"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    before = LogQuery(tmp_path).trace("trade-xyz789")
    assert before.records
    assert before.spans
    for path in indexable(tmp_path):
        index_file(path, block_bytes=1)
    assert LogQuery(tmp_path).trace("trade-xyz789") == before


# --- what is passed over -------------------------------------------------------------------------------------------


def many_operations(count):
    return [
        line(str(at), at, correlation_id=f"op-{at // 4}", level="ERROR" if at % 50 == 0 else "INFO")
        for at in range(count)
    ]


def test_a_question_reads_only_the_blocks_that_may_answer_it(tmp_path):
    path = day_file(tmp_path, 18, many_operations(4000))
    index_file(path, block_bytes=2000)
    size = path.stat().st_size
    assert messages(tmp_path, correlation_id="op-700") == ["2800", "2801", "2802", "2803"]
    assert bytes_read(path, correlation_id="op-700") < size / 50
    assert bytes_read(path, correlation_id="none") < size / 50
    assert bytes_read(path, service="none") == bytes_read(path, level="CRITICAL") == 0
    assert bytes_read(path, since=START + timedelta(seconds=3900), level="ERROR") < size / 30


def test_a_window_at_the_end_reads_the_same_from_a_file_ten_times_as_long(tmp_path):
    day = many_operations(2000)
    earlier = b"".join(day).replace(b"2026-01-18", b"2026-01-17")
    window = {"since": START + timedelta(seconds=1900), "level": "ERROR"}
    sizes = []
    for times in (1, 10):
        path = day_file(tmp_path, 18, [earlier] * (times - 1) + day)
        index_file(path, block_bytes=4000)
        sizes.append(bytes_read(path, **window))
    assert sizes[1] <= sizes[0] + 8000


def test_few_blocks_seem_to_hold_an_id_that_they_do_not(tmp_path):
    path = day_file(tmp_path, 18, many_operations(20_000))
    index_file(path, block_bytes=20_000)
    index = index_of(path)
    wrong = sum(len(index.parts(b"", b"~", [Facts(ids=frozenset({f"{at:032x}"}))])) for at in range(300))
    assert wrong < 300 * len(index.entries) * 0.01


def test_no_index_is_made_of_what_cannot_be_passed_over(tmp_path):
    path = archive_path(day_file(tmp_path, 18, many(3)))
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(b"".join(many(3))))
    assert index_file(path) is None
    assert index_file(day_file(tmp_path, 19, b'{"torn')) is None
    with pytest.raises(ValueError, match="no day file"):
        index_file(tmp_path / "other.jsonl")


# --- making it -----------------------------------------------------------------------------------------------------


def test_an_index_is_brought_up_to_date_by_reading_what_is_new(tmp_path):
    path = day_file(tmp_path, 18, many(5000))
    first = index_file(path)
    assert index_file(path)._replace(new=first.new) == first
    for start in range(5000, 6000, 50):
        with path.open("ab") as file:
            file.write(b"".join(many(50, start=start)))
        again = index_file(path)
        assert again.covered == path.stat().st_size
        assert again.new < 600_000
    assert again.blocks <= path.stat().st_size / (1 << 19) * 2 + 2
    assert numbers(found(tmp_path, since=START + timedelta(seconds=5990))) == list(range(5990, 6000))


def test_index_files_are_for_the_group_and_nothing_is_left_of_the_way(tmp_path):
    path = day_file(tmp_path, 18, many(3))
    index_file(path)
    folder = index_path(path).parent
    assert [name.name for name in folder.iterdir()] == ["jarvis-2026-01-18.jsonl.idx"]
    assert index_path(path).stat().st_mode & 0o777 == 0o640
    assert folder.stat().st_mode & 0o777 == 0o750


def test_the_index_of_a_file_that_is_gone_is_removed(tmp_path):
    path, kept = day_file(tmp_path, 18, many(3)), day_file(tmp_path, 19, many(3))
    for each in (path, kept):
        index_file(each)
    (index_path(path).parent / "x.1.tmp").touch()
    path.unlink()
    assert remove_orphans(tmp_path) == 2
    assert index_path(kept).exists()
    assert not index_path(path).exists()


def test_archiving_and_purging_a_day_takes_its_index_along(tmp_path):
    path = tmp_path / "jarvis-2026-01-18.jsonl"
    path.write_bytes(b"".join(many(3)))
    os.utime(path, (START.timestamp(),) * 2)
    index_file(path)
    now = START + timedelta(days=10)
    rotate(tmp_path, Retention(min_free=0.0), clock=lambda: int(now.timestamp()) * 10**9)
    assert not index_path(path).exists()
    index_file(archive_path(path))
    later = START + timedelta(days=100)
    rotate(tmp_path, Retention(min_free=0.0), clock=lambda: int(later.timestamp()) * 10**9)
    assert not (tmp_path / "archive" / "2026-01").exists()


# --- while the files change ----------------------------------------------------------------------------------------


def test_each_record_is_found_once_while_it_is_written_indexed_and_archived(tmp_path):
    days, a_day = 12, 150
    for day in range(days):
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)
        path = tmp_path / f"jarvis-{moment:%Y-%m-%d}.jsonl"
        path.write_bytes(b"".join(many(a_day, start=day * a_day)))
        os.utime(path, (moment.timestamp(),) * 2)
    today, done, errors = tmp_path / "jarvis-2026-02-01.jsonl", threading.Event(), []

    def write():
        with today.open("ab", buffering=0) as file:
            number = days * a_day
            while not done.wait(0.0005):
                each = many(1, start=number)[0]
                file.write(each[:40])
                file.write(each[40:])
                number += 1

    def index():
        while not done.is_set():
            for path in indexable(tmp_path):
                try:
                    index_file(path, block_bytes=2000)
                except FileNotFoundError:
                    pass
                except BaseException as error:
                    errors.append(error)
            remove_orphans(tmp_path)

    def archive_all():
        now = int(datetime(2026, 2, 1, tzinfo=UTC).timestamp()) * 10**9
        errors.extend(rotate(tmp_path, Retention(plain_days=1, keep_days=60, min_free=0.0), clock=lambda: now).problems)

    threads = [threading.Thread(target=target) for target in (write, index, archive_all)]
    for thread in threads:
        thread.start()
    rounds = 0
    try:
        while rounds < 10 or (threads[2].is_alive() and rounds < 2000):
            logs = LogQuery(tmp_path)
            records = numbers(logs.iterate(level="INFO", service="s", since=START))
            assert records == list(range(len(records)))
            assert len(records) >= days * a_day
            rounds += 1
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert errors == []


# --- counts --------------------------------------------------------------------------------------------------------


def counted(directory, groups, **asked):
    times, totals, records = Counter(), [Counter() for _ in groups], 0
    for part in LogQuery(directory).counts(Criteria.of(**asked), groups):
        records += part.records
        times.update(part.times)
        for total, group in zip(totals, part.groups, strict=True):
            total.update(group)
    return records, times, totals


def plainly(value):
    return value if value is None or isinstance(value, str) else orjson.dumps(value)


GROUPS = [
    ("service",),
    ("service", "level"),
    ("error.type", "context.a"),
    ("flags.A_FLAG",),
    ("duration_ms", "_meta.uid"),
]


@quick
@given(cases(), st.lists(st.booleans(), min_size=2, max_size=2))
def test_counts_are_those_of_the_records_one_by_one(case, archived):
    contents, _, asked = case
    with tempfile.TemporaryDirectory() as directory:
        for day, (content, packed) in enumerate(zip(contents, archived, strict=True), 18):
            path = day_file(directory, day, content)
            if packed:
                archive_path(path).parent.mkdir(parents=True, exist_ok=True)
                archive_path(path).write_bytes(gzip.compress(content))
                path.unlink()
        records = found(directory, **asked)

        def at(record, path):
            for key in path.split("."):
                record = record.get(key) if isinstance(record, dict) else None
            return plainly(record)

        expected = [
            Counter((plainly(record["level"]), *(at(record, field) for field in group)) for record in records)
            for group in GROUPS
        ]
        times = Counter((record["timestamp"][:19], record["level"]) for record in records)
        assert counted(directory, GROUPS, **asked) == (len(records), times, expected)


def test_lines_that_are_nearly_ours_are_counted_as_they_are_found(tmp_path):
    good = line("m")
    odd = [
        good.replace(b"INFO", b"IN\xffFO"),
        good.replace(b'"message"', b'"x":01,"message"'),
        good.replace(b'"message"', b'"level":"ERROR","message"'),
        good.replace(b'"service":"s"', b'"service":5'),
        good.replace(b'"service":"s"', b'"service":true'),
        good.replace(b'"service":"s"', b'"service":1'),
        good.replace(b'"service":"s"', b'"service":1.0'),
        good.replace(b"2026-01-18", b"2026-13-18"),
        good.replace(b"T00:", b"T24:"),
        good.replace(b"00:00.0", b"00:60.0"),
        good.replace(b"T00:00:00.000000Z", b"T00:00:00Z"),
        good[:-1] + b" " + good,
        good.replace(b'{"timestamp":', b'{"timestamp":\n'),
        good.replace(b'"context"', b'"resourceLogs":[],"context"'),
        b"\n",
        b"[]\n",
        good.replace(b'"context":{}', b'"context":{},"_meta":null'),
        good.replace(b'"context":{}', b'"context":{},"_meta":{"uid":7}'),
        good.replace(b'"context":{}', b'"context":{},"_meta":{"uid":"u"}'),
        good.replace(b'"context":{}', b'"context":{},"_meta":{"uid":"u"}'),
    ]
    for each in odd:
        path = day_file(tmp_path, 18, [good, each, good])
        logs = LogQuery(tmp_path)
        records = list(logs.iterate())
        expected = Counter((plainly(record["level"]), plainly(record["service"])) for record in records)
        assert counted(tmp_path, [("service",)])[2] == [expected], each
        index_file(path)
        assert found(tmp_path, service="s", since=START) == [
            record for record in records if record["service"] == "s" and record["timestamp"] >= "2026-01-18T00"
        ]


def test_without_msgspec_the_counts_and_the_index_are_the_same(tmp_path):
    path = day_file(tmp_path, 18, many_operations(200))
    index_file(path, block_bytes=SMALL)
    index, counts = index_path(path).read_bytes(), counted(tmp_path, [("correlation_id",)])
    code = """
sys.modules["msgspec"] = None
from collections import Counter
from jarvis_otel.query.index_build import index_file
from jarvis_otel.query.log_query import Criteria, LogQuery
index_file(Path(sys.argv[1]), anew=True, block_bytes=int(sys.argv[2]))
(part,) = LogQuery(Path(sys.argv[1]).parent).counts(Criteria.of(), [("correlation_id",)])
print(part.records, sorted(part.times.items()), sorted(part.groups[0].items()))
"""
    records, times, (group,) = counts
    assert run(code, path, SMALL) == f"{records} {sorted(times.items())} {sorted(group.items())}\n"
    assert index_path(path).read_bytes() == index


# --- workers -------------------------------------------------------------------------------------------------------

PYTHON = (sys.executable, "-W", "error", "-c")
PREAMBLE = """
import os, sys, time
from jarvis_otel.query.workers import in_order
from pathlib import Path
def children(): return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
"""


def run(code, *args):
    done = subprocess.run([*PYTHON, PREAMBLE + code, *map(str, args)], capture_output=True, timeout=60, check=False)
    assert done.stderr == b""
    return done.stdout.decode()


def test_results_come_in_order_from_several_processes_that_end_with_the_iterator():
    code = """
pids = set()
for at, result in enumerate(in_order(lambda item: f"{item} {os.getpid()}".encode() + b"x" * 300_000, range(40), 3)):
    number, pid = result.rstrip(b"x").split()
    assert int(number) == at
    pids.add(int(pid))
assert len(pids) == 3 and os.getpid() not in pids
results = in_order(lambda item: b"x" * 10_000_000, range(100), 2)
next(results); assert len(children()) == 2
results.close(); assert children() == []
print("done")
"""
    assert run(code) == "done\n"


def test_what_a_worker_that_was_killed_or_raised_leaves_is_done_here():
    code = """
import signal
me = os.getpid()
def work(item):
    if os.getpid() != me and item == 10: os.kill(os.getpid(), signal.SIGKILL)
    if os.getpid() != me and item == 5: raise ValueError
    return str(item).encode()
assert list(in_order(work, range(30), 2)) == [str(item).encode() for item in range(30)]
assert children() == []
def broken(item): raise OSError("here too")
try: list(in_order(broken, range(4), 2))
except OSError as error: print(error)
"""
    assert run(code) == "here too\n"


def test_there_are_no_workers_in_a_process_with_threads():
    code = """
import threading
done = threading.Event(); thread = threading.Thread(target=done.wait); thread.start()
assert set(in_order(lambda item: str(os.getpid()).encode(), range(9), 3)) == {str(os.getpid()).encode()}
done.set(); thread.join(); print("done")
"""
    assert run(code) == "done\n"


def test_an_interrupt_ends_the_workers_too():
    code = (
        PREAMBLE
        + """
try:
    for _ in in_order(lambda item: time.sleep(0.05) or b"x", range(1000), 2): print(*children(), flush=True)
except KeyboardInterrupt:
    print("\\nend", *children(), flush=True)  # the line before may be cut where the interrupt came
"""
    )
    with subprocess.Popen([*PYTHON, code], stdout=subprocess.PIPE, start_new_session=True) as process:
        workers = process.stdout.readline().split()
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read().decode().splitlines()
        assert process.wait(30) == 0
    assert rest[-1] == "end"
    assert len(workers) == 2
    assert not any(Path(f"/proc/{int(pid)}").exists() for pid in workers)


def test_workers_end_when_their_parent_is_killed():
    code = (
        PREAMBLE
        + """
for _ in in_order(lambda item: b"x" * 200_000, range(100_000), 2): print(*children(), flush=True); time.sleep(0.01)
"""
    )
    with subprocess.Popen([*PYTHON, code], stdout=subprocess.PIPE) as process:
        workers = process.stdout.readline().split()
        process.kill()
        process.wait(30)
    deadline = time.monotonic() + 20
    while any(
        Path(f"/proc/{int(pid)}/cmdline").exists() and Path(f"/proc/{int(pid)}/cmdline").read_bytes() for pid in workers
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Days of 70 MB, plain, archived and as the real Collector writes them, with repeats and torn lines."""
    logs = tmp_path_factory.mktemp("large")
    dice = random.Random(5)
    for day in (18, 19):
        lines = []
        for at in range(20_000):
            more = {
                "level": dice.choice(["INFO", "INFO", "ERROR"]),
                "correlation_id": f"op-{at // 10}",
                "service": dice.choice("abc"),
            }
            more["_meta"] = {"uid": f"{day}-{at if at % 1000 else at // 2}"}
            lines.append(line("x" * 3000, at, **more))
            if at % 5000 == 0:
                lines.append(lines[-1][:100] + b"\n")
        path = day_file(logs, day, lines)
    archive_path(path).parent.mkdir(parents=True)
    with archive_path(path).open("wb") as file:
        gzip_blocks.write([path.read_bytes()], file)
    path.unlink()
    requests_ = [
        real_line(log_request(*(log_record(f"y{at} " + "y" * 3000, at) for at in range(start, start + 100))))
        for start in range(0, 20_000, 100)
    ]
    day_file(logs, 20, requests_)
    return logs


LARGE = """
import json, sys
from collections import Counter
from jarvis_otel.query.log_query import Criteria, LogQuery
def answer(logs):
    out = [[r["_meta"]["uid"] for r in logs.iterate(**asked)] for asked in ({"level": "ERROR"}, {"correlation_id": "op-77"}, {"text": "y777 "}, {})]
    times, groups, records = Counter(), Counter(), 0
    for part in logs.counts(Criteria.of(), [("service",)]):
        records += part.records; times.update(part.times); groups.update(part.groups[0])
    out.append([records, sorted(map(str, times.items())), sorted(map(str, groups.items()))])
    return [*out, logs.tally.unreadable, logs.tally.repeats, logs.tally.files]
one, two = (answer(LogQuery(sys.argv[1], workers=workers)) for workers in (1, 3))
assert one == two
print(json.dumps([len(each) for each in one[:4]] + one[5:]))
"""


def test_several_processes_find_and_count_what_one_does(large):
    errors, operation, text, everything, unreadable, repeats, files = json.loads(run(LARGE, large))
    assert (operation, text, everything) == (20, 1, 40_000 - 2 * 10 + 20_000)
    assert 12_000 < errors < 15_000
    assert unreadable == {"jarvis-2026-01-18.jsonl": 4, "jarvis-2026-01-19.jsonl.gz": 4}
    assert (repeats > 0, files) == (True, 15)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def jarvis(own_project):
    def call(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "jarvis_otel.cli.main", "logs", *map(str, arguments)],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert b"Traceback" not in done.stderr
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return call


def test_the_command_indexes_what_is_there_and_says_so(jarvis, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    day_file(logs, 18, many(3))
    day_file(logs, 18, many(3), stream="traces")
    code, out, err = jarvis("index", "--dir", logs)
    assert code == 0
    assert out.splitlines() == [
        "indexed      jarvis-2026-01-18.jsonl (1 blocks)",
        "indexed      traces-2026-01-18.jsonl (1 blocks)",
    ]
    assert err.startswith("jarvis logs index: 2 files, ")
    code, out, err = jarvis("index", "--dir", logs, "--format", "json")
    told = json.loads(out)
    assert (code, [file["new"] for file in told["files"]], told["problems"]) == (0, [0, 0], [])
    code, out, _ = jarvis("index", "--dir", logs, "--all", "--format", "json")
    assert all(file["new"] for file in json.loads(out)["files"])


def test_the_command_says_what_is_wrong_in_a_line(jarvis, tmp_path):
    code, out, err = jarvis("index", "--dir", tmp_path / "none")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no such directory" in err
    logs = tmp_path / "logs"
    logs.mkdir()
    assert jarvis("index", "--dir", logs)[0] == 1
    day_file(logs, 18, many(3))
    (logs / ".index").write_text("in the way")
    code, out, err = jarvis("index", "--dir", logs)
    assert (code, out) == (2, "")
    assert err.startswith("jarvis logs index: jarvis-2026-01-18.jsonl: ")


def test_a_hash_of_an_id_never_changes():
    assert hashes("trade-xyz789") == (1063740051143867266, 12578026862397809271)
