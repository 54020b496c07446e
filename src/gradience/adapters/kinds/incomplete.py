"""Kinds of adapter whose file alone does not determine the update: parameters of experts, and VeRA.

LoRA on a parameter (`target_parameters`) is one pair of tensors for all experts of a 3-D weight. A is (E r, in) with
experts outermost, B is (out, r E) with experts innermost; dW_e = s B_e A_e (`lora/layer.py`,
ParamWrapper.get_delta_weight). Several parameters of one module are nested: PEFT wraps them in the order in which the
module registers them, so the first is the innermost (`experts.base_layer...`) and the last has the module's own name.
The file has neither the parameters' names nor the number of experts. The names come from the config, and E follows
from the config's rank.

VeRA's update can be computed only with the base weight, or if the module's width is known. The formula is that of
PEFT's `get_delta_weight`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, NoReturn

from gradience.adapters import kinds
from gradience.adapters.kinds import as_float32
from gradience.adapters.kinds.lora import named, scaled
from gradience.adapters.layout import (
    Array,
    Context,
    FactoredUpdate,
    Group,
    LeftoverTensor,
    Module,
    NeedsBase,
    UnsuitableError,
    reported,
)
from gradience.adapters.pairs import LoraPair
from gradience.errors import AdapterError
from gradience.schema.audit import LeftoverReason

# The order in which models register the weights of their experts.
_ORDER: Final = ("gate_up_proj", "gate_proj", "w1", "up_proj", "w3", "w13", "down_proj", "w2")

# Modules whose input is the hidden state, so all of them in one adapter have the same input width.
_HIDDEN_INPUT: Final = frozenset(
    {"q_proj", "k_proj", "v_proj", "qkv_proj", "query", "key", "value", "q_lin", "k_lin", "v_lin", "c_attn", "q", "k"}
    | {"v", "gate_proj", "up_proj", "query_key_value", "fc1", "c_fc", "to_q"}
)


def parameter_nests(ctx: Context, modules: Iterable[str]) -> dict[str, list[str]]:
    """The modules whose pairs belong to parameters: module path to the names of its groups, innermost first."""
    if not ctx.config.target_parameters:
        return {}
    nests: dict[str, list[str]] = {}
    for module in modules:
        path = _unnested(module)
        if _targets(ctx, path):
            nests.setdefault(path, []).append(module)
    # The innermost name has the most `.base_layer` parts, so it is the longest.
    return {path: sorted(names, key=len, reverse=True) for path, names in nests.items()}


def _unnested(module: str) -> str:
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    return module


def _targets(ctx: Context, path: str) -> list[str]:
    """The target parameters that may belong to the module: those that name it, else those without a module's name."""
    targets = ctx.config.target_parameters or []
    owners = {target: target.rpartition(".")[0] for target in targets}
    named = [target for target, owner in owners.items() if owner and _ends(path, owner)]
    if named:
        return named
    listed = ctx.config.target_modules
    is_list = isinstance(listed, list)  # else a pattern or all-linear: go by the name
    other = any(_ends(path, name) for name in listed or ()) if is_list else not path.endswith("experts")
    return [] if other else [target for target, owner in owners.items() if not owner]


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def expert_modules(
    ctx: Context, path: str, groups: Sequence[Group]
) -> list[tuple[Group, list[Module] | LeftoverTensor]]:
    """Pair each group of one wrapped module with its experts' modules, or the reason for none; innermost first."""
    try:
        names = _parameters(ctx, path, groups)
        experts = [(group, _experts(ctx, group, path, name)) for group, name in zip(groups, names, strict=True)]
        _same_number([some for _, some in experts if not isinstance(some, LeftoverTensor)])
    except UnsuitableError as error:
        return [(group, LeftoverTensor(ctx.name(group), error.reason, error.cause)) for group in groups]
    return experts


def _same_number(found: Iterable[Sequence[Module]]) -> None:
    counts = sorted({len(some) for some in found})
    if len(counts) > 1:
        why = f"its parameters would have {' and '.join(map(str, counts))} experts by the config's ranks"
        raise UnsuitableError(why, LeftoverReason.CONFIG)


