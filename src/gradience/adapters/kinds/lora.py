"""Builders for LoRA pairs of PEFT's layers: linear, embedding, convolution, and LoRA's variants.

Every formula is that of PEFT's merge for the variant. The docstring names PEFT's file and function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gradience.adapters import kinds
from gradience.adapters.config import Scaling
from gradience.adapters.kinds import as_float32, flipped
from gradience.adapters.layout import (
    MOST_ELEMENTS,
    Array,
    Context,
    FactoredUpdate,
    Group,
    LoadFactors,
    Module,
    UnsuitableError,
    module_path,
    pattern_name,
    reported,
)
from gradience.adapters.traits import start_of
from gradience.schema.audit import LeftoverReason


@reported
def lora_module(ctx: Context, group: Group) -> Module:
    """The module of a group of `lora_*` tensors."""
    # PEFT stores an embedding's pair as bare parameters with names of their own, without `.weight`.
    embedding = "lora_embedding_A" in group.keys or "lora_embedding_B" in group.keys
    a_name, b_name = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    ctx.require(group, a_name, b_name)
    pair = pair_of(ctx, group, a_name, b_name)
    s = ctx.rules.of(pattern_name(group.module), pair.r)
    # Conv1D (fan_in_fan_out) and embeddings store (in, out); PEFT ignores the option for real convolutions.
    transposed = embedding or (ctx.config.fan_in_fan_out and pair.axes == 2)
    load = flipped(pair.load) if transposed else pair.load
    if ctx.config.use_qalora and pair.axes == 2 and not embedding and "lora_magnitude_vector" not in group.keys:
        of_base = _factored(
            kinds.qalora(pair.load, s.scale, ctx.config.qalora_group_size, transposed=transposed),
            "use_qalora: PEFT averages the inputs on a base of GPTQ and on no other",
        )
    else:
        of_base = _true_update(ctx, group, pair._replace(load=load), s.scale, transposed=transposed)
    return Module(
        kind="dora" if "magnitude" in of_base else "embedding" if embedding else "conv" if pair.axes > 2 else "linear",
        shape=(pair.inner, pair.out) if transposed else (pair.out, pair.inner),
        r=pair.r,
        load=load,
        **of_base,
        **scaled(ctx, group, s),
    )


def scaled(ctx: Context, group: Group, s: Scaling) -> dict[str, Any]:
    """The fields of a `Module` that follow from its group and from the config's rule for rank and alpha."""
    return named(ctx, group) | {
        "alpha": s.alpha,
        "scale": s.scale,
        "config_r": s.config_r,
        "alpha_pattern": s.alpha_pattern,
        "rank_pattern": s.rank_pattern,
        "pattern_path": s.path,
        "rslora": ctx.config.use_rslora,
    }


def named(ctx: Context, group: Group) -> dict[str, Any]:
    """The fields of a `Module` that follow from its group alone."""
    weight = "in_proj_weight" if group.module in ctx.attention else "weight"
    return {
        "name": ctx.name(group),
        "params": ctx.size(group, "lora_B.bias"),  # the report counts lora_B.bias with the biases
        "base_name": f"{ctx.base_path(group.module)}.{weight}",
        "adapter": ctx.adapter(group),
        "keys": group.keys,
    }


class Pair(NamedTuple):
    """Two factors that fit each other; `load` returns b (out, r) and a (r, inner). Stored tensors have `axes` axes."""

    out: int
    inner: int
    r: int
    axes: int
    load: LoadFactors


