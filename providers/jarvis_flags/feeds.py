"""Where the overrides of a process come from: a file of this machine, or what this machine has followed of etcd."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import orjson

from jarvis_flags.files import make_directory, write_file
from jarvis_flags.locking import LOCK_WAIT_S, held
from jarvis_flags.overrides import (
    OVERRIDES_FILE,
    Override,
    OverrideError,
    OverrideSet,
    read_overrides,
)
from jarvis_flags.slots import Slots

__all__ = ["FileFeed", "Followed", "FollowedFeed", "OverrideFeed", "Pending", "StoreState"]

_STATE_FILE = "state.json"
_PENDING_FILE = "pending.json"
_KEEP_S = 1.0


@dataclass(frozen=True, slots=True)
class StoreState:
    """Whether what keeps the overrides of many machines answers.

    Attributes:
        kind: `ready`; `stale` where it has missed a heartbeat; `error` where it has not answered for long.
        message: What is wrong, in one line; empty where nothing is.
    """

    kind: str = "ready"
    message: str = ""


class OverrideFeed(Protocol):
    """Gives a process its overrides.

    Attributes:
        reports: Whether `report` reaches whoever wants to know; else they look at the files of this machine.
    """

    reports: bool

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files whose change is news."""
        ...

    @property
    def state(self) -> StoreState:
        """Whether the store behind it answers."""
        ...

    def read(self) -> OverrideSet:
        """The overrides as this process knows them; asks no network.

        Raises:
            OverrideError: They are not known, or cannot be trusted.
        """
        ...

    def start(self, changed: Callable[[], None]) -> None:
        """Begins to follow the store.

        Args:
            changed: Called after each change of the overrides or of the state, in the thread that noticed it.
        """
        ...

    def report(self, seen: Mapping[str, Any]) -> None:
        """Tells the other machines what this process has applied.

        Args:
            seen: The document; see FileSource.
        """
        ...

    def close(self) -> None:
        """Ends following; what was read last stays."""
        ...

    def after_fork(self) -> None:
        """In a forked child: locks are free, threads and connections its own."""
        ...


class FileFeed:
    """The overrides of one machine.

    Args:
        state_dir: The directory, usually var/flags.
    """

    state = StoreState()
    reports = False

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir
        self.paths: tuple[Path, ...] = (state_dir / OVERRIDES_FILE,)

    def read(self) -> OverrideSet:
        """The overrides as the file has them (see OverrideFeed)."""
        return read_overrides(self._dir)

    def start(self, changed: Callable[[], None]) -> None:
        """The file is watched by whoever reads it."""

    def report(self, seen: Mapping[str, Any]) -> None:
        """Processes of this machine look under seen/."""

    def close(self) -> None:
        """There is nothing to end."""

    def after_fork(self) -> None:
        """There is nothing that is a process's own."""


@dataclass(frozen=True, slots=True)
class Followed:
    """The overrides as etcd had them at one moment.

    Attributes:
        cluster: Which etcd.
        position: The revision of that etcd, which orders what is followed.
        overrides: The overrides that stood.
        restored: How often its revision went back, as when an older backup is restored.
    """

    cluster: str
    position: int
    overrides: OverrideSet
    restored: int = 0

    def is_after(self, other: Followed) -> bool:
        """Whether it is newer than another of the same etcd."""
        return (self.restored, self.position) > (other.restored, other.position)

    def to_bytes(self) -> bytes:
        """As it is kept on disk."""
        values = {
            flag_id: {**override.to_dict(), **({} if override.lapses is None else {"lapses_at": override.lapses})}
            for flag_id, override in self.overrides.overrides.items()
        }
        document = {"format": 1, "cluster": self.cluster, "position": self.position, "restored": self.restored}
        return orjson.dumps({**document, "revision": self.overrides.revision, "overrides": values})

    @classmethod
    def from_bytes(cls, content: bytes) -> Followed:
        """Reads what `to_bytes` wrote.

        Raises:
            OverrideError: It is something else.
        """
        overrides = OverrideSet.from_bytes(content)
        document = orjson.loads(content)
        cluster, position, restored = (document.get(name) for name in ("cluster", "position", "restored"))
        if not isinstance(cluster, str) or not isinstance(position, int) or not isinstance(restored, int):
            raise OverrideError("want `cluster`, `position` and `restored`")
        lapsing = {
            flag_id: replace(override, lapses_at=document["overrides"][flag_id].get("lapses_at"))
            for flag_id, override in overrides.overrides.items()
        }
        return cls(cluster, position, OverrideSet(overrides.revision, MappingProxyType(lapsing)), restored)


@dataclass(frozen=True, slots=True)
class Pending:
    """Flags that were turned off on this machine while etcd did not answer, or had not answered yet.

    Attributes:
        at: When, in ISO 8601 with microseconds; with `who` it tells one from another.
        who, via, reason: Who did it, from where and why.
        action: What it is called in the audit.
        overrides: The overrides by flag id; each is off.
    """

    at: str
    who: str
    via: str
    reason: str
    action: str
    overrides: Mapping[str, Override]


