"""The collector keeps the indexes of its day files, so that whoever asks need not."""

import io
import signal
from datetime import UTC, datetime, timedelta

import pytest

from jarvis_collector.archivist import Archivist
from jarvis_collector.config import Retention
from jarvis_collector.layout import archive_path, index_path
from jarvis_collector.own_log import OwnLog
from jarvis_otel.query.index_build import bring_up_to_date
from jarvis_otel.query.log_query import LogQuery
from tests.collectors import commanded, logs, starting
from tests.day_files import day_file, numbers
from tests.otlp_sink import until
from tests.test_query_index import index_of, line

start = pytest.fixture(starting)
NOON = datetime(2026, 1, 20, 12, tzinfo=UTC)


@pytest.fixture
def archivist(tmp_path):
    """Starts an archivist whose clock can be put forward."""
    made = []

    def make(index=bring_up_to_date, **retention):
        said, now = io.StringIO(), [NOON]
        one = Archivist(
            tmp_path,
            Retention(min_free=0.0, **retention),
            OwnLog(stream=said),
            index=index,
            clock=lambda: int(now[0].timestamp()) * 1_000_000_000,
            interval=0.01,
        )
        one.said, one.now = said, now
        made.append(one)
        one.start()
        return one

    yield make
    for one in made:
        one.stop()


def many(count, first=0):
    return [line(str(at), at, context={"n": at}) for at in range(first, first + count)]


def test_closed_days_and_today_as_far_as_it_goes_are_indexed(tmp_path, archivist):
    paths = [day_file(tmp_path, day, many(20)) for day in (18, 19, 20)]
    paths.append(day_file(tmp_path, 19, many(2), stream="traces"))
    one = archivist()
    until(lambda: "4 brought up to date" in one.said.getvalue())
    assert [index_of(path).origin.covered for path in paths] == [path.stat().st_size for path in paths]
    assert one.index_problem is None


def test_what_came_since_is_indexed_with_the_next_pass(tmp_path, archivist):
    path = day_file(tmp_path, 20, many(20))
    one = archivist()
    until(index_path(path).exists)
    with path.open("ab") as file:
        file.write(b"".join(many(20, 20)))
    one.now[0] += timedelta(days=1)
    until(lambda: (index := index_of(path)) and index.origin.covered == path.stat().st_size)
    assert numbers(LogQuery(tmp_path).iterate(text="39")) == [39]


def test_an_archived_day_has_the_index_of_its_archive_and_a_purged_one_none(tmp_path, archivist):
    paths = [day_file(tmp_path, day, many(20)) for day in (10, 12, 20)]
    for path in paths:
        index_path(path).parent.mkdir(exist_ok=True)
        index_path(path).write_bytes(b"of old")
    one = archivist(keep_days=9)
    until(lambda: one.last_pass and "brought up to date" in one.said.getvalue())
    indexed = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.idx"))
    assert indexed == [
        ".index/jarvis-2026-01-20.jsonl.idx",
        "archive/2026-01/.index/jarvis-2026-01-12.jsonl.gz.idx",
    ]
    assert index_of(archive_path(paths[1])) is not None


def test_an_index_that_cannot_be_written_is_told_once_and_holds_up_nothing(tmp_path, archivist):
    day_file(tmp_path, 20, many(3))
    (tmp_path / ".index").write_text("in the way")
    old = day_file(tmp_path, 10, many(3))
    one = archivist(plain_days=7)
    until(lambda: one.index_problem)
    assert archive_path(old).exists()
    one.now[0] += timedelta(days=1)
    until(lambda: one.last_pass == one.now[0].timestamp())
    assert one.said.getvalue().count("indexes: jarvis-2026-01-20.jsonl: ") == 1
    assert one.problem is None


def test_whatever_goes_wrong_with_an_index_the_thread_lives(tmp_path, archivist):
    def broken(_directory, _stop):
        raise ValueError("odd")

    one = archivist(broken)
    until(lambda: one.index_problem == "ValueError: odd")
    old = day_file(tmp_path, 10, many(3))
    one.now[0] += timedelta(days=1)
    until(archive_path(old).exists)


def test_it_stops_in_the_middle_of_a_file_and_leaves_no_half_index(tmp_path, archivist):
    path = day_file(tmp_path, 20, [line("x" * 1000, at) for at in range(20_000)])
    asked = []

    def slowly(directory, stop):
        def stopped():
            asked.append(1)
            return stop()

        return bring_up_to_date(directory, stopped)

    one = archivist(slowly)
    until(lambda: len(asked) > 3)
    one.stop()
    assert not index_path(path).exists()
    assert list(tmp_path.rglob("*.tmp")) == []


def test_the_collector_indexes_unless_the_settings_say_otherwise(start, tmp_path, own_project):
    directory = tmp_path / "logs"
    directory.mkdir()
    path, old = day_file(directory, 18, many(20)), directory / "jarvis-2001-01-18.jsonl"
    old.write_bytes(b"".join(many(1)))
    settings = own_project / "config" / "jarvis.yaml"
    settings.write_text("collector_index: false\nretention_plain_days: 3000\nretention_keep_days: 3000\n")
    collector = start(directory, "--grpc-port", "off", by=commanded)
    until(lambda: not old.exists())
    assert collector.request(body=logs("a")).status == 200
    assert not index_path(path).exists()
    settings.write_text("collector_index: true\nretention_plain_days: 3001\nretention_keep_days: 3001\n")
    collector.process.send_signal(signal.SIGHUP)
    told = collector.wait_for("indexes: ")
    assert path.name in told["context"]["indexed"]
    assert index_of(path) is not None
    assert collector.stop() == 0
