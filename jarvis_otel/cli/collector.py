"""`jarvis collector`: the local collector, until it is told to stop."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from jarvis_collector.config import CollectorConfig, CollectorError, is_loopback
from jarvis_otel.otlp_settings import DEFAULT_ENDPOINT
from jarvis_otel.pipeline import Pipeline
from jarvis_otel.settings import Settings

__all__ = ["add_parser"]

_EPILOG = """\
example:
  jarvis collector --dir logs --port 4318

It takes OTLP over HTTP (/v1/logs, /v1/traces, /v1/metrics; protobuf and JSON) and writes JSON lines to
jarvis-YYYY-MM-DD.jsonl, traces-... and metrics-...; a request is answered with 200 when its records are on the disk.
GET /healthz and /metrics tell how it is. SIGTERM and Ctrl-C end it, with nothing lost that was accepted.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "collector",
        help="receive logs and traces over OTLP, write JSON lines",
        description="Receives logs and traces over OTLP and writes them as JSON lines, one file a day.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where to write (default: JARVIS_LOG_DIR, logs)")
    parser.add_argument("--host", help="loopback address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=_port, help="TCP port, 0 takes a free one (default: 4318)")
    parser.add_argument("--port-file", type=Path, metavar="FILE", help="write the port there once it listens")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the collector; 0 when it was told to stop, 2 when it could not start."""
    settings = Settings.load()
    if settings.problems:
        for problem in settings.problems:
            print(f"jarvis: {problem}", file=sys.stderr)
        return 2
    try:
        from jarvis_collector import server  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "httptools":
            raise
        print("jarvis collector: httptools is missing: pip install 'jarvis-otel[collector]'", file=sys.stderr)
        return 2
    config = CollectorConfig(
        log_dir=args.dir or settings.log_dir,
        host=args.host or settings.collector_host,
        port=settings.collector_port if args.port is None else args.port,
    )
    adopters: list[Pipeline] = []

    def ready(port: int) -> None:
        _write_port(args.port_file, port)
        if _is_meant(settings, port):
            # what a process left in the spool that is gone need not wait for the next one of its kind
            adopters.append(
                Pipeline(f"http://{_bracketed(config.host)}:{port}", {}, quiet=True, spool_dir=settings.spool_dir)
            )
            adopters[0].start()

    try:
        server.run(config, ready=ready)
    except CollectorError as error:
        print(f"jarvis collector: {error}", file=sys.stderr)
        return 2
    finally:
        for adopter in adopters:
            adopter.shutdown(0.0)
    return 0


def _is_meant(settings: Settings, port: int) -> bool:
    """Whether this collector is the one that the project's processes ship to."""
    if not settings.logs_exporter:
        return False
    url = urlsplit(settings.otlp_endpoint)
    return settings.otlp_endpoint == DEFAULT_ENDPOINT or (is_loopback(url.hostname or "") and url.port == port)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _write_port(path: Path | None, port: int) -> None:
    if path is not None:
        # whole or not at all: whoever waits for the file reads it as soon as it is there
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(f"{port}\n")
            temporary.replace(path)
        except OSError as error:
            raise CollectorError(f"--port-file {path}: {error.strerror}") from None


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a number from 0 to 65535")
    return port
