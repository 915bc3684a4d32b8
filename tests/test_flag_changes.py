"""Changing flags together: roles, reasons, approvals, conflicts, pins, promotion, reverting, and edits by hand."""

import json
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_flags.overrides import Override, read_overrides
from jarvis_flags.request import Request
from jarvis_flags.settings import FlagSettings
from jarvis_flags.source import FileSource
from jarvis_otel import FeatureFlagManager
from jarvis_otel.admin.audit import verify
from jarvis_otel.admin.author import Author, Role
from jarvis_otel.admin.file_store import FileStore
from jarvis_otel.admin.outcome import OutcomeKind
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.admin.store import Note
from tests.commands import jarvis
from tests.otlp_sink import until

ANN, BOB, EVE = (Author(who, "cli", f"{who} wants it") for who in ("ann", "bob", "eve"))
EDITOR = Author("ed", "web", "why not", Role.EDITOR)
VIEWER = Author("vi", "web", "why not", Role.VIEWER)

FLAGS = """
flags:
  PLAIN: {enabled: false}
  ON: {enabled: true}
  DANGER: {enabled: false, dangerous: true}
  QUARTER: {rules: [{type: percentage, value: 25}]}
  FOUR_EYES: {approvals: 2}
  SIX_EYES: {approvals: 3, dangerous: true}
"""


@pytest.fixture
def state(own_project):
    return own_project / "var" / "flags"


@pytest.fixture
def admin(flag_file, state):
    flag_file(FLAGS)
    return new_admin(state)


def new_admin(state, **more):
    return FlagAdmin(FileSource(FlagSettings.load()), FileStore(state), seen_wait=0, **more)


def is_on(admin, flag, user=None):
    snapshot = admin.source.reload()
    return snapshot.evaluate(flag, Request(user, snapshot.environment)).on


# --- roles, reasons, conflicts ---


def test_viewers_change_nothing_and_editors_only_what_is_not_dangerous(admin, state):
    for change in (admin.enable, admin.disable, admin.toggle, admin.reset, admin.promote):
        assert change("PLAIN", VIEWER).kind is OutcomeKind.REFUSED
    assert admin.panic(VIEWER).kind is OutcomeKind.REFUSED
    assert read_overrides(state).overrides == {}
    assert admin.enable("PLAIN", EDITOR).applied
    assert admin.enable("DANGER", EDITOR, confirmed=True).kind is OutcomeKind.REFUSED
    assert admin.disable("DANGER", EDITOR).applied, "everyone but viewers may turn anything off"
    assert admin.reset("DANGER", EDITOR, confirmed=True).kind is OutcomeKind.REFUSED
    assert admin.panic(EDITOR).applied
    assert admin.promote("PLAIN", EDITOR).kind is OutcomeKind.REFUSED


def test_a_dangerous_flag_is_not_turned_on_without_a_reason_and_off_needs_none(admin):
    silent = Author("ann", "cli")
    assert admin.enable("DANGER", silent, confirmed=True).kind is OutcomeKind.NEEDS_REASON
    assert admin.enable("DANGER", Author("ann", "cli", "  "), confirmed=True).kind is OutcomeKind.NEEDS_REASON
    assert admin.disable("DANGER", silent).applied
    assert admin.enable("PLAIN", silent).applied
    assert admin.enable("DANGER", Author("bot", "api"), confirmed=True).applied, "a program's reason is its code"


def test_every_flag_needs_a_reason_where_the_settings_say_so(flag_file, own_project):
    flag_file(FLAGS)
    (own_project / "config" / "jarvis.yaml").write_text("reason_required: always\n")
    refused = jarvis("enable", "PLAIN")
    assert (refused.returncode, "add --reason" in refused.stderr) == (2, True)
    assert jarvis("disable", "PLAIN").returncode == 0
    assert jarvis("enable", "PLAIN", "--reason", "now").returncode == 0


