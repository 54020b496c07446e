"""Kill writers at random moments: ``python kill_writers.py LOG KILLS SEED``.

Each child is a fork that appends to the same log until SIGKILL, and reports through a pipe which write
calls returned. Prints one JSON list: the session of each child and how many of its writes returned.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

from gradience.telemetry import TelemetryWriter

ACK = struct.Struct("<i")
SIZES = (10, 200, 3000, 20_000, 60_000)  # a long line takes the kernel several pages, and can be cut


def write_until_killed(log: Path, pipe: int, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311  # a test repeats itself
    with TelemetryWriter(log, "run", allow_text=True, max_str_len=70_000, fsync="never") as writer:
        os.write(pipe, writer.session.encode())
        writer.run_start()
        n = 1
        while True:
            os.write(pipe, ACK.pack(n))
            writer.alert(severity="info", code="text", message="x" * rng.choice(SIZES), step=n)
            n += 1


def kill_one(log: Path, seed: int, first: int, delay_s: float) -> tuple[str, int]:
    """Kill a writer some time after its first writes returned."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        write_until_killed(log, writer, seed)
    os.close(writer)
    session = os.read(reader, 12).decode()
    with os.fdopen(reader, "rb") as file:
        acks = file.read(first * ACK.size)
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        acks += file.read()
    return session, ACK.unpack_from(acks, (len(acks) // ACK.size - 1) * ACK.size)[0]


def main(log: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311  # a test repeats itself
    json.dump(
        [kill_one(log, rng.random(), rng.randint(2, 4), rng.uniform(0.0, 0.02)) for _ in range(kills)], sys.stdout
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
