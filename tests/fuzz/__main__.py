"""`make fuzz`: runs the harness of each family for a bounded time, and keeps the inputs that break a property.

    python -m tests.fuzz [FAMILY | FAMILY.PROPERTY]... [--seconds 60]

It ends with 1 where a property was broken, and with 2 where atheris is missing. What it learned stays in .cache/fuzz/.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.families import FAMILIES, chosen
from tests.fuzz.properties import Property

LEARNED = Path(".cache/fuzz")
LENGTH_MAX = 4096
INPUT_SECONDS = 20
"""An input that takes so long is taken for one that never ends."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description="Fuzzes the parsers with atheris.")
    parser.add_argument("names", nargs="*", help="families, or single properties; all families if none")
    parser.add_argument("--seconds", type=int, default=60, help="how long each is fuzzed (default 60)")
    args = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("make fuzz: atheris is missing: .venv/bin/pip install -c constraints.txt atheris", file=sys.stderr)
        return 2
    broken = 0
    for name in args.names or [family.name for family in FAMILIES]:
        try:
            properties = chosen(name)
        except LookupError as error:
            parser.error(str(error))
        broken += _fuzz(name, properties, args.seconds)
    return min(broken, 1)


def _fuzz(name: str, properties: Sequence[Property], seconds: int) -> int:
    corpus = LEARNED / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        words = {word for each in properties for word in each.words if word}
        (directory / "words").write_text("".join(f'"{_escaped(word)}"\n' for word in sorted(words)))
        seeds = directory / "seeds"
        seeds.mkdir()
        for number, each in enumerate(properties):
            for seed in each.inputs():
                (seeds / _name(bytes([number]) + seed)).write_bytes(bytes([number]) + seed)
        options = [
            f"-max_total_time={seconds}",
            f"-dict={directory / 'words'}",
            f"-artifact_prefix={directory}/",
            f"-max_len={LENGTH_MAX}",
            f"-timeout={INPUT_SECONDS}",
            "-print_final_stats=1",
        ]
        print(f"{name}: {len(properties)} properties for {seconds} s", flush=True)
        subprocess.run(
            [sys.executable, "-m", "tests.fuzz.harness", name, *options, str(corpus), str(seeds)], check=False
        )
        found = [path for path in directory.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))]
        for path in found:
            _keep(path, properties)
        return len(found)


def _keep(path: Path, properties: Sequence[Property]) -> None:
    content = path.read_bytes()
    broken = properties[content[0] % len(properties)]
    broken.found.mkdir(parents=True, exist_ok=True)
    kept = broken.found / _name(content[1:])
    kept.write_bytes(content[1:])
    print(f"{broken}: broken ({path.name.partition('-')[0]}), kept as {kept}", flush=True)


def _name(content: bytes) -> str:
    return hashlib.blake2s(content, digest_size=8).hexdigest()


def _escaped(word: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    sys.exit(main())
