"""Run every verb on damaged inputs, and check the results against what is promised for any input.

    python tests/fuzz.py --inputs 3000 --seed 0 --workers 2 --out /tmp/fuzz

One process imports everything and forks the workers. A worker runs one input after the other in its own process, with
an alarm and a memory limit, and is replaced if an input kills it. Every input depends only on (seed, number), so
`--only N` runs one of them again. For each failure, `--out` gets a folder with the input, reduced as far as possible,
the command line and the fault.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parent
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from fuzz_inputs import DROPPABLE, Input, draw, place  # noqa: E402  # after the path is set
from isolated import warm  # noqa: E402  # the same

SECONDS = 10  # processor time for one input, which does not depend on the machine's load
WALL = 60  # seconds of the clock, for an input that only waits
MEMORY_MB = 300  # allowed beyond twice the files' size
ROOM_MB = 5000  # limit of address space, at which a decompression bomb fails
CODES = {0, 1, 2, 3}
MORE = ("matplotlib.figure", "matplotlib.backends.backend_svg", "torch", "peft")
ALLOWED_CONTROLS = {"\n", "\t", "\u200d", "\u200b", "\ufeff"}
SHM = "/dev/shm"  # noqa: S108  # a disk takes as long to remove a folder as a verb takes
MOST_TEXT = 1 << 26  # bytes
TRIES = 24  # runs to reduce one input


class Verdict(NamedTuple):
    """The result of one input: the exit code, and the faults. The first word of a fault is its class."""

    code: int
    faults: tuple[str, ...]
    seconds: float


class Hang(BaseException):
    """Raised by the alarm. It is a BaseException, so that no `except Exception` catches it."""


def main() -> int:
    """Run, print the counts, and return 1 if anything failed."""
    options = _options()
    out = Path(options.out).resolve()
    _settle()
    if options.batches == 1:
        return int(_batch(options, options.seed, out))
    failed = [_batch(options, options.seed + n, out / f"seed-{options.seed + n}") for n in range(options.batches)]
    return int(any(failed))


def _batch(options: argparse.Namespace, seed: int, out: Path) -> bool:
    """Run the inputs of a seed; return whether any failed. A batch, of several, that was finished is not run again."""
    if options.batches > 1 and (out / "counts.json").exists():
        return bool(json.loads((out / "counts.json").read_text())["failed"])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    numbers = [options.only] if options.only is not None else _spread(options.inputs, seed, options.each)
    start = time.monotonic()
    verdicts = dict(_run_all(numbers, seed, options.workers, options.minutes))
    for number, verdict in verdicts.items():
        if any(fault.startswith("hang") for fault in verdict.faults):  # or the machine was busy, or stopped
            verdicts[number] = _run_with(number, seed, [])
    failed = {n: v for n, v in verdicts.items() if v.faults}
    classes = _classes(failed)
    _print(verdicts, classes, seed, time.monotonic() - start)
    for fault, first in ((fault, numbers[0]) for fault, numbers in classes.items()):
        name = "".join(c if c.isalnum() else "-" for c in fault)[:80].strip("-")
        dropped = [] if options.raw else _smaller(first, seed, fault)
        _keep(out / f"{name}-{first}", first, seed, dropped, fault)
    (out / "counts.json").write_text(json.dumps(_counts(verdicts, classes, seed), indent=2) + "\n")
    return bool(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Damaged inputs for every verb.")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, default=1, help="run so many seeds, each in a folder of its own")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--each", type=int, default=None, help="most inputs of one verb and kind of file")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="stop drawing after so long")
    parser.add_argument("--out", default=str(Path(tempfile.gettempdir()) / "gradience-fuzz"))
    parser.add_argument("--only", type=int, default=None, help="run this input alone")
    parser.add_argument("--raw", action="store_true", help="keep failing inputs as they were drawn")
    return parser.parse_args()


def _spread(inputs: int, seed: int, each: int | None) -> list[int]:
    """Return the numbers of the inputs. At most `each` inputs have the same verb and kind of file."""
    if each is None:
        return list(range(inputs))
    seen: Counter[tuple[str, str]] = Counter()
    numbers = []
    for number in range(inputs):
        given = draw(number, seed)
        seen[given.argv[0], given.kind] += 1
        if seen[given.argv[0], given.kind] <= each:
            numbers.append(number)
    return numbers


def _settle() -> None:
    """Import the modules that a worker needs, before any thread runs that a fork would lose."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }
    serial = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ |= {"XLA_FLAGS": f"{serial} --xla_llvm_disable_expensive_passes=true"}  # it compiles more than it runs
    warnings.simplefilter("ignore")
    warm(MORE)
    gc.freeze()


