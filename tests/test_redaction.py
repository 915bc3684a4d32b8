"""Redaction: no planted secret leaves, what is none stays the very same object, and no text takes long."""

import base64
import hashlib
import json
import random
import re
import string
import time
from statistics import median

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, StatusCode

from jarvis_otel.cli.main import main
from jarvis_otel.encode import clean
from jarvis_otel.redaction import (
    PATHS_MAX,
    SHORTEST,
    Redactor,
    pseudonym,
)
from jarvis_otel.secrets import find_secrets, kind_of_secret
from jarvis_otel.span_redaction import RedactingSpanExporter
from tests.planted import ALNUM, BASE58, BOT_TOKEN, HEX64, KEY58, URL_SAFE

redactor = Redactor()


def of(alphabet, low, high=None):
    return st.text(alphabet=alphabet, min_size=low, max_size=high or low)


def jwt_part(low):
    return of(URL_SAFE, low, low + 60)


def pem(body, end, newline, kind):
    lines = newline.join(body[at : at + 64] for at in range(0, len(body), 64))
    return f"-----BEGIN {kind}PRIVATE KEY-----{newline}{lines}{newline}" + (
        f"-----END {kind}PRIVATE KEY-----" if end else ""
    )


# What a kind looks like in a text, and the part of it that must not survive.
TELEGRAM = st.builds("{}:{}".format, of(string.digits, 8, 10), of(URL_SAFE, 35))
JWT = st.builds("eyJ{}.eyJ{}.{}".format, jwt_part(12), jwt_part(12), jwt_part(20))
PEM = st.builds(
    pem,
    of(ALNUM + "+/", 200, 1600),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\\n"]),
    st.sampled_from(["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "]),
)
SOLANA = of(BASE58, 87, 88)
SHAPED = st.one_of(
    TELEGRAM,
    TELEGRAM.map(lambda token: token.replace(":", "%3A")),
    JWT,
    PEM,
    st.builds("{}{}".format, st.sampled_from(["AKIA", "ASIA"]), of(string.ascii_uppercase + string.digits, 16)),
    st.builds("{}{}".format, st.sampled_from(["ghp_", "gho_", "ghs_"]), of(ALNUM, 36)),
    st.builds("github_pat_{}_{}".format, of(ALNUM, 22), of(ALNUM, 59)),
    st.builds("xox{}-{}-{}".format, st.sampled_from("abprs"), of(string.digits, 12), of(ALNUM, 24)),
    st.builds("{}{}".format, st.sampled_from(["sk_live_", "rk_live_", "sk_test_", "whsec_"]), of(ALNUM, 24, 99)),
    st.builds("{}{}".format, st.sampled_from(["sk-", "sk-proj-", "sk-ant-api03-", "glpat-"]), of(URL_SAFE, 24, 90)),
    st.builds("{}{}".format, st.sampled_from(["npm_", "gsk_", "hf_"]), of(ALNUM, 36)),
    st.builds("AIza{}".format, of(URL_SAFE, 35)),
    SOLANA,
    st.lists(st.integers(0, 255), min_size=64, max_size=64).map(str),
    st.lists(st.integers(0, 255), min_size=64, max_size=64).map(lambda b: json.dumps(b, indent=2)),
    st.lists(st.integers(0, 255), min_size=64, max_size=64).map(lambda b: json.dumps(b, separators=(",", ":"))),
)
BEARER = of(ALNUM + "._~+/=-", 20, 200).map(lambda token: (f"Bearer {token}", token))
URL = st.builds(
    lambda scheme, user, password: (f"{scheme}://{user}:{password}@db.example:5432/x", password),
    st.sampled_from(["postgres", "https", "redis", "mysql+pymysql", "amqp"]),
    st.sampled_from(["", "bob", "svc-account"]),
    of(ALNUM + "!$%^&*+=~._-@", 12, 64),
)
SECRET_NAMES = [
    *("password", "passwd", "mysql_pwd", "DB_PASSWORD", "userPassword", "dbpassword", "old-password", "password2"),
    *("secret", "client_secret", "clientSecret", "SECRET_KEY", "aws_secret_access_key", "webhook_secret"),
    *("api_key", "apiKey", "X-Api-Key", "apikey", "HELIUS_API_KEY", "access_key", "private_key", "privateKey"),
    *("access_token", "refreshToken", "bot_token", "TELEGRAM_BOT_TOKEN", "csrf_token", "session_token", "authToken"),
    *(
        "session_key",
        "wallet_key",
        "keypair",
        "key_pair",
        "keyPair",
        "key-pair",
        "card_number",
        "social_security",
        "jwt",
        "ssn",
        "credit_card",
        "xsrf",
        "csrf",
        "credentials",
    ),
    *("Authorization", "proxy-authorization", "Cookie", "Set-Cookie", "auth", "otp", "bearer"),
    *("mnemonic", "seed_phrase", "recoveryPhrase", "passphrase", "password_hash", "private_key_hex", "keypair_json"),
]
SECRET_VALUE = of(ALNUM + "!$%^*+/~._-", 12, 48).filter(lambda value: len(set(value)) > 3)
NAMED = st.builds(
    lambda form, name, value: (form(name, value), value),
    st.sampled_from(
        [
            lambda name, value: f"{name}={value}",
            lambda name, value: f"{name}: {value}",
            lambda name, value: f"{name} = '{value}'",
            lambda name, value: f"--{name} {value}",
            lambda name, value: f"--{name}={value}",
            lambda name, value: json.dumps({"x": 1, name: value, "y": [2]}),
            lambda name, value: json.dumps({name: value}, separators=(",", ":")),
            lambda name, value: json.dumps(json.dumps({"x": "y", name: value})),
            lambda name, value: json.dumps({"x": {name: {"inner": [value]}}}),
            lambda name, value: repr({"x": 1, name: value}),
            lambda name, value: f"https://host.example/path?x=1&{name}={value}&y=2",
            lambda name, value: f"os.environ['{name}'] = \"{value}\"",
        ]
    ),
    st.sampled_from([name for name in SECRET_NAMES if name != "auth"]),
    SECRET_VALUE,
)
PLANTED = st.one_of(SHAPED.map(lambda secret: (secret, secret)), BEARER, URL, NAMED)
# Around it stands anything, parted by what no secret holds.
GAP = st.sampled_from([" ", "\n", "\t", " (", " é", " | ", "<", " {"])
AROUND = st.text(max_size=60)


