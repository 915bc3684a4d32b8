"""Takes secrets out of what is about to leave the process, and gives users pseudonyms."""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as sre  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any

from jarvis_flags.regex import RegexError, compile_regex
from jarvis_otel.secrets import (
    BEFORE_MAX,
    NAME_HINTS,
    SHAPES,
    NameRule,
    Shape,
    is_key_bytes,
    looks_secret,
    name_rule,
    secret_span,
)

if TYPE_CHECKING:
    from jarvis_otel.settings import Settings

__all__ = [
    "PATHS_MAX",
    "SHORTEST",
    "Redactor",
    "Unredacted",
    "compile_keys",
    "compile_patterns",
    "pseudonym",
    "redactor_of",
]

SHORTEST = 8
"""No text of fewer characters is looked into: `pwd=abcd` is the least that tells something.

A caller in a hurry asks for the length itself, and calls `Redactor.text` only from here on.
"""
PATHS_MAX = 20
"""So many places of secrets are told at once; secrets beyond them are taken out all the same."""

_PASSES_MAX = 4
"""A mark may show that what stands beside it is a secret too; two looks are nearly always enough."""

_NAMES_MAX = 4_096
_NAME_LENGTH_MAX = 128
_PATH_LENGTH_MAX = 200
_ALWAYS_PLAIN = ("trace_id", "span_id", "session_id", "session.id", "log.record.uid")
_FLAG_PREFIXES = ("jarvis.flag.", "feature_flag.")
"""Flags hold no secrets (lint sees to it), though one may be named NEW_JWT."""
_PLAIN, _SECRET, _SIGNATURE = NameRule.PLAIN, NameRule.SECRET, NameRule.SIGNATURE

_SIGNATURE_TEXT = re.compile(r"[1-9A-HJ-NP-Za-km-z]{87,88}")
_OPENING = "[redacted "
_MARK = re.compile(r"\[redacted [\w.\-]{1,64}\]")
_IS_NAME = re.compile(r"[\w.\-]{1,64}").fullmatch


def _mark(kind: str) -> str:
    # what is no plain name may tell more than a name
    return f"[redacted {kind if _IS_NAME(kind) else 'secret'}]"


def _gate(first: str, then: str = "") -> Callable[[str], re.Match[str] | None]:
    """Searches for what may be a secret around a character, which `re` finds by memchr as each hint begins with it.

    Args:
        first: The character, and more where hints of another kind begin with it, too.
        then: What follows it in all of these hints: asked once, it spares asking each.
    """
    hints = [*(hint for shape in SHAPES for hint in shape.hints), *NAME_HINTS]
    own = [hint.removeprefix("\\") for hint in hints]
    choice = "|".join(hint[len(first) :] for hint in own if hint.startswith(first))
    return re.compile(f"{re.escape(first)}{then}(?:{choice})", re.ASCII).search


_colon, _comma, _option = map(_gate, (":", ",", "--"))
_underscore = _gate("_", r"(?=[A-Za-z0-9+/]{16})")
_dash = _gate("-", r"(?=[A-Za-z0-9_\-]{9})")
_capital_a, _capital_j, _percent, _zero, _bracket, _parenthesis = map(_gate, "AJ%0[(")

_ENCODED_MIN = 39
"""A bot token with its colon as %3A has so many characters at least."""
_LONG_MIN = 69
"""What is only in longer texts: private keys in hex (66, after a word), in base58 (87) and as lists of bytes (129)."""
_RUN = 87
_TAIL = 1_421
"""So many characters are left of a list of bytes at most, its blanks and the note of the cut counted."""
# up to the last character of a stretch that is no digit of base58
_leap = re.compile(r"(?s).{0,86}[^1-9A-HJ-NP-Za-km-z]").match


def _is_suspect(text: str) -> bool:
    """Whether a long text may hold what only long texts can hold."""
    return bool(
        ("0" in text and _zero(text))
        or ("[" in text and _bracket(text))
        or ("(" in text and _parenthesis(text))
        or (len(text) >= _RUN and _has_run(text))
    )


