"""The pages of logs and traces in a real browser: by mouse, by keyboard alone, without scripts, and while records pour in."""

import json
import re
import threading
import time
from datetime import datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

import pytest

from jarvis_collector.layout import day_path
from tests.browser import clean_page, jarvis_web, serious_faults
from tests.naive_query import is_wanted
from tests.test_web_logs import (
    DAY,
    FLAGS,
    HOSTILE,
    START,
    at,
    harmful,
    plain,
    record,
    run_jarvis,
    seed_impact,
    workflow,
    write,
)

pytestmark = pytest.mark.real


@pytest.fixture
def logs(own_project):
    (own_project / "config" / "flags.yaml").write_text(FLAGS)
    (own_project / "logs").mkdir()
    return own_project / "logs"


@pytest.fixture
def url(logs):
    with jarvis_web(OTEL_LOGS_EXPORTER="none") as url:
        yield url


def base_of(url):
    return url.partition("/login")[0]


def test_the_histogram_is_brushed_a_record_is_copied_and_its_link_leads_back_to_it(browser, logs, url):
    records = [record(number) for number in range(1200)]
    plain(logs, records)
    with clean_page(browser, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.goto(url)
        page.goto(f"{base_of(url)}/logs?service=api")
        box = page.locator("#histogram .u-over").bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.25, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.5, middle, steps=4)
        page.mouse.up()
        page.wait_for_url("**since=**")
        asked = dict(parse_qsl(urlsplit(page.url).query))
        assert asked["service"] == "api"
        since, until = (datetime.fromisoformat(asked[name]) for name in ("since", "until"))
        assert START < since < until < START + timedelta(seconds=1200)
        first = page.locator("#rows tr.log").first
        wanted = [one for one in records if is_wanted(one, {"service": "api", "since": since, "until": until})][-1]
        assert first.get_attribute("id") == f"r-{wanted['_meta']['uid']}"
        first.locator("a.expand").click()
        page.get_by_role("button", name="Copy as JSON").click()
        page.get_by_text("Copied").wait_for()
        assert json.loads(page.evaluate("navigator.clipboard.readText()")) == wanted
        page.get_by_role("link", name="Permalink").click()
        page.wait_for_url(f"**#r-{wanted['_meta']['uid']}")
        assert page.locator("#rows tr.log:target").count() == 1


COLUMN = """() => {
  const canvas = document.querySelector("#histogram canvas");
  const [box, plot] = [canvas, document.querySelector("#histogram .u-over")].map((one) => one.getBoundingClientRect());
  const x = Math.round(((plot.left - box.left + 20) * canvas.width) / box.width);
  const pixels = canvas.getContext("2d").getImageData(x, 0, 1, canvas.height).data;
  const counts = {};
  for (let at = 0; at < pixels.length; at += 4)
    if (pixels[at + 3] === 255) {
      const color = pixels.slice(at, at + 3).join();
      counts[color] = (counts[color] ?? 0) + 1;
    }
  return Object.values(counts);
}"""


def test_records_of_one_second_are_a_bar_of_one_second_that_stands_on_zero(browser, logs, url):
    records = [{**record(n), "timestamp": at(0), "level": "ERROR" if n % 10 == 0 else "INFO"} for n in range(500)]
    plain(logs, records)
    with clean_page(browser) as page:
        page.goto(url)
        page.goto(f"{base_of(url)}/logs")
        page.locator("#histogram .u-over").wait_for()
        low, high = sorted(page.evaluate(COLUMN))[-2:]
        assert 6 < high / low < 13, "a tenth are errors"
        box = page.locator("#histogram .u-over").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 20, steps=4)
        page.mouse.up()
        page.wait_for_url("**since=**")
        since, until = (
            datetime.fromisoformat(dict(parse_qsl(urlsplit(page.url).query))[name]) for name in ("since", "until")
        )
        assert START <= since <= until <= START + timedelta(seconds=1)


