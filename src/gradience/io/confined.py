"""Parsers of what a stranger wrote, each in a process of its own with limits on memory and processor time.

A parser in C or Rust may crash on a damaged file, a template may loop without end, and a file of 500 bytes may claim
6 GB. Here that ends a child process, and the caller learns why.

The children are forks of one helper process. It is started when it is first needed, has a single thread, and imports
the libraries once, so a child costs milliseconds. Messages are MessagePack, which holds data and never code. Their
stdin, stdout and stderr are the null device: nothing can ask the user, and a panic prints nothing. A system without
`os.fork` has no limits, and runs the parser in the caller's process.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import msgspec

from gradience.errors import ConfigError, GradienceError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

MEMORY: Final = 2 << 30  # bytes that a child may take beyond what the libraries took before it
SECONDS: Final = 10.0  # processor time of one answer
_BYTES_A_SECOND: Final = 100_000  # a longer question gets more time: tokenising takes 1 s for some MB
_TO_MAKE: Final = 3  # budgets to make the object in: a tokenizer's file of 20 MB is parsed in two seconds
_MOMENT: Final = 0.002  # seconds
_MOMENTS: Final = 100
MOST_ANSWER: Final = 256 << 20  # bytes of one answer
_START: Final = (
    "import sys; fd, imports, *sys.path[:] = sys.argv[1:]; "
    "from gradience.io import confined; confined.serve(int(fd), imports.split())"
)
_REASONS: Final = {
    "SIGPROF": "it takes more than {seconds:.0f} s of processor time",
    "SIGXCPU": "it takes more than its processor time",
    "SIGKILL": "it needs more memory than there is",
    "SIGABRT": "it crashes the library that reads it, or needs more than {memory} GiB of memory",
}


class Foreign(Exception):  # noqa: N818  # what it says is why a stranger's data cannot be used
    """What was read failed, crashed, or passed a limit; the exception's text is the reason."""


class Limits(NamedTuple):
    """Memory in bytes, and seconds of processor time for one answer."""

    memory: int = MEMORY
    seconds: float = SECONDS


