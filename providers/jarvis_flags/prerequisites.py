"""What flags require of each other: no circle, and no more than can be evaluated in reasonable time."""

from __future__ import annotations

from collections.abc import Mapping

from jarvis_flags.model import FlagDefinition

__all__ = ["tangled"]

_LEVELS_MAX = 20
_EVALUATIONS_MAX = 1000
"""So many evaluations may one flag take by `requires`; those that share prerequisites ask them again and again."""


def tangled(flags: Mapping[str, FlagDefinition]) -> dict[str, str]:
    """What is wrong with `requires`, by each flag that it leads back to, or that would take many others to evaluate.

    Args:
        flags: Definitions by id.
    """
    cycles = _cycles(flags)
    wrong = {flag_id: f"a cycle: {' → '.join(cycle)}" for flag_id, cycle in cycles.items()}
    reach: dict[str, tuple[int, int]] = dict.fromkeys(cycles, (1, 1))  # levels and evaluations, of each flag
    for start in flags:
        pending = [start]
        while pending:
            flag_id = pending[-1]
            others = [other for other in flags[flag_id].requires if other in flags]
            missing = [other for other in others if other not in reach]
            if flag_id not in reach and missing:
                pending += missing
                continue
            pending.pop()
            if flag_id not in reach:
                levels = 1 + max((reach[other][0] for other in others), default=0)
                evaluations = min(1 + sum(reach[other][1] for other in others), _EVALUATIONS_MAX + 1)
                reach[flag_id] = levels, evaluations
                if levels > _LEVELS_MAX or evaluations > _EVALUATIONS_MAX:
                    wrong[flag_id] = (
                        f"nested too deep: want at most {_LEVELS_MAX} flags one behind the other, "
                        f"and {_EVALUATIONS_MAX} evaluations in all"
                    )
    return wrong


def _cycles(flags: Mapping[str, FlagDefinition]) -> dict[str, list[str]]:
    """The cycle, by each flag whose `requires` leads back to itself."""
    cycles: dict[str, list[str]] = {}
    done: set[str] = set()
    for start in flags:
        path = {start: 0}
        pending = [iter(flags[start].requires if start not in done else ())]
        while pending:
            following = next(pending[-1], None)
            if following is None:
                done.add(path.popitem()[0])
                pending.pop()
            elif following in path:
                cycle = list(path)[path[following] :]
                cycles.update((member, [*cycle, following]) for member in cycle if member not in cycles)
            elif following in flags and following not in done:
                path[following] = len(path)
                pending.append(iter(flags[following].requires))
    return cycles
