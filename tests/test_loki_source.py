"""Loki as a source: page by page nothing is lost or repeated, and what it has become is a line of ours again."""

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_collector.config import LokiTarget
from jarvis_otel.query import logql
from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.files import LOGS, SPANS, Tally
from jarvis_otel.query.log_query import Criteria, LogQuery
from jarvis_otel.query.loki_lines import LokiLines
from jarvis_otel.query.loki_source import LokiError, LokiSource, asked_loki
from jarvis_otel.query.times import Interval
from jarvis_otel.settings import Settings
from tests.loki_peer import loki_peer

NOW = datetime(2026, 1, 18, 15, 0, tzinfo=UTC)
START = NOW - timedelta(hours=1)
NANOS = int(START.timestamp()) * 10**9


@pytest.fixture
def peer():
    with loki_peer() as one:
        yield one


def source(peer, page=5000, timeout=10.0, **headers):
    return LokiSource(LokiTarget(peer.url, Path(), headers, timeout), Tally(), lambda: NOW, page)


def entry(offset, number, **labels):
    return NANOS + offset, f"n{number}", {"service_name": "trading", "log_record_uid": f"u{number}", **labels}


def messages(found):
    return [one.record["message"] for one in found]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), max_size=40),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([None, 70_000_000_000]),
)
def test_all_pages_together_are_all_records_once_and_in_order(offsets, page, newest_first, length_max):
    # at most so many are of one moment as a page holds less one: of more, Loki tells nobody the rest
    kept = [offset for at, offset in enumerate(offsets) if offsets[:at].count(offset) < page - 1]
    with loki_peer() as peer:
        peer.length_max = length_max or peer.length_max
        peer.entries = [entry(offset * 10**9, number) for number, offset in enumerate(kept)]
        since = START - timedelta(minutes=5)
        until = START + timedelta(seconds=20)
        one = source(peer, page)
        found = list(one.records(LOGS, (), Interval(since, until), newest_first=newest_first))
    assert sorted(messages(found)) == sorted(f"n{number}" for number in range(len(kept)))
    times = [item.time for item in found]
    assert times == sorted(times, reverse=newest_first)
    assert not one._tally.damaged


@pytest.mark.parametrize("newest_first", [True, False])
def test_more_of_one_moment_than_a_page_holds_is_told(peer, newest_first):
    peer.entries = [entry(0, number) for number in range(30)] + [entry(10**9, 100), entry(-(10**9), 101)]
    one = source(peer, 10)
    found = messages(one.records(LOGS, (), Interval(START - timedelta(hours=1), NOW), newest_first=newest_first))
    assert {"n100", "n101"} < set(found)
    assert len(found) == len(set(found)) >= 12
    assert one._tally.damaged == ["more than 10 records of one moment in Loki; some of them are left out"]


def test_a_loki_that_gives_less_at_once_is_asked_for_less(peer):
    peer.limit_max = 100
    peer.entries = [entry(number, number) for number in range(1500)]
    assert len(list(source(peer).records(LOGS, (), Interval(START, NOW)))) == 1500
    assert max(int(one["limit"]) for one in peer.asked[4:]) <= 100


def test_a_page_too_large_for_loki_is_asked_for_in_smaller_ones(peer):
    peer.entries = [entry(number, number) for number in range(300)]
    said = b"rpc error: code = ResourceExhausted desc = trying to send message larger than max (12821321 vs. 4194304)"
    peer.answer = lambda asked: (500, said) if int(asked["limit"]) > 40 else None
    assert len(list(source(peer).records(LOGS, (), Interval(START, NOW)))) == 300


def test_a_question_without_a_beginning_reaches_back_thirty_days(peer):
    peer.entries = [entry(-(29 * 86_400 * 10**9), 1), entry(-(31 * 86_400 * 10**9), 2)]
    assert messages(source(peer).records(LOGS, (), Interval())) == ["n1"]
    assert all(int(one["end"]) - int(one["start"]) <= 7 * 86_400 * 10**9 for one in peer.asked)


def test_both_ends_of_the_interval_belong_to_it(peer):
    peer.entries = [entry(offset, number) for number, offset in enumerate([-1, 0, 5_000_999, 5_001_000])]
    within = Interval(START, START + timedelta(microseconds=5000))
    assert messages(source(peer).records(LOGS, (), within)) == ["n1", "n2"]


