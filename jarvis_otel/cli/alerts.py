"""`jarvis alerts`: alerts from a process of their own, and a test of where they go."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from jarvis_otel.cli.command import load_settings, print_json
from jarvis_otel.terminal import DONE, NO, WRONG, printable

if TYPE_CHECKING:
    from jarvis_otel.alerts.alert import Message
    from jarvis_otel.alerts.sinks import Result, Sink
    from jarvis_otel.settings import Settings

__all__ = ["add_parser"]

_EPILOG = """\
examples:
  jarvis alerts            # until it is told to stop; jarvis web and jarvis telegram do the same beside their own work
  jarvis alerts --test     # sends one alert to each webhook and chat, and says what came of it

Exit code 0: done, or all of them took the test. 1: one did not. 2: the settings leave nothing to tell, or nobody.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `alerts` to the command line."""
    parser = commands.add_parser(
        "alerts",
        help="tell Telegram chats and webhooks what happens",
        description="Tells of changed flags, approvals, expiring flags, error rates and the collector (alerts and "
        "alert_* in config/jarvis.yaml). Of several processes that do, one does and the others stand by.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--test", action="store_true", help="send one test alert to each receiver, and end")
    parser.add_argument(
        "--format", choices=("human", "json"), default="human", help="how to print what --test found (default: human)"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs alerts or tests them; 0 done, 1 a receiver did not take the test, 2 nothing to do."""
    settings = load_settings()
    if settings is None:
        return WRONG
    return _test(settings, args.format) if args.test else _serve(settings)


def _serve(settings: Settings) -> int:
    from jarvis_otel.alerts.service import why_silent  # noqa: PLC0415 - not for --test
    from jarvis_otel.fronts import open_front  # noqa: PLC0415

    if why := why_silent(settings):
        print(f"jarvis alerts: {why}", file=sys.stderr)
        return WRONG
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with ExitStack() as ends:
        open_front(settings, "jarvis-alerts", ends)
        print(f"jarvis alerts: telling of {', '.join(sorted(settings.alerts.kinds))}", file=sys.stderr, flush=True)
        stopping.wait()
    return DONE


def _test(settings: Settings, form: str) -> int:
    from jarvis_otel.alerts.sinks import Fate, sinks_of  # noqa: PLC0415 - only here

    sinks, problems = sinks_of(settings.alerts, settings.telegram)
    if not sinks and not problems:
        problems = ["nobody is to be told: set alert_webhooks or alert_telegram_chats"]
    for problem in problems:
        print(f"jarvis alerts: {problem}", file=sys.stderr)
    if not sinks:
        return WRONG
    results = [(sink, _tried(sink, _test_message())) for sink in sinks]
    if form == "json":
        print_json(
            [{"sink": sink.name, "fate": str(result.fate), "problem": result.problem} for sink, result in results]
        )
    else:
        for sink, result in results:
            because = f": {result.problem}" if result.problem else ""
            print(printable(f"{sink.name}: {result.fate}{because}"))
    if not settings.alerts.kinds:
        print("jarvis alerts: nothing else is told: alerts names no kind", file=sys.stderr)
    return DONE if not problems and all(result.fate is Fate.DELIVERED for _, result in results) else NO


def _tried(sink: Sink, message: Message) -> Result:
    try:
        return sink.send(message)
    finally:
        sink.close()


def _test_message() -> Message:
    import socket  # noqa: PLC0415 - only here
    import time  # noqa: PLC0415

    from jarvis_otel.alerts.alert import Alert, Message, moment_of  # noqa: PLC0415

    host = socket.gethostname()
    text = f"sent by jarvis alerts --test on {host}; alerts get through to here"
    alert = Alert("test", "a test of alerts", text, at=moment_of(time.time()), details={"host": host})
    return Message("test", (alert,), 1, alert.severity, "")
