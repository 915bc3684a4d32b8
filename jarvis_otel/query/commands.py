"""What `jarvis logs …` does: the answer on stdout, the talk about it on stderr."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from jarvis_collector.layout import day_name
from jarvis_otel.query.errors import NO_LOG_DIR, AnswerError, QueryError
from jarvis_otel.query.filters import names_of
from jarvis_otel.query.log_query import Criteria, LogQuery
from jarvis_otel.query.output import Output, Passing, Progress
from jarvis_otel.query.render import csv_rows, csv_table, cut, human_record, json_text, local_time
from jarvis_otel.query.scan import Found
from jarvis_otel.query.times import Interval, resolve_interval
from jarvis_otel.query.workers import processors
from jarvis_otel.settings import Settings
from jarvis_otel.terminal import DONE, NO, WRONG, Paint, printable, table, wants_color

__all__ = ["LogCommands"]

_OPTIONS = {"user_id": "user", "text": "search"}
_DAMAGE_TOLD = 3
_LATE = timedelta(seconds=2)
_TABLE_ROWS = 1000
_MANY_BYTES = 64 << 20
_CELL_MAX = 120


class LogCommands:
    """The commands over one log directory, or over named files.

    Args:
        name: The command, as messages name it: `query`, `tail`, `trace`, `errors`, `stats`, `export`, `sql` or
            `reproduce`.
        log_dir: The log directory.
        settings: Where the flag file is, and the key of the users' pseudonyms.
        files: Files to read instead of the directory's.
        loki: The Loki to ask instead, as `--loki` names it: a base URL, or empty for that of the settings.
    """

    def __init__(
        self,
        name: str,
        log_dir: Path,
        settings: Settings,
        files: Sequence[Path] | None = None,
        loki: str | None = None,
    ) -> None:
        self._name = name
        self._settings = settings
        self._where = printable(str(log_dir) if files is None else ", ".join(file.name for file in files))
        self._log_dir = log_dir
        self._files = files
        self._loki = loki
        self._logs = LogQuery(None if files is not None else log_dir, files=files, workers=processors())
        self._progress = Progress(self._state)
        self._late: list[str] = []
        self._paint = Paint(color=wants_color(sys.stdout))

    def run(self, args: Namespace) -> int:
        """Carries the command out.

        Args:
            args: The parsed options.

        Returns:
            The exit code: found, nothing found, or wrong usage or bad input (then one line on stderr says what).
        """
        commands = {
            "query": self._query,
            "tail": self._tail,
            "trace": self._trace,
            "errors": self._errors,
            "stats": self._stats,
            "export": self._export,
            "sql": self._sql,
            "reproduce": self._reproduce,
        }
        paged = getattr(args, "format", None) == "human" and not getattr(args, "no_pager", True)
        try:
            if self._loki is not None:
                self._ask_loki(self._loki)
            with self._progress, Output(paged=paged, on_first=self._progress.end) as self._out:
                code = commands[self._name](args)
        except BrokenPipeError:
            raise  # whoever read us has seen enough: `main` knows what to do
        except QueryError as error:
            self._talk(
                f"--{_OPTIONS.get(error.argument, error.argument.replace('_', '-'))}: {printable(error.problem)}"
            )
            return WRONG
        except AnswerError as error:
            self._talk(printable(str(error)))
            return WRONG
        except FileNotFoundError as error:
            self._talk(f"{printable(str(error.filename))}: {NO_LOG_DIR if self._files is None else 'no such file'}")
            return WRONG
        except OSError as error:
            self._talk(f"{printable(str(error.filename))}: cannot be read: {error.strerror}")
            return WRONG
        for text in self._late:
            self._talk(text)
        self._talk_tally()
        return code

    def _ask_loki(self, option: str) -> None:
        """From here on the questions go to Loki."""
        from jarvis_otel.query.loki_source import REACH, asked_loki  # noqa: PLC0415 - most questions go to files

        if self._name in ("tail", "sql"):
            raise QueryError("loki", f"{self._name} reads files; `jarvis logs query --loki` shows the newest records")
        target, note = asked_loki(option, self._settings)
        self._logs = LogQuery(loki=target)
        self._where = f"Loki at {target.url}"
        if note:
            self._talk(note)
        self._talk(f"{self._where} has no spans; without --since it is asked for the last {REACH.days} days")

    def _criteria(self, args: Namespace) -> Criteria:
        criteria = Criteria.of(
            level=args.level,
            service=args.service,
            correlation_id=args.correlation_id,
            trace_id=args.trace_id,
            user_id=None if args.user is None else names_of(args.user, self._settings.hmac_key),
            flag=args.flag,
            since=args.since,
            until=args.until,
            text=args.search,
            regex=args.regex,
            where=args.where,
        )
        self._talk_interval(criteria.interval)
        return criteria

    def _query(self, args: Namespace) -> int:
        limit, page = _whole(args.limit, "limit", "; 0 is all"), _whole(args.page, "page", "; 1 is the newest records")
        if page < 1 or (page > 1 and not limit):
            raise QueryError("page", f"got {args.page}, want 1 or more, and a --limit that is how long a page is")
        criteria = self._criteria(args)
        form = self._forms()[args.format]
        if not limit:
            return DONE if self._write_all(form, self._logs.scan(criteria)) else self._nothing("nothing found")
        matches = self._logs.newest(criteria, limit * page)
        newer = limit * (page - 1)
        count = self._write_all(form, matches.found[: max(0, len(matches.found) - newer)])
        if not count:
            return self._nothing(f"page {page}: nothing found" if page > 1 else "nothing found")
        older = matches.total - newer - count
        total = f"{matches.total}" if matches.counted else f"{matches.total} or more"
        if page > 1:
            self._tell_late(f"page {page}, the newest {newer + 1} to {newer + count} of {total}")
        elif older:
            self._tell_late(f"the newest {count} of {total}; --limit 0 gives all, --page 2 those before")
        return DONE

    def _tail(self, args: Namespace) -> int:
        from jarvis_otel.query.tail import Changes, Tail  # noqa: PLC0415 - each command imports its own

        number = _whole(args.lines, "lines")
        if args.follow and Path("-") in (args.file or ()):
            raise QueryError("file", "got -, want a file: standard input cannot be followed")
        criteria = self._criteria(args)
        until = criteria.interval.until
        place = self._log_dir if self._files is None else self._files
        if args.follow:
            for path in (self._log_dir,) if self._files is None else self._files:
                if not path.exists():
                    self._talk(f"{printable(str(path))}: not there yet, waiting for it")
        form = self._forms()["jsonl" if args.follow and args.format == "json" else args.format]
        with Tail(place, criteria, self._logs.tally, self._talk_now, follow=args.follow) as tail:

            def found() -> Iterator[Found]:
                yield from tail.last(number)
                if not args.follow:
                    return
                self._progress.end()
                with Changes(
                    [self._log_dir] if self._files is None else {file.parent for file in self._files}
                ) as changes:
                    while until is None or datetime.now(UTC) < until + _LATE:
                        self._out.flush()
                        self._out.check_reader()
                        changes.wait()
                        yield from tail.news()

            try:
                count = self._write_all(form, found())
            except KeyboardInterrupt:
                self._talk_tally()
                raise
        return DONE if count else self._nothing("nothing found")

    def _trace(self, args: Namespace) -> int:
        trace = self._logs.trace(args.correlation_id)
        found = bool(trace.records or trace.spans)
        if args.format == "json":
            answer = {
                "correlation_id": trace.correlation_id,
                "trace_ids": trace.trace_ids,
                "records": trace.records,
                "spans": trace.spans,
                "flags": trace.flags(),
            }
            self._write(json_text(answer) + "\n")
        elif found:
            from jarvis_otel.query.timeline import timeline  # noqa: PLC0415 - each command imports its own

            for line in timeline(trace, self._paint):
                self._write(line + "\n")
        return DONE if found else self._nothing(f"nothing found for {printable(args.correlation_id)}")

    def _errors(self, args: Namespace) -> int:
        if args.collapse and args.by != "message":
            raise QueryError("collapse", f"got it with --by {args.by}, want it with --by message")
        interval = resolve_interval(args.since, args.until, datetime.now(UTC))
        self._talk_interval(interval)
        groups: dict[str, Any]
        rows: list[tuple[str, ...]]
        if args.by == "flag":
            rates = self._logs.flag_rates(interval.since, interval.until)
            groups = {
                flag_id: {
                    variant: {"records": rate.records, "errors": rate.errors, "rate": round(rate.rate, 6)}
                    for variant, rate in variants.items()
                }
                for flag_id, variants in rates.items()
            }
            rows = [("flag", "variant", "records", "errors", "rate")]
            rows += [
                (
                    cut(flag_id, _CELL_MAX),
                    cut(variant, _CELL_MAX),
                    str(rate.records),
                    str(rate.errors),
                    f"{100 * rate.rate:.2f} %",
                )
                for flag_id, variants in rates.items()
                for variant, rate in variants.items()
            ]
        else:
            groups = self._logs.get_error_summary(interval.since, args.by, interval.until)
            if args.collapse:
                groups = _collapsed(groups)
            rows = [(args.by, "errors"), *((cut(key, _CELL_MAX), str(number)) for key, number in groups.items())]
        if args.format == "json":
            self._write(json_text(groups) + "\n")
        elif groups:
            for line in table(rows, texts=2 if args.by == "flag" else 1):
                self._write(line + "\n")
        return DONE if groups else self._nothing(f"no {'flags' if args.by == 'flag' else 'errors'} found")

    def _stats(self, args: Namespace) -> int:
        from jarvis_otel.query import chart, stats  # noqa: PLC0415 - each command imports its own

        width = None if args.bucket is None else stats.parse_width(args.bucket)
        top = _whole(args.top, "top", "; 0 is all")
        if args.format == "csv" and len(args.by or ()) > 1:
            raise QueryError("by", f"got {len(args.by)} of them, want one: a csv file has one table")
        fields = stats.parse_fields(args.by or ["service"])
        criteria = self._criteria(args)
        precision = stats.precision_for(width, many=self._loki is None and self._bytes() > _MANY_BYTES)
        counted = stats.count(self._logs.counts(criteria, fields, precision), fields, width, precision)
        width, bars = stats.bars(counted, criteria.interval, width)
        for group in counted.groups:
            if group.beyond:
                self._tell_late(
                    f"{','.join(group.fields)}: more than {len(group.counts)} values: those that first came after them "
                    "are counted as others"
                )
        if args.format == "json":
            self._write(json_text(stats.as_json(counted, criteria.interval, width, bars, top)) + "\n")
        elif args.format == "csv":
            for row in csv_table(
                *(stats.bar_rows(bars) if args.by is None else stats.group_rows(counted.groups[0], top))
            ):
                self._write(row)
        elif counted.records:
            levels = ", ".join(f"{number} {level}" for level, number in counted.levels().items())
            ends = f"from {local_time(counted.earliest)} to {local_time(counted.latest)}"
            self._write(f"{counted.records} records {ends}: {levels}; a bar is {chart.length_text(width)}\n\n")
            columns, unicode = shutil.get_terminal_size().columns, _knows_blocks()
            for line in chart.chart(bars, width, self._paint, columns=columns, unicode=unicode):
                self._write(line + "\n")
            for group in counted.groups:
                self._write("\n")
                for line in chart.group_table(group, top, counted.records):
                    self._write(line + "\n")
        return DONE if counted.records else self._nothing("nothing found")

    def _bytes(self) -> int:
        """The size of the files that are not archived, as far as they are there."""
        from jarvis_otel.query.days import plain_days  # noqa: PLC0415 - each command imports its own

        files = plain_days(self._log_dir) if self._files is None else self._files
        size = 0
        for path in files:
            with suppress(FileNotFoundError):  # archived since the directory was listed; what is missing is told later
                size += path.stat().st_size
        return size

    def _export(self, args: Namespace) -> int:
        from jarvis_otel.query.export import export, export_format  # noqa: PLC0415 - each command imports its own

        form = export_format(args.format, args.output)
        self._refuse_log_file(args.output)
        count = export(self._logs.scan(self._criteria(args)), args.output, form)
        if not count:
            return self._nothing(f"{printable(str(args.output))} not written: nothing found")
        self._tell_late(f"{count} record{'s' if count > 1 else ''} to {printable(str(args.output))} ({form})")
        return DONE

    def _refuse_log_file(self, target: Path) -> None:
        """An export must not take the place of what is exported."""
        path = target.resolve()
        inside = self._files is None and self._log_dir.resolve() in path.parents and day_name(path.name) is not None
        if inside or any(path == file.resolve() for file in self._files or ()):
            raise QueryError("output", f"{printable(str(target))} is a log file itself, want another name")

    def _sql(self, args: Namespace) -> int:
        from tempfile import TemporaryDirectory  # noqa: PLC0415 - each command imports its own

        from jarvis_otel.query.sql import Database  # noqa: PLC0415

        interval = resolve_interval(args.since, args.until, datetime.now(UTC))
        self._talk_interval(interval)
        place = self._log_dir if self._files is None else self._files
        with (
            TemporaryDirectory(prefix="jarvis-sql-", ignore_cleanup_errors=True) as scratch,
            Database(place, interval, self._logs.tally, Path(scratch)) as database,
        ):
            try:
                rows = database.ask(args.sql)
                count = self._write_rows(args.format, rows.columns, rows)
            except KeyboardInterrupt:
                if database.is_busy:
                    shutil.rmtree(scratch, ignore_errors=True)
                    os._exit(130)  # its threads would outlive what an orderly end takes away from them
                raise
        return DONE if count else self._nothing("no rows")

    def _write_rows(self, form: str, columns: list[str], rows: Iterable[list[Any]]) -> int:
        counted = Passing(rows)
        if form == "csv":
            for line in csv_table(columns, counted):
                self._write(line)
            return counted.number
        if form == "human":
            iterator = iter(counted)
            while part := list(islice(iterator, _TABLE_ROWS)):
                for line in table([columns, *([_sql_cell(value) for value in row] for row in part)]):
                    self._write(line + "\n")
            return counted.number
        before = "[\n"
        for row in counted:
            text = json_text(dict(zip(columns, row, strict=True)))
            self._write(text + "\n" if form == "jsonl" else before + text)
            before = ",\n"
        if form == "json":
            self._write("\n]\n" if counted.number else "[]\n")
        return counted.number

    def _reproduce(self, args: Namespace) -> int:
        from jarvis_flags.source import FileSource  # noqa: PLC0415 - the other commands read no flags
        from jarvis_otel.query.reproduce import dangerous_in, reproduce  # noqa: PLC0415 - each command imports its own

        trace = self._logs.trace(args.correlation_id)
        if not (trace.records or trace.spans):
            return self._nothing(f"nothing found for {printable(args.correlation_id)}")
        dangerous = dangerous_in(FileSource(self._settings.flags).snapshot)
        result = reproduce(trace.flags(), dangerous, include_dangerous=args.include_dangerous)
        if args.format == "json":
            told = {"correlation_id": trace.correlation_id, "pins": result.pins, "held_back": result.held_back}
            self._write(json_text({**told, "refused": dict(result.refused)}) + "\n")
        else:
            self._write("".join(line + "\n" for line in result.lines))
        for flag_id, reason in result.refused:
            self._tell_late(f"{printable(flag_id)}: left out: {reason}")
        for flag_id in result.held_back:
            self._tell_late(f"{flag_id}: dangerous, and was on: only a comment; --include-dangerous exports it")
        return DONE if result.lines else self._nothing("no flags found")

    def _write(self, piece: str | bytes) -> None:
        self._out.write(piece)

    def _write_all(self, form: _Format, found: Iterable[Found]) -> int:
        """Writes what is found and counts it, without holding it."""
        counted = Passing(found)
        for piece in form(counted):
            self._write(piece)
        return counted.number

    def _forms(self) -> dict[str, _Format]:
        return {"human": self._human, "json": _json, "jsonl": _jsonl, "csv": _csv}

    def _human(self, found: Iterable[Found]) -> Iterator[str]:
        paint = self._paint
        for one in found:
            service = printable(str(one.record.get("service", "")))
            correlation_id = one.record.get("correlation_id")
            suffix = "  " + paint(f"id {printable(str(correlation_id))}", "dim") if correlation_id else ""
            start = f"{paint(local_time(one.time), 'dim')}  {paint(f'{service:<10}', 'cyan')}"
            yield f"{start}  {human_record(one.record, paint)}{suffix}\n"

    def _nothing(self, text: str) -> int:
        files = f" ({self._files_read()})" if self._loki is None else ""
        self._tell_late(f"{text} in {self._where}{files}")
        return NO

    def _state(self) -> str:
        """What there is to say while something takes long."""
        megabytes = self._logs.tally.bytes / 1e6
        return f"jarvis logs {self._name}: reading, {self._files_read()} and {megabytes:.0f} MB so far"

    def _files_read(self) -> str:
        files = self._logs.tally.files
        return f"{files} file{'' if files == 1 else 's'}"

    def _tell_late(self, text: str) -> None:
        """Says something once the answer has been written, and a pager left."""
        self._late.append(text)

    def _talk_now(self, text: str) -> None:
        self._talk(printable(text))

    def _talk(self, text: str) -> None:
        self._progress.wipe()
        print(f"jarvis logs {self._name}: {text}", file=sys.stderr)

    def _talk_interval(self, interval: Interval) -> None:
        if words := interval.in_words():
            self._talk(words)

    def _talk_tally(self) -> None:
        for name, number in sorted(self._logs.tally.unreadable.items()):
            what = "line is no record" if number == 1 else "lines are no records"
            self._talk(f"{printable(name)}: {number} {what}, passed over")
        for problem in self._logs.tally.damaged[:_DAMAGE_TOLD]:
            self._talk(printable(problem))
        if (more := len(self._logs.tally.damaged) - _DAMAGE_TOLD) > 0:
            self._talk(f"{more} more damaged parts of archives, passed over")


def _whole(text: str, option: str, more: str = "") -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise QueryError(option, f"got {text!r}, want a whole number{more}")
    return int(text)


def _collapsed(groups: dict[str, int]) -> dict[str, int]:
    from jarvis_otel.query.stats import collapse  # noqa: PLC0415 - few questions want it

    merged: Counter[str] = Counter()
    for message, number in groups.items():
        merged[collapse(message)] += number
    return dict(sorted(merged.items(), key=lambda item: (-item[1], item[0])))


def _sql_cell(value: Any) -> str:
    return cut("" if value is None else value if isinstance(value, str) else json_text(value), _CELL_MAX)


def _knows_blocks() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _jsonl(found: Iterable[Found]) -> Iterator[str | bytes]:
    for one in found:
        yield _json_line(one)
        yield b"\n"


def _json(found: Iterable[Found]) -> Iterator[str | bytes]:
    before = b"[\n"
    for one in found:
        yield before
        yield _json_line(one)
        before = b",\n"
    yield b"[]\n" if before == b"[\n" else b"\n]\n"


def _json_line(one: Found) -> str | bytes:
    """The line as it stands in the file; on a terminal with what that would act on escaped."""
    return json_text(one.record) if sys.stdout.isatty() else one.line


def _csv(found: Iterable[Found]) -> Iterator[str]:
    return csv_rows(one.record for one in found)


_Format = Callable[[Iterable[Found]], Iterator[str | bytes]]
