"""Every query that we ship, asked of a real Loki that our own example filled."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jarvis_otel import LogQuery
from tests.dashboards import DASHBOARDS, defaults, interpolated, queries
from tests.otlp_sink import until
from tests.real_stack import Embedded, FileCollector, Loki, LokiCollector, running
from tests.seed import EVERY, EVERY_REGRESSED, MS, MS_REGRESSED, REGRESSED

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[1]
ORDERS = 400
CORRELATION = "trade-0"

ALL_QUERIES = {query.name: (query, board) for board in DASHBOARDS.values() for query in queries(board)}
EXAMPLES = {
    f"{path.name} {number}": example
    for path in sorted(ROOT.glob("docs/*.md"))
    for number, example in enumerate(re.findall(r"^```logql\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE), 1)
}


@pytest.fixture(scope="module", params=["otelcol", "embedded", "forward-only"])
def loki(tmp_path_factory, request):
    """Loki with the records of the example's trading engine, every one of them, by each of the ways to it."""
    home = tmp_path_factory.mktemp("stack")
    loki = Loki(home / "loki")
    if request.param == "embedded":
        ours = Embedded(home / "embedded", loki.url)
        url, logs, collectors = ours.url, ours.logs, [ours]
    else:
        theirs = FileCollector(home / "files")
        url, logs = theirs.url, theirs.logs
        if request.param == "otelcol":
            collectors = [theirs, LokiCollector(home / "forward", logs, loki.url)]
        else:
            logs.mkdir()
            collectors = [theirs, Embedded(home / "forward", loki.url, logs, forward_only=True)]
    with running(loki, *collectors):
        seed(home / "project", url)
        query = LogQuery(logs)
        until(lambda: sum(1 for _ in query.iterate(text="POST /trades")) == ORDERS, 60)
        written = sum(1 for _ in query.iterate())
        until(lambda: len(loki.records('{service_name="trading"}')) == written, 120)
        yield loki


def seed(project, url):
    (project / "config").mkdir(parents=True)
    flags = (ROOT / "examples" / "jarvis_bot" / "config" / "flags.yaml").read_bytes()
    (project / "config" / "flags.yaml").write_bytes(flags)
    foreign = ("JARVIS_", "OTEL_", "FF_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environ |= {"JARVIS_HOME": str(project), "OTEL_EXPORTER_OTLP_ENDPOINT": url, "JARVIS_CONSOLE": "off"}
    command = [sys.executable, ROOT / "tests" / "seed.py", str(ORDERS)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def answer(loki, query, board):
    values = {**defaults(board), "correlation": CORRELATION}
    expression = interpolated(query.expression, values)
    return loki.instant(expression) if query.instant else loki.range(expression)


def says_something(found):
    """Whether an answer holds a line, or a number that is not just nought."""
    if not found:
        return False
    if "stream" in found[0]:
        return True
    points = [point for row in found for point in row.get("values", [row.get("value")])]
    return any(float(number) > 0 for _, number in points)


@pytest.mark.parametrize("name", ALL_QUERIES)
def test_every_query_of_every_dashboard_finds_something(loki, name):
    query, board = ALL_QUERIES[name]
    assert says_something(answer(loki, query, board)), query.expression


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_logql_example_of_the_docs_finds_something(loki, name):
    assert says_something(loki.range(EXAMPLES[name])), EXAMPLES[name]


def test_every_variable_that_asks_loki_has_values(loki):
    asked = {
        variable["query"]["label"]
        for board in DASHBOARDS.values()
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    }
    values = {label: loki.get(f"/loki/api/v1/label/{label}/values") for label in asked}
    assert values == {"service_name": ["trading"], "deployment_environment_name": ["prod"]}


def panel(loki, title):
    """What a panel of the flag impact shows for the regressed flag, by variant."""
    board = DASHBOARDS["flag-impact"]
    (query,) = [query for query in queries(board) if f" / {title} / " in query.name]
    expression = interpolated(query.expression, {**defaults(board), "flag": REGRESSED})
    return {row["metric"]["variant"]: float(row["value"][1]) for row in loki.instant(expression)}


def test_the_flag_impact_shows_the_regression_that_was_planted(loki):
    rates = panel(loki, "Error rate by variant")
    assert rates["on"] > 0.5 * EVERY / EVERY_REGRESSED * rates["off"] > 0

    p95 = panel(loki, "Duration, p95, by variant")
    assert MS < p95["off"] <= MS * 1.2 < MS_REGRESSED < p95["on"] <= MS_REGRESSED * 1.2

    records = panel(loki, "Records by variant")
    assert all(records[variant] > ORDERS / 2 for variant in ("on", "off"))


def test_the_flag_impact_marks_the_changes_of_the_chosen_flag_and_no_other(loki):
    board = DASHBOARDS["flag-impact"]
    (query,) = [query for query in queries(board) if " / annotation " in query.name]
    lines = loki.records(interpolated(query.expression, {**defaults(board), "flag": REGRESSED}))
    assert [(line, record["jarvis_change_actor"]) for line, record in lines] == [
        (f"{REGRESSED}: file → on at 50 % by ben: half of the users", "ben")
    ]


def test_a_correlation_is_found_by_its_id_and_by_its_trace_id_alike(loki):
    board = DASHBOARDS["correlation"]
    (query,) = [query for query in queries(board) if "in order" in query.name]

    def found(value):
        return loki.records(interpolated(query.expression, {**defaults(board), "correlation": value}))

    by_id = found(CORRELATION)
    (trace_id,) = {record["trace_id"] for _, record in by_id}
    assert sorted(line for line, _ in found(trace_id)) == sorted(line for line, _ in by_id)
    assert {line.partition(":")[0] for line, _ in by_id} == {"api", "trading"}


def test_streams_are_one_for_each_service_and_environment(loki):
    series = loki.get("/loki/api/v1/series", **{"match[]": '{service_name=~".+"}'})
    assert series == [{"service_name": "trading", "deployment_environment_name": "prod"}]
    assert json.dumps(loki.get("/loki/api/v1/labels")) == '["deployment_environment_name", "service_name"]'
