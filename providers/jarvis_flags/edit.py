"""Changes flag files as a careful person would: only the text of what changes is touched, all else keeps its bytes.

The parser's marks say where each value stands in the text, and what is written anew is put in its place. Writing the
whole document out again, as round-trip writers do, would also respell what nobody changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jarvis_flags.files import write_file
from jarvis_flags.model import FlagDefinition
from jarvis_flags.parse import parse_flags
from jarvis_flags.place import Problem
from jarvis_flags.tree import TreeError, load_tree, plain

__all__ = ["add_flag", "save_flags", "set_flag_fields"]

_DEPTH = {"flags": 2, "segments": 1}
"""So many levels below the document are changed entry by entry; what lies deeper is replaced whole."""

_NEW_FILE = {".json": b'{\n  "version": "1.0"\n}\n'}
_NEW_YAML = b'version: "1.0"\n'
_LOCK_SECONDS = 5.0
_LINE_MAX = 100

_NOTE = re.compile(r"(?:[ \t]*\r?\n)*( *)#.*(?:\n|\Z)")
_BLANK_LINE = re.compile(r"\n[ \t]*\r?\n")

_Changes = Mapping[str, Any]
"""New values by key; None takes a key away, a mapping within _DEPTH changes the one that is there."""

_Levelled = dict[str, tuple[Any, int]]
"""New values by key, each with the levels in which its entries are lines."""


def add_flag(path: str | os.PathLike[str], definition: FlagDefinition) -> None:
    """Adds a flag to a flag file, behind its last one; file and directory are made where there are none.

    Args:
        path: The file, YAML or JSON; a symbolic link is followed.
        definition: The flag.

    Raises:
        ValueError: The flag is there already, it or the file cannot be used, or somebody changed the file meanwhile.
        OSError: The file cannot be read or written.
    """

    def changes(tree: Mapping[str, Any]) -> _Changes:
        if definition.id in (tree.get("flags") or {}):
            raise ValueError(f"{path}: flags.{definition.id}: there is such a flag already")
        return {"flags": {definition.id: definition.to_dict()}}

    _make_room(path)
    _edit(path, changes)


def set_flag_fields(path: str | os.PathLike[str], flag_id: str, fields: Mapping[str, Any]) -> None:
    """Sets fields of a flag in a flag file.

    Args:
        path: The file, YAML or JSON; a symbolic link is followed.
        flag_id: The flag.
        fields: New values as the file writes them (see `FlagDefinition.to_dict`); None takes a field away.

    Raises:
        ValueError: There is no such flag, a value or the file cannot be used, or somebody changed the file meanwhile.
        OSError: The file cannot be read or written.
    """

    def changes(tree: Mapping[str, Any]) -> _Changes:
        if flag_id not in (tree.get("flags") or {}):
            raise ValueError(f"{path}: flags.{flag_id}: there is no such flag")
        return {"flags": {flag_id: fields}}

    _edit(path, changes)


def save_flags(
    path: str | os.PathLike[str],
    definitions: Iterable[FlagDefinition],
    segments: Mapping[str, Any] | None = None,
) -> None:
    """Makes a flag file say just these flags; those that it says already keep their text.

    Args:
        path: The file, YAML or JSON; a symbolic link is followed. It and its directory are made where there are none.
        definitions: All flags.
        segments: Condition trees of named segments that the flags use; the file's further ones stay.

    Raises:
        ValueError: A flag or the file cannot be used, or somebody changed the file meanwhile.
        OSError: The file cannot be read or written.
    """
    wanted = {definition.id: definition.to_dict() for definition in definitions}

    def changes(tree: Mapping[str, Any]) -> _Changes:
        there = parse_flags(tree, str(path))
        flags: dict[str, Any] = {flag_id: None for flag_id in tree.get("flags") or {} if flag_id not in wanted}
        for flag_id, new in wanted.items():
            if flag_id in there.flags:
                old = there.flags[flag_id].to_dict()
                fields = {name: new.get(name) for name in old | new if plain(old.get(name)) != plain(new.get(name))}
                if fields:
                    flags[flag_id] = fields
            elif isinstance(written := (tree.get("flags") or {}).get(flag_id), Mapping):
                flags[flag_id] = dict.fromkeys(written) | new
            else:
                flags[flag_id] = new
        named = {
            name: condition
            for name, condition in (segments or {}).items()
            if name not in there.segments or plain(there.segments[name].source) != plain(condition)
        }
        return {key: value for key, value in (("segments", named), ("flags", flags)) if value}

    _make_room(path)
    _edit(path, changes)


def _make_room(path: str | os.PathLike[str]) -> None:
    Path(path).resolve().parent.mkdir(parents=True, exist_ok=True)


def _edit(path: str | os.PathLike[str], changes_to: Callable[[Mapping[str, Any]], _Changes]) -> None:
    shown, target = os.fspath(path), Path(path).resolve()
    with _alone_in(target.parent):
        before, mode = _read(target)
        content = _NEW_FILE.get(target.suffix, _NEW_YAML) if before is None else before
        tree = _tree(content, shown)
        changes = plain(changes_to(tree))
        if not changes:
            return
        intended = _changed(tree, changes)
        try:
            new = _edited(content.decode(), changes, intended, json_file=target.suffix == ".json")
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{shown}: cannot be edited: {error}; edit it by hand") from None
        _check(tree, intended, new.encode(), shown)
        if _read(target)[0] != before:
            raise ValueError(f"{shown}: was changed by somebody else meanwhile, nothing is written; try again")
        write_file(target, new.encode(), mode=0o640 if mode is None else mode)


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keeps our other processes from editing in a directory at the same time; an editor is noticed by the content."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        give_up = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise ValueError(f"{directory}: another process is editing in it; try again") from None
                time.sleep(0.01)
            except OSError:  # a network file system that locks no directories: the content is compared anyway
                break
        yield
    finally:
        os.close(descriptor)


def _read(target: Path) -> tuple[bytes | None, int | None]:
    try:
        with target.open("rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mode & 0o7777
    except FileNotFoundError:
        return None, None


def _tree(content: bytes, shown: str) -> Mapping[str, Any]:
    try:
        tree = load_tree(content)
    except TreeError as error:
        raise ValueError(str(Problem(shown, error.line, "", str(error)))) from None
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise ValueError(f"{shown}: got no mapping, want a flag file")  # noqa: TRY004 - the file's fault, no type of ours
    if not isinstance(tree.get("flags") or {}, Mapping):
        raise ValueError(f"{shown}: flags: got no mapping, want flags by their ids")  # noqa: TRY004 - the same
    return tree


def _check(tree: Mapping[str, Any], intended: Mapping[str, Any], content: bytes, shown: str) -> None:
    """Reads the new content as every process will, before any can."""
    try:
        written = load_tree(content)
    except TreeError as error:
        raise ValueError(f"{shown}: cannot be edited: it would then read {error}; edit it by hand") from None
    if written != intended:
        raise ValueError(f"{shown}: the change would also change something else (an anchor?); edit it by hand")
    known = {(problem.path, problem.message) for problem in parse_flags(tree, shown).problems}
    for problem in parse_flags(written, shown).problems:
        if (problem.path, problem.message) not in known:
            raise ValueError(f"{shown}: {problem.path}: {problem.message}")


def _changed(tree: Mapping[str, Any], changes: _Changes, depth: int | None = None) -> dict[str, Any]:
    """The tree with the changes made: what the edited text must say."""
    result = dict(tree)
    for key, value in changes.items():
        below = _DEPTH.get(key, 0) if depth is None else depth - 1
        there = result.get(key)
        if value is None:
            result.pop(key, None)
        elif below and isinstance(value, Mapping):
            result[key] = _changed(there if isinstance(there, Mapping) else {}, value, below)
        else:
            result[key] = value
    return result


def _edited(text: str, changes: _Changes, intended: Mapping[str, Any], *, json_file: bool) -> str:
    try:
        return _Splicer(text, json_file=json_file).changed(changes)
    except yaml.YAMLError:
        if not json_file:
            raise
        # what JSON has and YAML has not, such as surrogate pairs in escapes: no marks, so it is written whole
        return _json_text(intended, indent=2) + "\n"


# --- where values stand in the text ---


@dataclass(slots=True)
class _Node:
    """A value in the text, from `start` to `end`; `entries` are those of a mapping, in their order."""

    start: int
    end: int
    column: int
    kind: str
    flow: bool = False
    entries: list[_Entry] = field(default_factory=list)


@dataclass(slots=True)
class _Entry:
    key: str
    name: _Node
    value: _Node


def _end(event: Any) -> int:
    return int(event.end_mark.index)


class _Reader:
    """Finds the nodes of a document by libyaml's events."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))

    def document(self) -> _Node | None:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                return self._node(next(self._events))
        return None

    def _node(self, event: Any) -> _Node:
        start, column = event.start_mark.index, event.start_mark.column
        if isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
            kind = "scalar" if isinstance(event, yaml.ScalarEvent) else "alias"
            length = len(self._text[start : _end(event)].rstrip())
            return _Node(start, start + length, column, kind)
        node = _Node(start, start, column, "sequence", bool(event.flow_style))
        if isinstance(event, yaml.SequenceStartEvent):
            while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
                node.end = self._node(event).end
        else:
            node.kind = "mapping"
            while not isinstance(event := next(self._events), yaml.MappingEndEvent):
                key = getattr(event, "value", "")
                name, value = self._node(event), self._node(next(self._events))
                node.entries.append(_Entry(key, name, value))
                node.end = value.end
        if node.flow:
            node.end = _end(event)
        elif node.entries:
            # an anchor or a tag may stand in a line of its own before the first key
            node.column = node.entries[0].name.column
        return node


