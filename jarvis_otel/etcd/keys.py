"""What the keys in etcd are called, and what is in them; all begin with the prefix of the settings.

- `flags/state`: all overrides with their revision, and where the audit ends; transactions compare it.
- `flags/lasts/ID`: there for as long as a flag's override lasts that lapses by itself; under a lease.
- `audit/NUMBER`: lines of the audit that one change wrote; NUMBER is that of the first, from 1.
- `seen/HOST:PID:…`: what a process has applied; under the lease of the process.
- `turn/NAME`: which process does what only one does; under its lease.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import orjson

from jarvis_flags.overrides import OverrideError, OverrideSet
from jarvis_otel.admin.audit import GENESIS
from jarvis_otel.etcd.client import EtcdClient, EtcdError, EtcdUnavailableError, b64, unb64

__all__ = ["Keys", "Lasting", "SharedFlags", "compared", "deleted", "flags_of", "put", "read_flags", "remaining"]


class Keys:
    """Names of keys.

    Args:
        prefix: What they begin with.
    """

    def __init__(self, prefix: str) -> None:
        self.flags = f"{prefix}flags/".encode()
        self.flags_end = f"{prefix}flags0".encode()
        self.state = f"{prefix}flags/state".encode()
        self._lasts = f"{prefix}flags/lasts/"
        self._audit = f"{prefix}audit/"
        self.audit_end = f"{prefix}audit0".encode()
        self._seen = f"{prefix}seen/"
        self.seen_end = f"{prefix}seen0".encode()
        self._turn = f"{prefix}turn/"

    def lasts(self, flag_id: str) -> bytes:
        """The key that is there for as long as an override lasts."""
        return f"{self._lasts}{flag_id}".encode()

    def flag_of(self, key: bytes) -> str | None:
        """The flag whose override lasts as long as a key; None for other keys."""
        name = key.decode()
        return name.removeprefix(self._lasts) if name.startswith(self._lasts) else None

    def audit(self, number: int) -> bytes:
        """The key of lines of the audit.

        Args:
            number: That of the first line, from 1.
        """
        return f"{self._audit}{number:012d}".encode()

    def seen(self, process: str = "") -> bytes:
        """The key of what a process has applied; what all of them begin with if it is empty."""
        return f"{self._seen}{process}".encode()

    def turn(self, name: str) -> bytes:
        """The key of whose turn it is."""
        return f"{self._turn}{name}".encode()


@dataclass(frozen=True, slots=True)
class Lasting:
    """How long an override lasts.

    Attributes:
        lease: The lease that ends it.
        seconds: What it was given.
    """

    lease: str
    seconds: float


@dataclass(frozen=True, slots=True)
class SharedFlags:
    """The overrides as etcd has them at one moment.

    Attributes:
        cluster: Which etcd.
        position: Its revision at that moment.
        compared: The revision of etcd at which the state was written, which a transaction compares; 0 where there is
            none yet.
        overrides: All overrides, those too that have lapsed.
        lines: So many lines has the audit.
        head: The hash of the last of them.
        lasting: How long overrides last that lapse by themselves, by flag id; not those that have lapsed.
    """

    cluster: str
    position: int
    compared: int = 0
    overrides: OverrideSet = field(default_factory=OverrideSet)
    lines: int = 0
    head: str = GENESIS
    lasting: Mapping[str, Lasting] = field(default_factory=lambda: MappingProxyType({}))

    def state(self) -> bytes:
        """The content of the state's key."""
        document = orjson.loads(self.overrides.to_bytes())
        return orjson.dumps({**document, "lines": self.lines, "head": self.head})

    @property
    def standing(self) -> OverrideSet:
        """The overrides that have not lapsed."""
        kept = {
            flag_id: one
            for flag_id, one in self.overrides.overrides.items()
            if one.expires_at is None or flag_id in self.lasting
        }
        return OverrideSet(self.overrides.revision, MappingProxyType(kept))

    def on_this_clock(
        self, known: OverrideSet | None, now: float, left: Callable[[Lasting], float | None]
    ) -> OverrideSet:
        """The overrides that stand, with the times at which they lapse by the clock of this machine.

        Args:
            known: What this machine knew before: a time that it found then holds.
            now: Unix seconds.
            left: Seconds that a lease has left; None where that cannot be told.
        """
        found = {}
        for flag_id, override in self.standing.overrides.items():
            if override.expires_at is not None:
                before = None if known is None else known.overrides.get(flag_id)
                if before == override and before.lapses_at is not None:
                    lapses = before.lapses_at
                else:
                    lasts = self.lasting[flag_id]
                    # whole seconds, rounded down; a new leader gives a lease its full time again
                    seconds = left(lasts)
                    lapses = now + min(lasts.seconds, lasts.seconds if seconds is None else seconds + 1)
                override = replace(override, lapses_at=lapses)  # noqa: PLW2901
            found[flag_id] = override
        return OverrideSet(self.overrides.revision, MappingProxyType(found))

    def with_event(self, event: Mapping[str, Any], keys: Keys, position: int) -> SharedFlags:
        """As it is after one change of a key that a watch tells of.

        Raises:
            OverrideError: What was written cannot be used.
        """
        pair = event["kv"]
        key, gone = unb64(pair["key"]), event.get("type") == "DELETE"
        if key == keys.state:
            if gone:
                raise OverrideError(f"{keys.state.decode()} was removed from etcd")
            return replace(
                self,
                position=position,
                compared=int(pair["mod_revision"]),
                **_state(unb64(pair.get("value", ""))),
            )
        flag_id = keys.flag_of(key)
        if flag_id is None:
            return replace(self, position=position)
        lasting = {name: one for name, one in self.lasting.items() if name != flag_id}
        if not gone:
            lasting[flag_id] = _lasting(pair)
        return replace(self, position=position, lasting=MappingProxyType(lasting))


