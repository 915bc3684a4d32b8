"""What people ask to change on a page or by the API, what it would do, and how it ended as HTTP says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from jarvis_flags.buckets import threshold
from jarvis_flags.overrides import Override
from jarvis_flags.tree import plain
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.outcome import Outcome, OutcomeKind
from jarvis_otel.admin.preview import Moves, moves, sample_users, with_override
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.admin.states import FlagState, flag_state
from jarvis_otel.query.times import parse_length

__all__ = [
    "ACTIONS",
    "STATUS",
    "Asked",
    "DiffLine",
    "Preview",
    "diff",
    "duration",
    "json_text",
    "make",
    "preview",
    "reason_of",
    "side_by_side",
]

ACTIONS = ("enable", "disable", "rollout", "reset", "revert", "promote")
"""A page may be old, so it says which way to turn: there is no toggle."""

SAMPLE_USERS = 10_000

STATUS: Mapping[OutcomeKind, int] = MappingProxyType(
    {
        OutcomeKind.APPLIED: 200,
        OutcomeKind.PINNED: 200,
        OutcomeKind.NEEDS_APPROVAL: 202,
        OutcomeKind.NEEDS_CONFIRMATION: 400,
        OutcomeKind.NEEDS_REASON: 400,
        OutcomeKind.INVALID: 400,
        OutcomeKind.REFUSED: 403,
        OutcomeKind.NOT_FOUND: 404,
        OutcomeKind.CONFLICT: 409,
        OutcomeKind.UNAVAILABLE: 503,
    }
)
"""HTTP's status for each way in which a change can end."""

_NOT_SHOWN = frozenset({"by", "reason", "at"})
_TEXT_MAX = 2_000


@dataclass(frozen=True, slots=True)
class Asked:
    """A change that somebody asks for.

    Attributes:
        action: One of ACTIONS.
        percent: The percentage of a rollout.
        variant: The variant that everyone gets.
        lasts: Seconds after which it lapses by itself.
        revision: Of a revert.
        expected: The version of the flag that the person looked at.
        confirmed: Whether the person confirmed it.
        reason: Why.
    """

    action: str
    percent: float | None = None
    variant: str | None = None
    lasts: float | None = None
    revision: int | None = None
    expected: str | None = None
    confirmed: bool = False
    reason: str = ""

    @classmethod
    def of(cls, action: str, fields: Mapping[str, Any], *, confirmed: bool = False) -> Asked:
        """Reads the fields of a form, of a query or of a JSON object. Nothing in them holds up what turns off.

        Args:
            action: What is asked for.
            fields: percent, variant, lasts, revision, expected and reason, as text or as JSON has them.
            confirmed: Whether the person confirmed it.

        Raises:
            ValueError: One of them cannot be read; the message names it.
        """
        if action not in ACTIONS:
            raise ValueError(f"action: got {action[:80]!r}, want one of {', '.join(ACTIONS)}")
        read = _Fields(fields, strict=action != "disable")
        return cls(
            action,
            percent=read("percent", _percent, "a number from 0 to 100") if action == "rollout" else None,
            variant=read("variant", _text, "the name of a variant") if action == "enable" else None,
            lasts=read("lasts", duration, "a time such as 30m, 2h or 1d"),
            revision=read("revision", _revision, "the number of a revision") if action == "revert" else None,
            expected=read("expected", _text, "the version of the flag"),
            confirmed=confirmed,
            reason=reason_of(fields),
        ).checked()

    def checked(self) -> Asked:
        """Itself, if nothing is missing.

        Raises:
            ValueError: Something is.
        """
        for action, name in (("rollout", "percent"), ("revert", "revision")):
            if self.action == action and getattr(self, name) is None:
                raise ValueError(f"{name}: is missing")
        return self


class _Fields:
    def __init__(self, fields: Mapping[str, Any], *, strict: bool) -> None:
        self._fields = fields
        self._strict = strict

    def __call__(self, name: str, read: Any, want: str) -> Any:
        value = self._fields.get(name)
        if value is None or value == "":
            return None
        try:
            return read(value)
        except (ValueError, TypeError, OverflowError):
            if self._strict:
                raise ValueError(f"{name}: got {str(value)[:80]!r}, want {want}") from None
            return None


