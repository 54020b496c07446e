"""Where two runs part, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gradience.blocks import Block, sentence, shorter
from gradience.blocks.text import as_lines
from gradience.render.pace import pace_words
from gradience.schema.why import Difference, Parting, WhyReport

_SHOWN: Final = 60  # characters of a value


@as_lines
def why_text(report: WhyReport, *, verbose: bool = False) -> Iterator[Block]:
    """Return the report for people; `verbose` adds what was compared and every difference whole."""
    most = None if verbose else _SHOWN
    yield f"{sentence(report.story)}."
    if report.parts:
        yield from ("", f"At {'the start' if report.step == 0 else f'step {report.step}'}")
        yield from (_part(part, most) for part in report.parts)
    if report.differences:
        yield from ("", "What differs")
        yield from (_difference(each, most) for each in report.differences)
    pairs = zip(("first", "second"), report.paces, strict=False)
    yield from _listed("Pace", [f"{name}: {pace_words(pace) if pace else 'not recorded'}" for name, pace in pairs])
    yield from _listed("Cannot be told", report.not_told)
    if verbose:
        yield from _listed("Compared", report.compared)


def _part(part: Parting, most: int | None) -> str:
    return f"  {part.quantity:<10} {shorter(str(part.first), most)}  |  {shorter(str(part.second), most)}"


def _difference(each: Difference, most: int | None) -> str:
    return f"  {each.cause:<14} {shorter(each.says, None if most is None else 2 * most)}"


def _listed(heading: str, items: Sequence[str]) -> Iterator[Block]:
    if items:
        yield from ("", heading)
        yield from (f"  {item}" for item in items)
