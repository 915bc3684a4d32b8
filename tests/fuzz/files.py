"""Files that a crash may have torn, a disk may have damaged, or somebody may have edited."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from pathlib import Path

import orjson

from jarvis_collector import gzip_blocks
from jarvis_collector.checkpoint import Checkpoint, Mark, load, save
from jarvis_collector.layout import component_path, day_name, index_path
from jarvis_collector.loki import Encoder, push_body
from jarvis_collector.loki import refusal as refusal_of
from jarvis_collector.long_lines import LineError, short_lines
from jarvis_collector.record import timestamp_of, timestamp_range
from jarvis_collector.sidecar import range_of, read_sidecar, write_sidecar
from jarvis_collector.torn import end_torn_line
from jarvis_otel.admin.audit import GENESIS, AuditEntry, entries, line_hash, verify
from jarvis_otel.admin.states import announcement, change_words
from jarvis_otel.alerts.changes import AuditFeed, alert_of
from jarvis_otel.alerts.state import read_state, read_status
from jarvis_otel.query.blocks import LogFile
from jarvis_otel.query.index import BlockIndex
from jarvis_otel.query.index_build import index_file
from jarvis_otel.query.log_query import LogQuery
from jarvis_otel.spool import adopt
from jarvis_otel.telegram.polling import Bookmark
from tests.fuzz.properties import DATA, Family, as_text, scratch

FAMILY = Family("files")

DAY = "2026-01-18"
LINES = [
    orjson.dumps({"timestamp": f"2026-01-18T00:00:0{n}.000000Z", "level": level, "message": text, "service": "s", "active_flags": ["A"], "context": {"k": text}, "_meta": {"uid": f"u{n}"}})
    for n, (level, text) in enumerate([("INFO", "one"), ("ERROR", 'tw"o\\'), ("WARNING", "three é"), ("DEBUG", "")])
]  # fmt: skip
OTEL = (DATA / "otelcol" / "jarvis-2026-11-26.jsonl").read_bytes().splitlines()[0]
JSON = b'{"resourceLogs":[ "scopeLogs":[ "logRecords":[ "resource":{ "scope":{ "timestamp":"2026-01-18T00:00:00.000000Z" "level":"INFO" "message":" "service":" "context":{ "_meta":{ "active_flags":[ "uid":" { } [ ] , " \\" \\u005c \\ud800 1e400 null true'.split()  # fmt: skip


def written(name: str, data: bytes) -> Path:
    path = scratch() / name
    path.write_bytes(data)
    return path


def archive(*parts: bytes) -> bytes:
    made = b""
    for part in parts:
        member = io.BytesIO()
        gzip_blocks.write([part], member)
        made += member.getvalue()
    return made


ARCHIVE = archive(*(line + b"\n" for line in LINES))


@FAMILY.add(seeds=[ARCHIVE, ARCHIVE + gzip.compress(LINES[0] + b"\n"), gzip.compress(b"x" * 999), b""], words=[b"\x1f\x8b\x08\x04", b"JL", b"\x1f\x8b\x08\x00", ARCHIVE[:80], b"\xff" * 8])  # fmt: skip
def archived_day(data: bytes) -> None:
    """An archive, whatever was damaged, is read to its end; its blocks lie within it and do not overlap."""
    path = written(f"jarvis-{DAY}.jsonl.gz", data)
    problems: list[str] = []
    content = b"".join(gzip_blocks.read(path, None, problems.append))
    assert len(content) <= 1100 * len(data) + 100
    end = 0
    for block in gzip_blocks.blocks(path):
        assert end <= block.offset
        assert block.size > 0
        end = block.offset + block.size
        assert end <= len(data)
    try:
        whole = gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return
    assert problems or content == whole


@FAMILY.add(
    seeds=[
        '{"size":5,"earliest":"2026-01-18T00:00:00.000000Z","latest":"2026-01-18T00:00:00.000000Z"}',
        '{"size":1e308,"earliest":"","latest":""}',
        "[]",
    ],
    words=JSON,
)
def sidecar(data: bytes) -> None:
    """A sidecar tells a size and a range, or nothing."""
    path = scratch() / f"jarvis-{DAY}.jsonl"
    written(f"jarvis-{DAY}.meta.json", data)
    told = read_sidecar(path)
    if told is not None:
        size, range_ = told
        write_sidecar(path, size if abs(size) < 2**63 else 0, range_)
        assert (read_sidecar(path) or (0, None))[1] == range_


@FAMILY.add(seeds=['{"since":"2026-01-18","files":{"2026-01-18":[5,"abc",true]}}', '{"since":"20260118","files":{"2026-W03-7":["5",[],{}]}}'], words=[*JSON, b'"since":"', b'"files":{', b'2026-01-18":[5,"",false]'])  # fmt: skip
def checkpoint(data: bytes) -> None:
    """A checkpoint is read or refused with a ValueError; what was read is written as the same."""
    path = written("loki.json", data)
    try:
        read = load(path)
    except ValueError:
        return
    assert read is not None
    if all(mark.offset < 2**63 for mark in read.marks.values()):
        save(path, read)
        assert load(path) == read == Checkpoint(read.since, dict(read.marks))
        assert all(isinstance(mark, Mark) for mark in read.marks.values())


@FAMILY.add(seeds=[b"\n".join(LINES), b"\n".join(LINES)[:-9], LINES[0] + b'\n{"a"', b"\0" * 9], words=JSON)
def torn_file(data: bytes) -> None:
    """A file after a crash keeps all its whole lines, and loses at most what follows its last newline."""
    path = written("torn.jsonl", data)
    for _ in range(2):
        fd = os.open(path, os.O_RDWR)
        try:
            end_torn_line(fd)
        finally:
            os.close(fd)
        after = path.read_bytes()
        assert after in (data, data + b"\n", data[: data.rfind(b"\n") + 1])
        assert after.endswith(b"\n") or not after
        data = after


LONG = orjson.dumps(
    {
        "resourceLogs": [
            {
                "resource": {"attributes": []},
                "scopeLogs": [
                    {"scope": {"name": "a"}, "logRecords": [{"body": {"stringValue": "}]"}}, {}]},
                    {"scope": {}, "logRecords": []},
                ],
            }
        ]
    }
)


@FAMILY.add(seeds=[b"\x05" + LONG, b"\x01" + LONG[:-7], b"\x40" + OTEL, b"\x03" + LINES[1]], words=JSON)
def long_line(data: bytes) -> None:
    """The short lines of a long one are the same in whatever pieces it comes, and hold its records."""
    size, line = (data[:1] or b"\1")[0] or 1, data[1:]
    try:
        content = orjson.loads(line)
        expected = _records(content)
        line = orjson.dumps(content)  # no key twice
    except (ValueError, LookupError, TypeError):
        expected = None
    outcomes: list[list[bytes] | None] = []
    for step in (size, len(line) or 1):
        try:
            outcomes.append(list(short_lines(line[at : at + step] for at in range(0, len(line), step))))
        except LineError:
            outcomes.append(None)
    # of what is no request the short lines are refused later, whatever they are
    if expected is not None:
        assert outcomes[0] == outcomes[1]
        assert outcomes[0] is not None
        assert [record for short in outcomes[0] for record in _records(orjson.loads(short))] == expected


def _records(content: object) -> list[object]:
    """The records of a request that is one as the Collector writes it.

    Raises:
        TypeError, LookupError: It is none.
    """
    records = []
    for group in _listed(content, "resourceLogs", {"resourceLogs"}):
        for scope in _listed(group, "scopeLogs", {"resource", "scopeLogs", "schemaUrl"}):
            listed = _listed(scope, "logRecords", {"scope", "logRecords", "schemaUrl"})
            if not all(isinstance(record, dict) for record in listed):
                raise TypeError
            records += listed
    return records


def _listed(owner: object, key: str, known: set[str]) -> list[object]:
    if not isinstance(owner, dict) or not owner.keys() <= known or not isinstance(owner[key], list):
        raise TypeError
    for name, value in owner.items():
        if name != key and not isinstance(value, dict if name in ("resource", "scope") else str):
            raise TypeError
    return owner[key]


@FAMILY.add(
    seeds=[*LINES, OTEL, LONG, orjson.dumps(orjson.loads(LINES[0]) | {"_meta": {"otlp": {"attributes": 5}}})],
    words=JSON,
)
def line_to_loki(data: bytes) -> None:
    """Any line of a day file becomes records for Loki, or is refused with its own error; the push is JSON."""
    encoder = Encoder(1_500_000)
    try:
        made = encoder.entries(data)
    except LineError:
        return
    if made:
        groups = orjson.loads(push_body(made))["resourceLogs"]
        assert sum(len(scope["logRecords"]) for group in groups for scope in group["scopeLogs"]) == len(made)


@FAMILY.add(
    seeds=["entry too far behind, entry timestamp is: 2026-01-18T00:00:00Z, oldest acceptable timestamp is: 2026-01-17T00:00:00Z", "maximum line size exceeded 256KB", "user 'fake', total ignored: 2 out of 3 for stream: {a=\"b\"}", "\x1b[31m"],
    words=["entry", "too", "far", "behind,", "timestamp", "is:", "2026-01-18T00:00:00Z", "oldest", "acceptable", "total", "ignored:", "2", "out", "of", "3", "for", "stream:"],
)  # fmt: skip
def loki_refusal(data: bytes) -> None:
    """Whatever Loki says of a push is understood as a refusal of some of it, at least one record."""
    made = Encoder(1_500_000).entries(LINES[0]) * 3
    told = refusal_of(as_text(data), made)
    assert told is not None
    assert repr(told)


SEGMENT = (
    b"jarvis-spool 1 settled 00000000000000000064\n".ljust(64, b"\n")
    + b'1\t{"scope":{},"logRecords":[\t{"body":{"stringValue":"a"}}\n2\t{"scope":{},"logRecords":[\t{"a":1}\n'
)


@FAMILY.add(seeds=[SEGMENT, SEGMENT[:-5], bytes(64) + SEGMENT[64:], SEGMENT + b"9" * 5000 + b"\t{}\t{}\n"], words=[b"\t", b"\n", b"\0", b'{"scope":{},"logRecords":[', b"{}", b"[]", b"jarvis-spool 1 settled ", b"00000000000000000064", b"99999999999999999999"])  # fmt: skip
def spool_segment(data: bytes) -> None:
    """What a dead process left is taken over whole: each record is one that stands there, and nothing stays behind."""
    room = scratch() / "spools"
    home = room / "1-abcd"
    home.mkdir(parents=True, exist_ok=True)
    (home / "lock").touch()
    (home / "resource.json").write_bytes(data[-64:])
    (home / "00000001-routine.seg").write_bytes(data)
    for orphan in adopt(room):
        with orphan:
            while batch := orphan.take(3):
                for number, scope, record, _, _ in batch:
                    assert isinstance(orjson.loads(record), dict)
                    assert isinstance(orjson.loads(scope + b"]}"), dict)
                    assert record in data
                    assert number >= 0
                orphan.release(batch)
            assert len(orphan) == 0
            orphan.remove()
    assert list(room.iterdir()) == []


INDEXED = written(f"jarvis-{DAY}.jsonl", b"\n".join(LINES) + b"\n")
index_file(INDEXED, block_bytes=150)


@FAMILY.add(seeds=[index_path(INDEXED).read_bytes()], words=[b"\0" * 8, b"\xff" * 8])
def index(data: bytes) -> None:
    """An index that is damaged is none, and the answers stay the same."""
    day = scratch() / "indexed"
    day.mkdir(exist_ok=True)
    path = day / INDEXED.name
    path.write_bytes(b"\n".join(LINES) + b"\n")
    index_path(path).parent.mkdir(exist_ok=True)
    index_path(path).write_bytes(data)
    with LogFile(path) as file:
        found = BlockIndex.load(path, file.fd, counts=True)
        assert found is None or found.entries
    assert len(list(LogQuery(day).iterate())) == len(LINES)


@FAMILY.add(seeds=[b"\n".join(LINES), OTEL + b"\n" + LINES[0], LINES[0][:50] + LINES[1] + b"\n" + LINES[2], LINES[0] + b"\r\n\0\n[]\n5", b'{"timestamp":"2026-01-18T00:00:00Z","level":5,"message":{},"context":[],"active_flags":{"a":1},"error":"x","_meta":[]}'], words=[*JSON, b"\n"])  # fmt: skip
def day_file(data: bytes) -> None:
    """A day file is read to its end, whatever its lines: what is found is what parsing each line finds."""
    day = scratch() / "day"
    day.mkdir(exist_ok=True)
    (day / f"jarvis-{DAY}.jsonl").write_bytes(data)
    query = LogQuery(day)
    found = list(query.iterate())
    known = found
    if b"resourceLogs" not in data:
        known = _parsed(data)
        assert found == _each_once(known)
    for asked in (
        {"level": "ERROR"},
        {"flag": "A"},
        {"text": "one"},
        {"where": "context.k~=o or message=one"},
        {"correlation_id": "u1"},
        {"user_id": "x"},
    ):
        matching = query.search(**asked)
        assert b"resourceLogs" in data or all(record in known for record in matching)
    for by in ("error.type", "service", "message", "flag"):
        query.get_error_summary(group_by=by)
    query.trace("u1")
    query.flag_rates()
    told = range_of(data)
    assert told is None or told[0] <= told[1]
    assert timestamp_of(data) is None or timestamp_range(data + b"\n") is not None or b"\n" in data


def _parsed(data: bytes) -> list[dict]:
    from jarvis_otel.query.scan import parsed

    lines = data.split(b"\n")
    last = lines.pop()
    try:
        orjson.loads(last)
        lines.append(last)
    except ValueError:
        pass
    read = [parsed(line, lambda _: None) for line in lines if line]
    return [found.record for found in read if found is not None]


def _each_once(records: list[dict]) -> list[dict]:
    seen: set[str] = set()
    once = []
    for record in records:
        meta = record.get("_meta")
        uid = meta.get("uid") if isinstance(meta, dict) else None
        if not isinstance(uid, str) or uid not in seen:
            once.append(record)
        if isinstance(uid, str):
            seen.add(uid)
    return once


def audit_lines() -> list[bytes]:
    lines, prev = [], GENESIS
    for revision, (outcome, new) in enumerate(
        [
            ("applied", {"state": "on", "percentage": 5}),
            ("written", {"enabled": True}),
            ("requested", {"state": "on", "expires_at": 5e9}),
        ],
        1,
    ):
        entry = AuditEntry(
            "2026-01-18T00:00:00Z", "ann", "cli", "enable", "A", None, new, "why", outcome, revision, prev=prev
        )
        lines.append(entry.to_line())
        prev = line_hash(lines[-1])
    return lines


AUDIT = audit_lines()


@FAMILY.add(
    seeds=[b"".join(AUDIT), AUDIT[0].replace(b'"revision":1', b'"revision":"x"') * 2, AUDIT[0].replace(b'{"state":"on","percentage":5}', b'{"state":"on","expires_at":1e300}'), AUDIT[0].replace(b'"who":"ann"', b'"who":["\\u001b"]')],
    words=b'"at":" "who":" "via":" "action":" "flag":" "old": "new": "reason":" "outcome":"applied" "outcome":"written" "outcome":"requested" "outcome":"refused" "revision": "detail":" "prev":" "request":" {"state":"on"} "percentage": "expires_at": "variant": null 1e300 { } [ ] , " \n'.split(b" "),
)  # fmt: skip
def audit(data: bytes) -> None:
    """An audit that was edited or torn is told of, never a fault of ours, and every entry can be shown and told."""
    lines = data.splitlines(keepends=True)
    list(verify(lines))
    found = list(entries(lines))
    for entry in found:
        assert change_words(entry) is not None
        assert len(announcement(entry)) == 3
        alert_of(entry)
        assert hash(entry.id) is not None
    path = written("audit.jsonl", data)
    feed = AuditFeed(path)
    mark = feed.end()
    assert feed.after(mark).entries == []
    path.write_bytes(data + AUDIT[0])
    AuditFeed(path).after(mark)


@FAMILY.add(
    seeds=["12", "00000000000000000012\n", "-5", "1_0", "9" * 5000, '{"mark": {}}'],
    words=["0", "1", "-", "_", "\n", "{", "}", '"', "mark", "hash"],
)
def small_state(data: bytes) -> None:
    """The small files of state of the bot and of the alerts tell something, or nothing."""
    assert Bookmark(written("bookmark", data)).read() is not None
    for read, name in ((read_state, "state.json"), (read_status, "alerts/status.json")):
        path = scratch() / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        told = read(scratch())
        assert told is None or json.dumps(dict(told)) is not None


@FAMILY.add(
    seeds=["jarvis-2026-01-18.jsonl", "jarvis-2026-02-30.jsonl.gz", "../x-2026-01-18.jsonl", "\n-2026-01-18.jsonl"],
    words=["jarvis", "-", "2026-01-18", ".jsonl", ".gz", "..", "/", "\\", "\x00"],
)
def file_name(data: bytes) -> None:
    """A name is that of a day file or not; no service's name leads out of its directory."""
    text = as_text(data)
    named = day_name(text)
    assert named is None or text.startswith(named.stream)
    path = component_path(Path("logs"), text, DAY)
    assert path.parent == Path("logs/components")
    assert re.fullmatch(r"[a-z0-9._-]+", path.name)
