"""flagd's own evaluator suite over flags that `import_flagd` made of its testkit, through OpenFeature's provider."""

import json
import re
from pathlib import Path

import pytest
import yaml
from openfeature.evaluation_context import EvaluationContext

from jarvis_flags import YamlFlagProvider
from jarvis_flags.flagd import import_flagd
from jarvis_flags.tree import load_tree
from tests.gherkin import read_feature

SUITE = Path(__file__).parent / "conformance" / "flagd-evaluator"
SCENARIOS = [
    pytest.param(scenario, id=f"{path.stem}: {scenario.name}")
    for path in sorted((SUITE / "gherkin").glob("*.feature"))
    for scenario in read_feature(path)
]
HASH_OF_TAG = {"fractional-v2": "flagd-v2", "fractional-v3": "flagd-v3"}

# "The resolved metadata is empty" is taken for: the flag has none of its own beside what every result says.
PROVIDERS_OWN_METADATA = {"flagSetId", "version", "contextId"}

READERS = {"Boolean": json.loads, "String": str, "Integer": int, "Float": float, "Object": json.loads}


@pytest.fixture(scope="session")
def providers(tmp_path_factory):
    """A provider for each hash, over the imported testkit."""
    testkit = load_tree((SUITE / "flags" / "testkit-flags.json").read_bytes())
    made = {}
    for hash_name in HASH_OF_TAG.values():
        file = tmp_path_factory.mktemp("flagd") / "flags.yaml"
        file.write_text(yaml.safe_dump(import_flagd(testkit, hash_name).document))
        made[hash_name] = YamlFlagProvider(file)
    yield made
    for provider in made.values():
        provider.shutdown()


class World:
    def __init__(self, provider):
        self.provider = provider
        self.attributes = {}
        self.user = self.kind = self.key = self.default = self.details = None

    def flag(self, kind, key, default):
        self.kind, self.key, self.default = kind, key, read(kind, default)

    def attribute(self, key, kind, value):
        self.attributes[key] = read(kind, value)

    def nested(self, outer, inner, value):
        self.attributes.setdefault(outer, {})[inner] = value

    def targeting_key(self, value):
        self.user = value

    def evaluate(self):
        resolve = getattr(self.provider, f"resolve_{self.kind.lower()}_details")
        self.details = resolve(self.key, self.default, EvaluationContext(self.user, self.attributes))

    def value_is(self, value):
        assert self.details.value == read(self.kind, value)

    def reason_is(self, reason):
        assert self.details.reason == reason

    def error_is(self, code):
        assert self.details.error_code == code

    def variant_is(self, variant):
        assert self.details.variant == variant

    def metadata_is_empty(self):
        assert set(self.details.flag_metadata) <= PROVIDERS_OWN_METADATA


def read(kind, text):
    return READERS[kind](text.replace('\\"', '"'))


Q = r'"((?:[^"\\]|\\.)*)"'
STEPS = [
    (r"an evaluator", lambda world: None),
    (rf"an? (\w+)-flag with key {Q} and a fallback value {Q}", World.flag),
    (rf"a context containing a targeting key with value {Q}", World.targeting_key),
    (rf"a context containing a key {Q}, with type {Q} and with value {Q}", World.attribute),
    (
        rf"a context containing a nested property with outer key {Q} and inner key {Q}, with value {Q}",
        World.nested,
    ),
    (r"the flag was evaluated with details", World.evaluate),
    (rf"the resolved details value should be {Q}", World.value_is),
    (rf"the reason should be {Q}", World.reason_is),
    (rf"the error-code should be {Q}", World.error_is),
    (rf"the variant should be {Q}", World.variant_is),
    (r"the resolved metadata is empty", World.metadata_is_empty),
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_imported_flag_gives_what_flagds_suite_wants(scenario, providers):
    if "fractional-v1" in scenario.tags:
        pytest.skip("flagd's first hash is none that a flagd of today has")
    tagged = [hash_name for tag, hash_name in HASH_OF_TAG.items() if tag in scenario.tags]
    for hash_name in tagged or HASH_OF_TAG.values():
        world = World(providers[hash_name])
        for step in scenario.steps:
            if step.text == "the resolved metadata should contain":
                for key, kind, value in step.table[1:]:
                    assert world.details.flag_metadata[key] == read(kind, value)
                continue
            run, found = next((run, m) for pattern, run in STEPS if (m := re.fullmatch(pattern, step.text)))
            run(world, *found.groups())


def test_of_the_testkit_only_the_flag_with_a_reference_to_nothing_is_refused():
    testkit = load_tree((SUITE / "flags" / "testkit-flags.json").read_bytes())
    imported = import_flagd(testkit)
    (refusal,) = imported.refused
    assert refusal.path == "flags.ref-to-nonexistent-evaluator-flag.targeting.if[0]"
    assert refusal.reason == "got $ref 'nonexistent_evaluator', want one of $evaluators (is_ballmer)"
    assert len(imported.document["flags"]) == len(testkit["flags"]) - 1