def survives(secret, output):
    """Whether the secret, or one half of it, can still be read."""
    half = len(secret) // 2
    rest = re.sub(r"\[redacted [\w.\-]+\]", " ", output)
    return secret[:half] in rest or secret[half:] in rest


@settings(max_examples=1500, deadline=None)
@given(PLANTED, AROUND, GAP, GAP, AROUND)
def test_no_planted_secret_survives_in_a_text_whatever_stands_around_it(planted, before, gap, other_gap, after):
    text, secret = planted
    assume(not survives(secret, f"{before}{gap}{text.replace(secret, '')}{other_gap}{after}"))
    output = redactor.text(f"{before}{gap}{text}{other_gap}{after}")
    assert not survives(secret, output)
    assert "[redacted " in output


@settings(max_examples=300, deadline=None)
@given(PLANTED, AROUND, GAP, GAP, AROUND)
def test_a_second_redaction_finds_nothing_more(planted, before, gap, other_gap, after):
    once = redactor.text(f"{before}{gap}{planted[0]}{other_gap}{after}")
    assert redactor.text(once) == once


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    PLANTED,
    st.recursive(
        st.just("PLANT"),
        lambda inner: st.one_of(
            st.builds(
                lambda left, right, item: [*left, item, *right],
                st.lists(AROUND, max_size=2),
                st.lists(st.integers(), max_size=2),
                inner,
            ),
            st.builds(lambda key, other, item: {other: 1, key: item}, AROUND, AROUND, inner),
            inner.map(lambda item: {"PLANT": item}),
        ),
        max_leaves=3,
    ),
    AROUND,
)
def test_no_planted_secret_survives_in_values_however_deep_nor_in_their_keys(planted, tree, name):
    text, secret = planted

    def plant(value):
        if isinstance(value, dict):
            return {key.replace("PLANT", text): plant(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plant(item) for item in value]
        return text if value == "PLANT" else value

    value = clean(plant(tree))
    assume(not survives(secret, json.dumps([clean(tree), name, text.replace(secret, "")])))
    found = []
    output = redactor.scrub(value, "note", "context.note", found)
    assert not survives(secret, json.dumps(output, ensure_ascii=False))
    assert secret not in json.dumps(found, ensure_ascii=False)
    assert found
    assert all(path.startswith("context.note") for path in found)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(SECRET_NAMES),
    st.one_of(SECRET_VALUE, st.integers(), st.floats(), st.lists(SECRET_VALUE, min_size=1)),
)
def test_what_stands_under_the_name_of_a_secret_is_taken_out_as_a_whole(name, value):
    found = []
    assert redactor.scrub({"a": [{name: value}]}, path="context", found=found) == {"a": [{name: f"[redacted {name}]"}]}
    assert found == [f"context.a[0].{name}"]
    assert redactor.names_secret(name)


