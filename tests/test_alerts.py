"""Alerts in parts: what messages look like, what waits, what is worth telling, and where changes are read from."""

import json
import os
import socket
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_collector.http_client import HttpClient, Response
from jarvis_collector.layout import day_path
from jarvis_flags.source import FileSource
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.file_store import FileStore
from jarvis_otel.admin.store import Note
from jarvis_otel.alerts.alert import TELEGRAM_MAX, Alert, Message, telegram_html, webhook_body
from jarvis_otel.alerts.changes import AuditFeed, alert_of
from jarvis_otel.alerts.looks import News, Standing, collector_problem, expiring
from jarvis_otel.alerts.outbox import BURST, GATHER_S, KEPT, Outbox
from jarvis_otel.alerts.rates import READ_BYTES, is_over, recent_impacts
from jarvis_otel.alerts.service import Alerts, why_silent
from jarvis_otel.alerts.sinks import Fate, TelegramSink, WebhookSink, webhook_name
from jarvis_otel.alerts.state import read_status
from jarvis_otel.alerts.turn import FileTurn
from jarvis_otel.front_settings import TelegramSettings
from jarvis_otel.query.log_query import LogQuery
from jarvis_otel.settings import Settings
from tests.alert_sink import TOKEN, AlertSink, refusal, shown
from tests.clocks import Clock
from tests.collectors import served
from tests.otlp_sink import until
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


def alert(number=0, *, kind="flag_changed", flag="NEW_UI", **more):
    return Alert(kind, f"title {number}", f"text {number}", flag, at=f"2026-11-26T12:00:{number % 60:02}Z", **more)


def message(*alerts, count=None, held=0):
    return Message(alerts[0].kind, alerts, count or len(alerts), "warning", "NEW_UI", held)


# --- messages ---


def test_the_body_of_a_webhook_has_its_documented_keys():
    body = webhook_body(message(alert(1), alert(2), count=5, held=3))
    assert list(body) == [
        *("version", "id", "kind", "title", "text", "flag", "severity", "environment", "at", "count", "held_back"),
        "details",
    ]
    documented = (ROOT / "docs" / "alerts.md").read_text()
    assert all(f"`{key}`" in documented for key in body)
    assert body["title"] == "5 flag changes"
    assert body["at"] == "2026-11-26T12:00:02Z"
    assert [detail["title"] for detail in body["details"]] == ["title 1", "title 2"]
    assert body["text"].splitlines() == [
        "⚠️ 5 flag changes",
        "… and 3 before them",
        "title 1 · text 1",
        "title 2 · text 2",
        "3 of them were held back: there is a limit to messages",
    ]


def test_a_text_says_first_in_which_environment_it_happened():
    sent = message(alert(1, environment="prod<\u202e>"))
    assert telegram_html(sent).startswith("<b>⚠️ [prod&lt;\\u202e&gt;] title 1</b>")
    assert webhook_body(sent)["text"].startswith("⚠️ [prod\u2039\\u202e\u203a] title 1")
    assert webhook_body(sent)["environment"] == "prod<\\u202e>"


def test_a_text_for_chats_holds_no_link_and_no_call_to_everyone():
    one = Alert(
        "flag_changed", "X: off → on", "by ann: <!channel> <http://evil|click> @everyone @Here ann@host @hereby"
    )
    text = webhook_body(message(one))["text"]
    assert "<" not in text
    assert ">" not in text
    assert "@everyone" not in text
    assert "@Here" not in text
    assert "ann@host" in text
    assert "@hereby" in text


