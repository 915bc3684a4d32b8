"""The spool: what is in it survives, comes out in order and once, and never harms the process that writes it."""

import json
import mmap
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jarvis_otel.segments import HEADER_BYTES, Segment
from jarvis_otel.spool import SEGMENT_BYTES, Spool, adopt, usage
from tests.otlp_sink import until
from tests.spools import RESOURCE, ROOM, ROOT, inherit, line, python, record, segments, taken, text_of


def bug(what):
    """A test that fails as long as there is a fault that is known."""
    return pytest.mark.xfail(strict=True, reason=what)


@pytest.fixture
def room(tmp_path):
    """Where the spools of all processes lie."""
    return tmp_path / "spool"


@pytest.fixture
def spool_in(room):
    made = []

    def make(directory=room, **options):
        made.append(Spool(directory, RESOURCE, **{"bytes_max": ROOM, **options}))
        return made[-1]

    yield make
    for spool in made:
        spool.close()


@contextmanager
def tended(spool, found=None):
    """Somebody calls `tend` all the time, as the shipper does, and where `found` is given takes what waits."""
    over = threading.Event()

    def tend():
        while not over.wait(0.02):
            spool.tend()
            if found is not None:
                found.extend(taken(spool))

    thread = threading.Thread(target=tend, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def open_room():
    """As `room`, but where any user may go."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        room = Path(directory) / "spool"
        room.mkdir()
        room.chmod(0o777)
        yield room
        subprocess.run(["chmod", "-R", "u+rwX", directory], check=False)


AS_NOBODY = """
        if os.getuid() == 0:
            os.setresuid(65534, 65534, 65534)
"""


# ---- order


def test_records_of_both_rings_come_out_in_the_order_of_their_numbers(spool_in):
    spool = spool_in()
    for number in range(5000):
        spool.append(line(number, size=200), urgent=number % 7 == 0)
    assert taken(spool, 13) == [str(number) for number in range(5000)]
    assert len(spool) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 400_000), st.integers(0, 4)), max_size=40), st.integers(1, 50))
def test_whatever_is_put_in_comes_out_in_order_and_once(puts, at_once):
    spool = Spool(None, RESOURCE, bytes_max=0, memory_bytes=1024 * SEGMENT_BYTES)
    out = []
    for number, (urgent, size, takes) in enumerate(puts):
        spool.append(line(number, size=size), urgent=urgent)
        for _ in range(takes // 2):
            batch = spool.take(at_once)
            out += map(text_of, batch)
            spool.release(batch)
    assert out + taken(spool, at_once) == [str(number) for number in range(len(puts))]
    assert (len(spool), spool.damaged, spool.overflowed) == (0, 0, 0)


def test_a_batch_has_at_most_so_many_records_and_at_least_one_if_any_waits(spool_in):
    spool = spool_in()
    for number in range(100):
        spool.append(line(number, size=30_000), urgent=number % 2 == 0)
    while len(spool):
        batch = spool.take(7)
        assert 1 <= len(batch) <= 7
        spool.release(batch)
    assert spool.take(7) == []


def test_threads_that_number_and_append_in_another_order_lose_no_record(spool_in):
    spool = spool_in()
    for number in (1, 3, 2, 6, 4):
        spool.append(line(number), urgent=False)
    spool.append(line(5), urgent=True)
    assert sorted(taken(spool, 2)) == ["1", "2", "3", "4", "5", "6"]


def test_what_was_not_released_is_not_settled_even_if_it_was_numbered_later_and_written_before(spool_in, room):
    spool = spool_in()
    for number in (1, 6, 2):
        spool.append(line(number), urgent=False)
    spool.append(line(9), urgent=True)
    batch = spool.take(2)
    released = [text_of(item) for item in batch]
    spool.release(batch)
    spool.close()  # as if it had been killed: the lock is free
    assert set(released) | set(inherit(room)) == {"1", "2", "6", "9"}


def test_two_records_of_one_number_are_two_records(spool_in):
    spool = spool_in()
    for text in "abc":
        spool.append(line(1, text), urgent=False)
        spool.append(line(1, text.upper()), urgent=True)
    assert sorted(taken(spool, 1)) == sorted("aAbBcC")


def test_counters_balance_at_every_moment(spool_in):
    spool = spool_in(bytes_max=4 * SEGMENT_BYTES)
    settled = 0
    for number in range(4000):
        spool.append(line(number, size=3000), urgent=number % 5 == 0)
        if number % 100 == 0:
            batch = spool.take(20)
            spool.release(batch)
            settled += len(batch)
        assert spool.appended == number + 1 == settled + len(spool) + spool.overflowed + spool.damaged
    assert spool.overflowed
    rest = taken(spool)
    assert spool.appended == settled + len(rest) + spool.overflowed


def test_a_mark_is_passed_when_all_that_came_before_is_settled(spool_in):
    spool = spool_in()
    assert spool.passed(spool.mark())
    spool.append(line(1), urgent=False)
    spool.append(line(2), urgent=True)
    mark = spool.mark()
    spool.append(line(3), urgent=False)
    spool.release(spool.take(1))
    assert not spool.passed(mark)
    spool.release(spool.take(1))
    assert spool.passed(mark)
    assert len(spool) == 1


# ---- room


def fill(spool, numbers, megabytes, *, urgent=False):
    """About so many megabytes, four records each."""
    for _ in range(megabytes * 4):
        number = next(numbers)
        spool.append(line(number, size=SEGMENT_BYTES // 4 - 200), urgent=urgent)


def test_where_room_is_needed_whole_segments_go_the_oldest_routine_ones_first(spool_in, room):
    spool = spool_in(bytes_max=6 * SEGMENT_BYTES)
    numbers = count()
    fill(spool, numbers, 2, urgent=True)
    fill(spool, numbers, 20)
    kept = taken(spool)
    assert kept[:8] == [str(number) for number in range(8)]
    rest = [int(text) for text in kept[8:]]
    assert rest == list(range(88 - len(rest), 88))
    assert len(rest) % 4 == 0
    assert len(rest) >= 12
    assert spool.overflowed == 88 - len(kept)


def test_urgent_records_push_out_routine_ones_and_at_last_the_oldest_of_their_own(spool_in, room):
    spool = spool_in(bytes_max=4 * SEGMENT_BYTES)
    numbers = count()
    fill(spool, numbers, 4)
    fill(spool, numbers, 10, urgent=True)
    kept = [int(text) for text in taken(spool)]
    assert kept == list(range(56 - len(kept), 56))
    assert len(kept) >= 16
    assert spool.overflowed == 56 - len(kept)
    assert usage(room).bytes <= 4 * SEGMENT_BYTES


@pytest.mark.parametrize("directory", ["disk", "memory"])
def test_a_routine_record_never_pushes_out_an_urgent_one(spool_in, room, directory):
    options = {"bytes_max": 3 * SEGMENT_BYTES, "memory_bytes": 3 * SEGMENT_BYTES}
    spool = spool_in(room if directory == "disk" else None, **options)
    numbers = count()
    fill(spool, numbers, 3, urgent=True)
    fill(spool, numbers, 9)
    assert [text for text in taken(spool) if int(text) < 12] == [str(number) for number in range(12)]


def test_the_routine_records_of_the_dead_go_before_our_own_and_their_urgent_ones_after(spool_in, room):
    numbers = count()
    dead = spool_in()
    fill(dead, numbers, 2)
    fill(dead, numbers, 1, urgent=True)
    dead.close()
    spool = spool_in(bytes_max=6 * SEGMENT_BYTES)
    fill(spool, numbers, 5)
    # two of its own routine segments, and then the dead one's: 12 to 31 are ours
    assert [int(text) for text in taken(spool)] == list(range(12, 32))
    assert [int(text) for text in inherit(room)] == list(range(8, 12))
    assert spool.overflowed == 8


def test_for_an_urgent_record_the_urgent_ones_of_the_dead_go_after_all_routine_ones(spool_in, room):
    numbers = count()
    dead = spool_in()
    fill(dead, numbers, 2, urgent=True)
    dead.close()
    spool = spool_in(bytes_max=5 * SEGMENT_BYTES)
    fill(spool, numbers, 3)
    fill(spool, numbers, 3, urgent=True)
    assert [int(text) for text in taken(spool)] == list(range(20, 32))
    assert [int(text) for text in inherit(room)] == list(range(8))


def test_before_our_own_urgent_records_those_of_the_dead_go(spool_in, room):
    numbers = count()
    dead = spool_in()
    fill(dead, numbers, 2, urgent=True)
    dead.close()
    spool = spool_in(bytes_max=5 * SEGMENT_BYTES)
    fill(spool, numbers, 4, urgent=True)
    assert [int(text) for text in taken(spool)] == list(range(8, 24))
    assert [int(text) for text in inherit(room)] == list(range(4, 8))
    assert spool.overflowed == 4


def test_one_bound_holds_for_the_directory_over_several_processes(room):
    script = """
        spool = Spool(Path(sys.argv[1]), RESOURCE, bytes_max=8 * SEGMENT_BYTES)
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(160):
            spool.append(line(number, size=SEGMENT_BYTES // 4 - 200), urgent=number % 8 == 0)
            spool.tend()
        print(spool.overflowed, spool.problem, flush=True)
        sys.stdin.readline()
        os._exit(0)
    """
    source = f"from tests.spools import *\n{textwrap.dedent(script)}"
    command = [sys.executable, "-c", source, str(room)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)
    ]
    highest = 0
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = []
        readers = [threading.Thread(target=lambda p=p: answers.append(p.stdout.readline())) for p in processes]
        for reader in readers:
            reader.start()
        while any(reader.is_alive() for reader in readers):
            highest = max(highest, usage(room).bytes)
            time.sleep(0.002)
        for answer in answers:
            assert int(answer.split()[0]) > 0
    finally:
        for process in processes:
            process.stdin.close()
            process.wait(30)
            process.stdout.close()
    # each that lives may keep one segment of each kind, whatever the others take
    assert highest <= (8 + 3 * 2) * SEGMENT_BYTES
    assert usage(room).owners == 3
    assert len(inherit(room)) >= 4 * 4


def test_what_a_dead_process_left_where_nothing_can_be_deleted_hangs_nobody(open_room):
    script = f"""{AS_NOBODY}
        room = Path(sys.argv[1])
        dead = Spool(room, RESOURCE, bytes_max=ROOM)
        dead.append(line(1), urgent=False)
        home = dead.home
        dead.close()
        home.chmod(0o500)
        spool = Spool(room, RESOURCE, bytes_max=SEGMENT_BYTES)
        for number in range(12):
            spool.append(line(number, size=SEGMENT_BYTES // 4 - 200), urgent=False)
        print(len(taken(spool)) >= 4)
        home.chmod(0o700)
        spool.close()
    """
    try:
        result = python(script, open_room, timeout=10)
    except subprocess.TimeoutExpired:
        pytest.fail("append never returned")
    assert (result.returncode, result.stdout, result.stderr) == (0, "True\n", "")


def open_but_deleted():
    """Segments of this process that have no name any more."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(descriptor.readlink().name)
    return [link for link in links if link.endswith(".seg (deleted)")]


def test_a_segment_that_was_dropped_takes_no_room_any_more(spool_in, room):
    """Nothing is taken while the collector is away: that may be for hours."""
    spool = spool_in(bytes_max=4 * SEGMENT_BYTES)
    fill(spool, count(), 20)
    spool.tend()
    assert spool.overflowed
    assert open_but_deleted() == []


def test_what_is_dropped_while_it_is_on_its_way_and_arrives_is_not_counted_as_lost(spool_in, room):
    spool = spool_in(bytes_max=4 * SEGMENT_BYTES)
    numbers = count()
    fill(spool, numbers, 2)
    batch = spool.take(6)
    fill(spool, numbers, 10)
    spool.release(batch)
    rest = taken(spool)
    assert spool.overflowed == 48 - len(batch) - len(rest)
    assert len(spool) == 0
    assert not set(map(text_of, batch)) & set(rest)
    assert open_but_deleted() == []


def test_counters_balance_while_one_thread_fills_and_another_takes(spool_in, room):
    spool = spool_in(bytes_max=3 * SEGMENT_BYTES)
    over, found = threading.Event(), []

    def take():
        while not over.is_set():
            batch = spool.take(50)
            found.extend(map(text_of, batch))
            spool.release(batch)

    thread = threading.Thread(target=take)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        for number in range(6000):
            spool.append(line(number, size=20_000), urgent=number % 50 == 0)
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(interval)
    found += taken(spool)
    assert len(set(found)) == len(found)
    assert (len(spool), spool.damaged) == (0, 0)
    assert spool.appended == 6000 == len(found) + spool.overflowed


def test_a_segment_that_was_prepared_and_is_not_used_yet_gives_way(spool_in, room):
    spool = spool_in(bytes_max=4 * SEGMENT_BYTES)
    numbers = count()
    fill(spool, numbers, 2)
    spool.tend()
    assert len(taken(spool)) == 8
    assert usage(room).bytes > SEGMENT_BYTES
    fill(spool, numbers, 3, urgent=True)
    fill(spool, numbers, 1, urgent=True)
    assert len(taken(spool)) == 16


# ---- segments


@pytest.mark.parametrize("directory", ["disk", "memory"])
def test_a_record_larger_than_a_segment_has_one_of_its_own_and_keeps_its_place(spool_in, room, directory):
    spool = spool_in(room if directory == "disk" else None)
    spool.append(line(1), urgent=False)
    spool.append(line(2, size=3 * SEGMENT_BYTES), urgent=False)
    spool.append(line(3), urgent=False)
    spool.append(line(4, size=2 * SEGMENT_BYTES), urgent=True)
    spool.append(line(5), urgent=True)
    assert taken(spool) == ["1", "2", "3", "4", "5"]
    assert spool.problem == ""


def test_a_record_larger_than_a_segment_outlives_its_process(spool_in, room):
    spool = spool_in()
    spool.append(line(1), urgent=False)
    spool.append(line(2, size=3 * SEGMENT_BYTES), urgent=False)
    spool.close()
    assert inherit(room) == ["1", "2"]


def test_a_finished_segment_is_used_again_and_shows_nothing_of_what_it_held(spool_in, room):
    spool = spool_in()
    numbers = count()
    for _ in range(8):
        fill(spool, numbers, 1)
        spool.append(line(next(numbers)), urgent=True)
        taken(spool)
        spool.tend()
    # what was ever written in it is longer than what is in it now
    expected = [next(numbers) for _ in range(3)]
    for number in expected:
        spool.append(line(number), urgent=False)
    assert len(segments(room)) <= 4
    spool.close()
    assert inherit(room) == [str(number) for number in expected]


def test_a_process_that_is_killed_while_it_renews_a_segment_leaves_nothing_that_was_settled(room):
    script = """
        spool = Spool(Path(sys.argv[1]), RESOURCE, bytes_max=ROOM)
        for number in range(50): spool.append(line(number, size=1000), urgent=False)
        segment, steps = spool._routine.active, int(sys.argv[2])
        spool.release(spool.take(100))

        def step(frame, event, argument):
            # one line of Python of `renew` after the other
            global steps
            if frame.f_code is Segment.renew.__code__ or frame.f_code is Segment._start_anew.__code__:
                steps -= event == "line"
                if steps == 0: os.kill(os.getpid(), 9)
            return step

        sys.settrace(step)
        assert segment.renew(segment.path.with_name("00000099-routine.seg"))
        sys.settrace(None)
        print("whole", segment.end)
        os._exit(0)
    """
    for steps in (7, 9, 11, 13, 99):
        result = python(script, room, steps)
        assert result.stderr == ""
        assert inherit(room) == []
        assert list(room.iterdir()) == []
    assert result.stdout == f"whole {HEADER_BYTES}\n"


def test_a_segment_that_somebody_waits_for_is_not_used_again(spool_in, room):
    spool = spool_in()
    spool.append(line(1), urgent=False)
    segment = spool._routine.active
    reader = subprocess.Popen(["cat", str(segment.path)], stdout=subprocess.DEVNULL)
    try:
        until(segment.is_wanted)
        assert not segment.renew(segment.path.with_name("00000099-routine.seg"))
        spool.tend()
        assert reader.wait(20) == 0
    finally:
        reader.kill()
        reader.wait()


def test_what_waits_long_is_not_kept_mapped(spool_in, room):
    spool = spool_in()
    fill(spool, count(), 12)
    assert sum(isinstance(segment.buffer, mmap.mmap) for segment in spool._routine.segments) <= 5
    assert len(taken(spool)) == 48


def test_a_long_queue_leaves_the_application_its_descriptors(room):
    script = """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        spool = Spool(Path(sys.argv[1]), RESOURCE, bytes_max=128 * SEGMENT_BYTES)
        for number in range(240):
            spool.append(line(number, size=SEGMENT_BYTES // 4 - 200), urgent=False)
        files = [open("/dev/null") for _ in range(10)]
        assert spool.problem == "", spool.problem
        spool.close()
        for file in files: file.close()
        spool = Spool(Path(sys.argv[1]), RESOURCE, bytes_max=128 * SEGMENT_BYTES)
        print(len(inherit(Path(sys.argv[1]))))
    """
    result = python(script, room)
    assert (result.returncode, result.stdout, result.stderr) == (0, "240\n", "")


def test_nothing_in_the_spool_is_readable_by_others(spool_in, room):
    before = os.umask(0)
    try:
        spool = spool_in()
        spool.append(line(1), urgent=False)
        spool.append(line(2), urgent=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE(room.stat().st_mode) == 0o700
    assert stat.S_IMODE(spool.home.stat().st_mode) == 0o700
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in spool.home.iterdir()}
    assert {name for name in modes if not name.endswith(".seg")} == {"lock", "resource.json"}
    assert set(modes.values()) == {"0o600"}, modes


def test_nothing_is_made_before_there_is_a_record(spool_in, room):
    spool = spool_in()
    spool.tend()
    assert spool.take(1) == []
    assert not room.exists()


def test_a_spool_of_which_all_is_settled_leaves_nothing_behind(spool_in, room):
    spool = spool_in()
    fill(spool, count(), 3)
    taken(spool)
    spool.tend()
    spool.close()
    assert list(room.iterdir()) == []


# ---- damage

WRITTEN = [
    (
        number,
        b'{"scope":{"name":"%d"},"logRecords":[' % (number % 3),
        record(f"text {number} \u2028 \\n {'y' * (number * 7 % 60)}"),
    )
    for number in range(1, 13)
]
LINES = [b"%d\t%b\t%b\n" % parts for parts in WRITTEN]
BODY = b"".join(LINES)


def header(settled=HEADER_BYTES):
    """The header of a segment that is settled so far."""
    with tempfile.TemporaryDirectory() as directory:
        segment = Segment.create(Path(directory) / "00000001-routine.seg", 4096)
        segment.settle(settled)
        head = segment.read(0, HEADER_BYTES)
        segment.remove()
    return head


HEADER = header()


def damaged_spool(room, segment, *, resource=RESOURCE, name="00000001-routine.seg"):
    """What a dead process left, as it is on the disk."""
    home = room / f"1-{os.urandom(4).hex()}"
    home.mkdir(parents=True)
    (home / "lock").touch()
    if resource is not None:
        (home / "resource.json").write_bytes(resource)
    (home / name).write_bytes(segment)
    return home


def recovered_from(segment):
    with tempfile.TemporaryDirectory() as directory:
        damaged_spool(Path(directory), segment)
        found = []
        for orphan in adopt(Path(directory)):
            with orphan:
                while batch := orphan.take(3):
                    found += [(scope, data) for _, scope, data, _, _ in batch]
                    orphan.release(batch)
                orphan.remove()
        assert list(Path(directory).iterdir()) == []
    return found


def test_the_layout_is_as_it_is_described(spool_in, room):
    """The tests of damage write segments themselves."""
    spool = spool_in()
    for data in LINES:
        spool.append(data, urgent=False)
    spool.close()
    (segment,) = segments(room)
    assert segment.read_bytes() == (HEADER + BODY).ljust(SEGMENT_BYTES, b"\0")
    assert recovered_from(HEADER + BODY) == [(scope, data) for _, scope, data in WRITTEN]


PLACES = st.integers(0, len(BODY) - 1)
HOLES = st.tuples(st.just("hole"), PLACES, st.integers(1, 600).map(bytes))
GLUED = st.tuples(st.just("glue"), st.integers(0, len(LINES) - 1), st.just(b""))
SCRIBBLES = st.tuples(st.just("scribble"), PLACES, st.binary(min_size=1, max_size=200))
HEADERS = st.sampled_from(
    [HEADER, bytes(HEADER_BYTES), b"?" * HEADER_BYTES, b"jarvis-spool 1 settled whatever".ljust(HEADER_BYTES, b"\n")]
)


def broken(damages, cut):
    """The lines with damage done to them, and which of the damage is more than a loss."""
    body = bytearray(BODY)
    for kind, place, data in damages:
        if kind == "glue":
            place, data = sum(map(len, LINES[: place + 1])) - 1, b"\r"  # noqa: PLW2901
        body[place : place + len(data)] = data[: len(body) - place]
    return bytes(body[: len(body) if cut is None else cut])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HEADERS, st.lists(HOLES | GLUED, max_size=4), st.none() | PLACES, st.integers(0, 5000))
def test_of_a_segment_with_holes_and_glued_lines_exactly_the_whole_records_are_recovered(head, damages, cut, tail):
    body = broken(damages, cut)
    found = recovered_from(head + body + bytes(tail))
    whole = [(scope, data) for (_, scope, data), text in zip(WRITTEN, LINES, strict=True) if text in body]
    written = [(scope, data) for _, scope, data in WRITTEN]
    assert [item for item in found if item in whole] == whole
    assert [item for item in found if item not in written] == []


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HEADERS, st.lists(HOLES | GLUED | SCRIBBLES, min_size=1, max_size=4), st.none() | PLACES)
@example(HEADER, [("scribble", 0, b"9" * 5000)], None)
@example(HEADER, [("scribble", len(LINES[0]) - 1, b"\t")], None)
@example(HEADER, [("scribble", len(LINES[0]) - 1, b"7")], None)
def test_whatever_is_written_over_a_segment_the_records_beside_it_are_recovered(head, damages, cut):
    body = broken(damages, cut)
    found = recovered_from(head + body)
    for (_, scope, data), text in zip(WRITTEN, LINES, strict=True):
        if text in body:
            assert (scope, data) in found
    for scope, data in found:
        assert isinstance(json.loads(scope + b"]}"), dict)
        assert isinstance(json.loads(data), dict)


def test_a_number_that_damage_made_endless_harms_nobody():
    assert recovered_from(HEADER + b"9" * 5000 + LINES[0] + LINES[1])[-1] == WRITTEN[1][1:]


@pytest.mark.parametrize("place", [3, 5, 10])
def test_a_header_of_which_one_digit_is_wrong_hides_no_record(place):
    head = bytearray(HEADER)
    head[-1 - place] = ord("1") if head[-1 - place] != ord("1") else ord("2")
    assert recovered_from(bytes(head) + BODY) == [(scope, data) for _, scope, data in WRITTEN]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, HEADER_BYTES + len(BODY)))
def test_of_a_segment_that_was_truncated_all_records_before_the_cut_are_recovered(size):
    found = recovered_from((HEADER + BODY)[:size])
    assert found == [
        (scope, data)
        for position, (_, scope, data) in enumerate(WRITTEN)
        if HEADER_BYTES + sum(map(len, LINES[: position + 1])) <= size
    ]


def test_what_was_settled_is_not_recovered_and_the_rest_is():
    done = sum(map(len, LINES[:5]))
    data = header(HEADER_BYTES + done) + BODY
    assert recovered_from(data) == [(scope, record) for _, scope, record in WRITTEN[5:]]


@pytest.mark.parametrize("resource", [None, b"", b"\xff\xfe", b"[]", b"5", b'{"attributes":[{"key":'])
def test_without_a_resource_that_can_be_read_the_records_are_shipped_without(room, resource):
    damaged_spool(room, HEADER + BODY, resource=resource)
    (orphan,) = adopt(room)
    with orphan:
        assert orphan.resource == b"{}"
        assert len(taken(orphan)) == len(LINES)
        orphan.remove()
    assert list(room.iterdir()) == []


@pytest.mark.parametrize("name", ["resource.json", "00000001-routine.seg", "00000000-urgent.seg"])
@pytest.mark.parametrize("kind", ["directory", "fifo", "dangling link"])
def test_what_is_no_file_in_the_place_of_one_hinders_nothing(room, name, kind):
    home = damaged_spool(room, HEADER + BODY, name="00000002-routine.seg")
    path = home / name
    path.unlink(missing_ok=True)
    if kind == "directory":
        (path / "in it").mkdir(parents=True)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    script = "print(len(inherit(Path(sys.argv[1]))), os.listdir(sys.argv[1]))"
    try:
        result = python(script, room, timeout=10)
    except subprocess.TimeoutExpired:
        pytest.fail("it hangs")
    assert (result.stdout, result.stderr) == (f"{len(LINES)} []\n", "")


def test_damage_under_a_live_process_is_counted_and_takes_no_neighbour_along(spool_in, room):
    spool = spool_in()
    for number in range(1, 101):
        spool.append(line(number), urgent=False)
    (segment,) = segments(room)
    place = segment.stat().st_size
    with tended(spool), segment.open("r+b") as file:
        file.seek(HEADER_BYTES + sum(len(line(number)) for number in range(1, 11)))
        file.write(bytes(len(line(11)) + len(line(12))))
    assert place == SEGMENT_BYTES
    assert taken(spool, 7) == [str(number) for number in range(1, 101) if number not in (11, 12)]
    assert spool.damaged == 2
    assert len(spool) == 0


def test_more_records_in_a_segment_than_were_put_in_break_no_count(spool_in, room):
    spool = spool_in()
    spool.append(line(1, size=1000), urgent=False)
    with tended(spool), segments(room)[0].open("r+b") as file:
        more = line(1) + line(2)
        more += line(3, size=len(line(1, size=1000)) - len(more) - len(line(3)))
        assert len(more) == len(line(1, size=1000))
        file.seek(HEADER_BYTES)
        file.write(more)
    while batch := spool.take(10):
        spool.release(batch)
    assert len(spool) == 0
    spool.append(line(9), urgent=False)
    assert len(spool) == 1
    assert not spool.passed(spool.mark())


# ---- owners


def test_of_two_that_adopt_at_once_each_record_goes_to_exactly_one(room):
    spools = [Spool(room, RESOURCE, bytes_max=ROOM) for _ in range(8)]
    for number in range(400):
        for index, spool in enumerate(spools):
            spool.append(line(number, f"{index}-{number}"), urgent=number % 3 == 0)
    for spool in spools:
        spool.close()
    script = """
        room = Path(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.readline()
        while any(room.iterdir()):
            for text in inherit(room, 10): print(text)
    """
    source = f"from tests.spools import *\n{textwrap.dedent(script)}"
    command = [sys.executable, "-c", source, str(room)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in processes]
    assert [error for _, error in answers] == ["", ""]
    found = [text for answer, _ in answers for text in answer.split()]
    assert sorted(found) == sorted(f"{index}-{number}" for index in range(8) for number in range(400))


def test_of_two_threads_that_adopt_at_once_each_gets_others(room):
    """The shipper looks for orphans, and the application looks for room, at the same moment."""
    twice = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            for _ in range(3):
                damaged_spool(room, HEADER + BODY)
            start, held = threading.Barrier(2), []

            def look(start=start, held=held):
                start.wait()
                held.extend(adopt(room))

            threads = [threading.Thread(target=look) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            homes = [orphan.home for orphan in held]
            twice += [home for home in set(homes) if homes.count(home) > 1]
            for orphan in held:
                orphan.remove()
            if twice:
                break
    finally:
        sys.setswitchinterval(interval)
    assert twice == []


def test_what_an_adopter_had_settled_when_it_was_killed_is_not_shipped_again_and_the_rest_is(spool_in, room):
    spool = spool_in()
    for number in range(3000):
        spool.append(line(number, size=1000), urgent=number % 10 == 0)
    spool.close()
    script = """
        for orphan in adopt(Path(sys.argv[1])):
            settled = 0
            while batch := orphan.take(100):
                if settled >= 1700:
                    os.kill(os.getpid(), 9)
                orphan.release(batch)
                settled += len(batch)
                for item in batch: print(text_of(item), flush=True)
    """
    result = python(script, room)
    assert result.returncode == -9
    first = result.stdout.split()
    second = inherit(room, 100)
    assert len(first) >= 1700
    assert first + second == [str(number) for number in range(3000)]
    assert list(room.iterdir()) == []


def test_a_killed_process_leaves_an_orphan_and_a_live_one_does_not(room):
    script = """
        spool = Spool(Path(sys.argv[1]), RESOURCE, bytes_max=ROOM)
        for number in range(10): spool.append(line(number), urgent=number % 2 == 0)
        print("ready", flush=True)
        sys.stdin.readline()
    """
    source = f"from tests.spools import *\n{textwrap.dedent(script)}"
    command = [sys.executable, "-c", source, str(room)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "ready\n"
        assert inherit(room) == []
        process.kill()
        process.wait()
    assert inherit(room) == [str(number) for number in range(10)]


def test_a_live_process_never_adopts_itself(spool_in, room, monkeypatch):
    first, second = spool_in(), spool_in()
    first.append(line(1), urgent=False)
    second.append(line(2), urgent=False)
    assert inherit(room) == []
    assert taken(first) == ["1"]
    assert taken(second) == ["2"]


def test_a_live_process_never_adopts_itself_under_another_name(room, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    script = """
        room = Path(sys.argv[1])
        spool = Spool(room, RESOURCE, bytes_max=ROOM)
        spool.append(line(1), urgent=False)
        os.chdir(room.parent)
        assert inherit(Path("spool")) == inherit(room.parent / "link" / "spool") == []
        other = "from tests.spools import *; print(inherit(Path(sys.argv[1])))"
        os.chdir(ROOT)
        print(subprocess.run([sys.executable, "-c", other, room], capture_output=True, text=True).stdout)
        print(taken(spool))
    """
    try:
        result = python(script, room, timeout=10)
    except subprocess.TimeoutExpired:
        pytest.fail("it waits for itself")
    assert (result.stdout.split(), result.stderr) == (["[]", "['1']"], "")


def test_looking_at_a_live_spool_of_its_own_does_not_unlock_it(spool_in, room):
    spool = spool_in()
    spool.append(line(1), urgent=False)
    assert list(adopt(room)) == []
    assert python("print(inherit(Path(sys.argv[1])))", room).stdout == "[]\n"


def test_a_forked_child_neither_unlocks_nor_disturbs_its_parents_spool(room):
    script = """
        room = Path(sys.argv[1])
        spool = Spool(room, RESOURCE, bytes_max=ROOM)
        spool.append(line(1), urgent=False)
        spool.append(line(2), urgent=True)
        home = spool.home
        import fcntl, mmap
        for number in range(3):
            if os.fork() == 0:
                forget_parent()
                spool.abandon()
                held = [orphan.home for orphan in adopt(room)]
                assert home not in held
                own = Spool(room, RESOURCE, bytes_max=ROOM)
                own.append(line(number, f"child {number}"), urgent=False)
                os._exit(0)
            assert os.wait()[1] == 0
        # the lock holds, the map too, and the lease
        assert isinstance(spool._routine.active.buffer, mmap.mmap)
        assert fcntl.fcntl(spool._routine.active.file.descriptor(), fcntl.F_GETLEASE) == fcntl.F_WRLCK
        other = subprocess.run(
            [sys.executable, "-c", "from tests.spools import *; print(inherit(Path(sys.argv[1])))", str(room)],
            capture_output=True, text=True,
        )
        print(other.stdout.strip())
        spool.append(line(3), urgent=False)
        print(taken(spool))
    """
    result = python(script, room)
    assert result.stderr == ""
    assert result.stdout == "['child 0', 'child 1', 'child 2']\n['1', '2', '3']\n"


def test_a_directory_that_was_never_finished_is_removed_in_the_end_but_not_at_once(room):
    room.mkdir()
    fresh, old = room / ".1-a", room / ".2-b"
    for made in (fresh, old):
        made.mkdir()
        (made / "lock").touch()
    os.utime(old, (time.time() - 3600,) * 2)
    assert inherit(room) == []
    assert [path.name for path in room.iterdir()] == [".1-a"]


def test_a_home_that_is_half_removed_is_removed_and_one_without_its_lock_keeps_its_records(room):
    home = damaged_spool(room, HEADER + BODY)
    (home / "lock").unlink()
    (room / "2-empty").mkdir()
    assert inherit(room) in ([], [json.loads(data)["body"]["stringValue"] for _, _, data in WRITTEN])
    assert not (room / "2-empty").exists()


# ---- the disk


@pytest.mark.parametrize("name", ["lock", "00000001-routine.seg", "resource.json"])
def test_a_planted_link_leads_nowhere(room, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_bytes(b'{"password":"x"}' if name == "resource.json" else HEADER + BODY)
    before = secret.read_bytes()
    home = damaged_spool(room, HEADER + BODY, name="00000002-routine.seg")
    (home / name).unlink(missing_ok=True)
    (home / name).symlink_to(secret)
    found = []
    for orphan in adopt(room):
        with orphan:
            assert b"password" not in orphan.resource
            found += taken(orphan)
            orphan.remove()
    assert len(found) in (0, len(LINES))
    assert secret.read_bytes() == before


def test_a_directory_that_is_a_link_is_not_adopted(room, tmp_path):
    room.mkdir()
    elsewhere = damaged_spool(tmp_path / "elsewhere", HEADER + BODY)
    (room / "1-link").symlink_to(elsewhere)
    assert inherit(room) == []
    assert (elsewhere / "00000001-routine.seg").read_bytes() == HEADER + BODY


def in_small_disk(script, room, size="4m"):
    """Runs a script with a file system of its own, of so many bytes, mounted where the spool is to be."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root may mount a small disk in a mount namespace of its own")
    room.mkdir(exist_ok=True)
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size="$0" tmpfs "$1" || exit 77; shift; exec "$@"', size]
    result = python(script, room, prefix=[*mounted, str(room)])
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip(f"no mount namespace to be had here: {result.stderr.strip()}")
    return result


def test_on_a_full_disk_records_go_on_in_memory_and_back_to_the_disk_when_there_is_room(room):
    script = """
        room = Path(sys.argv[1])
        spool = Spool(room, RESOURCE, bytes_max=ROOM)
        spool.append(line(0), urgent=False)
        assert spool.problem == ""
        filler = room / "filler"
        from contextlib import suppress
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(65536)): pass
        for number in range(1, 41):
            spool.append(line(number, size=SEGMENT_BYTES // 8), urgent=number % 4 == 0)
            spool.tend()
        print(spool.problem, spool.records_in_memory() > 0, spool.overflowed)
        filler.unlink()
        spool.tend()
        print(repr(spool.problem))
        spool.append(line(41), urgent=False)
        spool.append(line(42), urgent=True)
        print([ring.active.path is not None for ring in spool._rings])
        print(taken(spool) == [str(number) for number in range(43)], spool.damaged)
        print(spool.records_in_memory(), len(spool))
    """
    result = in_small_disk(script, room)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "No space left on device True 0",
        "''",
        "[True, True]",
        "True 0",
        "0 0",
    ]
    assert result.returncode == 0


def test_on_a_full_disk_what_is_mapped_is_not_touched_by_the_lack_of_room(room):
    """A sparse map would end the process by SIGBUS here."""
    script = """
        room = Path(sys.argv[1])
        spool = Spool(room, RESOURCE, bytes_max=ROOM)
        spool.append(line(0), urgent=False)
        from contextlib import suppress
        with suppress(OSError), (room / "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096): pass
        for number in range(1, 2000): spool.append(line(number, size=300), urgent=False)
        print(spool.problem, len(taken(spool)))
    """
    result = in_small_disk(script, room)
    assert (result.returncode, result.stdout, result.stderr) == (0, " 2000\n", "")


def test_with_disk_and_memory_full_the_oldest_routine_records_go_and_are_counted(room):
    script = """
        room = Path(sys.argv[1])
        spool = Spool(room, RESOURCE, bytes_max=ROOM, memory_bytes=2 * SEGMENT_BYTES)
        spool.append(line(0, "first urgent"), urgent=True)
        for number in range(1, 200):
            spool.append(line(number, size=SEGMENT_BYTES // 4 - 200), urgent=False)
            spool.tend()
        print(bool(spool.overflowed), spool.appended == len(spool) + spool.overflowed)
        kept = taken(spool)
        print(kept[0], kept[1:] == [str(number) for number in range(201 - len(kept), 200)], len(kept))
    """
    result = in_small_disk(script, room)
    assert result.stderr == ""
    assert result.stdout.startswith("True True\nfirst urgent True ")
    # two megabytes in memory, and two of the three that the disk has beside the urgent one
    assert int(result.stdout.split()[-1]) >= 13
    assert result.returncode == 0


def test_a_limit_of_the_size_of_files_leaves_records_in_memory_and_raises_nothing(room):
    script = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        spool = Spool(Path(sys.argv[1]), RESOURCE, bytes_max=ROOM)
        for number in range(1000): spool.append(line(number, size=300), urgent=number % 2 == 0)
        spool.tend()
        print(spool.problem, spool.records_in_memory())
        print(taken(spool) == [str(number) for number in range(1000)])
        spool.close()
    """
    result = python(script, room)
    assert (result.returncode, result.stdout, result.stderr) == (0, "File too large 1000\nTrue\n", "")


def test_a_limit_of_the_size_of_files_that_comes_later_lets_go_on_what_is_open(room):
    script = """
        import resource
        spool = Spool(Path(sys.argv[1]), RESOURCE, bytes_max=ROOM)
        spool.append(line(0), urgent=False)
        spool.append(line(1), urgent=True)
        spool._urgent.active.unmap()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
        for number in range(2, 1000): spool.append(line(number, size=300), urgent=number % 2 == 0)
        print(bool(spool.problem), spool.damaged)
        print(taken(spool) == [str(number) for number in range(1000)], spool.damaged)
    """
    result = python(script, room)
    assert (result.returncode, result.stdout, result.stderr) == (0, "True 0\nTrue 0\n", "")


def test_where_nothing_may_be_written_records_wait_in_memory_and_the_problem_is_named(open_room):
    script = f"""{AS_NOBODY}
        spool = Spool(Path(sys.argv[1]), RESOURCE, bytes_max=ROOM)
        for number in range(100): spool.append(line(number), urgent=number % 2 == 0)
        spool.tend()
        print(spool.problem, spool.records_in_memory(), spool.home)
        print(taken(spool) == [str(number) for number in range(100)])
    """
    open_room.chmod(0o555)
    result = python(script, open_room)
    assert (result.returncode, result.stdout, result.stderr) == (0, "Permission denied 100 None\nTrue\n", "")


def test_a_file_in_the_place_of_the_directory_is_a_problem_and_no_error(spool_in, room):
    room.write_text("in the way")
    spool = spool_in()
    spool.append(line(1), urgent=False)
    assert spool.problem
    assert taken(spool) == ["1"]
    room.unlink()
    spool.append(line(2), urgent=False)
    spool.tend()
    assert spool.problem == ""
    spool.append(line(3), urgent=False)
    assert spool.home is not None
    assert taken(spool) == ["2", "3"]


def test_a_directory_that_is_removed_under_the_process_costs_no_record(spool_in, room):
    spool = spool_in()
    numbers = count()
    for _ in range(4):
        fill(spool, numbers, 2)
        spool.append(line(next(numbers)), urgent=True)
        shutil.rmtree(room)
        spool.append(line(next(numbers)), urgent=False)
        spool.tend()
    fill(spool, numbers, 2)
    total = next(numbers)
    assert spool.home is not None
    assert spool.home.exists()
    assert taken(spool) == [str(number) for number in range(total)]
    assert (spool.damaged, spool.overflowed, spool.problem) == (0, 0, "")


def test_after_its_directory_was_removed_a_process_soon_writes_where_others_find_it(spool_in, room):
    spool = spool_in()
    spool.append(line(1), urgent=False)
    shutil.rmtree(room)
    spool.tend()
    spool.append(line(2), urgent=False)
    spool.close()
    assert inherit(room) == ["2"]


TRUNCATIONS = {
    "another process": "os.truncate(path, 0)",
    "to the half": "os.truncate(path, os.path.getsize(path) // 2)",
    "a shell": "subprocess.run(['sh', '-c', ': > \"$0\"', path])",
    "a reader": "open(path, 'rb').read()",
    "a longer file": "open(path, 'r+b').truncate(3 * 1024 * 1024)",
}


@pytest.mark.parametrize("how", TRUNCATIONS)
def test_what_somebody_does_to_a_segment_under_the_map_ends_nothing(spool_in, room, how):
    spool = spool_in()
    over, logged, found = threading.Event(), count(), []

    def log():
        while not over.is_set():
            for _ in range(20):
                spool.append(line(next(logged), size=200), urgent=False)
            time.sleep(0)

    intruder = f"""
        from contextlib import suppress
        for path in (path for _ in range(10) for path in segments(Path(sys.argv[1]))):
            with suppress(FileNotFoundError):
                {TRUNCATIONS[how]}
    """
    spool.append(line(next(logged)), urgent=False)
    thread = threading.Thread(target=log)
    with tended(spool, found):
        thread.start()
        try:
            result = python(intruder, room)
            assert result.returncode == 0, result.stderr
        finally:
            over.set()
            thread.join()
    total = next(logged)
    spool.append(line(total, "last"), urgent=False)
    found += taken(spool)
    assert found[-1] == "last"
    assert total + 1 == len(found) + spool.damaged + spool.overflowed
    assert len(set(found)) == len(found)
    if how in ("a reader", "a longer file"):
        assert spool.damaged == 0


def test_a_segment_that_is_truncated_by_the_process_itself_ends_nothing(spool_in, room):
    spool = spool_in()
    number = 0
    with tended(spool):
        for _ in range(10):
            for _ in range(50):
                spool.append(line(number), urgent=False)
                number += 1
            os.truncate(segments(room)[-1], 0)
    spool.append(line(number, "last"), urgent=False)
    found = taken(spool)
    assert found[-1] == "last"
    assert spool.damaged == number + 1 - len(found) > 0


def test_whoever_reads_a_segment_waits_only_for_the_next_tend(spool_in, room):
    spool = spool_in()
    spool.append(line(1), urgent=False)
    with tended(spool):
        assert line(1) in segments(room)[0].read_bytes()
    spool.append(line(2), urgent=False)
    assert spool._routine.active.buffer is None
    assert taken(spool) == ["1", "2"]


# ---- descriptors

CLOSE_ALL = """
    import socket
    room = Path(sys.argv[1])
    spool = Spool(room, RESOURCE, bytes_max=ROOM)
    for number in range(100): spool.append(line(number), urgent=number % 10 == 0)
    os.closerange(3, {high})
    # the application takes as many as it likes, up to where ours were
    files = [open(room.parent / f"app {{number}}", "w+b", buffering=0) for number in range({files})]
    for number in range(100, 200): spool.append(line(number, size={size}), urgent=number % 10 == 0)
    for _ in range(3):
        spool.tend()
        batch = spool.take(30)
        spool.release(batch)
    rest = taken(spool)
    spool.close()
    for number, file in enumerate(files):
        # neither written to nor closed
        assert os.fstat(file.fileno()).st_size == 0, (number, os.pread(file.fileno(), 200, 0))
        assert os.fstat(file.fileno()).st_ino == os.stat(room.parent / f"app {{number}}").st_ino
        file.write(b"ours")
        assert (room.parent / f"app {{number}}").read_bytes() == b"ours"
    print(rest[-1:] == ["199"], spool.damaged)
"""


@pytest.mark.parametrize(("high", "files", "size"), [(256, 20, 200), (4096, 20, 100_000), (4096, 900, 200)])
def test_who_closes_all_descriptors_finds_its_own_files_untouched_afterwards(room, high, files, size):
    script = CLOSE_ALL.format(high=high, files=files, size=size)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("so many files may not be open here")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))\n"
    room.mkdir()
    result = python(limit + textwrap.dedent(script), room)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("True ")


def test_what_is_mapped_when_all_descriptors_are_closed_is_read_as_well(room):
    script = """
        spool = Spool(Path(sys.argv[1]), RESOURCE, bytes_max=ROOM)
        for number in range(100): spool.append(line(number), urgent=number % 10 == 0)
        os.closerange(3, 4096)
        for number in range(100, 200): spool.append(line(number), urgent=number % 10 == 0)
        print(taken(spool) == [str(number) for number in range(200)], spool.damaged)
    """
    result = python(script, room)
    assert (result.returncode, result.stdout, result.stderr) == (0, "True 0\n", "")


def test_a_process_whose_descriptors_were_closed_keeps_its_spool_from_others(room):
    script = """
        room = Path(sys.argv[1])
        spool = Spool(room, RESOURCE, bytes_max=ROOM)
        spool.append(line(1), urgent=False)
        os.closerange(3, 4096)
        spool.append(line(2), urgent=False)
        spool.tend()
        spool.append(line(3), urgent=False)
        other = "from tests.spools import *; print(inherit(Path(sys.argv[1])))"
        # what is adopted now must not be shipped here as well
        stolen = subprocess.run([sys.executable, "-c", other, str(room)], capture_output=True, text=True)
        print(eval(stolen.stdout) + taken(spool))
    """
    result = python(script, room)
    assert result.stderr == ""
    found = eval(result.stdout)
    assert "3" in found
    assert len(set(found)) == len(found)
