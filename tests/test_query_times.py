"""Times as people write them."""

import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.times import Interval, canonical_time, line_time, parse_length, parse_time, resolve_interval

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 1, 18, 14, 30, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("now", "2026-01-18T13:30:00.000000Z"),
        (" Today ", "2026-01-17T23:00:00.000000Z"),
        ("yesterday", "2026-01-16T23:00:00.000000Z"),
        ("-3h", "2026-01-18T10:30:00.000000Z"),
        ("-2h30m", "2026-01-18T11:00:00.000000Z"),
        ("-90s", "2026-01-18T13:28:30.000000Z"),
        ("-1w", "2026-01-11T13:30:00.000000Z"),
        ("1 hour ago", "2026-01-18T12:30:00.000000Z"),
        ("30 minutes ago", "2026-01-18T13:00:00.000000Z"),
        ("2 hours 30 minutes ago", "2026-01-18T11:00:00.000000Z"),
        ("3h ago", "2026-01-18T10:30:00.000000Z"),
        ("14:25", "2026-01-18T13:25:00.000000Z"),
        ("14:30", "2026-01-18T13:30:00.000000Z"),
        ("14:30:01", "2026-01-17T13:30:01.000000Z"),
        ("9:05", "2026-01-18T08:05:00.000000Z"),
        ("2026-01-18", "2026-01-17T23:00:00.000000Z"),
        ("2026-07-18", "2026-07-17T22:00:00.000000Z"),
        ("2026-01-18T14:25", "2026-01-18T13:25:00.000000Z"),
        ("2026-01-18 14:25:01.5", "2026-01-18T13:25:01.500000Z"),
        ("2026-01-18T14:25:01.123456Z", "2026-01-18T14:25:01.123456Z"),
        ("2026-01-18T14:25+02:00", "2026-01-18T12:25:00.000000Z"),
        ("1768742700", "2026-01-18T13:25:00.000000Z"),
        ("1768742700123", "2026-01-18T13:25:00.123000Z"),
        ("1768742700123456", "2026-01-18T13:25:00.123456Z"),
        ("1768742700123456789", "2026-01-18T13:25:00.123456Z"),
    ],
)
def test_each_accepted_form_has_one_meaning(text, meaning):
    assert line_time(parse_time(text, NOW, BERLIN)) == meaning


@pytest.mark.parametrize(
    "text",
    ["", "blah", "3h", "-3", "-3x", "25:00", "2026-02-30", "2026-1-8", "20260118", "12345", "1 hour", "ago",
     "999999999w ago", "١٢:٣٠", "now" + " " * 100, "-" + "1h" * 40],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line_that_names_the_forms(text):
    with pytest.raises(
        ValueError, match=r"^got .*, want a time such as 2026-01-18, .*14:25, -3h, '1 hour ago'"
    ) as caught:
        parse_time(text, NOW, BERLIN)
    assert "\n" not in str(caught.value)


def test_until_as_hours_and_minutes_is_the_first_one_after_since():
    interval = resolve_interval("yesterday", "14:35", NOW, BERLIN)
    assert (line_time(interval.since), line_time(interval.until)) == (
        "2026-01-16T23:00:00.000000Z",
        "2026-01-17T13:35:00.000000Z",
    )


def test_the_debugging_workflow_of_the_design_asks_for_ten_minutes():
    now = datetime(2026, 1, 18, 15, 0, tzinfo=BERLIN)
    interval = resolve_interval("14:25", "14:35", now, BERLIN)
    assert (interval.until - interval.since).total_seconds() == 600
    assert interval.until < now


def test_until_is_after_since_however_long_ago_that_is():
    interval = resolve_interval("2026-01-10T12:00", "14:25", NOW, BERLIN)
    assert line_time(interval.until) == "2026-01-10T13:25:00.000000Z"


def test_until_alone_is_its_latest_past():
    assert line_time(resolve_interval(None, "14:35", NOW, BERLIN).until) == "2026-01-17T13:35:00.000000Z"


def test_hours_ago_are_true_hours_over_a_change_to_summer_time():
    now = datetime(2026, 3, 29, 4, 0, tzinfo=BERLIN)
    assert line_time(parse_time("-3h", now, BERLIN)) == "2026-03-28T23:00:00.000000Z"


def test_a_naive_datetime_is_local_time():
    interval = resolve_interval(datetime(2026, 7, 1, 12, 0), None, NOW, BERLIN)
    assert line_time(interval.since) == "2026-07-01T10:00:00.000000Z"


def test_no_ends_are_an_open_interval():
    assert resolve_interval(None, None, NOW) == Interval(None, None)


@pytest.mark.parametrize(
    ("since", "until", "argument"), [("blah", None, "since"), (None, "blah", "until"), ("today", "yesterday", "until")]
)
def test_an_error_names_the_end_that_is_wrong(since, until, argument):
    with pytest.raises(QueryError) as caught:
        resolve_interval(since, until, NOW, BERLIN)
    assert caught.value.argument == argument
    assert str(caught.value).startswith(f"{argument}: got ")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("2026-01-18T14:25:01.123456Z", "2026-01-18T14:25:01.123456Z"),
        ("2026-01-18T14:25:01Z", "2026-01-18T14:25:01.000000Z"),
        ("2026-01-18T14:25:01.123456+01:00", "2026-01-18T13:25:01.123456Z"),
        ("2026-01-18 14:25:01.123456Z", "2026-01-18T14:25:01.123456Z"),
        ("2026-W03-7T14:25:01.123456Z", "2026-01-18T14:25:01.123456Z"),
        ("2026-01-18T14:25:01", "2026-01-18T14:25:01.000000Z"),
    ],
)
def test_timestamps_of_other_writers_are_compared_in_one_form(text, canonical):
    assert canonical_time(text) == canonical


