"""BLAS keeps to one thread on small matrices, and gets its threads back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from gradience import spectral
from gradience.spectral import Scratch, each_in_threads, one_blas_thread, threads_for


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


def test_no_more_tasks_are_begun_than_may_wait_to_be_taken(monkeypatch):
    begun = []

    class Pool(ThreadPoolExecutor):
        def submit(self, task):
            begun.append(task)
            return super().submit(task)

    monkeypatch.setattr(spectral, "most_threads", lambda: 2)
    monkeypatch.setattr(spectral, "ThreadPoolExecutor", Pool)
    for ahead, wanted in ((1, 3), (2, 5), (None, 9)):  # so many for each thread, and one in place of the one taken
        begun.clear()
        found = each_in_threads([lambda k=k: k for k in range(9)], ahead=ahead)
        assert (next(found), len(begun)) == (0, wanted)
        assert list(found) == list(range(1, 9))


@pytest.mark.parametrize("waits", [True, False])
def test_a_caller_who_stops_early_waits_for_what_has_begun_and_the_rest_is_never_begun(monkeypatch, waits):
    ran, stopped, asked = [], threading.Event(), []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *, wait=True, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            stopped.set()
            asked.append(wait)
            super().shutdown(wait=True)

    monkeypatch.setattr(spectral, "most_threads", lambda: 2)
    monkeypatch.setattr(spectral, "ThreadPoolExecutor", Pool)
    tasks = [lambda k=k: (k == 0 or stopped.wait(), ran.append(k)) for k in range(9)]
    found = each_in_threads(tasks, waits=waits)
    next(found)
    found.close()
    assert set(ran) <= {0, 1, 2}  # one to each thread, and one in place of the first
    assert asked == [waits]


def test_the_threads_are_as_many_as_the_cores_up_to_a_limit_of_eight_which_can_be_lowered(monkeypatch):
    monkeypatch.setattr(spectral, "_MOST_WORKERS", spectral._MOST_WORKERS)
    for limit, cores, threads in ((None, 16, 8), (None, 4, 4), (3, 16, 3), (3, 2, 2), (1, 2, 1)):
        monkeypatch.setattr(spectral, "cores", lambda cores=cores: cores)
        if limit is not None:
            spectral.use_threads(limit)
        assert spectral.most_threads() == threads


def test_scratch_has_the_memory_order_that_is_asked_for():
    scratch = Scratch()
    for shape in ((2, 3), (2, 3), (1 << 11, 1 << 9)):  # the same again, and one too large to keep
        rows = scratch.array("x", shape, np.float32)
        assert (rows.shape, rows.dtype, rows.flags.c_contiguous) == (shape, np.float32, True)
        assert scratch.array("x", shape, np.float64).dtype == np.float64
        columns = scratch.like(np.ones(shape, order="F"), "y", shape, np.float32)
        assert (columns.shape, columns.flags.f_contiguous) == (shape, True)


def test_every_blas_of_the_process_has_one_thread_scipy_s_too_in_which_xla_calls_lapack():
    import jax  # noqa: F401  # from now on, SciPy's BLAS counts
    from threadpoolctl import threadpool_info

    with spectral.one_blas_thread():
        held = [one for one in threadpool_info() if one["user_api"] == "blas"]
        assert {one["num_threads"] for one in held} == {1}
        assert {"numpy", "scipy"} <= {part.removesuffix(".libs") for one in held for part in one["filepath"].split("/")}


# --- threads of XLA's pool -----------------------------------------------------------------------------------------


IN_A_PROGRAM_THAT_STARTED_JAX = """
import os, sys
os.sched_setaffinity(0, {int(core) for core in sys.argv[1:]})  # before JAX counts the cores for its pool
import jax.numpy as jnp
jnp.ones(3).block_until_ready()
import numpy as np
import gradience, gradience.verbs.audit.run
print("ready", flush=True)
sys.stdin.readline()
rng, many = np.random.default_rng(0), {8: 200, 64: 200, 96: 60}  # modules by rank: several calls of each
modules = {
    f"{rank}.{i}": (rng.normal(size=(rank, rank + 9)), rng.normal(size=(rank + 5, rank)))
    for rank, count in many.items() for i in range(count)
}
assert len(gradience.audit_arrays(modules, scale=1.0).modules) == sum(many.values())
"""


@pytest.mark.slow  # waits for cores that are kept busy
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the cores of a process are set on Linux only")
def test_many_ranks_are_measured_where_jax_was_started_first_and_the_cores_are_busy():
    """Batched calls of LAPACK waited for threads of XLA's pool, in threads of it: with two, they never came."""
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))[:2]]
    bare = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"}
    spin = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile os.getppid() == int(sys.argv[2]): pass"
    program, pipe = [sys.executable, "-c", IN_A_PROGRAM_THAT_STARTED_JAX, *cores], subprocess.PIPE
    for _ in range(20):
        with subprocess.Popen(program, env=bare, stdin=pipe, stdout=pipe) as run:
            assert run.stdout.readline() == b"ready\n"
            busy = [subprocess.Popen([sys.executable, "-c", spin, core, str(os.getpid())]) for core in cores]
            try:
                run.communicate(b"\n", timeout=120)
            finally:
                for one in (run, *busy):
                    one.kill()
                    one.wait()
        assert run.returncode == 0
