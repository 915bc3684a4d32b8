"""`import jarvis_otel.auto` configures the process from its settings, for an application that knows nothing of us."""

from __future__ import annotations

import sys


def _configure() -> None:
    try:
        from jarvis_otel.bootstrap import configure  # noqa: PLC0415

        configure(console=False)
    except Exception as error:  # whatever is wrong with us, the application must start
        print(f"jarvis: not active in this process: {type(error).__name__}: {error}", file=sys.stderr)


_configure()