class _Splicer:
    """Changes the text of a document by cutting out and putting in."""

    def __init__(self, text: str, *, json_file: bool) -> None:
        self._text = text
        self._json = json_file
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._cuts: list[tuple[int, int, str]] = []

    def changed(self, changes: _Changes) -> str:
        """The text with the changes made (see `_changed`)."""
        root = _Reader(self._text).document()
        if root is None or root.start == root.end:
            self._cut(len(self._text), len(self._text), self._below(_levelled(changes), 0, len(self._text)))
        elif not root.entries:
            self._cut(root.start, root.end, self._below(_levelled(changes), 0, root.start))
        else:
            self._change(root, changes, None)
        pieces, at = [], 0
        for start, end, new in sorted(self._cuts, key=lambda cut: cut[:2]):
            pieces += [self._text[at:start], new]
            at = end
        return "".join([*pieces, self._text[at:]])

    def _change(self, node: _Node, changes: _Changes, depth: int | None) -> None:
        put: _Levelled = {}
        taken: set[str] = set()
        there = {entry.key: entry for entry in node.entries}
        for key, value in changes.items():
            below = _DEPTH.get(key, 0) if depth is None else depth - 1
            new = _without_nothing(value) if below else value
            entry = there.get(key)
            if value is None:
                taken.add(key)
            elif entry is None:
                put[key] = new, below
            elif below and entry.value.kind == "alias":
                raise yaml.YAMLError(f"{key} is an alias")
            elif below and any(value.get(inner.key, inner) is not None for inner in entry.value.entries):
                self._change(entry.value, value, below)
            elif node.flow:
                self._cut(entry.value.start, entry.value.end, self._flow(new, self._column(entry.name.start)))
            else:
                self._replace(entry, new, below)
        if taken:
            self._take_away(node, taken)
        if put:
            self._put(node, put)

    def _cut(self, start: int, end: int, new: str) -> None:
        self._cuts.append((start, end, new))

    def _line_start(self, at: int) -> int:
        return self._text.rfind("\n", 0, at) + 1

    def _line_end(self, at: int) -> int:
        """Where the next line begins."""
        found = self._text.find("\n", at)
        return len(self._text) if found < 0 else found + 1

    def _column(self, at: int) -> int:
        """The indentation of the line."""
        line = self._text[self._line_start(at) : at]
        return len(line) - len(line.lstrip(" "))

    def _colon(self, entry: _Entry) -> int:
        """Behind the colon of an entry in block style."""
        colon = re.compile(r"[ \t]*:").match(self._text, entry.name.end)
        if colon is None or self._text[self._line_start(entry.name.start) : entry.name.start].strip(" \ufeff"):
            raise yaml.YAMLError(f"{entry.key} does not begin a line as `{entry.key}:`")
        return colon.end()

    # In block style entries are lines.

    def _below(self, entries: _Levelled, column: int, at: int, *, apart: bool = False) -> str:
        """Entries as whole lines, to be put in at the beginning of a line or at the text's end."""
        text = self._newline if at and self._text[at - 1] != "\n" else ""
        for key, (value, levels) in entries.items():
            text += (self._newline if apart else "") + self._lines(_block(key, value, levels), column)
        return text

    def _lines(self, text: str, column: int) -> str:
        return textwrap.indent(text, " " * column).replace("\n", self._newline)

    def _replace(self, entry: _Entry, new: Any, levels: int) -> None:
        old, behind = entry.value, self._colon(entry)
        first, _, block = _block("k", new, levels).partition("\n")
        inline = first.removeprefix("k:")
        column = entry.name.column + 2
        if self._line_start(old.start) == self._line_start(behind):
            lines_from = lines_to = self._line_end(old.end)
            self._cut(behind, max(old.end, behind), inline)
        else:
            lines_from, lines_to = self._line_start(old.start), self._line_end(old.end)
            column = max(old.column, column) if old.column > entry.name.column else column
            self._cut(behind, behind, inline)
        missing = self._newline if block and self._text[lines_from - 1] != "\n" else ""
        self._cut(lines_from, lines_to, missing + self._lines(textwrap.dedent(block), column))

    def _put(self, node: _Node, entries: _Levelled) -> None:
        """Adds entries behind the last one of a mapping."""
        last = node.entries[-1]
        if node.flow:
            column = self._column(last.name.start)
            texts = [self._pair(key, value, column) for key, (value, _) in entries.items()]
            self._cut(last.value.end, last.value.end, "".join(self._between(node) + text for text in texts))
            return
        at = self._line_end(last.value.end)
        while note := _NOTE.match(self._text, at):
            if len(note[1]) < max(node.column, 1):
                break
            at = note.end()
        before = self._text[node.entries[-2].value.end : last.name.start] if len(node.entries) > 1 else ""
        self._cut(at, at, self._below(entries, node.column, at, apart=_BLANK_LINE.search(before) is not None))

    def _take_away(self, node: _Node, keys: set[str]) -> None:
        """Takes entries out of a mapping in which others stay."""
        if node.flow:
            # what stays moves together, with the text that opened and closed the mapping around it
            kept = [entry for entry in node.entries if entry.key not in keys]
            ends = [node.start + 1, *(entry.value.end for entry in node.entries)]
            for index, entry in enumerate(node.entries):
                if entry.key not in keys:
                    continue
                if entry.name.start < kept[0].name.start:
                    self._cut(entry.name.start, node.entries[index + 1].name.start, "")
                else:
                    self._cut(ends[index], entry.value.end, "")
            return
        for entry in node.entries:
            if entry.key in keys:
                self._colon(entry)
                start, end = self._line_start(entry.name.start), self._line_end(entry.value.end)
                if self._text[self._line_start(start - 1) : start].strip() == "":
                    while end < len(self._text) and not self._text[end : self._line_end(end)].strip():
                        end = self._line_end(end)
                self._cut(start, end, "")

    # In flow style, and so in JSON, they are parted by commas.

    def _between(self, node: _Node) -> str:
        """What parts two entries: each in a line of its own, where the last one is."""
        start = node.entries[-1].name.start
        lead = self._text[self._line_start(start) : start]
        return f",{self._newline}{lead}" if not lead.strip() else ", "

    def _pair(self, key: str, value: Any, column: int) -> str:
        if self._json:
            return f"{_json_text(key)}: {self._flow(value, column)}"
        return _flow({key: value})[1:-1]

    def _flow(self, value: Any, column: int) -> str:
        if not self._json:
            return _flow(value)
        text = _json_text(value)
        if len(text) > _LINE_MAX - column:
            text = _json_text(value, indent=2).replace("\n", self._newline + " " * column)
        return text


