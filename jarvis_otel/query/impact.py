"""What a flag does to those who have it: error rate, latency and volume by variant, and what may be said of them.

Everything that tells of it (command, dashboards, pages) has its numbers from here. What is counted are operations,
that is correlation ids, not records: an operation that fails logs several errors, and its records are not independent,
which every interval here takes for granted. An operation is of the variant that its records and spans tell; it has
failed if a record of ERROR or above or a span with an error belongs to it, in whatever service, though that one does
not tell the flag. Its latency is the longest duration that one of its records or spans with the flag tells.

Sources: Wilson, J. Am. Stat. Assoc. 22 (1927); Newcombe, Statistics in Medicine 17 (1998), 873-890; Zou and Donner,
Statistics in Medicine 27 (2008), 1693-1702 (MOVER); quantiles by order statistics: Conover, Practical Nonparametric
Statistics, chapter 3.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import mmh3

from jarvis_otel.query.filters import Record, flag_state, is_evaluation
from jarvis_otel.settings import LEVELS

__all__ = [
    "CHANGE_EVENT",
    "CONFIDENCE",
    "FEW",
    "METHOD",
    "OPERATIONS_MAX",
    "Change",
    "Comparison",
    "Difference",
    "Estimate",
    "Gathered",
    "Impact",
    "Outcomes",
    "VariantImpact",
    "Verdict",
    "change_of",
    "compare",
    "difference",
    "number_text",
    "quantile",
    "rate",
]

CONFIDENCE = 0.95
"""Of each interval; of differences, of all comparisons of one measure together."""

FEW = 20
"""Of fewer operations nothing is said."""

OPERATIONS_MAX = 1 << 19
"""So many operations are kept, in about 100 MB; of more, a sample by the hash of their ids."""

CHANGE_EVENT = "jarvis.flag.changed"

METHOD = (
    "operations (correlation ids) are counted, not records; rates have Wilson intervals, quantiles those of order "
    "statistics, differences are Newcombe's (MOVER) of the two; 95 %, for several variants by Bonferroni"
)

_VARIANTS_MAX = 64
_CHANGES_MAX = 1000
_UNKNOWN, _MIXED = -1, -2
_FAILED_LEVELS = frozenset(name for name, number in LEVELS.items() if number >= LEVELS["ERROR"])
_SIGMAS = 9

Verdict = Literal["worse", "better", "no difference", "too few"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value and the interval in which the true one lies; an end that so few cannot tell is None."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """A variant's value less that of the baseline, its interval, and what that says."""

    value: float
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What is counted of one variant; a sample stands for itself.

    Attributes:
        operations: How many there were.
        errors: How many of them failed.
        durations: Milliseconds, of each operation that tells them.
        records: Log records that tell the variant.
        spans: Spans that do.
        first: The time of the first of them, as a line writes it.
        last: The time of the last one.
    """

    operations: int
    errors: int
    durations: Sequence[float] = ()
    records: int = 0
    spans: int = 0
    first: str = ""
    last: str = ""


@dataclass(frozen=True, slots=True)
class VariantImpact:
    """How operations with one variant fared.

    Attributes:
        variant: The variant.
        operations: How many there were; about so many where a sample was taken.
        share: Their share of all operations, 0 to 1.
        errors: How many of them failed.
        error_rate: Errors per operation, 0 to 1.
        timed: How many of them tell a duration.
        p50: The median of those, in milliseconds; None where there are none.
        p95: The 95th percentile.
        records: Log records that tell the variant.
        spans: Spans that do.
        first: The time of the first of them, as a line writes it.
        last: The time of the last one.
    """

    variant: str
    operations: int
    share: Estimate
    errors: int
    error_rate: Estimate
    timed: int
    p50: Estimate | None
    p95: Estimate | None
    records: int
    spans: int
    first: str
    last: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against the baseline.

    Attributes:
        variant: The variant.
        error_rate: Difference of the error rates, -1 to 1.
        p50: Difference of the medians, in milliseconds; None where one of the two has no durations.
        p95: Difference of the 95th percentiles.
        together: Whether both were seen at the same time; else whatever changed meanwhile may be the cause.
        verdict: What the three say together: worse where one is.
    """

    variant: str
    error_rate: Difference
    p50: Difference | None
    p95: Difference | None
    together: bool
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the flag.

    Attributes:
        at: UTC, ISO 8601.
        old: What it was set to: on, off, a variant, or file.
        new: What it was set to then, with the percentage where there is one.
        who: Who did it.
        reason: Why.
        key: The hash of its entry in the audit; empty where that is not known.
    """

    at: str
    old: str
    new: str
    who: str
    reason: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Impact:
    """What a flag did.

    Attributes:
        flag: Its id.
        baseline: The variant that the others are compared with; None where there is none at all.
        variants: What was seen, the baseline first, then the most frequent.
        comparisons: The other variants against the baseline, in the same order.
        changes: Changes of the flag in that time, oldest first.
        mixed: Operations that tell more than one variant; they count for none.
        sample: 1, or N where one operation in N was looked at.
        confidence: Of the intervals.
        method: How it was computed, in a sentence.
        sentences: What it comes to, in plain words: the verdicts, and what restricts them.
    """

    flag: str
    baseline: str | None
    variants: tuple[VariantImpact, ...]
    comparisons: tuple[Comparison, ...]
    changes: tuple[Change, ...]
    mixed: int
    sample: int
    confidence: float
    method: str
    sentences: tuple[str, ...]


class Gathered:
    """Gathers what records and spans tell of a flag, in any order and in bounded memory.

    Where there are more operations than are kept, those whose id has a hash of a rarer and rarer kind stay: a sample
    that does not depend on what they did, and that is the same each time.

    Args:
        flag: The flag's id.
        service: Only what this service tells; None for all.
        operations_max: So many operations are kept.
    """

    def __init__(self, flag: str, service: str | None = None, operations_max: int = OPERATIONS_MAX) -> None:
        self._flag = flag
        self._service = service
        self._max = operations_max
        self._mask = 0
        self._alone = 0
        self._variants: dict[str, int] = {}
        self._records: Counter[str] = Counter()
        self._spans: Counter[str] = Counter()
        self._times: dict[str, tuple[str, str]] = {}
        self._changes: dict[tuple[str, str], Change] = {}
        # of each operation, by its place: variant, whether it failed, longest duration (-1 is none)
        self._places: dict[int, int] = {}
        self._variant, self._failed, self._longest = array("h"), bytearray(), array("d")

    def add_record(self, record: Record) -> None:
        """Takes a log record into account; the events of evaluations are no work and do not count."""
        if record.get("event") == CHANGE_EVENT:
            change = change_of(record, self._flag)
            if change is not None and len(self._changes) < _CHANGES_MAX:
                self._changes[change.key or change.at, change.new] = change
        elif not is_evaluation(record):
            self._add(record, self._records, failed=record.get("level") in _FAILED_LEVELS)

    def add_span(self, span: Record) -> None:
        """Takes a span into account."""
        status = span.get("status")
        self._add(span, self._spans, failed=isinstance(status, dict) and status.get("code") == "error")

    def impact(self, baseline: str | None = None, changes: Iterable[Change] = ()) -> Impact:
        """What it comes to.

        Args:
            baseline: The variant to compare with; else `off`, else the most frequent one.
            changes: Further changes of the flag, those of the audit; what records tell of the same ones goes.
        """
        counts: dict[str, list[int]] = {variant: [0, 0] for variant in self._variants}
        durations: dict[str, array[float]] = {variant: array("d") for variant in self._variants}
        names = list(self._variants)
        mixed = 0
        for variant, failed, longest in zip(self._variant, self._failed, self._longest, strict=True):
            if variant >= 0:
                count = counts[names[variant]]
                count[0] += 1
                count[1] += failed
                if longest >= 0:
                    durations[names[variant]].append(longest)
            mixed += variant == _MIXED
        outcomes = {
            name: Outcomes(
                operations, errors, durations[name], self._records[name], self._spans[name], *self._times[name]
            )
            for name, (operations, errors) in counts.items()
        }
        known = {change.key for change in changes}
        told = [change for change in self._changes.values() if not change.key or change.key not in known]
        all_changes = sorted([*changes, *told], key=lambda change: change.at)
        return compare(self._flag, outcomes, baseline, changes=all_changes, mixed=mixed, sample=self._mask + 1)

    def _add(self, item: Record, counter: Counter[str], *, failed: bool) -> None:
        if self._service is not None and item.get("service") != self._service:
            return
        variant = flag_state(item, self._flag)
        if variant is None and not failed:
            return
        operation = item.get("correlation_id") or item.get("trace_id")
        if variant is not None:
            if variant not in self._variants:
                if len(self._variants) >= _VARIANTS_MAX:
                    return
                self._variants[variant] = len(self._variants)
            counter[variant] += 1
            time = str(item.get("timestamp", ""))
            first, last = self._times.get(variant, (time, time))
            self._times[variant] = (min(first, time), max(last, time))
            if not operation:
                self._alone += 1  # what belongs to no operation is one
                operation = f"\0{self._alone}"
        if operation and (place := self._place(str(operation))) is not None:
            self._note(place, variant, item, failed=failed)

    def _place(self, operation: str) -> int | None:
        """Where an operation is kept; None where it is not in the sample."""
        key = mmh3.hash64(operation.encode("utf-8", "surrogatepass"), 0, True, False)[0]
        place = self._places.get(key)
        if place is None:
            while not key & self._mask and len(self._places) >= self._max:
                self._thin_out()
            if key & self._mask:
                return None
            place = self._places[key] = len(self._places)
            self._variant.append(_UNKNOWN)
            self._failed.append(0)
            self._longest.append(-1.0)
        return place

    def _thin_out(self) -> None:
        """Half of the operations go."""
        self._mask = 2 * self._mask + 1
        kept = [(key, place) for key, place in self._places.items() if not key & self._mask]
        self._variant = array("h", (self._variant[place] for _, place in kept))
        self._failed = bytearray(self._failed[place] for _, place in kept)
        self._longest = array("d", (self._longest[place] for _, place in kept))
        self._places = {key: place for place, (key, _) in enumerate(kept)}

    def _note(self, place: int, variant: str | None, item: Record, *, failed: bool) -> None:
        if failed:
            self._failed[place] = 1
        if variant is None:
            return
        number, before = self._variants[variant], self._variant[place]
        self._variant[place] = number if before in (_UNKNOWN, number) else _MIXED
        duration = item.get("duration_ms")
        if isinstance(duration, int | float) and not isinstance(duration, bool) and 0 <= duration < math.inf:
            self._longest[place] = max(self._longest[place], duration)


def change_of(record: Record, flag: str) -> Change | None:
    """The change of a flag that a record tells of; None where it tells of none, or of another flag."""
    context = record.get("context")
    if not isinstance(context, dict) or context.get("feature_flag.key") != flag:
        return None
    old, new, who, reason, key = (
        str(context.get(f"jarvis.change.{name}", "")) for name in ("old", "new", "actor", "reason", "audit_hash")
    )
    return Change(str(record.get("timestamp", "")), old, new, who, reason, key)


def compare(
    flag: str,
    outcomes: Mapping[str, Outcomes],
    baseline: str | None = None,
    *,
    changes: Sequence[Change] = (),
    mixed: int = 0,
    sample: int = 1,
) -> Impact:
    """What counts of the variants of a flag come to.

    Args:
        flag: Its id.
        outcomes: By variant.
        baseline: The variant to compare with, if it is there; else `off`, else the most frequent one.
        changes: Changes of the flag in that time.
        mixed: Operations, of the sample, that tell more than one variant.
        sample: One operation in so many was counted.
    """
    by_frequency = sorted(outcomes, key=lambda variant: (-outcomes[variant].operations, variant))
    if baseline not in outcomes:
        baseline = "off" if "off" in outcomes else next(iter(by_frequency), None)
    by_frequency.sort(key=lambda variant: variant != baseline)
    total = sum(one.operations for one in outcomes.values())
    durations = {variant: sorted(one.durations) for variant, one in outcomes.items()}
    variants = tuple(
        VariantImpact(
            variant,
            one.operations * sample,
            rate(one.operations, total),
            one.errors * sample,
            rate(one.errors, one.operations),
            len(durations[variant]) * sample,
            quantile(durations[variant], 0.5),
            quantile(durations[variant], 0.95),
            one.records,
            one.spans,
            one.first,
            one.last,
        )
        for variant, one in ((variant, outcomes[variant]) for variant in by_frequency)
    )
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(variants) - 1)
    comparisons = tuple(
        _compared(variant, outcomes, durations, baseline, confidence)
        for variant in by_frequency
        if baseline is not None and variant != baseline
    )
    sentences = tuple(_sentences(variants, comparisons, mixed * sample, sample))
    return Impact(
        flag, baseline, variants, comparisons, tuple(changes), mixed * sample, sample, CONFIDENCE, METHOD, sentences
    )


def rate(part: int, whole: int, confidence: float = CONFIDENCE) -> Estimate:
    """A share with Wilson's interval: right also for few, and for none and all of them."""
    if whole == 0:
        return Estimate(0.0, None, None)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = part / whole
    centre = share + z * z / (2 * whole)
    spread = z * math.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole))
    scale = 1 + z * z / whole
    # at the ends rounding would leave something over
    low = 0.0 if part == 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if part == whole else min(1.0, (centre + spread) / scale)
    return Estimate(share, low, high)


