"""A weight in its file: a matrix of which rows are read as they are asked for, so that none is in memory whole.

Arrays of a span's size are used again by the thread that had them: fresh ones cost more in page faults than the
arithmetic in them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.adapters.layout import Array
from gradience.base.weights import Found
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, TensorReader


class _Part(NamedTuple):
    """Rows that follow each other in one tensor; `start` is the first one's offset in bytes."""

    reader: TensorReader
    start: int
    rows: int


class Stored:
    """Rows of one tensor, or of several below each other. Indexed by a slice or by an array of row numbers."""

    def __init__(self, parts: Sequence[_Part], columns: int, dtype: np.dtype[Any]) -> None:
        self._parts = parts
        self.dtype = dtype
        self.shape = (sum(part.rows for part in parts), columns)
        self._last: tuple[bytes, Array] = (b"", np.empty((0, columns), dtype))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    @property
    def size(self) -> int:
        """The number of entries."""
        return self.shape[0] * self.shape[1]

    def __getitem__(self, at: slice | Array) -> Array:
        """Return those rows, as stored; rows asked for by their numbers, as `Case.probe` picks them, are read-only."""
        if isinstance(at, slice):
            return self.read(at, np.empty(self.extent(at), self.dtype))
        numbers = at.tobytes()
        asked, rows = self._last
        if asked != numbers:  # each replay is tried on the same few rows
            rows = self._picked(at)
            self._last = numbers, rows
        return rows

    def _picked(self, at: Array) -> Array:
        """Rows by their numbers, those that follow each other in one piece."""
        runs = np.split(at, np.flatnonzero(np.diff(at) != 1) + 1)
        rows = np.concatenate([self[int(run[0]) : int(run[-1]) + 1] for run in runs if len(run)])
        rows.flags.writeable = False
        return rows

    def extent(self, at: slice) -> tuple[int, int]:
        """Return the shape of those rows."""
        start, stop, _ = at.indices(len(self))
        return max(0, stop - start), self.shape[1]

    def read(self, at: slice, out: Array) -> Array:
        """Fill an array of the right shape and dtype with those rows and return it."""
        start, stop, _ = at.indices(len(self))
        self._read(start, stop, out.reshape(-1).view(np.uint8))
        return out

    def head(self, rows: int) -> Stored:
        """Return the first rows."""
        kept, left = [], rows
        for part in self._parts:
            kept.append(part._replace(rows=min(part.rows, left)))
            left -= kept[-1].rows
        return Stored(kept, self.shape[1], self.dtype)

    def _read(self, start: int, stop: int, out: npt.NDArray[np.uint8]) -> None:
        width = self.shape[1] * self.dtype.itemsize
        above = 0
        for part in self._parts:
            first, last = max(start - above, 0), min(stop - above, part.rows)
            if first < last:
                into = out[(above + first - start) * width : (above + last - start) * width]
                part.reader.into(part.start + first * width, into)
            above += part.rows


Matrix: TypeAlias = Array | Stored


def stored(tensors: Iterable[Found], expert: int | None, files: ExitStack) -> Stored:
    """Return the tensors' rows, one tensor below the other, a convolution flattened after its first axis.

    Args:
        tensors: of two axes or more, and with elements.
        expert: the slice of the first axis that is meant, of tensors of three axes or more.
        files: keeps them open.

    Raises:
        AdapterError: there is no such expert, or the tensors are not of one dtype and width.
    """
    parts, forms = [], set()
    for found in tensors:
        count, *rest = found.info.shape
        start = 0
        if expert is not None:
            if expert >= count or len(rest) < 2:
                raise AdapterError(f"{found.name}: of shape {list(found.info.shape)}: no expert {expert}")
            start = expert * (found.info.nbytes // count)
            count, *rest = rest
        forms.add((found.info.dtype, math.prod(rest)))
        parts.append(_Part(files.enter_context(found.file.reader(found.name)), start, count))
    if len(forms) != 1:
        raise AdapterError(f"the parts of one weight are of several dtypes or widths: {sorted(forms)}")
    ((dtype, columns),) = forms
    return Stored(parts, columns, DTYPES[dtype])


def head(data: Matrix, rows: int) -> Matrix:
    """Return the first rows."""
    return data.head(rows) if isinstance(data, Stored) else data[:rows]


class Scratch(threading.local):
    """Uninitialised arrays by name. Each call with a name takes back what the last one with that name gave."""

    def __init__(self) -> None:
        self._held: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return an array of that shape and dtype, with any values."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._held.get(name)
        if held is None or len(held) < nbytes:
            held = self._held[name] = np.empty(nbytes, np.uint8)
        return held[:nbytes].view(dtype).reshape(shape)


scratch = Scratch()
