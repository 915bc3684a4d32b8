"""`jarvis collector`: the local collector, until it is told to stop."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from jarvis_collector.config import CollectorConfig, CollectorError, Indexer, is_loopback, reachable_url
from jarvis_collector.own_log import OwnLog
from jarvis_otel.cli.command import load_settings, missing_package, tcp_port
from jarvis_otel.otlp_settings import DEFAULT_ENDPOINT
from jarvis_otel.pipeline import Pipeline
from jarvis_otel.settings import Settings
from jarvis_otel.terminal import DONE, WRONG
from jarvis_otel.version import __version__

__all__ = ["add_parser"]

_EPILOG = """\
example:
  jarvis collector --dir logs --port 4318

It takes OTLP over HTTP (/v1/logs, /v1/traces, /v1/metrics; protobuf and JSON; gzip, deflate, zstd) and over gRPC, and
writes JSON lines to jarvis-YYYY-MM-DD.jsonl, traces-... and metrics-...; a request is answered with 200 when its
records are on the disk. GET /healthz and /metrics tell how it is. SIGTERM and Ctrl-C end it, with nothing lost that was
accepted; SIGHUP reads the settings again (collector_*, retention_* and loki_* in config/jarvis.yaml).
"""
_PACKAGES = {
    "httptools": "httptools",
    "google": "protobuf",
    "opentelemetry": "opentelemetry-proto",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the command line."""
    parser = commands.add_parser(
        "collector",
        help="receive logs and traces over OTLP, write JSON lines",
        description="Receives logs and traces over OTLP and writes them as JSON lines, one file a day.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where to write (default: log_dir, logs)")
    parser.add_argument(
        "--host",
        help="address to listen on (default: collector_host, 127.0.0.1); others than this machine's own loopback need "
        "a token",
    )
    parser.add_argument(
        "--port", type=tcp_port, help="TCP port of OTLP/HTTP, 0 takes a free one (default: collector_port, 4318)"
    )
    parser.add_argument(
        "--grpc-port",
        type=_grpc_port,
        metavar="PORT|off",
        help="TCP port of OTLP/gRPC, 0 takes a free one (default: collector_grpc_port, 4317 if it is free)",
    )
    parser.add_argument("--port-file", type=Path, metavar="FILE", help="write the port of HTTP there once it listens")
    parser.add_argument("--insecure-no-auth", action="store_true", help="let others send without a token")
    parser.add_argument(
        "--new-token", action="store_true", help="print a bearer token and its line for the settings, and end"
    )
    parser.add_argument(
        "--forward-only",
        action="store_true",
        help="receive nothing; forward to Loki (loki_url) what another process writes, the real Collector too",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Runs the collector; 0 when it was told to stop, 2 when it could not start."""
    if args.new_token:
        return _print_token()
    settings = load_settings()
    if settings is None:
        return WRONG
    with ExitStack() as ends:
        own_log = _own_log(settings, ends)
        try:
            if args.forward_only:
                _forward_only(args, settings, own_log)
            else:
                _collect(args, settings, own_log, ends)
        except CollectorError as error:
            print(f"jarvis collector: {error}", file=sys.stderr)
            return WRONG
    return DONE


def _collect(args: argparse.Namespace, settings: Settings, own_log: OwnLog, ends: ExitStack) -> None:
    try:
        from jarvis_collector import server  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise CollectorError(missing_package(error, _PACKAGES, "collector")) from None
    config = _config(args, settings)

    def ready(port: int) -> None:
        _write_port(args.port_file, port)
        # what a process left in the spool that is gone need not wait for the next one of its kind
        if _is_meant(settings, port):
            adopter, problem = _adopter(settings, config, port)
            if adopter is None:
                own_log.warning(f"what is left in {settings.spool_dir} is not taken in from here: {problem}")
                return
            adopter.start()
            ends.callback(adopter.shutdown, 0.0)

    server.run(config, ready=ready, reload=lambda: _config(args, _reloaded(settings)), log=own_log)


def _forward_only(args: argparse.Namespace, settings: Settings, own_log: OwnLog) -> None:
    from jarvis_collector.forward import run_forward_only  # noqa: PLC0415

    config = _config(args, settings)
    if config.loki is None:
        raise CollectorError(
            "--forward-only: there is nowhere to forward to; set loki_url, such as http://127.0.0.1:3100"
        )

    os.umask(os.umask(0o027) | 0o027)

    def reload() -> CollectorConfig | None:
        try:
            new = _config(args, _reloaded(settings))
            if new.loki is None:
                raise CollectorError("loki_url is not set any more")
        except CollectorError as error:
            own_log.error(f"settings not reloaded, the old ones hold: {error}")
            return None
        own_log.info("settings reloaded")
        return new

    run_forward_only(config, own_log, reload=reload)


def _reloaded(settings: Settings) -> Settings:
    """The settings as they stand now.

    Raises:
        CollectorError: There is something wrong with them.
    """
    assert settings.reload
    new = settings.reload()
    if new.problems:
        raise CollectorError("; ".join(new.problems))
    return new


def _config(args: argparse.Namespace, settings: Settings) -> CollectorConfig:
    named = args.grpc_port is not None
    grpc_port = (None if args.grpc_port == _OFF else args.grpc_port) if named else settings.collector.grpc_port
    return CollectorConfig(
        log_dir=args.dir or settings.log_dir,
        host=args.host or settings.collector.host,
        port=settings.collector.port if args.port is None else args.port,
        grpc_port=grpc_port,
        grpc_required=named or settings.collector.grpc_named,
        tokens=settings.collector.tokens,
        insecure_no_auth=args.insecure_no_auth or settings.collector.insecure_no_auth,
        allowed_hosts=settings.collector.hosts,
        tls_cert=settings.collector.tls_cert,
        tls_key=settings.collector.tls_key,
        components=settings.collector.components,
        retention=settings.retention,
        index=_indexer() if settings.collector.index else None,
        loki=settings.loki,
        version=__version__,
    )


def _indexer() -> Indexer:
    from jarvis_otel.query.index_build import bring_up_to_date  # noqa: PLC0415

    return bring_up_to_date


def _own_log(settings: Settings, ends: ExitStack) -> OwnLog:
    if settings.console == "off":
        return OwnLog(stream=ends.enter_context(Path(os.devnull).open("w")))
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return OwnLog(human=settings.console == "human" or (settings.console == "auto" and terminal))


def _print_token() -> int:
    from jarvis_collector.access import new_token, token_digest  # noqa: PLC0415

    token = new_token()
    print(token)
    print(f'collector_tokens: ["sha256:{token_digest(token)}"]')
    print(
        "The first line is the token, shown only this once: clients send it as OTEL_EXPORTER_OTLP_HEADERS="
        '"Authorization=Bearer <token>". The second line belongs into config/jarvis.yaml.',
        file=sys.stderr,
    )
    return DONE


def _is_meant(settings: Settings, port: int) -> bool:
    """Whether this collector is the one that the project's processes ship to."""
    if not settings.logs_exporter:
        return False
    url = urlsplit(settings.otlp_endpoint)
    return settings.otlp_endpoint == DEFAULT_ENDPOINT or (is_loopback(url.hostname or "") and url.port == port)


def _adopter(settings: Settings, config: CollectorConfig, port: int) -> tuple[Pipeline | None, str]:
    """What ships to this collector what processes have left behind, as they would have; or why it cannot."""
    target = settings.otlp_logs
    if config.tls_cert is not None and not target.url.startswith("https:"):
        return None, "it is sent over http, and this collector takes https; set OTEL_EXPORTER_OTLP_ENDPOINT"
    if config.tokens:
        from jarvis_collector.access import Access  # noqa: PLC0415

        if not Access(config).is_allowed(target.headers.get("authorization")):
            return None, "OTEL_EXPORTER_OTLP_HEADERS has none of this collector's tokens (Authorization=Bearer <token>)"
    if settings.otlp_endpoint == DEFAULT_ENDPOINT:
        target = replace(target, url=f"{reachable_url(config.host, port)}/v1/logs")
    return Pipeline(target, {}, quiet=True, spool_dir=settings.spool_dir), ""


def _write_port(path: Path | None, port: int) -> None:
    if path is not None:
        # whole or not at all: whoever waits for the file reads it as soon as it is there
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(f"{port}\n")
            temporary.replace(path)
        except OSError as error:
            raise CollectorError(f"--port-file {path}: {error.strerror}") from None


_OFF = -1


def _grpc_port(text: str) -> int:
    return _OFF if text.lower() == "off" else tcp_port(text)
