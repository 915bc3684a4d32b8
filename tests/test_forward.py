"""Forwarding to Loki: the files are the queue, nothing is lost, and what Loki refuses is counted."""

import gzip
import io
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jarvis_collector import gzip_blocks
from jarvis_collector.checkpoint import load
from jarvis_collector.config import CollectorError, LokiTarget
from jarvis_collector.forward import Forwarder
from jarvis_collector.layout import archive_path, day_path
from jarvis_collector.loki import Encoder, cost, push_body
from jarvis_collector.long_lines import LineError, short_lines
from jarvis_collector.otlp import Encoding, Signal, read
from jarvis_collector.own_log import OwnLog
from jarvis_collector.record import LogEntry, format_timestamp
from tests.loki_sink import HOUR, loki_sink, records_of
from tests.otlp_sink import attributes_of, until
from tests.ports import free_port

SECOND = 1_000_000_000
MAX_PUSH = 1_500_000


def day(ago=0):
    return (datetime.now(UTC) - timedelta(days=ago)).strftime("%Y-%m-%d")


def line(number, *, at=None, service="trading", message=None, **fields):
    at = time.time_ns() if at is None else at
    entry = LogEntry(format_timestamp(at), "INFO", message or f"n{number}", service, uid=f"u{number}", **fields)
    return entry.to_json().encode() + b"\n"


def lines(numbers, **fields):
    return b"".join(line(number, **fields) for number in numbers)


def names(numbers):
    return [f"n{number}" for number in numbers]


def otlp_line(numbers, *, service="go-app", at=None, **more):
    """A line as the real Collector writes it: a whole request."""
    at = time.time_ns() if at is None else at
    records = [
        {"timeUnixNano": str(at + number), "severityNumber": 9, "body": {"stringValue": f"n{number}"}, **more}
        for number in numbers
    ]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    request = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": {}, "logRecords": records}]}]}
    return json.dumps(request, separators=(",", ":")).encode() + b"\n"


@pytest.fixture
def sink():
    with loki_sink() as peer:
        yield peer


@pytest.fixture
def log_dir(tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    return directory


@pytest.fixture
def start(sink, log_dir, tmp_path):
    started = []

    def start_one(
        *, max_push=MAX_PUSH, timeout=30.0, url=None, checkpoint=tmp_path / "var" / "loki.json", headers=None
    ):
        said = io.StringIO()
        target = LokiTarget(url or sink.url, checkpoint, headers or {}, timeout, max_push)
        forwarder = Forwarder(target, log_dir, OwnLog(stream=said))
        forwarder.start()
        forwarder.said = said
        started.append(forwarder)
        return forwarder

    yield start_one
    for forwarder in started:
        forwarder.stop()


def settled(forwarder):
    """Waits until everything is forwarded; then it cannot be that something still comes."""
    until(lambda: forwarder._waiting_since is None and forwarder.status().lag_bytes == 0 and forwarder.status().file)
    return forwarder.status()


def test_records_arrive_in_order_and_once_when_nothing_fails(sink, log_dir, start):
    day_path(log_dir, "jarvis", day(2)).write_bytes(lines(range(3000)))
    day_path(log_dir, "jarvis", day(1)).write_bytes(lines(range(3000, 6000)))
    day_path(log_dir, "jarvis", day()).write_bytes(lines(range(6000, 7000)))
    day_path(log_dir, "traces", day()).write_bytes(b'{"not":"a log record"}\n')
    forwarder = start()
    until(lambda: len(sink.taken) >= 7000)
    for number in range(7000, 7100):
        with day_path(log_dir, "jarvis", day()).open("ab") as file:
            file.write(line(number))
        forwarder.wake()
    until(lambda: len(sink.taken) >= 7100)
    status = settled(forwarder)
    assert sink.bodies == names(range(7100))
    assert (status.pushed, sum(status.refused.values()), status.passed_over, status.problem) == (7100, 0, 0, None)
    assert status.lag_seconds == 0


def test_a_record_says_in_loki_all_that_was_received(sink, log_dir, start):
    attributes = [{"key": "side", "value": {"stringValue": "buy"}}, {"key": "n", "value": {"intValue": "5"}}]
    record = {
        "timeUnixNano": str(time.time_ns()),
        "severityNumber": 17,
        "severityText": "ERROR",
        "body": {"stringValue": "failed"},
        "attributes": attributes,
        "traceId": "0af7651916cd43dd8448eb211c80319c",
        "spanId": "b7ad6b7169203331",
        "flags": 1,
        "eventName": "trade.failed",
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "trading"}}]}
    request = {
        "resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": {"name": "x"}, "logRecords": [record]}]}]
    }
    found = read(Signal.LOGS, Encoding.JSON, json.dumps(request).encode(), time.time_ns())
    day_path(log_dir, "jarvis", day()).write_bytes(b"".join(found.lines))
    start()
    until(lambda: sink.taken)
    (taken,) = sink.taken
    assert attributes_of(taken) == {"side": "buy", "n": 5, "event_name": "trade.failed"}
    assert {key: taken[key] for key in record if key != "attributes"} == {
        key: record[key] for key in record if key != "attributes"
    }
    assert taken["resource"] == resource
    assert sink.headers[0]["content-type"] == "application/json"


