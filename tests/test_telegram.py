"""`jarvis telegram` in a process of its own: every command, who may, what is refused, and how it ends."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.bot_api import TOKEN, bot_api
from tests.commands import jarvis
from tests.telegram_bots import ANN, BOB, EVE, FLAGS, STRANGER, Bot, audit, overrides, running


@pytest.fixture
def api():
    with bot_api() as api:
        api.know(ANN, BOB)
        yield api
        bad = [answer for _, answer in api.refused if answer["error_code"] == 400]
        assert all("is not modified" in answer["description"] for answer in bad), bad


@pytest.fixture
def bot(api, flag_file):
    flag_file(FLAGS)
    with running(api) as bot:
        yield bot


def labels(message):
    return [button["text"] for row in message.get("reply_markup", {}).get("inline_keyboard", []) for button in row]


# --- looking ---


def test_flags_are_listed_in_pages_of_eight_and_filtered(api, flag_file, own_project):
    flags = "".join(f"  F{number:02d}: {{dangerous: {str(number == 3).lower()}}}\n" for number in range(20))
    flag_file(f'version: "1.0"\nflags:\n{flags}')
    with running(api):
        page = api.asked(ANN, "/flags", "Feature flags (20)")
        assert page["text"].count("\n") == 8
        assert labels(page) == [
            *map(str, range(1, 9)),
            "◀",
            "1/3",
            "▶",
            "• all",
            "on",
            "off",
            "dangerous",
            "stale",
            "overridden",
        ]
        api.tap(ANN, page, "▶")
        api.wait(lambda: "F08" in page["text"])
        api.tap(ANN, page, "▶")
        api.wait(lambda: "F19" in page["text"])
        assert labels(page)[:5] == ["17", "18", "19", "20", "◀"]
        api.tap(ANN, page, "dangerous")
        api.wait(lambda: "(1 of 20, dangerous)" in page["text"])
        api.tap(ANN, page, "on")
        api.wait(lambda: "none" in page["text"])
        api.asked(ANN, "/flag_disable F05 because test", "F05 is off for everyone")
        api.tap(ANN, page, "overridden")
        api.wait(lambda: "F05" in page["text"] and "(1 of 20" in page["text"])
        api.tap(ANN, page, "1")
        api.wait(lambda: page["text"].startswith("⚪ F05 is off"))
        tap = api.tap(ANN, page, "Refresh")
        api.wait(lambda: tap in api.answers)


def test_a_flag_shows_its_state_its_rules_in_words_its_owner_and_its_last_change(api, bot):
    text = api.asked(ANN, "/flag LIVE", "LIVE is off")["text"]
    assert "Live trading" in text
    assert "dangerous" in text
    assert "owner trading-team" in text
    assert "on for 25 % of users" in api.asked(ANN, "/flag UI", "UI is 25 %")["text"]
    api.asked(ANN, "/flag_rollout UI 50 because it works", "UI is on for 50 %")
    text = api.asked(ANN, "/flag UI", "UI is 50 %")["text"]
    assert re.search(r"last change 1 .*tg:101 rollout: file → on 50 % — it works", text)
    api.asked(ANN, "/flag NOPE", "no flag 'NOPE'")
    api.asked(ANN, "/flag", "Which flag?")


def test_history_shows_who_did_what_and_goes_back_to_any_point(api, bot, own_project):
    api.asked(ANN, "/flag_rollout UI 10 because slowly", "10 %")
    api.asked(BOB, "/flag_disable UI because it blinks", "UI is off")
    page = api.asked(ANN, "/flag_history UI", "History of UI (2)")
    assert "it blinks" in page["text"]
    assert labels(page) == ["Revert to 2", "Revert to 1", "Flag"]
    api.tap(ANN, page, "Revert to 1")
    api.wait(lambda: "UI: on 10 %" in page["text"])
    assert overrides(own_project)["UI"]["percentage"] == 10
    assert audit(own_project)[-1]["action"] == "revert"


def test_errors_and_traces_come_out_of_the_logs(api, bot, own_project):
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    record = {
        "timestamp": now,
        "level": "ERROR",
        "message": "order <b>refused</b> \x1b[31m\u202e",
        "service": "trading",
        "correlation_id": "trade-1",
        "active_flags": ["UI"],
        "flags": {"UI": "on"},
        "error": {"type": "OrderError", "message": "5 < 6 & so on"},
        "context": {},
    }
    (own_project / "logs").mkdir()
    (own_project / "logs" / f"jarvis-{now[:10]}.jsonl").write_text(json.dumps(record) + "\n")
    text = api.asked(ANN, "/errors 1h", "Errors since -1h")["text"]
    assert "OrderError" in text
    assert "5 < 6 & so on" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    text = api.asked(ANN, "/trace trade-1", "Trace trade-1")["text"]
    assert "order <b>refused</b>" in text
    assert "UI" in text
    flag = api.asked(ANN, "/flag UI", "UI is 25 %")
    api.tap(ANN, flag, "Impact")
    assert "1" in api.said(ANN, "UI, the last 24 hours", flag["message_id"])["text"]
    api.asked(ANN, "/trace nothing", "nothing found")
    api.asked(ANN, "/trace", "Which trace?")
    api.asked(ANN, "/errors lately", "want a time")


def test_many_questions_leave_room_for_what_tells_of_changes(api, bot, own_project):
    for _ in range(40):
        api.say(ANN, "/errors")
    api.say(BOB, "/flag_disable UI")
    api.said(ANN, "Too much is asked at the moment")
    api.said(BOB, "UI is off for everyone")


def test_web_says_where_the_page_is_not_set_up_and_else_gives_a_link_that_cannot_be_forwarded(
    api, flag_file, own_project
):
    flag_file(FLAGS)
    (own_project / "config" / "jarvis.yaml").write_text("web_port: 1\n")
    with running(api):
        api.asked(ANN, "/web", "The web page is not set up")
        (own_project / "config" / "jarvis.yaml").write_text("web_url: https://jarvis.example\n")
        link = api.asked(ANN, "/web", "https://jarvis.example/login?l=")["text"].splitlines()[-1]
        _, sent = [call for call in api.calls if call[0] == "sendMessage"][-1]
        assert sent["protect_content"] is True
        assert sent["link_preview_options"] == {"is_disabled": True}, "Telegram would fetch it, and use it up"
        from jarvis_otel.web.links import Links

        identity = Links(own_project / "var").redeem(link.partition("l=")[2])
        assert (identity.who, identity.role) == (f"tg:{ANN}", "admin")


def test_help_lists_the_commands_and_the_menu_is_for_those_alone_who_may_use_them(api, bot):
    text = api.asked(ANN, "/start", "/flag_panic")["text"]
    assert text == api.said(ANN, "/flag_panic")["text"]
    assert set(api.menus) == {ANN, BOB}
    assert "flag_panic" in api.menus[ANN]


def test_a_mistyped_command_is_not_met_with_silence_but_a_stranger_is(api, bot, own_project):
    api.know(STRANGER)
    api.say(STRANGER, "/flag_disabel LIVE")
    api.asked(ANN, "/flag_disabel LIVE", "no command /flag_disabel; did you mean /flag_disable?")
    api.asked(ANN, "/quite_another", "/flag_help lists them")
    assert not api.texts(STRANGER)


def test_where_there_are_no_flags_the_list_says_why(api, own_project):
    with running(api):
        api.asked(ANN, "/flags", "config/flags.yaml: there is no such file")


# --- changing ---


def test_enable_disable_toggle_and_reset_change_a_flag_and_the_audit_says_who_and_why(api, bot, own_project):
    api.asked(ANN, "/flag_enable PLAIN because it is time", "PLAIN is on for everyone")
    api.asked(ANN, "/flag_disable PLAIN it is late", "PLAIN is off for everyone")
    api.asked(ANN, "/flag_toggle UI because", "UI is off for everyone")
    api.asked(ANN, "/flag_reset UI", "UI: the file decides again")
    api.asked(ANN, "/flag_rollout UI 30% because more", "UI is on for 30 %")
    api.asked(ANN, "/flag_rollout UI 130", "percentage")
    api.asked(ANN, "/flag_rollout UI much", "got 'much'")
    api.asked(ANN, "/flag_enable PLAYN", "no flag 'PLAYN'")
    api.asked(ANN, "/flag_enable", "Which flag?")
    first, second, *_ = audit(own_project)
    assert (first["who"], first["via"], first["reason"]) == ("tg:101", "telegram", "it is time")
    assert second["reason"] == "it is late"
    assert jarvis("audit", "--verify").returncode == 0


def test_a_dangerous_flag_takes_a_reason_and_a_confirmation_and_its_button_works_once(api, bot, own_project):
    question = api.asked(ANN, "/flag_enable LIVE", "say why")
    _, sent = [call for call in api.calls if call[0] == "sendMessage"][-1]
    assert sent["reply_markup"]["force_reply"] is True
    api.say(ANN, "the market is open", reply_to=question)
    page = api.said(ANN, "must be confirmed")
    assert labels(page) == ["Confirm", "Cancel"]
    assert "the market is open" in page["text"]
    assert not overrides(own_project)
    button = {**page, "reply_markup": page["reply_markup"]}
    api.tap(ANN, button, "Confirm")
    second = api.tap(ANN, button, "Confirm")
    api.wait(lambda: "LIVE is on for everyone" in page["text"])
    api.wait(lambda: second in api.answers)
    assert "answered already" in api.answers[second]["text"]
    assert overrides(own_project)["LIVE"]["state"] == "on"
    assert [entry["outcome"] for entry in audit(own_project)] == ["applied"]
    assert audit(own_project)[0]["reason"] == "the market is open"


def test_who_cancels_changes_nothing_and_the_audit_knows(api, bot, own_project):
    page = api.asked(ANN, "/flag_enable LIVE because yes", "must be confirmed")
    api.tap(ANN, page, "Cancel")
    api.wait(lambda: "nothing was changed" in page["text"])
    assert "Confirm" not in labels(page)
    assert [(entry["outcome"], entry["flag"]) for entry in audit(own_project)] == [("refused", "LIVE")]


def test_a_confirmation_counts_only_for_whom_it_was_asked_and_only_while_the_flag_is_as_they_saw_it(
    api, bot, own_project
):
    page = api.asked(ANN, "/flag_enable LIVE because yes", "must be confirmed")
    shown = json.loads(json.dumps(page))
    forwarded = {**shown, "chat": {**shown["chat"], "id": BOB}}
    tap = api.tap(BOB, forwarded, "Confirm")
    api.wait(lambda: tap in api.answers)
    assert "somebody else" in api.answers[tap]["text"]
    jarvis("disable", "LIVE", "--reason", "no", "--by", "carl")
    api.tap(ANN, shown, "Confirm")
    api.wait(lambda: "was changed meanwhile by carl" in page["text"])
    assert overrides(own_project)["LIVE"]["state"] == "off"


def test_a_question_of_before_a_restart_is_answered_clearly_and_changes_nothing(api, flag_file, own_project):
    flag_file(FLAGS)
    with running(api):
        page = api.asked(ANN, "/flag_enable LIVE because yes", "must be confirmed")
        question = api.asked(ANN, "/flag_enable LIVE", "say why")
    with running(api):
        tap = api.tap(ANN, page, "Confirm")
        api.wait(lambda: "before the bot was restarted" in page["text"])
        assert "before the bot was restarted" in api.wait(lambda: api.answers.get(tap))["text"]
        api.say(ANN, "because", reply_to=question)
        api.wait(lambda: any("before the bot was restarted" in text for text in api.texts(ANN)[2:]))
    assert not overrides(own_project)


def test_a_flag_is_turned_off_and_on_by_its_buttons(api, bot, own_project):
    page = api.asked(ANN, "/flag UI", "UI is 25 %")
    api.tap(ANN, page, "Turn off")
    api.wait(lambda: "UI is off for everyone" in page["text"])
    page = api.asked(ANN, "/flag PLAIN", "PLAIN is off")
    shown = json.loads(json.dumps(page))
    api.tap(ANN, page, "Turn on")
    api.wait(lambda: "PLAIN is on for everyone" in page["text"])
    api.asked(ANN, "/flag_disable PLAIN", "PLAIN is off for everyone")
    api.tap(ANN, shown, "Turn on")
    api.wait(lambda: "changed meanwhile" in page["text"])
    assert overrides(own_project)["PLAIN"]["state"] == "off"
    api.tap_data(ANN, page, "jf:0:UI")
    api.tap_data(ANN, page, "jf:?:UI")
    tap = api.tap_data(ANN, page, "jf:f:GONE")
    api.wait(lambda: tap in api.answers)
    assert "no such flag" in api.answers[tap]["text"]


def test_panic_turns_every_dangerous_flag_off(api, bot, own_project):
    jarvis("enable", "LIVE", "--reason", "x", "--yes")
    api.asked(ANN, "/flag_panic because the market is closed", "LIVE")
    assert overrides(own_project)["LIVE"]["state"] == "off"
    assert audit(own_project)[-1]["reason"] == "the market is closed"


# --- approvals ---


def test_a_request_is_shown_to_the_other_admins_who_approve_it(api, bot, own_project):
    api.asked(ANN, "/flag_enable BOTH because we agreed", "takes 2 different people")
    page = api.said(BOB, "wants BOTH")
    assert "we agreed" in page["text"]
    assert not any("wants BOTH" in text for text in api.texts(ANN))
    api.tap(BOB, page, "Approve")
    api.wait(lambda: "BOTH" in page["text"] and "approved by tg:102" in page["text"])
    assert overrides(own_project)["BOTH"]["state"] == "on"
    assert (audit(own_project)[-1]["who"], audit(own_project)[-1]["outcome"]) == ("tg:102", "applied")


def test_a_request_of_another_front_end_is_shown_too_and_so_is_its_end(api, bot, own_project):
    jarvis("enable", "BOTH", "--reason", "from the command line", "--by", "carl")
    pages = [api.said(person, "carl wants BOTH") for person in (ANN, BOB)]
    api.tap(ANN, pages[0], "Deny")
    api.wait(lambda: all("denied" in page["text"] for page in pages))
    assert not any("Approve" in labels(page) for page in pages)
    tap = api.tap_data(
        BOB, pages[1], "jf:a:" + audit(own_project)[0]["request"] if "request" in audit(own_project)[0] else "jf:a:0"
    )
    api.wait(lambda: tap in api.answers)
    assert not overrides(own_project)


def test_a_request_that_came_while_the_bot_was_away_is_shown_when_it_is_back(api, flag_file):
    flag_file(FLAGS)
    jarvis("enable", "BOTH", "--reason", "x", "--by", "carl")
    with running(api):
        api.said(ANN, "carl wants BOTH")
        jarvis("disable", "BOTH", "--by", "dora")
        api.said(ANN, "does not wait any more")


# --- who may ---


def test_strangers_get_silence_and_a_few_entries_in_the_audit(api, bot, own_project):
    page = api.asked(ANN, "/flag UI", "UI is 25 %")
    calls = len(api.calls)
    for _ in range(20):
        api.say(STRANGER, "/flags")
        api.say(STRANGER, "/flag_disable UI")
    api.tap_data(STRANGER, {**page, "chat": {"id": STRANGER, "type": "private"}}, "jf:0:UI")
    api.wait(lambda: not api.unconfirmed)
    api.asked(ANN, "/flag LIVE", "LIVE is off")
    assert all(params.get("chat_id") != STRANGER for _, params in api.calls[calls:])
    assert [method for method, _ in api.calls[calls:]] == ["sendMessage"], "the tap is not even answered"
    entries = audit(own_project)
    assert {(entry["who"], entry["outcome"], entry["action"]) for entry in entries} == {
        ("tg:666", "refused", "telegram")
    }
    assert len(entries) == 3
    assert "/flags" in entries[0]["detail"]


def test_roles_of_the_settings_hold_and_follow_the_file_while_the_bot_runs(api, flag_file, own_project):
    flag_file(FLAGS)
    settings = own_project / "config" / "jarvis.yaml"
    settings.write_text(f"roles: {{'tg:{EVE}': viewer}}\n")
    api.know(EVE)
    with running(api):
        page = api.asked(EVE, "/flag UI", "UI is 25 %")
        assert labels(page) == ["History", "Impact", "Refresh"]
        api.asked(EVE, "/flag_disable UI", "viewers look at flags")
        settings.write_text(f"roles: {{'tg:{EVE}': editor}}\n")
        api.asked(EVE, "/flag_disable UI", "UI is off for everyone")
        api.asked(EVE, "/flag_enable LIVE because I want", "only admins turn it on")
        settings.write_text("roles: {nonsense: nobody}\n")
        api.asked(EVE, "/flag_enable PLAIN", "PLAIN is on")
        settings.write_text("roles: {}\n")
        count = len(api.texts(EVE))
        api.say(EVE, "/flag UI")
        api.tap(EVE, page, "Refresh")
        api.wait(lambda: not api.unconfirmed)
        api.asked(ANN, "/flag PLAIN", "PLAIN is on")
        assert len(api.texts(EVE)) == count
        api.wait(
            lambda: any(entry["who"] == f"tg:{EVE}" and "not one of" in entry["detail"] for entry in audit(own_project))
        )


def test_groups_edited_messages_and_forwarded_commands_change_nothing(api, bot, own_project):
    api.say(ANN, "/flag_enable PLAIN", chat=-5, kind="supergroup")
    api.say(ANN, "/flag_enable PLAIN", edited=True)
    page = api.asked(ANN, "/flag PLAIN", "PLAIN is off")
    api.tap_data(ANN, {**page, "chat": {"id": -5, "type": "supergroup"}}, "jf:0:UI", kind="supergroup")
    api.say(ANN, "/flag_enable PLAIN because hidden", forwarded=True)
    api.said(ANN, "a forwarded message is no command")
    assert not overrides(own_project)
    assert not api.texts(-5)


# --- how old ---


def test_an_old_command_turns_things_off_but_never_on(api, flag_file, own_project):
    flag_file(FLAGS)
    api.say(ANN, "/flag_enable PLAIN because before", age=3_600)
    api.say(ANN, "/flag_rollout UI 90 because before", age=3_600)
    api.say(ANN, "/flag_toggle BOTH", age=3_600)
    api.say(ANN, "/flag_rollout UI 5 because before", age=3_601)
    api.say(ANN, "/flag_toggle UI", age=3_602)
    api.say(ANN, "/flag_disable LIVE because before", age=80_000)
    api.say(ANN, "/flag_panic", age=80_000)
    with running(api):
        api.wait(lambda: len(api.texts(ANN)) == 7)
        old = [text for text in api.texts(ANN) if "was not turned on: the command was sent 36" in text]
        assert len(old) == 3
        assert {flag: values["state"] for flag, values in overrides(own_project).items()} == {
            "UI": "off",
            "LIVE": "off",
        }


def test_what_was_tapped_while_the_bot_was_away_turns_nothing_on(api, flag_file, own_project):
    flag_file(FLAGS)
    with running(api):
        page = api.asked(ANN, "/flag PLAIN", "PLAIN is off")
        other = api.asked(ANN, "/flag UI", "UI is 25 %")
    api.tap(ANN, page, "Turn on")
    api.tap(ANN, other, "Turn off")
    with running(api):
        api.wait(lambda: "sent while the bot did not listen" in page["text"])
        api.wait(lambda: "UI is off" in other["text"])
        assert overrides(own_project).keys() == {"UI"}
        page = api.asked(ANN, "/flag LIVE", "LIVE is off")
        page = api.asked(ANN, "/flag BOTH", "BOTH is off")


def test_a_tap_that_telegram_finds_too_old_turns_nothing_on(api, bot, own_project):
    page = api.asked(ANN, "/flag PLAIN", "PLAIN is off")
    api.tap(ANN, page, "Turn on", too_old=True)
    api.wait(lambda: "tapped too long ago" in page["text"])
    assert not overrides(own_project)
    api.refused.clear()


def test_taps_whose_age_a_slow_telegram_does_not_say_turn_nothing_on_and_an_off_waits_for_one_of_them(
    api, bot, own_project
):
    page = api.asked(ANN, "/flag PLAIN", "PLAIN is off")
    api.hanging.add("answerCallbackQuery")
    for _ in range(9):
        api.tap(ANN, page, "Turn on")
    api.say(ANN, "/flag_disable UI")
    api.wait(lambda: "UI" in overrides(own_project))
    assert sum(method == "answerCallbackQuery" for method, _ in api.calls) == 1
    api.wait(lambda: "does not say how old the tap is" in page["text"])
    assert "PLAIN" not in overrides(own_project)
    api.hanging.clear()


def test_a_killed_bot_loses_no_off_and_turns_nothing_on_twice(api, flag_file, own_project):
    flag_file(FLAGS)
    with running(api) as bot:
        # Telegram never hears that these were carried out
        api.down_after_updates = True
        api.say(ANN, "/flag_toggle PLAIN")
        api.wait(lambda: overrides(own_project).get("PLAIN"))
        assert overrides(own_project)["PLAIN"]["state"] == "on"
        api.wait(lambda: api.turned_away)
        bot.kill()
    jarvis("disable", "PLAIN", "--by", "carl")
    api.down = api.down_after_updates = False
    assert api.unconfirmed == 1
    with running(api):
        api.said(ANN, "was begun before the bot was restarted")
        assert overrides(own_project)["PLAIN"]["state"] == "off"
        api.asked(ANN, "/flag_toggle PLAIN", "PLAIN is on for everyone")


def test_more_than_twenty_changes_a_minute_turn_nothing_on_and_everything_off(api, bot, own_project):
    for number in range(1, 26):
        api.say(ANN, f"/flag_rollout UI {50 + number} because more")
    api.wait(lambda: len(api.texts(ANN)) == 25)
    assert sum("more than 20 such changes a minute" in text for text in api.texts(ANN)) == 5
    assert overrides(own_project)["UI"]["percentage"] == 70
    api.asked(BOB, "/flag_rollout UI 80", "UI is on for 80 %")
    api.asked(ANN, "/flag_disable UI", "UI is off for everyone")


def test_changes_of_all_front_ends_at_the_same_time_are_all_kept(api, flag_file, own_project):
    flags = "".join(f"  F{number}: {{}}\n" for number in range(20))
    flag_file(f'version: "1.0"\nflags:\n{flags}')
    (own_project / "config/jarvis.yaml").write_text(f"roles: {{'tg:{EVE}': viewer}}\n")
    api.know(EVE)
    code = (
        "from jarvis_otel import FeatureFlagManager\n"
        "manager = FeatureFlagManager('config/flags.yaml')\n"
        "for number in range(200): assert manager.set_enabled(f'F{number % 20}', number % 2 == 0, str(number), 'api')\n"
    )
    with running(api):
        programs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
        for number in range(200):
            api.say(ANN if number % 2 else BOB, f"/flag_disable F{number % 20} because {number}")
            api.say(EVE, f"/flag_disable F{number % 20} because {number}")
        for number in range(5):
            assert jarvis("rollout", f"F{number}", "50", "--reason", str(number), "--by", "cli").returncode == 0
        assert [program.wait(60) for program in programs] == [0, 0]
        api.wait(lambda: len(api.texts(ANN)) + len(api.texts(BOB)) == 200, 60)
        api.wait(lambda: len(api.texts(EVE)) == 200, 60)
    entries = audit(own_project)
    kept = [(entry["who"], entry["reason"]) for entry in entries if entry["outcome"] == "applied"]
    assert sorted(reason for who, reason in kept if who.startswith("tg:")) == sorted(map(str, range(200)))
    assert sum(who == "api" for who, _ in kept) == 400
    assert sum(who == "cli" for who, _ in kept) == 5
    assert sum(entry["who"] == f"tg:{EVE}" and "viewers" in entry["detail"] for entry in entries) == 200
    assert all("viewers look at flags" in text for text in api.texts(EVE))
    assert jarvis("audit", "--verify").returncode == 0


# --- hostile texts ---


HOSTILE = """\
version: "1.0"
flags:
  "<b>A&lt;</b>": {description: "</code><a href='x'>&amp; &unknown; \\u202e\\u200b \\e[31m", owner: "<", dangerous: false}
  "#hash": {name: "😀😀😀"}
  "%s": {name: "x"}
