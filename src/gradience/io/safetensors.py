"""Read and write safetensors files, one tensor at a time.

Names, shapes and dtypes come from the header, which is checked first: against the file's real size, for contradictions,
and so that damage is named in words. Then the library reads the tensors. Parts of tensors, raw bytes, the float8 that
NumPy has no name for, and weights into memory that is used again are read here, and files are written here: the library
reads a whole tensor for a part of it, takes fresh memory for each, and writes from arrays that are all in memory.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import ml_dtypes  # NumPy knows bfloat16 only after this import
import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from gradience.errors import AdapterError, DamagedError, OutputError
from gradience.io.reading import decode_json, name_fault, open_regular, read_small

Array: TypeAlias = npt.NDArray[Any]
_NO_INDEX: Final = "give the weights file itself"

_CACHE_LINE: Final = 64  # bytes

_MOST_SHARDS: Final = 10_000
_LARGEST_INDEX: Final = 256 << 20  # bytes

# Bits per element of the format's other dtypes, which no array here has. Such a tensor can only be copied bit for bit.
_OTHER_BITS: Final = {"C64": 64, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
_ALIGNMENT: Final = 8  # bytes: where the first tensor begins, by the format

# --- headers -----------------------------------------------------------------------------------------------------

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
_BY_LIBRARY: Final = DTYPES.keys() - {"F8_E4M3", "F8_E5M2"}
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


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A block in which an error of the system is one of the file."""
    try:
        yield
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror}", advice="check the path") from error


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
    with _reading(path), open_regular(path) as file:
        length = header_length(path, file.read(64), os.fstat(file.fileno()).st_size)
        file.seek(8)
        return file.read(length), 8 + length


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
        # The first byte is also the lowest of a header's length, which may be that of a mark: a `{` after it decides.
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
    for name, entry in sorted(declared.items(), key=lambda item: item[1].data_offsets or (0, 0)):
        if entry.data_offsets is None or entry.shape is None:
            raise AdapterError(f"{path}: the header's entry {name!r} is not a tensor", advice="save the adapter again")
        if len(name) >= _SHORT:
            refuse_bad_name(path, name)
        if len(entry.shape) > _MOST_AXES:
            raise AdapterError(f"{path}: tensor {name!r} claims {len(entry.shape)} axes")
        begin, end = entry.data_offsets
        # The format forbids gaps and overlaps: in a gap a second file could hide.
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


def refuse_bad_name(path: Path, name: str) -> None:
    """Refuse a tensor name that is longer than any model's, or that no file could be written with.

    Raises:
        AdapterError: the name has a fault by `io.reading`.
    """
    if (fault := name_fault(name)) is not None:
        shown = repr(name[:_SHOWN]) + "..." * (len(name) > _SHOWN)
        raise AdapterError(f"{path}: the tensor name {shown} {fault}", advice=_NO_MODEL)


# --- files -------------------------------------------------------------------------------------------------------


