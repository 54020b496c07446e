"""The fault of a save under DeepSpeed ZeRO-3 without gathering: tensors of shape [0], their numbers left in shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gradience.errors import AdapterError
from gradience.io.safetensors import TensorInfo, read_header


def refuse_ungathered(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse weights of which some have shape [0]. ZeRO-3 does not partition small tensors, so others may be whole.

    An alpha is left out: kohya's files hold it as a number, which no optimizer shards.

    Raises:
        AdapterError: there is such a tensor.
    """
    empty = [name for name, info in tensors.items() if info.shape == (0,) and not name.endswith("alpha")]
    if empty:
        raise AdapterError(
            f"{path}: {len(empty)} of {len(tensors)} tensors have shape [0] (first: {empty[0]}): DeepSpeed ZeRO-3 "
            "saved them without gathering the weights: run the checkpoint's zero_to_fp32.py, or set "
            "stage3_gather_16bit_weights_on_model_save and save again"
        )


def refuse_ungathered_file(path: Path) -> None:
    """The same for a safetensors file, by its header; a file that cannot be read is left to those who need its numbers.

    Raises:
        AdapterError: a tensor has shape [0].
    """
    try:
        tensors = read_header(path).tensors
    except (AdapterError, OSError):
        return
    refuse_ungathered(path, tensors)