def _has_run(text: str) -> bool:
    """Whether 87 digits of base58 follow each other; goes ahead from blank to blank, as far apart as can be."""
    at, last = 0, len(text) - _RUN
    while at <= last:
        blank = text.rfind(" ", at, at + _RUN)
        if blank >= 0:
            at = blank + 1
        elif other := _leap(text, at):
            at = other.end()
        else:
            break
    return at <= last


_Search = Callable[[str], object]
_FINDERS: tuple[tuple[Shape, _Search], ...] = tuple(
    (shape, re.compile("|".join(shape.hints), re.ASCII).search if shape.hints else _has_run) for shape in SHAPES
)


def _without_shape(text: str, shape: Shape) -> str:
    pieces: list[str] = []
    done = at = 0
    before = ""
    for match in shape.pattern.finditer(text):
        start, end = secret_span(shape, match)
        before = (before + text[at:start])[-BEFORE_MAX:]
        at = start
        if shape.holds is None or shape.holds(before, match[0]):
            mark = _mark(shape.kind)
            pieces += (text[done:start], mark)
            # the mark of a key says of the next one that it is a key too
            before += mark
            done = at = end
    return "".join((*pieces, text[done:]))


# A name, and what parts it from its value.
_NAMED = re.compile(
    r"(?<![\w.\-])(?P<name>[\w.\-]++)[\"'\\\]]{0,4}[ \t]{0,32}+(?P<part>=>|:=|={1,3}|:(?!//|:))[ \t]{0,32}", re.ASCII
)
# An option of a command line.
_OPTION = re.compile(r"(?<![\w\-])--(?P<name>[A-Za-z][\w\-]{0,63})(?P<part>[ \t]{1,8})(?!--|\s)", re.ASCII)
# Two quoted texts, as in ("authorization", "…") and ["psql", "--password", "…"].
_COUPLE = re.compile(
    r"(?P<open>[\[(]?)b?(?P<quote>[\"'])(?P<name>-{0,2}[A-Za-z][\w.\-]{0,63})(?P=quote)"
    r"(?P<part>,[ \t\n]{0,8})(?=b?[\"'])",
    re.ASCII,
)
_WORD_BEFORE = re.compile(r"([A-Za-z]{2,16}) \Z")
_LAST_WORDS = frozenset(["key", "keys", "phrase", "words", "token", "card", "number"])
"""`private key: …`, `seed phrase: …`: what may be the second word of a name in a text for people."""

_QUOTED = re.compile(
    r"""b?"(?P<double>(?:[^"\\]++|\\.)*)|b?'(?P<single>(?:[^'\\]++|\\.)*)"""
    r"""|\\"(?P<escaped>(?:[^"\\]++|\\\\(?:\\.)?|\\[^"\\])*)|\\'(?P<escaped1>(?:[^'\\]++|\\\\(?:\\.)?|\\[^'\\])*)""",
    re.DOTALL,
)
# Up to a blank, or to a mark or bracket that ends a value: at the end, before another one, before the next name.
_BARE = re.compile(
    r"(?:\[redacted [\w.\-]{1,64}\]|[^\s&\"'<>,;()\[\]{}\\]++|\\(?![\"']|\Z)"
    r"|[&\"'<>,;()\[\]{}](?![\s\"',;)\]}>&]|\Z|[\w.\-]{1,40}[=:]))*"
)
# Up to the end of the line, or of the quotes around it.
_LINE = re.compile(r"(?:[^\r\n\"'\\]++|[\"'](?![\s,;)\]}]|\Z)|\\(?![nr\"']))*")
_BRACKET = re.compile(r"[\[\](){}]")
_OF_A_LINE = re.compile(r"cookie|authori[sz]ation", re.IGNORECASE)
_OF_WORDS = re.compile(r"phrase|mnemonic|(?<!pass)words", re.IGNORECASE)
_SCHEME = re.compile(r"(?:basic|bearer|token|bot|apikey|jwt|negotiate|ntlm)[ \t]+", re.IGNORECASE)
_CODE_MAX = 80
_SAYS_NOTHING = (
    " absent any bad bool bytes changed denied disabled empty enabled expired failed false found granted hidden "
    "incorrect int invalid is malformed mismatch missing must no none not null object off ok on optional rejected "
    "removed required rotated set str string success successful true undefined unknown unset valid was wrong yes "
)
_MASK = re.compile(r"[*•.xX\-]+")

