"""Adapters side by side as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from gradience.render.heatmap import Cell, Grid, grid_lines, grid_of_cells
from gradience.render.text import banner, clean, number, percent
from gradience.schema.compare import (
    AdapterPair,
    AlignedRow,
    CheckpointSeries,
    CompareAdaptersReport,
    ComparedAdapter,
    ComparedRun,
    CompareReport,
    ConfigDifference,
    ModulePair,
    Overlap,
)
from gradience.schema.findings import SEVERITIES
from gradience.schema.scalars import Json, NonFinite

_SIDE_BY_SIDE: Final = 4  # runs
_COLUMN: Final = 16
_LABEL: Final = 22
_NAME: Final = 28
_VALUE: Final = 40  # characters of a configuration's value
_GRAVE: Final = SEVERITIES.index("warning")


def compare_text(report: CompareReport, *, verbose: bool = False) -> str:
    """Return the comparison for a terminal; `verbose` adds each run's findings of severity info."""
    return "\n".join(_lines(report, verbose=verbose))


def _lines(report: CompareReport, *, verbose: bool) -> Iterator[str]:
    yield from banner(f"GRADIENCE MONITOR: {len(report.runs)} RUNS")
    if len(report.runs) <= _SIDE_BY_SIDE:
        yield from _columns(report.runs)
        yield from _signals(report.runs)
    else:
        yield from _table(report.runs)
    yield ""
    yield "Stories:"
    for run in report.runs:
        yield f"  {clean(run.name)}: {clean(run.story)}"
    yield ""
    yield from _differences(report)
    if len(report.runs) <= _SIDE_BY_SIDE:
        yield from _by_step("Training loss by step (medians up to it):", report, lambda row: row.train)
        yield from _by_step("Held-out loss by step (newest up to it):", report, lambda row: row.held_out)
    yield from _findings(report.runs, verbose=verbose)
    for unread in report.unread:
        yield f"Not read: {clean(unread.file)}: {clean(unread.reason)}"
    for note in report.notes:
        yield f"Note: {clean(note)}."
    yield "One run of each is no experiment: a difference may be the seed's. Verify on held-out data."


def _steps(run: ComparedRun) -> str:
    if run.last_step is None:
        return "-"
    return f"{run.last_step} of {run.max_steps}" if run.max_steps else str(run.last_step)


def _at(value: float | NonFinite | None, step: int | None) -> str:
    return "-" if value is None else f"{number(value, '.4g')} @ {step}"


def _counted(run: ComparedRun) -> str:
    grave = [f.id for f in run.findings if SEVERITIES.index(f.severity) >= _GRAVE]
    return (
        " ".join(grave[:2]) + (f" +{len(grave) - 2}" if len(grave) > 2 else "") if grave else "none grave"
    )  # what a column holds


_MEASURES: Final[dict[str, Callable[[ComparedRun], str]]] = {
    "Status": lambda run: run.status.replace("_", " "),
    "Step": _steps,
    "Loss, first": lambda run: number(run.first_loss, ".4g"),
    "Loss, last": lambda run: number(run.last_loss, ".4g"),
    "Loss, lowest": lambda run: _at(run.min_loss, run.min_loss_step),
    "Held-out loss, last": lambda run: number(run.eval_loss, ".4g"),
    "Held-out loss, best": lambda run: _at(run.best_eval_loss, run.best_eval_step),
    "Held-out accuracy": lambda run: percent(run.accuracy),
    "Gap": lambda run: "-" if run.gap is None else f"{number(run.gap)}x",
    "Peak LR": lambda run: number(run.lr, ".3g"),
    "r": lambda run: "-" if run.r is None else str(run.r),
    "alpha": lambda run: number(run.alpha, "g"),
    "Utilization": lambda run: percent(run.utilization_mean),
    "Findings": _counted,
}


