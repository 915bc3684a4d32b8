"""The pages of what people did and of how everything is, for people and as JSON."""

import html
import re
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from jarvis_flags.source import FileSource
from jarvis_otel.admin.audit import Chain, verify
from jarvis_otel.admin.author import Author, Role
from jarvis_otel.alerts.service import Alerts
from tests.collectors import starting
from tests.web_sites import make_site, visitor

FLAGS = """\
flags:
  A: {enabled: false}
  B: {enabled: false}
  TWO: {enabled: false, approvals: 2}
  RISKY: {enabled: false, dangerous: true}
"""
ANN, BOB = Author("web:ann", "web", "because of ann"), Author("tg:7", "telegram", "because of bob")


@pytest.fixture
def site(own_project):
    return make_site(own_project, FLAGS)


collector = pytest.fixture(starting)


def rows(page):
    """The rows of the audit as text."""
    found = re.findall(r"<tr>(.*?)</tr>", page.partition("<tbody>")[2], re.DOTALL)
    return [" ".join(html.unescape(re.sub(r"<[^>]+>", " ", row)).split()) for row in found]


def record(age, service, level="INFO"):
    at = datetime.now(UTC) - timedelta(seconds=age)
    said = {"timestamp": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "level": level, "message": "m", "service": service}
    return {**said, "active_flags": [], "context": {}}


def write_logs(site, records):
    site.settings.log_dir.mkdir(exist_ok=True)
    path = site.settings.log_dir / f"jarvis-{datetime.now(UTC):%Y-%m-%d}.jsonl"
    path.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in records))


# --- activity ---


def test_changes_stand_there_newest_first_with_who_why_and_from_where(site):
    site.admin.disable("A", ANN)
    site.admin.enable("B", BOB)
    with visitor(site) as client:
        newest, oldest = rows(client.get("/activity").text)
    assert re.search(r"B enable file → on tg:7 telegram because of bob 2$", newest)
    assert re.search(r"A disable file → off web:ann web because of ann 1$", oldest)


@pytest.mark.parametrize(
    ("query", "flags"),
    [
        ("flag=A", ["A"]),
        ("who=TG", ["B"]),
        ("via=web", ["NOTHING", "A"]),
        ("action=enable", ["NOTHING", "B"]),
        ("outcome=refused", ["NOTHING"]),
        ("outcome=applied&via=web", ["A"]),
        ("flag=none", []),
        ("flag=", ["NOTHING", "B", "A"]),
    ],
)
def test_filters_leave_what_all_of_them_want(site, query, flags):
    site.admin.disable("A", ANN)
    site.admin.enable("B", BOB)
    site.admin.enable("NOTHING", ANN)
    with visitor(site) as client:
        assert [row.split()[2] for row in rows(client.get(f"/activity?{query}").text)] == flags
        assert [entry["flag"] for entry in client.get(f"/api/audit?{query}").json()["entries"]] == flags


def test_a_long_audit_comes_in_pages_that_lose_nothing_and_keep_the_filters(site):
    for number in range(60):
        (site.admin.enable if number % 2 else site.admin.disable)("A", ANN)
    site.admin.disable("B", BOB)
    with visitor(site) as client:
        first = client.get("/activity?flag=A").text
        older = html.unescape(re.search(r'href="([^"]+)" rel="next"', first)[1])
        assert "flag=A" in older
        second = client.get(older).text
        revisions = [int(row.split()[-1]) for row in rows(first) + rows(second)]
        assert revisions == list(range(60, 0, -1))
        assert 'rel="next"' not in second
        said = client.get("/api/audit?limit=7&page=2").json()
        assert (said["total"], [entry["revision"] for entry in said["entries"]]) == (61, list(range(54, 47, -1)))


@pytest.mark.parametrize(
    "query", ["page=0", "page=x", "page=-1", "page=99999999999", "page=٣", "limit=0", "limit=5000"]
)
def test_a_page_that_is_no_number_is_said_to_be_none(site, query):
    with visitor(site) as client:
        answer = client.get(f"/api/audit?{query}")
        assert (answer.status_code, "want a number from 1" in answer.json()["error"]["message"]) == (400, True)
        if query.startswith("page"):
            assert client.get(f"/activity?{query}").status_code == 400


def test_an_audit_that_somebody_rewrote_is_said_to_be_broken(site):
    for _ in range(3):
        site.admin.disable("A", ANN)
    file = site.settings.flags.flags_state_dir / "audit.jsonl"
    with visitor(site) as client:
        assert "The chain of 3 entries is whole" in client.get("/activity").text
        file.write_bytes(file.read_bytes().replace(b"because of ann", b"because of bob", 1))
        page = client.get("/activity").text
        assert "is broken" in page
        assert "line 2 does not follow" in page
        assert client.get("/api/audit").json()["whole"] is False


def test_what_came_since_the_last_look_is_checked_and_what_was_mended_is_whole_again(site):
    file = site.settings.flags.flags_state_dir / "audit.jsonl"
    site.admin.disable("A", ANN)
    with visitor(site) as client:

        def whole():
            said = client.get("/api/audit").json()
            return said["whole"], said["total"], len(said["entries"])

        assert whole() == (True, 1, 1)
        site.admin.enable("B", BOB)
        good = file.read_bytes()
        assert whole() == (True, 2, 2)
        file.write_bytes(good + b"no entry\n")
        assert whole() == (False, 2, 2)
        file.write_bytes(good.partition(b"\n")[2])
        assert whole() == (False, 1, 1)
        file.write_bytes(good)
        assert whole() == (True, 2, 2)
        site.admin.disable("B", BOB)
        assert whole() == (True, 3, 3)


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_a_chain_that_is_followed_in_steps_has_the_same_faults_as_in_one(site, step):
    for number in range(6):
        (site.admin.enable if number % 2 else site.admin.disable)("A", ANN)
    lines = site.store.lines()
    lines[2:3] = [b"no entry"]
    lines[4] = lines[4].replace(b"because of ann", b"because of bob")
    chain, faults = Chain(), []
    for start in range(0, len(lines), step):
        faults += chain.follow(lines[start : start + step])
    assert faults == list(verify(lines))
    assert len(faults) >= 3
    assert (chain.lines, chain.entries) == (6, 5)


