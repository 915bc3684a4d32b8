"""FlagAdmin, the one service that changes flags: authorise, check, confirm, audit, write, tell.

Front ends only translate. Off is never delayed or refused: confirmations, reasons, approvals and conflicts concern only
what can turn something on.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, ParamSpec

from jarvis_flags.buckets import threshold
from jarvis_flags.evaluate import read_pin
from jarvis_flags.model import FlagDefinition, RolloutRule
from jarvis_flags.overrides import Override, OverrideSet
from jarvis_flags.parse import pin_name
from jarvis_flags.source import FileSource, FlagSource, MemorySource
from jarvis_otel.admin.approvals import APPROVAL_LASTS_S, ApprovalRequest, open_requests
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.author import Author, Role, storable
from jarvis_otel.admin.file_edits import FileEdits
from jarvis_otel.admin.outcome import Outcome, OutcomeKind
from jarvis_otel.admin.states import (
    FlagState,
    flag_state,
    moment,
    override_words,
    state_version,
    unknown_flag_words,
)
from jarvis_otel.admin.store import Edit, FlagStore, Note, SeenProcess, StoreError

__all__ = ["FlagAdmin"]

SEEN_WAIT_S = 1.0


class _ConflictError(Exception):
    """The flag is not as the author saw it."""


_Change = Callable[[Override | None], Override | None]
"""From a flag's override as it stands to the new one; None is none."""

_Words = Callable[[Override | None], str]
"""From the override that was set to what a person is told of it."""

_P = ParamSpec("_P")


def _answers(method: Callable[_P, Outcome]) -> Callable[_P, Outcome]:
    """A method that answers where the store cannot, and raises nothing."""

    @functools.wraps(method)
    def answered(*args: _P.args, **kwargs: _P.kwargs) -> Outcome:
        try:
            return method(*args, **kwargs)
        except StoreError as error:
            return Outcome(OutcomeKind.UNAVAILABLE, str(error))

    return answered