""".replace("%s", "L" * 90 + "é:")


def test_hostile_names_reasons_and_descriptions_are_shown_and_do_no_harm(api, flag_file, own_project):
    flag_file(HOSTILE)
    long = "L" * 90 + "é:"
    with running(api):
        page = api.asked(ANN, "/flags", "Feature flags (3)")
        assert "<b>A&lt;</b>" in page["text"]
        api.tap(ANN, page, "1")
        api.wait(lambda: "</code><a href='x'>&amp; &unknown; \\u202e\\u200b \\x1b[31m" in page["text"])
        api.tap(ANN, page, "Turn on")
        api.wait(lambda: "<b>A&lt;</b> is on for everyone" in page["text"])
        reason = "<i>why</i> & \u202e \x1b[2J " + "& < > 😀" * 900
        api.asked(ANN, f"/flag_disable <b>A&lt;</b> {reason}"[:4_000], "is off for everyone")
        text = api.asked(ANN, "/flag_history <b>A&lt;</b>", "History of <b>A&lt;</b>")["text"]
        assert "<i>why</i> & \\u202e" in text
        assert "\x1b" not in text
        page = api.asked(ANN, f"/flag {long}", "is off")
        api.tap(ANN, page, "Turn on")
        api.wait(lambda: "is on for everyone" in page["text"])
        api.asked(ANN, f"/flag_history {long}", "History of")
        api.asked(ANN, "/flag_enable #hash", "#hash is on")
        assert overrides(own_project).keys() == {"<b>A&lt;</b>", "#hash", long}


# --- Telegram's moods ---


def test_too_many_requests_are_waited_for_and_delay_no_change(api, bot, own_project):
    api.flood("sendMessage", 1)
    began = time.monotonic()
    api.say(ANN, "/flag_disable UI")
    api.say(ANN, "/flag_disable PLAIN")
    api.wait(lambda: len(overrides(own_project)) == 2)
    assert not api.texts(ANN) or time.monotonic() - began < 20
    api.wait(lambda: len(api.texts(ANN)) == 2)
    api.flood("getUpdates", 1)
    api.say(ANN, "/flags")
    api.said(ANN, "Feature flags")


def test_an_outage_is_one_line_and_its_end_another(api, flag_file):
    flag_file(FLAGS)
    api.down = True
    bot = Bot(api)
    try:
        api.wait(lambda: api.turned_away)
        api.down = False
        bot.ready()
        api.asked(ANN, "/flags", "Feature flags")
    finally:
        status, said, _ = bot.end()
    assert status == 0
    lines = said.splitlines()
    assert len(lines) == 3, said
    assert "Telegram is not reached" in lines[0]
    assert "Telegram answers again" in lines[1]


def test_a_revoked_token_is_one_clear_line_and_exit_2(api, bot):
    api.revoke()
    assert bot.process.wait(20) == 2
    _, said, _ = bot.end()
    _, line = said.splitlines()
    assert line.startswith("jarvis: Telegram refuses the token: it was revoked")


def test_a_wrong_token_is_one_clear_line_without_it_and_exit_2(api, flag_file):
    flag_file(FLAGS)
    api.revoked = True
    bot = Bot(api)
    assert bot.process.wait(30) == 2
    _, said, _ = bot.end()
    assert said.count("\n") == 1
    assert TOKEN.partition(":")[2] not in said


def test_a_second_poller_waits_with_a_clear_line(api, bot, own_project):
    with running(api) as second:
        api.wait(lambda: len(api.refused) >= 1)
        bot.end()
        api.say(ANN, "/flag_disable UI")
        api.said(ANN, "UI is off")
        _, said, _ = second.end()
    assert all("Conflict" in answer["description"] for _, answer in api.refused)
    assert said.count("another process polls this bot") <= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_with_what_it_was_told_confirmed(api, bot, number):
    api.asked(ANN, "/flag_disable UI", "UI is off")
    status, said, seconds = bot.end(number)
    assert status == 0
    assert seconds < 15
    assert api.unconfirmed == 0
    assert "Traceback" not in said


def test_a_signal_ends_it_also_while_a_change_waits_for_a_lock_and_loses_no_off(api, bot, own_project):
    api.asked(ANN, "/flag_disable UI", "UI is off")
    with (own_project / "var/flags/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        api.say(ANN, "/flag_disable PLAIN")
        api.wait(lambda: len(api.polled) == 2)
        status, said, seconds = bot.end()
    assert (status, "Traceback" in said) == (0, False)
    assert seconds < 8, "the lock would be waited for for ten"
    assert api.unconfirmed == 1
    with running(api):
        api.said(ANN, "PLAIN is off")
    assert overrides(own_project)["PLAIN"]["state"] == "off"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"JARVIS_TELEGRAM_TOKEN": ""}, "there is no token"),
        ({"JARVIS_TELEGRAM_TOKEN": "nonsense"}, "is no bot token"),
        ({"JARVIS_TELEGRAM_ADMINS": ""}, "nobody may use the bot"),
        ({"JARVIS_TELEGRAM_API_URL": "http://bots.example/bot"}, "would send the token in clear"),
        ({"JARVIS_TELEGRAM_API_URL": "https://bots.example"}, "want a URL of http or https that ends with /bot"),
        ({"JARVIS_TELEGRAM_API_URL": "https://bots.example?to=/bot"}, "that ends with /bot"),
        ({"JARVIS_TELEGRAM_ADMINS": "--5"}, "got '--5', want numeric ids"),
        ({"JARVIS_TELEGRAM_ADMINS": "-1001234"}, "-1001234 is a group; want ids of people"),
    ],
)
def test_what_is_missing_is_one_line_and_exit_2(api, environ, words):
    bot = Bot(api, **environ)
    assert bot.process.wait(30) == 2
    _, said, _ = bot.end()
    assert words in said
    assert said.count("\n") == 1
    assert "nonsense" not in said


def test_without_the_extra_it_says_what_to_install(own_project):
    code = "import sys; sys.modules['telegram'] = None; from jarvis_otel.cli.main import main; sys.exit(main(['telegram']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JARVIS_TELEGRAM_TOKEN": TOKEN, "JARVIS_TELEGRAM_ADMINS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'jarvis-otel[telegram]'" in done.stderr


def test_the_token_is_nowhere_in_what_it_says_nor_in_its_files(api, flag_file, own_project):
    flag_file(FLAGS)
    api.down = True
    bot = Bot(api)
    api.wait(lambda: api.turned_away)
    api.down = False
    try:
        bot.ready()
        api.asked(ANN, "/flag_disable UI", "UI is off")
        api.flood("sendMessage", 0, 0, 0, 0)
        api.say(ANN, "/flags")
        api.wait(lambda: not api._floods["sendMessage"])
        api.revoke()
        bot.process.wait(20)
    finally:
        _, said, _ = bot.end()
    files = [path for path in own_project.rglob("*") if path.is_file()]
    secret = TOKEN.partition(":")[2]
    assert secret not in said
    assert all(secret.encode() not in path.read_bytes() for path in files)
