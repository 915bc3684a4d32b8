"""What an operation knows of itself: its ids, its user, and the flags that were evaluated in it."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast
from weakref import WeakKeyDictionary

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from jarvis_collector.record import FLAGS_MAX

__all__ = [
    "LogContext",
    "Operation",
    "OperationSpanProcessor",
    "Scope",
    "current_operation",
    "end_span",
    "note_evaluation",
    "received_correlation",
    "scope_of",
    "start_span",
    "text_of",
    "with_received_correlation",
]

_CORRELATION = "jarvis.correlation_id"

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Operation:
    """One unit of work: the innermost `logger.context` or server span.

    It begins with what its outer operation knows; what is noted in it stays in it. Tasks started within share it.

    Attributes:
        correlation_id, user_id, request_id, session_id: Ids that records of this operation carry, or None.
        service: The service whose `logger.context` opened it, or None.
        fields: Further keywords that its records carry in their `context`.
        declared: Ids of flags that its records list even where they were not evaluated.
        evaluated: What was evaluated: variant, and whether that counts as on, by flag id.
        version: 0 at first, and another number after each change: what was derived at one version holds while it
            stays.
        shared: What a logger derived at a version, its own affair; None at first.
    """

    __slots__ = (
        "_around",
        "_gone",
        "_serves",
        "_versions",
        "_within",
        "correlation_id",
        "declared",
        "evaluated",
        "fields",
        "request_id",
        "service",
        "session_id",
        "shared",
        "user_id",
        "version",
    )

    def __init__(self, outer: Operation | None = None) -> None:
        self.version = 0
        self.shared: Any = None
        # a counter gives two threads that note at once two numbers, where += might give both the same
        self._versions = itertools.count(1)
        # a server span opened in it has an operation of its own, which knows in which one it is
        self._serves = False
        self._within: Operation | None = None
        self._gone = False
        self._around: Operation | None = None
        self._begin(outer)

    def _begin(self, outer: Operation | None) -> None:
        self.service: str | None = outer.service if outer else None
        self.correlation_id: str | None = outer.correlation_id if outer else None
        self.user_id: str | None = outer.user_id if outer else None
        self.request_id: str | None = outer.request_id if outer else None
        self.session_id: str | None = outer.session_id if outer else None
        self.fields: Mapping[str, Any] = outer.fields if outer else {}
        self.declared: tuple[str, ...] = outer.declared if outer else ()
        self.evaluated: dict[str, tuple[str, bool]] = dict(outer.evaluated) if outer else {}

    def note(self, flag_id: str, variant: str, on: bool) -> None:
        """Remembers what a flag gave, of as many flags as a record lists; the last value of a flag wins."""
        evaluated = self.evaluated
        known = evaluated.get(flag_id)
        given = (variant, on)
        if known != given and (known is not None or len(evaluated) < FLAGS_MAX):
            evaluated[flag_id] = given
            self.version = next(self._versions)

    def forget(self, outer: Operation | None) -> None:
        """Makes it say no more than the operation around it: for one that was left where it could not be taken down."""
        self._begin(outer)
        self._gone, self._around = True, outer
        self.version = next(self._versions)

    def standing(self) -> Operation | None:
        """Itself, or in place of one that was told to forget, the one around it."""
        operation: Operation | None = self
        while operation is not None and operation._gone:  # noqa: SLF001
            operation = operation._around  # noqa: SLF001
        return operation


_current: contextvars.ContextVar[Operation | None] = contextvars.ContextVar("jarvis_operation", default=None)

# Where no logger.context is open, an operation belongs to the server span (or local root span) around it.
_by_span: WeakKeyDictionary[Any, Operation] = WeakKeyDictionary()


def current_operation(span: trace.Span | None = None) -> Operation | None:
    """The operation that the caller runs in, or None.

    Args:
        span: The current span, for a caller that has it already.
    """
    operation = _current.get()
    if operation is None:
        return _by_span.get(trace.get_current_span() if span is None else span) if _by_span else None
    if operation._serves:  # noqa: SLF001
        inner = _by_span.get(trace.get_current_span() if span is None else span)
        if inner is not None and inner._within is operation:  # noqa: SLF001
            return inner
    return operation


def note_evaluation(flag_id: str, variant: str, *, on: bool) -> None:
    """Remembers for the current operation what a flag gave; the last value of a flag wins."""
    operation = current_operation()
    if operation is not None:
        operation.note(flag_id, variant, on)


def with_received_correlation(context: Context, correlation_id: str) -> Context:
    """An OpenTelemetry context in which a server span begins an operation of this correlation id.

    Args:
        context: What else was received.
        correlation_id: What the caller calls the operation.
    """
    return otel_context.set_value(_CORRELATION, correlation_id, context)


def received_correlation(context: Context | None = None) -> str | None:
    """The correlation id that a caller sent, as `with_received_correlation` keeps it; None where none came.

    Args:
        context: An OpenTelemetry context; the current one if None.
    """
    return cast("str | None", otel_context.get_value(_CORRELATION, context))


_RAISED = "_jarvis_raised_in"


class Scope:
    """Has an operation and an OpenTelemetry context be the current ones, for one `with`.

    Args:
        operation: The operation, or None for none.
        context: The OpenTelemetry context, which holds the current span.
    """

    __slots__ = ("_tokens", "context", "operation")

    def __init__(self, operation: Operation | None, context: Context) -> None:
        self.operation = operation
        self.context = context

    @classmethod
    def current(cls) -> Scope:
        """The operation and the OpenTelemetry context of now."""
        return cls(_current.get(), otel_context.get_current())

    @staticmethod
    def exists() -> bool:
        """Whether there is an operation now, or anything that OpenTelemetry knows."""
        return _current.get() is not None or bool(otel_context.get_current())

    def __enter__(self) -> None:
        self._tokens = _current.set(self.operation), otel_context.attach(self.context)

    def __exit__(self, *_: object) -> None:
        ours, theirs = self._tokens
        try:
            _current.reset(ours)
        except (ValueError, RuntimeError):  # left in another context than it was entered in: nothing to put back here
            return
        otel_context.detach(theirs)


class _Raised(Scope):
    """Where an exception came from; it goes along with the exception, but not into another process."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return bool, ()


