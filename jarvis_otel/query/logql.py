"""What Loki is asked of a filter, in LogQL: it may leave more over than is wanted, never less.

Names and texts are a user's and may hold anything: each is quoted here and nowhere else. The forms of names and values
are those of Loki's OTLP endpoint, measured at 3.7.8: what is no letter or digit becomes an underscore, values are text.
The language: https://grafana.com/docs/loki/latest/query/log_queries/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jarvis_collector.record import FLAG_PREFIX

__all__ = [
    "ANYTHING",
    "Asked",
    "all_of",
    "attribute_is",
    "attribute_says",
    "equals_any",
    "flag_is",
    "flag_or_error",
    "flag_was_on",
    "label_of",
    "levels",
    "line_holds",
    "number_compares",
    "query",
    "quoted",
    "says",
    "says_anywhere",
    "some_of",
    "type_is",
]

_SELECTOR = '{service_name=~".+"}'
"""Loki gives each stream a service_name, and wants one matcher that does not match everything."""

_QUERY_BYTES_MAX = 100_000
"""Loki's parser takes 131,072."""

_VALUE_MAX = 4096
_RUN_MAX = 200
_OTHERS = re.compile(r"[^A-Za-z0-9]+")
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_PLAIN_FLAG = re.compile(r"[A-Za-z0-9_.-]+")

# Letters beyond ASCII are folded otherwise there than here; and these are what Loki's lists in JSON have as they are.
_RUN = re.compile(r"[A-Za-z0-9 _.,;=#@-]+")

_SEVERITIES = {
    "DEBUG": "(severity_number>=1 and severity_number<=8)",
    "INFO": "severity_number<=0 or (severity_number>=9 and severity_number<=12)",
    "WARNING": "(severity_number>=13 and severity_number<=16)",
    "ERROR": "(severity_number>=17 and severity_number<=20)",
    "CRITICAL": "severity_number>=21",
}

# Labels that are not an attribute's, or not that of one alone.
_RESERVED = re.compile(r"jarvis_.*|service_name|detected_level|severity_.*|trace_id|span_id|flags|scope_.*|event_name")


@dataclass(frozen=True, slots=True)
class Asked:
    """What Loki is asked.

    Attributes:
        stages: Stages of a LogQL pipeline; each leaves all wanted records over.
        names: Attributes by the names that the question gives them; Loki knows each by its label.
    """

    stages: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


ANYTHING = Asked()
"""Nothing that Loki could tell."""


def query(asked: Iterable[Asked]) -> str:
    """The LogQL query of several conditions that must all hold."""
    stages = list(dict.fromkeys(stage for one in asked for stage in one.stages))
    stages.sort(key=lambda stage: not stage.startswith(("|=", "|~")))  # those are the cheapest
    text = _SELECTOR
    for stage in stages:
        if len(text) + len(stage) < _QUERY_BYTES_MAX:  # quoted text is ASCII
            text += f" {stage}"
    return text


def quoted(text: str) -> str:
    """A text without lone surrogates as a string of LogQL, in ASCII."""
    return f'"{"".join(map(_escape, text))}"'


def _escape(char: str) -> str:
    code = ord(char)
    if char in '"\\':
        return f"\\{char}"
    if 0x20 <= code < 0x7F:
        return char
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def label_of(name: str) -> str:
    """The label that Loki's OTLP endpoint makes of an attribute's name."""
    label = _OTHERS.sub("_", name)
    return f"key_{label}" if label[:1].isdigit() else label


def all_of(parts: Sequence[Asked]) -> Asked:
    """All of these at once."""
    return Asked(
        tuple(stage for part in parts for stage in part.stages), tuple(name for part in parts for name in part.names)
    )


def some_of(parts: Sequence[Asked]) -> Asked:
    """Whatever holds of them, or does not: only the names that they are about."""
    return Asked((), tuple(name for part in parts for name in part.names))


def equals_any(names: Sequence[str], values: Iterable[str]) -> Asked:
    """One of these attributes, or labels, is one of these texts."""
    values = sorted(values)
    if not all(map(_is_askable, values)):
        return ANYTHING
    return _stage(f"{label_of(name)}={quoted(value)}" for name in names for value in values)


def says(names: Sequence[str], text: str) -> Asked:
    """One of these attributes holds a text, whatever the case of its letters."""
    pattern = _holding(text)
    return ANYTHING if pattern is None else _stage(f"{label_of(name)}=~{quoted(pattern)}" for name in names)


