"""docs/guarantees.md, docs/security.md: each test that they name is there, and each figure is that of the code."""

import re

import pytest

from jarvis_collector import config, otlp, values
from jarvis_flags import parse, regex, tree
from jarvis_otel import context, encode, flag_hook, otlp_settings, pipeline, spool
from jarvis_otel.alerts import outbox
from jarvis_otel.web import security, sessions
from tests.doc_pages import ROOT

MIB = 1024 * 1024
COLLECTOR = config.CollectorConfig(log_dir=ROOT)
RETENTION = config.Retention()
_NAMED = re.compile(r"`(test_\w+)::(test_\w+)`")

FIGURES = {
    "spools of all processes together": f"{pipeline.SPOOL_BYTES // MIB} MiB",
    "records in memory of a process without a disk": f"{spool.MEMORY_BYTES // MIB} MiB",
    "records of one delivery": f"{pipeline.BATCH_RECORDS:,}",
    "one delivery's answer": f"{otlp_settings.DEFAULT_TIMEOUT:g} s",
    "the end of a process": f"{pipeline.EXIT_SECONDS:g} s",
    "one text": f"{encode.TEXT_MAX:,} characters",
    "one value": f"{encode.ITEMS_MAX:,} items, {encode.DEPTH_MAX} levels",
    "one record": f"{encode.RECORD_MAX // 1024} KiB",
    "flags of one record": f"{context.FLAGS_MAX}",
    "flags of one span": f"{flag_hook.SPAN_FLAGS_MAX}",
    "evaluation events": f"one for each trace, flag and variant; {flag_hook._EVENTS_PER_TRACE_MAX} a trace",
    "a body to the collector": f"{COLLECTOR.max_body // MIB} MiB, {COLLECTOR.max_inflated // MIB} MiB inflated",
    "records of one request": f"{otlp.RECORDS_MAX:,}",
    "attributes of a record at the collector": f"{values.ATTRIBUTES_MAX:,}, {values.DEPTH_MAX} levels",
    "what the collector holds in memory": f"{COLLECTOR.max_pending // MIB} MiB",
    "connections to the collector": f"{COLLECTOR.max_connections}",
    "headers, body of a request to it": f"{COLLECTOR.head_timeout:g} s, {COLLECTOR.body_timeout:g} s",
    "day files": f"{RETENTION.max_total_bytes // 10**9} GB, {RETENTION.min_free:.0%} of the disk free".replace(
        "%", " %"
    ),
    "a flag file": f"{tree.BYTES_MAX // MIB} MiB, {parse.FLAGS_MAX:,} flags",
    "a pattern in a flag file": f"{regex.PATTERN_MAX} characters, tried on {regex.TEXT_MAX}",
    "a request to the web page": f"{security.BODY_MAX // MIB} MiB",
    "sessions of the web page": f"{sessions.SESSIONS_MAX:,}",
    "an alert's backlog for each receiver": f"the latest {outbox.KEPT} of a kind, and a number",
}


@pytest.mark.parametrize("page", ["guarantees", "security"])
def test_each_test_that_a_page_names_is_there(page):
    named = _NAMED.findall((ROOT / "docs" / f"{page}.md").read_text())
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"^(?:async )?def {name}\(", (ROOT / "tests" / f"{file}.py").read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_each_bound_is_that_of_the_code():
    table = (ROOT / "docs" / "guarantees.md").read_text().partition("\n## Bounds")[2]
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE))
    rows = {what: bound for what, bound in rows.items() if what not in ("what", "---")}
    assert rows == FIGURES
