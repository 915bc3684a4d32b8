"""The places in the code that log; each is worked out once."""

from __future__ import annotations

import logging
from types import CodeType, FrameType

from jarvis_otel.encode import Source

__all__ = ["Site", "site_of", "site_of_record"]

_SITES_MAX = 4_096


class Site:
    """A place in the code that logs, and what its last record began with.

    Attributes:
        source: File, line and function.
        last: Message, level and beginning of the last record.
    """

    __slots__ = ("code", "last", "source")

    def __init__(self, source: Source, code: CodeType | None = None) -> None:
        self.code = code
        self.source = source
        self.last: tuple[str | None, int, str] = (None, 0, "")


# By code object and instruction; a site holds its code object, so that an id means one of them.
_sites: dict[tuple[int, int], Site] = {}
_standard_sites: dict[tuple[str, int], Site] = {}


def site_of(frame: FrameType) -> Site:
    """The place where a call stands; remembered, as working out a line number costs more than all the rest."""
    code = frame.f_code
    key = (id(code), frame.f_lasti)
    site = _sites.get(key)
    if site is None or site.code is not code:
        if len(_sites) >= _SITES_MAX:
            _sites.clear()
        site = _sites[key] = Site((code.co_filename, frame.f_lineno or 0, code.co_qualname), code)
    return site


def site_of_record(record: logging.LogRecord) -> Site:
    """The place where a record of standard logging was made."""
    key = (record.pathname, record.lineno)
    site = _standard_sites.get(key)
    if site is None:
        if len(_standard_sites) >= _SITES_MAX:
            _standard_sites.clear()
        site = _standard_sites[key] = Site((record.pathname, record.lineno, record.funcName or ""))
    return site
