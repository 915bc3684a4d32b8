"""The embedded collector under faults: what it acknowledged is in its files, and it goes on."""

import base64
import gzip
import hashlib
import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import orjson
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from jarvis_collector.layout import day_name, sidecar_path
from jarvis_collector.writer import Write, Writer
from tests import collectors
from tests.collectors import JSON, PROTOBUF, logs
from tests.loki_sink import loki_sink
from tests.oracle import Embedded, Ledger, Oracle, Process, canonical, judge, run, to_protobuf
from tests.otlp_sink import attributes_of, until
from tests.ports import free_port
from tests.wire import field, varint


@pytest.fixture
def start(tmp_path):
    """Starts collectors, and ends them with the test."""
    started = []

    def start_one(log_dir=None, **prepared):
        process = Process(Embedded(**prepared), tmp_path, log_dir)
        started.append(process)
        process.start()
        return process

    yield start_one
    for process in started:
        process.end(signal.SIGKILL)


def request(process, *args, **more):
    return collectors.request(process.http_port, *args, **more)


def health(process):
    return json.loads(request(process, "GET", "/healthz").content)


def lines_in(log_dir):
    found = []
    for path in sorted(log_dir.glob("jarvis-*.jsonl")):
        *lines, rest = path.read_bytes().split(b"\n")
        assert rest == b"", "a half line"
        found += [orjson.loads(line) for line in lines]
    return found


def messages_in(log_dir):
    return [line["message"] for line in lines_in(log_dir)]


# --- the oracle itself


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """What a collector without faults was sent, and its files."""
    oracle = Oracle(Embedded(), tmp_path_factory.mktemp("trial"))
    try:
        oracle.process.start()
        for sender in oracle._senders:
            for _ in range(20):
                assert sender.send()
        oracle.process.end()
        return oracle.ledger, lines_in(oracle.process.log_dir)
    finally:
        oracle.close()


def verdict(tmp_path, ledger, lines):
    content = b"".join(line if isinstance(line, bytes) else orjson.dumps(line) + b"\n" for line in lines)
    (tmp_path / "jarvis-2026-01-02.jsonl").write_bytes(content)
    return judge(ledger, tmp_path, fresh=True)


def faults_of(result):
    return {
        name: getattr(result, name)
        for name in ("lost", "changed", "foreign", "repeats", "unreadable")
        if getattr(result, name)
    }


def test_the_oracle_is_content_with_files_that_keep_everything(tmp_path, trial):
    ledger, lines = trial
    result = verdict(tmp_path, ledger, lines)
    assert result.good
    assert faults_of(result) == {}
    assert result.acknowledged == result.attempted == len(lines) > 1000


def test_the_oracle_finds_each_record_that_is_missing(tmp_path, trial):
    ledger, lines = trial
    result = verdict(tmp_path, ledger, lines[1:-2])
    assert (faults_of(result), result.good) == ({"lost": 3}, False)


def test_the_oracle_finds_a_record_that_nobody_sent(tmp_path, trial):
    ledger, lines = trial
    stranger = {**lines[0], "context": {"oracle.id": "nobody"}}
    nameless = {**lines[0], "context": {}}
    result = verdict(tmp_path, ledger, [*lines, stranger, nameless])
    assert (faults_of(result), result.good) == ({"foreign": 2}, False)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: {**line, "timestamp": "2000-01-01T00:00:00.000000Z"},
        lambda line: {**line, "message": "another"},
        lambda line: {**line, "context": {**line["context"], "more": 1}},
        lambda line: {**line, "logger": "another"},
        lambda line: {**line, "_meta": {**line["_meta"], "hostname": "another"}},
    ],
)
def test_the_oracle_finds_a_record_that_was_changed_and_counts_it_as_lost(tmp_path, trial, change):
    ledger, lines = trial
    exact = {"body", "timeUnixNano", "nanos"}
    place = next(at for at, line in enumerate(lines) if "message" in line and not exact & line["_meta"]["otlp"].keys())
    changed = [*lines[:place], change(lines[place]), *lines[place + 1 :]]
    result = verdict(tmp_path, ledger, changed)
    assert (faults_of(result), result.good) == ({"lost": 1, "changed": 1}, False)


