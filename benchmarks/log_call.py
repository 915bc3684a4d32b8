"""One log call, against structlog and OpenTelemetry's own handler; a disabled level; what the import costs.

Each side runs in a process of its own, set up as its users have it: our `configure()` sees the records of standard
logging, which would slow the peers down. All of them write the same: message, two keywords, level, time, service,
correlation id, user, trace and span id, source, and the two flags that were evaluated. They log in operations of ten
records, each with a span and a correlation id of its own: what a side remembers of an operation helps it only there.
"""

from __future__ import annotations

import contextvars
import logging
import os
import resource
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from benchmarks.harness import MICRO, OwnProcess, Row, Side, compare, main, per_call, started
from jarvis_otel import configure, get_flags, get_logger
from jarvis_otel.runtime import RUNTIME

FLAGS = """
version: "1.0"
flags:
  DEXTER_ENABLED: {enabled: true}
  LIVE_TRADING_ENABLED: {enabled: false}
"""
CALL = 'log.info("Trade executed", symbol="SOL", amount=100)'
STANDARD_CALL = 'log.info("Trade executed", extra={"symbol": "SOL", "amount": 100})'
QUEUE = 10_000
OPERATION = 10
"""So many records have a span and a correlation id in common."""

OURS_IMPORTED = "from jarvis_otel import configure, flags, get_logger"
PEER_IMPORTED = (
    "from opentelemetry.sdk.trace import TracerProvider; from opentelemetry.sdk._logs import LoggerProvider; "
    "from openfeature import api"
)

SHARED: dict[str, Any] = {
    "service": "trading",
    "user_id": "user42",
    "active_flags": ["DEXTER_ENABLED"],
    "flags": {"DEXTER_ENABLED": "on", "LIVE_TRADING_ENABLED": "off"},
}
"""What our records say by themselves, and the peers' are given."""

Event = MutableMapping[str, Any]

_context: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("context")


def measure(quick: bool) -> list[Row]:
    # a slice must fit into the queues: nothing is dropped on either side
    rounds, calls = (9, 1_000) if quick else (40, 1_000)
    with started("-m", "benchmarks.sink") as process:
        assert process.stdout is not None
        endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
        return [
            *_calls(rounds, calls, endpoint),
            _disabled(rounds, calls * 20, endpoint),
            _imports(5 if quick else 15),
        ]


def _calls(rounds: int, calls: int, endpoint: str) -> list[Row]:
    waits = "ours waits in memory until it is shipped"
    with ExitStack() as stack:

        def side(make: Callable[..., Side], *args: Any) -> Side:
            return stack.enter_context(OwnProcess(make, calls, *args))

        call = side(ours, endpoint, False)
        delivered = side(ours, endpoint, True)
        return [
            compare(
                "logger.info",
                call,
                side(structlog_to_file, True, False),
                rounds=rounds,
                peer_name="structlog 26.1 + orjson, same content",
                target=0.75,
                how=f"CPU of the calling thread; {waits}, the peer's is in the file",
            ),
            compare(
                "logger.info",
                call,
                side(structlog_to_file, False, False),
                rounds=rounds,
                peer_name="structlog 26.1 + orjson, contextvars, level and time",
                how=f"as above, but the peer writes no source, no trace ids and no service; {waits}",
            ),
            compare(
                "logger.info",
                call,
                side(opentelemetry_to_nothing),
                rounds=rounds,
                peer_name="OTel LoggingHandler, batch processor, no-op exporter",
                target=0.30,
                how=f"CPU of the calling thread; {waits}, the peer's until it is thrown away",
            ),
            compare(
                "logger.info, delivered",
                delivered,
                side(structlog_to_file, True, True),
                rounds=rounds,
                peer_name="structlog 26.1 + orjson, same content",
                how="CPU of the whole process; ours is acknowledged by a loopback OTLP sink, the peer's is in the file",
            ),
            compare(
                "logger.info, delivered",
                delivered,
                side(opentelemetry_to_sink, endpoint),
                rounds=rounds,
                peer_name="OTel LoggingHandler, batch processor, OTLP/HTTP exporter",
                target=0.20,
                how="CPU of the whole process, one thread logging; both acknowledged by a loopback OTLP sink",
            ),
        ]


