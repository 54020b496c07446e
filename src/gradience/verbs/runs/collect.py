"""Collect the runs below some folders into a store in the user's cache. Only logs that have changed are read again.

A run is a run.jsonl, or the folder or file that another program's run wrote. The store has for each run the summary
that monitor gives, the training rows, the evaluations and the findings.
"""

from __future__ import annotations

import hashlib
import math
import os
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from gradience.configs.training import STATE_NAME
from gradience.errors import GradienceError, RecorderError, require
from gradience.folder.runs import read_run
from gradience.importers.sources import inner_folders, is_run, may_be_log
from gradience.importers.wandb import SUMMARY
from gradience.io import CHECKPOINT_PREFIX, PathLike, cache_folder
from gradience.io.atomic import scratch_folder
from gradience.reading.logs import is_log
from gradience.schema.document import writable
from gradience.schema.fleet import RUNS_SCHEMA_ID, EvalRow, RunFindingRow, RunRow, StepRow
from gradience.spectral import cores
from gradience.tables import encoded, finding_columns, number_column
from gradience.tables.store import Store, Tables
from gradience.telemetry.series import RunSeries
from gradience.verbs.fleet.audit import Job, JobProgress, Plan, answered, carry_out, known_rows, plan_of
from gradience.verbs.fleet.find import leads_to_folder, stamp_of
from gradience.verbs.fleet.records import version_of_rules
from gradience.verbs.fleet.workers import Done, carried_out
from gradience.verbs.monitor.run import monitored
from gradience.verbs.runs.rows import run_row
from gradience.verbs.runs.run import measured

_ALONE: Final = 200  # up to this many logs are read without workers, because a worker takes a second to start
_SETTINGS: Final = (".yaml", ".yml", "training_args.bin")
RUNS: Final = Tables(
    RUNS_SCHEMA_ID, {"runs": RunRow, "rows": StepRow, "evals": EvalRow, "findings": RunFindingRow}, private=True
)
MAX_RUNS: Final = 1000  # runs in one log; more are an error, because no known log holds as many


def collect_runs(
    *roots: PathLike,
    out: PathLike | None = None,
    workers: int | None = None,
    progress: Callable[[JobProgress], None] | None = None,
) -> Store:
    """Bring the store of all runs below the roots up to date, and return it.

    Args:
        roots: folders, or logs.
        out: the store's folder; by default a folder in the user's cache that belongs to these roots, or, if nothing can
            be written there, a temporary one that lives as long as what is returned.
        workers: the number of processes that read, if there are many logs; by default one per core.
        progress: called after each log.

    Raises:
        RecorderError: a root is missing.
        GradienceError: a package is missing, or `out` holds something else.
        OutputError: another process is updating the store, or it cannot be written.
    """
    require("pyarrow", "duckdb", extra="fleet", what="a table of runs")
    store = _cached(roots) if out is None else Store(Path(out), RUNS)
    plan = _plan(store, roots)
    if plan.jobs or plan.gone or not store.exists:
        with store.writing() as writer:
            plan = _plan(store, roots)  # again under the lock: another process may have written since
            answers = _answers(plan.jobs, workers or cores())
            carry_out(writer, plan, answers, _crashed, progress)
    return store


def _plan(store: Store, roots: Sequence[PathLike]) -> Plan:
    known = known_rows(store)
    return plan_of(find_runs(roots, known.keys()), known, version_of_rules("config", "log"))


def _cached(roots: Sequence[PathLike]) -> Store:
    if (cache := cache_folder("runs")) is None:  # as with a home that cannot be written: it is made again each time
        scratch = ExitStack()
        store = Store(scratch.enter_context(scratch_folder()), RUNS)
        weakref.finalize(store, scratch.close)
        return store
    # The same folders in another order are one store.
    places = sorted(os.path.abspath(root) for root in roots)  # noqa: PTH100  # no links resolved
    digest = hashlib.sha256("\0".join(places).encode("utf-8", "surrogateescape")).hexdigest()
    return Store(cache / digest[:24], RUNS)


def _answers(jobs: Sequence[Job], workers: int) -> Iterator[Done[Job]]:
    if len(jobs) <= _ALONE or workers == 1:
        return (Done(job, run_job(job)) for job in jobs)
    return carried_out(run_job, jobs, workers=workers, prepare=_nothing)


def _nothing() -> None:
    """Do nothing, because a worker that reads logs needs no preparation."""


def _crashed(job: Job) -> bytes:
    return run_failed(job, "worker processes died on it twice", "")


