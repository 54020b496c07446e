"""LyCORIS's types under kohya's names: LoHa and LoKr, and `dora_scale` on any of them.

`<name>.hada_w1_a`, `<name>.lokr_w2`, ... with a scalar `.alpha`; the scale is alpha over the rank, and 1 where alpha is
missing or 0, or where both of LoKr's factors are whole (`lycoris/modules/loha.py`, `lokr.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gradience.adapters import dense
from gradience.adapters.config import AdapterConfig, ScalingRules
from gradience.adapters.groups import Context, Group
from gradience.adapters.modules import Module, Skipped
from gradience.adapters.products import loha_module, lokr_module

__all__ = ["FIELDS", "product_module", "with_magnitude"]

FIELDS: Final = (
    *(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
)
_MATRIX: Final = 2


def product_module(ctx: Context, group: Group, alpha: float | None) -> Module | Skipped | None:
    """Return the module of a group of LoHa's or LoKr's tensors, or None where it is neither's."""
    is_loha = any(field.startswith("hada_") for field in group.keys)
    if not is_loha and not any(field.startswith("lokr_") for field in group.keys):
        return None
    nominal = _rank(ctx, group)
    whole = nominal is None
    config = AdapterConfig(alpha=1.0 if whole else alpha or float(nominal or 1), r=1)
    own = replace(ctx, config=config, rules=ScalingRules(config))
    factors = {field: name for field, name in group.keys.items() if field in FIELDS}
    build = loha_module if is_loha else lokr_module
    found = build(own, Group(group.module, keys=factors))
    if isinstance(found, Skipped):
        return found
    base_name = found.base_name if "." in group.module else None
    return replace(found, base_name=base_name, keys=group.keys, alpha_pattern=None, rank_pattern=None)


def _rank(ctx: Context, group: Group) -> int | None:
    """Return the rank that alpha is divided by, or None where no factor has one."""
    for field in ("hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if field in group.keys and (shape := ctx.info(group, field).shape):
            return shape[0]
    return None


def with_magnitude(ctx: Context, group: Group, module: Module) -> Module | Skipped:
    """Return the module with LyCORIS's `dora_scale`, norms over each output (out, 1, ...) or each input (1, in).

    Which of both it is the shape says; for a square weight too, since one axis is always 1.
    """
    if "magnitude" not in group.keys:
        return module
    rows, *rest = ctx.info(group, "magnitude").shape or (0,)
    by_output = rows == module.shape[0] and all(n == 1 for n in rest)
    by_input = rows == 1 and len(rest) == 1 and rest[0] == module.shape[1]
    if not by_output and not by_input:
        shape = list(ctx.info(group, "magnitude").shape)
        return Skipped(module.name, f"dora_scale of shape {shape} has a norm that is not of a row or a column")
    read = ctx.reader(group, "magnitude")
    update = dense.dora(module.load, module.scale, read, axis=1 if by_output else 0)
    axis = "each output, as PEFT's" if by_output else "each input, unlike PEFT's"
    note = f"dora_scale: the norm of {axis}"
    return replace(module, kind="dora", dense=update, magnitude=read, note=note)