def duration(value: Any) -> float:
    """Seconds, or a time such as 30m, 2h or 1d, as seconds.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 < value <= 10**9:
            raise ValueError(value)
        return float(value)
    return parse_length(str(value).strip()).total_seconds()


def _percent(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(value)
    number = float(value.strip().removesuffix("%")) if isinstance(value, str) else float(value)
    threshold(number)
    return number


def _revision(value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdecimal() or len(str(value)) > 15:
        raise ValueError(value)
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value[:_TEXT_MAX]


def reason_of(fields: Mapping[str, Any]) -> str:
    """Why, as somebody wrote it, of a length that the audit takes."""
    reason = fields.get("reason")
    return reason[:_TEXT_MAX] if isinstance(reason, str) else ""


def make(admin: FlagAdmin, flag_id: str, asked: Asked, author: Author) -> Outcome:
    """Has the change made. What is not confirmed, or lacks a reason, is audited as refused.

    Args:
        admin: The service.
        flag_id: The flag.
        asked: The change.
        author: Who and why.
    """
    confirmed, lasts, expected = asked.confirmed, asked.lasts, asked.expected
    match asked.action:
        case "disable":
            outcome = admin.disable(flag_id, author, lasts=lasts)
        case "enable":
            outcome = admin.enable(
                flag_id, author, confirmed=confirmed, lasts=lasts, variant=asked.variant, expected=expected
            )
        case "rollout":
            assert asked.percent is not None
            outcome = admin.rollout(flag_id, asked.percent, author, confirmed=confirmed, lasts=lasts, expected=expected)
        case "reset":
            outcome = admin.reset(flag_id, author, confirmed=confirmed, expected=expected)
        case "revert":
            assert asked.revision is not None
            outcome = admin.revert(flag_id, asked.revision, author, confirmed=confirmed, expected=expected)
        case _:
            outcome = admin.promote(flag_id, author, expected=expected)
    if outcome.kind is OutcomeKind.NEEDS_CONFIRMATION:
        admin.decline(asked.action, flag_id, author)
    elif outcome.kind is OutcomeKind.NEEDS_REASON:
        admin.decline(asked.action, flag_id, author, "no reason was given")
    return outcome


# --- what it would do ---


@dataclass(frozen=True, slots=True)
class DiffLine:
    """One line of what changes.

    Attributes:
        kind: `same`, `gone` or `new`.
        text: The line.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change would do.

    Attributes:
        before, after: Where the flag stands, in a word or two.
        lines: What is written down otherwise.
        moves: Who gets something else, of 10,000 sample users.
        needs_name: Whether the flag's name must be typed to confirm it.
        needs_reason: Whether it needs a reason.
        note: What stands against it, if so.
    """

    before: str
    after: str
    lines: tuple[DiffLine, ...]
    moves: Moves | None
    needs_name: bool
    needs_reason: bool
    note: str = ""


def preview(
    admin: FlagAdmin, state: FlagState, asked: Asked, *, reason_always: bool, users: int = SAMPLE_USERS
) -> Preview:
    """What a change would do, while it lasts.

    Args:
        admin: The service.
        state: The flag as it stands.
        asked: The change.
        reason_always: Whether turning on any flag needs a reason.
        users: So many sample users are asked about.
    """
    snapshot = admin.source.snapshot
    if asked.action == "promote":
        lines, note = _promoted(admin, state)
        return Preview(state.state, state.state, lines, None, needs_name=False, needs_reason=False, note=note)
    override = _proposed(admin, state, asked)
    old, new = (None if one is None else one.to_dict() for one in (state.override, override))
    then = with_override(snapshot, state.flag, override)
    after = flag_state(then, state.flag)
    moved = moves(snapshot, then, state.flag, sample_users(users)) if users and state.definition is not None else None
    only_off = override is not None and override.state == "off"
    return Preview(
        state.state,
        state.state if after is None else after.state,
        tuple(diff(old, new)),
        moved,
        needs_name=state.dangerous and not only_off,
        needs_reason=(state.dangerous or reason_always) and not only_off,
    )


def _proposed(admin: FlagAdmin, state: FlagState, asked: Asked) -> Override | None:
    """The override that a change would set; None is none."""
    kept = None if state.override is None else state.override.percentage
    match asked.action:
        case "disable":
            return Override("off", percentage=kept)
        case "enable":
            return Override("on", percentage=kept, variant=asked.variant)
        case "rollout":
            return Override("on", percentage=asked.percent)
        case "revert":
            then = admin.set_at(state.flag, asked.revision or 0)
            return then and replace(then, expires_at=None)
        case _:
            return None


def _promoted(admin: FlagAdmin, state: FlagState) -> tuple[tuple[DiffLine, ...], str]:
    from jarvis_otel.admin.promote import promoted_fields  # noqa: PLC0415 - asked for seldom

    if state.override is None or state.definition is None:
        return (), "nothing was set for it at run time: there is nothing to write"
    try:
        fields = promoted_fields(admin.source.snapshot, state.flag, state.override)
    except ValueError as error:
        return (), str(error)
    now = state.definition.to_dict()
    old = {name: now[name] for name in fields if name in now}
    return tuple(diff(old, {name: value for name, value in fields.items() if value is not None})), ""


def diff(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[DiffLine]:
    """What changes between two mappings of the audit, line by line as YAML would have it.

    Args:
        old, new: The mappings; None is none.
    """
    lines = []
    for name, left, right in side_by_side(old, new):
        if left == right:
            lines.append(DiffLine("same", f"{name}: {left}"))
            continue
        lines += [DiffLine(kind, f"{name}: {text}") for kind, text in (("gone", left), ("new", right)) if text]
    return lines


def side_by_side(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Two mappings of the audit beside each other: name, old value, new value; empty where one has none."""
    old, new = ({k: v for k, v in (one or {}).items() if k not in _NOT_SHOWN} for one in (old, new))
    return [(name, _value(old, name), _value(new, name)) for name in dict.fromkeys((*old, *new))]


def _value(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 60.0 % and 60 % are one
    return json_text(value) if name in values else ""


def json_text(value: Any) -> str:
    """A value as JSON in a line; text stands as it is."""
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False, default=str)
