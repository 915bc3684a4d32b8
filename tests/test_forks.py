"""A fork at the worst of moments: while a thread that the application knows nothing of imports something."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.otlp_sink import otlp_sink

# Each import in another thread is held up half-way, and the main thread told to fork; the child imports the same.
SCRIPT = """
    import importlib, json, os, pathlib, queue, signal, sys, threading, time

    met = queue.SimpleQueue()

    class Meddler:
        def find_spec(self, name, path=None, target=None):
            if threading.current_thread() is not threading.main_thread():
                met.put((threading.current_thread().name, name))
                time.sleep(0.01)

    sys.meta_path.insert(0, Meddler())
    found = []

    def fork_meanwhile(seconds):
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0:
            try:
                thread, name = met.get(timeout=rest)
            except queue.Empty:
                break
            child = os.fork()
            if not child:
                signal.alarm(10)
                try:
                    importlib.import_module(name)
                finally:
                    os._exit(0)
            found.append((thread, name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))

    flags_file, settings_file = pathlib.Path("config/flags.yaml"), pathlib.Path("config/jarvis.yaml")
    flags_file.parent.mkdir()
    right = 'version: "1.0"\\nflags: {A: {name: a, enabled: ENABLED}}\\n'
    if sys.argv[1] == "early":
        flags_file.write_text(right.replace("ENABLED", "true"))
    from jarvis_otel import configure, flags, get_logger
    from opentelemetry import trace

    configure("forks", console=False)
    log = get_logger("forks")
    flags.is_enabled("A")
    log.info("first")
    with trace.get_tracer("forks").start_as_current_span("operation"):
        log.warning("in a span")
    fork_meanwhile(2.0)
    for text in (right.replace("ENABLED", "false"), "flags: [}", right.replace("enabled", "enabld")):
        flags_file.write_text(text)
        fork_meanwhile(0.7)
        flags.is_enabled("A")
    settings_file.write_text("log_lvl: DEBUG\\n")
    fork_meanwhile(0.7)
    settings_file.write_text("log_level: DEBUG\\nlogs: {max_per_second: 5}\\n")
    fork_meanwhile(0.7)
    try:
        json.loads("{")
    except ValueError:
        log.exception("failed")
    fork_meanwhile(1.0)
    print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("flags", "collector"),
    [
        pytest.param("early", True, id="flags from the start and a collector"),
        pytest.param("late", False, id="flags that come later and no collector"),
    ],
)
def test_a_child_that_is_forked_while_a_thread_of_ours_imports_can_import_the_same(tmp_path, flags, collector):
    with otlp_sink() as sink:
        url = sink.url
        if not collector:
            sink.close()
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), flags],
            cwd=tmp_path,
            env={**os.environ, "JARVIS_HOME": str(tmp_path), "OTEL_EXPORTER_OTLP_ENDPOINT": url},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert {"inotify_simple", "jarvis_otel.otlp_client"} <= {name for _, name, _ in found}
    assert [entry for entry in found if entry[2] != 0] == []


STUCK = """
    import os, pathlib, signal, threading, time
    from jarvis_flags.forks import importing
    from jarvis_otel import configure, flags

    flags_file = pathlib.Path("config/flags.yaml")
    flags_file.parent.mkdir()
    flags_file.write_text("flags: {A: {enabled: true}}")
    configure("forks", console=False)
    assert flags.is_enabled("A")
    held, done = threading.Event(), threading.Event()

    def import_for_ever():
        with importing():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=import_for_ever)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        signal.alarm(20)
        while flags.is_enabled("A"):
            time.sleep(0.01)
        os._exit(0)
    flags_file.write_text("flags: {A: {enabled: false}}")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    done.set()
    thread.join()
"""


def test_a_fork_goes_on_without_an_import_that_does_not_end_and_its_child_still_follows_the_flags(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STUCK)],
        cwd=tmp_path,
        env={**os.environ, "JARVIS_HOME": str(tmp_path), "OTEL_LOGS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "0\n"), run.stderr