def says_anywhere(text: str) -> Asked:
    """The line or any attribute holds a text, whatever the case of its letters."""
    pattern = _holding(text)
    if pattern is None:
        return ANYTHING
    together = "| label_format jarvis_all=`{{__line__}} {{.}}`"
    return Asked((together, f"| jarvis_all=~{quoted(pattern)}", "| drop jarvis_all"))


def line_holds(text: str) -> Asked:
    """The line of a record holds exactly this text."""
    return Asked((f"|= {quoted(text)}",)) if text and _is_askable(text) else ANYTHING


def type_is(name: str) -> Asked:
    """The exception's type is a class of this name, of whatever module."""
    return _stage([f"exception_type=~{quoted(_pattern('(?s)(?:.*[.])?', name))}"]) if _is_askable(name) else ANYTHING


def attribute_is(name: str, text: str) -> Asked:
    """An attribute of the caller's own is this text, or a list, in which it may stand."""
    label = label_of(name)
    if not _PLAIN_NAME.fullmatch(name) or _RESERVED.fullmatch(label) or not _is_askable(text):
        return Asked((), (name,))
    return Asked(_stage([f"{label}={quoted(text)}", f'{label}=~"(?s)\\\\[.*"']).stages, (name,))


def attribute_says(name: str, text: str) -> Asked:
    """An attribute of the caller's own holds a text, whatever the case of its letters."""
    if not _PLAIN_NAME.fullmatch(name) or _RESERVED.fullmatch(label_of(name)):
        return Asked((), (name,))
    return Asked(says([name], text).stages, (name,))


def flag_is(flag_id: str, variant: str) -> Asked:
    """A flag gave this variant."""
    name = FLAG_PREFIX + flag_id
    if not _is_plain(flag_id) or not _is_askable(variant):
        return Asked((), (name,))
    was_on = [_active(flag_id)] if variant == "on" else []
    return Asked(_stage([f"{label_of(name)}={quoted(variant)}", *was_on]).stages, (name,))


def flag_was_on(flag_id: str) -> Asked:
    """A flag was on."""
    return Asked(_stage([_active(flag_id)]).stages if _is_plain(flag_id) else (), (FLAG_PREFIX + flag_id,))


def flag_or_error(flag_id: str) -> Asked:
    """A flag is told of, or something failed."""
    name = FLAG_PREFIX + flag_id
    if not _is_plain(flag_id):
        return Asked((), (name,))
    told = [f'{label_of(name)}!=""', _active(flag_id), f"feature_flag_key={quoted(flag_id)}"]
    return Asked(_stage([*told, "severity_number>=17"]).stages, (name,))


def levels(wanted: Iterable[str]) -> Asked:
    """Records of one of these levels; those without a severity are left over too."""
    wanted = set(wanted)
    if wanted == set(_SEVERITIES):
        return ANYTHING
    return _stage(['severity_number=""', *(part for level, part in _SEVERITIES.items() if level in wanted)])


def number_compares(name: str, operator: str, number: float) -> Asked:
    """An attribute that is a number compares with one."""
    return _stage([f"{label_of(name)} {operator} {number!r}"])


def _stage(conditions: Iterable[str]) -> Asked:
    """A stage in which one of the conditions must hold."""
    return Asked((f"| {' or '.join(conditions)}",))


def _active(flag_id: str) -> str:
    """Of a plain id: in the list, as Loki writes it, it stands as it is."""
    return "jarvis_active_flags=~" + quoted(_pattern('.*"', flag_id) + '".*')


def _is_plain(flag_id: str) -> bool:
    return _PLAIN_FLAG.fullmatch(flag_id) is not None


def _is_askable(text: str) -> bool:
    """Whether a text can stand in a query: lone surrogates cannot, which no text in Loki has either."""
    return len(text) <= _VALUE_MAX and not _SURROGATE.search(text)


def _holding(text: str) -> str | None:
    """The pattern of texts that may hold this one; None where little of it could be asked for."""
    run = max(_RUN.findall(text), key=len, default="")[:_RUN_MAX]
    if len(run) < 3:
        return None
    # the one letter whose case is folded to ASCII here and not there
    return f"(?s).*(?:(?i:{_pattern('', run)})|\\x{{130}}).*"


def _pattern(before: str, text: str) -> str:
    """A pattern and after it a text that stands for itself; the patterns of a label must fit from end to end."""
    return before + "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)
