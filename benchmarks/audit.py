"""Audit: whole-process time and peak memory, side by side with other tools, in one run.

    python benchmarks/audit.py FOLDER [FOLDER ...] [--runs 5] [--peer NAME=COMMAND ...]

Each FOLDER is an adapter. COMMAND is another tool's command line, in an environment of its own; `{dir}` and
`{weights}` stand for the adapter. The tools take turns (A B C, A B C, ...), after one uncounted turn, so that a
machine that slows down slows all of them. Printed: median, least and largest wall seconds, peak resident memory,
and each tool's median as a multiple of ours. `--limit` takes turns with what cannot be left out, a process that only
imports JAX and numpy's BLAS on the same float64 Gram products on one thread without their reading, and prints our wall
and CPU time as multiples of both together: least and median. `--products` takes turns with the same audit whose Gram
products XLA computes, and prints medians. `--beside OTHER` takes turns with `resize`, `compare` and
`merge` of the adapter (and OTHER, of the same shapes), and prints their medians as multiples of the audit's, for each
adapter that is read. `--growth` times adapters of 1 to 10 000 equal modules
made on the spot.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

OURS = f"{shlex.quote(sys.executable)} -m gradience audit --json {{dir}}"

FLOOR = """
import json, struct, sys
import ml_dtypes, numpy as np
kinds = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
path = sys.argv[1]
with open(path, "rb") as file:
    size = struct.unpack("<Q", file.read(8))[0]
    header = json.loads(file.read(size))
import time
wall = cpu = 0.0
for entry in header.values():
    if len(entry.get("shape", ())) != 2:  # metadata, or a head's bias
        continue
    begin, end = entry["data_offsets"]
    kind = np.dtype(kinds[entry["dtype"]])
    x = np.fromfile(path, kind, (end - begin) // kind.itemsize, offset=8 + size + begin).reshape(entry["shape"])
    x = x.astype(np.float64)
    start = time.perf_counter(), time.process_time()
    x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    wall += time.perf_counter() - start[0]
    cpu += time.process_time() - start[1]
print(wall, cpu)
"""


PRODUCTS = """
import sys
from gradience.device import prepare_jax
prepare_jax("cpu", serial_kernels=True)
import jax, jax.numpy as jnp, ml_dtypes, numpy as np
from functools import partial
from gradience.spectral import grams
from gradience.verbs.audit.run import audit_adapter

@partial(jax.jit, static_argnames="in_rows")
def product(x, in_rows):
    if x.dtype == jnp.uint16:  # XLA's own cast of bfloat16 is slow on a CPU
        x = jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)
    x = x.astype(jnp.float64)
    return x @ x.T if in_rows else x.T @ x