def scope_of(error: BaseException | None) -> Scope | None:
    """The innermost operation that an exception has left, if it has left any.

    Args:
        error: An exception that nobody caught.
    """
    found = getattr(error, "__dict__", {}).get(_RAISED)
    return found if isinstance(found, Scope) else None


class OperationSpanProcessor(SpanProcessor):
    """Gives each server span and each local root span an operation, which the spans below it share."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Called by the SDK when a span starts."""
        operation = current = _current.get()
        if operation is None or operation._serves:  # noqa: SLF001
            operation = current_operation(trace.get_current_span(parent_context))
        if operation is None or span.kind is SpanKind.SERVER:
            operation = Operation()
            operation.correlation_id = received_correlation(parent_context)
            if operation.correlation_id is not None:
                span.set_attribute(_CORRELATION, operation.correlation_id)
            if current is not None:
                operation._within = current  # noqa: SLF001
                current._serves = True  # noqa: SLF001
        _by_span[span] = operation

    def on_end(self, span: ReadableSpan) -> None:
        """Called by the SDK when a span ends; the table lets go of it by itself."""


class _Entered:
    """What leaving an operation needs to know."""

    __slots__ = ("attached", "before", "outer", "scope", "span", "token")

    def __init__(self, token: contextvars.Token[Operation | None], outer: Operation | None) -> None:
        self.token = token
        self.outer = outer
        # only where it opened a span
        self.span: trace.Span | None = None
        self.before: Any = None
        self.scope: Any = None
        self.attached: Any = None


