"""A receiver of alerts for tests: webhooks, and a Bot API that takes only what Telegram would, on loopback."""

import html.parser
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.http_peers import HttpPeer, PeerHandler
from tests.otlp_sink import until

TOKEN = "123456789:AAEhBOweik9ai2o01secretTokenOfTests"


class AlertSink(HttpPeer):
    """Keeps what it is sent, with the status that it answered.

    `answer(path, body)` gives status, headers and content; by default all is well.
    """

    def __init__(self, port=0):
        self.requests = []
        self.answer = lambda path, body: (200, {}, b'{"ok": true, "result": {}}')
        sink = self

        class Handler(PeerHandler):
            def do_POST(self):  # noqa: N802 - as http.server calls it
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, headers, content = sink.answer(self.path, body)
                if "/sendMessage" in self.path and status == 200 and (why := refusal(body)):
                    status, content = 400, json.dumps({"ok": False, "description": f"Bad Request: {why}"}).encode()
                sink.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body, status))
                self.reply(status, headers, content)

        super().__init__(Handler, port)

    def hang(self):
        """Answers nobody from now on; gives the event of somebody asking, and one that lets go of who waits."""
        asked, ended = threading.Event(), threading.Event()

        def answer(path, body):
            asked.set()
            ended.wait(60)
            return 200, {}, b"{}"

        self.answer = answer
        return asked, ended

    @property
    def bodies(self):
        """What was taken."""
        return [body for _, _, body, status in list(self.requests) if status == 200]

    @property
    def count(self):
        """So many alerts were told."""
        return sum(body["count"] for body in self.bodies)

    def wait_for(self, count, seconds=30.0):
        """Waits until so many alerts were told, and gives the bodies."""
        until(lambda: self.count >= count, seconds)
        return self.bodies


class _Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.wrong, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag not in ("b", "i", "code", "pre", "a", "s", "u"):
            self.wrong.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text += data


def refusal(body):
    """Why Telegram would not take a message; None where it would."""
    if not isinstance(body.get("chat_id"), int) or body.get("parse_mode") != "HTML":
        return "chat not found"
    if not body["text"] or len(body["text"].encode("utf-16-le")) // 2 > 4096:
        return "message is too long"
    tags = _Tags()
    tags.feed(body["text"])
    tags.close()
    return "can't parse entities" if tags.open or tags.wrong else None


def shown(body):
    """The text of a Telegram message as people see it."""
    tags = _Tags()
    tags.feed(body["text"])
    tags.close()
    return tags.text


class AlertProcess:
    """`jarvis alerts` as a process of its own; what it says goes to a file."""

    def __init__(self, root, environ, *arguments):
        self.said_file = root / f"alerts-said-{time.monotonic_ns()}"
        with self.said_file.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "jarvis_otel.cli.main", "alerts", *arguments],
                stdout=said,
                stderr=said,
                env=environ,
            )
        self.state = Path(environ["JARVIS_HOME"]) / "var" / "alerts"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=30)

    @property
    def said(self):
        return self.said_file.read_text()

    @property
    def status(self):
        try:
            return json.loads((self.state / "status.json").read_bytes())
        except FileNotFoundError:
            return {}

    def on_duty(self):
        """Waits until it is this process that alerts."""
        until(lambda: self.process.poll() is not None or self._is_on_duty(), 30)
        assert self.process.poll() is None, self.said
        return self

    def _is_on_duty(self):
        return self.status.get("pid") == self.process.pid and self.status["running"]

    def stop(self):
        self.process.terminate()
        return self.process.wait(timeout=30)

    def kill(self):
        self.process.kill()
        self.process.wait(timeout=30)
