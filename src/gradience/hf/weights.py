"""Legacy `.bin` adapters: a pickle, opened only by torch's own restricted loader."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gradience.adapters.tensors import TensorInfo
from gradience.errors import AdapterError

__all__ = ["TorchFile"]

_NAMES: Final = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


class TorchFile:
    """A file of torch tensors, loaded with `weights_only=True`: no code in it can run.

    Raises:
        AdapterError: torch is not installed, or the file is not a plain dict of tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self._data = _load(path)
        self.tensors = {
            name: TensorInfo(_NAMES.get(str(t.dtype), str(t.dtype)), tuple(t.shape), 0, t.numel() * t.element_size())
            for name, t in self._data.items()
        }

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return the tensor as an array of its own dtype."""
        import torch  # noqa: PLC0415  # an optional dependency

        tensor = self._data[name].detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return np.asarray(tensor.numpy())


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise AdapterError(f"no weights file at {path}", advice="check the path")
    with path.open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            raise AdapterError(
                f"{path} is a git-lfs pointer, not the weights", advice="fetch them with 'git lfs pull'"
            )
    try:
        import torch  # noqa: PLC0415  # an optional dependency
    except ImportError as error:
        raise AdapterError(
            f"{path} is a pickled torch file, and torch is not installed",
            advice="pip install torch, or save the adapter again with safe_serialization=True",
        ) from error
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n", 1)[0]
        raise AdapterError(
            f"{path} cannot be loaded as plain tensors: {first}",
            advice="save the adapter again with safe_serialization=True",
        ) from error
    if not isinstance(data, dict) or not all(isinstance(t, torch.Tensor) for t in data.values()):
        raise AdapterError(f"{path} is not a dict of tensors", advice="give adapter_model.bin as PEFT saved it")
    return data
