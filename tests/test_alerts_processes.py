"""`jarvis alerts` as people run it: real processes, a real audit, real receivers, and kills in between."""

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from jarvis_otel.admin.author import Author
from jarvis_otel.admin.file_store import FileStore
from jarvis_otel.admin.store import Note
from tests.alert_sink import TOKEN, AlertProcess, AlertSink, shown
from tests.commands import jarvis
from tests.otlp_sink import until
from tests.ports import free_port

FLAGS = """\
version: "1.0"
flags:
  NEW_UI: {enabled: false}
  OTHER: {enabled: false}
  LIVE: {enabled: false, dangerous: true}
  TWO: {enabled: false, approvals: 2}
"""
CHATS = {"ALERT_WEBHOOKS": "", "ALERT_TELEGRAM_CHATS": "42", "TELEGRAM_TOKEN": TOKEN}
SECRET = "T0SECRETPATH/B0SECRETHOOK"


@pytest.fixture
def sink():
    with AlertSink() as sink:
        yield sink


@pytest.fixture
def alerts(own_project, flag_file, sink):
    """Starts `jarvis alerts`, by default with one webhook and of changes and approvals."""
    flag_file(FLAGS)
    started = []

    def start(*arguments, **settings):
        settings = {
            "ALERTS": "flag_changed,approval",
            "ALERT_WEBHOOKS": f"{sink.url}/{SECRET}",
            "ALERT_INTERVAL": "1",
        } | settings
        environ = {**os.environ, "OTEL_LOGS_EXPORTER": "none"}
        environ |= {f"JARVIS_{name}": value for name, value in settings.items()}
        started.append(AlertProcess(own_project, environ, *arguments))
        return started[-1]

    yield start
    for process in started:
        process.__exit__()


def change(flag="NEW_UI", action="disable", *, reason="because", by="ann"):
    done = jarvis(action, flag, "--reason", reason, "--by", by, "--yes")
    assert done.returncode in (0, 1), done.stderr  # 1: it waits for approval
    return done


def texts(sink):
    return [detail["title"] + " " + detail["text"] for body in sink.bodies for detail in body["details"]]


def test_a_change_by_the_command_line_and_one_of_the_file_are_told_once_each(alerts, sink, flag_file):
    process = alerts().on_duty()
    change("NEW_UI", "enable", reason="go live")
    flag_file(FLAGS.replace("OTHER: {enabled: false}", "OTHER: {enabled: true}"))
    sink.wait_for(2)
    time.sleep(1.5)
    assert sink.count == 2
    by_flag = {detail["flag"]: detail for body in sink.bodies for detail in body["details"]}
    assert by_flag["NEW_UI"]["title"] == "NEW_UI: file → on"
    assert by_flag["NEW_UI"]["text"] == "by ann (enable, cli): go live"
    assert by_flag["NEW_UI"]["details"]["who"] == "ann"
    assert by_flag["OTHER"]["title"] == "OTHER: enabled: false → true"
    assert by_flag["OTHER"]["details"]["via"] == "file"
    assert process.stop() == 0
    assert process.status["running"] is False
    assert process.status["sinks"][0]["alerts"] == 2


def test_a_request_for_approval_is_told_with_the_command_that_answers_it(alerts, sink):
    alerts().on_duty()
    change("TWO", "enable", reason="two of us")
    (body,) = sink.wait_for(1)
    assert (body["kind"], body["flag"], body["severity"]) == ("approval", "TWO", "warning")
    request = body["details"][0]["details"]["request"]
    assert f"jarvis flags approve {request}" in body["text"]
    assert change_of(request) == "TWO"


def change_of(request):
    entries = [entry for entry in FileStore(state_dir()).history() if entry.id == request]
    return entries[0].flag


def state_dir():
    return Path(os.environ["JARVIS_HOME"]) / "var" / "flags"


