"""Where two runs part, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gradience.render import clean
from gradience.schema.why import Difference, Parting, WhyReport

_SHOWN: Final = 60  # characters of a value


def why_text(report: WhyReport, *, verbose: bool = False) -> str:
    """Return the report for people; `verbose` adds what was compared and every difference whole."""
    return "\n".join(_lines(report, verbose=verbose))


def _lines(report: WhyReport, *, verbose: bool) -> Iterator[str]:
    most = None if verbose else _SHOWN
    yield clean(report.story[0].upper() + report.story[1:] + ".")
    if report.parts:
        yield f"\nAt {'the start' if report.step == 0 else f'step {report.step}'}"
        yield from (_part(part, most) for part in report.parts)
    if report.differences:
        yield "\nWhat differs"
        yield from (_difference(each, most) for each in report.differences)
    yield from _listed("Cannot be told", report.not_told)
    if verbose:
        yield from _listed("Compared", report.compared)


def _part(part: Parting, most: int | None) -> str:
    return f"  {part.quantity:<10} {_cut(str(part.first), most)}  |  {_cut(str(part.second), most)}"


def _difference(each: Difference, most: int | None) -> str:
    return f"  {each.cause:<14} {_cut(each.says, None if most is None else 2 * most)}"


def _listed(heading: str, items: Sequence[str]) -> Iterator[str]:
    if items:
        yield f"\n{heading}"
        yield from (f"  {clean(item)}" for item in items)


def _cut(text: str, most: int | None) -> str:
    shown = clean(text)
    return shown if most is None or len(shown) <= most else f"{shown[: most - 3]}..."
