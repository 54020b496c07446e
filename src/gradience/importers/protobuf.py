"""Fields of protobuf messages, for logs whose programs write them: TensorBoard's event files and W&B's offline logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

_VARINT, _LONG, _BYTES, _SHORT = 0, 1, 2, 5  # wire types
_MOST_BITS: Final = 64
Field: TypeAlias = tuple[int, bytes | int]


class CutOffError(Exception):
    """A record ends before its fields do."""


def fields(data: bytes) -> Iterator[Field]:
    """Yield the fields of a protobuf message: each one's number, and its bytes or integer."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in {_LONG, _SHORT}:
            size = 8 if wire == _LONG else 4
        else:
            raise CutOffError
        if at + size > len(data):
            raise CutOffError
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return an integer encoded in groups of seven bits, and the index after it."""
    value = 0
    # Ten groups hold 64 bits: more are damage, and would make a number of any size.
    for shift in range(0, _MOST_BITS + 6, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # a set high bit means that more bytes follow
            return value, at
    raise CutOffError


def nested(data: bytes, number: int) -> Iterator[bytes]:
    """Yield the bytes of every field of this number: messages in the message, or texts.

    Raises:
        CutOffError: the message is damaged.
    """
    return (value for field, value in fields(data) if field == number and isinstance(value, bytes))
