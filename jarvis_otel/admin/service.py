"""FlagAdmin, the one service that changes flags: check, confirm, audit, write, tell. Front ends only translate.

Off is never delayed or refused: confirmation and refusal apply only to what can turn something on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from jarvis_flags.buckets import threshold
from jarvis_flags.evaluate import read_pin
from jarvis_flags.hints import did_you_mean
from jarvis_flags.model import FlagDefinition, RolloutRule
from jarvis_flags.overrides import Override, OverrideSet
from jarvis_flags.parse import pin_name
from jarvis_flags.source import FlagSource
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.store import Author, Edit, FlagStore, SeenProcess, StoreError, storable

__all__ = ["FlagAdmin", "Outcome", "OutcomeKind"]

SEEN_WAIT_S = 1.0


class OutcomeKind(StrEnum):
    """How an attempt to change a flag ended."""

    APPLIED = "applied"
    NEEDS_CONFIRMATION = "needs_confirmation"
    REFUSED = "refused"
    NOT_FOUND = "not_found"
    INVALID = "invalid"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a change.

    Attributes:
        kind: How it ended.
        message: A sentence for a person.
        entries: What the audit says of it.
    """

    kind: OutcomeKind
    message: str
    entries: tuple[AuditEntry, ...] = ()

    @property
    def applied(self) -> bool:
        """Whether the change is in force."""
        return self.kind is OutcomeKind.APPLIED