def test_headers_of_the_target_are_sent_and_never_told(sink, log_dir, start):
    day_path(log_dir, "jarvis", day()).write_bytes(line(1))
    sink.script = [401]
    forwarder = start(headers={"X-Scope-OrgID": "team", "Authorization": "Bearer s3cret"})
    until(lambda: forwarder.status().retries)
    forwarder.stop()
    assert "401" in forwarder.said.getvalue()
    assert "s3cret" not in forwarder.said.getvalue()
    sink.script = []
    start(headers={"X-Scope-OrgID": "team", "Authorization": "Bearer s3cret"})
    until(lambda: sink.taken)
    assert (sink.headers[0]["x-scope-orgid"], sink.headers[0]["authorization"]) == ("team", "Bearer s3cret")


def test_a_push_is_never_larger_than_its_bound(sink, log_dir, start):
    big = [line(number, message=f"n{number} " + "\0é" * 60_000) for number in range(5)]
    day_path(log_dir, "jarvis", day()).write_bytes(b"".join(big) + lines(range(5, 2000)))
    forwarder = start(max_push=100_000)
    until(lambda: len(sink.taken) >= 2000)
    assert max(size for size, _ in sink.pushes) <= 100_000
    assert [body.split()[0] for body in sink.bodies] == names(range(2000))
    assert "[truncated " in sink.bodies[0]
    assert settled(forwarder).cut == 5


PROGRAM = """
import sys
from pathlib import Path
from jarvis_collector.config import CollectorConfig, LokiTarget
from jarvis_collector.forward import run_forward_only
from jarvis_collector.own_log import OwnLog
log_dir, url, checkpoint, max_push = sys.argv[1:]
target = LokiTarget(url, Path(checkpoint), max_push=int(max_push))
run_forward_only(CollectorConfig(Path(log_dir), loki=target), OwnLog())
"""


