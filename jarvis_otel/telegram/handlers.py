"""The handlers that a python-telegram-bot Application is given: updates to the desk, its answers to messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from telegram import (
    BotCommand,
    BotCommandScopeChat,
    CallbackQuery,
    Chat,
    ForceReply,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    LinkPreviewOptions,
    Message,
    Update,
)
from telegram.constants import ParseMode
from telegram.error import BadRequest, Forbidden, InvalidToken, TelegramError, TimedOut
from telegram.ext import Application, BaseHandler, CallbackQueryHandler, CommandHandler, MessageHandler, filters

from jarvis_flags.source import FileSource
from jarvis_otel.admin.approvals import ApprovalRequest
from jarvis_otel.admin.author import Role
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.admin.store import StoreError
from jarvis_otel.telegram import log_answers, texts
from jarvis_otel.telegram.desk import Ask, Desk, Look, Sent, Tapped
from jarvis_otel.telegram.outbox import Outbox
from jarvis_otel.telegram.people import People
from jarvis_otel.telegram.requests import RequestWatch
from jarvis_otel.telegram.secrecy import hide_token_in_logs, without_token
from jarvis_otel.telegram.texts import Page
from jarvis_otel.telegram.worker import Worker

__all__ = ["FlagHandlers"]

ANSWER_S = 1.0
SLOW_S = 10.0
"""So long Telegram is not asked how old taps are after it said nothing within ANSWER_S: an off may wait behind them."""
OLD_S = 60.0
"""A command that was on its way for longer turns nothing on."""
STOP_S = 0.1
ASKED_MAX = 2
"""So many questions to the logs are answered at a time; the others wait."""
ANSWERING_MAX = 32
"""So many looks and questions wait at most, so that there is always room for what tells of changes."""
SETTLE_S = 0.1
"""Requests that come one after the other are looked at together."""

_log = logging.getLogger("jarvis_otel.telegram")
_App = Application[Any, Any, Any, Any, Any, Any]


class FlagHandlers:
    """The flag commands in an Application, and what runs beside them.

    Args:
        application: Whose bot answers.
        admin: The service that changes flags.
        people: Who may use it.
        desk: Answers what they ask.
        clock: Unix seconds, to tell how old a message is.
    """

    def __init__(
        self,
        application: _App,
        admin: FlagAdmin,
        people: People,
        desk: Desk,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._application = application
        self._people = people
        self._desk = desk
        self._clock = clock
        self._token = application.bot.token
        # what changes flags waits for no look
        self._changes, self._looks = Worker("changes"), Worker("looks")
        self._answering = 0
        self._slow_until = float("-inf")
        self._outbox = Outbox(self._token)
        hide_token_in_logs(self._token)
        self._menus: set[int] = set()
        self._menus_for: frozenset[int] = frozenset()
        self._requests: dict[str, tuple[ApprovalRequest, list[Message]]] = {}
        self._running: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        self._asking = asyncio.Semaphore(ASKED_MAX)
        source = admin.source
        self._audit = source.settings.audit_file if isinstance(source, FileSource) else None
        self.backlog = ""
        """Why taps may turn nothing on that come just now, whose age nobody else knows; empty where they may."""
        self.repeated = ""
        """Why nothing that comes just now may turn anything on: it came before; empty where it did not."""

    def handlers(self, *, alone: bool) -> list[BaseHandler[Any, Any, Any]]:
        """The handlers, all of one group.

        Args:
            alone: Whether the bot has no other commands, so that all that there may be are for us.
        """
        # no edited messages, and no posts of channels
        new = filters.UpdateType.MESSAGE
        ours: list[BaseHandler[Any, Any, Any]] = [
            CommandHandler([*texts.COMMANDS], self._on_command, filters=new),
            CallbackQueryHandler(self._on_tap, pattern=r"^jf:"),
            MessageHandler(new & filters.REPLY & filters.TEXT & ~filters.COMMAND, self._on_reply),
        ]
        if alone:
            # who mistypes a command must not take silence for success
            ours.append(MessageHandler(new & filters.ChatType.PRIVATE & filters.COMMAND, self._on_command))
        return ours

    async def start(self) -> None:
        """Begins what runs beside the handlers: menus, and requests for approval; may be called twice."""
        if self._running is None:
            self._running = asyncio.create_task(self._beside(), name="jarvis-telegram")

    async def stop(self) -> None:
        """Ends it, and waits for a moment until what was said is sent."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        await self._outbox.stop()
        for worker in (self._changes, self._looks):
            worker.stop(STOP_S)

    # --- updates ---

    async def _on_command(self, update: Update, _: Any) -> None:
        message = update.message
        if message is None or message.from_user is None or message.text is None:
            return
        first, *rest = message.text.split()
        name = first.removeprefix("/").partition("@")[0].lower()
        await self.start()
        chat = message.chat.id
        await self._guarded(chat, self._command(chat, self._sent(message), name, " ".join(rest)))

    async def _command(self, chat: int, sent: Sent, name: str, rest: str) -> None:
        answer = await self._changes.run(self._desk.command, sent, name, rest)
        if answer is None:
            return
        if isinstance(answer, Page):
            self._send(chat, answer)
        else:
            self._answer_beside(chat, answer)
        if sent.person not in self._menus:
            # before they spoke to the bot there was no chat to show a menu in
            self._menus_for = frozenset()
            self._look.set()

    async def _on_reply(self, update: Update, _: Any) -> None:
        message = update.message
        asked = message and message.reply_to_message
        if message is None or not asked or message.from_user is None or message.text is None:
            return
        mine = asked.from_user is not None and asked.from_user.id == self._application.bot.id
        question = texts.question_in(asked.text or "") if mine else None
        if question is None:
            return
        sent, text = self._sent(message), " ".join(message.text.split())

        async def reply(nonce: str) -> None:
            page = await self._changes.run(self._desk.reply, sent, nonce, text)
            if page is not None:
                self._send(message.chat.id, page)

        await self.start()
        await self._guarded(message.chat.id, reply(question))

    async def _on_tap(self, update: Update, _: Any) -> None:
        query = update.callback_query
        if query is None or query.data is None:
            return
        message = query.message
        chat = message.chat if message is not None else None
        private = chat is not None and chat.type == Chat.PRIVATE and chat.id == query.from_user.id
        sent = Sent(query.from_user.id, private, self.repeated or self.backlog)
        await self.start()
        await self._guarded(sent.person if private else None, self._tap(query, sent))

    async def _tap(self, query: CallbackQuery, sent: Sent) -> None:
        answer = await self._changes.run(self._desk.tap, sent, query.data)
        if answer is None:
            return
        if isinstance(answer, Tapped):
            tapped = answer
            self._outbox.post(lambda: self._toast(query, tapped))
        else:
            answer = await self._changes.run(answer, await self._too_old(query))
        message = None if answer.new or query.message is None else query.message.message_id
        if (asked := answer.ask or answer.look) is not None:
            self._answer_beside(sent.person, asked, message)
        elif answer.page is not None:
            self._send(sent.person, answer.page, message)

    async def _too_old(self, query: CallbackQuery) -> str:
        """Why a tap may turn nothing on: only Telegram knows how old it is, and refuses to have an old one answered."""
        if time.monotonic() >= self._slow_until:
            try:
                async with asyncio.timeout(ANSWER_S):
                    await query.answer()
                return ""
            except BadRequest:
                return "the button was tapped too long ago; begin again"
            except (TelegramError, TimeoutError) as error:
                if isinstance(error, TimeoutError | TimedOut):
                    self._slow_until = time.monotonic() + SLOW_S
                words = without_token(str(error), self._token) or f"nothing within {ANSWER_S:g} s"
                _log.warning("Telegram does not say how old a tap is: %s", words)
        return "Telegram does not say how old the tap is; send the command instead, or begin again later"

    async def _toast(self, query: CallbackQuery, tapped: Tapped) -> None:
        async def answer() -> None:
            with contextlib.suppress(BadRequest):  # too old by now, or answered
                await query.answer(text=tapped.toast or None, show_alert=tapped.alert)

        await self._outbox.deliver(answer)

    def _sent(self, message: Message) -> Sent:
        assert message.from_user is not None
        age = self._clock() - message.date.timestamp()
        old = self.repeated
        if message.forward_origin is not None:
            old = "a forwarded message is no command"
        elif age > OLD_S:
            old = f"the command was sent {age:.0f} seconds ago; send it again"
        private = message.chat.type == Chat.PRIVATE and message.chat.id == message.from_user.id
        return Sent(message.from_user.id, private, old)

    async def _guarded(self, chat: int | None, handling: Coroutine[Any, Any, None]) -> None:
        """What goes wrong in ours is told here: the application's error handlers are for its own updates."""
        try:
            await handling
        except StoreError as error:
            if chat is not None:
                self._send(chat, texts.note_page(str(error)))
        except Exception as error:
            words = without_token(f"{type(error).__name__}: {error}", self._token)
            _log.exception("an update was not handled: %s", words)
            if chat is not None:
                self._send(chat, texts.note_page(f"Something went wrong ({words}). Look at the flag: /flags"))

    # --- messages ---

    def _send(self, chat: int, page: Page, message: int | None = None) -> None:
        """Sends a page, or makes a message of ours into it."""

        async def send() -> None:
            if message is None:
                await self._outbox.deliver(lambda: self._sending(chat, page))
            else:
                await self._outbox.deliver(lambda: self._editing(chat, message, page))

        self._outbox.post(send)

    async def _sending(self, chat: int, page: Page) -> Message:
        asks = ForceReply(input_field_placeholder="why") if page.asks_reply else None
        message: Message = await self._application.bot.send_message(
            chat,
            page.html,
            parse_mode=ParseMode.HTML,
            reply_markup=asks or _markup(page),
            # a preview would be fetched, and a login link used up by that
            link_preview_options=LinkPreviewOptions(is_disabled=True),
            protect_content=page.protected,
        )
        return message

    async def _editing(self, chat: int, message: int, page: Page) -> None:
        await self._application.bot.edit_message_text(
            page.html,
            chat_id=chat,
            message_id=message,
            parse_mode=ParseMode.HTML,
            reply_markup=_markup(page),
            link_preview_options=LinkPreviewOptions(is_disabled=True),
        )

    def _answer_beside(self, chat: int, asked: Ask | Look, message: int | None = None) -> None:
        """Answers what changes nothing, while changes go on; what the logs say is a new message."""

        async def answer() -> None:
            if self._answering >= ANSWERING_MAX:
                self._send(chat, texts.note_page("Too much is asked at the moment; ask again in a while."))
                return
            self._answering += 1
            try:
                if isinstance(asked, Ask):
                    async with self._asking:
                        self._send(chat, await log_answers.answer(asked))
                else:
                    self._send(chat, await self._looks.run(asked), message)
            finally:
                self._answering -= 1

        self._outbox.post(lambda: self._guarded(chat, answer()))

    # --- beside ---

    async def _beside(self) -> None:
        loop = asyncio.get_running_loop()
        watch = None

        def noticed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._look.set)

        if self._audit is not None:
            watch = RequestWatch(self._audit, noticed)
            watch.start()
        try:
            while True:
                await self._tried(self._keep_menus())
                if watch is not None:
                    await self._tried(self._show_requests(watch))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(OLD_S):  # requests lapse, and people come and go, without a word
                        await self._look.wait()
                await asyncio.sleep(SETTLE_S)
                self._look.clear()
        finally:
            if watch is not None:
                watch.stop()

    async def _tried(self, doing: Coroutine[Any, Any, None]) -> None:
        try:
            await doing
        except InvalidToken:
            pass  # whoever polls says so
        except Exception as error:
            _log.warning("%s: %s; trying on", type(error).__name__, without_token(str(error), self._token))

    async def _show_requests(self, watch: RequestWatch) -> None:
        """Shows each new request to those who may approve it, and says below it what became of it."""
        waiting = {request.id: request for request in await self._looks.run(self._desk.requests)}
        for request_id in self._requests.keys() - waiting.keys():
            request, messages = self._requests.pop(request_id)
            page = await self._looks.run(self._desk.answered, request)
            for message in messages:
                self._send(message.chat.id, page, message.message_id)
        watch.waiting = bool(waiting)
        for request in waiting.values():
            if request.id not in self._requests:
                messages = []
                self._requests[request.id] = (request, messages)
                for person in self._people.with_role(Role.ADMIN):
                    if f"tg:{person}" not in request.people:
                        self._ask_approval(person, request, messages)

    def _ask_approval(self, person: int, request: ApprovalRequest, messages: list[Message]) -> None:
        async def send() -> None:
            message = await self._outbox.deliver(lambda: self._sending(person, texts.request_page(request)))
            if message is not None:
                messages.append(message)

        self._outbox.post(send)

    async def _keep_menus(self) -> None:
        """Shows the commands in the menu of each chat with one who may use them, and in no other."""
        people = frozenset(self._people.with_role(*Role))
        if people == self._menus_for:
            return
        self._menus_for = people
        try:
            await self._set_menus(people)
        except BaseException:
            self._menus_for = frozenset()
            raise

    async def _set_menus(self, people: frozenset[int]) -> None:
        bot = self._application.bot
        others = [command for command in await bot.get_my_commands() if command.command not in texts.COMMANDS]
        ours = [BotCommand(name, words) for name, words in texts.COMMANDS.items()]
        for person in people - self._menus:
            # who has not spoken to the bot yet has no chat with it, nor has who stopped it
            with contextlib.suppress(BadRequest, Forbidden):
                await bot.set_my_commands([*ours, *others][:100], scope=BotCommandScopeChat(person))
                self._menus.add(person)
        for person in self._menus - people:
            with contextlib.suppress(BadRequest, Forbidden):
                await bot.delete_my_commands(scope=BotCommandScopeChat(person))
            self._menus.discard(person)


def _markup(page: Page) -> InlineKeyboardMarkup | None:
    if not page.buttons:
        return None
    rows = [[InlineKeyboardButton(button.label, callback_data=button.data) for button in row] for row in page.buttons]
    return InlineKeyboardMarkup(rows)
