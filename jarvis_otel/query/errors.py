"""What a question is answered with that cannot be understood, or not answered."""

from __future__ import annotations

__all__ = ["NO_LOG_DIR", "AnswerError", "QueryError"]

NO_LOG_DIR = "no such directory; name one by --dir or JARVIS_LOG_DIR, or run the collector"
"""What a command says of a log directory that is not there."""


class QueryError(ValueError):
    """An argument of a question cannot be read; the text is `argument: got …, want …`.

    Attributes:
        argument: The argument of LogQuery that is wrong.
        problem: What was got and wanted.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")
        self.argument = argument
        self.problem = problem


class AnswerError(Exception):
    """A question that was understood and cannot be answered; the text says why, and the cure, in one line."""
