"""The real Collector and Loki with the configurations that we ship: what goes in comes out, under restarts and kills."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from jarvis_otel import LogQuery
from tests.dashboards import DOCUMENTED
from tests.otlp_sink import attributes_of, until
from tests.real_stack import (
    TO_FILES,
    TO_LOKI,
    Embedded,
    FileCollector,
    Loki,
    LokiCollector,
    otlp_records,
    post,
    real_binary,
    running,
)

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[1]
JARVIS = [sys.executable, "-m", "jarvis_otel.cli.main"]

FLAGS = """
version: "1.0"
flags:
  NEW_CHECKOUT:
    name: New checkout
    rules: [{type: percentage, value: 50}]
"""
SHOP = """
    import sys, time
    from jarvis_otel import configure, flags, get_logger

    configure("shop")
    logger, orders = get_logger("shop"), get_logger("orders")
    first, count, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    for order in range(first, first + count):
        with logger.context(correlation_id=f"order-{order}", user_id=f"user{order % 8}"):
            new = flags.is_enabled("NEW_CHECKOUT")
            logger.info("Order placed", order=order)
            orders.api_call("POST", "/orders", 200, 12.5)
            if order % 10 == 3:
                try:
                    raise ValueError(f"order {order} refused")
                except ValueError:
                    logger.exception("Payment refused", amount=99.5)
        time.sleep(pause)