def forward_process(log_dir, sink, checkpoint, max_push=20_000):
    command = [sys.executable, "-c", PROGRAM, str(log_dir), sink.url, str(checkpoint), str(max_push)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_forwarder_that_is_killed_again_and_again_loses_nothing(sink, log_dir, tmp_path):
    path = day_path(log_dir, "jarvis", day())
    checkpoint = tmp_path / "loki.json"
    written = 0
    for _ in range(12):
        with path.open("ab") as file:
            file.write(lines(range(written, written + 400)))
        written += 400
        before = len(sink.pushes)
        process = forward_process(log_dir, sink, checkpoint)
        try:
            until(lambda: len(sink.pushes) > before + 1)  # noqa: B023
        finally:
            process.kill()
            process.communicate()
    process = forward_process(log_dir, sink, checkpoint)
    try:
        until(lambda: f"n{written - 1}" in sink.bodies)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0, said
    first_seen = list(dict.fromkeys(sink.bodies))
    assert first_seen == names(range(written))
    assert len(sink.bodies) < 2 * written, "a kill repeats a push at most"
    assert load(checkpoint).marks[day()].offset == path.stat().st_size
    assert checkpoint.stat().st_mode & 0o777 == 0o640


def test_what_was_written_while_loki_was_down_is_forwarded_in_order(log_dir, start):
    port = free_port()
    start_of_outage = time.time_ns() - HOUR
    content = [line(number, at=start_of_outage + number * SECOND // 2) for number in range(7200)]
    day_path(log_dir, "jarvis", day()).write_bytes(b"".join(content))
    forwarder = start(url=f"http://127.0.0.1:{port}")
    until(lambda: forwarder.status().retries >= 2)
    assert forwarder.status().lag_bytes == sum(map(len, content))
    assert forwarder.status().lag_seconds > 3000
    with loki_sink(port) as peer:
        peer.window = HOUR
        peer.script = [503, 429, "reset"]
        until(lambda: len(peer.taken) >= 7200)
        settled(forwarder)
        assert peer.bodies == names(range(7200))
    assert "goes on after" in forwarder.said.getvalue()


def test_one_refused_record_among_thousands_is_the_only_one_missing(sink, log_dir, start):
    day_path(log_dir, "jarvis", day()).write_bytes(lines(range(5000)))
    sink.refuses = lambda record: (
        "stream '{service_name=\"trading\"}' has label value too long: 'x'"
        if record["body"]["stringValue"] == "n2345"
        else None
    )
    forwarder = start()
    status = settled(forwarder)
    assert set(sink.bodies) == set(names(range(5000))) - {"n2345"}
    assert status.refused == {"too_old": 0, "too_far_behind": 0, "too_large": 0, "other": 1}
    assert status.pushed == 4999
    assert "refuses records (other)" in forwarder.said.getvalue()


def test_a_record_that_loki_cannot_read_does_not_take_its_push_along(sink, log_dir, start):
    content = otlp_line([1]) + otlp_line([2], timeUnixNano="-5") + otlp_line([3])
    day_path(log_dir, "jarvis", day()).write_bytes(content)
    sink.refuses = lambda record: None
    spoiled = sink._take
    sink._take = lambda path, headers, body: (
        (400, b'\x12\x10ReadUint64: "-5"') if b'"-5"' in gzip.decompress(body) else spoiled(path, headers, body)
    )
    status = settled(start())
    assert sink.bodies == names([1, 3])
    assert (status.refused["other"], status.pushed) == (1, 2)


def test_records_that_are_too_old_are_counted_without_asking_again(sink, log_dir, start):
    old = time.time_ns() - 10 * 24 * HOUR
    mixed = b"".join(line(n, at=old + n) if n % 2 else line(n) for n in range(4000))
    day_path(log_dir, "jarvis", day()).write_bytes(mixed)
    sink.refuses = sink.too_old
    status = settled(start(max_push=50_000))
    assert sink.bodies == names(range(0, 4000, 2))
    assert (status.refused["too_old"], status.pushed) == (2000, 2000)
    refused_pushes = [records for _, records in sink.pushes if any(sink.too_old(record) for record in records)]
    assert len(refused_pushes) == 1


def test_records_too_far_behind_are_counted_in_few_pushes(sink, log_dir, start):
    now = time.time_ns()
    content = [
        *[line(n, at=now + n) for n in range(100)],
        *[line(n, at=now - 3 * HOUR + n) for n in range(100, 1100)],
        *[line(n, at=now + n, service=("trading", "agent")[n % 2]) for n in range(1100, 1200)],
    ]
    day_path(log_dir, "jarvis", day()).write_bytes(b"".join(content))
    sink.window = HOUR
    status = settled(start(max_push=300_000))
    assert set(sink.bodies) == set(names([*range(100), *range(1100, 1200)]))
    assert (status.refused["too_far_behind"], status.pushed) == (1000, 200)
    assert len(sink.pushes) < 12


def test_a_repeat_that_is_too_far_behind_by_then_does_not_count_as_refused(sink, log_dir, start):
    now = time.time_ns()
    content = [line(n, at=now - 50 * HOUR + n * HOUR) for n in range(50)]
    day_path(log_dir, "jarvis", day()).write_bytes(b"".join(content))
    sink.window = HOUR
    sink.refuses = lambda record: (
        "stream '{a=\"b\"}' has label name too long: 'x'" if record["body"]["stringValue"] == "n30" else None
    )
    status = settled(start())
    assert set(sink.bodies) == set(names(range(50))) - {"n30"}
    assert (status.refused["too_far_behind"], status.refused["other"], status.pushed) == (0, 1, 49)


def test_a_push_over_a_smaller_burst_gets_through_in_parts(sink, log_dir, start):
    day_path(log_dir, "jarvis", day()).write_bytes(lines(range(300)))
    take = sink._take
    sink._take = lambda path, headers, body: (
        (429, b"ingestion rate limit exceeded") if len(gzip.decompress(body)) > 30_000 else take(path, headers, body)
    )
    status = settled(start())
    assert sink.bodies == names(range(300))
    assert status.retries >= 4


def test_after_midnight_the_old_day_is_read_to_its_end_first(sink, log_dir, start):
    yesterday, today = day_path(log_dir, "jarvis", day(1)), day_path(log_dir, "jarvis", day())
    yesterday.write_bytes(lines(range(100)))
    forwarder = start()
    until(lambda: len(sink.taken) >= 100)
    assert not forwarder.is_forwarded(today)
    with yesterday.open("ab") as file:
        file.write(lines(range(100, 200)))
    today.write_bytes(lines(range(200, 300)))
    until(lambda: len(sink.taken) >= 300)
    assert sink.bodies == names(range(300))
    with yesterday.open("ab") as file:  # the real Collector's last batch may come late
        file.write(lines(range(300, 310)) + b'{"timestamp":"2026-')
    until(lambda: forwarder.status().passed_over == 1)
    until(lambda: forwarder.is_forwarded(yesterday))
    assert sink.bodies == names(range(310))


def test_half_a_line_waits_for_its_other_half(sink, log_dir, start):
    path = day_path(log_dir, "jarvis", day())
    whole = line(2)
    path.write_bytes(line(1) + whole[:20])
    forwarder = start()
    until(lambda: len(sink.taken) >= 1)
    assert not forwarder.is_forwarded(path)
    with path.open("ab") as file:
        file.write(whole[20:])
    until(lambda: len(sink.taken) >= 2)
    until(lambda: forwarder.is_forwarded(path))
    assert sink.bodies == names([1, 2])


def archive(path):
    target = archive_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb+") as file:
        gzip_blocks.write([path.read_bytes()], file)
    path.unlink()


@pytest.mark.parametrize("archiver", [archive, lambda path: subprocess.run(["gzip", str(path)], check=True)])
def test_a_day_that_was_archived_meanwhile_is_forwarded_from_there(sink, log_dir, start, archiver):
    old, today = day_path(log_dir, "jarvis", day(3)), day_path(log_dir, "jarvis", day())
    old.write_bytes(lines(range(50)))
    forwarder = start()
    until(lambda: len(sink.taken) >= 50)
    forwarder.stop()
    with old.open("ab") as file:
        file.write(lines(range(50, 8000)) + line(8000, message="n8000" + "x" * 3_000_000) + lines(range(8001, 8010)))
    today.write_bytes(lines(range(8010, 8020)))
    archiver(old)
    if (zipped := old.with_name(old.name + ".gz")).exists():
        archive_path(old).parent.mkdir(parents=True)
        zipped.rename(archive_path(old))
    forwarder = start(max_push=300_000)
    until(lambda: len(sink.taken) >= 8020)
    settled(forwarder)
    assert [body[:5].rstrip("x") for body in sink.bodies] == names(range(8020))
    forwarder.stop()
    start()
    time.sleep(0.3)
    assert len(sink.taken) == 8020


def test_a_file_that_was_replaced_or_became_shorter_is_forwarded_again(sink, log_dir, start):
    path = day_path(log_dir, "jarvis", day())
    path.write_bytes(lines(range(50)))
    forwarder = start()
    until(lambda: len(sink.taken) >= 50)
    new = path.with_suffix(".new")
    new.write_bytes(lines(range(100, 200)))
    new.replace(path)
    until(lambda: len(sink.taken) >= 150)
    path.write_bytes(lines(range(200, 220)))
    until(lambda: len(sink.taken) >= 170)
    forwarder.stop()
    path.write_bytes(lines(range(300, 400)))
    start()
    until(lambda: len(sink.taken) >= 270)
    assert sink.bodies == names([*range(50), *range(100, 200), *range(200, 220), *range(300, 400)])


def test_a_write_that_the_writer_took_back_repeats_little(sink, log_dir, start):
    path = day_path(log_dir, "jarvis", day())
    path.write_bytes(lines(range(50)))
    start()
    until(lambda: len(sink.taken) >= 50)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(lines(range(50, 60)))
    until(lambda: len(sink.taken) >= 60)
    os.truncate(path, size)
    with path.open("ab") as file:
        file.write(lines(range(70, 80)))
    until(lambda: len(sink.taken) >= 70)
    assert sink.bodies == names([*range(60), *range(70, 80)])


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"since":"2026-01-01"}', b'{"since":"x","files":{}}', b"\xff\0", b"[]"]
)
def test_a_checkpoint_that_cannot_be_read_means_a_week_again(sink, log_dir, start, tmp_path, content):
    checkpoint = tmp_path / "loki.json"
    checkpoint.write_bytes(content)
    day_path(log_dir, "jarvis", day(20)).write_bytes(lines(range(10)))
    day_path(log_dir, "jarvis", day(6)).write_bytes(lines(range(10, 20)))
    day_path(log_dir, "jarvis", day()).write_bytes(lines(range(20, 30)))
    forwarder = start(checkpoint=checkpoint)
    until(lambda: len(sink.taken) >= 20)
    assert sink.bodies == names(range(10, 30))
    assert "cannot be read" in forwarder.said.getvalue()
    assert forwarder.is_forwarded(day_path(log_dir, "jarvis", day(20)))


def test_lines_of_the_real_collector_are_forwarded_and_torn_ones_counted(sink, log_dir, start):
    torn = otlp_line(range(100, 110))[:300]
    content = [
        otlp_line(range(3)),
        otlp_line([3], eventName="trade.done"),
        torn + otlp_line([4, 5]),  # a killed writer leaves half a line, and the next one goes on there
        b"not JSON\n",
        b'{"a":"line of somebody else"}\n',
        b"\n",
        otlp_line(range(6, 4000)),
        torn + b"\n",
        otlp_line([4000]),
    ]
    day_path(log_dir, "jarvis", day()).write_bytes(b"".join(content))
    forwarder = start(max_push=100_000)
    status = settled(forwarder)
    assert sink.bodies == names(range(4001))
    assert status.passed_over == 5
    assert attributes_of(sink.taken[3]) == {"event_name": "trade.done"}
    forwarder.stop()
    assert forwarder.said.getvalue().count("are passed over") == 1
    assert max(size for size, _ in sink.pushes) <= 100_000


def test_a_request_of_many_megabytes_in_one_line_is_forwarded_in_pushes(sink, log_dir, start):
    path = day_path(log_dir, "jarvis", day())
    huge = otlp_line(range(60_000), attributes=[{"key": "side", "value": {"stringValue": 'bu{y["]}\\'}}])
    path.write_bytes(otlp_line([-1]) + huge + otlp_line([60_000]))
    forwarder = start()
    until(lambda: len(sink.taken) >= 60_002, 60)
    settled(forwarder)
    assert sink.bodies == names(range(-1, 60_001))
    assert {service["resource"]["attributes"][0]["value"]["stringValue"] for service in sink.taken} == {"go-app"}
    assert attributes_of(sink.taken[500]) == {"side": 'bu{y["]}\\'}


def test_a_stack_trace_over_the_limits_is_moved_into_the_line(sink, log_dir, start):
    trace = "Traceback (most recent call last):\n" + "\n".join(f"  File é{n}" for n in range(20_000)) + "\nend of it"
    assert len(trace) > 250_000
    content = line(1, message="order failed", error_type="ValueError", stack_trace=trace[:200_000])
    content += line(2, message="order failed", error_type="ValueError", stack_trace=trace)
    content += line(3, message="order failed", error_type="ValueError", stack_trace="short")
    day_path(log_dir, "jarvis", day()).write_bytes(content)
    status = settled(start())
    moved, cut, short = sink.taken
    assert moved["body"]["stringValue"] == "order failed\n" + trace[:200_000]
    assert "exception.stacktrace" not in attributes_of(moved)
    assert attributes_of(moved)["exception.type"] == "ValueError"
    said = cut["body"]["stringValue"]
    assert said.startswith("order failed\nTraceback")
    assert said.endswith("]")
    assert "…[truncated " in said[-30:]
    assert len(said.encode()) <= 256 * 1024
    assert attributes_of(short)["exception.stacktrace"] == "short"
    assert (status.cut, status.pushed, sum(status.refused.values())) == (2, 3, 0)


def test_attributes_over_the_limits_are_kept_in_the_line_or_cut(sink, log_dir, start):
    content = line(1, context={f"key{n}": f"value{n}" for n in range(200)})
    content += line(2, context={"a": "x" * 100_000, "b": "y" * 30_000, "c": "small"})
    content += line(3, context={"日本": "a name that Loki has no letters for", "ok": "1"})
    content += line(4, context={"deep": {f"k{n}": {"inner": n} for n in range(200)}})
    day_path(log_dir, "jarvis", day()).write_bytes(content)
    status = settled(start())
    many, long, foreign, deep = sink.taken
    found = attributes_of(many)
    assert len(found) <= 128
    assert many["body"]["stringValue"].startswith("n1\n{")
    moved = json.loads(many["body"]["stringValue"].removeprefix("n1\n"))
    assert {k: v for k, v in {**found, **moved}.items() if k.startswith("key")} == {
        f"key{n}": f"value{n}" for n in range(200)
    }
    found = attributes_of(long)
    assert found["c"] == "small"
    assert "…[truncated " in found["a"]
    assert found["b"] == "y" * 30_000
    assert json.loads(foreign["body"]["stringValue"].split("\n")[1]) == {"日本": "a name that Loki has no letters for"}
    assert attributes_of(foreign)["ok"] == "1"
    assert json.loads(deep["body"]["stringValue"].split("\n")[1])["deep"]["k150"] == {"inner": 150}
    assert (status.cut, sum(status.refused.values())) == (4, 0)


def test_stop_ends_a_hanging_push_and_what_it_held_is_forwarded_later(sink, log_dir, start):
    day_path(log_dir, "jarvis", day()).write_bytes(lines(range(10)))
    sink.script = ["hang"]
    forwarder = start()
    assert sink.hanging.wait(20)
    forwarder.stop()
    assert not forwarder._thread.is_alive()
    start()
    until(lambda: len(sink.taken) >= 10)
    assert sink.bodies == names(range(10))


def test_stop_ends_a_wait(sink, log_dir, start):
    day_path(log_dir, "jarvis", day()).write_bytes(line(1))
    sink.status, sink.retry_after = 503, "200"
    forwarder = start()
    until(lambda: forwarder.status().retries)
    forwarder.stop()
    assert not forwarder._thread.is_alive()


def test_a_push_that_hangs_is_given_up_and_repeated(sink, log_dir, start):
    day_path(log_dir, "jarvis", day()).write_bytes(line(1))
    sink.script = ["hang"]
    forwarder = start(timeout=0.5)
    until(lambda: len(sink.taken) >= 1)
    assert "no answer within 0.5 s" in forwarder.said.getvalue()


def test_records_wait_while_loki_says_that_its_settings_are_wrong(sink, log_dir, start):
    day_path(log_dir, "jarvis", day()).write_bytes(lines(range(5)))
    take = sink._take
    disallowed = "stream '{a=\"b\"}' includes structured metadata, but this feature is disallowed."
    sink._take = lambda *_: (400, disallowed.encode())
    forwarder = start()
    until(lambda: forwarder.status().retries)
    assert sum(forwarder.status().refused.values()) == 0
    forwarder.stop()
    sink._take = take
    start()
    until(lambda: len(sink.taken) >= 5)


def test_a_checkpoint_that_cannot_be_written_stops_no_record_and_is_told(sink, log_dir, start, tmp_path):
    (tmp_path / "loki.json").mkdir()
    path = day_path(log_dir, "jarvis", day())
    path.write_bytes(line(1))
    forwarder = start(checkpoint=tmp_path / "loki.json")
    until(lambda: "saving the checkpoint fails" in forwarder.said.getvalue())
    assert sink.bodies == names([1])
    assert not forwarder.is_forwarded(path)
    (tmp_path / "loki.json").rmdir()
    until(lambda: forwarder.is_forwarded(path))


def test_a_push_goes_over_tls_and_only_to_whom_it_trusts(log_dir, tmp_path, monkeypatch, start):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    day_path(log_dir, "jarvis", day()).write_bytes(lines(range(100)))
    with loki_sink(tls=context) as peer:
        forwarder = start(url=f"https://localhost:{peer.port}")
        until(lambda: forwarder.status().retries)
        assert "certificate" in forwarder.said.getvalue()
        forwarder.stop()
        assert not peer.taken
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        start(url=f"https://localhost:{peer.port}")
        until(lambda: len(peer.taken) >= 100)
        assert peer.bodies == names(range(100))


def test_two_forwarders_do_not_share_a_checkpoint(sink, log_dir, tmp_path):
    process = forward_process(log_dir, sink, tmp_path / "loki.json")
    try:
        until(lambda: (tmp_path / ".forward.lock").exists() and (tmp_path / ".forward.lock").read_text().strip())
        forwarder = Forwarder(LokiTarget(sink.url, tmp_path / "loki.json"), log_dir, OwnLog(stream=io.StringIO()))
        with pytest.raises(CollectorError, match=f"pid {process.pid}"):
            forwarder.start()
        forwarder.stop()
    finally:
        process.terminate()
        _, said = process.communicate(timeout=10)
    assert process.returncode == 0, said


def test_a_directory_that_is_made_later_is_followed(sink, tmp_path):
    log_dir = tmp_path / "later"
    forwarder = Forwarder(LokiTarget(sink.url, tmp_path / "loki.json"), log_dir, OwnLog(stream=io.StringIO()))
    forwarder.start()
    try:
        log_dir.mkdir()
        day_path(log_dir, "jarvis", day()).write_bytes(line(1))
        until(lambda: len(sink.taken) >= 1)
    finally:
        forwarder.stop()


def test_an_unreadable_day_is_a_problem_that_ends(sink, log_dir, start):
    path = day_path(log_dir, "jarvis", day())
    path.mkdir()
    forwarder = start()
    until(lambda: "reading the log files fails" in forwarder.said.getvalue())
    assert forwarder.status().problem is None, "it is one after some time only"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=10,
)


