"""The runs below some folders as a store: kept in the user's cache, and read again only where a log has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from gradience.io.paths import cache_folder
from gradience.io.paths import PathLike
from gradience.verbs.fleet.engines import Done, run_local
from gradience.verbs.fleet.job import Job
from gradience.verbs.fleet.store import Store
from gradience.verbs.fleet.update import Plan, Tally, carry_out, cores, known_rows, plan_of
from gradience.verbs.fleet.rows import version_of_rules
from gradience.verbs.runs.find import find_runs
from gradience.verbs.runs.rows import RUNS, run_failed, run_job

_ALONE: Final = 200  # logs that this process reads itself: a worker takes a second to start


def collect_runs(
    *roots: PathLike,
    out: PathLike | None = None,
    workers: int | None = None,
    progress: Callable[[Tally], None] | None = None,
) -> Store:
    """The store of all runs below the roots, brought up to date.

    Args:
        roots: folders, or logs.
        out: the store's folder; by default one in the user's cache, of these roots.
        workers: processes that read, where there are many; by default one for each core.
        progress: called after each log that is read.

    Raises:
        RecorderError: a root is missing.
        GradienceError: a package is missing, or `out` holds something else.
        OutputError: another process is bringing it up to date, or it cannot be written.
    """
    store = Store(_folder(roots) if out is None else Path(out), RUNS)
    plan = _plan(store, roots)
    if plan.jobs or plan.gone or not store.exists:
        with store.writing() as writer:
            plan = _plan(store, roots)  # anew: another process may have written since
            answers = _answers(plan.jobs, workers or cores())
            carry_out(writer, plan, answers, _crashed, progress)
    return store


def _plan(store: Store, roots: Sequence[PathLike]) -> Plan:
    known = known_rows(store)
    return plan_of(find_runs(roots, known.keys()), known, version_of_rules("config", "log"))


def _folder(roots: Sequence[PathLike]) -> Path:
    places = sorted(os.path.abspath(root) for root in roots)  # noqa: PTH100  # no links resolved
    digest = hashlib.sha256("\0".join(places).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder("runs") / digest[:24]


def _answers(jobs: Sequence[Job], workers: int) -> Iterator[Done[Job]]:
    if len(jobs) <= _ALONE or workers == 1:
        return (Done(job, run_job(job)) for job in jobs)
    return run_local(run_job, jobs, workers=workers, prepare=_nothing)


def _nothing() -> None:
    """A worker that reads logs needs no preparation."""


def _crashed(job: Job) -> bytes:
    return run_failed(job, "worker processes died on it twice", crashed=True)
