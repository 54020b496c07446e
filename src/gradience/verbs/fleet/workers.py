"""Carry out jobs in processes of this machine, with a bounded number of them in flight.

If a worker dies, the jobs that were in flight are tried again, each alone; one on which workers die twice then is
reported.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from threading import Thread
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from gradience.errors import GradienceError

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

JobT = TypeVar("JobT")
Work: TypeAlias = Callable[[JobT], bytes]


class Done(NamedTuple, Generic[JobT]):
    """A job and its answer; the answer is None if workers died on the job twice."""

    job: JobT
    answer: bytes | None


def carried_out(
    work: Work[JobT], jobs: Iterable[JobT], *, workers: int, prepare: Callable[[], None]
) -> Iterator[Done[JobT]]:
    """Yield each job with its answer as it is done.

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
        yield from _answered(pool, iter(jobs), ahead=(1 + _AHEAD) * workers)
    finally:
        pool.close()


def _answered(pool: _Pool[JobT], jobs: Iterator[JobT], *, ahead: int) -> Iterator[Done[JobT]]:
    """Yield each job with its answer, keeping so many in flight."""
    flying: dict[Future[bytes], JobT] = {}
    suspects: list[JobT] = []
    while True:
        if not suspects:
            flying |= {pool.start(job): job for job in islice(jobs, ahead - len(flying))}
        if flying:
            future = next(iter(wait(flying, return_when=FIRST_COMPLETED).done))
            job, answer = flying.pop(future), _answer(future)
            if answer is None:
                suspects.append(job)
            else:
                yield Done(job, answer)
        elif suspects:
            # alone, because a death takes along all that is in flight: whose worker dies now is to blame
            job = suspects.pop(0)
            tries = (_answer(pool.start(job)) for _ in range(_TRIES))
            yield Done(job, next((answer for answer in tries if answer is not None), None))
        else:
            return


def _answer(future: Future[bytes]) -> bytes | None:
    """Wait for a job, and return its answer, or None if its worker died."""
    try:
        return future.result()
    except Exception:  # noqa: BLE001  # as with a death, the job is to blame, and not the many others
        return None


class _Pool(Generic[JobT]):
    def __init__(self, work: Work[JobT], workers: int, prepare: Callable[[], None]) -> None:
        self._work, self._workers, self._prepare = work, workers, prepare
        self._pool = self._started()

    def _started(self) -> ProcessPoolExecutor:
        context = mp.get_context("spawn")
        return ProcessPoolExecutor(self._workers, context, initializer=_begin, initargs=(self._prepare,))

    def start(self, job: JobT) -> Future[bytes]:
        with pinned():  # a submission may start a worker
            try:
                return self._pool.submit(self._work, job)
            except BrokenProcessPool:
                self._renew()
                return self._pool.submit(self._work, job)

    def _renew(self) -> None:
        """Start another pool in place of the one that is broken."""
        for _ in range(_STARTS):
            self.close()
            self._pool = self._started()
            with suppress(BrokenProcessPool):
                self._pool.submit(_nothing).result()
                return
        raise GradienceError("workers die before their first job", advice="try --workers 1; is memory short?")

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


def _nothing() -> None:
    """A job that shows that a worker lives."""


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
