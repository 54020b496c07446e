"""A merge, and what would get in its way, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gradience.render.compare import difference_text
from gradience.render.text import banner, clean, count, finding_lines, not_run_lines, number, percent, short_path
from gradience.schema.merge import (
    CheckedModule,
    CheckedPair,
    MergeCheckReport,
    MergedModule,
    MergeReport,
    SignConflict,
    VerifiedModule,
    VerifyMergeReport,
)

_EXACT: Final = 1e-6  # relative: float32 factors say no more
_SHOWN: Final = 12
_NAMED: Final = 4
_MEGABYTE: Final = 1e6


def merge_text(report: MergeReport, *, verbose: bool = False) -> str:
    """Return the report of a merge; `verbose` lists every module."""
    return "\n".join([*banner("GRADIENCE MERGE"), *_head(report), "", *_table(report, verbose=verbose), *_rest(report)])


def _head(report: MergeReport) -> Iterator[str]:
    for side, weight in zip(report.adapters, report.weights, strict=True):
        yield f"{weight:+g} x {clean(side.name)}: {side.modules} modules, r={side.rank[0]}..{side.rank[1]}"
    yield f"Method: {report.method}{_options(report)}"
    place = clean(report.out) or "(dry run: nothing is written)"
    yield f"To:     {place}  ({report.dtype}, {count(report.params)} parameters)"
    yield f"Error:  {_error(report.relative_error)} of what {report.method} defines (Frobenius norm, all modules)"
    if report.distance_from_sum is not None and report.largest_dense_bytes:
        yield f"        {percent(report.distance_from_sum)} away from the plain weighted sum"
        size = max(1.0, report.largest_dense_bytes / _MEGABYTE)
        yield f"Memory: dense updates, the largest of {size:.0f} MB in float64; about three times that at the peak"


def _options(report: MergeReport) -> str:
    density = "" if report.density is None else f", density {report.density:g}"
    return density + ("" if report.seed is None else f", seed {report.seed}")


def _error(value: float | None) -> str:
    if value is None:
        return "none (every update is zero)"
    return "none beyond the rounding of float32" if value <= _EXACT else f"{value:.2%}"


def _table(report: MergeReport, *, verbose: bool) -> Iterator[str]:
    rows = sorted(report.modules, key=lambda row: -(row.relative_error or 0.0))
    some = rows if verbose else rows[:_SHOWN]
    yield "  ranks           rel. error  module"
    for row in some:
        yield f"  {_ranks(row):<14}  {_short(row.relative_error):>10}  {clean(row.name)}"
    if len(some) < len(rows):
        yield f"  ... and {len(rows) - len(some)} more modules, of no larger error (--verbose)"


def _ranks(row: MergedModule) -> str:
    return f"{'+'.join(map(str, row.ranks))} > {row.rank}"


def _short(value: float | None) -> str:
    if value is None:
        return "zero"
    return "exact" if value <= _EXACT else f"{value:.2%}"


def _rest(report: MergeReport) -> Iterator[str]:
    if report.only_in:
        yield f"Not in all adapters ({len(report.only_in)}): {_listed([item.module for item in report.only_in])}"
    if report.carried:
        yield f"Copied bit for bit ({len(report.carried)}): {_listed(report.carried)}"
    if report.dropped:
        yield f"Left out ({len(report.dropped)}): {_listed(report.dropped)}"
    for note in report.notes:
        yield f"Note: {clean(note)}."
    yield "A small error says that the sum was kept, not that the tasks were: verify on held-out data."


def _listed(names: Sequence[str]) -> str:
    return clean(", ".join(names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def merge_check_text(report: MergeCheckReport, *, top: int = 5, verbose: bool = False) -> str:
    """Return the check; `top` modules are listed, those that cancel most first; `verbose` shows findings' grounds."""
    return "\n".join(_check(report, top=top, verbose=verbose))


