"""Runs the benchmarks, each in a process of its own, and prints what they found as one table.

With `--write` the results also go into docs/performance.md, in the place of older ones of the same benchmarks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.harness import Row, markdown
from benchmarks.report import Result, save

HERE = Path(__file__).parent


def main() -> int:
    names = sorted(path.stem for path in HERE.glob("*.py") if "\ndef measure(" in path.read_text())
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run (default: all): {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, for a first look")
    parser.add_argument("--write", action="store_true", help="put the results into docs/performance.md")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="how to print (default: table)")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(names)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(names)}")
    results: dict[str, Result] = {}
    failed = []
    for name in args.names or names:
        began, load = time.monotonic(), os.getloadavg()[0]
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if args.quick else [])]
        run = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=False)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        if run.returncode:
            failed.append(name)
        else:
            rows = [Row(**row) for row in json.loads(run.stdout)]
            results[name] = Result.of(rows, load, quick=args.quick)
            if args.write:
                save({name: results[name]})
    of_each = {name: result.rows for name, result in results.items()}
    if args.format == "json":
        print(json.dumps([asdict(row) for rows in of_each.values() for row in rows], indent=2))
    else:
        print(markdown(of_each))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
