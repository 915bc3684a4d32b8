"""What keeps overrides and audit: memory, files of one machine and etcd keep the same contract."""

import threading
import time

import pytest

from jarvis_flags.overrides import Override
from jarvis_flags.settings import FlagSettings
from jarvis_flags.source import MemorySource
from jarvis_otel.admin.audit import GENESIS, verify
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.memory_store import MemoryStore
from jarvis_otel.admin.opening import open_flags
from jarvis_otel.admin.outcome import OutcomeKind
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.admin.store import Note
from tests.etcd_cluster import EtcdCluster, Machine
from tests.otlp_sink import until

ANN, BOB = Author("ann", "cli", "because"), Author("bob", "web", "no")
FLAGS = """
flags:
  PLAIN: {enabled: false}
  DANGER: {enabled: false, dangerous: true}
  FOUR_EYES: {approvals: 2}
"""


@pytest.fixture(scope="session")
def one_node(tmp_path_factory):
    with EtcdCluster(tmp_path_factory.mktemp("etcd-one"), size=1) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "files", pytest.param("etcd", marks=pytest.mark.real)])
def opened(request, own_project, flag_file, tmp_path):
    """Opens the same store as another process would, with the flags that it changes."""
    flag_file(FLAGS)
    ends = []
    if request.param == "memory":
        source = MemorySource(open_flags(FlagSettings.load())[0].snapshot.definitions)
        pair = source, MemoryStore(source)

        def make(**_):
            return pair

    elif request.param == "files":

        def make(**more):
            source, store = open_flags(FlagSettings.load(), watch=True, **more)
            ends.append(source.close)
            return source, store

    else:
        cluster = request.getfixturevalue("one_node")

        def make(service=None):
            number = len(ends)
            machine = Machine(
                tmp_path / f"m{number}",
                cluster.urls,
                FLAGS,
                service=service or "m",
                prefix=f"{tmp_path}/",
            )
            ends.append(machine.close)
            return machine.source, machine.store

    yield make
    for end in ends:
        end()


def on(flag_id="PLAIN", **more):
    return lambda _: {flag_id: Override("on", **more)}


def off(flag_id="PLAIN"):
    return lambda _: {flag_id: Override("off")}


def test_a_new_store_has_no_overrides_and_no_audit(opened):
    _, store = opened()
    assert (store.read().revision, dict(store.read().overrides), store.history(), store.lines()) == (0, {}, [], [])


def test_a_change_is_in_the_state_and_in_the_audit_with_the_same_revision(opened):
    _, store = opened()
    (made,) = store.commit("enable", ANN, on(percentage=25.0), detail="slowly", request="r1")
    assert (made.who, made.via, made.action, made.flag, made.old, made.reason) == (
        "ann",
        "cli",
        "enable",
        "PLAIN",
        None,
        "because",
    )
    assert (made.new["state"], made.new["percentage"], made.outcome, made.revision) == ("on", 25, "applied", 1)
    assert (made.detail, made.request, made.prev) == ("slowly", "r1", GENESIS)
    stands = store.read()
    assert (stands.revision, stands.overrides["PLAIN"].by, stands.overrides["PLAIN"].at) == (1, "ann", made.at)
    assert store.history() == [made]


def test_several_flags_change_together_each_with_its_entry_and_removal_is_a_change(opened):
    _, store = opened()
    made = store.commit("panic", ANN, lambda _: {"PLAIN": Override("off"), "DANGER": Override("off")}, off_only=True)
    assert [(entry.flag, entry.revision) for entry in made] == [("PLAIN", 1), ("DANGER", 2)]
    (removed,) = store.commit("reset", BOB, lambda _: {"PLAIN": None})
    assert (removed.old["state"], removed.new, removed.revision) == ("off", None, 3)
    assert list(store.read().overrides) == ["DANGER"]
    assert list(verify(store.lines())) == []


def test_more_flags_than_one_transaction_of_etcd_has_parts_change_together(opened):
    _, store = opened()
    flags = [f"F{number}" for number in range(300)]
    made = store.commit("panic", ANN, lambda _: {flag: Override("off") for flag in flags}, off_only=True)
    assert [entry.flag for entry in made] == flags
    assert len(store.read().overrides) == 300
    assert len(store.history()) == 300
    assert list(verify(store.lines())) == []


def test_an_edit_sees_the_state_as_it_stands_and_what_it_raises_ends_the_change(opened):
    _, store = opened()
    store.commit("rollout", ANN, on(percentage=10.0))
    seen = []

    def edit(state):
        seen.append(state.overrides["PLAIN"].percentage)
        raise LookupError

    for off_only in (False, True):
        with pytest.raises(LookupError):
            store.commit("rollout", ANN, edit, off_only=off_only)
    assert set(seen) == {10.0}
    assert (store.read().revision, len(store.history())) == (1, 1)


