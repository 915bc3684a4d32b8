"""Protobuf's wire format by hand, for messages that no library would write."""


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number, content):
    """A field with a length: a message, a text, bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content
