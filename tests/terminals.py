"""Runs `jarvis` on a terminal of its own, as a person sees it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

JARVIS = (sys.executable, "-m", "jarvis_otel.cli.main")


def on_terminal(*arguments, keys=b"", rows=24, columns=100, to=None, **environ):
    """What a terminal shows of a command that ends.

    Args:
        arguments: Those of `jarvis`.
        keys: Typed once something is shown.
        rows, columns: The size of the terminal.
        to: Where standard output goes instead; only stderr is on the terminal then.
        environ: Environment variables; None takes one away.

    Returns:
        The text, and the exit code.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    env = {**os.environ, **environ}
    for name in ("COLUMNS", "LINES", *(name for name, value in environ.items() if value is None)):
        env.pop(name, None)
    process = subprocess.Popen(
        [*JARVIS, *arguments], stdin=slave, stdout=to or slave, stderr=slave, env=env, start_new_session=True
    )
    os.close(slave)
    out = b""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.1)[0]:
                out += os.read(master, 65536)
            elif keys and out and process.poll() is None:
                os.write(master, keys[:1])
                keys = keys[1:]
    except OSError:
        pass  # the terminal's other end is closed
    finally:
        if process.poll() is None and time.monotonic() >= deadline:
            process.kill()
        process.wait()
        os.close(master)
    return out.decode("utf-8", "replace").replace("\r\n", "\n"), process.returncode
