"""The verb `fleet audit`: worker processes audit every adapter below some roots into one store.

A store of adapters and a store of runs are updated in the same way. `plan_of` finds what is new or out of date.
`carry_out` writes an engine's answers in batches, so that a job that is killed loses little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gradience.io import PathLike
from gradience.schema.fleet import FLEET_AUDIT_SCHEMA_ID, FleetAuditReport
from gradience.spectral import cores, use_threads
from gradience.verbs import prepare_jax
from gradience.verbs.fleet import Known, read_index, version_of_rules, write_index
from gradience.verbs.fleet.engines import Done, Engine, run_local, run_ray
from gradience.verbs.fleet.find import Found, find_adapters
from gradience.verbs.fleet.job import SAME, Job, audit_job, failed, is_failure
from gradience.verbs.fleet.query import FLEET, opened
from gradience.verbs.fleet.store import Store, Writer

BATCH: Final = 128  # most adapters of a part
BATCH_SECONDS: Final = 10.0  # most work that a killed job loses, beside the jobs in flight


def audit_fleet(
    *roots: PathLike,
    out: PathLike,
    listed: Iterable[str] = (),
    base: PathLike | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    address: str | None = None,
    progress: Callable[[Tally], None] | None = None,
) -> FleetAuditReport:
    """Audit every adapter below the roots into a fleet, and report what was done.

    An adapter whose files and rules are unchanged is not read again. A killed job can be resumed, and the result is the
    same as without the interruption. Adapters that no longer exist lose their rows.

    Args:
        roots: folders, weights files, or fsspec URLs (`s3://`, `gs://`, `hf://`), with the credentials of this user.
        out: the fleet's folder.
        listed: further places; one that is missing becomes a row with its error.
        base: a base model with which every update is compared; its name is not compared with what adapters declare.
        engine: `local`, worker processes of this machine, or `ray`.
        workers: how many processes, or Ray tasks at once; by default one for each core.
        address: of a Ray cluster; None for one of this machine alone.
        progress: called after each adapter.

    Raises:
        AdapterError: a root is missing.
        GradienceError: a package is missing, or the folder holds something else.
        OutputError: another job is writing the fleet, or it cannot be written.
    """
    start = time.monotonic()
    count = workers or cores()
    store = Store(Path(out), FLEET)
    with store.writing() as writer:
        indexed, folders = read_index(store)
        known, rules = known_rows(store) if indexed is None else indexed, rules_version(base)
        found = find_adapters(roots, listed, known=known.keys(), folders=folders)
        plan = plan_of((_job(item, base, rules) for item in found), known, rules)
        answers = _answers(plan.jobs, engine, min(count, max(1, len(plan.jobs))), address)
        tally, same = carry_out(writer, plan, answers, crashed, progress)
        if indexed is None or tally.done or plan.gone:
            known = known_rows(store)
        if indexed is not known or not folders.are_as_before:
            write_index(store, known, folders)
    errors, deaths = failures_in(known)
    return FleetAuditReport(
        schema=FLEET_AUDIT_SCHEMA_ID,
        out=str(out),
        engine=engine,
        workers=count,
        found=plan.found,
        audited=tally.done - same,
        unchanged=plan.found - tally.done + same,
        removed=plan.removed,
        errors=errors,
        crashed=deaths,
        seconds=time.monotonic() - start,
    )


def crashed(job: Job) -> bytes:
    """The rows of an adapter on which workers died."""
    return failed(job, "worker processes died on it twice", crashed=True)


def _answers(jobs: Sequence[Job], engine: Engine, workers: int, address: str | None) -> Iterator[Done[Job]]:
    if not jobs:
        return iter(())
    if engine == "ray":
        return run_ray(audit_job, jobs, workers=workers, prepare=prepare_worker, address=address)
    return run_local(audit_job, jobs, workers=workers, prepare=prepare_worker)


def _job(found: Found, base: PathLike | None, rules: str) -> Job:
    return Job(*found, base=None if base is None else os.fspath(base), rules=rules)


def rules_version(base: PathLike | None) -> str:
    """The version of everything but the adapter that a row depends on: the rules, and the base compared with."""
    own = version_of_rules("weights", "weights_and_base")
    return own if base is None else f"{own} base {Path(base).resolve()}"


def prepare_worker() -> None:
    """Restrict a worker's libraries to one thread on the CPU."""
    prepare_jax("cpu", serial_kernels=True)

    use_threads(1)


