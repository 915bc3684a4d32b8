"""Searching finds what parsing every line and looking at it would find."""

import json
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_otel.query.blocks import LogFile
from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.log_query import Criteria, LogQuery
from tests.naive_query import LEVELS, is_wanted, texts_in

START = datetime(2026, 1, 18, 14, 0, tzinfo=UTC)

# Texts that JSON escapes, that change their length in lower case, or that look like parts of a line.
TEXTS = [
    "plain", 'say "hi"', "back\\slash", "a/b", "new\nline", "tab\t", "ünïcode", "Ünïcode", "\u0130stanbul", "\u212aelvin",
    "kelvin", "istanbul", "ΟΔΟΣ", "<script>", "\x1b[31mred", "\u202eevil", "\u2028", "😀 smile", "", "on", "off", "ERROR",
    '"level":"ERROR"', "\\u0041", "123", "1.5", "null", "trade-1", "0" * 31 + "1", "null\x00byte", "\x7f", "'", "a" * 300,
]  # fmt: skip
text = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
value = st.recursive(
    text | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
micros = st.integers(0, 10**7) | st.sampled_from([0, 1, 5_000_000, 10**7])
moment = micros.map(lambda value: START + timedelta(microseconds=value))
flag_ids = st.sampled_from(["A", "B", "é", 'q"uote', "on"]) | text


@st.composite
def records(draw):
    record = {
        "timestamp": draw(moment).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "level": draw(st.sampled_from(LEVELS)),
        "message": draw(text),
        "service": draw(text),
    }
    for key in ("correlation_id", "trace_id", "user_id"):
        if draw(st.booleans()):
            record[key] = draw(text)
    record["active_flags"] = sorted(draw(st.sets(flag_ids, max_size=3)))
    if draw(st.booleans()):
        record["flags"] = draw(st.dictionaries(flag_ids, st.sampled_from(["on", "off", "blue"]) | text, max_size=3))
    if draw(st.booleans()):
        record["error"] = {"type": draw(text), "message": draw(text), "stack_trace": draw(text)}
    record["context"] = draw(st.dictionaries(text, value, max_size=3))
    return record


@st.composite
def lines(draw):
    """A record as our collector writes it, or another JSON writer: escaping beyond need, spaced, other key order."""
    record = draw(records())
    style = draw(st.integers(0, 3))
    if style == 0:
        return orjson.dumps(record)
    if style == 1:
        return json.dumps(record).encode()
    if style == 2:
        return json.dumps(dict(reversed(record.items())), ensure_ascii=False).encode()
    escaped = "".join(
        f"\\u{ord(char):04X}" if char.isalnum() and char.isascii() else char for char in record["message"]
    )
    plain = orjson.dumps(record | {"message": "MARK"}).decode()
    if escaped.isalnum() or '"' in escaped or "\\" in record["message"] or not record["message"].isprintable():
        return orjson.dumps(record)
    return plain.replace('"MARK"', f'"{escaped}"', 1).replace("/", "\\/").encode()


def _parts(wanted):
    """A text, or some of it in the other case."""
    return st.just(wanted) | st.builds(
        lambda ends: wanted[min(ends) : max(ends)].swapcase(), st.tuples(*[st.integers(0, len(wanted))] * 2)
    )


@st.composite
def cases(draw):
    """The lines of two days, and a question that is mostly about something that stands in them."""
    days = draw(st.lists(lines(), max_size=10)), draw(st.lists(lines(), max_size=5))
    known = [orjson.loads(line) for day in days for line in day]

    def of(key):
        return st.sampled_from([record[key] for record in known if key in record] or ["x"]) | text

    flags = [flag for record in known for flag in [*record["active_flags"], *record.get("flags", {})]]
    flag = st.sampled_from([flag for flag in flags if flag and "=" not in flag] or ["A"])
    searched = [found for record in known for found in [record["message"], *texts_in(record["context"])]]
    possible = {
        "level": st.sampled_from(LEVELS + [f"={level}" for level in LEVELS]),
        "service": of("service"),
        "correlation_id": of("correlation_id") | of("trace_id"),
        "trace_id": of("trace_id"),
        "user_id": of("user_id"),
        "flag": st.builds(str.__add__, flag, st.sampled_from(["", "=on", "=off", "=blue"])),
        "text": st.sampled_from(searched or ["x"]).flatmap(_parts),
        "since": st.just(START) | moment.map(lambda at: min(at, START + timedelta(seconds=5))),
        "until": moment.map(lambda at: max(at, START + timedelta(seconds=5))),
    }
    names = draw(st.lists(st.sampled_from(list(possible)), max_size=3, unique=True))
    return *days, {name: draw(possible[name]) for name in names}


def write(directory, *files):
    for day, content in enumerate(files, 18):
        Path(directory, f"jarvis-2026-01-{day}.jsonl").write_bytes(b"".join(line + b"\n" for line in content))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_a_search_finds_exactly_what_a_naive_reference_finds(case):
    first, second, asked = case
    with tempfile.TemporaryDirectory() as directory:
        write(directory, first, second)
        expected = [orjson.loads(line) for line in first + second if is_wanted(orjson.loads(line), asked)]
        assert list(LogQuery(directory).iterate(**asked)) == expected
        by_time = sorted(expected, key=lambda record: record["timestamp"])
        assert LogQuery(directory).search(**asked) == by_time
        assert LogQuery(directory).search(**asked, limit=2) == by_time[-2:]


@settings(deadline=None, max_examples=100)
@given(st.lists(lines(), min_size=1, max_size=12), st.sampled_from(["=", "~=", "!="]), st.data())
def test_where_passes_over_no_line_that_it_matches(content, operator, data):
    wanted = data.draw(st.sampled_from([orjson.loads(line)["message"] for line in content]).flatmap(_parts))
    quoted = '"' + wanted.replace("\\", "\\\\").replace('"', '\\"') + '"'
    expression = f"message{operator}{quoted}"
    with tempfile.TemporaryDirectory() as directory:
        write(directory, content)
        found = list(LogQuery(directory).iterate(where=expression))
    tests = {
        "=": lambda message: message == wanted,
        "!=": lambda message: message != wanted,
        "~=": lambda message: wanted.lower() in message.lower(),
    }
    assert found == [record for record in map(orjson.loads, content) if tests[operator](record["message"])]


def line(message="m", second=0, uid=None, **more):
    record = {
        "timestamp": f"2026-01-18T14:00:{second:02d}.000000Z",
        "level": "INFO",
        "message": message,
        "service": "s",
    }
    record |= {"active_flags": [], "context": {}} | more
    if uid:
        record["_meta"] = {"uid": uid}
    return orjson.dumps(record)


def messages(found):
    return [record["message"] for record in found]


def test_a_limit_keeps_the_newest_and_orders_them_by_time_however_they_arrived(tmp_path):
    write(tmp_path, [line("c", 3), line("a", 1), line("d", 4), line("b", 2)])
    assert messages(LogQuery(tmp_path).search(limit=3)) == ["b", "c", "d"]


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(QueryError, match="limit: got 0, want 1 or more"):
        LogQuery(tmp_path).search(limit=0)


def test_repeats_of_one_uid_are_found_once_also_over_midnight(tmp_path):
    write(
        tmp_path,
        [line("a", uid="1"), line("b", uid="2"), line("a", uid="1")],
        [line("b", uid="2"), line("x"), line("x")],
    )
    logs = LogQuery(tmp_path)
    assert messages(logs.iterate()) == ["a", "b", "x", "x"]
    assert logs.tally.repeats == 2


def test_torn_and_foreign_lines_are_counted_and_never_hide_a_neighbour(tmp_path):
    foreign = [
        b'{"timestamp":"2026-01-18T14:0', b"plain text", b"[1,2]", b"null", b"\xff\xfe", b"{}", b'{"timestamp":5}',
        b'{"timestamp":"tomorrow"}', b'{"a":' * 100_000, b'{"timestamp":"0001-01-01T00:00:00+23:00"}', b"",
    ]  # fmt: skip
    write(tmp_path, [line("first"), *foreign, line("last")])
    logs = LogQuery(tmp_path)
    assert messages(logs.search()) == ["first", "last"]
    assert logs.tally.unreadable == {"jarvis-2026-01-18.jsonl": 10}


def test_values_of_unexpected_types_are_no_match_and_no_crash(tmp_path):
    odd = {
        "level": ["ERROR"],
        "service": {},
        "trace_id": [],
        "active_flags": 5,
        "flags": [],
        "error": "x",
        "context": 7,
    }
    write(tmp_path, [orjson.dumps({"timestamp": "2026-01-18T14:00:00Z", "message": 5, "correlation_id": [], **odd})])
    logs = LogQuery(tmp_path)
    assert len(logs.search()) == 1
    for asked in ({"level": "ERROR"}, {"service": "x"}, {"flag": "A"}, {"correlation_id": "x"}, {"text": "zzz"}):
        assert logs.search(**asked) == []


def test_a_line_that_is_being_written_is_not_there_yet(tmp_path):
    whole = line("first") + b"\n" + line("second")
    path = tmp_path / "jarvis-2026-01-18.jsonl"
    path.write_bytes(whole[:-5])
    logs = LogQuery(tmp_path)
    assert messages(logs.search()) == ["first"]
    path.write_bytes(whole)
    assert messages(logs.search()) == ["first", "second"]
    assert logs.tally.unreadable == {}


def test_separators_that_are_not_newlines_do_not_split_a_line(tmp_path):
    write(tmp_path, [line("a\u2028b\u0085c\x0bd\x1ce")])
    assert messages(LogQuery(tmp_path).search()) == ["a\u2028b\u0085c\x0bd\x1ce"]


@pytest.mark.parametrize("padding", [10, 1 << 20, 3 << 20])
def test_lines_longer_than_a_block_are_read_whole(tmp_path, padding):
    write(tmp_path, [line("a"), line("b" * padding), line("c", correlation_id="x")])
    assert [len(record["message"]) for record in LogQuery(tmp_path).search()] == [1, padding, 1]
    assert messages(LogQuery(tmp_path).search(correlation_id="x")) == ["c"]


def test_a_line_beyond_all_bounds_is_passed_over_and_its_neighbours_are_not(tmp_path):
    path = tmp_path / "jarvis-2026-01-18.jsonl"
    with path.open("wb") as file:
        file.write(line("a") + b"\n" + b'{"x":"')
        for _ in range(70):
            file.write(b"y" * (1 << 20))
        file.write(b'"}\n' + line("b") + b"\n")
    logs = LogQuery(tmp_path)
    assert messages(logs.search()) == ["a", "b"]
    assert logs.tally.unreadable == {"jarvis-2026-01-18.jsonl": 1}


def test_blocks_put_together_are_the_file(tmp_path):
    path = tmp_path / "f"
    content = b"".join(b"x" * (at * 7919 % 300_000) + b"\n" for at in range(40))
    path.write_bytes(content)
    with LogFile(path) as file:
        blocks = [block for part in file.parts() for block in file.blocks(part, print, print)]
    assert b"".join(blocks) == content
    assert all(block.endswith(b"\n") for block in blocks)


def test_only_day_files_are_read_oldest_first(tmp_path):
    write(tmp_path, [line("18")], [line("19")])
    (tmp_path / "jarvis-2026-01-17.jsonl").write_bytes(line("17") + b"\n")
    for other in ("jarvis.jsonl", "jarvis-2026-01-20.jsonl.tmp", "traces-2026-01-18.jsonl", "xjarvis-2026-01-18.jsonl"):
        (tmp_path / other).write_bytes(line(other) + b"\n")
    assert messages(LogQuery(tmp_path).iterate()) == ["17", "18", "19"]


def test_a_record_is_found_by_its_own_time_whatever_the_day_of_its_file(tmp_path):
    (tmp_path / "jarvis-2026-02-20.jsonl").write_bytes(line("late") + b"\n")
    found = LogQuery(tmp_path).search(since="2026-01-18T00:00Z", until="2026-01-19T00:00Z")
    assert messages(found) == ["late"]


def sidecar(path, earliest, latest, size=None):
    content = {"size": path.stat().st_size if size is None else size, "earliest": earliest, "latest": latest}
    path.with_suffix(".meta.json").write_bytes(orjson.dumps(content))


def test_files_whose_sidecar_excludes_the_interval_are_not_read(tmp_path):
    write(tmp_path, [line("early", 1)], [line("late", 9)])
    sidecar(tmp_path / "jarvis-2026-01-18.jsonl", "2026-01-18T14:00:01.000000Z", "2026-01-18T14:00:01.000000Z")
    logs = LogQuery(tmp_path)
    assert messages(logs.search(since="2026-01-18T14:00:02Z")) == ["late"]
    assert (logs.tally.files, logs.tally.files_passed_over) == (1, 1)
    assert messages(logs.search(since="2026-01-18T14:00:01Z")) == ["early", "late"]
    assert messages(logs.search(until="2026-01-18T14:00:00Z")) == []
    assert messages(logs.search(until="2026-01-18T14:00:01Z")) == ["early"]


def test_a_sidecar_that_is_not_of_the_file_as_it_is_now_says_nothing(tmp_path):
    write(tmp_path, [line("a", 1)])
    path = tmp_path / "jarvis-2026-01-18.jsonl"
    logs = LogQuery(tmp_path)
    sidecar(path, "2020-01-01T00:00:00.000000Z", "2020-01-01T00:00:00.000000Z", size=5)
    assert messages(logs.search(since="2026-01-01T00:00Z")) == ["a"]
    for broken in (
        b"",
        b"{",
        b"[]",
        b'{"size": %d}' % path.stat().st_size,
        b'{"size": %d, "latest": 5}' % path.stat().st_size,
    ):
        path.with_suffix(".meta.json").write_bytes(broken)
        assert messages(logs.search(since="2026-01-01T00:00Z")) == ["a"]


def test_the_collectors_own_sidecar_is_understood(tmp_path):
    from jarvis_collector.writer import DayFile

    file = DayFile(tmp_path / "jarvis-2026-01-18.jsonl")
    file.append([line("a", 1) + b"\n"])
    file.close()
    logs = LogQuery(tmp_path)
    assert messages(logs.search(until="2026-01-18T14:00:01Z")) == ["a"]
    assert logs.search(since="2026-01-18T14:00:02Z") == []
    assert logs.tally.files_passed_over == 1


@pytest.mark.parametrize(
    ("message", "asked"),
    [
        ("\u212aelvin", "KELVIN"),
        ("kelvin", "\u212aELVIN"),
        ("xyz\u0130", "XYZI"),
        ("ΟΔΟΣ", "οδοσ"[:3]),
        ("Größe", "GRÖSSE"[:3]),
    ],
)
def test_letter_case_of_all_alphabets_is_passed_over_when_searching(tmp_path, message, asked):
    write(tmp_path, [line("other"), line(message), line("x", context={"deep": [{"er": message}]})])
    assert len(LogQuery(tmp_path).search(text=asked)) == 2


def test_a_missing_directory_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        LogQuery(tmp_path / "none").search()


def test_the_directory_is_that_of_the_settings_where_none_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("JARVIS_LOG_DIR", os.fspath(tmp_path))
    write(tmp_path, [line("a")])
    assert messages(LogQuery().search()) == ["a"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"level": "LOUD"}, "level: got 'LOUD', want one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ({"flag": "=on"}, "flag: got '=on', want FLAG, FLAG=off or FLAG=variant"),
        ({"where": "a"}, "where: column 2: got the end"),
        ({"since": "soon"}, "since: got 'soon', want a time"),
    ],
)
def test_an_argument_that_cannot_be_read_is_named(tmp_path, asked, message):
    with pytest.raises(QueryError) as caught:
        LogQuery(tmp_path).search(**asked)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("level", ["warn", "WARNING", " warning "])
