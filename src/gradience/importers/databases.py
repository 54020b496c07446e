"""Loggers that keep a database: trackio's SQLite file, and MLflow's, or MLflow's folder with a `meta.yaml` per run.

A SQLite file may come from a stranger, so it is opened read-only and with limits.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from shutil import copyfile
from typing import Final
from urllib.parse import quote

import msgspec

from gradience.configs.settings import stack
from gradience.errors import RecorderError, SchemaError
from gradience.importers.binary import Scalar, scalar_rows
from gradience.importers.files import MAX_ROWS, SourceRun, clock_of, mapping_layer, readable, refuse_large, require_file
from gradience.importers.table import Numbered, cell_value, flatten, rows_to_raw
from gradience.io.atomic import scratch_folder
from gradience.io.reading import open_regular, read_small
from gradience.schema import Json
from gradience.telemetry.codec import parse

MAX_CELL: Final = 16 * 1024**2  # most bytes of one value; a logged row has about 1 KB
MAX_STEPS: Final = 300_000_000  # steps of SQLite's virtual machine: a few seconds, or ten million rows of some twenty
_STEPS_A_CALL: Final = 100_000
_OWN: Final = "give the file as the logger wrote it"
_EXPORT: Final = "export the run, and import the table"

_RUNS: Final = (
    "SELECT {key}, max(run_name), max(timestamp) AS newest FROM metrics GROUP BY {key} ORDER BY newest, {key}"
)
_ROWS: Final = "SELECT id, step, timestamp, metrics FROM metrics WHERE {key} = ? ORDER BY id"
_CONFIG: Final = "SELECT config FROM configs WHERE {key} = ? ORDER BY id DESC LIMIT 1"
_FILE: Final = "give the .db file of a trackio project"
_NEEDED: Final = {"step", "timestamp", "run_name", "metrics"}

META: Final = "meta.yaml"
TABLES: Final = frozenset({"experiments", "runs", "metrics", "params"})
_FINISHED: Final = {"3", "FINISHED"}  # MLflow's RunStatus; a file has its number
_STOPPED: Final = {"4": "failed", "5": "was killed", "FAILED": "failed", "KILLED": "was killed"}
_MAX_META: Final = 1 << 20  # most bytes of a meta.yaml or a parameter; MLflow allows 6000 characters
_MAX_LINE: Final = 4096  # most bytes of a reading: three numbers and the name of a data set
_MAX_FILES: Final = 5000  # most metrics, or parameters
_MILLI: Final = 1000.0
_FIELDS: Final = 3  # time, value, step; the name and digest of a data set may follow
_ADVICE: Final = "give a run's folder in mlruns, or MLflow's .db file"
_ACTIVE: Final = (
    "SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time, run_uuid"
)
_METRICS: Final = "SELECT timestamp, step, key, value, is_nan FROM metrics WHERE run_uuid = ?"
_PARAMS: Final = "SELECT key, value FROM params WHERE run_uuid = ?"


@contextmanager
def opened(path: Path, *, advice: str) -> Iterator[sqlite3.Connection]:
    """A read-only connection that writes nothing beside the file, reads no huge cell, and stops an endless query.

    If a journal holds data that the file lacks, both are copied and the copies are opened. Opened in place, SQLite
    would write a shared index (`-shm`) beside them.

    Raises:
        RecorderError: the file is not a database, or a query does not fit it; the error carries `advice`.
    """
    try:
        yield from _copied(path)
    except (sqlite3.Error, OSError, UnicodeError) as error:  # SQLite quotes a broken schema in its error, byte for byte
        if "interrupted" in str(error):
            raise RecorderError(f"{path}: reading takes more than {MAX_STEPS:.0e} steps", advice=_EXPORT) from error
        raise RecorderError(f"{path}: {error}", advice=advice) from error


def _copied(path: Path) -> Iterator[sqlite3.Connection]:
    journal = path.with_name(f"{path.name}-wal")
    if journal.exists() and journal.stat().st_size:
        with scratch_folder() as folder:
            for source in (path, journal):
                require_file(source)
                copyfile(source, folder / source.name)
            yield from _connected(folder / path.name, "mode=rw")
    else:
        yield from _connected(path, "mode=ro&immutable=1")


def _connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?{mode}", uri=True)) as base:
        base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL)
        steps = iter(range(MAX_STEPS // _STEPS_A_CALL))
        base.set_progress_handler(lambda: next(steps, None) is None, _STEPS_A_CALL)
        base.execute("PRAGMA trusted_schema = OFF")
        yield base


def tables_of(path: Path) -> set[str]:
    """The names of the tables; empty if the file is not a database."""
    try:
        with opened(path, advice="") as base:
            return {str(name) for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except RecorderError:
        return set()


def require_stored(base: sqlite3.Connection, path: Path, *tables: str) -> None:
    """Refuse views and computed columns in place of a table, because reading one row may cost any amount of work.

    Raises:
        RecorderError: one of the tables is not a plain table.
    """
    for table in tables:
        kinds = base.execute("SELECT name, type FROM sqlite_master WHERE name = ?", (table,)).fetchall()
        hidden = base.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden <> 0", (table,)).fetchall()
        for name, kind in [*kinds, *((f"{table}.{column}", "computed column") for (column,) in hidden)]:
            if kind not in {"table", "index"}:
                raise RecorderError(
                    f"{path}: `{name}` is a {kind}, not stored rows", advice="give the logger's own file"
                )


def read_trackio(path: Path, columns: Mapping[str, str] | None = None) -> list[SourceRun]:
    """Return the runs of the file; the run written to last comes last.

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
    """Return the column that identifies a run. Older files have only names, no ids."""
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


def is_meta(path: Path, head: bytes) -> bool:
    """Whether the file with this beginning is the meta.yaml of a run that has metrics."""
    return path.name == META and b"run_id:" in head and (path.parent / "metrics").is_dir()


def read_mlflow(path: Path, columns: Mapping[str, str] | None = None) -> list[SourceRun]:
    """Return the run of a `meta.yaml`, or all runs of a database that logged a metric, the latest last.

    Raises:
        RecorderError: it is neither, or holds no metric.
    """
    require_file(path)
    return [_of_folder(path, columns)] if path.name == META else _of_database(path, columns)


def _of_folder(path: Path, columns: Mapping[str, str] | None) -> SourceRun:
    meta = dict(_pair(line) for line in _text(path).splitlines() if ":" in line)
    raw = SourceRun(path, unit="metric group", files=[path], run_id=meta.get("run_id"), name=meta.get("run_name"))
    files = _files(path.parent / "metrics")
    with readable(path):
        refuse_large(path.parent, sum(file.stat().st_size for file in files))
    scalars = [scalar for file in files for scalar in _readings(raw, path.parent, file)]
    params = path.parent / "params"
    settings = {file.relative_to(params).as_posix(): _text(file) for file in _files(params)}
    return _run(raw, scalars, settings, meta.get("status"), columns)


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip().strip("'\"")


def _files(folder: Path) -> list[Path]:
    """The files below a folder, sorted. A metric named `train/loss` is a file in a subfolder."""
    found = (Path(top, name) for top, _, names in os.walk(folder) for name in names)
    return sorted(islice((path for path in found if path.is_file()), _MAX_FILES))


def _text(path: Path) -> str:
    with readable(path):
        return read_small(path, most=_MAX_META, what="MLflow's text").decode("utf-8", "replace")


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
        found = [_of_rows(base, path, run, columns) for run in base.execute(_ACTIVE).fetchmany(_MAX_FILES)]
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
