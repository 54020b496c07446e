"""MLflow's runs: its file store, a folder with `meta.yaml` for each run, and its SQLite database."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Final

from gradience.errors import RecorderError
from gradience.importers.database import opened, require_stored
from gradience.importers.files import MAX_ROWS, SourceRun, require_file
from gradience.importers.settings import mapping_layer
from gradience.importers.table import cell_value, rows_to_raw
from gradience.importers.tensorboard import Scalar, scalar_rows
from gradience.io.reading import open_regular, read_small
from gradience.schema.scalars import Json

META: Final = "meta.yaml"
TABLES: Final = frozenset({"experiments", "runs", "metrics", "params"})
_FINISHED: Final = {"3", "FINISHED"}  # RunStatus, in a file as its number
_STOPPED: Final = {"4": "failed", "5": "was killed", "FAILED": "failed", "KILLED": "was killed"}
_MAX_META: Final = 1 << 20  # bytes of a meta.yaml or a parameter: MLflow allows 6000 characters
_MAX_LINE: Final = 4096  # bytes of a reading, three numbers and the name of a data set
_MAX_FILES: Final = 5000  # metrics, or parameters
_MILLI: Final = 1000.0
_FIELDS: Final = 3  # time, value, step; the name and digest of a data set may follow
_ADVICE: Final = "give a run's folder in mlruns, or MLflow's .db file"
_RUNS: Final = "SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time, run_uuid"
_METRICS: Final = "SELECT timestamp, step, key, value, is_nan FROM metrics WHERE run_uuid = ?"
_PARAMS: Final = "SELECT key, value FROM params WHERE run_uuid = ?"


def is_meta(path: Path, head: bytes) -> bool:
    """Whether the file, which begins so, describes a run of a file store that has metrics."""
    return path.name == META and b"run_id:" in head and (path.parent / "metrics").is_dir()


def read_mlflow(path: Path, columns: Mapping[str, str] | None = None) -> list[SourceRun]:
    """Return the run of a `meta.yaml`, or all of a database that logged anything, the latest at the end.

    Raises:
        RecorderError: it is neither, or holds no metric.
    """
    require_file(path)
    return [_of_folder(path, columns)] if path.name == META else _of_database(path, columns)


def _of_folder(path: Path, columns: Mapping[str, str] | None) -> SourceRun:
    meta = dict(_pair(line) for line in _text(path).splitlines() if ":" in line)
    raw = SourceRun(path, unit="metric group", files=[path], run_id=meta.get("run_id"), name=meta.get("run_name"))
    scalars = [scalar for file in _files(path.parent / "metrics") for scalar in _readings(raw, path.parent, file)]
    params = path.parent / "params"
    settings = {file.relative_to(params).as_posix(): _text(file) for file in _files(params)}
    return _run(raw, scalars, settings, meta.get("status"), columns)


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip().strip("'\"")


def _files(folder: Path) -> list[Path]:
    """The files below a folder by name: a metric `train/loss` is a file in a folder."""
    found = (Path(top, name) for top, _, names in os.walk(folder) for name in names)
    return sorted(islice((path for path in found if path.is_file()), _MAX_FILES))


def _text(path: Path) -> str:
    try:
        return read_small(path, most=_MAX_META, what="MLflow's text").decode("utf-8", "replace")
    except OSError as error:
        raise RecorderError(f"cannot read {path}: {error.strerror}", advice="check the path") from error


def _readings(raw: SourceRun, folder: Path, path: Path) -> Iterator[Scalar]:
    tag = path.relative_to(folder / "metrics").as_posix()
    try:
        with open_regular(path) as file:
            lines = list(islice(iter(lambda: file.readline(_MAX_LINE), b""), MAX_ROWS))
    except OSError as error:
        raw.notes.append(f"metric {tag} was not read: {error.strerror}")
        return
    raw.files.append(path)
    for number, line in enumerate(lines, 1):
        fields = line.split()
        try:
            ts, value, step = fields[:_FIELDS]
            yield Scalar(float(int(ts)) / _MILLI, int(step), tag, float(value))
        except (ValueError, OverflowError):
            raw.skip(number, f"metric {tag}: no `time value step`")


def _run(
    raw: SourceRun,
    scalars: list[Scalar],
    settings: Mapping[str, str],
    status: str | None,
    columns: Mapping[str, str] | None,
) -> SourceRun:
    if not scalars:
        raise RecorderError(f"{raw.path}: the run logged no metric", advice=_ADVICE)
    typed: dict[str, Json] = {name: cell_value(text) for name, text in settings.items()}
    raw.layer = mapping_layer(typed, raw)
    raw.finished = status in _FINISHED
    if status in _STOPPED:
        raw.notes.append(f"MLflow: the run {_STOPPED[status]}")
    ordered = sorted(scalars, key=lambda scalar: (scalar.ts, scalar.step))
    return rows_to_raw(raw, scalar_rows(ordered), columns)


def _of_database(path: Path, columns: Mapping[str, str] | None) -> list[SourceRun]:
    with opened(path, advice=_ADVICE) as base:
        require_stored(base, path, "runs", "metrics", "params")
        found = [_of_rows(base, path, run, columns) for run in base.execute(_RUNS).fetchmany(_MAX_FILES)]
    runs = [raw for raw in found if raw is not None]
    if not runs:
        raise RecorderError(f"{path}: no run logged a metric", advice=_ADVICE)
    return runs


def _of_rows(
    base: sqlite3.Connection, path: Path, run: tuple[Json, Json, Json], columns: Mapping[str, str] | None
) -> SourceRun | None:
    key, name, status = run
    raw = SourceRun(path, unit="metric group", files=[path], run_id=str(key), name=str(name or key))
    scalars: list[Scalar] = []
    for number, (ts, step, tag, value, is_nan) in enumerate(base.execute(_METRICS, (key,)), 1):
        if isinstance(ts, int) and isinstance(step, int) and isinstance(value, int | float):
            scalars.append(Scalar(ts / _MILLI, step, str(tag), float("nan") if is_nan else float(value)))
        else:
            raw.skip(number, "no numbers in it")
        if number >= MAX_ROWS:
            break
    settings = {str(name): str(value) for name, value in base.execute(_PARAMS, (key,)).fetchmany(_MAX_FILES)}
    return _run(raw, scalars, settings, str(status), columns) if scalars else None
