"""`jarvis logs tail`: the last records without reading the day, and what comes after them, whatever becomes of the files."""

import gzip
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_collector.layout import archive_path, day_path
from jarvis_otel.query.log_query import Criteria, LogQuery, Tally
from jarvis_otel.query.tail import Tail

JARVIS = (sys.executable, "-m", "jarvis_otel.cli.main")
DATA = Path(__file__).parent / "data" / "otelcol"


def line(number, **more):
    record = {
        "timestamp": f"2026-01-18T13:{number // 60 % 60:02d}:{number % 60:02d}.000000Z",
        "level": ("INFO", "ERROR")[number % 5 == 0],
        "message": f"m{number}",
        "service": "trading",
        "active_flags": [],
        "context": {},
        "_meta": {"uid": f"u{number}"},
    }
    return orjson.dumps(record | more) + b"\n"


def lines(*numbers):
    return b"".join(map(line, numbers))


def numbers(found):
    return [int(one.record["message"][1:]) for one in found]


def day(directory, number, content=b""):
    path = day_path(directory, "jarvis", f"2026-01-{number}")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def tail(logs):
    opened = []

    def make(place=logs, follow=True, **criteria):
        notes, tally = [], Tally()
        one = Tail(place, Criteria.of(**criteria), tally, notes.append, follow=follow)
        one.notes, one.tally = notes, tally
        opened.append(one)
        return one

    yield make
    for one in opened:
        one.__exit__(None, None, None)


# --- the end -------------------------------------------------------------------------------------------------------


def test_the_last_records_come_from_the_newest_days_oldest_first(tail, logs):
    day(logs, 17, lines(1, 2, 3))
    day(logs, 18, lines(4, 5))
    assert numbers(tail().last(2)) == [4, 5]
    assert numbers(tail().last(4)) == [2, 3, 4, 5]
    assert numbers(tail().last(100)) == [1, 2, 3, 4, 5]
    assert tail().last(0) == []


def test_archives_are_read_where_the_plain_files_have_too_little(tail, logs):
    path = day(logs, 10, b"".join(line(number, _meta={}) for number in (1, 2, 3)))  # without uids repeats would show
    target = archive_path(path)
    target.parent.mkdir(parents=True)
    target.write_bytes(gzip.compress(path.read_bytes()))
    day(logs, 18, lines(4))
    assert numbers(tail().last(10)) == [1, 2, 3, 4]  # while it is both, it is read once
    path.unlink()
    assert numbers(tail().last(3)) == [2, 3, 4]


