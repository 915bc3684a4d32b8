"""OFREP: the protocol's answers to the letter, its change stream, and OpenFeature's own suite by a real client."""

import contextlib
import http.client
import json
import re
import threading
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from jarvis_collector.access import token_digest
from jarvis_otel.admin.author import Author, Role
from tests import test_conformance_openfeature as suite
from tests.web_servers import web_server
from tests.web_sites import make_site, visitor

ONE, ALL = "/ofrep/v1/evaluate/flags/", "/ofrep/v1/evaluate/flags"
FLAGS = """\
environment: prod
segments:
  staff: {attribute: email, op: ends_with, value: "@ours.example"}
flags:
  ON: {enabled: true}
  OFF: {enabled: false}
  DISABLED: {status: disabled, enabled: true}
  HALF: {enabled: true, rules: [{type: percentage, value: 50}]}
  STAFF: {enabled: false, rules: [{type: user_segment, value: staff}]}
  COLOR: {variants: {red: "#f00", blue: "#00f"}, default: blue, metadata: {team: web}}
  RATIO: {variants: {whole: 1, half: 0.5}, default: whole}
  COUNT: {variants: {few: 3, many: 10}, default: few}
  SHAPE: {variants: {a: {sides: 3, names: [x, y]}}, default: a}
  OPEN: {variants: {a: A}}
  TYPED_OFF: {enabled: false, status: disabled, variants: {a: A}, default: a}
  RISKY: {enabled: true, dangerous: true, rules: [{type: nonsense}]}
  BROKEN: {enabled: true, rules: [{type: nonsense}]}
"""
PROTOCOL = yaml.safe_load((Path(__file__).parent / "conformance" / "ofrep" / "openapi.yaml").read_text())


@pytest.fixture
def site(own_project):
    return make_site(own_project, FLAGS)


@pytest.fixture
def client(site):
    with visitor(site, role=None) as client:
        client.headers.clear()
        yield client


def ask(client, key, context=None):
    answer = client.post(f"{ONE}{key}", json={"context": {"targetingKey": "u", **(context or {})}})
    return answer.status_code, answer.json()


def schema(name):
    """A schema of the protocol, with the two slips of its document mended: see tests/conformance/ofrep/SOURCE."""
    whole = json.loads(json.dumps(PROTOCOL))
    success = whole["components"]["schemas"]["evaluationSuccess"]["allOf"]
    success[0]["properties"]["reason"]["enum"].append("DEFAULT")
    success[0]["properties"]["variant"]["type"] = ["string", "null"]
    success[1] = {"anyOf": success[1]["oneOf"]}
    bulk = whole["components"]["schemas"]["bulkEvaluationSuccess"]["properties"]["flags"]
    bulk["items"] = {"anyOf": bulk["items"]["oneOf"]}
    registry = Registry().with_resource("urn:ofrep", Resource(whole, DRAFT202012))
    return Draft202012Validator({"$ref": f"urn:ofrep#/components/schemas/{name}"}, registry=registry)


# --- one flag ---


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("ON", {"value": True, "reason": "STATIC", "variant": "on"}),
        ("OFF", {"value": False, "reason": "STATIC", "variant": "off"}),
        ("DISABLED", {"value": False, "reason": "DISABLED", "variant": None}),
        ("COLOR", {"value": "#00f", "reason": "STATIC", "variant": "blue"}),
        ("RATIO", {"value": 1.0, "reason": "STATIC", "variant": "whole"}),
        ("COUNT", {"value": 3, "reason": "STATIC", "variant": "few"}),
        ("SHAPE", {"value": {"sides": 3, "names": ["x", "y"]}, "reason": "STATIC", "variant": "a"}),
        ("OPEN", {"reason": "DEFAULT", "variant": None}),
        ("TYPED_OFF", {"reason": "DISABLED", "variant": None}),
    ],
)
def test_a_flag_gives_its_typed_value_reason_and_variant(client, key, said):
    status, body = ask(client, key)
    metadata = body.pop("metadata")
    assert (status, body) == (200, {"key": key, **said})
    assert type(body.get("value")) is type(said.get("value"))
    assert metadata.keys() >= {"flagSetId", "version"}
    assert list(schema("serverEvaluationSuccess").iter_errors({**body, "metadata": metadata})) == []


