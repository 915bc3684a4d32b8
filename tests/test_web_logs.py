"""The pages of logs, traces and impact: real files, requests as browsers send them, and text that wants to be markup."""

import asyncio
import csv
import gzip
import http.client
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from urllib.parse import parse_qsl, urlencode, urlsplit

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request

from jarvis_collector import gzip_blocks
from jarvis_collector.layout import archive_path, day_path
from jarvis_otel.admin.author import Author
from jarvis_otel.query.impact import Estimate
from jarvis_otel.query.impact_answer import estimate_text
from jarvis_otel.query.index_build import index_file
from jarvis_otel.query.log_query import Criteria, LogQuery
from jarvis_otel.web.histogram import count_levels
from jarvis_otel.web.log_pages import Place, newest_page
from jarvis_otel.web.log_tail import BATCH_MAX, TAILS_MAX
from jarvis_otel.web.logs import CSV_MAX
from jarvis_otel.web.scans import Budget, GoneError, Scans
from jarvis_otel.web.waterfall import ROWS_MAX
from tests.commands import jarvis as jarvis_flags
from tests.day_files import log_record, log_request, our_lines, real_line
from tests.naive_query import each_once, is_wanted
from tests.web_servers import web_server
from tests.web_sites import make_site, visitor

START = datetime(2026, 1, 18, 14, 0, tzinfo=UTC)
DAY = "2026-01-18"
LEVELS = ["DEBUG", "INFO", "INFO", "INFO", "WARNING", "ERROR", "CRITICAL"]
FLAGS = """
environment: prod
flags:
  LIVE_TRADING_ENABLED: {enabled: false, dangerous: true}
  ADVANCED_TRADING_ENABLED: {enabled: false, dangerous: true, rules: [{type: percentage, value: 10}]}
  NEW_UI: {enabled: true}
"""