def quantile(values: Sequence[float], q: float, confidence: float = CONFIDENCE) -> Estimate | None:
    """A quantile with the interval of two order statistics, which takes nothing for granted of the distribution.

    Args:
        values: Sorted.
        q: 0.95 is the 95th percentile.
        confidence: At least so surely is the true quantile within.
    """
    count = len(values)
    if count == 0:
        return None
    low, high = _ranks(count, q, (1 - confidence) / 2)
    return Estimate(
        values[max(0, math.ceil(q * count) - 1)],
        values[low - 1] if low >= 1 else None,
        values[high - 1] if high <= count else None,
    )


def _ranks(count: int, q: float, tail: float) -> tuple[int, int]:
    """The ranks between which the quantile lies but for a tail on either side; 0 and count + 1 are beyond all."""
    mean, spread = count * q, _SIGMAS * (math.sqrt(count * q * (1 - q)) + 1)
    low, at_most = 0, 0.0
    logs = math.lgamma(count + 1), math.log(q), math.log1p(-q)
    for number in range(max(0, math.floor(mean - spread)), min(count, math.ceil(mean + spread)) + 1):
        chance = logs[0] - math.lgamma(number + 1) - math.lgamma(count - number + 1)
        at_most += math.exp(chance + number * logs[1] + (count - number) * logs[2])
        if at_most <= tail:
            low = number + 1
        if 1 - at_most <= tail:
            return low, number + 1
    return low, count + 1