class Worker:
    """A fork that runs inputs, and the two pipes to it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gradience-fuzz-", dir=SHM if Path(SHM).is_dir() else None))
        ask, self._asked = os.pipe()
        self.told, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._asked)
            os.close(self.told)
            _work(os.fdopen(ask, "r"), tell, self.folder)
        os.close(ask)
        os.close(tell)
        self._answers = os.fdopen(self.told, "r")
        self.number: int | None = None
        self.since = 0.0

    def ask(self, number: int, seed: int, dropped: list[int]) -> None:
        """Tell the worker to run an input, without some of its damages."""
        self.number, self.since = number, time.monotonic()
        os.write(self._asked, (json.dumps([number, seed, dropped]) + "\n").encode())

    def answer(self) -> Verdict:
        """Return the worker's verdict. If the worker has ended, the input killed it."""
        line = self._answers.readline()
        seconds = time.monotonic() - self.since
        if not line:
            _, status = os.waitpid(self.pid, 0)
            return Verdict(-1, (f"crash: {os.waitstatus_to_exitcode(status)}",), seconds)
        code, faults, seconds = json.loads(line)
        return Verdict(code, tuple(faults), seconds)

    def late(self) -> bool:
        """Whether the worker is over its time, so that its own alarm did not work."""
        return self.number is not None and time.monotonic() - self.since > WALL + 3

    def kill(self) -> Verdict:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return Verdict(-9, ("hang: and the alarm was not heard",), time.monotonic() - self.since)

    def close(self) -> None:
        """Kill the worker if it runs. Closing its pipe is not enough, because workers forked later hold it open too."""
        os.close(self._asked)
        self._answers.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)


def _run_all(numbers: list[int], seed: int, count: int, minutes: float) -> Iterator[tuple[int, Verdict]]:
    waiting = list(reversed(numbers))
    workers = [Worker() for _ in range(min(count, len(waiting)))]
    end = time.monotonic() + minutes * 60
    while waiting or any(w.number is not None for w in workers):
        for worker in workers:
            if worker.number is None and waiting and time.monotonic() < end:
                worker.ask(waiting.pop(), seed, [])
        busy = {w.told: w for w in workers if w.number is not None}
        if not busy:
            break
        ready, _, _ = select.select(list(busy), [], [], 1.0)
        for at, worker in enumerate(workers):
            if worker.told in ready and worker.number is not None:
                verdict = worker.answer()
            elif worker.late():
                verdict = worker.kill()
            else:
                continue
            yield worker.number or 0, verdict
            worker.number = None
            if verdict.code < 0:
                worker.close()
                workers[at] = Worker()
    for worker in workers:
        worker.close()


def _classes(failed: dict[int, Verdict]) -> dict[str, list[int]]:
    """Return the numbers of the inputs of each class of failure."""
    classes: dict[str, list[int]] = {}
    for number, verdict in sorted(failed.items()):
        for fault in dict.fromkeys(verdict.faults):
            classes.setdefault(fault, []).append(number)
    return classes


def _smaller(number: int, seed: int, fault: str) -> list[int]:
    """Return the damages that can be dropped without losing the fault. They are tried one by one."""
    dropped: list[int] = []
    for index in range(min(TRIES, draw(number, seed).damages)):
        verdict = _run_with(number, seed, [*dropped, index])
        if fault in verdict.faults:
            dropped.append(index)
    return dropped


