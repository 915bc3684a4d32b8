"""All families of properties."""

from __future__ import annotations

from tests.fuzz import files, flags, fronts, otlp, query, text
from tests.fuzz.properties import Family, Property

__all__ = ["FAMILIES", "chosen", "properties"]

FAMILIES: tuple[Family, ...] = (flags.FAMILY, otlp.FAMILY, files.FAMILY, query.FAMILY, text.FAMILY, fronts.FAMILY)


def properties() -> list[Property]:
    """Those of all families."""
    return [each for family in FAMILIES for each in family.properties]


def chosen(name: str) -> list[Property]:
    """The properties of a family, or the one that is named `FAMILY.PROPERTY`.

    Raises:
        LookupError: There is none of this name.
    """
    found = [each for each in properties() if name in (each.name, each.name.partition(".")[0])]
    if not found:
        names = ", ".join([*(family.name for family in FAMILIES), *map(str, properties())])
        raise LookupError(f"got {name}, want one of {names}")
    return found
