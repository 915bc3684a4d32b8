"""Clients that others wrote: whatever conforms to OTLP, the embedded collector takes, and what was sent is in its files."""

import os
import shutil
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from tests.oracle import Embedded, Oracle, Process
from tests.real_stack import real_binary

pytestmark = pytest.mark.real

JS = Path(__file__).parent / "data/js"
EVERY_WAY = pytest.mark.parametrize("way", ["http", "grpc"])


@pytest.fixture
def collector(tmp_path):
    process = Process(Embedded(protocols=("json", "grpc")), tmp_path, tmp_path / "logs")
    process.start()
    yield process
    process.end(signal.SIGKILL)


def lines(process, stream="jarvis"):
    """What is in its files once it has ended."""
    assert process.end() == 0
    paths = sorted(process.log_dir.glob(f"{stream}-*.jsonl"))
    return [orjson.loads(line) for path in paths for line in path.read_bytes().split(b"\n")[:-1]]


def done(*command, **options):
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)
    assert ended.returncode == 0, ended.stderr


# --- telemetrygen, which is the Go SDK


def telemetrygen(process, way, signal_, *options):
    port = process.http_port if way == "http" else process.grpc_port
    where = ("--otlp-endpoint", f"127.0.0.1:{port}", "--otlp-insecure", *(["--otlp-http"] if way == "http" else []))
    done(real_binary("telemetrygen"), signal_, *where, "--workers", "3", "--rate", "0", *options)


@EVERY_WAY
def test_telemetrygens_logs_are_all_in_the_file(collector, way):
    telemetrygen(collector, way, "logs", "--logs", "700", "--body", "hello ✗", "--telemetry-attributes", 'k="v"')
    found = lines(collector)
    assert Counter((line["message"], line["service"], line["level"]) for line in found) == {
        ("hello ✗", "telemetrygen", "INFO"): 2100
    }
    assert all(line["context"]["k"] == "v" for line in found)


@EVERY_WAY
def test_telemetrygens_spans_are_all_in_the_file(collector, way):
    telemetrygen(collector, way, "traces", "--traces", "200", "--child-spans", "2")
    found = lines(collector, "traces")
    assert (len(found), len({span["span_id"] for span in found})) == (1800, 1800)
    assert Counter(Counter(span["trace_id"] for span in found).values()) == {3: 600}
    known = {span["span_id"] for span in found}
    assert sum(span.get("parent_span_id") in known for span in found) == 1200


@EVERY_WAY
@pytest.mark.parametrize("kind", ["Gauge", "Sum", "Histogram", "ExponentialHistogram"])
def test_telemetrygens_metrics_are_all_in_the_file(collector, way, kind):
    telemetrygen(collector, way, "metrics", "--metrics", "150", "--metric-type", kind)
    found = [
        metric
        for line in lines(collector, "metrics")
        for group in line["resourceMetrics"]
        for scope in group["scopeMetrics"]
        for metric in scope["metrics"]
    ]
    name = kind[0].lower() + kind[1:]
    assert sum(len(metric[name]["dataPoints"]) for metric in found) == 450


# --- the real Collector's exporters

THROUGH = """
receivers:
  otlp:
    protocols:
      http: {{endpoint: "127.0.0.1:{http}"}}
      grpc: {{endpoint: "127.0.0.1:{grpc}"}}
exporters:
{exporter}
service:
  pipelines:
    logs: {{receivers: [otlp], exporters: [{name}]}}
  telemetry: {{metrics: {{level: none}}}}
"""
EXPORTERS = {
    "otlp_http": """\
  otlp_http:
    endpoint: http://127.0.0.1:{http}
    compression: {compression}
    encoding: {encoding}
""",
    "otlp_grpc": """\
  otlp_grpc:
    endpoint: 127.0.0.1:{grpc}
    compression: {compression}
    tls: {{insecure: true}}
""",
}


@dataclass(frozen=True)
class Through:
    """The real Collector as a client of ours."""

    exporter: str
    config: Path
    name: str = "through"
    protocols: tuple[str, ...] = ("json", "protobuf", "grpc")
    encodings: tuple[str, ...] = ("", "gzip", "zstd")

    def command(self, log_dir, http_port, grpc_port):
        name = self.exporter.partition(":")[0].strip()
        self.config.write_text(THROUGH.format(http=http_port, grpc=grpc_port, exporter=self.exporter, name=name))
        return [real_binary("otelcol"), "--config", str(self.config)], {}


