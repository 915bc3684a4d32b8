"""What a flag does: counted by operation, with intervals that hold, and said in a sentence."""

import json
import random
import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import NormalDist

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jarvis_collector.layout import day_path
from jarvis_otel.query.impact import FEW, Gathered, Outcomes, compare, difference, quantile, rate
from jarvis_otel.query.log_query import LogQuery
from tests.commands import jarvis

START = datetime(2026, 1, 18, 14, 0, tzinfo=UTC)
FLAG = "NEW_UI"


def at(second):
    return (START + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def record(operation, variant=None, *, level="INFO", second=0, **more):
    flags = {} if variant is None else {"flags": {FLAG: variant}}
    active = [FLAG] if variant == "on" else []
    ids = {} if operation is None else {"correlation_id": operation}
    base = {"timestamp": at(second), "level": level, "message": "m", "service": "trading"}
    return base | ids | {"active_flags": active} | flags | {"context": {}} | more


def span(operation, variant=None, *, code="ok", second=0, **more):
    flags = {} if variant is None else {"flags": {FLAG: variant}}
    base = {"timestamp": at(second), "name": "s", "kind": "server", "service": "trading", "trace_id": "1" * 32}
    return base | {"correlation_id": operation, "status": {"code": code}} | flags | more


def gather(records=(), spans=(), **options):
    gathered = Gathered(FLAG, **options)
    for one in records:
        gathered.add_record(one)
    for one in spans:
        gathered.add_span(one)
    return gathered


def by_variant(impact):
    return {one.variant: one for one in impact.variants}


def test_a_rate_has_the_interval_of_wilson():
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    known = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (part, whole), (low, high) in known.items():
        found = rate(part, whole)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_a_difference_of_rates_has_the_interval_of_newcombe():
    # the same, 873-890, table II, method 10
    known = {
        (56, 70, 48, 80): (0.0524, 0.3339),
        (9, 10, 3, 10): (0.1705, 0.8090),
        (5, 56, 0, 29): (-0.0381, 0.1926),
        (0, 10, 0, 10): (-0.2775, 0.2775),
    }
    for (a, m, b, n), (low, high) in known.items():
        found = difference(rate(a, m), rate(b, n), few=False)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_a_quantile_lies_between_the_order_statistics_of_the_tables():
    # of 100 values the 40th and the 61st enclose the median; the 95th percentile has an upper end from 72 values on
    found = quantile(range(1, 101), 0.5)
    assert (found.value, found.low, found.high) == (50, 40, 61)
    assert quantile(range(1, 72), 0.95).high is None
    assert quantile(range(1, 73), 0.95).high == 72
    assert quantile([5.0], 0.5).low is None
    assert quantile([], 0.5) is None


def test_intervals_hold_as_often_as_they_say():
    rng = random.Random(7)
    hits = {"rate": 0, "median": 0, "p95": 0, "difference": 0}
    rounds = 400
    median, p95 = NormalDist().inv_cdf(0.5), NormalDist().inv_cdf(0.95)
    for _ in range(rounds):
        values = sorted(rng.gauss(0, 1) for _ in range(300))
        other = sorted(rng.gauss(1, 2) for _ in range(200))
        found = {
            "rate": (rate(sum(value < -1 for value in values), 300), NormalDist().cdf(-1)),
            "median": (quantile(values, 0.5), median),
            "p95": (quantile(values, 0.95), p95),
            "difference": (difference(quantile(other, 0.95), quantile(values, 0.95), few=False), 1 + p95),
        }
        for name, (estimate, true) in found.items():
            hits[name] += estimate.low <= true <= estimate.high
    assert min(hits.values()) > 0.92 * rounds, hits


operations = st.sampled_from(["a", "b", "c", "d", None])
variants = st.sampled_from(["on", "off", "blue", None])
levels = st.sampled_from(["INFO", "WARNING", "ERROR", "CRITICAL"])
durations = st.none() | st.integers(0, 1000) | st.floats(0, 1000) | st.just("5") | st.just(True)


@st.composite
def items(draw):
    duration = draw(durations)
    more = {} if duration is None else {"duration_ms": duration}
    operation, variant = draw(operations), draw(variants)
    if operation is not None and draw(st.booleans()):
        return "span", span(operation, variant, code=draw(st.sampled_from(["ok", "error", "unset"])), **more)
    if draw(st.integers(0, 5)) == 0:
        more["event"] = "feature_flag.evaluation"
    return "record", record(operation, variant, level=draw(levels), **more)


def naive(told):
    """The same, said as plainly as can be."""
    told = [(kind, item) for kind, item in told if item.get("event") != "feature_flag.evaluation"]
    found = {}
    for number, (_, item) in enumerate(told):
        if FLAG in item.get("flags", {}):
            found.setdefault(item.get("correlation_id") or number, []).append(item)
    result, mixed = {}, 0
    for operation, tellers in found.items():
        seen = {item["flags"][FLAG] for item in tellers}
        if len(seen) > 1:
            mixed += 1
            continue
        members = [item for number, (_, item) in enumerate(told) if (item.get("correlation_id") or number) == operation]
        failed = any(
            item.get("level") in ("ERROR", "CRITICAL") or item.get("status", {}).get("code") == "error"
            for item in members
        )
        lengths = [item["duration_ms"] for item in tellers if type(item.get("duration_ms")) in (int, float)]
        result.setdefault(seen.pop(), []).append((failed, max(lengths, default=None)))
    return result, mixed


@given(st.lists(items(), max_size=30), st.randoms(use_true_random=False))
def test_what_is_gathered_is_what_looking_at_each_operation_finds(told, rng):
    expected, mixed = naive(told)
    shuffled = list(told)
    rng.shuffle(shuffled)
    impact = gather(
        [item for kind, item in shuffled if kind == "record"], [item for kind, item in shuffled if kind == "span"]
    ).impact()
    got = {
        one.variant: (one.operations, one.errors, one.timed, one.p50 and one.p50.value, one.p95 and one.p95.value)
        for one in impact.variants
        if one.operations
    }
    want = {}
    for variant, outcomes in expected.items():
        lengths = sorted(length for _, length in outcomes if length is not None)
        middle = [quantile(lengths, q) for q in (0.5, 0.95)]
        values = (None if estimate is None else estimate.value for estimate in middle)
        want[variant] = (len(outcomes), sum(failed for failed, _ in outcomes), len(lengths), *values)
    assert (got, impact.mixed) == (want, mixed)


def test_an_operation_with_many_errors_counts_once_and_one_of_another_service_counts_too():
    records = [record("a", "on"), *[record("a", "on", level="ERROR") for _ in range(50)]]
    records += [record("b", "on"), record("b", level="ERROR", service="telegram"), record("c", "on")]
    one = by_variant(gather(records).impact())["on"]
    assert (one.operations, one.errors, one.records) == (3, 2, 53)


def test_a_service_alone_is_counted_where_it_is_named():
    records = [record("a", "on"), record("a", level="ERROR", service="telegram"), record("b", "on", service="telegram")]
    one = by_variant(gather(records, service="trading").impact())["on"]
    assert (one.operations, one.errors) == (1, 0)


def test_an_evaluation_is_no_work_and_errors_without_the_flag_belong_to_no_variant():
    records = [
        record("a", "on", event="feature_flag.evaluation"),
        record("b", level="ERROR"),
        record(None, level="ERROR"),
    ]
    assert gather(records).impact().variants == ()


def test_of_more_operations_than_are_kept_a_sample_tells_the_same_within_its_interval():
    def told():
        for number in range(40_000):
            variant = "on" if number % 4 == 0 else "off"
            failed = number % 10 == 0 if variant == "on" else number % 50 == 1
            yield record(f"op-{number}", variant, level="ERROR" if failed else "INFO", duration_ms=number % 1000)

    gathered = gather(told(), operations_max=2000)
    assert len(gathered._places) <= 2000
    impact = gathered.impact()
    exact = by_variant(gather(told()).impact())
    assert impact.sample >= 16
    assert f"one in {impact.sample}" in impact.sentences[-1]
    for variant, one in by_variant(impact).items():
        assert one.error_rate.low <= exact[variant].error_rate.value <= one.error_rate.high
        assert one.p95.low <= exact[variant].p95.value <= one.p95.high
        assert one.share.low <= exact[variant].share.value <= one.share.high
        assert one.records == exact[variant].records
        assert abs(one.operations - exact[variant].operations) < 0.2 * exact[variant].operations


def outcomes(count, errors, durations=()):
    return Outcomes(count, errors, durations, count, 0, at(0), at(60))


def test_a_verdict_is_a_sentence_with_its_interval():
    impact = compare(FLAG, {"on": outcomes(1000, 41), "off": outcomes(1000, 9)})
    assert impact.baseline == "off"
    assert impact.comparisons[0].verdict == "worse"
    assert impact.sentences == (
        "errors are 4.1 % with on against 0.9 % with off: likely worse (difference 1.9 to 4.7 points, 95 %)",
    )
    assert "likely better" in compare(FLAG, {"on": outcomes(1000, 9), "off": outcomes(1000, 41)}).sentences[0]
    same = compare(FLAG, {"on": outcomes(1000, 20), "off": outcomes(1000, 21)})
    assert "no difference can be seen (difference -1.4 to 1.2 points" in same.sentences[0]


def test_latency_is_judged_beside_errors():
    slow, fast = [float(100 + n % 50) for n in range(500)], [float(50 + n % 50) for n in range(500)]
    impact = compare(FLAG, {"on": outcomes(500, 0, slow), "off": outcomes(500, 0, fast)})
    assert [part.verdict for part in (impact.comparisons[0].p50, impact.comparisons[0].p95)] == ["worse", "worse"]
    assert impact.comparisons[0].verdict == "worse"
    assert any(
        text.startswith("p95 is 147 ms with on against 97 ms with off: likely slower") for text in impact.sentences
    )


def test_too_few_are_said_to_be_too_few():
    impact = compare(FLAG, {"on": outcomes(FEW - 1, 19), "off": outcomes(5000, 0)})
    assert impact.comparisons[0].verdict == "too few"
    assert impact.sentences[0].startswith("too few operations to tell of errors: 19 with on, 5000 with off")


def test_variants_are_held_against_the_default_one_and_share_the_risk_of_a_false_alarm():
    three = {"low": outcomes(400, 8), "mid": outcomes(300, 8), "high": outcomes(300, 9)}
    impact = compare(FLAG, three, "low")
    assert [one.variant for one in impact.variants] == ["low", "high", "mid"]
    assert [one.variant for one in impact.comparisons] == ["high", "mid"]
    alone = compare(FLAG, {key: three[key] for key in ("low", "mid")}, "low").comparisons[0].error_rate
    shared = impact.comparisons[1].error_rate
    assert shared.high - shared.low > alone.high - alone.low


def test_variants_that_never_met_and_one_alone_are_told():
    later = Outcomes(100, 1, (), 100, 0, at(100), at(200))
    impact = compare(FLAG, {"on": later, "off": outcomes(100, 1)})
    assert not impact.comparisons[0].together
    assert "not seen at the same time" in impact.sentences[-1]
    assert compare(FLAG, {"on": later}).sentences == ("only on was seen: there is nothing to compare it with",)
    assert compare(FLAG, {}).variants == ()


# --- over files ---


def planted(count=400):
    """Records and spans in which `on` fails in one of ten, `off` in one of a hundred, and `on` is slower."""
    records, spans = [], []
    for number in range(count):
        variant = "on" if number % 2 else "off"
        failed = number % 20 == 1 if variant == "on" else number % 200 == 0
        length = (120 if variant == "on" else 60) + number % 17
        records.append(record(f"op-{number}", variant, second=number, duration_ms=length, _meta={"uid": f"u{number}"}))
        if failed:
            error = {"type": "ValueError", "message": "m"}
            uid = {"uid": f"e{number}"}
            records.append(record(f"op-{number}", variant, second=number, level="ERROR", error=error, _meta=uid))
        spans.append(span(f"op-{number}", variant, second=number, duration_ms=length + 1, span_id=f"{number:016x}"))
    return records, spans


def change(second=5, audit_hash="f" * 64):
    context = {
        "feature_flag.key": FLAG,
        "jarvis.change.old": "off",
        "jarvis.change.new": "on",
        "jarvis.change.actor": "ann@host",
        "jarvis.change.reason": "try it",
        "jarvis.change.audit_hash": audit_hash,
    }
    return record(None, second=second, event="jarvis.flag.changed", service="cli", context=context, _meta={"uid": "c"})


def write(directory, records, spans=()):
    directory.mkdir(exist_ok=True)
    for stream, content in (("jarvis", records), ("traces", spans)):
        path = day_path(directory, stream, "2026-01-18")
        path.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in content))


