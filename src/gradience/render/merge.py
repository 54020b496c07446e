"""The reports of merge, merge-check and verify-merge as text.

The report of a merge lists its adapters, its error and a table of modules. That of a merge-check says what each weight
leaves, then lists the conflicts, with the modules first in which most cancels. That of verify-merge gives the verdict
with the counts behind it. Every report ends with what it does not show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from gradience.blocks import Block, Columns, Title, count, findings, number, percent, short_path, skipped, table, words
from gradience.blocks.text import as_text, shortened
from gradience.configs.commands import Filled, fill
from gradience.render.compare import differences
from gradience.render.writing import EXACT, LESSER, MODULES, destination, error_cell, name_list
from gradience.schema.merge import (
    CheckedAdapter,
    CheckedModule,
    CheckedPair,
    MergeCheckReport,
    MergedModule,
    MergeReport,
    OtherTensor,
    SignConflict,
    VerifiedModule,
    VerifyMergeReport,
)

_MEGABYTE: Final = 1e6
_RELEVANT: Final = frozenset({"r", "lora_alpha", "target_modules", "use_rslora"})  # keys that change what a merge does

_MERGED: Final[Columns[MergedModule]] = (
    ("ranks", "<14", lambda row: f"{'+'.join(map(str, row.ranks))} > {row.rank}"),
    ("rel. error", ">10", lambda row: error_cell(row.relative_error)),
    ("module", "", lambda row: row.name),
)

_VERDICTS: Final = {  # verdicts that need attention first
    "other": "other",
    "absent": "absent (M = W)",
    "scaled": "another factor of dW",
    "not_compared": "not compared",
    "unresolved": "unresolved (M = W, as a merge would leave it)",
    "within_rounding": "within rounding",
    "exact": "exact (a merge, in some order of adding up B A)",
}


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
def merge_check_text(report: MergeCheckReport, *, top: int = 3, verbose: bool = False) -> Iterator[Block]:
    """The report of a merge-check for a terminal, with `top` modules; `verbose` adds evidence and skipped rules."""
    yield Title("GRADIENCE MERGE CHECK")
    yield "M = " + " + ".join(f"{item.weight:g} x {item.adapter.name}" for item in report.adapters)
    width = max(len(item.adapter.name) for item in report.adapters)
    yield "Of M, orthogonal to each adapter's own update (the larger, the less of its gain is kept):"
    for item in report.adapters:
        left, norm = f"{100.0 * item.weight:.3g}% left", f"norm(w dW) {item.weighted_norm:.4g}"
        named = f"{item.adapter.name:<{width}}  {percent(item.kept.other):>6}"
        yield f"  {named}  weight {item.weight:g}: {left} of its update, {norm}"
    yield ""
    yield "Findings:" if report.findings else "Findings: none"
    yield findings(report.findings, verbose=verbose)
    yield from skipped(report.not_run, verbose=verbose)
    for pair in report.pairs:
        yield from _pair(pair)
    if report.signs is not None:
        yield _signs(report.signs, report.expected_conflict)
    yield ""
    yield from _modules(report.modules, top)
    yield from _remarks(report)


def _option(weights: Sequence[float]) -> str:
    text = ",".join(f"{weight:g}" for weight in weights)
    return f"--weights={text}" if text.startswith("-") else f"--weights {text}"


def _pair(pair: CheckedPair) -> Iterator[Block]:
    sizes = f"cosine {number(pair.cosine, '.3f')}, scale {number(pair.scale_ratio, '.3g')} : 1"
    yield f"{pair.first} and {pair.second}: {sizes}"
    if pair.output_side and pair.input_side:
        out, inner = pair.output_side[-1], pair.input_side[-1]
        yield (
            f"  shared directions phi({out.i},{out.i}): outputs {out.phi:.3f} (chance {out.chance:.3f}),"
            f" inputs {inner.phi:.3f} (chance {inner.chance:.3f})"
        )


def _signs(signs: SignConflict, expected: float | None) -> str:
    share = f"{signs.entries / signs.of:.1%} read, random rows"
    sample = "all read" if signs.entries == signs.of else share
    gaussian = "" if expected is None else f" ({expected:.1%} of Gaussian entries)"
    return (
        f"Signs: {_with_error(signs.conflict, signs.conflict_error)} conflict{gaussian},"
        f" {_with_error(signs.cancelled, signs.cancelled_error)} of the magnitude cancels; {sample}"
    )


def _with_error(value: float, error: float) -> str:
    return f"{value:.1%}" + (f" (+- {error:.2%})" if error > 0.0 else "")


def _modules(modules: Sequence[CheckedModule], top: int) -> Iterator[Block]:
    counted = [(module, module.signs) for module in modules if module.signs is not None]
    if not counted or not top:
        return
    yield f"Modules that cancel most (top {min(top, len(counted))} of {len(counted)}):"
    yield table(
        (
            ("cancels", ">7", lambda item: f"{item[1].cancelled:.1%}"),
            ("conflict", ">8", lambda item: f"{item[1].conflict:.1%}"),
            ("lowest cosine", ">13", lambda item: number(item[0].lowest_cosine, "+.3f")),
            ("module", "", lambda item: item[0].name),
        ),
        sorted(counted, key=lambda item: -round(item[1].cancelled, 3))[:top],  # those shown as equal by name
    )


def _remarks(report: MergeCheckReport) -> Iterator[Block]:
    relevant = [item for item in report.differences if item.key in _RELEVANT]
    yield differences(relevant, [item.adapter.name for item in report.adapters], label="Config: ")
    yield from name_list("Not in all adapters", [item.module for item in report.only_in])
    yield from name_list("Of different shapes", report.different_shapes)
    yield from (f"Note: {note}." for note in report.notes)
    yield "A small share is no promise: what a merge does to a metric is measured by bench merge."
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


@as_text
def verify_merge_text(report: VerifyMergeReport, *, verbose: bool = False) -> Iterator[Block]:
    """The report of verify-merge for a terminal; `verbose` lists every module and every other tensor that differs."""
    most = None if verbose else MODULES
    yield Title("GRADIENCE VERIFY-MERGE")
    yield f"Base W:    {short_path(report.base)}"
    yield f"Adapter:   {short_path(report.adapter)}"
    yield f"Merged M:  {short_path(report.merged)}"
    yield ""
    yield from _verdict(report)
    yield ""
    order = list(_VERDICTS)
    rows = sorted(report.modules, key=lambda row: order.index(row.verdict))
    yield replace(table(_VERIFIED, rows, most=most, below=_reasons), gap=1)
    same = report.untouched - sum(item.what in {"changed", "not_compared"} for item in report.others)
    yield ""
    yield f"Tensors that the adapter does not touch: {same} of {report.untouched} as in the base"
    yield from shortened(list(map(_other, report.others)), most, indent=2)
    yield from (f"Note: {note}" for note in report.notes)
    if (told := report.answers) is None:
        yield "Weights are compared, not outputs: what the merged model does is not looked at."
    else:
        yield f"Answers, by {short_path(told.receipt)}: {words(told.verdict).upper()}"
        yield f"  {told.story}"


def _verdict(report: VerifyMergeReport) -> Iterator[Block]:
    yield f"Verdict: {words(report.verdict).upper()}"
    yield from (f"  {reason}" for reason in report.reasons)
    yield from (f"  {report.counts[key]:>5}  {text}" for key, text in _VERDICTS.items() if key in report.counts)
    if report.dtypes:
        yield f"Dtypes, W -> M: {', '.join(f'{key} ({n})' for key, n in report.dtypes.items())}"
    if report.summed_in:
        yield f"Exact, W + dW in: {', '.join(f'{key} ({n})' for key, n in report.summed_in.items())}"
    if report.coefficient is not None:
        yield f"c = <M - W, dW> / norm(dW)^2 over all: {number(report.coefficient, '.4f')}"


def _reasons(row: VerifiedModule) -> str:
    """The line under a module with the reasons of its verdict, or nothing."""
    factor = None if row.factor is None else f"factor {row.factor:.4g}"
    precision = row.precision and f"roundings of {row.precision}"
    reasons = "; ".join(text for text in (factor, precision, row.reason) if text)
    return f"      {reasons}" if reasons else ""


_VERIFIED: Final[Columns[VerifiedModule]] = (
    ("verdict", "<15", lambda row: row.verdict),
    ("c", ">8", lambda row: number(row.coefficient, ".4f")),
    ("expected", ">8", lambda row: number(row.expected_coefficient, ".4f")),
    ("residual", ">8", lambda row: number(row.residual, ".4f")),
    ("changed", ">7", lambda row: percent(row.changed)),
    (" module", "", lambda row: f" {row.name}"),
)


def _other(item: OtherTensor) -> str:
    change = "" if item.relative_change is None else f" by {percent(item.relative_change)}"
    reason = f": {item.reason}" if item.reason else ""
    return f"  {words(item.what)}{change}{reason}  {item.name}"
