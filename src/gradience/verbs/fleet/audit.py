"""The verb `fleet audit`: every adapter below some roots, audited by worker processes into one store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gradience.io.types import PathLike
from gradience.schema.fleet import FLEET_AUDIT_SCHEMA_ID, FleetAuditReport
from gradience.verbs.device import prepare_jax
from gradience.verbs.fleet.engines import Done, Engine, run_local
from gradience.verbs.fleet.find import Found, find_adapters
from gradience.verbs.fleet.job import SAME, Job, audit_job, failed, is_failure
from gradience.verbs.fleet.rows import RULES_VERSION
from gradience.verbs.fleet.store import Store, Writer
from gradience.verbs.fleet.tables import FLEET

_BATCH: Final = 128  # adapters of a part
_BATCH_SECONDS: Final = 10.0  # what a killed job loses at most, beside what was in flight


class Tally(NamedTuple):
    """How far a job is: sources done, all of them, and failures so far."""

    done: int
    total: int
    failures: int


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
    """Audit every adapter below the roots into a fleet, and return what was done.

    An adapter whose files and rules are as they were is not read again. A job that was killed is taken up where it
    was: the result is that of one that was not. Adapters no longer there lose their rows.

    Args:
        roots: folders, weights files, or fsspec URLs (`s3://`, `gs://`, `hf://`), with the credentials of this user.
        out: the fleet's folder.
        listed: further places; one that is missing becomes a row with its error.
        base: a base model, to measure every update beside; its name is not compared with what adapters declare.
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
    count = workers or _cores()
    store = Store(Path(out), FLEET)
    with store.writing() as writer:
        plan = _plan(store, roots, listed, base)
        writer.replace(dict.fromkeys(plan.gone))
        answers = _answers(plan.jobs, engine, min(count, max(1, len(plan.jobs))), address)
        tally, touched = _collect(writer, plan, answers, progress)
    rows = store.table("adapters", ["status"]).column("status").to_pylist()
    return FleetAuditReport(
        schema=FLEET_AUDIT_SCHEMA_ID,
        out=str(out),
        engine=engine,
        workers=count,
        found=plan.found,
        audited=tally.done - touched,
        unchanged=plan.found - tally.done + touched,
        removed=plan.removed,
        errors=rows.count("error"),
        crashed=rows.count("crashed"),
        seconds=time.monotonic() - start,
    )


class _Plan(NamedTuple):
    """What is to be done: jobs, rows to drop first, and counts."""

    jobs: list[Job]
    gone: list[str]
    found: int
    removed: int


def _plan(store: Store, roots: Sequence[PathLike], listed: Iterable[str], base: PathLike | None) -> _Plan:
    columns = ["path", "stamp", "rules", "content_hash"]
    table = store.table("adapters", columns)
    known = {row[0]: row[1:] for row in zip(*(table[name].to_pylist() for name in columns), strict=True)}
    rules = rules_version(base)
    jobs: list[Job] = []
    gone: list[str] = []
    there: set[str] = set()
    for found in find_adapters(roots, listed, known=known.keys()):
        there.add(found.path)
        stamp, old_rules, content = known.get(found.path, ("", "", ""))
        if stamp == found.stamp and old_rules == rules and stamp:
            continue
        current = bool(content) and old_rules == rules
        jobs.append(_job(found, content if current else "", base, rules))
        if found.path in known and not current:
            gone.append(found.path)
    removed = known.keys() - there
    return _Plan(jobs, [*gone, *removed], len(there), len(removed))


def _job(found: Found, known_hash: str, base: PathLike | None, rules: str) -> Job:
    return Job(
        found.path,
        found.place,
        found.files,
        found.stamp,
        found.remote,
        found.fault,
        known_hash,
        None if base is None else os.fspath(base),
        rules,
    )


def rules_version(base: PathLike | None) -> str:
    """What a row depends on beside its adapter: the rules, and the base that was measured against."""
    return RULES_VERSION if base is None else f"{RULES_VERSION} base {Path(base).resolve()}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _answers(jobs: list[Job], engine: Engine, workers: int, address: str | None) -> Iterator[Done[Job]]:
    if not jobs:
        return iter(())
    if engine == "ray":
        from gradience.verbs.fleet.on_ray import run_ray  # noqa: PLC0415  # extra [ray]

        return run_ray(audit_job, jobs, workers=workers, prepare=prepare_worker, address=address)
    return run_local(audit_job, jobs, workers=workers, prepare=prepare_worker)


def prepare_worker() -> None:
    """Limit a worker's libraries to one thread, on the CPU."""
    prepare_jax("cpu", serial_kernels=True)
    from gradience.spectral.batch import use_threads  # noqa: PLC0415  # imports jax, after its environment is set

    use_threads(1)


def _collect(
    writer: Writer, plan: _Plan, answers: Iterable[Done[Job]], progress: Callable[[Tally], None] | None
) -> tuple[Tally, int]:
    """Write the answers in batches as they come; returns how many there were, and of them whose content was known."""
    batch: list[bytes] = []
    replaced: dict[str, str | None] = {}
    tally, touched, last = Tally(0, len(plan.jobs), 0), 0, time.monotonic()

    def flush() -> None:
        nonlocal last
        writer.replace(replaced)
        writer.add(batch)
        replaced.clear()
        batch.clear()
        last = time.monotonic()

    for job, answer in answers:
        if answer == SAME:
            replaced[job.path] = job.stamp
            touched += 1
        else:
            if job.known_hash:
                replaced[job.path] = None
            batch.append(failed(job, "worker processes died on it twice", crashed=True) if answer is None else answer)
        tally = Tally(tally.done + 1, tally.total, tally.failures + is_failure(answer))
        if progress is not None:
            progress(tally)
        if len(batch) >= _BATCH or time.monotonic() - last > _BATCH_SECONDS:
            flush()
    flush()
    return tally, touched
