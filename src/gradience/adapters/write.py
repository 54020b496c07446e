"""A safetensors file written as a stream: the header from what is planned, then one tensor at a time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradience.adapters.tensors import DTYPES, TensorSource
from gradience.errors import OutputError

__all__ = ["PlannedTensor", "copied", "file_size", "planned", "write_safetensors"]

_ALIGNMENT: Final = 8  # bytes, of the first tensor: the format's own


class PlannedTensor(NamedTuple):
    """A tensor to be written: `dtype` by safetensors' name, `load` gives `nbytes` bytes of data when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    load: Callable[[], npt.NDArray[Any]]


def copied(source: TensorSource, name: str, *, as_name: str | None = None) -> PlannedTensor:
    """Return a tensor that is written bit for bit as the source holds it, perhaps under another name."""
    info = source.tensors[name]
    return PlannedTensor(as_name or name, info.dtype, info.shape, info.nbytes, lambda: source.raw(name))


def planned(name: str, dtype: str, shape: Sequence[int], load: Callable[[], npt.NDArray[Any]]) -> PlannedTensor:
    """Return a tensor whose data will be `load()` cast to the dtype, by safetensors' name."""
    kind = DTYPES[dtype]
    return PlannedTensor(
        name, dtype, tuple(shape), math.prod(shape) * kind.itemsize, lambda: load().astype(kind, copy=False)
    )


def write_safetensors(path: Path, tensors: Sequence[PlannedTensor], *, metadata: Mapping[str, str]) -> None:
    """Write the tensors, with no more than one in memory, in the order in which they are given.

    Raises:
        OutputError: the file cannot be written, or two tensors have the same name.
        ValueError: a tensor's data are not of the size that was planned.
    """
    raw = _header(path, tensors, metadata)
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


def file_size(tensors: Sequence[PlannedTensor], *, metadata: Mapping[str, str]) -> int:
    """Return how many bytes the file of these tensors will have."""
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
