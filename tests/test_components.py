"""Component files: each service's records once more, and whatever a client calls a service stays in their folder."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_collector.components import ComponentFiles
from jarvis_collector.layout import COMPONENTS, component_path, day_name
from jarvis_collector.otlp import Encoding, Signal, read
from jarvis_collector.writer import Write, Writer

DAY = "2026-01-02"


def lines(*services, message="x"):
    """Lines as the collector makes them."""
    groups = [
        {
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]},
            "scopeLogs": [{"logRecords": [{"body": {"stringValue": message}}]}],
        }
        for service in services
    ]
    return read(Signal.LOGS, Encoding.JSON, orjson.dumps({"resourceLogs": groups}), 1_767_323_045_678_901_234).lines


@pytest.fixture
def files(tmp_path):
    made = ComponentFiles(tmp_path, wanted=True)
    yield made
    made.close()


def services_in(path):
    return [json.loads(line)["service"] for line in path.read_bytes().split(b"\n")[:-1]]


def test_each_service_has_its_records_in_its_own_file(tmp_path, files):
    files.append(DAY, lines("trading", "api", "trading"))
    files.append(DAY, lines("trading"))
    assert services_in(component_path(tmp_path, "trading", DAY)) == ["trading"] * 3
    assert services_in(tmp_path / "components" / "api-2026-01-02.jsonl") == ["api"]
    assert {path.stat().st_mode & 0o137 for path in (tmp_path / "components").iterdir()} == {0}


def test_a_message_that_looks_like_the_key_does_not_make_the_service(tmp_path, files):
    files.append(DAY, lines("api", message='x","service":"trading'))
    assert services_in(component_path(tmp_path, "api", DAY)) == ["api"]


def test_nothing_is_written_unless_it_is_wanted(tmp_path, files):
    files.wanted = False
    files.append(DAY, lines("api"))
    assert not (tmp_path / COMPONENTS).exists()


HOSTILE = [
    "../../etc/x",
    "/etc/passwd",
    "a" * 5000,
    "a\0b",
    "",
    ".",
    "..",
    "CON",
    "Trading",
    "TRADING",
    "trading",
    ".hidden",
    "a/b",
    "é",
    "-rf",
]


@settings(max_examples=50)
@given(st.lists(st.one_of(st.text(max_size=80), st.sampled_from(HOSTILE)), max_size=20))
def test_a_service_never_becomes_a_path_outside_and_no_two_share_a_file(tmp_path_factory, names):
    log_dir = tmp_path_factory.mktemp("logs")
    files = ComponentFiles(log_dir, wanted=True)
    sent = lines(*names, *HOSTILE)
    files.append(DAY, sent)
    files.close()
    assert [path.name for path in log_dir.iterdir()] == [COMPONENTS]
    found = [services_in(path) for path in (log_dir / COMPONENTS).iterdir()]
    assert all(len(set(services)) == 1 for services in found)
    assert sorted(name for services in found for name in services) == sorted(
        json.loads(line)["service"] for line in sent
    )
    paths = [path.name for path in (log_dir / COMPONENTS).iterdir()]
    assert len({name.lower() for name in paths}) == len(paths)
    assert all(day_name(name) for name in paths)


def test_a_torn_last_line_is_ended_when_the_file_is_opened_again(tmp_path, files):
    path = component_path(tmp_path, "api", DAY)
    files.append(DAY, lines("api"))
    files.close()
    path.write_bytes(path.read_bytes() + b'{"timestamp":"20')
    files.append(DAY, lines("api"))
    assert services_in(path) == ["api", "api"]


def test_more_services_than_may_be_open_are_all_written(tmp_path, files):
    names = [f"s{number}" for number in range(100)]
    files.append(DAY, lines(*names))
    files.append(DAY, lines(*names))
    assert sorted(name for path in (tmp_path / COMPONENTS).iterdir() for name in services_in(path)) == sorted(names * 2)
    assert len(files._files) <= 32


def test_a_link_is_not_followed_and_what_fails_is_counted_and_fails_no_write(tmp_path):
    (tmp_path / COMPONENTS).mkdir()
    (tmp_path / "elsewhere").write_bytes(b"")
    component_path(tmp_path, "api", DAY).symlink_to(tmp_path / "elsewhere")
    settled = []
    writer = Writer(tmp_path, settled.extend, lambda: 1_767_355_200_000_000_000, components=True)
    writer.start()
    writer.submit(Write("jarvis", lines("api", "ok"), lambda _: None))
    writer.stop()
    assert [write.error for write in settled] == [None]
    assert (tmp_path / "elsewhere").read_bytes() == b""
    assert (writer.components.missed, type(writer.components.problem)) == (1, OSError)
    assert services_in(component_path(tmp_path, "ok", DAY)) == ["ok"]
