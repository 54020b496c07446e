"""A resize as text: ranks before and after, what each costs, and the size of the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from gradience.render.text import banner, clean, count, percent
from gradience.schema.writing import (
    ConvertedModule,
    ConvertReport,
    MitigatedModule,
    MitigateReport,
    ResizedModule,
    ResizeReport,
)

_SHOWN: Final = 12
_WORDS: Final = {
    "rank": "rank {:g}",
    "energy": "energy >= {:g}",
    "rel_error": "relative error <= {:g} in each module",
    "max_mb": "at most {:g} MB",
    "max_params": "at most {:.0f} parameters",
    "like_suggested": "the audit's suggestion for each module",
    "sv_ratio": "sigma > sigma_1 / {:g}",
    "sv_fro": "Frobenius norm kept >= {:g}",
    "sv_cumulative": "sum of sigma kept >= {:g}",
}


def resize_text(report: ResizeReport, *, verbose: bool = False) -> str:
    """Return the report for people; `verbose` lists every module."""
    lines = [*banner("GRADIENCE RESIZE"), *_head(report), "", *_table(report, verbose=verbose), *_tail(report)]
    return "\n".join(lines)


def _head(report: ResizeReport) -> Iterator[str]:
    yield f"From: {clean(report.source)}"
    yield f"To:   {clean(report.out) if report.out else '(dry run: nothing is written)'}"
    yield f"Criterion:  {_WORDS[report.criterion].format(report.value)}"
    yield f"Parameters: {count(report.params_before)} -> {count(report.params_after)}"
    yield f"File:       {report.bytes_before / 1e6:.2f} MB -> {report.bytes_after / 1e6:.2f} MB"
    worst = max((row.relative_error or 0.0 for row in report.modules), default=0.0)
    yield f"Error:      {percent(report.relative_error)} of the whole update, at most {percent(worst)} of a module"


def _table(report: ResizeReport, *, verbose: bool) -> Iterator[str]:
    counts = Counter((row.rank_before, row.rank_after) for row in report.modules)
    yield "Modules by rank:"
    for (before, after), n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        yield f"  r={before} -> {after}: {n}" + (" (kept)" if before == after else "")
    rows = sorted(report.modules, key=lambda row: -(row.relative_error or 0.0))
    some = rows if verbose else rows[:_SHOWN]
    yield "     rank  rel. error   params  module"
    yield from map(_row, some)
    if len(some) < len(rows):
        yield f"  ... and {len(rows) - len(some)} more modules, of no larger error (--verbose)"


def _row(row: ResizedModule) -> str:
    ranks = f"{row.rank_before}>{row.rank_after}"
    error = "zero" if row.relative_error is None else percent(row.relative_error)
    return f"  {ranks:>7}  {error:>10}  {count(row.params_after):>7}  {clean(row.name)}"


def _tail(report: ResizeReport) -> Iterator[str]:
    for note in report.notes:
        yield f"Note: {clean(note)}"
    yield "The error is of the weights: verify the result on held-out data."


def mitigate_text(report: MitigateReport, *, verbose: bool = False) -> str:
    """Return the report for people; `verbose` lists every module and what was left out."""
    return "\n".join(
        [
            *banner("GRADIENCE MITIGATE"),
            *_mitigate_head(report),
            "",
            *_mitigate_table(report, verbose=verbose),
            *_mitigate_tail(report),
        ]
    )


def _mitigate_head(report: MitigateReport) -> Iterator[str]:
    yield f"From: {clean(report.source)}"
    yield f"Base: {clean(report.base)}"
    yield f"To:   {clean(report.out) if report.out else '(dry run: nothing is written)'}"
    rule = f"dW' = (I - {1.0 - report.scale:g} U U^T) dW"
    yield f"{rule}, U the intruders of each module (k={report.k}, eps={report.eps:g})"
    yield f"Intruder dimensions: {report.before} -> {report.after} in {len(report.modules)} modules"


def _mitigate_table(report: MitigateReport, *, verbose: bool) -> Iterator[str]:
    rows = sorted(report.modules, key=lambda row: -row.relative_change)
    some = rows if verbose else [row for row in rows if row.before][:_SHOWN]
    if some:
        yield "  before  after  change of dW  module"
    yield from map(_mitigate_row, some)
    if len(some) < len(rows):
        yield f"  ... and {len(rows) - len(some)} more modules (--verbose)"


def _mitigate_row(row: MitigatedModule) -> str:
    open_ = f"  ({row.undecided} undecided, not scaled)" if row.undecided else ""
    return f"  {row.before:>6}  {row.after:>5}  {percent(row.relative_change):>12}  {clean(row.name)}{open_}"


def _mitigate_tail(report: MitigateReport) -> Iterator[str]:
    if report.not_looked_at:
        first = report.not_looked_at[0]
        yield f"Left as they are: {len(report.not_looked_at)} (first: {clean(first.name)}: {clean(first.reason)})"
    yield "A hypothesis: verify on held-out data, of the task and of what the base could do before."


_EXACT: Final = 1e-6  # relative: float32 factors say no more
_NAMES: Final = 4
_FORMATS: Final = {"peft": "PEFT LoRA", "mlx": "MLX-LM"}


def convert_text(report: ConvertReport, *, verbose: bool = False) -> str:
    """Return the report for people; `verbose` lists every module."""
    return "\n".join(
        [
            *banner("GRADIENCE CONVERT"),
            *_convert_head(report),
            "",
            *_convert_table(report, verbose=verbose),
            *_rest(report),
        ]
    )


def _convert_head(report: ConvertReport) -> Iterator[str]:
    yield f"From: {clean(report.source)}  ({clean(report.source_type)})"
    yield f"To:   {clean(report.out) or '(dry run: nothing is written)'}  ({_FORMATS[report.target_format]})"
    yield f"Parameters: {count(report.params_before)} -> {count(report.params_after)}"
    worst = max((row.relative_error or 0.0 for row in report.modules), default=0.0)
    if worst <= _EXACT:
        yield f"Update: the same in all {len(report.modules)} modules, up to the rounding of float32"
    else:
        whole = report.relative_error or 0.0
        yield f"Update: relative error {whole:.2%} of the whole, at most {worst:.2%} of a module (Frobenius norm)"


def _convert_table(report: ConvertReport, *, verbose: bool) -> Iterator[str]:
    rows = sorted(report.modules, key=lambda row: -(row.relative_error or 0.0))
    some = rows if verbose else rows[:_SHOWN]
    yield "  rank  rel. error  how        module"
    for row in some:
        yield f"  {f'{row.rank_before}>{row.rank_after}':>5} {_error(row):>10}  {row.method:<9}  {clean(row.target)}"
    if len(some) < len(rows):
        yield f"  ... and {len(rows) - len(some)} more modules, of no larger error (--verbose)"


def _error(row: ConvertedModule) -> str:
    if row.relative_error is None:
        return "zero"
    return "exact" if row.relative_error <= _EXACT else f"{row.relative_error:.2%}"


def _rest(report: ConvertReport) -> Iterator[str]:
    if report.carried:
        yield f"Copied bit for bit ({len(report.carried)}): {_listed(report.carried)}"
    if report.dropped:
        yield f"Left out, as asked ({len(report.dropped)}): {_listed(report.dropped)}"
    for note in report.notes:
        yield f"Note: {clean(note)}"


def _listed(names: Sequence[str]) -> str:
    return clean(", ".join(names[:_NAMES])) + (", ..." if len(names) > _NAMES else "")
