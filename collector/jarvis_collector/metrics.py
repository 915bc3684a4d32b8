"""Prometheus's text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["CONTENT_TYPE", "Metric", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "jarvis_collector_"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Metric(NamedTuple):
    """A metric and its values.

    Attributes:
        name: Without the prefix `jarvis_collector_`.
        kind: counter or gauge.
        help: What it counts, in a sentence.
        values: By the label's value; a metric without a label has one by the empty text.
        label: The label's name.
    """

    name: str
    kind: str
    help: str
    values: Mapping[str, float]
    label: str = ""


def render(metrics: list[Metric]) -> bytes:
    """The metrics as they are scraped."""
    lines: list[str] = []
    for metric in metrics:
        name = f"{_PREFIX}{metric.name}"
        lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
        for key, value in metric.values.items():
            label = f'{{{metric.label}="{key.translate(_ESCAPES)}"}}' if metric.label else ""
            lines.append(f"{name}{label} {value}")
    return "\n".join([*lines, ""]).encode()