@pytest.mark.parametrize("empty", [None, True, False, "", [], {}])
def test_what_is_empty_or_only_yes_or_no_is_no_secret(empty):
    value = {"password": empty}
    assert redactor.scrub(value) is value


@pytest.mark.parametrize(
    ("text", "output"),
    [
        (f"GET https://api.telegram.org/bot{BOT_TOKEN}/getMe", "GET https://api.telegram.org/bot[redacted telegram_token]/getMe"),
        ("postgres://bob:hunter22@db/prod down", "postgres://bob:[redacted url_password]@db/prod down"),
        ("redis://:p@ss@h:6379/0", "redis://:[redacted url_password]@h:6379/0"),
        ("mysql://u:p/w@host/db", "mysql://u:[redacted url_password]@host/db"),
        ("sent Bearer s3cret-value, got 401", "sent Bearer [redacted bearer], got 401"),
        ("Authorization: Basic dXNlcjpwYXNz and more", "Authorization: Basic [redacted Authorization] and more"),
        ("Cookie: a=b; c=d\r\nHost: x", "Cookie: [redacted Cookie]\r\nHost: x"),
        ("curl -H 'Cookie: a=b; c=d' http://x", "curl -H 'Cookie: [redacted Cookie]' http://x"),
        ('{"api_key": "a\\"b", "x": 1}', '{"api_key": "[redacted api_key]", "x": 1}'),
        ("login(user='bob', password='x, y') failed", "login(user='bob', password='[redacted password]') failed"),
        ("a=1,password=hunter2,b=2", "a=1,password=[redacted password],b=2"),
        ("/x?password=hunter2&b=2", "/x?password=[redacted password]&b=2"),
        ("credentials: {user: bob, more: {pw: x}} ok", "credentials: [redacted credentials] ok"),
        ("[('host', 'x'), ('authorization', 'Basic abc')]", "[('host', 'x'), ('authorization', 'Basic [redacted authorization]')]"),
        ("[(b'Set-Cookie', b'sid=1; Path=/')]", "[(b'Set-Cookie', b'[redacted Set-Cookie]')]"),
        ("['psql', '--password', 'hunter2', 'db']", "['psql', '--password', '[redacted password]', 'db']"),
        ("seed phrase: abandon ability able\nnext", "seed phrase: [redacted phrase]\nnext"),
        (f"private key: {HEX64}", "private key: [redacted evm_key]"),
        (f"Loaded wallet {HEX64}", "Loaded wallet [redacted evm_key]"),
        (f"key {KEY58} loaded", "key [redacted solana_key] loaded"),
        (f"keypair {list(range(64))} loaded", "keypair [redacted solana_key] loaded"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY----- tail", "[redacted private_key] tail"),
        ('{"pem": "-----BEGIN PRIVATE KEY-----\\nMIIE"}', '{"pem": "[redacted private_key]}'),
    ],
)  # fmt: skip
def test_only_the_secret_of_a_text_is_replaced_and_its_kind_is_told(text, output):
    assert redactor.text(text) == output


TRACEBACK = """Traceback (most recent call last):
  File "/srv/bot/trading.py", line 123, in execute
    raise InsufficientBalanceError(f"Wallet has {have} SOL, need {need} SOL")
KeyError: 'symbol'
"""
HARMLESS = [
    "Trade executed",
    "Order 17 filled: 1.25 SOL at 142.31 USDC, fee=0.0005",
    "token=SOL from_token: EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v to_token=So11111111111111111111111111111111111111112",
    "wallet 7xKXtg2CW87d97TXJSDpbD5jBkheTqA83TZRuJosgAsU balance 0.5",
    f"tx={KEY58}",
    f'"signature": "{KEY58}", "slot": 5',
    f"https://solscan.io/tx/{KEY58}",
    f"tx hash {HEX64} confirmed",
    f"0x transaction {HEX64}",
    "sha256 " + "0a" * 32,
    "https://localhost:3000/@vite/client and https://host:8443/users/a@b.c",
    "http://user@host/path?session_id=abc&page=2",
    "max_tokens=4096 tokens_used: 17 token_count=5 token_symbol=BONK prompt_tokens: 3",
    "password: invalid",
    "api_key=None, secret: missing, token: ok",
    "password=********",
    "def login(user: str, password: str | None = None)",
    "    client = Client(password=password, api_key=self.api_key)",
    "2026-01-18T14:30:01.123456Z 12:30:45 trace 4bf92f3577b34da6a3ce929d0e0e4736",
    "cache key: user:17, primary key=5, KeyError: 'abc', the bearer of bad news",
    "550e8400-e29b-41d4-a716-446655440000 task-runner-for-the-whole-night-shift",
    str(list(range(63))),
    str(list(range(1000, 1064))),
    "Flag NEW_JWT: on",
    "C:\\keys\\file and a::key::b and secret://vault",
    "x" * 90 + " " + "/very/long/path" * 20,
    base64.b64encode(bytes(range(256))).decode(),
    TRACEBACK * 5,
    json.dumps([{"symbol": "SOL", "price": 1.5, "mint": "So11111111111111111111111111111111111111112"}] * 20),
]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_looks_like_a_secret_and_is_none_stays_the_very_same_object(text):
    assert redactor.text(text) is text


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet=string.ascii_letters + " .,!?'éß漢\n0123456789/", max_size=80))
def test_a_text_without_a_name_or_a_shape_is_the_very_same_object(text):
    assert redactor.text(text) is text


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(HARMLESS)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(st.sampled_from(["symbol", "amount", "trace_id", "items", "mint", "token_count"]), inner),
        ),
    )
)
def test_values_without_secrets_are_the_very_same_object(value):
    found = []
    assert redactor.scrub(value, "order", "context.order", found) is value
    assert found == []


