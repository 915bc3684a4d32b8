"""`jarvis flags migrate`: brings run-time state with its whole audit into etcd, or back into files."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from jarvis_flags.overrides import OverrideSet
from jarvis_otel.admin.audit import verify
from jarvis_otel.admin.file_store import FileStore
from jarvis_otel.admin.store import StoreError
from jarvis_otel.cli.command import print_json
from jarvis_otel.cli.flag_session import FlagSession, add_command
from jarvis_otel.terminal import DONE, NO

__all__ = ["add_migrate_parser"]


def add_migrate_parser(parts: argparse._SubParsersAction[Any]) -> None:
    """Adds `migrate` to `jarvis flags`."""
    summary = "bring run-time state and audit into etcd, or back into files"
    parser = add_command(parts, "migrate", summary, "jarvis flags migrate --to etcd", _migrate, needs_flags=False)
    parser.add_argument("--to", choices=("etcd", "files"), required=True, help="where they are to be")


def _migrate(flags: FlagSession, args: argparse.Namespace) -> int:
    from jarvis_otel.etcd.etcd_store import open_etcd  # noqa: PLC0415 - brings an HTTP client

    settings = replace(flags.settings.flags, store="etcd")
    files = FileStore(settings.flags_state_dir)
    feed, etcd = open_etcd(settings)
    try:
        if feed.state.message:
            raise StoreError(feed.state.message)
        if feed.pending():
            raise StoreError(f"{feed.directory}: something was turned off here that is not in etcd yet; try again")
        lines = etcd.lines() if args.to == "files" else files.lines()
        if (fault := next(verify(lines), None)) is not None:
            raise StoreError(f"the audit is not whole: {fault}")
        overrides = (etcd if args.to == "files" else files).read()
        new = (files if args.to == "files" else etcd).adopt(lines, _on_this_clock(overrides))
    finally:
        feed.close()
    if args.format == "json":
        print_json({"to": args.to, "entries": len(lines), "new": new, "overrides": len(overrides.overrides)})
    elif new or not lines:
        print(f"{new} entries of the audit and {len(overrides.overrides)} overrides are in {args.to} now")
    else:
        print(f"all {len(lines)} entries of the audit are in {args.to} already; nothing was changed")
    if flags.settings.flags.store != args.to:
        print(f"jarvis: set flags_store: {args.to} on every machine, and restart what runs there", file=sys.stderr)
    return DONE if lines else NO


def _on_this_clock(overrides: OverrideSet) -> OverrideSet:
    """The overrides with the times at which they lapse by the clock of this machine, wherever they were set."""
    moved = {flag_id: replace(one, expires_at=one.lapses) for flag_id, one in overrides.overrides.items()}
    return OverrideSet(overrides.revision, MappingProxyType(moved))
