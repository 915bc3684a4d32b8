"""`jarvis web` in a process of its own, as people and programs meet it."""

import http.client
import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from urllib.parse import urlsplit


class WebServer:
    """A running `jarvis web`; `url` and `token` are out of the line that it printed."""

    def __init__(self, process):
        self.process = process
        self.login_url = process.stdout.readline().strip()
        assert self.login_url, "it printed no URL"
        self.url, _, self.token = self.login_url.partition("/login?t=")
        self.port = urlsplit(self.url).port

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body of one request; underscores in names of headers are hyphens."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def log_in(self):
        """The cookie of a new session."""
        _, headers, _ = self.ask("GET", f"/login?t={self.token}")
        return headers["set-cookie"].partition(";")[0]

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(20)


@contextmanager
def web_server(*arguments, **environ):
    command = [sys.executable, "-W", "error", "-m", "jarvis_otel.cli.main", "web", "--port", "0", *arguments]
    env = {**os.environ, "OTEL_LOGS_EXPORTER": "none", **environ}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    with process:
        try:
            yield WebServer(process)
        finally:
            process.kill()
            process.communicate()