@pytest.fixture
def home(tmp_path):
    (tmp_path / "config").mkdir()
    flags = "flags:\n  NEW_UI: {enabled: false}\n  LIMIT: {variants: {low: 1, high: 2}, default: low}\n"
    (tmp_path / "config" / "flags.yaml").write_text(flags)
    records, spans = planted()
    write(tmp_path / "logs", [*records, change()], spans)
    return tmp_path


def ask(home, *arguments):
    return jarvis("impact", *arguments, JARVIS_HOME=str(home), TZ="UTC")


def test_the_log_files_show_a_planted_regression(home):
    impact = LogQuery(home / "logs").flag_impact(FLAG)
    on, off = (by_variant(impact)[name] for name in ("on", "off"))
    assert [(one.operations, one.errors, one.spans) for one in (on, off)] == [(200, 20, 200), (200, 2, 200)]
    assert impact.comparisons[0].error_rate.verdict == "worse"
    assert impact.comparisons[0].p95.verdict == "worse"
    assert [(one.old, one.new, one.who) for one in impact.changes] == [("off", "on", "ann@host")]


def test_the_command_says_it_in_a_sentence_and_shows_the_change(home):
    result = ask(home, FLAG)
    assert result.returncode == 0, result.stderr
    assert "errors are 10 % with on against 1 % with off: likely worse (difference " in result.stdout
    assert "the median is 129 ms with on against 69 ms with off: likely slower" in result.stdout
    assert "changed 2026-01-18T14:00:05.000000Z: off → on by ann@host: try it" in result.stdout
    assert "method: operations (correlation ids) are counted, not records" in result.stdout


