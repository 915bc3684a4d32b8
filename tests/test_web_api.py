"""The JSON API does what its OpenAPI document says, and no page fails, whatever is asked."""

import json
import re
import warnings
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from starlette.routing import Route

from jarvis_collector.access import token_digest
from tests.trades import RECORDS, SPANS, write_day
from tests.web_servers import web_server
from tests.web_sites import make_site, visitor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own, while it is imported
    import schemathesis

TOKEN = "secret-of-the-fuzzer"
EXAMPLES = 15
QUERY_NAMES = (
    "flag",
    "user",
    "since",
    "until",
    "level",
    "page",
    "limit",
    "where",
    "search",
    "service",
    "state",
    "sort",
    "before",
    "bucket",
    "percent",
    "context",
    "variant",
    "next",
    "l",
    "days",
)
# text that is no time, or no expression, is 400 as the document says, though no schema tells it from one that is; and
# that nothing is told without a token has its own test
NOT_ASKED = [schemathesis.checks.positive_data_acceptance, schemathesis.checks.ignored_auth]
FLAGS = """\
environment: prod
flags:
  PLAIN: {description: A plain flag, enabled: false}
  PART: {enabled: true, rules: [{type: percentage, value: 25}]}
  RISKY: {enabled: false, dangerous: true}
"""


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    home = tmp_path_factory.mktemp("api")
    (home / "config").mkdir()
    (home / "config" / "flags.yaml").write_text(FLAGS)
    (home / "config" / "jarvis.yaml").write_text(f'web_tokens: {{fuzz: "sha256:{token_digest(TOKEN)} viewer"}}\n')
    write_day(home / "logs", "jarvis", RECORDS)
    write_day(home / "logs", "traces", SPANS)
    with web_server(JARVIS_HOME=str(home)) as web:
        yield web


@pytest.fixture(scope="module")
def described(web):
    status, _, body = web.ask("GET", "/api/openapi.json", Authorization=f"Bearer {TOKEN}")
    assert status == 200
    return json.loads(body)


def test_the_document_describes_every_address_of_the_api_and_its_schemas_are_schemas(described):
    assert described["openapi"].startswith("3.1")
    assert {"/api/audit", "/api/health"} <= described["paths"].keys()
    for path, methods in described["paths"].items():
        [(method, operation)] = methods.items()
        assert (method, path.startswith("/api/")) == ("get", True)
        assert operation["summary"]
        for parameter in operation["parameters"]:
            Draft202012Validator.check_schema(parameter["schema"])
        answer = operation["responses"]["200"]["content"]
        for media in answer.values():
            Draft202012Validator.check_schema(media.get("schema", {}))
    names = [next(iter(methods.values()))["operationId"] for methods in described["paths"].values()]
    assert len(set(names)) == len(names)


def test_whatever_is_asked_the_answer_is_one_that_the_document_describes(web, described):
    schema = schemathesis.openapi.from_dict(described)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case):
            nonlocal asked
            asked += 1
            case.call_and_validate(base_url=web.url, headers=headers, timeout=20, excluded_checks=NOT_ASKED)

        check()
    assert asked >= len(described["paths"])


def test_no_page_fails_whatever_stands_in_its_address(own_project):
    site = make_site(own_project, FLAGS)
    write_day(site.settings.log_dir, "jarvis", RECORDS)
    write_day(site.settings.log_dir, "traces", SPANS)
    with visitor(site) as client:
        routes = [route for route in client.app.routes if isinstance(route, Route) and "GET" in route.methods]
        # a stream has no end
        paths = [route.path for route in routes if not route.path.startswith(("/events", "/ofrep/", "/logs/tail"))]
        names = st.sampled_from(QUERY_NAMES) | st.text(max_size=8)
        texts = st.text(max_size=20) | st.sampled_from(
            ["-1", "0", "1e9", "PLAIN", "now", "ERROR", "a:b", "%00", "\x00"]
        )

        @settings(
            max_examples=150,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.sampled_from(paths), texts, st.dictionaries(names, texts, max_size=4), st.booleans())
        def check(path, part, query, htmx):
            address = re.sub(r"{[^}]+}", lambda _: quote(part, safe=""), path)
            answer = client.get(address, params=query, headers={"HX-Request": "true"} if htmx else {})
            assert answer.status_code < 500, (address, query, answer.text)

        check()


def test_without_a_token_nothing_is_told(web, described):
    for path in described["paths"]:
        assert web.ask("GET", path.replace("{", "").replace("}", ""))[0] == 401
