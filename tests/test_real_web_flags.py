"""The web page in a real browser: what people do when something fails at 14:30, by clicks and by keyboard alone."""

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from jarvis_flags.overrides import read_overrides
from tests.browser import clean_page, jarvis_web, serious_faults
from tests.collectors import served

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[1]
FLAGS = (ROOT / "config/flags.yaml").read_text(encoding="utf-8")
SEED = Path(__file__).parent / "seed.py"
PAYLOADS = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror=window.hit=2>",
    "\"'><svg onload=window.hit=3>",
    "javascript:window.hit=4",
    "</pre></td></table><iframe srcdoc='<script>parent.hit=5</script>'>",
    "link\u202egnp.exe",
]


@pytest.fixture
def project(own_project):
    (own_project / "config" / "flags.yaml").write_text(FLAGS)
    return own_project


@pytest.fixture
def seeded(project):
    """A project in which the trading engine ran with a regression behind a flag; its records are in the files."""
    collector = served(project / "logs")
    try:
        seed = subprocess.run(
            [sys.executable, SEED, "400"],
            env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert seed.returncode == 0, seed.stderr
    finally:
        collector.stop()
    return project


class App:
    """A running service: what one flag gives in it, as it sees it."""

    def __init__(self, flag):
        code = f"""
            import sys
            from jarvis_otel import FeatureFlagManager
            manager = FeatureFlagManager("config/flags.yaml")
            for line in sys.stdin:
                print(manager.is_enabled({flag!r}, user_id=line.strip() or None), flush=True)
        """
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.gives()

    def gives(self, user=""):
        self.process.stdin.write(f"{user}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip() == "True"

    def somebody(self):
        """A user for whom it is on."""
        return next(f"user{number}" for number in range(100) if self.gives(f"user{number}"))

    def wait_for(self, wanted, user=""):
        deadline = time.monotonic() + 10
        while self.gives(user) is not wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.gives(user) is wanted

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate(timeout=30)


def jarvis(*arguments):
    """What a command says."""
    command = [sys.executable, "-m", "jarvis_otel.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def set_at_run_time(project, flag):
    return read_overrides(project / "var/flags").overrides[flag]


def logged_in(page, url, path="/flags"):
    page.goto(url)
    base = page.url.partition("/flags")[0]
    page.goto(base + path)
    return base


def told(page, text):
    """Waits until the page says what became of a change."""
    page.get_by_text(text).first.wait_for()


@contextmanager
def held_back(page, pattern):
    """What is done within asks for such an address: the requests, which wait until the test lets them go on."""
    held = []
    page.route(pattern, lambda route: held.append(route))  # noqa: PLW0108 - a builtin takes no mark
    with page.expect_request(pattern):
        yield held


def tab_to(page, wanted, presses=150):
    """Presses Tab until the focus is on what is wanted."""
    for _ in range(presses):
        page.keyboard.press("Tab")
        at = page.evaluate(
            "() => { const at = document.activeElement;"
            " return [at.tagName, at.getAttribute('name'), at.getAttribute('aria-label'), at.innerText].join('|') }"
        )
        if re.search(wanted, at):
            return
    raise AssertionError(f"Tab never reaches {wanted}")


def test_from_an_error_to_the_flag_that_is_turned_off_by_clicks(browser, seeded):
    with jarvis_web() as url, App("ADVANCED_TRADING_ENABLED") as app, clean_page(browser) as page:
        someone = app.somebody()
        page.goto(url)
        assert "t=" not in page.url
        page.get_by_role("link", name="Logs").click()
        page.get_by_label("Level").select_option("ERROR")
        page.get_by_role("button", name="Show").click()
        row = page.locator("#rows tr.log").first
        assert "InsufficientBalanceError" in row.inner_text()
        row.locator("a.expand").click()
        page.locator("tr.detail").get_by_text("error.type").wait_for()
        row.get_by_role("link", name="Trace of").click()
        heading = page.get_by_role("heading", name="Trace trade-")
        heading.wait_for()
        correlation_id = heading.inner_text().removeprefix("Trace ")
        shown = page.locator("pre", has_text="export FF_DEXTER_ENABLED=false").inner_text()
        assert shown.strip() == jarvis("logs", "reproduce", correlation_id).strip()
        page.get_by_role("link", name="ADVANCED_TRADING_ENABLED", exact=True).first.click()
        told(page, "likely worse")
        page.get_by_role("button", name="Turn off now").click()
        told(page, "ADVANCED_TRADING_ENABLED is off for everyone")
        app.wait_for(False, someone)


def test_from_an_error_to_the_flag_that_is_turned_off_by_keyboard_alone(browser, seeded):
    with jarvis_web() as url, App("ADVANCED_TRADING_ENABLED") as app, clean_page(browser) as page:
        someone = app.somebody()
        page.goto(url)
        tab_to(page, r"^A\|.*Logs")
        page.keyboard.press("Enter")
        page.wait_for_url("**/logs*")
        tab_to(page, r"^SELECT\|level")
        page.keyboard.type("ERROR and")
        tab_to(page, r"^BUTTON.*Show")
        page.keyboard.press("Enter")
        page.wait_for_url("**level=ERROR*")
        page.locator("#rows tr.log").first.wait_for()
        tab_to(page, "Trace of")
        page.keyboard.press("Enter")
        page.wait_for_url("**/trace/**")
        tab_to(page, r"^A\|.*ADVANCED_TRADING_ENABLED$")
        page.keyboard.press("Enter")
        page.wait_for_url("**/flags/ADVANCED_TRADING_ENABLED")
        tab_to(page, r"^BUTTON.*Turn off now")
        page.keyboard.press("Enter")
        told(page, "ADVANCED_TRADING_ENABLED is off for everyone")
        app.wait_for(False, someone)
        assert set_at_run_time(seeded, "ADVANCED_TRADING_ENABLED").state == "off"


def test_the_flag_list_is_searched_and_walked_by_keys(browser, project):
    with jarvis_web() as url, clean_page(browser) as page:
        page.goto(url)
        page.keyboard.press("/")
        # at once: each letter asks for the list anew, and the last answer may come after the next key
        page.keyboard.insert_text("telegram")
        told(page, "1 of 4 flags")
        page.locator("body").click(position={"x": 5, "y": 5})
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url("**/flags/NEW_TELEGRAM_UI_ENABLED")


def test_no_key_acts_on_the_old_list_while_a_search_is_being_answered(browser, project):
    with jarvis_web() as url, clean_page(browser) as page:
        page.goto(url)
        with held_back(page, "**/flags?*q=telegram*") as held:
            page.keyboard.press("/")
            page.keyboard.insert_text("telegram")
            for key in ("Escape", "j", "t"):
                page.keyboard.press(key)
        assert page.locator("dialog[open]").count() == 0
        assert page.locator("#said").inner_text() == ""
        for route in held:
            route.continue_()
        told(page, "1 of 4 flags")
        page.wait_for_function("document.activeElement.closest('tr')?.dataset.flag === 'NEW_TELEGRAM_UI_ENABLED'")
        assert read_overrides(project / "var/flags").overrides == {}
        page.keyboard.press("t")
        page.locator("dialog[open]").wait_for()


def test_a_list_that_renews_itself_takes_nobodys_place_away(browser, project):
    with jarvis_web() as url, clean_page(browser) as page:
        page.goto(url)
        page.keyboard.press("j")
        page.keyboard.press("j")
        place = "() => [document.activeElement.closest('tr')?.dataset.flag, document.activeElement.tagName]"
        before = page.evaluate(place)
        assert before[1] == "A"
        (project / "config" / "flags.yaml").write_text(f"{FLAGS}  A_NEW_ONE: {{enabled: true}}\n")
        page.get_by_role("row", name=re.compile("A_NEW_ONE")).wait_for()
        assert page.evaluate(place) == before


def test_a_late_answer_does_not_bring_back_the_list_before_the_search(browser, project):
    with jarvis_web() as url, clean_page(browser) as page:
        page.goto(url)
        with held_back(page, "**/flags?q=&*") as held:
            (project / "config" / "flags.yaml").write_text(f"{FLAGS}  A_NEW_ONE: {{enabled: true}}\n")
        page.keyboard.press("/")
        page.keyboard.insert_text("telegram")
        told(page, "1 of 5 flags")
        with page.expect_response("**/flags?q=&*"):
            held[0].continue_()
        page.evaluate("() => new Promise((done) => setTimeout(done, 100))")
        told(page, "1 of 5 flags")
        page.keyboard.press("Enter")
        page.wait_for_function("document.activeElement.closest('tr')?.dataset.flag === 'NEW_TELEGRAM_UI_ENABLED'")


def test_a_dangerous_flag_is_turned_on_with_a_reason_and_its_typed_name_and_off_by_one_click(browser, project):
    with jarvis_web() as url, App("DEXTER_ENABLED") as app, clean_page(browser) as page:
        page.goto(url)
        row = page.get_by_role("row", name=re.compile("DEXTER_ENABLED"))
        row.get_by_role("switch").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Reason").fill("go live")
        dialog.get_by_label("Type DEXTER_ENABLED to confirm").fill("DEXTER")
        dialog.get_by_role("button", name="Turn on").click()
        assert not app.gives()
        dialog.get_by_label("Type DEXTER_ENABLED to confirm").fill("DEXTER_ENABLED")
        dialog.get_by_role("button", name="Turn on").click()
        told(page, "DEXTER_ENABLED is on for everyone; seen by")
        app.wait_for(True)
        assert set_at_run_time(project, "DEXTER_ENABLED").reason == "go live"
        row.get_by_role("switch").click()
        app.wait_for(False)


def test_a_rollout_is_set_by_the_slider_and_its_preview_says_who_moves(browser, project):
    with jarvis_web() as url, clean_page(browser) as page:
        logged_in(page, url, "/flags/NEW_TELEGRAM_UI_ENABLED")
        page.get_by_role("slider", name="Rollout").focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        assert page.get_by_label("Percent of users").input_value() == "30"
        told(page, re.compile("10,000"))
        page.get_by_role("button", name="Set …").click()
        page.get_by_role("dialog").get_by_role("button", name="Set to 30 %").click()
        told(page, "NEW_TELEGRAM_UI_ENABLED is on for 30 % of users")
        told(page, "Of 10,000 sample users 0 come in and 0 go out")
        assert set_at_run_time(project, "NEW_TELEGRAM_UI_ENABLED").percentage == 30


def test_the_second_of_two_admins_sees_the_conflict(browser, project):
    with jarvis_web() as url, clean_page(browser) as ann, clean_page(browser) as bob:
        for page, percent in ((ann, 60), (bob, 80)):
            logged_in(page, url, f"/flags/NEW_TELEGRAM_UI_ENABLED/change?action=rollout&percent={percent}")
        ann.get_by_role("button", name="Set to 60 %").click()
        told(ann, "is on for 60 % of users")
        bob.get_by_role("button", name="Set to 80 %").click()
        told(bob, "was changed meanwhile")
        assert set_at_run_time(project, "NEW_TELEGRAM_UI_ENABLED").percentage == 60


def test_what_another_changes_is_seen_on_the_open_page(browser, project):
    with jarvis_web() as url, clean_page(browser) as page:
        page.goto(url)
        row = page.get_by_role("row", name=re.compile("NEW_TELEGRAM_UI_ENABLED"))
        assert "25 %" in row.inner_text()
        jarvis("flags", "rollout", "NEW_TELEGRAM_UI_ENABLED", "70")
        row.get_by_text("70 %").wait_for()


def test_an_attackers_text_in_names_owners_and_reasons_is_inert(browser, project):
    bad = "".join(
        f"  BAD_{number}: {{name: {json.dumps(text)}, description: {json.dumps(text)}, owner: {json.dumps(text)},"
        f" category: {json.dumps(text)}}}\n"
        for number, text in enumerate(PAYLOADS)
    )
    (project / "config" / "flags.yaml").write_text(f"flags:\n{bad}")
    jarvis("flags", "disable", "BAD_0", "--by", PAYLOADS[1], "--reason", PAYLOADS[0])
    with jarvis_web() as url, clean_page(browser) as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a dialog opened: {dialog.message}"))
        base = logged_in(page, url)
        for path in ("/flags", *(f"/flags/BAD_{number}" for number in range(len(PAYLOADS))), "/activity"):
            assert page.goto(base + path).status == 200
            assert page.evaluate("window.hit") is None, path
            assert page.locator("iframe, main svg[onload], img[onerror], a[href^='javascript:']").count() == 0
            assert "\u202e" not in page.content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_pages_of_flags_are_accessible_and_fit(browser, seeded, scheme, width):
    size = {"width": width, "height": 900}
    with jarvis_web() as url, clean_page(browser, viewport=size, color_scheme=scheme) as page:
        base = logged_in(page, url)
        for path in (
            "/flags",
            "/flags?q=nothing-is-called-so",
            "/flags/ADVANCED_TRADING_ENABLED",
            "/flags/DEXTER_ENABLED/change?action=enable",
        ):
            page.goto(base + path)
            page.wait_for_timeout(300)
            assert serious_faults(page) == [], path
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{path} is {wide} pixels too wide"
        page.goto(base + "/flags")
        page.get_by_role("row", name=re.compile("DEXTER_ENABLED")).get_by_role("switch").click()
        page.get_by_role("dialog").get_by_label("Reason").wait_for()
        assert serious_faults(page) == []


def test_without_javascript_flags_are_changed(browser, project):
    with jarvis_web() as url, clean_page(browser) as probe:
        base = logged_in(probe, url)
        context = browser.new_context(java_script_enabled=False)
        context.add_cookies(probe.context.cookies())
        page = context.new_page()
        page.goto(base + "/flags")
        page.get_by_role("row", name=re.compile("NEW_TELEGRAM_UI_ENABLED")).get_by_role("switch").click()
        page.get_by_role("button", name="Turn off").click()
        told(page, "NEW_TELEGRAM_UI_ENABLED is off for everyone")
        context.close()
    assert set_at_run_time(project, "NEW_TELEGRAM_UI_ENABLED").state == "off"
