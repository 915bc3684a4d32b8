"""SQL over the day files, by DuckDB: the tables `logs` and `spans`, and nothing else of the machine."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import orjson

from jarvis_collector import gzip_blocks
from jarvis_collector.layout import archive_path, day_name
from jarvis_otel.query.days import archived_days, may_hold, plain_days
from jarvis_otel.query.errors import AnswerError
from jarvis_otel.query.files import LOGS, SPANS, Kind, LogFiles, Tally
from jarvis_otel.query.times import Interval

__all__ = ["LOG_COLUMNS", "SPAN_COLUMNS", "Database", "Rows", "to_parquet"]

LOG_COLUMNS = {
    "timestamp": "TIMESTAMP",
    "level": "VARCHAR",
    "message": "VARCHAR",
    "service": "VARCHAR",
    "correlation_id": "VARCHAR",
    "trace_id": "VARCHAR",
    "span_id": "VARCHAR",
    "request_id": "VARCHAR",
    "user_id": "VARCHAR",
    "session_id": "VARCHAR",
    "active_flags": "VARCHAR[]",
    "flags": "JSON",
    "duration_ms": "DOUBLE",
    "error": "STRUCT(type VARCHAR, message VARCHAR, stack_trace VARCHAR)",
    "event": "VARCHAR",
    "context": "JSON",
    "logger": "VARCHAR",
    "source": "STRUCT(file VARCHAR, line BIGINT, function VARCHAR)",
    "_meta": "JSON",
}
"""DuckDB's type of each key of a record's line; times are UTC."""

SPAN_COLUMNS = {
    "timestamp": "TIMESTAMP",
    "end": "TIMESTAMP",
    "duration_ms": "DOUBLE",
    "name": "VARCHAR",
    "kind": "VARCHAR",
    "service": "VARCHAR",
    "correlation_id": "VARCHAR",
    "trace_id": "VARCHAR",
    "span_id": "VARCHAR",
    "parent_span_id": "VARCHAR",
    "status": "STRUCT(code VARCHAR, message VARCHAR)",
    "flags": "JSON",
    "attributes": "JSON",
    "events": "JSON",
    "links": "JSON",
    "scope": "JSON",
    "_meta": "JSON",
}
"""The same of a span's line."""

_IDENTITY = {LOGS: "_meta->>'uid'", SPANS: "trace_id || span_id"}
_MEMORY = "512MB"
_SPILL = "4GB"
_THREADS_MAX = 4
_LINE_MAX_BYTES = 16 << 20
_PIECE_BYTES = 1 << 20
_FETCH = 1000
_INTERRUPT_S = 2.0
_ERROR_LINES_MAX = 3
_CURE = "DuckDB is missing: pip install 'jarvis-otel[query]'"

# begins a line of the real Collector; in a text of ours the quotes would be escaped
_REQUEST = b'{"resource'


class Rows:
    """What a statement gives.

    Attributes:
        columns: The names of the columns.
    """

    def __init__(self, cursor: Any, run: Callable[[Callable[[], Any]], Any]) -> None:
        self._cursor = cursor
        self._run = run
        self.columns = [str(column[0]) for column in cursor.description or ()]
        self._json = [str(column[1]) == "JSON" for column in cursor.description or ()]

    def __iter__(self) -> Iterator[list[Any]]:
        """The rows, as JSON knows values: times are ISO 8601, and columns of JSON are what they say.

        Raises:
            AnswerError: DuckDB cannot go on.
        """
        while rows := self._run(lambda: self._cursor.fetchmany(_FETCH)):
            for row in rows:
                yield [
                    _parsed(value) if is_json else _plain(value) for value, is_json in zip(row, self._json, strict=True)
                ]


