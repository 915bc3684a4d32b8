"""`jarvis telegram` as a process of its own, against the strict Bot API."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

from tests.bot_api import TOKEN

ANN, BOB, EVE, STRANGER = 101, 102, 103, 666

FLAGS = """\
version: "1.0"
flags:
  LIVE: {dangerous: true, name: Live trading, owner: trading-team}
  UI:
    rules:
      - {type: percentage, value: 25}
  PLAIN: {}
  BOTH: {approvals: 2}
"""


class Bot:
    """A running `jarvis telegram`."""

    def __init__(self, api, **environ):
        self.api = api
        self._calls = len(api.calls)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jarvis_otel.cli.main", "telegram"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "JARVIS_TELEGRAM_TOKEN": TOKEN,
                "JARVIS_TELEGRAM_ADMINS": f"{ANN},{BOB}",
                "JARVIS_TELEGRAM_API_URL": api.url,
                "OTEL_LOGS_EXPORTER": "none",
                **environ,
            },
        )

    def ready(self):
        self.api.wait(lambda: any(method == "setMyCommands" for method, _ in self.api.calls[self._calls :]), 60)
        return self

    def end(self, number=signal.SIGTERM):
        """Ends it; returns its exit code, what it said, and the seconds that took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, said = self.process.communicate(timeout=30)
        return self.process.returncode, out + said, time.monotonic() - began

    def kill(self):
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def running(api, **environ):
    bot = Bot(api, **environ)
    try:
        yield bot.ready()
    finally:
        bot.kill()


def audit(root):
    """The entries of the audit."""
    file = root / "var" / "flags" / "audit.jsonl"
    return [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def overrides(root):
    """What is set at run time, by flag id."""
    file = root / "var" / "flags" / "overrides.json"
    return json.loads(file.read_bytes())["overrides"] if file.exists() else {}
