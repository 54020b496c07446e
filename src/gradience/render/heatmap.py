"""A map of an adapter in plain text: layers to the right, kinds of module downwards, one character each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from gradience.render.text import clean, number
from gradience.schema.audit import ModuleAudit

Quantity: TypeAlias = Literal["norm", "utilization", "k90", "udr"]

_UNICODE: Final = "▁▂▃▄▅▆▇█"
_ASCII: Final = ".:-=+*#@"
_ABSENT: Final = " "
_WIDTH: Final = 100
_LABEL: Final = 24
_TICK: Final = 10  # a mark above every tenth layer

_Read: TypeAlias = Callable[[ModuleAudit], float | None]
_READ: Final[dict[str, tuple[str, _Read]]] = {
    "norm": ("Frobenius norm of dW", lambda m: float(m.frobenius_norm)),
    "utilization": ("utilization", lambda m: m.utilization),
    "k90": ("energy rank k@90%", lambda m: m.energy_rank_90),
    "udr": ("UDR", lambda m: m.udr if isinstance(m.udr, float) else None),
}
Cell: TypeAlias = float | str  # a value; or 0, ! or a space for what has none


class Grid(NamedTuple):
    """A quantity of the modules by kind and layer."""

    title: str
    rows: dict[str, dict[int, Cell]]  # by the kind's name, then by layer
    layers: list[int]
    top: float  # the highest value


def grid_of(modules: Sequence[ModuleAudit], of: Quantity = "norm") -> Grid | None:
    """Return the quantity by kind of module and layer, or None where no module in a layer has a value.

    A module that is zero is `0`, one that is not finite `!`. Experts of one parameter are averaged.
    """
    title, read = _READ[of]
    return grid_of_cells(title, [(m.name, m.layer, _cell(m, read)) for m in modules if m.layer is not None])


def grid_of_cells(title: str, cells: Sequence[tuple[str, int, Cell]]) -> Grid | None:
    """Return a quantity given as (module's name, layer, cell) by kind and layer, or None where no cell has a value."""
    rows = _rows(cells)
    values = [cell for row in rows.values() for cell in row.values() if isinstance(cell, float)]
    if not values:
        return None
    return Grid(title, rows, sorted({layer for row in rows.values() for layer in row}), max(values))


def heatmap(modules: Sequence[ModuleAudit], of: Quantity = "norm", *, unicode: bool = True) -> list[str]:
    """Return the lines of the map; a module that is zero shows as 0, one that is not finite as !.

    Modules outside any layer are left out. Experts of one parameter are averaged.
    """
    grid = grid_of(modules, of)
    if grid is None:
        return [f"Heat map of {_READ[of][0]}: no module lies in a layer, or none has a value"]
    return grid_lines(grid, unicode=unicode)


def grid_lines(grid: Grid, *, unicode: bool = True) -> list[str]:
    """Return the lines of the map of a quantity."""
    ramp = _UNICODE if unicode else _ASCII
    span = f"from 0 ({ramp[0]}) to {number(grid.top, '.3g')} ({ramp[-1]})"
    return [f"Heat map of {grid.title}, layer x module, {span}:", *_blocks(grid, ramp)]


def _rows(cells: Sequence[tuple[str, int, Cell]]) -> dict[str, dict[int, Cell]]:
    """Return the cells by label and layer, in the order of the modules."""
    kinds = [_kind(name) for name, _, _ in cells]
    shared = _shared(kinds)
    found: dict[str, dict[int, list[Cell]]] = {}
    for (_, layer, cell), kind in zip(cells, kinds, strict=True):
        label = clean(".".join(kind[shared:]))
        found.setdefault(label, {}).setdefault(layer, []).append(cell)
    return {label: {layer: _mean(some) for layer, some in row.items()} for label, row in found.items()}


def _kind(name: str) -> list[str]:
    """Return the parts of a module's path without numbers: equal in every layer."""
    return [part for part in name.partition("[")[0].split(".") if not part.isdigit()]


def _shared(kinds: Sequence[list[str]]) -> int:
    """Return how many leading parts all paths share, leaving two to read."""
    least = min(map(len, kinds), default=0) - 2
    return next((i for i in range(max(least, 0)) if len({kind[i] for kind in kinds}) > 1), max(least, 0))


def _cell(module: ModuleAudit, read: _Read) -> Cell:
    if module.state == "zero":
        return "0"
    if module.state == "non_finite":
        return "!"
    value = read(module)
    return _ABSENT if value is None else float(value)


def _mean(cells: Sequence[Cell]) -> Cell:
    values = [cell for cell in cells if isinstance(cell, float)]
    return sum(values) / len(values) if values else cells[0]


def _blocks(grid: Grid, ramp: str) -> Iterator[str]:
    """Yield the map, broken into blocks of as many layers as fit the width."""
    label = min(max(map(len, grid.rows)), _LABEL)
    room = _WIDTH - label - 4
    for start in range(0, len(grid.layers), room):
        layers = grid.layers[start : start + room]
        yield f"  {'':<{label}}  {_ruler(layers)}".rstrip()
        for name, row in grid.rows.items():
            cells = "".join(_glyph(row.get(layer, _ABSENT), ramp, grid.top) for layer in layers)
            yield f"  {name[-label:]:<{label}}  {cells}".rstrip()


def _ruler(layers: Sequence[int]) -> str:
    """Return the number of the first and of every tenth layer, and of each after a gap, above its column."""
    line = ""
    for place, layer in enumerate(layers):
        marked = place == 0 or layer % _TICK == 0 or layers[place - 1] != layer - 1
        if marked and (not line or len(line) < place):
            line = line.ljust(place) + str(layer)
    return line


def _glyph(cell: Cell, ramp: str, top: float) -> str:
    if isinstance(cell, str):
        return cell
    share = cell / top if top > 0.0 else 0.0
    return ramp[min(int(share * len(ramp)), len(ramp) - 1)]