_CUT = "…[truncated "
_CUT_OFF = re.compile(
    r"(?:[0-9]{6,12}:[A-Za-z0-9_\-]{4,29}|(?<![1-9A-HJ-NP-Za-km-z])[1-9A-HJ-NP-Za-km-z]{45,86}"
    r"|[\[(]\s{0,9}(?:[0-9]{1,3}\s{0,9},\s{0,9}){8,63}[0-9]{0,3}"
    r"|(?<=://)[^\s/:@]{0,64}:(?![0-9]{1,5}…)[^\s/@]{1,256})(?=…\[truncated [0-9]{1,9}\]\Z)"
)


def _cut_secret(text: str) -> re.Match[str] | None:
    """What is left of a secret where a text was cut off in the middle of it."""
    return _CUT_OFF.search(text, max(0, len(text) - _TAIL))


def _closing(text: str, start: int) -> int:
    """Where a bracket closes; the end of the text where it does not."""
    depth = 0
    for bracket in _BRACKET.finditer(text, start):
        depth += 1 if bracket[0] in "[({" else -1
        if depth == 0:
            return bracket.end()
    return len(text)


class Redactor:
    """Takes secrets out of texts and values; what holds none is handed back as the very same object.

    It keeps no state but bounded caches, and may be shared by threads.

    Args:
        keys: Further patterns of names whose values are secret, found anywhere in a name in any case (`compile_keys`).
        patterns: Further shapes of secrets by their name (`compile_patterns`).
        allow: Names that are no secrets whatever they look like, in any case; known shapes in their values are still
            taken out, but for base58 signatures.
        hmac_key: Key of pseudonyms; None leaves user ids as they are.

    Attributes:
        problems: One line for each of the keys and patterns that cannot be used, for people.
    """

    def __init__(
        self,
        keys: Iterable[str] = (),
        patterns: Mapping[str, str] | None = None,
        allow: Iterable[str] = (),
        hmac_key: str | None = None,
    ) -> None:
        self._keys, problems = compile_keys(keys)
        custom, more = compile_patterns(patterns or {})
        self.problems: tuple[str, ...] = (*problems, *more)
        self._hmac_key = hmac_key
        self._allowed = {name.lower(): _SIGNATURE for name in allow} | dict.fromkeys(_ALWAYS_PLAIN, _PLAIN)
        self._rules: dict[str, NameRule] = {}
        self._patterns = tuple(pattern.search for pattern in custom.values())
        own = [(Shape(name, name, (), pattern), pattern.search) for name, pattern in custom.items()]
        self._finders: tuple[tuple[Shape, _Search], ...] = (*_FINDERS, *own)
        self._is_custom = bool(self._keys or custom)

    def rule(self, name: str) -> NameRule:
        """What the name of a field says of its value; remembered."""
        rule = self._rules.get(name)
        if rule is None:
            rule = self._allowed.get(name.lower())
            if rule is None:
                rule = self._new_rule(name)
            if len(name) <= _NAME_LENGTH_MAX:
                if len(self._rules) >= _NAMES_MAX:
                    self._rules.clear()
                self._rules[name] = rule
        return rule

    def _new_rule(self, name: str) -> NameRule:
        if name.startswith(_FLAG_PREFIXES):
            return _PLAIN
        head = name[:_NAME_LENGTH_MAX]
        return _SECRET if any(key.search(head) for key in self._keys) else name_rule(name)

    def names_secret(self, name: str) -> bool:
        """Whether whatever stands under a name is secret."""
        rule = self.rule(name)
        return rule is _SECRET or rule is NameRule.PERSONAL

    def text(self, value: str) -> str:
        """The text with `[redacted KIND]` for each secret in it; the same object where there is none."""
        # Called for every text of every record. A single character is looked for by memchr, so each line costs next
        # to nothing where the character is missing, and a search that begins with it where it is there.
        size = len(value)
        if size < SHORTEST:
            return value
        if (
            ((":" in value or "=" in value) and _colon(value.replace("=", ":")))
            or ("_" in value and _underscore(value))
            or ("-" in value and (_dash(value) or _option(value)))
            or ("A" in value and _capital_a(value))
            or ("J" in value and _capital_j(value))
            or "earer" in value
            or ("R" in value and "EARER" in value)
            or ((("'" in value) or ('"' in value)) and _comma(value))
            or (size >= _ENCODED_MIN and "%" in value and _percent(value))
            or (size >= _LONG_MIN and _is_suspect(value))
            or (_CUT in value and _cut_secret(value))
            or (self._is_custom and self._is_suspect(value))
        ):
            for _ in range(_PASSES_MAX):
                cleaned = self._without_secrets(value)
                if cleaned == value:
                    break
                value = cleaned
        return value

    def field(self, name: str, value: str) -> str:
        """The text of a field without secrets: `[redacted NAME]` where its name is that of a secret.

        Args:
            name: The field's name.
            value: The text; the same object comes back where it is no secret.
        """
        rule = self._rules.get(name) or self.rule(name)
        if rule is not _PLAIN:
            if looks_secret(rule, value):
                return value if _MARK.fullmatch(value) else _mark(self.text(name))
            if rule is _SIGNATURE and _SIGNATURE_TEXT.fullmatch(value):
                return value
        return value if len(value) < SHORTEST else self.text(value)

    def scrub(self, value: Any, name: str = "", path: str = "", found: list[str] | None = None) -> Any:
        """The value without secrets: the same object where there are none, else a copy.

        Args:
            value: Plain JSON-able data of bounded depth, as `encode.clean` gives it.
            name: The name of the field that it stands in.
            path: Where it stands, such as `context.headers`.
            found: Gets the path of each secret that was taken out, up to PATHS_MAX.

        Returns:
            The value. Under the name of a secret a text, a number or a container is replaced as a whole, while None,
            booleans and what is empty stay.
        """
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            clean: Any = self.field(name, value)
        elif self.names_secret(name) and value not in ({}, [], ()):
            clean = _mark(self.text(name))
        elif isinstance(value, dict):
            return self._scrub_dict(value, path, found)
        elif isinstance(value, list | tuple):
            if not is_key_bytes(value):
                return self._scrub_list(value, name, path, found)
            clean = _mark("solana_key")
        else:
            return value
        if clean is not value:
            _tell(found, path)
        return clean

    def _scrub_dict(self, value: dict[Any, Any], path: str, found: list[str] | None) -> dict[Any, Any]:
        items: list[tuple[Any, Any]] = []
        changed = False
        for key, item in value.items():
            name = under = str(key)
            shown = self.text(name)
            inner = f"{path}.{shown}" if path else shown
            if name == "value":
                # {"name": "Authorization", "value": "…"}, as headers are often written
                named = value.get("name", value.get("key"))
                if isinstance(named, str) and self.names_secret(named):
                    under = named
            clean = self.scrub(item, under, inner, found)
            if shown is not name:
                _tell(found, inner)
                # two secrets of a kind are two keys still
                key = f"{shown} {len(items)}"  # noqa: PLW2901
                changed = True
            changed = changed or clean is not item
            items.append((key, clean))
        return dict(items) if changed else value

    def _scrub_list(
        self, value: list[Any] | tuple[Any, ...], name: str, path: str, found: list[str] | None
    ) -> list[Any] | tuple[Any, ...]:
        items = []
        changed = False
        before = ""
        pair = len(value) == 2
        for index, item in enumerate(value):
            # ["authorization", "…"] as headers, ["--password", "…"] as arguments
            named = before if (pair or before.startswith("-")) and self.names_secret(before) else name
            clean = self.scrub(item, named, f"{path}[{index}]", found)
            changed = changed or clean is not item
            items.append(clean)
            before = item if isinstance(item, str) and _IS_NAME(item) else ""
        if not changed:
            return value
        return items if isinstance(value, list) else tuple(items)

    def pseudonym(self, user_id: str) -> str:
        """The name by which a user is known outside of the process; the id itself where there is no key."""
        return pseudonym(self._hmac_key, user_id) if self._hmac_key else user_id

    def _is_suspect(self, value: str) -> bool:
        """Whether the keys and patterns that were given ask for a closer look."""
        return any(search(value) for search in self._patterns) or (
            bool(self._keys)
            and (":" in value or "=" in value)
            and any(self.names_secret(m["name"]) for m in _NAMED.finditer(value))
        )

    def _without_secrets(self, value: str) -> str:
        text = value
        for shape, suspects in self._finders:
            if suspects(text):
                text = _without_shape(text, shape)
        text = self._without_named(text, _NAMED)
        if "--" in text:
            text = self._without_named(text, _OPTION)
        if _comma(text):
            text = self._without_named(text, _COUPLE)
        if _CUT in text and (cut := _cut_secret(text)):
            text = f"{text[: cut.start()]}{_mark('cut_off')}{text[cut.end() :]}"
        return text

    def _without_named(self, text: str, pattern: re.Pattern[str]) -> str:
        """Takes out the values of secret names."""
        pieces: list[str] = []
        done = at = 0
        while found := pattern.search(text, at):
            at = found.end()
            span = self._secret_value(found)
            if span is not None:
                start, at = span
                pieces += (text[done:start], _mark(found["name"].strip("-.")))
                done = at
        return "".join((*pieces, text[done:]))

    def _secret_value(self, found: re.Match[str]) -> tuple[int, int] | None:
        """From where to where the secret stands that belongs to a name, if it is one."""
        text, start = found.string, found.end()
        name, rule = self._name_in(found)
        if rule is not _SECRET and rule is not NameRule.TOKEN:
            return None
        if text[start : start + 1] in ("[", "(", "{") and not _MARK.match(text, start):
            return (start, _closing(text, start)) if rule is _SECRET else None
        quoted = _QUOTED.match(text, start)
        if quoted is not None:
            start, end = quoted.span(str(quoted.lastgroup))
        if found.re is _COUPLE and not name.startswith("-") and not (found["open"] and text[end + 1 : end + 2] in ")]"):
            return None
        scheme = _SCHEME.match(text, start) if "auth" in name.lower() else None
        if scheme is not None:
            start = scheme.end()
        if quoted is None:
            of_a_line = _OF_WORDS.search(name) or (":" in found["part"] and _OF_A_LINE.search(name))
            pattern = _LINE if of_a_line and not scheme else _BARE
            end = found.end() if (bare := pattern.match(text, start)) is None else bare.end()
        value = text[start:end].strip()
        if _MARK.fullmatch(value) or not looks_secret(rule, value) or _says_nothing(value, name):
            return None
        return start, end

    def _name_in(self, found: re.Match[str]) -> tuple[str, NameRule]:
        """The name before a value, and what it says; `private key` is one name."""
        name = found["name"]
        start = found.start("name")
        if _MARK.match(found.string, start - len(_OPENING)):
            return name, _PLAIN
        rule = self.rule(name)
        if name.lower() in _LAST_WORDS:
            before = _WORD_BEFORE.search(found.string, max(0, start - 17), start)
            if before is not None and self.rule(spaced := f"{before[1]} {name}") is _SECRET:
                return spaced, _SECRET
        return name, rule


