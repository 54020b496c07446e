"""Carry out jobs in other processes: worker processes of this machine, or tasks of a Ray cluster.

Both engines call the same function with the same job and keep a bounded number of jobs in flight. If a worker dies, its
job is tried once more and then reported. A Ray task takes a small job and returns a few kilobytes of rows, so the
object store stays small. The machine that runs a task reads the adapters' files, and must see them under the same path.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from gradience.errors import GradienceError

_RAY_AHEAD: Final = 4  # tasks in flight for each task that runs
_SPAN: Final = 4  # jobs per task, because each task costs the scheduler a millisecond

_AHEAD: Final = 3  # jobs queued at a worker beside the current one, so that it never waits for the parent
_TRIES: Final = 2
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


class Named(Protocol):
    """A job, named by the path of its source."""

    @property
    def path(self) -> str:
        """The path of the source, which is the key of its rows."""
        ...


JobT = TypeVar("JobT", bound=Named)
Engine: TypeAlias = Literal["local", "ray"]
Work: TypeAlias = Callable[[JobT], bytes]


class Done(NamedTuple, Generic[JobT]):
    """A job and its answer; the answer is None if workers died on the job twice."""

    job: JobT
    answer: bytes | None


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
    pool = _Pool(work, workers, prepare)
    try:
        yield from pool.run(iter(jobs))
    finally:
        pool.close()


class _Worker(Generic[JobT]):
    """A worker process with a pipe, and the jobs sent to it, oldest first."""

    def __init__(self, work: Work[JobT], prepare: Callable[[], None]) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, prepare), daemon=True)
        with pinned():
            self.process.start()
        theirs.close()
        self.ready = False
        self.sent: deque[JobT] = deque()

    def send(self, job: JobT) -> None:
        self.sent.append(job)
        with suppress(BrokenPipeError, ConnectionResetError):  # `answer` notices its death
            self.pipe.send(job)

    def answer(self) -> bytes | None:
        """The worker's next message; None if the worker has died."""
        try:
            return self.pipe.recv_bytes()
        except (EOFError, ConnectionResetError):
            return None

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process.close()


class _Pool(Generic[JobT]):
    def __init__(self, work: Work[JobT], workers: int, prepare: Callable[[], None]) -> None:
        self._work, self._prepare = work, prepare
        self._workers = [_Worker(work, prepare) for _ in range(workers)]
        self._again: deque[JobT] = deque()
        self._deaths: Counter[str] = Counter()
        self._unborn = 0

    def run(self, jobs: Iterator[JobT]) -> Iterator[Done[JobT]]:
        exhausted = False
        while True:
            for worker in self._workers:
                while worker.ready and len(worker.sent) <= _AHEAD:
                    job = self._again.popleft() if self._again else next(jobs, None)
                    if job is None:
                        exhausted = True
                        break
                    worker.send(job)
            if exhausted and not self._again and not any(worker.sent for worker in self._workers):
                return
            yield from self._heard()

    def _heard(self) -> Iterator[Done[JobT]]:
        by_pipe = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]  # type: ignore[index]  # wait returns what it was given
            answer = worker.answer()
            if answer is None:
                yield from self._died(worker)
            elif not worker.ready:
                worker.ready, self._unborn = True, 0
            else:
                yield Done(worker.sent.popleft(), answer)

    def _died(self, worker: _Worker[JobT]) -> Iterator[Done[JobT]]:
        """Replace a dead worker. Its current job is tried once more; the jobs queued behind it are not to blame."""
        sent = list(worker.sent)
        if not worker.ready:
            self._unborn += 1
            if self._unborn > 3 * len(self._workers):
                raise GradienceError("workers die before their first job", advice="try --workers 1; is memory short?")
        worker.end()
        self._workers[self._workers.index(worker)] = _Worker(self._work, self._prepare)
        if not sent:
            return
        first, *rest = sent
        self._deaths[first.path] += 1
        self._again.extendleft(reversed(rest))
        if self._deaths[first.path] >= _TRIES:
            yield Done(first, None)
        else:
            self._again.append(first)

    def close(self) -> None:
        for worker in self._workers:
            worker.end()


def _serve(pipe: Connection, work: Work[JobT], prepare: Callable[[], None]) -> None:
    """The main loop of a worker: say that it is ready, answer jobs, end when the parent does."""
    import signal  # in workers only

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and ends its workers
    prepare()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send_bytes(b"ready")
        while True:
            pipe.send_bytes(work(pipe.recv()))


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
        GradienceError: ray is not installed, or the cluster cannot be reached.
    """
    ray, ours = _connected(workers, address)
    try:
        yield from _tasks(ray, work, iter(jobs), workers, prepare)
    finally:
        if ours:
            ray.shutdown()


def _connected(workers: int, address: str | None) -> tuple[Any, bool]:
    """Return the ray module, and whether we made the connection and must close it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # extra [ray]
    except ImportError as error:
        raise GradienceError(
            "this needs ray, which is not installed", advice="in the clone: pip install -e '.[ray]'"
        ) from error
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:  # its processes inherit our environment, so workers that Ray starts ahead can be used
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
    """Keep a bounded number of tasks in flight; if a task's worker dies, its jobs are tried again one by one."""
    carry_out = ray.remote(num_cpus=1, max_retries=0)(_carry_out)
    flying: dict[Any, tuple[list[JobT], int]] = {}

    def start(some: list[JobT], tries: int) -> None:
        flying[carry_out.remote(work, prepare, some)] = (some, tries)

    exhausted = False
    while True:
        while not exhausted and len(flying) < _RAY_AHEAD * workers:
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


def _carry_out(work: Work[JobT], prepare: Callable[[], None], jobs: list[JobT]) -> list[bytes]:
    if not _PREPARED:
        prepare()
        _PREPARED.append(True)
    return [work(job) for job in jobs]