"""


@pytest.fixture
def shop(own_project):
    """Starts the application, which logs orders to an endpoint."""
    (own_project / "config" / "flags.yaml").write_text(FLAGS)
    script = own_project / "shop.py"
    script.write_text(textwrap.dedent(SHOP))
    started = []

    def start(url, count, *, first=0, pause=0.0):
        environ = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": url, "JARVIS_CONSOLE": "off"}
        command = [sys.executable, script, str(first), str(count), str(pause)]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def jarvis(logs, *arguments):
    """What `jarvis logs` says of a directory."""
    command = [*JARVIS, "logs", *arguments, "--dir", str(logs)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def found(logs, *arguments):
    done = jarvis(logs, "query", *arguments, "--limit", "10000", "--format", "jsonl")
    assert done.returncode in (0, 1), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def orders(records):
    return sorted(record["context"]["order"] for record in records if record["message"] == "Order placed")


def has_orders(logs, count):
    return logs.exists() and len(orders(found(logs))) >= count


def request(*names):
    """An OTLP request with a record for each name, which is its uid too."""
    records = [
        {
            "timeUnixNano": str(time.time_ns()),
            "severityNumber": 9,
            "severityText": "INFO",
            "body": {"stringValue": name},
            "attributes": [{"key": "log.record.uid", "value": {"stringValue": name}}],
        }
        for name in names
    ]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "load"}}]}
    scopes = [{"scope": {"name": "load"}, "logRecords": records}]
    return {"resourceLogs": [{"resource": resource, "scopeLogs": scopes}]}


class Load:
    """Posts records from a thread, and knows which were acknowledged.

    Args:
        url: Where they go.
        at_once: Records of one request.
        pause: Seconds between two requests.
    """

    def __init__(self, url, at_once=20, pause=0.0):
        self.acknowledged = []
        self._url = url
        self._at_once = at_once
        self._pause = pause
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        numbers = itertools.count()
        while not self._stopping.is_set():
            names = [f"r{next(numbers)}" for _ in range(self._at_once)]
            if 200 <= post(self._url, request(*names)) < 300:
                self.acknowledged += names
                self._stopping.wait(self._pause)
            else:
                self._stopping.wait(0.02)

    def more(self, count=400):
        """Waits until so many further records are acknowledged."""
        wanted = len(self.acknowledged) + count
        until(lambda: len(self.acknowledged) >= wanted, 60)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._thread.join()


def names_in(logs):
    return [attributes_of(record)["log.record.uid"] for record in otlp_records(logs)]


# --- configurations ---


@pytest.mark.parametrize("config", [TO_FILES, TO_LOKI], ids=lambda path: path.name)
def test_the_collector_accepts_our_configuration(config):
    done = subprocess.run(
        [real_binary("otelcol"), "validate", "--config", config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_loki_accepts_our_configuration():
    command = [real_binary("loki"), "-verify-config", f"-config.file={ROOT / 'config' / 'loki.yaml'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "config is valid" in done.stderr or not done.stderr


@pytest.mark.parametrize(
    "name", [name for name, block in DOCUMENTED.items() if block["exporters"].keys() <= {"otlp_http"}]
)
def test_the_collector_accepts_what_the_docs_add_to_our_configuration(tmp_path, name):
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(DOCUMENTED[name]))
    command = [real_binary("otelcol"), "validate", "--config", TO_LOKI, "--config", tmp_path / "more.yaml"]
    environ = {**os.environ, "GRAFANA_CLOUD_AUTH": "Basic x", "COLLECTOR_TOKEN": "x"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- from the application to the files ---


def test_what_the_application_logs_is_asked_of_the_real_collectors_files_as_of_ours(shop, tmp_path):
    files = FileCollector(tmp_path / "real")
    with running(files):
        assert shop(files.url, 40).wait(60) == 0
        until(lambda: len(otlp_records(files.logs)) >= 124, 30)
    days = {path.name for path in files.logs.iterdir()}
    assert {re.sub(r"\d{4}-\d\d-\d\d", "DAY", name) for name in days} == {"jarvis-DAY.jsonl", "traces-DAY.jsonl"}

    assert orders(found(files.logs)) == list(range(40))
    errors = found(files.logs, "--level", "ERROR")
    assert [record["correlation_id"] for record in errors] == ["order-3", "order-13", "order-23", "order-33"]
    assert {(record["error"]["type"], record["service"]) for record in errors} == {("ValueError", "shop")}
    assert {record["message"] for record in found(files.logs, "--service", "orders")} == {"POST /orders → 200"}
    assert {record["duration_ms"] for record in found(files.logs, "--where", "duration_ms>10")} == {12.5}

    on, off = (orders(found(files.logs, "--flag", flag)) for flag in ("NEW_CHECKOUT", "NEW_CHECKOUT=off"))
    assert sorted(on + off) == list(range(40))
    assert on
    assert off

    trace = jarvis(files.logs, "trace", "order-13")
    assert trace.returncode == 0, trace.stderr
    assert "Payment refused" in trace.stdout
    assert re.search(r"NEW_CHECKOUT=(on|off)", trace.stdout)
    assert "export FF_NEW_CHECKOUT=" in jarvis(files.logs, "reproduce", "order-13").stdout
    assert "ValueError" in jarvis(files.logs, "errors", "--since", "1 hour ago").stdout


def test_metrics_have_a_file_of_their_own(tmp_path):
    files = FileCollector(tmp_path / "real")
    point = {"timeUnixNano": str(time.time_ns()), "asInt": "7"}
    metrics = [{"name": "orders", "gauge": {"dataPoints": [point]}}]
    sent = {"resourceMetrics": [{"resource": {}, "scopeMetrics": [{"scope": {}, "metrics": metrics}]}]}
    with running(files):
        assert post(files.url, sent, "metrics") == 200
        files.stop(signal.SIGTERM)
    (path,) = files.logs.glob("metrics-*.jsonl")
    assert json.loads(path.read_text())["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["name"] == "orders"


def test_an_empty_request_which_is_compose_s_health_check_is_accepted_and_writes_nothing(tmp_path):
    files = FileCollector(tmp_path / "real")
    with running(files):
        assert post(files.url, {}) == 200
        assert post(files.url, request("a")) == 200
        until(lambda: names_in(files.logs) == ["a"])
    (path,) = files.logs.iterdir()
    assert path.read_bytes().count(b"\n") == 1


def test_files_are_for_their_owner_and_group(tmp_path):
    files = FileCollector(tmp_path / "real")
    with running(files):
        assert post(files.url, request("a")) == 200
        until(lambda: names_in(files.logs) == ["a"])
    assert oct(files.logs.stat().st_mode & 0o777) == "0o750"


# --- restarts and kills of the file writer ---


def test_an_application_that_outlives_restarts_of_the_collector_loses_nothing_and_shows_nothing_twice(shop, tmp_path):
    files = FileCollector(tmp_path / "real")
    with running(files):
        process = shop(files.url, 300, pause=0.01)
        for placed in (60, 120):
            until(partial(has_orders, files.logs, placed), 60)
            files.stop(signal.SIGTERM)
            files.start()
        assert process.wait(60) == 0
        until(lambda: len(orders(found(files.logs))) == 300, 60)
    assert orders(found(files.logs)) == list(range(300))


def test_a_collector_that_is_stopped_under_load_has_what_it_acknowledged(tmp_path):
    files = FileCollector(tmp_path / "real")
    with running(files):
        with Load(files.url) as load:
            for _ in range(3):
                load.more()
                files.stop(signal.SIGTERM)
                files.start()
            load.more()
        files.stop(signal.SIGTERM)
    assert set(load.acknowledged) <= set(names_in(files.logs))


def test_a_collector_that_is_killed_keeps_what_was_in_its_file_and_takes_up_again(tmp_path, record_property):
    files = FileCollector(tmp_path / "real")
    kept = b""
    with running(files):
        with Load(files.url) as load:
            for _ in range(5):
                load.more()
                files.kill()
                (path,) = files.logs.glob("jarvis-*.jsonl")
                killed = path.read_bytes()
                # a start that truncates would lose the day
                assert killed.startswith(kept)
                kept = killed[: killed.rindex(b"\n") + 1]
                files.start()
            load.more()
        files.stop(signal.SIGTERM)
    assert path.read_bytes().startswith(kept)
    names = names_in(files.logs)
    lost = [name for name in load.acknowledged if name not in set(names)]
    # this writer promises no more: up to 100 ms or 4 KiB before a kill, and the line glued to the torn one
    record_property("lost", len(lost))
    record_property("acknowledged", len(load.acknowledged))
    print(f"the real Collector lost {len(lost)} of {len(load.acknowledged)} acknowledged records in 5 kills")
    assert set(load.acknowledged[-200:]) <= set(names)


# --- from the files to Loki ---


def test_forwarding_under_kills_and_an_outage_of_loki_loses_nothing_and_has_nothing_twice(tmp_path):
    loki, files = Loki(tmp_path / "loki"), FileCollector(tmp_path / "real")
    forward = LokiCollector(tmp_path / "forward", files.logs, loki.url)
    with running(loki, files, forward):
        load = load_under_faults(files.url, forward, loki)
        until(lambda: set(load.acknowledged) <= set(names_in(files.logs)))
        assert_all_once(loki, set(names_in(files.logs)))


def test_the_embedded_collector_killed_and_without_loki_for_a_while_loses_nothing_and_has_nothing_twice(tmp_path):
    loki = Loki(tmp_path / "loki")
    ours = Embedded(tmp_path / "embedded", loki.url)
    with running(loki, ours):
        # it is the writer too: what it was given when it was killed comes back, if it was not acknowledged
        load = load_under_faults(ours.url, ours, loki)
        written = {record["_meta"]["uid"] for record in LogQuery(ours.logs).iterate()}
        assert set(load.acknowledged) <= written
        assert_all_once(loki, written)


def load_under_faults(url, forwarder, loki):
    """Sends while what forwards is killed twice, and Loki is away in between; few enough for one answer of Loki's."""
    with Load(url, at_once=2, pause=0.02) as load:
        load.more(100)
        forwarder.kill()
        forwarder.start()
        load.more(100)
        loki.kill()
        load.more(100)
        forwarder.kill()
        forwarder.start()
        load.more(100)
        loki.start()
        load.more(100)
    return load


def assert_all_once(loki, uids):
    found = []

    def complete():
        found[:] = [record["log_record_uid"] for _, record in loki.records('{service_name="load"}')]
        return set(found) >= uids

    until(complete, 120)
    assert sorted(found) == sorted(uids)
