"""The tables of docs/migration.md: what is said to be the same is there, with the arguments and fields that it names."""

import dataclasses
import inspect
import re

import pytest

import jarvis_otel
from jarvis_otel.telegram.texts import COMMANDS
from tests.doc_pages import ROOT

PAGE = (ROOT / "docs" / "migration.md").read_text()
METHODS_OF = {"core.feature_flags": "FeatureFlagManager", "core.logging": "StructuredLogger"}
FIELDS_OF = {"core.feature_flags": "FlagDefinition", "core.logging": "LogEntry"}


def old_names(package):
    """What is the same, row by row of a package's table: as text."""
    section = PAGE.partition(f"### `{package}`")[2].partition("\n#")[0]
    return re.findall(r"^\| ([^|]+) \| the same", section, re.MULTILINE)


SAME = [(package, names) for package in METHODS_OF for names in old_names(package)]


@pytest.mark.parametrize(("package", "names"), SAME, ids=[names for _, names in SAME])
def test_what_is_said_to_be_the_same_is_there(package, names):
    codes = re.findall(r"`([^`]+)`", names)
    if names.startswith(("its ", "`LogEntry`'s ")):
        fields = {field.name for field in dataclasses.fields(getattr(jarvis_otel, FIELDS_OF[package]))}
        assert set(codes) - {"LogEntry"} <= fields
        return
    for code in codes:
        name, _, arguments = code.partition("(")
        path = f"{METHODS_OF[package]}{name}" if name.startswith(".") else name
        target = jarvis_otel
        for part in path.split("."):
            target = getattr(target, part)
        if arguments:
            assert set(re.findall(r"\w+", arguments)) <= set(inspect.signature(target).parameters)


def test_the_tables_were_found():
    assert {package for package, _ in SAME} == set(METHODS_OF)
    assert len(SAME) > 20


def test_the_bot_has_each_command_that_the_page_names():
    section = PAGE.partition("## Telegram")[2].partition("\n## ")[0]
    commands = set(re.findall(r"`/(\w+)`", section))
    assert commands == set(COMMANDS)
