"""Which bucket a key falls into. Versioned: what is released here never changes, so nobody is ever re-bucketed."""

from __future__ import annotations

from collections.abc import Callable

import mmh3

__all__ = ["BUCKETS", "bucket", "in_below", "seed", "threshold"]

BUCKETS = 100_000
"""So many buckets are there: a thousandth of a percent each."""


def seed(flag_id: str, salt: str | None = None) -> bytes:
    """What separates the cohorts of two flags (or of two salts) from each other, with its closing NUL.

    Args:
        flag_id: The flag's id.
        salt: The rule's own salt, if it has one.

    Raises:
        ValueError: A part holds a NUL, which is what parts them.
    """
    parts = [flag_id] if salt is None else [flag_id, salt]
    if any("\0" in part for part in parts):
        raise ValueError("a flag id and a salt must not hold a NUL")
    return "".join(f"{part}\0" for part in parts).encode("utf-8", "surrogatepass")


def bucket(seed_bytes: bytes, key: str) -> int:
    """The bucket of a key under a seed, by the hash `jv1`: 0 to 99,999.

    Args:
        seed_bytes: What `seed()` gave.
        key: The targeting key.
    """
    high = mmh3.hash64(seed_bytes + key.encode("utf-8", "surrogatepass"), 0, x64arch=True, signed=False)[0]
    return (high * BUCKETS) >> 64


def in_below(seed_bytes: bytes, limit: int) -> Callable[[str], bool]:
    """A function that tells whether a key's bucket is below a limit, without working the bucket out.

    Args:
        seed_bytes: What `seed()` gave.
        limit: A number of buckets, as `threshold()` gives it.
    """
    # (h * BUCKETS) >> 64 < limit, solved for h
    cut = -(-(limit << 64) // BUCKETS)
    hash64 = mmh3.hash64
    prefix = seed_bytes.decode("utf-8", "surrogatepass")

    def is_in(key: str) -> bool:
        try:
            # mmh3 encodes text itself, which is quicker; by keyword: 5.3 does not heed a fourth positional argument
            return hash64(prefix + key, signed=False)[0] < cut
        except UnicodeEncodeError:  # a lone surrogate
            return hash64(seed_bytes + key.encode("utf-8", "surrogatepass"), signed=False)[0] < cut

    return is_in


def threshold(percent: float) -> int:
    """The number of buckets that a percentage covers: those below it are in.

    Args:
        percent: 0 to 100, at most three decimals.

    Raises:
        ValueError: It is finer than a thousandth of a percent, or outside 0 to 100.
    """
    if not 0 <= percent <= 100:  # also refuses NaN
        raise ValueError(f"got {percent:g}, want 0 to 100")
    exact = percent * 1000
    if abs(exact - round(exact)) > 1e-6:
        raise ValueError(f"got {percent!r}, want at most three decimals")
    return round(exact)
