"""The report of a convert as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradience.blocks import Block, Columns, Title, count, table
from gradience.blocks.text import as_text
from gradience.render.writing import EXACT, LESSER, MODULES, destination, error_cell, name_list, worst_error
from gradience.schema.writing import ConvertedModule, ConvertReport

_FORMATS: Final = {"peft": "PEFT LoRA", "mlx": "MLX-LM"}


@as_text
def convert_text(report: ConvertReport, *, verbose: bool = False) -> Iterator[Block]:
    """The report of a conversion for a terminal; `verbose` lists every module."""
    yield Title("GRADIENCE CONVERT")
    yield f"From: {report.source}  ({report.source_type})"
    yield f"To:   {destination(report.out)}  ({_FORMATS[report.target_format]})"
    yield f"Parameters: {count(report.params_before)} -> {count(report.params_after)}"
    worst = worst_error(row.relative_error for row in report.modules)
    if worst <= EXACT:
        yield f"Update: the same in all {len(report.modules)} modules, up to the rounding of float32"
    else:
        whole = report.relative_error or 0.0
        yield f"Update: relative error {whole:.2%} of the whole, at most {worst:.2%} of a module (Frobenius norm)"
    yield ""
    rows = sorted(report.modules, key=lambda row: -(row.relative_error or 0.0))
    most = None if verbose else MODULES
    yield table(_CONVERTED, rows, most=most, of=LESSER, indent=1)
    yield from name_list("Copied bit for bit", report.carried)
    yield from name_list("Left out, as requested", report.dropped)
    yield from (f"Note: {note}" for note in report.notes)


_CONVERTED: Final[Columns[ConvertedModule]] = (
    ("rank", ">5", lambda row: f"{row.rank_before}>{row.rank_after}"),
    ("rel. error", ">10", lambda row: error_cell(row.relative_error)),
    ("how", "<9", lambda row: row.method),
    ("module", "", lambda row: row.target),
)
