"""Redaction of texts, case by case: what is taken out of which words, what stays, and which texts are not looked into."""

import json
import re

import pytest

from jarvis_otel.redaction import Redactor
from jarvis_otel.secrets import SHAPES
from tests.planted import BOT_TOKEN, HEX64, KEY58, looked_at, piece

redactor = Redactor()

JWT = f"eyJ{piece('jwt', 8)}.{piece('claims', 8)}"
BYTES = str(list(range(64)))
CUT = "…[truncated 25]"


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "output"),
    [
        # a shape is found where nothing else in the text draws the eye to it, at its least length
        ("bot 123456:" + "aB3" * 10, "bot [redacted telegram_token]"),
        ("bot 123456789012:" + "a_-" * 11, "bot [redacted telegram_token]"),
        ("123456%3A" + "aB3" * 10, "[redacted telegram_token]"),
        ("123456%3a" + "aB3" * 10, "[redacted telegram_token]"),
        (f"jwt {JWT}.{piece('signature', 9)} ends", "jwt [redacted jwt] ends"),
        (JWT, "[redacted jwt]"),
        (f"{JWT}.., or {JWT}", "[redacted jwt], or [redacted jwt]"),
        ("postgres://bob:x@db", "postgres://bob:[redacted url_password]@db"),
        ("postgres://:x@db", "postgres://:[redacted url_password]@db"),
        ("Bearer abcdefghijklmnop", "Bearer [redacted bearer]"),
        ("bearer abcde1,", "bearer [redacted bearer],"),
        ("BEARER abcde1", "BEARER [redacted bearer]"),
        ("Bearer\tabcde1", "Bearer\t[redacted bearer]"),
        ("AKIAABCDEFGH12345678", "[redacted aws_key]"),
        ("ASIAABCDEFGH12345678!", "[redacted aws_key]!"),
        *((f"gh{kind}_{piece(kind, 20)}.", "[redacted github_token].") for kind in "pousr"),
        (f"github_pat_{piece('pat', 20)}_{piece('pat', 9)}.", "[redacted github_token]."),
        ("xoxb-1234567890", "[redacted slack_token]"),
        *(
            (f"{kind}_{mode}_{piece(kind, 16)}.", "[redacted stripe_key].")
            for kind in ("sk", "rk")
            for mode in ("live", "test")
        ),
        ("whsec_" + "aB3+/=" * 3, "whsec_" + "aB3+/=" * 3),
        ("whsec_" + "aB3+/" * 3 + "a=", "[redacted stripe_key]"),
        *((f"{kind}{piece(kind, 20)}.", "[redacted api_key].") for kind in ("sk-", "glpat-", "xai-")),
        *((f"{kind}_{piece(kind, 30)}.", "[redacted api_key].") for kind in ("npm", "gsk", "hf")),
        (f"AIza{piece('google', 35)}.", "[redacted api_key]."),
        (f"key{HEX64}", "key[redacted evm_key]"),
        (f"priv {HEX64}, tail", "priv [redacted evm_key], tail"),
        (KEY58, "[redacted solana_key]"),
        (KEY58[:87], "[redacted solana_key]"),
        (f"x {BYTES} y", "x [redacted solana_key] y"),
        (f"x ({BYTES[1:-1]},) y", "x [redacted solana_key] y"),
        ("[" + " 1 ," * 63 + " 255 , ]", "[redacted solana_key]"),
        ("-----BEGIN PRIVATE KEY-----", "[redacted private_key]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMI-IE\n-----END RSA PRIVATE KEY-----.", "[redacted private_key]."),
        ("-----BEGIN PGP PRIVATE KEY BLOCK-----\nx\n-----END PGP PRIVATE KEY BLOCK-----.", "[redacted private_key]."),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----BEGIN CERTIFICATE-----", "[redacted private_key]-----BEGIN CERTIFICATE-----"),
        # two of a kind
        ("bob://a:b@c d://e:f@g", "bob://a:[redacted url_password]@c d://e:[redacted url_password]@g"),
        # a word more or less, and it is none
        ("12345:" + "aB3" * 10, None),
        ("123456:" + "aB3" * 9 + "aB", None),
        (f"eyJ{piece('jwt', 7)}.{piece('claims', 8)}", None),
        (JWT[:-1], None),
        ("bearer abcde", None),
        ("bearer abcdef", None),
        ("AKIAABCDEFGH1234567", None),
        (f"ghx_{piece('x', 20)}", None),
        (f"ghp_{piece('x', 19)}", None),
        (f"github_pat_{piece('pat', 19)}", None),
        ("xoxb-123456789", None),
        (f"sk_prod_{piece('x', 16)}", None),
        (f"sk_live_{piece('x', 15)}", None),
        (f"task-{piece('x', 20)}", None),
        (f"sk-{piece('x', 19)}", None),
        (f"glpat-{piece('x', 19)}", None),
        (f"xai-{piece('x', 19)}", None),
        (f"npm_{piece('x', 29)}", None),
        (f"AIza{piece('x', 34)}", None),
        (f"key {HEX64[:-1]}", None),
        (f"key {HEX64}0", None),
        (KEY58[:86], None),
        (f"{KEY58}1", None),
        (str(list(range(63))), None),
        (str(list(range(65))), None),
        (str([*range(63), 256]), None),
        ("-----BEGIN CERTIFICATE-----", None),
    ],
)  # fmt: skip
def test_each_shape_is_found_by_itself_from_its_least_length_on(text, output):
    assert redactor.text(text) == (output or text)