def _parameters(ctx: Context, path: str, groups: Sequence[Group]) -> list[str]:
    """The names of the parameters that the groups update, innermost first.

    If the names are ambiguous but all would have the same rank and alpha, they are `parameter0`, `parameter1`, ...

    Raises:
        UnsuitableError: the names are ambiguous, and rank or alpha depends on them.
    """
    candidates = sorted({target.rpartition(".")[2] for target in _targets(ctx, path)})
    if len(candidates) == len(groups) == 1:
        return candidates
    known: list[str] = [name for name in _ORDER if name in candidates]
    if len(known) == len(groups) and _fits(ctx, groups, known):
        return known
    # Rank and alpha are all that a name decides, so the numbers are right without it.
    if len({(s.config_r, s.alpha) for s in (ctx.rules.of(f"{path}.{name}") for name in candidates)}) == 1:
        return [f"parameter{depth}" for depth in range(len(groups))]
    why = f"which of {', '.join(candidates)} each pair belongs to is ambiguous, and their ranks differ"
    raise UnsuitableError(why, LeftoverReason.AMBIGUOUS)


def _fits(ctx: Context, groups: Sequence[Group], names: Sequence[str]) -> bool:
    """Whether the widths allow gate_up_proj to feed down_proj. True if either is missing."""
    shapes = dict(zip(names, (_widths(ctx, group) for group in groups), strict=True))
    first, last = shapes.get("gate_up_proj"), shapes.get("down_proj")
    if first is None or last is None:
        return True
    return first[1] == last[0] or first[0] == last[1]


def _widths(ctx: Context, group: Group) -> tuple[int, int] | None:
    """(out, in) of a pair, or None if a factor is missing."""
    if "lora_A" not in group.keys or "lora_B" not in group.keys:
        return None
    return ctx.shape(group, "lora_B")[0], ctx.shape(group, "lora_A")[-1]


def _experts(ctx: Context, group: Group, path: str, parameter: str) -> list[Module] | LeftoverTensor:
    name = f"{path}.{parameter}"
    shown = f"{name}:{group.adapter or 'default'}" if ctx.several else name
    s = ctx.rules.of(name)
    try:
        r, n = _rank_and_number(ctx, group, s.config_r)
    except UnsuitableError as error:
        return LeftoverTensor(shown, error.reason, error.cause)
    out, inner = ctx.shape(group, "lora_B")[0], ctx.shape(group, "lora_A")[1]
    pair = LoraPair(group.keys["lora_A"], group.keys["lora_B"], r, inner, out, experts=n)
    square = n > 1 and out == inner
    base_name = f"{ctx.base_path(path)}.{parameter}" if not parameter.startswith("parameter") else None
    of_pair = scaled(ctx, group, s) | {"params": r * (inner + out), "base_name": base_name}
    return [
        Module(
            kind="expert" if n > 1 else "linear",
            shape=(out, inner),
            r=r,
            load=ctx.expert(lambda: pair.read(ctx.source), pair.a_name, e),
            expert=e if n > 1 else None,
            note="a square weight: the file does not say whether the base stores it transposed" if square else None,
            **(of_pair | {"name": f"{shown}[{e}]" if n > 1 else (path if parameter == "weight" else shown)}),
        )
        for e in range(n)
    ]


def _rank_and_number(ctx: Context, group: Group, r: int) -> tuple[int, int]:
    """The rank of each expert, which the config gives, and the number of experts that share the pair."""
    ctx.require(group, "lora_A", "lora_B")
    a, b = ctx.shape(group, "lora_A"), ctx.shape(group, "lora_B")
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or r < 1 or a[0] % r:
        raise UnsuitableError(
            f"factors of shape {list(a)} and {list(b)} cannot be shared out among experts of rank {r}, "
            "the rank that the config gives"
        )
    return r, a[0] // r


