"""Limits on log records: which of many are written, and how many were left out; no record is left out unseen."""

from __future__ import annotations

import logging
import math
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from jarvis_flags.forks import after_fork
from jarvis_flags.hints import did_you_mean

__all__ = ["REASONS", "LeftOut", "Limit", "Limiter", "Limiters"]

_SAMPLED, _RATE, _DEDUPE, _ONCE = 1, 2, 4, 8
REASONS: Mapping[int, str] = MappingProxyType({_SAMPLED: "sampled", _RATE: "rate", _DEDUPE: "dedupe", _ONCE: "once"})
"""Why records are left out, by a bit of its own for each reason."""

MESSAGES_MAX = 1_024
"""So many messages does a limiter remember; of the one that was heard longest ago it keeps the count."""

MESSAGE_CHARS = 512
"""Messages that begin with the same characters are alike; a limiter holds no more of them."""

LIMITERS_MAX = 256

# A count is told by the next like record that is let through. Where there is none, a summary tells it: after the
# limit's own time, for a sample not more often than each minute, and for `once`, which asks for silence, each day.
_SAMPLED_TOLD_SECONDS = 60.0
_ONCE_TOLD_SECONDS = 86_400.0

_LOW_BITS = (1 << 64) - 1
_LEVELS = MappingProxyType(
    {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error", "critical")}
)
_RATE_TEXT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?/ ?(s|min|h)")
_PER = MappingProxyType({"s": 1.0, "min": 60.0, "h": 3_600.0})


@dataclass(frozen=True, slots=True)
class Limit:
    """How many records are written; what is None or False does not limit them.

    Records are alike that have the same level and the same message. A record passes all that is set, in this order.

    Args:
        sample: The share from 0 to 1 that is kept. The records of a trace are kept or left out together, and with
            them those of every service that keeps the same share; where there is no trace, chance decides.
        once: Only the first of like records is kept.
        dedupe: Seconds after a record in which like ones are left out.
        rate: So many like records are kept at once, and as many in each further `per` seconds (a token bucket).
        per: Seconds that `rate` counts in.
        below: Records of this level (a number of the logging module) and above are never left out.

    Raises:
        ValueError: A value cannot be used.
    """

    sample: float | None = None
    rate: float | None = None
    dedupe: float | None = None
    once: bool = False
    below: int = logging.WARNING
    per: float = 1.0
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("sample", _is_number(self.sample, 0, 1), "a share from 0 to 1 (0.1 is 10 %)"),
            ("rate", _is_number(self.rate), "records per second above 0, or text such as 100/s, 10/min or 5/h"),
            ("dedupe", _is_number(self.dedupe), "seconds above 0"),
            ("per", self.per is not None and _is_number(self.per), "seconds above 0"),
            ("once", isinstance(self.once, bool), "true or false"),
            ("below", type(self.below) is int, f"one of {', '.join(_LEVELS)}"),
        ):
            if not fits:
                got = getattr(self, name)
                hint = did_you_mean(got, _LEVELS) if name == "below" else ""
                raise ValueError(f"{name}: got {got!r}, want {wanted}{hint}")
        # worked out once, as a logger may look its limiter up for each record; None has another hash in each process
        parts = (self.sample or 0, self.rate or 0, self.dedupe or 0, self.once, self.below, self.per)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash

    @property
    def limits_something(self) -> bool:
        """Whether there is any record that it leaves out."""
        return self.once or self.sample is not None or self.rate is not None or self.dedupe is not None

    @classmethod
    def parse(cls, value: object, where: str) -> Self:
        """Reads a limit as the settings file or a call writes it.

        Args:
            value: A mapping of sample, rate, dedupe, once and below. A rate may be text, such as 100/s, 10/min or
                5/h; `below` is the name of a level or its number. None counts as not given.
            where: Where it stands, for messages.

        Raises:
            ValueError: What is wrong, where, what was got, and what is wanted.
        """
        if not isinstance(value, Mapping):
            raise ValueError(  # noqa: TRY004 - what a person wrote is wrong, not what a program passed
                f"{where}: got {value!r}, want a mapping of {', '.join(_KEYS)}"
            )
        given: dict[str, Any] = {}
        for key, part in value.items():
            if key not in _KEYS:
                known = f"; want one of {', '.join(_KEYS)}"
                raise ValueError(f"{where}.{key}: unknown setting{did_you_mean(key, _KEYS, known)}")
            if part is not None:
                given[key] = part
        if isinstance(rate := given.get("rate"), str) and (match := _RATE_TEXT.fullmatch(rate.strip().lower())):
            count, per = float(match[1]), _PER[match[2]]
            if count:
                given["rate"], given["per"] = count, per
        if isinstance(below := given.get("below"), str):
            given["below"] = _LEVELS.get(below.strip().lower(), below)
        try:
            return cls(**given)
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from None


_KEYS = ("sample", "rate", "dedupe", "once", "below")


