"""Reads Gherkin feature files: as much of the language as the conformance suites use, and an error for the rest."""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Scenario", "Step", "read_feature"]

_HEADING = re.compile(
    r"(Feature|Background|Scenario Outline|Scenario Template|Scenario|Example|Examples|Scenarios):(.*)"
)
_STEP = re.compile(r"(Given|When|Then|And|But|\*) +(.*)")
_CELL = re.compile(r"((?:[^|\\]|\\.)*)\|")
_ESCAPE = re.compile(r"\\([|\\n])")


@dataclass(frozen=True, slots=True)
class Step:
    """One step: `table` has a list of cells for each row, the heading row first, and is empty where there is none."""

    keyword: str
    text: str
    table: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario, the steps of its feature's background first; `tags` are without their @."""

    name: str
    tags: frozenset[str]
    steps: tuple[Step, ...]


class _Block:
    """A heading with what stands under it."""

    def __init__(self, kind: str, name: str, tags: frozenset[str]) -> None:
        self.kind, self.name, self.tags = kind, name, tags
        self.steps: list[Step] = []
        self.rows: list[tuple[str, ...]] = []


def read_feature(path: Path | str) -> list[Scenario]:
    """The scenarios of a feature file, outlines expanded: one for each row of their examples.

    Raises:
        ValueError: A line is none that this reader knows.
    """
    feature, background = _Block("Feature", "", frozenset()), _Block("Background", "", frozenset())
    scenarios: list[Scenario] = []
    outline: _Block | None = None
    for block in _blocks(Path(path)):
        if block.kind == "Feature":
            feature = block
        elif block.kind == "Background":
            background = block
        elif block.kind in ("Examples", "Scenarios"):
            if outline is None or not block.rows:
                raise ValueError(f"{path}: Examples {block.name!r}: want an outline before it and rows in it")
            heading, *rows = block.rows
            for number, row in enumerate(rows, 1):
                steps = [_filled(step, dict(zip(heading, row, strict=True))) for step in outline.steps]
                name = f"{outline.name} [{f'{block.name} ' if block.name else ''}{number}]"
                tags = feature.tags | outline.tags | block.tags
                scenarios.append(Scenario(name, tags, (*background.steps, *steps)))
        else:
            outline = block if block.kind in ("Scenario Outline", "Scenario Template") else None
            if outline is None:
                scenarios.append(Scenario(block.name, feature.tags | block.tags, (*background.steps, *block.steps)))
    return scenarios


def _blocks(path: Path) -> list[_Block]:
    blocks: list[_Block] = []
    tags: frozenset[str] = frozenset()
    for number, raw in enumerate(path.read_text("utf-8").splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            tags |= {word.removeprefix("@") for word in line.split(" #")[0].split()}
        elif heading := _HEADING.fullmatch(line):
            blocks.append(_Block(heading[1], heading[2].strip(), tags))
            tags = frozenset()
        elif blocks and (step := _STEP.fullmatch(line)):
            blocks[-1].steps.append(Step(step[1], step[2]))
        elif blocks and line.startswith("|"):
            _add_row(blocks[-1], tuple(_ESCAPE.sub(_unescaped, cell.strip()) for cell in _CELL.findall(line[1:])))
        elif not blocks or blocks[-1].steps or blocks[-1].rows or line.startswith(('"""', "```", "Rule:")):
            raise ValueError(f"{path}:{number}: cannot be read: {line}")  # else it is a description
    return blocks


def _add_row(block: _Block, row: tuple[str, ...]) -> None:
    if block.steps:
        step = block.steps[-1]
        block.steps[-1] = Step(step.keyword, step.text, (*step.table, row))
    else:
        block.rows.append(row)


def _unescaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


def _filled(step: Step, values: dict[str, str]) -> Step:
    def fill(text: str) -> str:
        return re.sub(r"<([^<>]+)>", lambda match: values.get(match[1], match[0]), text)

    return Step(step.keyword, fill(step.text), tuple(tuple(map(fill, row)) for row in step.table))