def test_the_oracle_counts_repeats_and_lines_that_are_torn_or_glued(tmp_path, trial):
    ledger, lines = trial
    first, second = (orjson.dumps(line) for line in lines[:2])
    result = verdict(tmp_path, ledger, [*lines, lines[5], first[:50] + second + b"\n", b"\xff\n", first[:-9]])
    assert (faults_of(result), result.good) == ({"repeats": 1, "unreadable": 3}, False)


def test_to_the_oracle_what_means_the_same_in_otlp_is_the_same():
    ledger = Ledger()
    sent = ledger.request([f"same-{n}" for n in range(50)])
    # the protobuf library writes ids in base64, integers as texts and nothing that is empty
    again = MessageToDict(to_protobuf(sent), use_integers_for_enums=True)
    for record in again["resourceLogs"][0]["scopeLogs"][0]["logRecords"]:
        record["attributes"].reverse()
        for key in {"traceId", "spanId"} & record.keys():
            record[key] = base64.b64decode(record[key]).hex().upper()
        record["timeUnixNano"] = int(record.get("timeUnixNano", 0))
    assert dict(canonical(again)) == dict(canonical(sent))
    assert len(dict(canonical(sent))) == 50


# --- ends and stops under load


@pytest.mark.parametrize(("fault", "rounds"), [("kill", 10), ("term", 3), ("hang", 2)])
def test_whatever_happens_to_the_process_its_obligations_are_met(tmp_path, fault, rounds):
    result = run(Embedded(), tmp_path, fault=fault, rounds=rounds, seconds=0.4)
    assert result.good, result
    assert result.acknowledged > 100
    if fault == "term":
        assert result.repeats == 0


def test_a_record_that_was_written_and_sent_again_has_one_uid(tmp_path):
    oracle = Oracle(Embedded(), tmp_path, timeout=0.1)
    try:
        for _ in range(2):
            oracle.round("hang", 0.5)
        assert oracle.result().good
    finally:
        oracle.close()
    uids = {}
    for line in lines_in(tmp_path / "logs"):
        uids.setdefault(line["context"]["oracle.id"], set()).add(line["_meta"]["uid"])
    assert all(len(each) == 1 for each in uids.values())


# --- the promise of the 2xx

SYNC = """
import os, time
from pathlib import Path
real_sync, home = os.fdatasync, Path(os.environ["SYNC_HOME"])
def fdatasync(fd):
    if (home / "fail").exists():
        raise OSError(5, "Input/output error")
    while (home / "hold").exists():
        time.sleep(0.01)
    real_sync(fd)
os.fdatasync = fdatasync
"""


def test_an_answer_comes_only_after_the_sync(start, tmp_path):
    process = start(prelude=SYNC, environ={"SYNC_HOME": str(tmp_path)})
    (tmp_path / "hold").touch()
    body = logs("held")
    head = f"POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", process.http_port)) as connection:
        connection.sendall(head.encode() + body)
        until(lambda: messages_in(process.log_dir) == ["held"])
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert health(process)["status"] == "ok"
        (tmp_path / "hold").unlink()
        connection.settimeout(20)
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_a_sync_that_fails_is_503_and_what_is_sent_again_is_in_the_file_once(start, tmp_path):
    process = start(prelude=SYNC, environ={"SYNC_HOME": str(tmp_path)})
    assert request(process, body=logs("before")).status == 200
    (tmp_path / "fail").touch()
    response = request(process, body=logs("again"))
    assert (response.status, response.headers["Retry-After"]) == (503, "2")
    assert (health(process)["status"], messages_in(process.log_dir)) == ("degraded", ["before"])
    (tmp_path / "fail").unlink()
    assert request(process, body=logs("again")).status == 200
    assert (health(process)["status"], messages_in(process.log_dir)) == ("ok", ["before", "again"])


# --- disks


