"""Settings that hold as soon as the settings file says so: levels and limits; the rest waits for the next start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

from jarvis_flags.watch import Watcher
from jarvis_otel.logger import emit_event
from jarvis_otel.runtime import RUNTIME
from jarvis_otel.settings import Settings

__all__ = ["LIVE", "follow_settings"]

LIVE = ("level", "levels", "limits")
"""What may change while the process runs."""

_NOT_COMPARED = frozenset({*LIVE, "notes", "problems", "file", "reload", "flags"})


def follow_settings(settings: Settings, applied: Callable[[Settings], None]) -> Callable[[], None]:
    """Watches the settings file, and has what may change hold within a moment of its change.

    A file that has a fault changes nothing; a log record says what it is.

    Args:
        settings: The settings that the process started with.
        applied: Called with the settings that hold from now on.

    Returns:
        What ends it.
    """
    if settings.file is None or settings.reload is None:
        return lambda: None
    reload = settings.reload

    def changed() -> None:
        old = RUNTIME.settings
        if old is None:
            return
        new = reload()
        if new.problems:
            message = f"{settings.file} is not followed until it is right: {'; '.join(new.problems)}"
            emit_event("jarvis_otel", "jarvis.settings.refused", message, level="WARNING", attributes={})
            return
        news = [name for name in LIVE if getattr(new, name) != getattr(old, name)]
        later = [
            field.name
            for field in fields(Settings)
            if field.name not in _NOT_COMPARED and getattr(new, field.name) != getattr(settings, field.name)
        ]
        if news:
            now = replace(old, **{name: getattr(new, name) for name in LIVE})
            RUNTIME.settings = now
            applied(now)
        if news or later:
            parts = [f"{', '.join(news)} changed"] if news else []
            parts += [f"{', '.join(later)} will at the next start"] if later else []
            message = f"{settings.file}: {'; '.join(parts)}"
            emit_event(
                "jarvis_otel",
                "jarvis.settings.changed",
                message,
                attributes={"jarvis.settings": news + later},
                shown=False,
            )

    watcher = Watcher([settings.file], changed)
    watcher.start()
    return watcher.stop
