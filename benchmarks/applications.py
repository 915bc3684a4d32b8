"""Applications that log: ours and its peers, each set up as its users have it, and all of them writing the same.

That is: message, two keywords, level, time, service, correlation id, user, trace and span id, source, and the two flags
that were evaluated; redaction is on, as it is by default. They log in operations, each with a span and a correlation id
of its own: what a side remembers of an operation helps it only there. Ours changes the process it runs in, as
`configure()` sees the records of standard logging; so each runs in a process of its own.
"""

from __future__ import annotations

import contextvars
import logging
import os
import time
import timeit
import urllib.request
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import structlog
from opentelemetry import trace
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from benchmarks.harness import started
from jarvis_otel import configure, get_flags, get_logger
from jarvis_otel.pipeline import Pipeline
from jarvis_otel.runtime import RUNTIME

OPERATION = 10
"""So many records have a span and a correlation id in common, where nothing else is said."""

CALL = 'log.info("Trade executed", symbol="SOL", amount=100)'
STANDARD_CALL = 'log.info("Trade executed", extra={"symbol": "SOL", "amount": 100})'
PLAIN_CALL = 'log.info("Trade executed %s", "SOL")'

FLAGS = """
version: "1.0"
flags:
  DEXTER_ENABLED: {enabled: true}
  LIVE_TRADING_ENABLED: {enabled: false}
"""
SHARED: dict[str, Any] = {
    "service": "trading",
    "user_id": "user42",
    "active_flags": ["DEXTER_ENABLED"],
    "flags": {"DEXTER_ENABLED": "on", "LIVE_TRADING_ENABLED": "off"},
}
"""What our records say by themselves, and the peers' are given."""

Event = MutableMapping[str, Any]
Operations = Callable[[str], AbstractContextManager[Any]]

_context: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("context")


@dataclass(frozen=True)
class Application:
    """A process that logs.

    Attributes:
        log: Its logger.
        call: The statement that logs to `log`.
        operation: Opens an operation with this correlation id.
        flush: Brings what was logged where it is going.
    """

    log: Any
    call: str
    operation: Operations
    flush: Callable[[], None]

    def run(self, records: int, per_operation: int = OPERATION) -> tuple[float, float]:
        """Logs, and returns the calling thread's seconds of CPU: in the calls, and in the operations around them.

        Args:
            records: So many.
            per_operation: So many of them in each operation.
        """
        timer = timeit.Timer(self.call, "import gc; gc.enable()", time.thread_time, {"log": self.log})
        began, calling = time.thread_time(), 0.0
        for number in range(records // per_operation):
            with self.operation(f"trade-{number}"):
                calling += timer.timeit(per_operation)
        return calling, time.thread_time() - began - calling


@contextmanager
def sink() -> Iterator[str]:
    """The endpoint of an OTLP sink in a process of its own."""
    with started("-m", "benchmarks.sink") as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"


def received(endpoint: str) -> int:
    """How many records have come to a sink."""
    with urllib.request.urlopen(endpoint, timeout=60) as answer:
        return int(answer.read())


def configured(endpoint: str) -> Pipeline:
    """Configures this process as ours, and returns the pipeline of its records.

    Args:
        endpoint: Where they go.
    """
    os.environ |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_TRACES_EXPORTER": "none",
        "JARVIS_CONSOLE": "off",
    }
    path = Path(os.environ["JARVIS_HOME"], "config", "flags.yaml")
    if not path.exists():  # others may be watching it
        mine = path.with_suffix(f".{os.getpid()}")
        mine.write_text(FLAGS)
        mine.replace(path)
    configure("trading", flags=path)
    assert RUNTIME.pipeline is not None
    return RUNTIME.pipeline


def ours(endpoint: str, *, standard: bool = False) -> Application:
    """Our logger, or standard logging seen by us.

    Args:
        endpoint: Where the records go.
        standard: Whether to log by standard logging.
    """
    pipeline = configured(endpoint)
    log = get_logger("trading")

    def flush() -> None:
        assert pipeline.flush(60)
        assert not pipeline.counters().dropped, pipeline.counters()

    @contextmanager
    def operation(correlation_id: str) -> Iterator[None]:
        span = trace.get_tracer("benchmarks").start_as_current_span("trade")
        with span, log.context(correlation_id=correlation_id, user_id="user42"):
            assert get_flags().is_enabled("DEXTER_ENABLED")
            assert not get_flags().is_enabled("LIVE_TRADING_ENABLED")
            yield

    if standard:
        application = Application(logging.getLogger("trading.orders"), PLAIN_CALL, operation, flush)
    else:
        application = Application(log, CALL, operation, flush)
    _write_it_all(application)
    return application


