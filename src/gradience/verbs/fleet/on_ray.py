"""Jobs as tasks of a Ray cluster: one task a job, a bounded number in flight, a dead worker tried once more.

Each task takes a small job and returns a few kilobytes of rows, so the object store stays small; the adapters' files
are read by the machine that runs the task, which must see them under the same path.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from gradience.errors import GradienceError
from gradience.verbs.fleet.engines import PINNED, Done, Named, Work, pinned

JobT = TypeVar("JobT", bound=Named)

_AHEAD: Final = 4  # tasks in flight for each that runs
_SPAN: Final = 4  # jobs of a task: the scheduler costs a millisecond for each task


def run_ray(
    work: Work[JobT],
    jobs: Iterable[JobT],
    *,
    workers: int,
    prepare: Callable[[], None],
    address: str | None = None,
) -> Iterator[Done[JobT]]:
    """Each job with its answer, as they are done, from tasks of Ray.

    Args:
        work: a function of a module, called with a job.
        jobs: taken one by one as tasks end.
        workers: how many tasks run at once on this machine; on a cluster, how many are kept in flight for.
        prepare: called once in each of Ray's worker processes, before the first job.
        address: of a cluster, or `auto`; None starts one on this machine, which ends with the jobs, unless the caller
            has called `ray.init`.

    Raises:
        GradienceError: ray is not installed, or the cluster cannot be reached.
    """
    ray, ours = _connected(workers, address)
    try:
        yield from _tasks(ray, work, iter(jobs), workers, prepare)
    finally:
        if ours:
            ray.shutdown()


def _connected(workers: int, address: str | None) -> tuple[Any, bool]:
    """Ray, and whether the connection is ours to end: one that the caller made is used as it is."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # noqa: PLC0415  # extra [ray]
    except ImportError as error:
        raise GradienceError(
            "this needs ray, which is not installed", advice="in the clone: pip install -e '.[ray]'"
        ) from error
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:  # its processes inherit the environment: the workers that Ray starts ahead are those it uses
        options |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 80_000_000}
    else:
        environment = {**PINNED, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        options |= {"address": address, "runtime_env": {"env_vars": environment}}
    try:
        with warnings.catch_warnings(), pinned():
            warnings.simplefilter("ignore")
            ray.init(**options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GradienceError(f"cannot use Ray: {reason}", advice="check --address, or use --engine local") from error
    return ray, True


def _tasks(
    ray: Any, work: Work[JobT], jobs: Iterator[JobT], workers: int, prepare: Callable[[], None]
) -> Iterator[Done[JobT]]:
    """Keep a bounded number of tasks in flight; a task whose worker died is tried again job by job."""
    carry_out = ray.remote(num_cpus=1, max_retries=0)(_carry_out)
    flying: dict[Any, tuple[list[JobT], int]] = {}

    def start(some: list[JobT], tries: int) -> None:
        flying[carry_out.remote(work, prepare, some)] = (some, tries)

    exhausted = False
    while True:
        while not exhausted and len(flying) < _AHEAD * workers:
            some = [job for _, job in zip(range(_SPAN), jobs, strict=False)]
            exhausted = len(some) < _SPAN
            if some:
                start(some, 0)
        if not flying:
            return
        (ready,), _ = ray.wait(list(flying), num_returns=1)
        some, tries = flying.pop(ready)
        try:
            answers = ray.get(ready)
        except ray.exceptions.RayError:
            if tries and len(some) == 1:
                yield Done(some[0], None)
            else:
                for job in some:
                    start([job], 1)
        else:
            yield from (Done(job, answer) for job, answer in zip(some, answers, strict=True))


_PREPARED: Final[list[bool]] = []  # in a worker process: empty before its first job


def _carry_out(work: Work[JobT], prepare: Callable[[], None], jobs: list[JobT]) -> list[bytes]:
    if not _PREPARED:
        prepare()
        _PREPARED.append(True)
    return [work(job) for job in jobs]
