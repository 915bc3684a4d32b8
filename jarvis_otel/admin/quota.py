"""How often somebody may do something: so many times a minute, and what is over that is counted."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

__all__ = ["Quota"]

_KNOWN_MAX = 1_000
"""So many are remembered; of more, those who took least lately begin anew."""


class Quota:
    """So many things a minute for each who wants some; what is over that is counted.

    Args:
        a_minute: How many.
        clock: Monotonic seconds.
    """

    def __init__(self, a_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._a_minute = a_minute
        self._clock = clock
        self._used: OrderedDict[Hashable, tuple[float, float, int]] = OrderedDict()

    def has(self, who: Hashable) -> bool:
        """Whether one more is left, which this does not take."""
        return self._now(who)[0] >= 1

    def take(self, who: Hashable) -> int | None:
        """Takes one; None where none is left, else how many were wanted in vain since the last one.

        Args:
            who: Whose it is: a person, or an address.
        """
        left, missed = self._now(who)
        taken = left >= 1
        self._used[who] = (left - taken, self._clock(), 0 if taken else missed + 1)
        self._used.move_to_end(who)
        while len(self._used) > _KNOWN_MAX:
            self._used.popitem(last=False)
        return missed if taken else None

    def _now(self, who: Hashable) -> tuple[float, int]:
        left, at, missed = self._used.get(who, (float(self._a_minute), self._clock(), 0))
        return min(float(self._a_minute), left + (self._clock() - at) * self._a_minute / 60), missed
