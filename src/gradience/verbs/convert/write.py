"""The two formats that `convert` writes, PEFT's and MLX-LM's: their configs, tensors and layouts of experts.

MLX-LM stores `lora_a` (in, r) and `lora_b` (r, out), with one rank and one scale for all modules, which `keys` lists
(`mlx_lm/tuner/utils.py`, load_adapters). So factors of a lower rank are zero-padded, which changes no update. If scales
differ, their ratio is multiplied into `lora_b`. PEFT's patterns give each module its own rank and alpha.

MLX-LM and PEFT split and fuse the projections of an expert layer differently, so one source stack may become two
updates, or two may become one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from gradience.adapters.layout import PREFIX, Array, Module, pattern_name
from gradience.adapters.pairs import padded, peft_pair
from gradience.adapters.patterns import alpha_for, patterns_of
from gradience.errors import AdapterError
from gradience.io.safetensors import PlannedTensor, planned
from gradience.schema.writing import TargetFormat
from gradience.verbs.convert.source import SourceAdapter, dtype_name
from gradience.verbs.convert.updates import Factors, LayerUpdate, UpdatePair, is_router, product_norm, refuse_non_finite

MLX_WEIGHTS: Final = "adapters.safetensors"
MLX_METADATA: Final = {"format": "mlx"}
_ALL_LAYERS: Final = -1  # MLX-LM's value for all layers; `keys` lists the modules by their whole path

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
"""The fields of other PEFT configs that have the same meaning in a LoraConfig."""

_DROPOUTS: Final = ("vera_dropout", "hira_dropout", "miss_dropout")
_BIASES: Final = {"all": "all", "none": "none"}  # `vera_only`, `miss_only`, ... become `lora_only`
_SWITCH: Final = ".switch_mlp"
_EXPERTS: Final = ".experts"
_PARAMETERS: Final = frozenset({"gate_up_proj", "gate_proj", "up_proj", "down_proj"})
_OLD_NAMES: Final = {".block_sparse_moe": ".mlp"}  # Mixtral's, in MLX-LM and in transformers 5


def mlx_tensors(updates: Sequence[LayerUpdate]) -> list[PlannedTensor]:
    """Return the updates' tensors in MLX-LM's format."""
    rank, scale = shared(updates)
    return [tensor for update in updates for tensor in _tensors(update, rank, scale)]


def _tensors(update: LayerUpdate, rank: int, scale: float) -> list[PlannedTensor]:
    """Return an update's `lora_a` (in, r) and `lora_b` (r, out), for experts (E, r, in) and (E, out, r); DoRA's `m`."""
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

    # At least float32 if the numbers are scaled, and so are no longer the file's own.
    stored_b = "F32" if folded and of_b.itemsize < np.dtype(np.float32).itemsize else dtype_name(of_b)
    tensors = [
        planned(f"{update.target}.lora_a", dtype_name(of_a), shape_a, lora_a),
        planned(f"{update.target}.lora_b", stored_b, shape_b, lora_b),
    ]
    if update.magnitude is not None:
        data = update.magnitude()
        tensors.append(planned(f"{update.path}.m", dtype_name(data.dtype), data.shape, update.magnitude))
    return tensors


def shared(updates: Sequence[LayerUpdate]) -> tuple[int, float]:
    """Return the adapter's rank and scale: the largest rank and the most common scale of its updates."""
    scales = Counter(one.part.scale for one in updates)
    return max(one.part.rank for one in updates), scales.most_common(1)[0][0]


def mlx_config(source: SourceAdapter, updates: Sequence[LayerUpdate]) -> dict[str, Any]:
    """Return MLX-LM's `adapter_config.json`: the fields that `load_adapters` reads, and the base's name."""
    dropout = source.raw.get("lora_dropout", 0.0)
    rank, scale = shared(updates)
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


def peft_tensors(updates: Sequence[LayerUpdate]) -> list[PlannedTensor]:
    """Return the updates' tensors in PEFT's format, A before B."""
    rank, nested = parameters_rank(updates), Counter(one.path for one in updates if one.parameter is not None)
    tensors = []
    for update in updates:
        # If two parameters of one module are adapted, PEFT nests the first in the second (adapters/kinds/experts.py).
        is_inner = update.parameter == "gate_up_proj" and nested[update.path] > 1
        path = f"{update.path}.base_layer" if is_inner else update.path
        tensors += _to_peft_tensors(update, path, rank if _is_parameter(update, updates) else update.part.rank)
    return tensors


