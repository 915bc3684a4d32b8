"""What a process takes with the collector down and its spool full: bounded, however much it logs."""

from __future__ import annotations

import gc
import io
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

from benchmarks.applications import Application, opentelemetry, ours
from benchmarks.harness import OwnProcess, Row, main
from jarvis_otel.runtime import RUNTIME

MIB = 1024 * 1024
SPOOL_MIB = 16
SDK_QUEUE = 2_048
FILLED = 40_000
"""Records that fill the spool twice over."""


@dataclass(frozen=True)
class Memory:
    """What a process takes.

    Attributes:
        anon, file, shmem: Resident memory in MiB: its own, of mapped files, and shared.
        disk: MiB of segments of the spool, those included that have no name any more and are still open.
        descriptors: Files and sockets that it has open.
        waiting: Records that wait for the collector.
    """

    anon: float
    file: float
    shmem: float
    disk: float
    descriptors: int
    waiting: int

    @property
    def rss(self) -> float:
        return self.anon + self.file + self.shmem

    def above(self, before: Memory) -> str:
        anon, file, shmem = self.anon - before.anon, self.file - before.file, self.shmem - before.shmem
        return f"anonymous {anon:+.1f}, mapped files {file:+.1f}, shared {shmem:+.1f}"

    @classmethod
    def now(cls) -> Memory:
        gc.collect()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        anon, file, shmem = (int(status[f"Rss{kind}"].split()[0]) / 1024 for kind in ("Anon", "File", "Shmem"))
        descriptors = list(Path("/proc/self/fd").iterdir())
        segments = [descriptor for descriptor in descriptors if ".seg" in _target(descriptor)]
        blocks = {}
        for path in (*segments, *Path(os.environ["JARVIS_HOME"]).rglob("*.seg")):
            found = path.stat()
            blocks[found.st_dev, found.st_ino] = found.st_blocks
        pipeline = RUNTIME.pipeline
        waiting = pipeline.counters().waiting if pipeline is not None else SDK_QUEUE
        return cls(anon, file, shmem, sum(blocks.values()) * 512 / MIB, len(descriptors), waiting)


def measure(quick: bool) -> list[Row]:
    many = FILLED * (2 if quick else 10)
    endpoint = f"http://127.0.0.1:{_free_port()}"
    os.environ["JARVIS_SPOOL_MAX_BYTES"] = f"{SPOOL_MIB}MiB"
    goes = (0, FILLED, many - FILLED)
    with OwnProcess(our_memory, endpoint) as our_side, OwnProcess(opentelemetry_memory, endpoint) as peer_side:
        ours_at = [our_side(records) for records in goes]
        peer_at = [peer_side(records) for records in goes]
    before, full, after = ours_at
    peer_before, _, peer_after = peer_at
    grown, peer_grown = after.rss - before.rss, peer_after.rss - peer_before.rss
    down = "the collector is down"
    return [
        _row(
            f"resident memory for the logs, {many:,} records",
            grown,
            peer_grown,
            "OTel LoggingHandler, batch processor, OTLP/HTTP exporter",
            how=f"{down}, a full spool of {SPOOL_MIB} MiB; above the same process before it logged; ours "
            f"{after.above(before)}, keeps {after.waiting:,} records; the peer {peer_after.above(peer_before)}, keeps "
            f"{peer_after.waiting:,}",
        ),
        _row(
            f"resident memory after {many:,} records",
            after.rss,
            full.rss,
            f"after {FILLED:,} records, which fill the spool",
            how=f"{down}; the whole process",
            target=1.05,
        ),
        _row(
            f"disk after {many:,} records",
            after.disk,
            SPOOL_MIB,
            "the bound of the spool",
            how=f"{down}; {before.descriptors} open descriptors before, {full.descriptors} with the spool full, "
            f"{after.descriptors} at the end",
            target=1.0,
        ),
    ]


def _row(what: str, ours: float, peer: float, peer_name: str, *, how: str, target: float | None = None) -> Row:
    ratio = ours / peer
    return Row(what, ours, peer, "MiB", peer_name, ratio, ratio, ratio, target, f"{how}; once")


def our_memory(endpoint: str) -> Callable[[int], Memory]:
    sys.stderr = io.StringIO()  # that there is no collector, it says for good reason
    return _logging(ours(endpoint))


def opentelemetry_memory(endpoint: str) -> Callable[[int], Memory]:
    return _logging(opentelemetry(OTLPLogExporter(f"{endpoint}/v1/logs")))


def _logging(application: Application) -> Callable[[int], Memory]:
    def side(records: int) -> Memory:
        application.run(records)
        time.sleep(1.5)  # what is done each second, is done
        return Memory.now()

    return side


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:  # that of the listing itself
        return ""


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


if __name__ == "__main__":
    main(measure)