@given(st.lists(st.tuples(TEXT, st.dictionaries(TEXT, VALUE, max_size=5)), min_size=1, max_size=8), st.data())
def test_short_lines_of_a_long_one_hold_the_same_records(records, data):
    content = [
        {"body": {"stringValue": body}, "attributes": [{"key": k, "value": {"x": v}} for k, v in attributes.items()]}
        for body, attributes in records
    ]
    half = len(content) // 2
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": '[{"'}}]}
    groups = [
        {"resource": resource, "scopeLogs": [{"scope": {"name": "a"}, "logRecords": content[:half]}]},
        {"resource": {}, "scopeLogs": [{"scope": {}, "logRecords": content[half:]}, {"scope": {}, "logRecords": []}]},
    ]
    raw = json.dumps({"resourceLogs": groups}, separators=(",", ":"), ensure_ascii=data.draw(st.booleans())).encode()
    size = data.draw(st.integers(1, 64))
    parts = [raw[at : at + size] for at in range(0, len(raw), size)]
    found = [record for short in short_lines(iter(parts)) for record in records_of(json.loads(short))]
    assert found == records_of({"resourceLogs": groups})


@given(st.binary(max_size=200), st.integers(1, 50))
def test_no_bytes_make_short_lines_fail_otherwise_than_by_saying_so(raw, size):
    parts = [b'{"resourceLogs":[', *[raw[at : at + size] for at in range(0, len(raw), size)]]
    try:
        for _ in short_lines(iter(parts)):
            pass
    except LineError:
        pass


