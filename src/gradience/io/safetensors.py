"""Read and write safetensors files, one tensor at a time.

Names, shapes and dtypes come from the header, which is checked against the file's real size first. Data are read, not
memory-mapped: a mapped file counts as resident memory, and an adapter may be larger than the available memory.
"""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, Protocol, Self, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from gradience.errors import AdapterError, OutputError
from gradience.io.header import DTYPES, TensorInfo, cut_short, is_float, read_header, refuse_long_name
from gradience.io.reading import decode_json, open_raw, read_small

__all__ = [
    "DTYPES",
    "Array",
    "PlannedTensor",
    "SafetensorsFile",
    "ShardedFiles",
    "TensorInfo",
    "TensorReader",
    "TensorSource",
    "ThreadBuffer",
    "copied",
    "file_size",
    "indexed_files",
    "is_float",
    "is_known",
    "planned",
    "refuse_long_name",
    "write_safetensors",
]

Array: TypeAlias = npt.NDArray[Any]
_CACHE_LINE: Final = 64  # bytes
_NO_INDEX: Final = "give the weights file itself"

_MOST_SHARDS: Final = 10_000
_LARGEST_INDEX: Final = 256 << 20  # bytes

# Bits per element of the format's other dtypes, which no array here has. Such a tensor can only be copied bit for bit.
_OTHER_BITS: Final = {"C64": 64, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
_ALIGNMENT: Final = 8  # bytes: where the first tensor begins, by the format


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

    def read(self, name: str, memory: ThreadBuffer | None = None) -> Array:
        """The tensor as an array of its own dtype; bf16 and fp8 through `ml_dtypes`.

        If `memory` is given, the array lies in it and is valid until the next read into it.

        Raises:
            AdapterError: the dtype has no array type, or the file was cut short since it was opened.
        """
        info = self.tensors[name]
        return self._bytes(info.offset, info.nbytes, memory).view(self._dtype(name)).reshape(info.shape)

    def read_slice(self, name: str, index: int, memory: ThreadBuffer | None = None) -> Array:
        """One slice along the tensor's first axis, such as one expert of a stack. Only its bytes are read.

        Raises:
            AdapterError: as for `read`, or the slice does not exist.
        """
        info = self.tensors[name]
        if not info.shape or not 0 <= index < info.shape[0]:
            raise AdapterError(f"{self.path}: tensor {name!r} of shape {list(info.shape)} has no slice {index}")
        size = info.nbytes // info.shape[0]
        return self._bytes(info.offset + index * size, size, memory).view(self._dtype(name)).reshape(info.shape[1:])

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, whatever their dtype.

        Raises:
            AdapterError: the file was cut short since it was opened.
        """
        return self._bytes(self.tensors[name].offset, self.tensors[name].nbytes)

    def reader(self, name: str) -> TensorReader:
        """A reader of the tensor's bytes in parts. The file stays open until the reader is closed.

        Raises:
            AdapterError: the file is gone, or is no regular file any more.
        """
        info = self.tensors[name]
        return TensorReader(self.path, self._start + info.offset, info.nbytes)

    def _dtype(self, name: str) -> np.dtype[Any]:
        dtype = self.tensors[name].dtype
        if dtype not in DTYPES:
            raise AdapterError(f"{self.path}: tensor {name!r} is of dtype {dtype}, which cannot be read")
        return DTYPES[dtype]

    def _bytes(self, offset: int, count: int, memory: ThreadBuffer | None = None) -> npt.NDArray[np.uint8]:
        """`count` bytes from an offset within the data, which begin after the header."""
        start = self._start + offset
        if memory is not None:
            data = memory.take(count)
            with TensorReader(self.path, start, count) as reader:
                reader.into(0, data)
            return data
        try:
            data = np.fromfile(self.path, np.uint8, count, offset=start)
        except OSError as error:
            raise AdapterError(f"cannot read {self.path}: {error.strerror}", advice="check the path") from error
        if len(data) != count:
            raise cut_short(self.path, start + count, self.path.stat().st_size)
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


class TensorReader:
    """Reads the bytes of one tensor into the caller's arrays. It is a context manager and safe for several threads."""

    def __init__(self, path: Path, start: int, nbytes: int) -> None:
        self._path, self._start, self._nbytes = path, start, nbytes
        try:
            self._file = open_raw(path)
        except OSError as error:
            raise AdapterError(f"cannot read {path}: {error.strerror}", advice="check the path") from error
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def into(self, offset: int, out: npt.NDArray[np.uint8]) -> None:
        """Fill a contiguous array with the bytes that begin at an offset within the tensor.

        Raises:
            AdapterError: the file was cut short since it was opened, or cannot be read.
            ValueError: the tensor has no such bytes.
        """
        if not 0 <= offset <= offset + len(out) <= self._nbytes:
            raise ValueError(f"bytes {offset} to {offset + len(out)} of a tensor of {self._nbytes}")
        start = self._start + offset
        done = 0
        try:
            with self._lock:
                self._file.seek(start)
                while done < len(out) and (count := self._file.readinto(out[done:].data)):
                    done += count
        except OSError as error:
            raise AdapterError(f"cannot read {self._path}: {error.strerror}", advice="check the path") from error
        if done < len(out):
            raise cut_short(self._path, start + len(out), self._path.stat().st_size)


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
        raw = read_small(index, most=_LARGEST_INDEX, what="an index of weights")
        names = set(decode_json(raw, _Index).weight_map.values())
    except OSError as error:
        raise AdapterError(f"cannot read {index}: {error.strerror}", advice="check the path") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{index} is not an index of weights: {error}", advice=_NO_INDEX) from error
    if not names or len(names) > _MOST_SHARDS:
        raise AdapterError(f"{index} names {len(names)} files", advice=_NO_INDEX)
    for name in names:
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
