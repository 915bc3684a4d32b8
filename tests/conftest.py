"""What all tests share: no test sees the developer's own settings, state or collector."""

import os
import textwrap
from pathlib import Path

import hypothesis
import pytest

# A machine that is busy is no fault of what is tested. Where a change lands it is judged by what it changes, not by what
# was drawn this time: there every run draws the same, and searching on is for every other run and `make fuzz`.
hypothesis.settings.register_profile("jarvis", deadline=None, derandomize=os.environ.get("CI") == "true")
hypothesis.settings.load_profile("jarvis")


def encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What a test shows or logs goes to another process, which a lone surrogate in it would end with all its tests."""
    report = yield
    if report.failed:
        shown = str(report.longrepr)
        if (clean := encodable(shown)) != shown:
            report.longrepr = clean
    report.sections = [(title, encodable(text)) for title, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def own_project(tmp_path, monkeypatch):
    """A project root of the test's own, and none of the environment's settings."""
    for name in list(os.environ):
        if name.startswith(("JARVIS_", "OTEL_", "FF_")) or name in ("TRACEPARENT", "TRACESTATE", "BAGGAGE"):
            monkeypatch.delenv(name)
    root = tmp_path / "project"
    (root / "config").mkdir(parents=True)
    monkeypatch.setenv("JARVIS_HOME", str(root))
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="module")
def browser():
    """Chromium, started once for the tests of a file."""
    from tests.browser import chromium  # few tests want it

    with chromium() as running:
        yield running


@pytest.fixture
def flag_file(own_project):
    """Writes the project's flag file, dedented."""

    def write(text: str, name: str = "flags.yaml") -> Path:
        path = own_project / "config" / name
        path.write_text(textwrap.dedent(text))
        return path

    return write
