"""Runs `jarvis flags …` as a process of its own, as a person would."""

import os
import subprocess
import sys


def jarvis(*arguments, **environ):
    """What became of `jarvis flags` with these arguments; its announcements of changes are off."""
    return subprocess.run(
        [sys.executable, "-m", "jarvis_otel.cli.main", "flags", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OTEL_LOGS_EXPORTER": "none", **environ},
        check=False,
    )