def test_a_change_that_takes_two_is_approved_by_another_and_not_by_who_asked(site):
    request = site.admin.enable("TWO", ANN).request
    with visitor(site, "web:ann") as ann, visitor(site, "web:cleo") as cleo:
        page = ann.get("/activity").text
        assert "Waiting for approval" in page
        assert "because of ann" in page
        assert "Take back" in page
        assert "Approve" not in page
        assert "Approve" in cleo.get("/activity").text

        def approve(client):
            answer = client.post(f"/approvals/{request}", data={"decision": "approve", "reason": "looks right"})
            return answer if answer.status_code != 303 else client.get(answer.headers["location"])

        assert "for it already" in approve(ann).text
        assert "approved by web:cleo" in approve(cleo).text
        assert "Waiting for approval" not in cleo.get("/activity").text
        assert approve(cleo).status_code == 404
    assert site.admin.state("TWO").on
    applied = site.admin.history("TWO")[-1]
    assert (applied.who, applied.reason, applied.request) == ("web:cleo", "looks right", request)


def test_a_request_is_denied_and_viewers_see_no_button_for_it(site):
    request = site.admin.enable("TWO", ANN).request
    with visitor(site, "web:eve", Role.VIEWER) as eve, visitor(site, "web:cleo") as cleo:
        page = eve.get("/activity").text
        assert "Waiting for approval" in page
        assert "Approve" not in page
        denied = cleo.post(f"/approvals/{request}", data={"decision": "deny", "reason": "not now"})
        assert "is denied" in cleo.get(denied.headers["location"]).text
    assert not site.admin.state("TWO").on
    assert site.admin.requests() == []


# --- health ---


def test_without_a_collector_it_says_so_and_how_to_start_one(own_project):
    site = make_site(own_project, FLAGS, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    with visitor(site) as client:
        page, said = client.get("/health").text, client.get("/api/health").json()
    assert "start one: jarvis collector" in page
    assert said["collector"]["status"] == "no answer"
    assert any("127.0.0.1:9 does not answer" in problem for problem in said["problems"])


def test_a_running_collector_is_shown_with_its_figures(own_project, collector):
    endpoint = f"http://127.0.0.1:{collector(own_project / 'logs').port}"
    site = make_site(own_project, FLAGS, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    with visitor(site) as client:
        page, said = client.get("/health").text, client.get("/api/health").json()
    assert (said["collector"]["status"], said["collector"]["problem"]) == ("ok", None)
    assert said["collector"]["metrics"]['records_written_total{signal="logs"}'] == 0
    assert endpoint in page
    assert "All is well" in page


def test_services_are_there_with_their_last_record_and_errors_of_the_hour(site):
    write_logs(
        site,
        [record(7_200, "old"), record(90, "api"), record(60, "api", "ERROR"), record(30, "trading", "CRITICAL")],
    )
    with visitor(site) as client:
        said = client.get("/api/health").json()
        page = client.get("/health").text
    services = said["services"]
    assert {name: (one["records"], one["errors"]) for name, one in services.items()} == {
        "api": (2, 1),
        "old": (0, 0),
        "trading": (1, 1),
    }
    assert services["api"]["last"] > services["old"]["last"]
    assert said["logs"]["days"][0]["bytes"] > 0
    assert 'href="/logs?service=trading"' in page


def test_processes_that_evaluate_flags_are_there_with_what_they_pin(site, own_project):
    settings = make_site(own_project, FLAGS, {"FF_A": "on"}).settings.flags
    source = FileSource(settings, watch=True, service="worker")
    try:
        with visitor(site) as client:
            for _ in range(1_000):
                if found := client.get("/api/health").json()["flags"]["processes"]:
                    break
            page = client.get("/health").text
    finally:
        source.close()
    assert (found[0]["service"], found[0]["pins"]) == ("worker", {"A": "on"})
    assert "A=on" in page


def test_alerts_are_there_with_whom_they_reach(own_project):
    settings = {"JARVIS_ALERTS": "flag_changed", "JARVIS_ALERT_WEBHOOKS": "http://127.0.0.1:9/hook"}
    site = make_site(own_project, FLAGS, settings)
    source = FileSource(site.settings.flags)
    with visitor(site) as client:
        assert "Nothing is told by itself" in client.get("/health").text
        alerts = Alerts(site.settings, source)
        alerts.start()
        try:
            while not (told := client.get("/api/health").json()["alerts"]) or not told["running"]:
                pass
            page = client.get("/health").text
        finally:
            alerts.stop()
    assert told["kinds"] == ["flag_changed"]
    assert "http://127.0.0.1:9/…" in page
    assert "/hook" not in page


def test_a_broken_flag_file_is_a_problem_of_the_health(own_project):
    site = make_site(own_project, "flags: {A: {enabled: maybe}}\n")
    with visitor(site) as client:
        assert any("flags.A.enabled" in problem for problem in client.get("/api/health").json()["problems"])