def note_many(numbers, flag="NEW_UI"):
    """Entries of the audit by the real store, without a process for each."""
    store = FileStore(state_dir())
    for number in numbers:
        store.note(
            Author("ann", "cli", f"n{number}"),
            lambda: [Note("edit", flag, "written", old={"enabled": False}, new={"enabled": True})],
        )


def numbers_told(sink):
    return [int(number) for text in texts(sink) for number in re.findall(r": n(\d+)$", text)]


def test_a_restart_repeats_nothing_and_misses_nothing(alerts, sink):
    first = alerts().on_duty()
    note_many([1])
    sink.wait_for(1)
    until(lambda: first.status["sinks"][0]["alerts"] == 1)
    assert first.stop() == 0
    note_many([2, 3])
    second = alerts().on_duty()
    note_many([4])
    sink.wait_for(4)
    time.sleep(1.5)
    assert sorted(numbers_told(sink)) == [1, 2, 3, 4]
    second.stop()


def test_kills_at_any_moment_miss_nothing_and_repeat_at_most_what_was_under_way(alerts, sink):
    told = 0
    alerts().on_duty().kill()
    for round_ in range(6):
        process = alerts().on_duty()
        note_many(range(told, told + 3))
        told += 3
        # at another moment each time: while gathering, while sending, after it
        time.sleep(0.3 * round_)
        process.kill()
    alerts().on_duty()
    until(lambda: set(numbers_told(sink)) == set(range(told)))
    time.sleep(1.5)
    assert max(Counter(numbers_told(sink)).values()) <= 3


def test_a_kill_before_the_answer_is_known_repeats_that_message_and_no_other(alerts, sink):
    process = alerts().on_duty()
    note_many([1])
    sink.wait_for(1)
    until(lambda: process.status["sinks"][0]["alerts"] == 1)

    def kill(path, body):
        process.kill()
        return 200, {}, b"{}"

    sink.answer = kill
    note_many([2])
    sink.wait_for(2)
    sink.answer = lambda path, body: (200, {}, b"{}")
    alerts().on_duty()
    sink.wait_for(3)
    time.sleep(1.5)
    assert numbers_told(sink) == [1, 2, 2]
    assert sink.bodies[1]["id"] == sink.bodies[2]["id"] != sink.bodies[0]["id"]


def test_another_process_takes_over_when_the_one_on_duty_is_killed(alerts, sink):
    first = alerts().on_duty()
    second = alerts()
    until(lambda: "telling of" in second.said)
    note_many([1])
    sink.wait_for(1)
    assert first.status["pid"] == first.process.pid
    first.kill()
    note_many([2])
    second.on_duty()
    sink.wait_for(2)
    time.sleep(1.2)
    assert sorted(set(numbers_told(sink))) == [1, 2]


def test_a_receiver_that_is_down_gets_all_of_it_later_and_the_others_do_not_wait(alerts, sink):
    port = free_port()
    process = alerts(ALERT_WEBHOOKS=f"{sink.url}/a,http://127.0.0.1:{port}/{SECRET}").on_duty()
    note_many([1, 2])
    sink.wait_for(2)
    down = {}

    def is_down():
        down.update({one["sink"]: one for one in process.status["sinks"]})
        one = down[f"http://127.0.0.1:{port}/…"]
        return one["failures"] >= 2 and one["waiting"] == 2

    until(is_down)
    assert down[f"http://127.0.0.1:{port}/…"]["problem"] == "Connection refused"
    assert "they wait, and are tried again" in process.said
    with AlertSink(port) as back:
        note_many([3])
        back.wait_for(3)
        assert sorted(set(numbers_told(back))) == [1, 2, 3]
        until(lambda: "get through again" in process.said)
        process.stop()
    assert sum(one["problem"] == "" for one in process.status["sinks"]) == 2