def test_the_second_of_two_who_look_at_the_same_flag_sees_the_conflict(admin, state):
    seen = admin.state("PLAIN").version
    other = new_admin(state)
    assert other.enable("PLAIN", BOB, expected=other.state("PLAIN").version).applied
    outcome = admin.rollout("PLAIN", 10, ANN, expected=seen)
    assert outcome.kind is OutcomeKind.CONFLICT
    assert outcome.message.startswith("PLAIN was changed meanwhile by bob at ")
    assert "it is on now" in outcome.message
    assert admin.disable("PLAIN", ANN).applied, "off never conflicts"
    assert admin.history("PLAIN")[1].outcome == "refused"


def test_an_edit_of_the_file_is_a_conflict_too(admin, flag_file):
    seen = admin.state("PLAIN").version
    flag_file(FLAGS.replace("PLAIN: {enabled: false}", "PLAIN: {enabled: false, dangerous: true}"))
    admin.source.reload()
    assert admin.enable("PLAIN", ANN, confirmed=True, expected=seen).kind is OutcomeKind.CONFLICT


def test_a_change_that_pins_stand_against_everywhere_is_kept_and_says_so(flag_file, state, monkeypatch):
    flag_file(FLAGS)
    monkeypatch.setenv("FF_PLAIN", "false")
    admin = new_admin(state)
    outcome = admin.enable("PLAIN", ANN)
    assert outcome.kind is OutcomeKind.PINNED
    assert outcome.applied
    assert admin.disable("PLAIN", ANN).kind is OutcomeKind.APPLIED, "off beats every pin"


# --- approvals ---


def test_a_flag_of_two_approvals_takes_two_different_people(admin, state):
    asked = admin.enable("FOUR_EYES", ANN)
    assert asked.kind is OutcomeKind.NEEDS_APPROVAL
    assert asked.message.endswith(f"jarvis flags approve {asked.request}")
    assert not is_on(admin, "FOUR_EYES")
    assert admin.approve(asked.request, ANN).kind is OutcomeKind.REFUSED
    assert admin.approve(asked.request, VIEWER).kind is OutcomeKind.REFUSED
    done = new_admin(state).approve(asked.request, BOB)
    assert done.applied
    assert "asked for by ann, approved by bob" in done.message
    assert is_on(admin, "FOUR_EYES")
    entry = admin.history("FOUR_EYES")[-1]
    assert (entry.who, entry.request, entry.reason) == ("bob", asked.request, "bob wants it")
    assert admin.approve(asked.request, EVE).kind is OutcomeKind.NOT_FOUND
    assert list(verify(FileStore(state).lines())) == []


def test_three_approvals_count_each_person_once(admin):
    asked = admin.rollout("SIX_EYES", 50, ANN, confirmed=True)
    first = admin.approve(asked.request, BOB)
    assert first.kind is OutcomeKind.NEEDS_APPROVAL
    assert "2 of 3" in first.message
    assert admin.approve(asked.request, BOB).kind is OutcomeKind.REFUSED
    assert [request.people for request in admin.requests()] == [("ann", "bob")]
    assert admin.approve(asked.request, EVE).applied
    assert admin.requests() == []


def test_two_who_approve_at_the_same_time_leave_nothing_that_nobody_can_finish(admin, state):
    asked = admin.enable("SIX_EYES", ANN, confirmed=True)
    store = FileStore(state)
    for who in (BOB, BOB, EVE):
        # as it is where each read the audit before the other wrote into it
        store.note(who, lambda: [Note("enable", "SIX_EYES", "approved", request=asked.request)])
    assert [request.people for request in admin.requests()] == [("ann", "bob", "eve")]
    assert admin.approve(asked.request, BOB).applied


def test_a_request_is_void_once_the_flag_changed_and_off_needs_no_approval(admin):
    asked = admin.enable("FOUR_EYES", ANN)
    assert admin.disable("FOUR_EYES", EVE).applied
    assert admin.approve(asked.request, BOB).kind is OutcomeKind.NOT_FOUND
    assert not is_on(admin, "FOUR_EYES")


