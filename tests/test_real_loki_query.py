"""A real Loki, written to by our forwarder, gives the answers that the files give."""

import io
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_collector.config import LokiTarget
from jarvis_collector.forward import Forwarder
from jarvis_collector.layout import day_path
from jarvis_collector.own_log import OwnLog
from jarvis_collector.record import LogEntry, format_timestamp
from jarvis_otel.query.log_query import Criteria, LogQuery
from jarvis_otel.query.logql import label_of, query
from tests.otlp_sink import until
from tests.real_stack import FileCollector, Loki, LokiCollector, post, running
from tests.test_flag_impact import by_variant

pytestmark = pytest.mark.real

TRACES = [f"{number:032x}" for number in range(1, 5)]
TEXTS = ['say "hi"', "back\\slash", "a`tick", "}{|=", "new\nline", "ünïcode", "\u0130stanbul", "\u212aelvin", "\U0001f600", "%s", "a.b*c+",
    "\x1b[31m", "\u202eevil", "\u2028", " blank ", "null", "1e5", "[1]x", "\x7f", '" or "1"="1', "{{.x}}", "(?i)x", "\\d", "'"]  # fmt: skip


def records(now):
    """Records of all kinds, whose attributes are such as Loki can give back."""
    levels = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    for number in range(600):
        level = levels[number % 5]
        failed = {"error_type": ["ValueError", "KeyError"][number % 2], "error_message": f"bad {number % 7}"}
        flags = {"NEW_UI": "on" if number % 3 else "off", "LIMIT": ["low", "high"][number % 2]}
        yield LogEntry(
            format_timestamp(now - 3_600_000_000_000 + number * 1_000_000_000),
            level,
            f"message {number % 50}",
            ["trading", "telegram", "api"][number % 3],
            correlation_id=f"op-{number // 4}",
            trace_id=TRACES[number % 4] if number % 2 else None,
            user_id=TEXTS[number % len(TEXTS)],
            active_flags=[flag for flag, variant in flags.items() if variant == "on"],
            flags=flags if number % 5 else {},
            duration_ms=float(number) + 0.5 if number % 2 else None,
            event="trade.executed" if number % 11 == 0 else None,
            context={"symbol": ["SOL", "BTC"][number % 2], "http.status": "500", "text": TEXTS[number % len(TEXTS)]},
            logger="jarvis",
            hostname="host",
            environment="prod",
            version="1.0",
            uid=f"u{number}",
            **(failed if level in ("ERROR", "CRITICAL") else {}),
        )


