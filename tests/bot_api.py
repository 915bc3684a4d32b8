"""A strict Bot API of Telegram on a loopback socket: it refuses what Telegram refuses, and keeps all that it was sent."""

import html
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from tests.http_peers import HttpPeer, PeerHandler

TOKEN = "7300000001:AAHjarvisTestToken_abcdefghijklmnop"
TAGS = frozenset(
    ("b", "strong", "i", "em", "u", "ins", "s", "strike", "del", "span", "tg-spoiler", "a", "tg-emoji", "code", "pre")
)
TAG = re.compile(r'<(/?)([a-z-]+)((?: [a-z-]+(?:="[^"<>]*")?)*)>')
ENTITY = re.compile(r"&(?:lt|gt|amp|quot|#\d+|#x[0-9a-fA-F]+);")

Params = dict[str, Any]


class ApiError(Exception):
    """What the API answers instead of a result."""

    def __init__(self, code: int, description: str, **parameters: Any) -> None:
        super().__init__(description)
        self.answer = {"ok": False, "error_code": code, "description": description}
        if parameters:
            self.answer["parameters"] = parameters


def plain_text(markup: str) -> str:
    """The text of a message in HTML, or an error where Telegram would find one."""
    out, stack, at = [], [], 0
    while at < len(markup):
        char = markup[at]
        if char == "<":
            found = TAG.match(markup, at)
            if found is None or found[2] not in TAGS:
                raise ApiError(400, f"Bad Request: can't parse entities: Unsupported start tag at byte offset {at}")
            if found[1]:
                if not stack or stack.pop() != found[2]:
                    raise ApiError(400, f"Bad Request: can't parse entities: Unexpected end tag at byte offset {at}")
            elif stack and stack[-1] in ("code", "pre") and found[2] != "code":
                raise ApiError(400, "Bad Request: can't parse entities: tags in code")
            else:
                stack.append(found[2])
            at = found.end()
        elif char == ">":
            raise ApiError(400, f"Bad Request: can't parse entities: unescaped > at byte offset {at}")
        elif char == "&":
            found = ENTITY.match(markup, at)
            if found is None:
                raise ApiError(400, f"Bad Request: can't parse entities: unescaped & at byte offset {at}")
            out.append(html.unescape(found[0]))
            at = found.end()
        else:
            out.append(char)
            at += 1
    if stack:
        raise ApiError(400, f"Bad Request: can't parse entities: Can't find end tag corresponding to {stack[-1]}")
    return "".join(out)


def check_keyboard(markup: dict[str, Any] | None) -> None:
    rows = (markup or {}).get("inline_keyboard", [])
    for button in itertools.chain.from_iterable(rows):
        data = button.get("callback_data", "")
        if not 1 <= len(data.encode()) <= 64:
            raise ApiError(400, "Bad Request: BUTTON_DATA_INVALID")
        if not button["text"].strip():
            raise ApiError(400, "Bad Request: BUTTON_TEXT_EMPTY")
    if any(not 1 <= len(row) <= 8 for row in rows) or sum(map(len, rows)) > 100:
        raise ApiError(400, "Bad Request: reply markup is too long")


