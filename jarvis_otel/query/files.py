"""Day files as a source of records: which files, which bytes of them, and what in these is a record."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from jarvis_collector.layout import sidecar_path
from jarvis_otel.query.filters import Filter, Needle
from jarvis_otel.query.times import Interval, canonical_time

__all__ = ["LOGS", "SPANS", "Found", "Kind", "LogFiles", "Tally", "read_blocks"]

_BLOCK_BYTES = 1 << 20
_LINE_MAX_BYTES = 32 << 20
_SEEN_MAX = 1 << 18


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the collector's signals: how its files are called, and what makes one of its records unique.

    Attributes:
        pattern: The file names, which sort by day.
        identity: Equal for repeats of one record; None where a record cannot be told from others.
    """

    pattern: str
    identity: Callable[[dict[str, Any]], object]


def _record_identity(record: dict[str, Any]) -> object:
    meta = record.get("_meta")
    uid = meta.get("uid") if isinstance(meta, dict) else None
    return uid if isinstance(uid, str) else None


def _span_identity(record: dict[str, Any]) -> object:
    ids = (record.get("trace_id"), record.get("span_id"))
    return ids if all(isinstance(part, str) for part in ids) else None


_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
LOGS = Kind(f"jarvis-{_DAY}.jsonl", _record_identity)
SPANS = Kind(f"traces-{_DAY}.jsonl", _span_identity)


class Found(NamedTuple):
    """A record that matched.

    Attributes:
        time: Its timestamp in the form whose text order is time order.
        record: The parsed line.
        line: The line as it stands in the file, without its newline.
    """

    time: str
    record: dict[str, Any]
    line: bytes


@dataclass(slots=True)
class Tally:
    """What reading met with, counted.

    Attributes:
        files: Files read.
        files_passed_over: Files whose sidecar says that nothing in them can match.
        unreadable: Lines by file that had to be parsed and are no record: torn, foreign, too long or too deep.
        repeats: Records found again with the same uid.
    """

    files: int = 0
    files_passed_over: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    repeats: int = 0


class LogFiles:
    """The day files of a log directory.

    Args:
        directory: The log directory.
        tally: Where what is met with is counted.
    """

    def __init__(self, directory: Path, tally: Tally) -> None:
        self.directory = directory
        self._tally = tally

    def records(self, kind: Kind, filters: Sequence[Filter], interval: Interval) -> Iterator[Found]:
        """The records that pass all filters, in the order in which they arrived, each once.

        Repeats are known for the last quarter of a million found records at least (by a 64-bit hash of the uid),
        which bounds the memory; redelivery follows within seconds to hours of the first delivery.

        Args:
            kind: Log records or spans.
            filters: What a record must be; the filter that excludes most comes first.
            interval: Lets whole files be passed over; it does not replace the interval's filter.

        Raises:
            OSError: The directory or one of its files cannot be read.
        """
        seen = _Seen()
        for path in self.paths(kind, interval):
            for found in self._scan(path, filters):
                identity = kind.identity(found.record)
                if identity is not None and seen.before(hash(identity)):
                    self._tally.repeats += 1
                else:
                    yield found

    def paths(self, kind: Kind, interval: Interval) -> list[Path]:
        """The files that may hold records of the interval, oldest day first.

        A file's day is that of arrival: what a record's own timestamp may be, only the sidecar can tell.

        Raises:
            OSError: The directory cannot be read.
        """
        with os.scandir(self.directory) as entries:
            names = {entry.name for entry in entries}
        paths = []
        for name in sorted(name for name in names if Path(name).match(kind.pattern)):
            path = self.directory / name
            if sidecar_path(path).name in names and not _may_hold(path, interval):
                self._tally.files_passed_over += 1
            else:
                paths.append(path)
        return paths

    def _scan(self, path: Path, filters: Sequence[Filter]) -> Iterator[Found]:
        try:
            blocks = read_blocks(path, lambda: self._count_unreadable(path))
            self._tally.files += 1
            yield from self._found(path, blocks, filters)
        except FileNotFoundError:
            return  # archived or purged since the directory was listed

    def _found(self, path: Path, blocks: Iterable[bytes], filters: Sequence[Filter]) -> Iterator[Found]:
        needles = [one.needle for one in filters if one.needle]
        checks = [one.possible for one in filters if one.possible]
        checks += [partial(_holds, needle) for needle in needles[1:]]
        possible, matches = _conjunction(checks), _conjunction([one.matches for one in filters])
        for block in blocks:
            for line in _lines_with(block, needles[0]) if needles else block.split(b"\n"):
                if not line or not possible(line):
                    continue
                try:
                    record = orjson.loads(line)
                    time = canonical_time(record["timestamp"])
                except (ValueError, TypeError, KeyError, OverflowError):
                    self._count_unreadable(path)
                    continue
                if matches(record):
                    yield Found(time, record, line)

    def _count_unreadable(self, path: Path) -> None:
        self._tally.unreadable[path.name] = self._tally.unreadable.get(path.name, 0) + 1


