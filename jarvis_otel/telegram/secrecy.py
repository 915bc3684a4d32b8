"""Keeps the bot's token and login links out of what other libraries log: httpx logs each URL, which holds the token."""

from __future__ import annotations

import logging
import re
import traceback
from urllib.parse import quote

__all__ = ["hide_token_in_logs", "without_token"]

_LOGGERS = (
    *("httpx", "httpcore", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy"),
    *("telegram", "telegram.Bot", "telegram.ext", "telegram.ext.Application", "telegram.ext.Updater"),
    *("telegram.ext.ExtBot", "telegram.request.BaseRequest", "telegram.request.HTTPXRequest", "asyncio"),
    "jarvis_otel.telegram",
)
_FAMILIES = ("httpx", "httpcore", "telegram")
_NOTE = "[Scrubbed: the bot's token]"
_LINK = re.compile(r"(/login\?l=)[\w-]+")


def without_token(text: str, token: str) -> str:
    """A text without the token, also in part or as a URL has it, and without what a login link holds.

    Args:
        text: Any text.
        token: The token; empty hides nothing.
    """
    # what follows the colon is the secret; before it stands the bot's id
    for form in (token, quote(token, safe=""), token.partition(":")[2]):
        if form:
            text = text.replace(form, _NOTE)
    return _LINK.sub(r"\1[Scrubbed]", text)


class _Filter(logging.Filter):
    """Lets every record through, without the token in its message, arguments, exception or stack."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:
            return True  # its handler says what is wrong with it
        clean = without_token(message, self._token)
        if clean != message:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            clean = without_token(text, self._token)
            if clean != text:
                # who formats the exception anew would show it again
                record.exc_info, record.exc_text = None, clean
        if record.exc_text:
            record.exc_text = without_token(record.exc_text, self._token)
        if record.stack_info:
            record.stack_info = without_token(record.stack_info, self._token)
        return True


def hide_token_in_logs(token: str) -> None:
    """Takes the token out of the records of the libraries that know it, for good.

    Args:
        token: The token.
    """
    hiding = _Filter(token)
    known = {name for name in list(logging.root.manager.loggerDict) if name.partition(".")[0] in _FAMILIES}
    for name in sorted(known.union(_LOGGERS)):
        logging.getLogger(name).addFilter(hiding)
