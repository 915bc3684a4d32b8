"""The bot of docs/your-application.md, spoken to over a strict Bot API; the page's other applications run in test_docs."""

import json
import os
import subprocess
import sys

import pytest

from tests.bot_api import TOKEN, bot_api
from tests.doc_pages import read_page
from tests.otlp_sink import until

ANN = 123456789
JARVIS = (sys.executable, "-m", "jarvis_otel.cli.main")

# python-telegram-bot is told in code alone where the Bot API is; an application of somebody's would not say it
LAUNCHER = """
import runpy, sys
from telegram.ext import ApplicationBuilder
made = ApplicationBuilder.__init__
def at_test(self):
    made(self)
    self.base_url(sys.argv[1])
ApplicationBuilder.__init__ = at_test
runpy.run_path("bot.py", run_name="__main__")
"""


@pytest.fixture
def project(own_project):
    """The page's files."""
    for block in read_page("docs/your-application.md").blocks:
        if file := block.value("file"):
            (own_project / file).write_text(block.text)
    return own_project


def start(*command, **environ):
    return subprocess.Popen(
        command,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def logs(*arguments):
    done = subprocess.run([*JARVIS, "logs", *arguments], capture_output=True, text=True, timeout=60, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_bot_answers_its_users_changes_flags_for_admins_and_logs_both(project):
    port_file = project / "port"
    with bot_api() as api:
        collector = start(*JARVIS, "collector", "--port", "0", "--grpc-port", "off", "--port-file", str(port_file))
        bot = None
        try:
            until(port_file.exists, 60)
            environ = {
                "BOT_TOKEN": TOKEN,
                "JARVIS_TELEGRAM_ADMINS": str(ANN),
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port_file.read_text().strip()}",
            }
            bot = start(sys.executable, "-c", LAUNCHER, api.url, **environ)
            api.asked(7, "/order", "the old checkout")
            assert "NEW_CHECKOUT" in api.asked(ANN, "/flags", "NEW_CHECKOUT")["text"]
            api.asked(ANN, "/flag_rollout NEW_CHECKOUT 100 the test is over", "100 %")
            api.asked(7, "/order", "the new checkout")
            question = ("query", "--service", "bot", "--user", "tg:7", "--search", "Order taken", "--format", "jsonl")
            until(lambda: len(logs(*question)) == 2, 60)
        finally:
            for process in filter(None, (bot, collector)):
                process.terminate()
                process.communicate(timeout=30)
        old, new = logs(*question)
    assert [line["flags"] for line in (old, new)] == [{"NEW_CHECKOUT": "off"}, {"NEW_CHECKOUT": "on"}]
    assert [line["context"]["checkout"] for line in (old, new)] == ["old", "new"]
    assert old["correlation_id"].startswith("update-")
    changed = json.loads((project / "var" / "flags" / "audit.jsonl").read_text().splitlines()[-1])
    assert changed["who"] == f"tg:{ANN}"
