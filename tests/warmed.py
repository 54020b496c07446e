"""Python programs in processes of their own that need not import torch, transformers and PEFT again.

Those imports take ten times as long as a short training. One process makes them once, computes nothing, and every
program runs in a fork of it: its own process id, signals, exit code and end, as an interpreter started anew would have.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["Program", "Warmed"]

PRELOADED = ("numpy", "torch", "transformers", "peft", "transformers.trainer", "transformers.training_args")
MODELS = ("AutoTokenizer", "DistilBertForSequenceClassification", "LlamaForCausalLM", "Trainer")  # imported when named


class Program:
    """A program that is running."""

    def __init__(self, warmed: Warmed, command: list[str], pid: int, out: Path, err: Path) -> None:
        self._warmed, self._command, self._pid, self._out, self._err = warmed, command, pid, out, err

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Return what became of it, as `subprocess.run` does; it is killed when its time is over."""
        code = self._warmed.ask({"wait": self._pid, "timeout": timeout})
        texts = [path.read_bytes().decode("utf-8", "backslashreplace") for path in (self._out, self._err)]
        return subprocess.CompletedProcess(self._command, code, *texts)


class Warmed:
    """Starts programs in forks of one process that has imported what is heavy."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._started = folder, 0
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONWARNINGS", None)
        environment["HF_HOME"] = str(folder / "hub")  # an empty cache: both are read once, by an import
        with (folder / "imports.err").open("wb") as said:
            self._server = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment,
            )  # fmt: skip

    @property
    def imports_said(self) -> str:
        """What the imports that every program finds made wrote to stderr: warnings, and look-ups of hosts."""
        return (self._folder / "imports.err").read_bytes().decode("utf-8", "backslashreplace")

    def ask(self, request: dict[str, Any]) -> int:
        """Return the server's answer to one request."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def start(
        self, *command: str | os.PathLike[str], cwd: Path | None = None, taken_apart: bool = False, **environment: str
    ) -> Program:
        """Start a script, `-c` and code, or `-m` and a module, with arguments, as `python` does.

        With `taken_apart`, the interpreter is taken apart at the end, object by object, as one started anew.
        """
        self._started += 1
        out, err = (self._folder / f"{self._started}.{name}" for name in ("out", "err"))
        words = [os.fspath(word) for word in command]
        asked = {"command": words, "cwd": str(cwd or self._folder), "env": {**os.environ, **environment}}
        asked["taken_apart"] = taken_apart
        return Program(self, words, self.ask(asked | {"out": str(out), "err": str(err)}), out, err)

    def run(
        self,
        *command: str | os.PathLike[str],
        cwd: Path | None = None,
        timeout: float = 300,
        taken_apart: bool = False,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return self.start(*command, cwd=cwd, taken_apart=taken_apart, **environment).wait(timeout)

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    _import()
    gc.collect()
    gc.freeze()  # a fork's collector leaves alone what was there before: those pages stay shared
    for line in sys.stdin:
        asked = json.loads(line)
        answer = _ended(asked["wait"], asked["timeout"]) if "wait" in asked else os.fork()
        if answer == 0 and "wait" not in asked:
            _become(asked)
            if not asked["taken_apart"]:
                _end_of(asked["command"])
            _run(asked["command"])  # what it raises, as `SystemExit`, is this interpreter's end
            break
        answers.write(f"{answer}\n")
        answers.flush()


def _import() -> None:
    """Import what is heavy; a look-up or a connection that this asks for is refused and named on stderr."""
    importing = True

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if importing and event in {"socket.getaddrinfo", "socket.gethostbyname", "socket.connect"}:
            sys.stderr.write(f"NETWORK {event} {args}\n")
            raise OSError("an import needs no network")

    sys.addaudithook(refuse)
    for name in PRELOADED:
        importlib.import_module(name)
    for name in MODELS:
        getattr(sys.modules["transformers"], name)
    importing = False


def _ended(pid: int, timeout: float) -> int:
    """Wait for a fork, kill it if it takes too long, and return its exit code."""
    descriptor = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(1000 * timeout):
        os.kill(pid, signal.SIGKILL)
    os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _become(asked: dict[str, Any]) -> None:
    """Be the program's process, in the child, up to its first line."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # as the interpreter does
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    hub: Any = sys.modules["huggingface_hub.constants"]
    hub.HF_HUB_OFFLINE = asked["env"].get("HF_HUB_OFFLINE", "") in {"1", "ON", "YES", "TRUE"}  # read by its import
    if asked["env"].get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")


def _end_of(command: list[str]) -> NoReturn:
    """Run the program, and end the process as the interpreter would, but for taking itself apart."""
    code = 1
    try:
        code = _code_of(command)
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001  # the last frame of this process
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code == -signal.SIGINT:  # an interrupt that nobody caught ends a program by the signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def _run(command: list[str]) -> None:
    """Run the program; what it raises is passed on."""
    if command[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *command[2:]], ""
        exec(command[1], {"__name__": "__main__"})  # noqa: S102  # a test's own words
    elif command[0] == "-m":
        sys.argv, sys.path[0] = command[1:], str(Path.cwd())
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")


def _code_of(command: list[str]) -> int:
    """Run the program, and return its exit code as the interpreter settles it."""
    try:
        _run(command)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException as error:  # noqa: BLE001  # what the interpreter does
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    _serve()
