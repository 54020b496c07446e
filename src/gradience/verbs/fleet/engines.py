"""Carry out jobs in other processes: a pool of this machine, or tasks of a Ray cluster.

Both engines call the same function with the same job and keep a bounded number of tasks in flight. If a worker dies,
the jobs that were with it are tried again, each alone; one on which workers die twice then is reported. A Ray task
takes a small job and returns a few kilobytes of rows, so the object store stays small. The machine that runs a task
reads the adapters' files, and must see them under the same path.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from threading import Thread
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from gradience.errors import GradienceError

_RAY_AHEAD: Final = 4  # tasks in flight for each task that runs
_SPAN: Final = 4  # jobs per task of Ray, because each task costs the scheduler a millisecond

_AHEAD: Final = 3  # jobs that wait beside the one that a worker does, so that it never waits for the parent
_TRIES: Final = 2  # of a job alone
_STARTS: Final = 3  # starts of a pool without one answer, before no further one is tried
PINNED: Final = {  # a worker's environment: one thread each, so that N workers do not compete for cores
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "MALLOC_ARENA_MAX": "2",
    # keep glibc from returning freed pages: faulting them in again costs a third of a small adapter's audit
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}

_PREPARED: Final[list[bool]] = []  # in a worker process: empty before its first job


JobT = TypeVar("JobT")
Engine: TypeAlias = Literal["local", "ray"]
Work: TypeAlias = Callable[[JobT], bytes]


class Done(NamedTuple, Generic[JobT]):
    """A job and its answer; the answer is None if workers died on the job twice."""

    job: JobT
    answer: bytes | None


class _Pool(Protocol[JobT]):
    """The part of an engine that starts tasks, and tells which one has ended and with what answers."""

    def start(self, jobs: list[JobT]) -> Any:
        """Start a task of these jobs, and return a handle of it."""
        ...

    def first(self, tasks: Collection[Any]) -> Any:
        """Wait until a task has ended, and return its handle."""
        ...

    def answers(self, task: Any) -> list[bytes] | None:
        """Wait for a task, and return the answers of its jobs, or None if its worker died."""
        ...


def _answered(pool: _Pool[JobT], jobs: Iterator[JobT], *, span: int, ahead: int) -> Iterator[Done[JobT]]:
    """Yield each job with its answer, keeping so many tasks of so many jobs in flight."""
    flying: dict[Any, list[JobT]] = {}
    suspects: list[JobT] = []
    while True:
        while not suspects and len(flying) < ahead and (some := list(islice(jobs, span))):
            flying[pool.start(some)] = some
        if flying:
            task = pool.first(flying)
            some = flying.pop(task)
            answers = pool.answers(task)
            if answers is None:
                suspects += some
            else:
                yield from map(Done, some, answers)
        elif suspects:
            # alone, because a death takes along all that is in flight: whose worker dies now is to blame
            job = suspects.pop(0)
            tries = (pool.answers(pool.start([job])) for _ in range(_TRIES))
            yield Done(job, next((answers[0] for answers in tries if answers), None))
        else:
            return


def run_local(
    work: Work[JobT], jobs: Iterable[JobT], *, workers: int, prepare: Callable[[], None]
) -> Iterator[Done[JobT]]:
    """Yield each job with its answer as it is done by processes of this machine.

    The processes are spawned, so that they inherit neither threads nor locks. Their libraries are limited to one
    thread.

    Args:
        work: a function of a module, called with a job.
        jobs: taken one by one as workers become free; each has a `path` of its own.
        workers: how many processes.
        prepare: called once in each process, before the first job.
    """
    pool = _LocalPool(work, workers, prepare)
    try:
        yield from _answered(pool, iter(jobs), span=1, ahead=(1 + _AHEAD) * workers)
    finally:
        pool.close()


class _LocalPool(Generic[JobT]):
    def __init__(self, work: Work[JobT], workers: int, prepare: Callable[[], None]) -> None:
        self._work, self._workers, self._prepare = work, workers, prepare
        self._pool = self._started()

    def _started(self) -> ProcessPoolExecutor:
        context = mp.get_context("spawn")
        return ProcessPoolExecutor(self._workers, context, initializer=_begin, initargs=(self._prepare,))

    def _submit(self, jobs: list[JobT]) -> Future[list[bytes]]:
        with pinned():  # a submission may start a worker
            return self._pool.submit(_each, self._work, jobs)

    def start(self, jobs: list[JobT]) -> Future[list[bytes]]:
        try:
            return self._submit(jobs)
        except BrokenProcessPool:
            self._renew()
            return self._submit(jobs)

    def _renew(self) -> None:
        """Start another pool in place of the one that is broken."""
        for _ in range(_STARTS):
            self.close()
            self._pool = self._started()
            with suppress(BrokenProcessPool):
                self._submit([]).result()
                return
        raise GradienceError("workers die before their first job", advice="try --workers 1; is memory short?")

    def first(self, tasks: Collection[Future[list[bytes]]]) -> Future[list[bytes]]:
        return next(iter(wait(tasks, return_when=FIRST_COMPLETED).done))

    def answers(self, task: Future[list[bytes]]) -> list[bytes] | None:
        try:
            return task.result()
        except Exception:  # noqa: BLE001  # as with a death, the job is to blame, and not the many others
            return None

    def close(self) -> None:
        processes = list((self._pool._processes or {}).values())  # noqa: SLF001  # from 3.14 on there is kill_workers
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()


def _begin(prepare: Callable[[], None]) -> None:
    """Prepare a worker of this machine. The parent handles SIGINT; if it is killed, its workers end too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    prepare()


