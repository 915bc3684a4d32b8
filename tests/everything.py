"""One process that writes all that jarvis-otel writes of its own: records, events, spans, whatever is rare too.

    python everything.py

It loses records first, for want of a collector; says `ready`; and goes on when it reads a line.
"""

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
import warnings
from pathlib import Path

from openfeature import api
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider
from opentelemetry import trace

from jarvis_otel import configure, flags, get_flags, get_logger
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.asgi import OperationMiddleware
from jarvis_otel.flag_hook import EvaluationHook
from jarvis_otel.manager import announce
from jarvis_otel.propagation import inject_headers, server_operation
from jarvis_otel.runtime import RUNTIME

SPOOL_BYTES = 4 * 2**20
SETTINGS = Path(os.environ["JARVIS_HOME"], "config", "jarvis.yaml")

logger = get_logger("trading")


def lose_records():
    quiet = get_logger("quiet")
    for _ in range(2 * SPOOL_BYTES // 4_000):
        quiet.info("x" * 4_000)


def write_records():
    with logger.context(correlation_id="trade-1", user_id="ann", request_id="r1", session_id="s1", flags=["DECLARED"]):
        flags.is_enabled("NEW_UI")
        logger.info("Mine", duration_ms=1.5)
        logger.trade_event("executed", "SOL")
        logger.api_call("GET", "/orders", 200, 3.0)
        logger.feature_flag_evaluated("OTHER", True, {"plan": "pro"})
        logger.info("Secret", password="hunter2")
        try:
            raise ValueError("nothing left")
        except ValueError:
            logger.exception("Failed")
    sampled = logger.limited(sample=0.5)
    for _ in range(100):
        sampled.info("Again and again")
    once = logger.limited(once=True)
    once.info("Only once")
    once.info("Only once")
    warnings.warn("old", UserWarning, stacklevel=1)


def evaluate_flags():
    api.set_provider(InMemoryProvider({"THEIRS": InMemoryFlag("big", {"big": 5})}), "theirs")
    client = api.get_client("theirs")
    client.add_hooks([EvaluationHook(include_value=True)])
    with trace.get_tracer("app").start_as_current_span("many flags"):
        for number in range(40):
            flags.is_enabled(f"MANY_{number}", user_id="ann")
        flags.is_enabled("NO_SUCH_FLAG")
        client.get_integer_value("THEIRS", 0)


def change_flags_and_settings():
    get_flags().set_enabled("NEW_UI", False, reason="broken", admin_id="ann")
    announce(AuditEntry("2026-01-18T14:30:00Z", "ann", "cli", "disable", "NEW_UI", None, None, "", "pending", 1))
    refused = threading.Event()
    logging.getLogger("jarvis_otel").addFilter(lambda record: refused.set() or True)
    SETTINGS.write_text("levels: {trading: debug}\n")
    deadline = time.monotonic() + 20
    while not RUNTIME.settings.levels and time.monotonic() < deadline:
        time.sleep(0.02)
    SETTINGS.write_text("log_level: loud\n")
    refused.wait(20)


async def serve():
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_):
        pass

    async def fails(scope, receive, send):
        raise RuntimeError("no")

    async def answers(scope, receive, send):
        class Found:
            path = "/orders/{order}"

        scope["route"] = Found
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    for app, method in ((fails, "GET"), (answers, "BREW")):
        scope = {
            "type": "http",
            "method": method,
            "path": "/orders/1",
            "scheme": "http",
            "http_version": "1.1",
            "headers": [(b"host", b"api.example:8443"), (b"user-agent", b"curl/8")],
            "client": ("192.0.2.7", 5),
            "server": ("127.0.0.1", 8000),
        }
        with contextlib.suppress(RuntimeError):
            await OperationMiddleware(app)(scope, receive, send)


def send_headers():
    with logger.context(correlation_id="trade-2"):
        sent = inject_headers({}, "http://127.0.0.1/")
    with server_operation(sent, "GET /orders", "api"):
        flags.is_enabled("NEW_UI")
    print(",".join(sorted(sent)), sent["baggage"].partition("=")[0], flush=True)


configure("app")
lose_records()
print("ready", flush=True)
sys.stdin.readline()
write_records()
evaluate_flags()
asyncio.run(serve())
send_headers()
change_flags_and_settings()
raise SystemExit
