"""The flag list: a row for each flag, made anew only where something changed, and what people pick out of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from jarvis_flags.evaluate import Evaluation
from jarvis_flags.model import EvaluationContext
from jarvis_flags.parse import pin_name
from jarvis_flags.request import CALLERS_DEFAULT
from jarvis_flags.snapshot import Snapshot, changed_flags
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.admin.stale import STALE_DAYS, last_changes, stale_reasons
from jarvis_otel.admin.states import FlagState, flag_ids, flag_state
from jarvis_otel.admin.store import StoreError

__all__ = [
    "MARKS",
    "PAGE_SIZE",
    "SORTS",
    "SWITCHES",
    "FlagRow",
    "FlagRows",
    "Wanted",
    "result_words",
]

PAGE_SIZE = 1_000
"""So many flags are on a page."""

SWITCHES = ("on", "partly", "off")
MARKS = ("stale", "dangerous", "overridden", "pinned", "broken")
SORTS = ("file", "id", "state", "category", "owner", "evaluations", "changed")

_LOOK_S = 5.0
_KEPT_S = 600.0
_ENVIRONMENTS_MAX = 4
_WORDS_MAX = 16
_NAMING_RULES = frozenset({"user_ids", "user_segment", "percentage", "schedule", "jsonlogic"})

_Pins = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class FlagRow:
    """What the list says of a flag.

    Attributes:
        state: Where it stands.
        switch: `on`, `partly` (on for some users, as far as its rules tell) or `off`.
        environments: What somebody without a name gets in each environment.
        pins: Where it is pinned, a phrase for each process.
        stale: Why it has had its day, a phrase for each reason.
        text: What a search looks through, in lower case.
    """

    state: FlagState
    switch: str
    environments: tuple[tuple[str, str], ...]
    pins: tuple[str, ...]
    stale: tuple[str, ...]
    text: str

    @property
    def id(self) -> str:
        """The flag's id."""
        return self.state.flag

    @property
    def environment_words(self) -> str:
        """What somebody without a name gets in each environment, as a phrase."""
        return " · ".join(f"{name} {given}" for name, given in self.environments)

    @property
    def category(self) -> str:
        """Its category; empty where its definition cannot be used."""
        return "" if self.state.definition is None else self.state.definition.category

    @property
    def owner(self) -> str:
        """Its owner."""
        return "" if self.state.definition is None else self.state.definition.owner

    @property
    def changed(self) -> str:
        """When what holds at run time was set, in ISO 8601; empty where nothing is."""
        return "" if self.state.override is None else self.state.override.at

    @property
    def marks(self) -> frozenset[str]:
        """Which of MARKS it has."""
        has = {
            "stale": bool(self.stale),
            "dangerous": self.state.dangerous,
            "overridden": self.state.override is not None,
            "pinned": bool(self.pins),
            "broken": self.state.problem is not None,
        }
        return frozenset(mark for mark, held in has.items() if held)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows somebody wants to see.

    Attributes:
        words: All must stand in a row's text.
        switch: Only rows of this switch; empty is any.
        category, owner: Only rows of these; None is any.
        marks: Only rows that have all of these.
        sort: One of SORTS; `file` is the file's own order.
        page: From 1.
    """

    words: tuple[str, ...] = ()
    switch: str = ""
    category: str | None = None
    owner: str | None = None
    marks: frozenset[str] = frozenset()
    sort: str = "file"
    page: int = 1

    @classmethod
    def of(cls, asked: Mapping[str, str], marks: Sequence[str] = ()) -> Wanted:
        """What the fields of a form mean; what they cannot mean is passed over.

        Args:
            asked: q, state, category, owner, sort and page.
            marks: The values of `only`.
        """
        page = asked.get("page", "")
        return cls(
            words=tuple(asked.get("q", "").lower().split()[:_WORDS_MAX]),
            switch=asked["state"] if asked.get("state") in SWITCHES else "",
            category=asked.get("category") or None,
            owner=asked.get("owner") or None,
            marks=frozenset(marks) & frozenset(MARKS),
            sort=asked["sort"] if asked.get("sort") in SORTS else "file",
            page=max(1, int(page)) if page.isdecimal() and len(page) < 8 else 1,
        )

    def pick(self, rows: Sequence[FlagRow], evaluations: Callable[[str], int]) -> list[FlagRow]:
        """The rows that are wanted, sorted; all pages of them.

        Args:
            rows: All rows.
            evaluations: How often a flag was evaluated.
        """
        picked = [row for row in rows if self._wants(row)]
        keys: dict[str, Callable[[FlagRow], object]] = {
            "id": lambda row: row.id.lower(),
            "state": lambda row: (SWITCHES.index(row.switch), row.id.lower()),
            "category": lambda row: (row.category.lower(), row.id.lower()),
            "owner": lambda row: (not row.owner, row.owner.lower(), row.id.lower()),
            "evaluations": lambda row: -evaluations(row.id),
        }
        if self.sort == "changed":
            return sorted(picked, key=lambda row: row.changed, reverse=True)
        key = keys.get(self.sort)
        return picked if key is None else sorted(picked, key=key)  # type: ignore[arg-type]

    def page_of(self, picked: Sequence[FlagRow]) -> tuple[Sequence[FlagRow], int, int]:
        """The rows of the page that is wanted, its number, which is the last one's at most, and how many there are."""
        pages = max(1, -(-len(picked) // PAGE_SIZE))
        page = min(self.page, pages)
        return picked[(page - 1) * PAGE_SIZE : page * PAGE_SIZE], page, pages

    def _wants(self, row: FlagRow) -> bool:
        return (
            self.switch in ("", row.switch)
            and self.category in (None, row.category)
            and self.owner in (None, row.owner)
            and self.marks <= row.marks
            and all(word in row.text for word in self.words)
        )


class FlagRows:
    """The rows of all flags, kept for as long as they say what holds.

    A change makes only the rows anew that it concerns, and a change of a pin all of them. What goes by the clock is
    made anew every 5 seconds, all of them every 10 minutes: then one may have become stale.

    Args:
        admin: Knows the flags.
        clock: Unix seconds.
    """

    def __init__(self, admin: FlagAdmin, clock: Callable[[], float] = time.time) -> None:
        self._admin = admin
        self._clock = clock
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._looked_at = self._made_at = 0.0
        self._rows: dict[str, FlagRow] = {}
        self._environments: tuple[str, ...] = ()
        self._pins: Mapping[str, _Pins] = {}
        self._changed: tuple[int, Mapping[str, datetime]] = (-1, {})

    def all(self) -> list[FlagRow]:
        """A row for each flag, in the file's order."""
        with self._lock:
            return list(self._current().values())

    def one(self, flag_id: str) -> FlagRow | None:
        """The row of a flag as it stands at this moment, or None where there is none."""
        with self._lock:
            self._current()
            state = flag_state(self._admin.source.snapshot, flag_id)
            return None if state is None else self._row(self._admin.source.snapshot, state)

    def _current(self) -> dict[str, FlagRow]:
        snapshot, now = self._admin.source.snapshot, self._clock()
        is_due = not self._looked_at <= now < self._looked_at + _LOOK_S
        if snapshot is self._snapshot and not is_due:
            return self._rows
        kept = dict(self._rows)
        if is_due:
            pins = self._read_pins()
            if pins != self._pins or not self._made_at <= now < self._made_at + _KEPT_S:
                kept, self._made_at = {}, now
            self._pins, self._looked_at = pins, now
            kept = {flag_id: row for flag_id, row in kept.items() if not _is_timed(row)}
        if snapshot is not self._snapshot:
            environments = _environments(snapshot)
            if self._snapshot is None or environments != self._environments:
                kept = {}
            else:
                for flag_id in changed_flags(self._snapshot, snapshot):
                    kept.pop(flag_id, None)
            self._environments = environments
            self._note_changes(snapshot.overrides.revision)
        self._rows = {flag_id: kept.get(flag_id) or self._made(snapshot, flag_id) for flag_id in flag_ids(snapshot)}
        self._snapshot = snapshot
        return self._rows

    def _made(self, snapshot: Snapshot, flag_id: str) -> FlagRow:
        """The row of a flag; the one that there was if it says the same, so that whoever drew it need not again."""
        state = flag_state(snapshot, flag_id)
        assert state is not None
        row, old = self._row(snapshot, state), self._rows.get(flag_id)
        return old if row == old and old is not None else row

    def _note_changes(self, revision: int) -> None:
        if self._changed[0] != revision:
            entries: list[AuditEntry] = []
            with contextlib.suppress(StoreError):  # without it less is known of what is stale
                entries = self._admin.history()
            self._changed = revision, last_changes(entries)

    def _read_pins(self) -> dict[str, _Pins]:
        """Where each flag is pinned: in which process, by what."""
        pins: dict[str, list[tuple[str, str]]] = {}
        for process in self._admin.processes():
            for flag_id, value in process.pins.items():
                pins.setdefault(flag_id, []).append((f"{process.service} ({process.place})", value))
        return {flag_id: tuple(found) for flag_id, found in pins.items()}

    def _row(self, snapshot: Snapshot, state: FlagState) -> FlagRow:
        now = datetime.fromtimestamp(self._clock(), UTC)
        definition = state.definition
        pins = self._pins.get(state.flag, ())
        if state.pin is not None and not pins:
            pins = (("this process", state.pin),)
        stale: list[str] = []
        if definition is not None:
            stale = stale_reasons(snapshot, state.flag, self._changed[1], now, now - timedelta(days=STALE_DAYS))
        said = (state.flag, *((definition.name, definition.description) if definition is not None else ()))
        more = () if definition is None else (definition.category, definition.owner, *definition.services)
        return FlagRow(
            state,
            _switch(snapshot, state),
            tuple((name, _given(snapshot, state.flag, name)) for name in self._environments),
            tuple(f"{pin_name(state.flag)}={value} in {where}" for where, value in pins),
            tuple(stale),
            "\n".join((*said, *more)).lower(),
        )


def _switch(snapshot: Snapshot, state: FlagState) -> str:
    if state.state.endswith(" %"):
        return "partly" if state.on and state.percentage != 100 else SWITCHES[0 if state.on else -1]
    if state.on:
        return "on"
    flag = snapshot.flag(state.flag)
    # what is off for somebody without a name may be on for those whom a rule names
    decided = flag is None or flag.constant is not None or state.definition is None or state.percentage == 0
    named = not decided and any(rule.type in _NAMING_RULES for rule in state.definition.rules)  # type: ignore[union-attr]
    return "partly" if named else "off"


def _is_timed(row: FlagRow) -> bool:
    """Whether what a flag gives may change by the clock, its own or that of a flag that it requires."""
    definition, override = row.state.definition, row.state.override
    if override is not None and override.expires_at is not None:
        return True
    if definition is None:
        return False
    scheduled = any(rule.type == "schedule" for rule in definition.rules)
    return scheduled or bool(definition.requires) or definition.expires_at is not None


def _environments(snapshot: Snapshot) -> tuple[str, ...]:
    """The environments that the flags name most often, in the order in which they do."""
    named = Counter(name for flag in snapshot.definitions.values() for name in flag.environment_defaults)
    most = {name for name, _ in named.most_common(_ENVIRONMENTS_MAX)}
    return tuple(name for name in named if name in most) or (snapshot.environment,)


def _given(snapshot: Snapshot, flag_id: str, environment: str) -> str:
    return result_words(snapshot.evaluate(flag_id, snapshot.request(EvaluationContext(environment=environment))))


def result_words(result: Evaluation) -> str:
    """What an evaluation gave, in a word."""
    if result.variant is not None:
        return result.variant
    if result.value is CALLERS_DEFAULT:
        return "default"
    return "on" if result.on else "off"
