"""Who gets into the web page, what they may, and what it never lets through."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jarvis_collector.access import token_digest
from jarvis_otel.admin.audit import verify
from jarvis_otel.admin.author import Author, Role
from jarvis_otel.web import sessions as sessions_module
from jarvis_otel.web.links import Links, make_link
from jarvis_otel.web.login import FAILURES_MAX, NOTED_A_MINUTE, Attempts
from jarvis_otel.web.pages import STATIC_DIR, templates
from jarvis_otel.web.security import BODY_MAX, QUERY_MAX, cookie_name
from jarvis_otel.web.server import HEAD_MAX
from jarvis_otel.web.sessions import SESSIONS_MAX, Identity, Sessions
from tests.clocks import Clock
from tests.web_servers import web_server
from tests.web_sites import LOGIN_TOKEN, make_site, visitor

TOKENS = {
    token_digest("secret-of-ci"): ("ci", Role.EDITOR),
    token_digest("secret-of-eve"): ("eve", Role.VIEWER),
    token_digest("secret-of-ann"): ("ann", Role.ADMIN),
}
CI = {"Authorization": "Bearer secret-of-ci"}
PAGES = ("/activity", "/health", "/api/audit", "/api/health")
POSTS = ("/approvals/abc", "/panic", "/flags/PLAIN/change", "/api/flags/PLAIN/disable")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def site(own_project):
    return make_site(own_project)


# --- logging in ---


def test_the_printed_url_gives_a_cookie_that_scripts_and_other_sites_never_see_and_leaves_the_address(site):
    with visitor(site, role=None) as client:
        answer = client.get("/login", params={"t": LOGIN_TOKEN})
        assert (answer.status_code, answer.headers["location"]) == (303, "/flags")
        [cookie] = answer.headers.get_list("set-cookie")
        assert cookie.startswith(f"{cookie_name(site)}=")
        assert {"httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
        assert LOGIN_TOKEN not in cookie
        assert client.get("/activity").status_code == 200


def test_under_tls_the_cookie_is_secure_and_bound_to_the_host(own_project):
    site = make_site(own_project, url="https://jarvis.example", hosts=frozenset({"jarvis.example"}))
    with visitor(site, role=None) as client:
        cookie = client.get("/login", params={"t": LOGIN_TOKEN}).headers["set-cookie"]
    assert cookie.startswith("__Host-jarvis_session")
    assert "secure" in cookie.lower()
    assert "domain" not in cookie.lower()


def test_a_wrong_token_gets_nobody_in_and_ten_of_them_lock_the_address_out_for_a_minute(site):
    with visitor(site, role=None) as client:
        wrong = [client.get("/login", params={"t": f"guess-{number}"}) for number in range(FAILURES_MAX)]
        assert {answer.status_code for answer in wrong} == {401}
        assert not any("set-cookie" in answer.headers for answer in wrong)
        right = client.get("/login", params={"t": LOGIN_TOKEN})
        assert (right.status_code, right.headers["retry-after"]) == (429, "60")


def test_behind_a_proxy_the_lock_holds_for_whom_the_proxy_saw_alone(own_project):
    site = make_site(own_project, url="http://jarvis.internal", hosts=frozenset({"jarvis.internal"}))
    with visitor(site, role=None, address="127.0.0.1") as client:
        mallory, ann = {"X-Forwarded-For": "192.0.2.9, 192.0.2.1"}, {"X-Forwarded-For": "192.0.2.1, 192.0.2.2"}
        for _ in range(FAILURES_MAX):
            client.get("/login", params={"t": "wrong"}, headers=mallory)
        assert client.get("/login", params={"t": LOGIN_TOKEN}, headers=mallory).status_code == 429
        assert client.get("/login", params={"t": LOGIN_TOKEN}, headers=ann).status_code == 303
    assert {entry.who for entry in site.store.history() if entry.outcome == "refused"} == {"web:192.0.2.1"}


def test_failed_logins_from_many_addresses_neither_fill_the_audit_nor_lock_anybody_out(own_project):
    site = make_site(own_project, url="http://jarvis.internal", hosts=frozenset({"jarvis.internal"}))
    with visitor(site, role=None, address="127.0.0.1") as client:
        for number in range(2 * NOTED_A_MINUTE):
            client.get("/login", params={"t": "wrong"}, headers={"X-Forwarded-For": f"192.0.2.{number}"})
        refused = [entry for entry in site.store.history() if entry.outcome == "refused"]
        right = client.get("/login", params={"t": LOGIN_TOKEN}, headers={"X-Forwarded-For": "192.0.2.200"})
    # a little more of the minute may have passed meanwhile
    assert NOTED_A_MINUTE <= len(refused) < 1.5 * NOTED_A_MINUTE
    assert right.status_code == 303


def test_whoever_is_logged_in_is_asked_for_no_token(site):
    with visitor(site) as client:
        assert client.get("/login?next=/health").headers["location"] == "/health"


def test_the_lock_ends_after_a_minute_and_holds_for_that_address_only():
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(FAILURES_MAX):
        assert attempts.is_allowed("192.0.2.1")
        attempts.failed("192.0.2.1")
    assert not attempts.is_allowed("192.0.2.1")
    assert attempts.is_allowed("192.0.2.2")
    clock.now += 61
    assert attempts.is_allowed("192.0.2.1")


def test_logins_refused_logins_and_logouts_stand_in_the_audit_whose_chain_stays_whole(site):
    with visitor(site, role=None) as client:
        client.get("/login", params={"t": "wrong"})
        client.get("/login", params={"t": LOGIN_TOKEN})
        client.post("/logout")
    noted = [(entry.action, entry.outcome, entry.via) for entry in site.store.history()]
    assert noted == [("login", "refused", "web"), ("login", "logged in", "web"), ("login", "logged out", "web")]
    assert list(verify(site.store.lines())) == []
    assert LOGIN_TOKEN.encode() not in b"".join(site.store.lines())


def test_whoever_is_not_logged_in_sees_no_page_but_the_one_to_log_in(site):
    with visitor(site, role=None) as client:
        for path in ("/activity", "/health", "/flags", "/logs", "/events", "/nonsense"):
            answer = client.get(path)
            assert (answer.status_code, answer.text) == (303, "")
            assert answer.headers["location"].startswith("/login?next=")
        for path in ("/api/audit", "/api/health", "/api/openapi.json"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert client.post("/approvals/x").headers["location"] == "/login"
        page = client.get("/login")
        assert page.status_code == 200
        assert "Log out" not in page.text


def test_after_the_login_one_is_where_one_wanted_to_be_but_never_on_another_site(site):
    with visitor(site, role=None) as client:
        wanted = client.get("/activity?flag=A&page=1").headers["location"]
        assert 'value="/activity?flag=A&amp;page=1"' in client.get(wanted).text
        for target in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/\tx"):
            answer = client.get("/login", params={"t": LOGIN_TOKEN, "next": target})
            assert answer.headers["location"] == "/flags"
        assert client.get("/login", params={"t": LOGIN_TOKEN, "next": "/health"}).headers["location"] == "/health"


def test_a_link_from_another_sites_page_works_although_the_browser_holds_the_strict_cookie_back(site):
    with visitor(site, role=None) as client:
        answer = client.get("/activity?flag=A", headers={"Sec-Fetch-Site": "cross-site"})
        # the page goes on to itself, and from here the browser shows the cookie
        assert 'http-equiv="refresh" content="0;url=/activity?flag=A"' in answer.text
        assert client.get("/activity?flag=A").headers["location"].startswith("/login")


def test_an_address_that_begins_like_another_host_leads_nowhere_else(site):
    with visitor(site, role=None) as client:
        for path in ("//evil.example/x", "//evil.example"):
            address = f"http://127.0.0.1:{site.port}{path}"
            page = client.get(address, headers={"Sec-Fetch-Site": "cross-site"}).text
            assert 'content="0;url=/flags"' in page
            assert "evil" not in page


def test_who_logs_out_is_out_and_the_cookie_is_worth_nothing_any_more(site):
    with visitor(site) as client:
        assert client.get("/activity").status_code == 200
        cookie = client.cookies[cookie_name(site)]
        assert client.post("/logout").headers["location"] == "/login"
        client.cookies.set(cookie_name(site), cookie)
        assert client.get("/activity").status_code == 303


def test_an_admin_ends_the_sessions_of_others_and_everybody_their_own(site):
    with visitor(site, "web:bob", Role.VIEWER) as bob, visitor(site, "web:ann") as ann:
        assert bob.post("/sessions/end", data={"who": "web:ann"}).status_code == 403
        assert ann.get("/activity").status_code == 200
        assert "web:bob" in ann.get("/health").text
        ann.post("/sessions/end", data={"who": "web:bob"})
        assert bob.get("/activity").status_code == 303
        ann.post("/sessions/end", data={"who": "web:ann"})
        assert ann.get("/activity").status_code == 303


def test_sessions_end_by_themselves_are_bounded_and_keep_no_cookie():
    clock = Clock()
    sessions = Sessions(clock)
    ann = Identity("web:ann", Role.ADMIN)
    idle, busy = sessions.begin(ann), sessions.begin(ann)
    for _ in range(13):
        clock.now += 3600
        assert sessions.find(busy) == ann
    assert sessions.find(idle) is None
    clock.now += sessions_module.LIFE_S
    assert sessions.find(busy) is None
    first, *_ = [sessions.begin(ann) for _ in range(SESSIONS_MAX + 1)]
    assert len(sessions) == SESSIONS_MAX
    assert sessions.find(first) is None
    assert first not in repr(vars(sessions))


def test_a_session_that_has_ended_by_itself_holds_no_stream_open():
    clock = Clock()
    sessions = Sessions(clock)
    cookie = sessions.begin(Identity("web:ann", Role.ADMIN))
    clock.now += sessions_module.IDLE_S
    assert sessions.holds(cookie)
    clock.now += 1
    assert not sessions.holds(cookie)


# --- one-time links ---


def test_a_one_time_link_logs_in_whom_it_names_once(site):
    url = make_link(site.settings.flags.state_dir, "tg:123", Role.EDITOR, "http://127.0.0.1:8080/")
    path = url.removeprefix("http://127.0.0.1:8080")
    with visitor(site, role=None) as client:
        assert client.get(path).headers["location"] == "/flags"
        assert re.search(r"tg:123.*editor", client.get("/activity").text, re.DOTALL)
    with visitor(site, role=None) as client:
        answer = client.get(path)
        assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)


def test_a_preview_or_a_prefetch_uses_no_link_up(site):
    path = make_link(site.settings.flags.state_dir, "tg:123", Role.EDITOR, "http://x").removeprefix("http://x")
    with visitor(site, role=None) as client:
        assert client.head(path).status_code == 204
        assert client.get(path, headers={"Sec-Purpose": "prefetch;prerender"}).status_code == 204
        assert client.get(path, headers={"Sec-Fetch-Mode": "no-cors"}).status_code == 204
        assert client.get(path).status_code == 303


def test_a_link_lasts_a_minute_and_its_file_opens_nothing(own_project):
    clock = Clock()
    clock.now = time.time()
    links = Links(own_project / "var", clock)
    late, soon = links.make("tg:1", Role.ADMIN), links.make("tg:2", Role.VIEWER)
    files = list((own_project / "var" / "web" / "links").iterdir())
    assert len(files) == 2
    assert not any(token in f"{file.name}{file.read_text()}" for file in files for token in (late, soon))
    assert {file.stat().st_mode & 0o777 for file in files} == {0o640}
    clock.now += 59
    assert links.redeem(soon) == Identity("tg:2", Role.VIEWER)
    clock.now += 2
    assert links.redeem(late) is None
    assert list((own_project / "var" / "web" / "links").iterdir()) == []


def test_of_many_who_redeem_a_link_at_once_one_gets_in(own_project):
    links = Links(own_project / "var")
    for _ in range(20):
        token, got, barrier = links.make("tg:1", Role.ADMIN), [], threading.Barrier(4)

        def redeem(token=token, got=got, barrier=barrier):
            barrier.wait()
            got.append(links.redeem(token))

        threads = [threading.Thread(target=redeem) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 4
        assert got.count(None) == 3


@pytest.mark.parametrize("token", ["", "x", "../../flags/audit.jsonl", "a" * 5_000, "\udcff", "/etc/passwd"])
def test_what_is_no_link_opens_nothing_whatever_it_looks_like(own_project, token):
    links = Links(own_project / "var")
    links.make("tg:1", Role.ADMIN)
    assert links.redeem(token) is None


def test_links_that_nobody_used_are_swept_away_and_their_number_is_bounded(own_project):
    clock = Clock()
    clock.now = time.time()
    links = Links(own_project / "var", clock)
    for _ in range(3):
        links.make("tg:1", Role.ADMIN)
    clock.now += 1_000
    links.make("tg:1", Role.ADMIN)
    assert len(list((own_project / "var" / "web" / "links").iterdir())) == 1


# --- tokens and roles ---


def test_a_bearer_token_is_known_by_its_digest_and_any_other_is_refused(own_project):
    site = make_site(own_project, tokens=TOKENS)
    with visitor(site, role=None) as client:
        assert client.get("/api/audit", headers=CI).status_code == 200
        for shown in ("Bearer wrong", "Bearer ", "Basic secret-of-ci", token_digest("secret-of-ci"), "secret-of-ci"):
            assert client.get("/api/audit", headers={"Authorization": shown}).status_code == 401
        digest = f"Bearer {token_digest('secret-of-ci')}"
        assert client.get("/api/audit", headers={"Authorization": digest}).status_code == 401


@pytest.mark.parametrize("path", POSTS)
def test_a_viewer_posts_nothing_by_session_or_by_token(own_project, path):
    site = make_site(own_project, tokens=TOKENS)
    with visitor(site, "web:eve", Role.VIEWER) as client:
        assert client.post(path).status_code == 403
    with visitor(site, role=None) as client:
        assert client.post(path, headers={"Authorization": "Bearer secret-of-eve"}).status_code == 403
        assert client.post(path, headers=CI).status_code != 403  # it is let through


def test_a_program_with_a_token_needs_no_signs_of_a_browser(own_project):
    site = make_site(own_project, tokens=TOKENS)
    with visitor(site, role=None) as client:
        client.headers.clear()
        assert client.post(POSTS[0], data={"decision": "deny"}, headers=CI).status_code == 404


# --- other sites' pages ---


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Sec-Fetch-Site": "none"}, 303),
        ({"Origin": "http://127.0.0.1:8080"}, 303),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8080"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
    ],
)
def test_only_our_own_pages_change_something(site, headers, status):
    with visitor(site) as client:
        client.headers.clear()
        assert client.post("/logout", headers=headers).status_code == status


def test_what_only_looks_changes_nothing_whatever_it_asks_for(site):
    with visitor(site) as client:
        for path in ("/flags/PLAIN/change?action=enable", "/flags/PLAIN/change?action=disable", "/panic"):
            for method in ("GET", "HEAD", "OPTIONS"):
                client.request(method, path)
        for method in ("HEAD", "OPTIONS"):
            client.request(method, "/api/flags/PLAIN/enable")
            client.request(method, "/approvals/x?decision=approve")
    assert site.store.history() == []


@pytest.mark.parametrize("where", ["same-site", "cross-site"])
def test_pages_of_others_have_nothing_read_for_them_but_their_links_lead_here(site, where):
    for path in ("/flags/PLAIN/impact", "/logs.csv", "/api/flags", "/events", "/ofrep/v1/events"):
        with visitor(site) as client:
            answer = client.get(path, headers={"Sec-Fetch-Site": where, "Sec-Fetch-Mode": "no-cors"})
            assert answer.status_code == 403
    with visitor(site) as client:
        assert client.get("/flags", headers={"Sec-Fetch-Site": where, "Sec-Fetch-Mode": "navigate"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost:8080", 200),
        ("[::1]:8080", 200),
        ("jarvis.internal", 200),
        ("JARVIS.internal.:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.0.2.7", 421),
        ("", 421),
    ],
)
def test_a_name_that_somebody_made_lead_here_is_refused(own_project, host, status):
    site = make_site(own_project, hosts=frozenset({"jarvis.internal"}))
    with visitor(site, role=None) as client:
        assert client.get("/login", headers={"Host": host}).status_code == status


def test_every_answer_forbids_scripts_of_others_frames_sniffing_referrers_and_caches(own_project):
    site = make_site(own_project, tokens=TOKENS)
    with visitor(site) as client:
        answers = [client.get(path) for path in (*PAGES, "/login", "/nonsense", "/api/nonsense", "/")]
        answers += [client.post("/activity"), client.get("/health", headers={"Host": "evil.example"})]
        answers += [client.post("/ofrep/v1/evaluate/flags", json={})]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] in ("no-store", "private, no-cache")
        assert "server" not in answer.headers


def test_no_template_needs_what_the_policy_forbids():
    for path in sorted((STATIC_DIR.parent / "templates").glob("*.html")):
        text = path.read_text()
        assert not re.search(r"\sstyle=|\son\w+=|hx-on|<style|\|\s*safe\b|javascript:|js:|autoescape false", text), path
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text)), path
        assert not re.search(r"(src|href)=\"(https?:)?//", text), path


def test_only_programs_of_allowed_origins_may_ask_from_a_browser_elsewhere(own_project):
    site = make_site(own_project, tokens=TOKENS, cors_origins=frozenset({"https://app.example"}))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with visitor(site, role=None) as client:
        client.headers.clear()
        good = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
        bad = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        path = "/ofrep/v1/evaluate/flags"
        preflight = client.options(path, headers={**good, **asked})
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, good["Origin"])
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in preflight.headers
        answer = client.post(path, json={}, headers={**good, **CI})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, good["Origin"])
        assert "etag" in answer.headers["access-control-expose-headers"].lower()
        assert "origin" in answer.headers["vary"].lower()
        assert "access-control-allow-origin" not in client.options(path, headers={**bad, **asked}).headers
        assert "access-control-allow-origin" not in client.post(path, json={}, headers={**bad, **CI}).headers
        # pages are for nobody else at all
        assert "access-control-allow-origin" not in client.get("/activity", headers={**good, **CI}).headers


# --- what it bears ---


def test_what_is_too_large_is_refused_before_it_is_read(site):
    with visitor(site) as client:
        assert client.get(f"/activity?flag={'x' * QUERY_MAX}").status_code == 414
        assert client.post("/logout", content=b"x" * (BODY_MAX + 1)).status_code == 413
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        pieces = iter([b"x" * BODY_MAX, b"x"])  # of a length that nobody said
        assert client.post("/sessions/end", content=pieces, headers=form).status_code == 413
        assert client.post("/ofrep/v1/evaluate/flags", content=iter([b"x" * BODY_MAX, b"x"])).status_code == 413


def test_an_error_of_ours_is_a_page_or_json_and_never_a_traceback(own_project, caplog):
    site = make_site(own_project)
    audit = site.settings.flags.flags_state_dir / "audit.jsonl"
    audit.mkdir(parents=True)
    with visitor(site) as client:
        page, answer = client.get("/activity"), client.get("/api/audit")
    assert (page.status_code, answer.status_code) == (503, 503)
    assert "cannot be read" in page.text
    assert "cannot be read" in answer.json()["error"]["message"]
    assert "Traceback" not in page.text + answer.text


def test_what_nobody_foresaw_is_told_in_the_log_alone(site, caplog):
    caplog.set_level("CRITICAL", "jarvis_otel.web")

    def broken(_):
        raise RuntimeError("secret detail")

    client_site = visitor(site)
    with client_site as client:
        client.app.router.add_route("/broken", broken)
        client.app.router.add_route("/api/broken", broken)
        page, answer = client.get("/broken"), client.get("/api/broken")
    assert (page.status_code, answer.status_code) == (500, 500)
    assert "secret detail" not in page.text + answer.text
    assert answer.json()["error"]["status"] == 500


def test_text_of_others_is_escaped_and_its_control_characters_are_shown(site):
    site.admin.disable("PLAIN", Author("<script>alert(1)</script>", "web", 'a\u202eb\x1b[31m"><img src=x onerror=1>'))
    with visitor(site) as client:
        text = client.get("/activity").text
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "a\\u202eb\\x1b[31m&#34;&gt;&lt;img" in text


def test_templates_escape_everything_and_know_no_unset_name():
    environment = templates()
    assert environment.autoescape is True
    assert environment.from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"
    with pytest.raises(Exception, match="undefined"):
        environment.from_string("{{ nothing }}").render()


# --- the process ---


def test_it_prints_one_line_that_logs_in_and_ends_within_two_seconds_with_listeners_connected():
    with web_server() as web:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/login\?t=[\w-]{40,}", web.login_url)
        cookie = web.log_in()
        status, _, body = web.ask("GET", "/activity", Cookie=cookie)
        assert (status, b"Log out" in body) == (200, True)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)) as listener:
            listener.request("GET", "/events", headers={"Cookie": cookie})
            assert listener.getresponse().status == 200
            web.process.terminate()
            assert web.process.wait(2) == 0
        out, err = web.process.communicate()
        assert (out, err) == ("", "")


def test_ctrl_c_ends_it_too():
    with web_server() as web:
        assert web.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_an_address_that_others_reach_needs_tokens_or_the_word_for_it(host):
    ended = _run("web", "--host", host, "--port", "0")
    assert ended.returncode == 2
    assert "--new-token" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_port_that_is_taken_is_said_in_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = _run("web", "--port", str(taken.getsockname()[1]))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "--port" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_new_token_and_the_line_for_the_settings_work_together(own_project):
    ended = _run("web", "--new-token", "ci", "viewer")
    assert ended.returncode == 0
    token, line = ended.stdout.splitlines()
    (own_project / "config" / "jarvis.yaml").write_text(f"{line}\n")
    with web_server() as web:
        assert web.ask("GET", "/api/audit", Authorization=f"Bearer {token}")[0] == 200
        assert web.ask("GET", "/api/audit", Authorization="Bearer other")[0] == 401
    assert _run("web", "--new-token", "ci", "king").returncode == 2


def test_a_head_without_an_end_is_cut_off():
    with web_server() as web, socket.create_connection(("127.0.0.1", web.port), timeout=20) as connection:
        connection.sendall(b"GET /login HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        said = b""
        with contextlib.suppress(ConnectionError):
            for number in range(2 * HEAD_MAX // 1_000):
                connection.sendall(f"X-{number}: {'x' * 1_000}\r\n".encode())
            while piece := connection.recv(65_536):
                said += piece
        assert b" 200 " not in said
        assert web.ask("GET", "/login")[0] == 200


def test_who_goes_away_in_the_middle_of_a_request_leaves_no_trace():
    with web_server() as web:
        for path in ("/ofrep/v1/evaluate/flags", "/sessions/end", "/logout"):
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\nCookie: {web.log_in()}\r\n"
            with socket.create_connection(("127.0.0.1", web.port), timeout=20) as connection:
                connection.sendall(f"{head}Sec-Fetch-Site: none\r\n\r\nhalf".encode())
        assert web.ask("GET", "/login")[0] == 200
        web.process.terminate()
        assert web.process.communicate(timeout=20) == ("", "")


def test_who_logged_out_hears_of_nothing_any_more(flag_file):
    flag_file("flags: {A: {enabled: false}}\n")
    with web_server() as web:
        cookie = web.log_in()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)) as listener:
            listener.request("GET", "/events", headers={"Cookie": cookie})
            stream = listener.getresponse()
            assert stream.readline().startswith(b":")
            assert web.ask("POST", "/logout", Cookie=cookie, Origin=web.url)[0] == 303
            flag_file("flags: {A: {enabled: true}}\n")
            assert stream.read().strip() == b""


def test_an_edit_of_the_flag_file_gets_into_the_audit(own_project, flag_file):
    flag_file("flags: {A: {enabled: false}}\n")
    with web_server() as web:
        cookie = web.log_in()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)) as listener:
            listener.request("GET", "/events", headers={"Cookie": cookie})
            stream = listener.getresponse()
            assert stream.readline().startswith(b":")
            flag_file("flags: {A: {enabled: true}}\n")
            while not (line := stream.readline()).startswith(b"data:"):
                assert line
            assert json.loads(line.removeprefix(b"data:"))["flags"] == ["A"]
        deadline = time.monotonic() + 20
        while True:
            told = json.loads(web.ask("GET", "/api/audit?outcome=written", Cookie=cookie)[2])
            if told["entries"] or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        [entry] = told["entries"]
        assert (entry["who"], entry["flag"], entry["new"]) == ("file", "A", {"enabled": True})


# --- what comes with it ---


def test_the_scripts_of_others_are_those_of_the_manifest_and_their_licences_stand_beside_them():
    ended = subprocess.run([ROOT / "scripts" / "vendor", "--check"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    vendor = STATIC_DIR / "vendor"
    listed = {line.split()[1] for line in (vendor / "SHA256SUMS").read_text().splitlines()}
    assert {path.name for path in vendor.iterdir()} == {*listed, "SHA256SUMS"}
    for name in ("htmx", "uPlot"):
        assert "permission" in (vendor / f"{name}.LICENSE.txt").read_text().lower()


def test_static_files_are_kept_by_browsers_by_their_hash_and_need_no_login(site):
    with visitor(site, role=None) as client:
        page = client.get("/login").text
        styles = re.search(r'href="(/static/jarvis.css\?v=\w+)"', page)[1]
        answer = client.get(styles)
        assert (answer.status_code, "immutable" in answer.headers["cache-control"]) == (200, True)
        assert client.get("/static/jarvis.css").headers["cache-control"] == "no-cache"
        for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/"):
            assert client.get(path).status_code in (303, 404)


def _run(*arguments):
    command = [sys.executable, "-W", "error", "-m", "jarvis_otel.cli.main", *arguments]
    env = {**os.environ, "OTEL_LOGS_EXPORTER": "none"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