@pytest.mark.parametrize("length", [1, 255, 256, 257, 511, 512])
def test_a_password_in_a_url_may_be_long_and_end_in_equals_signs(length):
    password = ("0" * length + "==")[-length:]
    assert redactor.text(f"amqp://bob:{password}@mq") == "amqp://bob:[redacted url_password]@mq"


@pytest.mark.parametrize("between", [" ", ", ", " and ", "\n"])
def test_each_of_many_private_keys_in_a_row_is_taken_out(between):
    keys = between.join([HEX64] * 6)
    assert redactor.text(f"wallet keys {keys}").count("[redacted evm_key]") == 6
    assert redactor.text(text := f"tx of a wallet {keys}") is text


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        ("signer {}", True),
        ("wallets: [{}]", True),
        ("SEED {}", True),
        ("a hash of the wallet {}", False),
        ("wallet\n{}", True),
        ("wallet\nx {}", False),
        ("wallet " + "." * 41 + "{}", True),
        ("wallet" + "." * 43 + "{}", False),
        ("wallet tx" + "." * 46 + "{}", False),
        ("plain {}", False),
    ],
)
def test_the_words_before_32_bytes_say_whether_they_are_a_private_key(text, is_secret):
    assert (HEX64 not in redactor.text(text.format(HEX64))) == is_secret


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        ("tx={}", False),
        ("txHash: {}", False),
        ('"signature": "{}"', False),
        ('{{\\"tx_id\\": \\"{}\\"}}', False),
        ('"signatures": ["{}"]', False),
        ("https://solscan.io/tx/{}", False),
        ("/tx/ {}", True),
        ("note={}", True),
        ("tx=, {}", True),
        ("tx={}" + " " * 9, False),
        ("tx" + " " * 4 + "=" + " " * 4 + "{}", False),
        (f"{'x' * 38}_tx={{}}", False),
    ],
)
def test_the_name_before_88_digits_says_whether_they_are_a_signature(text, is_secret):
    assert (KEY58 not in redactor.text(text.format(KEY58))) == is_secret


