"""Changes that wait for a person's answer: bound to the person, the flag as they saw it, and a time."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["LASTS_S", "Change", "NotPendingError", "Pending"]

LASTS_S = 120.0
KEPT_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Change:
    """What a person wants changed.

    Attributes:
        person: Their numeric id.
        action: enable, rollout, reset or revert.
        flag: The flag's id.
        reason: Why.
        expected: The version of the flag's state that they looked at.
        percent: Of a rollout.
        revision: Of a revert.
    """

    person: int
    action: str
    flag: str
    reason: str = ""
    expected: str | None = None
    percent: float = 0.0
    revision: int = 0

    @property
    def words(self) -> str:
        """What the flag would be."""
        match self.action:
            case "rollout":
                return f"on for {self.percent:g} % of users"
            case "reset":
                return "as the file says"
            case "revert":
                return f"as at revision {self.revision}"
        return "on"


class NotPendingError(Exception):
    """There is nothing to answer; the message says why, for the person.

    Attributes:
        over: Whether nobody can answer it any more, so that its buttons are of no use.
    """

    def __init__(self, why: str, *, over: bool = False) -> None:
        super().__init__(why)
        self.over = over


@dataclass(slots=True)
class _Asked:
    change: Change
    until: float
    answered: bool = False


class Pending:
    """What was asked and is not answered yet; the oldest of more than a thousand is forgotten.

    Args:
        clock: Monotonic seconds.
        lasts: Seconds in which an answer counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, lasts: float = LASTS_S) -> None:
        self._clock = clock
        self.lasts = lasts
        self._asked: OrderedDict[str, _Asked] = OrderedDict()

    def ask(self, change: Change) -> str:
        """Begins to wait; returns the nonce that the answer must bring."""
        nonce = secrets.token_urlsafe(12)
        self._asked[nonce] = _Asked(change, self._clock() + self.lasts)
        while len(self._asked) > KEPT_MAX:
            self._asked.popitem(last=False)
        return nonce

    def take(self, nonce: str, person: int) -> Change:
        """The change that an answer is for; it can be taken once.

        Args:
            nonce: What the answer brought.
            person: Whose answer it is.

        Raises:
            NotPendingError: It is somebody else's, was answered, came too late, or is not known.
        """
        asked = self._asked.get(nonce)
        if asked is None:
            why = "This was asked before the bot was restarted. Nothing was changed; send the command again."
            raise NotPendingError(why, over=True)
        if asked.change.person != person:
            raise NotPendingError("This is for somebody else to answer.")
        if asked.answered:
            raise NotPendingError("This was answered already.")
        if self._clock() > asked.until:
            why = f"Too late: an answer counts for {self.lasts:g} seconds. Nothing was changed; send the command again."
            raise NotPendingError(why, over=True)
        asked.answered = True
        return asked.change