def _disabled(rounds: int, calls: int, endpoint: str) -> Row:
    with OwnProcess(ours_disabled, calls, endpoint) as call, OwnProcess(standard_disabled, calls) as standard:
        return compare(
            "logger.debug, disabled",
            call,
            standard,
            rounds=rounds,
            peer_name="standard logging",
            target=1.2,
            how="CPU of the call; two keywords, the peer has them in `extra`",
        )


def _imports(rounds: int) -> Row:
    return compare(
        "import",
        lambda: _cpu_of_import(OURS_IMPORTED),
        lambda: _cpu_of_import(PEER_IMPORTED),
        rounds=rounds,
        peer_name="opentelemetry.sdk + openfeature",
        target=1.3,
        unit="ms",
        how=f"CPU of a whole Python process, bytecode cached: `{OURS_IMPORTED}` and `{PEER_IMPORTED}`",
    )


def _cpu_of_import(code: str) -> float:
    # pip compiles what it installs, but not a checkout: a cache of our own puts both sides on the same footing
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": f"{os.environ['JARVIS_HOME']}/pycache"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, env=environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1000


# --- the sides ---


def ours(calls: int, endpoint: str, delivered: bool) -> Side:
    _configure(endpoint)
    pipeline = RUNTIME.pipeline
    assert pipeline is not None
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

    return _side(CALL, log, calls, operation, flush, delivered=delivered)


def structlog_to_file(calls: int, whole: bool, delivered: bool) -> Side:
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

    return _side(CALL, structlog.get_logger(), calls, operation, flush, delivered=delivered)


def opentelemetry_to_nothing(calls: int) -> Side:
    return _opentelemetry(calls, _NoExporter(), delivered=False)


def opentelemetry_to_sink(calls: int, endpoint: str) -> Side:
    return _opentelemetry(calls, OTLPLogExporter(f"{endpoint}/v1/logs"), delivered=True)


def ours_disabled(calls: int, endpoint: str) -> Side:
    _configure(endpoint)
    return per_call(CALL.replace("info", "debug"), {"log": get_logger("trading")}, calls)


def standard_disabled(calls: int) -> Side:
    log = logging.getLogger("trading")
    log.setLevel(logging.INFO)
    return per_call(STANDARD_CALL.replace("info", "debug"), {"log": log}, calls)


def _opentelemetry(calls: int, exporter: LogRecordExporter, *, delivered: bool) -> Side:
    provider = LoggerProvider(Resource({"service.name": "trading"}))
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, max_queue_size=QUEUE))
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
        assert provider.force_flush(60_000)

    return _side(STANDARD_CALL, log, calls, operation, flush, delivered=delivered)


def _side(
    call: str,
    log: Any,
    calls: int,
    operation: Callable[[str], AbstractContextManager[Any]],
    flush: Callable[[], None],
    *,
    delivered: bool,
) -> Side:
    """A slice of operations and a flush.

    Args:
        call: The statement that logs to `log`.
        log: The logger.
        calls: How often a slice logs.
        operation: Opens an operation with this correlation id; that is not measured.
        flush: Brings what was logged where it is going.
        delivered: Whether to measure the CPU of the whole process, flush included, and not just that of the calls.
    """
    timer = timeit.Timer(call, "import gc; gc.enable()", time.thread_time, {"log": log})

    def side() -> float:
        process, thread, calling = time.process_time(), time.thread_time(), 0.0
        for number in range(calls // OPERATION):
            with operation(f"trade-{number}"):
                calling += timer.timeit(OPERATION)
        opening = time.thread_time() - thread - calling
        flush()
        return (time.process_time() - process - opening if delivered else calling) / calls * MICRO

    return side


def _configure(endpoint: str) -> None:
    os.environ |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_TRACES_EXPORTER": "none",
        "JARVIS_CONSOLE": "off",
    }
    path = Path(os.environ["JARVIS_HOME"], "config", "flags.yaml")
    path.write_text(FLAGS)
    configure("trading", flags=path)


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


if __name__ == "__main__":
    main(measure)
