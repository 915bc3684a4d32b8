"""What `jarvis logs …` does: the answer on stdout, the talk about it on stderr."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jarvis_otel.query.errors import QueryError
from jarvis_otel.query.log_query import Criteria, LogQuery
from jarvis_otel.query.render import csv_rows, human_record, json_text, local_time
from jarvis_otel.query.reproduce import reproduce
from jarvis_otel.query.scan import Found
from jarvis_otel.query.timeline import timeline
from jarvis_otel.query.times import Interval, resolve_interval
from jarvis_otel.settings import Settings
from jarvis_otel.terminal import Paint, printable, table, wants_color

__all__ = ["FOUND", "NOTHING", "WRONG", "LogCommands"]

FOUND, NOTHING, WRONG = 0, 1, 2
"""Exit codes."""

_OPTIONS = {"user_id": "user", "text": "search"}
_CURE = "name one by --dir or JARVIS_LOG_DIR, or run the collector"
_DAMAGE_TOLD = 3


class LogCommands:
    """The commands over one log directory, or over named files.

    Args:
        name: The command, as messages name it: `query`, `trace`, `errors` or `reproduce`.
        log_dir: The log directory.
        settings: Where the flag file is, and the key of the users' pseudonyms.
        files: Files to read instead of the directory's.
    """

    def __init__(self, name: str, log_dir: Path, settings: Settings, files: Sequence[Path] | None = None) -> None:
        self._name = name
        self._settings = settings
        self._where = printable(str(log_dir) if files is None else ", ".join(file.name for file in files))
        self._files = files
        self._logs = LogQuery(log_dir) if files is None else LogQuery(files=files)

    def run(self, args: Namespace) -> int:
        """Carries the command out.

        Args:
            args: The parsed options.

        Returns:
            The exit code: found, nothing found, or wrong usage or bad input (then one line on stderr says what).
        """
        commands = {"query": self._query, "trace": self._trace, "errors": self._errors, "reproduce": self._reproduce}
        try:
            code = commands[self._name](args)
        except BrokenPipeError:
            raise  # whoever read us has seen enough: `main` knows what to do
        except QueryError as error:
            self._talk(f"--{_OPTIONS.get(error.argument, error.argument.replace('_', '-'))}: {error.problem}")
            return WRONG
        except FileNotFoundError as error:
            cure = f" directory; {_CURE}" if self._files is None else " file"
            self._talk(f"{printable(str(error.filename))}: no such{cure}")
            return WRONG
        except OSError as error:
            self._talk(f"{printable(str(error.filename))}: cannot be read: {error.strerror}")
            return WRONG
        for name, number in sorted(self._logs.tally.unreadable.items()):
            what = "line is no record" if number == 1 else "lines are no records"
            self._talk(f"{printable(name)}: {number} {what}, passed over")
        for problem in self._logs.tally.damaged[:_DAMAGE_TOLD]:
            self._talk(printable(problem))
        if (more := len(self._logs.tally.damaged) - _DAMAGE_TOLD) > 0:
            self._talk(f"{more} more damaged parts of archives, passed over")
        return code

    def _query(self, args: Namespace) -> int:
        limit = _limit(args.limit)
        criteria = Criteria.of(
            level=args.level,
            service=args.service,
            correlation_id=args.correlation_id,
            trace_id=args.trace_id,
            user_id=self._names_of(args.user),
            flag=args.flag,
            since=args.since,
            until=args.until,
            text=args.search,
            where=args.where,
        )
        self._talk_interval(criteria.interval)
        if limit:
            matches = self._logs.newest(criteria, limit)
            count = _write_all(_FORMATS[args.format], matches.found)
            if matches.total > count:
                self._talk(f"the newest {count} of {matches.total}; --limit 0 gives all")
        else:
            count = _write_all(_FORMATS[args.format], self._logs.scan(criteria))
        return FOUND if count else self._nothing("nothing found")

    def _names_of(self, user_id: str | None) -> tuple[str, ...] | None:
        """The names by which records know a user: the id, and its pseudonym where there is a key for one."""
        if user_id is None or not self._settings.hmac_key:
            return user_id if user_id is None else (user_id,)
        from jarvis_otel.redaction import pseudonym  # noqa: PLC0415 - takes long; most questions need none

        return (user_id, pseudonym(self._settings.hmac_key, user_id))

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
            _write(json_text(answer) + "\n")
        elif found:
            for line in timeline(trace, Paint(color=wants_color(sys.stdout))):
                _write(line + "\n")
        return FOUND if found else self._nothing(f"nothing found for {printable(args.correlation_id)}")

    def _errors(self, args: Namespace) -> int:
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
                (flag_id, variant, str(rate.records), str(rate.errors), f"{100 * rate.rate:.2f} %")
                for flag_id, variants in rates.items()
                for variant, rate in variants.items()
            ]
        else:
            groups = self._logs.get_error_summary(interval.since, args.by, interval.until)
            rows = [(args.by, "errors"), *((key, str(number)) for key, number in groups.items())]
        if args.format == "json":
            _write(json_text(groups) + "\n")
        elif groups:
            for line in table(rows, texts=2 if args.by == "flag" else 1):
                _write(line + "\n")
        return FOUND if groups else self._nothing(f"no {'flags' if args.by == 'flag' else 'errors'} found")

    def _reproduce(self, args: Namespace) -> int:
        trace = self._logs.trace(args.correlation_id)
        if not (trace.records or trace.spans):
            return self._nothing(f"nothing found for {printable(args.correlation_id)}")
        result = reproduce(trace.flags(), self._dangerous(), include_dangerous=args.include_dangerous)
        if args.format == "json":
            told = {"correlation_id": trace.correlation_id, "pins": result.pins, "held_back": result.held_back}
            _write(json_text({**told, "refused": dict(result.refused)}) + "\n")
        else:
            _write("".join(line + "\n" for line in result.lines))
        for flag_id, reason in result.refused:
            self._talk(f"{printable(flag_id)}: left out: {reason}")
        for flag_id in result.held_back:
            self._talk(f"{flag_id}: dangerous, and was on: only a comment; --include-dangerous exports it")
        return FOUND if result.lines else self._nothing("no flags found")

    def _dangerous(self) -> Callable[[str], bool]:
        """Whether a flag is dangerous by the flag file; one that is unknown or bad there counts as dangerous."""
        from jarvis_flags.source import FileSource  # noqa: PLC0415 - the other commands read no flags

        snapshot = FileSource(self._settings.flags).snapshot

        def dangerous(flag_id: str) -> bool:
            definition = snapshot.definitions.get(flag_id)
            return definition is None or flag_id in snapshot.bad or definition.dangerous

        return dangerous

    def _nothing(self, text: str) -> int:
        self._talk(f"{text} in {self._where} ({self._logs.tally.files} files)")
        return NOTHING

    def _talk(self, text: str) -> None:
        print(f"jarvis logs {self._name}: {text}", file=sys.stderr)

    def _talk_interval(self, interval: Interval) -> None:
        ends = (("from", interval.since), ("to", interval.until))
        named = [f"{word} {moment.astimezone().isoformat(' ')}" for word, moment in ends if moment]
        if named:
            self._talk(" ".join(named))


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise QueryError("limit", f"got {text!r}, want a whole number; 0 is all")
    return int(text)


def _human(found: Iterable[Found]) -> Iterator[str]:
    paint = Paint(color=wants_color(sys.stdout))
    for one in found:
        service = printable(str(one.record.get("service", "")))
        correlation_id = one.record.get("correlation_id")
        suffix = "  " + paint(f"id {printable(str(correlation_id))}", "dim") if correlation_id else ""
        start = f"{paint(local_time(one.time), 'dim')}  {paint(f'{service:<10}', 'cyan')}"
        yield f"{start}  {human_record(one.record, paint)}{suffix}\n"


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
_FORMATS: dict[str, _Format] = {"human": _human, "json": _json, "jsonl": _jsonl, "csv": _csv}


def _write_all(form: _Format, found: Iterable[Found]) -> int:
    """Writes what is found and counts it, without holding it."""
    count = 0

    def counted() -> Iterator[Found]:
        nonlocal count
        for count, one in enumerate(found, 1):  # noqa: B007 - the count is the answer
            yield one

    for piece in form(counted()):
        _write(piece)
    return count


def _write(piece: str | bytes) -> None:
    """UTF-8 whatever the terminal says: the data has one encoding."""
    sys.stdout.buffer.write(piece.encode("utf-8", "backslashreplace") if isinstance(piece, str) else piece)
