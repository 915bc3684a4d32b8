"""Applications that know nothing of us, run unchanged."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pytest

import jarvis_otel
from tests.otlp_sink import attributes_of, otlp_sink, until
from tests.ports import free_port

BIN = Path(sys.executable).parent
JARVIS = """
import argparse, sys
from jarvis_otel.cli import collector, run
parser = argparse.ArgumentParser("jarvis")
commands = parser.add_subparsers()
run.add_parser(commands)
collector.add_parser(commands)
args = parser.parse_args()
sys.exit(args.func(args))
"""


def jarvis(*arguments):
    return [sys.executable, "-c", JARVIS, *map(str, arguments)]


@pytest.fixture
def sink():
    with otlp_sink() as sink:
        yield sink


@pytest.fixture
def environ(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "flags.yaml").write_text('version: "1.0"\nflags: {}\n')
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("JARVIS_", "OTEL_", "FF_"))}
    return {**kept, "JARVIS_HOME": str(tmp_path), "PYTHONPATH": ""}


def run_app(tmp_path, environ, sink, source, *arguments):
    app = tmp_path / "app.py"
    app.write_text(textwrap.dedent(source))
    return subprocess.run(
        jarvis("run", *arguments, "--", sys.executable, app),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={**environ, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.url},
    )


def get(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.status


def answers(url):
    try:
        return get(url) == 200
    except OSError:
        return False


APP = """
    import logging, sys
    logging.getLogger("lib").warning("before any configuration")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
    log = logging.getLogger("app")
    log.info("started %s", "well", extra={"port": 5})
    log.debug("unseen")
    log.warning("careful")
