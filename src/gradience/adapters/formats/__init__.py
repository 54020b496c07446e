"""The table of adapter file formats, in the order in which they are tried, and the opening of one weights file.

To add a format, write a module that ends in a `Format` record (what it matches, how it is read, what it keeps where).
Put the record into `FORMATS` before any other that would match its files too.

This module also opens files other than safetensors, and never runs code in them. NumPy archives and HDF5 files, which
JAX and Keras programs save, are read as paths to arrays and never unpickled. An Orbax checkpoint, and a Keras file with
LoRA already merged, are recognised and refused with advice. A torch `.bin` is loaded by torch itself, for tensors only;
torch is imported only then.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gradience.adapters.formats.foreign import DIFFUSERS, KOHYA, MLX, MLX_FULL, TORCHTUNE
from gradience.adapters.formats.peft import PEFT
from gradience.adapters.layout import MOST_ELEMENTS, Array, Files, Format
from gradience.errors import AdapterError
from gradience.io.reading import is_zip, open_regular, refuse_compressed
from gradience.io.safetensors import DTYPES, SafetensorsFile, TensorInfo, TensorSource, refuse_bad_name

SUFFIXES: Final = frozenset({".npz", ".h5", ".hdf5"})
_IN_MEMORY: Final = "restore it in the program that saved it, and call gradience.audit_pytree(params)"
_ORBAX: Final = ("_CHECKPOINT_METADATA", "manifest.ocdbt", "_METADATA")

_SAVE_AGAIN: Final = "save the adapter again with safe_serialization=True"
_LFS: Final = b"version https://git-lfs"
_NAMES: Final = {f"torch.{kind}": name for name, kind in DTYPES.items()}

FORMATS: Final[tuple[Format, ...]] = (MLX, TORCHTUNE, KOHYA, PEFT, DIFFUSERS, MLX_FULL)
"""The first format that matches reads the files. PEFT is before diffusers, whose names are PEFT's under a prefix."""

_PICKLED: Final = frozenset({".bin", ".pt", ".pth"})


def orbax_advice(folder: Path) -> str | None:
    """The advice for a folder that Orbax wrote; None for any other folder.

    >>> orbax_advice(Path("/"))
    """
    if not any((folder / name).is_file() for name in _ORBAX):
        return None
    return f"it is an Orbax checkpoint: {_IN_MEMORY}"


def distributed_advice(folder: Path, *, config: str = "") -> str | None:
    """The advice for a checkpoint of FSDP or of torch's DCP, or the folder of its parts; None for any other folder.

    Args:
        folder: the folder.
        config: the file of an adapter that has to be copied beside its weights; none of a base model.

    >>> distributed_advice(Path("/"))
    """
    whole, places = folder / "pytorch_model_fsdp.bin", [folder, *sorted(folder.glob("pytorch_model_fsdp_*"))]
    if config and whole.is_file():
        return f"it is a checkpoint of FSDP: give {whole} itself"
    parts = next((one for one in places if (one / ".metadata").is_file() and any(one.glob("*.distcp"))), None)
    if parts is None:
        return None
    copy = f" copy {config} into OUT," if config else ""
    return f"it is a checkpoint in parts (FSDP, DCP): run 'accelerate merge-weights {parts} OUT',{copy} and give OUT"


def read_archive(path: Path) -> dict[str, Array]:
    """Return the arrays of an `.npz` or HDF5 file by their paths, with `/` replaced by `.`.

    Raises:
        AdapterError: the file is damaged, holds objects, or is too large; for HDF5 also if h5py is not installed.
    """
    return _npz(path) if path.suffix == ".npz" else _h5(path)


def _npz(path: Path) -> dict[str, Array]:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as members:
            # np.load unpacks a whole member, and a compressed one may grow to any size.
            large = [item.filename for item in members.infolist() if item.file_size > 8 * MOST_ELEMENTS]
        if not large:
            with np.load(path, allow_pickle=False) as archive:
                return {name.replace("/", "."): archive[name] for name in archive.files}
    except Exception as error:  # zlib, struct and zipfile have errors of their own
        raise AdapterError(f"{path} is not a readable NumPy archive: {error}", advice="save it again") from error
    raise AdapterError(f"{path}: {large[0]} is larger than {8 * MOST_ELEMENTS} bytes, the limit")


