"""The --where language."""

import pytest

from jarvis_collector.record import FLAG_PREFIX
from jarvis_otel.query import logql
from jarvis_otel.query.filters import LOKI_LABELS, Facts, contained_in_request, containing, equalling
from jarvis_otel.query.where import where_filter

RECORD = {
    "level": "ERROR",
    "message": "Trade failed",
    "service": "trading",
    "user_id": "123456789012345678",
    "active_flags": ["LIVE", "NEW_UI"],
    "flags": {"NEW_UI": "on", "ADVANCED": "off", "dotted.flag": "on"},
    "duration_ms": 812.5,
    "error": {"type": "InsufficientBalanceError"},
    "context": {
        "symbol": "SOL",
        "amount": "1.50",
        "ok": True,
        "nothing": None,
        "http": {"status": 503},
        "http.route": "/t",
        "off": False,
        "text": "5",
        "whole": "3",
        "list": ["a", "b", 2],
        "40": "1" * 40,
        "41": "1" * 41,
        "quotes": 'it\'s "so"',
        "signs": "a\\b\nc",
    },
    "not": "here",
    "not.a": 1,
}
FLAG_A = logql.Asked((), (f"{FLAG_PREFIX}A",))


@pytest.mark.parametrize(
    "expression",
    [
        "duration_ms>500",
        "duration_ms >= 812.5",
        "duration_ms=8125e-1",
        "duration_ms!=1",
        "context.symbol=SOL",
        'context.symbol="SOL"',
        "message='Trade failed'",
        "error.type~=balance",
        "flags.NEW_UI=on",
        "flags.ADVANCED!=on",
        "flags.dotted.flag=on",
        "active_flags=LIVE",
        "active_flags~=new_",
        "context.amount>1",
        "context.amount=1.5",
        "context.ok=true",
        "context.off=false",
        "duration_ms<=812.5",
        "context.text>=5",
        "context.text<='5'",
        "context.text<6",
        "context.amount<=1.5",
        "context.whole=3",
        "context.whole='3'",
        "context.list=2",
        "context.list=b",
        "context.list~=B",
        "level<=error",
        "level<LOUD",
        "level='ERROR'",
        "not.a=1",
        "not=here",
        "trading=1 or not=here",
        "active_flags!=OTHER",
        "context.nothing=null",
        "context.absent=null",
        "context.absent!=5",
        "not context.absent>5",
        "context.http.status>=500",
        "context.http.route=/t",
        "level>=WARNING and level<CRITICAL",
        "user_id=123456789012345678",
        "service=api or service=trading",
        "not (service=api or service=telegram)",
        "service=api and service=trading or level=ERROR",
        "service=trading AND (level=INFO OR duration_ms>1)",
        "not not service=trading",
        r"message!='it\'s'",
        r"""context.quotes='it\'s "so"'""",
        r'''context.quotes="it's \"so\""''',
        "context.signs='a\\\\b\\\nc'",
        "context.signs='a\\\\b\nc'",
        "context.40>1",
        "message>INFO",
        "context.text=5",
    ],
)
def test_holds(expression):
    assert where_filter(expression).matches(RECORD) is True


@pytest.mark.parametrize(
    "expression",
    [
        "duration_ms<500",
        "context.symbol=sol",
        "context.symbol>5",
        "context.absent=SOL",
        "context.absent<5",
        "context.symbol.deeper=SOL",
        "user_id=123456789012345679",
        "flags.ADVANCED=on",
        "context=SOL",
        "context.ok=1",
        "duration_ms>'5'",
        "level>LOUD",
        "context.ok>0",
        "context.ok=True",
        "context.off=null",
        "context.nothing=false",
        "duration_ms>812.5",
        "duration_ms<812.5",
        "context.text>'5'",
        "context.list>1",
        f"context.41={'1' * 40}1.0",
        "context.41>1",
        "context.ok='true'",
        "context.nothing='null'",
        "level<ERROR",
        "level>ERROR",
        "level>='ERROR' and context.list=c",
        "active_flags!=LIVE",
        "message~='trade  failed'",
        "context.http.status~=50",
        'duration_ms="812.5"',
        "not service=trading or level=INFO",
    ],
)
def test_does_not_hold(expression):
    assert where_filter(expression).matches(RECORD) is False


