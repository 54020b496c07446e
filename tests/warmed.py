"""Run Python programs in separate processes that need not import torch, transformers and PEFT again.

Those imports take ten times as long as a short training. One process imports them once and computes nothing. Every
program runs in a fork of that process. It has its own process id, signals, exit code and end, like a new interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import hashlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO

__all__ = ["Program", "Warmed"]

PRELOADED = ("numpy", "torch", "transformers", "peft", "transformers.trainer", "transformers.training_args")
WELCOME: Final = b"here\n"
MODELS = ("AutoTokenizer", "DistilBertForSequenceClassification", "LlamaForCausalLM", "Trainer")  # imported when named


class Program:
    """A program that is running."""

    def __init__(self, warmed: Warmed, command: list[str], pid: int, out: Path, err: Path) -> None:
        self._warmed, self._command, self._pid, self._out, self._err = warmed, command, pid, out, err

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for the program and return its result, like `subprocess.run`. After `timeout` seconds it is killed."""
        code = self._warmed.ask({"wait": self._pid, "timeout": timeout})
        texts = [path.read_bytes().decode("utf-8", "backslashreplace") for path in (self._out, self._err)]
        return subprocess.CompletedProcess(self._command, code, *texts)


class Warmed:
    """Starts programs in forks of one process that has imported the heavy modules.

    Args:
        folder: the folder where this caller's programs write, and run by default.
        shared: a folder of all callers of a session. They share the process: the first starts it, and it ends with the
            last.
    """

    def __init__(self, folder: Path, shared: Path) -> None:
        self._folder, self._shared, self._started = folder, shared, 0
        self._server: subprocess.Popen[bytes] | None = None
        name = hashlib.sha256(str(shared.resolve()).encode()).hexdigest()[:32]
        self._address = f"\0gradience-{name}"  # an abstract socket: it has no file, and a path might be too long
        with (shared / "warmed.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._connection = self._connected() or self._begun()
        self._answers = self._connection.makefile()

    def _connected(self) -> socket.socket | None:
        """Return a connection to the process, or None if there is no process, or one that is about to end."""
        one = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            one.connect(self._address)
            if one.recv(len(WELCOME)) == WELCOME:
                return one
        one.close()
        return None

    def _begun(self) -> socket.socket:
        """Start the process, and return a connection to it."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONWARNINGS", None)
        environment["HF_HOME"] = str(self._shared / "hub")  # an empty cache: both are read once, by an import
        with socket.socket(socket.AF_UNIX) as listener, (self._shared / "imports.err").open("wb") as said:
            listener.bind(self._address)
            listener.listen()
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
                env=environment, pass_fds=[listener.fileno()],
            )  # fmt: skip
        connection = self._connected()
        assert connection is not None, self.imports_said
        return connection

    @property
    def imports_said(self) -> str:
        """The stderr of the imports that the process made: warnings, and refused look-ups of hosts."""
        return (self._shared / "imports.err").read_bytes().decode("utf-8", "backslashreplace")

    def ask(self, request: dict[str, Any]) -> int:
        """Return the server's answer to one request."""
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        return int(self._answers.readline())

    def start(
        self, *command: str | os.PathLike[str], cwd: Path | None = None, taken_apart: bool = False, **environment: str
    ) -> Program:
        """Start a script, `-c` and code, or `-m` and a module, with arguments, as `python` does.

        With `taken_apart`, the interpreter is finalised at the end, object by object, like a new interpreter.
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
        """Disconnect from the process. The caller that started it waits until its last caller has disconnected."""
        self._answers.close()
        self._connection.close()
        if self._server is not None:
            self._server.wait()


class Server:
    """Forks for its callers until the last of them has gone. Each caller makes one request at a time."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener, self._poll = listener, select.poll()
        self._callers: dict[int, tuple[socket.socket, TextIO]] = {}  # by descriptor
        self._awaited: dict[int, tuple[int, int, float]] = {}  # by pidfd: the process, its caller, and the deadline
        self._poll.register(listener, select.POLLIN)

    def serve(self) -> dict[str, Any] | None:
        """Answer requests until all callers have gone. In a fork, return the request that the fork must run."""
        came = False
        while self._callers or not came:
            ends = [until for _, _, until in self._awaited.values()]
            left_ms = None if not ends else max(1000 * (min(ends) - time.monotonic()), 0)
            for descriptor, _ in self._poll.poll(left_ms):
                if descriptor == self._listener.fileno():
                    self._welcome()
                    came = True
                elif descriptor in self._awaited:
                    self._reap(descriptor)
                elif (asked := self._answer(descriptor)) is not None:
                    return asked
            for pidfd, (pid, _, until) in list(self._awaited.items()):
                if time.monotonic() > until:
                    os.kill(pid, signal.SIGKILL)
                    self._reap(pidfd)
        return None

    def _welcome(self) -> None:
        caller, _ = self._listener.accept()
        self._callers[caller.fileno()] = caller, caller.makefile()
        self._poll.register(caller, select.POLLIN)
        self._tell(caller.fileno(), WELCOME)

    def _tell(self, caller: int, answer: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, KeyError):  # it has gone
            self._callers[caller][0].sendall(answer)

    def _reap(self, pidfd: int) -> None:
        """Tell the caller that waits for a process how the process ended."""
        pid, caller, _ = self._awaited.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        self._tell(caller, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def _answer(self, caller: int) -> dict[str, Any] | None:
        line = self._callers[caller][1].readline()
        if not line:
            self._poll.unregister(caller)
            for end in self._callers.pop(caller):
                end.close()
            return None
        asked: dict[str, Any] = json.loads(line)
        if "wait" in asked:
            pidfd = os.pidfd_open(asked["wait"])
            self._awaited[pidfd] = asked["wait"], caller, time.monotonic() + asked["timeout"]
            self._poll.register(pidfd, select.POLLIN)
            return None
        pid = os.fork()
        if pid == 0:
            self._let_go()
            return asked
        self._tell(caller, b"%d\n" % pid)
        return None

    def _let_go(self) -> None:
        """Close, in a fork, the descriptors that only the server needs."""
        self._listener.close()
        for caller in self._callers.values():
            for end in caller:
                end.close()
        for pidfd in self._awaited:
            os.close(pidfd)


def _serve(listener: int) -> None:
    with socket.socket(fileno=listener) as heard:
        _import()
        gc.collect()
        gc.freeze()  # a fork's collector leaves alone what was there before: those pages stay shared
        asked = Server(heard).serve()
    if asked is not None:
        _become(asked)
        if not asked["taken_apart"]:
            _end_of(asked["command"])
        _run(asked["command"])  # what it raises, as `SystemExit`, is this interpreter's end


def _import() -> None:
    """Import the heavy modules. A look-up or connection during the import is refused and named on stderr."""
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


def _become(asked: dict[str, Any]) -> None:
    """Set up the child as the program's process, up to the program's first line."""
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
    """Run the program, and end the process as the interpreter would, but without finalising the interpreter."""
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
    """Run the program; its exceptions are passed on."""
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
    """Run the program, and return the exit code that the interpreter would give it."""
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
    _serve(int(sys.argv[1]))
