"""Hot reload, with real files, links and processes."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from jarvis_flags.settings import FlagSettings
from jarvis_flags.source import FileSource


def text(value):
    return f"flags:\n  F: {{enabled: {str(value).lower()}}}\n"


def wait_for(condition, what, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not seen: {what}"
        time.sleep(0.002)


def is_on(source):
    snapshot = source.snapshot
    return snapshot.evaluate("F", snapshot.request()).value


@pytest.fixture
def source(flag_file):
    flag_file(text(False))
    source = FileSource(FlagSettings.load(), watch=True, service="test")
    yield source
    source.close()


def test_a_file_written_in_place_is_seen(source, flag_file):
    for value in (True, False, True):
        flag_file(text(value))
        wait_for(lambda value=value: is_on(source) is value, f"enabled: {value}")


def test_a_file_renamed_over_is_seen_even_with_an_older_time(source, own_project):
    replacement = own_project / "replacement"
    replacement.write_text(text(True))
    os.utime(replacement, (1_000_000_000, 1_000_000_000))
    replacement.rename(own_project / "config" / "flags.yaml")
    wait_for(lambda: is_on(source), "the older file")


def test_the_swap_of_a_config_map_is_seen(own_project, monkeypatch):
    config = own_project / "config"
    for name, value in (("..v1", False), ("..v2", True)):
        (config / name).mkdir()
        (config / name / "flags.yaml").write_text(text(value))
    (config / "..data").symlink_to("..v1")
    (config / "flags.yaml").symlink_to("..data/flags.yaml")
    source = FileSource(FlagSettings.load(), watch=True)
    assert is_on(source) is False
    (config / "..data_tmp").symlink_to("..v2")
    (config / "..data_tmp").rename(config / "..data")
    wait_for(lambda: is_on(source), "the swapped link")
    source.close()


def test_a_file_behind_a_link_is_seen_when_it_changes_in_its_own_directory(own_project):
    elsewhere = own_project / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "f.yaml").write_text(text(False))
    (own_project / "config" / "flags.yaml").symlink_to(elsewhere / "f.yaml")
    source = FileSource(FlagSettings.load(), watch=True)
    (elsewhere / "f.yaml").write_text(text(True))
    wait_for(lambda: is_on(source), "the file behind the link")
    source.close()


def test_deletion_changes_nothing_and_the_return_is_seen(source, own_project, flag_file):
    (own_project / "config" / "flags.yaml").unlink()
    wait_for(lambda: source.snapshot.problems, "the deletion")
    assert is_on(source) is False
    flag_file(text(True))
    wait_for(lambda: is_on(source), "the return")


def test_after_a_hundred_writes_the_last_one_stands(source, flag_file):
    for number in range(101):
        flag_file(text(number % 2 == 0))
    wait_for(lambda: is_on(source), "the last write")


def test_a_state_directory_that_is_made_later_is_seen(source, own_project):
    state = own_project / "var" / "flags"
    state.mkdir(parents=True, exist_ok=True)
    (state / "overrides.json").write_text('{"format": 1, "revision": 1, "overrides": {"F": {"state": "on"}}}')
    wait_for(lambda: is_on(source), "the override")


def test_where_the_kernel_tells_nothing_changes_are_seen_by_looking(flag_file):
    code = """
        import sys, time
        sys.modules["inotify_simple"] = None
        from jarvis_flags.settings import FlagSettings
        from jarvis_flags.source import FileSource
        source = FileSource(FlagSettings.load(), watch=True)
        print("ready", flush=True)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if source.snapshot.evaluate("F", source.snapshot.request()).value:
                print("seen", flush=True); break
            time.sleep(0.005)
        source.close()
    """
    flag_file(text(False))
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    flag_file(text(True))
    assert child.communicate(timeout=30)[0] == "seen\n"


def test_a_forked_child_follows_the_file_by_itself(flag_file):
    code = """
        import os, sys, time
        from jarvis_flags.settings import FlagSettings
        from jarvis_flags.source import FileSource
        source = FileSource(FlagSettings.load(), watch=True, service="forker")
        source.reload()
        pid = os.fork()
        role = "parent" if pid else "child"
        if pid:
            print("ready", flush=True)
        deadline = time.monotonic() + 20
        while not source.snapshot.evaluate("F", source.snapshot.request()).value:
            if time.monotonic() > deadline:
                os._exit(1)
            time.sleep(0.005)
        source.close()
        os._exit(0 if not pid or os.waitpid(pid, 0)[1] == 0 else 1)
    """
    flag_file(text(False))
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    flag_file(text(True))
    child.stdout.close()
    assert child.wait(30) == 0


def test_a_state_directory_behind_a_closed_door_keeps_no_edit_of_the_flag_file_from_being_seen():
    code = """
        import os, time
        from jarvis_flags.settings import FlagSettings
        from jarvis_flags.source import FileSource
        settings = FlagSettings.load()
        FileSource(settings, watch=True, service="stranger").close()  # who is nobody may not be able to import
        if os.getuid() == 0:
            os.setresuid(65534, 65534, 65534)
        print("ready", flush=True)
        input()
        source = FileSource(settings, watch=True, service="stranger")
        print("open", flush=True)
        deadline = time.monotonic() + 20
        while not source.snapshot.evaluate("F", source.snapshot.request()).value:
            if time.monotonic() > deadline:
                os._exit(1)
            time.sleep(0.005)
    """
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        root.chmod(0o755)
        (root / "config").mkdir()
        (root / "var" / "flags").mkdir(parents=True)
        file = root / "config" / "flags.yaml"
        file.write_text(text(False))
        environ = {**os.environ, "JARVIS_HOME": directory}
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdout.readline() == "ready\n"
            (root / "var").chmod(0)
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "open\n"
            file.write_text(text(True))
            assert child.wait(30) == 0
        finally:
            child.kill()
            child.communicate()
            (root / "var").chmod(0o755)


def test_each_process_says_which_revision_it_has_seen_and_what_is_pinned_in_it(flag_file, own_project, monkeypatch):
    flag_file(text(False))
    monkeypatch.setenv("FF_F", "true")
    source = FileSource(FlagSettings.load(), watch=True, service="trading")
    seen = own_project / "var" / "flags" / "seen" / f"{os.getpid()}.json"
    wait_for(seen.exists, "the seen file")
    assert json.loads(seen.read_text())["pins"] == {"F": "true"}
    (own_project / "var" / "flags" / "overrides.json").write_text('{"format": 1, "revision": 7, "overrides": {}}')
    wait_for(lambda: json.loads(seen.read_text())["revision"] == 7, "revision 7")
    source.close()
    assert not seen.exists()


def test_closing_ends_the_thread_and_leaks_no_descriptor(flag_file):
    import threading

    flag_file(text(False))
    FileSource(FlagSettings.load(), watch=True).close()
    before = (len(list(Path("/proc/self/fd").iterdir())), threading.active_count())
    for _ in range(5):
        source = FileSource(FlagSettings.load(), watch=True)
        source.close()
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == before
