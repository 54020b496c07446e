"""Records of W&B's offline log, and a log of them."""

from __future__ import annotations


def field(number, value):
    """A field of a protocol buffer: a whole number under 128, or bytes."""
    key = varint(number << 3 | (2 if isinstance(value, bytes) else 0))
    return key + varint(len(value)) + value if isinstance(value, bytes) else key + varint(value)


def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def offline(*records):
    """A log of whole records, which are joined over its blocks of 32 KiB."""
    log = b":W&B\xe1\xbe\x00"
    for record in records:
        rest, begun = record, False
        while rest or not begun:
            room = 32 * 1024 - len(log) % (32 * 1024)
            if room < 7:
                log += b"\0" * room
                continue
            piece, rest = rest[: room - 7], rest[room - 7 :]
            kind = (3 if rest else 4) if begun else 2 if rest else 1
            log += b"\0\0\0\0" + len(piece).to_bytes(2, "little") + bytes([kind]) + piece
            begun = True
    return log


def items(**values):
    """A history, summary or config record's items."""
    return b"".join(
        field(1, field(1, name.encode()) + field(16, str(value).encode())) for name, value in values.items()
    )
