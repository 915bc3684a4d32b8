"""What is wanted of a record, filter by filter, by themselves; tests/test_query_search.py looks through lines with them."""

from datetime import UTC, datetime

import pytest

from jarvis_otel.query import filters, logql
from jarvis_otel.query.filters import Facts
from jarvis_otel.query.times import Interval, parse_time
from jarvis_otel.redaction import pseudonym

LEVELS = ["TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
ESCAPED = b"\\u"
# Turkish I with a dot, and Kelvin's sign: their lower case has an i and a k of ASCII
FOLDED = ("\u0130".encode(), "\u212a".encode())


def looked_for(needle):
    """The bytes of which one must stand in a line, and whether its lower case is looked at."""
    return needle and (set(needle.alternatives), needle.lowered)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ERROR", {"ERROR", "CRITICAL"}),
        ("warning", {"WARNING", "ERROR", "CRITICAL"}),
        (" warn ", {"WARNING", "ERROR", "CRITICAL"}),
        ("FATAL", {"CRITICAL"}),
        ("=ERROR", {"ERROR"}),
        ("= info", {"INFO"}),
        ("INFO", {"INFO", "WARNING", "ERROR", "CRITICAL"}),
    ],
)
def test_a_level_is_it_and_above_or_exactly_it(text, wanted):
    found = filters.level_filter(text)
    assert {level for level in LEVELS if found.matches({"level": level})} == wanted
    assert found.facts == Facts(levels=frozenset(wanted))
    assert found.loki == logql.levels(wanted)
    assert not found.is_interval
    assert not found.matches({})
    assert not found.matches({"level": ["ERROR"]})


def test_lines_are_looked_at_for_a_level_only_where_few_have_it():
    assert [filters.level_filter(text).needle is not None for text in ("WARNING", "=INFO", "INFO", "DEBUG")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("text", ["", "LOUD", "==ERROR", "5"])
def test_a_level_that_there_is_not_is_refused_with_those_that_there_are(text):
    with pytest.raises(ValueError, match="want one of DEBUG, INFO, WARNING, ERROR, CRITICAL"):
        filters.level_filter(text)


@pytest.mark.parametrize(
    ("key", "facts"),
    [
        ("service", Facts(service="some-name")),
        ("correlation_id", Facts(ids=frozenset({"some-name"}))),
        ("trace_id", Facts(ids=frozenset({"some-name"}))),
        ("session_id", None),
    ],
)
def test_a_field_is_exactly_the_text(key, facts):
    found = filters.field_filter(key, "some-name")
    assert found.matches({key: "some-name"})
    assert not any(found.matches(record) for record in ({}, {key: "some-names"}, {key: "SOME-NAME"}, {key: None}))
    assert found.facts == facts


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("service", ("jarvis.service", "service.name")),
        ("correlation_id", ("jarvis.correlation_id", "trace_id")),
        ("trace_id", ("trace_id",)),
        ("span_id", ("span_id",)),
        ("request_id", ("jarvis.request_id",)),
        ("user_id", ("user.id",)),
        ("session_id", ("session.id",)),
        ("event", ("event_name",)),
        ("logger", ("scope_name",)),
    ],
)
def test_loki_is_asked_for_a_field_by_the_names_that_it_has_there(key, names):
    assert filters.field_filter(key, "some-name").loki == logql.equals_any(names, ("some-name",))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain", ({b'"plain"', ESCAPED}, False)),
        ("Größe", ({'"Größe"'.encode(), ESCAPED}, False)),
        ('say "hi"', ({b"say ", ESCAPED}, False)),
        ('zyx"abcd"', ({b"abcd", ESCAPED}, False)),
        ('a"bcd', ({b"bcd", ESCAPED}, False)),
        ('ab"cd', None),
        ("", None),
    ],
)
def test_a_line_with_a_text_is_known_by_it_or_by_the_longest_run_of_it_that_json_writes_as_it_is(text, wanted):
    assert looked_for(filters.equalling(text)) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Plain", ({b"plain", ESCAPED, *FOLDED}, True)),
        ("GRÖßE long", ({b"e long", ESCAPED, *FOLDED}, True)),
        ("\u212aelvin", ({b"kelvin", ESCAPED, *FOLDED}, True)),
        ('zyx"ABCD"', ({b"abcd", ESCAPED, *FOLDED}, True)),
        ('ab"cd', None),
        ("", None),
    ],
)
def test_a_line_that_holds_a_text_in_any_case_is_known_by_its_lower_case_in_ascii(text, wanted):
    assert looked_for(filters.containing(text)) == wanted


