"""Overrides and audit in etcd, for many machines: one transaction each, and off on this machine whatever happens."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import orjson

from jarvis_flags.feeds import Pending
from jarvis_flags.overrides import AUDIT_FILE, Override, OverrideError, OverrideSet
from jarvis_flags.settings import FlagSettings
from jarvis_otel.admin.audit import GENESIS, AuditEntry, entries, line_hash
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.file_store import local_processes
from jarvis_otel.admin.store import Edit, Note, SeenProcess, StoreError, applied, noted, now
from jarvis_otel.etcd.audit_copy import AuditCopy
from jarvis_otel.etcd.client import EtcdClient, EtcdError, EtcdUnavailableError, b64, unb64
from jarvis_otel.etcd.follower import Follower
from jarvis_otel.etcd.keys import Keys, Lasting, SharedFlags, compared, deleted, flags_of, put, read_flags
from jarvis_otel.etcd.session import EtcdTurn

__all__ = ["EtcdStore", "open_etcd"]

COMMIT_S = 6.0
"""So long may etcd take for an answer; a new leader is there after about two seconds."""

OFF_S = 2.5
"""The same where flags are off on this machine already."""

AWAY_S = 1.0
"""The same where etcd did not answer before."""

CONFLICTS_S = 20.0
"""So long may others be faster."""

_ADOPTED_LINES = 200

_PENDING_WORDS = "on this machine only, until etcd answers and takes it over"


def open_etcd(
    settings: FlagSettings, tell: Callable[[AuditEntry], None] = lambda _: None, **options: float
) -> tuple[Follower, EtcdStore]:
    """Opens the overrides in etcd: what follows them, and what changes them.

    Args:
        settings: How etcd is reached, and where this machine keeps what it followed.
        tell: Called with the entries of what was turned off here while etcd did not answer, once it has them.
        options: For Follower: heartbeat and grace.
    """
    client, keys = EtcdClient(settings.etcd), Keys(settings.etcd.prefix)
    follower = Follower(settings.flags_state_dir, client, keys, **options)
    follower.look_first()
    store = EtcdStore(settings, client, keys, follower, tell)
    store.recover()
    return follower, store


class EtcdStore:
    """Overrides and audit in etcd (see FlagStore).

    A change is one transaction, made only if nobody else made one since the state was read; else it is computed anew.
    What turns flags off takes effect on this machine before etcd is asked.

    Args:
        settings: Where this machine keeps what it knows.
        client: Asks etcd.
        keys: The names of keys.
        feed: What this process has followed.
        tell: Called with each entry of a change that was written back.
    """

    look_again_s = 0.05

    def __init__(
        self,
        settings: FlagSettings,
        client: EtcdClient,
        keys: Keys,
        feed: Follower,
        tell: Callable[[AuditEntry], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._feed = feed
        self._tell = tell
        self._state_dir = settings.flags_state_dir
        self._copy = AuditCopy(feed.directory / AUDIT_FILE, feed.lock, client, keys)
        feed.chores.append(self._chores)

    def read(self) -> OverrideSet:
        """The overrides that stand, as far as this machine knows."""
        try:
            return self._feed.read().standing(time.time())
        except OverrideError as error:
            return error.known or OverrideSet()

    def commit(
        self,
        action: str,
        author: Author,
        edit: Edit,
        *,
        off_only: bool = False,
        detail: str = "",
        request: str = "",
    ) -> list[AuditEntry]:
        """Makes a change, alone (see FlagStore)."""
        pending = self._turn_off_here(action, author, edit) if off_only else None
        at = now() if pending is None else pending.at
        try:
            with self._alone():
                if pending is not None and pending not in self._feed.pending():
                    # another process of this machine wrote it back meanwhile
                    return self._entries_of(pending)
                self._write_back(but=pending)
                try:
                    patience = COMMIT_S if pending is None else OFF_S
                    made = self._commit(action, author, edit, at=at, patience=patience, detail=detail, request=request)
                except EtcdError:
                    raise
                except Exception:
                    # the change is none after all: somebody else's was before it
                    self._drop(pending)
                    raise
                self._drop(pending)
                return made
        except (EtcdError, OverrideError, TimeoutError) as error:
            if pending is not None:
                return self._pending_entries(pending)
            raise StoreError(self._refusal(error)) from None

    def note(
        self, author: Author, make: Callable[[], Sequence[Note]], done: Callable[[], None] = lambda: None
    ) -> list[AuditEntry]:
        """Notes something in the audit that changes no override (see FlagStore)."""
        try:
            with self._alone():
                notes = make()
                if author.via == "file":
                    # each machine has a flag file of its own
                    notes = [replace(note, detail=note.detail or f"on {socket.gethostname()}") for note in notes]
                made: list[AuditEntry] = []
                if notes:
                    self._write_back()
                    made = self._change(
                        lambda shared: (
                            shared.overrides,
                            noted(author, notes, shared.overrides.revision, shared.head),
                        )
                    )
                done()
                return made
        except (EtcdError, OverrideError, TimeoutError) as error:
            raise StoreError(self._refusal(error)) from None

    def lines(self) -> list[bytes]:
        """The lines of the audit, oldest first; those that this machine has where etcd does not answer."""
        try:
            with suppress(EtcdError, OverrideError):
                if self._feed.state.kind == "ready":
                    self._copy.update(read_flags(self._client, self._keys))
            return self._copy.lines()
        except OSError as error:
            raise StoreError(f"the audit cannot be read: {error.strerror or error}") from None

    def history(self) -> list[AuditEntry]:
        """The audit, oldest first (see `lines`)."""
        return list(entries(self.lines()))

    def processes(self) -> list[SeenProcess]:
        """The live processes of all machines; those of this one where etcd does not answer."""
        question = {
            "key": b64(self._keys.seen()),
            "range_end": b64(self._keys.seen_end),
            "serializable": True,
        }
        try:
            answer = self._client.call("kv/range", question)
        except EtcdError:
            return local_processes(self._state_dir)
        found, here = [], socket.gethostname()
        for pair in answer.get("kvs", []):
            with suppress(ValueError, KeyError, TypeError):
                seen = orjson.loads(unb64(pair["value"]))
                host = str(seen["host"])
                found.append(
                    SeenProcess(
                        int(seen["pid"]),
                        str(seen["service"]),
                        int(seen["revision"]),
                        dict(seen["pins"]),
                        "" if host == here else host,
                    )
                )
        return found

    def adopt(self, lines: Sequence[bytes], overrides: OverrideSet) -> int:
        """Takes over the audit and the overrides of another store; what is in etcd must be the beginning of it.

        Args:
            lines: All lines of the audit.
            overrides: The overrides.

        Returns:
            How many of the lines are new in etcd.

        Raises:
            StoreError: There is something else in etcd, or it could not be kept.
        """
        try:
            with self._alone():
                shared = read_flags(self._client, self._keys)
                here = b"".join(self._copy.fetched()).splitlines()
                if shared.lines > len(here) or list(lines[: len(here)]) != here:
                    where = self._keys.state.decode()
                    raise StoreError(f"etcd: {where} tells of other changes; take another etcd_prefix, or remove them")
                for start in range(len(here), len(lines), _ADOPTED_LINES):
                    block = b"".join(line + b"\n" for line in lines[start : start + _ADOPTED_LINES])
                    key = self._keys.audit(start + 1)
                    self._client.call("kv/txn", {"compare": [compared(key, 0)], "success": [put(key, block)]})
                if len(lines) > shared.lines or not shared.compared:
                    # the state comes last: until then nobody takes what there is for whole
                    self._adopt_state(shared, lines, overrides)
                return len(lines) - shared.lines
        except (EtcdError, OverrideError, TimeoutError) as error:
            raise StoreError(self._refusal(error)) from None

    def _adopt_state(self, shared: SharedFlags, lines: Sequence[bytes], overrides: OverrideSet) -> None:
        lasting, puts = self._lasting(shared, overrides)
        head = line_hash(lines[-1]) if lines else GENESIS
        after = replace(shared, overrides=overrides, lines=len(lines), head=head, lasting=MappingProxyType(lasting))
        transaction = {
            "compare": [compared(self._keys.state, shared.compared)],
            "success": [put(self._keys.state, after.state()), *puts],
        }
        if not self._client.call("kv/txn", transaction).get("succeeded"):
            raise StoreError("etcd: somebody changed flags there meanwhile; look which ones, and begin again")

    def recover(self) -> None:
        """Writes back what was turned off on this machine while etcd did not answer; quietly, as far as that goes."""
        if self._feed.state.kind == "ready":
            with suppress(EtcdError, OverrideError, OSError):
                self._write_back_if_idle()

    def turn(self, name: str) -> EtcdTurn:
        """The turn of one process of all machines.

        Args:
            name: What only one does.
        """
        return EtcdTurn(name, self._client, self._keys, self._feed.session)

    # --- changes ---

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The lock of this machine; what others do here is brought into line before etcd is asked."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._feed.lock("changes"))
            except TimeoutError:
                raise
            except OSError:
                pass  # where nothing can be written nothing waits to be written back either
            yield

    def _commit(
        self, action: str, author: Author, edit: Edit, *, at: str, patience: float = COMMIT_S, **more: str
    ) -> list[AuditEntry]:
        return self._change(
            lambda shared: applied(self._feed.standing(shared), action, author, edit, shared.head, at=at, **more),
            patience,
        )

    def _change(
        self, make: Callable[[SharedFlags], tuple[OverrideSet, list[AuditEntry]]], patience: float = COMMIT_S
    ) -> list[AuditEntry]:
        """Makes a change in one transaction, anew where somebody else was faster.

        Args:
            make: Computes the overrides and the entries from the state as it stands.
            patience: Seconds for which to ask.

        Raises:
            EtcdError: etcd did not answer, or said no.
            OverrideError: etcd has no state that could be changed.
        """
        ready = self._feed.state.kind == "ready"
        # an etcd that is known to be away is asked once more
        patience, limit = (patience, None) if ready else (0.0, AWAY_S)
        # what the watch told last is nearly always what stands: the transaction compares it
        shared, fresh = self._feed.shared if ready else None, False
        deadline = time.monotonic() + CONFLICTS_S
        while time.monotonic() < deadline:
            if shared is None:
                shared, fresh = read_flags(self._client, self._keys, patience=patience, limit=limit), True
            if fresh:
                # first: whoever hears of a conflict is told what stands now
                self._feed.take_over(shared)
            try:
                overrides, made = make(shared)
            except Exception:
                if fresh:
                    raise
                shared = None
                continue
            if not made:
                return []
            lasting, puts = self._lasting(shared, overrides)
            lines = b"".join(entry.to_line() for entry in made)
            after = replace(
                shared,
                overrides=overrides,
                lines=shared.lines + len(made),
                head=made[-1].hash,
                lasting=MappingProxyType(lasting),
            )
            key = self._keys.audit(shared.lines + 1)
            transaction = {
                "compare": [compared(self._keys.state, shared.compared), compared(key, 0)],
                "success": [put(self._keys.state, after.state()), put(key, lines), *puts],
                "failure": [
                    {"request_range": {"key": b64(self._keys.flags), "range_end": b64(self._keys.flags_end)}},
                    {"request_range": {"key": b64(key)}},
                ],
            }
            try:
                # a member that did not answer may have made it: then it is there when the next one is asked
                answer = self._client.call("kv/txn", transaction, patience=patience, limit=limit)
            except EtcdUnavailableError as error:
                raise _UnknownError(str(error)) from None
            header = answer["header"]
            if answer.get("succeeded"):
                written = int(header["revision"])
                after = replace(after, position=written, compared=written)
                self._feed.take_over(after, lambda lasting: lasting.seconds)
                self._feed.answered()
                with suppress(OSError):
                    self._copy.add(shared, lines)
                return made
            stands, there = (one["response_range"] for one in answer["responses"])
            before, shared, fresh = shared, flags_of(stands, self._keys, header), True
            if any(unb64(pair["value"]) == lines for pair in there.get("kvs", [])):
                self._feed.take_over(shared)
                return made  # by an attempt whose answer was lost
            if shared.compared == before.compared and there.get("kvs"):
                raise OverrideError(
                    "etcd has the beginning of an audit that was not finished: run jarvis flags migrate --to etcd again"
                )
        raise EtcdUnavailableError("others change flags all the time")

    def _lasting(
        self, shared: SharedFlags, overrides: OverrideSet
    ) -> tuple[Mapping[str, Lasting], list[dict[str, Any]]]:
        """How long overrides last after a change, and the parts of the transaction that see to it."""
        lasting, parts = dict(shared.lasting), []
        before = shared.overrides.overrides
        for flag_id, override in overrides.overrides.items():
            if override == before.get(flag_id):
                continue
            if override.expires_at is not None:
                seconds = max(override.expires_at - time.time(), 0.0)
                granted = self._client.call("lease/grant", {"TTL": str(max(1, math.ceil(seconds)))})
                lasting[flag_id] = Lasting(str(granted["ID"]), seconds)
                parts.append(put(self._keys.lasts(flag_id), str(seconds).encode(), lasting[flag_id].lease))
        for flag_id in shared.lasting:
            override_now = overrides.overrides.get(flag_id)
            if override_now is None or override_now.expires_at is None:
                del lasting[flag_id]
                parts.append(deleted(self._keys.lasts(flag_id)))
        return lasting, parts

    # --- off, whatever happens ---

    def _turn_off_here(self, action: str, author: Author, edit: Edit) -> Pending | None:
        """Turns flags off on this machine, before etcd is asked; None where it is not for this machine alone to do."""
        try:
            changes = edit(self.read())
        except Exception:
            # the edit looks again at what etcd has, and says then what is wrong
            return None
        at = now()
        overrides = {
            flag_id: replace(override, by=author.who, reason=author.reason, at=at)
            for flag_id, override in changes.items()
            if override is not None and override.state == "off"
        }
        if not overrides or len(overrides) != len(changes):
            return None
        pending = Pending(at, author.who, author.via, author.reason, action, overrides)
        try:
            self._feed.add_pending(pending)
        except (OSError, OverrideError):
            return None
        self._feed.tell()
        return pending

    def _pending_entries(self, pending: Pending) -> list[AuditEntry]:
        """What is told of flags that are off on this machine only."""
        known = self._feed.followed()
        before = {} if known is None else known.overrides.overrides
        revision = 0 if known is None else known.overrides.revision
        return [
            AuditEntry(
                at=pending.at,
                who=pending.who,
                via=pending.via,
                action=pending.action,
                flag=flag_id,
                old=before[flag_id].to_dict() if flag_id in before else None,
                new=override.to_dict(),
                reason=pending.reason,
                outcome="pending",
                revision=revision,
                detail=_PENDING_WORDS,
            )
            for flag_id, override in pending.overrides.items()
        ]

    def _entries_of(self, pending: Pending) -> list[AuditEntry]:
        """What the audit says of flags that were turned off here."""
        key = (pending.at, pending.who, pending.action)
        return [one for one in self.history() if (one.at, one.who, one.action) == key and one.outcome == "applied"]

    def _chores(self) -> None:
        """What a process does that follows etcd, now and then."""
        self._write_back_if_idle()
        shared = self._feed.shared
        if shared is not None:
            with suppress(OSError):
                self._copy.update(shared)

    def _write_back_if_idle(self) -> None:
        if self._feed.pending():
            with suppress(TimeoutError), self._feed.lock("changes", 0.0):
                self._write_back()

    def _write_back(self, but: Pending | None = None) -> None:
        """Brings what was turned off here into etcd, whatever was changed there meanwhile: off wins.

        Args:
            but: What its maker sees to.
        """
        for pending in self._feed.pending():
            if but is not None and (pending.at, pending.who) == (but.at, but.who):
                continue
            self._copy_now()
            if not self._entries_of(pending):
                for entry in self._commit(
                    pending.action,
                    Author(pending.who, pending.via, pending.reason),
                    _off_again(pending),
                    at=pending.at,
                    detail=f"made on {socket.gethostname()} while etcd did not answer; written back at {now()}",
                ):
                    self._tell(entry)
            self._drop(pending)

    def _copy_now(self) -> None:
        with suppress(OSError):
            self._copy.update(read_flags(self._client, self._keys))

    def _drop(self, pending: Pending | None) -> None:
        if pending is not None:
            with suppress(OSError, OverrideError):
                self._feed.drop_pending(pending)
            self._feed.tell()

    def _refusal(self, error: Exception) -> str:
        if isinstance(error, _UnknownError):
            return (
                f"etcd does not answer: {error}; whether the change was made is not known: "
                "jarvis flags history tells once it answers"
            )
        if isinstance(error, EtcdUnavailableError):
            return (
                f"etcd does not answer: {error}; nothing was changed, and can be until it answers; "
                "turning off works on this machine: jarvis flags disable FLAG"
            )
        return f"{error}; nothing was changed"


class _UnknownError(EtcdUnavailableError):
    """A transaction was asked for, and nobody said whether it was made."""


def _off_again(pending: Pending) -> Edit:
    def edit(state: OverrideSet) -> Mapping[str, Override | None]:
        def off(flag_id: str, override: Override) -> Override:
            now_set = state.overrides.get(flag_id)
            return override if now_set is None else replace(override, percentage=now_set.percentage)

        return {flag_id: off(flag_id, override) for flag_id, override in pending.overrides.items()}

    return edit
