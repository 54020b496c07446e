"""Read the header of a safetensors file, and check it against the file's real size and for contradictions."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

import ml_dtypes
import msgspec
import numpy as np

from gradience.errors import AdapterError, DamagedError
from gradience.io.reading import name_fault, open_regular

_LEAST_HEADER: Final = 2  # bytes: {}
_MAX_HEADER: Final = 100_000_000  # bytes, the format's own limit
_MOST_AXES: Final = 32
_SHOWN: Final = 60  # characters of a name that is too long
_NO_MODEL: Final = "no model has such names: is the file what you think it is?"
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
_NOT_WEIGHTS: Final = (
    (b"version https://git-lfs", "a git-lfs pointer, not the weights", "fetch them with 'git lfs pull'"),
    (b"PK\x03\x04", "a zip archive (a pickled torch file)", "save the adapter again with safe_serialization=True"),
    (b"\x80", "a pickle", "save the adapter again with safe_serialization=True"),
    (b"GGUF", "a GGUF file", "audit the adapter that it was converted from"),
    (b"\x93NUMPY", "a NumPy file", "save the adapter as safetensors"),
    (b"<", "an HTML or XML page, not the weights", "download the file again"),
)

_SHORT: Final = 64  # characters: a shorter name exceeds no limit of `io.reading`, so it need not be checked


class TensorInfo(msgspec.Struct, frozen=True, gc=False):
    """One tensor as the file declares it. `dtype` is safetensors' name, such as `BF16`."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def is_float(dtype: str) -> bool:
    """Whether a dtype, by safetensors' name, is floating point and can be read."""
    return dtype.startswith(("F", "BF")) and dtype in DTYPES


class _TensorEntry(msgspec.Struct, gc=False, frozen=True):
    dtype: str = ""
    shape: tuple[int, ...] | None = None
    data_offsets: tuple[int, int] | None = None


class _Head(msgspec.Struct, rename={"metadata": "__metadata__"}):
    metadata: dict[str, str] | None = None


class Header(NamedTuple):
    """The tensors and metadata that a header declares, and the byte offset in the file where the data begin."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    start: int


def read_header(path: Path) -> Header:
    """The header of a file, checked against the file.

    Raises:
        AdapterError: the file is missing, of another format or cut short, or its header is wrong.
    """
    raw, start = _header_bytes(path)
    return Header(*parsed_header(path, raw, path.stat().st_size - start), start)


def parsed_header(path: Path, raw: bytes, available: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata in a header's JSON; `available` is the number of bytes of data after the header.

    Raises:
        AdapterError: the header is malformed, or contradicts itself or the file.
    """
    try:
        metadata = _metadata(path, raw)
        return _checked(path, _declared(path, raw), available), metadata
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:  # msgspec counts the levels itself
        raise _no_safetensors(path) from error


def _header_bytes(path: Path) -> tuple[bytes, int]:
    """The header's JSON and the byte offset where the data begin."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = header_length(path, file.read(64), size)
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror}", advice="check the path") from error
    return raw, 8 + length


def header_length(path: Path, head: bytes, size: int) -> int:
    """The length in bytes of a header's JSON, which begins at byte 8.

    Args:
        path: names the file in errors.
        head: the first 64 bytes of the file, or the whole of a shorter file.
        size: the size of the file in bytes.

    Raises:
        AdapterError: the file is of another format or cut short, or its header is over the format's limit.
    """
    _refuse_other_formats(path, head)
    length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
    if not _LEAST_HEADER <= length <= min(_MAX_HEADER, max(size - 8, 0)):
        raise _wrong_length(path, int(length), size)
    return int(length)


def _wrong_length(path: Path, length: int, size: int) -> AdapterError:
    if length <= _MAX_HEADER and size < 8 + max(length, _LEAST_HEADER):
        return cut_short(path, 8 + length, size)
    if length > size or length < _LEAST_HEADER:
        return _no_safetensors(path)
    return AdapterError(
        f"{path}: a header of {length} bytes, over the format's limit of {_MAX_HEADER}",
        advice="split the file, as the safetensors library would have to",
    )


def _declared(path: Path, raw: bytes) -> dict[str, _TensorEntry]:
    """The header's entries. They are decoded once, straight to their type, because a header may hold a million."""
    try:
        declared = msgspec.json.decode(raw, type=dict[str, _TensorEntry | None])
    except msgspec.ValidationError as error:
        raise AdapterError(
            f"{path}: the safetensors header is malformed: {error}", advice="save the adapter again"
        ) from error
    declared.pop("__metadata__", None)  # MLX-LM writes null
    entries = {name: entry or _TensorEntry() for name, entry in declared.items()}
    # A name that is given twice leaves one entry, so the counts differ. A quote inside a name would be escaped, so no
    # name can look like the field.
    if raw.count(b'"data_offsets"') > len(entries) + ("data_offsets" in entries):
        _refuse_twice(path, raw)
    return entries