@pytest.mark.parametrize(
    ("exporter", "compression", "encoding"),
    [
        ("otlp_http", "none", "proto"),
        ("otlp_http", "gzip", "proto"),
        ("otlp_http", "gzip", "json"),
        ("otlp_http", "zstd", "proto"),
        ("otlp_http", "zlib", "json"),
        ("otlp_grpc", "none", ""),
        ("otlp_grpc", "gzip", ""),
    ],
)
def test_what_the_real_collector_was_sent_its_exporters_deliver_unchanged(
    collector, tmp_path, exporter, compression, encoding
):
    block = EXPORTERS[exporter].format(
        http=collector.http_port, grpc=collector.grpc_port, compression=compression, encoding=encoding
    )
    oracle = Oracle(Through(block, tmp_path / "through.yaml"), tmp_path, log_dir=collector.log_dir)
    try:
        oracle.round("none", 0.5)
        result = oracle.result()
    finally:
        oracle.close()
    assert result.good, result
    assert result.acknowledged > 100
    assert result.repeats == 0


def test_zstd_over_grpc_which_grpcio_does_not_know_is_refused_aloud_and_nothing_is_written(collector, tmp_path):
    block = EXPORTERS["otlp_grpc"].format(grpc=collector.grpc_port, compression="zstd")
    oracle = Oracle(Through(block, tmp_path / "through.yaml"), tmp_path, log_dir=collector.log_dir)
    try:
        oracle.round("none", 0.1)
        result = oracle.result()
    finally:
        oracle.close()
    assert result.lost == result.acknowledged
    assert "not retryable error" in oracle.process.said.read_text()
    assert lines(collector) == []


# --- the JavaScript SDK


@pytest.fixture(scope="session")
def js():
    """Where the packages of tests/data/js are installed, in their exact versions; ends the test where they cannot be."""
    version = orjson.loads((JS / "package.json").read_bytes())["dependencies"]["@opentelemetry/sdk-logs"]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jarvis-otel" / f"js-{version}"
    if not home.exists():
        building = home.with_name(f"{home.name}.{os.getpid()}")
        building.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(JS / name, building)
        command = ["npm", "ci", "--ignore-scripts", "--no-fund", "--no-audit"]
        try:
            npm = subprocess.run(command, cwd=building, capture_output=True, text=True, check=False, timeout=300)
            said = npm.stderr.strip() if npm.returncode else ""
        except (FileNotFoundError, subprocess.TimeoutExpired) as error:
            said = str(error)
        if said:
            shutil.rmtree(building)
            missing = f"the JavaScript SDK cannot be installed here: {said[-300:]}"
            if os.environ.get("CI") == "true":
                pytest.fail(missing)
            pytest.skip(missing)
        try:
            building.rename(home)
        except OSError:
            # another test run was quicker
            shutil.rmtree(building)
    return home


@pytest.mark.parametrize("kind", ["http", "proto", "grpc"])
def test_the_javascript_sdks_records_are_all_in_the_file(collector, js, tmp_path, kind):
    script = js / f"logs-{os.getpid()}.mjs"
    script.write_bytes((JS / "logs.mjs").read_bytes())
    port, path = (collector.grpc_port, "") if kind == "grpc" else (collector.http_port, "/v1/logs")
    try:
        done("node", str(script), kind, f"http://127.0.0.1:{port}{path}", "1234")
    finally:
        script.unlink()
    found = lines(collector)
    assert Counter(line["message"] for line in found) == {f"message {n} ✗": 1 for n in range(1234)}
    line = found[7]
    assert (line["service"], line["logger"], line["level"], line["event"]) == ("js", "js.client", "WARNING", "js.sent")
    n = int(line["message"].split()[1])
    assert line["context"] == {
        "n": n,
        "ratio": 0.5,
        "flag": True,
        "list": ["a", "b"],
        "nested": {"deep": [1, {"x": None}]},
        "bytes": "AQL/",
    }


# --- the Python SDK


@pytest.mark.parametrize("compression", ["NoCompression", "Gzip", "Deflate"])
@EVERY_WAY
def test_the_python_sdks_records_are_all_in_the_file(collector, way, compression):
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.resources import Resource

    if way == "http":
        from opentelemetry.exporter.otlp.proto.http import Compression
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

        exporter = OTLPLogExporter(
            f"http://127.0.0.1:{collector.http_port}/v1/logs", compression=Compression[compression]
        )
    else:
        from grpc import Compression
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter

        exporter = OTLPLogExporter(
            f"127.0.0.1:{collector.grpc_port}", insecure=True, compression=Compression[compression]
        )
    provider = LoggerProvider(resource=Resource({"service.name": "python"}))
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, max_queue_size=10_000))
    logger = provider.get_logger("python.client")
    for n in range(1234):
        logger.emit(body=f"message {n}", attributes={"n": n, "list": ["a"], "bytes": b"\xff"}, event_name="sent")
    provider.shutdown()
    found = lines(collector)
    assert Counter(line["message"] for line in found) == {f"message {n}": 1 for n in range(1234)}
    assert {(line["service"], line["logger"], line["event"]) for line in found} == {("python", "python.client", "sent")}
