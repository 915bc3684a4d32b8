"""The same answers from every source: plain files, archives, the real Collector's lines, named files, all while they change."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_collector import gzip_blocks
from jarvis_collector.config import Retention
from jarvis_collector.layout import sidecar_path
from jarvis_collector.otlp import Encoding, Signal, read
from jarvis_collector.retention import rotate
from jarvis_otel.query.log_query import LogQuery
from tests.day_files import (
    DATA,
    REAL_DAY,
    TRACE_ID,
    archive,
    attribute,
    cases,
    day_file,
    log_day,
    log_record,
    log_request,
    many,
    numbers,
    our_lines,
    real_line,
)
from tests.naive_query import each_once, is_wanted


def messages(found):
    return [record.get("message") for record in found]


# --- the real Collector's lines ------------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path):
    return LogQuery(shutil.copytree(DATA, tmp_path / "logs"))


def test_what_the_real_collector_wrote_is_read_with_all_that_it_says(real):
    found = list(real.iterate())
    assert len(found) == 20
    assert messages(found[:7]) == [
        "Trade requested",
        "POST /trade → 202",
        "Trade execution failed: insufficient balance",
        '{"order":42,"side":"buy","ok":true,"parts":[1e-7,"AAEC",null]}',
        "no time at all",
        "observed only \u2028 still one line \x1b[31m red",
        "broken \ufffd\ufffd utf-8",
    ]
    failure = found[2]
    assert (failure["level"], failure["service"], failure["trace_id"]) == ("ERROR", "trading", TRACE_ID)
    assert failure["error"]["type"] == "InsufficientBalanceError"
    assert failure["flags"] == {"LIVE_TRADING_ENABLED": "on", "ADVANCED_TRADING_ENABLED": "off"}
    assert failure["_meta"]["hostname"] == "box-1"


def test_what_lies_behind_a_line_that_sigkill_tore_is_read_and_the_torn_ones_are_counted(real):
    assert messages(real.search(text="LOAD 1.0."))[-1].startswith("load 1.0.5")
    assert messages(real.search(text="after the last kill")) == ["after the last kill"]
    list(real.iterate())
    assert real.tally.unreadable == {f"jarvis-{REAL_DAY}.jsonl": 2}


def test_the_attribute_that_names_the_real_collectors_files_does_not_show(real):
    for record in [*real.iterate(), *real.spans("trade-xyz789")]:
        assert "jarvis.log_day" not in orjson.dumps(record).decode()


def test_a_record_without_any_time_gets_the_start_of_the_day_on_which_it_arrived(real, tmp_path):
    times = {record["message"]: record["timestamp"] for record in real.iterate()}
    assert times["no time at all"] == f"{REAL_DAY}T00:00:00.000000Z"
    assert times["observed only \u2028 still one line \x1b[31m red"] == "2026-01-18T13:30:09.000000Z"
    undated = tmp_path / "undated"
    undated.write_bytes(orjson.dumps(log_request({"body": {"stringValue": "x"}})) + b"\n")
    named = shutil.copy(undated, tmp_path / "jarvis-2026-01-19.jsonl")
    (first,) = LogQuery(files=[undated]).search()
    (second,) = LogQuery(files=[named]).search()
    assert (first["timestamp"], second["timestamp"]) == ("1970-01-01T00:00:00.000000Z", "2026-01-19T00:00:00.000000Z")
    assert first["_meta"]["uid"] == second["_meta"]["uid"]
    undated.write_bytes(real_line(log_request({"body": {"stringValue": "x"}}), "2026-01-20"))
    (third,) = LogQuery(files=[undated]).search()
    assert third["timestamp"] == "2026-01-20T00:00:00.000000Z"


def test_a_trace_in_the_real_collectors_files_crosses_processes_with_its_spans_and_flags(real):
    trace = real.trace("trade-xyz789")
    assert messages(trace.records) == [
        "Trade requested",
        "POST /trade → 202",
        "Trade execution failed: insufficient balance",
    ]
    assert [(span["name"], span["status"]["code"]) for span in trace.spans] == [
        ("POST /trade", "unset"),
        ("execute", "error"),
    ]
    assert trace.flags() == {"ADVANCED_TRADING_ENABLED": "off", "LIVE_TRADING_ENABLED": "on", "NEW_UI": "on"}
    assert real.trace(TRACE_ID.upper()).records[0]["user_id"] == "tg_1"


def test_errors_and_rates_of_the_real_collectors_files_are_counted(real):
    assert real.get_error_summary() == {"InsufficientBalanceError": 1, "none": 1}
    assert real.get_error_summary(group_by="service") == {"bytes": 1, "trading": 1}
    assert real.flag_rates()["LIVE_TRADING_ENABLED"]["on"].rate == 1.0


def test_a_file_in_which_both_collectors_wrote_is_read_like_any_other(tmp_path):
    first, second, third = (log_request(log_record(text)) for text in "abc")
    day_file(tmp_path, 18, [*our_lines(first), real_line(second), *our_lines(third)])
    assert messages(LogQuery(tmp_path).iterate()) == ["a", "b", "c"]


def test_a_whole_line_that_lost_only_its_newline_is_read_on_both_sides_of_the_glue(tmp_path):
    ours, theirs = our_lines(log_request(log_record("a")))[0], real_line(log_request(log_record("b")))
    for content in (ours[:-1] + theirs, theirs[:-1] + ours, theirs[:-1] + real_line(log_request(log_record("a")))):
        day_file(tmp_path, 18, content)
        logs = LogQuery(tmp_path)
        assert sorted(messages(logs.iterate())) == ["a", "b"]
        assert logs.tally.unreadable == {}


def test_a_keyword_that_is_called_like_a_request_leaves_a_line_what_it_is(tmp_path):
    keyword = {"key": "note", "value": {"kvlistValue": {"values": [attribute("resourceLogs", ["x"])]}}}
    lines = our_lines(log_request(log_record("m", attributes=[keyword, attribute("resourceLogs", "y")])))
    assert b'{"resourceLogs":' in lines[0]
    day_file(tmp_path, 18, lines)
    logs = LogQuery(tmp_path)
    assert [record["context"]["note"] for record in logs.iterate()] == [{"resourceLogs": ["x"]}]
    assert logs.tally.unreadable == {}


def test_records_of_a_request_that_cannot_be_read_are_counted_alone(tmp_path):
    deep = {"stringValue": "x"}
    for _ in range(3000):
        deep = {"arrayValue": {"values": [deep]}}
    body = json.dumps(log_request(log_record("a"), log_record("MARK"), log_record("b")))
    nested = '{"arrayValue":{"values":[' * 3000 + '{"stringValue":"x"}' + "]}}" * 3000
    day_file(tmp_path, 18, body.replace('{"stringValue": "MARK"}', nested).encode() + b"\n")
    logs = LogQuery(tmp_path)
    assert messages(logs.iterate()) == ["a", "b"]
    assert logs.tally.unreadable == {"jarvis-2026-01-18.jsonl": 1}


def test_what_is_no_request_though_it_begins_like_one_is_counted(tmp_path):
    bad = [b'{"resourceLogs":5}\n', b'{"resourceLogs":[{"a\n', b'{"x":{"resourceLogs":[]}}\n', b'{"resourceLogs"\n']
    day_file(tmp_path, 18, [*bad, real_line(log_request(log_record("a")))])
    logs = LogQuery(tmp_path)
    assert messages(logs.iterate()) == ["a"]
    assert logs.tally.unreadable == {"jarvis-2026-01-18.jsonl": 4}


def test_requests_of_many_megabytes_are_read_whole(tmp_path):
    padding = "x" * 1000
    requests = [log_request(*(log_record(f"{part}.{n} {padding}") for n in range(6000))) for part in "ab"]
    day_file(tmp_path, 18, [real_line(request) for request in requests])
    assert len(messages(LogQuery(tmp_path).iterate())) == 12_000
    assert messages(LogQuery(tmp_path).search(text="b.5999 ")) == [f"b.5999 {padding}"]


@pytest.mark.parametrize(
    ("where", "kept"),
    [("resource", False), ("record", True)],
)
def test_only_a_resources_attribute_of_the_day_is_left_out_wherever_it_stands(tmp_path, where, kept):
    record = log_record("m", attributes=[log_day("2026-01-18")] if where == "record" else [])
    resource = [log_day("2026-01-18")] if where == "resource" else []
    request = log_request(record, resource=[*resource, attribute("last", "x")])
    for line in (orjson.dumps(request), json.dumps(request).encode(), real_line(request).strip()):
        day_file(tmp_path, 18, line + b"\n")
        (found,) = LogQuery(tmp_path).iterate()
        assert ("jarvis.log_day" in found["context"]) == kept
        assert "jarvis.log_day" not in found["_meta"]
        assert found["_meta"]["last"] == "x"


@pytest.mark.parametrize(
    ("asked", "body"),
    [
        ({"text": '"a":true'}, {"kvlistValue": {"values": [attribute("a", True)]}}),
        ({"text": ":null,"}, {"arrayValue": {"values": [{}, {}, {}]}}),
        ({"text": "null"}, {"arrayValue": {"values": [{}, {}, {}]}}),
        ({"text": "[1234,567"}, {"arrayValue": {"values": [{"intValue": "1234"}, {"intValue": "567"}]}}),
        ({"text": "0.00001"}, {"arrayValue": {"values": [{"doubleValue": 1e-05}]}}),
        ({"text": "000.0"}, {"arrayValue": {"values": [{"doubleValue": 1e5}]}}),
        ({"text": "100000"}, {"arrayValue": {"values": [{"doubleValue": 1e5}]}}),
        ({"where": "message=[null,null]"}, {"arrayValue": {"values": [{}, {}]}}),
    ],
)
def test_what_a_line_says_otherwise_than_the_request_is_found_too(tmp_path, asked, body):
    request = log_request({**log_record(""), "body": body})
    day_file(tmp_path, 18, our_lines(request))
    expected = LogQuery(tmp_path).search(**asked)
    day_file(tmp_path, 18, real_line(request))
    assert LogQuery(tmp_path).search(**asked) == expected


@pytest.mark.parametrize(
    ("asked", "raw"),
    [
        ({"text": "100000.0"}, b'"body":{"arrayValue":{"values":[{"doubleValue":1e5}]}}'),
        ({"text": "100000"}, b'"body":{"arrayValue":{"values":[{"doubleValue":1e5}]}}'),
        ({"user_id": "bro\ufffdken"}, b'"attributes":[{"key":"user.id","value":{"stringValue":"bro\xffken"}}]'),
        ({"where": 'message="bro\ufffdken"'}, b'"body":{"stringValue":"bro\xffken"}'),
        ({"text": "RO\ufffdKE"}, b'"body":{"stringValue":"bro\xffken"}'),
        ({"user_id": "abc"}, b'"attributes":[{"key":"user.id","value":{"stringValue":"\\u0061bc"}}]'),
    ],
)
def test_what_a_request_spells_in_another_way_is_found_too(tmp_path, asked, raw):
    body = b'{"resourceLogs":[{"resource":{},"scopeLogs":[{"logRecords":[{"timeUnixNano":"1",%s}]}]}]}' % raw
    day_file(tmp_path, 18, body + b"\n")
    assert len(LogQuery(tmp_path).search(**asked)) == 1


@pytest.mark.parametrize(
    "asked",
    [
        {"service": "unknown_service"},
        {"where": "service=unknown_service"},
        {"where": "service~=Known"},
        {"where": "error.type=ValueError"},
        {"where": "level=ERROR"},
        {"where": "_meta.environment=prod"},
        {"where": "context.nan=NaN"},
        {"where": f"trace_id={TRACE_ID}"},
        {"where": "flags.A_FLAG=blue"},
        {"where": "active_flags=B_FLAG and message=m"},
        {"correlation_id": TRACE_ID},
        {"correlation_id": TRACE_ID.upper()},
        {"trace_id": TRACE_ID.upper()},
        {"flag": "A_FLAG=blue"},
        {"flag": "B_FLAG"},
        {"user_id": "123456789"},
        {"text": "1234567"},
    ],
)
def test_each_filter_finds_in_requests_what_it_finds_in_lines(tmp_path, asked):
    attributes = [
        attribute("exception.type", "builtins.ValueError"),
        {"key": "nan", "value": {"doubleValue": "NaN"}},
        attribute("jarvis.flag.A_FLAG", "blue"),
        attribute("jarvis.active_flags", ["B_FLAG"]),
        attribute("user.id", "123456789"),
        attribute("order", 1234567),
    ]
    # hex digits in any case, as the specification has it
    record = log_record("m", severity=17, attributes=attributes, traceId=TRACE_ID[:16].upper() + TRACE_ID[16:])
    request = log_request(record, service=None, resource=[attribute("deployment.environment.name", "prod")])
    other = log_request(log_record("other"))
    day_file(tmp_path, 18, [real_line(other), real_line(request), real_line(other)])
    assert messages(LogQuery(tmp_path).iterate(**asked)) == ["m"]


# --- against a naive reference -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases(), st.lists(st.sampled_from(["plain", "archive", "gzip", "both"]), min_size=2, max_size=2))
def test_every_source_gives_what_a_naive_reference_finds(case, places):
    contents, known, asked = case
    expected = each_once(record for record in known if is_wanted(record, asked))
    with tempfile.TemporaryDirectory() as directory:
        files = []
        for day, (content, place) in enumerate(zip(contents, places, strict=True), 18):
            path = day_file(directory, day, content)
            files.append(path if place == "plain" else archive(path, gzip.compress if place == "gzip" else None))
            if place in ("archive", "gzip"):
                path.unlink()
        assert list(LogQuery(directory).iterate(**asked)) == expected
        assert list(LogQuery(files=files).iterate(**asked)) == expected
        by_time = sorted(expected, key=lambda record: record["timestamp"])
        assert LogQuery(directory).search(**asked, limit=2) == by_time[-2:]


# --- archives ------------------------------------------------------------------------------------------------------


def test_archived_days_are_read_in_their_place_among_the_plain_ones(tmp_path):
    for day in (18, 19, 20):
        path = day_file(tmp_path, day, many(10, start=10 * day))
        if day != 19:
            archive(path)
            path.unlink()
    (tmp_path / "archive" / "2026-01" / "jarvis-2026-01-17.jsonl.gz.tmp").write_bytes(b"half")
    logs = LogQuery(tmp_path)
    assert numbers(logs.iterate()) == list(range(180, 210))
    assert (logs.tally.files, logs.tally.unreadable, logs.tally.damaged) == (3, {}, [])


def test_a_day_that_is_there_plain_and_archived_is_read_once(tmp_path):
    archive(day_file(tmp_path, 18, many(10)))
    logs = LogQuery(tmp_path)
    assert numbers(logs.iterate()) == list(range(10))
    assert logs.tally.files == 1


def test_a_day_that_grew_after_it_was_archived_is_read_from_both(tmp_path):
    path = day_file(tmp_path, 18, many(10))
    archive(path)
    day_file(tmp_path, 18, many(5, start=10))
    assert sorted(numbers(LogQuery(tmp_path).iterate())) == list(range(15))


def test_an_archive_whose_sidecar_excludes_the_interval_is_not_opened(tmp_path):
    path = day_file(tmp_path, 18, many(10))
    target = archive(path)
    path.unlink()
    size = target.stat().st_size
    target.write_bytes(b"x" * size)
    logs = LogQuery(tmp_path)
    assert logs.search(since="2026-01-18T00:00:10Z") == []
    assert (logs.tally.files_passed_over, logs.tally.damaged) == (1, [])
    assert sidecar_path(target).exists()


def test_parts_of_an_archive_outside_the_interval_are_not_inflated(tmp_path):
    path = day_file(tmp_path, 18, many(4000, padding=2000))
    target = archive(path)
    path.unlink()
    first, *_, last = gzip_blocks.blocks(target)
    content = bytearray(target.read_bytes())
    content[first.offset + 200 : first.offset + 300] = bytes(100)
    target.write_bytes(content)
    logs = LogQuery(tmp_path)
    since = datetime.fromisoformat(last.earliest.decode())
    assert numbers(logs.iterate(since=since))[-1] == 3999
    assert logs.tally.damaged == []
    rest = numbers(logs.iterate())
    assert rest == list(range(rest[0], 4000))
    assert rest[0] > 0
    assert len(logs.tally.damaged) == 1
    assert logs.tally.damaged[0].startswith("jarvis-2026-01-18.jsonl.gz: ")


@pytest.mark.parametrize("compress", [None, gzip.compress])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_of_a_truncated_archive_all_that_is_whole_is_read_and_the_damage_told(tmp_path, compress, kept):
    path = day_file(tmp_path, 18, many(4000, padding=2000))
    target = archive(path, compress)
    path.unlink()
    os.truncate(target, int(target.stat().st_size * kept))
    logs = LogQuery(tmp_path)
    found = numbers(logs.iterate())
    assert found == list(range(len(found)))
    assert len(found) > 4000 * kept - 1200
    assert bool(logs.tally.damaged) == (kept > 0)


def test_a_file_that_only_pretends_to_be_an_archive_is_told_and_passed_over(tmp_path):
    day_file(tmp_path, 19, many(3))
    (tmp_path / "archive" / "2026-01").mkdir(parents=True)
    (tmp_path / "archive" / "2026-01" / "jarvis-2026-01-18.jsonl.gz").write_bytes(b"hello\n" * 100)
    logs = LogQuery(tmp_path)
    assert numbers(logs.iterate()) == [0, 1, 2]
    assert len(logs.tally.damaged) == 1


def test_archives_of_the_real_collectors_files_give_the_same_answers(tmp_path):
    directory = Path(shutil.copytree(DATA, tmp_path / "logs"))
    before, trace = list(LogQuery(directory).iterate()), LogQuery(directory).trace("trade-xyz789")
    for path in directory.glob("*.jsonl"):
        archive(path)
        path.unlink()
    assert list(LogQuery(directory).iterate()) == before
    assert LogQuery(directory).trace("trade-xyz789") == trace


# --- while the files change ----------------------------------------------------------------------------------------


def test_each_record_is_seen_once_while_the_archiver_runs_and_the_days_file_is_written(tmp_path):
    days, a_day = 24, 150
    for day in range(days):
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)
        path = tmp_path / f"jarvis-{moment:%Y-%m-%d}.jsonl"
        path.write_bytes(b"".join(many(a_day, start=day * a_day)))
        os.utime(path, (moment.timestamp(),) * 2)
    closed, today = days * a_day, tmp_path / "jarvis-2026-02-01.jsonl"
    done = threading.Event()
    errors = []

    def write():
        with today.open("ab", buffering=0) as file:
            number = closed
            while not done.wait(0.0005):
                line = many(1, start=number)[0]
                file.write(line[:40])  # torn, for a moment
                file.write(line[40:])
                number += 1

    def archive_all():
        try:
            now = int(datetime(2026, 2, 1, tzinfo=UTC).timestamp()) * 10**9
            report = rotate(tmp_path, Retention(plain_days=1, keep_days=60, min_free=0.0), clock=lambda: now)
            errors.extend(report.problems)
            assert len(report.archived) == days
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write), threading.Thread(target=archive_all)]
    for thread in threads:
        thread.start()
    rounds = 0
    try:
        while rounds < 5 or (threads[1].is_alive() and rounds < 2000):
            logs = LogQuery(tmp_path)
            found = numbers(logs.iterate())
            assert found == list(range(len(found)))
            assert len(found) >= closed
            assert logs.tally.unreadable == {}
            rounds += 1
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert errors == []


def test_a_day_that_is_archived_after_the_directory_was_listed_is_read_from_its_archive(tmp_path):
    paths = [day_file(tmp_path, day, many(3, start=day)) for day in (18, 21)]
    found = LogQuery(tmp_path).iterate()
    first = next(found)
    archive(paths[1])
    paths[1].unlink()
    assert numbers([first, *found]) == [18, 19, 20, 21, 22, 23]


def test_a_day_that_is_purged_after_the_directory_was_listed_is_passed_over(tmp_path):
    paths = [day_file(tmp_path, day, many(3, start=day)) for day in (18, 21)]
    found = LogQuery(tmp_path).iterate()
    first = next(found)
    paths[1].unlink()
    assert numbers([first, *found]) == [18, 19, 20]


def test_a_file_that_is_purged_while_it_is_read_is_read_to_its_end(tmp_path):
    path = day_file(tmp_path, 18, many(3000, padding=2000))
    found = LogQuery(tmp_path).iterate()
    first = next(found)
    path.unlink()
    assert numbers([first, *found]) == list(range(3000))


# --- named files ---------------------------------------------------------------------------------------------------


def test_named_files_are_read_in_the_order_in_which_they_are_given(tmp_path):
    first, second = day_file(tmp_path, 18, many(2)), tmp_path / "b.gz"
    second.write_bytes(gzip.compress(b"".join(many(2, start=2))))
    disguised = shutil.copy(second, tmp_path / "c.txt")
    assert numbers(LogQuery(files=[second, str(first)]).iterate()) == [2, 3, 0, 1]
    assert numbers(LogQuery(files=[disguised]).iterate()) == [2, 3]
    with pytest.raises(ValueError, match="log_dir and files"):
        LogQuery(tmp_path, files=[first])


def test_records_and_spans_in_one_named_file_are_told_apart(tmp_path):
    ids = {"traceId": TRACE_ID, "spanId": "00f067aa0ba902b7"}
    spans = log_request(service="api") | {}
    spans = {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [{"spans": [{**ids, "name": "work"}]}]}]}
    logs = log_request(log_record("m", **ids))
    metrics = b'{"timestamp":"2026-01-18T00:00:00.000000Z","resourceMetrics":[]}\n'
    together = tmp_path / "together"
    for content in (
        [*our_lines(spans, Signal.TRACES), *our_lines(logs), metrics],
        [real_line(spans), real_line(logs), metrics, b'{"resourceMetrics":[]}\n'],
    ):
        together.write_bytes(b"".join(content))
        query = LogQuery(files=[together])
        trace = query.trace(TRACE_ID)
        assert (messages(trace.records), [span["name"] for span in trace.spans]) == (["m"], ["work"])
        assert messages(query.iterate()) == ["m"]
        assert query.tally.unreadable == {}


def test_a_day_file_of_spans_or_metrics_holds_no_records(tmp_path):
    names = ("traces", "metrics", "jarvis", "trading")
    files = [day_file(tmp_path, 18, many(1, start=at), stream) for at, stream in enumerate(names)]
    assert numbers(LogQuery(files=files).iterate()) == [2, 3]


@pytest.fixture
def jarvis(own_project):
    def run(*arguments, stdin=b""):
        done = subprocess.run(
            [sys.executable, "-m", "jarvis_otel.cli.main", "logs", *map(str, arguments)],
            capture_output=True,
            timeout=60,
            input=stdin,
            env={**os.environ, "TZ": "UTC"},
            check=False,
        )
        assert b"Traceback" not in done.stderr
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run


COMMANDS = [
    ("query", "--limit", "0"),
    ("query", "--format", "jsonl"),
    ("query", "--format", "csv", "--level", "ERROR"),
    ("trace", "trade-xyz789"),
    ("errors", "--by", "flag"),
    ("reproduce", "trade-xyz789"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_answers_the_same_from_a_directory_from_files_and_from_standard_input(jarvis, tmp_path, command):
    logs, traces = (DATA / f"{stream}-{REAL_DAY}.jsonl" for stream in ("jarvis", "traces"))
    code, out, _ = jarvis(*command, "--dir", DATA)
    assert (code, bool(out)) == (0, True)
    assert jarvis(*command, "--file", logs, "--file", traces)[:2] == (code, out)
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(logs.read_bytes()))
    assert jarvis(*command, "--file", packed, "--file", traces)[:2] == (code, out)
    if "--limit" not in command and command[-1] != "jsonl":  # the record without a time has the day of the file's name
        stdin = logs.read_bytes() + traces.read_bytes()
        assert jarvis(*command, "--file", "-", stdin=stdin)[:2] == (code, out)
        assert jarvis(*command, "--file", "-", stdin=gzip.compress(stdin))[:2] == (code, out)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_answers_the_same_from_the_real_collectors_lines_and_from_ours(jarvis, tmp_path, command):
    day = int(datetime(2026, 11, 26, tzinfo=UTC).timestamp()) * 10**9
    for stream, signal in (("jarvis", Signal.LOGS), ("traces", Signal.TRACES)):
        found = []
        for line in (DATA / f"{stream}-{REAL_DAY}.jsonl").read_bytes().split(b"\n")[:-1]:
            whole = line[line.rindex(b'{"resource' + (b"Logs" if stream == "jarvis" else b"Spans")) :]
            bare = whole.replace(b"," + orjson.dumps(log_day(REAL_DAY)), b"")
            assert bare != whole
            found += read(signal, Encoding.JSON, bare, day).lines
        (tmp_path / f"{stream}-{REAL_DAY}.jsonl").write_bytes(b"".join(found))
    assert jarvis(*command, "--dir", tmp_path)[:2] == jarvis(*command, "--dir", DATA)[:2]


def test_a_file_that_is_not_there_is_one_line_and_exit_2(jarvis, tmp_path):
    code, out, err = jarvis("query", "--file", tmp_path / "none")
    assert (code, out, err) == (2, "", f"jarvis logs query: {tmp_path}/none: no such file\n")


def test_a_directory_and_a_file_together_are_wrong_usage(jarvis, tmp_path):
    assert jarvis("query", "--file", tmp_path, "--dir", tmp_path)[0] == 2


def test_a_damaged_archive_is_told_in_a_line_and_what_is_whole_is_printed(jarvis, tmp_path):
    path = day_file(tmp_path, 18, many(4000, padding=2000))
    target = archive(path)
    path.unlink()
    os.truncate(target, target.stat().st_size - 10)
    code, out, err = jarvis("query", "--dir", tmp_path, "--format", "jsonl", "--limit", "1")
    assert (code, len(out.splitlines())) == (0, 1)
    assert err.splitlines()[-1].startswith("jarvis logs query: jarvis-2026-01-18.jsonl.gz: ")


def test_nothing_found_names_the_files(jarvis, tmp_path):
    path = day_file(tmp_path, 18, many(1))
    code, out, err = jarvis("query", "--file", path, "--file", "-", "--service", "none")
    assert (code, out) == (1, "")
    assert err == "jarvis logs query: nothing found in jarvis-2026-01-18.jsonl, stdin (2 files)\n"


# --- doctor --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [True, False])
def test_doctor_warns_of_a_day_file_in_which_two_collectors_wrote(own_project, mixed):
    ours, theirs = b"".join(many(2)), real_line(log_request(*(log_record("x" * 1000) for _ in range(300))))
    (own_project / "logs").mkdir()
    day_file(own_project / "logs", 18, [ours, theirs] if mixed else [theirs, theirs])
    day_file(own_project / "logs", 19, [ours, ours])
    done = subprocess.run(
        [sys.executable, "-m", "jarvis_otel.cli.main", "doctor", "--format", "json"],
        capture_output=True,
        timeout=60,
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        check=False,
    )
    warned = [item for item in json.loads(done.stdout) if item["what"] == "logs" and item["state"] == "warning"]
    assert len(warned) == mixed
    assert all("jarvis-2026-01-18.jsonl" in item["text"] and "01-19" not in item["text"] for item in warned)