def test_repeats_of_a_uid_are_removed_and_counted(peer):
    peer.entries = [entry(0, 1), (NANOS + 5, "again", {"service_name": "trading", "log_record_uid": "u1"})]
    one = source(peer)
    assert messages(one.records(LOGS, (), Interval(START, NOW))) == ["n1"]
    assert one._tally.repeats == 1


def test_the_filters_run_again_on_what_comes_back(peer):
    peer.entries = [entry(0, 1, severity_number="17"), entry(1, 2, severity_number="9")]
    criteria = Criteria.of(level="ERROR", since=START, until=NOW)
    assert messages(source(peer).records(LOGS, criteria.filters, criteria.interval)) == ["n1"]
    assert "severity_number>=21" in peer.asked[0]["query"]


def test_the_newest_are_found_without_reading_the_others(peer):
    peer.entries = [entry(number * 10**6, number) for number in range(4000)]
    query = LogQuery(loki=LokiTarget(peer.url, Path()))
    matches = query.newest(Criteria.of(since=START, until=NOW), 3)
    assert messages(matches.found) == ["n3997", "n3998", "n3999"]
    assert (matches.total, matches.counted, len(peer.asked)) == (4, False, 1)


def test_records_of_a_loki_are_counted_too(peer):
    peer.entries = [entry(number * 10**6, number) for number in range(2500)] + [entry(0, 1)]
    counted = LogQuery(loki=LokiTarget(peer.url, Path())).counts(Criteria.of(since=START, until=NOW), [("service",)])
    parts = list(counted)
    assert sum(part.records for part in parts) == 2500
    assert sum(sum(part.groups[0].values()) for part in parts) == 2500


def test_loki_has_no_spans(peer):
    assert list(source(peer).records(SPANS, (), Interval())) == []
    assert peer.asked == []


def test_many_ids_are_posted(peer):
    ids = [f"{number:032x}" for number in range(1000)]
    peer.entries = [entry(0, 1, trace_id=ids[-1])]
    from jarvis_otel.query.filters import correlation_filter

    assert messages(source(peer).records(LOGS, (correlation_filter("x", ids),), Interval(START, NOW))) == ["n1"]


def test_headers_are_sent_and_the_one_that_hides_failures_is_not(peer):
    list(source(peer, **{"X-Scope-OrgID": "jarvis"}).records(LOGS, (), Interval(START, NOW)))
    assert peer.headers[0]["x-scope-orgid"] == "jarvis"
    assert "x-loki-response-encoding-flags" not in peer.headers[0]


def test_a_refusal_a_redirect_and_nonsense_are_told_in_one_harmless_line(peer):
    answers = {
        "answers with 401: no\\x1b[31m entry": (401, b"no\x1b[31m entry\n"),
        "answers with 302: nothing": (302, b""),
        "answers with something that is no answer of Loki": (200, b'{"data": []}'),
    }
    for said, answer in answers.items():
        peer.answer = lambda _, answer=answer: answer
        with pytest.raises(LokiError) as caught:
            list(source(peer).records(LOGS, (), Interval(START, NOW)))
        assert caught.value.strerror == said


def test_a_loki_that_does_not_answer_in_time_is_given_up(peer):
    release = threading.Event()

    def wait(_):
        release.wait(20)

    peer.answer = wait
    try:
        with pytest.raises(LokiError, match=r"no answer within 0\.3 s|timed out"):
            list(source(peer, timeout=0.3).records(LOGS, (), Interval(START, NOW)))
    finally:
        release.set()


def test_a_connection_that_was_closed_meanwhile_is_opened_again(peer):
    one = source(peer, 2)
    peer.entries = [entry(number, number) for number in range(5)]
    found, broken = [], []
    for record in one.records(LOGS, (), Interval(START, NOW)):
        connected = one._client._client._connection.sock
        if connected not in broken:  # once for each page: the peer answers by closing its side, whenever that is
            connected.shutdown(2)
            broken.append(connected)
        found.append(record)
    assert messages(found) == ["n0", "n1", "n2", "n3", "n4"]
    assert len(broken) > 1


# --- what comes back ---


def line(labels, text="said", names=()):
    import orjson

    return orjson.loads(LokiLines(names).line(NANOS + 1_234_567, text, labels))