def _run_with(number: int, seed: int, dropped: list[int]) -> Verdict:
    worker = Worker()
    worker.ask(number, seed, dropped)
    ready, _, _ = select.select([worker.told], [], [], WALL + 3)
    verdict = worker.answer() if ready else worker.kill()
    worker.close()
    return verdict


def _keep(folder: Path, number: int, seed: int, dropped: list[int], fault: str) -> None:
    given = draw(number, seed, dropped)
    place(given, folder)
    line = " ".join(json.dumps(word) if set(word) - DROPPABLE else word for word in given.argv)
    again = f"python tests/fuzz.py --only {number} --seed {seed}"
    secret = f"secret: {given.secret_kind}: {', '.join(given.secrets)}\n" if given.secrets else ""
    text = f"{fault}\n\ncd in && gradience {line}\n\nseed file: {given.kind}\n{secret}again: {again}\n"
    (folder / "README").write_text(text, encoding="utf-8", errors="backslashreplace")


def _counts(verdicts: dict[int, Verdict], classes: dict[str, list[int]], seed: int) -> dict[str, Any]:
    drawn = {n: draw(n, seed) for n in verdicts}
    return {
        "inputs": len(verdicts),
        "failed": sum(bool(v.faults) for v in verdicts.values()),
        "exit codes": dict(sorted(Counter(str(v.code) for v in verdicts.values()).items())),
        "verbs": dict(sorted(Counter(d.argv[0] if d.argv else "" for d in drawn.values()).items())),
        "kinds": dict(sorted(Counter(d.kind for d in drawn.values()).items())),
        "failed by verb": dict(sorted(Counter(drawn[n].argv[0] for n, v in verdicts.items() if v.faults).items())),
        "seconds by verb": dict(sorted(_seconds(verdicts, drawn).items())),
        "slowest": round(max((v.seconds for v in verdicts.values()), default=0.0), 2),
        "faults": {fault: len(numbers) for fault, numbers in sorted(classes.items(), key=lambda c: -len(c[1]))},
        "examples": {fault: numbers[:3] for fault, numbers in classes.items()},
    }


def _seconds(verdicts: dict[int, Verdict], drawn: dict[int, Input]) -> dict[str, float]:
    spent: Counter[str] = Counter()
    for number, verdict in verdicts.items():
        spent[drawn[number].argv[0]] += verdict.seconds  # type: ignore[assignment]  # a Counter counts anything
    return {verb: round(seconds, 1) for verb, seconds in spent.items()}


def _print(verdicts: dict[int, Verdict], classes: dict[str, list[int]], seed: int, seconds: float) -> None:
    counts = _counts(verdicts, classes, seed)
    sys.stdout.write(
        f"seed {seed}: {counts['inputs']} inputs in {seconds:.0f} s, {counts['failed']} failed; "
        f"slowest {counts['slowest']} s" + "\n"
    )
    for name in ("exit codes", "verbs", "seconds by verb", "kinds", "failed by verb"):
        sys.stdout.write(f"{name}: {', '.join(f'{key} {value}' for key, value in counts[name].items())}" + "\n")
    for fault, numbers in sorted(classes.items(), key=lambda c: -len(c[1])):
        sys.stdout.write(f"{len(numbers):6d}  {fault}   (inputs {', '.join(map(str, numbers[:3]))})" + "\n")
    sys.stdout.flush()


# In the worker -------------------------------------------------------------------------------------------------------