def _write_it_all(application: Application) -> None:
    """Nothing is measured before a record is on the disk with all that it should say, and no more."""
    get_logger("trading").info("Checked", password="correct horse battery")
    application.run(OPERATION)
    assert RUNTIME.settings is not None
    written = b"".join(file.read_bytes() for file in RUNTIME.settings.spool_dir.glob(f"{os.getpid()}-*/*.seg"))
    assert b"correct horse" not in written, "redaction is off"
    for part in (
        b"Trade executed",
        b'"code.line.number"',
        b'"trade-0"',
        b'"user42"',
        b'"traceId"',
        b'"jarvis.flag.LIVE_TRADING_ENABLED","value":{"stringValue":"off"}',
    ):
        assert part in written, f"{part.decode()} is not in the spool"


def structlog_to_file(*, whole: bool) -> Application:
    """structlog, which writes JSON to a file in the call.

    Args:
        whole: Whether it writes what we do; else the level, the time and its context variables, two ids.
    """
    path = Path(os.environ["JARVIS_HOME"], f"structlog-{os.getpid()}.jsonl")
    content: list[Any] = [
        _add_span_ids,
        structlog.processors.CallsiteParameterAdder(
            [
                structlog.processors.CallsiteParameter.PATHNAME,
                structlog.processors.CallsiteParameter.LINENO,
                structlog.processors.CallsiteParameter.FUNC_NAME,
            ]
        ),
    ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            *(content if whole else []),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(path.open("ab")),
        cache_logger_on_first_use=True,
    )
    tracer = TracerProvider().get_tracer("benchmarks")
    shared = SHARED if whole else {"user_id": "user42"}

    @contextmanager
    def operation(correlation_id: str) -> Iterator[None]:
        bound = structlog.contextvars.bound_contextvars(correlation_id=correlation_id, **shared)
        with tracer.start_as_current_span("trade"), bound:
            yield

    def flush() -> None:
        """Each call writes; the file is kept small."""
        os.truncate(path, 0)

    return Application(structlog.get_logger(), CALL, operation, flush)


def opentelemetry(
    exporter: LogRecordExporter | None = None, *, queue: int | None = None, plain: bool = False
) -> Application:
    """Standard logging with OpenTelemetry's handler and its batch processor.

    Args:
        exporter: Takes the batches; None for one that throws them away.
        queue: Records that may wait; None for the SDK's default.
        plain: Whether to log just a message with an argument, and no keywords.
    """
    # what the SDK itself says of a full queue is not for the terminal
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    provider = LoggerProvider(Resource({"service.name": "trading"}), shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter or _NoExporter(), max_queue_size=queue))
    handler = LoggingHandler(logger_provider=provider, log_code_attributes=True)
    handler.addFilter(_add_context)
    log = logging.getLogger("trading")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    tracer = TracerProvider().get_tracer("benchmarks")
    flags = {f"jarvis.flag.{flag}": variant for flag, variant in SHARED["flags"].items()}
    shared = {"user.id": "user42", "jarvis.active_flags": ("DEXTER_ENABLED",), **flags}

    @contextmanager
    def operation(correlation_id: str) -> Iterator[None]:
        with tracer.start_as_current_span("trade"):
            token = _context.set({"jarvis.correlation_id": correlation_id, **shared})
            yield
            _context.reset(token)

    def flush() -> None:
        assert provider.force_flush(600_000)

    return Application(log, PLAIN_CALL if plain else STANDARD_CALL, operation, flush)


def _add_span_ids(logger: Any, method: str, event: Event) -> Event:  # noqa: ARG001
    span = trace.get_current_span().get_span_context()
    event["trace_id"] = trace.format_trace_id(span.trace_id)
    event["span_id"] = trace.format_span_id(span.span_id)
    return event


def _add_context(record: logging.LogRecord) -> bool:
    vars(record).update(_context.get())
    return True


class _NoExporter(LogRecordExporter):
    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:  # noqa: ARG002
        return LogRecordExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002
        return True

    def shutdown(self) -> None:
        """It has nothing."""
