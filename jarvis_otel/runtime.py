"""The one wiring object of a process: what `configure()` put together, for the parts that need to find it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from jarvis_otel.bootstrap import Handle
    from jarvis_otel.manager import FeatureFlagManager
    from jarvis_otel.pipeline import Pipeline
    from jarvis_otel.settings import Settings

__all__ = ["RUNTIME", "DeclaredFlags", "Runtime"]


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


class Runtime:
    """What is set up in this process.

    Attributes:
        settings: The settings that `configure()` used; None before.
        pipeline: Where log records go to be shipped; None before `configure()`, records then only reach
            standard logging.
        manager: The process's FeatureFlagManager once `get_flags()` made it.
        declared_flags: Evaluates the flags that a service declares.
        handle: What `configure()` returned; None before, and after its shutdown.
    """

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.pipeline: Pipeline | None = None
        self.manager: FeatureFlagManager | None = None
        self.declared_flags: DeclaredFlags = _nothing_declared
        self.handle: Handle | None = None


RUNTIME = Runtime()