@given(
    st.lists(st.tuples(st.text(max_size=300), st.text(max_size=600)), min_size=1, max_size=KEPT),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_telegram_takes_any_message_and_it_says_how_many_it_leaves_out(parts, more, held):
    alerts = tuple(Alert("flag_changed", title, text) for title, text in parts)
    sent = Message("flag_changed", alerts, len(alerts) + more, "info", "", held)
    text = telegram_html(sent)
    body = {"chat_id": 1, "parse_mode": "HTML", "text": text}
    assert refusal(body) is None
    assert len(text) <= TELEGRAM_MAX
    lines = shown(body).split("\n")
    told = len(lines) - 1 - bool(held)
    left_out = [line for line in lines if line.startswith("… and ") and line.endswith(" before them")]
    if left_out and sent.count > 1:
        told -= 1
        assert f"… and {sent.count - told:,} before them" in left_out
    orjson.dumps(webhook_body(sent))


def test_a_message_that_is_sent_again_has_the_same_id():
    assert message(alert(1)).id == message(alert(1)).id
    assert len({message(alert(1)).id, message(alert(2)).id, message(alert(1), alert(2)).id}) == 3


# --- what waits ---


def sent(outbox, now):
    taken = outbox.take(now)
    if taken is not None:
        outbox.delivered(now)
    return taken


def test_alerts_of_a_moment_become_one_message_of_the_latest_and_a_count():
    outbox = Outbox(60)
    for number in range(1_000):
        outbox.add(alert(number), 100.0 + number / 2_000)
    assert outbox.take(100.9) is None
    assert outbox.wait(100.9) == pytest.approx(0.1)
    one = sent(outbox, 100.0 + GATHER_S)
    assert (one.count, len(one.alerts), one.left_out) == (1_000, KEPT, 1_000 - KEPT)
    assert one.alerts[-1].title == "title 999"
    assert (outbox.counters.alerts, outbox.counters.messages, outbox.counters.left_out) == (1_000, 1, 1_000 - KEPT)
    assert outbox.wait(200.0) is None


def test_messages_of_a_kind_are_limited_and_what_was_held_back_is_said_in_the_next():
    outbox, now, taken = Outbox(60), 1000.0, []
    for number in range(3_000):  # ten a second, for five minutes
        outbox.add(alert(number), now)
        if (one := sent(outbox, now)) is not None:
            taken.append(one)
        now += 0.1
    assert BURST + 4 <= len(taken) <= BURST + 6
    assert [one.held for one in taken[: BURST - 1]] == [0] * (BURST - 1)
    assert all(one.held > 500 for one in taken[BURST + 1 :])
    assert sent(outbox, now + 60).count + sum(one.count for one in taken) == 3_000


def test_kinds_do_not_hold_each_other_back():
    outbox = Outbox(60)
    for number in range(BURST + 1):
        outbox.add(alert(number), 100.0 + 2 * number)
        sent(outbox, 101.5 + 2 * number)
    outbox.add(alert(kind="collector", flag="", severity="critical"), 120.0)
    assert sent(outbox, 121.0).kind == "collector"
    assert outbox.waiting == 1


def test_what_fails_waits_longer_and_longer_with_what_came_meanwhile_and_is_bounded():
    outbox, now, waits = Outbox(60), 100.0, []
    for number in range(40):
        for _ in range(100):
            outbox.add(alert(number), now)
        now += max(1.0, outbox.wait(now))
        assert outbox.take(now) is not None
        outbox.failed(now)
        waits.append(outbox.retry_at - now)
    assert waits[:5] == [1, 2, 4, 8, 16]
    assert waits[-1] == 300
    assert outbox.waiting == 4_000
    assert len(json.dumps(outbox.to_dict())) < 10_000
    assert sent(outbox, outbox.retry_at).count == 4_000
    assert outbox.failing == 0


def test_a_receiver_that_says_how_long_to_wait_is_obeyed():
    outbox = Outbox(60)
    outbox.add(alert(), 100.0)
    outbox.take(101.0)
    outbox.failed(101.0, 77.0)
    assert outbox.take(177.9) is None
    assert outbox.take(178.0) is not None


def test_what_is_refused_for_good_goes_and_is_counted():
    outbox = Outbox(60)
    outbox.add(alert(), 100.0)
    outbox.take(101.0)
    outbox.refused()
    assert (outbox.waiting, outbox.counters.refused) == (0, 1)


def test_a_clock_that_is_set_back_holds_nothing():
    outbox = Outbox(60)
    for number in range(BURST + 1):
        outbox.add(alert(number), 1e9 + 2 * number)
        sent(outbox, 1e9 + 1 + 2 * number)
    outbox.add(alert(), 1000.0)
    assert sent(outbox, 1000.0 + GATHER_S) is not None
    outbox.add(alert(), 1e9)
    outbox.take(1e9 + 2)
    outbox.failed(1e9 + 2)
    assert outbox.take(1005.0) is not None


events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(["flag_changed", "collector"]), st.integers(1, 50)),
        st.tuples(st.sampled_from(["delivered", "failed", "refused", "restart", "kill"]), st.just(""), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(events, st.floats(0, 100))
def test_no_alert_is_lost_whatever_happens_between(steps, step):
    outbox, now, added = Outbox(5), 1000.0, 0
    for what, kind, number in steps:
        now += step
        if what == "add":
            added += number
            for _ in range(number):
                outbox.add(alert(kind=kind), now)
        elif what in ("restart", "kill"):
            if what == "kill":
                outbox.take(now)
            outbox = Outbox(5, orjson.loads(orjson.dumps(outbox.to_dict())))
        elif outbox.take(now) is not None:
            getattr(outbox, what)(*([] if what == "refused" else [now]))
        assert added == outbox.waiting + outbox.counters.alerts + outbox.counters.refused


# --- what is worth telling ---


def looks(values, *, step=60.0, **options):
    standing, told = Standing(), []
    for number, value in enumerate(values):
        told.append(standing.look(value, 1e6 + number * step, **({"hold": 60.0} | options)))
    return told


def test_what_goes_wrong_is_told_once_again_after_an_hour_and_when_it_is_over():
    told = looks([False, True, *[True] * 60, None, False, False], again=3600.0)
    assert [(number, news) for number, news in enumerate(told) if news] == [
        (1, News.BEGAN),
        (61, News.LASTS),
        (63, News.ENDED),
    ]


def test_one_look_that_is_not_confirmed_is_not_told():
    assert not any(looks([True, False] * 20, looks=2))
    assert looks([True, True], looks=2) == [None, News.BEGAN]


def test_what_comes_and_goes_is_told_less_and_less_often():
    told = looks([number % 2 == 0 for number in range(24 * 60)], again=3600.0)
    assert sum(news is not None for news in told) < 24 + 12
    assert sum(news is not None for news in told[:60]) >= 4


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (Response(200, "OK", b'{"status":"ok"}'), None),
        (Response(200, "OK", b'{"status":"degraded","reason":"Loki"}'), "is degraded: Loki"),
        (Response(503, "no", b'{"status":"degraded","reason":"disk full"}'), "answers 503: disk full"),
        (Response(503, "no", b"busy"), "answers 503"),
        (Response(0, "Connection refused"), "does not answer: Connection refused"),
        (Response(404, "Not Found", b"[]"), None),
    ],
)
def test_a_collector_is_not_well_where_it_says_so_or_nothing(response, problem):
    assert collector_problem(response) == problem