def _levelled(changes: _Changes) -> _Levelled:
    return {key: (_without_nothing(value), _DEPTH.get(key, 0)) for key, value in changes.items() if value is not None}


def _without_nothing(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_nothing(item) for key, item in value.items() if item is not None}


# --- how new values are written ---


def _json_text(value: Any, *, indent: int | None = None) -> str:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # what JSON takes as it is, and YAML does not
    return re.sub(
        "[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text
    )


class _Dumper(yaml.SafeDumper):
    """Writes scalars that YAML 1.1 and the core schema of 1.2 read alike."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


_BREAKS = ("\n", "\x85", "\u2028", "\u2029")


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if len(text.splitlines()) > 1 or text.endswith(_BREAKS) else None
    )


_Dumper.add_representer(str, _represent_text)
# numbers of 1.2 that are text in 1.1
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z"),
    list("-+.0123456789"),
)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"0o[0-7]+\Z|[-+]?[0-9]+\Z"), list("-+0123456789"))


def _flow(value: Any) -> str:
    """A value in one line."""
    text: str = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text[1:-2]


def _block(key: str, value: Any, levels: int = 0) -> str:
    """An entry as lines: a rule has one of its own, what is short stands in one.

    Args:
        key: Its key.
        value: Its value.
        levels: In so many levels of its mappings each entry begins a line, however short.
    """
    flat = _flow(value)
    if value and isinstance(value, Mapping) and (levels or len(flat) > _LINE_MAX):
        entries = "".join(_block(name, inner, max(levels - 1, 0)) for name, inner in value.items())
        return f"{_flow(key)}:\n{textwrap.indent(entries, '  ')}"
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return f"{_flow(key)}:\n{''.join(map(_item, value))}"
    return f"{_flow(key)}: {flat}\n"


def _item(value: Any) -> str:
    flat = _flow(value)
    if isinstance(value, Mapping) and len(flat) > _LINE_MAX:
        return "  - " + textwrap.indent("".join(_block(key, inner) for key, inner in value.items()), "    ")[4:]
    return f"  - {flat}\n"
