"""The error rates of all flags' variants in the newest records, by the computation that `jarvis flags impact` makes.

Only the end of the day files is read, however large they are, newest parts first and no longer than a look may take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from jarvis_otel.alerts.alert import Alert
from jarvis_otel.query.blocks import LogFile
from jarvis_otel.query.days import may_hold, plain_days
from jarvis_otel.query.files import LOGS, SPANS, Kind, Seen
from jarvis_otel.query.filters import Filter, Record, flag_states, interval_filter, is_evaluation
from jarvis_otel.query.impact import CHANGE_EVENT, FEW, Gathered, Impact, VariantImpact, number_text
from jarvis_otel.query.scanner import Notes, Scanner
from jarvis_otel.query.times import Interval

__all__ = ["READ_BYTES", "WINDOW_S", "is_over", "rate_alert", "recent_impacts"]

WINDOW_S = 900.0
"""So many seconds back do the records go that are looked at."""

READ_BYTES = 64 << 20
"""Of log records, and of spans, so much is read at most: what was written last."""

LOOK_S = 5.0
"""So long may a look take; of what is older nothing is said then."""

_FLAGS_MAX = 1_000
_CORE = ("timestamp", "level", "status", "correlation_id", "trace_id")


def recent_impacts(
    log_dir: Path, since: datetime, until: datetime, stopped: Callable[[], bool] = lambda: False
) -> dict[str, Impact]:
    """What each flag did in an interval, by flag.

    Args:
        log_dir: The directory of the day files; there need be none yet.
        since: The earliest time.
        until: The latest time.
        stopped: Asked often whether to leave it at what was read.

    Raises:
        OSError: The files cannot be read.
    """
    deadline = time.monotonic() + LOOK_S
    interval = Interval(since, until)
    gathered: dict[str, Gathered] = {}
    failed: dict[str, dict[str, Any]] = {}
    flags_of: dict[str, frozenset[str]] = {}
    for kind in (LOGS, SPANS):
        for record in _newest(log_dir, kind, interval, lambda: stopped() or time.monotonic() > deadline):
            if is_evaluation(record) or record.get("event") == CHANGE_EVENT:
                continue
            told, operation = flag_states(record), _operation(record)
            core = {key: record[key] for key in _CORE if key in record}
            for flag, variant in told.items():
                if flag in gathered or len(gathered) < _FLAGS_MAX:
                    # one flag each: to look for it among all of the record would take longer with each of them
                    _add(gathered.setdefault(flag, Gathered(flag)), {**core, "flags": {flag: variant}})
            if operation is not None:
                if told:
                    flags_of[operation] = flags_of.get(operation, frozenset()) | told.keys()
                if _may_have_failed(record):
                    failed[operation] = core
    for operation, core in failed.items():
        for flag in flags_of.get(operation, frozenset()) & gathered.keys():
            _add(gathered[flag], core)
    return {flag: one.impact() for flag, one in gathered.items()}


def is_over(one: VariantImpact, limit: float) -> bool | None:
    """Whether a variant's error rate is over a limit; None where so few operations cannot tell.

    It is where the lower end of its 95 % interval is, and it no longer is where the rate itself is not.

    Args:
        one: How operations with it fared.
        limit: The rate, 0 to 1.
    """
    if one.operations < FEW:
        return None
    if one.error_rate.low is not None and one.error_rate.low > limit:
        return True
    return False if one.error_rate.value <= limit else None


def rate_alert(impact: Impact, one: VariantImpact, limit: float, *, over: bool, again: bool, at: str) -> Alert:
    """What is told of a variant's error rate.

    Args:
        impact: What the flag did.
        one: The variant.
        limit: The rate that is too high, 0 to 1.
        over: Whether it is over it, or no longer.
        again: Whether that was told before.
        at: Now: UTC, ISO 8601.
    """
    name = f"{impact.flag}={one.variant}"
    low, high = (number_text(100 * (end or 0.0)) for end in (one.error_rate.low, one.error_rate.high))
    share = f"{number_text(100 * one.error_rate.value)} %"
    still = "still " if again else ""
    state = f"{still}over {number_text(100 * limit)} %" if over else f"no longer over {number_text(100 * limit)} %"
    others = ", ".join(
        f"{number_text(100 * other.error_rate.value)} % of {other.operations:,} with {other.variant}"
        for other in impact.variants
        if other.variant != one.variant
    )
    beside = f"; beside it {others}" if others else ""
    title = f"{name}: errors are {state}"
    text = (
        f"{share} of {one.operations:,} operations failed ({low} to {high} %){beside}; "
        f"jarvis flags impact {impact.flag} says more"
    )
    details = {
        "variant": one.variant,
        "operations": one.operations,
        "errors": one.errors,
        "error_rate": one.error_rate.value,
        "low": one.error_rate.low,
        "high": one.error_rate.high,
        "limit": limit,
        "over": over,
        "others": {
            other.variant: {"operations": other.operations, "errors": other.errors}
            for other in impact.variants
            if other.variant != one.variant
        },
    }
    return Alert("error_rate", title, text, impact.flag, "critical" if over else "info", at, details)


def _add(gathered: Gathered, item: Record) -> None:
    if "status" in item:
        gathered.add_span(item)
    else:
        gathered.add_record(item)


def _may_have_failed(record: Record) -> bool:
    """Whether it is worth to be kept until all flags of its operation are known: impact alone says what failed."""
    status = record.get("status")
    if isinstance(status, dict):
        return status.get("code") == "error"
    return record.get("level") in ("ERROR", "CRITICAL")


def _operation(record: Record) -> str | None:
    operation = record.get("correlation_id") or record.get("trace_id")
    return str(operation) if operation else None


def _newest(log_dir: Path, kind: Kind, interval: Interval, enough: Callable[[], bool]) -> Iterator[Record]:
    """The records of an interval that were written last, each once; the newest parts of the files come first."""
    within = interval_filter(interval)
    filters: list[Filter] = [within] if within is not None else []
    seen, left = Seen(), READ_BYTES
    try:
        paths = plain_days(log_dir, kind.stream)
    except FileNotFoundError:
        return
    # whoever starts before midnight has records in two files
    for path in reversed(paths[-2:]):
        try:
            if not may_hold(path, interval):
                continue
            file = LogFile(path)
        except FileNotFoundError:
            continue  # archived meanwhile
        with file:
            scanner = Scanner(file, path, kind, filters, interval)
            # the first line is usually cut, and then none
            for part in reversed(file.parts(max(0, file.size - left))):
                for found in scanner.found(part, Notes()):
                    identity = kind.identity(found.record)
                    if identity is None or not seen.before(hash(identity)):
                        yield found.record
                    if enough():
                        return
            left -= min(left, file.size)
        if not left:
            return