def _work(asked: Any, tell: int, folder: Path) -> None:
    """Run the requested inputs. This function never returns."""
    code = 1
    try:
        faulthandler.disable()
        room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ROOM_MB * 1024**2
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        runner = Runner(folder)
        for line in asked:
            number, seed, dropped = json.loads(line)
            verdict = runner.verdict(draw(number, seed, dropped))
            os.write(tell, (json.dumps(verdict) + "\n").encode())
        code = 0
    except BaseException:  # noqa: BLE001  # the last frame of this process
        with contextlib.suppress(Exception):
            (folder / "worker").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _save_time() -> None:
    """Do once what would take a third of the time: the table of commands, and a process for each fleet."""
    from gradience.cli import main as cli
    from gradience.collect.fleet import audit

    built = cache(cli.build_app)
    cli.build_app = lambda *asked: built(*asked[: 1 + (asked[:1] and asked[0] in cli.GROUPS)])
    audit.run_local = _run_here


def _run_here(work: Any, jobs: Any, **_options: Any) -> Iterator[Any]:
    """Do the jobs of a fleet in this process."""
    from gradience.collect.fleet.engines import Done

    return (Done(job, work(job)) for job in jobs)


def _is_expected(argv: Any) -> bool:
    """Whether a program that is started is a helper of ours, `bench`'s evaluator, or what MLflow asks the system."""
    return "-P" in argv or argv[0] in {"env", "uname"}