def _says_nothing(value: str, name: str) -> bool:
    """Whether what stands for a secret tells none: a word about it, asterisks, or code that names it again."""
    word = value.rstrip(".,;:!)\"'").lower()
    return (
        f" {word} " in _SAYS_NOTHING
        or _MASK.fullmatch(value) is not None
        or (len(value) <= _CODE_MAX and (value == name or value.endswith(f".{name}")))
    )


def _tell(found: list[str] | None, path: str) -> None:
    if found is not None and len(found) < PATHS_MAX:
        found.append(path[:_PATH_LENGTH_MAX])


class Unredacted(Redactor):
    """Leaves everything as it is, but for the pseudonyms of users.

    Args:
        hmac_key: Key of pseudonyms; None leaves user ids as they are.
    """

    def __init__(self, hmac_key: str | None = None) -> None:
        super().__init__(hmac_key=hmac_key)

    def rule(self, name: str) -> NameRule:  # noqa: ARG002
        """No name says anything."""
        return _PLAIN

    def text(self, value: str) -> str:
        """The text."""
        return value

    def scrub(self, value: Any, name: str = "", path: str = "", found: list[str] | None = None) -> Any:  # noqa: ARG002
        """The value."""
        return value


def redactor_of(settings: Settings) -> Redactor:
    """What takes secrets out as the settings say; one that finds none where they want none taken out."""
    if not settings.redact:
        return Unredacted(hmac_key=settings.hmac_key)
    return Redactor(settings.redact_keys, settings.redact_patterns, settings.redact_allow, settings.hmac_key)


