"""Levels and limits follow the settings file while the process runs; what nobody caught is logged; counts are told."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.otlp_sink import attributes_of, otlp_sink


@pytest.fixture
def sink():
    with otlp_sink() as sink:
        yield sink


def app(code, sink, **environ):
    """Runs an application that is configured, with the names `log`, `settings` (writes them) and `until`."""
    prelude = """
        import logging, os, sys, time, warnings
        from pathlib import Path
        from jarvis_otel import configure, get_logger
        file = Path(os.environ["JARVIS_HOME"], "config", "jarvis.yaml")
        def settings(text):
            temporary = file.with_suffix(".new")
            temporary.write_text(text)
            temporary.replace(file)
        def until(condition, seconds=20):
            end = time.monotonic() + seconds
            while not condition():
                assert time.monotonic() < end, "waited in vain"
                time.sleep(0.01)
        handle = configure("app", console=False)
        log = get_logger("app")
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "OTEL_TRACES_EXPORTER": "none", **environ},
        check=False,
    )


def told(sink):
    """What arrived, without the announcements of changed settings."""
    return [record["body"]["stringValue"] for record in sink.received if record.get("eventName") is None]


def events(sink):
    return {record["eventName"]: record for record in sink.received if record.get("eventName")}


def test_a_level_holds_as_soon_as_the_settings_file_says_so(sink):
    done = app(
        """
        log.debug("before")
        settings("levels: {app: debug}")
        until(lambda: log.level == logging.DEBUG)
        log.debug("debug")
        settings("levels: {app: error}")
        until(lambda: log.level == logging.ERROR)
        log.warning("not now")
        log.error("error")  # printed by logging.lastResort, as it is without us
        file.unlink()
        until(lambda: log.level == logging.INFO)
        log.info("as ever")
        """,
        sink,
    )
    assert done.returncode == 0, done.stderr
    assert told(sink) == ["debug", "error", "as ever"]
    assert "levels changed" in events(sink)["jarvis.settings.changed"]["body"]["stringValue"]


def test_a_standard_logger_gets_its_level_too_and_the_console_stays_as_it_was(sink):
    done = app(
        """
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        sql = logging.getLogger("sql.engine")
        sql.debug("before")
        settings("levels: {sql: debug, other: error}")
        until(lambda: logging.getLogger("sql").level == logging.DEBUG)
        sql.debug("query")
        logging.getLogger("other").warning("printed, not shipped")
        settings("")
        until(lambda: logging.getLogger("sql").level == logging.NOTSET)
        sql.debug("after")
        """,
        sink,
    )
    assert (done.returncode, done.stdout) == (0, "printed, not shipped\n")
    assert told(sink) == ["query"]


def test_a_settings_file_with_a_fault_changes_nothing_and_a_record_says_why(sink):
    done = app(
        """
        settings("log_level: warning")
        until(lambda: log.level == logging.WARNING)
        settings("log_level: LOUD")
        time.sleep(0.3)
        log.info("not now")
        log.warning("still")
        """,
        sink,
    )
    assert done.returncode == 0, done.stderr
    assert told(sink) == ["still"]
    assert "got 'LOUD', want one of" in events(sink)["jarvis.settings.refused"]["body"]["stringValue"]


def test_limits_of_the_settings_leave_records_out_and_the_count_is_told(sink, own_project):
    (own_project / "config" / "jarvis.yaml").write_text("limits: {app: {dedupe: 600}, std: {once: true}}\n")
    done = app(
        """
        for n in range(5): log.info("tick")
        for n in range(3): log.warning("never left out")
        for n in range(4): logging.getLogger("std").info("number %d", n)
        """,
        sink,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(told(sink)) == ["never left out"] * 3 + ["number 0", "tick"]
    left = [r for r in sink.received if r.get("eventName") == "jarvis.logs.left_out"]
    assert sorted((r["scope"]["name"], attributes_of(r)["left_out"]) for r in left) == [("app", 4), ("std", 3)]


def test_a_limited_logger_tells_with_the_next_record_how_many_it_left_out(sink):
    done = app(
        """
        few = log.limited(rate="1000/s").limited(dedupe=0.2)
        for n in range(10): few.info("tick", n=n)
        time.sleep(0.3)
        few.info("tick", n=10)
        log.limited(once=True).info("once")
        log.limited(once=True).info("once")
        try:
            log.limited(sampel=1)
        except TypeError as error:
            print(type(error).__name__)
        try:
            log.limited(sample=5)
        except ValueError as error:
            print(error)
        """,
        sink,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "TypeError\nlimited().sample: got 5, want a share from 0 to 1 (0.1 is 10 %)\n"
    assert told(sink) == ["tick", "tick", "once"]
    assert attributes_of(sink.received[1])["left_out"] == 9


def test_what_nobody_caught_is_logged_and_printed_as_ever(sink):
    code = """
        import threading
        def work(): raise KeyError("in thread")
        thread = threading.Thread(target=work, name="worker")
        thread.start(); thread.join()
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
        raise ValueError("at last")
    """
    done = app(code, sink)
    assert done.returncode == 1
    assert done.stderr.count("KeyError: 'in thread'") == 1
    assert done.stderr.count("ValueError: at last") == 1
    assert done.stderr.count("DeprecationWarning: old thing") == 1
    by_type = {attributes_of(r).get("exception.type"): r for r in sink.received}
    assert by_type["KeyError"]["severityNumber"] == 17
    assert by_type["ValueError"]["severityNumber"] == 21
    assert "at last" in attributes_of(by_type["ValueError"])["exception.stacktrace"]
    (warning,) = [r for r in sink.received if r["scope"]["name"] == "py.warnings"]
    assert (warning["body"]["stringValue"], attributes_of(warning)["category"]) == ("old thing", "DeprecationWarning")


def test_neither_is_logged_where_the_settings_say_so(sink):
    done = app(
        "warnings.warn('w')\nraise ValueError('x')",
        sink,
        JARVIS_CAPTURE_EXCEPTIONS="false",
        JARVIS_CAPTURE_WARNINGS="false",
    )
    assert done.returncode == 1
    assert sink.received == []


def test_lost_records_are_told_by_a_record(sink):
    done = app(
        """
        from jarvis_otel.runtime import RUNTIME
        RUNTIME.pipeline.count_failed()
        """,
        sink,
    )
    assert done.returncode == 0
    lost = events(sink)["jarvis.logs.dropped"]
    assert lost["body"]["stringValue"] == "Records lost: 1 failed"
    assert lost["severityNumber"] == 13


def test_an_exception_that_left_its_operation_is_still_about_that(sink):
    done = app(
        """
        import pickle
        try:
            with log.context(correlation_id="trade-8"):
                raise KeyError("caught")
        except KeyError as error:
            print(pickle.loads(pickle.dumps(error)).args)
        with log.context(correlation_id="trade-9", user_id="u"):
            with log.context(request_id="r1"):
                raise ValueError("x")
        """,
        sink,
    )
    assert (done.returncode, done.stdout) == (1, "('caught',)\n")
    (record,) = sink.received
    found = attributes_of(record)
    assert (found["jarvis.correlation_id"], found["jarvis.request_id"], found["user.id"]) == ("trade-9", "r1", "u")
    assert found["code.function.name"] == "<module>"
    assert len(record["traceId"]) == 32