def find_runs(roots: Iterable[PathLike], known: Collection[str] = ()) -> Iterator[Job]:
    """Yield a job for every run below the roots.

    A run is a run.jsonl or another file that begins as a gradience log. A folder without one is a run if another
    program left a log or a trainer state in it. Its checkpoints and its logger's own folders belong to it.

    Args:
        roots: folders, or logs.
        known: paths known to be runs, which need not be opened.

    Raises:
        RecorderError: a root is missing.
    """
    paths: set[str] = set()
    for root in roots:
        place = os.path.abspath(root)  # noqa: PTH100  # links are not resolved: a row keeps the path that the user knows
        if not os.path.exists(place):  # noqa: PTH110  # Path.exists raises if a name is too long
            raise RecorderError(f"no such file or folder: {root}", advice="give a folder with runs below it")
        for path, stamp in _below(place, known) if os.path.isdir(place) else [_file(place)]:  # noqa: PTH112  # the same
            if path not in paths:
                paths.add(path)
                yield Job(
                    path=writable(path),
                    place=path,
                    files=(),
                    stamp=writable(stamp),
                    rules=version_of_rules("config", "log"),
                )


def _file(path: str) -> tuple[str, str]:
    folder, name = os.path.split(path)
    return path, stamp_of(folder, [name])


def _below(root: str, known: Collection[str]) -> Iterator[tuple[str, str]]:
    stack = [root]
    while stack:
        folder = stack.pop()
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue
        files = [entry.name for entry in listed if not leads_to_folder(entry)]
        below = [entry.name for entry in listed if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."]
        runs = list(_of(folder, files, below, known))
        yield from runs
        inner = inner_folders(os.path.basename(folder), below, of_run=bool(runs))  # noqa: PTH119  # ten thousand times
        stack += [f"{folder}/{name}" for name in reversed(inner)]


def _of(folder: str, files: list[str], below: list[str], known: Collection[str]) -> Iterator[tuple[str, str]]:
    """The runs of one folder: its gradience logs, or else the folder itself."""
    paths = [f"{folder}/{name}" for name in files if name.endswith(".jsonl")]
    ours = [path for path in paths if path in known or is_log(Path(path))]
    if ours:
        yield from map(_file, ours)
        return
    logs = [name for name in files if may_be_log(name) or name.endswith(".json")]
    logs += [f"{name}/{SUMMARY}" for name in below if name == "files"]
    states = [f"{name}/{STATE_NAME}" for name in below if name.startswith(CHECKPOINT_PREFIX)]
    if not logs and not states:
        return
    if folder in known or is_run(Path(folder)):
        settings = [name for name in files if name.endswith(_SETTINGS)]
        yield folder, stamp_of(folder, [*logs, *settings, *states])


def run_job(job: Job) -> bytes:
    """The encoded rows of one source. If the source cannot be read, they are one row with the error."""
    return answered(job, _read, run_failed, "the log")


def _read(job: Job) -> bytes:
    runs = list(read_run(job.place).of_each_run())
    if len(runs) > MAX_RUNS:
        raise GradienceError(f"{len(runs)} runs in one log, over the limit of {MAX_RUNS}")
    pairs = [(reading.run, monitored(reading)) for reading in runs]
    return encoded(
        [run_row(job.path, series, report, stamp=job.stamp, rules=job.rules) for series, report in pairs],
        [row for series, _ in pairs for row in _rows(job.path, series)],
        [row for series, _ in pairs for row in _evals(job.path, series)],
        [
            RunFindingRow(path=job.path, run=series.run_id, position=place, **finding_columns(finding))
            for series, report in pairs
            for place, finding in enumerate(report.findings)
        ],
    )


def run_failed(job: Job, reason: str, stamp: str) -> bytes:
    """The row of a log that could not be read. Without a stamp it is read again at the next call."""
    return encoded([RunRow(path=job.path, error=" ".join(reason.split()), stamp=stamp, rules=job.rules)], [], [], [])


def _rows(path: str, series: RunSeries) -> list[StepRow]:
    run = series.run_id
    losses, rates, norms = (_finite(column) for column in (series.losses, series.rates, series.grad_norms))
    return [
        StepRow(path=path, run=run, step=step, loss=loss, lr=rate, grad_norm=norm)
        for step, loss, rate, norm in zip(series.steps, losses, rates, norms, strict=True)
    ]


def _finite(column: Iterable[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in column]


def _evals(path: str, series: RunSeries) -> Iterator[EvalRow]:
    for event in series.evals:
        for metric, value in measured(event.metrics).items():
            number = number_column(value)
            if number is not None:
                yield EvalRow(
                    path=path, run=series.run_id, step=event.step, split=event.split, metric=metric, value=number
                )
