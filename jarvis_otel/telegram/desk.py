"""What people ask of the bot, put to FlagAdmin, and its outcomes as messages; without any of Telegram's own types."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from jarvis_collector.config import reachable_url
from jarvis_flags.hints import did_you_mean
from jarvis_otel.admin.approvals import ApprovalRequest
from jarvis_otel.admin.author import Author, Role
from jarvis_otel.admin.outcome import Outcome, OutcomeKind
from jarvis_otel.admin.quota import Quota
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.admin.stale import STALE_DAYS, last_changes, stale_reasons
from jarvis_otel.admin.states import FlagState, flag_ids, flag_states, unknown_flag_words
from jarvis_otel.telegram import texts
from jarvis_otel.telegram.pending import Change, NotPendingError, Pending
from jarvis_otel.telegram.people import People, who
from jarvis_otel.telegram.texts import Page

__all__ = ["Ask", "Deed", "Desk", "Look", "Sent", "Tapped"]

ON_A_MINUTE = 20
"""So many changes that can turn something on may a person make in a minute."""
STRANGER_A_MINUTE, STRANGERS_A_MINUTE = 3, 30
"""So many entries in the audit may one stranger, and may all of them together, cause in a minute."""

_TOAST_MAX = 200
_SINCE = re.compile(r"\d{1,6}[smhdw]")
_ANYONE = 0


@dataclass(frozen=True, slots=True)
class Sent:
    """Where something that a person sent came from.

    Attributes:
        person: Their numeric id.
        private: Whether it is a chat between them and the bot.
        old: Why it may turn nothing on, such as its age; empty where it may.
    """

    person: int
    private: bool
    old: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to the logs, which `jarvis` answers in a process of its own.

    Attributes:
        title: What the answer is called.
        commands: The arguments of `jarvis`, for each command that is run.
    """

    title: str
    commands: tuple[tuple[str, ...], ...]


Look = Callable[[], Page]
"""What changes nothing and may take long, as to read a long audit: another thread does it, so that no off waits."""


@dataclass(frozen=True, slots=True)
class Tapped:
    """The answer to the tap of a button.

    Attributes:
        toast: What is shown for a moment.
        alert: Whether it stays until it is closed.
        page: A message.
        new: Whether that is a new one, not what becomes of the message with the button.
        ask: A question to the logs, whose answer is a new message.
        look: Gives a message, in place of `page`.
    """

    toast: str = ""
    alert: bool = False
    page: Page | None = None
    new: bool = False
    ask: Ask | None = None
    look: Look | None = None


Deed = Callable[[str], Tapped]
"""What a tap wants done that can turn something on; it is told why it may not, where the tap is old."""


