"""The local file laid over a flag file: what one machine has otherwise, and in prod only where that turns flags off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jarvis_flags.parse import TOP_KEYS
from jarvis_flags.place import LocalLine, Place, Problem
from jarvis_flags.tree import TreeMap

__all__ = ["merge_local"]

_ONLY_OFF = "not taken: in prod a local file may only turn flags off (JARVIS_ALLOW_LOCAL=1 lifts this)"


def merge_local(tree: Any, local: Any, local_file: str, *, off_only: bool) -> tuple[Any, list[Problem]]:
    """Lays a local file over a flag file, field by field; lists are replaced.

    Args:
        tree: The flag file's tree; it is not changed.
        local: The local file's tree.
        local_file: Its name in messages.
        off_only: Take only what can but turn a flag off (the rule for prod).

    Returns:
        The merged tree, and what was not taken.
    """
    problems: list[Problem] = []
    place = Place(local, "", getattr(local, "line", 0), local_file, problems)
    if local is None or not place.mapping() or not isinstance(tree, Mapping):
        return tree, problems
    merged = _copied(tree)
    for key in local:
        section = place.at(key)
        if key not in ("flags", "segments"):
            if not off_only and key in TOP_KEYS:
                _put(merged, key, section)
            continue
        if not section.mapping() or (off_only and key == "segments"):
            if off_only:
                section.wrong(_ONLY_OFF)
            continue
        there = merged.get(key) or {}
        if not isinstance(there, Mapping):
            continue  # the flag file's own fault, which is told when it is read
        target = _copied(there)
        for entry in section.each():
            _merge_entry(target, entry.key, entry, off_only=off_only)
        merged[key] = target
    return merged, problems


def _merge_entry(target: TreeMap, name: str, entry: Place, *, off_only: bool) -> None:
    if not isinstance(entry.value, Mapping) or not isinstance(target.get(name), Mapping):
        if off_only:
            entry.wrong(_ONLY_OFF)
        else:
            _put(target, name, entry)
        return
    fields = _copied(target[name])
    for item in entry.each():
        key = item.key
        if off_only and not _turns_off(key, item.value):
            item.wrong(_ONLY_OFF)
        elif isinstance(item.value, Mapping) and isinstance(fields.get(key), Mapping):
            inner = _copied(fields[key])
            for leaf in item.each():
                _put(inner, leaf.key, leaf)
            fields[key] = inner
        else:
            _put(fields, key, item)
    target[name] = fields


def _turns_off(key: str, value: Any) -> bool:
    if key == "environment_defaults":
        return isinstance(value, Mapping) and all(item is False for item in value.values())
    return (key == "enabled" and value is False) or (key == "status" and value == "disabled")


def _copied(tree: Mapping[str, Any]) -> TreeMap:
    copy = TreeMap(getattr(tree, "line", 0))
    copy.update(tree)
    copy.lines.update(getattr(tree, "lines", {}))
    return copy


def _put(target: TreeMap, key: str, place: Place) -> None:
    target[key] = place.value
    line = LocalLine(place.line)
    line.file = place.file
    target.lines[key] = line
