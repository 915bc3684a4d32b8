"""Fuzzes one family with atheris; tests/fuzz/__main__.py starts it. The first byte of an input chooses the property."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["jarvis_flags", "jarvis_collector", "jarvis_otel"]):
    from tests.fuzz.families import chosen


def main() -> None:
    properties = chosen(sys.argv[1])

    def one_input(data: bytes) -> None:
        if data:
            properties[data[0] % len(properties)].check(data[1:])

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