class TensorSource(Protocol):
    """Anything that lists tensors and reads one by name."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    def read(self, name: str) -> Array:
        """The tensor's data."""
        ...

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes."""
        ...


class SafetensorsFile:
    """A safetensors file. Opening it reads only the header.

    Raises:
        AdapterError: the file is missing, of another format or cut short, or its header is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors, self.metadata, self._start = read_header(path)

    @cached_property
    def _library(self) -> Any:
        # Not mapped, which is the default: when a mapped file is cut short, reading it ends the process.
        return safe_open(self.path, framework="numpy", backend="pread")

    def read(self, name: str, memory: ThreadBuffer | None = None) -> Array:
        """The tensor as an array of its own dtype; bf16 and fp8 through `ml_dtypes`.

        If `memory` is given, the array lies in it and is valid until the next read into it.

        Raises:
            AdapterError: the dtype has no array type, or the file was cut short since it was opened.
        """
        info = self.tensors[name]
        if info.dtype in _BY_LIBRARY and memory is None:
            # It refuses the whole file for one strange dtype, and is not told what is wrong: `_array` reads or says it.
            with suppress(SafetensorError, OSError):
                return self._library.get_tensor(name)  # type: ignore[no-any-return]
        return self._array(name, info.shape, memory)

    def read_slice(self, name: str, index: int, memory: ThreadBuffer | None = None) -> Array:
        """One slice along the tensor's first axis, such as one expert of a stack. Only its bytes are read.

        Raises:
            AdapterError: as for `read`, or the slice does not exist.
        """
        shape = self.tensors[name].shape
        if not shape or not 0 <= index < shape[0]:
            raise AdapterError(f"{self.path}: tensor {name!r} of shape {list(shape)} has no slice {index}")
        return self._array(name, shape[1:], memory, index)

    def raw(self, name: str, start: int = 0, most: int | None = None) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, whatever their dtype: all, or at most so many from a start.

        Raises:
            AdapterError: the file was cut short since it was opened.
        """
        info = self.tensors[name]
        left = info.nbytes - start
        return self._bytes(info.offset + start, left if most is None else min(left, most))

    def _array(self, name: str, shape: tuple[int, ...], memory: ThreadBuffer | None = None, index: int = 0) -> Array:
        """The index-th part of this shape."""
        info = self.tensors[name]
        if info.dtype not in DTYPES:
            raise AdapterError(f"{self.path}: tensor {name!r} is of dtype {info.dtype}, which cannot be read")
        dtype = DTYPES[info.dtype]
        size = math.prod(shape) * dtype.itemsize
        return self._bytes(info.offset + index * size, size, memory).view(dtype).reshape(shape)

    def _bytes(self, offset: int, count: int, memory: ThreadBuffer | None = None) -> npt.NDArray[np.uint8]:
        """`count` bytes from an offset within the data, which begin after the header."""
        start = self._start + offset
        data = np.empty(count, np.uint8) if memory is None else memory.take(count)
        with _reading(self.path), open_regular(self.path) as file:
            file.seek(start)
            if file.readinto(data.data) != count:
                raise cut_short(self.path, start + count, os.fstat(file.fileno()).st_size)
        return data


class ThreadBuffer(threading.local):
    """Reusable memory for one tensor at a time, separate for each thread.

    Fresh pages cost more than the copy from the file. The memory is aligned to 64 bytes, so that XLA can use an array
    in it without a copy.
    """

    def __init__(self) -> None:
        self._held = np.empty(0, np.uint8)

    def take(self, count: int) -> npt.NDArray[np.uint8]:
        """`count` uninitialised bytes. The next call returns the same memory again."""
        if len(self._held) < count:
            self._held = np.empty(0, np.uint8)  # freed before more is allocated
            raw = np.empty(count + _CACHE_LINE, np.uint8)
            self._held = raw[-raw.ctypes.data % _CACHE_LINE :]
        return self._held[:count]


class ShardedFiles:
    """Several weights files that together hold one adapter.

    Raises:
        AdapterError: two files hold a tensor of the same name.
    """

    def __init__(self, path: Path, shards: Sequence[TensorSource]) -> None:
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._holder: dict[str, TensorSource] = {}
        for shard in shards:
            if twice := self.tensors.keys() & shard.tensors.keys():
                raise AdapterError(f"{shard.path} and another file beside it both hold a tensor {min(twice)!r}")
            self.tensors |= shard.tensors
            self.metadata |= shard.metadata
            self._holder |= dict.fromkeys(shard.tensors, shard)

    def read(self, name: str) -> Array:
        """The tensor's data, from the file that holds it."""
        return self._holder[name].read(name)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, from the file that holds it."""
        return self._holder[name].raw(name)


class _Index(msgspec.Struct):
    """The index of a sharded checkpoint: tensor name to file name. Other keys are ignored."""

    weight_map: dict[str, str]


def indexed_files(index: Path) -> list[Path]:
    """The files that the index of a sharded checkpoint names, sorted by name.

    Raises:
        AdapterError: the index cannot be read, or it names files that are missing or lie outside its folder.
    """
    try:
        with _reading(index):
            raw = read_small(index, most=_LARGEST_INDEX, what="an index of weights")
        names = set(decode_json(raw, _Index).weight_map.values())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{index} is not an index of weights: {error}", advice=_NO_INDEX) from error
    if not names or len(names) > _MOST_SHARDS:
        raise AdapterError(f"{index} names {len(names)} files", advice=_NO_INDEX)
    for name in names:
        # By the rules of POSIX and of Windows, on whichever system the index is read.
        if PurePosixPath(name).name != name or "\\" in name or "\0" in name or name in {"", ".", ".."}:
            raise AdapterError(f"{index} names a file outside its folder: {name!r}", advice="do not trust these files")
    files = sorted(index.parent / name for name in names)
    if missing := [file.name for file in files if not file.is_file()]:
        raise AdapterError(
            f"{len(missing)} of {len(files)} shards of {index} are missing (first: {missing[0]})",
            advice="the download or copy is incomplete: get the missing files",
        )
    return files


class PlannedTensor(NamedTuple):
    """A tensor to be written. `dtype` is safetensors' name, and `load()` returns `nbytes` bytes of data.

    `with_another` says that its data are computed together with another tensor's, usually the one before.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    load: Callable[[], npt.NDArray[Any]]
    with_another: bool = False


