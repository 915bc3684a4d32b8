"""What the soak knows of the day files: it reads them while they are written, archived and purged."""

import gzip
import os
import zlib
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import orjson

from tests.soak_application import OPERATION

LOOKS = 3
"""So many looks in a row must find a byte before it is read: what could not be written whole is cut off at once."""
_DROPPED = "jarvis.dropped."


class Tail:
    """The whole lines of one file so far, whatever becomes of its name."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.lines = self.bytes = self.crc = 0
        self.cut = False
        self._fd = os.open(path, os.O_RDONLY)
        self._sizes: deque[int] = deque(maxlen=LOOKS)

    def read(self, *, all_of_it: bool = False) -> list[bytes]:
        """What came since, without the newlines."""
        if self._fd < 0:
            return []
        found = os.fstat(self._fd)
        self._sizes.append(found.st_size)
        self.cut |= found.st_size < self.bytes
        settled = found.st_size if all_of_it or not found.st_nlink else min(self._sizes)
        if len(self._sizes) < LOOKS and found.st_nlink and not all_of_it:
            return []
        content = b"".join(self._pieces(settled))
        content = content[: content.rfind(b"\n") + 1]
        self.bytes += len(content)
        self.crc = zlib.crc32(content, self.crc)
        lines = content.split(b"\n")[:-1]
        self.lines += len(lines)
        if not found.st_nlink and self.bytes == found.st_size:
            self.close()  # what is deleted takes room until nobody has it open
        return lines

    def _pieces(self, end: int) -> Iterator[bytes]:
        at = self.bytes
        while at < end and (piece := os.pread(self._fd, min(end - at, 1 << 22), at)):
            at += len(piece)
            yield piece

    @property
    def is_done(self) -> bool:
        """Whether the file is deleted, and was read to its end."""
        return self._fd < 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DayFiles:
    """Which records came, and under which uids.

    Attributes:
        unreadable: Lines that are no JSON.
        repeats: Copies of a record under the uid that it had before.
        doubles: Copies under another uid.
        dropped: Records that applications counted as lost, by reason.
        events: Records that are none of those which the applications obliged us to keep.
        spans: Spans.
        archives: Whether an archive holds what the day file held that was read, by its name; purged ones too.
    """

    def __init__(self, log_dir: Path) -> None:
        self.unreadable = self.repeats = self.doubles = self.events = self.spans = 0
        self.dropped: Counter[str] = Counter()
        self.archives: dict[str, bool] = {}
        self._log_dir = log_dir
        self._tails: dict[str, Tail] = {}
        self._came: dict[str, array[int]] = {}
        self._told: set[str] = set()
        self._current: dict[str, tuple[int, int, set[str]]] = {}
        self._whole: tuple[str, int, set[str]] | None = None

    @property
    def tails(self) -> list[Tail]:
        return list(self._tails.values())

    @property
    def records(self) -> int:
        """Those that were to come, each once."""
        return sum(len(came) - came.count(0) for came in list(self._came.values()))

    @property
    def size(self) -> int:
        """Bytes of all that was read."""
        return sum(tail.bytes for tail in self.tails)

    def look(self, *, all_of_it: bool = False) -> None:
        """Reads what came since the last look."""
        for path in sorted((*self._log_dir.glob("jarvis-*.jsonl"), *self._log_dir.glob("traces-*.jsonl"))):
            # a day is written into one file: another one of its name would be missed, and what is in it be told as lost
            if path.name not in self._tails:
                with suppress(FileNotFoundError):  # archived between the two
                    self._tails[path.name] = Tail(path)
        for tail in self.tails:
            lines = tail.read(all_of_it=all_of_it)
            if tail.name.startswith("traces"):
                self.spans += len(lines)
            else:
                for line in lines:
                    self._take(line, tail.name)
        self._compare(all_of_it=all_of_it)

    def _compare(self, *, all_of_it: bool) -> None:
        """Looks into the archives that came, for what is archived now may be purged before the end."""
        for path in sorted(self._log_dir.glob("archive/*/*.jsonl.gz")):
            tail = self._tails.get(path.name.removesuffix(".gz"))
            if path.name not in self.archives and (tail is None or tail.is_done or all_of_it):
                with suppress(FileNotFoundError):  # purged between the two
                    content = _content(path)
                    self.archives[path.name] = tail is not None and content == (tail.bytes, tail.crc)

    def _take(self, line: bytes, file: str) -> None:
        try:
            record = orjson.loads(line)
            context, uid = record["context"], record["_meta"]["uid"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            self.unreadable += 1
            return
        if "soak" not in context:
            self._take_event(context, uid)
            return
        came, number = self._came.setdefault(context["soak"], array("Q")), context["number"]
        if len(came) < number:
            came.extend([0] * (number - len(came)))
        digest = hash(uid) & (1 << 64) - 1 or 1
        before = came[number - 1]
        self.repeats += before == digest
        self.doubles += before not in (0, digest)
        came[number - 1] = digest
        if before:
            return
        operation = (number - 1) // OPERATION
        current, left, files = self._current.get(context["soak"], (-1, 0, set()))
        if current != operation:
            left, files = OPERATION, set()
        files.add(file)
        self._current[context["soak"]] = (operation, left - 1, files)
        if left == 1:
            self._whole = (f"{context['soak']}-{operation}", operation, files)

    def _take_event(self, context: dict[str, int], uid: str) -> None:
        self.events += 1
        if (
            lost := {key: count for key, count in context.items() if key.startswith(_DROPPED)}
        ) and uid not in self._told:
            self._told.add(uid)
            self.dropped.update({key.removeprefix(_DROPPED): count for key, count in lost.items()})

    def missing(self, name: str, returned: int) -> int:
        """How many of the first so many records of an application are in no file."""
        came = self._came.get(name, array("Q"))[:returned]
        return returned - len(came) + came.count(0)

    def beyond(self, name: str, returned: int) -> int:
        """How many records of it are in the files beyond those."""
        return max(0, len(self._came.get(name, ())) - returned)

    def strangers(self, names: set[str]) -> int:
        """Records of applications that there never were."""
        return sum(len(came) for name, came in self._came.items() if name not in names)

    def operation(self) -> tuple[str, set[int], set[str]] | None:
        """The last correlation id all of whose records have come, their numbers, and the names of the files they are in."""
        if self._whole is None:
            return None
        correlation_id, number, files = self._whole
        return correlation_id, set(range(number * OPERATION + 1, number * OPERATION + OPERATION + 1)), files

    def is_kept(self, file: str) -> bool:
        """Whether a day file is still there, archived or not."""
        return (self._log_dir / file).exists() or any(self._log_dir.glob(f"archive/*/{file}.gz"))

    def close(self) -> None:
        for tail in self.tails:
            tail.close()


def _content(path: Path) -> tuple[int, int]:
    size = crc = 0
    with gzip.open(path) as file:
        while piece := file.read(1 << 20):
            size += len(piece)
            crc = zlib.crc32(piece, crc)
    return size, crc
