"""Who gets what: pasted user ids and a context, evaluated and explained step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jarvis_flags.buckets import BUCKETS, bucket, seed
from jarvis_flags.evaluate import Evaluation
from jarvis_flags.model import EvaluationContext, FlagDefinition
from jarvis_flags.request import targeting_key
from jarvis_flags.snapshot import ExplainedStep, Snapshot
from jarvis_flags.tree import value_of
from jarvis_otel.web.flags_rows import result_words

__all__ = ["Answer", "Asking", "who_gets_what"]

USERS_MAX = 200
ATTRIBUTES_MAX = 50


@dataclass(frozen=True, slots=True)
class Asking:
    """For whom somebody asks.

    Attributes:
        asked: Whether anybody is asked about at all.
        users: Their ids; an empty one is somebody without a name.
        environment: Where; empty is where this process is.
        attributes: What else is known of them.
        users_text, attributes_text: As they were typed.
        left_out: So many ids beyond the first 200.
        error: What cannot be read.
    """

    asked: bool = False
    users: tuple[str, ...] = ()
    environment: str = ""
    attributes: tuple[tuple[str, Any], ...] = ()
    users_text: str = ""
    attributes_text: str = ""
    left_out: int = 0
    error: str = ""

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Asking:
        """Reads a form: `users`, an id a line or with commas; `environment`; `attributes` with NAME=VALUE a line.

        A value is read as YAML reads it, like `--attr` of `jarvis flags explain`.
        """
        text, attributes_text = fields.get("users", ""), fields.get("attributes", "")
        users = list(dict.fromkeys(part.strip() for part in text.replace(",", "\n").splitlines() if part.strip()))
        attributes, error = [], ""
        for line in attributes_text.splitlines()[:ATTRIBUTES_MAX]:
            name, equals, value = line.strip().partition("=")
            if equals and name:
                attributes.append((name, value_of(value)))
            elif line.strip():
                error = f"attributes: got {line.strip()[:80]!r}, want NAME=VALUE"
        return cls(
            asked="users" in fields,
            users=tuple(users[:USERS_MAX]) or ("",),
            environment=fields.get("environment", "").strip(),
            attributes=tuple(attributes),
            users_text=text,
            attributes_text=attributes_text,
            left_out=max(0, len(users) - USERS_MAX),
            error=error,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What one of them gets.

    Attributes:
        user: The id; empty is somebody without a name.
        result: What the flag gives.
        words: That in a word.
        decided: The step that decided.
        steps: All steps, as `jarvis flags explain` has them.
        bucket: Where the first percentage rule puts them, as a percentage; None where there is none, or no key.
    """

    user: str
    result: Evaluation
    words: str
    decided: ExplainedStep | None
    steps: tuple[ExplainedStep, ...]
    bucket: float | None


def who_gets_what(snapshot: Snapshot, flag_id: str, asking: Asking) -> list[Answer]:
    """What each of them gets, and why; nothing where nobody is asked about.

    Args:
        snapshot: All flags.
        flag_id: The flag.
        asking: For whom.
    """
    if not asking.asked or asking.error:
        return []
    answers = []
    for user in asking.users:
        context = EvaluationContext(user or None, asking.environment or None, attributes=dict(asking.attributes))
        result, steps = snapshot.explain(flag_id, snapshot.request(context))
        decided = next((step for step in reversed(steps) if step.outcome == "decides"), None)
        place = _place(snapshot.definitions.get(flag_id), user, context)
        answers.append(Answer(user, result, result_words(result), decided, steps, place))
    return answers


def _place(definition: FlagDefinition | None, user: str, context: EvaluationContext) -> float | None:
    """In which of 100 % somebody falls: they are in where a percentage is above that."""
    rules = () if definition is None else sorted(definition.rules, key=lambda rule: -rule.priority)
    rule = next((rule for rule in rules if rule.type == "percentage"), None)
    if definition is None or (rule is not None and (rule.hash is not None or "\0" in (rule.salt or ""))):
        return None
    by = None if rule is None else rule.by
    key = targeting_key(user if by is None else context.attributes.get(str(by)))
    salt = None if rule is None else rule.salt
    return None if key is None else bucket(seed(definition.id, salt), key) * 100 / BUCKETS
