"""One-time links: somebody who is known elsewhere, as in Telegram, logs in by one within a minute, once."""

from __future__ import annotations

import contextlib
import errno
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import orjson

from jarvis_collector.access import token_digest
from jarvis_flags.files import make_directory, write_file
from jarvis_otel.admin.author import Role
from jarvis_otel.web.sessions import Identity

__all__ = ["LINK_LASTS_S", "Links", "make_link"]

LINK_LASTS_S = 60.0
LINKS_MAX = 1_000


def make_link(state_dir: Path, who: str, role: Role, base_url: str) -> str:
    """A URL that logs somebody in, once, within 60 seconds.

    Args:
        state_dir: The directory of the run-time state (`settings.flags.state_dir`), which `jarvis web` shares.
        who: Who it is for, as the audit names them: tg:123456789.
        role: What they may do.
        base_url: Where people reach `jarvis web`.

    Raises:
        OSError: It cannot be kept.
    """
    return f"{base_url.rstrip('/')}/login?l={Links(state_dir).make(who, role)}"


class Links:
    """The links that wait, a file for each: its name is a digest of what the link holds, so the file opens nothing.

    Args:
        state_dir: The directory of the run-time state.
        clock: Unix seconds.
    """

    def __init__(self, state_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._dir = state_dir / "web" / "links"
        self._clock = clock

    def make(self, who: str, role: Role) -> str:
        """What a new link holds.

        Raises:
            OSError: It cannot be kept, or 1,000 wait already.
        """
        make_directory(self._dir)
        self._sweep()
        token = secrets.token_urlsafe(32)
        until = self._clock() + LINK_LASTS_S
        write_file(self._dir / token_digest(token), orjson.dumps({"who": who, "role": role, "until": until}))
        return token

    def redeem(self, token: str) -> Identity | None:
        """Whom a link logs in; None where it was used before, is too old, or is none. It is used up by that."""
        path = self._dir / token_digest(token)
        taken = path.with_suffix(f".{secrets.token_hex(8)}")
        try:
            # of two who come at once one renames it
            path.rename(taken)
            said = orjson.loads(taken.read_bytes())
            who, role, until = str(said["who"]), Role(said["role"]), float(said["until"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        finally:
            with contextlib.suppress(OSError):
                taken.unlink(missing_ok=True)
        return Identity(who, role) if self._clock() < until else None

    def _sweep(self) -> None:
        """Removes what is too old, by the time at which it was written."""
        waiting = 0
        for path in self._dir.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < self._clock() - 2 * LINK_LASTS_S:
                    path.unlink(missing_ok=True)
                else:
                    waiting += 1
        if waiting >= LINKS_MAX:
            raise OSError(errno.EBUSY, f"{waiting} links wait already; try again in a minute", str(self._dir))
