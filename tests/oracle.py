"""The fault oracle: a collector's 2xx makes an obligation, and afterwards the files must keep all of them.

Senders give a collector records with unique ids and seeded payloads, and note each id that they tried and each that was
acknowledged; meanwhile the collector is killed, ended or stopped. At the end a fresh record must pass, and then its
files are read: every acknowledged record must be there, with the payload that was sent, and nothing that was not sent.
It knows the embedded collector and the real OpenTelemetry Collector, and puts what they lose side by side:

    python -m tests.oracle --target embedded --target otelcol --rounds 20 --seconds 1 --fault kill

The model is that of Vector's end-to-end tests (tests/antithesis in its repository).
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import http.client
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import orjson
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from jarvis_collector.record import logs_request
from tests.ports import free_port

__all__ = [
    "FAULTS",
    "TARGETS",
    "Embedded",
    "Ledger",
    "NoTargetError",
    "Oracle",
    "RealCollector",
    "Result",
    "canonical",
    "judge",
    "run",
    "to_protobuf",
]

ROOT = Path(__file__).resolve().parent.parent
ID = "oracle.id"
_JSON, _PROTOBUF = "application/json", "application/x-protobuf"
_EXPORT = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
_DAY_OF_REAL = "jarvis.log_day"
"""The resource attribute that the real Collector's configuration adds to find the file."""


class NoTargetError(Exception):
    """Why a target cannot be run here, in one line."""


# --- what is sent


def record_of(seed: int, id_: str) -> dict[str, Any]:
    """The record of an id, in OTLP/JSON; the same whenever it is asked for."""
    rng = random.Random(f"{seed}/{id_}")
    attributes = {f"k{n}.{rng.choice(_TEXTS)[:10]}": _any_value(rng, 3) for n in range(rng.randrange(4))}
    attributes |= {key: {"stringValue": rng.choice(_TEXTS)} for key in rng.sample(_KNOWN, rng.randrange(4))}
    severity = rng.randrange(25)
    record: dict[str, Any] = {
        "timeUnixNano": str(rng.choice((0, 1, 1_767_323_045_678_901_234, 2**63 - 1 - rng.randrange(10**18)))),
        "severityNumber": severity,
        "severityText": rng.choice(("", "INFO", "Warning", "ERROR")),
        "attributes": [
            {"key": ID, "value": {"stringValue": id_}},
            *({"key": key, "value": value} for key, value in attributes.items()),
        ],
    }
    if rng.random() < 0.9:
        record["body"] = _any_value(rng, 3)
    if rng.random() < 0.5:
        record |= {"traceId": f"{rng.getrandbits(128):032x}", "spanId": f"{rng.getrandbits(64):016x}", "flags": 1}
    if rng.random() < 0.3:
        record |= {"eventName": rng.choice(_TEXTS), "observedTimeUnixNano": str(rng.getrandbits(60))}
    return record


_TEXTS = (
    "",
    "x",
    "Trade failed ✗",
    "two\nlines\r\nand a\ttab",
    '"quoted" \\ back / {"timestamp":"2026-01-01T00:00:00.000000Z"}',
    "\0\x1b[31mred\x7f\x85",
    "separators \u2028 \u2029 \ufeff bidi \u202e",
    "🜚 日本語 \U0010ffff \uffff e\u0301",
    "'; DROP TABLE logs; --",
    "x" * 3000,
)
_KNOWN = (
    "jarvis.service",
    "jarvis.correlation_id",
    "user.id",
    "exception.type",
    "exception.stacktrace",
    "jarvis.flag.X",
    "jarvis.context.a",
    "log.record.uid",
    "code.file.path",
    "uid",
)
_SCALARS: tuple[Callable[[random.Random], dict[str, Any]], ...] = (
    lambda rng: {"stringValue": rng.choice(_TEXTS)},
    lambda rng: {"stringValue": "".join(chr(rng.randrange(0x20, 0xD800)) for _ in range(rng.randrange(20)))},
    lambda rng: {"intValue": str(rng.choice((0, -1, 2**53 + 1, 2**63 - 1, -(2**63), rng.getrandbits(62))))},
    lambda rng: {"doubleValue": rng.choice((0.1, 1e308, 5e-324, 2.0, 1e22, "NaN", "-Infinity", rng.gauss(0, 1e9)))},
    lambda rng: {"boolValue": rng.random() < 0.5},
    lambda rng: {"bytesValue": base64.b64encode(rng.randbytes(rng.randrange(20))).decode()},
    lambda _: {},
)


