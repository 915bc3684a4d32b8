"""`jarvis flags` beside looking and changing: create, simulate, stale, and the audit held against the logs."""

import json
import os
import subprocess
import sys
import time

import pytest

from jarvis_flags.model import FlagDefinition, RolloutRule
from jarvis_otel import FeatureFlagManager
from tests.commands import jarvis

FLAGS = """\
# the team's flags
version: "1.0"
flags:
  QUARTER:            # keep me
    rules:
      - {type: percentage, value: 25}
  OLD: {enabled: true, created_at: 2020-01-01, owner: ann}
  GONE: {expires_at: 2020-01-01}
"""


def test_simulate_says_who_gets_what_now_and_who_would_move(flag_file):
    flag_file(FLAGS)
    answer = json.loads(jarvis("simulate", "QUARTER", "--users", "1000", "--rollout", "50", "--format", "json").stdout)
    now, proposed = answer["now"]["on"], answer["proposed"]["on"]
    assert 200 < now < 300
    assert 400 < proposed < 600
    assert len(answer["moved"]) == proposed - now, "raising a percentage moves nobody out"
    assert {move["to"] for move in answer["moved"]} == {"on"}


def test_simulate_takes_users_from_a_file_and_another_flag_file(flag_file, own_project):
    flag_file(FLAGS)
    jarvis("list")
    last_good = (own_project / "var" / "flags" / "last_good.json").read_bytes()
    (own_project / "users.txt").write_text("ann\nbob\n\n")
    flag_file(FLAGS.replace("value: 25", "value: 100"), "other.yaml")
    answer = jarvis("simulate", "QUARTER", "--users", "users.txt", "--file", "config/other.yaml")
    assert "2 of 2 users move" in answer.stdout or "1 of 2 users move" in answer.stdout
    assert "100.0 %" in answer.stdout
    assert (own_project / "var" / "flags" / "last_good.json").read_bytes() == last_good, "asking changes nothing"


@pytest.mark.parametrize(
    "arguments",
    [
        ("QUARTER", "--users", "nowhere.txt"),
        ("QUARTER", "--users", "5", "--rollout", "200"),
        ("QUARTER", "--users", "5", "--file", "nowhere.yaml"),
        ("QUARTER",),
    ],
)
def test_a_mistake_in_simulate_is_one_line_and_exit_2(flag_file, arguments):
    flag_file(FLAGS)
    done = jarvis("simulate", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_stale_names_expired_flags_settled_ones_and_those_that_no_code_names(flag_file, own_project):
    flag_file(FLAGS)
    code = own_project / "src"
    code.mkdir()
    (code / "app.py").write_text("is_enabled('QUARTER'); is_enabled('GONE')")
    done = jarvis("stale", "--code", "src", "--format", "json")
    assert json.loads(done.stdout) == {
        "OLD": ["the same for everyone since 2020-01-01", "no file in src names it"],
        "GONE": ["expired on 2020-01-01"],
    }
    assert done.returncode == 0
    assert jarvis("stale", "--code", "nowhere").returncode == 2


def test_stale_names_flags_that_the_logs_do_not_know(flag_file, own_project):
    flag_file("flags:\n  USED: {}\n  UNUSED: {}\n")
    (own_project / "logs").mkdir()
    line = {
        "timestamp": "2026-11-22T10:00:00.000000Z",
        "level": "INFO",
        "flags": {"USED": "off"},
        "active_flags": [],
        "context": {},
    }
    (own_project / "logs" / "jarvis-2026-11-22.jsonl").write_text(json.dumps(line) + "\n")
    done = jarvis("stale", "--days", "36500", "--format", "json")
    assert json.loads(done.stdout) == {"UNUSED": ["not evaluated since 2026-11-22"]}


def test_create_writes_a_flag_and_keeps_the_comments_of_the_file(flag_file):
    path = flag_file(FLAGS)
    done = jarvis("create", "NEW_UI", "--name", "New UI", "--owner", "ui", "--rollout", "10", "--dangerous")
    assert done.returncode == 0, done.stderr
    text = path.read_text()
    assert text.startswith(FLAGS.rstrip("\n"))
    shown = json.loads(jarvis("show", "NEW_UI", "--format", "json").stdout)
    assert (shown["state"], shown["definition"]["dangerous"], shown["definition"]["owner"]) == ("10 %", True, "ui")
    again = jarvis("create", "NEW_UI")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)


def test_the_first_flag_of_a_project_makes_its_directory_and_file(own_project):
    (own_project / "config").rmdir()
    done = jarvis("create", "NEW_UI", "--enabled")
    assert (done.returncode, done.stdout) == (0, f"NEW_UI was written into {own_project}/config/flags.yaml\n")
    assert json.loads(jarvis("show", "NEW_UI", "--format", "json").stdout)["state"] == "on"


def test_a_flag_that_cannot_be_written_is_told_of_in_one_line_with_the_cure(own_project):
    (own_project / "taken").write_text("no directory")
    done = jarvis("create", "NEW_UI", JARVIS_FLAGS_FILE="taken/flags.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"jarvis: NEW_UI was not created: {own_project}/taken: cannot be written: File exists; "
        "make room for it, or name another file by flags_file\n"
    )


