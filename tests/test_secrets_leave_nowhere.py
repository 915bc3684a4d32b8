"""A planted secret comes out by no way: our logger, standard logging, OpenTelemetry's API, spans, console, spool, disk."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.otlp_sink import attributes_of, otlp_sink

PASSWORD = "hunter2-is-no-password"
BOT = "123456789:AAF5dJ3kQ0zXy-abcdefghijklmnopqrstu"
USER = "tg_456789123"

APP = f"""
import logging, sys
from pathlib import Path
from jarvis_otel import configure, get_logger
from jarvis_otel.runtime import RUNTIME
from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber, get_logger_provider
configure("app")
log = get_logger("app")
class Hostile:
    def __str__(self): raise RuntimeError("{PASSWORD}")
with log.context(user_id="{USER}", headers={{"Authorization": "Bearer {PASSWORD}-{PASSWORD}"}}):
    log.info("url https://bob:{PASSWORD}@example.org and https://api.telegram.org/bot{BOT}/getMe")
    log.info("keywords", password="{PASSWORD}", nested={{"deep": [{{"api_key": "{PASSWORD}"}}]}}, token="{BOT}")
    log.info("short", bot="{BOT}")
    log.warning("hostile", secret=Hostile(), password="{PASSWORD}")
    logging.getLogger("std").warning("password=%s", "{PASSWORD}", extra={{"api_key": "{PASSWORD}"}})
    get_logger_provider().get_logger("api").emit(LogRecord(
        timestamp=1, body="bot {BOT}", severity_number=SeverityNumber.INFO,
        attributes={{"user.id": "{USER}", "db.password": "{PASSWORD}"}}))
    with trace.get_tracer("t").start_as_current_span("https://bob:{PASSWORD}@x.org") as span:
        span.set_attribute("api_key", "{PASSWORD}")
        span.set_attribute("user.id", "{USER}")
        try:
            raise ValueError("password={PASSWORD}")
        except ValueError as error:
            span.record_exception(error)
            log.exception("failed")
found = []
for path in Path("var").rglob("*"):
    if path.is_file():
        data = path.read_bytes()
        found += [(path.name, secret) for secret in (b"{PASSWORD}", b"{BOT}", b"{USER}") if secret in data]
print(found)
"""


@pytest.mark.parametrize("console", ["human", "json"])
def test_a_planted_secret_is_found_nowhere(own_project, console):
    with otlp_sink() as sink:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(APP)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                **os.environ,
                "OTEL_EXPORTER_OTLP_ENDPOINT": sink.url,
                "OTEL_TRACES_EXPORTER": "console",
                "JARVIS_CONSOLE": console,
                "JARVIS_HMAC_KEY": "key",
            },
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("[]"), done.stdout[-300:]
    for secret in (PASSWORD, BOT, USER):
        assert secret not in str(sink.received)
        assert secret not in done.stderr
        assert secret not in done.stdout
    said = [record["body"]["stringValue"] for record in sink.received]
    assert len(said) == 7
    assert said[0].startswith("url https://bob:[redacted")
    users = {attributes_of(record).get("user.id") for record in sink.received}
    assert len(users) == 1
    assert attributes_of(sink.received[1])["jarvis.redacted"] == [
        "context.headers.Authorization",
        "context.password",
        "context.nested.deep[0].api_key",
        "context.token",
    ]
