"""Where flags come from: files that are watched, or memory; each holds the current snapshot."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import orjson

from jarvis_flags.evaluate import read_pin
from jarvis_flags.feeds import FileFeed, FollowedFeed, OverrideFeed
from jarvis_flags.files import make_directory, write_file
from jarvis_flags.local import merge_local
from jarvis_flags.model import FlagDefinition
from jarvis_flags.overrides import OverrideError, OverrideSet
from jarvis_flags.parse import FlagSet, Segment, parse_flag, parse_flags, pin_name
from jarvis_flags.place import Problem
from jarvis_flags.reread import Reading, read_again, reading_of
from jarvis_flags.settings import FlagSettings
from jarvis_flags.snapshot import Snapshot, build_snapshot, changed_flags
from jarvis_flags.tree import BYTES_MAX, TreeError, load_tree, plain
from jarvis_flags.watch import Watcher

__all__ = ["Change", "FileSource", "FlagSource", "MemorySource", "Subscriber", "process_start"]

LAST_GOOD_FILE = "last_good.json"

_MISSING = "there is no such file"
_TOLD_MAX = 20

_logger = logging.getLogger("jarvis_flags")


@dataclass(frozen=True, slots=True)
class Change:
    """One snapshot followed another.

    Attributes:
        old, new: The snapshots.
        flags: Ids of the flags that may give something else now, sorted.
    """

    old: Snapshot
    new: Snapshot
    flags: tuple[str, ...]


Subscriber = Callable[[Change], None]


class FlagSource(Protocol):
    """Holds the current snapshot; reading it is one attribute load."""

    snapshot: Snapshot

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Has a function called after each change, in the thread that made it; returns what ends that."""
        ...

    def reload(self) -> Snapshot:
        """Looks at the source at once."""
        ...

    def close(self) -> None:
        """Ends watching; the last snapshot stays."""
        ...


class _Subscribers:
    """Who wants to hear of changes, and hears of each in the order in which they were made."""

    def __init__(self) -> None:
        self._all: tuple[Subscriber, ...] = ()
        self._untold: deque[Change] = deque()
        self._telling = threading.Lock()

    def add(self, subscriber: Subscriber) -> Callable[[], None]:
        self._all = (*self._all, subscriber)

        def cancel() -> None:
            self._all = tuple(other for other in self._all if other is not subscriber)

        return cancel

    def add_change(self, change: Change) -> None:
        """Notes a change; called under the lock under which it was made."""
        self._untold.append(change)

    def tell(self) -> None:
        """Tells of what was noted, unless another thread is at it and so goes on with it."""
        while self._untold and self._telling.acquire(blocking=False):
            try:
                while self._untold:
                    self._tell(self._untold.popleft())
            finally:
                self._telling.release()

    def _tell(self, change: Change) -> None:
        for subscriber in self._all:
            try:
                subscriber(change)
            except Exception:
                # a subscriber of the application must not stop the reload of its flags
                _logger.exception("a subscriber to flag changes raised")

    def after_fork(self) -> None:
        """In the child: what the parent's thread was telling is told there."""
        self._untold.clear()
        self._telling = threading.Lock()