def difference(variant: Estimate | None, baseline: Estimate | None, *, few: bool) -> Difference | None:
    """A variant's value less the baseline's; None where one has no value.

    The interval follows from those of the two (MOVER); of Wilson's intervals it is Newcombe's.

    Args:
        variant: Of the variant.
        baseline: Of the baseline.
        few: Whether one of them rests on too few to say anything.
    """
    if variant is None or baseline is None:
        return None
    value = variant.value - baseline.value
    low = high = None
    if variant.low is not None and baseline.high is not None:
        low = value - math.hypot(variant.value - variant.low, baseline.high - baseline.value)
    if variant.high is not None and baseline.low is not None:
        high = value + math.hypot(variant.high - variant.value, baseline.value - baseline.low)
    verdict: Verdict = "no difference"
    if few or (low is None and high is None):
        verdict = "too few"
    elif low is not None and low > 0:
        verdict = "worse"
    elif high is not None and high < 0:
        verdict = "better"
    elif low is None or high is None:
        verdict = "too few"
    return Difference(value, low, high, verdict)


def _compared(
    variant: str,
    outcomes: Mapping[str, Outcomes],
    durations: Mapping[str, Sequence[float]],
    baseline: str,
    confidence: float,
) -> Comparison:
    one, base = outcomes[variant], outcomes[baseline]
    errors = difference(
        rate(one.errors, one.operations, confidence),
        rate(base.errors, base.operations, confidence),
        few=min(one.operations, base.operations) < FEW,
    )
    assert errors is not None
    few = min(len(durations[variant]), len(durations[baseline])) < FEW
    p50, p95 = (
        difference(quantile(durations[variant], q, confidence), quantile(durations[baseline], q, confidence), few=few)
        for q in (0.5, 0.95)
    )
    verdicts: list[Verdict] = [errors.verdict, *(part.verdict for part in (p50, p95) if part is not None)]
    order: tuple[Verdict, ...] = ("worse", "better", "no difference", "too few")
    verdict = errors.verdict if errors.verdict == "too few" else min(verdicts, key=order.index)
    together = not (one.first and base.first) or (one.first <= base.last and base.first <= one.last)
    return Comparison(variant, errors, p50, p95, together, verdict)