class Runner:
    """Runs inputs in this process, and checks all of their output."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._out, self._err = folder / "stdout", folder / "stderr"
        for number, path in ((1, self._out), (2, self._err)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ |= {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        for name in ("home", "cache", "tmp"):
            (folder / name).mkdir()
        self._written: list[str] | None = None
        sys.addaudithook(self._heard)
        signal.signal(signal.SIGALRM, _alarm)
        signal.signal(signal.SIGPROF, _alarm)
        _save_time()

    def verdict(self, given: Input) -> Verdict:
        """Run an input, and return its verdict."""
        case = self._folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        size = place(given, case)
        before = _snapshot(case)
        base = self._start()
        start = time.process_time()
        code, fault = self._call(given, case)
        seconds = time.process_time() - start
        faults = [fault] if fault else []
        peak = _status_mb("VmHWM") - base
        if peak > 2 * size / 1e6 + MEMORY_MB:
            faults.append(f"memory: {given.argv[0]}")
        if seconds > SECONDS and not fault:
            faults.append(f"hang: {given.argv[0]} took longer than {SECONDS} s")
        faults += self._faults(given, case, code, before)
        os.chdir("/")
        return Verdict(code, tuple(dict.fromkeys(faults)), seconds)

    def _start(self) -> float:
        """Empty the outputs, reset the peak of memory, and return the resident memory."""
        gc.collect(1)
        for path in (self._out, self._err):
            os.truncate(path, 0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return _status_mb("VmRSS")

    def _call(self, given: Input, case: Path) -> tuple[int, str]:
        from gradience.cli.main import main as gradience

        os.chdir(case / "in")
        out = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", write_through=True)
        err = io.TextIOWrapper(
            io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
        )
        self._written = []
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for kind in (RuntimeWarning, UserWarning, ResourceWarning):
                warnings.simplefilter("always", kind)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.alarm(WALL)
            try:
                return gradience(list(given.argv)), ""
            except SystemExit as end:
                return (end.code if isinstance(end.code, int) else int(end.code is not None)), ""
            except Hang as hang:
                return 0, f"hang: {_where(hang)}"
            except BaseException as error:  # noqa: BLE001  # that there is none is what is claimed
                return 1, f"traceback: {type(error).__name__} in {_where(error)}"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
                self._stop = self._written
                self._written = None

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if self._written is None:
            return
        if event == "open" and isinstance(args[0], str | bytes) and isinstance(args[2], int):
            if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._written.append(os.fsdecode(args[0]))
        elif event in {"os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}:
            self._written.append(os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else "")
        elif event in {"os.rename", "os.link", "os.symlink"}:
            self._written += [os.fsdecode(a) for a in args[:2] if isinstance(a, str | bytes)]
        elif event == "subprocess.Popen" and _is_expected(args[1]):
            return
        elif event in {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect"}:
            self._written.append(f"/{event}")

    def _faults(self, given: Input, case: Path, code: int, before: dict[str, tuple[int, int]]) -> Iterator[str]:
        verb = given.argv[0]
        out = self._out.read_bytes().decode("utf-8", "surrogateescape")
        err = self._err.read_bytes().decode("utf-8", "surrogateescape")
        if code not in CODES:
            yield f"exit code: {code} of {verb}"
        lines = [line for line in err.splitlines() if line.strip()]
        warned = next((line for line in lines if "Warning: " in line or "Traceback" in line), None)
        if warned is not None:
            where = warned.rpartition(": ")[0].rpartition("/")[2] if "Warning: " in warned else "a traceback"
            yield f"stderr: {where[:60]} in {verb}"
        elif len(lines) > 1:
            yield f"stderr: {verb} wrote {min(len(lines), 3)} lines or more"
        if any(len(line) > 2000 for line in lines):  # thirty lines of a terminal
            yield f"long error: {verb}"
        if given.json and out and not _is_json(out):
            yield f"json: {verb} wrote something else"
        shown = out.replace("\r\n", "\n") if "--csv" in given.argv else out  # the line end of RFC 4180
        yield from (f"control: {verb} wrote {c} as itself" for c in sorted(_controls(shown) | _controls(err))[:1])
        yield from self._changes(given, case, before)
        made = "" if given.keeps_config else _texts(case / "out")
        for secret in given.secrets:
            if any(secret in text for text in (out, err, made)):
                yield f"secret: {verb} shows one"

    def _changes(self, given: Input, case: Path, before: dict[str, tuple[int, int]]) -> Iterator[str]:
        verb = given.argv[0]
        after = _snapshot(case)
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name) and not any(name.startswith(w) for w in given.writes):
                what = "removed" if name not in after else "changed" if name in before else "wrote"
                yield f"write: {verb} {what} {Path(name).name if given.kind in name else Path(name).suffix or 'a file'}"
        roots = tuple(str(p) for p in (case, self._folder / "cache", self._folder / "tmp", "/dev/null", "/dev/shm"))  # noqa: S108
        for path in self._stop:
            imported = "__pycache__" in Path(path).parts  # Python compiles a package at its first import
            if path.startswith("/") and not imported and not path.startswith((*roots, "/proc/self")):
                yield f"write: {verb} opened {path} for writing"
        for path in (case / "out").glob("**/*.safetensors"):
            if not _opens(path):
                yield f"unreadable: {verb} wrote what safetensors cannot open"
        if any((self._folder / "tmp").iterdir()):
            yield f"write: {verb} left something in the temporary folder"
            shutil.rmtree(self._folder / "tmp")
            (self._folder / "tmp").mkdir()


def _alarm(_number: int, _frame: Any) -> None:
    raise Hang


def _where(error: BaseException) -> str:
    """Return the last function of ours on the way to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f"{Path(f.filename).parent.name}.{Path(f.filename).stem}.{f.name}"
        for f in frames
        if "/gradience/" in f.filename
    ]
    return ours[-1] if ours else "no function of ours"


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        is_folder = path.is_dir() and not path.is_symlink()
        found[str(path.relative_to(folder))] = (0, 0) if is_folder else (state.st_size, state.st_mtime_ns)
    return found


def _texts(folder: Path) -> str:
    """All text below a folder; of a sparse file, which a store may have been damaged with, its beginning."""
    texts = []
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                texts.append(file.read(MOST_TEXT).decode("utf-8", "replace"))
    return "\n".join(texts)


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return text.isascii() or text.encode("utf-8", "replace").decode() == text


def _refuse(name: str) -> None:
    raise ValueError(name)


def _controls(text: str) -> set[str]:
    if text.isascii() and text.isprintable():
        return set()
    odd = {c for c in set(text) if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}} - ALLOWED_CONTROLS
    return {ascii(c) for c in odd}


def _opens(path: Path) -> bool:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return len(list(file.keys())) >= 0
    except Exception:  # noqa: BLE001  # whatever it is, it does not open
        return False


if __name__ == "__main__":
    raise SystemExit(main())
