"""Flags on etcd: many machines on a real cluster whose members are killed, cut off and made to forget."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from openfeature import api
from openfeature.event import ProviderEvent

from jarvis_flags.overrides import Override, OverrideSet
from jarvis_flags.provider import YamlFlagProvider
from jarvis_flags.settings import EtcdSettings
from jarvis_flags.source import FileSource
from jarvis_otel.admin.audit import verify
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.outcome import OutcomeKind
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.etcd.client import EtcdClient
from jarvis_otel.etcd.etcd_store import open_etcd
from jarvis_otel.etcd.keys import Keys
from jarvis_otel.etcd.session import EtcdTurn, Session
from tests.etcd_cluster import EtcdCluster, LosesAnswers, Machine
from tests.otlp_sink import until

pytestmark = pytest.mark.real

ANN, BOB = Author("ann", "cli", "because"), Author("bob", "web", "no")
FLAGS = """
flags:
  PLAIN: {enabled: false}
  LIVE: {enabled: false, dangerous: true}
"""
ROOT = Path(__file__).parents[1]
_names = itertools.count()


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory):
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster):
    yield shared_cluster
    for node in shared_cluster.nodes:
        if node.process is not None:
            node.process.send_signal(signal.SIGCONT)
    shared_cluster.start()


@pytest.fixture
def machine(tmp_path):
    """Makes machines of one prefix of keys of the test's own, and ends them."""
    made = []
    prefix = f"/{os.getpid()}-{next(_names)}/"

    def make(urls, name=None, **options):
        options = {"prefix": prefix, **options}
        made.append(Machine(tmp_path / (name or f"m{len(made)}"), urls, FLAGS, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def admin(machine, **more):
    return FlagAdmin(machine.source, machine.store, seen_wait=0, **more)


def turn(store, number, flag="PLAIN"):
    """Makes one change of many, of which each tells its number."""
    state = "on" if number % 2 else "off"
    return store.commit("enable", Author("ann", "cli", str(number)), lambda _: {flag: Override(state)})


def whole(machine, revision):
    """Whether the audit is one unbroken chain to a revision, with nothing lost and nothing twice."""
    history = machine.store.history()
    assert list(verify(machine.store.lines())) == []
    assert [entry.revision for entry in history if entry.outcome == "applied"] == list(range(1, revision + 1))
    return history


def followed(machine):
    """Notes the revisions that a machine's flags pass through, in their order."""
    seen = []
    machine.source.subscribe(lambda change: seen.append(change.new.overrides.revision))
    return seen


def test_each_of_fifty_watchers_sees_each_of_many_changes_in_their_order(cluster, machine):
    watchers = [machine(cluster.urls) for _ in range(50)]
    seen = [followed(watcher) for watcher in watchers]
    writer = machine(cluster.urls, watch=False)
    for number in range(1, 61):
        turn(writer.store, number)
    until(lambda: all(watcher.revision == 60 for watcher in watchers), 60)
    for revisions in seen:
        assert revisions == sorted(revisions)
        assert revisions[-1] == 60
    whole(watchers[7], 60)
    until(lambda: [one.revision for one in writer.store.processes()] == [60] * 50, 30)


def test_a_thousand_changes_of_several_writers_are_one_chain_and_all_end_in_the_same_state(cluster, machine):
    writers = [machine(cluster.urls) for _ in range(4)]
    failures = []

    def write(one, name):
        try:
            for number in range(250):
                turn(one.store, number, flag=f"F{name}-{number % 5}")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(one, name)) for name, one in enumerate(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    until(lambda: all(one.revision == 1000 for one in writers))
    history = whole(writers[0], 1000)
    for name in range(4):
        mine = [int(entry.reason) for entry in history if entry.flag.startswith(f"F{name}-")]
        assert mine == list(range(250))
    assert len({str(one.source.snapshot.overrides.to_bytes()) for one in writers}) == 1


@pytest.mark.parametrize("who", ["leader", "follower", "all"])
def test_after_members_were_killed_no_change_is_lost_and_all_machines_go_on(cluster, machine, who):
    machines = [machine(cluster.urls) for _ in range(4)]
    seen = [followed(one) for one in machines]
    stopping, confirmed, failures = threading.Event(), [], []

    def write():
        for number in itertools.count(1):
            if stopping.is_set():
                return
            try:
                confirmed.extend(turn(machines[0].store, number))
            except Exception as error:
                failures.append(str(error))
            time.sleep(0.01)

    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: len(confirmed) > 20)
    nodes = cluster.nodes if who == "all" else [cluster.leader() if who == "leader" else cluster.follower()]
    for node in nodes:
        node.kill()
    before = len(confirmed)
    if who != "all":
        until(lambda: len(confirmed) > before + 20, 30)
    else:
        until(lambda: any(one.source.snapshot.store == "stale" for one in machines), 30)
    cluster.start()
    until(lambda: len(confirmed) > before + 40, 40)
    stopping.set()
    thread.join(30)
    until(lambda: all(one.source.snapshot.store == "ready" for one in machines))
    last = machines[0].store.history()[-1].revision
    until(lambda: all(one.revision == last for one in machines), 40)
    history = whole(machines[1], last)
    known = {entry.hash for entry in history}
    assert all(entry.hash in known for entry in confirmed), "what was confirmed is there"
    if who == "follower":
        assert failures == []
    for revisions in seen:
        assert revisions == sorted(revisions)


def test_a_watcher_that_was_away_while_history_was_compacted_reads_anew(cluster, machine):
    away, writer = machine(cluster.urls), machine(cluster.urls)
    turn(writer.store, 1)
    until(lambda: away.revision == 1)
    for node in cluster.nodes:
        node.kill()
    until(lambda: away.source.snapshot.store == "stale")
    away.close()
    cluster.start()
    for number in range(2, 12):
        turn(writer.store, number)
    revision = cluster.ask("kv/range", {"key": "YQ=="})["header"]["revision"]
    cluster.ask("kv/compaction", {"revision": revision, "physical": True})
    again = machine(cluster.urls, name="m0")
    assert again.revision == 11
    turn(writer.store, 12)
    until(lambda: again.revision == 12)


def test_an_older_backup_that_was_restored_is_followed_and_said(machine, tmp_path, caplog):
    with EtcdCluster(tmp_path / "own", size=1) as own:
        running, writer = machine(own.urls), machine(own.urls, watch=False)
        node = own.nodes[0]
        turn(writer.store, 1)
        node.stop()
        shutil.copytree(node.home / "data", tmp_path / "backup")
        own.start()
        for number in range(2, 8):
            turn(writer.store, number)
        until(lambda: running.revision == 7)
        node.stop()
        shutil.rmtree(node.home / "data")
        shutil.copytree(tmp_path / "backup", node.home / "data")
        own.start()
        until(lambda: running.revision == 1, 30)
        assert "etcd has the flags of revision 1, this machine knew 7: was a backup restored?" in caplog.text
        again = machine(own.urls, name="m1")
        assert again.revision == 1
        turn(again.store, 2)
        until(lambda: running.revision == 2)
        until(lambda: running.source.snapshot.store == "ready")
        whole(running, 2)


def test_a_watch_from_a_compacted_revision_is_begun_anew_by_itself(cluster, machine):
    one, writer = machine(cluster.urls), machine(cluster.urls, watch=False)
    turn(writer.store, 1)
    until(lambda: one.revision == 1)
    feed = one.source._feed
    # the stream ends, and by the time it would be resumed its place is gone
    with feed._applying:
        for number in range(2, 6):
            turn(writer.store, number)
        revision = cluster.ask("kv/range", {"key": "YQ=="})["header"]["revision"]
        cluster.ask("kv/compaction", {"revision": revision, "physical": True})
        feed._stream.stop()
        time.sleep(0.2)
    until(lambda: one.revision == 5)
    turn(writer.store, 6)
    until(lambda: one.revision == 6)


def test_of_two_admins_on_one_flag_one_gets_the_conflict(cluster, machine):
    first, second = machine(cluster.urls), machine(cluster.urls)
    ann, bob = admin(first), admin(second)
    version = ann.state("PLAIN").version
    outcomes = []
    threads = [
        threading.Thread(target=lambda one=one, who=who: outcomes.append(one.enable("PLAIN", who, expected=version)))
        for one, who in ((ann, ANN), (bob, BOB))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.kind for outcome in outcomes) == [OutcomeKind.APPLIED, OutcomeKind.CONFLICT]


@pytest.mark.parametrize("lost", [1, 10**6])
def test_a_change_whose_answer_was_lost_is_made_once_and_known_where_somebody_answers(cluster, machine, lost):
    with LosesAnswers(cluster.urls[0], "kv/txn", lost) as way:
        one = machine([way.url] if lost > 1 else [way.url, *cluster.urls], watch=False)
        one.store._client._endpoints.sort(key=lambda url: url != way.url)
        outcome = admin(one).enable("PLAIN", ANN)
        other = machine(cluster.urls, watch=False)
        history = whole(other, 1)
        if lost == 1:
            assert outcome.applied
            assert [entry.hash for entry in history] == [outcome.entries[0].hash]
        else:
            assert outcome.kind is OutcomeKind.UNAVAILABLE
            assert "whether the change was made is not known" in outcome.message


@pytest.mark.parametrize("lost", [1, 10**6])
def test_off_whose_answer_was_lost_is_in_the_audit_once(cluster, machine, lost):
    with LosesAnswers(cluster.urls[0], "kv/txn", lost) as way:
        one = machine([way.url], name="a", watch=False)
        outcome = admin(one).disable("LIVE", BOB)
        assert outcome.applied
        assert [entry.outcome for entry in outcome.entries] == ["applied" if lost == 1 else "pending"]
    again = machine(cluster.urls, name="a", watch=False)
    assert again.source._feed.pending() == []
    assert [entry.who for entry in whole(again, 1)] == ["bob"]


def test_without_etcd_evaluation_goes_on_also_after_a_restart_and_turning_on_is_refused(machine, tmp_path):
    with EtcdCluster(tmp_path / "own", size=1) as own:
        one = machine(own.urls, name="a")
        assert admin(one).enable("LIVE", ANN, confirmed=True).applied
        assert one.source.snapshot.evaluate("LIVE", one.source.snapshot.request()).value is True
        own.nodes[0].kill()
        until(lambda: one.source.snapshot.store == "stale")
        assert one.source.snapshot.evaluate("LIVE", one.source.snapshot.request()).value is True
        one.close()
        again = machine(own.urls, name="a")
        assert again.source.snapshot.store == "stale"
        assert again.source.snapshot.evaluate("LIVE", again.source.snapshot.request()).value is True
        refused = admin(again).enable("PLAIN", ANN)
        assert refused.kind is OutcomeKind.UNAVAILABLE
        assert "etcd does not answer" in refused.message
        assert "nothing was changed" in refused.message
        assert [entry.flag for entry in admin(again).history()] == ["LIVE"], "the past is known without etcd"
        own.start()
        until(lambda: again.source.snapshot.store == "ready")
        assert admin(again).enable("PLAIN", ANN).applied
        whole(again, 2)


def test_a_machine_that_never_reached_etcd_keeps_dangerous_flags_off(machine):
    one = machine(["http://127.0.0.1:9"])
    value = one.source.snapshot.evaluate("LIVE", one.source.snapshot.request())
    assert value.value is False
    assert one.source.snapshot.overrides_broken is not None
    assert one.source.snapshot.store == "stale"


def test_off_works_at_once_on_its_machine_survives_it_and_is_written_back_once(machine, tmp_path):
    with EtcdCluster(tmp_path / "own", size=1) as own:
        here, elsewhere = machine(own.urls, name="a"), machine(own.urls, name="b")
        assert admin(here).enable("LIVE", ANN, confirmed=True).applied
        assert admin(here).rollout("PLAIN", 25, ANN).applied
        until(lambda: elsewhere.revision == 2)
        own.nodes[0].process.send_signal(signal.SIGSTOP)
        until(lambda: here.source.snapshot.store == "stale", 30)
        neighbour = machine(own.urls, name="a")
        off = threading.Thread(target=lambda: outcomes.append(admin(here).panic(BOB)))
        outcomes = []
        off.start()
        until(lambda: here.state("LIVE") == "off")
        until(lambda: neighbour.state("LIVE") == "off")
        off.join()
        assert outcomes[0].applied
        assert "on this machine only" in outcomes[0].message
        assert [entry.outcome for entry in outcomes[0].entries] == ["pending"]
        assert admin(here).disable("PLAIN", BOB).applied
        assert elsewhere.state("LIVE") == "on"
        here.close()
        neighbour.close()
        again = machine(own.urls, name="a")
        assert (again.state("LIVE"), again.state("PLAIN")) == ("off", "off"), "a restart loses nothing"
        own.nodes[0].process.send_signal(signal.SIGCONT)
        until(lambda: elsewhere.state("LIVE") == "off", 30)
        until(lambda: elsewhere.state("PLAIN") == "off", 30)
        history = whole(elsewhere, 4)
        assert [(e.action, e.flag, e.who) for e in history[2:]] == [
            ("panic", "LIVE", "bob"),
            ("disable", "PLAIN", "bob"),
        ]
        assert "written back" in history[-1].detail
        assert history[-1].new["percentage"] == 25
        until(lambda: not again.source._feed.pending())
        assert sorted((entry.flag, entry.outcome) for entry in again.told) == [
            ("LIVE", "applied"),
            ("PLAIN", "applied"),
        ]


def test_a_killed_process_leaves_its_off_to_whoever_comes_next(machine, tmp_path):
    with EtcdCluster(tmp_path / "own", size=1) as own:
        one = machine(own.urls, name="a", watch=False)
        assert admin(one).enable("LIVE", ANN, confirmed=True).applied
        own.nodes[0].process.send_signal(signal.SIGSTOP)
        code = f"""
            from tests.etcd_cluster import Machine
            from tests.test_etcd import BOB, FLAGS, admin
            one = Machine({str(tmp_path / "a")!r}, {list(own.urls)!r}, FLAGS, watch=False, prefix={one.settings.etcd.prefix!r})
            print("open", flush=True)
            admin(one).disable("LIVE", BOB)
        """
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, env=environ
        )
        try:
            process.stdout.readline()
            until(lambda: one.source._feed.pending() != [])
        finally:
            process.kill()
            process.communicate()
        own.nodes[0].process.send_signal(signal.SIGCONT)
        until(lambda: own.leads(own.nodes[0]) is not None)
        again = machine(own.urls, name="a", watch=False)
        history = whole(again, 2)
        assert (history[-1].flag, history[-1].who, history[-1].new["state"]) == ("LIVE", "bob", "off")
        assert again.source._feed.pending() == []


