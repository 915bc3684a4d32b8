"""What comes back from Loki as the lines that our collector writes, so that nothing that follows knows where it was.

Loki keeps less than a line says. Names: what is no letter or digit has become an underscore, and maps are flattened;
names that OpenTelemetry and we use are known, others are spelled as the question spells them, else with underscores.
Values: all are text; lists are known by their form, durations and line numbers by their names, other numbers and
booleans stay text. What is empty or null is gone, and so is all that the forwarder cut off or moved into the message.
Attributes of resource, scope and record lie together: those that are known for a resource's are taken for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from jarvis_collector.record import FLAG_PREFIX, PLACES, UNKNOWN_SERVICE, LogRecord, Resource, Scope, log_line
from jarvis_collector.values import Attributes
from jarvis_otel.query.logql import label_of

__all__ = ["LokiLines"]

_ATTRIBUTES = (
    *PLACES,
    "feature_flag.key",
    "feature_flag.result.variant",
    "feature_flag.result.value",
    "feature_flag.result.reason",
    "feature_flag.provider.name",
    "feature_flag.context.id",
    "feature_flag.set.id",
    "feature_flag.version",
    "feature_flag.error.message",
    "error.type",
    "error.message",
    "http.request.method",
    "http.response.status_code",
    "http.route",
    "url.path",
    "url.full",
    "server.address",
    "server.port",
    "client.address",
    "thread.id",
    "thread.name",
    "exception.escaped",
    "jarvis.change.action",
    "jarvis.change.old",
    "jarvis.change.new",
    "jarvis.change.revision",
    "jarvis.change.actor",
    "jarvis.change.via",
    "jarvis.change.reason",
    "jarvis.change.outcome",
    "jarvis.change.audit_hash",
    "jarvis.flags_omitted",
    "jarvis.dropped.overflow",
    "jarvis.dropped.refused",
    "jarvis.dropped.damaged",
    "jarvis.dropped.exit",
    "jarvis.dropped.failed",
    "jarvis.redacted",
    "jarvis.settings",
)
_OF_RESOURCE = (
    "service.name",
    "service.version",
    "service.namespace",
    "service.instance.id",
    "deployment.environment.name",
    "host.name",
    "host.id",
    "host.arch",
    "os.type",
    "os.description",
    "process.pid",
    "process.command",
    "process.executable.name",
    "process.executable.path",
    "process.runtime.name",
    "process.runtime.version",
    "process.runtime.description",
    "container.id",
    "container.name",
    "telemetry.sdk.language",
    "telemetry.sdk.name",
    "telemetry.sdk.version",
    "telemetry.auto.version",
    "telemetry.distro.name",
    "telemetry.distro.version",
)
_NAMES = {label_of(name): name for name in _ATTRIBUTES}
_RESOURCE_NAMES = {label_of(name): name for name in _OF_RESOURCE}
_PREFIXES = {label_of(prefix): prefix for prefix in (FLAG_PREFIX, "jarvis.context.")}
_EXTRACTED = "_extracted"
_LIST_MAX = 1 << 20

# What Loki says of a record beside its attributes.
_OWN = frozenset(
    {"severity_number", "severity_text", "trace_id", "span_id", "flags", "observed_timestamp", "event_name"}
    | {"scope_name", "scope_version", "dropped_attributes_count", "detected_level", "__error__", "__error_details__"}
)


class LokiLines:
    """Makes lines of what Loki says.

    Args:
        names: Attributes as the question names them.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._asked = {label_of(name): name for name in names}

    def line(self, time: int, text: str, labels: Mapping[str, str]) -> bytes:
        """The line of one entry, ending in a newline.

        Args:
            time: Nanoseconds since 1970.
            text: The line as Loki has it.
            labels: Its stream's labels and its own structured metadata.
        """
        of_resource = {_RESOURCE_NAMES[label]: value for label, value in labels.items() if label in _RESOURCE_NAMES}
        if of_resource.get("service.name") == UNKNOWN_SERVICE:
            del of_resource["service.name"]  # Loki's own word for none
        active = _list_of(labels.get("jarvis_active_flags", ""))
        spelled = {label_of(FLAG_PREFIX + flag): FLAG_PREFIX + flag for flag in active or () if isinstance(flag, str)}
        attributes: dict[str, Any] = {}
        for label, value in labels.items():
            if label not in _OWN and label not in _RESOURCE_NAMES:
                name = spelled.get(label) or self._name(label, labels)
                attributes[name] = _value(name, value)
        record = LogRecord(
            time=time,
            observed=_whole(labels.get("observed_timestamp")),
            severity=_whole(labels.get("severity_number")),
            severity_text=labels.get("severity_text", ""),
            body=text or None,
            attributes=Attributes(attributes, []),
            dropped=_whole(labels.get("dropped_attributes_count")),
            flags=_whole(labels.get("flags")),
            trace_id=labels.get("trace_id", ""),
            span_id=labels.get("span_id", ""),
            event=labels.get("event_name", ""),
        )
        scope = Scope(
            Resource(Attributes(dict(of_resource), [])), labels.get("scope_name", ""), labels.get("scope_version", "")
        )
        return log_line(scope, record, time)

    def _name(self, label: str, labels: Mapping[str, str]) -> str:
        name = self._asked.get(label) or _NAMES.get(label)
        if name is None and label.endswith(_EXTRACTED) and label.removesuffix(_EXTRACTED) in labels:
            # so Loki calls an attribute whose name is that of a label
            label = label.removesuffix(_EXTRACTED)
            name = self._asked.get(label)
        if name is None:
            start = next((start for start in _PREFIXES if label.startswith(start)), "")
            name = _PREFIXES.get(start, "") + label[len(start) :]
        return name


def _value(name: str, text: str) -> Any:
    """The value of an attribute, of the type that its place in a line takes."""
    _, _, types = PLACES.get(name, ("", "", (str, list)))
    if list in types:
        found = _list_of(text)
        return text if found is None else found
    if int in types:
        try:
            number = orjson.loads(text)
        except orjson.JSONDecodeError:
            return text
        return number if type(number) in types else text
    return text


def _list_of(text: str) -> list[Any] | None:
    """The list that a text is in JSON; None where it is none."""
    if not (text.startswith("[") and text.endswith("]") and len(text) <= _LIST_MAX):
        return None
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, list) else None


def _whole(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) <= 19 else 0
