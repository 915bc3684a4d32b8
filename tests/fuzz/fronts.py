"""What people and programs send to the front ends: web pages, the JSON API, OFREP, the bot; and what etcd answers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import html
import json
import os
import re
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from jarvis_flags.overrides import OverrideError, OverrideSet
from jarvis_otel import FeatureFlagManager
from jarvis_otel.admin.author import Role
from jarvis_otel.etcd.client import EtcdError, WatchStream, b64
from jarvis_otel.etcd.keys import Keys, flags_of
from jarvis_otel.query.errors import QueryError
from jarvis_otel.settings import Settings
from jarvis_otel.telegram import texts
from jarvis_otel.telegram.desk import Ask, Desk, Sent, Tapped
from jarvis_otel.telegram.people import People
from jarvis_otel.web.app import create_app
from jarvis_otel.web.flags_changes import ACTIONS, Asked
from jarvis_otel.web.flags_rows import Wanted
from jarvis_otel.web.flags_who import Asking
from jarvis_otel.web.links import Links
from jarvis_otel.web.log_pages import Place
from jarvis_otel.web.security import cookie_name, own_path
from jarvis_otel.web.sessions import Identity, Sessions
from tests.bot_api import check_keyboard, plain_text
from tests.fuzz.files import DAY, LINES
from tests.fuzz.properties import Family, as_json, as_text, one_line, scratch
from tests.telegram_bots import ANN, FLAGS
from tests.web_sites import make_site

FAMILY = Family("fronts")


# --- web ---


@functools.cache
def site() -> Any:
    home = scratch() / "web"
    made = make_site(home)
    made.settings.log_dir.mkdir(parents=True, exist_ok=True)
    (made.settings.log_dir / f"jarvis-{DAY}.jsonl").write_bytes(b"\n".join(LINES) + b"\n")
    return made


@functools.cache
def served() -> tuple[Any, Any, str]:
    return asyncio.new_event_loop(), create_app(site()), site().sessions.begin(Identity("web:ann", Role.ADMIN))


def ask(
    method: str, path: str, query: bytes, headers: dict[bytes, bytes], body: bytes
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body that the application gives for a request."""
    loop, app, _ = served()
    sent: list[dict[str, Any]] = []
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return pending.pop() if pending else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path, "raw_path": quote(path).encode(),
        "query_string": query, "root_path": "", "headers": list(headers.items()), "client": ("127.0.0.1", 5), "server": ("127.0.0.1", site().port),
    }  # fmt: skip
    loop.run_until_complete(app(scope, receive, send))
    return sent[0]["status"], sent[0]["headers"], b"".join(message.get("body", b"") for message in sent[1:])


HEADERS = {b"sec-fetch-site": b"same-origin", b"content-type": b"application/x-www-form-urlencoded"}
REQUESTS = [
    "GET /flags\0q=a&state=on&page=2\0\0",
    "GET /flags/PLAIN\0who=1&users=a%0Ab&attributes=x%3D5\0\0",
    "GET /logs\0where=a%3D1&level=ERROR&since=-1h&before=2026-01-18.5.0\0\0",
    "GET /logs\0search=%3Cfuzz%3E\0hx-request: true\0",
    "GET /trace/u1\0page=1\0\0",
    "GET /activity\0who=x&page=1\0\0",
    "GET /health\0\0accept: application/json\0",
    "GET /login\0l=x&next=//evil.example\0\0",
    "POST /login\0\0\0token=x&next=/\\evil",
    "POST /flags/PLAIN/enable\0\0\0reason=x&percent=5&lasts=1h",
    "POST /flags/PART/rollout\0\0origin: http://[\0percent=nan&reason=%ff",
    'POST /ofrep/v1/evaluate/flags/PLAIN\0\0content-type: application/json\0{"context": {"targetingKey": "u"}}',
    'POST /ofrep/v1/evaluate/flags\0\0content-type: application/json\nif-none-match: W/"x", *\0{"context": {"a": [1]}}',
    'POST /api/flags/PLAIN/disable\0\0content-type: application/json\0{"reason": 5, "lasts": 1e400}',
    "GET /api/flags\0limit=x\0authorization: Bearer x\0",
    "GET /impact\0flag=PLAIN&since=-1d\0\0",
    'POST /flags/PLAIN/preview\0\0content-type: multipart/form-data; boundary=x\0--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n5\r\n--x--',
]  # fmt: skip