class Confined:
    """An object in a child process.

    Args:
        target: its class, as `module:name`.
        args: arguments of the class: numbers, texts, lists and mappings.
        imports: what the helper process imports before it forks, as `module` or `module:name`.
        limits: limits of the child.

    Raises:
        Foreign: the object cannot be made.
        ConfigError: the class raised it.
    """

    def __init__(self, target: str, *args: Any, imports: Sequence[str] = (), limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._pid, self._owner = 0, os.getpid()
        if not hasattr(os, "fork"):
            self._object = _found(target)(*args)
            return
        ours, theirs = socket.socketpair()
        with theirs:
            self._helper = _helper()
            self._pid = self._helper.fork(theirs, [target.partition(":")[0], *imports])
        self._pipe = _pipe(ours.detach())
        try:
            self._send([target, *self._limits], args)
            self._answer()
        except BaseException:  # an interrupt, too, must not leave the child
            self.close()
            raise

    def call(self, method: str, *args: Any) -> Any:
        """The result of a method.

        Raises:
            Foreign: it failed, crashed, or passed a limit.
            ConfigError: the method raised it.
        """
        if not self._pid:
            return getattr(self._object, method)(*args)
        self._send([method], args)
        return self._answer()[0]

    def stream(self, method: str, *args: Any) -> Iterator[Any]:
        """Yield what a method yields. The object can be asked for nothing else afterwards.

        Raises:
            Foreign: as for `call`, for each item.
            ConfigError: the same.
        """
        if not self._pid:
            yield from getattr(self._object, method)(*args)
            return
        try:
            self._send([method], args)
            while answer := self._answer():
                yield answer[0]
        finally:
            self.close()

    def close(self) -> None:
        """End the child."""
        if self._pid and self._owner == os.getpid():  # not in a fork of the caller
            pid, self._pid = self._pid, 0
            self._pipe.close()
            self._helper.end(pid)

    def __del__(self) -> None:
        """Close the pipe, at which the child ends. It may be called anywhere, so it asks the helper nothing."""
        try:
            if self._pid and self._owner == os.getpid():
                self._pid = 0
                self._pipe.close()
        except Exception:  # noqa: BLE001, S110  # an interpreter that ends may have closed it, and has no names left
            pass

    def _send(self, head: list[Any], args: Sequence[Any]) -> None:
        try:
            question = msgspec.msgpack.encode([*head, list(args)], enc_hook=str)
        except (OverflowError, UnicodeEncodeError, RecursionError, ValueError, TypeError) as error:
            raise Foreign(f"a value that cannot be passed on: {error}") from None
        with suppress(BrokenPipeError, ConnectionResetError):  # `_answer` says why it has ended
            self._pipe.send_bytes(question)

    def _answer(self) -> list[Any]:
        try:
            kind, *parts = msgspec.msgpack.decode(self._pipe.recv_bytes(MOST_ANSWER), type=list[Any])
        except (EOFError, ConnectionResetError):
            raise Foreign(self._why()) from None
        except (OSError, ValueError, msgspec.MsgspecError):
            raise Foreign(f"its result is larger than {MOST_ANSWER >> 20} MiB, or damaged") from None
        if kind == "unusable":
            message, advice = parts
            raise ConfigError(message, advice=advice)
        if kind == "failed":
            raise Foreign(parts[0])
        return parts

    def _why(self) -> str:
        pid, self._pid = self._pid, 0
        self._pipe.close()
        code = self._helper.end(pid)
        name = signal.Signals(-code).name if -code in {one.value for one in signal.Signals} else f"exit code {code}"
        reason = _REASONS.get(name, f"it crashes the library that reads it ({name})")
        return reason.format(seconds=self._limits.seconds, memory=self._limits.memory >> 30)


def _pipe(fd: int) -> Connection:
    from multiprocessing.connection import Connection  # 8 ms of imports, and few files are confined

    return Connection(fd)


class _Helper:
    """The process that forks children, and says how they ended; what it imports first, as for `Confined`."""

    def __init__(self, imports: Sequence[str] = ()) -> None:
        self.owner = os.getpid()
        self._lock = Lock()
        self._control, theirs = socket.socketpair()
        # Not the working folder, in which a stranger's file may have the name of a module; -P keeps it out too.
        paths = [str(Path(entry).absolute()) for entry in sys.path if entry not in {"", "."}]
        with theirs:
            import subprocess  # see `_pipe`

            self._process = subprocess.Popen(  # noqa: S603  # this module
                [sys.executable, "-P", "-c", _START, str(theirs.fileno()), " ".join(imports), *paths],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's interrupt is for the caller, which ends its children
            )

    @property
    def is_alive(self) -> bool:
        return self.owner == os.getpid() and self._control.fileno() != -1 and self._process.poll() is None

    def fork(self, end: socket.socket, imports: Sequence[str]) -> int:
        place = ""  # of relative paths; the helper stays where it was started
        with suppress(OSError):  # the folder is gone
            place = os.getcwd()  # noqa: PTH109  # as a string
        return int(self._asked({"fork": list(imports), "in": place}, [end.fileno()]))

    def end(self, pid: int) -> int:
        """End a child, and return its exit code, or minus the number of the signal that ended it; 0 if not known.

        Its parent ends it, so its number cannot be that of another process by then. Children of a helper that has ended
        end by themselves.
        """
        try:
            return int(self._asked({"end": pid}, [])) if self.is_alive else 0
        except GradienceError:
            return 0

    def _asked(self, question: Any, ends: list[int]) -> bytes:
        with self._lock:
            try:
                socket.send_fds(self._control, [json.dumps(question).encode()], ends)
                answer = self._control.recv(64)
            except OSError:
                answer = b""
            except BaseException:  # an interrupt: the next answer would be this question's
                self.close()
                raise
        if not answer:
            raise GradienceError("cannot start a process to read the data in", advice="is memory short?")
        return answer

    def close(self) -> None:
        """End the helper."""
        self._control.close()
        if self.owner == os.getpid():
            self._process.kill()
            self._process.wait()
        else:
            self._process.returncode = 0  # of another process: not ours to wait for


_HELPERS: Final[list[_Helper]] = []
_STARTING: Final = Lock()


def _helper(imports: Sequence[str] = ()) -> _Helper:
    """The helper of this process, started anew if it has ended or is that of the process that this was forked from."""
    with _STARTING:
        if not _HELPERS or not _HELPERS[0].is_alive:
            end_helper()
            _HELPERS.append(_Helper(imports))
        return _HELPERS[0]


def prepare(imports: Sequence[str]) -> None:
    """Start the helper process if there is none, so that it imports these while the caller does other things."""
    if hasattr(os, "fork"):
        _helper(imports)


@atexit.register
def end_helper() -> None:
    """End the process from which confined ones are forked; the next is started anew."""
    while _HELPERS:
        _HELPERS.pop().close()


def _found(target: str) -> Any:
    module, _, name = target.partition(":")
    home = importlib.import_module(module)
    return getattr(home, name) if name else home


def serve(descriptor: int, imports: Sequence[str]) -> None:
    """Answer the questions of the process that started this one, until it ends."""
    control = socket.socket(fileno=descriptor)
    _import(imports)
    while True:
        message, ends, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not message:
            return
        question = json.loads(message)
        if "end" in question:
            status = _ended(question["end"])
            control.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        # Children of objects that were collected have ended unasked, and would stay zombies.
        _reap()
        _import(question["fork"])
        pid = os.fork()
        if pid == 0:
            control.close()
            with suppress(OSError):
                os.chdir(question["in"])
            _obey(_pipe(ends[0]))
        os.close(ends[0])
        _ENDED.pop(pid, None)  # of an earlier child of this number
        control.send(str(pid).encode())


def _import(names: Sequence[str]) -> None:
    for name in names:
        with suppress(Exception):  # the child says what is missing
            _found(name)


def _ended(pid: int) -> int:
    """The status of a child, which has ended by itself if it ends within a moment of its pipe, and is killed else."""
    for _ in range(_MOMENTS):
        _reap()
        if pid in _ENDED:
            return _ENDED.pop(pid)
        time.sleep(_MOMENT)
    os.kill(pid, signal.SIGKILL)  # not reaped, so it is still the number of this child
    return os.waitpid(pid, 0)[1]


def _reap() -> None:
    """Take note of all children that have ended, those of objects that were collected among them."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _ENDED[ended[0]] = ended[1]


def _obey(pipe: Connection) -> NoReturn:
    """Make the object that is asked for, answer each question, and end with the caller."""
    made: Any = None
    while True:
        try:
            question = pipe.recv_bytes()
        except (EOFError, ConnectionResetError):  # the caller has closed the pipe, or ended
            # Not sys.exit: a fork's exit handlers and unwritten buffers are the helper's.
            os._exit(0)
        allow(_BUDGET[0] + len(question) / _BYTES_A_SECOND)
        head = msgspec.msgpack.decode(question)
        try:
            if made is None:
                made = _made(*head)
                _say(pipe, "made")
                continue
            result = getattr(made, head[0])(*head[1])
            if not isinstance(result, Iterator):
                _say(pipe, "item", result)
                continue
            for item in result:
                _say(pipe, "item", item)
                allow()
            _say(pipe, "end")
        except ConfigError as error:
            _say(pipe, "unusable", error.message, error.advice)
        except MemoryError:
            _say(pipe, "failed", "it needs more memory than it may take")
        except BaseException as error:  # noqa: BLE001  # a panic of Rust is one, and any library may raise anything
            _say(pipe, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _made(target: str, memory: int, seconds: float, args: list[Any]) -> Any:
    _limit_memory(memory)
    _BUDGET[0] = seconds
    allow(_TO_MAKE * seconds)
    return _found(target)(*args)


def _say(pipe: Connection, *answer: Any) -> None:
    data = msgspec.msgpack.encode(list(answer), enc_hook=str)
    try:
        pipe.send_bytes(data)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # as above


_BUDGET: Final = [SECONDS]
_ENDED: Final[dict[int, int]] = {}  # in the helper: the statuses of children that nobody has asked for


def allow(seconds: float | None = None) -> None:
    """Give a child so much processor time from now on, by default that of one answer. It is ended when that is up."""
    if hasattr(signal, "setitimer"):
        # Not RLIMIT_CPU: it counts from the start of the process, and in whole seconds.
        signal.setitimer(signal.ITIMER_PROF, seconds or _BUDGET[0])  # whose signal ends a process


def _limit_memory(more: int) -> None:
    """Limit the memory of this process to what it has now and some more. Mapped files do not count."""
    import resource  # there is none on Windows

    # A crash is an ordinary answer here: it leaves no core file in the user's folder.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # not Linux, where no other limit counts memory that is used
        return
    now = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = now + more if hard == resource.RLIM_INFINITY else min(now + more, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