class Together:
    """Arrays that are computed together when the first is asked for. Each is released when it is taken."""

    def __init__(self, compute: Callable[[], dict[str, Array]]) -> None:
        self._compute = compute
        self._made: dict[str, Array] = {}
        self._lock = threading.Lock()  # they may be taken by several threads

    def taking(self, name: str) -> Callable[[], Array]:
        """Return a function that takes the array of this name."""

        def take() -> Array:
            with self._lock:
                if name not in self._made:
                    self._made = self._compute()
                return self._made.pop(name)

        return take


def copied(source: TensorSource, name: str) -> PlannedTensor:
    """The plan to write a tensor bit for bit as the source holds it."""
    info = source.tensors[name]
    return PlannedTensor(name, info.dtype, info.shape, info.nbytes, lambda: source.raw(name))


def planned(name: str, dtype: str, shape: Sequence[int], load: Callable[[], npt.NDArray[Any]]) -> PlannedTensor:
    """The plan to write `load()` cast to a dtype, which is given by safetensors' name."""
    kind = DTYPES[dtype]
    return PlannedTensor(
        name, dtype, tuple(shape), math.prod(shape) * kind.itemsize, lambda: load().astype(kind, copy=False)
    )


def write_safetensors(path: Path, tensors: Sequence[PlannedTensor], *, metadata: Mapping[str, str]) -> None:
    """Write the tensors in the given order, with at most one of them in memory.

    Raises:
        OutputError: the file cannot be written, or two tensors have the same name.
        ValueError: a tensor's data are not of the size that was planned.
    """
    raw = _header(path, tensors, metadata)
    for tensor in tensors:
        _refuse_unreadable(tensor)
    try:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            for tensor in tensors:
                data = np.ascontiguousarray(tensor.load())
                if data.nbytes != tensor.nbytes:
                    raise ValueError(f"{tensor.name}: {data.nbytes} bytes, planned were {tensor.nbytes}")
                # As bytes, because arrays of ml_dtypes' types have no buffer.
                file.write(data.reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}", advice="check the space left") from error


def is_known(dtype: str) -> bool:
    """Whether the safetensors format has a dtype of that name, even one that cannot be read here."""
    return dtype in DTYPES or dtype in _OTHER_BITS


def _refuse_unreadable(tensor: PlannedTensor) -> None:
    """Refuse a tensor whose dtype or size would make the whole file unreadable for every program."""
    bits = _OTHER_BITS.get(tensor.dtype)
    if tensor.dtype not in DTYPES and bits is None:
        what = f"is of dtype {tensor.dtype!r}, which safetensors does not know"
    elif bits is not None and math.prod(tensor.shape) * bits != tensor.nbytes * 8:
        what = f"of {tensor.dtype} {list(tensor.shape)} has {tensor.nbytes} bytes, which do not fit"
    else:
        return
    raise OutputError(f"tensor {tensor.name!r} {what}", advice="nothing could open the file: take it out of the source")


def file_size(tensors: Sequence[PlannedTensor], *, metadata: Mapping[str, str]) -> int:
    """The size in bytes of the file that these tensors will make."""
    return 8 + len(_header(Path("the file"), tensors, metadata)) + sum(tensor.nbytes for tensor in tensors)


def _header(path: Path, tensors: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for tensor in tensors:
        if tensor.name in header:
            raise OutputError(f"two tensors would be named {tensor.name!r} in {path}", advice="report this as a bug")
        end = position + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return raw + b" " * (-len(raw) % _ALIGNMENT)
