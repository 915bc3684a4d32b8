"""How operations reach threads, thread pools, processes and process pools: what is handed over takes its own along."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from types import NoneType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from jarvis_otel.context import Operation, Scope, text_of

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

__all__ = ["Carried", "carry_operations"]

_PLAIN = frozenset({bool, date, Decimal, float, int, NoneType, timedelta, UUID})
_TIMES = frozenset({datetime, time})
_TEXT_MAX = 32 * 1024 + 1
"""Characters or bytes; one more than a record shows, so that it is cut visibly there."""
_DEPTH_MAX = 4
_ITEMS_MAX = 64


class Carried:
    """A function that runs in the operation and span of who handed it over; to another process it takes a copy.

    That copy has the ids, the flags, and of the fields what is plain: anything else goes as text, so that nothing
    fails to be pickled that could be without us.

    Args:
        function: What is to run.
        scope: The operation and span of who hands it over.
    """

    __slots__ = ("__wrapped__", "_scope")

    def __init__(self, function: Callable[..., Any], scope: Scope) -> None:
        self.__wrapped__ = function
        self._scope = scope

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the function there and then."""
        # pools call one and the same from many threads: each call needs a scope of its own
        with Scope(self._scope.operation, self._scope.context):
            return self.__wrapped__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # who asks a pool's work for its name is told that of the function
        return getattr(self.__wrapped__, name)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.__wrapped__, _packed_operation(self._scope.operation), _packed_span(self._scope.context))


def carry_operations() -> Callable[[], None]:
    """Has threads, processes, and work given to pools begin in the operation and span of who started them.

    Only these two are carried, not the application's own context variables. It wraps `Thread.start` and `submit` of
    ThreadPoolExecutor, `Process.start` and `submit` of ProcessPoolExecutor, and what gives work to
    `multiprocessing.pool.Pool` and ThreadPool. The threads and processes of a pool outlive the operation in which
    they happen to start, so they begin in none, their initializers too. Returns what undoes it.
    """
    undo = [
        _wrap(threading.Thread, "start", _thread_start),
        _wrap(ThreadPoolExecutor, "submit", _submit),
    ]
    try:
        from concurrent.futures.process import ProcessPoolExecutor  # noqa: PLC0415 - not where there is none
        from multiprocessing.pool import Pool  # noqa: PLC0415
        from multiprocessing.process import BaseProcess as Process  # noqa: PLC0415
    except ImportError:  # some platforms have no processes
        pass
    else:
        undo += [
            _wrap(Process, "start", _process_start),
            _wrap(ProcessPoolExecutor, "submit", _submit),
            _wrap(Pool, "__init__", _pool_init),
            *(_wrap(Pool, name, _pool_work) for name in ("apply_async", "imap", "imap_unordered", "_map_async")),
        ]

    def undo_all() -> None:
        for one in undo:
            one()

    return undo_all


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Puts a method in place of one, that gets it as its first argument; returns what undoes it."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        if Scope.exists():
            return wrapper(original, Scope.current(), *args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)

    def undo() -> None:
        # another library may have wrapped it since: then ours stays, and does no harm
        if getattr(owner, name) is replacement:
            setattr(owner, name, original)

    return undo


class _Here(threading.local):
    """What this thread is at."""

    pooling = False
    """It is in a pool's own code: what starts now is the pool's."""


_here = _Here()


def _thread_start(start: Callable[..., Any], scope: Scope, thread: threading.Thread) -> None:
    # our own threads outlive an operation, too
    if _here.pooling or thread.name.startswith("jarvis-"):
        start(thread)
        return
    carried, own = Carried(thread.run, scope), vars(thread).get("run")

    def put_back() -> None:
        if own is None:
            vars(thread).pop("run", None)
        else:
            vars(thread)["run"] = own

    def run() -> None:
        # or the thread would hold what holds it
        put_back()
        carried()

    thread.run = run  # type: ignore[method-assign]
    try:
        start(thread)
    except BaseException:
        put_back()
        raise


