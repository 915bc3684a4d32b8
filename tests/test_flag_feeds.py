"""What a machine keeps of the flags in etcd: never older than it was, whole whatever is killed, with what is off here over it."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_flags.feeds import Followed, FollowedFeed, Pending
from jarvis_flags.locking import held
from jarvis_flags.overrides import Override, OverrideError, OverrideSet
from jarvis_flags.settings import FlagSettings
from jarvis_flags.slots import Slots
from jarvis_flags.source import Change, FileSource, MemorySource
from jarvis_otel.etcd.keys import Keys, Lasting, SharedFlags
from tests.otlp_sink import until

ROOT = Path(__file__).parents[1]
OFF = Override("off", by="ann", at="2026-01-01T00:00:00Z")


def said(position, revision=None, cluster="c", **overrides):
    return Followed(cluster, position, OverrideSet(position if revision is None else revision, overrides))


def pending(flag="LIVE", at="2026-01-01T00:00:00.000001Z"):
    return Pending(at, "bob", "cli", "stop", "disable", {flag: OFF})


# --- slots ---


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.integers(0, 400))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_slots_give_what_was_written_last_and_the_one_before_where_that_is_torn(tmp_path, contents, cut):
    directory = tmp_path / os.urandom(6).hex()
    directory.mkdir()
    slots = Slots(directory / "state.json")
    assert slots.read() is None
    for content in contents:
        slots.write(content)
        assert Slots(directory / "state.json").read() == content
    newest = slots.paths[len(contents) % 2]
    block = newest.read_bytes()
    newest.write_bytes(block[: min(cut, len(block) - 1)])
    found = slots.read()
    assert found == (contents[-2] if len(contents) > 1 else None) or (found == contents[-1] and not contents[-1])


def test_a_process_that_is_killed_while_it_writes_leaves_something_whole(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from jarvis_flags.slots import Slots
        slots = Slots(Path(sys.argv[1]))
        print("ready", flush=True)
        number = 0
        while True:
            number += 1
            slots.write(b"%d " % number * (1 + number % 2000))
    """
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), tmp_path / "state.json"], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        content = Slots(tmp_path / "state.json").read()
        assert content is not None
        assert len(set(content.split())) == 1


# --- what was followed ---


def test_nothing_known_is_no_state_of_no_overrides(tmp_path):
    with pytest.raises(OverrideError, match="knows nothing"):
        FollowedFeed(tmp_path).read()


def test_what_was_followed_is_there_for_the_next_process_with_its_times(tmp_path):
    lasting = Override("on", expires_at=5e9, lapses_at=5e9 - 3600)
    feed = FollowedFeed(tmp_path)
    assert feed.put(said(7, 3, PLAIN=lasting))
    again = FollowedFeed(tmp_path).read()
    assert (again.revision, again.overrides["PLAIN"], again.overrides["PLAIN"].lapses) == (3, lasting, 5e9 - 3600)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 30)), min_size=1, max_size=20))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_processes_of_a_machine_never_go_back_whatever_the_order_of_the_news(tmp_path, news):
    directory = tmp_path / os.urandom(6).hex()
    feeds = [FollowedFeed(directory) for _ in range(2)]
    newest = 0
    for who, position in news:
        feeds[who].put(said(position, PLAIN=Override("on", reason=str(position))))
        newest = max(newest, position)
        for feed in (*feeds, FollowedFeed(directory)):
            assert feed.read().revision == newest


def test_another_etcd_is_followed_by_who_asks_it_and_then_by_all(tmp_path):
    feed = FollowedFeed(tmp_path)
    feed.put(said(900, PLAIN=OFF))
    restarted = FollowedFeed(tmp_path)
    assert restarted.put(said(2, cluster="restored", PLAIN=Override("on")))
    assert restarted.read().overrides["PLAIN"].state == "on"
    assert FollowedFeed(tmp_path).read().overrides["PLAIN"].state == "on"


def test_a_backup_that_was_restored_is_followed_though_its_revisions_are_lower(tmp_path):
    feed, other = FollowedFeed(tmp_path), FollowedFeed(tmp_path)
    feed.put(said(900, PLAIN=OFF))
    other.put(said(900, PLAIN=OFF))
    assert not feed.put(said(500, PLAIN=Override("on")))
    back = replace(said(500, PLAIN=Override("on")), restored=1)
    assert feed.put(back)
    for one in (feed, other, FollowedFeed(tmp_path)):
        assert one.read().overrides["PLAIN"].state == "on"
    assert other.put(replace(said(501, PLAIN=OFF), restored=1))
    assert feed.read().overrides["PLAIN"] == OFF


def test_without_a_disk_what_is_followed_is_in_memory(tmp_path):
    (tmp_path / "etcd").write_text("no directory")
    feed = FollowedFeed(tmp_path)
    assert feed.put(said(1, PLAIN=OFF))
    assert feed.read().overrides["PLAIN"] == OFF


# --- off on this machine ---


