"""What is told: one alert, and the message that several of a kind become."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from jarvis_otel.terminal import printable

__all__ = ["TELEGRAM_MAX", "Alert", "Message", "highest", "moment_of", "telegram_html", "webhook_body"]

_SEVERITIES = ("info", "warning", "critical")

TELEGRAM_MAX = 4096
"""So many UTF-16 units may a text have; counted before Telegram takes the markup out, which is on the safe side."""

BODY_VERSION = 1

_TITLE_MAX = 200
_ENVIRONMENT_MAX = 60
_LINE_MAX = 400
_TEXT_MAX = 3_500

_MANY = {
    "flag_changed": "flag changes",
    "approval": "approvals wanted",
    "flag_expiring": "flags are about to expire",
    "error_rate": "error rates over the limit, or back below it",
    "collector": "changes of the collector's health",
}
_SIGNS = {"info": "🔔", "warning": "⚠️", "critical": "🚨"}
_NO_LINKS = str.maketrans("<>", "\u2039\u203a")
_CALLS_ALL = re.compile(r"@(?=(?:all|channel|everyone|here)\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that is told.

    Attributes:
        kind: What it is of (see front_settings.ALERTS), or `test`.
        title: It in a few words.
        text: What there is to say beside them, in a sentence.
        flag: The flag that it is about, if there is one.
        severity: info, warning or critical.
        at: When it happened: UTC, ISO 8601.
        details: The same for machines.
        environment: Where, as flags are evaluated there: prod, staging.
    """

    kind: str
    title: str
    text: str
    flag: str = ""
    severity: str = "info"
    at: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The alert as JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Message:
    """Alerts of a kind that are sent as one.

    Attributes:
        kind: Their kind.
        alerts: The latest of them, oldest first; at least one.
        count: How many there are, with those that are told only as a number.
        severity: The highest of all.
        flag: The flag that all are about; empty where there are several, or none.
        held: So many came while the limit let no message through.
    """

    kind: str
    alerts: tuple[Alert, ...]
    count: int
    severity: str
    flag: str
    held: int = 0

    @property
    def title(self) -> str:
        """It in one line."""
        if self.count == 1:
            return _line(self.alerts[0].title, _TITLE_MAX)
        return f"{self.count:,} {_MANY.get(self.kind, self.kind)}"

    @property
    def environment(self) -> str:
        """Where it happened; empty where that is not known."""
        return _line(self.alerts[-1].environment, _ENVIRONMENT_MAX)

    @property
    def left_out(self) -> int:
        """So many are told only as a number."""
        return self.count - len(self.alerts)

    @property
    def lines(self) -> tuple[str, ...]:
        """What is told of each alert beside the title, a line each, the latest last."""
        texts = (alert.text if self.count == 1 else f"{alert.title} · {alert.text}" for alert in self.alerts)
        return tuple(_line(text, _LINE_MAX) for text in texts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of the message itself."""
        return (f"{self.held:,} of them were held back: there is a limit to messages",) if self.held else ()

    @property
    def id(self) -> str:
        """The same where a message is sent again because nobody knows whether it arrived."""
        said = repr((self.kind, self.count, self.alerts[0].at, self.alerts[-1].at, self.lines))
        return hashlib.sha256(said.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def webhook_body(message: Message) -> dict[str, Any]:
    """The JSON that a webhook gets; docs/alerts.md says what each key means.

    Args:
        message: What is sent.
    """
    return {
        "version": BODY_VERSION,
        "id": message.id,
        "kind": message.kind,
        "title": message.title,
        "text": _for_chat(_joined(message, lambda line: line, _TEXT_MAX)),
        "flag": message.flag or None,
        "severity": message.severity,
        "environment": message.environment or None,
        "at": message.alerts[-1].at,
        "count": message.count,
        "held_back": message.held,
        "details": [alert.to_dict() for alert in message.alerts],
    }


def telegram_html(message: Message) -> str:
    """The message as Telegram's HTML, whole lines of it, within TELEGRAM_MAX.

    Args:
        message: What is sent.
    """
    return _joined(message, lambda line: html.escape(line, quote=False), TELEGRAM_MAX, bold=True)


def moment_of(unix: float) -> str:
    """A time as alerts write it: UTC, ISO 8601, milliseconds.

    Args:
        unix: Seconds since 1970.
    """
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _joined(message: Message, escape: Callable[[str], str], size_max: int, *, bold: bool = False) -> str:
    """Title and lines within a size; of the lines the latest stay, for they say how things stand."""
    where = f"[{message.environment}] " if message.environment else ""
    title = escape(f"{_SIGNS[message.severity]} {where}{message.title}")
    head = f"<b>{title}</b>" if bold else title
    tail = [escape(note) for note in message.notes]
    room = size_max - _size("\n".join((head, *tail))) - _size("\n… and 1,000,000,000 before them")
    shown: list[str] = []
    for line in reversed(message.lines):
        escaped = escape(line)
        room -= _size(escaped) + 1
        if room < 0:
            break
        shown.insert(0, escaped)
    before = message.count - len(shown)
    more = [escape(f"… and {before:,} before them")] if before else []
    return "\n".join((head, *more, *shown, *tail))


def _size(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _line(text: str, size_max: int) -> str:
    shown = printable(text)
    return shown if len(shown) <= size_max else f"{shown[: size_max - 1]}…"


def _for_chat(text: str) -> str:
    """The text so that no chat behind a webhook takes a part of it for a link or a call to everyone."""
    return _CALLS_ALL.sub("@\u200b", text.translate(_NO_LINKS))


def highest(severities: Sequence[str]) -> str:
    """The highest of some severities."""
    return max(severities, key=_SEVERITIES.index)
