"""`jarvis up`: collector, web page and Telegram bot together, each a process that is started again when it ends."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Self

from jarvis_collector.config import reachable_url
from jarvis_otel.cli.command import load_settings
from jarvis_otel.otlp_settings import DEFAULT_ENDPOINT
from jarvis_otel.settings import Settings
from jarvis_otel.terminal import DONE, WRONG, printable

__all__ = ["add_parser"]

_EPILOG = """\
example:
  jarvis up

It prints a line for each: where the collector listens, the URL that logs in to the web page, that the bot starts (where
there is a telegram_token), and what alerts tell (where alerts are set; jarvis web tells them). One that ends is started
again, later and later while it keeps ending. Ctrl-C and SIGTERM end all of them; on Linux they end too when it is
killed.
"""
_START_S = 30.0
_STOP_S = 5.0
_LOOK_S = 0.2
_DELAYS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SETTLED_S = 5.0
"""What cannot run as it is has ended by then."""
_STEADY_S = 60.0
"""What has run so long begins with the shortest delay again."""
_PR_SET_PDEATHSIG = 1  # of prctl(2)


class _WrongError(Exception):
    """One of them cannot run as it is."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "up",
        help="run collector, web page and Telegram bot together",
        description="Runs the collector, the web page with alerts, and the Telegram bot where one is set up.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=run)


def run(_: argparse.Namespace) -> int:
    """Runs them until told to stop; 0 then, 2 where one cannot run as it is."""
    settings = load_settings()
    if settings is None:
        return WRONG
    with tempfile.TemporaryDirectory(prefix="jarvis-up-") as place, _Signals() as signals:
        try:
            _Company(settings, Path(place), signals).run()
        except _WrongError as error:
            print(f"jarvis up: {error}", file=sys.stderr)
            return WRONG
    return DONE


class _Signals:
    """SIGINT, SIGTERM and SIGHUP as something to wait for."""

    def __enter__(self) -> Self:
        self.told = False
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in numbers}
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.told = True

    def fileno(self) -> int:
        return self._read


class _Child:
    """One of them.

    Args:
        name: The command of `jarvis` that it is.
        arguments: What the command is given.
    """

    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        self.arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None
        self.due = 0.0
        self.began = 0.0
        self.ended = 0
        self.output = b""

    def start(self, environ: Mapping[str, str]) -> None:
        command = [sys.executable, "-P", "-m", "jarvis_otel.cli.main", self.name, *self.arguments]
        self.process = subprocess.Popen(  # noqa: S603
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # a session of its own: Ctrl-C is for us, and we end them in order
            start_new_session=True,
            # as we have one thread, nothing can be locked in the child
            preexec_fn=_ends_with_us(),  # noqa: PLW1509
        )
        self.began, self.output = time.monotonic(), b""

    def lines(self) -> Iterator[str]:
        """The lines that it has printed since it was last asked, once there is something to read."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.output += os.read(self.process.stdout.fileno(), 64 * 1024)
        *whole, self.output = self.output.split(b"\n")
        for line in whole:
            yield printable(line.decode("utf-8", "replace"))

    def has_ended(self) -> int | None:
        """Its exit code where it has ended since it was last asked."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        if time.monotonic() - self.began >= _STEADY_S:
            self.ended = 0
        self.due = time.monotonic() + _DELAYS_S[min(self.ended, len(_DELAYS_S) - 1)]
        self.ended += 1
        return code

    def stop(self) -> None:
        """Ends it, and waits until it has."""
        if (process := self.process) is None:
            return
        with process:
            for end in (process.terminate, process.kill):
                end()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    # who cannot print any more cannot end
                    process.communicate(timeout=_STOP_S)
                    break
        self.process = None


class _Company:
    """All of them, and what is said of them.

    Args:
        settings: The settings.
        place: A directory for what they report.
        signals: What ends it.
    """

    def __init__(self, settings: Settings, place: Path, signals: _Signals) -> None:
        self._settings = settings
        self._signals = signals
        self._port_file = place / "port"
        self._collector = _Child("collector", "--port-file", str(self._port_file))
        self._children = [self._collector, _Child("web")]
        if settings.telegram.token:
            self._children.append(_Child("telegram"))
        # what ends with `wrong usage` before all have begun has a cure, which is not to try again
        self._all_began = False
        self._environ = dict(os.environ)
        self._port = 0

    def run(self) -> None:
        """Runs them until a signal comes.

        Raises:
            _WrongError: One of them cannot run as it is.
        """
        try:
            self._start_collector()
            for child in self._children[1:]:
                self._start(child)
            if self._settings.alerts.kinds:
                _say("alerts", f"of {', '.join(sorted(self._settings.alerts.kinds))}, told by jarvis web")
            while not self._signals.told:
                self._wait()
                self._look()
        finally:
            # the collector last: it is to take what the others still have
            for child in reversed(self._children):
                child.stop()

    def _start_collector(self) -> None:
        """Starts the collector and waits until it listens: the others are to find it."""
        settings, collector = self._settings, self._collector
        collector.start(self._environ)
        deadline = time.monotonic() + _START_S
        while not self._port_file.exists() and not self._signals.told:
            self._look()
            if time.monotonic() > deadline:
                raise _WrongError(f"the collector does not listen after {_START_S:g} s")
            self._wait()
        if self._signals.told:
            return
        self._port = int(self._port_file.read_text())
        url = reachable_url(settings.collector.host, self._port, tls=settings.collector.tls_cert is not None)
        if settings.otlp_endpoint == DEFAULT_ENDPOINT:
            self._environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
        # started again, it is where the others know it to be
        collector.arguments = ("--port", str(self._port))
        _say("collector", f"{url}, writes {settings.log_dir}")

    def _start(self, child: _Child) -> None:
        child.start(self._environ)
        if child.name == "telegram":
            _say("telegram", "the bot starts")

    def _wait(self) -> None:
        """Until one of them prints something, or ends, or a signal comes."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ, None)
            for child in self._children:
                if child.process is not None and child.process.stdout is not None:
                    selector.register(child.process.stdout, selectors.EVENT_READ, child)
            for key, _ in selector.select(_LOOK_S):
                if key.data is not None:
                    for line in key.data.lines():
                        _say(key.data.name, line)

    def _look(self) -> None:
        """Tells of those that have ended, and starts those again whose time has come."""
        for child in self._children:
            if (code := child.has_ended()) is not None:
                # a token that was revoked is no reason to take no records
                if code == WRONG and not self._all_began and child.name != "telegram":
                    raise _WrongError(f"jarvis {child.name} cannot run as it is")
                how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
                wait = child.due - time.monotonic()
                print(f"jarvis up: {child.name} {how}; again in {wait:.1f} s", file=sys.stderr, flush=True)
            elif child.process is None and child.began and time.monotonic() >= child.due:
                self._start(child)
        settled = [child.process and time.monotonic() - child.began > _SETTLED_S for child in self._children]
        self._all_began = self._all_began or all(settled)


def _ends_with_us() -> Callable[[], None] | None:
    """What has a child ended when we are killed, who can then end nothing any more; None where the kernel cannot."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return None
    ours = os.getpid()

    def ask_for_it() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != ours:  # we were killed before it was asked for
            os._exit(WRONG)

    return ask_for_it


def _say(name: str, what: str) -> None:
    print(f"{name:<10} {what}", flush=True)