def _check(report: MergeCheckReport, *, top: int, verbose: bool) -> Iterator[str]:
    yield from banner("GRADIENCE MERGE CHECK")
    yield "M = " + " + ".join(f"{item.weight:g} x {clean(item.adapter.name)}" for item in report.adapters)
    yield ""
    yield "Findings:" if report.findings else "Findings: none"
    yield from finding_lines(report.findings, verbose=verbose)
    if verbose and report.not_run:
        yield f"Not judged ({len(report.not_run)}):"
        yield from not_run_lines(report.not_run)
    yield ""
    yield "What M keeps of each (coefficient along its own update; the weight is what was asked for):"
    width = max(len(clean(item.adapter.name)) for item in report.adapters)
    for item in report.adapters:
        keeps = number(item.kept.coefficient, ".3f")
        yield (
            f"  {clean(item.adapter.name):<{width}}  weight {item.weight:g}  keeps {keeps}"
            f"  norm(w dW) {item.weighted_norm:.4g}  rest of M orthogonal to it {percent(item.kept.other)}"
        )
    for pair in report.pairs:
        yield _pair(pair)
    yield from _signs(report)
    yield ""
    yield from _modules(report.modules, top=top)
    yield from _remarks(report)


def _pair(pair: CheckedPair) -> str:
    text = (
        f"{clean(pair.first)} and {clean(pair.second)}: cosine {number(pair.cosine, '.3f')},"
        f" scale {number(pair.scale_ratio, '.3g')} : 1"
    )
    if pair.output_side and pair.input_side:
        out, inner = pair.output_side[-1], pair.input_side[-1]
        text += (
            f"; shared directions phi({out.i},{out.i}) outputs {out.phi:.3f} (chance {out.chance:.3f}),"
            f" inputs {inner.phi:.3f} (chance {inner.chance:.3f})"
        )
    return text


def _signs(report: MergeCheckReport) -> Iterator[str]:
    signs = report.signs
    if signs is None:
        return
    expected = ""
    if report.expected_conflict is not None:
        expected = f", {report.expected_conflict:.1%} expected of Gaussian entries with these cosines"
    yield (
        f"Signs: {_with_error(signs.conflict, signs.conflict_error)} of entries in conflict{expected};"
        f" {_with_error(signs.cancelled, signs.cancelled_error)} of the magnitude cancels ({_read(signs)})"
    )


def _with_error(value: float, error: float) -> str:
    return f"{value:.1%}" + (f" (+- {error:.2%})" if error > 0.0 else "")


def _read(signs: SignConflict) -> str:
    return (
        "every entry read" if signs.entries == signs.of else f"{signs.entries / signs.of:.1%} of entries, random rows"
    )


def _modules(rows: Sequence[CheckedModule], *, top: int) -> Iterator[str]:
    able = [row for row in rows if row.signs is not None]
    if not able or not top:
        return
    order = sorted(able, key=lambda row: -(row.signs.cancelled if row.signs is not None else 0.0))
    yield f"Modules that cancel most (top {min(top, len(able))} of {len(able)}):"
    yield "  cancels  conflict  lowest cosine  module"
    for row in order[:top]:
        if row.signs is not None:
            yield (
                f"  {row.signs.cancelled:>7.1%}  {row.signs.conflict:>8.1%}  {number(row.lowest_cosine, '+.3f'):>13}"
                f"  {clean(row.name)}"
            )


def _remarks(report: MergeCheckReport) -> Iterator[str]:
    for item in report.differences:
        if item.key in {"r", "lora_alpha", "target_modules", "use_rslora"}:
            yield f"Config: {difference_text(item)}"
    if report.only_in:
        yield f"Not in all adapters ({len(report.only_in)}): {_listed([item.module for item in report.only_in])}"
    if report.different_shapes:
        yield f"Of different shapes ({len(report.different_shapes)}): {_listed(report.different_shapes)}"
    for note in report.notes:
        yield f"Note: {clean(note)}."
    yield "Weights that do not collide may still not compose: verify every task on held-out data."


