"""The one wiring object of a process: what `configure()` put together, for the parts that need to find it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from jarvis_otel.encode import otlp_scope

if TYPE_CHECKING:
    from jarvis_flags.source import FlagSource
    from jarvis_otel.bootstrap import Handle
    from jarvis_otel.limits import LeftOut, Limit, Limiters
    from jarvis_otel.lines import LineWriter
    from jarvis_otel.manager import FeatureFlagManager
    from jarvis_otel.pipeline import Pipeline
    from jarvis_otel.redaction import Redactor
    from jarvis_otel.settings import Settings

__all__ = ["RUNTIME", "DeclaredFlags", "Policy", "Runtime"]


class DeclaredFlags(Protocol):
    """Evaluates the flags declared for a service, silently, from the current snapshot."""

    def __call__(self, service: str, user_id: str | None, ids: tuple[str, ...]) -> Mapping[str, tuple[str, bool]]:
        """Variant, and whether that counts as on, by flag id.

        Args:
            service: The service whose declared flags are wanted.
            user_id: The user of the operation, if known.
            ids: Further flags, declared for the operation itself.
        """
        ...


def _nothing_declared(service: str, user_id: str | None, ids: tuple[str, ...]) -> Mapping[str, tuple[str, bool]]:  # noqa: ARG001
    return {}


class Policy:
    """What holds for the loggers of one service.

    Attributes:
        service: The component that logs.
        level: The lowest level that is written now, as a number of the logging module.
        limits: What the settings leave out of its records.
        scope: The beginning of each of its lines, up to the time.
    """

    __slots__ = ("level", "limits", "scope", "service")

    def __init__(self, service: str, level: int, limits: tuple[Limit, ...] = (), *, logger: str | None = None) -> None:
        self.service = service
        self.level = level
        self.limits = limits
        self.scope = f'\t{otlp_scope(logger or service).decode()}\t{{"timeUnixNano":"'


class Runtime:
    """What is set up in this process.

    Attributes:
        pipeline: Where log records go to be shipped; None before `configure()`, records then only reach
            standard logging.
        lines: Writes the common records to the pipeline.
        own_processors: The log record processors of the process's provider, once all of them are known to be ours.
        services: The services that have a logger of ours.
        manager: The process's FeatureFlagManager once `get_flags()` made it.
        flag_source: Where the flags come from whose snapshot counts; None before `configure()`.
        declared_flags: Evaluates the flags that a service declares.
        handle: What `configure()` returned; None before, and after its shutdown.
    """

    def __init__(self) -> None:
        self.pipeline: Pipeline | None = None
        self.lines: LineWriter | None = None
        self.own_processors: object = ()
        self.services: set[str] = set()
        self._redactor: Redactor | None = None
        self._limiters: Limiters | None = None
        self.manager: FeatureFlagManager | None = None
        self.flag_source: FlagSource | None = None
        self.declared_flags: DeclaredFlags = _nothing_declared
        self.handle: Handle | None = None
        self._settings: Settings | None = None
        self._policies: dict[str, Policy] = {}

    @property
    def settings(self) -> Settings | None:
        """The settings that hold now; None before `configure()`. To set them sets the levels of all loggers."""
        return self._settings

    @settings.setter
    def settings(self, settings: Settings | None) -> None:
        self._settings = settings
        for policy in list(self._policies.values()):
            policy.level, policy.limits = self._policy(policy.service)

    @property
    def redactor(self) -> Redactor:
        """Takes secrets out of what leaves the process."""
        if self._redactor is None:
            from jarvis_otel.redaction import Redactor  # noqa: PLC0415 - its patterns cost more than most imports

            self._redactor = Redactor()
        return self._redactor

    @redactor.setter
    def redactor(self, redactor: Redactor) -> None:
        self._redactor = redactor

    @property
    def limiters(self) -> Limiters:
        """Leave out records where a limit wants that."""
        if self._limiters is None:
            from jarvis_otel.limits import Limiters  # noqa: PLC0415 - most processes have no limits

            self._limiters = Limiters()
        return self._limiters

    def left_out(self, now: float | None) -> list[tuple[str, LeftOut]]:
        """What limits left out and no record has told, with its logger; see `limits.Limiters.drain`.

        Args:
            now: The time that counts; the clock is asked if None.
        """
        return [] if self._limiters is None else self._limiters.drain(now)

    def policy(self, service: str) -> Policy:
        """What holds for the loggers of a service; it follows the settings.

        Args:
            service: The component that logs.
        """
        policy = self._policies.get(service)
        if policy is None:
            policy = self._policies[service] = Policy(service, *self._policy(service))
        return policy

    def _policy(self, service: str) -> tuple[int, tuple[Limit, ...]]:
        settings = self._settings
        if settings is None:
            return logging.INFO, ()
        limit = settings.limits.get(service) or settings.limits.get("*")
        return settings.levels.get(service, settings.level), (limit,) if limit else ()


RUNTIME = Runtime()
