"""What the captures share: functions of others, wrapped for as long as somebody captures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Generic, Self, TypeVar

__all__ = ["ITEMS_MAX", "Answer", "Tap", "Wrap", "counted"]

ITEMS_MAX = 100_000
"""So many items does a capture keep, the first ones."""

_Item = TypeVar("_Item")


class Wrap:
    """A function of a class or module, replaced for a while by one that is made from it.

    Args:
        owner: The class or module.
        name: The name of the function, property or slot.
        make: Makes the replacement from what is there.
    """

    def __init__(self, owner: type | ModuleType, name: str, make: Callable[[Any], Any]) -> None:
        self._owner = owner
        self._name = name
        self._make = make
        self._placed: tuple[Any, Any] | None = None

    def place(self) -> None:
        """Replaces the function."""
        if self._placed is None:
            before = vars(self._owner)[self._name]
            ours = self._make(before)
            setattr(self._owner, self._name, ours)
            self._placed = (before, ours)

    def remove(self) -> None:
        """Puts back what was there."""
        # another library may have wrapped ours since: then it stays where it is, and lets everything pass
        if self._placed is not None and vars(self._owner).get(self._name) is self._placed[1]:
            setattr(self._owner, self._name, self._placed[0])
            self._placed = None


class Tap(Generic[_Item]):
    """Where items come past; open while there is a list to put them into.

    Args:
        wraps: What is replaced for as long as it is open.
    """

    def __init__(self, *wraps: Wrap) -> None:
        self.wraps = wraps
        self._sinks: tuple[list[_Item], ...] = ()
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether somebody captures."""
        return bool(self._sinks)

    @contextmanager
    def into(self, sink: list[_Item]) -> Iterator[None]:
        """Puts the items into a list, too, for as long as the context lasts."""
        with self._lock:
            if not self._sinks:
                for wrap in self.wraps:
                    wrap.place()
            self._sinks = (*self._sinks, sink)
        try:
            yield
        finally:
            with self._lock:
                self._sinks = tuple(other for other in self._sinks if other is not sink)
                if not self._sinks:
                    for wrap in self.wraps:
                        wrap.remove()

    def put(self, item: _Item) -> None:
        """Puts an item into every list."""
        for sink in self._sinks:
            if len(sink) < ITEMS_MAX:
                sink.append(item)


class Answer(int):
    """True or False, and a line that says why, which pytest shows where an assertion fails.

    Args:
        yes: The answer.
        why: What was found, or what was found instead.
    """

    why: str

    def __new__(cls, yes: bool, why: str) -> Self:  # noqa: D102
        answer = super().__new__(cls, yes)
        answer.why = why
        return answer

    def __repr__(self) -> str:
        return self.why


def counted(count: int, noun: str) -> str:
    """A number of things in words."""
    return f"{count} {noun}" if count == 1 else f"{count or 'no'} {noun}s"