@contextmanager
def mounted(target, *options):
    done = subprocess.run(["mount", *options, target], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here (it needs root): {done.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)


@pytest.fixture
def small_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as disk:
        yield disk


def test_a_disk_that_is_full_and_freed_again_costs_no_obligation(tmp_path, small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(3_500_000))
    oracle = Oracle(Embedded(), tmp_path, log_dir=small_disk / "logs")
    process = oracle.process
    try:
        while not oracle.ledger.refused:
            oracle.round("none", 0.3)
        response = request(process, body=logs("x" * 500_000))
        assert (response.status, response.headers["Retry-After"]) == (503, "2")
        assert health(process)["status"] == "degraded"
        assert "No space left on device" in health(process)["reason"]
        assert lines_in(process.log_dir)
        filler.unlink()
        assert oracle.fresh()
        assert health(process)["status"] == "ok"
        result = oracle.result()
    finally:
        oracle.close()
    assert result.good, result


def test_a_collector_that_is_started_on_a_full_disk_answers_503_and_goes_on_when_there_is_room(start, small_disk):
    process = start(small_disk / "logs")
    assert request(process, body=logs("before")).status == 200
    process.end(signal.SIGKILL)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    process.start()
    response = request(process, body=logs("x" * 500_000))
    assert (response.status, response.headers["Retry-After"]) == (503, "2")
    filler.unlink()
    assert request(process, body=logs("after")).status == 200
    assert messages_in(process.log_dir) == ["before", "after"]


def test_a_disk_that_becomes_read_only_is_503_and_its_return_heals_it(start, tmp_path):
    process = start(tmp_path / "disk")
    assert request(process, body=logs("before")).status == 200
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "ro", "tmpfs"):
        response = request(process, body=logs("lost?"))
        assert (response.status, response.headers["Retry-After"]) == (503, "2")
        assert "Read-only file system" in health(process)["reason"]
    assert request(process, body=logs("after")).status == 200
    assert health(process)["status"] == "ok"
    assert messages_in(process.log_dir) == ["before", "after"]


def test_a_read_only_directory_at_the_start_is_told_in_one_line(tmp_path):
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "ro", "tmpfs"):
        done = collector("--dir", tmp_path / "disk", "--port", 0)
    assert done.returncode == 2
    assert done.stderr == f"jarvis collector: cannot write in {tmp_path}/disk: Read-only file system\n"


def collector(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "jarvis_otel.cli.main", "collector", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- one directory, two collectors


def test_a_collector_that_hangs_still_holds_its_directory_by_whatever_name_and_a_dead_one_does_not(start, tmp_path):
    process = start()
    (tmp_path / "alias").symlink_to(process.log_dir)
    process.send(signal.SIGSTOP)
    for name in (process.log_dir, tmp_path / "alias"):
        done = collector("--dir", name, "--port", 0)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"another collector (pid {process.pid})" in done.stderr
    process.end(signal.SIGKILL)
    assert request(start(process.log_dir), body=logs("x")).status == 200


# --- clocks

DAY = 86_400
EPOCH = 1_767_355_200  # 2026-01-02T12:00:00Z


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3 * DAY, 3 * DAY) | st.integers(-70, 70).map(lambda n: n * 600), max_size=12))
def test_however_the_clock_jumps_each_line_is_in_one_file_and_a_closed_day_stays_as_it_was(tmp_path_factory, jumps):
    log_dir = tmp_path_factory.mktemp("clock")
    now = EPOCH
    with _writer(log_dir, lambda: now * 1_000_000_000) as write:
        closed = {}
        for number, jump in enumerate([0, *jumps]):
            now += jump
            write(f'{{"timestamp":"{_stamp(now)}","n":{number}}}\n'.encode())
            *before, current = sorted(log_dir.glob("jarvis-*.jsonl"))
            assert number in _numbers(current)
            assert day_name(current.name).day >= datetime.fromtimestamp(now, UTC).date()
            for path in before:
                assert closed.setdefault(path, path.read_bytes()) == path.read_bytes()
    assert sorted(n for path in log_dir.glob("jarvis-*.jsonl") for n in _numbers(path)) == list(range(len(jumps) + 1))
    for path in log_dir.glob("jarvis-*.jsonl"):
        stamps = [json.loads(line)["timestamp"] for line in path.read_bytes().split(b"\n")[:-1]]
        sidecar = json.loads(sidecar_path(path).read_bytes())
        assert sidecar == {"size": path.stat().st_size, "earliest": min(stamps), "latest": max(stamps)}


@contextmanager
def _writer(log_dir, clock):
    import queue

    fates = queue.SimpleQueue()
    writer = Writer(log_dir, fates.put, clock)
    writer.start()

    def write(line):
        writer.submit(Write("jarvis", [line], lambda _: None))
        (settled,) = fates.get(timeout=20)
        assert settled.error is None

    try:
        yield write
    finally:
        writer.stop()


def _stamp(seconds):
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S.000000Z}"


