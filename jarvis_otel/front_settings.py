"""Settings of the front ends that change flags and of what tells people about them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from jarvis_collector.config import is_loopback
from jarvis_flags.settings import SettingsSource
from jarvis_otel.admin.author import Role

__all__ = ["ALERTS", "FRONT_KEYS", "AlertSettings", "TelegramSettings", "WebSettings", "is_http_url", "read_fronts"]

FRONT_KEYS = frozenset(
    {
        "roles",
        "reason_required",
        "telegram_token",
        "telegram_token_file",
        "telegram_admins",
        "telegram_api_url",
        "web_host",
        "web_port",
        "web_url",
        "web_hosts",
        "web_tokens",
        "web_cors_origins",
        "web_insecure_no_auth",
        "alerts",
        "alert_webhooks",
        "alert_telegram_chats",
        "alert_expiring_days",
        "alert_error_rate",
        "alert_interval",
    }
)

ALERTS = ("flag_changed", "approval", "flag_expiring", "error_rate", "collector")
"""What may be told of by itself."""

_TELEGRAM_API = "https://api.telegram.org/bot"
_TOKEN = re.compile(r"\d{1,20}:[A-Za-z0-9_-]{1,100}")
_ID = re.compile(r"-?[0-9]{1,19}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class TelegramSettings:
    """The Telegram bot.

    Attributes:
        token: Its token; empty is without a bot.
        admins: Numeric ids of those who may change flags; `roles` may name more as `tg:<id>`.
        api_url: Where the Bot API is; the token follows at once.
    """

    token: str = field(default="", repr=False)
    admins: tuple[int, ...] = ()
    api_url: str = _TELEGRAM_API


@dataclass(frozen=True)
class WebSettings:
    """The web page.

    Attributes:
        host: Address to listen at.
        port: TCP port; 0 takes a free one.
        url: How people reach it, without a slash at the end; empty follows from host and port.
        hosts: Names by which it may be asked beside those of loopback.
        tokens: SHA-256 digests (hex) of bearer tokens for its API, each with who shows it and what they may.
        cors_origins: Origins of other pages that may ask its API.
        insecure_no_auth: Whether an address that is not loopback may do without tokens.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    url: str = ""
    hosts: frozenset[str] = frozenset()
    tokens: Mapping[str, tuple[str, Role]] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    cors_origins: frozenset[str] = frozenset()
    insecure_no_auth: bool = False


@dataclass(frozen=True)
class AlertSettings:
    """What is told by itself, and whom.

    Attributes:
        kinds: What is told of (see ALERTS); nothing by default.
        webhooks: URLs that get a POST for each message.
        telegram_chats: Numeric ids of chats that get each message.
        expiring_days: So many days before a flag expires it is told of.
        error_rate: The share of failed operations, 0 to 1, over which a variant is told of.
        interval: Seconds between two looks, and the least between two alerts of the same thing.
    """

    kinds: frozenset[str] = frozenset()
    webhooks: tuple[str, ...] = field(default=(), repr=False)
    telegram_chats: tuple[int, ...] = ()
    expiring_days: float = 7.0
    error_rate: float = 0.1
    interval: float = 60.0


def read_fronts(source: SettingsSource) -> dict[str, Any]:
    """Reads these settings: `roles`, `reason_always`, `telegram`, `web` and `alerts` of Settings.

    Args:
        source: Where they are read from; problems are added to it.
    """
    return {
        "roles": _roles(source),
        "reason_always": source.choice("reason_required", ("dangerous", "always"), "dangerous") == "always",
        "telegram": TelegramSettings(
            token=_telegram_token(source),
            admins=tuple(one for one in _ids(source, "telegram_admins") if _is_person(source, one)),
            api_url=_telegram_api(source),
        ),
        "web": WebSettings(
            host=source.text("web_host") or WebSettings.host,
            port=int(source.number("web_port", WebSettings.port, 0, 65535)),
            url=(source.text("web_url") or "").rstrip("/"),
            hosts=frozenset(source.names("web_hosts")),
            tokens=_web_tokens(source),
            cors_origins=frozenset(source.names("web_cors_origins")),
            insecure_no_auth=source.flag("web_insecure_no_auth"),
        ),
        "alerts": AlertSettings(
            kinds=_alert_kinds(source),
            webhooks=_webhooks(source),
            telegram_chats=_ids(source, "alert_telegram_chats"),
            expiring_days=source.number("alert_expiring_days", AlertSettings.expiring_days, 0, 365),
            error_rate=source.number("alert_error_rate", AlertSettings.error_rate, 0, 1),
            interval=source.number("alert_interval", AlertSettings.interval, 1, 86_400),
        ),
    }


