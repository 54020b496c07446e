"""trackio's SQLite file, opened read-only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from gradience.configs.settings import stack
from gradience.errors import RecorderError, SchemaError
from gradience.importers.database import opened, require_stored
from gradience.importers.files import SourceRun, clock_of, require_file
from gradience.importers.settings import mapping_layer
from gradience.importers.table import Numbered, flatten, rows_to_raw
from gradience.schema.scalars import Json
from gradience.telemetry.codec import parse

_RUNS: Final = (
    "SELECT {key}, max(run_name), max(timestamp) AS newest FROM metrics GROUP BY {key} ORDER BY newest, {key}"
)
_ROWS: Final = "SELECT id, step, timestamp, metrics FROM metrics WHERE {key} = ? ORDER BY id"
_CONFIG: Final = "SELECT config FROM configs WHERE {key} = ? ORDER BY id DESC LIMIT 1"
_FILE: Final = "give the .db file of a trackio project"
_NEEDED: Final = {"step", "timestamp", "run_name", "metrics"}


def read_trackio(path: Path, columns: Mapping[str, str] | None = None) -> list[SourceRun]:
    """Return the runs of the file, the one written to last at the end.

    Raises:
        RecorderError: the file is not trackio's, or holds no run.
    """
    require_file(path)
    with opened(path, advice=_FILE) as base:
        require_stored(base, path, "metrics", "configs")
        key = _key(base, path)
        runs = base.execute(_RUNS.format(key=key)).fetchall()
        return [_read_run(base, path, key, run[:2], columns) for run in runs] or _none(path)


def _key(base: sqlite3.Connection, path: Path) -> str:
    """Return the column that identifies a run: older files have only names."""
    columns = {row[1] for row in base.execute("PRAGMA table_info(metrics)")}
    if not columns >= _NEEDED:
        raise RecorderError(f"{path}: no table `metrics` as trackio writes it", advice="give trackio's .db file")
    return "run_id" if "run_id" in columns else "run_name"


def _none(path: Path) -> list[SourceRun]:
    raise RecorderError(f"{path} holds no run", advice="trackio writes at trackio.finish()")


def _read_run(
    base: sqlite3.Connection, path: Path, key: str, named: tuple[Json, Json], columns: Mapping[str, str] | None
) -> SourceRun:
    run, name = named
    raw = SourceRun(
        path, name=str(name), unit="row", files=[path], run_id=str(run) if key == "run_id" and run else None
    )
    raw.layer = stack([raw.layer, mapping_layer(_config(base, key, run), raw)])
    return rows_to_raw(raw, _rows(base, key, run), columns)


def _rows(base: sqlite3.Connection, key: str, run: Json) -> Iterator[Numbered]:
    for place, step, timestamp, metrics in base.execute(_ROWS.format(key=key), (run,)):
        row = _object(metrics)
        if row is None:
            yield place, "its metrics are no JSON object"
            continue
        clock = {"ts": timestamp} if clock_of(timestamp) is not None else {}
        yield place, {**flatten(row), "step": step, **clock}


def _config(base: sqlite3.Connection, key: str, run: Json) -> dict[str, Json]:
    with suppress(sqlite3.Error):  # an older file has no such table
        found = base.execute(_CONFIG.format(key=key), (run,)).fetchone()
        if found:
            return _object(found[0]) or {}
    return {}


def _object(value: Json) -> dict[str, Json] | None:
    data = value.encode("utf-8", "replace") if isinstance(value, str) else value
    if not isinstance(data, bytes):
        return None
    try:
        return parse(data)[0]
    except (SchemaError, msgspec.MsgspecError):
        return None