def test_off_wins_over_what_others_turned_on_while_its_machine_was_cut_off(machine, tmp_path):
    with EtcdCluster(tmp_path / "own", size=1) as own:
        cut, other = machine(own.urls, name="a", watch=False), machine(own.urls, name="b", watch=False)
        # its way to etcd is gone, etcd itself is there
        cut.store._client._endpoints = ["http://127.0.0.1:9"]
        assert "on this machine only" in admin(cut).disable("LIVE", BOB).message
        assert admin(other).enable("LIVE", ANN, confirmed=True).applied
        cut.store._client._endpoints = list(own.urls)
        cut.store.recover()
        assert [entry.new["state"] for entry in whole(other, 2)] == ["on", "off"]


def test_the_provider_goes_stale_then_error_and_is_ready_again(machine, tmp_path):
    with EtcdCluster(tmp_path / "own", size=1) as own:
        settings = machine(own.urls, name="a", watch=False).settings
        feed, _ = open_etcd(settings, heartbeat=0.3, grace=2.0)
        source = FileSource(settings, watch=True, feed=feed)
        provider = YamlFlagProvider(source=source)
        api.set_provider_and_wait(provider, "etcd-test")
        client = api.get_client("etcd-test")
        events = []
        for event in (ProviderEvent.PROVIDER_STALE, ProviderEvent.PROVIDER_ERROR, ProviderEvent.PROVIDER_READY):
            client.add_handler(event, lambda details, event=event: events.append((event, details.message)))
        until(lambda: len(events) == 1)
        own.nodes[0].kill()
        until(lambda: [event for event, _ in events[1:]] == [ProviderEvent.PROVIDER_STALE])
        assert client.get_boolean_value("PLAIN", True) is False
        until(lambda: events[-1][0] is ProviderEvent.PROVIDER_ERROR)
        assert client.get_boolean_value("PLAIN", True) is False
        own.start()
        until(lambda: events[-1][0] is ProviderEvent.PROVIDER_READY)
        assert "etcd does not answer" in events[1][1]
        api.shutdown()
        source.close()