def flags_of(answer: Mapping[str, Any], keys: Keys, header: Mapping[str, Any] | None = None) -> SharedFlags:
    """The overrides out of the answer to a question for all keys under `flags`.

    Args:
        answer: The answer.
        keys: The names of keys.
        header: That of the answer which it is part of.

    Raises:
        EtcdUnavailableError: It is no such answer: something stands between that is no etcd.
        OverrideError: They cannot be used.
    """
    try:
        header = header or answer["header"]
        flags = SharedFlags(str(header["cluster_id"]), int(header["revision"]))
        for pair in answer.get("kvs", ()):
            flags = flags.with_event({"kv": pair}, keys, flags.position)
    except OverrideError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise EtcdUnavailableError(f"the answer is none of etcd's: {type(error).__name__}: {error}") from None
    return flags


def read_flags(client: EtcdClient, keys: Keys, *, patience: float = 0.0, limit: float | None = None) -> SharedFlags:
    """Reads the overrides as they are now, all members agreed.

    Args:
        client: Asks etcd.
        keys: The names of keys.
        patience: Seconds for which to go on asking.
        limit: Seconds that it may take at most.

    Raises:
        EtcdError: They cannot be had.
        OverrideError: They cannot be used.
    """
    question = {"key": b64(keys.flags), "range_end": b64(keys.flags_end)}
    return flags_of(client.call("kv/range", question, patience=patience, limit=limit), keys)


def remaining(client: EtcdClient, lasting: Lasting) -> float | None:
    """Seconds that a lease has left, rounded down; None where that cannot be told.

    Args:
        client: Asks etcd.
        lasting: The lease.
    """
    try:
        return max(float(client.call("lease/timetolive", {"ID": lasting.lease})["TTL"]), 0.0)
    except (EtcdError, KeyError, ValueError):
        return None


def put(key: bytes, value: bytes, lease: str = "0") -> dict[str, Any]:
    """The part of a transaction that writes a key."""
    return {"request_put": {"key": b64(key), "value": b64(value), "lease": lease}}


def deleted(key: bytes) -> dict[str, Any]:
    """The part of a transaction that removes a key."""
    return {"request_delete_range": {"key": b64(key)}}


def compared(key: bytes, revision: int) -> dict[str, Any]:
    """The part of a transaction that wants a key as it was written at a revision; 0 wants none."""
    return {"key": b64(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def _state(content: bytes) -> dict[str, Any]:
    overrides = OverrideSet.from_bytes(content)
    document = orjson.loads(content)
    lines, head = document.get("lines"), document.get("head")
    if not isinstance(lines, int) or not isinstance(head, str):
        raise OverrideError("want `lines` and `head` of the audit")
    return {"overrides": overrides, "lines": lines, "head": head}


def _lasting(pair: Mapping[str, Any]) -> Lasting:
    try:
        seconds = float(unb64(pair.get("value", "")))
    except ValueError:
        seconds = 0.0
    return Lasting(str(pair.get("lease", "0")), seconds)
