"""For tests of applications: flags as a test wants them, and the records and spans that it makes.

With pytest there is nothing to import, the fixtures are there once jarvis-otel is installed:

    def test_a_big_order_is_refused(jarvis_flags, jarvis_logs, jarvis_spans):
        jarvis_flags(NEW_UI=True, TRADE_LIMIT_USD=1000)

        place_order("SOL", usd=5000)

        assert jarvis_logs.has("Order refused", level="WARNING", symbol="SOL")
        assert jarvis_logs.one("Order refused").flags["TRADE_LIMIT_USD"] == "high"
        assert jarvis_spans.has("place order", {"jarvis.flag.NEW_UI": "on"})

`jarvis_flags` is a world of flags in memory that holds for the test: whoever asks the process's flags sees it, threads
and tasks too (other processes do not: give those `FF_NEW_UI=true`). A flag that is not set is what the project's flag
file says, without what this machine adds to it (the local file, run-time overrides), and without a file it is the
caller's default. Nothing is written to disk, and what the test itself changes, by `flags.set_enabled(...)` for
instance, is gone with it.

`jarvis_logs` is a list of `LogEntry`: all records from DEBUG up, of StructuredLoggers and of standard logging, whatever
levels are set. caplog, capsys and the application's own handlers get what they would get without it. While it is in
use StructuredLoggers write from DEBUG up to OpenTelemetry, too, where `configure()` set that up.

`jarvis_spans` is a list of the OpenTelemetry SDK's finished spans. Where the application has set no tracer provider,
there is one for the time of the test; it may still set its own.

The same without pytest, or for a part of a test:

    from jarvis_otel.testing import capture_logs, capture_spans, override_flags

    with override_flags(NEW_UI=True), capture_logs() as logs:
        ...

    @override_flags(NEW_UI=True)
    def test_the_new_ui(): ...
"""

from __future__ import annotations

from jarvis_otel.testing.flag_override import FlagOverride, OverriddenFlags, override_flags
from jarvis_otel.testing.log_capture import CapturedLogs, capture_logs
from jarvis_otel.testing.span_capture import CapturedSpans, capture_spans

__all__ = [
    "CapturedLogs",
    "CapturedSpans",
    "FlagOverride",
    "OverriddenFlags",
    "capture_logs",
    "capture_spans",
    "override_flags",
]
