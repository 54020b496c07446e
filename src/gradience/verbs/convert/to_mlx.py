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

from gradience.adapters.layout import Array
from gradience.adapters.pairs import padded
from gradience.errors import AdapterError
from gradience.io.safetensors import PlannedTensor, planned
from gradience.verbs.convert.source import Source, dtype_name
from gradience.verbs.convert.updates import Update

MLX_WEIGHTS: Final = "adapters.safetensors"
MLX_METADATA: Final = {"format": "mlx"}
_ALL_LAYERS: Final = -1  # MLX-LM's own word for it; `keys` names the modules by their whole path


def mlx_tensors(updates: Sequence[Update]) -> list[PlannedTensor]:
    """Return the tensors of the updates.

    Raises:
        AdapterError: an update is of a kind that MLX-LM has no LoRA layer for.
    """
    _refuse(updates)
    rank, scale = _shared(updates)
    return [tensor for update in updates for tensor in _tensors(update, rank, scale)]


def _refuse(updates: Sequence[Update]) -> None:
    convolution = next((one for one in updates if one.kernel), None)
    if convolution is not None:
        raise AdapterError(f"{convolution.names[0]}: MLX-LM has no LoRA layer for a convolution")
    without = [one for one in updates if one.magnitude is None]
    if len(without) in {0, len(updates)}:
        return
    if without[-1].parameter is not None:  # experts come last
        raise AdapterError(f"{without[-1].target}: MLX-LM has no DoRA for experts")
    raise AdapterError(f"{without[0].names[0]}: no DoRA, and MLX-LM makes all modules of an adapter DoRA or none")


def _tensors(update: Update, rank: int, scale: float) -> list[PlannedTensor]:
    """Return `lora_a` (in, r) and `lora_b` (r, out) of a layer, or (E, r, in) and (E, out, r) of experts."""
    out, inner = update.shape
    (of_b, of_a), own = update.dtypes, update.part.scale
    folded, ratio = own != scale, own / scale if scale else 0.0
    stacked = update.parameter is not None
    shape_a = (update.experts, rank, inner) if stacked else (inner, rank)
    shape_b = (update.experts, out, rank) if stacked else (rank, out)

    def lora_a() -> Array:
        a = update.load()[1]
        return padded(a if stacked else a[0].T, shape_a)

    def lora_b() -> Array:
        b = update.load()[0]
        b = b.astype(np.float64) * ratio if folded else b
        return padded(b if stacked else b[0].T, shape_b)

    # At least float32 where the numbers are no longer the file's own.
    stored_b = "F32" if folded and of_b.itemsize < np.dtype(np.float32).itemsize else dtype_name(of_b)
    found = [
        planned(f"{update.target}.lora_a", dtype_name(of_a), shape_a, lora_a),
        planned(f"{update.target}.lora_b", stored_b, shape_b, lora_b),
    ]
    if update.magnitude is not None:
        data = update.magnitude()
        found.append(planned(f"{update.path}.m", dtype_name(data.dtype), data.shape, update.magnitude))
    return found


def _shared(updates: Sequence[Update]) -> tuple[int, float]:
    """Return the one rank and the one scale of the adapter: the largest, and the commonest."""
    scales = Counter(one.part.scale for one in updates)
    return max(one.part.rank for one in updates), scales.most_common(1)[0][0]


def mlx_config(source: Source, updates: Sequence[Update]) -> dict[str, Any]:
    """Return MLX-LM's `adapter_config.json`: what `load_adapters` reads, and the base's name."""
    dropout = source.raw.get("lora_dropout", 0.0)
    rank, scale = _shared(updates)
    return {
        "fine_tune_type": "dora" if any(one.magnitude is not None for one in updates) else "lora",
        "model": source.adapter.config.base_model_name_or_path,
        "num_layers": _ALL_LAYERS,
        "lora_parameters": {
            "rank": rank,
            "scale": scale,
            "dropout": dropout if isinstance(dropout, int | float) else 0.0,
            "keys": [one.target for one in updates],
        },
    }


def mlx_notes(updates: Sequence[Update]) -> list[str]:
    """Return notes on factors that are stored differently, for the same update."""
    rank, scale = _shared(updates)
    lower = sum(one.part.rank < rank for one in updates)
    folded = sum(one.part.scale != scale for one in updates)
    notes = []
    if lower:
        notes.append(f"MLX-LM takes one rank: {lower} modules of a lower one are padded with zeros to {rank}")
    if folded:
        notes.append(f"MLX-LM takes one scale: in {folded} modules the ratio to {scale:g} goes into lora_b")
    return notes