def test_a_request_can_be_denied_and_taken_back(admin):
    asked = admin.enable("FOUR_EYES", ANN)
    assert admin.deny(asked.request, BOB).applied
    assert admin.requests() == []
    entry = admin.history("FOUR_EYES")[-1]
    assert (entry.outcome, entry.detail, entry.request) == ("refused", "denied by bob", asked.request)


def test_what_was_asked_for_an_hour_lasts_an_hour_from_the_approval(admin, state):
    asked = admin.enable("FOUR_EYES", ANN, lasts=3600)
    time.sleep(0.05)
    before = time.time()
    assert admin.approve(asked.request, BOB).applied
    lapses = read_overrides(state).overrides["FOUR_EYES"].expires_at
    assert before + 3599.9 < lapses < time.time() + 3600.1


def test_approvals_work_from_the_command_line(flag_file):
    flag_file(FLAGS)
    asked = jarvis("enable", "FOUR_EYES", "--by", "ann", "--reason", "go", "--format", "json")
    answer = json.loads(asked.stdout)
    assert (asked.returncode, answer["outcome"]) == (1, "needs_approval")
    listed = jarvis("approvals", "--format", "json")
    assert [(r["request"], r["people"], r["wanted"]) for r in json.loads(listed.stdout)] == [
        (answer["request"], ["ann"], 2)
    ]
    assert answer["request"] in jarvis("approvals").stdout
    assert jarvis("approve", answer["request"], "--by", "ann").returncode == 1
    assert jarvis("approve", answer["request"], "--by", "bob").returncode == 0
    assert json.loads(jarvis("eval", "FOUR_EYES").stdout)["value"] is True
    assert jarvis("approvals").returncode == 1


# --- promote, revert, lapse ---


PROMOTABLE = """
# what the flags are
flags:
  PLAIN: {enabled: false}          # a plain one
  WITH_ENVIRONMENTS:
    enabled: false
    environment_defaults: {dev: true, prod: false}
  QUARTER:
    rules:
      - {type: user_ids, value: ["7"], priority: 9}
      - {type: percentage, value: 25}   # of all
  NAMED: {rules: [{type: user_ids, value: ["7"]}]}
  SPLIT: {variants: {a: 1, b: 2}, default: a, rules: [{type: percentage, value: {a: 50, b: 50}}]}
"""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flag=st.sampled_from(["PLAIN", "WITH_ENVIRONMENTS", "QUARTER", "NAMED", "SPLIT"]),
    action=st.one_of(
        st.just(("enable", {})),
        st.just(("disable", {})),
        st.just(("enable", {"variant": "b"})),
        st.tuples(st.just("rollout"), st.fixed_dictionaries({"percent": st.sampled_from([0, 12.5, 60, 100])})),
    ),
)
def test_promote_gives_everyone_what_they_had_and_keeps_the_comments(flag_file, state, flag, action):
    flag_file(PROMOTABLE)
    admin = new_admin(state)
    admin.reset(flag, ANN)
    name, how = action
    getattr(admin, name)(flag, author=ANN, **how)
    override = read_overrides(state).overrides.get(flag)
    users = [None, "7", *(f"someone{number}" for number in range(300))]

    def answers():
        snapshot = admin.source.reload()
        results = [snapshot.evaluate(flag, Request(user, snapshot.environment)) for user in users]
        return [(result.on, result.value) for result in results]

    before = answers()
    outcome = admin.promote(flag, ANN)
    assert answers() == before
    if outcome.applied:
        assert flag not in read_overrides(state).overrides
        text = admin.source.settings.flags_file.read_text()
        assert all(comment in text for comment in ("# what the flags are", "# a plain one"))
        promoted = [entry for entry in admin.history(flag) if entry.action == "promote"]
        assert [entry.outcome for entry in promoted[-2:]] in (
            ["written", "applied"],
            ["applied"],
            ["applied", "applied"],
        )
        assert {entry.who for entry in promoted} == {"ann"}
    else:
        assert read_overrides(state).overrides.get(flag) == override
        assert outcome.kind is OutcomeKind.INVALID


