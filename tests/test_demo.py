"""What a newcomer runs first: `jarvis demo`."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jarvis_flags.parse import parse_flags
from jarvis_flags.tree import load_tree
from tests.otlp_sink import until

CHECKOUT = Path(__file__).parents[1]
DEMO = [sys.executable, "-m", "jarvis_otel.cli.main", "demo"]


def demo(directory, **options):
    return subprocess.run(
        DEMO,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,
    )


def processes_of(home):
    """The processes whose environment names this demo's directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"JARVIS_HOME={home}".encode() in environ:
            found.append(int(process.name))
    return found


@pytest.fixture
def directory(tmp_path):
    """Where a person would stand: no project of ours, and no settings that point to one."""
    directory = tmp_path / "somewhere"
    directory.mkdir()
    return directory


def test_the_demo_walks_from_an_error_to_the_flag_that_was_off_and_leaves_nothing_running(directory):
    result = demo(directory)
    assert (result.returncode, result.stderr) == (0, "")
    out = result.stdout
    assert "\x1b" not in out

    before, after = re.findall(r"Dexter, (?:still )?process (\d+), decides (?:HOLD|BUY)", out)
    assert before == after
    walk = out[out.index("1. Find the error") :]
    correlation_id = re.search(r"\bid (trade-[0-9a-f]{8})", walk)[1]
    trace = walk[walk.index(f"$ jarvis logs trace {correlation_id}") : walk.index("4. The flag that was OFF")]
    assert all(f"  {service} " in trace for service in ("api", "dexter", "trading"))
    assert ", 3 services, " in trace
    assert "ADVANCED_TRADING_ENABLED=off" in trace
    assert "InsufficientBalanceError: Wallet has 0.5 SOL, need 1 SOL" in trace
    assert f"$ jarvis logs reproduce {correlation_id}\n  export FF_ADVANCED_TRADING_ENABLED=false\n" in walk

    logs = directory / ".demo" / "logs"
    assert {path.name.partition("-")[0] for path in logs.glob("*.jsonl")} >= {"jarvis", "traces"}
    for path in logs.glob("*.jsonl"):
        for line in path.read_bytes().removesuffix(b"\n").split(b"\n"):
            assert isinstance(json.loads(line), dict)
    assert processes_of(directory / ".demo") == []
    assert [path.name for path in directory.iterdir()] == [".demo"]

    (directory / ".demo" / "logs" / "left-over").touch()
    assert demo(directory).returncode == 0
    assert not (directory / ".demo" / "logs" / "left-over").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_demo_with_all_its_processes(directory, number):
    process = subprocess.Popen(
        DEMO, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    home = directory / ".demo"
    until((home / "dexter.port").exists, 60)
    assert processes_of(home)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    assert processes_of(home) == []


def test_the_users_own_settings_flags_and_state_are_neither_used_nor_changed(directory, monkeypatch):
    config = directory / "config"
    config.mkdir()
    (config / "flags.yaml").write_text("flags: {not: [valid")
    (config / "jarvis.yaml").write_text("log_dir: mine\n")
    monkeypatch.setenv("JARVIS_HOME", str(directory))
    monkeypatch.setenv("JARVIS_ENVIRONMENT", "dev")
    monkeypatch.setenv("FF_ADVANCED_TRADING_ENABLED", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    result = demo(directory)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(path.name for path in directory.iterdir()) == [".demo", "config"]
    assert (config / "flags.yaml").read_text() == "flags: {not: [valid"


def test_a_directory_that_it_did_not_make_is_left_alone(directory):
    (directory / ".demo").mkdir()
    (directory / ".demo" / "thesis.txt").write_text("mine")
    result = demo(directory)
    line = f"jarvis demo: {directory}/.demo: not made by jarvis demo, so left alone; move it away\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", line)
    assert [path.read_text() for path in (directory / ".demo").iterdir()] == ["mine"]


def test_a_link_to_a_directory_that_it_made_elsewhere_is_left_alone(directory, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".made-by-jarvis-demo").touch()
    (elsewhere / "kept").touch()
    (directory / ".demo").symlink_to(elsewhere)
    result = demo(directory)
    assert result.returncode == 2
    assert "left alone" in result.stderr
    assert (elsewhere / "kept").exists()


def test_a_second_demo_in_the_same_directory_waits_its_turn(directory):
    home = directory / ".demo"
    home.mkdir()
    (home / "of-the-first").touch()
    with (home / ".made-by-jarvis-demo").open("w") as marker:
        fcntl.lockf(marker, fcntl.LOCK_EX)
        result = demo(directory)
    assert (result.returncode, result.stderr) == (2, f"jarvis demo: {home}: another jarvis demo is running here\n")
    assert (home / "of-the-first").exists()


def test_a_server_that_does_not_start_is_one_line_and_leaves_nothing_running(directory):
    broken = directory / "broken"
    broken.mkdir()
    (broken / "http_json.py").write_text("raise SystemExit('no servers today')")
    result = demo(directory, env={**os.environ, "PYTHONPATH": str(broken), "PYTHONSAFEPATH": "1"})
    assert result.returncode == 1
    assert result.stderr == "jarvis demo: trading ended with 1: no servers today\n"
    assert processes_of(directory / ".demo") == []


def test_without_the_collector_extra_one_line_says_what_to_install(directory):
    (directory / "sitecustomize.py").write_text("import sys; sys.modules['httptools'] = None")
    result = demo(directory, env={**os.environ, "PYTHONPATH": str(directory)})
    line = "jarvis demo: httptools is missing: pip install 'jarvis-otel[collector]'\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", line)
    assert not (directory / ".demo").exists()


def test_the_flags_of_the_project_and_of_the_example_are_those_that_users_have():
    files = (CHECKOUT / "config", CHECKOUT / "examples" / "jarvis_bot" / "config")
    ours, example = (parse_flags(load_tree((place / "flags.yaml").read_bytes()), "flags.yaml") for place in files)
    users = parse_flags(load_tree((CHECKOUT / "tests" / "data" / "feature_flags.json").read_bytes()), "flags.json")
    assert ours.problems == example.problems == users.problems

    def decisive(flags):
        return {
            flag_id: (flag.enabled, flag.rules, flag.environment_defaults, flag.dangerous)
            for flag_id, flag in flags.flags.items()
        }

    assert decisive(ours) == decisive(example) == decisive(users)
