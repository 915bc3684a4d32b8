"""Redaction of values, case by case: names, lists and pairs; what is remembered; what a person may add."""

import hashlib
import hmac
from dataclasses import replace

import pytest

from jarvis_otel.redaction import Redactor, Unredacted, compile_keys, compile_patterns, pseudonym, redactor_of
from jarvis_otel.secrets import NameRule
from jarvis_otel.settings import Settings
from tests.planted import BOT_TOKEN, HEX64, KEY58, looked_at

redactor = Redactor()


@pytest.mark.parametrize(
    ("value", "output"),
    [
        # what stands in a container under the name of a secret or of a person
        ({"password": [1]}, {"password": "[redacted password]"}),
        ({"ip_address": ["10.0.0.1"]}, {"ip_address": "[redacted ip_address]"}),
        ({"ip_address": 1}, {"ip_address": "[redacted ip_address]"}),
        ({"password": ()}, None),
        ({"password": None}, None),
        ({"password": True}, None),
        ({"password": False}, None),
        ({"pwd": "x", "a": [None, True, False, 0]}, {"pwd": "[redacted pwd]", "a": [None, True, False, 0]}),
        # a list of bytes
        (list(range(64)), "[redacted solana_key]"),
        ([*range(40), "…[truncated 24]"], "[redacted solana_key]"),
        # what is public under one name is none under another
        ({"wallet": KEY58}, {"wallet": "[redacted solana_key]"}),
        ({"signature": KEY58}, None),
        ({"signature": KEY58[:87]}, None),
        ({"signature": f"{KEY58} {KEY58}"}, {"signature": "[redacted solana_key] [redacted solana_key]"}),
        ({"signature": "pwd=abcd"}, {"signature": "pwd=[redacted pwd]"}),
        # a mark is no secret
        ({"password": "[redacted password]"}, None),
        ({"password": "[redacted jwt]"}, None),
        ({"password": "[redacted jwt] x"}, {"password": "[redacted password]"}),
        # texts as short as can be
        ({"note": "pwd=abcd"}, {"note": "pwd=[redacted pwd]"}),
        ({"password": "x"}, {"password": "[redacted password]"}),
        # a name and its value apart
        ({"name": "api_key", "value": "x"}, {"name": "api_key", "value": "[redacted api_key]"}),
        ({"key": "api_key", "value": "x", "note": "y"}, {"key": "api_key", "value": "[redacted api_key]", "note": "y"}),
        ({"name": "symbol", "key": "api_key", "value": "x"}, None),
        ({"name": "signature", "value": KEY58}, {"name": "signature", "value": "[redacted solana_key]"}),
        ({"name": 5, "value": "x"}, None),
        ({"value": "x"}, None),
        (["api_key", "x"], ["api_key", "[redacted api_key]"]),
        (("api_key", "x"), ("api_key", "[redacted api_key]")),
        (["x", "api_key", "y"], None),
        (["x", "--api-key", "y"], ["x", "--api-key", "[redacted --api-key]"]),
        (["x", "--verbose", "y"], None),
        (["the password", "y"], None),
        ([5, "y"], None),
        ({"auth_token": ["x", "y"]}, {"auth_token": "[redacted auth_token]"}),
        ({"token": ["SOL", "a1b2c3d4e5f6"]}, {"token": ["SOL", "[redacted token]"]}),
        ({"token": ["-x", "a1b2c3d4e5f6", "SOL"]}, {"token": ["-x", "[redacted token]", "SOL"]}),
        # keys
        ({5: "pwd=abcd"}, {5: "pwd=[redacted pwd]"}),
        ({"a": 1, f"x {BOT_TOKEN}": 2}, {"a": 1, "x [redacted telegram_token] 1": 2}),
        ({BOT_TOKEN: 1, f"{BOT_TOKEN}!": "pwd=abcd"}, {"[redacted telegram_token] 0": 1, "[redacted telegram_token]! 1": "pwd=[redacted pwd]"}),
    ],
)  # fmt: skip
def test_names_and_pairs_say_what_is_secret_in_a_value(value, output):
    clean = redactor.scrub(value)
    if output is None:
        assert clean is value
    else:
        assert clean == output


