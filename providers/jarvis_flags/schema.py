"""The JSON Schema (draft 2020-12) of a flag file, for editors: `python -m jarvis_flags.schema` writes it to stdout.

It takes whatever the parser takes and refuses what can be told from a value's shape; what needs more (names of
segments and variants, cycles, totals, patterns) only the parser sees.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from jarvis_flags.buckets import FLAGD_HASHES
from jarvis_flags.conditions import OPERATORS
from jarvis_flags.jsonlogic import WEIGHT_MAX
from jarvis_flags.model import FlagStatus
from jarvis_flags.regex import PATTERN_MAX

__all__ = ["flags_schema"]

_Schema = dict[str, Any]

_TEXT = {"type": ["string", "number"]}
_TEXTS = {"type": "array", "items": {"type": ["string", "integer"]}}
_SCALAR = {"type": ["string", "number", "boolean"]}
_MOMENT = {"type": "string", "pattern": "^[0-9]{4}-?(W|[0-9])[0-9]", "examples": ["2027-03-01", "2027-03-01T09:00:00Z"]}
_PERCENT = {"type": "number", "minimum": 0, "maximum": 100}
_SWITCH = {"type": "boolean", "default": False}
_SEGMENT = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/condition"}]}

_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = {
    "anyOf": [
        {"enum": list(_WEEKDAYS)},
        # whole names too, in upper case too
        {
            "type": "string",
            "pattern": f"^({'|'.join(''.join(f'[{c.upper()}{c}]' for c in day) for day in _WEEKDAYS)})[A-Za-z]*$",
        },
    ]
}


def _said(description: str, shape: Mapping[str, Any], *examples: Any) -> _Schema:
    return {"description": description, **shape, **({"examples": list(examples)} if examples else {})}


_DOCUMENT: Mapping[str, _Schema] = {
    "$schema": _said("Where an editor finds this schema.", {}, "./flags.schema.json"),
    "version": _said("The version of the file's format.", {}, "1.0"),
    "environment": _said(
        "The environment where neither JARVIS_ENVIRONMENT nor the resource names one.", _TEXT, "staging"
    ),
    "segments": _said(
        "Named segments that rules refer to.",
        {"type": "object", "additionalProperties": {"$ref": "#/$defs/condition"}},
        {"pro": {"attribute": "plan", "op": "in", "value": ["pro", "team"]}},
    ),
    "flags": _said(
        "The flags by their ids.",
        {
            "type": "object",
            "propertyNames": {"minLength": 1, "maxLength": 200},
            "additionalProperties": {"$ref": "#/$defs/flag"},
        },
        {"NEW_UI": {"name": "New UI", "enabled": False}},
    ),
}

_FLAG: Mapping[str, _Schema] = {
    "name": _said("What people call it.", _TEXT, "New UI"),
    "description": _said("What it does.", _TEXT, "Inline buttons and improved navigation"),
    "category": _said("What it is listed under.", {**_TEXT, "default": "general"}, "trading"),
    "owner": _said("The team or person that answers for it.", _TEXT, "ui-team"),
    "services": _said("Services whose records list it even where it was not evaluated.", _TEXTS, ["telegram"]),
    "enabled": _said(
        "What holds where nothing else decides: false unless set, but true for a flag with variants.",
        {"type": "boolean"},
        True,
    ),
    "status": _said(
        "Where it is in its life: a disabled flag is off whatever else is said, a deprecated one warns.",
        {"enum": list(FlagStatus), "default": FlagStatus.ACTIVE},
        "deprecated",
    ),
    "rules": _said(
        "Who gets what: highest priority first, equal ones in the order of the file.",
        {"type": "array", "items": {"$ref": "#/$defs/rule"}},
        [{"type": "user_ids", "value": ["42"], "priority": 9}, {"type": "percentage", "value": 25}],
    ),
    "environment_defaults": _said(
        "On or off, or the name of a variant, by environment where no rule decides.",
        {"type": "object", "additionalProperties": {"type": ["boolean", "string"]}},
        {"dev": True, "prod": False},
    ),
    "requires": _said("Ids of flags that must be on for this one to be on.", _TEXTS, ["API_V2"]),
    "variants": _said(
        "Its values by name, all of one type; without them it is a boolean flag with on and off.",
        {
            "type": "object",
            "minProperties": 1,
            "anyOf": [
                {"additionalProperties": {"type": kind}}
                for kind in ("boolean", "string", "number", ["object", "array"])
            ],
        },
        {"low": 100, "high": 1000},
    ),
    "default": _said("The variant that is served where nothing else decides.", {"type": "string"}, "low"),
    "created_at": _said("When it was created.", _TEXT, "2026-11-02"),
    "updated_at": _said("When it was last changed.", _TEXT, "2026-11-20"),
    "expires_at": _said("The date or time after which it should be gone.", _MOMENT),
    "on_expiry": _said(
        "What happens then: alert only tells, disable turns it off.",
        {"enum": ["alert", "disable"], "default": "alert"},
        "disable",
    ),
    "requires_restart": _said(
        "A process keeps the value that it started with, but off takes effect at once.", _SWITCH, True
    ),
    "dangerous": _said("Turning it on needs confirmation; broken or unknown means off.", _SWITCH, True),
    "approvals": _said(
        "How many different people it takes to turn it on.",
        {"type": "integer", "minimum": 1, "maximum": 10, "default": 1},
        2,
    ),
    "metadata": _said(
        "Flat facts that every result of the flag carries.",
        {"type": "object", "additionalProperties": _SCALAR},
        {"ticket": "UI-12"},
    ),
}

_RULE: Mapping[str, _Schema] = {
    "type": _said("What the rule goes by.", {}, "percentage"),
    "value": _said("Whom it matches; its shape depends on the type.", {}, 25),
    "priority": _said(
        "Higher is evaluated first.",
        {"type": "integer", "minimum": -1_000_000, "maximum": 1_000_000, "default": 0},
        10,
    ),
    "variant": _said("The variant that a match gives; on where none is named.", {"type": "string"}, "high"),
    "salt": _said("Makes the cohort of a percentage independent of the flag's other ones.", _TEXT, "second try"),
    "by": _said(
        "The attribute that a percentage hashes instead of the user; with a hash of flagd's also JSONLogic.",
        {"type": ["string", "number", "object"]},
        "account",
    ),
    "hash": _said(
        "The hash of flagd that a split or JSONLogic from there keeps.", {"enum": list(FLAGD_HASHES)}, FLAGD_HASHES[0]
    ),
    "segment": _said("A segment, by name or in place, that must hold as well.", _SEGMENT, "pro"),
    "environments": _said("Environments of which one must hold as well.", _TEXTS, ["prod"]),
}

_SCHEDULE: Mapping[str, _Schema] = {
    "start": _said("When it begins to hold.", _MOMENT),
    "end": _said("When it ends to hold.", _MOMENT),
    "days": _said(
        "The days of the week, by three letters or in full.",
        {"anyOf": [_DAY, {"type": "array", "minItems": 1, "items": _DAY}]},
        ["mon", "fri"],
    ),
    "hours": _said(
        "A span of the day, past midnight where its end is before its start.",
        {"type": "string", "pattern": "^ *T?[0-9]{2}[^-]*- *T?[0-9]{2}[^-]*$", "examples": ["09:00-17:30"]},
    ),
    "timezone": _said(
        "The time zone of days, hours and times without an offset.",
        {"type": "string", "default": "UTC", "examples": ["Europe/Vienna"]},
    ),
    "ramp": _said(
        "A climb from one percentage to another.",
        {"$ref": "#/$defs/ramp"},
        {"start": "2027-03-01", "end": "2027-03-08", "from": 1, "to": 100},
    ),
}

_RAMP: Mapping[str, _Schema] = {
    "start": _said("When the climb begins.", _MOMENT),
    "end": _said("When the climb ends.", _MOMENT),
    "from": _said("The percentage at the start.", _PERCENT, 1),
    "to": _said("The percentage at the end.", _PERCENT, 100),
}

_VALUES: Mapping[str, _Schema] = {
    "percentage": _said(
        "A percentage of the users to at most three decimals, or weights by variant that total exactly 100.",
        {"anyOf": [_PERCENT, {"type": "object", "minProperties": 1, "additionalProperties": _PERCENT}]},
        25,
        {"low": 90, "high": 10},
    ),
    "user_ids": _said("The users.", _TEXTS, ["123456789", "ann"]),
    "user_segment": _said(
        "The name of a segment, or a condition in place.",
        _SEGMENT,
        "pro",
        {"attribute": "plan", "op": "eq", "value": "pro"},
    ),
    "environments": _said("The environments.", _TEXTS, ["dev", "staging"]),
    "schedule": _said(
        "When it holds.",
        {"$ref": "#/$defs/schedule"},
        {"days": ["mon", "fri"], "hours": "09:00-17:30", "timezone": "Europe/Vienna"},
    ),
    "jsonlogic": _said(
        "JSONLogic as flagd has it, which gives the name of a variant or nothing.",
        {},
        {"if": [{"in": ["@jarvis.dev", {"var": "email"}]}, "on", None]},
    ),
}

_FLAGD_SPLIT = _said(
    "Weights by variant, whole numbers of any total.",
    {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": WEIGHT_MAX},
    },
)

_LIST = {"type": "array", "items": _SCALAR}
_STRING = {"type": "string"}
_ORDERED = {"type": ["string", "number"]}
_VERSION = {"type": ["string", "number"], "pattern": "^[vV]?[0-9]", "minimum": 0, "examples": ["1.10.0"]}

_LITERALS: Mapping[str, _Schema] = {
    "eq": _SCALAR,
    "ne": _SCALAR,
    "in": _LIST,
    "not_in": _LIST,
    "contains": _SCALAR,
    "starts_with": _STRING,
    "ends_with": _STRING,
    "matches": {"type": "string", "maxLength": PATTERN_MAX},
    "gt": _ORDERED,
    "ge": _ORDERED,
    "lt": _ORDERED,
    "le": _ORDERED,
    "semver_eq": _VERSION,
    "semver_gt": _VERSION,
    "semver_ge": _VERSION,
    "semver_lt": _VERSION,
    "semver_le": _VERSION,
    "exists": {"type": "boolean"},
}


def flags_schema() -> dict[str, Any]:
    """The JSON Schema of a flag file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Feature flags of jarvis-otel",
        **_mapping(_DOCUMENT),
        "type": ["object", "null"],
        "$defs": {
            "flag": {
                **_mapping(_FLAG),
                "if": {"required": ["default"], "properties": {"default": {"type": "string"}}},
                "then": {"required": ["variants"]},
            },
            "rule": _rule(),
            "condition": _condition(),
            "schedule": {**_mapping(_SCHEDULE, wanted=["timezone"]), "minProperties": 1},
            "ramp": {**_mapping(_RAMP, wanted=_RAMP), "required": list(_RAMP)},
        },
    }


