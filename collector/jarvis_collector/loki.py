"""Lines of the log files as Loki takes them: records as OTLP/JSON within its limits, pushes, and what its answers say.

Loki's limits, measured at 3.7.8: a line of 256 KB, 128 entries and 64 KB of structured metadata, into which go a
record's fields and attributes and those of its resource and scope, maps flattened. A push that breaks one is answered
with 400, though its good records are stored; what Loki cannot parse, a name of no letter or digit among it, spoils the
whole push.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

import orjson

from jarvis_collector.long_lines import LineError
from jarvis_collector.record import format_timestamp, logs_request, parse_timestamp

__all__ = [
    "OTHER",
    "REASONS",
    "TOO_FAR_BEHIND",
    "TOO_LARGE",
    "TOO_OLD",
    "Encoder",
    "Entry",
    "Group",
    "Refusal",
    "TornError",
    "cost",
    "push_body",
    "refusal",
]

LINE_MAX = 256 * 1024
METADATA_MAX = 64 * 1024
ENTRIES_MAX = 128

TOO_OLD, TOO_FAR_BEHIND, TOO_LARGE, OTHER = "too_old", "too_far_behind", "too_large", "other"
REASONS = (TOO_OLD, TOO_FAR_BEHIND, TOO_LARGE, OTHER)
"""Why Loki does not have a record; `too_large` may be our own finding."""

_RESERVE = 1024
"""Bytes of a record's metadata that its own fields take, at most."""
_FIELDS = 7
"""Entries that a record's own fields take, at most."""
_NAME_EXTRA = 4
"""So much longer may Loki make a name."""
_GROUP_ENTRIES_MAX = 64
_GROUP_METADATA_MAX = METADATA_MAX // 4
_GROUPS_MAX = 256
_ENVELOPE = 64
_SHRINKS = 10
_SECOND = 1_000_000_000

# a record that is surely within the limits is recognised by its JSON
_SURELY_FITS = METADATA_MAX // 2
_SURELY_FEW = 48
_BAD_NAME = re.compile(rb'"key":"[^A-Za-z0-9"]*"')
_GOOD_NAME = re.compile(r"[A-Za-z0-9]")
_COLLECTOR_LINE = b'{"resourceLogs":'


class TornError(LineError):
    """A line that is torn, or none that we know.

    Attributes:
        entries: Those of the whole line that is glued to the torn one.
    """

    def __init__(self, message: str, entries: list[Entry]) -> None:
        super().__init__(message)
        self.entries = entries


class Group(NamedTuple):
    """What records of one resource and scope share in a push.

    Attributes:
        resource: The JSON of the resource, up to where its scopes begin.
        scope: The same of the scope, up to where its records begin.
        entries: So many entries of metadata it adds to each record.
        metadata: So many bytes.
        cut: Whether attributes had to be left out.
    """

    resource: bytes
    scope: bytes
    entries: int
    metadata: int
    cut: bool


class Entry(NamedTuple):
    """One record as it is pushed.

    Attributes:
        group: Its resource and scope.
        record: Its OTLP/JSON.
        time: Nanoseconds since 1970; 0 where Loki gives it the time at which it arrives there.
    """

    group: Group
    record: bytes
    time: int