@pytest.mark.parametrize(
    "before", ["", "x" * 40 + " ", " ", "  ", "-", "0", "x" * 86 + " ", "x" * 86 + "0", "y " * 60, "0" * 200]
)
@pytest.mark.parametrize("after", ["", " ", "0", " x", "-" * 90, " " + "z" * 86])
def test_a_key_of_87_digits_is_found_wherever_it_stands(before, after):
    assert redactor.text(f"{before}{KEY58[:87]}{after}") == f"{before}[redacted solana_key]{after}"


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "output"),
    [
        # how a name and its value are parted
        ("password=hunter22", "password=***"),
        ("password==hunter22", "password==***"),
        ("password => hunter22", "password => ***"),
        ("password := hunter22", "password := ***"),
        ("password: hunter22", "password: ***"),
        ("password::hunter22", None),
        ("password://hunter22", None),
        ("the password=", None),
        ("the password: ", None),
        ("the password: {", "the password: ***"),
        ("a password=hunter22 b pwd=hunter23 c", "a password=*** b pwd=*** c"),
        # how far the value goes
        ("password=hunter22 next", "password=*** next"),
        ("password=Xylophone next", "password=*** next"),
        ("password='a b' c", "password='***' c"),
        ("password='a\\'b' c", "password='***' c"),
        ('password="a\\"b" c', 'password="***" c'),
        ('password="no end of it', 'password="***'),
        (json.dumps(json.dumps({"password": 'a"b', "x": 1})), '"{\\"password\\": \\"***\\", \\"x\\": 1}"'),
        ("password=b'abc' x", "password=b'***' x"),
        ("{\\'password\\': \\'a, b\\', \\'x\\': 1}", "{\\'password\\': \\'***\\', \\'x\\': 1}"),
        ("secrets=[1, {2: (3)}] x", "secrets=*** x"),
        ("secrets=(1, 2) x", "secrets=*** x"),
        ("secrets={1: [2} x", "secrets=***"),
        ("cookie: a=b; c=d\nx", "cookie: ***\nx"),
        ("cookie=abc next", "cookie=*** next"),
        ("authorization=abc next", "authorization=*** next"),
        ("authorisation: abc next", "authorisation: ***"),
        ("Authorization: abc next", "Authorization: ***"),
        ("Authorization: Basic abc next", "Authorization: Basic *** next"),
        ("x-auth: ApiKey abc next", "x-auth: ApiKey *** next"),
        ("auth_token: token 1234567890ab next", "auth_token: token *** next"),
        ("password=bot 5 left", "password=*** 5 left"),
        ("mnemonic: abandon ability able\nx", "mnemonic: ***\nx"),
        ("mnemonic=abandon ability able", "mnemonic=***"),
        ("passphrase=abandon ability able", "passphrase=***"),
        ("seed_words=abandon ability able", "seed_words=***"),
        ("passwords=abc next", "passwords=*** next"),
        ("seed phrase: token ability able", "seed phrase: ***"),
        ("cookie: basic a=b; c=d", "cookie: ***"),
        # what a mark stands for, and what it does not
        (f"Cookie: {JWT}; sid=abc", "Cookie: ***"),
        ("password=[redacted password] x", None),
        ("password: [redacted jwt]", None),
        ("[redacted password]: hunter22", None),
        ("[redacted password=hunter22", "[redacted password=***"),
        ("redacted password]: hunter22", "redacted password]: ***"),
        # a name of two words
        ("private key: hunter22", "private key: ***"),
        ("private keys: hunter22", "private keys: ***"),
        ("Seed Phrase: abandon ability able", "Seed Phrase: ***"),
        ("seed words = abandon ability able", "seed words = ***"),
        ("bot token: hunter22", "bot token: ***"),
        ("credit card: hunter22", "credit card: ***"),
        ("card number: 4111111111111111", "card number: ***"),
        ("the cache key: hunter22", None),
        ("password hint: hunter22", None),
        ("private, key: hunter22", None),
        # a coin or a credential
        ("token=a1b2c3d4-e5f6-7890 x", "token=*** x"),
        ("token: hunter22", None),
        ("token: {symbol: a1b2c3d4e5f6}", None),
        ("ip_address=10.0.0.1", None),
        # names that a program gives numbers
        ("password2=hunter22", "password2=***"),
        ("private_key_12=hunter22", "private_key_12=***"),
        # options of a command line
        ("x --otp 1234", "x --otp ***"),
        ("x --password \t hunter22 y", "x --password \t *** y"),
        ("x --password=hunter22 y", "x --password=*** y"),
        ("x --password --verbose", None),
        ("x --user hunter22", None),
        ("x ---password hunter22", None),
        # pairs
        ("['cookie', 'hunter22'] and more", "['cookie', '***'] and more"),
        ("('cookie', 'hunter22'), (1, 2)", "('cookie', '***'), (1, 2)"),
        ('[b"token", b"a1b2c3d4e5f6"], x', '[b"token", b"***"], x'),
        ('("api-key","hunter22") more', '("api-key","***") more'),
        ("('client_secret',\n 'hunter22') more", "('client_secret',\n '***') more"),
        ("('old_password', 'hunter22') more", "('old_password', '***') more"),
        ("(('cookie', 'hunter22", "(('cookie', '***"),
        ("(('cookie', 'hunter22'", "(('cookie', '***'"),
        ("x 'cookie', 'hunter22') and", None),
        ("x ['cookie', 'hunter22', 'y'] and", None),
        ("x ['cookie', 'hunter22'X] and", None),
        ("['x', '--password', 'hunter22', 'y'] and", "['x', '--password', '***', 'y'] and"),
        ("['x', '--otp', 'hunter22', 'y'] and", None),
    ],
)  # fmt: skip
def test_the_value_of_a_name_is_taken_out_as_far_as_it_goes(text, output):
    shown = redactor.text(text)
    assert (shown if output is None else re.sub(r"\[redacted [\w.-]+\]", "***", shown)) == (output or text)
    assert redactor.text(shown) == shown


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("X-Api-Key: hunter22", "[redacted X-Api-Key]"),
        ("x --db.password=hunter22", "[redacted db.password]"),
        ("x ..my.password=hunter22", "[redacted my.password]"),
        ("['x', '--password', 'hunter22', 'y']", "[redacted password]"),
        ("private key: hunter22", "[redacted key]"),
    ],
)
def test_the_mark_says_the_whole_name(text, mark):
    assert mark in redactor.text(text)