def vera_modules(ctx: Context, groups: list[Group]) -> list[Module | NeedsBase | LeftoverTensor]:
    """VeRA's modules: dW = (lambda_b o B[:out]) (lambda_d o A[:, :in]), no scale (vera/layer.py).

    A and B are shared by all modules, and are as wide as the widest. The file does not state each module's width; it is
    known only if all modules must have the same.
    """
    a_key, b_key = ("base_model.vera_A", "base_model.vera_B")
    shared = Group("base_model", keys={"A": a_key, "B": b_key})
    if a_key not in ctx.source.tensors or b_key not in ctx.source.tensors:
        why = "VeRA's projections are not in the file (save_projection: false): only torch can draw them again"
        return [LeftoverTensor(ctx.name(group), why, LeftoverReason.CONFIG) for group in groups]
    try:
        ctx.require(shared, "A", "B")
    except UnsuitableError as error:
        return [LeftoverTensor(ctx.name(group), f"VeRA's projections: {error.reason}", error.cause) for group in groups]
    known = _equally_wide(ctx, groups)
    return [_vera(ctx, group, shared, known_width=known) for group in groups]


def _equally_wide(ctx: Context, groups: list[Group]) -> bool:
    """Whether all modules must have the same input width.

    They must have one name, or all read the hidden state, and each name must have one height. A name with two heights
    belongs to two towers or stages, whose widths may differ.
    """
    heights: dict[str, set[int]] = {}
    for group in groups:
        if "vera_lambda_b" in group.keys:
            leaf = group.module.rpartition(".")[2]
            heights.setdefault(leaf, set()).add(math.prod(ctx.shape(group, "vera_lambda_b")))
    return (len(heights) == 1 or heights.keys() <= _HIDDEN_INPUT) and all(len(h) == 1 for h in heights.values())


@reported
def _vera(ctx: Context, group: Group, shared: Group, *, known_width: bool) -> Module | NeedsBase:
    ctx.require(group, "vera_lambda_b", "vera_lambda_d")
    a, b = ctx.shape(shared, "A"), ctx.shape(shared, "B")
    out, r = (math.prod(ctx.shape(group, name)) for name in ("vera_lambda_b", "vera_lambda_d"))
    if len(a) != 2 or len(b) != 2 or a[0] != r or b[1] != r or out > b[0]:
        raise UnsuitableError(
            f"VeRA vectors of {out} and {r} entries do not fit projections of shape {list(a)} and {list(b)}"
        )
    readers = {name: ctx.reader(group, name) for name in ("vera_lambda_b", "vera_lambda_d")}
    transposed = ctx.config.fan_in_fan_out

    def factors(shape: tuple[int, int]) -> tuple[Array, Array]:
        rows, columns = shape[::-1] if transposed else shape
        if rows != out or columns > a[1]:
            raise AdapterError(f"VeRA vectors of {out} entries do not fit a base weight of shape {shape}")
        projection_a, projection_b = _projections(ctx, shared)
        left = as_float32(readers["vera_lambda_b"]()).reshape(-1, 1) * as_float32(projection_b[:out])
        right = as_float32(readers["vera_lambda_d"]()).reshape(-1, 1) * as_float32(projection_a[:, :columns])
        return (right.T, left.T) if transposed else (left, right)

    shape = (a[1], out) if transposed else (out, a[1])
    module = Module(
        kind="vera", shape=shape, r=r, alpha=float(r), scale=1.0, load=lambda: factors(shape), **named(ctx, group)
    )
    return module if known_width else _only_with_base(module, kinds.vera(factors))


def _projections(ctx: Context, shared: Group) -> tuple[Array, Array]:
    # Hundreds of modules share the two projections, so each thread reads them once.
    if "vera" not in ctx.kept:
        ctx.kept["vera"] = (ctx.reader(shared, "A")(), ctx.reader(shared, "B")())
    a, b = ctx.kept["vera"]
    return a, b


def _only_with_base(module: Module, factored: FactoredUpdate) -> NeedsBase:
    why = "VeRA: modules of several widths share one projection, and the file does not say how wide this one is"

    def refuse() -> NoReturn:
        raise AdapterError(f"{module.name}: {why}", advice="give the base model with --base")

    dense = kinds.product(factored)
    return NeedsBase(replace(module, shape=(0, 0), load=refuse, dense=dense, factored=factored, note=why), why)