def test_promote_says_where_there_is_nothing_to_write(admin):
    assert admin.promote("PLAIN", ANN).message == "nothing was set for PLAIN at run time: there is nothing to write"


def test_what_somebody_else_set_meanwhile_is_not_written_into_the_file(admin, flag_file):
    admin.disable("ON", ANN)
    admin.source.reload()
    looked_at = admin.state("ON").version
    admin.enable("ON", BOB)
    admin.source.reload()
    assert admin.promote("ON", ANN, expected=looked_at).kind is OutcomeKind.CONFLICT
    assert admin.promote("ON", ANN, expected=admin.state("ON").version).applied


def test_what_was_confirmed_for_an_hour_is_not_written_into_the_file_for_ever(admin):
    admin.enable("DANGER", ANN, confirmed=True, lasts=3600)
    outcome = admin.promote("DANGER", ANN)
    assert (outcome.kind, "is on only until" in outcome.message) == (OutcomeKind.REFUSED, True)
    admin.enable("DANGER", ANN, confirmed=True)
    assert admin.promote("DANGER", ANN).applied


def test_revert_sets_what_was_set_at_any_point_of_the_history(admin, state):
    admin.rollout("QUARTER", 40, ANN)
    admin.rollout("QUARTER", 60, ANN)
    admin.disable("QUARTER", BOB)
    admin.reset("QUARTER", BOB)
    for revision, wanted in ((1, ("on", 40)), (2, ("on", 60)), (3, ("off", 60)), (4, None), (1, ("on", 40)), (0, None)):
        assert admin.revert("QUARTER", revision, EVE).applied
        override = read_overrides(state).overrides.get("QUARTER")
        assert (override and (override.state, override.percentage)) == wanted
    assert admin.revert("QUARTER", 99, EVE).kind is OutcomeKind.INVALID
    assert list(verify(FileStore(state).lines())) == []


def test_to_revert_a_dangerous_flag_to_on_needs_confirmation_and_to_off_nothing(admin):
    admin.enable("DANGER", ANN, confirmed=True)
    admin.disable("DANGER", ANN)
    assert admin.revert("DANGER", 1, BOB).kind is OutcomeKind.NEEDS_CONFIRMATION
    assert admin.revert("DANGER", 1, BOB, confirmed=True).applied
    assert admin.revert("DANGER", 2, Author("bob", "cli")).applied


def test_what_has_lapsed_is_not_set_again_by_a_revert(admin, state):
    admin.rollout("QUARTER", 40, ANN, lasts=0.05)
    time.sleep(0.1)
    assert not is_on(admin, "PLAIN")
    admin.reset("QUARTER", ANN)
    assert admin.revert("QUARTER", 1, ANN).applied
    assert "QUARTER" not in read_overrides(state).overrides


# --- the flag file, edited by hand ---


def test_an_edit_by_hand_is_in_the_audit_field_by_field(flag_file):
    flag_file(FLAGS)
    jarvis("list")
    edited = FLAGS.replace("PLAIN: {enabled: false}", "PLAIN: {enabled: true, owner: me}")
    flag_file(edited.replace("  ON: {enabled: true}\n", "  NEW: {}\n"))
    entries = {e["flag"]: e for e in json.loads(jarvis("history", "--format", "json").stdout)}
    assert {flag: (e["who"], e["via"], e["outcome"], e["old"], e["new"]) for flag, e in entries.items()} == {
        "PLAIN": ("file", "file", "written", {"enabled": False}, {"enabled": True, "owner": "me"}),
        "NEW": ("file", "file", "written", None, {"enabled": False}),
        "ON": ("file", "file", "written", {"enabled": True}, None),
    }
    assert "enabled: false → true" in jarvis("history", "PLAIN").stdout
    assert jarvis("audit", "--verify").returncode == 0
    assert json.loads(jarvis("history", "PLAIN", "--format", "json").stdout) == [entries["PLAIN"]], "noted once"


