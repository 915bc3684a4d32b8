"""The telemetry of an evaluation: span attributes, an event, metrics, and the operation's own memory of it.

The names follow the semantic conventions for feature flags (OpenTelemetry semantic conventions 1.44, registry
`feature_flag.*`); those that begin with `jarvis.` are ours.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, FlagValueType
from openfeature.hook import Hook, HookContext, HookHints
from opentelemetry import metrics, trace
from opentelemetry.context import get_current
from opentelemetry.metrics import CallbackOptions, Observation

from jarvis_collector.record import FLAG_PREFIX
from jarvis_flags.request import result_name
from jarvis_otel.context import current_operation
from jarvis_otel.logger import emit_event
from jarvis_otel.runtime import RUNTIME

__all__ = [
    "EVENT_NAME",
    "SPAN_FLAGS_MAX",
    "AttributeMapper",
    "EvaluationHook",
    "record_evaluation",
    "report_event",
    "span_attribute",
]

EVENT_NAME = "feature_flag.evaluation"
KEY = "feature_flag.key"
VARIANT = "feature_flag.result.variant"
VALUE = "feature_flag.result.value"
REASON = "feature_flag.result.reason"
PROVIDER = "feature_flag.provider.name"
CONTEXT_ID = "feature_flag.context.id"
SET_ID = "feature_flag.set.id"
VERSION = "feature_flag.version"
ERROR_TYPE = "error.type"
ERROR_MESSAGE = "feature_flag.error.message"
FLAGS_OMITTED = "jarvis.flags_omitted"

SPAN_FLAGS_MAX = 32
"""So many distinct flags does a span carry; the rest is counted."""

_TRACES_MAX = 2_048
_EVENTS_PER_TRACE_MAX = 256
_VALUE_MAX = 1_000
_SERIES_MAX = 2_000


def span_attribute(flag_id: str) -> str:
    """The span attribute of what a flag gave; in `feature_flag.*` a flag named `key` would collide."""
    return f"{FLAG_PREFIX}{flag_id}"


AttributeMapper = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From the attributes of an event to those that are written."""


