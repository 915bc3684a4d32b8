"""One log call, against structlog and OpenTelemetry's own handler; a disabled level; what the import costs."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

from benchmarks.applications import (
    CALL,
    OPERATION,
    STANDARD_CALL,
    Application,
    configured,
    opentelemetry,
    ours,
    sink,
    structlog_to_file,
)
from benchmarks.harness import MICRO, OwnProcess, Row, Side, compare, main, per_call
from jarvis_otel import get_logger

QUEUE = 10_000

OURS_IMPORTED = "from jarvis_otel import configure, flags, get_logger"
PEER_IMPORTED = (
    "from opentelemetry.sdk.trace import TracerProvider; from opentelemetry.sdk._logs import LoggerProvider; "
    "from openfeature import api"
)


def measure(quick: bool) -> list[Row]:
    # a slice must fit into the peers' queues: nothing is dropped on either side
    rounds, calls = (9, 1_000) if quick else (40, 1_000)
    with sink() as endpoint:
        return [
            *_calls(rounds, calls, endpoint),
            *_standard(rounds, calls, endpoint),
            _disabled(rounds, calls * 20, endpoint),
            _imports(5 if quick else 15),
        ]


def _calls(rounds: int, calls: int, endpoint: str) -> list[Row]:
    safe = "ours is in the spool, a mapped file, when the call returns"
    with ExitStack() as stack:

        def side(make: Callable[..., Side], *args: object) -> Side:
            return stack.enter_context(OwnProcess(make, calls, *args))

        call, delivered = side(our_calls, endpoint), side(our_delivery, endpoint)
        bare = side(structlog_calls, False)
        return [
            compare(
                "logger.info",
                call,
                bare,
                rounds=rounds,
                peer_name="structlog 26.1 + orjson, contextvars, level and time",
                target=0.75,
                how=f"CPU of the calling thread; {safe}, and has source, ids and flags, redacted; the peer's is in the "
                f"file and has none of these; operations of {OPERATION} records",
            ),
            compare(
                "logger.info, operations of 1,000 records",
                side(our_calls, endpoint, 1_000),
                side(structlog_calls, False, 1_000),
                rounds=rounds,
                peer_name="structlog 26.1 + orjson, contextvars, level and time",
                how="as above",
            ),
            compare(
                "logger.info",
                call,
                side(structlog_calls, True),
                rounds=rounds,
                peer_name="structlog 26.1 + orjson, same content",
                how=f"CPU of the calling thread; {safe}, the peer's is in the file",
            ),
            compare(
                "logger.info",
                call,
                side(opentelemetry_calls),
                rounds=rounds,
                peer_name="OTel LoggingHandler, batch processor, no-op exporter",
                target=0.30,
                how=f"CPU of the calling thread; {safe}, the peer's waits in memory until it is thrown away",
            ),
            compare(
                "logger.info, delivered",
                delivered,
                side(structlog_delivery),
                rounds=rounds,
                peer_name="structlog 26.1 + orjson, same content",
                how="CPU of the whole process; ours is acknowledged by a loopback OTLP sink, the peer's is in the file",
            ),
            compare(
                "logger.info, delivered",
                delivered,
                side(opentelemetry_delivery, endpoint),
                rounds=rounds,
                peer_name="OTel LoggingHandler, batch processor, OTLP/HTTP exporter",
                target=0.20,
                how="CPU of the whole process, one thread logging; both acknowledged by a loopback OTLP sink",
            ),
        ]


def _standard(rounds: int, calls: int, endpoint: str) -> list[Row]:
    with OwnProcess(our_standard_calls, calls, endpoint) as call, OwnProcess(opentelemetry_calls, calls, True) as peer:
        row = compare(
            "logging's info, one argument",
            call,
            peer,
            rounds=rounds,
            peer_name="OTel LoggingHandler, batch processor, no-op exporter",
            how="CPU of the calling thread; ours is seen by our filter and in the spool when the call returns, the "
            "peer's waits in memory until it is thrown away",
        )
    return [row]


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


def our_calls(calls: int, endpoint: str, per_operation: int = OPERATION) -> Side:
    return _calling(ours(endpoint), calls, per_operation)


def our_standard_calls(calls: int, endpoint: str) -> Side:
    return _calling(ours(endpoint, standard=True), calls)


def our_delivery(calls: int, endpoint: str) -> Side:
    return _delivering(ours(endpoint), calls)


def structlog_calls(calls: int, whole: bool, per_operation: int = OPERATION) -> Side:
    return _calling(structlog_to_file(whole=whole), calls, per_operation)


def structlog_delivery(calls: int) -> Side:
    return _delivering(structlog_to_file(whole=True), calls)


def opentelemetry_calls(calls: int, plain: bool = False) -> Side:
    return _calling(opentelemetry(queue=QUEUE, plain=plain), calls)


def opentelemetry_delivery(calls: int, endpoint: str) -> Side:
    return _delivering(opentelemetry(OTLPLogExporter(f"{endpoint}/v1/logs"), queue=QUEUE), calls)


def ours_disabled(calls: int, endpoint: str) -> Side:
    configured(endpoint)
    return per_call(CALL.replace("info", "debug"), {"log": get_logger("trading")}, calls)


def standard_disabled(calls: int) -> Side:
    log = logging.getLogger("trading")
    log.setLevel(logging.INFO)
    return per_call(STANDARD_CALL.replace("info", "debug"), {"log": log}, calls)


def _calling(application: Application, calls: int, per_operation: int = OPERATION) -> Side:
    """CPU of the calling thread in the calls."""

    def side() -> float:
        calling, _ = application.run(calls, per_operation)
        application.flush()
        return calling / calls * MICRO

    return side


def _delivering(application: Application, calls: int) -> Side:
    """CPU of the whole process until what was logged is where it is going; without that of the operations."""

    def side() -> float:
        before = time.process_time()
        _, around = application.run(calls)
        application.flush()
        return (time.process_time() - before - around) / calls * MICRO

    return side


if __name__ == "__main__":
    main(measure)
