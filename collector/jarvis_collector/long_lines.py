"""Lines that are too long to be held in memory, as short ones that say the same.

The real Collector writes a whole request into a line, which may have tens of megabytes, and a record of ours may hold
a text of that size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

__all__ = ["LineError", "short_lines"]

TEXT_MAX = 512 * 1024
"""Bytes of one text; the rest is cut off visibly."""

RECORD_MAX = 4 * 1024 * 1024
"""Bytes of one record after that, and of a line that is not the Collector's."""

_PIECE = 128 * 1024
_START = b'{"resourceLogs":['
_WAY = b"{[{[{["
"""The brackets that lead to the records: the request, its resources, a resource, its scopes, a scope, its records."""
_RESOURCE, _SCOPES, _SCOPE, _RECORDS = 3, 4, 5, 6
_END = b"]}]}]}"

_CONTENT = re.compile(rb"(?:[^\"\\]+|\\.)*", re.DOTALL)
_WHOLE_ESCAPES = re.compile(rb"(?:[^\"\\]+|\\u[0-9a-fA-F]{4}|\\[^u])*", re.DOTALL)
_TOKEN = re.compile(rb'"(?:[^"\\]+|\\.)*(?:"|\Z|\\\Z)|[{}\[\]]', re.DOTALL)


class LineError(ValueError):
    """A line that holds no records, or not whole ones."""


def short_lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The short lines of a long one.

    A resource and a scope must stand before their records, as the Collector writes them; what it writes behind them,
    the schema URLs, is left out.

    Args:
        parts: The line bit by bit, without its newline.

    Raises:
        LineError: The line is torn, or has a record that is too large.
    """
    shortened = _shortened(parts)
    start = b""
    for part in shortened:
        start += part
        if len(start) >= len(_START):
            break
    if start.startswith(_START):
        yield from _records(start, shortened)
        return
    whole = [start]
    size = len(start)
    for part in shortened:
        whole.append(part)
        size += len(part)
        if size > RECORD_MAX:
            raise LineError(f"a record of more than {RECORD_MAX} bytes")
    yield b"".join(whole)


def _shortened(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same JSON with its longest texts cut off."""
    inside = False
    length = 0
    carried = b""
    for new in parts:
        part = carried + new
        at = _boundary(part)
        part, carried = part[:at], part[at:]
        at = 0
        out: list[bytes] = []
        while at < len(part):
            if not inside:
                quote = part.find(b'"', at)
                end = len(part) if quote < 0 else quote + 1
                out.append(part[at:end])
                inside, length, at = quote >= 0, 0, end
                continue
            match = _CONTENT.match(part, at)
            assert match is not None
            room = TEXT_MAX - length
            length += match.end() - at
            if length <= TEXT_MAX:
                out.append(part[at : match.end()])
            elif room > 0:
                out.append(_whole(part[at : at + room]))
            at = match.end()
            if at < len(part) and part[at : at + 1] == b'"':
                if length > TEXT_MAX:
                    out.append(f"…[truncated {length - TEXT_MAX}]".encode())
                out.append(b'"')
                inside, at = False, at + 1
            elif at < len(part):  # a backslash whose other half is in the next part
                carried, at = part[at:] + carried, len(part)
        yield b"".join(out)
    yield carried


def _whole(text: bytes) -> bytes:
    """A text of JSON without what a cut left of its last character."""
    match = _WHOLE_ESCAPES.match(text)
    assert match is not None
    return text[: _boundary(text[: match.end()])]


def _boundary(text: bytes) -> int:
    """Where the last character of more than one byte begins, if a text ends with such a one; else its length."""
    end = len(text)
    while end and text[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if end and text[end - 1] >= 0xC0 else end


def _records(buffer: bytes, parts: Iterator[bytes]) -> Iterator[bytes]:
    way = 0  # how many brackets of _WAY are open
    depth = 0  # how many others are
    start = at = 0  # where what is being gathered begins, and what was not looked at yet
    resource = scope = b""
    records: list[bytes] = []
    size = 0
    while True:
        for token in _TOKEN.finditer(buffer, at):
            bracket = token[0]
            if len(bracket) > 1 or bracket == b'"':
                if token.end() == len(buffer) and not _ends(bracket):
                    break  # its end has not come yet
                at = token.end()
                continue
            at = token.end()
            if bracket in b"{[":
                if not depth and way < len(_WAY) and bracket[0] == _WAY[way]:
                    way += 1
                    if way in (_RESOURCE, _SCOPE):
                        start = token.start()
                    elif way == _SCOPES:
                        resource = buffer[start:at]
                    elif way == _RECORDS:
                        scope = buffer[start:at]
                else:
                    if not depth and way == _RECORDS:
                        start = token.start()
                    depth += 1
                continue
            if depth:
                depth -= 1
                if not depth and way == _RECORDS:
                    records.append(buffer[start:at])
                    size += at - start
                    start = at
            elif way:
                way -= 1
            else:
                raise LineError("it closes what it did not open")
            if records and (size >= _PIECE or way < _RECORDS):
                yield _START + resource + scope + b",".join(records) + _END
                records, size = [], 0
        part = next(parts, None)
        if part is None:
            break
        if way not in (_RESOURCE, _SCOPE, _RECORDS) or (way == _RECORDS and not depth):
            start = at
        buffer, at, start = buffer[start:] + part, at - start, 0
        if len(buffer) > RECORD_MAX + len(part):
            raise LineError(f"a record of more than {RECORD_MAX} bytes")
    if records:
        yield _START + resource + scope + b",".join(records) + _END
    if way or depth:
        raise LineError("it ends too early")


def _ends(text: bytes) -> bool:
    """Whether a text that begins with a quote also ends with its own."""
    if len(text) < 2 or not text.endswith(b'"'):
        return False
    backslashes = len(text) - 1 - len(text[:-1].rstrip(b"\\"))
    return backslashes % 2 == 0
