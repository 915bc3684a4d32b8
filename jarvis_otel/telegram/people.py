"""Who may use the bot, as the settings say at the moment."""

from __future__ import annotations

import logging
import os

from jarvis_otel.admin.author import Role
from jarvis_otel.settings import Settings

__all__ = ["People", "who"]

_log = logging.getLogger("jarvis_otel.telegram")


def who(person: int) -> str:
    """A person as the audit and the settings' `roles` name them."""
    return f"tg:{person}"


class People:
    """Who may use the bot: read from the settings again whenever their file changes.

    Args:
        settings: The settings that the process started with.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen = self._signature()
        self._roles = _roles(settings)

    @property
    def settings(self) -> Settings:
        """The settings as they stand."""
        self._look()
        return self._settings

    def role(self, person: int) -> Role | None:
        """What somebody may do; None is nothing at all.

        Args:
            person: Their numeric id.
        """
        self._look()
        return self._roles.get(person)

    def with_role(self, *roles: Role) -> list[int]:
        """The ids of all who have one of these roles."""
        self._look()
        return [person for person, role in self._roles.items() if role in roles]

    def _look(self) -> None:
        signature = self._signature()
        if signature == self._seen or self._settings.reload is None:
            return
        self._seen = signature
        new = self._settings.reload()
        if new.problems:
            # as everywhere, a file with a fault changes nothing
            _log.warning("%s is not followed until it is right: %s", self._settings.file, "; ".join(new.problems))
            return
        self._settings, self._roles = new, _roles(new)

    def _signature(self) -> tuple[int, ...] | None:
        if self._settings.file is None:
            return None
        try:
            found = os.stat(self._settings.file)  # noqa: PTH116 - one call, for each update
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino


def _roles(settings: Settings) -> dict[int, Role]:
    roles = dict.fromkeys(settings.telegram.admins, Role.ADMIN)
    for name, role in settings.roles.items():
        channel, _, number = name.partition(":")
        if channel == "tg" and number.isdecimal():
            roles[int(number)] = role
    return roles
