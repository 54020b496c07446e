"""LoHa and LoKr: Hadamard and Kronecker products of two low-rank matrices, rewritten as one pair of factors.

Every formula is that of PEFT's `get_delta_weight` for the type. The pairs are exact, not approximations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from gradience.adapters import kinds
from gradience.adapters.config import AdapterConfig, ScalingRules
from gradience.adapters.kinds import as_float32
from gradience.adapters.kinds.lora import Pair, scaled
from gradience.adapters.layout import (
    LOHA_FIELDS,
    LOKR_FIELDS,
    MOST_ELEMENTS,
    Array,
    Context,
    Group,
    LeftoverTensor,
    Module,
    UnsuitableError,
    reported,
)
from gradience.schema.audit import LeftoverReason

MOST_RANK: Final = 1024
"""The largest rank of a pair that is analysed: above it, the factors and Gram matrices are as large as the update."""

_CORE: Final = 4


@reported
def loha_module(ctx: Context, group: Group, *, most_rank: int = MOST_RANK) -> Module:
    """LoHa's dW = (w1a w1b) o (w2a w2b) alpha / r as a pair of inner size r^2 (loha/layer.py, 183).

    (B1 A1) o (B2 A2) = (B1 * B2)(A1 * A2). Row i of B1 * B2 is the Kronecker product of row i of B1 and row i of B2
    (face-splitting product). Column j of A1 * A2 is that of the columns j (Khatri-Rao product).
    """
    one, two = (_half(ctx, group, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2))
    out, inner, r = one.out, one.inner, one.r * two.r
    if (out, inner) != (two.out, two.inner):
        raise UnsuitableError(f"LoHa halves of shape ({out}, {inner}) and ({two.out}, {two.inner}) do not match")

    def load() -> tuple[Array, Array]:
        (b1, a1), (b2, a2) = one.load(), two.load()
        # The entrywise product of two products is one product, of all pairs of columns and all pairs of rows.
        b = b1[:, :, None] * b2[:, None, :]
        a = a1[:, None, :] * a2[None, :, :]
        return b.reshape(out, r), a.reshape(r, inner)

    return _product_module(ctx, group, "loha", Pair(out, inner, r, 2, load), nominal=one.r, most_rank=most_rank)


@reported
def lokr_module(ctx: Context, group: Group, *, most_rank: int = MOST_RANK) -> Module:
    """LoKr's dW = kron(w1, w2) alpha / r as one pair (lokr/layer.py, 256).

    kron(B1 A1, B2 A2) = kron(B1, B2) kron(A1, A2). A matrix w1 or w2 that is stored whole is written as itself times
    an identity.
    """
    one, two = (_kronecker_factor(ctx, group, f"lokr_w{i}", f"lokr_t{i}") for i in (1, 2))

    def load() -> tuple[Array, Array]:
        (b1, a1), (b2, a2) = one.load(), two.load()
        return np.kron(b1, b2), np.kron(a1, a2)

    pair = Pair(one.out * two.out, one.inner * two.inner, one.r * two.r, 2, load)
    # PEFT divides alpha by the config's rank if w1 and w2 are both stored whole, else by the rank of the factors.
    return _product_module(ctx, group, "lokr", pair, nominal=_nominal_rank(ctx, group), most_rank=most_rank)


def _nominal_rank(ctx: Context, group: Group) -> int | None:
    """The r that alpha is divided by: the inner size of a matrix stored as two factors; None if all are whole."""
    for name in ("hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if name in group.keys and (shape := ctx.shape(group, name)):
            return shape[0]
    return None


def _product_module(
    ctx: Context, group: Group, kind: str, pair: Pair, *, nominal: int | None, most_rank: int
) -> Module:
    out, inner, r = pair.out, pair.inner, pair.r
    # From about r = 64, a LoHa's pair of inner size r^2 saves nothing over the update itself.
    if r > most_rank or r * max(out, inner) > MOST_ELEMENTS:
        reason = f"an update of rank up to {r}: too large to be analysed as a pair of factors"
        raise UnsuitableError(reason, LeftoverReason.TOO_LARGE)
    # 8 is PEFT's default alpha of LoHa and LoKr, whose config has it in a field of its own.
    s = ctx.rules.of(group.module, nominal, default_alpha=8.0 if ctx.config.alpha is None else ctx.config.alpha)
    rank = s.config_r if nominal is None else nominal
    if rank < 1:
        raise UnsuitableError(f"the config gives it rank {rank}, expected at least 1", LeftoverReason.CONFIG)
    return Module(
        kind=kind,
        shape=(out, inner),
        r=r,
        load=pair.load,
        note=f"{kind} of rank {rank}: its update has rank up to {r}",
        **(scaled(ctx, group, s) | {"scale": s.alpha / rank, "config_r": None, "rslora": False}),
    )


def _half(ctx: Context, group: Group, a_name: str, b_name: str, t_name: str) -> Pair:
    """One of the two matrices: w_a (out, r) w_b (r, in), or a Tucker decomposition with a core (r, r, k, k)."""
    core = t_name in group.keys
    names = (a_name, b_name, t_name) if core else (a_name, b_name)
    ctx.require(group, *names)
    shapes = [ctx.shape(group, name) for name in names]
    readers = [ctx.reader(group, name) for name in names]
    if core:
        return _tucker(shapes, readers)
    a, b = shapes
    if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
        raise UnsuitableError(f"factors of shape {list(a)} and {list(b)}: expected (out, r) and (r, in)")
    return Pair(a[0], b[1], a[1], 2, lambda: (as_float32(readers[0]()), as_float32(readers[1]())))


def _tucker(shapes: Sequence[tuple[int, ...]], readers: Sequence[Callable[[], Array]]) -> Pair:
    """The pair of a Tucker decomposition: P^T and the unfolded matrix (i, r k l), given P, Q and the core t.

    W[p, r, k, l] = sum_ij t[i, j, k, l] P[i, p] Q[j, r].
    """
    (p, q, t), (read_p, read_q, read_t) = shapes, readers
    if len(t) != _CORE or len(p) != 2 or len(q) != 2 or t[0] != p[0] or t[1] != q[0]:
        raise UnsuitableError(
            f"a core of shape {list(t)} with factors {list(p)} and {list(q)}: expected (r, r, k, k), (r, out), (r, in)"
        )
    inner = q[1] * t[2] * t[3]
    unfold = unfolded(t, inner, read_t, read_q)
    return Pair(p[1], inner, t[0], 2, lambda: (as_float32(read_p()).T, unfold()))


def unfolded(
    core: tuple[int, ...], inner: int, read_core: Callable[[], Array], read_q: Callable[[], Array]
) -> Callable[[], Array]:
    """A reader of sum_j t[i, j, k, l] q[j, r], unfolded to a matrix (i, r k l), for a core t (r, r, k, k).

    `core` is the shape of t, `inner` the width of the matrix.

    Raises:
        UnsuitableError: the matrix would be too large.
    """
    if core[0] * inner > MOST_ELEMENTS:
        reason = f"a core of shape {list(core)} is too large to be unfolded"
        raise UnsuitableError(reason, LeftoverReason.TOO_LARGE)

    def load() -> Array:
        whole = np.einsum("ijkl,jr->irkl", as_float32(read_core()), as_float32(read_q()).reshape(core[1], -1))
        return np.asarray(whole).reshape(core[0], inner)

    return load


def _kronecker_factor(ctx: Context, group: Group, stem: str, core: str) -> Pair:
    """One of LoKr's two matrices as a pair; it is stored whole, as two factors, or as a Tucker decomposition."""
    if stem not in group.keys:
        return _half(ctx, group, f"{stem}_a", f"{stem}_b", core)
    ctx.require(group, stem)
    shape = ctx.shape(group, stem)
    if len(shape) < 2:
        raise UnsuitableError(f"{stem} has shape {list(shape)}: expected a matrix")
    rows, columns = shape[0], math.prod(shape[1:])
    if min(rows, columns) > MOST_RANK:
        reason = f"{stem} of shape {list(shape)}: too large to be analysed as a pair of factors"
        raise UnsuitableError(reason, LeftoverReason.TOO_LARGE)
    read = ctx.reader(group, stem)

    def load() -> tuple[Array, Array]:
        whole = as_float32(read()).reshape(rows, columns)
        unit = np.eye(min(rows, columns), dtype=whole.dtype)  # at the shorter side, for the least inner size
        return (unit, whole) if rows <= columns else (whole, unit)

    return Pair(rows, columns, min(rows, columns), 2, load)