def test_a_flood_of_changes_becomes_few_messages_with_the_right_count(alerts, sink):
    process = alerts().on_duty()
    store = FileStore(state_dir())
    for start in range(0, 5_000, 100):
        store.note(
            Author("ann", "cli", "flood"),
            lambda start=start: [
                Note("edit", f"F{start + number}", "written", old={"enabled": False}, new={"enabled": True})
                for number in range(100)
            ],
        )
    change("NEW_UI", "disable", reason="the last one")
    sink.wait_for(5_001)
    time.sleep(1.5)
    assert sink.count == 5_001
    assert len(sink.bodies) <= 8
    assert all(len(body["details"]) <= 20 for body in sink.bodies)
    assert max(len(json.dumps(body)) for body in sink.bodies) < 64_000
    assert "before them" in sink.bodies[0]["text"]
    assert process.status["sinks"][0]["left_out"] == 5_001 - sum(len(body["details"]) for body in sink.bodies)
    assert "told only as a number" in process.said


def test_telegram_gets_html_that_it_takes_and_429_is_obeyed(alerts, sink):
    moments = []

    def answer(path, body):
        moments.append(time.monotonic())
        if len(moments) == 1:
            said = {
                "ok": False,
                "error_code": 429,
                "description": "Too Many Requests",
                "parameters": {"retry_after": 3},
            }
            return 429, {}, json.dumps(said).encode()
        return 200, {}, b'{"ok": true}'

    sink.answer = answer
    alerts(
        ALERT_WEBHOOKS="",
        ALERT_TELEGRAM_CHATS="42,-1001",
        TELEGRAM_TOKEN=TOKEN,
        TELEGRAM_API_URL=f"{sink.url}/bot",
    ).on_duty()
    change("NEW_UI", "disable", reason="<b>a & b</i> \x1b[31m\u202e", by="<ann>")
    until(lambda: len(sink.bodies) == 2)
    assert {body["chat_id"] for body in sink.bodies} == {42, -1001}
    assert {path for path, _, _, _ in sink.requests} == {f"/bot{TOKEN}/sendMessage"}
    assert len(moments) == 3
    assert moments[2] - moments[0] >= 3
    for body in sink.bodies:
        assert "by <ann> (disable, cli): <b>a & b</i> \\x1b[31m\\u202e" in shown(body)


def test_secrets_are_nowhere_but_in_the_requests(alerts, sink, own_project):
    def answer(path, body):
        # a receiver that repeats what it was asked
        return 500, {}, f"cannot serve {path} for bot {TOKEN}".encode()

    sink.answer = answer
    process = alerts(
        ALERT_TELEGRAM_CHATS="42",
        TELEGRAM_TOKEN=TOKEN,
        TELEGRAM_API_URL=f"{sink.url}/bot",
        ALERT_WEBHOOKS=f"{sink.url.replace('//', '//me:hushhush@')}/{SECRET}?key=querysecret",
    ).on_duty()
    note_many([1])
    change("NEW_UI", "disable", reason="password=hunter2hunter2")
    until(lambda: process.status and all(one["failures"] for one in process.status["sinks"]))
    assert process.stop() == 0
    sent = {header.get("authorization") for _, header, _, _ in sink.requests}
    assert "Basic bWU6aHVzaGh1c2g=" in sent
    written = [path for path in own_project.rglob("*") if path.is_file() and "flags" not in path.parts]
    kept = b"\n".join(path.read_bytes() for path in written) + process.said.encode()
    for secret in (TOKEN, TOKEN.split(":")[1], *SECRET.split("/"), "querysecret", "hushhush", "bWU6aHVzaGh1c2g"):
        assert secret.encode() not in kept, secret
    assert "hunter2" not in json.dumps([body for _, _, body, _ in sink.requests])
    assert "hunter2" not in (own_project / "var/alerts/state.json").read_text()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (own_project / "var" / "alerts").iterdir()}
    assert modes == {0o640}
    assert stat.S_IMODE((own_project / "var" / "alerts").stat().st_mode) == 0o750


