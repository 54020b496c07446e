"""Several runs, or several adapters, side by side as text.

Up to four runs are columns, more are rows, with their stories, differing settings and losses over the same steps.
Adapters are compared in pairs, as wholes and by module; the checkpoints of one run as a series.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from gradience.render import Columns, as_text, banner, clean, listed, number, percent, shorter, table, words
from gradience.render.plots import Cell, Grid, grid_lines, grid_of_cells
from gradience.schema.compare import (
    AdapterPair,
    CheckpointPoint,
    CheckpointSeries,
    CompareAdaptersReport,
    ComparedAdapter,
    ConfigDifference,
    ModulePair,
    Overlap,
    SideOverlap,
)
from gradience.schema.document import SEVERITIES

_SIDE_BY_SIDE: Final = 4  # runs, at most, that are shown side by side
_COLUMN: Final = 16
_LABEL: Final = 22
_NAME: Final = 28
_VALUE: Final = 40  # characters of a setting among runs
_JSON_VALUE: Final = 60  # characters of a setting among adapters
_SHOWN_IDS: Final = 2  # findings that fit a column
_GRAVE: Final = SEVERITIES.index("warning")

_LAYERS: Final = 6
_FACTOR: Final = 10.0  # a change of more than 1000 % reads better as a factor
_MODULES: Final = 5  # modules named in one line
_OPPOSED: Final = "-"  # stands for a cosine below 0 on the map

_OVERLAP_COLUMNS: Final[Columns[tuple[Overlap, Overlap]]] = (
    ("k", ">5", lambda sides: str(sides[0].i)),
    ("output side", ">11", lambda sides: f"{sides[0].phi:.3f}"),
    ("by chance", ">9", lambda sides: f"{sides[0].chance:.3f}"),
    ("input side", ">10", lambda sides: f"{sides[1].phi:.3f}"),
    ("by chance", ">9", lambda sides: f"{sides[1].chance:.3f}"),
)

_SERIES_COLUMNS: Final[Columns[CheckpointPoint]] = (
    ("step", ">7", lambda point: number(point.step, "d")),
    ("norm(dW)", ">8", lambda point: number(point.frobenius_norm, ".4g")),
    ("cos to final", ">12", lambda point: number(point.cosine_to_final, ".4f")),
    ("cos to prev.", ">12", lambda point: number(point.cosine_to_previous, ".4f")),
    ("change", ">6", lambda point: percent(point.relative_change)),
    ("eff. rank", ">9", lambda point: number(point.effective_rank_mean)),
    ("stable", ">6", lambda point: number(point.stable_rank_mean)),
    ("k@90%", ">5", lambda point: number(point.energy_rank_90_mean)),
)


@as_text
def compare_adapters_text(
    report: CompareAdaptersReport, *, top: int = 5, heatmap: bool = False, unicode: bool = True, verbose: bool = False
) -> Iterator[str]:
    """The comparison of adapters for a terminal.

    Args:
        report: what `compare_adapters` returns.
        top: how many modules to list for each pair, the least alike first.
        heatmap: whether to add a map of the cosine, layer by kind of module.
        unicode: whether the map may use block characters.
        verbose: whether to list every module, every difference in full, and every pair of a series.
    """
    yield from banner("GRADIENCE COMPARE")
    yield from map(_adapter, report.adapters)
    n = len(report.differences)
    yield f"Configs differ in {n} fields:" if n else "Configs: the same in every field that matters"
    yield from (f"  {difference_text(item, full=verbose)}" for item in report.differences)
    yield ""
    yield from _cosines(report)
    if report.series is not None:
        yield from _series(report.series)
    for pair in report.pairs if report.series is None or verbose else report.pairs[-1:]:
        yield from _pair(pair, top=len(pair.modules) if verbose else top)
        grid = cosine_grid(pair) if heatmap else None
        if grid is not None:
            yield from grid_lines(grid, unicode=unicode)
            yield f"  {_OPPOSED} is a cosine under 0"
            yield ""
    yield from _remarks(report)


def _adapter(adapter: ComparedAdapter) -> str:
    return (
        f"{clean(adapter.name)}: {adapter.peft_type or adapter.format}  r={span(adapter.rank, '..')}"
        f"  scaling={span(adapter.scaling, '..')}  {adapter.modules} modules"
        f"  norm(dW)={number(adapter.frobenius_norm, '.4g')}"
    )


def span(values: Sequence[float], separator: str) -> str:
    """The least and the largest of two values, or a single value if they are equal."""
    least, most = values
    return f"{least:.4g}" if least == most else f"{least:.4g}{separator}{most:.4g}"


def difference_text(item: ConfigDifference, *, full: bool = False) -> str:
    """A field of the configs with its values side by side, long ones cut unless `full`."""
    values = [msgspec.json.encode(value).decode() for value in item.values]
    return clean(f"{item.key}: {'  |  '.join(v if full else shorter(v, _JSON_VALUE) for v in values)}")


def _cosines(report: CompareAdaptersReport) -> Iterator[str]:
    """The table of cosines between all adapters, if there are more than two."""
    if len(report.adapters) <= 2 or not report.cosines:
        return
    width = max(len(clean(a.name)) for a in report.adapters)
    yield "Cosine between the updates as a whole:"
    for adapter, row in zip(report.adapters, report.cosines, strict=True):
        yield f"  {clean(adapter.name):<{width}}  {'  '.join(f'{number(value):>5}' for value in row)}"
    yield ""


def _change(share: float | None) -> str:
    """A change as a share of the first adapter's norm: in per cent, or as a factor if it is many times the norm."""
    if share is None:
        return "-"
    return f"{percent(share)} of the first's norm" if share < _FACTOR else f"{share:.3g} times the first's norm"


