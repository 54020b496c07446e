"""A mitigation as text: intruder dimensions before and after, by module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradience.render.text import banner, clean, percent
from gradience.schema.mitigate import MitigatedModule, MitigateReport

__all__ = ["mitigate_text"]

_SHOWN: Final = 12


def mitigate_text(report: MitigateReport, *, verbose: bool = False) -> str:
    """Return the report for people; `verbose` lists every module and what was left out."""
    return "\n".join(
        [*banner("GRADIENCE MITIGATE"), *_head(report), "", *_table(report, verbose=verbose), *_tail(report)]
    )


def _head(report: MitigateReport) -> Iterator[str]:
    yield f"From: {clean(report.source)}"
    yield f"Base: {clean(report.base)}"
    yield f"To:   {clean(report.out) if report.out else '(dry run: nothing is written)'}"
    rule = f"dW' = (I - {1.0 - report.scale:g} U U^T) dW"
    yield f"{rule}, U the intruders of each module (k={report.k}, eps={report.eps:g})"
    yield f"Intruder dimensions: {report.before} -> {report.after} in {len(report.modules)} modules"


def _table(report: MitigateReport, *, verbose: bool) -> Iterator[str]:
    rows = sorted(report.modules, key=lambda row: -row.relative_change)
    some = rows if verbose else [row for row in rows if row.before][:_SHOWN]
    if some:
        yield "  before  after  change of dW  module"
    yield from map(_row, some)
    if len(some) < len(rows):
        yield f"  ... and {len(rows) - len(some)} more modules (--verbose)"


def _row(row: MitigatedModule) -> str:
    open_ = f"  ({row.undecided} undecided, not scaled)" if row.undecided else ""
    return f"  {row.before:>6}  {row.after:>5}  {percent(row.relative_change):>12}  {clean(row.name)}{open_}"


def _tail(report: MitigateReport) -> Iterator[str]:
    if report.not_looked_at:
        first = report.not_looked_at[0]
        yield f"Left as they are: {len(report.not_looked_at)} (first: {clean(first.name)}: {clean(first.reason)})"
    yield "A hypothesis: verify on held-out data, of the task and of what the base could do before."
