"""From the body of an OTLP request to the lines of a day file; the two encodings are read by the two modules beside."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

__all__ = ["REMEMBERED_MAX", "BadRequestError", "Encoding", "Lines", "Signal", "TooLargeError", "read"]


class Signal(StrEnum):
    """What a request carries; the value ends its path, `/v1/logs`."""

    LOGS = "logs"
    TRACES = "traces"
    METRICS = "metrics"


class Encoding(StrEnum):
    """How a request is encoded; the value is its content type."""

    PROTOBUF = "application/x-protobuf"
    JSON = "application/json"


class BadRequestError(ValueError):
    """A body that is no OTLP request at all."""


class TooLargeError(ValueError):
    """A body that is small, or compressed, and would become too much."""


RECORDS_MAX = 250_000
"""So many records may one request have: the smallest costs some microseconds, in which no one else is served."""

REMEMBERED_MAX = 4096
"""Bytes of the largest resource, scope or attribute whose reading is remembered for the next request."""

LINES_MAX = 256 * 1024 * 1024
"""Bytes of the lines of one request; a resource is sent once and stands in each line."""


class Lines:
    """What became of a request.

    Attributes:
        lines: The lines to be written, each with its newline.
        refused: How many records cannot be kept.
        problem: What is wrong with the first of these.
    """

    __slots__ = ("expected", "lines", "problem", "records", "refused")

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.refused = self.records = self.expected = 0
        self.problem = ""

    def expect(self, count: int, shared: int) -> None:
        """Reckons with records before their lines are made.

        Args:
            count: How many share a scope.
            shared: Bytes that each of their lines has of it.

        Raises:
            TooLargeError: There are too many, or their lines will be too large.
        """
        self.records += count
        self.expected += count * shared
        if self.records > RECORDS_MAX:
            raise TooLargeError(f"{self.records} records, at most {RECORDS_MAX} are taken in a request")
        if self.expected > LINES_MAX:
            raise TooLargeError(f"records whose lines would take over {LINES_MAX} bytes, for each repeats its resource")

    def refuse(self, where: str, error: Exception, count: int = 1) -> None:
        """Counts records that cannot be kept.

        Args:
            where: The first of them, as a path into the request.
            error: What is wrong with it.
            count: How many.
        """
        self.refused += count
        if not self.problem and count:
            # errors of our own say it in words; of others the kind says more than the text
            reason = str(error) if type(error) is not KeyError and str(error) else repr(error)
            self.problem = f"{where}: {reason[:300]}"


def read(signal: Signal, encoding: Encoding, body: bytes, arrival: int) -> Lines:
    """The lines of a request.

    Args:
        signal: What it carries.
        encoding: How.
        body: The request's body, inflated.
        arrival: Nanoseconds since 1970.

    Raises:
        TooLargeError: Its lines would be too many or too large.
        BadRequestError: The body cannot be read at all. Single records that cannot be read are counted as refused.
    """
    # each encoding is loaded when the first request in it comes
    reader: Callable[[Signal, bytes, int], Lines]
    if encoding is Encoding.PROTOBUF:
        from jarvis_collector.otlp_protobuf import read as reader  # noqa: PLC0415
    else:
        from jarvis_collector.otlp_json import read as reader  # noqa: PLC0415
    return reader(signal, body, arrival)
