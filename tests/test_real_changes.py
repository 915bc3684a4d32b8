"""Ten thousand changes at once from the command line, Telegram and Python programs: none is lost, each refusal explained."""

import json
import subprocess
import sys
import textwrap
import threading
from collections import Counter

import pytest

from jarvis_flags.overrides import Override, read_overrides
from jarvis_otel.admin.audit import verify
from jarvis_otel.admin.file_store import FileStore
from tests.bot_api import bot_api
from tests.commands import jarvis
from tests.telegram_bots import ANN, BOB, running

# nothing real is needed, but minutes are
pytestmark = pytest.mark.real

COMMANDS, MESSAGES, PROGRAMS, PER_PROGRAM = 300, 2_700, 2, 3_500
NAMES = [f"FLAG_{number}" for number in range(20)]
PROGRAM = """
    import sys
    from jarvis_flags.settings import FlagSettings
    from jarvis_flags.source import FileSource
    from jarvis_otel.admin.author import Author
    from jarvis_otel.admin.file_store import FileStore
    from jarvis_otel.admin.service import FlagAdmin
    who, times = sys.argv[1], int(sys.argv[2])
    settings = FlagSettings.load()
    admin = FlagAdmin(FileSource(settings), FileStore(settings.flags_state_dir), seen_wait=0)
    for number in range(times):
        flag, author = f"FLAG_{number % 20}", Author(who, "api", f"{who} {number}")
        if number % 3 == 0:
            outcome = admin.disable(flag, author)
        elif number % 3 == 1:
            outcome = admin.enable(flag, author, confirmed=True, expected=admin.state(flag).version)
        else:
            outcome = admin.rollout(flag, number % 101, author, confirmed=True)
        assert outcome.applied or "changed meanwhile" in outcome.message, outcome
"""


def test_ten_thousand_changes_at_once_are_all_in_the_audit_and_each_refusal_is_explained(flag_file, own_project):
    dangerous = "".join(f"  {name}: {{dangerous: {str(number < 4).lower()}}}\n" for number, name in enumerate(NAMES))
    flag_file(f"flags:\n{dangerous}")
    programs = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(PROGRAM), f"program{number}", str(PER_PROGRAM)])
        for number in range(PROGRAMS)
    ]
    answers = []

    def command_line():
        for number in range(COMMANDS):
            flag = NAMES[number % 20]
            action = ("disable", "enable", "toggle")[number % 3]
            answers.append(
                jarvis(action, flag, "--by", "operator", "--reason", f"command {number}", "--format", "json")
            )

    with bot_api() as api, running(api, JARVIS_TELEGRAM_ADMINS=f"{ANN},{BOB}"):
        api.know(ANN, BOB)
        operator = threading.Thread(target=command_line)
        operator.start()
        for number in range(MESSAGES):
            action = ("disable", "rollout", "enable")[number % 3]
            percent = " 10" if action == "rollout" else ""
            api.say((ANN, BOB)[number % 2], f"/flag_{action} {NAMES[number % 20]}{percent} message {number}")
        api.wait(lambda: len(api.texts(ANN)) + len(api.texts(BOB)) >= MESSAGES, 600)
        operator.join()
        said = api.texts(ANN) + api.texts(BOB)
    for program in programs:
        assert program.wait(600) == 0
    store = FileStore(own_project / "var/flags")
    assert list(verify(store.lines())) == []
    history = [entry for entry in store.history() if entry.outcome in ("applied", "refused")]
    kept = Counter(entry.who.partition("tg:")[0] or "telegram" for entry in history)

    assert all(answer.stdout or answer.stderr for answer in answers), "each command says what became of it"
    applied = [json.loads(answer.stdout) for answer in answers if answer.returncode == 0]
    assert len([e for e in history if e.who == "operator" and e.outcome == "applied"]) == len(applied)
    assert kept["operator"] == COMMANDS
    for number in range(PROGRAMS):
        assert kept[f"program{number}"] == PER_PROGRAM

    assert len(said) == MESSAGES, "each message is answered, once"
    assert all(text.strip() for text in said)
    reasons = Counter(entry.reason for entry in history if entry.via == "telegram")
    # the rest were asked back: a dangerous flag must be confirmed
    asked_back = sum("dangerous" in text and "confirm" in text for text in said)
    assert len(reasons) + asked_back >= MESSAGES
    assert max(reasons.values()) == 1, "none is made twice"

    final = {entry.flag: entry.new for entry in history if entry.outcome == "applied"}
    wanted = {flag: Override.from_dict(new) for flag, new in final.items() if new is not None}
    assert read_overrides(own_project / "var/flags").overrides == wanted