def test_the_test_says_what_came_of_each_receiver(own_project, flag_file, sink):
    flag_file(FLAGS)
    port = free_port()
    environ = {
        **os.environ,
        "JARVIS_ALERT_WEBHOOKS": f"{sink.url}/{SECRET},http://127.0.0.1:{port}/{SECRET}",
        "JARVIS_ALERT_TELEGRAM_CHATS": "42",
        "JARVIS_TELEGRAM_TOKEN": TOKEN,
        "JARVIS_TELEGRAM_API_URL": f"{sink.url}/bot",
    }

    def run(*arguments, **more):
        command = [sys.executable, "-m", "jarvis_otel.cli.main", "alerts", "--test", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**environ, **more}, timeout=60, check=False)

    done = run()
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{sink.url}/…: delivered",
        f"http://127.0.0.1:{port}/…: failed: Connection refused",
        "Telegram chat 42: delivered",
    ]
    assert "alerts names no kind" in done.stderr
    found = json.loads(run("--format", "json").stdout)
    assert [one["fate"] for one in found] == ["delivered", "failed", "delivered"]
    well = run(JARVIS_ALERT_WEBHOOKS=sink.url, JARVIS_ALERTS="flag_changed")
    assert (well.returncode, well.stderr) == (0, "")
    nobody = run(JARVIS_ALERT_WEBHOOKS="", JARVIS_ALERT_TELEGRAM_CHATS="")
    assert (nobody.returncode, nobody.stdout) == (2, "")
    assert "alert_webhooks" in nobody.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ALERTS": ""}, "nothing is to be told"),
        ({"ALERT_WEBHOOKS": ""}, "nobody is to be told"),
        ({"ALERT_WEBHOOKS": "", "ALERT_TELEGRAM_CHATS": "42"}, "without a bot"),
        (CHATS | {"TELEGRAM_API_URL": "http://host:x/bot"}, "telegram_api_url: want a URL"),
        (CHATS | {"TELEGRAM_API_URL": "http://example.com/bot"}, "telegram_api_url: http would send the token"),
        ({"ALERTS": "everything"}, "want some of flag_changed"),
        ({"ALERT_WEBHOOKS": "ftp://host/verysecret"}, "number 1 is no URL"),
    ],
)
def test_settings_that_leave_nothing_to_do_end_with_2_and_one_line(alerts, own_project, settings, said):
    process = alerts(**settings)
    assert process.process.wait(timeout=30) == 2
    assert said in process.said
    assert process.said.count("\n") == 1
    assert "verysecret" not in process.said


def test_the_doctor_says_who_was_told_and_who_cannot_be(alerts, sink):
    port = free_port()
    environ = {"JARVIS_ALERT_WEBHOOKS": f"{sink.url}/{SECRET},http://127.0.0.1:{port}/{SECRET}"}

    def findings():
        command = [sys.executable, "-m", "jarvis_otel.cli.main", "doctor", "--format", "json"]
        env = {**os.environ, "OTEL_LOGS_EXPORTER": "none", "JARVIS_ALERTS": "flag_changed", **environ}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
        assert SECRET not in done.stdout + done.stderr
        return [(one["state"], one["text"]) for one in json.loads(done.stdout) if one["what"] == "alerts"]

    assert findings() == [("warning", "no process tells of anything now")]
    process = alerts(ALERT_WEBHOOKS=environ["JARVIS_ALERT_WEBHOOKS"]).on_duty()
    note_many([1])
    sink.wait_for(1)
    until(lambda: process.status["sinks"][0]["alerts"] and process.status["sinks"][1]["failures"])
    assert findings() == [
        ("ok", f"{sink.url}/…: 1 told, 0 of them only as a number"),
        (
            "problem",
            f"http://127.0.0.1:{port}/…: 0 told, 0 of them only as a number; 1 wait: Connection refused",
        ),
    ]


def test_what_nobody_confirmed_is_kept_where_it_ends_while_a_receiver_hangs(alerts, sink):
    asked, ended = sink.hang()
    process = alerts().on_duty()
    note_many([1])
    assert asked.wait(30)
    assert process.stop() == 0
    ended.set()
    (box,) = json.loads((process.state / "state.json").read_bytes())["sinks"].values()
    assert box["waiting"]["flag_changed"]["count"] == 1
