"""Changing flags: FlagAdmin over real files, several processes, real kills, and the command line over it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jarvis_flags.overrides import OverrideSet, read_overrides
from jarvis_flags.settings import FlagSettings
from jarvis_flags.source import FileSource
from jarvis_otel import FeatureFlagManager
from jarvis_otel.admin.audit import verify
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.file_store import RESERVE_BYTES, FileStore
from jarvis_otel.admin.outcome import OutcomeKind
from jarvis_otel.admin.service import FlagAdmin
from tests.commands import jarvis

ME = Author("ann", "cli", "because")

FLAGS = """
flags:
  PLAIN: {enabled: false}
  DANGER: {enabled: false, dangerous: true}
  QUARTER: {rules: [{type: percentage, value: 25}]}
  SPLIT: {variants: {a: 1, b: 2}, default: a, rules: [{type: percentage, value: {a: 50, b: 50}}]}
  FOUR_EYES: {approvals: 2}
  BROKEN: {dangerous: true, rules: 5}
"""


@pytest.fixture
def state(own_project):
    return own_project / "var" / "flags"


@pytest.fixture
def admin(flag_file, state):
    flag_file(FLAGS)
    return FlagAdmin(FileSource(FlagSettings.load()), FileStore(state), seen_wait=0)


def test_a_change_is_audited_with_who_when_why_and_the_hash_of_the_entry_before(admin, state):
    admin.enable("PLAIN", ME)
    admin.disable("PLAIN", Author("tg:1", "telegram", "enough"))
    first, second = admin.history("PLAIN")
    assert (first.who, first.via, first.reason, first.old, first.new["state"]) == ("ann", "cli", "because", None, "on")
    assert (second.who, second.old["state"], second.new["state"], second.revision) == ("tg:1", "on", "off", 2)
    assert second.prev == first.hash
    assert list(verify(FileStore(state).lines())) == []
    assert read_overrides(state).revision == 2


@pytest.mark.parametrize("edit", ["edited", "cut", "rewritten"])
def test_an_audit_that_was_tampered_with_does_not_verify(admin, state, edit):
    for _ in range(3):
        admin.enable("PLAIN", ME)
    lines = (state / "audit.jsonl").read_bytes().splitlines()
    if edit == "edited":
        lines[1] = lines[1].replace(b"because", b"by accident")
    elif edit == "cut":
        del lines[1]
    else:
        lines[0], lines[1] = lines[1], lines[0]
    assert list(verify(lines))


def test_turning_on_a_dangerous_flag_needs_confirmation_and_off_never_does(admin):
    assert admin.enable("DANGER", ME).kind is OutcomeKind.NEEDS_CONFIRMATION
    assert admin.enable("DANGER", ME, confirmed=True).applied
    assert admin.disable("DANGER", ME).applied
    assert admin.reset("DANGER", ME).kind is OutcomeKind.NEEDS_CONFIRMATION
    assert admin.rollout("DANGER", 10, ME).kind is OutcomeKind.NEEDS_CONFIRMATION
    assert admin.rollout("DANGER", 0, ME).kind is OutcomeKind.NEEDS_CONFIRMATION, "it would lift the kill switch"
    admin.reset("DANGER", ME, confirmed=True)
    assert admin.rollout("DANGER", 0, ME).applied


def test_a_rollout_needs_confirmation_unless_it_lowers_every_percentage(flag_file, state):
    flag_file(
        """
        flags:
          M:
            dangerous: true
            rules:
              - {type: percentage, value: 50, priority: 10, segment: {attribute: plan, op: eq, value: pro}}
              - {type: percentage, value: 5}
          AP: {approvals: 2, rules: [{type: percentage, value: 50}]}
        """
    )
    admin = FlagAdmin(FileSource(FlagSettings.load()), FileStore(state), seen_wait=0)
    assert admin.rollout("M", 50, ME).kind is OutcomeKind.NEEDS_CONFIRMATION
    assert admin.rollout("M", 5, ME).applied
    assert admin.rollout("AP", 60, ME).kind is OutcomeKind.NEEDS_APPROVAL
    assert admin.rollout("AP", 0, ME).applied, "what only lowers needs no approval"


@pytest.mark.parametrize("text", ["\ud800", "\x00", "a\nb"])
def test_off_works_whatever_text_comes_with_it(admin, state, text):
    assert admin.disable("PLAIN", Author(text, text, text)).applied
    assert admin.disable(f"NO{text}", ME).kind is OutcomeKind.NOT_FOUND
    assert list(verify(FileStore(state).lines())) == []


def test_panic_does_not_claim_that_all_is_well_where_no_flag_is_known(own_project, state):
    admin = FlagAdmin(FileSource(FlagSettings.load()), FileStore(state), seen_wait=0)
    outcome = admin.panic(ME)
    assert outcome.kind is OutcomeKind.UNAVAILABLE
    assert "there is no such file" in outcome.message


def test_an_override_file_that_was_removed_lifts_no_kill_switch_and_comes_back(admin, flag_file, state):
    flag_file(FLAGS.replace("PLAIN: {enabled: false}", "PLAIN: {enabled: true}"))
    running = FileSource(FlagSettings.load())
    admin.disable("PLAIN", ME)
    running.reload()
    (state / "overrides.json").unlink()
    snapshot = running.reload()
    assert not snapshot.evaluate("PLAIN", snapshot.request()).on
    manager = FeatureFlagManager("config/flags.yaml")
    assert manager.is_enabled("PLAIN") is False
    assert read_overrides(state).overrides["PLAIN"].state == "off"
    manager.close()


def test_who_opens_the_flags_rolls_a_half_done_change_forward(admin, flag_file, state):
    flag_file(FLAGS.replace("PLAIN: {enabled: false}", "PLAIN: {enabled: true}"))
    admin.disable("QUARTER", ME)
    before = (state / "overrides.json").read_bytes()
    admin.disable("PLAIN", ME)
    (state / "overrides.json").write_bytes(before)
    assert json.loads(jarvis("eval", "PLAIN").stdout)["value"] is False


def test_dead_processes_leave_no_files_behind(admin, state):
    (state / "seen").mkdir(parents=True)
    (state / "seen" / "999999999.json").write_text(
        '{"pid": 999999999, "service": "x", "revision": 1, "pins": {}, "started": "1"}'
    )
    assert FileStore(state).processes() == []
    assert list((state / "seen").iterdir()) == []


def test_enabling_a_flag_with_a_percentage_says_that_it_stays_limited(admin):
    assert admin.enable("QUARTER", ME).message == "QUARTER is on, still limited to 25 %"
    admin.rollout("QUARTER", 40, ME)
    admin.disable("QUARTER", ME)
    assert admin.enable("QUARTER", ME).message == "QUARTER is on, still limited to 40 %"


def test_refusals_say_why_and_are_audited(admin):
    for outcome in (
        admin.rollout("SPLIT", 10, ME),
        admin.enable("BROKEN", ME, confirmed=True),
    ):
        assert outcome.kind is OutcomeKind.REFUSED
    assert admin.enable("PLIAN", ME).message == "no flag 'PLIAN'; did you mean PLAIN?"
    assert [entry.outcome for entry in admin.history()] == ["refused"] * 3
    assert admin.disable("BROKEN", ME).applied


def test_off_works_where_no_flag_file_can_be_read(admin, flag_file, state):
    flag_file("flags: [")
    blind = FlagAdmin(
        FileSource(FlagSettings.load({**os.environ, "JARVIS_FLAGS_FILE": "nowhere.yaml"})),
        FileStore(state),
        seen_wait=0,
    )
    assert blind.disable("ANYTHING", ME).applied


def test_panic_turns_every_dangerous_flag_off(admin):
    admin.enable("DANGER", ME, confirmed=True)
    outcome = admin.panic(ME)
    assert outcome.message.startswith("2 dangerous flags are off: DANGER, BROKEN")
    assert {entry.flag for entry in outcome.entries} == {"DANGER", "BROKEN"}


def test_a_read_only_state_directory_is_a_clear_refusal(admin, state, own_project):
    (own_project / "var").mkdir(exist_ok=True)
    if state.exists():
        for path in sorted(state.rglob("*"), reverse=True):
            path.unlink()
        state.rmdir()
    state.write_text("a file where the directory should be")
    outcome = admin.enable("PLAIN", ME)
    assert outcome.kind is OutcomeKind.UNAVAILABLE
    assert str(state) in outcome.message


def test_a_change_that_a_killed_process_left_half_done_is_rolled_forward(admin, state):
    admin.enable("PLAIN", ME)
    before = (state / "overrides.json").read_bytes()
    admin.disable("DANGER", ME)
    (state / "overrides.json").write_bytes(before)
    with (state / "audit.jsonl").open("ab") as audit:
        audit.write(b'{"at": "torn')
    admin.disable("QUARTER", ME)
    overrides = read_overrides(state)
    assert {flag: override.state for flag, override in overrides.overrides.items()} == {
        "PLAIN": "on",
        "DANGER": "off",
        "QUARTER": "off",
    }
    assert overrides.revision == 3
    assert list(verify(FileStore(state).lines())) == []


def test_a_corrupt_override_file_is_rebuilt_from_the_audit_by_the_next_change(admin, state):
    admin.enable("PLAIN", ME)
    (state / "overrides.json").write_bytes(b"garbage")
    admin.disable("DANGER", ME)
    assert {flag: o.state for flag, o in read_overrides(state).overrides.items()} == {"PLAIN": "on", "DANGER": "off"}


CHANGER = """
    import sys
    from jarvis_flags.settings import FlagSettings
    from jarvis_flags.source import FileSource
    from jarvis_otel.admin.author import Author
    from jarvis_otel.admin.service import FlagAdmin
    from jarvis_otel.admin.file_store import FileStore
    settings = FlagSettings.load()
    admin = FlagAdmin(FileSource(settings), FileStore(settings.flags_state_dir), seen_wait=0)
    author = Author(sys.argv[1], "api")
    for number in range(int(sys.argv[2])):
        change = admin.disable if number % 2 else admin.enable
        assert change(sys.argv[1], author).applied
        print(number, flush=True)
