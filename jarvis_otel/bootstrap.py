"""`configure()` and `get_flags()`: what an application calls first. What they need is imported when they are called."""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jarvis_otel.manager import FeatureFlagManager
from jarvis_otel.runtime import RUNTIME
from jarvis_otel.terminal import tell

if TYPE_CHECKING:
    from jarvis_otel.settings import Settings
    from jarvis_otel.wiring import Wiring

__all__ = ["Handle", "configure", "configure_logging", "get_flags"]

_configuring = threading.RLock()


class Handle:
    """What `configure()` set up.

    Attributes:
        settings: The settings it used.
    """

    def __init__(self, settings: Settings, wiring: Wiring) -> None:
        self.settings = settings
        self._wiring: Wiring | None = wiring

    def shutdown(self) -> None:
        """Delivers what waits, for at most two seconds, and takes down what was set up; may be called twice."""
        wiring, self._wiring = self._wiring, None
        if wiring is not None:
            RUNTIME.handle = None
            wiring.undo()

    def finish(self) -> None:
        """Delivers what waits at the end of the process, and leaves everything in its place: others may still log."""
        if self._wiring is not None:
            self._wiring.finish()


def get_flags() -> FeatureFlagManager:
    """The flags of this process."""
    with _configuring:
        if RUNTIME.manager is None:
            RUNTIME.manager = FeatureFlagManager.of_process()
        return RUNTIME.manager


def configure(
    service_name: str | None = None,
    *,
    flags: str | os.PathLike[str] | None = None,
    console: bool = True,
    settings: Settings | None = None,
) -> Handle:
    """Sets up flags, logs and traces for this process; a second call returns what the first one made.

    It never raises for a bad setting: one line on stderr names it, and its default stands in.

    Args:
        service_name: What this process is called; else OTEL_SERVICE_NAME, the settings, or the program's name.
        flags: The flag file; else JARVIS_FLAGS_FILE or the project's config/flags.yaml.
        console: Whether to print records on a process that has no log handler.
        settings: Settings made beforehand; read from config/jarvis.yaml and the environment if None.
    """
    with _configuring:
        if RUNTIME.handle is not None:
            return RUNTIME.handle
        from jarvis_otel.settings import Settings  # noqa: PLC0415
        from jarvis_otel.wiring import Wiring  # noqa: PLC0415

        settings = settings or Settings.load()
        for problem in settings.problems:
            tell(f"{problem}; its default is used")
        for note in settings.notes:
            tell(note)
        if flags is not None:
            settings = replace(
                settings, flags=replace(settings.flags, flags_file=Path(flags).absolute(), flags_file_named=True)
            )
        handle = Handle(settings, Wiring(settings, get_flags(), service_name, console=console))
        RUNTIME.handle = handle
        atexit.register(handle.finish)
        return handle


def configure_logging(service_name: str | None = None, **options: Any) -> Handle:
    """`configure()` by the name that it has in `core.logging`; the arguments are the same."""
    return configure(service_name, **options)