def test_an_edit_that_changes_nothing_leaves_nothing(opened):
    _, store = opened()
    assert store.commit("reset", ANN, lambda _: {}) == []
    assert (store.read().revision, store.history()) == (0, [])


def test_notes_stand_in_the_audit_and_change_no_override(opened):
    _, store = opened()
    store.commit("enable", ANN, on())
    done = []
    (made,) = store.note(BOB, lambda: [Note("enable", "DANGER", "refused", "not now")], lambda: done.append(1))
    assert (made.outcome, made.detail, made.revision, made.who) == ("refused", "not now", 1, "bob")
    assert store.note(BOB, list, lambda: done.append(2)) == []
    assert done == [1, 2]
    assert store.read().revision == 1
    assert store.history()[-1] == made
    assert list(verify(store.lines())) == []


def test_changes_of_several_at_once_are_all_there_in_one_chain(opened):
    stores = [opened()[1] for _ in range(4)]
    failures = []

    def change(store, number):
        try:
            for step in range(10):
                store.commit("enable", Author(f"w{number}", "cli", str(step)), on(f"F{number}"))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=change, args=(store, number)) for number, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    history = stores[0].history()
    assert [entry.revision for entry in history] == list(range(1, 41))
    for number in range(4):
        assert [entry.reason for entry in history if entry.who == f"w{number}"] == list(map(str, range(10)))
    assert list(verify(stores[1].lines())) == []


def test_what_one_changes_the_others_evaluate(opened):
    (first, one), (second, two) = opened(), opened()
    one.commit("enable", ANN, on())
    until(lambda: "PLAIN" in second.reload().overrides.overrides)
    two.commit("disable", BOB, off(), off_only=True)
    until(lambda: first.reload().overrides.overrides["PLAIN"].state == "off")
    assert two.read().revision == 2
    until(lambda: one.read().revision == 2)


def test_of_two_admins_who_looked_at_the_same_state_one_gets_the_conflict(opened):
    (first, one), (second, two) = opened(), opened()
    ann, bob = FlagAdmin(first, one, seen_wait=0), FlagAdmin(second, two, seen_wait=0)
    seen = ann.state("PLAIN").version
    assert seen == bob.state("PLAIN").version
    assert ann.enable("PLAIN", ANN, expected=seen).applied
    refused = bob.rollout("PLAIN", 10, BOB, expected=seen)
    assert refused.kind is OutcomeKind.CONFLICT
    assert "by ann" in refused.message
    assert [entry.outcome for entry in one.history()] == ["applied", "refused"]


def test_a_request_is_approved_by_another_person_elsewhere(opened):
    (first, one), (second, two) = opened(), opened()
    ann, bob = FlagAdmin(first, one, seen_wait=0), FlagAdmin(second, two, seen_wait=0)
    asked = ann.enable("FOUR_EYES", ANN)
    assert asked.kind is OutcomeKind.NEEDS_APPROVAL
    assert ann.approve(asked.request, ANN).kind is OutcomeKind.REFUSED
    assert bob.approve(asked.request, BOB).applied
    assert bob.requests() == []
    until(lambda: "FOUR_EYES" in first.reload().overrides.overrides)


def test_an_override_that_lapses_is_gone_by_itself_and_the_next_change_begins_without_it(opened):
    source, store = opened()

    def value():
        return source.snapshot.evaluate("PLAIN", source.snapshot.request()).value

    store.commit("enable", ANN, on(expires_at=time.time() + 0.5))
    source.reload()
    assert value() is True
    assert "PLAIN" in store.read().overrides
    until(lambda: value() is False)
    until(lambda: "PLAIN" not in store.read().overrides)
    (made,) = store.commit("disable", BOB, off())
    assert made.old is None


def test_nothing_is_left_over_to_finish(opened):
    _, store = opened()
    store.commit("enable", ANN, on())
    store.recover()
    assert store.read().revision == 1


def test_the_processes_that_evaluate_the_flags_are_counted_with_what_they_have_applied(opened, request):
    if "memory" in request.node.name:
        pytest.skip("nobody else sees memory")
    _, store = opened(service="trading")
    until(lambda: any(seen.service == "trading" for seen in store.processes()))
    (made,) = store.commit("enable", ANN, on())
    until(lambda: any(seen.revision == made.revision for seen in store.processes()))
