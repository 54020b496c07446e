"""Ludwig's `training_statistics.json`: lists of values by split, output feature and metric, one value an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from gradience.errors import RecorderError
from gradience.importers.files import MAX_ROWS, SourceRun, whole_json
from gradience.importers.table import Numbered, rows_to_raw
from gradience.schema.scalars import Json
from gradience.telemetry.values import step_of

_SPLITS: Final = {"training": "", "validation": "val_", "test": "test_"}
_COMBINED: Final = "combined"  # all output features: its loss is the one that is minimised
_TRIPLE: Final = 3  # epoch, step and value, where a metric was not flattened


def is_ludwig(document: Mapping[str, Json]) -> bool:
    """Whether the document holds such statistics."""
    training = document.get("training")
    return isinstance(training, dict) and isinstance(training.get(_COMBINED), dict)


def read_ludwig(path: Path, columns: Mapping[str, str] | None = None) -> SourceRun:
    """Return the run: its evaluations, counted in steps where Ludwig evaluated every so many, else in epochs.

    Raises:
        RecorderError: the file holds no such statistics.
    """
    document = whole_json(path)
    if not isinstance(document, dict) or not is_ludwig(document):
        raise RecorderError(f"{path}: no training statistics of Ludwig", advice="give training_statistics.json")
    raw = SourceRun(path, unit="evaluation", files=[path])
    every, unit = _frequency(document.get("evaluation_frequency"))
    raw.notes.append(f"one value every {every} {unit}: steps are counted in {unit}")
    return rows_to_raw(raw, _rows(document, every), columns)


def _frequency(value: Json) -> tuple[int, str]:
    given = value if isinstance(value, dict) else {}
    if given.get("period") == "step" and (every := step_of(given.get("frequency"))):
        return every, "steps"
    return 1, "epochs"


def _rows(document: Mapping[str, Json], every: int) -> Iterator[Numbered]:
    columns = {name: values for split, prefix in _SPLITS.items() for name, values in _columns(document, split, prefix)}
    for place in range(1, min(max(map(len, columns.values()), default=0), MAX_ROWS) + 1):
        row = {name: _value(values[place - 1]) for name, values in columns.items() if len(values) >= place}
        yield place, {**row, "step": place * every}


def _columns(document: Mapping[str, Json], split: str, prefix: str) -> Iterator[tuple[str, list[Json]]]:
    features = document.get(split)
    for feature, metrics in features.items() if isinstance(features, dict) else ():
        for metric, values in metrics.items() if isinstance(metrics, dict) else ():
            if isinstance(values, list):
                yield f"{prefix}{metric}" if feature == _COMBINED else f"{prefix}{feature}_{metric}", values


def _value(value: Json) -> Json:
    return value[-1] if isinstance(value, list) and len(value) == _TRIPLE else value
