"""Schedules by themselves: when they hold, what a ramp covers, and what cannot be read."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from jarvis_flags.schedule import ScheduleError, parse_moment, parse_schedule

# 2026-11-02 is a Monday
MONDAY = "2026-11-02"


def holds(schedule, moment):
    given = parse_schedule(schedule).holds(datetime.fromisoformat(moment).timestamp())
    assert given in (True, False)
    return given


@pytest.mark.parametrize(
    ("schedule", "inside", "outside"),
    [
        ({"start": MONDAY}, ["2026-11-02T00:00Z", "2030-01-01T00:00Z"], ["2026-11-01T23:59:59Z"]),
        ({"end": MONDAY}, ["2026-11-01T23:59:59Z"], ["2026-11-02T00:00Z"]),
        ({"start": MONDAY, "timezone": "Europe/Vienna"}, ["2026-11-01T23:00Z"], ["2026-11-01T22:59:59Z"]),
        ({"hours": "09:00-17:30"}, ["2026-11-02T09:00Z", "2026-11-02T17:29:59Z"], ["2026-11-02T08:59:59Z"]),
        ({"hours": "09:00-17:30"}, [], ["2026-11-02T17:30Z", "2026-11-02T23:00Z"]),
        ({"hours": "22:00 - 24:00"}, ["2026-11-02T22:00Z", "2026-11-02T23:59:59Z"], ["2026-11-02T00:00Z"]),
        ({"hours": "22:00-02:00"}, ["2026-11-02T22:00Z", "2026-11-03T01:59:59Z"], ["2026-11-03T02:00Z"]),
        ({"hours": "22:00-02:00"}, [], ["2026-11-02T21:59:59Z", "2026-11-02T12:00Z"]),
        ({"hours": "09:00-09:00"}, [], ["2026-11-02T09:00Z", "2026-11-02T10:00Z"]),
        ({"days": ["mon"], "hours": "22:00-02:00"}, ["2026-11-02T22:00Z", "2026-11-03T01:00Z"], ["2026-11-02T01:00Z"]),
        ({"days": ["sun"], "hours": "22:00-02:00"}, ["2026-11-02T01:00Z"], ["2026-11-02T22:00Z"]),
        ({"days": ["mon"], "timezone": "Asia/Tokyo"}, ["2026-11-01T15:00Z"], ["2026-11-02T15:00Z"]),
        (
            {"ramp": {"start": MONDAY, "end": "2026-11-12", "from": 0, "to": 100}},
            ["2026-11-02T00:00Z", "2030-01-01T00:00Z"],
            ["2026-11-01T23:59:59Z"],
        ),
    ],
)
def test_a_schedule_holds_at_some_times_and_not_at_others(schedule, inside, outside):
    assert [moment for moment in inside if not holds(schedule, moment)] == []
    assert [moment for moment in outside if holds(schedule, moment)] == []


@pytest.mark.parametrize(
    ("number", "names"),
    [
        (2, ["mon", "monday", "MON"]),
        (3, ["tue", "tuesday", "Tues"]),
        (4, ["wed", "wednesday"]),
        (5, ["thu", "thursday", "thur"]),
        (6, ["fri", "friday"]),
        (7, ["sat", "saturday"]),
        (8, ["sun", "sunday"]),
    ],
)
def test_a_day_has_its_name_or_the_beginning_of_it(number, names):
    for name in names:
        for days in ([name], name):
            held = [day for day in range(2, 9) if holds({"days": days}, f"2026-11-{day:02}T12:00Z")]
            assert held == [number]
    with pytest.raises(ScheduleError):
        parse_schedule({"days": [max(names, key=len).lower() + "x"]})


@pytest.mark.parametrize("more", [{}, {"timezone": "UTC"}])
def test_without_a_time_zone_a_schedule_is_in_utc_which_needs_no_database_of_zones(more):
    assert parse_schedule({"days": ["mon"], **more}).zone is UTC


@pytest.mark.parametrize(
    ("moment", "percent"),
    [(0, 10), (25, 20), (50, 30), (99.9995, 50), (100, 50), (1000, 50), (-5, 10), (33.3333, 23.333)],
)
def test_a_ramp_climbs_evenly_and_stays_at_its_end(moment, percent):
    ramp = {"start": "1970-01-01T00:00:00Z", "end": "1970-01-01T00:01:40Z", "from": 10, "to": 50}
    assert parse_schedule({"ramp": ramp}).buckets(moment) == round(percent * 1000)


def test_a_ramp_may_go_down_and_has_the_time_zone_of_its_schedule():
    ramp = {"start": MONDAY, "end": "2026-11-03", "from": 100, "to": 0}
    schedule = parse_schedule({"ramp": ramp, "timezone": "Europe/Vienna"})
    begin = datetime(2026, 11, 2, tzinfo=ZoneInfo("Europe/Vienna")).timestamp()
    assert [schedule.buckets(begin + 86_400 * share) for share in (0, 0.25, 1)] == [100_000, 75_000, 0]


RAMP = {"start": MONDAY, "end": "2026-11-12", "from": 0, "to": 100}


@pytest.mark.parametrize(
    ("schedule", "key"),
    [
        (None, ""),
        ({}, ""),
        ([], ""),
        (["start"], ""),
        ("start", ""),
        (5, ""),
        ({"begin": MONDAY}, "begin"),
        ({"start": "soon"}, "start"),
        ({"start": 5}, "start"),
        ({"end": "2026-13-01"}, "end"),
        ({"start": MONDAY, "end": MONDAY}, "end"),
        ({"start": MONDAY, "end": "2026-11-01"}, "end"),
        ({"days": ["mo"]}, "days"),
        ({"days": ["mon", "noday"]}, "days"),
        ({"days": [1]}, "days"),
        ({"days": []}, "days"),
        ({"days": 5}, "days"),
        ({"hours": "9-17"}, "hours"),
        ({"hours": "09:00"}, "hours"),
        ({"hours": "09:00-25:00"}, "hours"),
        ({"hours": 9}, "hours"),
        ({"hours": "24:00-09:00"}, "hours"),
        ({"hours": "09:00Z-17:00"}, "hours"),
        ({"hours": "09:00-17:00Z"}, "hours"),
        ({"hours": "09:00+02:00-17:00+02:00"}, "hours"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"timezone": 5}, "timezone"),
        ({"timezone": "../etc/passwd"}, "timezone"),
        ({"ramp": 5}, "ramp"),
        ({"ramp": {"start": MONDAY}}, "ramp"),
        ({"ramp": {**RAMP, "more": 1}}, "ramp"),
        ({"ramp": {**RAMP, "start": None}}, "ramp.end"),
        ({"ramp": {**RAMP, "end": None}}, "ramp.end"),
        ({"ramp": {**RAMP, "end": MONDAY}}, "ramp.end"),
        ({"ramp": {**RAMP, "start": "soon"}}, "ramp.start"),
        ({"ramp": {**RAMP, "from": "0"}}, "ramp.from"),
        ({"ramp": {**RAMP, "from": True}}, "ramp.from"),
        ({"ramp": {**RAMP, "to": 100.1}}, "ramp.to"),
        ({"ramp": {**RAMP, "to": 0.0001}}, "ramp.to"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_key_at_fault(schedule, key):
    with pytest.raises(ScheduleError) as caught:
        parse_schedule(schedule)
    assert caught.value.key == key
    assert str(caught.value).startswith(("got ", "want ", "unknown field", "the end is not after the start"))


def test_a_name_too_deep_to_be_looked_for_is_no_time_zone():
    # in a thread of its own: what traces a thread is turned off where its stack runs out
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(parse_schedule, {"timezone": "Europe/" * 1000 + "Vienna"}).exception()
    assert (type(error), error.key) == (ScheduleError, "timezone")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2027-03-01", datetime(2027, 3, 1, tzinfo=UTC)),
        ("2027-03-01T09:00:00Z", datetime(2027, 3, 1, 9, tzinfo=UTC)),
        ("2027-03-01T09:00:00+02:00", datetime(2027, 3, 1, 7, tzinfo=UTC)),
    ],
)
def test_a_moment_without_an_offset_is_in_utc_or_in_the_zone_given(text, wanted):
    assert parse_moment(text) == wanted.timestamp()
    assert parse_moment("2027-03-01", ZoneInfo("Europe/Vienna")) == wanted.replace(day=1, hour=0).timestamp() - 3600


@pytest.mark.parametrize("value", ["soon", "", None, 5, "2027-02-30"])
def test_what_is_no_moment_is_refused(value):
    with pytest.raises(ValueError, match="want a date such as 2027-03-01"):
        parse_moment(value)
