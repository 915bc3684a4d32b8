"""What a record must be to be found: small filters, and the bytes by which a line is passed over unparsed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jarvis_collector.record import UNKNOWN_SERVICE
from jarvis_otel.query import logql
from jarvis_otel.query.times import Interval, canonical_time
from jarvis_otel.settings import LEVELS

__all__ = [
    "ESCAPE",
    "ID_KEYS",
    "LOKI_LABELS",
    "Facts",
    "Filter",
    "Needle",
    "Record",
    "contained_in_request",
    "containing",
    "correlation_filter",
    "equalling",
    "field_filter",
    "flag_filter",
    "flag_or_error_filter",
    "flag_state",
    "flag_states",
    "interval_filter",
    "is_evaluation",
    "level_filter",
    "names_of",
    "searched_texts",
    "text_filter",
    "trace_filter",
    "user_filter",
]

Record = Mapping[str, Any]
"""One parsed line."""

ESCAPE = b"\\u"
"""A line with one of these may hold any text without showing its bytes: JSON lets a writer escape what it likes."""

ID_KEYS = ("correlation_id", "trace_id")
"""The keys of a line whose values an index knows."""

_ALIASES = {"WARN": "WARNING", "FATAL": "CRITICAL"}
_NEEDLES_MAX = 16

LOKI_LABELS: Mapping[str, tuple[str, ...]] = {
    "service": ("jarvis.service", "service.name"),
    "correlation_id": ("jarvis.correlation_id", "trace_id"),
    "trace_id": ("trace_id",),
    "span_id": ("span_id",),
    "request_id": ("jarvis.request_id",),
    "user_id": ("user.id",),
    "session_id": ("session.id",),
    "event": ("event_name",),
    "logger": ("scope_name",),
}
"""Under which names Loki knows the keys of a line."""

# Quote, backslash and slash have two-character escapes beside \u; control characters are always escaped.
_PLAIN = re.compile(r'[^"\\/\x00-\x1f\ud800-\udfff]+')
_PLAIN_ASCII = re.compile(r"[ !#-.0-\[\]-\x7f]+")

# The two characters beyond ASCII whose lower case holds an ASCII letter (i and k), as the line's bytes.
_LOWER_TO_ASCII = ("\u0130".encode(), "\u212a".encode())

# Runs of characters that JSON has in a string, number or constant only, never between two of them; and in any parser's
# reading of bytes that are no UTF-8.
_WITHIN_ONE = re.compile(r"[ !#-+\-.0-9;-Z^-z|~\x7f]+")
_NUMBER_PART = re.compile(r"[0-9.eE+-]+")
_CONSTANTS = "true,false,null,nan,-infinity"
_HEX = re.compile(r"[0-9a-fA-F]+")
_WHOLE_VALUE = re.compile(r'[^"\\/\x00-\x1f\ud800-\udfff\ufffd]+')

# The start of a line of ours; the bytes compare like times.
_LINE_TIME = re.compile(rb'\{"timestamp":"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z)"')


@dataclass(frozen=True, slots=True)
class Needle:
    """Bytes of which at least one stands in each line that can match.

    Attributes:
        alternatives: The byte strings.
        lowered: Whether they are looked for in the line's ASCII lower case.
    """

    alternatives: tuple[bytes, ...]
    lowered: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of each wanted record without looking at it: what an index passes over blocks by.

    Attributes:
        levels: Its level is one of these, or a list in which one of them is.
        service: It is of this service, or of a list in which it is.
        ids: Its correlation id or its trace id is one of these, or a list in which one of them is.
    """

    levels: frozenset[str] | None = None
    service: str | None = None
    ids: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on a record; what is asked for is the conjunction of several.

    The two ways to pass a line over unparsed may let a line through that does not match, never the reverse.

    Attributes:
        matches: Whether a parsed record is wanted.
        needle: Bytes that a wanted line holds, if there are such.
        possible: Whether a line of these bytes can be wanted, if that can be said.
        request: Bytes that a whole OTLP/JSON request holds in which a wanted record is; a wanted line holds them too.
        loki: What Loki is asked, so that little else comes back.
        facts: What is known of each wanted record.
        is_interval: Whether it asks for an interval and nothing else.
    """

    matches: Callable[[Record], bool]
    needle: Needle | None = None
    possible: Callable[[bytes], bool] | None = None
    request: Needle | None = None
    loki: logql.Asked = logql.ANYTHING
    facts: Facts | None = None
    is_interval: bool = False


def equalling(text: str) -> Needle | None:
    """The needle of lines in which a JSON string (a value or a key) is this text."""
    if _PLAIN.fullmatch(text):
        return Needle((b'"%s"' % text.encode(), ESCAPE))
    return _longest(_PLAIN, text)


def containing(text: str) -> Needle | None:
    """The needle of lines in which a JSON string holds this text, whatever the case of its letters."""
    # a text of digits may also be part of a number: those are written as they are
    needle = _longest(_PLAIN_ASCII, text.lower())
    if needle is None:
        return None
    return Needle((*needle.alternatives, *_LOWER_TO_ASCII), lowered=True)


def _longest(plain: re.Pattern[str], text: str) -> Needle | None:
    run = max(plain.findall(text), key=len, default="")
    return Needle((run.encode(), ESCAPE)) if len(run) >= 3 else None


def _any_of(values: Iterable[str], make: Callable[[str], Needle | None] = equalling) -> Needle | None:
    needles: list[Needle] = []
    for value in values:
        needle = make(value)
        if needle is None or len(needles) == _NEEDLES_MAX:
            return None
        needles.append(needle)
    lowered = any(needle.lowered for needle in needles)
    alternatives = {ESCAPE, *(one.lower() if lowered else one for needle in needles for one in needle.alternatives)}
    return Needle(tuple(sorted(alternatives)), lowered)


def contained_in_request(text: str, *, any_case: bool = False) -> Needle | None:
    """The needle of OTLP/JSON requests in which a string, or a whole number, holds this text.

    What a line shows as one text may be an array or a map in the request, so only what lies within one of its values
    counts; and a number is written in other ways than a line has it, save for the digits of a whole one.

    Args:
        text: The text.
        any_case: Whatever the case of its letters.
    """
    runs = _WITHIN_ONE.findall(text.lower() if any_case else text)
    others = _LOWER_TO_ASCII if any_case else ()
    for run in sorted(map(str.lower, runs), key=len, reverse=True):
        if len(run) < 3 or run in _CONSTANTS:
            continue
        if not _NUMBER_PART.fullmatch(run):
            return Needle((run.encode(), ESCAPE, *others), lowered=True)
        if run.isdecimal():
            return Needle((run.encode(), b"doublevalue", ESCAPE), lowered=True)
    return None


def _value_in_request(text: str) -> Needle | None:
    """The needle of OTLP/JSON requests in which a string is this text, or an id these hex digits in any case."""
    if _WHOLE_VALUE.fullmatch(text):
        if not _HEX.fullmatch(text):
            return Needle((b'"%s"' % text.encode(), ESCAPE))
        return Needle((b'"%s"' % text.encode().lower(), ESCAPE), lowered=True)
    return contained_in_request(text)


def level_filter(text: str) -> Filter:
    """Records of a level: `ERROR` is ERROR and above, `=ERROR` exactly that; WARN and FATAL are known too.

    Raises:
        ValueError: There is no such level.
    """
    name = text.strip().removeprefix("=").strip().upper()
    name = _ALIASES.get(name, name)
    if name not in LEVELS:
        raise ValueError(f"got {text!r}, want one of {', '.join(LEVELS)}, with = before it for exactly that level")
    exact = text.strip().startswith("=")
    wanted = {level for level, number in LEVELS.items() if (level == name if exact else number >= LEVELS[name])}
    # below WARNING nearly every line would be a hit: parsing is cheaper than looking first
    rare = exact or LEVELS[name] >= LEVELS["WARNING"]
    needle = _any_of(sorted(wanted)) if rare else None
    facts = Facts(levels=frozenset(wanted))
    return Filter(lambda record: _text(record.get("level")) in wanted, needle, loki=logql.levels(wanted), facts=facts)


def field_filter(key: str, value: str) -> Filter:
    """Records of which one key of the line, `service` or an id, is exactly this text."""
    # the one text that a line says of a request that does not
    request = None if value == UNKNOWN_SERVICE else _value_in_request(value)
    loki = logql.equals_any(LOKI_LABELS[key], (value,))
    facts = Facts(service=value) if key == "service" else Facts(ids=frozenset({value})) if key in ID_KEYS else None
    return Filter(lambda record: record.get(key) == value, equalling(value), request=request, loki=loki, facts=facts)


def user_filter(names: Iterable[str]) -> Filter:
    """Records of a user, who may be known by several names: an id and its pseudonym."""
    wanted = frozenset(names)
    return Filter(
        lambda record: _text(record.get("user_id")) in wanted,
        _any_of(sorted(wanted)),
        request=_any_of(sorted(wanted), _value_in_request),
        loki=logql.equals_any(LOKI_LABELS["user_id"], wanted),
    )


def names_of(user_id: str, hmac_key: str | None) -> tuple[str, ...]:
    """The names by which records know a user: the id, and its pseudonym where there is a key for one.

    Args:
        user_id: The user.
        hmac_key: The key of the users' pseudonyms, where there are such.
    """
    if not hmac_key:
        return (user_id,)
    from jarvis_otel.redaction import pseudonym  # noqa: PLC0415 - takes long; most questions need none

    return (user_id, pseudonym(hmac_key, user_id))


def correlation_filter(correlation_id: str, trace_ids: Iterable[str] = ()) -> Filter:
    """Records of a correlation id or of one of the traces; an id may itself be a trace id."""
    traces = frozenset({correlation_id.lower(), *trace_ids})
    return Filter(
        lambda record: record.get("correlation_id") == correlation_id or _text(record.get("trace_id")) in traces,
        _any_of(sorted({correlation_id, *traces})),
        request=_any_of(sorted({correlation_id, *traces}), _value_in_request),
        loki=logql.equals_any(LOKI_LABELS["correlation_id"], {correlation_id, *traces}),
        facts=Facts(ids=frozenset({correlation_id, *traces})),
    )


def trace_filter(trace_id: str) -> Filter:
    """Records of a trace; the id's hex digits may be in any case."""
    return field_filter("trace_id", trace_id.strip().lower())