class FlagAdmin:
    """Changes flags at run time.

    Args:
        source: The flags, to check changes against.
        store: Where changes are kept.
        tell: Called with each entry of a change after it is kept, to notify; it must not raise.
        seen_wait: Seconds to wait for the other processes to have seen a change.
        reason_always: Whether turning on any flag needs a reason, not only dangerous ones.
    """

    def __init__(
        self,
        source: FlagSource,
        store: FlagStore,
        *,
        tell: Callable[[AuditEntry], None] = lambda _: None,
        seen_wait: float = SEEN_WAIT_S,
        reason_always: bool = False,
    ) -> None:
        self._source = source
        self._store = store
        self._tell = tell
        self._seen_wait = seen_wait
        self._reason_always = reason_always
        self._late: frozenset[str] = frozenset()

    # --- looking ---

    @property
    def source(self) -> FlagSource:
        """The flags."""
        return self._source

    def state(self, flag_id: str) -> FlagState | None:
        """Where a flag stands, or None; its `version` is what `expected` of a change is held against."""
        return flag_state(self._source.snapshot, flag_id)

    def processes(self) -> list[SeenProcess]:
        """The live processes that evaluate the flags, with what they pin."""
        return self._store.processes()

    def history(self, flag_id: str | None = None) -> list[AuditEntry]:
        """What the audit says, refusals too, oldest first.

        Args:
            flag_id: Only what it says of this flag.
        """
        return [entry for entry in self._store.history() if flag_id is None or entry.flag == flag_id]

    def set_at(self, flag_id: str, revision: int) -> Override | None:
        """What was set for a flag at a revision and has not lapsed since; None where the file decided.

        Args:
            flag_id: The flag.
            revision: As the history names it.
        """
        then: Mapping[str, Any] | None = None
        for entry in self.history(flag_id):
            if entry.outcome == "applied" and entry.revision <= revision:
                then = entry.new
        override = None if then is None else Override.from_dict(then)
        lapsed = override is not None and override.expires_at is not None and override.expires_at <= time.time()
        return None if lapsed else override

    def requests(self) -> list[ApprovalRequest]:
        """The changes that wait for the approval of further people, oldest first."""
        definitions = self._source.snapshot.definitions

        def wanted(flag_id: str) -> int:
            return definitions[flag_id].approvals if flag_id in definitions else 1

        return open_requests(self._store.lines(), wanted, time.time())

    # --- changing ---

    @_answers
    def enable(
        self,
        flag_id: str,
        author: Author,
        *,
        confirmed: bool = False,
        lasts: float | None = None,
        variant: str | None = None,
        expected: str | None = None,
    ) -> Outcome:
        """Turns a flag on for everyone; one with a percentage stays limited to it.

        Args:
            flag_id: The flag.
            author: Who, why and from where.
            confirmed: Somebody confirmed it, which a dangerous flag needs.
            lasts: Seconds after which it lapses by itself; None never does.
            variant: The variant that everyone gets; a percentage then limits nothing.
            expected: The version of the flag's state that the author looked at; None takes any.
        """
        flag_id = storable(flag_id)
        flag = self._source.snapshot.definitions.get(flag_id)
        if variant is not None and flag is not None and variant not in (flag.variants or ("on", "off")):
            names = ", ".join(flag.variants or ("on", "off"))
            return self._refuse("enable", flag_id, author, f"{flag_id} has no variant {variant!r}, want one of {names}")

        def change(override: Override | None) -> Override:
            return Override("on", percentage=_percentage(override), variant=variant, expires_at=_moment(lasts))

        def words(override: Override | None) -> str:
            if variant:
                return f"{flag_id} gives {variant} to everyone{_until(override)}"
            return _enabled_words(flag_id, flag, override)

        return self._turn_on("enable", flag_id, author, change, words, confirmed=confirmed, expected=expected)

    @_answers
    def disable(self, flag_id: str, author: Author, *, lasts: float | None = None) -> Outcome:
        """Turns a flag off for everyone, whatever else is set: the kill switch.

        Args:
            flag_id: The flag.
            author: Who, why and from where.
            lasts: Seconds after which it lapses by itself; None never does. A guarded flag (dangerous, or one that
                takes approvals) stays limited for as long as it was: its end turns nothing on that nobody confirmed.
        """
        flag_id = storable(flag_id)
        if self._knows_flags and not self._exists(flag_id):
            return self._not_found("disable", flag_id, author)
        unknown = "; no flag file could be read, so whether there is such a flag is not known"

        def change(override: Override | None) -> Override:
            off = Override("off", percentage=_percentage(override), expires_at=_moment(lasts))
            return self._no_sooner(flag_id, author, override, off)

        def words(override: Override | None) -> str:
            said = f"{flag_id} is off for everyone{_until(override)}"
            if lasts is not None and override is not None and override.expires_at is None:
                said += "; it does not lapse, for that would turn it on unasked: what stood before had no end"
            return said if self._knows_flags else said + unknown

        return self._turn_off("disable", flag_id, author, change, words)

    def toggle(
        self,
        flag_id: str,
        author: Author,
        *,
        confirmed: bool = False,
        lasts: float | None = None,
        expected: str | None = None,
    ) -> Outcome:
        """Turns a flag off that is on for somebody, and on otherwise; the arguments are those of `enable`."""
        state = self.state(storable(flag_id))
        if state is not None and state.toggles_off:
            return self.disable(flag_id, author, lasts=lasts)
        return self.enable(flag_id, author, confirmed=confirmed, lasts=lasts, expected=expected)

    @_answers
    def rollout(
        self,
        flag_id: str,
        percent: float,
        author: Author,
        *,
        confirmed: bool = False,
        lasts: float | None = None,
        expected: str | None = None,
    ) -> Outcome:
        """Sets the percentage of users that a flag is on for.

        Args:
            flag_id: The flag.
            percent: 0 to 100, at most three decimals.
            author: Who, why and from where.
            confirmed: Somebody confirmed it, which raising a dangerous flag needs.
            lasts: Seconds after which it lapses by itself; None never does.
            expected: The version of the flag's state that the author looked at; None takes any.
        """
        flag_id = storable(flag_id)
        try:
            threshold(percent)
        except (ValueError, TypeError) as error:
            why = f"{flag_id}: percentage: {error}"
            return self._refuse("rollout", flag_id, author, why, OutcomeKind.INVALID)
        flag = self._source.snapshot.definitions.get(flag_id)
        if flag is not None and any(_is_split(rule) for rule in flag.rules):
            why = f"{flag_id} splits its users over variants: change its weights in the file"
            return self._refuse("rollout", flag_id, author, why)

        def words(override: Override | None) -> str:
            return f"{flag_id} is on for {percent:g} % of users{_until(override)}"

        def change(_: Override | None) -> Override:
            return Override("on", percentage=percent, expires_at=_moment(lasts))

        def set_it() -> Outcome:
            return self._turn_on("rollout", flag_id, author, change, words, confirmed=confirmed, expected=expected)

        def lower(override: Override | None) -> Override:
            new = change(override)
            if flag is None or not _lowers(flag, override, new):
                raise _ConflictError
            return new

        old = self._override(flag_id)
        if flag is not None and _lowers(flag, old, change(old)):
            return self._turn_off("rollout", flag_id, author, lower, words, otherwise=set_it)
        return set_it()

    @_answers
    def reset(self, flag_id: str, author: Author, *, confirmed: bool = False, expected: str | None = None) -> Outcome:
        """Removes what was set at run time: the file decides again.

        Args:
            flag_id: The flag.
            author: Who, why and from where.
            confirmed: Somebody confirmed it, which a dangerous flag that was turned off needs.
            expected: The version of the flag's state that the author looked at; None takes any.
        """
        flag_id = storable(flag_id)
        if author.role is Role.VIEWER:
            return self._refuse("reset", flag_id, author, _NOT_FOR_VIEWERS)
        override = self._override(flag_id)
        if override is None:
            if self._knows_flags and not self._exists(flag_id):
                return self._not_found("reset", flag_id, author)
            return Outcome(OutcomeKind.APPLIED, f"nothing was set for {flag_id} at run time; the file decides")
        return self._restore("reset", flag_id, author, None, confirmed=confirmed, expected=expected)

    @_answers
    def revert(
        self, flag_id: str, revision: int, author: Author, *, confirmed: bool = False, expected: str | None = None
    ) -> Outcome:
        """Sets at run time what was set when the flags stood at a revision.

        Args:
            flag_id: The flag.
            revision: The revision as the history names it; 0 is before the first change.
            author: Who, why and from where.
            confirmed: Somebody confirmed it, which a dangerous flag needs unless it is off then.
            expected: The version of the flag's state that the author looked at; None takes any.
        """
        flag_id = storable(flag_id)
        if self._knows_flags and not self._exists(flag_id):
            return self._not_found("revert", flag_id, author)
        newest = self._store.read().revision
        if not 0 <= revision <= newest:
            why = f"{flag_id}: there is no revision {revision}; want 0 to {newest}, as the history shows them"
            return self._refuse("revert", flag_id, author, why, OutcomeKind.INVALID)
        then = self.set_at(flag_id, revision)
        return self._restore("revert", flag_id, author, then, confirmed=confirmed, expected=expected)

    @_answers
    def panic(self, author: Author) -> Outcome:
        """Turns every dangerous flag off at once."""
        if author.role is Role.VIEWER:
            return self._refuse("panic", "*", author, _NOT_FOR_VIEWERS)
        snapshot = self._source.snapshot
        if not self._knows_flags:
            problem = next((str(problem) for problem in snapshot.problems), "there is no flag")
            why = f"which flags are dangerous is not known: {problem}; disable them by name"
            return self._refuse("panic", "*", author, why, OutcomeKind.UNAVAILABLE)
        dangerous = [flag_id for flag_id, flag in snapshot.definitions.items() if flag.dangerous]
        dangerous += [flag_id for flag_id, bad in snapshot.bad.items() if bad.dangerous and flag_id not in dangerous]
        if not dangerous:
            return Outcome(OutcomeKind.APPLIED, "no flag is dangerous; nothing was changed")

        def edit(state: OverrideSet) -> Mapping[str, Override | None]:
            return {
                flag_id: Override("off", percentage=_percentage(state.overrides.get(flag_id))) for flag_id in dangerous
            }

        are_off = "flag is off" if len(dangerous) == 1 else "flags are off"
        words = f"{len(dangerous)} dangerous {are_off}: {', '.join(dangerous)}"
        return self._commit("panic", author, edit, lambda _: words, off_only=True)

    @_answers
    def approve(self, request_id: str, author: Author) -> Outcome:
        """Approves a change that somebody else asked for; with the last approval that it takes it is made.

        Args:
            request_id: The id of the request.
            author: Who; the reason is that of the request where none is given.
        """
        request = self._request(request_id)
        if request is None:
            return self._no_request(request_id)
        asked = request.entry
        # the author confirms by approving; the reason was given
        checked = replace(author, reason=author.reason or asked.reason)
        if (stop := self._stop(asked.action, asked.flag, checked, confirmed=True)) is not None:
            return stop
        if author.who in request.people and len(request.people) < request.wanted:
            why = f"{asked.flag}: {author.who} is for it already; it takes {request.wanted} different people"
            return self._refuse(asked.action, asked.flag, author, why)
        people = request.approved_by(author.who).people
        if len(people) < request.wanted:
            note = Note(asked.action, asked.flag, "approved", "", asked.old, asked.new, request.id)
            return self._asked_for(author, note, f"{asked.flag}: {len(people)} of {request.wanted} people are for it")
        override = None if asked.new is None else Override.from_dict(asked.new)
        if override is not None and override.expires_at is not None:
            # what was to last an hour lasts an hour from now
            lasts = override.expires_at - datetime.fromisoformat(asked.at).timestamp()
            override = replace(override, expires_at=_moment(lasts))
        detail = f"asked for by {', '.join(request.people)}, approved by {author.who}"

        def edit(state: OverrideSet) -> Mapping[str, Override | None]:
            old = state.overrides.get(asked.flag)
            if (None if old is None else old.to_dict()) != asked.old or self._request(request.id) is None:
                raise _ConflictError
            return {asked.flag: override}

        return self._commit(
            asked.action,
            checked,
            edit,
            lambda _: f"{asked.flag}: {override_words(asked.new)}, {detail}",
            flag_id=asked.flag,
            detail=detail,
            request=request.id,
        )

    @_answers
    def deny(self, request_id: str, author: Author) -> Outcome:
        """Refuses, or takes back, a change that waits for approval.

        Args:
            request_id: The id of the request.
            author: Who and why.
        """
        request = self._request(request_id)
        if request is None:
            return self._no_request(request_id)
        if author.role is Role.VIEWER:
            return self._refuse(request.entry.action, request.entry.flag, author, _NOT_FOR_VIEWERS)
        asked = request.entry
        note = Note(asked.action, asked.flag, "refused", f"denied by {author.who}", asked.old, asked.new, request.id)
        made = self._store.note(author, lambda: [note] if self._request(request.id) is not None else [])
        if not made:
            return self._no_request(request_id)
        return Outcome(OutcomeKind.APPLIED, f"{asked.flag}: the request of {asked.who} is denied", tuple(made))

    def decline(self, action: str, flag_id: str, author: Author, why: str = "not confirmed") -> None:
        """Notes that a change which had to be confirmed was not, or was not taken at all.

        Args:
            action: What was tried.
            flag_id: The flag.
            author: Who and from where.
            why: Why it was not made.
        """
        with contextlib.suppress(StoreError, OSError):
            self._store.note(author, lambda: [Note(action, storable(flag_id), "refused", storable(why))])

    # --- the flag file ---

    @_answers
    def promote(self, flag_id: str, author: Author, *, expected: str | None = None) -> Outcome:
        """Writes what was set at run time into the flag file, whose comments stay; everyone gets what they got.

        Args:
            flag_id: The flag.
            author: Who and why.
            expected: The version of the flag's state that the author looked at; None takes any.
        """
        from jarvis_flags.edit import set_flag_fields  # noqa: PLC0415 - few processes write flag files
        from jarvis_otel.admin.promote import promoted_fields  # noqa: PLC0415

        flag_id = storable(flag_id)
        if (stop := self._not_written("promote", flag_id, author)) is not None:
            return stop
        snapshot = self._source.reload()
        override = snapshot.overrides.overrides.get(flag_id)
        if flag_id not in snapshot.definitions or flag_id in snapshot.bad:
            if not self._exists(flag_id):
                return self._not_found("promote", flag_id, author)
            return self._refuse("promote", flag_id, author, f"{flag_id}: its definition is broken: mend it first")
        if override is None:
            return Outcome(OutcomeKind.INVALID, f"nothing was set for {flag_id} at run time: there is nothing to write")
        state = self.state(flag_id)
        assert state is not None
        if expected not in (None, state.version):
            return self._conflict("promote", flag_id, author)
        if state.is_guarded and override.state == "on" and override.expires_at is not None:
            why = f"{flag_id} is on only{_until(override)}: turn it on without an end first, which is to be confirmed"
            return self._refuse("promote", flag_id, author, why)
        assert isinstance(self._source, FileSource)
        file = self._source.settings.flags_file
        try:
            self._edits().note()  # what others changed is not this author's
            fields = promoted_fields(snapshot, flag_id, override)
            if fields:
                set_flag_fields(file, flag_id, fields)
        except (ValueError, OSError) as error:
            return self._refuse("promote", flag_id, author, _not_written_words(error), OutcomeKind.INVALID)
        self._source.reload()
        made = self._edits().note(author, "promote")
        if self._source.settings.store != "files":
            # the files of the other machines say what they said
            words = (
                f"{flag_id} is written into {file.name} of this machine; what was set at run time stays: bring the "
                f"file to the other machines, then: jarvis flags reset {flag_id}"
            )
            return Outcome(OutcomeKind.APPLIED, words, tuple(made))

        def edit(state: OverrideSet) -> Mapping[str, Override | None]:
            if state.overrides.get(flag_id) != override:
                raise _ConflictError
            return {flag_id: None}

        words = f"{flag_id} is written into {file.name} as {override_words(override.to_dict())}, for every environment"
        return self._commit("promote", author, edit, lambda _: words, flag_id=flag_id)

    @_answers
    def create(self, definition: FlagDefinition, author: Author) -> Outcome:
        """Writes a new flag into the flag file.

        Args:
            definition: The flag.
            author: Who and why.
        """
        from jarvis_flags.edit import add_flag  # noqa: PLC0415 - few processes write flag files

        if (stop := self._not_written("create", definition.id, author)) is not None:
            return stop
        assert isinstance(self._source, FileSource)
        file = self._source.settings.flags_file
        self._edits().note()  # what others changed is not this author's
        try:
            add_flag(file, definition)
        except (ValueError, OSError) as error:
            why = f"{definition.id} was not created: {_not_written_words(error)}"
            return self._refuse("create", definition.id, author, why, OutcomeKind.INVALID)
        self._source.reload()
        made = self._edits().note(author, "create")
        return Outcome(OutcomeKind.APPLIED, f"{definition.id} was written into {file}", tuple(made))

    def follow_file(self) -> Callable[[], None]:
        """Notes edits of the flag file in the audit, those until now and those to come; returns what ends that."""
        return self._edits().follow() if isinstance(self._source, FileSource) else lambda: None

    def note_file(self) -> list[AuditEntry]:
        """Notes in the audit what was edited in the flag file until now."""
        return self._edits().note() if isinstance(self._source, FileSource) else []

    def note_unreadable_pins(self, service: str) -> None:
        """Notes in the audit the pins of this process that cannot be read, which count as off.

        Args:
            service: What the process is called.
        """
        snapshot = self._source.snapshot
        for flag_id, definition in snapshot.definitions.items():
            name = pin_name(flag_id)
            if name in snapshot.pins and read_pin(snapshot.pins[name], definition.variants) is None:
                detail = f"{name}={snapshot.pins[name]!r} cannot be read, which counts as off"
                self.decline("pin", flag_id, Author(service, "environment"), detail)

    # --- how ---

    @property
    def _knows_flags(self) -> bool:
        """False where no flag could be read at all: then any id may be turned off."""
        return bool(self._source.snapshot.definitions or self._source.snapshot.bad)

    def _exists(self, flag_id: str) -> bool:
        """Whether there is such a flag; one that was written just now is looked for in the file."""
        return self.state(flag_id) is not None or flag_state(self._source.reload(), flag_id) is not None

    def _override(self, flag_id: str) -> Override | None:
        return self._store.read().overrides.get(flag_id)

    def _request(self, request_id: str) -> ApprovalRequest | None:
        return next((one for one in self.requests() if one.id == storable(request_id)), None)

    def _edits(self) -> FileEdits:
        assert isinstance(self._source, FileSource)
        return FileEdits(self._source, self._store, self._tell)

    def _not_written(self, action: str, flag_id: str, author: Author) -> Outcome | None:
        """Why somebody may not write the flag file, or None where they may."""
        if author.role is not Role.ADMIN:
            why = f"{author.who} is {author.role.value}: only admins write flag files"
            return self._refuse(action, flag_id, author, why)
        if isinstance(self._source, MemorySource):
            return Outcome(OutcomeKind.UNAVAILABLE, "these flags are in memory: there is no file to write")
        return None

    def _turn_on(
        self,
        action: str,
        flag_id: str,
        author: Author,
        change: _Change,
        words: _Words,
        *,
        confirmed: bool,
        expected: str | None,
    ) -> Outcome:
        """Makes a change that can turn a flag on, or asks for it where that takes more than one person."""
        if (stop := self._stop(action, flag_id, author, confirmed=confirmed, expected=expected)) is not None:
            return stop
        flag = self._source.snapshot.definitions[flag_id]
        if flag.approvals > 1:
            old = self._override(flag_id)
            new = change(old)
            note = Note(
                action,
                flag_id,
                "requested",
                old=None if old is None else old.to_dict(),
                new=None if new is None else new.to_dict(),
            )
            return self._asked_for(author, note, f"{flag_id} takes {flag.approvals} different people")

        def edit(state: OverrideSet) -> Mapping[str, Override | None]:
            override = state.overrides.get(flag_id)
            if expected is not None and state_version(flag, override) != expected:
                raise _ConflictError
            return {flag_id: change(override)}

        return self._commit(action, author, edit, words, flag_id=flag_id)

    def _turn_off(
        self,
        action: str,
        flag_id: str,
        author: Author,
        change: _Change,
        words: _Words,
        *,
        otherwise: Callable[[], Outcome] | None = None,
    ) -> Outcome:
        """Makes a change that can turn nothing on; `otherwise` takes over where by now it can."""
        if author.role is Role.VIEWER:
            return self._refuse(action, flag_id, author, _NOT_FOR_VIEWERS)

        def edit(state: OverrideSet) -> Mapping[str, Override | None]:
            return {flag_id: change(state.overrides.get(flag_id))}

        return self._commit(action, author, edit, words, flag_id=flag_id, off_only=True, otherwise=otherwise)

    def _restore(
        self,
        action: str,
        flag_id: str,
        author: Author,
        override: Override | None,
        *,
        confirmed: bool,
        expected: str | None,
    ) -> Outcome:
        """Sets an override that there was, or none."""

        def words(override: Override | None) -> str:
            said = "the file decides again" if override is None else override_words(override.to_dict())
            return f"{flag_id}: {said}"

        def set_it() -> Outcome:
            return self._turn_on(
                action, flag_id, author, lambda _: override, words, confirmed=confirmed, expected=expected
            )

        def stays_on(old: Override | None) -> Override | None:
            if not _is_plain_on(old):
                raise _ConflictError
            return override

        if override is not None and override.state == "off":

            def off(old: Override | None) -> Override:
                return self._no_sooner(flag_id, author, old, override)

            return self._turn_off(action, flag_id, author, off, words)
        if override is None and _is_plain_on(self._override(flag_id)):
            # whoever is on by the file stays on, and nobody else is turned on
            return self._turn_off(action, flag_id, author, stays_on, words, otherwise=set_it)
        return set_it()

    def _stop(
        self, action: str, flag_id: str, author: Author, *, confirmed: bool, expected: str | None = None
    ) -> Outcome | None:
        """Why a change that can turn a flag on may not be made, or None where it may."""
        snapshot = self._source.snapshot
        flag, bad = snapshot.definitions.get(flag_id), snapshot.bad.get(flag_id)
        if flag is None and bad is None:
            return self._not_found(action, flag_id, author)
        if author.role is Role.VIEWER:
            return self._refuse(action, flag_id, author, _NOT_FOR_VIEWERS)
        if author.only_off:
            return self._refuse(action, flag_id, author, f"{flag_id} was not turned on: {author.only_off}")
        if bad is not None and (flag is None or bad.dangerous):
            why = f"{flag_id} cannot be turned on while its definition is broken: {bad.message}"
            return self._refuse(action, flag_id, author, why)
        assert flag is not None
        if flag.dangerous and author.role is not Role.ADMIN:
            why = f"{flag_id} is dangerous: {author.who} is {author.role.value}, and only admins turn it on"
            return self._refuse(action, flag_id, author, why)
        if expected is not None and state_version(flag, self._override(flag_id)) != expected:
            return self._conflict(action, flag_id, author)
        # a program has no reasons but its code
        if (flag.dangerous or self._reason_always) and not author.reason.strip() and author.via != "api":
            why = "is dangerous: say why" if flag.dangerous else "is not turned on without a reason: say why"
            return Outcome(OutcomeKind.NEEDS_REASON, f"{flag_id} {why}")
        if flag.dangerous and not confirmed:
            return Outcome(OutcomeKind.NEEDS_CONFIRMATION, f"{flag_id} is dangerous: turning it on must be confirmed")
        return None

    def _refuse(
        self, action: str, flag_id: str, author: Author, why: str, kind: OutcomeKind = OutcomeKind.REFUSED
    ) -> Outcome:
        self.decline(action, flag_id, author, why)
        return Outcome(kind, why)

    def _not_found(self, action: str, flag_id: str, author: Author) -> Outcome:
        why = unknown_flag_words(self._source.snapshot, flag_id, "; jarvis flags list shows them")
        return self._refuse(action, flag_id, author, why, OutcomeKind.NOT_FOUND)

    def _no_request(self, request_id: str) -> Outcome:
        return Outcome(
            OutcomeKind.NOT_FOUND,
            f"no request {request_id!r} waits for approval: it was answered, the flag changed since, or "
            f"{APPROVAL_LASTS_S / 3600:g} hours have passed",
        )

    def _conflict(self, action: str, flag_id: str, author: Author) -> Outcome:
        self._source.reload()
        state, override = self.state(flag_id), self._override(flag_id)
        by = f" by {override.by or 'someone'} at {override.at}" if override is not None else ""
        now = "" if state is None else f": it is {state.state} now"
        why = f"{flag_id} was changed meanwhile{by}{now}; look at it again"
        return self._refuse(action, flag_id, author, why, OutcomeKind.CONFLICT)

    def _asked_for(self, author: Author, note: Note, words: str) -> Outcome:
        made = self._store.note(author, lambda: [note])
        request_id = note.request or made[-1].id
        cure = f"somebody else approves it with: jarvis flags approve {request_id}"
        return Outcome(OutcomeKind.NEEDS_APPROVAL, f"{words}; {cure}", tuple(made), request=request_id)

    def _no_sooner(self, flag_id: str, author: Author, old: Override | None, off: Override) -> Override:
        """An override off that ends no sooner than what it replaces, where its end could turn a guarded flag on."""
        state = self.state(flag_id)
        is_guarded = state is None or state.is_guarded or bool(author.only_off)
        if old is None or _is_plain_on(old) or not is_guarded or _end(off) >= _end(old):
            return off
        return replace(off, expires_at=old.expires_at)

    def _commit(
        self,
        action: str,
        author: Author,
        edit: Edit,
        words: _Words,
        *,
        flag_id: str = "",
        off_only: bool = False,
        detail: str = "",
        request: str = "",
        otherwise: Callable[[], Outcome] | None = None,
    ) -> Outcome:
        try:
            made = self._store.commit(action, author, edit, off_only=off_only, detail=detail, request=request)
        except _ConflictError:
            return self._conflict(action, flag_id, author) if otherwise is None else otherwise()
        self._source.reload()
        new = made[-1].new if made else None
        message = words(None if new is None else Override.from_dict(new))
        for entry in made:
            self._tell(entry)
        if not made:
            return Outcome(OutcomeKind.APPLIED, message)
        if made[0].outcome == "pending":
            return Outcome(OutcomeKind.APPLIED, f"{message}; {made[0].detail}", tuple(made))
        seen, processes = self._wait_until_seen(made[-1].revision)
        if processes:
            message += f"; seen by {seen} of {len(processes)} running processes"
        changed = {entry.flag for entry in made}
        for process in processes:
            for pinned in sorted(changed & process.pins.keys()):
                message += f"; {process.service} ({process.place}) pins it: {pin_name(pinned)}={process.pins[pinned]}"
        kind = OutcomeKind.APPLIED
        if not all(_is_off_entry(entry) for entry in made) and self._is_pinned(made, processes):
            kind = OutcomeKind.PINNED
        return Outcome(kind, message, tuple(made), seen, len(processes))

    def _is_pinned(self, made: Sequence[AuditEntry], processes: Sequence[SeenProcess]) -> bool:
        """Whether pins stand against a change wherever its flags are evaluated: here, where no process runs."""
        if processes:
            return all(entry.flag in process.pins for entry in made for process in processes)
        return all(pin_name(entry.flag) in self._source.snapshot.pins for entry in made)

    def _wait_until_seen(self, revision: int) -> tuple[int, list[SeenProcess]]:
        """How many of the running processes have seen a change; they get a moment for it."""
        deadline = time.monotonic() + self._seen_wait
        while True:
            processes = self._store.processes()
            behind = [process.place for process in processes if process.revision < revision]
            # who let a change wait in vain does not delay the next, which may be an off
            if self._late.issuperset(behind) or time.monotonic() >= deadline:
                self._late = frozenset(behind)
                return len(processes) - len(behind), processes
            time.sleep(self._store.look_again_s)


