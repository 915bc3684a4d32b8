"""Which records were there before: delivery is at least once, and whoever reads drops the repeats."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mmh3

if TYPE_CHECKING:
    from jarvis_otel.query.fields import Columns

__all__ = ["Seen", "first_of", "hashes_of"]


class Seen:
    """Remembers hashes, at most twice as many as for sure. In what portions they come is all one.

    Args:
        most: So many, the last ones, are remembered for sure.
    """

    def __init__(self, most: int = 1 << 18) -> None:
        self._most = most
        self._young: set[int] = set()
        self._old: set[int] = set()
        self._first: Sequence[int] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was here yet."""
        return not (self._young or self._first)

    def before(self, value: int) -> bool:
        """Whether the value was here before; from now on it was."""
        if self._first:
            self._look_through_first()
        if value in self._young or value in self._old:
            return True
        if len(self._young) >= self._most:
            self._old, self._young = self._young, set()
        self._young.add(value)
        return False

    def are_new(self, values: Sequence[int], *, apart: bool = False) -> bool:
        """Whether none of the values was here before, nor is twice among them; then they were here from now on.

        Args:
            values: The values.
            apart: Whether it is known that it would be so if they were the first ones of all.
        """
        if apart and self.is_empty:
            self._first = values  # looked at when others come
            return True
        if self._first:
            self._look_through_first()
        new = set(values)
        if len(new) < len(values) or not (new.isdisjoint(self._young) and new.isdisjoint(self._old)):
            return False
        if len(self._young) + len(new) <= self._most:
            self._young |= new
            return True
        while values:
            if len(self._young) >= self._most:
                self._old, self._young = self._young, set()
            room = self._most - len(self._young)
            self._young.update(values[:room])
            values = values[room:]
        return True

    def _look_through_first(self) -> None:
        values, self._first = self._first, ()
        at = (len(values) - 1) // self._most * self._most
        self._old, self._young = set(values[max(0, at - self._most) : at]), set(values[at:])


def hashes_of(uids: Sequence[str | None]) -> array[int]:
    """64-bit hashes of those that there are; the same in every process.

    That they are no cryptographic ones helps nobody: who wants two records to share a uid can simply send it.
    """
    texts: Sequence[Any] = uids if None not in uids else [uid for uid in uids if uid is not None]
    if not "".join(texts).isascii():
        texts = [uid.encode("utf-8", "surrogatepass") for uid in texts]  # mmh3 does not survive half of a pair
    hashes = array("q")
    hashes.frombytes(b"".join(map(mmh3.hash_bytes, texts)))
    return hashes[::2]


def first_of(columns: Columns, seen: Seen) -> Columns:
    """Without the records whose uid was there before."""
    hashes = hashes_of(columns.uids)
    if seen.are_new(hashes):
        return columns
    each = iter(hashes)
    return columns.where([uid is None or not seen.before(next(each)) for uid in columns.uids])
