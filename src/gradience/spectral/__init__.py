"""Arrays to numbers: the JAX core. Knows no files, no configs, nothing else of ours.

The maths is written for one module in `batch` and `update`; `batch` vmaps and jits it, `tiles` the Gram matrices.

Here are the threads of this process: how many there are, BLAS on one in each, and the room that each keeps for its
arrays. BLAS works on one thread while matrices are small, since its threads spin while they wait for each other: on a
machine that is busy otherwise a 384 x 384 SVD on two threads takes ten times the processor time of one on one.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_T = TypeVar("_T")

_MOST_WORKERS = 8  # threads; `use_threads` lowers it


_KEPT: Final = 1 << 21  # bytes of an array that a thread keeps under a name


_LARGE: Final = 1024  # rows or columns, whichever are fewer: from here on threads gain more than they cost


def threads_for(size: int) -> AbstractContextManager[Any]:
    """A context in which BLAS works on one thread, or on all where matrices have more than 1024 rows and columns.

    For the process: not for use in several threads at once.
    """
    return nullcontext() if size > _LARGE else _controller().limit(limits=1, user_api="blas")


class _Single:
    """How many blocks want BLAS on one thread, and what gives it the others back after the last of them."""

    lock = threading.Lock()
    blocks = 0
    limit: AbstractContextManager[Any] = nullcontext()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """A context in which BLAS works on one thread in each of ours; may be entered by several at once.

    Also where XLA's threads do the large products: BLAS's would spin between its calls, and take processors from them.
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


@cache
def _controller() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController  # noqa: PLC0415  # what keeps arrays alone does without

    return ThreadpoolController()  # which finds the libraries that are loaded: numpy's among them by now


def use_threads(most: int) -> None:
    """Let this process compute with at most so many threads. For one of several processes, each on its own core."""
    global _MOST_WORKERS  # noqa: PLW0603  # a setting of the process, as the device is
    _MOST_WORKERS = most


def cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_threads() -> int:
    """How many threads this process computes with: one for each core, as far as it may."""
    return min(cores(), _MOST_WORKERS)


def in_threads(tasks: Sequence[Callable[[], _T]]) -> list[_T]:
    """Return what each task does, in order, as `each_in_threads` does."""
    return list(each_in_threads(tasks))


def each_in_threads(
    tasks: Sequence[Callable[[], _T]], *, ahead: int | None = None, waits: bool = True
) -> Generator[_T]:
    """Yield what each task does, in order: on as many threads as there are cores, BLAS on one of them in each.

    The first error reaches the caller, and what was not begun is left. Of results that wait to be taken there are at
    most `ahead` for each thread. An early end waits for what has begun, unless told not to: then it must write nothing.
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
    """Uninitialised arrays by name, of each thread its own: fresh ones cost more in page faults than the work in them.

    Each call with a name takes back what the last one with that name gave; one that is too large to keep is fresh.
    """

    def __init__(self) -> None:
        self._held: dict[str, npt.NDArray[np.uint8]] = {}
        self._last: dict[str, npt.NDArray[Any]] = {}

    def like(self, x: npt.NDArray[Any], name: str, shape: tuple[int, int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The same, of two axes that lie in memory as those of x do."""
        return self.array(name, shape, dtype) if x.flags.c_contiguous else self.array(name, shape[::-1], dtype).T

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array of that shape and dtype, with any values."""
        last = self._last.get(name)
        if last is not None and last.shape == shape and last.dtype == dtype:
            return last  # tiles of one matrix follow each other
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if nbytes > _KEPT:
            return np.empty(shape, dtype)
        held = self._held.get(name)
        if held is None:
            held = self._held[name] = np.empty(_KEPT, np.uint8)
        last = self._last[name] = held[:nbytes].view(dtype).reshape(shape)
        return last


scratch: Final = Scratch()