def _sentences(
    variants: Sequence[VariantImpact], comparisons: Sequence[Comparison], mixed: int, sample: int
) -> Iterable[str]:
    if len(variants) == 1:
        yield f"only {variants[0].variant} was seen: there is nothing to compare it with"
    by_name = {one.variant: one for one in variants}
    for one in comparisons:
        here, base = by_name[one.variant], variants[0]
        names = f"with {here.variant} against {{}} with {base.variant}"
        if one.error_rate.verdict == "too few":
            yield (
                f"too few operations to tell of errors: {here.operations} with {here.variant}, {base.operations} with "
                f"{base.variant}, want {FEW} of each"
            )
        else:
            rates = f"errors are {_percent(here.error_rate.value)} {names.format(_percent(base.error_rate.value))}"
            yield f"{rates}: {_verdict(one.error_rate, 'worse', 'better', 'points', 100)}"
        for name, part, mine, theirs in (
            ("the median", one.p50, here.p50, base.p50),
            ("p95", one.p95, here.p95, base.p95),
        ):
            if part is not None and mine is not None and theirs is not None:
                values = f"{name} is {number_text(mine.value)} ms {names.format(f'{number_text(theirs.value)} ms')}"
                yield f"{values}: {_verdict(part, 'slower', 'faster', 'ms', 1)}"
        if not one.together:
            yield (
                f"{here.variant} and {base.variant} were not seen at the same time: what else changed between them may "
                "be the cause"
            )
    if mixed:
        yield f"{mixed} operations tell more than one variant and count for none"
    if sample > 1:
        yield f"there were so many operations that one in {sample} was looked at"


def _verdict(part: Difference, worse: str, better: str, unit: str, scale: float) -> str:
    if part.verdict == "too few" or part.low is None or part.high is None:
        return {"worse": f"likely {worse}", "better": f"likely {better}"}.get(part.verdict, "too few to tell")
    low, high = number_text(scale * part.low), number_text(scale * part.high)
    interval = f"(difference {low} to {high} {unit}, {100 * CONFIDENCE:g} %)"
    words = {"worse": f"likely {worse}", "better": f"likely {better}", "no difference": "no difference can be seen"}
    return f"{words[part.verdict]} {interval}"


def _percent(share: float) -> str:
    return f"{number_text(100 * share)} %"


def number_text(value: float) -> str:
    """A number in two or three digits that count."""
    size = abs(value)
    if size == 0:
        return "0"
    digits = 0 if size >= 100 else 1 if size >= 1 else 2 if size >= 0.1 else 1 - math.floor(math.log10(size))
    text = f"{value:.{min(digits, 9)}f}"
    return text if "." not in text else text.rstrip("0").rstrip(".") or "0"
