"""Answers questions to the logs by `jarvis` in a process of its own: a long search delays no change of a flag."""

from __future__ import annotations

import asyncio
import contextlib
import sys

from jarvis_otel.telegram import texts
from jarvis_otel.telegram.desk import Ask
from jarvis_otel.telegram.texts import Page

__all__ = ["answer"]

ANSWER_S = 30.0
_BYTES_MAX = 64 * 1024
_NOTHING_FOUND = 1


async def answer(ask: Ask) -> Page:
    """The answer to a question, or why there is none.

    Args:
        ask: The question.
    """
    parts = []
    for command in ask.commands:
        status, out, said = await _run(command)
        if status is None:
            return texts.note_page(f"{ask.title}: no answer within {ANSWER_S:g} seconds; ask for less")
        if status not in (0, _NOTHING_FOUND):
            return texts.note_page(said.strip().rpartition("\n")[2].removeprefix("jarvis ") or f"{ask.title}: failed")
        parts.append(out.strip("\n"))
    text = "\n\n".join(part for part in parts if part)
    return texts.output_page(ask.title, text or "nothing found")


async def _run(arguments: tuple[str, ...]) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jarvis_otel.cli.main", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(ANSWER_S):
            out, said = await asyncio.gather(_some(process.stdout), _some(process.stderr))
            status = await process.wait()
    except TimeoutError:
        return None, "", ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return status, out.decode(errors="replace"), said.decode(errors="replace")


async def _some(stream: asyncio.StreamReader) -> bytes:
    """The first part of what comes; the rest is read and dropped, so that the writer ends."""
    kept = b""
    while piece := await stream.read(_BYTES_MAX):
        kept += piece[: _BYTES_MAX - len(kept)]
    return kept