def test_the_context_decides(client, site):
    assert ask(client, "STAFF", {"email": "ann@ours.example"})[1]["reason"] == "TARGETING_MATCH"
    assert ask(client, "STAFF", {"email": "ann@theirs.example"})[1]["value"] is False
    snapshot = site.admin.source.snapshot
    for number in range(50):
        answer = client.post(f"{ONE}HALF", json={"context": {"targetingKey": f"user-{number}"}}).json()
        ours = snapshot.evaluate("HALF", snapshot.request(user_id=f"user-{number}"))
        assert (answer["value"], answer["reason"]) == (ours.value, ours.reason)


def test_a_change_at_run_time_shows_in_the_next_answer(client, site):
    assert ask(client, "ON")[1]["value"] is True
    site.admin.disable("ON", Author("ann", "web"))
    assert ask(client, "ON")[1]["value"] is False


def test_there_is_no_such_flag(client):
    for key in ("NOTHING", "a/b/c", "%2e%2e", "x" * 500):
        status, body = ask(client, key)
        assert (status, body["errorCode"]) == (404, "FLAG_NOT_FOUND")
        assert list(schema("flagNotFound").iter_errors(body)) == []


def test_a_broken_flag_is_an_error_but_a_dangerous_one_is_off(client):
    status, body = ask(client, "BROKEN")
    assert (status, body["errorCode"], "nonsense" in body["errorDetails"]) == (400, "PARSE_ERROR", True)
    assert list(schema("evaluationFailure").iter_errors(body)) == []
    status, body = ask(client, "RISKY")
    assert (status, body["value"], body["variant"], body["reason"]) == (200, False, "off", "DISABLED")
    assert body["metadata"]["errorCode"] == "PARSE_ERROR"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "PARSE_ERROR"),
        (b"\xff\xfe", "PARSE_ERROR"),
        (b"[]", "PARSE_ERROR"),
        (b"[" * 100_000, "PARSE_ERROR"),
        (b'{"context": []}', "INVALID_CONTEXT"),
        (b'{"context": "x"}', "INVALID_CONTEXT"),
        (b'{"context": 0}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": 5}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": ["a"]}}', "INVALID_CONTEXT"),
    ],
)
def test_a_request_that_cannot_be_read_says_why(client, body, code):
    one, every = client.post(f"{ONE}ON", content=body), client.post(ALL, content=body)
    assert (one.status_code, every.status_code) == (400, 400)
    assert (one.json()["errorCode"], every.json()["errorCode"]) == (code, code)
    assert one.json()["key"] == "ON"
    assert list(schema("evaluationFailure").iter_errors(one.json())) == []
    assert list(schema("bulkEvaluationFailure").iter_errors(every.json())) == []


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"context": {}}', b'{"context": null}', b'{"context": {"targetingKey": ""}}', b'{"x": 1}']
)
def test_a_context_may_be_left_out_as_clients_do(client, body):
    assert client.post(f"{ONE}ON", content=body).json()["value"] is True
    assert client.post(f"{ONE}HALF", content=body).json()["metadata"]["key_missing"] is True


# --- all flags ---


def test_all_flags_at_once_say_what_each_says_alone(client):
    context = {"email": "ann@ours.example"}
    body = client.post(ALL, json={"context": {"targetingKey": "u", **context}}).json()
    assert [flag["key"] for flag in body["flags"]] == re.findall(r"^  ([A-Z_]+): ", FLAGS, re.MULTILINE)
    for flag in body["flags"]:
        assert flag == ask(client, flag["key"], context)[1]
    assert body["metadata"]["flagSetId"] == "flags.yaml"
    assert list(schema("bulkEvaluationSuccess").iter_errors(body)) == []


