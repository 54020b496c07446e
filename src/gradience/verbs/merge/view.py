"""The reports of a merge and of its check as text.

The report of a merge lists its adapters, its error and a table of modules. That of a check says what would be
written, then lists the conflicts, with the modules first in which most cancels. Both end with what they do not show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gradience.blocks import Block, Columns, Title, count, findings, number, percent, skipped, table
from gradience.blocks.text import as_text
from gradience.configs.commands import Filled, fill
from gradience.render.writing import EXACT, LESSER, MODULES, destination, error_cell, name_list
from gradience.schema.merge import (
    CheckedAdapter,
    CheckedModule,
    MergeCheckReport,
    MergedModule,
    MergeReport,
    SignConflict,
)
from gradience.verbs.compare.view import differences

_MEGABYTE: Final = 1e6
_CANCEL: Final = 3  # modules of a check without --verbose
_RELEVANT: Final = frozenset({"r", "lora_alpha", "target_modules", "use_rslora"})  # keys that change what a merge does

_MERGED: Final[Columns[MergedModule]] = (
    ("ranks", "<14", lambda row: f"{'+'.join(map(str, row.ranks))} > {row.rank}"),
    ("rel. error", ">10", lambda row: error_cell(row.relative_error)),
    ("module", "", lambda row: row.name),
)


@as_text
def merge_text(report: MergeReport, *, verbose: bool = False) -> Iterator[Block]:
    """The report of a merge for a terminal; `verbose` lists every module."""
    yield Title("GRADIENCE MERGE")
    yield from _method(report)
    yield ""
    rows = sorted(report.modules, key=lambda row: -(row.relative_error or 0.0))
    yield table(_MERGED, rows, most=None if verbose else MODULES, of=LESSER)
    yield from name_list("Not in all adapters", [item.module for item in report.only_in])
    yield from name_list("Copied bit for bit", report.carried)
    yield from name_list("Left out", report.dropped)
    yield from (f"Note: {note}." for note in report.notes)
    yield "A small error says that the sum was kept, not that the tasks were: verify on held-out data."


def _method(report: MergeReport) -> Iterator[Block]:
    for side, weight in zip(report.adapters, report.weights, strict=True):
        yield f"{weight:+g} x {side.name}: {side.modules} modules, r={side.rank[0]}..{side.rank[1]}"
    density = "" if report.density is None else f", density {report.density:g}"
    seed = "" if report.seed is None else f", seed {report.seed}"
    yield f"Method: {report.method}{density}{seed}"
    yield f"To:     {destination(report.out)}  ({report.dtype}, {count(report.params)} parameters)"
    yield f"Error:  {_error(report.relative_error)} of what {report.method} defines (Frobenius norm, all modules)"
    if report.distance_from_sum is not None and report.largest_dense_bytes:
        yield f"        {percent(report.distance_from_sum)} away from the plain weighted sum"
        size = max(1.0, report.largest_dense_bytes / _MEGABYTE)
        yield f"Memory: dense updates, the largest of {size:.0f} MB in float64; about three times that at the peak"


def _error(value: float | None) -> str:
    if value is None:
        return "none (every update is zero)"
    return "none beyond the rounding of float32" if value <= EXACT else f"{value:.2%}"


@as_text
def merge_check_text(report: MergeCheckReport, *, verbose: bool = False) -> Iterator[Block]:
    """The report of a check for a terminal; `verbose` lists every module, evidence and skipped rules."""
    yield Title("GRADIENCE MERGE CHECK")
    yield "M = " + " + ".join(f"{item.weight:g} x {item.adapter.name}" for item in report.adapters)
    for item in report.adapters:
        part = f"weight {item.weight:g}, norm(w dW) {item.weighted_norm:.4g}"
        yield f"  {item.adapter.name}: {part}; {percent(item.kept.other)} of M is orthogonal to its update"
    yield _planned(report.merged) if report.merged is not None else f"Would be refused: {report.refused}"
    yield ""
    yield "Findings:" if report.findings else "Findings: none"
    yield findings(report.findings, verbose=verbose)
    yield from skipped(report.not_run, verbose=verbose)
    yield from (f"{pair.first} and {pair.second}: cosine {number(pair.cosine, '.3f')}" for pair in report.pairs)
    if report.signs is not None:
        yield _signs(report.signs)
    yield ""
    yield from _modules(report.modules, None if verbose else _CANCEL)
    yield from _remarks(report)


def _planned(merged: MergeReport) -> str:
    size = f"{merged.method}, r={merged.r}, {merged.dtype}, {count(merged.params)} parameters"
    return f"Would write: {size}; error {_error(merged.relative_error)}"


def _option(weights: Sequence[float]) -> str:
    text = ",".join(f"{weight:g}" for weight in weights)
    return f"--weights={text}" if text.startswith("-") else f"--weights {text}"


def _signs(signs: SignConflict) -> str:
    share = f"{signs.entries / signs.of:.1%} read, random rows"
    sample = "all read" if signs.entries == signs.of else share
    return (
        f"Signs: {_with_error(signs.conflict, signs.conflict_error)} conflict,"
        f" {_with_error(signs.cancelled, signs.cancelled_error)} of the magnitude cancels; {sample}"
    )


def _with_error(value: float, error: float) -> str:
    return f"{value:.1%}" + (f" (+- {error:.2%})" if error > 0.0 else "")


def _modules(modules: Sequence[CheckedModule], most: int | None) -> Iterator[Block]:
    counted = [(module, module.signs) for module in modules if module.signs is not None]
    if not counted:
        return
    shown = len(counted[:most])
    yield f"Modules that cancel most ({shown} of {len(counted)}):"
    yield table(
        (
            ("cancels", ">7", lambda item: f"{item[1].cancelled:.1%}"),
            ("conflict", ">8", lambda item: f"{item[1].conflict:.1%}"),
            ("lowest cosine", ">13", lambda item: number(item[0].lowest_cosine, "+.3f")),
            ("module", "", lambda item: item[0].name),
        ),
        sorted(counted, key=lambda item: -round(item[1].cancelled, 3))[:most],  # those shown as equal by name
    )


def _remarks(report: MergeCheckReport) -> Iterator[Block]:
    relevant = [item for item in report.differences if item.key in _RELEVANT]
    yield differences(relevant, [item.adapter.name for item in report.adapters], label="Config: ")
    yield from name_list("Not in all adapters", [item.module for item in report.only_in])
    yield from name_list("Of different shapes", report.different_shapes)
    yield from (f"Note: {note}." for note in report.notes)
    yield "What a merge does to a metric is in none of these numbers: bench merge measures it."
    if len(report.trials) > 1:
        yield "Whole updates are not diluted, but the others' part grows as much: try both on held-out data."
    tried = "".join(f" {_option(weights)}" for weights in report.trials)
    command, lacking = _measured(report.adapters, tried)
    yield f"Next, on each adapter's own data: {command}"
    if lacking:
        yield f"    Replace {lacking}."


def _measured(adapters: Sequence[CheckedAdapter], tried: str) -> Filled:
    """The command that measures the merge, with the base that all adapters name, and each one's held-out rows."""
    bases = {item.beside.base for item in adapters}
    known = {"MODEL": bases.pop() if len(bases) == 1 else None}
    for place, item in enumerate(adapters, 1):
        known |= {f"ADAPTER_{place}": item.adapter.path, f"HELDOUT_{place}": item.beside.held_out}
    places = range(1, len(adapters) + 1)
    paths, data = (" ".join(f"{word}_{place}" for place in places) for word in ("ADAPTER", "--data HELDOUT"))
    return fill(f"gradience bench merge {paths} --base MODEL {data}{tried} --out merge-bench", known)
