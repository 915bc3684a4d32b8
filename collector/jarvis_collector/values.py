"""OTLP's AnyValue: how a line shows one, and when what it shows is all that there is."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

__all__ = [
    "ATTRIBUTES_MAX",
    "DEPTH_MAX",
    "AnyValue",
    "Attributes",
    "KeyValue",
    "RecordError",
    "any_value",
    "double",
    "merged",
    "readable",
]

AnyValue = dict[str, Any]
"""An AnyValue in one spelling of its OTLP/JSON form: `{"intValue": "5"}`, `{"arrayValue": {"values": []}}`, `{}`."""

KeyValue = dict[str, Any]
"""An attribute in its OTLP/JSON form: `{"key": ..., "value": AnyValue}`."""

ATTRIBUTES_MAX = 4096
"""So many attributes may a record, a span or a resource have."""

DEPTH_MAX = 64
"""So deep may an attribute or a body be nested: readers of lines must get through it (jq, orjson)."""


class RecordError(ValueError):
    """One record that cannot be kept as it is; its neighbours are not concerned."""


class Attributes(NamedTuple):
    """The attributes of a record, resource or scope.

    Attributes:
        values: Value by key, as a line shows it.
        exact: Those of them, as OTLP lists them, that are otherwise than shown.
    """

    values: dict[str, Any]
    exact: list[KeyValue]

    @classmethod
    def of(cls, pairs: list[tuple[str, AnyValue]]) -> Attributes:
        """Any attributes, repeated keys among them; of those the last value is shown, and all are exact.

        Raises:
            RecordError: There are too many.
        """
        if len(pairs) > ATTRIBUTES_MAX:
            raise RecordError(f"{len(pairs)} attributes, at most {ATTRIBUTES_MAX} are kept")
        values = {key: readable(value) for key, value in pairs}
        seen = Counter(key for key, _ in pairs)
        exact = [
            {"key": key, "value": value} for key, value in pairs if seen[key] > 1 or any_value(values[key]) != value
        ]
        return cls(values, exact)

    def as_otlp(self) -> list[KeyValue]:
        """All of them as OTLP lists them."""
        inexact = {pair["key"] for pair in self.exact}
        shown = [{"key": key, "value": any_value(value)} for key, value in self.values.items() if key not in inexact]
        return shown + self.exact


def any_value(value: Any) -> AnyValue:
    """The AnyValue of what JSON can carry.

    Args:
        value: A str, bool, int, float, list or dict of such, or None.
    """
    if isinstance(value, str):
        return {"stringValue": value}
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": double(value)}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": [{"key": key, "value": any_value(item)} for key, item in value.items()]}}
    return {"arrayValue": {"values": [any_value(item) for item in value]}}


def readable(value: AnyValue) -> Any:
    """What a line shows of an AnyValue: the JSON value of its kind; base64 for bytes, a name for NaN and infinities."""
    for kind, content in value.items():
        if kind == "intValue":
            return int(content)
        if kind == "arrayValue":
            return [readable(item) for item in content["values"]]
        if kind == "kvlistValue":
            return {pair["key"]: readable(pair["value"]) for pair in content["values"]}
        return content
    return None


def double(number: float) -> float | str:
    """A float as OTLP/JSON writes it: NaN and the infinities by name."""
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def merged(exact: list[KeyValue], more: list[KeyValue]) -> list[KeyValue]:
    """The exact attributes and those of `more` that are not among them."""
    known = {pair["key"] for pair in exact}
    return exact + [pair for pair in more if pair["key"] not in known]
