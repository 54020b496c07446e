"""LoHa, LoKr, VeRA, HiRA and MiSS: updates that are no plain B A, written as one where that can be done.

Every formula is PEFT's `get_delta_weight` of the type; the pairs are exact, not approximations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np

from gradience.adapters import dense
from gradience.adapters.groups import MOST_ELEMENTS, Context, Group
from gradience.adapters.lora import common, wide
from gradience.adapters.modules import Array, DenseUpdate, LoadFactors, Module, NeedsBase, Skipped
from gradience.errors import AdapterError

__all__ = ["hira_module", "loha_module", "lokr_module", "miss_module", "vera_modules"]

_MOST_RANK: Final = 1024
"""Above that a pair is no shorter than the update itself, and its Gram matrices no smaller."""

_MATRIX: Final = 2
_CORE: Final = 4


class _Shape(NamedTuple):
    """The shape of a factor pair, without reading it."""

    out: int
    r: int
    inner: int


class _Factor(NamedTuple):
    shape: _Shape
    load: LoadFactors


def loha_module(ctx: Context, group: Group) -> Module | Skipped:
    """Return LoHa's dW = (w1a w1b) o (w2a w2b) alpha / r as a pair of rank r^2 (loha/layer.py, 183).

    (B1 A1) o (B2 A2) = (B1 * B2)(A1 * A2), where row i of B1 * B2 is the Kronecker product of the rows i, and
    columns of A likewise (face-splitting and Khatri-Rao products).
    """
    one, two = (_half(ctx, group, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2))
    if not isinstance(one, _Factor) or not isinstance(two, _Factor):
        return Skipped(ctx.name(group), str(one if isinstance(one, str) else two))
    (out, r1, inner), (out2, r2, inner2) = one.shape, two.shape
    if (out, inner) != (out2, inner2):
        return Skipped(ctx.name(group), f"LoHa halves of shape ({out}, {inner}) and ({out2}, {inner2}) do not match")

    def load() -> tuple[Array, Array]:
        (b1, a1), (b2, a2) = one.load(), two.load()
        b = b1[:, :, None] * b2[:, None, :]
        a = a1[:, None, :] * a2[None, :, :]
        return b.reshape(out, r1 * r2), a.reshape(r1 * r2, inner)

    return _product_module(ctx, group, "loha", _Factor(_Shape(out, r1 * r2, inner), load), r1)


def lokr_module(ctx: Context, group: Group) -> Module | Skipped:
    """Return LoKr's dW = kron(w1, w2) alpha / r (lokr/layer.py, 256).

    kron(B1 A1, B2 A2) = kron(B1, B2) kron(A1, A2); a factor that is stored whole is itself times an identity.
    """
    one, two = (_kronecker_factor(ctx, group, f"lokr_w{i}", f"lokr_t{i}") for i in (1, 2))
    if not isinstance(one, _Factor) or not isinstance(two, _Factor):
        return Skipped(ctx.name(group), str(one if isinstance(one, str) else two))
    (out1, r1, in1), (out2, r2, in2) = one.shape, two.shape

    def load() -> tuple[Array, Array]:
        (b1, a1), (b2, a2) = one.load(), two.load()
        return np.kron(b1, b2), np.kron(a1, a2)

    shape = _Shape(out1 * out2, r1 * r2, in1 * in2)
    whole = "lokr_w1" in group.keys and "lokr_w2" in group.keys
    nominal = None if whole else _nominal_rank(ctx, group)
    return _product_module(ctx, group, "lokr", _Factor(shape, load), nominal)


def _nominal_rank(ctx: Context, group: Group) -> int:
    """Return LoKr's r, the inner width of whichever factor is stored as two."""
    name = "lokr_w1_b" if "lokr_w1_b" in group.keys else "lokr_w2_b"
    return ctx.info(group, name).shape[0]


def _product_module(ctx: Context, group: Group, kind: str, pair: _Factor, nominal: int | None) -> Module | Skipped:
    out, r, inner = pair.shape
    if r > _MOST_RANK or r * max(out, inner) > MOST_ELEMENTS:
        return Skipped(ctx.name(group), f"an update of rank up to {r}: too large to be analysed as a pair of factors")
    s = ctx.rules.of(group.module, nominal, default_alpha=8.0 if ctx.config.alpha is None else ctx.config.alpha)
    rank = s.config_r if nominal is None else nominal
    if rank < 1:
        return Skipped(ctx.name(group), f"the config gives it rank {rank}, expected at least 1")
    return Module(
        name=ctx.name(group),
        kind=kind,
        shape=(out, inner),
        r=r,
        alpha=s.alpha,
        scale=s.alpha / rank,
        params=sum(ctx.info(group, name).size for name in group.keys),
        load=pair.load,
        base_name=f"{ctx.base_path(group.module)}.weight",
        note=f"{kind} of rank {rank}: its update has rank up to {r}",
        **(common(ctx, group, s) | {"config_r": None, "rslora": False}),
    )


