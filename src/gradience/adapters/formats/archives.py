"""Arrays that JAX and Keras programs save: NumPy archives and HDF5 files, read as paths to arrays, never unpickled.

A checkpoint of Orbax, and a Keras file in which LoRA was merged, are named for what they are.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from gradience.adapters.layout import MOST_ELEMENTS, Array
from gradience.errors import AdapterError
from gradience.io.reading import open_regular

SUFFIXES: Final = frozenset({".npz", ".h5", ".hdf5"})
_IN_MEMORY: Final = "restore it in the program that saved it, and call gradience.audit_pytree(params)"
_ORBAX: Final = ("_CHECKPOINT_METADATA", "manifest.ocdbt", "_METADATA")


def orbax_advice(folder: Path) -> str | None:
    """Return what to do with a folder that Orbax wrote, None for any other folder.

    >>> orbax_advice(Path("/"))
    """
    if not any((folder / name).is_file() for name in _ORBAX):
        return None
    return f"it is an Orbax checkpoint: {_IN_MEMORY}"


def read_archive(path: Path) -> dict[str, Array]:
    """Return the arrays of a file by their paths, `/` as `.`.

    Raises:
        AdapterError: it is damaged, holds objects, or is too large; for HDF5 also where h5py is not installed.
    """
    return _npz(path) if path.suffix == ".npz" else _h5(path)


def _npz(path: Path) -> dict[str, Array]:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as members:
            large = [item.filename for item in members.infolist() if item.file_size > 8 * MOST_ELEMENTS]
            if large:
                raise AdapterError(f"{path}: {large[0]} is larger than {8 * MOST_ELEMENTS} bytes, the limit")
            with np.load(path, allow_pickle=False) as held:
                return {name.replace("/", "."): held[name] for name in held.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise AdapterError(f"{path} is not a readable NumPy archive: {error}", advice="save it again") from error


def _h5(path: Path) -> dict[str, Array]:
    try:
        import h5py  # noqa: PLC0415  # an optional dependency
    except ModuleNotFoundError:
        raise AdapterError(f"{path} is an HDF5 file, which needs h5py", advice="pip install h5py") from None
    found: dict[str, Array] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.size <= MOST_ELEMENTS:
            found[name.replace("/", ".")] = np.asarray(item)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(take)
    except OSError as error:
        raise AdapterError(f"{path} is not a readable HDF5 file: {error}", advice="save it again") from error
    if not any("lora" in name for name in found):
        raise AdapterError(
            f"{path} holds {len(found)} arrays and no LoRA factors: Keras merges them into the kernels as it saves",
            advice="call gradience.audit_pytree(model) before, or KerasHub's save_lora_weights('x.lora.h5')",
        )
    return found