def _roles(source: SettingsSource) -> Mapping[str, Role]:
    roles = {}
    for who, word in source.mapping("roles").items():
        if str(who).startswith("tg:") and not str(who)[3:].isdecimal():
            source.problems.append(
                f"{source.file}: roles.{who}: want the numeric id, which @userinfobot tells; user names change hands"
            )
        elif word in tuple(Role):
            roles[str(who)] = Role(word)
        else:
            source.problems.append(f"{source.file}: roles.{who}: got {word!r}, want one of {', '.join(Role)}")
    return MappingProxyType(roles)


def _telegram_token(source: SettingsSource) -> str:
    token, place = source.text("telegram_token") or "", "telegram_token"
    named = source.text("telegram_token_file")
    if not token and named:
        path, place = source.path("telegram_token_file", named), f"telegram_token_file: {named}"
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not text"
            source.problems.append(f"{place}: cannot be read: {why}")
            return ""
    if token and _TOKEN.fullmatch(token) is None:
        # what it was is a secret
        source.problems.append(f"{place}: is no bot token; want digits, a colon, and the rest as BotFather gave it")
        return ""
    return token


def _ids(source: SettingsSource, key: str) -> tuple[int, ...]:
    ids = []
    for text in source.names(key):
        if _ID.fullmatch(text):
            ids.append(int(text))
        else:
            source.problems.append(f"{key}: got {text!r}, want numeric ids with commas between them")
    return tuple(ids)


def _is_person(source: SettingsSource, number: int) -> bool:
    if number <= 0:
        source.problems.append(f"telegram_admins: {number} is a group; want ids of people, which @userinfobot tells")
    return number > 0


def _telegram_api(source: SettingsSource) -> str:
    url = source.text("telegram_api_url") or _TELEGRAM_API
    if not is_http_url(url) or not urlsplit(url).path.endswith("/bot") or not url.endswith("/bot"):
        # the token follows at once: behind anything else it would become a part of the host, or of a query
        source.problems.append("telegram_api_url: want a URL of http or https that ends with /bot")
    elif urlsplit(url).scheme != "https" and not is_loopback(urlsplit(url).hostname or ""):
        source.problems.append("telegram_api_url: http would send the token in clear: want https")
    else:
        return url
    return _TELEGRAM_API


def _web_tokens(source: SettingsSource) -> Mapping[str, tuple[str, Role]]:
    tokens = {}
    for who, said in source.mapping("web_tokens").items():
        digest, _, role = str(said).partition(" ")
        if _DIGEST.fullmatch(digest) and (role or Role.VIEWER) in tuple(Role):
            tokens[digest.removeprefix("sha256:")] = (str(who), Role(role or Role.VIEWER))
        else:
            source.problems.append(
                f"{source.file}: web_tokens.{who}: want `sha256:<64 hex digits> <{'|'.join(Role)}>`, "
                "which `jarvis web --new-token` makes"
            )
    return MappingProxyType(tokens)


def is_http_url(text: str) -> bool:
    """Whether a text is the URL of something that speaks HTTP.

    Args:
        text: Any text.
    """
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return usable and text.isprintable() and " " not in text


def _webhooks(source: SettingsSource) -> tuple[str, ...]:
    urls = source.names("alert_webhooks")
    for number, url in enumerate(urls, 1):
        if not is_http_url(url):
            # what it is may be a secret
            source.problems.append(f"alert_webhooks: number {number} is no URL of http or https")
    return tuple(filter(is_http_url, urls))


def _alert_kinds(source: SettingsSource) -> frozenset[str]:
    kinds = source.names("alerts")
    for kind in kinds:
        if kind not in ALERTS:
            source.problems.append(f"alerts: got {kind!r}, want some of {', '.join(ALERTS)}")
    return frozenset(kinds) & frozenset(ALERTS)
