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
from gradience.convert.experts import Experts
from gradience.convert.pieces import Piece
from gradience.convert.source import Source
from gradience.convert.stored import dtype_name, padded
from gradience.errors import AdapterError

__all__ = ["MLX_WEIGHTS", "mlx_config", "mlx_notes", "mlx_tensors"]

MLX_WEIGHTS: Final = "adapters.safetensors"
_ALL_LAYERS: Final = -1  # MLX-LM's own word for it; `keys` names the modules by their whole path


def mlx_tensors(pieces: Sequence[Piece], experts: Sequence[Experts] = ()) -> list[PlannedTensor]:
    """Return the tensors of the modules.

    Raises:
        AdapterError: a module is a convolution, which MLX-LM has no LoRA layer for.
    """
    _refuse(pieces, experts)
    shared = _shared(pieces, experts)
    return [
        *(tensor for piece in pieces for tensor in _tensors(piece, *shared)),
        *(tensor for stack in experts for tensor in _expert_tensors(stack, *shared)),
    ]


def _refuse(pieces: Sequence[Piece], experts: Sequence[Experts]) -> None:
    if experts and any(piece.magnitude is not None for piece in pieces):
        raise AdapterError(f"{experts[0].target}: MLX-LM has no DoRA for experts")
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
        return padded(piece.a().T, (inner, rank))

    def lora_b() -> Array:
        turned = piece.b().T
        return padded(turned.astype(np.float64) * ratio if folded else turned, (rank, out))

    found = [
        planned(f"{piece.path}.lora_a", dtype_name(of_a), (inner, rank), lora_a),
        planned(f"{piece.path}.lora_b", _wide(of_b, folded=folded), (rank, out), lora_b),
    ]
    if piece.magnitude is not None:
        data = piece.magnitude()
        found.append(planned(f"{piece.path}.m", dtype_name(data.dtype), data.shape, piece.magnitude))
    return found


def _expert_tensors(stack: Experts, rank: int, scale: float) -> list[PlannedTensor]:
    """Return `lora_a` (E, r, in) and `lora_b` (E, out, r): for experts MLX-LM turns nothing."""
    out, inner = stack.shape
    folded = stack.scale != scale
    ratio = stack.scale / scale if scale else 0.0
    shape_a, shape_b = (stack.stacked, rank, inner), (stack.stacked, out, rank)

    def lora_b() -> Array:
        b = stack.load()[0]
        return padded(b.astype(np.float64) * ratio if folded else b, shape_b)

    return [
        planned(f"{stack.target}.lora_a", dtype_name(stack.dtype), shape_a, lambda: padded(stack.load()[1], shape_a)),
        planned(f"{stack.target}.lora_b", _wide(stack.dtype, folded=folded), shape_b, lora_b),
    ]


def _wide(dtype: np.dtype[Any], *, folded: bool) -> str:
    """Return the type to store: at least float32 where the numbers are no longer the file's own."""
    return "F32" if folded and dtype.itemsize < np.dtype(np.float32).itemsize else dtype_name(dtype)


def _shared(pieces: Sequence[Piece], experts: Sequence[Experts]) -> tuple[int, float]:
    """Return the one rank and the one scale of the adapter: the largest, and the commonest."""
    sizes = _sizes(pieces, experts)
    return max(rank for rank, _ in sizes), Counter(scale for _, scale in sizes).most_common(1)[0][0]


def _sizes(pieces: Sequence[Piece], experts: Sequence[Experts]) -> list[tuple[int, float]]:
    return [
        *((piece.part.rank, piece.part.scale) for piece in pieces),
        *((stack.rank, stack.scale) for stack in experts),
    ]


def mlx_config(source: Source, pieces: Sequence[Piece], experts: Sequence[Experts] = ()) -> dict[str, Any]:
    """Return MLX-LM's `adapter_config.json`: what `load_adapters` reads, and the base's name."""
    dropout = source.raw.get("lora_dropout", 0.0)
    rank, scale = _shared(pieces, experts)
    return {
        "fine_tune_type": "dora" if any(piece.magnitude is not None for piece in pieces) else "lora",
        "model": source.adapter.config.base_model_name_or_path,
        "num_layers": _ALL_LAYERS,
        "lora_parameters": {
            "rank": rank,
            "scale": scale,
            "dropout": dropout if isinstance(dropout, int | float) else 0.0,
            "keys": [*(piece.path for piece in pieces), *(stack.target for stack in experts)],
        },
    }


def mlx_notes(pieces: Sequence[Piece], experts: Sequence[Experts] = ()) -> list[str]:
    """Return what differs in how the factors are stored, though not in the update."""
    rank, scale = _shared(pieces, experts)
    sizes = _sizes(pieces, experts)
    padded = sum(own < rank for own, _ in sizes)
    folded = sum(own != scale for _, own in sizes)
    notes = []
    if padded:
        notes.append(f"MLX-LM takes one rank: {padded} modules of a lower one are padded with zeros to {rank}")
    if folded:
        notes.append(f"MLX-LM takes one scale: in {folded} modules the ratio to {scale:g} goes into lora_b")
    return notes