def test_levels_are_known_by_their_other_names_too(tmp_path, level):
    write(tmp_path, [line("w", level="WARNING"), line("i"), line("c", level="CRITICAL")])
    assert messages(LogQuery(tmp_path).search(level=level)) == ["w", "c"]
    assert messages(LogQuery(tmp_path).search(level="=fatal")) == ["c"]


def test_errors_are_counted_by_type_service_message_and_flag(tmp_path):
    error = {"type": "InsufficientBalanceError", "message": "0.5 SOL"}
    write(
        tmp_path,
        [
            line("x", level="ERROR", error=error, flags={"A": "on"}, active_flags=["A"]),
            line("x", level="CRITICAL", error=error, flags={"A": "off"}),
            line("y", level="ERROR"),
            line("z"),
        ],
    )
    logs = LogQuery(tmp_path)
    since = datetime(2026, 1, 1, tzinfo=UTC)
    assert logs.get_error_summary(since) == {"InsufficientBalanceError": 2, "none": 1}
    assert logs.get_error_summary(since, group_by="error.type") == {"InsufficientBalanceError": 2, "none": 1}
    assert logs.get_error_summary(since, "service") == {"s": 3}
    assert logs.get_error_summary(since, "message") == {"x": 2, "y": 1}
    assert logs.get_error_summary(since, "flag") == {"A=off": 1, "A=on": 1, "none": 1}
    assert logs.get_error_summary(datetime(2027, 1, 1, tzinfo=UTC)) == {}
    with pytest.raises(QueryError, match="group_by: got 'moon'"):
        logs.get_error_summary(since, "moon")


