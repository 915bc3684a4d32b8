"""The reference is the code's own: generated parts are what the generator gives, all other names are held against it."""

import argparse
import ast
import asyncio
import importlib.machinery
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.sdk import environment_variables as sdk_variables

from jarvis_collector.otlp_http import _RPC_CODES
from jarvis_collector.record import CONTEXT_PREFIX, FLAG_PREFIX, FLAGS_MAX, LINE_KEYS, PLACES
from jarvis_flags.model import FlagDefinition, RolloutRule
from jarvis_flags.parse import parse_flags
from jarvis_flags.settings import SettingsSource
from jarvis_flags.tree import load_tree
from jarvis_otel import flag_hook, propagation
from jarvis_otel import settings as all_settings
from jarvis_otel.admin.outcome import OutcomeKind
from jarvis_otel.cli.main import main
from jarvis_otel.limits import REASONS
from jarvis_otel.pipeline import Counters
from jarvis_otel.query.logql import label_of
from jarvis_otel.query.loki_lines import _NAMES as KNOWN_IN_LOKI
from jarvis_otel.web.app import create_app
from jarvis_otel.web.flags_changes import STATUS
from tests.collectors import commanded, served
from tests.loki_sink import LokiSink
from tests.ports import free_port
from tests.web_sites import make_site, visitor

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"
EVERYTHING = ROOT / "tests" / "everything.py"


