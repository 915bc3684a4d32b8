"""`jarvis demo`: runs Jarvis in small, breaks a trade, and finds out why, as its people would."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, Self

from jarvis_otel.terminal import DONE, NO, WRONG, Paint, wants_color

__all__ = ["add_parser"]

_EPILOG = """\
example:
  jarvis demo

It works in .demo/ of the working directory, which it makes anew, and on free ports of this machine. It ends by itself.
"""

_SERVICES = {"api", "dexter", "trading"}
_MARKER = ".made-by-jarvis-demo"
_START_SECONDS = 20.0
_COMMAND_SECONDS = 20.0
_STEP_SECONDS = 10.0
_STOP_SECONDS = 5.0

_BROKE, _ADVANCED, _RICH = "123456789", "135792468", "987654321"
"""Users: two with 0.5 SOL, of whom the second is in the 10 % of ADVANCED_TRADING_ENABLED, and one with plenty."""


class _DemoError(Exception):
    """A step did not show what it should."""


class _RefusedError(Exception):
    """The demo cannot begin."""


class _SignalledError(BaseException):
    """Somebody asked the demo to end."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "demo",
        help="run Jarvis in small, break a trade and find out why",
        description="Runs Jarvis in small, breaks a trade, and walks through finding out why.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:  # noqa: ARG001
    """Runs the demo; 0 when each step showed what it should, 1 when one did not, 2 when it could not begin."""
    try:
        if find_spec("httptools") is None:
            raise _RefusedError("httptools is missing: pip install 'jarvis-otel[collector]'")
        example = _example()
        with _own_directory(Path.cwd() / ".demo") as home, _Children(home) as children:
            _Demo(home, example, children).run()
    except _RefusedError as error:
        print(f"jarvis demo: {error}", file=sys.stderr)
        return WRONG
    except BrokenPipeError:
        raise  # whoever read us has seen enough: `main` knows what to do
    except (_DemoError, OSError) as error:
        print(f"jarvis demo: {error}", file=sys.stderr)
        return NO
    except _SignalledError as stop:
        return 128 + int(stop.args[0])
    return DONE


def _example() -> Path:
    """The example's directory, in a wheel or in the checkout."""
    package = Path(__file__).parents[1]
    for place in (package, package.parent):
        if (found := place / "examples" / "jarvis_bot").is_dir():
            return found
    raise _RefusedError(f"{package / 'examples' / 'jarvis_bot'}: no such directory; install jarvis-otel again")


@contextlib.contextmanager
def _own_directory(home: Path) -> Iterator[Path]:
    """An empty directory that is the demo's alone while it runs; what an earlier demo left there is removed.

    Raises:
        _RefusedError: Somebody else made the directory, or works in it.
    """
    marker = home / _MARKER
    with contextlib.ExitStack() as stack:
        try:
            if home.is_symlink() or not marker.is_file():
                home.mkdir(mode=0o750)
                marker.write_text("Made by `jarvis demo`, which empties this directory when it runs again.\n")
            lock = stack.enter_context(marker.open("r+"))
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for entry in home.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry != marker:
                    entry.unlink()
        except FileExistsError:
            raise _RefusedError(f"{home}: not made by jarvis demo, so left alone; move it away") from None
        except BlockingIOError:
            raise _RefusedError(f"{home}: another jarvis demo is running here") from None
        except OSError as error:
            raise _RefusedError(f"{error.filename or home}: {error.strerror}") from None
        yield home


