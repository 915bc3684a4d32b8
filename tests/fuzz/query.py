"""What people ask of the logs, and what other programs answer: expressions, times, patterns, the real Collector, Loki."""

from __future__ import annotations

import contextlib
import json
import re
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import orjson

from jarvis_collector.http_client import retry_after
from jarvis_collector.otlp import Signal
from jarvis_otel.query import logql
from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.filters import Filter
from jarvis_otel.query.log_query import Criteria
from jarvis_otel.query.loki_lines import LokiLines
from jarvis_otel.query.loki_source import _entries
from jarvis_otel.query.otlp_lines import RequestLines
from jarvis_otel.query.scan import holds, parsed
from jarvis_otel.query.stats import parse_fields, parse_width
from jarvis_otel.query.times import canonical_time, parse_length, parse_time, resolve_interval
from jarvis_otel.query.where import look_up, where_filter
from jarvis_otel.web.log_filters import LogFilters
from tests.fuzz.files import LINES, OTEL
from tests.fuzz.properties import Family, as_text, one_line

FAMILY = Family("query")

RECORDS = [
    *map(orjson.loads, LINES),
    {"timestamp": "2026-01-18T00:00:00.000000Z", "level": "INFO", "message": "İé", "service": "a b", "duration_ms": 5.5, "error": {"type": "X", "message": "Ⓐ"}, "flags": {"A": "on", "b.c": "x"}, "active_flags": [], "context": {"a": {"b": "1"}, "a.b": [1, "2", None, True], "n": 10**18}, "user_id": "u", "trace_id": "0af7651916cd43dd8448eb211c80319c"},
    {"timestamp": "2026-01-18T00:00:00Z", "level": 5, "message": None, "service": ["s"], "active_flags": {}, "flags": 1, "error": "x", "context": "text"},
]  # fmt: skip
WORDS = b'and or not ( ) = != < <= > >= ~= " \' \\ message level service error.type context.a.b duration_ms flags.A 5 -1e9 1e999 true null "a b" ERROR . x'.split(
    b" "
)


def check(one: Filter) -> None:
    """A filter decides for any record, and its needles stand in each line that it takes; the query to Loki is bounded."""
    for record in RECORDS:
        taken = one.matches(record)
        assert taken in (True, False)
        for line in (orjson.dumps(record), json.dumps(record).encode()):
            if taken and one.needle is not None:
                assert holds(one.needle, line)
            if taken and one.possible is not None:
                assert one.possible(line)
        if taken and one.facts is not None:
            assert one.facts.levels is None or record["level"] in one.facts.levels
            assert one.facts.service is None or one.facts.service in (record["service"], *list(record["service"]))
    text = logql.query([one.loki])
    assert text.isascii()
    assert len(text) < 10_000
    assert re.fullmatch(r'[^"`]*(?:(?:"(?:[^"\\]|\\.)*"|`[^`]*`)[^"`]*)*', text), text


@FAMILY.add(seeds=["duration_ms>500 and (service=trading or not error.type~=Balance)", 'message="tw\\"o" or level>=WARNING', "a.b=1 and context.a.b!=null", "not not a=1", "((((a=1))))", "flags.A=on", "context.n>1e29", "message~='İ'"], words=WORDS)  # fmt: skip
def where(data: bytes) -> None:
    """An expression is a filter, or a ValueError that names the column."""
    try:
        made = where_filter(as_text(data))
    except ValueError as error:
        one_line(error, data)
        return
    check(made)


ASKED = (
    "level",
    "service",
    "correlation_id",
    "trace_id",
    "user_id",
    "flag",
    "since",
    "until",
    "text",
    "regex",
    "where",
)


@FAMILY.add(seeds=[f"{name}\0{value}" for name, value in zip(ASKED, ("=ERROR", "s", "u1", "0AF7651916CD43DD8448EB211C80319C ", "u", "A=on", "-1h", "now", "wo", "(?i)t.o", "a=1"), strict=True)], words=[*(name.encode() + b"\0" for name in ASKED), *WORDS, b"(a+)+$", b"(?i)", b"\\p{L}", b"{1,1000}"])  # fmt: skip
def question(data: bytes) -> None:
    """Each argument of a question is understood, or refused by its name."""
    name, _, value = data.partition(b"\0")
    refused: set[str] = set()
    for asked in {name.decode("latin-1"), "text", "service"} & set(ASKED):
        try:
            criteria = Criteria.of(**{asked: as_text(value)})
        except QueryError as error:
            refused.add(error.argument)
            continue
        for one in criteria.filters:
            if one.is_interval:
                assert {one.matches(record) for record in RECORDS[:4]} <= {True, False}
            else:
                check(one)
    assert refused <= set(ASKED)


NOW = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
ZONES = (UTC, ZoneInfo("Europe/Vienna"), ZoneInfo("Pacific/Apia"), None)
TIMES = b"now,today,yesterday,14:25,24:00,-3h,-2h30m,1 hour ago,2026-01-18,2026-01-18T00:00:00Z,+14:00,W03,0001-01-01,9999-12-31T23:59:59,1767323045,1767323045678,9999999999999999999, ago,days,99999999,d,\xd9\xa3".split(
    b","
)