def test_a_forked_child_follows_by_itself(cluster, machine):
    one, writer = machine(cluster.urls), machine(cluster.urls, watch=False)
    turn(writer.store, 1)
    until(lambda: one.revision == 1)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            os.write(write, b"1")
            until(lambda: one.revision == 2)
            until(lambda: os.getpid() in [seen.pid for seen in one.store.processes()])
            os.write(write, b"2")
        finally:
            os._exit(0)
    os.close(write)
    try:
        assert os.read(read, 1) == b"1"
        turn(writer.store, 2)
        until(lambda: one.revision == 2)
        assert os.read(read, 1) == b"2"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)


def test_an_override_lapses_on_machines_whose_clocks_are_wrong(cluster, machine, tmp_path):
    """A clock an hour ahead would have it lapse at once, one an hour behind would keep it for an hour."""
    here = machine(cluster.urls)
    code = f"""
        import sys, time
        from tests.etcd_cluster import Machine
        from tests.test_etcd import FLAGS
        one = Machine(sys.argv[1], {list(cluster.urls)!r}, FLAGS, prefix={here.settings.etcd.prefix!r})
        print(time.time(), flush=True)
        last = None
        began = time.monotonic()
        while time.monotonic() < began + 60 and last != ["on", None]:
            snapshot = one.source.snapshot
            on = snapshot.evaluate("PLAIN", snapshot.request()).value
            state = ("on" if on else None)
            if last is None and on: last = ["on"]; print("on", flush=True)
            if last == ["on"] and not on: last = ["on", None]; print("off", flush=True)
            time.sleep(0.02)
        one.close()
    """
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    machines = {}
    for name, skew in (("ahead", "+1h"), ("behind", "-1h")):
        command = ["faketime", "-f", skew, sys.executable, "-c", textwrap.dedent(code), str(tmp_path / name)]
        machines[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    try:
        clocks = {name: float(process.stdout.readline()) - time.time() for name, process in machines.items()}
        assert clocks["ahead"] > 3000
        assert clocks["behind"] < -3000
        assert admin(here).enable("PLAIN", ANN, lasts=3.0).applied
        for process in machines.values():
            assert process.stdout.readline() == "on\n"
        until(lambda: here.source.snapshot.evaluate("PLAIN", here.source.snapshot.request()).value is False)
        for process in machines.values():
            assert process.stdout.readline() == "off\n"
    finally:
        for process in machines.values():
            process.kill()
            process.communicate()
    until(lambda: "PLAIN" not in here.store.read().overrides)


def test_a_lease_that_a_new_leader_made_longer_is_ended_by_who_knows_that_its_time_is_over(cluster, machine):
    one, other = machine(cluster.urls), machine(cluster.urls)
    assert admin(one).enable("PLAIN", ANN, lasts=600.0).applied
    until(lambda: other.state("PLAIN") == "on")
    feed = one.source._feed
    until(lambda: "PLAIN" in feed.shared.lasting)
    # its own time is over, while etcd's goes on
    known = feed.known()
    over = replace(known.overrides.overrides["PLAIN"], lapses_at=time.time() - 1)
    feed._newest = replace(known, overrides=OverrideSet(known.overrides.revision, {"PLAIN": over}))
    until(lambda: other.state("PLAIN") is None)
    until(lambda: "PLAIN" not in other.store.read().overrides)


def test_what_only_one_does_is_done_by_one_and_taken_over_when_it_ends(cluster):
    keys = Keys(f"/turn-{os.getpid()}/")
    clients = [EtcdClient(EtcdSettings(endpoints=cluster.urls)) for _ in range(2)]
    sessions = [Session(client, keys) for client in clients]
    first, second = (
        EtcdTurn("alerts", client, keys, session) for client, session in zip(clients, sessions, strict=True)
    )
    assert first.take()
    assert not second.take()
    assert first.take()
    first.give_up()
    assert second.take()
    assert not first.take()
    sessions[1].close()  # as when its lease ran out
    assert first.take()
    for session, client in zip(sessions, clients, strict=True):
        session.close()
        client.close()


def test_the_state_that_is_gone_from_etcd_lifts_no_switch(cluster, machine):
    import base64

    one = machine(cluster.urls)
    assert admin(one).disable("LIVE", ANN).applied
    key = base64.b64encode(one.store._keys.state).decode()
    cluster.ask("kv/deleterange", {"key": key})
    until(lambda: one.source.snapshot.store != "ready")
    assert one.state("LIVE") == "off"
    refused = admin(one).enable("PLAIN", ANN)
    assert refused.kind is OutcomeKind.UNAVAILABLE
    assert "restore a backup" in refused.message