_NOT_FOR_VIEWERS = "viewers look at flags and change none"


def _not_written_words(error: ValueError | OSError) -> str:
    """Why a flag file was not written; what the system says of it names the file last, and a number first."""
    if isinstance(error, OSError):
        cure = "make room for it, or name another file by flags_file"
        return f"{error.filename}: cannot be written: {error.strerror}; {cure}"
    return str(error)


def _percentage(override: Override | None) -> float | None:
    return None if override is None else override.percentage


def _moment(lasts: float | None) -> float | None:
    return None if lasts is None else time.time() + lasts


def _until(override: Override | None) -> str:
    return "" if override is None or override.expires_at is None else f" until {moment(override.expires_at)}"


def _is_split(rule: RolloutRule) -> bool:
    return rule.type == "percentage" and isinstance(rule.value, Mapping)


def _enabled_words(flag_id: str, flag: FlagDefinition | None, override: Override | None) -> str:
    limit = _percentage(override)
    if limit is None and flag is not None:
        limit = flag.percentage
    who = "on for everyone" if limit is None else f"on, still limited to {limit:g} %"
    return f"{flag_id} is {who}{_until(override)}"


def _end(override: Override) -> float:
    return math.inf if override.expires_at is None else override.expires_at


def _is_plain_on(override: Override | None) -> bool:
    """Whether an override turns the flag on for everyone, so that to remove it turns it on for nobody."""
    return override is not None and override.state == "on" and override.percentage is None and override.variant is None


def _is_off_entry(entry: AuditEntry) -> bool:
    return entry.new is not None and entry.new.get("state") == "off"


def _lowers(flag: FlagDefinition, old: Override | None, new: Override) -> bool:
    """Whether a percentage can turn the flag on for nobody who has it off under the old override, now or later."""
    assert new.percentage is not None
    limits = [float(rule.value) for rule in flag.rules if rule.type == "percentage" and not _is_split(rule)]
    below_file = new.percentage <= min(limits, default=0.0)
    if old is None or _is_plain_on(old):
        return below_file
    if old.state == "off" or old.variant is not None or old.percentage is None:
        # also 0 % would lift it, for users that other rules name
        return False
    # when the first of both ends, the file decides instead of it
    return new.percentage <= old.percentage and _end(new) >= _end(old) and (below_file or _end(new) == _end(old))