def pair_of(ctx: Context, group: Group, a_name: str, b_name: str) -> Pair:
    """The shapes and the loader of a group's two factors.

    Raises:
        UnsuitableError: the factors do not fit each other, or their layout is not known.
    """
    a, b = ctx.shape(group, a_name), ctx.shape(group, b_name)
    read_a, read_b = ctx.reader(group, a_name), ctx.reader(group, b_name)
    if len(a) < 2 or len(a) != len(b):
        raise UnsuitableError(f"factors of shape {list(a)} and {list(b)}: expected (r, in) and (out, r)")
    # This comes before the ranks are compared, because one factor of a BD-LoRA pair shows only rank / n.
    blocks = _blocks(ctx, group) if len(a) == 2 else None
    if blocks is not None:
        return _block_diagonal(blocks, a, b, read_a, read_b)
    if a[0] != b[1] or any(n != 1 for n in b[2:]):
        wrong = "ranks disagree" if a[0] != b[1] else "expected a 1 x 1 kernel in B"
        raise UnsuitableError(f"factors of shape {list(a)} and {list(b)}: {wrong}")
    out, r = b[0], a[0]

    def load() -> tuple[Array, Array]:
        return read_b().reshape(out, r), read_a().reshape(r, -1)

    pair = Pair(out, math.prod(a[1:]), r, len(a), load)
    return _with_diagonal(ctx, group, pair) if "lora_diag" in group.keys else pair


def _with_diagonal(ctx: Context, group: Group, pair: Pair) -> Pair:
    """KaSA's pair: B diag(d) and A (variants.py, KasaLinearVariant._get_delta_weight)."""
    entries = math.prod(ctx.shape(group, "lora_diag"))
    if entries != pair.r:
        raise UnsuitableError(f"lora_diag has {entries} entries, expected the rank {pair.r}")
    read = ctx.reader(group, "lora_diag")

    def load() -> tuple[Array, Array]:
        b, a = pair.load()
        return as_float32(b) * as_float32(read()).reshape(1, -1), a

    return pair._replace(load=load)


def _blocks(ctx: Context, group: Group) -> tuple[int, bool] | None:
    """BD-LoRA's (number of blocks, whether A is the block-diagonal factor, else B), or None if it does not apply."""
    config = ctx.config.use_bdlora
    if not isinstance(config, Mapping):
        return None
    path, n = module_path(group.module), config.get("nblocks", 1)
    for name, is_a in (("target_modules_bd_a", True), ("target_modules_bd_b", False)):
        patterns = config.get(name)
        # A substring anywhere in the path, as PEFT tests it (variants.py).
        if isinstance(patterns, list) and any(str(p) in path for p in patterns) and isinstance(n, int):
            return n, is_a
    return None


def _block_diagonal(
    blocks: tuple[int, bool],
    a: tuple[int, ...],
    b: tuple[int, ...],
    read_a: Callable[[], Array],
    read_b: Callable[[], Array],
) -> Pair:
    """BD-LoRA's pair: the block-diagonal factor is stored as its blocks, stacked (variants.py, BlockDiagonalLinear)."""
    n, is_a = blocks
    split, whole = (a, b[1]) if is_a else (b, a[0])
    rank = a[0] if is_a else b[1] * n
    if n < 1 or split[0] % n or rank != whole or split[0] * split[1] * n > MOST_ELEMENTS:
        raise UnsuitableError(f"{n} BD-LoRA blocks do not fit factors of shape {list(a)} and {list(b)}")

    def load() -> tuple[Array, Array]:
        if is_a:
            return read_b(), _on_diagonal(read_a(), n)
        return _on_diagonal(read_b(), n), read_a()

    return Pair(b[0], a[1] * n if is_a else a[1], rank, 2, load)


def _on_diagonal(stacked: Array, n: int) -> Array:
    rows, columns = stacked.shape[0] // n, stacked.shape[1]
    spread = np.zeros((n * rows, n * columns), stacked.dtype)
    for i in range(n):
        spread[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] = stacked[i * rows : (i + 1) * rows]
    return spread


