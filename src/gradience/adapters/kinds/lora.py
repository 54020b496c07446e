"""LoRA pairs of PEFT's layers: linear, embedding, convolution, and the variants of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gradience.adapters.config import Scaling
from gradience.adapters.kinds import dense
from gradience.adapters.layout import (
    MOST_ELEMENTS,
    Array,
    Context,
    DenseUpdate,
    Group,
    LoadFactors,
    Module,
    Skipped,
    module_path,
    pattern_name,
)
from gradience.adapters.traits import start_of


def base_changing(init: object) -> str | None:
    """The initialisation's name where it changed the base model's weights at the start, or None."""
    start = start_of(init)
    return start.name if start.changes_base else None


def lora_module(ctx: Context, group: Group) -> Module | Skipped:
    """Return the module that a group of `lora_*` tensors makes up, or why it makes up none."""
    embedding = "lora_embedding_A" in group.keys or "lora_embedding_B" in group.keys
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    if (reason := ctx.misuse(group, *names)) is not None:
        return reason
    found = pair_of(ctx, group, *names)
    if isinstance(found, str):
        return Skipped(ctx.name(group), found)
    s = ctx.rules.of(pattern_name(group.module), found.r)
    turned = embedding or (ctx.config.fan_in_fan_out and found.axes == 2)
    load = transposed(found.load) if turned else found.load
    special, note = _true_update(ctx, group, found, load, s, turned=turned, embedding=embedding)
    magnitude = ctx.reader(group, "lora_magnitude_vector") if "lora_magnitude_vector" in group.keys else None
    return Module(
        name=ctx.name(group),
        kind="dora" if magnitude else "embedding" if embedding else "conv" if found.axes > 2 else "linear",
        shape=(found.inner, found.out) if turned else (found.out, found.inner),
        r=found.r,
        alpha=s.alpha,
        scale=s.scale,
        params=sum(ctx.info(group, name).size for name in group.keys if name != "lora_B.bias"),
        load=load,
        base_name=_base_name(ctx, group),
        dense=special,
        magnitude=magnitude,
        note=note,
        **common(ctx, group, s),
    )


def common(ctx: Context, group: Group, s: Scaling) -> dict[str, Any]:
    """Return the fields of a module that its config and name decide."""
    return {
        "config_r": s.config_r,
        "alpha_pattern": s.alpha_pattern,
        "rank_pattern": s.rank_pattern,
        "pattern_path": s.path,
        "rslora": ctx.config.use_rslora,
        "adapter": ctx.adapter(group),
        "keys": group.keys,
    }


def _base_name(ctx: Context, group: Group) -> str:
    is_attention = group.module in ctx.attention
    return f"{ctx.base_path(group.module)}.{'in_proj_weight' if is_attention else 'weight'}"


class Pair(NamedTuple):
    """Two factors that fit: `load` returns b (out, r) and a (r, inner); `axes` is the tensors' own number."""

    out: int
    inner: int
    r: int
    axes: int
    load: LoadFactors


def pair_of(ctx: Context, group: Group, a_name: str, b_name: str) -> Pair | str:
    """Return the factors' shapes and loader, or why they fit neither each other nor a known layout."""
    a, b = ctx.info(group, a_name).shape, ctx.info(group, b_name).shape
    read_a, read_b = ctx.reader(group, a_name), ctx.reader(group, b_name)
    if len(a) < 2 or len(a) != len(b):
        return f"factors of shape {list(a)} and {list(b)}: expected (r, in) and (out, r)"
    blocks = _blocks(ctx, group) if len(a) == 2 else None
    if blocks is not None:
        return _block_diagonal(blocks, a, b, read_a, read_b)
    if a[0] != b[1] or any(n != 1 for n in b[2:]):
        wrong = "ranks disagree" if a[0] != b[1] else "expected a 1 x 1 kernel in B"
        return f"factors of shape {list(a)} and {list(b)}: {wrong}"
    if ctx.config.use_qalora:
        return _pooled(ctx.config.qalora_group_size, a, b, read_a, read_b)
    out, r = b[0], a[0]

    def load() -> tuple[Array, Array]:
        return read_b().reshape(out, r), read_a().reshape(r, -1)

    pair = Pair(out, math.prod(a[1:]), r, len(a), load)
    return _with_diagonal(ctx, group, pair) if "lora_diag" in group.keys else pair


def _with_diagonal(ctx: Context, group: Group, pair: Pair) -> Pair | str:
    """KaSA: B diag(d) A (variants.py, KasaLinearVariant._get_delta_weight)."""
    if ctx.info(group, "lora_diag").size != pair.r:
        return f"lora_diag has {ctx.info(group, 'lora_diag').size} entries, expected the rank {pair.r}"
    read = ctx.reader(group, "lora_diag")

    def load() -> tuple[Array, Array]:
        b, a = pair.load()
        return wide(b) * wide(read()).reshape(1, -1), a

    return pair._replace(load=load)


def _pooled(
    size: int, a: tuple[int, ...], b: tuple[int, ...], read_a: Callable[[], Array], read_b: Callable[[], Array]
) -> Pair | str:
    """QALoRA: inputs are averaged over groups of `size` and multiplied by the number of groups (variants.py, 491)."""
    groups = a[1]
    if size < 1 or a[0] * groups * size > MOST_ELEMENTS or len(a) != 2:
        return f"a QALoRA group size of {size} does not fit A of shape {list(a)}"

    def load() -> tuple[Array, Array]:
        return read_b(), np.repeat(wide(read_a()), size, axis=1) * (groups / size)

    return Pair(b[0], groups * size, a[0], 2, load)