@FAMILY.add(seeds=REQUESTS, words=[*(request.split("\0")[0].encode() for request in REQUESTS), b"\0", b"&", b"=", b"%00", b"%ff", b"<fuzz>", b"reason=", b"percent=", b"lasts=", b"expected=", b"confirm=", b"typed=", b"next=", b"l=", b"cookie: ", b"origin: ", b"sec-fetch-site: cross-site", b"host: ", b"accept: application/json", b"hx-request: true", b'{"context":{', b'"targetingKey":', b"\xff"])  # fmt: skip
def web_request(data: bytes) -> None:
    """No request makes a page fail; nothing that was sent stands in a page as markup, or in a header as another one."""
    line, _, rest = data.partition(b"\0")
    query, _, rest = rest.partition(b"\0")
    lines, _, body = rest.partition(b"\0")
    method, _, path = line.decode("utf-8", "replace").partition(" ")
    if (
        method not in ("GET", "HEAD", "POST", "OPTIONS")
        or not path.startswith("/")
        or path.startswith(("/events", "/logs/tail", "/ofrep/v1/events"))
    ):
        return
    host = f"127.0.0.1:{site().port}".encode()
    headers = {
        b"host": host,
        b"cookie": f"{cookie_name(site())}={served()[2]}".encode(),
        b"content-length": str(len(body)).encode(),
        **HEADERS,
    }
    for each in lines.split(b"\n")[:20]:
        name, colon, value = each.partition(b":")
        if colon and re.fullmatch(rb"[a-z-]+", name) and name != b"content-length":
            headers[name] = value.strip(b" \r\0")
    status, answered, content = ask(method, path, query.replace(b"#", b""), headers, body)
    assert status < 500 or status == 503, content
    for name, value in answered:
        assert b"\n" not in name + value
        assert b"\r" not in name + value
        if name == b"location":
            assert value.startswith(b"/"), value
            assert not value.startswith((b"//", b"/\\")), value
    kinds = [value for name, value in answered if name == b"content-type"]
    if kinds and kinds[0].startswith(b"text/html"):
        assert b"<fuzz>" not in content
    elif kinds and kinds[0].startswith(b"application/json") and content:
        orjson.loads(content)


@FAMILY.add(seeds=["enable\0" + json.dumps({"reason": "x", "lasts": "1h", "variant": "a"}), "rollout\0" + json.dumps({"percent": "5%"}), "rollout\0" + json.dumps({"percent": 1e308, "lasts": 5}), "revert\0" + json.dumps({"revision": "٣"}), "disable\0" + json.dumps({"lasts": [], "reason": {}})], words=[b"enable\0", b"rollout\0", b"disable\0", b"revert\0", b'{"percent":', b'"lasts":', b'"revision":', b'"reason":', b'"expected":', b'"1h"', b'"99999999999d"', b"1e308", b"NaN", b"true"])  # fmt: skip
def asked_change(data: bytes) -> None:
    """The fields of a change are understood or refused by name; nothing in them holds up what turns off."""
    name, _, body = data.partition(b"\0")
    fields = as_json(body)
    if not isinstance(fields, dict):
        return
    refused: set[str] = set()
    for action in (as_text(name), *ACTIONS):
        try:
            asked = Asked.of(action, fields)
        except ValueError as error:
            one_line(error, data)
            refused.add(action)
            continue
        assert asked.lasts is None or 0 < asked.lasts < 2**40
        assert asked.percent is None or 0 <= asked.percent <= 100
        assert asked.revision is None or asked.revision >= 0
    assert "disable" not in refused


@FAMILY.add(seeds=["q\0a b", "users\0a,b\nc", "attributes\0x=5\ny", "page\0" + "9" * 30, "before\0" + "2026-01-18.1024.0"], words=["q\0", "users\0", "attributes\0", "page\0", "sort\0changed", "state\0on", "=", ",", "\n", "[", "{", "&a", "*a", "!!float 0x1", "2026-01-18.", ".0"])  # fmt: skip
def page_fields(data: bytes) -> None:
    """The fields of the pages' forms mean something or nothing."""
    name, _, value = as_text(data).partition("\0")
    wanted = Wanted.of({name: value})
    assert 1 <= wanted.page < 10**8
    asking = Asking.of({name: value, "attributes": value})
    assert len(asking.users) <= 200
    assert len(asking.attributes) <= 50
    with contextlib.suppress(QueryError):
        assert str(Place.parse(value)) is not None
    target = own_path(value)
    assert target.startswith("/")
    assert not target.startswith(("//", "/\\"))
    assert target.isprintable()


@FAMILY.add(seeds=["", "x", "../../x", "a" * 500, "\0", '{"who":"web:eve","role":"admin","until":9e99}'], words=['{"who":"web:eve"', '"role":"admin"', '"until":1e300}', "..", "/", "\0"])  # fmt: skip
def cookies_and_links(data: bytes) -> None:
    """A made-up cookie or link is nobody's, whatever stands in it and in the files of links."""
    sessions = Sessions(lambda: 0.0)
    real = sessions.begin(Identity("web:ann", Role.ADMIN))
    text = as_text(data)
    assert (sessions.find(text) is None) is (text != real)
    assert sessions.find(real) is not None
    sessions.end(text)
    links = Links(scratch())
    assert links.redeem(text) is None
    token = links.make("tg:5", Role.VIEWER)
    (path,) = (scratch() / "web" / "links").iterdir()
    path.write_bytes(data)
    found = links.redeem(token)
    assert found is None or isinstance(found, Identity)
    assert list((scratch() / "web" / "links").iterdir()) == []


# --- Telegram ---