def test_flags_that_expire_are_told_once_for_each_date(flag_file):
    flag_file(
        """\
        flags:
          SOON: {expires_at: 2026-12-01, owner: ann, on_expiry: disable}
          LATER: {expires_at: 2027-12-01}
          PAST: {expires_at: 2026-11-01}
          NEVER: {}
        """
    )
    source = FileSource(Settings.load().flags)
    found = {one.flag: one for one in expiring(source.snapshot, 7, {}, NOW.timestamp())}
    assert found.keys() == {"SOON", "PAST"}
    assert found["SOON"].title == "SOON expires on 2026-12-01"
    assert found["SOON"].text.startswith("owner ann: it is turned off then; remove it")
    assert found["SOON"].details["days_left"] == 4.5
    assert found["PAST"].title == "PAST expired on 2026-11-01"
    assert not list(expiring(source.snapshot, 7, {"SOON": "2026-12-01", "PAST": "2026-11-01"}, NOW.timestamp()))
    assert len(list(expiring(source.snapshot, 7, {"SOON": "2026-11-30", "PAST": "2026-11-01"}, NOW.timestamp()))) == 1


# --- where changes are read from ---


def noted(store, *reasons):
    for reason in reasons:
        store.note(Author("ann", "cli", reason), lambda: [Note("edit", "X", "written", new={"enabled": True})])


