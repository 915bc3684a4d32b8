"""Forwarding to a real Loki: what it takes, what it refuses, and what it keeps over a crash."""

import io
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest

from jarvis_collector.config import LokiTarget
from jarvis_collector.forward import Forwarder
from jarvis_collector.layout import day_path
from jarvis_collector.own_log import OwnLog
from jarvis_collector.record import LogEntry, format_timestamp
from tests.otlp_sink import until
from tests.real_stack import Loki, running

pytestmark = pytest.mark.real

DAY = 86_400_000_000_000


def day(ago=0):
    return (datetime.now(UTC) - timedelta(days=ago)).strftime("%Y-%m-%d")


def line(number, *, service, at=None, message=None, **fields):
    at = time.time_ns() if at is None else at
    said = message or f"n{number}"
    entry = LogEntry(format_timestamp(at), "INFO", said, service, uid=f"{service}-{number}", **fields)
    return entry.to_json().encode() + b"\n"


@pytest.fixture(scope="module")
def loki(tmp_path_factory):
    peer = Loki(tmp_path_factory.mktemp("loki"))
    with running(peer):
        yield peer


@pytest.fixture
def log_dir(tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    return directory


@pytest.fixture
def start(loki, log_dir, tmp_path):
    started = []

    def start_one(max_push=1_500_000):
        target = LokiTarget(loki.url, tmp_path / "loki.json", max_push=max_push)
        forwarder = Forwarder(target, log_dir, OwnLog(stream=io.StringIO()))
        forwarder.start()
        started.append(forwarder)
        return forwarder

    yield start_one
    for forwarder in started:
        forwarder.stop()


def settled(forwarder, path):
    until(lambda: forwarder.is_forwarded(path), 60)
    return forwarder.status()


def records(loki, service, wanted, filter_=""):
    query = f'{{service_name="{service}"}} {filter_}'
    until(lambda: len(loki.records(query)) >= wanted, 30)
    return loki.records(query)


def uids(found):
    return sorted(attributes["log_record_uid"] for _, attributes in found)


def test_a_record_is_found_by_its_event_its_trace_and_its_attributes(loki, log_dir, start):
    path = day_path(log_dir, "jarvis", day())
    trace = "0af7651916cd43dd8448eb211c80319c"
    path.write_bytes(
        line(1, service="found", event="trade.executed", trace_id=trace, correlation_id="c-1", context={"symbol": "AB"})
    )
    settled(start(), path)
    for wanted in ('event_name="trade.executed"', f'trace_id="{trace}"', 'symbol="AB"', 'jarvis_correlation_id="c-1"'):
        ((text, _),) = records(loki, "found", 1, f"| {wanted}")
        assert text == "n1"


def test_a_stack_trace_over_the_limits_can_be_searched_in_the_line(loki, log_dir, start):
    path = day_path(log_dir, "jarvis", day())
    trace = "Traceback\n" + "\n".join(f"  File number {n}" for n in range(20_000))
    assert len(trace) > 300_000
    path.write_bytes(line(1, service="stack", message="failed", error_type="ValueError", stack_trace=trace))
    status = settled(start(), path)
    ((text, attributes),) = records(loki, "stack", 1, '|= "File number 9999"')
    assert text.startswith("failed\nTraceback")
    assert "…[truncated " in text[-40:]
    assert attributes["exception_type"] == "ValueError"
    assert (status.cut, sum(status.refused.values())) == (1, 0)


def test_records_at_all_limits_are_taken(loki, log_dir, start):
    path = day_path(log_dir, "jarvis", day())
    content = [
        line(0, service="limits", context={f"k{n}": "v" for n in range(300)}),
        line(1, service="limits", context={f"k{n}": "é" * 2000 for n in range(60)}),
        line(2, service="limits", context={"日本": "x", "": "y", "__a": "z", "9": "w", "_": "v"}),
        line(3, service="limits", message="\0" * 400_000),
        line(4, service="limits", context={"deep": {f"a{n}": {"b": {"c": n}} for n in range(300)}}),
        line(5, service="limits", context={"k" * 100_000: "v"}),
        line(6, service="limits", meta={f"resource{n}": "r" * 500 for n in range(200)}),
        line(7, service="limits", stack_trace="s" * 60_000, context={"a": "b" * 10_000}),
    ]
    path.write_bytes(b"".join(content))
    status = settled(start(), path)
    assert sum(status.refused.values()) == 0
    assert uids(records(loki, "limits", len(content))) == [f"limits-{n}" for n in range(len(content))]


def test_a_refused_record_is_counted_and_its_neighbours_arrive(loki, log_dir, start):
    path = day_path(log_dir, "jarvis", day())
    now = time.time_ns()
    content = [line(n, service="refused", at=now + n) for n in range(1000)]
    content[100] = line(100, service="refused", at=now - 10 * DAY)
    content[200] = line(200, service="refused", at=now - 5 * DAY)
    content[300] = line(300, service="refused", at=now + DAY)
    content[400] = line(400, service="x" * 3000, at=now)
    path.write_bytes(b"".join(content))
    status = settled(start(max_push=100_000), path)
    assert status.refused == {"too_old": 1, "too_far_behind": 1, "too_large": 0, "other": 2}
    assert status.pushed == 996
    assert uids(records(loki, "refused", 996)) == sorted(
        f"refused-{n}" for n in range(1000) if n not in (100, 200, 300, 400)
    )


def test_days_of_backlog_arrive_whole(loki, log_dir, start):
    now = time.time_ns()
    for ago in range(6, -1, -1):
        at = now - ago * DAY
        content = [line(ago * 1000 + n, service="backlog", at=at + n * 1000) for n in range(300)]
        day_path(log_dir, "jarvis", day(ago)).write_bytes(b"".join(content))
    status = settled(start(), day_path(log_dir, "jarvis", day()))
    assert (status.pushed, sum(status.refused.values())) == (2100, 0)


def test_a_loki_that_is_killed_and_started_again_has_every_record_once(loki, log_dir, start):
    path = day_path(log_dir, "jarvis", day())
    forwarder = start(max_push=60_000)
    written = 0

    def write(count):
        nonlocal written
        with path.open("ab") as file:
            for number in range(written, written + count):
                file.write(line(number, service="killed"))
        written += count
        forwarder.wake()

    write(1500)
    until(lambda: forwarder.status().pushed > 500)
    loki.stop(signal.SIGKILL)
    write(500)
    until(lambda: forwarder.status().retries > 1)
    loki.start()
    write(500)
    settled(forwarder, path)
    found = uids(records(loki, "killed", written))
    assert found == sorted(f"killed-{n}" for n in range(written))
