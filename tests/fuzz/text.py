"""Texts on their way to people, terminals, spreadsheets, shells and other processes."""

from __future__ import annotations

import csv
import json
import logging
import re
import shlex
from collections.abc import Mapping

from opentelemetry import baggage

from jarvis_collector.metrics import Metric, render
from jarvis_otel.context import received_correlation
from jarvis_otel.formatters import HumanFormatter, JSONFormatter
from jarvis_otel.propagation import inject_headers, received_context
from jarvis_otel.query.log_query import Trace
from jarvis_otel.query.render import csv_rows, human_record, json_text, local_time
from jarvis_otel.query.reproduce import reproduce
from jarvis_otel.query.scan import parsed
from jarvis_otel.query.timeline import timeline
from jarvis_otel.redaction import Redactor
from jarvis_otel.secrets import find_secrets, kind_of_secret
from jarvis_otel.telegram.secrecy import without_token
from jarvis_otel.telegram.texts import safe
from jarvis_otel.terminal import Paint, printable, table
from tests.fuzz.properties import Family, as_json, as_text

FAMILY = Family("text")

REDACTOR = Redactor()
SECRETS = (
    ("123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0", "AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0"),
    ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2, "a1B2c3D4e5F6g7H8i9J0"),
    ("Bearer 9f8e7d6c5b4a39281706.fedcba", "9f8e7d6c5b4a39281706.fedcba"),
    ("postgres://bob:Tr0ub4dor-and-3@db.example/x", "Tr0ub4dor-and-3"),
    ("password=Tr0ub4dor-and-3", "Tr0ub4dor-and-3"),
    ('{"api_key": "Tr0ub4dor-and-3"}', "Tr0ub4dor-and-3"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P", "dozjgNryP4J3jVmNHl0w5N"),
    ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw\nggSjAgEAAoIBAQC7\n-----END PRIVATE KEY-----", "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw"),
)  # fmt: skip
NAMES = b"password passwd secret token api_key apiKey Authorization: Bearer Basic Cookie: = : := => ' \" \\ [ ] { } ( ) , -- -----BEGIN PRIVATE KEY----- eyJ AKIA ghp_ :// @ %3A [redacted x] \xe2\x80\xa6[truncated 5] \0".split(b" ")  # fmt: skip


@FAMILY.add(seeds=[f"before\0after\0{text}" for text, _ in SECRETS] + ['{"a": "\0"}\0', '\\\\\0\\"'], words=NAMES)
def redaction(data: bytes) -> None:
    """Redaction takes any text, leaves no planted secret, and a second one finds nothing more."""
    before, _, rest = as_text(data).partition("\0")
    after, _, alone = rest.partition("\0")
    for text in (before, after, alone):
        once = REDACTOR.text(text)
        assert REDACTOR.text(once) == once, text
        REDACTOR.rule(text)
        REDACTOR.field(text, before)
        kind_of_secret(text)
    for planted, secret in SECRETS:
        around = f"{before} {planted} {after}"
        if secret not in before and secret not in after:
            assert secret not in REDACTOR.text(around), around


@FAMILY.add(seeds=['{"password": ["x", {"y": 5}], "a": "Bearer abcdefghijklmnopqrstuvwxyz"}', '{"a": [1,2,3], "token": null}', "[" * 200 + "]" * 200], words=NAMES)  # fmt: skip
def redacted_values(data: bytes) -> None:
    """Values of any shape are redacted, whatever their keys; what stands under a secret's name is gone."""
    value = as_json(data)
    found: list[str] = []
    once = REDACTOR.scrub(value, "context", "context", found)
    assert REDACTOR.scrub(once, "context") == once or once != once  # noqa: PLR0124 - NaN
    planted = "kq3v9x-Tr0ub4dor-and-3"
    for name in ("password", "api_key", "Authorization"):
        held = {"data": value, name: [planted, value], "inner": {name: {"x": planted}}}
        assert planted not in json.dumps(REDACTOR.scrub(held), default=str)
    list(find_secrets(value))


