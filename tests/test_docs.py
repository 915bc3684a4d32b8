"""Every fenced block of README.md, CONTRIBUTING.md, AGENTS.md and docs/ is run or checked, page by page.

A page is one test. It begins in an empty directory, which is the project of its reader; its blocks come in their order.

    sh                       Run by bash, which stops at the first command that fails. Variables and the directory stay
                             for the next block. No standard input; 60 seconds at most.
    python                   Run as a program of its own.
    yaml, json, jsonl, toml  Parsed. What has `flags:` is loaded as a flag file, what has our settings as settings, and
                             neither may have a problem.
    console, text            What a terminal shows: not run. What follows `$ ` there must be a command line that `jarvis`
                             takes; so must all that `sh` blocks, skipped ones too, say to `jarvis`, and options and
                             commands in code within the text (`jarvis flags list`) must exist.
    logql                    Run by tests/test_real_dashboards.py, against a real Loki.
    others                   Need `file=` or `skip=`.

What else is to be known of a block says an HTML comment above it, `<!-- test: WORD NAME=VALUE NAME="TWO WORDS" -->`:

    file=PATH      It is written to that file of the project, and not run. (Python is compiled, yaml checked as above.)
    server         Each line of the block is a command that runs on until the page ends; with `until=TEXT`, once for each
                   line, its output is waited for. `jarvis collector` says `listening`, `jarvis web` `/login`.
    eventually     Repeated until it succeeds, for at most 30 seconds: records need a moment to arrive.
    says=TEXT      The output, of stdout and stderr, has that text; may be given more than once.
    exits=NUMBER   The block ends with that code instead of 0.
    continues      Python that goes on from the Python blocks before it, which are run with it, in one program.
    given=NAME     What is there from this block on: `records`, a log and a trace of five minutes ago, and their flag
                   NEW_UI; `override`, which turns it off; `bot-api`, what stands for Telegram, with a token in
                   ~/jarvis-bot-token; `receivers` of alerts; `duckdb`, its command; `lnav-format`.
    needs=NAME     A program (`jq`), without which the block is left out and the page ends as skipped; or one of `etcd`,
                   `loki`: the block is run under `make test-real` alone, with the real thing.
    skip=REASON    Not run. For the very few that cannot be: say why.

Ports are the test's own: 4317, 4318, 8080, 8000 and 5000 in blocks stand for free ones, and so do those that `jarvis`
and OpenTelemetry take by default. Lines that begin with `pip install` are not run, but what they install has to be here;
`make TARGET` has to be a target. Nothing may end with a traceback.
"""

import re

import pytest

from tests.doc_pages import ROOT, pages, read_page
from tests.doc_projects import PEERS
from tests.doc_reader import broken_links, peers_of, take, unknown_commands


@pytest.mark.parametrize("path", pages())
def test_what_a_page_says_works(path, tmp_path):
    page = read_page(path)
    assert not page.problems, "\n".join(page.problems)
    missing = [name for name in take(page, tmp_path / "reader", is_real=False) if name.split()[0] not in PEERS]
    if missing:
        pytest.skip(f"all else works, but these are not installed: {', '.join(missing)}")


@pytest.mark.real
@pytest.mark.parametrize("path", [path for path in pages() if peers_of(path)])
def test_what_a_page_says_works_with_the_real_peers_that_it_needs(path, tmp_path):
    assert take(read_page(path), tmp_path / "reader", is_real=True) == []


@pytest.mark.parametrize("path", [*pages(), "ARCHITECTURE.md", "CHANGELOG.md"])
def test_the_links_of_a_page_lead_somewhere(path):
    broken = broken_links(read_page(path))
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("path", pages())
def test_the_commands_in_the_text_of_a_page_exist(path):
    unknown = unknown_commands(read_page(path))
    assert not unknown, "\n".join(unknown)


@pytest.mark.parametrize("path", pages())
def test_the_benchmarks_that_a_page_names_exist(path):
    named = {name for _, code in read_page(path).code for name in re.findall(r"-m benchmarks[. ](?!--)(\w+)", code)}
    assert {name for name in named - {"NAME"} if not (ROOT / "benchmarks" / f"{name}.py").is_file()} == set()


def test_the_index_of_the_docs_names_every_page():
    named = {link.partition("#")[0] for _, link in read_page("docs/README.md").links}
    there = {path.removeprefix("docs/") for path in pages() if path.startswith("docs/")}
    assert there - named == {"README.md"}
