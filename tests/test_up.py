"""`jarvis up`: collector, web page and bot together, started again when they end, and all ended with it."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bot_api import TOKEN, bot_api
from tests.ports import free_port
from tests.telegram_bots import ANN

QUIET = {"JARVIS_COLLECTOR_PORT": "0", "JARVIS_COLLECTOR_GRPC_PORT": "off", "JARVIS_WEB_PORT": "0"}


class Up:
    """A running `jarvis up`; stdout is read line by line, stderr goes to a file."""

    def __init__(self, process, said):
        self.process = process
        self._said = said
        self.where = {}

    def line(self, name):
        """What is said of one of them next."""
        while True:
            text = self.process.stdout.readline()
            assert text, self.said()
            got, _, what = text.strip().partition(" ")
            self.where[got] = what.strip()
            if got == name:
                return what.strip()

    def said(self):
        return self._said.read_text()

    def wait_for(self, pattern):
        deadline = time.monotonic() + 30
        while not (found := re.search(pattern, self.said())):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        return found

    def children(self):
        """Pids by the command that each runs."""
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[4].decode(): int(pid) for pid in task}


@contextmanager
def up(own_project, **environ):
    said = own_project / "said"
    command = [sys.executable, "-W", "error", "-m", "jarvis_otel.cli.main", "up"]
    with said.open("w") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **QUIET, **environ}
        )
    with process:
        try:
            yield Up(process, said)
        finally:
            process.terminate()
            process.communicate(timeout=30)


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_each_is_and_a_signal_ends_all_of_them(own_project, flag_file, number):
    flag_file("flags: {A: {enabled: true}}\n")
    with up(own_project) as all_of_them:
        collector, web = all_of_them.line("collector"), all_of_them.line("web")
        assert re.fullmatch(rf"http://127\.0\.0\.1:\d+, writes {own_project}/logs", collector)
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/login\?t=\S+", web)
        pids = all_of_them.children()
        assert pids.keys() == {"collector", "web"}
        all_of_them.process.send_signal(number)
        assert all_of_them.process.wait(10) == 0
        assert all(is_gone(pid) for pid in pids.values())


def test_the_web_page_finds_the_collector_and_a_change_lands_in_its_files(own_project, flag_file):
    flag_file("flags: {A: {enabled: true}}\n")
    with up(own_project) as all_of_them:
        url = all_of_them.line("web")
        base = url.partition("/login")[0]
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        # the page that it leads to is not asked for: the cookie is enough
        opener.open(f"{url}&next=/health").close()
        with opener.open(f"{base}/api/health") as answer:
            assert json.load(answer)["collector"]["status"] == "ok"
        flag_file("flags: {A: {enabled: false}}\n")
        deadline = time.monotonic() + 30
        while not any("jarvis.flag.changed" in day.read_text() for day in own_project.glob("logs/jarvis-*.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_bot_runs_with_them_and_its_link_logs_in_to_the_web_page(own_project, flag_file):
    flag_file("flags: {A: {enabled: true}}\n")
    with bot_api() as api:
        telegram = {
            "JARVIS_TELEGRAM_TOKEN": TOKEN,
            "JARVIS_TELEGRAM_ADMINS": str(ANN),
            "JARVIS_TELEGRAM_API_URL": api.url,
            "JARVIS_WEB_PORT": str(free_port()),
        }
        with up(own_project, **telegram) as all_of_them:
            all_of_them.line("web")
            if "telegram" not in all_of_them.where:
                all_of_them.line("telegram")
            assert all_of_them.children().keys() == {"collector", "web", "telegram"}
            said = api.asked(ANN, "/web", "/login?l=")
            url = html.unescape(re.search(r"http://[^\s\"<]+/login\?l=[\w-]+", said["text"])[0])
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            opener.open(f"{url}&next=/health").close()
            with opener.open(f"{url.partition('/login')[0]}/api/audit?action=login") as answer:
                [entry] = json.load(answer)["entries"]
    assert (entry["who"], entry["outcome"]) == (f"tg:{ANN}", "logged in")


def test_one_that_dies_is_told_of_and_started_again_where_it_was(own_project, flag_file):
    flag_file("flags: {A: {enabled: true}}\n")
    with up(own_project) as all_of_them:
        collector = all_of_them.line("collector")
        all_of_them.line("web")
        before = all_of_them.children()
        os.kill(before["web"], signal.SIGKILL)
        all_of_them.wait_for(r"jarvis up: web was ended by signal 9; again in \d")
        assert "/login?t=" in all_of_them.line("web")
        os.kill(before["collector"], signal.SIGKILL)
        all_of_them.wait_for("jarvis up: collector was ended by signal 9")
        port = re.search(r":(\d+),", collector)[1]
        all_of_them.wait_for(rf"(?s)listening on \S+:{port},.*listening on \S+:{port},")
        after = all_of_them.children()
        assert after.keys() == before.keys()
        assert not {*after.values()} & {*before.values()}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other kernels do not tell a child")
def test_they_end_also_when_it_is_killed_itself(own_project, flag_file):
    flag_file("flags: {A: {enabled: true}}\n")
    with up(own_project) as all_of_them:
        all_of_them.line("web")
        pids = all_of_them.children().values()
        all_of_them.process.kill()
        deadline = time.monotonic() + 30
        while not all(is_gone(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_one_that_cannot_run_at_all_ends_it_with_2_and_its_reason(own_project, flag_file):
    flag_file("flags: {A: {enabled: true}}\n")
    with up(own_project, JARVIS_WEB_HOST="192.0.2.1") as all_of_them:
        all_of_them.line("collector")
        pids = all_of_them.children()
        assert all_of_them.process.wait(30) == 2
        assert "--new-token" in all_of_them.said()
        assert "jarvis up: jarvis web cannot run as it is" in all_of_them.said()
        assert all(is_gone(pid) for pid in pids.values())


def test_a_bot_that_cannot_run_keeps_nobody_else_from_it(own_project, flag_file):
    flag_file("flags: {A: {enabled: true}}\n")
    with bot_api() as api:
        api.revoke()
        environ = {"JARVIS_TELEGRAM_TOKEN": TOKEN, "JARVIS_TELEGRAM_ADMINS": "7", "JARVIS_TELEGRAM_API_URL": api.url}
        with up(own_project, **environ) as all_of_them:
            all_of_them.line("web")
            deadline = time.monotonic() + 60
            while "telegram ended with 2; again in" not in all_of_them.said():
                assert time.monotonic() < deadline, all_of_them.said()
                time.sleep(0.05)
            assert all_of_them.process.poll() is None
            assert {"collector", "web"} <= set(all_of_them.children())


def test_settings_that_cannot_be_used_end_it_at_once(own_project):
    with up(own_project, JARVIS_WEB_PORT="many") as all_of_them:
        assert all_of_them.process.wait(30) == 2
        assert "JARVIS_WEB_PORT" in all_of_them.said()
