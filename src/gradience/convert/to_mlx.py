"""MLX-LM's layout: `lora_a` (in, r) and `lora_b` (r, out), one rank and one scale for all modules.

`mlx_lm/tuner/utils.py`, load_adapters: LoRA layers are made of the modules that `keys` names, each of the config's
rank, and every tensor must have the shape that follows. So lower ranks are padded with zeros, which changes no
update, and where scales differ the ratio goes into `lora_b`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gradience.adapters.modules import Array
from gradience.adapters.write import PlannedTensor, planned
from gradience.convert.dtypes import dtype_name
from gradience.convert.pieces import Piece
from gradience.convert.source import Source
from gradience.errors import AdapterError

__all__ = ["MLX_WEIGHTS", "mlx_config", "mlx_notes", "mlx_tensors"]

MLX_WEIGHTS: Final = "adapters.safetensors"
_ALL_LAYERS: Final = -1  # MLX-LM's own word for it; `keys` names the modules by their whole path


def mlx_tensors(pieces: Sequence[Piece]) -> list[PlannedTensor]:
    """Return the tensors of the modules.

    Raises:
        AdapterError: a module is a convolution, which MLX-LM has no LoRA layer for.
    """
    _refuse(pieces)
    rank, scale = _rank(pieces), _scale(pieces)
    return [tensor for piece in pieces for tensor in _tensors(piece, rank, scale)]


def _refuse(pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        if piece.kernel:
            raise AdapterError(f"{piece.module.name}: MLX-LM has no LoRA layer for a convolution")
    with_magnitude = sum(piece.magnitude is not None for piece in pieces)
    if with_magnitude not in {0, len(pieces)}:
        without = next(piece.module.name for piece in pieces if piece.magnitude is None)
        raise AdapterError(f"{without}: no DoRA, and MLX-LM makes all modules of an adapter DoRA or none")


def _tensors(piece: Piece, rank: int, scale: float) -> list[PlannedTensor]:
    out, inner = piece.shape
    of_a, of_b = piece.dtypes
    own = piece.part.scale
    folded = own != scale
    ratio = own / scale if scale else 0.0

    def lora_a() -> Array:
        return _padded(piece.a().T, (inner, rank))

    def lora_b() -> Array:
        turned = piece.b().T
        return _padded(turned.astype(np.float64) * ratio if folded else turned, (rank, out))

    wide = "F32" if folded and of_b.itemsize < np.dtype(np.float32).itemsize else dtype_name(of_b)
    found = [
        planned(f"{piece.path}.lora_a", dtype_name(of_a), (inner, rank), lora_a),
        planned(f"{piece.path}.lora_b", wide, (rank, out), lora_b),
    ]
    if piece.magnitude is not None:
        data = piece.magnitude()
        found.append(planned(f"{piece.path}.m", dtype_name(data.dtype), data.shape, piece.magnitude))
    return found


def _padded(array: Array, shape: tuple[int, int]) -> Array:
    if array.shape == shape:
        return array
    padded = np.zeros(shape, array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded


def _rank(pieces: Sequence[Piece]) -> int:
    return max(piece.part.rank for piece in pieces)


def _scale(pieces: Sequence[Piece]) -> float:
    return Counter(piece.part.scale for piece in pieces).most_common(1)[0][0]


def mlx_config(source: Source, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Return MLX-LM's `adapter_config.json`: what `load_adapters` reads, and the base's name."""
    dropout = source.raw.get("lora_dropout", 0.0)
    return {
        "fine_tune_type": "dora" if any(piece.magnitude is not None for piece in pieces) else "lora",
        "model": source.adapter.config.base_model_name_or_path,
        "num_layers": _ALL_LAYERS,
        "lora_parameters": {
            "rank": _rank(pieces),
            "scale": _scale(pieces),
            "dropout": dropout if isinstance(dropout, int | float) else 0.0,
            "keys": [piece.path for piece in pieces],
        },
    }


def mlx_notes(pieces: Sequence[Piece]) -> list[str]:
    """Return what differs in how the factors are stored, though not in the update."""
    rank, scale = _rank(pieces), _scale(pieces)
    padded = sum(piece.part.rank < rank for piece in pieces)
    folded = sum(piece.part.scale != scale for piece in pieces)
    notes = []
    if padded:
        notes.append(f"MLX-LM takes one rank: {padded} modules of a lower one are padded with zeros to {rank}")
    if folded:
        notes.append(f"MLX-LM takes one scale: in {folded} modules the ratio to {scale:g} goes into lora_b")
    return notes
