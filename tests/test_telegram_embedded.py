"""The flag commands inside a bot that there is: beside its own handlers, with its logs and spans."""

import asyncio
import contextlib
import io
import logging
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from telegram.error import InvalidToken
from telegram.ext import ApplicationBuilder, CommandHandler
from telegram.request import HTTPXRequest

from jarvis_otel import FeatureFlagManager
from jarvis_otel.redaction import Redactor
from jarvis_otel.settings import Settings
from jarvis_otel.span_redaction import RedactingSpanExporter
from jarvis_otel.telegram import add_flag_handlers
from tests.bot_api import TOKEN, bot_api
from tests.telegram_bots import ANN, BOB, FLAGS, STRANGER, audit, overrides

SECRET = TOKEN.partition(":")[2]


@pytest.fixture
def api():
    with bot_api() as api:
        api.know(ANN, BOB)
        yield api


@pytest.fixture
def application(api, flag_file, monkeypatch):
    """Makes an Application, as somebody's own bot has it."""
    flag_file(FLAGS)
    monkeypatch.setenv("JARVIS_TELEGRAM_ADMINS", f"{ANN},{BOB}")

    def build(**options):
        builder = ApplicationBuilder().token(TOKEN).base_url(api.url)
        for name, value in options.items():
            builder = getattr(builder, name)(value)
        return builder.build()

    return build


def run(application, script, *, hooks=False):
    """Runs an application until a script, in a thread of its own, has come to its end."""

    async def main():
        async with application:
            if hooks and application.post_init:
                await application.post_init(application)
            await application.start()
            await application.updater.start_polling(timeout=1)
            try:
                await asyncio.to_thread(script)
            finally:
                with contextlib.suppress(InvalidToken):  # it was revoked
                    await application.updater.stop()
                await application.stop()
                if hooks and application.post_stop:
                    await application.post_stop(application)

    asyncio.run(main())


@pytest.fixture
def manager(application):
    manager = FeatureFlagManager("config/flags.yaml", service="app")
    yield manager
    manager.close()


def test_a_bot_keeps_its_own_commands_help_and_error_handler(api, application, manager, own_project, caplog):
    app = application()
    seen, errors, hooks = [], [], []

    async def own(update, context):
        seen.append(update.message.text)
        if update.message.text == "/help":
            raise RuntimeError("the application's own")

    async def on_error(update, context):
        errors.append(str(context.error))

    async def hook(_):
        hooks.append("hook")

    app.add_handler(CommandHandler(["help", "flags", "own"], own))
    app.add_error_handler(on_error)
    app.post_init = app.post_stop = hook
    add_flag_handlers(app, admin=manager.admin, settings=Settings.load())

    def script():
        api.wait(lambda: api.menus)
        for text in ("/own", "/help", "/flags"):
            api.say(ANN, text)
        api.said(ANN, "Feature flags")
        api.asked(ANN, "/flag_help", "/flag_panic")
        api.asked(ANN, "/flag_disable UI because embedded", "UI is off for everyone")
        api.say(STRANGER, "/own")
        # an audit that somebody wrote into breaks ours, and nothing else
        line = (own_project / "var/flags/audit.jsonl").read_bytes().replace(b'"at":"2', b'"at":"x')
        with (own_project / "var/flags/audit.jsonl").open("ab") as file:
            file.write(line)
        api.asked(ANN, "/flags", "Something went wrong")
        api.asked(ANN, "/flag_disable PLAIN", "PLAIN is off for everyone")
        api.wait(lambda: len(seen) == 5)

    run(app, script, hooks=True)
    assert seen == ["/own", "/help", "/flags", "/own", "/flags"]
    assert errors == ["the application's own"]
    assert hooks == ["hook", "hook"]
    assert "start" in api.menus[ANN], "the menu of the application is still there"
    assert overrides(own_project)["UI"]["state"] == "off"
    assert not api.texts(STRANGER)
    assert "own handled" not in caplog.text


def test_handlers_begin_what_runs_beside_them_with_the_first_update_where_nobody_began_it(
    api, application, manager, own_project
):
    app = application(concurrent_updates=True)
    ours = add_flag_handlers(app, admin=manager.admin)

    def script():
        for number in range(1, 16):
            api.say(ANN, f"/flag_rollout UI {number}")
        api.wait(lambda: len(api.texts(ANN)) == 15)
        api.wait(lambda: ANN in api.menus)
        api.asked(ANN, "/flag_enable BOTH because x", "takes 2 different people")
        page = api.said(BOB, "wants BOTH")
        api.tap(BOB, page, "Approve")
        api.wait(lambda: "approved by tg:102" in page["text"])

    async def main():
        async with app:
            await app.start()
            await app.updater.start_polling(timeout=1)
            await asyncio.to_thread(script)
            await app.updater.stop()
            await app.stop()
            await ours.stop()

    asyncio.run(main())
    percentages = [entry["new"]["percentage"] for entry in audit(own_project) if entry["action"] == "rollout"]
    assert percentages == list(range(1, 16)), "one after the other, in their order, also in a concurrent application"


BOT = """
import sys
from telegram.ext import ApplicationBuilder
from jarvis_otel.telegram import add_flag_handlers

application = ApplicationBuilder().token(sys.argv[1]).base_url(sys.argv[2]).build()
add_flag_handlers(application)
application.run_polling(timeout=1)
"""


def test_the_example_of_the_docs_needs_no_more_than_its_two_lines(api, application, own_project):
    process = subprocess.Popen([sys.executable, "-c", BOT, TOKEN, api.url], stderr=subprocess.PIPE, text=True)
    try:
        api.wait(lambda: ANN in api.menus, 60)
        api.asked(ANN, "/flag_disable UI because it blinks", "UI is off for everyone")
        process.terminate()
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, said) == (0, "")
    assert overrides(own_project)["UI"]["state"] == "off"


def test_the_token_is_in_no_log_line_of_any_library_and_in_no_span(api, application, manager, monkeypatch):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    before = root.level
    spans = InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(RedactingSpanExporter(spans, Redactor())))
    tracer = tracing.get_tracer("httpx")

    async def on_request(request):
        # as an instrumentation of the HTTP client does it
        with tracer.start_as_current_span(f"POST {request.url}") as span:
            span.set_attribute("url.full", str(request.url))
            span.record_exception(RuntimeError(f"no answer of {request.url}"))

    options = {"httpx_kwargs": {"event_hooks": {"request": [on_request]}}}
    app = application(request=HTTPXRequest(**options), get_updates_request=HTTPXRequest(**options))
    monkeypatch.setenv("JARVIS_WEB_URL", "https://jarvis.example")
    add_flag_handlers(app, admin=manager.admin)
    links = []

    def script():
        api.asked(ANN, "/flags", "Feature flags")
        links.append(api.asked(ANN, "/web", "/login?l=")["text"].partition("?l=")[2])
        api.revoke()
        api.wait(lambda: "was rejected" in stream.getvalue() or "Invalid token" in stream.getvalue())

    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        run(app, script)
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
    said = stream.getvalue()
    assert "HTTP Request: POST" in said, "the record itself is still there"
    assert SECRET not in said
    assert "login?l=" in said
    assert links[0] not in said
    shown = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "getUpdates" in shown
    assert SECRET not in shown