def test_whoever_knows_the_answer_gets_304_until_something_changes_for_them(client, site):
    asked = {"context": {"targetingKey": "u"}}
    first = client.post(ALL, json=asked)
    etag = first.headers["etag"]
    for known in (etag, etag.strip('"'), f"W/{etag}", f'"other", {etag}', "*"):
        again = client.post(ALL, json=asked, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.post(ALL, json=asked, headers={"If-None-Match": '"other"'}).status_code == 200
    other = client.post(ALL, json={"context": {"email": "x@ours.example"}}, headers={"If-None-Match": etag})
    assert other.status_code == 200
    site.admin.disable("ON", Author("ann", "web"))
    changed = client.post(
        f"{ALL}?flagConfigEtag=x&flagConfigLastModified=1", json=asked, headers={"If-None-Match": etag}
    )
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


def test_no_flags_at_all_are_an_empty_list(own_project):
    with visitor(make_site(own_project, flags=None), role=None) as client:
        answer = client.post(ALL, json={})
    assert (answer.status_code, answer.json()["flags"]) == (200, [])


def test_other_methods_and_addresses_are_refused_in_json(client):
    for answer in (client.get(ALL), client.put(f"{ONE}ON"), client.post("/ofrep/v2/evaluate/flags")):
        assert answer.status_code in (404, 405)
        assert answer.json()["errorCode"] == "GENERAL"
    assert client.get("/ofrep/v1/configuration").status_code == 404  # the protocol has it no more


# --- who may ---


def test_with_tokens_one_must_be_shown_as_bearer_or_as_api_key(own_project):
    site = make_site(own_project, FLAGS, tokens={token_digest("secret"): ("app", Role.VIEWER)})
    with visitor(site, role=None) as client:
        client.headers.clear()
        assert client.post(ALL, json={}).status_code == 401
        assert client.post(ALL, json={}, headers={"Authorization": "Bearer other"}).status_code == 401
        assert client.post(ALL, json={}, headers={"X-API-Key": "other"}).status_code == 401
        assert client.post(ALL, json={}, headers={"X-API-Key": "secret"}).status_code == 200
        good = client.post(ALL, json={}, headers={"Authorization": "Bearer secret"})
        # an EventSource sends no header: the address lets in who was told it
        address = good.json()["eventStreams"][0]["endpoint"]["requestUri"]
        assert client.get(address.partition("?")[0]).status_code == 401
        assert client.get(f"{address}x").status_code == 401
        assert client.get(f"{address}%C3%A9").status_code == 401
        assert "secret" not in address


def test_without_tokens_programs_of_this_machine_ask_freely_but_not_other_sites_pages(client):
    assert client.post(ALL, json={}).status_code == 200
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert client.post(ALL, json={}, headers=headers).status_code == 403
    assert client.post(ALL, json={}, headers={"Authorization": "Bearer made-up"}).status_code == 401


@pytest.mark.parametrize(
    "web", [{"url": "https://jarvis.internal"}, {"hosts": frozenset({"jarvis.internal"})}, {"host": "0.0.0.0"}]
)
def test_where_others_can_ask_nobody_does_without_a_token_unless_somebody_said_so(own_project, web):
    def asked(**more):
        site = make_site(own_project, FLAGS, **web, **more)
        with visitor(site, role=None) as client:
            client.headers.clear()
            return client.post(ALL, json={}).status_code

    assert asked() == 401
    assert asked(insecure_no_auth=True) == 200
    with visitor(make_site(own_project, FLAGS, **web), role=None) as client:
        assert client.get("/ofrep/v1/events").status_code == 401


# --- the change stream ---


class Listener:
    """Reads a stream of events off a server."""

    def __init__(self, port, path, **headers):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self.connection.request("GET", path, headers=headers)
        self.answer = self.connection.getresponse()
        assert (self.answer.status, self.answer.headers.get_content_type()) == (200, "text/event-stream")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def event(self):
        """The next event, comments passed over."""
        event = {}
        while line := self.answer.readline().decode().rstrip("\n"):
            if not line.startswith(":"):
                name, _, text = line.partition(": ")
                event[name] = text
        return event or self.event()

    def begun(self):
        assert self.answer.readline().startswith(b":")
        assert self.answer.readline() == b"\n"
        return self


def test_a_change_is_told_on_the_stream_that_the_answer_names(flag_file):
    flag_file(FLAGS)
    with web_server() as web:
        [stream] = json.loads(web.ask("POST", ALL, b"{}")[2])["eventStreams"]
        assert list(schema("eventStream").iter_errors(stream)) == []
        address = stream["endpoint"]["requestUri"]
        with Listener(web.port, address) as one, Listener(web.port, address) as other:
            one.begun(), other.begun()
            flag_file(FLAGS.replace("ON: {enabled: true}", "ON: {enabled: false}"))
            events = [one.event(), other.event()]
            assert events[0] == events[1]
            data = json.loads(events[0]["data"])
            assert (events[0]["event"], data["type"]) == ("message", "refetchEvaluation")
            assert list(schema("sseEventData").iter_errors(data)) == []
            assert list(schema("sseEvent").iter_errors(events[0])) == []
            assert isinstance(data["lastModified"], int)
            assert json.loads(web.ask("POST", f"{ONE}ON", b"{}")[2])["value"] is False


def test_who_comes_back_misses_no_change(flag_file):
    flag_file("flags: {A: {enabled: false}}\n")
    with web_server() as web:
        address = "/ofrep/v1/events"
        with Listener(web.port, address).begun() as listener:
            flag_file("flags: {A: {enabled: true}}\n")
            first = listener.event()
            flag_file("flags: {A: {enabled: false}}\n")
            second = listener.event()
        with Listener(web.port, address, **{"Last-Event-ID": first["id"]}) as back:
            assert back.event() == second
        # who was there before the server was started anew is told to ask again
        with Listener(web.port, address, **{"Last-Event-ID": "0000-7"}) as stranger:
            assert json.loads(stranger.event()["data"])["type"] == "refetchEvaluation"


def test_hundreds_listen_at_once_and_hear_of_the_same_change(flag_file):
    flag_file("flags: {A: {enabled: false}}\n")
    with web_server() as web, contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(Listener(web.port, "/ofrep/v1/events")) for _ in range(250)]
        for listener in listeners:
            listener.begun()
        flag_file("flags: {A: {enabled: true}}\n")
        assert len({listener.event()["id"] for listener in listeners}) == 1
        assert web.ask("POST", ALL, b"{}")[0] == 200


