"""Uncaught exceptions and warnings are reported beside what Python does with them: it prints and ends as before."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["ExcInfo", "capture_warnings", "install_uncaught"]

ExcInfo = tuple[type[BaseException], BaseException | None, TracebackType | None]

_TEXT_MAX = 1_000

_state = threading.local()


def install_uncaught(report: Callable[[int, str, ExcInfo], object]) -> Callable[[], None]:
    """Has exceptions that nobody catches reported: of the main thread, of threads, and those Python has to ignore.

    The hooks that were there are called as ever, and print. Not reported are KeyboardInterrupt, SystemExit where it
    ends a thread or the process, and what is typed at an interactive prompt. What asyncio finds in tasks and callbacks
    it logs itself, to the logger `asyncio`.

    Args:
        report: Gets the level (a number of the logging module), a message, and the triple of sys.exc_info(). What it
            raises is dropped, and exceptions and warnings that arise in it are not reported in their turn.

    Returns:
        What undoes it. A hook that another library has wrapped since stays in its place, and only passes on.
    """
    installed = True
    main_hook, thread_hook, unraisable_hook = sys.excepthook, threading.excepthook, sys.unraisablehook

    # Each hook reaches what it calls last through its own closure: at the very end of the interpreter the globals of
    # modules are None, which only costs the report.

    def in_main(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
        try:
            if installed and not issubclass(kind, KeyboardInterrupt | SystemExit) and not hasattr(sys, "ps1"):
                message = f"Uncaught exception: {_text(kind, error)}"
                _quietly(lambda: report(logging.CRITICAL, message, (kind, error, frames)))
        except BaseException:  # a report must never hide the exception from the user, and the process ends anyway
            pass
        main_hook(kind, error, frames)

    def in_thread(given: threading.ExceptHookArgs) -> None:
        try:
            kind, error = given.exc_type, given.exc_value
            if installed and not issubclass(kind, KeyboardInterrupt | SystemExit):
                name = given.thread.name if given.thread is not None else "unknown"
                message = f"Uncaught exception in thread {name}: {_text(kind, error)}"
                _quietly(lambda: report(logging.ERROR, message, (kind, error, given.exc_traceback)))
        except BaseException:  # as above, for the thread
            pass
        thread_hook(given)

    def unraisable(given: Any) -> None:
        try:
            kind, error = given.exc_type, given.exc_value
            if installed and not issubclass(kind, KeyboardInterrupt):
                where = given.err_msg or "Exception ignored in"
                if given.object is not None:
                    where = f"{where}: {_shown(given.object)}"
                message = f"{where}: {_text(kind, error)}"
                _quietly(lambda: report(logging.WARNING, message, (kind, error, given.exc_traceback)))
        except Exception:  # as above, but here the application goes on, and Ctrl-C is for it
            pass
        unraisable_hook(given)

    sys.excepthook, threading.excepthook, sys.unraisablehook = in_main, in_thread, unraisable

    def undo() -> None:
        nonlocal installed
        installed = False
        if sys.excepthook is in_main:
            sys.excepthook = main_hook
        if threading.excepthook is in_thread:
            threading.excepthook = thread_hook
        if sys.unraisablehook is unraisable:
            sys.unraisablehook = unraisable_hook

    return undo


def capture_warnings(report: Callable[[warnings.WarningMessage], object]) -> Callable[[], None]:
    """Has each warning that Python shows reported; it is shown all the same.

    Not reported are warnings that are recorded by `warnings.catch_warnings` or `pytest.warns`, made errors, written
    to a file, or shown by a `warnings.showwarning` of the application's own; that of `logging.captureWarnings` logs
    them, which brings them to the same place.

    Args:
        report: Gets the warning. What it raises is dropped, and warnings that arise in it are not reported in their
            turn.

    Returns:
        What undoes it. Where another library has wrapped it since, it stays in its place and only passes on.
    """
    # The place that catch_warnings replaces as well. In that of the public showwarning the source of a ResourceWarning
    # would be lost, and with it the lines on stderr that tell where the object was allocated.
    module: Any = warnings
    show = getattr(module, "_showwarnmsg_impl", None)
    if show is None:  # a Python that does it in another way: better no report than another output
        return lambda: None
    installed = True

    def report_and_show(warning: warnings.WarningMessage) -> None:
        try:
            if installed and warning.file is None and not _is_recorded() and not _in_own_thread():
                _quietly(lambda: report(warning))
        except Exception:  # a report must never hide the warning from the user
            pass
        show(warning)

    module._showwarnmsg_impl = report_and_show  # noqa: SLF001

    def undo() -> None:
        nonlocal installed
        installed = False
        if module._showwarnmsg_impl is report_and_show:  # noqa: SLF001
            module._showwarnmsg_impl = show  # noqa: SLF001

    return undo


def _quietly(report: Callable[[], object]) -> None:
    """Calls a report, but not within another one of the same thread, which would never end."""
    if getattr(_state, "reporting", False):
        return
    _state.reporting = True
    try:
        report()
    finally:
        _state.reporting = False


def _text(kind: type[BaseException], error: BaseException | None) -> str:
    """The last line of its traceback, more or less."""
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    try:
        text = "" if error is None else str(error)
    except Exception:  # its text is the application's code
        text = ""
    return f"{name}: {_cut(text)}" if text else name


def _shown(thing: object) -> str:
    try:
        return _cut(repr(thing))
    except Exception:  # its text is the application's code
        return f"<{type(thing).__qualname__}>"


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}…"


def _is_recorded() -> bool:
    """Whether catch_warnings records in this context; from Python 3.14 on it need not replace anything for that."""
    context = getattr(warnings, "_get_context", None)
    return context is not None and context().log is not None


def _in_own_thread() -> bool:
    """With a filter that shows warnings always, one about the sending of records would make a record each time."""
    return threading.current_thread().name.startswith("jarvis-")