def _half(ctx: Context, group: Group, a_name: str, b_name: str, t_name: str) -> _Factor | str:
    """Return one Hadamard half: w_a (out, r) w_b (r, in), or Tucker's with a core (r, r, k, k)."""
    core = t_name in group.keys
    names = (a_name, b_name, t_name) if core else (a_name, b_name)
    if (reason := ctx.misuse(group, *names)) is not None:
        return reason.reason
    shapes = [ctx.info(group, name).shape for name in names]
    readers = [ctx.reader(group, name) for name in names]
    if core:
        return _tucker(shapes, readers)
    a, b = shapes
    if len(a) != _MATRIX or len(b) != _MATRIX or a[1] != b[0]:
        return f"factors of shape {list(a)} and {list(b)}: expected (out, r) and (r, in)"
    return _Factor(_Shape(a[0], a[1], b[1]), lambda: (wide(readers[0]()), wide(readers[1]())))


def _tucker(shapes: Sequence[tuple[int, ...]], readers: Sequence[Callable[[], Array]]) -> _Factor | str:
    """W[p, r, k, l] = sum_ij t[i, j, k, l] P[i, p] Q[j, r]: P^T times a matrix (i, r k l). Given P, Q, t."""
    (p, q, t), (read_p, read_q, read_t) = shapes, readers
    if len(t) != _CORE or len(p) != _MATRIX or len(q) != _MATRIX or t[0] != p[0] or t[1] != q[0]:
        return (
            f"a core of shape {list(t)} with factors {list(p)} and {list(q)}: expected (r, r, k, k), (r, out), (r, in)"
        )
    inner = q[1] * t[2] * t[3]
    if t[0] * inner > MOST_ELEMENTS:
        return f"a core of shape {list(t)} is too large to be unfolded"

    def load() -> tuple[Array, Array]:
        unfolded = np.einsum("ijkl,jr->irkl", wide(read_t()), wide(read_q()))
        return wide(read_p()).T, unfolded.reshape(t[0], inner)

    return _Factor(_Shape(p[1], t[0], inner), load)


def _kronecker_factor(ctx: Context, group: Group, stem: str, core: str) -> _Factor | str:
    """Return one of LoKr's two factors: whole, as a product, or as a Tucker core with two factors."""
    if stem not in group.keys:
        return _half(ctx, group, f"{stem}_a", f"{stem}_b", core)
    if (reason := ctx.misuse(group, stem)) is not None:
        return reason.reason
    shape = ctx.info(group, stem).shape
    if len(shape) < _MATRIX:
        return f"{stem} has shape {list(shape)}: expected a matrix"
    rows, columns = shape[0], math.prod(shape[1:])
    if min(rows, columns) > _MOST_RANK:
        return f"{stem} of shape {list(shape)}: too large to be analysed as a pair of factors"
    read = ctx.reader(group, stem)

    def load() -> tuple[Array, Array]:
        whole = wide(read()).reshape(rows, columns)
        unit = np.eye(min(rows, columns), dtype=whole.dtype)
        return (unit, whole) if rows <= columns else (whole, unit)

    return _Factor(_Shape(rows, min(rows, columns), columns), load)


# Modules whose input is the hidden state, so that all of them in one adapter are equally wide.
_HIDDEN_INPUT: Final = frozenset(
    {"q_proj", "k_proj", "v_proj", "qkv_proj", "query", "key", "value", "q_lin", "k_lin", "v_lin", "c_attn", "q", "k"}
    | {"v", "gate_proj", "up_proj", "query_key_value", "fc1", "c_fc", "to_q"}
)


def vera_modules(ctx: Context, groups: list[Group]) -> list[Module | NeedsBase | Skipped]:
    """Return VeRA's modules: dW = (lambda_b o B[:out]) (lambda_d o A[:, :in]), no scale (vera/layer.py).

    A and B are shared and as wide as the widest module; a file does not say how wide each module is, except
    where all must be equally wide.
    """
    a_key, b_key = ("base_model.vera_A", "base_model.vera_B")
    shared = Group("base_model", keys={"A": a_key, "B": b_key})
    if a_key not in ctx.source.tensors or b_key not in ctx.source.tensors:
        why = "VeRA's projections are not in the file (save_projection: false): only torch can draw them again"
        return [Skipped(ctx.name(group), why) for group in groups]
    if (reason := ctx.misuse(shared, "A", "B")) is not None:
        return [Skipped(ctx.name(group), f"VeRA's projections: {reason.reason}") for group in groups]
    leaves = {group.module.rpartition(".")[2] for group in groups}
    known = len(leaves) == 1 or leaves <= _HIDDEN_INPUT
    return [_vera(ctx, group, shared, known_width=known) for group in groups]


