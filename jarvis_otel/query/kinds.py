"""The collector's signals as a query sees them: log records and spans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jarvis_collector.layout import COMPONENTS, LOGS_STREAM, day_name
from jarvis_collector.otlp import Signal
from jarvis_otel.query.filters import Record

__all__ = ["LOGS", "SPANS", "Kind", "kind_of"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the collector's signals: how its files are called, what its records are, and what makes one unique.

    Attributes:
        stream: How the names of its day files begin.
        signal: What the requests of the real Collector carry it as.
        includes: Whether a record is one of its own, where the file's name does not tell.
        identity: Equal for repeats of one record; None where a record cannot be told from others.
    """

    stream: str
    signal: Signal
    includes: Callable[[Record], bool]
    identity: Callable[[Record], object]


def _is_span(record: Record) -> bool:
    return "level" not in record and "kind" in record and "status" in record


def _is_log(record: Record) -> bool:
    return not _is_span(record) and "resourceMetrics" not in record


def _record_identity(record: Record) -> object:
    meta = record.get("_meta")
    uid = meta.get("uid") if isinstance(meta, dict) else None
    return uid if isinstance(uid, str) else None


def _span_identity(record: Record) -> object:
    ids = (record.get("trace_id"), record.get("span_id"))
    return ids if all(isinstance(part, str) for part in ids) else None


LOGS = Kind(LOGS_STREAM, Signal.LOGS, _is_log, _record_identity)
SPANS = Kind("traces", Signal.TRACES, _is_span, _span_identity)


def kind_of(path: Path) -> Kind | None:
    """Of what kind all records of a day file are, by its name; None where that does not tell."""
    named = day_name(path.name)
    if named is None or path.parent.name == COMPONENTS:
        return None
    return next((kind for kind in (LOGS, SPANS) if kind.stream == named.stream), None)