class MemorySource:
    """Flags that are in no file: for tests, and for a FeatureFlagManager without one.

    Args:
        definitions: The flags, by id.
        settings: Environment and pins; those of no environment at all if None.
    """

    def __init__(
        self, definitions: Mapping[str, FlagDefinition] | None = None, settings: FlagSettings | None = None
    ) -> None:
        self._subscribers = _Subscribers()
        self._settings = settings
        self._lock = threading.Lock()
        self.snapshot = self._build(dict(definitions or {}), {}, OverrideSet(), None)

    def _build(
        self,
        definitions: Mapping[str, FlagDefinition],
        segments: Mapping[str, Segment],
        overrides: OverrideSet,
        previous: Snapshot | None,
    ) -> Snapshot:
        settings = self._settings
        content = {flag_id: definition.to_dict() for flag_id, definition in definitions.items()}
        return build_snapshot(
            FlagSet(MappingProxyType(dict(definitions)), {}, segments),
            previous=previous,
            overrides=overrides,
            pins=settings.pins if settings else MappingProxyType({}),
            environment=(settings and (settings.environment or settings.resource_environment)) or "prod",
            flag_set_id="memory",
            version=_version(orjson.dumps(plain(content)), overrides.to_bytes()),
            loaded_at=time.time(),
        )

    def put(self, definition: FlagDefinition) -> None:
        """Adds a flag, or replaces the one of its id.

        Raises:
            ValueError: Something is wrong with the definition.
        """
        with self._lock:
            checked = parse_flag(definition.id, definition.to_dict(), self.snapshot.segments)
            assert checked is not None
            for other in checked.requires:
                if other not in self.snapshot.definitions:
                    raise ValueError(f"{definition.id}.requires: unknown flag {other!r}")
            definitions = {**self.snapshot.definitions, definition.id: checked}
            self._swap(definitions, self.snapshot.segments, self.snapshot.overrides)
        self._subscribers.tell()

    def replace(self, flags: FlagSet) -> None:
        """Takes over the flags of a file instead of its own."""
        with self._lock:
            self._swap(flags.flags, flags.segments, self.snapshot.overrides)
        self._subscribers.tell()

    def set_overrides(self, overrides: OverrideSet) -> None:
        """Replaces the run-time overrides."""
        with self._lock:
            self._swap(self.snapshot.definitions, self.snapshot.segments, overrides)
        self._subscribers.tell()

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Has a function called after each change; returns what ends that."""
        return self._subscribers.add(subscriber)

    def reload(self) -> Snapshot:
        """There is nothing to look at."""
        return self.snapshot

    def close(self) -> None:
        """There is nothing to end."""

    def _swap(
        self, definitions: Mapping[str, FlagDefinition], segments: Mapping[str, Segment], overrides: OverrideSet
    ) -> None:
        old = self.snapshot
        self.snapshot = new = self._build(definitions, segments, overrides, old)
        self._subscribers.add_change(Change(old, new, tuple(changed_flags(old, new))))


class FileSource:
    """Flags out of a YAML file, with the local file over it, the overrides and the pins.

    The files are read when it is made; with `watch` a thread then follows them. A file that cannot be read at all
    changes nothing; a bad flag in it keeps its last good definition (see `snapshot.build_snapshot`).

    Args:
        settings: Where the files are.
        watch: Follow changes.
        service: What this process is called in `seen/<pid>.json`; None leaves no such file.
        feed: Where the overrides come from; what the settings say, without asking a network, if None. It is closed
            with the source.
    """

    def __init__(
        self,
        settings: FlagSettings,
        *,
        watch: bool = False,
        service: str | None = None,
        feed: OverrideFeed | None = None,
    ) -> None:
        self.settings = settings
        state_dir = settings.flags_state_dir
        self._feed = feed or (FollowedFeed(state_dir) if settings.store == "etcd" else FileFeed(state_dir))
        self._service = service
        self._subscribers = _Subscribers()
        self._lock = threading.Lock()
        self._told: frozenset[str] = frozenset()
        self._parsed_hash = ""
        self._parsed = FlagSet({}, {}, {})
        self._reading: Reading | None = None
        self._written: dict[str, tuple[FlagDefinition, Any]] = {}
        self._last_good: dict[str, Any] = {}
        self._saved_good = b""
        self._seen: tuple[int, str, int] | None = None
        local = settings.flags_file
        self._local_file = local.with_name(f"{local.stem}.local{local.suffix}")
        self._watcher = Watcher(
            (settings.flags_file, self._local_file, *self._feed.paths),
            self._follow,
            due=self._until_lapse,
            forked=self._renew,
        )
        self.snapshot = Snapshot(definitions=MappingProxyType({}))
        self.snapshot = self._load(None)
        self._save_last_good(self.snapshot)
        self._tell_problems(self.snapshot)
        if watch:
            self._watcher.start()
            self._feed.start(self._fed)
            if service is not None:
                self._watcher.poke()
            atexit.register(_close, weakref.ref(self))

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Has a function called after each change, in the thread that noticed it; returns what ends that."""
        return self._subscribers.add(subscriber)

    def reload(self) -> Snapshot:
        """Looks at the files at once."""
        with self._lock:
            old = self.snapshot
            new = self._load(old)
            if _same(old, new):
                return old
            self.snapshot = new
            self._subscribers.add_change(Change(old, new, tuple(changed_flags(old, new))))
            self._save_last_good(new)
        self._tell_problems(new)
        self._subscribers.tell()
        return new

    @property
    def content_hash(self) -> str:
        """A hash of the flag files' content that the definitions come from; empty where none could be used."""
        return self._parsed_hash

    def is_current(self) -> bool:
        """Whether the flag files still have that content; False where they cannot be read, as while one is written."""
        content, unreadable = self._read(self.settings.flags_file)
        local, _ = self._read(self._local_file)
        return unreadable is None and _content_hash(content, local) == self._parsed_hash

    def close(self) -> None:
        """Ends watching; the last snapshot stays."""
        self._feed.close()
        self._watcher.stop()
        if self._service is not None:
            with contextlib.suppress(OSError):
                self._seen_file().unlink(missing_ok=True)

    def _follow(self) -> None:
        try:
            self.reload()
        except Exception:
            # whatever a file may hold, the thread goes on and the last snapshot stands
            _logger.exception("the flags could not be reloaded")
        self._write_seen()

    def _fed(self) -> None:
        """In the feed's thread: the new flags at once, and all else in the watcher's."""
        try:
            self.reload()
        except Exception:
            _logger.exception("the flags could not be reloaded")
        self._watcher.poke()

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._subscribers.after_fork()
        self._feed.after_fork()
        self._watcher.poke()

    def _until_lapse(self) -> float | None:
        moments = [o.lapses for o in self.snapshot.overrides.overrides.values() if o.lapses is not None]
        ahead = [moment - time.time() for moment in moments if moment > self.snapshot.loaded_at]
        return min(ahead, default=None)

    def _load(self, previous: Snapshot | None) -> Snapshot:
        settings = self.settings
        problems: list[Problem] = []
        content, unreadable = self._read(settings.flags_file)
        local, _ = self._read(self._local_file)
        if unreadable is not None:
            problems.append(unreadable)
        digest = _content_hash(content, local)
        if unreadable is None and digest != self._parsed_hash:
            parsed = self._parse(content or b"", local, problems)
            if parsed is not None:
                self._parsed, self._parsed_hash = parsed, digest
        broken_file = bool(problems)
        overrides, overrides_broken = OverrideSet(), None
        try:
            overrides = self._feed.read().standing(time.time())
        except OverrideError as error:
            overrides_broken = str(error)
            problems.append(Problem(str(self._feed.paths[0]), 0, "", f"{error}; every dangerous flag is off"))
            if error.known is not None:
                overrides = error.known.standing(time.time())
            elif previous is not None:
                overrides = previous.overrides
        store = self._feed.state
        if store.message:
            problems.append(Problem(settings.store, 0, "", store.message))
        flags = self._parsed
        if broken_file and not self._parsed_hash:
            flags = self._last_known()
        if flags.bad and not self._last_good:
            self._last_good = self._read_last_good()
        last_good = self._definitions(self._last_good, set(flags.bad))
        environment = settings.environment or settings.resource_environment or flags.environment or "prod"
        version = _version(
            self._parsed_hash.encode(),
            overrides.to_bytes(),
            repr(sorted(settings.pins.items())).encode(),
            environment.encode("utf-8", "backslashreplace"),
        )
        return build_snapshot(
            FlagSet(flags.flags, flags.bad, flags.segments, flags.environment, (*flags.problems, *problems)),
            last_good=last_good,
            previous=previous,
            overrides=overrides,
            overrides_broken=overrides_broken,
            pins=settings.pins,
            environment=environment,
            flag_set_id=settings.flags_file.name,
            version=version,
            local_file=None if local is None else self._shown(self._local_file),
            source_lost=unreadable is not None,
            store=store.kind,
            loaded_at=time.time(),
        )

    def _read(self, path: Path) -> tuple[bytes | None, Problem | None]:
        """The file's bytes; None without a problem for a local file that is not there."""
        shown = self._shown(path)
        try:
            with path.open("rb") as file:
                content = file.read(BYTES_MAX + 1)
        except FileNotFoundError:
            return None, Problem(shown, 0, "", _MISSING)
        except OSError as error:
            return None, Problem(shown, 0, "", f"cannot be read: {error.strerror}")
        if not content.strip():
            # an editor that truncates before it writes must not switch everything off
            return None, Problem(shown, 0, "", "is empty; want a mapping with `flags`")
        return content, None

    def _shown(self, path: Path) -> str:
        with contextlib.suppress(ValueError):
            return str(path.relative_to(Path.cwd()))
        return str(path)

    def _parse(self, content: bytes, local: bytes | None, problems: list[Problem]) -> FlagSet | None:
        settings, shown = self.settings, self._shown(self.settings.flags_file)
        if self._reading is not None and local is None:
            self._reading = read_again(self._reading, content, shown)
            if self._reading is not None:
                return self._reading.flags
        try:
            tree = load_tree(content)
        except TreeError as error:
            problems.append(Problem(shown, error.line, "", str(error)))
            return None
        notes: list[Problem] = []
        if local is not None:
            local_shown = self._shown(self._local_file)
            try:
                local_tree = load_tree(local)
            except TreeError as error:
                notes.append(Problem(local_shown, error.line, "", str(error)))
            else:
                named = tree.get("environment") if isinstance(tree, dict) else None
                environment = settings.environment or settings.resource_environment or named or "prod"
                off_only = environment == "prod" and not settings.allow_local
                tree, notes = merge_local(tree, local_tree, local_shown, off_only=off_only)
        if not isinstance(tree, dict):
            got = "a list" if isinstance(tree, list) else "one value"
            problems.append(Problem(shown, 0, "", f"got {got}, want a mapping with `flags`"))
            return None
        parsed = parse_flags(tree, shown)
        self._reading = reading_of(content, tree, parsed) if local is None else None
        return FlagSet(parsed.flags, parsed.bad, parsed.segments, parsed.environment, (*parsed.problems, *notes))

    def _definitions(self, raw: Mapping[str, Any], wanted: set[str]) -> dict[str, FlagDefinition]:
        """Last good definitions, as far as they are good still."""
        good = {}
        for flag_id in wanted:
            with contextlib.suppress(ValueError):
                if flag_id in raw and (definition := parse_flag(flag_id, raw[flag_id], self._parsed.segments)):
                    good[flag_id] = definition
        return good

    def _last_good_file(self) -> Path:
        return self.settings.flags_state_dir / LAST_GOOD_FILE

    def _last_known(self) -> FlagSet:
        """At a start there is no file to go by: what was good last, but nothing dangerous.

        A process that was running before goes on with its dangerous flags as they were: the file changed nothing.
        """
        known = parse_flags(self._read_stored(), self._shown(self._last_good_file()))
        safe = {flag_id: flag for flag_id, flag in known.flags.items() if not flag.dangerous}
        bad = {**known.bad, **dict.fromkeys(known.flags.keys() - safe.keys(), True)}
        return FlagSet(safe, bad, known.segments, known.environment)

    def _read_last_good(self) -> dict[str, Any]:
        """Last good definitions by id, as another process or an earlier one left them for this flag file."""
        flags = self._read_stored().get("flags")
        return flags if isinstance(flags, dict) else {}

    def _read_stored(self) -> dict[str, Any]:
        """The last good flags, segments and environment as a flag file says them."""
        try:
            document = orjson.loads(self._last_good_file().read_bytes())
            stored = document["document"] if document["file"] == str(self.settings.flags_file) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _save_last_good(self, snapshot: Snapshot) -> None:
        """Remembers the definitions that are good now, in memory and for other processes."""
        if not snapshot.definitions and not snapshot.bad:
            return
        written = {}
        for flag_id, definition in self._parsed.flags.items():
            kept = self._written.get(flag_id)
            if kept is None or kept[0] is not definition:
                kept = (definition, plain(definition.to_dict()))
            written[flag_id] = kept
        self._written = written
        good = {flag_id: values for flag_id, (_, values) in written.items()}
        good.update({flag_id: self._last_good[flag_id] for flag_id in snapshot.bad if flag_id in self._last_good})
        self._last_good = good
        document: dict[str, Any] = {"flags": good}
        if self._parsed.segments:
            document["segments"] = {name: segment.source for name, segment in self._parsed.segments.items()}
        if self._parsed.environment is not None:
            document["environment"] = self._parsed.environment
        content = orjson.dumps({"file": str(self.settings.flags_file), "document": document})
        if content == self._saved_good:
            return
        self._saved_good = content
        with contextlib.suppress(OSError):
            if self._last_good_file().exists() and self._last_good_file().read_bytes() == content:
                return
            make_directory(self.settings.flags_state_dir)
            write_file(self._last_good_file(), content, durable=False)

    def _seen_file(self) -> Path:
        return self.settings.flags_state_dir / "seen" / f"{os.getpid()}.json"

    def _write_seen(self) -> None:
        """Tells admins which revision this process has applied, and which flags are pinned in it."""
        if self._service is None:
            return
        snapshot, seen = self.snapshot, (os.getpid(), self.snapshot.version, self.snapshot.overrides.revision)
        if seen == self._seen:
            return
        before, self._seen = self._seen, seen
        pinned = [flag_id for flag_id in snapshot.definitions if pin_name(flag_id) in snapshot.pins]
        document = {
            "pid": os.getpid(),
            "service": self._service,
            "revision": snapshot.overrides.revision,
            "version": snapshot.version,
            "pins": {flag_id: snapshot.pins[pin_name(flag_id)] for flag_id in pinned},
            "started": process_start(os.getpid()),
            "at": datetime.now(UTC).isoformat(),
        }
        self._feed.report(document)
        if self._feed.reports and before is not None and before[0] == os.getpid():
            return
        with contextlib.suppress(OSError, TypeError):
            make_directory(self._seen_file().parent)
            write_file(self._seen_file(), orjson.dumps(document), durable=False)

    def _is_expected(self, problem: Problem) -> bool:
        """An application that has no flags yet, and named no file, is not told that there is none."""
        return problem.message == _MISSING and not self.settings.flags_file_named and not self._parsed_hash

    def _tell_problems(self, snapshot: Snapshot) -> None:
        """Logs each problem once for as long as it lasts."""
        problems = {str(problem) for problem in snapshot.problems if not self._is_expected(problem)}
        problems |= {_pin_problem(name, value, snapshot) for name, value in snapshot.pins.items()} - {""}
        problems |= {f"{name} is set, but pins no flag" for name in snapshot.unmatched_pins}
        news = sorted(problems - self._told)
        for problem in news[:_TOLD_MAX]:
            _logger.warning("%s", problem)
        if len(news) > _TOLD_MAX:
            _logger.warning("and %d more problems: jarvis flags lint names them", len(news) - _TOLD_MAX)
        self._told = frozenset(problems)


def _pin_problem(name: str, value: str, snapshot: Snapshot) -> str:
    for flag_id, definition in snapshot.definitions.items():
        if pin_name(flag_id) == name and read_pin(value, definition.variants) is None:
            return f"{name}={value!r} cannot be read (want true, false or a variant): {flag_id} is off"
    return ""


def _same(old: Snapshot, new: Snapshot) -> bool:
    return (
        old.version == new.version
        and old.problems == new.problems
        and old.overrides_broken == new.overrides_broken
        and old.bad.keys() == new.bad.keys()
        and old.overrides.overrides == new.overrides.overrides
    )


def _content_hash(content: bytes | None, local: bytes | None) -> str:
    return hashlib.sha256(b"\0".join([content or b"", local or b""])).hexdigest()


def _version(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def process_start(pid: int) -> str:
    """When a process started, in the kernel's ticks: a pid alone may mean another process by now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _close(reference: weakref.ref[FileSource]) -> None:
    source = reference()
    if source is not None:
        source.close()
