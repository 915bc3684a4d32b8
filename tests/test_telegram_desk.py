"""What the bot says and when it still counts, without Telegram: texts, times, roles, limits."""

import re
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_flags.model import FlagDefinition, RolloutRule
from jarvis_flags.overrides import Override
from jarvis_otel import FeatureFlagManager
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.author import Author, Role
from jarvis_otel.admin.outcome import Outcome, OutcomeKind
from jarvis_otel.admin.quota import Quota
from jarvis_otel.admin.states import FlagState
from jarvis_otel.settings import Settings
from jarvis_otel.telegram import texts
from jarvis_otel.telegram.desk import Desk, Sent, Tapped
from jarvis_otel.telegram.pending import Change, NotPendingError, Pending
from jarvis_otel.telegram.people import People
from jarvis_otel.telegram.polling import Bookmark
from jarvis_otel.telegram.secrecy import without_token
from tests.bot_api import TOKEN, check_keyboard, plain_text
from tests.clocks import Clock
from tests.telegram_bots import ANN, BOB, FLAGS, audit, overrides

ANYTHING = st.text(st.characters(codec=None), max_size=300)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def desk(flag_file, monkeypatch, clock):
    flag_file(FLAGS)
    monkeypatch.setenv("JARVIS_TELEGRAM_ADMINS", f"{ANN},{BOB}")
    manager = FeatureFlagManager("config/flags.yaml")
    people = People(Settings.load())
    yield Desk(manager.admin, people, pending=Pending(clock), questions=Pending(clock))
    manager.close()


def confirm(page):
    return next(button.data for row in page.buttons for button in row if button.label == "Confirm")


def test_a_confirmation_counts_for_120_seconds(desk, clock, own_project):
    me = Sent(ANN, private=True)
    for waited, applied in ((121, False), (119, True)):
        button = confirm(desk.command(me, "flag_enable", "LIVE because yes"))
        clock.now += waited
        answer = desk.tap(me, button)
        if applied:
            assert "is on for everyone" in answer("").page.html
        else:
            assert "Too late" in answer.toast
            assert "Too late" in answer.page.html
            assert not overrides(own_project)


def test_a_reason_counts_for_120_seconds_and_for_whom_it_was_asked(desk, clock, own_project):
    question = texts.question_in(plain_text(desk.command(Sent(ANN, private=True), "flag_enable", "LIVE").html))
    assert "somebody else" in desk.reply(Sent(BOB, private=True), question, "mine").html
    assert desk.reply(Sent(ANN, private=True), question, "mine").buttons[0][0].label == "Confirm"
    assert "answered already" in desk.reply(Sent(ANN, private=True), question, "again").html
    question = texts.question_in(plain_text(desk.command(Sent(ANN, private=True), "flag_enable", "LIVE").html))
    clock.now += 121
    assert "Too late" in desk.reply(Sent(ANN, private=True), question, "late").html
    assert not overrides(own_project)


@pytest.mark.parametrize(
    "action", ["flag_enable LIVE because x", "flag_rollout LIVE 5 because x", "flag_toggle LIVE x"]
)
def test_whatever_turns_a_dangerous_flag_on_is_confirmed(desk, action, own_project):
    name, _, rest = action.partition(" ")
    me = Sent(ANN, private=True)
    button = confirm(desk.command(me, name, rest))
    assert not overrides(own_project)
    desk.tap(me, button)("")
    assert overrides(own_project)["LIVE"]["state"] == "on"


def test_a_reset_of_a_dangerous_flag_that_was_turned_off_is_confirmed(desk, own_project):
    me = Sent(ANN, private=True)
    desk.command(me, "flag_disable", "LIVE")
    button = confirm(desk.command(me, "flag_reset", "LIVE over"))
    assert overrides(own_project)["LIVE"]["state"] == "off"
    assert "would be: <b>as the file says</b>" in desk.command(me, "flag_reset", "LIVE over").html
    desk.tap(me, button)("")
    assert not overrides(own_project)


