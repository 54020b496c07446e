"""A receipt, and what was found at a target beside it, as text."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.blocks import Block, Title, counted, facts, number, set_off, short_path, words
from gradience.blocks.text import as_text, shortened
from gradience.schema.receipt import Receipt, VerifyServedReport

_TRIED = 5  # explanations that are listed


@as_text
def receipt_text(receipt: Receipt, *, out: str, size: int) -> Iterator[Block]:
    """The receipt for people: what it holds, and how sharp it is."""
    yield Title("GRADIENCE RECEIPT")
    predictions = sum(len(row.base) for row in receipt.rows)
    texts = sum(bool(row.text) for row in receipt.rows)
    kept = "their text" if texts else "no text"
    content = (
        f"{counted(len(receipt.rows), 'sequence')}, {predictions} log-probabilities of base and of adapter, {kept}"
    )
    yield facts(
        [
            ("Adapter", f"{receipt.adapter_name}  {receipt.adapter[:19]}"),
            ("Base", f"{receipt.base_name}  {receipt.base[:19]}"),
            ("Written", f"{short_path(out)}, {size:,} bytes"),
            ("Holds", content),
            ("Rows", receipt.rows_from),
        ]
    )
    yield from ("", "How far the same adapter goes from itself, as a share of its effect:")
    yield from (f"  {noise.of:<10}{noise.residual:8.4f}" for noise in receipt.noise)


@as_text
def verify_served_text(report: VerifyServedReport, *, verbose: bool = False) -> Iterator[Block]:
    """The answer, and the distances it rests on."""
    yield Title("GRADIENCE VERIFY")
    way = f"{report.how}{f', weights in {report.precision}' if report.precision else ''}"
    rows = [("Receipt", short_path(report.receipt)), ("Target", _place(report.target)), ("Asked", way)]
    yield facts([*rows, ("Engine", report.engine)])
    yield ""
    yield f"Verdict: {words(report.verdict).upper()}"
    yield f"  {report.story}"
    if report.cause:
        yield f"  {report.cause}"
    if report.residual is not None:
        yield ""
        noise = number(report.noise, ".4f")
        yield facts(
            [
                ("residual", f"{number(report.residual, '.4f')}  |y - adapter| / |adapter - base|; noise {noise}"),
                ("from base", f"{number(report.from_base, '.4f')}  |y - base| / |adapter - base|"),
                ("share", f"{number(report.share, '.4f')}  of the adapter's effect"),
                ("compared", f"{report.compared} of {report.of} log-probabilities"),
            ]
        )
    missing = shortened([f"  {name}" for name in report.missing], None if verbose else _TRIED)
    yield from set_off(f"Without {counted(len(report.missing), 'module')}", missing)
    tried = (f"  {each.residual:.4f}  {each.name}" for each in report.tried if verbose)
    yield from set_off("Explanations, the nearest first, with their distance from what was read", tried)
    yield from (line for finding in report.findings if finding.action for line in ("", f"  -> {finding.action}"))
    yield from (f"Note: {note}" for note in report.notes)


def _place(target: str) -> str:
    return target if "://" in target else short_path(target)