def test_error_rates_are_counted_by_flag_and_variant(tmp_path):
    on = {"flags": {"A": "on"}, "active_flags": ["A"]}
    write(tmp_path, [line(**on), line(**on, level="ERROR"), line(flags={"A": "off"}), line(active_flags=["B"])])
    rates = LogQuery(tmp_path).flag_rates()
    assert {flag: {variant: (rate.records, rate.errors, rate.rate) for variant, rate in variants.items()}
            for flag, variants in rates.items()} == {
        "A": {"off": (1, 0, 0.0), "on": (2, 1, 0.5)}, "B": {"on": (1, 0, 0.0)},
    }  # fmt: skip


def span(name, span_id, trace_id, parent=None, second=0, **more):
    start = f"2026-01-18T14:00:{second:02d}.000000Z"
    record = {
        "timestamp": start,
        "end": f"2026-01-18T14:00:{second + 1:02d}.000000Z",
        "duration_ms": 1000.0,
        "name": name,
    }
    record |= (
        {"service": "s", "trace_id": trace_id, "span_id": span_id}
        | ({"parent_span_id": parent} if parent else {})
        | more
    )
    return orjson.dumps(record)


def test_a_trace_crosses_processes_by_the_trace_ids_of_its_correlation_id(tmp_path):
    mine, other = "a" * 32, "b" * 32
    write(
        tmp_path,
        [
            line("engine", 2, trace_id=mine),
            line("api", 1, correlation_id="trade-1", trace_id=mine),
            line("stranger", 3, correlation_id="trade-2", trace_id=other),
            line("untraced", 4, correlation_id="trade-1"),
        ],
    )
    (tmp_path / "traces-2026-01-18.jsonl").write_bytes(
        span("inner", "2", mine, parent="1", second=1) + b"\n" + span("outer", "1", mine) + b"\n"
        + span("other", "3", other) + b"\n" + span("outer", "1", mine) + b"\n"
    )  # fmt: skip
    logs = LogQuery(tmp_path)
    assert messages(logs.trace_correlation("trade-1")) == ["api", "engine", "untraced"]
    assert [item["name"] for item in logs.spans("trade-1")] == ["outer", "inner"]
    assert logs.trace("trade-1").trace_ids == (mine,)
    assert messages(logs.trace_correlation(mine.upper())) == ["api", "engine"]
    assert logs.trace_correlation("trade-3") == []


def test_the_last_variant_of_each_flag_is_that_of_the_trace(tmp_path):
    write(
        tmp_path,
        [
            line("later", 5, correlation_id="t", flags={"A": "on"}, active_flags=["A"]),
            line("earlier", 1, correlation_id="t", flags={"A": "off", "B": "blue"}),
        ],
    )
    (tmp_path / "traces-2026-01-18.jsonl").write_bytes(
        span("s", "1", "c" * 32, correlation_id="t", flags={"C": "off"}) + b"\n"
    )
    assert LogQuery(tmp_path).trace("t").flags() == {"A": "on", "B": "blue", "C": "off"}


def test_criteria_hold_together(tmp_path):
    write(tmp_path, [line("a", user_id="u", level="ERROR"), line("b", user_id="u"), line("c", level="ERROR")])
    logs = LogQuery(tmp_path)
    assert messages(logs.search("ERROR", "s", user_id="u", where="message=a")) == ["a"]
    assert logs.newest(Criteria.of(user_id="u"), 1).total == 2
