"""Regular expressions in the texts of records, by RE2: its time grows with the text, whatever the pattern.

https://github.com/google/re2/wiki/Syntax
"""

from __future__ import annotations

from typing import Any

from jarvis_otel.query.errors import AnswerError
from jarvis_otel.query.filters import Filter, searched_texts

__all__ = ["regex_filter"]

_PATTERN_MAX = 1000
_MEMORY = 16 << 20


def regex_filter(pattern: str) -> Filter:
    """Records of which the pattern matches a part of the message, the error message, the stack trace or the context.

    Args:
        pattern: In RE2's syntax, which is Python's without look-around and back references; `(?i)` ignores case.

    Raises:
        ValueError: It is no such pattern.
        AnswerError: RE2 is not installed. Python's own `re` has patterns that never end, and nothing can stop it.
    """
    try:
        import re2  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise AnswerError("RE2 is missing: pip install 'jarvis-otel[query]'; --search TEXT needs nothing") from None
    if len(pattern) > _PATTERN_MAX:
        raise ValueError(f"got a pattern of {len(pattern)} characters, want at most {_PATTERN_MAX}")
    options = re2.Options()
    options.max_mem = _MEMORY
    options.log_errors = False
    try:
        search: Any = re2.compile(pattern, options).search
    except (re2.error, ValueError) as error:
        told = error.args[0] if error.args else ""
        text = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(error)
        raise ValueError(f"got {pattern!r}, which RE2 does not know: {text}") from None

    def matches(record: Any) -> bool:
        # lone surrogates stand in no UTF-8
        return any(search(text.encode("utf-8", "replace").decode()) is not None for text in searched_texts(record))

    return Filter(matches)