class Tally(NamedTuple):
    """The progress of a job: sources done, sources in all, and failures so far."""

    done: int
    total: int
    failures: int


def known_rows(store: Store) -> dict[str, Known]:
    """The sources that have rows, by path. DuckDB reads them, because it starts sooner than pyarrow."""
    if not store.parts:
        return {}
    with opened(store) as base:
        sql = f"select path, stamp, rules, content_hash, error is not null from {store.tables.head}"  # noqa: S608  # our own table
        return {path: Known(*rest) for path, *rest in base.execute(sql).fetchall()}


def failures_in(known: Mapping[str, Known]) -> tuple[int, int]:
    """Two counts of sources without numbers: those with an error, and those on which workers died."""
    without = [row for row in known.values() if row.failed]
    return sum(bool(row.stamp) for row in without), sum(not row.stamp for row in without)


class Plan(NamedTuple):
    """The work to do: jobs, sources whose rows are removed first, and counts of sources found and removed."""

    jobs: Sequence[Job]
    gone: Sequence[str]
    found: int
    removed: int


def plan_of(found: Iterable[Job], known: dict[str, Known], rules: str) -> Plan:
    """Plan the jobs for sources that are new or out of date.

    Args:
        found: a job for every source there is.
        known: the sources that have rows.
        rules: the version of the rules that rows must have.
    """
    jobs: list[Job] = []
    gone: list[str] = []
    there: set[str] = set()
    for job in found:
        there.add(job.path)
        row = known.get(job.path)
        if row is None:
            jobs.append(job)
        elif job.fault is not None or not row.stamp or row.stamp != job.stamp or row.rules != rules:
            current = bool(row.content_hash) and row.rules == rules
            jobs.append(job.knowing(row.content_hash) if current else job)
            gone += [] if current else [job.path]
    removed = known.keys() - there
    return Plan(jobs, [*gone, *removed], len(there), len(removed))


def carry_out(
    writer: Writer,
    plan: Plan,
    answers: Iterable[Done[Job]],
    crashed: Callable[[Job], bytes],
    progress: Callable[[Tally], None] | None = None,
) -> tuple[Tally, int]:
    """Write the answers in batches as they come.

    Args:
        writer: writer of the store.
        plan: the plan that is answered; the rows it drops are dropped first.
        answers: from an engine.
        crashed: gives the rows of a job on which workers died.
        progress: called after each answer.

    Returns:
        The number of answers, and how many of these are of sources with unchanged content.
    """
    writer.replace(dict.fromkeys(plan.gone))
    batch: list[bytes] = []
    replaced: dict[str, str | None] = {}
    tally, same, last = Tally(0, len(plan.jobs), 0), 0, time.monotonic()
    for job, answer in answers:
        if answer == SAME:
            replaced[job.path] = job.stamp
            same += 1
        else:
            batch.append(crashed(job) if answer is None else answer)
            if job.known_hash:
                replaced[job.path] = None
        tally = Tally(tally.done + 1, tally.total, tally.failures + is_failure(answer))
        if progress is not None:
            progress(tally)
        if len(batch) >= BATCH or time.monotonic() - last > BATCH_SECONDS:
            writer.replace(replaced)
            writer.add(batch)
            batch, replaced, last = [], {}, time.monotonic()
    writer.replace(replaced)
    writer.add(batch)
    if tally.done or plan.gone:
        writer.compact()
    return tally, same
