"""What a page of the docs may count on before a block runs: files that are there, and real peers."""

import os
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import orjson

from tests.alert_sink import TOKEN as ALERT_TOKEN
from tests.alert_sink import AlertSink
from tests.bot_api import TOKEN, bot_api
from tests.doc_pages import ROOT
from tests.otlp_sink import until


def _record(number, level="INFO", **more):
    moment = datetime.now(UTC) - timedelta(minutes=5, seconds=-number)
    return {
        "timestamp": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "level": level,
        "message": f"Order {number}",
        "service": "trading",
        "correlation_id": "trade-xyz789",
        "trace_id": "a" * 32,
        "active_flags": ["NEW_UI"],
        "flags": {"NEW_UI": "on"},
        "duration_ms": 600.0 + number,
        "context": {"symbol": "SOL"},
        "logger": "t",
        "_meta": {"uid": f"u{number}"},
    } | more


def write_records(project):
    """Writes four records and a span of one trade, five minutes ago, and its flag NEW_UI."""
    logs, config = project / "logs", project / "config"
    logs.mkdir(exist_ok=True)
    config.mkdir(exist_ok=True)
    if not (config / "flags.yaml").exists():
        (config / "flags.yaml").write_text('version: "1.0"\nflags: {NEW_UI: {enabled: false}}\n')
    error = {"type": "BalanceError", "message": "Wallet has 0.5", "stack_trace": "Traceback\n  x\n"}
    lines = [_record(1), _record(2, "WARNING"), _record(3, "ERROR", error=error), _record(4, service="api")]
    span = {
        "timestamp": lines[0]["timestamp"],
        "name": "POST",
        "kind": "server",
        "service": "api",
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "status": {"code": "ok"},
        "duration_ms": 5.0,
    }
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    for name, entries in ("jarvis", lines), ("traces", [span]):
        (logs / f"{name}-{today}.jsonl").write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in entries))


@contextmanager
def _records(home):
    write_records(home / "project")
    yield {}, {}


@contextmanager
def _override(home):
    environ = {**os.environ, "JARVIS_HOME": str(home / "project"), "OTEL_LOGS_EXPORTER": "none"}
    command = [sys.executable, "-m", "jarvis_otel.cli.main", "flags", "disable", "NEW_UI"]
    subprocess.run(command, env=environ, check=True, capture_output=True)
    yield {}, {}


@contextmanager
def _lnav_format(home):
    shutil.copytree(ROOT / "config" / "lnav", home / "project" / "config" / "lnav")
    yield {}, {}


@contextmanager
def _duckdb(home):
    """DuckDB's command line is no Python package; the engine is the same."""
    program = home / "bin" / "duckdb"
    program.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "import duckdb, sys; print(duckdb.sql(sys.argv[1]))" "$@"\n'
    )
    program.chmod(0o755)
    yield {}, {}


@contextmanager
def _bot_api(home):
    (home / "jarvis-bot-token").write_text(TOKEN)
    (home / "jarvis-bot-token").chmod(0o600)
    with bot_api() as api:
        yield {}, {"JARVIS_TELEGRAM_API_URL": api.url}


@contextmanager
def _receivers(_):
    with AlertSink() as sink:
        yield (
            {},
            {
                "JARVIS_ALERT_WEBHOOKS": f"{sink.url}/hook",
                "JARVIS_TELEGRAM_API_URL": f"{sink.url}/bot",
                "JARVIS_TELEGRAM_TOKEN": ALERT_TOKEN,
            },
        )


@contextmanager
def _etcd(home):
    from tests.etcd_cluster import EtcdCluster

    with EtcdCluster(home / "etcd") as cluster:
        ports = {port: str(node.client) for port, node in zip(("2379", "22379", "32379"), cluster.nodes, strict=True)}
        yield ports, {"JARVIS_ETCD_ENDPOINTS": ",".join(cluster.urls)}


@contextmanager
def _loki(home):
    """Loki, and what forwards to it the records that are in the page's project by then."""
    from tests.real_stack import Embedded, Loki, running

    loki = Loki(home / "loki")
    logs = home / "project" / "logs"
    with running(loki, Embedded(home / "forward", loki.url, logs, forward_only=True)):
        until(lambda: not logs.is_dir() or loki.records('{service_name=~".+"}'), 60)
        yield {"3100": str(loki.port)}, {"JARVIS_LOKI_URL": loki.url}


GIVEN = {
    "bot-api": _bot_api,
    "duckdb": _duckdb,
    "lnav-format": _lnav_format,
    "override": _override,
    "receivers": _receivers,
    "records": _records,
}
PEERS = {"etcd": _etcd, "loki": _loki}
