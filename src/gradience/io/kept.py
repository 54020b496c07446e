"""Bytes that are kept for a while: arrays on disk (`Spool`) and a file in memory (`HeldFile`).

A verb that writes an adapter must compute all factors before it knows the ranks, and so the header, of the file. A
`Spool` keeps the arrays on disk until then, so that at most one module is in memory. A `HeldFile` is a safetensors file
that is read once, and is both hashed and computed with.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.errors import OutputError
from gradience.io.header import cut_short, header_length, parsed_header
from gradience.io.interrupt import held
from gradience.io.reading import open_raw
from gradience.io.safetensors import Memory, SafetensorsFile

Array: TypeAlias = npt.NDArray[Any]

Bytes: TypeAlias = npt.NDArray[np.uint8]

_FIRST_ROOM: Final = 1 << 22  # bytes


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A context that yields a temporary folder and removes it at the end of the block, also after an error.

    Raises:
        OutputError: the folder cannot be made.
    """
    folder: Path | None = None
    try:
        with held():
            folder = _made_folder()
        yield folder
    finally:
        with held():
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _made_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="gradience-"))
    except OSError as error:
        message = f"cannot make a temporary folder: {error.strerror}"
        raise OutputError(message, advice="check the space left, or set TMPDIR to another place") from error


class Spool:
    """Arrays of any dtype, kept as files in a folder. The caller made the folder and removes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = count()  # next() on it is one step, so several threads may keep arrays

    def keep(self, array: Array) -> Callable[[], Array]:
        """Write an array to disk, and return a function that reads it back bit for bit.

        Raises:
            OutputError: the array cannot be written.
        """
        path = self._folder / str(next(self._count))
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # as bytes: ml_dtypes' types have no buffer
        try:
            path.write_bytes(data.data)
        except OSError as error:
            message = f"cannot keep what is computed in {self._folder}: {error.strerror}"
            raise OutputError(message, advice="check the space left there, or set TMPDIR to another place") from error
        dtype, shape = array.dtype, array.shape
        return lambda: np.fromfile(path, dtype).reshape(shape)


class Buffer:
    """Memory for one file at a time, reused from file to file because fresh memory costs as much as the read."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._room: Bytes = np.empty(0, np.uint8)

    def read(self, path: Path) -> Bytes | None:
        """All bytes of a regular file, valid until the next call; None if the file has more than `most` bytes.

        Raises:
            OSError: the file cannot be opened or read, or is not a regular file.
        """
        size = 0
        with open_raw(path) as file:
            while size < len(self._room) or self._grow():
                got = file.readinto(self._room.data[size:])
                if not got:
                    return self._room[:size]
                size += got
            return None if file.read(1) else self._room

    def _grow(self) -> bool:
        """Double the memory, up to the limit, and return whether it grew."""
        size = min(max(2 * len(self._room), _FIRST_ROOM), self._most)
        if size <= len(self._room):
            return False
        room = np.empty(size, np.uint8)
        room[: len(self._room)] = self._room
        self._room = room
        return True


def header_of(path: Path, data: Bytes) -> bytes:
    """The JSON of the header in a file's bytes; `path` names the file in errors.

    Raises:
        AdapterError: the file is not a safetensors file, or is cut short within the header.
    """
    length = header_length(path, data[:64].tobytes(), len(data))
    return data[8 : 8 + length].tobytes()


class HeldFile(SafetensorsFile):
    """A safetensors file whose bytes are in memory; its arrays are views of them.

    Raises:
        AdapterError: as for `SafetensorsFile`.
    """

    def __init__(self, path: Path, data: Bytes, header: bytes) -> None:
        self.path = path
        self._data = data
        self._start = 8 + len(header)
        self.tensors, self.metadata = parsed_header(path, header, len(data) - self._start)

    def turn_to(self, path: Path, data: Bytes) -> None:
        """Switch to another file, which must have the same header and the same size."""
        self.path, self._data = path, data

    def _bytes(self, offset: int, count: int, memory: Memory | None = None) -> Bytes:  # noqa: ARG002  # has its own
        start = self._start + offset
        if start + count > len(self._data):
            raise cut_short(self.path, start + count, len(self._data))
        return self._data[start : start + count]