"""


def change(flag, times):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHANGER), flag, str(times)], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_that_change_flags_at_the_same_time_lose_no_change(admin, state):
    children = [change(flag, 1000) for flag in ("PLAIN", "QUARTER")]
    for child in children:
        child.communicate(timeout=120)
        assert child.returncode == 0
    store = FileStore(state)
    assert list(verify(store.lines())) == []
    assert read_overrides(state).revision == 2000
    assert [sum(entry.flag == flag for entry in store.history()) for flag in ("PLAIN", "QUARTER")] == [1000, 1000]


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_state_and_a_whole_chain(admin, state):
    acknowledged = 0
    for round_number in range(8):
        child = change("PLAIN", 10_000)
        child.stdout.readline()
        time.sleep(0.01 + 0.007 * round_number)
        child.send_signal(signal.SIGKILL)
        acknowledged += 1 + len(child.communicate()[0].splitlines())
    admin.disable("DANGER", ME)
    store = FileStore(state)
    assert list(verify(store.lines())) == []
    applied = [entry for entry in store.history() if entry.flag == "PLAIN"]
    assert len(applied) >= acknowledged
    assert read_overrides(state).overrides["PLAIN"].state == applied[-1].new["state"]


def test_a_process_that_hangs_is_waited_for_once_and_delays_no_off_after_it(admin, state):
    asked = []

    class Counted(FileStore):
        def processes(self):
            asked.append(1)
            return super().processes()

    code = "from jarvis_flags.settings import FlagSettings; from jarvis_flags.source import FileSource; import time; "
    code += "FileSource(FlagSettings.load(), watch=True, service='x'); print(flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        child.stdout.readline()
        deadline = time.monotonic() + 10
        while not FileStore(state).processes() and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGSTOP)
        waiting = FlagAdmin(FileSource(FlagSettings.load()), Counted(state), seen_wait=0.5)
        assert waiting.enable("PLAIN", ME).message.endswith("seen by 0 of 1 running processes")
        assert len(asked) > 1
        asked.clear()
        for _ in range(5):
            assert waiting.disable("PLAIN", ME).message.endswith("seen by 0 of 1 running processes")
        assert len(asked) == 5, "each looked once and waited for nothing"
    finally:
        child.kill()
        child.communicate()


def test_a_change_is_seen_by_the_running_processes_and_the_answer_says_so(admin, flag_file, state):
    code = """
        import time
        from jarvis_flags.settings import FlagSettings
        from jarvis_flags.source import FileSource
        source = FileSource(FlagSettings.load(), watch=True, service="trading")
        print("ready", flush=True)
        input()
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "FF_PLAIN": "false"},
    )
    child.stdout.readline()
    deadline = time.monotonic() + 10
    while not FileStore(state).processes() and time.monotonic() < deadline:
        time.sleep(0.01)
    waiting = FlagAdmin(FileSource(FlagSettings.load()), FileStore(state), seen_wait=10)
    message = waiting.enable("PLAIN", ME).message
    child.communicate("\n", timeout=30)
    assert (
        message
        == f"PLAIN is on for everyone; seen by 1 of 1 running processes; trading (pid {child.pid}) pins it: FF_PLAIN=false"
    )
    assert FileStore(state).processes() == []


