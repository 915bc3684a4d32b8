"""`jarvis flags import` and `jarvis flags export`: flags out of flagd, and back to it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from jarvis_flags.buckets import FLAGD_HASHES
from jarvis_flags.files import write_file
from jarvis_flags.flagd import Refusal, export_flagd, import_flagd
from jarvis_flags.tree import TreeError, load_tree, plain
from jarvis_otel.cli.flag_session import FlagSession, add_command
from jarvis_otel.terminal import DONE, WRONG, printable

__all__ = ["add_flagd_parsers"]

WIDTH = 110


def add_flagd_parsers(parts: argparse._SubParsersAction[Any]) -> None:
    """Adds `import` and `export` to the subcommands of `jarvis flags`."""
    taken = add_command(
        parts,
        "import",
        "flags out of another system's file; 2 where one cannot be carried over exactly",
        "jarvis flags import flagd flags.json -o imported.yaml",
        _import,
        needs_flags=False,
    )
    taken.add_argument("system", choices=("flagd",), help="where the file comes from")
    taken.add_argument("file", metavar="FILE", type=Path, help="its flag definitions, JSON or YAML")
    given = add_command(
        parts,
        "export",
        "the flags as another system's file; 2 where one cannot be carried over exactly",
        "jarvis flags export flagd -o flagd.json",
        _export,
    )
    given.add_argument("system", choices=("flagd",), help="for whom")
    for parser, whose in ((taken, "that serves them now"), (given, "that will serve them")):
        parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="the file to write (default: stdout)")
        parser.add_argument(
            "--hash", choices=FLAGD_HASHES, default="flagd-v3", help=f"that of the flagd {whose} (default: %(default)s)"
        )


def _import(_: FlagSession, args: argparse.Namespace) -> int:
    try:
        tree = load_tree(args.file.read_bytes())
        imported = import_flagd(tree, args.hash)
    except OSError as error:
        return _wrong(f"{args.file}: {error.strerror}")
    except TreeError as error:
        return _wrong(f"{args.file}:{error.line}: {error}" if error.line else f"{args.file}: {error}")
    except ValueError as error:
        return _wrong(f"{args.file}: {error}")
    unwritable = _unwritable(imported.document)
    kept = {flag_id: flag for flag_id, flag in imported.document["flags"].items() if flag_id not in unwritable}
    document = {**imported.document, "flags": kept}
    refused = [*imported.refused, *unwritable.values()]
    text = _json(document) if args.format == "json" else _heading(args.file.name, kept, refused) + _yaml(document)
    return _write(text, args.output) or _tell(str(args.file), refused)


def _heading(name: str, flags: Mapping[str, Any], refused: Iterable[Refusal]) -> str:
    lines = [f"{len(flags)} {'flag' if len(flags) == 1 else 'flags'}, imported from flagd's {name!r}"]
    if missing := [refusal.flag_id for refusal in refused if refusal.flag_id]:
        lines.append(f"Not carried over: {', '.join(missing)}")
    return "".join(f"# {printable(line)}\n" for line in lines)


def _export(flags: FlagSession, args: argparse.Namespace) -> int:
    snapshot = flags.snapshot
    exported = export_flagd(snapshot.definitions, snapshot.segments, args.hash)
    unusable = [
        Refusal(flag_id, f"flags.{flag_id}", "its definition cannot be used: see `jarvis flags lint`")
        for flag_id in snapshot.bad
        if flag_id not in snapshot.definitions
    ]
    file = str(flags.settings.flags.flags_file)
    return _write(_json(exported.document), args.output) or _tell(file, [*exported.refused, *unusable])


def _tell(file: str, refused: Iterable[Refusal]) -> int:
    status = DONE
    for refusal in refused:
        print(printable(f"{file}: {refusal}"), file=sys.stderr)
        status = WRONG
    return status


def _wrong(message: str) -> int:
    print(printable(f"jarvis: {message}"), file=sys.stderr)
    return WRONG


def _write(text: str, path: Path | None) -> int:
    content = text.encode()
    if path is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return DONE
    try:
        write_file(path, content)
    except OSError as error:
        return _wrong(f"{path}: {error.strerror}")
    return DONE


def _json(document: Any) -> str:
    # escaped throughout: a lone surrogate in a text stays what it was
    return json.dumps(plain(document), indent=2) + "\n"


# --- YAML ---


class _Open(dict[str, Any]):
    """A mapping that is written over several lines, however short it is."""


class _Dumper(yaml.SafeDumper):
    """Writes what `load_tree` reads back as it was; what fits on a line stays on one."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text(dumper: _Dumper, data: str) -> yaml.Node:
    # PyYAML writes by YAML 1.1, so it leaves bare what is a number in 1.2
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=None if _reads_back(data) else '"')


def _mapping(dumper: _Dumper, data: Mapping[str, Any]) -> yaml.Node:
    short = not isinstance(data, _Open) and _is_short(data)
    return dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=short)


def _sequence(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=_is_short(data))


def _is_short(data: Any) -> bool:
    return len(json.dumps(data)) <= WIDTH


_Dumper.add_representer(str, _text)
_Dumper.add_representer(dict, _mapping)
_Dumper.add_representer(_Open, _mapping)
_Dumper.add_representer(list, _sequence)


def _reads_back(text: str) -> bool:
    try:
        return isinstance(load_tree(text), str)
    except TreeError:
        return True  # not bare in any case: PyYAML knows that it has to be quoted


def _yaml(document: Mapping[str, Any]) -> str:
    spread = _Open(document)
    if "segments" in document:
        spread["segments"] = _Open(document["segments"])
    spread["flags"] = _Open({flag_id: _Open(flag) for flag_id, flag in document["flags"].items()})
    return yaml.dump(spread, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def _unwritable(document: Mapping[str, Any]) -> dict[str, Refusal]:
    """The flags that YAML cannot hold (text that is no Unicode, nesting too deep), by their id."""
    refused = {}
    for flag_id, flag in document["flags"].items():
        one = {**document, "flags": {flag_id: flag}}
        try:
            why = "" if plain(load_tree(_yaml(one).encode())) == one else "it would not be read back the same"
        except (TreeError, UnicodeEncodeError, yaml.YAMLError) as error:
            why = str(error).splitlines()[0]
        if why:
            refused[flag_id] = Refusal(flag_id, f"flags.{flag_id}", f"cannot be written as YAML: {why}")
    return refused
