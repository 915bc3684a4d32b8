"""The pages of flags and the JSON API over them: real files, requests as browsers send them, with and without htmx."""

import json
import os
import re
import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_flags.model import EvaluationContext
from jarvis_flags.overrides import Override, read_overrides
from jarvis_flags.request import result_name
from jarvis_flags.settings import FlagSettings
from jarvis_flags.source import FileSource
from jarvis_otel.admin.audit import verify
from jarvis_otel.admin.author import Author, Role
from jarvis_otel.admin.preview import moves, sample_users, with_override
from jarvis_otel.web.flags_counts import HOURS, EvaluationCounts, sparkline
from jarvis_otel.web.flags_rows import FlagRows
from tests.commands import jarvis
from tests.web_sites import make_site, visitor

FLAGS = """
environment: prod
segments:
  pros: {attribute: plan, op: eq, value: pro}
flags:
  PLAIN: {name: Plain one, owner: team, services: [api]}
  ON: {enabled: true, category: ui, created_at: 2020-01-01}
  RISKY: {description: trades for real, enabled: false, dangerous: true}
  PART: {category: ui, rules: [{type: percentage, value: 25}], environment_defaults: {dev: true, prod: false}}
  NAMED: {rules: [{type: user_ids, value: [ann]}, {type: user_segment, value: pros}], requires: [ON]}
  FOUR: {approvals: 2, dangerous: true}
  TYPED: {variants: {low: 1, high: 2}, default: low}
  SPLIT: {variants: {a: 1, b: 2}, default: a, rules: [{type: percentage, value: {a: 50, b: 50}}]}
  BROKEN: {dangerous: true, rules: 5}
  OLD: {enabled: true, expires_at: 2021-01-01}
"""
HTMX = {"HX-Request": "true"}
BOTH = pytest.mark.parametrize("headers", [{}, HTMX], ids=["browser", "htmx"])


@pytest.fixture
def site(own_project):
    return make_site(own_project, FLAGS)


@pytest.fixture
def ann(site):
    with visitor(site) as client:
        yield client


def override(site, flag_id):
    return read_overrides(site.settings.flags.flags_state_dir).overrides.get(flag_id)


def version(site, flag_id):
    return site.admin.state(flag_id).version


def told(client, response):
    """What a change is answered with, once a browser has followed the redirect."""
    if response.status_code == 303:
        response = client.get(response.headers["location"])
    return response.text


