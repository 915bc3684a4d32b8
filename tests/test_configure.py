"""configure(), end to end: an application, the real collector, the day files, and the questions asked of them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest


@pytest.fixture
def collector(own_project):
    """`jarvis collector` as a process, writing to the project's logs/."""
    port_file = own_project / "port"
    process = subprocess.Popen(
        [sys.executable, "-m", "jarvis_otel.cli.main", "collector", "--port", "0", "--port-file", str(port_file)],
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 20
    while not port_file.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port_file.read_text().strip()}"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


def app(code, endpoint="http://127.0.0.1:9", **environ):
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **environ},
        check=False,
    )


def lines(own_project, kind="jarvis"):
    return [
        json.loads(line)
        for path in sorted((own_project / "logs").glob(f"{kind}-*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]


FLAGS = """
flags:
  LIVE_TRADING_ENABLED: {enabled: false, dangerous: true, services: [trading]}
  ADVANCED_TRADING_ENABLED: {rules: [{type: user_ids, value: [tg_1]}]}
"""

TRADE = """
    from jarvis_otel import configure, flags, get_logger
    configure("trading", console=False)
    logger = get_logger("trading")
    with logger.context(correlation_id="trade-1", user_id="tg_1"):
        flags.is_enabled("ADVANCED_TRADING_ENABLED")
        try:
            raise LookupError("no balance")
        except LookupError:
            logger.error("Trade failed", exc_info=True, symbol="SOL", requested_amount=1.5)
"""


def test_a_record_says_which_flags_were_on_and_reaches_the_day_file_before_the_process_ends(
    own_project, flag_file, collector
):
    flag_file(FLAGS)
    assert app(TRADE, collector).returncode == 0
    event, error = lines(own_project)
    assert event["event"] == "feature_flag.evaluation"
    assert event["service"] == "trading"
    assert (error["service"], error["level"], error["correlation_id"], error["user_id"]) == (
        "trading",
        "ERROR",
        "trade-1",
        "tg_1",
    )
    assert error["active_flags"] == ["ADVANCED_TRADING_ENABLED"]
    assert error["flags"] == {"ADVANCED_TRADING_ENABLED": "on", "LIVE_TRADING_ENABLED": "off"}
    assert (error["error"]["type"], error["context"]) == ("LookupError", {"symbol": "SOL", "requested_amount": 1.5})
    assert error["_meta"]["environment"] == "prod"
    (span,) = lines(own_project, "traces")
    assert (span["trace_id"], span["correlation_id"]) == (error["trace_id"], "trade-1")
    assert span["flags"] == {"ADVANCED_TRADING_ENABLED": "on"}


def test_the_debugging_workflow_finds_the_error_and_reproduces_the_flags(own_project, flag_file, collector):
    flag_file(FLAGS)
    app(TRADE, collector)

    def logs(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "jarvis_otel.cli.main", "logs", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    (found,) = json.loads(logs("query", "--level", "ERROR", "--since", "-1h", "--format", "json"))
    correlation_id = found["correlation_id"]
    assert "LIVE_TRADING_ENABLED=off" in logs("trace", correlation_id)
    assert logs("reproduce", correlation_id).splitlines() == [
        "export FF_ADVANCED_TRADING_ENABLED=true",
        "export FF_LIVE_TRADING_ENABLED=false",
    ]


def test_without_a_collector_the_application_goes_on_and_one_line_says_so(flag_file):
    flag_file(FLAGS)
    done = app(TRADE + "\n    print('went on')")
    assert (done.returncode, done.stdout) == (0, "went on\n")
    told = [line for line in done.stderr.splitlines() if "jarvis" in line or "export" in line]
    (line,) = [line for line in told if not line.startswith("{")]  # the ERROR itself is printed by lastResort
    assert line.startswith("jarvis: no collector at http://127.0.0.1:9")


def test_a_bad_setting_is_told_in_one_line_and_its_default_is_used(own_project, flag_file):
    flag_file(FLAGS)
    (own_project / "config" / "jarvis.yaml").write_text("log_level: LOUD\n")
    done = app(
        "from jarvis_otel import configure; configure(console=False); print('went on')", OTEL_LOGS_EXPORTER="none"
    )
    assert done.stdout == "went on\n"
    assert "config/jarvis.yaml: log_level: got 'LOUD', want one of debug, info, warning, error, critical" in done.stderr
    assert done.stderr.count("\n") == 1


def test_configure_twice_is_once_and_shutdown_takes_it_down(flag_file):
    flag_file(FLAGS)
    code = """
        import threading
        from jarvis_otel import configure, flags
        before = threading.active_count()
        handle = configure(console=False)
        assert configure("other") is handle
        flags.is_enabled("LIVE_TRADING_ENABLED")
        handle.shutdown()
        handle.shutdown()
        print(threading.active_count() - before)
    """
    done = app(code)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_kill_of_the_collector_under_load_loses_no_acknowledged_record(own_project, flag_file):
    """Killed twice while an application logs; what waited arrives at the collector that comes after."""
    flag_file(FLAGS)
    port_file = own_project / "port"

    def collect(port):
        port_file.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "jarvis_otel.cli.main", "collector", "--port", port, "--port-file", str(port_file)],
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while not port_file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process, port_file.read_text().strip()

    process, port = collect("0")
    code = """
        import time
        from jarvis_otel import configure, get_logger
        handle = configure("load", console=False)
        logger = get_logger("load")
        for number in range(3000):
            logger.info("record", number=number)
            if number % 10 == 0:
                time.sleep(0.005)
        from jarvis_otel.runtime import RUNTIME
        print(RUNTIME.pipeline.flush(30))
    """
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"},
    )
    for _ in range(2):
        time.sleep(0.7)
        process.kill()
        process.wait()
        process, _ = collect(port)
    assert writer.communicate(timeout=60)[0] == "True\n"
    process.terminate()
    process.wait()
    seen = {line["context"]["number"] for line in lines(own_project)}
    assert seen == set(range(3000))


def test_an_operation_is_carried_into_threads_and_pools(own_project, flag_file, collector):
    flag_file(FLAGS)
    code = """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        from jarvis_otel import configure, get_logger
        configure("trading", console=False)
        logger = get_logger("trading")
        with ThreadPoolExecutor(1) as pool:
            with logger.context(correlation_id="trade-9"):
                thread = threading.Thread(target=logger.info, args=("in a thread",))
                thread.start()
                thread.join()
                pool.submit(logger.info, "in a pool").result()
            pool.submit(logger.info, "after").result()
    """
    assert app(code, collector).returncode == 0
    told = {line["message"]: line for line in lines(own_project)}
    assert told["in a thread"]["correlation_id"] == told["in a pool"]["correlation_id"] == "trade-9"
    assert "trace_id" in told["in a thread"]
    assert "correlation_id" not in told["after"]


def test_importing_us_imports_nothing_that_only_configure_or_a_flag_needs():
    """A tool or a test imports an application without running it: what that costs is OpenTelemetry's and little more."""
    later = """
        yaml hashlib hmac zoneinfo shutil difflib http.client ssl requests google.protobuf importlib.metadata
        jarvis_flags.evaluate jarvis_flags.parse jarvis_flags.model
        jarvis_otel.pipeline jarvis_otel.spool jarvis_otel.settings jarvis_otel.exporters jarvis_otel.redaction
    """
    code = f"""
        import sys
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk._logs import LoggerProvider
        from openfeature import api
        theirs = set(sys.modules)
        from jarvis_otel import configure, flags, get_logger
        print(sorted(set({later.split()}) & (set(sys.modules) - theirs)))
    """
    assert app(code).stdout == "[]\n"
