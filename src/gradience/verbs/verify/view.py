"""The report on a merged model as text: the verdict with the counts behind it, and what it does not show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from gradience.blocks import Block, Columns, Title, findings, number, percent, short_path, skipped, table, words
from gradience.blocks.text import as_text, shortened
from gradience.render.writing import MODULES
from gradience.schema.merge import OtherTensor, VerifiedModule, VerifyMergedReport

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
def verify_merged_text(report: VerifyMergedReport, *, verbose: bool = False) -> Iterator[Block]:
    """The report on a merged model for a terminal; `verbose` lists every module and every other tensor that differs."""
    most = None if verbose else MODULES
    yield Title("GRADIENCE VERIFY")
    yield f"Base W:    {short_path(report.base)}"
    yield f"Adapter:   {short_path(report.adapter)}"
    yield f"Merged M:  {short_path(report.merged)}"
    yield ""
    yield from _verdict(report)
    if report.findings:
        yield "Findings:"
        yield findings(report.findings, verbose=verbose)
    yield from skipped(report.not_run, verbose=verbose)
    yield ""
    order = list(_VERDICTS)
    rows = sorted(report.modules, key=lambda row: order.index(row.verdict))
    yield replace(table(_VERIFIED, rows, most=most, below=_reasons), gap=1)
    same = report.untouched - sum(item.what in {"changed", "not_compared"} for item in report.others)
    yield ""
    yield f"Tensors that the adapter does not touch: {same} of {report.untouched} as in the base"
    yield from shortened(list(map(_other, report.others)), most, indent=2)
    yield from (f"Note: {note}" for note in report.notes)
    if (answers := report.answers) is None:
        yield "Weights are compared, not outputs: what the merged model does is not looked at."
    else:
        yield f"Answers, by {short_path(answers.receipt)}: {words(answers.verdict).upper()}"
        yield f"  {answers.story}"


def _verdict(report: VerifyMergedReport) -> Iterator[Block]:
    yield f"Verdict: {words(report.verdict).upper()}{_unlike(report)}"
    yield from (f"  {reason}" for reason in report.reasons)
    yield from (f"  {report.counts[key]:>5}  {text}" for key, text in _VERDICTS.items() if key in report.counts)
    if report.dtypes:
        yield f"Dtypes, W -> M: {', '.join(f'{key} ({n})' for key, n in report.dtypes.items())}"
    if report.summed_in:
        yield f"Exact, W + dW in: {', '.join(f'{key} ({n})' for key, n in report.summed_in.items())}"
    if report.coefficient is not None:
        yield f"c = <M - W, dW> / norm(dW)^2 over all: {number(report.coefficient, '.4f')}"


def _unlike(report: VerifyMergedReport) -> str:
    """What the verdict says of the folder: whether it would load as it is."""
    if not any(each.severity == "error" for each in report.findings):
        return ""
    return f", {'AND' if report.verdict == 'contained' else 'AND ALSO'} WOULD NOT LOAD AS IT IS"


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