@functools.cache
def desk() -> Desk:
    home = scratch() / "bot"
    (home / "config").mkdir(parents=True)
    (home / "config" / "flags.yaml").write_text(FLAGS)
    environ = {
        "JARVIS_HOME": str(home),
        "JARVIS_TELEGRAM_ADMINS": str(ANN),
        "JARVIS_FLAGS_FILE": str(home / "config" / "flags.yaml"),
    }
    before = dict(os.environ)
    os.environ.update(environ)
    try:
        manager = FeatureFlagManager(str(home / "config" / "flags.yaml"))
        return Desk(manager.admin, People(Settings.load(environ)))
    finally:
        os.environ.clear()
        os.environ.update(before)


COMMANDS = (
    "flags",
    "flag",
    "flag_history",
    "flag_enable",
    "flag_disable",
    "flag_toggle",
    "flag_rollout",
    "flag_reset",
    "errors",
    "trace",
    "start",
    "nonsense",
)


@FAMILY.add(
    seeds=[*(f"{name}\0PLAIN because x" for name in COMMANDS), "flag_rollout\0UI 5% because x", "flag_rollout\0UI nan x", "errors\0-5h", "errors\0--help", "trace\0--output=x", "trace\0-x", "trace\0a\0b", "errors\0\x1b", "tap\0f:1:PLAIN", "tap\0l:all:99999999999999999999", "tap\0c:abc", "tap\0\u0660:\u0661", "reply\0abc\0why"],
    words=[*(name.encode() + b"\0" for name in COMMANDS), b"tap\0", b"reply\0", b"PLAIN", b"LIVE", b"UI", b"BOTH", b" because ", b":", b"l:", b"f:", b"h:", b"0:", b"1:", b"r:", b"c:", b"x:", b"a:", b"d:", b"--", b"1d", b"5%", b"nan", b"1e9", b"<b>", b"&amp;"],
)  # fmt: skip
def telegram(data: bytes) -> None:
    """Whatever somebody sends or a button carries, the answer is a message that Telegram takes, or silence."""
    name, _, rest = as_text(data).partition("\0")
    for person in (ANN, 7):
        me = Sent(person, private=True)
        if name == "tap":
            made: Any = desk().tap(me, rest[:64])
        elif name == "reply":
            made = desk().reply(me, rest.partition("\0")[0], rest.partition("\0")[2])
        else:
            made = desk().command(me, name, rest)
        if callable(made):
            made = made("") if name == "tap" else made()
        assert made is None or person == ANN or isinstance(made, texts.Page | Tapped)
        if isinstance(made, Ask):
            for command in made.commands:
                options = command[: command.index("--")] if "--" in command else command
                assert all(argument.isprintable() for argument in command)
                assert rest.strip() not in options or not rest.strip().startswith("-"), command
        pages = (
            [made] if isinstance(made, texts.Page) else [made.page] if isinstance(made, Tapped) and made.page else []
        )
        for page in pages:
            assert len(plain_text(page.html).encode("utf-16-le", "surrogatepass")) // 2 <= 4096
            page.html.encode()
            rows = [[{"text": button.label, "callback_data": button.data} for button in row] for row in page.buttons]
            check_keyboard({"inline_keyboard": rows})
        if isinstance(made, Tapped):
            assert len(made.toast) <= 200
    texts.question_in(html.unescape(rest))


# --- etcd ---

KEYS = Keys("/jarvis/")
STATE = orjson.dumps({**orjson.loads(OverrideSet().to_bytes()), "lines": 5, "head": "x"})
ANSWER = {
    "header": {"cluster_id": "1", "revision": "5"},
    "kvs": [
        {"key": b64(KEYS.state), "value": b64(STATE), "mod_revision": "4"},
        {"key": b64(KEYS.lasts("A")), "value": b64("60"), "lease": "7"},
    ],
}


@FAMILY.add(
    seeds=[json.dumps(ANSWER), json.dumps({"result": {"events": [{"kv": ANSWER["kvs"][0]}], "header": ANSWER["header"]}}) + "\n{}", json.dumps({"message": "proxy"}), json.dumps({"error": "x", "code": "y"})],
    words=[b'{"result":{', b'"events":[{"kv":', b'"type":"DELETE"', b'"header":{', b'"cluster_id":"1"', b'"revision":"5"', b'"kvs":[{', b'"key":"', b'"value":"', b'"mod_revision":"', b64(KEYS.state).encode(), b64(KEYS.lasts("A")).encode(), b"1e400", b"\n", b"=", b"null", b'"error":"', b'"code":'],
)  # fmt: skip
def etcd(data: bytes) -> None:
    """An answer of etcd is understood or refused with our own errors; so is each of a watch."""
    answer = as_json(data)
    if isinstance(answer, dict):
        with contextlib.suppress(EtcdError, OverrideError):
            shared = flags_of(answer, KEYS)
            assert OverrideSet.from_bytes(shared.state()) == shared.overrides
            now = shared.on_this_clock(None, 0.0, lambda _: None)
            assert now.overrides.keys() <= shared.overrides.overrides.keys()
    with contextlib.suppress(EtcdError):
        for result in WatchStream(httpx.Response(200, content=data), "http://etcd"):
            assert isinstance(result, dict)