def _true_update(ctx: Context, group: Group, pair: Pair, scale: float, *, transposed: bool) -> dict[str, Any]:
    """The fields of a `Module` for an update that is not s B A: a function of the base weight, and a note.

    `pair.load` gives the factors in the base's orientation; `transposed` says that the file has the other one.
    """
    init = ctx.config.init_lora_weights
    if "lora_magnitude_vector" in group.keys:
        read = ctx.reader(group, "lora_magnitude_vector")
        if start_of(init).changes_base:
            note = f"DoRA on a base that {init} changed: the update cannot be recomputed"
            return {"magnitude": read, "is_unknown": True, "note": note}
        update = kinds.dora(pair.load, scale, read, axis=0 if transposed else 1)
        return {"magnitude": read, "dense": update, "note": "DoRA: s B A is rescaled by the magnitude"}
    if "lora_diag" in group.keys:
        factored = kinds.kasa(pair.load, scale, pair.r)
        return _factored(factored, "KaSA took the r smallest singular values out of the base")
    return _on_changed_base(init, pair, scale, linear=pair.axes == 2 and "lora_A" in group.keys)


def _factored(update: FactoredUpdate, note: str) -> dict[str, Any]:
    return {"factored": update, "dense": kinds.product(update), "note": note}


def _on_changed_base(init: object, pair: Pair, scale: float, *, linear: bool) -> dict[str, Any]:
    """The fields of a `Module` for an initialisation that changed the base; no fields for other initialisations."""
    start = start_of(init)
    # PEFT changes the weights of linear layers only. Before 0.21, LoftQ also changed embeddings and convolutions.
    if not start.changes_base or not (linear or start.name == "loftq"):
        return {}
    if not start.recomputable:
        return {"is_unknown": True, "note": f"{init} changed the base, by an amount that cannot be recomputed"}
    if start.name == "pissa":
        return _factored(kinds.pissa(pair.load, scale, pair.r), "PiSSA took the best rank-r part out of the base")
    return _factored(kinds.olora(pair.load, scale, pair.r), "OLoRA took a rank-r part out of the base")


@reported
def adalora_module(ctx: Context, group: Group) -> Module:
    """AdaLoRA's dW = B (A * E) alpha / (init_r + 1e-5) (adalora/layer.py, get_delta_weight)."""
    names = ("lora_A", "lora_B", "lora_E")
    ctx.require(group, *names)
    a, b, e = (ctx.shape(group, name) for name in names)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or math.prod(e) != a[0]:
        shapes = f"{list(a)}, {list(b)} and {list(e)}"
        raise UnsuitableError(f"AdaLoRA factors of shape {shapes}: expected (r, in), (out, r) and (r, 1)")
    init_r = ctx.config.init_r
    if init_r < 1:
        raise UnsuitableError(f"init_r is {init_r} in the config, expected at least 1", LeftoverReason.CONFIG)
    readers = [ctx.reader(group, name) for name in names]

    def load() -> tuple[Array, Array]:
        a_data, b_data, e_data = (read() for read in readers)
        return b_data, as_float32(a_data) * as_float32(e_data).reshape(-1, 1)

    # PEFT divides by `ranknum`, which starts as init_r and is not saved. The config's r has no effect here.
    alpha = ctx.config.lora_alpha if ctx.config.lora_alpha > 0 else float(init_r)
    transposed = ctx.config.fan_in_fan_out
    return Module(
        kind="adalora",
        shape=(a[1], b[0]) if transposed else (b[0], a[1]),
        r=a[0],
        alpha=alpha,
        scale=alpha / (init_r + 1e-5),
        load=flipped(load) if transposed else load,
        config_r=_kept_ranks(ctx, group),
        **named(ctx, group),
    )


def _kept_ranks(ctx: Context, group: Group) -> int:
    """The rank that AdaLoRA's budget left to the module, from the config's rank_pattern; init_r if it is not there."""
    kept = (ctx.config.rank_pattern or {}).get(f"{group.module}.lora_E")
    return sum(map(bool, kept)) if isinstance(kept, list) else ctx.config.init_r