@functools.lru_cache(maxsize=4_096)
def pseudonym(hmac_key: str, user_id: str) -> str:
    """The name by which a user is known outside of the process: 16 hex digits of HMAC-SHA256.

    Args:
        hmac_key: The setting; whoever has it can find a known user's pseudonym, but no user by a pseudonym.
        user_id: The user's id.
    """
    data = user_id.encode("utf-8", "surrogatepass")
    return hmac.new(hmac_key.encode("utf-8", "surrogatepass"), data, hashlib.sha256).hexdigest()[:16]


def compile_keys(keys: Iterable[str]) -> tuple[tuple[re.Pattern[str], ...], list[str]]:
    """Patterns of names whose values are secret, for any case of letters.

    Args:
        keys: Regular expressions, in Python's syntax; see jarvis_flags.regex for their bounds.

    Returns:
        The patterns that can be used, and one line for each that cannot.
    """
    compiled, problems = [], []
    for index, key in enumerate(keys):
        try:
            compile_regex(_text_of(key))
            compiled.append(re.compile(key, re.IGNORECASE))
        except RegexError as error:
            problems.append(f"keys[{index}]: {error}")
    return tuple(compiled), problems


def compile_patterns(patterns: Mapping[str, str]) -> tuple[dict[str, re.Pattern[str]], list[str]]:
    r"""Shapes of secrets that take linear time on any text.

    Args:
        patterns: Regular expressions by the name of what they find, in Python's syntax. Only the last repeat may be
            without an upper bound, as in `acme-[0-9]{4}-\w+`. Where there is a group `secret`, only that is taken out.

    Returns:
        The patterns that can be used, and one line for each that cannot.
    """
    compiled, problems = {}, []
    for name, pattern in patterns.items():
        try:
            compiled[str(name)] = compile_regex(_text_of(pattern))
            _check_linear(pattern)
        except RegexError as error:
            compiled.pop(str(name), None)
            problems.append(f"patterns.{name}: {error}")
    return compiled, problems