def test_the_place_of_each_secret_is_told_of_twenty_and_in_two_hundred_characters():
    found = []
    redactor.scrub({"a": {"pwd": "x"}, "pwd": "x", "b": ["pwd=abcd"]}, found=found)
    assert found == ["a.pwd", "pwd", "b[0]"]
    found = []
    redactor.scrub({BOT_TOKEN: 1, "a": list(range(64))}, path="x", found=found)
    assert found == ["x.[redacted telegram_token]", "x.a"]
    found = []
    redactor.scrub([{"pwd": "x"}] * 30, path="list", found=found)
    assert found == [f"list[{index}].pwd" for index in range(20)]
    found = []
    redactor.scrub({"a" * 199: {"pwd": "x"}}, found=found)
    assert found == ["a" * 199 + "."]


# --- what is remembered -----------------------------------------------------------------------------------------------


def asked(own, name):
    """Whether what a name says has to be found out."""
    return "_new_rule" in looked_at(lambda: own.rule(name))[0]


def test_what_a_name_says_is_found_out_once():
    own = Redactor(allow=["API_KEY"])
    assert asked(own, "password")
    assert not asked(own, "password")
    assert own.rule("password") is NameRule.SECRET
    # a field that is known comes by without a further call
    own.field("symbol", "SOL")
    assert looked_at(lambda: own.field("symbol", "SOL"))[0] == ["<lambda>", "field"]
    assert "text" in looked_at(lambda: own.field("symbol", "SOL/USDC"))[0]


def test_so_many_names_are_remembered_and_none_that_is_long():
    own = Redactor()
    assert asked(own, "x" * 128)
    assert not asked(own, "x" * 128)
    assert asked(own, "x" * 129)
    assert asked(own, "x" * 129)

    own = Redactor()
    for number in range(4_096):
        own.rule(f"name{number}")
    assert not asked(own, "name0")
    assert asked(own, "one more")
    assert not asked(own, "one more")
    assert asked(own, "name0")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("jarvis.flag.NEW_JWT", NameRule.PLAIN),
        ("feature_flag.NEW_JWT", NameRule.PLAIN),
        ("trace_id", NameRule.PLAIN),
        ("span_id", NameRule.PLAIN),
        ("session_id", NameRule.PLAIN),
        ("session.id", NameRule.PLAIN),
        ("log.record.uid", NameRule.PLAIN),
        ("user_id", NameRule.SECRET),
        ("x" * 126 + "id", NameRule.SECRET),
        # of a longer name only so much is compared with patterns, which may be slow on it
        ("x" * 127 + "id", NameRule.PLAIN),
        ("x" * 127 + "_password", NameRule.SECRET),
        ("Password", NameRule.SIGNATURE),
    ],
)
def test_keys_of_ones_own_apply_to_all_names_but_those_of_flags_and_ids(name, rule):
    assert Redactor(keys=["id|flag", "uid"], allow=["passWORD"]).rule(name) is rule


# --- keys and patterns of one's own -----------------------------------------------------------------------------------