@pytest.mark.parametrize(
    ("text", "exactly", "in_any_case"),
    [
        ("Trade failed", {b"trade failed"}, {b"trade failed", *FOLDED}),
        ("abc", {b"abc"}, {b"abc", *FOLDED}),
        ("\u212aelvin", {b"elvin"}, {b"kelvin", *FOLDED}),
        ('Zabc,{"efghi":1}', {b"efghi"}, {b"efghi", *FOLDED}),  # they may be apart in a request
        ("null,abc", {b"abc"}, {b"abc", *FOLDED}),
        ("12345", {b"12345", b"doublevalue"}, {b"12345", b"doublevalue"}),
        ("1234.5,789", {b"789", b"doublevalue"}, {b"789", b"doublevalue"}),  # 1234.5 may be written as 12345e-1
        *((text, None, None) for text in ("", "ab", "a,b", "true", "False", "null", "NaN", "-Infinity", "1.5", "1e5")),
    ],
)
def test_a_request_that_holds_a_text_is_known_by_what_lies_within_one_of_its_values(text, exactly, in_any_case):
    assert looked_for(filters.contained_in_request(text)) == (exactly and ({*exactly, ESCAPED}, True))
    found = filters.contained_in_request(text, any_case=True)
    assert looked_for(found) == (in_any_case and ({*in_any_case, ESCAPED}, True))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("trade-1", ({b'"trade-1"', ESCAPED}, False)),
        ("Größe", ({'"Größe"'.encode(), ESCAPED}, False)),
        ("00ABcd", ({b'"00abcd"', ESCAPED}, True)),  # an id in hex digits, of which a line has the lower case
        ('say "Hello"', ({b"hello", ESCAPED}, True)),
        ("\ufffdabc", ({b"abc", ESCAPED}, True)),  # what a line says of bytes that are no UTF-8
        ('a"b', None),
    ],
)
def test_a_request_with_a_value_is_known_by_it_as_a_whole(value, wanted):
    assert looked_for(filters.field_filter("session_id", value).request) == wanted


@pytest.mark.parametrize(
    ("make", "named"), [(filters.user_filter, 16), (lambda names: filters.correlation_filter("trade-0", names), 15)]
)
def test_lines_and_requests_are_known_by_up_to_sixteen_names(make, named):
    names = [f"trade-{number}" for number in range(1, named + 2)]
    found = make(names[:-1])
    assert len(found.needle.alternatives) == len(found.request.alternatives) == 17
    found = make(names)
    assert found.needle is None
    assert found.request is None


def test_names_that_lines_are_not_known_by_hide_no_line():
    found = filters.user_filter(["trade-1", 'a"b'])
    assert found.needle is None
    assert found.request is None


def test_a_service_that_a_request_does_not_name_is_not_looked_for_there():
    assert filters.field_filter("service", "unknown_service").request is None
    assert filters.field_filter("service", "unknown_services").request is not None


def test_a_user_is_found_by_each_of_their_names():
    names = filters.names_of("42", "key")
    assert names == ("42", pseudonym("key", "42"))
    assert filters.names_of("42", None) == filters.names_of("42", "") == ("42",)
    found = filters.user_filter(names)
    assert all(found.matches({"user_id": name}) for name in names)
    assert not any(found.matches(record) for record in ({}, {"user_id": "4"}, {"user_id": 42}, {"user_id": ["42"]}))
    quoted = {f'"{name}"'.encode() for name in names}
    assert looked_for(found.needle) == ({*quoted, ESCAPED}, False)
    assert looked_for(found.request) == ({*quoted, ESCAPED}, True)
    assert found.loki == logql.equals_any(("user.id",), names)


