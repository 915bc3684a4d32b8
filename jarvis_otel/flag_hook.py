"""The telemetry of an evaluation: span attributes, an event, metrics, and the operation's own memory of it.

The names follow the semantic conventions for feature flags (OpenTelemetry semantic conventions 1.44, registry
`feature_flag.*`); those that begin with `jarvis.` are ours.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, FlagValueType, Reason
from openfeature.hook import Hook, HookContext, HookHints
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation

from jarvis_otel.context import note_evaluation
from jarvis_otel.logger import get_logger
from jarvis_otel.runtime import RUNTIME

__all__ = ["EVENT_NAME", "SPAN_FLAGS_MAX", "EvaluationHook", "record_evaluation", "result_name", "span_attribute"]

EVENT_NAME = "feature_flag.evaluation"
KEY = "feature_flag.key"
VARIANT = "feature_flag.result.variant"
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
_SERIES_MAX = 2_000


def span_attribute(flag_id: str) -> str:
    """The span attribute of what a flag gave; in `feature_flag.*` a flag named `key` would collide."""
    return f"jarvis.flag.{flag_id}"


class EvaluationHook(Hook):
    """Reports each evaluation, of any OpenFeature provider; it never raises."""

    def finally_after(
        self,
        hook_context: HookContext,
        details: FlagEvaluationDetails[FlagValueType],
        hints: HookHints,  # noqa: ARG002
    ) -> None:
        """Called by OpenFeature when an evaluation is over, failed or not."""
        try:
            metadata = details.flag_metadata
            provider = hook_context.provider_metadata
            record_evaluation(
                hook_context.flag_key,
                variant=result_name(details.variant, details.value, details.reason),
                on=details.value is True or (details.variant is not None and not isinstance(details.value, bool)),
                reason=details.reason,
                provider=provider.name if provider is not None else "",
                context_id=metadata.get("contextId") or hook_context.evaluation_context.targeting_key,
                set_id=metadata.get("flagSetId"),
                version=metadata.get("version"),
                error_code=details.error_code,
                error_message=details.error_message,
            )
        except Exception:  # telemetry never raises into the application; the loss is counted
            _count_failure()


def result_name(variant: str | None, value: Any, reason: str | None) -> str | None:
    """The name under which a result is known; a provider without variants has `on` and `off` for booleans."""
    if variant is not None:
        return variant
    if isinstance(value, bool):
        return "on" if value else "off"
    return "off" if reason == Reason.DISABLED else None


def record_evaluation(
    flag_id: str,
    *,
    variant: str | None,
    on: bool,
    reason: str | None,
    provider: str,
    context_id: Any = None,
    set_id: Any = None,
    version: Any = None,
    error_code: ErrorCode | None = None,
    error_message: str | None = None,
) -> None:
    """Reports one evaluation.

    Args:
        flag_id: The flag.
        variant: What it gave, by name; None where it gave the caller's default.
        on: Whether that counts as on.
        reason: OpenFeature's reason.
        provider: The provider's name.
        context_id: The targeting key, exported as a pseudonym or not at all where it must not be known.
        set_id: The flag set.
        version: The flag set's version.
        error_code: OpenFeature's error code, or None.
        error_message: What is wrong.
    """
    _count(flag_id, variant, reason, error_code)
    if error_code is None and variant is not None:
        note_evaluation(flag_id, variant, on=on)
    span = trace.get_current_span()
    if variant is not None and span.is_recording():
        _mark_span(span, flag_id, variant)
    context = span.get_span_context()
    if not context.is_valid or not _is_first(context.trace_id, flag_id, variant):
        return
    attributes = {
        KEY: flag_id,
        VARIANT: variant,
        REASON: None if reason is None else str(reason).lower(),
        PROVIDER: provider,
        CONTEXT_ID: _exported_id(context_id),
        SET_ID: set_id,
        VERSION: version,
    }
    if error_code is not None:
        attributes[ERROR_TYPE] = str(error_code).lower()
        attributes[ERROR_MESSAGE] = error_message
    exported = {key: value for key, value in attributes.items() if value not in (None, "")}
    given = variant if error_code is None else f"{error_code.value}, the caller's default"
    get_logger("jarvis_flags").event(EVENT_NAME, f"{flag_id} = {given}", attributes=exported)
    if RUNTIME.settings is not None and RUNTIME.settings.span_events:
        span.add_event(EVENT_NAME, exported)


class _SpanFlags:
    """What a span says of flags already."""

    __slots__ = ("omitted", "variants")

    def __init__(self) -> None:
        self.variants: dict[str, str] = {}
        self.omitted: set[str] = set()


_spans: WeakKeyDictionary[trace.Span, _SpanFlags] = WeakKeyDictionary()


def _mark_span(span: trace.Span, flag_id: str, variant: str) -> None:
    flags = _spans.get(span)
    if flags is None:
        flags = _spans[span] = _SpanFlags()
    if flags.variants.get(flag_id) == variant:
        return
    if flag_id in flags.variants or len(flags.variants) < SPAN_FLAGS_MAX:
        flags.variants[flag_id] = variant
        span.set_attribute(span_attribute(flag_id), variant)
    elif flag_id not in flags.omitted and len(flags.omitted) < _SERIES_MAX:
        flags.omitted.add(flag_id)
        span.set_attribute(FLAGS_OMITTED, len(flags.omitted))


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
_is_first = _traces.is_first


def _exported_id(context_id: Any) -> str | None:
    """The targeting key as it may leave the process: in prod a pseudonym, and nothing where there is no key for one."""
    if context_id in (None, ""):
        return None
    settings = RUNTIME.settings
    if settings is None:
        return str(context_id)
    if settings.hmac_key:
        digest = hmac.new(settings.hmac_key.encode(), str(context_id).encode("utf-8", "surrogatepass"), hashlib.sha256)
        return digest.hexdigest()[:16]
    environment = settings.flags.environment or settings.flags.resource_environment or "prod"
    return None if environment == "prod" else str(context_id)


class _Evaluations:
    """Counts evaluations; the meter asks for the sums when it collects."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.errors: Counter[tuple[str, str]] = Counter()
        self.failures = 0
        self._made = False

    def make_instruments(self) -> None:
        """Makes the instruments, once, when the first evaluation is counted."""
        if self._made:
            return
        self._made = True
        meter = metrics.get_meter("jarvis_otel")
        meter.create_observable_counter(
            "feature_flag.evaluations", [self._observe], unit="{evaluation}", description="Evaluations of feature flags"
        )
        meter.create_observable_counter(
            "feature_flag.evaluation_errors", [self._observe_errors], unit="{evaluation}", description="Failed ones"
        )

    def _observe(self, options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG002
        for (flag_id, variant, reason), count in list(self.counts.items()):
            yield Observation(count, {KEY: flag_id, VARIANT: variant, REASON: reason})

    def _observe_errors(self, options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG002
        for (flag_id, error), count in list(self.errors.items()):
            yield Observation(count, {KEY: flag_id, ERROR_TYPE: error})


_evaluations = _Evaluations()


def _count(flag_id: str, variant: str | None, reason: str | None, error_code: ErrorCode | None) -> None:
    _evaluations.make_instruments()
    counts = _evaluations.counts
    series = (flag_id, variant or "", str(reason or "").lower())
    if series not in counts and len(counts) >= _SERIES_MAX:
        series = ("other", "", "")
    counts[series] += 1
    if error_code is not None:
        error = (series[0], str(error_code).lower())
        _evaluations.errors[error] += 1


def _count_failure() -> None:
    _evaluations.failures += 1
