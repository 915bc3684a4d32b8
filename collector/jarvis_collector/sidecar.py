"""What is known of a day file without reading it: the range of its lines' timestamps, kept in a small file beside it.

`jarvis-2026-03-01.meta.json` holds `{"size", "earliest", "latest"}`, the timestamps (of a span, its start) as the lines
write them. A reader may skip a file by that range only where `size` is the file's size; a sidecar that is missing,
cannot be parsed, or has another size says nothing, and the file must be read. An archive's sidecar tells the archive's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import orjson

from jarvis_collector.files import write_file
from jarvis_collector.layout import sidecar_path
from jarvis_collector.record import timestamp_of, timestamp_range

__all__ = ["EVER", "Range", "range_of", "read_sidecar", "widened", "write_sidecar"]

Range = tuple[bytes, bytes] | None
"""The earliest and the latest timestamp; None where there are no lines."""

EVER = (b"0000-01-01T00:00:00.000000Z", b"9999-12-31T23:59:59.999999Z")
"""The range of lines one of which is not ours, and may be of any time."""

# of the real Collector; one may stand behind what is left of a torn line of ours
_REQUESTS = (b'{"resourceLogs"', b'{"resourceSpans"')


def widened(range_: Range, lines: Iterable[bytes]) -> Range:
    """A range that covers further lines too."""
    earliest, latest = range_ or (EVER[1], EVER[0])
    for line in lines:
        stamp = timestamp_of(line)
        if stamp is None:
            return EVER
        earliest, latest = min(earliest, stamp), max(latest, stamp)
    return (earliest, latest) if earliest <= latest else None


def range_of(block: bytes) -> Range:
    """The range of whole lines that lie one after the other."""
    if any(opening in block for opening in _REQUESTS):
        return EVER
    return timestamp_range(block) or EVER if block else None


def read_sidecar(path: Path) -> tuple[int, tuple[bytes, bytes]] | None:
    """The size and the range that the sidecar of a day file tells; None where it cannot be read."""
    try:
        content = orjson.loads(sidecar_path(path).read_bytes())
        return int(content["size"]), (content["earliest"].encode(), content["latest"].encode())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_sidecar(path: Path, size: int, range_: Range) -> None:
    """Writes the sidecar of a day file, whole or not at all; a file without lines gets none.

    Args:
        path: The day file.
        size: How many of its bytes the range covers.
        range_: The range of their lines.

    Raises:
        OSError: It cannot be written.
    """
    if range_ is None:
        return
    content = {"size": size, "earliest": range_[0].decode(), "latest": range_[1].decode()}
    write_file(sidecar_path(path), orjson.dumps(content) + b"\n")
