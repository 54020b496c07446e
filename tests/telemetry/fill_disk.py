"""Write until the disk is full, then once more with room: ``python fill_disk.py LOG [LIMIT_BYTES]``.

With a limit the process may not write files longer than that (RLIMIT_FSIZE); without one the log's file
system is small. Prints one JSON object.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from gradience.errors import RecorderError
from gradience.telemetry import TelemetryWriter


def limit(size: int) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def main(log: Path, size: int | None) -> None:
    filler = log.with_name("filler")
    if size is None:
        filler.write_bytes(b"z" * 30_000)
    else:
        limit(size)
    writer = TelemetryWriter(log, "run", fsync="never", on_error="raise")
    writer.run_start()
    step, error = 0, ""
    try:
        for step in range(1_000_000):
            writer.train_step(step, loss=0.5, note="y" * 200)
    except RecorderError as failure:
        error = str(failure)
    torn = not log.read_bytes().endswith(b"\n")
    if size is None:
        filler.unlink()
    else:
        limit(-1)
    writer.train_step(step + 1, loss=0.25)
    writer.run_end()
    writer.close()
    json.dump({"written": step, "error": error, "torn": torn, "lost": writer.lost}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