def test_a_toggle_that_was_to_turn_on_turns_nothing_off_when_it_is_confirmed_late(desk, own_project):
    me = Sent(ANN, private=True)
    first, second = (confirm(desk.command(me, "flag_toggle", "LIVE x")) for _ in range(2))
    desk.tap(me, first)("")
    assert "changed meanwhile" in desk.tap(me, second)("").page.html
    assert overrides(own_project)["LIVE"]["state"] == "on"


def test_off_by_any_command_is_done_whatever_its_age_and_however_many(desk, own_project):
    old = Sent(ANN, private=True, old="it is old")
    for _ in range(60):
        desk.command(old, "flag_disable", "UI")
    desk.command(old, "flag_panic", "")
    assert {flag: values["state"] for flag, values in overrides(own_project).items()} == {"UI": "off", "LIVE": "off"}
    assert "was not turned on: it is old" in desk.command(old, "flag_reset", "UI").html
    assert audit(own_project)[-1]["outcome"] == "refused"
    answer = desk.tap(old, "jf:0:PLAIN")
    assert isinstance(answer, Tapped)
    assert "PLAIN is off" in answer.toast


def test_what_only_looks_is_left_to_another_thread_so_that_no_off_waits_for_it(desk, own_project):
    me = Sent(ANN, private=True)
    looks = [desk.command(me, *asked) for asked in (("flags", ""), ("flag", "UI"), ("flag_history", "UI"), ("web", ""))]
    looks += [desk.tap(me, data).look for data in ("jf:l:all:0", "jf:f:UI", "jf:h:0:UI")]
    assert all(map(callable, looks))
    assert desk.tap(me, "jf:0:UI").page is not None
    assert "<b>off</b>" in looks[1]().html, "it looks when its turn has come"


def test_an_author_who_may_only_turn_off_may_do_that_alone(desk, own_project):
    admin = desk._admin
    author = Author("x", "api", only_off="not now")
    kinds = [
        admin.enable("PLAIN", author).kind,
        admin.rollout("UI", 90, author).kind,
        admin.rollout("UI", 5, author).kind,
        admin.disable("UI", author).kind,
        admin.reset("UI", author).kind,
        admin.toggle("PLAIN", author).kind,
    ]
    on, off = OutcomeKind.REFUSED, OutcomeKind.APPLIED
    assert kinds == [on, on, off, off, on, on]


def test_pending_changes_are_bounded_and_the_oldest_are_forgotten(clock):
    pending = Pending(clock)
    nonces = [pending.ask(Change(ANN, "enable", f"F{number}")) for number in range(1_001)]
    with pytest.raises(NotPendingError, match="restarted"):
        pending.take(nonces[0], ANN)
    assert pending.take(nonces[-1], ANN).flag == "F1000"


def test_an_update_that_was_begun_is_known_to_every_process_whatever_ends_it(tmp_path):
    path = tmp_path / "telegram" / "update"
    mine, other = Bookmark(path), Bookmark(path)
    assert mine.read() == 0
    mine.begin(1_000)
    mine.begin(7)  # after a week without updates their numbers begin anew
    assert other.read() == 7
    assert stat.S_IMODE(path.stat().st_mode) & 0o137 == 0
    size = path.stat().st_size
    mine.begin(2**53)
    assert path.stat().st_size == size, "it is never cut, so a kill in between leaves the one before"


def test_a_quota_is_refilled_with_time_and_counts_what_was_over(clock):
    quota = Quota(3, clock)
    assert [quota.take(1) for _ in range(5)] == [0, 0, 0, None, None]
    assert quota.take(2) == 0
    clock.now += 20
    assert quota.has(1)
    assert quota.take(1) == 2
    assert not quota.has(1)