def _columns(runs: Sequence[ComparedRun]) -> Iterator[str]:
    yield f"{'':<{_LABEL}}" + "".join(_cell(clean(run.name)) for run in runs)
    for label, measure in _MEASURES.items():
        cells = [clean(measure(run)) for run in runs]
        if any(cell != "-" for cell in cells):
            yield f"{label:<{_LABEL}}" + "".join(map(_cell, cells))


def _signals(runs: Sequence[ComparedRun]) -> Iterator[str]:
    for name in sorted({name for run in runs for name in run.signals}):
        cells = "".join(_cell(number(run.signals.get(name), ".4g")) for run in runs)
        yield f"{_cut(clean(name), _LABEL - 1):<{_LABEL}}{cells}"


def _cell(text: str) -> str:
    return f"  {_cut(text, _COLUMN):>{_COLUMN}}"


def _cut(text: str, width: int) -> str:
    """Return the text's end where it is too long: names of runs differ there."""
    return text if len(text) <= width else ".." + text[2 - width :]


def _table(runs: Sequence[ComparedRun]) -> Iterator[str]:
    head = f"{'run':<{_NAME}} {'step':>12} {'loss':>9} {'held-out':>9} {'best':>9} {'gap':>7} {'lr':>8} {'r':>4}"
    yield f"{head}  status, findings"
    for run in runs:
        gap = "-" if run.gap is None else f"{number(run.gap)}x"
        grave = _counted(run)
        yield (
            f"{_cut(clean(run.name), _NAME):<{_NAME}} {_steps(run):>12} {number(run.last_loss, '.4g'):>9}"
            f" {number(run.eval_loss, '.4g'):>9} {number(run.best_eval_loss, '.4g'):>9} {gap:>7}"
            f" {number(run.lr, '.3g'):>8} {'-' if run.r is None else run.r:>4}"
            f"  {run.status.replace('_', ' ')}" + ("" if grave == "none grave" else f", {grave}")
        )


def _differences(report: CompareReport) -> Iterator[str]:
    if not report.differences:
        yield "Configuration: the same in all runs, as far as recorded"
        yield ""
        return
    yield f"Configuration, what differs ({len(report.differences)}):"
    side_by_side = len(report.runs) <= _SIDE_BY_SIDE
    for item in report.differences:
        values = [_value(value) for value in item.values]
        if side_by_side and all(len(value) <= _COLUMN for value in values):
            yield f"  {clean(item.key):<{_LABEL - 2}}" + "".join(map(_cell, values))
        else:
            yield f"  {clean(item.key)}: {' | '.join(_cut(value, _VALUE) for value in dict.fromkeys(values))}"
    yield ""


def _value(value: Json) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else clean(str(value))


def _by_step(
    title: str, report: CompareReport, column: Callable[[AlignedRow], Sequence[float | NonFinite | None]]
) -> Iterator[str]:
    rows = [(row.step, column(row)) for row in report.aligned]
    rows = [(step, values) for step, values in rows if any(value is not None for value in values)]
    if not rows:
        return
    yield title
    for step, values in rows:
        yield f"  {step:<{_LABEL - 2}}" + "".join(_cell(number(value, ".4g")) for value in values)
    yield ""


def _findings(runs: Sequence[ComparedRun], *, verbose: bool) -> Iterator[str]:
    shown = [(run, f) for run in runs for f in run.findings if verbose or SEVERITIES.index(f.severity) >= _GRAVE]
    if not shown:
        return
    yield "Findings:"
    for run, finding in shown:
        yield f"  {clean(run.name)}  [{finding.severity.upper()}] {finding.id}: {clean(finding.message)}"
    yield ""


_LAYERS: Final = 6
_NAMED: Final = 5
_COMPARE_VALUE: Final = 60  # characters of a configuration's value
_OPPOSED: Final = "-"


