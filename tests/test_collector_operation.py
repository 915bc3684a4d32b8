"""The collector as operators meet it: health, metrics, its own log, reloading, its unit and image."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.collectors import COMMAND, PYTHON, commanded, logs, starting
from tests.ports import free_port

start = pytest.fixture(starting)
ROOT = Path(__file__).parent.parent


@pytest.fixture
def settings(own_project):
    """Writes the settings file."""
    return (own_project / "config" / "jarvis.yaml").write_text


def test_the_metrics_are_prometheus_text_and_say_what_happened(start, tmp_path, settings):
    settings(f"loki_url: http://127.0.0.1:{free_port()}")
    collector = start(tmp_path / "logs", "--grpc-port", "0", by=commanded)
    collector.request(body=logs("a", "b"))
    collector.request(body=b"{")
    with grpc.insecure_channel(f"localhost:{collector.grpc_port}") as channel:
        channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")(b"", timeout=30)
    text = collector.request("GET", "/metrics").content.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(family.documentation and family.type in ("counter", "gauge") for family in families.values())
    assert all(name.startswith("jarvis_collector_") for name in families)
    samples = {
        (sample.name.removeprefix("jarvis_collector_"), *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["records_accepted_total", "logs"] == samples["records_written_total", "logs"] == 2
    assert samples["received_bytes_total", "logs"] == len(logs("a", "b")) + 1
    assert (samples["requests_total", "200"], samples["requests_total", "400"]) == (1, 1)
    assert samples["sync_seconds_total",] > 0
    assert samples["start_time_seconds",] + samples["uptime_seconds",] == pytest.approx(time.time(), abs=60)
    assert {key[0] for key in samples} >= {
        *("forward_lag_bytes", "forward_lag_seconds", "forward_refused_records_total", "archived_files_total"),
        *("purged_files_total", "directory_bytes", "build_info", "grpc_requests_total", "degraded"),
    }


def test_degraded_and_healed_are_told_once_each_in_its_own_log(start, tmp_path):
    collector = start()
    collector.request(body=logs("before"))
    collector.log_dir.rename(tmp_path / "away")
    for _ in range(3):
        assert collector.request(body=logs("lost?")).status == 503
    assert "No such file" in collector.wait_for("degraded: ")["message"]
    assert collector.metrics()["jarvis_collector_degraded"] == 1
    (tmp_path / "away").rename(collector.log_dir)
    assert collector.request(body=logs("after")).status == 200
    collector.wait_for("healed: ")
    assert collector.stop() == 0
    said = [(line["level"], line["message"].split()[0]) for line in collector.said()]
    assert said == [("INFO", "listening"), ("ERROR", "degraded:"), ("INFO", "healed:"), ("INFO", "stopped:")]
    assert collector.said()[-1]["context"]["failed"] == {"logs": 3}
    assert {line["service"] for line in collector.said()} == {"jarvis-collector"}


@pytest.mark.parametrize(("console", "pattern"), [("human", r"jarvis collector: listening on http://.*"), ("off", r"")])
def test_the_console_setting_says_how_it_talks(tmp_path, console, pattern):
    port_file = tmp_path / "port"
    options = ["collector", "--dir", tmp_path / "logs", "--port", "0", "--grpc-port", "off", "--port-file", port_file]
    environ = {**os.environ, "JARVIS_CONSOLE": console}
    with subprocess.Popen([*PYTHON, COMMAND, *options], stderr=subprocess.PIPE, text=True, env=environ) as process:
        while not port_file.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 0
    assert re.match(pattern, said)
    assert bool(said) == bool(pattern)


def test_on_a_terminal_it_talks_to_people(tmp_path):
    ours, theirs = pty.openpty()
    options = ["collector", "--dir", tmp_path / "logs", "--port", "0", "--grpc-port", "off"]
    with subprocess.Popen([*PYTHON, COMMAND, *options], stderr=theirs) as process:
        os.close(theirs)
        said = os.read(ours, 4096)
        process.send_signal(signal.SIGTERM)
    os.close(ours)
    assert said.startswith(b"jarvis collector: listening on http://127.0.0.1:")


def test_a_hang_up_has_new_settings_hold_and_tells_what_waits_for_the_next_start(start, tmp_path, settings):
    collector = start(tmp_path / "logs", "--grpc-port", "off", by=commanded)
    digest = "a" * 64
    settings(f"retention_plain_days: 3\ncollector_tokens: [sha256:{digest}]\ncollector_host: 127.0.0.2\n")
    collector.process.send_signal(signal.SIGHUP)
    said = collector.wait_for("settings reloaded")
    assert said["context"] == {"changed": ["tokens", "retention"], "at_next_start": ["host"]}
    assert said["message"] == "settings reloaded: tokens, retention changed; host will at the next start"
    assert collector.request(body=logs("x")).status == 401
    settings("")
    collector.process.send_signal(signal.SIGHUP)
    collector.wait_for('tokens, retention changed"')
    assert collector.request(body=logs("x")).status == 200


def test_a_bad_settings_file_changes_nothing_and_is_told(start, tmp_path, settings):
    collector = start(tmp_path / "logs", "--grpc-port", "off", by=commanded)
    settings("retention_plain_days: soon\ncollector_tokens: [plain]")
    collector.process.send_signal(signal.SIGHUP)
    message = collector.wait_for("settings not reloaded")["message"]
    assert "the old ones hold" in message
    assert "retention_plain_days: got 'soon'" in message
    assert collector.request(body=logs("x")).status == 200
    assert collector.stop() == 0


def test_a_loki_is_taken_up_and_given_up_by_a_hang_up(start, tmp_path, settings):
    collector = start(tmp_path / "logs", "--grpc-port", "off", by=commanded)
    settings(f"loki_url: http://127.0.0.1:{free_port()}")
    collector.process.send_signal(signal.SIGHUP)
    collector.wait_for("loki changed")
    assert "jarvis_collector_forward_lag_bytes" in collector.metrics()
    settings("")
    collector.process.send_signal(signal.SIGHUP)
    collector.wait_for("forwarding ends")
    while "jarvis_collector_forward_lag_bytes" in collector.metrics():
        time.sleep(0.05)
    assert collector.stop() == 0


def test_a_day_that_is_due_is_archived(start, tmp_path):
    old = tmp_path / "logs" / "jarvis-2026-01-02.jsonl"
    old.parent.mkdir(mode=0o750)
    old.write_bytes(b'{"timestamp":"2026-01-02T00:00:00.000000Z","level":"INFO","message":"old","service":"s"}\n')
    days = {"JARVIS_RETENTION_KEEP_DAYS": "30000"}
    collector = start(tmp_path / "logs", "--grpc-port", "off", by=commanded, **days)
    collector.wait_for("1 files archived")
    assert (tmp_path / "logs" / "archive" / "2026-01" / "jarvis-2026-01-02.jsonl.gz").exists()
    assert collector.metrics()["jarvis_collector_archived_files_total"] == 1


def test_forward_only_needs_somewhere_to_forward_to(tmp_path):
    done = subprocess.run(
        [*PYTHON, COMMAND, "collector", "--forward-only"], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "loki_url" in done.stderr


def test_forward_only_runs_beside_a_collector_of_the_same_directory_until_it_is_told_to_stop(start, tmp_path):
    collector = start(tmp_path / "logs", "--grpc-port", "off", by=commanded)
    environ = {**os.environ, "JARVIS_LOKI_URL": f"http://127.0.0.1:{free_port()}"}
    command = [*PYTHON, COMMAND, "collector", "--forward-only", "--dir", tmp_path / "logs"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environ) as process:
        assert json.loads(process.stderr.readline())["message"].startswith("forwarding ")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert collector.request(body=logs("x")).status == 200


# --- settings


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("retention_max_total_bytes: lots", "retention_max_total_bytes: got 'lots', want bytes from 1MiB to"),
        ("retention_min_free: 2", "retention_min_free: got 2, want a number from 0 to 0.9"),
        ("retention_plain_days: 1.5", "retention_plain_days: got 1.5, want a whole number"),
        ("retention_plain_days: 9\nretention_keep_days: 8", "retention_keep_days: got 8, want at least the 9"),
        ("loki_url: loki:3100", "loki_url: got 'loki:3100', want Loki's base URL"),
        ("loki_url: http://u:secret@loki", "loki_url: got a URL with a user or password"),
        ("loki_headers: {X: 'a\n\nb'}", "loki_headers: 'X' is no name and value"),
        ("loki_timeout: 0", "loki_timeout: got 0"),
        ("collector_grpc_port: of", "collector_grpc_port: got 'of'"),
        ("collector_tokenz: []", "collector_tokenz: unknown setting"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_what_is_wanted(settings, text, problem):
    from jarvis_otel.settings import Settings

    settings(text)
    (said,) = Settings.load().problems
    assert problem in said
    assert "secret" not in said


def test_the_settings_of_the_files_and_of_loki(settings, own_project):
    from jarvis_otel.settings import Settings

    settings(
        "retention_max_total_bytes: 20GB\nretention_min_free: 0.2\nloki_url: http://loki:3100/\nloki_headers: {X-Scope-OrgID: j}"
    )
    loaded = Settings.load()
    assert (loaded.problems, loaded.retention.max_total_bytes, loaded.retention.min_free) == ((), 20 * 10**9, 0.2)
    assert (loaded.loki.url, dict(loaded.loki.headers)) == ("http://loki:3100", {"X-Scope-OrgID": "j"})
    assert loaded.loki.checkpoint == own_project / "var" / "collector" / "loki.json"
    env = {**os.environ, "JARVIS_LOKI_HEADERS": "Authorization=Basic abc=, X-Scope-OrgID=k"}
    assert dict(Settings.load(env).loki.headers) == {"Authorization": "Basic abc=", "X-Scope-OrgID": "k"}


# --- the unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_one_that_systemd_takes(tmp_path):
    text = (ROOT / "collector" / "jarvis-collector.service").read_text()
    unit = tmp_path / "jarvis-collector.service"
    # the program is wherever it was installed
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", text, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=30, check=False)
    about_ours = [line for line in done.stderr.splitlines() if "jarvis-collector" in line]
    assert (about_ours, done.returncode) == ([], 0)
