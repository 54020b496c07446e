"""A command line in a process of its own, with a deadline and a memory limit, at the price of a fork.

Importing JAX takes a second; a process that has imported everything and computed nothing forks in milliseconds. One
such process is started per session, and every command runs in a fork of it: what hangs is killed, what fills the
memory fails, and what aborts takes nothing with it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Outcome", "Stable", "warm"]

HEAVY = ("numpy", "msgspec", "cyclopts", "yaml", "jax", "jax.numpy", "sqlite3", "csv", "tomllib", "hashlib")
ROOMY_MB = 6_000  # of address space, beyond what the imports took: a bomb ends here, not the machine


class Outcome(NamedTuple):
    """What became of a command."""

    code: int  # the exit code; negative where a signal ended it: -24 at its limit of processor time, -9 at its deadline
    out: str
    err: str
    seconds: float
    memory_mb: float  # the most that was resident beyond what the imports took

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
        wall_s: float | None = None,
        limit_mb: int = ROOMY_MB,
        env: dict[str, str] | None = None,
        python: str = "",
    ) -> Outcome:
        """Run `gradience` with the arguments, or a piece of Python in its place, and return what became of it.

        It may use `limit_s` seconds of processor time, which no other program's load changes, and `wall_s` on the wall
        (ten times that without it).
        """
        out, err = self._folder / "stdout", self._folder / "stderr"
        asked = {
            "argv": [os.fspath(word) for word in argv],
            "cwd": str(cwd or self._folder),
            "limit_s": limit_s,
            "wall_s": 10.0 * limit_s if wall_s is None else wall_s,
            "limit_mb": limit_mb,
            "out": str(out),
            "err": str(err),
            "env": env or {},
            "python": python,
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


OPTIONAL = frozenset({"hf", "axolotl", "lightning", "swift", "__main__"})  # what no command imports


def warm(more: tuple[str, ...] = ()) -> None:
    """Import what commands import, without starting a backend: its threads would not survive a fork."""
    gradience = importlib.import_module("gradience")
    for name in (*HEAVY, *more):
        importlib.import_module(name)
    packages = Path(gradience.__file__).parent
    for path in sorted(packages.rglob("*.py")):
        parts = path.relative_to(packages.parent).with_suffix("").parts
        if not OPTIONAL.intersection(parts):
            importlib.import_module(".".join(part for part in parts if part != "__init__"))


def _serve() -> None:
    nothing = os.fork()
    if nothing == 0:
        os._exit(0)
    _, least = _wait(nothing, time.monotonic() + 10)
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(asked)
        code, peak = _wait(child, start + asked["wall_s"])
        told = {"code": code, "seconds": time.monotonic() - start, "memory_mb": max(peak - least, 0.0)}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


def _wait(child: int, deadline: float) -> tuple[int, float]:
    """Return the exit code, and the peak of resident memory in MB."""
    killed = False
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            code = -signal.SIGKILL if killed else os.waitstatus_to_exitcode(status)
            return code, usage.ru_maxrss / 1024
        if time.monotonic() > deadline and not killed:
            killed = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _become(asked: dict[str, Any]) -> None:
    """Be the command, in the child; never returns."""
    code = 1
    try:
        for number, path in ((1, asked["out"]), (2, asked["err"])):
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(target, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(asked["cwd"])
        os.environ.update(asked["env"])
        bound = _address_space() + asked["limit_mb"] * 1024**2
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        resource.setrlimit(resource.RLIMIT_CPU, (asked["limit_s"], asked["limit_s"] + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # as the interpreter does
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.argv = ["gradience", *asked["argv"]]
        code = _code_of(asked["python"])
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001  # the last frame of this process
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _code_of(python: str) -> int:
    """Return the exit code, as the interpreter would settle it."""
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