def test_what_is_off_here_lies_over_what_etcd_says_for_all_processes_until_it_is_there(tmp_path):
    one, two = FollowedFeed(tmp_path), FollowedFeed(tmp_path)
    one.put(said(5, LIVE=Override("on")))
    one.add_pending(pending())
    one.add_pending(pending("PLAIN", "2026-01-01T00:00:00.000002Z"))
    assert {flag: override.state for flag, override in two.read().overrides.items()} == {"LIVE": "off", "PLAIN": "off"}
    two.put(said(6, LIVE=Override("on", reason="again")))
    assert one.read().overrides["LIVE"].state == "off"
    two.drop_pending(pending())
    assert one.read().overrides["LIVE"].state == "on"
    assert [list(change.overrides) for change in one.pending()] == [["PLAIN"]]


def test_off_works_where_nothing_was_ever_followed(tmp_path):
    feed = FollowedFeed(tmp_path)
    feed.add_pending(pending())
    with pytest.raises(OverrideError, match="knows nothing") as raised:
        feed.read()
    assert raised.value.known.overrides["LIVE"].state == "off"


def test_to_turn_one_flag_off_says_nothing_of_dangerous_ones_that_are_not_known(own_project, flag_file):
    flag_file(
        "flags: {LIVE: {enabled: true, dangerous: true}, OTHER: {enabled: true, dangerous: true}, UI: {enabled: true}}"
    )
    settings = replace(FlagSettings.load(), store="etcd")
    source = FileSource(settings)

    def values():
        snapshot = source.reload()
        return [snapshot.evaluate(flag, snapshot.request()).value for flag in ("LIVE", "OTHER", "UI")]

    assert values() == [False, False, True]
    FollowedFeed(settings.flags_state_dir).add_pending(pending("UI"))
    assert values() == [False, False, False]


def test_what_is_off_here_and_cannot_be_read_keeps_dangerous_flags_off(tmp_path, own_project, flag_file):
    flag_file("flags: {LIVE: {enabled: true, dangerous: true}}")
    settings = replace(FlagSettings.load(), store="etcd")
    feed = FollowedFeed(settings.flags_state_dir)
    feed.put(said(1))
    source = FileSource(settings)
    assert source.snapshot.evaluate("LIVE", source.snapshot.request()).value is True
    (settings.flags_state_dir / "etcd" / "pending.json").write_text("[{")
    snapshot = source.reload()
    assert snapshot.evaluate("LIVE", snapshot.request()).value is False


def test_a_process_that_asks_no_etcd_follows_what_others_of_its_machine_wrote(own_project, flag_file):
    flag_file("flags: {PLAIN: {enabled: false}}")
    settings = replace(FlagSettings.load(), store="etcd")
    source = FileSource(settings, watch=True)
    try:
        FollowedFeed(settings.flags_state_dir).put(said(1, PLAIN=Override("on")))
        until(lambda: source.snapshot.evaluate("PLAIN", source.snapshot.request()).value is True)
    finally:
        source.close()


# --- times ---


def test_an_override_lapses_after_the_time_that_was_left_whatever_the_clock_of_its_author():
    shared = SharedFlags(
        "c",
        1,
        1,
        OverrideSet(1, {"PLAIN": Override("on", expires_at=123.0), "GONE": Override("on", expires_at=123.0)}),
        lasting={"PLAIN": Lasting("7", 60.0)},
    )
    assert list(shared.standing.overrides) == ["PLAIN"], "without its key it has lapsed"
    for left, wanted in ((41.0, 1042.0), (None, 1060.0), (500.0, 1060.0)):
        now = shared.on_this_clock(None, 1000.0, lambda _, left=left: left)
        assert now.overrides["PLAIN"].lapses == wanted
    later = shared.on_this_clock(now, 1030.0, lambda _: 55.0)
    assert later.overrides["PLAIN"].lapses == 1060.0, "what was found first holds"


def test_keys_that_a_watch_tells_of_are_told_apart():
    keys = Keys("/jarvis/")
    assert keys.flag_of(keys.lasts("NEW_UI")) == "NEW_UI"
    assert keys.flag_of(keys.state) is None
    assert keys.flags < keys.state < keys.lasts("A").replace(b"lasts", b"zzz") < keys.flags_end
    assert keys.audit(2) < keys.audit(10) < keys.audit_end


# --- order ---


def test_subscribers_hear_of_changes_in_their_order_though_one_of_them_makes_another():
    source = MemorySource()
    heard = []

    def chain(change: Change):
        heard.append(("first", change.new.overrides.revision))
        if change.new.overrides.revision < 3:
            source.set_overrides(OverrideSet(change.new.overrides.revision + 1))

    source.subscribe(chain)
    source.subscribe(lambda change: heard.append(("second", change.new.overrides.revision)))
    source.set_overrides(OverrideSet(1))
    assert heard == [(who, number) for number in (1, 2, 3) for who in ("first", "second")]


def test_changes_of_several_threads_are_told_in_the_order_in_which_they_were_made():
    source = MemorySource()
    made, heard = [], []
    source.subscribe(lambda change: heard.append((change.old.version, change.new.version)))

    def change(number):
        for step in range(50):
            source.set_overrides(OverrideSet(number * 1000 + step))
            made.append(1)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: len(heard) == len(made))
    assert all(before[1] == after[0] for before, after in itertools.pairwise(heard))


def test_a_lock_is_one_process_s_at_a_time_and_waiting_for_it_ends(tmp_path):
    other = held(tmp_path / "lock", 0.02)
    with held(tmp_path / "lock"), pytest.raises(TimeoutError, match="another process has held it"):
        other.__enter__()
    with held(tmp_path / "lock", 0.0):
        pass
