"""BLAS keeps to one thread on small matrices, and gets its threads back."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from gradience.spectral import one_blas_thread, threads_for


def blas_threads():
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=None)


@pytest.mark.parametrize(("size", "threads"), [(384, 1), (1024, 1), (1025, 2)])
def test_small_matrices_get_one_thread_and_large_ones_all(size, threads):
    np.ones((2, 2)) @ np.ones((2, 2))  # loads BLAS
    if blas_threads() is None:
        pytest.skip("this numpy's BLAS has no threads to set")
    with threadpool_limits(limits=2, user_api="blas"):
        if blas_threads() != 2:
            pytest.skip("this machine gives BLAS one thread only")
        with threads_for(size):
            assert blas_threads() == threads
        assert blas_threads() == 2


def test_blas_gets_its_threads_back_after_the_last_of_several_blocks():
    np.ones((2, 2)) @ np.ones((2, 2))  # loads BLAS
    with threadpool_limits(limits=2, user_api="blas"):
        if blas_threads() != 2:
            pytest.skip("this machine gives BLAS one thread only")
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert blas_threads() == 1
        second.__exit__(None, None, None)
        assert blas_threads() == 2