@pytest.mark.parametrize(
    "name",
    [
        *("trace_id", "span_id", "session_id", "session.id", "log.record.uid", "correlation_id", "user_id", "mint"),
        *("token_count", "tokens_used", "token_symbol", "token_address", "max_tokens", "tokenAddress", "output_tokens"),
        *("token", "input_token", "wallet", "wallet_address", "pubkey", "public_key", "signature", "tx_hash", "seed"),
        *("cookies_accepted_at", "password_length", "has_password_expired", "secret_name", "api_key_id", "passed"),
        *("private_key_path", "authorization_status", "author", "authority", "authenticated", "secretary", "keyboard"),
        *("compass", "passenger", "monkey", "key", "keys", "discard", "session", "jarvis.flag.NEW_JWT", "strategy", ""),
    ],
)
def test_a_name_that_only_sounds_like_a_secret_is_none(name):
    assert not redactor.names_secret(name)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        # a coin
        ("token", "SOL", True),
        ("token", "$WIF", True),
        ("token", "dogwifhat", True),
        ("output_token", "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", True),
        ("token", "0x" + "aB" * 20, True),
        ("token", "Wrapped Ether (Wormhole)", True),
        ("token", 17, True),
        ("token", {"symbol": "SOL"}, True),
        # a credential
        ("token", "a1b2c3d4-e5f6-7890", False),
        ("helius_token", hashlib.sha1(b"x").hexdigest(), False),
        # what is public on a chain, and what is not
        ("signature", KEY58, True),
        ("signatures", [KEY58], True),
        ("txHash", KEY58, True),
        ("signature", f"see {KEY58}", False),
        ("note", KEY58, False),
        ("tx_hash", HEX64, True),
        ("block", HEX64, True),
        ("wallet", HEX64, False),
        ("signer", HEX64[2:], False),
        ("wallet", "7xKXtg2CW87d97TXJSDpbD5jBkheTqA83TZRuJosgAsU", True),
        ("data", list(range(64)), False),
        ("data", tuple(range(64)), False),
        ("data", list(range(65)), True),
        ("data", list(range(200, 264)), True),
        # a person's address, and the name and value of a header or an option apart
        ("ip_address", "10.0.0.1", False),
        ("X-Forwarded-For", "10.0.0.1", False),
        ("headers", [["host", "x"], ["authorization", "y"]], False),
        ("headers", [{"name": "Cookie", "value": "y"}], False),
        ("args", ["psql", "--password", "y"], False),
        ("args", ["psql", "--host", "y"], True),
    ],
)
def test_the_name_decides_what_a_value_is(name, value, kept):
    record = {name: value}
    assert (redactor.scrub(record) is record) == kept


