"""What looks like a secret: names, values under them, lists of bytes, and what lint finds in nested values."""

import pytest

from jarvis_otel.secrets import (
    NameRule,
    find_secrets,
    is_key_bytes,
    kind_of_secret,
    looks_secret,
    name_rule,
)
from tests.planted import BOT_TOKEN, HEX64, KEY58, piece

NAMES = {
    NameRule.SECRET: [
        *(
            "password",
            "userPassword",
            "DB_PASSWORD",
            "db.password2",
            "x-pwd",
            "secrets",
            "creds",
            "JWT",
            "ssn",
            "bearer",
        ),
        *("auth", "Cookie", "otp", "cvv", "totp"),
        # rows of words
        *("private_key", "api_keys", "wallet_key", "hmac_key", "auth_token", "idToken", "bot_tokens", "npm_token"),
        *("client_token", "seed_phrase", "recovery_words", "db_pass", "smtp.pass", "key_pair", "key_pairs"),
        *("basic_auth", "proxy-auth", "x_auth", "wallet_seed", "credit_card", "card_number", "social_security"),
        # words that are written together
        *("mypassword", "mypasswd", "mypassphrase", "clientsecret", "mycredential", "mycredentials"),
        *("myauthorization", "mymnemonic", "myapikey", "myprivatekey", "mysecretkey", "myaccesskey", "mysessionkey"),
        *("mywalletkey", "mykeypair", "myseedphrase", "myaccesstoken", "myrefreshtoken", "myauthtoken", "mybottoken"),
        *("mysessiontoken", "mycsrftoken", "mycreditcard", "dbpassword_old"),
        # an id is the name of a key, and a half of a login
        *("secret_id", "api_key_x_id", "access_token_hash", "password_hash"),
        "password" + "_" * 248,
    ],
    NameRule.PERSONAL: ["ip_address", "client.ip_address", "X-Forwarded-For", "x-real-ip", "remote_addr"],
    NameRule.TOKEN: ["token", "input_token", "helius-token"],
    NameRule.SIGNATURE: [
        *("signature", "txSig", "txid", "transactions", "my_last_txn_hash"),
        *(f"{before}_{after}" for before in ("tx", "txn", "transaction") for after in ("hash", "id", "ids")),
    ],
    NameRule.WALLET: ["wallet", "payer", "deployer_1", "signer_name", "seed", "cold wallet", "priv"],
    NameRule.PLAIN: [
        *(
            "",
            "_",
            "17",
            "symbol",
            "author",
            "compass",
            "authentic",
            "tokens",
            "max_tokens",
            "token_count",
            "block_hash",
        ),
        *(
            "wallet_address",
            "wallet_hash",
            "public_key",
            "cache_key",
            "strip_addr",
            "address_ip",
            "hash",
            "id",
            "block_id",
        ),
        *("auth_x", "my_auth_", "x_pass", "x_pair", "x_card", "x_number", "x_security", "credit_x", "card_x"),
        *("social_x", "basic_x", "db_x", "http_x"),
        # about a secret
        *(
            "password_length",
            "cookies_accepted_at",
            "has_password_expired",
            "api_key_id",
            "api_keys_id",
            "bot_token_id",
        ),
        *("api_key_ids", "bot_token_ids", "private_key_path"),
        "password" + "_" * 249,
    ],
}


@pytest.mark.parametrize(("name", "rule"), [(name, rule) for rule, names in NAMES.items() for name in names])
def test_a_name_says_what_its_value_is(name, rule):
    assert name_rule(name) is rule


@pytest.mark.parametrize(
    ("rule", "text", "is_secret"),
    [
        (NameRule.SECRET, "x", True),
        (NameRule.SECRET, "", False),
        (NameRule.PERSONAL, "x", True),
        (NameRule.PERSONAL, "", False),
        (NameRule.TOKEN, "a1b2c3d4e5f6", True),
        (NameRule.TOKEN, "a1b2c3d4e5f", False),
        (NameRule.TOKEN, "Wrapped Ether (W)", False),
        (NameRule.TOKEN, "Wrapped\tEther-W", False),
        (NameRule.TOKEN, KEY58[:31], True),
        (NameRule.TOKEN, KEY58[:32], False),
        (NameRule.TOKEN, KEY58[:44], False),
        (NameRule.TOKEN, KEY58[:45], True),
        (NameRule.TOKEN, HEX64[:41], True),
        (NameRule.TOKEN, HEX64[:42], False),
        (NameRule.TOKEN, HEX64[:43], True),
        (NameRule.WALLET, HEX64, True),
        (NameRule.WALLET, HEX64[2:], True),
        (NameRule.WALLET, HEX64 + HEX64[2:], True),
        (NameRule.WALLET, HEX64[:-1], False),
        (NameRule.WALLET, HEX64 + "0", False),
        (NameRule.WALLET, "x", False),
        (NameRule.PLAIN, HEX64, False),
        (NameRule.SIGNATURE, HEX64, False),
    ],
)
def test_the_name_and_the_value_say_whether_it_is_a_secret(rule, text, is_secret):
    assert looks_secret(rule, text) is is_secret


