"""The embedded collector as a process: OTLP in, day files out, and an answer only when the records are on the disk."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import resource
import signal
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from jarvis_collector.access import Access, load_tls, tls_context
from jarvis_collector.archivist import Archivist
from jarvis_collector.config import CollectorConfig, CollectorError, is_loopback
from jarvis_collector.forward import Forwarder
from jarvis_collector.http import HttpServer, Response
from jarvis_collector.metrics import CONTENT_TYPE, Metric, render
from jarvis_collector.otlp import Encoding, Signal
from jarvis_collector.otlp_http import OtlpHttp
from jarvis_collector.own_log import OwnLog
from jarvis_collector.receiver import Receiver, reason, why_no_address
from jarvis_collector.writer import Write, Writer, locked

if TYPE_CHECKING:
    from jarvis_collector.grpc_server import GrpcServer

__all__ = ["run"]

_FILES_MIN = 4096
"""So many files may be open: each connection is one, and many systems begin with 1024."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MEMORY_KEPT = 64 * 1024 * 1024

_FIXED = ("log_dir", "host", "port", "grpc_port")
"""What a running collector cannot change."""


def run(
    config: CollectorConfig,
    *,
    ready: Callable[[int], None] | None = None,
    reload: Callable[[], CollectorConfig] | None = None,
    log: OwnLog | None = None,
) -> None:
    """Runs a collector until SIGTERM or SIGINT, then answers what it has accepted and returns.

    The process is its own: these signals and SIGHUP stay with it, and whoever calls it ends when it returns.

    Args:
        config: Where it listens and writes.
        ready: Called with the true port of OTLP/HTTP once it listens.
        reload: Reads the configuration again, at SIGHUP; what it says may change while the collector runs does so. It
            raises CollectorError where there is something wrong with it, and then nothing changes.
        log: Where the collector tells how it is.

    Raises:
        CollectorError: It cannot start.
    """
    Access(config)  # refuses an open door before anything is touched
    # files and directories are no business of others, whatever else the process was started with
    os.umask(os.umask(0o027) | 0o027)
    # a request's records are many objects that die together: looking for cycles among them finds nothing
    gc.set_threshold(100_000, 20, 20)
    _keep_memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FILES_MIN:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES_MIN, hard), hard))
    with locked(config.log_dir):
        try:
            asyncio.run(_serve(config, ready, reload, log or OwnLog()))
        finally:
            # the interpreter gives the signals back before it ends, and a second SIGTERM would kill what has ended well
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)


