"""What `import jarvis_otel.auto`, `jarvis run` and `opentelemetry-instrument` do alike, once in a process."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jarvis_otel.terminal import tell

if TYPE_CHECKING:
    from jarvis_otel.settings import Settings

__all__ = [
    "activate",
    "activate_all",
    "has_config_file",
    "is_disabled",
    "set_defaults",
    "tell_failure",
    "wants_otel_handler",
]

NAME = "jarvis"
"""What our entry points are called."""

# A process leaves its name here for those that it starts and that have none of their own.
_PROGRAM = "JARVIS_PROGRAM"

_DEFAULTS = {
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_LOGS_EXPORTER": "otlp",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "3",
}

_LOADER = "opentelemetry.instrumentation.auto_instrumentation"


def activate_all() -> None:
    """Activates us and each instrumentation of OpenTelemetry's that is installed, if [auto] is; never raises."""
    with _told():
        if is_disabled():
            return
        try:
            from jarvis_otel.instrumentation import JarvisInstrumentor  # noqa: PLC0415
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("opentelemetry.instrumentation"):
                raise
        else:
            if not JarvisInstrumentor().is_instrumented_by_opentelemetry:
                _initialize()
    activate()


def activate() -> None:
    """Activates us in this process, where that has not happened; never raises."""
    with _told():
        if not is_disabled():
            _activate()


def _activate() -> None:
    # imported here, where it is told what is wrong with an installation
    from jarvis_otel.asgi import serve_spans  # noqa: PLC0415
    from jarvis_otel.bootstrap import configure  # noqa: PLC0415
    from jarvis_otel.runtime import RUNTIME  # noqa: PLC0415
    from jarvis_otel.settings import Settings  # noqa: PLC0415

    if RUNTIME.handle is None:
        settings = Settings.load()
        configure(_name(settings), console=False, settings=settings)
    if RUNTIME.settings is None or not RUNTIME.settings.sdk_disabled:
        serve_spans()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever is wrong with us, the application must start
        tell_failure("not active in this process", error)


def tell_failure(what: str, error: BaseException | None) -> None:
    """Writes one line on stderr about what does not work.

    Args:
        what: What it is.
        error: Why, if an exception says it.
    """
    why = f": {type(error).__name__}: {error}" if error is not None else ""
    _tell_once(" ".join(f"{what}{why}".split()))


# what fails is tried again at each way in
_tell_once = functools.lru_cache(maxsize=64)(tell)


def is_disabled() -> bool:
    """Whether OTEL_PYTHON_DISABLED_INSTRUMENTATIONS names us."""
    names = {name.strip() for name in os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")}
    return not names.isdisjoint((NAME, "*"))


def has_config_file() -> bool:
    """Whether OTEL_CONFIG_FILE names a file that OpenTelemetry's SDK is set up by."""
    return bool(os.environ.get("OTEL_CONFIG_FILE"))


def wants_otel_handler() -> bool:
    """Whether OTEL_PYTHON_LOG_AUTO_INSTRUMENTATION asks in so many words for OpenTelemetry's own logging handler."""
    return os.environ.get("OTEL_PYTHON_LOG_AUTO_INSTRUMENTATION", "").strip().lower() == "true"


def set_defaults() -> None:
    """Sets what OpenTelemetry's variables say where nobody said anything."""
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    # Python's default is gRPC, which does not survive fork; who names its port wants it
    endpoints = (value for name, value in os.environ.items() if name.startswith("OTEL_EXPORTER_OTLP_"))
    if not any(value.rstrip("/").endswith(":4317") for value in endpoints):
        os.environ.setdefault("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")


def _initialize() -> None:
    """Runs OpenTelemetry's auto-instrumentation with our distro and configurator, unless the user names others."""
    from opentelemetry.instrumentation.auto_instrumentation import initialize  # noqa: PLC0415

    wanted = ("OTEL_PYTHON_DISTRO", "OTEL_PYTHON_CONFIGURATOR")
    # only for the moment: a child process may run in an environment without us
    ours = {variable: NAME for variable in wanted if not os.environ.get(variable)}
    os.environ.update(ours)
    loaders = [logging.getLogger(name) for name in (_LOADER, f"{_LOADER}._load")]
    for loader in loaders:
        loader.addFilter(_tell_of_failures)
    try:
        initialize()
    finally:
        for loader in loaders:
            loader.removeFilter(_tell_of_failures)
        for variable in ours:
            os.environ.pop(variable, None)


def _tell_of_failures(record: logging.LogRecord) -> bool:
    """One line for an instrumentation that failed; that another distro was not taken is what was asked for."""
    if record.levelno >= logging.ERROR:
        tell_failure(record.getMessage(), record.exc_info[1] if record.exc_info else None)
    return False


def _name(settings: Settings) -> str | None:
    """What to call a process that nothing names: after its program, or its parent where it has no program."""
    program = _program()
    if program is not None:
        os.environ[_PROGRAM] = program
    if settings.service_name or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        return None
    from opentelemetry import trace  # noqa: PLC0415

    # what another configurator has set up, by OTEL_CONFIG_FILE for example, says it of the spans
    resource = getattr(trace.get_tracer_provider(), "resource", None)
    named = str(resource.attributes.get("service.name", "")) if resource is not None else ""
    if named and not named.startswith("unknown_service"):
        return named
    return program or os.environ.get(_PROGRAM)


def _program() -> str | None:
    """The program as the interpreter was started with it.

    Before the application begins, `sys.argv` does not say what `python -m` runs; what multiprocessing spawns, and
    `python -c`, have no program at all.
    """
    script, *others = getattr(sys, "argv", None) or [""]
    if script in ("", "-c") or "--multiprocessing-fork" in others:
        return None
    if script == "-m":
        # what stands before the module's own arguments, perhaps glued to its option
        module = sys.orig_argv[-len(sys.argv)]
        return module.partition("m")[2] if module.startswith("-") else module
    path = Path(script)
    return path.parent.name if path.stem == "__main__" else path.stem