@given(st.integers(0, 1_500_000), st.sampled_from(["x", "é", "\\", "\n", "😀"]), st.integers(100_000, 400_000))
def test_a_text_of_any_length_comes_out_as_json_and_says_what_was_cut(count, char, size):
    raw = json.dumps({"message": char * count, "n": 1}, ensure_ascii=False).encode()
    (short,) = short_lines(raw[at : at + size] for at in range(0, len(raw), size))
    found = json.loads(short)
    assert found["n"] == 1
    if len(raw) > 600_000:
        assert "…[truncated " in found["message"]
    elif len(raw) < 500_000:
        assert found["message"] == char * count


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), TEXT), min_size=1, max_size=30))
def test_a_push_keeps_the_order_of_each_service_and_is_as_large_as_reckoned(records):
    encoder = Encoder(MAX_PUSH)
    content = [line(n, service=service, message=f"{n} {text}") for n, (service, text) in enumerate(records)]
    entries = [entry for each in content for entry in encoder.entries(each.rstrip(b"\n"))]
    body = push_body(entries)
    assert len(body) <= sum(cost(entry, before) for entry, before in zip(entries, [None, *entries], strict=False))
    found = [record["body"]["stringValue"].split()[0] for record in records_of(json.loads(body))]
    assert found == [str(number) for number in range(len(records))]