def test_further_keys_and_patterns_are_taken_out_and_names_can_be_allowed():
    own = Redactor(
        keys=["acme.*code"],
        patterns={"acme_key": r"acme-[0-9]{4}-\w+", "pin": r"PIN is (?P<secret>[0-9]{4})"},
        allow=["API_KEY", "my_signed"],
    )
    assert own.problems == ()
    assert own.text("see acme-1234-abcdef, and more") == "see [redacted acme_key], and more"
    assert own.text("the PIN is 1234 now") == "the PIN is [redacted pin] now"
    assert own.text("x ACME_door_code=77 y") == "x ACME_door_code=[redacted ACME_door_code] y"
    assert own.scrub({"acmeCode": 5, "api_key": "x", "my_signed": KEY58}) == {
        "acmeCode": "[redacted acmeCode]",
        "api_key": "x",
        "my_signed": KEY58,
    }
    assert own.scrub({"api_key": f"x {BOT_TOKEN}"}) == {"api_key": "x [redacted telegram_token]"}
    assert own.text(clean_text := "nothing of the kind: here") is clean_text
    assert Redactor(keys=["id"]).scrub(ids := {"trace_id": "x", "session_id": "y"}) is ids


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(", "which is no regular expression"),
        ("(a+)+", "no repeat inside a repeat"),
        ("(a|aa)+b", "no choice (a|b) inside a repeat"),
        ("a*", "matches the empty text"),
        ("(?=a)", "matches the empty text"),
        ("a+b", "an upper bound of at most 512"),
        ("x{1,600}y", "an upper bound of at most 512"),
        ("a{1,90}b{1,90}c", "fewer or tighter repeats"),
        (5, "want a regular expression as text"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_told_in_one_line_and_left_out(pattern, problem):
    patterns, problems = compile_patterns({"mine": pattern, "good": "acme-[0-9]+"})
    assert list(patterns) == ["good"]
    (line,) = problems
    assert line.startswith("patterns.mine: got ")
    assert problem in line
    assert "\n" not in line
    own = Redactor(patterns={"mine": pattern, "good": "acme-[0-9]+"})
    assert own.problems == (line,)
    assert own.text("see acme-12345") == "see [redacted good]"


def test_a_key_pattern_that_cannot_be_used_is_told():
    keys, problems = compile_keys(["ok", "(a+)+"])
    assert len(keys) == 1
    assert problems[0].startswith("keys[1]: got '(a+)+', want no repeat inside a repeat")


@pytest.mark.parametrize(
    ("own", "text", "output"),
    [
        (Redactor(keys=["door"]), "Door1 =ab, y", "Door1 =[redacted Door1], y"),
        (Redactor(keys=["door"]), "door=ab, y", "door=[redacted door], y"),
        (Redactor(keys=["door"]), "door_a: bc, y", "door_a: [redacted door_a], y"),
        (Redactor(keys=["door"]), "the door is open", None),
        (Redactor(keys=["door"]), "floor: ab, y", None),
        (Redactor(keys=["card"]), "my card: 12345, y", "my card: [redacted card], y"),
        (Redactor(patterns={"pin": "PIN [0-9]+"}), "my PIN 1234 x", "my [redacted pin] x"),
        (Redactor(patterns={"pin": "PIN(?: (?P<secret>[0-9]{4})|!)"}), "my PIN 1234 x", "my PIN [redacted pin] x"),
        (Redactor(patterns={"pin": "PIN(?: (?P<secret>[0-9]{4})|!)"}), "my PIN! x", "my [redacted pin] x"),
        (Redactor(patterns={"pin": "PIN (?P<secret>[0-9]*)"}), "my PIN , x", "my [redacted pin], x"),
        (Redactor(patterns={"my pin": "PIN [0-9]+"}), "my PIN 1234 x", "my [redacted secret] x"),
    ],
)
def test_keys_and_patterns_of_ones_own_are_found_in_texts(own, text, output):
    assert own.text(text) == (output or text)


@pytest.mark.parametrize(
    ("own", "text", "asks"),
    [
        (redactor, "a note: x = y", 1),
        (Redactor(keys=["door"]), "the floor is wet", 0),
        # two for each of two notes
        (Redactor(keys=["door"]), "a note: x = y", 3),
        (Redactor(patterns={"pin": "PIN [0-9]+"}), "a note: x = y", 2),
    ],
)
def test_only_who_gives_keys_or_patterns_pays_for_them(own, text, asks):
    own.text(text)
    functions, patterns = looked_at(lambda: own.text(text))
    assert "_without_secrets" not in functions
    assert len(patterns) <= asks
    assert ("names_secret" in functions) == (asks == 3)
    assert ("_is_suspect" in functions) == (own is not redactor)


@pytest.mark.parametrize(
    ("pattern", "is_good"),
    [
        # of a repeat that is not the last every length is a way to part a text
        ("x{1,256}y", True),
        ("x{1,257}y", False),
        ("x{0,255}y", True),
        ("x{3,258}y", True),
        ("x{1,16}y{1,16}z", True),
        ("x{1,16}y{1,17}z", False),
        ("(x{1,16})(y{1,16})z", True),
        ("(x{1,16})(y{1,17})z", False),
        ("(x{1,128}y{1,3})?z", False),
        ("(x{1,64}y{1,2})?z", True),
        ("(?:x{1,128}|y{1,128})z", True),
        ("(?:x{1,128}|y{1,129})z", False),
        ("(?=x{1,16}y{1,17}z)x", False),
        ("(?=x{1,16}y{1,16}z)x", True),
        ("(?!x{1,16}y{1,17}z)x", False),
        # the last takes what there is
        ("yx+", True),
        ("yx+?", True),
        ("y(x+)", True),
        ("y(zx+)?", True),
        ("y(?:x+|z+)", True),
        ("x{1,600}", True),
        ("(x+)y", False),
        ("(?:x+|z)y", False),
        ("y(?=x+)", False),
        ("(?=x+)x", False),
        ("(zx+)?y", False),
        # so many at least is a length in itself
        ("x{512,}", True),
        ("x{513,}", False),
        ("x{512}y", True),
        ("x{513}y", False),
    ],
)
def test_a_pattern_may_part_a_text_in_256_ways_before_its_last_repeat(pattern, is_good):
    patterns, problems = compile_patterns({"mine": pattern})
    assert (list(patterns) == ["mine"]) == is_good
    assert (problems == []) == is_good


# --- users, and redaction that is off ---------------------------------------------------------------------------------


def test_a_user_is_named_by_an_hmac_where_there_is_a_key():
    expected = hmac.new(b"k\xc3\xa9y", "tg_1é".encode(), hashlib.sha256).hexdigest()[:16]
    assert pseudonym("kéy", "tg_1é") == Redactor(hmac_key="kéy").pseudonym("tg_1é") == expected
    assert Redactor().pseudonym("tg_1") == "tg_1"
    assert len(pseudonym("k", "\ud800")) == 16


def test_a_pseudonym_is_made_with_any_key_and_of_any_user():
    assert len(pseudonym("\udc80", "tg_1")) == 16
    assert len(pseudonym("k", "\udc80")) == 16


def test_where_redaction_is_off_only_users_are_renamed():
    off = Unredacted(hmac_key="k")
    assert isinstance(off, Redactor)
    assert off.text(text := f"password={BOT_TOKEN}") is text
    assert off.field("password", text) is text
    assert off.scrub(value := {"password": [text]}) is value
    assert not off.names_secret("password")
    assert off.pseudonym("tg_1") == pseudonym("k", "tg_1")


def test_where_nothing_shall_be_taken_out_nothing_is():
    text = "password=let-me-in-2026"
    on, off = (redactor_of(replace(Settings.load({}), redact=redact)) for redact in (True, False))
    assert "let-me-in" not in on.text(text)
    assert off.text(text) == text


def test_where_redaction_is_off_no_name_says_anything_and_users_are_renamed_still():
    off = redactor_of(replace(Settings.load({}), redact=False, hmac_key="k"))
    assert isinstance(off, Unredacted)
    assert off.rule("password") is NameRule.PLAIN
    assert off.pseudonym("tg_1") == pseudonym("k", "tg_1")


def test_a_redactor_is_made_as_the_settings_say():
    own = redactor_of(
        replace(
            Settings.load({}),
            redact_keys=("door",),
            redact_patterns={"pin": "PIN [0-9]+"},
            redact_allow=frozenset({"api_key"}),
            hmac_key="k",
        )
    )
    assert own.scrub({"door": HEX64, "note": "PIN 1234", "api_key": "x"}) == {
        "door": "[redacted door]",
        "note": "[redacted pin]",
        "api_key": "x",
    }
    assert own.pseudonym("tg_1") == pseudonym("k", "tg_1")