@pytest.mark.parametrize("blanks", [0, 1, 2, 3, 4, 12, 32])
@pytest.mark.parametrize("blank", [" ", "\t"])
@pytest.mark.parametrize("name", ["api_key", '"api_key"', "['api_key']"])
def test_a_name_and_its_value_may_be_lined_up_with_others(blanks, blank, name):
    before = f"{name}{blank * blanks}={blank * blanks}"
    assert redactor.text(f"{before}hunter22") == f"{before}[redacted api_key]"


@pytest.mark.parametrize(
    ("value", "is_secret"),
    [
        ("missing", False),
        ("Invalid!", False),
        ("invalid),", False),
        ("invalid.;:", False),
        ("emptyX", True),
        ("emptyish", True),
        ("********", False),
        ("xxxxXXXX", False),
        ("••••••••", False),
        ("--..--..", False),
        ("xxxxyxxx", True),
        ("password", False),
        ("self.password", False),
        ("selfXpassword", True),
        (f"{'x' * 71}.password", False),
        (f"{'x' * 72}.password", True),
    ],
)
def test_a_value_that_only_speaks_of_the_secret_stays(value, is_secret):
    text = f"got password={value} here"
    assert (redactor.text(text) is not text) == is_secret
    assert (value not in redactor.text(text)) == is_secret


def test_what_stands_behind_a_name_that_is_no_plain_name_is_marked_as_a_secret():
    name = "the password of é"
    assert redactor.field(name, "hunter22") == "[redacted secret]"
    assert redactor.scrub({name: ["hunter22"]}) == {name: "[redacted secret]"}
    assert redactor.field("x" * 57 + "_secret", "y") == f"[redacted {'x' * 57}_secret]"
    assert redactor.field("x" * 58 + "_secret", "y") == "[redacted secret]"


# --- cuts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "output"),
    [
        (f"x 123456:aB3_{CUT}", f"x [redacted cut_off]{CUT}"),
        (f"123456:aB3_{CUT}", f"[redacted cut_off]{CUT}"),
        (f"x {KEY58[:45]}{CUT}", f"x [redacted cut_off]{CUT}"),
        (f"{KEY58[:86]}{CUT}", f"[redacted cut_off]{CUT}"),
        (f"x [1, 2, 3, 4, 5, 6, 7, 8{CUT}", None),
        (f"x [1, 2, 3, 4, 5, 6, 7, 8, {CUT}", f"x [redacted cut_off]{CUT}"),
        (f"x (1,2,3,4,5,6,7,8,99{CUT}", f"x [redacted cut_off]{CUT}"),
        ("[         " + "111         ,         " * 63 + "111…[truncated 123456789]", "[redacted cut_off]…[truncated 123456789]"),
        (f"a://bob:hunter22{CUT}", f"a://[redacted cut_off]{CUT}"),
        (f"a://host:8080{CUT}", None),
        (f"x 123456:aB3{CUT}", None),
        (f"x {KEY58[:44]}{CUT}", None),
        (f"x 123456:aB3_{CUT} and more", None),
        (f"x 123456:aB3_ and more{CUT}", None),
    ],
)  # fmt: skip
def test_what_a_cut_leaves_of_a_secret_is_taken_out_of_a_text_of_any_length(text, output):
    assert redactor.text(text) == (output or text)
    filler = "words and words " * 500
    assert redactor.text(filler + text) == filler + (output or text)