def compare_adapters_text(
    report: CompareAdaptersReport, *, top: int = 5, heatmap: bool = False, unicode: bool = True, verbose: bool = False
) -> str:
    """Return the comparison for a terminal.

    Args:
        report: what `compare_adapters` returns.
        top: how many modules to list of each pair, the least alike first.
        heatmap: add a map of the cosine, layer by kind of module.
        unicode: whether the map may use block characters.
        verbose: list every module and every difference in full.
    """
    return "\n".join(_compare_lines(report, top=top, heatmap=heatmap, unicode=unicode, verbose=verbose))


def _compare_lines(
    report: CompareAdaptersReport, *, top: int, heatmap: bool, unicode: bool, verbose: bool
) -> Iterator[str]:
    yield from banner("GRADIENCE COMPARE")
    for adapter in report.adapters:
        yield _adapter(adapter)
    yield ""
    yield from _compare_differences(report.differences, verbose=verbose)
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
    yield from _rest(report)


def _adapter(adapter: ComparedAdapter) -> str:
    return (
        f"{clean(adapter.name)}: {adapter.peft_type or adapter.format}  r={_span(adapter.rank, 'd')}"
        f"  scaling={_span(adapter.scaling, '.4g')}  {adapter.modules} modules"
        f"  norm(dW)={number(adapter.frobenius_norm, '.4g')}"
    )


def _span(values: Sequence[float], spec: str) -> str:
    least, most = values
    return format(least, spec) if least == most else f"{format(least, spec)}..{format(most, spec)}"


def _compare_differences(differences: Sequence[ConfigDifference], *, verbose: bool) -> Iterator[str]:
    if not differences:
        yield "Configs: the same in every field that matters"
    else:
        yield f"Configs differ in {len(differences)} fields:"
    for item in differences:
        yield f"  {difference_text(item, whole=verbose)}"
    yield ""


def difference_text(item: ConfigDifference, *, whole: bool = False) -> str:
    """Return a field of the configs with its values side by side, long ones cut unless `whole`."""
    values = [msgspec.json.encode(value).decode() for value in item.values]
    shown = values if whole else [v if len(v) <= _COMPARE_VALUE else f"{v[: _COMPARE_VALUE - 3]}..." for v in values]
    return clean(f"{item.key}: {'  |  '.join(shown)}")


def _cosines(report: CompareAdaptersReport) -> Iterator[str]:
    """Yield the table of every adapter with every other, where there are more than two."""
    if len(report.adapters) <= 2 or not report.cosines:
        return
    width = max(len(clean(a.name)) for a in report.adapters)
    yield "Cosine between the updates as a whole:"
    for adapter, row in zip(report.adapters, report.cosines, strict=True):
        yield f"  {clean(adapter.name):<{width}}  {'  '.join(f'{number(value):>5}' for value in row)}"
    yield ""


def _pair(pair: AdapterPair, *, top: int) -> Iterator[str]:
    yield f"{clean(pair.first)} -> {clean(pair.second)} ({pair.compared} modules in both):"
    yield (
        f"  Whole update: cosine {number(pair.cosine, '.3f')}, norm ratio {number(pair.norm_ratio, '.3g')},"
        f" change {percent(pair.relative_change)} of the first's norm"
    )
    yield from _overlaps(pair)
    yield from _energy(pair)
    yield from _modules(pair.modules, top=top)
    yield ""


def _overlaps(pair: AdapterPair) -> Iterator[str]:
    if not pair.output_side:
        return
    yield "  Shared directions phi(k, k), mean over modules (1: the same span), and by chance:"
    yield "      k  output side  by chance  input side  by chance"
    for out, inner in zip(pair.output_side, pair.input_side, strict=False):
        yield (f"  {out.i:>5}  {out.phi:>11.3f}  {out.chance:>9.3f}  {inner.phi:>10.3f}  {inner.chance:>9.3f}")


