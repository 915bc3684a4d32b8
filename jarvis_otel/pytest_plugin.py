"""Fixtures for pytest: `jarvis_flags`, `jarvis_logs` and `jarvis_spans`; see `jarvis_otel.testing`.

pytest imports this in every run of everybody who has jarvis-otel installed: so it imports nothing before a fixture is
used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from jarvis_otel.testing import CapturedLogs, CapturedSpans, OverriddenFlags

__all__ = ["jarvis_flags", "jarvis_logs", "jarvis_spans"]

_LINES_SHOWN = 200


@pytest.fixture
def jarvis_flags() -> Iterator[OverriddenFlags]:
    """The process's flags for this test, in memory: `jarvis_flags.set("NEW_UI", True)`, `jarvis_flags(NEW_UI=True)`."""
    from jarvis_otel.testing import override_flags  # noqa: PLC0415 - see above

    with override_flags() as flags:
        yield flags


@pytest.fixture
def jarvis_logs(request: pytest.FixtureRequest) -> Iterator[CapturedLogs]:
    """The log records of this test, from DEBUG up: `assert jarvis_logs.has("Trade executed", symbol="SOL")`."""
    from jarvis_otel.testing import capture_logs  # noqa: PLC0415

    with capture_logs() as logs:
        yield logs
    _show_if_failed(request, "jarvis_logs", logs.text)


@pytest.fixture
def jarvis_spans(request: pytest.FixtureRequest) -> Iterator[CapturedSpans]:
    """The finished spans of this test: `assert jarvis_spans.has("place order", {"jarvis.flag.NEW_UI": "on"})`."""
    from jarvis_otel.testing import capture_spans  # noqa: PLC0415

    with capture_spans() as spans:
        yield spans
    _show_if_failed(request, "jarvis_spans", spans.text)


def _show_if_failed(request: pytest.FixtureRequest, name: str, text: str) -> None:
    """Adds a section to the test's report, which pytest prints of tests that failed."""
    lines = text.splitlines()
    if lines:
        left_out = [f"({len(lines) - _LINES_SHOWN} before)"] if len(lines) > _LINES_SHOWN else []
        request.node.add_report_section("teardown", name, "\n".join([*left_out, *lines[-_LINES_SHOWN:]]))
