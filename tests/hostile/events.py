"""TensorBoard's event files, byte by byte: what a record claims need not be true."""

from __future__ import annotations

import struct

__all__ = ["event", "event_file", "simple", "tensor"]


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(dims, dtype=1, *, content=None, values=()):
    """Return a TensorProto: its dtype, the shape it claims, and what it holds."""
    shape = b"".join(field(2, b"\x08" + varint(d & (2**64 - 1))) for d in dims)
    held = b"" if content is None else field(4, content)
    floats = field(5, b"".join(struct.pack("<f", v) for v in values)) if values else b""
    return b"\x08" + varint(dtype) + field(2, shape) + held + floats


def event(step, tag, proto, plugin=b"scalars"):
    meta = field(9, field(1, field(1, plugin)))
    value = field(1, tag.encode()) + meta + field(8, proto)
    return b"\x09" + struct.pack("<d", 1.7e9 + step) + b"\x10" + varint(step) + field(5, field(1, value))


def simple(step, tag, number):
    value = field(1, tag.encode()) + b"\x15" + struct.pack("<f", number)
    return b"\x09" + struct.pack("<d", 1.7e9 + step) + b"\x10" + varint(step) + field(5, field(1, value))


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def event_file(path, *events):
    head = b"\x09" + struct.pack("<d", 1.7e9) + field(3, b"brain.Event:2")
    data = b""
    for record in (head, *events):
        length = struct.pack("<Q", len(record))
        data += length + struct.pack("<I", crc32c(length)) + record + struct.pack("<I", crc32c(record))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
