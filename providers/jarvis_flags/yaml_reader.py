"""Builds a tree out of libyaml's events; `tree` says what comes out, and imports this when there is YAML to read."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from typing import Any

import yaml

from jarvis_flags.tree import DEPTH_MAX, NumberText, TreeError, TreeList, TreeMap

__all__ = ["read_document"]

NODES_MAX = 2_000_000

_YIELD_EVERY = 128

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+\Z|0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z|[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")
_NUMBER_START = frozenset("0123456789+-.")
_TAG = "tag:yaml.org,2002:"


def read_document(text: bytes | str) -> Any:
    """Parses one YAML (or JSON) document; see `tree.load_tree`."""
    try:
        return _Builder(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))).document()
    except yaml.MarkedYAMLError as error:
        # JSON is not quite a part of YAML: a surrogate pair in escapes, a tab before a key
        tree = _load_json(text)
        if tree is not None:
            return tree
        marks: list[Any] = [error.problem_mark, error.context_mark]
        line = next((mark.line + 1 for mark in marks if mark is not None), 0)
        words = " ".join(part for part in (error.context, error.problem) if part)
        raise TreeError(f"not YAML: {words}", line) from None
    except (yaml.YAMLError, UnicodeError, ValueError) as error:
        if isinstance(error, TreeError):
            raise
        raise TreeError(f"not YAML: {_reader_words(error)}", _reader_line(text, error)) from None


class _Builder:
    """Builds the tree from libyaml's events, which come one by one, so that other threads run in between."""

    def __init__(self, events: Iterable[Any]) -> None:
        self._next = iter(events).__next__
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0

    def document(self) -> Any:
        tree: Any = None
        documents = 0
        while type(event := self._next()) is not yaml.StreamEndEvent:
            if type(event) is yaml.DocumentStartEvent:
                documents += 1
                if documents > 1:
                    raise TreeError("got a second document, want one", _line(event))
                tree = self._node(self._next(), 0)
        return tree

    def _node(self, event: Any, depth: int) -> Any:
        kind = type(event)
        self._nodes += 1
        if not self._nodes % _YIELD_EVERY:
            # a large file is read beside a working application: others need not wait for the interpreter's own turn
            time.sleep(0)
        if kind is yaml.ScalarEvent and event.anchor is None:
            return _scalar(event)
        line = _line(event)
        if self._nodes > NODES_MAX:
            raise TreeError(f"more than {NODES_MAX} values when aliases are unfolded", line)
        if kind is yaml.AliasEvent:
            if event.anchor not in self._anchors:
                raise TreeError(f"*{event.anchor} names no anchor that is complete before it", line)
            tree, size = self._anchors[event.anchor]
            # an alias counts as what it stands for: a bomb of aliases is refused by its size when unfolded
            self._nodes += size
            return tree
        before = self._nodes
        if kind is yaml.ScalarEvent:
            tree = _scalar(event)
        elif depth >= DEPTH_MAX:
            raise TreeError(f"nested deeper than {DEPTH_MAX}", line)
        elif kind is yaml.SequenceStartEvent:
            tree = self._sequence(line, depth)
        else:
            tree = self._mapping(line, depth)
        if event.anchor:
            self._anchors[event.anchor] = (tree, self._nodes - before)
        return tree

    def _sequence(self, line: int, depth: int) -> TreeList:
        tree = TreeList(line)
        following, node = self._next, self._node
        while type(event := following()) is not yaml.SequenceEndEvent:
            tree.lines.append(event.start_mark.line + 1)
            tree.append(node(event, depth + 1))
        return tree

    def _mapping(self, line: int, depth: int) -> TreeMap:
        tree = TreeMap(line)
        lines = tree.lines
        merged: list[Any] = []
        following, node = self._next, self._node
        while type(event := following()) is not yaml.MappingEndEvent:
            key_line = event.start_mark.line + 1
            if type(event) is not yaml.ScalarEvent:
                raise TreeError("a key must be text", key_line)
            key = event.value
            value = node(following(), depth + 1)
            if key == "<<" and event.implicit[0]:
                merged.append(value)
                continue
            if key in lines:
                raise TreeError(f"{key!r} stands twice, first in line {lines[key]}", key_line)
            tree[key] = value
            lines[key] = key_line
        for source in merged:
            if not isinstance(source, TreeMap):
                raise TreeError("<<: wants a mapping", line)
            for key, value in source.items():
                if key not in tree:
                    tree[key] = value
                    lines[key] = source.lines[key]
        return tree


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _scalar(event: Any) -> Any:
    value: str = event.value
    if event.tag is not None and event.tag != "!":
        return _tagged(event.tag, value, _line(event))
    if not event.implicit[0]:
        return value
    if value in _NULL:
        return None
    if value[0] in _NUMBER_START:
        if _INT.match(value):
            # the limit keeps int() from quadratic work; no flag needs more digits
            return int(value, 0 if value[:2] in ("0o", "0x") else 10) if len(value) <= 100 else value
        if _FLOAT.match(value):
            return NumberText(value)
        return value
    return _BOOL.get(value, value)


def _tagged(tag: str, value: str, line: int) -> Any:
    kind = tag.removeprefix(_TAG)
    if kind == "str":
        return value
    if kind == "null" and value in _NULL:
        return None
    if kind == "bool" and value in _BOOL:
        return _BOOL[value]
    if kind == "int" and _INT.match(value) and len(value) <= 100:
        return int(value, 0 if value[:2] in ("0o", "0x") else 10)
    if kind == "float" and (_FLOAT.match(value) or _INT.match(value)):
        return NumberText(value)
    raise TreeError(f"{value!r} cannot be read as {tag}", line)


def _load_json(text: bytes | str) -> Any:
    def to_map(pairs: list[tuple[str, Any]]) -> TreeMap:
        tree = TreeMap()
        for key, value in pairs:
            if key in tree:
                raise TreeError(f"{key!r} stands twice")
            tree[key] = value
        return tree

    try:
        return json.loads(text, object_pairs_hook=to_map, parse_float=NumberText)
    except TreeError:
        raise
    except (ValueError, RecursionError):
        return None


def _reader_words(error: Exception) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.reason} (character {error.character!r}, position {error.position})"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _reader_line(text: bytes | str, error: Exception) -> int:
    position = getattr(error, "position", None)
    if not isinstance(position, int):
        return 0
    return text[:position].count(b"\n" if isinstance(text, bytes) else "\n") + 1  # type: ignore[arg-type]
