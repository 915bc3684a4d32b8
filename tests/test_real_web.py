"""The web page's own parts in a real browser, and OpenFeature's OFREP client for browsers against the relay."""

import contextlib
import functools
import os
import subprocess
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jarvis_collector.access import token_digest
from jarvis_flags.source import FileSource
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.file_store import FileStore
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.settings import Settings
from tests.browser import ARGUMENTS, chromium_path, clean_page, jarvis_web, serious_faults

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[1]
FLAGS = """\
flags:
  PLAIN: {description: A plain flag, enabled: false}
  TWO: {description: Takes two people, enabled: false, approvals: 2}
  HALF: {enabled: true, rules: [{type: percentage, value: 50}]}
  COLOR: {variants: {red: "#f00", blue: "#00f"}, default: blue}
  GONE: {status: disabled}
"""
PAGE = """\
<!doctype html><title>an application</title><link rel="icon" href="data:,">
<script type="importmap">{"imports": {
  "@openfeature/web-sdk": "./web-sdk.js", "@openfeature/core": "./core.js",
  "@openfeature/ofrep-core": "./ofrep-core.js", "@openfeature/ofrep-web-provider": "./ofrep-web-provider.js"
}}</script>
<script type="module">
import { OpenFeature, ProviderEvents } from "@openfeature/web-sdk";
import { OFREPWebProvider } from "@openfeature/ofrep-web-provider";
const asked = new URLSearchParams(location.search);
const headers = asked.has("token") ? [["Authorization", `Bearer ${asked.get("token")}`]] : [];
// no polling: what changes is heard of on the stream alone
const provider = new OFREPWebProvider({ baseUrl: asked.get("relay"), pollInterval: 0, headers });
const client = OpenFeature.getClient();
window.changed = [];
client.addHandler(ProviderEvents.ConfigurationChanged, (event) => window.changed.push(...(event.flagsChanged ?? [])));
await OpenFeature.setProviderAndWait(provider, { targetingKey: "user-1" });
window.client = client;
</script>
"""


@pytest.fixture
def admin(own_project, flag_file):
    flag_file(FLAGS)
    settings = Settings.load().flags
    return FlagAdmin(FileSource(settings), FileStore(settings.flags_state_dir))


@contextmanager
def application():
    """An application on another origin, whose page uses the client; gives that origin."""
    fetched = subprocess.run(
        [ROOT / "scripts" / "ofrep-web", "--cached"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not fetched:
        missing = "OpenFeature's OFREP client for browsers is not here: make real-ofrep-web"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith("/?"):
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE.encode())
            return None

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=fetched))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("token", ["", "secret-of-the-app"])
def test_openfeatures_client_for_browsers_evaluates_and_hears_of_changes(browser, admin, own_project, token):
    if token:
        line = f'web_tokens: {{app: "sha256:{token_digest(token)} viewer"}}\n'
        (own_project / "config" / "jarvis.yaml").write_text(line)
    with application() as origin, jarvis_web(JARVIS_WEB_CORS_ORIGINS=origin, OTEL_LOGS_EXPORTER="none") as url:
        relay = url.partition("/login")[0]
        with clean_page(browser) as page:
            page.goto(f"{origin}/?relay={relay}{f'&token={token}' if token else ''}")
            page.wait_for_function("window.client")
            details = page.evaluate(
                "['PLAIN', 'HALF', 'GONE'].map((key) => window.client.getBooleanDetails(key, true))"
            )
            snapshot = admin.source.snapshot
            half = snapshot.evaluate("HALF", snapshot.request(user_id="user-1"))
            assert [one["value"] for one in details] == [False, half.value, False]
            assert [one["reason"] for one in details] == ["STATIC", half.reason, "DISABLED"]
            assert page.evaluate("window.client.getStringValue('COLOR', '')") == "#00f"
            assert page.evaluate("window.client.getBooleanDetails('NONE', true).errorCode") == "FLAG_NOT_FOUND"
            admin.enable("PLAIN", Author("ann", "web"))
            page.wait_for_function("window.changed.includes('PLAIN')")
            assert page.evaluate("window.client.getBooleanValue('PLAIN', false)") is True
            admin.disable("PLAIN", Author("ann", "web"))
            page.wait_for_function("window.client.getBooleanValue('PLAIN', true) === false")


