"""The spans of a test, whichever tracer provider the application uses, and one where it has none."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.util._decorator import _agnosticcontextmanager

from jarvis_otel.context import OperationSpanProcessor
from jarvis_otel.terminal import printable
from jarvis_otel.testing.tap import Answer, Tap, Wrap, counted

__all__ = ["CapturedSpans", "capture_spans"]

_NAMES_MAX = 12


class CapturedSpans(list[ReadableSpan]):
    """The finished spans of a test in the order in which they ended, at most 100,000."""

    @property
    def names(self) -> list[str]:
        """The names."""
        return [span.name for span in self]

    def find(self, name: str | None = None, attributes: Mapping[str, Any] | None = None) -> list[ReadableSpan]:
        """The spans of which all of this is true.

        Args:
            name: The name.
            attributes: Attributes that it has, among others; what a flag gave is `jarvis.flag.<ID>`.
        """
        wanted = attributes or {}
        return [
            span
            for span in self
            if (name is None or span.name == name)
            and all((span.attributes or {}).get(key) == value for key, value in wanted.items())
        ]

    def has(self, name: str | None = None, attributes: Mapping[str, Any] | None = None) -> Answer:
        """Whether there is such a span; where an assertion of it fails, pytest shows what there is instead.

        The arguments are those of `find`.
        """
        found = self.find(name, attributes)
        if found:
            return Answer(True, f"{len(found)} of {counted(len(self), 'span')}: {_line(found[0])}")
        return Answer(False, self._missing(name, attributes))

    def one(self, name: str | None = None, attributes: Mapping[str, Any] | None = None) -> ReadableSpan:
        """The only such span; the arguments are those of `find`.

        Raises:
            AssertionError: There is none, or more than one.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        found = self.find(name, attributes)
        if not found:
            raise AssertionError(self._missing(name, attributes))
        if len(found) > 1:
            lines = "".join(f"\n  {_line(span)}" for span in found[:10])
            raise AssertionError(f"{len(found)} spans {_words(name, attributes)}, want one:{lines}")
        return found[0]

    @property
    def text(self) -> str:
        """A line for each span, for people."""
        return "\n".join(map(_line, self))

    def _missing(self, name: str | None, attributes: Mapping[str, Any] | None) -> str:
        text = f"no span {_words(name, attributes)}"
        alike = self.find(name)
        if alike and attributes:
            shown = {key: (alike[-1].attributes or {}).get(key) for key in attributes}
            return f"{text} among {counted(len(self), 'span')}, {alike[-1].name!r} has {shown}"
        if self:
            names = list(dict.fromkeys(self.names))
            more = ", …" if len(names) > _NAMES_MAX else ""
            return f"{text} among {counted(len(self), 'span')}: {', '.join(names[:_NAMES_MAX])}{more}"
        if getattr(trace.get_tracer_provider(), "_disabled", False):
            return f"{text}, there are none: the application's tracer provider is disabled (OTEL_SDK_DISABLED)"
        return f"{text}, there are none"

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'span')}>"


def _words(name: str | None, attributes: Mapping[str, Any] | None) -> str:
    parts = [] if name is None else [repr(name)]
    if attributes:
        parts.append("with " + ", ".join(f"{key}={value!r}" for key, value in attributes.items()))
    return " ".join(parts) or "at all"


def _line(span: ReadableSpan) -> str:
    parts = [span.name, *(f"{key}={value!r}" for key, value in (span.attributes or {}).items())]
    if not span.status.is_ok:
        parts.append(f"(ERROR: {span.status.description})")
    return printable(" ".join(parts))


def _end(original: Callable[..., None]) -> Callable[..., None]:
    """Captures a span when it ends, whoever's provider made it and whatever its processors do with it."""

    @functools.wraps(original)
    def end(span: Span, end_time: int | None = None) -> None:
        ends = span.is_recording()
        original(span, end_time)
        if ends:
            _tap.put(span)

    return end


class _Tracer(trace.Tracer):
    """Asks at each span who makes it: code may keep a tracer, and the provider is there for one test only."""

    def __init__(self, provider: _StandInProvider, *scope: Any) -> None:
        self._provider = provider
        self._scope = scope

    def _now(self) -> trace.Tracer:
        return self._provider.now().get_tracer(*self._scope)

    def start_span(self, *arguments: Any, **options: Any) -> trace.Span:
        """Starts a span."""
        return self._now().start_span(*arguments, **options)

    @_agnosticcontextmanager
    def start_as_current_span(self, *arguments: Any, **options: Any) -> Iterator[trace.Span]:
        """Starts a span as the current one, as context manager or decorator."""
        with self._now().start_as_current_span(*arguments, **options) as span:
            yield span


class _StandInProvider(trace.TracerProvider):
    """The process's tracer provider while spans are captured and the application has set none.

    It goes where `set_tracer_provider` would put it, but that may be called once only, and is left to the application.
    """

    def __init__(self) -> None:
        self._users = 0
        self._lock = threading.Lock()

    @functools.cached_property
    def _sdk(self) -> TracerProvider:
        provider = TracerProvider(ALWAYS_ON, shutdown_on_exit=False)
        # OTEL_SDK_DISABLED keeps tests from exporting, and here nothing is exported
        provider._disabled = False  # noqa: SLF001
        provider.add_span_processor(OperationSpanProcessor())
        return provider

    def get_tracer(self, *scope: Any, **named: Any) -> trace.Tracer:
        """A tracer that outlives the test."""
        names = ("instrumenting_module_name", "instrumenting_library_version", "schema_url", "attributes")
        return _Tracer(self, *scope, *(named.get(name) for name in names[len(scope) :]))

    def now(self) -> trace.TracerProvider:
        """Who makes spans now: ours while it stands in, then whatever the process has."""
        current = trace.get_tracer_provider()
        return self._sdk if current is self else current

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Stands in for as long as the context lasts, if there is no provider."""
        with self._lock:
            self._users += 1
            if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider):
                self._before = _swap_global(self)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and trace.get_tracer_provider() is self:
                    _swap_global(self._before)


def _swap_global(provider: Any) -> Any:
    before = trace._TRACER_PROVIDER  # noqa: SLF001 - set_tracer_provider() could not be taken back
    trace._TRACER_PROVIDER = provider  # noqa: SLF001
    return before


# The class of spans and the place of the provider belong to the whole process, and so do these.
_tap: Tap[ReadableSpan] = Tap(Wrap(Span, "end", _end))
_provider = _StandInProvider()


@contextmanager
def capture_spans() -> Iterator[CapturedSpans]:
    """Captures the spans that end in the process, in all threads, for as long as the context lasts."""
    spans = CapturedSpans()
    with _provider.standing_in(), _tap.into(spans):
        yield spans
