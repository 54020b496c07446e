"""An adapter opened for whatever reads or rewrites it: safetensors, or torch's own files where torch is installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from gradience.adapters.folder import AdapterFiles, find_files
from gradience.adapters.modules import Adapter
from gradience.adapters.read import read_adapter
from gradience.adapters.tensors import SafetensorsFile, TensorSource

__all__ = ["PathLike", "open_adapter"]

PathLike: TypeAlias = str | os.PathLike[str]


def open_adapter(
    path: PathLike, *, adapter_config: PathLike | None = None, weights: PathLike | None = None
) -> tuple[AdapterFiles, Adapter]:
    """Return where an adapter's files are, and what they declare; no tensor's data are read yet.

    Args:
        path: the folder that PEFT (or MLX-LM, kohya, diffusers) saved, or its weights file.
        adapter_config: a config elsewhere than beside the weights.
        weights: a weights file of another name.

    Raises:
        AdapterError: files are missing, damaged or of another format.
    """
    files = find_files(Path(path), config=_path(adapter_config), weights=_path(weights))
    return files, read_adapter(files, _open)


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def _open(weights: Path) -> TensorSource:
    if weights.suffix in {".bin", ".pt", ".pth"}:
        from gradience.hf.weights import TorchFile  # noqa: PLC0415  # torch only where it is needed

        return TorchFile(weights)
    return SafetensorsFile(weights)