def _process_start(start: Callable[..., Any], scope: Scope, process: BaseProcess) -> None:
    if _here.pooling:
        # a forked process goes on with what is current here, and with this thread's state
        _here.pooling = False
        try:
            with Scope(None, Context()):
                start(process)
        finally:
            _here.pooling = True
    elif "run" in vars(process):
        start(process)
    else:
        process.run = Carried(_Run(process), scope)  # type: ignore[method-assign]
        try:
            start(process)
        finally:
            vars(process).pop("run", None)


class _Run:
    """The `run` of a process, of which only the process is pickled."""

    __slots__ = ("process",)

    def __init__(self, process: BaseProcess) -> None:
        self.process = process

    def __call__(self) -> None:
        type(self.process).run(self.process)


def _submit(
    submit: Callable[..., Any], scope: Scope, pool: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    with _pooling():
        return submit(pool, Carried(function, scope), *args, **kwargs)


def _pool_init(init: Callable[..., Any], scope: Scope, pool: Any, /, *args: Any, **kwargs: Any) -> None:  # noqa: ARG001
    with _pooling():
        init(pool, *args, **kwargs)


def _pool_work(give: Callable[..., Any], scope: Scope, pool: Any, /, *args: Any, **kwargs: Any) -> Any:
    if args:
        return give(pool, Carried(args[0], scope), *args[1:], **kwargs)
    return give(pool, **{**kwargs, "func": Carried(kwargs["func"], scope)})


@contextlib.contextmanager
def _pooling() -> Iterator[None]:
    _here.pooling = True
    try:
        yield
    finally:
        _here.pooling = False


def _packed_operation(operation: Operation | None) -> dict[str, Any] | None:
    """An operation as plain values."""
    if operation is None:
        return None
    return {
        "service": operation.service,
        "correlation_id": operation.correlation_id,
        "user_id": operation.user_id,
        "request_id": operation.request_id,
        "session_id": operation.session_id,
        "fields": {text_of(key): _plain(value) for key, value in operation.fields.items()},
        "declared": operation.declared,
        "evaluated": {
            text_of(flag): (text_of(variant), bool(on)) for flag, (variant, on) in dict(operation.evaluated).items()
        },
    }


def _plain(value: Any, depth: int = 0) -> Any:
    """A value within bounds that can be pickled and has the same meaning elsewhere; text in place of any other."""
    kind = type(value)
    if kind in _PLAIN or (kind in _TIMES and type(value.tzinfo) in (NoneType, timezone)):
        return value
    if kind in (str, bytes):
        return value[:_TEXT_MAX]
    if kind in (dict, list, tuple, set, frozenset):
        if depth == _DEPTH_MAX:
            return "…"
        try:
            if kind is dict:
                pairs = itertools.islice(value.items(), _ITEMS_MAX)
                return {_plain(key, _DEPTH_MAX): _plain(inner, depth + 1) for key, inner in pairs}
            return kind(_plain(inner, depth + 1) for inner in itertools.islice(value, _ITEMS_MAX))
        except RuntimeError:  # another thread changed it meanwhile
            return "…"
    return text_of(value)[:_TEXT_MAX]


def _packed_span(context: Context) -> tuple[Any, ...]:
    """What of an OpenTelemetry context has a meaning elsewhere: the span's ids, and the baggage."""
    span = trace.get_current_span(context).get_span_context()
    ids = (span.trace_id, span.span_id, int(span.trace_flags), span.trace_state.to_header()) if span.is_valid else None
    return ids, {str(key): text_of(value) for key, value in baggage.get_all(context).items()}


def _arrived(function: Callable[..., Any], packed: Mapping[str, Any] | None, span: tuple[Any, ...]) -> Carried:
    """What becomes of a Carried in another process."""
    operation = None
    if packed is not None:
        operation = Operation()
        for name, value in packed.items():
            setattr(operation, name, value)
    context = Context()
    ids, members = span
    if ids is not None:
        trace_id, span_id, flags, state = ids
        remote = SpanContext(
            trace_id,
            span_id,
            is_remote=True,
            trace_flags=TraceFlags(flags),
            trace_state=TraceState.from_header([state]),
        )
        context = trace.set_span_in_context(NonRecordingSpan(remote), context)
    for key, value in members.items():
        context = baggage.set_baggage(key, value, context)
    return Carried(function, Scope(operation, context))
