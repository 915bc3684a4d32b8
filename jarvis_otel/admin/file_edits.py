"""Edits of the flag file in the audit: who changed it by hand is `file`, and what changed is said field by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from jarvis_flags.files import write_file
from jarvis_flags.snapshot import Snapshot
from jarvis_flags.source import Change, FileSource
from jarvis_flags.tree import plain
from jarvis_otel.admin.audit import AuditEntry
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.store import FlagStore, Note, StoreError

__all__ = ["FileEdits"]

KNOWN_FILE = "known.json"
_BY_HAND = Author("file", "file")
_TRIES = 5

_Definitions = Mapping[str, Mapping[str, Any]]


class FileEdits:
    """Notes in the audit what changed in the flag file since any process looked last.

    All processes may call it at the same time: each change is noted once, by whoever is first. `known.json` beside the
    audit holds what was seen last.

    Args:
        source: The flags.
        store: Where the audit is.
        tell: Called with each entry after it is kept; it must not raise.
    """

    def __init__(
        self, source: FileSource, store: FlagStore, tell: Callable[[AuditEntry], None] = lambda _: None
    ) -> None:
        self._source = source
        self._store = store
        self._known = source.settings.flags_state_dir / KNOWN_FILE
        self._tell = tell

    def note(self, author: Author = _BY_HAND, action: str = "edit") -> list[AuditEntry]:
        """Notes what changed; quietly nothing where the state directory cannot be written.

        Args:
            author: Who changed it, where that is known.
            action: What they did.
        """
        made: list[AuditEntry] = []
        for _ in range(_TRIES):
            content = self._source.content_hash
            if not content or self._read()[0] == content:
                break
            try:
                made = self._note(content, author, action)
                break
            except _OutdatedError:
                self._source.reload()
            except (StoreError, OSError):
                break
        for entry in made:
            self._tell(entry)
        return made

    def follow(self) -> Callable[[], None]:
        """Notes what changed until now, and from now on whenever the source notices it; returns what ends that."""
        self.note()

        def noticed(change: Change) -> None:
            if any(_definition(change.old, flag_id) != _definition(change.new, flag_id) for flag_id in change.flags):
                self.note()

        return self._source.subscribe(noticed)

    def _note(self, content: str, author: Author, action: str) -> list[AuditEntry]:
        """Notes the difference between what is known and what the source has.

        Raises:
            _OutdatedError: The file has changed since the source read it.
        """
        now = _said(self._source.snapshot)

        def make() -> list[Note]:
            # under the store's lock, so that a process that read the file earlier cannot undo what a later one noted
            if self._source.content_hash != content or not self._source.is_current():
                raise _OutdatedError
            before, known = self._read()
            if before is None:
                return []
            return [_changed(action, flag_id, known.get(flag_id), now.get(flag_id)) for flag_id in _differ(known, now)]

        def done() -> None:
            write_file(self._known, orjson.dumps({"content": content, "flags": now}))

        return self._store.note(author, make, done)

    def _read(self) -> tuple[str | None, _Definitions]:
        """The hash of the content that was seen last and the definitions in it; None where nothing was seen yet."""
        try:
            known = orjson.loads(self._known.read_bytes())
            return str(known["content"]), dict(known["flags"])
        except (OSError, ValueError, KeyError, TypeError):
            return None, {}


class _OutdatedError(Exception):
    """The flag file has changed since the source read it."""


def _said(snapshot: Snapshot) -> dict[str, Mapping[str, Any]]:
    """The definitions in force as JSON has them, and which cannot be used."""
    said = {flag_id: definition.to_dict() for flag_id, definition in snapshot.definitions.items()}
    for flag_id, bad in snapshot.bad.items():
        said[flag_id] = {**said.get(flag_id, {}), "problem": bad.message}
    loaded: dict[str, Mapping[str, Any]] = orjson.loads(orjson.dumps(plain(said), default=str))
    return loaded


def _definition(snapshot: Snapshot, flag_id: str) -> tuple[Any, Any]:
    return snapshot.definitions.get(flag_id), snapshot.bad.get(flag_id)


def _differ(known: _Definitions, now: _Definitions) -> list[str]:
    return [flag_id for flag_id in dict.fromkeys((*now, *known)) if known.get(flag_id) != now.get(flag_id)]


def _changed(action: str, flag_id: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Note:
    """What changed of a flag: only the fields that did, all of them where it is new or gone."""
    if old is not None and new is not None:
        names = [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]
        old = {name: old[name] for name in names if name in old}
        new = {name: new[name] for name in names if name in new}
    return Note(action, flag_id, "written", old=old, new=new)