def test_labels_are_fields_of_the_line_again():
    found = line(
        {
            "service_name": "bot",
            "jarvis_service": "trading",
            "severity_number": "17",
            "severity_text": "ERROR",
            "trace_id": "a" * 32,
            "span_id": "b" * 16,
            "flags": "1",
            "event_name": "trade.executed",
            "scope_name": "jarvis",
            "user_id": "u",
            "jarvis_duration_ms": "12.5",
            "jarvis_active_flags": '["a-b.c"]',
            "jarvis_flag_a_b_c": "on",
            "jarvis_flag_LIMIT": "low",
            "exception_type": "app.errors.TradeError",
            "code_line_number": "7",
            "host_name": "h",
            "deployment_environment_name": "prod",
            "service_instance_id": "i",
            "feature_flag_key": "LIMIT",
            "symbol": "SOL",
            "http_status": "200",
            "detected_level": "error",
        }
    )
    assert found["timestamp"] == "2026-01-18T14:00:00.001234Z"
    assert found["service"] == "trading"
    assert (found["level"], found["event"], found["logger"]) == ("ERROR", "trade.executed", "jarvis")
    assert found["flags"] == {"LIMIT": "low", "a-b.c": "on"}
    assert found["active_flags"] == ["a-b.c"]
    assert found["duration_ms"] == 12.5
    assert found["error"] == {"type": "TradeError"}
    assert found["source"] == {"line": 7}
    assert found["context"] == {"feature_flag.key": "LIMIT", "http_status": "200", "symbol": "SOL"}
    meta = found["_meta"]
    assert (meta["hostname"], meta["environment"], meta["service.instance.id"]) == ("h", "prod", "i")


def test_a_name_is_spelled_as_the_question_spells_it():
    found = line({"service_name": "s", "http_status": "200", "deep_a_b": "1"}, names=["http.status", "deep.a.b"])
    assert found["context"] == {"http.status": "200", "deep.a.b": "1"}


@given(st.dictionaries(st.sampled_from(["flags", "severity_number", "jarvis_duration_ms", "jarvis_active_flags", "code_line_number",
    "trace_id", "span_id", "event_name", "service_name", "x", "x_extracted", "observed_timestamp", "exception_type"]),
    st.text(max_size=8) | st.sampled_from(["1e999", "[", "[1", "[]", '["a"', "-5", "NaN", "9" * 30])), st.text(max_size=20))  # fmt: skip
def test_whatever_others_wrote_to_loki_becomes_a_line(labels, text):
    found = line(labels, text)
    assert found["level"] in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    assert found.get("message", "") == text


# --- what is asked ---

ascii_or_any = st.text() | st.sampled_from(['"', "\\", '" or 1=1 | "', "`", "}", "{", "\n", "\x00", "é", "\U0001f600"])


@given(ascii_or_any)
def test_a_quoted_text_is_ascii_without_an_end_before_its_own(text):
    quoted = logql.quoted(text)
    assert quoted.isascii()
    assert quoted.isprintable()
    inside = quoted[1:-1].replace("\\\\", "").replace('\\"', "")
    assert '"' not in inside
    # of Go's escapes it uses those that JSON has, and \U
    assert quoted[1:-1].encode().decode("unicode_escape") == text


@given(st.text(st.characters(), max_size=50) | st.text('aé\ud800"\\`|{}', max_size=20))
def test_any_text_gives_a_query_of_bounded_length_in_ascii(text):
    options = {"service": text, "user_id": text, "text": text, "correlation_id": text, "trace_id": text}
    filters = Criteria.of(**options, flag=text.replace("=", "") or "F").filters
    found = logql.query(one.loki for one in filters)
    assert found.isascii()
    assert found.isprintable()
    assert len(found) < 131_072


def test_a_text_that_is_too_long_for_a_query_is_looked_for_here_alone():
    filters = Criteria.of(user_id="u" * 200_000).filters
    assert logql.query(one.loki for one in filters) == '{service_name=~".+"}'


# --- which Loki ---


def load(tmp_path, **environ):
    return Settings.load({"JARVIS_HOME": str(tmp_path), **environ})


