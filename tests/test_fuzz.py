"""Whatever bytes a parser is given, it does what it promises: the properties that `make fuzz` fuzzes for longer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.families import properties

PROPERTIES = properties()


@st.composite
def mutated(draw, seeds, words):
    """A seed in which pieces were cut, doubled, or replaced."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 1, 2, 8, 64])))
        piece = draw(st.one_of(st.just(content[start:end] * 2), st.binary(max_size=4), st.sampled_from([b"", *words])))
        content = content[:start] + piece + content[end:]
    return content


def inputs(each):
    made = [st.binary(max_size=64), st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))]
    if each.words:
        made.append(st.lists(st.sampled_from(each.words), max_size=30).map(b"".join))
        made.append(st.lists(st.sampled_from(each.words), max_size=30).map(b" ".join))
    return st.one_of(mutated(each.inputs(), each.words), *made)


@pytest.mark.parametrize("each", PROPERTIES, ids=str)
def test_a_property_holds_for_its_seeds_and_for_what_once_broke_it(each):
    for content in each.inputs():
        each.check(content)


@pytest.mark.parametrize("each", PROPERTIES, ids=str)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_property_holds_for_any_bytes(each, data):
    each.check(data.draw(inputs(each)))


def test_what_stands_in_files_is_only_text_on_the_terminal_of_who_runs_a_command(flag_file, own_project):
    flag_file('flags:\n  "A\\e[31m\\nB": {enabled: 5}\n')
    (own_project / "config" / "jarvis.yaml").write_text('"a\\e[2J\\nb": 1\n')
    for command in (["flags", "list"], ["flags", "disable", "A"], ["logs", "query"], ["run", "true"], ["doctor"]):
        done = subprocess.run(
            [sys.executable, "-m", "jarvis_otel.cli.main", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        shown = (done.stdout + done.stderr).split("\n")
        assert len(shown) > 1
        assert all(line.isprintable() for line in shown), command


def test_without_atheris_make_fuzz_says_what_to_install(tmp_path):
    # an interpreter that finds no packages but those of the project
    paths = [path for path in sys.path if path]
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'atheris' else real(name, *more)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz"],
        cwd=Path(__file__).parent.parent,
        env={"PYTHONPATH": ":".join([str(tmp_path), *paths])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == "make fuzz: atheris is missing: .venv/bin/pip install -c constraints.txt atheris\n"


@pytest.mark.parametrize(("ends", "counted"), [("pass", "1 passed"), ("raise ValueError(text)", "1 failed")])
def test_a_lone_surrogate_that_a_test_logs_ends_no_run_in_several_processes(tmp_path, ends, counted):
    (tmp_path / "test_one.py").write_text(
        "import logging\n\n\n"
        "def test_one():\n"
        '    text = "\\udcaf"\n'
        "    logging.warning(text)\n"
        "    print(ascii(text))\n"
        f"    {ends}\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "tests.conftest", str(tmp_path)]
    done = subprocess.run(
        [*command, f"--rootdir={tmp_path}", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert counted in done.stdout
    assert "INTERNALERROR" not in done.stdout