def regression(now):
    """Operations of which with the flag one in ten fails, and without it one in a hundred; with it they are slower."""
    for number in range(600):
        variant = "on" if number % 2 else "off"
        failed = number % 20 == 1 if variant == "on" else number % 200 == 0
        for part in range(2 if failed else 1):
            yield LogEntry(
                format_timestamp(now - 1_800_000_000_000 + number * 1_000_000_000 + part),
                "ERROR" if part else "INFO",
                "done",
                "shop",
                correlation_id=f"sale-{number}",
                active_flags=["CART"] if variant == "on" else [],
                flags={"CART": variant},
                duration_ms=float((120 if variant == "on" else 60) + number % 17),
                uid=f"r{number}-{part}",
            )
    yield LogEntry(
        format_timestamp(now - 1_800_000_000_000),
        "INFO",
        "CART: off → on",
        "cli",
        event="jarvis.flag.changed",
        context={
            "feature_flag.key": "CART",
            "jarvis.change.old": "off",
            "jarvis.change.new": "on",
            "jarvis.change.actor": "ann",
        },
        uid="change",
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same records as files and in Loki."""
    home = tmp_path_factory.mktemp("query")
    loki = Loki(home / "loki")
    log_dir = home / "logs"
    log_dir.mkdir()
    now = time.time_ns() // 1000 * 1000
    lines = [entry.to_json().encode() + b"\n" for entry in (*records(now), *regression(now))]
    path = day_path(log_dir, "jarvis", datetime.now(UTC).strftime("%Y-%m-%d"))
    path.write_bytes(b"".join(lines))
    with running(loki):
        forwarder = Forwarder(LokiTarget(loki.url, home / "loki.json"), log_dir, OwnLog(stream=io.StringIO()))
        forwarder.start()
        try:
            until(lambda: forwarder.is_forwarded(path), 60)
            assert forwarder.status().pushed == len(lines)
        finally:
            forwarder.stop()
        until(lambda: len(loki.range('{service_name="cli"}')) == 1, 30)
        yield log_dir, loki


def comparable(record):
    """A record without what Loki does not keep: the order of keys, and the dots in their names, and whether a
    whole number was a float."""
    meta = {key: value for key, value in record["_meta"].items() if key != "otlp"}
    context = {label_of(key): value for key, value in record["context"].items()}
    duration = {"duration_ms": float(record["duration_ms"])} if "duration_ms" in record else {}
    return orjson.dumps({**record, **duration, "context": context, "_meta": meta}, option=orjson.OPT_SORT_KEYS)


QUESTIONS = [
    {},
    {"level": "ERROR"},
    {"level": "=WARNING"},
    {"level": "DEBUG", "service": "api"},
    {"level": "=INFO", "flag": "LIMIT=high"},
    {"service": "trading"},
    {"service": "nowhere"},
    {"correlation_id": "op-7"},
    {"correlation_id": TRACES[1].upper()},
    {"trace_id": TRACES[2]},
    {"flag": "NEW_UI"},
    {"flag": "NEW_UI=off", "level": "WARNING"},
    {"flag": "NEW_UI=on"},
    {"text": "MESSAGE 4"},
    {"text": "bad 3"},
    {"text": "sol"},
    {"text": 'say "HI'},
    {"where": "duration_ms>500"},
    {"where": "duration_ms<=10.5 and service=trading"},
    {"where": "error.type=KeyError or event=trade.executed"},
    {"where": "error.type~=key and not service=api"},
    {"where": "error.message='bad 2'"},
    {"where": "context.http.status=500 and level>=ERROR"},
    {"where": "context.symbol~=so and flags.LIMIT=low"},
    {"where": "message='message 7' and logger=jarvis"},
    {"where": "level!=INFO and active_flags=NEW_UI"},
    {"where": "_meta.environment=prod and event=trade.executed"},
    *({"user_id": text} for text in TEXTS),
    *({"text": text} for text in TEXTS),
]


@pytest.mark.parametrize("asked", QUESTIONS, ids=str)
def test_loki_answers_as_the_files_do(both, asked):
    log_dir, loki = both
    target = LokiTarget(loki.url, log_dir)
    asked = {"since": "-2h", **asked} if asked else asked  # a question of thirty days takes longer
    files = LogQuery(log_dir).search(**asked, limit=None)
    from_loki = LogQuery(loki=target).search(**asked, limit=None)
    assert sorted(map(comparable, from_loki)) == sorted(map(comparable, files))
    newest = LogQuery(loki=target).search(**asked, limit=5)
    assert [one["timestamp"] for one in newest] == [one["timestamp"] for one in files[-5:]]


def test_an_interval_is_the_same_in_both(both):
    log_dir, loki = both
    middle = datetime.now(UTC) - timedelta(minutes=55)
    within = {"since": middle, "until": middle + timedelta(minutes=2)}
    files = LogQuery(log_dir).search(**within, limit=None)
    assert 100 < len(files) < 140
    found = LogQuery(loki=LokiTarget(loki.url, log_dir)).search(**within, limit=None)
    assert [one["message"] for one in found] == [one["message"] for one in files]


def test_errors_by_flag_are_the_same_in_both(both):
    log_dir, loki = both
    assert LogQuery(loki=LokiTarget(loki.url, log_dir)).flag_rates() == LogQuery(log_dir).flag_rates()


def test_the_impact_of_a_flag_is_the_same_in_both_and_shows_the_regression(both):
    log_dir, loki = both
    files = LogQuery(log_dir).flag_impact("CART")
    found = LogQuery(loki=LokiTarget(loki.url, log_dir)).flag_impact("CART")
    assert found == files
    assert found.comparisons[0].verdict == "worse"
    assert found.comparisons[0].p95.verdict == "worse"
    assert {name: (one.operations, one.errors) for name, one in by_variant(found).items()} == {
        "on": (300, 30),
        "off": (300, 3),
    }
    assert [(one.old, one.new, one.who) for one in found.changes] == [("off", "on", "ann")]


def test_the_command_says_it_from_loki(both, tmp_path):
    _, loki = both
    environ = {**os.environ, "JARVIS_HOME": str(tmp_path), "JARVIS_LOKI_URL": loki.url}
    command = [sys.executable, "-m", "jarvis_otel.cli.main", "flags", "impact", "CART", "--since", "-3h", "--loki"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=False)
    assert result.returncode == 0, result.stderr
    assert "errors are 10 % with on against 1 % with off: likely worse" in result.stdout


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text() | st.lists(st.sampled_from(["\\", '"', "`", "|", "{{", "}}", "'", "(", "[", "*", "é", "\x00", " ", "k", "ab1"])).map("".join),
    st.sampled_from(["user_id", "text", "service", "correlation_id", "context.x", "message", "error.type", "flags.x"]),
    st.sampled_from(["=", "~="]),
)  # fmt: skip
def test_lokis_parser_takes_a_query_of_any_text(both, text, field, compare):
    _, loki = both
    if "." in field or field == "message":
        value = text.replace("\\", "\\\\").replace('"', '\\"')
        criteria = Criteria.of(where=f'{field}{compare}"{value}"')
    else:
        criteria = Criteria.of(**{field: text})
    asked = query(one.loki for one in criteria.filters)
    now = time.time_ns()
    status, body = loki._get(
        "/loki/api/v1/query_range", {"query": asked, "start": str(now - 10**9), "end": str(now), "limit": "1"}
    )
    assert status == 200, f"{asked}: {body!r}"
    assert json.loads(body)["status"] == "success"
    assert urlencode({"query": asked}).isascii()


def attribute(key, value):
    return {"key": key, "value": value}


def test_what_the_real_collector_writes_to_files_and_to_loki_is_answered_alike(tmp_path):
    loki, files = Loki(tmp_path / "loki"), FileCollector(tmp_path / "files")
    files.logs.mkdir(parents=True)
    now = time.time_ns()
    sent = [
        {
            "timeUnixNano": str(now - (60 - number) * 10**9),
            "observedTimeUnixNano": str(now),
            "severityNumber": 17 if number % 10 == 0 else 9,
            "body": {"stringValue": f"m{number}"},
            "eventName": "trade.executed" if number % 7 == 0 else "",
            "traceId": f"{number + 1:032x}",
            "attributes": [
                attribute("log.record.uid", {"stringValue": f"u{number}"}),
                attribute("jarvis.flag.A", {"stringValue": "on" if number % 2 else "off"}),
                attribute("jarvis.duration_ms", {"doubleValue": number + 0.5}),
                attribute("http.status", {"intValue": str(number)}),
                attribute("user.id", {"stringValue": 'é"\\'}),
            ],
        }
        for number in range(60)
    ]
    resource = {"attributes": [attribute("service.name", {"stringValue": "bot"})]}
    body = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": {"name": "s"}, "logRecords": sent}]}]}
    with running(loki, files, LokiCollector(tmp_path / "forward", files.logs, loki.url)):
        assert post(files.url, body) == 200
        until(lambda: len(loki.records('{service_name="bot"}')) == 60, 60)
        of_files, of_loki = LogQuery(files.logs), LogQuery(loki=LokiTarget(loki.url, tmp_path))
        for asked, count in (
            ({}, 60),
            ({"level": "ERROR"}, 6),
            ({"flag": "A=off"}, 30),
            ({"trace_id": f"{3:032x}"}, 1),
            ({"where": "context.http.status>=50"}, 10),
            ({"where": "event=trade.executed"}, 9),
            ({"user_id": 'é"\\'}, 60),
        ):
            told = [[one["message"] for one in logs.search(**asked, limit=None)] for logs in (of_files, of_loki)]
            assert told[0] == told[1]
            assert len(told[0]) == count, asked
        assert of_loki.flag_impact("A") == of_files.flag_impact("A")