def _is_number(value: object, low: float = 1e-9, high: float = 1e9) -> bool:
    """Whether it is a number between these, or None."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Records that were left out, and that no later record told of.

    Attributes:
        level: Their level; the highest where there are several.
        message: Their message, or its beginning; None for several messages together.
        count: How many.
        reason: Why, in the words of REASONS, with a comma between several.
    """

    level: int
    message: str | None
    count: int
    reason: str


class _Rule:
    """The strictest of each of several limits."""

    __slots__ = ("bound", "dedupe", "interval", "once", "slack", "tell_after")

    def __init__(self, limits: list[Limit]) -> None:
        samples = [limit.sample for limit in limits if limit.sample is not None]
        rates = [(limit.rate, limit.per) for limit in limits if limit.rate is not None]
        # trace ids below this are kept, as by the SDK's TraceIdRatioBased: both keep the same traces
        self.bound = round(min(samples) * (_LOW_BITS + 1)) if samples else None
        self.once = any(limit.once for limit in limits)
        self.dedupe = max((limit.dedupe for limit in limits if limit.dedupe is not None), default=0.0)
        # the token bucket as one time: that at which it will be full again
        self.interval = max((per / rate for rate, per in rates), default=0.0)
        self.slack = (min((max(1.0, rate) for rate, _ in rates), default=1.0) - 1.0) * self.interval
        self.tell_after = max(
            self.dedupe,
            self.interval,
            max((per for _, per in rates), default=0.0),
            _SAMPLED_TOLD_SECONDS if samples else 0.0,
            _ONCE_TOLD_SECONDS if self.once else 0.0,
        )


def _rules_of(limits: tuple[Limit, ...]) -> tuple[tuple[int, _Rule], ...]:
    """By rising level: the rule for the records below it; none where nothing is limited."""
    limits = tuple(limit for limit in limits if limit.limits_something)
    belows = sorted({limit.below for limit in limits})
    return tuple((below, _Rule([limit for limit in limits if limit.below >= below])) for below in belows)


class _Like:
    """What is known of like records."""

    __slots__ = ("count", "due", "full", "kept", "reasons")

    def __init__(self) -> None:
        self.kept: float | None = None
        """When the latest was let through."""
        self.full = -math.inf
        """When the token bucket will be full."""
        self.count = 0
        """How many were left out and not told."""
        self.reasons = 0
        self.due = 0.0
        """When a summary has to tell the count."""


class Limiter:
    """Decides record by record, and counts: each one that it leaves out is told once, by `admit` or by `drain`.

    Safe in threads, in signal handlers and in finalisers. After a fork only those of a `Limiters` are right.

    Args:
        limits: A record has to pass all of them.
        clock: Seconds, from anywhere.

    Attributes:
        samples: Whether it asks for trace ids.
    """

    def __init__(self, *limits: Limit, clock: Callable[[], float] = time.monotonic) -> None:
        self._rules = _rules_of(limits)
        self.samples = any(rule.bound is not None for _, rule in self._rules)
        self._clock = clock
        self._likes: OrderedDict[tuple[int, str], _Like] = OrderedDict()
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._left_out = dict.fromkeys(REASONS, 0)
        self._untold = 0
        self._rest = _Like()
        self._rest_level = 0

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many records were left out so far, by reason."""
        return MappingProxyType({REASONS[reason]: count for reason, count in self._left_out.items()})

    def admit(self, level: int, message: str, trace_id: int = 0) -> int:
        """Decides on one record.

        Args:
            level: Its level, a number of the logging module.
            message: What makes it like others, best without what varies from one to the next.
            trace_id: The 128-bit id of its trace; 0 where it has none.

        Returns:
            -1 where it is left out; else how many like ones were left out and not told before: this one tells it.
        """
        for below, rule in self._rules:  # noqa: B007 - it is used below
            if level < below:
                break
        else:
            return 0
        bound = rule.bound
        reason = 0
        if bound is not None and (trace_id & _LOW_BITS if trace_id else random.getrandbits(64)) >= bound:
            reason = _SAMPLED
        if self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001
            # a signal handler or a finaliser that interrupts this very thread in here: its record is let through
            return 0
        now = self._clock()
        key = (level, message if len(message) <= MESSAGE_CHARS else message[:MESSAGE_CHARS])
        with self._lock:
            if not self._rules:  # retired meanwhile
                return 0
            like = self._likes.get(key)
            if like is None:
                like = self._remember(key)
            else:
                self._likes.move_to_end(key)
            if not reason:
                if like.kept is not None and rule.once:
                    reason = _ONCE
                elif like.kept is not None and now - like.kept < rule.dedupe:
                    reason = _DEDUPE
                elif rule.interval:
                    wait = like.full - now
                    if wait > rule.slack:
                        reason = _RATE
                    else:
                        like.full = (like.full if wait > 0 else now) + rule.interval
            count = like.count
            if reason:
                if not count:
                    like.due = now + rule.tell_after
                like.count = count + 1
                like.reasons |= reason
                self._untold += 1
                self._left_out[reason] += 1
                return -1
            like.kept = now
            if count:
                self._tell(like)
            return count

    def drain(self, now: float | None = None, most: int = 8) -> list[LeftOut]:
        """Takes the counts that no record told in time, and that a summary is to tell.

        Args:
            now: The clock's time; the clock is asked if None. `math.inf` takes all there are, for the end.
            most: So many messages are named, those left out most; the others are summed up in one more entry.
        """
        if not self._untold or self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001
            return []
        with self._lock:
            return self._take(self._clock() if now is None else now, most)

    def retire(self) -> bool:
        """Ends it, and everything passes from then on; but not where a count waits to be told, and then it says so."""
        if self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001
            return False
        with self._lock:
            if self._untold:
                return False
            self._rules = ()
            return True

    def _take(self, now: float, most: int) -> list[LeftOut]:
        due = [(key, like) for key, like in self._likes.items() if like.count and like.due <= now]
        due.sort(key=lambda item: item[1].count, reverse=True)
        told = []
        for (level, message), like in due[:most]:
            told.append(LeftOut(level, message, like.count, _names(like.reasons)))
            self._tell(like)
        for (level, _), like in due[most:]:
            self._move_to_rest(level, like)
        rest = self._rest
        if rest.count and rest.due <= now:
            told.append(LeftOut(self._rest_level, None, rest.count, _names(rest.reasons)))
            self._tell(rest)
            self._rest_level = 0
        return told

    def after_fork(self) -> None:
        """Called in a forked child: it knows what was written before, and the counts are the parent's to tell."""
        self._begin()
        for like in self._likes.values():
            like.count = like.reasons = 0

    def _remember(self, key: tuple[int, str]) -> _Like:
        like = self._likes[key] = _Like()
        if len(self._likes) > MESSAGES_MAX:
            (level, _), oldest = self._likes.popitem(last=False)
            if oldest.count:
                self._move_to_rest(level, oldest)
        return like

    def _move_to_rest(self, level: int, like: _Like) -> None:
        rest = self._rest
        rest.due = min(rest.due, like.due) if rest.count else like.due
        rest.count += like.count
        rest.reasons |= like.reasons
        self._rest_level = max(self._rest_level, level)
        like.count = like.reasons = 0

    def _tell(self, like: _Like) -> None:
        self._untold -= like.count
        like.count = like.reasons = 0