def _to_peft_tensors(update: LayerUpdate, path: str, rank: int) -> list[PlannedTensor]:
    kernel = update.kernel
    layout = peft_pair(path, rank, update.shape, kernel=kernel, experts=update.experts, embedding=update.embedding)
    shape_a, shape_b = layout.shapes(rank)
    of_b, of_a = map(dtype_name, update.dtypes)
    tensors = [
        planned(layout.a_name, of_a, shape_a, lambda: layout.joined(*update.load(), rank)[1]),
        planned(layout.b_name, of_b, shape_b, lambda: layout.joined(*update.load(), rank)[0]),
    ]
    if update.magnitude is not None:
        out = update.shape[0]
        shape = (1, out, *(1 for _ in kernel)) if kernel else (out,)
        kept = dtype_name(update.magnitude().dtype)
        tensors.append(planned(f"{PREFIX}{path}.lora_magnitude_vector", kept, shape, update.magnitude))
    return tensors


def _is_parameter(update: LayerUpdate, updates: Sequence[LayerUpdate]) -> bool:
    """Whether PEFT finds the update through target_parameters: stacked experts, and a router beside them."""
    has_experts = any(one.parameter is not None for one in updates)
    return update.parameter is not None or (has_experts and is_router(update.path))


def parameters_rank(updates: Sequence[LayerUpdate]) -> int:
    """Return the common rank of all pairs on parameters, 0 if there are none.

    They share the default rank, because PEFT 0.21.2 applies a pattern to them but warns on loading that it matches
    nothing.
    """
    return max((one.part.rank for one in updates if _is_parameter(one, updates)), default=0)


def peft_config(source: SourceAdapter, updates: Sequence[LayerUpdate], *, renames: bool = False) -> dict[str, Any]:
    """Return PEFT's `adapter_config.json` for the updates; where modules are renamed, its targets are their paths."""
    parameters = [one for one in updates if _is_parameter(one, updates)]
    layers = [one for one in updates if not _is_parameter(one, updates)]
    experts, rank = [one for one in parameters if one.parameter is not None], parameters_rank(updates)
    default = (rank, alpha_for(experts[0].part.scale, rank, rslora=False)) if experts else None
    ranks = {pattern_name(one.path): one.part.rank for one in layers}
    alphas = {pattern_name(one.path): alpha_for(one.part.scale, one.part.rank, rslora=False) for one in layers}
    return {
        **_carried(source, layers),
        **({"target_modules": [one.path for one in layers]} if renames else {}),
        **_on_parameters(parameters),
        **patterns_of(ranks, alphas, default=default)._asdict(),
        "peft_type": "LORA",
        "use_rslora": False,
        "use_dora": any(one.magnitude is not None for one in updates),
        # Not the source's: on loading PEFT would repeat an initialisation that changes the base.
        "init_lora_weights": True,
    }


def _fan_in_fan_out(layers: Sequence[LayerUpdate]) -> bool:
    """Whether the base stores the layers' weights (in, out)."""
    linear = [one for one in layers if not one.embedding and not one.kernel]
    return bool(linear) and all(one.stored_transposed for one in linear)


def _on_parameters(parameters: Sequence[LayerUpdate]) -> dict[str, Any]:
    """Return the config's fields for LoRA on parameters, for which PEFT allows no dropout."""
    if not parameters:
        return {}
    experts = [one.target for one in parameters if one.parameter is not None]
    routers = sorted(f"{one.path}.weight" for one in parameters if one.parameter is None)
    return {"target_parameters": [*experts, *routers], "lora_dropout": 0.0}


def _carried(source: SourceAdapter, layers: Sequence[LayerUpdate]) -> dict[str, Any]:
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


def expert_updates(modules: Sequence[Module], target: TargetFormat) -> list[LayerUpdate]:
    """Return the updates of all stacked experts in the target's layout.

    Raises:
        AdapterError: a stack has no known counterpart in the target.
    """
    stacks: dict[str, list[Module]] = {}
    for module in modules:
        stacks.setdefault(module.name.partition("[")[0], []).append(module)
    updates = [_stack(name, experts) for name, experts in stacks.items()]
    if target == "mlx":
        return [part for stack in updates for part in _unfused(stack)]
    return list(_fused(updates))


