"""Retention: days grow old, are compressed and go, and no line is lost or doubled whatever happens meanwhile."""

import gzip
import io
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from jarvis_collector.archivist import Archivist
from jarvis_collector.config import Retention
from jarvis_collector.layout import archive_path, component_path, day_path, sidecar_path
from jarvis_collector.own_log import OwnLog
from jarvis_collector.retention import BusyError, rotate
from jarvis_collector.sidecar import read_sidecar
from jarvis_collector.writer import Write, Writer
from jarvis_otel.query.log_query import Criteria, LogQuery
from tests.otlp_sink import until

TODAY = date(2026, 3, 31)
ROOMY = Retention(min_free=0.0)


def noon(day=TODAY):
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()) * 1_000_000_000


def lines(day, count=3, width=0):
    noise = random.Random(day.toordinal())
    return [
        json.dumps(
            {
                "timestamp": f"{day}T{number * 23 // count:02}:00:00.{number:06}Z",
                "level": "INFO",
                "message": noise.randbytes(width // 2).hex(),
                "service": "trading",
                "active_flags": [],
                "context": {"n": number},
                "_meta": {"uid": f"{day}-{number}"},
            },
            separators=(",", ":"),
        ).encode()
        + b"\n"
        for number in range(count)
    ]


@pytest.fixture
def logs(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder


@pytest.fixture
def put(logs):
    """Writes the file of a day so many days ago, and tells its path."""

    def put_one(ago, stream="jarvis", content=None, component=None):
        day = TODAY - timedelta(days=ago)
        path = component_path(logs, component, f"{day}") if component else day_path(logs, stream, f"{day}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(lines(day)) if content is None else content)
        return path

    return put_one


def passed(logs, retention=ROOMY, today=TODAY, **options):
    return rotate(logs, retention, clock=lambda: noon(today), **options)


def everything(logs):
    """Each line of all files, plain and archived, by how often it is there."""
    found = Counter()
    for path in (*logs.rglob("*.jsonl"), *logs.rglob("*.jsonl.gz")):
        data = path.read_bytes()
        found.update((gzip.decompress(data) if path.suffix == ".gz" else data).split(b"\n")[:-1])
    return found


def test_days_stay_plain_for_a_week_are_compressed_until_a_month_and_then_go(logs, put):
    paths = {ago: put(ago) for ago in (-1, 0, 1, 7, 8, 30, 31, 400)}
    was = paths[8].read_bytes()
    report = passed(logs)
    assert [path.exists() for path in paths.values()] == [True, True, True, True, False, False, False, False]
    assert report.archived == [paths[30].name, paths[8].name]
    assert report.purged == [paths[400].name, paths[31].name]
    assert (report.problems, report.in_use, report.purged_unforwarded, report.finished) == ([], [], [], True)
    archive = logs / "archive" / "2026-03" / f"{paths[8].name}.gz"
    assert archive == archive_path(paths[8])
    assert subprocess.run(["zcat", archive], capture_output=True, check=True).stdout == was
    assert read_sidecar(archive) == (
        archive.stat().st_size,
        (b"2026-03-23T00:00:00.000000Z", b"2026-03-23T15:00:00.000002Z"),
    )
    again = passed(logs)
    assert (again.archived, again.purged) == ([], [])


def test_an_archive_is_purged_with_its_sidecar_and_its_empty_month(logs, put):
    put(8), put(8, component="trading")
    passed(logs)
    assert sorted(path.name for path in (logs / "archive").rglob("*-2026-*.gz")) == [
        "jarvis-2026-03-23.jsonl.gz",
        "trading-2026-03-23.jsonl.gz",
    ]
    report = passed(logs, today=TODAY + timedelta(days=23))
    assert report.purged == [
        "archive/2026-03/components/trading-2026-03-23.jsonl.gz",
        "archive/2026-03/jarvis-2026-03-23.jsonl.gz",
    ]
    assert list((logs / "archive").iterdir()) == []
    assert report.bytes_after == 0


def test_spans_metrics_and_component_files_grow_old_alike_and_other_files_are_left_alone(logs, put):
    old = [put(9), put(9, "traces"), put(9, "metrics"), put(9, component="Trading Bot")]
    others = [put(90, "notes"), logs / "readme.txt", logs / "jarvis-2026-13-99.jsonl"]
    for path in others[1:]:
        path.write_text("x")
    passed(logs)
    assert not any(path.exists() for path in old)
    assert all(archive_path(path).exists() for path in old)
    assert all(path.exists() for path in others)


def test_sidecars_of_plain_files_go_with_them_and_those_without_a_file_too(logs, put):
    path, gone = put(8), put(9)
    for each in (path, gone):
        sidecar_path(each).write_text('{"size": 1}')
    gone.unlink()
    passed(logs)
    assert [each.name for each in logs.iterdir() if each.name.endswith(".json")] == []


def test_files_are_for_the_owner_and_the_group_only(logs, put):
    put(8), put(8, component="a")
    old = os.umask(0o022)
    try:
        passed(logs)
    finally:
        os.umask(old)
    for path in [logs / "archive", *(logs / "archive").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_nothing_is_archived_or_purged_by_age_before_it_is_forwarded(logs, put):
    late, older, free = put(8), put(40), put(9)
    report = passed(logs, is_forwarded=lambda path: path == free)
    assert (report.archived, report.purged) == ([free.name], [])
    assert report.waiting == [older.name, late.name]
    assert late.exists()
    assert older.exists()
    assert passed(logs).purged == [older.name]


def test_a_file_that_somebody_has_open_for_writing_is_left_alone_and_for_reading_it_is_not(logs, put):
    written, read_ = put(8), put(9)
    with written.open("ab"), read_.open("rb") as reader:
        report = passed(logs)
        assert (report.in_use, report.archived) == ([written.name], [read_.name])
        assert reader.read() == b"".join(lines(TODAY - timedelta(days=9)))
    assert passed(logs).archived == [written.name]


def test_a_file_of_the_real_collector_is_left_alone_until_two_days_have_passed(logs, put):
    batch = b'{"resourceLogs":[{"scopeLogs":[]}]}\n'
    theirs, ours = put(1, "traces", batch), put(1)
    short = Retention(plain_days=0, min_free=0.0)
    assert passed(logs, short).archived == [ours.name]
    assert passed(logs, short, TODAY + timedelta(days=1)).archived == [theirs.name]
    assert gzip.decompress(archive_path(theirs).read_bytes()) == batch


def test_today_is_never_touched_however_short_room_is_nor_a_day_that_has_not_begun(logs, put):
    kept = [put(0), put(-1), put(-40)]
    put(1)
    report = passed(logs, Retention(plain_days=0, keep_days=0, max_total_bytes=0, min_free=1.0))
    assert all(path.exists() for path in kept)
    assert report.purged == [day_path(logs, "jarvis", "2026-03-30").name]
    assert len(report.problems) == 1
    assert "nothing is left that may be purged" in report.problems[0]


def test_nothing_is_purged_in_vain_where_others_fill_the_disk(logs, put):
    kept = [put(2), put(1)]
    report = passed(logs, Retention(min_free=1.0))
    assert [archive_path(path).exists() for path in kept] == [True, True]
    assert (report.purged, len(report.problems)) == ([], 1)
    assert "others fill the disk" in report.problems[0]


def test_days_that_a_writer_goes_on_with_after_the_clock_went_back_lose_and_double_nothing(logs):
    sent = []
    for number, day in enumerate((TODAY, TODAY - timedelta(days=20), TODAY)):
        settled = threading.Event()
        writer = Writer(logs, lambda writes: settled.set(), clock=lambda day=day: noon(day))  # noqa: B023
        writer.start()
        sent.append(b'{"timestamp":"%sT12:00:00.000000Z","n":%d}\n' % (f"{day}".encode(), number))
        writer.submit(Write("jarvis", [sent[-1]], lambda _: None))
        settled.wait(10)
        writer.stop()
        passed(logs)
    # the day was archived; once more the clock goes back to it, and the next pass adds to the archive
    day = TODAY - timedelta(days=20)
    again = day_path(logs, "jarvis", f"{day}")
    assert archive_path(again).exists()
    again.write_bytes(b'{"timestamp":"%sT13:00:00.000000Z","n":9}\n' % f"{day}".encode())
    sent.append(again.read_bytes())
    assert passed(logs).archived == [again.name]
    assert everything(logs) == Counter(one[:-1] for one in sent)
    assert gzip.decompress(archive_path(again).read_bytes()) == sent[1] + sent[3]
    assert read_sidecar(archive_path(again))[1] == (
        f"{day}T12:00:00.000000Z".encode(),
        f"{day}T13:00:00.000000Z".encode(),
    )


def test_too_much_in_total_archives_the_oldest_first_then_purges_archives_then_plain_days(logs, put):
    paths = [put(ago, content=b"".join(lines(TODAY - timedelta(days=ago), 300, 200))) for ago in (5, 4, 3, 2, 1, 0)]
    total = sum(path.stat().st_size for path in paths)
    one = total // len(paths)
    report = passed(logs, Retention(min_free=0.0, max_total_bytes=total - 1))
    assert (report.archived, report.purged) == ([paths[0].name], [])
    assert report.bytes_after == sum(path.stat().st_size for path in logs.rglob("*.jsonl*"))

    report = passed(logs, Retention(min_free=0.0, max_total_bytes=one + 10))
    assert report.archived == [path.name for path in paths[1:5]]
    assert report.purged == [str(archive_path(path).relative_to(logs)) for path in paths[:5]]
    assert report.purged_unforwarded == []
    assert paths[5].exists()
    assert report.problems == []


def test_for_want_of_room_days_are_purged_that_were_not_forwarded_last_and_counted(logs, put):
    unforwarded, forwarded = put(5), put(2)
    report = passed(logs, Retention(min_free=0.0, max_total_bytes=0), is_forwarded=lambda path: path == forwarded)
    assert report.archived == [forwarded.name]
    assert report.purged == [str(archive_path(forwarded).relative_to(logs)), unforwarded.name]
    assert report.purged_unforwarded == [unforwarded.name]


def test_a_dry_run_says_the_same_and_changes_nothing(logs, put):
    for ago in (0, 5, 8, 20, 31):
        put(ago)
    put(1, content=b"".join(lines(TODAY, 500, 300)))
    (logs / "archive" / "2026-02").mkdir(parents=True)
    (logs / "archive" / "2026-02" / ".jarvis-2026-02-01.jsonl.gz.tmp").write_bytes(b"x")

    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in logs.rglob("*")}

    before = state()
    told = passed(logs, dry_run=True)
    assert state() == before
    done = passed(logs)
    assert (told.archived, told.purged) == (done.archived, done.purged)


def test_a_link_is_not_followed(logs, put, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    target = outside / "jarvis-2026-01-01.jsonl"
    target.write_bytes(b"mine\n")
    (logs / "jarvis-2026-01-01.jsonl").symlink_to(target)
    (logs / "archive").symlink_to(outside)
    path = put(8)
    report = passed(logs)
    assert report.problems == [f"{path.name}: archive is no directory, want one for archives"]
    assert path.exists()
    assert [each.name for each in outside.iterdir()] == [target.name]


def test_a_file_that_cannot_be_read_or_archived_is_told_and_stops_no_other(logs, put):
    bad, good = put(9), put(8)
    archive_path(bad).mkdir(parents=True)
    report = passed(logs)
    assert report.archived == [good.name]
    assert len(report.problems) == 1
    assert report.problems[0].startswith(bad.name)
    assert bad.exists()
    assert list(logs.rglob("*.tmp")) == []


def test_a_pass_that_is_told_to_stop_leaves_the_day_plain_and_the_next_one_goes_on(logs, put):
    path = put(8, content=b"".join(lines(TODAY, 40_000, 300)))
    asked = iter(range(6))
    report = passed(logs, stop=lambda: next(asked, None) is None)
    assert (report.finished, report.archived) == (False, [])
    assert list(logs.rglob("*.gz*")) == []
    assert passed(logs).archived == [path.name]


def test_what_a_killed_pass_left_between_two_steps_is_finished(logs, put):
    path = put(8)
    content = path.read_bytes()
    passed(logs)
    archive = archive_path(path)
    archived = archive.read_bytes()
    path.write_bytes(content)
    sidecar_path(archive).unlink()
    archive.with_name(f".{archive.name}.tmp").write_bytes(archived[:50])
    assert passed(logs).archived == [path.name]
    assert archive.read_bytes() == archived
    assert read_sidecar(archive)[0] == len(archived)
    assert not path.exists()
    assert list(logs.rglob("*.tmp")) == []


def test_of_a_damaged_archive_what_is_whole_is_kept_beside_the_plain_day(logs, put):
    path = put(8)
    content = path.read_bytes()
    passed(logs)
    archive_path(path).write_bytes(archive_path(path).read_bytes()[:-6])
    path.write_bytes(content)
    report = passed(logs)
    assert report.archived == [path.name]
    assert "too early" in report.problems[0]
    assert gzip.decompress(archive_path(path).read_bytes()).endswith(content)


_KILLED = """
import sys
from datetime import date
from pathlib import Path
from jarvis_collector.config import Retention
from jarvis_collector.retention import rotate
print("ready", flush=True)
sys.stdin.readline()
rotate(Path(sys.argv[1]), Retention(min_free=0.0), clock=lambda: int(sys.argv[2]))
"""


def test_no_line_is_lost_or_doubled_when_archiving_is_killed_at_any_moment(logs, put):
    sent = Counter()
    # one day of many blocks, and many small ones, so that every step of archiving is hit
    for ago, stream in [(30, "traces"), *((ago, "jarvis") for ago in range(8, 31)), (8, "metrics")]:
        content = b"".join(lines(TODAY - timedelta(days=ago), 4_000 if stream == "traces" else 50, 400))
        put(ago, stream, content.replace(b"trading", stream.encode()))
        sent.update(content.replace(b"trading", stream.encode()).split(b"\n")[:-1])
    dice = random.Random()
    kills = 0
    while kills < 25 and list(logs.glob("*.jsonl")):
        with subprocess.Popen(
            [sys.executable, "-c", _KILLED, logs, f"{noon()}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            process.stdin.write(b"\n")
            process.stdin.flush()
            time.sleep(dice.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        kills += 1
        # a day may stand there both plain and archived
        assert set(everything(logs)) == set(sent)
    passed(logs)
    assert everything(logs) == sent
    assert list(logs.glob("*.jsonl")) == list(logs.rglob("*.tmp")) == []


def test_readers_see_every_line_while_days_are_archived(logs, put, tmp_path):
    sent = set()
    for ago in range(8, 16):
        put(ago, content=b"".join(lines(TODAY - timedelta(days=ago), 2_000, 400)))
        sent |= {f"{TODAY - timedelta(days=ago)}-{number}" for number in range(2_000)}
    newest = day_path(logs, "jarvis", f"{TODAY - timedelta(days=8)}")
    whole = newest.read_bytes()
    handle = newest.open("rb")
    tail_out = (tmp_path / "tail").open("wb")
    tail = subprocess.Popen(["tail", "-n", "+1", "-F", newest], stdout=tail_out, stderr=subprocess.DEVNULL)
    done = threading.Event()
    problems, rounds = [], 0

    def archive():
        try:
            passed(logs, stop=lambda: bool(time.sleep(0.01)))
        except Exception as error:
            problems.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=archive)
    thread.start()
    try:
        while True:
            last = done.is_set()
            found = [one.record["_meta"]["uid"] for one in LogQuery(logs).scan(Criteria.of())]
            assert len(found) == len(set(found))
            assert set(found) == sent
            for path in (logs / "archive").rglob("*.gz"):
                subprocess.run(["gzip", "-t", path], check=True)
            rounds += 1
            if last:
                break
    finally:
        thread.join()
        assert handle.read() == whole
        handle.close()
        deadline = time.monotonic() + 20
        while (tmp_path / "tail").stat().st_size < len(whole) and time.monotonic() < deadline:
            time.sleep(0.01)
        tail.terminate()
        tail.wait()
        tail_out.close()
    assert problems == []
    assert rounds > 1
    assert (tmp_path / "tail").read_bytes() == whole
    assert list(logs.glob("jarvis-*.jsonl")) == []


_HOLDS = """
import sys
from pathlib import Path
from jarvis_collector.config import Retention
from jarvis_collector.retention import rotate
def stop():
    print("archiving", flush=True)
    return sys.stdin.readline() == ""
rotate(Path(sys.argv[1]), Retention(min_free=0.0), clock=lambda: int(sys.argv[2]), stop=stop)
"""


def test_two_archivers_exclude_each_other_and_the_second_may_wait(logs, put):
    path = put(8)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, logs, f"{noon()}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(BusyError, match="another process archives in"):
            passed(logs)
        assert path.exists()
        threading.Timer(0.2, other.stdin.close).start()
        assert passed(logs, wait=30).archived == [path.name]


@pytest.fixture
def small_disk(tmp_path):
    target = tmp_path / "disk"
    target.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", target], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield target
    subprocess.run(["umount", "--lazy", target], check=True)


def free_share(disk):
    found = os.statvfs(disk)
    return found.f_bavail / found.f_blocks


def fill(disk, ago, size):
    day = TODAY - timedelta(days=ago)
    path = day_path(disk, "jarvis", f"{day}")
    content = b"".join(lines(day, 2_000, 600))
    path.write_bytes(content[:size].rpartition(b"\n")[0] + b"\n")
    return path


def test_a_share_of_the_disk_is_kept_free_by_no_more_than_it_takes(small_disk):
    paths = [fill(small_disk, ago, 400_000) for ago in (4, 3, 2, 1)]
    assert free_share(small_disk) < 0.3
    report = passed(small_disk, Retention(min_free=0.3))
    assert report.archived == [paths[0].name]
    assert report.purged == []
    assert free_share(small_disk) >= 0.3
    assert all(path.exists() for path in paths[1:])


def test_on_a_full_disk_where_no_archive_fits_the_oldest_day_goes_and_nothing_is_left_half(small_disk):
    paths = [fill(small_disk, ago, 600_000) for ago in (3, 2, 1)]
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    report = passed(small_disk, Retention(min_free=0.1))
    assert paths[0].name in report.purged
    assert any("No space left on device" in problem for problem in report.problems)
    assert free_share(small_disk) >= 0.1
    assert paths[2].exists()
    assert list(small_disk.rglob("*.tmp")) == []


@pytest.fixture
def archivist(logs):
    made = []

    def make(retention=ROOMY, **options):
        said = io.StringIO()
        one = Archivist(logs, retention, OwnLog(stream=said), clock=options.pop("clock", noon), **options)
        one.said = said
        made.append(one)
        one.start()
        return one

    yield make
    for one in made:
        one.stop()


def test_the_archivist_makes_a_pass_at_the_start_and_counts_it(put, archivist):
    put(8), put(9), put(40)
    one = archivist()
    until(lambda: one.last_pass)
    assert (one.archived_files, one.purged_files, one.purged_unforwarded, one.problem) == (2, 1, 0, None)
    assert one.last_pass == noon() / 1e9
    assert one.total_bytes > 0
    assert "2 files archived, 1 purged" in one.said.getvalue()


def test_the_archivist_goes_by_the_day_as_it_changes(put, archivist):
    path = put(7)
    now = [noon()]
    one = archivist(clock=lambda: now[0], interval=0.01)
    until(lambda: one.last_pass)
    assert path.exists()
    now[0] += 86_400_000_000_000
    until(lambda: one.archived_files == 1)
    assert not path.exists()


def test_the_archivist_notices_too_much_between_two_passes_and_tells_what_was_not_forwarded(put, archivist):
    one = archivist(Retention(min_free=0.0, max_total_bytes=1_000), is_forwarded=lambda _: False, interval=0.01)
    until(lambda: one.last_pass)
    path = put(3, content=b"".join(lines(TODAY, 10)))
    until(lambda: one.purged_unforwarded == 1)
    until(lambda: "purged before they were forwarded" in one.said.getvalue())
    assert path.name in one.said.getvalue()


def test_another_retention_takes_effect_at_once(put, archivist):
    path = put(5)
    one = archivist(interval=3600)
    until(lambda: one.last_pass)
    assert path.exists()
    one.retention = Retention(plain_days=3, min_free=0.0)
    until(lambda: one.archived_files == 1)


def test_the_archivist_stops_in_the_middle_of_a_file(logs, put, archivist):
    path = put(8, content=b"".join(lines(TODAY, 50_000, 1_000)))
    one = archivist()
    until(lambda: list(logs.rglob("*.tmp")))
    one.stop()
    assert one.archived_files == 0
    assert path.exists()
    assert list(logs.rglob("*.gz*")) == []


def test_a_problem_of_the_archivist_is_told_once_and_goes_when_it_is_mended(logs, put, archivist):
    bad = put(9)
    archive_path(bad).mkdir(parents=True)
    one = archivist(interval=0.01)
    until(lambda: one.problem)
    assert bad.name in one.problem
    archive_path(bad).rmdir()
    until(lambda: one.problem is None)
    assert one.said.getvalue().count(f"warning: retention: {bad.name}") == 1


def test_an_archivist_outlives_a_directory_that_goes_away(logs, tmp_path, put, archivist):
    one = archivist(interval=0.01)
    until(lambda: one.last_pass)
    logs.rename(tmp_path / "away")
    until(lambda: one.problem)
    assert "No such file or directory" in one.problem


def jarvis_rotate(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "jarvis_otel.cli.main", "logs", "rotate", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def put_by_hand(logs, ago):
    path = day_path(logs, "jarvis", f"{datetime.now(UTC).date() - timedelta(days=ago)}")
    path.write_bytes(b"".join(lines(TODAY)))
    return path


def test_by_hand_it_says_what_it_did_and_then_that_there_is_nothing_to_do(logs):
    kept, old, older = (put_by_hand(logs, ago) for ago in (2, 8, 50))
    tried = jarvis_rotate("--dir", logs, "--dry-run", "--max-total-bytes", "20GB")
    assert (tried.returncode, kept.exists(), old.exists(), older.exists()) == (0, True, True, True)
    done = jarvis_rotate("--dir", logs)
    assert done.returncode == 0
    assert (
        done.stdout
        == tried.stdout
        == f"archived  {old.name} -> {archive_path(old).relative_to(logs)}\npurged    {older.name}\n"
    )
    assert "1 archived, 1 purged" in done.stderr
    assert (kept.exists(), old.exists(), archive_path(old).exists(), older.exists()) == (True, False, True, False)
    idle = jarvis_rotate("--dir", logs)
    assert (idle.returncode, idle.stdout, idle.stderr) == (1, "", "jarvis logs rotate: nothing to do\n")


def test_by_hand_options_take_the_place_of_the_settings_and_json_tells_all(logs):
    path, gone = put_by_hand(logs, 2), put_by_hand(logs, 4)
    done = jarvis_rotate("--dir", logs, "--plain-days", "1", "--keep-days", "3", "--format", "json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["archived"], told["purged"]) == (0, [path.name], [gone.name])
    assert {"bytes_before", "bytes_after", "purged_unforwarded", "in_use", "problems", "dry_run"} <= told.keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep-days", "soon"], "--keep-days: got 'soon', want a whole number of days"),
        (["--plain-days", "-3"], "--plain-days"),
        (["--max-total-bytes", "20 apples"], "--max-total-bytes: got '20 apples', want a size such as 20GB"),
        (["--dir", "nowhere"], "nowhere: no such directory"),
    ],
)
def test_by_hand_wrong_usage_is_told_in_a_line(arguments, said):
    done = jarvis_rotate(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_by_hand_it_gives_way_to_a_running_archiver(logs):
    put_by_hand(logs, 8)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, logs, f"{time.time_ns()}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        done = jarvis_rotate("--dir", logs)
        other.stdin.close()
    assert done.returncode == 2
    assert done.stderr == f"jarvis logs rotate: another process archives in {logs}; try again when it is done\n"


def test_by_hand_a_problem_is_told_and_the_rest_is_done(logs):
    bad, good = put_by_hand(logs, 9), put_by_hand(logs, 8)
    Path(archive_path(bad)).mkdir(parents=True)
    done = jarvis_rotate("--dir", logs)
    assert done.returncode == 2
    assert bad.name in done.stderr
    assert archive_path(good).is_file()


def test_by_hand_what_has_not_been_forwarded_waits_for_the_collector(logs, own_project):
    path, span_file = put_by_hand(logs, 8), day_path(logs, "traces", f"{datetime.now(UTC).date() - timedelta(days=8)}")
    span_file.write_bytes(b"".join(lines(TODAY)))
    (own_project / "config" / "jarvis.yaml").write_text("loki_url: http://127.0.0.1:3100\n")
    done = jarvis_rotate("--dir", logs)
    assert done.returncode == 0, done.stderr
    assert path.exists()
    assert archive_path(span_file).exists()
    assert f"waiting   {path.name}" in done.stdout
    assert "1 left alone: they have not been forwarded to Loki yet" in done.stderr