class EvaluationHook(Hook):
    """Reports each evaluation, of any OpenFeature provider; it never raises.

    The options are those of OpenFeature's specification, appendix D.

    Args:
        exclude_attributes: Names of event attributes that are not written.
        attribute_mapper: Changes the attributes of the event last of all.
        exclude_exceptions: Leave the message of an error out.
        include_value: Write the value too, as JSON of at most 1,000 characters; secrets have no place in flags, but
            values may be large and personal.
    """

    def __init__(
        self,
        *,
        exclude_attributes: Iterable[str] = (),
        attribute_mapper: AttributeMapper | None = None,
        exclude_exceptions: bool = False,
        include_value: bool = False,
    ) -> None:
        self._excluded = frozenset(exclude_attributes) | ({ERROR_MESSAGE} if exclude_exceptions else set())
        self._mapper = attribute_mapper
        self._include_value = include_value

    def finally_after(
        self,
        hook_context: HookContext,
        details: FlagEvaluationDetails[FlagValueType],
        hints: HookHints,  # noqa: ARG002
    ) -> None:
        """Called by OpenFeature when an evaluation is over, failed or not."""
        try:
            value = details.value
            metadata = details.flag_metadata
            variant = result_name(details.variant, value, details.reason)
            series = (hook_context.flag_key, variant, str(details.reason or "").lower())
            on = value is True or (details.variant is not None and not isinstance(value, bool))
            span = record_evaluation(series, on, details.error_code)
            if span is not None:
                provider = hook_context.provider_metadata
                report_event(
                    span,
                    series,
                    provider=provider.name if provider is not None else "",
                    context_id=metadata.get("contextId") or hook_context.evaluation_context.targeting_key,
                    metadata=metadata,
                    error_code=details.error_code,
                    error_message=details.error_message,
                    value=_shown_value(value) if self._include_value else None,
                    change=self._change if self._excluded or self._mapper else None,
                )
        except Exception:  # telemetry never raises into the application; the loss is counted
            _evaluations.failures += 1

    def _change(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        kept = {key: value for key, value in attributes.items() if key not in self._excluded}
        return self._mapper(kept) if self._mapper is not None else kept


def _shown_value(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _VALUE_MAX else f"{text[:_VALUE_MAX]}…"


def record_evaluation(series: tuple[str, str | None, str], on: bool, error_code: ErrorCode | None) -> trace.Span | None:
    """Counts one evaluation, notes it for the operation, and marks the current span.

    Args:
        series: The flag, the name of what it gave (None where that was the caller's default), the reason.
        on: Whether that counts as on.
        error_code: OpenFeature's error code, or None.

    Returns:
        The span, where the evaluation is the first of its flag and variant in the trace: then `report_event` is due.
    """
    _evaluations.count(series, error_code)
    if not get_current():
        # no span and no operation: most evaluations of a service that does not trace end here
        return None
    span = trace.get_current_span()
    flag_id, variant, _ = series
    if variant is not None:
        if error_code is None and (operation := current_operation(span)) is not None:
            operation.note(flag_id, variant, on)
        if span.is_recording() and not _mark_span(span, flag_id, variant):
            return None
    context = span.get_span_context()
    return span if context.is_valid and _traces.is_first(context.trace_id, flag_id, variant) else None


def report_event(
    span: trace.Span,
    series: tuple[str, str | None, str],
    *,
    provider: str,
    context_id: Any,
    metadata: Mapping[str, Any],
    error_code: ErrorCode | None,
    error_message: str | None,
    value: str | None = None,
    change: AttributeMapper | None = None,
) -> None:
    """Writes the log event of an evaluation; also a span event where the settings ask for that.

    Args:
        span: The current span.
        series: The flag, the name of what it gave, the reason.
        provider: The provider's name.
        context_id: The targeting key, exported as a pseudonym or not at all where it must not be known.
        metadata: The result's metadata; `flagSetId` and `version` are taken from it.
        error_code: OpenFeature's error code, or None.
        error_message: What is wrong.
        value: The value as text, where it is to be written.
        change: Changes the attributes last of all.
    """
    flag_id, variant, reason = series
    attributes = {
        KEY: flag_id,
        VARIANT: variant,
        REASON: reason,
        PROVIDER: provider,
        CONTEXT_ID: _exported_id(context_id),
        SET_ID: metadata.get("flagSetId"),
        VERSION: metadata.get("version"),
        VALUE: value,
    }
    if error_code is not None:
        attributes[ERROR_TYPE] = str(error_code).lower()
        attributes[ERROR_MESSAGE] = error_message
    exported: Mapping[str, Any] = {key: given for key, given in attributes.items() if given not in (None, "")}
    if change is not None:
        exported = change(exported)
    given = variant if error_code is None else f"{error_code.value}, the caller's default"
    # not for a console, where each record shows its flags
    emit_event("jarvis_flags", EVENT_NAME, f"{flag_id} = {given}", attributes=exported, shown=False)
    if RUNTIME.settings is not None and RUNTIME.settings.span_events:
        span.add_event(EVENT_NAME, exported)


class _SpanFlags:
    """What a span says of flags already."""

    __slots__ = ("omitted", "variants")

    def __init__(self) -> None:
        self.variants: dict[str, str] = {}
        self.omitted: set[str] = set()


_spans: WeakKeyDictionary[trace.Span, _SpanFlags] = WeakKeyDictionary()


def _mark_span(span: trace.Span, flag_id: str, variant: str) -> bool:
    """Puts what a flag gave on the span; whether that is news to it."""
    flags = _spans.get(span)
    if flags is None:
        flags = _spans[span] = _SpanFlags()
    if flags.variants.get(flag_id) == variant:
        return False
    if flag_id in flags.variants or len(flags.variants) < SPAN_FLAGS_MAX:
        flags.variants[flag_id] = variant
        span.set_attribute(span_attribute(flag_id), variant)
    elif flag_id not in flags.omitted and len(flags.omitted) < _SERIES_MAX:
        flags.omitted.add(flag_id)
        span.set_attribute(FLAGS_OMITTED, len(flags.omitted))
    return True


class _Traces:
    """Which (flag, variant) was told of in which trace, for the latest traces."""

    def __init__(self) -> None:
        self._told: OrderedDict[int, set[tuple[str, str | None]]] = OrderedDict()
        self._lock = threading.Lock()

    def is_first(self, trace_id: int, flag_id: str, variant: str | None) -> bool:
        told = self._told.get(trace_id)
        if told is None:
            with self._lock:
                told = self._told.setdefault(trace_id, set())
                if len(self._told) > _TRACES_MAX:
                    self._told.popitem(last=False)
        pair = (flag_id, variant)
        if pair in told or len(told) >= _EVENTS_PER_TRACE_MAX:
            return False
        told.add(pair)
        return True


_traces = _Traces()


def _exported_id(context_id: Any) -> str | None:
    """The targeting key as it may leave the process: in prod a pseudonym, and nothing where there is no key for one."""
    if context_id in (None, ""):
        return None
    settings = RUNTIME.settings
    if settings is None:
        return str(context_id)
    if settings.hmac_key:
        from jarvis_otel.redaction import pseudonym  # noqa: PLC0415 - its patterns take long to compile

        return pseudonym(settings.hmac_key, str(context_id))
    environment = settings.flags.environment or settings.flags.resource_environment or "prod"
    return None if environment == "prod" else str(context_id)


class _Evaluations:
    """Counts evaluations; the meter asks for the sums when it collects.

    Two threads that count the same series at the same moment may lose one: a lock would cost every evaluation more
    than the count is worth.
    """

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str | None, str], int] = {}
        self.errors: Counter[tuple[str, str]] = Counter()
        self.failures = 0

    def count(self, series: tuple[str, str | None, str], error_code: ErrorCode | None) -> None:
        """Counts one evaluation; beyond _SERIES_MAX series they are counted together."""
        try:
            self.counts[series] += 1
        except KeyError:
            self._begin(series)
        if error_code is not None:
            known = series[0] if series in self.counts else "other"
            self.errors[known, str(error_code).lower()] += 1

    def _begin(self, series: tuple[str, str | None, str]) -> None:
        if not self.counts:
            self._make_instruments()
        if len(self.counts) >= _SERIES_MAX:
            series = ("other", None, "")
        self.counts[series] = self.counts.get(series, 0) + 1

    def _make_instruments(self) -> None:
        meter = metrics.get_meter("jarvis_otel")
        meter.create_observable_counter(
            "feature_flag.evaluations", [self._observe], unit="{evaluation}", description="Evaluations of feature flags"
        )
        meter.create_observable_counter(
            "feature_flag.evaluation_errors",
            [self._observe_errors],
            unit="{evaluation}",
            description="Evaluations that failed",
        )

    def _observe(self, options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG002
        for (flag_id, variant, reason), count in list(self.counts.items()):
            yield Observation(count, {KEY: flag_id, VARIANT: variant or "", REASON: reason})

    def _observe_errors(self, options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG002
        for (flag_id, error), count in list(self.errors.items()):
            yield Observation(count, {KEY: flag_id, ERROR_TYPE: error})


_evaluations = _Evaluations()