def generator():
    loader = importlib.machinery.SourceFileLoader("reference", str(ROOT / "scripts" / "reference"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("reference", loader))
    loader.exec_module(module)
    return module


def rows(page, heading):
    """The cells of the tables below a heading, up to the next one."""
    found, there = [], False
    lines = (PAGES / f"{page}.md").read_text().splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("#"):
            there = line.lstrip("# ") == heading
        elif there and line.startswith("| ") and not following.startswith("| ---") and not line.startswith("| ---"):
            found.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    assert found, f"{page}.md has no table below {heading!r}"
    return found


def cells(page, heading):
    """The further cells of these tables by what the first cell names."""
    listed = {row[0].strip("`"): row[1:] for row in rows(page, heading)}
    assert len(listed) == len(rows(page, heading)), f"{page}.md: twice below {heading!r}"
    return listed


def names(page, heading):
    """What these tables name: the first cells, each of which may have several names."""
    return {name for cell in cells(page, heading) for name in re.split(r"`, `", cell)}


def in_code(text):
    return re.findall(r"`([^`]+)`", text)


# --- the generator ---


def test_the_generated_parts_are_what_the_code_says():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "reference", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_each_part_that_can_be_generated_stands_on_a_page():
    module = generator()
    shown = [part[1] for page in PAGES.glob("*.md") for part in module.PART.findall(page.read_text())]
    assert sorted(shown) == sorted(module.PARTS)


@pytest.mark.parametrize(("page", "line"), [("settings", "| `log_dir` |"), ("flag-file", "| `dangerous` |")])
def test_a_page_without_one_of_its_lines_is_refused_and_written_anew(tmp_path, monkeypatch, capsys, page, line):
    module = generator()
    whole = (PAGES / f"{page}.md").read_text()
    cut = "".join(one for one in whole.splitlines(keepends=True) if not one.startswith(line))
    assert cut != whole
    (tmp_path / f"{page}.md").write_text(cut)
    monkeypatch.setattr(module, "PAGES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert module.main() == 1
    assert capsys.readouterr().err.startswith(f"{page}.md: not what the code says")
    monkeypatch.setattr(sys, "argv", ["reference"])
    assert module.main() == 0
    assert (tmp_path / f"{page}.md").read_text() == whole


# --- commands ---


def examples(parser):
    """The command lines of a parser's examples: behind `example:`, or indented below it."""
    for line in (parser.epilog or "").splitlines():
        if "jarvis " in line and line.startswith(("example: ", "  ")):
            command = line[line.index("jarvis ") :]
            yield shlex.split(command.removesuffix(')"') if "$(" in line else command, comments=True)


def test_each_command_says_what_each_argument_is_for_and_gives_an_example_that_it_takes():
    module = generator()
    root = module.CommandParser(prog="jarvis")
    commands = root.add_subparsers(required=True)
    for name in module.COMMANDS:
        importlib.import_module(f"jarvis_otel.cli.{name}").add_parser(commands)
    for parser in module.parsers():
        for action in parser._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), f"{parser.prog}: {action.dest}"
        shown = list(examples(parser))
        assert shown, f"{parser.prog} shows no example"
        for words in shown:
            assert root.parse_args(words[1:]), words
            assert " ".join(words).startswith(parser.prog), words


def test_a_command_alone_shows_how_it_is_used(capsys):
    for words in ([], ["flags"], ["logs"]):
        assert main([*words, "--help"]) == 0
        assert "example: jarvis" in capsys.readouterr().out


FLAGS = """\
flags:
  F: {}
  RISKY: {dangerous: true}
  PAIR: {approvals: 2}
"""
ENDS = {
    "flags list": 0,
    "flags list --category none": 1,
    "flags show NO_SUCH": 1,
    "flags eval NO_SUCH": 1,
    "flags explain NO_SUCH": 1,
    "flags enable NO_SUCH --reason r": 1,
    "flags rollout NO_SUCH 5 --reason r": 1,
    "flags enable PAIR --reason r": 1,
    "flags enable RISKY --reason r": 2,
    "flags toggle RISKY --reason r": 2,
    "flags rollout RISKY 5 --reason r": 2,
    "flags enable RISKY --yes": 2,
    "flags disable RISKY --yes": 0,
    "flags lint": 0,
    "flags audit --verify": 0,
    "flags export flagd": 0,
    "logs query": 1,
    "logs trace none": 1,
    "logs stats": 1,
    "logs rotate": 1,
    "logs index": 1,
    "logs query --since never": 2,
    "flags list --format xml": 2,
}


def test_commands_end_with_the_codes_of_the_page(own_project, flag_file, capsys):
    flag_file(FLAGS)
    (own_project / "logs").mkdir()
    assert {line: main(line.split()) for line in ENDS} == ENDS
    capsys.readouterr()


def test_what_is_wrong_with_the_files_ends_the_commands_that_look_for_it(own_project, flag_file, capsys):
    flag_file("flags:\n  F: {enabled: maybe}\n")
    assert main(["flags", "lint"]) == 2
    assert main(["flags", "audit"]) == 1
    flag_file(FLAGS)
    assert main(["flags", "disable", "F"]) == 0
    audit = own_project / "var" / "flags" / "audit.jsonl"
    audit.write_text(audit.read_text().replace('"flag":"F"', '"flag":"G"') * 2)
    assert main(["flags", "audit", "--verify"]) == 1
    flag_file("flags:\n  F: {rules: [{type: schedule, value: {days: mon}}]}\n")
    assert main(["flags", "export", "flagd"]) == 2
    theirs = flag_file(
        '{"flags": {"F": {"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "b"}}}', "theirs.json"
    )
    assert main(["flags", "import", "flagd", str(theirs)]) == 2
    capsys.readouterr()


# --- settings ---


def settings_rows():
    module = generator()
    return [row for heading in module.GROUPS.values() for row in rows("settings", heading)]


def test_the_page_has_each_key_of_the_settings_and_no_other():
    listed = [row[0].strip("`") for row in settings_rows()]
    assert sorted(listed) == sorted(all_settings._KEYS)


def test_each_line_of_the_settings_file_shows_the_default(tmp_path):
    shown = (ROOT / "config" / "jarvis.yaml").read_text()
    (tmp_path / "config").mkdir()
    loaded = []
    for text in ("", re.sub(r"^# (?=\w+: )", "", shown, flags=re.MULTILINE)):
        (tmp_path / "config" / "jarvis.yaml").write_text(text)
        loaded.append(all_settings.Settings.load({}, tmp_path))
    unset, written = loaded
    assert written.problems == ()
    # whether somebody named a file is no value of its
    named = {"flags", "reload"}
    for field in fields(all_settings.Settings):
        if field.name not in named:
            assert getattr(written, field.name) == getattr(unset, field.name), field.name
    for field in fields(unset.flags):
        if field.name != "flags_file_named":
            assert getattr(written.flags, field.name) == getattr(unset.flags, field.name), field.name


class Noting(dict):
    """An environment that notes which variables are looked up."""

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.asked = set()

    def get(self, name, default=None):
        self.asked.add(name)
        return super().get(name, default)

    def __contains__(self, name):
        self.asked.add(name)
        return super().__contains__(name)


def looked_up(monkeypatch, tmp_path, **environ):
    """The variables that the settings are read from."""
    noting = Noting(environ)

    class Source(SettingsSource):
        def __init__(self, environ, start):
            super().__init__(environ, start)
            noting.update(self.environ)
            self.environ = noting

    monkeypatch.setattr(all_settings, "SettingsSource", Source)
    all_settings.Settings.load(environ, tmp_path)
    return noting.asked


def test_the_page_has_each_variable_that_is_read_and_no_other(monkeypatch, tmp_path):
    far = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.example:4318"}  # which a proxy may stand before
    asked = looked_up(monkeypatch, tmp_path, **far, OTEL_TRACES_EXPORTER="otlp")
    asked |= looked_up(
        monkeypatch, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="https://collector.example:4318", https_proxy=""
    )
    asked |= looked_up(monkeypatch, tmp_path, **far, http_proxy="http://proxy:3128")
    ours = {name for name in asked if name.startswith("JARVIS_")}
    assert ours == {f"JARVIS_{key.upper()}" for key in all_settings._KEYS if not is_only_in_file(key)}

    activation = (ROOT / "jarvis_otel" / "activation.py").read_text()
    asked |= set(re.findall(r"\bOTEL_[A-Z_]*[A-Z]\b", activation))
    signals = {name for name in asked if re.match(r"OTEL_EXPORTER_OTLP_(LOGS|TRACES|METRICS)_", name)}
    general = {re.sub(r"(?<=OTLP_)(LOGS|TRACES|METRICS)_", "", name) for name in signals}
    of_each = {name.replace("OTLP_", f"OTLP_{signal}_") for name in general for signal in ("LOGS", "TRACES", "METRICS")}
    assert signals == of_each
    otel = {name for name in asked if name.startswith("OTEL_")}
    assert names("settings", "OpenTelemetry") == (otel - signals) | general | by_the_sdk()

    started = {name for name in asked if not name.startswith(("OTEL_", "JARVIS_")) and name == name.upper()}
    started -= {"REQUEST_METHOD"}  # which only says that HTTP_PROXY is none
    assert names("settings", "What the process was started in") == started
    terminal = (ROOT / "jarvis_otel" / "terminal.py").read_text()
    assert names("settings", "The terminal") == set(re.findall(r'environ\.get\("(\w+)"', terminal))
    home = (ROOT / "providers" / "jarvis_flags" / "settings.py").read_text()
    assert names("settings", "Where it is read") == set(re.findall(r'environ\.get\("(JARVIS_\w+)"', home))


def is_only_in_file(key):
    (row,) = (row for row in settings_rows() if row[0] == f"`{key}`")
    return row[1].endswith("only in the file")


def by_the_sdk():
    """The variables that the page leaves to the SDK: each is one that it, or its API, has."""
    (section,) = re.findall(r"Read by the SDK .*?\n\n(.*?)\n\n", (PAGES / "settings.md").read_text(), re.DOTALL)
    listed = set(re.findall(r"`(OTEL_\w+)`", section))
    for name in listed - {"OTEL_PROPAGATORS"}:  # the API's
        assert getattr(sdk_variables, name, None) == name, f"the SDK has no {name}"
    return listed


# --- the flag file ---


def test_the_page_has_each_field_of_a_flag_and_of_a_rule_and_no_other():
    assert names("flag-file", "Flag") == {field.name for field in fields(FlagDefinition) if field.name != "id"}
    assert names("flag-file", "Rule") == {field.name for field in fields(RolloutRule)}


def examples_of(heading, title="Example"):
    """Each example of a table of the flag file's page, with what it is an example of."""
    lines = (PAGES / "flag-file.md").read_text().partition(f"# {heading}\n")[2].splitlines()
    head = next(line for line in lines if line.startswith("| "))
    place = [cell.strip() for cell in head.strip("|").split("|")].index(title)
    for row in rows("flag-file", heading):
        for example in in_code(row[place]):
            yield row[0].strip("`"), example


def load(text):
    """What the parser has against a flag file."""
    return [str(problem) for problem in parse_flags(load_tree(text.encode()), "flags.yaml").problems]


TWO = "variants: {low: 1, high: 2}"
BESIDE = {"default": TWO, "variant": TWO, "hash": "variants: {on: true, off: false}"}
"""What a flag needs beside a field."""


def flag_with(rule, field=""):
    return f"segments: {{pro: {{attribute: plan, op: eq, value: pro}}}}\nflags:\n  F: {{rules: [{rule}], {BESIDE.get(field, '')}}}\n"


def test_each_example_of_a_field_can_stand_in_a_flag_file():
    tried = []
    for field, example in examples_of("Document"):
        tried.append(f"{field}: {example}\n")
    for field, example in examples_of("Flag"):
        segments = "segments: {pro: {attribute: plan, op: eq, value: pro}}\n"
        tried.append(f"{segments}flags:\n  API_V2: {{}}\n  F: {{{field}: {example}, {BESIDE.get(field, '')}}}\n")
    for field, example in examples_of("Rule"):
        given = {"type": "percentage", "value": "{on: 1, off: 1}" if field == "hash" else "25", field: example}
        tried.append(flag_with("{" + ", ".join(f"{name}: {value}" for name, value in given.items()) + "}", field))
    for kind, example in examples_of("Types of rules", "Example of `value`"):
        tried.append(flag_with(f"{{type: {kind}, value: {example}}}", "variant" if "low:" in example else ""))
    for field, example in examples_of("Schedule"):
        value = f"days: mon, {field}: {example}" if field != "days" else f"{field}: {example}"
        tried.append(flag_with(f"{{type: schedule, value: {{{value}}}}}"))
    for field, example in examples_of("Ramp"):
        given = {"start": "2027-01-01", "end": "2027-09-01", "from": 0, "to": 90, field: example}
        value = ", ".join(f"{name}: {one}" for name, one in given.items())
        tried.append(flag_with(f"{{type: schedule, value: {{ramp: {{{value}}}}}}}"))
    for field, example in examples_of("Condition"):
        given = {"attribute": "plan", "op": "in", "value": "[pro]", field: example}
        given = {"jsonlogic": "true", "hash": example} if field == "hash" else given
        given = {field: example} if field in ("all", "any", "not", "jsonlogic") else given
        value = ", ".join(f"{name}: {one}" for name, one in given.items())
        tried.append(f"segments: {{s: {{{value}}}}}\nflags: {{}}\n")
    assert len(tried) > 50
    assert {text: load(text) for text in tried if load(text)} == {}


def test_the_steps_of_the_page_are_those_of_an_explanation(flag_file, capsys):
    flag_file("flags:\n  F: {rules: [{type: percentage, value: 25}]}\n")
    assert main(["flags", "explain", "F", "--user", "ann", "--format", "json"]) == 0
    steps = {step["step"].partition(".")[0] for step in json.loads(capsys.readouterr().out)["steps"]}
    assert [row[0] for row in rows("flag-file", "Who gets what")] == sorted(steps)


def test_the_files_of_run_time_state_are_those_of_the_page(own_project, flag_file, monkeypatch, capsys):
    flag_file("flags:\n  F: {}\n")
    for words in (["enable", "F"], ["disable", "F"], ["create", "G"]):
        assert main(["flags", *words, "--reason", "test"]) == 0
    code = """
import json, os, sys, time
from pathlib import Path
from jarvis_otel import configure, flags
configure("app")
seen = Path("var/flags/seen", f"{os.getpid()}.json")
deadline = time.monotonic() + 20
while not seen.exists() and time.monotonic() < deadline:
    time.sleep(0.01)
print(json.dumps([sorted(str(path.relative_to("var/flags")) for path in Path("var/flags").rglob("*") if path.is_file()),
                  sorted(json.loads(seen.read_bytes()))]))
"""
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    files, seen = json.loads(done.stdout)
    there = {re.sub(r"\d+(?=\.json)", "PID", name) for name in files}
    assert there == names("flag-file", "Files of run-time state") - {"etcd/"}
    assert set(seen) == names("flag-file", "Seen")
    document = json.loads((own_project / "var/flags/overrides.json").read_bytes())
    assert set(document) == {"format", "revision", "overrides"}
    assert set(document["overrides"]["F"]) <= names("flag-file", "Overrides")
    entry = json.loads((own_project / "var/flags/audit.jsonl").read_text().splitlines()[0])
    assert {*entry, "request"} == names("flag-file", "Audit")


# --- metrics ---


@contextmanager
def working_collector(tmp_path):
    """A collector that does all that it can, after it took some records."""
    sink = LokiSink()
    collector = commanded(
        tmp_path / "logs", "--grpc-port", "0", JARVIS_LOKI_URL=sink.url, JARVIS_COLLECTOR_COMPONENTS="1"
    )
    try:
        record = {"timeUnixNano": str(time.time_ns()), "body": {"stringValue": "hello"}}
        body = json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}).encode()
        assert collector.request(body=body).status == 200
        with grpc.insecure_channel(f"127.0.0.1:{collector.grpc_port}") as channel:
            LogsServiceStub(channel).Export(ExportLogsServiceRequest(), timeout=20)
        deadline = time.monotonic() + 20
        while not sink.taken and time.monotonic() < deadline:
            time.sleep(0.02)
        yield collector, sink
    finally:
        collector.stop()
        sink.close()


