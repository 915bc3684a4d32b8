"""The bytes of a file, plain or gzip, in blocks of whole lines and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from jarvis_collector import gzip_blocks

__all__ = ["read_blocks"]

_PIECE_BYTES = 1 << 20
_LINE_MAX_BYTES = 128 << 20
"""The real Collector writes a whole request in a line; a longer one is passed over."""

_GZIP = b"\x1f\x8b"


def read_blocks(
    path: Path,
    on_too_long: Callable[[], object],
    wanted: Callable[[bytes, bytes], bool] | None = None,
    on_damage: Callable[[str], object] | None = None,
) -> Iterator[bytes]:
    """A file in blocks of whole lines, up to the last one that is there in full.

    A file may be written to meanwhile: what follows the last newline is taken only where it is a whole JSON text,
    otherwise it is not torn but not there yet.

    Args:
        path: The file; what begins like gzip is inflated, whatever its name.
        on_too_long: Called for each line over 128 MiB, which is passed over.
        wanted: Told the earliest and the latest timestamp of a part of an archive, whether it is to be read.
        on_damage: Told what is wrong with gzip data; what is whole is read all the same.

    Raises:
        OSError: It cannot be read.
    """
    held: list[bytes] = []
    passing_over = False
    for piece in _pieces(path, wanted, on_damage):
        end = piece.rfind(b"\n") + 1
        if end == 0:
            if not passing_over:
                held.append(piece)
                if sum(map(len, held)) > _LINE_MAX_BYTES:
                    on_too_long()
                    held, passing_over = [], True
            continue
        start = piece.find(b"\n") + 1 if passing_over else 0
        yield b"".join((*held, memoryview(piece)[start:end])) if held or start or end < len(piece) else piece
        held, passing_over = [piece[end:]] if end < len(piece) else [], False
    if held and _is_json(rest := b"".join(held)):
        yield rest + b"\n"


def _pieces(
    path: Path, wanted: Callable[[bytes, bytes], bool] | None, on_damage: Callable[[str], object] | None
) -> Iterator[bytes]:
    if path.suffix != ".gz":
        with path.open("rb", buffering=0) as file:
            piece = file.read(_PIECE_BYTES)
            if not piece.startswith(_GZIP):
                while piece:
                    yield piece
                    piece = file.read(_PIECE_BYTES)
                return
    yield from gzip_blocks.read(path, wanted, on_damage)


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True
