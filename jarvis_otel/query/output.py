"""Where the answer of a command goes, and the talk about it: standard output, perhaps through a pager, and stderr."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from jarvis_otel.terminal import pager

if TYPE_CHECKING:
    import subprocess

__all__ = ["Output", "Passing", "Progress"]

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_AFTER_S = 1.0
_EVERY_S = 0.25
_Item = TypeVar("_Item")


class Passing(Generic[_Item]):
    """Items on their way to where they are written, counted as they pass and never held.

    Args:
        items: The items, which can be had once.

    Attributes:
        number: How many have passed so far.
    """

    def __init__(self, items: Iterable[_Item]) -> None:
        self._items = items
        self.number = 0

    def __iter__(self) -> Iterator[_Item]:
        for item in self._items:
            self.number += 1
            yield item


class Output:
    """Standard output; on a terminal, a pager when the answer is longer than the screen.

    Until it is longer than the screen the text is held back, so `write` is for commands that end.

    Args:
        paged: Whether a pager may be used; it is for terminals alone.
        on_first: Called before the first text gets to a terminal.
    """

    def __init__(self, *, paged: bool, on_first: Callable[[], object] = lambda: None) -> None:
        self._terminal = sys.stdout.isatty()
        self._command, self._environ = pager() if paged and self._terminal else ([], {})
        self._on_first = on_first
        self._held: list[bytes] = []
        self._rows = 0
        self._pager: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._held:
                self._pass_on(self._release())
        finally:
            self._close_pager()

    def write(self, piece: str | bytes) -> None:
        """Writes; in UTF-8 whatever the terminal says: the data has one encoding.

        Raises:
            BrokenPipeError: Whoever reads has seen enough.
        """
        data = piece.encode("utf-8", "backslashreplace") if isinstance(piece, str) else piece
        if self._command:
            size = shutil.get_terminal_size()
            self._held.append(data)
            self._rows += _rows(data, size.columns)
            if self._rows < size.lines:
                return
            self._start_pager()
            data = self._release()
        self._pass_on(data)

    def flush(self) -> None:
        """Lets what was written be seen."""
        sys.stdout.buffer.flush()

    def check_reader(self) -> None:
        """Tells whether whoever reads is still there, for those who have nothing to write.

        Raises:
            BrokenPipeError: Nobody reads any more.
        """
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            raise BrokenPipeError

    def _release(self) -> bytes:
        data = b"".join(self._held)
        self._held = []
        return data

    def _pass_on(self, data: bytes) -> None:
        if self._terminal:
            self._on_first()
        if self._pager is not None:
            assert self._pager.stdin
            self._pager.stdin.write(data)
        else:
            sys.stdout.buffer.write(data)

    def _start_pager(self) -> None:
        self._on_first()
        sys.stdout.flush()
        import subprocess  # noqa: PLC0415 - few answers need a pager

        with suppress(OSError):  # without one the text just scrolls by
            self._pager = subprocess.Popen(self._command, stdin=subprocess.PIPE, env=self._environ)  # noqa: S603
        self._command = []

    def _close_pager(self) -> None:
        """Waits until the reader leaves the pager, whatever keys are pressed in it."""
        if self._pager is None:
            return
        assert self._pager.stdin
        with suppress(BrokenPipeError, KeyboardInterrupt):
            self._pager.stdin.close()
        while True:
            try:
                self._pager.wait()
            except KeyboardInterrupt:
                continue
            return


def _rows(data: bytes, columns: int) -> int:
    """The rows of a terminal that a text takes."""
    text = _COLOR.sub("", data.decode("utf-8", "replace"))
    return sum(max(1, -(-len(line) // max(1, columns))) for line in text.split("\n")[:-1])


class Progress:
    """Says on a terminal's stderr how far a command has come that takes longer than a second; wiped when it ends.

    It is driven by SIGALRM, and not by a thread, so that whoever reads the files may fork.

    Args:
        state: What to say.
    """

    def __init__(self, state: Callable[[], str]) -> None:
        self._state = state
        self._begun = time.monotonic()
        self._runs = False
        self._shown = False

    def __enter__(self) -> Self:
        if sys.stderr is not None and sys.stderr.isatty() and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGALRM, self._tick)
            signal.setitimer(signal.ITIMER_REAL, _AFTER_S, _EVERY_S)
            self._runs = True
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Wipes it, and says no more."""
        if self._runs:
            self._runs = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self.wipe()

    def wipe(self) -> None:
        """Clears the line, for something else to be written there."""
        if self._shown:
            self._shown = False
            _to_stderr("\r\x1b[K")

    def _tick(self, *_: object) -> None:
        if self._runs:
            text = f"{self._state()}, {time.monotonic() - self._begun:.0f} s"
            self._shown = True
            _to_stderr(f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K")


def _to_stderr(text: str) -> None:
    """Past the stream's buffer, in the middle of whose work a signal may come."""
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), text.encode("utf-8", "backslashreplace"))