@FAMILY.add(seeds=TIMES, words=TIMES)
def moment(data: bytes) -> None:
    """A time is a moment, or a ValueError; a length is one, or a ValueError; so is an interval."""
    text = as_text(data)
    for zone in ZONES:
        with contextlib.suppress(ValueError):
            assert parse_time(text, NOW, zone).tzinfo is not None
        with contextlib.suppress(QueryError):
            interval = resolve_interval(text, text, NOW, zone)
            since, until = interval.line_times()
            assert since <= until
    with contextlib.suppress(ValueError, OverflowError):
        made = canonical_time(text)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", made, re.ASCII)
        assert canonical_time(made) == made
    with contextlib.suppress(ValueError):
        assert parse_length(text) > timedelta()
    with contextlib.suppress(QueryError):
        parse_width(text)
    with contextlib.suppress(QueryError):
        assert all(all(fields) for fields in parse_fields([text]))
    told = retry_after(text)
    assert told is None or 0 <= told <= 300


@FAMILY.add(
    seeds=[OTEL, LINES[0] + b"\n" + OTEL, OTEL[:200] + OTEL, OTEL[:90] + LINES[1], b'{"resourceLogs":[{"resource":{"attributes":[{"key":"jarvis.log_day","value":{"stringValue":"2026-01-18"}}]},"scopeLogs":[]}]}', b'{"resourceLogs":5}', b'{"a":{"resourceLogs":[]}}'],
    words=[b'{"resourceLogs":[', b'"scopeLogs":[', b'"logRecords":[', b'{"timestamp":"2026-01-18T00:00:00.000000Z","', b'{"key":"jarvis.log_day","value":{"stringValue":"', b'"}}', b"]", b"}", b"\n", b"\\", b'"', b","],
)  # fmt: skip
def collector_lines(data: bytes) -> None:
    """Blocks of any lines become blocks of whole lines without requests, and what cannot be read is counted."""
    for signal in (Signal.LOGS, Signal.TRACES):
        unread: list[int] = []
        reader = RequestLines(signal, [], date(2026, 1, 18), unread.append)
        made = b"".join(reader.flat(data + b"\n"))
        assert made.endswith(b"\n") or not made
        assert all(count > 0 for count in unread)
        for line in made.split(b"\n"):
            if line:
                parsed(line, unread.append)


ANSWER = {
    "data": {
        "resultType": "streams",
        "result": [
            {
                "stream": {
                    "service_name": "s",
                    "jarvis_flag_A": "on",
                    "jarvis_active_flags": '["A"]',
                    "severity_number": "17",
                    "code_line_number": "5",
                },
                "values": [["1767323045678901234", "text"], ["1", ""]],
            }
        ],
    }
}


@FAMILY.add(seeds=[json.dumps(ANSWER), json.dumps(ANSWER).replace("1767323045678901234", "9" * 30), json.dumps(ANSWER).replace('"1"', "-1")], words=[b'"stream":{', b'"values":[["', b'"data":{', b'"resultType":"streams"', b'"result":[', b'"jarvis_', b"_extracted", b'"flags":"', b"1e400", b'"', b"[", b"]", b"{", b"}", b","])  # fmt: skip
def loki_answer(data: bytes) -> None:
    """An answer of Loki becomes lines that read as records, or is refused as none."""
    try:
        entries = list(_entries(orjson.loads(data)))
    except (ValueError, LookupError, TypeError, AttributeError):  # what becomes a LokiError
        return
    for entry in entries:
        line = LokiLines(["a.b"]).line(entry.time, entry.text, entry.labels)
        unread: list[int] = []
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert parsed(line, unread.append) is not None
        assert not unread


FIELDS = (
    "level",
    "service",
    "correlation_id",
    "trace_id",
    "user",
    "flag",
    "since",
    "until",
    "search",
    "where",
    "columns",
)


@FAMILY.add(seeds=["where\0a=1 or b=2\0message", "where\0service=s\tor\ta=1\0message", "columns\0a,b,,c\0context.a.b", "since\0-1h\0timestamp"], words=[*(name.encode() + b"\0" for name in FIELDS), *WORDS, b"\0", b","])  # fmt: skip
def page_filters(data: bytes) -> None:
    """The filters of an address are understood or refused; narrowed to a field they take no more than before."""
    name, _, rest = as_text(data).partition("\0")
    value, _, path = rest.partition("\0")
    filters = LogFilters.of({name: value, "where": value} if name in FIELDS else {"search": value})
    assert "\n" not in filters.address()
    assert filters.command is None or filters.command.isprintable()
    try:
        before = filters.criteria(lambda user: (user,), NOW)
    except QueryError:
        return
    for record in RECORDS[:5]:
        for each in {path, "message", "timestamp", "active_flags"}:
            narrowed = filters.narrowed(record, each, look_up(record, each.split(".")))
            if narrowed is None:
                continue
            after = narrowed.criteria(lambda user: (user,), NOW)
            if each != "timestamp" and set(narrowed.values) - set(filters.values) <= {"where"}:
                for other in RECORDS[:5]:
                    if all(one.matches(other) for one in after.filters):
                        assert all(one.matches(other) for one in before.filters), narrowed.values
                        found, wanted = look_up(other, each.split(".")), look_up(record, each.split("."))
                        assert wanted == found or wanted in (found if isinstance(found, list) else []), narrowed.values
