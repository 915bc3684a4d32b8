"""What an operation knows of itself: its ids, its user, and the flags that were evaluated in it."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

__all__ = [
    "FLAGS_MAX",
    "LogContext",
    "Operation",
    "OperationSpanProcessor",
    "carry_into_threads",
    "current_operation",
    "note_evaluation",
]

FLAGS_MAX = 64
"""So many flags does an operation remember, and a record list."""


class Operation:
    """One unit of work: the innermost `logger.context` or server span.

    It begins with what its outer operation knows; what is noted in it stays in it. Tasks started within share it.

    Attributes:
        correlation_id, user_id, request_id, session_id: Ids that records of this operation carry, or None.
        service: The service whose `logger.context` opened it, or None.
        fields: Further keywords that its records carry in their `context`.
        declared: Ids of flags that its records list even where they were not evaluated.
        evaluated: What was evaluated: variant, and whether that counts as on, by flag id.
    """

    __slots__ = ("correlation_id", "declared", "evaluated", "fields", "request_id", "service", "session_id", "user_id")

    def __init__(self, outer: Operation | None = None) -> None:
        self.service: str | None = outer.service if outer else None
        self.correlation_id: str | None = outer.correlation_id if outer else None
        self.user_id: str | None = outer.user_id if outer else None
        self.request_id: str | None = outer.request_id if outer else None
        self.session_id: str | None = outer.session_id if outer else None
        self.fields: Mapping[str, Any] = outer.fields if outer else {}
        self.declared: tuple[str, ...] = outer.declared if outer else ()
        self.evaluated: dict[str, tuple[str, bool]] = dict(outer.evaluated) if outer else {}

    def note(self, flag_id: str, variant: str, on: bool) -> None:
        """Remembers what a flag gave, up to FLAGS_MAX flags; the last value of a flag wins."""
        evaluated = self.evaluated
        if flag_id in evaluated or len(evaluated) < FLAGS_MAX:
            evaluated[flag_id] = (variant, on)


_current: contextvars.ContextVar[Operation | None] = contextvars.ContextVar("jarvis_operation", default=None)

# Where no logger.context is open, an operation belongs to the server span (or local root span) around it.
_by_span: WeakKeyDictionary[Any, Operation] = WeakKeyDictionary()


def current_operation(span: trace.Span | None = None) -> Operation | None:
    """The operation that the caller runs in, or None.

    Args:
        span: The current span, for a caller that has it already.
    """
    operation = _current.get()
    if operation is None and _by_span:
        operation = _by_span.get(trace.get_current_span() if span is None else span)
    return operation


def note_evaluation(flag_id: str, variant: str, *, on: bool) -> None:
    """Remembers for the current operation what a flag gave; the last value of a flag wins."""
    operation = current_operation()
    if operation is not None:
        operation.note(flag_id, variant, on)


def carry_into_threads() -> Callable[[], None]:
    """Has threads, and work given to thread pools, begin in the operation and span of who started them.

    Only these two are carried, not the application's own context variables. Returns what undoes it.
    """
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit
    here = threading.local()

    def start_in_operation(thread: threading.Thread) -> None:
        # our own threads, and those of a pool, outlive the operation in which they happen to start
        outlives = thread.name.startswith("jarvis-") or getattr(here, "submitting", False)
        carried = None if outlives else _carried()
        if carried is not None:
            run = thread.run
            thread.run = lambda: carried(run)  # type: ignore[method-assign]
        start(thread)

    def submit_in_operation(pool: ThreadPoolExecutor, work: Any, /, *args: Any, **kwargs: Any) -> Any:
        carried = _carried()
        if carried is None:
            return submit(pool, work, *args, **kwargs)
        here.submitting = True
        try:
            return submit(pool, lambda: carried(lambda: work(*args, **kwargs)))
        finally:
            here.submitting = False

    threading.Thread.start = start_in_operation  # type: ignore[assignment, method-assign]
    ThreadPoolExecutor.submit = submit_in_operation  # type: ignore[assignment, method-assign]

    def undo() -> None:
        # another library may have wrapped them since: then ours stays, and does no harm
        if threading.Thread.start is start_in_operation:
            threading.Thread.start = start  # type: ignore[method-assign]
        if ThreadPoolExecutor.submit is submit_in_operation:
            ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]

    return undo


def _carried() -> Callable[[Callable[[], Any]], Any] | None:
    """A function that runs another in the operation and span of now; None where there are none."""
    operation, context = _current.get(), otel_context.get_current()
    if operation is None and not context:
        return None

    def run(work: Callable[[], Any]) -> Any:
        token, attached = _current.set(operation), otel_context.attach(context)
        try:
            return work()
        finally:
            otel_context.detach(attached)
            _current.reset(token)

    return run


class OperationSpanProcessor(SpanProcessor):
    """Gives each server span and each local root span an operation, which the spans below it share."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Called by the SDK when a span starts."""
        outer = _by_span.get(trace.get_current_span(parent_context))
        if outer is None or span.kind is SpanKind.SERVER:
            _by_span[span] = Operation()
        else:
            _by_span[span] = outer

    def on_end(self, span: ReadableSpan) -> None:
        """Called by the SDK when a span ends; the table lets go of it by itself."""


class LogContext:
    """The context manager of `logger.context(...)`, for `with` and `async with`.

    What it is given joins every record logged within, in this thread or task and those started from it. Where no
    span is active it opens one, so that an operation always has a trace.

    Args:
        service: The service whose logger opened it; names the span.
        correlation_id: Links the records of the operation, in other processes too.
        user_id: The user on whose behalf it runs; flags are evaluated for that user.
        flags: Ids of flags that its records list even where they are not evaluated.
        fields: `request_id` and `session_id`; anything else joins the `context` of its records.
    """

    __slots__ = ("_entered", "_fields", "_flags", "_ids", "_service")

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
        self._ids = {key: _text(value) for key, value in ids.items() if value is not None}
        self._flags = (flags,) if isinstance(flags, str) else tuple(map(_text, flags or ()))
        self._fields = fields
        self._entered: list[tuple[contextvars.Token[Operation | None], Any, Span | None]] = []

    def __enter__(self) -> Self:
        operation = Operation(current_operation())
        operation.service = self._service
        for key, value in self._ids.items():
            setattr(operation, key, value)
        if self._flags:
            operation.declared = tuple(dict.fromkeys(operation.declared + self._flags))
        if self._fields:
            operation.fields = {**operation.fields, **self._fields}
        token = _current.set(operation)
        scope, span = None, trace.get_current_span()
        opened: Any = None
        if not span.get_span_context().is_valid:
            opened = trace.get_tracer("jarvis_otel").start_span(
                f"{self._service} operation", attributes={"jarvis.service": self._service}
            )
            scope = trace.use_span(opened, end_on_exit=False, record_exception=False, set_status_on_exception=False)
            scope.__enter__()
            span = opened
        if operation.correlation_id is not None and span.is_recording():
            span.set_attribute("jarvis.correlation_id", operation.correlation_id)
        self._entered.append((token, scope, opened))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        token, scope, span = self._entered.pop()
        if span is not None:
            if isinstance(error, Exception):
                span.record_exception(error)
                span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
            scope.__exit__(None, None, None)
            span.end()
        # left in another context than it was entered in (an async generator closed elsewhere): nothing to undo
        with contextlib.suppress(ValueError):
            _current.reset(token)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


def _text(value: Any) -> str:
    try:
        return str(value).encode("utf-8", "backslashreplace").decode()
    except Exception:  # a __str__ that raises must not reach the application
        return f"<unprintable {type(value).__name__}>"
