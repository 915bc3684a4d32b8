"""Which bucket a key falls into. Versioned: what is released here never changes, so nobody is ever re-bucketed."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import mmh3

__all__ = ["BUCKETS", "FLAGD_HASHES", "bucket", "flagd_bucket", "flagd_key", "in_below", "seed", "threshold"]

BUCKETS = 100_000
"""So many buckets are there: a thousandth of a percent each."""

FLAGD_HASHES = ("flagd-v2", "flagd-v3")
"""The hashes of flagd's `fractional`, for flags that come from it."""


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
        # encoded here: mmh3 5.3 crashes on text with a lone surrogate; by keyword: it does not heed a fourth argument
        try:
            content = (prefix + key).encode()
        except UnicodeEncodeError:  # with the other handler it would take twice as long for all
            content = seed_bytes + key.encode("utf-8", "surrogatepass")
        return hash64(content, signed=False)[0] < cut

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


def flagd_bucket(key: bytes, total: int) -> int:
    """The bucket of a key as flagd has it: 0 to `total` - 1.

    Args:
        key: What `flagd_key()` gave.
        total: The sum of the weights.
    """
    return (mmh3.hash(key, 0, signed=False) * total) >> 32


def flagd_key(hash_name: str, flag_id: str, user: Any, *explicit: Any) -> bytes | None:
    """What flagd hashes: a bucketing value, or flag and targeting key where a split names none; None without a key.

    `flagd-v2` hashes text as it is, `flagd-v3` any value as deterministic CBOR (RFC 8949), in which 1 and "1" differ.

    Args:
        hash_name: One of FLAGD_HASHES.
        flag_id: The flag's id.
        user: The targeting key.
        explicit: The bucketing value, if the split names one.
    """
    value = explicit[0] if explicit else None
    if hash_name == "flagd-v2":
        if value is None and isinstance(user, str) and user:
            value = flag_id + user
        if not isinstance(value, str):
            return None
    elif not explicit and isinstance(user, str) and user:
        value = [flag_id, user]
    if value is None:
        return None
    try:
        return value.encode() if hash_name == "flagd-v2" else _cbor(value)
    except (TypeError, UnicodeEncodeError):  # a value that JSON does not have, a lone surrogate
        return None


def _cbor(value: Any) -> bytes:
    """A JSON value as CBOR in its one deterministic form; a float that is a whole number is one."""
    if isinstance(value, str):
        text = value.encode()
        return _cbor_head(3, len(text)) + text
    if isinstance(value, bool) or value is None:
        return b"\xf6" if value is None else b"\xf5" if value else b"\xf4"
    if isinstance(value, float):
        if not value.is_integer() or not -(2**63) <= value < 2**64:
            return _cbor_float(value)
        value = int(value)
    if isinstance(value, int):
        major, number = (0, value) if value >= 0 else (1, -1 - value)
        if number < 2**64:
            return _cbor_head(major, number)
        digits = number.to_bytes((number.bit_length() + 7) // 8)
        return _cbor_head(6, 2 + major) + _cbor_head(2, len(digits)) + digits
    if isinstance(value, list | tuple):
        return _cbor_head(4, len(value)) + b"".join(map(_cbor, value))
    if not isinstance(value, Mapping):
        raise TypeError(f"{type(value).__name__} is no JSON value")
    entries = sorted(((_cbor(key), _cbor(item)) for key, item in value.items()), key=lambda e: (len(e[0]), e[0]))
    return _cbor_head(5, len(entries)) + b"".join(key + item for key, item in entries)


def _cbor_head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    size = next(size for size in (0, 1, 2, 3) if number < 1 << (8 << size))
    return bytes([major << 5 | 24 + size]) + number.to_bytes(1 << size)


def _cbor_float(value: float) -> bytes:
    if math.isnan(value):
        return b"\xf9\x7e\x00"
    for head, form in ((b"\xf9", ">e"), (b"\xfa", ">f")):
        try:
            packed = struct.pack(form, value)
        except OverflowError:
            continue
        if struct.unpack(form, packed)[0] == value:
            return head + packed
    return b"\xfb" + struct.pack(">d", value)