@pytest.mark.parametrize(
    ("values", "are_key"),
    [
        ([0] * 64, True),
        ((255,) * 64, True),
        ([0] * 63, False),
        ([0] * 65, False),
        ([0] * 63 + [256], False),
        ([0] * 63 + [-1], False),
        ([0] * 63 + [1.0], False),
        ([0] * 63 + [True], False),
        ([], False),
        # cut off
        ([0] * 40 + ["…[truncated 24]"], True),
        ([0] * 40 + ["…[truncated 25]"], False),
        ([0] * 63 + ["…[truncated 1]"], True),
        ([0, "x"] * 20 + ["…[truncated 24]"], False),
        ([0, "…[truncated 63]"], True),
        (["…[truncated 64]"], False),
        (["x", "…[truncated 63]"], False),
        ([0] * 40 + ["…[truncated 24] x"], False),
        ([0] * 64 + ["…[truncated 5]"], False),
        ([0] * 40 + [24], False),
    ],
)
def test_64_bytes_are_a_key_though_some_of_them_are_cut_off(values, are_key):
    assert is_key_bytes(values) is are_key


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-----BEGIN PRIVATE KEY-----", "a private key"),
        (f"x {BOT_TOKEN}", "a Telegram bot token"),
        (f"eyJ{piece('jwt', 8)}.{piece('claims', 8)}", "a JSON web token"),
        ("postgres://bob:x@db", "a password in a URL"),
        ("Bearer abcde1", "a bearer token"),
        ("AKIAABCDEFGH12345678", "an AWS access key"),
        (f"ghp_{piece('x', 20)}", "a GitHub token"),
        ("xoxb-1234567890", "a Slack token"),
        (f"sk_live_{piece('x', 16)}", "a Stripe key"),
        (f"sk-{piece('x', 20)}", "an API key"),
        (f"key {HEX64}", "an EVM private key"),
        (f"tx {HEX64} of the key {HEX64}", "an EVM private key"),
        (f"{'x' * 42} key{'.' * 45}{HEX64}", "an EVM private key"),
        (f"key{'.' * 46}{HEX64}", None),
        (HEX64, None),
        (KEY58, "a Solana secret key"),
        (f"tx={KEY58}", None),
        (str(list(range(64))), "a Solana secret key"),
        ("x " * 16_374 + "AKIAABCDEFGH12345678", "an AWS access key"),
        ("x " * 16_374 + " AKIAABCDEFGH12345678", None),
        ("nothing: here", None),
    ],
)
def test_the_kind_of_secret_in_a_text_is_said_to_people(text, kind):
    assert kind_of_secret(text) == kind


def test_secrets_in_nested_values_are_found_with_their_places():
    named = "something under a name that secrets have"
    value = {
        "a": {"apiKey": "x", "token": "SOL", 5: {"pwd": "x"}},
        "b": [KEY58, "x", ({"pwd": ["x", "y"]},)],
        "bytes": list(range(64)),
        "wallet": HEX64,
        "tokens": [5, None],
        7: f"x {BOT_TOKEN}",
    }
    assert list(find_secrets(value)) == [
        ("a.apiKey", named),
        ("a.5.pwd", named),
        ("b[0]", "a Solana secret key"),
        ("b[2][0].pwd[0]", named),
        ("b[2][0].pwd[1]", named),
        ("bytes", "a Solana secret key"),
        ("wallet", named),
        ("7", "a Telegram bot token"),
    ]
    assert list(find_secrets("x", "here", NameRule.SECRET)) == [("here", named)]
    assert list(find_secrets([f"x {BOT_TOKEN}"])) == [("[0]", "a Telegram bot token")]
