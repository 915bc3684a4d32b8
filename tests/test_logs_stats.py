"""`jarvis logs stats`: counts that are those of a naive count, drawn, as a table and as data."""

import csv
import io
import itertools
import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_otel.cli.main import main
from jarvis_otel.query import stats
from jarvis_otel.query.chart import chart
from jarvis_otel.query.counts import Question, counts_of
from jarvis_otel.query.log_query import LogQuery
from jarvis_otel.query.scan import Found
from jarvis_otel.query.times import Interval
from jarvis_otel.terminal import Paint

DATA = Path(__file__).parent / "data" / "otelcol"
LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
START = datetime(2026, 1, 18, 13, tzinfo=UTC)


def record(second, level="INFO", **more):
    moment = START + timedelta(seconds=second)
    start = {
        "timestamp": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "level": level,
        "message": "m",
        "service": "trading",
    }
    return start | {"active_flags": [], "context": {}} | more


RECORDS = [
    record(0, "INFO", service="api", context={"symbol": "SOL"}),
    record(1, "ERROR", flags={"NEW_UI": "on"}, error={"type": "BalanceError", "message": "x"}),
    record(59, "INFO", flags={"NEW_UI": "off"}, context={"symbol": "SOL"}),
    record(600, "WARNING", active_flags=["A", "B"]),
    record(601, "FATAL?", context={"symbol": "=1+1", "n": 5}),
]