def test_a_correlation_id_may_be_a_trace_id_and_has_traces():
    found = filters.correlation_filter("ABC", ["dd"])
    assert found.matches({"correlation_id": "ABC"})
    assert found.matches({"trace_id": "abc"})
    assert found.matches({"trace_id": "dd"})
    assert not any(found.matches(r) for r in ({"correlation_id": "abc"}, {"trace_id": "ABC"}, {"correlation_id": "dd"}))
    assert found.facts == Facts(ids=frozenset({"ABC", "abc", "dd"}))
    assert looked_for(found.needle) == ({b'"ABC"', b'"abc"', b'"dd"', ESCAPED}, False)
    assert looked_for(found.request) == ({b'"abc"', b'"dd"', ESCAPED}, True)
    assert found.loki == logql.equals_any(("jarvis.correlation_id", "trace_id"), ("ABC", "abc", "dd"))
    mixed = filters.correlation_filter("Trade-1", ["0a"]).request
    assert looked_for(mixed) == ({b'"trade-1"', b'"0a"', ESCAPED}, True)
    assert filters.trace_filter(" ABC ").matches({"trace_id": "abc"})


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("F", [{"active_flags": ["F"]}], [{"flags": {"F": "on"}}, {"active_flags": ["FF"]}, {"active_flags": "F"}, {}]),
        ("F=on", [{"flags": {"F": "on"}}, {"active_flags": ["F"]}], [{"flags": {"F": "off"}, "active_flags": ["F"]}]),
        ("F=off", [{"flags": {"F": "off"}}], [{"flags": {"F": False}}, {"active_flags": ["F"]}, {"flags": ["F"]}, {}]),
        ("F=a=b", [{"flags": {"F": "a=b"}}], [{"flags": {"F": "a"}}]),
    ],
)
def test_a_flag_was_on_or_gave_a_variant(text, inside, outside):
    found = filters.flag_filter(text)
    assert [record for record in inside if not found.matches(record)] == []
    assert [record for record in outside if found.matches(record)] == []


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("NEW_UI", logql.flag_was_on("NEW_UI")),
        ("NEW_UI=on", logql.flag_is("NEW_UI", "on")),
        ("NEW_UI=off", logql.flag_is("NEW_UI", "off")),
    ],
)
def test_lines_requests_and_loki_are_asked_for_a_flag_by_its_id(text, asked):
    found = filters.flag_filter(text)
    assert looked_for(found.needle) == ({b'"NEW_UI"', ESCAPED}, False)
    assert looked_for(found.request) == ({b"new_ui", ESCAPED}, True)
    assert found.loki == asked


@pytest.mark.parametrize("text", ["", "=", "=on", "F="])
def test_a_text_that_names_no_flag_or_no_variant_is_refused(text):
    with pytest.raises(ValueError, match="want FLAG, FLAG=off or FLAG=variant"):
        filters.flag_filter(text)


def test_what_tells_of_a_flag_or_of_a_failure_is_found():
    found = filters.flag_or_error_filter("F")
    inside = [
        {"level": "ERROR"},
        {"level": "CRITICAL"},
        {"flags": {"F": "off"}},
        {"active_flags": ["F"]},
        {"context": {"feature_flag.key": "F"}},
        {"status": {"code": "error"}},
    ]
    outside = [
        {"level": "WARNING"},
        {"flags": {"G": "on"}},
        {"context": {"feature_flag.key": "G"}},
        {"context": "F"},
        {"status": {"code": "ok"}},
        {},
    ]
    assert [record for record in inside if not found.matches(record)] == []
    assert [record for record in outside if found.matches(record)] == []
    assert looked_for(found.needle) == ({b'"F"', b'"ERROR"', b'"CRITICAL"', b'"error"', ESCAPED}, False)
    assert found.request is None  # which says an error in other words
    assert found.loki == logql.flag_or_error("F")


