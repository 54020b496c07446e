"""Loggers that keep a database: trackio, and MLflow, which also writes a folder for each run. Their own packages read.

A package may write beside what it opens, so it is given a copy. No package is asked to use the network.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from shutil import copyfile
from typing import Any, Final, Literal
from urllib.parse import quote
from warnings import catch_warnings, simplefilter

import msgspec

from gradience.configs.settings import stack
from gradience.errors import MissingPackageError, RecorderError, SchemaError
from gradience.importers.files import MAX_ROWS, SourceRun, clock_of, mapping_layer, readable, refuse_large, require_file
from gradience.importers.table import Numbered, cell_value, flatten, rows_to_raw
from gradience.importers.tensorboard import Scalar, scalar_rows
from gradience.io.atomic import scratch_folder
from gradience.io.reading import read_small
from gradience.schema import Json, Status
from gradience.telemetry.codec import parse

META: Final = "meta.yaml"
_TABLES: Final = frozenset({"experiments", "runs", "metrics", "params"})  # MLflow's
_PARTS: Final = ("metrics", "params", "tags")
_MOST_FILES: Final = 5000  # files of one run in MLflow's folder: one for each metric, parameter and tag
_MAX_META: Final = 1 << 20  # bytes of a meta.yaml, which has some 500
_SECONDS: Final = 120  # for trackio to answer; a project of a million rows takes some ten
_MILLI: Final = 1000.0
_ENDED: Final[dict[str, Status]] = {"FINISHED": "ok", "FAILED": "error", "KILLED": "interrupted"}
_ADVICE: Final = "give a run's folder in mlruns, or MLflow's .db file"
_PROJECT: Final = "give the .db file of a trackio project"
_QUIET: Final = {  # what MLflow reads of the environment: it would send how it is used, and refuse its own folders
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}


def database_of(path: Path) -> Literal["mlflow", "trackio"] | None:
    """The program whose tables a SQLite file holds: `mlflow`, `trackio`, or None."""
    names = _tables(path)
    return "mlflow" if names >= _TABLES else "trackio" if "metrics" in names else None


def _tables(path: Path) -> set[str]:
    """The tables of stored rows. A view and a computed column are none: one row of them may cost any amount of work."""
    computed = "EXISTS (SELECT 1 FROM pragma_table_xinfo(name) WHERE hidden > 1)"
    query = f"SELECT name FROM sqlite_master WHERE type = 'table' AND NOT {computed}"  # noqa: S608  # constant
    try:
        with _copied(path) if _journal(path) else nullcontext(path) as at:
            # Not immutable, SQLite would write -wal and -shm files beside a database in WAL mode.
            mode = "ro&immutable=1" if at == path else "rw"
            with closing(sqlite3.connect(f"file:{quote(str(at.absolute()))}?mode={mode}", uri=True)) as base:
                return {str(name) for (name,) in base.execute(query)}
    except (sqlite3.Error, UnicodeError, RecorderError):
        return set()


def _journal(path: Path) -> list[Path]:
    """The journal that holds rows which the database lacks yet, if there is one."""
    journal = path.with_name(f"{path.name}-wal")
    return [journal] if journal.is_file() and journal.stat().st_size else []


@contextmanager
def _copied(path: Path) -> Iterator[Path]:
    """A copy of a database, with the journal that may hold its newest rows."""
    with scratch_folder() as folder:
        for source in (path, *_journal(path)):
            require_file(source)
            with readable(source):
                copyfile(source, Path(folder, source.name))
        yield Path(folder, path.name)


def _require(package: str, path: Path) -> None:
    if find_spec(package) is None:
        raise MissingPackageError(f"{path}: reading this needs {package}", advice=f"pip install {package}")


def read_trackio(path: Path, columns: Mapping[str, str] | None = None) -> list[SourceRun]:
    """Return the runs of a project's file; the run written to last comes last.

    Raises:
        RecorderError: trackio is not installed or cannot read the file, or it holds no run.
    """
    require_file(path)
    _require("trackio", path)
    with _copied(path) as copy:
        rows = _answer(path, copy, "metrics")
        configs = _answer(path, copy, "configs") if "configs" in _tables(path) else []
    runs: dict[Json, list[dict[str, Json]]] = {}
    for row in rows:
        runs.setdefault(_key(row), []).append(row)
    if not runs:
        raise RecorderError(f"{path} holds no run", advice="trackio writes at trackio.finish()")
    runs[_key(rows[-1])] = runs.pop(_key(rows[-1]))
    settings = {_key(row): _object(row.get("config")) for row in configs}
    return [_of_project(path, key, logged, settings.get(key) or {}, columns) for key, logged in runs.items()]


def _key(row: Mapping[str, Json]) -> Json:
    return row.get("run_id") or row.get("run_name")


def _answer(path: Path, copy: Path, table: str) -> list[dict[str, Json]]:
    """Ask trackio's own command; it has its own process because its folder is fixed when it is imported."""
    sql = f"SELECT * FROM {table} ORDER BY id LIMIT {MAX_ROWS}"  # noqa: S608  # one of two names
    command = ["query", "project", "--project", copy.stem, "--sql", sql, "--json"]
    mine = {"TRACKIO_DIR": str(copy.parent), "HF_HUB_OFFLINE": "1"}
    others = {name: value for name, value in os.environ.items() if not name.startswith("TRACKIO_")}
    # -P: a trackio.py in the working folder is not imported.
    call = [sys.executable, "-P", "-c", "from trackio.cli import main; main()", *command]
    try:
        done = subprocess.run(call, env={**others, **mine}, capture_output=True, timeout=_SECONDS, check=False)  # noqa: S603  # our own interpreter
    except subprocess.TimeoutExpired as error:
        raise RecorderError(f"{path}: trackio did not answer in {_SECONDS} s", advice=_PROJECT) from error
    if done.returncode:
        reasons = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise RecorderError(f"{path}: trackio cannot read it: {reasons[-1][:200]}", advice=_PROJECT)
    rows = json.loads(done.stdout[done.stdout.index(b"{") :]).get("rows", [])
    return [row for row in rows if isinstance(row, dict)]