def test_the_forwarder_stays_small_while_it_catches_up(sink, log_dir, tmp_path):
    with day_path(log_dir, "jarvis", day()).open("wb") as file:
        for start_ in range(0, 20_000, 1000):
            file.write(lines(range(start_, start_ + 1000), context={"order": "x" * 300}))
        file.write(otlp_line(range(20_000, 60_000), attributes=[{"key": "k", "value": {"stringValue": "v" * 100}}]))
    counted = threading.Event()
    sink._far_behind = lambda records: counted.set() if records[-1]["body"]["stringValue"] == "n59999" else ""
    process = forward_process(log_dir, sink, tmp_path / "loki.json", MAX_PUSH)
    try:
        base = None
        while not counted.wait(0.05):
            assert process.poll() is None
            resident = resident_bytes(process.pid)
            base = min(base or resident, resident)
        peak = peak_bytes(process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=10)
    bare = subprocess.run(
        [sys.executable, "-c", PROGRAM.split("log_dir,", maxsplit=1)[0] + "print(open('/proc/self/status').read())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    idle = int(bare.split("VmHWM:")[1].split()[0]) * 1024
    assert peak - idle < 40_000_000


def resident_bytes(pid):
    with Path(f"/proc/{pid}/status").open() as file:
        return int(file.read().split("VmRSS:")[1].split()[0]) * 1024


def peak_bytes(pid):
    with Path(f"/proc/{pid}/status").open() as file:
        return int(file.read().split("VmHWM:")[1].split()[0]) * 1024
