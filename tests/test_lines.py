"""The short way of a common record and the long way of any record say the same."""

import gc
import json
import logging
import sys
import weakref

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

from jarvis_otel.compose import compose
from jarvis_otel.context import OperationSpanProcessor, note_evaluation
from jarvis_otel.encode import otlp_record
from jarvis_otel.lines import LineWriter
from jarvis_otel.logger import get_logger
from jarvis_otel.pipeline import Pipeline
from jarvis_otel.runtime import RUNTIME
from jarvis_otel.sites import site_of
from tests.otlp_sink import attributes_of, logs_at

NAMES = st.sampled_from(
    ["symbol", "amount", "duration_ms", "user_id", "token", "api_key", "jarvis.flag.X", "service", "ä b", "signature"]
)
VALUES = st.one_of(
    st.text(max_size=60),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.sampled_from(["Bearer abcdefghijklmnopqrstuvwxyz", "https://u:p4ssw0rd@host", "\ud800", "x" * 40_000]),
)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Where the lines go that a writer writes, and the writer."""
    pipeline = Pipeline(
        logs_at("http://127.0.0.1:9"), {"service.name": "jarvis"}, quiet=True, spool_dir=tmp_path / "spool"
    )
    lines = []
    monkeypatch.setattr(pipeline, "put", lambda line, *, urgent: lines.append((line, urgent)))
    monkeypatch.setattr(RUNTIME, "pipeline", pipeline)
    yield lines, LineWriter(pipeline)
    pipeline.shutdown(0.0)


@given(st.text(max_size=80), st.dictionaries(NAMES, VALUES, max_size=5), st.sampled_from([10, 20, 25, 30, 50]))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_record_written_the_short_way_is_the_one_written_the_long_way(written, message, keywords, level):
    lines, writer = written
    lines.clear()
    log = get_logger("trading")
    tracer = TracerProvider().get_tracer("test")
    site = site_of(sys._getframe())
    with tracer.start_as_current_span("x"), log.context(correlation_id="c-1", user_id="u", region="eu"):
        note_evaluation("A", "on", on=True)
        note_evaluation("B", "off", on=False)
        done = writer.write(log._policy, level, message, dict(keywords), site, "an.event")
        if done is None:
            assert lines == []
            return
        number, now = done
        from jarvis_otel.context import current_operation

        operation = current_operation()
        long = compose(
            number=number,
            time_ns=now,
            level=level,
            message=message,
            service="trading",
            logger="trading",
            keywords={**operation.fields, **keywords},
            operation=operation,
            error=None,
            source=site.source,
            event="an.event",
        )
    ((line, urgent),) = lines
    seq, scope, record = line.rstrip(b"\n").split(b"\t")
    assert (int(seq), urgent, scope) == (number, level >= logging.WARNING, log._scope)
    short, reference = json.loads(record), json.loads(otlp_record(long, "jarvis"))
    assert attributes_of(short) == attributes_of(reference)
    for found in (short, reference):
        found["attributes"] = sorted(json.dumps(item) for item in found["attributes"])
    assert short == reference


def test_most_records_go_the_short_way(written):
    lines, writer = written
    site = site_of(sys._getframe())
    log = get_logger("trading")
    for keywords in ({}, {"symbol": "SOL", "amount": 100}, {"price": 1.5, "ok": True, "left": None, "duration_ms": 3}):
        assert writer.write(log._policy, 20, "Trade executed", keywords, site) is not None
    assert len(lines) == 3


def test_the_same_place_may_say_another_thing_each_time(written):
    lines, writer = written
    site, log = site_of(sys._getframe()), get_logger("trading")
    for level, message in ((20, "a"), (20, "b"), (40, "b"), (20, "a"), (20, "a")):
        writer.write(log._policy, level, message, {}, site)
    told = [json.loads(line.split(b"\t")[2]) for line, _ in lines]
    assert [(r["severityNumber"], r["body"]["stringValue"]) for r in told] == [
        (9, "a"),
        (9, "b"),
        (17, "b"),
        (9, "a"),
        (9, "a"),
    ]


def test_what_changes_in_an_operation_shows_in_its_next_record(written):
    lines, writer = written
    site, log = site_of(sys._getframe()), get_logger("trading")
    with log.context(correlation_id="outer"):
        writer.write(log._policy, 20, "x", {}, site)
        note_evaluation("A", "on", on=True)
        writer.write(log._policy, 20, "x", {}, site)
        note_evaluation("A", "off", on=False)
        writer.write(log._policy, 20, "x", {}, site)
        with log.context(user_id="u2"):
            writer.write(log._policy, 20, "x", {}, site)
        writer.write(log._policy, 20, "x", {}, site)
    writer.write(log._policy, 20, "x", {}, site)
    found = [attributes_of(json.loads(line.split(b"\t")[2])) for line, _ in lines]
    assert [attributes.get("jarvis.flag.A") for attributes in found] == [None, "on", "off", "off", "off", None]
    assert [attributes.get("user.id") for attributes in found] == [None, None, None, "u2", None, None]
    assert [attributes.get("jarvis.correlation_id") for attributes in found] == ["outer"] * 5 + [None]


def test_an_operation_that_logged_is_forgotten_with_its_span(written):
    _, writer = written
    log, site = get_logger("trading"), site_of(sys._getframe())
    provider = TracerProvider()
    provider.add_span_processor(OperationSpanProcessor())
    tracer = provider.get_tracer("test")
    ended = []
    for number in range(20):
        with tracer.start_as_current_span("x") as span, log.context(correlation_id=f"c-{number}"):
            assert writer.write(log._policy, 20, "done", {}, site) is not None
            assert writer.write(log._policy, 20, "done again", {}, site) is not None
        with tracer.start_as_current_span("y") as other:
            assert writer.write(log._policy, 20, "done", {}, site) is not None
        ended += [weakref.ref(span), weakref.ref(other)]
        del span, other
    gc.collect()
    assert [one for one in ended if one() is not None] == []