class Desk:
    """Answers what people ask. It blocks, so one thread of its own calls it, for one update after the other.

    What only looks is returned, for another thread to do.

    Args:
        admin: The service that changes flags.
        people: Who may use it.
        pending: What waits for confirmation.
        questions: What waits for a reason.
    """

    def __init__(
        self,
        admin: FlagAdmin,
        people: People,
        *,
        pending: Pending | None = None,
        questions: Pending | None = None,
    ) -> None:
        self._admin = admin
        self._people = people
        self._pending = pending or Pending()
        self._questions = questions or Pending()
        self._turned_on = Quota(ON_A_MINUTE)
        self._strangers = Quota(STRANGER_A_MINUTE)
        self._all_strangers = Quota(STRANGERS_A_MINUTE)

    # --- what comes in ---

    def command(self, sent: Sent, name: str, rest: str) -> Page | Ask | Look | None:
        """Answers a command.

        Args:
            sent: Where it came from.
            name: The command without its slash.
            rest: What follows it.

        Returns:
            The answer; None is silence.
        """
        role = self._admit(sent, f"/{name}")
        if role is None:
            return None
        match name:
            case "flags":
                return lambda: self._list("all", 0)
            case "flag_panic":
                return self._shown(self._admin.panic(self._author(sent, role, _reason(rest))), None)
            case "errors" | "trace" if not rest.isprintable():
                return texts.note_page(f"/{name}: got characters that cannot be shown, want a line of plain text")
            case "errors":
                return self._errors(rest)
            case "trace":
                return self._trace(rest)
            case "web":
                return lambda: self._web(sent, role)
            case "flag":
                return lambda: self._flag(rest.partition(" ")[0], role)
            case "flag_history":
                return lambda: self._history(rest.partition(" ")[0], 0, role)
            case "flag_enable" | "flag_disable" | "flag_toggle" | "flag_rollout" | "flag_reset":
                return self._change_command(sent, role, name.removeprefix("flag_"), rest)
            case "start" | "help" | "flag_help":
                return texts.help_page()
        hint = did_you_mean(f"/{name}", [f"/{command}" for command in texts.COMMANDS], "; /flag_help lists them")
        return texts.note_page(f"no command /{name}{hint}")

    def tap(self, sent: Sent, data: str) -> Tapped | Deed | None:
        """Answers the tap of a button: at once, or where it can turn something on as a deed.

        Args:
            sent: Where it came from.
            data: What the button carries: a letter for what it is (l list, f flag, h history, i impact, 0 off, 1 on,
                r revert, c confirm, x cancel, a approve, d deny), and what that needs.

        Returns:
            None is silence.
        """
        _, kind, *parts = (*data.split(":"), "")
        role = self._admit(sent, f"button {kind}"[:60])
        if role is None:
            return None
        try:
            return self._tap(sent, role, kind, parts[:-1])
        except NotPendingError as error:
            return Tapped(str(error), alert=True, page=texts.note_page(str(error)) if error.over else None)
        except (ValueError, IndexError):
            return Tapped("This button is of an older version. Send the command again.", alert=True)

    def reply(self, sent: Sent, question: str, text: str) -> Page | None:
        """Takes a reply to a message of ours that asked for the reason of a change.

        Args:
            sent: Where it came from.
            question: The nonce in that message.
            text: The reply.

        Returns:
            The answer; None is silence.
        """
        role = self._admit(sent, "a reply")
        if role is None:
            return None
        try:
            change = self._questions.take(question, sent.person)
        except NotPendingError as error:
            return texts.note_page(str(error))
        return self._change(sent, role, replace(change, reason=_reason(text)))

    def requests(self) -> list[ApprovalRequest]:
        """The changes that wait for further people."""
        return self._admin.requests()

    def answered(self, request: ApprovalRequest) -> Page:
        """What became of a request that waits no more."""
        answers = [entry for entry in self._admin.history(request.entry.flag) if entry.request == request.id]
        final = [entry for entry in answers if entry.outcome in ("applied", "refused")]
        return texts.answered_page(request, final[-1] if final else None)

    # --- how ---

    def _admit(self, sent: Sent, what: str) -> Role | None:
        """What somebody may do; None for strangers and elsewhere than in a private chat, which the audit notes."""
        role = self._people.role(sent.person)
        if role is not None and sent.private:
            return role
        # each counts, but a stranger must not be able to fill the disk
        missed = self._strangers.take(sent.person)
        others = self._all_strangers.take(_ANYONE) if missed is not None else None
        if missed is not None and others is not None:
            why = f"{what}: {'not in a private chat' if role is not None else 'not one of those who may use the bot'}"
            if missed or others:
                why += f"; {missed or others} more like it were not noted"
            self._admin.decline("telegram", "*", Author(who(sent.person), "telegram", role=role or Role.VIEWER), why)
        return None

    def _author(self, sent: Sent, role: Role, reason: str) -> Author:
        old = sent.old
        if not old and not self._turned_on.has(sent.person):
            old = f"that would be more than {ON_A_MINUTE} such changes a minute; wait a little"
        return Author(who(sent.person), "telegram", reason, role, old)

    def _change_command(self, sent: Sent, role: Role, action: str, rest: str) -> Page:
        flag_id, _, more = rest.partition(" ")
        if not flag_id:
            return texts.note_page(f"Which flag? /flag_{action} {texts.COMMANDS[f'flag_{action}'].partition(':')[0]}")
        if action == "disable":
            outcome = self._admin.disable(flag_id, self._author(sent, role, _reason(more)))
            return self._shown(outcome, flag_id)
        change = Change(sent.person, action, flag_id, _reason(more))
        if action == "rollout":
            number, _, more = more.strip().partition(" ")
            try:
                percent = float(number.removesuffix("%"))
            except ValueError:
                return texts.note_page(f"/flag_rollout: got {number!r}, want a percentage from 0 to 100")
            change = replace(change, percent=percent, reason=_reason(more))
        return self._change(sent, role, change)

    def _change(self, sent: Sent, role: Role, change: Change, *, confirmed: bool = False) -> Page:
        """Makes a change, or asks for what it lacks."""
        author = self._author(sent, role, change.reason)
        outcome = self._made(change, author, confirmed=confirmed)
        on = outcome.applied and not all(_is_off(entry.new) for entry in outcome.entries)
        if on or outcome.kind is OutcomeKind.NEEDS_APPROVAL:
            self._turned_on.take(sent.person)
        if outcome.kind not in (OutcomeKind.NEEDS_REASON, OutcomeKind.NEEDS_CONFIRMATION):
            return self._shown(outcome, change.flag)
        state = self._admin.state(change.flag)
        # what a toggle wants is settled here: by its confirmation the flag may be on already
        action = "enable" if change.action == "toggle" else change.action
        seen = change.expected or (None if state is None else state.version)
        change = replace(change, action=action, expected=seen)
        if outcome.kind is OutcomeKind.NEEDS_REASON:
            return texts.question_page(outcome, self._questions.ask(change), self._questions.lasts)
        nonce = self._pending.ask(change)
        return texts.confirm_page(outcome, change, state, nonce, self._pending.lasts)

    def _made(self, change: Change, author: Author, *, confirmed: bool) -> Outcome:
        flag_id, expected = change.flag, change.expected
        match change.action:
            case "rollout":
                return self._admin.rollout(flag_id, change.percent, author, confirmed=confirmed, expected=expected)
            case "reset":
                return self._admin.reset(flag_id, author, confirmed=confirmed, expected=expected)
            case "revert":
                return self._admin.revert(flag_id, change.revision, author, confirmed=confirmed, expected=expected)
            case "toggle":
                return self._admin.toggle(flag_id, author, confirmed=confirmed, expected=expected)
        return self._admin.enable(flag_id, author, confirmed=confirmed, expected=expected)

    def _shown(self, outcome: Outcome, flag_id: str | None) -> Page:
        exists = flag_id is not None and self._admin.state(flag_id) is not None
        return texts.outcome_page(outcome, flag_id if exists else None)

    def _tap(self, sent: Sent, role: Role, kind: str, parts: list[str]) -> Tapped | Deed:
        match kind:
            case "l":
                chosen, page = parts[0], int(parts[1])
                return Tapped(look=lambda: self._list(chosen, page))
            case "c":
                return self._deed(sent, role, self._pending.take(parts[0], sent.person), confirmed=True)
            case "x":
                change = self._pending.take(parts[0], sent.person)
                self._admin.decline(change.action, change.flag, self._author(sent, role, change.reason))
                return Tapped(
                    "Nothing was changed.", page=texts.note_page("Cancelled: nothing was changed.", change.flag)
                )
            case "a":
                return lambda old: self._approved(replace(sent, old=sent.old or old), role, parts[0])
            case "d":
                outcome = self._admin.deny(parts[0], self._author(sent, role, ""))
                return _said(outcome, self._shown(outcome, None))
        # what is left is about a flag, whose key may hold colons
        before = {"h": 1, "1": 1, "r": 2}.get(kind, 0)
        key = ":".join(parts[before:])
        flag_id = self._flag_of(key)
        if flag_id is None:
            return Tapped("There is no such flag any more.", alert=True)
        if kind == "0":
            outcome = self._admin.disable(flag_id, self._author(sent, role, "by a button"))
            return _said(outcome, self._shown(outcome, flag_id))
        if kind == "i":
            return Tapped("Asking the logs …", ask=self._impact(flag_id))
        if kind == "1":
            return self._deed(sent, role, Change(sent.person, "enable", flag_id, expected=parts[0]))
        if kind == "r":
            change = Change(sent.person, "revert", flag_id, revision=int(parts[0]), expected=parts[1])
            return self._deed(sent, role, change)
        if kind == "f":
            return Tapped(look=lambda: self._flag(flag_id, role))
        if kind == "h":
            page = int(parts[0])
            return Tapped(look=lambda: self._history(flag_id, page, role))
        raise ValueError(kind)

    def _deed(self, sent: Sent, role: Role, change: Change, *, confirmed: bool = False) -> Deed:
        def deed(old: str) -> Tapped:
            page = self._change(replace(sent, old=sent.old or old), role, change, confirmed=confirmed)
            asks = page.asks_reply or any(button.data.startswith("jf:c:") for row in page.buttons for button in row)
            return Tapped(page=page, new=asks)

        return deed

    def _approved(self, sent: Sent, role: Role, request_id: str) -> Tapped:
        outcome = self._admin.approve(request_id, self._author(sent, role, ""))
        if outcome.applied:
            self._turned_on.take(sent.person)
        # a refusal leaves the request and its buttons as they are
        over = outcome.applied or outcome.kind in (OutcomeKind.NOT_FOUND, OutcomeKind.CONFLICT)
        return Tapped(page=self._shown(outcome, None), new=not over)

    def _list(self, chosen: str, page: int) -> Page:
        snapshot = self._admin.source.snapshot
        if not flag_ids(snapshot) and snapshot.problems:
            return texts.note_page(str(snapshot.problems[0]))
        changed = last_changes(self._admin.history())
        stale = {flag_id for flag_id in snapshot.definitions if self._stale(flag_id, changed)}
        return texts.flags_page(flag_states(snapshot), stale, chosen if chosen in texts.FILTERS else "all", page)

    def _flag(self, flag_id: str, role: Role) -> Page:
        state = self._state(flag_id)
        if isinstance(state, Page):
            return state
        entries = self._admin.history(flag_id)
        last = next((entry for entry in reversed(entries) if entry.outcome in ("applied", "written")), None)
        stale = self._stale(flag_id, last_changes(entries)) if state.definition is not None else []
        return texts.flag_page(state, last, stale, may_change=role is not Role.VIEWER)

    def _history(self, flag_id: str, page: int, role: Role) -> Page:
        state = self._state(flag_id)
        if isinstance(state, Page):
            return state
        return texts.history_page(state, self._admin.history(flag_id), page, may_change=role is not Role.VIEWER)

    def _stale(self, flag_id: str, changed: dict[str, datetime]) -> list[str]:
        now = datetime.now(UTC)
        return stale_reasons(self._admin.source.snapshot, flag_id, changed, now, now - timedelta(days=STALE_DAYS))

    def _state(self, flag_id: str) -> FlagState | Page:
        if not flag_id:
            return texts.note_page("Which flag? Give its id, as /flags lists them.")
        state = self._admin.state(flag_id)
        if state is None:
            return texts.note_page(unknown_flag_words(self._admin.source.snapshot, flag_id, "; /flags lists them"))
        return state

    def _flag_of(self, key: str) -> str | None:
        return next(
            (flag_id for flag_id in flag_ids(self._admin.source.snapshot) if texts.flag_key(flag_id) == key), None
        )

    def _errors(self, rest: str) -> Ask:
        since = rest.strip() or "1h"
        since = f"-{since}" if _SINCE.fullmatch(since) else since
        where = ("--dir", str(self._people.settings.log_dir), f"--since={since}", "--no-pager")
        newest = ("logs", "query", *where, "--level", "ERROR", "--limit", "5")
        return Ask(f"Errors since {since}", (("logs", "errors", *where), newest))

    def _impact(self, flag_id: str) -> Ask:
        where = ("--dir", str(self._people.settings.log_dir), "--since=-24h")
        return Ask(f"{flag_id}, the last 24 hours", (("flags", "impact", *where, "--", flag_id),))

    def _trace(self, rest: str) -> Ask | Page:
        wanted = rest.strip()
        if not wanted:
            return texts.note_page("Which trace? /trace and a correlation id or a trace id")
        where = ("--dir", str(self._people.settings.log_dir), "--no-pager")
        return Ask(f"Trace {wanted}", (("logs", "trace", *where, "--", wanted),))

    def _web(self, sent: Sent, role: Role) -> Page:
        from jarvis_otel.web.links import LINK_LASTS_S, make_link  # noqa: PLC0415 - few ask for one

        settings = self._people.settings
        here = reachable_url(settings.web.host, settings.web.port)
        if not settings.web.url and not _listens(here):
            return texts.note_page(
                f"The web page is not set up: nothing listens at {urlsplit(here).netloc}. Start it with: jarvis web; "
                "where it is reached by another address, set web_url."
            )
        base = settings.web.url or here
        try:
            url = make_link(settings.flags.state_dir, who(sent.person), role, base)
        except OSError as error:
            return texts.note_page(f"No link could be made: {error.filename}: {error.strerror}")
        return texts.link_page(url, LINK_LASTS_S)


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=0.3).close()
    except OSError:
        return False
    return True


def _said(outcome: Outcome, page: Page) -> Tapped:
    toast = outcome.message if len(outcome.message) <= _TOAST_MAX else f"{outcome.message[: _TOAST_MAX - 1]}…"
    return Tapped(toast, page=page)


def _reason(text: str) -> str:
    """The reason in what follows a command: `because` may lead it."""
    text = text.strip()
    return text[len("because ") :].strip() if text.lower().startswith("because ") else text


def _is_off(new: object) -> bool:
    return isinstance(new, dict) and new.get("state") == "off"
