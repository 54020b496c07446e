"""Several adapters side by side as text: in pairs, as wholes and by module; the checkpoints of one run as a series."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from gradience.blocks import (
    Block,
    Columns,
    Figure,
    Note,
    Section,
    Table,
    Title,
    listed,
    number,
    part,
    percent,
    shorter,
    table,
    words,
)
from gradience.blocks.plots import Cell, Grid, grid_of_cells
from gradience.blocks.text import as_text
from gradience.schema import Json
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

_LAYERS: Final = 6
MAPS: Final = 3  # pairs of adapters with maps on a page
_FACTOR: Final = 10.0  # a change of more than 1000 % reads better as a factor
_MODULES: Final = 5  # modules named in one line

_OVERLAP_COLUMNS: Final[Columns[tuple[Overlap, Overlap]]] = (
    ("k", ">5", lambda sides: str(sides[0].i)),
    ("output side", ">11", lambda sides: f"{sides[0].phi:.3f}"),
    ("by chance", ">9", lambda sides: f"{sides[0].chance:.3f}"),
    ("input side", ">10", lambda sides: f"{sides[1].phi:.3f}"),
    ("by chance", ">9", lambda sides: f"{sides[1].chance:.3f}"),
)

_ADAPTERS: Final[Columns[ComparedAdapter]] = (
    ("adapter", "", lambda a: a.name),
    ("type", "", lambda a: a.peft_type or a.format),
    ("r", ">4", lambda a: _span(a.rank)),
    ("s", ">7", lambda a: _span(a.scaling)),
    ("modules", ">7", lambda a: str(a.modules)),
    ("norm of dW", ">8", lambda a: number(a.frobenius_norm, ".4g")),
)
_PAIRS: Final[Columns[AdapterPair]] = (
    ("adapters", "", lambda pair: f"{pair.first} and {pair.second}"),
    ("cosine", ">6", lambda pair: number(pair.cosine, ".3f")),
    ("norm ratio", ">6", lambda pair: number(pair.norm_ratio, ".3g")),
    ("change", ">6", lambda pair: percent(pair.relative_change)),
    ("modules", ">7", lambda pair: f"{pair.compared:,}"),
    ("energy moved", ">6", lambda pair: percent(pair.energy_moved)),
)
_PAIRS_CAPTION: Final = (
    "Updates as a whole; energy moved: half the sum over layers of the change in their share of the norm squared"
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
) -> Iterator[Block]:
    """The comparison of adapters for a terminal.

    Args:
        report: what `compare_adapters` returns.
        top: how many modules to list for each pair, the least alike first.
        heatmap: whether to add a map of the cosine, layer by kind of module.
        unicode: whether the map may use block characters.
        verbose: whether to list every module, every difference in full, and every pair of a series.
    """
    yield Title("GRADIENCE COMPARE")
    yield _adapters(report)
    names = [adapter.name for adapter in report.adapters]
    n = len(report.differences)
    yield f"Configs differ in {n} fields:" if n else "Configs: the same in every field that matters"
    yield from (differences(report.differences, names, most=None if verbose else 60), "")
    yield from part("Cosine between the updates as a whole", _cosines(report))
    if report.series is not None:
        yield from (*_series(report.series), "")
    for pair in report.pairs if report.series is None or verbose else report.pairs[-1:]:
        yield from _pair(pair, top=len(pair.modules) if verbose else top)
        grid = cosine_grid(pair) if heatmap else None
        if grid is not None:
            yield from (Figure("Alike", grid._replace(unicode=unicode)), "  - is a cosine under 0", "")
    yield from _remarks(report)


def comparison_section(report: CompareAdaptersReport | None, figures: Sequence[Figure] = ()) -> list[Section]:
    """The part of a page that compares adapters, with figures of their weights; nothing without a comparison."""
    if report is None:
        return []
    pairs = report.pairs[::-1] if report.series is not None else report.pairs
    content = (
        _adapters(report),
        table(_PAIRS, report.pairs, caption=_PAIRS_CAPTION),
        *([] if report.series is None else _series(report.series)),
        *figures,
        *(
            Figure(f"Alike, {p.first} and {p.second}", grid._replace(top=1.0), wide=True)
            for p in pairs[:MAPS]
            if (grid := cosine_grid(p))
        ),
        *([Note(f"Maps of {len(pairs) - MAPS:,} further pairs are not drawn.")] if len(pairs) > MAPS else []),
        differences(report.differences, [adapter.name for adapter in report.adapters]),
        *_remarks(report),
    )
    return [Section("compare", "Compared by weights", content)]


def _adapters(report: CompareAdaptersReport) -> Table:
    return table(_ADAPTERS, report.adapters, caption="Adapters compared", told=_adapter)


def _adapter(a: ComparedAdapter) -> str:
    kind, norm = a.peft_type or a.format, number(a.frobenius_norm, ".4g")
    return f"{a.name}: {kind}  r={_span(a.rank)}  scaling={_span(a.scaling)}  {a.modules} modules  norm(dW)={norm}"


def _span(values: Sequence[float]) -> str:
    """The least and the largest of two values, or a single value if they are equal."""
    least, most = values
    return f"{least:.4g}" if least == most else f"{least:.4g}..{most:.4g}"


def differences(
    items: Sequence[ConfigDifference], names: Sequence[str], *, most: int | None = 60, label: str = "  "
) -> Table:
    """The fields in which configs differ, with at most so many characters of a value, each labelled on a terminal."""
    cells = [(item.key, *(_value(value, most) for value in item.values)) for item in items]
    lines = tuple(f"{label}{key}: {'  |  '.join(values)}" for key, *values in cells)
    columns = tuple((name, "") for name in ("field", *names))
    return Table(columns, tuple(cells), caption="Where their configurations differ", told=lines)


def _value(value: Json, most: int | None) -> str:
    return shorter(json.dumps(value, ensure_ascii=False), most)


def _cosines(report: CompareAdaptersReport) -> Iterator[Block]:
    """The table of cosines between all adapters, if there are more than two."""
    width = max((len(a.name) for a in report.adapters), default=0)
    for adapter, row in zip(report.adapters, report.cosines, strict=False) if len(report.adapters) > 2 else ():
        yield f"  {adapter.name:<{width}}  {'  '.join(f'{number(value):>5}' for value in row)}"


def _change(share: float | None) -> str:
    """A change as a share of the first adapter's norm: in per cent, or as a factor if it is many times the norm."""
    if share is None:
        return "-"
    return f"{percent(share)} of the first's norm" if share < _FACTOR else f"{share:.3g} times the first's norm"


