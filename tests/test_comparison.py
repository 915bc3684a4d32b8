"""What docs/comparison.md says of peers that can be had here, tried on them and on ours; a mark ✓ there means: here."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ParseError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from jarvis_flags import YamlFlagProvider
from tests.http_peers import HttpPeer, PeerHandler
from tests.otlp_sink import records_of, until

PAGE = Path(__file__).parent.parent / "docs" / "comparison.md"
RECORDS = 100

ENDS = {
    "exit": "",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
}
STOCK = """
import logging, os, signal
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
provider = LoggerProvider()
provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
logging.basicConfig(level=logging.INFO, handlers=[LoggingHandler(logger_provider=provider)])
log = logging.getLogger("app")
"""
OURS = """
import os, signal
from jarvis_otel import configure, get_logger
configure("app", console=False)
log = get_logger("app")
"""


class Receiver(HttpPeer):
    """Counts log records that arrive over OTLP/HTTP, in either encoding."""

    def __init__(self):
        self.texts = []
        receiver = self

        class Handler(PeerHandler):
            def do_POST(self):  # noqa: N802 - as http.server calls it
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.headers["content-type"] == "application/json":
                    receiver.texts += [record["body"]["stringValue"] for record in records_of(json.loads(body))]
                elif self.path == "/v1/logs":
                    scopes = [s for r in ExportLogsServiceRequest.FromString(body).resource_logs for s in r.scope_logs]
                    receiver.texts += [record.body.string_value for scope in scopes for record in scope.log_records]
                self.reply(200, {}, b"")

        super().__init__(Handler)


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def run(receiver, own_project):
    """Runs an application that logs a hundred records, and what else it is told."""

    def run(prelude, then):
        program = f'{prelude}\nfor i in range({RECORDS}):\n    log.info(f"record {{i}}")\n{then}\n'
        environ = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_TRACES_EXPORTER": "none"}
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False).returncode

    return run


@pytest.mark.parametrize(("how", "kept"), [("exit", RECORDS), ("SIGTERM", 0), ("SIGKILL", 0)])
def test_the_stock_sdk_keeps_its_batch_at_a_normal_end_and_not_at_a_signal(run, receiver, how, kept):
    code = run(STOCK, ENDS[how])
    assert code == (-getattr(signal, how) if how in signal.Signals.__members__ else 0)
    assert len(receiver.texts) == kept


@pytest.mark.parametrize("how", ENDS)
def test_ours_are_all_delivered_however_the_process_ends(run, receiver, how):
    code = run(OURS, ENDS[how])
    assert code == (-getattr(signal, how) if how in signal.Signals.__members__ else 0)
    if how == "SIGKILL":
        # any process of the project that lives on does the same within a second or two
        command = [sys.executable, "-m", "jarvis_otel.cli.main", "doctor", "--ship"]
        environ = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False)
    assert receiver.texts == [f"record {i}" for i in range(RECORDS)]


def test_one_text_that_is_no_unicode_costs_the_stock_sdk_its_batch(run, receiver):
    run(STOCK, r'log.info("bad \udc80")')
    assert receiver.texts == []


def test_one_text_that_is_no_unicode_costs_ours_nothing(run, receiver):
    run(OURS, r'log.info("bad \udc80")')
    assert len(receiver.texts) == RECORDS + 1
    assert receiver.texts[-1] == r"bad \udc80"


def flagd_file(default, beside):
    on = {"state": "ENABLED", "variants": {"on": True, "off": False}}
    return json.dumps(
        {"flags": {"GOOD": {**on, "defaultVariant": default}, "BESIDE": beside or {**on, "defaultVariant": "on"}}}
    )


def test_one_bad_flag_blocks_flagds_evaluator_for_all():
    core = FlagdCore()
    core.set_flags(flagd_file("off", None))
    with pytest.raises(ParseError):
        core.set_flags(flagd_file("on", {"variants": {"on": True}}))
    assert core.resolve_boolean_value("GOOD", False, EvaluationContext("ann")).value is False


def test_one_bad_flag_blocks_none_of_ours(flag_file):
    path = flag_file(
        "flags: {GOOD: {enabled: false}, BESIDE: {enabled: true}, RISKY: {enabled: true, dangerous: true}}"
    )
    provider = YamlFlagProvider(path)
    try:
        path.write_text("flags: {GOOD: {enabled: true}, BESIDE: {enabled: 3}, RISKY: {enabled: 3, dangerous: true}}")

        def value(flag):
            return provider.resolve_boolean_details(flag, False, EvaluationContext("ann")).value

        until(lambda: value("GOOD"))
        assert value("BESIDE") is True, "its last good definition"
        assert value("RISKY") is False, "a broken dangerous flag is off"
    finally:
        provider.shutdown()


def test_the_page_names_the_versions_that_are_tried():
    pinned = dict(
        re.findall(r"^([a-z0-9-]+)==(\d+\.\d+)", (PAGE.parent.parent / "constraints.txt").read_text(), re.MULTILINE)
    )
    text = PAGE.read_text()
    assert f"structlog {pinned['structlog']}" in text
    assert f"OpenTelemetry SDK for Python {pinned['opentelemetry-sdk']}" in text
