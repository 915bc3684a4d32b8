"""`jarvis telegram`: a bot by itself. It confirms an update to Telegram once it is handled, so that no off is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from telegram import Update
from telegram.error import Conflict, InvalidToken, RetryAfter, TelegramError
from telegram.ext import Application, ApplicationBuilder

from jarvis_flags.files import make_directory
from jarvis_otel.admin.author import Role
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.fronts import open_front
from jarvis_otel.settings import Settings
from jarvis_otel.telegram import add_flag_handlers
from jarvis_otel.telegram.handlers import OLD_S, FlagHandlers
from jarvis_otel.telegram.outbox import seconds_to_wait
from jarvis_otel.telegram.people import People
from jarvis_otel.telegram.secrecy import without_token

__all__ = ["run_bot"]

POLL_S = 25
BATCH = 100
"""So many updates does Telegram give at most; less is all that waits."""
WAIT_MAX_S = 8.0
"""An off must not wait long for a network that is back."""
# together less than the two seconds in which a signal ends it
HANDLE_S = 0.6
CONFIRM_S = FLUSH_S = 0.2

_WANTED = ("message", "callback_query")
_REFUSED = (
    "Telegram refuses the token: it was revoked, or is mistyped; put the one that @BotFather gives into "
    "JARVIS_TELEGRAM_TOKEN_FILE or JARVIS_TELEGRAM_TOKEN"
)
_CONFLICT = "another process polls this bot (409): waiting for it to end; one token, one `jarvis telegram`"
_T = TypeVar("_T")


def run_bot(settings: Settings, say: Callable[[str], None]) -> int:
    """Runs the bot until the process is told to stop.

    Args:
        settings: The settings, with a token and people.
        say: Tells whoever started it, in a line.

    Returns:
        0, or 2 where the token is not accepted.
    """
    for noisy in ("httpx", "httpcore", "telegram"):
        # at INFO, httpx logs each URL, which holds the token
        logging.getLogger(noisy).setLevel(logging.WARNING)
    ours = logging.getLogger("jarvis_otel.telegram")
    ours.addHandler(_Say(say))
    ours.propagate = False
    with ExitStack() as ends:
        admin = open_front(settings, "jarvis-telegram", ends, flush=FLUSH_S).admin
        return asyncio.run(_Bot(settings, admin, say).run())


class _Say(logging.Handler):
    """Tells whoever started the bot what its parts log."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(self.format(record))


