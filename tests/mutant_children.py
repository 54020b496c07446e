"""Run jobs in children of one parent that has imported the heavy modules, each with a private copy of `src`.

The parent imports JAX, torch and pytest but not `gradience`. So a child starts at once and still imports `gradience`
from its own copy. The copy is first on `sys.path`, and also on `PYTHONPATH` for the commands that a test starts. This
needs `fork`.
"""

from __future__ import annotations

import compileall
import contextlib
import importlib
import math
import os
import py_compile
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import pytest

PRELOADED: Final = (
    *("numpy", "jax", "jax.numpy", "msgspec", "ml_dtypes", "yaml", "cyclopts", "hypothesis.strategies"),
    *("torch", "safetensors.torch", "transformers", "peft"),
)
SOURCE: Final = Path(__file__).resolve().parents[1] / "src" / "gradience"
WAIT: Final = 5  # seconds of the clock per second of the processor, so that a busy machine does not kill a mutant
BROKEN: Final = 70  # a child's exit code if the run itself failed, and not a test
MOST_BYTES: Final = 8 << 30  # limit of memory, and of one file, because a mutant may ask for any amount

_OUT_OF_TIME: Final = {-signal.SIGKILL, -signal.SIGXCPU}
Job = TypeVar("Job")


class Child(NamedTuple):
    """A running process: its id, and its deadline in seconds of the monotonic clock."""

    pid: int
    ends: float


def preload() -> None:
    """Import the heavy modules that are not ours, once for all children. Nothing may compute before a fork."""
    warnings.simplefilter("ignore")
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.stderr.write(f"not preloaded, since it is not installed: {name}\n")
    if "gradience" in sys.modules:
        raise RuntimeError("gradience was imported by what was preloaded: no child would see its mutant")


def forked(
    jobs: Sequence[Job], workers: int, work: Callable[[Job, Path], int], limit: Callable[[Job], float]
) -> Iterator[tuple[Job, int | None, Path, float]]:
    """Run each job in a child, and yield it with its exit code (None: out of time), its slot and its seconds.

    Seconds, also in `limit`, are processor time. A child that only waits is ended after `WAIT` times the limit on the
    clock. A slot is a folder with a private copy of `src`. The caller must restore it before it asks for the next
    result.
    """
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        slots, waiting = [Path(folder) / str(n) for n in range(workers)], list(reversed(jobs))
        running: dict[Path, tuple[Job, Child]] = {}
        for slot in slots:
            copy_source(slot)
        try:
            while waiting or running:
                for slot in slots:
                    if waiting and slot not in running:
                        job = waiting.pop()
                        running[slot] = job, _started(job, slot, work, limit(job))
                time.sleep(0.02)
                for slot, (job, child) in list(running.items()):
                    now = time.monotonic()
                    if now > child.ends:
                        _end(child)
                    done, status, used = os.wait4(child.pid, 0 if now > child.ends else os.WNOHANG)
                    if done:
                        del running[slot]
                        _end(child)
                        code = os.waitstatus_to_exitcode(status)
                        yield job, None if code in _OUT_OF_TIME else code, slot, used.ru_utime + used.ru_stime
        finally:
            for _, child in running.values():
                _end(child)


def _end(child: Child) -> None:
    """End a child and all processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def copy_source(slot: Path) -> None:
    """Copy `src`, with bytecode that Python checks by the sources' contents and not by dates, so no edit is missed."""
    shutil.copytree(SOURCE.parent, slot / "src", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(slot / "src", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)


def _started(job: Job, slot: Path, work: Callable[[Job, Path], int], limit: float) -> Child:
    pid = os.fork()
    if pid:
        return Child(pid, time.monotonic() + WAIT * limit)
    code = BROKEN
    try:
        os.setsid()  # what a test starts ends with it
        for what, most in ((resource.RLIMIT_DATA, MOST_BYTES), (resource.RLIMIT_FSIZE, MOST_BYTES)):
            resource.setrlimit(what, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
        log = os.open(slot / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.path.insert(0, str(slot / "src"))
        os.environ["PYTHONPATH"] = str(slot / "src")
        code = work(job, slot)
    except BaseException:  # noqa: BLE001  # the child ends here, whatever happened, and its log says what
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_tests(slot: Path, tests: Iterable[str], plugin: object, *options: str) -> int:
    """Run tests in this process, in a folder of the slot, and return pytest's exit code."""
    quiet = ("-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    return int(pytest.main([*tests, *quiet, *options, "--basetemp", str(slot / "tmp")], plugins=[plugin]))
