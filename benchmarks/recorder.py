"""Test the recorder under faults: whether a loop goes on unchanged, and whether every lost event was reported.

    python benchmarks/recorder.py [--trials 50]

Each trial is a separate process with a loop of 40 steps, and the fault happens at a random step. An event is
acknowledged when its call returns. A lost event is reported by an error, a warning, or the writer's count.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gradience import TelemetryWriter
from gradience.errors import GradienceError

STEPS = 40
KILLS = Path(__file__).resolve().parent.parent / "tests" / "telemetry" / "kill_writers.py"
EXPECTED = sum(step * 0.5 for step in range(1, STEPS + 1))


class Trial(NamedTuple):
    """The result of one loop."""

    state: float  # the loop's own result, which must not depend on its log
    acknowledged: list[int]
    said: int
    lost: int


def loop(log: Path, act: Callable[[], object], at: int, values: Callable[[int], dict[str, Any]] | None = None) -> Trial:
    """Run the loop; the fault happens before step `at`."""
    state, said, lost = 0.0, 0, 0
    acknowledged: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        writer = None
        try:
            writer = TelemetryWriter(log, "run", fsync="always")
        except GradienceError:
            said += 1
        for step in range(1, STEPS + 1):
            state += step * 0.5
            if step == at:
                act()
            try:
                if writer is not None:
                    writer.train_step(step, loss=state, **(values(step) if values else {}))
                    acknowledged.append(step)
            except GradienceError:
                said += 1
        with contextlib.suppress(GradienceError):
            if writer is not None:
                writer.run_end()
        try:
            if writer is not None:
                writer.close()
        except GradienceError:
            said += 1
        lost = 0 if writer is None else writer.lost
    return Trial(state, acknowledged, said + len(caught), lost)


def kept(folder: Path) -> set[int]:
    """Return the steps in the logs of a folder."""
    steps = set()
    for path in folder.rglob("*.jsonl"):
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event["event"] == "train_step":
                    steps.add(event["step"])
    return steps


def descriptor(log: Path) -> int:
    """Return the descriptor under which this process holds the log open."""
    return next(int(n.name) for n in Path("/proc/self/fd").iterdir() if n.exists() and os.path.realpath(n) == str(log))


def full_disk(log: Path, rng: random.Random) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, descriptor(log))


def failing_disk(log: Path, rng: random.Random) -> None:
    write = os.write

    def fail(fd: int, data: bytes) -> int:
        if rng.getrandbits(1):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(fd, data)

    os.write = fail


def vanished(log: Path, rng: random.Random) -> None:
    shutil.rmtree(log.parent)


def replaced(log: Path, rng: random.Random) -> None:
    log.with_name("other").touch()
    log.with_name("other").replace(log)


def clock(log: Path, rng: random.Random) -> None:
    time.time = lambda: rng.uniform(-1e9, 1e9)
    time.time_ns = lambda: int(time.time() * 1e9)


def fork(log: Path, rng: random.Random) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def threads(log: Path, rng: random.Random) -> None:
    writer = TelemetryWriter(log.with_name("threads.jsonl"), "run")

    def write(number: int) -> None:
        for n in range(20):
            writer.train_step(1000 + 20 * number + n, loss=1.0)

    running = [threading.Thread(target=write, args=(n,)) for n in range(16)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    writer.close()
    assert len(kept(log.parent) - set(range(1000))) == 320


def second(log: Path, rng: random.Random) -> None:
    code = f"import sys; sys.path[:0]={sys.path!r}\nfrom gradience import TelemetryWriter\n"
    code += f"w=TelemetryWriter({str(log)!r})\nfor s in range(2000, 2040): w.train_step(s, loss=1.0)\nw.close()"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    assert len({s for s in kept(log.parent) if s >= 2000}) == 40


def hostile(rng: random.Random) -> Callable[[int], dict[str, Any]]:
    class Odd:
        def __float__(self) -> float:
            raise ValueError("no")

    endless: list[Any] = []
    endless.append(endless)
    choices = [
        float("nan"),
        10**400,
        endless,
        Odd(),
        "x" * 10**6,
        b"\xff",
        {"a": {1, 2}},
        object(),
        "\ud800",
        1j,
        1e400,
    ]
    return lambda _step: {rng.choice(["x", "loss_", "a" * 300, "\n"]): rng.choice(choices)}


def nothing(log: Path, rng: random.Random) -> None:
    """Do nothing, because the fault is there from the beginning."""


FAULTS: dict[str, Callable[[Path, random.Random], None]] = {
    "full disk": full_disk,
    "EIO, half of all writes": failing_disk,
    "folder removed": vanished,
    "log replaced": replaced,
    "read-only folder": nothing,
    "pipe as the log": nothing,
    "clock at random": clock,
    "fork after opening": fork,
    "16 threads, a log": threads,
    "second process, same log": second,
    "hostile values": nothing,
}


_write = os.write  # a fault may replace it


def trial(name: str, seed: int) -> dict[str, int]:
    """Run one trial in a fork, and return its counts."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with tempfile.TemporaryDirectory() as folder:
            counts = _trial(name, random.Random(seed), Path(folder).resolve())  # noqa: S311  # a benchmark repeats itself
        _write(writer, json.dumps(counts).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    return json.loads(data) if data and status == 0 else {"stopped": 1}


def _trial(name: str, rng: random.Random, folder: Path) -> dict[str, int]:
    runs = folder / "runs"
    runs.mkdir()
    log = runs / "run.jsonl"
    if name.startswith("pipe"):
        os.mkfifo(log)
    if name.startswith("read-only"):
        folder.chmod(0o755)
        runs.chmod(0o555)
        os.seteuid(65534)
    values = hostile(rng) if name.startswith("hostile") else None
    done = loop(log, lambda: FAULTS[name](log, rng), rng.randrange(1, STEPS), values)
    os.seteuid(0)
    missing = len(set(done.acknowledged) - kept(folder))
    return {
        "changed": int(done.state != EXPECTED),
        "acknowledged": len(done.acknowledged),
        "refused": STEPS - len(done.acknowledged),
        "missing": missing,
        "unsaid": int(bool(missing or len(done.acknowledged) < STEPS) and not (done.said or done.lost)),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    trials = parser.parse_args().trials
    sys.stdout.write("| fault | trials | loops stopped or changed | acknowledged | refused | missing | not said |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run.jsonl"
        command = [sys.executable, str(KILLS), str(log), "200", "1"]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        found: Counter[str] = Counter()
        for line in log.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                found[json.loads(line)["session"]] += 1
        killed = json.loads(told.stdout)
        missing = sum(max(0, count - found[session]) for session, count in killed)
        total = sum(count for _, count in killed)
        sys.stdout.write(f"| SIGKILL | {len(killed)} | | {total} | 0 | {missing} | {missing} |\n")
    for name in FAULTS:
        counts = [trial(name, seed) for seed in range(trials)]
        total = {key: sum(c.get(key, 0) for c in counts) for key in ("acknowledged", "refused", "missing", "unsaid")}
        stopped = sum(c.get("stopped", 0) + c.get("changed", 0) for c in counts)
        cells = [name, trials, stopped, *total.values()]
        sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")


if __name__ == "__main__":
    main()
