"""Our entry points for OpenTelemetry's auto-instrumentation; the package opentelemetry-instrumentation loads them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry._logs import get_logger_provider
from opentelemetry.instrumentation.dependencies import DependencyConflictError
from opentelemetry.instrumentation.distro import BaseDistro  # type: ignore[attr-defined]
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
from opentelemetry.util._importlib_metadata import EntryPoint

from jarvis_otel.activation import (
    activate,
    has_config_file,
    is_disabled,
    set_defaults,
    tell_failure,
    wants_otel_handler,
)

__all__ = ["JarvisConfigurator", "JarvisDistro", "JarvisInstrumentor"]


class JarvisDistro(BaseDistro):  # type: ignore[misc]
    """Defaults for OpenTelemetry's variables, and an instrumentation that fails leaves the others alone."""

    def _configure(self, **kwargs: Any) -> None:  # noqa: ARG002
        set_defaults()

    def load_instrumentor(self, entry_point: EntryPoint, **kwargs: Any) -> None:
        """Called for each instrumentation that is installed."""
        if entry_point.name == "logging" and _sees_all_records() and not wants_otel_handler():
            kwargs.setdefault("enable_log_auto_instrumentation", False)
        try:
            super().load_instrumentor(entry_point, **kwargs)
        except (ImportError, DependencyConflictError):
            raise
        except Exception as error:
            tell_failure(f"the instrumentation of {entry_point.name} is not active", error)


def _sees_all_records() -> bool:
    """Whether nobody but us wants the records of standard logging.

    Then no handler is needed on the root logger, where it would keep `logging.lastResort` from printing warnings.
    """
    try:
        from jarvis_otel.adoption import has_others  # noqa: PLC0415
        from jarvis_otel.runtime import RUNTIME  # noqa: PLC0415
    except Exception:  # it has been told already that we are not active
        return False
    return RUNTIME.handle is not None and not has_others(get_logger_provider())


class JarvisConfigurator(_OTelSDKConfigurator):
    """Sets up the process by `configure()`; what OTEL_CONFIG_FILE says is set up first, and joined."""

    def _configure(self, **kwargs: Any) -> None:
        if is_disabled():
            super()._configure(**kwargs)  # type: ignore[no-untyped-call]
            return
        if has_config_file():
            try:
                super()._configure()  # type: ignore[no-untyped-call]
            except Exception as error:
                tell_failure("OpenTelemetry is not set up as OTEL_CONFIG_FILE says", error)
        activate()


class JarvisInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Activates us under whatever distro and configurator there are."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Called by OpenTelemetry: what must be installed."""
        return ("openfeature-sdk >= 0.8",)

    def instrument(self, **kwargs: Any) -> None:
        """Activates us; where a configuration file has done so already, nothing."""
        if not self.is_instrumented_by_opentelemetry:
            super().instrument(**kwargs)

    def _instrument(self, **kwargs: Any) -> None:  # noqa: ARG002
        activate()

    def _uninstrument(self, **kwargs: Any) -> None:  # noqa: ARG002
        from jarvis_otel.runtime import RUNTIME  # noqa: PLC0415

        if RUNTIME.handle is not None:
            RUNTIME.handle.shutdown()
