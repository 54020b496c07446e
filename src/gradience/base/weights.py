"""The base's weights, found by a module's name and read one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np

from gradience.adapters.tensors import Array, SafetensorsFile, TensorInfo
from gradience.errors import AdapterError

__all__ = ["BaseWeights", "Found"]

_READABLE: Final[dict[str, np.dtype[Any]]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_MATRIX: Final = 2


class Found(NamedTuple):
    """One tensor of the base: its name there, and where it is."""

    name: str
    info: TensorInfo
    file: SafetensorsFile


class BaseWeights:
    """The tensors of a base model, whatever the number of its files. Only headers are read at first.

    Raises:
        AdapterError: a file is missing, damaged or no safetensors.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = [SafetensorsFile(file) for file in files]
        self._held: dict[str, SafetensorsFile] = {name: file for file in self.files for name in file.tensors}
        self._by_tail: dict[str, list[str]] = {}
        for name in self._held:
            for tail in _tails(name):
                self._by_tail.setdefault(tail, []).append(name)

    def find(self, name: str) -> Found | None:
        """Return the tensor of that name, or None.

        A model class adds or drops prefixes (`transformer.h.0` of GPT2LMHeadModel is `h.0` in the hub's
        file), so where the whole name is not there, one that ends with the other is taken if it is the only one.
        """
        if name not in self._held:
            longer = self._by_tail.get(name, [])
            shorter = [tail for tail in _tails(name) if tail in self._held and tail.count(".") > 1][:1]
            hits = longer or shorter
            if len(hits) != 1:
                return None
            name = hits[0]
        return Found(name, self._held[name].tensors[name], self._held[name])

    def read(self, found: Found, expert: int | None = None) -> Array:
        """Return the weight as stored, as a matrix: an expert's slice, a convolution flattened after its first axis.

        Raises:
            AdapterError: the weight is quantised, or no matrix.
        """
        if (reason := self.refusal(found)) is not None:
            raise AdapterError(f"{found.name}: {reason}")
        part = found.file.read(found.name) if expert is None else self._slice(found, expert)
        return part.reshape(part.shape[0], -1)

    def _slice(self, found: Found, expert: int) -> Array:
        """Return one slice along the first axis, reading no other."""
        count, *rest = found.info.shape
        if expert >= count or len(rest) < _MATRIX:
            raise AdapterError(f"{found.name}: of shape {list(found.info.shape)}: no expert {expert}")
        dtype, size = _READABLE[found.info.dtype], found.info.nbytes // count
        path = found.file.path
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little") + found.info.offset + expert * size
        return np.fromfile(path, dtype, size // dtype.itemsize, offset=start).reshape(rest)

    def refusal(self, found: Found) -> str | None:
        """Return why no number can be derived from the tensor, or None."""
        if found.info.dtype not in _READABLE:
            return f"stored as {found.info.dtype}: a quantised base weight is not comparable"
        if len(found.info.shape) < _MATRIX or 0 in found.info.shape:
            return f"of shape {list(found.info.shape)}: no matrix"
        return None


def _tails(name: str) -> Iterable[str]:
    """Return what a name ends with, from each of its dots on, longest first."""
    parts = name.split(".")
    return (".".join(parts[i:]) for i in range(1, len(parts)))
