"""The verdict on a merged model as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradience.render.text import banner, clean, number, percent, short_path
from gradience.schema.verify_merge import VerifiedModule, VerifyMergeReport

__all__ = ["verify_merge_text"]

_SHOWN: Final = 12
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
            *_head(report),
            "",
            *_table(report, verbose=verbose),
            *_others(report, verbose=verbose),
            *_tail(report),
        ]
    )


def _head(report: VerifyMergeReport) -> Iterator[str]:
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


def _table(report: VerifyMergeReport, *, verbose: bool) -> Iterator[str]:
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