def _of_project(
    path: Path,
    key: Json,
    logged: list[dict[str, Json]],
    settings: Mapping[str, Json],
    columns: Mapping[str, str] | None,
) -> SourceRun:
    named = str(logged[-1].get("run_name") or key)
    raw = SourceRun(path, name=named, unit="row", files=[path], run_id=str(key) if logged[-1].get("run_id") else None)
    raw.layer = stack([raw.layer, mapping_layer(settings, raw)])
    return rows_to_raw(raw, map(_logged, logged), columns)


def _logged(row: Mapping[str, Json]) -> Numbered:
    place, measured = row.get("id"), _object(row.get("metrics"))
    number = place if isinstance(place, int) else 0
    if measured is None:
        return number, "its metrics are no JSON object"
    clock = {"ts": row.get("timestamp")} if clock_of(row.get("timestamp")) is not None else {}
    return number, {**flatten(measured), "step": row.get("step"), **clock}


def _object(value: Json) -> dict[str, Json] | None:
    if not isinstance(value, str):
        return None
    try:
        return parse(value.encode("utf-8", "replace"))[0]
    except (SchemaError, msgspec.MsgspecError):
        return None


def is_meta(path: Path, head: bytes) -> bool:
    """Whether the file with this beginning is the meta.yaml of a run that has metrics."""
    return path.name == META and b"run_id:" in head and (path.parent / "metrics").is_dir()


