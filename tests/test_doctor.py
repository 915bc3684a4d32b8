"""`jarvis doctor` says what is wrong and what to do; it and the collector deliver what processes left behind."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.otlp_sink import otlp_sink, until

LEAVE = """
import os
from jarvis_otel import configure, get_logger
configure("app", console=False)
for n in range(100): get_logger("app").info(str(n))
os._exit(0)
"""


def doctor(*arguments, endpoint="http://127.0.0.1:9", **environ):
    done = subprocess.run(
        [sys.executable, "-m", "jarvis_otel.cli.main", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **environ},
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def findings(done):
    return {finding["what"]: finding for finding in json.loads(done.stdout)}


@pytest.fixture
def left_behind(own_project):
    """100 records of a process that is gone."""
    subprocess.run(
        [sys.executable, "-c", LEAVE],
        check=True,
        timeout=60,
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    )
    return own_project / "var" / "spool"


def test_where_all_is_well_it_says_so_and_ends_with_0(flag_file):
    flag_file("version: '1.0'\nflags: {A: {enabled: true}}\n")
    with otlp_sink() as sink:
        done = doctor(endpoint=sink.url)
    assert done.returncode == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["✓", what] for what in ("settings", "flags", "collector", "spool", "logs")
    ]
    assert sink.received == []


def test_what_is_wrong_is_named_with_its_cure_and_ends_with_1(own_project, flag_file):
    (own_project / "config" / "jarvis.yaml").write_text("log_level: LOUD\n")
    flag_file("version: '1.0'\nflags: {A: {enabled: maybe}}\n")
    (own_project / "logs").write_text("in the way")
    done = doctor("--format", "json")
    assert done.returncode == 1
    found = findings(done)
    assert "got 'LOUD'" in found["settings"]["text"]
    assert "flags.A.enabled" in found["flags"]["text"]
    assert found["collector"] == {
        "what": "collector",
        "state": "problem",
        "text": "http://127.0.0.1:9: Connection refused",
        "cure": "start one: jarvis collector",
    }
    assert found["logs"]["state"] == "problem"


def test_records_of_a_process_that_is_gone_are_shown_and_shipped(left_behind):
    found = findings(doctor("--format", "json"))
    assert "100 records of 1 that are gone" in found["spool"]["text"]
    with otlp_sink() as sink:
        done = doctor("--ship", "--format", "json", endpoint=sink.url)
    assert findings(done)["shipped"]["text"] == "100 records"
    assert sink.bodies == [str(n) for n in range(100)]
    assert list(left_behind.iterdir()) == []


def test_without_a_collector_shipping_ends_soon_and_keeps_the_records(left_behind):
    done = doctor("--ship", "--format", "json")
    assert done.returncode == 1
    assert findings(done)["shipped"]["text"] == "0 records"
    assert "100 records of 1 that are gone" in findings(done)["spool"]["text"]


def test_a_collector_delivers_what_processes_left_behind(left_behind, own_project, tmp_path):
    port_file = tmp_path / "port"
    collector = subprocess.Popen(
        [sys.executable, "-m", "jarvis_otel.cli.main", "collector", "--port", "0", "--port-file", str(port_file)]
    )
    try:
        until(lambda: not list(left_behind.iterdir()))
    finally:
        collector.send_signal(signal.SIGTERM)
        assert collector.wait(30) == 0
    (day,) = (own_project / "logs").glob("jarvis-*.jsonl")
    assert [json.loads(line)["message"] for line in day.read_bytes().splitlines()] == [str(n) for n in range(100)]


def test_a_bad_number_of_seconds_is_one_line_and_exit_2():
    done = doctor("--ship", "--timeout", "soon")
    assert done.returncode == 2
    assert "got 'soon', want seconds" in done.stderr
