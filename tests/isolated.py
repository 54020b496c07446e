"""Run command lines in a separate process with a deadline and a memory limit, for the cost of a fork or less.

Importing JAX takes a second, but a process that has imported everything and computed nothing forks in milliseconds. One
such process is started per session, and commands run in its forks. A command that hangs is killed, one that fills the
memory fails, and one that aborts does not affect the tests. A fork whose command returned runs the next command, after
its signals, warnings, environment and limits are reset. So JAX starts and compiles once for many commands. A piece of
Python, or a command with its own environment, gets a new fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from kept_signatures import keep_signatures

__all__ = ["Outcome", "Stable", "warm"]

HEAVY = ("numpy", "msgspec", "cyclopts", "yaml", "jax", "jax.numpy", "sqlite3", "csv", "tomllib", "hashlib")
ROOMY_MB = 6_000  # address space beyond the imports': a decompression bomb fails here before it fills the machine
PACE_S = 0.05  # processor time that `_slowness` takes on the machine that the limits of the tests were set on
MOST_CORES = 4  # of a server's processes: each thread of XLA takes address space, and there is one for each core
ORDERS = 100  # commands that one fork runs, so that the memory that commands leave behind is bounded


class Outcome(NamedTuple):
    """The result of a command."""

    code: int  # exit code, or minus the signal that ended it: -24 at the limit of processor time, -9 at the deadline
    out: str
    err: str
    seconds: float
    memory_mb: float  # the peak of resident memory, beyond that before the command

    @property
    def errors(self) -> list[str]:
        """The lines on stderr."""
        return [line for line in self.err.splitlines() if line.strip()]

    @property
    def refused(self) -> bool:
        """Whether the command ended with exit code 2, one line on stderr, and nothing on stdout."""
        return self.code == 2 and len(self.errors) == 1 and not self.out


class Stable:
    """Runs command lines in forks of one process that has imported all it needs."""

    def __init__(self, folder: Path, imports: tuple[str, ...] = ()) -> None:
        self._folder = folder
        environment = os.environ | {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"}
        self._server = subprocess.Popen(
            [sys.executable, __file__, *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(
        self,
        *argv: str | os.PathLike[str],
        cwd: Path | None = None,
        limit_s: int = 12,
        limit_mb: int = ROOMY_MB,
        env: dict[str, str] | None = None,
        python: str = "",
        imports: tuple[str, ...] = (),
    ) -> Outcome:
        """Run `gradience` with the arguments, or a piece of Python instead, and return its result.

        The limits are `limit_s` seconds of processor time, which do not depend on the machine's load, and `wall_s`
        seconds of the clock. A machine that is slower gets more of the first. The second is for a command that only
        waits, and a busy machine takes its time: it is ten times `limit_s`, and two minutes at least. The heavy modules
        named by `imports` are imported once, before later forks.
        """
        out, err = self._folder / "stdout", self._folder / "stderr"
        asked = {
            "argv": [os.fspath(word) for word in argv],
            "cwd": str(cwd or self._folder),
            "limit_s": limit_s,
            "wall_s": max(10.0 * limit_s, 120.0),
            "limit_mb": limit_mb,
            "out": str(out),
            "err": str(err),
            "env": env or {},
            "python": python,
            "imports": imports,
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        told = json.loads(self._server.stdout.readline())
        texts = (path.read_bytes().decode("utf-8", "backslashreplace") for path in (out, err))
        return Outcome(told["code"], *texts, told["seconds"], told["memory_mb"])

    def close(self) -> None:
        """End the process."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)
        if self._server.stdout is not None:
            self._server.stdout.close()


# Modules that no command imports at once. `models` imports torch and PEFT, for commands that run a model.
OPTIONAL = frozenset({"hf", "axolotl", "lightning", "swift", "models", "__main__"})


def warm(more: tuple[str, ...] = ()) -> None:
    """Import the modules that commands import, without starting a JAX backend: its threads would not survive a fork."""
    keep_signatures()
    gradience = importlib.import_module("gradience")
    for name in (*HEAVY, *more):
        importlib.import_module(name)
    packages = Path(gradience.__file__).parent
    for path in sorted(packages.rglob("*.py")):
        parts = path.relative_to(packages.parent).with_suffix("").parts
        if not OPTIONAL.intersection(parts):
            importlib.import_module(".".join(part for part in parts if part != "__init__"))


