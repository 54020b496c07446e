"""BLAS on one thread while matrices are small: its threads spin while they wait for each other.

On a machine that is busy otherwise a 384 x 384 SVD on two threads takes ten times the processor time of one on one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Final

from threadpoolctl import ThreadpoolController

_LARGE: Final = 1024  # rows or columns, whichever are fewer: from here on threads gain more than they cost


def one_thread() -> AbstractContextManager[Any]:
    """A context in which BLAS works on one thread, whatever the size: XLA's threads do the large products beside it.

    BLAS's would spin between its calls and take the processors from XLA: five times the processor time on two cores.
    """
    return threads_for(0)


def threads_for(size: int) -> AbstractContextManager[Any]:
    """A context in which BLAS works on one thread, or on all where matrices have more than 1024 rows and columns.

    For the process: not for use in several threads at once.
    """
    return nullcontext() if size > _LARGE else _controller().limit(limits=1, user_api="blas")


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # which finds the libraries that are loaded: numpy's among them by now