def state_of(text):
    definition = FlagDefinition(
        id=text,
        name=text,
        description=text,
        owner=text,
        category=text,
        dangerous=True,
        rules=[RolloutRule("user_ids", [text] * 7), RolloutRule("user_segment", text)],
        requires=[text] * 50,
        environment_defaults={text: True},
        expires_at=text,
    )
    return FlagState(
        flag=text,
        state="on",
        on=True,
        value=True,
        variant="on",
        reason="DEFAULT",
        percentage=None,
        override=Override("on", by=text, reason=text),
        pin=text,
        problem=text,
        definition=definition,
        dangerous=True,
        version="0123456789ab",
    )


@settings(max_examples=150, deadline=None)
@given(text=ANYTHING, count=st.integers(0, 30), page=st.integers(-3, 9), chosen=st.sampled_from(texts.FILTERS))
def test_any_text_makes_a_message_that_telegram_takes(text, count, page, chosen):
    entry = AuditEntry("2026", text, text, text, text, None, {"state": "on", "variant": text}, text, "applied", 2**40)
    change = Change(ANN, "enable", text, text)
    outcome = Outcome(OutcomeKind.NEEDS_CONFIRMATION, text * 20)
    state = state_of(text)
    pages = [
        texts.flags_page([state] * count, {text}, chosen, page),
        texts.flag_page(state, entry, [text], may_change=True),
        texts.history_page(state, [entry] * count, page, may_change=True),
        texts.confirm_page(outcome, change, state, "n" * 16, 120),
        texts.question_page(outcome, "n" * 16, 120),
        texts.outcome_page(outcome, text),
        texts.output_page(text, "\n".join([text] * 200)),
        texts.note_page(text or "x", text),
        texts.help_page(),
    ]
    for made in pages:
        shown = plain_text(made.html)
        assert len(shown.encode("utf-16-le", "surrogatepass")) // 2 <= 4096
        made.html.encode()
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200b]", shown)
        buttons = [[{"text": b.label, "callback_data": b.data} for b in row] for row in made.buttons]
        check_keyboard({"inline_keyboard": buttons})


@pytest.mark.parametrize("char", ["\N{GRINNING FACE}", "&", "\U000e0041", "x"])
def test_the_longest_texts_make_a_message_that_telegram_takes(char):
    text = char * 4_000
    outcome = Outcome(OutcomeKind.REFUSED, text)
    pages = [texts.note_page(text), texts.outcome_page(outcome, text), texts.question_page(outcome, "n" * 16, 120)]
    for page in [*pages, texts.output_page(text, text), texts.link_page(text, 60)]:
        assert len(plain_text(page.html).encode("utf-16-le")) // 2 <= 4096


@given(text=ANYTHING)
def test_a_question_is_told_from_any_other_message(text):
    outcome = Outcome(OutcomeKind.NEEDS_REASON, text)
    assert texts.question_in(plain_text(texts.question_page(outcome, "abc-_1", 120).html)) == "abc-_1"
    assert texts.question_in(plain_text(texts.note_page(f"{text}\nquestion abc").html)) is None


@given(before=ANYTHING, after=ANYTHING)
def test_no_token_is_left_in_a_text(before, after):
    secret = TOKEN.partition(":")[2]
    for form in (TOKEN, TOKEN.replace(":", "%3A"), secret):
        assert secret not in without_token(f"{before}{form}{after}{form}", TOKEN)


def test_roles_name_viewers_and_beat_the_list_of_admins(own_project, monkeypatch):
    (own_project / "config/jarvis.yaml").write_text(
        f"roles: {{'tg:{BOB}': viewer, 'tg:7': editor, 'tg:x': admin, ann: admin}}\n"
    )
    monkeypatch.setenv("JARVIS_TELEGRAM_ADMINS", f"{ANN},{BOB}")
    loaded = Settings.load()
    [problem] = loaded.problems
    assert "roles.tg:x: want the numeric id" in problem
    people = People(loaded)
    assert [people.role(person) for person in (ANN, BOB, 7, 8)] == [Role.ADMIN, Role.VIEWER, Role.EDITOR, None]
    assert people.with_role(Role.ADMIN) == [ANN]