# --- what is not looked into ------------------------------------------------------------------------------------------

LONG = "the quick fox jumps over the lazy dog " * 20


@pytest.mark.parametrize(
    "text",
    [
        "Trade executed",
        "10 of 20 done (more or less) [ok]",
        "about 5% of it",
        LONG,
        f" {'x' * 86} {LONG}",
        "un été à la mer " * 9,
    ],
)
def test_a_text_without_the_characters_that_secrets_have_is_searched_by_no_pattern(text):
    functions, patterns = looked_at(lambda: redactor.text(text))
    assert patterns == []
    assert "_without_secrets" not in functions


@pytest.mark.parametrize(
    "text",
    [
        "done: ok",
        "a=1 and mission=x and error42: y",
        "snake_case_names and_a_long_1234567890abcdef_one",
        "e-mail or well-known-things -- or a-long-hyphenated-name",
        "An Apple A Day",
        "January and July",
        "Read and Run … [1, 2]",
        "'one', \"two\", three",
        "'user' : one, \"mission\": two, ['order'] = three",
        f"{LONG} 5% and 100%3B",
        f"{LONG} 0x12 and 100",
        f"{LONG} [1.5, 2] and [a] and []",
        f"{LONG} (1.5, 2) and (a) and f()",
        f"{LONG} {KEY58[:86]}",
        f"{LONG} {KEY58[:86]} and more",
        f"{LONG} {KEY58[:50]}0{KEY58[:50]}",
        f"{KEY58[:50]}0{KEY58[:50]}",
        f"x {'y' * 43}.{'y' * 43}",
        f"{LONG} 汉字 {LONG}",
        f"{LONG}{CUT}",
        "to the end [1, 2]",
    ],
)
def test_an_ordinary_text_is_looked_into_no_further_than_for_what_secrets_begin_with(text):
    functions, _ = looked_at(lambda: redactor.text(text))
    assert "_without_secrets" not in functions


def test_a_text_under_suspicion_is_searched_for_what_it_may_hold_and_once_more_for_what_a_mark_shows():
    functions, patterns = looked_at(lambda: redactor.text("password: invalid"))
    assert functions.count("_without_secrets") == 1
    assert not {shape.pattern for shape in SHAPES}.intersection(patterns)
    assert not any("truncated" in pattern.pattern for pattern in patterns)
    functions, patterns = looked_at(lambda: redactor.text(f"bot {BOT_TOKEN}"))
    assert functions.count("_without_secrets") == 2
    assert [shape.kind for shape in SHAPES if shape.pattern in patterns] == ["telegram_token"]


def test_a_text_is_looked_through_four_times_at_most():
    # each of these pairs is one only once the mark has taken the place of what stands in it
    nested = "('cookie','(\"cookie\",\"" * 4
    functions, _ = looked_at(lambda: redactor.text(nested))
    assert functions.count("_without_secrets") == 4
    assert redactor.text(nested).endswith("[redacted cookie]")


def test_base58_is_looked_for_in_long_texts_from_blank_to_blank_or_from_one_other_character_to_the_next():
    assert "_has_run" not in looked_at(lambda: redactor.text("x" * 86))[0]
    words = " ".join(["x" * 86] * 20)
    functions, patterns = looked_at(lambda: redactor.text(words))
    assert "_has_run" in functions
    assert patterns == []
    path = ("x" * 80 + "/") * 20
    assert len(looked_at(lambda: redactor.text(path))[1]) <= 20