def _vera(ctx: Context, group: Group, shared: Group, *, known_width: bool) -> Module | NeedsBase | Skipped:
    if (reason := ctx.misuse(group, "vera_lambda_b", "vera_lambda_d")) is not None:
        return reason
    a, b = ctx.info(shared, "A").shape, ctx.info(shared, "B").shape
    out, r = ctx.info(group, "vera_lambda_b").size, ctx.info(group, "vera_lambda_d").size
    if len(a) != _MATRIX or len(b) != _MATRIX or a[0] != r or b[1] != r or out > b[0]:
        return Skipped(
            ctx.name(group),
            f"VeRA vectors of {out} and {r} entries do not fit projections of shape {list(a)} and {list(b)}",
        )
    readers = {name: ctx.reader(group, name) for name in ("vera_lambda_b", "vera_lambda_d")}
    turned = ctx.config.fan_in_fan_out

    def factors(shape: tuple[int, int]) -> tuple[Array, Array]:
        rows, columns = shape[::-1] if turned else shape
        if rows != out or columns > a[1]:
            raise AdapterError(f"VeRA vectors of {out} entries do not fit a base weight of shape {shape}")
        projection_a, projection_b = _projections(ctx, shared)
        left = wide(readers["vera_lambda_b"]()).reshape(-1, 1) * wide(projection_b[:out])
        right = wide(readers["vera_lambda_d"]()).reshape(-1, 1) * wide(projection_a[:, :columns])
        return (right.T, left.T) if turned else (left, right)

    shape = (a[1], out) if turned else (out, a[1])
    module = _module(ctx, group, "vera", shape=shape, r=r, load=lambda: factors(shape))
    if known_width:
        return module
    why = "VeRA: modules of several widths share one projection, and the file does not say how wide this one is"
    return _only_with_base(ctx, group, "vera", why, r=r, update=dense.vera(factors), shape=(0, 0))


def _projections(ctx: Context, shared: Group) -> tuple[Array, Array]:
    if "vera" not in ctx.kept:
        ctx.kept["vera"] = (ctx.reader(shared, "A")(), ctx.reader(shared, "B")())
    a, b = ctx.kept["vera"]
    return a, b


def hira_module(ctx: Context, group: Group) -> NeedsBase | Skipped:
    """Return HiRA's dW = W o (B A): nothing without the base weight (hira/layer.py)."""
    embedding = "hira_embedding_A" in group.keys
    names = ("hira_embedding_A", "hira_embedding_B") if embedding else ("hira_A", "hira_B")
    if (reason := ctx.misuse(group, *names)) is not None:
        return reason
    a, b = (ctx.info(group, name).shape for name in names)
    if len(a) < _MATRIX or len(a) != len(b) or a[0] != b[1] or any(n != 1 for n in b[2:]):
        return Skipped(ctx.name(group), f"factors of shape {list(a)} and {list(b)}: expected (r, in) and (out, r)")
    read_a, read_b = (ctx.reader(group, name) for name in names)
    turned = embedding or (ctx.config.fan_in_fan_out and len(a) == _MATRIX)

    def factors() -> tuple[Array, Array]:
        b_data, a_data = read_b().reshape(b[0], a[0]), read_a().reshape(a[0], -1)
        return (a_data.T, b_data.T) if turned else (b_data, a_data)

    inner = math.prod(a[1:])
    why = "HiRA multiplies the base weight, entry by entry: its update needs the base"
    shape = (inner, b[0]) if turned else (b[0], inner)
    return _only_with_base(ctx, group, "hira", why, r=a[0], update=dense.hira(factors), shape=shape)


def miss_module(ctx: Context, group: Group) -> NeedsBase | Skipped:
    """Return MiSS's update, whose width the file does not say (miss/layer.py)."""
    if (reason := ctx.misuse(group, "miss_block")) is not None:
        return reason
    shape = ctx.info(group, "miss_block").shape
    kind = ctx.config.init_weights
    if len(shape) != (3 if kind == "bat" else _MATRIX):
        return Skipped(ctx.name(group), f"a MiSS block of shape {list(shape)} does not fit init_weights={kind!r}")
    why = (
        "MiSS (bat) multiplies the base weight: its update needs the base"
        if kind == "bat"
        else "MiSS repeats its block over the input, and the file does not say how wide the input is"
    )
    r = shape[-1] if kind == "bat" else shape[0]
    update = dense.miss(ctx.reader(group, "miss_block"), kind)
    return _only_with_base(ctx, group, "miss", why, r=r, update=update, shape=(0, 0))


def _only_with_base(
    ctx: Context, group: Group, kind: str, why: str, *, r: int, update: DenseUpdate, shape: tuple[int, int]
) -> NeedsBase:
    def refuse() -> NoReturn:
        raise AdapterError(f"{ctx.name(group)}: {why}", advice="give the base model with --base")

    return NeedsBase(_module(ctx, group, kind, shape=shape, r=r, load=refuse, dense=update, note=why), why)


def _module(
    ctx: Context,
    group: Group,
    kind: str,
    *,
    shape: tuple[int, int],
    r: int,
    load: LoadFactors,
    **more: Any,  # fields of Module
) -> Module:
    """Return a module of a kind that has no alpha."""
    return Module(
        name=ctx.name(group),
        kind=kind,
        shape=shape,
        r=r,
        alpha=float(r),
        scale=1.0,
        params=sum(ctx.info(group, name).size for name in group.keys),
        load=load,
        base_name=f"{ctx.base_path(group.module)}.weight",
        adapter=ctx.adapter(group),
        **more,
    )