def _end_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _each(work: Work[JobT], jobs: list[JobT]) -> list[bytes]:
    return [work(job) for job in jobs]


@contextmanager
def pinned() -> Iterator[None]:
    """A context with the environment of new worker processes, whose libraries read it once at start."""
    before = {name: os.environ.get(name) for name in PINNED}
    os.environ.update(PINNED)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_ray(
    work: Work[JobT],
    jobs: Iterable[JobT],
    *,
    workers: int,
    prepare: Callable[[], None],
    address: str | None = None,
) -> Iterator[Done[JobT]]:
    """Yield each job with its answer as it is done by Ray tasks.

    Args:
        work: a function of a module, called with a job.
        jobs: taken one by one as tasks end.
        workers: how many tasks run at once on this machine; on a cluster, the tasks in flight are a multiple of it.
        prepare: called once in each of Ray's worker processes, before the first job.
        address: of a cluster, or `auto`; None starts one on this machine, which ends with the jobs, unless the caller
            has called `ray.init`.

    Raises:
        GradienceError: the cluster cannot be reached.
    """
    ray, ours = _connected(workers, address)
    try:
        yield from _answered(_RayPool(ray, work, prepare), iter(jobs), span=_SPAN, ahead=_RAY_AHEAD * workers)
    finally:
        if ours:
            ray.shutdown()


class _RayPool(Generic[JobT]):
    def __init__(self, ray: Any, work: Work[JobT], prepare: Callable[[], None]) -> None:
        self._ray, self._work, self._prepare = ray, work, prepare
        # No retries by Ray: the jobs of a dead worker are tried again here, each alone.
        self._carry_out = ray.remote(num_cpus=1, max_retries=0)(_carry_out)

    def start(self, jobs: list[JobT]) -> Any:
        return self._carry_out.remote(self._work, self._prepare, jobs)

    def first(self, tasks: Collection[Any]) -> Any:
        return self._ray.wait(list(tasks), num_returns=1)[0][0]

    def answers(self, task: Any) -> list[bytes] | None:
        try:
            answers: list[bytes] = self._ray.get(task)
        except self._ray.exceptions.RayError:
            return None
        return answers


def _connected(workers: int, address: str | None) -> tuple[Any, bool]:
    """Return the ray module, and whether we made the connection and must close it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
    # Without it Ray warns that it hides the GPUs from tasks that ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray  # extra [ray]

    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:  # its processes inherit our environment, so workers that Ray starts ahead can be used
        # Ray takes at least 75 MiB for its object store, and answers are a few kilobytes.
        options |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 80_000_000}
    else:
        environment = {**PINNED, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        options |= {"address": address, "runtime_env": {"env_vars": environment}}
    try:
        with warnings.catch_warnings(), pinned():
            warnings.simplefilter("ignore")
            ray.init(**options)
    except Exception as error:  # of a node that does not start in time, Ray raises a plain one
        reason = " ".join(str(error).split())[:200]
        raise GradienceError(f"cannot use Ray: {reason}", advice="check --address, or use --engine local") from error
    return ray, True


def _carry_out(work: Work[JobT], prepare: Callable[[], None], jobs: list[JobT]) -> list[bytes]:
    if not _PREPARED:
        prepare()
        _PREPARED.append(True)
    return _each(work, jobs)