def gram(factor):
    r, length = factor.shape
    x, in_rows = (factor, True) if factor.flags.c_contiguous else (factor.T, False)
    x = x.view(np.uint16) if x.dtype == ml_dtypes.bfloat16 else x
    total, step = np.zeros((grams.bucket_of(r),) * 2), max(256, (1 << 17) // r)
    with jax.enable_x64(True):
        for start in range(0, length, step):
            part = x[:, start : start + step] if in_rows else x[start : start + step]
            whole = np.zeros((r, step) if in_rows else (step, r), x.dtype)  # one shape: compiled once
            whole[tuple(map(slice, part.shape))] = part
            total[:r, :r] += np.asarray(product(whole, in_rows))
    return total

if sys.argv[2] == "xla":
    grams.gram = gram
audit_adapter(sys.argv[1])
"""


class Cost(NamedTuple):
    """The cost of one process: wall seconds, peak resident megabytes, and seconds of user and system time."""

    seconds: float
    megabytes: float
    cpu: float


def run(command: str) -> Cost:
    """Run one process to its end and return its cost, as the operating system measured it."""
    start = time.perf_counter()
    process = subprocess.Popen(shlex.split(command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) not in {0, 1}:
        raise SystemExit(f"{command} failed: {error.decode(errors='replace')[-400:]}")
    return Cost(seconds, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)


def weights_of(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("*.safetensors"))))


def compare(folder: Path, tools: dict[str, str], runs: int) -> None:
    """Print one table: every tool on one adapter."""
    weights = weights_of(folder)
    filled = {
        name: cmd.format(dir=shlex.quote(str(folder)), weights=shlex.quote(str(weights))) for name, cmd in tools.items()
    }
    costs: dict[str, list[Cost]] = {name: [] for name in tools}
    for turn in range(runs + 1):
        for name, command in filled.items():
            cost = run(command)
            if turn:
                costs[name].append(cost)
    ours = statistics.median(c.seconds for c in costs["gradience (this)"])
    print(f"{folder.name} ({weights.stat().st_size / 1e6:.1f} MB), {runs} runs each")
    for name, found in costs.items():
        seconds = [c.seconds for c in found]
        median = statistics.median(seconds)
        print(
            f"  {name:<24} {median:8.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})"
            f"  {max(c.megabytes for c in found):7.0f} MB  {median / ours:6.2f} x ours"
        )


def first_run(folder: Path) -> None:
    """Print the time of a run whose compilation cache is empty."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        print(f"  first run, empty cache:  {run(OURS.format(dir=shlex.quote(str(folder)))).seconds:8.2f} s")
        del os.environ["XDG_CACHE_HOME"]


def limit(folder: Path, runs: int) -> None:
    """Print our time over that of importing JAX and of the float64 Gram products in BLAS, in wall and CPU seconds."""
    ours: list[Cost] = []
    imports: list[Cost] = []
    products: list[tuple[float, float]] = []
    for turn in range(runs + 1):
        found = run(f"{shlex.quote(sys.executable)} -c 'import jax'"), run(OURS.format(dir=shlex.quote(str(folder))))
        wall, cpu = products_alone(folder)
        if turn:
            imports.append(found[0])
            ours.append(found[1])
            products.append((wall, cpu))
    for kind, mine, alone, work in (
        ("wall", [c.seconds for c in ours], [c.seconds for c in imports], [wall for wall, _ in products]),
        ("CPU", [c.cpu for c in ours], [c.cpu for c in imports], [cpu for _, cpu in products]),
    ):
        for name, of in (("least", min), ("median", statistics.median)):
            least = of(alone) + of(work)
            print(
                f"  {kind:<5}{name:<7} import {of(alone):.2f} + products {of(work):.2f} = {least:.2f} s;"
                f" ours {of(mine):.2f} s, {of(mine) / least:.2f} x"
            )


def products_alone(folder: Path) -> tuple[float, float]:
    """Return the wall and CPU seconds of the products on one thread."""
    command = [sys.executable, "-c", FLOOR, str(weights_of(folder))]
    single = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    wall, cpu = subprocess.run(command, capture_output=True, text=True, check=True, env=single).stdout.split()
    return float(wall), float(cpu)


def products(folder: Path, runs: int) -> None:
    """Print the audit's time with the Gram products in BLAS, as it is, and with the same products in XLA."""
    costs: dict[str, list[Cost]] = {"blas": [], "xla": []}
    for turn in range(runs + 1):
        for name, found in costs.items():
            cost = run(shlex.join([sys.executable, "-c", PRODUCTS, str(folder), name]))
            if turn:
                found.append(cost)
    for kind in ("seconds", "cpu"):
        blas, xla = (statistics.median(getattr(cost, kind) for cost in found) for found in costs.values())
        print(f"  products, {kind:<8} in BLAS {blas:.2f} s, in XLA {xla:.2f} s, {xla / blas:.2f} x")


def verbs(folder: Path, other: Path, runs: int) -> None:
    """Print wall and CPU time of the verbs that read the same adapters, over the audit's, per adapter read."""
    one, two = (shlex.quote(str(place)) for place in (folder, other))
    begin = f"{shlex.quote(sys.executable)} -m gradience"
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        out = Path(place) / "out"
        written = shlex.quote(str(out))
        tools = {
            "audit": (1, f"{begin} audit --json {one}"),
            "resize --rank 16": (1, f"{begin} resize {one} --rank 16 --out {written}"),
            "compare": (2, f"{begin} compare --json {one} {two}"),
            "merge svd --rank 16": (
                2,
                f"{begin} merge {one} {two} --method svd --rank 16 --out {shlex.quote(str(out))}",
            ),
            "merge linear": (2, f"{begin} merge {one} {two} --out {shlex.quote(str(out))}"),
        }
        costs: dict[str, list[Cost]] = {name: [] for name in tools}
        for turn in range(runs + 1):
            for name, (_, command) in tools.items():
                shutil.rmtree(out, ignore_errors=True)
                cost = run(command)
                if turn:
                    costs[name].append(cost)
    median = {name: [statistics.median(x) for x in zip(*found, strict=True)] for name, found in costs.items()}
    for name, (seconds, megabytes, cpu) in median.items():
        n = tools[name][0]
        wall_ratio, cpu_ratio = seconds / n / median["audit"][0], cpu / n / median["audit"][2]
        print(
            f"  {name:<24} {seconds:8.2f} s wall {cpu:8.2f} s CPU {megabytes:7.0f} MB"
            f"  {wall_ratio:5.2f} x / {cpu_ratio:.2f} x audit per adapter"
        )


def growth() -> None:
    """Print seconds for 1 to 10 000 equal modules."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    print("growth: modules of 512 x 512, r=8")
    for n in (1, 10, 100, 1000, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            tensors = {}
            for i in range(n):
                name = f"base_model.model.layers.{i}.q_proj"
                tensors[f"{name}.lora_A.weight"] = rng.standard_normal((8, 512), dtype=np.float32)
                tensors[f"{name}.lora_B.weight"] = rng.standard_normal((512, 8), dtype=np.float32)
            save_file(tensors, Path(folder) / "adapter_model.safetensors")
            (Path(folder) / "adapter_config.json").write_text(
                json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16})
            )
            seconds = min(run(OURS.format(dir=folder)).seconds for _ in range(3))
            print(f"  {n:>6} modules {seconds:8.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--limit", action="store_true")
    parser.add_argument("--products", action="store_true")
    parser.add_argument("--beside", type=Path, metavar="OTHER")
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # so that installed modules are not compiled again in every run
    tools = {"gradience (this)": OURS, "import jax": f"{shlex.quote(sys.executable)} -c 'import jax'"} | dict(
        peer.split("=", 1) for peer in options.peer
    )
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}")
    for folder in options.folders:
        compare(folder, tools, options.runs)
        first_run(folder)
        if options.limit:
            limit(folder, options.runs)
        if options.products:
            products(folder, options.runs)
        if options.beside is not None:
            verbs(folder, options.beside, options.runs)
    if options.growth:
        growth()


if __name__ == "__main__":
    main()
