"""The YAML provider with our evaluation hook."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from openfeature.hook import Hook

from jarvis_flags.provider import YamlFlagProvider as _YamlFlagProvider
from jarvis_flags.source import FileSource
from jarvis_otel.flag_hook import EvaluationHook

__all__ = ["YamlFlagProvider"]


class YamlFlagProvider(_YamlFlagProvider):
    """The YAML provider with our evaluation hook: setting it is enough to mark the spans.

    Args:
        path: The flag file; None takes JARVIS_FLAGS_FILE or the project's config/flags.yaml.
        hooks: Further hooks that belong to the provider.
        options: As for `jarvis_flags.YamlFlagProvider`.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, hooks: Sequence[Hook] = (), **options: Any
    ) -> None:
        super().__init__(path, hooks=[*hooks, EvaluationHook()], **options)

    def _open(self) -> FileSource:
        """Opens its flag file; where run-time state is in etcd it follows that."""
        from jarvis_otel.admin.opening import open_flags  # noqa: PLC0415 - few processes have a provider of this kind

        settings = self._settings_in_force()
        return open_flags(settings, watch=True, service=settings.service)[0]
