"""OTLP's requests in protobuf, read only as far as every record is read alike.

The messages are those of opentelemetry-proto with the same field numbers, but what is inside a resource, a scope, an
attribute or a body is left as the bytes that were sent: an attribute that many records have need not be read again for
each. What OTLP calls a string is bytes here too, so a text that is no UTF-8 is found by whoever reads it.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

__all__ = ["LogRecord", "Request"]

_Field = descriptor_pb2.FieldDescriptorProto
_BYTES, _FIXED64, _FIXED32 = _Field.TYPE_BYTES, _Field.TYPE_FIXED64, _Field.TYPE_FIXED32
_MESSAGES: dict[str, dict[str, tuple[int, Any, bool]]] = {
    # name of a field: its number, its type, whether it is repeated
    "LogRecord": {
        "time_unix_nano": (1, _FIXED64, False),
        "severity_number": (2, _Field.TYPE_INT32, False),
        "severity_text": (3, _BYTES, False),
        "body": (5, _BYTES, False),
        "attributes": (6, _BYTES, True),
        "dropped_attributes_count": (7, _Field.TYPE_UINT32, False),
        "flags": (8, _FIXED32, False),
        "trace_id": (9, _BYTES, False),
        "span_id": (10, _BYTES, False),
        "observed_time_unix_nano": (11, _FIXED64, False),
        "event_name": (12, _BYTES, False),
    },
    # of any signal; records are bytes
    "ScopeGroup": {"scope": (1, _BYTES, False), "records": (2, _BYTES, True), "schema_url": (3, _BYTES, False)},
    "Group": {
        "resource": (1, _BYTES, False),
        "scope_groups": (2, "ScopeGroup", True),
        "schema_url": (3, _BYTES, False),
    },
    "Request": {"groups": (1, "Group", True)},
}


def _classes() -> dict[str, Any]:
    package = "jarvis_collector.coarse"
    file = descriptor_pb2.FileDescriptorProto(name="jarvis_collector/coarse.proto", package=package, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind, repeated) in fields.items():
            label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = kind
    # a pool of our own: these names are no business of others
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in _MESSAGES
    }


_CLASSES = _classes()
LogRecord = _CLASSES["LogRecord"]
"""A log record, its body and attributes unread."""
Request = _CLASSES["Request"]
"""A request of any signal: `groups`, their `scope_groups`, and in these `records`, which are bytes."""
