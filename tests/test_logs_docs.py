"""docs/logs.md: every example works as it is written, with the tools that it names."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from jarvis_collector.record import LINE_KEYS
from jarvis_otel.cli.main import CommandParser
from jarvis_otel.query.log_query import LogQuery

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "logs.md").read_text()
EXAMPLES = [line[2:] for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


def record(number, level="INFO", **more):
    moment = datetime.now(UTC) - timedelta(minutes=20, seconds=-number)
    start = {"timestamp": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "level": level, "message": f"Order {number}"}
    rest = {
        "service": "trading",
        "correlation_id": "trade-xyz789",
        "trace_id": "a" * 32,
        "active_flags": ["NEW_UI"],
        "flags": {"NEW_UI": "on"},
    }
    return (
        start
        | rest
        | {"duration_ms": 600.0 + number, "context": {"symbol": "SOL"}, "logger": "t", "_meta": {"uid": f"u{number}"}}
        | more
    )


@pytest.fixture
def project(own_project, monkeypatch):
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    (own_project / "logs").mkdir()
    (own_project / "config" / "lnav").mkdir()
    shutil.copy(ROOT / "config" / "lnav" / "jarvis_log.json", own_project / "config" / "lnav")
    (own_project / "config" / "flags.yaml").write_text('version: "1.0"\nflags: {NEW_UI: {enabled: false}}\n')
    error = {"type": "BalanceError", "message": "Wallet has 0.5", "stack_trace": "Traceback\n  x\n"}
    records = [record(1), record(2, "WARNING"), record(3, "ERROR", error=error), record(4, service="api")]
    span = {"timestamp": records[0]["timestamp"], "name": "POST", "kind": "server", "service": "api", "trace_id": "a" * 32,
            "span_id": "b" * 16, "status": {"code": "ok"}, "duration_ms": 5.0}  # fmt: skip
    (own_project / "logs" / f"jarvis-{today}.jsonl").write_bytes(
        b"".join(orjson.dumps(item) + b"\n" for item in records)
    )
    (own_project / "logs" / f"traces-{today}.jsonl").write_bytes(orjson.dumps(span) + b"\n")
    programs = own_project / "bin"
    programs.mkdir()
    for name, body in {
        "jarvis": f'exec {shlex.quote(sys.executable)} -m jarvis_otel.cli.main "$@"',
        "duckdb": f'exec {shlex.quote(sys.executable)} -c "import duckdb, sys; print(duckdb.sql(sys.argv[1]))" "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(own_project))
    return own_project


def test_there_are_examples_of_everything():
    commands = {part for example in EXAMPLES for part in re.findall(r"jarvis logs (\w+)", example)}
    assert {"query", "tail", "trace", "errors", "stats", "reproduce", "export", "sql", "index"} <= commands
    assert {example.split()[0] for example in EXAMPLES} == {"jarvis", "jq", "duckdb", "lnav"}


def needed(example):
    tool = next((name for name in ("jq", "lnav") if re.search(rf"(^|\| ){name} ", example)), None)
    if tool and shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    if "sql " in example or "duckdb" in example or "parquet" in example:
        pytest.importorskip("duckdb")


@pytest.mark.parametrize("example", [example for example in EXAMPLES if " -f " not in example])
def test_an_example_finds_something_as_it_is_written(project, example):
    needed(example)
    if example.startswith("lnav -n"):
        subprocess.run(["lnav", "-i", "config/lnav/jarvis_log.json"], check=True, capture_output=True)
    done = subprocess.run(
        ["bash", "-c", f"set -eo pipefail; {example}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or " -o " in example or "lnav -i" in example
    told = re.sub(r"jarvis logs \w+: (from |\d+ records? to |\d+ files, |NEW_UI: dangerous).*\n", "", done.stderr)
    assert "lnav" in example or told == ""


@pytest.mark.parametrize("example", [example for example in EXAMPLES if " -f " in example])
def test_an_example_that_follows_shows_something_and_ends_on_ctrl_c(project, example):
    process = subprocess.Popen(
        [sys.executable, "-m", "jarvis_otel.cli.main", *shlex.split(example, comments=True)[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert b"Order" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_the_python_example_runs(project):
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True)


def test_every_key_of_a_line_is_described():
    section = TEXT[TEXT.index("A line is a JSON object") : TEXT.index("### jq")]
    described = set(re.findall(r"`(\w+)`", section))
    assert set(LINE_KEYS) <= described


def test_every_option_that_chooses_records_is_described():
    import argparse

    from jarvis_otel.cli import logs

    parser = CommandParser()
    logs.add_parser(parser.add_subparsers())
    parts = {}
    pending = [parser]
    while pending:
        for action in pending.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                parts.update(action.choices)
                pending += action.choices.values()
    asked = {
        option for action in parts["stats"]._actions for option in action.option_strings if option.startswith("--")
    }
    asked &= {option for action in parts["tail"]._actions for option in action.option_strings}
    for option in asked - {"--help", "--dir", "--file", "--format"}:
        assert f"`{option}" in TEXT, option


@pytest.fixture
def lnav(project):
    if shutil.which("lnav") is None:
        missing = "lnav is not installed: apt-get install lnav"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)

    def run(*args):
        subprocess.run(["lnav", "-i", "config/lnav/jarvis_log.json"], check=True, capture_output=True)
        return subprocess.run(["lnav", "-n", *args], capture_output=True, text=True, timeout=60, check=True).stdout

    return run


@pytest.mark.real
def test_lnav_takes_the_format_file_and_finds_nothing_wrong_with_it(lnav, project):
    lnav(*sorted(map(str, (project / "logs").glob("jarvis-*"))))
    done = subprocess.run(["lnav", "-C"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.real
def test_lnav_reads_every_field_of_a_line(lnav, project):
    asked = ";SELECT log_level, service, log_opid, duration_ms, jget(flags, '/NEW_UI') AS flag, \"error/type\" AS type, jget(context, '/symbol') AS symbol, jget(_meta, '/uid') AS uid FROM jarvis_log"
    out = lnav("-c", asked, "-c", ":write-json-to -", *map(str, (project / "logs").glob("jarvis-*")))
    found = sorted(json.loads(out), key=lambda row: row["uid"])
    assert len(found) == len(list(LogQuery(project / "logs").iterate())) == 4
    assert found[2] == {
        "log_level": "error",
        "service": "trading",
        "log_opid": "trade-xyz789",
        "duration_ms": 603.0,
        "flag": "on",
        "type": "BalanceError",
        "symbol": "SOL",
        "uid": "u3",
    }
