"""Where alerts go: webhooks and Telegram chats. What is secret of them stands in no name, no message and no record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple, Protocol
from urllib.parse import quote, urlsplit

import orjson

from jarvis_collector.http_client import HttpClient, Response
from jarvis_otel.alerts.alert import Message, telegram_html, webhook_body
from jarvis_otel.front_settings import AlertSettings, TelegramSettings
from jarvis_otel.terminal import printable

__all__ = ["TIMEOUT_S", "Fate", "Result", "Sink", "TelegramSink", "WebhookSink", "sinks_of", "webhook_name"]

TIMEOUT_S = 10.0
"""So long may one request take."""

_RETRY_AFTER_MAX = 3600.0
_PROBLEM_MAX = 200
_AGENT = "jarvis-otel"

_OF_THE_MESSAGE = ("can't parse entities", "message is too long", "message text is empty")
"""What Telegram says of a message that it will never take; its other 400 are about the chat."""

_LATER = frozenset({401, 403, 404, 405, 408, 410, 425, 429})
"""Answers that say nothing against the message: it may go through once somebody has set something right."""


class Fate(StrEnum):
    """What became of a message."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """It may be sent again."""
    REFUSED = "refused"
    """It would be refused again."""


class Result(NamedTuple):
    """What became of a message.

    Attributes:
        fate: That, in a word.
        problem: Why it was not delivered.
        retry_after: Seconds that the receiver asks to wait.
    """

    fate: Fate
    problem: str = ""
    retry_after: float | None = None


class Sink(Protocol):
    """Takes messages. `id` tells it from others and `name` is shown; neither holds a secret."""

    id: str
    name: str

    def send(self, message: Message) -> Result:
        """Sends a message, within TIMEOUT_S."""
        ...

    def stop(self) -> None:
        """Breaks off what is under way, from any thread; nothing else is sent."""
        ...

    def close(self) -> None:
        """Closes the connection."""
        ...


class WebhookSink:
    """POSTs messages as JSON to a URL.

    Args:
        url: http or https; whoever knows it may write there, so that it is shown as `https://host/…` only.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.id = f"webhook-{hashlib.sha256(url.encode('utf-8', 'backslashreplace')).hexdigest()[:16]}"
        self.name = webhook_name(url)
        self._target = _ascii(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}")
        self._secrets = (url, self._target, parts.path, parts.query, parts.username or "", parts.password or "")
        self._client = HttpClient(url, TIMEOUT_S)

    def send(self, message: Message) -> Result:
        """Sends a message, within TIMEOUT_S."""
        body = orjson.dumps(webhook_body(message), default=str)
        headers = {"Content-Type": "application/json", "User-Agent": _AGENT}
        response = self._client.request("POST", self._target, body, headers)
        if 200 <= response.status < 300:
            return Result(Fate.DELIVERED)
        said = response.content.decode("utf-8", "replace") if response.status else ""
        return _undelivered(response, said, response.retry_after, self._secrets)

    def stop(self) -> None:
        """Breaks off what is under way; nothing else is sent."""
        self._client.stop()

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


class TelegramSink:
    """Sends messages to a chat of the Bot API (https://core.telegram.org/bots/api#sendmessage).

    Args:
        settings: The token, and where the API is.
        chat: The chat's numeric id.
    """

    def __init__(self, settings: TelegramSettings, chat: int) -> None:
        self.id = f"telegram-{chat}"
        self.name = f"Telegram chat {chat}"
        self._chat = chat
        self._target = f"{urlsplit(settings.api_url).path}{settings.token}/sendMessage"
        self._secrets = (settings.token, quote(settings.token, safe=""), settings.token.partition(":")[2])
        self._client = HttpClient(settings.api_url, TIMEOUT_S)

    def send(self, message: Message) -> Result:
        """Sends a message, within TIMEOUT_S."""
        body = {
            "chat_id": self._chat,
            "text": telegram_html(message),
            "parse_mode": "HTML",
            "link_preview_options": {"is_disabled": True},
            "disable_notification": message.severity == "info",
        }
        headers = {"Content-Type": "application/json", "User-Agent": _AGENT}
        response = self._client.request("POST", self._target, orjson.dumps(body), headers)
        ok, said, retry_after = _telegram_answer(response)
        if ok and 200 <= response.status < 300:
            return Result(Fate.DELIVERED)
        result = _undelivered(response, said, retry_after or response.retry_after, self._secrets)
        if response.status == 400 and not any(words in said for words in _OF_THE_MESSAGE):
            # nobody pressed Start there yet, or the chat has another id by now: whoever sets it right misses nothing
            return result._replace(fate=Fate.FAILED)
        return result

    def stop(self) -> None:
        """Breaks off what is under way; nothing else is sent."""
        self._client.stop()

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


def sinks_of(alerts: AlertSettings, telegram: TelegramSettings) -> tuple[list[Sink], list[str]]:
    """Where alerts go as the settings say, and a line for each place that cannot be used.

    Args:
        alerts: Whom to tell.
        telegram: The bot that tells chats.
    """
    sinks: list[Sink] = [WebhookSink(url) for url in dict.fromkeys(alerts.webhooks)]
    problems = []
    if alerts.telegram_chats and not telegram.token:
        problems.append("alert_telegram_chats: nobody is told there without a bot; set telegram_token_file")
    else:
        sinks += [TelegramSink(telegram, chat) for chat in dict.fromkeys(alerts.telegram_chats)]
    return sinks, problems


def webhook_name(url: str) -> str:
    """A webhook as it is shown: of its URL the path, the query and a password may be secrets.

    Args:
        url: Its URL.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}/…"


def _telegram_answer(response: Response) -> tuple[bool, str, float | None]:
    """Whether the Bot API took it, what it says, and how long it asks to wait."""
    try:
        answer = orjson.loads(response.content)
        parameters = answer.get("parameters") or {}
        wait = parameters.get("retry_after")
        seconds = float(wait) if isinstance(wait, int | float) else None
        return answer.get("ok") is True, str(answer.get("description", "")), seconds
    except (ValueError, AttributeError):
        return False, "", None


def _undelivered(response: Response, said: str, retry_after: float | None, secrets: tuple[str, ...]) -> Result:
    status = response.status
    if 300 <= status < 400:
        said = "redirects are not followed"
    words = said.strip() or response.reason
    problem = f"answers {status}: {words}" if status else words
    if 200 <= status < 500 and not 300 <= status < 400 and status not in _LATER:
        return Result(Fate.REFUSED, _without(problem, secrets))
    bounded = None if retry_after is None else min(max(0.0, retry_after), _RETRY_AFTER_MAX)
    return Result(Fate.FAILED, _without(problem, secrets), bounded)


def _without(text: str, secrets: tuple[str, ...]) -> str:
    """What the other side said, in one line, without what it must not repeat."""
    for secret in _worth_hiding(secrets):
        text = text.replace(secret, "…")
    return printable(" ".join(text.split()))[:_PROBLEM_MAX]


def _worth_hiding(secrets: tuple[str, ...]) -> Iterator[str]:
    # a path may be told in parts; what is short is no secret, and would tear words apart
    parts = {part for secret in secrets for part in (secret, *secret.replace("?", "/").split("/"))}
    return (part for part in sorted(parts, key=len, reverse=True) if len(part) >= 6)


def _ascii(target: str) -> str:
    """A path as a request line can have it."""
    return quote(target, safe="/?:@!$&'()*+,;=~%-._")
