"""docs/logs.md has an example of everything and describes each key; lnav takes our format file."""

import json
import os
import re
import shutil
import subprocess

import pytest

from jarvis_collector.record import LINE_KEYS
from jarvis_otel.cli.main import CommandParser
from jarvis_otel.query.log_query import LogQuery
from tests.doc_pages import ROOT, programs, read_page
from tests.doc_projects import write_records

TEXT = (ROOT / "docs" / "logs.md").read_text()


def test_there_are_examples_of_everything():
    blocks = [block for block in read_page("docs/logs.md").blocks if block.language == "sh"]
    examples = [words for block in blocks for _, line in block.commands() for words in programs(line)]
    commands = {words[2] for words in examples if words[:2] == ["jarvis", "logs"]}
    assert {"query", "tail", "trace", "errors", "stats", "reproduce", "export", "sql", "index"} <= commands
    assert {words[0] for words in examples} == {"jarvis", "jq", "sort", "uniq", "duckdb", "lnav"}


def test_every_key_of_a_line_is_described():
    section = TEXT[TEXT.index("A line is a JSON object") : TEXT.index("### jq")]
    described = set(re.findall(r"`(\w+)`", section))
    assert set(LINE_KEYS) <= described


def test_every_option_that_chooses_records_is_described():
    import argparse

    from jarvis_otel.cli import logs

    parser = CommandParser()
    logs.add_parser(parser.add_subparsers())
    parts = {}
    pending = [parser]
    while pending:
        for action in pending.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                parts.update(action.choices)
                pending += action.choices.values()
    asked = {
        option for action in parts["stats"]._actions for option in action.option_strings if option.startswith("--")
    }
    asked &= {option for action in parts["tail"]._actions for option in action.option_strings}
    for option in asked - {"--help", "--dir", "--file", "--format"}:
        assert f"`{option}" in TEXT, option


@pytest.fixture
def lnav(own_project, monkeypatch):
    write_records(own_project)
    shutil.copytree(ROOT / "config" / "lnav", own_project / "config" / "lnav")
    monkeypatch.setenv("HOME", str(own_project))
    if shutil.which("lnav") is None:
        missing = "lnav is not installed: apt-get install lnav"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)

    def run(*args):
        subprocess.run(["lnav", "-i", "config/lnav/jarvis_log.json"], check=True, capture_output=True)
        return subprocess.run(["lnav", "-n", *args], capture_output=True, text=True, timeout=60, check=True).stdout

    return run


@pytest.mark.real
def test_lnav_takes_the_format_file_and_finds_nothing_wrong_with_it(lnav, own_project):
    lnav(*sorted(map(str, (own_project / "logs").glob("jarvis-*"))))
    done = subprocess.run(["lnav", "-C"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.real
def test_lnav_reads_every_field_of_a_line(lnav, own_project):
    asked = ";SELECT log_level, service, log_opid, duration_ms, jget(flags, '/NEW_UI') AS flag, \"error/type\" AS type, jget(context, '/symbol') AS symbol, jget(_meta, '/uid') AS uid FROM jarvis_log"
    out = lnav("-c", asked, "-c", ":write-json-to -", *map(str, (own_project / "logs").glob("jarvis-*")))
    found = sorted(json.loads(out), key=lambda row: row["uid"])
    assert len(found) == len(list(LogQuery(own_project / "logs").iterate())) == 4
    assert found[2] == {
        "log_level": "error",
        "service": "trading",
        "log_opid": "trade-xyz789",
        "duration_ms": 603.0,
        "flag": "on",
        "type": "BalanceError",
        "symbol": "SOL",
        "uid": "u3",
    }