def _pair(pair: AdapterPair, *, top: int) -> Iterator[Block]:
    yield f"{pair.first} -> {pair.second} ({pair.compared} modules in both):"
    if broken := sum(module.state == "non_finite" for module in pair.modules):
        yield f"  {broken} modules hold NaN or infinite numbers: nothing can be said of the whole"
    yield (
        f"  Whole update: cosine {number(pair.cosine, '.3f')}, norm ratio {number(pair.norm_ratio, '.3g')},"
        f" change {_change(pair.relative_change)}"
    )
    if pair.output_side:
        yield "  Shared directions phi(k, k), mean over modules (1: the same span), and by chance:"
        yield table(_OVERLAP_COLUMNS, zip(pair.output_side, pair.input_side, strict=False))
    if pair.energy_moved is not None:
        yield _energy(pair)
    yield from _modules(pair.modules, top)
    yield ""


def _energy(pair: AdapterPair) -> str:
    # rounded, or the last digits would say which of two layers comes first whose shares moved against each other
    moved = sorted(pair.layers, key=lambda share: -round(abs(share.second - share.first), 6))[:_LAYERS]
    words = [("other" if s.layer is None else s.layer, f"{s.first:.1%}", f"{s.second:.1%}") for s in moved]
    shares = ", ".join(f"{layer} {first}>{second}" for layer, first, second in words if first != second)
    return f"  Energy by layer: {percent(pair.energy_moved)} moved" + (f" (layer {shares})" if shares else "")


def _phi(side: SideOverlap | None) -> str:
    return f"{side.overlaps[-1].phi:.3f}" if side else "-"


_MODULE_COLUMNS: Final[Columns[ModulePair]] = (
    ("cosine", ">6", lambda row: number(row.cosine, "+.3f")),
    ("norm x", ">7", lambda row: number(row.norm_ratio, ".3g")),
    ("phi out", ">7", lambda row: _phi(row.output_side)),
    ("phi in", ">6", lambda row: _phi(row.input_side)),
    ("module", "", lambda row: row.name + ("" if row.state == "ok" else f": {words(row.state)}")),
)


def _modules(modules: Sequence[ModulePair], top: int) -> Iterator[Block]:
    """The modules that are least alike; modules without a cosine, which are broken or zero, come first."""
    if not modules or not top:
        return
    # Those shown as equal by name: beyond the digits shown, the order would be the processor's.
    order = sorted(modules, key=lambda row: (row.state == "ok", 2.0 if row.cosine is None else round(row.cosine, 3)))
    yield f"  Modules, the least alike first (top {min(top, len(modules))} of {len(modules)}):"
    yield table(_MODULE_COLUMNS, order[:top], indent=4)


def _series(series: CheckpointSeries) -> Iterator[Block]:
    yield f"Series of {len(series.points)} checkpoints:"
    yield table(_SERIES_COLUMNS, series.points)
    bar = f"cosine to the final update >= {series.threshold:g}, a heuristic"
    if series.settled is None:
        yield f"  The update turns until the last checkpoint (none before it has {bar})"
    else:
        yield f"  The update stops turning at {series.settled} ({bar}): what follows mostly rescales it"
    if series.rank_growth is not None:
        yield f"  Mean effective rank, last over first: {series.rank_growth:.2f}"


def _remarks(report: CompareAdaptersReport) -> Iterator[Block]:
    if report.only_in:
        names = [f"{item.module} ({', '.join(item.adapters)})" for item in report.only_in]
        yield f"Not in all ({len(names)} modules): {listed(names, _MODULES, separator='; ')}"
    if report.different_shapes:
        yield f"Of different shapes, not compared: {listed(report.different_shapes, _MODULES)}"
    yield from (f"Note: {note}." for note in report.notes)
    yield "Two runs differ by their seed alone as well; a cosine of weights does not measure behaviour."


def cosine_grid(pair: AdapterPair) -> Grid | None:
    """The modules' cosines by kind and layer, for a map from 0 to 1; None if no module in a layer has one."""
    cells = [(row.name, row.layer, _cell(row)) for row in pair.modules if row.layer is not None]
    grid = grid_of_cells(f"cosine of {pair.first} and {pair.second}", cells)
    legend, outside = "-: under 0, 0: the update of one is zero, !: not finite", len(pair.modules) - len(cells)
    return None if grid is None else grid._replace(legend=legend, outside=outside)


def _cell(row: ModulePair) -> Cell:
    """The cosine of a module's two updates; `!` if one is not finite, `0` if one is zero."""
    if row.state == "non_finite":
        return "!"
    return "0" if row.cosine is None else row.cosine
