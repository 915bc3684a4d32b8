"""Somebody who does what a page of the docs says; tests/test_docs.py has the rules."""

import contextlib
import importlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

from jarvis_flags.parse import parse_flags
from jarvis_flags.tree import TreeError, load_tree
from jarvis_otel import settings
from jarvis_otel.cli.main import COMMANDS, CommandParser
from tests.doc_pages import ROOT, programs, read_page
from tests.doc_projects import GIVEN, PEERS
from tests.ports import free_port

PORTS = ("4317", "4318", "8080", "8000", "5000")
EVENTUALLY_S = 30
BLOCK_S = 60
CHECKED_ELSEWHERE = {"logql": "tests/test_real_dashboards.py"}
OUTPUT = ("console", "text")


class Reader:
    """Somebody who does what a page says, in a directory of their own."""

    def __init__(self, home, is_real):
        self.home, self.is_real = home, is_real
        self.ports = {port: str(free_port()) for port in PORTS}
        self.missing = []
        self.python = ""
        self._servers = []
        self._provided = contextlib.ExitStack()
        self._here = set()
        path = os.pathsep.join((str(home / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
        self.environ = {
            **{k: v for k, v in os.environ.items() if k != "JARVIS_HOME" and not k.startswith("PYTEST_")},
            "PATH": path,
            "HOME": str(home),
            "JARVIS_COLLECTOR_PORT": self.ports["4318"],
            "JARVIS_COLLECTOR_GRPC_PORT": self.ports["4317"],
            "JARVIS_WEB_PORT": self.ports["8080"],
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.ports['4318']}",
        }
        self.directory = home / "project"
        self.directory.mkdir()
        (home / "bin").mkdir()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self._servers):
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(15)
        self._provided.close()

    def takes(self, block):
        """Does what a block says."""
        check_commands(block)
        if block.value("skip"):
            return
        if block.language in CHECKED_ELSEWHERE:
            assert f"```{block.language}" in (ROOT / CHECKED_ELSEWHERE[block.language]).read_text()
            return
        for name in block.values.get("needs", ()):
            if not self._has(name):
                self.missing.append(f"{name} ({block.place})")
                return
        for name in block.values.get("given", ()):
            self._provide(GIVEN[name])
        if check := CHECKS.get(block.language):
            check(block)
        if file := block.value("file"):
            path = self.home / "project" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._with_ports(block.text))
        elif "server" in block.words:
            self._starts(block)
        elif block.language in ("sh", "python"):
            self._runs(block)
        elif block.language not in (*CHECKS, *OUTPUT):
            pytest.fail(f"{block.place}: {block.language} is neither run nor checked; see tests/test_docs.py")

    def _has(self, name):
        if name not in PEERS:
            return subprocess.run(["which", name], capture_output=True, check=False).returncode == 0
        if self.is_real and name not in self._here:
            self._here.add(name)
            self._provide(PEERS[name])
        return self.is_real

    def _provide(self, provided):
        ports, environ = self._provided.enter_context(provided(self.home))
        self.ports |= ports
        self.environ |= environ

    def _with_ports(self, text):
        return re.sub(rf"\b({'|'.join(self.ports)})\b", lambda found: self.ports[found[1]], text)

    def _starts(self, block):
        lines = [line for _, line in block.commands() if line.strip()]
        awaited = block.values.get("until", [])
        assert len(awaited) in (0, len(lines)), f"{block.place}: {len(lines)} servers, {len(awaited)} until="
        for number, line in enumerate(lines):
            said = self.home / f"server-{len(self._servers)}"
            with said.open("wb") as out:
                process = subprocess.Popen(
                    ["bash", "-c", self._with_ports(line)],
                    cwd=self.directory,
                    env=self.environ,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._servers.append(process)
            deadline = time.monotonic() + BLOCK_S
            while awaited and awaited[number] not in said.read_text(errors="replace"):
                if process.poll() is not None or time.monotonic() > deadline:
                    state = "ran on" if process.poll() is None else f"ended with {process.poll()}"
                    pytest.fail(
                        f"{block.place}: {line!r} {state} without {awaited[number]!r}:\n{end_of(said.read_bytes())}"
                    )
                time.sleep(0.05)

    def _runs(self, block):
        padding = "\n" * (block.line - 1)
        if block.language == "python":
            before = self.python if "continues" in block.words else ""
            self.python = before + "\n" * (block.line - 1 - before.count("\n")) + block.text
            command = [sys.executable, "-c", self._with_ports(self.python)]
        else:
            text = "".join("\n" if is_checked(line) else f"{line}\n" for line in block.text.splitlines())
            told = f'trap \'pwd -P >"{self.home}/cwd"; env -0 >"{self.home}/env"\' EXIT'
            failed = f"trap 'echo {block.page}:$LINENO: ended with $? >&2' ERR;"
            script = f"{failed}{told}{padding}{text}"
            command = ["bash", "-aeo", "pipefail", "-c", self._with_ports(script), block.page]
        deadline = time.monotonic() + (EVENTUALLY_S if "eventually" in block.words else 0)
        while (problem := self._problem(block, command)) and time.monotonic() < deadline:
            time.sleep(0.2)
        if problem:
            pytest.fail(problem)
        if block.language == "sh":
            self.directory = Path((self.home / "cwd").read_text().strip())
            pairs = (pair.partition("=") for pair in (self.home / "env").read_text().split("\0") if pair)
            self.environ = {name: value for name, _, value in pairs if name not in ("_", "SHLVL")}

    def _problem(self, block, command):
        try:
            done = subprocess.run(
                command,
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=BLOCK_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return f"{block.place}: did not end within {BLOCK_S} s:\n{end_of(error.stdout or b'')}"
        said = done.stdout.decode(errors="replace")
        wanted = int(block.value("exits", "0"))
        if done.returncode != wanted:
            return f"{block.place}: ended with {done.returncode}, want {wanted}:\n{end_of(done.stdout)}"
        if re.search(r"^Traceback \(", said, re.MULTILINE):
            return f"{block.place}: a traceback:\n{end_of(done.stdout)}"
        for text in block.values.get("says", ()):
            if text not in said:
                return f"{block.place}: {text!r} is not in what was said:\n{end_of(done.stdout)}"
        return None


def end_of(said):
    """The last of what a program said, as much as helps."""
    return said.decode(errors="replace")[-3000:]


def is_checked(line):
    """Whether a line of a shell is only looked at: it would install, or build."""
    return line.startswith(("pip install ", "make "))


@cache
def jarvis_parser():
    parser = CommandParser(prog="jarvis")
    parser.add_argument("--version", action="version", version="")
    commands = parser.add_subparsers(required=True)
    for name in COMMANDS:
        importlib.import_module(f"jarvis_otel.cli.{name}").add_parser(commands)
    return parser


class ArgumentsError(Exception):
    """A parser did not take its arguments."""


def refuse(_, message):
    raise ArgumentsError(message)


def problem_of(arguments):
    """What `jarvis` has against its arguments, or nothing."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None):
        patch.setattr(CommandParser, "error", refuse)
        try:
            jarvis_parser().parse_args(arguments)
        except ArgumentsError as refused:
            return str(refused)
        except SystemExit:
            pass
    return ""


def check_commands(block):
    """What is said to jarvis, pip and make is what they understand."""
    if block.language not in ("sh", "console"):
        return
    for line, command in block.commands():
        for program, *arguments in programs(command):
            if program == "jarvis":
                problem = problem_of(arguments)
                assert not problem, f"{block.page}:{line}: {command!r}: {problem}"
            elif program == "pip" and arguments[:1] == ["install"]:
                check_installed(f"{block.page}:{line}", arguments[1:])
            elif program == "make":
                targets = [word for word in arguments if "=" not in word]
                known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                assert set(targets) <= set(known), f"{block.page}:{line}: {command!r}: no such target"


def check_installed(place, requirements):
    for requirement in requirements:
        if requirement.startswith("-"):
            continue
        name, extras = re.fullmatch(r"([^\[]+)(?:\[([\w,]+)\])?", requirement).groups()
        name = "jarvis-otel" if name in ("../jarvis-otel", ".") else name
        try:
            there = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.fail(f"{place}: {name} is not in this environment, so what the page does with it was not tried")
        unknown = set(filter(None, (extras or "").split(","))) - set(there.get_all("Provides-Extra") or ())
        assert not unknown, f"{place}: {name} has no extra {', '.join(unknown)}"


def check_yaml(block):
    try:
        content = yaml.safe_load(block.text)
    except yaml.YAMLError as error:
        pytest.fail(f"{block.place}: {error}")
    if isinstance(content, dict):
        if isinstance(content.get("flags"), dict):
            check_flags(block)
        elif content.keys() & settings._KEYS:
            check_settings(block)


def check_flags(block):
    try:
        problems = parse_flags(load_tree(block.text), block.page).problems
    except TreeError as error:
        pytest.fail(f"{block.place}: {error}")
    assert not problems, f"{block.place}: {[str(problem) for problem in problems]}"


def check_settings(block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JARVIS_HOME", os.environ["JARVIS_HOME"])
        file = Path(os.environ["JARVIS_HOME"]) / "config" / "jarvis.yaml"
        file.write_text(block.text)
        problems = settings.Settings.load().problems
    assert not problems, f"{block.place}: {problems}"


def check_json(block):
    lines = block.text.splitlines() if block.language == "jsonl" else [block.text]
    for line in lines:
        try:
            content = json.loads(line)
        except ValueError as error:
            pytest.fail(f"{block.place}: {error}")
        if isinstance(content, dict) and {"version", "flags"} <= content.keys():
            check_flags(block)


def check_toml(block):
    try:
        tomllib.loads(block.text)
    except tomllib.TOMLDecodeError as error:
        pytest.fail(f"{block.place}: {error}")


def check_python(block):
    try:
        compile("\n" * (block.line - 1) + block.text, block.page, "exec")
    except SyntaxError as error:
        pytest.fail(f"{block.page}:{error.lineno}: {error.msg}")


CHECKS = {
    "yaml": check_yaml,
    "json": check_json,
    "jsonl": check_json,
    "toml": check_toml,
    "python": check_python,
}


def peers_of(path):
    return {name for block in read_page(path).blocks for name in block.values.get("needs", ())} & PEERS.keys()


def take(page, home, *, is_real):
    home.mkdir()
    with Reader(home, is_real) as reader:
        for block in page.blocks:
            reader.takes(block)
    return reader.missing


def broken_links(page):
    broken = []
    for line, link in page.links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = ((ROOT / page.path).parent / file).resolve() if file else ROOT / page.path
        if not target.exists():
            broken.append(f"{page.path}:{line}: {link}: there is no such file")
        elif file and not target.is_relative_to(ROOT):
            broken.append(f"{page.path}:{line}: {link}: leads out of the checkout")
        elif anchor and target.suffix == ".md" and anchor not in read_page(str(target)).anchors:
            broken.append(f"{page.path}:{line}: {link}: {target.name} has no heading of that name")
    return broken


def unknown_commands(page):
    unknown = []
    for line, code in page.code:
        if not code.startswith("jarvis ") or re.search(r"[|…\[{]", code):
            continue
        problem = problem_of(next(programs(code))[1:])
        if problem.startswith(("unrecognized arguments", "argument COMMAND: invalid choice", "invalid choice")):
            unknown.append(f"{page.path}:{line}: {code}: {problem}")
    return unknown