def _pair(pair: AdapterPair, *, top: int) -> Iterator[str]:
    yield f"{clean(pair.first)} -> {clean(pair.second)} ({pair.compared} modules in both):"
    if broken := sum(module.state == "non_finite" for module in pair.modules):
        yield f"  {broken} modules hold NaN or infinite numbers: nothing can be said of the whole"
    yield (
        f"  Whole update: cosine {number(pair.cosine, '.3f')}, norm ratio {number(pair.norm_ratio, '.3g')},"
        f" change {_change(pair.relative_change)}"
    )
    if pair.output_side:
        yield "  Shared directions phi(k, k), mean over modules (1: the same span), and by chance:"
        yield from table(_OVERLAP_COLUMNS, zip(pair.output_side, pair.input_side, strict=False))
    if pair.energy_moved is not None:
        yield _energy(pair)
    yield from _modules(pair.modules, top)
    yield ""


def _energy(pair: AdapterPair) -> str:
    moved = sorted(pair.layers, key=lambda share: -abs(share.second - share.first))[:_LAYERS]
    shares = ", ".join(
        f"{'other' if s.layer is None else s.layer} {s.first:.1%}>{s.second:.1%}" for s in moved if s.first != s.second
    )
    return f"  Energy by layer: {percent(pair.energy_moved)} moved" + (f" (layer {shares})" if shares else "")


def _phi(side: SideOverlap | None) -> str:
    return f"{side.overlaps[-1].phi:.3f}" if side else "-"


_MODULE_COLUMNS: Final[Columns[ModulePair]] = (
    ("cosine", ">6", lambda row: number(row.cosine, "+.3f")),
    ("norm x", ">7", lambda row: number(row.norm_ratio, ".3g")),
    ("phi out", ">7", lambda row: _phi(row.output_side)),
    ("phi in", ">6", lambda row: _phi(row.input_side)),
    ("module", "", lambda row: clean(row.name) + ("" if row.state == "ok" else f": {words(row.state)}")),
)


def _modules(modules: Sequence[ModulePair], top: int) -> Iterator[str]:
    """The modules that are least alike; modules without a cosine, which are broken or zero, come first."""
    if not modules or not top:
        return
    # Those shown as equal by name: beyond the digits shown, the order would be the processor's.
    order = sorted(modules, key=lambda row: (row.state == "ok", 2.0 if row.cosine is None else round(row.cosine, 3)))
    yield f"  Modules, the least alike first (top {min(top, len(modules))} of {len(modules)}):"
    yield from table(_MODULE_COLUMNS, order[:top], indent=4)


def _series(series: CheckpointSeries) -> Iterator[str]:
    yield f"Series of {len(series.points)} checkpoints:"
    yield from table(_SERIES_COLUMNS, series.points)
    bar = f"cosine to the final update >= {series.threshold:g}, a heuristic"
    if series.settled is None:
        yield f"  The update turns until the last checkpoint (none before it has {bar})"
    else:
        yield f"  The update stops turning at {clean(series.settled)} ({bar}): what follows mostly rescales it"
    if series.rank_growth is not None:
        yield f"  Mean effective rank, last over first: {series.rank_growth:.2f}"
    yield ""


def _remarks(report: CompareAdaptersReport) -> Iterator[str]:
    if report.only_in:
        names = [f"{item.module} ({', '.join(item.adapters)})" for item in report.only_in]
        yield f"Not in all ({len(names)} modules): {listed(names, _MODULES, separator='; ')}"
    if report.different_shapes:
        yield f"Of different shapes, not compared: {listed(report.different_shapes, _MODULES)}"
    yield from (f"Note: {clean(note)}." for note in report.notes)
    yield "Two runs differ by their seed alone as well; a cosine of weights does not measure behaviour."


def cosine_grid(pair: AdapterPair) -> Grid | None:
    """The modules' cosines by kind and layer, for a map; None if no module in a layer has one."""
    return grid_of_cells(
        f"cosine, {pair.first} and {pair.second}",
        [(row.name, row.layer, _cell(row)) for row in pair.modules if row.layer is not None],
    )


def _cell(row: ModulePair) -> Cell:
    cell = cosine_cell(row)
    return _OPPOSED if isinstance(cell, float) and cell < 0.0 else cell


def cosine_cell(row: ModulePair) -> Cell:
    """The cosine of a module's two updates; `!` if one is not finite, `0` if one is zero."""
    if row.state == "non_finite":
        return "!"
    return "0" if row.cosine is None else row.cosine