def test_a_collector_tells_the_metrics_of_the_page_and_no_other(tmp_path):
    with working_collector(tmp_path) as (collector, _):
        text = collector.request("GET", "/metrics").content.decode()
        health = json.loads(collector.request("GET", "/healthz").content)
    told = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    said = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    labels = dict(re.findall(r"^(\w+)\{(\w+)=", text, re.MULTILINE))
    assert {(row[0].strip("`"), row[1], row[3]) for row in rows("metrics", "The collector")} == {
        (name, kind, said[name]) for name, kind in told.items()
    }
    shown = {name: label for name, (_, label, _) in cells("metrics", "The collector").items()}
    for name, label in labels.items():
        assert shown[name] == f"`{label}`"
    assert {name for name, cell in shown.items() if cell} - set(labels) <= {
        "jarvis_collector_forward_refused_records_total"  # of which there were none
    }
    assert set(health) == names("metrics", "/healthz") - {"reason"}


def test_a_collector_that_is_degraded_says_so_in_the_fields_of_the_page(tmp_path):
    collector = commanded(tmp_path / "logs", "--grpc-port", "off", JARVIS_COLLECTOR_COMPONENTS="1")
    (tmp_path / "logs" / "components").write_text("no directory")
    try:
        body = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"hello"}}]}]}]}'
        assert collector.request(body=body).status == 200
        response = collector.request("GET", "/healthz")
        health = json.loads(response.content)
    finally:
        collector.stop()
    assert (response.status, health["status"], health["grpc"]) == (200, "degraded", "off")
    assert set(health) == names("metrics", "/healthz")