def _blocks(ctx: Context, group: Group) -> tuple[int, bool] | None:
    """Return BD-LoRA's number of blocks and whether they are A's (else B's), where it applies to a module."""
    config = ctx.config.use_bdlora
    if not isinstance(config, Mapping):
        return None
    path, n = module_path(group.module), config.get("nblocks", 1)
    for name, is_a in (("target_modules_bd_a", True), ("target_modules_bd_b", False)):
        patterns = config.get(name)
        if isinstance(patterns, list) and any(str(p) in path for p in patterns) and isinstance(n, int):
            return n, is_a
    return None


def _block_diagonal(
    blocks: tuple[int, bool],
    a: tuple[int, ...],
    b: tuple[int, ...],
    read_a: Callable[[], Array],
    read_b: Callable[[], Array],
) -> Pair | str:
    """BD-LoRA: one factor holds its blocks one above the other (variants.py, BlockDiagonalLinear)."""
    n, is_a = blocks
    split, whole = (a, b[1]) if is_a else (b, a[0])
    rank = a[0] if is_a else b[1] * n
    if n < 1 or split[0] % n or rank != whole or split[0] * split[1] * n > MOST_ELEMENTS:
        return f"{n} BD-LoRA blocks do not fit factors of shape {list(a)} and {list(b)}"

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


def transposed(load: LoadFactors) -> LoadFactors:
    """Return a loader of the transposed update: (B A)^T = A^T B^T."""

    def turned() -> tuple[Array, Array]:
        b, a = load()
        return a.T, b.T

    return turned


def wide(x: Array) -> Array:
    """Return the array in float32, or float64 where it is that already."""
    return x if x.dtype == np.float64 else x.astype(np.float32, copy=False)


def _true_update(
    ctx: Context, group: Group, pair: Pair, load: LoadFactors, s: Scaling, *, turned: bool, embedding: bool
) -> tuple[DenseUpdate | None, str | None]:
    """Return the update as a function of the base weight, where s B A is not the whole of it, and a remark."""
    init = base_changing(ctx.config.init_lora_weights)
    if "lora_magnitude_vector" in group.keys:
        if init is not None:
            return None, f"DoRA on a base that {ctx.config.init_lora_weights} changed: the update cannot be recomputed"
        read = ctx.reader(group, "lora_magnitude_vector")
        return dense.dora(load, s.scale, read, axis=0 if turned else 1), "DoRA: s B A is rescaled by the magnitude"
    if "lora_diag" in group.keys:
        return dense.kasa(load, s.scale, pair.r), "KaSA took the r smallest singular values out of the base"
    if ctx.config.use_qalora:
        return None, "QALoRA: read from PEFT's forward pass, which has no merge to compare with"
    if init is None or embedding or pair.axes > 2:
        return None, None
    return _on_changed_base(str(ctx.config.init_lora_weights), load, s.scale, pair.r)


def _on_changed_base(init: str, load: LoadFactors, scale: float, r: int) -> tuple[DenseUpdate | None, str]:
    """Return the update of an adapter whose initialisation took a part out of the base."""
    if init.lower() == "pissa":
        return dense.pissa(load, scale, r), "PiSSA took the best rank-r part out of the base"
    if init.lower() == "olora":
        return dense.olora(load, scale, r), "OLoRA took a rank-r part out of the base"
    return None, f"{init} changed the base, by an amount that cannot be recomputed"


def adalora_module(ctx: Context, group: Group) -> Module | Skipped:
    """Return AdaLoRA's dW = B (A * E) alpha / (init_r + 1e-5) (adalora/layer.py, get_delta_weight)."""
    if (reason := ctx.misuse(group, "lora_A", "lora_B", "lora_E")) is not None:
        return reason
    a, b, e = (ctx.info(group, name) for name in ("lora_A", "lora_B", "lora_E"))
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or e.size != a.shape[0]:
        shapes = f"{list(a.shape)}, {list(b.shape)} and {list(e.shape)}"
        return Skipped(ctx.name(group), f"AdaLoRA factors of shape {shapes}: expected (r, in), (out, r) and (r, 1)")
    if ctx.config.init_r < 1:
        return Skipped(ctx.name(group), f"init_r is {ctx.config.init_r} in the config, expected at least 1")
    readers = [ctx.reader(group, name) for name in ("lora_A", "lora_B", "lora_E")]

    def load() -> tuple[Array, Array]:
        a_data, b_data, e_data = (read() for read in readers)
        return b_data, wide(a_data) * wide(e_data).reshape(-1, 1)

    alpha = ctx.config.lora_alpha if ctx.config.lora_alpha > 0 else float(ctx.config.init_r)
    turned = ctx.config.fan_in_fan_out
    return Module(
        name=ctx.name(group),
        kind="adalora",
        shape=(a.shape[1], b.shape[0]) if turned else (b.shape[0], a.shape[1]),
        r=a.shape[0],
        alpha=alpha,
        scale=alpha / (ctx.config.init_r + 1e-5),
        params=a.size + b.size + e.size,
        load=transposed(load) if turned else load,
        base_name=_base_name(ctx, group),
        config_r=_kept_ranks(ctx, group),
        adapter=ctx.adapter(group),
        keys=group.keys,
    )


def _kept_ranks(ctx: Context, group: Group) -> int:
    """Return the rank that AdaLoRA's budget left the module, as the config's rank_pattern lists it."""
    kept = (ctx.config.rank_pattern or {}).get(f"{group.module}.lora_E")
    return sum(map(bool, kept)) if isinstance(kept, list) else ctx.config.init_r