def reasons_of(changes):
    return [entry.reason for entry in changes.entries]


@pytest.fixture
def audit(tmp_path):
    return (
        FileStore(tmp_path / "flags"),
        AuditFeed(tmp_path / "flags" / "audit.jsonl"),
        tmp_path / "flags" / "audit.jsonl",
    )


def test_the_audit_is_followed_from_its_end_also_where_it_is_not_there_yet(audit):
    store, feed, _ = audit
    mark = feed.end()
    noted(store, "a")
    changes = feed.after(mark)
    assert reasons_of(changes) == ["a"]
    assert feed.after(changes.mark) == ([], changes.mark, False, "")
    noted(store, "b", "c")
    mark = orjson.loads(orjson.dumps(feed.after(changes.mark).mark))
    assert mark == feed.end()
    noted(store, "d")
    assert reasons_of(feed.after(mark)) == ["d"]


def test_a_line_that_is_half_written_waits_for_its_end(audit):
    store, feed, path = audit
    noted(store, "a", "b")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    changes = feed.after(feed.end() | {"offset": 0, "size": 0, "hash": "0" * 64})
    assert reasons_of(changes) == ["a"]
    assert reasons_of(feed.after(changes.mark)) == []
    path.write_bytes(whole)
    assert reasons_of(feed.after(changes.mark)) == ["b"]


def test_a_long_audit_is_read_in_parts_and_none_is_missed(audit):
    store, feed, _ = audit
    mark = feed.end()
    noted(store, "first", "x" * (5 << 20), "last")
    found = []
    while True:
        changes = feed.after(mark)
        found += reasons_of(changes)
        mark = changes.mark
        if not changes.more:
            break
    assert [reason[:5] for reason in found] == ["first", "xxxxx", "last"]


def test_an_audit_that_was_cut_goes_on_after_what_was_told(audit):
    store, feed, path = audit
    noted(store, "a", "b", "c")
    mark = feed.end()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    changes = feed.after(mark)
    assert reasons_of(changes) == []
    assert "cut or replaced" in changes.note
    noted(store, "d")
    assert reasons_of(feed.after(changes.mark)) == ["d"]
    # cut and grown before anybody looked
    mark = feed.end()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    noted(store, *[f"e{number}" for number in range(20)])
    assert reasons_of(feed.after(mark)) == [f"e{number}" for number in range(20)]


def test_an_audit_whose_beginning_was_taken_away_goes_on_after_what_was_told(audit):
    store, feed, path = audit
    noted(store, "a", "b", "c")
    mark = feed.end()
    noted(store, "d")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    assert reasons_of(feed.after(mark)) == ["d"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.integers(1, 5), st.sampled_from(["tear", "mend", "look", "restart", "cut"])), max_size=25))
