"""What alerts remember, and what they say of themselves: two files under var/alerts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from jarvis_flags.files import make_directory, write_file

__all__ = ["DIRECTORY", "LOCK_FILE", "read_state", "read_status", "write_state", "write_status"]

DIRECTORY = "alerts"
"""Under the directory of run-time state."""

LOCK_FILE = "lock"

_STATE_FILE = "state.json"
_STATUS_FILE = "status.json"
_FORMAT = 1


def read_state(directory: Path) -> Mapping[str, Any] | None:
    """What was remembered; None where nothing was, or nothing that can be used.

    Args:
        directory: Usually var/alerts.
    """
    found = _read(directory / _STATE_FILE)
    return found if found is not None and found.get("format") == _FORMAT else None


def write_state(directory: Path, state: Mapping[str, Any]) -> None:
    """Replaces what is remembered.

    Args:
        directory: Usually var/alerts; made where it is missing.
        state: What is to be remembered, as JSON has it.

    Raises:
        OSError: It cannot be written.
    """
    make_directory(directory)
    write_file(directory / _STATE_FILE, orjson.dumps({"format": _FORMAT, **state}))


def read_status(state_dir: Path) -> Mapping[str, Any] | None:
    """How alerts are, for people and `jarvis doctor`; None where none were ever told.

    Args:
        state_dir: The directory of run-time state, usually var.
    """
    return _read(state_dir / DIRECTORY / _STATUS_FILE)


def write_status(directory: Path, status: Mapping[str, Any]) -> None:
    """Replaces what is said.

    Args:
        directory: Usually var/alerts; made where it is missing.
        status: As docs/alerts.md describes it.

    Raises:
        OSError: It cannot be written.
    """
    make_directory(directory)
    content = orjson.dumps(status, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    write_file(directory / _STATUS_FILE, content, durable=False)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None