def _may_hold(path: Path, interval: Interval) -> bool:
    """Whether a file's sidecar leaves it open that there are records of the interval; it counts only at its size."""
    try:
        sidecar = orjson.loads(sidecar_path(path).read_bytes())
        if sidecar["size"] != path.stat().st_size:
            return True
        since, until = interval.line_times()
        return bool(since <= sidecar["latest"] and sidecar["earliest"] <= until)
    except (OSError, ValueError, TypeError, KeyError):
        return True


def read_blocks(path: Path, on_too_long: Callable[[], None]) -> Iterator[bytes]:
    """A file in blocks of whole lines, up to the last one that is there in full.

    A file may be written to meanwhile: what follows the last newline is taken only where it is a whole JSON text,
    otherwise it is not torn but not there yet.

    Args:
        path: The file.
        on_too_long: Called for each line over 32 MiB, which is passed over.
    """
    rest = b""
    passing_over = False
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            end = block.rfind(b"\n") + 1
            if end == 0:
                if not passing_over:
                    rest += block
                    if len(rest) > _LINE_MAX_BYTES:
                        on_too_long()
                        rest, passing_over = b"", True
                continue
            start = block.find(b"\n") + 1 if passing_over else 0
            yield rest + block[start:end] if rest or start or end < len(block) else block
            rest, passing_over = block[end:], False
    if rest and _is_json(rest):
        yield rest + b"\n"


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True


def _conjunction(tests: Sequence[Callable[[Any], bool]]) -> Callable[[Any], bool]:
    """All of the tests as one; it runs for every line, so it costs no generator."""
    if len(tests) == 1:
        return tests[0]

    def holds(item: Any) -> bool:
        for test in tests:  # noqa: SIM110
            if not test(item):
                return False
        return True

    return holds


def _holds(needle: Needle, line: bytes) -> bool:
    text = line.lower() if needle.lowered else line
    return any(alternative in text for alternative in needle.alternatives)


def _lines_with(block: bytes, needle: Needle) -> Iterator[bytes]:
    """The lines of a block in which one of the alternatives stands, found without looking at the other lines."""
    text = block.lower() if needle.lowered else block
    nexts = {alternative: text.find(alternative) for alternative in needle.alternatives}
    while nexts := {alternative: at for alternative, at in nexts.items() if at >= 0}:
        hit = min(nexts.values())
        end = block.find(b"\n", hit)
        yield block[block.rfind(b"\n", 0, hit) + 1 : end]
        nexts = {alternative: at if at > end else text.find(alternative, end + 1) for alternative, at in nexts.items()}


class _Seen:
    """Remembers hashes: the last `_SEEN_MAX` for sure, at most twice as many."""

    def __init__(self) -> None:
        self._young: set[int] = set()
        self._old: set[int] = set()

    def before(self, value: int) -> bool:
        """Whether the value was here before; from now on it was."""
        if value in self._young or value in self._old:
            return True
        if len(self._young) >= _SEEN_MAX:
            self._old, self._young = self._young, set()
        self._young.add(value)
        return False
