"""`all_results.json` and `train_results.json`: what a script saved at the end of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gradience.errors import RecorderError
from gradience.importers.files import whole_json
from gradience.importers.raw import Raw, Row
from gradience.schema.scalars import Json
from gradience.telemetry.logged import split_row

__all__ = ["add_results"]

_NAMES: Final = ("all_results.json", "train_results.json", "eval_results.json")
_COUNTS: Final = ("eval_samples", "test_samples", "predict_samples")


def add_results(raw: Raw, folder: Path) -> None:
    """Add the summary and evaluations that the rows lack; the files have no step, and none is made up."""
    for name in _NAMES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            document = whole_json(path)
        except RecorderError as error:
            raw.notes.append(f"{name} was not used: {str(error).removeprefix(f'{path}: ')}")
            continue
        if isinstance(document, dict):
            _add(raw, path, document)


def _add(raw: Raw, path: Path, results: dict[str, Json]) -> None:
    _count_examples(raw, results)
    added = [part for part in _parts(results) if not _is_there(raw, part)]
    if "train_runtime" in results and "train_loss" in results:
        raw.finished = True
    if not added:
        return
    raw.rows += [Row(0, None, part) for part in added]
    raw.files.append(path)
    raw.notes.append(f"{path.name} adds what {raw.path.name} lacks, without a step: {', '.join(map(_named, added))}")


def _parts(results: dict[str, Json]) -> list[dict[str, Json]]:
    summary = {k: v for k, v in results.items() if k.startswith("train_") or k == "total_flos"}
    rest = {k: v for k, v in results.items() if k not in summary and k not in {*_COUNTS, "epoch"}}
    parts = [{"total_flos": None, **summary}] if "train_runtime" in summary else []
    return parts + [
        {f"eval_{k}" if s == "eval" else f"{s}_{k}": v for k, v in m.items()} for s, m in split_row(rest).evals.items()
    ]


def _named(part: dict[str, Json]) -> str:
    return "the summary" if "total_flos" in part else " and ".join(split_row(part).evals)


def _is_there(raw: Raw, part: dict[str, Json]) -> bool:
    """Whether a row of the history says the same: the files repeat its last rows."""
    told = {key: value for key, value in part.items() if value is not None}
    shared = [key for key in told if key.endswith(("_loss", "_runtime"))] or list(told)
    return any(all(row.values.get(key) == told[key] for key in shared) for row in raw.rows)


def _count_examples(raw: Raw, results: dict[str, Json]) -> None:
    """Give the evaluations their number of examples, where the script saved it."""
    n = results.get("eval_samples")
    if not isinstance(n, int) or isinstance(n, bool):
        return
    for place, row in enumerate(raw.rows):
        if "eval_loss" in row.values and "eval_n" not in row.values:
            raw.rows[place] = row._replace(values={**row.values, "eval_n": n})