@pytest.fixture
def small_disk(own_project):
    """A file system of its own under var/, so small that it can be filled."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    place = own_project / "var"
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this machine mounts no tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_on_a_full_disk_on_is_refused_with_a_reason_and_off_works(small_disk, admin, state):
    assert admin.enable("PLAIN", ME).applied
    filler = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(filler, b"x" * 4096)
    os.close(filler)
    outcome = admin.enable("QUARTER", ME)
    assert outcome.kind is OutcomeKind.UNAVAILABLE
    assert "No space left on device; nothing was changed" in outcome.message
    assert admin.disable("PLAIN", ME).applied
    assert admin.panic(ME).applied
    store = FileStore(state)
    assert list(verify(store.lines())) == []
    assert {flag: o.state for flag, o in read_overrides(state).overrides.items()} == {
        "PLAIN": "off",
        "DANGER": "off",
        "BROKEN": "off",
    }
    (small_disk / "filler").unlink()
    assert admin.enable("QUARTER", ME).applied


def test_on_a_disk_that_stays_full_off_works_again_and_again_from_the_very_first_change_on(small_disk, flag_file):
    flag_file("flags: {" + ", ".join(f"F{number}: {{enabled: true}}" for number in range(20)) + "}")
    manager = FeatureFlagManager.of_process()
    try:
        assert manager.is_enabled("F0")
        filler = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
        for number in range(20):
            with contextlib.suppress(OSError):
                while True:
                    os.write(filler, b"x" * 4096)
            assert manager.set_enabled(f"F{number}", False), number
        os.close(filler)
        assert not manager.set_enabled("F0", True)
        assert not any(manager.is_enabled(f"F{number}") for number in range(20))
        (small_disk / "filler").unlink()
        assert manager.set_enabled("F0", True)
        assert (small_disk / "flags" / "reserve").stat().st_size == RESERVE_BYTES, "there is room for the next time"
    finally:
        manager.close()


def test_evaluation_goes_on_where_the_state_directory_cannot_be_written(flag_file, own_project):
    flag_file(FLAGS)
    (own_project / "var").write_text("a file where the directory should be")
    manager = FeatureFlagManager("config/flags.yaml")
    assert manager.is_enabled("PLAIN") is False
    assert manager.set_enabled("PLAIN", True) is False
    manager.close()


def test_the_overrides_survive_the_round_trip_to_their_file():
    content = b'{"format": 1, "revision": 3, "overrides": {"A": {"state": "on", "percentage": 12.5, "by": "x"}}}'
    once = OverrideSet.from_bytes(content)
    assert OverrideSet.from_bytes(once.to_bytes()) == once


# --- the command line ---


def test_eval_prints_json_with_the_contracts_keys(flag_file):
    flag_file(FLAGS)
    done = jarvis("eval", "PLAIN", "--user", "42", "--attr", "plan=pro")
    answer = json.loads(done.stdout)
    assert list(answer) == ["flag", "value", "variant", "reason", "error_code", "metadata"]
    assert (answer["value"], answer["variant"], answer["reason"], done.returncode) == (False, "off", "STATIC", 0)


def test_eval_of_an_unknown_flag_gives_the_default_and_exits_1(flag_file):
    flag_file(FLAGS)
    done = jarvis("eval", "PLAINN", "--default", "true")
    answer = json.loads(done.stdout)
    assert (answer["value"], answer["error_code"], done.returncode) == (True, "FLAG_NOT_FOUND", 1)
    assert "did you mean PLAIN?" in done.stderr


def test_list_show_and_explain_speak_to_people_and_in_json(flag_file):
    flag_file(FLAGS)
    assert "QUARTER    25 %" in jarvis("list").stdout
    listed = json.loads(jarvis("list", "--format", "json").stdout)
    assert {entry["flag"]: entry["state"] for entry in listed}["DANGER"] == "off"
    assert "dangerous" in jarvis("show", "DANGER").stdout
    assert "7.1   rule percentage" in jarvis("explain", "QUARTER", "--user", "7").stdout
    assert jarvis("show", "NOWHERE").returncode == 1


def test_enable_of_a_dangerous_flag_needs_yes_and_disable_nothing(flag_file):
    flag_file(FLAGS)
    refused = jarvis("enable", "DANGER", "--reason", "go")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert json.loads(jarvis("eval", "DANGER").stdout)["value"] is False
    assert jarvis("enable", "DANGER", "--reason", "go", "--by", "ann", "--yes").returncode == 0
    assert json.loads(jarvis("eval", "DANGER").stdout)["value"] is True
    assert jarvis("disable", "DANGER").returncode == 0
    history = json.loads(jarvis("history", "DANGER", "--format", "json").stdout)
    assert [(e["who"], e["outcome"]) for e in history][:2] == [(history[0]["who"], "refused"), ("ann", "applied")]
    assert jarvis("audit", "--verify").returncode == 0


def test_rollout_and_reset(flag_file):
    flag_file(FLAGS)
    assert jarvis("rollout", "QUARTER", "50", "--reason", "half").stdout.startswith("QUARTER is on for 50 % of users")
    assert "QUARTER    50 %" in jarvis("list").stdout
    assert jarvis("reset", "QUARTER", "--reason", "back").stdout.startswith("QUARTER: the file decides again")
    for percent in ("101", "-1", "x", "nan", "0.0001"):
        done = jarvis("rollout", "QUARTER", "--", percent)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_bytes_that_are_no_text_are_no_traceback(flag_file):
    flag_file(FLAGS)
    odd = "\udcff"
    for arguments in (("disable", "PLAIN", "--reason", odd, "--by", odd), ("eval", "PLAIN", "--user", odd)):
        done = jarvis(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert jarvis("eval", odd).returncode == 1
    done = jarvis("eval", "PLAIN", FF_PLAIN=odd, JARVIS_ENVIRONMENT=odd)
    assert json.loads(done.stdout)["value"] is False


def test_a_variant_is_served_to_everyone(flag_file):
    flag_file(FLAGS)
    assert jarvis("enable", "SPLIT", "--variant", "b").stdout.startswith("SPLIT gives b to everyone")
    assert json.loads(jarvis("eval", "SPLIT").stdout)["value"] == 2
    assert jarvis("enable", "SPLIT", "--variant", "c").returncode == 1


@pytest.mark.parametrize(
    ("content", "arguments", "wanted"),
    [
        ("flags: [\n", ["list"], "jarvis: config/flags.yaml:2: not YAML"),
        (None, ["list"], "jarvis: config/flags.yaml: there is no such file"),
        ("flags: {}", ["eval"], "jarvis flags eval: the following arguments are required: FLAG"),
        ("flags: {}", ["nonsense"], "jarvis flags: argument COMMAND: invalid choice: 'nonsense'"),
        ("flags: {}", ["eval", "A", "--attr", "x"], "jarvis flags eval: argument --attr: got 'x', want NAME=VALUE"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_2(flag_file, content, arguments, wanted):
    if content is not None:
        flag_file(content)
    done = jarvis(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(wanted)
    assert done.stderr.count("\n") == 1


def test_bad_settings_are_one_line_and_exit_2(flag_file, own_project):
    flag_file(FLAGS)
    (own_project / "config" / "jarvis.yaml").write_text("log_levle: INFO\n")
    done = jarvis("list")
    assert done.returncode == 2
    assert "log_levle: unknown setting; did you mean log_level?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_lint_exits_2_where_a_flag_is_bad_and_0_otherwise(flag_file):
    flag_file(FLAGS)
    done = jarvis("lint")
    assert done.returncode == 2
    assert "flags.BROKEN.rules: got 5, want a list of rules" in done.stdout
    flag_file("flags: {A: {enabled: true}}")
    assert jarvis("lint").returncode == 0
