"""Whole-process time, memory and page size of `report` for long logs.

    python benchmarks/report.py [--adapter DIR] [--rows 1000 10000 100000] [--runs 3]

The recorder writes each log on the spot. Printed are median wall and CPU seconds, peak resident memory and the size of
the page, each also as a multiple of the shortest log's.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gradience import TelemetryWriter


def write_log(path: Path, rows: int) -> None:
    with TelemetryWriter(path) as log:
        log.run_start()
        for step in range(1, rows + 1):
            log.train_step(step, loss=2.0 * math.exp(-3.0 * step / rows) + 0.1 * (step % 7), lr=1e-4, grad_norm=1.0)
            if step % (rows // 10) == 0:
                log.eval(step, split="test", metrics={"loss": 1.0 + step / rows, "n": 500})


def measured(command: list[str]) -> tuple[float, float, float]:
    """Return wall seconds, CPU seconds and peak resident megabytes of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}")
    first = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for rows in options.rows:
            log, page = Path(folder) / f"{rows}.jsonl", Path(folder) / "page.html"
            write_log(log, rows)
            command = [sys.executable, "-m", "gradience", "report", str(log), "--out", str(page), "--force"]
            command += ["--adapter", str(options.adapter)] if options.adapter else []
            costs = [measured(command) for _ in range(options.runs)]
            wall, cpu, memory = (statistics.median(column) for column in zip(*costs, strict=True))
            first = first or cpu
            size = page.stat().st_size / 1e6
            print(f"  {rows:>8} rows {wall:6.2f} s  {cpu:6.2f} s CPU ({cpu / first:.2f} x)  {memory:5.0f} MB", end="")
            print(f"  {size:.2f} MB page")


if __name__ == "__main__":
    main()