_ORDER: Final = ("other", "absent", "scaled", "not_compared", "unresolved", "within_rounding", "exact")
_WORDS: Final = {
    "exact": "exact (bit for bit a merge)",
    "within_rounding": "within rounding",
    "unresolved": "unresolved (M = W, as a merge would leave it)",
    "absent": "absent (M = W)",
    "scaled": "another factor of dW",
    "other": "other",
    "not_compared": "not compared",
}


def verify_merge_text(report: VerifyMergeReport, *, verbose: bool = False) -> str:
    """Return the report for people; `verbose` lists every module and every other tensor that differs."""
    return "\n".join(
        [
            *banner("GRADIENCE VERIFY-MERGE"),
            *_verify_merge_head(report),
            "",
            *_verify_merge_table(report, verbose=verbose),
            *_others(report, verbose=verbose),
            *_tail(report),
        ]
    )


def _verify_merge_head(report: VerifyMergeReport) -> Iterator[str]:
    yield f"Base W:    {clean(short_path(report.base))}"
    yield f"Adapter:   {clean(short_path(report.adapter))}"
    yield f"Merged M:  {clean(short_path(report.merged))}"
    yield ""
    yield f"Verdict: {report.verdict.upper().replace('_', ' ')}"
    yield from (f"  {clean(reason)}" for reason in report.reasons)
    yield from (f"  {report.counts[key]:>5}  {_WORDS[key]}" for key in _ORDER if key in report.counts)
    if report.dtypes:
        yield f"Dtypes, W -> M: {', '.join(f'{clean(key)} ({n})' for key, n in report.dtypes.items())}"
    for words, n in report.replays.items():
        yield f"Replay: {clean(words)} ({n})"
    if report.coefficient is not None:
        yield f"c = <M - W, dW> / norm(dW)^2 over all: {number(report.coefficient, '.4f')}"


def _verify_merge_table(report: VerifyMergeReport, *, verbose: bool) -> Iterator[str]:
    rows = sorted(report.modules, key=lambda row: _ORDER.index(row.verdict))
    some = rows if verbose else rows[:_SHOWN]
    yield f"  {'verdict':<15} {'c':>8} {'expected':>8} {'residual':>8} {'changed':>7}  module"
    for row in some:
        yield from _row(row)
    if len(some) < len(rows):
        yield f"  ... and {len(rows) - len(some)} more (--verbose)"


def _row(row: VerifiedModule) -> Iterator[str]:
    numbers = " ".join(
        f"{number(value, '.4f'):>8}" for value in (row.coefficient, row.expected_coefficient, row.residual)
    )
    told = [f"factor {row.factor:.4g}"] if row.factor is not None else []
    told += [f"roundings of {row.precision}"] if row.precision else []
    told += [row.reason] if row.reason else []
    yield f"  {row.verdict:<15} {numbers} {percent(row.changed):>7}  {clean(row.name)}"
    if told:
        yield f"      {clean('; '.join(told))}"


def _others(report: VerifyMergeReport, *, verbose: bool) -> Iterator[str]:
    same = report.untouched - sum(item.what in {"changed", "not_compared"} for item in report.others)
    yield ""
    yield f"Tensors that the adapter does not touch: {same} of {report.untouched} as in the base"
    some = report.others if verbose else report.others[:_SHOWN]
    for item in some:
        told = f" by {percent(item.relative_change)}" if item.relative_change is not None else ""
        told += f": {clean(item.reason)}" if item.reason else ""
        yield f"  {item.what.replace('_', ' ')}{told}  {clean(item.name)}"
    if len(some) < len(report.others):
        yield f"  ... and {len(report.others) - len(some)} more (--verbose)"


def _tail(report: VerifyMergeReport) -> Iterator[str]:
    yield from (f"Note: {clean(note)}" for note in report.notes)
    yield "Weights are compared, not outputs: what the merged model does is not looked at."
