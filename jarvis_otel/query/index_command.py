"""`jarvis logs index`: makes the indexes of a log directory, and says what they cover."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from jarvis_otel.query.errors import NO_LOG_DIR
from jarvis_otel.query.index_build import index_each, remove_orphans
from jarvis_otel.query.render import json_text
from jarvis_otel.terminal import DONE, NO, WRONG, printable

__all__ = ["index_command"]


def index_command(args: Namespace, log_dir: Path) -> int:
    """Makes or brings up to date the index of each day file; a file a line on stdout, the sum and problems on stderr.

    Args:
        args: The parsed options.
        log_dir: The log directory.

    Returns:
        The exit code: done, no file to index, or there were problems.
    """
    files: list[dict[str, Any]] = []
    problems: list[str] = []
    removed = 0
    try:
        for name, made, problem in index_each(log_dir, anew=args.all):
            if problem:
                problems.append(problem)
                continue
            files.append({"file": name, **({"blocks": 0} if made is None else made._asdict())})
            if args.format == "human":
                print(printable(_told(files[-1])))
        removed = remove_orphans(log_dir)
    except FileNotFoundError:
        problems.append(f"{log_dir}: {NO_LOG_DIR}")
    except OSError as error:
        problems.append(f"{error.filename or log_dir}: {error.strerror or error}")
    if args.format == "json":
        print(json_text({"dir": str(log_dir), "files": files, "removed": removed, "problems": problems}))
    for problem in problems:
        _talk(problem)
    if problems:
        return WRONG
    if not files:
        _talk(f"no day files in {log_dir}")
        return NO
    new, size = (sum(file.get(key, 0) for file in files) for key in ("new", "size"))
    _talk(f"{len(files)} files, {new:,} bytes newly indexed, the indexes have {size:,} bytes")
    return DONE


def _told(file: dict[str, Any]) -> str:
    if not file["blocks"]:
        return f"not indexed  {file['file']} (no whole line, or an archive that is not ours)"
    state = "indexed    " if file["new"] else "up to date "
    return f"{state}  {file['file']} ({file['blocks']} blocks)"


def _talk(text: str) -> None:
    print(f"jarvis logs index: {printable(text)}", file=sys.stderr)