class Limiters:
    """The limiters of a process: one for each service and set of limits, however often it is asked for.

    Args:
        clock: Seconds, from anywhere.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limiters: OrderedDict[tuple[str, tuple[Limit, ...]], Limiter] = OrderedDict()
        self._left_out = dict.fromkeys(REASONS.values(), 0)
        self._lock = threading.RLock()
        self._watches_forks = False

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many records were left out so far, by reason."""
        counts = dict(self._left_out)
        for limiter in list(self._limiters.values()):
            for reason, count in limiter.left_out.items():
                counts[reason] += count
        return MappingProxyType(counts)

    def of(self, service: str, *limits: Limit) -> Limiter | None:
        """The limiter of a service under these limits; None where nothing is limited.

        There are LIMITERS_MAX at most. For a new one the one that was asked for longest ago has to make room: then it
        lets everything through, which it cannot while a count waits to be told. Where none can, nothing is limited.

        Args:
            service: Whose records they are.
            limits: A record has to pass all of them.
        """
        key = (service, limits)
        limiter = self._limiters.get(key)
        if limiter is not None:
            try:  # noqa: SIM105 - contextlib.suppress takes as long as all the rest
                self._limiters.move_to_end(key)
            except KeyError:  # another thread has just retired it
                pass
            return limiter
        if not any(limit.limits_something for limit in limits):
            return None
        with self._lock:
            if (limiter := self._limiters.get(key)) is None and self._makes_room():
                limiter = self._limiters[key] = Limiter(*limits, clock=self._clock)
                self._watch_forks()
            return limiter

    def drain(self, now: float | None = None, most: int = 8) -> list[tuple[str, LeftOut]]:
        """What each limiter's `drain` gives, with its service.

        Args:
            now: The clock's time; the clock is asked if None. `math.inf` takes all there are, for the end.
            most: So many messages are named of each limiter.
        """
        limiters = list(self._limiters.items())
        return [(service, left) for (service, _), limiter in limiters for left in limiter.drain(now, most)]

    def _watch_forks(self) -> None:
        if not self._watches_forks:
            self._watches_forks = True
            after_fork(self._after_fork)

    def _makes_room(self) -> bool:
        if len(self._limiters) < LIMITERS_MAX:
            return True
        for key, limiter in list(self._limiters.items()):
            if limiter.retire():
                del self._limiters[key]
                for reason, count in limiter.left_out.items():
                    self._left_out[reason] += count
                return True
        return False

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self._left_out = dict.fromkeys(REASONS.values(), 0)
        for limiter in self._limiters.values():
            limiter.after_fork()


def _names(reasons: int) -> str:
    return ", ".join(name for reason, name in REASONS.items() if reasons & reason)