def test_text_is_found_in_parts_of_a_value_and_each_place_is_told_up_to_a_bound():
    value = {"a": [f"x {BOT_TOKEN}", {"Authorization": "Basic abc"}], "b": "clean", BOT_TOKEN: 1}
    found = []
    output = redactor.scrub(value, "", "context", found)
    assert output == {
        "a": ["x [redacted telegram_token]", {"Authorization": "[redacted Authorization]"}],
        "b": "clean",
        "[redacted telegram_token] 2": 1,
    }
    assert found == ["context.a[0]", "context.a[1].Authorization", "context.[redacted telegram_token]"]
    assert value["b"] == "clean"
    assert value["a"][0].endswith(BOT_TOKEN)

    found = []
    many = redactor.scrub([{"password": "x"}] * 50, found=found)
    assert many == [{"password": "[redacted password]"}] * 50
    assert len(found) == PATHS_MAX


@pytest.mark.parametrize(
    "text",
    [
        f"x {BOT_TOKEN[:30]}",
        f"key {KEY58[:86]}",
        f"key {list(range(64))}"[:150],
        "x postgres://bob:hunter22",
        "-----BEGIN PRIVATE KEY-----\nMIIE",
    ],
)
def test_what_a_cut_leaves_of_a_secret_is_taken_out(text):
    filler = "word " * 7000
    head = filler[: 32 * 1024 - len(text)]
    whole = clean(head + text + "rest of it, and much more")
    assert whole.endswith("…[truncated 25]")
    output = redactor.text(whole)
    assert output.endswith(("[redacted cut_off]…[truncated 25]", "[redacted private_key]…[truncated 25]"))
    assert text.split(" ", 1)[1][-12:] not in output


def test_a_list_that_was_cut_is_the_key_still():
    keys = [list(range(64))] * 20
    cut = clean(keys)
    assert any("truncated" in str(item) for item in cut[-1] if isinstance(item, str)) or "truncated" in str(cut[-1])
    assert "61, 62" not in str(redactor.scrub(cut))
    assert redactor.scrub([*range(40), "…[truncated 24]"]) == "[redacted solana_key]"
    assert redactor.scrub(kept := [*range(40), "…[truncated 25]"]) is kept


def test_no_text_below_the_shortest_is_a_secret():
    assert redactor.text("pwd=abc") == "pwd=abc"
    assert len("pwd=abcd") == SHORTEST
    assert redactor.text("pwd=abcd") == "pwd=[redacted pwd]"


# --- time -------------------------------------------------------------------------------------------------------------

ADVERSARIAL = [
    *("eyJ", "eyJa.", "eyJaaaaaaaa.bbbbbbbb", "://", "://a:b", "://a:b ", "1", "1:", "123456:", "5", "5" * 86 + "0"),
    *("5" * 88 + " ", "[1,", "[", "(", "1,", "[1, ", "password=", "password=x ", "token='", 'token="', '\\"', "'", '"'),
    *("password={", "[redacted ", "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----.", "-----END ", "-"),
    *("--a ", "--token a b", "Bearer ", "AKIA", "sk-", "xoxb-", "ghp_", "0x", "key 0x" + "a" * 64 + " ", "cookie: "),
    *('"cookie", "', "('cookie','a'", "'--password','a',", "%3A", "123456%3A", "a=b,", "a,b:", "password=a&"),
    *('cookie: a"b', "password=x.password", "acme-a", "acme-aaaa-", "acmeid=", "\\", " ", "\n", "A", "key]]]=", "é"),
    *("key" + " " * 33, "key =" + " " * 33, "a    :", "://a:b@ ", "://" + "a" * 256 + ":b", "…[truncated 1]", "[ 1 , "),
]


