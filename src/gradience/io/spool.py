"""Arrays on disk until the file is written, so that no more than one module is in memory.

A verb that writes an adapter computes all factors before it knows the ranks, and with them the header, of the file.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gradience.errors import OutputError
from gradience.io.interrupt import held

Array: TypeAlias = npt.NDArray[Any]


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes with the block, whatever ends it.

    Raises:
        OutputError: none can be made.
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
    """A folder of arrays of any dtype; whoever made the folder removes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = count()  # of one step, also where several threads keep arrays

    def keep(self, array: Array) -> Callable[[], Array]:
        """A function that gives the array back, bit for bit.

        Raises:
            OutputError: it cannot be written.
        """
        path = self._folder / str(next(self._count))
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # bytes: ml_dtypes' types have no buffer
        try:
            path.write_bytes(data.data)
        except OSError as error:
            message = f"cannot keep what is computed in {self._folder}: {error.strerror}"
            raise OutputError(message, advice="check the space left there, or set TMPDIR to another place") from error
        dtype, shape = array.dtype, array.shape
        return lambda: np.fromfile(path, dtype).reshape(shape)