class FlagAdmin:
    """Changes flags at run time.

    Args:
        source: The flags, to check changes against.
        store: Where changes are kept.
        tell: Called with each entry after it is kept, to notify; it must not raise.
        seen_wait: Seconds to wait for the other processes to have seen a change.
    """

    def __init__(
        self,
        source: FlagSource,
        store: FlagStore,
        *,
        tell: Callable[[AuditEntry], None] = lambda _: None,
        seen_wait: float = SEEN_WAIT_S,
    ) -> None:
        self._source = source
        self._store = store
        self._tell = tell
        self._seen_wait = seen_wait

    def enable(
        self,
        flag_id: str,
        author: Author,
        *,
        confirmed: bool = False,
        lasts: float | None = None,
        variant: str | None = None,
    ) -> Outcome:
        """Turns a flag on for everyone; one with a percentage stays limited to it.

        Args:
            flag_id: The flag.
            author: Who, why and from where.
            confirmed: Somebody confirmed it, which a dangerous flag needs.
            lasts: Seconds after which it lapses by itself; None never does.
            variant: The variant that everyone gets; a percentage then limits nothing.
        """
        flag_id = storable(flag_id)
        flag = self._source.snapshot.definitions.get(flag_id)
        if variant is not None and flag is not None and variant not in (flag.variants or ("on", "off")):
            names = ", ".join(flag.variants or ("on", "off"))
            return self._refuse("enable", flag_id, author, f"{flag_id} has no variant {variant!r}, want one of {names}")
        if (stop := self._stop("enable", flag_id, author, confirmed=confirmed)) is not None:
            return stop

        def edit(state: OverrideSet) -> Mapping[str, Override | None]:
            percentage = _percentage(state.overrides.get(flag_id))
            return {flag_id: Override("on", percentage=percentage, variant=variant, expires_at=_moment(lasts))}

        words = f"{flag_id} gives {variant} to everyone"
        return self._commit("enable", author, edit, lambda: words if variant else self._enabled_words(flag_id, flag))

    def disable(self, flag_id: str, author: Author, *, lasts: float | None = None) -> Outcome:
        """Turns a flag off for everyone, whatever else is set: the kill switch.

        Args:
            flag_id: The flag.
            author: Who, why and from where.
            lasts: Seconds after which it lapses by itself; None never does.
        """
        flag_id = storable(flag_id)
        if self._knows_flags and not self._exists(flag_id):
            return self._not_found("disable", flag_id, author)
        words = f"{flag_id} is off for everyone"
        if not self._knows_flags:
            words += "; no flag file could be read, so whether there is such a flag is not known"

        def edit(state: OverrideSet) -> Mapping[str, Override | None]:
            percentage = _percentage(state.overrides.get(flag_id))
            return {flag_id: Override("off", percentage=percentage, expires_at=_moment(lasts))}

        return self._commit("disable", author, edit, lambda: words, off_only=True)

    def rollout(self, flag_id: str, percent: float, author: Author, *, confirmed: bool = False) -> Outcome:
        """Sets the percentage of users that a flag is on for.

        Args:
            flag_id: The flag.
            percent: 0 to 100, at most three decimals.
            author: Who, why and from where.
            confirmed: Somebody confirmed it, which raising a dangerous flag needs.
        """
        flag_id = storable(flag_id)
        try:
            threshold(percent)
        except (ValueError, TypeError) as error:
            why = f"{flag_id}: percentage: {error}"
            self._store.refuse("rollout", author, flag_id, why)
            return Outcome(OutcomeKind.INVALID, why)
        flag = self._source.snapshot.definitions.get(flag_id)
        lowers = flag is not None and self._lowers(flag, percent)
        if not lowers and (stop := self._stop("rollout", flag_id, author, confirmed=confirmed)) is not None:
            return stop
        if flag is not None and any(_is_split(rule) for rule in flag.rules):
            return self._refuse(
                "rollout", flag_id, author, f"{flag_id} splits its users over variants: change its weights in the file"
            )

        def edit(state: OverrideSet) -> Mapping[str, Override | None]:  # noqa: ARG001
            return {flag_id: Override("on", percentage=percent)}

        return self._commit(
            "rollout", author, edit, lambda: f"{flag_id} is on for {percent:g} % of users", off_only=lowers
        )

    def reset(self, flag_id: str, author: Author, *, confirmed: bool = False) -> Outcome:
        """Removes what was set at run time: the file decides again.

        Args:
            flag_id: The flag.
            author: Who, why and from where.
            confirmed: Somebody confirmed it, which a dangerous flag that was turned off needs.
        """
        flag_id = storable(flag_id)
        override = self._store.read().overrides.get(flag_id)
        if override is None:
            if self._knows_flags and not self._exists(flag_id):
                return self._not_found("reset", flag_id, author)
            return Outcome(OutcomeKind.APPLIED, f"nothing was set for {flag_id} at run time; the file decides")
        lifts = override.state == "off" or override.percentage is not None
        if lifts and (stop := self._stop("reset", flag_id, author, confirmed=confirmed)) is not None:
            return stop
        return self._commit(
            "reset", author, lambda _: {flag_id: None}, lambda: f"{flag_id}: the file decides again", off_only=not lifts
        )

    def panic(self, author: Author) -> Outcome:
        """Turns every dangerous flag off at once."""
        snapshot = self._source.snapshot
        if not self._knows_flags:
            why = next((str(problem) for problem in snapshot.problems), "there is no flag")
            return Outcome(
                OutcomeKind.UNAVAILABLE, f"which flags are dangerous is not known: {why}; disable them by name"
            )
        dangerous = [flag_id for flag_id, flag in snapshot.definitions.items() if flag.dangerous]
        dangerous += [flag_id for flag_id, bad in snapshot.bad.items() if bad.dangerous and flag_id not in dangerous]
        if not dangerous:
            return Outcome(OutcomeKind.APPLIED, "no flag is dangerous; nothing was changed")

        def edit(state: OverrideSet) -> Mapping[str, Override | None]:
            return {
                flag_id: Override("off", percentage=_percentage(state.overrides.get(flag_id))) for flag_id in dangerous
            }

        words = f"{len(dangerous)} dangerous flags are off: {', '.join(dangerous)}"
        return self._commit("panic", author, edit, lambda: words, off_only=True)

    def decline(self, action: str, flag_id: str, author: Author) -> None:
        """Notes that a change which had to be confirmed was not."""
        self._store.refuse(action, author, flag_id, "not confirmed")

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
                self._store.refuse("pin", Author(service, "environment"), flag_id, detail)

    def history(self, flag_id: str | None = None) -> list[AuditEntry]:
        """The changes, refused ones too, oldest first.

        Args:
            flag_id: Only those of this flag.
        """
        return [entry for entry in self._store.history() if flag_id is None or entry.flag == flag_id]

    @property
    def _knows_flags(self) -> bool:
        """False where no flag could be read at all: then any id may be turned off."""
        return bool(self._source.snapshot.definitions or self._source.snapshot.bad)

    def _exists(self, flag_id: str) -> bool:
        snapshot = self._source.snapshot
        return flag_id in snapshot.definitions or flag_id in snapshot.bad

    def _not_found(self, action: str, flag_id: str, author: Author) -> Outcome:
        snapshot = self._source.snapshot
        hint = did_you_mean(flag_id, [*snapshot.definitions, *snapshot.bad], "; jarvis flags list shows them")
        message = f"no flag {flag_id!r}{hint}"
        self._store.refuse(action, author, flag_id, message)
        return Outcome(OutcomeKind.NOT_FOUND, message)

    def _stop(self, action: str, flag_id: str, author: Author, *, confirmed: bool) -> Outcome | None:
        """Why a change that can turn a flag on may not be made, or None where it may."""
        snapshot = self._source.snapshot
        flag, bad = snapshot.definitions.get(flag_id), snapshot.bad.get(flag_id)
        if flag is None and bad is None:
            return self._not_found(action, flag_id, author)
        if bad is not None and (flag is None or bad.dangerous):
            return self._refuse(
                action, flag_id, author, f"{flag_id} cannot be turned on while its definition is broken: {bad.message}"
            )
        assert flag is not None
        if flag.approvals > 1:
            return self._refuse(
                action,
                flag_id,
                author,
                f"{flag_id} needs the approval of {flag.approvals} different people, which is not available yet: "
                "change `enabled` in the flag file, reviewed as your repository asks",
            )
        if flag.dangerous and not confirmed:
            return Outcome(OutcomeKind.NEEDS_CONFIRMATION, f"{flag_id} is dangerous: turning it on must be confirmed")
        return None

    def _refuse(self, action: str, flag_id: str, author: Author, why: str) -> Outcome:
        self._store.refuse(action, author, flag_id, why)
        return Outcome(OutcomeKind.REFUSED, why)

    def _lowers(self, flag: FlagDefinition, percent: float) -> bool:
        """Whether a percentage can turn the flag on for nobody for whom it is off now."""
        override = self._store.read().overrides.get(flag.id)
        if override is not None and override.state == "off":
            # also 0 % would lift the switch, for users that other rules name
            return False
        if override is not None and override.percentage is not None:
            return percent <= override.percentage
        limits = [float(rule.value) for rule in flag.rules if rule.type == "percentage" and not _is_split(rule)]
        return percent <= min(limits, default=0.0)

    def _enabled_words(self, flag_id: str, flag: FlagDefinition | None) -> str:
        override = self._store.read().overrides.get(flag_id)
        limit = _percentage(override)
        if limit is None and flag is not None:
            limit = flag.percentage
        return f"{flag_id} is on for everyone" if limit is None else f"{flag_id} is on, still limited to {limit:g} %"

    def _commit(
        self, action: str, author: Author, edit: Edit, words: Callable[[], str], *, off_only: bool = False
    ) -> Outcome:
        try:
            made = self._store.commit(action, author, edit, off_only=off_only)
        except StoreError as error:
            return Outcome(OutcomeKind.UNAVAILABLE, str(error))
        self._source.reload()
        message = words()
        for entry in made:
            self._tell(entry)
        if made:
            flags = {entry.flag for entry in made}
            message += self._seen_words(made[-1].revision, flags)
        return Outcome(OutcomeKind.APPLIED, message, tuple(made))

    def _seen_words(self, revision: int, flags: set[str]) -> str:
        """Who has seen the change, and in whom a pin stands against it."""
        deadline = time.monotonic() + self._seen_wait
        while True:
            processes = self._store.processes()
            seen = [process for process in processes if process.revision >= revision]
            if len(seen) == len(processes) or time.monotonic() >= deadline:
                break
            time.sleep(0.005)
        words = f"; seen by {len(seen)} of {len(processes)} running processes" if processes else ""
        for process in processes:
            for flag_id in sorted(flags & process.pins.keys()):
                words += f"; {_named(process)} pins it: {pin_name(flag_id)}={process.pins[flag_id]}"
        return words


def _named(process: SeenProcess) -> str:
    return f"{process.service} (pid {process.pid})"


def _percentage(override: Override | None) -> float | None:
    return None if override is None else override.percentage


def _moment(lasts: float | None) -> float | None:
    return None if lasts is None else time.time() + lasts


def _is_split(rule: RolloutRule) -> bool:
    return rule.type == "percentage" and isinstance(rule.value, Mapping)
