"""What a change would do before it is made: who gets something else under it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from jarvis_flags.model import EvaluationContext
from jarvis_flags.overrides import Override, OverrideSet
from jarvis_flags.request import result_name
from jarvis_flags.snapshot import Snapshot

__all__ = ["Moves", "moves", "sample_users", "with_override"]

CALLERS_DEFAULT_WORDS = "the caller's default"


@dataclass(frozen=True, slots=True)
class Moves:
    """Who gets what now and then.

    Attributes:
        users: How many were asked about.
        now: Users by what they get now.
        then: Users by what they get under the change.
        comes_in: So many get the flag on then who have it off now.
        goes_out: So many have it on now, and off then.
        moved: Who gets something else: the user, and what they get now and then.
    """

    users: int
    now: Mapping[str, int]
    then: Mapping[str, int]
    comes_in: int
    goes_out: int
    moved: tuple[tuple[str, str, str], ...]

    @property
    def names(self) -> list[str]:
        """All that somebody gets now or then."""
        return sorted({*self.now, *self.then})

    def share(self, counts: Mapping[str, int], name: str) -> str:
        """How many get something, in words.

        Args:
            counts: `now` or `then`.
            name: What they get.
        """
        count = counts.get(name, 0)
        return f"{count:,} ({100 * count / self.users:.1f} %)" if count else "0"


def sample_users(number: int) -> Iterable[str]:
    """Ids of so many made-up users, the same each time: user0, user1, …"""
    return (f"user{at}" for at in range(number))


def with_override(snapshot: Snapshot, flag_id: str, override: Override | None) -> Snapshot:
    """The flags as if this were set for one of them at run time.

    Args:
        snapshot: All flags.
        flag_id: The flag.
        override: What would be set; None lets the file decide.
    """
    overrides = {name: value for name, value in snapshot.overrides.overrides.items() if name != flag_id}
    if override is not None:
        overrides[flag_id] = override
    return replace(
        snapshot, overrides=OverrideSet(snapshot.overrides.revision, MappingProxyType(overrides)), _compiled={}
    )


def moves(now: Snapshot, then: Snapshot, flag_id: str, users: Iterable[str], environment: str | None = None) -> Moves:
    """Who moves from one snapshot to another; it evaluates the flag for each user in both.

    Args:
        now: All flags as they are.
        then: All flags under the change.
        flag_id: The flag.
        users: User ids.
        environment: Where they are; None is the process's.
    """
    before, after, moved = Counter[str](), Counter[str](), []
    asked = comes_in = goes_out = 0
    for user in users:
        asked += 1
        context = EvaluationContext(user, environment)
        old, new = (snapshot.evaluate(flag_id, snapshot.request(context)) for snapshot in (now, then))
        was, becomes = (
            result_name(result.variant, result.value, result.reason) or CALLERS_DEFAULT_WORDS for result in (old, new)
        )
        before[was] += 1
        after[becomes] += 1
        comes_in += new.on and not old.on
        goes_out += old.on and not new.on
        if was != becomes:
            moved.append((user, was, becomes))
    return Moves(asked, before, after, comes_in, goes_out, tuple(moved))