@FAMILY.add(
    seeds=["plain", "a\x1b[31mb\x07", "\u202e\u200b\x9b", "\ud800".encode("utf-8", "surrogatepass"), "😀\n"],
    words=[b"\x1b[2J", b"\x1b]0;x\x07", b"\xc2\x9b", "\u202e".encode(), b"\0", b"\n", b"\xff"],
)
def terminal(data: bytes) -> None:
    """Nothing that a terminal would act on is left in a text; what is harmless stays as it is."""
    text = as_text(data)
    shown = printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()
    assert printable(shown) == shown
    assert all(char.isprintable() or char in "\n\t" for char in printable(text, keep="\n\t"))
    assert all(row.isprintable() for row in table([[text, "b"], ["c", text]]))
    assert without_token(text, "123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0") is not None
    assert not re.search(r"[<>]", safe(text))


RECORDS = [
    {
        "timestamp": "2026-01-18T00:00:00.000000Z",
        "level": "ERROR",
        "message": "\x1b[31m",
        "service": "\x07",
        "context": {"a\n": "\x9b", "b": [1, "\u202e"]},
        "error": {"type": "\r", "message": "=1", "stack_trace": "a\n\x1bb"},
        "active_flags": ["\x1b"],
        "flags": {"A": "\x1b"},
        "duration_ms": 1e300,
    },
    {
        "timestamp": "2026-01-18T00:00:00Z",
        "level": 5,
        "message": "\uff1dx",
        "context": "\t=",
        "logger": "\n=1",
        "error": [],
        "flags": [],
        "active_flags": {"a": 1},
        "event": "feature_flag.evaluation",
    },
    {
        "timestamp": "0001-01-01T00:00:00+23:59",
        "message": "-1+1",
        "service": {"a": 1},
        "span_id": "s",
        "correlation_id": "@SUM(A1)",
    },
]


@FAMILY.add(seeds=[json.dumps(record) for record in RECORDS], words=[b'"timestamp":"2026-01-18T00:00:00Z"', b'"level":', b'"message":', b'"context":{', b'"error":{', b'"stack_trace":', b'"flags":{', b'"active_flags":[', b'"duration_ms":', b"\\u001b[31m", b"\\ud800", b"\\u009b", b'"="', b"1e308", b'"event":"feature_flag.evaluation"', b"{", b"}", b"[", b"]", b","])  # fmt: skip
def shown_record(data: bytes) -> None:
    """Whatever a record holds, what people see of it is text, what spreadsheets open are no formulas, JSON stays JSON."""
    record = as_json(data)
    text = json_text(record)
    assert text.isprintable()
    assert repr(json.loads(text)) == repr(record) or "\\ud" in text or "e" in text or "E" in text
    assert all(row.isprintable() for row in json_text(record, pretty=True).split("\n"))
    if not isinstance(record, dict):
        return
    for paint in (Paint(color=False), Paint(color=True)):
        line = human_record(record, paint)
        assert re.sub(r"\x1b\[[0-9;]*m", "", line).isprintable()
    _, row = list(csv_rows([record]))
    (cells,) = (
        csv.reader([row], strict=True) if "\n" not in row[:-1] else [next(csv.reader(row.splitlines(keepends=True)))]
    )
    for key, cell in zip(next(csv.reader([next(iter(csv_rows([])))])), cells, strict=True):
        value = record
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str):
            assert not cell.startswith(
                ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
            ), cell
        assert all(char.isprintable() or char in "\n\t" for char in cell)
    if parsed(data, lambda _: None) is not None:
        assert local_time(record["timestamp"]).isprintable()
        for records, spans in (([record], []), ([], [record]), ([record], [record])):
            for row in timeline(Trace("\x1b[31m", (), records, spans), Paint(color=False)):
                assert row.isprintable(), row


@FAMILY.add(
    seeds=["message\0key\0value", "\x1b[31m %s\0a b\0\n", "%d\0=\0\ud800".encode("utf-8", "surrogatepass")],
    words=[b"\0", b"%s", b"%(x)s", b"\x1b[0m", b"\n", b"{}"],
)
def formatted_record(data: bytes) -> None:
    """A standard log record of any text becomes printable lines for people, and one JSON object."""
    message, _, rest = as_text(data).partition("\0")
    key, _, value = rest.partition("\0")
    for arguments in ((), (value,)):
        made = logging.LogRecord(key or "x", 30, "/a.py", 1, message, arguments, None)
        made.user_value, made.__dict__[key or "y"] = value, value
        made.stack_info = value
        for row in HumanFormatter().format(made).split("\n"):
            assert row.isprintable()
        line = JSONFormatter().format(made)
        assert isinstance(json.loads(line), dict)
        assert "\n" not in line


