"""VeRA, HiRA and MiSS: updates that the file alone does not give, or only where widths are known.

Every formula is PEFT's `get_delta_weight` of the type.
"""

from __future__ import annotations

import math
from typing import Any, Final, NoReturn

from gradience.adapters import kinds
from gradience.adapters.kinds import as_float32
from gradience.adapters.layout import (
    Array,
    Context,
    DenseUpdate,
    FactoredUpdate,
    Group,
    LoadFactors,
    Module,
    NeedsBase,
    Skipped,
    UnsuitableError,
    reported,
)
from gradience.errors import AdapterError
from gradience.schema.audit import LeftoverReason

_BAT: Final = 3  # axes of MiSS's block where it multiplies the weight

# Modules whose input is the hidden state, so that all of them in one adapter are equally wide.
_HIDDEN_INPUT: Final = frozenset(
    {"q_proj", "k_proj", "v_proj", "qkv_proj", "query", "key", "value", "q_lin", "k_lin", "v_lin", "c_attn", "q", "k"}
    | {"v", "gate_proj", "up_proj", "query_key_value", "fc1", "c_fc", "to_q"}
)


def vera_modules(ctx: Context, groups: list[Group]) -> list[Module | NeedsBase | Skipped]:
    """VeRA's modules: dW = (lambda_b o B[:out]) (lambda_d o A[:, :in]), no scale (vera/layer.py).

    A and B are shared and as wide as the widest module; a file does not say how wide each module is, except
    where all must be equally wide.
    """
    a_key, b_key = ("base_model.vera_A", "base_model.vera_B")
    shared = Group("base_model", keys={"A": a_key, "B": b_key})
    if a_key not in ctx.source.tensors or b_key not in ctx.source.tensors:
        why = "VeRA's projections are not in the file (save_projection: false): only torch can draw them again"
        return [Skipped(ctx.name(group), why, LeftoverReason.CONFIG) for group in groups]
    try:
        ctx.require(shared, "A", "B")
    except UnsuitableError as error:
        return [Skipped(ctx.name(group), f"VeRA's projections: {error.reason}", error.cause) for group in groups]
    known = _equally_wide(ctx, groups)
    return [_vera(ctx, group, shared, known_width=known) for group in groups]


def _equally_wide(ctx: Context, groups: list[Group]) -> bool:
    """Whether all modules must take inputs of one width: one name or kin, and one height for each name.

    The same name at two heights is a second tower or a second stage, with a width of its own.
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
    module = _module(ctx, group, "vera", shape=shape, r=r, load=lambda: factors(shape))
    if known_width:
        return module
    why = "VeRA: modules of several widths share one projection, and the file does not say how wide this one is"
    return _only_with_base(ctx, group, "vera", why, r=r, factored=kinds.vera(factors), shape=(0, 0))


def _projections(ctx: Context, shared: Group) -> tuple[Array, Array]:
    # Hundreds of modules share the two: they are read once by each thread.
    if "vera" not in ctx.kept:
        ctx.kept["vera"] = (ctx.reader(shared, "A")(), ctx.reader(shared, "B")())
    a, b = ctx.kept["vera"]
    return a, b


@reported
def hira_module(ctx: Context, group: Group) -> NeedsBase:
    """HiRA's dW = W o (B A): nothing without the base weight (hira/layer.py)."""
    embedding = "hira_embedding_A" in group.keys
    names = ("hira_embedding_A", "hira_embedding_B") if embedding else ("hira_A", "hira_B")
    ctx.require(group, *names)
    a, b = (ctx.shape(group, name) for name in names)
    if len(a) < 2 or len(a) != len(b) or a[0] != b[1] or any(n != 1 for n in b[2:]):
        raise UnsuitableError(f"factors of shape {list(a)} and {list(b)}: expected (r, in) and (out, r)")
    read_a, read_b = (ctx.reader(group, name) for name in names)
    transposed = embedding or (ctx.config.fan_in_fan_out and len(a) == 2)

    def factors() -> tuple[Array, Array]:
        b_data, a_data = read_b().reshape(b[0], a[0]), read_a().reshape(a[0], -1)
        return (a_data.T, b_data.T) if transposed else (b_data, a_data)

    inner = math.prod(a[1:])
    why = "HiRA multiplies the base weight, entry by entry: its update needs the base"
    shape = (inner, b[0]) if transposed else (b[0], inner)
    return _only_with_base(ctx, group, "hira", why, r=a[0], update=kinds.hira(factors), shape=shape)


@reported
def miss_module(ctx: Context, group: Group) -> NeedsBase:
    """MiSS's update, whose width the file does not say (miss/layer.py)."""
    ctx.require(group, "miss_block")
    shape = ctx.shape(group, "miss_block")
    kind = ctx.config.init_weights
    if len(shape) != (_BAT if kind == "bat" else 2):
        raise UnsuitableError(f"a MiSS block of shape {list(shape)} does not fit init_weights={kind!r}")
    why = (
        "MiSS (bat) multiplies the base weight: its update needs the base"
        if kind == "bat"
        else "MiSS repeats its block over the input, and the file does not say how wide the input is"
    )
    # (r, out), or for bat (out / r, r, r).
    r = shape[-1] if kind == "bat" else shape[0]
    read = ctx.reader(group, "miss_block")
    if kind == "bat":
        return _only_with_base(ctx, group, "miss", why, r=r, update=kinds.bat(read), shape=(0, 0))
    return _only_with_base(ctx, group, "miss", why, r=r, factored=kinds.miss(read, kind), shape=(0, 0))


def _only_with_base(
    ctx: Context,
    group: Group,
    kind: str,
    why: str,
    *,
    r: int,
    shape: tuple[int, int],
    update: DenseUpdate | None = None,
    factored: FactoredUpdate | None = None,
) -> NeedsBase:
    whole = update if factored is None else kinds.product(factored)

    def refuse() -> NoReturn:
        raise AdapterError(f"{ctx.name(group)}: {why}", advice="give the base model with --base")

    module = _module(ctx, group, kind, shape=shape, r=r, load=refuse, dense=whole, factored=factored, note=why)
    return NeedsBase(module, why)


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
    """A module of a kind that has no alpha."""
    return Module(
        name=ctx.name(group),
        kind=kind,
        shape=shape,
        r=r,
        alpha=float(r),
        scale=1.0,
        params=ctx.size(group),
        load=load,
        base_name=f"{ctx.base_path(group.module)}.weight",
        adapter=ctx.adapter(group),
        keys=group.keys,
        **more,
    )