class FollowedFeed:
    """What this machine has followed of etcd: kept on disk for the next start, with what was turned off here over it.

    It asks no network: somebody else gives it what etcd says. Any number of processes may use the directory.

    Args:
        state_dir: The directory, usually var/flags; it uses etcd/ in it.
    """

    reports = False

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir / "etcd"
        self._slots = Slots(self.directory / _STATE_FILE)
        self._pending_file = self.directory / _PENDING_FILE
        self.paths: tuple[Path, ...] = (*self._slots.paths, self._pending_file)
        self.state = StoreState()
        self._lock = threading.Lock()
        self._newest: Followed | None = None
        self._fresh = False
        self._unkept = False
        self._kept: tuple[bytes | None, Followed | None] = (None, None)

    def lock(self, name: str, wait: float = LOCK_WAIT_S) -> AbstractContextManager[None]:
        """A lock that the processes of this machine share; see locking.held.

        Args:
            name: What it protects.
            wait: Seconds to wait at most.

        Raises:
            OSError: It cannot be made.
        """
        # not beside what is watched: each use would wake every process
        locks = self.directory / "locks"
        make_directory(locks)
        return held(locks / name, wait)

    def read(self) -> OverrideSet:
        """The overrides as this process knows them (see OverrideFeed)."""
        followed = self.followed()
        known = OverrideSet() if followed is None else followed.overrides
        try:
            pending = self.pending()
        except OverrideError as error:
            raise OverrideError(str(error), known) from None
        overrides = dict(known.overrides)
        for change in pending:
            overrides.update(change.overrides)
        known = OverrideSet(known.revision, MappingProxyType(overrides))
        if followed is None:
            # what was turned off here holds, but says nothing of the other flags
            raise OverrideError(f"{self.directory}: this machine knows nothing of the flags in etcd yet", known)
        return known

    def followed(self) -> Followed | None:
        """What etcd said last, as far as this process knows; None where it never did."""
        kept = self._read_kept()
        with self._lock:
            if kept is not None and self._is_news(kept):
                self._newest = kept
            return self._newest

    def known(self) -> Followed | None:
        """What etcd said last, without a look at what other processes of this machine know by now."""
        return self._newest or self.followed()

    def put(self, news: Followed) -> bool:
        """Takes over what etcd says, on disk first, unless something newer is known.

        Args:
            news: What it says.

        Returns:
            Whether it was news.
        """
        self.known()
        with self._lock:
            # who asks etcd knows which one it is, a file may be of another
            if self._fresh and not self._is_news(news):
                return False
            known, self._fresh = self._newest, True
        if self._unkept or known is None or (known.cluster, known.overrides) != (news.cluster, news.overrides):
            self._keep(news)
        with self._lock:
            known = self._newest
            if known is not None and known.cluster == news.cluster and known.is_after(news):
                return False
            self._newest = news
            return True

    def _is_news(self, news: Followed) -> bool:
        known = self._newest
        if known is None:
            return True
        if known.cluster != news.cluster:
            return not self._fresh
        return news.is_after(known)

    def _keep(self, news: Followed) -> None:
        """Writes it down, unless another process wrote something newer; evaluation goes on without a disk too."""
        self._unkept = True
        deadline = time.monotonic() + _KEEP_S
        with contextlib.suppress(OSError):
            while not (done := self._is_kept(news)) and time.monotonic() < deadline:
                try:
                    with self.lock("kept", 0.0):
                        if not self._is_kept(news):
                            self._slots.write(news.to_bytes())
                except TimeoutError:
                    time.sleep(0.002)  # another process writes, most likely the same
            self._unkept = not done

    def _is_kept(self, news: Followed) -> bool:
        kept = self._read_kept()
        return kept is not None and kept.cluster == news.cluster and not news.is_after(kept)

    def _read_kept(self) -> Followed | None:
        """What is on disk; None where that is nothing that can be used."""
        content, (known, kept) = self._slots.read(), self._kept
        if content is None or content == known:
            return None if content is None else kept
        try:
            kept = Followed.from_bytes(content)
        except OverrideError:
            kept = None
        self._kept = (content, kept)
        return kept

    def sync(self) -> None:
        """Waits until what this process wrote down is safe from a loss of power; quietly, as far as that goes."""
        with contextlib.suppress(OSError):
            self._slots.sync()

    # --- what was turned off here ---

    def pending(self) -> list[Pending]:
        """What was turned off on this machine and is not in etcd yet, oldest first.

        Raises:
            OverrideError: There is something that cannot be read.
        """
        try:
            return [
                Pending(
                    **{name: str(one[name]) for name in ("at", "who", "via", "reason", "action")},
                    overrides={flag_id: Override.from_dict(values) for flag_id, values in one["overrides"].items()},
                )
                for one in orjson.loads(self._pending_file.read_bytes())
            ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OverrideError(f"{self._pending_file}: cannot be used: {error}") from None

    def add_pending(self, change: Pending) -> None:
        """Turns flags off on this machine, durably; all its processes see it at once.

        Raises:
            OSError: It cannot be written.
        """
        with self.lock("kept"):
            self._write_pending([*self.pending(), change])

    def drop_pending(self, change: Pending) -> None:
        """Forgets one that is in etcd by now.

        Raises:
            OSError: It cannot be written.
        """
        with self.lock("kept"):
            key = (change.at, change.who)
            self._write_pending([one for one in self.pending() if (one.at, one.who) != key])

    def _write_pending(self, changes: list[Pending]) -> None:
        if not changes:
            self._pending_file.unlink(missing_ok=True)
            return
        document = [
            {
                **{name: getattr(one, name) for name in ("at", "who", "via", "reason", "action")},
                "overrides": {flag_id: override.to_dict() for flag_id, override in one.overrides.items()},
            }
            for one in changes
        ]
        write_file(self._pending_file, orjson.dumps(document))

    # --- a process that follows nothing itself ---

    def start(self, changed: Callable[[], None]) -> None:
        """Another process of this machine follows; its files are watched by whoever reads them."""

    def report(self, seen: Mapping[str, Any]) -> None:
        """There is nobody to tell."""

    def close(self) -> None:
        """There is nothing to end."""

    def after_fork(self) -> None:
        """In the child: locks that another thread of the parent held are free."""
        self._lock = threading.Lock()
