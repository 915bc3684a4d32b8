"""What looks like a secret: the names under which secrets are kept, and the shapes of those that are known.

Lint and redaction share these tables. All patterns are linear in the text: a repeat is bounded, or nothing after it can
fail, or what it has read is not read again from the next beginning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple

__all__ = [
    "BEFORE_MAX",
    "NAME_HINTS",
    "SHAPES",
    "NameRule",
    "Shape",
    "find_secrets",
    "is_key_bytes",
    "kind_of_secret",
    "looks_secret",
    "name_rule",
    "secret_span",
]

BEFORE_MAX = 48
"""So many characters before what may be a secret decide whether it is one."""

_VALUE_MAX = 32_768
_NAME_MAX = 256


class NameRule(Enum):
    """What the name of a field says of its value."""

    PLAIN = "no secret"
    SECRET = "a secret, whatever it looks like"  # noqa: S105
    TOKEN = "a coin or a credential: the value decides"  # noqa: S105
    PERSONAL = "an address of a person, as secret as a field, but no secret in a text"
    WALLET = "something of a wallet: 32 bytes in hex are its private key"
    SIGNATURE = "a transaction: its base58 signature looks like a secret key, and is public"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A name is split into its words: `dbPassword`, `DB_PASSWORD` and `db.password` are the same two. One of these words,
# or one of these rows of words, makes it the name of a secret.
_SECRET_WORDS = _words(
    "password passwords passwd pwd passphrase passcode secret secrets authorization authorisation credential "
    "credentials creds apikey apikeys mnemonic mnemonics keypair keypairs cookie cookies csrf xsrf jwt jwts ssn otp "
    "totp cvv cvc bearer"
)
_SECRET_ROWS = frozenset(
    (before, after)
    for befores, afters in (
        ("private priv api access session wallet encryption signing master hmac ssh deploy", "key keys"),
        ("access refresh auth api bot bearer session id jwt oauth login reset verification", "token tokens"),
        ("telegram github gitlab slack discord npm vault service app admin deploy", "token tokens"),
        ("personal client device push", "token tokens"),
        ("seed recovery backup", "phrase phrases words"),
        ("db database smtp user mysql pg postgres redis rpc ftp http mail", "pass"),
        ("basic proxy http x", "auth"),
        ("key", "pair pairs"),
        ("wallet", "seed"),
        ("credit", "card"),
        ("card", "number"),
        ("social", "security"),
    )
    for before in befores.split()
    for after in afters.split()
)
_PERSONAL_ENDINGS = (" x forwarded for", " x real ip", " ip address", " remote addr")
# words that are written together: `dbpassword`, `clientsecret`
_SECRET_ENDINGS = (
    *("password", "passwd", "passphrase", "secret", "credential", "credentials", "authorization", "mnemonic"),
    *("apikey", "privatekey", "secretkey", "accesskey", "sessionkey", "walletkey", "keypair", "seedphrase"),
    *("accesstoken", "refreshtoken", "authtoken", "bottoken", "sessiontoken", "csrftoken", "creditcard"),
)
# A name that ends so is about the secret: `password_length`, `token_count`, `cookies_accepted_at`.
_ABOUT = _words(
    "accepted age alg algorithm at attempts banner changed consent count counts created date deleted denied disabled "
    "domain enabled endpoint error errors exists expired expires expiration expiry failed failures fields file "
    "granted index invalid kind len length limit link loaded manager method missing mode name names path pending "
    "policy prefix present provider requested required reset retries revoked rotated rotation scheme set size source "
    "state status strength time total ttl type uri url used valid version"
)
# `api_key_id` and `secret_key_id` only name the key; Vault's `secret_id` is one half of a login
_ABOUT_KEYS = frozenset({"id", "ids"})

_WALLET_WORDS = _words("wallet wallets signer payer deployer priv private seed key")
_PUBLIC_WORDS = _words(
    "public pub hash tx txid txhash id block root signature sig topic digest commit sha cache idempotency storage "
    "state slot address addr account pubkey"
)
_SIGNATURE_WORDS = _words(
    "signature signatures sig sigs tx txs txid txids txhash txn txns txsig transaction transactions"
)
_SIGNATURE_ROWS = frozenset(
    (before, after) for before in ("tx", "txn", "transaction") for after in ("hash", "id", "ids")
)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def name_rule(name: str) -> NameRule:
    """What the name of a field says of its value; only its last 256 characters are looked at.

    `token` alone is mostly a coin in a trading bot, so its value decides (see `looks_secret`), and so do names that
    end in it (`input_token`), unless the word before says what it opens (`access_token`). Names of counts, ids and
    times (`max_tokens`, `token_count`, `api_key_id`) and of what is public on a chain (`mint`, `token_address`,
    `wallet_address`) are plain.
    """
    words = [word.lower() for word in _WORD.findall(name[-_NAME_MAX:])]
    if not words:
        return NameRule.PLAIN
    last = words[-1]
    if _names_a_secret(words):
        about = last in _ABOUT or (last in _ABOUT_KEYS and words[-2:-1] in (["key"], ["keys"], ["token"]))
        return NameRule.PLAIN if about else NameRule.SECRET
    if f" {' '.join(words)}".endswith(_PERSONAL_ENDINGS):
        return NameRule.PERSONAL
    if last == "token":
        return NameRule.TOKEN
    if last in _SIGNATURE_WORDS or tuple(words[-2:]) in _SIGNATURE_ROWS:
        return NameRule.SIGNATURE
    if not _WALLET_WORDS.isdisjoint(words) and _PUBLIC_WORDS.isdisjoint(words):
        return NameRule.WALLET
    return NameRule.PLAIN


def _names_a_secret(words: list[str]) -> bool:
    return (
        not _SECRET_WORDS.isdisjoint(words)
        or not _SECRET_ROWS.isdisjoint(pairwise(words))
        or words == ["auth"]
        or any(word.endswith(_SECRET_ENDINGS) for word in words)
    )


_COIN = re.compile(r"[1-9A-HJ-NP-Za-km-z]{32,44}|0x[0-9A-Fa-f]{40}")
_CREDENTIAL_MIN = 12
_HEX_KEY = re.compile(r"(?:0x)?(?:[0-9A-Fa-f]{64}){1,2}")


def looks_secret(rule: NameRule, text: str) -> bool:
    """Whether a text under a name is to be kept secret as a whole.

    Args:
        rule: What the name says.
        text: The value. Under TOKEN a coin's symbol or address is none: short, or 32 to 44 digits of base58, or
            an EVM address; all else without a space is.
    """
    if rule is NameRule.SECRET or rule is NameRule.PERSONAL:
        return text != ""
    if rule is NameRule.TOKEN:
        return len(text) >= _CREDENTIAL_MIN and not any(map(str.isspace, text)) and _COIN.fullmatch(text) is None
    return rule is NameRule.WALLET and _HEX_KEY.fullmatch(text) is not None


class Shape(NamedTuple):
    """The look of one kind of secret.

    Attributes:
        kind: One word for it, for programs.
        label: A few words for it, for people.
        hints: Patterns of which one matches wherever the shape is; each begins with a literal character.
        pattern: The shape; its group `secret`, where it has one, is what must not be seen, else all of it.
        holds: Whether a match is one indeed, where the pattern alone cannot say; it is asked with up to
            BEFORE_MAX characters before it, and with the match.
    """

    kind: str
    label: str
    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    holds: Callable[[str, str], bool] | None = None


def _are_bytes(_before: str, text: str) -> bool:
    return all(int(number) <= 255 for number in _NUMBER.findall(text))


def _is_unlabelled(before: str, _text: str) -> bool:
    """Whether no name before says that this is a signature: `tx=…`, `"signature": "…"`, `…/tx/…`."""
    label = _LABEL.search(before)
    return not (label and name_rule(label["name"]) is NameRule.SIGNATURE) and not before.endswith("/tx/")


def _is_of_a_wallet(before: str, _text: str) -> bool:
    """Whether the words before say that these 32 bytes are a private key, and not the hash of something."""
    *_, line = ["", *before.splitlines()]
    words = {word.lower() for word in _WORD.findall(line)}
    return not _WALLET_WORDS.isdisjoint(words) and _PUBLIC_WORDS.isdisjoint(words)


_LABEL = re.compile(r"(?P<name>[A-Za-z][\w.\-]{0,40})[\"'\\\]]{0,4}[ \t]{0,4}[=:][ \t]{0,4}[\"'\\\[]{0,4}\Z", re.ASCII)
_NUMBER = re.compile(r"[0-9]+")
_BASE58 = "[1-9A-HJ-NP-Za-km-z]"
_BLANKS = r"\s{0,64}+"
_TOKEN = r"[A-Za-z0-9_\-]"  # noqa: S105 - the characters of one


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.ASCII)


SHAPES: tuple[Shape, ...] = (
    Shape(
        "private_key",
        "a private key",
        (r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY",),
        # where the end is missing, up to what no key has
        _pattern(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----"
            r"(?:[^{}<>…\-]++|-(?!----(?:END|BEGIN) ))*(?:-----END [A-Z0-9 ]{0,60}(?:-----)?)?"
        ),
    ),
    Shape(
        "telegram_token",
        "a Telegram bot token",
        (rf":{_TOKEN}{_TOKEN}{{29}}(?<=[0-9]{{6}}:.{{30}})", rf"%3[Aa]{_TOKEN}{{30}}(?<=[0-9]{{6}}%.{{32}})"),
        _pattern(rf"[0-9]{{6,12}}(?::|%3[Aa]){_TOKEN}{{30,}}"),
    ),
    Shape(
        "jwt",
        "a JSON web token",
        (rf"J(?<=eyJ){_TOKEN}{{8}}",),
        # the first part ends where another `eyJ` begins, so that many of them are each read once
        _pattern(rf"eyJ(?:[A-IK-Za-z0-9_\-]++|(?<!ey)J)*\.{_TOKEN}{{8,}}(?:\.{_TOKEN}*)*"),
    ),
    Shape(
        "url_password",
        "a password in a URL",
        (r"://[^\s/:@\"'<>\[]{0,256}:[^\s\"'<>][^\s@\"'<>]{0,511}+@",),
        # a password may hold an @, and even a slash where no port stands
        _pattern(
            r"://[^\s/:@\"'<>\[]{0,256}:"
            r"(?P<secret>[^\s/?#\"'<>]{1,512}(?=@)|(?![0-9]{1,5}[/?#])[^\s@\"'<>]{1,512}+(?=@))"
        ),
    ),
    Shape(
        "bearer",
        "a bearer token",
        (r"b(?:earer|EARER)", r"B(?:earer|EARER)"),
        _pattern(
            r"[Bb](?:earer|EARER)[ \t]{1,8}"
            r"(?P<secret>[A-Za-z0-9._~+/=|\-]{16,}|(?=[A-Za-z._~+/=|\-]{0,15}[0-9])[A-Za-z0-9._~+/=|\-]{6,15})"
        ),
    ),
    Shape(
        "aws_key",
        "an AWS access key",
        (r"A(?:KIA|SIA)[0-9A-Z]{16}",),
        _pattern(r"(?:AKIA|ASIA)[0-9A-Z]{16}"),
    ),
    Shape(
        "github_token",
        "a GitHub token",
        (r"_(?<=gh[pousr]_)[A-Za-z0-9]{20}", r"_(?<=github_pat_)[A-Za-z0-9]{20}"),
        _pattern(r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9]{20}[A-Za-z0-9_]*"),
    ),
    Shape(
        "slack_token",
        "a Slack token",
        (r"-(?<=xox[a-z]-)[A-Za-z0-9]",),
        _pattern(r"xox[a-z]-[A-Za-z0-9\-]{10,}"),
    ),
    Shape(
        "stripe_key",
        "a Stripe key",
        (r"_(?<=[rs]k_(?:live|test)_)[A-Za-z0-9]{16}", r"_(?<=whsec_)[A-Za-z0-9+/]{16}"),
        _pattern(r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/=]{16,}"),
    ),
    Shape(
        "api_key",
        "an API key",
        (
            rf"-(?<=\bsk-){_TOKEN}{{20}}",
            rf"-(?<=glpat-){_TOKEN}{{20}}",
            r"-(?<=\bxai-)[A-Za-z0-9]{20}",
            r"_(?:(?<=\b(?:npm|gsk)_)|(?<=\bhf_))[A-Za-z0-9]{30}",
            rf"A(?:Iza){_TOKEN}{{35}}",
        ),
        _pattern(
            rf"\bsk-{_TOKEN}{{20,}}|glpat-{_TOKEN}{{20,}}|\bxai-[A-Za-z0-9]{{20,}}"
            rf"|\b(?:npm|gsk|hf)_[A-Za-z0-9]{{30,}}|AIza{_TOKEN}{{35,}}"
        ),
    ),
    Shape(
        "evm_key",
        "an EVM private key",
        (r"0x[0-9A-Fa-f]{64}",),
        _pattern(r"0x[0-9A-Fa-f]{64}(?![0-9A-Fa-f])"),
        _is_of_a_wallet,
    ),
    Shape(
        "solana_key",
        "a Solana secret key",
        (),  # a run of 87 digits has no rare character; redaction looks for it in its own way
        _pattern(rf"(?<!{_BASE58}){_BASE58}{{87,88}}(?!{_BASE58})"),
        _is_unlabelled,
    ),
    Shape(
        "solana_key",
        "a Solana secret key",
        (rf"\[{_BLANKS}[0-9]{{1,3}}+{_BLANKS},", rf"\({_BLANKS}[0-9]{{1,3}}+{_BLANKS},"),
        _pattern(
            rf"[\[(]{_BLANKS}(?:[0-9]{{1,3}}+{_BLANKS},{_BLANKS}){{63}}[0-9]{{1,3}}+{_BLANKS}(?:,{_BLANKS})?[\])]"
        ),
        _are_bytes,
    ),
)


# Texts are read from where a name and its value part (`name=`, `name: `, `"name": `), for that is rarer than any letter
# of the names: a look back at the end of the name says whether a closer look is worth it.
_NAME_ENDS = _words(
    "password passwords passwd passphrase passcode pwd secret secrets credential credentials creds key keys token "
    "cookie cookies csrf xsrf jwt ssn otp cvv cvc authorization authorisation auth mnemonic mnemonics phrase card "
    "keypair keypairs key_pair key-pair words number security bearer seed _pass hex pem base58 base64 d_hash t_hash "
    "y_hash _value _prod _json _bytes header"
)
_COUPLE_ENDS = _words("authorization cookie key token password secret")
_END_MAX = 6
_GAP = r"[\"' \t\]\\]"
_GAPS_MAX = 3


def _name_before(part: str, gap: int = 0) -> str:
    """Looks back from a separator, past up to three quotes, brackets and blanks, at the end of a name.

    Where there are more of them, as in a table, any name will do.
    """
    after = "." * gap + part
    # one look at three letters decides nearly always: each further one costs as much
    first = [_choice({word[-3:] for word in _NAME_ENDS}), ".[A-Za-z_][0-9]|_[0-9][0-9]"]
    exact = f"{_ends(_NAME_ENDS, after)}|(?<=[0-9]{after})"
    first.append(f"..{_GAP}")
    if gap < _GAPS_MAX:
        exact = f"(?<={_GAP}{after}){_name_before(part, gap + 1)}|(?<!{_GAP}{after})(?:{exact})"
    else:
        exact = f"(?<={_GAP}{after})|{exact}"
    return f"(?s:(?<=(?:{'|'.join(first)}){after})(?:{exact}))"


def _ends(words: Iterable[str], after: str) -> str:
    """Looks back at the last letters of a word."""
    by_length: dict[int, set[str]] = {}
    for word in words:
        by_length.setdefault(min(_END_MAX, len(word)), set()).add(word[-_END_MAX:])
    return "|".join(f"(?<=(?:{_choice(ends)}){after})" for _, ends in sorted(by_length.items()))


def _choice(texts: Iterable[str]) -> str:
    """A choice of texts in any case that is quickly decided: by their first letter."""
    by_first: dict[str, list[str]] = {}
    for text in sorted(texts):
        by_first.setdefault(text[0], []).append(text[1:])
    return "|".join(
        f"{letter}(?i:{'|'.join(rest)})"
        for first, rest in by_first.items()
        for letter in sorted({first, first.upper()})
    )


NAME_HINTS: tuple[str, ...] = (
    f":{_name_before(':')}",
    rf",(?<=[\"'],)(?:{_ends(_COUPLE_ENDS, '.,')})",
    r"--[A-Za-z][\w\-]{0,63}[ \t]",
)
"""Patterns of which one matches wherever a text may say `name=secret`, each `=` of it taken for a `:`.

