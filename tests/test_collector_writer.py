"""The day files: what is written stays whole, whatever happens while it is written."""

import json
import os
import queue
import subprocess
import sys
from contextlib import suppress

import pytest

from jarvis_collector.config import CollectorError
from jarvis_collector.layout import sidecar_path
from jarvis_collector.locking import take_lock
from jarvis_collector.writer import Write, Writer
from tests.clocks import Clock

DAY = 86_400_000_000_000
NOON = 1_767_355_200_000_000_000  # 2026-01-02T12:00:00Z


def line(number, stamp="2026-01-02T12:00:00.000000Z"):
    return f'{{"timestamp":"{stamp}","n":{number}}}\n'.encode()


@pytest.fixture
def clock():
    return Clock(NOON)


@pytest.fixture
def start(tmp_path, clock):
    started = []

    def start_one(log_dir=tmp_path):
        fates = queue.SimpleQueue()
        writer = Writer(log_dir, fates.put, clock)
        writer.start()
        started.append(writer)

        def write(*lines, stream="jarvis"):
            writer.submit(Write(stream, list(lines), lambda _: None))
            (settled,) = fates.get(timeout=10)
            return settled.error

        write.writer, write.fates = writer, fates
        return write

    yield start_one
    for writer in started:
        writer.stop()


def numbers(path):
    return [json.loads(each)["n"] for each in path.read_bytes().split(b"\n")[:-1]]


def test_lines_go_to_the_file_of_their_stream_and_day_and_survive_a_restart(tmp_path, start):
    write = start()
    assert write(line(1), line(2)) is None
    assert write(line(3), stream="traces") is None
    write.writer.stop()
    assert start()(line(4)) is None
    assert numbers(tmp_path / "jarvis-2026-01-02.jsonl") == [1, 2, 4]
    assert numbers(tmp_path / "traces-2026-01-02.jsonl") == [3]


def test_all_that_waits_is_settled_in_order(tmp_path, start):
    write = start()
    for number in range(1000):
        write.writer.submit(Write("jarvis", [line(number)], lambda _: None))
    write.writer.stop()
    settled = []
    while not write.fates.empty():
        settled += write.fates.get()
    assert [each.error for each in settled] == [None] * 1000
    assert numbers(tmp_path / "jarvis-2026-01-02.jsonl") == list(range(1000))


def test_a_day_that_has_passed_is_never_written_again_even_if_the_clock_goes_back(tmp_path, start, clock):
    write = start()
    write(line(1))
    clock.now += DAY
    write(line(2))
    closed = (tmp_path / "jarvis-2026-01-02.jsonl").read_bytes()
    clock.now -= DAY
    write(line(3))
    assert (tmp_path / "jarvis-2026-01-02.jsonl").read_bytes() == closed
    assert numbers(tmp_path / "jarvis-2026-01-03.jsonl") == [2, 3]


def test_the_sidecar_of_a_closed_day_tells_its_size_and_the_range_of_its_timestamps(tmp_path, start, clock):
    write = start()
    write(line(1, "2026-01-02T11:00:00.000000Z"), line(2, "2025-12-31T00:00:00.000000Z"))
    write(line(3, "2026-01-02T12:00:00.000000Z"))
    clock.now += DAY
    write(line(4))
    path = tmp_path / "jarvis-2026-01-02.jsonl"
    assert json.loads(sidecar_path(path).read_bytes()) == {
        "size": path.stat().st_size,
        "earliest": "2025-12-31T00:00:00.000000Z",
        "latest": "2026-01-02T12:00:00.000000Z",
    }


def test_a_sidecar_never_claims_lines_that_it_does_not_know(tmp_path, start, clock):
    write = start()
    write(line(1, "2026-01-02T11:00:00.000000Z"))
    write.writer.stop()
    path = tmp_path / "jarvis-2026-01-02.jsonl"
    path.write_bytes(path.read_bytes() + line(2, "2020-01-01T00:00:00.000000Z"))
    assert json.loads(sidecar_path(path).read_bytes())["size"] < path.stat().st_size
    start()
    sidecar = json.loads(sidecar_path(path).read_bytes())
    assert (sidecar["size"], sidecar["earliest"]) == (path.stat().st_size, "2020-01-01T00:00:00.000000Z")


