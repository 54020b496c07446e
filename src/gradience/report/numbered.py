"""The causes of a diagnosis in one numbered list, gravest first, each at its step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from gradience.report.plot import Mark
from gradience.schema.diagnose import Cause, DiagnoseReport

__all__ = ["Numbered", "marks_of", "numbered"]

_STEPS: Final = ("step", "first_step", "best_step", "from_step", "lowest_step")  # where a finding says it is


class Numbered(NamedTuple):
    """A cause and its number in the report."""

    number: int
    cause: Cause

    @property
    def sources(self) -> list[str]:
        """Which sources show it."""
        return list(dict.fromkeys(piece.source for piece in self.cause.pieces))

    @property
    def ids(self) -> list[str]:
        """Its id, and those of the findings that it joins."""
        return list(dict.fromkeys([self.cause.id, *(piece.id for piece in self.cause.pieces if piece.id)]))

    @property
    def step(self) -> int | None:
        """The step it speaks of, or None where it speaks of no single one."""
        values = (self.cause.values.get(name) for name in _STEPS)
        return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)

    @property
    def anchor(self) -> str:
        """The id of its place in the page."""
        return f"finding-{self.number}"


def numbered(report: DiagnoseReport) -> list[Numbered]:
    """Return the causes with their numbers, from 1."""
    return [Numbered(place, cause) for place, cause in enumerate(report.causes, 1)]


def marks_of(found: Sequence[Numbered], prefix: str = "") -> list[Mark]:
    """Return the marks of what the log shows and whose id begins so, in the order of their steps."""
    at = [(n, n.step) for n in found if "log" in n.sources and any(finding.startswith(prefix) for finding in n.ids)]
    marks = [Mark(n.number, step, n.cause.severity) for n, step in at if step is not None]
    return sorted(marks, key=lambda mark: mark.step)
