"""Maps of an adapter's modules: a quantity of an audit, by kind of module and layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias

from gradience.blocks import Block, Figure
from gradience.blocks.plots import Cell, Grid, grid_of_cells
from gradience.schema.audit import ModuleAudit

Quantity: TypeAlias = Literal["norm", "utilization", "k90", "udr"]

_READ: Final[dict[Quantity, tuple[str, Callable[[ModuleAudit], float | None]]]] = {
    "norm": ("Frobenius norm of dW", lambda m: float(m.frobenius_norm or 0.0)),
    "utilization": ("utilization", lambda m: m.utilization),
    "k90": ("energy rank k@90%", lambda m: m.energy_rank_90),
    "udr": ("UDR", lambda m: m.udr if isinstance(m.udr, float) else None),
}


def grid_of(modules: Sequence[ModuleAudit], of: Quantity = "norm", *, unicode: bool = True) -> Grid | None:
    """The quantity by kind of module and layer, or None if no module in a layer has a value.

    A zero update is shown as `0`, a non-finite one as `!`. Experts of one parameter are averaged.
    """
    title, read = _READ[of]
    grid = grid_of_cells(title, [(m.name, m.layer, _cell(m, read)) for m in modules if m.layer is not None])
    outside = sum(m.layer is None for m in modules)
    legend = "0: never trained, !: not finite"
    return None if grid is None else grid._replace(legend=legend, outside=outside, unicode=unicode)


def heatmap(modules: Sequence[ModuleAudit], of: Quantity = "norm", *, unicode: bool = True) -> Block:
    """The map of a quantity for a terminal, or a sentence where there is none."""
    grid = grid_of(modules, of, unicode=unicode)
    if grid is None:
        return f"Heat map of {_READ[of][0]}: no module lies in a layer, or none has a value"
    return Figure("Map", grid)


def _cell(module: ModuleAudit, read: Callable[[ModuleAudit], float | None]) -> Cell:
    if module.state == "zero":
        return "0"
    if module.state == "non_finite":
        return "!"
    value = None if module.state == "not_known" else read(module)
    return " " if value is None else float(value)
