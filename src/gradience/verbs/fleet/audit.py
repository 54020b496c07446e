"""The verb `fleet audit`: every adapter below some roots, audited by worker processes into one store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from gradience.io.paths import PathLike
from gradience.schema.fleet import FLEET_AUDIT_SCHEMA_ID, FleetAuditReport
from gradience.verbs.device import prepare_jax
from gradience.verbs.fleet.engines import Done, Engine, run_local
from gradience.verbs.fleet.find import Found, find_adapters
from gradience.verbs.fleet.job import Job, audit_job, failed
from gradience.verbs.fleet.rows import version_of_rules
from gradience.verbs.fleet.store import Store
from gradience.verbs.fleet.tables import FLEET
from gradience.verbs.fleet.update import Tally, carry_out, cores, failures_in, known_rows, plan_of


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
    count = workers or cores()
    store = Store(Path(out), FLEET)
    with store.writing() as writer:
        known, rules = known_rows(store), rules_version(base)
        found = find_adapters(roots, listed, known=known.keys())
        plan = plan_of((_job(item, base, rules) for item in found), known, rules)
        answers = _answers(plan.jobs, engine, min(count, max(1, len(plan.jobs))), address)
        tally, same = carry_out(writer, plan, answers, crashed, progress)
    errors, deaths = failures_in(known_rows(store) if tally.done or plan.gone else known)
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
        from gradience.verbs.fleet.on_ray import run_ray  # noqa: PLC0415  # extra [ray]

        return run_ray(audit_job, jobs, workers=workers, prepare=prepare_worker, address=address)
    return run_local(audit_job, jobs, workers=workers, prepare=prepare_worker)


def _job(found: Found, base: PathLike | None, rules: str) -> Job:
    return Job(**found._asdict(), base=None if base is None else os.fspath(base), rules=rules)


def rules_version(base: PathLike | None) -> str:
    """What a row depends on beside its adapter: the rules, and the base that was measured against."""
    own = version_of_rules("weights", "weights_and_base")
    return own if base is None else f"{own} base {Path(base).resolve()}"


def prepare_worker() -> None:
    """Limit a worker's libraries to one thread, on the CPU."""
    prepare_jax("cpu", serial_kernels=True)
    from gradience.spectral.grams import use_threads  # noqa: PLC0415  # imports jax, after its environment is set

    use_threads(1)