def test_a_file_with_foreign_lines_has_a_range_that_excludes_nothing(tmp_path, start):
    path = tmp_path / "jarvis-2026-01-01.jsonl"
    path.write_bytes(line(1) + b'{"resourceLogs":[]}\n')
    start()
    sidecar = json.loads(sidecar_path(path).read_bytes())
    assert (sidecar["earliest"][:4], sidecar["latest"][:4]) == ("0000", "9999")


@pytest.mark.parametrize("day", ["2026-01-02", "2025-12-30"])
@pytest.mark.parametrize(
    ("tail", "kept"),
    [(b'{"timestamp":"2026', [1]), (line(2)[:-2], [1]), (line(2)[:-1], [1, 2]), (b"\0" * 50, [1]), (b"", [1])],
)
def test_a_torn_last_line_is_ended_so_that_every_line_parses(tmp_path, start, day, tail, kept):
    path = tmp_path / f"jarvis-{day}.jsonl"
    path.write_bytes(line(1) + tail)
    write = start()
    assert numbers(path) == kept
    write(line(9))
    assert numbers(path) == ([*kept, 9] if day == "2026-01-02" else kept)


def test_a_torn_line_longer_than_a_block_is_cut_off_whole(tmp_path, start):
    path = tmp_path / "jarvis-2026-01-02.jsonl"
    path.write_bytes(line(1) + b'{"message":"' + b"x" * 3_000_000)
    start()
    assert path.read_bytes() == line(1)


def test_a_file_that_was_deleted_or_replaced_is_begun_anew_and_nothing_goes_to_its_ghost(tmp_path, start):
    path = tmp_path / "jarvis-2026-01-02.jsonl"
    write = start()
    write(line(1))
    path.unlink()
    write(line(2))
    assert numbers(path) == [2]
    path.rename(tmp_path / "moved")
    write(line(3))
    assert numbers(path) == [3]


def test_a_directory_that_goes_away_fails_the_write_and_its_return_heals_it(tmp_path, start):
    log_dir = tmp_path / "logs"
    log_dir.mkdir()
    write = start(log_dir)
    write(line(1))
    log_dir.rename(tmp_path / "away")
    assert isinstance(write(line(2)), FileNotFoundError)
    assert isinstance(write.writer.problem, FileNotFoundError)
    (tmp_path / "away").rename(log_dir)
    assert write(line(3)) is None
    assert write.writer.problem is None
    assert numbers(log_dir / "jarvis-2026-01-02.jsonl") == [1, 3]


def test_files_are_for_the_owner_and_the_group_only(tmp_path, start, clock):
    write = start()
    write(line(1))
    clock.now += DAY
    write(line(2))
    for path in tmp_path.glob("*-2026-*"):
        assert path.stat().st_mode & 0o777 == 0o640 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_day_file_that_cannot_be_opened_stops_the_start_with_its_name(tmp_path, start):
    (tmp_path / "jarvis-2026-01-02.jsonl").mkdir()
    with pytest.raises(CollectorError, match=r"jarvis-2026-01-02.jsonl: Is a directory"):
        start()


@pytest.fixture
def small_disk(tmp_path):
    target = tmp_path / "disk"
    target.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", target], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield target
    subprocess.run(["umount", "--lazy", target], check=True)


def test_a_lock_is_taken_on_a_full_disk_too_though_the_number_of_the_process_does_not_fit(small_disk):
    with (small_disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    held = take_lock(small_disk / ".lock")
    code = "import sys; from jarvis_collector.locking import take_lock; from pathlib import Path; take_lock(Path(sys.argv[1]))"
    other = subprocess.run(
        [sys.executable, "-c", code, small_disk / ".lock"], capture_output=True, text=True, check=False
    )
    os.close(held)
    assert other.stderr.endswith("jarvis_collector.locking.HeldError: pid unknown has it\n")


def test_a_full_disk_leaves_no_half_line_and_freed_space_heals_it(small_disk, start):
    path = small_disk / "jarvis-2026-01-02.jsonl"
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 150_000)
    write = start(small_disk)
    batch = [line(number) for number in range(500)]
    kept = 0
    while (error := write(*batch)) is None:
        kept += 1
    assert error.strerror == "No space left on device"
    assert numbers(path) == list(range(500)) * kept
    assert write(*batch).strerror == "No space left on device"
    filler.unlink()
    assert write(*batch) is None
    assert write.writer.problem is None
    assert numbers(path) == list(range(500)) * (kept + 1)
