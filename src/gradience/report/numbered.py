"""The findings of all sources in one numbered list, gravest first, each at its step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from gradience.report.chart import Mark
from gradience.report.gather import Story
from gradience.schema.findings import SEVERITIES, Finding

__all__ = ["Numbered", "marks_of", "numbered"]

_STEPS: Final = ("step", "first_step", "best_step", "from_step", "lowest_step")  # where a finding says it is


class Numbered(NamedTuple):
    """A finding, its number in the report, and which sources show it."""

    number: int
    sources: Sequence[str]
    finding: Finding

    @property
    def step(self) -> int | None:
        """The step it speaks of, or None where it speaks of no single one."""
        values = (self.finding.values.get(name) for name in _STEPS)
        return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)

    @property
    def anchor(self) -> str:
        """The id of its place in the page."""
        return f"finding-{self.number}"


def numbered(story: Story) -> list[Numbered]:
    """Return the findings, gravest first; one that two sources show in the same words is one."""
    sources: dict[tuple[str, str], list[str]] = {}
    first: dict[tuple[str, str], Finding] = {}
    for source, finding in story.findings:
        key = finding.id, finding.message
        sources.setdefault(key, []).append(source)
        first.setdefault(key, finding)
    ranked = sorted(first, key=lambda key: -SEVERITIES.index(first[key].severity))
    return [Numbered(place, sources[key], first[key]) for place, key in enumerate(ranked, 1)]


def marks_of(found: Sequence[Numbered], prefix: str = "") -> list[Mark]:
    """Return the marks of the log's findings whose id begins so, in the order of their steps."""
    at = [(n, n.step) for n in found if "log" in n.sources and n.finding.id.startswith(prefix)]
    marks = [Mark(n.number, step, n.finding.severity) for n, step in at if step is not None]
    return sorted(marks, key=lambda mark: mark.step)
