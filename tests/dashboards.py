"""What of the real stack is data: the dashboards, with what Grafana makes of a query, and the configurations in the docs."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
GRAFANA = ROOT / "config" / "grafana"
DOCUMENTED: dict[str, dict[str, Any]] = {
    name: yaml.safe_load(block)
    for name, block in re.findall(
        r"^```yaml\n# otelcol: (\w+)\n(.*?)^```",
        (ROOT / "docs" / "collector.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
}
"""What the docs add to otelcol-loki.yaml to send to other targets."""
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(GRAFANA.glob("dashboards/*.json"))}

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
_BUILT_IN = {"__auto": "5m", "__interval": "5m", "__range": "1h"}


class Query(NamedTuple):
    """A query of a dashboard.

    Attributes:
        name: Where it stands.
        expression: LogQL with Grafana's variables.
        instant: Whether it is asked for one moment.
    """

    name: str
    expression: str
    instant: bool


def variables_in(text: str) -> set[str]:
    """The variables that a text uses, Grafana's own left out."""
    return {braced or plain for braced, plain in _VARIABLE.findall(text)} - _BUILT_IN.keys()


def queries(board: Mapping[str, Any]) -> Iterator[Query]:
    """All queries of a dashboard's panels and annotations."""
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            name = f"{board['uid']} / {panel['title']} / {target['refId']}"
            yield Query(name, target["expr"], target["queryType"] == "instant")
    for annotation in board["annotations"]["list"]:
        yield Query(f"{board['uid']} / annotation {annotation['name']}", annotation["expr"], instant=False)


def defaults(board: Mapping[str, Any]) -> dict[str, str]:
    """What each variable is when the dashboard is opened."""
    values = {}
    for variable in board["templating"]["list"]:
        current = variable["current"]["value"]
        values[variable["name"]] = variable["allValue"] if current == ["$__all"] else current
    return values


def interpolated(expression: str, values: Mapping[str, str]) -> str:
    """A query with its variables replaced."""
    known = {**values, **_BUILT_IN}
    return _VARIABLE.sub(lambda match: known[match[1] or match[2]], expression)