def _any_value(rng: random.Random, depth: int) -> dict[str, Any]:
    if not depth or rng.random() < 0.7:
        return rng.choice(_SCALARS)(rng)
    inner = [_any_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if rng.random() < 0.5:
        return {"arrayValue": {"values": inner}}
    return {"kvlistValue": {"values": [{"key": f"{n}{rng.choice(_TEXTS)}", "value": v} for n, v in enumerate(inner)]}}


def request_of(seed: int, ids: Sequence[str]) -> dict[str, Any]:
    """An OTLP/JSON request with the records of these ids."""
    service = f"oracle-{ids[0].partition('-')[0]}"
    resource = {
        "attributes": [
            {"key": "service.name", "value": {"stringValue": service}},
            {"key": "host.name", "value": {"stringValue": "box ✗"}},
            {"key": "process.pid", "value": {"intValue": "7"}},
        ]
    }
    scope = {"name": "oracle", "version": "1"}
    return {
        "resourceLogs": [
            {"resource": resource, "scopeLogs": [{"scope": scope, "logRecords": [record_of(seed, id_) for id_ in ids]}]}
        ]
    }


def to_protobuf(request: dict[str, Any]) -> ExportLogsServiceRequest:
    """An OTLP/JSON request as protobuf, by the protobuf library's own reader of JSON, which wants ids in base64."""

    def ids(node: Any) -> Any:
        if isinstance(node, list):
            return [ids(item) for item in node]
        if isinstance(node, dict):
            return {
                key: base64.b64encode(bytes.fromhex(value)).decode() if key in ("traceId", "spanId") else ids(value)
                for key, value in node.items()
            }
        return node

    message: ExportLogsServiceRequest = ParseDict(ids(request), ExportLogsServiceRequest())
    return message


# --- what a record says


def canonical(request: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The id and the whole content of each record of an OTLP/JSON request, its resource and scope included.

    Whatever is the same in OTLP is the same here: the order of attributes, absent and empty fields, ids in either case,
    integers as texts or numbers. A record without an id has the empty one.
    """
    for group in request.get("resourceLogs", ()):
        resource = group.get("resource", {})
        resource_part = [
            [pair for pair in _pairs(resource) if pair[0] != _DAY_OF_REAL],
            int(resource.get("droppedAttributesCount", 0)),
            group.get("schemaUrl", ""),
        ]
        for scope_group in group.get("scopeLogs", ()):
            scope = scope_group.get("scope", {})
            scope_part = [
                scope.get("name", ""),
                scope.get("version", ""),
                _pairs(scope),
                int(scope.get("droppedAttributesCount", 0)),
                scope_group.get("schemaUrl", ""),
            ]
            for record in scope_group.get("logRecords", ()):
                attributes = _pairs(record)
                content = [
                    *(int(record.get(key, 0)) for key in _NUMBERS),
                    *(record.get(key, "") for key in ("severityText", "eventName")),
                    *(record.get(key, "").lower() for key in ("traceId", "spanId")),
                    _content(record.get("body") or {}),
                    attributes,
                    resource_part,
                    scope_part,
                ]
                id_ = next((value[1] for key, value in attributes if key == ID and value[:1] == ["s"]), "")
                yield id_, orjson.dumps(content)


_NUMBERS = ("timeUnixNano", "observedTimeUnixNano", "severityNumber", "droppedAttributesCount", "flags")


def _pairs(owner: dict[str, Any]) -> list[list[Any]]:
    pairs = [[pair.get("key", ""), _content(pair.get("value") or {})] for pair in owner.get("attributes", ())]
    return sorted(pairs, key=lambda pair: pair[0])


def _content(value: dict[str, Any]) -> list[Any]:
    for kind, content in value.items():
        if kind == "intValue":
            return ["i", str(int(content))]
        if kind == "doubleValue":
            number = float(content)
            return ["d", "NaN" if math.isnan(number) else repr(number)]
        if kind == "bytesValue":
            return ["b", base64.b64decode(content).hex()]
        if kind == "arrayValue":
            return ["a", [_content(item or {}) for item in content.get("values", ())]]
        if kind == "kvlistValue":
            return ["k", _pairs({"attributes": content.get("values", ())})]
        return ["s" if kind == "stringValue" else kind, content]
    return []


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


# --- who is tested


class Target(Protocol):
    """A collector that can be started as a process.

    Attributes:
        name: What it is called in results.
        protocols: What it speaks, of `json`, `protobuf` and `grpc`.
        encodings: The content encodings that it takes over HTTP; over gRPC it is gzip or none.
    """

    @property
    def name(self) -> str: ...

    @property
    def protocols(self) -> tuple[str, ...]: ...

    @property
    def encodings(self) -> tuple[str, ...]: ...

    def command(self, log_dir: Path, http_port: int, grpc_port: int) -> tuple[list[str], dict[str, str]]:
        """How it is started: arguments, and what is added to the environment."""
        ...


@dataclass(frozen=True)
class Embedded:
    """`jarvis collector`.

    Attributes:
        options: Further options of the command.
        environ: Further environment.
        prelude: Python code that the process runs first.
    """

    name: str = "embedded"
    protocols: tuple[str, ...] = ("json", "protobuf", "grpc")
    encodings: tuple[str, ...] = ("", "gzip", "zstd")
    options: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    prelude: str = ""

    def command(self, log_dir: Path, http_port: int, grpc_port: int) -> tuple[list[str], dict[str, str]]:
        code = f"{self.prelude}\nimport sys\nfrom jarvis_otel.cli.main import main\nsys.exit(main())\n"
        options = ["collector", "--dir", str(log_dir), "--port", str(http_port), *self.options]
        # no process of ours ships to it, so it need not look for what one left behind
        environ = {
            "OTEL_LOGS_EXPORTER": "none",
            "JARVIS_HOME": str(log_dir.parent),
            "JARVIS_COLLECTOR_GRPC_PORT": str(grpc_port),
            **self.environ,
        }
        return [sys.executable, "-W", "error", "-c", code, *options], environ


@dataclass(frozen=True)
class RealCollector:
    """The real OpenTelemetry Collector under our configuration.

    Attributes:
        binary: Its path.
        config: Its configuration.
    """

    binary: Path
    config: Path
    name: str = "otelcol"
    protocols: tuple[str, ...] = ("json", "protobuf", "grpc")
    encodings: tuple[str, ...] = ("", "gzip", "zstd")

    @classmethod
    def found(cls) -> RealCollector:
        """The one that `scripts/build-real otelcol` built.

        Raises:
            NoTargetError: It is not built.
        """
        found = subprocess.run(
            [ROOT / "scripts/build-real", "otelcol", "--cached"], capture_output=True, text=True, check=False
        )
        if found.returncode:
            raise NoTargetError("the real Collector is not built here: make real-collector")
        return cls(Path(found.stdout.strip()), ROOT / "collector/otelcol.yaml")

    def command(self, log_dir: Path, http_port: int, grpc_port: int) -> tuple[list[str], dict[str, str]]:
        environ = {
            "TZ": "UTC",
            "JARVIS_LOG_DIR": str(log_dir),
            "JARVIS_OTLP_HTTP": f"127.0.0.1:{http_port}",
            "JARVIS_OTLP_GRPC": f"127.0.0.1:{grpc_port}",
        }
        return [str(self.binary), "--config", str(self.config)], environ


TARGETS: dict[str, Callable[[], Target]] = {"embedded": Embedded, "otelcol": RealCollector.found}


class Process:
    """A target that runs, on ports that it keeps over restarts.

    Args:
        target: What runs.
        home: A directory of its own: what it says is kept there.
        log_dir: Where it writes; `home`/logs if None.
    """

    def __init__(self, target: Target, home: Path, log_dir: Path | None = None) -> None:
        self.target = target
        self.log_dir = log_dir or home / "logs"
        self.said = home / f"{target.name}.stderr"
        self.http_port, self.grpc_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Starts it and waits until it listens.

        Raises:
            NoTargetError: It ended instead.
        """
        arguments, environ = self.target.command(self.log_dir, self.http_port, self.grpc_port)
        with self.said.open("ab") as said:
            self._process = subprocess.Popen(
                arguments, stdout=said, stderr=said, env={**os.environ, **environ}, stdin=subprocess.DEVNULL
            )
        ports = [self.http_port, *([self.grpc_port] if "grpc" in self.target.protocols else [])]
        deadline = time.monotonic() + 60
        while not all(map(_listens, ports)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.end(signal.SIGKILL)
                raise NoTargetError(f"{self.target.name} did not start: {self.said.read_text()[-2000:].strip()}")
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        assert self._process
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Ends it, if it runs, and returns its exit code."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _listens(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True


# --- who sends


@dataclass
class Ledger:
    """What was sent, and what was promised.

    Attributes:
        seed: The payloads follow from it.
        attempted: Digest of the content by id.
        acknowledged: Ids of the obligations.
        refused: How many requests were answered that they are not kept.
    """

    seed: int = 0
    attempted: dict[str, bytes] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    refused: int = 0

    def request(self, ids: Sequence[str]) -> dict[str, Any]:
        """A request with new records of these ids, which from now on may appear in the files."""
        request = request_of(self.seed, ids)
        self.attempted.update({id_: _digest(content) for id_, content in canonical(request)})
        return request


class _NoAnswerError(Exception):
    """Whether a request was taken is not known."""


class _HttpClient:
    """OTLP/HTTP on a connection that is opened when it is needed."""

    def __init__(self, port: int, protocol: str, timeout: float) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self._protobuf = protocol == "protobuf"

    def send(self, request: dict[str, Any], encoding: str) -> bool:
        body = to_protobuf(request).SerializeToString() if self._protobuf else orjson.dumps(request)
        headers = {"Content-Type": _PROTOBUF if self._protobuf else _JSON}
        if encoding:
            body = _compressed(body, encoding)
            headers["Content-Encoding"] = encoding
        try:
            self._connection.request("POST", "/v1/logs", body, headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise _NoAnswerError(repr(error)) from None
        if not 200 <= response.status < 300:
            return False
        if self._protobuf:
            return not ExportLogsServiceResponse.FromString(content).partial_success.rejected_log_records
        return not int(json.loads(content or b"{}").get("partialSuccess", {}).get("rejectedLogRecords", 0))

    def close(self) -> None:
        self._connection.close()


class _GrpcClient:
    """OTLP/gRPC."""

    def __init__(self, port: int, timeout: float) -> None:
        import grpc

        self._grpc = grpc
        self._timeout = timeout
        self._port = port
        self._channel: Any = None

    def send(self, request: dict[str, Any], encoding: str) -> bool:
        grpc = self._grpc
        if self._channel is None:
            # a channel shares its subchannels, and their back-off after a failure, unless it is told not to
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
            self._channel = grpc.insecure_channel(f"127.0.0.1:{self._port}", options)
        call = self._channel.unary_unary(_EXPORT, None, ExportLogsServiceResponse.FromString)
        compression = grpc.Compression.Gzip if encoding == "gzip" else grpc.Compression.NoCompression
        body = to_protobuf(request).SerializeToString()
        try:
            answer = call(body, timeout=self._timeout, compression=compression)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT):
                return False
            self.close()
            raise _NoAnswerError(repr(error)) from None
        return not answer.partial_success.rejected_log_records

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _compressed(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.compress(body, 1)
    from backports import zstd

    return zstd.compress(body)


class _Sender:
    """Sends new records as long as it may; what was not acknowledged is sent again, as any client does."""

    def __init__(self, number: int, ledger: Ledger, process: Process, timeout: float) -> None:
        target = process.target
        self._name = f"{number}"
        self._ledger = ledger
        self._rng = random.Random(f"{ledger.seed}/sender/{number}")
        self._encodings = target.encodings
        self._count = 0
        self._waiting: dict[str, Any] | None = None
        self._ids: list[str] = []
        protocol = target.protocols[number % len(target.protocols)]
        if protocol == "grpc":
            self._client: _HttpClient | _GrpcClient = _GrpcClient(process.grpc_port, timeout)
        else:
            self._client = _HttpClient(process.http_port, protocol, timeout)

    def send_until(self, over: threading.Event) -> None:
        """Sends until it is over."""
        while not over.is_set():
            try:
                kept = self.send()
            except _NoAnswerError:
                kept = False
            if not kept:
                over.wait(0.02)

    def close(self) -> None:
        """Closes its connection."""
        self._client.close()

    @property
    def waits(self) -> bool:
        """Whether a request of before is not acknowledged yet."""
        return self._waiting is not None

    def send(self) -> bool:
        """Sends one request, the one that waits for its acknowledgement if there is one."""
        if self._waiting is None:
            size = self._rng.choice((1, 2, 10, 40))
            self._ids = [f"{self._name}-{self._count + n}" for n in range(size)]
            self._count += size
            self._waiting = self._ledger.request(self._ids)
        kept = self._client.send(self._waiting, self._rng.choice(self._encodings))
        if kept:
            self._ledger.acknowledged.update(self._ids)
            self._waiting = None
        else:
            self._ledger.refused += 1
        return kept


# --- the oracle


@dataclass(frozen=True)
class Result:
    """What became of all that was sent. Counts are of records, but for `refused` and `unreadable`.

    Attributes:
        target: Whom it is about.
        fault: What was done to it, so many `rounds`.
        attempted: All that were sent.
        acknowledged: Those that got a 2xx.
        refused: Requests that were answered otherwise.
        lost: Acknowledged ones that are in no file.
        changed: Those in a file with another content than was sent.
        foreign: Those in a file that nobody sent.
        repeats: Further copies of those in the files.
        unreadable: Lines that cannot be read: torn, glued to another, no JSON.
        fresh: Whether a record that was sent after all faults is in the files.
        examples: Some of the ids that are lost, changed or foreign.
    """

    target: str
    fault: str
    rounds: int
    attempted: int
    acknowledged: int
    refused: int
    lost: int
    changed: int
    foreign: int
    repeats: int
    unreadable: int
    fresh: bool
    examples: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether all obligations are met."""
        return self.fresh and not (self.lost or self.changed or self.foreign or self.unreadable)


FAULTS = ("none", "kill", "term", "hang")


class Oracle:
    """One trial of one target.

    Args:
        target: Who is tried.
        home: A directory of its own.
        log_dir: Where the target writes; `home`/logs if None.
        seed: Of payloads and moments.
        senders: How many connections send at once, over all protocols in turn.
        timeout: Seconds that a sender waits for an answer.
    """

    def __init__(
        self,
        target: Target,
        home: Path,
        *,
        log_dir: Path | None = None,
        seed: int = 0,
        senders: int = 6,
        timeout: float = 20.0,
    ) -> None:
        self.process = Process(target, home, log_dir)
        self.ledger = Ledger(seed)
        self._rng = random.Random(f"{seed}/faults")
        self._senders = [_Sender(number, self.ledger, self.process, timeout) for number in range(senders)]
        self._rounds: Counter[str] = Counter()

    def round(self, fault: str, seconds: float) -> None:
        """Sends for about so many seconds, and meanwhile does this to the target, which is running afterwards.

        Raises:
            NoTargetError: It does not start, or, told to end, does so with an error.
        """
        if not sum(self._rounds.values()):
            self.process.start()
        over = threading.Event()
        threads = [threading.Thread(target=sender.send_until, args=(over,)) for sender in self._senders]
        for thread in threads:
            thread.start()
        try:
            time.sleep(seconds * self._rng.uniform(0.5, 1))
            if fault == "hang":
                self.process.send(signal.SIGSTOP)
                time.sleep(seconds)
                self.process.send(signal.SIGCONT)
                time.sleep(seconds / 2)
            elif fault == "kill":
                self.process.end(signal.SIGKILL)
            elif fault == "term" and (code := self.process.end()):
                raise NoTargetError(f"{self.process.target.name} answered SIGTERM with exit code {code}")
        finally:
            over.set()
            for thread in threads:
                thread.join()
        if fault in ("kill", "term"):
            self.process.start()
        self._rounds[fault] += 1

    def fresh(self) -> bool:
        """Whether each sender's next request, sent now that all faults are over, is acknowledged in time."""
        return sum(map(_acknowledged_in_time, self._senders)) == len(self._senders)

    def result(self) -> Result:
        """Sends the fresh records, ends the target, and reads its files."""
        fresh = self.fresh()
        self.process.end()
        return judge(
            self.ledger,
            self.process.log_dir,
            target=self.process.target.name,
            fault="+".join(sorted(self._rounds)),
            rounds=sum(self._rounds.values()),
            fresh=fresh,
        )

    def close(self) -> None:
        """Ends the target, whatever it does, and the senders."""
        for sender in self._senders:
            sender.close()
        self.process.end(signal.SIGKILL)


def _acknowledged_in_time(sender: _Sender) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        new = not sender.waits
        try:
            if sender.send() and new:
                return True
        except _NoAnswerError:
            time.sleep(0.05)
    return False


def judge(ledger: Ledger, log_dir: Path, *, target: str = "", fault: str = "", rounds: int = 0, fresh: bool) -> Result:
    """Compares what was sent with what the files of a log directory say."""
    found: Counter[str] = Counter()
    unreadable, changed, foreign = 0, set[str](), list[str]()
    for path in sorted(log_dir.glob("jarvis-*.jsonl")):
        *lines, rest = path.read_bytes().split(b"\n")
        unreadable += rest != b""
        for line in lines:
            try:
                records = list(canonical(_request_of_line(line)))
            except (ValueError, KeyError, TypeError, AttributeError):
                unreadable += 1
                continue
            for id_, content in records:
                sent = ledger.attempted.get(id_)
                if sent is None:
                    foreign.append(id_ or content[:80].decode(errors="replace"))
                elif sent != _digest(content):
                    changed.add(id_)
                else:
                    found[id_] += 1
    lost = ledger.acknowledged - found.keys()
    return Result(
        target=target,
        fault=fault,
        rounds=rounds,
        attempted=len(ledger.attempted),
        acknowledged=len(ledger.acknowledged),
        refused=ledger.refused,
        lost=len(lost),
        changed=len(changed),
        foreign=len(foreign),
        repeats=found.total() - len(found),
        unreadable=unreadable,
        fresh=fresh,
        examples=(*sorted(lost)[:3], *sorted(changed)[:3], *foreign[:3]),
    )


def _request_of_line(line: bytes) -> dict[str, Any]:
    parsed = orjson.loads(line)
    if isinstance(parsed, dict) and "resourceLogs" in parsed:
        return parsed
    return logs_request([parsed])


def run(target: Target, home: Path, *, fault: str, rounds: int, seconds: float, seed: int = 0) -> Result:
    """Tries a target.

    Args:
        target: Who is tried.
        home: A directory of its own.
        fault: One of FAULTS.
        rounds: How often it comes.
        seconds: How long a round sends, at most, before it.
        seed: Of payloads and moments.

    Raises:
        NoTargetError: The target does not start.
    """
    # a sender gives up on one that hangs, and sends again: then the hanging one may have both
    oracle = Oracle(target, home, seed=seed, timeout=seconds / 2 if fault == "hang" else 20.0)
    try:
        for _ in range(rounds):
            oracle.round(fault, seconds)
        return oracle.result()
    finally:
        oracle.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every target met its obligations, 1 if not, 2 if one cannot be tried."""
    parser = argparse.ArgumentParser(
        "python -m tests.oracle", description="Whether what a collector acknowledged is in its files, whatever happens."
    )
    parser.add_argument(
        "--target", action="append", choices=TARGETS, help="whom to try (default: embedded); repeatable"
    )
    parser.add_argument("--fault", choices=FAULTS, default="kill", help="what happens each round (default: kill)")
    parser.add_argument("--rounds", type=int, default=10, help="default: 10")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long a round sends, at most (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of payloads and moments (default: 0)")
    parser.add_argument("--format", choices=("human", "json"), default="human")
    args = parser.parse_args(arguments)
    results = []
    for name in dict.fromkeys(args.target or ["embedded"]):
        with tempfile.TemporaryDirectory() as home:
            try:
                results.append(
                    run(
                        TARGETS[name](),
                        Path(home),
                        fault=args.fault,
                        rounds=args.rounds,
                        seconds=args.seconds,
                        seed=args.seed,
                    )
                )
            except NoTargetError as error:
                print(f"oracle: {error}", file=sys.stderr)
                return 2
    if args.format == "json":
        print(json.dumps([asdict(result) | {"good": result.good} for result in results]))
    else:
        print(side_by_side(results))
    return 0 if all(result.good for result in results) else 1


def side_by_side(results: Sequence[Result]) -> str:
    """A table with a column for each result."""
    rows = [[each.name, *(str(getattr(result, each.name)) for result in results)] for each in fields(Result)[:-1]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