def flag_filter(text: str) -> Filter:
    """Records by a flag: `FLAG` was on, `FLAG=off` and `FLAG=variant` gave that.

    Raises:
        ValueError: The text names no flag.
    """
    flag_id, equals, variant = text.partition("=")
    if not flag_id or (equals and not variant):
        raise ValueError(f"got {text!r}, want FLAG, FLAG=off or FLAG=variant")
    needle, request = equalling(flag_id), contained_in_request(flag_id)
    if equals:
        loki = logql.flag_is(flag_id, variant)
        return Filter(lambda record: flag_state(record, flag_id) == variant, needle, request=request, loki=loki)
    loki = logql.flag_was_on(flag_id)
    return Filter(lambda record: flag_id in _list(record.get("active_flags")), needle, request=request, loki=loki)


def flag_or_error_filter(flag_id: str) -> Filter:
    """Records and spans that tell a flag, or its change, or that something failed."""

    def matches(record: Record) -> bool:
        if record.get("level") in ("ERROR", "CRITICAL") or flag_state(record, flag_id) is not None:
            return True
        status, context = record.get("status"), record.get("context")
        if isinstance(status, dict):
            return status.get("code") == "error"
        return isinstance(context, dict) and context.get("feature_flag.key") == flag_id

    needle = _any_of([flag_id, "ERROR", "CRITICAL", "error"])
    return Filter(matches, needle, loki=logql.flag_or_error(flag_id))