class LogContext:
    """The operation of `logger.context(...)`: for `with`, for `async with`, and as a decorator.

    What it is given joins every record logged within, in this thread or task and those started from it. Where no
    span of this process is active it opens one, so that an operation always has a trace.

    As a decorator of a function, coroutine function, generator or async generator it opens an operation for each
    call; that of a generator holds while its body runs, not for its consumer between two values. Texts may then
    name arguments of the call, as `str.format` does: an argument that is None leaves the text out. A text that
    cannot be filled is left out too, and one warning says why; the call goes on::

        @logger.context(correlation_id="trade-{order.id}", user_id="{order.user_id}", symbol="{symbol}")
        async def execute(order: Order, symbol: str = "SOL") -> Fill: ...

    One instance may be entered by many threads and tasks at once.

    Args:
        service: The service whose logger opened it; names the span.
        correlation_id: Links the records of the operation, in other processes too.
        user_id: The user on whose behalf it runs; flags are evaluated for that user.
        flags: Ids of flags that its records list even where they are not evaluated.
        fields: `request_id` and `session_id`; anything else joins the `context` of its records.
    """

    __slots__ = ("_entered", "_fields", "_flags", "_ids", "_name", "_service")

    def __init__(
        self,
        service: str,
        /,
        correlation_id: str | None = None,
        user_id: str | None = None,
        flags: list[str] | tuple[str, ...] | None = None,
        **fields: Any,
    ) -> None:
        ids = {
            "correlation_id": correlation_id,
            "user_id": user_id,
            "request_id": fields.pop("request_id", None),
            "session_id": fields.pop("session_id", None),
        }
        self._service = service
        self._name = "operation"
        self._ids = {key: text_of(value) for key, value in ids.items() if value is not None}
        self._flags = (flags,) if isinstance(flags, str) else tuple(map(text_of, flags or ()))
        self._fields = fields
        self._entered: dict[Operation, _Entered] = {}

    def __enter__(self) -> Self:
        span = trace.get_current_span()
        outer = current_operation(span)
        operation = Operation(outer)
        operation.service = self._service
        for key, value in self._ids.items():
            setattr(operation, key, value)
        if self._flags:
            operation.declared = tuple(dict.fromkeys(operation.declared + self._flags))
        if self._fields:
            operation.fields = {**operation.fields, **self._fields}
        self._entered[operation] = entered = _Entered(_current.set(operation), outer)
        known = span.get_span_context()
        # one of another process is no span of ours: ours is its child
        if not known.is_valid or known.is_remote:
            span = entered.span = start_span(f"{self._service} {self._name}", self._service, operation.correlation_id)
            entered.before = otel_context.get_current()
            entered.scope = trace.set_span_in_context(span)
            entered.attached = otel_context.attach(entered.scope)
        elif operation.correlation_id is not None and span.is_recording():
            span.set_attribute(_CORRELATION, operation.correlation_id)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        current = _current.get()
        if isinstance(error, Exception):
            # who catches it last, or nobody, shall know what it interrupted; some exceptions take no attributes
            with contextlib.suppress(Exception):
                error.__dict__.setdefault(_RAISED, _Raised(current, otel_context.get_current()))
        operation = current
        entered = self._entered.pop(current, None) if current is not None else None
        if entered is None:
            # left elsewhere, or before one that was entered later: of its entries the last one
            try:
                operation, entered = self._entered.popitem()
            except KeyError:  # never entered
                return
        assert operation is not None
        if entered.span is not None:
            end_span(entered.span, error)
        try:
            _current.reset(entered.token)
        except (ValueError, RuntimeError):
            # left in another context than it was entered in, as an async generator is that was closed elsewhere:
            # there it stays, so it must not say anything more, and here goes only what was copied from there
            operation.forget(entered.outer)
            if current is operation:
                _current.set(entered.outer)
            if entered.span is not None and otel_context.get_current() is entered.scope:
                otel_context.attach(entered.before)
            return
        if current is not operation:
            # one that was entered later is left later, and then finds this one gone
            operation.forget(entered.outer)
        if (before := _current.get()) is not None and before._gone:  # noqa: SLF001
            _current.set(before.standing())
        if entered.span is not None:
            otel_context.detach(entered.attached)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: Callable[_P, _T], /) -> Callable[_P, _T]:
        """Decorates a function, so that each call is an operation of its own.

        Args:
            function: A function, coroutine function, generator function or async generator function.

        Raises:
            TypeError: It is none of these.
        """
        if isinstance(function, staticmethod | classmethod):
            return cast("Callable[_P, _T]", type(function)(self(function.__func__)))
        if not callable(function) or isinstance(function, type):
            raise TypeError(
                f"logger.context: got {text_of(function)[:100]} to decorate, want a function;"
                " write @logger.context(…) with parentheses, and decorate the methods of a class"
            )
        from jarvis_otel.calls import decorated  # noqa: PLC0415 - only who decorates needs it

        return cast("Callable[_P, _T]", decorated(function, self._texts(), self._for_call))

    def _for_call(self, name: str, filled: Mapping[str, str | None]) -> LogContext:
        """One like this for a call of a function, with filled texts; None leaves one out."""
        made = LogContext(self._service)
        made._name, made._flags = name, self._flags
        made._ids, made._fields = self._ids, self._fields
        if filled:
            made._ids, made._fields = _with(filled, self._ids), _with(filled, self._fields)
        return made

    def _texts(self) -> Mapping[str, str]:
        given = {**self._fields, **self._ids}
        return {key: value for key, value in given.items() if isinstance(value, str)}


