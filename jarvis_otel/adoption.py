"""OpenTelemetry's log processors and handlers beside ours: all get every record, and no collector gets one twice."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit

from opentelemetry._logs import get_logger_provider

from jarvis_collector.record import LogEntry
from jarvis_otel.runtime import RUNTIME

__all__ = ["OurProcessor", "adopt_handler", "adopt_provider", "handlers_of", "has_others", "is_otel_handler"]

# What an HTTP client sends of itself says nothing of the sender.
_HTTP_HEADERS = frozenset({"content-encoding", "content-type", "user-agent"})


class OurProcessor(Protocol):
    """The processor that brings records to a pipeline, which is what others know it by."""

    jarvis_pipeline: Any


def adopt_provider(provider: Any, processor: OurProcessor) -> None:
    """Has our processor see each record before the application's own, and be the only way to its collector.

    Before them, for a batch processor copies the record, and what is added later is not in the copy. The only way,
    for others may have made an exporter to the same collector, where all would arrive twice.

    Args:
        provider: A logger provider; one that has our processor already keeps one.
        processor: Ours.
    """
    processors = _processors_of(provider)
    if processors is None:
        # not the SDK's as we know it: at the end, then, if it takes any
        if hasattr(provider, "add_log_record_processor"):
            provider.add_log_record_processor(processor)
        return
    others = [other for other in processors if not _is_ours(other, processor)]
    repeats = [other for other in others if _goes_our_way(other)]
    kept = [other for other in others if other not in repeats]
    provider._multi_log_record_processor._log_record_processors = (processor, *kept)  # noqa: SLF001
    for repeat in repeats:
        repeat.shutdown()


def adopt_handler(handler: logging.Handler, processor: OurProcessor | None) -> bool:
    """Whether a handler brings records of standard logging to where we bring ours.

    It is then kept from what must not come that way: our own records, which are there already, and those of
    `opentelemetry.*` loggers, which with the collector down would feed themselves. And it takes no console away:
    where it is the only handler, `logging.lastResort` prints warnings as it would without it.

    Args:
        handler: Any handler of standard logging.
        processor: Ours; None where we ship nothing, and only the application's own exporters get records.
    """
    if not is_otel_handler(handler):
        return False
    provider = getattr(handler, "_logger_provider", None)
    if type(provider).__name__ == "ProxyLoggerProvider":  # made before there was a provider: it is the global one
        provider = get_logger_provider()
    if not _comes_together(provider, processor):
        return False
    if not any(isinstance(known, _Adopted) for known in handler.filters):
        handler.addFilter(_Adopted(handler))
    return True


def _comes_together(provider: Any, processor: OurProcessor | None) -> bool:
    """Whether what a provider gets is what we bring, or is on its way to our collector."""
    if processor is None:
        return provider is get_logger_provider()
    processors = _processors_of(provider) or ()
    if any(_is_ours(other, processor) for other in processors):
        return True
    if any(map(_goes_our_way, processors)):
        adopt_provider(provider, processor)
        return True
    return False  # the application's own way to somewhere else


def has_others(provider: Any) -> bool:
    """Whether anybody but us may see the records of a logger provider.

    Args:
        provider: A logger provider.
    """
    # asked for each record: the parts of it are written out
    try:
        processors = provider._multi_log_record_processor._log_record_processors  # noqa: SLF001
    except AttributeError:
        # not the SDK's as we know it: if it takes processors at all it may have some; the API's stand-in takes none
        return hasattr(provider, "add_log_record_processor")
    # the SDK makes another tuple when one is added
    if processors is not RUNTIME.own_processors:
        if not all(hasattr(processor, "jarvis_pipeline") for processor in processors):
            return True
        RUNTIME.own_processors = processors
    return False


def is_otel_handler(handler: logging.Handler) -> bool:
    """Whether it is OpenTelemetry's LoggingHandler, the SDK's or the instrumentation's, which prints nothing.

    Args:
        handler: Any handler of standard logging.
    """
    return _is_otel_kind(type(handler))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def _is_otel_kind(kind: type[logging.Handler]) -> bool:
    return any(
        base.__name__ == "LoggingHandler" and base.__module__.startswith("opentelemetry.") for base in kind.mro()
    )


class _Adopted(logging.Filter):
    """What an adopted handler lets through."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = weakref.ref(handler)

    def filter(self, record: logging.LogRecord) -> bool:
        last = logging.lastResort
        if last is not None and record.levelno >= last.level:
            handlers = list(handlers_of(record.name))
            if handlers and handlers[0] is self._handler() and all(map(is_otel_handler, handlers)):
                last.handle(record)
        return not isinstance(record.msg, LogEntry) and record.name.partition(".")[0] != "opentelemetry"


def handlers_of(name: str) -> Iterator[logging.Handler]:
    """The handlers of standard logging that get the records of a logger.

    Args:
        name: The logger's name.
    """
    logger: Any = logging.root if name == logging.root.name else logging.root.manager.loggerDict.get(name)
    while isinstance(logger, logging.Logger):
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _processors_of(provider: Any) -> tuple[Any, ...] | None:
    """The processors of the SDK's provider; None where it is none, or not as we know it."""
    processors = getattr(getattr(provider, "_multi_log_record_processor", None), "_log_record_processors", None)
    return processors if isinstance(processors, tuple) else None


def _is_ours(other: Any, processor: OurProcessor) -> bool:
    return getattr(other, "jarvis_pipeline", None) is processor.jarvis_pipeline


def _goes_our_way(processor: Any) -> bool:
    """Whether a processor exports over OTLP, by HTTP or gRPC, to where our pipeline does, and as the same sender."""
    exporter = getattr(getattr(processor, "_batch_processor", processor), "_exporter", None)
    there = getattr(exporter, "_endpoint", None)
    if not type(exporter).__module__.startswith("opentelemetry.exporter.otlp.") or not isinstance(there, str):
        return False
    try:
        headers = dict(getattr(getattr(exporter, "_client", exporter), "_headers", None) or {})
        sender = {str(name).lower(): value for name, value in headers.items() if name.lower() not in _HTTP_HEADERS}
        target = RUNTIME.settings.otlp_logs if RUNTIME.settings is not None else None
        return target is not None and _place(there) == _place(target.url) and sender == dict(target.headers)
    except (AttributeError, TypeError, ValueError):  # of another version: then both ship
        return False


def _place(url: str) -> tuple[str, int | None, str]:
    """Host, port and path; the two ports on which a collector takes OTLP count as one, and gRPC has no path."""
    parts = urlsplit(url if "://" in url else f"//{url}")
    host = parts.hostname or ""
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return (
        "localhost" if host in ("127.0.0.1", "::1") else host,
        4318 if port == 4317 else port,
        parts.path.rstrip("/").removesuffix("/v1/logs"),
    )