# --- HTTP ---


def test_the_pages_and_the_api_are_those_of_the_page(tmp_path):
    app = create_app(make_site(tmp_path))
    served_ = set()
    for route in app.routes:
        path = re.sub(r":\w+(?=})", "", route.path)
        for method in getattr(route, "methods", None) or ["GET"]:
            if method != "HEAD":
                served_.add(f"{method} {path}")
    listed = {
        re.sub("…$", "", name).rstrip("/") or name
        for heading in ("The JSON API", "OFREP", "Pages")
        for name in names("http", heading)
        if name.startswith(("GET ", "POST "))
    }
    changes = {"POST /api/flags/{change}", "GET /api/openapi.json"}
    assert {path.rstrip("/") or path for path in served_ - changes} == {one.rstrip("/") or one for one in listed}
    text = (PAGES / "http.md").read_text()
    assert "`POST /api/flags/{flag_id}/{action}`" in text
    assert "`GET /api/openapi.json`" in text


def test_the_statuses_are_those_of_the_page(tmp_path):
    assert {row[0] for row in rows("http", "Statuses of the collector")} == {"200", *map(str, _RPC_CODES)}
    routes = {getattr(route, "path", ""): route for route in create_app(make_site(tmp_path)).routes}
    document = json.loads(asyncio.run(routes["/api/openapi.json"].endpoint(None)).body)
    answers = {status for path in document["paths"].values() for status in path["get"]["responses"]}
    assert {row[0] for row in rows("http", "Statuses of the API")} == answers
    changing = [row for row in rows("http", "Changing a flag") if row[0].isdecimal()]
    told = {kind: row[0] for row in changing for kind in re.findall(r"`(\w+)`", row[1])}
    assert told == {kind.value: str(STATUS[kind]) for kind in OutcomeKind}


