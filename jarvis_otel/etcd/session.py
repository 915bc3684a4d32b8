"""What tells the others that a process lives: a lease that it keeps, and the keys under it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson

from jarvis_otel.etcd.client import EtcdClient, EtcdError, EtcdRefusedError, b64, unb64
from jarvis_otel.etcd.keys import Keys, compared, deleted, put

__all__ = ["LEASE_S", "EtcdTurn", "Session"]

LEASE_S = 20
"""So long after it was killed does a process count as living."""

_KEEP_S = LEASE_S / 4
_NOT_FOUND = 5
_END_S = 0.5


class Session:
    """The lease of a process.

    Args:
        client: Asks etcd.
        keys: The names of keys.
    """

    def __init__(self, client: EtcdClient, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._lock = threading.Lock()
        self._nonce = os.urandom(3).hex()
        self._lease = ""
        self._kept = 0.0
        self._seen: Mapping[str, Any] | None = None

    @property
    def process(self) -> str:
        """What this process is called among those of all machines."""
        # containers may share a name and a process id
        return f"{socket.gethostname()}:{os.getpid()}:{self._nonce}"

    def lease(self) -> str:
        """The lease, granted where there is none.

        Raises:
            EtcdError: It cannot be had.
        """
        with self._lock:
            if not self._lease:
                self._lease = str(self._client.call("lease/grant", {"TTL": str(LEASE_S)})["ID"])
                self._kept = time.monotonic()
            return self._lease

    def report(self, seen: Mapping[str, Any]) -> None:
        """Tells what the process has applied.

        Args:
            seen: The document.

        Raises:
            EtcdError: It cannot be told.
        """
        self._seen = seen
        document = orjson.dumps({**seen, "host": socket.gethostname()})
        request = {"key": b64(self._keys.seen(self.process)), "value": b64(document), "lease": self.lease()}
        try:
            self._client.call("kv/put", request)
        except EtcdRefusedError as error:
            if error.code != _NOT_FOUND:
                raise
            self._lease = ""  # it ran out meanwhile
            self._client.call("kv/put", {**request, "lease": self.lease()})

    def keep(self) -> None:
        """Keeps the lease for another while, now and then; call it often.

        Raises:
            EtcdError: It cannot be kept.
        """
        if not self._lease or time.monotonic() - self._kept < _KEEP_S:
            return
        answer = self._client.call("lease/keepalive", {"ID": self._lease})
        if int(answer.get("result", {}).get("TTL", 0)) > 0:
            self._kept = time.monotonic()
            return
        self._lease = ""
        if self._seen is not None:
            self.report(self._seen)

    def close(self) -> None:
        """Gives the lease back: the others see at once that the process ended."""
        lease, self._lease = self._lease, ""
        if lease:
            with suppress(EtcdError):
                self._client.call("lease/revoke", {"ID": lease}, limit=_END_S)

    def after_fork(self) -> None:
        """In the child: the lease is the parent's."""
        self._lock = threading.Lock()
        self._lease, self._seen = "", None


class EtcdTurn:
    """The turn of one process of all machines; it is over when the lease of that process is.

    A process that etcd does not answer keeps the turn that it had: nobody else can take it, unless etcd answers them.
    So for as long as a lease two may think that it is theirs, but never none for longer.

    Args:
        name: What only one does.
        client: Asks etcd.
        keys: The names of keys.
        session: The lease of this process.
    """

    def __init__(self, name: str, client: EtcdClient, keys: Keys, session: Session) -> None:
        self._key = keys.turn(name)
        self._client = client
        self._session = session
        self._mine = False
        self._looked = 0.0
        self._holder = ""

    def take(self) -> bool:
        """Whether it is this process's turn; ask again and again. While it is, etcd is asked only now and then."""
        if self._mine and time.monotonic() < self._looked + _KEEP_S:
            return True
        self._looked = time.monotonic()
        question = {"request_range": {"key": b64(self._key)}}
        try:
            self._holder = holder = f"{self._session.process} {self._session.lease()}"
            answer = self._client.call(
                "kv/txn",
                {
                    "compare": [compared(self._key, 0)],
                    "success": [put(self._key, holder.encode(), self._session.lease())],
                    "failure": [question],
                },
            )
        except EtcdError:
            return self._mine
        pairs = [] if answer.get("succeeded") else answer["responses"][0]["response_range"].get("kvs", [])
        self._mine = not pairs or unb64(pairs[0].get("value", "")) == holder.encode()
        return self._mine

    def give_up(self) -> None:
        """Lets another have it."""
        if self._mine:
            self._mine = False
            still_mine = {"key": b64(self._key), "target": "VALUE", "result": "EQUAL", "value": b64(self._holder)}
            with suppress(EtcdError):
                self._client.call("kv/txn", {"compare": [still_mine], "success": [deleted(self._key)]})
