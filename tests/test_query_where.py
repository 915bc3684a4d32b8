"""The --where language."""

import pytest

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
    },
}


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
    ],
)
def test_holds(expression):
    assert where_filter(expression).matches(RECORD)


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
        "context.http.status~=50",
        'duration_ms="812.5"',
        "not service=trading or level=INFO",
    ],
)
def test_does_not_hold(expression):
    assert not where_filter(expression).matches(RECORD)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("", "column 1: got the end, want a field such as"),
        ("duration_ms", "column 12: got the end, want one of = !="),
        ("duration_ms>", "column 13: got the end, want a value"),
        ("duration_ms==5", "column 13: got '=', want a value"),
        ("(service=a", "column 11: got the end, want and, or, or )"),
        ("service=a)", "column 10: got ')', want and, or, or the end"),
        ("service=a b=c", "column 11: got 'b', want and, or, or the end"),
        ("service=a and", "column 14: got the end, want a field"),
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
