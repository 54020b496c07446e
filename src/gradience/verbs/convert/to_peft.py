"""A plain PEFT LoRA: tensors under PEFT's names, and a LoraConfig that gives each module its rank and scale."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from gradience.adapters.layout import PREFIX, Array, pattern_name
from gradience.io.safetensors import PlannedTensor, planned
from gradience.rules.weights.rank_pattern import alpha_for, patterns_of
from gradience.verbs.convert.pieces import Experts, Piece, is_router
from gradience.verbs.convert.source import Source, dtype_name, padded

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


def peft_tensors(pieces: Sequence[Piece], experts: Sequence[Experts] = ()) -> list[PlannedTensor]:
    """Return the tensors of the modules, A before B."""
    nested = Counter(stack.path for stack in experts)
    rank, routers = _parameters_rank(pieces, experts), _routers(pieces, experts)
    return [
        *(t for piece in pieces for t in _tensors(piece, rank if piece.path in routers else piece.part.rank)),
        *(t for stack in experts for t in _expert_tensors(stack, rank, nested[stack.path])),
    ]


def peft_notes(pieces: Sequence[Piece], experts: Sequence[Experts]) -> list[str]:
    """Return what differs in how the factors are stored, though not in the update."""
    rank = _parameters_rank(pieces, experts)
    lower = sum(stack.rank < rank for stack in experts)
    return [f"{lower} pairs on experts are padded with zeros to rank {rank}, the one of all of them"] if lower else []


def _routers(pieces: Sequence[Piece], experts: Sequence[Experts]) -> set[str]:
    return {piece.path for piece in pieces if experts and is_router(piece.path)}


def _parameters_rank(pieces: Sequence[Piece], experts: Sequence[Experts]) -> int:
    """Return the one rank of all pairs on parameters, 0 without any.

    PEFT 0.21.2 applies a pattern to them, but warns on loading that it matches nothing: so they share the default.
    """
    routers = _routers(pieces, experts)
    ranks = [*(stack.rank for stack in experts), *(p.part.rank for p in pieces if p.path in routers)]
    return max(ranks, default=0)


def _expert_tensors(stack: Experts, rank: int, parameters: int) -> list[PlannedTensor]:
    """Return a parameter's pair: of two in one module, the first is the inner (`adapters/experts.py`)."""
    inner = ".base_layer" if parameters > 1 and stack.parameter == "gate_up_proj" else ""
    stem, rows, count = f"{PREFIX}{stack.path}{inner}", rank * stack.stacked, stack.stacked
    out, width = stack.shape
    kept = dtype_name(stack.dtype)

    def a() -> Array:
        return padded(stack.load()[1], (count, rank, width)).reshape(rows, width)

    def b() -> Array:
        return padded(stack.load()[0], (count, out, rank)).transpose(1, 2, 0).reshape(out, rows)

    return [
        planned(f"{stem}.lora_A.weight", kept, (rows, width), a),
        planned(f"{stem}.lora_B.weight", kept, (out, rows), b),
    ]


def _tensors(piece: Piece, rank: int) -> list[PlannedTensor]:
    stem, (out, inner) = PREFIX + piece.path, piece.shape
    of_a, of_b = (dtype_name(dtype) for dtype in piece.dtypes)

    def a() -> Array:
        return padded(piece.a(), (rank, inner))

    def b() -> Array:
        return padded(piece.b(), (out, rank))

    if piece.embedding:
        return [
            planned(f"{stem}.lora_embedding_A", of_a, (rank, inner), a),
            planned(f"{stem}.lora_embedding_B", of_b, (out, rank), b),
        ]
    shape_a = (rank, inner // math.prod(piece.kernel), *piece.kernel)
    found = [
        planned(f"{stem}.lora_A.weight", of_a, shape_a, a),
        planned(f"{stem}.lora_B.weight", of_b, (out, rank, *(1 for _ in piece.kernel)), b),
    ]
    if piece.magnitude is not None:
        shape = (1, out, *(1 for _ in piece.kernel)) if piece.kernel else (out,)
        kept = dtype_name(piece.magnitude().dtype)
        found.append(planned(f"{stem}.lora_magnitude_vector", kept, shape, piece.magnitude))
    return found


def peft_config(source: Source, pieces: Sequence[Piece], experts: Sequence[Experts] = ()) -> dict[str, Any]:
    """Return `adapter_config.json` of the plain LoRA that the pieces and the experts' pairs make up."""
    routers, rank = _routers(pieces, experts), _parameters_rank(pieces, experts)
    layers = [piece for piece in pieces if piece.path not in routers]
    default = (rank, alpha_for(experts[0].scale, rank, rslora=False)) if experts else None
    ranks = {pattern_name(piece.path): piece.part.rank for piece in layers}
    alphas = {pattern_name(piece.path): alpha_for(piece.part.scale, piece.part.rank, rslora=False) for piece in layers}
    patterns = patterns_of(ranks, alphas, default=default)
    return {
        **_carried(source, layers),
        **_on_parameters(experts, routers),
        "peft_type": "LORA",
        "r": patterns.r,
        "lora_alpha": patterns.lora_alpha,
        "rank_pattern": patterns.rank_pattern,
        "alpha_pattern": patterns.alpha_pattern,
        "use_rslora": False,
        "use_dora": any(piece.magnitude is not None for piece in pieces),
        "init_lora_weights": True,
    }


def _turned(pieces: Sequence[Piece]) -> bool:
    """Return whether the base stores the layers' weights (in, out)."""
    layers = [piece for piece in pieces if not piece.embedding and not piece.kernel]
    return bool(layers) and all(piece.stored_turned for piece in layers)


def _on_parameters(experts: Sequence[Experts], routers: Iterable[str]) -> dict[str, Any]:
    """Return the fields for LoRA on parameters, which PEFT allows no dropout."""
    if not experts:
        return {}
    targets = [*(stack.target for stack in experts), *(f"{path}.weight" for path in sorted(routers))]
    return {"target_parameters": targets, "lora_dropout": 0.0}


def _carried(source: Source, pieces: Sequence[Piece]) -> dict[str, Any]:
    config = source.adapter.config
    if source.adapter.format != "peft":
        return {
            "base_model_name_or_path": config.base_model_name_or_path,
            "bias": "none",
            "fan_in_fan_out": _turned(pieces),
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