@pytest.fixture
def jarvis(own_project, capsysbinary, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLUMNS", "100")
    time.tzset()
    write(own_project, RECORDS)

    def run(*args):
        code = main(["logs", "stats", *args])
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    yield run
    monkeypatch.undo()
    time.tzset()


def write(home, records):
    (home / "logs").mkdir(exist_ok=True)
    (home / "logs" / "jarvis-2026-01-18.jsonl").write_bytes(b"".join(orjson.dumps(item) + b"\n" for item in records))


# --- the counts ----------------------------------------------------------------------------------------------------

_RECORDS = st.lists(
    st.builds(
        record,
        st.integers(0, 200_000),
        st.sampled_from([*LEVELS, "odd", None, 5]),
        service=st.sampled_from(["a", "b", "c", None, 7, ["a", "b"]]),
        context=st.fixed_dictionaries({}, optional={"x": st.sampled_from(["1", 1, 1.5, None, True, {"y": 1}, []])}),
    ),
    max_size=60,
)


def counted_of(records, fields=(), width=None, *, times=None):
    """Records, or times of INFO records, counted."""
    found = (
        (Found(one["timestamp"], one, b"") for one in records)
        if times is None
        else (Found(text, {"level": "INFO"}, b"") for text in times)
    )
    precision = stats.precision_for(width)
    return stats.count(counts_of(found, Question(tuple(fields), precision)), fields, width, precision)


def naive(value):
    if value is None or value == []:
        return [None]
    return [
        item if isinstance(item, str) else json.dumps(item, separators=(",", ":"))
        for item in (value if isinstance(value, list) else [value])
    ]


@settings(deadline=None)
@given(_RECORDS, st.sampled_from([None, timedelta(seconds=7), timedelta(minutes=5), timedelta(days=1)]))
def test_counts_and_bars_are_those_of_a_naive_count(records, width):
    fields = [("service",), ("level", "context.x")]
    counted = counted_of(records, fields, width)
    assert counted.records == len(records)
    by_service = Counter(value for one in records for value in naive(one["service"]))
    assert {key[0]: number for key, number in counted.groups[0].counts.items()} == by_service
    errors = Counter(
        value for one in records if one["level"] in ("ERROR", "CRITICAL") for value in naive(one["service"])
    )
    assert {key[0]: number for key, number in counted.groups[0].errors.items() if number} == errors
    pairs = Counter(
        (level, value) for one in records for level in naive(one["level"]) for value in naive(one["context"].get("x"))
    )
    assert counted.groups[1].counts == pairs
    width, bars = stats.bars(counted, Interval(), width, UTC)
    assert sum(bar.counts.total() for bar in bars) == len(records)
    for before, after in itertools.pairwise(bars):
        assert after.start - before.start == width
    for one in records:
        moment = datetime.fromisoformat(one["timestamp"])
        (bar,) = [bar for bar in bars if bar.start <= moment < bar.start + width]
        assert bar.counts[one["level"] if one["level"] in LEVELS else stats.OTHER] > 0


@settings(deadline=None)
@given(st.lists(st.integers(0, 3 * 10**6), min_size=1, max_size=200))
def test_bars_nobody_asked_a_length_for_are_few_and_round(seconds):
    records = [record(second) for second in seconds]
    width, bars = stats.bars(counted_of(records), Interval(), None, UTC)
    assert 1 <= len(bars) <= stats.BARS + 1
    assert bars[0].start.timestamp() % width.total_seconds() == 0


def test_times_are_counted_by_the_minute_where_there_are_many_and_nothing_is_lost():
    times = (
        f"2026-01-{18 + number // 86400:02d}T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}.000000Z"
        for number in range(0, 400_000, 2)
    )
    counted = counted_of((), times=times)
    assert (counted.records, counted.times.total()) == (200_000, 200_000)
    assert len(counted.times) < 20_001
    assert sum(bar.counts.total() for bar in stats.bars(counted, Interval(), None, UTC)[1]) == 200_000


def test_days_are_those_of_the_clock_on_the_wall_also_over_a_change_to_summer_time():
    zone = ZoneInfo("Europe/Berlin")
    times = [f"2026-03-{day}T{hour:02d}:30:00.000000Z" for day in (28, 29, 30) for hour in range(24)]
    counted = counted_of((), times=times)
    _, bars = stats.bars(counted, Interval(), timedelta(days=1), zone)
    assert [(f"{bar.start.astimezone(zone):%d %H:%M}", bar.counts.total()) for bar in bars] == [
        ("28 00:00", 23),
        ("29 00:00", 23),
        ("30 00:00", 24),
        ("31 00:00", 2),
    ]


def test_the_hour_that_comes_twice_in_autumn_is_two_hours():
    times = [f"2026-10-25T0{hour}:{minute}:00.000000Z" for hour in (0, 1) for minute in (10, 40)]
    _, bars = stats.bars(counted_of((), times=times), Interval(), timedelta(minutes=30), ZoneInfo("Europe/Berlin"))
    assert [(f"{bar.start:%H:%M}", bar.counts.total()) for bar in bars] == [
        ("00:00", 1),
        ("00:30", 1),
        ("01:00", 1),
        ("01:30", 1),
    ]


def test_one_error_among_many_records_shows_in_the_bar():
    records = [record(0) for _ in range(2000)] + [record(0, "ERROR")]
    width, bars = stats.bars(counted_of(records), Interval(), timedelta(seconds=1), UTC)
    (line,) = chart(bars, width, Paint(color=False), columns=100, unicode=True)
    assert [char in line for char in "█▒"] == [True, True]
    assert line.endswith("2001  1 ERROR")


def test_times_at_the_ends_of_the_calendar_are_counted():
    times = ["0001-01-01T00:00:00.000000Z", "2026-01-18T13:00:00.000000Z", "9999-12-31T23:59:59.999999Z"]
    counted = counted_of((), times=times)
    assert sum(bar.counts.total() for bar in stats.bars(counted, Interval())[1]) == 3


def test_values_beyond_a_bound_are_counted_together():
    found = (
        {"timestamp": "2026-01-18T13:00:00.000000Z", "level": "ERROR", "id": f"{number}"} for number in range(50_010)
    )
    group = counted_of(found, [("id",)]).groups[0]
    top, others = group.top(1)
    assert [number for _, number, _ in top] == [1]
    assert others[1:] == (50_009, 50_009)


@pytest.mark.parametrize(
    ("text", "collapsed"),
    [
        ("Order 17 of 20 failed after 1.5s", "Order # of # failed after #s"),
        ("id 4bf92f3577b34da6a3ce929d0e0e4736 gone", "id # gone"),
        ("job 123e4567-e89b-12d3-a456-426614174000", "job #"),
        ("at 0x7fcbdad82d40", "at #"),
        ("host-12:8080 tg_456 decade facade", "host-# tg_# decade facade"),
    ],
)
def test_numbers_and_ids_collapse_and_words_stay(text, collapsed):
    assert stats.collapse(text) == collapsed


# --- the command ---------------------------------------------------------------------------------------------------


def test_bars_and_counts_are_drawn(jarvis):
    code, out, err = jarvis("--by", "service", "--by", "flags.NEW_UI")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (
        "5 records from 2026-01-18 13:00:00.000 to 2026-01-18 13:10:01.000: 2 INFO, 1 WARNING, 1 ERROR, 1 OTHER; "
        "a bar is 30s"
    )
    assert [line.split() for line in lines[2:6]] == [
        ["13:00:00", "█" * 30 + "▒" * 30, "2", "1", "ERROR"],
        ["13:00:30", "▒" * 30, "1"],
        ["…", "18", "times", "nothing"],
        ["13:10:00", "▓" * 30 + "·" * 30, "2", "1", "WARNING"],
    ]
    assert lines[6:] == [
        "",
        "service  records   share  errors  error rate",
        "trading        4  80.0 %       1     25.00 %",
        "api            1  20.0 %",
        "",
        "flags.NEW_UI  records   share  errors  error rate",
        "(none)              3  60.0 %",
        "off                 1  20.0 %",
        "on                  1  20.0 %       1    100.00 %",
    ]


def test_on_a_terminal_without_blocks_letters_stand_for_the_levels(jarvis, own_project):
    from tests.terminals import on_terminal

    out, _ = on_terminal("logs", "stats", PYTHONIOENCODING="ascii", NO_COLOR="1", TERM="dumb")
    assert "E" * 5 in out
    assert out.isascii()


def test_colours_tell_the_levels_where_there_are_colours(jarvis, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = jarvis()[1]
    assert "\x1b[31m█" in out
    assert "\x1b[32m█" in out
    assert "▒" not in out


def test_json_has_everything_that_is_drawn(jarvis):
    code, out, _ = jarvis(
        "--by", "level,service", "--by", "active_flags", "--bucket", "5m", "--format", "json", "--top", "1"
    )
    told = json.loads(out)
    assert code == 0
    assert told["records"] == 5
    assert told["levels"] == {"INFO": 2, "WARNING": 1, "ERROR": 1, "OTHER": 1}
    assert told["bucket_s"] == 300
    assert told["histogram"] == [
        {"start": "2026-01-18T13:00:00.000000Z", "records": 3, "levels": {"ERROR": 1, "INFO": 2}},
        {"start": "2026-01-18T13:05:00.000000Z", "records": 0, "levels": {}},
        {"start": "2026-01-18T13:10:00.000000Z", "records": 2, "levels": {"OTHER": 1, "WARNING": 1}},
    ]
    assert told["by"]["active_flags"] == [{"value": None, "records": 4, "errors": 0 + 1}]
    assert told["by"]["level,service"] == [{"value": ["ERROR", "trading"], "records": 1, "errors": 1}]
    assert told["others"]["level,service"] == {"values": 4, "records": 4, "errors": 0}
    assert told["others"]["active_flags"] == {"values": 2, "records": 2, "errors": 0}


def test_csv_has_the_bars_or_the_counts_and_is_safe_to_open(jarvis):
    rows = list(csv.reader(io.StringIO(jarvis("--format", "csv", "--bucket", "1h")[1])))
    assert rows == [
        ["start", "records", *LEVELS, "OTHER"],
        ["2026-01-18T13:00:00.000000Z", "5", "0", "2", "1", "1", "0", "1"],
    ]
    rows = list(csv.reader(io.StringIO(jarvis("--format", "csv", "--by", "context.symbol")[1])))
    assert rows == [["context.symbol", "records", "errors"], ["", "2", "1"], ["SOL", "2", "0"], ["'=1+1", "1", "0"]]


@pytest.mark.parametrize("asked", [[], ["--level", "ERROR"], ["--search", "load"]])
def test_a_directory_of_the_real_collector_is_counted_as_it_is_read(jarvis, asked):
    names = {"--level": "level", "--search": "text"}
    found = list(LogQuery(DATA).iterate(**{names[asked[0]]: asked[1]} if asked else {}))
    told = json.loads(jarvis("--dir", str(DATA), "--by", "service,level", "--top", "0", "--format", "json", *asked)[1])
    assert told["records"] == len(found)
    assert {tuple(row["value"]): row["records"] for row in told["by"]["service,level"]} == Counter(
        (one["service"], one["level"]) for one in found
    )


def test_filters_hold_and_nothing_is_exit_1(jarvis):
    assert json.loads(jarvis("--level", "ERROR", "--format", "json")[1])["records"] == 1
    assert (
        json.loads(jarvis("--where", "context.n=5", "--since", "2026-01-18T13:05Z", "--format", "json")[1])["records"]
        == 1
    )
    code, out, err = jarvis("--service", "none")
    assert (code, out) == (1, "")
    assert "nothing found" in err
    assert json.loads(jarvis("--service", "none", "--format", "json")[1])["histogram"] == []


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--bucket", "5"], "--bucket: got '5', want a length such as 30s"),
        (["--bucket", "1s", "--since", "2026-01-18", "--until", "2027-01-18", "--by", ""], "--by: got a field without"),
        (["--top", "x"], "--top: got 'x', want a whole number; 0 is all"),
        (["--by", "a", "--by", "b", "--format", "csv"], "--by: got 2 of them, want one"),
        (["--by", ",".join("abcdefghi")], "--by: got more than 8 fields"),
    ],
)
def test_bad_input_is_exit_2_and_one_line(jarvis, args, complaint):
    code, out, err = jarvis(*args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert complaint in err


def test_bars_beyond_a_bound_are_refused_unless_the_records_lie_close(jarvis, own_project):
    assert jarvis("--bucket", "1s", "--since", "2020-01-01")[0] == 0
    write(own_project, [record(0), record(10**7)])
    code, out, err = jarvis("--bucket", "1s")
    assert (code, out) == (2, "")
    assert "--bucket: got one for more than 100000 bars" in err


def test_errors_by_message_collapse_numbers_and_ids(jarvis, own_project, capsysbinary):
    write(own_project, [record(1, "ERROR", message=f"Order {number} failed") for number in range(3)])
    assert main(["logs", "errors", "--by", "message", "--collapse", "--format", "json"]) == 0
    assert json.loads(capsysbinary.readouterr()[0]) == {"Order # failed": 3}
    assert main(["logs", "errors", "--collapse"]) == 2
    assert b"--collapse: got it with --by error.type" in capsysbinary.readouterr()[1]
