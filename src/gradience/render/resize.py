"""A resize as text: ranks before and after, what each costs, and the size of the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from gradience.render.text import banner, clean, count, percent
from gradience.schema.resize import ResizedModule, ResizeReport

__all__ = ["resize_text"]

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
