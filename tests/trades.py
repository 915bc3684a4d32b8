"""A trade that failed, as the day files of 2026-01-18 tell of it: records and spans of two services, and one record of another."""

import orjson

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"

API_SPAN, ENGINE_SPAN = "00f067aa0ba902b7", "b7ad6b7169203331"


def record(second, level, message, service="trading", **more):
    start = {"timestamp": f"2026-01-18T13:30:0{second}.123456Z", "level": level, "message": message, "service": service}
    return start | {"active_flags": [], "context": {}} | more


FAILURE = record(
    3,
    "ERROR",
    "Trade execution failed: insufficient balance",
    correlation_id="trade-xyz789",
    trace_id=TRACE_ID,
    span_id=ENGINE_SPAN,
    user_id="tg_1",
    active_flags=["LIVE_TRADING_ENABLED"],
    flags={"LIVE_TRADING_ENABLED": "on", "ADVANCED_TRADING_ENABLED": "off"},
    duration_ms=12.5,
    error={
        "type": "InsufficientBalanceError",
        "message": "Wallet has 0.5 SOL, need 1.0 SOL",
        "stack_trace": 'Traceback (most recent call last):\n  File "trading.py", line 123\n',
    },
    context={"symbol": "SOL", "note": "two words", "requested_amount": 1.0},
)

RECORDS = [
    record(1, "INFO", "Trade requested", "api", correlation_id="trade-xyz789", trace_id=TRACE_ID, span_id=API_SPAN,
           active_flags=["NEW_UI"], flags={"NEW_UI": "on"}),
    record(2, "INFO", "Sizing", trace_id=TRACE_ID, span_id=ENGINE_SPAN,
           active_flags=["LIVE_TRADING_ENABLED"], flags={"LIVE_TRADING_ENABLED": "on", "TRADE_LIMIT": "low"}),
    FAILURE,
    record(5, "INFO", "Other", correlation_id="trade-other"),
]  # fmt: skip

SPANS = [
    {"timestamp": "2026-01-18T13:30:01.500000Z", "end": "2026-01-18T13:30:04.000000Z", "duration_ms": 2500.0, "name": "execute",
     "service": "trading", "trace_id": TRACE_ID, "span_id": ENGINE_SPAN, "parent_span_id": API_SPAN,
     "status": {"code": "error", "message": "no balance"}},
    {"timestamp": "2026-01-18T13:30:01.000000Z", "end": "2026-01-18T13:30:04.100000Z", "duration_ms": 3100.0,
     "name": "POST /trade", "kind": "server", "service": "api", "correlation_id": "trade-xyz789", "trace_id": TRACE_ID,
     "span_id": API_SPAN, "flags": {"NEW_UI": "on"}},
]  # fmt: skip


def write_day(directory, prefix, records):
    """Writes records or spans as the day file of their day."""
    directory.mkdir(exist_ok=True)
    (directory / f"{prefix}-2026-01-18.jsonl").write_bytes(b"".join(orjson.dumps(item) + b"\n" for item in records))