def test_as_json_all_of_it_is_told(home):
    result = ask(home, FLAG, "--format", "json", "--since", "2026-01-18T14:00", "--service", "trading")
    told = json.loads(result.stdout)
    assert told["flag"] == FLAG
    assert told["baseline"] == "off"
    assert [(one["variant"], one["operations"]) for one in told["variants"]] == [("off", 200), ("on", 200)]
    assert told["comparisons"][0]["verdict"] == "worse"
    assert told["changes"][0]["reason"] == "try it"
    assert told["from"] == "2026-01-18T14:00:00+00:00"
    assert "from 2026-01-18 14:00:00+00:00" in result.stderr


def test_only_the_interval_counts(home):
    told = json.loads(ask(home, FLAG, "--format", "json", "--since", "2026-01-18T14:01", "--until", "14:02").stdout)
    assert sum(one["operations"] for one in told["variants"]) == 61
    assert told["changes"] == []


def test_a_flag_that_nothing_tells_of_is_1_with_the_nearest_name(home):
    result = ask(home, "NEW_UX")
    assert (result.returncode, result.stdout) == (1, "")
    assert "nothing tells of NEW_UX" in result.stderr
    assert "did you mean NEW_UI?" in result.stderr
    assert json.loads(ask(home, "NEW_UX", "--format", "json").stdout)["variants"] == []


