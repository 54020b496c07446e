"""A conversion as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gradience.render.text import banner, clean, count
from gradience.schema.convert import ConvertedModule, ConvertReport

__all__ = ["convert_text"]

_EXACT: Final = 1e-6  # relative: float32 factors say no more
_SHOWN: Final = 12
_NAMES: Final = 4
_FORMATS: Final = {"peft": "PEFT LoRA", "mlx": "MLX-LM"}


def convert_text(report: ConvertReport, *, verbose: bool = False) -> str:
    """Return the report for people; `verbose` lists every module."""
    return "\n".join(
        [*banner("GRADIENCE CONVERT"), *_head(report), "", *_table(report, verbose=verbose), *_rest(report)]
    )


def _head(report: ConvertReport) -> Iterator[str]:
    yield f"From: {clean(report.source)}  ({clean(report.source_type)})"
    yield f"To:   {clean(report.out) or '(dry run: nothing is written)'}  ({_FORMATS[report.target_format]})"
    yield f"Parameters: {count(report.params_before)} -> {count(report.params_after)}"
    worst = max((row.relative_error or 0.0 for row in report.modules), default=0.0)
    if worst <= _EXACT:
        yield f"Update: the same in all {len(report.modules)} modules, up to the rounding of float32"
    else:
        whole = report.relative_error or 0.0
        yield f"Update: relative error {whole:.2%} of the whole, at most {worst:.2%} of a module (Frobenius norm)"


def _table(report: ConvertReport, *, verbose: bool) -> Iterator[str]:
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
