"""Who is logged in: sessions that live in this process, bounded, and gone with it."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from jarvis_collector.access import token_digest
from jarvis_otel.admin.author import Role

__all__ = ["IDENTITY_KEY", "Identity", "Sessions"]

IDENTITY_KEY = "jarvis.identity"
"""Where a request's scope says who asks."""

SESSIONS_MAX = 1_000
IDLE_S = 12 * 3600.0
LIFE_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Identity:
    """A person, or a program with a bearer token.

    Attributes:
        who: As the audit names them: web:ann, tg:123456789.
        role: What they may do.
    """

    who: str
    role: Role


@dataclass(slots=True)
class _Session:
    identity: Identity
    begun: float
    used: float

    def is_over(self, now: float) -> bool:
        return now - self.used > IDLE_S or now - self.begun > LIFE_S


class Sessions:
    """Who is logged in. Only digests of the cookies are kept.

    A session ends by logout, after 12 hours without a request, after a week, or when 1,000 newer ones were used since.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, identity: Identity) -> str:
        """Logs somebody in; returns what the cookie holds."""
        cookie, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._sessions[token_digest(cookie)] = _Session(identity, now, now)
            while len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        return cookie

    def find(self, cookie: str) -> Identity | None:
        """Whose session a cookie stands for; None where it is none, or ended."""
        digest, now = token_digest(cookie), self._clock()
        with self._lock:
            session = self._sessions.get(digest)
            if session is None:
                return None
            if session.is_over(now):
                del self._sessions[digest]
                return None
            session.used = now
            self._sessions.move_to_end(digest)
            return session.identity

    def end(self, cookie: str) -> None:
        """Logs out."""
        with self._lock:
            self._sessions.pop(token_digest(cookie), None)

    def holds(self, cookie: str) -> bool:
        """Whether a cookie still stands for a session; unlike `find` it is no use of it."""
        with self._lock:
            session = self._sessions.get(token_digest(cookie))
            return session is not None and not session.is_over(self._clock())

    def people(self) -> list[tuple[Identity, int, float]]:
        """Who is logged in, in how many sessions, and how many seconds ago they last asked something."""
        now = self._clock()
        with self._lock:
            found: dict[Identity, tuple[int, float]] = {}
            for session in self._sessions.values():
                if not session.is_over(now):
                    count, used = found.get(session.identity, (0, 0.0))
                    found[session.identity] = count + 1, max(used, session.used)
        return [(who, count, now - used) for who, (count, used) in found.items()]

    def end_all(self, who: str) -> int:
        """Ends every session of a person; returns how many there were."""
        with self._lock:
            theirs = [digest for digest, session in self._sessions.items() if session.identity.who == who]
            for digest in theirs:
                del self._sessions[digest]
        return len(theirs)