@pytest.mark.parametrize("level", [None, 5, ["ERROR"], {"is": "ERROR"}])
def test_a_level_that_is_no_text_is_neither_above_nor_below_another(level):
    assert not where_filter("level>=DEBUG").matches({"level": level})
    assert not where_filter("level<=CRITICAL").matches({"level": level})


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("", "column 1: got the end, want a field such as"),
        ("duration_ms", "column 12: got the end, want one of = !="),
        ("duration_ms>", "column 13: got the end, want a value"),
        ("duration_ms==5", "column 13: got '=', want a value"),
        ("(service=a", "column 11: got the end, want and, or, or )"),
        ("(service=a (", "column 12: got '(', want and, or, or )"),
        ("service=a or", "column 13: got the end, want a field"),
        ("not", "column 4: got the end, want a field"),
        ("service=a)", "column 10: got ')', want and, or, or the end"),
        ("service=a b=c", "column 11: got 'b', want and, or, or the end"),
        ("service=a and", "column 14: got the end, want a field"),
        ("a=b 'and' c=d", "want and, or, or the end"),
        ("service='a", 'column 9: got "\'", want a value'),
        ("(" * 100 + "a=b" + ")" * 100, "more than 50 parentheses"),
        ("a=b and " * 1000, "got 8000 characters, want at most 4096"),
        (".".join("a" * 100) + "=1", "got a field of 100 keys"),
    ],
)
def test_an_error_says_where_and_what_was_wanted(expression, complaint):
    with pytest.raises(ValueError) as caught:
        where_filter(expression)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_limits_of_an_expression_are_its_last_good_sizes():
    where_filter("a=" + "b" * 4094)
    where_filter(".".join("a" * 32) + "=1")
    where_filter("(" * 50 + "a=b" + ")" * 50)
    for expression in ("a=" + "b" * 4095, ".".join("a" * 33) + "=1", "(" * 51 + "a=b" + ")" * 51):
        with pytest.raises(ValueError):
            where_filter(expression)


def test_parentheses_side_by_side_are_not_in_each_other():
    side_by_side = " and ".join(["(level=ERROR)"] * 60)
    assert where_filter(side_by_side).matches(RECORD)
    with pytest.raises(ValueError, match="more than 50 parentheses"):
        where_filter(f"{side_by_side} and {'(' * 51}a=b{')' * 51}")


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("level=ERROR", Facts(levels=frozenset({"ERROR"}))),
        ("level>=ERROR", Facts(levels=frozenset({"ERROR", "CRITICAL"}))),
        ("level<info", Facts(levels=frozenset({"DEBUG"}))),
        ("service=api", Facts(service="api")),
        ("trace_id=abc", Facts(ids=frozenset({"abc"}))),
        ("correlation_id='abc' and service=api", Facts(service="api", ids=frozenset({"abc"}))),
        ("level>INFO and level=ERROR", Facts(levels=frozenset({"ERROR"}))),
        ("level<=WARNING and level>=ERROR", Facts(levels=frozenset({"ERROR", "CRITICAL"}))),
        ("service=api and correlation_id='abc'", Facts(service="api", ids=frozenset({"abc"}))),
        ("service='5'", Facts(service="5")),
        ("level=LOUD", None),
        ("message=hello", None),
        ("service~=api", None),
        ("service!=api", None),
        ("not service=api", None),
        ("service=api or level=ERROR", None),
        ("service=5", None),
        ("duration_ms>5 and context.a=b", None),
    ],
)
def test_what_is_known_of_all_records_for_which_an_expression_holds(expression, wanted):
    assert where_filter(expression).facts == wanted