def test_each_entry_is_read_once_whatever_happens_to_the_file(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    feed, told, made, torn = AuditFeed(path), [], [], b""
    mark = feed.end()
    for step in [*steps, "mend", "look"]:
        if isinstance(step, int) and not torn:
            for _ in range(step):
                at = f"2026-11-26T12:00:{len(made):09}"
                made.append(str(len(made)))
                with path.open("ab") as file:
                    file.write(entry(at=at, reason=made[-1]).to_line())
        elif step == "tear" and not torn:
            made.append(str(len(made)))
            line = entry(at=f"2026-11-26T12:00:{len(made) - 1:09}", reason=made[-1]).to_line()
            with path.open("ab") as file:
                file.write(line[:50])
            torn = line[50:]
        elif step == "mend" and torn:
            with path.open("ab") as file:
                file.write(torn)
            torn = b""
        elif step == "cut" and path.exists() and not torn:
            # what a clean-up leaves: all that was told may go
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(lines[len(told) // 2 :] if len(lines) == len(made) else lines))
        elif step == "restart":
            feed, mark = AuditFeed(path), orjson.loads(orjson.dumps(mark))
        elif step == "look":
            changes = feed.after(mark)
            told += reasons_of(changes)
            mark = changes.mark
    assert told == made


def entry(**fields):
    base = {"at": "2026-11-26T12:00:00.000000Z", "who": "ann", "via": "cli", "action": "enable", "flag": "X"}
    more = {"old": None, "new": {"state": "on"}, "reason": "", "outcome": "applied", "revision": 1}
    return AuditEntry(**{**base, **more, **fields})


def test_refusals_and_single_approvals_are_not_told():
    assert alert_of(entry(outcome="refused")) is None
    assert alert_of(entry(outcome="approved", request="abc")) is None
    assert alert_of(entry()).severity == "info"
    assert alert_of(entry(), dangerous=True).severity == "warning"


def test_a_change_that_lapses_says_when():
    assert alert_of(entry(new={"state": "on", "expires_at": 1_800_000_000})).title == (
        "X: file → on until 2027-01-15 08:00:00Z"
    )


def test_a_definition_that_is_long_is_left_out_of_the_details():
    long = alert_of(entry(outcome="written", new={"description": "x" * 5_000}))
    assert "left_out" in long.details["new"]
    assert len(long.title) < 300


# --- error rates ---


def log_line(operation, variant, level="INFO", *, seconds_ago=60, now=NOW, **more):
    at = (now - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    record = {"timestamp": at, "level": level, "message": "m", "service": "api", "correlation_id": operation}
    flags = {} if variant is None else {"flags": {"NEW_UI": variant, **more.pop("flags", {})}}
    return orjson.dumps(record | {"active_flags": []} | flags | {"context": {}} | more) + b"\n"


def write_lines(log_dir, lines, *, now=NOW, stream="jarvis", days_ago=0):
    log_dir.mkdir(exist_ok=True)
    path = day_path(log_dir, stream, f"{now - timedelta(days=days_ago):%Y-%m-%d}")
    with path.open("ab") as file:
        file.write(b"".join(lines))
    return path


def operations(count, failed, variant="on", prefix="o", **more):
    for number in range(count):
        yield log_line(f"{prefix}{variant}{number}", variant, **more)
        if number < failed:
            # the failure may be told by a service that knows nothing of the flag
            yield log_line(f"{prefix}{variant}{number}", None, "ERROR", **more)


def recent(log_dir, now=NOW):
    return recent_impacts(log_dir, now - timedelta(seconds=900), now)


def test_the_rates_are_those_of_flags_impact(tmp_path):
    lines = [*operations(200, 50, "on"), *operations(300, 6, "off"), *operations(10, 10, "on", "old", seconds_ago=3000)]
    lines += [log_line("mixed", "on"), log_line("mixed", "off"), log_line("a", "on", flags={"B": "blue"})]
    lines += [log_line("a", None, "CRITICAL"), lines[0]]
    write_lines(tmp_path, lines)
    span = {"timestamp": "2026-11-26T11:59:00.000000Z", "name": "s", "kind": "server", "service": "api"}
    span |= {"trace_id": "1" * 32, "span_id": "2" * 16, "correlation_id": "ooff200", "status": {"code": "error"}}
    write_lines(tmp_path, [orjson.dumps(span) + b"\n"], stream="traces")
    found = recent(tmp_path)
    assert found.keys() == {"NEW_UI", "B"}
    for flag, impact in found.items():
        asked = LogQuery(tmp_path).flag_impact(flag, NOW - timedelta(seconds=900), NOW)
        for mine, theirs in zip(impact.variants, asked.variants, strict=True):
            assert (mine.variant, mine.operations, mine.errors, mine.error_rate) == (
                *(theirs.variant, theirs.operations, theirs.errors),
                theirs.error_rate,
            )
        assert impact.mixed == asked.mixed
    assert {one.variant: one.errors for one in found["NEW_UI"].variants} == {"on": 51, "off": 7}


def test_three_records_do_not_alert_and_a_clear_excess_does(tmp_path):
    write_lines(tmp_path, operations(3, 3))
    (few,) = recent(tmp_path)["NEW_UI"].variants
    assert is_over(few, 0.1) is None
    write_lines(tmp_path, operations(60, 9, prefix="p"))
    (unclear,) = recent(tmp_path)["NEW_UI"].variants
    assert unclear.error_rate.value > 0.1
    assert is_over(unclear, 0.1) is True  # 12 of 63
    assert is_over(unclear, 0.15) is None
    assert is_over(unclear, 0.2) is False


def test_records_of_both_sides_of_midnight_count(tmp_path):
    midnight = datetime(2026, 11, 26, 0, 5, tzinfo=UTC)
    write_lines(tmp_path, operations(30, 0, seconds_ago=600, now=midnight), now=midnight, days_ago=1)
    write_lines(tmp_path, operations(20, 0, prefix="p", now=midnight), now=midnight)
    assert recent(tmp_path, midnight)["NEW_UI"].variants[0].operations == 50


def test_of_a_huge_day_only_the_end_is_read(tmp_path):
    path = write_lines(tmp_path, [])
    old = log_line("old", "on", seconds_ago=100, message="x" * 1_000)
    with path.open("ab") as file:
        block = b"".join(old.replace(b'"old"', b'"old%d"' % number) for number in range(1_000))
        for _ in range(READ_BYTES // len(block) + 2):
            file.write(block)
    with path.open("ab") as file:
        file.write(b"".join(operations(50, 50, "new")))
    found = {one.variant: one.operations for one in recent(tmp_path)["NEW_UI"].variants}
    assert found == {"on": 1_000, "new": 50}


def test_no_log_directory_has_no_rates(tmp_path):
    assert recent(tmp_path / "nowhere") == {}


# --- receivers ---


def test_a_webhook_is_shown_by_its_host_alone():
    assert (
        webhook_name("https://user:pass@hooks.example.com/services/T0/B0?key=secret#x") == "https://hooks.example.com/…"
    )
    assert webhook_name("http://[::1]:8080/x") == "http://[::1]:8080/…"
    sink = WebhookSink("https://hooks.example.com/services/SECRET")
    assert "SECRET" not in repr(sink) + sink.id + sink.name


@pytest.mark.parametrize(
    ("status", "fate"),
    [
        (200, Fate.DELIVERED),
        (204, Fate.DELIVERED),
        (302, Fate.FAILED),
        (400, Fate.REFUSED),
        (401, Fate.FAILED),
        (404, Fate.FAILED),
        (413, Fate.REFUSED),
        (429, Fate.FAILED),
        (500, Fate.FAILED),
        (503, Fate.FAILED),
    ],
)
def test_answers_say_whether_to_send_again(status, fate):
    with AlertSink() as sink:
        sink.answer = lambda path, body: (status, {"Location": f"{sink.url}/elsewhere", "Retry-After": "7"}, b"")
        one = WebhookSink(f"{sink.url}/hook")
        result = one.send(message(alert()))
        assert result.fate is fate
        assert [path for path, *_ in sink.requests] == ["/hook"], "redirects are not followed"
        assert (result.retry_after == 7) is (fate is Fate.FAILED)
        one.close()


def test_the_bot_api_says_why_and_how_long_to_wait():
    with AlertSink() as sink:
        one = TelegramSink(TelegramSettings(TOKEN, (), f"{sink.url}/bot"), 42)
        cases = [
            (429, {"ok": False, "description": "Too Many Requests", "parameters": {"retry_after": 35}}),
            (400, {"ok": False, "description": "Bad Request: chat not found"}),
            (400, {"ok": False, "description": "Bad Request: can't parse entities: unsupported tag"}),
            (401, {"ok": False, "description": f"Unauthorized {TOKEN}"}),
            (200, {"ok": True, "result": {}}),
        ]
        results = []
        for status, answer in cases:
            sink.answer = lambda path, body, s=status, a=answer: (s, {}, json.dumps(a).encode())
            results.append(one.send(message(alert())))
        one.close()
    assert results[0] == (Fate.FAILED, "answers 429: Too Many Requests", 35.0)
    assert results[1] == (Fate.FAILED, "answers 400: Bad Request: chat not found", None)
    assert results[2].fate is Fate.REFUSED
    assert results[3] == (Fate.FAILED, "answers 401: Unauthorized …", None)
    assert results[4].fate is Fate.DELIVERED


def test_a_server_whose_certificate_nobody_vouches_for_gets_nothing_and_a_stop_ends_tls_too(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with AlertSink() as sink:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        sink._server.socket = context.wrap_socket(sink._server.socket, server_side=True)
        one = WebhookSink(f"https://localhost:{sink.port}/SECRETPATH")
        result = one.send(message(alert()))
        assert result.fate is Fate.FAILED
        assert "certificate verify failed" in result.problem
        assert "SECRETPATH" not in result.problem
        assert sink.requests == []
        client = HttpClient(f"https://localhost:{sink.port}", 60.0, str(certificate))
        assert client.request("POST", "/", b"{}", {"Content-Length": "2"}).status == 200
        asked, ended = sink.hang()
        stopping = threading.Thread(target=lambda: (asked.wait(30), client.stop()))
        stopping.start()
        assert client.request("POST", "/", b"{}", {"Content-Length": "2"}).status == 0
        stopping.join()
        ended.set()
        client.close()


def test_an_answer_that_trickles_ends_at_the_deadline_and_a_stop_ends_it_at_once():
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def trickle():
        connected, _ = listener.accept()
        with connected:
            while not done.wait(0.02):
                try:
                    connected.sendall(b"H")
                except OSError:
                    return

    for stop in (False, True):
        thread = threading.Thread(target=trickle)
        thread.start()
        client = HttpClient(f"http://127.0.0.1:{listener.getsockname()[1]}", 60.0 if stop else 0.3)
        timer = threading.Timer(0.3, client.stop)
        if stop:
            timer.start()
        assert client.request("GET", "/").status == 0
        timer.cancel()
        client.close()
        done.set()
        thread.join()
        done.clear()
    listener.close()


def test_only_one_process_has_the_turn(tmp_path):
    code = (
        "import sys; from pathlib import Path; from jarvis_otel.alerts.turn import FileTurn; "
        "print(FileTurn(Path(sys.argv[1])).take())"
    )

    def other():
        command = [os.sys.executable, "-c", code, str(tmp_path / "alerts" / "lock")]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    turn = FileTurn(tmp_path / "alerts" / "lock")
    assert turn.take()
    assert turn.take()
    assert other() == "False"
    turn.give_up()
    assert other() == "True"


# --- all of it, in a thread ---


@pytest.fixture
def running(own_project, flag_file, monkeypatch):
    """Runs Alerts in this process, by a clock that the test sets; gives the sink, too."""
    ends = []

    def start(kinds, *, flags="flags:\n  NEW_UI: {}\n", clock=None, sink=None, **environ):
        flag_file(flags)
        sink = sink or AlertSink()
        for name, value in {"ALERTS": kinds, "ALERT_WEBHOOKS": sink.url, "ALERT_INTERVAL": "1", **environ}.items():
            monkeypatch.setenv(f"JARVIS_{name}", value)
        loaded = Settings.load()
        assert not loaded.problems
        source = FileSource(loaded.flags)
        alerts = Alerts(loaded, source, clock=clock or time.time)
        alerts.start()
        ends.extend((alerts.stop, source.close, sink.__exit__))
        until(lambda: alerts.on_duty or why_silent(loaded) != "")
        return alerts, sink

    yield start
    for end in ends:
        end()


def test_nothing_runs_where_nothing_is_to_be_told(running):
    alerts, _ = running("")
    assert "set alerts" in why_silent(Settings.load())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jarvis-alerts")]
    alerts.stop()


def test_a_stop_leaves_no_thread_though_a_receiver_and_the_collector_hang(running, monkeypatch):
    asked, ended = threading.Semaphore(0), threading.Event()

    def hang(path, body):
        asked.release()
        ended.wait(60)
        return 200, {}, b"{}"

    with socket.create_server(("127.0.0.1", 0)) as silent, AlertSink() as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        sink.answer = hang
        flags = "flags:\n  SOON: {expires_at: 2020-01-01}\n"
        alerts, _ = running("flag_expiring,collector", flags=flags, sink=sink)
        assert asked.acquire(timeout=30)
        alerts.stop()
        assert not alerts.on_duty
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("jarvis-alerts")]
        ended.set()


def test_a_stop_does_not_wait_for_a_name_server_that_hangs(running, monkeypatch):
    real, asked, ended = socket.getaddrinfo, threading.Event(), threading.Event()

    def hang(host, *rest, **named):
        if host == "hang.example":
            asked.set()
            ended.wait(60)
        return real(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    flags = "flags:\n  SOON: {expires_at: 2020-01-01}\n"
    alerts, _ = running("flag_expiring", flags=flags, ALERT_WEBHOOKS="http://hang.example/")
    assert asked.wait(30)
    try:
        alerts.stop()
        assert alerts.on_duty, "it still hangs, and nobody waits for it"
    finally:
        ended.set()
        until(lambda: not alerts.on_duty)


def test_expiring_flags_are_told_once_over_restarts(running, own_project):
    flags = "flags:\n  SOON: {expires_at: 2026-12-01}\n"
    clock = Clock(NOW.timestamp())
    alerts, sink = running("flag_expiring", flags=flags, clock=clock)
    for _ in range(50):
        clock.now += 0.5
        time.sleep(0.02)
    until(lambda: sink.count == 1)
    alerts.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jarvis-alerts")]
    alerts, sink = running("flag_expiring", flags=flags, clock=clock, sink=sink)
    for _ in range(50):
        clock.now += 3600
        time.sleep(0.02)
    assert sink.count == 1
    assert sink.bodies[0]["kind"] == "flag_expiring"
    assert sink.bodies[0]["environment"] == "prod"
    assert read_status(own_project / "var")["sinks"][0]["alerts"] == 1


def test_an_error_rate_is_told_when_it_begins_after_an_hour_and_when_it_is_over(running, own_project):
    clock = Clock(NOW.timestamp())
    log_dir = own_project / "logs"
    log_dir.mkdir()

    def minutes(count, failed, *, later=0):
        """Time goes on, with twenty operations each minute; they are there before their minute is."""
        for number in range(count):
            then = clock.now + 60 + later * (number == 0)
            now = datetime.fromtimestamp(then, UTC)
            write_lines(log_dir, operations(20, failed, now=now, prefix=str(then), seconds_ago=0), now=now)
            clock.now = then
            time.sleep(0.25)

    _, sink = running("error_rate", clock=clock)
    minutes(3, 0)
    assert sink.count == 0
    minutes(6, 15)
    (body,) = sink.wait_for(1)
    assert body["severity"] == "critical"
    assert body["title"] == "NEW_UI=on: errors are over 10 %"
    assert body["details"][0]["details"]["operations"] >= 20
    minutes(2, 15, later=3600)
    sink.wait_for(2)
    assert sink.bodies[-1]["title"] == "NEW_UI=on: errors are still over 10 %"
    minutes(3, 0, later=3600)
    sink.wait_for(3)
    assert sink.bodies[-1]["title"] == "NEW_UI=on: errors are no longer over 10 %"
    assert sink.count == 3


def test_a_collector_that_does_not_answer_is_degraded_and_is_well_again_is_told_each_time(
    running, tmp_path, monkeypatch
):
    port, clock, ended = free_port(), Clock(time.time()), threading.Event()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")

    def tick():
        while not ended.wait(0.02):
            clock.now += 0.5

    ticking = threading.Thread(target=tick)
    ticking.start()
    log_dir = tmp_path / "collected"
    try:
        _, sink = running("collector", clock=clock)
        assert "does not answer: Connection refused" in sink.wait_for(1)[-1]["text"]
        collector = served(log_dir, port=port)
        try:
            assert sink.wait_for(2)[-1]["title"] == "the collector is well again"
            log_dir.rename(tmp_path / "away")
            body = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"a"}}]}]}]}'
            assert collector.request(body=body).status == 503
            degraded = sink.wait_for(3)[-1]
            assert (degraded["severity"], degraded["details"][0]["details"]["state"]) == ("critical", "degraded")
            assert "answers 503" in degraded["text"]
            (tmp_path / "away").rename(log_dir)
            assert collector.request(body=body).status == 200
            assert sink.wait_for(4)[-1]["severity"] == "info"
        finally:
            collector.stop()
        assert "does not answer" in sink.wait_for(5)[-1]["text"]
    finally:
        ended.set()
        ticking.join()