def flag_states(record: Record) -> dict[str, str]:
    """Variant by flag id as a record says it; a flag that is only listed as active was `on`."""
    flags = record.get("flags")
    states = {item: "on" for item in _list(record.get("active_flags")) if isinstance(item, str)}
    if isinstance(flags, dict):
        states.update((key, value) for key, value in flags.items() if isinstance(value, str))
    return states


def flag_state(record: Record, flag_id: str) -> str | None:
    """The variant of one flag as `flag_states` has it; None where the record does not tell of it."""
    flags = record.get("flags")
    variant = flags.get(flag_id) if isinstance(flags, dict) else None
    if isinstance(variant, str):
        return variant
    return "on" if flag_id in _list(record.get("active_flags")) else None


def is_evaluation(record: Record) -> bool:
    """Whether a record is the event of an evaluation: it tells of a flag, not of what was done under it."""
    return record.get("event") == "feature_flag.evaluation"


def text_filter(text: str) -> Filter:
    """Records whose message, error message, stack trace or context holds this text, whatever its case.

    In the context, text and whole numbers are searched, at any depth; keys, other numbers and booleans are not.
    """
    wanted = text.lower()

    def matches(record: Record) -> bool:
        return any(wanted in part.lower() for part in searched_texts(record))

    request = contained_in_request(text, any_case=True)
    return Filter(matches, containing(text), request=request, loki=logql.says_anywhere(text))


def searched_texts(record: Record) -> Iterable[str]:
    """The texts of a record in which people search: message, error message, stack trace and context."""
    error = record.get("error")
    parts = [record.get("message"), record.get("context")]
    if isinstance(error, dict):
        parts += [error.get("message"), error.get("stack_trace")]
    return _texts(parts)


def interval_filter(interval: Interval) -> Filter | None:
    """Records from since to until, both included; None where both are open."""
    if interval.since is None and interval.until is None:
        return None
    since, until = interval.line_times()
    since_bytes, until_bytes = since.encode(), until.encode()

    def possible(line: bytes) -> bool:
        start = _LINE_TIME.match(line)
        if start is None or since_bytes <= start[1] <= until_bytes:
            return True
        # of two values under one key the last one counts
        return line.find(b'"timestamp"', start.end()) != -1 or line.find(ESCAPE, start.end()) != -1

    return Filter(
        lambda record: since <= canonical_time(record["timestamp"]) <= until, possible=possible, is_interval=True
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(values: Iterable[Any]) -> Iterable[str]:
    """The texts and whole numbers in JSON values; without recursion, for lines may be deep."""
    pending = list(values)
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, int) and not isinstance(value, bool):
            yield str(value)