def _h5(path: Path) -> dict[str, Array]:
    try:
        import h5py  # an optional dependency
    except ModuleNotFoundError:
        raise AdapterError(f"{path} is an HDF5 file, which needs h5py", advice="pip install h5py") from None
    arrays: dict[str, Array] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.size <= MOST_ELEMENTS:
            arrays[name.replace("/", ".")] = np.asarray(item)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(take)
    except Exception as error:  # h5py raises RuntimeError, KeyError and more of a damaged file
        raise AdapterError(f"{path} is not a readable HDF5 file: {error}", advice="save it again") from error
    if not any("lora" in name for name in arrays):
        raise AdapterError(
            f"{path} holds {len(arrays)} arrays and no LoRA factors: Keras merges them into the kernels as it saves",
            advice="call gradience.audit_pytree(model) before, or KerasHub's save_lora_weights('x.lora.h5')",
        )
    return arrays


class TorchFile:
    """A file of torch tensors, loaded with `weights_only=True`, so that no code in it can run.

    Raises:
        AdapterError: torch is not installed, or the file is not a plain dict of tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self._data = _load(path)
        for name in self._data:
            refuse_bad_name(path, name)
        self.tensors = {name: _described(path, name, tensor) for name, tensor in self._data.items()}

    def read(self, name: str) -> npt.NDArray[Any]:
        """The tensor as an array of its own dtype.

        Raises:
            AdapterError: numpy has no such dtype.
        """
        import torch  # an optional dependency

        info = self.tensors[name]
        if info.dtype not in DTYPES:
            raise AdapterError(f"{self.path}: tensor {name!r} is of dtype {info.dtype}, which cannot be read")
        # NumPy has no bfloat16: the bytes are viewed as ml_dtypes' type.
        raw = self._data[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return np.asarray(raw.view(DTYPES[info.dtype]).reshape(info.shape))

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes."""
        return self.read(name).reshape(-1).view(np.uint8)


def _described(path: Path, name: str, tensor: Any) -> TensorInfo:
    """A tensor's entry. A tensor larger than the file is refused, because strides can claim any size."""
    is_plain = not tensor.is_nested and str(tensor.layout) == "torch.strided" and not tensor.is_quantized
    if not is_plain or tensor.device.type != "cpu":  # tested first, because a nested tensor has no size
        raise AdapterError(f"{path}: tensor {name!r} is not a plain array", advice=_SAVE_AGAIN)
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes > path.stat().st_size:
        raise AdapterError(f"{path}: tensor {name!r} claims {nbytes} bytes, more than the file has", advice=_SAVE_AGAIN)
    return TensorInfo(_NAMES.get(str(tensor.dtype), str(tensor.dtype)), tuple(tensor.shape), 0, nbytes)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise AdapterError(f"no weights file at {path}", advice="check the path")
    with open_regular(path) as file:
        if file.read(len(_LFS)) == _LFS:
            raise AdapterError(f"{path} is a git-lfs pointer, not the weights", advice="fetch them with 'git lfs pull'")
    refuse_compressed(path)
    try:
        import torch  # an optional dependency
    except ImportError as error:
        raise AdapterError(
            f"{path} is a pickled torch file, and torch is not installed",
            advice="pip install torch, or save the adapter again with safe_serialization=True",
        ) from error
    try:
        with warnings.catch_warnings():  # torch warns of unusual kinds of tensor, which `_described` refuses by name
            warnings.simplefilter("ignore")
            # Mapped, a tensor is read when it is used; torch maps archives alone, and raises for its older format.
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except Exception as error:  # a hostile pickle can make the loader raise anything, and none of that is our bug
        first = str(error).strip().split("\n", 1)[0]
        raise AdapterError(
            f"{path} cannot be loaded as plain tensors: {type(error).__name__}: {first}", advice=_SAVE_AGAIN
        ) from error
    if not isinstance(data, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in data.items()
    ):
        raise AdapterError(f"{path} is not a dict of tensors", advice="give adapter_model.bin as PEFT saved it")
    return data


def format_of(files: Files) -> Format:
    """The format of the files. If none matches it is PEFT, which then reports what it misses."""
    return next((one for one in FORMATS if one.matches(files)), PEFT)


def open_weights(path: Path) -> TensorSource:
    """Open one weights file: safetensors by its header only, or a torch file.

    Raises:
        AdapterError: the file is missing, damaged or of another kind, or a torch file without torch installed.
    """
    if path.suffix in _PICKLED:
        return TorchFile(path)
    if path.suffix in SUFFIXES:
        raise AdapterError(
            f"{path} holds arrays as JAX and Keras programs save them, which only audit reads",
            advice=f"run: gradience audit {path}",
        )
    return SafetensorsFile(path)