def test_a_flag_made_by_a_command_is_that_persons_and_not_an_edit_by_hand(flag_file):
    flag_file(FLAGS)
    assert jarvis("create", "MADE", "--by", "ann", "--reason", "new").returncode == 0
    entries = json.loads(jarvis("history", "--format", "json").stdout)
    assert [(e["flag"], e["who"], e["action"], e["reason"]) for e in entries] == [("MADE", "ann", "create", "new")]


def test_running_processes_note_an_edit_once_between_them(flag_file, state):
    flag_file(FLAGS)
    code = """
        from jarvis_otel import FeatureFlagManager
        manager = FeatureFlagManager("config/flags.yaml")
        manager.is_enabled("PLAIN")
        print("ready", flush=True)
        input()
    """
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    try:
        for child in children:
            child.stdout.readline()
        values = []
        for number in range(10):
            values.append({"owner": f"owner{number}"})
            flag_file(FLAGS.replace("PLAIN: {enabled: false}", f"PLAIN: {{enabled: false, owner: owner{number}}}"))
            until(lambda: any(e.new == values[-1] for e in FileStore(state).history()), 10)
    finally:
        for child in children:
            child.communicate("\n", timeout=30)
    assert [entry.new for entry in FileStore(state).history()] == values
    assert list(verify(FileStore(state).lines())) == []


def test_a_manager_that_may_not_write_its_state_goes_on_without_a_word(flag_file, own_project):
    flag_file(FLAGS)
    (own_project / "var").write_text("a file where the directory should be")
    manager = FeatureFlagManager("config/flags.yaml")
    assert manager.is_enabled("ON")
    flag_file(FLAGS.replace("ON: {enabled: true}", "ON: {enabled: false}"))
    until(lambda: not manager.is_enabled("ON"), 10)
    manager.close()


# --- many at once ---


def test_many_who_change_flags_at_once_lose_nothing_and_every_refusal_is_explained(flag_file, state):
    flag_file(FLAGS)
    code = """
        import sys
        from jarvis_flags.settings import FlagSettings
        from jarvis_flags.source import FileSource
        from jarvis_otel.admin.author import Author
        from jarvis_otel.admin.service import FlagAdmin
        from jarvis_otel.admin.file_store import FileStore
        settings = FlagSettings.load()
        admin = FlagAdmin(FileSource(settings), FileStore(settings.flags_state_dir), seen_wait=0)
        who, times = sys.argv[1], int(sys.argv[2])
        author = Author(who, "api", "stress")
        applied = 0
        for number in range(times):
            flag = ("PLAIN", "ON", "QUARTER")[number % 3]
            version = admin.state(flag).version
            outcome = (admin.enable if number % 2 else admin.disable)(flag, author, **({"expected": version} if number % 2 else {}))
            applied += outcome.applied
            assert outcome.applied or (outcome.kind == "conflict" and "changed meanwhile" in outcome.message), outcome
        print(applied)
    """
    people, times, commands = 4, 250, 12
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), f"p{number}", str(times)], stdout=subprocess.PIPE, text=True
        )
        for number in range(people)
    ]
    for number in range(commands):
        assert jarvis("rollout", "QUARTER", str(number), "--by", f"c{number}").returncode == 0
    counts = [int(child.communicate(timeout=120)[0]) for child in children]
    assert all(child.returncode == 0 for child in children)
    store = FileStore(state)
    history = store.history()
    for number, count in enumerate(counts):
        mine = [entry for entry in history if entry.who == f"p{number}"]
        assert len([entry for entry in mine if entry.outcome == "applied"]) == count
        assert len(mine) == times
    assert len([entry for entry in history if entry.via == "cli"]) == commands
    assert list(verify(store.lines())) == []
    final = {}
    for entry in history:
        if entry.outcome == "applied":
            final[entry.flag] = None if entry.new is None else Override.from_dict(entry.new)
    assert read_overrides(state).overrides == {flag: override for flag, override in final.items() if override}