class Fork:
    """A fork of this process that runs commands until it is ended, or until a command ends it."""

    def __init__(self) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._orders)
            _obey(orders, answers)
        for end in (orders, answers):
            os.close(end)
        os.set_blocking(self._answers, False)  # the signature of os
        self._ended = os.pidfd_open(self._pid)
        self._poll = select.poll()
        for end in (self._answers, self._ended):
            self._poll.register(end, select.POLLIN)

    def order(self, asked: dict[str, Any]) -> tuple[int, float] | None:
        """Run a command and return its exit code and memory in MB; None if the command ended the process."""
        os.write(self._orders, json.dumps(asked).encode() + b"\n")
        if not self._poll.poll(1000 * asked["wall_s"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            return None
        with contextlib.suppress(ValueError, BlockingIOError):  # no answer: it has ended
            code, memory_mb = json.loads(os.read(self._answers, 1000))
            return code, memory_mb
        return None

    def end(self) -> tuple[int, float]:
        """End the fork; return its exit code, and the peak of its resident memory in MB."""
        os.close(self._orders)
        _, status, usage = os.wait4(self._pid, 0)
        os.close(self._answers)
        os.close(self._ended)
        return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024


def _slowness() -> float:
    """Return how many times longer than the machine of the limits this one takes for the same work; 1 if it is faster.

    The least of three times is taken: another process on the core's other thread makes some of them longer.
    """
    times = []
    for _ in range(3):
        start = time.process_time()
        found = {str(n): n for n in range(100_000)}
        assert sum(found[str(n)] for n in range(100_000)) == 4_999_950_000
        times.append(time.process_time() - start)
    return max(min(times) / PACE_S, 1.0)


def _keep_to_few_cores() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:MOST_CORES])


def _serve() -> None:
    _keep_to_few_cores()
    slowness = _slowness()
    gc.collect()
    gc.freeze()  # a fork's collector leaves alone what was there before: those pages stay shared
    least = Fork().end()[1]
    lasting, taken = Fork(), 0
    for line in sys.stdin:
        asked = json.loads(line)
        for name in ("limit_s", "wall_s"):
            asked[name] = math.ceil(asked[name] * slowness)
        if not set(asked["imports"]).issubset(sys.modules):
            lasting.end()
            for name in asked["imports"]:
                importlib.import_module(name)
            least, lasting, taken = Fork().end()[1], Fork(), 0
        start = time.monotonic()
        alone = bool(asked["python"] or asked["env"])
        fork = Fork() if alone else lasting
        answer = fork.order(asked)
        taken += not alone
        seconds = time.monotonic() - start
        if answer is None or alone or taken == ORDERS:
            code, peak_mb = fork.end()
            answer = answer or (code, max(peak_mb - least, 0.0))
            if not alone:
                lasting, taken = Fork(), 0
        told = {"code": answer[0], "seconds": seconds, "memory_mb": answer[1]}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
    lasting.end()


def _obey(orders: int, answers: int) -> NoReturn:
    """Run commands in the child, one after the other."""
    code, environment = 0, dict(os.environ)
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        with open(orders, encoding="utf-8") as lines:  # a descriptor
            for line in lines:
                asked = json.loads(line)
                before_mb = _forget_the_peak()
                code = _become(asked)
                memory_mb = max(_status_mb("VmHWM") - before_mb, 0.0)
                os.write(answers, json.dumps([code, memory_mb]).encode())
                os.environ.clear()
                os.environ.update(environment)
    except BaseException:  # noqa: BLE001  # the last frame of this process
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


def _forget_the_peak() -> float:
    """Reset the peak of resident memory, and return the memory that is resident now, in MB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_mb("VmRSS")


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _limit(asked: dict[str, Any]) -> None:
    """Limit the address space and processor time of the next command. The hard limits stay for later commands."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + asked["limit_s"]
    for kind, bound in (
        (resource.RLIMIT_AS, _address_space() + asked["limit_mb"] * 1024**2),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (bound, resource.getrlimit(kind)[1]))


def _become(asked: dict[str, Any]) -> int:
    """Run a command as a new process would, and return its exit code."""
    for number, path in ((1, asked["out"]), (2, asked["err"])):
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(target, number)
        os.close(target)
    os.chdir(asked["cwd"])
    os.environ.update(asked["env"])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = sys.__unraisablehook__
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # as the interpreter does
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = ["gradience", *asked["argv"]]
    code = 1
    try:
        _limit(asked)
        with warnings.catch_warnings():  # so that a warning that was shown once is shown again
            code = _code_of(asked["python"])
            if sys.stdout is not None:
                sys.stdout.flush()
    except BaseException:  # noqa: BLE001  # as the interpreter ends a program
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return code


def _code_of(python: str) -> int:
    """Run a piece of Python, and return the exit code that the interpreter would give it."""
    try:
        if python:
            exec(python, {"__name__": "__main__"})  # noqa: S102  # a test's own words
            return 0
        from gradience.cli.main import script

        return script()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


if __name__ == "__main__":
    warm(tuple(sys.argv[1:]))
    sys.stdout = os.fdopen(os.dup(1), "w")
    _serve()
