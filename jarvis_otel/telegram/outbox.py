"""Sends to Telegram beside everything else: a full chat or a slow network delays no change of a flag."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from telegram.error import BadRequest, InvalidToken, NetworkError, RetryAfter, TelegramError

from jarvis_otel.telegram.secrecy import without_token

__all__ = ["Outbox", "seconds_to_wait"]

WAITING_MAX = 256
TRIES = 4
RETRY_MAX_S = 60.0
STOP_S = 0.4

_log = logging.getLogger("jarvis_otel.telegram")
_T = TypeVar("_T")


class Outbox:
    """What is on its way to Telegram; more than 256 things at a time are dropped and counted.

    Args:
        token: Never shown, whatever an error says.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._tasks: set[asyncio.Task[None]] = set()
        self.dropped = 0

    def post(self, sending: Callable[[], Awaitable[None]]) -> None:
        """Does something in the background.

        Args:
            sending: That, which logs its own errors.
        """
        if len(self._tasks) >= WAITING_MAX:
            self.dropped += 1
            _log.warning("Telegram is slow: %d answers were not sent so far; what they told of was done", self.dropped)
            return

        async def post() -> None:
            try:
                await sending()
            except Exception as error:
                _log.error("an answer was not sent: %s", without_token(str(error), self._token))

        task = asyncio.create_task(post())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def deliver(self, call: Callable[[], Awaitable[_T]]) -> _T | None:
        """What a call of the Bot API returns; tried again where that may help, None where it does not.

        Args:
            call: Makes the call.
        """
        for attempt in range(1, TRIES + 1):
            try:
                return await call()
            except RetryAfter as error:
                wait = min(seconds_to_wait(error), RETRY_MAX_S)
                why = str(error)
            except BadRequest as error:
                if "message is not modified" not in str(error).lower():
                    _log.warning("Telegram refused an answer: %s", without_token(str(error), self._token))
                return None
            except InvalidToken:
                return None  # whoever polls says so
            except NetworkError as error:
                wait, why = 0.5 * attempt, str(error)
            except TelegramError as error:
                # such as a person who stopped the bot
                _log.warning("Telegram refused an answer: %s", without_token(str(error), self._token))
                return None
            if attempt < TRIES:
                await asyncio.sleep(wait)
        _log.warning("an answer was not sent: %s", without_token(why, self._token))
        return None

    async def stop(self) -> None:
        """Waits for what is on its way, for a moment, and gives up what is not sent by then."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=STOP_S)
            for task in late:
                task.cancel()


def seconds_to_wait(error: RetryAfter) -> float:
    """So long does Telegram want not to be asked."""
    after = error.retry_after
    return float(after) if isinstance(after, int | float) else after.total_seconds()
