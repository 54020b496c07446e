"""BLAS on one thread while matrices are small: its threads spin while they wait for each other.

On a machine that is busy otherwise a 384 x 384 SVD on two threads takes ten times the processor time of one on one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from threading import Lock
from typing import Any, Final

from threadpoolctl import ThreadpoolController

_LARGE: Final = 1024  # rows or columns, whichever are fewer: from here on threads gain more than they cost


def threads_for(size: int) -> AbstractContextManager[Any]:
    """A context in which BLAS works on one thread, or on all where matrices have more than 1024 rows and columns.

    For the process: not for use in several threads at once.
    """
    return nullcontext() if size > _LARGE else _controller().limit(limits=1, user_api="blas")


class _Single:
    """How many blocks want BLAS on one thread, and what gives it the others back after the last of them."""

    lock = Lock()
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
    return ThreadpoolController()  # which finds the libraries that are loaded: numpy's among them by now
