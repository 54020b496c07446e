"""A plain PEFT LoRA: tensors under PEFT's names, and a LoraConfig that gives each module its rank and scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from gradience.adapters.keys import PREFIX, pattern_name
from gradience.adapters.write import PlannedTensor, planned
from gradience.convert.dtypes import dtype_name
from gradience.convert.pieces import Piece
from gradience.convert.source import Source
from gradience.policy.pattern_keys import alpha_for, patterns_of

__all__ = ["peft_config", "peft_tensors"]

_KEPT: Final = (
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "lora_dropout",
    "modules_to_save",
    "peft_version",
    "revision",
    "target_modules",
    "task_type",
    "trainable_token_indices",
)
"""Fields of any PEFT config that mean the same in a LoraConfig."""

_DROPOUTS: Final = ("vera_dropout", "hira_dropout", "miss_dropout")
_BIASES: Final = {"all": "all", "none": "none"}  # `vera_only`, `miss_only`, ...: the adapted layers' own


def peft_tensors(pieces: Sequence[Piece]) -> list[PlannedTensor]:
    """Return the tensors of the modules, A before B."""
    return [tensor for piece in pieces for tensor in _tensors(piece)]


def _tensors(piece: Piece) -> list[PlannedTensor]:
    stem, (out, inner), rank = PREFIX + piece.path, piece.shape, piece.part.rank
    of_a, of_b = (dtype_name(dtype) for dtype in piece.dtypes)
    if piece.embedding:
        return [
            planned(f"{stem}.lora_embedding_A", of_a, (rank, inner), piece.a),
            planned(f"{stem}.lora_embedding_B", of_b, (out, rank), piece.b),
        ]
    shape_a = (rank, inner // math.prod(piece.kernel), *piece.kernel)
    found = [
        planned(f"{stem}.lora_A.weight", of_a, shape_a, piece.a),
        planned(f"{stem}.lora_B.weight", of_b, (out, rank, *(1 for _ in piece.kernel)), piece.b),
    ]
    if piece.magnitude is not None:
        shape = (1, out, *(1 for _ in piece.kernel)) if piece.kernel else (out,)
        kept = dtype_name(piece.magnitude().dtype)
        found.append(planned(f"{stem}.lora_magnitude_vector", kept, shape, piece.magnitude))
    return found


def peft_config(source: Source, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Return `adapter_config.json` of the plain LoRA that the pieces make up."""
    ranks = {pattern_name(piece.path): piece.part.rank for piece in pieces}
    alphas = {pattern_name(piece.path): alpha_for(piece.part.scale, piece.part.rank, rslora=False) for piece in pieces}
    patterns = patterns_of(ranks, alphas)
    return {
        **_carried(source, pieces),
        "peft_type": "LORA",
        "r": patterns.r,
        "lora_alpha": patterns.lora_alpha,
        "rank_pattern": patterns.rank_pattern,
        "alpha_pattern": patterns.alpha_pattern,
        "use_rslora": False,
        "use_dora": any(piece.magnitude is not None for piece in pieces),
        "init_lora_weights": True,
    }


def _carried(source: Source, pieces: Sequence[Piece]) -> dict[str, Any]:
    config = source.adapter.config
    if source.adapter.format != "peft":
        return {
            "base_model_name_or_path": config.base_model_name_or_path,
            "bias": "none",
            "fan_in_fan_out": all(piece.stored_turned for piece in pieces if not piece.embedding and not piece.kernel),
            "inference_mode": True,
            "lora_dropout": _dropout(config.lora_parameters or {}),
            "target_modules": [piece.path for piece in pieces],
            "task_type": "CAUSAL_LM" if source.adapter.format == "mlx" else config.task_type,  # MLX-LM trains no other
        }
    kept = {field: source.raw[field] for field in _KEPT if source.raw.get(field) is not None}
    dropout = next((source.raw[field] for field in _DROPOUTS if field in source.raw), None)
    if dropout is not None:
        kept["lora_dropout"] = dropout
    kept.setdefault("target_modules", [piece.path for piece in pieces])
    bias = source.raw.get("bias", "none")
    return {**kept, "bias": _BIASES.get(bias, "lora_only")}


def _dropout(parameters: dict[str, Any]) -> float:
    value = parameters.get("dropout", 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