class Database:
    """The records and spans of an interval as tables of an in-memory DuckDB, which reaches nothing else.

    Flat files, plain or gzip, are read as they are; those of the real Collector are put into flat lines first.

    Args:
        place: The log directory; or files.
        interval: From when to when.
        tally: Where what is met with is counted.
        scratch: A directory of this question's own: for flat lines, and for what does not fit into memory.

    Raises:
        AnswerError: There is no DuckDB.
        OSError: The files cannot be read.
    """

    def __init__(self, place: Path | Sequence[Path], interval: Interval, tally: Tally, scratch: Path) -> None:
        self._tally = tally
        self._scratch = scratch
        self._duckdb = _import()
        self._connection = self._duckdb.connect(
            ":memory:",
            config={
                "threads": min(os.cpu_count() or 1, _THREADS_MAX),
                "memory_limit": _MEMORY,
                "temp_directory": str(scratch / "spill"),
                "max_temp_directory_size": _SPILL,
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "python_enable_replacements": "false",
                "preserve_insertion_order": "true",
            },
        )
        self._done = threading.Event()
        self._done.set()
        allowed: list[str] = []
        for kind, name, columns in ((LOGS, "logs", LOG_COLUMNS), (SPANS, "spans", SPAN_COLUMNS)):
            paths = [str(path) for path in self._flat_files(place, kind, interval)]
            allowed += paths
            self._connection.execute(_view(name, columns, paths, _IDENTITY[kind], interval))
        self._connection.execute(f"SET allowed_paths = {_list(allowed)}")
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_busy:
            self._connection.close()

    @property
    def is_busy(self) -> bool:
        """Whether a statement still runs that was interrupted: DuckDB may take minutes to notice."""
        return not self._done.is_set()

    def ask(self, sql: str) -> Rows:
        """What a statement that only reads gives.

        Raises:
            AnswerError: It is not one statement that only reads, or DuckDB refuses it.
        """
        try:
            statements = self._connection.extract_statements(sql)
        except self._duckdb.Error as error:
            raise _answer_error(error) from None
        if len(statements) != 1 or statements[0].type != self._duckdb.StatementType.SELECT:
            raise AnswerError("got something else than one statement that only reads, want SELECT … FROM logs")
        return Rows(self._run(lambda: self._connection.execute(statements[0])), self._run)

    def _run(self, work: Callable[[], Any]) -> Any:
        """What the work returns; it is done beside the main thread, which so hears of Ctrl-C at once.

        Raises:
            AnswerError: DuckDB cannot do it.
            KeyboardInterrupt: Somebody pressed Ctrl-C.
        """
        outcome: list[tuple[Any, BaseException | None]] = []

        def worker() -> None:
            try:
                outcome.append((work(), None))
            except BaseException as error:
                outcome.append((None, error))
            self._done.set()

        self._done.clear()
        threading.Thread(target=worker, name="jarvis-sql", daemon=True).start()
        try:
            self._done.wait()  # a join that is interrupted takes the thread for ended
        except KeyboardInterrupt:
            self._connection.interrupt()
            self._done.wait(_INTERRUPT_S)
            raise
        value, error = outcome[0]
        if isinstance(error, self._duckdb.Error):
            raise _answer_error(error) from None
        if error is not None:
            raise error
        return value

    def _flat_files(self, place: Path | Sequence[Path], kind: Kind, interval: Interval) -> Iterator[Path]:
        if isinstance(place, Path):
            plain = plain_days(place, kind.stream)
            names = {path.name for path in plain}
            archived = [path for path in archived_days(place, kind.stream) if path.name[: -len(".gz")] not in names]
            paths = [path for path in (*archived, *map(_present, plain)) if path and may_hold(path, interval)]
        else:
            paths = list(place)
        for path in paths:
            self._tally.files += 1
            named = day_name(path.name)
            target = self._scratch / f"{kind.stream}-{self._tally.files}.jsonl{'.gz' if path.suffix == '.gz' else ''}"
            if named is not None and named.stream == kind.stream and not _has_requests(path):
                target.symlink_to(path.resolve())  # a name without quotes and wildcards
                yield target
            else:
                yield self._flattened(path, kind, interval)

    def _flattened(self, path: Path, kind: Kind, interval: Interval) -> Path:
        target = self._scratch / f"{kind.stream}-{self._tally.files}.flat.jsonl.gz"
        with gzip.open(target, "wb", compresslevel=1) as file:
            for found in LogFiles([path], self._tally).records(kind, (), interval):
                file.write(found.line + b"\n")
        return target


