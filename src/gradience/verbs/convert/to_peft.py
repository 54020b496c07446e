"""A plain PEFT LoRA: tensors under PEFT's names, and a LoraConfig that gives each module its rank and scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from gradience.adapters.layout import PREFIX, pattern_name
from gradience.adapters.pairs import peft_pair
from gradience.io.safetensors import PlannedTensor, planned
from gradience.rules.weights.rank_pattern import alpha_for, patterns_of
from gradience.verbs.convert.source import Source, dtype_name
from gradience.verbs.convert.updates import Update, is_router

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


def peft_tensors(updates: Sequence[Update]) -> list[PlannedTensor]:
    """Return the tensors of the updates, A before B."""
    rank, nested = _parameters_rank(updates), Counter(one.path for one in updates if one.parameter is not None)
    tensors = []
    for update in updates:
        # Of two parameters in one module, PEFT nests the first inside the second (adapters/kinds/experts.py).
        is_inner = update.parameter == "gate_up_proj" and nested[update.path] > 1
        path = f"{update.path}.base_layer" if is_inner else update.path
        tensors += _tensors(update, path, rank if _is_parameter(update, updates) else update.part.rank)
    return tensors


def _tensors(update: Update, path: str, rank: int) -> list[PlannedTensor]:
    kernel = update.kernel
    layout = peft_pair(path, rank, update.shape, kernel=kernel, experts=update.experts, embedding=update.embedding)
    shape_a, shape_b = layout.shapes(rank)
    of_b, of_a = map(dtype_name, update.dtypes)
    found = [
        planned(layout.a_name, of_a, shape_a, lambda: layout.joined(*update.load(), rank)[1]),
        planned(layout.b_name, of_b, shape_b, lambda: layout.joined(*update.load(), rank)[0]),
    ]
    if update.magnitude is not None:
        out = update.shape[0]
        shape = (1, out, *(1 for _ in kernel)) if kernel else (out,)
        kept = dtype_name(update.magnitude().dtype)
        found.append(planned(f"{PREFIX}{path}.lora_magnitude_vector", kept, shape, update.magnitude))
    return found


def peft_notes(updates: Sequence[Update]) -> list[str]:
    """Return notes on factors that are stored differently, for the same update."""
    rank = _parameters_rank(updates)
    lower = sum(one.part.rank < rank for one in updates if one.parameter is not None)
    return [f"{lower} pairs on experts are padded with zeros to rank {rank}, the one of all of them"] if lower else []


def _is_parameter(update: Update, updates: Sequence[Update]) -> bool:
    """Return whether PEFT reaches it through target_parameters: experts, and beside them their router."""
    has_experts = any(one.parameter is not None for one in updates)
    return update.parameter is not None or (has_experts and is_router(update.path))


def _parameters_rank(updates: Sequence[Update]) -> int:
    """Return the one rank of all pairs on parameters, 0 without any.

    PEFT 0.21.2 applies a pattern to them, but warns on loading that it matches nothing: so they share the default.
    """
    return max((one.part.rank for one in updates if _is_parameter(one, updates)), default=0)


def peft_config(source: Source, updates: Sequence[Update]) -> dict[str, Any]:
    """Return `adapter_config.json` of the plain LoRA that the updates make up."""
    parameters = [one for one in updates if _is_parameter(one, updates)]
    layers = [one for one in updates if not _is_parameter(one, updates)]
    experts, rank = [one for one in parameters if one.parameter is not None], _parameters_rank(updates)
    default = (rank, alpha_for(experts[0].part.scale, rank, rslora=False)) if experts else None
    ranks = {pattern_name(one.path): one.part.rank for one in layers}
    alphas = {pattern_name(one.path): alpha_for(one.part.scale, one.part.rank, rslora=False) for one in layers}
    return {
        **_carried(source, layers),
        **_on_parameters(parameters),
        **patterns_of(ranks, alphas, default=default)._asdict(),
        "peft_type": "LORA",
        "use_rslora": False,
        "use_dora": any(one.magnitude is not None for one in updates),
        "init_lora_weights": True,
    }


def _fan_in_fan_out(layers: Sequence[Update]) -> bool:
    """Return whether the base stores the layers' weights (in, out)."""
    linear = [one for one in layers if not one.embedding and not one.kernel]
    return bool(linear) and all(one.stored_transposed for one in linear)


def _on_parameters(parameters: Sequence[Update]) -> dict[str, Any]:
    """Return the fields for LoRA on parameters, which PEFT allows no dropout."""
    if not parameters:
        return {}
    experts = [one.target for one in parameters if one.parameter is not None]
    routers = sorted(f"{one.path}.weight" for one in parameters if one.parameter is None)
    return {"target_parameters": [*experts, *routers], "lora_dropout": 0.0}


def _carried(source: Source, layers: Sequence[Update]) -> dict[str, Any]:
    config = source.adapter.config
    if not source.adapter.file_format.is_peft:
        return {
            "base_model_name_or_path": config.base_model_name_or_path,
            "bias": "none",
            "fan_in_fan_out": _fan_in_fan_out(layers),
            "inference_mode": True,
            "lora_dropout": _dropout(config.lora_parameters or {}),
            "target_modules": [one.path for one in layers],
            "task_type": "CAUSAL_LM" if source.adapter.format == "mlx" else config.task_type,  # MLX-LM trains no other
        }
    kept = {field: source.raw[field] for field in _KEPT if source.raw.get(field) is not None}
    dropout = next((source.raw[field] for field in _DROPOUTS if field in source.raw), None)
    if dropout is not None:
        kept["lora_dropout"] = dropout
    kept.setdefault("target_modules", [one.path for one in layers])
    bias = source.raw.get("bias", "none")
    return {**kept, "bias": _BIASES.get(bias, "lora_only")}


def _dropout(parameters: dict[str, Any]) -> float:
    value = parameters.get("dropout", 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