class Encoder:
    """Turns lines into entries: lines of ours, or of the real Collector, which hold a whole request each.

    Args:
        max_push: Bytes of a push; no entry is larger than what one takes.

    Attributes:
        cut: Records of which something was cut off, or moved from an attribute into the line.
        too_large: Records that do not fit however much is cut off.
    """

    def __init__(self, max_push: int) -> None:
        self.cut = 0
        self.too_large = 0
        self._max_push = max_push
        self._groups: dict[bytes, Group] = {}

    def entries(self, line: bytes) -> list[Entry]:
        """The records of a line, in their order.

        Args:
            line: Without its newline.

        Raises:
            TornError: It is torn, or none that we know.
        """
        try:
            return self._entries(line)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # what a killed Collector left of a line, and then the first line of the next one
            glued = line.rfind(_COLLECTOR_LINE)
            rest: list[Entry] = []
            if glued > 0:
                with suppress(ValueError, LookupError, TypeError, AttributeError):
                    rest = self._entries(line[glued:])
            raise TornError(f"{type(error).__name__}: {error}", rest) from None

    def _entries(self, line: bytes) -> list[Entry]:
        content = orjson.loads(line)
        if "resourceLogs" in content:
            return [entry for resource in content["resourceLogs"] for entry in self._of_resource(resource)]
        request = logs_request([content])
        if content.get("_meta", {}).get("otlp", {}).get("timeUnixNano") == "0":
            # without any time Loki would take its own, another one for each repeat
            (record,) = request["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
            record.setdefault("observedTimeUnixNano", str(parse_timestamp(content["timestamp"])))
        return self._of_resource(request["resourceLogs"][0])

    def _of_resource(self, resource: dict[str, Any]) -> list[Entry]:
        entries = []
        shared = {key: value for key, value in resource.items() if key != "scopeLogs"}
        for scope in resource.get("scopeLogs", ()):
            group = self._group(shared, {key: value for key, value in scope.items() if key != "logRecords"})
            entries += [entry for record in scope.get("logRecords", ()) if (entry := self._entry(group, record))]
        return entries

    def _group(self, resource: dict[str, Any], scope: dict[str, Any]) -> Group:
        key = orjson.dumps((resource, scope))
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= _GROUPS_MAX:
                self._groups.clear()
            group = self._groups[key] = _group(resource, scope)
        return group

    def _entry(self, group: Group, record: dict[str, Any]) -> Entry | None:
        if event := record.get("eventName"):
            # Loki 3.7.8 drops the field
            attributes = record.setdefault("attributes", [])
            if not any(attribute["key"] == "event_name" for attribute in attributes):
                attributes.append({"key": "event_name", "value": {"stringValue": event}})
        time_ = int(record.get("timeUnixNano") or record.get("observedTimeUnixNano") or 0)
        encoded = orjson.dumps(record)
        cut = group.cut
        if (
            len(encoded) > min(_SURELY_FITS, self._room(group))
            or encoded.count(b'"key":') > _SURELY_FEW
            or _BAD_NAME.search(encoded)
        ):
            fitted = self._fitted(group, record)
            if fitted is None:
                self.too_large += 1
                return None
            cut = cut or fitted != encoded
            encoded = fitted
        self.cut += cut
        # what orjson gives holds on to a larger block, and a push keeps thousands
        return Entry(group, bytes(memoryview(encoded)), time_)

    def _room(self, group: Group) -> int:
        return self._max_push - len(group.resource) - len(group.scope) - 2 * _ENVELOPE

    def _fitted(self, group: Group, record: dict[str, Any]) -> bytes | None:
        """The record within Loki's limits and ours; what JSON escapes may need some tries."""
        for shrink in range(_SHRINKS):
            encoded = orjson.dumps(_fitted(record, group, LINE_MAX >> shrink, METADATA_MAX >> shrink))
            if len(encoded) <= self._room(group):
                return encoded
        return None


def cost(entry: Entry, before: Entry | None) -> int:
    """Bytes by which an entry lengthens a push.

    Args:
        entry: The entry.
        before: The one before it, None at the beginning.
    """
    size = len(entry.record) + 1
    if before is None:
        size += _ENVELOPE
    if before is None or entry.group is not before.group:
        size += len(entry.group.resource) + len(entry.group.scope) + 8
    return size


def push_body(entries: Sequence[Entry]) -> bytes:
    """The OTLP/JSON request of entries: only neighbours are grouped.

    All that share a stream of Loki keep their order, whatever its labels are: Loki refuses what is too far behind.
    """
    resources = []
    for resource, of_resource in groupby(entries, key=lambda entry: entry.group.resource):
        scopes = [
            scope + b",".join([entry.record for entry in of_scope]) + b"]}"
            for scope, of_scope in groupby(of_resource, key=lambda entry: entry.group.scope)
        ]
        resources.append(resource + b",".join(scopes) + b"]}")
    return b'{"resourceLogs":[' + b",".join(resources) + b"]}"


class Refusal(NamedTuple):
    """What a 400 says of the entries of a push.

    Attributes:
        refused: Reason by index of those that are surely refused.
        whole: Whether all others are surely stored.
        validated: Whether each record was looked at and the good ones were stored, none being too far behind.
        oldest: Nanoseconds since 1970: what is older is refused as too old; None where nothing is said.
    """

    refused: Mapping[int, str]
    whole: bool
    validated: bool = False
    oldest: int | None = None


_TIME = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)"
_ERRORS = re.compile(r"(\d+) errors like: ")
_OLD = re.compile(rf"has timestamp too old: {_TIME}, oldest acceptable timestamp is: {_TIME}")
_NEW = re.compile(rf"has timestamp too new: {_TIME}")
_BEHIND = re.compile(rf"entry too far behind, entry timestamp is: {_TIME}, oldest acceptable timestamp is: {_TIME}")
_IGNORED = re.compile(r"total ignored: (\d+) out of (\d+) for stream: ")
_VALIDATED = re.compile(r"stream '\{")
_LARGE = re.compile(r"max entry size|too large|too many structured metadata|limit: '\d+'|exceeds limit")