# --- the real client ---


@pytest.fixture(scope="module")
def relay(tmp_path_factory):
    """One `jarvis web` for all scenarios, over the suite's flags."""
    home = tmp_path_factory.mktemp("relay")
    (home / "config").mkdir()
    (home / "config" / "flags.yaml").write_text((suite.SUITE / "flags.yaml").read_text())
    with web_server(JARVIS_HOME=str(home)) as web:
        yield web


@pytest.fixture
def world(flag_file, relay):
    world = suite.World(flag_file)
    world.relay = relay
    yield world
    api.shutdown()
    api.clear_hooks()


# what is said of the client itself, not of the relay
OF_THE_CLIENT = {
    "Evaluation context immutability": "the client gives metadata that can be changed",
    "Type mismatch error [Number evaluations 1]": "the client takes true for the integer 1",
}
OF_THE_PROVIDER = ("a not ready provider", "a fatal provider", "a error provider", "a stale provider")
EVALUATIONS = [case for case in suite.SCENARIOS if case.id.startswith("evaluation_v2")]


@pytest.mark.parametrize("scenario", EVALUATIONS)
def test_openfeatures_scenario_holds_through_the_real_client(world, scenario):
    for tag in scenario.tags & suite.NOT_OURS.keys():
        pytest.skip(suite.NOT_OURS[tag])
    if scenario.name in OF_THE_CLIENT:
        pytest.skip(OF_THE_CLIENT[scenario.name])
    if any(step.text in OF_THE_PROVIDER for step in scenario.steps):
        pytest.skip("about the state of the client's provider, in which it asks no relay")
    for item in scenario.steps:
        if item.text == "a stable provider":
            world.use(OFREPProvider(world.relay.url))
            continue
        [(match, run)] = [(match, run) for regex, run in suite._STEPS if (match := regex.fullmatch(item.text))]
        run(world, *match.groups(), *([item.table] if item.table else []))


def test_those_are_all_82():
    assert len(EVALUATIONS) == 82


def test_the_real_client_shows_its_token(own_project):
    (own_project / "config" / "flags.yaml").write_text(FLAGS)
    digest = token_digest("secret")
    (own_project / "config" / "jarvis.yaml").write_text(f'web_tokens: {{app: "sha256:{digest} viewer"}}\n')
    with web_server() as web:
        provider = OFREPProvider(web.url, headers_factory=lambda: {"Authorization": "Bearer secret"})
        assert provider.resolve_boolean_details("ON", False).value is True
        assert provider.resolve_float_details("RATIO", 0.0).value == 1.0
        assert provider.resolve_boolean_details("DISABLED", True).reason == "DISABLED"
        with pytest.raises(Exception, match="unauthorized"):
            OFREPProvider(web.url).resolve_boolean_details("ON", False)


def test_threads_that_ask_while_flags_change_get_the_old_or_the_new_answer(site):
    with visitor(site, role=None) as client:
        got, done = set(), threading.Event()

        def toggle():
            for number in range(40):
                (site.admin.enable if number % 2 else site.admin.disable)("ON", Author("ann", "web"))
            done.set()

        thread = threading.Thread(target=toggle)
        thread.start()
        while not done.is_set():
            body = client.post(ALL, json={}).json()
            by_key = {flag["key"]: flag for flag in body["flags"]}
            assert by_key["ON"]["metadata"]["version"] == body["metadata"]["version"]
            got.add(by_key["ON"]["value"])
        thread.join()
    assert got <= {True, False}