def _keep_memory() -> None:
    """Has glibc keep memory for the next request: it would give it back after each, and get it anew page by page."""
    with suppress(OSError, AttributeError):  # another C library goes its own way
        libc = ctypes.CDLL(None)
        for parameter, size in ((_M_MMAP_THRESHOLD, _MEMORY_KEPT // 2), (_M_TRIM_THRESHOLD, _MEMORY_KEPT)):
            libc.mallopt(parameter, size)


async def _serve(
    config: CollectorConfig,
    ready: Callable[[int], None] | None,
    reload: Callable[[], CollectorConfig] | None,
    log: OwnLog,
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    collector = Collector(config, log, loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        _on_signal(number, loop, stop.set)
    reloads: set[asyncio.Task[None]] = set()

    def hang_up() -> None:
        if reload is not None and not reloads:
            task = loop.create_task(collector.reload(reload))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

    _on_signal(signal.SIGHUP, loop, hang_up)
    try:
        port = await collector.start()
        if ready is not None:
            ready(port)
        watch = loop.create_task(collector.watch())
        await stop.wait()
        watch.cancel()
        for task in reloads:
            await task
    finally:
        await collector.stop()


def _on_signal(number: signal.Signals, loop: asyncio.AbstractEventLoop, do: Callable[[], None]) -> None:
    # the loop's own handlers go when it is closed: a second SIGTERM would then kill a process that is about to end well
    def handle(*_: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(do)

    signal.signal(number, handle)


class Collector:
    """What a collector is made of.

    Args:
        config: Where it listens and writes.
        log: Where it tells how it is.
        loop: The event loop that it runs in.
    """

    def __init__(self, config: CollectorConfig, log: OwnLog, loop: asyncio.AbstractEventLoop) -> None:
        self._config = config
        self._log = log
        self._loop = loop
        self._started = time.time()
        self._access = Access(config)
        self._tls: ssl.SSLContext | None = tls_context(config)
        self._writer = Writer(
            config.log_dir,
            lambda writes: loop.call_soon_threadsafe(self._settle, writes),
            components=config.components,
        )
        self._receiver = Receiver(config, self._writer)
        pages = {"/healthz": self._health, "/metrics": self._metrics}
        self._application = OtlpHttp(self._receiver, self._access, pages, frozenset({"/healthz"}))
        self._http = HttpServer(self._application, config, self._receiver, self._tls)
        self._grpc: GrpcServer | None = None
        self._grpc_state = "off"
        self._archivist: Archivist | None = None
        self._forwarder: Forwarder | None = None
        self._runs = False
        self._was: str | None = None

    async def start(self) -> int:
        """Begins to write, to listen, and to look after the files.

        Returns:
            The port of OTLP/HTTP.

        Raises:
            CollectorError: It cannot.
        """
        config = self._config
        self._writer.start()
        try:
            port = await self._http.start()
        except OSError as error:
            why = why_no_address(error, "--port")
            raise CollectorError(f"cannot listen on {config.host}:{config.port}: {why}") from None
        grpc_port = await self._start_grpc()
        await self._loop.run_in_executor(None, self._look_after_files, None, config)
        self._runs = True
        host = f"[{config.host}]" if ":" in config.host else config.host
        where = f"http{'s' if self._tls else ''}://{host}:{port}"
        grpc = f" and for gRPC on {host}:{grpc_port}" if grpc_port is not None else ""
        self._log.info(
            f"listening on {where}{grpc}, writing to {config.log_dir}/",
            port=port,
            grpc_port=grpc_port,
            directory=str(config.log_dir),
        )
        if not is_loopback(config.host):
            if not config.tokens:
                self._log.warning(f"whoever reaches {config.host} may send records and read /metrics: insecure_no_auth")
            elif self._tls is None:
                self._log.warning("tokens and records cross the network unencrypted; set collector_tls_cert, _key")
        return port

    async def _start_grpc(self) -> int | None:
        config = self._config
        if config.grpc_port is None:
            return None
        # its C core tells stderr in a form of its own what is told here
        os.putenv("GRPC_VERBOSITY", "NONE")
        try:
            try:
                from jarvis_collector.grpc_server import GrpcServer  # noqa: PLC0415
            except ModuleNotFoundError as error:
                if error.name != "grpc":
                    raise
                raise CollectorError("grpcio is missing: pip install 'jarvis-otel[collector]'") from None
            server = GrpcServer(self._receiver, self._access, config)
            port = await server.start()
        except CollectorError as error:
            if config.grpc_required:
                raise
            self._grpc_state = f"off: {error}"
            self._log.warning(f"gRPC is off: {error}; --grpc-port off says that none is wanted")
            return None
        self._grpc = server
        self._grpc_state = "on"
        return port

    def _look_after_files(self, old: CollectorConfig | None, new: CollectorConfig) -> None:
        """Begins, changes and ends what forwards the files and what archives them.

        Raises:
            CollectorError: The forwarding cannot begin.
        """
        if old is None or new.loki != old.loki:
            if self._forwarder is not None:
                self._forwarder.stop()
                self._forwarder = None
            if new.loki is not None:
                forwarder = Forwarder(new.loki, new.log_dir, self._log)
                forwarder.start()
                self._forwarder = forwarder
        if new.retention is None:
            return
        if self._archivist is None:
            self._archivist = Archivist(
                new.log_dir, new.retention, self._log, is_forwarded=self._is_forwarded, index=new.index
            )
            self._archivist.start()
            return
        self._archivist.index = new.index
        if self._archivist.retention != new.retention:
            self._archivist.retention = new.retention

    def _is_forwarded(self, path: Path) -> bool:
        if self._config.loki is None:
            return True
        return self._forwarder is not None and self._forwarder.is_forwarded(path)

    def _settle(self, writes: Sequence[Write]) -> None:
        self._receiver.settle(writes)
        if self._forwarder is not None:
            self._forwarder.wake()

    async def stop(self) -> None:
        """Takes no more, answers what was taken, and ends the threads."""
        await asyncio.gather(self._http.drain(), *([self._grpc.stop()] if self._grpc else []))
        await self._loop.run_in_executor(None, self._writer.stop)
        for thread in (self._forwarder, self._archivist):
            if thread is not None:
                await self._loop.run_in_executor(None, thread.stop)
        if not self._runs:
            return
        receiver = self._receiver
        self._log.info(
            f"stopped: {receiver.written.total()} records written, {receiver.refused.total()} refused, "
            f"{receiver.failed.total()} could not be written",
            written=dict(receiver.written),
            refused=dict(receiver.refused),
            failed=dict(receiver.failed),
        )

    async def watch(self) -> None:
        """Tells when something begins to be wrong, and when it is right again."""
        while True:
            await asyncio.sleep(1)
            now = self._problem()
            if now is not None and now != self._was:
                self._log.error(f"degraded: {now}")
            elif now is None and self._was is not None:
                self._log.info("healed: all is well again")
            self._was = now

    async def reload(self, read: Callable[[], CollectorConfig]) -> None:
        """Has hold what the settings say now, as far as it may change while the collector runs.

        Args:
            read: Reads the configuration; raises CollectorError where there is something wrong with it.
        """
        old = self._config
        try:
            wanted = await self._loop.run_in_executor(None, read)
            later = [name for name in _FIXED if getattr(wanted, name) != getattr(old, name)]
            if (wanted.tls_cert is None) != (self._tls is None):
                later += ["tls_cert", "tls_key"]
            new = replace(wanted, **{name: getattr(old, name) for name in later})
            access = Access(new)
            if self._tls is not None:
                load_tls(self._tls, new)
        except CollectorError as error:
            self._log.error(f"settings not reloaded, the old ones hold: {error}")
            return
        news = [field.name for field in fields(new) if getattr(new, field.name) != getattr(old, field.name)]
        try:
            await self._loop.run_in_executor(None, self._look_after_files, old, new)
        except CollectorError as error:
            self._log.error(f"records are not forwarded: {error}")
        self._config = self._receiver.config = self._http.config = new
        self._application.access = self._access = access
        self._writer.components.wanted = new.components
        if self._grpc is not None:
            self._grpc.access = access
        parts = [f"{', '.join(news)} changed" if news else "nothing changed"]
        parts += [f"{', '.join(later)} will at the next start"] if later else []
        self._log.info(f"settings reloaded: {'; '.join(parts)}", changed=news, at_next_start=later)

    def _problem(self) -> str | None:
        """What keeps the collector from doing all that it should."""
        writer, components, archivist = self._writer.problem, self._writer.components.problem, self._archivist
        problems = [
            f"cannot write: {reason(writer)}" if writer is not None else None,
            f"component files: {reason(components)}" if components is not None else None,
            f"retention: {archivist.problem}" if archivist is not None and archivist.problem else None,
            self._forward_problem(),
        ]
        return "; ".join(filter(None, problems)) or None

    def _forward_problem(self) -> str | None:
        if self._config.loki is None:
            return None
        if self._forwarder is None:
            return "records are not forwarded"
        return self._forwarder.status().problem

    def _health(self, known: bool) -> Response:
        problem = self._problem()
        status: dict[str, object] = {"status": "ok" if problem is None else "degraded"}
        if known:
            if problem is not None:
                status["reason"] = problem
            status |= {
                "grpc": self._grpc_state,
                "records_written": self._receiver.written.total(),
                "held_bytes": self._receiver.held,
                "uptime_seconds": round(time.time() - self._started, 1),
                "version": self._config.version,
            }
        # what only delays Loki or archives is no reason to take a collector out of service that keeps what it is sent
        return Response(200 if self._writer.problem is None else 503, orjson.dumps(status), Encoding.JSON)

    def _metrics(self, _: bool) -> Response:
        return Response(200, render(self.measured()), CONTENT_TYPE)

    def measured(self) -> list[Metric]:
        """All metrics as they stand; those of gRPC, retention and forwarding only where it does that."""
        writer, receiver, http = self._writer, self._receiver, self._application.answers
        by_signal = {
            "records_accepted_total": ("Records handed to the writer.", receiver.accepted),
            "records_written_total": ("Records written and synced.", receiver.written),
            "records_failed_total": (
                "Records that could not be written; the client was told to send again.",
                receiver.failed,
            ),
            "records_refused_total": ("Records that cannot be kept; the client was told so.", receiver.refused),
            "received_bytes_total": ("Bytes of request bodies as they were sent.", receiver.bytes_in),
        }
        metrics = [
            Metric(name, "counter", text, {str(key): counts[key] for key in Signal}, "signal")
            for name, (text, counts) in by_signal.items()
        ]
        codes = {str(code): http[code] for code in sorted(http)}
        metrics += [
            Metric("requests_total", "counter", "HTTP requests answered.", codes, "code"),
            Metric("written_bytes_total", "counter", "Bytes written to day files.", {"": writer.bytes_written}),
            Metric("commits_total", "counter", "Groups of lines written and synced to a file.", {"": writer.commits}),
            Metric("commit_failures_total", "counter", "Groups that could not be written.", {"": writer.failures}),
            Metric("sync_seconds_total", "counter", "Time that fsync took, of all commits.", {"": writer.sync_seconds}),
            Metric(
                "sync_seconds_max", "gauge", "Time that the longest fsync took so far.", {"": writer.sync_seconds_max}
            ),
            Metric(
                "component_lines_missed_total",
                "counter",
                "Lines missing in files of services.",
                {"": writer.components.missed},
            ),
            Metric("held_bytes", "gauge", "Bytes of bodies and lines in memory.", {"": receiver.held}),
            Metric("connections", "gauge", "Open HTTP connections.", {"": len(self._http.connections)}),
            Metric(
                "degraded",
                "gauge",
                "1 where something is wrong; /healthz says what.",
                {"": int(self._problem() is not None)},
            ),
            Metric("start_time_seconds", "gauge", "When the collector started, since 1970.", {"": self._started}),
            Metric("uptime_seconds", "gauge", "How long it has been running.", {"": time.time() - self._started}),
            Metric("build_info", "gauge", "Always 1; the label has the version.", {self._config.version: 1}, "version"),
        ]
        if self._grpc is not None:
            calls = self._grpc.answers
            metrics.append(
                Metric(
                    "grpc_requests_total",
                    "counter",
                    "gRPC calls answered.",
                    {key: calls[key] for key in sorted(calls)},
                    "code",
                )
            )
        if (archivist := self._archivist) is not None:
            metrics += [
                Metric("archived_files_total", "counter", "Day files compressed.", {"": archivist.archived_files}),
                Metric("purged_files_total", "counter", "Files deleted.", {"": archivist.purged_files}),
                Metric(
                    "purged_unforwarded_files_total",
                    "counter",
                    "Files deleted that were not forwarded before.",
                    {"": archivist.purged_unforwarded},
                ),
                Metric("directory_bytes", "gauge", "Size of all files at the last look.", {"": archivist.total_bytes}),
            ]
        if (forwarder := self._forwarder) is not None:
            status = forwarder.status()
            metrics += [
                Metric("forwarded_records_total", "counter", "Records that Loki has taken.", {"": status.pushed}),
                Metric(
                    "forward_refused_records_total", "counter", "Records that Loki refused.", status.refused, "reason"
                ),
                Metric(
                    "forward_passed_over_lines_total",
                    "counter",
                    "Lines without a whole record.",
                    {"": status.passed_over},
                ),
                Metric("forward_cut_records_total", "counter", "Records shortened for Loki.", {"": status.cut}),
                Metric("forward_pushes_total", "counter", "Requests that Loki answered.", {"": status.pushes}),
                Metric("forward_retries_total", "counter", "Requests that had to be repeated.", {"": status.retries}),
                Metric(
                    "forward_lag_bytes",
                    "gauge",
                    "Bytes of the files that are not forwarded yet.",
                    {"": status.lag_bytes},
                ),
                Metric("forward_lag_seconds", "gauge", "Age of the oldest line that waits.", {"": status.lag_seconds}),
            ]
        return metrics