_WAYS_MAX = 256
_REPEAT_MAX = 512


def _text_of(pattern: Any) -> str:
    if not isinstance(pattern, str):
        raise RegexError(f"got {pattern!r}, want a regular expression as text")
    return pattern


def _check_linear(pattern: str) -> None:
    """Refuses what compile_regex lets pass for short texts, but takes long on 32 KiB.

    Raises:
        RegexError: It does.
    """
    tree = sre.parse(pattern)
    if tree.getwidth()[0] == 0:
        raise RegexError(f"got {pattern!r}, which matches the empty text; want at least one character to match")
    if _ways(pattern, tree, last=True) > _WAYS_MAX:
        raise RegexError(f"got {pattern!r}, want fewer or tighter repeats, such as {{8,16}}: it may take long")


def _ways(pattern: str, tree: Any, *, last: bool) -> int:
    """In how many ways a stretch of text can be parted among the repeats; the last one takes what is left."""
    ways = 1
    items = list(tree)
    for index, (code, argument) in enumerate(items):
        ends = last and index == len(items) - 1
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, inner = argument
            if least > _REPEAT_MAX or (most > _REPEAT_MAX and not ends):
                raise RegexError(
                    f"got {pattern!r}, want an upper bound of at most {_REPEAT_MAX} for each repeat but the last, "
                    "such as {1,64} for +: it may take long"
                )
            if not ends:
                ways *= most - least + 1
            ways *= _ways(pattern, inner, last=ends)
        elif code is codes.BRANCH:
            ways *= sum(_ways(pattern, branch, last=ends) for branch in argument[1])
        elif code is codes.SUBPATTERN:
            ways *= _ways(pattern, argument[-1], last=ends)
        elif code in (codes.ASSERT, codes.ASSERT_NOT):
            ways *= _ways(pattern, argument[1], last=False)
    return ways