# --- what stands in the way ---


def test_where_the_audit_cannot_be_read_each_change_says_so_and_none_raises(admin, state):
    admin.disable("DANGER", ANN)
    (state / "audit.jsonl").unlink()
    (state / "audit.jsonl").mkdir()
    (state / "overrides.json").write_text("garbage")
    changes = [
        admin.enable("PLAIN", ANN, expected="x"),
        admin.disable("PLAIN", ANN),
        admin.toggle("PLAIN", ANN),
        admin.rollout("QUARTER", 10, ANN),
        admin.reset("PLAIN", ANN),
        admin.revert("PLAIN", 0, ANN),
        admin.approve("abc", ANN),
        admin.deny("abc", ANN),
        admin.panic(ANN),
    ]
    assert {outcome.kind for outcome in changes} == {OutcomeKind.UNAVAILABLE}
    assert all("audit.jsonl: cannot be" in outcome.message for outcome in changes)


def test_a_panic_that_knows_no_flag_stands_in_the_audit(own_project, state):
    admin = new_admin(state)
    assert admin.panic(ANN).kind is OutcomeKind.UNAVAILABLE
    assert [(entry.action, entry.outcome) for entry in admin.history()] == [("panic", "refused")]


def test_a_flag_that_was_written_just_now_can_be_turned_off_at_once(admin, flag_file):
    flag_file(FLAGS + "  NEW: {enabled: true}\n")
    assert admin.disable("NEW", ANN).applied


def test_a_request_is_void_once_the_flag_file_says_something_else_of_the_flag(admin, flag_file):
    request = admin.enable("FOUR_EYES", ANN).request
    admin.note_file()
    flag_file(
        FLAGS.replace("FOUR_EYES: {approvals: 2}", "FOUR_EYES: {approvals: 2, environment_defaults: {dev: true}}")
    )
    admin.source.reload()
    admin.note_file()
    assert admin.approve(request, BOB).kind is OutcomeKind.NOT_FOUND


def test_of_an_approval_and_a_denial_at_the_same_time_one_holds(admin, state):
    for _ in range(15):
        request = admin.enable("FOUR_EYES", ANN).request
        barrier, ended = threading.Barrier(2), {}

        def answer(name, barrier=barrier, ended=ended, request=request):
            other = new_admin(state)
            barrier.wait()
            ended[name] = getattr(other, name)(request, BOB).applied

        threads = [threading.Thread(target=answer, args=(name,)) for name in ("approve", "deny")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ended.values()) == [False, True], ended
        assert is_on(admin, "FOUR_EYES") is ended["approve"]
        assert admin.requests() == []
        if ended["approve"]:
            admin.disable("FOUR_EYES", ANN)
            admin.reset("FOUR_EYES", ANN)
            admin.source.reload()
            for left in admin.requests():
                admin.deny(left.id, ANN)


def test_an_off_for_a_while_lifts_no_kill_switch_of_a_dangerous_flag(admin, state, flag_file):
    flag_file(FLAGS.replace("DANGER: {enabled: false", "DANGER: {enabled: true"))
    admin = new_admin(state)
    admin.disable("DANGER", ANN)
    outcome = admin.disable("DANGER", EDITOR, lasts=60)
    assert outcome.applied
    assert "it does not lapse" in outcome.message
    assert admin.state("DANGER").override.expires_at is None
    admin.disable("ON", ANN)
    assert "until" in admin.disable("ON", EDITOR, lasts=60).message, "an editor may turn it on anyway"
