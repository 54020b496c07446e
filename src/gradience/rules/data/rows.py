"""Rows as the messages of findings name them: how many, their share, and the numbers of the first."""

from __future__ import annotations

from dataclasses import dataclass

from gradience.rules.rule import Observation, Rule
from gradience.schema.findings import RuleGroup
from gradience.schema.reports import DataReport, Rows
from gradience.schema.scalars import Json, Severity


@dataclass(frozen=True, kw_only=True)
class DataRule(Rule[DataReport]):
    """A rule that `gradience check --data` applies to a data set."""

    groups: tuple[RuleGroup, ...] = ("data",)


def share(rows: Rows, of: int) -> float:
    """The share of rows, of so many; 0 of none."""
    return rows.count / of if of else 0.0


def counted(rows: Rows, of: int, what: str = "rows") -> str:
    """How many rows, of how many.

    >>> counted(Rows(count=3, first=[1, 4, 9]), 60), counted(Rows(count=60, first=[1]), 60)
    ('3 of 60 rows (5 %: 1, 4, 9)', 'all 60 rows')
    """
    if rows.count == of:
        return f"all {of:,} {what}"
    named = (
        f": {', '.join(map(str, rows.first))}{', ...' if rows.count > len(rows.first) else ''}" if rows.first else ""
    )
    part = 100 * share(rows, of)
    shown = f"{part:.2g}" if part < 10 else f"{part:.0f}"  # two digits
    return f"{rows.count:,} of {of:,} {what} ({shown} %{named})"


def values(rows: Rows, of: int, **more: Json) -> dict[str, Json]:
    """The numbers of a finding on rows."""
    return {"rows": rows.count, "of": of, "share": share(rows, of), "first": rows.first, **more}


def on_rows(data: DataReport, rows: Rows, says: str, *, severity: Severity | None = None, **more: Json) -> Observation:
    """What was seen in some of the rows that were read, with their numbers."""
    of = data.rows_read
    return Observation(f"{counted(rows, of)} {says}", values(rows, of, **more), severity=severity)


def of_tokens(data: DataReport) -> str | None:
    """The need of a rule on supervised tokens: why a data set has none, or None."""
    if data.trainer in {"reward", "classification"}:
        return f"{data.trainer}: the loss is computed on one output per sequence, not on tokens"
    return None if data.rows_read else "no row could be tokenised"