def _mapping(table: Mapping[str, _Schema], wanted: Iterable[str] = ()) -> _Schema:
    """A mapping with these fields and no others; those that are not `wanted` may be left empty."""
    wanted = frozenset(wanted)
    properties = {name: field if name in wanted else _or_nothing(field) for name, field in table.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _or_nothing(field: _Schema) -> _Schema:
    """The same field, which YAML's empty value leaves at its default."""
    if isinstance(field.get("type"), list):
        return {**field, "type": [*field["type"], "null"]}
    if "type" in field:
        return {**field, "type": [field["type"], "null"]}
    if "enum" in field:
        return {**field, "enum": [*field["enum"], None]}
    if "anyOf" in field:
        return {**field, "anyOf": [*field["anyOf"], {"type": "null"}]}
    if "$ref" in field:
        rest = {key: value for key, value in field.items() if key != "$ref"}
        return {**rest, "anyOf": [{"$ref": field["$ref"]}, {"type": "null"}]}
    return field


def _rule() -> _Schema:
    rule = _mapping({**_RULE, "type": {**_RULE["type"], "enum": list(_VALUES)}}, wanted=["type", "value"])
    choices = [{"if": {"properties": {"type": {"const": kind}}}, "then": _rule_of(kind)} for kind in _VALUES]
    return {**rule, "required": ["type"], "allOf": choices}


def _rule_of(kind: str) -> _Schema:
    """What a rule of this type has and has not, beside the fields of all."""
    nothing = {"type": "null"}
    if kind == "jsonlogic":
        return {"properties": {"value": _VALUES[kind], **dict.fromkeys(("variant", "salt", "by"), nothing)}}
    wanted = {"required": ["value"]}
    by_name = {**_TEXT, "type": [*_TEXT["type"], "null"]}
    ours = {"value": _VALUES[kind], "hash": nothing}
    if kind == "percentage":
        from_flagd = {"required": ["hash"], "properties": {"hash": {"type": "string"}}}
        theirs = {"value": _FLAGD_SPLIT, "variant": nothing, "salt": nothing}
        return {
            **wanted,
            "if": from_flagd,
            "then": {"properties": theirs},
            "else": {"properties": {**ours, "by": by_name}},
        }
    if kind == "schedule":
        return {**wanted, "properties": {**ours, "by": by_name}}
    return {**wanted, "properties": {**ours, "salt": nothing, "by": nothing}}


def _condition() -> _Schema:
    inner = {"$ref": "#/$defs/condition"}
    pro = {"attribute": "plan", "op": "eq", "value": "pro"}
    email = {"attribute": "email", "op": "ends_with", "value": "@jarvis.dev"}
    conditions = {"type": "array", "minItems": 1, "items": inner}
    forms: list[_Schema] = [
        {"all": _said("Conditions that must all hold.", conditions, [pro, email])},
        {"any": _said("Conditions of which one must hold.", conditions, [pro, email])},
        {"not": _said("A condition that must not hold.", inner, pro)},
        {
            "jsonlogic": _said(
                "JSONLogic as flagd has it that must be truthy.", {}, {"ends_with": [{"var": "email"}, "@jarvis.dev"]}
            ),
            "hash": _said("The hash of flagd that it keeps.", {"enum": [*FLAGD_HASHES, None]}, FLAGD_HASHES[0]),
        },
        {
            "attribute": _said(
                "The attribute that is asked about; dots lead into nested ones.",
                {"type": "string", "minLength": 1},
                "plan",
                "account.country",
            ),
            "op": _said("How it is compared.", {"enum": list(OPERATORS)}, "in"),
            "value": _said("What it is compared with.", {}, ["pro", "team"]),
        },
    ]
    choices = [{**_mapping(form, wanted=form), "required": [key for key in form if key != "hash"]} for form in forms]
    choices[-1]["allOf"] = [
        {"if": {"properties": {"op": {"const": operator}}}, "then": {"properties": {"value": _LITERALS[operator]}}}
        for operator in OPERATORS
    ]
    return {"description": "A condition over the attributes of a context.", "anyOf": choices}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(flags_schema(), indent=2, ensure_ascii=False) + "\n")