def test_without_a_url_it_is_the_loki_of_the_settings(tmp_path):
    found, note = asked_loki("", load(tmp_path, JARVIS_LOKI_URL="http://127.0.0.1:3100/", JARVIS_LOKI_HEADERS="A=b"))
    assert (found.url, found.headers, note) == ("http://127.0.0.1:3100", {"A": "b"}, None)
    with pytest.raises(QueryError, match="no loki_url in the settings"):
        asked_loki("", load(tmp_path))


def test_headers_go_to_the_loki_that_they_belong_to(tmp_path):
    alone = load(tmp_path, JARVIS_LOKI_HEADERS="Authorization=secret", JARVIS_LOKI_TIMEOUT="7")
    found, note = asked_loki("http://127.0.0.1:3100", alone)
    assert (found.headers, found.timeout, note) == ({"Authorization": "secret"}, 7.0, None)
    own = load(tmp_path, JARVIS_LOKI_HEADERS="Authorization=secret", JARVIS_LOKI_URL="http://127.0.0.1:3100")
    found, note = asked_loki("http://127.0.0.1:3101", own)
    assert found.headers == {}
    assert "belong to http://127.0.0.1:3100" in note
    assert asked_loki("http://127.0.0.1:3100/loki", own)[0].headers == {"Authorization": "secret"}


@pytest.mark.parametrize("url", ["trade-1", "ftp://h", "http://u:p@h", "http://h?x=1", "http://", "http://h:0"])
def test_what_is_no_url_is_refused(tmp_path, url):
    with pytest.raises(QueryError, match="want"):
        asked_loki(url, load(tmp_path))


# --- the commands ---


def logs(tmp_path, *arguments):
    environ = {**os.environ, "JARVIS_HOME": str(tmp_path), "TZ": "UTC", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "jarvis_otel.cli.main", "logs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=False)


def test_the_commands_ask_loki(peer, tmp_path):
    at = time.time_ns() - 10**9
    labels = {"service_name": "trading", "severity_number": "17", "exception_type": "E", "jarvis_active_flags": '["A"]'}
    peer.entries = [(at, "failed", {**labels, "log_record_uid": "u", "jarvis_correlation_id": "c-1"})]
    asked = logs(tmp_path, "query", "--level", "ERROR", "--loki", peer.url)
    assert (asked.returncode, "failed" in asked.stdout) == (0, True), asked.stderr
    assert f"Loki at {peer.url} has no spans" in asked.stderr
    assert '"E":1' in logs(tmp_path, "errors", "--loki", peer.url, "--format", "json").stdout
    assert "flags on:    A" in logs(tmp_path, "trace", "c-1", "--loki", peer.url).stdout
    assert "FF_A=true" in logs(tmp_path, "reproduce", "c-1", "--loki", peer.url).stdout
    nothing = logs(tmp_path, "trace", "c-2", "--loki", peer.url)
    assert (nothing.returncode, f"nothing found for c-2 in Loki at {peer.url}" in nothing.stderr) == (1, True)


def test_the_examples_of_the_documentation_run(peer, tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "logs.md").read_text().partition("## Asking Loki")[2]
    labels = {"service_name": "trading", "severity_number": "17", "jarvis_active_flags": '["NEW_UI"]'}
    labels["jarvis_correlation_id"] = "trade-xyz789"
    peer.entries = [(time.time_ns() - 10**9, "failed", labels)]
    examples = re.search(r"```sh\n(.*?)```", text, re.DOTALL)[1].replace("http://127.0.0.1:3100", peer.url)
    assert len(examples.splitlines()) == 3
    environ = {**os.environ, "JARVIS_HOME": str(tmp_path), "JARVIS_LOKI_URL": peer.url}
    for example in examples.splitlines():
        command = [sys.executable, "-m", "jarvis_otel.cli.main", *shlex.split(example)[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=False)
        assert (done.returncode, bool(done.stdout)) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("query", "--loki", "http://127.0.0.1:1"), "Loki at 127.0.0.1:1: cannot be read: Connection refused"),
        (("trace", "--loki", "trade-1", "c"), "--loki: got 'trade-1', want Loki's base URL"),
        (("errors", "--loki"), "--loki: got no URL"),
    ],
)
def test_a_loki_that_cannot_be_asked_is_2_in_one_line(tmp_path, arguments, said):
    result = logs(tmp_path, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