class BotApi(HttpPeer):
    """The Bot API for one bot.

    Attributes:
        calls: Every call but polls, as its method and parameters.
        messages: The messages of the bot, by chat and id, as they stand.
        answers: What each tap was answered with, by its id.
        menus: The commands that a chat's menu shows.
        polled: When an update was first given to the bot (monotonic seconds), by its id.
        revoked: Whether the token is refused from now on.
        down: Whether connections are closed without an answer.
        down_after_updates: Whether that begins as soon as the bot was given an update.
        hanging: Methods that are not answered until they are taken out again.
        turned_away: How many connections were.
        refused: The calls that were answered with an error.
    """

    def __init__(self, port: int = 0) -> None:
        self.calls: list[tuple[str, Params]] = []
        self.refused: list[tuple[str, dict[str, Any]]] = []
        self.messages: dict[tuple[int, int], dict[str, Any]] = {}
        self.answers: dict[str, Params] = {}
        self.menus: dict[int, list[str]] = {}
        self.polled: dict[int, float] = {}
        self.webhook = ""
        self.revoked = self.down = False
        self.turned_away = 0
        self.down_after_updates = False
        self.hanging: set[str] = set()
        self._changed = threading.Condition()
        self._updates: list[dict[str, Any]] = []
        self._ids = itertools.count(1_000)
        self._message_ids = itertools.count(1)
        self._taps: dict[str, bool] = {}
        self._chats: set[int] = set()
        self._floods: dict[str, list[int]] = {}
        self._poll = 0
        self.bot = {
            "id": int(TOKEN.partition(":")[0]),
            "is_bot": True,
            "first_name": "jarvis",
            "username": "jarvis_bot",
        }
        api = self

        class Handler(PeerHandler):
            def do_POST(self):  # noqa: N802 - as http.server calls it
                body = self.rfile.read(int(self.headers["content-length"] or 0))
                if api.down:
                    api.turned_away += 1
                    self.close_connection = True
                    return
                prefix, _, method = self.path.removeprefix("/bot").partition("/")
                try:
                    if prefix != TOKEN or api.revoked:
                        raise ApiError(401, "Unauthorized")
                    answer = {"ok": True, "result": api._call(method, _params(body))}
                except ApiError as error:
                    answer = error.answer
                    api.refused.append((method, answer))
                content = json.dumps(answer).encode()
                status = answer.get("error_code", 200)
                head = (
                    f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
                )
                self.wfile.write(head.encode() + content)

        super().__init__(Handler, port)
        self.url += "/bot"

    def close(self) -> None:
        self.down = True
        with self._changed:
            self._poll += 1
            self._changed.notify_all()
        super().close()

    def revoke(self) -> None:
        """The token is refused from now on."""
        with self._changed:
            self.revoked = True
            self._changed.notify_all()

    # --- what people do ---

    def say(
        self,
        person: int,
        text: str,
        *,
        chat: int | None = None,
        kind: str = "private",
        age: float = 0,
        reply_to: dict[str, Any] | None = None,
        edited: bool = False,
        forwarded: bool = False,
    ) -> int:
        """Somebody writes to the bot; returns the update's id."""
        chat = person if chat is None else chat
        self._chats.add(chat)
        message = {
            "message_id": next(self._message_ids),
            "date": int(time.time() - age),
            "chat": {"id": chat, "type": kind, "first_name": "x"},
            "from": _person(person),
            "text": text,
        }
        if text.startswith("/"):
            command = text.partition(" ")[0]
            message["entities"] = [{"type": "bot_command", "offset": 0, "length": len(command)}]
        if reply_to is not None:
            message["reply_to_message"] = {key: reply_to[key] for key in reply_to if key != "reply_markup"}
        if edited:
            message["edit_date"] = int(time.time())
        if forwarded:
            message["forward_origin"] = {"type": "hidden_user", "date": 1, "sender_user_name": "x"}
        return self._push({"edited_message" if edited else "message": message})

    def tap(
        self, person: int, message: dict[str, Any], label: str, *, kind: str = "private", too_old: bool = False
    ) -> str:
        """Somebody taps the button of a message; returns the tap's id."""
        data = next(
            button["callback_data"]
            for row in message["reply_markup"]["inline_keyboard"]
            for button in row
            if button["text"] == label
        )
        return self.tap_data(person, message, data, kind=kind, too_old=too_old)

    def tap_data(
        self, person: int, message: dict[str, Any], data: str, *, kind: str = "private", too_old: bool = False
    ) -> str:
        tap = f"tap{next(self._ids)}"
        self._taps[tap] = not too_old
        shown = {**message, "chat": {**message["chat"], "type": kind}}
        query = {"id": tap, "from": _person(person), "message": shown, "chat_instance": "1", "data": data}
        self._push({"callback_query": query})
        return tap

    def know(self, *people: int) -> None:
        """These spoke to the bot before."""
        self._chats.update(people)

    def flood(self, method: str, *retry_after: int) -> None:
        """The next calls of a method are refused with 429."""
        self._floods[method] = list(retry_after)

    @property
    def unconfirmed(self) -> int:
        """Updates that the bot has not confirmed."""
        return len(self._updates)

    def texts(self, chat: int) -> list[str]:
        """What the bot's messages in a chat say now, oldest first."""
        return [message["text"] for (there, _), message in sorted(self.messages.items()) if there == chat]

    def last(self, chat: int) -> dict[str, Any]:
        """The bot's newest message in a chat."""
        return max((m for (there, _), m in self.messages.items() if there == chat), key=lambda m: m["message_id"])

    def wait(self, condition: Callable[[], Any], seconds: float = 20) -> Any:
        """What a condition gives as soon as it gives something."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not (found := condition()):
                assert time.monotonic() < deadline, f"waited in vain; calls: {self.calls[-5:]}, refused: {self.refused}"
                self._changed.wait(0.02)
        return found

    def said(self, chat: int, words: str, after: int = 0) -> dict[str, Any]:
        """Waits for a message of the bot that holds some words, with an id above another's."""
        return self.wait(
            lambda: next(
                (m for (there, at), m in self.messages.items() if there == chat and at > after and words in m["text"]),
                None,
            )
        )

    def asked(self, person: int, text: str, words: str) -> dict[str, Any]:
        """Somebody writes to the bot, and waits for an answer that holds some words."""
        after = next(self._message_ids)
        self.say(person, text)
        return self.said(person, words, after)

    # --- what the bot does ---

    def _push(self, update: dict[str, Any]) -> int:
        with self._changed:
            update_id = next(self._ids)
            self._updates.append({"update_id": update_id, **update})
            self._changed.notify_all()
        return update_id

    def _call(self, method: str, params: Params) -> Any:
        if floods := self._floods.get(method):
            raise ApiError(429, "Too Many Requests: retry later", retry_after=floods.pop(0))
        if method == "getUpdates":
            return self._get_updates(params)
        with self._changed:
            self.calls.append((method, params))
            self._changed.notify_all()
            while method in self.hanging and not self.down:
                self._changed.wait(0.05)
            try:
                return getattr(self, f"_{method}", self._unknown)(params)
            finally:
                self._changed.notify_all()

    def _unknown(self, params: Params) -> Any:
        raise ApiError(404, "Not Found")

    def _getMe(self, params: Params) -> Any:  # noqa: N802
        return {**self.bot, "can_join_groups": True, "can_read_all_group_messages": False}

    def _deleteWebhook(self, params: Params) -> Any:  # noqa: N802
        self.webhook = ""
        if params.get("drop_pending_updates"):
            self._updates.clear()
        return True

    def _get_updates(self, params: Params) -> Any:
        with self._changed:
            if self.webhook:
                raise ApiError(409, "Conflict: can't use getUpdates method while webhook is active")
            self._poll += 1
            mine = self._poll
            self._changed.notify_all()
            if (offset := params.get("offset")) is not None:
                self._updates = [update for update in self._updates if update["update_id"] >= offset]
            deadline = time.monotonic() + params.get("timeout", 0)
            while not self._updates and (left := deadline - time.monotonic()) > 0 and not self.revoked:
                self._changed.wait(left)
                if self._poll != mine:
                    raise ApiError(
                        409,
                        "Conflict: terminated by other getUpdates request; "
                        "make sure that only one bot instance is running",
                    )
            if self.revoked:
                raise ApiError(401, "Unauthorized")
            updates = self._updates[: params.get("limit", 100)]
            for update in updates:
                self.polled.setdefault(update["update_id"], time.monotonic())
            self.down = self.down or (bool(updates) and self.down_after_updates)
            return updates

    def _checked(self, params: Params) -> dict[str, Any]:
        if params["chat_id"] not in self._chats:
            raise ApiError(400, "Bad Request: chat not found")
        text = plain_text(params["text"]) if params.get("parse_mode") == "HTML" else params["text"]
        text = text.strip()
        if not text:
            raise ApiError(400, "Bad Request: message text is empty")
        if len(text.encode("utf-16-le")) // 2 > 4096:
            raise ApiError(400, "Bad Request: message is too long")
        check_keyboard(params.get("reply_markup"))
        markup = params.get("reply_markup")
        return {"text": text, **({"reply_markup": markup} if markup else {})}

    def _sendMessage(self, params: Params) -> Any:  # noqa: N802
        checked, chat = self._checked(params), params["chat_id"]
        message = {
            "message_id": next(self._message_ids),
            "date": int(time.time()),
            "chat": {"id": chat, "type": "private", "first_name": "x"},
            "from": self.bot,
            **checked,
        }
        self.messages[chat, message["message_id"]] = message
        # a reply keyboard comes back with no message
        return {key: value for key, value in message.items() if key != "reply_markup" or "inline_keyboard" in value}

    def _editMessageText(self, params: Params) -> Any:  # noqa: N802
        message = self.messages.get((params["chat_id"], params["message_id"]))
        if message is None:
            raise ApiError(400, "Bad Request: message to edit not found")
        checked = self._checked(params)
        if {key: message.get(key) for key in ("text", "reply_markup")} == {"reply_markup": None, **checked}:
            raise ApiError(
                400,
                "Bad Request: message is not modified: specified new message content and reply markup are exactly the "
                "same as a current content and reply markup of the message",
            )
        message.pop("reply_markup", None)
        message.update(checked)
        return message

    def _answerCallbackQuery(self, params: Params) -> Any:  # noqa: N802
        tap = params["callback_query_id"]
        if not self._taps.get(tap):
            raise ApiError(400, "Bad Request: query is too old and response timeout expired or query ID is invalid")
        if len(params.get("text", "")) > 200:
            raise ApiError(400, "Bad Request: MESSAGE_TOO_LONG")
        self._taps[tap] = False
        self.answers[tap] = params
        return True

    def _getMyCommands(self, params: Params) -> Any:  # noqa: N802
        return [{"command": "start", "description": "of the application"}]

    def _setMyCommands(self, params: Params) -> Any:  # noqa: N802
        chat = params["scope"]["chat_id"]
        if chat not in self._chats:
            raise ApiError(400, "Bad Request: chat not found")
        for command in params["commands"]:
            if not re.fullmatch(r"[a-z0-9_]{1,32}", command["command"]) or not 1 <= len(command["description"]) <= 256:
                raise ApiError(400, "Bad Request: BOT_COMMAND_INVALID")
        self.menus[chat] = [command["command"] for command in params["commands"]]
        return True

    def _deleteMyCommands(self, params: Params) -> Any:  # noqa: N802
        self.menus.pop(params["scope"]["chat_id"], None)
        return True


def _person(person: int) -> dict[str, Any]:
    return {"id": person, "is_bot": False, "first_name": "<b>x</b>"}


def _params(body: bytes) -> Params:
    """Parameters as they were meant: all of them as JSON, or a form in which PTB sends what is no text as JSON."""
    if body.startswith(b"{"):
        return json.loads(body)
    params = {}
    for name, (value, *_) in parse_qs(body.decode(), keep_blank_values=True).items():
        if name in ("text", "parse_mode", "callback_query_id", "description"):
            params[name] = value
        else:
            try:
                params[name] = json.loads(value)
            except ValueError:
                params[name] = value
    return params


@contextmanager
def bot_api(port: int = 0) -> Iterator[BotApi]:
    with BotApi(port) as api:
        yield api