def test_a_moment_is_written_in_utc():
    assert line_time(datetime(2026, 1, 18, 1, 2, 3, tzinfo=UTC)) == "2026-01-18T01:02:03.000000Z"


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("s sec secs second seconds", 1),
        ("m min mins minute minutes", 60),
        ("h hour hours", 3600),
        ("d day days", 86_400),
        ("w week weeks", 604_800),
    ],
)
def test_every_unit_has_short_and_long_names(words, seconds):
    for word in words.split():
        for text in (f"2 {word} ago", f"-2{word}", f"- 2{word}"):
            assert (NOW - parse_time(text, NOW, BERLIN)).total_seconds() == 2 * seconds


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("2026-01-18t14:25z", "2026-01-18T14:25:00.000000Z"),
        ("2026-01-18 14:25:01,25", "2026-01-18T13:25:01.250000Z"),
        ("-0s", "2026-01-18T13:30:00.000000Z"),
        (" " * 61 + "now", "2026-01-18T13:30:00.000000Z"),
    ],
)
def test_case_commas_and_blanks_do_not_matter(text, meaning):
    assert line_time(parse_time(text, NOW, BERLIN)) == meaning


def test_a_text_of_more_than_64_characters_is_no_time():
    with pytest.raises(ValueError):
        parse_time(" " * 62 + "now", NOW, BERLIN)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86_400), ("999999s", 999_999)]
)
def test_a_length_is_a_number_of_one_unit(text, seconds):
    assert parse_length(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "0s", "000h", "5", "m", "-5m", "1h30m", "2w", "1000000s", "5 m", "5M", "\u0665m"])
def test_any_other_length_is_refused(text):
    with pytest.raises(ValueError, match="want a length such as 30s, 5m, 2h or 1d"):
        parse_length(text)


def test_an_interval_may_be_a_single_moment():
    interval = resolve_interval("14:25", NOW.replace(minute=25), NOW, BERLIN)
    assert interval.since == interval.until


def test_until_at_the_very_clock_time_of_since_is_a_day_later():
    interval = resolve_interval("2026-01-17T14:25", "14:25", NOW, BERLIN)
    assert (interval.until - interval.since).total_seconds() == 86_400


def test_an_end_outside_of_the_calendar_is_refused():
    for moment in (datetime(1, 1, 1, tzinfo=BERLIN), datetime(9999, 12, 31, 23, 59, tzinfo=ZoneInfo("America/Lima"))):
        with pytest.raises(QueryError, match="which in UTC is outside of the calendar"):
            resolve_interval(moment, None, NOW, BERLIN)


def test_an_open_end_is_before_or_after_every_time():
    since, until = Interval().line_times()
    assert since <= line_time(datetime(1, 1, 1, tzinfo=UTC))
    assert line_time(datetime(9999, 12, 31, tzinfo=UTC)) <= until
    closed = Interval(NOW, NOW)
    assert closed.line_times() == ("2026-01-18T13:30:00.000000Z",) * 2


def test_an_interval_in_words_has_the_ends_that_it_has():
    assert Interval().in_words() == ""
    assert Interval(NOW).in_words().split()[0] == "from"
    assert Interval(None, NOW).in_words().split()[0] == "to"
    both = Interval(NOW, NOW)
    assert [word for word, _ in both.ends()] == ["from", "to"]
    assert datetime.fromisoformat(both.in_words().partition(" ")[2].partition(" to ")[0]) == NOW


def test_a_timestamp_of_a_day_that_there_is_not_is_none():
    with pytest.raises(ValueError):
        canonical_time("2026-02-30T14:25:01.123456Z")


@pytest.fixture
def in_tokyo(monkeypatch):
    """The machine is there."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_a_timestamp_without_an_offset_is_utc_wherever_the_reader_is():
    assert canonical_time("2026-01-18T14:25:01") == "2026-01-18T14:25:01.000000Z"


@pytest.mark.usefixtures("in_tokyo")
@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("2026-01-18T14:25", "2026-01-18T14:25:00+09:00"),
        ("today", "2026-01-18T00:00:00+09:00"),
        ("14:25", "2026-01-18T14:25:00+09:00"),
    ],
)
def test_times_are_those_of_the_machines_zone_where_no_other_is_given(text, meaning):
    assert parse_time(text, NOW).isoformat() == meaning


def test_a_canonical_timestamp_is_taken_as_it_is():
    text = "2026-01-18T14:25:01.123456Z"
    assert canonical_time(text) is text
