"""Follows the flags in etcd: by a watch, and by looking at their revision every few seconds in any case."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jarvis_flags.feeds import Followed, FollowedFeed, StoreState
from jarvis_flags.overrides import OverrideError, OverrideSet
from jarvis_otel.etcd.client import EtcdClient, EtcdError, EtcdUnavailableError, WatchStream, b64
from jarvis_otel.etcd.keys import Keys, Lasting, SharedFlags, read_flags, remaining
from jarvis_otel.etcd.session import Session

__all__ = ["Follower"]

HEARTBEAT_S = 3.0
GRACE_S = 60.0
FIRST_S = 1.0
_RETRY_S = 1.0
_BEHIND_S = 1.0
_REPORT_S = 1.0
_SPREAD_S = 0.1
_PAUSES_S = (0.05, 2.0)
_STOP_S = 3.0

_logger = logging.getLogger("jarvis_flags")


class Follower(FollowedFeed):
    """The overrides of a process that follows etcd itself.

    Args:
        state_dir: Where what was followed is kept, usually var/flags.
        client: Asks etcd.
        keys: The names of keys.
        heartbeat: Seconds between two looks at the revision; one that fails makes the flags stale.
        grace: Seconds without an answer after which that is an error.
    """

    reports = True

    def __init__(
        self,
        state_dir: Path,
        client: EtcdClient,
        keys: Keys,
        *,
        heartbeat: float = HEARTBEAT_S,
        grace: float = GRACE_S,
    ) -> None:
        super().__init__(state_dir)
        self._client = client
        self._keys = keys
        self._heartbeat = heartbeat
        self._grace = grace
        self.session = Session(client, keys)
        self.chores: list[Callable[[], object]] = []
        """What else is to be done after each look; an EtcdError counts as one that failed."""
        self._changed: Callable[[], None] | None = None
        self._shared: SharedFlags | None = None
        self._answered = time.monotonic()
        self._seen: Mapping[str, Any] | None = None
        self._renew()

    def _renew(self) -> None:
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._applying = threading.Lock()
        self._stream: WatchStream | None = None
        self._threads: list[threading.Thread] = []

    # --- the feed ---

    def start(self, changed: Callable[[], None]) -> None:
        """Begins to follow, in two threads (see OverrideFeed)."""
        self._changed = changed
        self._begin()

    def _begin(self) -> None:
        for target, name in ((self._follow, "watch"), (self._beat, "heartbeat")):
            thread = threading.Thread(target=target, name=f"jarvis-etcd-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def report(self, seen: Mapping[str, Any]) -> None:
        """Tells the other machines what this process has applied, soon (see OverrideFeed)."""
        self._seen = seen
        self._woken.set()

    def close(self) -> None:
        """Ends following; what was followed last stays."""
        self._stopping.set()
        self._woken.set()
        if self._threads:
            self._client.end()
        if (stream := self._stream) is not None:
            stream.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_STOP_S)
        self._client.close()
        if self._threads and self.state.kind == "ready":
            self.session.close()
            self._client.close()
        self._threads.clear()

    def after_fork(self) -> None:
        """In the child: threads, lease and connections are its own."""
        super().after_fork()
        running = bool(self._threads) and not self._stopping.is_set()
        self._renew()
        self.session.after_fork()
        if running:
            self._begin()

    def tell(self) -> None:
        """Has the process look at its overrides."""
        if self._changed is not None:
            self._changed()

    # --- following ---

    @property
    def shared(self) -> SharedFlags | None:
        """What the watch told of last."""
        return self._shared

    def look(self, *, limit: float | None = None) -> SharedFlags:
        """Reads the overrides from etcd, and takes them over.

        Args:
            limit: Seconds that it may take at most.

        Raises:
            EtcdError: They cannot be had.
            OverrideError: They cannot be used.
        """
        before = self.known()
        shared = read_flags(self._client, self._keys, limit=limit)
        # all members agreed on the answer, so it is not older than what was known, unless etcd itself is
        restored = before is not None and before.cluster == shared.cluster and shared.position < before.position
        self.take_over(shared, restored=restored)
        return shared

    def look_first(self) -> None:
        """Reads the overrides before anything is evaluated; where etcd does not answer, what is on disk stands."""
        try:
            # nobody waits long for an etcd that is away, unless nothing is known without it
            self.look(limit=None if self.known() is None else FIRST_S)
        except (EtcdError, OverrideError) as error:
            self.state = self._lost(error, "stale")

    def take_over(
        self, shared: SharedFlags, left: Callable[[Lasting], float | None] | None = None, *, restored: bool = False
    ) -> None:
        """Takes overrides over that etcd gave, unless something newer is known.

        Args:
            shared: The overrides.
            left: Seconds that a lease has left; etcd is asked if None.
            restored: Whether etcd went back to an older state since the last look.

        Raises:
            OverrideError: They are gone from etcd.
        """
        known = self.known()
        self.check(shared, restored=restored)
        same = known is not None and shared.cluster == known.cluster
        older = known is not None and shared.overrides.revision < known.overrides.revision
        if known is not None and older and (restored or not same or shared.position > known.position):
            _logger.warning(
                "etcd has the flags of revision %d, this machine knew %d: was a backup restored? "
                "what was turned off since then is on again",
                shared.overrides.revision,
                known.overrides.revision,
            )
        overrides = self._on_this_clock(shared, known, left)
        times = (known.restored if known is not None and same else 0) + restored
        if self.put(Followed(shared.cluster, shared.position, overrides, times)):
            self.tell()

    def standing(self, shared: SharedFlags) -> OverrideSet:
        """The overrides that stand now, of those that etcd gave."""
        return self._on_this_clock(shared, self.known(), None).standing(time.time())

    def _on_this_clock(
        self, shared: SharedFlags, known: Followed | None, left: Callable[[Lasting], float | None] | None
    ) -> OverrideSet:
        before = None if known is None else known.overrides
        ask = left or (lambda lasting: remaining(self._client, lasting))
        return shared.on_this_clock(before, time.time(), ask)

    def check(self, shared: SharedFlags, *, restored: bool = False) -> None:
        """Makes sure that etcd has flags where this machine knows of some: a kill switch is not lifted by their loss.

        Args:
            shared: What etcd has.
            restored: Whether etcd went back to an older state.

        Raises:
            OverrideError: It has none.
        """
        known = self.known()
        if shared.compared or known is None or known.overrides.revision == 0:
            return
        if restored or shared.cluster != known.cluster or shared.position >= known.position:
            raise OverrideError(
                f"etcd has no flags under {self._keys.state.decode()}, but this machine knows those of revision "
                f"{known.overrides.revision}: restore a backup of etcd, or remove {self.directory} to begin anew"
            )

    def _follow(self) -> None:
        """The thread of the watch."""
        pause = _PAUSES_S[0]
        while not self._stopping.is_set():
            try:
                if self._shared is None:
                    self._shared = self.look()
                if self._watch(self._shared.position + 1):
                    pause = _PAUSES_S[0]
            except EtcdError:
                pass  # the heartbeat tells of it
            except OverrideError as error:
                self._shared = None
                self._missed(error)
            except Exception:
                # whatever etcd may hold, the thread goes on and the last overrides stand
                _logger.exception("the flags in etcd could not be followed")
                self._shared = None
            self._stopping.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - to come apart, not to be secret
            pause = min(2 * pause, _PAUSES_S[1])

    def _watch(self, revision: int) -> bool:
        """Follows until the watch ends; whether it had begun."""
        begun = False
        with self._client.watch(self._keys.flags, self._keys.flags_end, revision) as stream:
            self._stream = stream
            try:
                if self._stopping.is_set():
                    return begun
                for result in stream:
                    if result.get("canceled"):
                        if "compact_revision" in result:
                            self._shared = None  # what was missed is gone: look anew
                        return begun
                    begun = True
                    self._apply(result.get("events", ()))
            except EtcdUnavailableError:
                if not begun:
                    raise
            finally:
                self._stream = None
        return begun

    def _apply(self, events: Any) -> None:
        """Takes over what a watch tells of, one revision of etcd after the other."""
        for revision, together in itertools.groupby(events, lambda event: int(event["kv"]["mod_revision"])):
            with self._applying:
                shared = self._shared
                if shared is None or revision <= shared.position:
                    continue
                for event in together:
                    shared = shared.with_event(event, self._keys, revision)
                self._shared = shared
            self.take_over(shared)

    # --- the heartbeat ---

    def _beat(self) -> None:
        """The thread of the heartbeat."""
        due = report = told = 0.0
        unreported = None
        while not self._stopping.is_set():
            now = time.monotonic()
            wake = due if unreported is None else min(due, report)
            if self._woken.wait(max(0.0, wake - now)):
                self._woken.clear()
            if self._stopping.is_set():
                return
            seen, self._seen = self._seen, None
            now = time.monotonic()
            if seen is not None:
                if unreported is None:
                    # many changes in a row are reported once a second, and by many processes not all at once: else
                    # those reports would be most of what etcd does
                    report = max(told + _REPORT_S, now + random.uniform(0, _SPREAD_S))  # noqa: S311 - to come apart
                unreported = seen
            try:
                if unreported is not None and now >= report:
                    told, report = now, now + _REPORT_S
                    self.session.report(unreported)
                    unreported = None
                if now >= due:
                    due = now + self._heartbeat * random.uniform(0.9, 1.1)  # noqa: S311 - to come apart
                    self._look_again()
                    self.answered()
            except (EtcdError, OverrideError) as error:
                due = min(due, time.monotonic() + _RETRY_S)
                self._missed(error)
            except Exception:
                # this thread is what notices that all is well again
                _logger.exception("the heartbeat of the flags in etcd failed")

    def _look_again(self) -> None:
        """Makes sure that the watch missed nothing: it may be that of a peer which is gone."""
        question = {"key": b64(self._keys.state), "keys_only": True}
        pairs = self._client.call("kv/range", question).get("kvs", [])
        written = int(pairs[0]["mod_revision"]) if pairs else 0
        if not pairs:
            self.look()  # nothing was ever changed, or all is gone
        if self._is_elsewhere(written) and not self._stopping.wait(_BEHIND_S) and self._is_elsewhere(written):
            self._catch_up()
        self.session.keep()
        self._end_lapsed()
        self.sync()
        for chore in self.chores:
            chore()

    def _catch_up(self) -> None:
        """Looks itself, and begins the watch anew where that was not where etcd is."""
        shared = self.look()
        with self._applying:
            if self._shared is None or self._shared.compared == shared.compared:
                return
            self._shared = shared
        if (stream := self._stream) is not None:
            self._client.move_on(stream.endpoint)
            stream.stop()

    def _is_elsewhere(self, written: int) -> bool:
        """Whether the watch is not where etcd is: behind it, or ahead of one that was restored."""
        shared = self._shared
        return shared is not None and shared.compared != written

    def _end_lapsed(self) -> None:
        """Ends leases that are over by what was set: a new leader of etcd gives them their full time again."""
        shared, known = self._shared, self.known()
        if shared is None or known is None:
            return
        now = time.time()
        for flag_id, lasting in shared.lasting.items():
            override = known.overrides.overrides.get(flag_id)
            if override is not None and override.lapses is not None and override.lapses <= now:
                with suppress(EtcdError):
                    self._client.call("lease/revoke", {"ID": lasting.lease})

    def answered(self) -> None:
        """Notes that etcd answers."""
        self._answered = time.monotonic()
        if self.state.kind != "ready":
            self.state = StoreState()
            self.tell()

    def _missed(self, error: Exception) -> None:
        if self._stopping.is_set():
            return
        kind = "error" if time.monotonic() - self._answered > self._grace else "stale"
        if kind != self.state.kind:
            self.state = self._lost(error, kind)
            self.tell()

    def _lost(self, error: Exception, kind: str) -> StoreState:
        words = str(error) if isinstance(error, OverrideError) else f"etcd does not answer: {error}"
        long = f", for more than {self._grace:g} s" if kind == "error" else ""
        return StoreState(
            kind,
            f"{words}{long}; flags are as they were, changes are refused, and turning off works on this machine only",
        )
