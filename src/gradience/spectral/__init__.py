"""The numerical core, which turns arrays into numbers with JAX and numpy. It knows no files and no configs.

The maths is written for one module in `batch` and `update`; `batch` vmaps and jits it.

This module manages the threads that the process computes with: their number, BLAS's own threads, and scratch arrays
for each thread. BLAS is held to one thread while matrices are small, because its threads spin while they wait for each
other. On a machine busy with other work, a 384 x 384 SVD on two threads takes ten times the processor time of one.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_T = TypeVar("_T")

_MOST_WORKERS = 8  # threads; `use_threads` lowers it


_KEPT: Final = 1 << 21  # bytes of an array that a thread keeps under a name


_LARGE: Final = 1024  # the shorter side: above it, BLAS's threads gain more than they cost


def threads_for(size: int) -> AbstractContextManager[Any]:
    """A context that holds BLAS to one thread, unless `size`, the matrices' shorter side, is above 1024.

    The limit is the whole process's, so do not use this in several threads at once.
    """
    return nullcontext() if size > _LARGE else _controller().limit(limits=1, user_api="blas")


class _Single:
    """The process's count of open `one_blas_thread` blocks, and the limit that the last of them lifts."""

    lock = threading.Lock()
    blocks = 0
    limit: AbstractContextManager[Any] = nullcontext()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """A context that holds BLAS to one thread in each of our threads; several threads may enter it at once.

    It also serves where XLA computes the large products: between calls, spinning BLAS threads would take processors
    from XLA's.
    """
    with _Single.lock:
        if _Single.blocks == 0:
            _Single.limit = _controller().limit(limits=1, user_api="blas")
        _Single.blocks += 1
    try:
        yield
    finally:
        with _Single.lock:
            _Single.blocks -= 1
            if _Single.blocks == 0:
                _Single.limit.__exit__(None, None, None)


def _controller() -> ThreadpoolController:
    return _controller_of(with_jax="jax" in sys.modules)


@cache
def _controller_of(*, with_jax: bool) -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController  # a program that only uses `Scratch` needs none

    if with_jax:  # XLA calls LAPACK in SciPy's BLAS, whose threads spin as those of NumPy's do
        import_module("scipy.linalg")
    return ThreadpoolController()  # it finds the libraries loaded so far: numpy's BLAS is among them by now


def use_threads(most: int) -> None:
    """Limit this process to `most` threads, for example to one where several processes have a core each."""
    global _MOST_WORKERS  # noqa: PLW0603  # a setting of the process, as the device is
    _MOST_WORKERS = most


def cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_threads() -> int:
    """The number of threads that this process computes with: one for each core, up to the limit of `use_threads`."""
    return min(cores(), _MOST_WORKERS)


def in_threads(tasks: Sequence[Callable[[], _T]]) -> list[_T]:
    """Return the results of all tasks, in order, computed as by `each_in_threads`."""
    return list(each_in_threads(tasks))


def each_in_threads(
    tasks: Sequence[Callable[[], _T]], *, ahead: int | None = None, waits: bool = True
) -> Generator[_T]:
    """Yield each task's result, in order. Tasks run on `most_threads` threads, in each of which BLAS has one thread.

    The first error in that order is raised, and tasks that have not begun are cancelled. With `ahead`, at most that
    many tasks for each thread are begun or wait to be taken. If the caller stops early, tasks that have begun are
    waited for. With `waits=False` they are not, so they must not write anything.
    """
    threads = min(len(tasks), most_threads())
    with one_blas_thread():
        if threads <= 1:
            yield from (task() for task in tasks)
            return
        pool, todo = ThreadPoolExecutor(threads), iter(tasks)
        try:
            waiting = deque(pool.submit(task) for task in islice(todo, None if ahead is None else threads * ahead))
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(task) for task in islice(todo, 1))
                yield done
        finally:
            pool.shutdown(wait=waits, cancel_futures=True)


class Scratch(threading.local):
    """Uninitialised arrays by name, separate for each thread.

    They are reused because the page faults of a fresh array cost more than the work done in it. A call with a name
    reuses the memory of the last array of that name. An array too large to keep is allocated afresh.
    """

    def __init__(self) -> None:
        self._held: dict[str, npt.NDArray[np.uint8]] = {}
        self._last: dict[str, npt.NDArray[Any]] = {}

    def like(self, x: npt.NDArray[Any], name: str, shape: tuple[int, int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A two-dimensional array as `array` gives it, with x's memory order: rows or columns contiguous."""
        return self.array(name, shape, dtype) if x.flags.c_contiguous else self.array(name, shape[::-1], dtype).T

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array of that shape and dtype, with arbitrary values."""
        last = self._last.get(name)
        if last is not None and last.shape == shape and last.dtype == dtype:
            return last  # the usual case: tiles of one matrix have one shape
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if nbytes > _KEPT:
            return np.empty(shape, dtype)
        memory = self._held.get(name)
        if memory is None:
            # Of the largest size at once: the next array of this name may be larger, and must find room in it.
            memory = self._held[name] = np.empty(_KEPT, np.uint8)
        last = self._last[name] = memory[:nbytes].view(dtype).reshape(shape)
        return last


scratch: Final = Scratch()