def test_a_large_day_is_not_read_for_its_last_lines(logs, tail):
    path = day(logs, 18, b"no record\n" * 500_000 + lines(1, 2, 3))
    one = tail()
    assert numbers(one.last(2)) == [2, 3]
    assert one.tally.unreadable.get(path.name, 0) < 250_000


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 3_000_000), max_size=4),
    number=st.integers(1, 30),
    errors=st.booleans(),
)
def test_the_last_records_are_those_of_a_whole_scan(tail, logs, sizes, number, errors):
    shutil.rmtree(logs, ignore_errors=True)
    count = 0
    for at, size in enumerate(sizes):
        content = b""
        for _ in range(5):
            content += line(count, context={"x": "y" * (size // 5)})
            count += 1
        day(logs, 10 + at, content + b"torn")
    logs.mkdir(exist_ok=True)
    asked = {"level": "ERROR"} if errors else {}
    wanted = [record["message"] for record in LogQuery(logs).iterate(**asked)][-number:]
    assert [one.record["message"] for one in tail(**asked).last(number)] == wanted


def test_lines_of_the_real_collector_are_read_as_ours(tail):
    found = tail(DATA).last(5)
    assert [one.record["message"] for one in found] == [
        record["message"] for record in list(LogQuery(DATA).iterate())[-5:]
    ]


def test_repeats_are_shown_once(tail, logs):
    day(logs, 18, lines(1, 2, 1, 3, 2))
    assert numbers(tail().last(10)) == [1, 3, 2]


def test_a_record_whose_newline_is_not_there_yet_is_shown_or_awaited(tail, logs):
    path = day(logs, 18, lines(1, 2).rstrip(b"\n"))
    assert numbers(tail(follow=False).last(5)) == [1, 2]
    one = tail()
    assert numbers(one.last(5)) == [1]
    assert list(one.news()) == []
    with path.open("ab") as file:
        file.write(b"\n")
    assert numbers(one.news()) == [2]


def test_files_whose_sidecar_is_out_of_the_interval_are_passed_over(tail, logs):
    path = day(logs, 18, lines(1))
    path.with_suffix(".meta.json").write_bytes(
        orjson.dumps(
            {
                "size": path.stat().st_size,
                "earliest": "2026-01-18T13:00:00.000000Z",
                "latest": "2026-01-18T14:00:00.000000Z",
            }
        )
    )
    one = tail(since="2026-01-19T00:00:00Z")
    assert one.last(5) == []
    assert one.tally.files_passed_over == 1


# --- what comes ----------------------------------------------------------------------------------------------------


def test_new_lines_are_news_once_they_are_whole(tail, logs):
    path = day(logs, 18, lines(1))
    one = tail(level="ERROR")
    assert one.last(10) == []
    with path.open("ab", buffering=0) as file:
        for piece in (line(5)[:20], line(5)[20:-1]):
            file.write(piece)
            assert list(one.news()) == []
        file.write(b"\n" + lines(6, 10))
        assert numbers(one.news()) == [5, 10]
    assert list(one.news()) == []


def test_midnight_makes_a_new_file_which_is_read_from_its_start(tail, logs):
    path = day(logs, 18, lines(1))
    one = tail()
    one.last(0)
    with path.open("ab") as file:
        file.write(lines(2))
    day(logs, 19, lines(3))
    assert numbers(one.news()) == [2, 3]


def test_a_directory_and_a_file_that_are_not_there_yet_are_awaited(tail, logs):
    one = tail()
    assert one.last(10) == []
    assert list(one.news()) == []
    day(logs, 18, lines(1))
    assert numbers(one.news()) == [1]
    named = tail([logs / "other.jsonl"])
    assert named.last(10) == []
    (logs / "other.jsonl").write_bytes(lines(7))
    assert numbers(named.news()) == [7]


def test_a_file_that_is_renamed_is_read_to_its_end_and_the_new_one_from_its_start(tail, logs):
    path = day(logs, 18, lines(1))
    one = tail()
    one.last(10)
    with path.open("ab", buffering=0) as file:
        path.rename(logs / "moved")
        file.write(lines(2))
        day(logs, 18, lines(3))
        assert numbers(one.news()) == [2, 3]
        file.write(lines(4))
        assert numbers(one.news()) == [4]
    assert one.notes == [f"{path.name}: replaced, the new one is read from its start"]


def test_a_day_that_is_archived_meanwhile_is_not_shown_again(tail, logs):
    path = day(logs, 18, lines(1, 2))
    one = tail()
    one.last(10)
    target = archive_path(path)
    target.parent.mkdir(parents=True)
    target.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert list(one.news()) == []


@pytest.mark.parametrize("content", [lines(8), lines(8, 9, 10, 11, 12, 13)], ids=["shorter", "longer"])
def test_a_file_that_is_truncated_and_written_anew_is_read_from_its_start(tail, logs, content):
    path = day(logs, 18, lines(1, 2, 3))
    one = tail()
    one.last(10)
    with path.open("r+b") as file:
        file.truncate()
        file.write(content)
    assert numbers(one.news()) == numbers(tail([path]).last(10))
    assert one.notes == [f"{path.name}: truncated, read from its start"]


def test_a_torn_tail_that_the_collector_takes_back_is_never_shown(tail, logs):
    path = day(logs, 18, lines(1) + line(2)[:30])
    one = tail()
    assert numbers(one.last(10)) == [1]
    os.truncate(path, len(line(1)))
    with path.open("ab") as file:
        file.write(lines(3))
    assert numbers(one.news()) == [3]
    assert one.tally.unreadable == {}


def test_a_line_longer_than_a_piece_is_news_when_it_is_whole(tail, logs):
    path = day(logs, 18, lines(1))
    one = tail()
    one.last(10)
    long = line(2, context={"x": "y" * 5_000_000})
    with path.open("ab", buffering=0) as file:
        file.write(long[:3_000_000])
        assert list(one.news()) == []
        file.write(long[3_000_000:])
    assert numbers(one.news()) == [2]


def test_lines_of_the_real_collector_are_news_as_they_come(tail, logs):
    source = next(DATA.glob("jarvis-*.jsonl"))
    path = logs / source.name
    one = tail()
    found, content = [], source.read_bytes()
    logs.mkdir()
    for start in range(0, len(content), 1000):
        with path.open("ab") as file:
            file.write(content[start : start + 1000])
        found += one.news()
    assert [item.record for item in found] == list(LogQuery(files=[source]).iterate())


def test_each_record_is_news_once_while_it_is_written_across_days(tail, logs):
    logs.mkdir()
    written = threading.Event()

    def write():
        for at in range(10, 20):
            with day_path(logs, "jarvis", f"2026-01-{at}").open("ab", buffering=0) as file:
                for number in range(at * 100, at * 100 + 100):
                    content = line(number)
                    file.write(content[:50])
                    file.write(content[50:])
        written.set()

    one = tail()
    one.last(0)
    writer = threading.Thread(target=write)
    writer.start()
    found = []
    while not written.is_set():
        found += one.news()
    writer.join()
    found += one.news()
    assert numbers(found) == list(range(1000, 2000))
    assert one.tally.unreadable == {}


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def follow(own_project, logs):
    started = []

    def start(*args, stdout=subprocess.PIPE):
        process = subprocess.Popen(
            [*JARVIS, "logs", "tail", "--dir", str(logs), *args], stdout=stdout, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_following_prints_what_comes_and_ends_on_ctrl_c(follow, logs):
    path = day(logs, 18, lines(1, 2))
    process = follow("-f", "-n", "1", "--format", "json")
    assert orjson.loads(process.stdout.readline())["message"] == "m2"
    with path.open("ab") as file:
        file.write(lines(3))
    assert orjson.loads(process.stdout.readline())["message"] == "m3"
    with path.open("ab") as file:
        file.write(b"no record\n" + lines(4))
    assert orjson.loads(process.stdout.readline())["message"] == "m4"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr.read() == f"jarvis logs tail: {path.name}: 1 line is no record, passed over\n"


def test_following_ends_when_nobody_reads_although_nothing_comes(follow, logs):
    day(logs, 18, lines(1))
    process = follow("-f")
    assert "m1" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 0
    assert process.stderr.read() == ""


def test_following_until_a_time_ends_then(follow, logs):
    day(logs, 18, lines(1))
    process = follow("-f", "--until", "2026-01-19")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out.count("m1")) == (0, 1)
    assert "to 2026-01-19" in err


def test_standard_input_is_not_followed_and_a_missing_directory_is_told(follow, logs):
    process = follow()
    assert process.wait(20) == 2
    assert "no such directory" in process.stderr.read()
    done = subprocess.run(
        [*JARVIS, "logs", "tail", "-f", "--file", "-"], input="", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "standard input cannot be followed" in done.stderr
    done = subprocess.run(
        [*JARVIS, "logs", "tail", "-n", "1", "--file", "-"], input=lines(1, 2), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout.count(b"m2")) == (0, 1)


def test_nothing_found_at_the_end_is_exit_1(follow, logs):
    day(logs, 18, lines(1))
    process = follow("--service", "none")
    assert process.wait(20) == 1
    assert "nothing found" in process.stderr.read()