class _Bot:
    def __init__(self, settings: Settings, admin: FlagAdmin, say: Callable[[str], None]) -> None:
        self._token = settings.telegram.token
        self._tell = say
        self._bookmark = Bookmark(settings.flags.state_dir / "telegram" / "update")
        self._stopping = asyncio.Event()
        self._offset: int | None = None
        self._confirmed = True
        self._heard = float("-inf")
        application: Application[Any, Any, Any, Any, Any, Any] = (
            ApplicationBuilder()
            .token(self._token)
            .base_url(settings.telegram.api_url)
            .updater(None)
            .job_queue(None)
            .build()
        )
        self._application = application
        self._ours: FlagHandlers = add_flag_handlers(application, admin=admin, settings=settings, alone=True)
        people = len(People(settings).with_role(*Role))
        self._people = f"{people} people" if people != 1 else "one person"

    async def run(self) -> int:
        """Polls until it is told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        working = asyncio.create_task(self._work())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        # what was begun is brought to its end, but nobody waits for a lock that hangs
        await asyncio.wait((working,), timeout=HANDLE_S)
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        await self._ours.stop()
        with contextlib.suppress(Exception):  # the process ends in any case
            async with asyncio.timeout(CONFIRM_S):
                await self._confirm()
                await self._application.bot.shutdown()
        return working.result() if working.done() and not working.cancelled() else 0

    def _say(self, text: str) -> None:
        self._tell(without_token(text, self._token))

    async def _work(self) -> int:
        try:
            await self._try(self._application.initialize)
            bot = self._application.bot
            await self._try(lambda: bot.delete_webhook(drop_pending_updates=False))
            if not self._stopping.is_set():
                self._say(f"@{bot.username} answers {self._people}; Ctrl-C ends it")
                await self._ours.start()
            while not self._stopping.is_set():
                await self._handle(await self._try(self._updates) or ())
        except InvalidToken:
            self._say(_REFUSED)
            return 2
        return 0

    async def _updates(self) -> tuple[Update, ...]:
        # after a silence, first what waits already, whose taps may be of any age
        backlog = time.monotonic() - self._heard > OLD_S
        updates: tuple[Update, ...] = await self._application.bot.get_updates(
            offset=self._offset, limit=BATCH, timeout=0 if backlog else POLL_S, allowed_updates=_WANTED
        )
        self._confirmed = True
        if len(updates) < BATCH:
            self._heard = time.monotonic()
        self._ours.backlog = "it was sent while the bot did not listen; send it again" if backlog else ""
        return updates

    async def _handle(self, updates: tuple[Update, ...]) -> None:
        ids = [update.update_id for update in updates]
        # a second poller, until one of them is refused, gets the same updates
        begun = self._bookmark.read()
        repeats = ids[: ids.index(begun) + 1] if begun in ids else []
        for update in updates:
            if self._stopping.is_set():
                return
            again = update.update_id in repeats
            self._ours.repeated = "it was begun before the bot was restarted; look at the flag first" if again else ""
            self._bookmark.begin(update.update_id)
            await self._application.process_update(update)
            self._offset, self._confirmed = update.update_id + 1, False

    async def _confirm(self) -> None:
        """Tells Telegram what was handled last, which the next poll would do."""
        if not self._confirmed:
            await self._application.bot.get_updates(offset=self._offset, timeout=0, limit=1, allowed_updates=_WANTED)

    async def _try(self, call: Callable[[], Awaitable[_T]]) -> _T | None:
        """Makes a call of the Bot API until it succeeds, and says once why it does not.

        Raises:
            InvalidToken: The token is not accepted.
        """
        told = ""
        wait = 0.5
        while not self._stopping.is_set():
            try:
                result = await self._or_stop(call())
            except InvalidToken:
                raise
            except RetryAfter as error:
                wait = seconds_to_wait(error)
                why = f"Telegram wants less (429): waiting {wait:g} seconds"
            except Conflict:
                why, wait = _CONFLICT, min(wait * 2, WAIT_MAX_S)
            except TelegramError as error:
                why, wait = f"Telegram is not reached: {error}; trying on", min(wait * 2, WAIT_MAX_S)
            except Exception as error:
                # such as an answer that the library cannot read: the bot is there for what comes after it
                why, wait = f"Telegram is not understood: {type(error).__name__}: {error}; trying on", WAIT_MAX_S
            else:
                if told and not self._stopping.is_set():
                    self._say("Telegram answers again")
                return result
            if why != told:
                self._say(why)
                told = why
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()
        return None

    async def _or_stop(self, call: Awaitable[_T]) -> _T | None:
        """What a call returns, or None as soon as it is time to stop."""
        calling = asyncio.ensure_future(call)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((calling, stopping), return_when=asyncio.FIRST_COMPLETED)
            return calling.result() if calling.done() else None
        finally:
            stopping.cancel()
            if not calling.done():
                calling.cancel()
                await asyncio.wait((calling,), timeout=CONFIRM_S)


class Bookmark:
    """The newest update that was begun, in a file: one that comes again was perhaps carried out before.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int:
        """The newest update that was begun, by any process; 0 where none is known."""
        try:
            return int(self._path.read_bytes())
        except (OSError, ValueError):
            return 0

    def begin(self, update: int) -> None:
        """Notes an update before it is handled; where that cannot be kept, it is handled all the same."""
        with contextlib.suppress(OSError):
            make_directory(self._path.parent)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                # as long as the one before, over it: a kill leaves one of them, a full disk does not matter. It
                # outlives the process, which is what it is for, and no more
                os.pwrite(descriptor, b"%020d\n" % update, 0)
            finally:
                os.close(descriptor)