Each begins with a literal character. Of the names that `name_rule` knows, a text is asked for those that end in one of
_NAME_ENDS, or in a digit, or in two after a `_`.
"""


def secret_span(shape: Shape, match: re.Match[str]) -> tuple[int, int]:
    """From where to where in its text a match of a shape must not be seen."""
    start, end = match.span("secret") if "secret" in shape.pattern.groupindex else match.span()
    return (start, end) if start < end else match.span()


def is_key_bytes(values: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a list is the 64 bytes of a Solana key file; also one that was cut off with `…[truncated n]`."""
    size = len(values)
    if size > 1 and isinstance(values[-1], str) and (cut := _CUT_LIST.fullmatch(values[-1])):
        size, values = size - 1 + int(cut[1]), values[:-1]
    return size == 64 and all(type(value) is int and 0 <= value <= 255 for value in values)


_CUT_LIST = re.compile(r"…\[truncated ([0-9]{1,9})\]")


def kind_of_secret(text: str) -> str | None:
    """What kind of secret stands in a text, for people, or None; its first 32 KiB are looked at."""
    head = text[:_VALUE_MAX]
    for shape in SHAPES:
        for match in shape.pattern.finditer(head):
            if shape.holds is None or shape.holds(head[max(0, match.start() - BEFORE_MAX) : match.start()], match[0]):
                return shape.label
    return None


def find_secrets(value: Any, path: str = "", rule: NameRule = NameRule.PLAIN) -> Iterator[tuple[str, str]]:
    """The secrets in nested values: where each stands, and what kind it is.

    Args:
        value: Mappings, lists and scalars.
        path: Where the value stands.
        rule: What the name of the value says.
    """
    if isinstance(value, str):
        if looks_secret(rule, value):
            yield path, "something under a name that secrets have"
        elif (kind := kind_of_secret(value)) is not None:
            yield path, kind
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from find_secrets(inner, f"{path}.{key}" if path else str(key), name_rule(str(key)))
    elif isinstance(value, list | tuple):
        if is_key_bytes(value):
            yield path, "a Solana secret key"
        for index, inner in enumerate(value):
            yield from find_secrets(inner, f"{path}[{index}]", rule)
