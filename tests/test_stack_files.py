"""The files of the real stack that need no peer to be checked: compose, image, dashboards, documented settings."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from jsonschema.validators import validator_for

from jarvis_flags.parse import parse_flags
from jarvis_flags.tree import load_tree
from tests.dashboards import DASHBOARDS, DOCUMENTED, GRAFANA, variables_in

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
BUILD_REAL = (ROOT / "scripts" / "build-real").read_text()
OURS = "jarvis-otel:local"
UNPROFILED = {"otelcol", "otelcol-loki", "loki", "grafana"}


def images(service):
    """The images that a service stands on."""
    build = service.get("build")
    if isinstance(build, dict):
        return re.findall(r"^\s*FROM (\S+)", build["dockerfile_inline"], re.MULTILINE)
    return [service["image"]]


def version(name):
    """The version of a peer that the tests run against."""
    return re.search(rf"\b{name}=([\d.]+)", BUILD_REAL)[1]


def sources(service):
    return [ROOT / mount["source"] for mount in service["volumes"] if mount["type"] == "bind"]


def test_the_compose_file_is_what_the_specification_allows():
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec" / "compose-spec.json").read_text())
    validator = validator_for(schema)
    validator.check_schema(schema)
    assert [error.message for error in validator(schema).iter_errors(COMPOSE)] == []


def test_compose_up_starts_the_real_stack_and_a_profile_each_adds_what_is_ours():
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == UNPROFILED
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        "embedded": ["embedded"],
        "web": ["web"],
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_contained(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service["user"].startswith(("0", "root"))
    assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys()
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "healthcheck" in service


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_mounts_is_in_a_fresh_checkout_and_no_directory_is_made_for_it(name):
    service = SERVICES[name]
    for source in sources(service):
        assert source.exists()
        assert source.is_file() or source.is_relative_to(ROOT / "config") or (source / ".gitkeep").exists()
    written = [mount for mount in service["volumes"] if mount["type"] == "bind" and not mount.get("read_only")]
    assert all(mount["bind"] == {"create_host_path": False} for mount in written)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_to_a_version(name):
    for image in images(SERVICES[name]):
        assert image == OURS or re.search(r":v?\d+\.\d+\.\d+", image), image


def test_images_are_of_the_versions_that_are_tested():
    collector = f"otel/opentelemetry-collector-contrib:{version('collector')}"
    assert collector in images(SERVICES["otelcol"])
    assert images(SERVICES["otelcol-loki"]) == [collector]
    assert images(SERVICES["loki"]) == [f"grafana/loki:{version('loki')}"]
    builder = yaml.safe_load((ROOT / "collector" / "builder.yaml").read_text())
    modules = [
        entry["gomod"] for kind in ("receivers", "processors", "exporters", "extensions") for entry in builder[kind]
    ]
    assert {module.split()[1] for module in modules} == {f"v{version('collector')}"}


def test_each_collector_is_stopped_as_it_loses_least_and_counts_its_days_in_utc():
    assert SERVICES["otelcol"]["stop_signal"] == "SIGTERM"
    assert SERVICES["otelcol"]["environment"]["TZ"] == "UTC"
    assert SERVICES["otelcol-loki"]["stop_signal"] == "SIGKILL"


@pytest.mark.parametrize(("name", "config"), [("otelcol", "otelcol.yaml"), ("otelcol-loki", "otelcol-loki.yaml")])
def test_compose_sets_every_variable_that_a_collector_reads_and_mounts_its_configuration(name, config):
    text = (ROOT / "collector" / config).read_text()
    assert set(re.findall(r"\$\{env:(\w+)", text)) == SERVICES[name]["environment"].keys() - {"TZ"}
    assert ROOT / "collector" / config in sources(SERVICES[name])


def test_the_image_is_made_of_files_that_are_there_and_that_docker_is_shown():
    dockerfile = (ROOT / "Dockerfile").read_text()
    shown = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for arguments in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE)
        for source in [word for word in arguments.split() if not word.startswith("--")][:-1]
    ]
    assert len(copied) > 8
    assert set(copied) == shown
    assert all((ROOT / source).exists() for source in copied)
    assert re.search(r"^USER 10001", dockerfile, re.MULTILINE)


def test_loki_has_three_labels_and_takes_what_is_sent():
    limits = yaml.safe_load((ROOT / "config" / "loki.yaml").read_text())["limits_config"]
    attributes = limits["otlp_config"]["resource_attributes"]
    assert attributes["ignore_defaults"] is True
    assert attributes["attributes_config"] == [
        {"action": "index_label", "attributes": ["service.name", "service.namespace", "deployment.environment.name"]}
    ]
    assert limits["allow_structured_metadata"] is True


def test_what_the_docs_add_for_other_targets_fits_our_configuration():
    ours = yaml.safe_load((ROOT / "collector" / "otelcol-loki.yaml").read_text())
    assert list(DOCUMENTED) == ["grafana_cloud", "another_collector", "elk", "cloudwatch"]
    for name, block in DOCUMENTED.items():
        (logs,) = {**ours["service"], **block.get("service", {})}["pipelines"].values()
        for kind, ids in logs.items():
            assert set(ids) <= ours[kind].keys() | block.get(kind, {}).keys(), name
        assert set(logs["exporters"]) == block["exporters"].keys()


# --- dashboards ---


def test_the_four_dashboards_have_uids_of_their_own():
    assert {name: board["uid"] for name, board in DASHBOARDS.items()} == {
        name: f"jarvis-{name}" for name in ("correlation", "flag-impact", "flags", "overview")
    }
    assert len({board["title"] for board in DASHBOARDS.values()}) == 4


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_fit_the_grid_and_do_not_overlap(name):
    places = [panel["gridPos"] for panel in DASHBOARDS[name]["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_ids_titles_and_descriptions_of_their_own(name):
    panels = DASHBOARDS[name]["panels"]
    for key in ("id", "title", "description"):
        assert len({panel[key] for panel in panels}) == len(panels)
        assert all(panel[key] for panel in panels)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_of_figures_has_a_unit(name):
    for panel in DASHBOARDS[name]["panels"]:
        assert panel["type"] == "logs" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_variable_that_is_used_is_defined_and_the_other_way_round(name):
    board = DASHBOARDS[name]
    templating = board["templating"]["list"]
    rest = {key: value for key, value in board.items() if key != "templating"}
    used = variables_in(json.dumps(rest)) | {
        used for variable in templating for used in variables_in(json.dumps(variable.get("datasource", "")))
    }
    assert used == {variable["name"] for variable in templating}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_everything_asks_the_data_source_that_is_chosen(name):
    board = DASHBOARDS[name]
    chosen = {"type": "loki", "uid": "${datasource}"}
    asked = [panel["datasource"] for panel in board["panels"]]
    asked += [target["datasource"] for panel in board["panels"] for target in panel["targets"]]
    asked += [annotation["datasource"] for annotation in board["annotations"]["list"]]
    assert all(datasource == chosen for datasource in asked)
    assert [v["query"] for v in board["templating"]["list"] if v["type"] == "datasource"] == ["loki"]


def test_the_data_source_is_provisioned_and_its_links_lead_to_what_there_is():
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "loki.yaml").read_text())["datasources"]
    assert (source["type"], source["uid"], source["url"]) == ("loki", "loki", "http://loki:3100")
    urls = [field["url"] for field in source["jsonData"]["derivedFields"]]
    for url in urls:
        # in a provisioned file one dollar sign is Grafana's environment, two are one
        assert set(re.findall(r"(?<!\$)\$\{(\w+)\}", url)) <= SERVICES["grafana"]["environment"].keys()
    uid, variable = re.search(r"/d/(.+)\?var-(\w+)=", urls[1]).groups()
    (board,) = [board for board in DASHBOARDS.values() if board["uid"] == uid]
    assert variable in {item["name"] for item in board["templating"]["list"]}


def test_the_dashboards_are_provisioned_from_where_compose_mounts_them():
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "jarvis.yaml").read_text())["providers"]
    targets = {
        mount["target"]: ROOT / mount["source"] for mount in SERVICES["grafana"]["volumes"] if mount["type"] == "bind"
    }
    assert targets[provider["options"]["path"]] == GRAFANA / "dashboards"
    assert targets["/etc/grafana/provisioning"] == GRAFANA / "provisioning"


def test_the_flags_to_choose_from_are_those_of_the_project():
    ids = list(parse_flags(load_tree((ROOT / "config" / "flags.yaml").read_bytes()), "flags.yaml").flags)
    for name in ("flags", "flag-impact"):
        (variable,) = [v for v in DASHBOARDS[name]["templating"]["list"] if v["name"] == "flag"]
        assert variable["query"].split(",") == ids
        assert [option["value"] for option in variable["options"]] == ids