def _stack(name: str, experts: Sequence[Module]) -> LayerUpdate:
    """Return the update of one stacked parameter in the source's layout; its factors are the file's own numbers."""
    path, _, parameter = name.rpartition(".")
    if not path.endswith((_SWITCH, _EXPERTS)) or parameter not in _PARAMETERS:
        raise AdapterError(f"{name}: experts of this name are laid out in a way that is not known here")
    squares = 0.0
    for module in experts:
        b, a = module.load()
        refuse_non_finite(module, b, a)
        squares += (module.scale * product_norm(b, a)) ** 2

    def load() -> Factors:
        pairs = [module.load() for module in experts]
        return np.stack([b for b, _ in pairs]), np.stack([a for _, a in pairs])

    first = experts[0]
    dtype = first.load()[0].dtype
    part = UpdatePair(first.r, first.scale, first.shape, (dtype, dtype), load, "copied", math.sqrt(squares), 0.0)
    return LayerUpdate((name,), "expert", path, first.r, part, parameter=parameter, experts=len(experts))


def _unfused(stack: LayerUpdate) -> Iterator[LayerUpdate]:
    """Yield MLX-LM's layers for a parameter; a fused parameter gives two, with the same A and half of B's rows each."""
    path = stack.path.removesuffix(_EXPERTS) + _SWITCH
    if stack.parameter != "gate_up_proj":
        yield stack._replace(path=path)
        return
    half = stack.part.shape[0] // 2
    for parameter, rows in (("gate_proj", slice(0, half)), ("up_proj", slice(half, None))):
        part = stack.part._replace(
            shape=(half, stack.part.shape[1]), norm=_norm_of(stack, rows), load=_rows_of(stack, rows)
        )
        yield stack._replace(path=path, parameter=parameter, part=part)


def _rows_of(stack: LayerUpdate, rows: slice) -> Callable[[], Factors]:
    def load() -> Factors:
        b, a = stack.part.load()
        return b[:, rows], a

    return load


def _norm_of(stack: LayerUpdate, rows: slice) -> float:
    squares = sum(product_norm(b[rows], a) ** 2 for b, a in zip(*stack.part.load(), strict=True))
    return abs(stack.part.scale) * math.sqrt(squares)


def _fused(stacks: Sequence[LayerUpdate]) -> Iterator[LayerUpdate]:
    """Yield the updates of PEFT's parameters, in the order in which transformers registers the parameters."""
    by_path: dict[str, dict[str, LayerUpdate]] = {}
    for stack in stacks:
        if not stack.path.endswith(_SWITCH):
            raise AdapterError(f"{stack.names[0]}: only MLX-LM's switch_mlp has a known counterpart in transformers")
        by_path.setdefault(stack.path, {})[stack.parameter or ""] = stack
    for path, projections in by_path.items():
        target = path.removesuffix(_SWITCH)
        for old, new in _OLD_NAMES.items():
            target = target.removesuffix(old) + new if target.endswith(old) else target
        gate, up = projections.get("gate_proj"), projections.get("up_proj")
        if gate is not None or up is not None:
            yield _gate_up(gate, up)._replace(path=target + _EXPERTS)
        if "down_proj" in projections:
            yield projections["down_proj"]._replace(path=target + _EXPERTS)


def _gate_up(gate: LayerUpdate | None, up: LayerUpdate | None) -> LayerUpdate:
    """Return one update for gate_proj and up_proj: B is block-diagonal and A stacks both.

    If both have the same A, it is kept once, and B stacks both.
    """
    one = gate or up
    if one is None or (gate and up and (gate.part.shape, gate.experts) != (up.part.shape, up.experts)):
        raise AdapterError("gate_proj and up_proj of an expert layer have different shapes")
    halves = [half for half in (gate, up) if half is not None]
    shared = len(halves) > 1 and np.array_equal(halves[0].part.load()[1], halves[1].part.load()[1])
    rank = one.part.rank if shared else sum(half.part.rank for half in halves)
    out, inner = one.part.shape

    def load() -> Factors:
        pairs = [half.part.load() for half in halves]
        b = np.zeros((one.experts, 2 * out, rank), one.part.dtypes[0])
        column = 0
        for half, (b_half, _) in zip(halves, pairs, strict=True):
            # transformers halves what the fused weight gives: the gate comes first.
            top = 0 if half is gate else out
            b[:, top : top + out, column : column + half.part.rank] = b_half
            column += 0 if shared else half.part.rank
        return b, pairs[0][1] if shared else np.concatenate([a for _, a in pairs], axis=1)

    norm = math.sqrt(sum(half.part.norm**2 for half in halves))
    return one._replace(
        names=tuple(name for half in halves for name in half.names),
        parameter="gate_up_proj",
        part=one.part._replace(rank=rank, shape=(2 * out, inner), norm=norm, load=load),
    )