def _energy(pair: AdapterPair) -> Iterator[str]:
    if pair.energy_moved is None:
        return
    moved = sorted(pair.layers, key=lambda share: -abs(share.second - share.first))[:_LAYERS]
    told = ", ".join(
        f"{'other' if s.layer is None else s.layer} {s.first:.1%}>{s.second:.1%}" for s in moved if s.first != s.second
    )
    yield f"  Energy by layer: {percent(pair.energy_moved)} moved" + (f" (layer {told})" if told else "")


def _modules(rows: Sequence[ModulePair], *, top: int) -> Iterator[str]:
    if not rows or not top:
        return
    order = sorted(rows, key=lambda row: (row.state == "ok", row.cosine if row.cosine is not None else 2.0))
    yield f"  Modules, the least alike first (top {min(top, len(rows))} of {len(rows)}):"
    yield "    cosine   norm x  phi out  phi in  module"
    for row in order[:top]:
        if row.state != "ok":
            yield f"    {row.state.replace('_', '-'):>32}  {clean(row.name)}"
            continue
        out, inner = (side.overlaps[-1] if side else None for side in (row.output_side, row.input_side))
        yield (
            f"    {number(row.cosine, '+.3f'):>6}  {number(row.norm_ratio, '.3g'):>7}  {_phi(out):>7}  {_phi(inner):>6}"
            f"  {clean(row.name)}"
        )


def _phi(overlap: Overlap | None) -> str:
    return "-" if overlap is None else f"{overlap.phi:.3f}"


def _series(series: CheckpointSeries) -> Iterator[str]:
    yield f"Series of {len(series.points)} checkpoints:"
    yield "     step  norm(dW)  cos to final  cos to prev.  change  eff. rank  stable  k@90%"
    for point in series.points:
        yield (
            f"  {point.step if point.step is not None else '-':>7}  {number(point.frobenius_norm, '.4g'):>8}"
            f"  {number(point.cosine_to_final, '.4f'):>12}  {number(point.cosine_to_previous, '.4f'):>12}"
            f"  {percent(point.relative_change):>6}  {number(point.effective_rank_mean):>9}"
            f"  {number(point.stable_rank_mean):>6}  {number(point.energy_rank_90_mean):>5}"
        )
    bar = f"cosine to the final update >= {series.threshold:g}, a heuristic"
    if series.settled is None:
        yield f"  The update turns until the last checkpoint (none before it has {bar})"
    else:
        yield f"  The update stops turning at {clean(series.settled)} ({bar}): what follows mostly rescales it"
    if series.rank_growth is not None:
        yield f"  Mean effective rank, last over first: {series.rank_growth:.2f}"
    yield ""


def _rest(report: CompareAdaptersReport) -> Iterator[str]:
    if report.only_in:
        some = "; ".join(f"{item.module} ({', '.join(item.adapters)})" for item in report.only_in[:_NAMED])
        yield clean(f"Not in all ({len(report.only_in)} modules): {some}{_more(report.only_in)}")
    if report.different_shapes:
        names = ", ".join(report.different_shapes[:_NAMED])
        yield clean(f"Of different shapes, not compared: {names}{_more(report.different_shapes)}")
    for note in report.notes:
        yield f"Note: {clean(note)}."
    yield "Two runs differ by their seed alone as well; a cosine of weights is no measure of behaviour."


def _more(items: Sequence[object]) -> str:
    return f"; and {len(items) - _NAMED} more" if len(items) > _NAMED else ""


def cosine_grid(pair: AdapterPair) -> Grid | None:
    """Return the modules' cosines by kind and layer, for a map; None where no module in a layer has one."""
    return grid_of_cells(
        f"cosine, {pair.first} and {pair.second}",
        [(row.name, row.layer, _compare_cell(row)) for row in pair.modules if row.layer is not None],
    )


def _compare_cell(row: ModulePair) -> Cell:
    if row.state == "non_finite":
        return "!"
    if row.cosine is None:
        return "0"
    return row.cosine if row.cosine >= 0.0 else _OPPOSED
