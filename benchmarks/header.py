"""CPU time and peak memory of opening a file whose header has a million tensors, beside Python and its imports.

    python benchmarks/header.py FOLDER [--tensors 1000000] [--runs 3]

The file (some 90 MB, nearly all of it header) is made once in FOLDER and kept. `json` is a process that only decodes
the header with the standard library. `library` is a process that opens it with safetensors and lists the names.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import struct
import sys
from pathlib import Path

from verify import Cost, run

_NAME = "{0}.{1}.lora_{2}.weight"
_PROGRAMS = {
    "imports": "import gradience.io.safetensors",
    "gradience": "import pathlib, gradience.io.safetensors as s; s.SafetensorsFile(pathlib.Path({path!r}))",
    "json": "import json; f = open({path!r}, 'rb'); n = int.from_bytes(f.read(8), 'little'); json.loads(f.read(n))",
    "library": "from safetensors import safe_open\nwith safe_open({path!r}, framework='numpy') as f: f.keys()",
}


def make(path: Path, tensors: int) -> None:
    """Write a file of `tensors` tensors, each of two bfloat16 numbers."""
    entries = {}
    for i in range(tensors):
        name = _NAME.format(i // 8, "qkvo"[i % 8 // 2], "AB"[i % 2])
        entries[name] = {"dtype": "BF16", "shape": [1, 2], "data_offsets": [4 * i, 4 * i + 4]}
    raw = json.dumps(entries, separators=(",", ":")).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4 * tensors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tensors", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # so that installed modules are not compiled again in every run
    path = options.folder / f"{options.tensors}.safetensors"
    if not path.is_file():  # in a process of its own: a child's peak begins at its parent's
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(path, options.tensors))
        maker.start()
        maker.join()
    costs: dict[str, list[Cost]] = {name: [] for name in _PROGRAMS}
    for turn in range(options.runs + 1):
        for name, program in _PROGRAMS.items():
            cost = run([sys.executable, "-c", program.format(path=str(path))])
            if turn:
                costs[name].append(cost)
    least = statistics.median(cost.cpu for cost in costs["json"])
    for name, some in costs.items():
        cpu, peak = (statistics.median(getattr(cost, field) for cost in some) for field in ("cpu", "megabytes"))
        codes = {cost.code for cost in some}
        print(f"{name:<10} CPU {cpu:6.2f} s ({cpu / least:5.2f}x json)  peak {peak:6.0f} MB  exit {codes}")


if __name__ == "__main__":
    main()