def to_parquet(lines: Path, target: Path) -> None:
    """Writes records' lines as Parquet, with the columns of `logs`.

    Args:
        lines: A file of flat lines.
        target: The file to write.

    Raises:
        AnswerError: There is no DuckDB, or it cannot do it.
    """
    duckdb = _import()
    with duckdb.connect(":memory:", config={"memory_limit": _MEMORY, "temp_directory": ""}) as connection:
        try:
            connection.execute(f"COPY ({_lines(LOG_COLUMNS, [str(lines)])}) TO {_text(str(target))} (FORMAT parquet)")
        except duckdb.Error as error:
            raise _answer_error(error) from None


def _import() -> Any:
    try:
        import duckdb  # noqa: PLC0415 - an extra, and 150 ms
    except ModuleNotFoundError:
        raise AnswerError(_CURE) from None
    return duckdb


def _view(name: str, columns: dict[str, str], paths: Sequence[str], identity: str, interval: Interval) -> str:
    if not paths:
        nothing = ", ".join(f'NULL::{kind} AS "{column}"' for column, kind in columns.items())
        return f"CREATE VIEW {name} AS SELECT {nothing} WHERE false"
    # a line that is no record has no timestamp
    wanted = ["timestamp IS NOT NULL"]
    wanted += [f"timestamp >= {_time(interval.since)}"] if interval.since else []
    wanted += [f"timestamp <= {_time(interval.until)}"] if interval.until else []
    once = f"({identity}) IS NULL OR row_number() OVER (PARTITION BY {identity}) = 1"
    selected = f"SELECT * FROM ({_lines(columns, paths)}) WHERE {' AND '.join(wanted)}"  # noqa: S608 - quoted
    return f"CREATE VIEW {name} AS {selected} QUALIFY {once}"


def _lines(columns: dict[str, str], paths: Sequence[str]) -> str:
    """What reads flat lines; a timestamp is read with its offset, which DuckDB would pass over otherwise."""
    zoned = {"TIMESTAMP": "TIMESTAMPTZ"}
    types = ", ".join(f'"{column}": {_text(zoned.get(kind, kind))}' for column, kind in columns.items())
    times = [column for column, kind in columns.items() if kind in zoned]
    utc = ", ".join(f'make_timestamp(epoch_us("{column}")) AS "{column}"' for column in times)
    reader = (
        f"read_json({_list(paths)}, columns = {{{types}}}, format = 'newline_delimited', ignore_errors = true, "
        f"maximum_object_size = {_LINE_MAX_BYTES}, map_inference_threshold = -1)"
    )
    return f"SELECT * REPLACE ({utc}) FROM {reader}"  # noqa: S608 - quoted


def _list(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(_text, texts))}]"


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _time(moment: datetime) -> str:
    return f"TIMESTAMP '{moment.astimezone(UTC).replace(tzinfo=None).isoformat(' ')}'"


def _present(plain: Path) -> Path | None:
    """Where a day stands that was plain when the directory was listed; None where it is gone."""
    return next((path for path in (plain, archive_path(plain)) if path.exists()), None)


def _has_requests(path: Path) -> bool:
    before = b""
    with suppress(EOFError):
        for piece in _pieces(path):
            if _REQUEST in piece or _REQUEST in before[-len(_REQUEST) :] + piece[: len(_REQUEST)]:
                return True
            before = piece
    return False


def _pieces(path: Path) -> Iterator[bytes]:
    if path.suffix == ".gz":
        yield from gzip_blocks.read(path)
        return
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _answer_error(error: Exception) -> AnswerError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("LINE ", "^"))][:_ERROR_LINES_MAX]
    return AnswerError("; ".join(told) or type(error).__name__)


def _parsed(value: Any) -> Any:
    try:
        return orjson.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        utc = value.astimezone(UTC) if value.tzinfo else value
        return utc.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    if isinstance(value, date | clock):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and abs(value) < 2**53 else float(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
