"""Debian's Chromium, driven by Playwright: what it complains of on the way fails the test.

A test that wants it carries `@pytest.mark.real`. Where Chromium is missing the test is skipped, on CI it fails.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.web_servers import web_server

ARGUMENTS = [
    "--no-sandbox",  # as root, Chromium does not start with it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
});
"""


def chromium_path():
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        missing = "needs Chromium: apt install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@contextlib.contextmanager
def chromium():
    """A running browser."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def clean_page(browser, **context):
    """A page of its own; at the end nothing may have been complained of: console errors, exceptions, CSP, other hosts."""
    complaints = []
    own = browser.new_context(**context)
    own.add_init_script(_VIOLATIONS)
    page = own.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if re.match(r"(http://127\.0\.0\.1:|data:|blob:)", request.url)
            else complaints.append(f"asked another host: {request.url}")
        ),
    )
    try:
        yield page
        complaints += page.evaluate("window.violations || []")
    finally:
        own.close()
    assert not complaints, complaints


def serious_faults(page):
    """What axe-core finds on the page as it stands, that is serious or critical: one line each."""
    import axe_playwright_python

    page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    return [
        f"{fault['impact']} {fault['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@contextlib.contextmanager
def jarvis_web(*arguments, **environment):
    """`jarvis web` as a process of its own; gives its login URL."""
    with web_server(*arguments, **environment) as server:
        yield server.login_url