def test_a_change_over_http_takes_the_fields_of_the_page_and_answers_with_its_own(tmp_path):
    with visitor(make_site(tmp_path)) as client:
        version = client.get("/api/flags/RISKY").json()["version"]
        asked = {"reason": "test", "confirmed": True, "lasts": "30m", "expected": version, "variant": "on"}
        answer = client.post("/api/flags/RISKY/enable", json=asked)
        assert answer.status_code == 200, answer.text
        assert client.post("/api/flags/PART/rollout", json={"percent": 30, "reason": "test"}).status_code == 200
        # each of them is read: where it is otherwise, so is the answer
        wrong = {"confirmed": False, "reason": "", "lasts": "soon", "expected": "another", "variant": 7}
        for name, value in wrong.items():
            refused = client.post("/api/flags/RISKY/enable", json={**asked, "expected": None, name: value})
            assert refused.status_code == (409 if name == "expected" else 400), name
        assert client.post("/api/flags/PART/rollout", json={"percent": "many", "reason": "test"}).status_code == 400
    listed = {name for name in names("http", "Changing a flag") if not name.isdecimal()}
    assert listed == {*asked, "percent"}
    (told,) = re.findall(r"What it answers has (.*?):\n", (PAGES / "http.md").read_text())
    assert set(re.findall(r"`(\w+)`", told)) == {*answer.json(), "request"}