def _with(filled: Mapping[str, str | None], given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: filled.get(key, value) for key, value in given.items() if key not in filled or filled[key] is not None}


# The tracer of the provider that there is; to get one anew costs a third of a span.
_tracer: tuple[object, trace.Tracer] | None = None


def start_span(
    name: str,
    service: str,
    correlation_id: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: Context | None = None,
) -> trace.Span:
    """A span for an operation, not yet the current one; where nothing traces, one that has ids but is not recorded.

    Args:
        name: Its name.
        service: The service that the operation is of.
        correlation_id: That of the operation.
        kind: What kind of span.
        parent: The context that its parent is in; the current one if None.
    """
    global _tracer  # noqa: PLW0603
    attributes = {"jarvis.service": service}
    if correlation_id is not None:
        attributes[_CORRELATION] = correlation_id
    try:
        provider = trace.get_tracer_provider()
        if _tracer is None or _tracer[0] is not provider:
            _tracer = provider, provider.get_tracer("jarvis_otel")
        span = _tracer[1].start_span(name, parent, kind, attributes)
        if span.get_span_context().is_valid:
            return span
    except Exception:  # a sampler or processor of the application that raises is no reason for the operation to fail
        pass
    ids = os.urandom(24)
    return trace.NonRecordingSpan(
        trace.SpanContext(
            int.from_bytes(ids[:16]) or 1,
            int.from_bytes(ids[16:]) or 1,
            is_remote=False,
            # "not sampled" would have every callee drop its spans of this trace
            trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
        )
    )


def end_span(span: trace.Span, error: BaseException | None) -> None:
    """Ends a span, and says in it what went wrong.

    Args:
        span: One of `start_span`.
        error: What was raised in it; only exceptions that are errors count.
    """
    try:
        if isinstance(error, Exception) and span.is_recording():
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {text_of(error)}"))
    except Exception:  # an exception whose text raises must not take the place of itself
        pass
    # nor must a processor of the application that raises
    with contextlib.suppress(Exception):
        span.end()


def text_of(value: Any) -> str:
    """Any value as text that can be encoded; it never raises."""
    try:
        return str(value).encode("utf-8", "backslashreplace").decode()
    except Exception:  # a __str__ that raises must not reach the application
        return f"<unprintable {type(value).__name__}>"
