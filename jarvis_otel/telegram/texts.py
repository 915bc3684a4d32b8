"""What the bot says: pure functions from flags and outcomes to messages, in which everything foreign is escaped."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from jarvis_otel.admin.approvals import ApprovalRequest
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.outcome import Outcome, OutcomeKind
from jarvis_otel.admin.states import FlagState, change_words, moment, override_words, rule_words
from jarvis_otel.telegram.pending import Change
from jarvis_otel.terminal import printable

__all__ = [
    "COMMANDS",
    "FILTERS",
    "Button",
    "Page",
    "answered_page",
    "confirm_page",
    "data",
    "fit",
    "flag_key",
    "flag_page",
    "flags_page",
    "help_page",
    "history_page",
    "link_page",
    "note_page",
    "outcome_page",
    "output_page",
    "question_in",
    "question_page",
    "request_page",
    "safe",
]

COMMANDS = {
    "flags": "all flags",
    "flag": "ID: one flag",
    "flag_enable": "ID because …: turn it on",
    "flag_disable": "ID because …: turn it off for everyone",
    "flag_toggle": "ID because …: turn it on or off",
    "flag_rollout": "ID PCT because …: the percentage of users",
    "flag_history": "ID: who changed it",
    "flag_reset": "ID because …: the file decides again",
    "flag_panic": "turn every dangerous flag off",
    "errors": "1h: what goes wrong",
    "trace": "ID: what led to it",
    "web": "a link to the web page, good for one login",
    "flag_help": "what there is",
}
"""What the bot understands, as its menu says it."""

FILTERS = ("all", "on", "off", "dangerous", "stale", "overridden")

TEXT_MAX = 4096
"""So many characters (UTF-16) may a message have after its markup is taken out."""

PAGE = 8
_KEY_BYTES = 32
_QUESTION = "question "
_MORE = 40
"""So many characters say how many lines there are more."""
_FIELD_MAX = 500
_TAG = re.compile(r"<[^<>]*>")
_MARKS = {
    OutcomeKind.APPLIED: "✅",
    OutcomeKind.PINNED: "📌",
    OutcomeKind.NEEDS_CONFIRMATION: "⚠️",
    OutcomeKind.NEEDS_REASON: "✏️",
    OutcomeKind.NEEDS_APPROVAL: "👥",
    OutcomeKind.CONFLICT: "🔀",
}


@dataclass(frozen=True, slots=True)
class Button:
    """A button below a message.

    Attributes:
        label: What stands on it.
        data: What Telegram sends back for a tap: at most 64 bytes.
    """

    label: str
    data: str


@dataclass(frozen=True, slots=True)
class Page:
    """A message.

    Attributes:
        html: Its text in Telegram's HTML.
        buttons: The rows of buttons below it.
        asks_reply: Whether Telegram is to open the field for a reply.
        protected: Whether Telegram must not let it be forwarded or saved.
    """

    html: str
    buttons: tuple[tuple[Button, ...], ...] = ()
    asks_reply: bool = False
    protected: bool = False


def safe(text: object, most: int = _FIELD_MAX) -> str:
    """Any text as it can stand in HTML: nothing that hides, turns round or marks up.

    Args:
        text: Anything.
        most: So many characters (UTF-16) of it are shown.
    """
    encoded = printable(str(text)).encode("utf-16-le", "replace")
    if len(encoded) > 2 * most:
        return html.escape(f"{encoded[: 2 * most - 2].decode('utf-16-le', 'ignore')}…", quote=False)
    return html.escape(encoded.decode("utf-16-le"), quote=False)


def fit(lines: Iterable[str], room: int = TEXT_MAX) -> str:
    """As many lines of HTML as a message holds; each is whole in itself, so no tag or entity is cut.

    Args:
        lines: Lines whose tags are closed.
        room: So many characters there are for them.
    """
    taken: list[str] = []
    left = room - _MORE
    rest = 0
    for line in lines:
        size = _length(line) + 1
        if rest or size > left:
            rest += 1
        else:
            left -= size
            taken.append(line)
    if rest:
        taken.append(f"… and {rest} more lines")
    return "\n".join(taken)


def flag_key(flag_id: str) -> str:
    """A flag's id where a button's data has room for it, else a short hash of it."""
    encoded = flag_id.encode("utf-8", "backslashreplace")
    if len(encoded) <= _KEY_BYTES and not flag_id.startswith("#"):
        return encoded.decode()
    return f"#{hashlib.blake2b(encoded, digest_size=10).hexdigest()}"


def data(kind: str, *parts: object) -> str:
    """The data of a button.

    Args:
        kind: A letter, see `desk.Desk.tap`.
        parts: What it needs; a flag's key comes last.
    """
    return ":".join(("jf", kind, *map(str, parts)))


def flags_page(states: Sequence[FlagState], stale: Collection[str], chosen: str = "all", page: int = 0) -> Page:
    """The list of flags, eight a page.

    Args:
        states: All flags.
        stale: Ids of those that have had their day.
        chosen: Which are shown, one of FILTERS.
        page: From 0; one too high is the last.
    """
    shown = [state for state in states if _is_chosen(state, stale, chosen)]
    pages = max(1, -(-len(shown) // PAGE))
    page = max(0, min(page, pages - 1))
    some = shown[page * PAGE : page * PAGE + PAGE]
    count = f"{len(states)}" if chosen == "all" else f"{len(shown)} of {len(states)}, {chosen}"
    lines = [f"<b>Feature flags</b> ({count})"]
    lines += [
        f"{number}. {_mark(state)} <code>{safe(state.flag, 100)}</code> <b>{safe(state.state, 40)}</b>"
        f"{_notes(state, stale)}"
        for number, state in enumerate(some, page * PAGE + 1)
    ]
    if not some:
        lines.append("none")
    numbers = [
        Button(str(number), data("f", flag_key(state.flag))) for number, state in enumerate(some, page * PAGE + 1)
    ]
    rows = [tuple(numbers[:4]), tuple(numbers[4:])]
    if pages > 1:
        rows.append(
            (
                Button("◀", data("l", chosen, (page - 1) % pages)),
                Button(f"{page + 1}/{pages}", data("l", chosen, page)),
                Button("▶", data("l", chosen, (page + 1) % pages)),
            )
        )
    filters = [Button(f"• {name}" if name == chosen else name, data("l", name, 0)) for name in FILTERS]
    rows += [tuple(filters[:3]), tuple(filters[3:])]
    return Page(fit(lines), tuple(row for row in rows if row))


def flag_page(state: FlagState, last: AuditEntry | None, stale: Sequence[str], *, may_change: bool) -> Page:
    """One flag: where it stands, what its file says, and buttons to change it.

    Args:
        state: The flag.
        last: Its last change.
        stale: Why it has had its day.
        may_change: Whether whoever sees it may change it.
    """
    flag = state.definition
    lines = [f"{_mark(state)} <code>{safe(state.flag)}</code> is <b>{safe(state.state, 60)}</b>"]
    if flag is not None and flag.name:
        lines.append(f"<b>{safe(flag.name)}</b>")
    if flag is not None and flag.description:
        lines.append(safe(flag.description))
    lines += [f"• {safe(note)}" for note in state.notes]
    lines += [f"• stale: {safe(why)}" for why in stale]
    if state.problem:
        lines.append(f"• {safe(state.problem)}")
    if flag is not None:
        lines += [f"{number}. {safe(rule_words(rule))}" for number, rule in enumerate(flag.rules, 1)]
        said = (
            ("default", "on" if flag.enabled else "off" if flag.variants is None else flag.default),
            ("environments", ", ".join(f"{name} {value}" for name, value in flag.environment_defaults.items())),
            ("needs", ", ".join(flag.requires)),
            ("people", f"{flag.approvals} to turn it on" if flag.approvals > 1 else ""),
            ("category", flag.category),
            ("owner", flag.owner),
            ("expires", flag.expires_at),
            ("status", "" if flag.status == "active" else flag.status),
        )
        lines += [f"<i>{name}</i> {safe(value)}" for name, value in said if value]
    if last is not None:
        lines.append(f"<i>last change</i> {_entry_words(last)}")
    key = flag_key(state.flag)
    change = []
    if may_change and state.toggles_off:
        change.append(Button("Turn off", data("0", key)))
    if may_change and not (state.on and state.percentage is None):
        change.append(Button("Turn on", data("1", state.version, key)))
    look = (
        Button("History", data("h", 0, key)),
        Button("Impact", data("i", key)),
        Button("Refresh", data("f", key)),
    )
    return Page(fit(lines), (tuple(change), look) if change else (look,))


def history_page(state: FlagState, entries: Sequence[AuditEntry], page: int = 0, *, may_change: bool) -> Page:
    """What the audit says of a flag, newest first, with buttons that bring back what was set then.

    Args:
        state: The flag.
        entries: Its entries, oldest first.
        page: From 0; one too high is the last.
        may_change: Whether whoever sees it may change it.
    """
    pages = max(1, -(-len(entries) // PAGE))
    page = max(0, min(page, pages - 1))
    some = entries[::-1][page * PAGE : page * PAGE + PAGE]
    key = flag_key(state.flag)
    lines = [f"<b>History</b> of <code>{safe(state.flag, 100)}</code> ({len(entries)})"]
    lines += [_entry_words(entry) for entry in some] or ["nothing was changed yet"]
    reverts = []
    if may_change:
        reverts = [
            Button(f"Revert to {entry.revision}", data("r", entry.revision, state.version, key))
            for entry in some
            if entry.outcome == "applied"
        ]
    rows = [tuple(reverts[at : at + 3]) for at in range(0, len(reverts), 3)]
    if pages > 1:
        rows.append(
            (
                Button("◀", data("h", (page - 1) % pages, key)),
                Button(f"{page + 1}/{pages}", data("h", page, key)),
                Button("▶", data("h", (page + 1) % pages, key)),
            )
        )
    rows.append((Button("Flag", data("f", key)),))
    return Page(fit(lines), tuple(rows))


def confirm_page(outcome: Outcome, change: Change, state: FlagState | None, nonce: str, seconds: float) -> Page:
    """Asks whether a change is meant.

    Args:
        outcome: What wants it confirmed.
        change: The change.
        state: Where the flag stands.
        nonce: What its buttons carry.
        seconds: So long they can be tapped.
    """
    now = "" if state is None else f"It is <b>{safe(state.state, 60)}</b> now. "
    lines = [
        f"⚠️ {safe(outcome.message)}",
        f"{now}This would be: <b>{safe(change.words)}</b>.",
        f"<i>reason</i> {safe(change.reason)}" if change.reason else "",
        f"Confirm within {seconds:g} seconds.",
    ]
    buttons = (Button("Confirm", data("c", nonce)), Button("Cancel", data("x", nonce)))
    return Page(fit(line for line in lines if line), (buttons,))


def question_page(outcome: Outcome, nonce: str, seconds: float) -> Page:
    """Asks for the reason of a change.

    Args:
        outcome: What wants it.
        nonce: By which the reply is told; see `question_in`.
        seconds: So long it can be answered.
    """
    words = f"✏️ {safe(outcome.message)}\nReply to this message with the reason, within {seconds:g} seconds."
    return Page(f"{words}\n<code>{_QUESTION}{nonce}</code>", asks_reply=True)


def question_in(text: str) -> str | None:
    """The nonce in a message that asks for a reason, None in any other.

    Args:
        text: The message without its markup, as it comes back with the reply.
    """
    mark, last = text[:1], text.rpartition("\n")[2]
    return last.removeprefix(_QUESTION) if mark == "✏" and last.startswith(_QUESTION) else None


def outcome_page(outcome: Outcome, flag_id: str | None) -> Page:
    """What became of a change.

    Args:
        outcome: That.
        flag_id: The flag, if it was one.
    """
    buttons = ((Button("Show flag", data("f", flag_key(flag_id))),),) if flag_id is not None else ()
    return Page(f"{_MARKS.get(outcome.kind, '⛔')} {safe(outcome.message, 3_500)}", buttons)


def request_page(request: ApprovalRequest) -> Page:
    """Asks a further person for their approval.

    Args:
        request: What was asked for.
    """
    asked = request.entry
    words = f"{safe(override_words(asked.old))} → <b>{safe(override_words(asked.new))}</b>"
    so_far = f"{safe(', '.join(request.people))} so far"
    lines = [
        f"👥 <b>{safe(asked.who, 100)}</b> wants <code>{safe(asked.flag, 100)}</code>: {words}",
        f"<i>reason</i> {safe(asked.reason)}" if asked.reason else "no reason was given",
        f"It takes {request.wanted} people, {so_far}; it lapses at {moment(request.lapses_at)}.",
    ]
    buttons = (Button("Approve", data("a", request.id)), Button("Deny", data("d", request.id)))
    return Page(fit(lines), (buttons, (Button("Show flag", data("f", flag_key(asked.flag))),)))


def answered_page(request: ApprovalRequest, answer: AuditEntry | None) -> Page:
    """What a request's message says once it was answered.

    Args:
        request: The request.
        answer: The entry that answered it; None where the flag changed otherwise, or it lapsed.
    """
    if answer is None:
        end = "does not wait any more: the flag was changed meanwhile, or nobody answered in time"
    elif answer.outcome == "applied":
        end = f"approved by {safe(answer.who, 100)}: <b>{safe(override_words(answer.new))}</b>"
    else:
        end = f"denied by {safe(answer.who, 100)}"
    asked = request.entry
    return Page(f"👥 <code>{safe(asked.flag, 100)}</code>, asked for by {safe(asked.who, 100)}: {end}")


def output_page(title: str, text: str) -> Page:
    """The output of a command, as many of its lines as there is room for.

    Args:
        title: What it is.
        text: The output.
    """
    lines = [safe(line.rstrip(), 300) for line in text.splitlines()]
    head = f"<b>{safe(title, 200)}</b>"
    return Page(f"{head}\n<pre>{fit(lines, TEXT_MAX - _length(head) - 1)}</pre>")


def link_page(url: str, seconds: float) -> Page:
    """A login link, which is for one person and one login.

    Args:
        url: The link.
        seconds: So long it is good.
    """
    words = f"Good for one login within {seconds:g} seconds, and for you alone:\n<code>{safe(url, 2_000)}</code>"
    return Page(words, protected=True)


def note_page(words: str, flag_id: str | None = None) -> Page:
    """A sentence.

    Args:
        words: It, as it is.
        flag_id: A flag that it is about.
    """
    buttons = ((Button("Show flag", data("f", flag_key(flag_id))),),) if flag_id is not None else ()
    return Page(safe(words, 3_500), buttons)


def help_page() -> Page:
    """What there is."""
    lines = [f"/{name} {safe(words)}" for name, words in COMMANDS.items()]
    lines.append("")
    lines.append("Off needs no confirmation, whoever asks and however late the message arrives.")
    return Page("\n".join(lines))


def _is_chosen(state: FlagState, stale: Collection[str], chosen: str) -> bool:
    match chosen:
        case "on":
            return state.on
        case "off":
            return not state.on
        case "dangerous":
            return state.dangerous
        case "stale":
            return state.flag in stale
        case "overridden":
            return state.override is not None or state.pin is not None
    return True


def _mark(state: FlagState) -> str:
    if state.problem:
        return "❗"
    if not state.on:
        return "⚪"
    return "🟡" if state.state.endswith("%") and state.percentage != 100 else "🟢"


def _notes(state: FlagState, stale: Collection[str]) -> str:
    notes = ["dangerous"] if state.dangerous else []
    if state.override is not None:
        notes.append("set at run time")
    if state.pin is not None:
        notes.append("pinned")
    if state.flag in stale:
        notes.append("stale")
    if state.problem:
        notes.append("broken")
    return f" · {', '.join(notes)}" if notes else ""


def _entry_words(entry: AuditEntry) -> str:
    because = f" — {safe(entry.reason, 120)}" if entry.reason else ""
    at = safe(entry.at[:19].replace("T", " "), 19)
    return (
        f"<b>{entry.revision}</b> {at}Z <i>{safe(entry.who, 60)}</i> {safe(entry.action, 20)}: "
        f"{safe(change_words(entry), 160)}{because}"
    )


def _length(line: str) -> int:
    """Characters of a line as Telegram counts them: UTF-16 units, without markup."""
    return len(html.unescape(_TAG.sub("", line)).encode("utf-16-le", "replace")) // 2
