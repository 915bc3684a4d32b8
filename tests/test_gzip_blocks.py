"""Archives: any gzip reader gives back every byte, and ours may skip what cannot hold the interval."""

import gzip
import random
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_collector import gzip_blocks
from jarvis_collector.record import timestamp_of

HUGE = 9_000_000


def line(second, text="x"):
    return b'{"timestamp":"2026-01-02T%02d:%02d:%02d.000000Z","message":"%b"}\n' % (
        second // 3600,
        second // 60 % 60,
        second % 60,
        text if isinstance(text, bytes) else text.encode(),
    )


def stamp(second):
    return timestamp_of(line(second))


def archive(path, pieces):
    with path.open("wb") as file:
        return gzip_blocks.write(pieces, file)


def many_lines(count=20_000, width=200):
    noise = random.Random(7)
    return [line(number * 86_400 // count, noise.randbytes(width // 2).hex()) for number in range(count)]


def read(path, wanted=None):
    problems = []
    return b"".join(gzip_blocks.read(path, wanted, problems.append)), problems


def zcat(path):
    return subprocess.run(["zcat", path], capture_output=True, check=True).stdout


texts = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(lambda text: text + b"\n"),
    st.integers(0, 86_399).map(line),
    # long enough that lines and blocks end in every place of a piece
    st.tuples(st.integers(0, 3), st.sampled_from([gzip_blocks.BLOCK // 2, gzip_blocks.BLOCK, 5 << 19])).map(
        lambda one: b"%d" % one[0] * one[1] + b"\n" * (one[0] % 2)
    ),
)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(texts, max_size=12), cuts=st.lists(st.integers(0, 6 << 20), max_size=8))
def test_any_bytes_in_any_pieces_come_back_from_zcat_and_from_the_reader(tmp_path_factory, parts, cuts):
    content = b"".join(parts)
    ends = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    path = tmp_path_factory.mktemp("any") / "a.gz"
    told = archive(path, [content[start:end] for start, end in pairwise(ends)])
    assert zcat(path) == content
    assert gzip.decompress(path.read_bytes()) == content
    assert read(path) == (content, [])
    found = list(gzip_blocks.blocks(path))
    assert told.raw_size == len(content) == sum(block.raw_size for block in found)
    assert sum(block.size for block in found) == path.stat().st_size
    start = 0
    for block in found:
        held = content[start : start + block.raw_size]
        start += block.raw_size
        assert held.endswith(b"\n") or start == len(content)
        assert len(held) < 2 * gzip_blocks.BLOCK or b"\n" not in held[:-1]
        stamps = [timestamp_of(one) for one in held.removesuffix(b"\n").split(b"\n")] if held else []
        if stamps and None not in stamps:
            assert (block.earliest, block.latest) == (min(stamps), max(stamps))
        elif stamps:
            assert (block.earliest[:4], block.latest[:4]) == (b"0000", b"9999")


@settings(max_examples=40, deadline=None)
@given(since=st.integers(0, 86_399), length=st.integers(0, 20_000))
def test_exactly_the_blocks_that_may_hold_the_interval_are_read(day_archive, since, length):
    path, content = day_archive
    first, last = stamp(since), stamp(min(86_399, since + length))
    got, problems = read(path, lambda earliest, latest: first <= latest and earliest <= last)
    start, wanted = 0, []
    for block in gzip_blocks.blocks(path):
        held = content[start : start + block.raw_size]
        start += block.raw_size
        stamps = [timestamp_of(one) for one in held.split(b"\n")[:-1]]
        if first <= max(stamps) and min(stamps) <= last:
            wanted.append(held)
    assert (got, problems) == (b"".join(wanted), [])
    in_interval = [one for one in content.split(b"\n")[:-1] if first <= timestamp_of(one) <= last]
    assert set(in_interval) <= set(got.split(b"\n"))


@pytest.fixture(scope="module")
def day_archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("day") / "day.gz"
    content = b"".join(many_lines())
    archive(path, [content])
    return path, content


def test_a_block_with_a_line_that_is_not_ours_is_never_skipped(tmp_path):
    archive(tmp_path / "a.gz", [line(1) + b'{"resourceLogs":[]}\n' + line(2)])
    (block,) = gzip_blocks.blocks(tmp_path / "a.gz")
    assert (block.earliest[:4], block.latest[:4]) == (b"0000", b"9999")


def test_an_empty_file_becomes_an_archive_that_zcat_reads(tmp_path):
    path = tmp_path / "a.gz"
    assert archive(path, []) == (0, None)
    assert zcat(path) == b""
    assert read(path, lambda earliest, latest: earliest <= latest) == (b"", [])


def test_a_line_of_any_length_is_a_block_of_its_own_with_its_timestamp_in_bounded_memory(tmp_path):
    path = tmp_path / "a.gz"
    start, end = line(7).split(b"x")

    def pieces():
        yield line(1) + start
        for _ in range(100):
            yield b"x" * 1_000_000
        yield end + line(9)

    tracemalloc.start()
    archive(path, pieces())
    assert sum(map(len, gzip_blocks.read(path))) == 2 * len(line(1)) + len(start) + len(end) + 100_000_000
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert [(block.earliest, block.latest) for block in gzip_blocks.blocks(path)] == [
        (stamp(second), stamp(second)) for second in (1, 7, 9)
    ]


def test_a_foreign_gzip_file_is_read_whole_in_bounded_pieces_and_its_members_are_never_skipped(tmp_path):
    path = tmp_path / "a.gz"
    content = line(1) * (HUGE // len(line(1)))
    path.write_bytes(gzip.compress(content, 1) + gzip.compress(line(2)))
    assert list(gzip_blocks.blocks(path)) == []
    pieces = list(gzip_blocks.read(path, lambda *_: False))
    assert b"".join(pieces) == content + line(2)
    assert max(map(len, pieces)) <= 2 * gzip_blocks.BLOCK


def test_foreign_members_and_blocks_of_ours_stand_in_one_file(tmp_path):
    path = tmp_path / "a.gz"
    archive(path, [line(1)])
    path.write_bytes(gzip.compress(line(0)) + path.read_bytes() + gzip.compress(line(2)))
    assert read(path) == (line(0) + line(1) + line(2), [])
    assert read(path, lambda *_: False) == (line(0) + line(2), [])


def test_of_an_archive_that_was_cut_off_all_lines_are_read_that_are_whole(tmp_path, day_archive):
    whole, content = day_archive
    data = whole.read_bytes()
    path = tmp_path / "cut.gz"
    found = list(gzip_blocks.blocks(whole))
    for cut in (found[2].offset + 5_000, found[1].offset + 5, 10, len(data) - 3):
        path.write_bytes(data[:cut])
        got, problems = read(path)
        assert content.startswith(got)
        assert len(got) >= sum(block.raw_size for block in found if block.offset + block.size <= cut)
        assert len(problems) == 1
        assert "cut.gz" in problems[0]


@pytest.mark.parametrize("at", [0, 5, 20, 60, 90, 5_000, -3])
def test_a_damaged_block_costs_no_other_and_is_told(tmp_path, day_archive, at):
    whole, content = day_archive
    data = bytearray(whole.read_bytes())
    bad = list(gzip_blocks.blocks(whole))[1]
    place = bad.offset + at + (bad.size if at < 0 else 0)
    data[place] ^= 0x55
    path = tmp_path / "bad.gz"
    path.write_bytes(data)
    got, problems = read(path)
    blocks = list(gzip_blocks.blocks(whole))
    before = content[: blocks[0].raw_size]
    after = content[blocks[0].raw_size + bad.raw_size :]
    assert got.startswith(before)
    assert got.endswith(after)
    lost = set(content[len(before) :].removesuffix(after).split(b"\n")) - set(got.split(b"\n"))
    assert bool(problems) == bool(lost)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_a_file_holds_reading_it_ends_and_raises_nothing(tmp_path_factory, small_archive, data):
    content = bytearray(small_archive)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.integers(0, 40))
        content[start : start + cut] = data.draw(st.binary(max_size=40))
    path = tmp_path_factory.mktemp("torn") / "a.gz"
    path.write_bytes(content)
    read(path)
    read(path, lambda *_: False)
    list(gzip_blocks.blocks(path))


@pytest.fixture(scope="module")
def small_archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "a.gz"
    parts = []
    for number in range(4):
        archive(path, [line(number) * 5])
        parts.append(path.read_bytes())
    return b"".join([*parts, gzip.compress(line(9))])


def test_without_the_faster_library_archives_are_written_and_read_alike(tmp_path, day_archive):
    theirs, content = day_archive
    (tmp_path / "raw").write_bytes(content)
    script = (
        "import sys, pathlib; sys.modules['isal'] = None\n"
        "from jarvis_collector import gzip_blocks as g\n"
        "here, theirs = map(pathlib.Path, sys.argv[1:])\n"
        "raw = (here / 'raw').read_bytes()\n"
        "with (here / 'a.gz').open('wb') as file: g.write([raw], file)\n"
        "assert b''.join(g.read(here / 'a.gz')) == raw == b''.join(g.read(theirs))\n"
        "assert g.deflate.__name__ == 'zlib'\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path, theirs], check=True, timeout=60)
    assert read(Path(tmp_path / "a.gz")) == (content, [])
    assert zcat(tmp_path / "a.gz") == content