# --- attributes ---


def everything(home):
    """What is written by a process that writes all that jarvis-otel writes of its own."""
    (home / "config").mkdir()
    many = "".join(
        f"  MANY_{number}: {{enabled: true, rules: [{{type: percentage, value: 50}}]}}\n" for number in range(40)
    )
    (home / "config" / "flags.yaml").write_text(f"flags:\n  NEW_UI: {{enabled: true}}\n{many}")
    (home / "config" / "jarvis.yaml").write_text("")
    port = free_port()
    environ = {
        **os.environ,
        "JARVIS_HOME": str(home),
        "JARVIS_SPOOL_MAX_BYTES": "4MiB",
        "JARVIS_SPAN_EVENTS": "true",
        "JARVIS_ENVIRONMENT": "dev",
        "JARVIS_CONSOLE": "off",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_RESOURCE_ATTRIBUTES": "service.version=1.2",
    }
    with subprocess.Popen(
        [sys.executable, EVERYTHING],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n", process.communicate("\n")
        collector = served(home / "logs", port=port)
        try:
            said, errors = process.communicate("\n", timeout=60)
            assert process.returncode == 0, errors
        finally:
            process.kill()
            collector.stop()
    return collector.lines(), collector.lines("traces"), said.split()


def test_what_is_written_has_the_keys_and_attributes_of_the_page_and_no_other(tmp_path):
    lines, spans, (headers, member) = everything(tmp_path)
    records_are_as_on_the_page([line for line in lines if line["logger"] != "quiet"])
    events_are_as_on_the_page(lines)
    spans_are_as_on_the_page(spans)
    assert names("attributes", "HTTP headers and baggage") == {*headers.split(","), member, "tracestate"}


def records_are_as_on_the_page(lines):
    assert {key for line in lines for key in line} == set(LINE_KEYS) == names("attributes", "The line")
    for section in ("error", "source"):
        assert {key for line in lines for key in line.get(section, {})} == names("attributes", section)
    meta = {key for line in lines for key in line["_meta"]}
    of_resource = names("attributes", "Resource")
    by_sdk = {
        name for name in of_resource if name.startswith(("telemetry.", "service.instance"))
    }  # as its version has it
    assert meta - by_sdk == names("attributes", "_meta")
    shown = {"host.name": "hostname", "deployment.environment.name": "environment", "service.version": "version"}
    assert {shown.get(name, name) for name in of_resource - by_sdk} == meta - by_sdk - {"uid", "otlp"}


def events_are_as_on_the_page(lines):
    events, context = defaultdict(set), set()
    for line in lines:
        place = events[re.sub(r"^trade\..*", "trade.<TYPE>", line["event"])] if "event" in line else context
        place |= {re.sub(r"^jarvis\.dropped\..*", "jarvis.dropped.<REASON>", key) for key in line["context"]}
    assert context - {"password"} == names("attributes", "Keys in the context")
    listed = {event: set(in_code(attributes)) for event, (_, attributes) in cells("attributes", "Events").items()}
    for event in ("feature_flag.evaluation", "jarvis.flag.changed"):
        listed[event] = names("attributes", event)
    assert dict(events) == listed


def spans_are_as_on_the_page(spans):
    assert {key for span in spans for key in span} | {"links"} == names("attributes", "The span line")  # nobody links
    assert {span["service"] for span in spans} == {"app", "trading", "api"}  # jarvis.service, where it is not app
    assert {flag for span in spans for flag in span.get("flags", {})} >= {"NEW_UI", "MANY_1"}  # jarvis.flag.…
    lifted = {"jarvis.service", "jarvis.correlation_id", "jarvis.flag.<KEY>"}
    attributes = {key for span in spans for key in span.get("attributes", {})}
    assert attributes | lifted == names("attributes", "Attributes of a span")
    events = defaultdict(set)
    for event in (event for span in spans for event in span.get("events", ())):
        events[event["name"]] |= set(event["attributes"])
    listed = {
        event: set(in_code(attributes)) for event, (attributes,) in cells("attributes", "Events of a span").items()
    }
    assert set(events) == set(listed)
    assert events["exception"] | {"exception.escaped"} == listed["exception"]  # as the SDK's version has it
    assert events["feature_flag.evaluation"] == names("attributes", "feature_flag.evaluation") - {"evaluation_context"}


def test_the_attributes_of_a_record_are_those_of_the_page():
    listed = cells("attributes", "Attributes of a record")
    wanted = {name: f"{section}.{key}" if section else key for name, (section, key, _) in PLACES.items()}
    wanted |= {f"{FLAG_PREFIX}<KEY>": "flags.<KEY>", f"{CONTEXT_PREFIX}<KEY>": "context.<KEY>"}
    wanted["any other"] = "context.<ATTRIBUTE>"
    assert {name: in_code(place)[0] for name, (place,) in listed.items()} == wanted


NAMESPACES = "jarvis|feature_flag|http|url|client|server|network|user_agent|exception|code|user|session|log|error|trade"
NO_ATTRIBUTES = {
    *("http.response.start", "http.response.body"),  # messages of ASGI
    "jarvis.identity",  # a key of an ASGI scope
    *("jarvis.yaml", "error.html"),  # files
}


def written_names():
    """What is spelled as an attribute, an event or a metric anywhere in the code, with the place of it."""
    for package in ("providers/jarvis_flags", "collector/jarvis_collector", "jarvis_otel"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name == "loki_lines.py":  # has the names that others write, too
                continue
            source = path.read_text()
            for node in ast.walk(ast.parse(source)) if re.search(rf'"(?:{NAMESPACES})\.', source) else ():
                text = node.value if isinstance(node, ast.Constant) else None
                if isinstance(text, str) and re.fullmatch(rf"(?:{NAMESPACES})(?:\.[a-z_]+)+\.?", text):
                    yield text, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_no_attribute_is_spelled_in_the_code_that_is_not_on_a_page():
    text = (PAGES / "attributes.md").read_text() + (PAGES / "metrics.md").read_text()
    listed = set(re.findall(r"`([^`]+)`", text)) | NO_ATTRIBUTES
    beginnings = tuple(name[: name.rindex(".") + 1] for name in listed if "." in name)
    found = dict(written_names())
    missing = {name for name in found if name not in listed and not (name.endswith(".") and name in beginnings)}
    assert {name: found[name] for name in missing} == {}
    assert set(found) > NO_ATTRIBUTES


def test_the_names_of_our_attributes_are_known_when_loki_has_flattened_them():
    headings = ("feature_flag.evaluation", "jarvis.flag.changed", "Keys in the context")
    ours = {name for heading in headings for name in names("attributes", heading)}
    ours |= {"jarvis.settings", *(f"jarvis.dropped.{reason}" for reason in drop_reasons())}
    flattened = {name for name in ours if label_of(name) != name}
    assert flattened
    assert {name: KNOWN_IN_LOKI.get(label_of(name)) for name in flattened} == {name: name for name in flattened}


def drop_reasons():
    (said,) = re.findall(r"`<REASON>` is (.*?)\n\n", (PAGES / "attributes.md").read_text(), re.DOTALL)
    return re.findall(r"`(\w+)`", said)


def test_the_reasons_for_losses_are_those_of_the_pipeline():
    assert set(drop_reasons()) == set(re.findall(r"`(\w+)` \(", Counters.__doc__))
    text = (PAGES / "attributes.md").read_text()
    (said,) = re.findall(r"`left_out_reason` is (.*?)\.\s", text, re.DOTALL)
    assert re.findall(r"`(\w+)`", said) == list(REASONS.values())


def test_what_only_otlp_says_is_kept_under_the_keys_of_the_page(tmp_path):
    collector = served(tmp_path)
    record = {
        "timeUnixNano": "1768746605123456789",
        "observedTimeUnixNano": "1768746605123456790",
        "severityNumber": 10,
        "severityText": "Notice",
        "body": {"intValue": "5"},
        "flags": 3,
        "droppedAttributesCount": 2,
        "traceId": "00" * 16,
        "spanId": "00" * 8,
        "attributes": [
            {"key": "a", "value": {"bytesValue": "AAE="}},
            {"key": "jarvis.context.service", "value": {"stringValue": "x"}},
        ],
    }
    resource = {"attributes": [{"key": "b", "value": {"bytesValue": "AAE="}}], "droppedAttributesCount": 1}
    scope = {"scope": {"name": "s", "version": "1"}, "logRecords": [record, {"body": {"stringValue": "no time"}}]}
    try:
        body = json.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": [scope]}]}).encode()
        assert collector.request(body=body).status == 200
        lines = collector.lines()
    finally:
        collector.stop()
    kept = {key for line in lines for key in line["_meta"]["otlp"]}
    assert kept == names("attributes", "_meta.otlp")


def test_the_bounds_of_the_page_are_those_of_the_code():
    text = (PAGES / "attributes.md").read_text()
    assert f"off ones too; at most {FLAGS_MAX}." in text
    assert f"at most {flag_hook.SPAN_FLAGS_MAX} flags" in text
    assert f"at most {flag_hook._VALUE_MAX:,} characters" in text
    assert f"at most {propagation._CORRELATION_MAX} characters" in text
    assert f"Beyond {flag_hook._SERIES_MAX:,} combinations" in (PAGES / "metrics.md").read_text()