class _Children:
    """The processes of the demo: each leads a session of its own, and all end with the demo, however that ends.

    Args:
        home: The demo's directory.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, home: Path) -> None:
        self._home = home
        self._started: list[subprocess.Popen[str]] = []
        self._handlers: dict[signal.Signals, Any] = {}
        self._holding = False
        self._held: int | None = None

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._on_signal) for number in self._SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._holding = True
        # the last one first: the collector is to take what the others still have
        for process in reversed(self._started):
            if process.poll() is None:
                _end(process)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._holding:
            self._held = number
        else:
            self._holding = True  # a second one must not interrupt the way out
            raise _SignalledError(number)

    def start(self, command: Sequence[str], environ: Mapping[str, str], **streams: Any) -> subprocess.Popen[str]:
        """Starts a process; no signal can come between its start and its entry in the list of those to end."""
        self._holding = True
        process = subprocess.Popen(  # noqa: S603
            command, env=environ, stdin=subprocess.DEVNULL, encoding="utf-8", start_new_session=True, **streams
        )
        self._started.append(process)
        self._holding = False
        if self._held is not None:
            raise _SignalledError(self._held)
        return process

    def serve(self, name: str, command: Sequence[str], environ: Mapping[str, str]) -> int:
        """Starts a server that reports its port, and waits until it listens.

        Args:
            name: What it is called.
            command: Its command line, to which `--port` and `--port-file` are added.
            environ: Its environment.

        Returns:
            Its TCP port.
        """
        port_file, output = self._home / f"{name}.port", self._home / f"{name}.out"
        with output.open("w") as stream:
            process = self.start(
                [*command, "--port", "0", "--port-file", str(port_file)], environ, stdout=stream, stderr=stream
            )
        _until(f"{name} listens", lambda: port_file.exists() or process.poll() is not None, _START_SECONDS)
        if not port_file.exists():
            last = (output.read_text().rstrip().splitlines() or ["it said nothing"])[-1]
            raise _DemoError(f"{name} ended with {process.returncode}: {last}")
        return int(port_file.read_text())

    def shell(self, command: str, environ: Mapping[str, str]) -> tuple[int, str]:
        """Runs a command line as a person would type it, in which `jarvis` and `python` are the demo's own.

        Returns:
            Exit code, and what a terminal would have shown.
        """
        python = shlex.quote(sys.executable)
        script = f'python() {{ {python} "$@"; }}; jarvis() {{ {python} -P -m jarvis_otel.cli.main "$@"; }}; {command}'
        process = self.start(["sh", "-c", script], environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            out, _ = process.communicate(timeout=_COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            raise _DemoError(f"no answer within {_COMMAND_SECONDS:g} s: {command}") from None
        return process.returncode, out


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process and those that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
            return


class _Demo:
    """The story, step by step.

    Args:
        home: The demo's directory, empty.
        example: Where the example's programs are.
        children: Where processes are started.
    """

    def __init__(self, home: Path, example: Path, children: _Children) -> None:
        from jarvis_otel.query.log_query import LogQuery  # noqa: PLC0415 - `jarvis --help` needs none of it

        self._home = home
        self._example = example
        self._children = children
        self._paint = Paint(color=wants_color(sys.stdout))
        # neither the user's settings, nor colours amid what is checked
        foreign = ("JARVIS_", "OTEL_", "FF_", "FORCE_COLOR")
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        # a proxy would not reach this machine's loopback
        self._environ |= {
            "JARVIS_HOME": str(home),
            "no_proxy": "*",
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
        }
        self._logs = LogQuery(home / "logs")
        self._ports: dict[str, int] = {}

    def run(self) -> None:
        """Tells the story."""
        began = time.monotonic()
        self._start()
        self._trade_dry()
        self._turn_dexter_on()
        since = f"{datetime.now().astimezone():%H:%M}"
        self._trade_live()
        self._debug(since)
        self._title(f"Done in {time.monotonic() - began:.0f} s")
        self._say("Everything is still in .demo/: config, var (state and audit), logs. Look around:")
        self._say(self._paint("  export JARVIS_HOME=.demo", "bold"))
        self._say(self._paint("  jarvis logs errors --by flag", "bold"))

    def _start(self) -> None:
        self._title("Jarvis starts: a collector, and three processes that call each other")
        (self._home / "config").mkdir()
        shutil.copy(self._example / "config" / "flags.yaml", self._home / "config")
        (self._home / "config" / "jarvis.yaml").write_text("console: human\n")
        jarvis = [sys.executable, "-P", "-m", "jarvis_otel.cli.main"]
        endpoint = f"http://127.0.0.1:{self._serve('collector', [*jarvis, 'collector'])}"
        self._environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
        trading = f"http://127.0.0.1:{self._serve_example('trading')}"
        dexter = f"http://127.0.0.1:{self._serve_example('dexter')}"
        self._serve_example("api", "--trading", trading, "--dexter", dexter)
        self._command("jarvis flags list", "DEXTER_ENABLED", "LIVE_TRADING_ENABLED")

    def _trade_dry(self) -> None:
        self._title("Three users buy WIF for 1 SOL while LIVE_TRADING_ENABLED is off: dry runs")
        for user in (_RICH, _ADVANCED, _BROKE):
            self._order(user, 200, "dry run")
        self._say(f"(A rule in the file has Dexter speak to user {_BROKE} already.)")

    def _turn_dexter_on(self) -> None:
        self._title("Dexter is turned on while he runs")
        before = self._dexter()
        self._expect(before["decision"] == "HOLD", f"Dexter decides HOLD while he is off, not {before['decision']}")
        self._say(f"Dexter, process {before['pid']}, decides {before['decision']}: DEXTER_ENABLED is off")
        self._command("jarvis flags enable DEXTER_ENABLED --reason 'go live' --by ana --yes", "is on")
        _until("Dexter sees that he is on", lambda: self._dexter()["decision"] == "BUY")
        after = self._dexter()
        self._expect(after["pid"] == before["pid"], "Dexter is still the same process")
        self._say(f"Dexter, still process {after['pid']}, decides {after['decision']}: no restart")
        self._command("jarvis flags history DEXTER_ENABLED", "ana", "go live")

    def _trade_live(self) -> None:
        self._title("Live trading is turned on, and the three buy again; the wallets are paper")
        self._command("jarvis flags enable LIVE_TRADING_ENABLED --reason 'wallets are paper' --by ana --yes", "is on")
        self._order(_RICH, 200, "executed")
        self._order(_ADVANCED, 200, "executed")
        self._order(_BROKE, 409, "InsufficientBalanceError")

    def _debug(self, since: str) -> None:
        self._title(f'"My trade failed at {since}": which flags were on, what led to it, how is it reproduced?')
        self._wait_for_error()

        self._step(1, "Find the error by its time and level")
        query = f"jarvis logs query --since {since} --level ERROR"
        self._command(query, "InsufficientBalanceError")

        self._step(2, "Its correlation id")
        record = self._record(f"{query} --format jsonl", "correlation_id", "user_id", "flags")
        correlation_id, context = record["correlation_id"], record["context"]
        self._expect(record["user_id"] == _BROKE, f"the error is that of user {_BROKE}, not {record['user_id']}")

        self._step(3, "All that this id ties together, across the processes, with the flags at each step")
        self._command(
            f"jarvis logs trace {correlation_id}",
            *(*_SERVICES, "DEXTER_ENABLED=on", "ADVANCED_TRADING_ENABLED=off", "InsufficientBalanceError"),
        )

        self._step(4, "The flag that was OFF, and whether that has to do with it")
        off = sorted(flag_id for flag_id, variant in record["flags"].items() if variant == "off")
        self._expect(off == ["ADVANCED_TRADING_ENABLED"], f"ADVANCED_TRADING_ENABLED alone was off, not {off}")
        self._say(f"{self._paint(off[0], 'bold')} was off for user {_BROKE}")
        self._command(f"jarvis logs errors --since {since} --by flag", "ADVANCED_TRADING_ENABLED")
        self._command(f"jarvis flags explain {off[0]} --user {_BROKE}", "percentage")

        self._step(5, "The lines that give the same flags again")
        self._command(f"jarvis logs reproduce {correlation_id}", "export FF_ADVANCED_TRADING_ENABLED=false")

        self._step(6, "The same trade under these flags, in a fresh process that knows no other state")
        trade = {"id": "again", "user_id": _BROKE, "symbol": context["symbol"], "amount_sol": context["amount_sol"]}
        same_flags = (
            f'export JARVIS_STATE_DIR=fresh\neval "$(jarvis logs reproduce {correlation_id} --include-dangerous)"'
        )
        program = shlex.quote(str(_shortest(self._example / "trading.py")))
        again = f"python {program} --trade {shlex.quote(json.dumps(trade))}"
        error = f"{record['error']['type']}: {record['error']['message']}"
        self._command(f"{same_flags}\n{again}", error, status=1)
        self._say("The same error. And with the flag on:")
        self._command(f"{same_flags}\nexport FF_ADVANCED_TRADING_ENABLED=true\n{again}", '"executed"')

    # --- doing ---

    def _serve(self, name: str, command: Sequence[str]) -> int:
        port = self._ports[name] = self._children.serve(name, command, self._environ)
        self._say(f"{name:<10} http://127.0.0.1:{port}")
        return port

    def _serve_example(self, name: str, *options: str) -> int:
        return self._serve(name, [sys.executable, str(self._example / f"{name}.py"), *options])

    def _post(self, server: str, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[server], timeout=_STEP_SECONDS)
        try:
            connection.request("POST", path, json.dumps(body))
            response = connection.getresponse()
            return response.status, json.load(response)
        except (OSError, http.client.HTTPException) as error:
            raise _DemoError(f"{server} does not answer POST {path}: {error}") from None
        finally:
            connection.close()

    def _order(self, user: str, wanted_status: int, wanted: str) -> None:
        status, answer = self._post("api", "/orders", {"user_id": user, "symbol": "WIF", "amount_sol": 1.0})
        result = answer.get("error") or f"{answer['result']}, {answer['paid_sol']:g} SOL paid"
        self._say(f"POST /orders of user {user} → {status} {result} (Dexter says {answer.get('dexter')})")
        self._expect(status == wanted_status and wanted in result, f"the order of user {user} gives {wanted!r}")

    def _dexter(self) -> dict[str, Any]:
        return self._post("dexter", "/status", {})[1]

    def _wait_for_error(self) -> None:
        """Waits until the failed trade is in the log files as a whole: the applications ship behind their work."""

        def complete() -> bool:
            errors = self._logs.search(level="ERROR")
            if not errors:
                return False
            trace = self._logs.trace(errors[0]["correlation_id"])
            return all({item["service"] for item in items} >= _SERVICES for items in (trace.spans, trace.records))

        _until("the failed trade is in the log files", complete)

    # --- showing ---

    def _title(self, text: str) -> None:
        self._say(f"\n{self._paint(f'== {text}', 'cyan')}")

    def _step(self, number: int, text: str) -> None:
        self._say(f"\n{self._paint(f'{number}. {text}', 'bold')}")

    def _say(self, text: str) -> None:
        # UTF-8 whatever the terminal says, as `jarvis logs` writes it
        sys.stdout.buffer.write(f"{text}\n".encode("utf-8", "backslashreplace"))
        sys.stdout.buffer.flush()

    def _command(self, command: str, *wanted: str, status: int = 0) -> None:
        """Runs a command, shows it with its output, and checks that the output holds what is wanted."""
        self._prompt(command)
        code, out = self._children.shell(command, self._environ)
        for line in out.splitlines():
            self._say(f"  {line}")
        shown = command.replace("\n", "; ")
        missing = [text for text in wanted if text not in out]
        self._expect(not missing, f"`{shown}` shows {', '.join(missing)}")
        self._expect(code == status, f"`{shown}` ends with {status}, not {code}")

    def _record(self, command: str, *keys: str) -> dict[str, Any]:
        """The one record that a query finds; of it these keys are shown."""
        self._prompt(command)
        _, out = self._children.shell(command, self._environ)
        records = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        self._expect(len(records) == 1, f"`{command}` finds one record, not {len(records)}")
        record: dict[str, Any] = records[0]
        for key in keys:
            self._say(f"  … {json.dumps(key)}: {json.dumps(record.get(key))}")
        return record

    def _prompt(self, command: str) -> None:
        for line in command.split("\n"):
            self._say(f"{self._paint('$', 'dim')} {self._paint(line, 'bold')}")

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            raise _DemoError(f"expected that {what}; see {self._home}")


def _shortest(path: Path) -> Path:
    """The path from the working directory, where it lies below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _until(what: str, holds: Callable[[], bool], seconds: float = _STEP_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise _DemoError(f"expected within {seconds:g} s that {what}")
        time.sleep(0.02)
