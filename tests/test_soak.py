"""The soak in half a minute: everything together holds, and its oracle tells what does not."""

import gzip
import json
import os
import threading
import time

import pytest

from tests import soak
from tests.soak import Plan, run
from tests.soak_application import OPERATION
from tests.soak_files import DayFiles

QUICK = Plan(seconds=24, rate=300, applications=3, switch_bound=60.0)
"""No bound on time: what else the machine does, is not ours to say."""


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "soak"
    path.mkdir()
    return path


def broken(lines):
    return [line.what.strip() for line in lines if line.good is False]


def test_everything_together_meets_its_obligations(home, capfd):
    lines = run(QUICK, home)
    assert broken(lines) == [], f"{soak.table(lines)}\n{capfd.readouterr().err}"
    assert sum(line.good is True for line in lines) >= 18


def test_what_is_taken_away_behind_its_back_is_told(home):
    """A line of a day file, and an entry of the audit."""
    audit, logs = home / "var" / "flags" / "audit.jsonl", home / "disk" / "logs"
    gone = threading.Event()

    def take_away():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not gone.is_set():
            time.sleep(0.005)
            entries = audit.read_bytes().splitlines(keepends=True) if audit.exists() else []
            days = sorted(logs.glob("jarvis-*.jsonl"))
            if len(entries) > 3 and days and days[-1].stat().st_size > 10_000:
                audit.write_bytes(b"".join([*entries[:1], *entries[2:]]))
                os.truncate(days[-1], 0)
                gone.set()

    thread = threading.Thread(target=take_away)
    thread.start()
    try:
        found = broken(run(Plan(seconds=8, rate=300, applications=2, switch_bound=60.0, catch_up=1), home))
    finally:
        thread.join()
    assert gone.is_set()
    assert {"in no file", "the audit's chain"} <= set(found)


def test_a_table_tells_what_was_broken_and_the_command_refuses_what_is_no_soak(capsys):
    lines = [
        soak.Line("records", "all", "all", True),
        soak.Line("chain", "whole", "cut", False),
        soak.Line("time", "", "1 s"),
    ]
    assert [row.rpartition("  ")[2] for row in soak.table(lines).split("\n")[1:]] == ["holds", "BROKEN", "1 s"]
    with pytest.raises(SystemExit) as ended:
        soak.main(["--minutes", "0"])
    assert ended.value.code == 2
    assert "more than no minutes" in capsys.readouterr().err


# --- what it knows of the files


@pytest.fixture
def day(tmp_path):
    """Writes a day's lines, and gives what the soak knows of them."""
    path, files = tmp_path / "jarvis-2026-01-02.jsonl", DayFiles(tmp_path)

    def write(*lines):
        with path.open("ab") as file:
            file.writelines(lines)
        files.look(all_of_it=True)
        return files

    yield write
    files.close()


def line(number, uid=None, name="app0.0", **context):
    context = {"soak": name, "number": number, **context}
    return json.dumps({"context": context, "_meta": {"uid": uid or f"{name}-{number}"}}).encode() + b"\n"


def test_records_are_missing_repeated_doubled_or_beyond_what_was_promised(day):
    files = day(line(1), line(2), line(2), line(4), line(4, uid="another"), line(6), line(1, name="app9.0"))
    assert files.missing("app0.0", 5) == 2
    assert (files.repeats, files.doubles) == (1, 1)
    assert files.beyond("app0.0", 5) == 1
    assert files.missing("app1.0", 3) == 3
    assert files.strangers({"app0.0"}) == 1
    assert files.records == 5


def test_what_is_no_record_is_told_and_losses_that_were_counted_are_counted_once(day):
    lost = {"context": {"jarvis.dropped.overflow": 7}, "_meta": {"uid": "x"}}
    files = day(b'{"torn\n', b"[]\n", *[json.dumps(lost).encode() + b"\n"] * 2, b"half a l")
    assert files.unreadable == 2
    assert files.dropped == {"overflow": 7}
    assert not day(b"ine\n").tails[0].cut
    assert files.unreadable == 3


def test_an_operation_is_told_when_all_of_it_came(day):
    assert day(*map(line, range(1, OPERATION))).operation() is None
    files = day(line(OPERATION))
    assert files.operation() == ("app0.0-0", set(range(1, OPERATION + 1)), {"jarvis-2026-01-02.jsonl"})
    assert files.is_kept("jarvis-2026-01-02.jsonl")
    assert not files.is_kept("jarvis-2026-01-01.jsonl")


def archived(path, content):
    archive = path.parent / "archive" / "2026-01" / f"{path.name}.gz"
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(gzip.compress(content))
    path.unlink()
    return archive


def test_a_file_that_is_archived_is_read_to_its_end_and_its_archive_compared(day, tmp_path):
    files = day(line(1), line(2))
    path = tmp_path / "jarvis-2026-01-02.jsonl"
    with path.open("ab") as file:
        file.write(line(3))
    archive = archived(path, path.read_bytes())
    files.look()
    assert files.missing("app0.0", 3) == 0
    assert files.archives == {archive.name: True}
    assert files.is_kept(path.name)
    archive.unlink()
    files.look()
    assert files.archives == {archive.name: True}
    assert not files.is_kept(path.name)


def test_an_archive_that_holds_something_else_than_the_day_file_is_told(day, tmp_path):
    files = day(line(1), line(2))
    archive = archived(tmp_path / "jarvis-2026-01-02.jsonl", line(1))
    files.look()
    assert files.archives == {archive.name: False}


def test_a_file_that_shrinks_is_told(day, tmp_path):
    files = day(line(1), line(2))
    os.truncate(tmp_path / "jarvis-2026-01-02.jsonl", 3)
    files.look()
    assert files.tails[0].cut
