"""What a source says of one run, before it is told as events."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gradience.configs.layer import Layer
from gradience.schema.reports import SkippedRow
from gradience.schema.scalars import Json
from gradience.telemetry.secrets import hide_secrets

__all__ = ["Raw", "Row"]


class Row(NamedTuple):
    """One logged row by Trainer's names (`loss`, `learning_rate`, `eval_loss`, ...), without its step and nulls."""

    place: int  # line of the file, or number of the row, from 1
    step: int | None
    values: dict[str, Json]
    ts: float | None = None


@dataclass(slots=True)
class Raw:
    """One run as its source has it: rows in the order of the file."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    name: str | None = None  # where a source holds several runs
    run_id: str | None = None  # where the source has one
    unit: str = "line"  # what `place` counts
    planned: int | None = None  # optimizer steps
    reached: int | None = None  # the last step as the source says it, rows or not
    finished: bool = False  # the source says by other means that training came to its end
    layer: Layer = field(default_factory=Layer)
    skipped: list[SkippedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)  # read, the first of them for the rows

    def skip(self, place: int, reason: str) -> None:
        """Count a row that is none; the reason may quote it, but no secret of it."""
        self.skipped.append(SkippedRow(file=self.path.name, line=place, reason=hide_secrets(reason)))