def refusal(message: str, entries: Sequence[Entry]) -> Refusal:
    """Reads which entries of a push a 400 means; entries that it leaves open must be sent again to find out.

    Args:
        message: What Loki says, as far as it was read.
        entries: The entries of the push.
    """
    if ignored := _IGNORED.search(message):
        return _behind(message, int(ignored[1]), int(ignored[2]), entries)
    counts = [int(count) for count in _ERRORS.findall(message)]
    if sum(counts) == len(entries) or len(entries) == 1:
        return Refusal(dict.fromkeys(range(len(entries)), _reason(message)), True)
    old, new = _OLD.findall(message), set(_NEW.findall(message))
    oldest = max((_seconds(limit) for _, limit in old), default=None)
    refused = {}
    for index, entry in enumerate(entries):
        if oldest is not None and 0 < entry.time < oldest:
            refused[index] = TOO_OLD
        elif new and format_timestamp(entry.time)[:19] + "Z" in new:
            refused[index] = OTHER
    # one error alone comes without its count
    validated = _VALIDATED.search(message) is not None
    return Refusal(refused, bool(refused) and len(refused) == (sum(counts) or 1), validated, oldest)


def _reason(message: str) -> str:
    """The reason for which one record is refused."""
    if _BEHIND.search(message):
        return TOO_FAR_BEHIND
    if _OLD.search(message):
        return TOO_OLD
    return TOO_LARGE if _LARGE.search(message) else OTHER


def _behind(message: str, count: int, total: int, entries: Sequence[Entry]) -> Refusal:
    """Loki names some of the entries, and of one stream only."""
    limits = [_seconds(limit) for _, limit in _BEHIND.findall(message)]
    if total != len(entries) or not limits:
        return Refusal({}, False)
    if count == total:
        return Refusal(dict.fromkeys(range(total), TOO_FAR_BEHIND), True)
    # the limit moves with each newer entry, so it must tell as many as there are
    refused = [index for index, entry in enumerate(entries) if 0 < entry.time < max(limits)]
    return Refusal(dict.fromkeys(refused, TOO_FAR_BEHIND), True) if len(refused) == count else Refusal({}, False)


def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * _SECOND


def _group(resource: dict[str, Any], scope: dict[str, Any]) -> Group:
    room = [_GROUP_ENTRIES_MAX, _GROUP_METADATA_MAX]
    cut = False
    shortened = []
    for content, name in ((resource, "resource"), (scope, "scope")):
        inner = content.get(name, {})
        attributes = []
        for attribute in inner.get("attributes", ()):
            count, size = _weight(attribute)
            if count <= room[0] and size <= room[1] and _GOOD_NAME.search(attribute["key"]):
                room[0] -= count
                room[1] -= size
                attributes.append(attribute)
            else:
                cut = True
        shortened.append({**content, name: {**inner, "attributes": attributes}} if attributes or cut else content)
    own = sum(len(str(scope.get("scope", {}).get(key, ""))) for key in ("name", "version"))
    return Group(
        _open(shortened[0], "scopeLogs"),
        _open(shortened[1], "logRecords"),
        _GROUP_ENTRIES_MAX - room[0] + 3,
        _GROUP_METADATA_MAX - room[1] + own + _ENVELOPE,
        cut,
    )


