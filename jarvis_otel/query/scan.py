"""Lines that match, out of blocks of lines: most are passed over by their bytes alone, unparsed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import inf
from typing import Any, NamedTuple

import orjson

from jarvis_otel.query.filters import ESCAPE, Filter, Needle
from jarvis_otel.query.times import canonical_time

__all__ = ["Found", "content_of", "holds", "json_of", "parsed", "scan"]

_HOPS_MAX = 4096
_TOO_LARGE = re.compile(rb"[eE]\+?[0-9]{3}|[0-9]{200}")
_STRING_OR_NUMBER = re.compile(rb'"(?:[^"\\]|\\.)*+"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?')
_LARGEST = b"1.7976931348623157e308"
_OTHER_SIGNALS = frozenset(("resourceLogs", "resourceSpans", "resourceMetrics"))


class Found(NamedTuple):
    """A record that matched.

    Attributes:
        time: Its timestamp in the form whose text order is time order.
        record: The parsed line.
        line: The line as it stands in the file, without its newline; of a request, as our collector writes it.
    """

    time: str
    record: dict[str, Any]
    line: bytes


def scan(blocks: Iterable[bytes], filters: Sequence[Filter], on_unreadable: Callable[[int], object]) -> Iterator[Found]:
    """The records that pass all filters, in their order.

    Args:
        blocks: Whole lines, each a record.
        filters: What a record must be; the filter that excludes most comes first.
        on_unreadable: Told of each line that had to be parsed and is no record.
    """
    needles = [one.needle for one in filters if one.needle]
    checks = [one.possible for one in filters if one.possible]
    checks += [partial(holds, needle) for needle in needles[1:]]
    possible, matches = _conjunction(checks), _conjunction([one.matches for one in filters])
    dense = not needles
    for block in blocks:
        hits = size = 0
        for line in block.split(b"\n") if dense else _lines_with(block, needles[0]):
            if not line or not possible(line):
                continue
            found = parsed(line, on_unreadable)
            if found is not None and matches(found.record):
                hits, size = hits + 1, len(line)
                yield found
        # where most lines match, looking for them costs more than taking them all
        dense = not needles or 2 * hits * size > len(block)


def parsed(line: bytes, on_unreadable: Callable[[int], object]) -> Found | None:
    """The record of a line; None where it is none, which is told unless it is of another signal."""
    record = None
    try:
        record = content_of(line)
        return Found(canonical_time(record["timestamp"]), record, line)
    except (ValueError, TypeError, KeyError, OverflowError):
        if not (isinstance(record, dict) and _OTHER_SIGNALS.intersection(record)):
            on_unreadable(1)
        return None


def content_of(line: bytes) -> Any:
    """What a line says; a number beyond the range of a float is the largest one, as jq has it.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return orjson.loads(line)
    except ValueError:
        if not _TOO_LARGE.search(line):
            raise
    return orjson.loads(_STRING_OR_NUMBER.sub(_within_range, line))


def json_of(value: Any, *, pretty: bool = False) -> bytes:
    """The JSON of a value that a line says, however deep it is; indented where it is to be pretty."""
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 if pretty else 0)
    except TypeError:  # it reads deeper than it writes
        pass
    try:
        form = {"indent": 2} if pretty else {"separators": (",", ":")}
        text = json.dumps(value, ensure_ascii=False, **form)
    except RecursionError:
        return b'"(nested too deep)"'
    return text.encode("utf-8", "backslashreplace")


def _within_range(found: re.Match[bytes]) -> bytes:
    text = found[0]
    if text.startswith(b'"') or abs(float(text)) != inf:
        return text
    return b"-" + _LARGEST if text.startswith(b"-") else _LARGEST


def holds(needle: Needle, line: bytes) -> bool:
    """Whether one of a needle's alternatives stands in a line, or in a block of lines."""
    text = line.lower() if needle.lowered else line
    return any(_find(text, alternative) >= 0 for alternative in needle.alternatives)


def _conjunction(tests: Sequence[Callable[[Any], bool]]) -> Callable[[Any], bool]:
    """All of the tests as one; it runs for every line, so it costs no generator."""
    if len(tests) == 1:
        return tests[0]

    def every(item: Any) -> bool:
        for test in tests:  # noqa: SIM110
            if not test(item):
                return False
        return True

    return every


def _lines_with(block: bytes, needle: Needle) -> Iterator[bytes]:
    """The lines of a block in which one of the alternatives stands, found without looking at the other lines."""
    text = block.lower() if needle.lowered else block
    nexts = {alternative: _find(text, alternative) for alternative in needle.alternatives}
    while nexts := {alternative: at for alternative, at in nexts.items() if at >= 0}:
        hit = min(nexts.values())
        end = block.find(b"\n", hit)
        yield block[block.rfind(b"\n", 0, hit) + 1 : end]
        nexts = {
            alternative: at if at > end else _find(text, alternative, end + 1) for alternative, at in nexts.items()
        }


def _find(text: bytes, wanted: bytes, start: int = 0) -> int:
    if wanted != ESCAPE:
        return text.find(wanted, start)
    # from one backslash to the next, which are few: one byte is found many times as fast as two are
    at = text.find(b"\\", start)
    for _ in range(_HOPS_MAX):
        if at < 0 or text[at + 1 : at + 2] == b"u":
            return at
        at = text.find(b"\\", at + 2)
    return text.find(wanted, at) if at >= 0 else at