def at(second):
    return (START + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def record(number, **more):
    base = {
        "timestamp": at(number),
        "level": LEVELS[number % len(LEVELS)],
        "message": f"message {number}",
        "service": ("trading", "api")[number % 2],
        "correlation_id": f"trade-{number // 4}",
        "user_id": f"user{number % 5}",
        "active_flags": ["NEW_UI"] if number % 3 else [],
        "flags": {"NEW_UI": "on" if number % 3 else "off"},
        "context": {"symbol": ("SOL", "BTC")[number % 2], "n": number},
    }
    return base | more | {"_meta": {"uid": f"u{number:06}", "environment": "prod"}}


def line(value):
    return orjson.dumps(value) + b"\n"


def write(path, records, mode="wb"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.write(b"".join(map(line, records)))
    return path


def all_pages(log_dir, size, seconds=30.0, between=lambda: None, **asked):
    """What one gets who goes from page to page, and how many pages that were."""
    criteria, before, found, pages = Criteria.of(**asked), None, [], 0
    while True:
        page = newest_page(log_dir, criteria, size, Budget(seconds), before)
        found += page.rows
        pages += 1
        if page.older is None:
            return [one.found.record for one in found], pages
        before = Place.parse(str(page.older))
        between()


def uids(records):
    return [one["_meta"]["uid"] for one in records]


# --- pages over the files ---


def plain(logs, records):
    write(day_path(logs, "jarvis", DAY), records)


def indexed(logs, records):
    plain(logs, records)
    index_file(day_path(logs, "jarvis", DAY))


def grown_after_index(logs, records):
    indexed(logs, records[: len(records) // 2])
    write(day_path(logs, "jarvis", DAY), records[len(records) // 2 :], "ab")


def archived(logs, records):
    target = archive_path(day_path(logs, "jarvis", DAY))
    target.parent.mkdir(parents=True)
    with target.open("wb") as file:
        gzip_blocks.write([b"".join(map(line, records))], file)


def archived_and_indexed(logs, records):
    archived(logs, records)
    index_file(archive_path(day_path(logs, "jarvis", DAY)))


def archived_by_others(logs, records):
    target = archive_path(day_path(logs, "jarvis", DAY))
    target.parent.mkdir(parents=True)
    target.write_bytes(gzip.compress(b"".join(map(line, records))))


def three_days(logs, records):
    third = len(records) // 3
    archived(logs, records[:third])
    shutil.move(archive_path(day_path(logs, "jarvis", DAY)), archive_path(day_path(logs, "jarvis", "2026-01-16")))
    write(day_path(logs, "jarvis", "2026-01-17"), records[third : 2 * third])
    plain(logs, records[2 * third :])


def torn(logs, records):
    half = len(records) // 2
    with day_path(logs, "jarvis", DAY).open("wb") as file:
        file.write(b"".join(map(line, records[:half])))
        file.write(line(records[half])[:40] + line(records[half]))  # glued to what a crash left
        file.write(b"not json\n\n" + b"".join(map(line, records[half:])) + line(record(1))[:50])


STORES = [plain, indexed, grown_after_index, archived, archived_and_indexed, archived_by_others, three_days, torn]
QUESTIONS = [
    {},
    {"level": "ERROR"},
    {"level": "=WARNING", "service": "api"},
    {"correlation_id": "trade-7"},
    {"flag": "NEW_UI=off"},
    {"text": "MESSAGE 13"},
    {"where": 'context.symbol="SOL"'},
    {"user_id": "user3", "since": START + timedelta(seconds=100), "until": START + timedelta(seconds=500)},
]


@pytest.mark.parametrize("store", STORES, ids=lambda one: one.__name__)
def test_going_from_page_to_page_finds_what_parsing_every_line_finds_the_last_to_arrive_first(tmp_path, store):
    records = [record(number) for number in range(600)]
    store(tmp_path, records)
    for asked in QUESTIONS:
        wanted = [one for one in reversed(records) if is_wanted(one, asked)]
        for size in (31, 1000):
            found, pages = all_pages(tmp_path, size, **asked)
            assert uids(found) == uids(wanted), (asked, size)
            assert pages == len(wanted) // size + 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(0, 60), max_size=5), max_size=12),
    st.integers(1, 9),
    st.sampled_from([{}, {"level": "ERROR"}, {"where": "context.n>20"}]),
)
def test_lines_of_the_real_collector_are_cut_into_pages_within_a_line(tmp_path_factory, requests, size, asked):
    logs = tmp_path_factory.mktemp("logs")
    made, content = [], b""
    for second, numbers in enumerate(requests):
        severity = 17 if second % 2 else 9
        request = log_request(
            *(
                log_record(f"m{n}", second, severity, attributes=[{"key": "n", "value": {"intValue": str(n)}}])
                for n in numbers
            )
        )
        own = our_lines(request)
        made += [orjson.loads(one) for one in own]
        # some of the lines are ours, as in a directory in which both wrote
        content += b"".join(own) if second % 3 == 2 else real_line(request)
    day_path(logs, "jarvis", DAY).write_bytes(content)
    naive = {"level": lambda one: is_wanted(one, asked), "where": lambda one: one["context"].get("n", 0) > 20}
    keep = naive.get(next(iter(asked), ""), lambda _: True)
    found, _ = all_pages(logs, size, **asked)
    assert uids(found) == uids(each_once([one for one in reversed(made) if keep(one)]))


def test_pages_lose_and_repeat_nothing_while_records_come_and_the_day_is_archived(tmp_path):
    records = [record(number) for number in range(1100)]
    plain(tmp_path, records[:1000])
    came = iter(range(1000, 1100))

    def more():
        number = next(came)
        if number < 1010:
            write(day_path(tmp_path, "jarvis", DAY), [records[number]], "ab")
        if number == 1010:
            index_file(day_path(tmp_path, "jarvis", DAY))
        if number == 1015:
            day_path(tmp_path, "jarvis", DAY).unlink()
            archived(tmp_path, records[:1010])

    found, pages = all_pages(tmp_path, 50, between=more)
    assert uids(found) == uids(reversed(records[:1000]))
    assert pages == 21


def test_pages_are_whole_beside_a_writer_that_never_stops(tmp_path):
    records = [record(number) for number in range(8_000)]
    path = day_path(tmp_path, "jarvis", DAY)
    plain(tmp_path, records[:3000])
    stop = threading.Event()

    def writer():
        with path.open("ab", buffering=0) as file:
            for one in records[3000:]:
                whole = line(one)
                file.write(whole[:30])
                file.write(whole[30:])
                if stop.is_set():
                    return

    thread = threading.Thread(target=writer)
    thread.start()
    try:
        found, _ = all_pages(tmp_path, 300)
    finally:
        stop.set()
        thread.join()
    numbers = [one["context"]["n"] for one in found]
    assert numbers == list(range(numbers[0], -1, -1))
    assert numbers[0] >= 2999


def test_a_record_that_was_delivered_twice_is_on_one_page_only(tmp_path):
    records = [record(number) for number in range(500)]
    again = [*records[:400], *records[200:300], *records[400:], *records[450:]]
    plain(tmp_path, again)
    found, _ = all_pages(tmp_path, 30)
    assert Counter(uids(found)) == Counter(uids(records))


def test_where_time_is_over_the_page_says_so_and_the_next_one_goes_on_from_there(tmp_path):
    records = [record(number, padding="x" * 2000) for number in range(2000)]
    three_days(tmp_path, records)
    page = newest_page(tmp_path, Criteria.of(text="message 11"), 100, Budget(0.0))
    assert not page.is_whole
    assert page.older is not None
    assert page.reached > at(1500)
    found, pages = all_pages(tmp_path, 100, seconds=0.0, text="message 11")
    assert pages > 3
    assert uids(found) == uids([one for one in reversed(records) if "message 11" in one["message"]])


def test_a_line_longer_than_a_part_of_a_file_is_a_record_like_others(tmp_path):
    records = [record(number, padding="x" * (6_000_000 if number == 5 else 10)) for number in range(10)]
    plain(tmp_path, records)
    assert uids(all_pages(tmp_path, 3)[0]) == uids(reversed(records))


def test_a_page_of_long_lines_has_fewer_of_them(tmp_path):
    records = [record(number, padding="x" * 3_000_000) for number in range(12)]
    plain(tmp_path, records)
    found, pages = all_pages(tmp_path, 100)
    assert uids(found) == uids(reversed(records))
    assert pages == 3


@pytest.mark.parametrize("with_index", [False, True])
@pytest.mark.parametrize("where", [0.3, 0.5, 0.9])
def test_what_is_whole_of_a_damaged_archive_is_on_pages(tmp_path, where, with_index):
    records = [record(number, padding="x" * 5000 + str(number**9)) for number in range(700)]
    archived(tmp_path, records)
    path = archive_path(day_path(tmp_path, "jarvis", DAY))
    offset = [block.offset for block in gzip_blocks.blocks(path)][int(where * 6)]
    content = bytearray(path.read_bytes())
    content[offset : offset + 200] = b"\xff" * 200
    path.write_bytes(content)
    if with_index:
        index_file(path)
    wanted = list(LogQuery(tmp_path).iterate())
    assert 100 < len(wanted) < 700
    for size in (40, 1000):
        assert uids(all_pages(tmp_path, size)[0]) == uids(reversed(wanted))


def test_a_place_beyond_the_file_or_within_a_line_gives_what_is_before_it(tmp_path):
    records = [record(number) for number in range(10)]
    plain(tmp_path, records)
    far = newest_page(tmp_path, Criteria.of(), 100, Budget(5), Place(DAY, 10**12, 0))
    assert len(far.rows) == 10
    within = newest_page(tmp_path, Criteria.of(), 100, Budget(5), Place(DAY, len(line(records[0])) + 5, 0))
    assert uids([one.found.record for one in within.rows]) == uids(reversed(records[:2]))


def test_nobody_reads_on_when_whoever_asked_has_gone(tmp_path):
    plain(tmp_path, [record(number) for number in range(2000)])
    budget = Budget(30)
    budget.leave()
    with pytest.raises(GoneError):
        newest_page(tmp_path, Criteria.of(text="none"), 100, budget)
    with pytest.raises(GoneError):
        count_levels(tmp_path, Criteria.of(), budget)


@pytest.mark.parametrize("store", STORES[:-1], ids=lambda one: one.__name__)
def test_the_histogram_counts_what_stats_count(tmp_path, store):
    records = [record(number) for number in range(1500)]
    store(tmp_path, [*records, *records[1400:]])
    counted = count_levels(tmp_path, Criteria.of(service="api"), Budget(30))
    wanted = [one for one in records if one["service"] == "api"]
    assert counted.records == len(wanted)
    assert counted.levels == {
        level: number for level in dict.fromkeys(LEVELS) if (number := sum(one["level"] == level for one in wanted))
    }
    assert sum(bar.counts.total() for bar in counted.bars) == len(wanted)
    first = counted.bars[0]
    inside = [
        one for one in wanted if first.start <= datetime.fromisoformat(one["timestamp"]) < first.start + counted.width
    ]
    assert first.counts.total() == len(inside)


def test_a_histogram_that_time_was_too_short_for_says_from_when_on_it_is(tmp_path):
    records = [record(number, padding="x" * 20_000) for number in range(1000)]
    plain(tmp_path, records)
    counted = count_levels(tmp_path, Criteria.of(), Budget(0.0))
    assert 0 < counted.records < 1000
    assert counted.counted_from == datetime.fromisoformat(records[-counted.records]["timestamp"])


# --- scans ---


def request_of(messages):
    async def receive():
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        return {}

    return Request({"type": "http", "method": "GET", "path": "/", "headers": []}, receive)


def test_so_many_scans_run_at_once_the_others_wait_and_beyond_that_it_says_so():
    async def main():
        scans = Scans(at_once=2, waiting_max=3)
        running, most, lock, go = 0, 0, threading.Lock(), threading.Event()

        def work(_):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            go.wait(20)
            with lock:
                running -= 1
            return 1

        tasks = [asyncio.create_task(scans.run(work, Budget(30))) for _ in range(5)]
        await asyncio.sleep(0.05)
        with pytest.raises(HTTPException) as refused:
            await scans.run(work, Budget(30))
        assert refused.value.status_code == 503
        go.set()
        assert await asyncio.gather(*tasks) == [1] * 5
        assert most == 2

    asyncio.run(main())


def test_a_scan_ends_when_its_client_goes_and_all_end_when_the_site_does():
    def work(budget):
        while True:
            budget.check_reader()
            time.sleep(0.005)

    async def main():
        scans = Scans()
        gone = request_of([{"type": "http.request", "body": b""}, {"type": "http.disconnect"}])
        with pytest.raises(GoneError):
            await asyncio.wait_for(scans.run(work, Budget(30), gone), 20)
        task = asyncio.create_task(scans.run(work, Budget(30), request_of([])))
        await asyncio.sleep(0.05)
        scans.close()
        with pytest.raises(GoneError):
            await asyncio.wait_for(task, 20)
        with pytest.raises(GoneError):
            await scans.run(work, Budget(30))

    asyncio.run(main())


# --- pages ---


class Shape(HTMLParser):
    """What a page is made of: elements with the names of their attributes, and the addresses that it leads to."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.addresses, self.texts, self.ids = [], [], [], []
        self.values = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, tuple(name for name, _ in attributes)))
        for name, value in attributes:
            if name in ("href", "src", "action", "hx-get", "data-source", "data-page"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)
            self.values.setdefault((tag, name), []).append(value)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def logs(own_project):
    (own_project / "logs").mkdir()
    return own_project / "logs"


@pytest.fixture
def site(own_project, logs):
    return make_site(own_project, FLAGS)


@pytest.fixture
def ann(site):
    with visitor(site) as client:
        yield client


def page_of(client, path, status=200):
    answer = client.get(path)
    assert answer.status_code == status, answer.text[:2000]
    return answer.text


def impact_of(client, path):
    """The page of an impact once it is counted."""
    for _ in range(20):
        if "Counting …" not in (text := page_of(client, path)):
            break
    return text


def rows_in(text):
    return re.findall(r'<tr id="r-(u\d+)"', text)


def link(text, words):
    """Where a link with these words leads."""
    found = re.search(rf'<a[^>]*href="([^"]*)"[^>]*>{re.escape(words)}', text)
    assert found, words
    return unescape(found[1])


def test_the_page_shows_the_newest_records_and_leads_to_the_older_ones(ann, logs):
    records = [record(number) for number in range(250)]
    plain(logs, records)
    text = page_of(ann, "/logs")
    assert rows_in(text) == uids(reversed(records[150:]))
    second = page_of(ann, link(text, "Older"))
    assert rows_in(second) == uids(reversed(records[50:150]))
    third = page_of(ann, link(second, "Older"))
    assert rows_in(third) == uids(reversed(records[:50]))
    assert ">Older<" not in third
    assert rows_in(page_of(ann, link(third, "The newest records"))) == rows_in(text)


def test_the_form_takes_what_the_command_takes_and_shows_it_again(ann, logs):
    records = [record(number) for number in range(250)]
    plain(logs, records)
    asked = {
        "level": "ERROR",
        "since": at(10),
        "until": at(200),
        "service": "api",
        "flag": "NEW_UI=on",
        "user": "user1",
    }
    text = page_of(ann, "/logs?" + urlencode(asked))
    naive = {"level": "ERROR", "service": "api", "flag": "NEW_UI=on", "user_id": "user1"}
    naive |= {name: datetime.fromisoformat(asked[name]) for name in ("since", "until")}
    wanted = uids(one for one in reversed(records) if is_wanted(one, naive))
    assert wanted
    assert rows_in(text) == wanted
    shape = Shape(text)
    assert {at(10), at(200), "api", "NEW_UI=on", "user1"} <= set(shape.values["input", "value"])
    assert re.search(r'<option value="ERROR" selected>', text)
    for name, value in asked.items():
        without = link(text, f"{name}: {value} ")
        assert dict(parse_qsl(urlsplit(without).query)) == {k: v for k, v in asked.items() if k != name}


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("since=soon", "since"),
        ("until=25:00", "until"),
        ("level=LOUD", "level"),
        ("where=a+is+b", "where"),
        ("flag=%3D", "flag"),
        ("before=here", "before"),
        ("search=" + "x" * 5000, "search"),
        ("since=2026-01-18&until=2026-01-17", "until"),
    ],
)
def test_an_error_of_a_filter_is_shown_where_it_is(ann, logs, asked, name):
    plain(logs, [record(1)])
    text = page_of(ann, f"/logs?{asked}", 400)
    said = re.search(rf'<p class="error" id="error-{name}">{name}: ([^<]*)</p>', text)
    assert said
    assert "want" in said[1] or "characters" in said[1]
    if name != "before":
        assert f'aria-describedby="error-{name}"' in text
    answer = ann.get(f"/api/logs?{asked}")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"{name}: ")


def test_all_filters_that_cannot_be_read_are_told_at_once(ann, logs):
    text = page_of(ann, "/logs?since=soon&until=late&level=LOUD&service=api&where=x&before=here", 400)
    assert re.findall(r'id="error-(\w+)"', text) == ["level", "since", "until", "where"]


def test_each_value_of_a_record_leads_to_the_records_that_have_it(ann, logs):
    records = [
        record(number, error={"type": "BalanceError", "message": 'need "1.0" \\ SOL'})
        if number == 37
        else record(number)
        for number in range(80)
    ]
    plain(logs, records)
    text = page_of(ann, "/logs?" + urlencode({"search": "message 37"}))
    full = page_of(ann, unescape(re.search(r'href="(/logs/record[^"]*)"', text)[1]))
    narrowed = {
        path: link_
        for path, link_ in re.findall(r'<a href="([^"]*)" aria-label="Only records with this ([^"]*)"', full)
        for path, link_ in [(unescape(link_), unescape(path))]
    }
    assert {"level", "service", "correlation_id", "user_id", "flags.NEW_UI", "context.symbol", "context.n"} <= set(
        narrowed
    )
    assert {"error.type", "error.message", "timestamp", "active_flags"} <= set(narrowed)
    for path, address in narrowed.items():
        found = rows_in(page_of(ann, address))
        assert "u000037" in found, (path, address)
        assert len(found) <= 80
    only = dict(parse_qsl(urlsplit(narrowed["context.n"]).query))
    assert only == {"search": "message 37", "where": "context.n=37"}


def test_a_record_opens_in_full_has_an_anchor_and_a_link_that_stays(ann, logs):
    records = [record(number) for number in range(300)]
    plain(logs, records)
    text = page_of(ann, "/logs?level=ERROR")
    first = rows_in(text)[3]
    address = re.search(rf'id="r-{first}".*?href="(/logs/record[^"]*)"', text, re.DOTALL)[1]
    part = ann.get(unescape(address), headers={"HX-Request": "true"}).text
    assert "<html" not in part
    shown = json.loads(unescape(re.search(r"<pre>(.*?)</pre>", part, re.DOTALL)[1]))
    assert shown == next(one for one in records if one["_meta"]["uid"] == first)
    permalink = link(part, "Permalink")
    assert permalink.endswith(f"#r-{first}")
    before = rows_in(page_of(ann, permalink))
    write(day_path(logs, "jarvis", DAY), [record(number) for number in range(300, 600)], "ab")
    assert rows_in(page_of(ann, permalink)) == before
    assert before[0] == first
    by_uid = page_of(ann, f"/logs/record?uid={first}")
    assert f'<td class="text">{first}</td>' in by_uid
    page_of(ann, "/logs/record?uid=nobody", 404)
    page_of(ann, "/logs/record", 400)


def test_columns_are_chosen_by_their_paths(ann, logs):
    plain(logs, [record(number, duration_ms=number / 2) for number in range(5)])
    text = page_of(ann, "/logs?columns=context.symbol,duration_ms,flags.NEW_UI,no.such")
    assert re.findall(r'<th scope="col">([^<]+)</th>', text) == [
        "context.symbol",
        "duration_ms",
        "flags.NEW_UI",
        "no.such",
    ]
    cells = [cell.strip() for cell in re.findall(r'<td class="cell">(?:<a[^>]*>)?([^<]*)', text)]
    assert cells[:4] == ["SOL", "2.0", "on", ""]


def test_the_copied_command_finds_the_same_records(ann, logs):
    records = [record(number) for number in range(100)]
    plain(logs, records)
    asked = {"level": "WARNING", "search": "it's 1", "where": "context.n>50 and service=api"}
    records[57] = record(57, message="it's 1", level="ERROR")
    plain(logs, records)
    text = page_of(ann, "/logs?" + urlencode(asked))
    command = shlex.split(unescape(re.search(r'data-copy="(jarvis logs query[^"]*)"', text)[1]))
    done = run_jarvis(*command[1:], "--format", "json", "--dir", str(logs))
    assert [one["_meta"]["uid"] for one in json.loads(done.stdout)] == rows_in(text) == ["u000057"]


def run_jarvis(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "jarvis_otel.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OTEL_LOGS_EXPORTER": "none"},
        check=False,
    )


def test_a_value_that_a_terminal_would_act_on_makes_no_command(ann, logs):
    plain(logs, [record(1)])
    text = page_of(ann, "/logs?" + urlencode({"service": "a\x1b[31m\nb"}))
    assert "data-copy=" not in text


def test_without_scripts_there_is_a_picture_of_the_counts_and_with_them_its_numbers(ann, logs):
    plain(logs, [record(number) for number in range(700)])
    text = page_of(ann, "/logs?service=api")
    picture = unescape(re.search(r'<noscript><img src="([^"]*)"', text)[1])
    drawn = ann.get(picture)
    assert drawn.headers["content-type"].startswith("image/svg+xml")
    assert "350 records: 50 DEBUG" in drawn.text
    assert drawn.text.count("<rect") > 5
    told = ann.get(unescape(re.search(r'data-source="(/api/logs/histogram[^"]*)"', text)[1])).json()
    assert told["records"] == 350
    assert sum(map(sum, told["counts"].values())) == 350
    assert len(told["start"]) == len(told["counts"]["ERROR"])


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</td></tr></table><h1>owned</h1>",
    "{{ 7*7 }}{% include 'x' %}",
    "<!--",
    "]]><svg/onload=alert(1)>",
    "&lt;script&gt;&#x3c;script&#x3e;",
    "\u202e\u2066evil\x1b[31m\x00\x85\u2028",
    "//evil.example/x",
    "../../../etc/passwd",
    '\\" -->`${alert(1)}',
    "a\r\nSet-Cookie: x=y",
]


def harmful(text, key):
    return record(
        key,
        message=text,
        service=text,
        correlation_id=text,
        trace_id=text,
        user_id=text,
        level=text if key % 2 else "ERROR",
        active_flags=[text],
        flags={text: text, "NEW_UI": text},
        error={"type": text, "message": text, "stack_trace": text},
        event=text,
        logger=text,
        context={text: text, "url": text, "deep": {text: [text]}},
    ) | {"_meta": {"uid": text + "1"}}


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_record_makes_no_element_no_attribute_and_no_link_of_its_own(ann, logs, own_project, text):
    def shapes(word):
        plain(logs, [harmful(word, number) | {"timestamp": at(number)} for number in (1,)])
        span = {"timestamp": at(0), "end": at(2), "name": word, "kind": "server", "service": word, "trace_id": word}
        span |= {
            "span_id": word,
            "correlation_id": word,
            "status": {"code": "error", "message": word},
            "flags": {word: word},
        }
        write(day_path(logs, "traces", DAY), [span])
        columns = "level,service,message,correlation_id,trace_id,context.url,flags.NEW_UI,error.type"
        page = page_of(ann, f"/logs?columns={columns}")
        opened = page_of(ann, unescape(re.search(r'href="(/logs/record[^"]*)"', page)[1]))
        query = urlencode({"id": word})
        answer = ann.get(f"/trace?{query}")
        trace = page_of(ann, answer.headers["location"]) if answer.status_code == 303 else answer.text
        assert "of this trace" in trace or "Flags then and now" in trace
        impact = impact_of(ann, "/flags/NEW_UI/impact?since=2026-01-18")
        asked = urlencode(dict.fromkeys(("search", "service", "where", "flag", "user", "columns"), word))
        form = ann.get(f"/logs?{asked}").text
        return [Shape(part) for part in (page, opened, trace, impact, form)]

    benign = "harmless"
    for got, wanted in zip(shapes(text), shapes(benign), strict=True):
        strange = set(got.elements) - set(wanted.elements) - {("a", ("class", "href", "title"))}
        assert not {tag for tag, _ in strange} - {"a", "p", "td", "li", "div", "span", "button", "tr", "input"}
        assert not {
            name
            for _, names in strange
            for name in names
            if name
            not in ("href", "class", "id", "aria-label", "title", "data-copy", "aria-invalid", "aria-describedby")
            and not any(name in known for _, known in wanted.elements)
        }
        for address in got.addresses:
            assert re.match(r"/(?!/)", address) or address.startswith("#"), address
        shown = "".join(got.texts)
        assert not re.search("[\u202e\u2066\x1b\x00\x85]", shown)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10) | st.sampled_from([*HOSTILE, "ERROR", "on", at(3)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*HOSTILE, "type", "code", "uid", "a.b"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
keys = st.sampled_from([
    "level", "message", "service", "correlation_id", "trace_id", "span_id", "parent_span_id", "user_id", "active_flags",
    "flags", "duration_ms", "error", "event", "context", "status", "kind", "name", "end", "_meta", "new",
])  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(keys, values, max_size=8), min_size=1, max_size=4))
def test_whatever_stands_in_records_and_spans_their_pages_are_shown(ann, logs, made):
    lines = [{"timestamp": at(number), "correlation_id": "odd"} | one for number, one in enumerate(made)]
    plain(logs, lines)
    write(day_path(logs, "traces", DAY), lines)
    columns = "level,service,message,flags,context,active_flags,duration_ms,error,_meta.uid,trace_id"
    for path in ("/logs", f"/logs?columns={columns}"):
        text = page_of(ann, path)
        for address in re.findall(r'class="expand" href="([^"]*)"', text):
            page_of(ann, unescape(address))
    for path in ("/logs.csv", "/api/logs", "/api/logs/histogram", "/logs/histogram.svg"):
        assert ann.get(path).status_code == 200
    for path in ("/trace/odd", "/api/traces/odd"):
        assert ann.get(path).status_code in (200, 404)


def test_a_record_that_is_deeper_or_larger_than_json_writers_take_is_shown_all_the_same(ann, logs):
    deep = b'{"a":' * 400 + b"1" + b"}" * 400
    odd = line(record(1)).replace(b'"n":1', b'"n":1e999,"deep":' + deep)
    day_path(logs, "jarvis", DAY).write_bytes(odd + line(record(2)))
    text = page_of(ann, "/logs?columns=context")
    assert rows_in(text) == ["u000002", "u000001"]
    for address in re.findall(r'class="expand" href="([^"]*)"', text):
        page_of(ann, unescape(address))
    assert len(ann.get("/api/logs").json()["records"]) == 2
    page_of(ann, "/trace/trade-0")
    assert ann.get("/api/traces/trade-0").status_code == 200


def test_the_csv_has_a_bound(ann, logs):
    plain(logs, [record(number) for number in range(CSV_MAX + 50)])
    rows = list(csv.DictReader(io.StringIO(ann.get("/logs.csv").text, newline="")))
    assert len(rows) == CSV_MAX
    assert rows[0]["message"] == f"message {CSV_MAX + 49}"


def test_the_csv_is_safe_to_open_and_has_what_the_page_shows(ann, logs):
    words = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", 'say "hi", you', "two\nlines", "\u202eevil"]
    plain(logs, [record(number, message=word, service="s") for number, word in enumerate(words)])
    text = page_of(ann, "/logs?service=s")
    answer = ann.get(link(text, "CSV"))
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"].startswith("attachment")
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [row["message"] for row in reversed(rows)] == [
        *(f"'{word}" for word in words[:5]), 'say "hi", you', "two\nlines", "\\u202eevil",
    ]  # fmt: skip


def test_the_api_gives_pages_by_cursor_as_json_or_as_the_lines_of_the_files(ann, logs):
    records = [record(number) for number in range(250)]
    plain(logs, records)
    found, query = [], {"service": "api", "limit": "40"}
    while True:
        answer = ann.get("/api/logs", params=query)
        assert answer.status_code == 200
        told = answer.json()
        assert told["complete"]
        found += told["records"]
        if told["older"] is None:
            break
        query["before"] = told["older"]
    assert found == [one for one in reversed(records) if one["service"] == "api"]

    lines, address = [], "/api/logs?service=api&limit=40"
    while address:
        answer = ann.get(address, headers={"Accept": "application/x-ndjson"})
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines += answer.text.splitlines()
        address = re.fullmatch(r'<(.*)>; rel="next"', answer.headers["link"])[1] if "link" in answer.headers else None
    assert [orjson.loads(one) for one in lines] == found
    for limit in ("0", "1001", "x", "-1", "\uff11"):
        assert ann.get("/api/logs", params={"limit": limit}).status_code == 400


def test_nobody_sees_anything_without_a_log_in(site, logs):
    plain(logs, [record(1, message="secret thing")])
    with visitor(site, role=None) as nobody:
        for path in (
            "/logs",
            "/logs.csv",
            "/logs/record?uid=u000001",
            "/logs/tail",
            "/logs/histogram.svg",
            "/trace/trade-0",
        ):
            answer = nobody.get(path)
            assert answer.status_code == 303, path
            assert "secret" not in answer.text
        for path in ("/api/logs", "/api/logs/histogram", "/api/traces/trade-0", "/api/impact/NEW_UI"):
            assert nobody.get(path).status_code == 401


def test_without_a_log_directory_it_is_said_what_to_do(own_project):
    site = make_site(own_project, FLAGS)
    with visitor(site) as client:
        for path in ("/logs", "/trace/x", "/flags/NEW_UI/impact", "/logs.csv", "/api/logs"):
            answer = client.get(path)
            assert answer.status_code == 503, path
            assert "run the collector" in answer.text


def test_a_large_record_is_cut_where_it_is_shown(ann, logs):
    plain(logs, [record(1, message="x" * 3_000_000)])
    text = page_of(ann, "/logs")
    assert len(text) < 20_000
    full = page_of(ann, "/logs/record?uid=u000001")
    assert len(full) < 60_000
    assert "too large to be shown as JSON" in full


# --- following the logs ---


class Stream:
    """Server-sent events of a running server."""

    def __init__(self, server, cookie, path):
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        self._connection.request("GET", path, headers={"Cookie": cookie})
        self.answer = self._connection.getresponse()

    def event(self):
        """Name and data of the next event; comments have no name."""
        name, data = "", []
        while True:
            text = self.answer.readline()
            if not text:
                return None
            text = text.decode().rstrip("\n")
            if not text:
                return name, "\n".join(data)
            if text.startswith("event: "):
                name = text[7:]
            elif text.startswith("data: "):
                data.append(text[6:])

    def close(self):
        self._connection.close()


@pytest.fixture
def server(own_project, logs):
    (own_project / "config" / "flags.yaml").write_text(FLAGS)
    with web_server() as server:
        yield server


def test_who_follows_gets_each_record_or_is_told_how_many_were_passed_over(server, logs):
    plain(logs, [record(number) for number in range(10)])
    with closing(Stream(server, server.log_in(), "/logs/tail?service=api")) as stream:
        assert stream.answer.getheader("content-type").startswith("text/event-stream")
        assert stream.event() == ("", "")
        total, sent, path = 6000, 0, day_path(logs, "jarvis", DAY)

        def writer():
            for number in range(100, 100 + total, 60):
                write(path, [record(one) for one in range(number, number + 60)], "ab")
                time.sleep(0.01)

        thread = threading.Thread(target=writer)
        thread.start()
        shown, passed = [], 0
        while len(shown) + passed < total // 2:
            name, data = stream.event()
            if name == "rows":
                rows = rows_in(data)
                assert len(rows) <= BATCH_MAX
                shown += rows
            elif name == "passed":
                passed += int(data)
            sent += 1
        thread.join()
    assert len(shown) + passed == total // 2
    assert shown == sorted(set(shown))
    assert shown[-1] == f"u{100 + total - 1:06}"
    assert all(int(uid[1:]) % 2 for uid in shown)
    assert sent < 200


def test_a_server_ends_at_once_although_somebody_follows(server, logs):
    plain(logs, [record(1)])
    with closing(Stream(server, server.log_in(), "/logs/tail")) as stream:
        stream.event()
        assert server.stop() == 0
        assert stream.event() is None


def test_who_logged_out_sees_no_further_record(server, logs):
    plain(logs, [record(1)])
    cookie = server.log_in()
    with closing(Stream(server, cookie, "/logs/tail")) as stream:
        stream.event()
        assert server.ask("POST", "/logout", Cookie=cookie, Sec_Fetch_Site="same-origin")[0] == 303
        write(day_path(logs, "jarvis", DAY), [record(3)], "ab")
        while (event := stream.event()) is not None:
            assert event == ("", "")


def test_only_so_many_follow_at_once_and_who_leaves_makes_room(server, logs):
    plain(logs, [record(1)])
    cookie = server.log_in()
    streams = [Stream(server, cookie, "/logs/tail") for _ in range(TAILS_MAX)]
    for stream in streams:
        stream.event()
    assert server.ask("GET", "/logs/tail", Cookie=cookie)[0] == 503
    for stream in streams:
        stream.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with closing(Stream(server, cookie, "/logs/tail")) as stream:
            if stream.answer.status == 200:
                break
        time.sleep(0.05)
    assert stream.answer.status == 200


def test_a_filter_that_cannot_be_read_is_no_stream(ann, logs):
    assert ann.get("/logs/tail?level=LOUD").status_code == 400


# --- traces ---


def workflow(logs):
    """The original design's failed trade, with what else went on."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    ids = {"correlation_id": "trade-xyz789", "trace_id": trace_id, "user_id": "tg_123456789"}
    on = {
        "active_flags": ["LIVE_TRADING_ENABLED"],
        "flags": {"LIVE_TRADING_ENABLED": "on", "ADVANCED_TRADING_ENABLED": "off"},
    }

    def one(number, **more):
        return record(number) | ids | on | more | {"_meta": {"uid": f"u{number:06}", "environment": "prod"}}

    records = [
        one(1801, level="INFO", message="Signal received", service="telegram", span_id="1" * 16),
        one(1802, level="INFO", message="Executing trade", service="trading", span_id="2" * 16),
        one(
            1803,
            level="ERROR",
            message="Trade execution failed: insufficient balance",
            service="trading",
            span_id="2" * 16,
            error={
                "type": "InsufficientBalanceError",
                "message": "Wallet has 0.5 SOL, need 1.0 SOL",
                "stack_trace": "Traceback…",
            },
            context={"symbol": "SOL", "requested_amount": 1.0},
        ),
    ]
    plain(logs, [record(number) for number in range(20)] + records)
    spans = [
        {
            "timestamp": at(1801),
            "end": at(1804),
            "duration_ms": 3000.0,
            "name": "POST /signal",
            "kind": "server",
            "service": "telegram",
        },
        {
            "timestamp": at(1802),
            "end": at(1804),
            "duration_ms": 2000.0,
            "name": "execute_trade",
            "kind": "internal",
            "service": "trading",
        },
    ]
    for number, span in enumerate(spans, 1):
        span.update(correlation_id=trace_id, trace_id=trace_id, span_id=str(number) * 16, status={"code": "ok"})
    spans[1] |= {"parent_span_id": "1" * 16, "status": {"code": "error", "message": "insufficient balance"}}
    write(day_path(logs, "traces", DAY), spans)
    return trace_id


def test_the_debugging_workflow_goes_from_the_error_to_its_flags_and_how_to_reproduce_it(ann, site, logs):
    workflow(logs)
    site.admin.enable("ADVANCED_TRADING_ENABLED", Author("web:ben", "web", "try it out"), confirmed=True)
    site.admin.enable("LIVE_TRADING_ENABLED", Author("web:ben", "web", "go"), confirmed=True)
    site.admin.disable("LIVE_TRADING_ENABLED", Author("web:ben", "web", "enough"))
    errors = page_of(ann, "/logs?" + urlencode({"level": "ERROR", "since": at(1500), "until": at(2100)}))
    assert rows_in(errors) == ["u001803"]
    text = page_of(ann, re.search(r'href="(/trace/trade-xyz789)"', errors)[1])

    rows = re.findall(r'<tr class="(span|log|fold)([^"]*)">(.*?)</tr>', text, re.DOTALL)
    plain_rows = [(kind, more, re.sub(r"<[^>]*>|\s+", " ", body)) for kind, more, body in rows]
    assert [kind for kind, _, _ in plain_rows] == ["span", "log", "span", "log", "log"]
    assert "POST /signal" in plain_rows[0][2]
    assert "execute_trade" in plain_rows[2][2]
    assert "failed" in plain_rows[2][1]
    assert "failed level-error" in plain_rows[4][1]
    assert "Wallet has 0.5 SOL, need 1.0 SOL" in plain_rows[4][2]
    assert plain_rows[4][2].split()[:2] == ["2.000", "s"]
    bars = [
        tuple(map(float, pair)) for pair in re.findall(r'class="span-bar" x="([\d.]+)" y="4" width="([\d.]+)"', text)
    ]
    assert bars == [(0, 1000), (333.3, 666.7)]

    rail = re.sub(r"<[^>]*>|\s+", " ", text[text.index('<aside class="rail"') :])
    rail = re.sub(r"\s+", " ", rail)
    assert re.search(r"ADVANCED_TRADING_ENABLED then off now off", rail)
    assert re.search(r"LIVE_TRADING_ENABLED then on now off changed since .*on → off by web:ben: enough", rail)
    assert "file → on by web:ben: try it out" in rail

    lines = unescape(re.search(r'<pre id="reproduce">(.*?)</pre>', text, re.DOTALL)[1]).splitlines()
    done = run_jarvis("logs", "reproduce", "trade-xyz789", "--dir", str(logs))
    assert lines == done.stdout.splitlines()
    assert "export FF_ADVANCED_TRADING_ENABLED=false" in lines
    assert any(one.startswith("# export FF_LIVE_TRADING_ENABLED=true") for one in lines)
    assert rows_in(page_of(ann, link(text, "Its records among the logs"))) == ["u001803", "u001802", "u001801"]


def test_a_trace_id_leads_to_the_same_trace_and_the_api_gives_it(ann, logs):
    trace_id = workflow(logs)
    assert "Trade execution failed" in page_of(ann, f"/trace/{trace_id}")
    answer = ann.get("/trace", params={"id": trace_id})
    assert (answer.status_code, answer.headers["location"]) == (303, f"/trace/{trace_id}")
    told = ann.get("/api/traces/trade-xyz789").json()
    wanted = json.loads(run_jarvis("logs", "trace", "trade-xyz789", "--dir", str(logs), "--format", "json").stdout)
    assert {name: told[name] for name in wanted} == wanted
    assert "export FF_ADVANCED_TRADING_ENABLED=false" in told["reproduce"]["lines"]
    assert ann.get("/api/traces/nobody").status_code == 404
    assert "Nothing is known of nobody" in page_of(ann, "/trace/nobody", 404)
    page_of(ann, "/trace")


def test_an_id_of_any_signs_has_a_page(server, logs):
    cookie = server.log_in()
    for name in ("a/b", "..", "a b?c#d", "ü%2F", "a\\b", "x" * 300, "%", "+", "a\nb", "."):
        plain(logs, [record(1, correlation_id=name)])
        text = server.ask("GET", "/logs", Cookie=cookie)[2].decode()
        address = unescape(re.search(r'<a class="trace" href="([^"]*)"', text)[1])
        status, _, found = server.ask("GET", address, Cookie=cookie)
        assert (status, b"message 1" in found) == (200, True), name


def test_a_trace_of_ten_thousand_spans_is_folded_and_its_errors_are_shown(ann, logs):
    ids = {"correlation_id": "big", "trace_id": "1" * 32, "service": "db"}
    spans = [
        {
            "timestamp": at(number / 100), "end": at(number / 100 + 0.005), "duration_ms": 5.0, "name": f"query {number % 3}",
            "kind": "client", **ids, "span_id": f"{number:016x}", "parent_span_id": "0" * 15 + "1",
            "status": {"code": "error", "message": "timeout at 7777"} if number == 7777 else {"code": "ok"},
        }
        for number in range(10_000)
    ]  # fmt: skip
    write(day_path(logs, "traces", DAY), spans)
    plain(logs, [record(number, **ids, message=f"row {number} of {number}") for number in range(3000)])
    text = page_of(ann, "/trace/big")
    assert len(text) < 200_000
    assert "timeout at 7777" in text
    assert re.search(r"\d{4} more spans like query 1", text)
    assert re.search(r"\d+ more records like row", text)
    full = page_of(ann, link(text, "Show all"))
    assert full.count('<tr class="span') + full.count('<tr class="log') == ROWS_MAX
    last = page_of(ann, unescape(re.findall(r'<a href="([^"]*page=\d+[^"]*)"', full)[-1]))
    assert "row" in last


# --- impact ---


def seed_impact(logs):
    records = []
    for number in range(400):
        variant = "on" if number % 2 else "off"
        bad = number % (10 if variant == "on" else 100) == 1
        records.append(
            record(
                number, correlation_id=f"op-{number}", level="ERROR" if bad else "INFO", flags={"NEW_UI": variant},
                active_flags=["NEW_UI"] if variant == "on" else [], duration_ms=100.0 + number % 10 + 60 * (variant == "on"),
            )
        )  # fmt: skip
    plain(logs, records)


def test_the_impact_of_a_flag_is_that_of_the_command(ann, logs):
    seed_impact(logs)
    wanted = json.loads(jarvis_flags("impact", "NEW_UI", "--since", DAY, "--dir", str(logs), "--format", "json").stdout)
    told = ann.get("/api/impact/NEW_UI", params={"since": DAY}).json()
    assert told == wanted
    text = impact_of(ann, f"/flags/NEW_UI/impact?since={DAY}")
    for sentence in wanted["sentences"]:
        assert sentence in unescape(text)
    for one in wanted["variants"]:
        assert estimate_text(Estimate(**one["error_rate"]), 100, " %") in text
        assert estimate_text(Estimate(**one["p95"]), 1, " ms") in text
    part = ann.get(f"/flags/NEW_UI/impact?since={DAY}", headers={"HX-Request": "true"}).text
    assert "<html" not in part
    assert 'class="impact"' in part
    rows = rows_in(page_of(ann, link(text, "on")))
    assert len(rows) == 100
    assert all(int(uid[1:]) % 2 for uid in rows)
    assert "since: got" in page_of(ann, "/flags/NEW_UI/impact?since=soon", 400)
    assert ann.get("/api/impact/NEW_UI?since=soon").status_code == 400
    wrong = ann.get("/flags/NEW_UI/impact?since=soon", headers={"HX-Request": "true"})
    assert wrong.status_code == 200
    assert "since: got" in wrong.text
    assert "Nothing in the logs tells of NOBODY" in impact_of(ann, f"/flags/NOBODY/impact?since={DAY}")


def test_a_count_that_takes_long_shows_how_far_it_is_and_is_made_once_for_all(ann, site, logs):
    seed_impact(logs)
    go = threading.Event()

    async def block():
        # both places are taken: the count has to wait
        await asyncio.gather(*(site.scans.run(lambda _: go.wait(20), Budget(30)) for _ in range(2)))

    blocking = ann.portal.start_task_soon(block)
    try:
        text = page_of(ann, f"/flags/NEW_UI/impact?since={DAY}")
        assert "Counting …" in text
        again = unescape(re.search(r'hx-get="([^"]*)" hx-trigger="load', text)[1])
        assert '<noscript><meta http-equiv="refresh"' in text
    finally:
        go.set()
    blocking.result(20)
    assert "likely worse" in impact_of(ann, again)


def test_a_query_can_be_ended_between_the_parts_of_a_file(tmp_path):
    plain(tmp_path, [record(number) for number in range(10)])

    class EndedError(Exception):
        pass

    def end():
        raise EndedError

    with pytest.raises(EndedError):
        LogQuery(tmp_path, on_part=end).trace("trade-1")


def test_a_trace_may_have_a_bound_and_tells_how_much_is_left_out(tmp_path):
    plain(tmp_path, [record(number, correlation_id="one") for number in range(10)])
    trace = LogQuery(tmp_path).trace("one", 4)
    assert uids(trace.records) == [f"u{number:06}" for number in range(6, 10)]
    assert trace.left_out == 6