def test_a_flag_that_only_the_logs_know_is_found(home):
    records = [{**one, "flags": {"ELSEWHERE": "blue"}, "active_flags": []} for one in planted(50)[0]]
    write(home / "logs", records)
    result = ask(home, "ELSEWHERE")
    assert result.returncode == 0
    assert "only blue was seen" in result.stdout


def test_a_typed_flag_is_held_against_its_default(home):
    records = [
        record(f"o{n}", flags={"LIMIT": "low" if n % 3 == 0 else "high"}, _meta={"uid": f"{n}"}) for n in range(99)
    ]
    write(home / "logs", records)
    assert json.loads(ask(home, "LIMIT", "--format", "json").stdout)["baseline"] == "low"


def test_a_change_that_audit_and_logs_tell_of_is_shown_once(home):
    assert jarvis("enable", FLAG, "--reason", "go", "--by", "bob", JARVIS_HOME=str(home)).returncode == 0
    (entry,) = json.loads(jarvis("history", FLAG, "--format", "json", JARVIS_HOME=str(home)).stdout)
    write(home / "logs", [*planted()[0], change(audit_hash=entry["hash"])])
    (told,) = json.loads(ask(home, FLAG, "--format", "json").stdout)["changes"]
    assert (told["who"], told["new"], told["reason"]) == ("bob", "on", "go")