def _numbers(path):
    return [json.loads(line)["n"] for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.mark.parametrize("zone", ["AAA-13BBB-14,J1/0,J365/24", "AAA+12BBB+11,J1/0,J365/24"])
def test_the_day_and_the_times_are_utc_whatever_the_zone_of_the_process(start, zone):
    before = datetime.now(UTC)
    process = start(environ={"TZ": zone})
    assert request(process, body=logs("x")).status == 200
    days = {before.date(), datetime.now(UTC).date()}
    (path,) = process.log_dir.glob("jarvis-*.jsonl")
    assert day_name(path.name).day in days
    (line,) = lines_in(process.log_dir)
    assert before <= datetime.fromisoformat(line["timestamp"]) <= datetime.now(UTC)


# --- what clients may do

CROWD = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
head = b"POST /v1/logs HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Type: application/json\\r\\n"
kinds = {"idle": b"", "head": head, "body": head + b"Content-Length: 100\\r\\n\\r\\n{"}
crowd = []
for _ in range(int(sys.argv[2])):
    crowd.append(socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=60))
    crowd[-1].sendall(kinds[sys.argv[3]])
print("there", flush=True)
sys.stdin.read()
"""


@contextmanager
def crowd(process, count, kind):
    """So many connections that send so much and then nothing, from a process of their own."""
    with subprocess.Popen(
        [sys.executable, "-c", CROWD, str(process.http_port), str(count), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as there:
        assert there.stdout.readline() == b"there\n"
        yield


@pytest.mark.parametrize(("kind", "count"), [("idle", 1000), ("head", 1000), ("body", 400)])
def test_others_are_served_beside_a_crowd_of_connections_that_do_nothing(start, kind, count):
    process = start()
    with crowd(process, count, kind):
        for number in range(20):
            assert request(process, body=logs(f"m{number}")).status == 200
    assert messages_in(process.log_dir) == [f"m{number}" for number in range(20)]


FEW = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"


def test_a_collector_that_runs_out_of_descriptors_recovers(start):
    process = start(prelude=FEW)
    assert request(process, body=logs("before")).status == 200
    with crowd(process, 100, "body"):
        pass
    until(lambda: request(process, body=logs("after")).status == 200)
    assert health(process)["status"] == "ok"
    assert set(messages_in(process.log_dir)) == {"before", "after"}


def peak_memory(process):
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def deep_protobuf(depth):
    heads, size = [], 0
    for _ in range(depth):
        for number in (1, 5):
            heads.append(varint(number << 3 | 2) + varint(size))
            size += len(heads[-1])
    return b"".join(reversed(heads))


POISON = {
    JSON: {
        "invalid UTF-8": b'{"traceId":"xyz","body":{"stringValue":"\xff\xfe"}}',
        "200,000 attributes": b'{"attributes":[' + b",".join(b'{"key":"%d"}' % n for n in range(200_000)) + b"]}",
        "100,000 deep": b'{"body":' + b'{"arrayValue":{"values":[' * 100_000 + b"]}}" * 100_000 + b"}",
    },
    PROTOBUF: {
        "invalid UTF-8": field(5, field(1, b"\xff\xfe")),
        "200,000 attributes": b"".join(field(6, field(1, b"%d" % n)) for n in range(200_000)),
        "100,000 deep": field(5, deep_protobuf(100_000)),
        "70 deep": field(5, deep_protobuf(70)),
    },
}


@pytest.mark.parametrize("content_type", [JSON, PROTOBUF])
def test_poison_costs_itself_alone_and_is_told(start, content_type):
    process = start()
    for what, bad in POISON[content_type].items():
        if content_type == JSON:
            body = logs("before", "after").replace(b"},{", b"}," + bad + b",{")
        else:
            before, after = (field(2, field(5, field(1, text))) for text in (b"before", b"after"))
            body = field(1, field(2, before + field(2, bad) + after))
        response = request(process, body=body, content_type=content_type)
        assert (what, response.status, rejected(response.content, content_type)) == (what, 200, 1)
    assert messages_in(process.log_dir) == ["before", "after"] * len(POISON[content_type])
    assert health(process)["status"] == "ok"


def rejected(answer, content_type):
    if content_type == JSON:
        return int(json.loads(answer)["partialSuccess"]["rejectedLogRecords"])
    return ExportLogsServiceResponse.FromString(answer).partial_success.rejected_log_records


GZIP = {"Content_Encoding": "gzip"}
MIB = 1 << 20


def test_many_bombs_at_once_cost_no_more_memory_than_a_few(start):
    process = start()
    bomb = gzip.compress(bytes(80 * MIB), 9)
    request(process, body=logs("x"))
    before = peak_memory(process)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: request(process, body=bomb, **GZIP).status, range(16)))
    assert answers == [413] * 16
    assert peak_memory(process) - before < 150 * MIB
    assert request(process, body=logs("x")).status == 200


def bomb_of_records():
    return b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[' + b"{}," * 600_000 + b"{}]}]}]}"


def bomb_of_one_resource_in_many_lines():
    value = b'{"attributes":[{"key":"a","value":{"stringValue":"' + b"x" * MIB + b'"}}]}'
    records = b"{}," * 500 + b"{}"
    return b'{"resourceLogs":[{"resource":' + value + b',"scopeLogs":[{"logRecords":[' + records + b"]}]}]}"


def bomb_of_one_resource_in_many_protobuf_lines():
    resource = field(1, field(1, field(1, b"a") + field(2, field(1, b"x" * MIB))))
    return field(1, resource + field(2, field(2, b"") * 500))


@pytest.mark.parametrize(
    ("content_type", "bomb"),
    [
        (JSON, bomb_of_records),
        (JSON, bomb_of_one_resource_in_many_lines),
        (PROTOBUF, bomb_of_one_resource_in_many_protobuf_lines),
    ],
)
def test_a_small_body_of_more_records_or_longer_lines_than_anyone_sends_is_refused(start, content_type, bomb):
    # so that a collector that fails here fails alone, and not the machine
    process = start(prelude="import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))")
    request(process, body=logs("x"))
    before = peak_memory(process)
    assert request(process, body=gzip.compress(bomb(), 6), content_type=content_type, **GZIP).status == 413
    assert peak_memory(process) - before < 300 * MIB
    assert messages_in(process.log_dir) == ["x"]


def test_a_body_of_very_many_empty_gzip_members_does_not_hold_up_others(start):
    process = start()
    assert request(process, body=gzip.compress(b"") * 500_000, **GZIP).status == 400
    assert request(process, body=logs("x")).status == 200


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/json, text/html", "x" * 5000]
)
def test_an_unknown_content_type_is_415_before_the_body_is_read(start, content_type):
    process = start()
    head = f"POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: 99\r\n\r\n"
    with socket.create_connection(("127.0.0.1", process.http_port), timeout=20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 415"


# --- who may send


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_at_an_address_that_others_reach_only_who_shows_the_token_is_heard(start, way):
    digest = hashlib.sha256(b"secret").hexdigest()
    process = start(environ={"JARVIS_COLLECTOR_HOST": "0.0.0.0", "JARVIS_COLLECTOR_TOKENS": f"sha256:{digest}"})
    send = {"http": over_http, "grpc": over_grpc}[way]
    assert [send(process, header) for header in (None, "Bearer wrong", "Basic secret", "Bearer secret")] == [
        False,
        False,
        False,
        True,
    ]
    assert messages_in(process.log_dir) == ["Bearer secret"]
    assert b"secret" not in process.said.read_bytes()


def over_http(process, header):
    headers = {} if header is None else {"Authorization": header}
    status = request(process, body=logs(str(header)), **headers).status
    assert status in (200, 401)
    return status == 200


def over_grpc(process, header):
    message = to_protobuf(orjson.loads(logs(str(header)))).SerializeToString()
    metadata = [] if header is None else [("authorization", header)]
    with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.logs.v1.LogsService/Export")
        try:
            export(message, metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise
    return True


# --- names of services

TRICKS = [
    "../../etc/x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/../../b",
    "x" * 5000,
    "nul\0byte",
    "CON",
    "con",
    "Con",
    "aux.jsonl",
    "new\nline",
    "jarvis-2026-01-02.jsonl",
    "-rf",
    "\u202egnp",
    "\uff45tc",
    "ß",
    "SS",
]


def test_whatever_services_are_called_by_their_clients_nothing_is_written_outside(start, tmp_path):
    process = start(environ={"JARVIS_COLLECTOR_COMPONENTS": "true"})
    before = {path for path in tmp_path.rglob("*") if process.log_dir not in path.parents}
    for name in TRICKS:
        resource = {"attributes": [{"key": "service.name", "value": {"stringValue": name}}]}
        record = {"body": {"stringValue": name}}
        scopes = [{"logRecords": [record]}]
        body = orjson.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": scopes}]})
        assert request(process, body=body).status == 200
    assert process.end() == 0
    assert len(lines_in(process.log_dir)) == len(TRICKS)
    written = list((process.log_dir / "components").glob("*.jsonl"))
    found = [json.loads(line) for path in written for line in path.read_bytes().split(b"\n")[:-1]]
    assert sorted(line.get("message", "") for line in found) == sorted(TRICKS)
    # names that differ in case only have files that differ otherwise
    assert len({path.name.lower() for path in written}) == len(TRICKS)
    assert {path for path in tmp_path.rglob("*") if process.log_dir not in path.parents} == before


# --- beside what looks after the files


def old_lines(day, count):
    return b"".join(
        f'{{"timestamp":"{day}T00:00:00.{n:06d}Z","level":"INFO","message":"old {n}","service":"s","active_flags":[],'
        f'"context":{{}},"_meta":{{"uid":"{day}-{n}"}}}}\n'.encode()
        for n in range(count)
    )


def test_who_follows_the_day_misses_nothing_while_old_days_are_archived_and_purged(tmp_path):
    log_dir = tmp_path / "logs"
    log_dir.mkdir()
    today = datetime.now(UTC).date()
    for ago in (9, 10, 40):
        day = today - timedelta(days=ago)
        (log_dir / f"jarvis-{day}.jsonl").write_bytes(old_lines(day, 20_000))
    oracle = Oracle(Embedded(), tmp_path)
    oracle.process.start()
    oracle.process.end()
    paths = [log_dir / f"jarvis-{today + timedelta(days=n)}.jsonl" for n in (0, 1)]
    paths[0].touch()
    with (tmp_path / "tail").open("wb") as out:
        tail = subprocess.Popen(
            ["tail", "-q", "-s", "0.05", "-n", "+1", "-F", *paths], stdout=out, stderr=subprocess.DEVNULL
        )
    try:
        for fault in ("kill", "none", "term"):
            oracle.round(fault, 0.4)
        fresh = oracle.fresh()
        oracle.process.end()
        written = b"".join(path.read_bytes() for path in paths if path.exists())
        until(lambda: (tmp_path / "tail").stat().st_size >= len(written))
        assert (tmp_path / "tail").read_bytes() == written
    finally:
        tail.terminate()
        tail.wait()
        oracle.close()
    for ago in (9, 10):
        day = today - timedelta(days=ago)
        archived = log_dir / "archive" / f"{day:%Y-%m}" / f"jarvis-{day}.jsonl.gz"
        assert gzip.decompress(archived.read_bytes()) == old_lines(day, 20_000)
        assert not (log_dir / f"jarvis-{day}.jsonl").exists()
    assert not list(log_dir.rglob(f"*{today - timedelta(days=40)}*"))
    result = judge(oracle.ledger, log_dir, fresh=fresh)
    # the archived days are not the oracle's, and not among the plain ones any more
    assert result.good, result


def test_what_came_while_loki_was_down_and_the_collector_was_killed_reaches_loki_in_order(tmp_path):
    port = free_port()
    oracle = Oracle(Embedded(environ={"JARVIS_LOKI_URL": f"http://127.0.0.1:{port}"}), tmp_path)
    try:
        for fault in ("none", "kill", "none"):
            oracle.round(fault, 0.3)
        assert oracle.ledger.acknowledged
        with loki_sink(port) as sink:
            until(lambda: oracle.ledger.acknowledged <= ids_in(sink), 60)
            oracle.round("kill", 0.3)
            assert oracle.fresh()
            until(lambda: oracle.ledger.acknowledged <= ids_in(sink), 60)
            oracle.process.end()
            reached = [attributes_of(record).get("oracle.id") for record in list(sink.taken)]
    finally:
        oracle.close()
    result = judge(oracle.ledger, oracle.process.log_dir, fresh=True)
    assert result.good, result
    in_files = [line["context"]["oracle.id"] for line in lines_in(oracle.process.log_dir)]
    assert list(dict.fromkeys(reached)) == list(dict.fromkeys(in_files))


def ids_in(sink):
    return {attributes_of(record).get("oracle.id") for record in list(sink.taken)}
