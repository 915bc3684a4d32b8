"""Schedules: when a rule holds, by dates, weekdays, hours and time zone, and ramps from one percentage to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from jarvis_flags.buckets import threshold

__all__ = ["Schedule", "ScheduleError", "parse_moment", "parse_schedule"]

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_KEYS = ("start", "end", "days", "hours", "timezone", "ramp")
_RAMP_KEYS = ("start", "end", "from", "to")


class ScheduleError(ValueError):
    """A schedule that cannot be read.

    Attributes:
        key: The key at fault, as a path below the schedule.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a rule holds.

    Attributes:
        start, end: Unix seconds between which it holds (end excluded); None is open.
        days: Weekdays, Monday is 0; None is every day.
        hours: Times of the day between which it holds (end excluded, past midnight where it is before the start).
        zone: The time zone of days and hours.
        ramp: Start and end (Unix seconds) and the two percentages between which it climbs; None holds for all.
    """

    start: float | None
    end: float | None
    days: frozenset[int] | None
    hours: tuple[time, time] | None
    zone: tzinfo
    ramp: tuple[float, float, float, float] | None

    def holds(self, now: float) -> bool:
        """Whether it is time, leaving the ramp aside.

        Args:
            now: Unix seconds.
        """
        if (self.start is not None and now < self.start) or (self.end is not None and now >= self.end):
            return False
        if self.ramp is not None and now < self.ramp[0]:
            return False
        if self.days is None and self.hours is None:
            return True
        local = datetime.fromtimestamp(now, self.zone)
        day, clock = local.weekday(), local.time()
        if self.hours is not None:
            begin, finish = self.hours
            if begin <= finish:
                if not begin <= clock < finish:
                    return False
            elif clock < finish:
                day = (day - 1) % 7  # the hours began yesterday
            elif clock < begin:
                return False
        return self.days is None or day in self.days

    def buckets(self, now: float) -> int:
        """How many buckets the ramp covers now (see `buckets.threshold`)."""
        assert self.ramp is not None
        start, end, low, high = self.ramp
        share = min(1.0, max(0.0, (now - start) / (end - start)))
        return threshold(round(low + (high - low) * share, 3))


def parse_moment(value: Any, zone: tzinfo = UTC) -> float:
    """A date or a time in ISO 8601 as Unix seconds; without an offset it is in `zone`.

    Raises:
        ValueError: It is neither.
    """
    try:
        moment = datetime.fromisoformat(value)
    except (ValueError, TypeError):
        raise ValueError(
            f"got {value!r}, want a date such as 2027-03-01 or a time such as 2027-03-01T09:00:00Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()


def parse_schedule(value: Any) -> Schedule:
    """Reads a schedule.

    Args:
        value: A mapping with any of start, end, days, hours, timezone, ramp.

    Raises:
        ScheduleError: It cannot be read.
    """
    if not isinstance(value, Mapping) or not value:
        raise ScheduleError("", f"got {value!r}, want a mapping with any of {', '.join(_KEYS)}")
    for key in value:
        if key not in _KEYS:
            raise ScheduleError(key, f"unknown field, want one of {', '.join(_KEYS)}")
    zone = _zone(value.get("timezone", "UTC"))
    start, end = (_moment(value, key, zone) for key in ("start", "end"))
    if start is not None and end is not None and start >= end:
        raise ScheduleError("end", "the end is not after the start")
    return Schedule(start, end, _days(value), _hours(value), zone, _ramp(value, zone))


def _zone(name: Any) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except Exception:  # of many kinds: a zone is a file, or what is imported from a package
        raise ScheduleError("timezone", f"got {name!r}, want a time zone such as Europe/Vienna") from None


def _moment(value: Mapping[str, Any], key: str, zone: tzinfo, path: str = "") -> float | None:
    if value.get(key) is None:
        return None
    try:
        return parse_moment(value[key], zone)
    except ValueError as error:
        raise ScheduleError(path + key, str(error)) from None


def _days(value: Mapping[str, Any]) -> frozenset[int] | None:
    named = value.get("days")
    if named is None:
        return None
    days = set()
    for name in named if isinstance(named, list) and named else [named]:
        found = [
            i
            for i, day in enumerate(_DAYS)
            if isinstance(name, str) and len(name) >= 3 and day.startswith(name.lower())
        ]
        if not found:
            raise ScheduleError("days", f"got {name!r}, want a list of mon, tue, wed, thu, fri, sat, sun")
        days.update(found)
    return frozenset(days)


def _hours(value: Mapping[str, Any]) -> tuple[time, time] | None:
    text = value.get("hours")
    if text is None:
        return None
    try:
        first, last = (part.strip() for part in text.split("-"))
        begin, finish = time.fromisoformat(first), time.max if last == "24:00" else time.fromisoformat(last)
    except (ValueError, AttributeError):
        raise ScheduleError("hours", f"got {text!r}, want a span such as 09:00-17:30") from None
    if begin.tzinfo or finish.tzinfo:
        raise ScheduleError("hours", f"got {text!r}, want no offset in it; `timezone` says where the hours are")
    return begin, finish


def _ramp(value: Mapping[str, Any], zone: tzinfo) -> tuple[float, float, float, float] | None:
    ramp = value.get("ramp")
    if ramp is None:
        return None
    if not isinstance(ramp, Mapping) or set(ramp) != set(_RAMP_KEYS):
        raise ScheduleError("ramp", f"got {ramp!r}, want a mapping with {', '.join(_RAMP_KEYS)}")
    start, end = (_moment(ramp, key, zone, "ramp.") for key in ("start", "end"))
    if start is None or end is None or start >= end:
        raise ScheduleError("ramp.end", "want a start and an end after it")
    low, high = (_percent(ramp, key) for key in ("from", "to"))
    return start, end, low, high


def _percent(ramp: Mapping[str, Any], key: str) -> float:
    number = ramp[key]
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ScheduleError(f"ramp.{key}", f"got {number!r}, want a number from 0 to 100")
    try:
        threshold(number)
    except ValueError as error:
        raise ScheduleError(f"ramp.{key}", str(error)) from None
    return float(number)
