"""Times as people write them: one strict grammar for --since and --until."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo

from jarvis_otel.query.errors import QueryError

__all__ = [
    "TIME_FORMS",
    "Interval",
    "canonical_time",
    "line_time",
    "parse_length",
    "parse_time",
    "resolve_interval",
]

TIME_FORMS = "2026-01-18, 2026-01-18T14:25 (Z or an offset may follow), 14:25, -3h, '1 hour ago', yesterday, now"
"""The accepted forms, as an error message names them."""

_ISO = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?", re.ASCII | re.IGNORECASE
)
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?", re.ASCII)
_EPOCH = re.compile(r"\d{10}|\d{13}|\d{16}|\d{19}", re.ASCII)
_SPAN = re.compile(r"(\d{1,9})\s*([a-z]+)\s*", re.ASCII)
_AGO = re.compile(r"-\s*(?P<short>(?:\d{1,9}[a-z]+)+)|(?P<long>(?:\d{1,9}\s*[a-z]+\s*)+)\sago", re.ASCII)
_UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), timedelta(seconds=1)),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), timedelta(minutes=1)),
    **dict.fromkeys(("h", "hour", "hours"), timedelta(hours=1)),
    **dict.fromkeys(("d", "day", "days"), timedelta(days=1)),
    **dict.fromkeys(("w", "week", "weeks"), timedelta(weeks=1)),
}
_LENGTH = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_DAY = timedelta(days=1)
_TEXT_MAX = 64
_LINE_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")


@dataclass(frozen=True, slots=True)
class Interval:
    """From since to until, both included; None is open.

    Attributes:
        since: The earliest time, aware.
        until: The latest time, aware.
    """

    since: datetime | None = None
    until: datetime | None = None

    def line_times(self) -> tuple[str, str]:
        """Its ends as texts that compare with canonical times; an open end is before or after all of them."""
        return line_time(self.since) if self.since else "", line_time(self.until) if self.until else "~"

    def ends(self) -> list[tuple[str, datetime]]:
        """Its ends that are not open, each with the word before it: from, to."""
        return [(word, end) for word, end in (("from", self.since), ("to", self.until)) if end is not None]

    def in_words(self) -> str:
        """It in local time, for people; empty where both ends are open."""
        return " ".join(f"{word} {end.astimezone().isoformat(' ')}" for word, end in self.ends())


def canonical_time(text: str) -> str:
    """A record's timestamp in the one form (UTC, microseconds, `Z`) in which text order is time order.

    Raises:
        ValueError: The text is no ISO 8601 time.
        OverflowError: In UTC it is outside of the calendar.
    """
    moment = datetime.fromisoformat(text)  # also where the form is right: the day must exist
    if _LINE_TIME.fullmatch(text):
        return text
    return line_time(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def line_time(moment: datetime) -> str:
    """A moment as the line writes it; a naive one is local time."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_time(text: str, now: datetime, zone: tzinfo | None = None, *, after: datetime | None = None) -> datetime:
    """The moment that a person's text means.

    Args:
        text: ISO 8601, `HH:MM[:SS]`, `-2h30m`, `1 hour ago`, `today`, `yesterday`, `now`, or an epoch in seconds,
            milliseconds, microseconds or nanoseconds, told apart by its 10, 13, 16 or 19 digits.
        now: The clock, aware.
        zone: What naive times are in; the machine's zone if None.
        after: `HH:MM` is the first one after this; its latest past if None.

    Raises:
        ValueError: The text is in no accepted form.
    """
    word = text.strip().lower() if len(text) <= _TEXT_MAX else ""
    now = now.astimezone(UTC)  # hours are hours, also over a change to summer time
    try:
        if word == "now":
            return now
        if word in ("today", "yesterday"):
            today = now.astimezone(zone).date()
            return _aware(datetime.combine(today if word == "today" else today - _DAY, time()), zone)
        if _ISO.fullmatch(word):
            return _aware(datetime.fromisoformat(word.upper()), zone)
        if clock := _CLOCK.fullmatch(word):
            hour, minute, second = (int(part or 0) for part in clock.groups())
            return _nearest(time(hour, minute, second), now, zone, after)
        if _EPOCH.fullmatch(word):
            # whole microseconds: a float of nanoseconds would lose digits
            micros = int(word) * 10**6 // 10 ** (len(word) - 10)
            return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros)
        if (ago := _AGO.fullmatch(word)) and (length := _length(ago["short"] or ago["long"])) is not None:
            return now - length
    except (ValueError, OverflowError):
        pass  # 25:00, 2026-02-30, a million weeks: of the right shape, but no time
    raise ValueError(f"got {text!r}, want a time such as {TIME_FORMS}")


def parse_length(text: str) -> timedelta:
    """A length of time in one unit: 30s, 5m, 2h, 1d.

    Raises:
        ValueError: The text is none of these, or of no length.
    """
    found = _LENGTH.fullmatch(text)
    if found is None or not int(found[1]):
        raise ValueError(f"got {text!r}, want a length such as 30s, 5m, 2h or 1d")
    return int(found[1]) * _UNITS[found[2]]


def resolve_interval(
    since: str | datetime | None, until: str | datetime | None, now: datetime, zone: tzinfo | None = None
) -> Interval:
    """The interval that since and until name; a naive datetime is local time.

    Args:
        since: The earliest time, or None.
        until: The latest time, or None; `HH:MM` is the first one after since.
        now: The clock, aware.
        zone: What naive times are in; the machine's zone if None.

    Raises:
        QueryError: One of them is no time, or until is before since.
    """
    start = _resolve("since", since, now, zone, None)
    end = _resolve("until", until, now, zone, start)
    if start and end and end < start:
        raise QueryError("until", f"got {until}, which is {end.isoformat()}, want a time from {start.isoformat()} on")
    return Interval(start, end)


def _resolve(
    name: str, given: str | datetime | None, now: datetime, zone: tzinfo | None, after: datetime | None
) -> datetime | None:
    if given is None:
        return None
    try:
        moment = _aware(given, zone) if isinstance(given, datetime) else parse_time(given, now, zone, after=after)
        line_time(moment)
    except ValueError as error:
        raise QueryError(name, str(error)) from None
    except OverflowError:
        raise QueryError(name, f"got {given}, which in UTC is outside of the calendar") from None
    return moment


def _aware(moment: datetime, zone: tzinfo | None) -> datetime:
    """A naive moment is in the zone; the machine's own zone knows its summer times only through astimezone()."""
    if moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=zone) if zone else moment.astimezone()


def _nearest(clock: time, now: datetime, zone: tzinfo | None, after: datetime | None) -> datetime:
    if after is None:
        today = now.astimezone(zone).date()
        moment = _aware(datetime.combine(today, clock), zone)
        return moment if moment <= now else _aware(datetime.combine(today - _DAY, clock), zone)
    first = after.astimezone(zone).date()
    moment = _aware(datetime.combine(first, clock), zone)
    return moment if moment > after else _aware(datetime.combine(first + _DAY, clock), zone)


def _length(text: str) -> timedelta | None:
    """The sum of `2h30m` or `2 hours 30 minutes`; None where a unit is unknown."""
    parts = _SPAN.findall(text)
    if not all(unit in _UNITS for _, unit in parts):
        return None
    return sum((int(count) * _UNITS[unit] for count, unit in parts), timedelta())