"""


def test_a_script_keeps_its_console_and_its_records_arrive(tmp_path, environ, sink):
    plain = tmp_path / "plain.py"
    plain.write_text(textwrap.dedent(APP))
    before = subprocess.run(
        [sys.executable, plain], capture_output=True, text=True, timeout=60, check=False, env=environ
    )
    result = run_app(tmp_path, environ, sink, APP)
    assert (result.returncode, result.stdout, result.stderr) == (0, before.stdout, before.stderr)
    assert result.stderr == "before any configuration\n"
    assert sink.bodies == ["before any configuration", "started well", "careful"]
    assert attributes_of(sink.received[1])["port"] == 5
    resource = attributes_of(sink.received[0]["resource"])
    assert resource["service.name"] == "app"


def test_info_is_shipped_though_the_script_never_asked_for_it_and_is_not_printed(tmp_path, environ, sink):
    result = run_app(
        tmp_path, environ, sink, "import logging; logging.getLogger('a').info('quiet')", "--service", "named"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert sink.bodies == ["quiet"]
    assert attributes_of(sink.received[0]["resource"])["service.name"] == "named"


def test_dictconfig_with_a_root_section_does_not_cut_us_off(tmp_path, environ, sink):
    source = """
        import logging.config
        logging.getLogger("a").warning("before")
        logging.config.dictConfig({
            "version": 1,
            "handlers": {"out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}},
            "root": {"handlers": ["out"], "level": "INFO"},
        })
        logging.getLogger("b").info("after")
    """
    result = run_app(tmp_path, environ, sink, source)
    assert (result.stdout, result.stderr) == ("after\n", "before\n")
    assert sink.bodies == ["before", "after"]


def test_the_import_alone_configures_too(tmp_path, environ, sink):
    source = "import jarvis_otel.auto, logging; logging.getLogger('a').warning('x')"
    result = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**environ, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.url},
    )
    assert (result.returncode, result.stderr) == (0, "x\n")
    assert sink.bodies == ["x"]


def test_a_sitecustomize_of_the_users_own_still_runs(tmp_path, environ, sink):
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("print('mine')")
    environ["PYTHONPATH"] = str(own)
    environ.pop("PYTHONUNBUFFERED", None)
    result = run_app(tmp_path, environ, sink, "import sitecustomize, sys; print(sitecustomize.__file__)")
    # once in the interpreter of `jarvis run`, once in the application's
    assert result.stdout == f"mine\nmine\n{own / 'sitecustomize.py'}\n"


def test_an_interpreter_without_us_is_left_alone(tmp_path, environ):
    site = Path(jarvis_otel.__file__).parent / "auto" / "site"
    result = subprocess.run(
        [sys.executable, "-S", "-c", "import sitecustomize; print('fine')"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={**environ, "PYTHONPATH": str(site)},
    )
    assert (result.stdout, result.stderr) == ("fine\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "jarvis run: no command; usage: jarvis run [--service NAME] [--] COMMAND [ARG ...]"),
        (["--", "no-such-command"], "jarvis run: no-such-command: No such file or directory"),
        (["no-such-command", "--x"], "jarvis run: no-such-command: No such file or directory"),
        (["/"], "jarvis run: /: Permission denied"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_exit_2(environ, arguments, line):
    result = subprocess.run(
        jarvis("run", *arguments), capture_output=True, text=True, timeout=60, check=False, env=environ
    )
    assert (result.returncode, result.stdout, result.stderr) == (2, "", line + "\n")


def test_the_exit_code_and_the_signal_are_the_commands_own(tmp_path, environ, sink):
    assert run_app(tmp_path, environ, sink, "raise SystemExit(7)").returncode == 7
    source = "import logging, os, signal; logging.warning('last words'); os.kill(os.getpid(), signal.SIGTERM); signal.pause()"
    assert run_app(tmp_path, environ, sink, source).returncode == -signal.SIGTERM
    assert sink.bodies == ["last words"]


def test_datasette_runs_unchanged_and_its_requests_are_in_the_day_files_each_with_its_own_trace(tmp_path, environ):
    connection = sqlite3.connect(tmp_path / "trades.db")
    connection.execute("create table trades (symbol text)")
    connection.close()
    port_file = tmp_path / "port"
    collector = subprocess.Popen(
        jarvis("collector", "--dir", tmp_path / "logs", "--port", 0, "--port-file", port_file),
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    datasette = None
    try:
        until(port_file.exists)
        endpoint = f"http://127.0.0.1:{port_file.read_text().strip()}"
        port = free_port()
        datasette = subprocess.Popen(
            jarvis("run", "--", BIN / "datasette", "serve", tmp_path / "trades.db", "-p", port),
            env={**environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: answers(f"http://127.0.0.1:{port}/-/versions.json"), 60)
        for _ in range(3):
            assert get(f"http://127.0.0.1:{port}/trades/trades.json") == 200
        datasette.send_signal(signal.SIGTERM)
        out, err = datasette.communicate(timeout=30)
        assert "GET /trades/trades.json" in out + err
        assert "Traceback" not in out + err
    finally:
        for process in (datasette, collector):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=30)
    entries = lines(tmp_path / "logs", "jarvis")
    requests = [entry for entry in entries if entry.get("logger") == "uvicorn.access"]
    asked = [entry for entry in requests if "GET /trades/trades.json" in entry["message"]]
    assert len(asked) == 3
    assert {entry["service"] for entry in requests} == {"datasette"}
    assert any(entry["logger"] == "uvicorn.error" for entry in entries)
    assert len({entry["trace_id"] for entry in requests}) == len(requests)
    spans = {span["trace_id"]: span for span in lines(tmp_path / "logs", "traces") if span["kind"] == "server"}
    for entry in requests:
        span = spans.pop(entry["trace_id"])
        assert (entry["span_id"], span["service"]) == (span["span_id"], "datasette")
        assert f"GET {span['attributes']['url.path']} HTTP" in entry["message"]
        assert span["attributes"]["http.response.status_code"] == 200
    assert spans == {}


def lines(directory, kind):
    (day_file,) = directory.glob(f"{kind}-*.jsonl")
    return [json.loads(line) for line in day_file.read_bytes().split(b"\n") if line]
