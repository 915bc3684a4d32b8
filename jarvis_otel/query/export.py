"""All that matches, as a file that is there whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from jarvis_otel.query.errors import AnswerError
from jarvis_otel.query.output import Passing
from jarvis_otel.query.render import csv_rows
from jarvis_otel.query.scan import Found

__all__ = ["EXPORT_FORMATS", "export", "export_format"]

EXPORT_FORMATS = ("jsonl", "csv", "parquet")
_MODE = 0o640


def export_format(named: str | None, target: Path) -> str:
    """The format that is named, else the one that the file's name ends in, else jsonl."""
    suffix = target.suffix.lower().removeprefix(".")
    return named or (suffix if suffix in EXPORT_FORMATS else "jsonl")


def export(found: Iterable[Found], target: Path, form: str) -> int:
    """Writes records to a file; what was there under its name stays until all is written, or if nothing is found.

    Args:
        found: The records.
        target: The file; a symbolic link is followed.
        form: `jsonl`, `csv` or `parquet`.

    Returns:
        How many records there are; with none, nothing is written.

    Raises:
        AnswerError: The format needs what is not installed, or the target is no file.
        OSError: The file cannot be written, or the records cannot be read.
    """
    path = target.resolve()
    if path.exists() and not path.is_file():
        raise AnswerError(f"{target}: is no file; for a pipe there is jarvis logs query --limit 0 --format {form}")
    made: list[Path] = []
    try:
        count = _write(found, _new(path, made), form)
        if not count:
            return 0
        if form == "parquet":
            from jarvis_otel.query.sql import to_parquet  # noqa: PLC0415 - an extra

            to_parquet(made[0], _new(path, made))
            made[-1].chmod(stat.S_IMODE(made[0].stat().st_mode))  # DuckDB makes it anew
        _sync(made[-1])
        made[-1].replace(path)
        return count
    except OSError as error:
        if error.filename is None or Path(error.filename).name.startswith(_temporary(path)):
            raise AnswerError(f"{target}: cannot be written: {error.strerror}") from None
        raise
    finally:
        for temporary in made:
            with suppress(OSError):
                temporary.unlink()


def _temporary(path: Path) -> str:
    """How the names of the files begin that become this one."""
    return f".{path.name[:100]}.{os.getpid()}.tmp"


def _new(path: Path, made: list[Path]) -> Path:
    """A file beside another one, empty, that nobody else writes to."""
    temporary = path.with_name(f"{_temporary(path)}{len(made)}")
    made.append(temporary)  # before it is there: an interrupt may come at once
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE))
    return temporary


def _write(found: Iterable[Found], path: Path, form: str) -> int:
    counted = Passing(found)
    with path.open("wb") as file:
        if form == "csv":
            for row in csv_rows(one.record for one in counted):
                file.write(row.encode("utf-8", "backslashreplace"))
        else:
            for one in counted:
                file.write(one.line + b"\n")
    return counted.number


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
