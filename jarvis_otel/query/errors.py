"""What a question that cannot be understood is answered with."""

from __future__ import annotations

__all__ = ["QueryError"]


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