@pytest.mark.parametrize(
    ("expression", "finds", "in_request"),
    [
        ("message='Trade failed'", True, True),
        ("message~=TRADE", True, True),
        ("service=trading", True, True),
        ("service=unknown_service", True, False),
        ("context.symbol=SOL", True, True),
        ("context.symbol=SOL and duration_ms>5", True, True),
        ("duration_ms>5 and context.symbol=SOL", True, True),
        ("level=ERROR", True, False),
        ("timestamp~=2026", True, False),
        ("context.amount=1.5", False, False),
        ("context.ok=true", False, False),
        ("context.symbol!=SOL", False, False),
        ("not context.symbol=SOL", False, False),
        ("context.symbol=SOL or level=ERROR", False, False),
    ],
)
def test_lines_and_requests_are_passed_over_by_a_text_that_they_must_hold(expression, finds, in_request):
    found = where_filter(expression)
    assert (found.needle is not None, found.request is not None) == (finds, in_request)


def test_text_that_a_field_holds_is_looked_for_in_any_case_and_text_that_it_is_as_it_is():
    found = where_filter("message~=Kelvin")
    assert found.needle == containing("Kelvin")
    assert found.request == contained_in_request("Kelvin", any_case=True)
    found = where_filter("message=Kelvin and context.symbol=SOL")
    assert found.needle == equalling("Kelvin")
    assert found.request == contained_in_request("Kelvin")


@pytest.mark.parametrize(
    ("expression", "in_request"),
    [
        ("service~=Unknown", False),
        ("service=unknown_service", False),
        ("service=unknown_services", True),
        ("message~=unknown", True),
    ],
)
def test_the_one_service_that_requests_do_not_name_is_not_looked_for_in_them(expression, in_request):
    assert (where_filter(expression).request is not None) is in_request


@pytest.mark.parametrize(
    "key",
    [
        "message",
        "service",
        "correlation_id",
        "trace_id",
        "span_id",
        "request_id",
        "user_id",
        "session_id",
        "active_flags",
        "flags.A",
        "error.type",
        "event",
        "context.a",
        "logger",
    ],
)
def test_texts_of_these_fields_stand_in_a_request_too(key):
    assert where_filter(f"{key}=somewhere").request is not None


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("message=x", logql.line_holds("x")),
        ("level=ERROR", logql.levels({"ERROR"})),
        ("level>=ERROR", logql.levels({"ERROR", "CRITICAL"})),
        ("level=LOUD", logql.levels(set())),
        ("error.type=E", logql.type_is("E")),
        ("error.message=m", logql.equals_any(("exception.message",), ("m",))),
        ("flags.A.b=on", logql.flag_is("A.b", "on")),
        ("context.a.b=x", logql.attribute_is("a.b", "x")),
        ("service=api", logql.equals_any(LOKI_LABELS["service"], ("api",))),
        ("error.type~=Error", logql.says(("exception.type",), "Error")),
        ("error.message~='too low'", logql.says(("exception.message",), "too low")),
        ("error.stack~=Error", logql.ANYTHING),
        ("context.a.b~=some", logql.attribute_says("a.b", "some")),
        ("service~=api", logql.says(LOKI_LABELS["service"], "api")),
        ("duration_ms>=5", logql.number_compares("jarvis.duration_ms", ">=", 5)),
        ("duration_ms>='5'", logql.ANYTHING),
        ("message~=x", logql.ANYTHING),
        ("context=x", logql.ANYTHING),
        ("active_flags=A", logql.ANYTHING),
        ("context.a.b>5", logql.Asked((), ("a.b",))),
        ("context.a=5", logql.Asked((), ("a",))),
        ("flags.A~=o", FLAG_A),
        ("context>5", logql.ANYTHING),
        ("flags~=some", logql.ANYTHING),
        ("context.a=some and flags.A>5", logql.all_of([logql.attribute_is("a", "some"), FLAG_A])),
        ("context.a=some or flags.A>5", logql.Asked((), ("a", f"{FLAG_PREFIX}A"))),
        ("context.a!=some", logql.Asked((), ("a",))),
        ("not context.a=some", logql.Asked((), ("a",))),
    ],
)
def test_loki_is_asked_what_it_can_answer(expression, wanted):
    assert where_filter(expression).loki == wanted