@pytest.mark.parametrize("unit", ADVERSARIAL)
def test_an_adversarial_text_takes_time_in_proportion_to_its_length(unit):
    own = Redactor(keys=["acme.*id"], patterns={"acme": r"acme-[a-z]{4,8}-\w+"})

    def cost(size):
        text = (unit * (size // len(unit) + 1))[:size]
        times = []
        for _ in range(5):
            start = time.thread_time()
            own.text(text)
            times.append(time.thread_time() - start)
        return max(median(times), 20e-6)  # below that the clock itself is what is measured

    # eight times the text: a quadratic reading would take 64 times as long
    assert cost(32 * 1024) < 28 * cost(4 * 1024)


# --- users ------------------------------------------------------------------------------------------------------------


def test_logs_query_finds_a_user_by_the_id_and_by_the_pseudonym(own_project, monkeypatch, capsysbinary):
    start = {
        "timestamp": "2026-01-18T13:30:01.000000Z",
        "level": "INFO",
        "service": "s",
        "active_flags": [],
        "context": {},
    }
    users = {"raw": "tg_1", "hashed": pseudonym("k", "tg_1"), "other": "tg_2", "other hashed": pseudonym("k", "tg_2")}
    lines = [json.dumps(start | {"message": message, "user_id": user}) for message, user in users.items()]
    (own_project / "logs").mkdir()
    (own_project / "logs" / "jarvis-2026-01-18.jsonl").write_text(
        "\n".join([*lines, json.dumps(start | {"message": "-"}), ""])
    )

    def found():
        main(["logs", "query", "--user", "tg_1", "--format", "json"])
        return [record["message"] for record in json.loads(capsysbinary.readouterr().out)]

    assert found() == ["raw"]
    monkeypatch.setenv("JARVIS_HMAC_KEY", "k")
    assert found() == ["raw", "hashed"]


# --- lint stands on the same tables -----------------------------------------------------------------------------------


def test_lint_knows_the_same_shapes_and_names():
    assert kind_of_secret(f"x {BOT_TOKEN}") == "a Telegram bot token"
    assert kind_of_secret(f"tx={KEY58}") is None
    assert kind_of_secret("nothing: here") is None
    value = {"a": {"apiKey": "x", "token": "SOL"}, "b": [KEY58, list(range(64))], "wallet": HEX64}
    assert dict(find_secrets(value)) == {
        "a.apiKey": "something under a name that secrets have",
        "b[0]": "a Solana secret key",
        "b[1]": "a Solana secret key",
        "wallet": "something under a name that secrets have",
    }


# --- spans ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def traced():
    """A tracer, and what arrives at an exporter behind the redacting one."""

    def start(exporter=None, **options):
        memory = exporter or InMemorySpanExporter()
        resource = Resource({"service.name": "s", "process.command_args": ["bot", "--password", "hunter2"]})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(RedactingSpanExporter(memory, Redactor(**options))))
        return provider.get_tracer("t"), memory

    return start


def test_spans_leave_without_their_secrets(traced):
    tracer, memory = traced(hmac_key="k")
    context = SpanContext(1, 2, is_remote=True)
    link = Link(context, {"note": f"x {BOT_TOKEN}", "n": 1})
    with tracer.start_as_current_span(f"GET /bot{BOT_TOKEN}", links=[link]) as span:
        span.set_attribute("url.full", f"https://api.telegram.org/bot{BOT_TOKEN}/getMe")
        span.set_attribute("db.query.text", "SELECT 1")
        span.set_attribute("http.request.header.authorization", ["Basic abc"])
        span.set_attribute("list", ["a", f"x {BOT_TOKEN}"])
        span.set_attribute("user.id", "tg_1")
        span.set_attribute("n", 5)
        span.add_event("plain", {"a": 1}, timestamp=7)
        span.record_exception(ValueError(f"password=hunter2 {BOT_TOKEN}"))
        span.set_status(StatusCode.ERROR, f"bad {BOT_TOKEN}")
    (done,) = memory.get_finished_spans()
    assert done.name == "GET /bot[redacted telegram_token]"
    assert done.status.status_code is StatusCode.ERROR
    assert done.status.description == "bad [redacted telegram_token]"
    assert dict(done.attributes) == {
        "url.full": "https://api.telegram.org/bot[redacted telegram_token]/getMe",
        "db.query.text": "SELECT 1",
        "http.request.header.authorization": "[redacted http.request.header.authorization]",
        "list": ("a", "x [redacted telegram_token]"),
        "user.id": pseudonym("k", "tg_1"),
        "n": 5,
    }
    plain, exception = done.events
    assert (plain.name, dict(plain.attributes), plain.timestamp) == ("plain", {"a": 1}, 7)
    assert exception.attributes["exception.message"] == "password=[redacted password] [redacted telegram_token]"
    assert "hunter2" not in exception.attributes["exception.stacktrace"]
    assert done.links[0].context == context
    assert dict(done.links[0].attributes) == {"note": "x [redacted telegram_token]", "n": 1}
    assert done.resource.attributes["process.command_args"] == ("bot", "--password", "[redacted --password]")
    assert done.resource.attributes["service.name"] == "s"
    assert "hunter2" not in done.to_json()
    assert BOT_TOKEN not in done.to_json()
    assert (done.context, done.kind, done.start_time, done.end_time) == (
        span.get_span_context(),
        span.kind,
        span.start_time,
        span.end_time,
    )
    assert done.instrumentation_scope.name == "t"


def test_a_span_without_secrets_is_handed_on_as_it_is():
    memory = InMemorySpanExporter()
    exported = []
    memory.export = exported.extend
    provider = TracerProvider(resource=Resource({"service.name": "s"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(RedactingSpanExporter(memory, Redactor())))
    seen = []
    with provider.get_tracer("t").start_as_current_span("clean") as span:
        span.set_attributes({"user.id": "tg_1", "token": "SOL", "n": 5, "list": [1, 2]})
        span.add_event("event", {"a": "b"})
        seen.append(span)
    (done,) = exported
    assert done.name == "clean"
    assert type(done) is type(span._readable_span())


def test_a_redacted_span_still_tells_what_was_dropped(traced):
    tracer, memory = traced()
    with tracer.start_as_current_span("x") as span:
        for number in range(200):
            span.set_attribute(f"a{number}", "password=hunter2")
            span.add_event(f"e{number}", {f"k{n}": BOT_TOKEN for n in range(200)})
    (done,) = memory.get_finished_spans()
    assert (done.dropped_attributes, done.dropped_events) == (72, 72)
    assert len(done.attributes) == len(done.events) == 128
    assert done.events[0].dropped_attributes == 72
    assert "hunter2" not in done.to_json()


def test_the_exporter_never_raises_and_lets_nothing_out_that_it_cannot_look_into(caplog):
    memory = InMemorySpanExporter()

    class Broken(Redactor):
        def text(self, value):
            if "break" in value:
                raise RuntimeError("broken")
            return super().text(value)

    exporter = RedactingSpanExporter(memory, Broken())
    provider = TracerProvider(resource=Resource({"service.name": "s"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("t").start_as_current_span("break") as span:
        span.set_attribute("a", "break password=hunter2")
    (done,) = memory.get_finished_spans()
    assert dict(done.attributes) == {}
    assert done.get_span_context() == span.get_span_context()

    def fail(_):
        raise OSError("no disk")

    memory.export = fail
    assert exporter.export([done]) is SpanExportResult.FAILURE
    assert "Spans could not be exported" in caplog.text
    assert exporter.force_flush() is True
    exporter.shutdown()


@pytest.mark.parametrize("named", ["name", "key"])
def test_a_pair_of_a_secret_name_and_its_value_is_redacted_as_headers_are_often_written(named):
    pair = {named: "Authorization", "value": "let-me-in-2026"}
    assert "let-me-in" not in json.dumps(redactor.scrub({"headers": [pair]}))
    harmless = {named: "Accept", "value": "text/html"}
    assert redactor.scrub(harmless) is harmless


def test_the_bytes_of_a_key_are_found_as_a_tuple_too():
    key = tuple(random.Random(7).randrange(256) for _ in range(64))
    assert str(key)[1:-1] not in redactor.text(f"the key {key} is here")
