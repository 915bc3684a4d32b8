"""What docs/etcd.md and its compose file say is so."""

import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema.validators import validator_for

from jarvis_flags.settings import FLAG_KEYS
from jarvis_otel.etcd import etcd_store, follower, session

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "etcd.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "config" / "etcd" / "compose.yml").read_text())
MEMBERS = COMPOSE["services"]


def test_the_compose_file_is_what_the_specification_allows():
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec" / "compose-spec.json").read_text())
    validator = validator_for(schema)
    assert [error.message for error in validator(schema).iter_errors(COMPOSE)] == []


def test_its_members_are_three_that_know_each_other():
    assert len(MEMBERS) == 3
    cluster = {member["environment"]["ETCD_INITIAL_CLUSTER"] for member in MEMBERS.values()}
    named = {name: f"http://{name}:2380" for name in MEMBERS}
    assert cluster == {",".join(f"{name}={url}" for name, url in named.items())}
    for name, member in MEMBERS.items():
        assert member["environment"]["ETCD_NAME"] == name
        assert member["environment"]["ETCD_INITIAL_ADVERTISE_PEER_URLS"] == named[name]
        assert [mount["source"] for mount in member["volumes"]] == [name]


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_is_contained_and_listens_on_loopback_only(name):
    member = MEMBERS[name]
    assert member["read_only"] is True
    assert member["cap_drop"] == ["ALL"]
    assert member["security_opt"] == ["no-new-privileges:true"]
    assert not member["user"].startswith(("0", "root"))
    assert "healthcheck" in member
    assert all(port.startswith("127.0.0.1:") for port in member["ports"])


def test_the_ports_of_the_compose_file_are_those_that_the_docs_name():
    ports = [port.split(":")[1] for member in MEMBERS.values() for port in member["ports"]]
    urls = ",".join(f"http://127.0.0.1:{port}" for port in ports)
    assert f"JARVIS_ETCD_ENDPOINTS={urls}" in DOCS


def test_the_docs_name_every_setting_and_the_settings_file_too():
    settings = {key for key in FLAG_KEYS if key.startswith(("etcd_", "flags_store"))} - {"etcd_password"}
    file = (ROOT / "config" / "jarvis.yaml").read_text()
    for key in settings:
        assert f"`{key}`" in DOCS, key
        assert re.search(rf"^# {key}: ", file, re.MULTILINE), key


def test_the_times_that_the_docs_name_are_those_of_the_code():
    assert follower.HEARTBEAT_S == 3
    assert "every three seconds" in DOCS
    assert "missed heartbeat (3 s)" in DOCS
    assert follower.GRACE_S == 60
    assert "ERROR after a minute" in DOCS
    assert session.LEASE_S == 20
    assert "another 20 s" in DOCS
    assert etcd_store.COMMIT_S == 6
    assert "for six seconds" in DOCS