def test_a_manager_creates_saves_and_loads_flags_in_files(flag_file, own_project):
    path = flag_file(FLAGS)
    manager = FeatureFlagManager(path)
    assert manager.create_flag(FlagDefinition(id="MINE", rules=[RolloutRule("user_ids", ["ann"])]))
    assert manager.is_enabled("MINE", user_id="ann")
    assert not manager.create_flag(FlagDefinition(id="MINE"))
    assert "# keep me" in path.read_text()
    manager.save_to_file(own_project / "copy.yaml")
    manager.close()
    copy = FeatureFlagManager()
    copy.load_from_file(own_project / "copy.yaml")
    assert copy.is_enabled("MINE", user_id="ann")
    assert [flag.id for flag in copy.list_flags()] == ["QUARTER", "OLD", "GONE", "MINE"]


def test_the_audit_is_held_against_the_log_of_changes(flag_file, own_project):
    flag_file(FLAGS)
    jarvis("enable", "QUARTER", "--by", "ann")
    (entry,) = json.loads(jarvis("history", "--format", "json").stdout)
    (own_project / "logs").mkdir()

    def logged(*hashes):
        lines = [
            {
                "timestamp": "2026-11-23T10:00:00.000000Z",
                "level": "INFO",
                "message": "QUARTER: file → on by ann",
                "active_flags": [],
                "event": "jarvis.flag.changed",
                "context": {"jarvis.change.audit_hash": found},
            }
            for found in hashes
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (own_project / "logs" / "jarvis-2026-11-23.jsonl").write_text(text)

    logged(entry["hash"])
    assert jarvis("audit", "--verify", "--logs").returncode == 0
    logged(entry["hash"], "0" * 64)
    done = jarvis("audit", "--verify", "--logs")
    assert done.returncode == 1
    assert "tells of a change that is not in the audit: QUARTER: file → on by ann" in done.stdout


@pytest.mark.parametrize(
    ("variant", "kind"),
    [
        ("123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw-", "a Telegram bot token"),
        ("postgres://bob:hunter22@db/prod", "a password in a URL"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("{api_key: abcdef}", "something under a name that secrets have"),
    ],
)
def test_lint_refuses_secrets_in_flags(flag_file, variant, kind):
    value = variant if variant.startswith("{") else json.dumps(variant)
    flag_file(f"flags:\n  TOKEN_REFRESH_ENABLED: {{}}\n  F: {{variants: {{a: {value}}}}}\n")
    done = jarvis("lint")
    assert done.returncode == 2
    assert f"looks like {kind}" in done.stdout
    assert done.stdout.count("\n") == 1


def test_lint_warns_where_a_dangerous_flag_is_on_by_default_in_the_code(flag_file, own_project):
    flag_file("flags:\n  D: {dangerous: true}\n  F: {}\n")
    code = own_project / "src"
    code.mkdir()
    (code / "app.py").write_text(
        '\nflags.is_enabled("D", default=True)\nflags.is_enabled("F", True)\nis_enabled("D")\n'
    )
    done = jarvis("lint", "--code", "src")
    assert (done.returncode, done.stdout) == (0, "src/app.py:2: D is dangerous, and on by default here\n")


def test_an_override_may_lapse_by_itself(flag_file):
    flag_file(FLAGS)
    assert jarvis("disable", "OLD", "--for", "1h").returncode == 0
    assert json.loads(jarvis("eval", "OLD").stdout)["value"] is False
    assert jarvis("disable", "OLD", "--for", "1s").returncode == 0
    deadline = time.monotonic() + 30
    while json.loads(jarvis("eval", "OLD").stdout)["value"] is False and time.monotonic() < deadline:
        pass
    assert json.loads(jarvis("eval", "OLD").stdout)["value"] is True
    assert jarvis("disable", "OLD", "--for", "soon").returncode == 2


def test_a_pin_that_cannot_be_read_is_audited(flag_file):
    flag_file(FLAGS)
    code = "from jarvis_otel import configure; configure('trading', console=False)"
    environ = {**os.environ, "FF_OLD": "maybe", "OTEL_LOGS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert "FF_OLD='maybe' cannot be read" in done.stderr
    (entry,) = json.loads(jarvis("history", "OLD", "--format", "json").stdout)
    assert (entry["outcome"], entry["who"], entry["action"]) == ("refused", "trading", "pin")


def test_a_fault_in_the_settings_keeps_nobody_from_turning_off_and_turns_nothing_on(flag_file, own_project):
    flag_file(FLAGS.replace("GONE:", "LIVE: {dangerous: true, enabled: true}\n  GONE:"))
    (own_project / "config" / "jarvis.yaml").write_text("alert_interval: many\n")
    for arguments in (("disable", "OLD"), ("rollout", "QUARTER", "5"), ("panic",)):
        done = jarvis(*arguments)
        assert done.returncode == 0, done.stderr
        assert "alert_interval: got 'many'" in done.stderr
    for arguments in (("enable", "OLD"), ("toggle", "OLD"), ("rollout", "QUARTER", "50"), ("reset", "OLD")):
        assert jarvis(*arguments, "--yes").returncode == 2
    (own_project / "config" / "jarvis.yaml").unlink()
    for flag_id in ("OLD", "LIVE"):
        assert json.loads(jarvis("eval", flag_id).stdout)["value"] is False