def test_so_is_one_of_a_percentage_whose_words_differ(home):
    assert jarvis("rollout", FLAG, "50", "--reason", "go", "--by", "bob", JARVIS_HOME=str(home)).returncode == 0
    (entry,) = json.loads(jarvis("history", FLAG, "--format", "json", JARVIS_HOME=str(home)).stdout)
    write(home / "logs", [*planted()[0], change(audit_hash=entry["hash"])])
    (told,) = json.loads(ask(home, FLAG, "--format", "json").stdout)["changes"]
    assert told["new"] == "on at 50 %"


DOCS = (
    (Path(__file__).parent.parent / "docs" / "logs.md").read_text().partition("## Flag impact")[2].partition("\n## ")[0]
)


def test_the_documentation_shows_what_the_command_shows(home):
    shown = ask(home, FLAG).stdout.rpartition("\n\nmethod:")[0]
    assert f"```text\n{shown}\n```" in DOCS


def test_the_examples_of_the_documentation_run(home):
    examples = re.search(r"```sh\n(.*?)```", DOCS, re.DOTALL)[1].splitlines()
    assert len(examples) == 2
    now = datetime.now(UTC) - timedelta(minutes=30)
    times = {"timestamp": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    write(home / "logs", [{**one, **times} for one in planted()[0]])
    for example in examples:
        command = shlex.split(example)
        assert command[:3] == ["jarvis", "flags", "impact"]
        if "14:00" not in command:  # the clock says whether that has found something
            assert ask(home, *command[3:]).returncode == 0
        else:
            assert ask(home, *command[3:]).returncode in (0, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--since", "soon"), "--since: got 'soon'"),
        (("--dir", "nowhere"), "nowhere: no such directory; name one by --dir"),
        (("--loki",), "--loki: got no URL"),
        (("--loki", "http://127.0.0.1:1"), "Loki at 127.0.0.1:1: cannot be read: Connection refused"),
    ],
)
def test_what_cannot_be_read_is_2_in_one_line(home, arguments, said):
    result = ask(home, FLAG, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