def test_the_flags_of_a_record_are_those_that_it_lists_and_those_that_it_gives_a_variant():
    record = {"active_flags": ["A", "B", 5], "flags": {"B": "beta", "C": "off", "D": None}}
    assert filters.flag_states(record) == {"A": "on", "B": "beta", "C": "off"}
    assert [filters.flag_state(record, flag) for flag in "ABCD"] == ["on", "beta", "off", None]
    assert filters.flag_states({"active_flags": "A", "flags": ["B"]}) == {}


def test_the_event_of_an_evaluation_is_told_from_others():
    assert filters.is_evaluation({"event": "feature_flag.evaluation"})
    assert not filters.is_evaluation({"event": "jarvis.flag.changed"})
    assert not filters.is_evaluation({})


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"message": "the NEEDLE"}, True),
        ({"error": {"message": "needle"}}, True),
        ({"error": {"stack_trace": "a\nneedle"}}, True),
        ({"error": {"type": "needle"}}, False),
        ({"error": "needle"}, False),
        ({"context": {"a": [{"b": "needle"}]}}, True),
        ({"context": {"needle": 1}}, False),
        ({"service": "needle"}, False),
    ],
)
def test_text_is_searched_where_people_look_for_it(record, wanted):
    assert filters.text_filter("Needle").matches(record) is wanted


def test_whole_numbers_of_the_context_are_searched_too():
    found = filters.text_filter("12")
    assert found.matches({"context": {"a": [5123]}})
    assert not found.matches({"context": {"a": True, "b": None, "c": 0.12}})
    assert not filters.text_filter("true").matches({"context": {"a": True}})


def test_text_is_looked_for_in_lines_requests_and_loki_in_any_case():
    found = filters.text_filter("Needle")
    assert looked_for(found.needle) == looked_for(found.request) == ({b"needle", ESCAPED, *FOLDED}, True)
    assert found.loki == logql.says_anywhere("Needle")


def test_an_interval_includes_its_ends():

    now = datetime(2026, 1, 18, 14, 30, tzinfo=UTC)
    since, until = (parse_time(text, now) for text in ("2026-01-18T10:00Z", "2026-01-18T11:00Z"))
    found = filters.interval_filter(Interval(since, until))
    times = ["09:59:59.999999", "10:00:00.000000", "10:30:00.000000", "11:00:00.000000", "11:00:00.000001"]
    stamps = [f"2026-01-18T{time}Z" for time in times]
    wanted = [False, True, True, True, False]
    assert [found.matches({"timestamp": stamp}) for stamp in stamps] == wanted
    assert [found.possible(b'{"timestamp":"%s"' % stamp.encode()) for stamp in stamps] == wanted
    assert found.possible(b'{"other":1')
    assert found.is_interval
    assert filters.interval_filter(Interval(since, None)).matches({"timestamp": stamps[4]})
    assert filters.interval_filter(Interval(None, until)).matches({"timestamp": stamps[0]})
    assert filters.interval_filter(Interval(None, None)) is None


@pytest.mark.parametrize("again", [b'"timestamp"', b'"\\u0074imestamp"'], ids=["as it is", "escaped"])
def test_of_two_times_in_a_line_the_last_one_counts_as_it_does_for_json(again):
    early, late = "2026-01-18T00:00:00.000000Z", "2026-01-18T00:00:50.000000Z"
    found = filters.interval_filter(Interval(datetime(2026, 1, 18, 0, 0, 50, tzinfo=UTC), None))
    line = b'{"timestamp":"%s","level":"INFO"%%s}\n' % early.encode()
    assert not found.possible(line % b"")
    assert found.possible(line % (b',%s:"%s"' % (again, late.encode())))