def test_from_an_error_to_its_flags_by_clicks(browser, logs, url):
    workflow(logs)
    with clean_page(browser, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.goto(url)
        page.get_by_role("link", name="Logs", exact=True).click()
        page.get_by_label("Level").select_option("ERROR")
        page.get_by_label("Since").fill(at(1500))
        page.get_by_role("button", name="Show").click()
        row = page.locator("#rows tr.log").first
        assert "InsufficientBalanceError" in row.inner_text()
        row.locator("a.expand").click()
        page.locator("tr.detail").get_by_text("error.type").wait_for()
        row.get_by_role("link", name="Trace of").click()
        page.get_by_role("heading", name="Trace trade-xyz789").wait_for()
        assert page.locator("tr.span.failed").inner_text().split()[-2:] == ["insufficient", "balance"]
        page.get_by_role("button", name="Copy env to reproduce").click()
        page.get_by_text("Copied").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.strip() == run_jarvis("logs", "reproduce", "trade-xyz789").stdout.strip()
        page.get_by_label("Flags", exact=True).get_by_role("link", name="ADVANCED_TRADING_ENABLED").click()
        page.wait_for_url("**/flags/ADVANCED_TRADING_ENABLED")
        page.locator(".impact").get_by_text("Nothing in the logs tells of").wait_for()
        page.locator(".impact").get_by_label("Since").fill(DAY)
        page.locator(".impact").get_by_role("button", name="Count").click()
        page.locator(".impact").get_by_text("only off was seen").wait_for()


def reached(page, wanted):
    """Presses Tab until the focus is on what is wanted."""
    for _ in range(120):
        page.keyboard.press("Tab")
        said = page.evaluate(
            "() => { const at = document.activeElement; return [at.tagName, at.name, at.ariaLabel, at.innerText].join('|') }"
        )
        if re.search(wanted, said):
            return
    raise AssertionError(f"Tab never reaches {wanted}")


def test_from_an_error_to_how_to_reproduce_it_by_keyboard_alone(browser, logs, url):
    workflow(logs)
    with clean_page(browser, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.goto(url)
        reached(page, r"^A\|.*Logs")
        page.keyboard.press("Enter")
        page.wait_for_url("**/logs")
        page.keyboard.press("/")
        page.keyboard.type("insufficient")
        page.keyboard.press("Enter")
        page.wait_for_url("**search=insufficient*")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.locator("tr.detail").get_by_text("error.type").wait_for()
        reached(page, "Trace of|^A.*trace")
        page.keyboard.press("Enter")
        page.wait_for_url("**/trace/trade-xyz789")
        reached(page, "Copy env to reproduce")
        page.keyboard.press("Enter")
        page.get_by_text("Copied").wait_for()
        assert "export FF_ADVANCED_TRADING_ENABLED=false" in page.evaluate("navigator.clipboard.readText()")


def test_a_thousand_records_a_second_are_followed_paused_and_counted(browser, logs, url):
    plain(logs, [record(1)])
    path, total, done = day_path(logs, "jarvis", DAY), 5000, threading.Event()

    def writer():
        for number in range(100, 100 + total, 50):
            write(path, [record(one) for one in range(number, number + 50)], "ab")
            time.sleep(0.05)
        done.set()

    with clean_page(browser) as page:
        page.goto(url)
        page.goto(f"{base_of(url)}/logs")
        with page.expect_response("**/logs/tail*"):
            page.get_by_role("button", name="Follow live").click()
        thread = threading.Thread(target=writer)
        thread.start()
        try:
            page.locator("#r-u000200, #rows tr.log:nth-child(100)").first.wait_for()
            # it draws and takes clicks while they come
            frames = "() => new Promise((done) => { let left = 60; const step = () => --left ? requestAnimationFrame(step) : done(true); step() })"
            assert page.evaluate(frames)
            page.get_by_role("button", name="Pause").click()
            page.get_by_text(re.compile(r"Paused; [1-9]\d* records wait")).wait_for()
            shown = page.locator("#rows tr.log").first.get_attribute("id")
            assert done.wait(60)
            page.get_by_text(f"{total} records came").wait_for(state="detached")
            assert page.locator("#rows tr.log").first.get_attribute("id") == shown
        finally:
            thread.join()
        page.get_by_role("button", name="Pause").click()
        page.get_by_text(f"Following; {total} records came").wait_for()
        assert page.locator("#rows tr.log").first.get_attribute("id") == f"r-u{100 + total - 1:06}"
        assert page.locator("#rows tr.log").count() <= 240
        passed = int(re.search(r"(\d+) came too fast", page.locator("#tail-state").inner_text())[1])
        assert 0 < passed < total
        page.get_by_role("button", name="Follow live").click()
        page.get_by_text("Followed no longer").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_pages_of_logs_traces_and_impact_are_accessible_and_fit(browser, logs, url, scheme, width):
    seed_impact(logs)
    records = [json.loads(one) for one in day_path(logs, "jarvis", DAY).read_text().splitlines()]
    workflow(logs)
    write(day_path(logs, "jarvis", DAY), [*records, harmful("long" * 100, 500)], "ab")
    with clean_page(browser, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
        page.goto(url)
        paths = (
            "/logs",
            "/logs?level=ERROR&columns=level,message,context.symbol",
            "/trace/trade-xyz789",
        )
        for path in (*paths, "/trace", f"/flags/NEW_UI/impact?since={DAY}", "/logs/record?uid=u000003"):
            page.goto(base_of(url) + path)
            if path.startswith("/logs?") and "oops" not in path:
                page.locator("#histogram canvas").wait_for()
                page.locator("a.expand").first.click()
                page.locator("tr.detail table").wait_for()
            assert serious_faults(page) == [], path
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        cookies = page.context.cookies()
    # a browser complains of every answer of 400
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    try:
        context.add_cookies(cookies)
        page = context.new_page()
        page.goto(f"{base_of(url)}/logs?where=oops&since=soon")
        assert page.locator("p.error").count() == 2
        assert page.get_by_role("textbox", name="Since").get_attribute("aria-invalid") == "true"
        assert serious_faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    finally:
        context.close()


def test_without_scripts_logs_are_filtered_counted_opened_and_traced(browser, logs, url):
    workflow(logs)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    try:
        page.goto(url)
        page.goto(f"{base_of(url)}/logs")
        picture = page.locator("#histogram img")
        picture.wait_for()
        page.get_by_label("Search").fill("insufficient")
        page.get_by_role("button", name="Show").click()
        assert page.locator("#rows tr.log").count() == 1
        page.locator("a.expand").click()
        page.get_by_role("heading", name="Record of").wait_for()
        page.get_by_role("link", name="trace").first.click()
        page.get_by_role("heading", name="Trace").wait_for()
        assert page.locator("rect.span-bar").count() == 2
        assert "export FF_ADVANCED_TRADING_ENABLED=false" in page.locator("#reproduce").inner_text()
    finally:
        context.close()


def test_an_attackers_text_does_nothing_in_a_browser(browser, logs, url):
    plain(logs, [harmful(text, number) | {"correlation_id": "evil"} for number, text in enumerate(HOSTILE, 1)])
    with clean_page(browser) as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a dialog opened: {dialog.message}"))
        page.goto(url)
        for path in ("/logs", "/trace/evil"):
            page.goto(base_of(url) + path)
            for link in page.locator("a.expand").all():
                link.click()
            page.wait_for_load_state("networkidle")
            assert page.locator("iframe, img, svg[onload], h1:has-text('owned'), a[href^='javascript:']").count() == 0
            assert not re.search("[\u202e\u2066\x1b]", page.content())