def product_module(ctx: Context, group: Group, alpha: float | None) -> Module | LeftoverTensor | None:
    """The module of a group of LoHa or LoKr tensors under LyCORIS's names, or None for a group of other tensors.

    `alpha` is the file's; without one, the rank is used. LyCORIS ignores alpha if both matrices of a LoKr are whole.
    """
    factors = {field: name for field, name in group.keys.items() if field in {*LOHA_FIELDS, *LOKR_FIELDS}}
    if not factors:
        return None
    nominal = _nominal_rank(ctx, group)
    config = AdapterConfig(alpha=1.0 if nominal is None else alpha or float(nominal or 1), r=1)
    # The builders read PEFT's config, so the file's alpha becomes one; each module may have another.
    own = replace(ctx, config=config, rules=ScalingRules(config))
    build = loha_module if not factors.keys().isdisjoint(LOHA_FIELDS) else lokr_module
    module = build(own, Group(group.module, keys=factors))
    if isinstance(module, LeftoverTensor):
        return module
    # A name with underscores for dots does not say where the module's path has dots.
    base_name = module.base_name if "." in group.module else None
    return replace(module, base_name=base_name, keys=group.keys, alpha_pattern=None, rank_pattern=None)


def with_magnitude(ctx: Context, group: Group, module: Module) -> Module:
    """The module as DoRA with LyCORIS's `dora_scale`, if it has one: norms of outputs (out, 1, ...) or inputs (1, in).

    The shape tells the two apart even for a square weight, because one of its axes is 1.
    """
    if "magnitude" not in group.keys:
        return module
    rows, *rest = ctx.shape(group, "magnitude") or (0,)
    by_output = rows == module.shape[0] and all(n == 1 for n in rest)
    by_input = rows == 1 and len(rest) == 1 and rest[0] == module.shape[1]
    if not by_output and not by_input:
        shape = list(ctx.shape(group, "magnitude"))
        raise UnsuitableError(f"dora_scale of shape {shape} has a norm that is not of a row or a column")
    read = ctx.reader(group, "magnitude")
    update = kinds.dora(module.load, module.scale, read, axis=1 if by_output else 0)
    axis = "each output, as PEFT's" if by_output else "each input, unlike PEFT's"
    note = f"dora_scale: the norm of {axis}"
    return replace(module, kind="dora", dense=update, magnitude=read, note=note)