def _refuse_twice(path: Path, raw: bytes) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            raise AdapterError(f"{path}: the safetensors header names a tensor twice", advice="save the adapter again")

    try:
        json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _no_safetensors(path) from error


def _refuse_other_formats(path: Path, head: bytes) -> None:
    for magic, what, advice in _NOT_WEIGHTS:
        if head.startswith(magic) and not head[8:].startswith(b"{"):
            raise AdapterError(f"{path} is {what}", advice=advice)


def _no_safetensors(path: Path) -> AdapterError:
    return AdapterError(
        f"{path} is not a safetensors file: its header cannot be read",
        advice="the file may be damaged or of another format; copy or save it again",
    )


def cut_short(path: Path, expected: int, got: int) -> DamagedError:
    """The error for a file that ends before the data that it declares."""
    return DamagedError(
        f"{path} is truncated: {expected} bytes expected by its header, {got} found",
        advice="the copy or the save was interrupted; copy it again",
    )


def _metadata(path: Path, raw: bytes) -> dict[str, str]:
    try:
        return msgspec.json.decode(raw, type=_Head).metadata or {}
    except msgspec.ValidationError as error:
        raise AdapterError(f"{path}: __metadata__ must map strings to strings: {error}") from error


def _checked(path: Path, declared: dict[str, _TensorEntry], available: int) -> dict[str, TensorInfo]:
    """The declared tensors, sorted by position. A header that contradicts itself or the file is refused."""
    tensors: dict[str, TensorInfo] = {}
    position = 0
    for name, entry in sorted(declared.items(), key=_position):
        if entry.data_offsets is None or entry.shape is None:
            raise AdapterError(f"{path}: the header's entry {name!r} is not a tensor", advice="save the adapter again")
        if len(name) >= _SHORT:
            refuse_long_name(path, name)
        if len(entry.shape) > _MOST_AXES:
            raise AdapterError(f"{path}: tensor {name!r} claims {len(entry.shape)} axes")
        begin, end = entry.data_offsets
        if begin != position or end < begin or min(entry.shape, default=0) < 0:
            raise AdapterError(
                f"{path}: tensor {name!r} claims bytes {begin} to {end}, expected to begin at {position}",
                advice="the header is damaged: save the adapter again",
            )
        kind = DTYPES.get(entry.dtype)
        if kind is not None and (expected := math.prod(entry.shape) * kind.itemsize) != end - begin:
            raise AdapterError(
                f"{path}: tensor {name!r} of {entry.dtype} {list(entry.shape)} needs {expected} bytes, "
                f"has {end - begin}",
                advice="the header is damaged: save the adapter again",
            )
        tensors[name] = TensorInfo(entry.dtype, entry.shape, begin, end - begin)
        position = end
    if position > available:
        raise cut_short(path, position, available)
    if position < available:
        raise AdapterError(
            f"{path} holds {available - position} bytes that its header does not name",
            advice="the file is damaged, or something was appended to it: copy or save it again",
        )
    return tensors


def refuse_long_name(path: Path, name: str) -> None:
    """Refuse a tensor name that is longer than any model's.

    Raises:
        AdapterError: the name exceeds the limits of `io.reading`.
    """
    if (fault := name_fault(name)) is not None:
        raise AdapterError(f"{path}: the tensor name {name[:_SHOWN]!r}... {fault}", advice=_NO_MODEL)


def _position(item: tuple[str, _TensorEntry]) -> tuple[int, int]:
    return item[1].data_offsets or (0, 0)
