"""What docs/operations.md says of files, sizes, metrics and backups, tried on a project of its own."""

import os
import re
import shutil
import stat
import subprocess
import sys
import textwrap

import pytest

from jarvis_collector.config import Retention
from jarvis_collector.retention import rotate
from jarvis_otel.admin.audit import verify
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.file_store import FileStore
from jarvis_otel.manager import FeatureFlagManager
from jarvis_otel.query.index_build import index_file
from tests.collectors import commanded, logs, starting
from tests.commands import jarvis
from tests.doc_pages import ROOT
from tests.otlp_sink import until
from tests.ports import free_port

PAGE = (ROOT / "docs" / "operations.md").read_text()
FLAGS = "flags: {A: {enabled: true, dangerous: true}, B: {enabled: true}}"
ANN = Author("ann", "cli", "test")
OPERATIONS, RECORDS = 200, 10

start = pytest.fixture(starting)


def run(code, **environ):
    """A program of the project, which must end well."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# ---- files


def test_what_is_made_is_closed_to_strangers_whatever_the_umask(flag_file, own_project, start):
    flag_file(FLAGS)
    collector = start(own_project / "logs", "--grpc-port", "off", by=commanded)
    application = """
        import os
        os.umask(0)
        from jarvis_otel import configure, flags, get_logger
        configure("app", console=False)
        flags.is_enabled("A")
        get_logger("app").info("hello")
        assert flags.set_enabled("A", False)
    """
    run(application, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.port}")
    assert collector.stop() == 0
    made = [path for place in ("var", "logs") for path in (own_project / place).rglob("*")]
    assert {path.name for path in made} >= {"overrides.json", "audit.jsonl", "spool"}
    assert any(path.suffix == ".jsonl" and path.parent.name == "logs" for path in made)
    modes = {str(path.relative_to(own_project)): stat.S_IMODE(path.stat().st_mode) for path in made if path.exists()}
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o027} == {}
    assert modes["var/spool"] == 0o700


def test_nothing_is_written_outside_of_the_project(flag_file, own_project, tmp_path):
    flag_file(FLAGS)
    home = tmp_path / "home"
    home.mkdir()
    environ = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    run(
        """
        from jarvis_otel import configure, flags, get_logger
        configure("app", console=False)
        flags.is_enabled("A")
        """,
        **environ,
        OTEL_LOGS_EXPORTER="none",
        OTEL_TRACES_EXPORTER="none",
    )
    assert jarvis("disable", "A", **environ).returncode == 0
    assert list(home.iterdir()) == []
    assert {path.name for path in own_project.iterdir()} == {"config", "var"}


# ---- backup


def changed_twice(state_dir):
    """A project in which A, then B was turned off; gives the files after the first of them, and after both."""
    source = FeatureFlagManager.of_process()
    try:
        assert source.admin.disable("A", ANN).applied
        first = {name: (state_dir / name).read_bytes() for name in ("overrides.json", "audit.jsonl")}
        assert source.admin.disable("B", ANN).applied
    finally:
        source.close()
    return first, {name: (state_dir / name).read_bytes() for name in first}


@pytest.fixture
def restored(flag_file, own_project):
    """Restores state and audit of two moments, and gives which flags are on, and the faults of the audit after a change."""
    flag_file(FLAGS)
    state_dir = own_project / "var" / "flags"

    def restored(state, audit):
        first, both = changed_twice(state_dir)
        shutil.rmtree(state_dir)
        state_dir.mkdir()
        for name, moment in (("overrides.json", state), ("audit.jsonl", audit)):
            content = {"first": first, "both": both}[moment][name]
            (state_dir / name).write_bytes(content)
        manager = FeatureFlagManager.of_process()
        try:
            on = {flag for flag in ("A", "B") if manager.is_enabled(flag)}
            assert manager.admin.reset("B", ANN, confirmed=True).applied
        finally:
            manager.close()
        return on, [str(fault) for fault in verify(FileStore(state_dir).lines())]

    return restored


def test_an_audit_that_is_ahead_of_the_state_is_put_right_by_itself(restored):
    assert restored("first", "both") == (set(), [])


def test_a_state_that_is_ahead_of_the_audit_holds_and_leaves_a_gap_in_it_for_good(restored):
    on, faults = restored("both", "first")
    assert on == set()
    assert len(faults) == 1


def test_an_override_file_of_a_newer_form_turns_dangerous_flags_off_and_no_others(flag_file, own_project):
    flag_file(FLAGS)
    state_dir = own_project / "var" / "flags"
    state_dir.mkdir(parents=True)
    (state_dir / "overrides.json").write_text('{"format": 2, "revision": 1, "overrides": {}}')
    manager = FeatureFlagManager.of_process()
    try:
        assert (manager.is_enabled("A"), manager.is_enabled("B")) == (False, True)
    finally:
        manager.close()


# ---- monitoring


def test_the_metrics_of_the_page_are_there(start, own_project):
    (own_project / "config" / "jarvis.yaml").write_text(f"loki_url: http://127.0.0.1:{free_port()}")
    collector = start(own_project / "logs", "--grpc-port", "off", by=commanded)
    collector.request(body=logs("a"))
    told = collector.request("GET", "/metrics").content.decode()
    named = set(re.findall(r"jarvis_collector_\w+", PAGE.partition("groups:")[2].partition("```")[0]))
    assert len(named) >= 5
    assert {name for name in named if f"# TYPE {name} " not in told} == set()


# ---- sizes


def test_a_small_record_takes_the_bytes_that_the_page_says(flag_file, own_project, start):
    flag_file("flags: {NEW_CHECKOUT: {rules: [{type: percentage, value: 25}]}}")
    application = f"""
        from jarvis_otel import configure, flags, get_logger
        configure("shop", console=False)
        log = get_logger("shop")
        for i in range({OPERATIONS}):
            with log.context(correlation_id=f"order-{{i}}", user_id=f"user{{i % 50}}"):
                flags.is_enabled("NEW_CHECKOUT")
                for step in range({RECORDS}):
                    log.info("Order placed", symbol="SOL", amount=i * 1.25, step=step)
    """
    command = [sys.executable, "-c", textwrap.dedent(application)]
    away = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "OTEL_TRACES_EXPORTER": "none",
    }
    subprocess.run(command, env=away, capture_output=True, timeout=60, check=True)
    spooled = [path.read_bytes().rstrip(b"\0") for path in (own_project / "var" / "spool").glob("*/*.seg")]
    records = OPERATIONS * (RECORDS + 1)  # the evaluation of each operation's flag is an event of its own
    collector = start(own_project / "logs", "--grpc-port", "off", by=commanded)
    [day] = [until_written(collector, records)]
    index_file(day)
    [index] = (day.parent / ".index").iterdir()
    old = own_project / "old"
    old.mkdir()
    shutil.copy(day, old / "jarvis-2020-01-01.jsonl")
    rotate(old, Retention(plain_days=7, keep_days=36_500, max_total_bytes=10**12, min_free=0))
    [archive] = old.rglob("*.gz")
    measured = {
        "in the spool": sum(map(len, spooled)) / records,
        "in the day's file": day.stat().st_size / records,
        "in an archive": archive.stat().st_size / records,
        "in the index": index.stat().st_size / records,
    }
    rows = dict(re.findall(r"^\| (in [^|,]+?)(?:, [^|]+)? \| ([\d,]+) \|", PAGE, re.MULTILINE))
    said = {what: int(bytes_.replace(",", "")) for what, bytes_ in rows.items()}
    assert said.keys() == measured.keys()
    assert {what: said[what] for what in said} == {
        what: pytest.approx(figure, rel=0.6 if what == "in an archive" else 0.2) for what, figure in measured.items()
    }


def until_written(collector, records):
    """The day's file, once the collector has taken in what the application left behind."""
    days = collector.log_dir
    until(lambda: sum(path.read_bytes().count(b"\n") for path in days.glob("jarvis-*.jsonl")) >= records)
    assert collector.stop() == 0
    [day] = days.glob("jarvis-*.jsonl")
    return day