def _open(content: dict[str, Any], array: str) -> bytes:
    return orjson.dumps(content)[:-1] + (b"," if content else b"") + f'"{array}":['.encode()


def _fitted(record: dict[str, Any], group: Group, line_max: int, metadata_max: int) -> dict[str, Any]:
    """A record within bounds: what is no metadata for Loki goes into its line, and what is too long is cut off."""
    entries = ENTRIES_MAX - _FIELDS - group.entries
    room = max(0, metadata_max - _RESERVE - group.metadata)
    kept: list[tuple[dict[str, Any], int]] = []
    moved: dict[str, Any] = {}
    stack = None
    attributes = record.get("attributes", [])
    weights = [_weight(attribute) for attribute in attributes]
    over = sum(size for _, size in weights) > room
    for attribute, (count, size) in zip(attributes, weights, strict=True):
        if over and attribute["key"] == "exception.stacktrace" and size > _RESERVE:
            stack = _text(attribute.get("value", {}))
        elif count <= entries and _GOOD_NAME.search(attribute["key"]):
            entries -= count
            kept.append((attribute, size))
        else:
            moved[attribute["key"]] = _plain(attribute.get("value", {}))
    limit = _share(room, [size for _, size in kept])
    fitted = [attribute if size <= limit else _shortened(attribute, limit) for attribute, size in kept]
    body = record.get("body")
    said = _text(body) if body else ""
    more = [text for text in (stack, orjson.dumps(moved).decode() if moved else None) if text is not None]
    line = _cut("\n".join([said, *more] if said else more), line_max)
    changed = {**record, "attributes": fitted}
    if line != said:
        changed["body"] = {"stringValue": line}
    return changed


def _share(room: int, sizes: list[int]) -> int:
    """The size beyond which some are cut, so that all together fit."""
    rest, left = room, len(sizes)
    for size in sorted(sizes):
        if size * left > rest:
            return rest // left
        rest -= size
        left -= 1
    return room


def _shortened(attribute: dict[str, Any], limit: int) -> dict[str, Any]:
    # a name that is too long is none that anybody looks for
    key = _cut(attribute["key"], max(_ENVELOPE, limit // 2))
    room = max(_ENVELOPE, limit - len(key.encode()) - _NAME_EXTRA)
    return {"key": key, "value": {"stringValue": _cut(_text(attribute.get("value", {})), room)}}


def _cut(text: str, limit: int) -> str:
    """A text of at most so many bytes that says how many were cut off."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    mark = f"…[truncated {len(encoded)}]".encode()
    rest = len(encoded) - max(0, limit - len(mark))
    return encoded[: max(0, limit - len(mark))].decode(errors="ignore") + f"…[truncated {rest}]"


def _weight(attribute: Mapping[str, Any]) -> tuple[int, int]:
    """How many entries Loki makes of an attribute, and of how many bytes."""
    value = attribute.get("value", {})
    name = len(attribute["key"].encode()) + _NAME_EXTRA
    if "kvlistValue" not in value:
        return 1, name + len(_text(value).encode())
    count = size = 0
    for pair in value["kvlistValue"].get("values", ()):
        inner, inner_size = _weight(pair)
        count += inner
        size += inner_size + inner * name
    return count, size


def _text(value: Mapping[str, Any]) -> str:
    plain = _plain(value)
    return plain if isinstance(plain, str) else orjson.dumps(plain).decode()


def _plain(value: Mapping[str, Any]) -> Any:
    """What an AnyValue says, in whatever spelling another writer left it."""
    for kind, content in value.items():
        if kind == "arrayValue":
            return [_plain(item) for item in content.get("values", ())]
        if kind == "kvlistValue":
            return {pair["key"]: _plain(pair.get("value", {})) for pair in content.get("values", ())}
        return int(content) if kind == "intValue" else content
    return None