def wait_until(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Page(HTMLParser):
    """The elements of a page, their attributes, and their text."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.words = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def shape(self):
        return Counter((tag, *sorted(attributes)) for tag, attributes in self.elements)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in wanted.items())]

    @property
    def fields(self):
        return {a["name"]: a.get("value") for _, a in self.elements if "name" in a}

    @property
    def listed(self):
        return [a["data-flag"] for a in self.all("tr") if "data-flag" in a]


def submit(client, path, headers, **fields):
    return client.post(f"{path}/change", data=fields, headers=headers)


# --- the list ---


def test_the_list_says_where_each_flag_stands_and_what_is_to_be_known_of_it(ann):
    page = Page(ann.get("/flags").text)
    assert page.listed == ["PLAIN", "ON", "RISKY", "PART", "NAMED", "FOUR", "TYPED", "SPLIT", "OLD", "BROKEN"]
    switches = {a["aria-label"]: a["aria-checked"] for a in page.all("button", role="switch")}
    assert switches["PLAIN: off"] == "false"
    assert switches["ON: on"] == switches["PART: 25 %"] == "true"
    assert len(switches) == 10
    for words in ("Plain one", "dangerous", "broken", "stale: expired on 2021-01-01", "stale: the same for everyone"):
        assert words in page.text


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("q=trades", ["RISKY"]),
        ("q=plain+api", ["PLAIN"]),
        ("state=on&only=stale", ["ON", "OLD"]),
        ("state=partly", ["PART", "NAMED"]),
        ("category=ui&sort=id", ["ON", "PART"]),
        ("owner=team", ["PLAIN"]),
        ("only=dangerous&only=broken", ["BROKEN"]),
        ("only=overridden", ["TYPED"]),
        ("only=pinned", ["PLAIN"]),
        ("only=nonsense&state=what&sort=so&page=99999999999&q=SPLIT", ["SPLIT"]),
        ("q=nothing+is+like+that", []),
    ],
)
@BOTH
def test_filters_narrow_the_list_and_what_makes_no_sense_is_passed_over(own_project, query, ids, headers):
    site = make_site(own_project, FLAGS, {"FF_PLAIN": "true"})
    site.admin.enable("TYPED", Author("ann", "cli"), variant="high")
    with visitor(site) as ann:
        answer = ann.get(f"/flags?{query}", headers=headers)
    assert Page(answer.text).listed == ids
    assert ("<html" in answer.text) is not bool(headers)


def test_the_order_is_by_what_was_asked_for(site, ann):
    for flag_id in ("PART", "ON"):
        site.admin.disable(flag_id, Author("ann", "cli"))
    assert Page(ann.get("/flags?sort=changed").text).listed[:2] == ["ON", "PART"]
    assert Page(ann.get("/flags?sort=owner").text).listed[0] == "PLAIN"
    states = Page(ann.get("/flags?sort=state").text).listed
    assert states.index("OLD") < states.index("NAMED") < states.index("PLAIN")


def test_a_thousand_flags_are_one_page_and_the_next_ones_another(own_project):
    lines = [f"  F_{n:04}: {{category: c{n % 7}, enabled: {str(n % 2 == 0).lower()}}}" for n in range(1234)]
    site = make_site(own_project, "\n".join(["flags:", *lines]) + "\n")
    with visitor(site) as ann:
        first, second = (Page(ann.get(f"/flags?page={page}").text) for page in (1, 2))
        assert first.listed == [f"F_{n:04}" for n in range(1000)]
        assert second.listed == [f"F_{n:04}" for n in range(1000, 1234)]
        assert any("page=2" in a.get("href", "") for a in first.all("a", rel="next"))
        some = Page(ann.get("/flags?category=c3&state=on&q=F_1").text)
        assert some.listed == [f"F_{n:04}" for n in range(1000, 1234) if n % 7 == 3 and n % 2 == 0]
        site.admin.disable("F_0000", Author("ann", "cli"))
        assert "F_0000: off" in ann.get("/flags").text


def test_a_pin_of_this_or_of_a_running_process_shows_as_a_lock(own_project):
    site = make_site(own_project, FLAGS, {"FF_ON": "off"})
    running = FileSource(FlagSettings.load({"FF_RISKY": "true"}), watch=True, service="trading")
    try:
        seen = site.settings.flags.flags_state_dir / "seen" / f"{os.getpid()}.json"
        wait_until(seen.exists)
        with visitor(site) as ann:
            text = ann.get("/flags?only=pinned").text
            assert Page(text).listed == ["ON", "RISKY"]
            assert f"FF_RISKY=true in trading (pid {os.getpid()})" in text
            assert "FF_ON=off in this process" in ann.get("/flags/ON").text
    finally:
        running.close()


def test_a_process_that_starts_with_a_pin_is_noticed_in_seconds(site, own_project):
    now = [1_800_000_000.0]
    rows = FlagRows(site.admin, clock=lambda: now[0])
    assert not rows.one("ON").pins
    running = FileSource(FlagSettings.load({"FF_ON": "off"}), watch=True, service="trading")
    try:
        wait_until((site.settings.flags.flags_state_dir / "seen" / f"{os.getpid()}.json").exists)
        assert not rows.one("ON").pins
        now[0] += 5
        assert rows.one("ON").pins == (f"FF_ON=off in trading (pid {os.getpid()})",)
        assert [row.id for row in rows.all() if row.pins] == ["ON"]
    finally:
        running.close()


def test_a_reason_has_a_bound(site, ann):
    submit(ann, "/flags/PLAIN", HTMX, action="disable", reason="x" * 500_000)
    assert override(site, "PLAIN").reason == "x" * 2_000


def test_rows_that_were_kept_say_the_same_as_rows_made_anew(site):
    admin, kept = site.admin, FlagRows(site.admin)
    me = Author("ann", "cli", "why")
    kept.all()
    steps = [
        lambda: admin.disable("ON", me),
        lambda: admin.rollout("PART", 50, me),
        lambda: admin.enable("TYPED", me, variant="high"),
        lambda: admin.reset("ON", me),
        lambda: admin.panic(me),
        lambda: (site.settings.flags.flags_file.write_text(FLAGS.replace("PLAIN:", "NEWER:")), admin.source.reload()),
    ]
    for step in steps:
        step()
        assert kept.all() == FlagRows(admin).all()
    assert "NEWER" in [row.id for row in kept.all()]
    assert "NEWER" in [row.id for row in kept.all() if kept.one(row.id) == row]


# --- changes ---


@BOTH
def test_a_flag_is_turned_on_and_the_answer_says_so(site, ann, headers):
    dialog = ann.get("/flags/PLAIN/change?action=enable", headers=headers)
    page = Page(dialog.text)
    assert ("<html" in dialog.text) is not bool(headers)
    assert {"action", "expected", "reason", "lasts"} <= page.fields.keys()
    assert "typed" not in page.fields
    answer = submit(ann, "/flags/PLAIN", headers, action="enable", reason="a test", expected=page.fields["expected"])
    assert "PLAIN is on for everyone" in told(ann, answer)
    assert (override(site, "PLAIN").state, override(site, "PLAIN").reason) == ("on", "a test")
    (entry,) = site.admin.history("PLAIN")
    assert (entry.who, entry.via) == ("web:ann", "web")


@BOTH
@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"action": "disable"}, {"state": "off"}),
        ({"action": "disable", "lasts": "1h"}, {"state": "off", "expires_at": ...}),
        ({"action": "rollout", "percent": "50"}, {"state": "on", "percentage": 50.0}),
        ({"action": "rollout", "percent": "12.345", "lasts": "15m"}, {"percentage": 12.345, "expires_at": ...}),
        ({"action": "reset"}, None),
        ({"action": "revert", "revision": "1"}, {"state": "on", "percentage": 10.0}),
        ({"action": "revert", "revision": "0"}, None),
    ],
)
def test_each_change_does_what_its_page_said(site, ann, headers, fields, wanted):
    site.admin.rollout("PART", 10, Author("ann", "cli"))
    site.admin.rollout("PART", 20, Author("ann", "cli"))
    page = Page(ann.get("/flags/PART/change", params=fields, headers=headers).text)
    sent = {**page.fields, **fields}
    answer = submit(ann, "/flags/PART", headers, **{name: value or "" for name, value in sent.items()})
    assert answer.status_code == (200 if headers else 303)
    now = override(site, "PART")
    assert (now is None) == (wanted is None)
    for name, value in (wanted or {}).items():
        assert getattr(now, name) == value if value is not ... else getattr(now, name) is not None


@BOTH
def test_a_variant_can_be_given_to_everyone(site, ann, headers):
    page = Page(ann.get("/flags/TYPED/change?action=enable", headers=headers).text)
    assert {a["value"] for a in page.all("option")} >= {"low", "high"}
    submit(ann, "/flags/TYPED", headers, action="enable", variant="high")
    assert override(site, "TYPED").variant == "high"
    assert submit(ann, "/flags/TYPED", headers, action="enable", variant="none").status_code == 403


@BOTH
def test_a_dangerous_flag_needs_a_reason_and_its_name_typed(site, ann, headers):
    page = Page(ann.get("/flags/RISKY/change?action=enable", headers=headers).text)
    assert {"reason", "typed"} <= page.fields.keys()
    assert "Type RISKY to confirm" in page.text
    for fields in (
        {},
        {"reason": "go"},
        {"typed": "RISKY"},
        {"reason": " ", "typed": "RISKY"},
        {"reason": "go", "typed": "risky"},
    ):
        answer = submit(ann, "/flags/RISKY", headers, action="enable", **fields)
        assert answer.status_code == 200
        assert Page(answer.text).all("p", **{"class": "error"})
        assert override(site, "RISKY") is None
        assert Page(answer.text).fields["reason"] == fields.get("reason", "")
    assert [entry.outcome for entry in site.admin.history("RISKY")] == ["refused"] * 5
    answer = submit(ann, "/flags/RISKY", headers, action="enable", reason="go", typed=" RISKY ")
    assert "RISKY is on for everyone" in told(ann, answer)


@BOTH
def test_the_second_of_two_admins_sees_the_conflict_and_may_go_on_from_there(site, ann, headers):
    with visitor(site, "web:ben") as ben:
        seen = [
            Page(one.get("/flags/PART/change?action=rollout&percent=40").text).fields["expected"] for one in (ann, ben)
        ]
        assert seen[0] == seen[1]
        submit(ann, "/flags/PART", headers, action="rollout", percent="40", expected=seen[0])
        late = submit(ben, "/flags/PART", headers, action="rollout", percent="60", expected=seen[1])
        assert late.status_code == 200
        assert "was changed meanwhile by web:ann" in late.text
        assert override(site, "PART").percentage == 40
        anew = Page(late.text).fields
        again = submit(ben, "/flags/PART", headers, action="rollout", percent="60", expected=anew["expected"])
        assert "on for 60 %" in told(ben, again)


@BOTH
@pytest.mark.parametrize("role", [Role.EDITOR, Role.ADMIN])
@pytest.mark.parametrize("flag_id", ["RISKY", "ON", "FOUR", "BROKEN"])
def test_off_is_never_refused(site, headers, role, flag_id):
    with visitor(site, "web:eve", role) as eve:
        old = version(site, flag_id)
        site.admin.enable(flag_id, Author("ann", "cli", "go"), confirmed=True)
        garbage = {"expected": old, "lasts": "for ever", "percent": "x", "revision": "-", "typed": "no"}
        answer = submit(eve, f"/flags/{flag_id}", headers, action="disable", **garbage)
        assert f"{flag_id} is off for everyone" in told(eve, answer)
        assert override(site, flag_id).state == "off"


def test_off_works_where_no_flag_file_can_be_read(own_project):
    site = make_site(own_project, None)
    with visitor(site) as ann:
        answer = submit(ann, "/flags/ANY", HTMX, action="disable")
        assert answer.status_code == 200
        assert "no flag file could be read" in answer.text
        assert "there is no such file" in ann.get("/flags").text


def test_off_is_one_click_after_which_it_may_be_said_why(site, ann):
    answer = submit(ann, "/flags/ON", HTMX, action="disable")
    assert override(site, "ON").state == "off"
    page = Page(answer.text)
    assert "ON is off for everyone" in page.text
    assert {"action": "disable", "reason": None}.items() <= page.fields.items()
    said = submit(ann, "/flags/ON", HTMX, action="disable", reason="it loses money", lasts="1h")
    assert 'data-outcome="applied"' in said.text
    assert override(site, "ON").reason == "it loses money"


@pytest.mark.parametrize(("flag_id", "asked"), [("ON", True), ("RISKY", False), ("FOUR", False)])
def test_for_how_long_is_asked_only_where_the_end_turns_on_nothing_that_must_be_confirmed(ann, flag_id, asked):
    page = Page(submit(ann, f"/flags/{flag_id}", HTMX, action="disable").text)
    assert ("lasts" in page.fields, "reason" in page.fields) == (asked, True)


def test_an_editor_turns_on_what_is_harmless_and_nothing_that_is_dangerous(site):
    with visitor(site, "web:eve", Role.EDITOR) as eve:
        assert submit(eve, "/flags/PLAIN", HTMX, action="enable").status_code == 200
        answer = submit(eve, "/flags/RISKY", HTMX, action="enable", reason="go", typed="RISKY")
        assert answer.status_code == 403
        assert "only admins turn it on" in unescape(answer.text)
        assert "Write into the flag file" not in eve.get("/flags/PLAIN").text
        assert submit(eve, "/flags/PLAIN", HTMX, action="promote").status_code == 403


def test_a_viewer_sees_no_controls_and_changes_nothing(site):
    with visitor(site, "web:vic", Role.VIEWER) as vic:
        for path in ("/flags", "/flags/PART"):
            page = Page(vic.get(path).text)
            assert not page.all("button", role="switch")
            assert page.all("form", method="post") == page.all("form", action="/logout")
            assert not any("change?" in a.get("href", "") for a in page.all("a"))
        for path in ("/flags/PLAIN/change", "/panic", "/approvals/abc", "/api/flags/PLAIN/disable"):
            answer = vic.post(path, data={"action": "disable", "decision": "deny"})
            assert answer.status_code == 403
            assert "viewers look at everything and change nothing" in answer.text
        assert vic.get("/flags/PLAIN/change?action=enable").status_code == 403
        assert site.admin.history() == []


@BOTH
def test_what_takes_two_people_waits_for_the_second(site, ann, headers):
    asked = submit(ann, "/flags/FOUR", headers, action="enable", reason="go live", typed="FOUR")
    assert "takes 2 different people" in told(ann, asked)
    assert override(site, "FOUR") is None
    (request,) = site.admin.requests()
    path = f"/approvals/{request.id}"
    page = ann.get("/flags/FOUR")
    assert "go live" in page.text
    assert 'value="approve"' not in page.text, "who asked is for it already"
    own = ann.post(path, data={"decision": "approve"}, headers=headers)
    assert "is for it already" in told(ann, own)
    assert "FOUR" in ann.get("/flags").text
    with visitor(site, "web:ben") as ben:
        assert 'value="approve"' in ben.get("/flags/FOUR").text
        done = ben.post(path, data={"decision": "approve", "reason": "I looked at it"}, headers=headers)
        assert "approved by web:ben" in told(ben, done)
        assert override(site, "FOUR").state == "on"
        assert ben.post(path, data={"decision": "approve"}, headers=headers).status_code == 404
        assert ben.post(path, data={"decision": "perhaps"}, headers=headers).status_code == 400


@BOTH
def test_a_request_can_be_denied(site, ann, headers):
    submit(ann, "/flags/FOUR", headers, action="enable", reason="go live", typed="FOUR")
    (request,) = site.admin.requests()
    with visitor(site, "web:ben", Role.EDITOR) as ben:
        done = ben.post(f"/approvals/{request.id}", data={"decision": "deny", "reason": "no"}, headers=headers)
        assert "is denied" in told(ben, done)
    assert site.admin.requests() == []


@BOTH
def test_panic_turns_every_dangerous_flag_off(site, ann, headers):
    site.admin.enable("RISKY", Author("ann", "cli", "go"), confirmed=True)
    page = ann.get("/panic", headers=headers)
    assert all(f"<code>{flag_id}</code>" in page.text for flag_id in ("RISKY", "FOUR", "BROKEN"))
    answer = ann.post("/panic", data={"reason": "the market is closed"}, headers=headers)
    assert "3 dangerous flags are off" in told(ann, answer)
    assert {override(site, flag_id).state for flag_id in ("RISKY", "FOUR", "BROKEN")} == {"off"}


@BOTH
def test_what_was_set_is_written_into_the_flag_file(site, ann, headers):
    site.admin.enable("PLAIN", Author("ann", "cli"))
    page = Page(ann.get("/flags/PLAIN/change?action=promote", headers=headers).text)
    assert "+ enabled: true" in page.text
    answer = submit(ann, "/flags/PLAIN", headers, action="promote", reason="settled")
    assert "is written into flags.yaml" in told(ann, answer)
    assert "PLAIN: {name: Plain one, owner: team, services: [api], enabled: true}" in (
        site.settings.flags.flags_file.read_text()
    )
    assert override(site, "PLAIN") is None


def test_a_pinned_flag_is_kept_and_the_answer_says_what_stands_against_it(own_project):
    site = make_site(own_project, FLAGS, {"FF_PLAIN": "off"})
    with visitor(site) as ann:
        answer = submit(ann, "/flags/PLAIN", HTMX, action="enable")
        assert answer.status_code == 200
        assert 'data-outcome="pinned"' in answer.text


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("action=toggle", 400),
        ("action=explode", 400),
        ("action=rollout", 400),
        ("action=rollout&percent=110", 400),
        ("action=rollout&percent=1.23456", 400),
        ("action=enable&lasts=soon", 400),
        ("action=revert", 400),
        ("action=revert&revision=x", 400),
    ],
)
def test_a_change_that_cannot_be_read_is_refused_with_what_is_wrong(site, ann, query, status):
    fields = dict(part.split("=") for part in query.split("&") if part)
    for answer in (ann.get(f"/flags/PART/change?{query}"), ann.post("/flags/PART/change", data=fields)):
        assert answer.status_code == status
        assert "got" in answer.text or "missing" in answer.text
    assert site.admin.history("PART") == []


def test_a_flag_that_is_not_there_is_not_found_with_the_nearest_name(ann):
    for path in ("/flags/PLAINE", "/flags/PLAINE/change?action=enable", "/api/flags/PLAINE"):
        answer = ann.get(path)
        assert answer.status_code == 404
        assert "PLAIN" in unescape(answer.text).replace("PLAINE", "")
    assert ann.get("/flags/NONE/row").status_code == ann.get("/flags/NONE/preview?percent=5").status_code == 404
    assert submit(ann, "/flags/PLAINE", {}, action="disable").status_code == 404


def test_an_outcome_is_shown_to_whom_it_was_told_and_to_nobody_by_an_address_made_up(site, ann):
    answer = submit(ann, "/flags/PLAIN", {}, action="disable")
    path = answer.headers["location"]
    assert "PLAIN is off for everyone" in ann.get(path).text
    with visitor(site, "web:ben") as ben:
        assert "PLAIN is off for everyone" not in ben.get(path).text
    assert "pwned" not in ann.get("/flags/PLAIN?outcome=pwned").text


def test_an_audit_that_cannot_be_read_is_said_and_off_works_all_the_same(site, ann):
    directory = site.settings.flags.flags_state_dir
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "audit.jsonl").mkdir()
    for path in ("/flags", "/flags/ON"):
        page = ann.get(path)
        assert page.status_code == 200
        assert "cannot be read" in page.text
    assert submit(ann, "/flags/ON", HTMX, action="disable").status_code == 503


# --- a flag's page ---


def test_a_flags_page_says_its_rules_in_sentences_and_where_it_is_used(site, ann):
    page = Page(ann.get("/flags/NAMED").text)
    assert "on for user ann" in page.text
    assert "on for users in segment pros" in page.text
    assert page.all("a", href="/flags/ON")
    assert page.all("a", href="/flags/NAMED") == []
    other = Page(ann.get("/flags/ON").text)
    assert other.all("a", href="/flags/NAMED"), "who requires it"
    assert "api" in Page(ann.get("/flags/PLAIN").text).text
    assert not Page(ann.get("/flags/SPLIT").text).all("form", id="rollout"), "a split has no slider"
    assert Page(ann.get("/flags/BROKEN").text).text.count("want a list")


def test_two_entries_of_the_history_stand_beside_each_other(site, ann):
    me = Author("ann", "cli", "first")
    site.admin.rollout("PART", 10, me)
    site.admin.rollout("PART", 20, me)
    first, second = (entry.id for entry in site.admin.history("PART"))
    page = Page(ann.get(f"/flags/PART?left={second}&right={first}").text)
    assert "percentage 10 20" in page.text
    assert page.all("del")
    assert page.all("ins")
    assert not Page(ann.get(f"/flags/PART?left={first}&right={first}").text).all("del")
    assert page.all("a", href="/flags/PART/change?action=revert&revision=1")


@pytest.mark.parametrize("flag_id", ["PLAIN", "PART", "NAMED", "SPLIT", "BROKEN", "TYPED"])
@pytest.mark.parametrize(
    "context", [("ann", "", ""), ("", "dev", ""), ("user7", "prod", "plan=pro"), ("5", "", "n=5\nb=true")]
)
def test_who_gets_what_is_what_the_command_explains(site, ann, flag_id, context):
    user, environment, attributes = context
    options = [*(["--user", user] if user else []), *(["--env", environment] if environment else [])]
    for line in attributes.split():
        options += ["--attr", line]
    said = json.loads(jarvis("explain", flag_id, *options, "--format", "json").stdout)
    for path in (f"/flags/{flag_id}/who", f"/flags/{flag_id}"):
        page = ann.get(path, params={"users": user, "environment": environment, "attributes": attributes})
        body = page.text[page.text.index('class="who"') :]
        rows = re.findall(
            r'<tr class="(?:decides|other)"><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>', body
        )
        shown = [[unescape(cell) for cell in row] for row in rows]
        assert shown == [[s["step"], s["title"], s["outcome"], s["why"]] for s in said["steps"]]
        assert f">{said['reason']}" in body


def test_many_users_are_asked_about_at_once_and_the_rest_is_counted(ann):
    users = "\n".join(f"user{n}" for n in range(205))
    page = ann.get("/flags/PART/who", params={"users": users})
    assert page.text.count('class="steps"') == 200
    assert "5 more ids were left out" in page.text
    assert "want NAME=VALUE" in ann.get("/flags/PART/who?users=a&attributes=nonsense").text
    assert 'class="who"' not in ann.get("/flags/PART").text


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    percent=st.integers(0, 100_000).map(lambda n: n / 1000),
    standing=st.none() | st.builds(Override, st.sampled_from(["on", "off"]), st.none() | st.sampled_from([5.0, 60.0])),
    flag_id=st.sampled_from(["PART", "PLAIN", "NAMED", "ON", "TYPED"]),
)
def test_the_preview_is_what_the_evaluations_give_then(tmp_path_factory, percent, standing, flag_id):
    site = make_site(tmp_path_factory.mktemp("project"), FLAGS)
    source, me = site.admin.source, Author("ann", "cli")
    before = with_override(source.snapshot, flag_id, standing)
    seen = moves(before, with_override(before, flag_id, Override("on", percentage=percent)), flag_id, sample_users(300))
    if standing is not None:
        site.store.commit("enable", me, lambda _: {flag_id: standing})
        source.reload()

    def given_now():
        snapshot = source.snapshot
        results = [snapshot.evaluate(flag_id, snapshot.request(EvaluationContext(user))) for user in sample_users(300)]
        return [(result_name(r.variant, r.value, r.reason), r.on) for r in results]

    now = given_now()
    assert site.admin.rollout(flag_id, percent, me, confirmed=True).applied
    then = given_now()
    assert seen.comes_in == sum(new[1] and not old[1] for old, new in zip(now, then, strict=True))
    assert seen.goes_out == sum(old[1] and not new[1] for old, new in zip(now, then, strict=True))
    assert len(seen.moved) == sum(old[0] != new[0] for old, new in zip(now, then, strict=True))
    assert sum(seen.then.values()) == 300


def test_the_slider_is_told_who_moves(site, ann):
    text = ann.get("/flags/PART/preview?percent=50").text
    snapshot = site.admin.source.snapshot
    seen = moves(snapshot, with_override(snapshot, "PART", Override("on", percentage=50)), "PART", sample_users(10_000))
    assert 2_300 < seen.comes_in < 2_700
    assert f"<b>{seen.comes_in:,}</b> come in and <b>0</b> go out" in text
    assert ann.get("/flags/PART/preview?percent=500").status_code == 400


# --- evaluations ---


def write_events(site, events):
    """Evaluation events in the day files, as (flag, variant, reason, hours ago)."""
    site.settings.log_dir.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    for number, (flag_id, variant, reason, ago) in enumerate(events):
        at = now - timedelta(hours=ago)
        record = {
            "timestamp": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": "INFO",
            "service": "trading",
            "message": "evaluated",
            "event": "feature_flag.evaluation",
            "_meta": {"uid": f"u{number}-{os.urandom(4).hex()}"},
            "context": {
                "feature_flag.key": flag_id,
                "feature_flag.result.variant": variant,
                "feature_flag.result.reason": reason,
            },
        }
        with (site.settings.log_dir / f"jarvis-{at:%Y-%m-%d}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


def test_evaluations_are_counted_by_hour_and_by_what_was_given_and_new_ones_too(site):
    counts = EvaluationCounts(site.settings.log_dir)
    write_events(site, [("PART", "on", "split", 0)] * 3 + [("PART", "off", "default", 2), ("PART", "on", "split", 50)])
    counts.start()
    try:
        assert counts.wait(20)
        hours = counts.by_hour("PART")
        assert (len(hours), hours[-1], hours[-3], sum(hours)) == (HOURS, 3, 1, 4)
        assert counts.by_result("PART") == [("on", "split", 3), ("off", "default", 1)]
        assert counts.services("PART") == ("trading",)
        assert counts.by_hour("PLAIN") == ()
        write_events(site, [("PLAIN", "on", "static", 0)])
        wait_until(lambda: counts.by_hour("PLAIN"))
    finally:
        counts.stop()
    assert counts.by_hour("PLAIN")[-1] == 1


def test_evaluations_of_a_clock_that_is_wrong_take_no_room_from_the_others(site):
    counts = EvaluationCounts(site.settings.log_dir)
    write_events(site, [(f"F{number}", "on", "static", -30) for number in range(20_100)] + [("PART", "on", "split", 0)])
    counts.start()
    try:
        assert counts.wait(20)
        assert (counts.note, counts.total("PART")) == ("", 1)
    finally:
        counts.stop()


def test_what_is_written_while_the_files_are_read_is_counted_once(site):
    write_events(site, [("PART", "on", "split", 0)] * 5_000)
    counts = EvaluationCounts(site.settings.log_dir)
    counts.start()
    try:
        for _ in range(20):
            write_events(site, [("PART", "on", "split", 0)] * 50)
        wait_until(lambda: counts.total("PART") >= 6_000)
        write_events(site, [("PLAIN", "on", "static", 0)])
        wait_until(lambda: counts.total("PLAIN"))
        assert counts.total("PART") == 6_000
    finally:
        counts.stop()


def test_the_pages_draw_what_was_counted_and_an_empty_line_without_data(site):
    write_events(site, [("PART", "on", "split", 0), ("PART", "", "error", 1)])
    with visitor(site) as ann:
        assert site.evaluations.wait(20)
        assert Page(ann.get("/flags?sort=evaluations").text).listed[0] == "PART"
        lines = Page(ann.get("/flags").text).all("svg", **{"class": "spark"})
        assert [a["aria-label"][0] for a in lines if a["aria-label"] != "no evaluation in 24 hours"] == ["2"]
        text = ann.get("/flags/PART/evaluations").text
        assert "split" in text
        assert "the caller&#39;s default" in text
        assert "No evaluation is told of" in ann.get("/flags/PLAIN/evaluations").text
    assert sparkline(()).points == ""
    assert len(sparkline((0,) * 23 + (5,)).points.split()) == 24


# --- hostile text ---

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</textarea><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% include 'base.html' %}",
    "javascript:alert(1)",
    "\u202egnp.exe\u2066",
    "\x1b[31mred\x07",
    "]]><!--",
    "&lt;b&gt;",
    'a"hx-get="/logout',
]


def hostile_id(text):
    """An id is printable; what is not is a bad flag, which looks different."""
    return text if text.isprintable() else "F"


def hostile_flags(text):
    said = json.dumps(text)
    return f"""
flags:
  {json.dumps(hostile_id(text))}: {{name: {said}, description: {said}, category: {said}, owner: {said}, services: [{said}], enabled: true, expires_at: 2021-01-01}}
  MANY: {{variants: {{{said}: 1, other: 2}}, default: {said}, rules: [{{type: user_ids, value: [{said}], variant: {said}}}], requires: [{json.dumps(hostile_id(text))}]}}
"""


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_makes_no_element_and_no_attribute(tmp_path_factory, text):
    def shapes(said):
        site = make_site(tmp_path_factory.mktemp("project"), hostile_flags(said))
        me = Author(said, "cli", said)
        for flag_id in (hostile_id(said), "MANY"):
            site.admin.enable(flag_id, me)
            site.admin.disable(flag_id, me)
        path = f"/flags/{quote(hostile_id(said), safe='')}"
        asked = {"users": said, "attributes": f"a={said}", "environment": said}
        left, right = (entry.id for entry in site.admin.history("MANY"))
        made = []
        with visitor(site, f"web:{said}") as ann:
            answers = [
                ann.get("/flags"),
                ann.get("/flags", params={"q": said, "category": said}),
                ann.get(path),
                ann.get("/flags/MANY", params={"left": left, "right": right, **asked}),
                ann.get("/flags/MANY/who", params=asked),
                ann.get(f"{path}/change?action=enable"),
                ann.get("/flags/MANY/change?action=enable", headers=HTMX),
                ann.get("/flags/MANY/preview?percent=20"),
                ann.post("/flags/MANY/change", data={"action": "enable", "reason": said, "variant": "none"}),
                ann.post(f"{path}/change", data={"action": "disable", "reason": said}, headers=HTMX),
            ]
            for answer in answers:
                assert answer.status_code in (200, 403)
                assert said == "harmless" or not set("\u202e\u2066\x1b\x07") & set(answer.text)
                made.append(Page(answer.text).shape)
        return made

    assert shapes(text) == shapes("harmless")


# --- the JSON API ---


@pytest.fixture
def api(own_project):
    from jarvis_collector.access import token_digest

    tokens = {token_digest(name): (name, Role(name)) for name in ("viewer", "editor", "admin")}
    site = make_site(own_project, FLAGS, tokens=tokens)
    with ExitStack() as stack:
        client = stack.enter_context(visitor(site, role=None))

        def ask(role, method, path, body=None, **more):
            content = body if isinstance(body, bytes | None) else json.dumps(body)
            headers = {"authorization": f"Bearer {role}"}
            return client.request(method, path, content=content, headers=headers, **more)

        ask.site = site
        yield ask


def test_programs_read_flags_and_their_history(api):
    api.site.admin.rollout("PART", 40, Author("ann", "cli", "more"))
    listed = api("viewer", "GET", "/api/flags?category=ui").json()
    assert (listed["total"], [flag["flag"] for flag in listed["flags"]]) == (2, ["ON", "PART"])
    flag = api("viewer", "GET", "/api/flags/PART").json()
    assert (flag["state"], flag["switch"], flag["rules"]) == ("40 %", "partly", ["on for 25 % of users"])
    assert flag["version"] == version(api.site, "PART")
    history = api("viewer", "GET", "/api/flags/PART/history?limit=1").json()
    assert (history["total"], history["entries"][0]["change"]) == (1, "file → on 40 %")
    for query in ("/PART/history?limit=0", "?state=what", "?sort=x", "?only=x", "?page=0", "?page=x"):
        assert api("viewer", "GET", f"/api/flags{query}").status_code == 400
    assert api("viewer", "GET", "/api/flags/NONE/history").status_code == 404
    assert api("nobody", "GET", "/api/flags").status_code == 401


@pytest.mark.parametrize(
    ("role", "path", "body", "ended"),
    [
        ("editor", "PLAIN/enable", {"reason": "x"}, (200, "applied")),
        ("editor", "PLAIN/enable", None, (200, "applied")),
        ("editor", "PLAIN/toggle", {}, (200, "applied")),
        ("editor", "PART/rollout", {"percent": 33.3, "lasts": "1h"}, (200, "applied")),
        ("editor", "PART/reset", {}, (200, "applied")),
        ("admin", "RISKY/enable", {}, (400, "needs_reason")),
        ("admin", "RISKY/enable", {"reason": "go"}, (400, "needs_confirmation")),
        ("admin", "RISKY/enable", {"reason": "go", "confirmed": "true"}, (400, "needs_confirmation")),
        ("admin", "RISKY/enable", {"reason": "go", "confirmed": True}, (200, "applied")),
        ("admin", "FOUR/enable", {"reason": "go", "confirmed": True}, (202, "needs_approval")),
        ("editor", "RISKY/enable", {"reason": "go", "confirmed": True}, (403, "refused")),
        ("editor", "NONE/enable", {}, (404, "not_found")),
        ("editor", "PLAIN/enable", {"expected": "abc"}, (409, "conflict")),
        ("editor", "PLAIN/disable", {"expected": "abc", "lasts": []}, (200, "applied")),
        ("editor", "ON/toggle", {"lasts": "soon"}, (200, "applied")),
        ("editor", "PLAIN/toggle", {"lasts": "soon"}, (400, None)),
        ("editor", "PLAIN/disable", b"{not json", (200, "applied")),
        ("editor", "PLAIN/enable", b"{not json", (400, None)),
        ("editor", "PLAIN/enable", b"[]", (400, None)),
        ("editor", "PLAIN/enable", {"lasts": "soon"}, (400, None)),
        ("editor", "PART/rollout", {}, (400, None)),
        ("editor", "PART/rollout", {"percent": True}, (400, None)),
        ("editor", "PLAIN/explode", {}, (404, None)),
        ("viewer", "PLAIN/disable", {}, (403, None)),
    ],
)
def test_programs_change_flags_and_are_told_how_it_ended(api, role, path, body, ended):
    status, outcome = ended
    answer = api(role, "POST", f"/api/flags/{path}", body)
    assert answer.status_code == status
    said = answer.json()
    assert said.get("outcome") == outcome
    assert said["message"] if outcome else said["error"]["message"]
    if outcome == "needs_approval":
        assert said["request"] == api.site.admin.requests()[0].id
    if outcome == "applied":
        assert {entry.via for entry in api.site.admin.history()} <= {"web"}
    assert list(verify(api.site.store.lines())) == []
