"""Whole-process time, CPU time and peak memory of `resize`, beside the audit and another tool, and both tools' error.

    python benchmarks/resize.py FOLDER --rank 16 [--runs 3] [--peer PATH]

FOLDER is an adapter. PATH is the `gradience` command of gradience==0.11.0 from the index, in its own environment. Its
`truncate` also runs as a separate process, and writes bfloat16 as ours does for an adapter of that dtype. The tools
take turns, after one uncounted turn. CPU time (user and system) is not distorted by a loaded machine.
Then the error of each result is printed: norm(dW - dW') / norm(dW) over a sample of modules, from a QR decomposition of
the stacked factors in float64. It is compared with the least possible error at that rank (the tail of the singular
values). Our result is also computed in float32, which shows the error of rounding the factors to 16 bits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

_SAMPLE = 7  # modules whose error is computed


class Cost(NamedTuple):
    """Wall seconds, CPU seconds, peak resident megabytes of one process."""

    wall: float
    cpu: float
    megabytes: float


def run(command: list[str]) -> Cost:
    """Run one process to its end and return its cost, as the operating system measured it."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed: {error.decode(errors='replace')[-400:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def errors(source: Path, resized: Path, rank: int) -> tuple[float, float]:
    """Return the largest (error - least possible error) and the largest error, over a sample of modules."""
    from gradience.adapters.open import open_adapter
    from gradience.spectral.update import core_singular_values, stacked

    before, after = open_adapter(source)[1].modules, open_adapter(resized)[1].modules
    by_name = {module.name: module for module in after}
    excess = worst = 0.0
    for old in before[:: max(1, len(before) // _SAMPLE)]:
        new = by_name[old.name]
        b, a = old.load()
        new_b, new_a = new.load()
        difference = stacked([(b, a, old.scale), (new_b, new_a, -new.scale)])
        sigma = core_singular_values(b, a) * abs(old.scale)
        size = float(np.linalg.norm(sigma))
        error = float(np.linalg.norm(core_singular_values(*difference))) / size
        least = float(np.linalg.norm(sigma[rank:])) / size
        excess, worst = max(excess, error - least), max(worst, error)
    return excess, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer", type=Path)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # so that installed modules are not compiled again in every run
    ours = [sys.executable, "-m", "gradience"]
    with tempfile.TemporaryDirectory(dir=options.folder.parent) as temporary:
        place = Path(temporary)
        tools = {
            "audit": [*ours, "audit", "--json", str(options.folder)],
            "resize": [*ours, "resize", str(options.folder), "--rank", str(options.rank), "--out", str(place / "ours")],
        }
        if options.peer is not None:
            peer = [str(options.peer), "truncate", "--peft-dir", str(options.folder), "--rank", str(options.rank)]
            tools["0.11.0 truncate"] = [*peer, "--out-dir", str(place / "peer"), "--dtype", "bf16"]
        costs: dict[str, list[Cost]] = {name: [] for name in tools}
        for turn in range(options.runs + 1):
            for name, command in tools.items():
                for made in (place / "ours", place / "peer"):
                    if str(made) in command:
                        shutil.rmtree(made, ignore_errors=True)
                cost = run(command)
                if turn:
                    costs[name].append(cost)
        _table(options.folder, costs)
        run([*tools["resize"][:-1], str(place / "ours in float32"), "--dtype", "float32"])
        for name in ("ours in float32", "ours", "peer"):
            if (place / name).is_dir():
                excess, worst = errors(options.folder, place / name, options.rank)
                print(f"  error of {name}: at most {worst:.2e}, above the least possible by at most {excess:.1e}")


def _table(folder: Path, costs: dict[str, list[Cost]]) -> None:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(json.dumps({"folder": folder.name, "bytes": size, "cores": os.cpu_count(), "load": os.getloadavg()[0]}))
    base = {field: statistics.median(getattr(c, field) for c in costs["audit"]) for field in ("wall", "cpu")}
    for name, found in costs.items():
        wall, cpu = (statistics.median(getattr(c, field) for c in found) for field in ("wall", "cpu"))
        peak = max(c.megabytes for c in found)
        ratios = f"{wall / base['wall']:.2f} x / {cpu / base['cpu']:.2f} x audit" if math.isfinite(wall) else ""
        print(f"  {name:<16} {wall:8.2f} s wall {cpu:8.2f} s CPU {peak:7.0f} MB   {ratios}")


if __name__ == "__main__":
    main()