def test_a_page_of_an_origin_that_nobody_allowed_gets_no_flag(browser, admin):
    with application() as origin, jarvis_web(OTEL_LOGS_EXPORTER="none") as url:
        page = browser.new_page()
        page.goto(f"{origin}/?relay={url.partition('/login')[0]}")
        page.wait_for_timeout(1_000)
        assert page.evaluate("window.client === undefined")
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_login_activity_and_health_are_accessible_and_fit(browser, admin, scheme, width):
    admin.enable("TWO", Author("bob", "cli", "please"))
    admin.disable("PLAIN", Author("<b>bob</b>", "cli", "x" * 300))
    with jarvis_web(OTEL_LOGS_EXPORTER="none") as url:
        base = url.partition("/login")[0]
        with clean_page(browser, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
            page.goto(f"{base}/activity")
            assert page.get_by_label("Token").is_visible()
            assert serious_faults(page) == []
            page.goto(f"{url}&next=/activity")
            for path in ("/activity", "/health"):
                page.goto(base + path)
                assert serious_faults(page) == []
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_link_on_another_sites_page_leads_in_for_who_is_logged_in(browser, admin):
    with application() as origin, jarvis_web(OTEL_LOGS_EXPORTER="none") as url:
        base = url.partition("/login")[0].replace("127.0.0.1", "localhost")
        context = browser.new_context()
        page = context.new_page()
        page.goto(url.replace("127.0.0.1", "localhost"))
        page.goto(f"{origin}/?relay=http://127.0.0.1:1")
        page.evaluate(f"location.href = '{base}/activity'")
        page.wait_for_url(f"{base}/activity")
        page.get_by_role("heading", name="Activity").wait_for()
        context.close()


def test_over_plain_http_by_a_name_forms_work_though_the_browser_says_less_of_where_they_come_from(browser, admin):
    admin.enable("PLAIN", Author("bob", "cli", "please"))
    arguments = [*ARGUMENTS, "--host-resolver-rules=MAP jarvis.internal 127.0.0.1"]
    with (
        jarvis_web(JARVIS_WEB_HOSTS="jarvis.internal", OTEL_LOGS_EXPORTER="none") as url,
        contextlib.closing(browser.browser_type.launch(executable_path=chromium_path(), args=arguments)) as other,
    ):
        page = other.new_context(java_script_enabled=False).new_page()
        page.goto(url.replace("127.0.0.1", "jarvis.internal"))
        page.goto(f"{page.url}/PLAIN")
        page.get_by_role("button", name="Turn off now").click()
        page.get_by_text("PLAIN is off for everyone").wait_for()
    assert admin.source.reload().overrides.overrides["PLAIN"].state == "off"


def test_a_request_is_approved_by_keyboard_alone_and_without_javascript(browser, admin):
    admin.enable("TWO", Author("bob", "cli", "please"))
    with jarvis_web(OTEL_LOGS_EXPORTER="none") as url:
        with clean_page(browser) as page:
            page.goto(f"{url}&next=/activity")
            page.get_by_label("Reason").focus()
            page.keyboard.type("looks right")
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
            page.get_by_text("approved by web:").first.wait_for()
        with clean_page(browser, java_script_enabled=False) as page:
            page.goto(f"{url}&next=/activity")
            assert page.get_by_role("button", name="Approve").count() == 0
            page.get_by_role("button", name="Log out").click()
            page.get_by_role("heading", name="Log in").wait_for()
    assert admin.source.reload().overrides.overrides["TWO"].state == "on"


def test_what_others_wrote_is_inert(browser, admin):
    evil = ['<img src=x onerror="window.hit=1">', "<script>window.hit=1</script>", '"><svg onload=window.hit=1>']
    for text in evil:
        admin.disable("PLAIN", Author(text, "web", text))
        admin.enable(text, Author(text, "web", text))
    with jarvis_web(OTEL_LOGS_EXPORTER="none") as url, clean_page(browser) as page:
        page.goto(f"{url}&next=/activity")
        assert page.get_by_text(evil[0]).count() > 0
        assert page.evaluate("window.hit") is None