def read_mlflow(path: Path, columns: Mapping[str, str] | None = None) -> list[SourceRun]:
    """Return the run of a `meta.yaml`, or all runs of a database that logged a metric, the latest last.

    Raises:
        RecorderError: mlflow is not installed or cannot read it, or no run logged a metric.
    """
    require_file(path)
    _require("mlflow", path)
    with _stored(path) as uri, _quiet():
        client = import_module("mlflow.tracking.client").MlflowClient
        try:
            raws = [_of_store(path, store, run, columns) for store in [client(uri)] for run in _active(store)]
        except RecorderError:
            raise
        except ModuleNotFoundError as error:  # mlflow-skinny reads no database
            raise MissingPackageError(
                f"{path}: reading this needs {error.name}", advice="pip install mlflow"
            ) from error
        except Exception as error:  # MLflow raises its own, SQLAlchemy's, Alembic's and built-in errors
            reason = " ".join(str(error).split())[:200]
            raise RecorderError(f"{path}: mlflow cannot read it: {reason}", advice=_ADVICE) from error
    runs = [raw for raw in raws if raw is not None]
    if not runs:
        raise RecorderError(f"{path}: no run logged a metric", advice=_ADVICE)
    return runs


@contextmanager
def _stored(path: Path) -> Iterator[str]:
    """The address of a copy: of the database, or of one run's folder as the only run of a store."""
    if path.name != META:
        with _copied(path) as copy:
            yield f"sqlite:///{copy}"
        return
    files = list(islice(_files(path.parent), _MOST_FILES))
    with readable(path), scratch_folder() as root:
        refuse_large(path.parent, sum(file.stat().st_size for file in files))
        experiment, run = (_named(path, key) for key in ("experiment_id", "run_id"))
        for part in (*_PARTS, "artifacts"):  # without all of them MLflow finds no run
            Path(root, experiment, run, part).mkdir(parents=True)
        for file in files:
            target = Path(root, experiment, run, file.relative_to(path.parent))
            target.parent.mkdir(parents=True, exist_ok=True)
            copyfile(file, target)
        about = {"artifact_location": "", "experiment_id": experiment, "lifecycle_stage": "active", "name": experiment}
        Path(root, experiment, META).write_text("".join(f"{key}: '{text}'\n" for key, text in about.items()))
        yield Path(root).as_uri()


def _named(path: Path, key: str) -> str:
    """A value of a meta.yaml as a name; "0" if it has none."""
    text = read_small(path, most=_MAX_META, what="MLflow's text").decode("utf-8", "replace")
    hit = re.search(rf"^{key}: *['\"]?([\w-]+)", text, re.MULTILINE)
    return hit[1] if hit else "0"


def _files(folder: Path) -> Iterator[Path]:
    """The files of a run that hold its numbers and settings, not its artifacts."""
    yield folder / META
    for part in _PARTS:
        for top, _, names in os.walk(folder / part):
            yield from (path for name in sorted(names) if (path := Path(top, name)).is_file())


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which MLflow sends nothing, says nothing, and reads folders too."""
    before, level = {name: os.environ.get(name) for name in _QUIET}, logging.root.manager.disable
    os.environ.update(_QUIET)
    logging.disable(logging.CRITICAL)
    try:
        with catch_warnings():
            simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _active(store: Any) -> Iterator[Any]:
    """The runs of a store, the latest last."""
    experiments = [each.experiment_id for each in _paged(store.search_experiments)]
    return _paged(partial(store.search_runs, experiments, order_by=["attributes.start_time ASC"]))


def _paged(search: Callable[..., Any]) -> Iterator[Any]:
    """What a search of MLflow finds, which it returns in pages."""
    page = search()
    yield from page
    while page.token:
        page = search(page_token=page.token)
        yield from page


def _of_store(path: Path, store: Any, run: Any, columns: Mapping[str, str] | None) -> SourceRun | None:
    raw = SourceRun(path, unit="metric group", files=[path], run_id=run.info.run_id, name=run.info.run_name)
    history = (value for key in run.data.metrics for value in store.get_metric_history(raw.run_id, key))
    scalars = [Scalar(value.timestamp / _MILLI, value.step, value.key, value.value) for value in history]
    if not scalars:
        return None
    typed: dict[str, Json] = {name: cell_value(text) for name, text in run.data.params.items()}
    raw.layer = mapping_layer(typed, raw)
    if run.info.status in _ENDED:
        raw.ending = (_ENDED[run.info.status], f"MLflow recorded the status {run.info.status}")
    ordered = sorted(scalars, key=lambda scalar: (scalar.ts, scalar.step))
    return rows_to_raw(raw, scalar_rows(ordered), columns)