@FAMILY.add(
    seeds=["A=on\0B=off", "a-b=x\0_=$(id)", "A='\n", "A=" + "😀"],
    words=[b"\0", b"=", b"'", b"$(", b"`", b"\\", b"\n", b"on", b"off", b"A", b"a"],
)
def reproduced(data: bytes) -> None:
    """The lines that reproduce flags are for a shell what they say and nothing more, whatever the variants."""
    pairs: Mapping[str, str] = dict(part.partition("=")[::2] for part in as_text(data).split("\0"))
    for include in (False, True):
        made = reproduce(pairs, lambda flag_id: flag_id.startswith("B"), include_dangerous=include)
        exported = {}
        for line in made.lines:
            assert line.isprintable()
            words = shlex.split(line, comments=True)
            if words:
                word, assignment = words
                assert word == "export"
                name, _, variant = assignment.partition("=")
                assert re.fullmatch(r"FF_[A-Z0-9_]+", name)
                exported[name] = variant
        assert exported.items() <= made.pins.items()
        assert len(made.lines) + len(made.refused) == len(pairs)


TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@FAMILY.add(seeds=[TRACEPARENT + b"\0a=b\0jarvis.correlation_id=c%20d,tenant=t;p=1", b"00-x\0\0" + b"a=b," * 200, TRACEPARENT + b"-x\0congo=t61\0jarvis.correlation_id=%ff,JARVIS.x=1", b"\0\0" + b"k=" + b"v" * 9000], words=[TRACEPARENT, b"jarvis.correlation_id=", b"jarvis.", b"=", b",", b";", b"%20", b"%ff", b"%", b"\0", b" ", b"\t", b"\xc4\xb0"])  # fmt: skip
def headers(data: bytes) -> None:
    """What a caller sends never fails, leaves nothing of ours in OpenTelemetry's baggage, and is passed on bounded."""
    traceparent, _, rest = data.partition(b"\0")
    tracestate, _, sent = rest.partition(b"\0")
    for pairs in (
        [(b"traceparent", traceparent), (b"tracestate", tracestate), (b"Baggage", sent), (b"baggage", sent)],
        [("traceparent", as_text(traceparent)), ("TraceState", as_text(tracestate)), ("baggage", as_text(sent))],
    ):
        context = received_context(pairs)
        assert not any(key.startswith("jarvis.") for key in baggage.get_all(context))
        correlation = received_correlation(context)
        assert correlation is None or (0 < len(correlation) <= 128 and correlation.isprintable())
    for url in ("http://127.0.0.1/", "https://api.example.com/", as_text(tracestate)):
        outgoing = inject_headers({"Baggage": as_text(sent)}, url)
        carried = outgoing.get("Baggage", "")
        assert len(carried) <= 8192
        assert not any(member.strip().lower().startswith("jarvis.") for member in carried.split(","))


LABEL = re.compile(r'jarvis_collector_x(?:\{l="((?:[^"\\\n]|\\[\\"n])*)"\})? [0-9.e+-]+')


@FAMILY.add(seeds=["a", 'a"\\\n', "\r\u2028", "\\n"], words=[b'"', b"\\", b"\n", b"}", b" 5\n"])
def metrics(data: bytes) -> None:
    """Whatever a label's value, the metrics are lines that Prometheus reads as it was."""
    value = as_text(data).encode("utf-8", "replace").decode()
    text = render([Metric("x", "counter", "Help.", {value: 5}, "l")]).decode()
    *lines, last = text.split("\n")
    assert last == ""
    assert [line for line in lines if line.startswith("# ")] == lines[:2]
    (sample,) = lines[2:]
    found = LABEL.fullmatch(sample)
    assert found is not None
    assert re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), found[1]) == value
